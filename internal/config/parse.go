// Package config keeps attachments in files: it reads the layered directories,
// writes the attachments made at the command line, and tells when anything
// there changes.
package config

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// manualHeader is the first line of a file that "aaunitctl attach" wrote, and
// how it is told from one that a person or a configuration tool wrote.
const manualHeader = "# Written by aaunitctl attach; aaunitctl detach removes it."

// Parse reads one attachment file, in the syntax of systemd.syntax(7): one
// [Attachment] section, "KEY=VALUE" lines, comments with # or ;, a backslash at
// the end of a line continues it, and sections and keys that begin with X- are
// for others. Whatever else it does not understand makes the whole file bad: a
// mistyped key must not quietly turn an option off. Every problem is reported,
// with its line. options knows the names of socket options.
func Parse(path string, data []byte, options attach.OptionNames) (attach.Attachment, []attach.Reason) {
	p := parser{path: path, att: attach.NewAttachment(), options: options}
	p.att.Source = path
	switch {
	case !utf8.Valid(data):
		p.bad(lineOfBadUTF8(data), "it is not valid UTF-8")
		return p.att, p.problems
	case strings.ContainsRune(string(data), 0):
		p.bad(1, "it holds a NUL byte")
		return p.att, p.problems
	}
	p.att.Manual = strings.HasPrefix(string(data), manualHeader+"\n")
	p.lines(strings.Split(strings.TrimPrefix(string(data), "\ufeff"), "\n"))
	if p.att.Line == 0 {
		p.bad(1, "it has no [Attachment] section")
	} else if len(p.problems) == 0 {
		if err := p.att.Check(); err != nil {
			p.bad(int(p.att.Line), "%s", strings.ReplaceAll(err.Error(), "\n", "; "))
		}
	}
	return p.att, p.problems
}

type parser struct {
	path     string
	att      attach.Attachment
	problems []attach.Reason
	section  string
	options  attach.OptionNames
}

func (p *parser) bad(line int, format string, args ...any) {
	p.problems = append(p.problems, attach.Because(attach.AttachmentBad, "cannot use %s: line %d: %s", p.path, line, fmt.Sprintf(format, args...)).
		At(fmt.Sprintf("%s:%d", p.path, line)))
}

// lines joins continued lines and hands each logical one on, with the number
// of its first line.
func (p *parser) lines(lines []string) {
	logical, first := "", 0
	for i, l := range lines {
		trimmed := strings.TrimSpace(l)
		if strings.HasPrefix(trimmed, "#") || strings.HasPrefix(trimmed, ";") {
			continue // also between the parts of a continued line, as in systemd
		}
		if first == 0 {
			first = i + 1
		}
		if cut, more := strings.CutSuffix(strings.TrimRight(l, " \t\r"), `\`); more {
			logical += cut + " "
			continue
		}
		p.line(first, strings.TrimSpace(logical+l))
		logical, first = "", 0
	}
	if first != 0 {
		p.line(first, strings.TrimSpace(logical))
	}
}

func (p *parser) line(n int, l string) {
	switch {
	case l == "":
		return
	case strings.HasPrefix(l, "["):
		name, ok := strings.CutSuffix(l[1:], "]")
		switch {
		case !ok:
			p.bad(n, "the section header %q has no closing bracket", l)
		case name == "Attachment" && p.att.Line != 0:
			p.bad(n, "a second [Attachment] section; write a file of its own for each attachment")
		case name == "Attachment":
			p.att.Line = int32(n)
		case name == "Assertions":
		case name == "SocketOptions":
			p.att.SocketOptions = p.att.SocketOptions.Begin(n)
		case !strings.HasPrefix(name, "X-"):
			p.bad(n, "unknown section [%s]", name)
		}
		p.section = name
		return
	}
	key, value, ok := strings.Cut(l, "=")
	key, value = strings.TrimSpace(key), strings.TrimSpace(value)
	switch {
	case !ok:
		p.bad(n, "%q is neither a section nor KEY=VALUE", l)
	case p.section == "":
		p.bad(n, "%s= stands before any section", key)
	case strings.HasPrefix(key, "X-"):
	case p.section == "Assertions":
		if err := p.att.SetAssertion(key, value, n); err != nil {
			p.bad(n, "%s=: %v", key, err)
		}
	case p.section == "SocketOptions":
		if err := p.att.SetSocketOption(key, value, n, p.options); err != nil {
			p.bad(n, "%s=: %v", key, err)
		}
	case p.section != "Attachment":
	default:
		if err := p.att.Set(key, value); err != nil {
			p.bad(n, "%s=: %v", key, err)
		}
	}
}

func lineOfBadUTF8(data []byte) int {
	line := 1
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		if r == utf8.RuneError && size == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		data = data[size:]
	}
	return line
}

// Format writes an attachment made at the command line; what has its default
// value is left out.
func Format(a attach.Attachment) string {
	def := attach.NewAttachment()
	var b strings.Builder
	line := func(key, value, def string) {
		if value != def {
			b.WriteString(key + "=" + value + "\n")
		}
	}
	b.WriteString(manualHeader + "\n[Attachment]\n")
	for _, u := range a.Units {
		line("Unit", u, "")
	}
	line("Profile", a.Profile, "")
	line("ProfileFile", a.ProfileFile, "")
	line("PrivateTmp", string(a.PrivateTmp), string(def.PrivateTmp))
	line("Mode", string(a.Mode), string(def.Mode))
	line("RestartUnit", yesNo(a.RestartUnit), yesNo(def.RestartUnit))
	line("OnFailedAttach", string(a.OnFailedAttach), string(def.OnFailedAttach))
	line("OnViolation", string(a.OnViolation), string(def.OnViolation))
	line("OnProfileChange", string(a.OnProfileChange), string(def.OnProfileChange))
	for _, p := range a.AllowProfiles {
		line("AllowProfiles", `"`+p+`"`, "")
	}
	line("SettleSec", a.Settle.String(), def.Settle.String())
	if len(a.Assertions)+len(a.Waivers) > 0 {
		b.WriteString("\n[Assertions]\n")
	}
	for _, as := range a.Assertions {
		key := "Allow"
		if as.Deny {
			key = "Deny"
		}
		line(key, as.Text, "")
	}
	for _, w := range a.Waivers {
		line("Waive", string(w.Code)+" "+w.Reason, "")
	}
	if s := a.SocketOptions; s != nil {
		b.WriteString("\n" + s.Section())
	}
	return b.String()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
