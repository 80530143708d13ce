package attach

import (
	"slices"
	"testing"
)

func TestParseLabel(t *testing.T) {
	for _, tt := range []struct {
		in       string
		profiles []string
		mode     Mode
	}{
		{"unconfined", []string{"unconfined"}, ModeUnconfined},
		{"unconfined\n", []string{"unconfined"}, ModeUnconfined},
		{"myagent (enforce)\n", []string{"myagent"}, ModeEnforce},
		{"myagent (complain)", []string{"myagent"}, ModeComplain},
		{"myagent (kill)", []string{"myagent"}, ModeKill},
		{"myagent (user)", []string{"myagent"}, ModeUser},
		{"myagent (unconfined)", []string{"myagent"}, ModeUnconfined},
		{"--- (-)", []string{"---"}, ModeNone},
		{"my agent (enforce)", []string{"my agent"}, ModeEnforce},
		{"agent (v2) (enforce)", []string{"agent (v2)"}, ModeEnforce},
		{"liar (enforce) (complain)", []string{"liar (enforce)"}, ModeComplain},
		{"/usr/bin/man//filter (enforce)", []string{"/usr/bin/man//filter"}, ModeEnforce},
		{"b//&a (mixed)", []string{"a", "b"}, ModeMixed},
		{"a//&a (enforce)", []string{"a"}, ModeEnforce},
		{"myagent//&unconfined (enforce)", []string{"myagent", "unconfined"}, ModeEnforce},
		{"/a/dir///&unconfined (enforce)", []string{"/a/dir/", "unconfined"}, ModeEnforce},
		{":ns:myagent (enforce)", []string{":ns://myagent"}, ModeEnforce},
		{":ns://myagent (enforce)", []string{":ns://myagent"}, ModeEnforce},
		{":lxd:unconfined", []string{":lxd://unconfined"}, ModeUnconfined},
		{"unconfined (enforce)", []string{"unconfined"}, ModeUnconfined},
	} {
		l, err := ParseLabel(tt.in)
		if err != nil || !slices.Equal(l.Profiles, tt.profiles) || l.Mode != tt.mode {
			t.Errorf("ParseLabel(%q) = %q %q, %v; want %q %q", tt.in, l.Profiles, l.Mode, err, tt.profiles, tt.mode)
		}
	}
	for _, in := range []string{
		"", "\n", " (enforce)", "myagent", "myagent (enforce", "myagent (sleepy)", "myagent ()", "a\nb (enforce)", "a\x00b (enforce)",
		"a//& (enforce)", "//&a (enforce)", ": (enforce)", ":ns (enforce)", ":ns: (enforce)", "::a (enforce)", ":ns:&a (enforce)",
		"myagent (enforce) trailing",
	} {
		if l, err := ParseLabel(in); err == nil {
			t.Errorf("ParseLabel(%q) = %+v; want an error, for it is no label", in, l)
		}
	}
}

func TestFits(t *testing.T) {
	allowed := []string{"px target", "/usr/bin/helper"}
	for _, tt := range []struct {
		label string
		want  Fit
	}{
		{"myagent (enforce)", FitExact},
		{"myagent//hat (enforce)", FitExact},
		{"myagent//a//b (enforce)", FitExact},
		{"px target (enforce)", FitExact},
		{"px target//child (enforce)", FitExact},
		{"myagent//&/usr/bin/helper (enforce)", FitExact},
		{"myagent//&unconfined (enforce)", FitStacked},
		{"myagent//hat//&unconfined (enforce)", FitStacked},
		{"unconfined", FitOther},
		{"myagent2 (enforce)", FitOther},
		{"myagent/x (enforce)", FitOther},
		{"my (enforce)", FitOther},
		{"px (enforce)", FitOther},
		{"other//myagent (enforce)", FitOther},
		{"myagent//&other (enforce)", FitOther},
		{"myagent//&other//&unconfined (enforce)", FitOther},
		{":ns:myagent (enforce)", FitOther},
		{"myagent//&:ns:other (enforce)", FitOther},
		// The kernel leaves the namespace off after its first member: myagent is
		// in ns here.
		{":ns:other//&myagent (enforce)", FitOther},
		{"myagent//&:ns:unconfined (enforce)", FitOther},
	} {
		if got := label(tt.label).Fits("myagent", allowed); got != tt.want {
			t.Errorf("%q fits %d; want %d", tt.label, got, tt.want)
		}
	}
	for _, l := range []Label{{}, label("unconfined"), label("a (enforce)")} {
		if got := l.Fits("", nil); got != FitOther {
			t.Errorf("%+v fits no profile at all: %d", l, got)
		}
	}
	if got := label("unconfined").Fits(Unconfined, []string{Unconfined}); got != FitOther {
		t.Errorf("unconfined fits a profile that is called so: %d", got)
	}
}

func TestUnconfinedLabels(t *testing.T) {
	for in, want := range map[string]bool{
		"unconfined": true, ":ns:unconfined": true, "unconfined//&:ns:unconfined": true,
		"a (unconfined)": false, "a//&unconfined (enforce)": false, "unconfined2 (enforce)": false,
	} {
		if got := label(in).IsUnconfined(); got != want {
			t.Errorf("IsUnconfined(%q) = %v, want %v", in, got, want)
		}
	}
	if (Label{}).IsUnconfined() {
		t.Error("a label that was never read is called unconfined")
	}
}

func TestModesThatConfine(t *testing.T) {
	for _, m := range []Mode{ModeComplain, ModeUnconfined, ModeUser, ModeMixed, ModeNone, "", "ENFORCE"} {
		if m.Confines() {
			t.Errorf("mode %q is said to confine", m)
		}
	}
	if !ModeEnforce.Confines() || !ModeKill.Confines() {
		t.Error("enforce and kill must confine")
	}
}
