package reconcile

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// conclude records a verdict and tells everybody who listens. A look that began
// before a later one ended, or before the unit was detached, says nothing.
func (l *Loop) conclude(d attach.Desired, o attach.Observed, v attach.Verdict) {
	l.mu.Lock()
	l.looked++
	l.mu.Unlock()
	old, current := l.tellVerdict(d, o, v)
	if !current {
		return
	}
	// That a unit is not running is no news about its confinement.
	gone := v.Answer == attach.Unknown && v.Tasks == 0 && !o.JustStarted
	if !gone && (old == nil || old.Answer != v.Answer || old.InvocationID != v.InvocationID) {
		l.sayVerdict(v)
	}
	// Neither is it about what an earlier look at the same start has seen.
	if ended := v.Tasks == 0 && old != nil && old.Answer != attach.Unknown && old.InvocationID == v.InvocationID; !gone && !ended {
		l.keepEvidence(d, o, v)
	}
	l.noteSockets(d, o, v)
}

// tellVerdict keeps a verdict and publishes it, before another one on the unit is kept
// and before the unit is forgotten. It gives back what keepVerdict does.
func (l *Loop) tellVerdict(d attach.Desired, o attach.Observed, v attach.Verdict) (old *attach.Verdict, current bool) {
	keeping := l.keeping.of(d.Unit)
	keeping.Lock()
	defer keeping.Unlock()
	old, current = l.keepVerdict(d, o, v)
	if current {
		l.publish(d.Unit, func(s *attach.Status) {
			s.Profile = d.Profile
			s.ActiveState = o.Unit.ActiveState
			s.Verdict = &v
		})
	}
	return old, current
}

// keepVerdict puts a verdict on the unit's record. It gives back the one before,
// and whether the new one is of any interest. The unit's lock of keeping is held.
func (l *Loop) keepVerdict(d attach.Desired, o attach.Observed, v attach.Verdict) (old *attach.Verdict, current bool) {
	shows := l.blamed(d, o, v).ShowsProfile(d)
	l.mu.Lock()
	r, remembered := l.records[d.Unit]
	_, attached := l.targets[d.Unit]
	shown := l.statusOf(d.Unit).Verdict
	if !remembered && !attached || shown != nil && v.At.Before(shown.At) {
		l.mu.Unlock()
		return nil, false
	}
	kept := r
	if old = r.Verdict; old == nil {
		old = shown
	}
	// A unit that ended keeps the verdict on the start that was seen.
	ended := old != nil && old.Answer != attach.Unknown && v.Tasks == 0 && old.InvocationID == v.InvocationID
	// Of one that nobody has seen it is still known which start was seen last (unseen).
	if remembered && !ended && !isUnheard(v) {
		r.Verdict = &v
		if r.Profile == d.Profile && shows {
			r.ProvedTmp = v.PrivateTmp == attach.Yes || r.ProvedTmp && r.Proved == v.InvocationID
			r.Proved = v.InvocationID
		}
		if v.Tasks > 0 && v.InvocationID == o.Unit.InvocationID && !o.Unit.Settings.RefusesBPF {
			r.Unfiltered = v.InvocationID
		}
		l.records[d.Unit] = r
	}
	unsaved := l.unsaved[d.Unit]
	l.mu.Unlock()
	// What was seen before and is seen again is not written to disk each time.
	if remembered && (unsaved || !(kept.Proved == r.Proved && kept.ProvedTmp == r.ProvedTmp && kept.Unfiltered == r.Unfiltered && r.Verdict.Repeats(kept.Verdict))) {
		l.write(r)
	}
	return old, true
}

func (l *Loop) sayVerdict(v attach.Verdict) {
	id, level := journal.MsgConfined, slog.LevelInfo
	switch v.Answer {
	case attach.NotConfined:
		id, level = journal.MsgNotConfined, slog.LevelWarn
	case attach.Unknown:
		id = journal.MsgUnknown
	}
	attrs := []any{journal.FieldMessageID, string(id), journal.FieldUnit, v.Unit, journal.FieldObjectUnit, v.Unit,
		journal.FieldProfile, v.Profile, journal.FieldVerdict, v.Answer.String(), journal.FieldInvocation, v.InvocationID}
	text := v.Unit + " is " + v.Answer.String()
	if len(v.Reasons) > 0 && v.Answer != attach.Confined {
		attrs = append(attrs, journal.FieldReason, string(v.Reasons[0].Code))
		text += ": " + v.Reasons[0].String()
	}
	l.log.Log(context.Background(), level, text, attrs...)
}

// publish changes the status of a unit and hands it to the subscribers.
func (l *Loop) publish(unit string, change func(*attach.Status)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.statusOf(unit)
	s.Unit = unit
	if a, ok := l.targets[unit]; ok {
		s.Attachment = a.Source
		if s.ProfileFile == "" {
			s.ProfileFile = a.ProfileFile
		}
	} else if rs := l.rivals[unit]; len(rs) > 0 {
		s.Attachment = rs[0].Source
	} else if r, ok := l.records[unit]; ok {
		s.Attachment = r.Attachment
	}
	r := l.records[unit]
	if s.Held = r.Hold; s.Held == nil {
		_, s.Held = l.patternHold(unit)
	}
	s.Paused = l.pauseOf(unit, time.Now())
	s.DropIn = ""
	for _, f := range r.DropIns {
		s.DropIn = max(s.DropIn, f.Path)
	}
	s.Busy = false
	change(&s)
	l.statuses[unit] = &s
	l.tell(&s)
}

// statusOf is what was last published of a unit. l.mu is held.
func (l *Loop) statusOf(unit string) attach.Status {
	if s := l.statuses[unit]; s != nil {
		return *s
	}
	return attach.Status{}
}

// unpublish takes a unit off the list.
func (l *Loop) unpublish(unit string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.statuses[unit]; known {
		delete(l.statuses, unit)
		l.tell(&attach.Status{Unit: unit})
	}
}

// untold is a status, and whom to tell it.
type untold struct {
	s  *attach.Status
	to []func(*attach.Status)
}

// tell hands a status to the subscribers, behind those that were published before: they
// take what they hear last for the newest. l.mu is held, but not while they are called.
func (l *Loop) tell(s *attach.Status) {
	if attach.IsPattern(s.Unit) {
		return // they are told of units
	}
	l.untold = append(l.untold, untold{s, slices.Collect(maps.Values(l.subs))})
	if l.telling {
		return // whoever is at it goes on with this one
	}
	l.telling = true
	for len(l.untold) > 0 {
		next := l.untold[0]
		l.untold = l.untold[1:]
		l.mu.Unlock()
		for _, f := range next.to {
			f(next.s)
		}
		l.mu.Lock()
	}
	l.untold, l.telling = nil, false
}

// Subscribe calls f with every status that is published until ctx ends, in the order in
// which they are; one without an Attachment is of a unit that is attached no more. f must
// be quick, and change none.
func (l *Loop) Subscribe(ctx context.Context, f func(*attach.Status)) {
	l.mu.Lock()
	id := l.nextSub
	l.nextSub++
	l.subs[id] = f
	l.mu.Unlock()
	context.AfterFunc(ctx, func() {
		l.mu.Lock()
		delete(l.subs, id)
		l.mu.Unlock()
	})
}

// Status answers from what is known. Names and globs select units, none
// selects all. Only about a name of which nothing is known is systemd asked,
// whether there is such a unit.
func (l *Loop) Status(units []string) attach.Report {
	r, missing := l.known(units)
	l.questioned(r.Units)
	l.questioned(r.Patterns)
	idle, missing := l.toCome(missing)
	r.Units = append(r.Units, idle...)
	r.Missing = l.whyMissing(missing)
	return r
}

// whyMissing says of names that no attachment names whether there is such a unit.
func (l *Loop) whyMissing(names []string) (out []attach.Missing) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, name := range names {
		why := attach.Because(attach.NotAttached, "no attachment names %s", name).WithNext("aaunitctl attach " + name)
		full, err := attach.UnitName(name)
		if err != nil {
			why = attach.Because(attach.UnitNotFound, "%v", err)
		} else if u, err := l.systemd.Observe(ctx, full); err == nil && !u.Found() {
			why = attach.Because(attach.UnitNotFound, "systemd knows no unit %s", full)
		}
		out = append(out, attach.Missing{Unit: name, Reason: why})
	}
	return out
}

// known is what is known of the units that words ask for; missing are the words that
// ask for none of which anything is.
func (l *Loop) known(words []string) (r attach.Report, missing []string) {
	asked := l.selectionOf(words)
	r = l.report(asked)
	return r, asked.missing()
}

// Host is the state of AppArmor as Status tells it.
func (l *Loop) Host() attach.Host {
	h := l.apparmor.Host()
	l.mu.Lock()
	defer l.mu.Unlock()
	h.BootService = l.service
	return h
}

// report is what is known of the units that are asked for.
func (l *Loop) report(asked *selection) (r attach.Report) {
	host := l.Host()
	l.noteHost(host)
	l.mu.Lock()
	defer l.mu.Unlock()
	r = attach.Report{Version: l.version, Host: host, Recheck: l.recheck, At: time.Now(), Units: []attach.Status{}}
	r.Problems = append(slices.Clone(l.problems), l.declared.Problems...)
	for unit, published := range l.statuses {
		if asked.has(unit) {
			s := *published
			s.Busy, s.Paused = l.queue.isBusy(unit), l.pauseOf(unit, r.At)
			s.Notes = slices.Concat(s.Notes, l.socketNote(unit))
			if s.Verdict != nil && !host.Confines() {
				v := s.Verdict.On(host)
				s.Verdict = &v
			}
			if attach.IsPattern(unit) {
				s.Refused = slices.Concat(s.Refused, l.complains(unit))
				r.Patterns = append(r.Patterns, s)
			} else {
				r.Units = append(r.Units, s)
			}
		}
	}
	// Attached, and no pass has come to it yet.
	for unit, a := range l.targets {
		if _, known := l.statuses[unit]; !known && asked.has(unit) {
			s := attach.Status{Unit: unit, Profile: a.Profile, Attachment: a.Source, Busy: true, Paused: l.pauseOf(unit, r.At)}
			if attach.IsPattern(unit) {
				r.Patterns = append(r.Patterns, s)
				continue
			}
			s.Profile, _ = a.ProfileFor(unit)
			r.Units = append(r.Units, s)
		}
	}
	for i, s := range r.Patterns {
		r.Patterns[i].Coming, r.Patterns[i].ComingText = s.ToCome()
	}
	for _, list := range [][]attach.Status{r.Units, r.Patterns} {
		slices.SortFunc(list, func(a, b attach.Status) int { return strings.Compare(a.Unit, b.Unit) })
	}
	return r
}

// complains says of a template or prefix that it is in complain mode. That refuses nothing, so
// it is not among what is kept of its status. l.mu is held.
func (l *Loop) complains(unit string) []attach.Reason {
	d, err := l.desiredAt(unit, time.Now())
	if err != nil {
		return nil // which it is refused for
	}
	return attach.Complains(d)
}

// tellComplains has the outcome of a template or prefix in complain mode say so, as that of
// a unit does.
func (l *Loop) tellComplains(j *job) {
	l.mu.Lock()
	why := l.complains(j.d.Unit)
	l.mu.Unlock()
	if len(why) > 0 {
		j.out.Exit = attach.WorstExit(j.out.Exit, attach.ExitNotConfined)
		j.event(attach.StepVerdict, attach.Warned, "not confined: %s", why[0])
	}
}

// questioned says what the kernel was asked about the policies that were accepted
// for units.
func (l *Loop) questioned(of []attach.Status) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range of {
		of[i].Questioned = attach.QuestionedOf(l.keptOf(l.records[of[i].Unit]))
	}
}
