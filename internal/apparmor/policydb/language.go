package policydb

import (
	"encoding/binary"
	"errors"
	"slices"
)

// ErrTooLarge is a search or a pattern that needs more states than it may have.
var ErrTooLarge = errors.New("it needs too many states")

// maxLanguage bounds the states of a pattern's automaton.
const maxLanguage = 1 << 15

// language is a pattern as an automaton, together with what strings can exist
// at all. State 0 is dead, 1 the start.
type language struct {
	class   [256]uint8
	classes int
	next    []uint32 // by state, then class
	accepts []bool
}

func (l *language) step(s uint32, class uint8) uint32 {
	return l.next[int(s)*l.classes+int(class)]
}

// Paths that can exist, as the kernel makes them out of a dentry (d_absolute_path
// and aa_path_name in security/apparmor/path.c): absolute, segments separated
// by one "/", none of them "." or "..", no NUL; a directory's has a "/" at its
// end. These are the states of an automaton that takes just those; it is
// joined with the pattern.
const (
	pathBegin   = iota // nothing yet
	pathSlash          // after a "/"
	pathDot            // a segment "." so far
	pathDotDot         // a segment ".." so far
	pathSegment        // any other segment
	pathDead
)

func pathStep(s int, c byte) int {
	switch {
	case c == 0, s == pathDead:
		return pathDead
	case s == pathBegin:
		if c == '/' {
			return pathSlash
		}
		return pathDead
	case c == '/':
		if s == pathSegment {
			return pathSlash
		}
		return pathDead
	case c == '.' && s == pathSlash:
		return pathDot
	case c == '.' && s == pathDot:
		return pathDotDot
	}
	return pathSegment
}

// Objects says which paths a question is about.
type Objects uint8

const (
	// Anything is files and directories.
	Anything Objects = iota
	// NotDirectories is what has no "/" at its end: files, sockets, devices, links.
	NotDirectories
	// Directories is what has one.
	Directories

	// anyString is for what is no path: names of profiles, fields of messages.
	anyString
)

func (o Objects) ends(path int) bool {
	switch o {
	case NotDirectories:
		return path == pathSegment
	case Directories:
		return path == pathSlash
	case Anything:
		return path == pathSegment || path == pathSlash
	}
	return true
}

// compileLanguage makes a deterministic automaton of a program and of the paths
// that can exist.
func compileLanguage(p *program, objects Objects) (*language, error) {
	l := &language{}
	classes := p.classes(objects)
	reps := make([]byte, 0, 256)
	for c := 255; c >= 0; c-- {
		if l.class[c] = classes[c]; int(classes[c]) >= len(reps) {
			reps = append(reps, make([]byte, int(classes[c])+1-len(reps))...)
		}
		reps[classes[c]] = byte(c)
	}
	l.classes = len(reps)

	// A state is a set of instructions that take a byte or end, and a state of
	// the path.
	type state struct {
		path  int
		insts []int32
	}
	var states []state
	known := map[string]uint32{}
	var key []byte
	add := func(s state) (uint32, error) {
		if len(s.insts) == 0 || s.path == pathDead {
			return stateDead, nil
		}
		key = append(key[:0], byte(s.path))
		for _, i := range s.insts {
			key = binary.LittleEndian.AppendUint32(key, uint32(i))
		}
		if n, ok := known[string(key)]; ok {
			return n, nil
		}
		if len(states) >= maxLanguage {
			return 0, ErrTooLarge
		}
		n := uint32(len(states))
		known[string(key)] = n
		states = append(states, s)
		l.next = append(l.next, make([]uint32, l.classes)...)
		l.accepts = append(l.accepts, objects.ends(s.path) && slices.Contains(s.insts, int32(len(p.insts)-1)))
		return n, nil
	}
	// The dead state.
	states = append(states, state{path: pathDead})
	l.next = append(l.next, make([]uint32, l.classes)...)
	l.accepts = append(l.accepts, false)

	c := closer{p: p, mark: make([]uint32, len(p.insts))}
	if _, err := add(state{pathBegin, c.close(0)}); err != nil {
		return nil, err
	}
	if len(states) == 1 { // the pattern has no start
		states = append(states, state{path: pathDead})
		l.next = append(l.next, make([]uint32, l.classes)...)
		l.accepts = append(l.accepts, false)
	}
	work := 0
	var from []int32
	for n := 1; n < len(states); n++ {
		for k, rep := range reps {
			s := states[n]
			path := s.path
			if objects != anyString {
				if path = pathStep(path, rep); path == pathDead {
					continue
				}
			}
			from = from[:0]
			for _, i := range s.insts {
				if in := p.insts[i]; in.op == opSet && p.sets[in.set].has(rep) {
					from = append(from, in.next)
				}
			}
			if work += len(s.insts) + 1; work > maxLanguage*1024 {
				return nil, ErrTooLarge
			}
			to, err := add(state{path, c.close(from...)})
			if err != nil {
				return nil, err
			}
			l.next[n*l.classes+k] = to
		}
	}
	l.trim()
	return l, nil
}

// classes divides the bytes into those that a program cannot tell apart.
func (p *program) classes(objects Objects) (out [256]uint8) {
	sets := slices.Clone(p.sets)
	if objects != anyString {
		sets = append(sets, single(0), single('/'), single('.'))
	}
	slices.SortFunc(sets, func(a, b byteSet) int { return slices.Compare(a[:], b[:]) })
	sets = slices.Compact(sets)
	n := 1
	for _, s := range sets {
		if n == 256 {
			break
		}
		// moved is the new class of those of a class that are in s, when others
		// are not.
		var in, all [256]int
		for c := range 256 {
			all[out[c]]++
			if s.has(byte(c)) {
				in[out[c]]++
			}
		}
		var moved [256]int
		for c := range 256 {
			if k := out[c]; s.has(byte(c)) && in[k] != all[k] {
				if moved[k] == 0 {
					moved[k] = n
					n++
				}
				out[c] = uint8(moved[k])
			}
		}
	}
	return out
}

// closer follows choices until instructions that take a byte or end.
type closer struct {
	p    *program
	mark []uint32
	turn uint32
	todo []int32
}

func (c *closer) close(from ...int32) []int32 {
	c.turn++
	c.todo = append(c.todo[:0], from...)
	var out []int32
	for len(c.todo) > 0 {
		i := c.todo[len(c.todo)-1]
		c.todo = c.todo[:len(c.todo)-1]
		if c.mark[i] == c.turn {
			continue
		}
		c.mark[i] = c.turn
		if in := c.p.insts[i]; in.op == opSplit {
			c.todo = append(c.todo, in.next)
			if in.alt != in.next {
				c.todo = append(c.todo, in.alt)
			}
		} else {
			out = append(out, i)
		}
	}
	slices.Sort(out)
	return out
}

// trim leads whatever cannot be accepted any more to the dead state, so that
// searches do not follow it.
func (l *language) trim() {
	n := len(l.accepts)
	// back are the states that lead to a state, as lists in one slice.
	count := make([]int, n+1)
	for _, to := range l.next {
		count[to+1]++
	}
	for i := range n {
		count[i+1] += count[i]
	}
	fill := slices.Clone(count)
	back := make([]uint32, len(l.next))
	for i, to := range l.next {
		back[fill[to]] = uint32(i / l.classes)
		fill[to]++
	}
	good := make([]bool, n)
	var todo []uint32
	for s, ok := range l.accepts {
		if ok {
			good[s] = true
			todo = append(todo, uint32(s))
		}
	}
	for len(todo) > 0 {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		for _, b := range back[count[s]:count[s+1]] {
			if !good[b] {
				good[b] = true
				todo = append(todo, b)
			}
		}
	}
	for i, to := range l.next {
		if !good[to] {
			l.next[i] = stateDead
		}
	}
}

// accepted says whether a string is.
func (l *language) accepted(s string) bool {
	at := uint32(stateStart)
	for i := 0; i < len(s); i++ {
		at = l.step(at, l.class[s[i]])
	}
	return l.accepts[at]
}

// Match says whether a path matches, that it can exist included.
func (p *Pattern) Match(path string) (bool, error) {
	l, err := p.language(Anything)
	if err != nil {
		return false, err
	}
	return l.accepted(path) && existing(path, maxSegment, maxPath), nil
}

// MatchString says whether any string matches, as names of profiles and fields
// of messages do.
func (p *Pattern) MatchString(s string) (bool, error) {
	l, err := p.language(anyString)
	if err != nil {
		return false, err
	}
	return l.accepted(s), nil
}
