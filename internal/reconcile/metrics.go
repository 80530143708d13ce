package reconcile

import (
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Metrics puts together the numbers of the daemon, from what is known: nothing is
// kept for it but a few counters.
func (l *Loop) Metrics() attach.Metrics {
	known, _ := l.known(nil)
	m := attach.Metrics{Version: known.Version, Host: known.Host, At: known.At, Recheck: known.Recheck, Patterns: len(known.Patterns), Problems: len(known.Problems), Units: []attach.UnitMetrics{}}
	l.mu.Lock()
	m.Began, m.Passes, m.Looks = l.began, l.passes, l.looked
	modes := make(map[string]attach.Wish, len(l.targets))
	for unit, a := range l.targets {
		modes[unit] = a.Mode
	}
	l.mu.Unlock()
	lost, deaf := l.denials.missed()
	m.DenialsLost, m.DenialsDeaf = lost, deaf != ""
	m.OtherDenials = l.denials.all()
	for _, s := range known.Patterns {
		if s.Held != nil && !s.Held.OnlyText() {
			m.PatternsHeld++
		}
		if s.Paused == nil && slices.ContainsFunc(s.Refused, func(r attach.Reason) bool { return r.Code != attach.TaskComplain }) {
			m.PatternsRefused++
		}
		answer, _ := s.ToCome()
		switch {
		case answer == attach.Confined:
		case s.Paused != nil:
			m.PatternsOpenPaused++
		default:
			m.PatternsOpen++
		}
	}
	for _, s := range known.Units {
		u := attach.UnitMetrics{Unit: s.Unit, Profile: s.Profile, Mode: modes[s.Unit], State: s.ActiveState, Answer: attach.Unknown,
			Held: s.Held != nil && !s.Held.OnlyText(), Pending: len(s.Refused) > 0 || unfinished(s.Notes) || s.Held.OnlyText(), Paused: s.Paused != nil, Denials: l.denials.counted(s.Unit), Sockets: l.socketNumbers(s.Unit)}
		m.OtherDenials.Denied -= u.Denials.Denied
		m.OtherDenials.Allowed -= u.Denials.Allowed
		m.OtherDenials.Killed -= u.Denials.Killed
		if v := s.Verdict; v != nil {
			u.Answer, u.At, u.Tasks = v.Answer, v.At, v.Tasks
			for _, r := range v.Reasons {
				u.Codes = addCode(u.Codes, r.Code)
			}
		}
		for _, r := range s.Refused {
			u.Codes = addCode(u.Codes, r.Code)
		}
		m.Units = append(m.Units, u)
	}
	return m
}

// unfinished reports whether notes tell of more than advice.
func unfinished(notes []attach.Reason) bool {
	return slices.ContainsFunc(notes, func(r attach.Reason) bool { return !r.Code.Advice() })
}

// addCode adds the code of a reason that is no note.
func addCode(codes []attach.Code, c attach.Code) []attach.Code {
	if c.Bearing() == attach.Confined || slices.Contains(codes, c) {
		return codes
	}
	return append(codes, c)
}

// timePass counts how long a pass takes, from now until done.
func (l *Loop) timePass() (done func()) {
	began := time.Now()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.passes.Add(time.Since(began))
	}
}

// maxCounted bounds the units whose denials are counted by name; what others are
// denied counts under no name.
const maxCounted = 4096

// count takes a denial into the sums. The lock is held.
func (g *denialLog) count(d attach.Denial) {
	if g.counts == nil {
		g.counts = map[string]attach.DenialCount{}
	}
	unit := d.Unit
	if _, known := g.counts[unit]; !known && len(g.counts) >= maxCounted {
		unit = ""
	}
	c := g.counts[unit]
	c.Add(d)
	g.counts[unit] = c
	g.sum.Add(d)
}

// counted is what was denied to a unit since the log began.
func (g *denialLog) counted(unit string) attach.DenialCount {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.counts[unit]
}

// all is what was denied to all units.
func (g *denialLog) all() attach.DenialCount {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sum
}
