package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// changing is a unit that is confined by a, and a file that is changed to b, under
// which it does not come up.
func changing(t *testing.T, change func(*attach.Attachment)) (*world, *unit) {
	t.Helper()
	w := attached(change, "a")
	u := w.units["a.service"]
	w.files["b"] = "1"
	u.breaks["b"] = true
	return w, u
}

func toB(change func(*attach.Attachment)) func(*attach.Attachment) {
	return func(a *attach.Attachment) {
		if change != nil {
			change(a)
		}
		a.Profile = "b"
	}
}

// A changed attachment that fails again and again goes back each time to what the unit
// was confined by before, and so does its end.
func TestAnAttachThatFailsAgainGoesBackToTheFormerProfile(t *testing.T) {
	for _, end := range []string{"detach", "mended"} {
		w, u := changing(t, nil)
		w.run(t, func(l *Loop) {
			w.declareUnit(fileA, "a.service", toB(nil))
			rest()
			for _, version := range []string{"2", "3", "4"} {
				w.mu.Lock()
				w.files["b"] = version
				w.mu.Unlock()
				w.trigger()
				rest()
				s := status(t, l, "a")
				if !u.running || u.label != "a (enforce)" || w.disk[dropIn] == "" || s.Held == nil || s.Held.Former != "a" {
					t.Fatalf("version %s: %+v %+v %q", version, u, s.Held, w.trace)
				}
			}
			switch end {
			case "detach":
				w.undeclare(fileA)
				rest()
				if u.label != "unconfined" || len(w.disk)+len(w.kernel)+len(w.records) > 0 {
					t.Errorf("detached: %+v %q %q", u, w.disk, w.kernel)
				}
			case "mended":
				w.mu.Lock()
				w.files["b"] = "5"
				u.breaks["b"] = false
				w.mu.Unlock()
				w.trigger()
				rest()
				if u.label != "b (enforce)" || answer(l, "a") != "confined" {
					t.Errorf("mended: %+v %s", u, answer(l, "a"))
				}
			}
		})
	}
}

// That the new profile is refused by now, too, changes nothing about it.
func TestAHeldUnitIsKeptWhateverBecomesOfTheNewProfile(t *testing.T) {
	for what, become := range map[string]func(w *world){
		"broken":   func(w *world) { w.bad["b"] = true },
		"gone":     func(w *world) { delete(w.files, "b") },
		"complain": func(w *world) { w.flags["b"] = []string{"complain"} },
	} {
		w, u := changing(t, nil)
		w.run(t, func(l *Loop) {
			w.declareUnit(fileA, "a.service", toB(nil))
			rest()
			text := w.disk[dropIn]
			w.mu.Lock()
			become(w)
			w.mu.Unlock()
			w.trigger()
			rest()
			for _, trample := range []func(){
				func() { w.remove("a") },
				func() { w.kernel["a"] = "other" },
				func() { delete(w.disk, dropIn) },
			} {
				w.mu.Lock()
				trample()
				w.mu.Unlock()
				w.tellPolicy()
				w.trigger()
				w.still(t, what)
				if w.kernel["a"] != "1" || w.disk[dropIn] != text || w.read[dropIn] != text || !u.running {
					t.Errorf("%s: %q %q %q", what, w.kernel, w.disk, w.trace)
				}
				if s := status(t, l, "a"); s.Held == nil || s.Held.Former != "a" || len(s.Refused) == 0 {
					t.Errorf("%s: %+v", what, s)
				}
			}
		})
	}
}

// What a held unit runs under is kept: its policy, and the drop-in for its next start.
func TestAHeldUnitKeepsWhatTheUndoBroughtBack(t *testing.T) {
	w, u := changing(t, nil)
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		text := w.disk[dropIn]
		for _, trample := range []func(){
			func() { w.remove("a") },
			func() { w.kernel["a"] = "other" },
			func() { delete(w.disk, dropIn) },
			func() { w.disk[dropIn] = "[Service]\nAppArmorProfile=\n" },
		} {
			w.mu.Lock()
			w.calls = map[string]int{}
			trample()
			w.mu.Unlock()
			w.tellPolicy()
			w.trigger()
			rest()
			if w.kernel["a"] != "1" || w.disk[dropIn] != text || w.read[dropIn] != text {
				t.Errorf("%q %q %q", w.kernel, w.disk, w.trace)
			}
			if s := status(t, l, "a"); s.Held == nil || s.Held.Former != "a" || w.calls["restart"]+w.calls["stop"] > 0 {
				t.Errorf("%+v %q", s, w.calls)
			}
		}
	})
	// So it is in the daemon's next life.
	u.label = "a (enforce)"
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		delete(w.disk, dropIn)
		w.mu.Unlock()
		w.trigger()
		rest()
		if !strings.Contains(w.read[dropIn], "AppArmorProfile=a\n") || status(t, l, "a").Held == nil {
			t.Errorf("%q", w.read)
		}
	})
}

// A full disk, or a systemd that does not answer, is no reason to hold an attach for
// ever: once there is room it is done, and what confines an attached unit is put back.
func TestWhatTheHostWasInTheWayOfIsTriedAgain(t *testing.T) {
	for _, trouble := range []string{"full", "deaf"} {
		w := attached(nil, "a")
		b := w.addUnit("b.service")
		w.run(t, func(l *Loop) {
			set := func(is bool) {
				defer w.lock()()
				w.noRoom, w.deaf = nil, is && trouble == "deaf"
				if is && trouble == "full" {
					w.noRoom = func(int) bool { return true }
				}
			}
			set(true)
			w.mu.Lock()
			delete(w.disk, dropIn)
			w.mu.Unlock()
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
			w.trigger()
			rest()
			for _, unit := range []string{"a", "b"} {
				if s := status(t, l, unit); s.Held == nil || s.Held.Again.IsZero() {
					t.Errorf("%s, %s: %+v", trouble, unit, s)
				}
			}
			tries := w.log.count("attach of b.service failed and was undone")
			time.Sleep(3 * time.Hour)
			rest()
			if n := w.log.count("attach of b.service failed and was undone") - tries; n < 4 || n > 12 {
				t.Errorf("%s: tried %d times in three hours", trouble, n)
			}
			set(false)
			time.Sleep(maxLeave)
			rest()
			a := w.units["a.service"]
			if answer(l, "a") != "confined" || answer(l, "b") != "confined" || w.read[dropIn] == "" || b.label != "b (enforce)" || a.start != 2 {
				t.Errorf("%s: a is %s, b is %s, %q", trouble, answer(l, "a"), answer(l, "b"), w.read)
			}
			for _, s := range l.Status(nil).Units {
				if s.Held != nil {
					t.Errorf("%s is held: %+v", s.Unit, s.Held)
				}
			}
		})
	}
}

// A package that brings an attachment restarts its service, too, and may do so just
// after aaunitd has.
func TestARestartByHandIsNoFailedAttach(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", nil)
		for again := false; !again; {
			time.Sleep(time.Second)
			w.mu.Lock()
			if again = u.start == 2; again {
				_ = w.begin(u)
			}
			w.mu.Unlock()
		}
		rest()
		if s := status(t, l, "a"); s.Held != nil || answer(l, "a") != "confined" || u.label != "a (enforce)" || u.start != 3 {
			t.Errorf("%+v %+v %q", s, u, w.trace)
		}
	})
}

// A text that killed a unit and is held for it comes in by another unit's attach. Where
// that attach fails, the first has its own accepted policy again, and its hold.
func TestAFailedAttachGivesOthersTheirPolicyBack(t *testing.T) {
	w := attached(nil, "b")
	w.deadly["2"] = "dies"
	a := w.addUnit("a.service")
	w.files["a"] = "1"
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		if s := status(t, l, "b"); s.Held == nil || !s.Held.OnlyText() || w.kernel["a"] != "1" {
			t.Fatalf("%+v %q", s.Held, w.kernel)
		}
		w.mu.Lock()
		delete(w.deadly, "2") // it will kill b later
		a.breaks["a"] = true
		w.mu.Unlock()
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if out[0].Exit == attach.ExitOK || a.label != "unconfined" || !a.running {
			t.Fatalf("%+v %+v", out[0], a)
		}
		s := status(t, l, "b")
		if w.kernel["a"] != "1" || s.Held == nil || !s.Held.OnlyText() || answer(l, "b") != "confined" || w.kept[textA+" 1"].ID == "" {
			t.Errorf("%q, b: %s, %+v, kept %q", w.kernel, answer(l, "b"), s.Held, keptIDs(w))
		}
	})
}

// So it is when the daemon is killed at any step of that attach, and goes on with it.
func TestAFailedAttachThatWasCutOffGivesOthersTheirPolicyBack(t *testing.T) {
	for kill := range 40 {
		w := attached(nil, "b")
		w.deadly["2"] = "dies"
		a := w.addUnit("a.service")
		w.files["a"] = "1"
		w.run(t, func(l *Loop) {
			w.edit("2")
			rest()
			w.mu.Lock()
			delete(w.deadly, "2") // it will kill b later
			a.breaks["a"] = true
			w.killAt = len(w.trace) + 1 + kill
			w.mu.Unlock()
			_, _ = l.Attach(context.Background(), attach.Request{Units: []string{"a"}}, nil)
			rest()
		})
		cut := w.dead
		w.dead, w.killAt = false, 0
		w.run(t, func(l *Loop) {
			w.still(t, "after a kill")
			s := status(t, l, "b")
			if w.kernel["a"] != "1" || s.Held == nil || !s.Held.OnlyText() || answer(l, "b") != "confined" || w.records["b.service"].Lent != nil {
				t.Errorf("killed at %d: %q, b: %s, %+v, %q", kill, w.kernel, answer(l, "b"), s.Held, w.trace)
			}
		})
		if !cut {
			return
		}
	}
	t.Error("the attach has more steps than were tried")
}

// A text that a person lets in for one unit has to do for the others that share it.
func TestAnAttachAsksForOthersToo(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport }, "b")
	w.addUnit("a.service")
	w.files["a"] = "1"
	w.notFor = map[string]string{"b.service": "2"}
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]
		rest()
		if out.Exit == attach.ExitOK || len(out.Reasons) == 0 || out.Reasons[0].Code != attach.AssertionFailed || !strings.Contains(out.Reasons[0].Detail, "b.service would run under it too") {
			t.Errorf("%+v", out)
		}
		if w.kernel["a"] != "1" || answer(l, "b") != "confined" || w.units["a.service"].label != "unconfined" {
			t.Errorf("%q, b is %s", w.kernel, answer(l, "b"))
		}
		w.edit("3")
		rest()
		if out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]; out.Exit != attach.ExitOK || w.kernel["a"] != "3" {
			t.Errorf("a text that does for both: %+v", out)
		}
	})
}

// So is one that only allows the profile to its tasks.
func TestAnAttachAsksForThoseThatAllowTheProfileToo(t *testing.T) {
	w := attached(nil, "a")
	w.addUnit("b.service")
	w.files["b"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.AllowProfiles = []string{"a"} })
	w.notFor = map[string]string{"b.service": "2"}
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		if w.kernel["a"] != "1" {
			t.Fatalf("%q", w.kernel)
		}
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]
		rest()
		if out.Exit == attach.ExitOK || len(out.Reasons) == 0 || !strings.Contains(out.Reasons[0].Detail, "b.service would run under it too") {
			t.Errorf("%+v", out)
		}
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || answer(l, "b") != "confined" {
			t.Errorf("%q, a is %s, b is %s", w.kernel, answer(l, "a"), answer(l, "b"))
		}
	})
}

// An undo says what the unit is now, and not that it is as before where it is not.
func TestAnUndoTellsOfAUnitThatStaysDown(t *testing.T) {
	for _, down := range []bool{false, true} {
		w := newWorld()
		u := w.addUnit("a.service")
		u.breaks["a"], u.breaks[""] = true, down
		w.run(t, func(l *Loop) {
			out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]
			i := slices.IndexFunc(out.Events, func(e attach.Event) bool { return e.Step == attach.StepUndo })
			want := attach.Event{Unit: "a.service", Step: attach.StepUndo, State: attach.Done, Text: "a.service is active, as it was before the attach"}
			if down {
				want.State, want.Text = attach.Failed, "what had been changed for a.service was taken back; it ran before the attach, and is failed now"
			}
			if i < 0 || out.Events[i] != want || u.running == down {
				t.Errorf("%+v", out.Events)
			}
		})
	}
}

// A unit from whose tasks the profile was taken is no new one: where the restart that
// was to put it on again was cut off, and then fails, what confined it stays.
func TestARetakenUnitIsNoNewOne(t *testing.T) {
	w := attached(nil, "a")
	u := w.units["a.service"]
	w.run(t, func(*Loop) {})
	r := w.records["a.service"]
	r.Proved, r.Retaking, r.Retaken = "", "a.service-2", time.Now()
	w.records["a.service"] = r
	u.label = "unconfined"
	u.breaks["a"] = true
	w.run(t, func(l *Loop) {
		rest()
		if u.running && u.label == "unconfined" || !strings.Contains(w.read[dropIn], "AppArmorProfile=a\n") || w.kernel["a"] != "1" {
			t.Errorf("%+v %q %q %q", u, w.read, w.kernel, w.trace)
		}
		if answer(l, "a") == "confined" {
			t.Error("confined")
		}
	})
}

// still reports what goes on when nothing happens: nothing.
func (w *world) still(t *testing.T, what string) {
	t.Helper()
	rest()
	w.mu.Lock()
	before := len(w.trace)
	w.mu.Unlock()
	time.Sleep(5 * time.Minute)
	rest()
	w.mu.Lock()
	defer w.mu.Unlock()
	if more := w.trace[before:]; len(more) > 0 {
		t.Errorf("%s: it does not come to rest: %q", what, more[:min(20, len(more))])
	}
}

// Of a file that two units share the kernel has one policy: a unit that is held under
// its former profile does not load the earlier one under another.
func TestAHeldUnitLeavesAnothersPolicyAlone(t *testing.T) {
	w, u := changing(t, nil)
	w.tells = true
	w.addUnit("c.service")
	w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		w.edit("2")
		w.tellPolicy()
		w.still(t, "another text of the former profile")
		if w.kernel["a"] != "2" || answer(l, "c") != "confined" || u.label != "a (enforce)" || status(t, l, "a").Held == nil {
			t.Errorf("%q, c is %s, %+v", w.kernel, answer(l, "c"), u)
		}
	})
}

// Nor does one that is held under the profile that it had: what failed was something else.
func TestAUnitHeldUnderItsProfileLeavesAnothersPolicyAlone(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
	w.tells = true
	u := w.units["a.service"]
	u.breaks["PrivateTmp"] = true
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", nil)
		rest()
		if s := status(t, l, "a"); s.Held == nil || u.label != "a (enforce)" || u.tmp {
			t.Fatalf("%+v %+v", s.Held, u)
		}
		w.edit("2")
		w.still(t, "another text")
		if w.kernel["a"] != "2" || answer(l, "c") != "confined" || u.label != "a (enforce)" || status(t, l, "a").Held == nil {
			t.Errorf("%q, c is %s, %+v", w.kernel, answer(l, "c"), u)
		}
	})
}

// Nor does it unload a hat that the text has by now, and that was accepted for another one:
// all else about the profile may be as it was.
func TestAHeldUnitLeavesTheHatsOfAnothersPolicyAlone(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.PrivateTmp = attach.PrivateTmpNo }, "a", "c")
	w.tells, w.also = true, map[string]string{}
	u := w.units["a.service"]
	u.breaks["PrivateTmp"] = true
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", nil)
		rest()
		unlock := w.lock()
		w.also["a"] = "a//hat"
		unlock()
		w.trigger()
		w.still(t, "another hat")
		s, other := status(t, l, "a"), answer(l, "c")
		unlock = w.lock()
		defer unlock()
		if w.kernel["a//hat"] == "" || other != "confined" || u.label != "a (enforce)" || s.Held == nil || !slices.Contains(codes(s.Notes), attach.PolicyChanged) {
			t.Errorf("%q, c is %s, %+v, %+v", w.kernel, other, u, s)
		}
	})
}

// One that something else speaks against keeps the texts that it has, and they count for
// all: of two the kernel has one.
func TestAUnitThatKeepsItsPolicyKeepsItForAll(t *testing.T) {
	w := attached(nil, "c")
	w.tells = true
	w.addUnit("a.service")
	w.files["h"] = "1"
	w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.AllowProfiles = []string{"h"} })
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.bad["h"] = true
		w.mu.Unlock()
		w.edit("2")
		w.still(t, "another text beside a broken one")
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || answer(l, "c") != "confined" {
			t.Errorf("%q, a is %s, c is %s", w.kernel, answer(l, "a"), answer(l, "c"))
		}
		w.mu.Lock()
		w.bad["h"] = false
		w.mu.Unlock()
		w.trigger()
		w.still(t, "mended")
		if w.kernel["a"] != "2" || answer(l, "a") != "confined" || answer(l, "c") != "confined" {
			t.Errorf("%q, a is %s, c is %s", w.kernel, answer(l, "a"), answer(l, "c"))
		}
	})
}

// A policy that somebody had accepted for one unit, and that is undone, leaves it as it
// was that the attach of another unit that runs under it too is held.
func TestAnUndoneTrialLeavesTheHoldOfAnotherUnit(t *testing.T) {
	w, u := changing(t, nil)
	c := w.addUnit("c.service")
	w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		before := status(t, l, "a").Held
		w.mu.Lock()
		w.files["a"], w.deadly["2"], u.survives = "2", "dies", true
		w.mu.Unlock()
		if _, err := l.Apply(context.Background(), attach.Request{Units: []string{"/etc/aaunit/attachments.d/c.conf"}}, nil); err != nil {
			t.Fatal(err)
		}
		w.still(t, "undone")
		s := status(t, l, "a")
		if !u.running || u.label != "a (enforce)" || s.Held == nil || s.Held.Former != "a" || s.Held.OnlyText() || len(s.Held.DropIns) != len(before.DropIns) {
			t.Errorf("%+v %+v %q", u, s.Held, w.trace)
		}
		if !c.running || w.kernel["a"] != "1" {
			t.Errorf("%+v %q", c, w.kernel)
		}
	})
}

// Nor does the boot service make live what such a unit had, whatever apparmor.service has
// loaded.
func TestABootLeavesAnothersPolicyAlone(t *testing.T) {
	for _, loaded := range []map[string]string{{"a": "2"}, {"a": "1"}, {}} {
		w, _ := changing(t, nil)
		w.addUnit("c.service")
		w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "a" })
		w.run(t, func(l *Loop) {
			w.declareUnit(fileA, "a.service", toB(nil))
			rest()
			w.edit("2")
			rest()
			if w.records["a.service"].Policies["/etc/apparmor.d/a"] == w.records["c.service"].Policies["/etc/apparmor.d/a"] {
				t.Fatal("both accepted the same")
			}
		})
		w.reboot(loaded)
		if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["a"] != "2" {
			t.Errorf("%q: %v %q", loaded, err, w.kernel)
		}
	}
}

// Nor do two that are held, and had accepted different texts of it.
func TestTwoHeldUnitsDoNotTakeTurns(t *testing.T) {
	w, _ := changing(t, nil)
	w.tells = true
	c := w.addUnit("c.service")
	c.breaks["b"] = true
	fileC := "/etc/aaunit/attachments.d/c.conf"
	w.declareUnit(fileC, "c.service", func(a *attach.Attachment) { a.Profile = "a" })
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		w.edit("2")
		rest()
		w.declareUnit(fileC, "c.service", toB(nil))
		w.still(t, "two held units")
		for _, unit := range []string{"a", "c"} {
			if s := status(t, l, unit); s.Held == nil || w.units[unit+".service"].label != "a (enforce)" {
				t.Errorf("%s: %+v", unit, s)
			}
		}
	})
}

// A text that the assertions of one unit forbid does not go live for another that
// shares it either: the kernel has one of a name.
func TestATextThatOneUnitForbidsIsNotLoadedForAnother(t *testing.T) {
	for _, unit := range []string{"a.service", "b.service"} {
		w := attached(nil, "a", "b")
		w.tells, w.notFor = true, map[string]string{unit: "2"}
		w.run(t, func(l *Loop) {
			w.mu.Lock()
			loads := w.calls["load"]
			w.mu.Unlock()
			w.edit("2")
			w.still(t, "a text that "+unit+" forbids")
			if w.kernel["a"] != "1" || answer(l, "a") != "confined" || answer(l, "b") != "confined" || w.calls["load"] != loads {
				t.Errorf("%s: %q, a is %s, b is %s, %d loads", unit, w.kernel, answer(l, "a"), answer(l, "b"), w.calls["load"]-loads)
			}
			w.edit("3")
			w.still(t, "another text")
			if w.kernel["a"] != "3" || answer(l, "a") != "confined" || answer(l, "b") != "confined" {
				t.Errorf("%s: %q, a is %s, b is %s", unit, w.kernel, answer(l, "a"), answer(l, "b"))
			}
		})
	}
}

// What is proposed for several units of one profile is asked with the proposed
// attachments of all of them.
func TestAProposalIsAskedForAllItsUnits(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.Units = []string{"a.service", "b.service"} }, "a")
	w.addUnit("b.service")
	w.files["a"] = "1"
	w.notFor = map[string]string{"a.service": "2", "b.service": "2"}
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		for text, exit := range map[string]attach.Exit{"a.service,b.service a waive": attach.ExitOK, "a.service,b.service a": attach.ExitFailed} {
			out, err := l.Propose(t.Context(), []attach.ProposedFile{{File: fileA, Text: text}})
			if err != nil || len(out) != 2 || out[0].Exit != exit || out[1].Exit != exit {
				t.Errorf("%s: %v %+v", text, err, out)
			}
		}
	})
}

// A unit that was brought back to its former profile, and lost it, is no new one.
func TestAHeldUnitThatLostItsFormerProfileIsNoNewOne(t *testing.T) {
	w, u := changing(t, nil)
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		w.mu.Lock()
		w.remove("a")
		w.mu.Unlock()
		w.tellPolicy()
		rest()
		w.mu.Lock()
		w.files["b"] = "2"
		w.mu.Unlock()
		w.trigger()
		rest()
		if !strings.Contains(w.read[dropIn], "AppArmorProfile=a\n") || u.running && u.label != "a (enforce)" || w.kernel["a"] != "1" {
			t.Errorf("%+v %q %q", u, w.read, w.kernel)
		}
	})
}

// What a unit ran under is not forgotten when a second try does not come as far as the
// first.
func TestTheFormerProfileOutlivesATryThatIsRefused(t *testing.T) {
	w, u := changing(t, nil)
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		edit := func(version string, full bool) {
			w.mu.Lock()
			w.files["b"], w.noRoom = version, nil
			if full {
				w.noRoom = func(int) bool { return true }
			}
			w.mu.Unlock()
			w.trigger()
			rest()
		}
		edit("2", true)
		edit("3", false)
		if s := status(t, l, "a"); !u.running || u.label != "a (enforce)" || s.Held == nil || s.Held.Former != "a" {
			t.Errorf("%+v %+v %q", u, s.Held, w.trace)
		}
	})
}

// A unit that was left as it is under a profile that it does not settle under goes back
// to that one, and not to the one before.
func TestAnAttachThatWasLeftAsItIsIsWhatTheNextGoesBackTo(t *testing.T) {
	w, u := changing(t, nil)
	u.breaks["b"] = false
	w.files["c"] = "1"
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.onCall = func(call string) {
			if call == "restart a.service" && u.start == 2 {
				go func() { // it ends once, and systemd starts it again
					time.Sleep(time.Second)
					w.mu.Lock()
					u.start++
					u.restarts++
					w.mu.Unlock()
				}()
			}
		}
		w.mu.Unlock()
		w.declareUnit(fileA, "a.service", toB(func(a *attach.Attachment) { a.OnFailedAttach = attach.FailedKeep }))
		rest()
		if s := status(t, l, "a"); s.Held == nil || s.Held.Former != "b" || u.label != "b (enforce)" {
			t.Fatalf("%+v %+v", s.Held, u)
		}
		w.mu.Lock()
		w.onCall, u.breaks["c"] = nil, true
		w.mu.Unlock()
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile = "c" })
		rest()
		if s := status(t, l, "a"); !u.running || u.label != "b (enforce)" || s.Held == nil || s.Held.Former != "b" {
			t.Errorf("%+v %+v %q", u, s.Held, w.trace)
		}
	})
}

// systemd is told of a drop-in that was put back for a held unit, at the latest after a
// while.
func TestAHeldUnitsDropInIsReadAgain(t *testing.T) {
	w, _ := changing(t, nil)
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(nil))
		rest()
		w.mu.Lock()
		delete(w.disk, dropIn)
		delete(w.read, dropIn)
		w.deaf = true
		w.mu.Unlock()
		w.trigger()
		rest()
		w.mu.Lock()
		w.deaf = false
		w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		rest()
		if !strings.Contains(w.read[dropIn], "AppArmorProfile=a\n") || status(t, l, "a").Held == nil {
			t.Errorf("%q %q", w.read, w.trace)
		}
	})
}

// A hold that ends by itself does so after the daemon was restarted, too.
func TestAHoldEndsByItselfInTheNextLife(t *testing.T) {
	w := attached(nil, "a")
	w.deaf = true
	w.run(t, func(l *Loop) {
		if s := status(t, l, "a"); s.Held == nil || s.Held.Again.IsZero() {
			t.Errorf("%+v", s)
		}
	})
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.deaf = false
		w.mu.Unlock()
		time.Sleep(2 * time.Minute)
		rest()
		if answer(l, "a") != "confined" {
			t.Errorf("%s %+v", answer(l, "a"), status(t, l, "a"))
		}
	})
}

// That a drop-in was put back is said where somebody had changed it, and not where its
// attachment has.
func TestOnlyWhatSomebodyChangedIsSaidToBePutBack(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile, a.PrivateTmp = "a", attach.PrivateTmpNo })
		rest()
		if n := w.log.count("put back the drop-in"); n != 0 || strings.Contains(w.read[dropIn], "PrivateTmp") {
			t.Errorf("said %d times of a changed attachment; %q", n, w.read)
		}
		for i, trample := range []func(){func() { delete(w.disk, dropIn) }, func() { w.disk[dropIn] = "x" }} {
			w.mu.Lock()
			trample()
			w.mu.Unlock()
			w.trigger()
			rest()
			if n := w.log.count("put back the drop-in"); n != i+1 {
				t.Errorf("said %d times, want %d", n, i+1)
			}
		}
	})
}

// What is saved while an attach is about to fail was not tried: it is next.
func TestWhatIsSavedDuringAFailingAttachIsTried(t *testing.T) {
	for _, what := range []string{"text", "attachment"} {
		w := newWorld()
		u := w.addUnit("a.service")
		w.files["b"] = "1"
		u.breaks["a"] = true
		w.onCall = func(call string) {
			if call != "restart a.service" {
				return
			}
			w.onCall = nil
			time.AfterFunc(100*time.Millisecond, func() {
				if what == "attachment" {
					w.declareUnit(fileA, "a.service", toB(nil))
					return
				}
				defer w.lock()()
				w.files["a"] = "2"
				clear(u.breaks)
				w.tellPolicy()
			})
		}
		w.declareUnit(fileA, "a.service", nil)
		w.run(t, func(l *Loop) {
			rest()
			if s := status(t, l, "a"); s.Held != nil || answer(l, "a") != "confined" {
				t.Errorf("%s: %+v %+v", what, s, u)
			}
		})
	}
}

// So it is of what is saved when the units of a template fail.
func TestATextThatIsSavedWhenATemplateFails(t *testing.T) {
	w := instances(nil, "1")
	u := w.units["w@1.service"]
	u.breaks["w"] = true
	w.onCall = func(call string) {
		switch call {
		case "restart w@1.service":
			w.files["w"] = "2"
		case "start w@1.service": // the undo
			w.onCall = nil
			time.AfterFunc(time.Millisecond, func() { w.ends(u.name) })
		}
	}
	w.run(t, func(l *Loop) {
		rest()
		if r := l.Status(nil); len(r.Patterns) != 1 || r.Patterns[0].Held != nil {
			t.Errorf("%+v %q", r.Patterns, w.trace)
		}
		if next := w.comes("w@2.service"); next.label != "w (enforce)" {
			t.Errorf("the next one: %+v", next)
		}
	})
}

// What the former attachment allowed is no violation after the undo, though the one that
// failed does not allow it any more.
func TestAnUndoLeavesAUnitUnderWhatWasAllowedBefore(t *testing.T) {
	under := func(a *attach.Attachment) {
		a.OnViolation, a.AllowProfiles = attach.ViolationStop, []string{"helper"}
	}
	w, u := changing(t, under)
	w.files["helper"] = "1"
	u.moves = map[string]string{"a": "helper"}
	w.run(t, func(l *Loop) {
		if answer(l, "a") != "confined" || u.label != "helper (enforce)" {
			t.Fatalf("%s %+v", answer(l, "a"), u)
		}
		w.declareUnit(fileA, "a.service", toB(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }))
		rest()
		unlock := w.lock()
		if !u.running || u.label != "helper (enforce)" {
			t.Errorf("after the undo: %+v %q", u, w.trace)
		}
		_ = w.begin(u)
		unlock()
		rest()
		if s := status(t, l, "a"); !u.running || s.Held == nil || s.Held.Former != "a" {
			t.Errorf("its next start: %+v %+v %q", u, s, w.trace)
		}
		unlock = w.lock()
		_ = w.begin(u)
		u.label = "unconfined"
		unlock()
		rest()
		if u.running {
			t.Errorf("a start without any profile: %+v", u)
		}
	})
}

// An attach that fails while a changed policy is on trial, as the daemon was told to end,
// ends the trial: what was not shown to do goes, unless another unit runs under it too.
func TestAHeldUnitIsOnTrialNoMore(t *testing.T) {
	for _, tt := range []struct {
		name string
		// deny: it is denied something later; keep: it is left as it is; other: another unit
		// has the changed policy too, and fails as well, or dies of that; moves: the changed
		// text is in another file.
		deny, keep, other, fails, dies, moves bool
		want                                  string
	}{
		{name: "alone", want: "1"},
		{name: "alone, and the text is in another file", moves: true, want: "1"},
		{name: "left as it is", keep: true, want: "2"},
		{name: "denied", deny: true, want: "1"},
		{name: "another", other: true, want: "2"},
		{name: "another that fails too", other: true, fails: true, want: "1"},
		{name: "another that dies of it", other: true, dies: true, want: "1"},
	} {
		units := []string{"a"}
		if tt.other {
			units = append(units, "c")
		}
		change := func(a *attach.Attachment) { a.PrivateTmp, a.Settle = attach.PrivateTmpNo, 30*time.Second }
		w := attached(change, units...)
		w.tells = true
		u := w.units["a.service"]
		w.run(t, func(l *Loop) {
			time.Sleep(time.Minute)
			if tt.moves {
				w.move()
			}
			w.edit("2")
			time.Sleep(3 * time.Second)
		})
		for _, name := range units {
			if w.records[name+".service"].Trial == nil {
				t.Fatalf("%s: %s is not on trial: %q", tt.name, name, w.trace)
			}
		}
		failing := []string{"a"}
		if tt.fails {
			failing = units
		}
		for _, name := range failing {
			file := "/etc/aaunit/attachments.d/" + name + ".conf"
			a := w.att[file]
			if a.PrivateTmp = attach.PrivateTmpYes; tt.keep {
				a.OnFailedAttach = attach.FailedKeep
			}
			w.att[file] = a
			w.units[name+".service"].breaks["PrivateTmp"] = true
		}
		w.run(t, func(l *Loop) {
			if tt.dies {
				time.Sleep(5 * time.Second)
				unlock := w.lock()
				w.units["c.service"].running, w.units["c.service"].failed = false, true
				unlock()
			}
			time.Sleep(2 * time.Minute)
			for range 2 {
				if tt.deny {
					w.denials <- denial("a.service", "/etc/needed")
				}
				took := l.Metrics().Passes.Sum
				w.trigger()
				w.still(t, tt.name)
				if took = l.Metrics().Passes.Sum - took; took > 1 {
					t.Errorf("%s: the passes took %v s", tt.name, took)
				}
			}
			for _, name := range units {
				s, r := status(t, l, name), w.record(name+".service")
				if r.Trial != nil || !maps.Equal(r.Policies, map[string]string{textA: textA + " " + tt.want}) || slices.Contains(codes(s.Verdict.Reasons), attach.PolicyDiffers) {
					t.Errorf("%s: %s: %v %+v", tt.name, name, s.Verdict.Reasons, r)
				}
				if held := slices.Contains(failing, name); held != (s.Held != nil && !s.Held.OnlyText()) {
					t.Errorf("%s: %s: %+v", tt.name, name, s.Held)
				}
			}
			unlock := w.lock()
			defer unlock()
			if up := u.running && u.label == "a (enforce)" && !u.tmp; w.kernel["a"] != tt.want || up == tt.keep {
				t.Errorf("%s: %q %+v %q", tt.name, w.kernel, u, w.trace)
			}
			if n := w.log.count("cannot put back") + w.log.count("somebody"); n > 0 {
				t.Errorf("%s: %s", tt.name, w.log.String())
			}
		})
	}
}

// So does one that an earlier daemon left on the record of a held unit.
func TestATrialOnTheRecordOfAHeldUnitHoldsUpNothing(t *testing.T) {
	w, _ := changing(t, func(a *attach.Attachment) { a.Settle = 30 * time.Second })
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", toB(func(a *attach.Attachment) { a.Settle = 30 * time.Second }))
		time.Sleep(2 * time.Minute)
	})
	r := w.records["a.service"]
	if r.Hold == nil {
		t.Fatalf("%+v", r)
	}
	r.Trial = &attach.Trial{Accepted: r.Accepted, Policies: r.Policies, Since: time.Now(), Unit: attach.Start{Active: true}}
	w.records["a.service"] = r
	w.run(t, func(l *Loop) {
		w.trigger()
		rest()
		if took := l.Metrics().Passes.Sum; took > 1 || status(t, l, "a").Held == nil {
			t.Errorf("the passes took %v s: %+v", took, status(t, l, "a"))
		}
	})
}
