package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// Socket options are beside the profile: a program of the kernel on the unit's
// control group, which a start helper puts there, and for a unit that runs this
// daemon. So nothing here needs a restart.

// socketNames are those of .socket units among names of a record.
func socketNames(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !strings.HasSuffix(name, ".socket") })
}

// observeSockets looks at what is attached for the socket options of a unit, and at
// the .socket units that start it, where its attachment wants any. Those of a template or
// prefix are the ones of instances that were forgotten: with Accept=yes, systemd ties a
// .socket unit to nothing between two connections (socket_enter_running in its
// src/core/socket.c).
func (l *Loop) observeSockets(ctx context.Context, d attach.Desired, how depth, o *attach.Observed) {
	want := d.Attachment.SocketsWanted()
	if want == nil {
		return
	}
	names := o.Unit.Sockets
	if attach.IsPattern(d.Unit) {
		names = socketNames(d.Record.SocketUnits)
	}
	if len(names) > 0 {
		found, err := l.systemd.StartingSockets(ctx, names)
		if err != nil {
			o.SocketsProblem = err.Error()
		}
		for _, s := range found {
			if how == full {
				s.DropIn = l.readDropInAt(d, attach.DropInPath(s.ID, d.Attachment.Runtime))
				s.HeldFor = l.otherRules(d.Unit, s.ID, *want)
			}
			o.SocketUnits = append(o.SocketUnits, s)
		}
	}
	for _, s := range o.SocketUnits {
		if s.Active && s.ControlGroup == "" {
			o.Sockets = append(o.Sockets, attach.SocketsMadeElsewhere(s.ID))
		}
	}
	for _, r := range runningGroups(*o) {
		o.Sockets = append(o.Sockets, l.sockets.Attached(r.group, r.unit, *want))
	}
	if s := o.Unit.Settings; s.HoldsBPF() || s.GainsBPF() {
		o.MayBPF = l.policyMay(ctx, d, "bpf", attach.Assertion{Class: attach.AssertCapability, Object: "bpf"}, attach.Assertion{Class: attach.AssertCapability, Object: "sys_admin"})
	}
}

// observeMain looks at what the main process is held to, or all of a unit that has none,
// where its socket options are held to a list, and at what its policy leaves it. It comes behind the look at the tasks: what
// is on its way to the program has none of the program's limits yet.
func (l *Loop) observeMain(ctx context.Context, d attach.Desired, o *attach.Observed) {
	want := d.Attachment.SocketsWanted()
	if want == nil || want.Mode != attach.SocketsEnforce || attach.IsPattern(d.Unit) {
		return
	}
	var tasks []attach.Task
	if o.Scan != nil && o.Scan.Problem == "" {
		tasks = o.Scan.Tasks
	}
	o.Main = l.apparmor.MainProcess(o.Unit, tasks)
	if o.ActsAsRoot() {
		o.MayUnpin = l.policyMay(ctx, d, "pins", attach.WritesPins)
		o.MayMoveOut = l.policyMay(ctx, d, "groups", attach.WritesGroups)
	}
}

// running is a unit with a control group.
type running struct{ unit, group string }

// runningGroups are the service and its .socket units as far as they run.
func runningGroups(o attach.Observed) (out []running) {
	if o.Unit.Active() && o.Unit.ControlGroup != "" {
		out = append(out, running{o.Unit.ID, o.Unit.ControlGroup})
	}
	for _, s := range o.SocketUnits {
		if s.Active && s.ControlGroup != "" {
			out = append(out, running{s.ID, s.ControlGroup})
		}
	}
	return out
}

// maxMay bounds the answers that policyMay remembers.
const maxMay = 3 * 4096

// policyMay says whether an accepted policy of the unit lets one of its profiles do any of
// what is asked, which what names. A policy is asked once.
func (l *Loop) policyMay(ctx context.Context, d attach.Desired, what string, questions ...attach.Assertion) attach.Tri {
	if len(d.Record.Policies) == 0 {
		return attach.CouldNotTell
	}
	answer := attach.No
	for _, id := range d.Record.Policies {
		key := what + "\x00" + id + "\x00" + strings.Join(profilesOf(d), "\x00")
		l.mu.Lock()
		may, known := l.may[key]
		l.mu.Unlock()
		if !known {
			if may = l.askPolicy(ctx, d, id, questions); may != attach.CouldNotTell {
				l.mu.Lock()
				if len(l.may) >= maxMay {
					clear(l.may)
				}
				l.may[key] = may
				l.mu.Unlock()
			}
		}
		switch {
		case may == attach.Yes:
			return attach.Yes
		case may == attach.CouldNotTell:
			answer = attach.CouldNotTell
		}
	}
	return answer
}

func (l *Loop) askPolicy(ctx context.Context, d attach.Desired, id string, questions []attach.Assertion) attach.Tri {
	c, kept := l.policies.Lookup(id)
	if !kept || l.gate == nil {
		return attach.CouldNotTell
	}
	answer := attach.No
	for _, p := range c.Profiles {
		if !slices.ContainsFunc(profilesOf(d), func(n string) bool { return p.Name == n || strings.HasPrefix(p.Name, n+"//") }) {
			continue
		}
		for _, q := range questions {
			switch l.gate.Query(ctx, p.Name, c, q).May {
			case attach.MayNo:
			case attach.MayYes, attach.MayNotMediated:
				return attach.Yes
			default:
				answer = attach.CouldNotTell
			}
		}
	}
	return answer
}

// saveSockets keeps the rules of units for the start helper, before the drop-in that
// runs it is written. The record comes first: what is there is known to be taken
// back. Rules that somebody removed are written again.
func (l *Loop) saveSockets(jobs []*job) {
	eachAlive(jobs, func(j *job) {
		want := j.d.Attachment.SocketsWanted()
		if want == nil || j.held() {
			return
		}
		names := []string{j.d.RulesName()}
		for _, s := range j.o.SocketUnits {
			names = append(names, s.ID)
		}
		if err := l.ownSockets(j, append(names, j.d.Unit)); err != nil {
			j.fail(attach.StepSockets, attach.Because(attach.RecordBad, "%v", err).WithNext(wayOut(err)))
			return
		}
		for _, name := range names {
			changed, err := l.sockets.Save(name, *want)
			j.out.Changed = j.out.Changed || changed
			if err != nil {
				j.fail(attach.StepSockets, attach.Because(attach.RecordBad, "%v", err).WithNext(wayOut(err)))
				return
			}
		}
	})
	// One after the other, as the last one who shares rules takes them along.
	for _, j := range jobs {
		if j.alive() && !j.held() && j.d.Attachment.SocketsWanted() != nil {
			l.dropRules(j)
		}
	}
}

// dropRules deletes rules of an earlier attachment that the start helper would take for
// those that were just kept.
func (l *Loop) dropRules(j *job) {
	var left []string
	for _, name := range j.d.Record.SocketUnits {
		own := name == j.d.Unit // of which there are programs, too
		if j.d.FoundFirst(name) && (own || !l.sharedSockets(j.d.Unit, name)) {
			changed, err := l.sockets.Delete(name)
			j.out.Changed = j.out.Changed || changed
			if err != nil {
				j.fail(attach.StepSockets, attach.Because(attach.RecordBad, "%v", err).WithNext(wayOut(err)))
				return
			}
		}
		if own || !j.d.FoundFirst(name) {
			left = append(left, name)
		}
	}
	if len(left) < len(j.d.Record.SocketUnits) {
		j.d.Record.SocketUnits = left
		l.remember(j.d.Record)
	}
}

// ownSockets puts names on the unit's record for which there will be rules or
// programs.
func (l *Loop) ownSockets(j *job, names []string) error {
	was := j.d.Record.Clone()
	r := &j.d.Record
	for _, name := range names {
		if !slices.Contains(r.SocketUnits, name) {
			r.SocketUnits = append(r.SocketUnits, name)
		}
	}
	if len(r.SocketUnits) == len(was.SocketUnits) {
		return nil
	}
	r.Unit, r.Attachment = j.d.Unit, j.d.Attachment.Source
	if err := l.keep(*r); err != nil {
		*r = was
		return err
	}
	return nil
}

// applySockets has the rules hold for what runs, or takes them off. What could not be
// done is told; whether it matters is the verdict's to say.
func (l *Loop) applySockets(jobs []*job) {
	eachAlive(jobs, func(j *job) {
		if !j.plan.Has(attach.HoldSockets) || j.held() {
			return
		}
		l.holdSockets(j, runningGroups(j.o))
	})
	// One after the other, as the last one who shares rules takes them along.
	for _, j := range jobs {
		if j.alive() && j.plan.Has(attach.ReleaseSockets) {
			l.releaseSockets(j, nil)
		}
	}
}

func (l *Loop) holdSockets(j *job, groups []running) {
	want := j.d.Attachment.SocketsWanted()
	var why attach.Reason
	for _, a := range j.plan.Actions {
		if a.Kind == attach.HoldSockets {
			why = a.Reason
		}
	}
	ok := true
	for _, r := range groups {
		changed, err := l.sockets.Attach(r.group, r.unit, *want)
		if err != nil {
			ok = false
			j.out.Notes = append(j.out.Notes, attach.Because(attach.SocketsNote, "%v", err).WithNext(wayOut(err)))
			j.event(attach.StepSockets, attach.Warned, "%v", err)
			continue
		}
		j.out.Changed = j.out.Changed || changed
		if changed && why.Code == attach.SocketsNotHeld {
			l.log.Warn("put back the socket options of "+r.unit+": "+why.String(), journal.FieldMessageID, string(journal.MsgSocketsHealed),
				journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile)
		}
	}
	j.d.Record.Sockets = want
	if ok {
		j.event(attach.StepSockets, attach.Done, "%s", socketsText(*want))
	}
}

// socketsText puts rules into one line.
func socketsText(s attach.SocketOptions) string {
	text := "mode " + string(s.Mode)
	if s.Mode == attach.SocketsEnforce {
		text += ", " + count(len(s.Allow), "option", "options") + " may be set"
		if s.HoldsGet() {
			text += ", " + count(len(s.AllowGet), "option", "options") + " may be read"
		}
	}
	return text
}

// releaseSockets takes off what is attached for the names on the unit's record that
// nobody else has on his, but for those to keep. In mode off what was recorded stays
// readable.
func (l *Loop) releaseSockets(j *job, keep []string) {
	var left []string
	for _, name := range j.d.Record.SocketUnits {
		if slices.Contains(keep, name) {
			left = append(left, name)
			continue
		}
		if l.sharedSockets(j.d.Unit, name) {
			continue
		}
		if err := l.releaseName(j, name); err != nil {
			left = append(left, name)
			why := attach.Because(attach.SocketsNote, "%v", err).WithNext(wayOut(err))
			if j.d.Attachment == nil {
				j.left = append(j.left, why)
			} else {
				j.out.Notes = append(j.out.Notes, why)
			}
			j.event(attach.StepSockets, attach.Warned, "%v", err)
		}
	}
	j.d.Record.SocketUnits = left
	if len(keep) == 0 {
		j.d.Record.Sockets = nil
	}
	l.mu.Lock()
	if r, ok := l.records[j.d.Unit]; ok {
		r = r.Clone()
		r.SocketUnits = left
		l.records[j.d.Unit] = r
	}
	l.mu.Unlock()
	if len(left) == len(keep) {
		j.event(attach.StepSockets, attach.Done, "released")
	}
}

func (l *Loop) releaseName(j *job, name string) error {
	changed, err := l.sockets.Delete(name)
	j.out.Changed = j.out.Changed || changed
	if err != nil || attach.IsPattern(name) {
		return err
	}
	if a := j.d.Attachment; a != nil && a.SocketOptions != nil {
		changed, err = l.sockets.Off(name)
	} else {
		changed, err = l.sockets.Remove(name)
	}
	j.out.Changed = j.out.Changed || changed
	return err
}

// sharedSockets reports whether another unit has a name on its record: units of one
// pattern share its rules, and those of one .socket unit that.
func (l *Loop) sharedSockets(unit, name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for other, r := range l.records {
		if other != unit && slices.Contains(r.SocketUnits, name) {
			return true
		}
	}
	return false
}

// otherRules finds another attached unit for which a .socket unit is held to other rules
// than these, "" none. Of two units that have it the first one counts.
func (l *Loop) otherRules(unit, socket string, want attach.SocketOptions) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	has := slices.Contains(l.records[unit].SocketUnits, socket)
	for _, other := range slices.Sorted(maps.Keys(l.records)) {
		r := l.records[other]
		if other == unit || !slices.Contains(r.SocketUnits, socket) || has && other > unit {
			continue
		}
		rules := l.targets[other].SocketsWanted()
		if l.targets[other] == nil && (len(l.rivals[other]) > 0 || broken(l.declared, r.Attachment)) {
			rules = r.Sockets // it stays as it is
		}
		if rules != nil && !rules.Same(want) {
			return other
		}
	}
	return ""
}

// putBackSockets goes back to the rules from before the pass, when an attach is
// undone: under the names in whose directories the line of the helper was.
func (l *Loop) putBackSockets(j *job) {
	if j.before.Sockets == nil || j.fresh {
		if len(j.d.Record.SocketUnits) > 0 && !j.stuck {
			l.releaseSockets(j, nil)
		}
		return
	}
	l.releaseSockets(j, j.before.SocketUnits)
	for _, name := range j.before.SocketUnits {
		if j.before.DropIns.Has(attach.DropInPath(name, false)) || j.before.DropIns.Has(attach.DropInPath(name, true)) {
			if _, err := l.sockets.Save(name, *j.before.Sockets); err != nil {
				j.out.Notes = append(j.out.Notes, attach.Because(attach.SocketsNote, "%v", err).WithNext(wayOut(err)))
			}
		}
	}
	for _, r := range runningGroups(j.o) {
		if _, err := l.sockets.Attach(r.group, r.unit, *j.before.Sockets); err != nil {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.SocketsNote, "%v", err).WithNext(wayOut(err)))
		}
	}
}
