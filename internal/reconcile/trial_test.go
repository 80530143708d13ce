package reconcile

import (
	"context"
	"fmt"
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

// A unit that has only one of the two profiles goes back to its own file, also where it is not
// watched itself, and is kept under it.
func TestTwoFilesThatBecameOneAreUndoneForWhoIsNotWatched(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	for _, tt := range []struct {
		name   string
		settle time.Duration // of c, the unit that has profile b only
		before func(w *world, c *unit)
	}{
		{name: "on trial itself", settle: time.Minute},
		{name: "on trial no more", settle: 2 * time.Second},
		{name: "with SettleSec=0"},
		{name: "down", settle: time.Minute, before: func(_ *world, c *unit) { c.running = false }},
		{name: "as before", settle: time.Minute, before: func(w *world, _ *unit) { w.alike = map[string]string{"b": "1"} }},
	} {
		for _, cutOff := range []string{"not cut off", "cut off by another unit", "cut off by the end of the daemon"} {
			what := tt.name + ", " + cutOff
			w := attached(func(a *attach.Attachment) { a.Settle = 30 * time.Second }, "a")
			c := w.addUnit("c.service")
			w.addUnit("z.service")
			w.tells, w.files["b"] = true, "1"
			change := func() {
				w.declareUnit("/etc/aaunit/attachments.d/z.conf", "z.service", nil)
				w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile, a.Settle = "b", tt.settle })
				time.Sleep(3 * time.Minute)
				unlock := w.lock()
				if tt.before != nil {
					tt.before(w, c)
				}
				w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
				if cutOff == "cut off by another unit" {
					w.files["z"] = "2"
				}
				unlock()
				w.edit("2")
				time.Sleep(5 * time.Second)
				if cutOff == "cut off by another unit" {
					d := denial("z.service", "/new")
					d.Profile = "z"
					w.denials <- d
					time.Sleep(6 * time.Second)
					if w.record("z.service").Hold == nil || !w.record("a.service").Trial.GoesOn() {
						t.Fatalf("%s: %q", what, w.trace)
					}
				}
			}
			check := func(l *Loop) {
				w.denials <- denial("a.service", "/new")
				w.still(t, what)
				unlock := w.lock()
				if !c.running {
					_ = w.begin(c)
				}
				unlock()
				w.trigger()
				w.still(t, what)
				s, r := status(t, l, "c"), w.record("c.service")
				if answer(l, "a") != "confined" || answer(l, "c") != "confined" || !maps.Equal(r.Policies, map[string]string{textB: textB + " 1"}) || r.Trial != nil || s.Held == nil {
					t.Errorf("%s: a is %s, c %s %+v, held %+v, %+v", what, answer(l, "a"), answer(l, "c"), s.Verdict.Reasons, s.Held, r)
				}
				if a := w.record("a.service"); a.Trial != nil || !maps.Equal(a.Policies, map[string]string{textA: textA + " 1"}) {
					t.Errorf("%s: a has %+v", what, a)
				}
				unlock = w.lock()
				if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
					t.Errorf("%s: kernel %q", what, w.kernel)
				}
				w.replace("b", "evil")
				unlock()
				w.tellPolicy()
				w.still(t, what)
				unlock = w.lock()
				defer unlock()
				if w.kernel["b"] != "1" {
					t.Errorf("%s: kernel %q", what, w.kernel)
				}
			}
			w.run(t, func(l *Loop) {
				if change(); cutOff != "cut off by the end of the daemon" {
					check(l)
				}
			})
			if cutOff == "cut off by the end of the daemon" {
				w.run(t, check)
			}
		}
	}
}

// One that has not come under the text, since it is refused, has its own file back, too: the
// text was loaded over it.
func TestTwoFilesThatBecameOneAreUndoneForWhoIsRefused(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	w := attached(func(a *attach.Attachment) { a.Settle = 30 * time.Second }, "a")
	w.addUnit("c.service")
	w.tells, w.files["b"] = true, "1"
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "b" })
		time.Sleep(2 * time.Minute)
		w.override("c", true)
		unlock := w.lock()
		w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
		unlock()
		w.edit("2")
		time.Sleep(5 * time.Second)
		w.denials <- denial("a.service", "/new")
		w.still(t, "undone")
		unlock = w.lock()
		if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
			t.Errorf("kernel %q", w.kernel)
		}
		unlock()
		w.override("c", false)
		w.still(t, "refused no more")
		if r := w.record("c.service"); answer(l, "a") != "confined" || answer(l, "c") != "confined" || !maps.Equal(r.Policies, map[string]string{textB: textB + " 1"}) {
			t.Errorf("a is %s, c %s, has %q", answer(l, "a"), answer(l, "c"), r.Policies)
		}
	})
}

// It does so, too, where somebody else asked for the text, and did not want it after all.
func TestTwoFilesThatBecameOneAreUndoneForWhoWasLentThem(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	report := func(a *attach.Attachment) { a.OnProfileChange, a.Settle = attach.ChangeReport, 30*time.Second }
	w := attached(report, "a")
	w.addUnit("c.service")
	w.tells, w.files["b"] = true, "1"
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) {
			report(a)
			a.Profile = "b"
		})
		time.Sleep(2 * time.Minute)
		unlock := w.lock()
		w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
		unlock()
		w.edit("2")
		time.Sleep(5 * time.Second)
		go func() { _, _ = l.Apply(context.Background(), attach.Request{Units: []string{fileA}}, nil) }()
		time.Sleep(5 * time.Second)
		if r := w.record("c.service"); r.Lent == nil {
			t.Fatalf("%+v", r)
		}
		w.denials <- denial("a.service", "/new")
		w.still(t, "undone")
		if r := w.record("c.service"); answer(l, "a") != "confined" || answer(l, "c") != "confined" || !maps.Equal(r.Policies, map[string]string{textB: textB + " 1"}) || r.Lent != nil {
			t.Errorf("a is %s, c %s, %+v", answer(l, "a"), answer(l, "c"), r)
		}
		defer w.lock()()
		if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
			t.Errorf("kernel %q", w.kernel)
		}
	})
}

// Where the attaches of all who share the text fail before its trial is over, each goes back
// to its own file, also one to which the text says the same.
func TestTwoFilesThatBecameOneAreUndoneWithTheAttaches(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	without := func(a *attach.Attachment) { a.PrivateTmp, a.Settle = attach.PrivateTmpNo, 30*time.Second }
	w := attached(without, "a")
	w.addUnit("c.service")
	w.tells, w.files["b"] = true, "1"
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) {
			without(a)
			a.Profile = "b"
		})
		time.Sleep(2 * time.Minute)
		unlock := w.lock()
		w.also, w.in, w.alike = map[string]string{"a": "b"}, map[string]string{"b": "a"}, map[string]string{"b": "1"}
		unlock()
		w.edit("2")
		time.Sleep(5 * time.Second)
	})
	for _, name := range []string{"a", "c"} {
		file := "/etc/aaunit/attachments.d/" + name + ".conf"
		a := w.att[file]
		a.PrivateTmp = attach.PrivateTmpYes
		w.att[file] = a
		w.units[name+".service"].breaks["PrivateTmp"] = true
	}
	w.run(t, func(l *Loop) {
		time.Sleep(2 * time.Minute)
		for name, had := range map[string]string{"a": textA, "c": textB} {
			s, r := status(t, l, name), w.record(name+".service")
			if !heldAtAttach(r) || !maps.Equal(r.Policies, map[string]string{had: had + " 1"}) || slices.Contains(codes(s.Verdict.Reasons), attach.PolicyDiffers) {
				t.Errorf("%s: %+v, %+v", name, s.Verdict.Reasons, r)
			}
		}
		defer w.lock()()
		if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
			t.Errorf("kernel %q", w.kernel)
		}
	})
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

// They do so, too, where nobody has both: the file that was one before goes live again with both
// profiles.
func TestAFileThatBecameTwoIsUndoneForWhoHasTheOtherOne(t *testing.T) {
	for _, how := range []string{"on trial", "with SettleSec=0", "down"} {
		for who, profile := range map[string]string{"c": "a", "d": "b"} {
			if who == "d" && how != "on trial" {
				continue
			}
			what := how + ", " + who + " was denied something"
			w := attached(func(a *attach.Attachment) { a.Settle = 30 * time.Second }, "c")
			d := w.addUnit("d.service")
			w.tells, w.also, w.in = true, map[string]string{"a": "b"}, map[string]string{"b": "a"}
			w.run(t, func(l *Loop) {
				w.declareUnit("/etc/aaunit/attachments.d/d.conf", "d.service", func(a *attach.Attachment) {
					if a.Profile, a.Settle = "b", 30*time.Second; how == "with SettleSec=0" {
						a.Settle = 0
					}
				})
				time.Sleep(2 * time.Minute)
				unlock := w.lock()
				d.running = how != "down"
				w.also, w.in, w.files["b"] = nil, nil, "2"
				unlock()
				w.edit("2")
				time.Sleep(5 * time.Second)
				denied := denial(who+".service", "/new")
				denied.Profile = profile
				w.denials <- denied
				w.still(t, what)
				unlock = w.lock()
				if !d.running {
					_ = w.begin(d)
				}
				unlock()
				w.trigger()
				w.still(t, what)
				for _, unit := range []string{"c", "d"} {
					if s, r := status(t, l, unit), w.record(unit+".service"); answer(l, unit) != "confined" || s.Held == nil || r.Trial != nil || !maps.Equal(r.Policies, map[string]string{textA: textA + " 1 and b"}) {
						t.Errorf("%s: %s is %s %v, held %+v, has %q", what, unit, answer(l, unit), s.Verdict.Reasons, s.Held, r.Policies)
					}
				}
				defer w.lock()()
				if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
					t.Errorf("%s: kernel %q", what, w.kernel)
				}
			})
		}
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

// What a unit goes back to covers all profiles that the undone policy took from it.
func TestWhatAUnitGoesBackTo(t *testing.T) {
	w := newWorld()
	// "f: a1 b1" is file f with profiles a and b.
	keep := func(texts []string) map[string]string {
		ids := map[string]string{}
		for _, text := range texts {
			file, profiles, _ := strings.Cut(text, ": ")
			c := attach.Compiled{File: file, ID: text, Checksums: map[string]string{}}
			for _, p := range strings.Fields(profiles) {
				c.Checksums[p[:len(p)-1]] = p
			}
			w.kept[text], ids[file] = c, text
		}
		return ids
	}
	l := w.loop()
	for name, tt := range map[string]struct {
		has, had    []string // nil: what it had is not known
		undone, was []string
		want        []string
	}{
		"three became one":                   {[]string{"f: a2 b2 c2"}, []string{"g: b1"}, []string{"f: a2 b2 c2"}, []string{"f: a1", "g: b1"}, []string{"g: b1"}},
		"three became one, the same":         {[]string{"f: a2 b1 c2"}, []string{"g: b1"}, []string{"f: a2 b1 c2"}, []string{"f: a1", "h: c1"}, []string{"g: b1"}},
		"three became one, not known":        {[]string{"f: a2 b2 c2"}, nil, []string{"f: a2 b2 c2"}, []string{"f: a1", "g: b1", "h: c1"}, []string{"f: a1", "g: b1", "h: c1"}},
		"one became three":                   {[]string{"g: b2"}, []string{"f: a1 b1 c1"}, []string{"f: a2", "g: b2", "h: c2"}, []string{"f: a1 b1 c1"}, []string{"f: a1 b1 c1"}},
		"one became three, the same":         {[]string{"g: b1"}, []string{"f: a1 b1 c1"}, []string{"f: a2", "g: b1"}, []string{"f: a1 b1 c1"}, []string{"f: a1 b1 c1"}},
		"one became three, not known":        {[]string{"g: b2"}, nil, []string{"f: a2", "g: b2", "h: c2"}, []string{"f: a1 b1 c1"}, []string{"f: a1 b1 c1"}},
		"one became three, nothing to undo":  {[]string{"g: b1"}, []string{"f: a1 b1 c1"}, []string{"f: a2"}, []string{"f: a1 b1 c1"}, []string{"g: b1"}},
		"others go back to a later text":     {[]string{"f: a3 b3"}, []string{"g: b1"}, []string{"f: a3 b3"}, []string{"f: a2 b2"}, []string{"f: a2 b2"}},
		"one that has nothing to do with it": {[]string{"f: a2", "x: x2"}, []string{"f: a1", "x: x1"}, []string{"f: a2"}, []string{"f: a1"}, []string{"f: a1", "x: x2"}},
	} {
		r := attach.Record{Policies: keep(tt.has)}
		if tt.had != nil {
			r.Trial = &attach.Trial{Policies: keep(tt.had), Over: true}
		}
		if got := l.policiesBefore(r, keep(tt.undone), keep(tt.was)); !maps.Equal(got, keep(tt.want)) {
			t.Errorf("%s: %q", name, slices.Sorted(maps.Values(got)))
		}
	}
}

// Killed before any step of that, the next daemon ends with a policy for each that has its
// profile.
func TestFilesThatAreMergedOrSplitKilledAtAnyStep(t *testing.T) {
	for _, splits := range []bool{false, true} {
		for _, how := range []string{"on trial itself", "with SettleSec=0", "as before"} {
			for kill, more := 1, true; more; kill++ {
				what := fmt.Sprintf("%s, splits %v, killed before step %d", how, splits, kill)
				w := attached(func(a *attach.Attachment) { a.Settle = 30 * time.Second }, "a")
				w.addUnit("c.service")
				w.tells, w.files["b"] = true, "1"
				merge := func(is bool) {
					if w.also, w.in = nil, nil; is {
						w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
					}
				}
				merge(splits)
				w.run(t, func(l *Loop) {
					w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) {
						if a.Profile, a.Settle = "b", 30*time.Second; how == "with SettleSec=0" {
							a.Settle = 0
						}
					})
					time.Sleep(2 * time.Minute)
					unlock := w.lock()
					merge(!splits)
					switch {
					case how == "as before":
						w.alike = map[string]string{"b": "1"}
					case splits:
						w.files["b"] = "2"
					}
					steps := 0
					w.onStep = func(string) bool { steps++; return steps == kill }
					unlock()
					w.edit("2")
					time.Sleep(5 * time.Second)
					w.denials <- denial("a.service", "/new")
					time.Sleep(time.Minute)
					defer w.lock()()
					more = w.dead
				})
				w.dead, w.onStep = false, nil
				w.run(t, func(l *Loop) {
					w.denials <- denial("a.service", "/another")
					time.Sleep(2 * time.Minute)
					w.still(t, what)
					for _, unit := range []string{"a", "c"} {
						if r := w.record(unit + ".service"); answer(l, unit) != "confined" || r.Trial != nil {
							t.Errorf("%s: %s is %s %v, %+v", what, unit, answer(l, unit), status(t, l, unit).Verdict.Reasons, r)
						}
					}
				})
			}
		}
	}
}

// A unit may come to share a profile in the pass in which a changed text of it is tried, and
// its attach fail for a reason of its own. That is undone as any other, and the text with the
// trial: it had not been under an earlier one, and is not told so.
func TestAnAttachThatFailsBesideATrial(t *testing.T) {
	for _, kills := range []bool{false, true} {
		for kill, more := 1, true; more; kill++ {
			w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a")
			a, c, with := w.units["a.service"], w.addUnit("c.service"), w.addUnit("with.service")
			with.elsewhere = true
			c.drags, c.breaks["a"] = []string{"with.service"}, true
			w.deadly["2"] = "dies"
			var steps []string
			w.run(t, func(*Loop) {
				rest()
				unlock := w.lock()
				w.onStep = func(step string) bool { steps = append(steps, step); return kills && len(steps) == kill }
				unlock()
				w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "a" })
				w.edit("2")
				rest()
			})
			more = w.dead
			check := func(l *Loop) {
				w.still(t, "undone")
				s, r := status(t, l, "c"), w.record("c.service")
				if !c.running || c.label != "unconfined" || !with.running || !heldAtAttach(r) || r.Hold.Former != "" || len(r.DropIns) > 0 || !strings.HasPrefix(s.Held.Reasons[0].Detail, "c.service failed") ||
					!maps.Equal(r.Policies, map[string]string{textA: textA + " 1"}) {
					t.Errorf("c: %+v, %+v, held %+v, %+v", c, with, s.Held, r)
				}
				if !a.running || answer(l, "a") != "confined" || w.kernel["a"] != "1" || status(t, l, "a").Held == nil {
					t.Errorf("a: %+v, %s, held %+v, kernel %q", a, answer(l, "a"), status(t, l, "a").Held, w.kernel)
				}
				if w.log.count("the changed policy of c.service was undone") > 0 {
					t.Errorf("told of c: %s", w.log.String())
				}
			}
			w.dead, w.onStep = false, nil
			if w.run(t, check); t.Failed() {
				t.Fatalf("killed %v: %q", more, steps)
			}
		}
	}
}

// Whoever asks for both is told of each why it failed.
func TestWhoFailsBesideATrialIsToldItsOwnReason(t *testing.T) {
	for _, then := range []attach.OnFailedAttach{attach.FailedUndo, attach.FailedStop, attach.FailedKeep} {
		w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a")
		c := w.addUnit("c.service")
		c.breaks["a"] = true
		w.deadly["2"] = "dies"
		w.run(t, func(l *Loop) {
			rest()
			unlock := w.lock()
			file := "/etc/aaunit/attachments.d/c.conf"
			w.files["a"] = "2"
			unlock()
			w.declareUnit(file, "c.service", func(a *attach.Attachment) { a.Profile, a.OnFailedAttach = "a", then })
			out, err := l.Apply(context.Background(), attach.Request{Units: []string{file, fileA}}, nil)
			if err != nil || len(out) != 2 {
				t.Fatalf("%v %+v", err, out)
			}
			rest()
			for _, o := range out {
				told := slices.ContainsFunc(o.Events, func(e attach.Event) bool {
					return strings.HasSuffix(e.Text, "runs under the policy that was accepted before")
				})
				if own := o.Unit == "c.service"; o.Exit != attach.ExitFailed || own && o.Reasons[0].Code != attach.AttachFailed || !own && o.Reasons[0].Code != attach.PolicyUndone || told == own || o.Undone != (!own || then == attach.FailedUndo) {
					t.Errorf("%s: %s: %+v, %+v", then, o.Unit, o.Reasons, o.Events)
				}
			}
			if s := status(t, l, "a"); s.Held == nil || w.kernel["a"] != "1" || answer(l, "a") != "confined" {
				t.Errorf("%s: a is %s, held %+v, kernel %q", then, answer(l, "a"), s.Held, w.kernel)
			}
		})
	}
}

// The undo of a trial stops a unit that systemd is about to start again, and is killed before
// it has started it. The next daemon does so, and starts what went down with it, whatever
// becomes of the trial.
func TestAnUndoneTrialKilledAtAnyStep(t *testing.T) {
	for _, c := range []struct {
		name            string
		next            func(w *world, b *unit) // what it does at each call of the next daemon
		denied, stopped bool                    // so is the other one; b is, by hand
	}{
		{name: "it stays well"},
		{name: "it fails at its start", next: func(w *world, b *unit) { b.breaks["a"] = w.kernel["a"] == "2" }},
		{name: "it cannot be started under the text", next: func(w *world, b *unit) { b.barred = w.kernel["a"] == "2" }, denied: true},
		{name: "another one is denied something again", denied: true},
		{name: "it is stopped by hand meanwhile", denied: true, stopped: true},
	} {
		for kill, more := 1, true; more; kill++ {
			w := attached(func(a *attach.Attachment) { a.Settle = time.Minute }, "a", "b")
			b, with := w.units["b.service"], w.addUnit("with.service")
			with.elsewhere, b.drags = true, []string{"with.service"}
			var steps []string
			w.run(t, func(*Loop) {
				time.Sleep(3 * time.Minute)
				w.edit("2")
				time.Sleep(3 * time.Second)
				unlock := w.lock()
				b.between = true // it has ended with status 0, and Restart=always
				w.onStep = func(step string) bool { steps = append(steps, step); return len(steps) == kill }
				unlock()
				w.denials <- denial("a.service", "/new")
				rest()
			})
			more = w.dead
			w.dead, w.onStep = false, nil
			if c.next != nil && more {
				w.onCall = func(string) { c.next(w, b) }
			}
			down := c.stopped && steps[len(steps)-1] == "start b.service"
			if down {
				w.overtake = func(*unit) {}
			}
			w.run(t, func(*Loop) {
				if c.denied && more {
					w.denials <- denial("a.service", "/new")
				}
				time.Sleep(2 * time.Minute)
				w.still(t, c.name)
				if r := w.record("b.service"); b.running == down || with.running == down || r.Stopped || len(r.Dragged) > 0 || r.Trial != nil {
					t.Errorf("%s, killed %v: %q\n%+v %+v %+v\n%q", c.name, more, steps, b, with, r, w.trace)
				}
			})
		}
	}
}
