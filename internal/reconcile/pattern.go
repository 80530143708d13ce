package reconcile

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A template or prefix that an attachment names has a job of its own in a pass:
// policy, drop-in, reload. Here is what its units and it have to do with each
// other.

// holdPattern holds a template or prefix whose drop-in was taken away because
// no unit of it came up under it: units to come would not either.
func (l *Loop) holdPattern(ctx context.Context, j *job, path string) {
	l.mu.Lock()
	var held *attach.Record
	for name, r := range l.records {
		if r.DropIns.Has(path) && attach.IsPattern(name) && name != j.d.Unit {
			r = r.Clone()
			r.DropIns = r.DropIns.Without(path)
			r.Hold = &attach.Hold{Reasons: j.failed, Since: time.Now()}
			held = &r
		}
	}
	l.mu.Unlock()
	if held == nil {
		return
	}
	if d, err := l.desired(held.Unit); err == nil && d.Attachment != nil {
		if o, err := l.observe(ctx, d, full); err == nil {
			held.Hold.Inputs = inputs(&job{d: d, o: o})
			if savedSince(o.Policy.Texts, idsOf(j.o.Policy.Texts)) {
				held.Hold.Inputs = "" // for the next plan
				l.queue.add(inputChanged, held.Unit)
			}
		}
	}
	l.remember(*held)
	l.publish(held.Unit, func(*attach.Status) {})
}

// patternHold finds the template or prefix with whose hold a unit is held: no unit came
// up under its drop-in, which was taken away, and for this one nothing was done yet. So it
// is not for each new unit to fail again, as an instance for each connection would.
// l.mu is held.
func (l *Loop) patternHold(unit string) (pattern string, h *attach.Hold) {
	a := l.targets[unit]
	if a == nil {
		return "", nil
	}
	pattern = a.Placement(unit)
	own := l.records[unit]
	if h = l.records[pattern].Hold; pattern == unit || h == nil || h.OnlyText() || own.Hold != nil || own.Attaching || len(own.DropIns) > 0 {
		return "", nil
	}
	path := attach.DropInPath(pattern, a.Runtime)
	for _, r := range l.records {
		if r.DropIns.Has(path) {
			return "", nil // it is there again
		}
	}
	if profile, err := a.ProfileFor(unit); err != nil || byUnit(a) && !l.failedUnder(pattern, unit, profile) {
		return "", nil
	}
	return pattern, h
}

// byUnit reports whether it depends on the unit which profile an attachment names.
func byUnit(a *attach.Attachment) bool {
	return strings.Contains(strings.ReplaceAll(a.Profile, "%%", ""), "%")
}

// toCome is what an attachment says of profiles, for the units to come of a template or
// prefix: what each of them has of its name is filled in.
func toCome(profile, pattern string) string {
	fill := []string{"%%", "%%"}
	if before, after, is := strings.Cut(attach.EscapeSpecifiers(pattern), "@"); is {
		fill = append(fill, "%p", before, "%j", before[strings.LastIndexByte(before, '-')+1:], "%N", before+"@%i", "%n", before+"@%i"+after)
	} else {
		stem := strings.TrimSuffix(before, ".service")
		fill = append(fill, "%p", stem+"%p", "%N", stem+"%N", "%n", stem+"%n")
	}
	return strings.NewReplacer(fill...).Replace(profile)
}

// couldBe reports whether a profile's name may come of what an attachment says, where
// each specifier may stand for anything.
func couldBe(profile, name string) bool {
	const percent = "\x00" // which is in no name
	pieces := strings.Split(strings.ReplaceAll(profile, "%%", percent), "%")
	for i, piece := range pieces {
		if i > 0 && piece != "" {
			piece = piece[1:] // without the specifier's letter
		}
		piece = strings.ReplaceAll(piece, percent, "%")
		at := strings.Index(name, piece)
		switch {
		case at < 0 || i == 0 && at > 0:
			return false
		case i > 0 && i == len(pieces)-1:
			return strings.HasSuffix(name, piece)
		}
		name = name[at+len(piece):]
	}
	return name == ""
}

// failedUnder reports whether another unit of a template or prefix is held that did not
// come up under the profile. l.mu is held.
func (l *Loop) failedUnder(pattern, unit, profile string) bool {
	for other, r := range l.records {
		if a := l.targets[other]; a != nil && other != unit && other != pattern && r.Hold != nil && !r.Hold.OnlyText() && r.Profile == profile && a.Placement(other) == pattern {
			return true
		}
	}
	return false
}

// freed reports whether a unit was held with its template or prefix when its plan was
// made, and is not any more.
func (l *Loop) freed(j *job) bool {
	if j.d.HeldWith == "" {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, h := l.patternHold(j.d.Unit)
	return h == nil
}

// heldBeside reports whether the hold of a unit is known without its record: that of its
// template or prefix is the same. l.mu is held.
func (l *Loop) heldBeside(unit string) bool {
	a, r := l.targets[unit], l.records[unit]
	pattern := a.Placement(unit)
	h := l.records[pattern].Hold
	switch {
	case pattern == unit || h == nil || h.OnlyText() || r.Hold.OnlyText() || !r.Hold.Again.IsZero():
		return false
	case byUnit(a): // the template's does not say under which
		return l.failedUnder(pattern, unit, r.Profile)
	}
	return true
}

// releasePattern ends the hold of the template or prefix whose drop-in a unit
// came up under after all. Those that were held with it have their turn.
func (l *Loop) releasePattern(d attach.Desired) {
	name := d.Attachment.Placement(d.Unit)
	l.mu.Lock()
	r := l.records[name].Clone()
	l.mu.Unlock()
	if name == d.Unit || r.Hold == nil {
		return
	}
	r.Hold = nil
	l.remember(r)
	l.queue.add(inputChanged, l.servedBy(name)...)
}

// reach is what is known of the units that the drop-in of a template or prefix would
// reach.
type reach struct {
	units   []attach.Unit
	problem string
}

// reached keeps that for all units of a pattern, which is looked at once.
type reached struct {
	mu sync.Mutex
	by map[string]func() reach
}

// of gives what look finds the first time.
func (r *reached) of(pattern string, look func() reach) reach {
	r.mu.Lock()
	if r.by == nil {
		r.by = map[string]func() reach{}
	}
	if r.by[pattern] == nil {
		r.by[pattern] = sync.OnceValue(look)
	}
	look = r.by[pattern]
	r.mu.Unlock()
	return look()
}

// observeReach looks for units that start too early for the drop-in of a template or
// prefix, where it is about to be written. Where it is in place, or on record and taken
// away by somebody, the units that it confines count on it, and nobody is asked. Where it
// is about to have the line of a start helper for socket options that has to work, it also
// looks for units in which that could not. Where that is only put back it does not: what
// lost the whole drop-in would be worse off.
func (l *Loop) observeReach(ctx context.Context, d attach.Desired, m *moment, o *attach.Observed) {
	pattern := d.Attachment.Placement(d.Unit)
	if !attach.IsPattern(pattern) {
		return
	}
	first := !o.DropIn.Exists && !o.DropIn.Ours
	line := d.Attachment.NewlyRequires(o.DropIn.Content) && !l.hadText(d.DropInPath(), d.DropInText(o.Unit))
	if !first && !line {
		return
	}
	look := func() reach { return l.reach(ctx, pattern) }
	var r reach
	if m != nil {
		r = m.of(pattern, look)
	} else {
		r = look()
	}
	o.EarlyProblem = r.problem
	if first {
		o.Early = attach.EarlyOf(r.units)
	}
	if line {
		o.Unheld = attach.UnheldOf(r.units, *d.Attachment)
	}
}

// observePattern reads what else reaches all units of a template or prefix.
func (l *Loop) observePattern(d attach.Desired, o *attach.Observed) {
	if !attach.IsPattern(d.Unit) {
		return
	}
	done := l.onDisk()
	defer done()
	u, err := l.systemd.Pattern(d.Unit)
	if err != nil {
		o.DropInsProblem = err.Error()
		return
	}
	o.Unit = u
}

func (l *Loop) reach(ctx context.Context, pattern string) reach {
	names, err := l.systemd.Expand(ctx, attach.UnitsOf(pattern))
	if err != nil {
		return reach{problem: err.Error()}
	}
	names = slices.DeleteFunc(names, attach.IsTemplate)
	units, errs := make([]attach.Unit, len(names)), make([]error, len(names))
	each(len(names), func(i int) { units[i], errs[i] = l.systemd.Glance(ctx, names[i]) })
	if err := errors.Join(errs...); err != nil {
		return reach{problem: err.Error()}
	}
	return reach{units: units}
}
