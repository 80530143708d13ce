package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// While a unit settles, what somebody does to the policy of another one is named
// within a second, and mended when the unit has settled.
func TestPolicyThatChangesDuringAPassIsNamedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		named int
		do    func(w *world)
	}{
		{"aa-teardown", 1, func(w *world) { w.remove("a") }},
		{"aa-complain", 1, func(w *world) { w.replace("a", "1"+soft) }},
		{"replaced", 1, func(w *world) { w.replace("a", "evil") }},
		{"a new text, loaded", 0, func(w *world) { w.files["a"] = "2"; w.replace("a", "2") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
			w.addUnit("slow.service")
			w.files["b"] = "1"
			w.run(t, func(l *Loop) {
				w.policy <- struct{}{} // how things are is known
				time.Sleep(time.Minute)
				synctest.Wait()
				w.declareUnit("/etc/aaunit/attachments.d/slow.conf", "slow.service", func(a *attach.Attachment) { a.Profile, a.Settle = "b", time.Hour })
				l.queue.add(inputChanged, "a.service") // it is in the same pass
				time.Sleep(time.Minute)
				synctest.Wait()
				if !status(t, l, "slow").Busy || answer(l, "a") != "confined" {
					t.Fatalf("%+v %s", status(t, l, "slow"), answer(l, "a"))
				}
				unlock := w.lock()
				tt.do(w)
				unlock()
				w.policy <- struct{}{}
				time.Sleep(time.Second)
				synctest.Wait()
				if named := w.log.count("a.service is not-confined"); named != tt.named || (answer(l, "a") == "confined") != (tt.named == 0) {
					t.Errorf("named %d times, %s\n%s", named, answer(l, "a"), w.log.String())
				}
				time.Sleep(time.Hour)
				synctest.Wait()
				rest()
				if answer(l, "a") != "confined" || answer(l, "slow") != "confined" || w.calls["restart"] > 3 || w.calls["stop"] > 0 {
					t.Errorf("%s %s %q", answer(l, "a"), answer(l, "slow"), w.trace)
				}
			})
		})
	}
}

// So is what somebody has done to it just before, and what is asked for overtakes: after
// an answer triggers wait for a while.
func TestPolicyThatChangesJustBeforeAPassIsNamedAtOnce(t *testing.T) {
	w := attached(nil, "a")
	w.addUnit("x.service")
	w.addUnit("slow.service")
	w.run(t, func(l *Loop) {
		unlock := w.lock()
		w.files["x"], w.files["slow"] = "1", "1"
		w.kernel["x"], w.kernel["slow"] = "1", "1" // loaded already
		unlock()
		w.tellPolicy() // how things are is known
		rest()
		settle := time.Duration(0)
		attachUnits(t, l, attach.Request{Units: []string{"x"}, Settle: &settle})
		unlock = w.lock()
		w.replace("a", "evil")
		unlock()
		w.tellPolicy()
		time.Sleep(besideAfter + 100*time.Millisecond)
		hour := time.Hour
		go func() {
			_, _ = l.Attach(context.Background(), attach.Request{Units: []string{"slow"}, Settle: &hour}, nil)
		}()
		time.Sleep(time.Second)
		synctest.Wait()
		if !l.isPassing() || w.log.count("a.service is not-confined") != 1 || answer(l, "a") != "not-confined" {
			t.Errorf("passing %v, %s\n%s", l.isPassing(), answer(l, "a"), w.log.String())
		}
		time.Sleep(time.Hour)
		rest()
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" {
			t.Errorf("%q %s", w.kernel, answer(l, "a"))
		}
	})
}

// What a pass loads itself is no reason to look at the tasks of all other units.
func TestNobodyElseIsLookedAtBesideAPass(t *testing.T) {
	w := attached(nil, "a")
	w.addUnit("slow.service")
	w.files["b"] = "1"
	w.run(t, func(l *Loop) {
		w.policy <- struct{}{} // how things are is known
		time.Sleep(time.Minute)
		synctest.Wait()
		unlock := w.lock()
		w.rescans = nil
		unlock()
		w.declareUnit("/etc/aaunit/attachments.d/slow.conf", "slow.service", func(a *attach.Attachment) { a.Profile, a.Settle = "b", time.Hour })
		time.Sleep(time.Minute)
		w.policy <- struct{}{} // the kernel tells of what the pass has loaded
		time.Sleep(time.Minute)
		synctest.Wait()
		defer w.lock()()
		if !l.isPassing() || w.kernel["b"] != "1" {
			t.Fatalf("%v %q", l.isPassing(), w.kernel)
		}
		if slices.Contains(w.rescans, "a.service") {
			t.Errorf("looked at the tasks of %q", w.rescans)
		}
	})
}

// A policy that cannot be put back is not tried for ever: that is told, and the unit
// stopped if that is wanted. A minute later it is tried again.
func TestPolicyThatCannotBePutBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		stop bool
		do   func(w *world)
	}{
		{"replaced", false, func(w *world) { w.replace("a", "evil") }},
		{"replaced, stop", true, func(w *world) { w.replace("a", "evil") }},
		{"removed", false, func(w *world) { w.remove("a") }},
		{"removed, stop", true, func(w *world) { w.remove("a") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) {
				if tt.stop {
					a.OnViolation = attach.ViolationStop
				}
			}, "a")
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				w.full = true
				tt.do(w)
				unlock()
				w.policy <- struct{}{}
				time.Sleep(30 * time.Second)
				synctest.Wait()
				if n := w.calls["load"]; n > 2 || w.log.count("cannot put back the policy of a.service") != 1 {
					t.Errorf("%d loads\n%s", n, w.log.String())
				}
				s := status(t, l, "a")
				if s.Verdict.Answer == attach.Confined || !slices.Contains(codes(s.Notes), attach.ProfileNotLoaded) || s.Held != nil {
					t.Errorf("%+v", s)
				}
				if u := w.units["a.service"]; u.running == tt.stop {
					t.Errorf("OnViolation=stop %v, running %v\n%s", tt.stop, u.running, w.log.String())
				}
				unlock = w.lock()
				w.full = false
				unlock()
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				rest()
				if w.kernel["a"] != "1" || !tt.stop && answer(l, "a") != "confined" {
					t.Errorf("%q %s", w.kernel, answer(l, "a"))
				}
			})
		})
	}
}

// exitOf is what status and explain exit with for the only pattern there is.
func exitOf(l *Loop) attach.Exit {
	r, _ := l.known(nil)
	if len(r.Patterns) != 1 {
		return attach.ExitFailed
	}
	s := r.Patterns[0]
	return attach.Explain(attach.CaseReport{Host: r.Host}, attach.Case{Unit: s.Unit, Status: &s}).Exit
}

// exitAmid is exitOf where it is asked amid a call of the world, which is locked then.
func (w *world) exitAmid(l *Loop) attach.Exit {
	w.mu.Unlock()
	defer w.mu.Lock()
	return exitOf(l)
}

// A template's policy that cannot be put back is told until it is, also while that is
// tried once more.
func TestAPatternWhosePolicyCannotBePutBack(t *testing.T) {
	for name, do := range map[string]func(w *world){
		"replaced": func(w *world) { w.replace("w", "evil") },
		"removed":  func(w *world) { w.remove("w") },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.files["w"] = "1"
			w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "w" })
			w.run(t, func(l *Loop) {
				if got := exitOf(l); got != attach.ExitOK {
					t.Fatalf("exit %d at first: %+v", got, l.Status(nil))
				}
				unlock := w.lock()
				w.full = true
				do(w)
				unlock()
				w.policy <- struct{}{}
				time.Sleep(30 * time.Second)
				synctest.Wait()
				var again []attach.Exit // when it is tried once more
				unlock = w.lock()
				w.onCall = func(call string) {
					if call == "load 1" {
						again = append(again, w.exitAmid(l))
					}
				}
				unlock()
				for range 90 {
					if got := exitOf(l); got != attach.ExitNotConfined {
						t.Fatalf("exit %d: %+v", got, l.Status(nil))
					}
					time.Sleep(time.Second)
					synctest.Wait()
				}
				s := l.Status(nil).Patterns[0]
				if !slices.Contains(codes(s.Refused), attach.ProfileNotLoaded) || s.Held != nil || s.DropIn == "" {
					t.Errorf("%+v", s)
				}
				unlock = w.lock()
				w.full = false
				unlock()
				time.Sleep(2 * time.Minute)
				rest()
				if got := exitOf(l); got != attach.ExitOK || w.kernel["w"] != "1" || len(l.Status(nil).Patterns[0].Refused) != 0 {
					t.Errorf("exit %d after all: %q %+v", got, w.kernel, l.Status(nil))
				}
				if len(again) < 2 || slices.ContainsFunc(again, func(e attach.Exit) bool { return e != attach.ExitNotConfined }) {
					t.Errorf("while it is tried once more: %v", again)
				}
			})
		})
	}
}

// Nobody is told that units of a template start under the profile before its drop-in
// is there, nor that they do not, before aaunitd has come to it.
func TestAPatternThatNoPassHasComeTo(t *testing.T) {
	w := newWorld()
	w.files["w"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "w" })
	var seen []attach.Exit
	w.onCall = func(call string) {
		if strings.HasPrefix(call, "load") || strings.HasPrefix(call, "write") {
			seen = append(seen, w.exitAmid(w.daemon))
		}
	}
	l := w.loop()
	l.declare(t.Context())
	if got := exitOf(l); got != attach.ExitUnknown {
		t.Errorf("exit %d before the first pass", got)
	}
	w.run(t, func(l *Loop) {
		if !slices.Equal(seen, []attach.Exit{attach.ExitUnknown, attach.ExitUnknown}) || exitOf(l) != attach.ExitOK {
			t.Errorf("in the pass %v, after it %d", seen, exitOf(l))
		}
	})
	// The next daemon does not know yet whether it is still there.
	l = w.loop()
	for _, r := range w.records {
		l.put(r)
	}
	l.declare(t.Context())
	if got := exitOf(l); got != attach.ExitUnknown {
		t.Errorf("exit %d before the first pass of the next daemon", got)
	}
}

// A text that somebody loads while nothing can be put on disk is not accepted, and is
// not asked about for ever.
func TestPolicyThatIsNotKeptWhenTheUnitStarts(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
	w.run(t, func(l *Loop) {
		unlock := w.lock()
		w.diskFull, w.files["a"], w.kernel["a"] = true, "2", "2"
		u := w.units["a.service"]
		w.begin(u)
		unlock()
		w.trigger()
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if u.running || l.Metrics().Passes.Count > 10 {
			t.Errorf("running %v, %d passes\n%s", u.running, l.Metrics().Passes.Count, w.log.String())
		}
	})
}

// A unit that starts while another one settles is looked at, though it is due for a plan
// since systemd has read its files again.
func TestAStartDuringAPassIsLookedAtOnce(t *testing.T) {
	for _, asked := range []bool{false, true} {
		for _, left := range []bool{false, true} {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
			u := w.units["a.service"]
			w.addUnit("slow.service")
			w.files["b"] = "1"
			w.run(t, func(l *Loop) {
				slow := attach.NewAttachment()
				slow.Source, slow.Units, slow.Profile, slow.Settle = "/etc/aaunit/attachments.d/slow.conf", []string{"slow.service"}, "b", time.Hour
				unlock := w.lock()
				w.att[slow.Source] = slow
				unlock()
				if asked {
					go func() { _, _ = l.Apply(context.Background(), attach.Request{Units: []string{slow.Source}}, nil) }()
				} else {
					w.tellFiles()
				}
				time.Sleep(time.Minute)
				synctest.Wait()
				unlock = w.lock()
				_ = w.begin(u)
				if left {
					u.label = "unconfined"
				}
				started := fmt.Sprintf("a.service-%d", u.start)
				unlock()
				time.Sleep(time.Second)
				synctest.Wait()
				if !l.isPassing() || !l.queue.isBusy("a.service") {
					t.Fatalf("asked %v: the pass is over, or a.service is not due any more", asked)
				}
				unlock = w.lock()
				v := w.records["a.service"].Verdict
				if v.InvocationID != started || (v.Answer == attach.Confined) == left || u.running == left {
					t.Errorf("asked %v, left %v: %+v, running %v", asked, left, v, u.running)
				}
				unlock()
				time.Sleep(time.Hour)
				rest()
				if answer(l, "slow") != "confined" || l.queue.isBusy("a.service") {
					t.Errorf("asked %v, left %v: in the end slow.service is %s", asked, left, answer(l, "slow"))
				}
			})
		}
	}
}

// Who does to a policy what the loop has just undone, or has just replaced, does it a
// second time: that is named and mended as the first time.
func TestTheSameChangeOfPolicyASecondTime(t *testing.T) {
	t.Run("after a pass", func(t *testing.T) {
		w := attached(nil, "a")
		w.tells = true
		w.run(t, func(l *Loop) {
			trample := func() {
				defer w.lock()()
				w.replace("a", "evil")
				w.tellPolicy()
			}
			unlock := w.lock()
			w.onCall = func(call string) {
				if call == "load 1" {
					w.onCall = nil
					time.AfterFunc(burst/2, trample) // the loop is told of its own load, and has not come to it
				}
			}
			unlock()
			trample()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			if n := w.log.count("put back the policy of a.service"); n != 2 || answer(l, "a") != "confined" {
				t.Errorf("put back %d times, %s", n, answer(l, "a"))
			}
			w.still(t, "a policy that was put back twice")
		})
	})
	t.Run("during a pass", func(t *testing.T) {
		w := attached(nil, "a")
		w.tells = true
		w.addUnit("slow.service")
		w.files["b"] = "1"
		w.run(t, func(l *Loop) {
			w.policy <- struct{}{} // how things are is known
			time.Sleep(time.Minute)
			unlock := w.lock()
			w.files["a"] = "2"
			w.tellPolicy()
			unlock()
			w.declareUnit("/etc/aaunit/attachments.d/slow.conf", "slow.service", func(a *attach.Attachment) { a.Profile, a.Settle = "b", time.Hour })
			time.Sleep(time.Minute)
			synctest.Wait()
			unlock = w.lock()
			if w.kernel["a"] != "2" || !l.isPassing() {
				t.Errorf("%q", w.trace)
			}
			w.replace("a", "1") // as it was
			w.tellPolicy()
			unlock()
			time.Sleep(time.Second)
			synctest.Wait()
			if n := w.log.count("a.service is not-confined"); n != 1 || answer(l, "a") != "not-confined" {
				t.Errorf("named %d times, %s", n, answer(l, "a"))
			}
			time.Sleep(time.Hour)
			w.still(t, "a policy that was put back after a pass")
			unlock = w.lock()
			defer unlock()
			if w.kernel["a"] != "2" {
				t.Errorf("%q", w.kernel)
			}
		})
	})
}
