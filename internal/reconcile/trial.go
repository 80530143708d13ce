package reconcile

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// A changed policy goes live under a running unit without a restart. It is on trial then:
// the unit must stay the same start, healthy and without new denials, for as long as
// SettleSec= says. One that had ended before and waits to be started again is watched
// from that start on. A denial counts where a profile that changed denied it, or one that
// the change may have led to, and the policy that was accepted before would not have
// (novelty), and where the process's control group told that it is the unit's: whoever
// may run a program can have one denied something under the unit's profile, and must not
// undo its policy by that. Else the policy that was accepted before is made live again,
// for all units that share the file, and the changed text is held. The trial is on
// record, so one that is cut off is gone through again, unless the attach of the unit
// fails before (endTrial). So is what a unit had that is not watched, or no longer, while
// another one is on trial under the same policy: it goes back with that one.

// tryPolicy watches a unit under a changed policy.
// spoiled is set when one of the units of the pass fails: the others, who may be
// under the same policy, are not waited for then.
func (l *Loop) tryPolicy(ctx context.Context, j *job, spoiled *atomic.Bool) {
	t := j.d.Record.Trial
	heard := t.Since                           // from when on all has to be heard
	if now := time.Now(); t.Since.After(now) { // it was cut off, and the clock was ahead
		trial := *t
		trial.Since, heard = now, time.Time{}
		t, j.d.Record.Trial = &trial, &trial
	}
	j.event(attach.StepPolicy, attach.Running, "watching %s under the changed policy", j.d.Unit)
	novel := l.noveltyOf(j)
	ended := false
	denied := func() string {
		if ended = spoiled.Load(); ended {
			return "is not waited for any longer"
		}
		if j.d.Asked && !j.unattended {
			return "" // for whoever asks to decide
		}
		if against, _ := novel.since(ctx, t.Since); len(against) > 0 {
			return "was denied what it was not denied under the accepted one: " + against[0].String()
		}
		return ""
	}
	anew := func(s attach.Start) {
		trial := *t
		trial.Unit = s
		j.d.Record.Trial = &trial
		l.remember(j.d.Record)
	}
	why, err := l.watch(ctx, j.d.Unit, t.Unit, j.d.Attachment.Settle, unhealthyOnTrial, denied, anew)
	switch {
	case ctx.Err() != nil, err != nil:
		j.over = true // neither good nor bad: the next trigger goes on
	case ended:
		j.over = true
		l.queue.add(inputChanged, j.d.Unit) // if it was under another policy the trial goes on
	case why != "":
		spoiled.Store(true)
		j.since = t.Since
		j.tried = true
		j.fail(attach.StepPolicy, attach.Because(attach.PolicyUndone, "under the changed policy %s", why).At(j.out.File).WithNext("journalctl -u "+j.d.Unit))
	default:
		if why := l.denials.gap(heard); why != "" {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.Denied, "what the changed policy denied may not all have been heard: %s", why))
		}
		if !j.d.Asked || j.unattended {
			_, may := novel.since(ctx, t.Since)
			j.noteUncounted(may)
		}
		l.denials.tried(j.d.Unit, t.Since.Add(-behind), true)
		if j.d.Record.Trial.Unit.Restarting {
			j.event(attach.StepPolicy, attach.Warned, "%s was not started within %s, so how it does under the changed policy is not known", j.d.Unit, seconds(j.d.Attachment.Settle))
			return
		}
		j.event(attach.StepPolicy, attach.Done, "%s stayed healthy for %s under the changed policy", j.d.Unit, seconds(j.d.Attachment.Settle))
	}
}

// unhealthyOnTrial is unhealthy, but that a unit which somebody has stopped may fail at it,
// as programs do that end with a status of their own on SIGTERM.
func unhealthyOnTrial(first attach.Start, now attach.Unit) string {
	if !now.Active() && now.TakenDown() {
		now.ActiveState, now.Result = "inactive", "success"
	}
	return unhealthy(first, now)
}

// noteUncounted tells of what was denied under the changed policy and did not count.
// Which process it was may not be known: anybody may have started it under the unit's
// profile.
func (j *job) noteUncounted(may []uncounted) {
	for i, d := range may {
		if i == maxTold {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.Denied, "%d more denials that were not counted", len(may)-i))
			return
		}
		j.out.Notes = append(j.out.Notes, attach.Because(attach.Denied, "under the changed policy, but not counted, as %s: profile %s: %s", d.why, d.Profile, d).
			WithNext("aaunitctl denials "+j.d.Unit))
	}
}

// settleTrials ends the trials that have come to their end. What a unit had before stays on
// its record as long as another one is on trial under a policy that they share, or where it
// has just failed so: they go back together.
func (l *Loop) settleTrials(jobs []*job) {
	of := map[string]*job{}
	for _, j := range jobs {
		of[j.d.Unit] = j
	}
	l.mu.Lock()
	tried := map[string]attach.Compiled{} // and what was before, by ID
	for unit, r := range l.records {
		if j := of[unit]; r.Trial.GoesOn() && (j == nil || !j.alive()) {
			for _, c := range slices.Concat(policiesOf(l.policies, r.Policies), policiesOf(l.policies, r.Trial.Policies)) {
				tried[c.ID] = c
			}
		}
	}
	shared := slices.Collect(maps.Values(tried))
	var over []attach.Record
	for unit, r := range l.records {
		if j := of[unit]; r.Trial != nil && r.Trial.Over && (j == nil || j.over) && !concerns(r, shared) {
			r = r.Clone()
			r.Trial = nil
			over = append(over, r)
		}
	}
	l.mu.Unlock()
	for _, r := range over {
		l.remember(r)
	}
	for _, j := range jobs {
		switch r := &j.d.Record; {
		case r.Trial == nil || !j.alive():
		case concerns(*r, shared):
			r.Trial = r.Trial.Ended()
		default:
			r.Trial = nil
		}
	}
}

// undoTrials goes back to the policies that were accepted before, and gives what it comes
// from and what it goes back to, by file. Whose attach is undone as well (back) did not
// come under the changed policy to stay, and is left to that.
func (l *Loop) undoTrials(ctx context.Context, failed, back, jobs []*job) (undone, was map[string]string) {
	undone = map[string]string{} // file -> ID that it comes from
	why := map[string]*job{}     // file -> because of whom
	var again []attach.Compiled  // what is gone back to, one policy of a name
	undo := func(e exchange, j *job) {
		for _, c := range e.now {
			undone[c.File] = cmp.Or(undone[c.File], c.ID)
			why[c.File] = cmp.Or(why[c.File], j)
		}
		_, more := parted(e.before, again, overlap)
		again = append(again, more...)
		for _, k := range e.before {
			why[k.File] = cmp.Or(why[k.File], j)
		}
	}
	for _, j := range failed {
		for _, e := range l.replaced(j.d.Record.Policies, j.d.Record.Trial.Policies) {
			undo(e, j)
		}
	}
	// Where a package has made one file of two, or two of one, others come from more texts
	// than who failed, or go back to more. What goes live again takes the place of theirs, too.
	for n := -1; n < len(undone); {
		n = len(undone)
		for _, r := range l.changed() {
			for _, e := range l.replaced(r.Policies, hadBefore(r)) {
				goes := func(c attach.Compiled) bool { return undone[c.File] == c.ID }
				comes := func(k attach.Compiled) bool {
					return slices.ContainsFunc(e.now, func(c attach.Compiled) bool { return undone[c.File] == "" && c.ID != k.ID && overlap(c, k) })
				}
				if i := slices.IndexFunc(e.now, goes); i >= 0 {
					undo(e, why[e.now[i].File])
				} else if i := slices.IndexFunc(again, comes); i >= 0 {
					undo(e, why[again[i].File])
				}
			}
		}
	}
	was = idsOf(again)
	under := l.sharing(undone)
	var load []attach.Compiled
	bad := map[string]error{}
	for _, file := range slices.Sorted(maps.Keys(was)) {
		k, err := l.policies.Get(was[file])
		if err != nil {
			bad[file] = err
			continue
		}
		// What else is in the same file as the earlier text may have a newer one by now, in a
		// file of its own.
		if others := l.liveForOthers(k, under); len(others) > 0 {
			k = k.Part(func(profile string) bool { return !slices.Contains(others, profile) })
			if len(k.Checksums) == 0 {
				continue
			}
		}
		load = append(load, k)
	}
	if len(load) > 0 {
		maps.Copy(bad, l.load(ctx, load))
	}
	for file, err := range bad {
		l.log.Error("cannot make the accepted policy live again", journal.FieldFile, file, "err", err)
		why[file].out.Notes = append(why[file].out.Notes, attach.Because(attach.PolicyNotKept, "the policy that was accepted before could not be made live again: %v", err).At(file))
	}
	eachAll(jobs, func(j *job) {
		if t := j.d.Record.Trial; t.GoesOn() && slices.ContainsFunc(slices.Collect(maps.Keys(undone)), func(file string) bool { return j.d.Record.Policies[file] == undone[file] }) {
			l.startAfterTrial(ctx, j)
		}
	})
	l.startAllDragged(ctx, jobs, jobs)
	if ctx.Err() != nil {
		return undone, was // the trial is on record
	}
	jobOf := map[string]*job{}
	for _, j := range jobs {
		jobOf[j.d.Unit] = j
	}
	for _, unit := range under {
		switch j := jobOf[unit]; {
		case slices.Contains(back, j):
		case l.settled(unit):
			l.goBack(ctx, unit, j, undone, was, why)
		default:
			l.mu.Lock()
			r := l.records[unit].Clone()
			l.mu.Unlock()
			l.hasBefore(&r, undone, was)
			l.remember(r)
		}
	}
	for _, r := range l.loadedOver(undone) {
		if !slices.Contains(under, r.Unit) {
			d, _ := l.desired(r.Unit) // without a good name it runs under that of its record
			l.restoreAccepted(ctx, &job{d: d, before: r, out: &attach.Outcome{}}, l.claimOf(d.Record))
			l.queue.add(inputChanged, r.Unit) // its verdict changes
		}
	}
	return undone, was
}

// liveForOthers lists the profiles of which the kernel has another policy than this one, that
// was accepted for a unit which needs it. The units that go back do not count.
func (l *Loop) liveForOthers(c attach.Compiled, back []string) (profiles []string) {
	live, err := l.apparmor.Live(sortedNames(c))
	if err != nil {
		return nil // they have to be live again
	}
	sums := map[string]string{}
	for name, p := range live {
		sums[name] = p.Checksum
	}
	others := differing(c.Checksums, sums)
	isOf := func(r attach.Record, profile string) bool {
		return r.Accepted[profile] != "" && !slices.Contains(differing(r.Accepted, sums), profile)
	}
	var units []attach.Desired
	l.mu.Lock()
	for unit, r := range l.records {
		if settled(r) && !slices.Contains(back, unit) && slices.ContainsFunc(others, func(profile string) bool { return isOf(r, profile) }) {
			d, _ := l.desiredAt(unit, time.Now()) // without a good name it runs under that of its record
			units = append(units, d)
		}
	}
	l.mu.Unlock()
	return slices.DeleteFunc(others, func(profile string) bool {
		return !slices.ContainsFunc(units, func(d attach.Desired) bool { return isOf(d.Record, profile) && l.needs(d, profile) })
	})
}

// changed are the records that know what was accepted for their units before, by unit.
func (l *Loop) changed() (all []attach.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, unit := range slices.Sorted(maps.Keys(l.records)) {
		if r := l.records[unit]; hadBefore(r) != nil {
			all = append(all, r)
		}
	}
	return all
}

// loadedOver finds the attached units over whose accepted policies these were loaded, but for
// those that are left alone. One that is refused did not come under the changed policy with
// the others, and nobody else would put back its own. Others keep theirs for another reason,
// as that their half of a file does not compile.
func (l *Loop) loadedOver(ids map[string]string) (all []attach.Record) {
	policies := policiesOf(l.policies, ids)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, unit := range slices.Sorted(maps.Keys(l.records)) {
		r := l.records[unit]
		if !settled(r) || !concerns(r, policies) || len(replaced(policies, policiesOf(l.policies, r.Policies))) == 0 {
			continue
		}
		if left, _ := l.aside(r); !left {
			all = append(all, r.Clone())
		}
	}
	return all
}

// startAfterTrial starts a unit again that failed under the changed policy, has failed and
// is on its way down, or ended under it and waits for systemd; so it does one that an undo
// which was cut off had stopped for that. One that somebody has stopped stays so, whether it
// failed at that or not, and what is starting or stopping goes on: that would cut off a
// oneshot at work.
func (l *Loop) startAfterTrial(ctx context.Context, j *job) {
	u, err := l.systemd.Observe(ctx, j.d.Unit)
	down := !u.Active() || u.ActiveState == "deactivating"
	ended := waitsForRestart(u) || down && u.Result != "success" && !u.TakenDown()
	was, ours := j.d.Record.Trial.Unit, j.d.Record.Stopped && !u.Active()
	if err != nil || !ours && (!was.Active || was.Restarting || !ended || u.InvocationID == "") { // nobody has started it in this boot
		return
	}
	if err := l.startAgain(ctx, j); err != nil {
		j.out.Notes = append(j.out.Notes, attach.Because(attach.AttachFailed, "%s does not start again either: %v", j.d.Unit, err).
			WithNext("journalctl -u "+j.d.Unit))
	}
}

// sharing lists the units on whose records one of these policies is.
func (l *Loop) sharing(policies map[string]string) (units []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for unit, r := range l.records {
		for file, id := range policies {
			if r.Policies[file] == id {
				units = append(units, unit)
				break
			}
		}
	}
	slices.Sort(units)
	return units
}

// savedSince reports whether one of the texts is another than it was in a pass, by file
// and ID: it has yet to be tried. Of files that the pass did not see it is not known.
func savedSince(texts []attach.Compiled, was map[string]string) bool {
	return slices.ContainsFunc(texts, func(c attach.Compiled) bool { id := was[c.File]; return id != "" && id != c.ID })
}

// idsOf gives the IDs of policies by file.
func idsOf(all []attach.Compiled) map[string]string {
	ids := map[string]string{}
	for _, c := range all {
		ids[c.File] = c.ID
	}
	return ids
}

// hadBefore gives what was accepted for a unit before it came under a policy that is on
// trial, or that somebody asked for on behalf of another one; nil where that is not known.
func hadBefore(r attach.Record) map[string]string {
	switch {
	case r.Trial != nil:
		return r.Trial.Policies
	case r.Lent != nil:
		return r.Lent.Policies
	}
	return nil
}

// policiesBefore gives the policies that a unit goes back to: those that it had itself, also
// where they say the same, and of what it had not those of the others. Theirs are what is
// live, so they count also where its own trial, as one that was cut off, began with an
// earlier text.
func (l *Loop) policiesBefore(r attach.Record, undone, was map[string]string) map[string]string {
	undoes := func(all []exchange, gone map[string]string) []exchange {
		return slices.DeleteFunc(all, func(e exchange) bool {
			return !slices.ContainsFunc(e.before, func(c attach.Compiled) bool { return gone[c.File] == c.ID })
		})
	}
	ids, gone := r.Policies, maps.Clone(undone)
	for _, e := range undoes(exchanges(policiesOf(l.policies, hadBefore(r)), policiesOf(l.policies, ids)), undone) {
		ids = exchanged(ids, []exchange{e})
		maps.Copy(gone, idsOf(e.now))
	}
	return exchanged(ids, undoes(l.replaced(was, ids), gone))
}

// hasBefore puts on a record what the unit goes back to.
func (l *Loop) hasBefore(r *attach.Record, undone, was map[string]string) {
	r.Policies = l.policiesBefore(*r, undone, was)
	r.Accepted = acceptedOf(l.policies, *r)
}

// goBack puts on a unit's record that it runs under the earlier policy again,
// and holds the changed text. j is the unit's job in this pass, nil where it has
// none.
func (l *Loop) goBack(ctx context.Context, unit string, j *job, undone, was map[string]string, why map[string]*job) {
	d, err := l.desired(unit)
	if err != nil || d.Attachment == nil {
		return
	}
	first := j
	r := &d.Record
	for file, id := range undone {
		if r.Policies[file] == id {
			first = why[file]
		}
	}
	l.hasBefore(r, undone, was)
	if r.Trial.GoesOn() {
		l.denials.tried(unit, r.Trial.Since.Add(-behind), false)
	}
	r.Trial, r.Stopped, r.Dragged = nil, false, nil
	if r.Hold == nil || r.Hold.OnlyText() { // one whose attach is held stays so
		r.Hold = &attach.Hold{Reasons: first.failed, Since: time.Now(), Former: r.Profile, Texts: undone}
		var seen attach.Observed
		if seen, err = l.observe(ctx, d, full); err == nil {
			r.Hold.Inputs = inputs(&job{d: d, o: seen})
			tried := maps.Clone(undone)
			if j != nil {
				maps.Copy(tried, idsOf(j.o.Policy.Texts))
			}
			if savedSince(seen.Policy.Texts, tried) {
				r.Hold.Inputs = "" // for the next plan
				l.queue.add(inputChanged, unit)
			}
		}
	}
	l.remember(*r)
	l.log.Error("the changed policy of "+unit+" was undone: "+whyFailed(first.failed), journal.FieldMessageID, string(journal.MsgPolicyUndone),
		journal.FieldUnit, unit, journal.FieldObjectUnit, unit, journal.FieldProfile, d.Profile, journal.FieldReason, string(first.failed[0].Code))
	if attach.IsPattern(unit) {
		l.publish(unit, func(*attach.Status) {})
		return
	}
	v, o := l.judge(ctx, d, false)
	l.conclude(d, o, v)
	if j != nil {
		j.d, j.verdict, j.seen, j.out.Verdict = d, v, o, &v
		if len(j.failed) == 0 || j.tried { // else it failed for a reason of its own
			j.out.Reasons, j.out.Exit, j.out.Undone = first.failed, attach.ExitFailed, true
			j.event(attach.StepUndo, attach.Done, "%s runs under the policy that was accepted before", unit)
		}
		l.publish(unit, func(s *attach.Status) { s.Notes = j.out.Notes })
	}
}
