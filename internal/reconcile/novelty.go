package reconcile

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// novelty tells which of a unit's denials speak against the policy that is on trial.
type novelty struct {
	l    *Loop
	unit string
	// changed are the profiles that are not what was accepted before: what any other
	// denies is not the change's doing.
	changed []string
	// accepted are the policies that were accepted before and are no more, and now those
	// that are instead. Would the accepted ones have denied that, too? Where they cannot
	// tell, the log does.
	accepted, now []attach.Compiled
	// same: programs run under the same profiles by accepted and by now. Else what a
	// profile of that name denied before is not what the program was denied, and what an
	// unchanged one denies may be the change's doing. It is asked once, at the first denial.
	same     bool
	compared bool
	answers  map[attach.DenialKey]answered
	asked    [worths]int // how many
	// heard: the log has all since this start of the unit began. Else what is not in it
	// from before may have been denied all the same.
	heard bool
}

// worth is how much is said by a denial, that of most first. The accepted policy is asked
// about so many of each: what comes in any number takes nothing from what says more.
type worth int

const (
	newHere  worth = iota // the unit tells it, and the log has it for the first time
	oldHere               // the unit tells it, as it did before
	anybodys              // whoever may run a program can bring it about
	worths
)

const (
	// maxQuestions bounds the different denials of a trial that the accepted policy is
	// asked about, of the unit's own the new ones and the old ones each.
	maxQuestions = 50
	// maxOthers bounds the others: they are only told of.
	maxOthers = maxTold
)

// worthSince is what a denial says of a trial that began at t.
func (d logged) worthSince(t time.Time) worth {
	switch {
	case !d.toldSince(t):
		return anybodys
	case !d.newSince(t):
		return oldHere
	}
	return newHere
}

// answered is what was said of a denial of that name: others may have the same key.
type answered struct {
	name   string
	denied attach.Tri
}

// uncounted is a denial that may speak against a policy, and why that is not known.
type uncounted struct {
	attach.Denial
	why string
}

func (l *Loop) noveltyOf(j *job) *novelty {
	n := &novelty{l: l, unit: j.d.Unit, answers: map[attach.DenialKey]answered{}}
	left := j.o.Unit.Left // after now: the clock was put back since, maybe before the log began
	n.heard = !left.IsZero() && !left.After(time.Now()) && l.denials.gap(left) == ""
	n.accepted = n.changedFrom(j.d.Record.Trial.Policies, j.d.Record.Policies)
	n.now = n.changedFrom(j.d.Record.Policies, j.d.Record.Trial.Policies)
	was, is := j.d.Record.Trial.Accepted, j.d.Record.Accepted
	names := maps.Clone(was)
	if names == nil {
		names = map[string]string{}
	}
	maps.Copy(names, is)
	for name := range names {
		if was[name] != is[name] {
			n.changed = append(n.changed, name)
		}
	}
	return n
}

// changedFrom gives the policies that the others do not have. What is not kept can be
// compared with nothing.
func (n *novelty) changedFrom(ids, others map[string]string) (out []attach.Compiled) {
	for _, file := range slices.Sorted(maps.Keys(ids)) {
		if ids[file] == others[file] {
			continue
		}
		c, kept := n.l.policies.Lookup(ids[file])
		if !kept {
			n.compared = true
			continue
		}
		out = append(out, c)
	}
	return out
}

// sameWays reports whether programs run under the same profiles as before.
func (n *novelty) sameWays(ctx context.Context) bool {
	if !n.compared {
		n.compared = true
		n.same = n.l.gate != nil && n.l.gate.SameWays(ctx, n.accepted, n.now) == attach.Yes
	}
	return n.same
}

// since lists what speaks against the policy from t on, and what may.
func (n *novelty) since(ctx context.Context, t time.Time) (against []attach.Denial, may []uncounted) {
	t = t.Add(-behind)
	all := n.l.denials.pick(n.unit, func(d logged) bool { return !d.Last.Before(t) })
	slices.SortStableFunc(all, func(a, b logged) int { return int(a.worthSince(t) - b.worthSince(t)) })
	for _, d := range all {
		if d.Allowed || !n.concerns(ctx, d.Denial) {
			continue
		}
		says := d.worthSince(t)
		switch before := n.deniedBefore(ctx, d.Denial, says); {
		case before == attach.Yes:
		case before == attach.CouldNotTell && !d.newSince(t):
		case says == anybodys:
			may = append(may, uncounted{d.Denial, "it may not have been " + n.unit})
		case before == attach.CouldNotTell && !n.heard:
			may = append(may, uncounted{d.Denial, "it may have been denied before"})
		default:
			against = append(against, d.Denial)
		}
	}
	return against, may
}

// deniedBefore asks the accepted policies, about each denial once. One that is of another
// process by now is asked about again: the rule may have been for the number.
func (n *novelty) deniedBefore(ctx context.Context, d attach.Denial, says worth) attach.Tri {
	k := d.Key()
	a, asked := n.answers[k]
	if asked && a.name == d.Name {
		return a.denied
	}
	if !asked {
		most := maxQuestions
		if says == anybodys {
			most = maxOthers
		}
		if n.l.gate == nil || n.asked[says] == most {
			return attach.CouldNotTell
		}
		n.asked[says]++
	}
	a = answered{name: d.Name}
	for _, c := range n.accepted {
		if a.denied = n.l.gate.Denies(ctx, c, d); a.denied == attach.Yes && !n.sameWays(ctx) {
			a.denied = attach.CouldNotTell
		}
		if a.denied != attach.CouldNotTell {
			break
		}
	}
	n.answers[k] = a
	return a.denied
}

// concerns reports whether a changed profile, or a child or hat of one, denied it, or any
// of the host's where the change may have led to that.
func (n *novelty) concerns(ctx context.Context, d attach.Denial) bool {
	of, _ := attach.Attribute(d, map[string][]string{n.unit: n.changed})
	return of != "" || d.Namespace == "" && !n.sameWays(ctx)
}
