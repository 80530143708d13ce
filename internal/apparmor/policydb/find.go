package policydb

import (
	"cmp"
	"errors"
	"slices"
)

// No name that a program gives to the kernel is longer than PATH_MAX without its
// NUL; most file systems end at NAME_MAX, but FUSE and those that count in UTF-16
// do not. A path put together out of names can be longer: AppArmor refuses what
// is longer than 2 * PATH_MAX (aa_g_path_max in security/apparmor/lsm.c).
const (
	maxSegment = 4095
	maxPath    = 8191
)

// DefaultLimit is how many states a search may visit where its query does not
// say. It takes some 20 bytes for each.
const DefaultLimit = 8 << 20

// Query is a question about all paths that match a pattern.
type Query struct {
	Pattern *Pattern
	// A path counts when it is allowed all of All, at least one of Any, and
	// when Where says so; what is not set asks for nothing. One of them must be
	// set.
	All, Any Perm
	// Where is asked once for each different thing that the profile grants, with
	// the transition that an exec has there.
	Where func(Perms, Transition) bool
	// As is whose files; 0 is Either.
	As Who
	// Objects is which paths.
	Objects Objects
	// Except are paths that are left out.
	Except Except
	// Limit is how many states the search may visit; 0 is DefaultLimit.
	Limit int

	// The longest segment and path; 0 are those that can exist.
	segment, path int
}

// Result is the answer to a Query.
type Result struct {
	Answer Answer
	// Witness is the shortest path that shows it: for Find one that counts, for
	// Covers one that does not. Of several it is the one that reads best. It is
	// also there with Unknown, when it is about that path that the answer is
	// not known.
	Witness string
	// As is whose file the witness is, and Perms and Transition what it is
	// granted.
	As         Who
	Perms      Perms
	Transition Transition
	// States is how many the search visited.
	States int
	// Why says why the answer is Unknown.
	Why error
}

// Reasons for Unknown.
var (
	ErrNotUnderstood = errors.New("a part of the compiled policy is not understood")
	ErrConditional   = errors.New("the permission depends on a condition, or on whom the kernel asks")
	ErrNoPath        = errors.New("no path that can exist matches the pattern")
	ErrNoQuestion    = errors.New("the query asks for nothing")
)

// Find looks for a path that matches and counts. Yes comes with the shortest
// one. No is a proof: every path that can exist and matches was considered, by
// walking the product of the pattern and the profile's automaton. Only paths
// that can exist count: absolute and canonical, no segment longer than 4095
// bytes, no more than 8191 in all. A pattern that no path matches is No.
func (p *Profile) Find(q Query) Result {
	return p.ask(q, true)
}

// Covers asks whether every path that matches counts, for one of As where that
// is Either. Yes is a proof; No comes with the shortest path that does not
// count. A pattern that no path matches is Unknown, as it would prove nothing.
func (p *Profile) Covers(q Query) Result {
	return p.ask(q, false)
}

func (p *Profile) ask(q Query, find bool) Result {
	if a := p.mediatesFiles(); a != Yes {
		r := Result{Answer: a}
		if a == Unknown {
			r.Why = ErrNotUnderstood
		}
		return r
	}
	d, ok := p.fileDatabase()
	if !ok {
		return Result{Why: ErrNotUnderstood}
	}
	if q.Objects > Directories {
		return Result{Why: ErrNoQuestion}
	}
	if q.Pattern == nil {
		return Result{Why: ErrNoQuestion}
	}
	return search(d, q.Pattern, q, find)
}

// FindChange looks for a profile's name that matches the pattern and that a task
// may change to by itself: All and Any are ChangeProfile, or OnExec for what a
// later exec does. Names are not paths: every string without a NUL counts.
func (p *Profile) FindChange(q Query) Result {
	if a := p.mediatesFiles(); a != Yes {
		return Result{Answer: a}
	}
	d, ok := p.fileDatabase()
	if !ok {
		return Result{Why: ErrNotUnderstood}
	}
	if q.Pattern == nil {
		return Result{Why: ErrNoQuestion}
	}
	q.Objects, q.As = anyString, Other
	return search(d, q.Pattern, q, true)
}

// FindFields is Find for a class whose data are strings with a NUL between each
// two: bus, name, label, path, interface and member of a D-Bus message, or bus
// and name of one that is taken. The query's Pattern is not used. The witness has
// the NULs.
func (p *Profile) FindFields(class byte, q Query, fields ...*Pattern) Result {
	s, a := p.classState(class)
	switch {
	case a == Unknown:
		return Result{Why: ErrNotUnderstood}
	case a != Yes:
		return Result{Answer: a}
	case len(fields) == 0 || slices.Contains(fields, nil):
		return Result{Why: ErrNoQuestion}
	}
	q.Objects, q.As = anyString, Other
	return searchFrom(p.policy, s, sequence(fields), q, true)
}

// FindSignal looks for a profile's name that matches the pattern, and to or from
// which the signal is allowed: All and Any are SignalSend or SignalReceive.
func (p *Profile) FindSignal(signal byte, q Query) Result {
	s, a := p.classState(ClassSignal)
	return p.findPeer(s, a, signal, q)
}

// FindPtrace is FindSignal for ptrace.
func (p *Profile) FindPtrace(q Query) Result {
	if a := p.Mediates(ClassPtrace); a != Yes {
		return p.findPeer(stateDead, a, ClassPtrace, q)
	}
	s, _ := p.classState(ClassLabel)
	return p.findPeer(s, Yes, ClassPtrace, q)
}

func (p *Profile) findPeer(s uint32, a Answer, next byte, q Query) Result {
	switch {
	case a == Unknown:
		return Result{Why: ErrNotUnderstood}
	case a != Yes:
		return Result{Answer: a}
	case q.Pattern == nil:
		return Result{Why: ErrNoQuestion}
	}
	q.Objects, q.As = anyString, Other
	return searchFrom(p.policy, p.policy.dfa.step(s, next), q.Pattern, q, true)
}

// counts is whether an entry of a database counts.
func (q *Query) counts(d *database, i uint32) Answer {
	at := &d.perms[i]
	a := Yes
	if q.All != 0 {
		a = at.allows(q.All)
	}
	if q.Any != 0 && a != No {
		if b := at.allowsAny(q.Any); b != Yes {
			a = b
		}
	}
	if q.Where != nil && a != No {
		var t Transition
		if d.transitions != nil {
			t = d.transitions[i]
		}
		if !q.Where(*at, t) {
			a = No
		}
	}
	return a
}

// search walks the product from the start. d may be nil: then nothing is granted.
func search(d *database, pattern *Pattern, q Query, find bool) Result {
	if d == nil {
		d = emptyDatabase()
	}
	return searchFrom(d, d.start, pattern, q, find)
}

func searchFrom(d *database, start uint32, pattern *Pattern, q Query, find bool) Result {
	if q.All == 0 && q.Any == 0 && q.Where == nil {
		return Result{Why: ErrNoQuestion}
	}
	if q.As == 0 {
		q.As = Either
	}
	if q.Limit <= 0 {
		q.Limit = DefaultLimit
	}
	q.Limit = min(q.Limit, 1<<30) // they are counted in 32 bits
	q.segment, q.path = cmp.Or(q.segment, maxSegment), cmp.Or(q.path, maxPath)
	s := searcher{d: d, q: &q, find: find, start: start}
	s.ask()
	if find && !slices.ContainsFunc(s.owner, counts) && !slices.ContainsFunc(s.other, counts) {
		return s.none(0) // no state of the automaton grants it
	}
	lang, err := pattern.language(q.Objects)
	if err != nil {
		return Result{Why: err}
	}
	if lang, err = lang.without(q.Except); err != nil {
		return Result{Why: err}
	}
	s.lang = lang
	s.distinguish()
	r := s.exist()
	if !find && r.Answer == Yes {
		// Of no path at all everything is true, and that proves nothing.
		any := q
		any.All, any.Any, any.Where = 0, 0, func(Perms, Transition) bool { return true }
		s := searcher{d: emptyDatabase(), lang: lang, q: &any, find: true, start: stateStart}
		s.ask()
		s.distinguish()
		if e := s.exist(); e.Answer != Yes {
			return Result{Why: cmp.Or(e.Why, ErrNoPath), States: r.States}
		}
	}
	return r
}

func counts(a Answer) bool { return a != No }

// exist searches for what can exist by its length, too.
func (s *searcher) exist() Result {
	r := s.run(false)
	// A witness with a segment that is too long only says that lengths matter:
	// search again with them.
	if r.Witness != "" && s.q.Objects != anyString && !existing(r.Witness, s.q.segment, s.q.path) {
		states := r.States
		r = s.run(true)
		r.States += states
	}
	return r
}

// emptyDatabase grants nothing.
func emptyDatabase() *database {
	a := &automaton{states: make([]dfaState, 2), cells: make([]dfaCell, 1), classes: []uint8{0}}
	return &database{dfa: a, start: stateStart, perms: []Perms{{}}, index: make([]permIndex, 2)}
}

// existing says whether the lengths of a path can be.
func existing(path string, longestSegment, longest int) bool {
	if len(path) > longest {
		return false
	}
	n := 0
	for i := range len(path) {
		if n++; path[i] == '/' {
			n = 0
		}
		if n > longestSegment {
			return false
		}
	}
	return true
}

type searcher struct {
	d     *database
	lang  *language
	q     *Query
	find  bool
	start uint32

	// owner and other are, by entry of the database's permissions, whether a
	// path counts that is granted it.
	owner, other []Answer
	// moves are the bytes that either automaton can tell apart, the one that
	// reads best of each kind, best first.
	moves []move
}

type move struct {
	c         byte
	dfa, lang uint8
}

// none is the result of a search that found nothing.
func (s *searcher) none(states int) Result {
	r := Result{Answer: No, States: states}
	if !s.find {
		r.Answer = Yes
	}
	return r
}

// ask fills in owner and other.
func (s *searcher) ask() {
	n := len(s.d.perms)
	s.owner, s.other = make([]Answer, n), make([]Answer, n)
	asked := make([]Answer, n)
	for i := range n {
		asked[i] = s.q.counts(s.d, uint32(i))
	}
	for i := range n {
		if s.q.As&Owner != 0 {
			s.owner[i] = asked[i]
		} else {
			s.owner[i] = No
		}
		if s.q.As&Other != 0 {
			s.other[i] = asked[i]
		} else {
			s.other[i] = No
		}
	}
}

// distinguish fills in moves.
func (s *searcher) distinguish() {
	var seen [256]byteSet // by class of the profile's automaton
	s.moves = make([]move, 0, 256)
	for _, c := range readable {
		dfa, lang := s.d.dfa.class[c], s.lang.class[c]
		if !seen[dfa].has(lang) {
			seen[dfa].add(lang)
			s.moves = append(s.moves, move{c, dfa, lang})
		}
	}
}

// readable are all bytes, those first that read best in a witness.
var readable = func() (out [256]byte) {
	n := 0
	var done [256]bool
	add := func(c byte) {
		if !done[c] {
			done[c] = true
			out[n] = c
			n++
		}
	}
	for c := byte('a'); c <= 'z'; c++ {
		add(c)
	}
	for c := byte('0'); c <= '9'; c++ {
		add(c)
	}
	for _, c := range []byte(".-_") {
		add(c)
	}
	for c := byte('A'); c <= 'Z'; c++ {
		add(c)
	}
	for c := byte('!'); c <= '~'; c++ {
		add(c)
	}
	for c := range 256 {
		add(byte(c))
	}
	return out
}()

// hit is what a pair of states says: Yes ends the search.
func (s *searcher) hit(at, lang uint32) (a Answer, as Who) {
	if !s.lang.accepts[lang] {
		return No, 0
	}
	i := s.d.index[at]
	o, t := s.owner[i.owner], s.other[i.other]
	a = either(o, t)
	switch {
	case s.q.As != Either:
		as = s.q.As
	case o == a && t != a:
		as = Owner
	case t == a && o != a:
		as = Other
	default:
		as = Either
	}
	if s.find {
		return a, as
	}
	switch a {
	case Yes:
		return No, as
	case No:
		return Yes, as
	}
	return Unknown, as
}

// node is a state of the product, and how it was reached.
type node struct {
	at, lang uint32
	parent   int32
	c        byte
	segment  uint16 // bytes of the segment so far, where lengths count
}

// run walks the product breadth first, so that what it finds first is
// shortest. With lengths, a segment's length is part of the state.
func (s *searcher) run(lengths bool) Result {
	segments := 1
	if lengths {
		segments = s.q.segment + 1
	}
	visited := newVisited(len(s.d.index), len(s.lang.accepts), segments)
	nodes := make([]node, 0, 1024)
	maybe := int32(-1)
	skipDead := s.find && s.deadIsNo()
	look := func(n int32) bool {
		a, _ := s.hit(nodes[n].at, nodes[n].lang)
		if a == Unknown && maybe < 0 {
			maybe = n
		}
		return a == Yes
	}
	result := func(n int32, a Answer) Result {
		r := Result{Answer: a, States: len(nodes)}
		_, r.As = s.hit(nodes[n].at, nodes[n].lang)
		who := r.As
		if who == Either {
			who = Other
		}
		i := s.d.index[nodes[n].at].other
		if who == Owner {
			i = s.d.index[nodes[n].at].owner
		}
		r.Perms = s.d.perms[i]
		if s.d.transitions != nil {
			r.Transition = s.d.transitions[i]
		}
		var w []byte
		for ; nodes[n].parent >= 0; n = nodes[n].parent {
			w = append(w, nodes[n].c)
		}
		slices.Reverse(w)
		r.Witness = string(w)
		return r
	}
	yes := Yes
	if !s.find {
		yes = No
	}
	nodes = append(nodes, node{at: s.start, lang: stateStart, parent: -1})
	visited.add(s.start, stateStart, 0)
	if look(0) {
		return result(0, yes)
	}
	// Paths of one length are nodes in a row, which end at level.
	length, level := 0, int32(1)
	for n := int32(0); int(n) < len(nodes); n++ {
		if n == level {
			length, level = length+1, int32(len(nodes))
		}
		if length == s.q.path && s.q.Objects != anyString {
			break
		}
		from := nodes[n]
		for _, m := range s.moves {
			lang := s.lang.step(from.lang, m.lang)
			if lang == stateDead {
				continue
			}
			at := s.d.dfa.stepClass(from.at, uint32(m.dfa))
			// What is dead grants nothing for ever, but what is not granted is
			// what Covers looks for.
			if at == stateDead && skipDead {
				continue
			}
			segment := uint16(0)
			if lengths && m.c != '/' {
				if int(from.segment) == s.q.segment {
					continue
				}
				segment = from.segment + 1
			}
			if !visited.add(at, lang, segment) {
				continue
			}
			if len(nodes) >= s.q.Limit {
				return Result{Why: ErrTooLarge, States: len(nodes)}
			}
			nodes = append(nodes, node{at: at, lang: lang, parent: n, c: m.c, segment: segment})
			if k := int32(len(nodes) - 1); look(k) {
				return result(k, yes)
			}
		}
	}
	if maybe >= 0 {
		r := result(maybe, Unknown)
		r.Why = ErrConditional
		return r
	}
	return s.none(len(nodes))
}

// deadIsNo says that a path without any rule does not count.
func (s *searcher) deadIsNo() bool {
	i := s.d.index[stateDead]
	return s.owner[i.owner] == No && s.other[i.other] == No
}

// visited is a set of states of the product: a bit for each where that is not
// too many, a table otherwise.
type visited struct {
	langs    uint64
	segments uint64
	bits     []uint64
	table    map[uint64]struct{}
}

// maxBits bounds the set of bits, to 32 MiB.
const maxBits = 1 << 28

func newVisited(states, langs, segments int) *visited {
	v := &visited{langs: uint64(langs), segments: uint64(segments)}
	if n := uint64(states) * v.langs * v.segments; n <= maxBits {
		v.bits = make([]uint64, (n+63)/64)
	} else {
		v.table = map[uint64]struct{}{}
	}
	return v
}

// add says whether a state is new.
func (v *visited) add(at, lang uint32, segment uint16) bool {
	k := (uint64(at)*v.langs+uint64(lang))*v.segments + uint64(segment)
	if v.bits == nil {
		if _, ok := v.table[k]; ok {
			return false
		}
		v.table[k] = struct{}{}
		return true
	}
	if v.bits[k>>6]&(1<<(k&63)) != 0 {
		return false
	}
	v.bits[k>>6] |= 1 << (k & 63)
	return true
}
