package attach

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSetSocketOption(t *testing.T) {
	names := func(call SocketCall, name string) (string, error) {
		if name == "bad" {
			return "", errors.New("there is no such name")
		}
		return string(call) + ":" + name, nil
	}
	var a Attachment
	set := func(key, value string) error { return a.SetSocketOption(key, value, 7, names) }
	if err := set("Allow", "x  the  reason"); err != nil || a.SocketOptions.Mode != SocketsRecord || a.SocketOptions.Requires() {
		t.Fatalf("%v %+v", err, a.SocketOptions)
	}
	shared := a // a copy of an attachment shares what it points to
	for key, value := range map[string]string{"Mode": "enforce", "Allow": "y why", "AllowGet": "z because\x1b[2J"} {
		if err := set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	s := a.SocketOptions
	if shared.SocketOptions.Mode != SocketsRecord || len(shared.SocketOptions.Allow) != 1 {
		t.Errorf("a copy changed with it: %+v", shared.SocketOptions)
	}
	if !s.Requires() || !s.HoldsGet() || len(s.Allow) != 2 || s.Allow[0].Option != "setsockopt:x" || s.Allow[0].Reason != "the  reason" ||
		s.AllowGet[0].Option != "getsockopt:z" || strings.Contains(s.AllowGet[0].Reason, "\x1b") {
		t.Errorf("%+v", s)
	}
	if err := set("Required", "no"); err != nil || a.SocketOptions.Requires() {
		t.Errorf("%v %+v", err, a.SocketOptions)
	}
	for _, kv := range [][2]string{{"Required", ""}, {"Allow", ""}, {"AllowGet", ""}} {
		if err := set(kv[0], kv[1]); err != nil {
			t.Error(err)
		}
	}
	if s := a.SocketOptions; !s.Requires() || s.HoldsGet() || len(s.Allow) > 0 {
		t.Errorf("an empty value resets: %+v", s)
	}
	for kv, want := range map[[2]string]string{
		{"Allow", "x"}: "a reason is missing", {"Allow", "bad why"}: "no such name", {"Mode", "complain"}: "use one of",
		{"Required", "maybe"}: "yes or no", {"Deny", "x y"}: "unknown key",
	} {
		if err := set(kv[0], kv[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", kv, err, want)
		}
	}
}

// held is an attachment that holds socket options, and a running unit that is so.
func held(required Tri) (Desired, Observed) {
	a := NewAttachment()
	a.Source, a.Units, a.Profile = "/etc/aaunit/attachments.d/a.conf", []string{"a.service"}, "a"
	a.SocketOptions = &SocketOptions{Mode: SocketsEnforce, Required: required}
	d := Desired{Unit: "a.service", Attachment: &a, Profile: "a"}
	d.Record.Sockets = a.SocketOptions
	d.Record.SocketUnits = []string{"a.service", "a.socket"}
	line := func(unit string, plus bool) []ExecCommand {
		return []ExecCommand{{Property: "ExecStartPre", Path: SocketHelper, Argv: []string{SocketHelper, unit}, Privileged: plus}}
	}
	o := Observed{
		Unit:        Unit{ID: "a.service", ActiveState: "active", Settings: Settings{Exec: line("a.service", true), Bounding: 1<<41 - 1, RefusesBPF: true}},
		Scan:        &Scan{Tasks: []Task{{PID: 1, TID: 1}}},
		SocketUnits: []StartingSocket{{ID: "a.socket", Active: true, Exec: line("a.socket", false), DropIn: DropInState{Exists: true, Ours: true, Content: SocketDropIn(a)}}},
		Sockets:     []SocketsSeen{{Unit: "a.service", Attached: Yes, Rules: Yes}, {Unit: "a.socket", Attached: Yes, Rules: Yes}},
		MayBPF:      No,
		MayUnpin:    No, MayMoveOut: No,
	}
	startedSo(&o)
	return d, o
}

// startedSo has the unit's main process run under the settings that the unit has.
func startedSo(o *Observed) {
	s := o.Unit.Settings
	o.Main = MainProcess{Root: TriOf(s.actsAsRoot()), Filtered: TriOf(s.RefusesBPF), GroupsClosed: TriOf(s.ProtectControlGroups)}
}

func TestJudgeSockets(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(d *Desired, o *Observed)
		want   Code // where it is required; else unknown, and a note of a recording
		plan   bool // it is put back
	}{
		{"as declared", func(*Desired, *Observed) {}, "", false},
		{"not attached", func(_ *Desired, o *Observed) { o.Sockets[0] = SocketsSeen{Unit: "a.service", Attached: No} }, SocketsNotHeld, true},
		{"other rules, at the socket", func(_ *Desired, o *Observed) { o.Sockets[1].Rules = No }, SocketsNotHeld, true},
		{"could not be told", func(_ *Desired, o *Observed) { o.Sockets[0] = SocketsSeen{Unit: "a.service", Why: "no memory"} }, SocketsUnknown, false},
		{"a forgotten field", func(_ *Desired, o *Observed) { o.Sockets[0].Rules = CouldNotTell }, SocketsUnknown, false},
		{"not asked", func(_ *Desired, o *Observed) { o.Sockets = nil }, SocketsUnknown, false},
		{"sockets unread", func(_ *Desired, o *Observed) { o.SocketsProblem = "no answer" }, SocketsUnknown, false},
		{"the profile allows BPF", func(_ *Desired, o *Observed) { o.MayBPF = Yes }, SocketsOpen, false},
		{"whether it does is not known", func(_ *Desired, o *Observed) { o.MayBPF = CouldNotTell }, SocketsOpen, false},
		{"no capability to allow", func(_ *Desired, o *Observed) { o.MayBPF, o.Unit.Settings.Bounding = Yes, 1 }, "", false},
		{"a user without capabilities", func(_ *Desired, o *Observed) {
			o.MayBPF, o.Unit.Settings.User, o.Unit.Settings.NoNewPrivileges = Yes, "www-data", true
		}, "", false},
		{"a user with one", func(_ *Desired, o *Observed) {
			o.MayBPF, o.Unit.Settings.User, o.Unit.Settings.Ambient = Yes, "www-data", capBPF
		}, SocketsOpen, false},
		{"the start helper has not run yet", func(_ *Desired, o *Observed) {
			o.Unit.ActiveState, o.Unit.SubState = "activating", "start-pre"
			o.Sockets[0] = SocketsSeen{Unit: "a.service", Attached: No}
		}, TasksUnstable, false},
		{"conditions are asked, and a former start's control group stayed", func(_ *Desired, o *Observed) {
			o.Unit.ActiveState, o.Unit.SubState = "activating", "condition"
			o.Sockets[0].Rules = No
		}, TasksUnstable, false},
		{"another start began during the look", func(_ *Desired, o *Observed) {
			o.Scan.Before, o.Scan.After = "1", "2"
			o.Sockets[0] = SocketsSeen{Unit: "a.service", Attached: No}
		}, TasksUnstable, false},
		{"the start helper has run, and the program is being started", func(_ *Desired, o *Observed) {
			o.Unit.ActiveState, o.Unit.SubState = "activating", "start"
			o.Sockets[0] = SocketsSeen{Unit: "a.service", Attached: No}
		}, SocketsNotHeld, true},
		{"the socket of a start that has not run its helper yet", func(_ *Desired, o *Observed) {
			o.Unit.ActiveState, o.Unit.SubState = "activating", "start-pre"
			o.Sockets[1] = SocketsSeen{Unit: "a.socket", Attached: No}
		}, SocketsNotHeld, true},
		{"switched off", func(d *Desired, o *Observed) {
			d.Attachment.SocketOptions = &SocketOptions{Mode: SocketsOff}
			o.Sockets = nil
		}, "", true},
	} {
		for what, how := range map[string]struct {
			mode     SocketMode
			required Tri
			code     Code // in place of the one that is wanted
		}{
			"required":               {SocketsEnforce, Yes, ""},
			"not required":           {SocketsEnforce, No, SocketsUnknown}, // but for what passes
			"recorded":               {SocketsRecord, CouldNotTell, SocketsNote},
			"recorded, and required": {SocketsRecord, Yes, ""},
		} {
			t.Run(c.name+", "+what, func(t *testing.T) {
				d, o := held(how.required)
				d.Attachment.SocketOptions.Mode = how.mode
				o.SocketUnits[0].DropIn.Content = SocketDropIn(*d.Attachment)
				c.change(&d, &o)
				want := c.want
				if want != "" && how.code != "" && (want != TasksUnstable || how.code == SocketsNote) {
					want = how.code
				}
				var got []Code
				for _, r := range judgeSockets(d, o) {
					got = append(got, r.Code)
				}
				if want == "" && len(got) > 0 || want != "" && !slices.Equal(got, []Code{want}) {
					t.Errorf("%q, want %q", got, want)
				}
				var p Plan
				diffSockets(&p, d, o)
				if planned := len(p.Actions) > 0; planned != c.plan {
					t.Errorf("planned: %+v", p.Actions)
				}
			})
		}
	}
}

// Whoever is root, or can come to be, may open what is pinned for a list and rewrite it,
// whatever its profile and its capabilities, unless the unit may not call bpf(2).
func TestWhoCouldRewriteTheList(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *Settings)
		open   bool
	}{
		"root":                         {func(*Settings) {}, true},
		"root by name":                 {func(s *Settings) { s.User = "root" }, true},
		"root by number":               {func(s *Settings) { s.User = "0" }, true},
		"root without capabilities":    {func(s *Settings) { s.Bounding = 0 }, true},
		"root that may not call it":    {func(s *Settings) { s.RefusesBPF = true }, false},
		"a user":                       {func(s *Settings) { s.User = "www-data" }, false},
		"a dynamic user":               {func(s *Settings) { s.DynamicUser = true }, false},
		"a user that can become root":  {func(s *Settings) { s.User, s.Ambient = "www-data", capSetUID }, true},
		"a user that passes over mode": {func(s *Settings) { s.User, s.Ambient = "www-data", capDACOverride }, true},
		"a user with another one":      {func(s *Settings) { s.User, s.Ambient = "www-data", 1<<10 }, false},
		"one that may not call it":     {func(s *Settings) { s.User, s.Ambient, s.RefusesBPF = "www-data", capSetUID, true }, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, o := held(Yes)
			o.Unit.Settings.RefusesBPF = false
			c.change(&o.Unit.Settings)
			startedSo(&o)
			is := func(r Reason) bool { return r.Code == SocketsOpen && strings.Contains(r.Next, "SystemCallFilter=~bpf") }
			if got := judgeSockets(d, o); slices.ContainsFunc(got, is) != c.open || len(got) > 1 || len(got) == 1 != c.open {
				t.Errorf("%v", got)
			}
			d.Attachment.SocketOptions.Mode = SocketsRecord
			if got := judgeSockets(d, o); len(got) > 0 {
				t.Errorf("a recording, which refuses nothing: %v", got)
			}
			o.Scan = nil
			if d.Attachment.SocketOptions.Mode = SocketsEnforce; len(judgeSockets(d, o)) > 0 {
				t.Error("nothing of it runs")
			}
		})
	}
	if SocketsOpen.Bearing() != Unknown {
		t.Error("it is not unknown")
	}
}

// What was put into the unit's files since the start is for the next one: what runs goes on
// under the settings that it was started with.
func TestASettingThatCameAfterTheStart(t *testing.T) {
	at := time.Unix(1_700_000_000, 0)
	for name, c := range map[string]struct {
		change func(d *Desired, o *Observed) // since the start, or something else that it could be
		says   string                        // "" nothing is open
		next   string
	}{
		"nothing":                        {func(*Desired, *Observed) {}, "", ""},
		"a filter, and it had none":      {func(_ *Desired, o *Observed) { o.Main.Filtered = No }, "bpf(2)", "systemctl restart a.service, which has SystemCallFilter=~bpf"},
		"it is not known that it has":    {func(_ *Desired, o *Observed) { o.Main.Filtered = CouldNotTell }, "bpf(2)", "systemctl restart"},
		"a filter, and it had another":   {func(d *Desired, _ *Observed) { d.Record.Unfiltered = "i1" }, "bpf(2)", "systemctl restart"},
		"an earlier start had another":   {func(d *Desired, _ *Observed) { d.Record.Unfiltered = "i0" }, "", ""},
		"a file, and nobody knows what":  {func(_ *Desired, o *Observed) { o.Unit.FilesChanged = at.Add(time.Second) }, "bpf(2)", "systemctl restart"},
		"a file before the start":        {func(_ *Desired, o *Observed) { o.Unit.FilesChanged = at.Add(-time.Second) }, "", ""},
		"no filter":                      {func(_ *Desired, o *Observed) { o.Unit.Settings.RefusesBPF = false }, "bpf(2)", "SystemCallFilter=~bpf in a.service and a restart"},
		"control groups":                 {func(_ *Desired, o *Observed) { o.Main.GroupsClosed = No }, "leave its control group", "systemctl restart a.service, which has ProtectControlGroups=yes"},
		"control groups, perhaps":        {func(_ *Desired, o *Observed) { o.Main.GroupsClosed = CouldNotTell }, "leave its control group", "systemctl restart"},
		"a user, filtered":               {func(_ *Desired, o *Observed) { o.Unit.Settings.User = "www-data" }, "", ""},
		"a user":                         {func(_ *Desired, o *Observed) { o.Unit.Settings.User, o.Main.Filtered = "www-data", No }, "a.service was started as root", "systemctl restart"},
		"a user before the start":        {func(_ *Desired, o *Observed) { o.Unit.Settings.User, o.Main.Filtered, o.Main.Root = "www-data", No, No }, "", ""},
		"a user, and no main process":    {func(_ *Desired, o *Observed) { o.Unit.Settings.User, o.Main = "www-data", MainProcess{} }, "may run as root, which could not be told of its processes", ""},
		"a user, and control groups too": {func(_ *Desired, o *Observed) { o.Unit.Settings.User, o.Main.GroupsClosed = "www-data", No }, "a.service was started as root", "systemctl restart"},
		"a user, and an unread one": {func(_ *Desired, o *Observed) {
			o.Unit.Settings.User, o.Unit.MainPID, o.Main = "www-data", 7, MainProcess{}
		}, "may run as root, which could not be told of its main process", ""},
	} {
		t.Run(name, func(t *testing.T) {
			d, o := held(Yes)
			o.Unit.InvocationID, o.Unit.Left, o.Unit.FilesChanged = "i1", at, at.Add(-time.Hour)
			o.Unit.Settings.ProtectControlGroups, o.MayMoveOut = true, Yes
			startedSo(&o)
			c.change(&d, &o)
			got := judgeSockets(d, o)
			if len(got) != 0 && c.says == "" || c.says != "" && (len(got) == 0 || got[0].Code != SocketsOpen || !strings.Contains(got[0].Detail, c.says) || !strings.Contains(got[0].Next, c.next)) {
				t.Errorf("%+v", got)
			}
			o.Unit.InvocationID, o.Unit.Left = "i2", at.Add(time.Hour)
			startedSo(&o)
			if got := judgeSockets(d, o); o.Unit.Settings.RefusesBPF && len(got) > 0 {
				t.Errorf("after a restart: %+v", got)
			}
		})
	}
}

func TestMainProcessOf(t *testing.T) {
	for status, want := range map[string]MainProcess{
		"":                                    {},
		"Uid:\t0\t0\t0\t0\nSeccomp:\t0\n":     {Root: Yes, Filtered: No},
		"Uid:\t33\t33\t33\t33\nSeccomp:\t2\n": {Root: No, Filtered: Yes},
		"Uid:\t33\t33\t0\t33\n":               {Root: Yes},
		"Uid:\t33\t33\t33\t33\nCapPrm:\t0000000000000080\nSeccomp:\t1\n": {Root: Yes, Filtered: No},
		"Uid:\t33\t33\t33\t33\nCapPrm:\t0000000000000400\nSeccomp:\n":    {Root: No},
		"Uid:\t33\t33\t33\t33\nCapPrm:\tx\n":                             {Root: Yes},
	} {
		if got := MainProcessOf(status); got != want {
			t.Errorf("%q: %+v, want %+v", status, got, want)
		}
	}
}

// Root needs no bpf(2) and no capability to get off its list where its profile lets it
// write the right files: it removes what is pinned, or goes to another control group.
func TestWhoCouldLeaveTheListByFiles(t *testing.T) {
	const unpin, move = "take the right to write /sys/fs/bpf out", "ProtectControlGroups=yes in a.service"
	for name, c := range map[string]struct {
		change func(s *Settings, o *Observed)
		want   []string // what to do, of each reason
	}{
		"the profile allows neither":   {func(*Settings, *Observed) {}, nil},
		"it may remove the programs":   {func(_ *Settings, o *Observed) { o.MayUnpin = Yes }, []string{unpin}},
		"it may go elsewhere":          {func(_ *Settings, o *Observed) { o.MayMoveOut = Yes }, []string{move}},
		"it may do both":               {func(_ *Settings, o *Observed) { o.MayUnpin, o.MayMoveOut = Yes, Yes }, []string{unpin, move}},
		"neither could be told":        {func(_ *Settings, o *Observed) { o.MayUnpin, o.MayMoveOut = CouldNotTell, CouldNotTell }, []string{unpin, move}},
		"control groups are read-only": {func(s *Settings, o *Observed) { o.MayMoveOut, s.ProtectControlGroups = Yes, true }, nil},
		"only control groups are":      {func(s *Settings, o *Observed) { o.MayUnpin, s.ProtectControlGroups = Yes, true }, []string{unpin}},
		"without any capability":       {func(s *Settings, o *Observed) { o.MayMoveOut, s.Bounding = Yes, 0 }, []string{move}},
		"a user":                       {func(s *Settings, o *Observed) { o.MayUnpin, o.MayMoveOut, s.User = Yes, Yes, "www-data" }, nil},
		"a user of whom it is not known": {func(s *Settings, o *Observed) {
			o.MayUnpin, o.MayMoveOut, s.DynamicUser = CouldNotTell, CouldNotTell, true
		}, nil},
		"a user that can become root": {func(s *Settings, o *Observed) { o.MayMoveOut, s.User, s.Ambient = Yes, "www-data", capSetUID }, []string{move}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, required := range []Tri{Yes, No} {
				d, o := held(required)
				c.change(&o.Unit.Settings, &o)
				startedSo(&o)
				code := SocketsOpen
				if required == No {
					code = SocketsUnknown
				}
				got := judgeSockets(d, o)
				for i, r := range got {
					if i >= len(c.want) || r.Code != code || !strings.HasPrefix(r.Next, c.want[i]) {
						t.Errorf("Required=%v: %+v", required, r)
					}
				}
				if len(got) != len(c.want) {
					t.Errorf("Required=%v: %+v", required, got)
				}
				d.Attachment.SocketOptions.Mode = SocketsRecord
				if got := judgeSockets(d, o); len(got) > 0 {
					t.Errorf("a recording, which refuses nothing: %v", got)
				}
				if o.Scan, d.Attachment.SocketOptions.Mode = nil, SocketsEnforce; len(judgeSockets(d, o)) > 0 {
					t.Error("nothing of it runs")
				}
			}
		})
	}
}

// A set-uid program could open the list only where the bounding set, the profile and
// no_new_privs let it gain what it takes. That is advice, and no verdict.
func TestWhatASetUIDProgramCouldGain(t *testing.T) {
	for name, c := range map[string]struct {
		change         func(d *Desired, s *Settings)
		may            Tri
		judged, warned bool
	}{
		"a user":                         {func(*Desired, *Settings) {}, Yes, true, true},
		"the profile does not allow it":  {func(*Desired, *Settings) {}, No, false, false},
		"whether it does is not known":   {func(*Desired, *Settings) {}, CouldNotTell, false, true},
		"no new privileges":              {func(_ *Desired, s *Settings) { s.NoNewPrivileges = true }, Yes, false, false},
		"a bounding set without both":    {func(_ *Desired, s *Settings) { s.Bounding &^= changesBPF }, Yes, false, false},
		"a bounding set with one":        {func(_ *Desired, s *Settings) { s.Bounding &^= capSysAdmin }, Yes, true, true},
		"a dynamic user":                 {func(_ *Desired, s *Settings) { s.User, s.DynamicUser = "", true }, Yes, true, true},
		"it has one already, and worse":  {func(_ *Desired, s *Settings) { s.Ambient = capBPF }, Yes, false, false},
		"root has it":                    {func(_ *Desired, s *Settings) { s.User = "root" }, Yes, false, false},
		"only recorded, nothing to open": {func(d *Desired, _ *Settings) { d.Attachment.SocketOptions.Mode = SocketsRecord }, Yes, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			d, o := held(Yes)
			o.MayBPF, o.Unit.Settings.User = c.may, "www-data"
			c.change(&d, &o.Unit.Settings)
			is := func(r Reason) bool { return r.Code == SocketsGain && strings.Contains(r.Next, "NoNewPrivileges=yes") }
			if got := slices.ContainsFunc(judgeSockets(d, o), is); got != c.judged {
				t.Errorf("judged: %v", judgeSockets(d, o))
			}
			if _, warnings := socketObstacles(d, o); slices.ContainsFunc(warnings, is) != c.warned {
				t.Errorf("warnings: %v", warnings)
			}
		})
	}
	if SocketsGain.Bearing() != Confined {
		t.Error("it counts against the unit")
	}
}

// Our own + line is no way around the profile; whatever looks like it is.
func TestOnlyTheStartHelperMayBePrivileged(t *testing.T) {
	ours := ExecCommand{Property: "ExecStartPre", Path: SocketHelper, Argv: []string{SocketHelper, "-required=no", "a.service"}, Privileged: true, PID: 7}
	with := func(change func(*ExecCommand)) ExecCommand { c := ours; change(&c); return c }
	for _, c := range []struct {
		name string
		line ExecCommand
		ours bool
	}{
		{"the helper", ours, true},
		{"another program", with(func(c *ExecCommand) { c.Path = "/usr/bin/true" }), false},
		{"another line", with(func(c *ExecCommand) { c.Property = "ExecStartPost" }), false},
		{"as the program itself", with(func(c *ExecCommand) { c.Property = "ExecStart" }), false},
		{"under another name", with(func(c *ExecCommand) { c.Argv = []string{"sh", "a.service"} }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			u := Unit{ID: "a.service", ControlPID: 9, Settings: Settings{Exec: []ExecCommand{c.line}}}
			refusals, warnings := commandObstacles(u)
			if quiet := len(refusals)+len(warnings) == 0; quiet != c.ours {
				t.Errorf("refusals %v, warnings %v", refusals, warnings)
			}
			if free := freeCommand(u); free == c.ours && c.line.Property != "ExecStart" {
				t.Errorf("while another command is at work, it excuses a task: %v", free)
			}
			u.ControlPID = c.line.PID
			if c.ours && !freeCommand(u) {
				t.Error("while it runs itself it is no escape")
			}
		})
	}
}

// A look may find another command at work than the one that systemd told of, and the
// start helper takes longer than what lies between a fork and an exec.
func TestASlowStartHelperIsNoEscape(t *testing.T) {
	task := Task{PID: 9, TID: 9, Exe: SocketHelper, Label: label("unconfined")}
	for name, c := range map[string]struct {
		change func(o *Observed, t *Task)
		want   Code
	}{
		"its turn came after another command's": {func(*Observed, *Task) {}, TasksUnstable},
		"another program":                       {func(_ *Observed, t *Task) { t.Exe = "/usr/bin/x" }, TaskUnconfined},
		"as the program":                        {func(o *Observed, _ *Task) { o.Unit.MainPID = 9 }, TaskUnconfined},
		"when it is over":                       {func(o *Observed, _ *Task) { o.Unit.SubState = "start" }, TaskUnconfined},
		"in a start that began during the look": {func(o *Observed, _ *Task) {
			o.Unit.SubState, o.Scan = "running", &Scan{Before: "1", After: "2"}
		}, TasksUnstable},
		"no line of ours runs it":   {func(o *Observed, _ *Task) { o.Unit.Settings.Exec = nil }, TaskUnconfined},
		"a line without the + does": {func(o *Observed, _ *Task) { o.Unit.Settings.Exec[0].Privileged = false }, TaskUnconfined},
	} {
		t.Run(name, func(t *testing.T) {
			d, o := held(Yes)
			o.Unit.ActiveState, o.Unit.SubState, o.Unit.ControlPID = "activating", "start-pre", 8
			task := task
			c.change(&o, &task)
			if got, _ := judgeTask(d, o, task); got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

func TestSocketObstacles(t *testing.T) {
	d, o := held(Yes)
	_, warnings := socketObstacles(d, o)
	if len(warnings) != 1 || warnings[0].Code != SocketsForeignCalls || !strings.Contains(warnings[0].Next, "SystemCallArchitectures=native") {
		t.Errorf("%+v", warnings)
	}
	o.Unit.Settings.User = "www-data" // it would imply NoNewPrivileges=
	if _, warnings := socketObstacles(d, o); len(warnings) != 1 || warnings[0].Next != "" {
		t.Errorf("%+v", warnings)
	}
	o.Unit.Settings.Architectures = []string{"native"}
	if refusals, warnings := socketObstacles(d, o); len(refusals)+len(warnings) != 0 {
		t.Errorf("%+v %+v", refusals, warnings)
	}
	o.SocketUnits[0].DropIn = DropInState{Exists: true, Content: "[Socket]\n"}
	if refusals, _ := socketObstacles(d, o); len(refusals) != 1 || refusals[0].Code != DropInForeign {
		t.Errorf("%+v", refusals)
	}
}

func TestRemovalTakesTheStartLineAlong(t *testing.T) {
	d, _ := held(Yes)
	text := DropIn(*d.Attachment, "a")
	if !Starts(text) || Starts(TextWithoutAaunit(text)) {
		t.Errorf("%q\n%q", text, TextWithoutAaunit(text))
	}
	file := DropInPath("a.socket", false)
	left := LeftDropIn{Path: file, Exists: true, Sum: "x", Records: []Record{{Profile: "a", DropIns: Sums{{Path: file, Sum: "x"}}}}}
	mine := "# mine\n" + strings.ReplaceAll(text, "ExecStartPre=+", " ExecStartPre = -+")
	if !Starts(mine) || Starts(TextWithoutStart(mine)) || !strings.Contains(TextWithoutStart(mine), "# mine\n") || len(mine)-len(TextWithoutStart(mine)) > 80 {
		t.Errorf("%q\n%q", mine, TextWithoutStart(mine))
	}
	if other := "[Service]\nExecStartPre=+/bin/true\n"; TextWithoutStart(other) != other {
		t.Errorf("%q", TextWithoutStart(other))
	}
	if fate, _, why := left.Fate(); fate != FateTaken || why == "" {
		t.Errorf("the drop-in of a .socket unit: %v %q", fate, why)
	}
}

// What the start helper reads at the first boot is prepared; without the helper, or
// with .socket units that are not known, nothing is.
func TestAnImageWithSocketOptions(t *testing.T) {
	kinds := func(p Plan) (out []string) {
		for _, a := range p.Actions {
			out = append(out, string(a.Kind)+" "+a.Target)
		}
		return out
	}
	for _, required := range []Tri{Yes, CouldNotTell, No} {
		d, o := held(required)
		o.Unit.LoadState, o.Unit.Settings.DefaultDependencies = "loaded", true
		o.Policy = Policy{Candidates: map[string][]Profile{"a": {{Name: "a", File: "/etc/apparmor.d/a", Line: 1}}}, Compiled: []Compiled{{File: "/etc/apparmor.d/a", Profiles: []Profile{{Name: "a"}}}}}
		o.DropIn, o.SocketUnits = DropInState{}, []StartingSocket{{ID: "a.socket"}}
		p := DiffImage(d, o)
		want := []string{"hold-socket-options a.service", "write-drop-in /etc/systemd/system/a.socket.d/90-aaunit.conf", "write-drop-in /etc/systemd/system/a.service.d/90-aaunit.conf"}
		if len(p.Refusals) != 0 || !slices.Equal(kinds(p), want) {
			t.Errorf("Required=%v: %v %q", required, p.Refusals, kinds(p))
		}
		o.Rules = ImageRules{Exist: true, Same: true}
		o.DropIn = DropInState{Exists: true, Ours: true, Content: d.DropInText(o.Unit)}
		o.SocketUnits[0].DropIn = DropInState{Exists: true, Ours: true, Content: SocketDropIn(*d.Attachment)}
		if p := DiffImage(d, o); len(p.Refusals)+len(p.Actions) != 0 {
			t.Errorf("Required=%v, in place: %v %q", required, p.Refusals, kinds(p))
		}
		off := *d.Attachment
		off.SocketOptions = nil
		if p := DiffImage(Desired{Unit: d.Unit, Profile: d.Profile, Attachment: &off}, o); !slices.Equal(kinds(p), []string{"remove-drop-in /etc/systemd/system/a.socket.d/90-aaunit.conf",
			"release-socket-options a.service", "write-drop-in /etc/systemd/system/a.service.d/90-aaunit.conf"}) {
			t.Errorf("Required=%v, no section any more: %v %q", required, p.Refusals, kinds(p))
		}
		o.Rules.HelperProblem = "there is no helper"
		if p := DiffImage(d, o); !slices.ContainsFunc(p.Refusals, func(r Reason) bool { return r.Code == SocketsUnknown && strings.Contains(r.Next, "install") }) {
			t.Errorf("Required=%v, no helper: %v", required, p.Refusals)
		}
		o.Rules.HelperProblem, o.SocketsProblem = "", "a file is broken"
		if refused := len(DiffImage(d, o).Refusals) > 0; refused != (required != No) {
			t.Errorf("Required=%v, .socket units that are not known: refused is %v", required, refused)
		}
		if text := DropIn(*d.Attachment, "a"); !WroteDropIn(text) || WroteDropIn(text+"ExecStartPre=+/bin/sh\n") {
			t.Errorf("Required=%v: what aaunit wrote is not known again\n%s", required, text)
		}
		if text := SocketDropIn(*d.Attachment); !WroteSocketDropIn(text) || WroteSocketDropIn(text+"ExecStartPre=+/bin/sh\n") {
			t.Errorf("Required=%v: what aaunit wrote is not known again\n%s", required, text)
		}
	}
}
