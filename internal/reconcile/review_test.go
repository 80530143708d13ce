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

const fileA = "/etc/aaunit/attachments.d/a.conf"

// An attach that fails again, after its hold ended, goes back to the same state
// as the first time: the held unit owns no drop-in.
func TestASecondFailedAttachIsUndoneLikeTheFirst(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.breaks["a"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		l.queue.add(inputChanged, "a.service")
		rest()
		if r := w.records["a.service"]; len(r.DropIns) != 0 {
			t.Errorf("a held unit is on record with %v", r.DropIns)
		}
		w.mu.Lock()
		w.files["a"] = "2"
		w.mu.Unlock()
		l.queue.add(inputChanged, "a.service")
		rest()
		if !u.running || u.label != "unconfined" || w.disk[dropIn] != "" || l.Status(nil).Units[0].Held == nil {
			t.Errorf("not undone: %+v %q", u, w.trace)
		}
	})
}

func TestWithdrawingAPatternRemovesTheFileOfAllItsUnits(t *testing.T) {
	w := newWorld()
	w.files["w"] = "1"
	w.addUnit("w@1.service")
	w.addUnit("w@2.service")
	file := "/etc/aaunit/attachments.d/w.conf"
	w.declareUnit(file, "w@.service", func(a *attach.Attachment) { a.Profile = "%p" })
	w.run(t, func(l *Loop) {
		if len(w.disk) != 1 || answer(l, "w@2") != "confined" {
			t.Fatal(w.disk)
		}
		w.undeclare(file)
		rest()
		if len(w.disk) != 0 || len(w.records) != 0 || w.units["w@1.service"].label != "unconfined" {
			t.Errorf("left over: %v %v", w.disk, w.records)
		}
		if _, loaded := w.kernel["w"]; loaded {
			t.Error("the profile stays loaded")
		}
	})
}

func TestADetachWithoutAReloadGoesOnLater(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.deaf = true
		w.mu.Unlock()
		w.undeclare(fileA)
		rest()
		if _, kept := w.records["a.service"]; !kept || w.kernel["a"] == "" {
			t.Fatalf("forgotten while systemd has the profile in effect: %q", w.trace)
		}
		w.mu.Lock()
		w.deaf = false
		w.mu.Unlock()
		w.tellFiles()
		rest()
		if len(w.records) != 0 || len(w.read) != 0 || u.label != "unconfined" || w.kernel["a"] != "" {
			t.Errorf("not detached: %+v %q", u, w.trace)
		}
	})
}

// A restart that failed because the daemon was told to end is no failed attach.
func TestADaemonThatEndsHoldsAndWithdrawsNothing(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	synctest.Test(t, func(t *testing.T) {
		w.events, w.changed = make(chan attach.UnitEvent, 1000), make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		w.onCall = func(call string) {
			if call == "restart a.service" {
				cancel()
			}
		}
		l := w.loop()
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx, func() {}) })
		out, err := l.Attach(t.Context(), attach.Request{Units: []string{"a"}}, nil)
		wg.Wait()
		if err != nil || out[0].Exit == attach.ExitOK || out[0].Undone {
			t.Errorf("%v %+v", err, out)
		}
		if r := w.records["a.service"]; len(w.att) != 1 || r.Hold != nil || !r.Attaching {
			t.Errorf("%v %+v", w.att, r)
		}
	})
	w.onCall = nil
	w.run(t, func(l *Loop) {
		if got := answer(l, "a"); got != "confined" || u.label != "a (enforce)" {
			t.Errorf("%s %+v", got, u)
		}
	})
}

// One that ends while a unit settles does not know how it is.
func TestADaemonThatEndsWhileAUnitSettlesTellsNoSuccess(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	synctest.Test(t, func(t *testing.T) {
		w.events, w.changed = make(chan attach.UnitEvent, 1000), make(chan struct{}, 1)
		ctx, cancel := context.WithCancel(t.Context())
		l := w.loop()
		var wg sync.WaitGroup
		wg.Go(func() { _ = l.Run(ctx, func() {}) })
		time.AfterFunc(time.Second, cancel)
		out, err := l.Attach(t.Context(), attach.Request{Units: []string{"a"}}, nil)
		wg.Wait()
		if err != nil || out[0].Exit != attach.ExitUnknown {
			t.Errorf("%v %+v", err, out)
		}
	})
}

// The daemon's end is that of what callers wait with, too: they are told all the same
// how far their work came.
func TestADaemonThatEndsTellsWhatBecameOfItsWork(t *testing.T) {
	type ask = func(l *Loop, ctx context.Context) ([]attach.Outcome, error)
	for name, c := range map[string]struct {
		at   string // the call during which it is told to end
		ask  ask
		want func(attach.Outcome) bool
	}{
		"attach": {"write", func(l *Loop, ctx context.Context) ([]attach.Outcome, error) {
			return l.Attach(ctx, attach.Request{Units: []string{"a"}}, nil)
		}, func(o attach.Outcome) bool { return o.Exit != attach.ExitOK }},
		"detach": {"remove", func(l *Loop, ctx context.Context) ([]attach.Outcome, error) {
			if _, err := l.Attach(ctx, attach.Request{Units: []string{"a"}}, nil); err != nil {
				return nil, err
			}
			return l.Detach(ctx, attach.Request{Units: []string{"a"}}, nil)
		}, func(o attach.Outcome) bool { return o.Changed }},
		"apply": {"restart", func(l *Loop, ctx context.Context) ([]attach.Outcome, error) {
			a := attach.NewAttachment()
			a.Source, a.Line, a.Units, a.Profile = "/etc/aaunit/attachments.d/a.conf", 1, []string{"a.service"}, "a"
			w := l.systemd.(*world)
			w.mu.Lock()
			w.att[a.Source] = a
			w.mu.Unlock()
			return l.Apply(ctx, attach.Request{Units: []string{a.Source}}, nil)
		}, func(o attach.Outcome) bool { return o.Exit != attach.ExitOK }},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.addUnit("a.service")
			synctest.Test(t, func(t *testing.T) {
				w.events, w.changed = make(chan attach.UnitEvent, 1000), make(chan struct{}, 1)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				w.onCall = func(call string) {
					if strings.HasPrefix(call, c.at) {
						cancel()
					}
				}
				l := w.loop()
				var wg sync.WaitGroup
				wg.Go(func() { _ = l.Run(ctx, func() {}) })
				out, err := c.ask(l, ctx)
				cancel()
				wg.Wait()
				if err != nil || len(out) != 1 || out[0].Unit != "a.service" || !c.want(out[0]) {
					t.Errorf("%v %+v", err, out)
				}
			})
		})
	}
}

// Killed before any step of an attach that fails, and of its undo, the next
// daemon brings the unit back to where it was.
func TestAFailingAttachKilledAtAnyStepIsUndone(t *testing.T) {
	for kill := 1; ; kill++ {
		w := newWorld()
		u := w.addUnit("a.service")
		u.breaks["a"] = true
		w.declareUnit(fileA, "a.service", nil)
		w.killAt = kill
		w.run(t, func(*Loop) {})
		if !w.dead {
			break
		}
		w.dead, w.killAt = false, 0
		w.run(t, func(l *Loop) {
			if !u.running || u.label != "unconfined" || w.disk[dropIn] != "" || w.read[dropIn] != "" || l.Status(nil).Units[0].Held == nil {
				t.Errorf("after a kill before step %d: %+v, drop-in %q, %q", kill, u, w.disk[dropIn], w.trace)
			}
		})
	}
}

// An attach that waited for a restart has confined nothing yet: when the
// restart fails, the unit runs on as it did.
func TestAFailedRestartThatWasPendingGoesBackToUnconfined(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.breaks["a"] = true
	w.run(t, func(l *Loop) {
		attachUnits(t, l, attach.Request{Units: []string{"a"}, NoRestart: true})
		rest()
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if !out[0].Undone || !u.running || u.label != "unconfined" || w.disk[dropIn] == "" || len(w.att) != 1 {
			t.Errorf("%+v %+v %v %q", out, u, w.att, w.trace)
		}
	})
}

// A text that does not compile for a moment ends no hold: the same text must
// not be tried again.
func TestARefusalEndsNoHold(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.breaks["a"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		restarts := w.calls["restart"]
		for _, bad := range []bool{true, false} {
			w.mu.Lock()
			w.bad["a"] = bad
			w.mu.Unlock()
			l.queue.add(inputChanged, "a.service")
			rest()
		}
		if w.calls["restart"] != restarts || l.Status(nil).Units[0].Held == nil {
			t.Errorf("tried again: %q", w.trace)
		}
	})
}

// What an undo brought back is held and reported; OnViolation=stop does not
// take it down again.
func TestOnViolationStopLeavesWhatAnUndoBroughtBack(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.files["b"] = "1"
	u.breaks["b"] = true
	stop := func(profile string) func(*attach.Attachment) {
		return func(a *attach.Attachment) { a.OnViolation, a.Profile = attach.ViolationStop, profile }
	}
	w.declareUnit(fileA, "a.service", stop("b"))
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.begin(u)
		w.mu.Unlock()
		rest()
		if !u.running || u.label != "unconfined" || answer(l, "a") != "not-confined" {
			t.Fatalf("%+v %q", u, w.trace)
		}
		w.declareUnit(fileA, "a.service", stop("a"))
		rest()
		w.declareUnit(fileA, "a.service", stop("b"))
		rest()
		w.mu.Lock()
		w.begin(u)
		w.mu.Unlock()
		rest()
		if !u.running || u.label != "a (enforce)" || l.Status(nil).Units[0].Held == nil {
			t.Errorf("%+v %q", u, w.trace)
		}
	})
}

func TestOnViolationStopLeavesAUnitThatShallComplain(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) {
		a.OnViolation, a.Mode = attach.ViolationStop, attach.WishComplain
	})
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.begin(u)
		u.label = "a (complain)"
		w.mu.Unlock()
		rest()
		if !u.running || answer(l, "a") != "not-confined" {
			t.Errorf("%+v %s", u, answer(l, "a"))
		}
	})
}

// Debian's usr.sbin.cupsd, for one, defines two profiles.
func TestAFileWithTwoProfilesIsLoadedOnce(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.also = map[string]string{"a": "other"}
	w.kernel["other"] = "1" // was loaded before
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		for range 2 {
			l.queue.add(inputChanged, "a.service")
			rest()
		}
		if w.calls["load"] != 1 || answer(l, "a") != "confined" {
			t.Errorf("%s %q", answer(l, "a"), w.trace)
		}
		l.queue.add(started, "a.service")
		rest()
		if got := answer(l, "a"); got != "confined" {
			t.Errorf("at a look: %s", got)
		}
		w.undeclare(fileA)
		rest()
		if _, loaded := w.kernel["other"]; !loaded {
			t.Error("a profile that was loaded before was unloaded")
		}
	})
}

// A typing error in the file that names a unit does not hand the unit over to a
// pattern, before or after a restart of the daemon.
func TestABrokenFileHandsNoUnitToAPattern(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.files["generic"] = "1"
	w.declareUnit(fileA, "a.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/z.conf", "*.service", func(a *attach.Attachment) { a.Profile = "generic" })
	for range 2 {
		w.run(t, func(l *Loop) {
			w.mu.Lock()
			w.broken[fileA] = true
			w.mu.Unlock()
			w.tellFiles()
			rest()
			if u.label != "a (enforce)" || w.calls["restart"] != 1 {
				t.Errorf("%+v %q", u, w.trace)
			}
		})
	}
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.broken = map[string]bool{}
		w.mu.Unlock()
		w.undeclare(fileA)
		rest()
		if u.label != "generic (enforce)" {
			t.Errorf("after the file is gone: %+v", u)
		}
	})
}

// A shorter prefix does not take the units of a longer one whose file is broken.
func TestABrokenFileHandsNoUnitToAShorterPrefix(t *testing.T) {
	w := newWorld()
	u := w.addUnit("agent-db-1.service")
	w.files["agent"], w.files["agent-db"] = "1", "1"
	w.declareUnit(fileA, "agent-db-.service", func(a *attach.Attachment) { a.Profile = "agent-db" })
	w.declareUnit("/etc/aaunit/attachments.d/z.conf", "agent-.service", func(a *attach.Attachment) {
		a.Profile, a.OnViolation = "agent", attach.ViolationStop
	})
	w.run(t, func(l *Loop) {
		rest()
		w.mu.Lock()
		w.broken[fileA] = true
		restarts := w.calls["restart"]
		w.mu.Unlock()
		w.tellFiles()
		rest()
		if u.label != "agent-db (enforce)" || w.calls["restart"] != restarts || w.calls["stop"] != 0 {
			t.Errorf("%+v %q", u, w.trace)
		}
		if r := l.Status([]string{"agent-db-1.service"}); len(r.Units) != 1 || r.Units[0].Held != nil || r.Units[0].Verdict.Answer != attach.Confined {
			t.Errorf("%+v", r.Units)
		}
	})
}

func TestARefusedAttachmentThatIsWithdrawnIsShownNoMore(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.bad["a"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		if r := l.Status(nil); len(r.Units) != 1 || len(r.Units[0].Refused) == 0 {
			t.Fatalf("%+v", r)
		}
		w.undeclare(fileA)
		rest()
		if r := l.Status(nil); len(r.Units) != 0 {
			t.Errorf("still shown: %+v", r.Units)
		}
	})
}

// However many looks wait, the watchdog hears the loop.
func TestSlowLooksDoNotStopTheLoop(t *testing.T) {
	w := newWorld()
	for i := range 2 * parallel {
		u := w.addUnit(fmt.Sprintf("u%02d.service", i))
		w.declareUnit(u.name+".conf", u.name, nil)
	}
	w.run(t, func(l *Loop) {
		for name, u := range w.units {
			w.mu.Lock()
			u.forked = 1000
			w.mu.Unlock()
			l.queue.add(started, name)
		}
		synctest.Wait()
		begun := time.Now()
		if err := l.Ping(context.Background()); err != nil || time.Since(begun) > 0 {
			t.Errorf("%v after %v", err, time.Since(begun))
		}
		rest()
	})
}

// "aaunitctl verify" looks beside a pass: what it saw earlier, or of a unit that
// is detached by now, is not shown as current.
func TestAVerdictThatComesTooLateIsNotShown(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		d, err := l.desired("a.service")
		if err != nil {
			t.Fatal(err)
		}
		v, o := l.judge(context.Background(), d, false)
		late := v
		late.Answer, late.At = attach.NotConfined, v.At.Add(-time.Hour)
		l.conclude(d, o, late)
		if got := answer(l, "a"); got != "confined" || w.records["a.service"].Verdict.Answer != attach.Confined {
			t.Errorf("a look of an hour ago is shown: %s", got)
		}
		w.undeclare(fileA)
		rest()
		l.conclude(d, o, v)
		if r := l.Status(nil); len(r.Units) != 0 {
			t.Errorf("a detached unit is shown: %+v", r.Units)
		}
	})
}

// Who hears of a unit hears of its newest verdict last, and of its end after all of
// them, however long it takes to take in what came before.
func TestSubscribersHearTheLastWordLast(t *testing.T) {
	for _, detached := range []bool{false, true} {
		w := attached(nil, "a")
		l := w.loop()
		l.declare(t.Context())
		d, err := l.desired("a.service")
		if err != nil {
			t.Fatal(err)
		}
		say := func(a attach.Answer, at time.Time) {
			l.conclude(d, attach.Observed{}, attach.Verdict{Unit: d.Unit, Answer: a, At: at})
		}
		var mu sync.Mutex
		var heard []string
		first := make(chan struct{})
		l.Subscribe(t.Context(), func(s *attach.Status) {
			word := "gone"
			if s.Attachment != "" {
				word = s.Verdict.Answer.String()
			}
			if word == "confined" {
				close(first)
				time.Sleep(50 * time.Millisecond)
			}
			mu.Lock()
			heard = append(heard, word)
			mu.Unlock()
		})
		var wg sync.WaitGroup
		wg.Go(func() { say(attach.Confined, time.Now()) })
		<-first
		want := []string{"confined", "not-confined"}
		if detached {
			want[1] = "gone"
			l.drop(d.Unit)
			l.unpublish(d.Unit)
		} else {
			say(attach.NotConfined, time.Now())
		}
		wg.Wait()
		if !slices.Equal(heard, want) {
			t.Errorf("heard %q, want %q", heard, want)
		}
	}
}

// Of looks at a unit that end together the last one is shown.
func TestLooksThatEndTogether(t *testing.T) {
	const looks = 64
	w := attached(nil, "a")
	l := w.loop()
	l.declare(t.Context())
	d, err := l.desired("a.service")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for round := range 1000 {
		var wg sync.WaitGroup
		for i := range looks {
			v := attach.Verdict{Unit: d.Unit, Answer: attach.Confined, At: begin.Add(time.Duration(round*looks+i) * time.Second)}
			wg.Go(func() { l.conclude(d, attach.Observed{}, v) })
		}
		wg.Wait()
		if got, want := status(t, l, "a").Verdict.At, begin.Add(time.Duration(round*looks+looks-1)*time.Second); !got.Equal(want) {
			t.Fatalf("round %d: the look shown is %v older than the last one", round, want.Sub(got))
		}
	}
}

// "systemctl daemon-reload; systemctl restart" is one burst: the start in it is
// judged as a start all the same.
func TestOnViolationStopSeesAStartThatComesWithAReload(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.drags = []string{"dbus.service"} // aaunit does not restart it
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.run(t, func(l *Loop) {
		if !u.running {
			t.Fatal("a start from before the attachment was stopped")
		}
		w.mu.Lock()
		w.events <- attach.UnitEvent{Kind: attach.BusBack}
		w.mu.Unlock()
		rest()
		if !u.running {
			t.Fatal("it was stopped because the bus came back")
		}
		w.mu.Lock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		w.begin(u)
		u.label = "unconfined"
		w.mu.Unlock()
		rest()
		if u.running {
			t.Error("a start that is not confined was not stopped")
		}
	})
}

// Two units that share a profile and both fail leave it to each other no more.
func TestTwoFailedUnitsOfOneProfileUnloadIt(t *testing.T) {
	w := newWorld()
	w.files["p"] = "1"
	w.addUnit("a.service").breaks["p"] = true
	w.addUnit("b.service").breaks["p"] = true
	w.run(t, func(l *Loop) {
		out := attachUnits(t, l, attach.Request{Units: []string{"a", "b"}, Profile: "p"})
		rest()
		if _, loaded := w.kernel["p"]; loaded || !out[0].Undone || !out[1].Undone || len(w.records) != 0 || len(w.disk) != 0 {
			t.Errorf("%+v %v %v %q", out, w.kernel, w.records, w.trace)
		}
	})
}

// "apparmor_parser -r FILE; systemctl restart UNIT": the look at the start may
// come before the pass that accepts the new text.
func TestOnViolationStopWaitsForANewTextToBeAccepted(t *testing.T) {
	for _, c := range []struct {
		text    string
		running bool
	}{{"2", true}, {"1", false}} {
		w := newWorld()
		u := w.addUnit("a.service")
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
		w.run(t, func(l *Loop) {
			w.mu.Lock()
			w.files["a"], w.kernel["a"] = c.text, "2"
			w.begin(u)
			w.mu.Unlock()
			rest()
			if u.running != c.running || c.running && answer(l, "a") != "confined" {
				t.Errorf("the file says %s: running %v, %s", c.text, u.running, answer(l, "a"))
			}
		})
	}
}

// A drop-in that somebody removed, and that a failed pass put back, stays.
func TestAnUndoDoesNotRemoveWhatConfinedTheUnit(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		delete(w.disk, dropIn)
		w.deaf = true
		w.mu.Unlock()
		l.queue.add(inputChanged, "a.service")
		rest()
		if w.disk[dropIn] == "" || u.label != "a (enforce)" || len(w.records["a.service"].DropIns) != 1 {
			t.Errorf("%v %+v %q", w.disk, u, w.trace)
		}
	})
}

// A profile that another attached unit may change to is not unloaded.
func TestADetachLeavesAProfileThatAnotherUnitAllows(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.declareUnit(fileA, "a.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.AllowProfiles = []string{"a"} })
	w.run(t, func(l *Loop) {
		w.undeclare(fileA)
		rest()
		if _, loaded := w.kernel["a"]; !loaded || answer(l, "b") != "confined" || w.calls["unload"] != 0 {
			t.Errorf("%v %s %q", w.kernel, answer(l, "b"), w.trace)
		}
		w.undeclare("/etc/aaunit/attachments.d/b.conf")
		rest()
		if len(w.kernel) != 0 || len(w.records) != 0 {
			t.Errorf("left over: %v", w.kernel)
		}
	})
}

// Where the other one is in the same pass, it has the duty to unload it all the same, and where
// its attach fails there nobody needs the profile.
func TestADetachLeavesAProfileToAUnitOfTheSamePass(t *testing.T) {
	const fileB = "/etc/aaunit/attachments.d/b.conf"
	for _, byPath := range []bool{false, true} {
		for _, fresh := range []bool{false, true} {
			for _, fails := range []bool{false, true} {
				if fails && !fresh {
					continue
				}
				what := fmt.Sprintf("by path %v, attached in the same pass %v, fails %v", byPath, fresh, fails)
				w := attached(nil, "a")
				a, b := w.units["a.service"], w.addUnit("b.service")
				if byPath {
					w.byPath = map[string]bool{"a": true} // to the program of neither
				}
				a.elsewhere, b.elsewhere, b.breaks["a"] = true, true, fails
				attachB := func() {
					w.declareUnit(fileB, "b.service", func(a *attach.Attachment) { a.Profile = "a" })
				}
				w.run(t, func(l *Loop) {
					rest()
					if !fresh {
						attachB()
						rest()
					}
					unlock := w.lock()
					delete(w.att, fileA)
					unlock()
					if fresh {
						attachB()
					}
					w.trigger()
					rest()
					if r := w.record("b.service"); fails == slices.Contains(r.Loaded, "a") || fails == (answer(l, "b") == "confined") {
						t.Errorf("%s: b is %s, %+v", what, answer(l, "b"), r)
					}
					w.undeclare(fileB)
					rest()
					rest()
					if len(w.records)+len(w.kernel) > 0 || !a.running || a.label != "unconfined" || !b.running || b.label != "unconfined" {
						t.Errorf("%s: left over: %q %v, %+v %+v %q", what, w.kernel, w.records, a, b, w.trace)
					}
				})
			}
		}
	}
}

// The unit and its alias are planned side by side: when the alias is learned
// first, the unit must not read as withdrawn.
func TestAnAliasLearnedMeanwhileDetachesNothing(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.aliases["alias.service"] = "a.service"
	w.declareUnit("/etc/aaunit/attachments.d/x.conf", "alias.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.run(t, func(l *Loop) {
		rest()
		before := len(w.trace)
		l.drop("a.service") // as before declare() has heard of the alias
		l.queue.add(inputChanged, "a.service")
		rest()
		if extra := w.trace[before:]; len(extra) != 0 || answer(l, "a") != "confined" {
			t.Errorf("%q, %s", extra, answer(l, "a"))
		}
	})
}

// A start that nobody heard of, while the daemon was down, is a start like any
// other to OnViolation=stop.
func TestOnViolationStopSeesAStartThatNobodyHeardOf(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) {
		a.OnViolation, a.RestartUnit = attach.ViolationStop, false
	})
	w.run(t, func(l *Loop) { // attached, and the restart is left to a person
		if !u.running {
			t.Fatal("a start from before the attachment was stopped")
		}
	})
	w.run(t, func(l *Loop) {
		if !u.running {
			t.Error("a new daemon stopped a start from before the attachment")
		}
	})
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.begin(u)
		w.mu.Unlock()
		rest()
		if answer(l, "a") != "confined" {
			t.Fatalf("%+v", u)
		}
	})
	u.start++ // while the daemon is down, and a task left the profile
	u.label = "unconfined"
	w.run(t, func(l *Loop) {
		if u.running {
			t.Errorf("a start that is not confined was not stopped: %q", w.trace)
		}
	})
}

// A systemd that does not answer, or a daemon that ends before it has, makes no new start
// of one from before the attachment.
func TestOnViolationStopLeavesAStartThatWasSeenBefore(t *testing.T) {
	for _, why := range []cause{inputChanged, doubted} {
		for _, ends := range []bool{false, true} {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit(fileA, "a.service", func(a *attach.Attachment) {
				a.OnViolation, a.RestartUnit = attach.ViolationStop, false
			})
			w.run(t, func(l *Loop) {
				if got := answer(l, "a"); got != "not-confined" {
					t.Fatal(got)
				}
				unlock := w.lock()
				w.mute = true
				unlock()
				l.queue.add(why, "a.service")
				time.Sleep(10 * time.Second)
				if ends {
					return
				}
				time.Sleep(3 * time.Minute)
				if got := answer(l, "a"); got != "unknown" {
					t.Errorf("%v: while systemd does not answer it is %s", why, got)
				}
			})
			if w.log.count("context canceled") > 0 {
				t.Errorf("%v: %s", why, w.log.String())
			}
			w.mute = false
			w.run(t, func(l *Loop) {
				if !u.running || answer(l, "a") != "not-confined" {
					t.Errorf("%v, the daemon ends %v: running %v, %s\n%s", why, ends, u.running, answer(l, "a"), w.log.String())
				}
			})
		}
	}
}

// What an undo brought back was confined by the former profile: a later start
// without any is not it.
func TestOnViolationStopOfAHeldUnitThatLosesItsFormerProfile(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.files["b"] = "1"
	u.breaks["b"] = true
	under := func(profile string) {
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnViolation, a.Profile = attach.ViolationStop, profile })
	}
	under("a")
	w.run(t, func(l *Loop) {
		rest()
		under("b")
		rest()
		if !u.running || u.label != "a (enforce)" || l.Status(nil).Units[0].Held == nil {
			t.Fatalf("%+v %q", u, w.trace)
		}
		w.mu.Lock()
		w.begin(u)
		u.label = "unconfined"
		w.mu.Unlock()
		rest()
		if u.running {
			t.Errorf("%+v %q", u, w.trace)
		}
	})
}

// A name that was an alias and is a unit of its own now is attached as such.
func TestAnAliasThatBecomesAUnit(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.aliases["b.service"] = "a.service"
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.run(t, func(l *Loop) {
		rest()
		if answer(l, "a") != "confined" {
			t.Fatalf("%q", w.trace)
		}
		w.mu.Lock()
		delete(w.aliases, "b.service")
		b := w.addUnit("b.service")
		w.mu.Unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		rest()
		if b.label != "a (enforce)" || answer(l, "b") != "confined" {
			t.Errorf("the new unit runs as %q: %q", b.label, w.trace)
		}
		if a := w.units["a.service"]; a.label != "unconfined" || len(w.records) != 1 {
			t.Errorf("the former one runs as %q, records %v", a.label, w.records)
		}
	})
}

// An operation that reads the attachment files again keeps no trigger to itself.
func TestAnOperationLosesNoTrigger(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("y.service")
	w.run(t, func(l *Loop) {
		attachUnits(t, l, attach.Request{Units: []string{"a"}})
		y := attach.NewAttachment()
		y.Source, y.Line, y.Units, y.Profile = "/etc/aaunit/attachments.d/y.conf", 1, []string{"y.service"}, "y"
		w.mu.Lock()
		w.att[y.Source] = y // and its event is still to come
		w.mu.Unlock()
		attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if answer(l, "y") != "confined" {
			t.Errorf("%+v %q", l.Status(nil).Units, w.trace)
		}
	})
}

// An attachment that is not in use after it was written (others can write its
// directory) is taken back, and nobody is told that all is well.
func TestAnAttachmentThatIsNotInUse(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.broken["/etc/aaunit/attachments.d/a.service.conf"] = true
	w.run(t, func(l *Loop) {
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if out[0].Exit != attach.ExitFailed || !slices.Contains(codes(out[0].Reasons), attach.AttachmentBad) || len(w.att) != 0 || u.label != "unconfined" {
			t.Errorf("%+v %v", out, w.att)
		}
	})
}

// A plan that is refused lets no start through that OnViolation=stop is for.
func TestOnViolationStopOfARefusedUnit(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop })
	w.run(t, func(*Loop) { rest() })
	// While the daemon is down somebody overrides the drop-in and restarts.
	w.read["/etc/systemd/system/a.service.d/99-x.conf"] = "[Service]\nAppArmorProfile=\n"
	w.disk["/etc/systemd/system/a.service.d/99-x.conf"] = w.read["/etc/systemd/system/a.service.d/99-x.conf"]
	u.start++
	u.label = "unconfined"
	w.run(t, func(l *Loop) {
		if u.running {
			t.Errorf("%+v", l.Status(nil).Units)
		}
	})
}

// Whatever speaks against an attachment, a unit that has it keeps its policy.
func TestARefusedUnitKeepsItsPolicy(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		was := w.kernel["a"]
		const other = "/etc/systemd/system/a.service.d/99-x.conf"
		w.mu.Lock()
		w.disk[other] = "[Service]\nAppArmorProfile=\n"
		w.read[other] = w.disk[other]
		w.mu.Unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		rest()
		if r := l.Status(nil).Units[0].Refused; !slices.Contains(codes(r), attach.DirectiveOverridden) {
			t.Fatalf("not refused: %v", r)
		}
		w.mu.Lock()
		w.remove("a")
		w.mu.Unlock()
		w.trigger()
		rest()
		if w.kernel["a"] != was || was == "" || w.log.count("put back the policy of a.service") != 1 {
			t.Errorf("the kernel has %q, accepted was %q: %q", w.kernel["a"], was, w.trace)
		}
	})
}

// A refused unit does not take back what the other unit of its profile was given.
func TestTwoUnitsOfAProfileDoNotTakeTurns(t *testing.T) {
	w := attached(nil, "a", "b")
	w.run(t, func(l *Loop) {
		rest()
		const other = "/etc/systemd/system/a.service.d/99-x.conf"
		w.mu.Lock()
		w.disk[other] = "[Service]\nAppArmorProfile=\n"
		w.read[other] = w.disk[other]
		w.mu.Unlock()
		w.trigger()
		rest()
		if len(status(t, l, "a.service").Refused) == 0 || answer(l, "b.service") != "confined" {
			t.Fatalf("%+v %s", status(t, l, "a.service"), answer(l, "b.service"))
		}
		w.edit("2")
		rest()
		w.mu.Lock()
		loads := w.calls["load"]
		w.mu.Unlock()
		for range 3 {
			w.trigger()
			rest()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.kernel["a"] != "2" || w.calls["load"] != loads {
			t.Errorf("the kernel has %q; loaded %d times, then %d more: %q", w.kernel["a"], loads, w.calls["load"]-loads, w.trace)
		}
	})
}

// A refusal is told once, not at every pass.
func TestARefusalIsLoggedOnce(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.bad["a"] = true
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		for range 3 {
			w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
			rest()
		}
		if n := w.log.count("cannot attach a.service"); n != 1 {
			t.Errorf("told %d times", n)
		}
	})
}

// A parser that is in trouble for a moment ends no hold: the text that failed
// would be tried again.
func TestAParserInTroubleEndsNoHold(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service").breaks["a"] = true
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.OnFailedAttach = attach.FailedKeep })
	w.run(t, func(l *Loop) {
		for _, bad := range []bool{false, true, false} {
			w.mu.Lock()
			w.bad["a"] = bad
			w.mu.Unlock()
			w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
			rest()
			if l.Status(nil).Units[0].Held == nil {
				t.Errorf("bad text %v: no longer held: %q", bad, w.trace)
			}
		}
	})
}

// Verify answers with what it saw, although a pass mends it at once.
func TestVerifyTellsWhatItSaw(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.kernel["a"] = "evil"
		w.mu.Unlock()
		l.Subscribe(context.Background(), func(s *attach.Status) {
			if s.Verdict.Answer == attach.NotConfined {
				l.publish("a.service", func(s *attach.Status) { s.Verdict = &attach.Verdict{Answer: attach.Confined} })
			}
		})
		r, err := l.Verify(context.Background(), []string{"a"})
		if err != nil || r.Units[0].Verdict.Answer != attach.NotConfined {
			t.Errorf("%v %+v", err, r.Units)
		}
	})
}

// Somebody who asks for one thing after the other does not keep the loop from what
// it is there for.
func TestAskingForeverHoldsUpNoTrigger(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.kernel["a"] = "evil"
		w.mu.Unlock()
		w.trigger()
		begun := time.Now()
		for time.Since(begun) < 10*time.Second {
			if _, err := l.Detach(context.Background(), attach.Request{Units: []string{"b"}}, nil); err != nil {
				t.Fatal(err)
			}
			w.mu.Lock()
			back := w.kernel["a"] == "1"
			w.mu.Unlock()
			if back {
				return
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Errorf("what was loaded is still there: %q", w.trace)
	})
}

// Units that run and are as they were are looked at together. Whatever is not just
// so gets a look of its own.
func TestVerifyLooksAtManyTogether(t *testing.T) {
	w := newWorld()
	for _, name := range []string{"a", "b", "c"} {
		w.addUnit(name + ".service")
		w.declareUnit("/etc/aaunit/attachments.d/"+name+".conf", name+".service", nil)
	}
	w.run(t, func(l *Loop) {
		verify := func(when string, one []string, answers ...attach.Answer) []attach.Status {
			t.Helper()
			rest()
			w.mu.Lock()
			w.glances = nil
			w.mu.Unlock()
			r, err := l.Verify(context.Background(), nil)
			if err != nil || len(r.Units) != len(answers) {
				t.Fatalf("%s: %v %+v", when, err, r)
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			if looked := slices.Compact(slices.Sorted(slices.Values(w.glances))); !slices.Equal(looked, one) {
				t.Errorf("%s: looked one by one at %q, want %q", when, looked, one)
			}
			for i, u := range r.Units {
				if u.Verdict.Answer != answers[i] {
					t.Errorf("%s: %+v", when, u.Verdict)
				}
			}
			return r.Units
		}
		verify("all as they were", nil, attach.Confined, attach.Confined, attach.Confined)

		w.mu.Lock()
		w.units["b.service"].label = "unconfined"
		w.mu.Unlock()
		verify("one is not confined", []string{"b.service"}, attach.Confined, attach.NotConfined, attach.Confined)
		w.mu.Lock()
		w.units["b.service"].label = "b (enforce)"
		restarted := false
		w.onScan = func() {
			if !restarted {
				restarted = true
				w.units["c.service"].start++
			}
		}
		w.mu.Unlock()
		before := l.Status([]string{"c"}).Units[0].Verdict.InvocationID
		now := verify("one is restarted during the look", []string{"c.service"}, attach.Confined, attach.Confined, attach.Confined)
		if now[2].Verdict.InvocationID == before {
			t.Errorf("a verdict on the start before: %+v", now[2].Verdict)
		}
		w.mu.Lock()
		w.units["a.service"].running = false
		w.mu.Unlock()
		verify("one does not run", []string{"a.service"}, attach.Unknown, attach.Confined, attach.Confined)
		hang := make(chan struct{})
		w.mu.Lock()
		w.hang = map[string]chan struct{}{"b.service": hang}
		w.mu.Unlock()
		verify("one look does not come back", []string{"a.service", "b.service", "c.service"}, attach.Unknown, attach.Unknown, attach.Confined)
		close(hang)
	})
}

// A profile that attaches to the program's path by itself would be put on again
// by the start that an undo or a detach makes: it is unloaded before that.
func TestAProfileThatAttachesByPathIsGoneBeforeTheNextStart(t *testing.T) {
	w := newWorld()
	w.byPath = map[string]bool{"a": true}
	u := w.addUnit("a.service")
	w.addUnit("b.service").label = "other (enforce)"
	w.kernel["other"] = "1"
	u.drags = []string{"b.service"}
	u.breaks["a"] = true
	w.run(t, func(l *Loop) {
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if _, loaded := w.kernel["a"]; loaded || !u.running || u.label != "unconfined" || !out[0].Undone {
			t.Fatalf("undo: %+v %q %q", u, w.kernel, w.trace)
		}
		clear(u.breaks)
		if out := attachUnits(t, l, attach.Request{Units: []string{"a"}}); out[0].Exit != attach.ExitOK {
			t.Fatalf("%+v", out)
		}
		starts := w.units["b.service"].start
		if _, err := l.Detach(context.Background(), attach.Request{Units: []string{"a"}}, nil); err != nil {
			t.Fatal(err)
		}
		rest()
		if _, loaded := w.kernel["a"]; loaded || !u.running || u.label != "unconfined" || w.units["b.service"].start == starts {
			t.Errorf("detach: %+v %q %q", u, w.kernel, w.trace)
		}
	})
}

// refusedOf is what speaks against a unit, a template or a prefix.
func refusedOf(l *Loop, name string) (out []attach.Reason) {
	r := l.Status([]string{name})
	for _, s := range slices.Concat(r.Units, r.Patterns) {
		out = append(out, s.Refused...)
	}
	return out
}

// The drop-in of a prefix reaches each unit of it, whatever aaunit says of one alone: it
// is not written while one starts too early for it. Where it is in place it is kept,
// and nobody is asked about all units again.
func TestAPrefixThatReachesAnEarlyUnit(t *testing.T) {
	const file, prefix = "/etc/systemd/system/acme-.service.d/90-aaunit.conf", "/etc/aaunit/attachments.d/acme.conf"
	w := newWorld()
	web, disk := w.addUnit("acme-web.service"), w.addUnit("acme-disk.service")
	w.addUnit("acme-db.service")
	w.files["acme"] = "1"
	disk.early = true
	// listings is how often a trigger has systemd list units: once it is to tell which
	// units are attached.
	listings := func() int {
		before := w.lists
		w.trigger()
		rest()
		return w.lists - before
	}
	w.run(t, func(l *Loop) {
		w.declareUnit(prefix, "acme-.service", func(a *attach.Attachment) { a.Profile = "acme" })
		rest()
		for _, unit := range []string{"acme-", "acme-web", "acme-db"} {
			refused := refusedOf(l, unit)
			if len(refused) != 1 || refused[0].Code != attach.UnitEarly || !strings.Contains(refused[0].Detail, "acme-disk.service") || refused[0].Next == "" {
				t.Errorf("%s: %+v", unit, refused)
			}
		}
		if len(w.disk) > 0 || web.label != "unconfined" {
			t.Errorf("%q %+v", w.disk, web)
		}
		if n := listings(); n != 2 {
			t.Errorf("for a prefix and its units that are refused systemd lists units %d times", n)
		}
		// One by one they can be attached.
		w.declareUnit("/etc/aaunit/attachments.d/web.conf", "acme-web.service", func(a *attach.Attachment) { a.Profile = "acme" })
		rest()
		if w.disk["/etc/systemd/system/acme-web.service.d/90-aaunit.conf"] == "" || len(w.disk) != 1 || answer(l, "acme-web") != "confined" {
			t.Errorf("%q %s", w.disk, answer(l, "acme-web"))
		}
		w.undeclare("/etc/aaunit/attachments.d/web.conf")
		rest()

		w.mu.Lock()
		disk.early = false
		w.mu.Unlock()
		w.trigger()
		rest()
		if w.disk[file] == "" || answer(l, "acme-web") != "confined" || answer(l, "acme-disk") != "confined" {
			t.Errorf("%q %s %s", w.disk, answer(l, "acme-web"), answer(l, "acme-disk"))
		}
		if n := listings(); n != 1 {
			t.Errorf("for a prefix whose drop-in is in place systemd lists units %d times", n)
		}

		// What is in place is kept, and put back.
		w.mu.Lock()
		disk.early = true
		delete(w.disk, file)
		w.mu.Unlock()
		w.trigger()
		rest()
		if w.disk[file] == "" || answer(l, "acme-web") != "confined" {
			t.Errorf("%q %s", w.disk, answer(l, "acme-web"))
		}
	})
}

// What cannot be told of the units that a prefix reaches keeps its drop-in away, until
// it can be.
func TestAPrefixWhoseUnitsCannotBeListed(t *testing.T) {
	w := newWorld()
	w.addUnit("acme-web.service")
	w.files["acme"] = "1"
	w.unlisted = true
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/acme.conf", "acme-.service", func(a *attach.Attachment) { a.Profile = "acme" })
		rest()
		if refused := refusedOf(l, "acme-"); len(refused) != 1 || refused[0].Code != attach.SystemdUnheard || len(w.disk) > 0 {
			t.Errorf("%+v %q", refused, w.disk)
		}
		w.mu.Lock()
		w.unlisted = false
		w.mu.Unlock()
		w.trigger()
		rest()
		if len(w.disk) != 1 || answer(l, "acme-web") != "confined" {
			t.Errorf("%q %s", w.disk, answer(l, "acme-web"))
		}
	})
}

// A look that never comes back (a file system that does not answer) makes its
// unit unknown, and holds up no other.
func TestALookThatHangs(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	b := w.addUnit("b.service")
	w.declareUnit(fileA, "a.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
	w.run(t, func(l *Loop) {
		hang := make(chan struct{})
		w.mu.Lock()
		w.hang = map[string]chan struct{}{"a.service": hang}
		w.mu.Unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		for range 30 {
			rest()
		}
		if got := answer(l, "a"); got != "unknown" {
			t.Errorf("the unit that cannot be looked at is %s", got)
		}
		w.mu.Lock()
		w.begin(b)
		b.label = "unconfined"
		w.mu.Unlock()
		rest()
		if got := answer(l, "b"); got != "not-confined" {
			t.Errorf("the other unit is %s", got)
		}
		close(hang)
		w.mu.Lock()
		w.hang = nil
		w.mu.Unlock()
		rest()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		rest()
		if got := answer(l, "a"); got != "confined" {
			t.Errorf("afterwards it is %s", got)
		}
	})
}

// However many looks do not come back, another unit gets its own in a moment.
func TestManyLooksThatHang(t *testing.T) {
	names := []string{"b"}
	for i := range parallelFiles {
		names = append(names, fmt.Sprintf("a%d", i))
	}
	w := attached(nil, names...)
	b := w.units["b.service"]
	w.run(t, func(l *Loop) {
		rest()
		hang := make(chan struct{})
		w.mu.Lock()
		w.hang = map[string]chan struct{}{}
		for _, name := range names[1:] {
			w.hang[name+".service"] = hang
			_ = w.begin(w.units[name+".service"])
		}
		w.mu.Unlock()
		synctest.Wait()
		w.mu.Lock()
		_ = w.begin(b)
		b.label = "unconfined"
		w.mu.Unlock()
		letPass(2 * maxTurn)
		if got := answer(l, "b"); got != "not-confined" {
			t.Errorf("the other unit is %s", got)
		}
		letPass(2 * maxScan)
		if got := answer(l, "a0"); got != "unknown" {
			t.Errorf("one that cannot be looked at is %s", got)
		}
		w.mu.Lock()
		w.hang = nil
		w.mu.Unlock()
		close(hang)
	})
}

// A child profile that the text no longer has and a task still carries goes
// after the restart, and the attach is not undone for it.
func TestAChildThatIsCarriedGoesAfterTheRestart(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.own, u.label = "a", "a//old (enforce)"
	w.kernel["a"], w.kernel["a//old"] = "0", "0"
	w.run(t, func(l *Loop) {
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if _, there := w.kernel["a//old"]; there || out[0].Exit != attach.ExitOK || len(out[0].Notes) != 0 {
			t.Errorf("%+v %q %q", out, w.kernel, w.trace)
		}
	})
}

// What a file declares is not overruled by options of the command line in
// silence, and a manual attachment is found again without its profile.
func TestOptionsAndWhatIsDeclared(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	u := w.addUnit("b.service")
	w.files["p"] = "1"
	w.declareUnit(fileA, "a.service", nil)
	w.run(t, func(l *Loop) {
		for _, r := range []attach.Request{{Runtime: true}, {Complain: true}, {NoRestart: true}} {
			r.Units = []string{"a"}
			if out := attachUnits(t, l, r); out[0].Exit != attach.ExitFailed || !slices.Contains(codes(out[0].Reasons), attach.DeclaredInFile) {
				t.Errorf("%+v: %+v", r, out)
			}
		}
		if out := attachUnits(t, l, attach.Request{Units: []string{"b"}, Profile: "p", Complain: true}); out[0].Profile != "p" {
			t.Fatalf("%+v", out)
		}
		// A check takes it as it is, an attach with the options of now.
		out, err := l.Check(context.Background(), []string{"b"}, true)
		if err != nil || out[0].Profile != "p" || len(out[0].Plan.Actions) != 0 {
			t.Errorf("check: %v %+v", err, out)
		}
		if out := attachUnits(t, l, attach.Request{Units: []string{"b"}}); out[0].Profile != "p" || out[0].Exit != attach.ExitOK {
			t.Errorf("attach again: %+v", out)
		}
		rest()
		if w.kernel["p"] != "1" || answer(l, "b") != "confined" {
			t.Errorf("%+v %q", u, w.kernel)
		}
	})
}

// A unit that somebody stops while it is being detached stays stopped, also
// where the detach would have started it anew.
func TestADetachStartsNothingThatWasStopped(t *testing.T) {
	w := newWorld()
	w.byPath = map[string]bool{"a": true}
	u := w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		attachUnits(t, l, attach.Request{Units: []string{"a"}})
		w.onCall = func(call string) {
			if call == "reload" {
				u.running = false
			}
		}
		if _, err := l.Detach(context.Background(), attach.Request{Units: []string{"a"}}, nil); err != nil {
			t.Fatal(err)
		}
		rest()
		if _, loaded := w.kernel["a"]; u.running || loaded || len(w.records) != 0 {
			t.Errorf("%+v %q %q", u, w.kernel, w.trace)
		}
	})
}

// A unit whose profile name cannot be expanded any more runs on under the one that it
// had. It is refused, and looked at as before: by passes, at its starts and by verify.
func TestAUnitWhoseProfileNameNoLongerExpandsIsLookedAt(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		u := w.units["a.service"]
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile = "%i" })
		rest()
		s := status(t, l, "a")
		if s.Verdict == nil || s.Verdict.Answer != attach.Confined || s.Profile != "a" || !slices.Contains(codes(s.Refused), attach.ProfileNameBad) || s.Exit() != attach.ExitNotConfined {
			t.Errorf("it runs on: %+v", s)
		}
		verify := func() string {
			r, err := l.Verify(context.Background(), []string{"a"})
			if err != nil || len(r.Units) != 1 {
				t.Fatalf("%v %+v", err, r)
			}
			return r.Units[0].Verdict.Answer.String()
		}
		for what, see := range map[string]func() string{
			"verify": verify,
			"a pass": func() string { w.trigger(); rest(); return answer(l, "a") },
			"a start": func() string {
				w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: "a.service"}
				rest()
				return answer(l, "a")
			},
		} {
			for label, want := range map[string]string{"a (enforce)": "confined", "unconfined": "not-confined"} {
				w.mu.Lock()
				u.label = label
				w.mu.Unlock()
				if got := see(); got != want {
					t.Errorf("%s: %s is %s", what, label, got)
				}
			}
			w.mu.Lock()
			u.label = "a (enforce)"
			w.mu.Unlock()
			verify()
		}
		if w.calls["restart"] != 1 || w.disk[dropIn] == "" {
			t.Errorf("%q, %q", w.trace, w.disk)
		}
	})
}
