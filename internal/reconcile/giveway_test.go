package reconcile

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Somebody stops a unit while it is restarted for an attach: it stays stopped, and what
// was changed for it stays in place for its next start.
func TestAStopByHandDuringARestartIsRespected(t *testing.T) {
	for _, c := range []struct {
		name string
		do   func(w *world, u *unit)
		// undone: it failed as well.
		undone bool
	}{
		{"at once", func(w *world, u *unit) { u.running = false }, false},
		{"slowly", func(w *world, u *unit) {
			u.stopping = true
			time.AfterFunc(7*time.Second, func() {
				defer w.lock()()
				u.running, u.stopping = false, false
				w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
			})
		}, false},
		{"and it fails", func(w *world, u *unit) { u.running, u.failed = false, true }, true},
	} {
		for _, former := range []string{"", "a"} {
			t.Run(c.name+" "+former, func(t *testing.T) {
				w, u := changing(t, nil)
				u.breaks["b"] = false
				if former == "" {
					delete(w.att, fileA)
				}
				w.run(t, func(l *Loop) {
					start := u.start
					w.mu.Lock()
					w.overtake = func(u *unit) { c.do(w, u) }
					w.mu.Unlock()
					w.declareUnit(fileA, "a.service", toB(nil))
					w.still(t, c.name)
					s := status(t, l, "a")
					if u.running || u.start != start || (s.Held != nil) != c.undone {
						t.Errorf("%+v, %+v, %q", u, s, w.trace)
					}
					if c.undone {
						if strings.Contains(w.read[dropIn], "AppArmorProfile=b") {
							t.Errorf("%q", w.read)
						}
						return
					}
					if !strings.Contains(w.read[dropIn], "AppArmorProfile=b\n") || len(s.Refused) > 0 {
						t.Errorf("%q, %+v", w.read, s)
					}
					if v := s.Verdict; v == nil || v.Answer != attach.Unknown || !slices.ContainsFunc(v.Reasons, func(r attach.Reason) bool { return r.Code == attach.NotRunning }) {
						t.Errorf("%+v", v)
					}
					w.mu.Lock()
					_ = w.begin(u)
					w.mu.Unlock()
					w.still(t, "it is started")
					if answer(l, "a") != "confined" || u.label != "b (enforce)" {
						t.Errorf("%s, %+v", answer(l, "a"), u)
					}
				})
			})
		}
	}
}

// What took the place of the restart may be a start by somebody else, which serves as
// well, or nothing at all: then the unit runs as before, and nothing is taken back.
func TestARestartThatSomebodyElseTakesOver(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.overtake = func(u *unit) { _ = w.begin(u) }
		w.mu.Unlock()
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]
		if out.Exit != attach.ExitOK || u.start != 2 || u.label != "a (enforce)" {
			t.Errorf("started: %+v, %+v", out, u)
		}
		w.still(t, "it was started by somebody else")
	})
	w = newWorld()
	u = w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.overtake = func(u *unit) {}
		w.mu.Unlock()
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]
		if out.Exit != attach.ExitNotConfined || out.Undone || u.start != 1 || w.read[dropIn] == "" {
			t.Errorf("only canceled: %+v, %+v, %q", out, u, w.read)
		}
	})
}

// A detach goes on, too, when somebody stops the unit that it restarts.
func TestAStopByHandDuringADetach(t *testing.T) {
	w := attached(nil, "a")
	u := w.units["a.service"]
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.overtake = func(u *unit) { u.running = false }
		w.mu.Unlock()
		w.undeclare(fileA)
		w.still(t, "a detach")
		if u.running || len(w.records)+len(w.disk)+len(w.kernel) > 0 {
			t.Errorf("%+v, %+v %q %q", u, w.records, w.disk, w.kernel)
		}
	})
}

// It stays so, too, where the profile cannot be unloaded yet and the detach is gone on with
// later: by another pass, or by the next daemon.
func TestAStopByHandDuringADetachThatGoesOnLater(t *testing.T) {
	for _, c := range []struct {
		byPath bool // the unit is stopped and started, and not restarted
		fails  bool // at that stop
		killed bool // the daemon, once that is on record
	}{{}, {byPath: true}, {byPath: true, fails: true}, {fails: true}, {byPath: true, killed: true}} {
		w := attached(nil, "a")
		u, with := w.units["a.service"], w.addUnit("with.service")
		u.drags = []string{"with.service"}
		if c.byPath {
			w.byPath = map[string]bool{"a": true}
		}
		w.run(t, func(*Loop) {
			rest()
			unlock := w.lock()
			w.starting = true
			w.overtake = func(u *unit) {
				u.running, u.failed, with.running = false, c.fails, false
				saved := false // that is on record
				w.onStep = func(string) bool {
					kill := c.killed && saved
					saved = true
					return kill
				}
			}
			unlock()
			w.undeclare(fileA)
			letPass(4 * unloadLater)
			if r := w.record("a.service"); u.running || with.running || r.Stopped || len(r.Dragged) > 0 || w.dead != c.killed {
				t.Errorf("%+v: %+v %+v %q", c, u, r, w.trace)
			}
		})
		w.dead, w.onStep, w.starting = false, nil, false
		w.run(t, func(*Loop) {
			letPass(2 * unloadLater)
			rest()
			if u.running || with.running || len(w.records)+len(w.kernel) > 0 {
				t.Errorf("%+v, in the end: %+v %+v %+v %q", c, u, with, w.records, w.trace)
			}
		})
	}
}
