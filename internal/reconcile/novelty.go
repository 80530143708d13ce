package reconcile

import (
	"maps"
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
	// heard: the log has all since this start of the unit began. Else what is not in it
	// from before may have been denied all the same.
	heard bool
}

// uncounted is a denial that may speak against a policy, and why that is not known.
type uncounted struct {
	attach.Denial
	why string
}

func (l *Loop) noveltyOf(j *job) *novelty {
	left := j.o.Unit.Left
	n := &novelty{l: l, unit: j.d.Unit, heard: !left.IsZero() && l.denials.gap(left) == ""}
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

// since lists what speaks against the policy from t on, and what may.
func (n *novelty) since(t time.Time) (against []attach.Denial, may []uncounted) {
	t = t.Add(-behind)
	for _, d := range n.l.denials.pick(n.unit, func(d logged) bool { return d.newSince(t) }) {
		switch {
		case d.Allowed || !n.concerns(d.Denial):
		case !d.Told():
			may = append(may, uncounted{d.Denial, "it may not have been " + n.unit})
		case !n.heard:
			may = append(may, uncounted{d.Denial, "it may have been denied before"})
		default:
			against = append(against, d.Denial)
		}
	}
	return against, may
}

// concerns reports whether a changed profile, or a child or hat of one, denied it.
func (n *novelty) concerns(d attach.Denial) bool {
	of, _ := attach.Attribute(d, map[string][]string{n.unit: n.changed})
	return of != ""
}
