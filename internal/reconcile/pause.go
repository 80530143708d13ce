package reconcile

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// A paused unit is looked at and left alone. The pause is on its record, or on
// that of the template or prefix whose drop-in serves it. Only the goroutine
// that changes things begins and ends pauses, so that no pass meets half of one.

// Pause has aaunitd leave attached units alone for a time.
func (l *Loop) Pause(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	if err := attach.CheckPause(r.For); err != nil {
		return nil, err
	}
	return l.do(ctx, func(ctx context.Context) []attach.Outcome {
		op := newOperation(progress)
		all := l.pausable(ctx, r.Units)
		// A look may be about to stop a unit: when this returns, none is.
		var units []string
		for _, p := range all {
			if !p.refused() {
				units = append(units, l.servedBy(p.unit)...)
			}
		}
		slices.Sort(units)
		mine := l.claim(ctx, slices.Compact(units))
		defer l.queue.release(mine)
		defer l.queue.add(inputChanged, mine...) // to be shown
		now := time.Now().Round(0)               // by the clock on the wall, also over a suspend
		pause := &attach.Pause{Since: now, Until: now.Add(r.For), By: cmp.Or(r.By, "unknown")}
		for _, p := range all {
			switch {
			case p.refused():
			case ctx.Err() != nil:
				p.out.Exit = attach.ExitUnknown
			default:
				l.pause(p, pause)
			}
		}
		for _, p := range all {
			if p.out.Paused != nil {
				p.out.Notes = append(p.out.Notes, l.keptFor(p.unit)...)
			}
			p.tell(op.progress)
		}
		return collect(all, nil)
	})
}

func (l *Loop) pause(p *prepared, pause *attach.Pause) {
	r := p.d.Record
	if r.Unit == "" { // attached, and refused so far
		r.Unit, r.Attachment, r.Profile, r.RestartUnit = p.unit, p.d.Attachment.Source, p.d.Profile, p.d.Attachment.RestartUnit
	}
	if err := l.setPause(r, pause); err != nil {
		// A pause that a restart of the daemon would lose is none.
		if err := l.setPause(r, r.Pause); err != nil {
			l.log.Error("cannot keep the record of a unit", journal.FieldUnit, p.unit, "err", err)
		}
		p.refuse(attach.Because(attach.RecordBad, "cannot keep that %s is paused: %v", p.unit, err))
		return
	}
	p.out.Changed, p.out.Paused = true, pause
	p.out.Events = append(p.out.Events, attach.Event{Unit: p.unit, Step: attach.StepPause, State: attach.Done, Text: pause.String()})
	l.sayPause(journal.MsgPaused, p.unit+" is paused "+pause.String(), r, pause.By)
}

// Resume ends the pauses of units before their time.
func (l *Loop) Resume(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return l.do(ctx, func(ctx context.Context) []attach.Outcome {
		op := newOperation(progress)
		all := l.resumable(ctx, r.Units)
		for _, p := range all {
			if !p.refused() {
				l.resume(p, cmp.Or(r.By, "unknown"))
			}
			p.tell(op.progress)
		}
		return collect(all, nil)
	})
}

func (l *Loop) resume(p *prepared, by string) {
	now := time.Now()
	r := p.d.Record
	event := attach.Event{Unit: p.unit, Step: attach.StepResume, State: attach.Skipped, Text: "it was not paused"}
	if r.Pause.InForce(now) {
		l.endPause(r)
		p.out.Changed = true
		event.State, event.Text = attach.Done, "what is not as declared is put back now"
		l.sayPause(journal.MsgResumed, "the pause of "+p.unit+" was ended by "+by, r, by)
		l.queue.add(inputChanged, l.servedBy(p.unit)...)
	}
	if why := l.whyPaused(p.unit); why != nil { // with its template or prefix
		p.refuse(*why)
		return
	}
	p.out.Events = append(p.out.Events, event)
}

// pausable finds the attached units that are meant.
func (l *Loop) pausable(ctx context.Context, words []string) []*prepared {
	all := l.named(ctx, words)
	for _, p := range all {
		switch {
		case p.refused():
		case attach.IsGlob(p.unit):
			p.refuse(p.out.Notes...)
			p.out.Notes = nil
		default:
			if why := l.findAttached(ctx, p); why != nil {
				p.refuse(*why)
			}
		}
	}
	return unique(all)
}

// resumable is like pausable; what is not attached is not paused either.
func (l *Loop) resumable(ctx context.Context, words []string) []*prepared {
	all := l.named(ctx, words)
	for _, p := range all {
		if p.refused() || attach.IsGlob(p.unit) {
			continue
		}
		switch why := l.findAttached(ctx, p); {
		case why == nil:
		case why.Code == attach.NotAttached:
			p.out.Notes = append(p.out.Notes, *why)
		default:
			p.refuse(*why)
		}
	}
	return unique(all)
}

// findAttached looks up what is declared for a unit and remembered of it, or
// says why there is nothing.
func (l *Loop) findAttached(ctx context.Context, p *prepared) *attach.Reason {
	if l.lookUp(p) {
		return nil
	}
	not := attach.Because(attach.NotAttached, "%s is not attached", p.unit).WithNext("aaunitctl attach " + p.unit)
	if attach.IsPattern(p.unit) {
		return &not // of which systemd knows nothing
	}
	u, err := l.systemd.Observe(ctx, p.unit)
	switch {
	case err != nil:
		not = attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", p.unit, err)
	case !u.Found():
		not = attach.Because(attach.UnitNotFound, "systemd knows no unit %s", p.unit)
	case u.ID != p.unit:
		l.learnAlias(p.unit, u)
		if l.lookUp(p) {
			return nil
		}
	default:
		l.mu.Lock()
		if a := l.pendingAttachment(p.unit); a != nil {
			not = attach.Because(attach.NotAttached, "%s does not run, and %s names it only with others", p.unit, a.Source)
			if pattern := a.Placement(p.unit); pattern != p.unit {
				not = not.WithNext("aaunitctl pause " + pattern)
			}
		}
		l.mu.Unlock()
	}
	return &not
}

func (l *Loop) lookUp(p *prepared) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.alias[p.unit]; ok {
		p.unit, p.out.Unit = c, c
	}
	p.d.Unit, p.d.Record = p.unit, l.records[p.unit].Clone()
	p.d.Profile = p.d.Record.Profile
	a, attached := l.targets[p.unit]
	if attached {
		p.d.Attachment = a
		if name, err := a.ProfileFor(p.unit); err == nil && !attach.IsPattern(p.unit) {
			p.d.Profile = name
		}
	}
	p.out.Profile = p.d.Profile
	return attached || p.d.Record.Unit != ""
}

// endPauses ends the pauses whose time is over, and says when the next one is:
// never where that is 0.
func (l *Loop) endPauses() (next time.Duration) {
	now := time.Now()
	var over []attach.Record
	l.mu.Lock()
	for _, r := range l.records {
		switch {
		case r.Pause == nil:
		case !r.Pause.InForce(now):
			over = append(over, r.Clone())
		case next == 0 || r.Pause.Until.Sub(now) < next:
			next = r.Pause.Until.Sub(now)
		}
	}
	l.mu.Unlock()
	for _, r := range over {
		l.endPause(r)
		l.sayPause(journal.MsgPauseOver, "the pause of "+r.Unit+" is over; it lasted "+r.Pause.String(), r, r.Pause.By)
		l.queue.add(inputChanged, l.servedBy(r.Unit)...)
	}
	return next
}

// setPause puts a pause on the record of a unit, of which r is all where it has
// none yet. A look may have put its verdict there since r was read.
func (l *Loop) setPause(r attach.Record, pause *attach.Pause) error {
	keeping := l.keeping.of(r.Unit)
	keeping.Lock()
	defer keeping.Unlock()
	l.mu.Lock()
	if now, ok := l.records[r.Unit]; ok {
		r = now
	}
	r.Boot, r.Pause = l.boot, pause
	l.records[r.Unit] = r
	l.mu.Unlock()
	err := l.store.Save(r)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.noteSaved(r.Unit, err == nil)
	return err
}

// endPause takes the pause off a record. Where that cannot be kept the next
// daemon goes on with it, at most until its time is over.
func (l *Loop) endPause(r attach.Record) {
	if err := l.setPause(r, nil); err != nil {
		l.log.Error("cannot keep the record of a unit", journal.FieldUnit, r.Unit, "err", err)
	}
}

func (l *Loop) sayPause(id journal.MessageID, text string, r attach.Record, by string) {
	l.log.Info(text, journal.FieldMessageID, string(id), journal.FieldUnit, r.Unit, journal.FieldObjectUnit, r.Unit,
		journal.FieldProfile, r.Profile, journal.FieldBy, by)
}

// leavePaused ends a paused unit's way through a pass, with a look.
func (l *Loop) leavePaused(ctx context.Context, j *job) {
	j.over = true
	j.d.Profile = cmp.Or(j.d.Profile, j.d.Record.Profile)
	j.plan = attach.Diff(j.d, j.o)
	if j.d.Attachment != nil {
		l.describe(j)
	}
	j.out.Notes = append(j.out.Notes, j.plan.Pending...)
	if attach.IsPattern(j.d.Unit) {
		l.publish(j.d.Unit, func(s *attach.Status) {
			if j.d.Attachment != nil {
				s.Refused = attach.AmissInPause(j.d, j.o)
			}
			j.out.Reasons, j.out.Exit = s.Refused, s.Exit()
		})
		l.tellComplains(j)
		return
	}
	v, o := l.judge(ctx, j.d, false)
	j.out.Verdict, j.out.Exit = &v, attach.ExitOf(&v)
	l.conclude(j.d, o, v)
}

// pauseOf is the pause of a unit that is in force, or nil. The caller holds mu.
func (l *Loop) pauseOf(unit string, at time.Time) *attach.Pause {
	d := attach.Desired{Record: l.records[unit]}
	_, d.PatternPause = l.patternPause(unit, at)
	return d.Paused(at)
}

// whyPaused says that a unit is paused now, or nil.
func (l *Loop) whyPaused(unit string) *attach.Reason {
	now := time.Now()
	d := attach.Desired{Unit: unit}
	l.mu.Lock()
	d.Record = l.records[unit]
	d.Pattern, d.PatternPause = l.patternPause(unit, now)
	l.mu.Unlock()
	return d.WhyPaused(now)
}

// patternPause finds the template or prefix with whose pause the unit is
// paused. The caller holds mu.
func (l *Loop) patternPause(unit string, at time.Time) (pattern string, pause *attach.Pause) {
	longest := func(place string) {
		if place == unit {
			return
		}
		p := l.records[place].Pause
		if p.InForce(at) && (pause == nil || p.Until.After(pause.Until) || p.Until.Equal(pause.Until) && place < pattern) {
			pattern, pause = place, p
		}
	}
	// As places, without a list: this is asked of every unit at every look.
	if a, ok := l.targets[unit]; ok {
		longest(a.Placement(unit))
	}
	for _, f := range l.records[unit].DropIns {
		longest(attach.PlaceOf(f.Path))
	}
	return pattern, pause
}

// places are the unit, template and prefix in whose directories drop-ins serve
// the unit: where its attachment puts one, and where it has one. The latter
// alone is known when the attachment is withdrawn. The caller holds mu.
func (l *Loop) places(unit string) (out []string) {
	if a, ok := l.targets[unit]; ok {
		out = append(out, a.Placement(unit))
	}
	for _, file := range l.records[unit].DropIns.Paths() {
		out = append(out, attach.PlaceOf(file))
	}
	return out
}

// pausedIn lists the units that are paused by what is on record, where nobody has
// read what is declared.
func pausedIn(records []attach.Record, at time.Time) map[string]bool {
	own, out := map[string]bool{}, map[string]bool{}
	for _, r := range records {
		own[r.Unit] = r.Pause.InForce(at)
	}
	for _, r := range records {
		out[r.Unit] = own[r.Unit]
		for _, f := range r.DropIns {
			out[r.Unit] = out[r.Unit] || own[attach.PlaceOf(f.Path)]
		}
	}
	return out
}

// servedBy lists a unit, or a template or prefix and all its units.
func (l *Loop) servedBy(name string) []string {
	out := []string{name}
	if !attach.IsPattern(name) {
		return out
	}
	all := l.everything()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, unit := range all {
		if unit != name && slices.Contains(l.places(unit), name) {
			out = append(out, unit)
		}
	}
	return out
}

// keptFor says which other units are not paused and have the policy or the
// drop-in of a paused one kept.
func (l *Loop) keptFor(unit string) (notes []attach.Reason) {
	all := l.everything()
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	mine := l.policyOf(unit)
	for _, other := range all {
		if other == unit || l.pauseOf(other, now) != nil {
			continue
		}
		if slices.Contains(l.places(unit), other) {
			notes = append(notes, attach.Because(attach.PolicyKept, "the drop-in of %s is that of %s, which is not paused: it is kept", unit, other).
				WithNext("aaunitctl pause "+other))
			continue
		}
		if i := slices.IndexFunc(mine, func(name string) bool { return slices.Contains(l.policyOf(other), name) }); i >= 0 {
			notes = append(notes, attach.Because(attach.PolicyKept, "%s is also attached to %s and not paused: its policy is kept", other, mine[i]))
		}
	}
	return notes
}

// policyOf lists the profiles that belong to an attached unit, its own first:
// those that it may carry, and what their files define besides. The caller
// holds mu.
func (l *Loop) policyOf(unit string) (names []string) {
	if a, ok := l.targets[unit]; ok {
		if name, err := a.ProfileFor(unit); err == nil && !attach.IsPattern(unit) {
			names = append(names, name)
		}
		names = append(names, a.AllowProfiles...)
	}
	return append(names, slices.Sorted(maps.Keys(l.records[unit].Accepted))...)
}
