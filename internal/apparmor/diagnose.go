package apparmor

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// Diagnosis says what is wrong with the text of a profile to somebody who has
// never used AppArmor.
type Diagnosis struct {
	// Code names the kind of mistake, such as "missing-comma".
	Code string
	// File and Line are where to correct it, which is not always where the
	// parser gave up; Line is 0 where no place was found.
	File string
	Line int
	// Column counts the characters of Text from 1; one behind the last is the end
	// of the line. 0 is the line as a whole.
	Column int
	Text   string // the line, as it stands in the file
	Cause  string // one sentence
	Help   string // what to write instead; may be ""
	Next   string // the next step
	Says   string // the parser's own words
}

// Said is what apparmor_parser had against a profile file, and what it read.
type Said struct {
	File    string            // the profile file
	Text    string            // what it printed, with the real names of files
	Sources map[string][]byte // the file and what it includes, by path
	Version string            // the first line of --version; "" is not known
	Dir     string            // where included files are looked for; "" is /etc/apparmor.d
	// Beside are files that exist where an included one was looked for and not
	// found, and Unread why a file that exists could not be read.
	Beside []string
	Unread map[string]string
}

// message is one error of the parser's.
type message struct {
	file string // "" where it names none
	line int
	text string
}

// pattern is compiled when it is first used: most runs of a program need none.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}

// parserAt finds the place in the parser's message: "AppArmor parser error for
// FILE in [profile] PLACE at line N: TEXT" (yyerror in parser/parser_misc.c).
var parserAt = pattern(`in (?:profile )?(/.*?) at line (\d+): (.*)`)

// noise are lines that say nothing about the file.
var noise = []string{"Cache read/write disabled", "Warning: unable to find a suitable fs", "Ignoring: ", "Warning from "}

// maxSays bounds what is repeated of the parser's words.
const maxSays = 400

// messages reads what the parser printed: those with a place first, since the
// parser stops at the first of them, and what it says without one is then about
// the same.
func messages(said string) []message {
	var placed, others []message
	for line := range strings.SplitSeq(said, "\n") {
		line = strings.TrimSpace(clean(line))
		if line == "" || slices.ContainsFunc(noise, func(n string) bool { return strings.HasPrefix(line, n) }) {
			continue
		}
		if m := parserAt().FindStringSubmatch(line); m != nil {
			if n, err := strconv.Atoi(m[2]); err == nil && len(placed) < 16 {
				placed = append(placed, message{m[1], n, strings.TrimSpace(m[3])})
				continue
			}
		}
		if len(others) < 16 {
			others = append(others, message{text: line})
		}
	}
	return append(placed, others...)
}

// Diagnose puts what the parser printed into plain words. It reads the texts
// around the place that the parser names, because the parser often gives up
// some lines behind the mistake, and calls everything a syntax error. Nothing
// that it is given makes it fail: where it finds no cause, it repeats the
// parser's words.
func Diagnose(said Said) Diagnosis {
	if said.Dir == "" {
		said.Dir = profileDir
	}
	d := &diagnoser{Said: said, version: parseVersion(said.Version), stmts: map[string][]statement{}}
	all := messages(said.Text)
	var texts []string
	for _, m := range all {
		if len(texts) < 4 {
			texts = append(texts, m.text)
		}
	}
	out, ok := Diagnosis{}, false
	for _, m := range all {
		if out, ok = d.message(m); ok {
			break
		}
	}
	if !ok && len(all) > 0 {
		out = d.unknown(all[0])
	}
	if out.File == "" {
		out.File = said.File
	}
	out.Says = bounded(strings.Join(texts, "; "), maxSays)
	out.Cause, out.Help = clean(bounded(out.Cause, 800)), clean(bounded(out.Help, 800))
	if out.Code != "" && out.Next == "" {
		out.Next = d.next(out)
	}
	return out
}

// String is the diagnosis in one line, without the place's column and text.
func (d Diagnosis) String() string {
	var b strings.Builder
	if d.Line > 0 {
		fmt.Fprintf(&b, "%s:%d: ", d.File, d.Line)
	}
	b.WriteString(d.Cause)
	if d.Help != "" {
		b.WriteString(" " + d.Help)
	}
	if d.Says != "" {
		b.WriteString(" (apparmor_parser: " + d.Says + ")")
	}
	return b.String()
}

// reason puts the place and the next step to what says the rest.
func (d Diagnosis) reason(r attach.Reason) attach.Reason {
	if d.Line > 0 {
		r = r.At(fmt.Sprintf("%s:%d", d.File, d.Line))
		if d.Text != "" {
			r = r.WithExcerpt(d.Line, d.Column, d.Text)
		}
	}
	return r.WithNext(d.Next)
}

func bounded(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

func (d *diagnoser) next(out Diagnosis) string {
	what := "correct the file"
	if out.Line > 0 {
		what = fmt.Sprintf("correct line %d", out.Line)
	}
	if out.File != d.File {
		what += " of " + out.File
	}
	return what + ", then: aaunitctl check " + shellQuote(d.File)
}

// shellQuote makes one word of a path for the shell.
func shellQuote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,=") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// diagnoser holds the texts, divided into statements where they were looked at.
type diagnoser struct {
	Said
	version version
	stmts   map[string][]statement
}

// statement is a rule, the head of a block, an assignment or an include.
type statement struct {
	words []rules.Token
	end   byte // what ended it: , { } i (an include in its middle) or 0, the end of the file
	endAt int
	line  int // of what ended it
	depth int // open braces around it
}

// maxStatements bounds the statements of one file that are looked at.
const maxStatements = 100_000

// statementsOf divides a text.
func statementsOf(text string) []statement {
	var out []statement
	var words []rules.Token
	depth, parens := 0, 0
	end := func(by byte, t rules.Token) {
		out = append(out, statement{words, by, t.Start, t.Line, depth})
		words, parens = nil, 0
	}
	for l := rules.NewLexer(text); len(out) < maxStatements; {
		t := l.Next()
		switch {
		case t.Kind == rules.End:
			t.Start = len(text)
			if len(words) > 0 {
				end(0, t)
			}
			return out
		case t.Kind == rules.Include, t.Kind == rules.Assign:
			if len(words) > 0 {
				end('i', t)
			}
			words = []rules.Token{t}
			end(0, rules.Token{Start: t.Stop, Line: t.Line})
		case t.Is("{"):
			end('{', t)
			depth++
		case t.Is("}"):
			end('}', t)
			depth = max(0, depth-1)
		case t.Is(",") && parens == 0:
			end(',', t)
		default:
			if t.Is("(") {
				parens++
			} else if t.Is(")") {
				parens = max(0, parens-1)
			}
			words = append(words, t)
		}
	}
	return out
}

func (d *diagnoser) statements(file string) []statement {
	s, ok := d.stmts[file]
	if !ok {
		s = statementsOf(string(d.Sources[file]))
		d.stmts[file] = s
	}
	return s
}

// files gives the names of the texts: the profile file, then the others.
func (d *diagnoser) files() []string {
	out := []string{d.File}
	for f := range d.Sources {
		if f != d.File {
			out = append(out, f)
		}
	}
	slices.Sort(out[1:])
	return out
}

// first and last are the lines that a statement takes, its end included.
func (s *statement) first() int {
	if len(s.words) == 0 {
		return s.line
	}
	return s.words[0].Line
}

// rule gives the words without the qualifiers.
func (s *statement) rule() []rules.Token {
	r, _ := rules.ReadQualifiers(s.words)
	return r
}

// head reports whether the words declare a profile or hat.
func (s *statement) head() bool {
	return len(s.words) > 0 && (isWord(s.words[0], "profile", "hat") || s.words[0].Is("^"))
}

func isWord(t rules.Token, words ...string) bool {
	return t.Kind == rules.Word && slices.Contains(words, t.Text)
}

// isFile reports whether a word is a path, as it begins a file rule.
func isFile(t rules.Token) bool {
	return (t.Kind == rules.Quoted || t.Kind == rules.Word) && rules.IsPath(t.Text)
}

// isPermissions reports whether the parser takes a word for permissions, by
// its letters (MODES in parser/parser_lex.l): those of exec transitions in
// their order only.
var permissionsPattern = pattern(`^(?:[rRwWaAlLkKmMxX]|(?:[pPcCuU]|[pPcC][iIuU]|[iI])[xX])+$`)

func isPermissions(t rules.Token) bool {
	return t.Kind == rules.Word && permissionsPattern().MatchString(t.Text)
}

// at makes a diagnosis that points to a byte of a file.
func (d *diagnoser) at(file string, off int, code, cause string) Diagnosis {
	out := Diagnosis{Code: code, File: file, Cause: cause}
	text := string(d.Sources[file])
	if off < 0 || off > len(text) {
		return out
	}
	from := strings.LastIndexByte(text[:off], '\n') + 1
	to := len(text)
	if i := strings.IndexByte(text[from:], '\n'); i >= 0 {
		to = from + i
	}
	out.Line = 1 + strings.Count(text[:from], "\n")
	out.Column = 1 + utf8.RuneCountInString(text[from:off])
	out.Text = strings.TrimSuffix(text[from:to], "\r")
	return out
}

// onLine points to the first thing on a line, or to the line as a whole.
func (d *diagnoser) onLine(file string, line int, code, cause string) Diagnosis {
	text := string(d.Sources[file])
	off := 0
	for n := 1; n < line; n++ {
		i := strings.IndexByte(text[off:], '\n')
		if i < 0 {
			return Diagnosis{Code: code, File: file, Line: max(line, 0), Cause: cause} // not the text that the parser read
		}
		off += i + 1
	}
	if off == len(text) && off > 0 {
		off-- // the parser counts the line behind the last
	}
	for off < len(text) && (text[off] == ' ' || text[off] == '\t') {
		off++
	}
	return d.at(file, off, code, cause)
}

// around gives the statements that a line is part of, nearest first: those
// that hold it, then the one before.
func (d *diagnoser) around(file string, line int) []*statement {
	all := d.statements(file)
	var out []*statement
	before := -1
	for i := range all {
		s := &all[i]
		switch {
		case s.line < line:
			if len(s.words) > 0 {
				before = i
			}
		case s.first() <= line:
			out = append(out, s)
		}
		if s.first() > line || len(out) > 64 {
			break
		}
	}
	if before >= 0 {
		out = append(out, &all[before])
	}
	return out
}

// raw is the text of a statement, without what ended it.
func (d *diagnoser) raw(file string, s *statement) string {
	if len(s.words) == 0 {
		return ""
	}
	text := string(d.Sources[file])
	return text[s.words[0].Start:min(max(s.endAt, s.words[0].Start), len(text))]
}

func helped(out Diagnosis, format string, args ...any) Diagnosis {
	out.Help = fmt.Sprintf(format, args...)
	return out
}

// unknown repeats what the parser said, and points to where it gave up.
func (d *diagnoser) unknown(m message) Diagnosis {
	if m.file == "" {
		return Diagnosis{Code: "other", Cause: "apparmor_parser refuses the text, and names no line."}
	}
	cause := "apparmor_parser gave up here."
	help := ""
	if syntax := syntaxError().FindStringSubmatch(m.text); syntax != nil {
		cause = "apparmor_parser did not expect " + tokenWords(syntax[1]) + " here"
		if syntax[2] != "" {
			cause += "; it looked for " + tokenWords(syntax[2])
		}
		cause += "."
		help = "The mistake can be in this line or in one before it: look for a comma that is missing at the end of a rule, for a word that is misspelt, and for a brace that is missing. apparmor.d(5) lists the rules."
	}
	out := d.onLine(m.file, m.line, "other", cause)
	out.Help = help
	return out
}

// syntaxError is bison's message (%define parse.error verbose).
var syntaxError = pattern(`^syntax error, unexpected (.*?)(?:, expecting (.*))?$`)

// tokenNames are the parser's names for what it reads (parser/parser_yacc.y).
var tokenNames = map[string]string{
	"TOK_END_OF_RULE": "a comma", "TOK_OPEN": "an opening brace {", "TOK_CLOSE": "a closing brace }", "TOK_ID": "a word or path",
	"TOK_MODE": "permissions such as r or rw", "TOK_SET_VAR": "a variable such as @{HOME}", "TOK_BOOL_VAR": "a $variable", "TOK_OPENPAREN": "a (",
	"TOK_CLOSEPAREN": "a )", "TOK_EQUALS": "a =", "TOK_ADD_ASSIGN": "a +=", "TOK_ARROW": "an arrow ->", "TOK_VALUE": "a value",
	"TOK_CONDID": "a condition such as type=", "TOK_CONDLISTID": "a condition such as peer=(", "TOK_CARET": "a ^", "TOK_LE": "a <=",
	"end of file": "the end of the file",
}

func tokenWords(s string) string {
	parts := strings.Split(s, " or ")
	for i, p := range parts {
		if w, ok := tokenNames[p]; ok {
			parts[i] = w
		} else if w, ok := strings.CutPrefix(p, "TOK_"); ok {
			parts[i] = "the word " + strings.ToLower(w)
		}
	}
	return strings.Join(parts, " or ")
}

// includePath is the file that an include stands for.
func (d *diagnoser) includePath(name string) string {
	if path.IsAbs(name) {
		return path.Clean(name)
	}
	return path.Join(d.Dir, name)
}
