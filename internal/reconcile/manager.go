package reconcile

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// operation is a pass that somebody asked for.
type operation struct {
	progress func(attach.Event) // from several goroutines; never nil
	// withdraw takes back an attachment that the operation made, by unit.
	withdraw map[string]func() error
	// unattended: what changed in files is taken over. Nobody sits there who could decide
	// about what is denied.
	unattended bool
}

// newOperation makes progress safe to call from the goroutines of a pass.
func newOperation(progress func(attach.Event)) *operation {
	var mu sync.Mutex
	return &operation{withdraw: map[string]func() error{}, progress: func(e attach.Event) {
		if progress == nil {
			return
		}
		mu.Lock()
		defer mu.Unlock()
		progress(e)
	}}
}

func (op *operation) withdrawal(unit string) func() error {
	if op == nil {
		return nil
	}
	return op.withdraw[unit]
}

// do runs work on the goroutine that changes things. ctx bounds the wait until it
// begins. What has begun is waited for: it ends soon where the daemon ends, whose end
// is that of ctx too, and whoever asked is to be told how.
func (l *Loop) do(ctx context.Context, work func(context.Context) []attach.Outcome) ([]attach.Outcome, error) {
	done := make(chan []attach.Outcome, 1)
	select {
	case l.asked <- func(run context.Context) { done <- work(run) }:
	case <-ctx.Done():
		return nil, fmt.Errorf("cannot begin: %w", context.Cause(ctx))
	}
	return <-done, nil
}

// Attach attaches units to a profile, at a person's request.
func (l *Loop) Attach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	if r.DryRun {
		return l.Plan(ctx, r)
	}
	return l.do(ctx, func(ctx context.Context) []attach.Outcome {
		op := newOperation(progress)
		prepared, m := l.prepare(ctx, r)
		for _, p := range prepared {
			p.tell(op.progress)
		}
		each(len(prepared), func(i int) { l.writeAttachment(prepared[i], op) })
		var units []string
		for _, p := range prepared {
			if p.restore != nil {
				op.withdraw[p.unit] = p.restore
			}
			if !p.refused() {
				units = append(units, p.unit)
			}
		}
		l.declare(ctx)
		for _, p := range prepared {
			if restore := op.withdraw[p.unit]; restore != nil && l.ineffective(p) {
				delete(op.withdraw, p.unit)
				if err := restore(); err != nil {
					p.refuse(attach.Because(attach.AttachmentBad, "the attachment could not be withdrawn: %v", err).At(p.d.Attachment.Source))
				}
				p.tell(op.progress)
				units = slices.DeleteFunc(units, func(u string) bool { return u == p.unit })
			}
		}
		out := collect(prepared, l.passFor(ctx, units, op, m))
		for i := range out {
			if out[i].Exit == attach.ExitOK && out[i].Verdict == nil {
				out[i].Exit = attach.ExitUnknown // nobody has looked at the unit
				if idle, _ := l.toCome([]string{out[i].Unit}); len(idle) == 1 {
					out[i].Verdict = idle[0].Verdict
				}
			}
		}
		return out
	})
}

// writeAttachment writes the attachment of a unit, where it is to be written.
func (l *Loop) writeAttachment(p *prepared, op *operation) {
	if p.refused() || !p.write {
		return
	}
	file, restore, err := l.attachments.Write(p.unit, *p.d.Attachment)
	if err != nil {
		code := attach.AttachmentBad
		if other := (*attach.InTheWay)(nil); errors.As(err, &other) {
			code = attach.DeclaredInFile
		}
		p.refuse(attach.Because(code, "%v", err).WithNext(wayOut(err)))
		p.tell(op.progress)
		return
	}
	a := *p.d.Attachment
	a.Source = file
	p.d.Attachment, p.restore = &a, restore
}

// ineffective refuses an attachment that was written and is not in use, since
// its directory or another file stands in the way.
func (l *Loop) ineffective(p *prepared) bool {
	now := l.target(p.unit)
	if now != nil && now.Source == p.d.Attachment.Source {
		return false
	}
	l.mu.Lock()
	problems := slices.Clone(l.declared.Problems)
	l.mu.Unlock()
	p.refuse(attach.Because(attach.AttachmentBad, "%s is not in use after it was written, so it was taken back", p.d.Attachment.Source).At(p.d.Attachment.Source))
	p.refuse(problems...)
	return true
}

// Plan says what Attach would do, and changes nothing.
func (l *Loop) Plan(ctx context.Context, r attach.Request) ([]attach.Outcome, error) {
	prepared, _ := l.prepare(ctx, r)
	each(len(prepared), func(i int) {
		p := prepared[i]
		if p.refused() || p.out.Plan == nil {
			return
		}
		if p.out.Plan.Has(attach.Restart) && p.o.Unit.Settings.PrivateTmp == attach.PrivateTmpNo && p.d.Attachment.PrivateTmp != attach.PrivateTmpNo {
			p.out.Plan.TmpFiles = l.apparmor.OpenInTmp(ctx, p.o.Unit)
		}
		p.out.Notes = append(p.out.Notes, p.out.Plan.Warnings...)
		p.out.Notes = append(p.out.Notes, p.out.Plan.Pending...)
	})
	return collect(prepared, nil), nil
}

// Detach withdraws attachments that were made at the command line.
func (l *Loop) Detach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	if r.DryRun {
		return l.detachPlan(ctx, r), nil
	}
	return l.do(ctx, func(ctx context.Context) []attach.Outcome {
		op := newOperation(progress)
		prepared := l.prepareDetach(ctx, r)
		each(len(prepared), func(i int) { l.removeAttachment(prepared[i], r, op) })
		var units []string
		for _, p := range prepared {
			if !p.refused() && p.write {
				units = append(units, p.unit)
			}
		}
		l.declare(ctx)
		return collect(prepared, l.passFor(ctx, units, op, nil))
	})
}

// removeAttachment withdraws the attachment of a unit, where there is one to be
// withdrawn.
func (l *Loop) removeAttachment(p *prepared, r attach.Request, op *operation) {
	if p.refused() || !p.write {
		p.tell(op.progress)
		return
	}
	if r.NoRestart && p.d.Record.Unit != "" {
		p.d.Record.RestartUnit = false
		l.remember(p.d.Record) // before: a crash in between must not restart it
	}
	if err := l.attachments.Remove(p.d.Attachment.Source); err != nil {
		p.refuse(attach.Because(attach.AttachmentBad, "%v", err))
		p.tell(op.progress)
	}
}

// passFor runs a pass over units that may be looked at at this moment: it
// waits until they are free. m is what was read and compiled for them, or nil.
func (l *Loop) passFor(ctx context.Context, units []string, op *operation, m *moment) map[string]*attach.Outcome {
	if len(units) == 0 {
		return nil
	}
	mine := l.claim(ctx, units)
	defer l.queue.release(mine)
	if len(mine) < len(units) {
		return notBegun(units)
	}
	return l.pass(ctx, units, op, m)
}

// claim waits until nobody works on the units, and marks them busy; fewer than
// all of them when ctx ends.
func (l *Loop) claim(ctx context.Context, units []string) (mine []string) {
	for rest := units; ; {
		var taken []string
		taken, rest = l.queue.claim(rest)
		mine = append(mine, taken...)
		if len(rest) == 0 {
			return mine
		}
		select {
		case <-ctx.Done():
			return mine
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// notBegun says of units that the daemon ended before it came to them.
func notBegun(units []string) map[string]*attach.Outcome {
	out := map[string]*attach.Outcome{}
	for _, u := range units {
		out[u] = &attach.Outcome{Unit: u, Exit: attach.ExitUnknown}
	}
	return out
}

// prepared is one unit of a request.
type prepared struct {
	asked string
	unit  string
	d     attach.Desired
	o     attach.Observed
	seen  *sighting // nil: nobody has looked at its tasks yet
	out   attach.Outcome
	write bool // the attachment is to be written, or removed
	// restore takes back that it was written.
	restore func() error
}

func (p *prepared) refused() bool { return len(p.out.Reasons) > 0 }

func (p *prepared) refuse(reasons ...attach.Reason) {
	p.out.Reasons = append(p.out.Reasons, reasons...)
	p.out.Exit = attach.ExitFailed
	for _, r := range reasons {
		if r.Code == attach.UnitNotFound {
			p.out.Exit = attach.ExitNoUnit
		}
	}
}

// tell hands on what the preparation found out.
func (p *prepared) tell(progress func(attach.Event)) {
	for _, e := range p.out.Events {
		progress(e)
	}
	for _, r := range p.out.Reasons {
		progress(attach.Event{Unit: p.unit, Step: attach.StepResolve, State: attach.Failed, Text: r.String(), Reason: &r})
	}
}

// collect puts outcomes into the order in which the units were asked for.
func collect(all []*prepared, ran map[string]*attach.Outcome) []attach.Outcome {
	out := make([]attach.Outcome, 0, len(all))
	for _, p := range all {
		o := p.out
		if r := ran[p.unit]; r != nil && !p.refused() {
			events := append(slices.Clone(p.out.Events), r.Events...)
			notes := append(slices.Clone(p.out.Notes), r.Notes...)
			o = *r
			o.Events, o.Notes = events, notes
			if o.Profile == "" {
				o.Profile = p.out.Profile
			}
			if o.File == "" {
				o.File = p.out.File
			}
		}
		out = append(out, o)
	}
	return out
}

// prepare finds the units and their profiles, and asks the core what speaks
// against the attach; nothing is changed. The moment is of what they need.
func (l *Loop) prepare(ctx context.Context, r attach.Request) ([]*prepared, *moment) {
	all := l.units(ctx, r.Units)
	todo := func(f func(*prepared)) {
		each(len(all), func(i int) {
			if !all[i].refused() {
				f(all[i])
			}
		})
	}
	var names []string
	for _, p := range all {
		if !p.refused() {
			names = append(names, p.unit)
		}
	}
	var ahead sync.WaitGroup
	ahead.Go(func() { l.compileAhead(ctx, names, r) })
	todo(func(p *prepared) { l.prepareUnit(ctx, p, r) })
	ahead.Wait()
	var wishes []attach.Desired
	for _, p := range all {
		if !p.refused() {
			wishes = append(wishes, p.d)
		}
	}
	m := l.momentOfPlans(ctx, wishes, l.apparmor)
	m.scans = map[string]sighting{}
	for _, p := range all {
		if p.seen != nil {
			m.scans[p.unit] = *p.seen
		}
	}
	todo(func(p *prepared) { l.preparePlan(ctx, p, m) })
	return unique(all), m
}

// compileAhead compiles what units will most likely need while systemd is asked
// about them, which takes as long with many of them. What the guess misses is
// compiled when it is known.
func (l *Loop) compileAhead(ctx context.Context, units []string, r attach.Request) {
	var files []string
	for _, unit := range units {
		profile := r.Profile
		l.mu.Lock()
		declared, _ := l.selector.Select(unit)
		l.mu.Unlock()
		if declared != nil && profile == "" {
			profile, _ = declared.ProfileFor(unit)
		}
		if l.notForCaller(r, profile) {
			continue // not even opened
		}
		choice, why := attach.Resolve(profile, attach.Unit{ID: unit}, l.apparmor)
		// Of other files, whether they may be named at all is still to be found out.
		if why == nil && filepath.Dir(choice.Profile.File) == "/etc/apparmor.d" {
			files = append(files, choice.Profile.File)
		}
	}
	if len(files) > 0 {
		l.apparmor.Compile(ctx, files, r.Complain)
	}
}

func unique(all []*prepared) []*prepared {
	seen := map[string]bool{}
	return slices.DeleteFunc(all, func(p *prepared) bool {
		dup := seen[p.unit]
		seen[p.unit] = true
		return dup
	})
}

// units completes names and expands globs.
func (l *Loop) units(ctx context.Context, words []string) []*prepared {
	var all []*prepared
	for _, w := range words {
		if !attach.IsGlob(w) {
			name, err := attach.UnitName(w)
			p := &prepared{asked: w, unit: name, out: attach.Outcome{Unit: name}}
			if err != nil {
				p.unit, p.out.Unit = w, w
				p.refuse(attach.Because(attach.UnitNotFound, "%v", err))
			}
			all = append(all, p)
			continue
		}
		glob := w
		if !strings.HasSuffix(glob, ".service") {
			glob += ".service"
		}
		found, err := l.systemd.Expand(ctx, glob)
		found = slices.DeleteFunc(found, attach.IsTemplate)
		if err != nil || len(found) == 0 {
			p := &prepared{asked: w, unit: w, out: attach.Outcome{Unit: w}}
			if err != nil {
				p.refuse(attach.Because(attach.SystemdUnheard, "cannot list units: %v", err))
			} else {
				p.refuse(attach.Because(attach.UnitNotFound, "no service matches %s", w))
			}
			all = append(all, p)
		}
		for _, f := range found {
			all = append(all, &prepared{asked: w, unit: f, out: attach.Outcome{Unit: f}})
		}
	}
	return all
}

func (l *Loop) prepareUnit(ctx context.Context, p *prepared, r attach.Request) {
	if attach.IsTemplate(p.unit) {
		p.refuse(*attach.UnfitUnit(attach.Unit{}, p.unit))
		return
	}
	u, err := l.systemd.Observe(ctx, p.unit)
	if err != nil {
		p.refuse(attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", p.unit, err))
		return
	}
	if why := attach.UnfitUnit(u, p.unit); why != nil {
		p.refuse(*why)
		return
	}
	if u.ID != p.unit {
		p.out.Notes = append(p.out.Notes, attach.Because(attach.UnitAlias, "%s is an alias of %s", p.unit, u.ID))
		l.learnAlias(p.unit, u)
		p.unit, p.out.Unit = u.ID, u.ID
	}
	if why := l.whyPaused(p.unit); why != nil && !r.AsDeclared {
		p.refuse(*why)
		return
	}
	if !l.chooseProfile(p, u, r) {
		return
	}
	p.d.Unit = p.unit
	l.mu.Lock()
	p.d.Record, p.d.Kept = l.recall(p.unit)
	l.mu.Unlock()
	p.d.Record.Hold, p.d.Record.Pause = nil, nil
	p.d.Asked, p.d.Checked = !r.AsDeclared, r.AsDeclared
	if u.Active() {
		p.seen = &sighting{u, l.scanInTurn(ctx, u)} // while what is needed is compiled
	}
}

// preparePlan asks the core for the plan of a prepared unit.
func (l *Loop) preparePlan(ctx context.Context, p *prepared, m *moment) {
	o, err := l.observeAt(ctx, p.d, full, m)
	if err != nil {
		p.refuse(attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", p.unit, err))
		return
	}
	p.o = o
	p.out.Questioned, p.out.Findings = attach.QuestionedOf(o.Policy.Compiled), o.Policy.Asides
	plan := attach.Diff(p.d, o)
	p.out.Plan = &plan
	if len(plan.Refusals) > 0 {
		p.refuse(plan.Refusals...)
	}
}

// chooseProfile finds the profile and puts the attachment together: the one
// that is declared already where it says the same, else a new one.
func (l *Loop) chooseProfile(p *prepared, u attach.Unit, r attach.Request) bool {
	l.mu.Lock()
	declared, rivals := l.selector.Select(p.unit)
	l.mu.Unlock()
	if len(rivals) > 0 {
		p.refuse(attach.Because(attach.RivalAttachments, "%s is named by %s and %s", p.unit, rivals[0].Source, rivals[1].Source))
		return false
	}
	if l.notForCaller(r, r.Profile) {
		p.refuse(attach.Because(attach.ProfileUntrusted, "only root may name a file outside /etc/apparmor.d").
			WithNext("install the profile in /etc/apparmor.d, or run as root"))
		return false
	}
	w, why := attach.Want(r, u, declared, l.apparmor)
	if why != nil {
		p.refuse(*why)
		return false
	}
	p.d.Attachment, p.d.Profile, p.write = &w.Attachment, w.Profile, w.Write
	p.out.Profile, p.out.File = w.Profile, w.File
	if w.Corrected != nil {
		p.out.Events = append(p.out.Events, attach.Event{Unit: p.unit, Step: attach.StepResolve, State: attach.Warned, Text: w.Corrected.Detail, Reason: w.Corrected})
	}
	return true
}

// notForCaller reports whether what a caller calls a profile is a file that only root
// may have read.
func (l *Loop) notForCaller(r attach.Request, profile string) bool {
	return filepath.IsAbs(profile) && !r.Trusted && filepath.Dir(filepath.Clean(profile)) != "/etc/apparmor.d" && len(l.apparmor.ByName(profile)) == 0
}

// named completes names, and expands globs to the attached units that match.
func (l *Loop) named(ctx context.Context, words []string) []*prepared {
	var all []*prepared
	for _, w := range words {
		if attach.IsGlob(w) {
			hit, g := false, newGlob(w)
			for _, unit := range l.everything() {
				if g.matches(unit) && !attach.IsPattern(unit) {
					hit = true
					all = append(all, &prepared{asked: w, unit: unit, out: attach.Outcome{Unit: unit}})
				}
			}
			if !hit {
				p := &prepared{asked: w, unit: w, out: attach.Outcome{Unit: w}}
				p.out.Notes = append(p.out.Notes, attach.Because(attach.NotAttached, "no attached unit matches %s", w))
				all = append(all, p)
			}
			continue
		}
		all = append(all, l.units(ctx, []string{w})...)
	}
	return all
}

// prepareDetach finds what is to be taken back.
func (l *Loop) prepareDetach(ctx context.Context, r attach.Request) []*prepared {
	all := l.named(ctx, r.Units)
	for _, p := range all {
		if p.refused() || attach.IsGlob(p.unit) {
			continue
		}
		l.mu.Lock()
		if c, ok := l.alias[p.unit]; ok {
			p.unit, p.out.Unit = c, c
		}
		a, attached := l.targets[p.unit]
		p.d.Record = l.records[p.unit].Clone()
		remembered := p.d.Record.Unit != ""
		l.mu.Unlock()
		why := l.whyPaused(p.unit)
		if why == nil && !attached && remembered {
			if why = l.frozen(p.unit, p.d.Record); why != nil {
				*why = why.WithNext("correct that file; or remove it, which detaches the unit")
			}
		}
		switch {
		case why != nil:
			p.refuse(*why)
		case attached && a.Manual:
			p.d.Attachment, p.write = a, true
			p.out.Profile, _ = a.ProfileFor(p.unit)
		case attached:
			p.refuse(attach.Because(attach.DeclaredInFile, "%s is attached by %s", p.unit, a.Source).At(a.Source).
				WithNext("remove " + a.Source + ", or take the unit out of it"))
		case remembered:
			// Its attachment is gone already; the queue has it.
			p.out.Notes = append(p.out.Notes, attach.Because(attach.Detached, "the attachment of %s is withdrawn already", p.unit))
		default:
			u, err := l.systemd.Observe(ctx, p.unit)
			switch {
			case err != nil:
				p.refuse(attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", p.unit, err))
			case !u.Found():
				p.refuse(attach.Because(attach.UnitNotFound, "systemd knows no unit %s", p.unit))
			default:
				p.out.Notes = append(p.out.Notes, attach.Because(attach.NotAttached, "%s is not attached", p.unit))
			}
		}
	}
	return unique(all)
}

func (l *Loop) detachPlan(ctx context.Context, r attach.Request) []attach.Outcome {
	all := l.prepareDetach(ctx, r)
	for _, p := range all {
		if p.refused() || !p.write {
			continue
		}
		if r.NoRestart {
			p.d.Record.RestartUnit = false
		}
		d := attach.Desired{Unit: p.unit, Record: p.d.Record}
		o, err := l.observe(ctx, d, full)
		if err != nil {
			p.refuse(attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", p.unit, err))
			continue
		}
		plan := attach.Diff(d, o)
		p.out.Plan = &plan
	}
	return collect(all, nil)
}

// Verify looks again, now, at attached units: together at those that run and are
// as they were, one by one at the others.
func (l *Loop) Verify(ctx context.Context, units []string) (attach.Report, error) {
	all := l.attachedNow(units)
	m := l.momentOf(ctx, all)
	seen := make([]*attach.Verdict, len(all))
	together := l.observeTogether(ctx, all, m)
	if !l.lasts(m, all) {
		clear(together)
	}
	spread(len(all), func(i int) {
		d := all[i]
		o := together[i]
		if o == nil {
			return
		}
		if v := attach.Judge(d, *o); v.Answer == attach.Confined {
			l.conclude(d, *o, v)
			seen[i] = &v
		}
	})
	var rest []int
	for i := range all {
		if seen[i] == nil {
			rest = append(rest, i)
		}
	}
	each(len(rest), func(i int) { seen[rest[i]], _ = l.verify(ctx, all[rest[i]].Unit) })
	by := make(map[string]*attach.Verdict, len(all))
	for i, d := range all {
		by[d.Unit] = seen[i]
	}
	// What this look has seen, whatever a pass may have mended since.
	r := l.Status(units)
	for i, s := range r.Units {
		if v := by[s.Unit]; v != nil {
			now := v.On(r.Host)
			r.Units[i].Verdict = &now
		}
	}
	return r, nil
}

// attachedNow is what is wished for the attached units that are asked for, in the
// order of their names.
func (l *Loop) attachedNow(words []string) (all []attach.Desired) {
	asked, now := l.selectionOf(words), time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var units []string
	for unit := range l.targets {
		if !attach.IsPattern(unit) && asked.has(unit) {
			units = append(units, unit)
		}
	}
	slices.Sort(units)
	for _, unit := range units {
		if d, err := l.desiredAt(unit, now); err == nil {
			all = append(all, d)
		}
	}
	return all
}

// verify looks at one unit, and gives what it saw; nil where there is nothing to
// look at.
func (l *Loop) verify(ctx context.Context, unit string) (*attach.Verdict, seen) {
	for try := 0; ; try++ {
		busy := l.queue.isBusy(unit)
		d, err := l.desired(unit)
		if err != nil || d.Attachment == nil {
			return nil, seen{}
		}
		v, o := l.judge(ctx, d, false)
		if busy && try < 5 && v.Answer == attach.NotConfined && only(v, attach.PolicyDiffers) {
			// A pass may have loaded what it has not put on record yet.
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
				continue
			}
		}
		if !busy && violates(d, d.Record, o, v) {
			// It is stopped by a look that has the unit to itself, so that nobody is
			// told in between that it is left alone. This one is answered, and no more.
			again := doubted
			if unseen(d.Record, v) {
				again = started // from now on it is on record
			}
			l.queue.add(again, unit)
		}
		l.conclude(d, o, v)
		if !busy && o.SocketsAmiss() != nil {
			// Nothing tells of it: who looks is the first to see it.
			l.queue.add(inputChanged, unit)
		}
		return &v, seen{d, o}
	}
}

// seen is a look at a unit.
type seen struct {
	d attach.Desired
	o attach.Observed
}

// Profiles lists the profiles under /etc/apparmor.d.
func (l *Loop) Profiles() ([]attach.Profile, map[string]attach.Reason) { return l.apparmor.Profiles() }
