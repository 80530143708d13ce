package reconcile

import (
	"context"
	"errors"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// sockets is the world's socket options: stored rules, and what the kernel has.
type sockets struct{ *world }

// coveredBPF is an error that knows its way out.
type coveredBPF struct{}

func (coveredBPF) Error() string  { return "something is mounted over it" }
func (coveredBPF) WayOut() string { return "umount it" }

var errNoBPF = errors.New("the kernel does not support it")

func (s sockets) Save(name string, o attach.SocketOptions) (bool, error) {
	defer s.lock()()
	if old, ok := s.rules[name]; ok && reflect.DeepEqual(old, o) {
		return false, nil
	}
	if err := s.call("keep rules of %s", name); err != nil {
		return false, err
	}
	s.rules[name] = o
	return true, nil
}

func (s sockets) Delete(name string) (bool, error) {
	defer s.lock()()
	if _, ok := s.rules[name]; !ok {
		return false, nil
	}
	if err := s.call("delete rules of %s", name); err != nil {
		return false, err
	}
	delete(s.rules, name)
	return true, nil
}

func (s sockets) Attach(_, unit string, o attach.SocketOptions) (bool, error) {
	defer s.lock()()
	if s.kernelless {
		return false, errNoBPF
	}
	if old, ok := s.attached[unit]; ok && reflect.DeepEqual(old, o) {
		return false, nil
	}
	if err := s.call("attach rules to %s", unit); err != nil {
		return false, err
	}
	s.attached[unit] = o
	return true, nil
}

func (s sockets) Attached(_, unit string, o attach.SocketOptions) attach.SocketsSeen {
	defer s.lock()()
	if s.onAttached != nil {
		s.onAttached()
	}
	seen := attach.SocketsSeen{Unit: unit}
	have, ok := s.attached[unit]
	switch {
	case s.kernelless:
		seen.Why = errNoBPF.Error()
	case !ok:
		seen.Attached, seen.Why = attach.No, "no program of aaunit is attached"
	default:
		seen.Attached, seen.Rules = attach.Yes, attach.TriOf(reflect.DeepEqual(have, o))
		seen.Why = "other rules"
	}
	return seen
}

func (s sockets) Read(unit string) (attach.SocketRecording, bool, error) {
	if s.uses == nil {
		return attach.SocketRecording{Unit: unit}, false, nil
	}
	return s.uses.read(unit)
}

func (s sockets) Forget(string) error { return nil }

func (s sockets) Off(unit string) (bool, error) { return s.Remove(unit) }

func (s sockets) Remove(unit string) (bool, error) {
	defer s.lock()()
	if _, ok := s.attached[unit]; !ok {
		return false, nil
	}
	if s.covered {
		return false, coveredBPF{}
	}
	if err := s.call("detach rules from %s", unit); err != nil {
		return false, err
	}
	delete(s.attached, unit)
	return true, nil
}

func (s sockets) Sweep(unit string) (bool, error) {
	unlock := s.lock()
	u := s.units[unit]
	unlock()
	if u != nil && u.running {
		return false, nil
	}
	_, err := s.Remove(unit)
	return err == nil, err
}

func (s sockets) Units() ([]string, error) {
	defer s.lock()()
	return slices.Collect(maps.Keys(s.attached)), nil
}

// helperOf gives the start helper's command line of a unit, as systemd has read it.
func (w *world) helperOf(unit string) []attach.ExecCommand {
	v, at := w.setting(unit, "ExecStartPre")
	if len(at) == 0 {
		return nil
	}
	v, ignore := strings.CutPrefix(v, "-")
	argv := strings.Fields(strings.ReplaceAll(strings.TrimPrefix(v, "+"), "%n", unit))
	return []attach.ExecCommand{{Property: "ExecStartPre", Path: argv[0], Argv: argv, Privileged: true, IgnoreFailure: ignore}}
}

// help is the start helper; false fails the start.
func (w *world) help(unit string) bool {
	for _, c := range w.helperOf(unit) {
		rules, ok := w.rules[unit]
		if !ok && strings.Contains(unit, "@") {
			rules, ok = w.rules[attach.TemplateOf(unit)]
		}
		if prefix, _, _ := strings.Cut(unit, "-"); !ok {
			rules, ok = w.rules[prefix+"-.service"]
		}
		if !ok || w.kernelless || w.units[unit] != nil && w.units[unit].root != "" {
			return slices.Contains(c.Argv, "-required=no")
		}
		w.attached[unit] = rules
	}
	return true
}

func (w *world) StartingSockets(_ context.Context, names []string) (out []attach.StartingSocket, err error) {
	defer w.lock()()
	for _, n := range names {
		s := attach.StartingSocket{ID: n, Active: true, ControlGroup: "/system.slice/" + n, Exec: w.helperOf(n)}
		if w.socketLacks != "" {
			s.NeedReload, s.FilesState, s.Missing = true, w.socketLacks, []string{w.socketLacks}
		}
		out = append(out, s)
	}
	return out, nil
}

var nodelay = []attach.AllowedOption{{Option: "SOL_TCP:TCP_NODELAY", Reason: "small answers"}}

func options(mode attach.SocketMode, allow ...attach.AllowedOption) func(*attach.Attachment) {
	return func(a *attach.Attachment) { a.SocketOptions = &attach.SocketOptions{Mode: mode, Allow: allow} }
}

const socketDropIn = "/etc/systemd/system/a.socket.d/90-aaunit.conf"

func TestSocketOptionsHoldWithoutARestart(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.triggers["a.service"] = []string{"a.socket"}
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsRecord))
		rest()
		if got := answer(l, "a.service"); got != "confined" {
			t.Fatalf("attached: %s, calls %q", got, w.trace)
		}
		start := w.units["a.service"].start
		if line := attach.SocketStartLine(false); !strings.Contains(w.read[dropIn], line) || !strings.Contains(w.read[socketDropIn], "[Socket]\n"+line) {
			t.Errorf("drop-ins: %q", w.read)
		}
		for _, u := range []string{"a.service", "a.socket"} {
			if w.rules[u].Mode != attach.SocketsRecord || w.attached[u].Mode != attach.SocketsRecord {
				t.Errorf("%s: kept %+v, in the kernel %+v", u, w.rules[u], w.attached[u])
			}
		}

		// Another mode and list: at once, and in the drop-ins a start fails with.
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsEnforce, nodelay...))
		rest()
		if got := answer(l, "a.service"); got != "confined" || w.units["a.service"].start != start {
			t.Errorf("enforce: %s, start %d and then %d", got, start, w.units["a.service"].start)
		}
		for _, u := range []string{"a.service", "a.socket"} {
			if !reflect.DeepEqual(w.attached[u].Allow, nodelay) || w.attached[u].Mode != attach.SocketsEnforce {
				t.Errorf("%s: in the kernel %+v", u, w.attached[u])
			}
		}
		if !strings.Contains(w.read[dropIn], attach.SocketStartLine(true)) || !strings.Contains(w.read[socketDropIn], attach.SocketStartLine(true)) {
			t.Errorf("drop-ins: %q", w.read)
		}

		// Taken off by hand: told, and put back by the next pass.
		unlock := w.lock()
		delete(w.attached, "a.socket")
		w.attached["a.service"] = attach.SocketOptions{Mode: attach.SocketsRecord}
		unlock()
		time.Sleep(DefaultRecheck)
		rest()
		if !reflect.DeepEqual(w.attached["a.service"].Allow, nodelay) || w.attached["a.socket"].Mode != attach.SocketsEnforce {
			t.Errorf("not put back: %+v", w.attached)
		}
		if answer(l, "a.service") != "confined" || w.log.count("put back the socket options of a.service") != 1 || w.log.count("a.service is not-confined") != 1 {
			t.Errorf("not told: %s", w.log.String())
		}

		// Who looks before that sees it, and has it put back.
		unlock = w.lock()
		delete(w.attached, "a.service")
		unlock()
		r, err := l.Verify(context.Background(), []string{"a.service"})
		if err != nil || len(r.Units) != 1 || r.Units[0].Verdict.Answer != attach.NotConfined {
			t.Errorf("verify: %+v, %v", r, err)
		}
		rest()
		if !reflect.DeepEqual(w.attached["a.service"].Allow, nodelay) || answer(l, "a.service") != "confined" {
			t.Errorf("not put back after a look: %+v", w.attached)
		}

		// Mode off, and the end.
		w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsOff))
		rest()
		if len(w.rules)+len(w.attached) > 0 || strings.Contains(w.read[dropIn], "ExecStartPre") || w.read[socketDropIn] != "" {
			t.Errorf("off: %+v %+v %q", w.rules, w.attached, w.read)
		}
		if got := answer(l, "a.service"); got != "confined" || w.units["a.service"].start != start {
			t.Errorf("off: %s, start %d and then %d", got, start, w.units["a.service"].start)
		}
	})
}

// A unit with another root directory runs attached, and would not find the start helper at
// its next start: nothing of it is written, and so for a template that has one such unit.
func TestSocketOptionsOfAUnitWithAnotherRoot(t *testing.T) {
	const file, shared = "/etc/aaunit/attachments.d/a.conf", "/etc/systemd/system/agent@.service.d/90-aaunit.conf"
	w := newWorld()
	w.addUnit("a.service").root = "/srv/a"
	w.addUnit("agent@x.service")
	y := w.addUnit("agent@y.service")
	y.root = "/srv/y"
	refused := func(l *Loop, unit string) bool {
		return slices.ContainsFunc(refusedOf(l, unit), func(r attach.Reason) bool { return r.Code == attach.SocketsHidden && r.Next != "" })
	}
	w.run(t, func(l *Loop) {
		w.declareUnit(file, "a.service", nil)
		w.declareUnit("/etc/aaunit/attachments.d/agent.conf", "agent@.service", func(a *attach.Attachment) { a.Profile = "a" })
		rest()
		for _, unit := range []string{"a.service", "agent@x.service", "agent@y.service"} {
			if answer(l, unit) != "confined" {
				t.Fatalf("%s: %s", unit, answer(l, unit))
			}
		}
		w.declareUnit(file, "a.service", options(attach.SocketsEnforce, nodelay...))
		w.declareUnit("/etc/aaunit/attachments.d/agent.conf", "agent@.service", func(a *attach.Attachment) {
			a.Profile = "a"
			options(attach.SocketsEnforce, nodelay...)(a)
		})
		rest()
		for _, unit := range []string{"a.service", "agent@.service", "agent@x.service", "agent@y.service"} {
			if !refused(l, unit) {
				t.Errorf("%s: %+v", unit, refusedOf(l, unit))
			}
		}
		if attach.Starts(w.disk[dropIn]) || attach.Starts(w.disk[shared]) || len(w.rules)+len(w.attached) > 0 {
			t.Errorf("%q %+v %+v", w.disk, w.rules, w.attached)
		}
		w.mu.Lock()
		y.root = ""
		w.mu.Unlock()
		w.trigger()
		rest()
		if refused(l, "agent@x.service") || !attach.Starts(w.disk[shared]) || w.attached["agent@x.service"].Mode != attach.SocketsEnforce {
			t.Errorf("%+v %q %+v", refusedOf(l, "agent@x.service"), w.disk, w.attached)
		}
	})
}

// The units of a template count on the drop-in that they have: somebody who takes it away,
// or the line of the start helper out of it, has it put back, though the helper cannot work
// in one of them any more.
func TestADropInWithTheStartHelperIsPutBackForAllUnits(t *testing.T) {
	const shared = "/etc/systemd/system/agent@.service.d/90-aaunit.conf"
	w := newWorld()
	w.files["a"] = "1"
	w.addUnit("agent@x.service")
	y := w.addUnit("agent@y.service")
	w.run(t, func(l *Loop) {
		w.declareUnit("/etc/aaunit/attachments.d/agent.conf", "agent@.service", func(a *attach.Attachment) {
			a.Profile = "a"
			options(attach.SocketsRecord)(a)
		})
		rest()
		had := w.disk[shared]
		if !attach.Starts(had) {
			t.Fatalf("%q %+v", had, refusedOf(l, "agent@.service"))
		}
		unlock := w.lock()
		y.root = "/srv/y"
		unlock()
		for what, spoil := range map[string]func(){
			"removed":          func() { delete(w.disk, shared) },
			"without the line": func() { w.disk[shared] = attach.TextWithoutStart(had) },
		} {
			unlock := w.lock()
			spoil()
			unlock()
			w.trigger()
			rest()
			if got := w.disk[shared]; got != had {
				t.Errorf("%s: %q, template %+v, x %+v", what, got, refusedOf(l, "agent@.service"), refusedOf(l, "agent@x.service"))
			}
		}
	})
}

// Where a start need not have the helper it goes on without, and is held from outside. A
// unit that was attached before its root became another one goes on, too, where it has to:
// its profile and its drop-in are put back, and it is told that its next start will fail.
func TestAUnitIsKeptWhoseRootHidesTheHelper(t *testing.T) {
	for _, c := range []struct {
		name   string
		unit   string
		mode   attach.SocketMode
		before bool // it was attached before
		says   string
	}{
		{"recorded", "a.service", attach.SocketsRecord, false, "go on without"},
		{"recorded, and attached before", "a.service", attach.SocketsRecord, true, "go on without"},
		{"required, and attached before", "a.service", attach.SocketsEnforce, true, "its next start will fail"},
		{"a template's, recorded", "agent@x.service", attach.SocketsRecord, false, "go on without"},
		{"a template's, required, and attached before", "agent@x.service", attach.SocketsEnforce, true, "its next start will fail"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit(c.unit)
			declared := c.unit
			if template := attach.TemplateOf(c.unit); template != "" {
				declared = template
				w.files["a"] = "1"
			}
			path := attach.DropInPath(declared, false)
			hide := func() {
				defer w.lock()()
				u.root = "/srv/a"
			}
			if !c.before {
				hide()
			}
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", declared, func(a *attach.Attachment) {
				a.Profile = "a"
				options(c.mode, nodelay...)(a)
			})
			w.run(t, func(l *Loop) {
				check := func(when string) {
					t.Helper()
					s := status(t, l, c.unit)
					told := slices.ContainsFunc(s.Notes, func(r attach.Reason) bool {
						return r.Code == attach.SocketsHidden && strings.Contains(r.Detail, c.says)
					})
					if answer(l, c.unit) != "confined" || len(s.Refused) > 0 || !told || !attach.Starts(w.disk[path]) || w.attached[c.unit].Mode != c.mode {
						t.Errorf("%s: %+v %q %+v", when, s, w.disk, w.attached)
					}
				}
				if c.before {
					hide()
					w.trigger()
					rest()
				}
				check("at first")
				unlock := w.lock()
				start := u.start
				delete(w.disk, path)
				delete(w.attached, c.unit)
				w.kernel["a"] = "by somebody else"
				unlock()
				w.trigger()
				rest()
				check("after somebody's changes")
				if u.start != start {
					t.Errorf("it was restarted: %s", w.log.String())
				}
				if c.mode == attach.SocketsRecord {
					unlock = w.lock()
					_ = w.begin(u)
					unlock()
					rest()
					check("after a start")
				}
			})
		})
	}
}

// The accepted policy is asked whether the unit can get off its list by files, and a new
// one is asked again.
func TestAUnitThatItsPolicyLetsOffTheList(t *testing.T) {
	for _, dir := range []string{"/sys/fs/bpf", "/sys/fs/cgroup"} {
		w := newWorld()
		w.addUnit("a.service")
		w.writesBelow = dir
		w.run(t, func(l *Loop) {
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsEnforce, nodelay...))
			rest()
			v := status(t, l, "a").Verdict
			if v == nil || v.Answer != attach.Unknown || len(v.Reasons) == 0 || v.Reasons[0].Code != attach.SocketsOpen {
				t.Errorf("%s: %+v", dir, v)
			}
			w.mu.Lock()
			w.files["a"], w.writesBelow = "2", ""
			w.mu.Unlock()
			w.trigger()
			rest()
			if got := answer(l, "a"); got != "confined" {
				t.Errorf("%s, with another policy: %s %+v", dir, got, status(t, l, "a").Verdict)
			}
		})
	}
}

// A filter counts for a unit without a main process, too: all that runs of it has it.
func TestAListWithoutAMainProcess(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service").mainless = true
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsEnforce, nodelay...))
	w.run(t, func(l *Loop) {
		rest()
		if got := answer(l, "a"); got != "confined" {
			t.Errorf("%s %+v", got, status(t, l, "a").Verdict)
		}
	})
}

// A filter that somebody gives to a unit that runs is for its next start, also where aaunitd
// was started again since.
func TestAFilterIsForTheNextStart(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.mayBPF = true
	open := func(l *Loop) bool {
		v := status(t, l, "a").Verdict
		return v != nil && v.Answer == attach.Unknown && v.Reasons[0].Code == attach.SocketsOpen
	}
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsEnforce, nodelay...))
	w.run(t, func(l *Loop) {
		if !open(l) {
			t.Errorf("without a filter: %+v", status(t, l, "a").Verdict)
		}
		unlock := w.lock()
		u.mayBPF = false
		unlock()
		w.trigger()
		rest()
		if !open(l) {
			t.Errorf("with one, of which the start has nothing: %+v", status(t, l, "a").Verdict)
		}
	})
	w.run(t, func(l *Loop) {
		rest()
		if !open(l) {
			t.Errorf("when aaunitd was started again: %+v", status(t, l, "a").Verdict)
		}
		unlock := w.lock()
		_ = w.begin(u)
		unlock()
		rest()
		if answer(l, "a") != "confined" {
			t.Errorf("after its restart: %+v", status(t, l, "a").Verdict)
		}
	})
}

func TestADetachTakesTheSocketOptionsAlong(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.triggers["a.service"] = []string{"a.socket"}
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsEnforce, nodelay...))
	w.run(t, func(*Loop) {
		if len(w.rules) != 2 || len(w.attached) != 2 {
			t.Fatalf("%+v %+v", w.rules, w.attached)
		}
		w.undeclare("/etc/aaunit/attachments.d/a.conf")
		rest()
		if len(w.rules)+len(w.attached)+len(w.disk)+len(w.records) > 0 {
			t.Errorf("left: rules %+v, kernel %+v, drop-ins %q, records %+v", w.rules, w.attached, w.disk, w.records)
		}
		removed := slices.Index(w.trace, "remove "+socketDropIn)
		deleted := slices.Index(w.trace, "delete rules of a.socket")
		if removed < 0 || deleted < removed {
			t.Errorf("the line goes before what it needs: %q", w.trace)
		}
	})
}

// What could not be taken off still holds the unit, so the detach has failed, and goes on
// with the next trigger.
func TestADetachThatCouldNotTakeTheSocketOptionsOff(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.service.conf", "a.service", func(a *attach.Attachment) {
		a.Manual = true
		options(attach.SocketsEnforce, nodelay...)(a)
	})
	w.run(t, func(l *Loop) {
		// A restart would take the programs off with the control group.
		w.declareUnit("/etc/aaunit/attachments.d/a.service.conf", "a.service", func(a *attach.Attachment) {
			a.Manual, a.RestartUnit = true, false
			options(attach.SocketsEnforce, nodelay...)(a)
		})
		rest()
		cover := func(covered bool) {
			defer w.lock()()
			w.covered = covered
		}
		cover(true)
		out, err := l.Detach(context.Background(), attach.Request{Units: []string{"a.service"}}, nil)
		if err != nil || len(out) != 1 || out[0].Exit != attach.ExitFailed || len(out[0].Reasons) != 1 || out[0].Reasons[0].Next != "umount it" {
			t.Errorf("%+v, %v", out, err)
		}
		rest()
		if len(w.disk) > 0 {
			t.Errorf("the rest of the detach was not done: %q", w.disk)
		}
		if r := w.records["a.service"]; !slices.Equal(r.SocketUnits, []string{"a.service"}) {
			t.Errorf("on record: %+v", r)
		}
		cover(false)
		time.Sleep(DefaultRecheck)
		rest()
		if len(w.records)+len(w.attached) > 0 {
			t.Errorf("not gone on with: %+v %+v", w.records, w.attached)
		}
	})
}

// Where the kernel cannot do it, what is required is unknown and keeps the start
// from coming up. What is not required starts, and is unknown as well where it should be
// held; a recording is told of in a note.
func TestSocketOptionsThatTheKernelCannotHold(t *testing.T) {
	for _, c := range []struct {
		name     string
		mode     attach.SocketMode
		required attach.Tri
		want     string
		undone   bool
	}{
		{"record", attach.SocketsRecord, attach.CouldNotTell, "confined", false},
		{"enforce", attach.SocketsEnforce, attach.CouldNotTell, "not-confined", true},
		{"enforce, not required", attach.SocketsEnforce, attach.No, "unknown", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.addUnit("a.service")
			w.kernelless = true
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) {
				a.SocketOptions = &attach.SocketOptions{Mode: c.mode, Required: c.required, Allow: nodelay}
			})
			w.run(t, func(l *Loop) {
				if got := answer(l, "a.service"); got != c.want {
					t.Errorf("%s, want %s: %s", got, c.want, w.log.String())
				}
				if held := w.records["a.service"].Hold != nil; held != c.undone || !w.units["a.service"].running {
					t.Errorf("held %v, unit %+v", held, w.units["a.service"])
				}
				if c.undone && (len(w.rules) > 0 || strings.Contains(w.disk[dropIn], "ExecStartPre")) {
					t.Errorf("left after the undo: %+v %q", w.rules, w.disk)
				}
			})
		})
	}
}

func TestUnitsOfATemplateShareTheRules(t *testing.T) {
	w := newWorld()
	for _, u := range []string{"a@1.service", "a@2.service"} {
		w.addUnit(u)
	}
	w.files["a"] = "1"
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a@.service", func(a *attach.Attachment) {
		a.Profile = "a"
		options(attach.SocketsEnforce, nodelay...)(a)
	})
	w.run(t, func(l *Loop) {
		if _, own := w.rules["a@1.service"]; own || w.rules["a@.service"].Mode != attach.SocketsEnforce || len(w.attached) != 2 {
			t.Fatalf("rules %+v, kernel %+v, %s", w.rules, w.attached, w.log.String())
		}
		w.undeclare("/etc/aaunit/attachments.d/a.conf")
		rest()
		if len(w.rules)+len(w.attached) > 0 {
			t.Errorf("left: rules %+v, kernel %+v", w.rules, w.attached)
		}
	})
}

// The vendor's ExecStartPre= commands run before the start helper, however long they
// take. Who looks meanwhile has seen nothing that speaks against the start.
func TestAStartIsJudgedByWhatItsHelperDid(t *testing.T) {
	for name, helped := range map[string]bool{"attached": true, "attached nothing": false} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) {
				a.OnViolation = attach.ViolationStop
				options(attach.SocketsEnforce, nodelay...)(a)
			})
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				u.slow = true
				_ = w.begin(u)
				unlock()
				time.Sleep(DefaultRecheck)
				rest()
				if got := answer(l, "a.service"); got != "unknown" || !u.running {
					t.Errorf("while the vendor's command runs: %s, running %v: %s", got, u.running, w.log.String())
				}
				if w.log.count("put back the socket options") > 0 || w.log.count("not-confined") > 0 {
					t.Errorf("told of what nobody has changed: %s", w.log.String())
				}
				w.goOn(u, helped)
				rest()
				if got := answer(l, "a.service"); helped && (got != "confined" || !u.running) || !helped && u.running {
					t.Errorf("when the program runs: %s, running %v: %s", got, u.running, w.log.String())
				}
			})
		})
	}
}

// A unit that is restarted during a look is another start, of which that look says
// nothing.
func TestARestartDuringALookIsNoViolation(t *testing.T) {
	for _, when := range []string{"before the programs are looked at", "after"} {
		t.Run(when, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", func(a *attach.Attachment) {
				a.OnViolation = attach.ViolationStop
				options(attach.SocketsEnforce, nodelay...)(a)
			})
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				u.slow = true
				once := func() {
					if w.onScan, w.onAttached = nil, nil; !u.before {
						_ = w.begin(u)
					}
				}
				if w.onAttached = once; when == "after" {
					w.onScan, w.onAttached = once, nil
				}
				unlock()
				l.queue.add(started, "a.service")
				rest()
				w.goOn(u, true)
				rest()
				if got := answer(l, "a.service"); got != "confined" || !u.running || w.log.count("not-confined") > 0 {
					t.Errorf("%s, running %v: %s", got, u.running, w.log.String())
				}
			})
		})
	}
}

// A start without the programs, or with other rules, is mended when it is seen, and
// where that does not help it is not tried over and over.
func TestALookHasTheSocketOptionsPutBack(t *testing.T) {
	for _, c := range []struct {
		name   string
		allow  []attach.AllowedOption // of the rules that the start has; nil: it has no programs
		helps  bool
		mended string
	}{
		{"no programs", nil, true, "confined"},
		{"other rules", []attach.AllowedOption{{Option: "SOL_TCP:TCP_CORK"}}, true, "confined"},
		{"it does not help", nil, false, "not-confined"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", options(attach.SocketsEnforce, nodelay...))
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				u.slow = true
				_ = w.begin(u)
				if c.allow != nil {
					w.attached["a.service"] = attach.SocketOptions{Mode: attach.SocketsEnforce, Allow: c.allow}
				}
				looks := 0
				w.onAttached = func() {
					if looks++; !c.helps {
						delete(w.attached, "a.service")
					}
				}
				unlock()
				w.goOn(u, false)
				rest()
				if got := answer(l, "a.service"); got != c.mended || w.log.count("a.service is not-confined") != 1 {
					t.Errorf("%s: %s", got, w.log.String())
				}
				if c.helps && !reflect.DeepEqual(w.attached["a.service"].Allow, nodelay) {
					t.Errorf("in the kernel: %+v", w.attached)
				}
				before := looks
				if rest(); looks != before {
					t.Errorf("%d looks, and then %d", before, looks)
				}
			})
		})
	}
}

// The start helper takes the first rules that it finds, the unit's own before those of
// its template, and these before those of a prefix. So none stay of an attachment that
// named the unit more closely.
func TestRulesOfAnEarlierAttachmentDoNotHoldAtTheNextStart(t *testing.T) {
	cork := []attach.AllowedOption{{Option: "SOL_TCP:TCP_CORK", Reason: "whole answers"}}
	const own, template, prefix = "/etc/aaunit/attachments.d/own.conf", "/etc/aaunit/attachments.d/template.conf", "/etc/aaunit/attachments.d/prefix.conf"
	const one, two = "x-a@1.service", "x-a@2.service"
	as := func(profile string, allow []attach.AllowedOption) func(*attach.Attachment) {
		return func(a *attach.Attachment) {
			a.Profile = profile
			options(attach.SocketsEnforce, allow...)(a)
		}
	}
	begin := func(w *world, unit string) {
		defer w.lock()()
		_ = w.begin(w.units[unit])
	}
	for _, c := range []struct {
		name, gone string
		left       []string // names of rules
	}{
		{"the unit's own", own, []string{"x-a@.service"}},
		{"its template's", template, []string{"x-.service"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.addUnit(one)
			w.addUnit(two)
			w.files["a"] = "1"
			if c.gone == own {
				w.declareUnit(own, one, as("a", nodelay))
				w.declareUnit(template, "x-a@.service", as("a", cork))
			} else {
				w.declareUnit(template, "x-a@.service", as("a", nodelay))
				w.declareUnit(prefix, "x-.service", as("a", cork))
			}
			w.run(t, func(l *Loop) {
				if got := w.attached[one].Allow; !reflect.DeepEqual(got, nodelay) {
					t.Fatalf("at first: %+v", w.attached)
				}
				w.undeclare(c.gone)
				rest()
				if got := slices.Sorted(maps.Keys(w.rules)); !slices.Equal(got, c.left) {
					t.Errorf("rules of %q, want %q", got, c.left)
				}
				begin(w, one)
				rest()
				if got := w.attached[one].Allow; !reflect.DeepEqual(got, cork) || answer(l, one) != "confined" || w.log.count("not-confined") > 0 {
					t.Errorf("the next start: %+v, %s", w.attached, w.log.String())
				}
				w.undeclare(template)
				w.undeclare(prefix)
				rest()
				if len(w.rules)+len(w.attached) > 0 {
					t.Errorf("left of a detach: %+v %+v", w.rules, w.attached)
				}
			})
		})
	}

	t.Run("undone", func(t *testing.T) {
		w := newWorld()
		u := w.addUnit(one)
		w.files["a"], w.files["b"] = "1", "1"
		u.breaks["b"] = true
		w.declareUnit(own, one, as("a", nodelay))
		w.declareUnit(template, "x-a@.service", as("b", cork))
		w.run(t, func(l *Loop) {
			w.undeclare(own)
			rest()
			if w.records[one].Hold == nil || u.label != "a (enforce)" {
				t.Fatalf("not undone: %+v, %s", w.records[one], w.log.String())
			}
			begin(w, one)
			rest()
			if got := w.attached[one].Allow; !reflect.DeepEqual(got, nodelay) {
				t.Errorf("the start after the undo: %+v, rules %+v", w.attached, w.rules)
			}
		})
	})
}
