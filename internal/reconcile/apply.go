package reconcile

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// What configuration tools ask for: that attachment files are acted on now, and
// what would come of a file before it is written.

// Apply reads the attachment files again and brings the units of those that are
// named to what they say, as a person's attach does: holds end, and a changed
// profile text goes live. Nothing is written into an attachment file. Units of a
// file that is gone are detached. Of a profile file, the units are meant that run
// under its profiles.
func (l *Loop) Apply(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return l.do(ctx, func(ctx context.Context) []attach.Outcome {
		op := newOperation(progress)
		op.unattended = true
		l.declare(ctx)
		var out []attach.Outcome
		var units []string
		for _, file := range r.Units {
			if bad := l.problemsOf(file); len(bad) > 0 {
				out = append(out, attach.Outcome{Unit: file, Exit: attach.ExitFailed, Reasons: bad})
				continue
			}
			mine := l.unitsOf(file)
			if len(mine) == 0 {
				out = append(out, attach.Outcome{Unit: file, Notes: []attach.Reason{attach.Because(attach.NotAttached, "no unit is attached by %s, or runs under a profile of it", file)}})
			}
			units = append(units, mine...)
		}
		slices.Sort(units)
		units = slices.Compact(units)
		ran := l.passFor(ctx, units, op, nil)
		for _, unit := range slices.Sorted(maps.Keys(ran)) {
			o := *ran[unit]
			if o.Exit == attach.ExitOK && o.Verdict == nil && !attach.IsPattern(unit) && l.target(unit) != nil {
				o.Exit = attach.ExitUnknown // nobody has looked at the unit
			}
			out = append(out, o)
		}
		return out
	})
}

// problemsOf is what is wrong with an attachment file, or with its directory.
func (l *Loop) problemsOf(file string) (out []attach.Reason) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return problemsOf(l.declared, file)
}

func problemsOf(d attach.Declared, file string) (out []attach.Reason) {
	for _, p := range d.Problems {
		if p.Where == file || p.Where == filepath.Dir(file) || strings.HasPrefix(p.Where, file+":") {
			out = append(out, p)
		}
	}
	if len(out) == 0 && d.Broken[file] {
		out = append(out, attach.Because(attach.AttachmentBad, "%s cannot be used", file).At(file))
	}
	return out
}

// unitsOf lists the units, templates and prefixes that an attachment file attaches,
// or attached before it changed or went, and those that run under a profile file.
func (l *Loop) unitsOf(file string) (units []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for unit, a := range l.targets {
		if a.Source == file {
			units = append(units, unit)
		}
	}
	for unit, many := range l.rivals {
		if slices.ContainsFunc(many, func(a attach.Attachment) bool { return a.Source == file }) {
			units = append(units, unit)
		}
	}
	for unit, s := range l.statuses {
		if _, attached := l.targets[unit]; attached && s.ProfileFile == file {
			units = append(units, unit)
		}
	}
	for unit, r := range l.records {
		if r.Attachment == file {
			units = append(units, unit)
		}
	}
	slices.Sort(units)
	return slices.Compact(units)
}

// Propose says what would come of it if a file had that text, and changes
// nothing. An attachment file with an empty text is one that is gone: of its units
// the plan is told, and of those for which there is nothing to do the verdict. Of
// a profile file it is told what it holds, as Check does, and whether it would do
// for the units that run under it now.
func (l *Loop) Propose(ctx context.Context, file, text string) ([]attach.Outcome, error) {
	if d, ok := l.attachments.Propose(file, text); ok {
		return l.proposeAttachment(ctx, file, d), nil
	}
	return l.proposeProfile(ctx, file, text), nil
}

func (l *Loop) proposeAttachment(ctx context.Context, file string, d attach.Declared) []attach.Outcome {
	if bad := problemsOf(d, file); len(bad) > 0 {
		return []attach.Outcome{{Unit: file, Exit: attach.ExitFailed, Reasons: bad}}
	}
	units := l.unitsOf(file)
	for _, a := range d.Attachments {
		if a.Source == file {
			named, _ := l.expand(ctx, []*attach.Attachment{a})
			units = append(units, named...)
		}
	}
	selector := attach.NewSelector(d.Attachments)
	proposals := make([]*proposal, 0, len(units))
	seen := map[string]bool{}
	for _, unit := range units {
		if p := l.proposal(ctx, selector, unit); !seen[p.d.Unit] {
			seen[p.d.Unit] = true
			proposals = append(proposals, p)
		}
	}
	var wishes []attach.Desired
	for _, p := range proposals {
		wishes = append(wishes, p.d)
	}
	m := l.momentOfPlans(ctx, wishes)
	m.proposed = map[string]attach.Desired{}
	for _, d := range wishes {
		m.proposed[d.Unit] = d
	}
	each(len(proposals), func(i int) { l.planProposal(ctx, proposals[i], m) })
	out := []attach.Outcome{}
	for _, p := range proposals {
		if !p.idle {
			out = append(out, p.out)
		}
	}
	if len(out) == 0 {
		out = append(out, attach.Outcome{Unit: file, Notes: []attach.Reason{attach.Because(attach.NotAttached, "no unit is attached by %s", file)}})
	}
	slices.SortFunc(out, func(a, b attach.Outcome) int { return strings.Compare(a.Unit, b.Unit) })
	return out
}

// proposal is one unit of an attachment file that is not written yet.
type proposal struct {
	d    attach.Desired
	out  attach.Outcome
	idle bool // the file has nothing to do with it after all
}

// proposal puts together what would be wished for a unit.
func (l *Loop) proposal(ctx context.Context, selector attach.Selector, unit string) *proposal {
	p := &proposal{}
	chosen, rivals := selector.Select(unit)
	if !attach.IsPattern(unit) {
		if u, err := l.systemd.Observe(ctx, unit); err == nil && u.ID != "" && u.ID != unit && slices.Contains(u.Names, unit) {
			p.out.Notes = append(p.out.Notes, attach.Because(attach.UnitAlias, "%s is an alias of %s", unit, u.ID))
			unit = u.ID
		}
	}
	p.d.Unit, p.out.Unit = unit, unit
	p.d.Asked = true
	if len(rivals) > 0 {
		p.refuse(attach.Because(attach.RivalAttachments, "%s is named by %s and %s", unit, rivals[0].Source, rivals[1].Source).At(rivals[0].Source))
		return p
	}
	if attach.IsPattern(unit) && chosen != nil && chosen.Matches(unit) < attach.MatchName {
		chosen = nil
	}
	l.mu.Lock()
	p.d.Record, p.d.Kept = l.recall(unit)
	l.mu.Unlock()
	p.d.Record.Hold = nil
	if chosen == nil {
		p.idle = p.d.Record.Unit == ""
		return p
	}
	p.d.Attachment = chosen
	if attach.IsPattern(unit) && strings.Contains(strings.ReplaceAll(chosen.Profile, "%%", ""), "%") {
		return p // which profile that is depends on the unit
	}
	name, err := chosen.ProfileFor(unit)
	if err != nil {
		p.refuse(attach.Because(attach.ProfileNameBad, "%v", err).At(chosen.Source))
	}
	p.d.Profile, p.out.Profile = name, name
	return p
}

func (p *proposal) refuse(reasons ...attach.Reason) {
	p.out.Reasons = append(p.out.Reasons, reasons...)
	p.out.Exit = attach.ExitFailed
	if slices.ContainsFunc(reasons, func(r attach.Reason) bool { return r.Code == attach.UnitNotFound }) {
		p.out.Exit = attach.ExitNoUnit
	}
}

// planProposal asks the core for the plan.
func (l *Loop) planProposal(ctx context.Context, p *proposal, m *moment) {
	if p.idle || len(p.out.Reasons) > 0 {
		return
	}
	o, err := l.observeAt(ctx, p.d, full, m)
	if err != nil {
		p.refuse(attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", p.d.Unit, err))
		return
	}
	if a := p.d.Attachment; a != nil && !attach.IsPattern(p.d.Unit) && !o.Unit.Found() && a.Matches(p.d.Unit) < attach.MatchName {
		p.idle = true // only a pattern named it
		return
	}
	plan := attach.Diff(p.d, o)
	p.out.Plan, p.out.Changed = &plan, len(plan.Actions) > 0
	p.out.Questioned, p.out.Findings = attach.QuestionedOf(o.Policy.Compiled), o.Policy.Asides
	p.out.Notes = append(p.out.Notes, plan.Warnings...)
	p.out.Notes = append(p.out.Notes, plan.Pending...)
	if c := o.Policy.Candidates[p.d.Profile]; len(c) > 0 {
		p.out.File = c[0].File
	}
	if len(plan.Refusals) > 0 {
		p.refuse(plan.Refusals...)
		return
	}
	if p.d.Attachment != nil && !p.out.Changed && !attach.IsPattern(p.d.Unit) {
		v, _ := l.judge(ctx, p.d, false)
		p.out.Verdict, p.out.Exit = &v, attach.ExitOf(&v)
	}
}

func (l *Loop) proposeProfile(ctx context.Context, file, text string) []attach.Outcome {
	o := attach.Outcome{Unit: file, File: file}
	c, bad := l.apparmor.CompileText(ctx, file, text)
	if bad != nil {
		o.Reasons, o.Exit = []attach.Reason{*bad}, attach.ExitNotConfined
		return []attach.Outcome{o}
	}
	k := l.checker()
	var names []string
	for _, p := range c.Profiles {
		if strings.Contains(p.Name, "//") {
			continue
		}
		names = append(names, p.Name)
		// What the file itself holds now is what the text takes the place of.
		all := slices.DeleteFunc(l.apparmor.ByName(p.Name), func(q attach.Profile) bool { return q.File == file })
		d := alone(file, p.Name)
		k.obstacles(&o, d, map[string][]attach.Profile{p.Name: append(all, p)}, nil)
		k.ask(ctx, &o, d, attach.Unit{}, []attach.Compiled{c})
	}
	o.Exit = attach.WorstExit(o.Exit, attach.ExitOfFindings(o.Findings))
	o.Profile = strings.Join(names, ", ")
	return append([]attach.Outcome{o}, l.proposeFor(ctx, file, names, c)...)
}

// proposeFor asks a policy for the units that run under it: what their
// attachments and settings ask, and whether the profile is still there.
func (l *Loop) proposeFor(ctx context.Context, file string, names []string, c attach.Compiled) (out []attach.Outcome) {
	l.mu.Lock()
	var units []string
	for unit, s := range l.statuses {
		if _, attached := l.targets[unit]; attached && s.ProfileFile == file && !attach.IsPattern(unit) {
			units = append(units, unit)
		}
	}
	l.mu.Unlock()
	slices.Sort(units)
	for _, unit := range units {
		d, err := l.desired(unit)
		if err != nil || d.Attachment == nil {
			continue
		}
		o := attach.Outcome{Unit: unit, Profile: d.Profile, File: file}
		u, err := l.systemd.Observe(ctx, unit)
		switch {
		case err != nil:
			o.Exit = attach.ExitUnknown
			o.Reasons = []attach.Reason{attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", unit, err)}
		case !slices.Contains(names, d.Profile):
			o.Exit = attach.ExitNotConfined
			o.Reasons = []attach.Reason{attach.Because(attach.ProfileNotFound, "%s runs under profile %s, which the text does not define", unit, d.Profile).At(file)}
		case l.gate != nil:
			o.Findings = l.gate.Check(ctx, d, u, []attach.Compiled{c})
			o.Exit = attach.ExitOfFindings(o.Findings)
		}
		out = append(out, o)
	}
	return out
}
