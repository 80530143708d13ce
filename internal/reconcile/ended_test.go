package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const template = "/etc/systemd/system/w@.service.d/90-aaunit.conf"

// instances is a world with an attached template and running instances of it.
func instances(change func(*attach.Attachment), names ...string) *world {
	w := newWorld()
	for _, n := range names {
		w.addUnit("w@" + n + ".service").unloads = true
	}
	w.files["w"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) {
		a.Profile = "w"
		if change != nil {
			change(a)
		}
	})
	return w
}

// comes has a connection start an instance.
func (w *world) comes(name string) *unit {
	defer w.lock()()
	u := w.units[name]
	if u == nil {
		u = w.addUnit(name)
		u.running, u.unloads = false, true
	}
	_ = w.begin(u)
	return u
}

// ends ends one.
func (w *world) ends(name string) {
	defer w.lock()()
	w.units[name].running = false
	w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: name}
}

// remembers lists what is kept of units, with nothing of the template.
func remembers(w *world, l *Loop) (units []string) {
	unlock := w.lock()
	for unit := range w.records {
		units = append(units, unit)
	}
	unlock()
	l.mu.Lock()
	for unit := range l.targets {
		units = append(units, unit)
	}
	for unit := range l.statuses {
		units = append(units, unit)
	}
	l.mu.Unlock()
	slices.Sort(units)
	return slices.DeleteFunc(slices.Compact(units), func(u string) bool { return u == "w@.service" })
}

func TestAnEndedInstanceIsForgotten(t *testing.T) {
	for _, profile := range []string{"w", "%p"} {
		w := instances(func(a *attach.Attachment) { a.Profile = profile }, "1", "2", "3", "4")
		w.addUnit("w@own.service") // has a file of its own
		w.run(t, func(l *Loop) {
			rest()
			var gone []string
			l.Subscribe(context.Background(), func(s *attach.Status) {
				if s.Attachment == "" {
					gone = append(gone, s.Unit)
				}
			})
			w.ends("w@2.service")
			w.ends("w@own.service")
			unlock := w.lock()
			w.units["w@3.service"].running, w.units["w@3.service"].failed = false, true
			unlock()
			rest()
			if got := remembers(w, l); !slices.Contains(got, "w@2.service") {
				t.Errorf("%s: it may come again in a moment: %q", profile, got)
			}
			// A systemd that does not answer lists nothing, and that is no proof.
			unlock = w.lock()
			w.unlisted = true
			unlock()
			w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
			rest()
			if got := remembers(w, l); !slices.Contains(got, "w@2.service") {
				t.Errorf("%s: forgotten without an answer: %q", profile, got)
			}
			unlock = w.lock()
			w.unlisted = false
			unlock()
			time.Sleep(DefaultRecheck)
			rest()
			if got, want := remembers(w, l), []string{"w@1.service", "w@3.service", "w@4.service", "w@own.service"}; !slices.Equal(got, want) {
				t.Errorf("%s: remembered are %q, want %q", profile, got, want)
			}
			if !slices.Equal(gone, []string{"w@2.service"}) {
				t.Errorf("%s: told as gone: %q", profile, gone)
			}
			if w.disk[template] == "" || answer(l, "w@1") != "confined" || len(l.Status(nil).Patterns) != 1 || w.kernel["w"] != "1" || w.calls["remove"]+w.calls["unload"]+w.calls["reload"] != 1 {
				t.Errorf("%s: more than the instance went: %q", profile, w.trace)
			}
			// It is still named, and does not run; one of which there is no unit is none.
			r := l.Status([]string{"w@2", "v@2"})
			if len(r.Units) != 1 || r.Units[0].Attachment == "" || r.Units[0].DropIn != template || answer(l, "w@2") != "unknown" || len(r.Missing) != 1 || r.Missing[0].Reason.Code != attach.UnitNotFound {
				t.Errorf("%s: asked about it: %+v", profile, r)
			}
			if c := l.Explain(context.Background(), []string{"w@2"}, false).Cases; len(c) != 1 || c[0].Status == nil {
				t.Errorf("%s: explained as not attached: %+v", profile, c)
			}
			if o := attachUnits(t, l, attach.Request{Units: []string{"w@2"}})[0]; o.Exit != attach.ExitUnknown || o.Verdict == nil || !slices.Contains(codes(o.Verdict.Reasons), attach.NotRunning) {
				t.Errorf("%s: attached by name: %+v", profile, o)
			}
			if o := pause(t, l, time.Hour, "w@2")[0]; o.Exit != attach.ExitFailed || o.Reasons[0].Next != "aaunitctl pause w@.service" {
				t.Errorf("%s: paused by name: %+v", profile, o)
			}
			// Its next start is confined, and seen.
			if u := w.comes("w@2.service"); u.label != "w (enforce)" {
				t.Errorf("%s: it came back as %+v", profile, u)
			}
			rest()
			if answer(l, "w@2") != "confined" || w.records["w@2.service"].Verdict == nil {
				t.Errorf("%s: when it came back: %s, %+v", profile, answer(l, "w@2"), w.records["w@2.service"])
			}
			w.ends("w@2.service")
			rest()
		})
		// What ended while no daemon ran is forgotten, too.
		w.units["w@4.service"].running = false
		w.run(t, func(l *Loop) {
			rest()
			if got, want := remembers(w, l), []string{"w@1.service", "w@3.service", "w@own.service"}; !slices.Equal(got, want) {
				t.Errorf("%s: a new daemon remembers %q, want %q", profile, got, want)
			}
			w.undeclare("/etc/aaunit/attachments.d/w.conf")
			rest()
			if got := remembers(w, l); len(got) != 0 || len(w.records) != 0 || w.disk[template] != "" {
				t.Errorf("%s: after the detach: %q %v %q", profile, got, w.records, w.disk)
			}
		})
	}
}

// TestConnectionsLeaveNothingBehind is a socket with Accept=yes: each connection has an
// instance of its own.
func TestConnectionsLeaveNothingBehind(t *testing.T) {
	w := instances(nil)
	w.run(t, func(l *Loop) {
		rest()
		for i := range 40 {
			name := fmt.Sprintf("w@%d.service", i)
			w.comes(name)
			rest()
			if got := answer(l, name); got != "confined" {
				t.Fatalf("%s is %s", name, got)
			}
			w.ends(name)
			time.Sleep(time.Second)
		}
		if got := remembers(w, l); len(got) > 2 {
			t.Errorf("after 40 connections: %q", got)
		}
		time.Sleep(DefaultRecheck)
		rest()
		if got := remembers(w, l); len(got) != 0 || len(w.records) != 1 {
			t.Errorf("in the end: %q, %v", got, w.records)
		}
	})
}

// TestConnectionsWithSocketOptionsLeaveNothingBehind: what is in the kernel and on disk for
// an instance goes with it; the .socket unit, whose sockets are the next one's too, is the
// template's to look after.
func TestConnectionsWithSocketOptionsLeaveNothingBehind(t *testing.T) {
	const file, socket = "/etc/aaunit/attachments.d/w.conf", "/etc/systemd/system/w.socket.d/90-aaunit.conf"
	w := instances(options(attach.SocketsEnforce, nodelay...))
	w.uses = newUses()
	w.run(t, func(l *Loop) {
		rest()
		for i := range 20 {
			name := fmt.Sprintf("w@%d.service", i)
			w.triggers[name] = []string{"w.socket"}
			w.comes(name)
			rest()
			if got := answer(l, name); got != "confined" || w.attached[name].Mode != attach.SocketsEnforce {
				t.Fatalf("%s is %s: %s", name, got, w.log.String())
			}
			w.uses.do(name, "SOL_TCP:TCP_NODELAY")
			w.ends(name)
			time.Sleep(time.Second)
		}
		time.Sleep(DefaultRecheck)
		rest()
		if got := remembers(w, l); len(got) != 0 || len(w.records) != 1 || len(w.attached) != 1 || len(w.rules) != 2 || len(l.socketWatch.runs) != 0 {
			t.Errorf("in the end: %q, records %v, kernel %v, rules %v, %d starts", got, w.records, w.attached, w.rules, len(l.socketWatch.runs))
		}
		if h, _ := w.uses.Load("w@7.service"); buildsOf(h) != "aaaa: SOL_TCP:TCP_NODELAY=1" {
			t.Errorf("what it used is forgotten: %q", buildsOf(h))
		}
		if w.disk[socket] == "" || w.attached["w.socket"].Mode != attach.SocketsEnforce || w.calls["remove"] != 0 || w.calls["reload"] > 2 {
			t.Errorf("of the .socket unit: %q, %v, %q", w.disk[socket], w.attached, w.trace)
		}

		w.declareUnit(file, "w@.service", func(a *attach.Attachment) {
			a.Profile = "w"
			options(attach.SocketsRecord)(a)
		})
		rest()
		if w.rules["w.socket"].Mode != attach.SocketsRecord || w.attached["w.socket"].Mode != attach.SocketsRecord || w.disk[socket] != w.read[socket] ||
			!strings.Contains(w.disk[socket], attach.SocketStartLine(false)) {
			t.Errorf("another mode: rules %v, kernel %v, %q", w.rules, w.attached, w.disk[socket])
		}
		unlock := w.lock()
		delete(w.attached, "w.socket")
		unlock()
		time.Sleep(DefaultRecheck)
		rest()
		if w.attached["w.socket"].Mode != attach.SocketsRecord || l.statuses["w@.service"].Verdict != nil {
			t.Errorf("taken off: kernel %v, %+v", w.attached, l.statuses["w@.service"])
		}
		w.undeclare(file)
		rest()
		if len(w.rules)+len(w.attached)+len(w.disk)+len(w.records) > 0 {
			t.Errorf("after the detach: rules %v, kernel %v, drop-ins %q, records %v", w.rules, w.attached, w.disk, w.records)
		}
	})
}

// TestProgramsOfForgottenUnitsGoWhenTheDaemonStarts: what a helper attached that nobody
// heard of, while no daemon ran.
func TestProgramsOfForgottenUnitsGoWhenTheDaemonStarts(t *testing.T) {
	w := instances(options(attach.SocketsEnforce, nodelay...), "1")
	w.run(t, func(*Loop) { rest() })
	list := w.rules["w@.service"]
	w.addUnit("v@1.service") // of another attachment, and still to be found out about
	for _, name := range []string{"w@2.service", "v@1.service", "v@2.service"} {
		w.attached[name] = list
	}
	w.run(t, func(*Loop) {
		rest()
		if got, want := slices.Sorted(maps.Keys(w.attached)), []string{"v@1.service", "w@1.service"}; !slices.Equal(got, want) {
			t.Errorf("in the kernel are %q, want %q", got, want)
		}
	})
}

// TestWhatIsNotOverIsRemembered: an instance about which something was decided, begun
// or is to be taken back is not forgotten.
func TestWhatIsNotOverIsRemembered(t *testing.T) {
	const unit, other = "w@1.service", "w@2.service"
	for name, tc := range map[string]struct {
		attachment func(*attach.Attachment)
		do         func(w *world, l *Loop)
		kept       bool
	}{
		"nothing": {nil, func(*world, *Loop) {}, false},
		"paused": {nil, func(w *world, l *Loop) {
			if _, err := l.Pause(context.Background(), attach.Request{Units: []string{unit}, For: 24 * time.Hour}, nil); err != nil {
				panic(err)
			}
		}, true},
		"its template is paused": {nil, func(w *world, l *Loop) {
			if _, err := l.Pause(context.Background(), attach.Request{Units: []string{"w@.service"}, For: 24 * time.Hour}, nil); err != nil {
				panic(err)
			}
		}, true},
		"held": {nil, func(_ *world, l *Loop) {
			l.change1(unit, func(r *attach.Record) { r.Hold = &attach.Hold{Inputs: "x"} })
		}, true},
		"a drop-in of its own, which is taken back first": {nil, func(w *world, l *Loop) {
			path := attach.DropInPath(unit, false)
			l.change1(unit, func(r *attach.Record) { r.DropIns = r.DropIns.With(path, "1") })
			defer w.lock()()
			w.disk[path] = "from an earlier attachment"
		}, false},
		"socket options": {options(attach.SocketsRecord), func(*world, *Loop) {}, false},
		"socket options under a name that its template does not have": {options(attach.SocketsRecord), func(_ *world, l *Loop) {
			l.change1(unit, func(r *attach.Record) { r.SocketUnits = append(r.SocketUnits, other) })
		}, true},
		"stopped to be started again": {nil, func(_ *world, l *Loop) { l.change1(unit, func(r *attach.Record) { r.Stopped = true }) }, true},
		"a glob":                      {func(a *attach.Attachment) { a.Units = []string{"w@*.service"} }, func(*world, *Loop) {}, true},
		"named itself":                {func(a *attach.Attachment) { a.Units = append(a.Units, unit) }, func(*world, *Loop) {}, true},
		"a broken file": {nil, func(w *world, _ *Loop) {
			defer w.lock()()
			w.broken["/etc/aaunit/attachments.d/w.conf"] = true
		}, true},
		"a text that is only reported": {func(a *attach.Attachment) { a.Profile, a.OnProfileChange = "%p", attach.ChangeReport }, func(w *world, l *Loop) {
			w.ends(other)
		}, true},
		"a text that is accepted for another one": {func(a *attach.Attachment) { a.Profile, a.OnProfileChange = "%p", attach.ChangeReport }, func(*world, *Loop) {}, false},
	} {
		w := instances(tc.attachment, "1", "2")
		w.run(t, func(l *Loop) {
			rest()
			tc.do(w, l)
			w.ends(unit)
			time.Sleep(DefaultRecheck)
			rest()
			got := remembers(w, l)
			if name == "a text that is only reported" {
				if len(got) != 1 || len(w.kept) != 1 {
					t.Errorf("%s: %q, %d policies", name, got, len(w.kept))
				}
				return
			}
			if kept := slices.Contains(got, unit); kept != tc.kept || w.disk[attach.DropInPath(unit, false)] != "" && name != "a glob" && name != "named itself" {
				t.Errorf("%s: remembered are %q, on disk %q", name, got, w.disk)
			}
		})
	}
}

// change1 changes the record of a unit.
func (l *Loop) change1(unit string, change func(*attach.Record)) {
	l.mu.Lock()
	r := l.records[unit].Clone()
	l.mu.Unlock()
	change(&r)
	l.remember(r)
}

// TestTheTemplateUnloadsWhatItsInstancesHadLoaded: what an instance that is forgotten had
// loaded stays loaded, or its next start would fail, until the template is detached.
func TestTheTemplateUnloadsWhatItsInstancesHadLoaded(t *testing.T) {
	w := instances(func(a *attach.Attachment) { a.Profile = "%p-of-%i" }, "1")
	w.files["w-of-1"] = "1"
	w.run(t, func(l *Loop) {
		rest()
		if got := w.records["w@1.service"].Loaded; len(got) != 1 {
			t.Fatalf("it loaded %q", got)
		}
		// Another unit comes to run under it.
		w.addUnit("b.service")
		w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.Profile = "w-of-1" })
		rest()
		w.ends("w@1.service")
		time.Sleep(DefaultRecheck)
		rest()
		if got := remembers(w, l); slices.Contains(got, "w@1.service") || w.kernel["w-of-1"] != "1" {
			t.Fatalf("%q, %v", got, w.kernel)
		}
		if u := w.comes("w@1.service"); u.label != "w-of-1 (enforce)" {
			t.Errorf("its next start: %+v", u)
		}
		w.ends("w@1.service")
		time.Sleep(DefaultRecheck)
		rest()
		w.undeclare("/etc/aaunit/attachments.d/b.conf")
		rest()
		w.undeclare("/etc/aaunit/attachments.d/w.conf")
		rest()
		if _, loaded := w.kernel["w-of-1"]; loaded || len(w.records) != 0 {
			t.Errorf("after the detach: %v %v", w.kernel, w.records)
		}
	})
}

// TestAnInstanceWithAPolicyOfItsOwnIsKept: nobody else would put it back while the
// instance is stopped, or make it live after a boot.
func TestAnInstanceWithAPolicyOfItsOwnIsKept(t *testing.T) {
	w := instances(func(a *attach.Attachment) { a.Profile = "%p-%i" }, "1")
	w.tells = true
	w.files["w-1"] = "1"
	w.run(t, func(l *Loop) {
		rest()
		w.ends("w@1.service")
		time.Sleep(DefaultRecheck)
		rest()
		unlock := w.lock()
		w.replace("w-1", "1"+soft) // as aa-complain does
		w.tellPolicy()
		unlock()
		rest()
		if w.kernel["w-1"] != "1" {
			t.Errorf("it was not put back: %q", w.kernel)
		}
	})
	w.tells = false
	w.reboot(map[string]string{"w-1": "1" + soft})
	if err := MakePolicyLive(t.Context(), w.options()); err != nil || w.kernel["w-1"] != "1" {
		t.Errorf("after a boot: %v %q", err, w.kernel)
	}
}

// TestAStartOnItsWayFindsAForgottenInstance: the signal was sorted while the instance
// was known, and its look comes when it is not.
func TestAStartOnItsWayFindsAForgottenInstance(t *testing.T) {
	w := instances(nil, "1")
	w.run(t, func(l *Loop) {
		rest()
		w.ends("w@1.service")
		time.Sleep(DefaultRecheck)
		rest()
		if got := remembers(w, l); len(got) != 0 {
			t.Fatalf("remembered are %q", got)
		}
		unlock := w.lock()
		_ = w.begin(w.units["w@1.service"])
		for len(w.events) > 0 {
			<-w.events
		}
		unlock()
		l.queue.add(started, "w@1.service")
		rest()
		if got := answer(l, "w@1"); got != "confined" {
			t.Errorf("it is %s", got)
		}
		// One that has ended again is no cause for more.
		w.ends("w@1.service")
		time.Sleep(DefaultRecheck)
		rest()
		l.queue.add(started, "w@1.service")
		synctest.Wait()
		rest()
		if got := remembers(w, l); len(got) != 0 || l.queue.isBusy("w@1.service") {
			t.Errorf("remembered are %q", got)
		}
	})
}

// TestWhatAnEndedInstanceWasDeniedIsTold: what a connection was denied is looked for
// when it is over.
func TestWhatAnEndedInstanceWasDeniedIsTold(t *testing.T) {
	w := instances(nil, "1", "2", "3")
	w.run(t, func(l *Loop) {
		rest()
		w.denials <- denial("w@2.service", "/etc/needed")
		w.denials <- denial("v@2.service", "/etc/needed")
		w.ends("w@2.service")
		w.ends("w@3.service")
		time.Sleep(DefaultRecheck)
		rest()
		if got := remembers(w, l); !slices.Equal(got, []string{"w@1.service"}) {
			t.Fatalf("remembered are %q", got)
		}
		for _, words := range [][]string{nil, {"w@2"}, {"w@.service"}, {"w@*"}, {"w@2", "w@3", "v@2"}} {
			var units []string
			r := l.Denials(words, time.Time{})
			for _, u := range r.Units {
				if len(u.Denials) > 0 {
					units = append(units, u.Unit+" "+u.Profile)
				}
			}
			missing := 0
			if len(words) == 3 {
				missing = 1
			}
			if !slices.Equal(units, []string{"w@2.service w"}) || len(r.Missing) != missing {
				t.Errorf("%q: denials of %q, missing %v", words, units, r.Missing)
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			if r := l.WaitDenials(ctx, words, ""); len(r.Units) != 1 {
				t.Errorf("%q: followed are %+v", words, r.Units)
			}
			cancel()
		}
		w.undeclare("/etc/aaunit/attachments.d/w.conf")
		rest()
		if r := l.Denials(nil, time.Time{}); len(r.Units) != 0 {
			t.Errorf("of what is attached no more: %+v", r.Units)
		}
	})
}

// TestAConnectionIsNotCutOff: what runs for a connection when its template is attached
// cannot be started for it again. So it goes on, and is no failed attach.
func TestAConnectionIsNotCutOff(t *testing.T) {
	const unit = "w@3-10.0.0.1:80-10.0.0.2:5555.service"
	w := instances(nil)
	u := w.addUnit(unit)
	u.unloads = true
	u.breaks["w"], u.breaks[""] = true, true // without the connection
	w.triggers[unit] = []string{"w.socket"}
	w.run(t, func(l *Loop) {
		rest()
		if s := status(t, l, unit); !u.running || u.start != 1 || s.Held != nil || !slices.Contains(codes(s.Notes), attach.RestartPending) || s.Verdict.Answer != attach.NotConfined {
			t.Errorf("%+v %+v %q", u, s, w.trace)
		}
		if w.disk[template] == "" || w.records["w@.service"].Hold != nil {
			t.Errorf("the template: %q %+v", w.disk, w.records["w@.service"])
		}
		next := w.comes("w@4-10.0.0.1:80-10.0.0.2:5556.service")
		rest()
		if next.label != "w (enforce)" || answer(l, next.name) != "confined" {
			t.Errorf("the next one: %+v, %s", next, answer(l, next.name))
		}
	})
}

// TestAHeldTemplateHoldsUnitsToCome: under a profile that no unit of a template came up
// with, each new connection's would fail as well. It is told and left alone, and leaves
// nothing behind.
func TestAHeldTemplateHoldsUnitsToCome(t *testing.T) {
	for _, profile := range []string{"w", "%p"} {
		w := instances(func(a *attach.Attachment) { a.Profile, a.OnViolation = profile, attach.ViolationStop }, "1")
		w.units["w@1.service"].breaks["w"] = true
		connect := func(l *Loop, name string) *unit {
			t.Helper()
			unlock := w.lock()
			u := w.addUnit(name)
			u.running, u.unloads, u.breaks["w"] = false, true, true
			before := len(w.trace)
			unlock()
			w.comes(name)
			rest()
			w.comes(name)
			rest()
			s := status(t, l, name)
			defer w.lock()()
			if !u.running || u.label != "unconfined" || s.Held == nil || !slices.Contains(codes(s.Notes), attach.Held) || s.Verdict.Answer != attach.NotConfined || s.Verdict.InvocationID != name+"-3" {
				t.Errorf("%s: %+v %+v", profile, u, s)
			}
			if len(w.trace) > before || w.records[name].Unit != "" {
				t.Errorf("%s: %s was tried: %q, %+v", profile, name, w.trace[before:], w.records[name])
			}
			return u
		}
		w.run(t, func(l *Loop) {
			rest()
			if r := l.Status(nil); len(r.Patterns) != 1 || r.Patterns[0].Held == nil {
				t.Fatalf("%s: the template is not held: %+v", profile, r)
			}
			for _, name := range []string{"w@2.service", "w@3.service"} {
				connect(l, name)
				w.ends(name)
			}
			w.ends("w@1.service")
			time.Sleep(DefaultRecheck)
			rest()
			want := []string(nil)
			if profile == "%p" {
				want = []string{"w@1.service"} // by it one knows which text failed
			}
			if got := remembers(w, l); !slices.Equal(got, want) {
				t.Errorf("%s: remembered are %q, want %q", profile, got, want)
			}
		})
		w.run(t, func(l *Loop) {
			u := connect(l, "w@4.service")
			unlock := w.lock()
			w.files["w"] = "2"
			clear(u.breaks)
			unlock()
			w.trigger()
			rest()
			if u.label != "w (enforce)" || answer(l, "w@4") != "confined" || status(t, l, "w@4").Held != nil || w.records["w@.service"].Hold != nil || w.disk[template] == "" {
				t.Errorf("%s: mended: %+v, %+v, %q", profile, u, w.records["w@.service"], w.trace)
			}
		})
	}
}

// TestAnAttachByHandFreesWhatIsHeldWithItsTemplate: who asks has it tried, and where that
// goes well the others have their turn.
func TestAnAttachByHandFreesWhatIsHeldWithItsTemplate(t *testing.T) {
	w := instances(nil, "1")
	w.units["w@1.service"].breaks["w"] = true
	w.run(t, func(l *Loop) {
		rest()
		two, three := w.comes("w@2.service"), w.comes("w@3.service")
		rest()
		if status(t, l, "w@2").Held == nil || status(t, l, "w@3").Held == nil {
			t.Fatalf("not held: %q", w.trace)
		}
		if out := attachUnits(t, l, attach.Request{Units: []string{"w@2"}})[0]; out.Exit != attach.ExitOK {
			t.Fatalf("%+v", out)
		}
		rest()
		if two.label != "w (enforce)" || three.label != "w (enforce)" || answer(l, "w@3") != "confined" {
			t.Errorf("%+v %+v %q", two, three, w.trace)
		}
	})
}
