package attach

import (
	"slices"
	"time"
)

// ProposedFile is an attachment or profile file as it would be. An attachment file
// without a text would be gone.
type ProposedFile struct{ File, Text string }

// Request asks for an attach or detach of units, by a person.
type Request struct {
	Units     []string `json:"units"` // names and globs
	Profile   string   `json:"profile,omitempty"`
	Runtime   bool     `json:"runtime,omitempty"`
	Complain  bool     `json:"complain,omitempty"`
	NoRestart bool     `json:"noRestart,omitempty"`
	// Settle is SettleSec= of the attachment; nil leaves it.
	Settle *time.Duration `json:"settle,omitempty"` // nanoseconds
	DryRun bool           `json:"dryRun,omitempty"`
	// For is how long Pause shall pause.
	For time.Duration `json:"for,omitempty"`
	// Sockets is what ChangeSockets shall change.
	Sockets *SocketChange `json:"sockets,omitempty"`
	// By is who asks, in words. Set by the D-Bus service from the caller's
	// credentials, never by the caller.
	By string `json:"-"`
	// Trusted: the caller is root and may name any file. Set by the D-Bus
	// service from the caller's credentials, never by the caller.
	Trusted bool `json:"-"`
	// AsDeclared: an attachment that is there is taken as it is, its mode and
	// all. For checks.
	AsDeclared bool `json:"-"`
}

// Step is a stage of an operation that people see.
type Step string

// In the order in which they come.
const (
	StepResolve    Step = "profile"
	StepAttachment Step = "attachment" // its file; of an image only
	StepPolicy     Step = "policy"
	StepDropIn     Step = "drop-in"
	StepSockets    Step = "sockets"
	StepRestart    Step = "restarted"
	StepVerdict    Step = "verdict"
	StepUndo       Step = "undone"
	StepPause      Step = "paused"
	StepResume     Step = "resumed"
)

// State of a step.
type State string

// The states.
const (
	Running State = "running"
	Done    State = "done"
	Failed  State = "failed"
	Skipped State = "skipped"
	Warned  State = "warning"
)

// Event is one line of progress.
type Event struct {
	Unit  string `json:"unit"`
	Step  Step   `json:"step"`
	State State  `json:"state"`
	Text  string `json:"text"`
	// Reason is set where the step failed or warns.
	Reason *Reason `json:"reason,omitempty"`
}

// Outcome is how an operation ended for one unit.
type Outcome struct {
	Unit    string `json:"unit"`
	Profile string `json:"profile,omitempty"`
	File    string `json:"file,omitempty"` // the profile's
	// Exit is what the command line ends with for this unit.
	Exit    Exit `json:"exit"`
	Changed bool `json:"changed"`
	// Restarted: the unit was restarted, also where that failed.
	Restarted bool     `json:"restarted,omitempty"`
	Undone    bool     `json:"undone,omitempty"`
	Paused    *Pause   `json:"paused,omitempty"`  // the new pause
	Reasons   []Reason `json:"reasons,omitempty"` // refusals or failures
	Notes     []Reason `json:"notes,omitempty"`   // warnings and what is pending
	// Findings are what a check found in the compiled policy.
	Findings []Finding `json:"findings,omitempty"`
	// Questioned is what the kernel was asked about each policy.
	Questioned []Questioned `json:"questioned,omitempty"`
	Plan       *Plan        `json:"plan,omitempty"`
	Verdict    *Verdict     `json:"verdict,omitempty"`
	Events     []Event      `json:"events,omitempty"`
}

// Exit is an exit status of aaunitctl.
type Exit int

// The exit statuses; see aaunitctl(1).
const (
	ExitOK          Exit = 0
	ExitFailed      Exit = 1
	ExitUsage       Exit = 2
	ExitNotConfined Exit = 3
	ExitNoUnit      Exit = 4
	ExitUnknown     Exit = 5
)

// ExitOf gives the exit status of a verdict.
func ExitOf(v *Verdict) Exit {
	switch {
	case v == nil:
		return ExitUnknown
	case v.Answer == Confined:
		return ExitOK
	case v.Answer == NotConfined:
		return ExitNotConfined
	}
	return ExitUnknown
}

// WorstExit combines the exit statuses of several units: a failure beats not
// confined, which beats no such unit, unknown and success.
func WorstExit(exits ...Exit) Exit {
	order := []Exit{ExitOK, ExitUnknown, ExitNoUnit, ExitNotConfined, ExitFailed, ExitUsage}
	worst := 0
	for _, e := range exits {
		i := slices.Index(order, e)
		if i < 0 {
			i = slices.Index(order, ExitFailed) // no status of ours: never success
		}
		worst = max(worst, i)
	}
	return order[worst]
}

// ExitOfHost gives the exit status of the state of AppArmor and, where it is not
// ExitOK, what is the matter.
func ExitOfHost(h Host) (Exit, Code) {
	switch {
	case h.Enabled == No:
		return ExitNotConfined, AppArmorOff
	case h.Enabled != Yes || h.GlobalMode == "":
		return ExitUnknown, AppArmorUnknown
	case !h.GlobalMode.Confines():
		return ExitNotConfined, GlobalComplain
	}
	return ExitOK, ""
}

// ExitOfReport gives the exit status of a report. Attachment files that are not in use
// are a failure of the whole, not of units that were asked for by name.
func ExitOfReport(r Report, named bool) Exit {
	host, _ := ExitOfHost(r.Host)
	codes := []Exit{host}
	for _, s := range r.Patterns {
		codes = append(codes, s.Exit())
	}
	for _, s := range r.Units {
		codes = append(codes, s.Exit())
	}
	for _, m := range r.Missing {
		if m.Reason.Code == UnitNotFound {
			codes = append(codes, ExitNoUnit)
		} else {
			codes = append(codes, ExitNotConfined)
		}
	}
	if len(r.Problems) > 0 && !named {
		codes = append(codes, ExitFailed)
	}
	return WorstExit(codes...)
}

// Status is what is known of one attached unit.
type Status struct {
	Unit        string   `json:"unit"`
	Profile     string   `json:"profile"`
	ProfileFile string   `json:"profileFile,omitempty"`
	Attachment  string   `json:"attachment"` // file
	DropIn      string   `json:"dropIn,omitempty"`
	ActiveState string   `json:"activeState"`
	Verdict     *Verdict `json:"verdict,omitempty"`
	Held        *Hold    `json:"held,omitempty"`
	// Paused is in force: the unit's pause, or that of its template or prefix.
	Paused *Pause `json:"paused,omitempty"`
	// Refused says why the attachment could not be made; of a template or prefix also
	// why its accepted policy could not be put back, how another unit's that counts differs
	// from it, that it is in complain mode and, while the pattern is refused or paused, what
	// is not as declared.
	Refused []Reason `json:"refused,omitempty"`
	Notes   []Reason `json:"notes,omitempty"`
	// Questioned is what the kernel was asked about each accepted policy.
	Questioned []Questioned `json:"questioned,omitempty"`
	// Busy: a pass is at work on the unit.
	Busy bool `json:"busy,omitempty"`
	// Coming and ComingText are what ToCome says of a template or prefix, for those who
	// read JSON.
	Coming     Answer `json:"toCome,omitempty"`
	ComingText string `json:"toComeText,omitempty"`
}

// ToCome says of a template or prefix whether units to come of it start under its
// profile, which enforces, and puts that into words.
func (s Status) ToCome() (Answer, string) {
	switch {
	case s.trampled():
		return NotConfined, "units to come do not start under what was accepted for it"
	case s.dropInAmiss():
		return NotConfined, "units to come are not confined by it"
	case s.Held != nil && !s.Held.OnlyText():
		return NotConfined, "units to come are not confined by it"
	case s.DropIn != "":
		switch s.refusedToCome() {
		case NotConfined:
			return NotConfined, "units to come are not confined by it"
		case Unknown:
			return Unknown, "whether units to come are confined by it could not be told"
		}
		return Confined, "units to come start under the profile"
	case s.Busy && len(s.Refused) == 0 && s.Held == nil:
		return Unknown, "whether units to come are confined by it is not known yet"
	}
	return NotConfined, "units to come are not confined by it"
}

// refusedToCome is what the refusals of a template or prefix whose drop-in is in place
// make of its units to come. Some say no more than why something new does not take the
// place of what was accepted; each other one counts as it does in a verdict.
func (s Status) refusedToCome() Answer {
	answer := Confined
	for _, r := range s.Refused {
		switch r.Code {
		case ProfileNotFound, ProfileDuplicate, ProfileDisabled, ProfileComplain, ProfileUnconfined, ProfileDefaultOpen, ProfileBroken, ProfileNotCompiled,
			ProfileUnreadable, ProfileUntrusted, ProfileDisputed, ProfileNotStaged, PolicyDisputed, PolicyNotKept, AssertionUnknown:
		default:
			answer = max(answer, r.Code.Bearing())
		}
	}
	return answer
}

// trampled reports whether somebody changed the policy that was accepted for a template
// or prefix, and it is not put back: it could not be, another unit's counts, something else
// is refused, or there is a pause. Of a unit its verdict says so.
func (s Status) trampled() bool { return s.amiss(PolicyTrampled, PolicyDiffers) }

// dropInAmiss reports whether the drop-in of a template or prefix that is refused or paused
// is not there, or not what is asked for.
func (s Status) dropInAmiss() bool { return s.amiss(DropInMissing, DropInDiffers) }

// complains reports whether no more is said against a template or prefix than that it is in
// complain mode.
func (s Status) complains() bool { return len(s.Refused) == 1 && s.amiss(TaskComplain) }

func (s Status) amiss(codes ...Code) bool {
	return IsPattern(s.Unit) && slices.ContainsFunc(s.Refused, func(r Reason) bool { return slices.Contains(codes, r.Code) })
}

// Exit gives the exit status of what is known of a unit, template or prefix.
func (s Status) Exit() Exit {
	exit := ExitOf(s.Verdict)
	if IsPattern(s.Unit) {
		answer, _ := s.ToCome()
		exit = exitOfBearing(answer)
	}
	if s.Held != nil && !s.Held.OnlyText() || len(s.Refused) > 0 {
		exit = WorstExit(exit, ExitNotConfined)
	}
	return exit
}

// Report is what is known of the host and its attached units, as of a time.
type Report struct {
	// Exit is what the command line ends with; see ExitOfReport. It comes first, so that
	// nothing else has to be read for it.
	Exit    Exit   `json:"exit"`
	Version string `json:"version"`
	Host    Host   `json:"host"`
	// Problems are attachment files that are not in use.
	Problems []Reason `json:"problems,omitempty"`
	Units    []Status `json:"units"`
	// Patterns are the templates and prefixes that attachments name, whose
	// drop-ins serve the units to come; they have no verdict.
	Patterns []Status `json:"patterns,omitempty"`
	// Missing are names that were asked for and that no attachment names.
	Missing []Missing `json:"missing,omitempty"`
	// Recheck is the interval of the slow re-check, in nanoseconds.
	Recheck time.Duration `json:"recheck"`
	At      time.Time     `json:"at"`
}

// Missing is a unit that was asked for and is not attached.
type Missing struct {
	Unit   string `json:"unit"`
	Reason Reason `json:"reason"`
}
