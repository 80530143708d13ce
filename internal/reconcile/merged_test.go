package reconcile

import (
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
