package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// An undo brings back what went down with the unit, and nothing that was down before.
func TestAnUndoStartsWhatWentDownWithTheUnit(t *testing.T) {
	for _, c := range []struct {
		name  string
		fails func(u *unit)
		text  bool // the unit is attached, and fails under another text
		stays bool // what went down does not start any more
	}{
		{name: "its restart fails", fails: func(u *unit) { u.breaks["a"] = true }},
		{name: "it ends over and over", fails: func(u *unit) { u.crashLoop = true }},
		{name: "systemd is about to start it again", fails: func(u *unit) { u.crashLoop, u.rests = true, true }},
		{name: "under another text, systemd is about to start it again", fails: func(u *unit) { u.rests = true }, text: true},
		{name: "what went down does not start", fails: func(u *unit) { u.breaks["a"] = true }, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			if c.text {
				w = attached(nil, "a")
			} else {
				w.addUnit("a.service")
			}
			u, with, idle := w.units["a.service"], w.addUnit("with.service"), w.addUnit("idle.service")
			up := w.addUnit("up.service")
			idle.running = false
			w.run(t, func(l *Loop) {
				w.mu.Lock()
				u.drags = []string{"with.service", "idle.service", "up.service"}
				c.fails(u)
				w.deadly = map[string]string{"2": "restarts"}
				w.onCall = func(call string) {
					if call == "restart a.service" {
						with.breaks[""] = c.stays
					}
					if call == "stop a.service" || call == "restart a.service" {
						u.drags = u.drags[:2] // and up.service stays up
					}
				}
				w.mu.Unlock()
				if c.text {
					w.edit("2")
				} else {
					w.declareUnit(fileA, "a.service", nil)
				}
				rest()
				s := status(t, l, "a")
				if up.start > 1 || slices.Contains(w.trace, "start up.service") {
					t.Errorf("%+v %q", up, w.trace)
				}
				if s.Held == nil || !u.running || u.between || with.running == c.stays || idle.running {
					t.Errorf("%+v: %+v %+v %+v %q", s.Held, u, with, idle, w.trace)
				}
				if told := w.log.count("with.service was stopped with a.service and does not start again") > 0; told != c.stays {
					t.Errorf("told: %v", told)
				}
			})
		})
	}
}

// waiting is a unit that is down: its attach failed, and a profile that a start would put
// on stays loaded as long as something is starting. What went down with it is with.service.
func waiting() (w *world, u, with *unit) {
	w = newWorld()
	w.byPath = map[string]bool{"a": true}
	w.starting = true
	u, with = w.addUnit("a.service"), w.addUnit("with.service")
	w.files["b"] = "1"
	u.drags, u.breaks["a"] = []string{"with.service"}, true
	w.declareUnit(fileOf("a.service"), "a.service", func(a *attach.Attachment) { a.Manual = true })
	return w, u, with
}

// A unit that is down for what an undo could not unload is not forgotten where the next
// attempt does not come as far as its start.
func TestAWaitingUnitOutlivesTheNextAttempt(t *testing.T) {
	for _, c := range []struct {
		name  string
		trips func(w *world) // what is in the way of the next attempt
		other bool           // it is one with another profile
		asked bool           // by a command
		gone  bool           // the profile can be unloaded by then
		none  bool           // the first was by a command, too, and is withdrawn; so is the next
	}{
		{name: "no room", trips: func(w *world) { w.noRoom = func(int) bool { return true } }},
		{name: "no room, and the profile can go", trips: func(w *world) { w.noRoom = func(int) bool { return true } }, gone: true},
		{name: "nothing is loaded", trips: func(w *world) { w.full = true }},
		{name: "no reload", trips: func(w *world) { w.deaf = true }},
		{name: "no reload, and the profile can go", trips: func(w *world) { w.deaf = true }, gone: true},
		{name: "no reload, another profile", trips: func(w *world) { w.deaf = true }, other: true},
		{name: "no reload, another profile, and the first can go", trips: func(w *world) { w.deaf = true }, other: true, gone: true},
		{name: "no reload, asked for", trips: func(w *world) { w.deaf = true }, asked: true},
		{name: "no room, withdrawn", trips: func(w *world) { w.noRoom = func(int) bool { return true } }, none: true},
		{name: "nothing is loaded, withdrawn", trips: func(w *world) { w.full = true }, none: true},
		{name: "no reload, withdrawn", trips: func(w *world) { w.deaf = true }, none: true},
		{name: "no reload, withdrawn, another profile", trips: func(w *world) { w.deaf = true }, none: true, other: true},
		{name: "it breaks it again, withdrawn", trips: func(*world) {}, none: true},
		{name: "no reload, withdrawn, and the profile can go", trips: func(w *world) { w.deaf = true }, none: true, gone: true},
		{name: "another profile breaks it", trips: func(w *world) { w.units["a.service"].breaks["b"] = true }, other: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, u, with := waiting()
			record := func(l *Loop) attach.Record { // which may not be on disk
				l.mu.Lock()
				defer l.mu.Unlock()
				return l.records["a.service"]
			}
			if c.none {
				delete(w.att, fileOf("a.service"))
			}
			w.run(t, func(l *Loop) {
				if c.none {
					attachUnits(t, l, attach.Request{Units: []string{"a"}})
				}
				rest()
				if r := w.record("a.service"); u.running || with.running || !r.Stopped {
					t.Fatalf("%+v %+v %q", u, r, w.trace)
				}
				w.mu.Lock()
				c.trips(w)
				w.starting = !c.gone
				w.mu.Unlock()
				switch {
				case c.none && !c.other:
					attachUnits(t, l, attach.Request{Units: []string{"a"}})
				case c.asked, c.none:
					attachUnits(t, l, attach.Request{Units: []string{"a"}, Profile: "b"})
				case c.other:
					w.declareUnit(fileOf("a.service"), "a.service", toB(nil))
				default:
					w.edit("2")
				}
				rest()
				if r := record(l); u.running != c.gone || with.running != c.gone || r.Stopped == c.gone || u.label != "unconfined" && c.gone {
					t.Errorf("after the next attempt: %+v %+v %+v %q", u, with, r, w.trace)
				}
				w.mu.Lock()
				w.starting = false
				w.mu.Unlock()
				letPass(2 * unloadLater)
				rest()
				if r := record(l); !u.running || u.label != "unconfined" || !with.running || r.Stopped || len(r.Dragged) > 0 {
					t.Errorf("in the end: %+v %+v %+v %q", u, with, r, w.trace)
				}
			})
		})
	}
}

// The start that the next attempt gives it is judged as a restart is: where it does not come
// up confined, that attempt has failed, too, and no profile is taken for one that was taken off.
func TestAWaitingUnitThatDoesNotComeUpConfined(t *testing.T) {
	for _, free := range []bool{false, true} {
		w, u, with := waiting()
		w.run(t, func(l *Loop) {
			rest()
			unlock := w.lock()
			clear(u.breaks)
			u.moves = map[string]string{"a": "other"}
			w.starting = !free
			done := len(w.trace)
			unlock()
			w.edit("2")
			rest()
			if r := w.record("a.service"); u.running != free || with.running != free || r.Stopped == free || !heldAtAttach(r) || len(r.DropIns) > 0 || w.called("restart") != 1 {
				t.Errorf("free %v: %+v %+v %+v %q", free, u, with, r, w.trace[done:])
			}
			unlock = w.lock()
			w.starting = false
			unlock()
			letPass(2 * unloadLater)
			w.still(t, "in the end")
			if s := status(t, l, "a"); !u.running || u.label != "unconfined" || !with.running || s.Held == nil || answer(l, "a") != "not-confined" {
				t.Errorf("free %v, in the end: %+v %+v held %+v, %q", free, u, with, s.Held, w.trace[done:])
			}
		})
	}
}

// Nor is it, with what went down with it, where the daemon is killed on its way with the
// next attempt, or with its start when the profile has gone.
func TestAWaitingUnitOutlivesAKill(t *testing.T) {
	for _, mended := range []bool{true, false} {
		for kill := 1; ; kill++ {
			w, u, with := waiting()
			var steps []string
			w.run(t, func(*Loop) {
				rest()
				w.mu.Lock()
				w.starting = false
				w.onStep = func(step string) bool {
					steps = append(steps, step)
					return len(steps) == kill
				}
				if mended {
					clear(u.breaks)
				}
				w.mu.Unlock()
				if mended {
					w.edit("2")
				}
				letPass(2 * unloadLater)
				rest()
			})
			killed := w.dead
			w.dead, w.onStep = false, nil
			w.run(t, func(l *Loop) {
				rest()
				if !u.running || !with.running {
					t.Errorf("killed before %q: %+v %+v %+v", steps[len(steps)-1], u, with, w.record("a.service"))
				}
			})
			if !killed {
				break
			}
		}
	}
}

// What went down with a unit whose restart failed is started by the next daemon too, where
// the first one is killed when the unit is up again: by itself, or by systemd.
func TestWhatWentDownIsStartedAfterAKill(t *testing.T) {
	for _, c := range []struct {
		name   string
		change bool // the unit is attached, and what fails is a change
		mended bool // it works by then
		itself bool // systemd has brought the unit up, and not the undo
	}{
		{name: "an attach"},
		{name: "an attach, mended", mended: true},
		{name: "an attach, and systemd starts it", mended: true, itself: true},
		{name: "a change", change: true},
		{name: "a change, mended", change: true, mended: true},
		{name: "a change, and systemd starts it", change: true, mended: true, itself: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, profile := newWorld(), "a"
			if c.change {
				w, profile = attached(nil, "a"), "b"
			} else {
				w.addUnit("a.service")
			}
			u, with := w.units["a.service"], w.addUnit("with.service")
			w.files["b"] = "1"
			u.drags, u.breaks[profile] = []string{"with.service"}, true
			w.run(t, func(*Loop) {
				rest()
				w.mu.Lock()
				w.onStep = func(step string) bool { return step == "start with.service" || c.itself && u.failed }
				w.mu.Unlock()
				w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile = profile })
				rest()
				w.mu.Lock()
				if c.mended {
					clear(u.breaks)
				}
				if c.itself {
					_ = w.begin(u)
				}
				w.mu.Unlock()
			})
			if !w.dead || !u.running || with.running {
				t.Fatalf("%+v %+v %q", u, with, w.trace)
			}
			w.dead, w.onStep = false, nil
			w.run(t, func(*Loop) {
				rest()
				if r := w.record("a.service"); !u.running || !with.running || r.Stopped || len(r.Dragged) > 0 {
					t.Errorf("%+v %+v %+v %q", u, with, r, w.trace)
				}
			})
		})
	}
}

// What somebody has stopped stays down where a change has not come to its restart: nothing
// went down with the unit.
func TestAChangeWithoutARestartStartsNothing(t *testing.T) {
	t.Run("its policy cannot be put back", func(t *testing.T) {
		w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
		w.tells = true
		u, with := w.units["a.service"], w.addUnit("with.service")
		u.drags = []string{"with.service"}
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
			restarts := w.called("restart")
			w.declareUnit(fileA, "a.service", nil)
			rest()
			if r := w.record("a.service"); r.Former == nil || w.called("restart") != restarts {
				t.Fatalf("%+v %q", r, w.trace)
			}
			for range 2 {
				unlock = w.lock()
				with.running = false
				unlock()
				time.Sleep(time.Minute)
				w.trigger()
				rest()
				if r := w.record("a.service"); with.running || len(r.Dragged) > 0 {
					t.Errorf("%+v %+v %q", with, r, w.trace)
				}
			}
		})
	})
	for _, change := range []bool{false, true} {
		t.Run(fmt.Sprintf("the daemon is killed before, change %v", change), func(t *testing.T) {
			w, profile := newWorld(), "a"
			if change {
				w, profile = attached(nil, "a"), "b"
			} else {
				w.addUnit("a.service")
			}
			u, with := w.units["a.service"], w.addUnit("with.service")
			u.drags = []string{"with.service"}
			w.files["b"] = "1"
			w.run(t, func(*Loop) {
				w.mu.Lock()
				w.onStep = func(step string) bool { return step == "reload" }
				w.mu.Unlock()
				w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile, a.RestartUnit = profile, false })
				rest()
			})
			if !w.dead || len(w.record("a.service").DropIns) == 0 {
				t.Fatalf("%+v %q", w.record("a.service"), w.trace)
			}
			w.dead, w.onStep, with.running = false, nil, false
			w.run(t, func(*Loop) {
				rest()
				if with.running || !u.running {
					t.Errorf("%+v %+v %q", u, with, w.trace)
				}
			})
		})
	}
}

// The end of the daemon while it starts units is no reason to leave them down.
func TestWhatTheDaemonsEndCutsOffIsStartedByTheNext(t *testing.T) {
	for _, hangs := range []string{"a.service", "with.service"} {
		for _, detach := range []bool{false, true} {
			w, u, with := waiting()
			w.run(t, func(*Loop) {
				rest()
				w.mu.Lock()
				w.starting, w.units[hangs].hangs = false, true
				w.mu.Unlock()
				if detach {
					w.undeclare(fileOf("a.service"))
				}
				letPass(2 * unloadLater)
				if with.running || u.running != (hangs != "a.service") {
					t.Fatalf("%+v %+v %q", u, with, w.trace)
				}
			})
			w.units[hangs].hangs = false
			w.run(t, func(*Loop) {
				rest()
				r := w.record("a.service")
				if !u.running || !with.running || u.label != "unconfined" || r.Stopped || len(r.Dragged) > 0 {
					t.Errorf("%s, detach %v: %+v %+v %+v", hangs, detach, u, with, r)
				}
			})
		}
	}
}

// Once the attachment is taken away, a unit that is down for a profile that a task
// carries for good is told to be so, and one that somebody starts by hand runs.
func TestADetachedUnitThatWaitsMayBeStartedByHand(t *testing.T) {
	for _, c := range []struct {
		asked  bool // the attachment was made by a command, and is withdrawn
		passes bool // what keeps the profile passes by itself
	}{{}, {passes: true}, {asked: true}, {asked: true, passes: true}} {
		w, u, with := waiting()
		w.addUnit("other.service")
		w.onCall = func(call string) {
			if other := w.units["other.service"]; !c.passes && call == "restart a.service" {
				other.label, w.starting = "a (enforce)", false
			}
		}
		if c.asked {
			delete(w.att, fileOf("a.service"))
		}
		w.run(t, func(l *Loop) {
			if c.asked {
				attachUnits(t, l, attach.Request{Units: []string{"a"}})
			}
			rest()
			w.undeclare(fileOf("a.service"))
			rest()
			const text = "a.service and with.service will not be started before a is unloaded"
			s := status(t, l, "a")
			if u.running || !slices.ContainsFunc(s.Notes, func(r attach.Reason) bool { return strings.HasPrefix(r.Detail, text) }) || w.log.count(text) != 1 {
				t.Fatalf("told %d times: %+v %+v", w.log.count(text), u, s)
			}
			w.trigger()
			rest()
			if n := w.log.count(text); n != 1 {
				t.Errorf("told %d times", n)
			}
			w.mu.Lock()
			clear(u.breaks)
			starts := u.start
			_ = w.begin(u)
			w.mu.Unlock()
			letPass(4 * unloadLater)
			if n := u.start - starts; !u.running || !with.running || n > 6 {
				t.Errorf("%+v: %d starts: %+v %+v %q", c, n, u, with, w.trace)
			}
			w.mu.Lock()
			w.starting = false
			w.mu.Unlock()
			letPass(2 * unloadLater)
			if r := w.record("a.service"); !u.running || r.Unit != "" {
				t.Errorf("%+v: %+v %+v", c, u, r)
			}
		})
	}
}

// An undo does not start what went down with a unit where that is to be down itself.
func TestAnUndoLeavesDownWhatIsToBeDown(t *testing.T) {
	stop := func(a *attach.Attachment) { a.OnFailedAttach = attach.FailedStop }
	for _, c := range []struct {
		name    string
		change  func(a *attach.Attachment)
		arrange func(w *world, u, with *unit)
		up      bool // it is no concern of the undo's
	}{
		{name: "it is up with the unit", up: true},
		{name: "its own failed attach stops it", change: stop},
		{name: "it waits", arrange: func(w *world, _, _ *unit) {
			w.byPath, w.starting = map[string]bool{"with": true}, true
		}},
		{name: "it waits for a profile that a task carries for good", arrange: func(w *world, _, _ *unit) {
			w.byPath = map[string]bool{"with": true}
			w.addUnit("other.service").label = "with (enforce)"
		}},
		{name: "somebody has stopped it", arrange: func(w *world, u, with *unit) {
			with.crashLoop = false
			w.onCall = func(call string) {
				if call == "restart with.service" && !with.failed {
					w.overtake = func(u *unit) { u.running, u.failed = false, true }
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			u, with := w.addUnit("a.service"), w.addUnit("with.service")
			u.drags, u.crashLoop, u.elsewhere, with.crashLoop = []string{"with.service"}, true, true, true
			if c.arrange != nil {
				c.arrange(w, u, with)
			}
			w.declareUnit(fileA, "a.service", nil)
			w.declareUnit(fileOf("with.service"), "with.service", c.change)
			w.run(t, func(l *Loop) {
				rest()
				if status(t, l, "a").Held == nil || !u.running || status(t, l, "with").Held == nil || with.running != c.up {
					t.Errorf("%+v %+v %q", u, with, w.trace)
				}
				letPass(4 * unloadLater)
				if !u.running || with.running != c.up {
					t.Errorf("later: %+v %+v %q", u, with, w.trace)
				}
			})
		})
	}
}

// Nor does the end of a wait.
func TestTheEndOfAWaitLeavesDownWhatStillWaits(t *testing.T) {
	for _, asked := range []bool{false, true} {
		w := newWorld()
		u, with, other := w.addUnit("a.service"), w.addUnit("with.service"), w.addUnit("other.service")
		w.byPath, w.starting = map[string]bool{"a": true, "with": true}, true
		u.drags, u.elsewhere, u.crashLoop, with.crashLoop = []string{"with.service"}, true, true, true
		w.run(t, func(l *Loop) {
			if asked {
				attachUnits(t, l, attach.Request{Units: []string{"a", "with"}})
			} else {
				w.declareUnit(fileA, "a.service", nil)
				w.declareUnit(fileOf("with.service"), "with.service", nil)
			}
			rest()
			if u.running || with.running {
				t.Fatalf("%+v %+v %q", u, with, w.trace)
			}
			w.mu.Lock()
			w.starting, other.label = false, "with (enforce)"
			w.mu.Unlock()
			letPass(4 * unloadLater)
			if !u.running || with.running {
				t.Errorf("asked %v: %+v %+v %+v %q", asked, u, with, w.record("with.service"), w.trace)
			}
			w.mu.Lock()
			other.running = false
			w.mu.Unlock()
			w.trigger()
			rest()
			if !with.running || with.label != "unconfined" {
				t.Errorf("asked %v, in the end: %+v %+v %q", asked, with, w.record("with.service"), w.trace)
			}
		})
	}
}

// Nor does it start what the undo had left down for another reason, or somebody has
// stopped; that is not said to wait, either.
func TestTheEndOfAWaitLeavesDownWhatIsToBeDown(t *testing.T) {
	for _, c := range []struct {
		name  string
		stops bool // its own failed attach stops it; else somebody has
		asked bool // the attachments are made by a command, and withdrawn
		ends  func(t *testing.T, w *world, l *Loop)
	}{
		{name: "stopped by its failed attach", stops: true},
		{name: "stopped by somebody"},
		{name: "stopped by somebody, asked for", asked: true},
		{name: "stopped by its failed attach, and the unit is started by hand", stops: true, ends: func(_ *testing.T, w *world, _ *Loop) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.units["a.service"].crashLoop = false
			_ = w.begin(w.units["a.service"])
		}},
		{name: "stopped by its failed attach, and that of the unit is tried again", stops: true, ends: func(t *testing.T, w *world, l *Loop) {
			w.mu.Lock()
			w.units["a.service"].crashLoop = false
			w.mu.Unlock()
			attachUnits(t, l, attach.Request{Units: []string{"a"}})
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			u, with := w.addUnit("a.service"), w.addUnit("with.service")
			w.addUnit("late.service")
			w.byPath, w.starting = map[string]bool{"a": true}, true
			u.drags, u.crashLoop, with.elsewhere, with.crashLoop = []string{"with.service", "late.service"}, true, true, c.stops
			w.onCall = func(call string) {
				if call == "restart with.service" && !c.stops && !with.failed {
					w.overtake = func(u *unit) { u.running, u.failed = false, true }
				}
			}
			w.run(t, func(l *Loop) {
				if c.asked {
					out := attachUnits(t, l, attach.Request{Units: []string{"a", "with"}})
					if !slices.ContainsFunc(out[0].Notes, func(r attach.Reason) bool {
						return strings.HasPrefix(r.Detail, "a.service and late.service will not be started before a is unloaded")
					}) {
						t.Errorf("%+v", out)
					}
				} else {
					w.declareUnit(fileOf("a.service"), "a.service", func(a *attach.Attachment) { a.Manual = true })
					w.declareUnit(fileOf("with.service"), "with.service", func(a *attach.Attachment) {
						if c.stops {
							a.OnFailedAttach = attach.FailedStop
						}
					})
				}
				rest()
				if r := w.record("a.service"); u.running || with.running || !r.Stopped {
					t.Fatalf("%+v %+v %+v %q", u, with, r, w.trace)
				}
				if c.ends != nil {
					c.ends(t, w, l)
					rest()
				}
				w.mu.Lock()
				w.starting = false
				w.mu.Unlock()
				letPass(4 * unloadLater)
				if late := w.units["late.service"]; !u.running || !late.running || with.running {
					t.Errorf("%+v %+v %+v %q", u, with, late, w.trace)
				}
			})
		})
	}
}

// A unit that waits and that somebody starts by hand waits no more: when somebody stops it,
// or what came up with it, that stays down.
func TestWhatIsStartedByHandWaitsNoMore(t *testing.T) {
	for _, c := range []struct {
		name  string
		asked bool // the attachment is made by a command, and withdrawn
		both  bool // the unit is stopped, and not only what came up with it
	}{
		{name: "held", both: true},
		{name: "held, what came up with it"},
		{name: "withdrawn", asked: true, both: true},
		{name: "withdrawn, what came up with it", asked: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w, u, with := waiting()
			if c.asked {
				delete(w.att, fileOf("a.service"))
			}
			w.run(t, func(l *Loop) {
				if c.asked {
					attachUnits(t, l, attach.Request{Units: []string{"a"}})
				}
				rest()
				w.mu.Lock()
				if u.running || with.running || !w.records["a.service"].Stopped {
					t.Fatalf("%+v %+v %+v", u, with, w.records["a.service"])
				}
				clear(u.breaks)
				_ = w.begin(u)
				w.mu.Unlock()
				letPass(2 * unloadLater)
				if r := w.record("a.service"); !u.running || !with.running || r.Stopped || len(r.Dragged) > 0 {
					t.Errorf("started: %+v %+v %+v %q", u, with, r, w.trace)
				}
				w.mu.Lock()
				with.running = false
				if c.both {
					u.running = false
					w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: "a.service"}
				}
				w.mu.Unlock()
				letPass(2 * unloadLater)
				w.mu.Lock()
				w.starting = false
				w.mu.Unlock()
				letPass(2 * unloadLater)
				if u.running == c.both || with.running {
					t.Errorf("stopped: %+v %+v %+v %q", u, with, w.record("a.service"), w.trace)
				}
			})
		})
	}
}

// What aaunit had stopped to start it again is for the next boot to start, and for the
// next daemon of the same boot.
func TestABootStartsWhatIsToBeStarted(t *testing.T) {
	for _, how := range []string{"", "boot", "boot, and the policy is loaded"} {
		booted := how != ""
		w := attached(nil, "a")
		u, with := w.units["a.service"], w.addUnit("with.service")
		w.run(t, func(l *Loop) {
			l.change1("a.service", func(r *attach.Record) { r.Stopped, r.Dragged = true, []string{"with.service"} })
		})
		u.running, with.running = false, false // the daemon and the machine ended here
		switch how {
		case "boot":
			w.reboot(map[string]string{"a": "1"})
		case "boot, and the policy is loaded":
			w.reboot(map[string]string{})
			if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.records["a.service"].Boot != w.options().Boot {
				t.Fatalf("%v %+v", err, w.records)
			}
		}
		w.run(t, func(*Loop) {
			rest()
			if r := w.record("a.service"); u.running == booted || with.running == booted || r.Stopped || len(r.Dragged) > 0 {
				t.Errorf("%q: %+v %+v %+v %q", how, u, with, r, w.trace)
			}
		})
	}
}
