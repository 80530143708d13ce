package policydb

import (
	"math/rand/v2"
	"slices"
)

// Sample is a string for each different thing that the file rules grant, the
// shortest that leads there and of these the one that reads best; at most n, the
// shortest first. They are no proof of anything, but what somebody else can be
// asked about to find out whether he reads the same policy. They need not be
// paths that can exist, and have a NUL in them where a rule is about two names.
func (p *Profile) Sample(n int) [][]byte {
	if p.file == nil || n <= 0 {
		return nil
	}
	d := p.file
	type node struct {
		at     uint32
		parent int32
		c      byte
	}
	var moves []move
	var seenClass [256]bool
	for _, c := range readable {
		if k := d.dfa.class[c]; !seenClass[k] {
			seenClass[k] = true
			moves = append(moves, move{c: c, dfa: k})
		}
	}
	seen := make([]bool, len(d.index))
	told := map[permIndex]bool{d.index[stateDead]: true}
	nodes := []node{{at: d.start, parent: -1}}
	seen[stateDead], seen[d.start] = true, true
	var out [][]byte
	for i := 0; i < len(nodes) && len(out) < n; i++ {
		from := nodes[i].at
		if k := d.index[from]; !told[k] && i > 0 {
			told[k] = true
			var w []byte
			for j := int32(i); nodes[j].parent >= 0; j = nodes[j].parent {
				w = append(w, nodes[j].c)
			}
			slices.Reverse(w)
			out = append(out, w)
		}
		for _, m := range moves {
			if to := d.dfa.stepClass(from, uint32(m.dfa)); !seen[to] {
				seen[to] = true
				nodes = append(nodes, node{at: to, parent: int32(i), c: m.c})
			}
		}
	}
	return out
}

// Walker makes strings by walking at random through what a profile's rules of a
// class match.
type Walker struct {
	d     *database
	start uint32
	// of are the bytes of each class.
	of [256][]byte
}

// Walker gives a Walker; nil where the profile has no rules of the class.
func (p *Profile) Walker(class byte) *Walker {
	w := &Walker{d: p.file}
	switch {
	case class != ClassFile:
		s, a := p.classState(class)
		if a != Yes {
			return nil
		}
		w.d, w.start = p.policy, s
	case p.file == nil:
		return nil
	default:
		w.start = p.file.start
	}
	for c := range 256 {
		k := w.d.dfa.class[c]
		w.of[k] = append(w.of[k], byte(c))
	}
	return w
}

// Walk gives a string of at most limit bytes that the rules match, or the
// beginning of one.
func (w *Walker) Walk(r *rand.Rand, limit int) []byte {
	var out []byte
	s := w.start
	var live [256]uint8
	for len(out) < limit {
		if len(out) > 0 && w.d.index[s] != w.d.index[stateDead] && r.IntN(8) == 0 {
			return out
		}
		n := 0
		for _, k := range w.d.dfa.classes {
			if w.d.dfa.stepClass(s, uint32(k)) != stateDead {
				live[n] = k
				n++
			}
		}
		if n == 0 {
			return out
		}
		k := live[r.IntN(n)]
		out = append(out, w.of[k][r.IntN(len(w.of[k]))])
		s = w.d.dfa.stepClass(s, uint32(k))
	}
	return out
}
