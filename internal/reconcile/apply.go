package reconcile

import (
	"context"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

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
			switch {
			case len(mine) > 0:
			case !l.knows(ctx, file, r.Trusted):
				out = append(out, attach.Outcome{Unit: file, Exit: attach.ExitNoUnit, Reasons: []attach.Reason{attach.Because(attach.NotAttached, "there is no file %s that could attach a unit, and no unit is attached by it", file)}})
			default:
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

// knows reports whether there is an attachment file or a profile file of that path, or was
// an attachment file: whoever takes one away and says so may come after the watch on the
// directory.
func (l *Loop) knows(ctx context.Context, file string, trusted bool) bool {
	l.mu.Lock()
	gone := l.vanished[file]
	l.mu.Unlock()
	if gone || l.attachments.Exists(file) {
		return true
	}
	if !trusted && filepath.Dir(file) != "/etc/apparmor.d" {
		return false
	}
	if _, err := l.apparmor.InFile(file); err == nil {
		return true
	}
	_, problems := l.apparmor.Compile(ctx, []string{file}, false)
	return problems[file].Code != attach.ProfileNotFound
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

// Propose says what would come of it if files had these texts, all of them together,
// and changes nothing. An attachment file with an empty text is one that is gone: of
// its units the plan is told, and of those for which there is nothing to do the
// verdict. Of a profile file it is told whether it would do for those who run under
// it, and of a profile that nobody uses what it holds, as Check does. Where a text is
// no good, that is all that is told.
func (l *Loop) Propose(ctx context.Context, files []attach.ProposedFile) ([]attach.Outcome, error) {
	d, profiles := l.attachments.Propose(files)
	texts, out := l.proposedTexts(ctx, profiles)
	var attachments []string
	for _, f := range files {
		if slices.Contains(profiles, f) {
			continue
		}
		attachments = append(attachments, f.File)
		if bad := problemsOf(d, f.File); len(bad) > 0 {
			out = append(out, attach.Outcome{Unit: f.File, Exit: attach.ExitFailed, Reasons: bad})
		}
	}
	if len(out) > 0 {
		return out, nil
	}
	texts.stage(ctx)
	proposals := l.proposeAttachments(ctx, attachments, d, texts)
	out = l.proposeProfiles(ctx, texts, proposals)
	for _, p := range proposals {
		out = append(out, p.out)
	}
	if len(proposals) == 0 {
		for _, file := range attachments {
			out = append(out, attach.Outcome{Unit: file, Notes: []attach.Reason{attach.Because(attach.NotAttached, "no unit is attached by %s", file)}})
		}
	}
	rest := out[len(profiles):]
	slices.SortStableFunc(rest, func(a, b attach.Outcome) int { return strings.Compare(a.Unit, b.Unit) })
	return out, nil
}

// proposeAttachments plans for the units that attachment files name, or named until
// now.
func (l *Loop) proposeAttachments(ctx context.Context, files []string, d attach.Declared, texts *proposedTexts) []*proposal {
	var units []string
	for _, file := range files {
		units = append(units, l.unitsOf(file)...)
		for _, a := range d.Attachments {
			if a.Source == file {
				named, _ := l.expand(ctx, []*attach.Attachment{a})
				units = append(units, named...)
			}
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
	m := l.momentOfPlans(ctx, wishes, texts)
	m.proposed = map[string]attach.Desired{}
	for _, d := range wishes {
		m.proposed[d.Unit] = d
	}
	each(len(proposals), func(i int) { l.planProposal(ctx, proposals[i], m) })
	return slices.DeleteFunc(proposals, func(p *proposal) bool { return p.idle })
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

// proposeProfiles says of each proposed profile file whether it would do, and then of
// those who would run under it, each by what its attachment asserts and waives; for the
// units that are planned the plan has asked. A profile that nobody uses is asked alone.
func (l *Loop) proposeProfiles(ctx context.Context, texts *proposedTexts, planned []*proposal) (out []attach.Outcome) {
	k := l.checker()
	k.texts = texts
	users, files := l.usersThen(planned)
	concerned := map[string]attach.Desired{}
	for _, f := range texts.files {
		o := attach.Outcome{Unit: f.File, File: f.File}
		var names []string
		for _, p := range texts.made[f.File].Profiles {
			if strings.Contains(p.Name, "//") {
				continue
			}
			names = append(names, p.Name)
			by := usersOf(users, p.Name)
			for _, d := range by {
				concerned[d.Unit+" "+d.Profile] = d
			}
			if len(by) == 0 {
				d := alone(f.File, p.Name)
				k.obstacles(&o, d, map[string][]attach.Profile{p.Name: texts.ByName(p.Name)}, nil)
				k.ask(ctx, &o, d, attach.Unit{}, []attach.Compiled{texts.made[f.File]})
			}
		}
		for _, d := range users {
			if d.Profile != "" && files[d.Unit] == f.File { // whether or not it still has its profile
				concerned[d.Unit+" "+d.Profile] = d
			}
		}
		o.Exit = attach.WorstExit(o.Exit, attach.ExitOfFindings(o.Findings))
		o.Profile = strings.Join(names, ", ")
		out = append(out, o)
	}
	for _, key := range slices.Sorted(maps.Keys(concerned)) {
		d := concerned[key]
		if !slices.ContainsFunc(planned, func(p *proposal) bool { return p.d.Unit == d.Unit && p.d.Profile == d.Profile }) {
			out = append(out, l.proposeFor(ctx, k, d))
		}
	}
	return out
}

// usersThen lists what is attached when the plans have been carried out, and the profile
// files of those who run now.
func (l *Loop) usersThen(planned []*proposal) (users []attach.Desired, files map[string]string) {
	files = map[string]string{}
	left := map[string]bool{}
	for _, p := range planned {
		left[p.d.Unit] = true
		if p.d.Attachment != nil {
			users = append(users, p.d)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for unit := range l.targets {
		if d, err := l.desiredAt(unit, time.Now()); err == nil && !left[unit] {
			users = append(users, d)
		}
	}
	for unit, s := range l.statuses {
		files[unit] = s.ProfileFile
	}
	return users, files
}

// usersOf are those who run under a profile, and the templates and prefixes whose units to
// come may, but for those whose attachment is asked already: that of a unit of theirs.
func usersOf(users []attach.Desired, profile string) (out []attach.Desired) {
	for _, d := range users {
		if slices.Contains(profilesOf(d), profile) {
			out = append(out, d)
		}
	}
	run := out
	for _, d := range users {
		asked := slices.ContainsFunc(run, func(u attach.Desired) bool { return u.Attachment.Source == d.Attachment.Source })
		if d.Profile == "" && !asked && (couldBe(toCome(d.Attachment.Profile, d.Unit), profile) || slices.Contains(d.Attachment.AllowProfiles, profile)) {
			d.Profile = profile
			out = append(out, d)
		}
	}
	return out
}

// proposeFor asks the texts of profiles for one that runs under them, or may.
func (l *Loop) proposeFor(ctx context.Context, k checker, d attach.Desired) attach.Outcome {
	o := attach.Outcome{Unit: d.Unit}
	u := attach.Unit{ID: d.Unit}
	if !attach.IsPattern(d.Unit) {
		var err error
		if u, err = l.systemd.Observe(ctx, d.Unit); err != nil {
			o.Profile, o.Exit, o.Reasons = d.Profile, attach.ExitUnknown, unheard(d, err).Reasons
			return o
		}
	}
	k.declared(ctx, &o, d, u)
	o.Exit = attach.WorstExit(o.Exit, attach.ExitOfFindings(o.Findings))
	return o
}

// proposedTexts are profile files as they would be.
type proposedTexts struct {
	Texts
	compile func(ctx context.Context, file, text string, complain bool) (attach.Compiled, *attach.Reason)
	files   []attach.ProposedFile
	made    map[string]attach.Compiled // by file

	mu   sync.Mutex
	soft map[string]attach.Compiled // in complain mode, once they were asked for
}

// proposedTexts compiles texts; what does not compile is in bad.
func (l *Loop) proposedTexts(ctx context.Context, files []attach.ProposedFile) (t *proposedTexts, bad []attach.Outcome) {
	t = &proposedTexts{Texts: l.apparmor, compile: l.apparmor.CompileText, files: files, made: map[string]attach.Compiled{}, soft: map[string]attach.Compiled{}}
	for _, f := range files {
		c, why := t.compile(ctx, f.File, f.Text, false)
		if why != nil {
			o := attach.Outcome{Unit: f.File, File: f.File}
			found(&o, *why)
			bad = append(bad, o)
			continue
		}
		t.made[f.File] = c
	}
	return t, bad
}

// stage has what the texts were compiled to staged: once for all who are asked.
func (t *proposedTexts) stage(ctx context.Context) {
	all := slices.Collect(maps.Values(t.made))
	t.Texts.Stage(ctx, all)
	for _, c := range all {
		t.made[c.File] = c
	}
}

// ByName takes the profiles of proposed files from their texts.
func (t *proposedTexts) ByName(name string) []attach.Profile {
	out := slices.DeleteFunc(slices.Clone(t.Texts.ByName(name)), func(p attach.Profile) bool { _, is := t.made[p.File]; return is })
	for _, f := range t.files {
		for _, p := range t.made[f.File].Profiles {
			if p.Name == name {
				out = append(out, p)
			}
		}
	}
	return out
}

// InFile lists those that are no children of others, as any InFile does.
func (t *proposedTexts) InFile(file string) ([]attach.Profile, error) {
	c, is := t.made[file]
	if !is {
		return t.Texts.InFile(file)
	}
	return slices.DeleteFunc(slices.Clone(c.Profiles), func(p attach.Profile) bool { return strings.Contains(p.Name, "//") }), nil
}

// Compile gives what the texts were compiled to, staged.
func (t *proposedTexts) Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems map[string]attach.Reason) {
	var rest []string
	mine := map[string]attach.Reason{}
	for _, file := range files {
		c, is := t.made[file]
		if !is {
			rest = append(rest, file)
			continue
		}
		if complain {
			var why *attach.Reason
			if c, why = t.inComplain(ctx, file); why != nil {
				mine[file] = *why
				continue
			}
		}
		done = append(done, c)
	}
	more, problems := t.Texts.Compile(ctx, rest, complain)
	if problems == nil {
		problems = map[string]attach.Reason{}
	}
	maps.Copy(problems, mine)
	return append(done, more...), problems
}

func (t *proposedTexts) inComplain(ctx context.Context, file string) (attach.Compiled, *attach.Reason) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if c, made := t.soft[file]; made {
		return c, nil
	}
	i := slices.IndexFunc(t.files, func(f attach.ProposedFile) bool { return f.File == file })
	c, why := t.compile(ctx, file, t.files[i].Text, true)
	if why != nil {
		return c, why
	}
	staged := []attach.Compiled{c}
	t.Texts.Stage(ctx, staged)
	t.soft[file] = staged[0]
	return staged[0], nil
}

// Stage stages others; one that the kernel did not take, or reads otherwise, has no
// checksums, and is not staged again for that.
func (t *proposedTexts) Stage(ctx context.Context, policies []attach.Compiled) {
	var at []int
	var others []attach.Compiled
	for i, c := range policies {
		if _, is := t.made[c.File]; !is {
			at, others = append(at, i), append(others, c)
		}
	}
	t.Texts.Stage(ctx, others)
	for i, c := range others {
		policies[at[i]] = c
	}
}
