package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Texts is what checks and questions need of AppArmor: profile files, their
// compiled policy, and the kernel's word on it where there is one to ask.
type Texts interface {
	attach.Index
	// Profiles lists every profile that a file directly in /etc/apparmor.d
	// defines; why there may be more is in unread, by file.
	Profiles() (all []attach.Profile, unread map[string]attach.Reason)
	// Compile compiles each file in a bounded child; why it cannot compile one is
	// in problems, by file. Results are kept while the file, what it includes, the
	// parser and the kernel stay the same. A policy that Policies keeps comes
	// without its bytes.
	Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems map[string]attach.Reason)
	// CompilePartly compiles what is left of a file that does not compile when the
	// rules are left out that the parser refuses; what it has against each is in
	// refused. ok is false where nothing is left. It is for checks only.
	CompilePartly(ctx context.Context, file string) (c attach.Compiled, refused []attach.Reason, ok bool)
	// Stage has the kernel read the policies in a policy namespace of their own,
	// where they confine nobody, and fills in its checksums of those that have
	// none, or why there are none; one is that it reads a policy otherwise than the
	// bytes say (Disagrees).
	Stage(ctx context.Context, policies []attach.Compiled)
}

// checker checks profile files, and asks their policy; there need be no unit.
type checker struct {
	texts Texts
	gate  Gate
	// kernel says why the kernel is not asked; "" asks it.
	kernel string
	// sources: the files are sources, and not where they will be used.
	sources bool
	dir     string // of the profiles
}

func (l *Loop) checker() checker {
	return checker{texts: l.apparmor, gate: l.gate, dir: "/etc/apparmor.d"}
}

// Check says what is in profile files, and what speaks against attaching
// units, and changes nothing. An argument with a slash is a file, of a profile or
// an attachment; another is a unit, an attached template or prefix or, where there is
// none of that name, a profile. Without arguments it is about all that is attached.
func (l *Loop) Check(ctx context.Context, args []string, trusted bool) ([]attach.Outcome, error) {
	out := []attach.Outcome{}
	if len(args) == 0 {
		out = append(out, l.allFrozen()...)
		l.mu.Lock()
		args = slices.Sorted(maps.Keys(l.targets))
		args = slices.DeleteFunc(args, func(name string) bool { return attach.IsPattern(name) && l.standsIn(name) })
		l.mu.Unlock()
	}
	k := l.checker()
	for _, arg := range args {
		if strings.Contains(arg, "/") {
			out = append(out, l.checkFile(ctx, k, arg, trusted))
			continue
		}
		if name, err := attach.UnitName(arg); err == nil && attach.IsPattern(name) {
			if a := l.target(name); a != nil {
				out = append(out, k.pattern(ctx, name, *a))
				continue
			}
		}
		found, err := l.Plan(ctx, attach.Request{Units: []string{arg}, Trusted: trusted, AsDeclared: true})
		if err != nil {
			return nil, err
		}
		if profiles := l.apparmor.ByName(arg); len(found) == 1 && found[0].Exit == attach.ExitNoUnit && len(profiles) > 0 {
			out = append(out, k.file(ctx, arg, profiles[0].File))
			continue
		}
		for i := range found {
			o := &found[i]
			if o.Exit == attach.ExitFailed && len(o.Reasons) > 0 {
				o.Exit = attach.ExitOK // nothing failed: it was found
				for _, r := range o.Reasons {
					o.Exit = attach.WorstExit(o.Exit, exitOfFound(r))
				}
			}
			warned := slices.Clone(o.Notes)
			if o.Plan != nil {
				warned = append(warned, o.Plan.Warnings...)
			}
			if slices.ContainsFunc(warned, func(r attach.Reason) bool { return r.Code == attach.AssertionUnknown }) {
				o.Exit = attach.WorstExit(o.Exit, attach.ExitUnknown)
			}
			l.mu.Lock()
			a := l.targets[o.Unit]
			l.mu.Unlock()
			if a != nil {
				o.Notes = append(o.Notes, attach.SocketBlindSpots(*a)...)
				complains(o, *a)
			}
			for _, r := range o.Reasons {
				if file, _, _ := strings.Cut(r.Where, ":"); r.Code == attach.ProfileBroken && len(o.Findings) == 0 {
					k.partly(ctx, o, file, []string{o.Profile})
				}
			}
		}
		out = append(out, found...)
	}
	return out, nil
}

// allFrozen tells of the units that keep what an attachment gave them which cannot be read
// at present.
func (l *Loop) allFrozen() (out []attach.Outcome) {
	l.mu.Lock()
	records := make(map[string]attach.Record, len(l.records))
	for unit, r := range l.records {
		if l.targets[unit] == nil {
			records[unit] = r
		}
	}
	l.mu.Unlock()
	for _, unit := range slices.Sorted(maps.Keys(records)) {
		if why := l.frozen(unit, records[unit]); why != nil {
			o := attach.Outcome{Unit: unit, Profile: records[unit].Profile}
			found(&o, *why)
			out = append(out, o)
		}
	}
	return out
}

// standsIn reports whether units of a template or prefix are checked in its place: which
// profile they run under depends on each. l.mu is held.
func (l *Loop) standsIn(pattern string) bool {
	if !byUnit(l.targets[pattern]) {
		return false
	}
	for unit, a := range l.targets {
		if unit != pattern && a.Placement(unit) == pattern {
			return true
		}
	}
	return false
}

// checkFile checks a file that a caller of the daemon's names.
func (l *Loop) checkFile(ctx context.Context, k checker, file string, trusted bool) attach.Outcome {
	file = filepath.Clean(file)
	if trusted || l.attachments.Holds(file) {
		if a, problems, is := l.attachments.One(file); is {
			return k.attachment(ctx, file, a, problems)
		}
	}
	if !filepath.IsAbs(file) || (!trusted && filepath.Dir(file) != "/etc/apparmor.d") {
		o := attach.Outcome{Unit: file, File: file, Exit: attach.ExitFailed} // it was not looked at
		o.Reasons = []attach.Reason{attach.Because(attach.ProfileUntrusted, "only root may name a file outside /etc/apparmor.d, and by its absolute path").
			WithNext("aaunitctl check --offline " + file)}
		return o
	}
	return k.file(ctx, file, file)
}

// found adds what speaks against something that was checked.
func found(o *attach.Outcome, reasons ...attach.Reason) {
	for _, r := range reasons {
		if !slices.Contains(o.Reasons, r) {
			o.Reasons, o.Exit = append(o.Reasons, r), attach.WorstExit(o.Exit, exitOfFound(r))
		}
	}
}

// complains adds what complain mode, where it is asked for, makes of an attachment. It keeps
// nobody from attaching it, and is no success.
func complains(o *attach.Outcome, a attach.Attachment) {
	if notes := attach.OfComplainMode(a); len(notes) > 0 {
		o.Notes, o.Exit = append(o.Notes, notes...), attach.WorstExit(o.Exit, attach.ExitNotConfined)
	}
}

// exitOfFound is the exit status of what was found: that a text could not be compiled
// does not speak against it.
func exitOfFound(r attach.Reason) attach.Exit {
	if r.Code == attach.ProfileNotCompiled {
		return attach.ExitUnknown
	}
	return attach.ExitNotConfined
}

// file checks a profile file with all profiles in it. name is what it was asked
// for as.
func (k checker) file(ctx context.Context, name, file string) attach.Outcome {
	o := attach.Outcome{Unit: name, File: file}
	profiles, err := k.texts.InFile(file)
	if err != nil {
		return k.nothingIn(ctx, o, file, err)
	}
	c, ok := k.compiled(ctx, &o, file)
	var compiled []attach.Compiled
	if ok {
		compiled = []attach.Compiled{c}
		profiles = all(profiles, c)
	}
	var names []string
	for _, p := range profiles {
		names = append(names, p.Name)
	}
	o.Profile = strings.Join(names, ", ")
	for _, p := range profiles {
		d := alone(file, p.Name)
		candidates := k.texts.ByName(p.Name)
		if !slices.ContainsFunc(candidates, func(q attach.Profile) bool { return q.File == p.File }) {
			if k.sources {
				candidates = nil // one that is installed is what this becomes
			}
			candidates = append(candidates, p)
		}
		k.obstacles(&o, d, map[string][]attach.Profile{p.Name: candidates}, compiled)
		if ok {
			k.ask(ctx, &o, d, attach.Unit{}, compiled)
		}
	}
	if !ok {
		k.partly(ctx, &o, file, names)
	}
	o.Exit = attach.WorstExit(o.Exit, attach.ExitOfFindings(o.Findings))
	return o
}

// all are the profiles of a file that are not children of others in it. What the text
// lists has none that is named as a child is, without its parent, and may have a name
// with variables, which stands for another one.
func all(listed []attach.Profile, c attach.Compiled) []attach.Profile {
	out := slices.DeleteFunc(slices.Clone(listed), func(p attach.Profile) bool {
		return strings.Contains(p.Name, "@{") && !slices.ContainsFunc(c.Profiles, func(q attach.Profile) bool { return q.Name == p.Name })
	})
	rest := slices.SortedFunc(slices.Values(c.Profiles), func(p, q attach.Profile) int { return strings.Compare(p.Name, q.Name) })
	for _, p := range rest {
		if !slices.ContainsFunc(out, func(q attach.Profile) bool { return p.Name == q.Name || strings.HasPrefix(p.Name, q.Name+"//") }) {
			out = append(out, p)
		}
	}
	return out
}

// nothingIn says why there is nothing to check in a file. That it cannot be read
// says nothing about a profile.
func (k checker) nothingIn(ctx context.Context, o attach.Outcome, file string, why error) attach.Outcome {
	_, problems := k.texts.Compile(ctx, []string{file}, false)
	r, known := problems[file]
	switch {
	case !known:
		r = attach.Because(attach.ProfileBroken, "%v", why).At(file)
	case r.Code == attach.ProfileNotFound:
		r = attach.Because(attach.ProfileUnreadable, "there is no file %s", file).At(file)
	}
	found(&o, r)
	if r.Code == attach.ProfileUnreadable {
		o.Exit = attach.ExitUnknown
	}
	return o
}

// alone is a profile without a unit.
func alone(file, profile string) attach.Desired {
	a := attach.NewAttachment()
	a.Source, a.Profile = file, profile
	return attach.Desired{Unit: file, Profile: profile, Attachment: &a}
}

// compiled compiles one file, and has the kernel asked about it.
func (k checker) compiled(ctx context.Context, o *attach.Outcome, file string) (attach.Compiled, bool) {
	done, problems := k.texts.Compile(ctx, []string{file}, false)
	if r, bad := problems[file]; bad {
		found(o, r)
	}
	if len(done) != 1 {
		return attach.Compiled{}, false
	}
	c := done[0]
	if k.kernel != "" {
		c.NotAsked = k.kernel
	} else {
		k.texts.Stage(ctx, done)
		c = done[0]
	}
	if c.Disagrees != "" {
		found(o, attach.Because(attach.PolicyDisputed, "the kernel and the compiled policy of %s do not agree: %s", file, c.Disagrees).At(file))
	}
	o.Questioned = append(o.Questioned, attach.QuestionedOf([]attach.Compiled{c})...)
	return c, true
}

// obstacles adds what the texts of profiles say against them.
func (k checker) obstacles(o *attach.Outcome, d attach.Desired, candidates map[string][]attach.Profile, compiled []attach.Compiled) {
	for name := range candidates {
		refusals, warnings := attach.ProfileObstacles(d, attach.Observed{Policy: attach.Policy{Candidates: candidates, Compiled: compiled}}, name)
		found(o, refusals...)
		for _, w := range warnings {
			if (w.Code != attach.ProfileNotAtBoot || !k.sources) && !slices.Contains(o.Notes, w) {
				o.Notes = append(o.Notes, w)
			}
		}
	}
}

// ask asks the compiled policy what is asserted of it.
func (k checker) ask(ctx context.Context, o *attach.Outcome, d attach.Desired, u attach.Unit, compiled []attach.Compiled) {
	if k.gate == nil {
		return
	}
	for _, f := range k.gate.Check(ctx, d, u, compiled) {
		if !slices.Contains(o.Findings, f) && !attach.SaidOf(o.Reasons, f.Reason) {
			o.Findings = append(o.Findings, f)
		}
	}
}

// partly asks what is left of a file that does not compile, so that its first
// mistake hides no other.
func (k checker) partly(ctx context.Context, o *attach.Outcome, file string, profiles []string) {
	if slices.ContainsFunc(o.Reasons, func(r attach.Reason) bool { return r.Code == attach.ProfileNotCompiled }) {
		return // the parser could not be asked
	}
	c, refused, ok := k.texts.CompilePartly(ctx, file)
	found(o, refused...)
	var lines []string
	for _, r := range refused {
		if !slices.Contains(lines, r.Where) {
			lines = append(lines, r.Where)
		}
	}
	switch {
	case len(refused) == 0:
		return // nothing was even tried
	case !ok:
		o.Notes = append(o.Notes, attach.Because(attach.ProfilePartly, "nothing else of %s could be checked before that is corrected", file).At(file))
		return
	}
	o.Notes = append(o.Notes, attach.Because(attach.ProfilePartly, "the rest was compiled without %s, for this check only; that is what follows", strings.Join(lines, ", ")).At(file))
	for _, name := range profiles {
		k.ask(ctx, o, alone(file, name), attach.Unit{}, []attach.Compiled{c})
	}
}

// attachment checks an attachment file: the policy of its profiles, and what is
// asserted of it. Of its units nothing is asked.
func (k checker) attachment(ctx context.Context, file string, a attach.Attachment, problems []attach.Reason) attach.Outcome {
	o := attach.Outcome{Unit: file}
	found(&o, problems...)
	if len(problems) == 0 {
		k.declaredFor(ctx, &o, a, file, a.Units)
	}
	return o
}

// pattern checks what a template or prefix is attached to, as attachment does. Units of
// it that are attached are checked by themselves.
func (k checker) pattern(ctx context.Context, name string, a attach.Attachment) attach.Outcome {
	o := attach.Outcome{Unit: name}
	k.declaredFor(ctx, &o, a, a.Source, []string{name})
	return o
}

// declaredFor checks the policy that an attachment, which stands in file, declares for
// units.
func (k checker) declaredFor(ctx context.Context, o *attach.Outcome, a attach.Attachment, file string, units []string) {
	asked := map[string]bool{}
	for _, unit := range units {
		if (attach.IsPattern(unit) || attach.IsGlob(unit)) && byUnit(&a) {
			o.Notes = append(o.Notes, attach.Because(attach.ProfileByUnit, "Profile=%s is another profile for each unit of %s", a.Profile, unit).At(file).
				WithNext("name one of its units: aaunitctl check UNIT, or the profile of one: aaunitctl check PROFILE"))
			o.Exit = attach.WorstExit(o.Exit, attach.ExitUnknown)
			continue
		}
		name, err := a.ProfileFor(unit)
		if err != nil {
			found(o, attach.Because(attach.ProfileNameBad, "%v", err).At(file))
			continue
		}
		if !asked[name] {
			asked[name] = true
			k.declared(ctx, o, attach.Desired{Unit: unit, Profile: name, Attachment: &a}, attach.Unit{})
		}
	}
	o.Notes = append(o.Notes, attach.SocketBlindSpots(a)...)
	complains(o, a)
	o.Exit = attach.WorstExit(o.Exit, attach.ExitOfFindings(o.Findings))
}

// declared checks the policy of a unit, or of one that is to come, as an
// attachment declares it.
func (k checker) declared(ctx context.Context, o *attach.Outcome, d attach.Desired, u attach.Unit) {
	candidates := map[string][]attach.Profile{}
	var files []string
	for _, name := range append([]string{d.Profile}, d.Attachment.AllowProfiles...) {
		all := k.texts.ByName(name)
		if own := d.Attachment.ProfileFile; own != "" && name == d.Profile {
			inFile, err := k.texts.InFile(own)
			if err != nil {
				found(o, attach.Because(attach.ProfileBroken, "%v", err).At(own))
				return
			}
			all = slices.DeleteFunc(inFile, func(p attach.Profile) bool { return p.Name != name })
		}
		candidates[name] = all
		for _, p := range all {
			if !slices.Contains(files, p.File) {
				files = append(files, p.File)
			}
		}
	}
	o.Profile = strings.TrimPrefix(o.Profile+", "+d.Profile, ", ")
	if len(candidates[d.Profile]) > 0 {
		o.File = candidates[d.Profile][0].File
	}
	var compiled []attach.Compiled
	whole := true
	for _, file := range files {
		c, ok := k.compiled(ctx, o, file)
		if whole = whole && ok; ok {
			compiled = append(compiled, c)
		} else {
			k.partly(ctx, o, file, []string{d.Profile})
		}
	}
	k.obstacles(o, d, candidates, compiled)
	if whole && len(compiled) > 0 {
		k.ask(ctx, o, d, u, compiled)
	}
}

// maxQueried bounds the files that are compiled at once for a question about all
// profiles.
const maxQueried = 32

// Query asks profiles whether their compiled policy allows something, and changes
// nothing: the profiles of a file, where the name has a slash and is the path of
// one, a profile by its name, or all under /etc/apparmor.d where none is named.
func (l *Loop) Query(ctx context.Context, names []string, question string, trusted bool) ([]attach.QueryResult, error) {
	return l.checker().query(ctx, names, question, trusted)
}

func (k checker) query(ctx context.Context, names []string, question string, trusted bool) ([]attach.QueryResult, error) {
	q, err := attach.ParseAssertion(true, question)
	if err != nil {
		return nil, fmt.Errorf("cannot ask %q: %w", question, err)
	}
	if k.gate == nil {
		return nil, errors.New("cannot ask: this aaunitd reads no compiled policy")
	}
	out := []attach.QueryResult{}
	unknown := func(profile, file string, r attach.Reason) {
		out = append(out, attach.QueryResult{Profile: profile, File: file, May: attach.MayUnknown, Text: "cannot be asked: " + r.Detail, Reason: &r})
	}
	var asked []attach.Profile
	if len(names) == 0 {
		var unread map[string]attach.Reason
		asked, unread = k.texts.Profiles()
		for file, r := range unread {
			unknown(file, file, r)
		}
	}
	for _, name := range names {
		found := k.texts.ByName(name)
		if len(found) == 0 && filepath.IsAbs(name) {
			if !trusted && filepath.Dir(filepath.Clean(name)) != "/etc/apparmor.d" {
				unknown(name, name, attach.Because(attach.ProfileUntrusted, "only root may name a file outside /etc/apparmor.d"))
				continue
			}
			var err error
			if found, err = k.texts.InFile(name); err != nil {
				unknown(name, name, attach.Because(attach.ProfileBroken, "%v", err).At(name))
				continue
			}
		}
		if len(found) == 0 {
			r := attach.Because(attach.ProfileNotFound, "no file under %s defines a profile %s", k.dir, name).WithNext("aaunitctl list --profiles")
			if _, unread := k.texts.Profiles(); len(unread) > 0 {
				first := slices.Sorted(maps.Keys(unread))[0]
				r = attach.Because(attach.ProfileUnreadable, "no file under %s that could be read defines a profile %s; %d could not: %s", k.dir, name, len(unread), unread[first].Detail).At(first)
			}
			unknown(name, "", r)
		}
		asked = append(asked, found...)
	}
	var files []string
	for _, p := range asked {
		if !slices.Contains(files, p.File) {
			files = append(files, p.File)
		}
	}
	for some := range slices.Chunk(files, maxQueried) {
		done, problems := k.texts.Compile(ctx, some, false)
		for _, p := range asked {
			if r, bad := problems[p.File]; bad {
				unknown(p.Name, p.File, r)
			}
		}
		for _, c := range done {
			for _, p := range asked {
				if p.File != c.File {
					continue
				}
				for _, own := range c.Profiles {
					if own.Name == p.Name || strings.HasPrefix(own.Name, p.Name+"//") {
						out = append(out, k.gate.Query(ctx, own.Name, c, q))
					}
				}
			}
		}
	}
	return sorted(out), nil
}

// QueryLoaded asks what the kernel has loaded: profiles by their names, with
// children and hats, or all where none is named. The answer names the kernel's
// checksum of what was asked.
func (l *Loop) QueryLoaded(ctx context.Context, names []string, question string) ([]attach.QueryResult, error) {
	q, err := attach.ParseAssertion(true, question)
	if err != nil {
		return nil, fmt.Errorf("cannot ask %q: %w", question, err)
	}
	loaded, err := l.apparmor.Loaded(names)
	if err != nil {
		return nil, fmt.Errorf("cannot ask what is loaded: %w", err)
	}
	out := []attach.QueryResult{}
	for _, c := range loaded {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p := c.Profiles[0]
		r := attach.QueryResult{Profile: p.Name, May: attach.MayUnknown}
		if c.Blob == nil {
			r.Text = "cannot be asked: " + c.NotStaged
			why := attach.Because(attach.PolicyUnreadable, "%s", c.NotStaged)
			r.Reason = &why
		} else {
			r = l.gate.Query(ctx, p.Name, c, q)
		}
		r.Loaded = &attach.LiveProfile{Name: p.Name, Checksum: c.Checksums[p.Name]}
		if len(p.Flags) > 0 {
			r.Loaded.Mode = attach.Mode(p.Flags[0])
		}
		if r.May == attach.MayNo && !r.Loaded.Mode.Confines() {
			// Its rules say no, and nobody is kept from it.
			r.May, r.Text = attach.MayNotMediated, "is loaded in a mode that refuses nothing, so it may"
		}
		out = append(out, r)
	}
	for _, name := range names {
		if !slices.ContainsFunc(out, func(r attach.QueryResult) bool { return r.Profile == name }) {
			why := attach.Because(attach.ProfileNotLoaded, "no profile %s is loaded", name).WithNext("aaunitctl query " + name)
			out = append(out, attach.QueryResult{Profile: name, May: attach.MayUnknown, Text: "cannot be asked: it is not loaded", Reason: &why})
		}
	}
	return sorted(out), nil
}

// sorted puts answers in order, each once.
func sorted(out []attach.QueryResult) []attach.QueryResult {
	slices.SortStableFunc(out, func(a, b attach.QueryResult) int { return strings.Compare(a.Profile, b.Profile) })
	return slices.CompactFunc(out, func(a, b attach.QueryResult) bool { return a.Profile == b.Profile && a.File == b.File })
}
