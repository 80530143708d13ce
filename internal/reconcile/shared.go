package reconcile

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// The kernel has one policy of a name. What one unit is to run under is therefore for
// all to say that share the file: what was accepted for one, is held for one, is only
// to be reported to one or is asserted not to be.

// exchange is policies that take the place of others.
type exchange struct{ now, before []attach.Compiled }

// replaced finds what takes the place of what: a policy that of its file, and those of
// other files that define a profile of it, as where a package has given a file another
// name, or has made one of two, or two of one. Where the profiles that are in both are the
// same, nothing is replaced.
func replaced(now, before []attach.Compiled) []exchange {
	return slices.DeleteFunc(exchanges(now, before), func(e exchange) bool { return !e.differs() })
}

// exchanges finds also what takes the place of what says the same, or of nothing.
func exchanges(now, before []attach.Compiled) (out []exchange) {
	_, is := parted(now, before, samePolicy)
	_, was := parted(before, now, samePolicy)
	for len(is) > 0 {
		e := exchange{now: is[:1:1]}
		is = is[1:]
		for more := true; more; {
			var b, n []attach.Compiled
			b, was = parted(was, e.now, overlap)
			e.before = append(e.before, b...)
			n, is = parted(is, e.before, overlap)
			e.now, more = append(e.now, n...), len(n) > 0
		}
		out = append(out, e)
	}
	return out
}

// parted divides policies into those that have to do with one of the others, and the rest.
func parted(all, others []attach.Compiled, has func(a, b attach.Compiled) bool) (with, without []attach.Compiled) {
	for _, c := range all {
		if slices.ContainsFunc(others, func(o attach.Compiled) bool { return has(c, o) }) {
			with = append(with, c)
		} else {
			without = append(without, c)
		}
	}
	return with, without
}

// samePolicy reports whether two policies are of one text and, where that is known, say
// the same: another parser, or the same one for another kernel, may make another policy of
// it.
func samePolicy(a, b attach.Compiled) bool {
	return a.ID == b.ID && (len(a.Checksums) == 0 || len(b.Checksums) == 0 || maps.Equal(a.Checksums, b.Checksums))
}

// overlap reports whether two policies are of one file, or define the same profile.
func overlap(a, b attach.Compiled) bool {
	if a.File == b.File {
		return true
	}
	for name := range a.Checksums {
		if _, has := b.Checksums[name]; has {
			return true
		}
	}
	return false
}

// differs reports whether a profile that is in both, or a child or hat of one, is another
// one now. Of a policy that is not kept it is not known.
func (e exchange) differs() bool {
	if len(e.before) == 0 {
		return false
	}
	if slices.ContainsFunc(slices.Concat(e.now, e.before), func(c attach.Compiled) bool { return len(c.Checksums) == 0 }) {
		return true
	}
	in := func(all []attach.Compiled) map[string]string {
		sums := map[string]string{}
		for _, c := range all {
			maps.Copy(sums, c.Checksums)
		}
		return sums
	}
	is, was := in(e.now), in(e.before)
	for name := range maps.Keys(in(slices.Concat(e.now, e.before))) {
		top, _, _ := strings.Cut(name, "//")
		if is[top] != "" && was[top] != "" && is[name] != was[name] {
			return true
		}
	}
	return false
}

// policiesOf are policies by file and ID, also those that are not kept.
func policiesOf(kept Policies, ids map[string]string) (all []attach.Compiled) {
	for _, file := range slices.Sorted(maps.Keys(ids)) {
		k, ok := kept.Lookup(ids[file])
		if !ok {
			k = attach.Compiled{File: file, ID: ids[file]}
		}
		all = append(all, k)
	}
	return all
}

// replaced is that of policies by file and ID.
func (l *Loop) replaced(now, before map[string]string) []exchange {
	return replaced(policiesOf(l.policies, now), policiesOf(l.policies, before))
}

// exchanged gives policies after some of them were replaced.
func exchanged(ids map[string]string, all []exchange) map[string]string {
	ids = maps.Clone(ids)
	for _, e := range all {
		for _, c := range e.before {
			delete(ids, c.File)
		}
	}
	for _, e := range all {
		maps.Copy(ids, idsOf(e.now))
	}
	return ids
}

// concerns reports whether policies may take the place of what was accepted for a unit:
// most units have nothing to do with them.
func concerns(r attach.Record, all []attach.Compiled) bool {
	return slices.ContainsFunc(all, func(c attach.Compiled) bool {
		if r.Policies[c.File] != "" {
			return true
		}
		for name := range c.Checksums {
			if r.Accepted[name] != "" {
				return true
			}
		}
		return false
	})
}

// replacedFor finds what takes the place of what was accepted for a unit, where that is about
// a profile that the unit needs, or would with that: one that it only has from a file which
// a package has made two of is for others to say.
func (l *Loop) replacedFor(d attach.Desired, texts []attach.Compiled) []exchange {
	sums := func(all []attach.Compiled) map[string]string {
		sums := map[string]string{}
		for _, c := range all {
			maps.Copy(sums, c.Checksums)
		}
		return sums
	}
	return slices.DeleteFunc(replaced(texts, policiesOf(l.policies, d.Record.Policies)), func(e exchange) bool {
		known := !slices.ContainsFunc(slices.Concat(e.now, e.before), func(c attach.Compiled) bool { return len(c.Checksums) == 0 })
		return known && !slices.ContainsFunc(differing(sums(e.now), sums(e.before)), func(profile string) bool {
			return l.needs(d, profile) || l.needs(d, profile, e.now...)
		})
	})
}

// acceptForOthers: the kernel has one policy of a name. What a person asks for
// on behalf of one unit is accepted for all that need a profile of it.
func (l *Loop) acceptForOthers(j *job) {
	var others, changed []attach.Record
	asked := policiesOf(l.policies, j.d.Record.Policies)
	l.mu.Lock()
	for other, r := range l.records {
		if other != j.d.Unit && concerns(r, asked) {
			others = append(others, r)
		}
	}
	l.mu.Unlock()
	for _, r := range others {
		d, _ := l.desired(r.Unit) // without a good name it runs under that of its record
		d.Record = r
		if changes := l.replacedFor(d, asked); len(changes) > 0 {
			lent := &attach.Lent{By: j.d.Unit, Accepted: r.Accepted, Policies: r.Policies, Hold: r.Hold}
			r = r.Clone()
			r.Policies = exchanged(r.Policies, changes)
			r.Accepted = acceptedOf(l.policies, r)
			if r.Hold.OnlyText() {
				r.Hold = nil
			}
			if r.Lent == nil || r.Lent.By != j.d.Unit {
				r.Lent = lent
			}
			changed = append(changed, r)
		}
	}
	for _, r := range changed {
		l.remember(r)
		l.queue.add(inputChanged, r.Unit)
		j.out.Notes = append(j.out.Notes, attach.Because(attach.PolicyChanged, "%s runs under the changed policy too", r.Unit))
	}
}

// giveBackToOthers undoes acceptForOthers: each has what was accepted for it before.
func (l *Loop) giveBackToOthers(j *job) {
	var back []attach.Record
	l.mu.Lock()
	for _, r := range l.records {
		if r.Lent != nil && r.Lent.By == j.d.Unit {
			back = append(back, l.returned(r, j.d.Record.Policies))
		}
	}
	l.mu.Unlock()
	for _, r := range back {
		l.remember(r)
		l.queue.add(inputChanged, r.Unit)
	}
}

// returned is a record with what was accepted for its unit before it was lent policies;
// where something else has come since, that stays.
func (l *Loop) returned(r attach.Record, lent map[string]string) attach.Record {
	was := *r.Lent
	r.Lent = nil
	for _, e := range l.replaced(lent, was.Policies) {
		if slices.ContainsFunc(e.now, func(c attach.Compiled) bool { return r.Policies[c.File] != c.ID }) {
			return r
		}
	}
	r.Policies, r.Accepted, r.Hold = was.Policies, was.Accepted, was.Hold
	return r
}

// settleLent ends what a unit was lent when the attach of the other one is over, in this
// life of the daemon or in the one before.
func (l *Loop) settleLent(unit string) {
	l.mu.Lock()
	r, ok := l.records[unit]
	if !ok || r.Lent == nil {
		l.mu.Unlock()
		return
	}
	by, remembered := l.records[r.Lent.By]
	l.mu.Unlock()
	if remembered && midway(by) {
		return
	}
	if remembered && settled(by) && len(l.replaced(by.Policies, r.Policies)) == 0 {
		r.Lent = nil
	} else {
		r = l.returned(r, r.Policies)
	}
	l.remember(r)
}

// objections keeps what units say of policies that another one is asked to have: each is
// asked once, however many share the file.
type objections struct {
	sync.Mutex
	said map[string]func() []attach.Reason
}

func (o *objections) of(key string, ask func() []attach.Reason) []attach.Reason {
	o.Lock()
	if o.said == nil {
		o.said = map[string]func() []attach.Reason{}
	}
	if o.said[key] == nil {
		o.said[key] = sync.OnceValue(ask)
	}
	said := o.said[key]
	o.Unlock()
	return said()
}

// askForOthers has policies that a person asks for on behalf of one unit checked for the
// others that would run under them too (acceptForOthers).
func (l *Loop) askForOthers(ctx context.Context, d attach.Desired, texts []attach.Compiled, m *moment) (problems []attach.Reason) {
	if m == nil {
		m = &moment{}
	}
	key := ""
	for _, c := range texts {
		key += " " + c.ID
	}
	var others []string
	l.mu.Lock()
	for other, r := range l.records {
		if other != d.Unit && settled(r) && concerns(r, texts) {
			others = append(others, other)
		}
	}
	l.mu.Unlock()
	slices.Sort(others)
	for _, other := range others {
		its, isProposed := m.proposed[other]
		if !isProposed {
			var err error
			if its, err = l.desired(other); err != nil {
				continue
			}
		}
		// One that wants another mode is in the way for that; see EnforcedBy.
		if its.Attachment == nil || its.Attachment.Mode != d.Attachment.Mode {
			continue
		}
		if r := its.Record; heldAtAttach(r) && r.Hold.Former != "" && !isProposed {
			its.Profile = r.Hold.Former
		}
		if all, differs := l.withTexts(its, texts); differs {
			problems = append(problems, m.others.of(other+key, func() []attach.Reason { return l.objects(ctx, its, all) })...)
		}
	}
	return problems
}

// withTexts gives the policies that were accepted for a unit, with texts in place of those
// that they replace, and reports whether they replace any.
func (l *Loop) withTexts(d attach.Desired, texts []attach.Compiled) (all []attach.Compiled, differs bool) {
	own := policiesOf(l.policies, d.Record.Policies)
	changes := l.replacedFor(d, texts)
	for _, e := range changes {
		_, own = parted(own, e.before, samePolicy)
		all = append(all, e.now...)
	}
	for _, k := range own {
		if len(k.Checksums) > 0 {
			all = append(all, k)
		}
	}
	return all, len(changes) > 0
}

// objects asks what speaks against a unit's running under policies.
func (l *Loop) objects(ctx context.Context, d attach.Desired, texts []attach.Compiled) (problems []attach.Reason) {
	var u attach.Unit
	if !attach.IsPattern(d.Unit) {
		var err error
		if u, err = l.systemd.Glance(ctx, d.Unit); err != nil {
			return unheard(d, err).Reasons
		}
	}
	for _, f := range l.gate.Check(ctx, d, u, texts) {
		if f.Severity == attach.Error {
			why := f.Reason
			why.Unit = d.Unit
			why.Detail = fmt.Sprintf("%s would run under it too: %s", d.Unit, why.Detail)
			problems = append(problems, why)
		}
	}
	return problems
}

// bar notes which texts the plan of an attached unit keeps from going live: those that
// may not, and where something else speaks against its texts all that it did not accept.
func (l *Loop) bar(j *job) {
	barred := maps.Clone(j.o.Policy.Barred)
	if r := j.d.Record; j.plan.KeepsPolicy && r.Hold == nil {
		for _, e := range replaced(j.o.Policy.Texts, policiesOf(l.policies, r.Policies)) {
			if barred == nil {
				barred = map[string]string{}
			}
			maps.Copy(barred, idsOf(e.now))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(barred) == 0 || !settled(j.d.Record) {
		delete(l.barred, j.d.Unit)
		return
	}
	l.barred[j.d.Unit] = barred
}

// barredFor reports whether a policy that a plan takes for that of its unit is kept from
// going live by another unit.
func (l *Loop) barredFor(j *job) bool { return len(l.standing(j.d, j.o.Policy.Compiled)) > 0 }

// stands is what stays as it is for a unit, and the texts that are not to take its place.
type stands struct {
	exchange
	who string
}

// among gives texts with what stays in the place of those that are not to replace it.
func (s stands) among(texts []attach.Compiled) []attach.Compiled {
	_, others := parted(texts, s.now, samePolicy)
	return append(others, s.before...)
}

// staysFor is what stays as it is for a unit that is not to get these texts: of what another
// one has that which is of its profiles, too, and what it has itself beside that.
func (e exchange) staysFor(d attach.Desired, own []attach.Compiled) []attach.Compiled {
	mine, _ := parted(own, e.now, overlap)
	if mine = slices.DeleteFunc(mine, func(k attach.Compiled) bool { return len(k.Checksums) == 0 }); len(mine) == 0 {
		return e.before
	}
	names := profilesOf(d)
	theirs := slices.DeleteFunc(slices.Clone(e.before), func(k attach.Compiled) bool {
		return !slices.ContainsFunc(mine, func(m attach.Compiled) bool { return overlap(k, m) }) &&
			!slices.ContainsFunc(names, func(name string) bool { return k.Checksums[name] != "" })
	})
	_, more := parted(mine, theirs, overlap)
	return append(theirs, more...)
}

// standing finds what other units run under and are not to leave for these texts: the
// kernel has one policy of a name, so that one counts for all units, until a person says
// otherwise.
func (l *Loop) standing(d attach.Desired, texts []attach.Compiled) (out []stands) {
	if d.Asked {
		return nil
	}
	had := hadBefore(d.Record) // an undo of these texts may have been cut off
	if had == nil {
		had = d.Record.Policies
	}
	own := policiesOf(l.policies, had)
	type objector struct {
		attach.Desired
		keepsOut func(attach.Compiled) bool
	}
	var objectors []objector
	l.mu.Lock()
	for other, a := range l.targets {
		r, barred := l.records[other], l.barred[other]
		if a.OnProfileChange != attach.ChangeReport && r.Hold == nil && len(barred) == 0 {
			continue // as most units, of which there may be many
		}
		if other == d.Unit || !settled(r) || !concerns(r, texts) {
			continue
		}
		keepsOut := func(c attach.Compiled) bool {
			return a.OnProfileChange == attach.ChangeReport || r.Hold != nil && r.Hold.Texts[c.File] == c.ID || barred[c.File] == c.ID
		}
		if slices.ContainsFunc(texts, keepsOut) {
			its, _ := l.desiredAt(other, time.Now()) // without a good name it runs under that of its record
			objectors = append(objectors, objector{its, keepsOut})
		}
	}
	l.mu.Unlock()
	slices.SortFunc(objectors, func(a, b objector) int { return strings.Compare(a.Unit, b.Unit) })
	for _, other := range objectors {
		for _, e := range l.replacedFor(other.Desired, texts) {
			inTheWay := func(k attach.Compiled) bool { return len(k.Checksums) == 0 || k.Complain != e.now[0].Complain }
			if slices.ContainsFunc(e.now, other.keepsOut) && !slices.ContainsFunc(e.before, inTheWay) {
				out = append(out, stands{exchange{e.now, e.staysFor(d, own)}, other.Unit})
				_, texts = parted(texts, e.now, samePolicy)
			}
		}
	}
	return out
}

// isKept reports whether what is kept under the ID of a policy is that policy, or nothing.
// The ID is that of a text: another parser, or the same one for another kernel, may make
// another policy of it.
func (l *Loop) isKept(c attach.Compiled) bool {
	k, kept := l.policies.Lookup(c.ID)
	return !kept || len(c.Checksums) == 0 || maps.Equal(k.Checksums, c.Checksums)
}

// followKept has records say what was accepted for their units by what is kept now, where
// that was made anew of the same texts.
func (l *Loop) followKept(ids map[string]bool) {
	var changed []attach.Record
	l.mu.Lock()
	for _, r := range l.records {
		if now, differs := madeAnew(l.policies, r, ids); differs {
			changed = append(changed, now)
		}
	}
	l.mu.Unlock()
	for _, r := range changed {
		l.remember(r)
		l.queue.add(inputChanged, r.Unit)
	}
}

// madeAnew is a record when policies were made anew of the texts that were accepted for its
// unit. Of what it had before another unit's attach that is true, too.
func madeAnew(kept Policies, r attach.Record, ids map[string]bool) (now attach.Record, differs bool) {
	now = r.Clone()
	uses := func(policies map[string]string) bool {
		return slices.ContainsFunc(slices.Collect(maps.Values(policies)), func(id string) bool { return ids[id] })
	}
	if uses(r.Policies) {
		now.Accepted = acceptedOf(kept, r)
		differs = !maps.Equal(now.Accepted, r.Accepted)
	}
	if r.Lent != nil && uses(r.Lent.Policies) {
		lent := *r.Lent
		lent.Accepted = acceptedOf(kept, attach.Record{Accepted: lent.Accepted, Policies: lent.Policies})
		now.Lent, differs = &lent, differs || !maps.Equal(lent.Accepted, r.Lent.Accepted)
	}
	return now, differs
}

// claim tells whose policy of a profile counts, of units for which different ones were
// accepted. It is the same for all of them, so that they never take turns.
type claim struct {
	unit  string
	needs bool      // tasks of it can come to run under the profile
	left  bool      // it is left alone at present, and puts nothing back
	held  bool      // the unit itself is, and not only a changed text
	idle  bool      // it is refused, and puts nothing back over what others have
	at    time.Time // when the policy was compiled first; zero where it is not kept
}

// over reports whether a claim goes before another one: a unit that needs the profile
// before one that only has it from the file of its own, one that is seen to before one that
// is left alone, one that is not held before one that is, one that sees to its policy before
// one that is refused, and the newer policy before the older one.
func (c claim) over(other claim) bool {
	switch {
	case c.needs != other.needs:
		return c.needs
	case c.left != other.left:
		return other.left
	case c.held != other.held:
		return other.held
	case c.idle != other.idle:
		return other.idle
	case !c.at.Equal(other.at):
		return c.at.After(other.at)
	}
	return c.unit < other.unit
}

// claim is that of the job's unit, which sees to its policy in this pass.
func (j *job) claim() claim { return claim{unit: j.d.Unit, held: heldAtAttach(j.d.Record)} }

// rival is an attached unit for which another policy of some profile was accepted.
type rival struct {
	attach.Desired
	left, idle bool
}

// counts is whose policy of a profile counts in place of what was accepted for a unit, and
// whether the unit needs the profile.
type counts struct {
	attach.Record
	needed bool
}

// superseded finds, by profile, the attached units whose policies count, where they are not
// those of this unit.
func (l *Loop) superseded(own claim, d attach.Desired) map[string]counts {
	var rivals []rival
	l.mu.Lock()
	for unit, r := range l.records {
		if unit == d.Unit || !settled(r) || len(differing(d.Record.Accepted, r.Accepted)) == 0 {
			continue
		}
		left, idle := l.aside(r)
		its, _ := l.desiredAt(unit, time.Now()) // without a good name it runs under that of its record
		rivals = append(rivals, rival{its, left, idle})
	}
	l.mu.Unlock()
	return supersededIn(rivals, l.policies, own, d, func(d attach.Desired, profile string) bool { return l.needs(d, profile) })
}

// givenTo names those units, apart for the profiles that this one needs and those that are left
// to others.
func (l *Loop) givenTo(own claim, d attach.Desired) (superseded, leftTo map[string]string) {
	superseded, leftTo = map[string]string{}, map[string]string{}
	for profile, by := range l.superseded(own, d) {
		if by.needed {
			superseded[profile] = by.Unit
		} else {
			leftTo[profile] = by.Unit
		}
	}
	return superseded, leftTo
}

// leftTo names, for a verdict, a unit for each profile that is left to others and that the
// kernel does not have as this one: any that is to run under it. Only where there is none, all
// units are compared.
func (l *Loop) leftTo(own claim, d attach.Desired, live map[string]attach.LiveProfile) map[string]string {
	out, asked := map[string]string{}, map[string]bool{}
	for _, name := range slices.Concat(slices.Collect(maps.Keys(d.Record.Accepted)), slices.Collect(maps.Keys(live))) {
		profile := attach.TopOf(name)
		if live[name].Checksum == d.Record.Accepted[name] || asked[profile] {
			continue
		}
		if asked[profile] = true; l.needs(d, profile) {
			continue
		}
		if out[profile] = l.takenBy(d, profile); out[profile] == "" {
			_, all := l.givenTo(own, d)
			return all
		}
	}
	return out
}

// takenBy finds a unit that is to run under a profile of which another policy was accepted for
// it; "" none.
func (l *Loop) takenBy(d attach.Desired, profile string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for unit, r := range l.records {
		if unit == d.Unit || !settled(r) || r.Accepted[profile] == "" || !slices.Contains(differing(d.Record.Accepted, r.Accepted), profile) {
			continue
		}
		if its, _ := l.desiredAt(unit, time.Now()); runsUnder(its, profile) { // as in superseded
			return unit
		}
	}
	return ""
}

func supersededIn(rivals []rival, kept Policies, own claim, d attach.Desired, needs func(d attach.Desired, profile string) bool) map[string]counts {
	mine, best, out := map[string]claim{}, map[string]claim{}, map[string]counts{}
	for _, r := range rivals {
		for _, profile := range differing(d.Record.Accepted, r.Record.Accepted) {
			if _, known := mine[profile]; !known {
				own.needs, own.at = needs(d, profile), newest(kept, d.Record, profile)
				mine[profile], best[profile] = own, own
			}
			c := claim{r.Unit, needs(r.Desired, profile), r.left, heldAtAttach(r.Record), r.idle, newest(kept, r.Record, profile)}
			if c.over(best[profile]) {
				best[profile], out[profile] = c, counts{r.Record, mine[profile].needs}
			}
		}
	}
	return out
}

// differing lists the profiles that were accepted for both of two units, of which one, or a
// child or hat of it, is not the same.
func differing(a, b map[string]string) (profiles []string) {
	if maps.Equal(a, b) {
		return nil
	}
	for _, names := range []map[string]string{a, b} {
		for name := range names {
			if top := attach.TopOf(name); a[top] != "" && b[top] != "" && a[name] != b[name] && !slices.Contains(profiles, top) {
				profiles = append(profiles, top)
			}
		}
	}
	return profiles
}

// newest is when the policy of a profile that was accepted for a unit was compiled first;
// zero where it is not kept.
func newest(kept Policies, r attach.Record, profile string) (at time.Time) {
	for _, c := range policiesOf(kept, r.Policies) {
		if _, has := c.Checksums[profile]; has && c.At.After(at) {
			at = c.At
		}
	}
	return at
}

// runsUnder reports whether a profile is one that a unit is to run under, or has a child or
// hat that is.
func runsUnder(d attach.Desired, profile string) bool {
	names := []string{d.Profile, d.Record.Profile}
	if h := d.Record.Hold; h != nil {
		names = append(names, h.Former)
	}
	if d.Attachment != nil {
		names = append(names, d.Attachment.AllowProfiles...)
	}
	return slices.ContainsFunc(names, func(name string) bool { return attach.TopOf(name) == profile })
}

// needs reports whether tasks of a unit can come to run under a profile: under what the
// attachment names, or what that leads to by the policy that was accepted, with what has taken
// the place of it. Where it cannot be told they can.
func (l *Loop) needs(d attach.Desired, profile string, now ...attach.Compiled) bool {
	return needs(l.gate, l.policies, d, profile, now...)
}

func needs(gate Gate, policies Policies, d attach.Desired, profile string, now ...attach.Compiled) bool {
	kept := keptOf(policies, d.Record)
	if runsUnder(d, profile) || d.Attachment == nil || gate == nil || len(kept) < len(d.Record.Policies) {
		return true
	}
	d.Profile = d.Record.Profile
	if h := d.Record.Hold; h != nil {
		d.Profile = cmp.Or(h.Former, d.Profile)
	}
	reached, err := gate.Reach(d, slices.Concat(now, kept))
	return err != nil || slices.ContainsFunc(reached, func(name string) bool { return attach.TopOf(name) == profile })
}

// aside reports whether nobody puts back the policy of an attached unit at present: it is
// left alone, since it is paused or nothing is known of its attachment, or it is refused.
// One that is held is kept all the same when it is refused. l.mu is held.
func (l *Loop) aside(r attach.Record) (left, idle bool) {
	left = l.targets[r.Unit] == nil || l.pauseOf(r.Unit, time.Now()) != nil
	return left, !heldAtAttach(r) && len(l.statusOf(r.Unit).Refused) > 0
}

// counting is what counts of the profiles that were accepted for a unit, but for those that
// are left to others: what the kernel is to have of them, and the policies with that, of
// which some count in part.
func (l *Loop) counting(own claim, d attach.Desired) (accepted map[string]string, policies []attach.Compiled) {
	over := l.superseded(own, d)
	count := func(r attach.Record, has func(profile string) bool) {
		maps.Copy(accepted, attach.Compiled{Checksums: r.Accepted}.Part(has).Checksums)
		for _, k := range policiesOf(l.policies, r.Policies) {
			if part := k.Part(has); len(part.Checksums) > 0 {
				policies = append(policies, part)
			}
		}
	}
	accepted = map[string]string{}
	count(d.Record, func(profile string) bool { _, given := over[profile]; return !given })
	for _, name := range slices.Sorted(maps.Keys(over)) {
		if over[name].needed {
			count(over[name].Record, func(profile string) bool { return profile == name })
		}
	}
	return accepted, policies
}

// asCounts is a unit that gives way, and what was seen of it, as if the policies that count
// had been accepted for it, where the kernel has those. That they are not the unit's own is
// told, and no fault of it: no restart would mend it, and it is no cause to stop the unit.
// Any other unit is given back as it is.
func (l *Loop) asCounts(d attach.Desired, o attach.Observed) (attach.Desired, attach.Observed) {
	if !settled(d.Record) || sameLive(d.Record.Accepted, o.Policy.Live) {
		return d, o
	}
	counts := d
	counts.Record.Accepted, _ = l.counting(l.claimOf(d.Record), d)
	live, err := l.apparmor.Live(judgedBy(counts))
	missing := func(name string) bool { return counts.Record.Accepted[name] == "" }
	if err != nil || !hasLive(counts.Record.Accepted, live) || slices.ContainsFunc(profilesOf(d), missing) {
		return d, o
	}
	o.Policy.Live = live
	return counts, o
}

// claimOf is the claim of a unit as it is at present.
func (l *Loop) claimOf(r attach.Record) claim {
	l.mu.Lock()
	defer l.mu.Unlock()
	left, idle := l.aside(r)
	return claim{unit: r.Unit, left: left, held: heldAtAttach(r), idle: idle}
}

// blamed is a verdict without what comes from giving way to another unit's policy.
func (l *Loop) blamed(d attach.Desired, o attach.Observed, v attach.Verdict) attach.Verdict {
	if v.Answer != attach.NotConfined || d.Attachment == nil {
		return v
	}
	return attach.Judge(l.asCounts(d, o))
}

// heldAtAttach reports whether the unit itself is held, and not only a changed text of its
// profile.
func heldAtAttach(r attach.Record) bool { return r.Hold != nil && !r.Hold.OnlyText() }
