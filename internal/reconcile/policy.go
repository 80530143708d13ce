package reconcile

import (
	"context"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// trampled lists the files of this plan's loads that still say what was
// accepted, and that the kernel does not run: somebody has loaded another
// policy, or removed it. With each comes what is wrong.
func (j *job) trampled() map[string]attach.Reason {
	out := map[string]attach.Reason{}
	if j.fresh || j.d.Attachment == nil || j.held() {
		return out
	}
	for _, a := range j.plan.Actions {
		for _, c := range j.o.Policy.Compiled {
			if a.Kind != attach.LoadPolicy || a.Target != c.File {
				continue
			}
			for name, want := range c.Checksums {
				if j.d.Record.Accepted[name] == want && j.o.Policy.Live[name].Checksum != want {
					out[c.File] = a.Reason
				}
			}
		}
	}
	return out
}

// loadPolicies is step 2. It returns how to bring back what was loaded before,
// by file.
func (l *Loop) loadPolicies(ctx context.Context, jobs []*job) map[string]Saved {
	saved := map[string]Saved{}
	var load []attach.Compiled
	for _, j := range jobs {
		if !j.alive() {
			continue
		}
		for _, c := range j.o.Policy.Compiled {
			if !slices.ContainsFunc(j.plan.Actions, func(a attach.Action) bool { return a.Kind == attach.LoadPolicy && a.Target == c.File }) {
				continue
			}
			if _, done := saved[c.File]; done {
				continue
			}
			names := sortedNames(c)
			s, err := l.apparmor.Save(names)
			if err != nil {
				l.log.Warn("cannot keep the loaded policy; an undo cannot bring it back", "file", c.File, "err", err)
			}
			saved[c.File] = s
			load = append(load, c)
		}
	}
	for _, j := range jobs {
		if j.alive() && j.plan.Has(attach.LoadPolicy) {
			for _, c := range j.o.Policy.Compiled {
				if j.d.Attachment == nil {
					break
				}
				soft := func(file string) bool { return file == c.File }
				if !c.Complain {
					j.d.Record.Softened = slices.DeleteFunc(j.d.Record.Softened, soft)
				}
				for _, name := range sortedNames(c) {
					live, loaded := j.o.Policy.Live[name]
					if !loaded && !strings.Contains(name, "//") && !slices.Contains(j.d.Record.Loaded, name) {
						j.d.Record.Loaded = append(j.d.Record.Loaded, name)
					}
					if loaded && c.Complain && live.Mode.Confines() && !slices.ContainsFunc(j.d.Record.Softened, soft) && !slices.Contains(j.d.Record.Loaded, name) {
						j.d.Record.Softened = append(j.d.Record.Softened, c.File)
					}
				}
			}
			l.remember(j.d.Record)
			j.event(attach.StepPolicy, attach.Running, "loading")
		}
	}
	failed := map[string]error{}
	if len(load) > 0 {
		failed = l.apparmor.Load(ctx, load)
	}
	for _, j := range jobs {
		if !j.alive() {
			continue
		}
		if j.d.Attachment == nil {
			l.hardened(j, failed)
			continue
		}
		accepted := map[string]string{}
		for _, c := range j.o.Policy.Compiled {
			if err := failed[c.File]; err != nil {
				j.fail(attach.StepPolicy, attach.Because(attach.ProfileNotLoaded, "cannot load %s: %v", c.File, err).At(c.File))
				continue
			}
			for name, sum := range c.Checksums {
				accepted[name] = sum
			}
		}
		if !j.alive() || j.held() {
			continue
		}
		for file, why := range j.trampled() {
			l.log.Warn("put back the policy of "+j.d.Unit+": "+why.String(), journal.FieldMessageID, string(journal.MsgPolicyHealed),
				journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile, journal.FieldFile, file)
		}
		reported := slices.ContainsFunc(j.plan.Pending, func(r attach.Reason) bool { return r.Code == attach.PolicyChanged })
		if len(accepted) > 0 && len(j.o.Policy.Problems) == 0 && !reported {
			j.d.Record.Accepted = accepted
			if len(j.d.Record.DropIns) > 0 {
				l.remember(j.d.Record) // a look at the unit compares with it from now on
			}
		}
		j.out.Changed = j.out.Changed || j.plan.Has(attach.LoadPolicy)
		j.event(attach.StepPolicy, attach.Done, "%s, %s; the kernel runs what was checked (%s)",
			map[bool]string{true: "loaded", false: "already loaded"}[j.plan.Has(attach.LoadPolicy)], j.d.Attachment.Mode, shortSum(j.d.Record.Accepted[j.d.Profile]))
	}
	l.unloadChildren(ctx, jobs)
	return saved
}

// hardened says that what a withdrawn attachment had loaded in complain mode is
// loaded as its text says again.
func (l *Loop) hardened(j *job, failed map[string]error) {
	for _, a := range j.plan.Actions {
		if a.Kind != attach.LoadPolicy {
			continue
		}
		if err := failed[a.Target]; err != nil {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "%s stays loaded in complain mode: %v", a.Target, err).At(a.Target))
			continue
		}
		j.out.Changed = true
		j.event(attach.StepPolicy, attach.Done, "%s is loaded as its text says again", a.Target)
	}
	j.out.Notes = append(j.out.Notes, j.o.Policy.Problems...)
}

// unloadChildren removes what the texts no longer define: the kernel hands a
// replaced profile's children on to the new one. One that a task carries can go
// only after the restart, so it is tried then once more.
func (l *Loop) unloadChildren(ctx context.Context, jobs []*job) {
	done := map[string]bool{}
	for _, j := range jobs {
		for _, a := range j.plan.Actions {
			if !j.alive() || a.Kind != attach.UnloadChild || done[a.Target] {
				continue
			}
			done[a.Target] = true
			if err := l.apparmor.Unload(ctx, a.Target); err != nil && (j.restarted || !j.plan.Has(attach.Restart)) {
				j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "%v", err))
			}
		}
	}
}

func shortSum(sum string) string {
	kind, hex, ok := strings.Cut(sum, ":")
	if !ok {
		return "checksum unknown"
	}
	return kind + " " + hex[:min(8, len(hex))] + "…"
}

func sortedNames(c attach.Compiled) []string {
	var out []string
	for name := range c.Checksums {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

func (l *Loop) policy(ctx context.Context, d attach.Desired, how depth) attach.Policy {
	var names []string
	if d.Profile != "" {
		names = append([]string{d.Profile}, d.Attachment.AllowProfiles...)
	}
	p := attach.Policy{Candidates: map[string][]attach.Profile{}}
	var files []string
	for i, name := range names {
		if how == quick {
			p.Candidates[name] = l.apparmor.Known(name) // for the hint at a rule
			continue
		}
		found := l.apparmor.ByName(name)
		if file := d.Attachment.ProfileFile; i == 0 && file != "" {
			inFile, err := l.apparmor.InFile(file)
			if err != nil {
				p.Problems = append(p.Problems, attach.Because(attach.ProfileNotFound, "cannot read profile file %s: %v", file, err).At(file))
			}
			for _, c := range inFile {
				if c.Name == name && !slices.ContainsFunc(found, func(f attach.Profile) bool { return f.File == c.File }) {
					found = append(found, c)
				}
			}
		}
		p.Candidates[name] = found
		for _, c := range found {
			if !slices.Contains(files, c.File) {
				files = append(files, c.File)
			}
		}
	}
	if how == full && len(files) > 0 {
		var problems []attach.Reason
		p.Compiled, problems = l.apparmor.Compile(ctx, files, d.Attachment.Mode == attach.WishComplain)
		p.Problems = append(p.Problems, problems...)
		if d.Attachment.Mode == attach.WishComplain {
			p.EnforcedBy = l.wantedBy(d.Unit, attach.WishEnforce, append(l.namesIn(files), names...))
		}
	}
	// A file may define more profiles than the unit's: what is not read here
	// would look as if it were not loaded, and be loaded at every pass.
	for _, c := range p.Compiled {
		names = append(names, sortedNames(c)...)
	}
	for name := range d.Record.Accepted {
		names = append(names, name)
	}
	slices.Sort(names)
	live, err := l.apparmor.Live(slices.Compact(names))
	if err != nil {
		p.LiveError = err.Error()
	}
	p.Live = live
	return p
}

// softened is the policy, as their texts say it, of the files that an
// attachment which is gone had loaded in complain mode. A file that another
// attached unit still wants so is left to that one.
func (l *Loop) softened(ctx context.Context, d attach.Desired) attach.Policy {
	var files []string
	for _, file := range d.Record.Softened {
		if l.wantedBy(d.Unit, attach.WishComplain, l.namesIn([]string{file})) == "" {
			files = append(files, file)
		}
	}
	var p attach.Policy
	p.Compiled, p.Problems = l.apparmor.Compile(ctx, files, false)
	var names []string
	for _, c := range p.Compiled {
		names = append(names, sortedNames(c)...)
	}
	live, err := l.apparmor.Live(names)
	if err != nil {
		p.LiveError = err.Error()
	}
	p.Live = live
	return p
}

// namesIn lists the profiles that files define.
func (l *Loop) namesIn(files []string) (names []string) {
	for _, file := range files {
		found, _ := l.apparmor.InFile(file)
		for _, p := range found {
			names = append(names, p.Name)
		}
	}
	return names
}

// wantedBy finds another unit that is attached in the given mode to one of the
// profiles; "" none. Of several it is the first by name.
func (l *Loop) wantedBy(unit string, mode attach.Wish, profiles []string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var units []string
	for other, a := range l.targets {
		if other == unit || a.Mode != mode {
			continue
		}
		name, err := a.ProfileFor(other)
		if err == nil && slices.ContainsFunc(profiles, func(p string) bool { return p == name || slices.Contains(a.AllowProfiles, p) }) {
			units = append(units, other)
		}
	}
	if len(units) == 0 {
		return ""
	}
	return slices.Min(units)
}
