package reconcile

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// The undo of a trial starts again what failed. What somebody has stopped meanwhile stays
// down, and what is at work, or about to stop, is not cut off.
func TestAnUndoneTrialRespectsAStop(t *testing.T) {
	for _, tt := range []struct {
		name    string
		unit    string // to which it happens; a is the one that is denied something
		waits   bool   // it has ended before, and systemd is about to start it again
		happens func(w *world, u *unit)
		runs    bool
		trace   []string // of what is done to it
	}{
		{"stopped by hand", "b", false, func(_ *world, u *unit) { u.running = false }, false, nil},
		{"itself stopped by hand", "a", false, func(_ *world, u *unit) { u.running = false }, false, nil},
		{"being stopped", "b", false, func(_ *world, u *unit) { u.stopping = true }, true, nil},
		{"a oneshot at work", "a", false, func(_ *world, u *unit) { u.oneshot = true }, true, nil},
		{"another one at work", "b", false, func(_ *world, u *unit) { u.oneshot = true }, true, nil},
		{"failed", "b", false, func(_ *world, u *unit) { u.fail(false) }, true, []string{"start b.service"}},
		{"on its way down for a failure", "b", false, func(w *world, u *unit) { w.die(u, false) }, true, []string{"start b.service"}},
		{"itself on its way down for a failure", "a", false, func(w *world, u *unit) { w.die(u, false) }, true, []string{"start a.service"}},
		{"being stopped, and failed at that", "b", false, func(w *world, u *unit) { w.die(u, true) }, false, nil},
		{"stopped by hand, and failed at that", "b", false, func(_ *world, u *unit) { u.fail(true) }, false, nil},
		{"itself stopped by hand, and failed at that", "a", false, func(_ *world, u *unit) { u.fail(true) }, false, nil},
		{"about to be started again, as before", "b", true, func(_ *world, u *unit) {}, true, nil},
		{"about to be started again", "b", false, func(_ *world, u *unit) { u.start, u.restarts, u.between = u.start+1, 1, true }, true, []string{"stop b.service", "start b.service"}},
	} {
		w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a", "b")
		w.run(t, func(l *Loop) {
			unlock := w.lock()
			w.units[tt.unit+".service"].between = tt.waits
			unlock()
			w.edit("2")
			time.Sleep(3 * time.Second)
			unlock = w.lock()
			u, done := w.units[tt.unit+".service"], len(w.trace)
			tt.happens(w, u)
			unlock()
			w.denials <- denial("a.service", "/new")
			rest()
			unlock = w.lock()
			defer unlock()
			trace := slices.DeleteFunc(slices.Clone(w.trace[done:]), func(call string) bool {
				return call != "start "+u.name && call != "stop "+u.name && call != "restart "+u.name
			})
			if w.kernel["a"] != "1" || u.running != tt.runs || !slices.Equal(trace, tt.trace) {
				t.Errorf("%s: running %v, %q, kernel %q", tt.name, u.running, trace, w.kernel)
			}
		})
	}
}

// What is on trial is the text of a profile, in whatever file it is: a package may give the
// file another name. It is gone back to the policy of the former file, which is told.
func TestATextThatMovedToAnotherFileIsUndone(t *testing.T) {
	const old, file = textA, "/etc/apparmor.d/usr.bin.a"
	for _, dies := range []bool{true, false} {
		w := attached(nil, "a", "b")
		w.addUnit("c.service")
		if dies {
			w.deadly["2"] = "dies"
		}
		w.run(t, func(l *Loop) {
			w.move()
			w.edit("2")
			time.Sleep(2 * time.Second)
			if !dies {
				w.denials <- denial("a.service", "/new")
			}
			// One that comes later is under the same policy.
			w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "a" })
			w.still(t, "the text was undone")
			check := func(what, version, file string, held bool) {
				t.Helper()
				for _, name := range []string{"a", "b", "c"} {
					s, u, r := status(t, l, name), w.units[name+".service"], w.records[name+".service"]
					if answer(l, name) != "confined" || !u.running || (s.Held != nil) != (held && name != "c") || r.Trial != nil ||
						!maps.Equal(r.Policies, map[string]string{file: file + " " + version}) {
						t.Errorf("%v, %s: %s is %s, held %+v, on record %q", dies, what, name, answer(l, name), s.Held, r.Policies)
					}
				}
				if w.kernel["a"] != version || w.log.count("the changed policy of a.service was undone") != 1 {
					t.Errorf("%v, %s: kernel %q, %q\n%s", dies, what, w.kernel, w.trace, w.log.String())
				}
			}
			check("undone", "1", old, true)
			unlock := w.lock()
			delete(w.deadly, "2")
			unlock()
			attachUnits(t, l, attach.Request{Units: []string{"a"}})
			w.still(t, "somebody asked for it")
			check("asked for", "2", file, false)
		})
	}
}

// A profile that a unit may use beside its own, and that it had not had, takes the place of
// none: there is nothing to go back to.
func TestAnotherProfileIsNoChangedPolicy(t *testing.T) {
	w := attached(nil, "a")
	w.files["b"] = "1"
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.Profile, a.AllowProfiles = "a", []string{"b"} })
		time.Sleep(2 * time.Second)
		w.denials <- denial("a.service", "/new")
		rest()
		r := w.records["a.service"]
		if s := status(t, l, "a"); s.Held != nil || answer(l, "a") != "confined" || r.Trial != nil || len(r.Policies) != 2 {
			t.Errorf("%s, held %+v, %+v", answer(l, "a"), s.Held, r)
		}
	})
}

// What mends a unit that systemd starts over and over goes live between two starts, and the
// first of them that is under it decides.
func TestATextThatMendsACrashLoop(t *testing.T) {
	begin := func(u *unit) {
		u.start, u.restarts, u.between = u.start+1, u.restarts+1, false
	}
	for _, tt := range []struct {
		name  string
		next  func(u *unit)
		stays bool
		says  string
	}{
		{"it is mended", begin, true, "a.service stayed healthy for 10 s under the changed policy"},
		{"it ends again", func(u *unit) {
			begin(u)
			u.between = true
		}, false, ""},
		{"it fails", func(u *unit) {
			begin(u)
			u.running, u.failed = false, true
		}, false, ""},
		{"systemd gives up before", func(u *unit) { u.running, u.between, u.failed = false, false, true }, true, "was not started within 10 s"},
		{"systemd takes its time", func(u *unit) {}, true, "was not started within 10 s"},
	} {
		for _, ask := range []bool{false, true} {
			w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a")
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				u := w.units["a.service"]
				u.between, u.restarts = true, 7
				unlock()
				time.AfterFunc(5*time.Second, func() {
					defer w.lock()()
					tt.next(u)
				})
				if ask {
					unlock = w.lock()
					w.files["a"] = "2"
					unlock()
					out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
					if e := out[0].Events; tt.says != "" && !slices.ContainsFunc(e, func(e attach.Event) bool { return strings.Contains(e.Text, tt.says) }) {
						t.Errorf("%s: %+v", tt.name, e)
					}
				} else {
					w.edit("2")
				}
				rest()
				s := status(t, l, "a")
				unlock = w.lock()
				defer unlock()
				if (w.kernel["a"] == "2") != tt.stays || (s.Held == nil) != tt.stays || w.records["a.service"].Trial != nil {
					t.Errorf("%s, asked for %v: held %+v, kernel %q, %q", tt.name, ask, s.Held, w.kernel, w.trace)
				}
			})
		}
	}
}

// A package loads a text by itself, and the daemon comes to it a moment later. What the unit
// did until then counts, if it did it by itself.
func TestWhatAUnitDidUnderATextThatOthersHaveLoaded(t *testing.T) {
	down := func(u *unit) { u.running = false }
	for _, tt := range []struct {
		name   string
		before func(u *unit) // the load, by a minute
		deadly string
		after  func(w *world, u *unit) // the load, and before the daemon comes to it
		stays  bool
		runs   bool
	}{
		{"it dies", nil, "dies", nil, false, true},
		{"systemd starts it again", nil, "restarts", nil, false, true},
		{"systemd is about to start it again", nil, "ends", nil, false, true},
		{"it is started by hand, and dies", down, "", func(w *world, u *unit) {
			_ = w.begin(u)
			u.fail(false)
		}, false, true},
		{"it is started by hand, and stopped, and fails at that", down, "", func(w *world, u *unit) {
			_ = w.begin(u)
			u.since = u.since.Add(-10 * time.Millisecond)
			u.fail(true)
		}, true, false},
		{"nothing happens", nil, "", nil, true, true},
		{"it is stopped by hand", nil, "", func(_ *world, u *unit) { down(u) }, true, false},
		{"it is stopped by hand, and fails at that", nil, "", func(_ *world, u *unit) { u.fail(true) }, true, false},
		{"it is restarted by hand", nil, "", func(w *world, u *unit) { _ = w.begin(u) }, true, true},
		{"it was down", down, "", nil, true, false},
		{"it had failed", func(u *unit) { u.fail(false) }, "", nil, true, false},
		{"it had been started again", func(u *unit) { u.restarts++ }, "", nil, true, true},
		{"it is in a crash loop", func(u *unit) { u.restarts = 7 }, "restarts", nil, true, true},
		{"it is between two starts of a crash loop", func(u *unit) { u.restarts = 7 }, "ends", func(w *world, u *unit) {
			time.AfterFunc(time.Second, func() {
				defer w.lock()()
				u.start, u.restarts, u.between = u.start+1, u.restarts+1, false
			})
		}, true, true},
	} {
		w := attached(nil, "a")
		w.deadly["2"] = tt.deadly
		w.run(t, func(l *Loop) {
			unlock := w.lock()
			u := w.units["a.service"]
			if tt.before != nil {
				tt.before(u)
			}
			unlock()
			time.Sleep(time.Minute)
			unlock = w.lock()
			w.files["a"] = "2"
			w.replace("a", "2")
			if tt.after != nil {
				tt.after(w, u)
			}
			unlock()
			time.Sleep(100 * time.Millisecond)
			w.tellPolicy()
			rest()
			s := status(t, l, "a")
			unlock = w.lock()
			defer unlock()
			if (w.kernel["a"] == "2") != tt.stays || (s.Held == nil) != tt.stays || u.running != tt.runs || tt.runs && s.Verdict.Answer != attach.Confined || w.records["a.service"].Trial != nil {
				t.Errorf("%s: running %v, %s, held %+v, kernel %q, %q", tt.name, u.running, s.Verdict.Answer, s.Held, w.kernel, w.trace)
			}
		})
	}
}

// Who deploys a service stops it and loads its profile, in any order, before the new program
// is there: a program that fails at a stop is not started for that, and nothing speaks
// against the text. Nor does a failure from before the load.
func TestADeploymentUndoesNoText(t *testing.T) {
	for _, tt := range []struct {
		name  string
		stops time.Duration // after the load
		fails bool          // it fails by itself then, and is not stopped
	}{
		{"stopped well before", -3 * time.Second, false},
		{"stopped before", -1500 * time.Millisecond, false},
		{"stopped right before", -100 * time.Millisecond, false},
		{"stopped right after, and before it is told", 10 * time.Millisecond, false},
		{"stopped on trial", 3 * time.Second, false},
		{"failed before", -500 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(nil, "a")
			w.run(t, func(l *Loop) {
				u := w.units["a.service"]
				time.Sleep(time.Minute)
				time.AfterFunc(4*time.Second, func() {
					defer w.lock()()
					w.files["a"] = "2"
					w.replace("a", "2")
				})
				time.AfterFunc(4*time.Second+50*time.Millisecond, w.tellPolicy)
				time.AfterFunc(4*time.Second+tt.stops, func() {
					defer w.lock()()
					u.fail(!tt.fails)
					w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
				})
				time.Sleep(5 * time.Second)
				rest()
				if s := status(t, l, "a"); u.running || s.Held != nil || w.kernel["a"] != "2" || w.record("a.service").Accepted["a"] != "sha256:a2" {
					t.Errorf("%+v, held %+v, kernel %q, %q", u, s.Held, w.kernel, w.trace)
				}
			})
		})
	}
}

// Where what was accepted is in two files, one of which a unit has nothing to do with, each
// unit goes back to what it had.
func TestTwoFilesThatBecameOneAreUndone(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	for _, who := range []string{"a", "c"} {
		w := attached(nil, "a", "c")
		w.addUnit("d.service")
		w.tells, w.files["b"] = true, "1"
		w.run(t, func(l *Loop) {
			w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile, a.AllowProfiles = "a", []string{"b"} })
			rest()
			unlock := w.lock()
			w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
			unlock()
			w.edit("2")
			time.Sleep(2 * time.Second)
			w.declareUnit("/etc/aaunit/attachments.d/d.conf", "d.service", func(a *attach.Attachment) { a.Profile = "a" })
			w.denials <- denial(who+".service", "/new")
			w.still(t, who+" was denied something")
			for unit, had := range map[string]map[string]string{
				"a": {textA: textA + " 1", textB: textB + " 1"},
				"c": {textA: textA + " 1"},
			} {
				if s, r := status(t, l, unit), w.record(unit+".service"); answer(l, unit) != "confined" || s.Held == nil || !maps.Equal(r.Policies, had) {
					t.Errorf("%s was denied something: %s is %s, held %+v, has %q", who, unit, answer(l, unit), s.Held, r.Policies)
				}
			}
			if r := w.record("d.service"); answer(l, "d") != "confined" || r.Accepted["a"] != "sha256:a1" || w.kernel["a"] != "1" || w.kernel["b"] != "1" {
				t.Errorf("%s was denied something: d is %s, %q, kernel %q", who, answer(l, "d"), r.Policies, w.kernel)
			}
		})
	}
}

// The kernel has one text of a file: who was on trial from an earlier one, as where that was
// cut off, goes back to what is live with the others.
func TestTrialsFromDifferentTextsGoBackToOne(t *testing.T) {
	w := attached(nil, "a", "b")
	w.addUnit("z.service")
	w.tells, w.files["z"] = true, "1"
	settle := func(profile string, span time.Duration) func(*attach.Attachment) {
		return func(a *attach.Attachment) { a.Profile, a.Settle = profile, span }
	}
	live := func() string {
		defer w.lock()()
		return w.kernel["a"]
	}
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", settle("a", 5*time.Second))
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", settle("a", time.Minute))
		w.declareUnit("/etc/aaunit/attachments.d/z.conf", "z.service", settle("z", time.Minute))
		rest()
		time.Sleep(3 * time.Minute)
		unlock := w.lock()
		w.files["z"] = "2"
		unlock()
		w.edit("2")
		time.Sleep(15 * time.Second) // a's trial is over, b's is not
		w.edit("3")
		d := denial("z.service", "/new")
		d.Profile = "z"
		w.denials <- d // which cuts b's trial off
		for range 300 {
			if time.Sleep(100 * time.Millisecond); w.record("z.service").Hold != nil {
				break
			}
		}
		time.Sleep(1500 * time.Millisecond)
		if live() != "3" {
			t.Fatalf("the kernel has %q", live())
		}
		w.denials <- denial("a.service", "/new")
		time.Sleep(5 * time.Minute)
		for _, u := range []string{"a", "b"} {
			if r := w.record(u + ".service"); answer(l, u) != "confined" || r.Policies[textA] != textA+" 2" {
				t.Errorf("%s is %s, and has %q", u, answer(l, u), r.Policies)
			}
		}
		if live() != "2" {
			t.Errorf("the kernel has %q", live())
		}
	})
}

// Those that have only the other one of two files that were one before go back, too.
func TestAFileThatBecameTwoIsUndone(t *testing.T) {
	for _, who := range []string{"a", "c"} {
		w := attached(func(a *attach.Attachment) { a.AllowProfiles = []string{"b"} }, "a")
		w.addUnit("c.service")
		w.addUnit("d.service")
		w.tells, w.also, w.in = true, map[string]string{"a": "b"}, map[string]string{"b": "a"}
		w.run(t, func(l *Loop) {
			w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "a" })
			w.declareUnit("/etc/aaunit/attachments.d/d.conf", "d.service", func(a *attach.Attachment) { a.Profile = "b" })
			rest()
			unlock := w.lock()
			w.also, w.in, w.files["b"] = nil, nil, "2"
			unlock()
			w.edit("2")
			time.Sleep(2 * time.Second)
			if r := w.record("a.service"); len(r.Policies) != 2 || r.Trial == nil {
				t.Fatalf("%+v", r)
			}
			w.denials <- denial(who+".service", "/new")
			w.still(t, who+" was denied something")
			for _, unit := range []string{"a", "c", "d"} {
				if s, r := status(t, l, unit), w.record(unit+".service"); answer(l, unit) != "confined" || s.Held == nil || !maps.Equal(r.Policies, map[string]string{textA: textA + " 1 and b"}) {
					t.Errorf("%s was denied something: %s is %s, held %+v, has %q", who, unit, answer(l, unit), s.Held, r.Policies)
				}
			}
			if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
				t.Errorf("%s was denied something: kernel %q", who, w.kernel)
			}
		})
	}
}

// A text that says the same as before is none that could be at fault: what becomes of a unit
// is not its doing, and nobody is told of a change.
func TestATextThatSaysTheSameIsNotTried(t *testing.T) {
	for _, change := range []attach.OnProfileChange{attach.ChangeLoad, attach.ChangeReport} {
		w := attached(nil, "a", "b")
		w.addUnit("c.service")
		w.run(t, func(l *Loop) {
			w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile, a.OnProfileChange = "a", change })
			rest()
			loads := w.called("load")
			w.move() // as after a comment: it has another ID
			w.trigger()
			time.Sleep(2 * time.Second)
			unlock := w.lock()
			u := w.units["b.service"]
			u.running, u.failed, u.ended = false, true, time.Now()
			unlock()
			w.still(t, "it failed")
			for _, unit := range []string{"a", "b", "c"} {
				if s, r := status(t, l, unit), w.record(unit+".service"); r.Trial != nil || s.Held != nil || len(s.Notes) > 0 || r.Accepted["a"] != "sha256:a1" {
					t.Errorf("%s: %s: held %+v, notes %v, %+v", change, unit, s.Held, s.Notes, r)
				}
			}
			if r := w.record("b.service"); u.running || w.called("load") != loads || len(r.Policies[textA]) > 0 {
				t.Errorf("%s: running %v, %q, %q", change, u.running, r.Policies, w.trace)
			}
		})
	}
}
