package policydb

import (
	"errors"
	"fmt"
	"strings"
	"sync"
)

// Bounds on patterns.
const (
	maxPattern = 64 << 10
	// maxAlternatives is how deep "{" may nest (MAX_ALT_DEPTH).
	maxAlternatives = 49
)

// Pattern is a pattern in AppArmor's glob syntax (apparmor.d(5), "Globbing"),
// ready to be asked about, of one profile or of many, from several goroutines.
type Pattern struct {
	text string
	prog *program
	// made are the automata that were needed so far, by what they are about.
	made [anyString + 1]made
}

type made struct {
	once sync.Once
	lang *language
	err  error
}

// language is the pattern's automaton, made at most once.
func (p *Pattern) language(o Objects) (*language, error) {
	m := &p.made[o]
	m.once.Do(func() { m.lang, m.err = compileLanguage(p.prog, o) })
	return m.lang, m.err
}

// String is the pattern as it was written.
func (p *Pattern) String() string { return p.text }

// byteSet is a set of bytes.
type byteSet [4]uint64

func (s *byteSet) add(c byte)        { s[c>>6] |= 1 << (c & 63) }
func (s *byteSet) remove(c byte)     { s[c>>6] &^= 1 << (c & 63) }
func (s *byteSet) has(c byte) bool   { return s[c>>6]&(1<<(c&63)) != 0 }
func (s *byteSet) invert()           { s[0], s[1], s[2], s[3] = ^s[0], ^s[1], ^s[2], ^s[3] }
func single(c byte) (s byteSet)      { s.add(c); return s }
func allBut(not ...byte) (s byteSet) { s.invert(); return s.without(not...) }
func (s byteSet) without(not ...byte) byteSet {
	for _, c := range not {
		s.remove(c)
	}
	return s
}

// A program matches like a regular expression compiled to instructions: a byte
// out of a set, a choice between two ways, the end.
type program struct {
	insts []inst
	sets  []byteSet
}

type inst struct {
	op   instOp
	set  int   // opSet
	next int32 // where to go on
	alt  int32 // opSplit: the other way
}

type instOp uint8

const (
	opSet instOp = iota
	opSplit
	opEnd
)

// maxProgram bounds a program; every byte of a pattern is at most three
// instructions.
const maxProgram = 4 * maxPattern

func (p *program) emit(i inst) int32 {
	p.insts = append(p.insts, i)
	return int32(len(p.insts) - 1)
}

// set emits one byte of s.
func (p *program) set(s byteSet) {
	p.emit(inst{op: opSet, set: len(p.sets), next: int32(len(p.insts) + 1)})
	p.sets = append(p.sets, s)
}

// star emits any number of bytes of s.
func (p *program) star(s byteSet) {
	split := p.emit(inst{op: opSplit})
	p.set(s)
	p.insts[len(p.insts)-1].next = split
	p.insts[split] = inst{op: opSplit, next: split + 1, alt: int32(len(p.insts))}
}

// char is one character of a pattern after the parser's lexer: escapes are
// resolved, and what was escaped has lost its special meaning.
type char struct {
	c       byte
	literal bool
	// escaped says that a backslash stood before it, which keeps the parser
	// from seeing two slashes as one.
	escaped bool
}

// ParsePattern reads a pattern as it stands in a rule, with its variables put
// in. It takes and refuses what the parser does (processunquoted in
// parser/parser_misc.c, filter_slashes and convert_aaregex_to_pcre in
// parser/parser_regex.c, and the grammar of parser/libapparmor_re/parse.y),
// but for "*" and "?" inside of "[ ]", which the parser takes for something that
// nobody means. So:
//
//   - "*" matches no "/", "**" does; directly after a "/", and before a "/" or at
//     the end, either needs one character at least;
//   - "[^a]" also matches a "/";
//   - several slashes are one, but for exactly two at the beginning;
//   - no pattern matches a NUL.
func ParsePattern(text string) (*Pattern, error) {
	return parsePattern(text, oneSlash)
}

// ParseName reads a pattern for what is no path: a profile's name, a field of a
// message. Several slashes stay what they are, as in "parent//child": the parser
// calls filter_slashes for files only (process_dfa_entry in
// parser/parser_regex.c).
func ParseName(text string) (*Pattern, error) {
	return parsePattern(text, func(in []char) []char { return in })
}

func parsePattern(text string, slashes func([]char) []char) (*Pattern, error) {
	fail := func(err error) (*Pattern, error) {
		return nil, fmt.Errorf("cannot read the pattern %s: %w", printable(text), err)
	}
	if len(text) > maxPattern {
		return nil, fmt.Errorf("cannot read a pattern of %d bytes: %d are the most", len(text), maxPattern)
	}
	in := text
	if len(in) >= 2 && in[0] == '"' && in[len(in)-1] == '"' {
		in = in[1 : len(in)-1]
	}
	if in == "" {
		return fail(errors.New("it is empty"))
	}
	if strings.Contains(in, "@{") {
		return fail(errors.New(`it has a variable ("@{…}"); its value belongs there`))
	}
	chars, err := unescape(in)
	if err != nil {
		return fail(err)
	}
	p := &program{}
	if err := p.compile(slashes(chars)); err != nil {
		return fail(err)
	}
	p.emit(inst{op: opEnd})
	return &Pattern{text: text, prog: p}, nil
}

// unescape resolves what follows backslashes.
func unescape(s string) ([]char, error) {
	out := make([]char, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == 0 {
			return nil, errors.New("it has a NUL")
		}
		if s[i] != '\\' {
			out = append(out, char{c: s[i]})
			continue
		}
		i++
		if i == len(s) {
			return nil, errors.New(`it ends in a "\"`)
		}
		c, n := escape(s[i:])
		if n > 0 {
			// "\052" is a "*" that stands for itself.
			out = append(out, char{c: c, literal: c != '-' && c != '^'})
			i += n - 1
			continue
		}
		// Any other character loses its meaning, or had none. In "[ ]" the parser
		// drops the backslash of these two, however they are written, and takes
		// them at their meaning.
		out = append(out, char{c: s[i], literal: s[i] != '-' && s[i] != '^', escaped: true})
	}
	return out, nil
}

// escape reads what follows a backslash where it stands for a byte, and says how
// long it is (strn_escseq in parser/lib.c).
func escape(s string) (c byte, n int) {
	number := func(from, base, most int) (byte, int) {
		v, i := 0, from
		for ; i < len(s) && i < from+most; i++ {
			d := strings.IndexByte("0123456789abcdef", s[i])
			if s[i] >= 'A' && s[i] <= 'F' {
				d = int(s[i]-'A') + 10
			}
			if d < 0 || d >= base || v*base+d > 255 {
				break
			}
			v = v*base + d
		}
		if i == from {
			return 0, 0
		}
		return byte(v), i
	}
	switch s[0] {
	case '0', '1', '2', '3', '4', '5', '6', '7':
		return number(0, 8, 3)
	case 'd':
		return number(1, 10, 3)
	case 'x':
		return number(1, 16, 2)
	case '\\', '"':
		return s[0], 1
	}
	if i := strings.IndexByte("aefnrt", s[0]); i >= 0 {
		return "\a\x1b\f\n\r\t"[i], 1
	}
	return 0, 0
}

// oneSlash makes one out of several slashes, but for two at the beginning, which
// POSIX leaves to the system (filter_slashes).
func oneSlash(in []char) []char {
	out := make([]char, 0, len(in))
	slash := func(i int) bool { return i < len(in) && in[i].c == '/' }
	i := 0
	if slash(0) && slash(1) && !slash(2) && !in[1].escaped {
		out = append(out, in[:2]...)
		i = 2
	}
	for ; i < len(in); i++ {
		if slash(i) && !in[i].escaped && i > 0 && slash(i-1) {
			continue
		}
		out = append(out, in[i])
	}
	return out
}

// compile emits the whole of a pattern.
func (p *program) compile(in []char) error {
	i, err := p.alternative(in, 0, 0)
	if err == nil && i < len(in) {
		// alternative stops at what ends one, which is nothing here.
		err = fmt.Errorf("it has a %q without its beginning", in[i].c)
	}
	return err
}

// alternative emits what stands up to the next "," or "}" of this depth, or to
// the end, and says where it stopped. At depth 0 a "," is itself.
func (p *program) alternative(in []char, i, depth int) (int, error) {
	// afterSlash is how the parser knows that what it wrote last is a "/".
	afterSlash := false
	for ; i < len(in); i++ {
		if len(p.insts) > maxProgram {
			return 0, errors.New("it is too large")
		}
		c := in[i]
		if c.literal {
			p.set(single(c.c))
			afterSlash = c.c == '/'
			continue
		}
		switch c.c {
		case '*':
			stars := i
			for stars < len(in) && in[stars].c == '*' && !in[stars].literal {
				stars++
			}
			// One character at least: "/foo/*" is not "/foo/".
			if afterSlash && (stars == len(in) || in[stars].c == '/' && !in[stars].escaped) {
				p.set(allBut(0, '/'))
			}
			if stars-i >= 2 {
				p.star(allBut(0))
				i++
			} else {
				p.star(allBut(0, '/'))
			}
			afterSlash = false
		case '?':
			p.set(allBut(0, '/'))
			afterSlash = false
		case '[':
			set, end, err := class(in, i+1)
			if err != nil {
				return 0, err
			}
			p.set(set)
			i = end
			afterSlash = false
		case ']':
			return 0, errors.New(`it has a "]" without its beginning`)
		case '{':
			var err error
			if i, err = p.group(in, i+1, depth+1); err != nil {
				return 0, err
			}
			afterSlash = false
		case '}':
			return i, nil
		case ',':
			if depth > 0 {
				return i, nil
			}
			fallthrough
		default:
			p.set(single(c.c))
			afterSlash = c.c == '/'
		}
	}
	return i, nil
}

// group emits alternatives, and says where their "}" is.
func (p *program) group(in []char, i, depth int) (int, error) {
	if depth > maxAlternatives {
		return 0, fmt.Errorf("its alternatives nest more than %d deep", maxAlternatives)
	}
	var ends []int32 // instructions that go on behind the group
	for n := 0; ; n++ {
		split := p.emit(inst{op: opSplit})
		end, err := p.alternative(in, i, depth)
		if err != nil {
			return 0, err
		}
		if end == len(in) {
			return 0, errors.New(`it has a "{" without its end`)
		}
		last := in[end].c == '}'
		if last && n == 0 {
			return 0, errors.New(`it has only one alternative between "{" and "}"`)
		}
		// An alternative ends in a jump, which is a choice of one.
		ends = append(ends, p.emit(inst{op: opSplit}))
		p.insts[split] = inst{op: opSplit, next: split + 1, alt: int32(len(p.insts))}
		if last {
			p.insts[split].alt = split + 1
			for _, e := range ends {
				p.insts[e] = inst{op: opSplit, next: int32(len(p.insts)), alt: int32(len(p.insts))}
			}
			return end, nil
		}
		i = end + 1
	}
}

// class reads a character class after its "[", and says where its "]" is. The
// grammar is that of parser/libapparmor_re/parse.y: a "-" stands for itself at
// the beginning only, the bounds of a range may be the wrong way round.
func class(in []char, i int) (set byteSet, end int, err error) {
	end = i
	for end < len(in) && (in[end].literal || in[end].c != ']') {
		if c := in[end]; !c.literal && (c.c == '*' || c.c == '?') {
			return set, 0, fmt.Errorf(`it has a %q between "[" and "]"; "\%c" is the character`, c.c, c.c)
		}
		end++
	}
	if end == len(in) {
		return set, 0, errors.New(`it has a "[" without its end`)
	}
	in = in[i:end]
	not := len(in) > 0 && in[0].c == '^' && !in[0].literal
	if not {
		in = in[1:]
	}
	if len(in) == 0 {
		return set, 0, errors.New(`it has nothing between "[" and "]"`)
	}
	if not && in[0].c == '^' && !in[0].literal {
		// "[^^…]", in which the second stands alone.
		set.add('^')
		in = in[1:]
		if len(in) > 0 && in[0].c == '-' && !in[0].literal {
			return set, 0, errors.New(`it has a "-" that is no range between "[" and "]"`)
		}
	}
	for k := 0; k < len(in); k++ {
		dash := func(j int) bool { return j < len(in) && in[j].c == '-' && !in[j].literal }
		if dash(k) && k > 0 {
			return set, 0, errors.New(`it has a "-" that is no range between "[" and "]"`)
		}
		if !dash(k + 1) {
			set.add(in[k].c)
			continue
		}
		if k+2 >= len(in) || dash(k+2) {
			return set, 0, errors.New(`it has a "-" that is no range between "[" and "]"`)
		}
		lo, hi := in[k].c, in[k+2].c
		if lo > hi {
			lo, hi = hi, lo
		}
		for c := int(lo); c <= int(hi); c++ {
			set.add(byte(c))
		}
		k += 2
	}
	if not {
		set.invert()
	}
	return set.without(0), end, nil
}

// sequence joins patterns with a NUL between each two, as the fields of D-Bus
// and mount rules are.
func sequence(fields []*Pattern) *Pattern {
	out := &program{}
	for i, f := range fields {
		if i > 0 {
			out.set(single(0))
		}
		at, sets := int32(len(out.insts)), len(out.sets)
		for _, in := range f.prog.insts {
			switch in.op {
			case opSet:
				in.set += sets
				in.next += at
			case opSplit:
				in.next += at
				in.alt += at
			case opEnd:
				in = inst{op: opSplit, next: at + int32(len(f.prog.insts)), alt: at + int32(len(f.prog.insts))}
			}
			out.insts = append(out.insts, in)
		}
		out.sets = append(out.sets, f.prog.sets...)
	}
	out.emit(inst{op: opEnd})
	return &Pattern{prog: out}
}
