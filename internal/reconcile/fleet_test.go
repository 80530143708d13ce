package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

func (w *world) Running(context.Context) ([]string, error) {
	defer w.lock()()
	if w.unlisted {
		return nil, errors.New("systemd does not answer")
	}
	return slices.Sorted(maps.Keys(w.units)), nil
}

func (w *world) Sockets(context.Context) ([]attach.SocketUnit, map[string]error, error) {
	return []attach.SocketUnit{
		{Name: "on-demand.socket", Service: "on-demand.service", Listen: []attach.Listening{{Protocol: "tcp", Address: "0.0.0.0", Port: 80, Reach: attach.ReachNetwork}}},
	}, map[string]error{"odd.socket": errors.New("no answer")}, nil
}

// eyes are what looks at processes.
type eyes struct{ attach.Process }

func (e eyes) Look(_ context.Context, units []attach.Unit) (out []attach.Sighting) {
	for _, u := range units {
		p := e.Process
		p.PID = u.MainPID
		out = append(out, attach.Sighting{Unit: u.ID, Processes: []attach.Process{p}, Listening: []attach.Listening{}})
	}
	return out
}

func (eyes) Machine() attach.Machine { return attach.Machine{Name: "box", ID: strings.Repeat("a", 32)} }

// What no attachment names and runs without a profile is listed, and nothing else.
func TestExposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.addUnit("bare.service")
		w.addUnit("mine.service")
		w.declareUnit("/etc/aaunit/attachments.d/mine.conf", "mine.service", nil)
		w.boot(func(l *Loop) {
			if _, err := l.Exposed(t.Context()); err == nil {
				t.Error("it answers without having looked")
			}
			l.processes = eyes{attach.Process{Label: "unconfined", Confines: attach.No}}
			r, err := l.Exposed(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, s := range r.Services {
				names = append(names, s.Unit+" "+string(s.Class))
				if len(s.Next) == 0 {
					t.Errorf("%s: no next step", s.Unit)
				}
			}
			if d := cmp.Diff([]string{"bare.service root"}, names); d != "" {
				t.Error(d)
			}
			if len(r.Unknown) != 1 || !strings.Contains(r.Unknown[0], "odd.socket") {
				t.Errorf("unknown: %q", r.Unknown)
			}
			l.processes = eyes{attach.Process{Label: "bare (enforce)", Confines: attach.Yes}}
			if r, err := l.Exposed(t.Context()); err != nil || len(r.Services) != 0 || r.Confined == 0 {
				t.Errorf("%+v, %v", r, err)
			}
			w.mu.Lock()
			w.unlisted = true
			w.mu.Unlock()
			if _, err := l.Exposed(t.Context()); err == nil {
				t.Error("a systemd that does not answer has no unconfined services")
			}
		})
	})
}

// A report has all attached units, what was allowed, and what is not attached.
func TestHostReport(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.addUnit("bare.service")
		w.addUnit("mine.service")
		w.declareUnit("/etc/aaunit/attachments.d/mine.conf", "mine.service", func(a *attach.Attachment) {
			a.Waivers = []attach.Waiver{{Code: "policy-may-leave-profile", Reason: "operators log in", Line: 9}}
			a.AllowProfiles = []string{"bare"}
		})
		w.withEvidence(&archive{dir: t.TempDir()}, func(l *Loop) {
			l.processes = eyes{attach.Process{Label: "unconfined", Confines: attach.No}}
			time.Sleep(time.Minute)
			synctest.Wait()
			r, err := l.HostReport(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if r.Machine.Name != "box" || len(r.Units) != 1 || r.Unattached == nil || len(r.Unattached.Services) != 1 {
				t.Fatalf("%+v", r)
			}
			u := r.Units[0]
			want := []attach.Allowance{
				{Kind: "waiver", What: "policy-may-leave-profile", Reason: "operators log in", Where: "/etc/aaunit/attachments.d/mine.conf:9"},
				{Kind: "profile", What: "bare", Where: "/etc/aaunit/attachments.d/mine.conf"},
			}
			if d := cmp.Diff(want, u.Allowed); d != "" {
				t.Error(d)
			}
			if u.Verdict == nil || u.Verdict.Answer != attach.Confined || u.Mode != attach.WishEnforce || u.Seen == nil || len(u.Seen.Processes) != 1 {
				t.Errorf("%+v", u)
			}
			if u.Evidence == nil || u.Evidence.Number != 1 || len(u.Evidence.SHA256) != 64 || u.Since.IsZero() {
				t.Errorf("evidence %+v since %v: %s", u.Evidence, u.Since, u.EvidenceProblem)
			}
		})
	})
}

// A report has the options on a unit's list with their reasons, and what of those that
// it uses is not.
func TestHostReportOfSocketOptions(t *testing.T) {
	w := newWorld()
	w.addUnit("mine.service")
	w.declareUnit("/etc/aaunit/attachments.d/mine.conf", "mine.service", func(a *attach.Attachment) {
		a.SocketOptions = &attach.SocketOptions{Mode: attach.SocketsEnforce, Allow: []attach.AllowedOption{{Option: "SOL_TCP:TCP_NODELAY", Reason: "small frames", Line: 12}},
			AllowGet: []attach.AllowedOption{{Option: "SOL_SOCKET:SO_ERROR", Reason: "connect"}}}
	})
	w.uses = newUses()
	w.run(t, func(l *Loop) {
		l.processes = eyes{}
		w.uses.refuse("mine.service", "SOL_TCP:TCP_CORK")
		r, err := l.HostReport(t.Context())
		if err != nil || len(r.Units) != 1 {
			t.Fatalf("%+v %v", r, err)
		}
		u := r.Units[0]
		want := []attach.Allowance{
			{Kind: "setsockopt", What: "SOL_TCP:TCP_NODELAY", Reason: "small frames", Where: "/etc/aaunit/attachments.d/mine.conf:12"},
			{Kind: "getsockopt", What: "SOL_SOCKET:SO_ERROR", Reason: "connect", Where: "/etc/aaunit/attachments.d/mine.conf"},
		}
		if d := cmp.Diff(want, u.Allowed); d != "" {
			t.Error(d)
		}
		if s := u.Sockets; s == nil || s.Mode != attach.SocketsEnforce || !s.Required || s.Options != 2 || s.Stale != attach.No || s.Refused != 1 || s.Unlisted != 1 {
			t.Errorf("socket options %+v", s)
		}
	})
}

// Of very many processes those stay that speak against a unit.
func TestReportFitsIntoAMessage(t *testing.T) {
	units := make([]attach.UnitReport, maxReportProcesses)
	for i := range units {
		units[i].Seen = &attach.Sighting{Processes: []attach.Process{{PID: 1, Confines: attach.Yes}, {PID: 2, Confines: attach.No}, {PID: 3, Confines: attach.Yes}}}
	}
	cutProcesses(units)
	for _, u := range units {
		if len(u.Seen.Processes) != 1 || u.Seen.Processes[0].PID != 2 || u.Seen.MoreProcesses != 2 {
			t.Fatalf("%+v", u.Seen)
		}
	}
}

// Counters only grow, whatever the log of denials forgets, and passes are counted.
func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld()
		w.addUnit("mine.service")
		w.declareUnit("/etc/aaunit/attachments.d/mine.conf", "mine.service", nil)
		w.boot(func(l *Loop) {
			time.Sleep(time.Minute)
			synctest.Wait()
			for i := range maxUnitDenials + 50 {
				w.denials <- attach.Denial{Unit: "mine.service", Profile: "mine", Operation: "open", Name: "/x" + strings.Repeat("y", i), Count: 2}
			}
			w.denials <- attach.Denial{Unit: "stranger.service", Profile: "s", Operation: "open", Name: "/x", Count: 3, Allowed: true}
			w.denials <- attach.Denial{Lost: 7}
			synctest.Wait()
			m := l.Metrics()
			if len(m.Units) != 1 || m.Units[0].Answer != attach.Confined || m.Units[0].Mode != attach.WishEnforce || m.Units[0].At.IsZero() {
				t.Fatalf("%+v", m)
			}
			if got := m.Units[0].Denials; got != (attach.DenialCount{Denied: 2 * (maxUnitDenials + 50)}) {
				t.Errorf("denials: %+v", got)
			}
			if m.OtherDenials != (attach.DenialCount{Allowed: 3}) || m.DenialsLost < 7 || m.DenialsDeaf {
				t.Errorf("%+v lost %d deaf %v", m.OtherDenials, m.DenialsLost, m.DenialsDeaf)
			}
			if m.Passes.Count == 0 || m.Passes.Sum <= 0 || m.Passes.Buckets[len(m.Passes.Buckets)-1] != m.Passes.Count || m.Looks == 0 || m.Began.IsZero() {
				t.Errorf("passes %+v, looks %d", m.Passes, m.Looks)
			}
		})
	})
}

// Metrics and the report tell of a template what status does.
func TestMetricsAndReportOfPatterns(t *testing.T) {
	at := attach.DropInPath("w@.service", false)
	type numbers struct{ held, refused, open, paused int }
	declare := func(w *world, profile string, mode attach.Wish) {
		w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile, a.Mode = profile, mode })
	}
	for name, c := range map[string]struct {
		do     func(t *testing.T, w *world, l *Loop)
		want   numbers
		toCome attach.Answer
	}{
		"in place": {func(*testing.T, *world, *Loop) {}, numbers{}, attach.Confined},
		"not come to": {func(_ *testing.T, w *world, l *Loop) {
			l.mu.Lock()
			delete(l.statuses, "w@.service")
			l.mu.Unlock()
		}, numbers{open: 1}, attach.Unknown},
		"policy not put back": {func(_ *testing.T, w *world, l *Loop) {
			unlock := w.lock()
			w.full = true
			w.replace("w", "evil")
			unlock()
			w.policy <- struct{}{}
		}, numbers{refused: 1, open: 1}, attach.NotConfined},
		"refused, and in place": {func(_ *testing.T, w *world, l *Loop) {
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b@.service", func(a *attach.Attachment) { a.Profile = "w" })
			w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile, a.Mode = "w", attach.WishComplain })
		}, numbers{refused: 1}, attach.Confined},
		"refused, and not in place": {func(_ *testing.T, w *world, l *Loop) {
			w.declareUnit("/etc/aaunit/attachments.d/w.conf", "w@.service", func(a *attach.Attachment) { a.Profile = "none" })
		}, numbers{refused: 1, open: 1}, attach.NotConfined},
		"paused": {func(t *testing.T, w *world, l *Loop) {
			pause(t, l, time.Hour, "w@.service")
		}, numbers{}, attach.Confined},
		"paused, and no drop-in": {func(t *testing.T, w *world, l *Loop) {
			pause(t, l, time.Hour, "w@.service")
			rest()
			unlock := w.lock()
			delete(w.disk, at)
			unlock()
			l.everythingAnew()
		}, numbers{paused: 1}, attach.NotConfined},
		"held":      {func(*testing.T, *world, *Loop) {}, numbers{held: 1, open: 1}, attach.NotConfined},
		"complains": {func(*testing.T, *world, *Loop) {}, numbers{open: 1}, attach.NotConfined},
		"complains, by unit": {func(_ *testing.T, w *world, l *Loop) {
			declare(w, "%p", attach.WishComplain)
		}, numbers{open: 1}, attach.NotConfined},
		"complains, paused": {func(t *testing.T, w *world, l *Loop) {
			pause(t, l, time.Hour, "w@.service")
			rest()
			declare(w, "w", attach.WishEnforce)
		}, numbers{paused: 1}, attach.NotConfined},
		"complains, and is refused": {func(_ *testing.T, w *world, l *Loop) {
			declare(w, "none", attach.WishEnforce)
		}, numbers{refused: 1, open: 1}, attach.NotConfined},
		"complained, and shall enforce": {func(_ *testing.T, w *world, l *Loop) {
			declare(w, "w", attach.WishEnforce)
		}, numbers{}, attach.Confined},
		"complains, and shall enforce a broken text": {func(_ *testing.T, w *world, l *Loop) {
			unlock := w.lock()
			w.bad["w"] = true
			unlock()
			declare(w, "w", attach.WishEnforce)
		}, numbers{open: 1}, attach.NotConfined},
		"complains, and shall enforce what an assertion forbids": {func(_ *testing.T, w *world, l *Loop) {
			unlock := w.lock()
			w.gate = func(attach.Compiled) []attach.Reason {
				return []attach.Reason{attach.Because(attach.AssertionFailed, "it may write everywhere")}
			}
			unlock()
			declare(w, "w", attach.WishEnforce)
		}, numbers{open: 1}, attach.NotConfined},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld()
			w.files["w"] = "1"
			if name == "held" {
				w.addUnit("w@1.service").breaks["w"] = true
			}
			complains := strings.HasPrefix(name, "complain")
			declare(w, "w", map[bool]attach.Wish{true: attach.WishComplain, false: attach.WishEnforce}[complains])
			w.run(t, func(l *Loop) {
				l.processes = eyes{}
				if complains {
					rest()
				}
				c.do(t, w, l)
				synctest.Wait()
				if name != "not come to" {
					rest()
				}
				m := l.Metrics()
				if got := (numbers{m.PatternsHeld, m.PatternsRefused, m.PatternsOpen, m.PatternsOpenPaused}); m.Patterns != len(l.Status(nil).Patterns) || got != c.want {
					t.Errorf("%d patterns, %+v, want %+v", m.Patterns, got, c.want)
				}
				s := l.Status([]string{"w@.service"}).Patterns[0]
				says := slices.Contains(codes(s.Refused), attach.TaskComplain)
				answer, words := s.ToCome()
				if s.Coming != answer || s.ComingText != words {
					t.Errorf("%s, %s: %+v", answer, words, s)
				}
				if answer != c.toCome || s.Exit() == attach.ExitOK != (answer == attach.Confined && c.want.refused == 0) || says != (complains && answer != attach.Confined) {
					t.Errorf("%s, exit %d: %+v", answer, s.Exit(), s.Refused)
				}
				r, err := l.HostReport(t.Context())
				i := slices.IndexFunc(r.Units, func(u attach.UnitReport) bool { return u.Unit == "w@.service" })
				if err != nil || i < 0 || !r.Units[i].Pattern || r.Units[i].ToCome != c.toCome {
					t.Errorf("%+v, %v", r.Units, err)
				}
			})
		})
	}
}

// Who attaches a template in complain mode learns by the exit status that it confines nothing,
// as with a unit; it is no failure.
func TestAPatternInComplainModeIsNoSuccess(t *testing.T) {
	const file = "/etc/aaunit/attachments.d/w.conf"
	w := newWorld()
	w.files["w"] = "1"
	w.declareUnit(file, "w@.service", func(a *attach.Attachment) { a.Profile, a.Mode = "w", attach.WishComplain })
	w.run(t, func(l *Loop) {
		rest()
		for _, paused := range []bool{false, true} {
			if paused {
				pause(t, l, time.Hour, "w@.service")
			}
			for _, o := range apply(t, l, file) {
				told := slices.ContainsFunc(o.Events, func(e attach.Event) bool { return e.Step == attach.StepVerdict && e.State == attach.Warned })
				if o.Exit != attach.ExitNotConfined || len(o.Reasons) > 0 || !told {
					t.Errorf("paused %v: exit %d, %+v", paused, o.Exit, o)
				}
			}
		}
	})
}

// Units that nobody attached cannot fill the memory with counters.
func TestCountersAreBounded(t *testing.T) {
	var g denialLog
	for i := range 3 * maxCounted {
		g.add(attach.Denial{Unit: strings.Repeat("u", i%5000) + ".service", Operation: "open", Count: 1})
	}
	if len(g.counts) > maxCounted+1 || g.all().Denied != 3*maxCounted {
		t.Errorf("%d counters, %d denials", len(g.counts), g.all().Denied)
	}
}
