package policydb

import "slices"

// SameWays says whether the same program comes to run under the same profile by two
// versions of a policy: whether they have the same profiles, each for the same programs,
// and whether all that an exec or a task's own change of profile comes to is the same in
// each. An exec that stays in the profile counts like one that is refused, as neither
// leads anywhere. No also means that they are not compared further.
func SameWays(was, is []Profile) Answer {
	if len(was) != len(is) {
		return No
	}
	for i := range was {
		p := &was[i]
		at := slices.IndexFunc(is, func(q Profile) bool { return q.Name == p.Name && q.Namespace == p.Namespace })
		if at < 0 {
			return No
		}
		if a := p.sameWays(&is[at]); a != Yes {
			return a
		}
	}
	return Yes
}

func (p *Profile) sameWays(q *Profile) Answer {
	if !p.understood() || !q.understood() || len(p.Xattrs)+len(q.Xattrs) > 0 {
		return Unknown
	}
	a, ok := p.fileDatabase()
	b, also := q.fileDatabase()
	switch {
	case !ok || !also:
		return Unknown
	case p.Mode != q.Mode || p.Hat != q.Hat || p.Attachment != q.Attachment || (p.xmatch == nil) != (q.xmatch == nil),
		p.xmatch != nil && !alike(p.xmatch, q.xmatch, (*database).attaches),
		!alike(a, b, (*database).way):
		return No
	}
	return Yes
}

// way is where a path or a profile's name leads.
type way struct {
	certain, maybe Perm
	exec           Transition
}

func (d *database) way(i uint32) way {
	const change = ChangeProfile | OnExec | Stack
	p := &d.perms[i]
	w := way{certain: p.Allow &^ p.Deny & change, maybe: (p.Prompt | p.Complain | p.Cond) & (change | Exec)}
	if (p.Allow&^p.Deny|w.maybe)&Exec != 0 && d.transitions != nil && d.transitions[i].Kind != ExecInherit {
		w.exec = d.transitions[i]
	}
	return w
}

func (d *database) attaches(i uint32) way {
	return way{certain: d.perms[i].Allow & Exec}
}

// alike says whether two automata say the same of every string. It joins the states that
// would have to be alike (Hopcroft and Karp), so it takes no more steps than both have
// states. nil grants nothing.
func alike(a, b *database, of func(*database, uint32) way) bool {
	if a == nil {
		a = emptyDatabase()
	}
	if b == nil {
		b = emptyDatabase()
	}
	type bytes struct{ a, b uint8 }
	var kinds []bytes
	for c := range 256 {
		if k := (bytes{a.dfa.class[c], b.dfa.class[c]}); !slices.Contains(kinds, k) {
			kinds = append(kinds, k)
		}
	}
	// The states of b are numbered after those of a.
	after := uint32(len(a.index))
	parent := make([]uint32, len(a.index)+len(b.index))
	for i := range parent {
		parent[i] = uint32(i)
	}
	find := func(s uint32) uint32 {
		for parent[s] != s {
			parent[s] = parent[parent[s]]
			s = parent[s]
		}
		return s
	}
	type pair struct{ a, b uint32 }
	var todo []pair
	join := func(p pair) bool {
		x, y := find(p.a), find(after+p.b)
		if x == y {
			return true
		}
		i, j := a.index[p.a], b.index[p.b]
		if of(a, i.owner) != of(b, j.owner) || of(a, i.other) != of(b, j.other) {
			return false
		}
		parent[y] = x
		todo = append(todo, p)
		return true
	}
	if !join(pair{a.start, b.start}) {
		return false
	}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, k := range kinds {
			if !join(pair{a.dfa.stepClass(p.a, uint32(k.a)), b.dfa.stepClass(p.b, uint32(k.b))}) {
				return false
			}
		}
	}
	return true
}
