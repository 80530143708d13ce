package reconcile

import (
	"context"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// A socket with Accept=yes makes an instance of its template for each connection, and
// nothing else ever ends the attachment of one: systemd knows any instance of a
// template that is there. So what only a template or prefix names is forgotten when it
// has ended and systemd has let go of it. The drop-in of the pattern confines its next
// start as it did the first, and the signal of that start brings it back.

// spent reports whether a unit can be forgotten, if it does not run.
func (l *Loop) spent(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.isSpent(unit)
}

// isSpent is spent with l.mu held. systemd lists what is loaded, which a unit is also
// while it has failed or a unit that is loaded wants it, and what has a file of its own.
func (l *Loop) isSpent(unit string) bool {
	a := l.targets[unit]
	if a == nil || !l.unlisted[unit] || attach.IsPattern(unit) || len(l.rivals[unit]) > 0 {
		return false
	}
	if m := a.Matches(unit); m == attach.NoMatch || m == attach.MatchName {
		return false
	}
	r := l.records[unit]
	if r.Hold != nil && !l.heldBeside(unit) || r.Pause != nil || midway(r) {
		return false
	}
	pattern := a.Placement(unit)
	heir, remembered := l.records[pattern]
	if pattern == unit || !remembered || l.targets[pattern] == nil {
		// Nobody else would know of these.
		return len(r.DropIns)+len(r.Loaded)+len(r.Softened)+len(r.SocketUnits) == 0
	}
	heir = withSockets(heir, r)
	for _, f := range r.DropIns {
		if !heir.DropIns.Has(f.Path) {
			return false
		}
	}
	for _, name := range r.SocketUnits {
		if name != unit && !slices.Contains(heir.SocketUnits, name) {
			return false
		}
	}
	return !settled(r) || l.acceptedBeside(unit, a.OnProfileChange == attach.ChangeReport)
}

// acceptedBeside reports whether policy of the files that a unit has policy of was
// accepted for another one, too: nobody else would put it back, or make it live after a
// boot. Where a changed text is only reported it must be the same: the last record of what
// was accepted before is what it is compared with. l.mu is held.
func (l *Loop) acceptedBeside(unit string, same bool) bool {
	for file, id := range l.records[unit].Policies {
		beside := false
		for other, r := range l.records {
			has := r.Policies[file]
			beside = beside || other != unit && settled(r) && has != "" && (has == id || !same)
		}
		if !beside {
			return false
		}
	}
	return true
}

// forgetSpent forgets the units that the pass found to be over. It comes last, as
// what the pass does changes the record of their template or prefix, too.
func (l *Loop) forgetSpent(ctx context.Context, jobs []*job) {
	for _, j := range jobs {
		unit := j.d.Unit
		if !j.spent || ctx.Err() != nil || !l.spent(unit) || !l.handUp(unit) || !l.sweep(unit) {
			continue
		}
		l.drop(unit)
		l.forget(unit)
		l.unpublish(unit)
	}
}

// handUp leaves to the template or prefix of a unit what a detach has to take back one
// day, and the .socket units that start it, which are there for the next instance. It
// reports whether that is on record. Nothing is unloaded now: the unit's next start would
// fail.
func (l *Loop) handUp(unit string) bool {
	l.mu.Lock()
	r := l.records[unit]
	was := l.records[l.targets[unit].Placement(unit)]
	heir := withSockets(was.Clone(), r)
	for _, name := range r.Loaded {
		if !slices.Contains(heir.Loaded, name) {
			heir.Loaded = append(heir.Loaded, name)
		}
	}
	for _, file := range r.Softened {
		if !slices.Contains(heir.Softened, file) {
			heir.Softened = append(heir.Softened, file)
		}
	}
	l.mu.Unlock()
	if len(heir.Loaded)+len(heir.Softened)+len(heir.SocketUnits)+len(heir.DropIns) == len(was.Loaded)+len(was.Softened)+len(was.SocketUnits)+len(was.DropIns) {
		return true
	}
	if err := l.keep(heir); err != nil {
		l.log.Error("cannot keep the record of a unit", journal.FieldUnit, heir.Unit, "err", err)
		return false
	}
	return true
}

// withSockets puts the .socket units of a record, with their drop-ins, on another one.
func withSockets(heir, r attach.Record) attach.Record {
	for _, name := range socketNames(r.SocketUnits) {
		if !slices.Contains(heir.SocketUnits, name) {
			heir.SocketUnits = append(slices.Clip(heir.SocketUnits), name)
		}
		for _, runtime := range []bool{false, true} {
			if path := attach.DropInPath(name, runtime); r.DropIns.Has(path) && !heir.DropIns.Has(path) {
				heir.DropIns = heir.DropIns.With(path, r.DropIns.Of(path))
			}
		}
	}
	return heir
}

// sweep takes what there is in the kernel for the socket options of a unit that has
// ended, and keeps what it was last seen to use. It reports whether nothing is left.
func (l *Loop) sweep(unit string) bool {
	l.mu.Lock()
	programs := len(l.records[unit].SocketUnits) > 0
	l.mu.Unlock()
	if l.sockets == nil || !programs {
		return true
	}
	if run, seen := l.socketWatch.runOf(unit); seen {
		run.At = time.Now()
		l.keepSocketsOf(unit, run, nil)
	}
	gone, err := l.sockets.Sweep(unit)
	if err != nil {
		l.log.Warn(err.Error(), journal.FieldUnit, unit)
	}
	return gone
}

// sweepForgotten takes what there is in the kernel for the socket options of units that
// have ended and of which nothing is known: a helper attached it while no daemon ran.
func (l *Loop) sweepForgotten() {
	if l.sockets == nil {
		return
	}
	units, err := l.sockets.Units()
	if err != nil {
		l.log.Warn(err.Error())
		return
	}
	l.mu.Lock()
	units = slices.DeleteFunc(units, func(unit string) bool {
		known := l.recordsUnlisted || l.targets[unit] != nil || len(l.rivals[unit]) > 0
		for name, r := range l.records {
			known = known || name == unit || slices.Contains(r.SocketUnits, unit)
		}
		return known
	})
	l.mu.Unlock()
	for _, unit := range units {
		if _, err := l.sockets.Sweep(unit); err != nil {
			l.log.Warn(err.Error(), journal.FieldUnit, unit)
		}
	}
}

// forgotten reports whether an attachment names a unit that is not a target and of which
// nothing is remembered: it was forgotten when its start was on its way here already.
func (l *Loop) forgotten(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, remembered := l.records[unit]
	return !remembered && !attach.IsPattern(unit) && l.pendingAttachment(unit) != nil
}

// pendingAttachment is the attachment that a pattern has for a unit which is not a
// target, or nil. l.mu is held.
func (l *Loop) pendingAttachment(unit string) *attach.Attachment {
	if _, attached := l.targets[unit]; attached {
		return nil
	}
	a, rivals := l.selector.Select(unit)
	if a == nil || len(rivals) > 0 || a.Matches(unit) == attach.MatchName {
		return nil
	}
	return a
}

// toCome finds, of names that nothing is known of, the units that a pattern names and
// that do not run: they have ended, or were never started.
func (l *Loop) toCome(names []string) (found []attach.Status, others []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, name := range names {
		unit, err := attach.UnitName(name)
		if err != nil || attach.IsGlob(name) || attach.IsPattern(unit) {
			others = append(others, name)
			continue
		}
		l.mu.Lock()
		a := l.pendingAttachment(unit)
		l.mu.Unlock()
		if a == nil || a.Placement(unit) == unit {
			others = append(others, name)
			continue
		}
		u, err := l.systemd.Observe(ctx, unit)
		if err != nil || !u.Found() || u.Active() || u.ID != unit {
			others = append(others, name)
			continue
		}
		now := time.Now()
		s := attach.Status{Unit: unit, ProfileFile: a.ProfileFile, Attachment: a.Source, ActiveState: u.ActiveState}
		s.Profile, _ = a.ProfileFor(unit)
		l.mu.Lock()
		s.Paused = l.records[a.Placement(unit)].Pause
		if path := attach.DropInPath(a.Placement(unit), a.Runtime); l.records[a.Placement(unit)].DropIns.Has(path) {
			s.DropIn = path
		}
		l.mu.Unlock()
		if !s.Paused.InForce(now) {
			s.Paused = nil
		}
		s.Verdict = &attach.Verdict{Unit: unit, Profile: s.Profile, Answer: attach.Unknown, At: now,
			Reasons: []attach.Reason{attach.Because(attach.NotRunning, "%s is %s", unit, u.ActiveState)}}
		found = append(found, s)
	}
	return found, others
}
