package reconcile

import (
	"slices"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// override has somebody's drop-in take the profile from a unit, whose attachment is refused
// then, or removes that.
func (w *world) override(unit string, is bool) {
	file := "/etc/systemd/system/" + unit + ".service.d/99-x.conf"
	unlock := w.lock()
	if is {
		w.disk[file], w.read[file] = "[Service]\nAppArmorProfile=\n", "[Service]\nAppArmorProfile=\n"
	} else {
		delete(w.disk, file)
		delete(w.read, file)
	}
	unlock()
	w.trigger()
	rest()
}

// leaving is how a unit is left aside, and how it comes back.
var leaving = map[string]struct {
	do, back func(t *testing.T, w *world, l *Loop, unit string)
}{
	"paused": {
		func(t *testing.T, w *world, l *Loop, unit string) { pause(t, l, time.Hour, unit) },
		func(*testing.T, *world, *Loop, string) { time.Sleep(time.Hour) },
	},
	"refused": {
		func(_ *testing.T, w *world, _ *Loop, unit string) { w.override(unit, true) },
		func(_ *testing.T, w *world, _ *Loop, unit string) { w.override(unit, false) },
	},
}

// diverge makes two units of profile a that have accepted different texts of it, of which the
// one that stayed behind was left aside meanwhile.
func diverge(t *testing.T, w *world, l *Loop, how, behind string) {
	t.Helper()
	leaving[how].do(t, w, l, behind)
	w.edit("2")
	rest()
	if a, c := w.record("a.service"), w.record("c.service"); a.Policies[textA] == c.Policies[textA] {
		t.Fatal("both accepted the same")
	}
}

// spoil leaves the text of profile a in the middle of an edit, or ends that.
func (w *world) spoil(is bool) {
	unlock := w.lock()
	w.bad["a"] = is
	unlock()
	w.trigger()
}

// Two units that go on under what was accepted, since the text has gone bad, and have
// accepted different texts before, do not take turns: the newer one counts for both.
func TestTwoUnitsThatKeepTheirPolicyDoNotTakeTurns(t *testing.T) {
	for how := range leaving {
		for behind, ahead := range map[string]string{"a": "c", "c": "a"} {
			what := how + ", " + behind + " is behind"
			w := attached(nil, "a", "c")
			w.tells = true
			w.run(t, func(l *Loop) {
				diverge(t, w, l, how, behind)
				w.spoil(true)
				rest()
				leaving[how].back(t, w, l, behind)
				for _, trample := range []func(){
					func() {},
					func() { w.replace("a", "evil") },
					func() { w.kernel["a"] = "1" },
					func() { w.remove("a") },
				} {
					unlock := w.lock()
					trample()
					unlock()
					w.tellPolicy()
					w.still(t, what)
					if s := status(t, l, behind); answer(l, ahead) != "confined" || answer(l, behind) == "confined" || !slices.Contains(codes(s.Notes), attach.PolicyChanged) {
						t.Errorf("%s: %s is %s, the other %+v", what, ahead, answer(l, ahead), s)
					}
					unlock = w.lock()
					if w.kernel["a"] != "2" {
						t.Errorf("%s: %q %q", what, w.kernel, w.trace)
					}
					unlock()
				}
				w.spoil(false)
				w.still(t, what+", mended")
				if answer(l, "a") != "confined" || answer(l, "c") != "confined" || w.record("a.service").Policies[textA] != textA+" 2" {
					t.Errorf("%s, mended: a is %s, c is %s", what, answer(l, "a"), answer(l, "c"))
				}
			})
		}
	}
}

// While the unit whose policy counts is left alone, or refused, nobody would put that back:
// the other one has its own.
func TestAUnitDoesNotGiveWayToOneThatIsLeftAside(t *testing.T) {
	for how := range leaving {
		for behind, ahead := range map[string]string{"a": "c", "c": "a"} {
			what := how + ", " + behind + " is behind"
			w := attached(nil, "a", "c")
			w.tells = true
			w.run(t, func(l *Loop) {
				diverge(t, w, l, "refused", behind)
				w.spoil(true)
				rest()
				leaving["refused"].back(t, w, l, behind)
				leaving[how].do(t, w, l, ahead)
				for _, trample := range []func(){func() { w.replace("a", "evil") }, func() { w.remove("a") }} {
					unlock := w.lock()
					trample()
					unlock()
					w.tellPolicy()
					w.still(t, what)
					unlock = w.lock()
					if u := w.units[behind+".service"]; w.kernel["a"] != "1" || u.label != "a (enforce)" {
						t.Errorf("%s: %q %+v %q", what, w.kernel, u, w.trace)
					}
					unlock()
					if answer(l, behind) != "confined" {
						t.Errorf("%s: %s", what, answer(l, behind))
					}
				}
				leaving[how].back(t, w, l, ahead)
				w.still(t, what+", and back")
				unlock := w.lock()
				defer unlock()
				if w.kernel["a"] != "2" {
					t.Errorf("%s, and back: %q %q", what, w.kernel, w.trace)
				}
			})
		}
	}
}

// A unit that is refused has its own policy put back, and not that of one which is held.
func TestARefusedUnitDoesNotGiveWayToAHeldOne(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
	w.tells = true
	w.units["a.service"].breaks["PrivateTmp"] = true
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", nil)
		rest()
		w.edit("2")
		rest()
		if status(t, l, "a").Held == nil || w.record("a.service").Policies[textA] != textA+" 1" {
			t.Fatalf("%+v", w.record("a.service"))
		}
		w.override("c", true)
		unlock := w.lock()
		w.remove("a")
		unlock()
		w.tellPolicy()
		w.still(t, "removed")
		unlock = w.lock()
		defer unlock()
		if w.kernel["a"] != "2" {
			t.Errorf("%q %q", w.kernel, w.trace)
		}
	})
}

// Nobody puts back what was accepted for a unit that is paused, or frozen since the daemon
// started: a held one, which goes on under its former policy, has that put back.
func TestAHeldUnitDoesNotGiveWayToOneThatIsLeftAlone(t *testing.T) {
	const fileC = "/etc/aaunit/attachments.d/c.conf"
	for _, what := range []string{"paused", "frozen"} {
		w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
		w.tells = true
		w.units["a.service"].breaks["PrivateTmp"] = true
		w.run(t, func(l *Loop) {
			w.declareUnit(fileA, "a.service", nil)
			rest()
			w.edit("2")
			rest()
			if a, c := w.record("a.service"), w.record("c.service"); status(t, l, "a").Held == nil || a.Policies[textA] == c.Policies[textA] {
				t.Fatalf("%+v %+v", a, c)
			}
		})
		w.broken[fileC] = what == "frozen"
		w.run(t, func(l *Loop) {
			if what == "paused" {
				pause(t, l, time.Hour, "c")
			}
			for _, trample := range []func(){func() { w.replace("a", "evil") }, func() { w.remove("a") }} {
				unlock := w.lock()
				trample()
				unlock()
				w.tellPolicy()
				w.still(t, what)
				unlock = w.lock()
				if w.kernel["a"] != "1" {
					t.Errorf("%s: %q %q", what, w.kernel, w.trace)
				}
				unlock()
			}
			unlock := w.lock()
			w.broken[fileC] = false
			unlock()
			w.tellFiles()
			time.Sleep(time.Hour)
			w.still(t, what+", and back")
			defer w.lock()()
			if w.kernel["a"] != "2" {
				t.Errorf("%s, and back: %q %q", what, w.kernel, w.trace)
			}
		})
	}
}

// A refused unit leaves it at what counts: a hat that only its own policy has is not put
// back again and again.
func TestARefusedUnitDoesNotPutBackAHat(t *testing.T) {
	w := attached(nil, "a", "c")
	w.tells, w.also = true, map[string]string{"a": "a//hat"}
	w.run(t, func(l *Loop) {
		w.override("a", true)
		unlock := w.lock()
		delete(w.also, "a")
		unlock()
		w.edit("2")
		w.still(t, "without a hat")
		unlock = w.lock()
		defer unlock()
		if _, has := w.kernel["a//hat"]; has || w.kernel["a"] != "2" {
			t.Errorf("%q %q", w.kernel, w.trace)
		}
	})
}

// Nor where the other one has an older policy, and only counts meanwhile.
func TestARefusedUnitLeavesAnOlderPolicyAlone(t *testing.T) {
	for behind, ahead := range map[string]string{"a": "c", "c": "a"} {
		w := attached(nil, "a", "c")
		w.tells, w.also = true, map[string]string{}
		w.run(t, func(l *Loop) {
			w.override(behind, true)
			unlock := w.lock()
			w.also["a"] = "a//hat"
			unlock()
			w.edit("2")
			rest()
			w.spoil(true)
			rest()
			w.override(ahead, true)
			w.override(behind, false)
			w.still(t, behind+" is behind")
			if answer(l, behind) != "confined" {
				t.Errorf("%s is %s: %q", behind, answer(l, behind), w.trace)
			}
		})
	}
}

// The boot makes one of two live, too.
func TestABootMakesThePolicyLiveThatCounts(t *testing.T) {
	for _, loaded := range []map[string]string{{}, {"a": "2"}, {"a": "3"}} {
		w := attached(nil, "a", "c")
		w.files["a"] = "3"
		w.run(t, func(l *Loop) { diverge(t, w, l, "refused", "a") })
		w.reboot(loaded)
		if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["a"] != "2" {
			t.Errorf("%q: %v %q", loaded, err, w.kernel)
		}
	}
}

// A changed attachment of a unit that gives way is tried once the policy that counts is
// there, and not again and again.
func TestARestartOfAUnitThatGivesWay(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
	w.tells = true
	u := w.units["a.service"]
	w.run(t, func(l *Loop) {
		diverge(t, w, l, "refused", "a")
		w.spoil(true)
		rest()
		leaving["refused"].back(t, w, l, "a")
		unlock := w.lock()
		w.full = true
		w.replace("a", "evil")
		unlock()
		w.trigger()
		rest()
		if s := status(t, l, "a"); s.Held != nil {
			t.Errorf("the policy of the other one cannot be put back: %+v", s)
		}
		passes, restarts := l.Metrics().Passes.Count, w.called("restart")
		w.declareUnit(fileA, "a.service", nil)
		rest()
		time.Sleep(5 * time.Minute)
		if n := l.Metrics().Passes.Count - passes; n > 20 || w.called("restart") != restarts || status(t, l, "a").Held != nil {
			t.Errorf("%d passes, %d restarts, %+v", n, w.called("restart")-restarts, status(t, l, "a").Held)
		}
		unlock = w.lock()
		w.full = false
		unlock()
		time.Sleep(5 * time.Minute)
		w.still(t, "tried")
		unlock = w.lock()
		defer unlock()
		if n := w.calls["restart"] - restarts; n == 0 || n > 2 || !u.running || u.label != "a (enforce)" || w.kernel["a"] != "2" {
			t.Errorf("%d restarts, %+v %q", n, u, w.trace)
		}
	})
}
