package attach

import (
	"strings"
	"testing"
	"time"
)

var startAt = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// failedUnit is one whose main process ended with a status.
func failedUnit(status int, handoff ...time.Time) Unit {
	u := Unit{ID: "a.service", LoadState: "loaded", ActiveState: "failed", SubState: "failed", Result: "exit-code", Settings: Settings{Profile: "a"},
		Runs: []Run{{Property: "ExecStart", Path: "/usr/bin/a", PID: 7, Code: 1, Status: status, Began: startAt, Ended: startAt.Add(time.Second)}}}
	if len(handoff) > 0 {
		u.HandoffTold, u.Handoff = true, handoff[0]
	}
	return u
}

// refusedChange is the kernel's record of a change of profile.
func refusedChange(pid int, after time.Duration) Denial {
	return Denial{Operation: "change_onexec", Profile: Unconfined, Name: "a", Info: "label not found", Error: -2, PID: pid, Comm: "(a)", Count: 1,
		First: startAt.Add(after), Last: startAt.Add(after)}
}

// A real 231/APPARMOR, a program that ends with 231, and where neither can be told.
func TestStatus231(t *testing.T) {
	heard := Hearing{Since: startAt.Add(-time.Minute)}
	pre := failedUnit(0, startAt)
	pre.Runs = append(pre.Runs, Run{Property: "ExecStartPre", Path: "/usr/bin/pre", PID: 8, Code: 1, Status: 231, Began: startAt, Ended: startAt.Add(2 * time.Second)})
	rooted := failedUnit(231)
	rooted.Settings.RootDirectory = "/srv/root"
	for name, c := range map[string]struct {
		u       Unit
		records []Denial
		h       Hearing
		reached Tri
		code    Code
		says    string
	}{
		"new systemd: not handed over": {failedUnit(231, time.Time{}), nil, Hearing{}, No, StartNoProfile, "never came to execute"},
		"new systemd, with the record": {failedUnit(231, time.Time{}), []Denial{refusedChange(7, time.Second/2)}, heard, No, StartNoProfile, "no profile a was loaded"},
		"new systemd: the program":     {failedUnit(231, startAt.Add(time.Millisecond)), []Denial{refusedChange(9, 0)}, heard, Yes, StartFailed, "by itself"},
		"old systemd: the record":      {failedUnit(231), []Denial{refusedChange(6, 0), refusedChange(7, time.Second/2)}, Hearing{}, No, StartNoProfile, "no profile a was loaded"},
		"old systemd: no record":       {failedUnit(231), nil, heard, Yes, StartFailed, "by itself"},
		"a record of another process":  {failedUnit(231), []Denial{refusedChange(9, 0)}, heard, Yes, StartFailed, "by itself"},
		"an older one of that number":  {failedUnit(231), []Denial{refusedChange(7, -time.Hour)}, heard, Yes, StartFailed, "by itself"},
		"a later one of that number":   {failedUnit(231), []Denial{refusedChange(7, time.Hour)}, heard, Yes, StartFailed, "by itself"},
		"complain mode let it pass": {failedUnit(231), []Denial{func() Denial { d := refusedChange(7, 0); d.Allowed = true; return d }()},
			heard, Yes, StartFailed, "by itself"},
		"perhaps one of several": {failedUnit(231), []Denial{func() Denial {
			d := refusedChange(9, time.Hour)
			d.First, d.Count = startAt.Add(-time.Hour), 3
			return d
		}()}, heard, CouldNotTell, StartUnclear, "to which processes"},
		"began to hear too late":  {failedUnit(231), nil, Hearing{Since: startAt.Add(time.Second)}, CouldNotTell, StartUnclear, "not known"},
		"never heard":             {failedUnit(231), nil, Hearing{}, CouldNotTell, StartUnclear, "not known"},
		"records were lost":       {failedUnit(231), nil, Hearing{Since: heard.Since, Lost: 1}, CouldNotTell, StartUnclear, "not known"},
		"deaf now":                {failedUnit(231), nil, Hearing{Since: heard.Since, Deaf: "x"}, CouldNotTell, StartUnclear, "not known"},
		"another root directory":  {rooted, nil, heard, CouldNotTell, StartUnclear, "RootDirectory="},
		"a command before it":     {pre, nil, Hearing{}, CouldNotTell, StartUnclear, "ExecStartPre= of a.service (/usr/bin/pre)"},
		"the record of a command": {pre, []Denial{refusedChange(8, time.Second)}, heard, No, StartNoProfile, "ExecStartPre"},
	} {
		t.Run(name, func(t *testing.T) {
			s := LastStartOf(c.u, c.records, c.h)
			why := s.why(c.u.ID)
			if s.Reached != c.reached || s.By == "" || why == nil || why.Code != c.code || !strings.Contains(why.Detail, c.says) {
				t.Errorf("reached %v (%s): %+v", s.Reached, s.By, why)
			}
		})
	}
}

// Who may not read records is told whether the program was reached, and why it is
// known, and nothing that a record says.
func TestALastStartWithoutTheRecord(t *testing.T) {
	for name, c := range map[string]struct {
		s    LastStart
		want string
	}{
		"new systemd, with the record":     {LastStartOf(failedUnit(231, time.Time{}), []Denial{refusedChange(7, 0)}, Hearing{}), "systemd says that it never came to execute the program, and the kernel that it refused the change of profile"},
		"new systemd, without":             {LastStartOf(failedUnit(231, time.Time{}), nil, Hearing{}), "systemd says that it never came to execute the program"},
		"old systemd":                      {LastStartOf(failedUnit(231), []Denial{refusedChange(7, 0)}, Hearing{}), "the kernel recorded that it refused the change of profile"},
		"a profile of a misleading name":   {LastStartOf(failedUnit(231), []Denial{{Operation: "change_onexec", Name: "refused the change of profile: x", PID: 7, Last: startAt}}, Hearing{}), "the kernel recorded that it refused the change of profile"},
		"no start that failed is as it is": {LastStart{ActiveState: "active"}, ""},
	} {
		got := c.s.WithoutRecord()
		if got.By != c.want || got.Reached != c.s.Reached || got.ActiveState != c.s.ActiveState {
			t.Errorf("%s: %+v, want %q", name, got, c.want)
		}
		if before, after := c.s.why("a.service"), got.why("a.service"); (before == nil) != (after == nil) || before != nil && before.Code != after.Code {
			t.Errorf("%s: the reason is %v, and without the record %v", name, before, after)
		}
	}
}

// How a start ends otherwise.
func TestWhyAStartFailed(t *testing.T) {
	change := func(f func(*Unit)) Unit { u := failedUnit(3, startAt); f(&u); return u }
	for name, c := range map[string]struct {
		u    Unit
		code Code // "": nothing speaks of a failure
		says []string
	}{
		"status":              {failedUnit(3, startAt), StartFailed, []string{"ExecStart= of a.service (/usr/bin/a) ended with status 3"}},
		"step of systemd's":   {failedUnit(226, time.Time{}), StartFailed, []string{"226/NAMESPACE", "PrivateTmp="}},
		"perhaps systemd's":   {failedUnit(226), StartFailed, []string{"226/NAMESPACE", "a program can end with that status, too"}},
		"the program's 226":   {failedUnit(226, startAt), StartFailed, []string{"ended with status 226"}},
		"exec is handed over": {failedUnit(203, startAt), StartFailed, []string{"203/EXEC", "the profile does not allow it"}},
		"signal": {change(func(u *Unit) { u.Result, u.Runs[0].Code, u.Runs[0].Status = "signal", 2, 31 }), StartFailed,
			[]string{"was killed by signal 31"}},
		"core dump": {change(func(u *Unit) { u.Result, u.Runs[0].Code, u.Runs[0].Status = "core-dump", 3, 11 }), StartFailed, []string{"crashed with signal 11"}},
		"watchdog": {change(func(u *Unit) { u.Result, u.Runs[0].Code, u.Runs[0].Status = "watchdog", 2, 6 }), StartFailed,
			[]string{"signal 6", "watchdog"}},
		"timeout":         {change(func(u *Unit) { u.Result, u.Runs = "timeout", nil }), StartFailed, []string{"/run/systemd/notify"}},
		"start limit":     {change(func(u *Unit) { u.Result, u.Runs = "start-limit-hit", nil }), StartFailed, []string{"gave up"}},
		"a new word":      {change(func(u *Unit) { u.Result, u.Runs = "new-word", nil }), StartFailed, []string{"new-word"}},
		"condition":       {change(func(u *Unit) { u.Condition = No }), StartSkipped, []string{"Condition…="}},
		"assert":          {change(func(u *Unit) { u.Assert = No }), StartSkipped, []string{"AssertSecurity=apparmor"}},
		"running":         {change(func(u *Unit) { u.ActiveState = "active" }), "", nil},
		"stopped":         {change(func(u *Unit) { u.ActiveState, u.Result, u.Runs = "inactive", "success", nil }), "", nil},
		"failure ignored": {change(func(u *Unit) { u.Result = "success"; u.Runs[0].IgnoreFailure = true }), "", nil},
		"the later one": {change(func(u *Unit) {
			u.Runs = append(u.Runs, Run{Property: "ExecStartPost", Path: "/bin/p", PID: 9, Code: 1, Status: 4, Ended: startAt.Add(time.Hour)})
		}), StartFailed, []string{"ExecStartPost"}},
		"never was loaded": {Unit{ID: "a.service"}, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			why := LastStartOf(c.u, nil, Hearing{}).why("a.service")
			if c.code == "" {
				if why != nil {
					t.Errorf("%+v", why)
				}
				return
			}
			if why == nil || why.Code != c.code {
				t.Fatalf("%+v", why)
			}
			for _, w := range c.says {
				if !strings.Contains(why.Detail, w) {
					t.Errorf("it does not say %q: %s", w, why.Detail)
				}
			}
		})
	}
	if why := LastStartOf(failedUnit(226, startAt), nil, Hearing{}).why("a"); strings.Contains(why.Detail, "NAMESPACE") {
		t.Errorf("a program's own status is said to be systemd's: %s", why.Detail)
	}
}

func TestDenialWords(t *testing.T) {
	for _, c := range []struct {
		d    Denial
		want string
	}{
		{Denial{Operation: "open", Name: "/etc/x", Denied: "w", Profile: "a", Comm: "y", Count: 12},
			`the kernel refused open for writing of /etc/x by program y 12 times; profile a needs the rule ` + "`/etc/x w,`" + ` if that is right`},
		{Denial{Operation: "mknod", Name: "/srv/a b", Denied: "c", Profile: "a", Comm: "y", HasOwner: true, Count: 1},
			`the kernel refused mknod for creating of "/srv/a b" by program y; profile a needs the rule ` + "`owner \"/srv/a b\" w,`" + ` if that is right`},
		{Denial{Operation: "exec", Name: "/usr/bin/id", Denied: "x", Profile: "a", Comm: "sh", Allowed: true},
			`the kernel let pass, since the profile only complains, running /usr/bin/id by program sh; profile a needs the rule ` + "`/usr/bin/id ix,`" + ` if that is right`},
		{Denial{Operation: "capable", Capability: "net_admin", Profile: "a", Comm: "y", Killed: true},
			`the kernel refused, and ended the program for, the capability net_admin by program y; profile a needs the rule ` + "`capability net_admin,`" + ` if that is right`},
		{Denial{Operation: "create", Class: "net", Family: "inet", SockType: "stream", Profile: "a", Denied: "create", Comm: "y"},
			`the kernel refused create of a socket of inet stream by program y; profile a needs the rule ` + "`network inet stream,`" + ` if that is right`},
		{Denial{Operation: "change_onexec", Name: "gone", Info: "label not found", Profile: Unconfined, Comm: "(y)", Count: 3},
			`the kernel refused systemd's switch to profile gone 3 times: label not found`},
		{Denial{Operation: "change_profile", Name: "unconfined", Profile: "a", Comm: "y"},
			`the kernel refused a change to profile unconfined by program y; no rule is proposed: a rule for it would let tasks leave the profile; whether they may is for a person to say`},
		{Denial{Operation: "new_thing", Profile: "a", Requested: "zz"}, `the kernel refused new_thing by a program; no rule is proposed: the record does not say enough for a rule`},
	} {
		if got := c.d.Words(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	hostile := Denial{Operation: "open", Name: "/\x1b[31m\n\u202e\xff" + strings.Repeat("a", 5000), Denied: "r", Profile: "a\x07", Comm: "\x1b]0;"}
	if got := hostile.Words(); strings.ContainsAny(got, "\x1b\n\x07\u202e") || len(got) > maxDetail+len("…") {
		t.Errorf("%d bytes: %q", len(got), got)
	}
}

// What a job takes down is active no more before its program ends; one that ends by itself
// is active until then.
func TestTakenDown(t *testing.T) {
	began := time.Unix(1_700_000_000, 0)
	at := func(ms int) time.Time { return began.Add(time.Duration(ms) * time.Millisecond) }
	main := func(ended time.Time) []Run { return []Run{{Property: "ExecStart", Began: began, Ended: ended}} }
	for _, tt := range []struct {
		name string
		unit Unit
		want bool
	}{
		{"by itself", Unit{Result: "exit-code", Runs: main(at(500)), Ceased: at(517)}, false},
		{"by itself, told at once", Unit{Result: "exit-code", Runs: main(at(500)), Ceased: at(500)}, false},
		{"stopped", Unit{Result: "exit-code", Runs: main(at(501)), Ceased: at(500)}, true},
		{"it had ended well, and a command of the stop fails", Unit{Result: "exit-code", Ceased: at(5000),
			Runs: []Run{{Property: "ExecStart", Began: began, Ended: at(500), Code: codeExited}, {Property: "ExecStop", Began: at(5000), Ended: at(5100), Code: codeExited, Status: 1}}}, true},
		{"being stopped", Unit{Result: "success", Runs: main(time.Time{}), Ceased: at(500)}, true},
		{"it never came up", Unit{Result: "exit-code", Runs: main(at(500))}, false},
		{"it did not come up this time", Unit{Result: "exit-code", Runs: main(at(500)), Ceased: at(-500)}, false},
		{"it runs", Unit{Result: "success", Runs: main(time.Time{}), Ceased: at(-500)}, false},
		{"it did not tell the watchdog", Unit{Result: "watchdog", Runs: main(at(501)), Ceased: at(500)}, false},
		{"systemd gave up", Unit{Result: "start-limit-hit", Runs: main(at(501)), Ceased: at(500)}, false},
		{"its main program is not known", Unit{Result: "exit-code", Left: began, Ceased: at(500)}, true},
		{"nor has it run since", Unit{Result: "exit-code", Left: began, Ceased: at(-500)}, false},
	} {
		if got := tt.unit.TakenDown(); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}
