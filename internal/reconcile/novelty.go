package reconcile

import (
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
}

func (l *Loop) noveltyOf(j *job) *novelty {
	n := &novelty{l: l, unit: j.d.Unit}
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

// since lists the new denials from t on, whoever they are of.
func (n *novelty) since(t time.Time) []attach.Denial {
	return slices.DeleteFunc(n.l.deniedSince(n.unit, t, n.l.denials.newSince), func(d attach.Denial) bool { return !n.concerns(d) })
}

// concerns reports whether a changed profile, or a child or hat of one, denied it.
func (n *novelty) concerns(d attach.Denial) bool {
	of, _ := attach.Attribute(d, map[string][]string{n.unit: n.changed})
	return of != ""
}
