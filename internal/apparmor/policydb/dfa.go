package policydb

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The automaton's packed form, which is flex's table format with other ids
// (security/apparmor/include/match.h). Everything is big-endian.
const (
	dfaMagic = 0x1B5E783D

	// Flags of the header.
	dfaDiffEncode = 1 << 0
	dfaOutOfBand  = 1 << 1

	// Ids of tables, as written: the kernel takes one off each.
	tableAccept  = 1
	tableBase    = 2
	tableCheck   = 3
	tableDefault = 4
	tableClass   = 5
	tableMeta    = 6
	tableAccept2 = 7
	tableNext    = 8

	// Flags in the base table.
	baseDiff    = 1 << 31 // what is missing here is taken from the default state
	baseOOB     = 1 << 29 // has a transition on -1, which no byte takes
	baseIndex   = 0xffffff
	baseInvalid = 0xff000000 &^ (baseDiff | baseOOB)
)

// maxStates bounds an automaton. The parser's own format ends at 2^16 states
// where a state is 16 bits wide; the base table's index ends at 2^24.
const maxStates = 1 << 24

// maxChain bounds how many states one byte may lead through in a
// difference-encoded automaton. The kernel only demands that it ends; the
// parser's chains are a few states long.
const maxChain = 1 << 12

// The first states of every automaton.
const (
	stateDead  = 0
	stateStart = 1
)

// automaton is a verified automaton: whatever its tables say, step ends and
// stays within them.
type automaton struct {
	states  []dfaState
	cells   []dfaCell
	class   [256]uint8
	accept  []uint32
	accept2 []uint32 // nil where there is none
	// classes are the classes that there are, each once.
	classes []uint8
}

type dfaState struct {
	base, def uint32
}

type dfaCell struct {
	check, next uint32
}

// step is the state after s on byte c (match_char in security/apparmor/match.c).
func (a *automaton) step(s uint32, c byte) uint32 {
	return a.stepClass(s, uint32(a.class[c]))
}

func (a *automaton) stepClass(s, class uint32) uint32 {
	for {
		st := a.states[s]
		if cell := a.cells[st.base&baseIndex+class]; cell.check == s {
			return cell.next
		}
		s = st.def
		if st.base&baseDiff == 0 {
			return s
		}
	}
}

func (a *automaton) walk(s uint32, in string) uint32 {
	for i := 0; i < len(in) && s != stateDead; i++ {
		s = a.step(s, in[i])
	}
	return s
}

func (a *automaton) walkBytes(s uint32, in []byte) uint32 {
	for i := 0; i < len(in) && s != stateDead; i++ {
		s = a.step(s, in[i])
	}
	return s
}

// live says whether anything leads on from s.
func (a *automaton) live(s uint32) bool {
	for _, k := range a.classes {
		if a.stepClass(s, uint32(k)) != stateDead {
			return true
		}
	}
	return false
}

// findDFA passes over the padding before an automaton, which is there so that
// it begins at a multiple of 8 of the whole stream (sd_write_aligned_blob in
// parser/parser_interface.c). The padding is zeros, and the magic begins with
// none.
func findDFA(blob []byte) ([]byte, error) {
	for i := 0; i < 8 && i < len(blob); i++ {
		if blob[i] != 0 {
			return blob[i:], nil
		}
	}
	return nil, errors.New("an automaton without a header")
}

// parseDFA reads and verifies an automaton. The demands are those of the kernel
// (aa_dfa_unpack, verify_table_headers and verify_dfa), and these: chains of
// difference encoding are bounded, and nothing leads out of the dead state, for
// which the kernel relies on the parser.
func parseDFA(blob []byte, needAccept2 bool) (*automaton, error) {
	be := binary.BigEndian
	blob, err := findDFA(blob)
	if err != nil {
		return nil, err
	}
	if len(blob) < 14 || be.Uint32(blob) != dfaMagic {
		return nil, errors.New("an automaton without its magic number")
	}
	header := uint64(be.Uint32(blob[4:]))
	flags := be.Uint16(blob[12:])
	if header < 14 || header > uint64(len(blob)) {
		return nil, errors.New("an automaton whose header is larger than itself")
	}
	if flags&^(dfaDiffEncode|dfaOutOfBand) != 0 {
		return nil, fmt.Errorf("an automaton with flags %#x, which are not known", flags)
	}
	a := &automaton{}
	var tables [tableNext + 1][]byte
	var width [tableNext + 1]int
	for rest := blob[header:]; len(rest) > 0; {
		if len(rest) < 12 {
			return nil, errors.New("an automaton that ends within a table")
		}
		id, size, n := int(be.Uint16(rest)), int(be.Uint16(rest[2:])), uint64(be.Uint32(rest[8:]))
		if id < tableAccept || id > tableNext || id == tableMeta {
			return nil, fmt.Errorf("an automaton with table %d, which is not known", id)
		}
		if size != 1 && size != 2 && size != 4 {
			return nil, fmt.Errorf("a table with elements of %d bytes", size)
		}
		if tables[id] != nil {
			return nil, fmt.Errorf("an automaton with table %d twice", id)
		}
		length := 12 + n*uint64(size)
		if n == 0 || length > uint64(len(rest)) {
			return nil, fmt.Errorf("table %d is larger than what is left", id)
		}
		tables[id], width[id] = rest[12:length], size
		// Tables are padded to 8 bytes; the kernel wants the last one's padding
		// too, older parsers' included.
		rest = rest[min((length+7)&^7, uint64(len(rest))):]
	}
	count := func(id int) int {
		if width[id] == 0 {
			return 0
		}
		return len(tables[id]) / width[id]
	}
	at := func(id, i int) uint32 {
		switch t := tables[id]; width[id] {
		case 2:
			return uint32(be.Uint16(t[2*i:]))
		case 4:
			return be.Uint32(t[4*i:])
		default:
			return uint32(t[i])
		}
	}
	for _, id := range []int{tableBase, tableDefault, tableNext, tableCheck, tableAccept} {
		if tables[id] == nil {
			return nil, fmt.Errorf("an automaton without table %d", id)
		}
	}
	if needAccept2 && tables[tableAccept2] == nil {
		return nil, fmt.Errorf("an automaton without table %d", tableAccept2)
	}
	if width[tableBase] != 4 || width[tableAccept] != 4 || tables[tableAccept2] != nil && width[tableAccept2] != 4 ||
		width[tableDefault] == 1 || width[tableNext] == 1 || width[tableCheck] == 1 ||
		tables[tableClass] != nil && width[tableClass] != 1 {
		return nil, errors.New("a table with elements of the wrong size")
	}
	states, cells := count(tableBase), count(tableNext)
	if states < 2 || states > maxStates {
		return nil, fmt.Errorf("an automaton with %d states", states)
	}
	if count(tableDefault) != states || count(tableAccept) != states ||
		tables[tableAccept2] != nil && count(tableAccept2) != states ||
		count(tableCheck) != cells || tables[tableClass] != nil && count(tableClass) != 256 {
		return nil, errors.New("an automaton whose tables do not fit together")
	}
	for c := range a.class {
		a.class[c] = uint8(c)
	}
	if tables[tableClass] != nil {
		copy(a.class[:], tables[tableClass])
	}
	a.states = make([]dfaState, states)
	a.accept = make([]uint32, states)
	if tables[tableAccept2] != nil {
		a.accept2 = make([]uint32, states)
	}
	for i := range a.states {
		s := dfaState{base: at(tableBase, i), def: at(tableDefault, i)}
		switch {
		case s.def >= uint32(states):
			return nil, fmt.Errorf("state %d falls back on one that does not exist", i)
		case s.base&baseInvalid != 0:
			return nil, fmt.Errorf("state %d has flags that are not known", i)
		case s.base&baseDiff != 0 && flags&dfaDiffEncode == 0:
			return nil, fmt.Errorf("state %d is difference-encoded, and the automaton says that none is", i)
		case s.base&baseOOB != 0 && (flags&dfaOutOfBand == 0 || s.base&baseIndex < 1):
			return nil, fmt.Errorf("state %d has an out-of-band transition that cannot be", i)
		case int(s.base&baseIndex)+255 >= cells:
			return nil, fmt.Errorf("state %d points past the transitions", i)
		}
		a.states[i], a.accept[i] = s, at(tableAccept, i)
		if a.accept2 != nil {
			a.accept2[i] = at(tableAccept2, i)
		}
	}
	a.cells = make([]dfaCell, cells)
	for i := range a.cells {
		c := dfaCell{check: at(tableCheck, i), next: at(tableNext, i)}
		if c.check >= uint32(states) || c.next >= uint32(states) {
			return nil, fmt.Errorf("transition %d is of a state that does not exist", i)
		}
		a.cells[i] = c
	}
	if err := a.verifyChains(); err != nil {
		return nil, err
	}
	a.mergeClasses()
	if a.live(stateDead) {
		return nil, errors.New("the dead state has a way out")
	}
	return a, nil
}

// verifyChains makes sure that falling back ends, and soon.
func (a *automaton) verifyChains() error {
	// length is how many states a state falls back through, 0 not known yet.
	length := make([]uint16, len(a.states))
	var chain []uint32
	for i := range a.states {
		chain = chain[:0]
		s := uint32(i)
		for a.states[s].base&baseDiff != 0 && length[s] == 0 {
			if chain = append(chain, s); len(chain) > maxChain {
				return fmt.Errorf("state %d falls back for ever, or for very long", i)
			}
			s = a.states[s].def
		}
		n := length[s]
		for j := len(chain) - 1; j >= 0; j-- {
			if n++; n > maxChain {
				return fmt.Errorf("state %d falls back for very long", i)
			}
			length[chain[j]] = n
		}
	}
	return nil
}

// mergeClasses puts bytes that no state tells apart into one class, so that
// searches have fewer ways to try: the parser only does so when asked. Bytes are
// in one class when every state has the same transitions of its own on them; all
// other steps depend on these alone.
func (a *automaton) mergeClasses() {
	// own calls f for each state's own transitions.
	own := func(f func(s uint32, class uint8, next uint32)) {
		for i, c := range a.cells {
			if c.check == stateDead { // also what no state uses
				continue
			}
			if k := i - int(a.states[c.check].base&baseIndex); k >= 0 && k < 256 {
				f(c.check, uint8(k), c.next)
			}
		}
	}
	// Classes of equal sums are candidates …
	var sum [256]uint64
	var count [256]int
	own(func(s uint32, k uint8, next uint32) {
		x := (uint64(s)<<32 | uint64(next)) * 0x9e3779b97f4a7c15
		sum[k] += x ^ x>>29
		count[k]++
	})
	var rep [256]uint8
	for k := range rep {
		rep[k] = uint8(k)
		for j := range k {
			if sum[j] == sum[k] && count[j] == count[k] {
				rep[k] = uint8(j)
				break
			}
		}
	}
	// … and are one when the transitions really are the same.
	own(func(s uint32, k uint8, next uint32) {
		if k == rep[k] {
			return
		}
		if c := a.cells[a.states[s].base&baseIndex+uint32(rep[k])]; c.check != s || c.next != next {
			rep[k] = k
		}
	})
	var there [256]bool
	for c, k := range a.class {
		k = rep[k]
		if a.class[c] = k; !there[k] {
			there[k] = true
			a.classes = append(a.classes, k)
		}
	}
}
