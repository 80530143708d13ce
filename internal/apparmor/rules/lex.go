package rules

import "strings"

// The tokens follow parser/parser_lex.l of AppArmor: a path or quoted name is
// one token in which braces and commas are alternation; braces, commas and
// parentheses that stand by themselves divide rules and blocks.

// Kind is the kind of a token.
type Kind byte

const (
	End     Kind = iota
	Word         // keyword, path, permissions
	Quoted       // text is without the quotes
	Punct        // one of { } ( ) , = ! ^ and what else stands alone
	Arrow        // ->
	Assign       // a variable's whole line: text is the name
	Include      // include, #include
	ABI          // abi <path>,
)

// Token is a word or mark of a profile's text.
type Token struct {
	Kind     Kind
	Text     string
	Line     int
	Start    int      // where it begins in its file
	Stop     int      // where it ends
	Values   []string // of Assign
	Op       string   // of Assign: "=", "+=", "?=" or ":="
	Boolean  bool     // of Assign: "$NAME", not "@{NAME}"
	IfExists bool     // of Include
	Angle    bool     // of Include and ABI: <path>
	From, To int      // of Include and ABI: where the path stands, quotes and brackets included
}

// Is says whether a token is a mark that stands alone.
func (t Token) Is(s string) bool { return t.Kind == Punct && t.Text == s }

// Lexer reads the tokens of one file.
type Lexer struct {
	src  string
	off  int
	line int
	// start: a statement begins here, so that "@{X} =" is an assignment.
	start bool
	// id: the next word is a name, whatever it begins with.
	id bool
	// value: the next word stands behind a "=", and is read like a name; but
	// "=(" begins a list.
	value bool
	// parens counts open parentheses: within them a comma or parenthesis ends
	// any word (LIST_VAL_MODE of the parser).
	parens int
}

func NewLexer(src string) *Lexer { return &Lexer{src: src, line: 1, start: true} }

func isBlank(c byte) bool { return c == ' ' || c == '\t' }
func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// notID are the bytes that end a path or name (ID_CHARS of the lexer).
func notID(c byte) bool { return isSpace(c) || c == '"' || c == '!' || c == ',' }

// Next gives the next token.
func (l *Lexer) Next() Token {
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
	return l.placed(Token{Kind: End, Line: l.line}, l.off)
}

// placed says where a token stands that was read up to here.
func (l *Lexer) placed(t Token, start int) Token {
	t.Start, t.Stop = start, l.off
	return t
}

func (l *Lexer) comment() {
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

func (l *Lexer) token(c byte) Token {
	id, start := l.id, l.start
	if l.value && strings.IndexByte("(=", c) < 0 {
		id = true
	}
	l.id, l.start, l.value = false, false, false
	t := Token{Line: l.line}
	rest := l.src[l.off:]
	switch {
	case c == '"':
		t.Kind, t.Text = Quoted, l.quoted()
		return t
	case !id && includeWord(rest) > 0 && isBlank(rest[len("include")]):
		l.off += len("include")
		return l.include()
	case start && !id && strings.HasPrefix(rest, "abi") && len(rest) > 3 && (isBlank(rest[3]) || rest[3] == '<' || rest[3] == '"'):
		l.off += 3
		t.Kind = ABI
		l.path(&t)
		return t
	case !id && (c == '@' || c == '$'):
		if start {
			if t, ok := l.assign(); ok {
				l.start = true
				return t
			}
		}
		if n := booleanLen(rest); n > 0 {
			t.Kind, t.Text = Word, rest[:n]
			l.off += n
			return t
		}
	case strings.HasPrefix(rest, "->"):
		l.off += 2
		l.id = true
		t.Kind, t.Text = Arrow, "->"
		return t
	}
	if !id && strings.IndexByte("{}(),=!^<>", c) >= 0 {
		l.off++
		t.Kind, t.Text = Punct, string(c)
		l.start = c == '{' || c == '}' || c == ',' && l.parens == 0
		l.id = c == '^'
		// "<=" is before a number, which nothing follows.
		l.value = c == '=' && (l.off < 2 || l.src[l.off-2] != '<')
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
	t.Kind = Word
	if id || strings.IndexByte("/@:&", c) >= 0 {
		t.Text = l.idWord()
	} else {
		t.Text = l.plainWord()
		l.id = start && (t.Text == "profile" || t.Text == "hat")
		// "audit deny profile" is no rule, but "owner @{X}" is none either.
		l.start = false
	}
	if t.Text == "" { // nothing that the grammar knows
		l.off++
		t.Kind, t.Text = Punct, string(c)
	}
	return t
}

// booleanLen is the length of "$NAME" or "${NAME}" at the start of s.
func booleanLen(s string) int {
	if len(s) < 2 || s[0] != '$' {
		return 0
	}
	i := 1
	if s[1] == '{' {
		i++
	}
	from := i
	for i < len(s) && isNameByte(s[i]) {
		i++
	}
	switch {
	case i == from, s[1] == '{' && (i == len(s) || s[i] != '}'):
		return 0
	case s[1] == '{':
		i++
	}
	return i
}

func isNameByte(c byte) bool {
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// idWord reads a path or name: a comma belongs to it when something follows.
func (l *Lexer) idWord() string {
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

func (l *Lexer) plainWord() string {
	i := l.off
	// In a list, braces are part of a word.
	ends := `,(){}="!^<>`
	if l.parens > 0 {
		ends = `,()="!^<>`
	}
	for i < len(l.src) && !isSpace(l.src[i]) && strings.IndexByte(ends, l.src[i]) < 0 && !strings.HasPrefix(l.src[i:], "->") {
		i++
	}
	s := l.src[l.off:i]
	l.off = i
	return s
}

func (l *Lexer) quoted() string {
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
func (l *Lexer) include() Token {
	t := Token{Kind: Include, Line: l.line}
	l.start = true
	l.blanks()
	rest := l.src[l.off:]
	if f := strings.Fields(rest[:min(len(rest), 256)]); len(f) > 2 && f[0] == "if" && f[1] == "exists" {
		l.off += strings.Index(rest, "exists") + len("exists")
		t.IfExists = true
	}
	l.path(&t)
	return t
}

// path reads <path>, <"path">, "path" or path.
func (l *Lexer) path(t *Token) {
	l.blanks()
	if l.off == len(l.src) {
		return
	}
	t.From = l.off
	switch l.src[l.off] {
	case '<':
		t.Angle = true
		end := strings.IndexAny(l.src[l.off:], ">\n")
		if end < 0 || l.src[l.off+end] == '\n' {
			l.comment()
			return
		}
		t.Text = strings.Trim(l.src[l.off+1:l.off+end], " \t\"")
		l.off += end + 1
	case '"':
		t.Text = strings.Trim(l.quoted(), " \t")
	default:
		i := l.off
		for i < len(l.src) && !notID(l.src[i]) {
			i++
		}
		t.Text = l.src[l.off:i]
		l.off = i
	}
	t.To = l.off
}

func (l *Lexer) blanks() {
	for l.off < len(l.src) && isBlank(l.src[l.off]) {
		l.off++
	}
}

// assign reads "@{NAME} = value value" up to the end of its line.
func (l *Lexer) assign() (Token, bool) {
	rest := l.src[l.off:]
	i := 1
	braced := i < len(rest) && rest[i] == '{'
	if braced {
		i++
	}
	from := i
	for i < len(rest) && isNameByte(rest[i]) {
		i++
	}
	t := Token{Kind: Assign, Text: rest[from:i], Line: l.line, Boolean: rest[0] == '$'}
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
	case strings.HasPrefix(rest[i:], "+="), strings.HasPrefix(rest[i:], ":="), strings.HasPrefix(rest[i:], "?="):
		t.Op = rest[i : i+2]
	case strings.HasPrefix(rest[i:], "=") && !strings.HasPrefix(rest[i:], "=="):
		t.Op = "="
	default:
		return t, false
	}
	l.off += i + len(t.Op)
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
			t.Values = append(t.Values, l.quoted())
		default:
			t.Values = append(t.Values, l.idWord())
		}
	}
	return t, true
}
