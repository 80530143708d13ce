package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const textA = "/etc/apparmor.d/a"

// attached is a world with units that are attached to profile "a" by one file
// for each, and run.
func attached(change func(*attach.Attachment), units ...string) *world {
	w := newWorld()
	w.deadly, w.flags = map[string]string{}, map[string][]string{}
	for _, u := range units {
		w.addUnit(u + ".service")
		w.declareUnit("/etc/aaunit/attachments.d/"+u+".conf", u+".service", func(at *attach.Attachment) {
			at.Profile = "a"
			if change != nil {
				change(at)
			}
		})
	}
	w.files["a"] = "1"
	return w
}

// edit changes the text of profile "a" as an editor would.
func (w *world) edit(version string) {
	w.mu.Lock()
	w.files["a"] = version
	w.mu.Unlock()
	w.trigger()
}

func (w *world) trigger() { w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded} }

func keptIDs(w *world) (ids []string) {
	defer w.lock()()
	for id := range w.kept {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func status(t *testing.T, l *Loop, unit string) attach.Status {
	t.Helper()
	r := l.Status([]string{unit})
	if len(r.Units) != 1 {
		t.Fatalf("%s: %+v", unit, r)
	}
	return r.Units[0]
}

func TestAChangedPolicyGoesLiveWithoutARestart(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		if w.kernel["a"] != "2" || w.calls["restart"] != 1 || answer(l, "a") != "confined" {
			t.Errorf("%q %q %s", w.kernel, w.trace, answer(l, "a"))
		}
		if r := w.records["a.service"]; r.Trial != nil || r.Policies[textA] != textA+" 2" || r.Accepted["a"] != "sha256:a2" {
			t.Errorf("%+v", r)
		}
		if ids := keptIDs(w); !slices.Equal(ids, []string{textA + " 2"}) {
			t.Errorf("kept: %q", ids)
		}
	})
}

// While a changed policy is on trial its unit is judged by it, and what was
// accepted before is kept.
func TestAPolicyOnTrial(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
	w.run(t, func(l *Loop) {
		w.onCall = func(call string) {
			if call == "load 1" {
				w.onCall = nil
				go func() {
					l.look(t.Context(), "a.service", false)
					if ids := keptIDs(w); len(ids) != 2 {
						t.Errorf("kept during the trial: %q", ids)
					}
				}()
			}
		}
		w.edit("2")
		rest()
		if answer(l, "a") != "confined" || w.calls["stop"] != 0 {
			t.Errorf("%s %q", answer(l, "a"), w.trace)
		}
	})
}

// Who edits a profile restarts the service next, and so do packages; a machine is
// rebooted at any time. None of that is the policy's doing. What happens to the new
// start is.
func TestAStartByHandDuringATrial(t *testing.T) {
	for _, how := range []string{"restart", "restart, then dies", "boot", "boot, not started", "stop"} {
		w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a")
		u := w.units["a.service"]
		var started int
		w.run(t, func(l *Loop) {
			w.edit("2")
			time.Sleep(3 * time.Second)
			w.mu.Lock()
			if w.kernel["a"] != "2" || w.records["a.service"].Trial == nil {
				t.Errorf("%q", w.trace)
			}
			switch how {
			case "stop": // and systemd lets go of it
				u.running, u.start = false, 0
			case "restart", "restart, then dies":
				_ = w.begin(u)
				started = u.start
			}
			w.mu.Unlock()
			if strings.HasPrefix(how, "boot") {
				return
			}
			time.Sleep(3 * time.Second)
			if how == "restart, then dies" {
				w.mu.Lock()
				u.running, u.failed = false, true
				w.mu.Unlock()
			}
			rest()
			if s := status(t, l, "a"); (s.Held != nil) != (how == "restart, then dies") || u.running == (how == "stop") || w.records["a.service"].Trial != nil {
				t.Errorf("%s: %+v %+v", how, s, u)
			}
			if how == "restart" && (w.kernel["a"] != "2" || answer(l, "a") != "confined" || u.start != started) {
				t.Errorf("%s: %q %q", how, w.kernel, w.trace)
			}
		})
		if !strings.HasPrefix(how, "boot") {
			continue
		}
		w.boots++
		u.start++
		if how == "boot, not started" {
			u.running, u.start = false, 0
		}
		w.run(t, func(l *Loop) {
			time.Sleep(time.Minute)
			rest()
			if s := status(t, l, "a"); s.Held != nil || w.kernel["a"] != "2" || (answer(l, "a") == "confined") != u.running || u.running != (how == "boot") || w.records["a.service"].Trial != nil {
				t.Errorf("%s: %+v %q", how, s, w.kernel)
			}
		})
	}
}

func TestAChangedPolicyThatAUnitFailsUnderIsUndone(t *testing.T) {
	for _, what := range []string{"dies", "restarts"} {
		w := attached(nil, "a", "b")
		w.deadly["2"] = what
		w.run(t, func(l *Loop) {
			w.edit("2")
			rest()
			for _, name := range []string{"a", "b"} {
				s := status(t, l, name)
				if s.Held == nil || len(s.Held.Texts) == 0 || s.Verdict == nil || s.Verdict.Answer != attach.Confined || !w.units[name+".service"].running {
					t.Errorf("%s: %s: %+v", what, name, s)
				}
			}
			if w.kernel["a"] != "1" || w.log.count("the changed policy of a.service was undone") != 1 {
				t.Errorf("%s: %q %q\n%s", what, w.kernel, w.trace, w.log.String())
			}
			// It is not tried again by itself, and not let in by others either.
			w.mu.Lock()
			delete(w.deadly, "2")
			w.replace("a", "2")
			w.mu.Unlock()
			w.trigger()
			rest()
			if w.kernel["a"] != "1" || answer(l, "a") != "confined" || w.log.count("by what /etc/apparmor.d/a says now") == 0 {
				t.Errorf("%s: a refused text that somebody loads: %q\n%s", what, w.kernel, w.log.String())
			}
			// Another text is.
			w.edit("3")
			rest()
			if s := status(t, l, "a"); w.kernel["a"] != "3" || s.Held != nil || answer(l, "b") != "confined" {
				t.Errorf("%s: %q %+v", what, w.kernel, s)
			}
		})
	}
}

// A text that somebody else has loaded, as a package does, is on trial from then on, and not
// only since the loop has come to it.
func TestATrialOfATextThatIsLiveAlready(t *testing.T) {
	for _, tt := range []struct {
		name string
		slow bool          // another unit settles meanwhile
		at   time.Duration // when it is denied something, from the load on
		stay bool
	}{
		{"denied at once", false, 10 * time.Millisecond, false},
		{"denied before", false, -10 * time.Second, true},
		{"denied during a pass", true, 10 * time.Second, false},
		{"denied before, and a pass is under way", true, -10 * time.Second, true},
	} {
		w := attached(nil, "a")
		w.addUnit("slow.service")
		w.files["b"] = "1"
		w.run(t, func(l *Loop) {
			if tt.slow {
				w.declareUnit("/etc/aaunit/attachments.d/slow.conf", "slow.service", func(a *attach.Attachment) { a.Profile, a.Settle = "b", time.Minute })
			}
			time.Sleep(10 * time.Second)
			deny := func() { w.denials <- denial("a.service", "/etc/needed") }
			if tt.at < 0 {
				deny()
				time.Sleep(-tt.at)
			}
			unlock := w.lock()
			w.files["a"] = "2"
			w.replace("a", "2")
			unlock()
			if tt.at > 0 && !tt.slow {
				time.Sleep(tt.at)
				deny()
			}
			time.Sleep(200 * time.Millisecond) // until it is told
			w.policy <- struct{}{}
			if tt.at > 0 && tt.slow {
				time.Sleep(tt.at)
				deny()
			}
			time.Sleep(2 * time.Minute)
			rest()
			s := status(t, l, "a")
			unlock = w.lock()
			defer unlock()
			if (s.Held == nil) != tt.stay || (w.kernel["a"] == "2") != tt.stay || s.Verdict.Answer != attach.Confined {
				t.Errorf("%s: %+v %q", tt.name, s, w.kernel)
			}
		})
	}
}

// A text that is saved while an earlier one is tried is tried next.
func TestATextThatIsSavedDuringATrial(t *testing.T) {
	for _, bad := range []bool{false, true} {
		w := attached(nil, "a", "b")
		w.deadly["2"] = "dies"
		if bad {
			w.deadly["3"] = "dies"
		}
		w.run(t, func(l *Loop) {
			unlock := w.lock()
			w.onCall = func(call string) {
				if call == "load 1" {
					w.onCall = nil
					time.AfterFunc(100*time.Millisecond, func() {
						defer w.lock()()
						w.files["a"] = "3"
						w.tellPolicy()
					})
				}
			}
			unlock()
			w.edit("2")
			w.still(t, "two texts")
			want := map[bool]string{false: "3", true: "1"}[bad]
			for _, name := range []string{"a", "b"} {
				if s := status(t, l, name); (s.Held != nil) != bad || s.Verdict.Answer != attach.Confined || bad && s.Held.Texts[textA] != textA+" 3" {
					t.Errorf("%v: %s: %+v %+v", bad, name, s, s.Held)
				}
			}
			unlock = w.lock()
			defer unlock()
			if w.kernel["a"] != want || !slices.Contains(w.trace, "keep "+textA+" 3") {
				t.Errorf("%v: %q %q", bad, w.kernel, w.trace)
			}
		})
	}
}

func TestAHeldTextGoesLiveWhenSomebodyAsks(t *testing.T) {
	w := attached(nil, "a", "b")
	w.deadly["2"] = "dies"
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		delete(w.deadly, "2")
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if out[0].Exit != attach.ExitOK || w.kernel["a"] != "2" || answer(l, "a") != "confined" || answer(l, "b") != "confined" || status(t, l, "b").Held != nil {
			t.Errorf("%+v %q", out[0], w.kernel)
		}
	})
}

// Killed before any step of a policy change that fails, the next daemon ends
// with the accepted policy and a unit that runs under it.
func TestAPolicyChangeKilledAtAnyStep(t *testing.T) {
	for _, what := range []string{"", "dies", "dies, in another file"} {
		for kill := 1; ; kill++ {
			w := attached(nil, "a", "b")
			w.run(t, func(*Loop) {})
			var moves bool
			if w.deadly["2"], _, moves = strings.Cut(what, ","); moves {
				w.moved = map[string]string{"a": "usr.bin.a"}
			}
			w.files["a"] = "2"
			w.killAt = len(w.trace) + kill
			w.run(t, func(*Loop) {})
			if !w.dead {
				break
			}
			w.dead, w.killAt = false, 0
			w.run(t, func(l *Loop) {
				want := "2"
				if what != "" {
					want = "1"
				}
				for _, u := range w.units {
					if !u.running || u.label != "a (enforce)" || w.kernel["a"] != want || answer(l, u.name) != "confined" || status(t, l, u.name).Held != nil != (what != "") {
						t.Errorf("%q, after a kill before step %d: %+v, kernel %q, %s, %q", what, kill, u, w.kernel, answer(l, u.name), w.trace)
					}
				}
			})
		}
	}
}

func TestWhatOthersDoToAnAcceptedPolicyIsNamedAndPutBack(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *world)
		says string
	}{
		{"replaced", func(w *world) { w.replace("a", "evil") }, "somebody replaced profile a by a text that is not that of /etc/apparmor.d/a"},
		{"aa-complain", func(w *world) {
			w.files["a"], w.flags["a"] = "1"+soft, []string{"complain"}
			w.replace("a", "1"+soft)
		}, "somebody put profile a into complain mode, as /etc/apparmor.d/a says now"},
		{"complain, text untouched", func(w *world) { w.replace("a", "1"+soft) }, "somebody put profile a into complain mode"},
		{"a package's broken text, and a reload that removed it", func(w *world) {
			w.bad["a"] = true
			w.remove("a")
		}, "somebody removed profile a"},
		{"text and profile gone", func(w *world) {
			delete(w.files, "a")
			w.remove("a")
		}, "somebody removed profile a"},
		{"aa-teardown", func(w *world) { w.remove("a") }, "somebody removed profile a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
			w.run(t, func(l *Loop) {
				for try := range 2 { // the second time too
					w.mu.Lock()
					tt.do(w)
					w.mu.Unlock()
					w.trigger()
					rest()
					u := w.units["a.service"]
					if w.kernel["a"] != "1" || !strings.Contains(w.log.String(), tt.says) {
						t.Fatalf("time %d: %q\n%s", try, w.kernel, w.log.String())
					}
					if try == 0 && (answer(l, "a") != "confined" || u.label != "a (enforce)" || !u.running) {
						t.Errorf("%s %+v %q", answer(l, "a"), u, w.trace)
					}
				}
				if n := w.calls["restart"]; n > 2 {
					t.Errorf("%d restarts: %q", n, w.trace)
				}
			})
		})
	}
}

// A text that is only to be reported does not go live by itself, for nobody.
func TestAChangeToBeReported(t *testing.T) {
	w := attached(func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport }, "a")
	w.addUnit("b.service")
	w.files["b"] = "1"
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || !slices.Contains(codes(status(t, l, "a").Notes), attach.PolicyChanged) {
			t.Errorf("%q %+v", w.kernel, status(t, l, "a"))
		}
		// A unit that comes later runs under the same policy.
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.Profile = "a" })
		rest()
		if w.kernel["a"] != "1" || answer(l, "b") != "confined" || w.calls["load"] != 1 {
			t.Errorf("%q %s %q", w.kernel, answer(l, "b"), w.trace)
		}
		// What somebody loads is put back, be it what the file says.
		w.mu.Lock()
		w.replace("a", "2")
		w.mu.Unlock()
		w.trigger()
		rest()
		if w.kernel["a"] != "1" {
			t.Errorf("%q", w.kernel)
		}
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		rest()
		if out[0].Exit != attach.ExitOK || w.kernel["a"] != "2" || answer(l, "a") != "confined" || answer(l, "b") != "confined" {
			t.Errorf("%+v %q %s", out[0], w.kernel, answer(l, "b"))
		}
	})
}

// What cannot be kept does not go live.
func TestAPolicyThatCannotBeKept(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.diskFull = true
		w.edit("2")
		rest()
		if s := status(t, l, "a"); w.kernel["a"] != "1" || answer(l, "a") != "confined" || !slices.Contains(codes(s.Refused), attach.PolicyNotKept) {
			t.Errorf("%q %s %+v", w.kernel, answer(l, "a"), s)
		}
		w.diskFull = false
		w.trigger()
		rest()
		if s := status(t, l, "a"); w.kernel["a"] != "2" || answer(l, "a") != "confined" || len(s.Refused) > 0 {
			t.Errorf("%q %s %+v", w.kernel, answer(l, "a"), s)
		}
	})
}

// A gate that refuses a text keeps what runs; a first attach is refused.
func TestTheGate(t *testing.T) {
	w := attached(nil, "a")
	w.gate = func(c attach.Compiled) []attach.Reason {
		if strings.HasSuffix(c.ID, " 2") {
			return []attach.Reason{attach.Because(attach.ProfileBroken, "it may not").At(c.File)}
		}
		return nil
	}
	w.addUnit("b.service")
	w.run(t, func(l *Loop) {
		w.edit("2")
		rest()
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || !slices.Contains(codes(status(t, l, "a").Notes), attach.ProfileBroken) {
			t.Errorf("%q %+v", w.kernel, status(t, l, "a"))
		}
		out := attachUnits(t, l, attach.Request{Units: []string{"b"}, Profile: "a"})
		if out[0].Exit != attach.ExitFailed || w.kernel["a"] != "1" {
			t.Errorf("%+v", out[0])
		}
	})
}

// A policy that cannot be read any more is compiled again from its file.
func TestAKeptPolicyIsLost(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.kept = map[string]attach.Compiled{}
		w.replace("a", "evil")
		w.mu.Unlock()
		w.trigger()
		rest()
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || fmt.Sprint(keptIDs(w)) != "["+textA+" 1]" {
			t.Errorf("%q %s %q", w.kernel, answer(l, "a"), keptIDs(w))
		}
	})
}

// TestAnotherParserMakesOtherPolicyOfTheSameText: it goes live for all that share the text or
// for none, and what is kept and on record of each unit is what the kernel has.
func TestAnotherParserMakesOtherPolicyOfTheSameText(t *testing.T) {
	const was, made = "1", "1 by parser 2"
	reports := func(w *world) {
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) {
			a.Profile, a.OnViolation, a.OnProfileChange = "a", attach.ViolationStop, attach.ChangeReport
		})
	}
	for _, tt := range []struct {
		name   string
		change func(*world) // of unit b
		loaded string       // by "systemctl reload apparmor"
		breaks bool         // the new parser does not take profile b
		asks   bool         // somebody attaches a
		live   string
		held   bool
	}{
		{name: "all take it", change: func(*world) {}, loaded: made, live: made},
		{name: "all take it, and nobody has loaded it", change: func(*world) {}, live: made},
		{name: "one only reports changes", change: reports, loaded: made, live: was},
		{name: "one only reports changes, and nobody has loaded it", change: reports, live: was},
		{name: "one only reports changes, and somebody asks for it", change: reports, asks: true, loaded: made, live: made},
		{name: "it may not go live for one", change: func(w *world) { w.notFor["b.service"] = made }, loaded: made, live: was},
		{name: "it may not go live for one, and somebody asks for it", change: func(w *world) { w.notFor["b.service"] = made }, asks: true, loaded: made, live: was},
		{name: "one keeps what it has, since another of its texts is broken", change: func(w *world) {
			w.files["b"] = "1"
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) {
				a.Profile, a.AllowProfiles, a.OnViolation = "a", []string{"b"}, attach.ViolationStop
			})
		}, loaded: made, breaks: true, live: was},
		{name: "one is held, and back under its former profile", change: func(w *world) {
			w.files["b"], w.units["b.service"].breaks["b"] = "1", true
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.Profile, a.OnViolation = "b", attach.ViolationStop })
		}, loaded: made, live: made, held: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a", "b", "c")
			w.notFor, w.bad = map[string]string{}, map[string]bool{}
			check := func(l *Loop) {
				t.Helper()
				for _, unit := range []string{"a", "b", "c"} {
					r, u, s := w.records[unit+".service"], w.units[unit+".service"], status(t, l, unit)
					held := tt.held && unit == "b"
					if (s.Held != nil) != held || !held && answer(l, unit) != "confined" || !u.running || u.label != "a (enforce)" || r.Accepted["a"] != "sha256:a"+tt.live {
						t.Errorf("%s is %s, %+v, held %+v, on record is %q\n%s", unit, answer(l, unit), u, s.Held, r.Accepted, w.log.String())
					}
				}
				if k := w.kept[textA+" 1"]; w.kernel["a"] != tt.live || k.Checksums["a"] != "sha256:a"+tt.live || string(k.Blob) != tt.live || w.calls["stop"] != 0 || tt.live == made && !tt.asks && strings.Contains(w.log.String(), "put back the policy") {
					t.Errorf("the kernel has %q, kept is %q; %q", w.kernel, k.Checksums, w.trace)
				}
			}
			w.run(t, func(l *Loop) {
				tt.change(w)
				w.tellFiles()
				rest()
				unlock := w.lock()
				w.calls["stop"] = 0
				w.parser, w.bad["b"] = "parser 2", tt.breaks
				if tt.loaded != "" {
					w.replace("a", tt.loaded)
				}
				unlock()
				w.tellPolicy()
				w.trigger()
				rest()
				if tt.asks {
					attachUnits(t, l, attach.Request{Units: []string{"a"}})
					rest()
				}
				check(l)
				w.trigger()
				rest()
				check(l)
			})
			w.run(t, check)
		})
	}
}

// TestALookThatBeganBeforeAPolicyWasAcceptedStopsNothing: a unit that was started meanwhile
// runs under what was accepted for it, and not under what had been when the look began.
func TestALookThatBeganBeforeAPolicyWasAcceptedStopsNothing(t *testing.T) {
	w := attached(func(a *attach.Attachment) {
		a.OnViolation, a.OnProfileChange = attach.ViolationStop, attach.ChangeReport
	}, "a", "b")
	w.run(t, func(l *Loop) {
		before, err := l.desired("b.service")
		if err != nil {
			t.Fatal(err)
		}
		w.edit("2")
		rest()
		attachUnits(t, l, attach.Request{Units: []string{"a"}})
		unlock := w.lock()
		if err := w.begin(w.units["b.service"]); err != nil {
			t.Error(err)
		}
		unlock()
		v, o := l.judge(t.Context(), before, true)
		if v.Answer != attach.NotConfined {
			t.Fatalf("%+v", v)
		}
		l.stopViolator(t.Context(), before, before.Record, &o, v, false)
		rest()
		if w.calls["stop"] != 0 || answer(l, "b") != "confined" {
			t.Errorf("b is %s: %q", answer(l, "b"), w.trace)
		}
	})
}

// At boot apparmor.service has loaded what /etc/apparmor.d says; what was
// accepted is made live, compiled anew where parser or kernel changed.
func TestMakePolicyLive(t *testing.T) {
	for _, tt := range []struct {
		name   string
		loaded string // of profile a, by apparmor.service
		parser string
		want   string
		trace  []string
	}{
		{"the same", "1", "parser 1", "1", nil},
		{"another text", "2", "parser 1", "1", []string{"load 1"}},
		{"none", "", "parser 1", "1", []string{"load 1"}},
		{"another parser", "1", "parser 2", "1 by parser 2", []string{"keep " + textA + " 1", "load 1"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(nil, "a")
			w.run(t, func(*Loop) {})
			w.files["a"] = "2"
			w.boots++
			w.parser = tt.parser
			w.kernel = map[string]string{"other": "1"}
			if tt.loaded != "" {
				w.kernel["a"] = tt.loaded
			}
			w.trace = nil
			if err := MakePolicyLive(t.Context(), w.options()); err != nil {
				t.Fatal(err)
			}
			if w.kernel["a"] != tt.want || w.kernel["other"] != "1" || !slices.Equal(w.trace, tt.trace) {
				t.Errorf("%q %q", w.kernel, w.trace)
			}
			// The unit starts under it, and the daemon that comes later agrees.
			w.units["a.service"].start++
			w.files["a"] = "1"
			w.trace = nil
			w.run(t, func(l *Loop) {
				if answer(l, "a") != "confined" || w.calls["restart"] != 1 || w.kernel["a"] != tt.want || len(w.trace) > 0 {
					t.Errorf("%s %q %q", answer(l, "a"), w.kernel, w.trace)
				}
			})
		})
	}
}

// One policy that is damaged, and one that cannot be loaded, keep no other back.
func TestMakePolicyLiveGoesOn(t *testing.T) {
	w := attached(nil, "a")
	w.addUnit("b.service")
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
	w.run(t, func(*Loop) {})
	w.kernel = map[string]string{}
	delete(w.kept, "/etc/apparmor.d/b 1")
	if err := MakePolicyLive(t.Context(), w.options()); err == nil || w.kernel["a"] != "1" {
		t.Errorf("%v %q", err, w.kernel)
	}
}

// A parser of another version does not take the accepted text of one unit: that is
// said, what was accepted goes live as it is, and the policy of the other unit is
// compiled anew.
func TestMakePolicyLiveThatNoParserTakes(t *testing.T) {
	w := attached(nil, "a")
	w.addUnit("b.service")
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
	w.run(t, func(*Loop) {})
	w.boots++
	w.parser, w.tooNew, w.bad = "parser 0", "/etc/apparmor.d/a", map[string]bool{"a": true}
	w.kernel = map[string]string{"a": "other"}
	err := MakePolicyLive(t.Context(), w.options())
	if err == nil || !strings.Contains(err.Error(), "/etc/apparmor.d/a") || !strings.Contains(err.Error(), "the parser knows no such rule") {
		t.Errorf("%v", err)
	}
	if w.kernel["a"] != "1" || w.kernel["b"] != "1 by parser 0" {
		t.Errorf("%q", w.kernel)
	}
	for _, u := range w.units {
		u.start++
	}
	w.run(t, func(l *Loop) {
		if answer(l, "a") != "confined" || answer(l, "b") != "confined" || w.calls["restart"] != 2 {
			t.Errorf("a is %s, b is %s, %q", answer(l, "a"), answer(l, "b"), w.trace)
		}
		if s := status(t, l, "a"); len(s.Notes)+len(s.Refused) == 0 {
			t.Errorf("that its text is broken is not told: %+v", s)
		}
	})
}

// What is ready waits for nothing that has to be compiled anew, and what is not compiled in
// time goes live as it was.
func TestMakePolicyLiveWaitsForNoParser(t *testing.T) {
	w := attached(nil, "a", "c")
	w.addUnit("b.service")
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", nil)
	w.files["b"], w.files["c"] = "1", "1"
	w.run(t, func(*Loop) {})
	w.reboot(map[string]string{"b": "other"})
	w.parser, w.hangs = "parser 2", true
	for id, k := range w.kept {
		if k.File != "/etc/apparmor.d/b" {
			k.Environment = "parser 2"
			w.kept[id] = k
		}
	}
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		var err error
		var ended sync.WaitGroup
		ended.Go(func() { err = MakePolicyLive(t.Context(), w.options()) })
		synctest.Wait()
		unlock := w.lock()
		if w.kernel["a"] != "1" || w.kernel["c"] != "1" || w.kernel["b"] != "other" {
			t.Errorf("while the parser is at work: %q", w.kernel)
		}
		unlock()
		ended.Wait()
		if took := time.Since(begun); took != MaxAnew {
			t.Errorf("it took %v", took)
		}
		if err == nil || !strings.Contains(err.Error(), "cannot compile /etc/apparmor.d/b") {
			t.Errorf("%v", err)
		}
		if w.kernel["a"] != "1" || w.kernel["b"] != "1" || w.kernel["c"] != "1" {
			t.Errorf("in the end: %q", w.kernel)
		}
	})
	// All of it is on record for a detach.
	for unit, loaded := range map[string][]string{"a": {"a"}, "b": nil, "c": {"c"}} {
		if r := w.records[unit+".service"]; (r.Boot == w.options().Boot) != (loaded != nil) || loaded != nil && !slices.Equal(r.Loaded, loaded) {
			t.Errorf("of %s loaded is %q in %s", unit, r.Loaded, r.Boot)
		}
	}
}

// Of two policies of a unit that name one profile the one counts that is compiled anew, whether or
// not the other one is ready before.
func TestMakePolicyLiveKeepsTheOrder(t *testing.T) {
	for _, live := range []string{"", "1", "2", "1 by parser 2"} {
		w := attached(nil, "a")
		w.run(t, func(*Loop) {})
		w.reboot(map[string]string{})
		if live != "" {
			w.kernel["a"] = live
		}
		w.parser = "parser 2"
		k := w.kept[textA+" 1"]
		k.File = "/etc/apparmor.d/other"
		k.ID, k.Blob, k.Environment, k.Checksums = k.File+" 2", []byte("2"), "parser 2", map[string]string{"a": "sha256:a2"}
		w.kept[k.ID] = k
		w.records["a.service"].Policies[k.File] = k.ID
		w.trace = nil
		want, loads := "1 by parser 2", "load 2"
		switch live {
		case "2":
			loads = "load 1"
		case "1 by parser 2":
			want, loads = "2", "load 1"
		}
		if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["a"] != want || !slices.Contains(w.trace, loads) {
			t.Errorf("%q: the kernel has %q, %v; %q", live, w.kernel, err, w.trace)
		}
	}
}

// reboot has apparmor.service load these versions.
func (w *world) reboot(loaded map[string]string) {
	w.boots++
	w.kernel = loaded
	for p := range w.disk {
		if strings.HasPrefix(p, "/run/") {
			delete(w.disk, p)
		}
	}
	for f, a := range w.att {
		if a.Runtime {
			delete(w.att, f)
		}
	}
	w.read = maps.Clone(w.disk)
}

// What a boot loads beyond what apparmor.service has loaded is as much aaunit's as what
// the daemon loads: a detach takes it back. Killed before any of its steps, and started
// again, the boot has it on record all the same.
func TestADetachTakesBackWhatTheBootLoaded(t *testing.T) {
	for _, tt := range []struct {
		name, booted string // what apparmor.service has loaded
		mode         attach.Wish
		noBoot, full bool
		byPath       bool   // the profile attaches to the program by itself
		live, left   string // after the boot and the detach
	}{
		{name: "nothing was loaded", live: "1"},
		{name: "nothing was loaded of a profile that attaches by path", byPath: true, live: "1"},
		{name: "in complain mode over what enforced", mode: attach.WishComplain, booted: "1", live: "1" + soft, left: "1"},
		{name: "in complain mode where nothing was loaded", mode: attach.WishComplain, live: "1" + soft},
		{name: "in complain mode over another text in it", mode: attach.WishComplain, booted: "2" + soft, live: "1" + soft, left: "1" + soft},
		{name: "over another text", booted: "2", live: "1", left: "1"},
		{name: "the same was loaded", booted: "1", live: "1", left: "1"},
		{name: "no record can be kept", full: true, live: "1", left: "1"},
		{name: "the boot is not known", noBoot: true, live: "1", left: "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for kill := 1; ; kill++ {
				units := []string{"a", "b"}
				if tt.byPath {
					units = units[:1] // the other one would carry it by itself
				}
				w := attached(func(a *attach.Attachment) { a.Mode = cmp.Or(tt.mode, a.Mode) }, units...)
				if tt.byPath {
					w.byPath = map[string]bool{"a": true}
				}
				w.run(t, func(*Loop) {})
				w.reboot(map[string]string{})
				if tt.booted != "" {
					w.kernel["a"] = tt.booted
				}
				o := w.options()
				if tt.noBoot {
					o.Boot = ""
				}
				var steps []string
				w.onStep = func(step string) bool {
					steps = append(steps, step)
					return len(steps) == kill
				}
				o.Store = failing{o.Store, tt.full}
				err := MakePolicyLive(t.Context(), o)
				killed := w.dead
				w.dead, w.onStep = false, nil
				if killed {
					err = MakePolicyLive(t.Context(), o)
				}
				if (err != nil) != tt.full || w.kernel["a"] != tt.live {
					t.Fatalf("%v %q %q", err, w.kernel, steps)
				}
				if tt.full && !strings.Contains(err.Error(), "a.service") {
					t.Error(err)
				}
				for _, u := range w.units {
					u.start++
				}
				w.run(t, func(l *Loop) {
					for _, unit := range units {
						if answer(l, unit) != map[bool]string{true: "not-confined", false: "confined"}[tt.mode == attach.WishComplain] {
							t.Errorf("%s is %s", unit, answer(l, unit))
						}
						if w.kernel["a"] != tt.live {
							t.Errorf("%q: %s is still attached", w.kernel, unit)
						}
						w.undeclare("/etc/aaunit/attachments.d/" + unit + ".conf")
						rest()
					}
				})
				if w.kernel["a"] != tt.left || len(w.records) > 0 {
					t.Errorf("%q %+v after %q", w.kernel, w.records, steps)
				}
				if u := w.units["a.service"]; u.label != "unconfined" || !u.running {
					t.Errorf("%+v", u)
				}
				if !killed {
					break
				}
			}
		})
	}
}

// failing cannot keep records.
type failing struct {
	Store
	full bool
}

func (f failing) Save(r attach.Record) error {
	if f.full {
		return noSpace{}
	}
	return f.Store.Save(r)
}

// An attachment below /run ends with the reboot: nothing is loaded for it by the next
// boot. The service may be started again in the same boot, where it has not ended.
func TestABootLoadsNothingForWhatEndedWithTheLast(t *testing.T) {
	for _, tt := range []struct {
		name         string
		lasts        bool // another attachment to the profile
		same, noBoot bool
		want         string
	}{
		{"nobody else has it", false, false, false, ""},
		{"another attachment lasts", true, false, false, "1"},
		{"the same boot", false, true, false, "1"},
		{"the boot is not known", false, false, true, "1"},
	} {
		w := attached(func(a *attach.Attachment) { a.Runtime = true }, "a")
		w.addUnit("b.service")
		w.files["b"] = "1"
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) {
			if tt.lasts {
				a.Profile = "a"
			}
		})
		w.run(t, func(*Loop) {})
		w.reboot(map[string]string{})
		if tt.same {
			w.boots--
		}
		o := w.options()
		if tt.noBoot {
			o.Boot = ""
		}
		if err := MakePolicyLive(t.Context(), o); err != nil || w.kernel["a"] != tt.want {
			t.Errorf("%s: %v %q", tt.name, err, w.kernel)
		}
		if r := w.records["a.service"]; !tt.same && len(r.Loaded) > 0 && r.Boot == o.Boot {
			t.Errorf("%s: %+v", tt.name, r)
		}
	}
}

// A policy that the kernel reads otherwise than it was checked goes live neither
// at boot nor when it changes.
func TestADisputedPolicyStaysOut(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.disputed = `file "/tmp/a"`
		w.edit("2")
		rest()
		if w.kernel["a"] != "1" || answer(l, "a") != "confined" || !slices.Contains(codes(status(t, l, "a").Notes), attach.PolicyDisputed) {
			t.Errorf("%q %s %+v", w.kernel, answer(l, "a"), status(t, l, "a").Notes)
		}
	})
	w.boots++
	w.parser = "parser 2"
	if err := MakePolicyLive(t.Context(), w.options()); err == nil || !strings.Contains(err.Error(), w.disputed) || w.kernel["a"] != "1" {
		t.Errorf("%v %q", err, w.kernel)
	}
}

func denial(unit, name string) attach.Denial {
	now := time.Now()
	return attach.Denial{Time: now, First: now, Last: now, Count: 1, Profile: "a", Operation: "open", Name: name, Denied: "r", Unit: unit}
}

// A changed policy that denies a unit something new is undone; what it was
// denied before, and what another unit is denied, is no cause.
func TestAChangedPolicyThatDeniesSomethingNewIsUndone(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		change := func(version string, d attach.Denial) {
			w.edit(version)
			time.Sleep(2 * time.Second)
			d.Time, d.First, d.Last = time.Now(), time.Now(), time.Now()
			w.denials <- d
			rest()
		}
		w.denials <- denial("a.service", "/old")
		rest()
		change("2", denial("a.service", "/old"))
		if s := status(t, l, "a"); w.kernel["a"] != "2" || s.Held != nil {
			t.Errorf("an old denial: %q %+v", w.kernel, s)
		}
		change("3", denial("b.service", "/new"))
		if s := status(t, l, "a"); w.kernel["a"] != "3" || s.Held != nil {
			t.Errorf("another unit's: %q %+v", w.kernel, s)
		}
		change("4", denial("a.service", "/new"))
		s := status(t, l, "a")
		if w.kernel["a"] != "3" || s.Held == nil || answer(l, "a") != "confined" || w.calls["restart"] != 1 || !strings.Contains(w.log.String(), "open /new (r) denied") {
			t.Errorf("%q %+v\n%s", w.kernel, s, w.log.String())
		}
		// Whoever asks for it gets it.
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		if out[0].Exit != attach.ExitOK || w.kernel["a"] != "4" {
			t.Errorf("%+v %q", out[0], w.kernel)
		}
	})
}

// Whoever may run a program can have it denied something under a unit's profile: that
// undoes no policy, and is told. What the unit's own processes have told does.
func TestATrialCountsWhatTheUnitsOwnProcessesTold(t *testing.T) {
	const session = "/user.slice/user-1000.slice/session-3.scope"
	gone := func(name string) attach.Denial { return denial("", name) }
	elsewhere := func(name string) attach.Denial {
		d := denial("", name)
		d.Cgroup = session
		return d
	}
	own := func(name string) attach.Denial {
		d := denial("a.service", name)
		d.Cgroup = "/system.slice/a.service"
		return d
	}
	for _, c := range []struct {
		what          string
		before, after []func(string) attach.Denial // the trial begins
		undone        bool
		told          bool // what does not count is
	}{
		{what: "a process in a session", after: []func(string) attach.Denial{elsewhere}},
		{what: "a process that was gone", after: []func(string) attach.Denial{gone}, told: true},
		{what: "one of the unit's", after: []func(string) attach.Denial{own}, undone: true},
		{what: "one that was gone, and one of the unit's after it", after: []func(string) attach.Denial{gone, own}, undone: true},
		{what: "one of the unit's, and one that was gone after it", after: []func(string) attach.Denial{own, gone}, undone: true},
		{what: "one of the unit's before", before: []func(string) attach.Denial{own}, after: []func(string) attach.Denial{gone, own}},
		// Nobody makes a denial an old one by having it beforehand.
		{what: "one that was gone before", before: []func(string) attach.Denial{gone}, after: []func(string) attach.Denial{own}, undone: true},
		{what: "one in a session before", before: []func(string) attach.Denial{elsewhere}, after: []func(string) attach.Denial{own}, undone: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := attached(nil, "a")
			w.run(t, func(l *Loop) {
				for _, d := range c.before {
					w.denials <- d("/new")
				}
				rest()
				w.edit("2")
				time.Sleep(2 * time.Second)
				for _, d := range c.after {
					w.denials <- d("/new")
				}
				rest()
				s := status(t, l, "a")
				if undone := w.kernel["a"] == "1" && s.Held != nil; undone != c.undone || !undone && w.kernel["a"] != "2" {
					t.Errorf("undone: %v, want %v; %q %+v", undone, c.undone, w.kernel, s)
				}
				if told := slices.Contains(codes(s.Notes), attach.Denied); told != c.told {
					t.Errorf("told: %v, want %v: %v", told, c.told, s.Notes)
				}
			})
		})
	}
}

// Nor does anybody make an old denial a new one by pushing it out of the log.
func TestNobodyElsePushesOutWhatAUnitWasDenied(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.denials <- denial("a.service", "/old")
		rest()
		for i := range 2 * maxUnitDenials {
			w.denials <- denial("", fmt.Sprint("/", i)) // gone, and so attributed by the profile
		}
		rest()
		w.edit("2")
		time.Sleep(2 * time.Second)
		w.denials <- denial("a.service", "/old")
		rest()
		if s := status(t, l, "a"); w.kernel["a"] != "2" || s.Held != nil {
			t.Errorf("%q %+v", w.kernel, s)
		}
		if n := len(l.denials.since("a.service", time.Time{})); n != maxUnitDenials {
			t.Errorf("%d are kept", n)
		}
	})
}

// Where the log lacks something since the unit's start, it does not tell that a denial is
// a new one.
func TestATrialDoesNotCountWhatMayBeOld(t *testing.T) {
	for _, c := range []struct {
		what      string
		lost      int
		restart   bool // of aaunitd
		ahead     bool // the clock, when the unit started
		startUnit bool // after that
		undone    bool
	}{
		{what: "all was heard", undone: true},
		{what: "aaunitd is another one", restart: true},
		{what: "aaunitd is another one, and the unit started since", restart: true, startUnit: true, undone: true},
		{what: "aaunitd is another one, and the clock was put back", restart: true, ahead: true},
		{what: "records were lost", lost: 1},
		{what: "records were lost before the unit started", lost: 1, startUnit: true, undone: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := attached(nil, "a")
			last := func(l *Loop) {
				if c.startUnit {
					time.Sleep(time.Second)
					unlock := w.lock()
					if err := w.begin(w.units["a.service"]); err != nil {
						t.Error(err)
					}
					unlock()
					rest()
				}
				w.edit("2")
				time.Sleep(2 * time.Second)
				w.denials <- denial("a.service", "/regular")
				rest()
				s := status(t, l, "a")
				if undone := w.kernel["a"] == "1" && s.Held != nil; undone != c.undone || !undone && w.kernel["a"] != "2" {
					t.Errorf("undone: %v, want %v; %q %+v", undone, c.undone, w.kernel, s)
				}
				if told := strings.Contains(fmt.Sprint(s.Notes), "it may have been denied before: profile a: open /regular (r) denied"); told == c.undone {
					t.Errorf("told: %v: %v", told, s.Notes)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				w.boot(func(l *Loop) {
					time.Sleep(time.Minute)
					if c.lost > 0 {
						w.denials <- attach.Denial{Lost: c.lost}
						rest()
					}
					if !c.restart {
						last(l)
					}
				})
				if c.ahead {
					w.units["a.service"].since = time.Now().Add(2 * time.Hour)
				}
				if c.restart {
					w.boot(last)
				}
			})
		})
	}
}

// What speaks against a changed policy is that it denies what the accepted one allows.
func TestATrialAsksTheAcceptedPolicy(t *testing.T) {
	own := func(name string) attach.Denial { return denial("a.service", name) }
	gone := func(name string) attach.Denial { return denial("", name) }
	type denials = []func(string) attach.Denial
	for _, c := range []struct {
		what          string
		denies        attach.Tri // the accepted policy
		before, after denials    // the trial begins
		restart       bool       // of aaunitd, before the trial
		leads         bool       // programs to other profiles than the accepted one
		undone, told  bool
	}{
		{what: "allowed before", denies: attach.No, after: denials{own}, undone: true},
		{what: "allowed before, and denied under an earlier one", denies: attach.No, before: denials{own}, after: denials{own}, undone: true},
		{what: "allowed before, and the log is new", denies: attach.No, after: denials{own}, restart: true, undone: true},
		{what: "allowed before, and not known whose it is", denies: attach.No, after: denials{gone}, told: true},
		// The unit itself was denied it long ago, and anybody can bring it about now.
		{what: "allowed before, denied under an earlier one, and not known whose it is", denies: attach.No, before: denials{own}, after: denials{gone}, told: true},
		{what: "denied before", denies: attach.Yes, after: denials{own, gone}},
		{what: "denied before, and the log is new", denies: attach.Yes, after: denials{own}, restart: true},
		{what: "denied before, but of other programs", denies: attach.Yes, leads: true, after: denials{own}, undone: true},
		{what: "denied before, of other programs, and the log has one", denies: attach.Yes, leads: true, before: denials{own}, after: denials{own, gone}},
		{what: "denied before, of other programs, and the log is new", denies: attach.Yes, leads: true, after: denials{own}, restart: true, told: true},
		{what: "allowed before, to other programs", denies: attach.No, leads: true, before: denials{own}, after: denials{own}, undone: true},
		{what: "it cannot tell, and the log has none", after: denials{own}, undone: true},
		{what: "it cannot tell, and the log has one", before: denials{own}, after: denials{own, gone}},
		{what: "it cannot tell, and the log is new", before: denials{own}, after: denials{own}, restart: true, told: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := attached(nil, "a")
			w.denies = func(k attach.Compiled, d attach.Denial) attach.Tri {
				if k.ID != textA+" 2" || d.Name != "/x" {
					t.Errorf("%s was asked about %s", k.ID, d.Name)
				}
				return c.denies
			}
			compared := 0
			w.sameWays = func(was, is []attach.Compiled) attach.Tri {
				compared++
				if len(was) != 1 || len(is) != 1 || was[0].ID != textA+" 2" || is[0].ID != textA+" 3" {
					t.Errorf("compared: %+v and %+v", was, is)
				}
				if c.leads {
					return attach.No
				}
				return attach.Yes
			}
			first := func(l *Loop) {
				for _, d := range c.before {
					w.denials <- d("/x")
				}
				rest()
				w.edit("2")
				rest()
				time.Sleep(time.Hour)
			}
			last := func(l *Loop) {
				w.edit("3")
				time.Sleep(2 * time.Second)
				for _, d := range c.after {
					w.denials <- d("/x")
				}
				rest()
				s := status(t, l, "a")
				if undone := w.kernel["a"] == "2" && s.Held != nil; undone != c.undone || !undone && w.kernel["a"] != "3" {
					t.Errorf("undone: %v, want %v; %q %+v", undone, c.undone, w.kernel, s)
				}
				if told := slices.Contains(codes(s.Notes), attach.Denied); told != c.told {
					t.Errorf("told: %v, want %v: %v", told, c.told, s.Notes)
				}
				if compared > 1 {
					t.Errorf("compared %d times", compared)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				w.boot(func(l *Loop) {
					if first(l); !c.restart {
						last(l)
					}
				})
				if c.restart {
					w.boot(last)
				}
			})
		})
	}
}

// A unit that is denied much has the policy asked about some of it, and about each once.
// What came before, or what anybody brings about, takes nothing from what the unit is
// denied for the first time.
func TestATrialAsksNoMoreThanItMust(t *testing.T) {
	own := func(i int) attach.Denial { return denial("a.service", fmt.Sprint("/", i)) }
	gone := func(i int) attach.Denial { return denial("", fmt.Sprint("/", i)) }
	for _, c := range []struct {
		what          string
		before, after func(int) attach.Denial // the trial begins; many
		needed        attach.Tri              // the accepted policy denies what comes last
		restart       bool                    // of aaunitd, before the trial
		asked         int                     // about the many
		undone        bool
	}{
		{what: "its own, as before", before: own, after: own, needed: attach.Yes, asked: maxQuestions},
		{what: "its own, as before, and what was allowed", before: own, after: own, needed: attach.No, asked: maxQuestions, undone: true},
		{what: "anybody's", after: gone, needed: attach.Yes, asked: maxOthers},
		{what: "anybody's, and what was allowed", after: gone, needed: attach.No, asked: maxOthers, undone: true},
		{what: "anybody's, and what was allowed, and the log is new", after: gone, needed: attach.No, restart: true, asked: maxOthers, undone: true},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := attached(nil, "a")
			asked := map[string]int{}
			w.denies = func(_ attach.Compiled, d attach.Denial) attach.Tri {
				asked[d.Name]++
				if d.Name == "/needed" {
					return c.needed
				}
				return attach.Yes
			}
			many := func(d func(int) attach.Denial) {
				for i := range 2 * maxQuestions {
					w.denials <- d(i)
				}
			}
			last := func(l *Loop) {
				if c.before != nil {
					many(c.before)
				}
				rest()
				w.edit("2")
				time.Sleep(2 * time.Second)
				many(c.after)
				time.Sleep(time.Second)
				w.denials <- denial("a.service", "/needed")
				rest()
				s := status(t, l, "a")
				if undone := w.kernel["a"] == "1" && s.Held != nil; undone != c.undone || !undone && w.kernel["a"] != "2" {
					t.Errorf("undone: %v, want %v; %q %+v", undone, c.undone, w.kernel, s)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				w.boot(func(l *Loop) {
					if time.Sleep(time.Minute); !c.restart {
						last(l)
					}
				})
				if c.restart {
					w.boot(last)
				}
			})
			for name, n := range asked {
				if n != 1 {
					t.Errorf("about %s it was asked %d times", name, n)
				}
			}
			if asked["/needed"] != 1 || len(asked)-1 != c.asked {
				t.Errorf("it was asked about %d, want %d, and about what came last %d times", len(asked)-1, c.asked, asked["/needed"])
			}
		})
	}
}

// A rule may be for one process alone.
func TestATrialAsksAboutEachProcess(t *testing.T) {
	for _, c := range []struct {
		allowed, first string // by the accepted policy
		asked          []string
	}{
		{"/proc/1/stat", "/proc/4242/stat", []string{"/proc/4242/stat", "/proc/1/stat"}},
		{"/proc/2/stat", "/proc/4242/stat", []string{"/proc/4242/stat", "/proc/2/stat"}},
	} {
		t.Run(c.allowed, func(t *testing.T) {
			w := attached(nil, "a")
			var asked []string
			w.denies = func(_ attach.Compiled, d attach.Denial) attach.Tri {
				if asked = append(asked, d.Name); d.Name == c.allowed {
					return attach.No
				}
				return attach.Yes
			}
			w.run(t, func(l *Loop) {
				w.edit("2")
				time.Sleep(2 * time.Second)
				for _, name := range []string{c.first, c.first, c.allowed} {
					w.denials <- denial("a.service", name)
					time.Sleep(time.Second)
				}
				rest()
				if s := status(t, l, "a"); w.kernel["a"] != "1" || s.Held == nil {
					t.Errorf("%q %+v", w.kernel, s)
				}
				if !slices.Equal(asked, c.asked) {
					t.Errorf("it was asked about %q, want %q", asked, c.asked)
				}
			})
		})
	}
}

// What a profile denies that is what it was is not the change's doing.
func TestATrialCountsWhatTheChangedProfilesDeny(t *testing.T) {
	for _, c := range []struct {
		what, profile, namespace string
		edited                   string     // profile whose text changes
		leads                    attach.Tri // to the same profiles as before
		undone                   bool
	}{
		{what: "the profile", profile: "a", edited: "a", leads: attach.Yes, undone: true},
		{what: "a child", profile: "a//sub", edited: "a", leads: attach.Yes, undone: true},
		{what: "a stack", profile: "a//&unconfined", edited: "a", leads: attach.Yes, undone: true},
		{what: "another that the unit may carry", profile: "b", edited: "a", leads: attach.Yes},
		{what: "another that the unit may carry, and that changed", profile: "b", edited: "b", leads: attach.Yes, undone: true},
		{what: "another, whose name begins like it", profile: "a-b", edited: "a", leads: attach.Yes},
		{what: "one of that name in a container", profile: "a", namespace: "root//lxd", edited: "a", leads: attach.Yes},
		// The text sends programs to it.
		{what: "another that it leads to", profile: "b", edited: "a", leads: attach.No, undone: true},
		{what: "another that it may lead to", profile: "b", edited: "a", leads: attach.CouldNotTell, undone: true},
		{what: "one in a container, and it leads elsewhere", profile: "a", namespace: "root//lxd", edited: "a", leads: attach.No},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.AllowProfiles = []string{"b"} }, "a")
			w.files["b"] = "1"
			w.sameWays = func(_, _ []attach.Compiled) attach.Tri { return c.leads }
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				w.files[c.edited] = "2"
				unlock()
				w.trigger()
				time.Sleep(2 * time.Second)
				d := denial("a.service", "/new")
				d.Profile, d.Namespace = c.profile, c.namespace
				w.denials <- d
				rest()
				if undone := w.kernel[c.edited] == "1" && status(t, l, "a").Held != nil; undone != c.undone || !undone && w.kernel[c.edited] != "2" {
					t.Errorf("undone: %v, want %v; %q %+v", undone, c.undone, w.kernel, status(t, l, "a"))
				}
			})
		})
	}
}

// Where denials are not heard all the time, a trial does not claim that there were none.
func TestATrialThatDoesNotHearAllSaysSo(t *testing.T) {
	for _, c := range []struct {
		what          string
		before, after []attach.Denial // the trial begins
		restart       bool            // of aaunitd, in the trial
		back          bool            // and the clock is put back
		want          string
	}{
		{what: "all is heard"},
		{what: "deaf", before: []attach.Denial{{Deaf: "no room"}}, want: "no room"},
		{what: "deaf, and again not, before", before: []attach.Denial{{Deaf: "no room"}, denied("b.service", "/x", time.Time{})}},
		{what: "deaf, and again not, meanwhile", after: []attach.Denial{{Deaf: "no room"}, denied("b.service", "/x", time.Time{})}, want: "records were lost"},
		{what: "deaf before, and again not meanwhile", before: []attach.Denial{{Deaf: "no room"}}, after: []attach.Denial{denied("b.service", "/x", time.Time{})},
			want: "records were lost"},
		{what: "records lost before", before: []attach.Denial{{Lost: 1000}}},
		{what: "records lost", after: []attach.Denial{{Lost: 1000}}, want: "records were lost"},
		{what: "another aaunitd goes on", restart: true, want: "aaunitd began to listen later"},
		{what: "another aaunitd goes on, and the clock was put back", restart: true, back: true, want: "aaunitd began to listen later"},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a")
			check := func(l *Loop) {
				rest()
				rest()
				told := ""
				for _, r := range status(t, l, "a").Notes {
					if r.Code == attach.Denied {
						told = r.Detail
					}
				}
				if want := "what the changed policy denied may not all have been heard: " + c.want; told != want && (c.want != "" || told != "") {
					t.Errorf("it says %q, want %q", told, want)
				}
				if w.kernel["a"] != "2" || answer(l, "a") != "confined" {
					t.Errorf("%q %s", w.kernel, answer(l, "a"))
				}
			}
			first := func(l *Loop) {
				for _, d := range c.before {
					w.denials <- d
				}
				rest()
				w.edit("2")
				time.Sleep(3 * time.Second)
				for _, d := range c.after {
					w.denials <- d
				}
				if !c.restart {
					check(l)
				}
			}
			synctest.Test(t, func(t *testing.T) {
				w.boot(first)
				if c.restart && !c.back {
					w.boot(check)
				}
			})
			if c.back { // each bubble begins at the same time
				w.run(t, check)
			}
		})
	}
}

// An attach that is undone tells what was denied to the unit, and no more.
func TestAnUndoneAttachShowsWhatWasDenied(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.breaks["a"] = true
	w.run(t, func(l *Loop) {
		w.denials <- denial("a.service", "/long/ago")
		rest()
		w.onCall = func(call string) {
			if strings.HasPrefix(call, "restart ") {
				w.denials <- denial("a.service", "/etc/needed")
				w.denials <- denial("b.service", "/etc/other")
			}
		}
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}})
		text := fmt.Sprint(out[0].Reasons)
		if !strings.Contains(text, "open /etc/needed (r) denied") || strings.Contains(text, "/long/ago") || strings.Contains(text, "/etc/other") || !out[0].Undone {
			t.Errorf("%+v", out[0])
		}
		if !strings.Contains(w.log.String(), "/etc/needed") {
			t.Error(w.log.String())
		}
	})
}

// A drop-in that somebody takes away is put back when that is told, and when a
// start is met by it.
func TestATrampledDropInIsPutBack(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		for i, tell := range []attach.UnitEvent{{Kind: attach.DropInChanged, Unit: "a.service"}, {Kind: attach.UnitStarted, Unit: "a.service"}} {
			w.mu.Lock()
			delete(w.disk, dropIn)
			w.mu.Unlock()
			w.events <- tell
			rest()
			if w.disk[dropIn] == "" || w.log.count("put back the drop-in of a.service") != i+1 || answer(l, "a") != "confined" {
				t.Errorf("%+v: %q\n%s", tell, w.disk, w.log.String())
			}
		}
		w.trace = nil
		w.events <- attach.UnitEvent{Kind: attach.DropInChanged, Unit: "other.service"}
		rest()
		if len(w.trace) > 0 {
			t.Errorf("%q", w.trace)
		}
	})
}

// A profile that goes while a unit is about to be restarted does not cost the
// unit its life.
func TestAProfileThatGoesDuringAPass(t *testing.T) {
	for _, when := range []string{"scan", "restart"} {
		w := attached(nil, "a")
		w.run(t, func(l *Loop) {
			w.mu.Lock()
			u := w.units["a.service"]
			u.label = "unconfined" // as if the profile had been taken off, and loaded again
			gone := false
			switch when {
			case "scan":
				w.onScan = func() {
					if !gone {
						gone = true
						w.remove("a")
					}
				}
			case "restart":
				w.onCall = func(call string) {
					if !gone && call == "restart a.service" {
						gone = true
						w.remove("a")
					}
				}
			}
			w.mu.Unlock()
			w.trigger()
			rest()
			w.trigger()
			rest()
			if !gone || !u.running || u.label != "a (enforce)" || w.kernel["a"] != "1" || answer(l, "a") != "confined" {
				t.Errorf("%s: %v %+v %q %s %q", when, gone, u, w.kernel, answer(l, "a"), w.trace)
			}
		})
	}
}

// TestWhatRecordsOnDiskNameIsKept: the next daemon has no more than these.
func TestWhatRecordsOnDiskNameIsKept(t *testing.T) {
	const one, two = "/etc/apparmor.d/a 1", "/etc/apparmor.d/a 2"
	has := func(w *world, id string) bool {
		defer w.lock()()
		_, ok := w.kept[id]
		return ok
	}
	w := attached(nil, "a", "b")
	w.run(t, func(l *Loop) {
		rest()
		unlock := w.lock()
		w.noRecords = true
		unlock()
		w.edit("2")
		rest()
		if w.kernel["a"] != "2" || answer(l, "a") != "confined" || w.records["a.service"].Policies["/etc/apparmor.d/a"] != one {
			t.Fatalf("%q %s %v", w.kernel, answer(l, "a"), w.records["a.service"])
		}
		if !has(w, one) || !has(w, two) {
			t.Errorf("kept are %v", w.kept)
		}
	})
	// Records that cannot be listed name nothing, and are there.
	w.run(t, func(l *Loop) {
		rest()
		if !has(w, one) || !has(w, two) {
			t.Errorf("without a list of records: kept are %v", w.kept)
		}
		unlock := w.lock()
		w.noRecords = false
		unlock()
		w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
		rest()
		if !has(w, one) || !has(w, two) {
			t.Errorf("with records of this daemon only: kept are %v", w.kept)
		}
	})
	w.run(t, func(l *Loop) {
		rest()
		unlock := w.lock()
		w.noRecords = true
		unlock()
		w.edit("3")
		rest()
		unlock = w.lock()
		w.noRecords = false
		unlock()
		// What could not be saved is saved with the next pass, whatever that is about.
		w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", nil)
		rest()
		for _, unit := range []string{"a.service", "b.service"} {
			if id := w.records[unit].Policies["/etc/apparmor.d/a"]; id != "/etc/apparmor.d/a 3" {
				t.Errorf("the record of %s still names %s", unit, id)
			}
		}
		if has(w, one) || has(w, two) {
			t.Errorf("in the end there are %v", w.kept)
		}
	})
}
