package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestKilledBetweenAnyTwoSteps kills the daemon before each step of what it is
// asked for, records and attachments included. The next daemon must bring the
// unit to what is declared then, or back to where it was; a unit that was
// confined must be so all the time, and one that is not must never be called so.
// test/vm has the same with the real daemon.
func TestKilledBetweenAnyTwoSteps(t *testing.T) {
	attachTo := func(profile string) func(*testing.T, *world, *Loop) {
		return func(t *testing.T, w *world, l *Loop) {
			_, _ = l.Attach(context.Background(), attach.Request{Units: []string{"a"}, Profile: profile}, nil)
		}
	}
	for _, s := range []struct {
		name   string
		former string // the profile of the unit before; "" for none
		keeps  bool   // the unit must be confined all the time
		loops  bool   // under a profile, the unit ends and is started over and over
		ask    func(*testing.T, *world, *Loop)
	}{
		{"attach", "", false, false, attachTo("a")},
		{"detach", "a", false, false, func(t *testing.T, _ *world, l *Loop) {
			_, _ = l.Detach(context.Background(), attach.Request{Units: []string{"a"}}, nil)
		}},
		{"new text", "a", true, false, func(_ *testing.T, w *world, l *Loop) {
			w.mu.Lock()
			w.files["a"] = "2"
			w.mu.Unlock()
			l.queue.add(inputChanged, "a.service")
			rest()
		}},
		{"deadly text", "a", true, false, func(_ *testing.T, w *world, l *Loop) {
			w.mu.Lock()
			w.files["a"], w.deadly = "2", map[string]string{"2": "dies"}
			w.mu.Unlock()
			l.queue.add(inputChanged, "a.service")
			rest()
		}},
		{"other profile", "a", true, false, attachTo("b")},
		{"undo", "", false, false, attachTo("bad")},
		{"undo of a loop", "", false, true, attachTo("bad")},
		{"undo of another profile", "a", true, false, attachTo("bad")},
	} {
		for _, byPath := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, by path %v", s.name, byPath), func(t *testing.T) {
				for kill := 1; ; kill++ {
					w := newWorld()
					if byPath {
						w.byPath = map[string]bool{"a": true, "b": true, "bad": true}
					}
					u, with := w.addUnit("a.service"), w.addUnit("with.service")
					u.drags, with.elsewhere = []string{"with.service"}, true
					w.files["b"], w.files["bad"] = "1", "1"
					u.breaks["bad"], u.crashLoop = !s.loops, s.loops
					w.run(t, func(l *Loop) {
						if s.former != "" {
							attachTo(s.former)(t, w, l)
							rest()
						}
					})
					var steps []string
					armed := true
					w.onStep = func(step string) bool {
						bare := u.running && u.label == "unconfined"
						if r, _ := w.daemon.known([]string{"a.service"}); bare && len(r.Units) == 1 && r.Units[0].Verdict != nil && r.Units[0].Verdict.Answer == attach.Confined {
							t.Errorf("before %s, the unit is not confined and is said to be", step)
						}
						if bare && s.keeps {
							t.Errorf("before %s, the unit runs without the profile", step)
						}
						steps = append(steps, step)
						return armed && len(steps) == kill
					}
					w.run(t, func(l *Loop) {
						s.ask(t, w, l)
						rest()
					})
					killed := w.dead
					w.dead, armed = false, false
					if killed {
						steps = append(steps[:kill-1], "KILLED")
					}
					w.run(t, func(l *Loop) {
						rest()
						checkConverged(t, w, l, s.former)
						if !with.running {
							t.Errorf("what a restart takes along is down: %+v", w.record("a.service"))
						}
					})
					if t.Failed() {
						t.Fatalf("%q", steps)
					}
					if !killed {
						t.Logf("%d steps: %q", len(steps), steps)
						break
					}
				}
			})
		}
	}
}

// checkConverged compares a.service with what is declared for it now. The
// profile bad counts as the former one, with the attachment held.
func checkConverged(t *testing.T, w *world, l *Loop, former string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	u, want, held := w.units["a.service"], w.att[fileOf("a.service")].Profile, false
	if want == "bad" {
		want, held = former, true
	}
	label := "unconfined"
	if want != "" {
		label = want + " (enforce)"
	}
	if !u.running || u.label != label || (w.disk[dropIn] != "") != (want != "") || w.disk[dropIn] != w.read[dropIn] {
		t.Errorf("want %s: %+v, drop-in %q", label, u, w.disk[dropIn])
	}
	for _, name := range slices.Sorted(maps.Keys(w.kernel)) {
		if version := w.files[name]; w.kernel[name] != version && (w.deadly[version] == "" || w.kernel[name] != "1") {
			t.Errorf("of profile %s version %s is loaded", name, w.kernel[name])
		}
		// One that the unit had before is unloaded when it is detached.
		if name != want && !slices.Contains(w.records["a.service"].Loaded, name) {
			t.Errorf("profile %s is left loaded, and nobody knows whose it is", name)
		}
	}
	r, _ := l.known([]string{"a.service"})
	switch {
	case want == "" && !held:
		if len(r.Units) != 0 || len(w.records) != 0 {
			t.Errorf("a unit that is not attached is shown: %+v %v", r.Units, w.records)
		}
	case len(r.Units) != 1 || r.Units[0].Busy || (r.Units[0].Held != nil && !r.Units[0].Held.OnlyText()) != held || r.Units[0].Verdict == nil ||
		(r.Units[0].Verdict.Answer == attach.Confined) != !held:
		t.Errorf("want held %v: %+v", held, r.Units)
	}
}

// A change to another profile is cut off before the restart, and the attachment
// is gone when the daemon comes back: the former profile is taken off as well.
func TestDetachedAfterAChangeThatWasCutOff(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.files["b"] = "1"
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.onStep = func(step string) bool { return step == "reload" }
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile = "b" })
		w.tellFiles()
		rest()
	})
	if !w.dead || u.label != "a (enforce)" {
		t.Fatalf("%v %+v", w.dead, u)
	}
	w.dead, w.onStep = false, nil
	delete(w.att, fileA)
	w.run(t, func(*Loop) {
		if !u.running || u.label != "unconfined" || len(w.disk)+len(w.records)+len(w.kernel) != 0 {
			t.Errorf("%+v, drop-ins %v, records %v, profiles %v", u, w.disk, w.records, w.kernel)
		}
	})
}

func fileOf(unit string) string { return fmt.Sprintf("/etc/aaunit/attachments.d/%s.conf", unit) }
