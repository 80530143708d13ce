package cli

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// style says what the output can show.
type style struct {
	color   bool
	unicode bool // the locale is UTF-8
}

// A mark stands in front of a line.
type mark int

const (
	markNone mark = iota
	markUnit
	markOK
	markBad
	markWarn
	markUnknown
	markSkip
	markNext
	markFrom
)

var marks = map[mark]struct {
	fancy, ascii, color string
}{
	markNone:    {" ", " ", ""},
	markUnit:    {"●", "*", ""},
	markOK:      {"✓", "+", green},
	markBad:     {"✗", "x", red},
	markWarn:    {"!", "!", yellow},
	markUnknown: {"?", "?", yellow},
	markSkip:    {"-", "-", dim},
	markNext:    {"→", "->", ""},
	markFrom:    {"←", "<-", ""},
}

// SGR sequences.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
	dim    = "2"
)

func (s style) paint(color, text string) string {
	if !s.color || color == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

func (s style) mark(m mark) string { return s.markIn(m, marks[m].color) }

func (s style) markIn(m mark, color string) string {
	text := marks[m].ascii
	if s.unicode {
		text = marks[m].fancy
	}
	return s.paint(color, text)
}

// plainly are the characters that our own sentences use, for a locale without them.
var plainly = map[rune]string{'…': "...", '←': "<-", '→': "->", '–': "-", '—': "-", '“': `"`, '”': `"`, '‘': "'", '’': "'", '✓': "+", '✗': "x", '●': "*"}

// text makes a string from elsewhere fit for one line of a terminal: a name may
// hold escape sequences, line breaks, or marks that turn the direction of the
// text around. What cannot be shown as it is, is shown as an escape.
func (s style) text(in string) string {
	var b strings.Builder
	for i := 0; i < len(in); {
		r, n := utf8.DecodeRuneInString(in[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, in[i])
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteByte(' ')
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case !unicode.IsPrint(r) && plainly[r] == "":
			writeEscape(&b, r)
		case r >= 0x80 && !s.unicode:
			if p, ok := plainly[r]; ok {
				b.WriteString(p)
			} else {
				writeEscape(&b, r)
			}
		default:
			b.WriteRune(r)
		}
		i += n
	}
	return b.String()
}

func writeEscape(b *strings.Builder, r rune) {
	if r > 0xffff {
		fmt.Fprintf(b, `\U%08x`, r)
		return
	}
	fmt.Fprintf(b, `\u%04x`, r)
}

// lines is text for a string that may have several lines.
func (s style) lines(in string) []string {
	var out []string
	for _, l := range strings.Split(strings.TrimRight(in, "\n"), "\n") {
		out = append(out, s.text(l))
	}
	return out
}

// width is the number of columns a string takes on a terminal: combining
// characters take none, East Asian wide ones and most pictures two (Unicode
// Standard Annex 11).
func width(s string) int {
	n := 0
	for _, r := range s {
		switch {
		case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		case wide(r):
			n += 2
		default:
			n++
		}
	}
	return n
}

func wide(r rune) bool {
	switch {
	case r < 0x1100:
		return false
	case r <= 0x115f, // Hangul
		r >= 0x2e80 && r <= 0x303e, // CJK
		r >= 0x3041 && r <= 0xa4cf, // kana, CJK, Yi
		r >= 0xa960 && r <= 0xa97f,
		r >= 0xac00 && r <= 0xd7a3, // Hangul syllables
		r >= 0xf900 && r <= 0xfaff,
		r >= 0xfe30 && r <= 0xfe6f,
		r >= 0xff00 && r <= 0xff60, // full-width forms
		r >= 0xffe0 && r <= 0xffe6,
		r >= 0x1f300 && r <= 0x1f64f, // pictures
		r >= 0x1f680 && r <= 0x1f6ff,
		r >= 0x1f900 && r <= 0x1faff,
		r >= 0x20000 && r <= 0x3fffd:
		return true
	}
	return false
}

// pad fills up to a width.
func pad(s string, w int) string {
	return s + strings.Repeat(" ", max(0, w-width(s)))
}

// cut shortens to a width.
func (s style) cut(in string, w int) string {
	if width(in) <= w {
		return in
	}
	dots := s.dots()
	out, n := "", width(dots)
	for _, r := range in {
		if n += width(string(r)); n > w {
			break
		}
		out += string(r)
	}
	return out + dots
}

func (s style) dots() string {
	if s.unicode {
		return "…"
	}
	return "..."
}

// dropColumns takes at least w columns off the front.
func dropColumns(in string, w int) string {
	for i, r := range in {
		if w <= 0 {
			return in[i:]
		}
		w -= width(string(r))
	}
	return ""
}

// wrap breaks a sentence into lines of at most w columns.
func wrap(in string, w int) []string {
	var out []string
	line := ""
	for _, word := range strings.Fields(in) {
		if line != "" && width(line)+1+width(word) > w {
			out, line = append(out, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	if line != "" {
		out = append(out, line)
	}
	return out
}
