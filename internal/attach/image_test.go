package attach

import (
	"slices"
	"strings"
	"testing"
)

func TestWroteDropInKnowsItsOwnToTheLetter(t *testing.T) {
	for _, tmp := range []PrivateTmp{PrivateTmpNo, PrivateTmpYes, PrivateTmpDisconnected} {
		for _, profile := range []string{"myagent", "my agent", "agent-%i", "a%%b", "/usr/bin/x"} {
			a := NewAttachment()
			a.Source, a.PrivateTmp = "/etc/aaunit/attachments.d/a.conf", tmp
			text := DropIn(a, profile)
			if !WroteDropIn(text) {
				t.Errorf("not known:\n%s", text)
			}
			for name, other := range map[string]string{
				"a line more":        text + "Nice=5\n",
				"a line less":        strings.Replace(text, "AssertSecurity=apparmor\n", "", 1),
				"a -":                strings.Replace(text, "AppArmorProfile=", "AppArmorProfile=-", 1),
				"no profile":         strings.Replace(text, "AppArmorProfile="+profile, "AppArmorProfile=", 1),
				"the profile twice":  text + "AppArmorProfile=other\n",
				"another first line": "#" + text,
				"cut off":            text[:len(text)-1],
			} {
				if WroteDropIn(other) {
					t.Errorf("%s counts as aaunit's:\n%s", name, other)
				}
			}
		}
	}
	if WroteDropIn("") {
		t.Error("nothing counts as aaunit's")
	}
}

func TestDiffImageAsksNoKernel(t *testing.T) {
	a := NewAttachment()
	a.Source, a.Units, a.Profile = "/etc/aaunit/attachments.d/a.conf", []string{"a.service"}, "a"
	d := Desired{Unit: "a.service", Profile: "a", Attachment: &a}
	o := Observed{
		Unit: Unit{ID: "a.service", LoadState: "loaded", Settings: Settings{DefaultDependencies: true}},
		Policy: Policy{Candidates: map[string][]Profile{"a": {{Name: "a", File: "/etc/apparmor.d/a", Line: 1}}},
			Compiled: []Compiled{{File: "/etc/apparmor.d/a", Profiles: []Profile{{Name: "a"}}}}},
	}
	if p := DiffImage(d, o); len(p.Refusals) > 0 || len(p.Actions) != 1 || p.Actions[0].Kind != WriteDropIn {
		t.Errorf("%+v", p)
	}
	// The same of a host whose kernel did not tell is refused: Diff is not DiffImage.
	if p := Diff(d, o); len(p.Refusals) == 0 {
		t.Errorf("a host: %+v", p)
	}
	o.DropIn = DropInState{Exists: true, Ours: true, Content: d.DropInText(o.Unit)}
	if p := DiffImage(d, o); len(p.Refusals) > 0 || len(p.Actions) > 0 {
		t.Errorf("in place: %+v", p)
	}
	o.DropIn = DropInState{Exists: true, Content: "[Service]\n"}
	if p := DiffImage(d, o); !slices.ContainsFunc(p.Refusals, func(r Reason) bool { return r.Code == DropInForeign }) || len(p.Actions) > 0 {
		t.Errorf("somebody else's: %+v", p)
	}
	o.DropIn, o.Policy.Problems = DropInState{}, []Reason{because(ProfileBroken, "syntax error")}
	if p := DiffImage(d, o); len(p.Refusals) == 0 || len(p.Actions) > 0 {
		t.Errorf("a text that is broken: %+v", p)
	}
}
