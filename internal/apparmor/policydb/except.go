package policydb

import (
	"encoding/binary"
	"strings"
)

// Except leaves out, of the paths that a query is about, those that one of some profiles
// attaches to for certain, by its path alone.
type Except []*Profile

// attached is what a profile attaches to, as an automaton: of its own, or that of the one
// path that its name is (see Attaches).
type attached struct {
	db   *database
	path string
}

func (a attached) start() uint32 {
	if a.db != nil {
		return a.db.start
	}
	return 1
}

// step goes on; 0 is dead. Of a single path a state is how much of it was read, and one
// more.
func (a attached) step(s uint32, c byte) uint32 {
	switch {
	case s == stateDead:
		return stateDead
	case a.db != nil:
		return a.db.dfa.step(s, c)
	case int(s) <= len(a.path) && a.path[s-1] == c:
		return s + 1
	}
	return stateDead
}

func (a attached) accepts(s uint32) bool {
	switch {
	case s == stateDead:
		return false
	case a.db != nil:
		return a.db.at(s, Other).Allow&Exec != 0
	}
	return int(s) == len(a.path)+1
}

// class tells apart what the automaton does.
func (a attached) class(c byte) byte {
	if a.db != nil {
		return a.db.dfa.class[c]
	}
	if strings.IndexByte(a.path, c) < 0 {
		return 0
	}
	return c
}

// without is the language less what profiles attach to.
func (l *language) without(except Except) (*language, error) {
	var of []attached
	for _, p := range except {
		switch {
		case len(p.Xattrs) > 0 || !p.understood():
			continue // that is not certain
		case p.xmatch != nil:
			of = append(of, attached{db: p.xmatch})
		case strings.HasPrefix(base(p.Name), "/"):
			of = append(of, attached{path: base(p.Name)})
		}
	}
	if len(of) == 0 {
		return l, nil
	}
	out := &language{}
	// Bytes that no automaton tells apart are one class.
	known := map[string]uint8{}
	var reps []byte
	for c := range 256 {
		key := []byte{l.class[c]}
		for _, a := range of {
			key = append(key, a.class(byte(c)))
		}
		k, ok := known[string(key)]
		if !ok {
			k = uint8(len(reps))
			known[string(key)] = k
			reps = append(reps, byte(c))
		}
		out.class[c] = k
	}
	out.classes = len(reps)

	type state []uint32 // of the language, then of each attachment
	var states []state
	numbers := map[string]uint32{}
	add := func(s state) (uint32, error) {
		if s[0] == stateDead {
			return stateDead, nil
		}
		var key []byte
		for _, n := range s {
			key = binary.LittleEndian.AppendUint32(key, n)
		}
		if n, ok := numbers[string(key)]; ok {
			return n, nil
		}
		if len(states) >= maxLanguage {
			return 0, ErrTooLarge
		}
		n := uint32(len(states))
		numbers[string(key)] = n
		states = append(states, s)
		accepts := l.accepts[s[0]]
		for i, a := range of {
			accepts = accepts && !a.accepts(s[i+1])
		}
		out.accepts = append(out.accepts, accepts)
		out.next = append(out.next, make([]uint32, out.classes)...)
		return n, nil
	}
	// The dead state.
	states = append(states, nil)
	out.accepts, out.next = append(out.accepts, false), append(out.next, make([]uint32, out.classes)...)
	begin := state{stateStart}
	for _, a := range of {
		begin = append(begin, a.start())
	}
	if _, err := add(begin); err != nil {
		return nil, err
	}
	for n := stateStart; n < len(states); n++ {
		for k, c := range reps {
			s := make(state, len(of)+1)
			s[0] = l.step(states[n][0], l.class[c])
			for i, a := range of {
				s[i+1] = a.step(states[n][i+1], c)
			}
			to, err := add(s)
			if err != nil {
				return nil, err
			}
			out.next[n*out.classes+k] = to
		}
	}
	out.trim()
	return out, nil
}
