package reconcile

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A unit whose files say what was accepted for it gives way, too, where another unit's policy
// counts: they do not take turns. Whatever else its files say is accepted all the same.
func TestAUnitWhoseTextIsBackGivesWay(t *testing.T) {
	const textE = "/etc/apparmor.d/e"
	w := attached(func(a *attach.Attachment) {
		a.AllowProfiles, a.OnViolation = []string{"e"}, attach.ViolationStop
	}, "a")
	w.addUnit("c.service")
	w.files["b"], w.files["e"] = "1", "1"
	w.declareUnit(fileC, "c.service", func(a *attach.Attachment) { a.Profile, a.OnViolation = "b", attach.ViolationStop })
	w.declareUnit(fileOf("agent@.service"), "agent@.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.tells, w.leads = true, map[string][]string{"b": {"a"}}
	w.run(t, func(l *Loop) {
		w.override("a", true)
		pause(t, l, time.Hour, "agent@")
		unlock := w.lock()
		w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
		unlock()
		w.edit("2") // two files become one, which c has and a, which is refused, has not
		w.still(t, "merged")
		unlock = w.lock()
		w.also, w.in, w.bad["b"] = nil, nil, true
		unlock()
		w.edit("1")
		rest()
		w.override("a", false)
		time.Sleep(time.Hour)
		for _, change := range []func(){
			func() {},
			func() { w.replace("a", "evil") },
			func() { w.files["e"] = "2" },
		} {
			unlock = w.lock()
			change()
			unlock()
			w.trigger()
			w.tellPolicy()
			w.still(t, "two again")
			s := status(t, l, "a")
			if v := s.Verdict; v.Answer != attach.NotConfined || !only(*v, attach.PolicyDiffers) || !slices.Contains(codes(s.Notes), attach.PolicyChanged) {
				t.Errorf("%+v", s)
			}
			if p := l.Status(nil).Patterns[0]; !slices.Equal(codes(p.Refused), []attach.Code{attach.PolicyDiffers}) {
				t.Errorf("%+v", p)
			}
			unlock = w.lock()
			if w.kernel["a"] != "2" || w.kernel["b"] != "2" || w.kernel["e"] != w.files["e"] || w.calls["stop"] > 0 {
				t.Errorf("%q %q", w.kernel, w.trace)
			}
			unlock()
		}
		if r := w.record("a.service"); answer(l, "c") != "confined" || r.Policies[textA] != textA+" 1" || r.Policies[textE] != textE+" 2" {
			t.Errorf("c is %s, a has %q", answer(l, "c"), r.Policies)
		}
	})
}

// A boot decides by the attachments, as the daemon does: a unit may need more of a file than
// its own profile. Where an attachment cannot be read any unit may.
func TestABootKnowsWhatAUnitNeeds(t *testing.T) {
	for _, how := range []string{"allowed", "led to", "not readable"} {
		w := attached(func(a *attach.Attachment) {
			if a.OnViolation = attach.ViolationStop; how == "allowed" {
				a.AllowProfiles = []string{"b"}
			}
		}, "a")
		w.addUnit("c.service")
		w.files["b"], w.tells = "1", true
		w.leads = map[string][]string{"a": {"b"}}
		w.declareUnit(fileC, "c.service", func(a *attach.Attachment) { a.Profile, a.PrivateTmp = "b", attach.PrivateTmpNo })
		w.units["c.service"].breaks["PrivateTmp"] = true
		w.run(t, func(l *Loop) {
			w.declareUnit(fileC, "c.service", func(a *attach.Attachment) { a.Profile = "b" })
			rest()
			unlock := w.lock()
			delete(w.files, "b")
			w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
			unlock()
			w.edit("2") // two files become one, which c, which is held, has not
			w.still(t, "merged")
			if w.kernel["b"] != "2" || answer(l, "a") != "confined" || answer(l, "c") != "not-confined" {
				t.Fatalf("%q, a is %s, c is %s", w.kernel, answer(l, "a"), answer(l, "c"))
			}
		})
		a := w.att[fileA]
		if how == "not readable" {
			delete(w.att, fileA)
		}
		w.reboot(map[string]string{"a": "2", "b": "2"})
		w.tells = false
		if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["b"] != "2" {
			t.Errorf("%s: %v %q", how, err, w.kernel)
		}
		w.att[fileA], w.tells = a, true
		w.run(t, func(l *Loop) {
			w.still(t, "booted")
			if w.kernel["b"] != "2" || answer(l, "a") != "confined" || w.log.count("put back the policy") > 0 {
				t.Errorf("%s: %q, a is %s\n%s", how, w.kernel, answer(l, "a"), w.log.String())
			}
		})
	}
}

// A unit has a say in a text by which it newly comes to run under the other half of its file.
func TestATextThatLeadsToTheOtherHalfIsAskedAbout(t *testing.T) {
	for _, asked := range []bool{false, true} {
		w := halves(func(a *attach.Attachment) {
			if !asked {
				a.OnProfileChange = attach.ChangeReport
			}
		})
		if asked {
			w.notFor = map[string]string{"c.service": "2"}
			w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport })
		}
		w.leadsWith = map[string]map[string][]string{"sha256:a2": {"b": {"a"}}}
		w.run(t, func(l *Loop) {
			w.split("no good")
			w.still(t, "split")
			if asked {
				out, err := l.Attach(context.Background(), attach.Request{Units: []string{"a"}}, nil)
				if err != nil || out[0].Exit != attach.ExitFailed || !slices.Contains(codes(out[0].Reasons), attach.AssertionFailed) {
					t.Errorf("%v %+v", err, out)
				}
			}
			w.still(t, "asked for")
			if w.kernel["a"] != "1" || w.kernel["b"] != "1" || answer(l, "a") != "confined" || answer(l, "c") != "confined" {
				t.Errorf("asked %v: %q, a is %+v, c is %+v", asked, w.kernel, status(t, l, "a"), status(t, l, "c"))
			}
		})
	}
}

// A unit is not urgent for what the kernel has as another unit's, of its own profile or of the
// half that it does not use: that stays so. It is for what is nobody's.
func TestAUnitThatGivesWayIsNotUrgent(t *testing.T) {
	for _, leads := range []bool{false, true} {
		w := halves(nil)
		units := []string{"a.service", "c.service"}
		for i := range 3 {
			unit := fmt.Sprintf("c%d.service", i)
			w.addUnit(unit)
			w.declareUnit(fileOf(unit), unit, func(a *attach.Attachment) { a.Profile = "b" })
			units = append(units, unit)
		}
		w.run(t, func(l *Loop) {
			w.split("no good")
			if leads {
				unlock := w.lock()
				w.leads = map[string][]string{"b": {"a"}}
				unlock()
			}
			w.still(t, "split")
			if got := l.notLive(units); len(got) > 0 {
				t.Errorf("leads %v: urgent are %v", leads, got)
			}
			for _, version := range []string{"evil", ""} {
				unlock := w.lock()
				w.remove("b")
				if version != "" {
					w.replace("b", version)
				}
				unlock()
				if got := l.notLive(units); len(got) != 4 || got["a.service"] {
					t.Errorf("leads %v, b is %q: urgent are %v", leads, version, got)
				}
			}
		})
	}
}

// Of many units that have given a half of their file to others each is looked at as quickly as
// of few.
func TestALookAtAHalfDoesNotAskAllOthers(t *testing.T) {
	w := halves(nil)
	w.run(t, func(l *Loop) { w.split("no good") })
	l := w.loop()
	a, c := w.att[fileA], w.att[fileC]
	d := attach.Desired{Unit: "c.service", Attachment: &c, Profile: "b", Record: w.record("c.service")}
	look := func(n int) float64 {
		for i := range n {
			for unit, at := range map[string]*attach.Attachment{"a": &a, "c": &c} {
				r := w.record(unit + ".service")
				r.Unit = fmt.Sprintf("%s%d.service", unit, i)
				l.records[r.Unit], l.targets[r.Unit] = r, at
			}
		}
		return testing.AllocsPerRun(100, func() {
			if p := l.policy(t.Context(), d, attach.Unit{}, quick, nil); p.LeftTo["a"] == "" || len(p.LeftTo) != 1 {
				t.Errorf("%q", p.LeftTo)
			}
		})
	}
	if few, many := look(10), look(500); many > 2*few {
		t.Errorf("a look takes %.0f allocations beside 10 others, %.0f beside 500", few, many)
	}
}
