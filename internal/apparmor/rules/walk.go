package rules

import (
	"fmt"
	"strings"
)

// Bounds on one profile file with all it includes.
const (
	// MaxText is how many bytes are read.
	MaxText = 8 << 20
	// MaxIncluded is how many files are put in place, each as often as it is included.
	// Empty ones cost time, too, and so does an include of nothing, which counts as one.
	MaxIncluded = 100_000
	// MaxDepth is how deep files include one another. The parser has no such bound
	// (seen with 3.0.8).
	MaxDepth = 100
)

// File is a file of a profile's text.
type File struct {
	Path string
	Data string
}

// Statement is what stands before a "," or a "{", includes put in place.
type Statement struct {
	Tokens []Token
	// File is where its first token stands.
	File File
	// Flat is the line in the text with all includes put in place.
	Flat int
}

// Line is where it begins in its file.
func (s Statement) Line() int {
	if len(s.Tokens) == 0 {
		return 0
	}
	return s.Tokens[0].Line
}

// A Visitor is told what a text says, in its order. A Statement's tokens are its
// own until the method returns.
type Visitor interface {
	// Assign is a variable.
	Assign(Token)
	// Rule is a rule, which its comma ended.
	Rule(Statement)
	// Open is what stands before a "{": a profile, a hat, a condition, or
	// qualifiers for several rules.
	Open(Statement)
	// Close is a "}".
	Close()
}

// Includer gives the files that an include stands for.
type Includer func(t Token) []File

// TooLarge says what is wrong with a text that Walk did not read to its end.
func TooLarge() string {
	return fmt.Sprintf("with its includes in place it is larger than %d bytes or %d files, or files include one another more than %d deep", MaxText, MaxIncluded, MaxDepth)
}

// Walk reads a profile file with its includes in place. It says false when the
// text is larger than it may be (TooLarge), and was not read to its end.
func Walk(top File, include Includer, v Visitor) bool {
	w := walker{include: include, v: v}
	w.push([]File{top})
	w.run()
	return !w.tooLarge
}

// frame is a file that is being read, with those that come after it where an include
// stands for several.
type frame struct {
	lex  *Lexer
	file File
	next []File
}

func begin(files []File) frame {
	return frame{lex: NewLexer(files[0].Data), file: files[0], next: files[1:]}
}

type walker struct {
	include  Includer
	v        Visitor
	files    []frame // each includes the one behind it
	size     int
	included int
	flat     int // lines of the flattened text before the current files
	stmt     Statement
	parens   int
	tooLarge bool
}

func (w *walker) push(files []File) {
	for _, f := range files {
		w.size += len(f.Data)
	}
	w.included += max(1, len(files))
	switch {
	case w.size > MaxText || w.included > MaxIncluded:
		w.tooLarge = true
	case len(files) == 0:
	case len(w.files) > MaxDepth:
		w.tooLarge = true
	default:
		w.files = append(w.files, begin(files))
	}
}

func (w *walker) run() {
	for len(w.files) > 0 && !w.tooLarge {
		f := &w.files[len(w.files)-1]
		t := f.lex.Next()
		switch {
		case t.Kind == End:
			w.flat += f.lex.line
			if len(f.next) > 0 {
				*f = begin(f.next)
			} else {
				w.files = w.files[:len(w.files)-1]
			}
		case t.Kind == Include:
			w.push(w.include(t))
		case t.Kind == ABI:
		case t.Kind == Assign:
			w.v.Assign(t)
		case t.Is("("):
			w.parens++
			w.add(f, t)
		case t.Is(")"):
			w.parens = max(0, w.parens-1)
			w.add(f, t)
		case t.Is(",") && w.parens == 0:
			w.stmt.Flat = w.flatLine()
			w.v.Rule(w.stmt)
			w.next()
		case t.Is("{"):
			w.stmt.Flat = w.flatLine()
			w.v.Open(w.stmt)
			w.next()
		case t.Is("}"):
			// A last rule without its comma is an error to the parser.
			w.v.Close()
			w.next()
		default:
			w.add(f, t)
		}
	}
}

func (w *walker) add(f *frame, t Token) {
	if len(w.stmt.Tokens) == 0 {
		w.stmt.File = f.file
	}
	w.stmt.Tokens = append(w.stmt.Tokens, t)
}

func (w *walker) next() { w.stmt.Tokens, w.parens = w.stmt.Tokens[:0], 0 }

// flatLine is the line in the flattened text.
func (w *walker) flatLine() int {
	n := w.flat
	for _, f := range w.files {
		n += f.lex.line
	}
	return n
}

// IsPath says whether a word stands for a path: in a rule, or as an attachment.
func IsPath(s string) bool { return strings.HasPrefix(s, "/") || strings.HasPrefix(s, "@{") }

// Flags reads flags=(a, b), or (a, b) without the word, from what stands behind
// a profile's name.
func Flags(head []Token) []string {
	var out []string
	for i := 0; i < len(head); i++ {
		if !head[i].Is("(") {
			continue
		}
		key := "flags"
		if i >= 2 && head[i-1].Is("=") {
			key = head[i-2].Text
		}
		for i++; i < len(head) && !head[i].Is(")"); i++ {
			if key == "flags" && (head[i].Kind == Word || head[i].Kind == Quoted) {
				out = append(out, head[i].Text)
			}
		}
	}
	return out
}

// Qualifiers are the words that may stand before any rule.
type Qualifiers struct {
	Deny, Audit, Prompt bool
	Owner, Other        bool
	Safe, Unsafe        bool
	Priority            string
}

// ReadQualifiers takes them off a statement.
func ReadQualifiers(stmt []Token) (rest []Token, q Qualifiers) {
	for len(stmt) > 0 && stmt[0].Kind == Word {
		switch stmt[0].Text {
		case "deny":
			q.Deny = true
		case "audit":
			q.Audit = true
		case "prompt":
			q.Prompt = true
		case "owner", "user":
			q.Owner = true
		case "other":
			q.Other = true
		case "safe":
			q.Safe = true
		case "unsafe":
			q.Unsafe = true
		case "allow", "quiet":
		case "priority":
			if len(stmt) > 2 && stmt[1].Is("=") {
				q.Priority = stmt[2].Text
				stmt = stmt[2:]
			}
		default:
			return stmt, q
		}
		stmt = stmt[1:]
	}
	return stmt, q
}

// Print puts a rule together again, on one line.
func Print(stmt []Token) string {
	var b strings.Builder
	for i, t := range stmt {
		limit := i > 1 && stmt[i-1].Is("=") && stmt[i-2].Is("<") // set rlimit cpu <= 5
		glue := i == 0 || t.Is(")") || t.Is("=") && !limit || t.Is(",") || stmt[i-1].Is("(") || stmt[i-1].Is("=") && !limit || stmt[i-1].Is("^")
		if !glue {
			b.WriteByte(' ')
		}
		switch {
		case t.Kind == Quoted:
			b.WriteString(`"` + t.Text + `"`)
		case t.Kind == ABI && t.Angle:
			b.WriteString("abi <" + t.Text + ">")
		case t.Kind == ABI:
			b.WriteString(`abi "` + t.Text + `"`)
		default:
			b.WriteString(t.Text)
		}
		if b.Len() > 512 {
			return strings.ToValidUTF8(b.String()[:512], "?") + "…"
		}
	}
	b.WriteByte(',')
	return strings.ToValidUTF8(b.String(), "?")
}

// Unescape does to a profile's name what processid of the parser does: octal
// and letter escapes become their byte, an escaped quote the quote.
func Unescape(s string) string {
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
