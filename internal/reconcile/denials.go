package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on the denials that are kept. A unit that is denied ever new things
// pushes out its own, and nobody else does.
const (
	maxUnitDenials = 200
	maxDenials     = 2000
	// maxRefused bounds the changes of profile that are kept by themselves.
	maxRefused = 256
)

// hear takes what AppArmor denies into the log until ctx ends.
func (l *Loop) hear(ctx context.Context, denials <-chan attach.Denial) {
	l.denials.begin(time.Now())
	sessions := sessionUnits{l: l, told: map[string]sessionUnit{}}
	deaf := false
	for {
		var d attach.Denial
		select {
		case <-ctx.Done():
			return
		case next, ok := <-denials:
			if !ok {
				return
			}
			d = next
		}
		switch {
		case d.Deaf != "":
			deaf = true
			l.log.Warn(d.String())
		case deaf:
			deaf = false
			l.log.Info("denials are heard again")
		}
		switch {
		case !d.IsDenial() || d.Unit != "":
		case d.Cgroup == "":
			d.Unit, d.Candidates = attach.Attribute(d, l.profilesOfUnits())
			d.ByProfile = d.Unit != "" || len(d.Candidates) > 0
		default:
			// It is somewhere else. Whoever may run a program can have one denied
			// something under a unit's profile.
			d.Unit, d.InvocationID = sessions.unit(ctx, d)
		}
		l.denials.add(d)
	}
}

// sessionUnits finds the unit whose main process pam_systemd(8) has moved to a session
// (PAMName=): what is in that session is the unit's.
type sessionUnits struct {
	l    *Loop
	told map[string]sessionUnit // by control group and the units that it may be
}

type sessionUnit struct {
	unit, invocation string
	at               time.Time
}

const (
	// tellAgain is how long an answer about a session serves: whoever is denied much
	// there has systemd asked no more than once for as long.
	tellAgain = time.Second
	// maxSessions bounds the answers, maxLodgers the units that one is looked for among.
	maxSessions, maxLodgers = 100, 20
)

// unit gives the unit in whose session a denied process is, "" for none.
func (s *sessionUnits) unit(ctx context.Context, d attach.Denial) (unit, invocation string) {
	if !strings.HasPrefix(d.Cgroup, "/user.slice/") {
		return "", ""
	}
	unit, units := attach.Attribute(d, s.l.profilesOfUnits())
	if unit != "" {
		units = []string{unit}
	}
	if len(units) == 0 || len(units) > maxLodgers {
		return "", ""
	}
	now := time.Now()
	maps.DeleteFunc(s.told, func(_ string, t sessionUnit) bool { return now.Sub(t.at) > tellAgain })
	key := d.Cgroup + " " + strings.Join(units, " ")
	t, known := s.told[key]
	if !known {
		if len(s.told) >= maxSessions {
			return "", ""
		}
		t = s.ask(ctx, d.Cgroup, units)
		t.at = now
		s.told[key] = t
	}
	return t.unit, t.invocation
}

func (s *sessionUnits) ask(ctx context.Context, group string, units []string) sessionUnit {
	ctx, cancel := context.WithTimeout(ctx, tellAgain)
	defer cancel()
	for _, name := range units {
		u, err := s.l.systemd.Glance(ctx, name)
		if err != nil || u.Settings.PAMName == "" {
			continue
		}
		for _, pid := range []int{u.MainPID, u.ControlPID} {
			if pid > 0 && s.l.apparmor.SessionOf(pid) == group {
				return sessionUnit{unit: u.ID, invocation: u.InvocationID}
			}
		}
	}
	return sessionUnit{}
}

// profilesOfUnits lists what each attached unit may carry.
func (l *Loop) profilesOfUnits() map[string][]string {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := map[string][]string{}
	for unit, a := range l.targets {
		if attach.IsPattern(unit) {
			continue // no task is of a template
		}
		if profile, err := a.ProfileFor(unit); err == nil {
			out[unit] = append([]string{profile}, a.AllowProfiles...)
		}
	}
	return out
}

const (
	// hearing is how long the kernel's word of what was just denied may take.
	hearing = 300 * time.Millisecond
	// maxTold bounds the denials that a failed attach tells of.
	maxTold = 8
)

// addDenials puts beside the reasons of what failed what was denied meanwhile.
func (l *Loop) addDenials(ctx context.Context, jobs []*job) {
	late := false
	for _, j := range jobs {
		if len(j.failed) == 0 || j.over || j.since.IsZero() || attach.IsPattern(j.d.Unit) {
			continue
		}
		if !late {
			late = true
			select {
			case <-ctx.Done():
			case <-time.After(hearing):
			}
		}
		all := l.deniedSince(j.d.Unit, j.since)
		for i, d := range all {
			if i == maxTold {
				j.failed = append(j.failed, attach.Because(attach.Denied, "%d more denials", len(all)-i))
				break
			}
			j.failed = append(j.failed, attach.Because(attach.Denied, "profile %s: %s", d.Profile, d))
		}
		if _, deaf := l.denials.missed(); deaf != "" {
			j.failed = append(j.failed, attach.Because(attach.Denied, "what was denied could not be heard: %s", deaf))
		}
	}
}

// behind is how much the kernel's clock for denials is behind, at most.
const behind = 20 * time.Millisecond

// deniedSince lists a unit's denials, without what complain mode let pass.
func (l *Loop) deniedSince(unit string, t time.Time) []attach.Denial {
	return slices.DeleteFunc(l.denials.since(unit, t.Add(-behind)), func(d attach.Denial) bool { return d.Allowed })
}

// whyFailed is the first reason, with the first denial beside it.
func whyFailed(reasons []attach.Reason) string {
	s := reasons[0].String()
	for _, r := range reasons[1:] {
		if r.Code == attach.Denied {
			return s + "; " + r.String()
		}
	}
	return s
}

// denialLog keeps what was denied, merged, by unit. Where the unit is not known
// that is "". It lives as long as the daemon. The zero value is ready for use.
type denialLog struct {
	mu    sync.Mutex
	units map[string]map[attach.DenialKey]logged
	total int
	lost  int // records that came to nobody, or were pushed out
	deaf  string
	began time.Time
	// unheard is the last time of which something that counts may be missing.
	unheard time.Time

	// refused are the last changes of profile that were refused, each record by
	// itself: which process it was decides there. What happened before refusedFrom
	// may be missing.
	refused     []attach.Denial
	refusedFrom time.Time
	// counts are the records of each unit since the log began, and sum those of all:
	// what is pushed out, or merged, stays counted.
	counts map[string]attach.DenialCount
	sum    attach.DenialCount

	// seq counts what was taken in; missedAt is its value when lost or deaf last
	// changed.
	seq, missedAt uint64
	// changed is closed by the next add; nil while nobody waits.
	changed chan struct{}
}

// logged is a denial with the number of its last record.
type logged struct {
	attach.Denial
	seq uint64
	// told is when a process of the unit first told that it is its own, and toldLast when
	// one last did; zero: none has. What anybody can bring about under the profile makes
	// nothing old, nor speaks against a policy.
	told, toldLast time.Time
	// onTrial: it began under a policy that was undone, and so is none that the unit
	// had before.
	onTrial bool
}

// began is since when the unit is denied it, as far as that is known.
func (d logged) began() time.Time {
	if d.told.IsZero() {
		return d.First
	}
	return d.told
}

// newSince reports whether none of it happened before t, but under a policy that was
// undone, as far as the log has it.
func (d logged) newSince(t time.Time) bool {
	return !d.began().Before(t) || d.onTrial && !d.Last.Before(t)
}

// toldSince reports whether a process of the unit told it at t or later.
func (d logged) toldSince(t time.Time) bool {
	return !d.toldLast.IsZero() && !d.toldLast.Before(t)
}

func (g *denialLog) begin(now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.began = now
}

// more gives a channel that is closed when anything is added from now on.
func (g *denialLog) more() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

// add takes in one element of AppArmor.Denials.
func (g *denialLog) add(d attach.Denial) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.seq++
	if d.Lost > 0 || d.Deaf != g.deaf {
		g.missedAt = g.seq
	}
	if d.Lost > 0 || d.Deaf != "" || g.deaf != "" {
		g.unheard = time.Now()
	}
	g.deaf = d.Deaf
	g.lost += d.Lost
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
	if !d.IsDenial() {
		return
	}
	if d.ChangesProfile() {
		if g.refused = append(g.refused, d); len(g.refused) > maxRefused {
			g.refusedFrom, g.refused = g.refused[0].Last, slices.Clone(g.refused[1:])
		}
	}
	g.count(d)
	if d.Unit == "" && d.Cgroup != "" {
		return // it is no unit's
	}
	of := g.units[d.Unit]
	k := d.Key()
	if old, ok := of[k]; ok {
		if d.Told() {
			if old.told.IsZero() || d.First.Before(old.told) {
				old.told = d.First
			}
			if d.Last.After(old.toldLast) {
				old.toldLast = d.Last
			}
		}
		old.Merge(d)
		old.seq = g.seq
		of[k] = old
		return
	}
	if of == nil {
		if g.units == nil {
			g.units = map[string]map[attach.DenialKey]logged{}
		}
		of = map[attach.DenialKey]logged{}
		g.units[d.Unit] = of
	}
	now := logged{Denial: d, seq: g.seq}
	if d.Told() {
		now.told, now.toldLast = d.First, d.Last
	}
	of[k] = now
	g.total++
	switch {
	case len(of) > maxUnitDenials:
		g.forget(d.Unit)
	case g.total > maxDenials:
		// Of the unit that has most of them: one that is denied much takes
		// nothing from the others.
		most := d.Unit
		for unit, all := range g.units {
			if len(all) > len(g.units[most]) {
				most = unit
			}
		}
		g.forget(most)
	}
}

// forget drops the denial of a unit that was last seen longest ago, and counts its
// records as lost. What no process of the unit told goes first: anybody can bring about
// any number of such under its profile.
func (g *denialLog) forget(unit string) {
	of := g.units[unit]
	var oldest attach.DenialKey
	first := true
	for k, d := range of {
		anybodys, also := d.told.IsZero(), of[oldest].told.IsZero()
		if first || anybodys && !also || anybodys == also && d.Last.Before(of[oldest].Last) {
			oldest, first = k, false
		}
	}
	g.lost += of[oldest].Count
	g.missedAt = g.seq
	if !of[oldest].told.IsZero() {
		g.unheard = time.Now()
	}
	delete(of, oldest)
	g.total--
	if len(of) == 0 {
		delete(g.units, unit)
	}
}

// logged lists the units of which there are denials.
func (g *denialLog) logged() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Sorted(maps.Keys(g.units))
}

// since lists the denials of a unit that happened at t or later, in the order in
// which they were first seen, and those that may be its own: of a profile that
// it shares with other units (attach.Denial.Candidates).
func (g *denialLog) since(unit string, t time.Time) []attach.Denial {
	return g.find(unit, func(d logged) bool { return !d.Last.Before(t) })
}

// tried is told how a policy did under which a unit was from t on: what the unit was
// first denied under one that was undone is new when it comes again, until a policy
// is good in spite of it.
func (g *denialLog) tried(unit string, t time.Time, good bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, of := range []string{unit, ""} {
		for k, d := range g.units[of] {
			if of == "" && !slices.Contains(d.Candidates, unit) {
				continue
			}
			switch {
			case good:
				d.onTrial = d.onTrial && d.Last.Before(t)
			case !d.began().Before(t):
				d.onTrial = true
			}
			g.units[of][k] = d
		}
	}
}

// after lists those that happened after the log's seq was n.
func (g *denialLog) after(unit string, n uint64) []attach.Denial {
	return g.find(unit, func(d logged) bool { return d.seq > n })
}

func (g *denialLog) find(unit string, wanted func(logged) bool) (out []attach.Denial) {
	for _, d := range g.pick(unit, wanted) {
		out = append(out, d.Denial)
	}
	return out
}

func (g *denialLog) pick(unit string, wanted func(logged) bool) (out []logged) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for d := range maps.Values(g.units[unit]) {
		if wanted(d) {
			out = append(out, d)
		}
	}
	if unit != "" {
		for d := range maps.Values(g.units[""]) {
			if wanted(d) && slices.Contains(d.Candidates, unit) {
				out = append(out, d)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b logged) int {
		if n := a.First.Compare(b.First); n != 0 {
			return n
		}
		return a.Last.Compare(b.Last)
	})
	return out
}

// missed says what the log cannot know: how many records were lost or pushed out,
// and why nothing is heard at present.
func (g *denialLog) missed() (lost int, deaf string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lost, g.deaf
}

// gap says why the log may not have all from t on, "" where it has.
func (g *denialLog) gap(t time.Time) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.deaf != "":
		return g.deaf
	case g.began.IsZero() || g.began.After(t):
		return "aaunitd began to listen later"
	case !g.unheard.Before(t):
		return "records were lost"
	}
	return ""
}
