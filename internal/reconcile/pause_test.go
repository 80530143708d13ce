package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

func pause(t *testing.T, l *Loop, span time.Duration, units ...string) []attach.Outcome {
	t.Helper()
	out, err := l.Pause(context.Background(), attach.Request{Units: units, For: span, By: "alice"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func resume(t *testing.T, l *Loop, units ...string) []attach.Outcome {
	t.Helper()
	out, err := l.Resume(context.Background(), attach.Request{Units: units, By: "bob"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// trample is what an administrator does to a unit in a pause, and what makes
// aaunitd look.
func (w *world) trample(l *Loop, u *unit) {
	w.mu.Lock()
	profile := strings.TrimSuffix(u.name, ".service")
	file := attach.DropInPath(u.name, false)
	w.disk[file] = "[Service]\nAppArmorProfile=\n"
	w.read[file] = w.disk[file]
	w.files[profile] = "2"
	w.kernel[profile] = "by hand"
	w.begin(u)
	w.mu.Unlock()
	w.tellFiles()
	l.everythingAnew()
	rest()
}

func (w *world) record(unit string) attach.Record {
	defer w.lock()()
	return w.records[unit]
}

func (w *world) called(what string) int {
	defer w.lock()()
	return w.calls[what]
}

// mended reports whether all that was trampled is as declared, with the new text.
func (w *world) mended(u *unit) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	profile := strings.TrimSuffix(u.name, ".service")
	return strings.Contains(w.disk[attach.DropInPath(u.name, false)], "AppArmorProfile="+profile) && w.kernel[profile] == "2" && u.label == profile+" (enforce)"
}

func TestAPausedUnitIsLeftAloneAndToldTheTruthOf(t *testing.T) {
	for _, end := range []string{"resume", "expiry", "expiry while the daemon is down"} {
		t.Run(end, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
			var done []string
			alone := func(l *Loop) {
				t.Helper()
				if extra := w.trace[len(done):]; len(extra) != 0 || !u.running {
					t.Errorf("in the pause it did %q", extra)
				}
				if got := w.record("a.service").Accepted["a"]; got != "sha256:a1" {
					t.Errorf("in the pause it accepted %s", got)
				}
				s := l.Status([]string{"a"}).Units[0]
				if s.Verdict.Answer != attach.NotConfined || s.Paused == nil || s.Paused.By != "alice" || len(s.Refused) != 0 {
					t.Errorf("%+v", s)
				}
				if r, err := l.Verify(context.Background(), []string{"a"}); err != nil || r.Units[0].Verdict.Answer != attach.NotConfined || r.Units[0].Paused == nil {
					t.Errorf("verify: %+v %v", r, err)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				w.boot(func(l *Loop) {
					if answer(l, "a") != "confined" {
						t.Fatal(w.trace)
					}
					done = slices.Clone(w.trace)
					out := pause(t, l, time.Hour, "a")
					if o := out[0]; o.Exit != attach.ExitOK || !o.Changed || o.Paused == nil || len(o.Reasons)+len(o.Notes) != 0 {
						t.Fatalf("%+v", o)
					}
					rest()
					if s := l.Status([]string{"a"}).Units[0]; s.Verdict.Answer != attach.Confined || s.Paused == nil {
						t.Errorf("paused and not touched: %+v", s)
					}
					w.trample(l, u)
					alone(l)
				})
				w.boots++ // a reboot, too
				w.boot(func(l *Loop) {
					w.trample(l, u)
					alone(l)
					switch end {
					case "expiry while the daemon is down":
						return
					case "resume":
						if o := resume(t, l, "a")[0]; o.Exit != attach.ExitOK || !o.Changed || o.Events[0].State != attach.Done {
							t.Errorf("%+v", o)
						}
						rest()
					case "expiry":
						time.Sleep(time.Until(w.record("a.service").Pause.Until) - time.Second)
						alone(l)
						time.Sleep(time.Second)
						rest()
					}
					if !w.mended(u) || answer(l, "a") != "confined" || l.Status(nil).Units[0].Paused != nil {
						t.Errorf("afterwards: %+v %q\n%s", u, w.trace[len(done):], w.log.String())
					}
				})
				if end == "expiry while the daemon is down" {
					time.Sleep(time.Hour)
					w.boot(func(l *Loop) {
						if !w.mended(u) || answer(l, "a") != "confined" {
							t.Errorf("afterwards: %+v %q", u, w.trace[len(done):])
						}
					})
				}
			})
			if w.records["a.service"].Pause != nil {
				t.Error("the pause stays on record")
			}
			over, ended := 1, 0
			if end == "resume" {
				over, ended = 0, 1
			}
			if w.log.count("a.service is paused until") != 1 || w.log.count("the pause of a.service is over") != over || w.log.count("was ended by bob") != ended {
				t.Errorf("the journal:\n%s", w.log.String())
			}
		})
	}
}

// The time of the first of several pauses is the one that is waited for.
func TestEachPauseEndsAtItsTime(t *testing.T) {
	w := newWorld()
	a, b := w.addUnit("a.service"), w.addUnit("b.service")
	w.declareUnit(fileA, "a.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
	w.run(t, func(l *Loop) {
		pause(t, l, 3*time.Hour, "a")
		pause(t, l, time.Hour, "b")
		w.trample(l, a)
		w.trample(l, b)
		time.Sleep(2 * time.Hour)
		if w.mended(a) || !w.mended(b) {
			t.Errorf("after 2 h: %+v %+v", a, b)
		}
		pause(t, l, 3*time.Hour, "a") // takes the place of the first
		time.Sleep(2 * time.Hour)
		if w.mended(a) {
			t.Error("the first pause has ended the second")
		}
		time.Sleep(time.Hour + time.Minute)
		if !w.mended(a) {
			t.Errorf("after the second pause: %+v", a)
		}
	})
}

// What was begun while the clock was ahead does not last until then when it has been put
// right: each life of this daemon begins at the same time.
func TestAClockThatWasAhead(t *testing.T) {
	t.Run("pause", func(t *testing.T) {
		w := attached(nil, "a")
		w.run(t, func(l *Loop) {
			time.Sleep(8 * 24 * time.Hour)
			pause(t, l, time.Hour, "a")
		})
		w.kernel["a"] = "evil"
		w.run(t, func(l *Loop) {
			rest()
			if s := status(t, l, "a"); s.Paused != nil || w.kernel["a"] != "1" || w.records["a.service"].Pause != nil {
				t.Errorf("%+v %q", s, w.kernel)
			}
		})
	})
	t.Run("hold", func(t *testing.T) {
		w := attached(nil, "a")
		w.deaf = true
		w.run(t, func(l *Loop) {
			time.Sleep(24 * time.Hour)
			if s := status(t, l, "a"); s.Held == nil || s.Held.Again.IsZero() {
				t.Errorf("%+v", s)
			}
		})
		w.deaf = false
		w.run(t, func(l *Loop) {
			rest()
			if s := status(t, l, "a"); s.Held != nil || s.Verdict.Answer != attach.Confined {
				t.Errorf("%+v", s)
			}
		})
	})
	t.Run("trial", func(t *testing.T) {
		w := attached(func(a *attach.Attachment) { a.Settle = time.Minute }, "a")
		w.run(t, func(l *Loop) {
			time.Sleep(24 * time.Hour)
			w.edit("2")
			time.Sleep(30 * time.Second)
			defer w.lock()()
			if w.records["a.service"].Trial == nil {
				t.Errorf("%+v", w.records["a.service"])
			}
		})
		w.run(t, func(l *Loop) {
			w.denials <- denial("a.service", "/etc/needed")
			time.Sleep(2 * time.Minute)
			rest()
			if s := status(t, l, "a"); s.Held == nil || w.kernel["a"] != "1" {
				t.Errorf("%+v %q", s, w.kernel)
			}
		})
	})
}

func TestNothingIsDoneByHandToAPausedUnit(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		attachUnits(t, l, attach.Request{Units: []string{"a"}})
		pause(t, l, time.Hour, "a")
		rest()
		before := len(w.trace)
		ctx, r := context.Background(), attach.Request{Units: []string{"a"}}
		dry := attach.Request{Units: []string{"a"}, DryRun: true}
		for name, call := range map[string]func() ([]attach.Outcome, error){
			"attach":           func() ([]attach.Outcome, error) { return l.Attach(ctx, r, nil) },
			"plan":             func() ([]attach.Outcome, error) { return l.Plan(ctx, r) },
			"detach":           func() ([]attach.Outcome, error) { return l.Detach(ctx, r, nil) },
			"detach --dry-run": func() ([]attach.Outcome, error) { return l.Detach(ctx, dry, nil) },
		} {
			out, err := call()
			if err != nil || len(out) != 1 || out[0].Exit != attach.ExitFailed || !slices.Equal(codes(out[0].Reasons), []attach.Code{attach.Paused}) ||
				out[0].Reasons[0].Next != "aaunitctl resume a.service" {
				t.Errorf("%s: %+v %v", name, out, err)
			}
		}
		rest()
		if len(w.trace) != before || len(w.att) != 1 {
			t.Errorf("it did %q", w.trace[before:])
		}
		if out, err := l.Check(ctx, []string{"a"}, true); err != nil || out[0].Exit != attach.ExitOK {
			t.Errorf("check, which changes nothing: %+v %v", out, err)
		}
	})
}

func TestAPausedUnitIsDetachedWhenThePauseIsOver(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		pause(t, l, time.Hour, "a")
		w.undeclare(fileA)
		l.everythingAnew()
		rest()
		s := l.Status([]string{"a"})
		if w.disk[dropIn] == "" || u.label != "a (enforce)" || len(s.Units) != 1 || s.Units[0].Paused == nil || !slices.Equal(codes(s.Units[0].Verdict.Reasons), []attach.Code{attach.Detached}) {
			t.Fatalf("%+v %+v", u, s)
		}
		if o := pause(t, l, 2*time.Hour, "a")[0]; o.Exit != attach.ExitOK {
			t.Errorf("a second pause: %+v", o)
		}
		time.Sleep(time.Hour + time.Minute)
		if w.disk[dropIn] == "" {
			t.Error("taken back in the second pause")
		}
	})
	w.run(t, func(l *Loop) { // whoever starts in between
		if w.disk[dropIn] == "" {
			t.Error("a new daemon has taken it back")
		}
		resume(t, l, "a")
		rest()
		if w.disk[dropIn] != "" || u.label != "unconfined" || len(w.records) != 0 || len(l.Status(nil).Units) != 0 {
			t.Errorf("not detached: %+v %q", u, w.trace)
		}
	})
}

func TestAPatternIsPausedAsAWhole(t *testing.T) {
	w := newWorld()
	w.files["w"] = "1"
	w.addUnit("w@1.service")
	w.addUnit("w@2.service")
	file, dir := "/etc/aaunit/attachments.d/w.conf", attach.DropInPath("w@.service", false)
	w.declareUnit(file, "w@.service", func(a *attach.Attachment) { a.Profile = "%p" })
	w.run(t, func(l *Loop) {
		// One unit of it: the drop-in is that of all.
		out := pause(t, l, time.Hour, "w@1")
		if got := codes(out[0].Notes); !slices.Equal(got, []attach.Code{attach.PolicyKept, attach.PolicyKept}) ||
			!strings.Contains(out[0].Notes[0].Detail, "is that of w@.service") || !strings.Contains(out[0].Notes[1].Detail, "w@2.service is also attached to w and not paused") {
			t.Errorf("%+v", out[0].Notes)
		}
		resume(t, l, "w@1")

		if o := pause(t, l, time.Hour, "w@.service")[0]; o.Exit != attach.ExitOK || len(o.Notes) != 0 {
			t.Fatalf("%+v", o)
		}
		w.mu.Lock()
		w.disk[dir], w.kernel["w"] = "other", "by hand"
		w.addUnit("w@3.service") // a unit to come
		before := len(w.trace)
		w.mu.Unlock()
		l.everythingAnew()
		rest()
		r := l.Status(nil)
		if len(w.trace) != before || len(r.Units) != 3 || len(r.Patterns) != 1 || r.Patterns[0].Paused == nil || answer(l, "w@2") != "not-confined" {
			t.Errorf("%q %+v", w.trace[before:], r)
		}
		for _, s := range r.Units {
			if s.Paused == nil {
				t.Errorf("%s is not paused", s.Unit)
			}
		}
		if o := resume(t, l, "w@2")[0]; o.Exit != attach.ExitFailed || o.Reasons[0].Next != "aaunitctl resume w@.service" {
			t.Errorf("one unit of a paused template: %+v", o)
		}
		// Withdrawn, too, it stays.
		w.undeclare(file)
		rest()
		if len(w.trace) != before {
			t.Errorf("withdrawn in the pause: %q", w.trace[before:])
		}
		w.declareUnit(file, "w@.service", func(a *attach.Attachment) { a.Profile = "%p" })
		time.Sleep(time.Hour)
		rest()
		if w.disk[dir] == "other" || w.kernel["w"] != "1" || w.units["w@3.service"].label != "w (enforce)" {
			t.Errorf("afterwards: %q %v", w.disk[dir], w.kernel)
		}
	})
}

func TestAnotherUnitKeepsThePolicyOfAPausedOne(t *testing.T) {
	w := newWorld()
	a, b := w.addUnit("a.service"), w.addUnit("b.service")
	w.declareUnit(fileA, "a.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(b *attach.Attachment) { b.Profile = "a" })
	w.run(t, func(l *Loop) {
		out := pause(t, l, time.Hour, "a")
		if n := out[0].Notes; len(n) != 1 || n[0].Detail != "b.service is also attached to a and not paused: its policy is kept" {
			t.Errorf("%+v", n)
		}
		w.trample(l, a)
		if w.kernel["a"] != "2" || b.label != "a (enforce)" || answer(l, "b") != "confined" || answer(l, "a") != "not-confined" {
			t.Errorf("%v, b is %s, a is %s", w.kernel, answer(l, "b"), answer(l, "a"))
		}
		if strings.Contains(w.disk[dropIn], "=a") {
			t.Error("the drop-in of the paused unit was put back")
		}
		if n := pause(t, l, time.Hour, "b")[0].Notes; len(n) != 0 {
			t.Errorf("when all are paused: %+v", n)
		}
	})
}

func TestWhatCannotBePaused(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.aliases["alias.service"] = "a.service"
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		for name, want := range map[string]attach.Exit{"b": attach.ExitFailed, "nosuch": attach.ExitNoUnit, "x*": attach.ExitFailed, "t@.service": attach.ExitFailed} {
			if o := pause(t, l, time.Hour, name)[0]; o.Exit != want || o.Paused != nil || len(o.Reasons) != 1 {
				t.Errorf("%s: %+v", name, o)
			}
		}
		for name, want := range map[string]attach.Exit{"a": attach.ExitOK, "b": attach.ExitOK, "nosuch": attach.ExitNoUnit} {
			if o := resume(t, l, name)[0]; o.Exit != want || o.Changed {
				t.Errorf("resume %s: %+v", name, o)
			}
		}
		for _, span := range []time.Duration{0, -time.Hour, attach.MaxPause + 1} {
			if _, err := l.Pause(context.Background(), attach.Request{Units: []string{"a"}, For: span}, nil); err == nil {
				t.Errorf("paused for %v", span)
			}
		}
		if o := pause(t, l, time.Hour, "alias")[0]; o.Unit != "a.service" || o.Paused == nil {
			t.Errorf("by an alias: %+v", o)
		}
		resume(t, l, "a")
		if out := pause(t, l, time.Hour, "*"); len(out) != 1 || out[0].Unit != "a.service" || out[0].Paused == nil {
			t.Errorf("by a glob: %+v", out)
		}
		w.mu.Lock()
		w.diskFull = true
		w.mu.Unlock()
		if o := pause(t, l, 2*time.Hour, "a")[0]; o.Exit != attach.ExitFailed || o.Reasons[0].Code != attach.RecordBad {
			t.Errorf("without a record: %+v", o)
		}
		w.mu.Lock()
		w.diskFull = false
		w.mu.Unlock()
		if left := time.Until(l.Status([]string{"a"}).Units[0].Paused.Until); left > time.Hour {
			t.Errorf("a pause that failed lasts %v", left)
		}
	})
}

// A unit whose attach is refused can be paused before there is anything of it.
func TestARefusedUnitIsPaused(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.bad["a"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		pause(t, l, time.Hour, "a")
		w.mu.Lock()
		w.bad["a"] = false
		w.mu.Unlock()
		l.everythingAnew()
		rest()
		if w.disk[dropIn] != "" || u.label != "unconfined" {
			t.Error("attached in the pause")
		}
		resume(t, l, "a")
		rest()
		if answer(l, "a") != "confined" {
			t.Errorf("%s: %q", answer(l, "a"), w.trace)
		}
	})
}

func TestAPauseEndsNoHold(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.breaks["a"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		restarts := w.called("restart")
		pause(t, l, time.Hour, "a")
		rest()
		resume(t, l, "a")
		rest()
		if w.called("restart") != restarts || l.Status(nil).Units[0].Held == nil {
			t.Fatalf("tried again: %q", w.trace)
		}
		pause(t, l, time.Hour, "a")
		w.mu.Lock()
		w.files["a"] = "2"
		u.breaks["a"] = false
		w.mu.Unlock()
		l.queue.add(inputChanged, "a.service")
		rest()
		if s := l.Status(nil).Units[0]; s.Held == nil || w.called("restart") != restarts {
			t.Errorf("in the pause: %+v", s)
		}
		time.Sleep(time.Hour)
		rest()
		if s := l.Status(nil).Units[0]; s.Held != nil || answer(l, "a") != "confined" {
			t.Errorf("when the inputs changed: %+v", s)
		}
	})
}

// Whoever is told that a unit is paused can rely on it: a look that was about to
// stop it has ended.
func TestAPauseWaitsForALookUnderWay(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		ch := make(chan struct{})
		w.hang = map[string]chan struct{}{"a.service": ch}
		w.mu.Unlock()
		l.queue.add(started, "a.service")
		synctest.Wait()
		go func() {
			time.Sleep(20 * time.Second)
			w.mu.Lock()
			u.label = "unconfined"
			w.mu.Unlock()
			close(ch)
		}()
		pause(t, l, time.Hour, "a")
		stopped := w.called("stop")
		if stopped != 1 {
			t.Errorf("the look has not ended: %q", w.trace)
		}
		w.mu.Lock()
		w.hang = nil
		w.begin(u)
		u.label = "unconfined"
		w.mu.Unlock()
		rest()
		if w.called("stop") != stopped || !u.running {
			t.Errorf("stopped in the pause: %q", w.trace)
		}
	})
}

// A daemon that is killed at any step of what follows a pause converges.
func TestMendingAfterAPauseKilledAtAnyStep(t *testing.T) {
	for kill := 1; ; kill++ {
		w := newWorld()
		u := w.addUnit("a.service")
		w.declareUnit(fileA, "a.service", nil)
		w.run(t, func(l *Loop) {
			pause(t, l, time.Hour, "a")
			w.trample(l, u)
			w.mu.Lock()
			w.killAt = len(w.trace) + kill
			w.mu.Unlock()
			resume(t, l, "a")
			rest()
		})
		killed := w.dead
		w.dead, w.killAt = false, 0
		w.run(t, func(l *Loop) {
			if !w.mended(u) || answer(l, "a") != "confined" {
				t.Errorf("after a kill before step %d: %+v %q", kill, u, w.trace)
			}
		})
		if !killed {
			break
		}
	}
}

// What a look puts on record while a pause waits for it stays there.
func TestAPauseKeepsWhatALookHasProved(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		ch := make(chan struct{})
		w.mu.Lock()
		w.hang = map[string]chan struct{}{"a.service": ch}
		w.begin(u)
		w.mu.Unlock()
		synctest.Wait()
		go func() {
			time.Sleep(20 * time.Second)
			close(ch)
		}()
		pause(t, l, time.Hour, "a")
		if r := w.record("a.service"); r.Pause == nil || r.Proved != fmt.Sprint("a.service-", u.start) || r.Verdict.InvocationID != r.Proved {
			t.Errorf("%+v", r)
		}
	})
}

// A boot leaves alone what only paused units run under.
func TestMakePolicyLiveOfPausedUnits(t *testing.T) {
	until := func(d time.Duration) *attach.Pause { return &attach.Pause{Until: time.Now().Add(d)} }
	for name, tt := range map[string]struct {
		pauses map[string]*attach.Pause
		want   string
	}{
		"one of two":      {map[string]*attach.Pause{"a.service": until(time.Hour)}, "1"},
		"not the pattern": {map[string]*attach.Pause{"a.service": until(time.Hour), "b@1.service": until(time.Hour)}, "1"},
		"the pattern":     {map[string]*attach.Pause{"a.service": until(time.Hour), "b@.service": until(time.Hour)}, "by hand"},
		"over":            {map[string]*attach.Pause{"a.service": until(-time.Second), "b@1.service": until(time.Hour)}, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.addUnit("a.service")
			w.addUnit("b@1.service")
			w.declareUnit(fileA, "a.service", nil)
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b@.service", func(b *attach.Attachment) { b.Profile = "a" })
			w.run(t, func(*Loop) {})
			for unit, pause := range tt.pauses {
				r := w.records[unit]
				if len(r.DropIns) == 0 {
					t.Fatalf("%s has no drop-in", unit)
				}
				r.Pause = pause
				w.records[unit] = r
			}
			w.kernel["a"] = "by hand"
			if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["a"] != tt.want {
				t.Errorf("%v: the kernel has %q", err, w.kernel["a"])
			}
		})
	}
}

// TestAVerifyStopsNoPausedUnit: who is told that a unit is paused can rely on it, also
// while somebody's look at it is under way that found it not confined. What stops it is
// a look for which a pause waits.
func TestAVerifyStopsNoPausedUnit(t *testing.T) {
	for name, begin := range map[string]func(u *unit){
		"a start that was confined":    func(*unit) {},
		"a start that nobody heard of": func(u *unit) { u.start++ },
	} {
		for _, pauses := range []bool{false, true} {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
			w.run(t, func(l *Loop) {
				rest()
				// The next look does not come back for a while, so that there is time
				// for a pause before the stop that may follow it.
				next := make(chan struct{})
				scans := 0
				unlock := w.lock()
				begin(u)
				u.label = "other (enforce)"
				w.onScan = func() {
					if scans++; scans == 2 { // one with all others, and one alone
						w.hang = map[string]chan struct{}{"a.service": next}
					}
				}
				unlock()
				stops := func() int {
					defer w.lock()()
					return w.calls["stop"]
				}
				var wg sync.WaitGroup
				wg.Go(func() {
					r, err := l.Verify(context.Background(), []string{"a"})
					if err != nil || len(r.Units) != 1 || r.Units[0].Verdict.Answer != attach.NotConfined {
						t.Errorf("%s: %v %+v", name, err, r)
					}
				})
				time.Sleep(time.Second)
				told := -1
				if pauses {
					wg.Go(func() {
						if o := pause(t, l, time.Hour, "a")[0]; o.Exit != attach.ExitOK {
							t.Errorf("%s: %+v", name, o)
						}
						told = stops()
					})
				}
				time.Sleep(time.Second)
				unlock = w.lock()
				w.hang = nil
				unlock()
				close(next)
				wg.Wait()
				rest()
				switch now := stops(); {
				case pauses && now != told:
					t.Errorf("%s: stopped when it was paused: %q", name, w.trace)
				case !pauses && (now != 1 || u.running):
					t.Errorf("%s: stopped %d times", name, now)
				}
			})
		}
	}
}

// A pause of a template leaves its drop-in and policy as somebody made them. Units to come
// do not start under the profile then, and nobody is told that they do.
func TestAPausedPatternIsToldTheTruthOf(t *testing.T) {
	file, at := "/etc/aaunit/attachments.d/w.conf", attach.DropInPath("w@.service", false)
	for name, c := range map[string]struct {
		do    func(w *world)
		codes []attach.Code
		exit  attach.Exit
	}{
		"untouched":          {func(*world) {}, nil, attach.ExitOK},
		"drop-in removed":    {func(w *world) { delete(w.disk, at) }, []attach.Code{attach.DropInMissing}, attach.ExitNotConfined},
		"drop-in changed":    {func(w *world) { w.disk[at] = "[Service]\nAppArmorProfile=\n" }, []attach.Code{attach.DropInDiffers}, attach.ExitNotConfined},
		"policy softened":    {func(w *world) { w.replace("w", "1"+soft) }, []attach.Code{attach.PolicyTrampled}, attach.ExitNotConfined},
		"policy removed":     {func(w *world) { w.remove("w") }, []attach.Code{attach.PolicyTrampled}, attach.ExitNotConfined},
		"both":               {func(w *world) { delete(w.disk, at); w.remove("w") }, []attach.Code{attach.DropInMissing, attach.PolicyTrampled}, attach.ExitNotConfined},
		"a new text":         {func(w *world) { w.files["w"] = "2" }, nil, attach.ExitOK},
		"a new text is live": {func(w *world) { w.files["w"] = "2"; w.replace("w", "2") }, []attach.Code{attach.PolicyTrampled}, attach.ExitNotConfined},
		"the text is broken": {func(w *world) { w.bad["w"] = true }, nil, attach.ExitOK},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.files["w"] = "1"
			w.declareUnit(file, "w@.service", func(a *attach.Attachment) { a.Profile = "w" })
			w.run(t, func(l *Loop) {
				if exitOf(l) != attach.ExitOK {
					t.Fatalf("at first: %+v", l.Status(nil))
				}
				pause(t, l, time.Hour, "w@.service")
				rest()
				disk, kernel, before := w.disk[at], w.kernel["w"], len(w.trace)
				unlock := w.lock()
				c.do(w)
				unlock()
				l.everythingAnew()
				rest()
				s := l.Status(nil).Patterns[0]
				if exitOf(l) != c.exit || !slices.Equal(codes(s.Refused), c.codes) || s.Paused == nil {
					t.Errorf("exit %d: %+v", exitOf(l), s)
				}
				if answer, words := s.ToCome(); (answer == attach.Confined) != (c.exit == attach.ExitOK) {
					t.Errorf("of units to come it says: %s", words)
				}
				out, err := l.Apply(context.Background(), attach.Request{Units: []string{file}}, nil)
				if err != nil || len(out) != 1 || out[0].Exit != c.exit || len(out[0].Reasons) != len(c.codes) {
					t.Errorf("apply: %+v %v", out, err)
				}
				if len(w.trace) != before {
					t.Errorf("in the pause it did %q", w.trace[before:])
				}
				// Somebody puts it back in the pause.
				unlock = w.lock()
				w.disk[at], w.files["w"], w.bad["w"] = disk, "1", false
				w.replace("w", kernel)
				unlock()
				l.everythingAnew()
				rest()
				if s := l.Status(nil).Patterns[0]; exitOf(l) != attach.ExitOK || len(s.Refused) != 0 || s.Paused == nil {
					t.Errorf("when all is as it was: %+v", s)
				}
				unlock = w.lock()
				c.do(w)
				unlock()
				resume(t, l, "w@.service")
				rest()
				if exitOf(l) != attach.ExitOK || w.disk[at] != disk {
					t.Errorf("afterwards: %+v %q %v", l.Status(nil), w.disk[at], w.kernel)
				}
			})
		})
	}
}

// A pause does not take back that a template's policy could not be put back, nor does its
// end before it is.
func TestAPauseTakesBackNothingThatIsToldOfAPattern(t *testing.T) {
	w := newWorld()
	w.files["w"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "w" })
	w.run(t, func(l *Loop) {
		unlock := w.lock()
		w.full = true
		w.replace("w", "evil")
		unlock()
		w.policy <- struct{}{}
		rest()
		if exitOf(l) != attach.ExitNotConfined {
			t.Fatalf("before the pause: %+v", l.Status(nil))
		}
		pause(t, l, time.Hour, "w@.service")
		rest()
		if exitOf(l) != attach.ExitNotConfined {
			t.Errorf("in the pause: %+v", l.Status(nil).Patterns)
		}
		var seen []attach.Exit
		at := attach.DropInPath("w@.service", false)
		unlock = w.lock()
		delete(w.disk, at)
		w.full = false
		w.onCall = func(call string) {
			if strings.HasPrefix(call, "load") || strings.HasPrefix(call, "write") {
				seen = append(seen, w.exitAmid(l))
			}
		}
		unlock()
		l.everythingAnew()
		rest()
		resume(t, l, "w@.service")
		rest()
		if exitOf(l) != attach.ExitOK || w.kernel["w"] != "1" || w.disk[at] == "" {
			t.Errorf("afterwards: %+v", l.Status(nil).Patterns)
		}
		if len(seen) < 2 || slices.Contains(seen, attach.ExitOK) {
			t.Errorf("while it is put back: %v", seen)
		}
	})
}
