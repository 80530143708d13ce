package reconcile

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// letPass lets time pass, and what is under way then come to an end.
func letPass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// What an undo cannot unload, as a service is being started that may be about to carry
// it, is on record, is told, and is unloaded when that has passed. A unit that a start
// would put under the profile again is down until then.
func TestWhatAnUndoCannotUnloadIsUnloadedLater(t *testing.T) {
	for _, c := range []struct {
		name           string
		byPath, asked  bool // the attachment is made by a command, and withdrawn
		restart, again bool // of the daemon meanwhile; the attach is asked for again
		boot           bool
		detach         bool // the attachment is taken away meanwhile
	}{
		{name: "declared"},
		{name: "asked for", asked: true},
		{name: "declared, by path", byPath: true},
		{name: "asked for, by path", byPath: true, asked: true},
		{name: "by path, the daemon is restarted", byPath: true, restart: true},
		{name: "asked for by path, the daemon is restarted", byPath: true, asked: true, restart: true},
		{name: "by path, taken away meanwhile", byPath: true, detach: true},
		{name: "by path, asked for again", byPath: true, again: true},
		{name: "asked for by path, and again", byPath: true, asked: true, again: true},
		{name: "the machine is booted", boot: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			u.breaks["a"] = true
			if c.byPath {
				w.byPath = map[string]bool{"a": true}
				w.addUnit("dragged.service")
				u.drags = []string{"dragged.service"}
			}
			w.starting = true
			stays := func(l *Loop) {
				t.Helper()
				if _, loaded := w.kernel["a"]; !loaded || u.running == c.byPath || u.label != "unconfined" && u.running {
					t.Errorf("%+v %q %q", u, w.kernel, w.trace)
				}
				if r := w.record("a.service"); !slices.Equal(r.Loaded, []string{"a"}) || r.Stopped != c.byPath {
					t.Errorf("%+v", r)
				}
				if s := l.Status([]string{"a"}); len(s.Units) != 1 || !c.asked && !slices.Contains(codes(s.Units[0].Notes), attach.UnloadSkipped) {
					t.Errorf("%+v", s)
				}
			}
			free := func() {
				w.mu.Lock()
				w.starting = false
				w.mu.Unlock()
			}
			w.run(t, func(l *Loop) {
				if c.asked {
					out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
					if !out[0].Undone || !slices.Contains(codes(out[0].Notes), attach.UnloadSkipped) {
						t.Errorf("%+v", out[0])
					}
				} else {
					w.declareUnit(fileA, "a.service", nil)
				}
				rest()
				stays(l)
				w.mu.Lock()
				begun := len(w.trace)
				w.mu.Unlock()
				letPass(4 * unloadLater)
				stays(l)
				if tried := w.trace[begun:]; len(slices.DeleteFunc(tried, func(s string) bool { return strings.HasPrefix(s, "stop ") })) > 0 {
					t.Errorf("meanwhile it did %q", tried)
				}
				switch {
				case c.again:
					w.mu.Lock()
					clear(u.breaks)
					w.mu.Unlock()
					if out := attachUnits(t, l, attach.Request{Units: []string{"a"}}); out[0].Exit != attach.ExitOK || !u.running || u.label != "a (enforce)" {
						t.Errorf("%+v %+v", out[0], u)
					}
					if r := w.record("a.service"); r.Stopped || len(r.Stays)+len(r.Dragged) > 0 || !slices.Equal(r.Loaded, []string{"a"}) {
						t.Errorf("%+v", r)
					}
					if !slices.Contains(w.trace, "start dragged.service") {
						t.Errorf("%q", w.trace)
					}
					return
				case c.detach:
					w.undeclare(fileA)
					rest()
					if u.running {
						t.Errorf("%+v %q", u, w.trace)
					}
				}
				if !c.restart && !c.boot {
					free()
					letPass(2 * unloadLater)
					rest()
				}
			})
			if c.again {
				return
			}
			if c.boot {
				w.reboot(map[string]string{"a": "1"})
				free()
			}
			w.run(t, func(l *Loop) {
				if c.restart {
					stays(l)
					free()
				}
				letPass(2 * unloadLater)
				rest()
				if _, loaded := w.kernel["a"]; loaded != c.boot || !u.running {
					t.Errorf("%+v %q %q", u, w.kernel, w.trace)
				}
				l.mu.Lock()
				r := l.records["a.service"]
				l.mu.Unlock()
				if c.byPath && !slices.Contains(w.trace, "start dragged.service") {
					t.Errorf("%q", w.trace)
				}
				if r.Stopped || len(r.Loaded)+len(r.Stays)+len(r.Dragged) > 0 || (r.Unit == "") != (c.asked || c.detach) {
					t.Errorf("%+v", r)
				}
			})
		})
	}
}

// What a task carries for good is told, and is unloaded when that has ended.
func TestWhatAnUndoLeavesToATaskIsUnloadedAfterIt(t *testing.T) {
	w := newWorld()
	u, other := w.addUnit("a.service"), w.addUnit("other.service")
	u.breaks["a"] = true
	w.onCall = func(call string) {
		if call == "restart a.service" {
			other.label = "a (enforce)"
		}
	}
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		if r := w.record("a.service"); !u.running || w.kernel["a"] != "1" || !slices.Equal(r.Loaded, []string{"a"}) || !slices.Contains(codes(status(t, l, "a").Notes), attach.UnloadSkipped) {
			t.Fatalf("%+v %q %+v", r, w.kernel, status(t, l, "a").Notes)
		}
		w.mu.Lock()
		other.running = false
		w.mu.Unlock()
		letPass(DefaultRecheck)
		rest()
		if r := w.record("a.service"); len(w.kernel) > 0 || len(r.Loaded)+len(r.Stays) > 0 || r.Hold == nil {
			t.Errorf("%+v %q", r, w.kernel)
		}
	})
}

// The undo of a change to another profile leaves nothing of that one behind.
func TestAnUndoneChangeUnloadsTheOtherProfile(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.files["b"] = "1"
	u.breaks["b"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.onCall = func(call string) {
			if call == "restart a.service" && u.running { // and it carries the new one until it is restarted again
				u.breaks["b"] = false
				u.crashLoop = true
			}
		}
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile = "b" })
		rest()
		_, b := w.kernel["b"]
		if r := w.record("a.service"); b || w.kernel["a"] != "1" || len(r.Stays) > 0 || slices.Contains(r.Loaded, "b") || r.Hold == nil {
			t.Errorf("%+v %q %+v", r, w.kernel, u)
		}
	})
}

// A child of an earlier policy that could not be unloaded, as a service was being
// started, is unloaded when that has passed; so is what a detach takes back.
func TestWhatCouldNotBeUnloadedIsTriedAgain(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.starting, w.kernel["a//old"] = true, "0"
		w.mu.Unlock()
		w.tellPolicy()
		w.trigger()
		rest()
		_, there := w.kernel["a//old"]
		if !there || !slices.Contains(codes(status(t, l, "a").Notes), attach.UnloadSkipped) {
			t.Fatalf("%q %+v", w.kernel, status(t, l, "a"))
		}
		passes := l.Metrics().Passes.Count
		letPass(4 * unloadLater)
		if n := l.Metrics().Passes.Count - passes; n < 2 || n > 5 {
			t.Errorf("%d passes in %s", n, 4*unloadLater)
		}
		w.mu.Lock()
		w.starting = false
		w.mu.Unlock()
		letPass(2 * unloadLater)
		if _, there := w.kernel["a//old"]; there || answer(l, "a") != "confined" {
			t.Errorf("%q %s", w.kernel, answer(l, "a"))
		}
		w.mu.Lock()
		w.starting = true
		w.mu.Unlock()
		w.undeclare(fileA)
		letPass(unloadLater / 2)
		if w.kernel["a"] != "1" {
			t.Errorf("%q", w.kernel)
		}
		w.mu.Lock()
		w.starting = false
		w.mu.Unlock()
		letPass(2 * unloadLater)
		if len(w.kernel)+len(w.records) > 0 {
			t.Errorf("%q %+v", w.kernel, w.records)
		}
	})
}

// A unit that is detached while its profile cannot be unloaded is not started over and
// over for it.
func TestADetachThatCannotUnloadYetStartsTheUnitSeldom(t *testing.T) {
	w := attached(nil, "a")
	w.byPath = map[string]bool{"a": true}
	u := w.units["a.service"]
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.starting = true
		starts := u.start
		w.mu.Unlock()
		w.undeclare(fileA)
		letPass(4 * unloadLater)
		if n := u.start - starts; !u.running || n < 1 || n > 5 {
			t.Errorf("%d starts in %s: %+v", n, 4*unloadLater, u)
		}
		w.mu.Lock()
		w.starting = false
		w.mu.Unlock()
		letPass(2 * unloadLater)
		if !u.running || u.label != "unconfined" || len(w.kernel)+len(w.records) > 0 {
			t.Errorf("%+v %q %+v", u, w.kernel, w.records)
		}
	})
}

// OnViolation=stop does not stop a unit for a child of an earlier policy that cannot be
// unloaded since a service is being started, and stops it for one that stays for good.
func TestOnViolationStopWaitsForAnUnloadThatIsTriedAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		start bool // of the unit meanwhile
		stays bool // a task has come to carry it
	}{
		{name: "it goes"},
		{name: "it goes, and the unit is started meanwhile", start: true},
		{name: "it stays", stays: true},
		{name: "it stays, and the unit is started meanwhile", start: true, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
			u, other := w.units["a.service"], w.addUnit("other.service")
			w.run(t, func(l *Loop) {
				rest()
				w.mu.Lock()
				w.starting, w.kernel["a//old"] = true, "0"
				w.mu.Unlock()
				w.tellPolicy()
				w.trigger()
				rest()
				if c.start {
					w.mu.Lock()
					_ = w.begin(u)
					w.mu.Unlock()
				}
				passes := l.Metrics().Passes.Count
				letPass(4 * unloadLater)
				if n := l.Metrics().Passes.Count - passes; !u.running || answer(l, "a") != "not-confined" || n > 5 {
					t.Fatalf("running %v, %s, %d passes\n%s", u.running, answer(l, "a"), n, w.log.String())
				}
				w.mu.Lock()
				w.starting = false
				if c.stays {
					other.label = "a//old (enforce)"
				}
				w.mu.Unlock()
				letPass(2 * unloadLater)
				if u.running == c.stays || !c.stays && answer(l, "a") != "confined" {
					t.Errorf("running %v, %s\n%s", u.running, answer(l, "a"), w.log.String())
				}
			})
		})
	}
}

// Nor does it stop any other unit that shares the profile, whichever of them has it
// unloaded, and whether the pass that tried came to that unit or not.
func TestOnViolationStopWaitsForAnUnloadWithAllUnitsOfTheProfile(t *testing.T) {
	for _, c := range []struct {
		name  string
		one   bool // the pass is on one unit, and the other one is started then
		stays bool // a task has come to carry it
	}{
		{name: "it goes"},
		{name: "it stays", stays: true},
		{name: "it goes, and one is started", one: true},
		{name: "it stays, and one is started", one: true, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a", "b")
			a, b, other := w.units["a.service"], w.units["b.service"], w.addUnit("other.service")
			w.run(t, func(l *Loop) {
				rest()
				w.mu.Lock()
				w.starting, w.kernel["a//old"] = true, "0"
				w.mu.Unlock()
				if c.one {
					w.events <- attach.UnitEvent{Kind: attach.DropInChanged, Unit: "a.service"}
					rest()
					w.mu.Lock()
					_ = w.begin(b)
					w.mu.Unlock()
				} else {
					w.tellPolicy()
					w.trigger()
				}
				letPass(4 * unloadLater)
				if !a.running || !b.running || answer(l, "b") != "not-confined" {
					t.Fatalf("a runs %v, b runs %v, %s\n%s", a.running, b.running, answer(l, "b"), w.log.String())
				}
				w.mu.Lock()
				w.starting = false
				if c.stays {
					other.label = "a//old (enforce)"
				}
				w.mu.Unlock()
				letPass(3 * unloadLater)
				if a.running == c.stays || b.running == c.stays || !c.stays && (answer(l, "a") != "confined" || answer(l, "b") != "confined") {
					t.Errorf("a runs %v, %s, b runs %v, %s\n%s", a.running, answer(l, "a"), b.running, answer(l, "b"), w.log.String())
				}
			})
		})
	}
}
