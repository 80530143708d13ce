package reconcile

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// built is what became of files that were compiled together.
type built struct {
	done     map[string]attach.Compiled
	problems map[string][]attach.Reason
}

// of gives what became of some of the files, and whether they were all among
// them.
func (b built) of(files []string) (done []attach.Compiled, problems []attach.Reason, all bool) {
	all = true
	for _, file := range files {
		c, made := b.done[file]
		if made {
			done = append(done, c)
		}
		problems = append(problems, b.problems[file]...)
		all = all && (made || len(b.problems[file]) > 0)
	}
	return done, problems, all
}

// compile compiles files, and stages what compiled.
func compile(ctx context.Context, texts Texts, files []string, complain bool) built {
	b := built{done: map[string]attach.Compiled{}, problems: map[string][]attach.Reason{}}
	done, problems := texts.Compile(ctx, files, complain)
	for file, why := range problems {
		b.problems[file] = append(b.problems[file], why)
	}
	texts.Stage(ctx, done)
	for _, c := range done {
		b.done[c.File] = c
	}
	return b
}

// acceptedOf is what was accepted for a record, by the policies that are kept: a
// boot with another parser or kernel has compiled them anew, and the kernel's
// checksums with them.
func acceptedOf(kept Policies, r attach.Record) map[string]string {
	sums := map[string]string{}
	for _, id := range r.Policies {
		k, ok := kept.Lookup(id)
		if !ok {
			return r.Accepted
		}
		maps.Copy(sums, k.Checksums)
	}
	if len(sums) == 0 {
		return r.Accepted
	}
	return sums
}

// healing reports whether an action puts back what somebody else has changed.
func healing(a attach.Action) bool { return a.Reason.Code == attach.PolicyTrampled }

// heals lists what the plan puts back.
func (j *job) heals() (out []attach.Action) {
	for _, a := range j.plan.Actions {
		if healing(a) {
			out = append(out, a)
		}
	}
	return out
}

// loading finds the policy, or what of it, that an action makes live.
func (j *job) loading(a attach.Action) (c attach.Compiled, ok bool) {
	from, part := j.o.Policy.Compiled, j.o.Policy.Own
	switch {
	case a.Kind == attach.LoadPolicy && healing(a):
	case a.Kind == attach.LoadPolicy:
		part = func(c attach.Compiled) attach.Compiled { return c }
	case a.Kind == attach.RestorePolicy:
		from = j.d.Kept
	default:
		return c, false
	}
	i := slices.IndexFunc(from, func(c attach.Compiled) bool { return c.File == a.Target })
	if i < 0 {
		return c, false
	}
	return part(from[i]), true
}

// loads reports whether the plan makes a policy of the file live. Where units have accepted
// different ones, a pass may load one that is not this unit's.
func (j *job) loads(file string) bool {
	return slices.ContainsFunc(j.plan.Actions, func(a attach.Action) bool { c, ok := j.loading(a); return ok && c.File == file })
}

// accepts reports whether what the unit's files say is what it runs under from
// now on.
func (j *job) accepts() bool {
	others := j.plan.GivesWay || len(j.o.Policy.Standing) > 0 // what is told of those has the same code
	reported := !others && slices.ContainsFunc(j.plan.Pending, func(r attach.Reason) bool { return r.Code == attach.PolicyChanged })
	return j.d.Attachment != nil && !j.held() && !j.plan.KeepsPolicy && !reported && len(j.o.Policy.Compiled) > 0 && len(j.o.Policy.Problems) == 0
}

// loadPolicies is step 2. What is accepted is kept first, so that it can be put
// back whatever comes. It returns how to bring back what was loaded before, by
// file.
func (l *Loop) loadPolicies(ctx context.Context, jobs []*job) map[string]Saved {
	anew := map[string]bool{} // IDs under which something else is kept now
	var mu sync.Mutex
	eachAlive(jobs, func(j *job) {
		if j.accepts() {
			for _, id := range l.keepPolicies(j) {
				mu.Lock()
				anew[id] = true
				mu.Unlock()
			}
		}
	})
	if len(anew) > 0 {
		for _, j := range jobs {
			j.followKept(l, anew)
		}
		defer l.followKept(anew)
	}
	saved, load, unread := l.gather(jobs)
	failed := maps.Clone(unread)
	begun := time.Now()
	eachAlive(jobs, func(j *job) {
		if j.accepts() {
			l.beginTrial(j, begun) // before it is loaded: the unit may not live much longer
		}
		if j.plan.Has(attach.LoadPolicy) || j.plan.Has(attach.RestorePolicy) {
			j.willLoad()
			l.remember(j.d.Record)
			j.event(attach.StepPolicy, attach.Running, "loading")
		}
	})
	if len(load) > 0 {
		maps.Copy(failed, l.load(ctx, load))
	}
	eachAlive(jobs, func(j *job) {
		if j.d.Attachment == nil {
			l.hardened(j, failed)
		} else {
			l.accept(j, failed)
			if slices.ContainsFunc(slices.Concat(j.o.Policy.Compiled, j.d.Kept), func(c attach.Compiled) bool { return unread[c.File] != nil }) {
				j.unread = true
				l.queue.add(inputChanged, j.d.Unit) // it is compiled anew
			}
		}
	})
	l.unloadChildren(ctx, jobs)
	return saved
}

// followKept takes what was made anew of the texts that were accepted for a unit for what
// was accepted: it is that of all units that share the file. So what was kept before is not
// put back.
func (j *job) followKept(l *Loop, ids map[string]bool) {
	j.d.Kept = l.keptOf(j.d.Record)
	j.d.Record, _ = madeAnew(l.policies, j.d.Record, ids)
	j.before, _ = madeAnew(l.policies, j.before, ids)
	j.plan.Actions = slices.DeleteFunc(j.plan.Actions, func(a attach.Action) bool {
		return a.Kind == attach.RestorePolicy && ids[j.d.Record.Policies[a.Target]]
	})
}

// keepPolicies puts what a unit is to run under on disk. Without that it could
// not be put back, so nothing is loaded. It gives the IDs under which something else was
// kept before.
func (l *Loop) keepPolicies(j *job) (anew []string) {
	for _, c := range j.o.Policy.Compiled {
		same := l.isKept(c)
		done := l.onDisk()
		err := l.policies.Keep(c)
		done()
		if err == nil {
			if !same {
				anew = append(anew, c.ID)
			}
			continue
		}
		why := attach.Because(attach.PolicyNotKept, "%v", err).At(c.File).WithNext(wayOut(err))
		if j.fresh {
			j.fail(attach.StepPolicy, why)
		} else {
			l.refuse(j, why) // what runs goes on, and the next trigger tries again
		}
		return anew
	}
	return anew
}

// gather puts together what all plans load, each profile once, with its bytes.
func (l *Loop) gather(jobs []*job) (saved map[string]Saved, load []attach.Compiled, failed map[string]error) {
	saved, failed = map[string]Saved{}, map[string]error{}
	chosen, heal := map[string]attach.Compiled{}, map[string]attach.Compiled{} // by file; by ID, some in part
	for _, j := range jobs {
		for _, a := range j.plan.Actions {
			c, ok := j.loading(a)
			if !ok || !j.alive() {
				continue
			}
			if healing(a) {
				c.Checksums = maps.Clone(c.Checksums)
				maps.Copy(c.Checksums, heal[c.ID].Checksums)
				heal[c.ID] = c
			} else if _, done := chosen[c.File]; !done {
				chosen[c.File] = c
			}
		}
	}
	add := func(c attach.Compiled) bool {
		if c.Blob == nil {
			kept, err := l.policies.Get(c.ID)
			if err != nil {
				failed[c.File] = err
				return false
			}
			c.Blob, c.Checksums = kept.Blob, kept.Part(c.Defines).Checksums // of one compilation
		}
		load = append(load, c)
		return true
	}
	for _, file := range slices.Sorted(maps.Keys(chosen)) {
		c := chosen[file]
		// Of two that differ, what was accepted for a unit wins.
		wins := func(h attach.Compiled) bool {
			return h.File == file && slices.ContainsFunc(sortedNames(h), c.Defines)
		}
		if slices.ContainsFunc(slices.Collect(maps.Values(heal)), wins) {
			if h, same := heal[c.ID]; same {
				h.Checksums = c.Checksums
				heal[c.ID] = h
			}
			continue
		}
		if !add(c) {
			continue
		}
		s, err := l.apparmor.Save(sortedNames(c))
		if err != nil {
			l.log.Warn("cannot keep the loaded policy; an undo cannot bring it back", "file", file, "err", err)
		}
		saved[file] = s
	}
	for _, id := range slices.Sorted(maps.Keys(heal)) { // what somebody else has made of it is not to come back
		add(heal[id])
	}
	return saved, load, failed
}

// willLoad notes what a detach has to take back.
func (j *job) willLoad() {
	if j.d.Attachment == nil {
		return
	}
	r := &j.d.Record
	for _, a := range j.plan.Actions {
		c, ok := j.loading(a)
		if !ok {
			continue
		}
		noteLoad(r, c, j.o.Policy.Live, healing(a))
	}
}

// noteLoad notes that a policy is loaded over what is live. What somebody has removed
// and a healing puts back was there before.
func noteLoad(r *attach.Record, c attach.Compiled, live map[string]attach.LiveProfile, heals bool) {
	soft := func(file string) bool { return file == c.File }
	if !c.Complain {
		r.Softened = slices.DeleteFunc(r.Softened, soft)
	}
	for _, name := range sortedNames(c) {
		was, loaded := live[name]
		if !loaded && !heals && !strings.Contains(name, "//") && !slices.Contains(r.Loaded, name) {
			r.Loaded = append(r.Loaded, name)
		}
		if loaded && c.Complain && was.Mode.Confines() && !slices.ContainsFunc(r.Softened, soft) && !slices.Contains(r.Loaded, name) {
			r.Softened = append(r.Softened, c.File)
		}
	}
}

// accepting is what the unit's files give.
func (j *job) accepting() (accepted, policies map[string]string) {
	accepted, policies = map[string]string{}, map[string]string{}
	for _, c := range j.o.Policy.Compiled {
		maps.Copy(accepted, c.Checksums)
		policies[c.File] = c.ID
	}
	return accepted, policies
}

// toldWithin is how long it takes at most until a change of policy is told: many that
// come one after the other are told as one. One alone is told within toldSoon.
const (
	toldWithin = 2 * time.Second
	toldSoon   = 300 * time.Millisecond
)

// liveSince is from when on a unit may have been under what it is to run under: from now
// on, where the pass loads that, and else since somebody else has loaded it. Most likely
// it was so from surely on.
func (l *Loop) liveSince(j *job, now time.Time) (maybe, surely time.Time) {
	_, policies := j.accepting()
	live := false
	for file, id := range policies {
		live = live || j.d.Record.Policies[file] != id &&
			!slices.ContainsFunc(j.plan.Actions, func(a attach.Action) bool { return a.Kind == attach.LoadPolicy && a.Target == file })
	}
	if !live {
		return now, now
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	since := now
	for _, told := range []time.Time{l.told[j.d.Unit], l.waiting[j.d.Unit], l.queue.policyTold()} {
		if !told.IsZero() && told.Before(since) {
			since = told
		}
	}
	return since.Add(-toldWithin), since.Add(-toldSoon)
}

// beginTrial notes what a unit has, and how it is if it runs, before its policy changes. A
// trial that was cut off goes on. One that is not watched, as it is down, goes back with
// others that are.
func (l *Loop) beginTrial(j *job, now time.Time) {
	r := &j.d.Record
	_, policies := j.accepting()
	maybe, surely := l.liveSince(j, now)
	start := startUnder(j.o.Unit, maybe, surely)
	if r.Trial.GoesOn() || maps.Equal(policies, r.Policies) || !j.d.Keeps() {
		return
	}
	over := len(l.replaced(policies, r.Policies)) == 0 || !start.Active || j.plan.Has(attach.Restart) || j.d.Attachment.Settle == 0
	if over && r.Trial != nil {
		return // it has what was accepted before
	}
	r.Trial = &attach.Trial{Accepted: r.Accepted, Policies: r.Policies, Since: maybe, Unit: start, Over: over}
}

// startUnder is the start of a unit that a policy has come upon which is live since then,
// see liveSince. Where somebody else has loaded it, the unit may have ended by itself
// since: it ran until then, and has failed under the policy. So it counts where systemd
// has started it again, or is about to, if that is for the first time since a job did. One
// that systemd had to start before may be in a crash loop, which the policy may be there to
// mend: it is watched from now on. One that is down stays so where somebody has stopped it,
// or it may have failed before.
func startUnder(u attach.Unit, maybe, surely time.Time) attach.Start {
	turned := u.Left
	for _, r := range u.Runs {
		for _, t := range []time.Time{r.Began, r.Ended} {
			if r.Property == "ExecStart" && t.After(turned) {
				turned = t
			}
		}
	}
	s, meanwhile := u.Start(), turned.After(maybe)
	switch {
	case !u.Active():
		s.Active = turned.After(surely) && u.Result != "success" && !u.TakenDown()
	case waitsForRestart(u):
		s.Restarting = !meanwhile || u.NRestarts > 0
	case meanwhile && u.NRestarts == 1:
		s.NRestarts = 0
	}
	return s
}

// accept records what a unit runs under, once the kernel has it.
func (l *Loop) accept(j *job, failed map[string]error) {
	files := map[string]bool{}
	for _, c := range slices.Concat(j.o.Policy.Compiled, j.d.Kept) {
		files[c.File] = true
	}
	for _, file := range slices.Sorted(maps.Keys(files)) {
		if err := failed[file]; err != nil && j.loads(file) {
			j.fail(attach.StepPolicy, attach.Because(attach.ProfileNotLoaded, "cannot load %s: %v", file, err).At(file))
		}
	}
	if !j.alive() {
		// What the pass has to do beside is undone as it always is.
		others := slices.ContainsFunc(j.plan.Actions, func(a attach.Action) bool { return a.Kind == attach.LoadPolicy && !healing(a) })
		j.unhealed = !others && slices.ContainsFunc(j.heals(), func(a attach.Action) bool { return failed[a.Target] != nil })
		return
	}
	for _, a := range j.heals() {
		l.log.Warn("put back the policy of "+j.d.Unit+": "+a.Reason.String(), journal.FieldMessageID, string(journal.MsgPolicyHealed),
			journal.FieldUnit, j.d.Unit, journal.FieldObjectUnit, j.d.Unit, journal.FieldProfile, j.d.Profile, journal.FieldFile, a.Target)
	}
	if attach.IsPattern(j.d.Unit) && len(j.heals()) > 0 && !j.plan.Has(attach.WriteDropIn) {
		l.publish(j.d.Unit, func(s *attach.Status) { s.Refused = j.amiss() })
	}
	loads := j.plan.Has(attach.LoadPolicy) || j.plan.Has(attach.RestorePolicy)
	if j.accepts() {
		r := &j.d.Record
		r.Accepted, r.Policies = j.accepting()
		if r.Trial.GoesOn() && len(l.replaced(r.Policies, r.Trial.Policies)) == 0 {
			r.Trial = r.Trial.Ended() // the text is what it was before the trial
		}
		if len(r.DropIns) > 0 {
			l.remember(*r) // a look at the unit compares with it from now on
		}
		if j.d.Asked {
			l.acceptForOthers(j)
		}
	}
	j.out.Changed = j.out.Changed || loads
	if j.held() || j.plan.GivesWay {
		return
	}
	j.event(attach.StepPolicy, attach.Done, "%s, %s; the kernel runs what was checked (%s)",
		map[bool]string{true: "loaded", false: "already loaded"}[loads], j.d.Attachment.Mode, shortSum(j.d.Record.Accepted[j.d.Profile]))
}

// retain removes what is kept and no unit can go back to. The next daemon goes by what
// is on disk: while there may be records that name something else, all of it stays.
func (l *Loop) retain() {
	l.mu.Lock()
	behind := slices.Sorted(maps.Keys(l.unsaved))
	l.mu.Unlock()
	for _, unit := range behind {
		l.flush(unit)
	}
	ids := map[string]bool{}
	l.mu.Lock()
	if len(l.unsaved) > 0 || l.recordsUnlisted {
		l.mu.Unlock()
		return
	}
	for _, r := range l.records {
		for _, id := range r.Policies {
			ids[id] = true
		}
		if r.Trial != nil {
			for _, id := range r.Trial.Policies {
				ids[id] = true
			}
		}
		if r.Lent != nil {
			for _, id := range r.Lent.Policies {
				ids[id] = true
			}
		}
	}
	l.mu.Unlock()
	if err := l.policies.Retain(ids); err != nil {
		l.log.Warn("cannot remove an accepted policy that nobody needs any more", "err", err)
	}
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
	var names []string
	by := map[string]*job{}
	for _, j := range jobs {
		for _, a := range j.plan.Actions {
			if j.alive() && a.Kind == attach.UnloadChild && by[a.Target] == nil {
				by[a.Target] = j
				names = append(names, a.Target)
			}
		}
	}
	if len(names) == 0 {
		return
	}
	failed := l.unload(ctx, names)
	l.noteStrays(names, failed)
	for _, name := range names {
		if j := by[name]; failed[name] != nil && (j.restarted || !j.plan.Has(attach.Restart)) {
			j.out.Notes = append(j.out.Notes, attach.Because(attach.UnloadSkipped, "%v", failed[name]))
			l.unloadAgain(j.d.Unit, failed[name])
		}
	}
}

// noteStrays remembers which children could not be unloaded for a reason that passes by
// itself: no unit is stopped for them before the next try has shown what becomes of them.
func (l *Loop) noteStrays(names []string, failed map[string]error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range names {
		delete(l.strays, name)
		if passesByItself(failed[name]) {
			l.strays[name] = time.Now().Add(2 * unloadLater)
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

// compileTogether compiles what several units need, all of it in one go: starting
// the parser, and reading what all profiles include, is what costs. The result is
// by whether the profiles are in complain mode.
func compileTogether(ctx context.Context, texts Texts, wishes []attach.Desired) map[bool]built {
	files := map[bool][]string{}
	for _, d := range wishes {
		if d.Attachment != nil {
			_, found, _ := candidates(texts, d)
			complain := d.Attachment.Mode == attach.WishComplain
			files[complain] = append(files[complain], found...)
		}
	}
	out := map[bool]built{}
	for complain, all := range files {
		if len(all) > 0 {
			out[complain] = compile(ctx, texts, all, complain)
		}
	}
	return out
}

// profilesOf are the profiles whose policy a unit needs, its own first.
func profilesOf(d attach.Desired) []string {
	if d.Profile == "" {
		return nil // a pattern's, which depends on the unit
	}
	return append([]string{d.Profile}, d.Attachment.AllowProfiles...)
}

// candidates finds the files that define a unit's profiles.
func candidates(texts Texts, d attach.Desired) (byName map[string][]attach.Profile, files []string, problems []attach.Reason) {
	byName = map[string][]attach.Profile{}
	for i, name := range profilesOf(d) {
		found := texts.ByName(name)
		if file := d.Attachment.ProfileFile; i == 0 && file != "" {
			inFile, err := texts.InFile(file)
			if err != nil {
				problems = append(problems, attach.Because(attach.ProfileNotFound, "cannot read profile file %s: %v", file, err).At(file))
			}
			for _, c := range inFile {
				if c.Name == name && !slices.ContainsFunc(found, func(f attach.Profile) bool { return f.File == c.File }) {
					found = append(found, c)
				}
			}
		}
		byName[name] = found
		for _, c := range found {
			if !slices.Contains(files, c.File) {
				files = append(files, c.File)
			}
		}
	}
	return byName, files, problems
}

func (l *Loop) policy(ctx context.Context, d attach.Desired, u attach.Unit, how depth, m *moment) attach.Policy {
	var texts Texts = l.apparmor
	if m != nil && m.texts != nil {
		texts = m.texts
	}
	names := profilesOf(d)
	p := attach.Policy{Candidates: map[string][]attach.Profile{}}
	var files []string
	if how == full {
		p.Candidates, files, p.Problems = candidates(texts, d)
	}
	if len(files) > 0 {
		complain := d.Attachment.Mode == attach.WishComplain
		var problems []attach.Reason
		var known bool
		if m != nil {
			p.Compiled, problems, known = m.built[complain].of(files)
		}
		if !known {
			p.Compiled, problems, _ = compile(ctx, texts, files, complain).of(files)
		}
		p.Problems = append(p.Problems, problems...)
		p.Texts = slices.Clone(p.Compiled)
		l.askGate(ctx, d, u, &p, m)
		for _, s := range l.standing(d, p.Compiled) {
			p.Compiled = s.among(p.Compiled)
			for _, c := range s.now {
				what := "says something else"
				if slices.ContainsFunc(s.before, func(k attach.Compiled) bool { return k.ID == c.ID }) {
					what = "is compiled to something else"
				}
				p.Standing = append(p.Standing, attach.Because(attach.PolicyChanged, "%s %s by now, which is not to go live for %s; so the policy that was accepted before is that of %s too", c.File, what, s.who, d.Unit).
					At(c.File).WithNext("aaunitctl attach "+s.who))
			}
		}
		if d.Attachment.Mode == attach.WishComplain {
			var proposed map[string]attach.Desired
			if m != nil {
				proposed = m.proposed
			}
			p.EnforcedBy = l.wantedBy(d.Unit, attach.WishEnforce, append(namesIn(texts, files), names...), proposed)
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
	if m != nil && m.covers(names) {
		p.Live = m.liveOf(names)
	} else {
		slices.Sort(names)
		live, err := l.apparmor.Live(slices.Compact(names))
		if err != nil {
			p.LiveError = err.Error()
		}
		p.Live = live
	}
	if settled(d.Record) && !sameLive(d.Record.Accepted, p.Live) {
		own := claim{unit: d.Unit, held: heldAtAttach(d.Record)}
		if how == full {
			p.Superseded, p.LeftTo = l.givenTo(own, d)
		} else {
			p.LeftTo = l.leftTo(own, d, p.Live)
		}
	}
	return p
}

// hasLive reports whether the kernel has what was accepted.
func hasLive(accepted map[string]string, live map[string]attach.LiveProfile) bool {
	for name, sum := range accepted {
		if live[name].Checksum != sum {
			return false
		}
	}
	return true
}

// sameLive reports whether it has that, and nothing beside it.
func sameLive(accepted map[string]string, live map[string]attach.LiveProfile) bool {
	return hasLive(accepted, live) && len(live) == len(accepted)
}

// askGate has the compiled policy checked, where all of it compiled.
func (l *Loop) askGate(ctx context.Context, d attach.Desired, u attach.Unit, p *attach.Policy, m *moment) {
	if l.gate == nil || len(p.Problems) > 0 {
		return
	}
	for _, f := range l.gate.Check(ctx, d, u, p.Texts) {
		switch f.Severity {
		case attach.Error:
			p.Problems = append(p.Problems, f.Reason)
		case attach.Warning:
			p.Findings = append(p.Findings, f.Reason)
		default:
			p.Asides = append(p.Asides, f)
		}
	}
	if d.Asked && len(p.Problems) == 0 {
		p.Problems = l.askForOthers(ctx, d, p.Texts, m)
	}
	if len(p.Problems) > 0 {
		p.Barred = map[string]string{}
		for _, c := range p.Texts {
			p.Barred[c.File] = c.ID
		}
		p.Compiled, p.Texts = nil, nil // as if it had not compiled
	}
}

// softened is the policy, as their texts say it, of the files that an
// attachment which is gone had loaded in complain mode. A file that another
// attached unit still wants so is left to that one.
func (l *Loop) softened(ctx context.Context, d attach.Desired) attach.Policy {
	var files []string
	for _, file := range d.Record.Softened {
		if l.wantedBy(d.Unit, attach.WishComplain, namesIn(l.apparmor, []string{file}), nil) == "" {
			files = append(files, file)
		}
	}
	var p attach.Policy
	p.Compiled, p.Problems, _ = compile(ctx, l.apparmor, files, false).of(files)
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
func namesIn(texts Texts, files []string) (names []string) {
	for _, file := range files {
		found, _ := texts.InFile(file)
		for _, p := range found {
			names = append(names, p.Name)
		}
	}
	return names
}

// wantedBy finds another unit that is attached in the given mode to one of the
// profiles; "" none. Of several it is the first by name. proposed are wishes that take
// the place of what is declared.
func (l *Loop) wantedBy(unit string, mode attach.Wish, profiles []string, proposed map[string]attach.Desired) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var units []string
	for other, a := range l.targets {
		if d, is := proposed[other]; is {
			a = d.Attachment
		}
		if other == unit || a == nil || a.Mode != mode {
			continue
		}
		name, err := l.profileFor(other, a)
		if err == nil && slices.ContainsFunc(profiles, func(p string) bool { return p == name || slices.Contains(a.AllowProfiles, p) }) {
			units = append(units, other)
		}
	}
	if len(units) == 0 {
		return ""
	}
	return slices.Min(units)
}
