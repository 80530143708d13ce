package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// job is one unit's way through a pass.
type job struct {
	d    attach.Desired
	o    attach.Observed // when the plan was made; the unit's settings as of the last reload
	seen attach.Observed // at the last verdict
	plan attach.Plan
	// files holds the text of each drop-in that was changed, as it was before;
	// nil where there was none.
	files map[string]*string
	out   *attach.Outcome
	tell  func(attach.Event)
	// unattended: what changed in files is taken over, and nobody decides about what
	// is denied.
	unattended bool
	// fresh: the unit was not attached before this pass, so that a failure
	// goes back to how it was.
	fresh bool
	// before is the record as it was, for the way back.
	before attach.Record
	// heldBefore is the hold that this pass ended; nil none.
	heldBefore *attach.Hold
	// failed says why the attach failed; empty while it has not.
	failed    []attach.Reason
	reloaded  bool // systemd has read its files again for it
	restarted bool
	// stopped: somebody has stopped the unit while it was restarted, or kept it from being
	// restarted, and nobody else starts it.
	stopped bool
	letGo   func()        // of the unit, see keepLoaded; nil nothing
	since   time.Time     // when the restart, or the new policy, came
	took    time.Duration // of the restart
	verdict attach.Verdict
	// left says why what holds the socket options of a withdrawn attachment stays.
	left []attach.Reason
	// tried: the unit did not stay well under a changed policy.
	tried bool
	// unhealed: what somebody had made of the accepted policy could not be put back;
	// unread that this is so because what was kept could not be read.
	unhealed, unread bool
	// stays are profiles that could not be unloaded, with why; waits: the unit is down
	// until they are gone; leaves is what went down with it and is not to be started then.
	stays  map[string]error
	waits  bool
	leaves []string
	// up: the undo has started the unit, and what went down with it is yet to be started;
	// down: it has stopped it, and it stays so.
	up, down bool
	// stuck: the drop-in serves other units and cannot be taken back.
	stuck bool
	over  bool // nothing more is to be done for the unit in this pass
	// real is the unit that the name stands for, where it is an alias.
	real  string
	spent bool // it is over with the unit itself; see forgetSpent
}

// pass brings units to what is declared, all of them together:
//
//  1. compile what they need together, observe every unit and ask the core for
//     its plan
//  2. load the policies of all plans in one call
//  3. keep the rules for socket options, for the start helper; write and remove
//     drop-ins
//  4. one daemon-reload; then the rules hold for what runs
//  5. read the effective settings back: a file of somebody else may win
//  6. restart what must be restarted, each as soon as its settings were read back,
//     and wait until it has settled; a changed policy goes live without a restart,
//     and is watched as long (trial.go)
//  7. look, and give the verdict
//  8. undo what failed (undo.go), also together, with one more daemon-reload
//  9. unload what a withdrawn attachment had loaded, and what the undo of one that is
//     held had to leave
//
// A failure in one unit never stops the others. Before each step that changes
// something, the unit's record says so: a daemon that is killed in between
// converges at its next start.
//
// m is what was read and compiled for these units a moment ago, or nil.
func (l *Loop) pass(ctx context.Context, units []string, op *operation, m *moment) map[string]*attach.Outcome {
	defer l.timePass()()
	l.queue.engage(true)
	defer l.queue.engage(false)
	jobs := l.plan(ctx, units, op, m)
	l.handle(jobs, func(j *job) bool { return len(j.plan.Actions) > 0 })
	defer l.handle(nil, nil)
	defer func() {
		for _, j := range jobs {
			if j.letGo != nil {
				j.letGo()
			}
		}
	}()
	saved := l.loadPolicies(ctx, jobs)
	l.saveSockets(jobs)
	l.writeDropIns(jobs)
	l.reload(ctx, jobs)
	l.applySockets(jobs)
	// What follows takes as long as it takes the slowest unit to settle.
	l.handle(jobs, func(j *job) bool { return j.plan.Has(attach.Restart) })
	l.restart(ctx, jobs)
	l.settleTrials(jobs)
	l.verdicts(ctx, jobs)
	l.handle(jobs, func(j *job) bool { return len(j.failed) > 0 || len(j.plan.Actions) > 0 }) // it may be taken back
	l.undo(ctx, jobs, saved, op)
	l.finishDetached(ctx, jobs)
	l.forgetSpent(ctx, jobs)
	l.retain()
	if ctx.Err() != nil {
		cutOff(jobs)
	}

	out := map[string]*attach.Outcome{}
	for _, j := range jobs {
		out[j.d.Unit] = j.out
	}
	return out
}

// cutOff says of every unit that was still on its way when the daemon was told
// to end that nobody knows how it is.
func cutOff(jobs []*job) {
	for _, j := range jobs {
		if j.out.Exit == attach.ExitOK && j.out.Verdict == nil {
			j.out.Exit = attach.ExitUnknown
		}
	}
}

// event tells one line of progress.
func (j *job) event(step attach.Step, state attach.State, format string, args ...any) {
	e := attach.Event{Unit: j.d.Unit, Step: step, State: state, Text: fmt.Sprintf(format, args...)}
	if state != attach.Running {
		j.out.Events = append(j.out.Events, e)
	}
	if j.tell != nil {
		j.tell(e)
	}
}

// fail ends the unit's way with reasons; undo sees to the rest.
func (j *job) fail(step attach.Step, reasons ...attach.Reason) {
	if len(reasons) == 0 {
		reasons = []attach.Reason{attach.Because(attach.AttachFailed, "%s failed", j.d.Unit)}
	}
	j.failed = append(j.failed, reasons...)
	j.event(step, attach.Failed, "%s", reasons[0])
}

// alive reports whether the unit still has a way to go.
func (j *job) alive() bool { return !j.over && len(j.failed) == 0 }

// held reports whether the unit stays as the undo left it: nothing is written,
// and nothing is recorded as written.
func (j *job) held() bool {
	return j.d.Attachment != nil && j.d.Record.Hold != nil && !j.d.Record.Hold.OnlyText()
}

// plan is step 1.
func (l *Loop) plan(ctx context.Context, units []string, op *operation, m *moment) []*job {
	jobs := make([]*job, len(units))
	var all []attach.Desired
	for _, unit := range units {
		if d, err := l.desired(unit); err == nil {
			all = append(all, d)
		}
	}
	if m == nil {
		m = l.momentOfPlans(ctx, all, l.apparmor)
	}
	each(len(units), func(i int) { jobs[i] = l.planUnit(ctx, units[i], op, m) })
	real := map[string]*job{}
	for i, j := range jobs {
		if j.real != "" {
			jobs[i] = l.planAlias(ctx, j, op)
			real[jobs[i].d.Unit] = jobs[i]
		}
	}
	// Such a unit may be in the list already, by its own name or another alias.
	jobs = slices.DeleteFunc(jobs, func(j *job) bool { last := real[j.d.Unit]; return last != nil && last != j })
	for i, j := range jobs {
		// What one found to speak against a text counts for all that share it. So does
		// the end of a hold.
		if j.d.Attachment != nil && !j.over && l.barredFor(j) || l.freed(j) {
			notes := slices.DeleteFunc(slices.Clone(j.out.Notes), func(r attach.Reason) bool { return r.Code != attach.UnitAlias })
			jobs[i] = l.planUnit(ctx, j.d.Unit, op, m)
			jobs[i].out.Notes = append(jobs[i].out.Notes, notes...)
		}
	}
	return jobs
}

// planAlias plans the unit that an alias stands for. It comes when all other plans are
// made: what is remembered of the alias goes over to that unit.
func (l *Loop) planAlias(ctx context.Context, j *job, op *operation) *job {
	alias, unit := j.d.Unit, j.real
	if err := l.moveRecord(alias, unit); err != nil {
		l.refuse(j, attach.Because(attach.RecordBad, "%s has become an alias of %s, and that is not on record: %v", alias, unit, err).WithNext(wayOut(err)))
		return j
	}
	l.declare(ctx)
	l.unpublish(alias)
	j = l.planUnit(ctx, unit, op, nil)
	j.out.Notes = append(j.out.Notes, attach.Because(attach.UnitAlias, "%s is an alias of %s", alias, unit))
	return j
}

// moveRecord gives what is remembered of a name that has become an alias to the unit that
// it stands for: systemd applies the drop-ins of aliases to it, and a detach has to take
// them back. A plan finds that they are not where the unit's belong.
func (l *Loop) moveRecord(alias, unit string) error {
	l.mu.Lock()
	r, remembered := l.records[alias]
	to, has := l.records[unit]
	r, to = r.Clone(), to.Clone()
	l.mu.Unlock()
	switch {
	case !remembered:
		return nil
	case !has:
		to = r
		to.Unit = unit
		if r.Verdict != nil {
			v := *r.Verdict
			v.Unit = unit
			to.Verdict = &v
		}
	default:
		for _, f := range r.DropIns {
			if !to.DropIns.Has(f.Path) {
				to.DropIns = to.DropIns.With(f.Path, f.Sum)
			}
		}
		for _, list := range []struct {
			to   *[]string
			from []string
		}{{&to.SocketUnits, r.SocketUnits}, {&to.Loaded, r.Loaded}, {&to.Softened, r.Softened}} {
			for _, name := range list.from {
				if !slices.Contains(*list.to, name) {
					*list.to = append(*list.to, name)
				}
			}
		}
		to.Pause = cmp.Or(to.Pause, r.Pause)
	}
	if err := l.keep(to); err != nil {
		return err
	}
	l.forget(alias)
	return nil
}

func (l *Loop) planUnit(ctx context.Context, unit string, op *operation, m *moment) *job {
	j := &job{out: &attach.Outcome{Unit: unit}}
	if op != nil {
		j.tell, j.unattended = op.progress, op.unattended
	}
	l.settleLent(unit)
	var err error
	j.d, err = l.desired(unit)
	j.d.Asked = op != nil
	j.out.Profile = j.d.Profile
	if err != nil {
		l.refuse(j, attach.Because(attach.ProfileNameBad, "%v", err).At(j.d.Attachment.Source))
		return j
	}
	if j.d.Attachment == nil {
		if j.d.Record.Unit == "" && !l.contested(unit) {
			j.over = true // detached already, or never attached
			l.unpublish(unit)
			return j
		}
		if frozen := l.frozen(unit, j.d.Record); frozen != nil {
			l.refuse(j, *frozen)
			return j
		}
	}
	j.o, err = l.observeAt(ctx, j.d, full, m)
	if ctx.Err() != nil {
		j.over = true // it was seen by half at most; the next start goes on
		return j
	}
	if err != nil {
		v := unheard(j.d, err)
		j.out.Verdict = &v
		l.conclude(j.d, j.o, v)
		l.refuse(j, v.Reasons...)
		return j
	}
	if id := j.o.Unit.ID; id != "" && id != unit && slices.Contains(j.o.Unit.Names, unit) {
		l.learnAlias(unit, j.o.Unit)
		j.real, j.over = id, true
		return j
	}
	if j.d.Attachment == nil && l.declaredAs(j.o.Unit) {
		// Not withdrawn: the attachment names an alias of the unit.
		l.declare(ctx)
		if l.target(unit) != nil || l.contested(unit) {
			return l.planUnit(ctx, unit, op, nil)
		}
	}
	if j.d.Paused(j.o.At) != nil {
		l.leavePaused(ctx, j)
		return j
	}
	if a := j.d.Attachment; a != nil && !attach.IsPattern(unit) && a.Matches(unit) < attach.MatchName && l.gone(j) {
		// A unit that only a pattern named is gone: so is what it had from it.
		l.drop(unit)
		j.d.Attachment = nil
	}
	if op == nil && j.o.Unit.ActiveState == "inactive" && l.spent(unit) {
		j.over, j.spent = true, true
		return j
	}
	j.out.Questioned = attach.QuestionedOf(j.o.Policy.Compiled)
	h := j.d.Record.Hold
	ended := h != nil && j.d.Attachment != nil && (op != nil || j.d.HeldWith == "" && len(j.o.Policy.Problems) == 0 && (h.Inputs != inputs(j) || h.Over(time.Now())))
	if ended {
		// An input changed, or somebody asks. What does not compile says nothing
		// yet: the parser may only have been in trouble.
		free := j.d
		free.Record.Hold = nil
		free.Record.Profile = cmp.Or(h.Former, free.Record.Profile) // what it runs under
		// What is refused is not tried: the unit goes on as it is kept.
		if ended = op != nil || len(attach.Diff(free, j.o).Refusals) == 0; ended {
			j.d, j.heldBefore = free, h
		}
	}
	// A unit that is to get back a profile that was taken off it was confined before, and
	// so was one that an undo had brought back to its former profile.
	j.fresh = len(j.d.Record.DropIns) == 0 || j.d.Record.Attaching ||
		j.d.Record.Proved == "" && j.d.Record.Retaking == "" && (h == nil || h.Former == "") && free(j.o)
	j.before = j.d.Record.Clone()
	j.files = map[string]*string{}
	former := j.before.Former
	j.before.Former = nil
	switch {
	case j.fresh:
		for _, path := range j.d.Record.DropIns.Paths() {
			j.files[path] = nil // also what an attach wrote that was cut off
		}
	case former != nil:
		// The way back leads to before the change that was cut off.
		j.before.Profile = former.Profile
		maps.Copy(j.files, former.DropIns)
	}
	j.plan = attach.Diff(j.d, j.o)
	l.bar(j)
	j.out.Notes = append(j.out.Notes, j.plan.Warnings...)
	j.out.Notes = append(j.out.Notes, j.plan.Pending...)
	if j.d.Attachment != nil {
		l.describe(j)
	}
	if len(j.plan.Refusals) > 0 && attach.IsPattern(unit) {
		l.refuse(j, attach.WithAmiss(j.d, j.o, j.plan.Refusals)...)
		return j
	}
	if len(j.plan.Refusals) > 0 {
		// The truth about the unit is told all the same.
		l.lookAnew(ctx, j)
		v := attach.Judge(j.d, j.o)
		if v.At.IsZero() {
			v.At = time.Now()
		}
		if v.Answer == attach.Confined && m != nil {
			v.At = m.at // what somebody has seen of the policy since then counts
		}
		j.out.Verdict = &v
		if unseen(j.d.Record, v) || taken(v) {
			l.stopViolator(ctx, j.d, j.d.Record, &j.o, v, true)
		}
		l.conclude(j.d, j.o, v)
		l.refuse(j, j.plan.Refusals...)
		if j.d.Keeps() && j.o.Host.Enabled != attach.No && l.removed(j.d.Record) {
			// What it runs under stays, whatever speaks against the attachment now.
			// Another policy in its place may be what a unit that shares it has
			// accepted, and is only told: the two would take turns for ever.
			own := j.claim()
			own.idle = !own.held
			l.restoreAccepted(ctx, j, own)
		}
		if j.held() && len(j.plan.Actions) > 0 {
			j.over = false // what the undo brought back is kept all the same
		}
		return j
	}
	if len(j.heals()) > 0 || !attach.IsPattern(unit) && slices.ContainsFunc(j.plan.Actions, func(a attach.Action) bool { return a.Reason.Code == attach.SocketsNotHeld }) {
		// It is put back in a moment; that it was not in force is told first.
		l.lookAnew(ctx, j)
		if v := attach.Judge(j.d, j.o); v.Answer == attach.NotConfined && !v.At.IsZero() {
			l.conclude(j.d, j.o, v)
		}
	}
	if j.plan.Has(attach.Restart) && j.d.Record.ProvedAs(j.o.Unit.InvocationID, j.d.Profile) {
		// Its profile was taken off. Should this be cut off, the next start goes on.
		j.d.Record.Retaken, j.d.Record.Retaking, j.d.Record.Proved = j.o.At, j.o.Unit.InvocationID, ""
		l.remember(j.d.Record)
	}
	if ended {
		// Not before: what could not be compiled for a moment ends no hold.
		l.remember(j.d.Record)
	}
	if j.d.Attachment != nil && len(j.plan.Actions) > 0 && j.fresh && !j.d.Record.Attaching {
		r := &j.d.Record
		r.Unit, r.Attachment, r.Profile = unit, j.d.Attachment.Source, j.d.Profile
		r.Before = attach.Before{Running: j.o.Unit.Active() || j.waited(), Confined: carries(j.d, j.o)}
		r.Attaching = true
	}
	return j
}

// fileAway is how long the file of a unit that only a pattern names may be away while the
// unit is down: a deployment takes it away and writes it again, with a daemon-reload after
// each, and the start that follows is to be confined as the one before.
const fileAway = time.Hour

// gone reports whether a unit that only a pattern names is none any more. One that runs
// without a file may get one again.
func (l *Loop) gone(j *job) bool {
	r := &j.d.Record
	since := r.Away
	switch {
	case !j.o.Unit.Found() && len(r.DropIns) == 0:
		return true
	case j.o.Unit.Found() || j.o.Unit.Active():
		since = time.Time{}
	case since.IsZero() || since.After(j.o.At): // from when the clock was ahead
		since = j.o.At
	}
	if !since.Equal(r.Away) {
		r.Away = since
		l.remember(*r)
	}
	return !since.IsZero() && j.o.At.Sub(since) >= fileAway
}

// lookAnew replaces a look at the tasks that a plan may go by, and a verdict may not.
func (l *Loop) lookAnew(ctx context.Context, j *job) {
	if j.o.Scan != nil && j.o.Scan.At.Before(j.o.At) {
		j.o.At = time.Now()
		s := l.scanInTurn(ctx, j.o.Unit)
		j.o.Scan = &s
	}
}

// carries reports whether the unit runs and all its tasks are under the
// profile already. What systemd has not executed yet is not.
func carries(d attach.Desired, o attach.Observed) bool {
	if o.Scan == nil {
		return false
	}
	seen := false
	for _, t := range o.Scan.Tasks {
		switch {
		case t.InTransit, t.Problem != "", !t.Manager && t.Label.Fits(d.Profile, d.Attachment.AllowProfiles) == attach.FitOther:
			return false
		case !t.Manager:
			seen = true
		}
	}
	return seen
}

// free reports whether the unit runs and all its tasks are unconfined: an
// attach that waited for its restart has not confined it yet.
func free(o attach.Observed) bool {
	return o.Scan != nil && o.Scan.Problem == "" && len(o.Scan.Tasks) > 0 &&
		!slices.ContainsFunc(o.Scan.Tasks, func(t attach.Task) bool { return t.Problem != "" || !t.Label.IsUnconfined() })
}

// declaredAs learns by which of its aliases an attachment names a unit; it
// reports whether there is one, known before (to a job beside this one, which
// plans the alias) or not.
func (l *Loop) declaredAs(u attach.Unit) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range u.Names {
		chosen, rivals := l.selector.Select(name)
		if name != u.ID && (chosen != nil || len(rivals) > 0) {
			l.alias[name] = u.ID
			return true
		}
	}
	return false
}

// drop takes a unit off the targets.
func (l *Loop) drop(unit string) {
	l.mu.Lock()
	delete(l.targets, unit)
	l.mu.Unlock()
}

func (l *Loop) contested(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.rivals[unit]) > 0
}

// frozen says why a unit without an attachment keeps what an earlier one gave
// it, or nil.
func (l *Loop) frozen(unit string, r attach.Record) *attach.Reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	if rivals := l.rivals[unit]; len(rivals) > 0 {
		var files []string
		for _, a := range rivals {
			files = append(files, a.Source)
		}
		why := attach.Because(attach.RivalAttachments, "%s is named by %s", unit, strings.Join(files, " and ")).At(files[0])
		return &why
	}
	if r.Attachment != "" && broken(l.declared, r.Attachment) {
		why := attach.Because(attach.AttachmentBad, "%s cannot be read at present; %s stays as it is", r.Attachment, unit).At(r.Attachment)
		return &why
	}
	return nil
}

// describe fills what an outcome and a status say about the profile's file.
func (l *Loop) describe(j *job) {
	file := j.d.Attachment.ProfileFile
	if c := j.o.Policy.Candidates[j.d.Profile]; len(c) > 0 {
		file = c[0].File
	}
	j.out.File = file
	l.publish(j.d.Unit, func(s *attach.Status) {
		s.Profile, s.ProfileFile, s.ActiveState = j.d.Profile, file, j.o.Unit.ActiveState
		if attach.IsPattern(j.d.Unit) {
			s.Profile = j.d.Attachment.Profile // with its specifiers
		}
		s.Notes = j.out.Notes
		switch {
		case len(j.plan.Refusals) > 0:
		case !attach.IsPattern(j.d.Unit):
			s.Refused = nil
		case j.d.Paused(j.o.At) != nil: // the plan is empty, and leavePaused says what differs
		case len(j.heals()) > 0, s.DropIn != "" && j.plan.Has(attach.WriteDropIn): // until it is put back
		default:
			s.Refused = j.amiss()
		}
	})
}

// amiss is what there is to say against units to come of a template or prefix when its plan
// is carried out.
func (j *job) amiss() []attach.Reason {
	if !j.plan.GivesWay || j.held() && !j.plan.KeepsPolicy {
		return nil
	}
	return attach.AmissBeside(j.d, j.o)
}

// refuse ends a unit's way before anything was changed.
func (l *Loop) refuse(j *job, reasons ...attach.Reason) {
	j.over = true
	j.out.Reasons = reasons
	j.out.Exit = attach.ExitFailed
	if slices.ContainsFunc(reasons, func(r attach.Reason) bool { return r.Code == attach.UnitNotFound }) {
		j.out.Exit = attach.ExitNoUnit
	}
	l.mu.Lock()
	told := reasonsEqual(l.statusOf(j.d.Unit).Refused, reasons)
	l.mu.Unlock()
	l.publish(j.d.Unit, func(s *attach.Status) {
		s.Refused = reasons
		if !attach.IsPattern(j.d.Unit) {
			s.Profile = j.d.Profile
		}
	})
	if !told {
		l.log.Error("cannot attach "+j.d.Unit+": "+reasons[0].String(), journal.FieldMessageID, string(journal.MsgAttachRefused),
			journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile, journal.FieldReason, string(reasons[0].Code))
	}
	j.event(attach.StepPolicy, attach.Failed, "%s", reasons[0])
}

func reasonsEqual(a, b []attach.Reason) bool { return slices.Equal(a, b) }

// inputs digests everything a failed attach depended on; a hold ends when it
// changes.
func inputs(j *job) string {
	in := struct {
		Attachment attach.Attachment
		Sources    []string
		Problems   []attach.Reason
		Exec       []attach.ExecCommand
		Assigned   []attach.Assignment
		Fragment   string
	}{Attachment: *j.d.Attachment, Problems: j.o.Policy.Problems, Fragment: j.o.Unit.FragmentPath}
	in.Attachment.Line = 0
	for _, c := range j.o.Policy.Texts {
		in.Sources = append(in.Sources, c.Source)
	}
	for _, c := range j.o.Unit.Settings.Exec {
		if c.StartsSockets() {
			continue // as long as the drop-in lasts
		}
		c.PID = 0
		in.Exec = append(in.Exec, c)
	}
	for _, a := range j.o.Unit.Settings.Assignments {
		if !strings.HasSuffix(a.Path, "/"+attach.DropInName) {
			in.Assigned = append(in.Assigned, a)
		}
	}
	b, err := json.Marshal(in)
	if err != nil {
		return "" // differs from every digest: the hold ends
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// writeDropIns is step 3. The record is written first: after a crash the file
// is known as ours. Those who write come together, since what is written has to
// reach the disk; those who remove take turns, so that the last one who shares a
// file finds that nobody needs it.
func (l *Loop) writeDropIns(jobs []*job) {
	removes := func(j *job) bool { return j.d.Attachment == nil || j.plan.Has(attach.RemoveDropIn) }
	eachAlive(jobs, func(j *job) {
		if !removes(j) && (!j.held() || j.plan.Has(attach.WriteDropIn)) {
			l.writeDropIn(j)
		}
	})
	for _, j := range jobs {
		if !j.alive() || !removes(j) {
			continue
		}
		if j.d.Attachment == nil {
			// From here on a start is not confined, and nobody looks at it.
			l.publish(j.d.Unit, func(s *attach.Status) { s.Verdict = nil })
		}
		l.writeDropIn(j)
	}
}

// writeDropIn writes and removes drop-ins of one unit.
func (l *Loop) writeDropIn(j *job) {
	healed := len(j.d.Record.DropIns) > 0 && !j.fresh
	l.readFormer(j)
	for _, a := range j.plan.Actions {
		var changed bool
		var err error
		switch a.Kind {
		case attach.WriteDropIn:
			// A file that is not on record would not be known as ours.
			text := j.dropIns()[a.Target]
			if j.held() {
				text = j.d.Record.Hold.DropIns[a.Target] // which is on record
			} else {
				err = l.recordDropIn(j)
			}
			if err == nil {
				done := l.onDisk()
				changed, err = l.systemd.WriteDropIn(a.Target, text)
				done()
			}
			was := j.files[a.Target]
			tampered := was == nil && j.before.DropIns.Has(a.Target) || was != nil && j.before.DropIns.Of(a.Target) != sum(*was)
			if err == nil && changed && healed && tampered {
				l.log.Warn("put back the drop-in of "+j.d.Unit+": "+a.Reason.String(), journal.FieldMessageID, string(journal.MsgDropInHealed),
					journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile, journal.FieldFile, a.Target)
			}
		case attach.RemoveDropIn:
			if l.sharedDropIn(j.d.Unit, a.Target) {
				l.disown(j, a.Target)
				delete(j.files, a.Target)
				continue
			}
			changed, err = l.systemd.RemoveDropIn(a.Target)
			if err == nil {
				l.disown(j, a.Target)
			}
		default:
			continue
		}
		j.out.Changed = j.out.Changed || changed
		if err != nil {
			j.fail(attach.StepDropIn, attach.Because(attach.DropInUnreadable, "%v", err).At(a.Target).WithNext(wayOut(err)))
			return
		}
	}
	if j.d.Attachment != nil && !j.plan.Has(attach.WriteDropIn) {
		if err := l.recordDropIn(j); err != nil {
			l.log.Error("cannot keep the record of a unit", journal.FieldUnit, j.d.Unit, "err", err)
		}
	}
	if j.d.Attachment != nil {
		j.event(attach.StepDropIn, attach.Done, "%s", j.d.DropInPath())
	} else if j.plan.Has(attach.RemoveDropIn) {
		j.event(attach.StepDropIn, attach.Done, "removed")
	}
}

// readFormer reads the drop-ins that will be changed, for the way back. What a
// change that was cut off has read before is not read again.
func (l *Loop) readFormer(j *job) {
	for _, a := range j.plan.Actions {
		if _, known := j.files[a.Target]; known || a.Kind != attach.WriteDropIn && a.Kind != attach.RemoveDropIn {
			continue
		}
		j.files[a.Target] = nil
		done := l.onDisk()
		text, exists, err := l.systemd.ReadDropIn(a.Target)
		done()
		if err == nil && exists {
			j.files[a.Target] = &text
		}
	}
}

// wayOut is the next step after a file could not be written, where the error
// tells one.
func wayOut(err error) string {
	var w interface{ WayOut() string }
	if errors.As(err, &w) {
		return w.WayOut()
	}
	return ""
}

// dropIns are the texts of the files that the unit shall have, by path.
func (j *job) dropIns() map[string]string {
	out := map[string]string{j.d.DropInPath(): j.d.DropInText(j.o.Unit)}
	if j.d.Attachment.SocketsWanted() != nil {
		for _, s := range j.o.SocketUnits {
			out[attach.DropInPath(s.ID, j.d.Attachment.Runtime)] = attach.SocketDropIn(*j.d.Attachment)
		}
	}
	return out
}

// recordDropIn remembers that the unit's drop-ins are aaunit's: before it is
// written, and for every unit that one in a pattern's directory serves.
func (l *Loop) recordDropIn(j *job) error {
	r := &j.d.Record
	want := r.DropIns
	for path, text := range j.dropIns() {
		want = want.With(path, sum(text))
	}
	if slices.Equal(want, r.DropIns) {
		return nil
	}
	was := r.Clone()
	r.DropIns = want
	if r.Profile != j.d.Profile {
		r.Proved = ""
	}
	if !j.fresh && r.Former == nil {
		r.Former = &attach.Former{Profile: j.before.Profile, Running: j.o.Unit.Active(), DropIns: maps.Clone(j.files)}
	}
	r.Unit, r.Attachment, r.Profile = j.d.Unit, j.d.Attachment.Source, j.d.Profile
	if err := l.keep(*r); err != nil {
		*r = was
		return err
	}
	return nil
}

// disown takes a drop-in off the unit's record, so that the last of several
// units that share one and are all withdrawn in this pass finds that nobody
// needs it. On disk the record keeps it until systemd has read its files again.
func (l *Loop) disown(j *job, path string) {
	j.d.Record.DropIns = j.d.Record.DropIns.Without(path)
	l.mu.Lock()
	defer l.mu.Unlock()
	if r, ok := l.records[j.d.Unit]; ok {
		r.DropIns = r.DropIns.Without(path)
		l.records[j.d.Unit] = r
	}
}

// sharedDropIn reports whether another unit of the same pattern needs the file,
// or is held to what it has from it.
func (l *Loop) sharedDropIn(unit, path string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, r := range l.records {
		if r.DropIns.Has(path) && other != unit {
			return true
		}
	}
	for other, a := range l.targets {
		if other != unit && attach.DropInPath(a.Placement(other), a.Runtime) == path {
			return true
		}
	}
	return false
}

// reload is step 4: one daemon-reload for all.
func (l *Loop) reload(ctx context.Context, jobs []*job) {
	var need []*job
	for _, j := range jobs {
		if j.alive() && j.plan.Has(attach.Reload) {
			need = append(need, j)
			j.event(attach.StepDropIn, attach.Running, "daemon-reload")
		}
	}
	if len(need) == 0 {
		return
	}
	if err := l.systemd.Reload(ctx); err != nil {
		l.log.Error("systemd did not read its files again", "err", err)
		for _, j := range need {
			if j.d.Attachment == nil {
				j.d.Record.DropIns = j.before.DropIns // still in effect: the next trigger goes on
			}
			j.fail(attach.StepDropIn, attach.Because(attach.ReloadNeeded, "systemd did not read its files again: %v", err))
		}
		return
	}
	l.forgetHost()
	for _, j := range need {
		j.reloaded = true
		l.noteReload(j)
		if attach.IsPattern(j.d.Unit) && j.plan.Has(attach.WriteDropIn) {
			l.publish(j.d.Unit, func(s *attach.Status) { s.Refused = j.amiss() })
		}
	}
}

// readBack is step 5 for one unit.
func (l *Loop) readBack(ctx context.Context, j *job) {
	if attach.IsPattern(j.d.Unit) || j.held() {
		return // the effect shows at the units to come, or is another attachment's
	}
	// What else has changed in its files counts for a hold.
	if j.d.Attachment != nil && j.d.Attachment.SocketsWanted() == nil && !j.o.Unit.NeedReload {
		if s, err := l.systemd.Confining(ctx, j.d.Unit); err == nil {
			u := j.o.Unit
			u.Settings.Profile, u.Settings.IgnoreMissing, u.Settings.AssertAppArmor, u.Settings.PrivateTmp = s.Profile, s.IgnoreMissing, s.AssertAppArmor, s.PrivateTmp
			if len(attach.Effective(j.d, u)) == 0 {
				j.o.Unit = u
				return
			}
		}
	}
	// All of it, to tell what is in the way.
	u, err := l.systemd.Observe(ctx, j.d.Unit)
	if err != nil {
		j.fail(attach.StepDropIn, attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", j.d.Unit, err))
		return
	}
	j.o.Unit = u
	if j.d.Attachment == nil {
		return
	}
	if bad := attach.Effective(j.d, u); len(bad) > 0 {
		j.fail(attach.StepDropIn, bad...)
	}
}

// readers bounds how many units are read back at once: enough that systemd always
// has something to answer, few enough that restarts begin between the answers.
const readers = 4

// restart is steps 5 and 6. Each unit is restarted as soon as its settings were
// read back, and has the whole time to settle, however many there are.
func (l *Loop) restart(ctx context.Context, jobs []*job) {
	reading, slots := make(chan struct{}, readers), make(chan struct{}, parallel)
	var spoiled atomic.Bool
	var wg sync.WaitGroup
	if slices.ContainsFunc(jobs, func(j *job) bool { return j.reloaded && j.alive() }) {
		wg.Go(func() { l.bootService(ctx) }) // every verdict wants to know it
	}
	for _, j := range jobs {
		if !j.alive() {
			continue
		}
		reading <- struct{}{}
		wg.Go(func() {
			if j.reloaded {
				l.readBack(ctx, j)
			}
			<-reading
			if j.alive() {
				l.restartUnit(ctx, j, slots, &spoiled)
			}
		})
	}
	wg.Wait()
}

// restartUnit is step 6 for one unit.
func (l *Loop) restartUnit(ctx context.Context, j *job, slots chan struct{}, spoiled *atomic.Bool) {
	if (j.before.Stopped || len(j.before.Dragged) > 0) && j.o.Unit.Active() && !j.held() {
		if l.startDragged(ctx, j, nil) != nil {
			j.over = true // it was started again, and not all that went down with it; the next start goes on
			return
		}
		// Whoever stops it, or what went down with it, from here on wants it so.
		j.d.Record.Stopped, j.d.Record.Dragged = false, nil
		l.remember(j.d.Record)
	}
	if j.diedMeanwhile() {
		j.restarted = true
		j.fail(attach.StepRestart, attach.Because(attach.AttachFailed, "%s failed while an attach was cut off%s", j.d.Unit, exitText(j.o.Unit)).
			WithNext("journalctl -u "+j.d.Unit))
		return
	}
	switch {
	case j.d.Attachment == nil && len(j.before.DropIns) == 0 && j.plan.Has(attach.Restart) && l.byPath(j.d.Record.Loaded) && l.unloadsAgain(j.d.Unit):
		// It was started anew for that a moment ago, and once more would do no better yet.
		j.over = true
		return
	case j.plan.Has(attach.Restart) && !j.fresh && j.d.Attachment != nil && !l.inPlace(j.d.Record.Accepted) && !l.countsInPlace(j.claim(), j.d):
		// Somebody took it away since the plan was made: the unit would not start.
		j.over = true
		if len(j.o.Policy.Superseded) == 0 { // else the unit whose policy counts puts it back, which is told
			l.queue.add(inputChanged, j.d.Unit)
		}
		return
	case j.plan.Has(attach.Restart), j.wasStopped(), j.waited():
	case j.restartedBefore():
		l.keepLoaded(ctx, j)
		j.restarted, j.since = true, time.Now()
		l.settle(ctx, j)
		return
	case j.d.Record.Trial.GoesOn() && j.d.Attachment != nil && !j.held():
		l.keepLoaded(ctx, j)
		if j.before.Stopped && !j.o.Unit.Active() {
			// The undo of the trial was cut off when it had stopped the unit.
			slots <- struct{}{}
			err := l.startStopped(ctx, j)
			<-slots
			if canceled(err) {
				err = l.giveWay(ctx, j, err)
			}
			if ctx.Err() != nil {
				j.over = true // the next start goes on
				return
			}
			if err == nil {
				j.d.Record.Stopped, j.d.Record.Dragged = false, nil
				l.remember(j.d.Record)
			}
		}
		l.tryPolicy(ctx, j, spoiled)
		return
	default:
		return
	}
	if !j.endShows() {
		l.keepLoaded(ctx, j)
	}
	j.event(attach.StepRestart, attach.Running, "restarting")
	slots <- struct{}{}
	begun := time.Now()
	j.since = begun
	var err error
	switch {
	case j.wasStopped() || j.d.Attachment == nil && l.byPath(j.d.Record.Loaded) && l.runs(ctx, j.d.Unit):
		if err = l.startWithout(ctx, j, func() { l.unloadPolicies(ctx, []*job{j}) }); err == nil {
			err = l.startDragged(ctx, j, nil)
		}
		if err == nil {
			j.d.Record.Stopped, j.d.Record.Dragged = false, nil
		}
	case j.waited():
		err = l.startStopped(ctx, j)
	default:
		err = l.tryRestart(ctx, j)
	}
	<-slots
	j.took = time.Since(begun)
	if j.waits {
		j.over = true // the record stays, and the next trigger goes on
		j.noteWait()
		l.tellWait(j)
		return
	}
	j.restarted, j.out.Changed, j.out.Restarted = true, true, true
	if canceled(err) {
		err = l.giveWay(ctx, j, err)
	}
	if r := &j.d.Record; j.stopped && (r.Stopped || len(r.Dragged) > 0) {
		r.Stopped, r.Dragged = false, nil // somebody wants it so
		l.remember(*r)
	}
	if err != nil {
		j.fail(attach.StepRestart, attach.Because(attach.AttachFailed, "%v", err).WithNext("journalctl -u "+j.d.Unit))
		return
	}
	if j.d.Attachment == nil && !j.stopped {
		j.event(attach.StepRestart, attach.Done, "active after %s", seconds(j.took))
	}
	if j.d.Attachment == nil {
		return
	}
	l.unloadChildren(ctx, []*job{j})
	if !j.stopped {
		l.settle(ctx, j)
	}
}

// startStopped starts a unit that is down since it was stopped for that, with what went down
// with it.
func (l *Loop) startStopped(ctx context.Context, j *job) error {
	if err := l.systemd.Start(ctx, j.d.Unit); err != nil {
		return err
	}
	return l.startDragged(ctx, j, nil)
}

// endShows reports whether systemd tells of the end that a restarted unit has come to, if
// it has failed, without being kept from letting go of it: where nobody watches it any
// longer than until the job is done, one that ended well meanwhile is only down. That of a
// oneshot is to be read in any case.
func (j *job) endShows() bool {
	u, a := j.o.Unit, j.d.Attachment
	return a != nil && a.Settle == 0 && j.plan.Has(attach.Restart) && u.FailedStays && !u.NeedReload && u.Type != "oneshot"
}

// keepLoaded keeps systemd from letting go of a unit that is watched, until the end of the
// pass: loaded anew, one that failed reads as if it had never been started. Where that
// cannot be done it may be overlooked.
func (l *Loop) keepLoaded(ctx context.Context, j *job) {
	release, err := l.systemd.Keep(ctx, j.d.Unit)
	if err != nil {
		l.log.Debug("systemd may let go of a unit while it is watched", journal.FieldUnit, j.d.Unit, "err", err)
		return
	}
	j.letGo = release
}

// canceled reports whether a job failed since another one took its place.
func canceled(err error) bool {
	var by interface{ Canceled() bool }
	return errors.As(err, &by) && by.Canceled()
}

// giveWay is for a restart of which somebody else's job took the place. A unit that was
// stopped stays so, whatever it was restarted for; a start serves as well as our own. It
// waits for the end of a stop, so that the verdict is not on what is about to go.
func (l *Loop) giveWay(ctx context.Context, j *job, cause error) error {
	for begun := time.Now(); ; {
		u, err := l.systemd.Glance(ctx, j.d.Unit)
		switch {
		case err != nil:
			return err
		case u.ActiveState == "deactivating" && ctx.Err() == nil && time.Since(begun) < passing:
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
			continue
		case u.ActiveState == "failed":
			j.stopped = true
			return cause
		case !u.Active() || u.ActiveState == "deactivating" || u.InvocationID == j.o.Unit.InvocationID:
			j.stopped, j.out.Restarted = true, false
			j.event(attach.StepRestart, attach.Skipped, "somebody else's job took the place of the restart; %s is %s", j.d.Unit, u.ActiveState)
		}
		return nil
	}
}

// inPlace reports whether the kernel has what was accepted for a unit, at this
// moment.
func (l *Loop) inPlace(accepted map[string]string) bool {
	live, err := l.apparmor.Live(slices.Collect(maps.Keys(accepted)))
	return err == nil && hasLive(accepted, live)
}

// countsInPlace reports whether it has what counts in place of that.
func (l *Loop) countsInPlace(own claim, d attach.Desired) bool {
	accepted, _ := l.counting(own, d)
	return l.inPlace(accepted)
}

// removed reports whether the kernel has no policy at all of a profile that was
// accepted for a unit.
func (l *Loop) removed(r attach.Record) bool {
	live, err := l.apparmor.Live(slices.Collect(maps.Keys(r.Accepted)))
	if err != nil {
		return false
	}
	for name := range r.Accepted {
		if _, loaded := live[name]; !loaded {
			return true
		}
	}
	return false
}

// runs reports whether a unit is active now: one that was stopped meanwhile stays
// stopped, which a try-restart sees to by itself.
func (l *Loop) runs(ctx context.Context, unit string) bool {
	u, err := l.systemd.Observe(ctx, unit)
	return err == nil && u.Active()
}

// diedMeanwhile reports whether an attach was cut off between the restart that
// failed and its undo.
func (j *job) diedMeanwhile() bool {
	f := j.d.Record.Former
	ran := j.before.Attaching && j.before.Before.Running || f != nil && f.Running
	return j.d.Attachment != nil && ran && (j.o.Unit.ActiveState == "failed" || j.before.Stopped && !j.o.Unit.Active())
}

// restartedBefore reports whether an attach was cut off when it had restarted the
// unit: whether it stays healthy has yet to show.
func (j *job) restartedBefore() bool {
	f := j.d.Record.Former
	ran := j.before.Attaching && j.before.Before.Running && !j.before.Before.Confined || f != nil && f.Running && f.Profile != j.d.Profile
	waits := slices.ContainsFunc(j.plan.Pending, func(r attach.Reason) bool { return r.Code == attach.RestartPending })
	return j.d.Attachment != nil && ran && j.o.Unit.Active() && !j.plan.Has(attach.Restart) && !waits
}

// wasStopped reports whether a detach was cut off when it had stopped the unit
// to start it again.
func (j *job) wasStopped() bool {
	return j.d.Attachment == nil && j.before.Stopped && !j.o.Unit.Active()
}

// waited reports whether the unit is down since the undo of an earlier attach, which
// was held and is tried again now, could not unload the profile, or since a detach that
// was cut off had stopped it.
func (j *job) waited() bool {
	return j.before.Stopped && !j.before.Attaching && !j.before.Trial.GoesOn() && j.d.Attachment != nil && !j.held() && !j.o.Unit.Active()
}

// settle waits until the unit has stayed the same start for SettleSec.
func (l *Loop) settle(ctx context.Context, j *job) {
	at := time.Now()
	first, err := l.systemd.Glance(ctx, j.d.Unit)
	if err != nil {
		j.fail(attach.StepRestart, unheard(j.d, err).Reasons...)
		return
	}
	// What is not confined from the start needs no waiting for.
	v, o := l.judgeRead(ctx, j.d, true, first, at)
	first.NRestarts = 0 // systemd counts from 0 again when a job starts a unit
	if w := l.blamed(j.d, o, v); w.Answer == attach.NotConfined && o.Unit.Active() && !only(w, attach.TaskComplain) {
		j.verdict, j.seen = v, o
		j.event(attach.StepRestart, attach.Done, "active after %s", seconds(j.took))
		return
	}
	span := j.d.Attachment.Settle
	why, err := l.watch(ctx, j.d.Unit, first.Start(), span, unhealthy, func() string { return "" }, func(attach.Start) {})
	switch {
	case ctx.Err() != nil:
		j.over = true // the next start goes on from here
		return
	case err != nil:
		j.fail(attach.StepRestart, unheard(j.d, err).Reasons...)
		return
	case why != "":
		j.fail(attach.StepRestart, attach.Because(attach.AttachFailed, "%s", why).WithNext("journalctl -u "+j.d.Unit))
		return
	}
	if span == 0 {
		if v.Answer == attach.Confined {
			j.verdict, j.seen = v, o // no time has passed since
		}
		j.event(attach.StepRestart, attach.Done, "active after %s", seconds(j.took))
		return
	}
	j.event(attach.StepRestart, attach.Done, "active after %s, stayed healthy for %s", seconds(j.took), seconds(span))
}

// watch looks at a unit, and asks ill and also, for as long as span, and says what is
// wrong with it, or "". It ends early when the answer is clear, or ctx ends. Where a
// job starts the unit anew, that is no fault of it: the span begins again, and anew is
// told. So it is with the first start of one that had ended before.
func (l *Loop) watch(ctx context.Context, unit string, first attach.Start, span time.Duration, ill func(attach.Start, attach.Unit) string, also func() string, anew func(attach.Start)) (why string, err error) {
	interval := max(span/10, 100*time.Millisecond)
	times := 0
	for deadline := time.Now().Add(span); ; {
		u, err := l.systemd.Glance(ctx, unit)
		if err != nil {
			return "", err
		}
		begins := first.Restarting && u.InvocationID != "" && u.InvocationID != first.InvocationID
		if times < maxAnew && (begins || startedByHand(first, u)) {
			times++
			first, deadline = u.Start(), time.Now().Add(span)
			anew(first)
		}
		if why := ill(first, u); why != "" {
			return why, nil
		}
		if why := also(); why != "" {
			return unit + " " + why, nil
		}
		left := time.Until(deadline)
		if left <= 0 {
			return "", nil
		}
		select {
		case <-ctx.Done():
			return "", nil
		case <-time.After(min(interval, left)):
		}
	}
}

// maxAnew is how often a unit may be started anew by hand while it is watched.
const maxAnew = 10

// startedByHand reports whether a unit was started anew by a job, as by systemctl
// restart, a package or a boot, and not by systemd itself, which counts such starts
// (NRestarts, from 0 again at each start by a job: service_start in systemd's
// service.c).
func startedByHand(first attach.Start, now attach.Unit) bool {
	return now.InvocationID != "" && now.InvocationID != first.InvocationID && now.NRestarts == 0 && now.Active() && !waitsForRestart(now)
}

// waitsForRestart reports whether a unit has ended and systemd will start it again.
func waitsForRestart(u attach.Unit) bool { return strings.HasPrefix(u.SubState, "auto-restart") }

// unhealthy compares a unit with how it was at the beginning.
func unhealthy(first attach.Start, now attach.Unit) string {
	switch {
	case first.Restarting: // it has not been started since
	case now.ActiveState == "failed":
		return now.ID + " failed" + exitText(now)
	case now.NRestarts > first.NRestarts || now.SubState == "auto-restart":
		return now.ID + " ended and was restarted by systemd" + exitText(now)
	case now.InvocationID != "" && now.InvocationID != first.InvocationID: // "" is no start at all; see keepLoaded
		return fmt.Sprintf("%s was started anew", now.ID)
	case now.Type != "oneshot" && first.Active && !now.Active() && now.Result != "success":
		return now.ID + " ended" + exitText(now)
	case first.MainPID != 0 && now.MainPID != 0 && now.MainPID != first.MainPID:
		return fmt.Sprintf("the main process of %s changed", now.ID)
	}
	return ""
}

// exitText says how the main process ended, where systemd still knows: it
// forgets when it starts the next one.
func exitText(u attach.Unit) string {
	switch u.ExecMainCode {
	case 1:
		if u.ExecMainStatus == 231 {
			switch attach.LastStartOf(u, nil, attach.Hearing{}).Reached {
			case attach.No:
				return ": status 231/APPARMOR: systemd could not put the profile on"
			case attach.Yes:
				return ": the program itself ended with status 231"
			}
			return ": status 231/APPARMOR, which says that systemd could not put the profile on, or that the program ended with 231"
		}
		return fmt.Sprintf(": exit status %d", u.ExecMainStatus)
	case 2, 3:
		return fmt.Sprintf(": killed by signal %d", u.ExecMainStatus)
	}
	if u.Result != "" && u.Result != "success" {
		return ": result " + u.Result
	}
	return ""
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.3g s", d.Seconds()) }

// only reports whether every reason that speaks against the verdict is code.
func only(v attach.Verdict, code attach.Code) bool {
	for _, r := range v.Reasons {
		if r.Code.Bearing() != attach.Confined && r.Code != code {
			return false
		}
	}
	return true
}

// complainsAsWished reports whether all that speaks against the verdict is the
// complain mode that the attachment asks for.
func complainsAsWished(d attach.Desired, v attach.Verdict) bool {
	return d.Attachment.Mode == attach.WishComplain && only(v, attach.TaskComplain)
}

// fails reports whether the verdict after a restart speaks against what it was made for.
func (l *Loop) fails(j *job) bool {
	v := l.blamed(j.d, j.seen, j.verdict)
	return v.Answer == attach.NotConfined && !complainsAsWished(j.d, v)
}

// verdicts is step 7.
func (l *Loop) verdicts(ctx context.Context, jobs []*job) {
	each(len(jobs), func(i int) {
		j := jobs[i]
		if j.d.Attachment == nil || !j.alive() {
			return
		}
		if attach.IsPattern(j.d.Unit) {
			if r := &j.d.Record; len(r.DropIns) > 0 && !j.held() {
				r.Unit, r.Attachment, r.Profile = j.d.Unit, j.d.Attachment.Source, j.d.Profile
				r.Attaching, r.Stays, r.Stopped, r.Former = false, nil, false, nil
				l.remember(*r)
				l.publish(j.d.Unit, func(*attach.Status) {})
				l.tellComplains(j)
			}
			return
		}
		if j.verdict.Unit == "" {
			j.verdict, j.seen = l.judge(ctx, j.d, j.restarted && !j.stopped)
		}
		v := j.verdict
		j.out.Verdict = &v
		j.out.Exit = attach.ExitOf(&v)
		if ctx.Err() != nil && v.Answer == attach.Unknown {
			return // nobody was asked; the next start goes on
		}
		switch {
		case v.Answer == attach.Confined:
			j.event(attach.StepVerdict, attach.Done, "%s", VerdictText(v))
		case j.restarted && !j.stopped && l.fails(j):
			j.fail(attach.StepVerdict, v.Reasons...)
		default:
			j.event(attach.StepVerdict, attach.Warned, "%s", VerdictText(v))
		}
		if j.alive() {
			if r := &j.d.Record; len(r.DropIns) > 0 && !j.held() {
				r.Unit, r.Attachment, r.Profile, r.RestartUnit = j.d.Unit, j.d.Attachment.Source, j.d.Profile, j.d.Attachment.RestartUnit
				if r.Attaching && v.Answer == attach.Confined {
					l.log.Info(j.d.Unit+" is attached to profile "+j.d.Profile, journal.FieldMessageID, string(journal.MsgAttached),
						journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile)
				}
				r.Attaching, r.Stays, r.Stopped, r.Dragged, r.Former = false, nil, false, nil, nil
				l.rememberSoon(*r)
				if v.Answer == attach.Confined {
					l.releasePattern(j.d)
				}
			}
			if v.Answer != attach.Confined {
				l.flush(j.d.Unit) // it may take long to stop it
			}
			l.stopViolator(ctx, j.d, j.before, &j.seen, v, len(j.heals()) > 0)
			l.conclude(j.d, j.seen, v)
			l.flush(j.d.Unit)
			l.publish(j.d.Unit, func(s *attach.Status) { s.Notes = j.out.Notes })
		}
	})
}

// VerdictText puts a verdict into one line.
func VerdictText(v attach.Verdict) string {
	s := fmt.Sprintf("%s in %s", count(v.Tasks, "task", "tasks"), count(v.Processes, "process", "processes"))
	switch {
	case v.Answer == attach.Confined && v.PrivateTmp == attach.Yes:
		return s + ", private /tmp"
	case v.Answer == attach.Confined:
		return s
	case len(v.Reasons) > 0:
		return v.Reasons[0].String()
	}
	return v.Answer.String()
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// remember is keep where nothing hangs on the record being on disk: the next
// pass finds out again what it says.
func (l *Loop) remember(r attach.Record) {
	if r.Unit == "" {
		return
	}
	if err := l.save(r, true); err != nil {
		l.log.Error("cannot keep the record of a unit", journal.FieldUnit, r.Unit, "err", err)
	}
}

// keep keeps a record on disk, and then in memory: what is not on disk does not
// count as recorded.
func (l *Loop) keep(r attach.Record) error { return l.save(r, false) }

func (l *Loop) save(r attach.Record, anyhow bool) error {
	keeping := l.keeping.of(r.Unit)
	keeping.Lock()
	defer keeping.Unlock()
	r.Boot = l.boot
	l.mu.Lock()
	l.goOn(&r)
	l.mu.Unlock()
	done := l.onDisk()
	err := l.store.Save(r)
	done()
	if err == nil || anyhow {
		l.mu.Lock()
		l.put(r)
		l.noteSaved(r.Unit, err == nil)
		l.mu.Unlock()
	}
	return err
}

// goOn takes over what looks have put on the record of a unit while the one in hand was
// changed. l.mu is held.
func (l *Loop) goOn(r *attach.Record) {
	old := l.records[r.Unit]
	if old.Verdict != nil && (r.Verdict == nil || r.Verdict.At.Before(old.Verdict.At)) {
		r.Verdict = old.Verdict
	}
	r.Unfiltered = cmp.Or(old.Unfiltered, r.Unfiltered)
	r.SocketsKept = r.Sockets != nil && (r.SocketsKept || old.SocketsKept)
}

// noteSaved notes whether the disk has the record of a unit as it is in memory. l.mu is
// held.
func (l *Loop) noteSaved(unit string, is bool) {
	if is {
		delete(l.unsaved, unit)
		return
	}
	if l.unsaved == nil {
		l.unsaved = map[string]bool{}
	}
	l.unsaved[unit] = true
}

// put keeps a record in memory. Units of one profile mostly have the same policy, so
// they share the maps of it, in which nothing is ever changed. l.mu is held.
func (l *Loop) put(r attach.Record) {
	r = r.Clone()
	like := l.records[l.alike[r.Profile]]
	if maps.Equal(r.Accepted, like.Accepted) {
		r.Accepted = like.Accepted
	}
	if maps.Equal(r.Policies, like.Policies) {
		r.Policies = like.Policies
	}
	if len(r.Accepted) > 0 {
		l.alike[r.Profile] = r.Unit
	}
	l.records[r.Unit] = r
}

// rememberSoon is remember for a record that gets a verdict in a moment: both are
// written at once, by keepVerdict, or by flush.
func (l *Loop) rememberSoon(r attach.Record) {
	keeping := l.keeping.of(r.Unit)
	keeping.Lock()
	defer keeping.Unlock()
	r.Boot = l.boot
	l.mu.Lock()
	defer l.mu.Unlock()
	l.goOn(&r)
	l.put(r)
	l.noteSaved(r.Unit, false)
}

// flush writes the record of a unit where the disk has an earlier state.
func (l *Loop) flush(unit string) {
	keeping := l.keeping.of(unit)
	keeping.Lock()
	defer keeping.Unlock()
	l.mu.Lock()
	r, unsaved := l.records[unit].Clone(), l.unsaved[unit]
	l.mu.Unlock()
	if unsaved {
		l.write(r)
	}
}

// write puts a record on disk as it is in memory. The unit's lock of keeping is held.
func (l *Loop) write(r attach.Record) {
	done := l.onDisk()
	err := l.store.Save(r)
	done()
	if err != nil {
		l.log.Error("cannot keep the record of a unit", journal.FieldUnit, r.Unit, "err", err)
	}
	l.mu.Lock()
	l.noteSaved(r.Unit, err == nil)
	l.mu.Unlock()
}

func (l *Loop) forget(unit string) {
	keeping := l.keeping.of(unit)
	keeping.Lock()
	defer keeping.Unlock()
	l.mu.Lock()
	delete(l.records, unit)
	delete(l.unsaved, unit)
	delete(l.barred, unit)
	delete(l.readAnew, unit)
	l.mu.Unlock()
	l.socketWatch.forget(unit)
	if err := l.store.Delete(unit); err != nil {
		l.log.Error("cannot remove the record of a unit", journal.FieldUnit, unit, "err", err)
	}
}
