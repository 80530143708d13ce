package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const (
	// maxTelling bounds the texts of an answer, in bytes as they can become in
	// JSON: names are long and hostile where somebody wants the answer not to
	// fit into a message. It is shared out, so that such a unit takes nothing from
	// the others; minTelling is what each has of it in any case.
	maxTelling = 8 << 20
	minTelling = 64 << 10
	// maxNews is for what came since somebody asked last: many may be waiting.
	maxNews = 1 << 20
	// gather is how long what comes after a first denial is waited for: a flood
	// is a few answers in a second, not thousands.
	gather = 250 * time.Millisecond
)

// Denials says what was denied to attached units (names and globs; none: all)
// from since on.
func (l *Loop) Denials(units []string, since time.Time) attach.DenialReport {
	known, missing := l.denied(units)
	idle, missing := l.toCome(missing)
	known.Units = append(known.Units, idle...)
	r := l.denialReport(known, maxTelling, func(unit string) []attach.Denial { return l.denials.since(unit, since) })
	r.Missing = l.whyMissing(missing)
	return r
}

// WaitDenials says what was denied since the answer that had the cursor, and
// waits until there is something or ctx ends. Units without anything new are left
// out. A cursor of another life of the daemon's, or of none, is where the log
// begins.
func (l *Loop) WaitDenials(ctx context.Context, units []string, cursor string) attach.DenialReport {
	for {
		more := l.denials.more()
		n, missedAt := l.denials.at(cursor)
		known, _ := l.denied(units)
		r := l.denialReport(known, maxNews, func(unit string) []attach.Denial { return l.denials.after(unit, n) })
		r.Units = slices.DeleteFunc(r.Units, func(u attach.UnitDenials) bool { return len(u.Denials) == 0 && u.LeftOut == 0 })
		if len(r.Units) > 0 || missedAt > n || ctx.Err() != nil {
			return r
		}
		select {
		case <-ctx.Done():
			continue // and answer
		case <-more:
		}
		select {
		case <-ctx.Done():
		case <-time.After(gather):
		}
	}
}

// denied is known, with the units of attached templates and prefixes that were denied
// something and have been forgotten since, as they ended: what a connection was denied
// is looked for when it is over.
func (l *Loop) denied(words []string) (known attach.Report, missing []string) {
	logged := l.denials.logged()
	asked := l.selectionOf(words, logged...)
	known = l.report(asked)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, unit := range logged {
		a := l.pendingAttachment(unit)
		if a == nil {
			continue
		}
		of := func(p attach.Status) bool { return isOf(unit, p.Unit) }
		if !asked.has(unit) && !slices.ContainsFunc(known.Patterns, of) {
			continue
		}
		s := attach.Status{Unit: unit, Attachment: a.Source}
		s.Profile, _ = a.ProfileFor(unit)
		known.Units = append(known.Units, s)
	}
	return known, asked.missing()
}

// at gives the seq that a cursor stands for, and when lost or deaf last changed.
func (g *denialLog) at(cursor string) (n, missedAt uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var began int64
	if _, err := fmt.Sscanf(cursor, "%d.%d", &began, &n); err != nil || began != g.began.UnixNano() || n > g.seq {
		n = 0
	}
	return n, g.missedAt
}

// cursor is where the log is now.
func (g *denialLog) cursor() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return fmt.Sprintf("%d.%d", g.began.UnixNano(), g.seq)
}

// denialReport tells what find finds of each unit.
func (l *Loop) denialReport(known attach.Report, most int, find func(unit string) []attach.Denial) attach.DenialReport {
	// The cursor first: what comes meanwhile is told twice and not never.
	r := attach.DenialReport{Host: known.Host, Units: []attach.UnitDenials{}, Cursor: l.denials.cursor(), At: time.Now()}
	r.Lost, r.Deaf = l.denials.missed()
	r.Began = l.denials.start()
	units := l.withPatterns(known)
	each := max(min(minTelling, most), most/max(1, len(units)))
	for _, s := range units {
		u := attach.UnitDenials{Unit: s.Unit, Profile: s.Profile, Denials: []attach.SeenDenial{}}
		found := find(s.Unit)
		slices.SortStableFunc(found, func(a, b attach.Denial) int { return a.Last.Compare(b.Last) })
		room := each
		for i, d := range slices.Backward(found) {
			seen := attach.Seen(d)
			if room -= sizeOf(seen); room < 0 {
				u.LeftOut = i + 1
				break
			}
			u.Denials = append(u.Denials, seen)
		}
		slices.Reverse(u.Denials)
		r.Units = append(r.Units, u)
	}
	return r
}

func (g *denialLog) start() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.began
}

// sizeOf is about the most that a denial takes in JSON, where a byte can become
// six.
func sizeOf(d attach.SeenDenial) int {
	n := 1024 + 6*(len(d.What)+len(d.Name)+len(d.Target)+len(d.Peer)+len(d.Profile)+len(d.Namespace)+len(d.Source)+len(d.FSType)+
		len(d.Info)+len(d.Comm)+len(d.Cgroup)+len(d.Unit)) + 2*(len(d.Proposal.Rule)+len(d.Proposal.Note)+len(d.Proposal.Profile))
	for _, c := range d.Candidates {
		n += len(c) + 3
	}
	return n
}

// withPatterns are the units of a report, with those of the templates and
// prefixes that it has: denials are of units only.
func (l *Loop) withPatterns(r attach.Report) []attach.Status {
	units := slices.Clone(r.Units)
	if len(r.Patterns) > 0 {
		all, _ := l.known(nil)
		for _, s := range all.Units {
			if slices.ContainsFunc(r.Patterns, func(p attach.Status) bool { return isOf(s.Unit, p.Unit) }) {
				units = append(units, s)
			}
		}
	}
	slices.SortFunc(units, func(a, b attach.Status) int { return strings.Compare(a.Unit, b.Unit) })
	return slices.CompactFunc(units, func(a, b attach.Status) bool { return a.Unit == b.Unit })
}

// isOf reports whether a unit is one of a template's or prefix's.
func isOf(unit, pattern string) bool {
	if attach.IsTemplate(pattern) {
		return attach.TemplateOf(unit) == pattern
	}
	return attach.IsPrefix(pattern) && unit != pattern && strings.HasPrefix(unit, strings.TrimSuffix(pattern, ".service"))
}
