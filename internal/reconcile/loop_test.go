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

// answer is the published verdict of a unit.
func answer(l *Loop, unit string) string {
	r := l.Status([]string{unit})
	if len(r.Units) != 1 || r.Units[0].Verdict == nil {
		return "none"
	}
	return r.Units[0].Verdict.Answer.String()
}

func attachUnits(t *testing.T, l *Loop, r attach.Request) []attach.Outcome {
	t.Helper()
	out, err := l.Attach(context.Background(), r, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func codes(rs []attach.Reason) []attach.Code {
	var out []attach.Code
	for _, r := range rs {
		out = append(out, r.Code)
	}
	return out
}

const dropIn = "/etc/systemd/system/a.service.d/90-aaunit.conf"

func TestAttachAtTheCommandLineIsProvedAndKept(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		var steps []string
		out, err := l.Attach(context.Background(), attach.Request{Units: []string{"a"}}, func(e attach.Event) {
			steps = append(steps, string(e.Step)+" "+string(e.State))
		})
		if err != nil || len(out) != 1 || out[0].Exit != attach.ExitOK || out[0].Verdict.Answer != attach.Confined {
			t.Fatalf("%v %+v", err, out)
		}
		want := []string{"policy running", "policy done", "drop-in done", "drop-in running", "restarted running", "restarted done", "verdict done"}
		if !slices.Equal(steps, want) {
			t.Errorf("steps %q", steps)
		}
		if w.units["a.service"].label != "a (enforce)" || !w.units["a.service"].tmp {
			t.Errorf("the unit runs as %+v", w.units["a.service"])
		}
		rest()
		if n := w.calls["restart"]; n != 1 {
			t.Errorf("restarted %d times: %q", n, w.trace)
		}
	})
	// A new daemon finds nothing to do.
	before := len(w.trace)
	w.run(t, func(l *Loop) {
		if got := answer(l, "a"); got != "confined" {
			t.Errorf("after a restart of the daemon: %s", got)
		}
	})
	if extra := w.trace[before:]; len(extra) != 0 {
		t.Errorf("a new daemon did %q", extra)
	}
}

// TestWhoIsAnsweredFirstHearsOfWhatIsAttached: the daemon answers from the moment on
// at which its loop is ready.
func TestWhoIsAnsweredFirstHearsOfWhatIsAttached(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	synctest.Test(t, func(t *testing.T) {
		w.events, w.changed = make(chan attach.UnitEvent, 1000), make(chan struct{}, 1)
		w.denials, w.policy = make(chan attach.Denial), make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		l := w.loop()
		err := l.Run(ctx, func() {
			if r := l.Status(nil); len(r.Units) != 1 || len(r.Missing) != 0 {
				t.Errorf("%+v", r)
			}
			cancel()
		})
		if err != nil {
			t.Error(err)
		}
	})
}

// TestTheLoopRestsAndGoesOn: what a daemon does without while there is nothing to
// do must be back before it does something.
func TestTheLoopRestsAndGoesOn(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	rests, resting := 0, false
	w.resting = func() func() {
		rests++
		resting = true
		return func() { resting = false }
	}
	w.gate = func(attach.Compiled) []attach.Reason {
		if resting {
			t.Error("it works while it rests")
		}
		return nil
	}
	w.run(t, func(l *Loop) {
		if rests != 1 || !resting {
			t.Errorf("after the start: %d rests, resting %v", rests, resting)
		}
		for range 2 {
			attachUnits(t, l, attach.Request{Units: []string{"a"}})
			rest()
			if _, err := l.Detach(context.Background(), attach.Request{Units: []string{"a"}}, nil); err != nil {
				t.Fatal(err)
			}
			rest()
			if !resting {
				t.Error("it does not rest")
			}
		}
		if rests != 5 {
			t.Errorf("%d rests, want one after the start and after each operation", rests)
		}
	})
}

// TestTheLoopRestsOnceMoreAfterQuestions: what was answered takes memory, too, and
// somebody who asks all the time does not have it rest all the time.
func TestTheLoopRestsOnceMoreAfterQuestions(t *testing.T) {
	w := newWorld()
	var rests []time.Time
	resting := 0
	w.resting = func() func() {
		rests = append(rests, time.Now())
		resting++
		return func() { resting-- }
	}
	w.run(t, func(l *Loop) {
		begun := time.Now()
		for range 40 {
			l.Stir()
			time.Sleep(time.Second)
		}
		time.Sleep(5 * time.Minute) // less than to the next re-check
		synctest.Wait()
		if len(rests) != 3 || resting != 1 {
			t.Fatalf("rests at %v, %d not ended", rests, resting)
		}
		for _, after := range rests[1:] {
			if after.Sub(begun) > 2*restAgain+time.Minute {
				t.Errorf("it rested %v after the first question", after.Sub(begun))
			}
		}
		if gap := rests[2].Sub(rests[1]); gap < restAgain {
			t.Errorf("it rested again after %v", gap)
		}
	})
}

func TestManyUnitsCostOneLoadOneReload(t *testing.T) {
	w := newWorld()
	for i := range 20 {
		w.declareUnit(fmt.Sprintf("/etc/aaunit/attachments.d/%02d.conf", i), w.addUnit(fmt.Sprintf("u%02d.service", i)).name, nil)
	}
	w.run(t, func(l *Loop) {
		for i := range 20 {
			if got := answer(l, fmt.Sprintf("u%02d", i)); got != "confined" {
				t.Errorf("u%02d is %s", i, got)
			}
		}
	})
	if w.calls["load"] != 1 || w.calls["reload"] != 1 || w.calls["restart"] != 20 {
		t.Errorf("calls %v", w.calls)
	}
}

func TestAFailedFirstAttachIsUndone(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service").breaks["a"] = true
	w.addUnit("b.service")
	w.run(t, func(l *Loop) {
		out := attachUnits(t, l, attach.Request{Units: []string{"a", "b"}})
		if out[0].Exit != attach.ExitFailed || !out[0].Undone || out[1].Exit != attach.ExitOK {
			t.Fatalf("%+v", out)
		}
		rest()
		a := w.units["a.service"]
		if !a.running || a.label != "unconfined" || w.disk[dropIn] != "" || w.read[dropIn] != "" {
			t.Errorf("not undone: %+v, drop-in %q", a, w.disk[dropIn])
		}
		if _, loaded := w.kernel["a"]; loaded {
			t.Error("the profile stays loaded")
		}
		if len(w.att) != 1 || len(w.records) != 1 {
			t.Errorf("the attachment was not withdrawn: %v %v", w.att, w.records)
		}
		if got := answer(l, "b"); got != "confined" {
			t.Errorf("b is %s", got)
		}
	})
	// One reload for the attach and one for the undo, for both units together.
	if w.calls["reload"] != 2 {
		t.Errorf("calls %v", w.calls)
	}
}

func TestADeclaredAttachThatFailsIsHeldUntilAnInputChanges(t *testing.T) {
	for _, crash := range []bool{false, true} {
		w := newWorld()
		u := w.addUnit("a.service")
		u.breaks["a"], u.crashLoop = !crash, crash
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
		w.run(t, func(l *Loop) {
			r := l.Status([]string{"a"})
			if len(r.Units) != 1 || r.Units[0].Held == nil || r.Units[0].Verdict.Answer != attach.NotConfined {
				t.Fatalf("%+v", r)
			}
			if !u.running || u.label != "unconfined" {
				t.Errorf("%+v", u)
			}
			w.tellFiles()
			l.queue.add(inputChanged|started, "a.service")
			rest()
		})
		restarts := w.calls["restart"]
		w.run(t, func(l *Loop) { // the hold survives the daemon
			if w.calls["restart"] != restarts || l.Status(nil).Units[0].Held == nil {
				t.Errorf("tried again: %q", w.trace)
			}
			w.mu.Lock()
			w.files["a"] = "2"
			u.breaks["a"], u.crashLoop = false, false
			w.mu.Unlock()
			l.queue.add(inputChanged, "a.service")
			rest()
			if got := answer(l, "a"); got != "confined" || l.Status(nil).Units[0].Held != nil {
				t.Errorf("after the profile changed: %s", got)
			}
		})
	}
}

func TestOnFailedAttach(t *testing.T) {
	for _, c := range []struct {
		on              attach.OnFailedAttach
		running, dropIn bool
	}{{attach.FailedUndo, true, false}, {attach.FailedStop, false, true}, {attach.FailedKeep, false, true}} {
		w := newWorld()
		u := w.addUnit("a.service")
		u.breaks["a"] = true
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.OnFailedAttach = c.on })
		w.run(t, func(l *Loop) {
			rest()
			if _, has := w.disk[dropIn]; u.running != c.running || has != c.dropIn || u.label == "unconfined" && !c.running && u.running {
				t.Errorf("%s: running %v, drop-in %v", c.on, u.running, has)
			}
			if w.calls["restart"]+w.calls["start"] > 2 {
				t.Errorf("%s: %q", c.on, w.trace)
			}
		})
	}
}

func TestAConfinedUnitIsNeverStartedUnconfinedByAnUndo(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.files["b"] = "1"
	u.breaks["b"] = true
	file := "/etc/aaunit/attachments.d/a.conf"
	w.declareUnit(file, "a.service", nil)
	w.run(t, func(l *Loop) {
		if got := answer(l, "a"); got != "confined" {
			t.Fatal(got)
		}
		w.mu.Lock()
		w.onCall = func(string) {
			if u.running && u.label == "unconfined" {
				t.Error("the unit ran unconfined")
			}
		}
		w.mu.Unlock()
		w.declareUnit(file, "a.service", func(a *attach.Attachment) { a.Profile = "b" })
		rest()
		if !u.running || u.label != "a (enforce)" || !strings.Contains(w.disk[dropIn], "AppArmorProfile=a\n") {
			t.Errorf("%+v %q", u, w.disk[dropIn])
		}
		if r := l.Status(nil).Units[0]; r.Held == nil {
			t.Errorf("not held: %+v", r)
		}
	})
}

func TestDetachTakesBackExactlyWhatAttachDid(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.addUnit("b.service")
	w.kernel["b"] = "1" // was loaded before
	w.run(t, func(l *Loop) {
		attachUnits(t, l, attach.Request{Units: []string{"a", "b"}})
		out, err := l.Detach(context.Background(), attach.Request{Units: []string{"a", "b"}}, nil)
		if err != nil || out[0].Exit != attach.ExitOK || out[1].Exit != attach.ExitOK {
			t.Fatalf("%v %+v", err, out)
		}
		if u.label != "unconfined" || !u.running || len(w.disk) != 0 || len(w.records) != 0 || len(w.att) != 0 {
			t.Errorf("%+v %v %v", u, w.disk, w.records)
		}
		if _, a := w.kernel["a"]; a {
			t.Error("a stays loaded, though attach loaded it")
		}
		if _, b := w.kernel["b"]; !b {
			t.Error("b was unloaded, though it was loaded before")
		}
		if r := l.Status(nil); len(r.Units) != 0 {
			t.Errorf("%+v", r)
		}
		// Again: nothing to do, and no error.
		out, _ = l.Detach(context.Background(), attach.Request{Units: []string{"a", "gone"}}, nil)
		if out[0].Exit != attach.ExitOK || out[0].Changed || out[1].Exit != attach.ExitNoUnit {
			t.Errorf("%+v", out)
		}
	})
}

func TestDetachWithoutRestartKeepsTheLoadedProfile(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		attachUnits(t, l, attach.Request{Units: []string{"a"}})
		out, _ := l.Detach(context.Background(), attach.Request{Units: []string{"a"}, NoRestart: true}, nil)
		if _, loaded := w.kernel["a"]; !loaded || u.label != "a (enforce)" || len(w.disk) != 0 {
			t.Errorf("%+v %v", u, w.kernel)
		}
		if !slices.Contains(codes(out[0].Notes), attach.UnloadSkipped) {
			t.Errorf("not said: %+v", out[0].Notes)
		}
	})
}

func TestARemovedFileDetachesAndABrokenOneDoesNot(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	file := "/etc/aaunit/attachments.d/a.conf"
	w.declareUnit(file, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.broken[file] = true
		w.mu.Unlock()
		w.tellFiles()
		rest()
		if u.label != "a (enforce)" || w.disk[dropIn] == "" {
			t.Fatalf("a broken file took the attachment away: %+v", u)
		}
	})
	w.run(t, func(l *Loop) { // also for a daemon that never saw it whole
		if u.label != "a (enforce)" || w.disk[dropIn] == "" {
			t.Fatalf("a broken file took the attachment away: %+v", u)
		}
		if r := l.Status(nil); len(r.Problems) == 0 {
			t.Error("the broken file is not reported")
		}
		w.mu.Lock()
		w.broken = map[string]bool{}
		w.mu.Unlock()
		w.undeclare(file)
		rest()
		if u.label != "unconfined" || w.disk[dropIn] != "" {
			t.Errorf("not detached: %+v", u)
		}
	})
}

func TestRivalAttachmentsChangeNothing(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "a.service", func(a *attach.Attachment) { a.Profile = "other" })
		rest()
		if u.label != "a (enforce)" || w.calls["restart"] != 1 {
			t.Errorf("%+v %q", u, w.trace)
		}
	})
}

func TestVerdictAfterEveryStart(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.run(t, func(l *Loop) {
		first := l.Status(nil).Units[0].Verdict
		w.mu.Lock()
		if err := w.begin(u); err != nil {
			t.Error(err)
		}
		w.mu.Unlock()
		synctest.Wait()
		second := l.Status(nil).Units[0].Verdict
		if second.Answer != attach.Confined || second.InvocationID == first.InvocationID {
			t.Errorf("%+v", second)
		}
		// The first looks come before systemd has executed the program.
		w.mu.Lock()
		w.begin(u)
		u.forked = 5
		w.mu.Unlock()
		rest()
		if got := answer(l, "a"); got != "confined" {
			t.Errorf("a slow start: %s", got)
		}
		// A person takes the profile off behind our back.
		w.mu.Lock()
		w.begin(u)
		u.label = "unconfined"
		w.mu.Unlock()
		synctest.Wait()
		if got := answer(l, "a"); got != "not-confined" {
			t.Errorf("unconfined task: %s", got)
		}
	})
}

func TestOnViolationStopStopsOnlyWhatItMay(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.drags = []string{"dbus.service"} // must not be restarted: the attachment waits
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.run(t, func(l *Loop) {
		if !u.running || u.start != 1 {
			t.Fatalf("a start from before the attachment was touched: %q", w.trace)
		}
		if r := l.Status(nil).Units[0]; !slices.Contains(codes(r.Notes), attach.RestartPending) || r.Verdict.Answer != attach.NotConfined {
			t.Errorf("%+v", r)
		}
		w.mu.Lock()
		w.begin(u)
		u.label = "unconfined"
		w.mu.Unlock()
		synctest.Wait()
		if u.running {
			t.Error("a start that is not confined was not stopped")
		}
	})
}

// A start that was confined and is no more is reported, not restarted at every
// trigger.
func TestLostConfinementIsNoRestartLoop(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		u.label = "other (enforce)"
		w.mu.Unlock()
		for range 3 {
			l.queue.add(inputChanged, "a.service")
			rest()
		}
		if w.calls["restart"] != 1 || answer(l, "a") != "not-confined" {
			t.Errorf("%q %s", w.trace, answer(l, "a"))
		}
	})
}

func TestRefusedAttachTouchesNothing(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.bad["a"] = true
	delete(w.files, "b")
	w.run(t, func(l *Loop) {
		out := attachUnits(t, l, attach.Request{Units: []string{"a", "b", "none", "t@"}})
		for i, want := range []attach.Code{attach.ProfileBroken, attach.ProfileNotFound, attach.UnitNotFound, attach.UnitTemplate} {
			if got := codes(out[i].Reasons); !slices.Contains(got, want) || out[i].Exit == attach.ExitOK {
				t.Errorf("%s: %v, exit %d; want %s", out[i].Unit, got, out[i].Exit, want)
			}
		}
		if out[2].Exit != attach.ExitNoUnit {
			t.Errorf("exit %d", out[2].Exit)
		}
	})
	if len(w.trace) != 0 || len(w.att) != 0 || len(w.records) != 0 {
		t.Errorf("%q %v", w.trace, w.att)
	}
}

// What cannot be put on record is not written: it would not be known as ours.
func TestNoRecordNoDropIn(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.diskFull = true
	w.run(t, func(l *Loop) {
		for range 2 { // what was not written is not taken for written the next time
			out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
			if out[0].Exit != attach.ExitFailed || !strings.Contains(out[0].Reasons[0].Detail, "no space left") || out[0].Reasons[0].Next != "make room" {
				t.Errorf("%+v", out)
			}
			rest()
		}
		if len(w.disk) != 0 || u.start != 1 || len(w.att) != 0 {
			t.Errorf("%v %+v %v", w.disk, u, w.att)
		}
	})
}

// Why an attachment was not written is not always that there is one.
func TestAnAttachmentThatCannotBeWritten(t *testing.T) {
	for _, c := range []struct {
		err  error
		code attach.Code
		next string
	}{
		{&attach.InTheWay{Text: "cannot write it: there is one"}, attach.DeclaredInFile, ""},
		{noSpace{}, attach.AttachmentBad, "make room"},
	} {
		w := newWorld()
		u := w.addUnit("a.service")
		w.refuses = c.err
		w.run(t, func(l *Loop) {
			r := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0].Reasons[0]
			if r.Code != c.code || r.Next != c.next || r.Detail != c.err.Error() || u.start != 1 || len(w.disk) != 0 {
				t.Errorf("%v: %+v", c.err, r)
			}
		})
	}
}

func TestPlanChangesNothingAndTellsWhatARestartCosts(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service").drags = []string{"web.service"}
	w.run(t, func(l *Loop) {
		out, err := l.Plan(context.Background(), attach.Request{Units: []string{"a"}})
		if err != nil || out[0].Plan == nil {
			t.Fatalf("%v %+v", err, out)
		}
		p := out[0].Plan
		if !p.Has(attach.LoadPolicy) || !p.Has(attach.WriteDropIn) || !p.Has(attach.Reload) || !p.Has(attach.Restart) ||
			!slices.Equal(p.RestartsWith, []string{"web.service"}) || !slices.Equal(p.TmpFiles, []string{"/tmp/socket"}) {
			t.Errorf("%+v", p)
		}
	})
	if len(w.trace) != 0 {
		t.Errorf("%q", w.trace)
	}
}

func TestAnAliasLeadsToTheUnit(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.aliases["alias.service"] = "a.service"
	w.declareUnit("/etc/aaunit/attachments.d/x.conf", "alias.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.run(t, func(l *Loop) {
		rest()
		if _, ok := w.disk[dropIn]; !ok || answer(l, "a") != "confined" {
			t.Errorf("%v %s", w.disk, answer(l, "a"))
		}
	})
	before := len(w.trace)
	w.run(t, func(l *Loop) { // a new daemon has not heard of the alias
		if extra := w.trace[before:]; len(extra) != 0 || answer(l, "a") != "confined" {
			t.Errorf("a new daemon did %q, %s", extra, answer(l, "a"))
		}
	})
}

func TestAPatternReachesUnitsToCome(t *testing.T) {
	w := newWorld()
	w.addUnit("w@1.service")
	w.files["w"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "%p" })
	w.run(t, func(l *Loop) {
		rest()
		if _, ok := w.disk["/etc/systemd/system/w@.service.d/90-aaunit.conf"]; !ok || answer(l, "w@1") != "confined" {
			t.Fatalf("%v %s", w.disk, answer(l, "w@1"))
		}
		w.mu.Lock()
		u := w.addUnit("w@2.service")
		u.running = false
		w.begin(u)
		w.mu.Unlock()
		rest()
		if u.label != "w (enforce)" || answer(l, "w@2") != "confined" {
			t.Errorf("%+v %s", u, answer(l, "w@2"))
		}
		// The verdict on its next start, too, knows what was accepted.
		w.mu.Lock()
		w.begin(u)
		w.mu.Unlock()
		synctest.Wait()
		if got := answer(l, "w@2"); got != "confined" {
			t.Errorf("the second start is %s", got)
		}
		// A list that systemd does not give takes nothing away.
		w.mu.Lock()
		w.unlisted = true
		w.mu.Unlock()
		w.tellFiles()
		l.declare(t.Context())
		rest()
		if answer(l, "w@1") != "confined" || w.disk["/etc/systemd/system/w@.service.d/90-aaunit.conf"] == "" {
			t.Errorf("an unanswered question detached: %s %q", answer(l, "w@1"), w.trace)
		}
		w.mu.Lock()
		w.unlisted = false
		w.mu.Unlock()
		// One of the pattern that cannot live under the profile stays down; the
		// others keep theirs.
		w.mu.Lock()
		bad := w.addUnit("w@3.service")
		bad.breaks["w"] = true
		w.mu.Unlock()
		l.declare(t.Context())
		rest()
		if bad.running || w.disk["/etc/systemd/system/w@.service.d/90-aaunit.conf"] == "" || answer(l, "w@1") != "confined" {
			t.Errorf("%+v %v %s", bad, w.disk, answer(l, "w@1"))
		}
		if r := l.Status([]string{"w@3"}).Units; len(r) != 1 || r[0].Held == nil {
			t.Errorf("%+v", r)
		}
	})
}

// TestKilledAtAnyStep kills the daemon before each call that changes something,
// and starts a new one: it must end in the declared state, and a unit that was
// confined must at no time run unconfined.
func TestKilledAtAnyStep(t *testing.T) {
	count := func() int {
		w := newWorld()
		w.addUnit("a.service")
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
		w.run(t, func(*Loop) {})
		return len(w.trace)
	}()
	if count < 4 {
		t.Fatalf("only %d steps", count)
	}
	for kill := range count {
		t.Run(fmt.Sprint(kill), func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
			w.killAt = kill + 1
			w.run(t, func(*Loop) {})
			if !w.dead || len(w.trace) != kill {
				t.Fatalf("not killed before step %d: %q", kill, w.trace)
			}
			w.dead, w.killAt = false, 0
			w.run(t, func(l *Loop) {
				if got := answer(l, "a"); got != "confined" || u.label != "a (enforce)" {
					t.Errorf("after a kill before step %d: %s, %+v, %q", kill, got, u, w.trace)
				}
			})
		})
	}
}

func TestComplainNeverTakesEnforcementFromAnotherUnit(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	shared := func(mode attach.Wish) func(*attach.Attachment) {
		return func(a *attach.Attachment) { a.Profile, a.Mode, a.Settle = "a", mode, 0 }
	}
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", shared(attach.WishEnforce))
	w.run(t, func(l *Loop) {
		rest()
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", shared(attach.WishComplain))
		rest()
		loads := w.calls["load"]
		w.changed <- struct{}{} // and again
		rest()
		if got := answer(l, "a"); got != "confined" || modeOf(w.kernel["a"]) != attach.ModeEnforce {
			t.Errorf("the enforced unit is %s, its profile %s", got, w.kernel["a"])
		}
		if w.calls["load"] != loads {
			t.Errorf("the two load in turn: %q", w.trace)
		}
		r := l.Status([]string{"b"})
		if !slices.Contains(codes(r.Units[0].Refused), attach.ProfileDisputed) {
			t.Errorf("%+v", r.Units)
		}
	})
}

// So it is where the unit that is enforced goes on under a name that its attachment no
// longer gives.
func TestComplainTakesNoEnforcementFromAUnitWhoseProfileNameNoLongerExpands(t *testing.T) {
	w := attached(nil, "a")
	w.addUnit("b.service")
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile = "%i" })
		rest()
		accepted := w.record("a.service").Policies[textA]
		out := attachUnits(t, l, attach.Request{Units: []string{"b"}, Profile: "a", Complain: true})[0]
		rest()
		if !slices.Contains(codes(out.Reasons), attach.ProfileDisputed) || answer(l, "a") != "confined" || modeOf(w.kernel["a"]) != attach.ModeEnforce {
			t.Errorf("%+v; a is %s, its profile %s", out, answer(l, "a"), w.kernel["a"])
		}
		if got := w.record("a.service").Policies[textA]; got != accepted {
			t.Errorf("accepted is %s, and was %s", got, accepted)
		}
	})
}

func TestDetachFromComplainEnforcesWhatWasEnforced(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.kernel["a"] = "1" // loaded at boot, and carried by others
	w.run(t, func(l *Loop) {
		for _, n := range []string{"a", "b"} {
			w.declareUnit("/etc/aaunit/attachments.d/"+n+".conf", n+".service", func(a *attach.Attachment) {
				a.Profile, a.Mode, a.Settle = "a", attach.WishComplain, 0
			})
			rest()
		}
		if w.kernel["a"] != "1"+soft {
			t.Fatalf("not in complain mode: %q", w.kernel)
		}
		w.undeclare("/etc/aaunit/attachments.d/a.conf")
		rest()
		if w.kernel["a"] != "1"+soft {
			t.Errorf("the other unit lost its mode: %q", w.kernel)
		}
		w.undeclare("/etc/aaunit/attachments.d/b.conf")
		rest()
		if w.kernel["a"] != "1" || len(w.records) != 0 {
			t.Errorf("left behind: %q, %+v", w.kernel, w.records)
		}
	})
}

// TestWhatTheBootLoadedIsNotUnloaded: what aaunit loaded before a reboot is
// loaded by apparmor.service after it, and others may count on it.
func TestWhatTheBootLoadedIsNotUnloaded(t *testing.T) {
	for _, rebooted := range []bool{false, true} {
		w := newWorld()
		w.addUnit("a.service")
		w.declareUnit("/run/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.Runtime = true })
		w.run(t, func(*Loop) { rest() })
		delete(w.att, "/run/aaunit/attachments.d/a.conf") // while the daemon is down
		if rebooted {
			w.boots++
			w.units["a.service"].label = "unconfined"
			clear(w.disk)
			clear(w.read)
		}
		w.run(t, func(*Loop) { rest() })
		if _, loaded := w.kernel["a"]; loaded != rebooted {
			t.Errorf("rebooted %v: loaded %v", rebooted, loaded)
		}
		if len(w.records) != 0 {
			t.Errorf("rebooted %v: records %+v", rebooted, w.records)
		}
	}
}

// TestWhatSomebodyLoadedIsToldAndPutBack: between the moment at which another
// policy is loaded and the one at which it is put back, the unit is not
// confined, and its verdict says so.
func TestWhatSomebodyLoadedIsToldAndPutBack(t *testing.T) {
	for _, removed := range []bool{false, true} {
		w := newWorld()
		w.addUnit("a.service")
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
		w.run(t, func(l *Loop) {
			rest()
			var seen []string
			l.Subscribe(context.Background(), func(s *attach.Status) {
				if s.Verdict != nil && (len(seen) == 0 || seen[len(seen)-1] != s.Verdict.Answer.String()) {
					seen = append(seen, s.Verdict.Answer.String())
				}
			})
			w.mu.Lock()
			w.kernel["a"] = "evil"
			if removed {
				delete(w.kernel, "a")
			}
			w.mu.Unlock()
			w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
			rest()
			if want := []string{"confined", "not-confined", "confined"}; !slices.Equal(seen, want) {
				t.Errorf("removed %v: verdicts %q, want %q", removed, seen, want)
			}
			if w.kernel["a"] != "1" || w.calls["restart"] != 1 || w.calls["stop"] != 0 {
				t.Errorf("removed %v: kernel %q, %q", removed, w.kernel, w.trace)
			}
		})
	}
}

// TestAPatternWithoutUnits: the drop-in of a template or prefix is there before
// the first unit of it, whose first start is confined then.
func TestAPatternWithoutUnits(t *testing.T) {
	const file = "/etc/systemd/system/w@.service.d/90-aaunit.conf"
	w := newWorld()
	w.files["w-1"] = "1"
	w.kernel["w-1"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "%p-%i" })
	w.declareUnit("/etc/aaunit/attachments.d/x.conf", "x-.service", func(a *attach.Attachment) { a.Profile = "x" })
	w.files["x"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/y.conf", "y-.service", func(a *attach.Attachment) { a.Profile = "none" })
	w.run(t, func(l *Loop) {
		rest()
		if !strings.Contains(w.read[file], "\nAppArmorProfile=%p-%i\n") {
			t.Fatalf("the template's drop-in: %q", w.read)
		}
		if w.read["/etc/systemd/system/x-.service.d/90-aaunit.conf"] == "" || w.kernel["x"] != "1" {
			t.Errorf("the prefix's: %q %q", w.read, w.kernel)
		}
		r := l.Status(nil)
		if len(r.Units) != 0 || len(r.Patterns) != 3 || len(r.Patterns[0].Refused) != 0 || !slices.Contains(codes(r.Patterns[2].Refused), attach.ProfileNotFound) {
			t.Errorf("%+v", r)
		}
		trace := len(w.trace)
		w.mu.Lock()
		u := w.addUnit("w@1.service")
		u.running = false
		w.begin(u)
		w.mu.Unlock()
		rest()
		if u.label != "w-1 (enforce)" || answer(l, "w@1") != "confined" || len(w.trace) != trace+1 || w.trace[trace] != "keep /etc/apparmor.d/w-1 1" {
			t.Errorf("%+v %s %q", u, answer(l, "w@1"), w.trace[trace:])
		}
		// The unit goes, the drop-in stays; the attachment goes, and so does it.
		w.mu.Lock()
		delete(w.units, "w@1.service")
		w.mu.Unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		rest()
		if w.disk[file] == "" {
			t.Error("the drop-in went with a unit")
		}
		w.undeclare("/etc/aaunit/attachments.d/w.conf")
		w.undeclare("/etc/aaunit/attachments.d/x.conf")
		rest()
		if len(w.disk) != 0 || len(w.records) != 0 || w.kernel["x"] != "" {
			t.Errorf("left behind: %q %+v %q", w.disk, w.records, w.kernel)
		}
	})
}

// A template whose drop-in somebody overrides says that its units to come are not
// confined, and by which file and line, and is well again without it.
func TestAPatternThatIsOverriddenDoesNotReadWell(t *testing.T) {
	for _, other := range []string{"/etc/systemd/system/w@.service.d/zz.conf", "/etc/systemd/system/service.d/99-x.conf"} {
		w := newWorld()
		w.files["w"] = "1"
		w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "w" })
		w.run(t, func(l *Loop) {
			rest()
			toCome := func(change func()) (attach.Status, attach.Answer) {
				w.mu.Lock()
				change()
				w.mu.Unlock()
				w.trigger()
				rest()
				s := l.Status([]string{"w@"}).Patterns[0]
				answer, _ := s.ToCome()
				return s, answer
			}
			if s, got := toCome(func() {}); got != attach.Confined || s.Exit() != attach.ExitOK {
				t.Fatalf("%s: before: %s %+v", other, got, s)
			}
			s, got := toCome(func() { w.disk[other] = "[Service]\nAppArmorProfile=\n" })
			if got != attach.NotConfined || s.Exit() != attach.ExitNotConfined || len(s.Refused) != 1 || s.Refused[0].Code != attach.DirectiveOverridden || s.Refused[0].Where != other+":2" {
				t.Errorf("%s: %s %+v", other, got, s)
			}
			if s, got := toCome(func() { delete(w.disk, other) }); got != attach.Confined || s.Exit() != attach.ExitOK || len(w.disk) != 1 {
				t.Errorf("%s: afterwards: %s %+v %q", other, got, s, w.disk)
			}
		})
	}
}

// A template that is refused is left as it is, so what differs from what was put in place
// is told, and its units to come do not read well.
func TestARefusedPatternIsToldTheTruthOf(t *testing.T) {
	file, at := "/etc/aaunit/attachments.d/agent.conf", attach.DropInPath("agent@.service", false)
	for name, c := range map[string]struct {
		change func(a *attach.Attachment)
		do     func(w *world)
		codes  []attach.Code
		answer attach.Answer
	}{
		"socket options":    {options(attach.SocketsEnforce, nodelay...), func(*world) {}, []attach.Code{attach.SocketsHidden, attach.DropInDiffers}, attach.NotConfined},
		"another profile":   {func(a *attach.Attachment) { a.Profile = "none" }, func(*world) {}, []attach.Code{attach.ProfileNotFound, attach.DropInDiffers}, attach.NotConfined},
		"disputed":          {func(a *attach.Attachment) { a.Mode = attach.WishComplain }, func(*world) {}, []attach.Code{attach.ProfileDisputed}, attach.Confined},
		"disputed, changed": {func(a *attach.Attachment) { a.Mode = attach.WishComplain }, func(w *world) { w.disk[at] = "[Service]\n" }, []attach.Code{attach.ProfileDisputed, attach.DropInDiffers}, attach.NotConfined},
		"disputed, gone":    {func(a *attach.Attachment) { a.Mode = attach.WishComplain }, func(w *world) { delete(w.disk, at) }, []attach.Code{attach.ProfileDisputed, attach.DropInMissing}, attach.NotConfined},
		"disputed, live":    {func(a *attach.Attachment) { a.Mode = attach.WishComplain }, func(w *world) { w.replace("a", "evil") }, []attach.Code{attach.ProfileDisputed, attach.PolicyTrampled}, attach.NotConfined},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.files["a"] = "1"
			w.addUnit("agent@y.service").root = "/srv/y"
			w.declareUnit(file, "agent@.service", func(a *attach.Attachment) { a.Profile = "a" })
			if strings.HasPrefix(name, "disputed") {
				w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b@.service", func(a *attach.Attachment) { a.Profile = "a" })
			}
			w.run(t, func(l *Loop) {
				rest()
				if s := l.Status([]string{"agent@"}).Patterns[0]; s.Exit() != attach.ExitOK {
					t.Fatalf("before: %+v", s)
				}
				w.declareUnit(file, "agent@.service", func(a *attach.Attachment) { a.Profile = "a"; c.change(a) })
				rest()
				unlock := w.lock()
				c.do(w)
				unlock()
				l.everythingAnew()
				rest()
				s := l.Status([]string{"agent@"}).Patterns[0]
				if answer, words := s.ToCome(); answer != c.answer || !slices.Equal(codes(s.Refused), c.codes) || s.DropIn == "" {
					t.Errorf("%s, %s: %+v", answer, words, s)
				}
			})
		})
	}
}

// The drop-in of a template is in force whatever its attachment's file is called, and where
// that has moved to since, while it is refused or paused.
func TestAPatternWhoseFileMovesReadsAsItIs(t *testing.T) {
	const file, renamed, inRun = "/etc/aaunit/attachments.d/w.conf", "/etc/aaunit/attachments.d/x.conf", "/run/aaunit/attachments.d/w.conf"
	for name, c := range map[string]struct {
		from, to string
		do       func(w *world, at string)
		code     attach.Code
	}{
		"renamed":                {file, renamed, func(*world, string) {}, ""},
		"renamed, and changed":   {file, renamed, func(w *world, at string) { w.disk[at] += "AppArmorProfile=x\n" }, attach.DropInDiffers},
		"to /etc":                {inRun, file, func(*world, string) {}, ""},
		"to /run":                {file, inRun, func(*world, string) {}, ""},
		"to /etc, and changed":   {inRun, file, func(w *world, at string) { w.disk[at] = "[Service]\n" }, attach.DropInDiffers},
		"to /etc, and gone":      {inRun, file, func(w *world, at string) { delete(w.disk, at) }, attach.DropInMissing},
		"to /etc, and commented": {inRun, file, func(w *world, at string) { w.disk[at] += "# AppArmorProfile=x\n ; y\n" }, ""},
	} {
		for _, paused := range []bool{false, true} {
			w := newWorld()
			w.files["w"] = "1"
			declare := func(file string, mode attach.Wish) {
				w.declareUnit(file, "w@.service", func(a *attach.Attachment) {
					a.Profile, a.Mode, a.Runtime = "w", mode, file == inRun
				})
			}
			declare(c.from, attach.WishEnforce)
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b@.service", func(a *attach.Attachment) { a.Profile = "w" })
			w.run(t, func(l *Loop) {
				rest()
				want := []attach.Code{}
				if paused {
					pause(t, l, time.Hour, "w@.service")
					rest()
				} else {
					want = append(want, attach.ProfileDisputed)
					declare(c.from, attach.WishComplain)
					rest()
				}
				unlock := w.lock()
				c.do(w, attach.DropInPath("w@.service", c.from == inRun))
				delete(w.att, c.from)
				unlock()
				declare(c.to, map[bool]attach.Wish{true: attach.WishEnforce, false: attach.WishComplain}[paused])
				l.everythingAnew()
				rest()
				answer := attach.Confined
				if c.code != "" {
					want, answer = append(want, c.code), attach.NotConfined
				}
				s := l.Status([]string{"w@"}).Patterns[0]
				if got, words := s.ToCome(); got != answer || !slices.Equal(codes(s.Refused), want) || s.Attachment != c.to {
					t.Errorf("%s, paused %v: %s, %s: %+v", name, paused, got, words, s)
				}
			})
		}
	}
}

// TestAPatternWhoseUnitsAllFailIsHeld: they go back to how they were, and what
// would take the next start of each down is taken away.
func TestAPatternWhoseUnitsAllFailIsHeld(t *testing.T) {
	const file = "/etc/systemd/system/w@.service.d/90-aaunit.conf"
	for _, profile := range []string{"w", "%p"} {
		w := newWorld()
		w.files["w"] = "1"
		a, b := w.addUnit("w@1.service"), w.addUnit("w@2.service")
		a.breaks["w"], b.breaks["w"] = true, true
		w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = profile })
		w.run(t, func(l *Loop) {
			rest()
			if !a.running || !b.running || a.label != "unconfined" || w.disk[file] != "" {
				t.Errorf("%s: %+v %+v %q", profile, a, b, w.disk)
			}
			if r := l.Status(nil); len(r.Patterns) != 1 || r.Patterns[0].Held == nil || r.Units[0].Held == nil {
				t.Errorf("%s: %+v", profile, r)
			}
			restarts := w.calls["restart"]
			w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
			rest()
			if w.calls["restart"] != restarts || w.disk[file] != "" {
				t.Errorf("%s: tried again: %q", profile, w.trace)
			}
			// A new text is tried.
			w.mu.Lock()
			w.files["w"] = "2"
			clear(a.breaks)
			clear(b.breaks)
			w.mu.Unlock()
			w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
			rest()
			if answer(l, "w@1") != "confined" || answer(l, "w@2") != "confined" || l.Status(nil).Patterns[0].Held != nil {
				t.Errorf("%s: %+v", profile, l.Status(nil))
			}
		})
	}
}

// TestNoRoomAtAnyWrite has a disk that is full at one write of an attach, or from it
// on: the unit is as before, or confined, and what is told of it is so; a unit that was
// attached is left alone. With room again the attach comes to its end.
func TestNoRoomAtAnyWrite(t *testing.T) {
	for _, stays := range []bool{false, true} {
		for n := 1; ; n++ {
			w := attached(nil, "a")
			w.addUnit("b.service")
			w.files["b"] = "1"
			came := false
			w.run(t, func(l *Loop) {
				first := w.units["a.service"].start
				unlock := w.lock()
				w.writes, w.noRoom = 0, func(write int) bool {
					is := write == n || stays && write > n
					came = came || is
					return is
				}
				unlock()
				out := attachUnits(t, l, attach.Request{Units: []string{"b"}, Profile: "b"})
				rest()
				b := w.units["b.service"]
				if confined := b.label == "b (enforce)"; confined != (answer(l, "b") == "confined") || !b.running || came && !confined && out[0].Exit == attach.ExitOK {
					t.Errorf("write %d, %v: %s under %q, told %s, exit %d\n%q", n, stays, b.name, b.label, answer(l, "b"), out[0].Exit, w.trace)
				}
				unlock = w.lock()
				w.noRoom = nil
				unlock()
				out = attachUnits(t, l, attach.Request{Units: []string{"b"}, Profile: "b"})
				rest()
				if out[0].Exit != attach.ExitOK || b.label != "b (enforce)" || answer(l, "b") != "confined" || answer(l, "a") != "confined" || w.units["a.service"].start != first {
					t.Errorf("write %d, %v: afterwards %+v, %q, a %s", n, stays, out[0], b.label, answer(l, "a"))
				}
			})
			if !came {
				if n < 5 {
					t.Errorf("an attach has no more than %d writes", n-1)
				}
				break
			}
		}
	}
}

// TestAOneshotAtWorkIsNotRestarted: a restart would kill a backup half-way, and take as
// long as the next one.
func TestAOneshotAtWorkIsNotRestarted(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.oneshot = true
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		for _, how := range []string{"declared", "asked for"} {
			s := l.Status([]string{"a"}).Units[0]
			if w.calls["restart"] != 0 || !u.running || u.start != 1 || s.Held != nil || w.read[dropIn] == "" || s.Verdict.Answer != attach.NotConfined ||
				!slices.ContainsFunc(s.Notes, func(r attach.Reason) bool {
					return r.Code == attach.RestartPending && strings.Contains(r.Detail, "oneshot")
				}) {
				t.Fatalf("%s: %+v %+v %q", how, u, s, w.trace)
			}
			if how == "declared" {
				if out := attachUnits(t, l, attach.Request{Units: []string{"a"}}); out[0].Exit != attach.ExitNotConfined || out[0].Restarted {
					t.Errorf("asked for: %+v", out[0])
				}
			}
		}
		// Its next start.
		unlock := w.lock()
		_ = w.begin(u)
		u.running = true
		unlock()
		rest()
		if answer(l, "a") != "confined" || u.start != 2 || w.calls["restart"] != 0 {
			t.Errorf("the next start: %s %+v %q", answer(l, "a"), u, w.trace)
		}
		// At a detach as well.
		w.undeclare("/etc/aaunit/attachments.d/a.conf")
		rest()
		if !u.running || u.start != 2 || w.disk[dropIn] != "" {
			t.Errorf("the detach: %+v %q", u, w.trace)
		}
	})
}

// TestAUnitThatIsBeingStoppedIsNotStoppedAgain: who waits for a stop waits for as long
// as the unit takes.
func TestAUnitThatIsBeingStoppedIsNotStoppedAgain(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.run(t, func(l *Loop) {
		rest()
		unlock := w.lock()
		u.label, u.stopping = "other (enforce)", true
		unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: "a.service"}
		rest()
		if answer(l, "a") != "not-confined" || w.calls["stop"] != 0 {
			t.Errorf("%s, %q", answer(l, "a"), w.trace)
		}
		unlock = w.lock()
		u.stopping = false
		unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: "a.service"}
		rest()
		if w.calls["stop"] != 1 {
			t.Errorf("one that runs: %q", w.trace)
		}
	})
}

// A service that leaves its private /tmp each time is not restarted over and over for it,
// whether aaunitd is started anew meanwhile or not.
func TestAUnitThatLeavesItsPrivateTmpIsNotRestartedForEver(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a")
	u := w.units["a.service"]
	leave := func() {
		w.mu.Lock()
		u.tmp = false
		w.mu.Unlock()
		w.trigger()
		rest()
	}
	w.run(t, func(l *Loop) {
		if answer(l, "a") != "confined" || u.tmp {
			t.Fatalf("%s %+v", answer(l, "a"), u)
		}
		// It is confined, and restarted for a /tmp that it never had.
		w.declareUnit(fileA, "a.service", nil)
		rest()
		if answer(l, "a") != "confined" || !u.tmp || w.calls["restart"] != 2 {
			t.Fatalf("%s %+v %q", answer(l, "a"), u, w.trace)
		}
		leave()
		if answer(l, "a") != "not-confined" || w.calls["restart"] != 2 {
			t.Errorf("it left: %s %q", answer(l, "a"), w.trace)
		}
	})
	w.run(t, func(l *Loop) {
		leave()
		if answer(l, "a") != "not-confined" || w.calls["restart"] != 2 {
			t.Errorf("it left, and aaunitd was started anew: %s %q", answer(l, "a"), w.trace)
		}
	})
}

// So it is with one whose verdict is another than confined all the time: one in complain
// mode, as is wished, and one that its policy lets off the list of its socket options.
func TestAUnitThatIsNeverConfinedIsNotRestartedForEver(t *testing.T) {
	for what, change := range map[string]func(w *world, a *attach.Attachment){
		"complains": func(_ *world, a *attach.Attachment) { a.Mode = attach.WishComplain },
		"its list can be taken off": func(w *world, a *attach.Attachment) {
			w.writesBelow = "/sys/fs/cgroup"
			options(attach.SocketsEnforce, nodelay...)(a)
		},
	} {
		for how, leave := range map[string]func(u *unit){
			"/tmp":        func(u *unit) { u.tmp = false },
			"the profile": func(u *unit) { u.label = "other (enforce)" },
		} {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { change(w, a) })
			w.run(t, func(l *Loop) {
				rest()
				restarts := w.calls["restart"]
				if restarts != 1 || !u.tmp || answer(l, "a") == "confined" {
					t.Fatalf("%s: %+v %s %q", what, u, answer(l, "a"), w.trace)
				}
				unlock := w.lock()
				leave(u)
				unlock()
				w.trigger()
				rest()
				if answer(l, "a") != "not-confined" || w.calls["restart"] != restarts {
					t.Errorf("%s, it left %s: %s %q", what, how, answer(l, "a"), w.trace)
				}
			})
		}
	}
}

// OnViolation=stop is about a loss of such units, too, and not about what they were all the
// time.
func TestOnViolationStopOfAUnitThatIsNeverConfined(t *testing.T) {
	for what, change := range map[string]func(w *world, a *attach.Attachment){
		"complains": func(_ *world, a *attach.Attachment) { a.Mode = attach.WishComplain },
		"its list can be taken off": func(w *world, a *attach.Attachment) {
			w.writesBelow = "/sys/fs/cgroup"
			options(attach.SocketsEnforce, nodelay...)(a)
		},
	} {
		w := newWorld()
		u := w.addUnit("a.service")
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) {
			a.OnViolation = attach.ViolationStop
			change(w, a)
		})
		w.run(t, func(l *Loop) {
			rest()
			w.trigger()
			rest()
			if !u.running || answer(l, "a") == "confined" {
				t.Fatalf("%s: %+v %s %q", what, u, answer(l, "a"), w.trace)
			}
			unlock := w.lock()
			u.label = "other (enforce)"
			unlock()
			w.trigger()
			rest()
			if u.running || w.called("restart") != 1 {
				t.Errorf("%s: %+v %q", what, u, w.trace)
			}
		})
	}
}

// A unit that complains as it was wished has lost nothing when it is to be enforced, and the
// pass that enforces it has not come to it.
func TestOnViolationStopWaitsForTheEndOfComplainMode(t *testing.T) {
	a := attach.NewAttachment()
	a.OnViolation = attach.ViolationStop
	d := attach.Desired{Unit: "a.service", Attachment: &a, Profile: "a", Kept: []attach.Compiled{{Complain: true}}}
	d.Record.Proved, d.Record.Profile = "1", "a"
	o := attach.Observed{Unit: attach.Unit{ActiveState: "active"}}
	v := attach.Verdict{Answer: attach.NotConfined, InvocationID: "1", Reasons: []attach.Reason{attach.Because(attach.TaskComplain, "x")}}
	if violates(d, d.Record, o, v) {
		t.Error("it has lost nothing")
	}
	other := v
	other.Reasons = append(slices.Clone(v.Reasons), attach.Because(attach.TaskUnconfined, "x"))
	if !violates(d, d.Record, o, other) {
		t.Error("it has lost its profile")
	}
	o.JustStarted = true
	if !violates(d, d.Record, o, v) {
		t.Error("it started so")
	}
	o.JustStarted, d.Kept[0].Complain = false, false
	if !violates(d, d.Record, o, v) {
		t.Error("it was enforced before")
	}
}
