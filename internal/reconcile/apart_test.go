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

// leaving is how a unit is left aside, how it comes back, and whether the changed text is in
// another file.
var leaving = map[string]struct {
	do, back func(t *testing.T, w *world, l *Loop, unit string)
	moves    bool
}{
	"paused":         {paused, afterPause, false},
	"refused":        {refused, refusedNoMore, false},
	"paused, moved":  {paused, afterPause, true},
	"refused, moved": {refused, refusedNoMore, true},
}

func paused(t *testing.T, _ *world, l *Loop, unit string) { pause(t, l, time.Hour, unit) }
func afterPause(*testing.T, *world, *Loop, string)        { time.Sleep(time.Hour) }

func refused(_ *testing.T, w *world, _ *Loop, unit string)       { w.override(unit, true) }
func refusedNoMore(_ *testing.T, w *world, _ *Loop, unit string) { w.override(unit, false) }

// inBoth are the ways of one that is refused meanwhile.
var inBoth = []string{"refused", "refused, moved"}

// diverge makes two units of profile a that have accepted different texts of it, of which the
// one that stayed behind was left aside meanwhile.
func diverge(t *testing.T, w *world, l *Loop, how, behind string) {
	t.Helper()
	leaving[how].do(t, w, l, behind)
	if leaving[how].moves {
		w.move()
	}
	w.edit("2")
	rest()
	if a, c := w.record("a.service"), w.record("c.service"); a.Accepted["a"] == c.Accepted["a"] || (len(a.Policies[textA]) == len(c.Policies[textA])) == leaving[how].moves {
		t.Fatalf("accepted are %q and %q", a.Policies, c.Policies)
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
				if answer(l, "a") != "confined" || answer(l, "c") != "confined" || w.record("a.service").Accepted["a"] != "sha256:a2" {
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
				diverge(t, w, l, map[bool]string{true: "refused, moved", false: "refused"}[leaving[how].moves], behind)
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
	for _, moves := range []bool{false, true} {
		w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
		w.tells = true
		w.units["a.service"].breaks["PrivateTmp"] = true
		w.run(t, func(l *Loop) {
			w.declareUnit(fileA, "a.service", nil)
			rest()
			if moves {
				w.move()
			}
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
}

// Nobody puts back what was accepted for a unit that is paused, or frozen since the daemon
// started: a held one, which goes on under its former policy, has that put back.
func TestAHeldUnitDoesNotGiveWayToOneThatIsLeftAlone(t *testing.T) {
	for _, moves := range []bool{false, true} {
		const fileC = "/etc/aaunit/attachments.d/c.conf"
		for _, what := range []string{"paused", "frozen"} {
			w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
			w.tells = true
			w.units["a.service"].breaks["PrivateTmp"] = true
			w.run(t, func(l *Loop) {
				w.declareUnit(fileA, "a.service", nil)
				rest()
				if moves {
					w.move()
				}
				w.edit("2")
				rest()
				if a, c := w.record("a.service"), w.record("c.service"); status(t, l, "a").Held == nil || a.Accepted["a"] == c.Accepted["a"] {
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
}

// A refused unit leaves it at what counts: a hat that only its own policy has is not put
// back again and again.
func TestARefusedUnitDoesNotPutBackAHat(t *testing.T) {
	for _, moves := range []bool{false, true} {
		w := attached(nil, "a", "c")
		w.tells, w.also = true, map[string]string{"a": "a//hat"}
		w.run(t, func(l *Loop) {
			w.override("a", true)
			unlock := w.lock()
			delete(w.also, "a")
			unlock()
			if moves {
				w.move()
			}
			w.edit("2")
			w.still(t, "without a hat")
			unlock = w.lock()
			defer unlock()
			if _, has := w.kernel["a//hat"]; has || w.kernel["a"] != "2" {
				t.Errorf("%q %q", w.kernel, w.trace)
			}
		})
	}
}

// Nor where the other one has an older policy, and only counts meanwhile.
func TestARefusedUnitLeavesAnOlderPolicyAlone(t *testing.T) {
	for _, moves := range []bool{false, true} {
		for behind, ahead := range map[string]string{"a": "c", "c": "a"} {
			w := attached(nil, "a", "c")
			w.tells, w.also = true, map[string]string{}
			w.run(t, func(l *Loop) {
				w.override(behind, true)
				unlock := w.lock()
				w.also["a"] = "a//hat"
				unlock()
				if moves {
					w.move()
				}
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
}

// The boot makes one of two live, too.
func TestABootMakesThePolicyLiveThatCounts(t *testing.T) {
	for _, how := range inBoth {
		for _, loaded := range []map[string]string{{}, {"a": "2"}, {"a": "3"}} {
			w := attached(nil, "a", "c")
			w.files["a"] = "3"
			w.run(t, func(l *Loop) { diverge(t, w, l, how, "a") })
			w.reboot(loaded)
			if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["a"] != "2" {
				t.Errorf("%q: %v %q", loaded, err, w.kernel)
			}
		}
	}
}

// A unit that gives way is told to run under another policy, and goes on: it is not stopped
// for that when it comes back, nor when it starts.
func TestAUnitThatGivesWayIsNotStopped(t *testing.T) {
	for how := range leaving {
		for behind := range map[string]string{"a": "c", "c": "a"} {
			what := how + ", " + behind + " is behind"
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a", "c")
			w.tells = true
			u := w.units[behind+".service"]
			w.run(t, func(l *Loop) {
				diverge(t, w, l, how, behind)
				w.spoil(true)
				rest()
				leaving[how].back(t, w, l, behind)
				w.still(t, what)
				for _, forked := range []int{0, 3} {
					unlock := w.lock()
					u.forked = forked
					_ = w.begin(u)
					unlock()
					w.still(t, what+", started")
				}
				unlock := w.lock()
				w.kernel["a//hat"], w.starting = "1", true // it is unloaded in a moment
				unlock()
				w.tellPolicy()
				rest()
				if !u.running {
					t.Errorf("%s, with a hat: %+v %q", what, u, w.trace)
				}
				unlock = w.lock()
				w.starting = false
				unlock()
				time.Sleep(2 * unloadLater)
				w.still(t, what+", without a hat")
				v := status(t, l, behind).Verdict
				if !u.running || v.Answer != attach.NotConfined || !only(*v, attach.PolicyDiffers) {
					t.Errorf("%s: %+v %+v %q", what, u, v, w.trace)
				}
				w.spoil(false)
				w.still(t, what+", mended")
				if !u.running || w.called("stop") > 0 || answer(l, behind) != "confined" {
					t.Errorf("%s, mended: %+v %s", what, u, answer(l, behind))
				}
			})
		}
	}
}

// Nor is one that is refused, where the older policy of another one counts.
func TestARefusedUnitIsNotStoppedForAnOlderPolicy(t *testing.T) {
	for _, how := range inBoth {
		w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a", "c")
		w.tells = true
		u := w.units["c.service"]
		w.run(t, func(l *Loop) {
			diverge(t, w, l, how, "a")
			w.spoil(true)
			rest()
			w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) {
				a.Profile, a.OnViolation, a.Mode = "a", attach.ViolationStop, attach.WishComplain
			})
			rest()
			w.override("a", false)
			w.still(t, "refused")
			l.queue.add(doubted, "c.service")
			w.still(t, "looked at")
			s := status(t, l, "c")
			if len(s.Refused) == 0 || w.kernel["a"] != "1" || !only(*s.Verdict, attach.PolicyDiffers) || s.Verdict.Answer != attach.NotConfined || !u.running {
				t.Errorf("%+v %q %+v %q", u, w.kernel, s, w.trace)
			}
		})
	}
}

// It is stopped for all else: another policy than the one that counts, or a task that has
// left the profile.
func TestAUnitThatGivesWayIsStoppedForAllElse(t *testing.T) {
	for _, how := range inBoth {
		for what, spoil := range map[string]func(w *world, u *unit){
			"evil":   func(w *world, u *unit) { w.replace("a", "evil") },
			"left":   func(w *world, u *unit) { u.label = "other (enforce)" },
			"no tmp": func(w *world, u *unit) { u.tmp = false },
			"starts": func(w *world, u *unit) { u.moves = map[string]string{"a": "other"}; _ = w.begin(u) },
		} {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a", "c")
			w.tells = true
			u := w.units["a.service"]
			w.run(t, func(l *Loop) {
				diverge(t, w, l, how, "a")
				w.spoil(true)
				rest()
				leaving[how].back(t, w, l, "a")
				unlock := w.lock()
				_ = w.begin(u)
				unlock()
				rest()
				if !u.running {
					t.Fatal(w.trace)
				}
				unlock = w.lock()
				w.full = true // nobody can put it back
				spoil(w, u)
				unlock()
				w.tellPolicy()
				rest()
				if u.running {
					t.Errorf("%s: %+v %q", what, status(t, l, "a").Verdict, w.trace)
				}
			})
		}
	}
}

// A changed attachment of a unit that gives way is tried once the policy that counts is
// there, and not again and again.
func TestARestartOfAUnitThatGivesWay(t *testing.T) {
	for _, how := range inBoth {
		w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
		w.tells = true
		u := w.units["a.service"]
		w.run(t, func(l *Loop) {
			diverge(t, w, l, how, "a")
			w.spoil(true)
			rest()
			leaving[how].back(t, w, l, "a")
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
			if n := w.calls["restart"] - restarts; n != 1 || !u.running || u.label != "a (enforce)" || !u.tmp || w.kernel["a"] != "2" {
				t.Errorf("%d restarts, %+v %q", n, u, w.trace)
			}
			u.label = "other (enforce)" // which it would do again
			unlock()
			w.trigger()
			w.still(t, "left")
			if s := status(t, l, "a"); s.Held != nil || w.called("restart")-restarts != 1 {
				t.Errorf("%+v %q", s, w.trace)
			}
		})
	}
}

// Only what speaks against the attachment itself is undone: that the kernel has the policy
// that counts is not mended by a restart.
func TestAChangeOfAUnitThatGivesWay(t *testing.T) {
	for _, how := range inBoth {
		for what, bad := range map[string]func(w *world, u *unit){
			"well":   func(w *world, u *unit) {},
			"broken": func(w *world, u *unit) { u.breaks["PrivateTmp"] = true },
			"breaks": func(w *world, u *unit) {
				time.AfterFunc(time.Second, func() { defer w.lock()(); u.running, u.failed = false, true })
			},
			"another": func(w *world, u *unit) { u.moves = map[string]string{"a": "other"} },
		} {
			w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
			w.tells = true
			u := w.units["a.service"]
			w.run(t, func(l *Loop) {
				diverge(t, w, l, how, "a")
				w.spoil(true)
				rest()
				leaving[how].back(t, w, l, "a")
				w.mu.Lock()
				w.onCall = func(call string) {
					if call == "restart a.service" {
						bad(w, u)
						w.onCall = nil
					}
				}
				w.mu.Unlock()
				w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnFailedAttach = attach.FailedStop })
				time.Sleep(5 * time.Minute)
				w.still(t, what)
				s := status(t, l, "a")
				if failed := what != "well"; failed != (s.Held != nil) || failed == u.running || !failed && s.Verdict.Answer != attach.NotConfined {
					t.Errorf("%s: %+v %+v %q", what, u, s, w.trace)
				}
			})
		}
	}
}

// A template has no verdict that tells of another unit's policy: its status does, as long as
// that counts, also when its drop-in is put back.
func TestATemplateThatGivesWayIsToldSo(t *testing.T) {
	for how := range leaving {
		w := newWorld()
		w.addUnit("a.service")
		w.tells = true
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo })
		w.declareUnit(fileOf("agent@.service"), "agent@.service", func(a *attach.Attachment) { a.Profile = "a" })
		w.run(t, func(l *Loop) {
			is := func(what string, want attach.Answer, code ...attach.Code) {
				t.Helper()
				s := l.Status(nil).Patterns[0]
				answer, _ := s.ToCome()
				open := l.Metrics().PatternsOpen
				if confined := want == attach.Confined; answer != want || confined != (s.Exit() == attach.ExitOK) || confined != (open == 0) || !slices.Equal(codes(s.Refused), code) {
					t.Errorf("%s, %s: %s, exit %d, %d open, refused %v", how, what, answer, s.Exit(), open, s.Refused)
				}
			}
			rest()
			is("attached", attach.Confined)
			leaving[how].do(t, w, l, "agent@")
			if leaving[how].moves {
				w.move()
			}
			w.edit("2")
			rest()
			w.spoil(true)
			rest()
			leaving[how].back(t, w, l, "agent@")
			w.still(t, how)
			is("back", attach.NotConfined, attach.PolicyDiffers)
			unlock := w.lock()
			delete(w.disk, "/etc/systemd/system/agent@.service.d/90-aaunit.conf")
			unlock()
			w.declareUnit(fileA, "a.service", nil)
			w.trigger()
			time.Sleep(3 * time.Second)
			is("its drop-in is put back, and a unit settles", attach.NotConfined, attach.PolicyDiffers)
			w.still(t, how+", settled")
			is("settled", attach.NotConfined, attach.PolicyDiffers)
			w.spoil(false)
			w.still(t, how+", mended")
			is("mended", attach.Confined)
		})
	}
}
