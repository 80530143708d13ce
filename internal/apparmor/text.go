package apparmor

import (
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// The text of profiles is read here as far as the parser does not tell: where
// a profile stands, which flags and path it has, which rules let a child
// leave it. The compiled policy always comes from the parser.
//
// The tokens follow parser/parser_lex.l of AppArmor: a path or quoted name is
// one token in which braces and commas are alternation; braces, commas and
// parentheses that stand by themselves divide rules and blocks.

// Bounds on one profile with all it includes.
const (
	maxFlat     = 8 << 20 // bytes
	maxIncludes = 100     // depth, as MAX_NEST_LEVEL of the parser
	maxProfiles = 4096
	maxLeaves   = 256 // for one profile
)

// textProfile is a profile as its text declares it.
type textProfile struct {
	name       string // children as "parent//child"
	file       string
	line       int
	attachment string
	flags      []string
	leaves     []attach.Leave
	child      bool
}

// textScan is what a profile file says, its includes put in place.
type textScan struct {
	profiles []textProfile
	vars     map[string][]string
	// tooLarge: the text was not read to its end.
	tooLarge bool
}

// tokenKind is the kind of a token.
type tokenKind byte

const (
	tokEnd     tokenKind = iota
	tokWord              // keyword, path, permissions
	tokQuoted            // text is without the quotes
	tokPunct             // one of { } ( ) , = ! ^ and what else stands alone
	tokArrow             // ->
	tokAssign            // a variable's whole line: text is the name
	tokInclude           // include, #include
	tokABI               // abi <path>,
)

type token struct {
	kind     tokenKind
	text     string
	line     int
	values   []string // of tokAssign
	adds     bool     // of tokAssign: +=
	ifExists bool     // of tokInclude
	angle    bool     // of tokInclude and tokABI: <path>
	from, to int      // of tokInclude and tokABI: where the path stands, quotes and brackets included
	at, end  int      // where the token stands
}

func (t token) is(s string) bool { return t.kind == tokPunct && t.text == s }

// lexer reads the tokens of one file.
type lexer struct {
	src  string
	off  int
	line int
	// start: a statement begins here, so that "@{X} =" is an assignment.
	start bool
	// id: the next word is a name, whatever it begins with.
	id bool
	// parens counts open parentheses: within them a comma or parenthesis ends
	// any word (LIST_VAL_MODE of the parser).
	parens int
}

func newLexer(src string) *lexer { return &lexer{src: src, line: 1, start: true} }

func isBlank(c byte) bool { return c == ' ' || c == '\t' }
func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// notID are the bytes that end a path or name (ID_CHARS of the lexer).
func notID(c byte) bool { return isSpace(c) || c == '"' || c == '!' || c == ',' }

// next gives the next token.
func (l *lexer) next() token {
	for l.off < len(l.src) {
		c := l.src[l.off]
		switch {
		case c == '\n':
			l.line++
			l.off++
		case isSpace(c):
			l.off++
		case c == '\\' && strings.HasPrefix(l.src[l.off:], "\\\n"):
			l.off++ // a continued line
		case c == '#':
			if n := includeWord(l.src[l.off+1:]); n > 0 {
				at := l.off
				l.off += 1 + n
				return l.placed(l.include(), at)
			}
			l.comment()
		default:
			at := l.off
			return l.placed(l.token(c), at)
		}
	}
	return token{kind: tokEnd, line: l.line}
}

func (l *lexer) placed(t token, at int) token {
	t.at, t.end = at, l.off
	return t
}

func (l *lexer) comment() {
	if i := strings.IndexByte(l.src[l.off:], '\n'); i >= 0 {
		l.off += i
	} else {
		l.off = len(l.src)
	}
}

// includeWord reports the length of the word "include" at the start of s, with
// something after it.
func includeWord(s string) int {
	const w = "include"
	if strings.HasPrefix(s, w) && len(s) > len(w) && (isBlank(s[len(w)]) || s[len(w)] == '<' || s[len(w)] == '"') {
		return len(w)
	}
	return 0
}

func (l *lexer) token(c byte) token {
	id, start := l.id, l.start
	l.id, l.start = false, false
	t := token{line: l.line}
	rest := l.src[l.off:]
	switch {
	case c == '"':
		t.kind, t.text = tokQuoted, l.quoted()
		return t
	case !id && includeWord(rest) > 0 && isBlank(rest[len("include")]):
		l.off += len("include")
		return l.include()
	case start && !id && strings.HasPrefix(rest, "abi") && len(rest) > 3 && (isBlank(rest[3]) || rest[3] == '<' || rest[3] == '"'):
		l.off += 3
		t.kind = tokABI
		l.path(&t)
		return t
	case start && !id && (c == '@' || c == '$'):
		if t, ok := l.assign(); ok {
			l.start = true
			return t
		}
	case strings.HasPrefix(rest, "->"):
		l.off += 2
		l.id = true
		t.kind, t.text = tokArrow, "->"
		return t
	}
	if !id && strings.IndexByte("{}(),=!^<>", c) >= 0 {
		l.off++
		t.kind, t.text = tokPunct, string(c)
		l.start = c == '{' || c == '}' || c == ',' && l.parens == 0
		// A value is one word, whatever braces it holds: member={Get,Set}
		// (EXTCOND_MODE of the parser), unless it is a list.
		l.id = c == '^' || c == '=' && strings.HasPrefix(strings.TrimLeft(l.src[l.off:], " \t"), "{")
		switch c {
		case '(':
			l.parens++
		case ')':
			l.parens = max(0, l.parens-1)
		case '{', '}':
			l.parens = 0
		}
		return t
	}
	t.kind = tokWord
	if id || strings.IndexByte("/@:&", c) >= 0 {
		t.text = l.idWord()
	} else {
		t.text = l.plainWord()
		l.id = start && (t.text == "profile" || t.text == "hat")
		// "audit deny profile" is no rule, but "owner @{X}" is none either.
		l.start = false
	}
	if t.text == "" { // nothing that the grammar knows
		l.off++
		t.kind, t.text = tokPunct, string(c)
	}
	return t
}

// idWord reads a path or name: a comma belongs to it when something follows.
func (l *lexer) idWord() string {
	i := l.off
	for i < len(l.src) {
		c := l.src[i]
		switch {
		case c == '\\' && i+1 < len(l.src) && l.src[i+1] != '\n':
			i += 2
			continue
		case c == ',' && l.parens == 0 && i+1 < len(l.src) && !notID(l.src[i+1]):
		case notID(c), l.parens > 0 && (c == '(' || c == ')'):
			s := l.src[l.off:i]
			l.off = i
			return s
		}
		i++
	}
	s := l.src[l.off:]
	l.off = len(l.src)
	return s
}

func (l *lexer) plainWord() string {
	i := l.off
	for i < len(l.src) && !isSpace(l.src[i]) && strings.IndexByte(`,(){}="!^<>`, l.src[i]) < 0 && !strings.HasPrefix(l.src[i:], "->") {
		i++
	}
	s := l.src[l.off:i]
	l.off = i
	return s
}

func (l *lexer) quoted() string {
	i := l.off + 1
	for i < len(l.src) && l.src[i] != '"' {
		if l.src[i] == '\\' && i+1 < len(l.src) {
			i++
		}
		if l.src[i] == '\n' {
			l.line++
		}
		i++
	}
	s := l.src[l.off+1 : min(i, len(l.src))]
	l.off = min(i+1, len(l.src))
	return s
}

// include reads what stands behind the word.
func (l *lexer) include() token {
	t := token{kind: tokInclude, line: l.line}
	l.start = true
	l.blanks()
	rest := l.src[l.off:]
	if f := strings.Fields(rest[:min(len(rest), 256)]); len(f) > 2 && f[0] == "if" && f[1] == "exists" {
		l.off += strings.Index(rest, "exists") + len("exists")
		t.ifExists = true
	}
	l.path(&t)
	return t
}

// path reads <path>, <"path">, "path" or path.
func (l *lexer) path(t *token) {
	l.blanks()
	if l.off == len(l.src) {
		return
	}
	t.from = l.off
	switch l.src[l.off] {
	case '<':
		t.angle = true
		end := strings.IndexAny(l.src[l.off:], ">\n")
		if end < 0 || l.src[l.off+end] == '\n' {
			l.comment()
			return
		}
		t.text = strings.Trim(l.src[l.off+1:l.off+end], " \t\"")
		l.off += end + 1
	case '"':
		t.text = strings.Trim(l.quoted(), " \t")
	default:
		i := l.off
		for i < len(l.src) && !notID(l.src[i]) {
			i++
		}
		t.text = l.src[l.off:i]
		l.off = i
	}
	t.to = l.off
}

func (l *lexer) blanks() {
	for l.off < len(l.src) && isBlank(l.src[l.off]) {
		l.off++
	}
}

// assign reads "@{NAME} = value value" up to the end of its line.
func (l *lexer) assign() (token, bool) {
	rest := l.src[l.off:]
	i := 1
	braced := i < len(rest) && rest[i] == '{'
	if braced {
		i++
	}
	from := i
	for i < len(rest) && (rest[i] == '_' || rest[i] >= 'a' && rest[i] <= 'z' || rest[i] >= 'A' && rest[i] <= 'Z' || rest[i] >= '0' && rest[i] <= '9') {
		i++
	}
	t := token{kind: tokAssign, text: rest[from:i], line: l.line}
	if braced {
		if i == len(rest) || rest[i] != '}' {
			return t, false
		}
		i++
	}
	for i < len(rest) && isBlank(rest[i]) {
		i++
	}
	switch {
	case strings.HasPrefix(rest[i:], "+="):
		t.adds = true
		i += 2
	case strings.HasPrefix(rest[i:], ":="), strings.HasPrefix(rest[i:], "?="):
		i += 2
	case strings.HasPrefix(rest[i:], "="):
		i++
	default:
		return t, false
	}
	l.off += i
	for l.off < len(l.src) {
		c := l.src[l.off]
		switch {
		case c == '\n':
			return t, true // counted by next
		case c == '#':
			l.comment()
			return t, true
		case c == '\\' && strings.HasPrefix(l.src[l.off:], "\\\n"):
			l.line++
			l.off += 2
		case isSpace(c), c == ',', c == '!':
			l.off++
		case c == '"':
			t.values = append(t.values, l.quoted())
		default:
			t.values = append(t.values, l.idWord())
		}
	}
	return t, true
}

// textFile is a file that an include puts in place.
type textFile struct {
	path string
	data string
}

// frame is a file that is being read.
type frame struct {
	lex  *lexer
	path string
}

// block is an open brace.
type block struct {
	profile int // index of the profile it belongs to, -1 none
	deny    bool
}

// scanText reads a profile file. resolve gives the files that an include
// stands for.
func scanText(top textFile, resolve func(angle bool, path string) []textFile) textScan {
	p := &textParser{scan: textScan{vars: map[string][]string{}}, resolve: resolve}
	p.push(top)
	p.run()
	return p.scan
}

type textParser struct {
	scan    textScan
	resolve func(angle bool, path string) []textFile
	files   []frame
	size    int
	flat    int // lines of the flattened text before the current files
	blocks  []block
	stmt    []token
	parens  int
}

func (p *textParser) push(f textFile) {
	if p.size += len(f.data); p.size > maxFlat || len(p.files) > maxIncludes {
		p.scan.tooLarge = true
		return
	}
	p.files = append(p.files, frame{lex: newLexer(f.data), path: f.path})
}

func (p *textParser) run() {
	for len(p.files) > 0 {
		f := &p.files[len(p.files)-1]
		t := f.lex.next()
		switch {
		case t.kind == tokEnd:
			p.flat += f.lex.line
			p.files = p.files[:len(p.files)-1]
		case t.kind == tokInclude:
			inc := p.resolve(t.angle, t.text)
			for _, file := range slices.Backward(inc) {
				p.push(file)
			}
		case t.kind == tokABI:
		case t.kind == tokAssign:
			if t.adds {
				p.scan.vars[t.text] = append(p.scan.vars[t.text], t.values...)
			} else {
				p.scan.vars[t.text] = t.values
			}
		case t.is("("):
			p.parens++
			p.stmt = append(p.stmt, t)
		case t.is(")"):
			p.parens = max(0, p.parens-1)
			p.stmt = append(p.stmt, t)
		case t.is(",") && p.parens == 0:
			p.rule(p.stmt)
			p.stmt = p.stmt[:0]
		case t.is("{"):
			p.open(p.stmt, f.path)
			p.stmt, p.parens = p.stmt[:0], 0
		case t.is("}"):
			// A last rule without its comma is an error to the parser.
			if len(p.blocks) > 0 {
				p.blocks = p.blocks[:len(p.blocks)-1]
			}
			p.stmt, p.parens = p.stmt[:0], 0
		default:
			p.stmt = append(p.stmt, t)
		}
	}
}

func (p *textParser) current() block {
	if len(p.blocks) == 0 {
		return block{profile: -1}
	}
	return p.blocks[len(p.blocks)-1]
}

// flatLine is the line in the flattened text.
func (p *textParser) flatLine() int {
	n := p.flat
	for _, f := range p.files {
		n += f.lex.line
	}
	return n
}

// open handles what stands before a brace: a profile, a hat, a condition, or
// qualifiers for several rules.
func (p *textParser) open(stmt []token, file string) {
	cur := p.current()
	rest, deny := qualifiers(stmt)
	if len(rest) == 0 || rest[0].kind == tokWord && (rest[0].text == "if" || rest[0].text == "else") {
		p.blocks = append(p.blocks, block{profile: cur.profile, deny: cur.deny || deny})
		return
	}
	if rest[0].kind == tokWord && (rest[0].text == "profile" || rest[0].text == "hat") || rest[0].is("^") {
		rest = rest[1:]
	}
	if len(rest) == 0 || rest[0].kind != tokWord && rest[0].kind != tokQuoted || len(p.scan.profiles) >= maxProfiles {
		p.blocks = append(p.blocks, block{profile: cur.profile, deny: cur.deny})
		return
	}
	tp := textProfile{name: unescape(rest[0].text), file: file, line: rest[0].line}
	if cur.profile >= 0 {
		tp.child = true
		tp.name = p.scan.profiles[cur.profile].name + "//" + tp.name
	} else if isPath(rest[0].text) {
		tp.attachment = rest[0].text
	}
	if len(rest) > 1 && (rest[1].kind == tokQuoted || rest[1].kind == tokWord) && isPath(rest[1].text) {
		tp.attachment = rest[1].text
	}
	tp.flags = flagsOf(rest[1:])
	p.scan.profiles = append(p.scan.profiles, tp)
	p.blocks = append(p.blocks, block{profile: len(p.scan.profiles) - 1})
}

func isPath(s string) bool { return strings.HasPrefix(s, "/") || strings.HasPrefix(s, "@{") }

// flagsOf reads flags=(a, b), or (a, b) without the word.
func flagsOf(stmt []token) []string {
	var out []string
	for i := 0; i < len(stmt); i++ {
		if !stmt[i].is("(") {
			continue
		}
		key := "flags"
		if i >= 2 && stmt[i-1].is("=") {
			key = stmt[i-2].text
		}
		for i++; i < len(stmt) && !stmt[i].is(")"); i++ {
			if key == "flags" && (stmt[i].kind == tokWord || stmt[i].kind == tokQuoted) {
				out = append(out, stmt[i].text)
			}
		}
	}
	return out
}

// qualifiers takes the words off that may stand before any rule.
func qualifiers(stmt []token) (rest []token, deny bool) {
	for len(stmt) > 0 && stmt[0].kind == tokWord {
		switch stmt[0].text {
		case "deny":
			deny = true
		case "audit", "allow", "prompt", "owner", "user", "other", "safe", "unsafe", "quiet":
		case "priority":
			if len(stmt) > 2 && stmt[1].is("=") {
				stmt = stmt[2:]
			}
		default:
			return stmt, deny
		}
		stmt = stmt[1:]
	}
	return stmt, deny
}

// rule looks whether a rule lets a child leave the profile.
func (p *textParser) rule(stmt []token) {
	cur := p.current()
	if cur.profile < 0 || cur.deny {
		return
	}
	rest, deny := qualifiers(stmt)
	if deny || !leaves(rest, p.scan.vars) {
		return
	}
	// Rules of children and hats are told at the profile they belong to.
	top := cur.profile
	for top > 0 && p.scan.profiles[top].child {
		top--
	}
	tp := &p.scan.profiles[top]
	if len(tp.leaves) < maxLeaves {
		tp.leaves = append(tp.leaves, attach.Leave{Rule: printRule(stmt), Line: p.flatLine()})
	}
}

// leaves reports whether a rule, without its qualifiers, is one that runs
// programs without any profile: an exec transition with "ux" in any spelling
// (apparmor.d(5), "Access Modes": ux, Ux, pux, PUx, cux, CUx), one to the
// profile "unconfined", which the kernel finds under that name like any other
// (x_table_lookup in security/apparmor/domain.c), or a change_profile that may
// go there. vars are the text's variables.
func leaves(r []token, vars map[string][]string) bool {
	if len(r) == 0 {
		return false
	}
	if r[0].kind == tokWord && r[0].text == "change_profile" {
		for i, t := range r {
			if t.kind == tokArrow && i+1 < len(r) {
				return reachesUnconfined(r[i+1].text, vars)
			}
		}
		return true // without a target: to any profile, unconfined included
	}
	if r[0].kind == tokWord && r[0].text == "file" {
		// "file deny" is not a thing; "file owner" neither.
		r = r[1:]
	}
	if len(r) < 2 {
		return false
	}
	pathFirst := r[0].kind == tokQuoted || isPath(r[0].text)
	pathSecond := r[1].kind == tokQuoted || isPath(r[1].text)
	var perms string
	switch {
	case pathFirst && r[1].kind == tokWord:
		perms = permissions(r[1].text)
	case !pathFirst && pathSecond && r[0].kind == tokWord:
		perms = permissions(r[0].text)
	}
	if strings.Contains(perms, "ux") {
		return true
	}
	// "Cx -> NAME" goes to a child of that name.
	return (strings.Contains(perms, "px") || strings.Contains(perms, "pix")) && len(r) > 3 && r[2].kind == tokArrow && reachesUnconfined(r[3].text, vars)
}

// permissions gives the letters of an access mode in lower case, "" where the
// word is none.
func permissions(word string) string {
	const letters = "rwaklmxpcui"
	for i := range len(word) {
		if strings.IndexByte(letters, word[i]|0x20) < 0 {
			return ""
		}
	}
	return strings.ToLower(word)
}

// reachesUnconfined reports whether the target of a transition may be
// "unconfined". A stack that has another member stays confined by that.
func reachesUnconfined(target string, vars map[string][]string) bool {
	for _, member := range strings.Split(strings.TrimPrefix(target, "&"), "//&") {
		if strings.HasPrefix(target, "&") {
			return false // stacks on top of what is there
		}
		if strings.HasPrefix(member, ":") {
			if _, name, ok := strings.Cut(member[1:], ":"); ok {
				member = strings.TrimPrefix(name, "//")
			}
		}
		member = strings.ReplaceAll(member, "@{profile_name}", "x") // never empty, never unconfined
		re, ok := compileGlob(member, vars)
		if ok && !re.MatchString(attach.Unconfined) {
			return false
		}
	}
	return true
}

// printRule puts a rule together again, on one line.
func printRule(stmt []token) string {
	var b strings.Builder
	for i, t := range stmt {
		limit := i > 1 && stmt[i-1].is("=") && stmt[i-2].is("<") // set rlimit cpu <= 5
		glue := i == 0 || t.is(")") || t.is("=") && !limit || t.is(",") || stmt[i-1].is("(") || stmt[i-1].is("=") && !limit || stmt[i-1].is("^")
		if !glue {
			b.WriteByte(' ')
		}
		switch {
		case t.kind == tokQuoted:
			b.WriteString(`"` + t.text + `"`)
		case t.kind == tokABI && t.angle:
			b.WriteString("abi <" + t.text + ">")
		case t.kind == tokABI:
			b.WriteString(`abi "` + t.text + `"`)
		default:
			b.WriteString(t.text)
		}
		if b.Len() > 512 {
			return strings.ToValidUTF8(b.String()[:512], "?") + "…"
		}
	}
	b.WriteByte(',')
	return strings.ToValidUTF8(b.String(), "?")
}

// unescape does to a profile's name what processid of the parser does: octal
// and letter escapes become their byte, an escaped quote the quote.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		i++
		switch c := s[i]; {
		case c >= '0' && c <= '3' && i+2 < len(s) && isOctal(s[i+1]) && isOctal(s[i+2]):
			b.WriteByte((c-'0')<<6 | (s[i+1]-'0')<<3 | (s[i+2] - '0'))
			i += 2
		case c == 'n':
			b.WriteByte('\n')
		case c == 't':
			b.WriteByte('\t')
		case c == 'r':
			b.WriteByte('\r')
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }
