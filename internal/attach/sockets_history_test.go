package attach

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

var socketEpoch = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

func minute(n int) time.Time { return socketEpoch.Add(time.Duration(n) * time.Minute) }

func program(build string) EvidenceProgram {
	return EvidenceProgram{Path: "/usr/bin/agent", SHA256: strings.Repeat(build, 64)}
}

// used is a kind of call that was first and last made at these minutes.
func used(option string, allowed, first, last int) SocketUse {
	return SocketUse{Call: SetSockOpt, Option: option, Socket: "TCP over IPv4", Allowed: uint64(allowed), First: SocketUser{Time: minute(first)}, Last: SocketUser{Time: minute(last)}}
}

func startOf(build, boot, invocation string, at int) SocketRun {
	return SocketRun{Program: program(build), Kernel: "6.1", Boot: boot, Invocation: invocation, Started: minute(at), At: minute(at + 1)}
}

func usesOf(b SocketBuild) string {
	var out []string
	for _, u := range b.Uses {
		out = append(out, fmt.Sprintf("%s=%d", u.Option, u.Allowed))
	}
	return strings.Join(out, " ")
}

func table(uses ...SocketUse) []SocketRecording {
	return []SocketRecording{{Unit: "a.service", Seen: uses}}
}

func TestHistoryDividesByExecutable(t *testing.T) {
	h := SocketHistory{Unit: "a.service"}
	h = h.Merge(table(used("x", 3, 1, 2)), startOf("a", "b1", "i1", 0))
	// The same table again counts nothing twice.
	h = h.Merge(table(used("x", 3, 1, 2)), startOf("a", "b1", "i1", 0))
	if len(h.Builds) != 1 || usesOf(h.Builds[0]) != "x=3" || h.Builds[0].Starts != 1 {
		t.Fatalf("%+v", h.Builds)
	}
	kept := h.Builds[0].Uses[0]
	// Another build: x was used by the old one after the last look, y only by it, and
	// z only by the new one.
	h2 := h.Merge(table(used("x", 5, 1, 12), used("y", 1, 4, 4), used("z", 2, 11, 12)), startOf("b", "b1", "i2", 10))
	if got := usesOf(h2.Builds[0]) + "; " + usesOf(h2.Builds[1]); got != "x=3 y=1; x=2 z=2" {
		t.Errorf("builds: %s", got)
	}
	if first := h2.Builds[1].Uses[0].First.Time; !first.Equal(minute(12)) {
		t.Errorf("the new build used x first at %v, which nobody saw", first)
	}
	if h.Builds[0].Uses[0] != kept || len(h.Builds[0].Uses) != 1 {
		t.Error("a merge changes what others hold")
	}
	// The old one again, after a reboot: its table is empty at first.
	h3 := h2.Merge(table(used("x", 1, 21, 21), used("z", 9, 18, 19)), startOf("a", "b2", "i3", 20))
	if got := usesOf(h3.Builds[0]) + "; " + usesOf(h3.Builds[1]); got != "x=2 z=2; x=4 y=1" || h3.Builds[1].Starts != 2 {
		t.Errorf("builds after the reboot: %s", got)
	}
	// Each table counts for itself.
	both := h3.Merge(append(table(used("x", 1, 21, 21), used("z", 9, 18, 19)), SocketRecording{Unit: "a.socket", Seen: []SocketUse{used("x", 2, 22, 22)}}), startOf("a", "b2", "i3", 20))
	if got := usesOf(both.Builds[1]); got != "x=6 y=1" {
		t.Errorf("with the table of a .socket unit: %s", got)
	}
	// What was forgotten is counted anew.
	h4 := h3.Merge(table(used("x", 1, 25, 25)), startOf("a", "b2", "i3", 20))
	h4 = h4.Merge(table(used("x", 0, 0, 0), used("y", 1, 26, 26)), startOf("a", "b2", "i3", 20))
	if got := usesOf(h4.Builds[1]); got != "x=4 y=2" {
		t.Errorf("after the table was emptied: %s", got)
	}
}

func TestHistoryIsBounded(t *testing.T) {
	h := SocketHistory{Unit: "a.service"}
	var many []SocketUse
	for i := range maxCounted + 10 {
		many = append(many, used(fmt.Sprint("6:", i), 1, 1, 1))
	}
	h = h.Merge(table(many...), startOf("a", "b", "i", 0))
	if len(h.Builds[0].Uses) != MaxKeptUses || h.Builds[0].LeftOut != maxCounted+10-MaxKeptUses || len(h.Counted) != maxCounted {
		t.Errorf("%d uses, %d left out, %d counted", len(h.Builds[0].Uses), h.Builds[0].LeftOut, len(h.Counted))
	}
	for i := range 2 * MaxSocketBuilds {
		run := startOf("a", "b", fmt.Sprint(i), 10*i)
		run.Program.SHA256 = fmt.Sprint(i)
		h = h.Merge(table(), run)
	}
	if len(h.Builds) != MaxSocketBuilds || h.Builds[MaxSocketBuilds-1].Program.SHA256 != fmt.Sprint(2*MaxSocketBuilds-1) {
		t.Errorf("%d builds are kept", len(h.Builds))
	}
}

func TestStale(t *testing.T) {
	list := SocketOptions{Mode: SocketsEnforce, Allow: []AllowedOption{{Option: "x", Reason: "r"}}}
	h := SocketHistory{Unit: "a.service"}
	if stale, why := h.Stale(); stale != CouldNotTell || why == "" {
		t.Errorf("nothing was seen: %v %q", stale, why)
	}
	h = h.Merge(table(used("x", 1, 1, 1)), startOf("a", "b", "i1", 0)).Found(list, program("a"), minute(1), false)
	if stale, _ := h.Stale(); stale != No {
		t.Error("the list was found under what runs")
	}
	h = h.Merge(table(used("x", 1, 1, 1), used("y", 1, 11, 11)), startOf("b", "b", "i2", 10)).Found(list, program("b"), minute(11), false)
	stale, why := h.Stale()
	if stale != Yes || !strings.Contains(why, "aaaaaaaaaaaa…") || !strings.Contains(why, "bbbbbbbbbbbb…") {
		t.Errorf("another build: %v %q", stale, why)
	}
	d, ok := h.Difference()
	if !ok || len(d.More) != 1 || d.More[0].Option != "y" || len(d.Less) != 1 || d.Less[0].Option != "x" {
		t.Errorf("difference: %+v", d)
	}
	s := SocketStatus{Unit: "a.service", Declared: &list, History: h}.WithStale()
	if r := s.Reasons(); len(r) != 1 || r[0].Code != SocketsStale || r[0].Next != "aaunitctl sockopts diff a.service" {
		t.Errorf("reasons: %+v", r)
	}
	// Somebody confirms it, or it is changed in its file.
	if stale, _ := h.Review(list, program("b"), "root", minute(20)).Stale(); stale != No {
		t.Error("it was confirmed")
	}
	list.Allow = append(list.Allow, AllowedOption{Option: "y", Reason: "r"})
	if stale, _ := h.Found(list, program("b"), minute(20), false).Stale(); stale != No {
		t.Error("the file says something new")
	}
	// What cannot be read is neither.
	run := startOf("c", "b", "i3", 30)
	run.Program = EvidenceProgram{Path: "/usr/bin/agent", Problem: "too large"}
	if stale, why := h.Merge(table(), run).Stale(); stale != CouldNotTell || !strings.Contains(why, "too large") {
		t.Errorf("an executable that could not be read: %v %q", stale, why)
	}
}

// A list that was made while nothing ran is of what is seen to run first.
func TestListBeforeTheFirstStart(t *testing.T) {
	list := SocketOptions{Mode: SocketsEnforce, Allow: []AllowedOption{{Option: "x", Reason: "r"}}}
	h := SocketHistory{Unit: "a.service"}.Review(list, EvidenceProgram{}, "uid 0", minute(0))
	h = h.Merge(table(), startOf("a", "b", "i", 1)).Found(list, program("a"), minute(2), false)
	if stale, _ := h.Stale(); stale != No || h.Reviewed.By != "uid 0" {
		t.Errorf("%v %+v", stale, h.Reviewed)
	}
}

// Where it was on record what a list was made for, and is no more, what runs is not taken
// for it.
func TestListOfWhichTheHistoryIsLost(t *testing.T) {
	list := SocketOptions{Mode: SocketsEnforce, Allow: []AllowedOption{{Option: "x", Reason: "r"}}}
	h := SocketHistory{Unit: "a.service"}.Merge(table(), startOf("b", "b", "i1", 0)).Found(list, program("b"), minute(1), true)
	for i, invocation := range []string{"i1", "i2"} {
		if stale, why := h.Stale(); stale != CouldNotTell || !strings.Contains(why, "not on record any more") {
			t.Errorf("%v %q", stale, why)
		}
		h = h.Merge(table(), startOf("b", "b", invocation, 2+i)).Found(list, program("b"), minute(3+i), true)
	}
	if stale, _ := h.Review(list, program("b"), "root", minute(9)).Stale(); stale != No {
		t.Error("it was confirmed")
	}
	list.Allow = append(list.Allow, AllowedOption{Option: "y", Reason: "r"})
	if stale, _ := h.Found(list, program("b"), minute(9), true).Stale(); stale != No {
		t.Error("the file says something new")
	}
}

// A start that began before the recording is known for it, until one was seen whole.
func TestStartUnseen(t *testing.T) {
	for _, c := range []struct {
		what         string
		starts       int
		since, began time.Time
		want         bool
	}{
		{"recorded from the start on", 1, minute(1), minute(2), false},
		{"recorded later", 1, minute(2), minute(1), true},
		{"recorded later, and started again since", 2, minute(2), minute(3), false},
		{"starts before were seen", 3, minute(5), minute(4), false},
		{"no main process", 1, minute(2), time.Time{}, false},
		{"not known since when", 1, time.Time{}, minute(1), false},
	} {
		s := SocketStatus{Unit: "a.service", History: SocketHistory{Builds: []SocketBuild{{Starts: 9}, {Starts: c.starts}}},
			Recorded: []SocketRecording{{Unit: "a.service", Since: c.since}, {Unit: "a.socket", Since: minute(9)}}}
		if got := s.WithStart(SocketRun{Began: c.began}).StartUnseen; got != c.want {
			t.Errorf("%s: %v", c.what, got)
		}
	}
}

func TestRefusedInWords(t *testing.T) {
	s := SocketStatus{Unit: "a.service", Declared: &SocketOptions{Mode: SocketsEnforce}, Recorded: []SocketRecording{{Unit: "a.service", LostRefused: 1, Seen: []SocketUse{
		{Call: SetSockOpt, Option: "SOL_TCP:TCP_NODELAY", Socket: "TCP over IPv4", Refused: 40, LastRefused: SocketUser{Time: minute(1), Comm: "agent"}, Hurts: "small writes wait"},
		{Call: SetSockOpt, Option: "SOL_TCP:TCP_NODELAY", Socket: "TCP over IPv6", Refused: 1, LastRefused: SocketUser{Time: minute(2), Comm: "agent"}, Hurts: "small writes wait"},
		{Call: GetSockOpt, Option: "6:99", Socket: "TCP over IPv4", Refused: 1, LastRefused: SocketUser{Time: minute(3), Comm: "a\x1b[31m b"}},
		{Call: SetSockOpt, Option: "SOL_SOCKET:SO_SNDBUF", BySystemd: true, Allowed: 7},
	}}}}
	r := s.Reasons()
	if len(r) != 3 {
		t.Fatalf("%+v", r)
	}
	if r[1].Detail != "TCP_NODELAY was refused 41 times: small writes wait" || r[1].Next != "aaunitctl sockopts approve a.service SOL_TCP:TCP_NODELAY --reason WHY" {
		t.Errorf("%+v", r[1])
	}
	if strings.Contains(r[0].Detail, "\x1b") || !strings.HasPrefix(r[0].Detail, "6:99 was refused once") || !strings.Contains(r[0].Next, "approve --get a.service 6:99") {
		t.Errorf("%+v", r[0])
	}
	if !strings.Contains(r[2].Detail, "found no place") {
		t.Errorf("%+v", r[2])
	}
	e := Explain(CaseReport{Host: Host{Enabled: Yes, GlobalMode: ModeEnforce}}, Case{Unit: "a.service", Status: &Status{Unit: "a.service", Verdict: &Verdict{Answer: Confined}}, Sockets: r})
	if len(e.Reasons) != 3 || e.Reasons[1].Code != SocketRefused || e.Next.Line != "aaunitctl sockopts a.service" || e.Answer != Confined {
		t.Errorf("explained: %+v, next %+v", e.Reasons, e.Next)
	}
}

func TestChangeOfSockets(t *testing.T) {
	names := func(call SocketCall, name string) (string, error) {
		if name == "nonsense" {
			return "", fmt.Errorf("there is no such name")
		}
		return "SOL:" + name, nil
	}
	a := NewAttachment()
	change := func(c SocketChange) (changed bool, problem string) {
		if c.Call == "" {
			c.Call = SetSockOpt
		}
		b, changed, err := a.Change(c, names)
		if err != nil {
			return changed, err.Error()
		}
		a = b
		return changed, ""
	}
	for _, c := range []struct {
		change  SocketChange
		changed bool
		problem string
		want    string
	}{
		{SocketChange{Mode: SocketsEnforce}, true, "", "mode enforce, 0 to set"},
		{SocketChange{Mode: SocketsEnforce}, false, "", "mode enforce, 0 to set"},
		{SocketChange{Approve: []string{"x", "y"}, Reason: "why"}, true, "", "mode enforce, 2 to set"},
		{SocketChange{Approve: []string{"x"}, Reason: "why"}, false, "", "mode enforce, 2 to set"},
		{SocketChange{Approve: []string{"x"}, Reason: "another"}, true, "", "mode enforce, 2 to set"},
		{SocketChange{Approve: []string{"x"}}, false, "a reason is missing", ""},
		{SocketChange{Approve: []string{"nonsense"}, Reason: "why"}, false, "no such name", ""},
		{SocketChange{Revoke: []string{"z"}}, false, "SOL:z is not on the list", ""},
		{SocketChange{Revoke: []string{"y"}}, true, "", "mode enforce, 1 to set"},
		{SocketChange{Approve: []string{"g"}, Reason: "why", Call: GetSockOpt}, true, "", "mode enforce, 1 to set and 1 to read"},
		{SocketChange{Revoke: []string{"g"}, Call: GetSockOpt}, false, "could be read again", ""},
		{SocketChange{Mode: "on"}, false, "no mode", ""},
		{SocketChange{}, false, "neither a mode nor an option", ""},
		{SocketChange{Approve: []string{"x"}, Reason: "why", Call: "connect"}, false, "no call", ""},
	} {
		changed, problem := change(c.change)
		if changed != c.changed || c.problem == "" && problem != "" || !strings.Contains(problem, c.problem) {
			t.Errorf("%+v: changed %v, %q", c.change, changed, problem)
		}
		if c.want != "" && a.SocketOptions.Summary() != c.want {
			t.Errorf("%+v: %s", c.change, a.SocketOptions.Summary())
		}
	}
	if got := a.SocketOptions.Section(); got != "[SocketOptions]\nMode=enforce\nAllow=SOL:x another\nAllowGet=SOL:g why\n" {
		t.Errorf("section: %s", got)
	}
}
