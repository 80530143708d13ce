package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// undo is step 8: the way back for every unit that failed. It never takes away
// confinement that was there before:
//
//  1. the drop-ins are as they were before the pass
//  2. one daemon-reload; the rules for socket options are as they were
//  3. a unit that ran under the profile before gets back the policy it had, and not one
//     that was still on trial
//  4. a unit that ran before is started again, also after systemd gave up on
//     it, unless somebody has stopped it meanwhile; one that was confined before
//     and does not come up so stays down. What went down with a unit is started
//     when all of them are back, unless it is to be down itself
//  5. of a unit that was not confined before, the loaded policy is taken back,
//     once no task carries it any more; where the profile attaches to a path by
//     itself, while the unit is down, since the next start would meet it again,
//     and if it cannot be unloaded the unit stays down until it can
//  6. an attachment made at the command line is withdrawn; one declared in a
//     file is held until an input changes or someone asks
//
// OnFailedAttach=stop stops the unit instead, keep leaves it as it is; both
// are held.
//
// When the daemon is told to end, what failed may have failed for that alone:
// nothing is held or withdrawn then, and the next start goes on from the record.
func (l *Loop) undo(ctx context.Context, jobs []*job, saved map[string]Saved, op *operation) {
	var back, tried []*job
	l.addDenials(ctx, jobs)
	for _, j := range jobs {
		if len(j.failed) == 0 || j.over || j.d.Attachment == nil {
			continue
		}
		j.out.Reasons = j.failed
		j.out.Exit = attach.ExitFailed
		switch {
		case ctx.Err() != nil:
			continue
		case j.held():
			l.notPutBack(ctx, j)
		case j.tried:
			tried = append(tried, j)
		case j.unhealed && !j.fresh && op.withdrawal(j.d.Unit) == nil:
			l.notPutBack(ctx, j)
		case j.restarted && j.d.Attachment.OnFailedAttach == attach.FailedStop:
			j.event(attach.StepUndo, attach.Running, "stopping")
			text := "stopped, as OnFailedAttach=stop asks for"
			if err := l.systemd.Stop(ctx, j.d.Unit); err != nil {
				text = fmt.Sprintf("cannot stop %s: %v", j.d.Unit, err)
			}
			j.down = true
			j.event(attach.StepUndo, attach.Done, "%s", text)
			l.sayHeld(j, text)
			l.hold(ctx, j)
		case j.restarted && j.d.Attachment.OnFailedAttach == attach.FailedKeep:
			j.event(attach.StepUndo, attach.Skipped, "left as it is, as OnFailedAttach=keep asks for")
			l.sayHeld(j, "left as it is, as OnFailedAttach=keep asks for")
			l.hold(ctx, j)
		default:
			back = append(back, j)
		}
	}
	var undone, was map[string]string
	if len(tried) > 0 {
		undone, was = l.undoTrials(ctx, tried, back, jobs)
	}
	if len(back) == 0 {
		return
	}
	for _, j := range back {
		l.endTrial(j, back)
	}
	if l.putBackDropIns(ctx, back) {
		if err := l.systemd.Reload(ctx); err != nil {
			l.log.Error("systemd did not read its files again during an undo", "err", err)
		}
	}
	for _, j := range back {
		l.putBackSockets(j)
		l.giveBackToOthers(j)
		if len(undone) > 0 {
			l.hasBefore(&j.before, undone, was)
			l.hasBefore(&j.d.Record, undone, was)
		}
	}
	eachAll(back, func(j *job) { l.putBackUnit(ctx, j, back, saved) })
	if ctx.Err() != nil {
		return
	}
	l.unloadLeft(ctx, back)
	for _, j := range back {
		if j.waits {
			j.leaves = slices.DeleteFunc(j.dragged(), func(other string) bool { return !l.staysDown(other, jobs) })
			j.noteWait()
		}
	}
	l.startAllDragged(ctx, back, jobs)
	if ctx.Err() != nil {
		return
	}
	for _, j := range back {
		l.settleUndo(ctx, j, op)
	}
}

// endTrial ends the trial of a changed policy that was cut off before this pass. What the
// unit goes back to is the policy before, unless another unit that goes on runs under the
// changed one too.
func (l *Loop) endTrial(j *job, back []*job) {
	t := j.before.Trial
	if t == nil || j.fresh {
		return
	}
	was := j.before.Policies
	l.mu.Lock()
	var ends []exchange
	for _, e := range exchanges(policiesOf(l.policies, t.Policies), policiesOf(l.policies, was)) {
		goesOn := len(e.before) == 0
		for other, r := range l.records {
			goesOn = goesOn || slices.ContainsFunc(e.before, func(c attach.Compiled) bool { return r.Policies[c.File] == c.ID }) && settled(r) && !heldAtAttach(r) &&
				!slices.ContainsFunc(back, func(b *job) bool { return b.d.Unit == other })
		}
		if !goesOn {
			ends = append(ends, e)
		}
	}
	j.before.Policies = exchanged(was, ends)
	l.mu.Unlock()
	j.before.Trial = nil
	if !maps.Equal(was, j.before.Policies) {
		j.before.Accepted = acceptedOf(l.policies, j.before)
		l.denials.tried(j.d.Unit, t.Since.Add(-behind), false)
	}
	r := &j.d.Record
	r.Trial, r.Policies, r.Accepted = nil, j.before.Policies, j.before.Accepted
	l.remember(*r)
}

// putBackDropIns is step 1; it reports whether systemd must read its files again.
func (l *Loop) putBackDropIns(ctx context.Context, back []*job) (reload bool) {
	for _, j := range back {
		j.event(attach.StepUndo, attach.Running, "taking back")
		for _, path := range j.d.Record.DropIns.Paths() {
			// That of a .socket unit that starts others, too, is theirs, and is nothing
			// that keeps this one from running without the profile.
			if j.fresh && (attach.LeftDropIn{Path: path}).OfSocket() && l.neededByOthers(j, back, path) {
				j.d.Record.DropIns = j.d.Record.DropIns.Without(path)
				delete(j.files, path)
			}
		}
		for path, text := range j.files {
			var changed bool
			var err error
			if j.fresh && l.neededByOthers(j, back, path) {
				j.stuck = true
				j.d.Record.DropIns = j.d.Record.DropIns.Without(path)
				j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachFailed, "%s serves other units too, so %s cannot go back to running without the profile; it stays down", path, j.d.Unit).At(path))
				continue
			}
			if text == nil && j.before.DropIns.Has(path) && !j.fresh && j.before.Profile == j.d.Profile {
				continue // somebody had taken it away: what confines the unit stays
			}
			if text != nil && !j.fresh {
				changed, err = l.systemd.WriteDropIn(path, *text)
			} else {
				changed, err = l.systemd.RemoveDropIn(path)
			}
			if err != nil {
				j.out.Notes = append(j.out.Notes, attach.Because(attach.DropInUnreadable, "%v", err).At(path))
				l.log.Error("cannot put a drop-in back", journal.FieldUnit, j.d.Unit, "err", err)
				continue
			}
			if text == nil || j.fresh {
				j.d.Record.DropIns = j.d.Record.DropIns.Without(path)
				l.holdPattern(ctx, j, path)
			}
			reload = reload || changed
		}
	}
	return reload
}

// neededByOthers reports whether a unit whose attach did not fail is confined
// by the file: a template's or prefix's, which serves several.
func (l *Loop) neededByOthers(j *job, back []*job, path string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, r := range l.records {
		if r.DropIns.Has(path) && other != j.d.Unit && !attach.IsPattern(other) && !slices.ContainsFunc(back, func(b *job) bool { return b.d.Unit == other }) {
			return true
		}
	}
	return false
}

// putBackUnit is steps 3 to 5.
func (l *Loop) putBackUnit(ctx context.Context, j *job, back []*job, saved map[string]Saved) {
	if j.stuck {
		if err := l.systemd.Stop(ctx, j.d.Unit); err != nil {
			l.log.Error("cannot stop a unit that does not come up confined", journal.FieldUnit, j.d.Unit, "err", err)
		}
		return
	}
	wasConfined := !j.fresh || j.d.Record.Before.Confined
	if wasConfined {
		l.putBackPolicy(ctx, j, back, saved)
		l.restoreAccepted(ctx, j, claim{unit: j.d.Unit, held: true}) // it is about to be
	}
	var loaded []string
	for _, c := range j.o.Policy.Compiled {
		loaded = append(loaded, sortedNames(c)...)
	}
	for _, name := range j.before.Stays {
		if !slices.Contains(loaded, name) && l.handOver(j.d.Unit, name) == "" {
			j.stay(name, errStays) // unless it can be unloaded by now
		}
	}
	waited := j.waited()
	start := !j.stopped && (waited || j.restarted && (j.d.Record.Before.Running || !j.fresh)) // what somebody has stopped stays so
	if start && !wasConfined && (waited || l.byPath(loaded)) {
		err := l.startWithout(ctx, j, func() { l.putBackPolicy(ctx, j, back, saved) })
		if j.up = err == nil; err != nil && !j.waits {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachFailed, "%s does not start again either: %v", j.d.Unit, err).
				WithNext("journalctl -u "+j.d.Unit))
		}
		return
	}
	if start {
		if err := l.startAgain(ctx, j); err != nil {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachFailed, "%s does not start again either: %v", j.d.Unit, err).
				WithNext("journalctl -u "+j.d.Unit))
		}
		if wasConfined {
			l.stopUnlessCarried(ctx, j)
		}
	}
	if !wasConfined {
		l.putBackPolicy(ctx, j, back, saved)
	}
}

// byPath reports whether one of the profiles attaches to a path by itself: a
// start while it is loaded puts it on, whatever the unit's settings say.
func (l *Loop) byPath(profiles []string) bool {
	return slices.ContainsFunc(profiles, func(name string) bool {
		return slices.ContainsFunc(l.apparmor.ByName(name), func(p attach.Profile) bool { return p.Attachment != "" })
	})
}

// stopToStart stops a unit that is to be started again, also by the next daemon
// if this one is killed in between. So is what goes down with it.
func (l *Loop) stopToStart(ctx context.Context, j *job) error {
	j.d.Record.Stopped, j.d.Record.Dragged = true, j.dragged()
	l.remember(j.d.Record)
	return l.systemd.Stop(ctx, j.d.Unit)
}

// tryRestart restarts a unit that runs. What goes down with it is on record before: where
// the restart fails it is started by the undo, or by the next daemon.
func (l *Loop) tryRestart(ctx context.Context, j *job) error {
	if along := j.dragged(); !slices.Equal(along, j.d.Record.Dragged) {
		j.d.Record.Dragged = along
		l.remember(j.d.Record)
	}
	return l.systemd.TryRestart(ctx, j.d.Unit)
}

// startWithout starts a unit anew, and unloads what it must not find again
// while it is down. A unit that failed under a profile which stays loaded, and would be
// put on again, is not started: it waits. One that is detached, and that somebody has
// started by hand while it waited, is not stopped to wait again. What a stop takes along
// and a start does not bring back is left to the caller (startDragged).
func (l *Loop) startWithout(ctx context.Context, j *job, unload func()) error {
	err := l.stopToStart(ctx, j)
	unload()
	if err != nil {
		return err
	}
	failed := j.d.Attachment != nil || j.before.Attaching || len(j.before.Stays) > 0 && !j.o.Unit.Active()
	if j.waits = failed && l.byPath(slices.Collect(maps.Keys(j.stays))); j.waits {
		return errStays
	}
	return l.systemd.Start(ctx, j.d.Unit)
}

// errStays says that a unit is not started since a profile stays loaded.
var errStays = errors.New("the profile stays loaded")

// startAllDragged starts what went down with the units that an undo has started again, when
// it has come to its end with all of them: what is to be down is so by then.
func (l *Loop) startAllDragged(ctx context.Context, started, jobs []*job) {
	started = slices.DeleteFunc(slices.Clone(started), func(j *job) bool { return !j.up })
	eachAll(started, func(j *job) {
		j.up = false
		_ = l.startDragged(ctx, j, jobs) // the end of the daemon shows by ctx
	})
}

// startDragged starts what went down with a unit. What is up stays as it is, also where it
// is to be down, and one that does not start is told and not tried again. jobs are those of
// the pass that have come to their end. An error is the end of the daemon.
func (l *Loop) startDragged(ctx context.Context, j *job, jobs []*job) error {
	for _, other := range j.dragged() {
		u, err := l.systemd.Observe(ctx, other)
		if err == nil && u.ActiveState == "active" {
			continue // it may even refuse to be started (RefuseManualStart=)
		}
		if l.staysDown(other, jobs) {
			continue
		}
		err = l.systemd.Start(ctx, other)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			l.log.Error(other+" was stopped with "+j.d.Unit+" and does not start again", journal.FieldUnit, j.d.Unit, "err", err)
			j.out.Notes = append(j.out.Notes, attach.Because(attach.RestartDrags, "%s was stopped with %s and does not start again: %v", other, j.d.Unit, err).
				WithNext("journalctl -u "+other))
		}
	}
	return nil
}

// staysDown reports whether a unit is not to be started with another one: one of these jobs
// leaves it down, or it waits for a profile to be unloaded.
func (l *Loop) staysDown(unit string, jobs []*job) bool {
	if i := slices.IndexFunc(jobs, func(j *job) bool { return j.d.Unit == unit }); i >= 0 {
		j := jobs[i]
		if j.down || j.waits || j.stuck || j.stopped {
			return true
		}
		if !j.held() && !j.over {
			return false // its record is yet to say how it is
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[unit]
	return r.Stopped && len(r.Stays) > 0
}

// dragged lists what a stop or a restart of the unit takes along, or took along where it
// was cut off or the unit is down since. What is to be down itself is none of it.
func (j *job) dragged() []string {
	all := slices.Concat(j.o.Unit.RestartsWith, j.before.Dragged)
	all = slices.DeleteFunc(all, func(unit string) bool { return slices.Contains(j.leaves, unit) })
	slices.Sort(all)
	return slices.Compact(all)
}

// stopUnlessCarried sees to it that a unit that was confined before is not left
// running without the profile it had.
func (l *Loop) stopUnlessCarried(ctx context.Context, j *job) {
	former := asBefore(attach.Desired{Unit: j.d.Unit, Attachment: j.d.Attachment, Record: j.before}, cmp.Or(j.before.Profile, j.d.Profile), j.before.Accepted)
	for begun := time.Now(); ; {
		o, err := l.observe(ctx, former, quick)
		if err == nil && (!o.Unit.Active() || carries(former, o)) {
			return
		}
		starting := err == nil && o.Scan != nil && slices.ContainsFunc(o.Scan.Tasks, func(t attach.Task) bool { return t.InTransit })
		if !starting || ctx.Err() != nil || time.Since(begun) > passing {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	if err := l.systemd.Stop(ctx, j.d.Unit); err != nil {
		l.log.Error("cannot stop a unit that does not come up confined again", journal.FieldUnit, j.d.Unit, "err", err)
	}
	j.up, j.down = false, true
	j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachFailed, "%s was confined before and does not come up so again; it stays down", j.d.Unit).
		WithNext("journalctl -u "+j.d.Unit))
}

// startAgain brings a unit up without the profile, or with its former one:
// what still runs under the failed one is restarted, what ended is started. What went
// down with it, with a stop or when its restart failed, follows (startAllDragged).
func (l *Loop) startAgain(ctx context.Context, j *job) error {
	unit := j.d.Unit
	u, err := l.systemd.Observe(ctx, unit)
	if err != nil {
		return err
	}
	if u.ActiveState == "active" || u.ActiveState == "reloading" {
		err := l.tryRestart(ctx, j)
		j.up = err == nil
		return err
	}
	// Whatever systemd is still trying belongs to the failed start. For the end of what is
	// on its way down the start waits by itself (service_start in systemd's service.c; seen
	// on 252), and a stop would take others along.
	if u.Active() && u.ActiveState != "deactivating" {
		if err := l.stopToStart(ctx, j); err != nil {
			return err
		}
	}
	err = l.systemd.Start(ctx, unit)
	j.up = err == nil
	return err
}

func (l *Loop) putBackPolicy(ctx context.Context, j *job, back []*job, saved map[string]Saved) {
	for _, c := range j.o.Policy.Compiled {
		used, alike := l.usedByOthers(j.d.Unit, back, c)
		if alike {
			continue
		}
		if s := saved[c.File]; s != nil {
			stays, err := s.Restore(ctx)
			for name, why := range stays {
				j.stay(name, why)
			}
			if err != nil {
				j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "the policy that was loaded from %s stays: %v", c.File, err).At(c.File))
				for _, name := range j.d.Record.Loaded {
					if _, of := c.Checksums[name]; of && !slices.Contains(j.before.Loaded, name) {
						j.stay(name, err)
					}
				}
				continue
			}
			l.forgetPrints(sortedNames(c))
			j.d.Record.Loaded, j.d.Record.Softened = j.before.Loaded, j.before.Softened
		}
		if j.fresh && !j.d.Record.Before.Confined && !used {
			l.unloadCutOff(ctx, j, c)
		}
	}
}

// restoreAccepted makes live again what was accepted for a unit before the pass,
// where somebody has taken it away meanwhile, or what counts in its place.
func (l *Loop) restoreAccepted(ctx context.Context, j *job, own claim) {
	if l.inPlace(j.before.Accepted) {
		return
	}
	was := j.d
	was.Record = j.before
	accepted, policies := l.counting(own, was)
	if l.inPlace(accepted) {
		return
	}
	var load []attach.Compiled
	for _, c := range policies {
		if k, err := l.policies.Get(c.ID); err == nil {
			load = append(load, k.Part(c.Defines))
		}
	}
	if len(load) == 0 {
		return
	}
	failed := l.load(ctx, load)
	for file, err := range failed {
		j.out.Notes = append(j.out.Notes, attach.Because(attach.ProfileNotLoaded, "%v", err).At(file))
	}
	if len(failed) < len(load) {
		l.log.Warn("put back the policy of "+j.d.Unit+": the kernel did not have what was accepted for it", journal.FieldMessageID, string(journal.MsgPolicyHealed),
			journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.before.Profile)
	}
}

// unloadCutOff unloads what an attach that was cut off had loaded: it was there
// already when this one began.
func (l *Loop) unloadCutOff(ctx context.Context, j *job, c attach.Compiled) {
	of := func(name string) bool { _, ok := c.Checksums[name]; return ok }
	failed := l.unload(ctx, slices.DeleteFunc(slices.Clone(j.before.Loaded), func(name string) bool { return !of(name) }))
	j.before.Loaded = slices.DeleteFunc(j.before.Loaded, func(name string) bool {
		if err := failed[name]; err != nil {
			j.stay(name, err)
			return false
		}
		return of(name)
	})
	j.d.Record.Loaded = j.before.Loaded
}

// stay notes that a profile could not be unloaded.
func (j *job) stay(name string, why error) {
	if j.stays == nil {
		j.stays = map[string]error{}
	}
	j.stays[name] = why
}

// unloadLeft tries once more to unload what the undo of each of these units had to
// leave loaded, now that all of them have left it. What a task carries all the same
// stays on their records, and is tried again.
func (l *Loop) unloadLeft(ctx context.Context, back []*job) {
	var names []string
	for _, j := range back {
		for name := range j.stays {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return
	}
	slices.Sort(names)
	failed := l.apparmor.Unload(ctx, slices.Compact(names))
	for _, j := range back {
		for _, name := range slices.Sorted(maps.Keys(j.stays)) {
			for _, r := range []*attach.Record{&j.before, &j.d.Record} {
				r.Loaded = slices.DeleteFunc(slices.Clone(r.Loaded), func(n string) bool { return n == name })
				if failed[name] != nil {
					r.Loaded = append(r.Loaded, name)
				}
			}
			delete(j.stays, name)
			if err := failed[name]; err != nil {
				j.stay(name, err)
				j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "%v", err))
			}
		}
		if j.waits && !l.byPath(slices.Collect(maps.Keys(j.stays))) {
			l.endWait(ctx, j)
		}
	}
}

// noteWait says that a unit stays down.
func (j *job) noteWait() {
	what := strings.Join(append([]string{j.d.Unit}, j.dragged()...), " and ")
	j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "%s will not be started before %s is unloaded, which the start would put on", what,
		strings.Join(slices.Sorted(maps.Keys(j.stays)), ", ")).WithNext("aaunitctl status "+j.d.Unit))
}

// tellWait tells that a unit without an attachment stays down, in the journal once.
func (l *Loop) tellWait(j *job) {
	why := j.out.Notes[len(j.out.Notes)-1]
	told := false
	l.publish(j.d.Unit, func(s *attach.Status) {
		told = slices.Contains(s.Notes, why)
		s.Notes = j.out.Notes
	})
	if told {
		return
	}
	l.log.Warn(why.Detail, journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Record.Profile)
}

// endWait starts a unit that was down for a profile which has gone by now. What went down
// with it follows (startAllDragged).
func (l *Loop) endWait(ctx context.Context, j *job) {
	j.waits, j.up = false, true
	if l.runs(ctx, j.d.Unit) {
		return
	}
	if err := l.systemd.Start(ctx, j.d.Unit); err != nil {
		j.up = false
		j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachFailed, "%s does not start again either: %v", j.d.Unit, err).
			WithNext("journalctl -u "+j.d.Unit))
	}
}

// wait puts on a record what the undo of the unit had to leave, and whether the unit is
// down for it.
func (l *Loop) wait(j *job, r *attach.Record) {
	var dragged []string
	if j.waits {
		dragged = j.dragged()
	}
	r.Stays, r.Stopped, r.Dragged = slices.Sorted(maps.Keys(j.stays)), j.waits, dragged
	for _, why := range j.stays {
		l.unloadAgain(j.d.Unit, why)
	}
}

// unloadHeld tries again to unload what the undo of attaches that are held had to leave.
func (l *Loop) unloadHeld(ctx context.Context, jobs []*job) {
	var again []*job
	for _, j := range jobs {
		if j.held() && j.plan.Has(attach.UnloadPolicy) && ctx.Err() == nil {
			again = append(again, j)
		}
	}
	l.unloadPolicies(ctx, again)
	for _, j := range again {
		l.handOverLeft(j)
	}
	records, ended := map[*job]attach.Record{}, map[*job]bool{}
	for _, j := range again {
		l.mu.Lock()
		r := l.records[j.d.Unit].Clone()
		l.mu.Unlock()
		stays := func(name string) bool { return j.stays[name] != nil }
		r.Loaded = slices.DeleteFunc(r.Loaded, func(name string) bool { return slices.Contains(r.Stays, name) && !stays(name) })
		r.Stays = slices.DeleteFunc(r.Stays, func(name string) bool { return !stays(name) })
		records[j] = r
		switch {
		case r.Stopped && j.o.Unit.Active():
			j.up, ended[j] = true, true // somebody has started it
		case r.Stopped && !l.byPath(r.Stays):
			l.endWait(ctx, j)
			ended[j] = true
		}
	}
	l.startAllDragged(ctx, again, jobs)
	for _, j := range again {
		r := records[j]
		if ended[j] {
			if ctx.Err() != nil {
				continue // the record stays, and the next daemon goes on
			}
			r.Stopped, r.Dragged = false, nil
		}
		l.remember(r)
		l.publish(j.d.Unit, func(s *attach.Status) { s.Notes = j.out.Notes })
	}
}

// passesByItself reports whether what kept a profile loaded passes by itself.
func passesByItself(err error) bool {
	var p interface{ Passes() bool }
	return errors.As(err, &p) && p.Passes()
}

// unloadLater is how long a unit is left alone of which a profile could not be unloaded
// for a reason that passes by itself.
const unloadLater = 15 * time.Second

// unloadAgain has a unit looked at again in a while, where that may help. What else
// keeps a profile loaded is looked at with the next change, and with the slow re-check.
func (l *Loop) unloadAgain(unit string, why error) {
	if !passesByItself(why) {
		return
	}
	l.later(l.again, unit, unloadLater, inputChanged)
}

// unloadsAgain reports whether a profile of the unit could not be unloaded and that is tried
// again in a moment.
func (l *Loop) unloadsAgain(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.again[unit]
}

// later marks a unit for a while, and puts it into the queue again then.
func (l *Loop) later(marked map[string]bool, unit string, wait time.Duration, why cause) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if marked[unit] {
		return
	}
	marked[unit] = true
	time.AfterFunc(wait, func() {
		l.mu.Lock()
		delete(marked, unit)
		l.mu.Unlock()
		l.queue.add(why, unit)
	})
}

// usedByOthers reports whether another attached unit that did not fail runs under a
// profile of the file, and whether what was accepted for it is this policy.
func (l *Loop) usedByOthers(unit string, back []*job, c attach.Compiled) (used, alike bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, r := range l.records {
		if _, ours := c.Checksums[r.Profile]; ours && other != unit && len(r.DropIns) > 0 && (r.Hold == nil || r.Hold.OnlyText()) &&
			!slices.ContainsFunc(back, func(b *job) bool { return b.d.Unit == other && !b.stuck }) {
			used = true
			alike = alike || len(replaced([]attach.Compiled{c}, policiesOf(l.policies, r.Policies))) == 0
		}
	}
	return used, alike
}

// settleUndo is step 6, and says what the unit is now.
func (l *Loop) settleUndo(ctx context.Context, j *job, op *operation) {
	j.out.Undone = true
	var u attach.Unit
	var err error
	if !attach.IsPattern(j.d.Unit) {
		u, err = l.systemd.Observe(ctx, j.d.Unit)
	}
	ran := j.d.Record.Before.Running || j.waited() || !j.fresh && j.o.Unit.Active()
	switch {
	case !j.restarted && !j.waited():
		j.event(attach.StepUndo, attach.Done, "%s was not touched; what had been changed for it was taken back", j.d.Unit)
	case err != nil:
		j.event(attach.StepUndo, attach.Warned, "what had been changed for %s was taken back; systemd did not tell in what state it is", j.d.Unit)
	case ran && !u.Active():
		j.event(attach.StepUndo, attach.Failed, "what had been changed for %s was taken back; it ran before the attach, and is %s now", j.d.Unit, u.ActiveState)
	default:
		j.event(attach.StepUndo, attach.Done, "%s is %s, as it was before the attach", j.d.Unit, u.ActiveState)
	}
	l.log.Error("attach of "+j.d.Unit+" failed and was undone: "+whyFailed(j.failed), journal.FieldMessageID, string(journal.MsgAttachUndone),
		journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile, journal.FieldReason, string(j.failed[0].Code))
	if withdraw := op.withdrawal(j.d.Unit); withdraw != nil {
		if err := withdraw(); err != nil {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachmentBad, "the attachment could not be withdrawn: %v", err).At(j.d.Attachment.Source))
			l.hold(ctx, j)
			return
		}
		l.declare(ctx)
		switch {
		case l.target(j.d.Unit) != nil:
		case len(j.d.Record.DropIns)+len(j.d.Record.SocketUnits) > 0 || len(j.stays) > 0:
			// Not all could be taken back: the next trigger goes on. An attach whose
			// drop-ins are gone is over all the same.
			r := &j.d.Record
			r.Attaching = r.Attaching && len(r.DropIns) > 0
			l.wait(j, r)
			l.remember(*r)
			return
		default:
			l.forget(j.d.Unit)
			l.unpublish(j.d.Unit)
			return
		}
		l.wait(j, &j.before)
		l.remember(j.before)
		l.queue.add(inputChanged, j.d.Unit)
		return
	}
	if !j.fresh {
		// Back under the former attachment's terms, but not tried again.
		r := j.before
		r.Hold = j.d.Record.Hold
		j.d.Record = r
	}
	l.hold(ctx, j)
}

// leaveFor is how long what could not be put back is left alone: loading it is a
// change of policy itself. What the host was in the way of is tried again after that,
// and at least every maxLeave.
const (
	leaveFor = time.Minute
	maxLeave = attach.MaxAgain
)

// ofTheHost reports whether what failed may work another time, though nothing of the
// unit, its attachment or its policy has changed: a full disk, a systemd that does not
// answer.
func ofTheHost(c attach.Code) bool {
	switch c {
	case attach.DropInUnreadable, attach.ReloadNeeded, attach.SystemdUnheard, attach.PolicyNotKept:
		return true
	}
	return false
}

// tryAgain sees to it that a held attach is tried again.
func (l *Loop) tryAgain(unit string, at time.Time) {
	wait := time.Until(at)
	if (&attach.Hold{Again: at}).Over(time.Now()) {
		wait = 0
	}
	time.AfterFunc(wait, func() { l.queue.add(inputChanged, unit) })
}

// texts reads drop-ins of ours that are as we wrote them.
func (l *Loop) texts(files attach.Sums) map[string]string {
	out := map[string]string{}
	for _, path := range files.Paths() {
		done := l.onDisk()
		text, exists, err := l.systemd.ReadDropIn(path)
		done()
		if err == nil && exists && files.Of(path) == sum(text) {
			out[path] = text
		}
	}
	return out
}

// notPutBack tells of a unit whose accepted policy the kernel does not take back. It
// is tried again after a minute.
func (l *Loop) notPutBack(ctx context.Context, j *job) {
	l.log.Error("cannot put back the policy of "+j.d.Unit+": "+whyFailed(j.failed), journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit,
		journal.FieldProfile, j.d.Profile, journal.FieldReason, string(j.failed[0].Code))
	if !j.held() {
		j.d.Record = j.before
	}
	l.remember(j.d.Record)
	if !j.unread {
		l.backOff(j.d.Unit)
	}
	if attach.IsPattern(j.d.Unit) {
		l.publish(j.d.Unit, func(s *attach.Status) {
			s.Notes = slices.Concat(j.out.Notes, j.failed)
			if !j.held() {
				// No verdict says so.
				s.Notes, s.Refused = j.out.Notes, notHealed(j)
			}
		})
		return
	}
	v, o := l.judge(ctx, j.d, false)
	j.out.Verdict = &v
	l.stopViolator(ctx, j.d, j.before, &o, v, !j.unread)
	l.conclude(j.d, o, v)
	l.publish(j.d.Unit, func(s *attach.Status) { s.Notes = slices.Concat(j.out.Notes, j.failed) })
}

// notHealed says what somebody has made of an accepted policy, and why that could not be
// put back.
func notHealed(j *job) (out []attach.Reason) {
	for _, a := range j.heals() {
		out = append(out, a.Reason)
	}
	out = append(out, j.failed...)
	for i, r := range out {
		if r.Next == "" {
			out[i] = r.WithNext("journalctl -b -u aaunitd.service")
		}
	}
	return out
}

// backOff leaves the policy of a unit alone for a while.
func (l *Loop) backOff(unit string) { l.later(l.leave, unit, leaveFor, inputChanged) }

// sayHeld puts into the journal what became of a failed attach that is not
// undone.
func (l *Loop) sayHeld(j *job, what string) {
	l.log.Error("attach of "+j.d.Unit+" failed, and it is "+what+": "+whyFailed(j.failed), journal.FieldMessageID, string(journal.MsgAttachHeld),
		journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile, journal.FieldReason, string(j.failed[0].Code))
}

// hold keeps the attach from being tried again, and tells the truth about the
// unit as it is now.
func (l *Loop) hold(ctx context.Context, j *job) {
	r := &j.d.Record
	if r.Profile != j.d.Profile {
		r.Proved = "" // under the former profile
	}
	r.Unit, r.Attachment, r.Profile = j.d.Unit, j.d.Attachment.Source, j.d.Profile
	r.RestartUnit = j.d.Attachment.RestartUnit
	r.Attaching, r.Former, r.Trial = false, nil, nil
	l.wait(j, r)
	r.Hold = &attach.Hold{Inputs: inputs(j), Reasons: j.failed, Since: time.Now()}
	if len(r.DropIns) > 0 && !j.fresh {
		r.Hold.Former, r.Hold.DropIns = j.d.Profile, l.texts(r.DropIns)
		if j.out.Undone {
			r.Hold.Former = cmp.Or(j.before.Profile, j.d.Profile)
		}
	}
	if !j.restarted && !slices.ContainsFunc(j.failed, func(r attach.Reason) bool { return !ofTheHost(r.Code) }) {
		// Twice as long each time, up to an hour.
		if was := j.heldBefore; was != nil && !was.Again.IsZero() {
			r.Hold.Since = was.Since
		}
		r.Hold.Again = time.Now().Add(min(max(leaveFor, time.Since(r.Hold.Since)), maxLeave))
		l.tryAgain(r.Unit, r.Hold.Again)
	}
	l.remember(*r)
	if attach.IsPattern(j.d.Unit) {
		l.publish(j.d.Unit, func(s *attach.Status) { s.Notes = j.out.Notes })
		return
	}
	v, o := l.judge(ctx, j.d, false)
	j.out.Verdict = &v
	l.conclude(j.d, o, v)
	l.publish(j.d.Unit, func(s *attach.Status) { s.Notes = j.out.Notes })
}

// finishDetached is step 9.
func (l *Loop) finishDetached(ctx context.Context, jobs []*job) {
	var done []*job
	for _, j := range jobs {
		if j.d.Attachment != nil || j.over {
			continue
		}
		if j.failed = append(j.failed, j.left...); len(j.failed) > 0 {
			j.out.Reasons, j.out.Exit = j.failed, attach.ExitFailed
		}
		if len(j.d.Record.DropIns)+len(j.d.Record.SocketUnits) > 0 {
			// Not all was taken back: the record stays, and the next trigger
			// goes on.
			l.remember(j.d.Record)
			continue
		}
		if ctx.Err() != nil {
			continue // the record stays, and the next start goes on
		}
		done = append(done, j)
	}
	l.unloadHeld(ctx, jobs)
	l.unloadPolicies(ctx, done)
	for _, j := range done {
		if slices.ContainsFunc(slices.Collect(maps.Values(j.stays)), passesByItself) {
			l.remember(j.d.Record) // it is tried again
			continue
		}
		l.handOverLeft(j)
		l.bequeath(j.d)
		l.forget(j.d.Unit)
		l.unpublish(j.d.Unit)
		l.log.Info(j.d.Unit+" is detached", journal.FieldMessageID, string(journal.MsgDetached), journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Record.Profile)
	}
}

// heir finds another unit that is attached to the profile, or whose policy it belongs to
// (AllowProfiles=, the same file).
func (l *Loop) heir(unit, profile string) (r attach.Record, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, r := range l.records {
		_, accepted := r.Accepted[profile]
		if other != unit && (accepted || r.Profile == profile || strings.HasPrefix(r.Profile, profile+"//")) && len(r.DropIns) > 0 {
			return r.Clone(), true
		}
	}
	return attach.Record{}, false
}

// handOver leaves the duty to unload a profile one day to another unit.
func (l *Loop) handOver(unit, profile string) string {
	r, ok := l.heir(unit, profile)
	if ok && !slices.Contains(r.Loaded, profile) {
		r.Loaded = append(r.Loaded, profile)
		l.remember(r)
	}
	return r.Unit
}

// handOverLeft does so with what unloadPolicies left to others. The pass may have changed
// their records until then.
func (l *Loop) handOverLeft(j *job) {
	for _, name := range j.toUnload() {
		if other := l.handOver(j.d.Unit, name); other != "" {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "%s is attached to %s too", other, name))
		}
	}
}

// toUnload lists what is yet to be unloaded of what an attachment had loaded, and was not
// tried in this pass.
func (j *job) toUnload() (names []string) {
	for _, a := range j.plan.Actions {
		if a.Kind == attach.UnloadPolicy && slices.Contains(j.d.Record.Loaded, a.Target) && j.stays[a.Target] == nil {
			names = append(names, a.Target)
		}
	}
	return names
}

// unloadPolicies takes back what attachments had loaded and nobody else needs, once, and all
// together: whether a task carries one of the profiles takes a look at every task of the host.
func (l *Loop) unloadPolicies(ctx context.Context, jobs []*job) {
	type target struct {
		j    *job
		name string
	}
	var targets []target
	var names []string
	for _, j := range jobs {
		for _, name := range j.toUnload() {
			if _, needed := l.heir(j.d.Unit, name); !needed {
				targets, names = append(targets, target{j, name}), append(names, name)
			}
		}
	}
	if len(names) == 0 {
		return
	}
	failed := l.unload(ctx, names)
	for _, t := range targets {
		if err := failed[t.name]; err != nil {
			t.j.out.Notes = append(t.j.out.Notes, attach.Because(attach.UnloadSkipped, "%v", err))
			t.j.event(attach.StepPolicy, attach.Skipped, "profile %s stays loaded: %v", t.name, err)
			t.j.stay(t.name, err)
			l.unloadAgain(t.j.d.Unit, err)
			continue
		}
		t.j.d.Record.Loaded = slices.DeleteFunc(slices.Clone(t.j.d.Record.Loaded), func(name string) bool { return name == t.name })
		t.j.out.Changed = true
		t.j.event(attach.StepPolicy, attach.Done, "profile %s unloaded", t.name)
	}
}

// bequeath leaves the duty to load a file as its text says to another unit that
// still wants it in complain mode.
func (l *Loop) bequeath(d attach.Desired) {
	for _, file := range d.Record.Softened {
		heir := l.wantedBy(d.Unit, attach.WishComplain, namesIn(l.apparmor, []string{file}), nil)
		l.mu.Lock()
		r, ok := l.records[heir]
		r = r.Clone()
		l.mu.Unlock()
		if ok && !slices.Contains(r.Softened, file) {
			r.Softened = append(r.Softened, file)
			l.remember(r)
		}
	}
}

// eachAll calls f for every job at once and waits.
func eachAll(jobs []*job, f func(*job)) {
	done := make(chan struct{})
	for _, j := range jobs {
		go func() {
			defer func() { done <- struct{}{} }()
			f(j)
		}()
	}
	for range jobs {
		<-done
	}
}
