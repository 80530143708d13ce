package attach

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	unitName = "myagent.service"
	sumMain  = "sha256:aaaaaaaaaaaaaaaa"
	sumChild = "sha256:bbbbbbbbbbbbbbbb"
)

// healthy is a unit that is attached, runs confined, and gives no cause for any
// remark. Each test below breaks one thing of it.
func healthy() (Desired, Observed) {
	a := NewAttachment()
	a.Source = "/etc/aaunit/attachments.d/myagent.conf"
	a.Units, a.Profile = []string{unitName}, "myagent"
	d := Desired{Unit: unitName, Attachment: &a, Profile: "myagent"}
	file := d.DropInPath()
	d.Record = Record{
		Unit: unitName, Profile: "myagent", RestartUnit: true,
		DropIns:  Sums{{Path: file, Sum: "…"}},
		Accepted: map[string]string{"myagent": sumMain, "myagent//helper": sumChild},
	}
	prof := Profile{Name: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent", Line: 3, Attachment: "/usr/local/bin/myagent"}
	child := Profile{Name: "myagent//helper", File: prof.File, Line: 9}
	sums := map[string]string{"myagent": sumMain, "myagent//helper": sumChild}
	o := Observed{
		Host: Host{Enabled: Yes, GlobalMode: ModeEnforce, BootService: Yes},
		Unit: Unit{
			ID: unitName, Names: []string{unitName}, LoadState: "loaded", ActiveState: "active", SubState: "running",
			UnitFileState: "enabled", FragmentPath: "/usr/lib/systemd/system/" + unitName, DropIns: []string{file},
			InvocationID: "0123456789abcdef0123456789abcdef", Type: "simple", MainPID: 100,
			Settings: Settings{
				Profile: "myagent", PrivateTmp: PrivateTmpYes, KnowsDisconnected: true, AssertAppArmor: true, DefaultDependencies: true,
				Exec: []ExecCommand{{Property: "ExecStart", Path: "/usr/local/bin/myagent", Argv: []string{"/usr/local/bin/myagent", "--serve"}}},
				Assignments: []Assignment{
					{"AssertSecurity", "apparmor", file, 5},
					{"AppArmorProfile", "myagent", file, 9},
					{"PrivateTmp", "yes", file, 10},
				},
			},
		},
		Policy: Policy{
			Candidates: map[string][]Profile{"myagent": {prof}},
			Compiled:   []Compiled{{File: prof.File, Profiles: []Profile{prof, child}, Checksums: sums}},
			Live: map[string]LiveProfile{
				"myagent":         {"myagent", ModeEnforce, sumMain},
				"myagent//helper": {"myagent//helper", ModeEnforce, sumChild},
			},
		},
		DropIn: DropInState{Exists: true, Ours: true},
	}
	o.DropIn.Content = d.DropInText(o.Unit)
	o.Scan = &Scan{
		Before: o.Unit.InvocationID, After: o.Unit.InvocationID, Stable: true, At: time.Unix(1700000000, 0),
		Tasks: []Task{
			task(100, "myagent (enforce)"),
			{PID: 100, TID: 101, Comm: "worker", Exe: "/usr/local/bin/myagent", Label: label("myagent (enforce)")},
			task(102, "myagent//helper (enforce)"),
		},
		Tmp: map[int]TmpView{
			100: {Tmp: "8:1 /tmp/systemd-private-x/tmp", VarTmp: "8:1 /var/tmp/systemd-private-x/tmp"},
			102: {Tmp: "8:1 /tmp/systemd-private-x/tmp", VarTmp: "8:1 /var/tmp/systemd-private-x/tmp"},
		},
		HostTmp: TmpView{Tmp: "8:1 /tmp", VarTmp: "8:1 /var/tmp"},
	}
	return d, o
}

// label reads a label that the test knows to be one.
func label(s string) Label {
	l, err := ParseLabel(s)
	if err != nil {
		panic(err)
	}
	return l
}

func task(pid int, lab string) Task {
	return Task{PID: pid, TID: pid, Comm: "myagent", Exe: "/usr/local/bin/myagent", Label: label(lab)}
}

// later adds a drop-in that systemd reads after ours.
func later(o *Observed, file string, lines ...string) {
	o.Unit.DropIns = append(o.Unit.DropIns, file)
	for i, l := range lines {
		key, value, _ := strings.Cut(l, "=")
		o.Unit.Settings.Assignments = append(o.Unit.Settings.Assignments, Assignment{key, value, file, i + 2})
	}
}

// earlier adds a file that systemd reads before ours.
func earlier(o *Observed, file string, lines ...string) {
	ours := o.Unit.Settings.Assignments
	o.Unit.Settings.Assignments = nil
	later(o, file, lines...)
	o.Unit.Settings.Assignments = append(o.Unit.Settings.Assignments, ours...)
}

func codes(rs []Reason) []Code {
	var out []Code
	for _, r := range rs {
		out = append(out, r.Code)
	}
	return out
}

func list(rs []Reason) string {
	var b strings.Builder
	for _, r := range rs {
		fmt.Fprintf(&b, "\n\t%s: %s (at %q, next %q)", r.Code, r.Detail, r.Where, r.Next)
	}
	return b.String()
}

// wantCodes compares the codes of reasons, in any order.
func wantCodes(t *testing.T, what string, got []Reason, want ...Code) {
	t.Helper()
	g, w := codes(got), slices.Clone(want)
	slices.Sort(g)
	slices.Sort(w)
	if !slices.Equal(g, w) {
		t.Errorf("%s: got %v, want %v%s", what, g, w, list(got))
	}
}

func wantNil(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
