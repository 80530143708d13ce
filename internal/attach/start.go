package attach

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Run is the last run of one of a unit's commands.
type Run struct {
	Property string `json:"property"` // ExecStart, ExecStartPre, …
	Path     string `json:"path"`
	PID      int    `json:"pid"`
	// Code is how the process ended, and Status its exit status or signal: the
	// si_code and si_status of waitid(2). Code 0 is a process that has not ended.
	Code   int       `json:"code,omitempty"`
	Status int       `json:"status,omitempty"`
	Began  time.Time `json:"began,omitzero"`
	Ended  time.Time `json:"ended,omitzero"`
	// IgnoreFailure is the "-" before the command line.
	IgnoreFailure bool `json:"ignoreFailure,omitempty"`
}

// The codes of waitid(2) that a Run can have.
const (
	codeExited = 1 // CLD_EXITED
	codeKilled = 2 // CLD_KILLED
	codeDumped = 3 // CLD_DUMPED
)

func (r Run) failed() bool { return r.Code != 0 && (r.Code != codeExited || r.Status != 0) }

// TakenDown reports whether a unit that is down, or on its way, was active no more before
// its main program ended: a job has stopped it. One that says that it is about to end
// (STOPPING=1 of sd_notify(3)) looks the same. Where a program ends by itself, systemd
// takes that in first (service_sigchld_event in its service.c, unit_notify in its unit.c;
// seen on 252). One whose program has ended well did not come down for that: with
// RemainAfterExit= it stays active, and what fails is a command of the stop. Of one that
// did not come up it cannot be told, and it does not count.
func (u Unit) TakenDown() bool {
	if u.Result == "watchdog" || u.Result == "start-limit-hit" {
		return false // systemd itself has given up on it
	}
	main := Run{Began: u.Left}
	if i := slices.IndexFunc(u.Runs, func(r Run) bool { return r.Property == "ExecStart" }); i >= 0 {
		main = u.Runs[i]
	}
	return u.Ceased.After(main.Began) && (main.Ended.IsZero() || main.Ended.After(u.Ceased) || main.Code == codeExited && main.Status == 0)
}

// exitAppArmor is EXIT_APPARMOR_PROFILE of systemd.exec(5), "Process Exit Codes":
// the status of a process of systemd's own that could not switch to the profile
// and so never became the program. A program may end with it as well.
const exitAppArmor = 231

// LastStart is what became of a unit's last start, as systemd tells it to
// anybody, and, where the exit status leaves that open, whether the program was
// reached.
type LastStart struct {
	ActiveState   string `json:"activeState"`
	SubState      string `json:"subState,omitempty"`
	LoadState     string `json:"loadState,omitempty"`
	UnitFileState string `json:"unitFileState,omitempty"`
	// Result is systemd's own word: success, exit-code, signal, timeout …
	Result       string `json:"result,omitempty"`
	InvocationID string `json:"invocationID,omitempty"`
	NRestarts    uint32 `json:"nRestarts,omitempty"`
	// Profile is the AppArmorProfile= in effect.
	Profile string `json:"profile,omitempty"`
	// Condition and Assert are No where a Condition…= or Assert…= of the unit file
	// did not hold, so that nothing was started.
	Condition Tri `json:"condition"`
	Assert    Tri `json:"assert"`
	// Failed is the command that the start failed by; nil where none did.
	Failed *Run `json:"failed,omitempty"`
	// Reached says whether the command's program was reached: No where the process
	// ended before, while it was still systemd's own. By says what tells so, or why
	// nothing does.
	Reached Tri    `json:"reached"`
	By      string `json:"by,omitempty"`
}

// refusalRecorded comes in By before what a record of the kernel's says.
const refusalRecorded = "refused the change of profile"

// WithoutRecord is for who may not read records: By says that there is one, and not
// what it says.
func (s LastStart) WithoutRecord() LastStart {
	if before, _, quotes := strings.Cut(s.By, refusalRecorded+": "); quotes {
		s.By = before + refusalRecorded
	}
	return s
}

// Hearing is what the log of denials can be relied on for.
type Hearing struct {
	Since time.Time // since when it is kept
	Lost  int       // records that it lacks, at least
	Deaf  string    // why nothing is heard at present
}

// whole reports whether the log has everything since a time.
func (h Hearing) whole(since time.Time) bool {
	return !h.Since.IsZero() && !since.IsZero() && h.Since.Before(since) && h.Lost == 0 && h.Deaf == ""
}

// LastStartOf says how a unit's last start ended. refused are records of the
// kernel's of changes of profile that it refused to the processes of that start.
//
// Status 231 has two meanings. systemd 256 and later tells when it handed over to
// the main program (ExecMainHandoffTimestamp=, taken right before the exec and
// after the switch of profile): never means that the program was not reached.
// Before that, and for the other commands, it is the kernel's word: it records
// each change of profile that it refuses (aa_change_profile in
// security/apparmor/domain.c). The line that systemd writes into the journal is
// not asked: a process in the unit's own control group writes it, and the
// program can write the same.
func LastStartOf(u Unit, refused []Denial, h Hearing) LastStart {
	s := LastStart{ActiveState: u.ActiveState, SubState: u.SubState, LoadState: u.LoadState, UnitFileState: u.UnitFileState, Result: u.Result,
		InvocationID: u.InvocationID, NRestarts: u.NRestarts, Profile: u.Settings.Profile, Condition: u.Condition, Assert: u.Assert}
	for _, r := range u.Runs {
		if r.failed() && !r.IgnoreFailure && (s.Failed == nil || r.Ended.After(s.Failed.Ended)) {
			s.Failed = &r
		}
	}
	if s.Failed == nil {
		return s
	}
	f := *s.Failed
	main := f.Property == "ExecStart"
	record := changeRefused(f, refused)
	switch {
	case main && u.HandoffTold && u.Handoff.IsZero():
		s.Reached, s.By = No, "systemd says that it never came to execute the program"
		if record != nil {
			s.By += ", and the kernel that it " + refusalRecorded + ": " + record.refusal()
		}
	case main && u.HandoffTold:
		s.Reached, s.By = Yes, "systemd says that it had executed the program"
	case record != nil:
		s.Reached, s.By = No, "the kernel recorded that it "+refusalRecorded+": "+record.refusal()
	case f.Code != codeExited || f.Status != exitAppArmor:
	case !h.whole(f.Began):
		s.By = "this systemd does not tell whether it came to execute the program, and what the kernel recorded then is not known to aaunitd"
	case mergedIn(f, refused):
		s.By = "this systemd does not tell whether it came to execute the program, and the kernel refused changes of profile then of which it is not known to which processes"
	case u.Settings.RootDirectory != "":
		// Without a /proc in there systemd cannot even ask the kernel.
		s.By = "this systemd does not tell whether it came to execute the program, which has another root directory (RootDirectory=)"
	default:
		s.Reached, s.By = Yes, "the kernel records every change of profile that it refuses, and recorded none for this process"
	}
	return s
}

// clockSlack is how far the kernel's clock for records may lie from systemd's.
const clockSlack = 50 * time.Millisecond

// changeRefused finds the record of a change of profile that was refused to a
// process: to systemd's own, on its way to the program.
func changeRefused(r Run, all []Denial) *Denial {
	for _, d := range all {
		if d.ChangesProfile() && r.PID != 0 && d.PID == r.PID && !d.Allowed &&
			!d.Last.Before(r.Began.Add(-clockSlack)) && !d.Last.After(r.Ended.Add(clockSlack)) {
			return &d
		}
	}
	return nil
}

// mergedIn reports whether a record stands for several and one of them may be of
// this process: of those only the last one's is known.
func mergedIn(r Run, all []Denial) bool {
	for _, d := range all {
		if d.ChangesProfile() && d.Count > 1 && !d.First.After(r.Ended.Add(clockSlack)) && !d.Last.Before(r.Began.Add(-clockSlack)) {
			return true
		}
	}
	return false
}

// ChangesProfile reports whether what was refused is a change of profile that the
// task itself asked for.
func (d Denial) ChangesProfile() bool {
	switch d.Operation {
	case "change_onexec", "change_profile", "stack_onexec", "stack":
		return true
	}
	return false
}

// refusal says in words why a change of profile was refused.
func (d Denial) refusal() string {
	target := quoted(d.Name)
	switch {
	case strings.Contains(d.Info, "not found"):
		return fmt.Sprintf("no profile %s was loaded", target)
	case d.Info != "":
		return fmt.Sprintf("to %s (%s)", target, d.Info)
	}
	return "to " + target
}

// systemdSteps are the steps of a start that systemd takes before it executes the
// program, by the status of a process that failed at one (systemd.exec(5)).
var systemdSteps = map[int]struct{ name, what string }{
	200:          {"CHDIR", "change to the directory of WorkingDirectory="},
	203:          {"EXEC", "execute the program: it does not exist, cannot be executed, or the profile does not allow it"},
	209:          {"STDOUT", "open the standard output"},
	214:          {"SETSCHEDULER", "set the CPU scheduling"},
	216:          {"GROUP", "become the group of Group="},
	217:          {"USER", "become the user of User="},
	218:          {"CAPABILITIES", "set the capabilities"},
	219:          {"CGROUP", "set up the control group"},
	224:          {"PAM", "open the session of PAMName="},
	225:          {"NETWORK", "set up the network namespace"},
	226:          {"NAMESPACE", "set up the unit's own view of the file system (PrivateTmp=, ProtectSystem= and the like)"},
	227:          {"NO_NEW_PRIVILEGES", "set NoNewPrivileges="},
	228:          {"SECCOMP", "install the filter of system calls"},
	exitAppArmor: {"APPARMOR", "switch to the profile"},
	232:          {"ADDRESS_FAMILIES", "restrict the address families"},
	233:          {"RUNTIME_DIRECTORY", "make the directory of RuntimeDirectory="},
	238:          {"STATE_DIRECTORY", "make the directory of StateDirectory="},
	239:          {"CACHE_DIRECTORY", "make the directory of CacheDirectory="},
	240:          {"LOGS_DIRECTORY", "make the directory of LogsDirectory="},
	241:          {"CONFIGURATION_DIRECTORY", "make the directory of ConfigurationDirectory="},
}

// why says what speaks of the last start, as a reason: nil where it did not
// fail.
func (s LastStart) why(unit string) *Reason {
	switch {
	case s.ActiveState == "active" || s.ActiveState == "reloading":
		return nil
	case s.Assert == No:
		return ptr(because(StartSkipped, "an Assert…= line of %s did not hold, so systemd started nothing; aaunit's own line is AssertSecurity=apparmor, which fails where AppArmor is off", unit).
			next("systemctl status " + unit))
	case s.Condition == No:
		return ptr(because(StartSkipped, "a Condition…= line of %s did not hold, so systemd started nothing", unit).next("systemctl status " + unit))
	case s.Failed == nil && (s.Result == "" || s.Result == "success"):
		return nil
	case s.Failed == nil:
		return ptr(because(StartFailed, "%s", s.result(unit)))
	}
	f := *s.Failed
	what := fmt.Sprintf("%s= of %s (%s)", f.Property, unit, quoted(f.Path))
	if f.Code != codeExited {
		how := "was killed by"
		if f.Code == codeDumped {
			how = "crashed with"
		}
		text := fmt.Sprintf("%s %s signal %d", what, how, f.Status)
		if s.Result != "" && s.Result != "signal" && s.Result != "core-dump" && s.Result != "success" {
			text += ": " + s.result(unit)
		}
		return ptr(because(StartFailed, "%s", text))
	}
	if f.Status == exitAppArmor || s.Reached == No && strings.Contains(s.By, "change of profile") {
		profile := quoted(s.Profile)
		switch s.Reached {
		case No:
			return ptr(because(StartNoProfile, "systemd could not switch to profile %s for %s, so it executed nothing: %s", profile, what, s.By))
		case Yes:
			return ptr(because(StartFailed, "%s ended with status 231 by itself; it is not systemd's 231/APPARMOR: %s", what, s.By))
		}
		return ptr(because(StartUnclear, "%s ended with status 231: either systemd could not switch to profile %s, or the program ended so by itself; %s", what, profile, s.By))
	}
	text := fmt.Sprintf("%s ended with status %d", what, f.Status)
	if step, ok := systemdSteps[f.Status]; ok && !(s.Reached == Yes && f.Status != 203) {
		text += fmt.Sprintf("/%s, by which systemd says that it could not %s", step.name, step.what)
		if s.Reached != No {
			text += "; a program can end with that status, too"
		}
	}
	return ptr(because(StartFailed, "%s", text))
}

// result puts systemd's result of a unit into words (systemd.exec(5), under
// $SERVICE_RESULT).
func (s LastStart) result(unit string) string {
	switch s.Result {
	case "protocol":
		return fmt.Sprintf("%s did not do what its Type= asks for", unit)
	case "timeout":
		return fmt.Sprintf("%s did not start or stop within its time; a Type=notify unit whose profile forbids /run/systemd/notify looks like this", unit)
	case "watchdog":
		return fmt.Sprintf("%s did not answer systemd's watchdog", unit)
	case "start-limit-hit":
		return fmt.Sprintf("%s failed too often in a short time, and systemd gave up (StartLimitBurst=)", unit)
	case "oom-kill":
		return fmt.Sprintf("%s was ended since memory ran out", unit)
	case "resources":
		return fmt.Sprintf("systemd could not set up what %s needs", unit)
	case "exec-condition":
		return fmt.Sprintf("ExecCondition= of %s said no", unit)
	}
	return fmt.Sprintf("systemd gives the result %s for %s", s.Result, unit)
}
