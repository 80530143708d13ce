package reconcile

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const (
	// maxCaseDenials bounds the denials of one case.
	maxCaseDenials = 20
	// maxPlanned bounds the units that are not attached of which it is found out
	// what an attach would come to: that compiles profiles.
	maxPlanned = 16
	// maxAsked bounds the units that systemd is asked about for somebody who may not
	// have found out anything dear.
	maxAsked = 100
)

// Explain gathers what is known of units, for an explanation: what is on record,
// how systemd says that they last started, what was denied to them. Names and
// globs select units, none selects all that are attached. With plans, of names that are
// not attached it is looked at what an attach would come to. Nothing is changed.
func (l *Loop) Explain(ctx context.Context, units []string, plans bool) attach.CaseReport {
	known, missing := l.known(units)
	idle, missing := l.toCome(missing)
	known.Units = append(known.Units, idle...)
	r := attach.CaseReport{Host: known.Host, Since: l.denials.start(), At: known.At, Cases: []attach.Case{}}
	r.Lost, r.Deaf = l.denials.missed()
	for _, s := range slices.Concat(known.Patterns, known.Units) {
		r.Cases = append(r.Cases, attach.Case{Unit: s.Unit, Status: &s})
	}
	for _, m := range l.whyMissing(missing) {
		c := attach.Case{Unit: m.Unit, Missing: &m.Reason}
		if full, err := attach.UnitName(m.Unit); err == nil && !attach.IsGlob(m.Unit) {
			c.Unit = full
		}
		r.Cases = append(r.Cases, c)
	}
	room := max(minTelling, maxTelling/max(1, len(r.Cases)))
	each(len(r.Cases), func(i int) {
		if !plans && i >= maxAsked {
			r.Cases[i].StartProblem = fmt.Sprintf("it was not asked about more than %d units; name fewer", maxAsked)
			return
		}
		l.fillCase(ctx, &r.Cases[i], room)
	})
	planned := 0
	for i := range r.Cases {
		c := &r.Cases[i]
		if !plans || c.Status != nil || c.Start == nil || planned == maxPlanned {
			continue
		}
		planned++
		if out, err := l.Plan(ctx, attach.Request{Units: []string{c.Unit}, Trusted: true, DryRun: true}); err == nil && len(out) == 1 {
			c.Plan = &out[0]
		}
	}
	return r
}

// fillCase adds what systemd and the log of denials say of a case. room is what
// its denials may take, in bytes.
func (l *Loop) fillCase(ctx context.Context, c *attach.Case, room int) {
	if attach.IsPattern(c.Unit) || attach.IsGlob(c.Unit) {
		return
	}
	u, err := l.systemd.Glance(ctx, c.Unit)
	switch {
	case err != nil:
		c.StartProblem = err.Error()
	case u.Found():
		refused, h := l.denials.changes()
		s := attach.LastStartOf(u, refused, h)
		c.Start = &s
	}
	found := l.denials.since(c.Unit, time.Time{})
	slices.SortStableFunc(found, func(a, b attach.Denial) int { return a.Last.Compare(b.Last) })
	for i, d := range slices.Backward(found) {
		seen := attach.Seen(d)
		if room -= sizeOf(seen); room < 0 || len(c.Denials) == maxCaseDenials {
			c.LeftOut = i + 1
			break
		}
		c.Denials = append(c.Denials, seen)
	}
	slices.Reverse(c.Denials)
	c.Sockets = l.socketReasons(c.Unit)
}

// changes lists the changes of profile that were refused, of whatever unit, since
// that of a process which was gone at once is of none, and what they can be relied
// on for.
func (g *denialLog) changes() ([]attach.Denial, attach.Hearing) {
	g.mu.Lock()
	defer g.mu.Unlock()
	h := attach.Hearing{Since: g.began, Lost: g.lost, Deaf: g.deaf}
	if g.refusedFrom.After(h.Since) {
		h.Since = g.refusedFrom
	}
	return slices.Clone(g.refused), h
}
