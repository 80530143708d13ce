package reconcile

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const textB, fileC = "/etc/apparmor.d/b", "/etc/aaunit/attachments.d/c.conf"

// halves is a world where a.service runs under profile a, and c.service under b of the same
// file.
func halves(change func(*attach.Attachment)) *world {
	w := attached(nil, "a")
	w.addUnit("c.service")
	w.declareUnit(fileC, "c.service", func(a *attach.Attachment) {
		a.Profile = "b"
		if change != nil {
			change(a)
		}
	})
	w.tells, w.also, w.in = true, map[string]string{"a": "b"}, map[string]string{"b": "a"}
	return w
}

// split has a package make two files of one, with another text of a; how it is with b.
func (w *world) split(how string) {
	unlock := w.lock()
	w.also, w.in, w.files["b"] = nil, nil, "1"
	switch how {
	case "the same":
	case "no good":
		w.bad["b"] = true
	case "gone":
		delete(w.files, "b")
	}
	unlock()
	w.edit("2")
	rest()
}

// A unit whose half of a file goes on as it was is not told of the other one, which another
// unit has taken, and its own is put back without that.
func TestAUnitIsJudgedByTheHalfThatItUses(t *testing.T) {
	stop := func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }
	for _, how := range []string{"the same", "no good", "gone"} {
		w := halves(stop)
		w.deadly["1"], w.units["c.service"].survives = "dies", true // who comes under the earlier text of a
		w.run(t, func(l *Loop) {
			w.split(how)
			for _, trample := range []func(){
				func() {},
				func() { w.replace("b", "evil") },
				func() { w.replace("a", "evil") },
				func() { w.replace("a", "evil"); w.replace("b", "evil") },
				func() { w.remove("a") },
			} {
				unlock := w.lock()
				trample()
				unlock()
				w.tellPolicy()
				w.still(t, how)
				unlock = w.lock()
				if w.kernel["a"] != "2" || w.kernel["b"] != "1" || w.calls["stop"] > 0 {
					t.Errorf("%s: %q %q", how, w.kernel, w.trace)
				}
				unlock()
				for _, unit := range []string{"a", "c"} {
					if s := status(t, l, unit); answer(l, unit) != "confined" || slices.Contains(codes(s.Notes), attach.PolicyChanged) {
						t.Errorf("%s: %s is %+v, has %q", how, unit, s, w.record(unit+".service").Policies)
					}
				}
			}
		})
	}
}

// So it is with the boot.
func TestABootMakesTheHalvesLive(t *testing.T) {
	for _, parser := range []string{"", "parser 2"} {
		for _, loaded := range []map[string]string{{}, {"a": "2"}, {"a": "evil", "b": "evil"}} {
			w := halves(nil)
			w.run(t, func(*Loop) { w.split("no good") })
			w.reboot(loaded)
			w.parser, w.tells = parser, false
			err := MakePolicyLive(t.Context(), w.options())
			if want := "2" + w.by(); err != nil || w.kernel["a"] != want || w.kernel["b"] != "1"+w.by() {
				t.Errorf("%q %q: %v %q", parser, loaded, err, w.kernel)
			}
		}
	}
}

// A refused unit, too, has no more than its half put back.
func TestARefusedUnitPutsBackItsHalf(t *testing.T) {
	w := halves(nil)
	w.deadly["1"], w.units["c.service"].survives = "dies", true
	w.run(t, func(l *Loop) {
		w.split("no good")
		w.override("c", true)
		unlock := w.lock()
		w.remove("b")
		unlock()
		w.tellPolicy()
		w.still(t, "removed")
		defer w.lock()()
		if w.kernel["a"] != "2" || w.kernel["b"] != "1" {
			t.Errorf("%q %q", w.kernel, w.trace)
		}
	})
}

// A unit that can come to run under the other half, too, is told that another policy of it
// counts, and goes on.
func TestAUnitThatNeedsBothHalvesIsTold(t *testing.T) {
	w := halves(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.leads = map[string][]string{"b": {"a"}}
	w.run(t, func(l *Loop) {
		w.split("no good")
		unlock := w.lock()
		w.replace("b", "evil")
		unlock()
		w.tellPolicy()
		w.still(t, "split")
		s := status(t, l, "c")
		if v := s.Verdict; v.Answer != attach.NotConfined || !only(*v, attach.PolicyDiffers) || !slices.Contains(codes(s.Notes), attach.PolicyChanged) {
			t.Errorf("%+v", s)
		}
		if answer(l, "a") != "confined" || w.called("stop") > 0 || w.kernel["a"] != "2" || w.kernel["b"] != "1" {
			t.Errorf("%q %q", w.kernel, w.trace)
		}
	})
}

// Who has only a half of a file has no say in the other one: whoever runs under that keeps
// what was accepted for it, however it is left aside, and neither puts back the other's.
func TestAUnitHasNoSayInTheHalfThatItDoesNotUse(t *testing.T) {
	for how := range leaving {
		if leaving[how].moves {
			continue
		}
		w := halves(nil)
		w.run(t, func(l *Loop) {
			w.split("no good")
			leaving[how].do(t, w, l, "a")
			unlock := w.lock()
			w.replace("b", "evil")
			unlock()
			w.tellPolicy()
			w.still(t, how)
			if w.kernel["a"] != "2" || w.kernel["b"] != "1" || answer(l, "c") != "confined" {
				t.Errorf("%s: %q, c is %+v %q", how, w.kernel, status(t, l, "c"), w.trace)
			}
			leaving[how].back(t, w, l, "a")
			w.still(t, how+", and back")
			if w.kernel["a"] != "2" || answer(l, "a") != "confined" || answer(l, "c") != "confined" {
				t.Errorf("%s, and back: %q, %q", how, w.kernel, w.trace)
			}
		})
	}
}

// Of two units that use one half, and one that uses the other, one gives way in its half.
func TestTwoUnitsOfOneHalf(t *testing.T) {
	w := halves(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.addUnit("d.service")
	w.declareUnit("/etc/aaunit/attachments.d/d.conf", "d.service", func(a *attach.Attachment) {
		a.Profile, a.OnViolation = "b", attach.ViolationStop
	})
	w.run(t, func(l *Loop) {
		w.override("d", true)
		w.split("the same")
		unlock := w.lock()
		w.files["b"] = "2"
		unlock()
		w.edit("2")
		rest()
		unlock = w.lock()
		w.bad["b"] = true
		unlock()
		w.override("d", false)
		for _, trample := range []func(){func() {}, func() { w.replace("a", "evil"); w.replace("b", "evil") }} {
			unlock = w.lock()
			trample()
			unlock()
			w.tellPolicy()
			w.still(t, "split")
			unlock = w.lock()
			if w.kernel["a"] != "2" || w.kernel["b"] != "2" || w.calls["stop"] > 0 {
				t.Errorf("%q %q", w.kernel, w.trace)
			}
			unlock()
			v := status(t, l, "d").Verdict
			if answer(l, "a") != "confined" || answer(l, "c") != "confined" || v.Answer != attach.NotConfined || len(v.Reasons) != 1 {
				t.Errorf("a is %s, c is %s, d is %+v", answer(l, "a"), answer(l, "c"), v)
			}
		}
	})
	w.tells = false
	w.reboot(map[string]string{})
	if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["a"] != "2" || w.kernel["b"] != "2" {
		t.Errorf("%v %q", err, w.kernel)
	}
}

// A unit of a file that a package has made of two has no say in the half that it does not
// use: another one, which is held under the text of before, has that put back.
func TestAUnitOfAMergedFileHasNoSayInTheOtherHalf(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a")
	w.addUnit("c.service")
	w.files["b"] = "1"
	w.declareUnit(fileC, "c.service", func(a *attach.Attachment) { a.Profile = "b" })
	w.tells = true
	w.units["a.service"].breaks["PrivateTmp"] = true
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", nil)
		rest()
		unlock := w.lock()
		delete(w.files, "b")
		w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
		unlock()
		w.edit("2")
		for _, trample := range []func(){func() {}, func() { w.replace("a", "evil") }, func() { w.replace("a", "evil"); w.replace("b", "evil") }} {
			unlock = w.lock()
			trample()
			unlock()
			w.tellPolicy()
			w.still(t, "merged")
			unlock = w.lock()
			if w.kernel["a"] != "1" || w.kernel["b"] != "2" {
				t.Errorf("%q %q", w.kernel, w.trace)
			}
			unlock()
			s := status(t, l, "a")
			if s.Held == nil || slices.ContainsFunc(s.Verdict.Reasons, func(r attach.Reason) bool { return r.Code == attach.PolicyDiffers }) || answer(l, "c") != "confined" {
				t.Errorf("a is %+v %+v, c is %+v", s, s.Verdict, status(t, l, "c").Verdict)
			}
		}
	})
}

// A half that nobody else has is the unit's as before: that it goes is told, and it is put
// back.
func TestAHalfThatNobodyTookIsPutBack(t *testing.T) {
	w := halves(nil)
	w.run(t, func(l *Loop) {
		w.split("no good")
		w.undeclare(fileA)
		w.still(t, "detached")
		unlock := w.lock()
		w.full = true
		w.remove("a")
		unlock()
		w.tellPolicy()
		rest()
		if v := status(t, l, "c").Verdict; v.Answer != attach.NotConfined {
			t.Errorf("%+v", v)
		}
		unlock = w.lock()
		w.full = false
		unlock()
		time.Sleep(2 * leaveFor)
		w.still(t, "put back")
		if w.kernel["a"] != "1" || w.kernel["b"] != "1" || answer(l, "c") != "confined" {
			t.Errorf("%q, c is %+v %q", w.kernel, status(t, l, "c"), w.trace)
		}
	})
}

// What somebody asks for on behalf of the unit that has the other half, or the text says of
// it, is no concern of the unit's either: it has no say in it, and keeps what it has.
func TestAHalfIsTakenAlone(t *testing.T) {
	for what, c := range map[string]struct {
		change func(*attach.Attachment)
		not    bool // the text of the other half is asserted not to be the unit's
		asks   bool
	}{
		"asked for":                 {asks: true},
		"asked for, not for it":     {not: true, asks: true},
		"it only wants reports":     {change: func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport }},
		"asked for, it wants those": {change: func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport }, asks: true},
	} {
		w := halves(c.change)
		if c.not {
			w.notFor = map[string]string{"c.service": "2"}
		}
		w.run(t, func(l *Loop) {
			w.split("no good")
			if c.asks {
				out, err := l.Attach(context.Background(), attach.Request{Units: []string{"a"}}, nil)
				if err != nil || out[0].Exit != attach.ExitOK || slices.Contains(codes(out[0].Notes), attach.PolicyChanged) {
					t.Errorf("%s: %v %+v", what, err, out)
				}
			}
			w.still(t, what)
			r := w.record("c.service")
			if w.kernel["a"] != "2" || w.kernel["b"] != "1" || answer(l, "a") != "confined" || answer(l, "c") != "confined" || r.Policies[textA] != textA+" 1 and b" {
				t.Errorf("%s: %q, a is %s, c is %+v, has %q %q", what, w.kernel, answer(l, "a"), status(t, l, "c"), r.Policies, w.trace)
			}
		})
	}
}

// Where it needs the other half, too, it has.
func TestAHalfThatBothNeedIsNotTakenAlone(t *testing.T) {
	w := halves(func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport })
	w.leads = map[string][]string{"b": {"a"}}
	w.run(t, func(l *Loop) {
		w.split("no good")
		w.still(t, "split")
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || answer(l, "c") != "confined" || !slices.Contains(codes(status(t, l, "a").Notes), attach.PolicyChanged) {
			t.Errorf("%q, a is %+v, c is %+v", w.kernel, status(t, l, "a"), status(t, l, "c"))
		}
	})
}

// Where the other half has long been accepted, a trial of the one is undone alone: the earlier
// text, which has both, is not loaded whole.
func TestATrialOfOneHalfIsUndoneAlone(t *testing.T) {
	w := halves(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.deadly["3"], w.units["c.service"].survives = "dies", true
	w.run(t, func(l *Loop) {
		unlock := w.lock()
		w.also, w.in, w.files["b"], w.bad["a"] = nil, nil, "2", true
		unlock()
		w.edit("2")
		w.still(t, "split")
		if answer(l, "a") != "confined" || answer(l, "c") != "confined" || w.record("c.service").Trial != nil {
			t.Fatalf("%q, a is %+v, c %+v", w.kernel, status(t, l, "a"), w.record("c.service"))
		}
		unlock = w.lock()
		w.bad["a"] = false
		unlock()
		w.edit("3")
		w.still(t, "undone")
		if a, c := status(t, l, "a"), status(t, l, "c"); a.Held == nil || c.Held != nil || answer(l, "a") != "confined" || answer(l, "c") != "confined" {
			t.Errorf("a is %+v, c %+v", a, c)
		}
		defer w.lock()()
		if w.kernel["a"] != "1" || w.kernel["b"] != "2" || w.calls["stop"] > 0 || w.log.count("put back the policy") > 0 {
			t.Errorf("%q %q\n%s", w.kernel, w.trace, w.log.String())
		}
	})
}

// The undo of a trial gives a refused unit its half back, and puts nothing over the other one,
// whose unit is paused.
func TestAnUndoLeavesTheHalfOfAPausedUnitAlone(t *testing.T) {
	w := halves(nil)
	w.addUnit("d.service")
	w.declareUnit("/etc/aaunit/attachments.d/d.conf", "d.service", func(a *attach.Attachment) { a.Profile = "b" })
	w.deadly["3"], w.units["c.service"].survives = "dies", true
	w.run(t, func(l *Loop) {
		w.override("c", true)
		w.split("the same")
		w.still(t, "split")
		if a, c, d := w.record("a.service"), w.record("c.service"), w.record("d.service"); a.Accepted["b"] != "" || c.Accepted["a"] != "sha256:a1" || d.Accepted["a"] != "" {
			t.Fatalf("accepted are %q, %q and %q", a.Policies, c.Policies, d.Policies)
		}
		pause(t, l, time.Hour, "a")
		unlock := w.lock()
		w.files["b"] = "3"
		unlock()
		w.trigger()
		w.still(t, "undone")
		if status(t, l, "d").Held == nil || answer(l, "a") != "confined" || w.kernel["a"] != "2" || w.kernel["b"] != "1" {
			t.Errorf("a is %s, d %+v: %q %q", answer(l, "a"), status(t, l, "d"), w.kernel, w.trace)
		}
	})
}

// Nor does it put the older text of one unit over the newer one of another that keeps it, as
// their half does not compile.
func TestAnUndoLeavesTheNewerTextOfAHalfAlone(t *testing.T) {
	w := halves(nil)
	w.addUnit("d.service")
	w.declareUnit("/etc/aaunit/attachments.d/d.conf", "d.service", func(a *attach.Attachment) { a.Profile = "b" })
	w.deadly["4"] = "dies"
	w.run(t, func(l *Loop) {
		w.override("d", true)
		w.edit("2")
		w.still(t, "2")
		unlock := w.lock()
		w.also, w.in, w.files["b"], w.bad["b"] = nil, nil, "1", true
		unlock()
		w.edit("3")
		w.override("d", false)
		w.still(t, "3")
		if c, d := w.record("c.service"), w.record("d.service"); c.Accepted["b"] != "sha256:b2" || d.Accepted["b"] != "sha256:b1" || answer(l, "c") != "confined" {
			t.Fatalf("c is %s, accepted are %q and %q", answer(l, "c"), c.Policies, d.Policies)
		}
		unlock = w.lock()
		w.units["d.service"].survives, w.deadly["1"] = true, "dies"
		unlock()
		w.edit("4")
		w.still(t, "4")
		if status(t, l, "a").Held == nil || answer(l, "c") != "confined" || !w.units["c.service"].running || w.kernel["a"] != "3" || w.kernel["b"] != "2" {
			t.Errorf("a is %+v, c %s: %q %q", status(t, l, "a"), answer(l, "c"), w.kernel, w.trace)
		}
	})
}

// A profile that the changed text has no more, and that is unloaded, is live again before a
// unit which comes to run under it starts again, wherever the undo is cut off.
func TestAnUndoBringsBackAProfileThatTheTextHadDropped(t *testing.T) {
	for kill, more := 0, true; more; kill++ {
		what := fmt.Sprintf("killed before step %d", kill)
		w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
		w.tells, w.also, w.in = true, map[string]string{"a": "b"}, map[string]string{"b": "a"}
		w.leads = map[string][]string{"a": {"b"}}
		w.deadly["2"] = "dies"
		w.onCall = func(call string) {
			if call == "start a.service" && (w.kernel["a"] != "1" || w.kernel["b"] != "1") {
				t.Errorf("%s: a is started under %q", what, w.kernel)
			}
		}
		w.run(t, func(l *Loop) {
			unlock := w.lock()
			w.also, w.in = nil, nil
			w.remove("b")
			steps := 0
			w.onStep = func(string) bool { steps++; return steps == kill }
			unlock()
			w.edit("2")
			time.Sleep(time.Minute)
			rest()
			defer w.lock()()
			more = kill == 0 || w.dead
		})
		w.dead, w.onStep = false, nil
		w.run(t, func(l *Loop) {
			w.still(t, what)
			if s := status(t, l, "a"); s.Held == nil || answer(l, "a") != "confined" || w.kernel["a"] != "1" || w.kernel["b"] != "1" || w.called("stop") > 0 {
				t.Errorf("%s: a is %+v: %q %q", what, s, w.kernel, w.trace)
			}
		})
	}
}

// What a unit that is left aside has accepted of a profile stays, also where the text that is
// undone had the same of it, and the earlier one had not.
func TestAnUndoLeavesWhatAUnitThatIsLeftAsideHasOfTheSame(t *testing.T) {
	for how := range leaving {
		if leaving[how].moves {
			continue
		}
		w := halves(nil)
		w.deadly["3"], w.units["c.service"].survives = "dies", true
		w.run(t, func(l *Loop) {
			unlock := w.lock()
			w.also, w.in, w.files["b"], w.bad["a"] = nil, nil, "3", true
			unlock()
			w.edit("3")
			w.still(t, "split")
			leaving[how].do(t, w, l, "c")
			if a, c := w.record("a.service"), w.record("c.service"); a.Accepted["b"] != "sha256:b1" || c.Accepted["b"] != "sha256:b3" {
				t.Fatalf("%s: accepted are %q and %q", how, a.Policies, c.Policies)
			}
			unlock = w.lock()
			w.also, w.in, w.bad["a"] = map[string]string{"a": "b"}, map[string]string{"b": "a"}, false
			unlock()
			w.trigger()
			w.still(t, "merged")
			if s := status(t, l, "a"); s.Held == nil || answer(l, "a") != "confined" || w.kernel["a"] != "1" || w.kernel["b"] != "3" {
				t.Errorf("%s: a is %+v: %q %q", how, s, w.kernel, w.trace)
			}
		})
	}
}
