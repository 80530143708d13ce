package procs

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// Machine says which machine this is: machine-id(5), os-release(5), and the kernel's
// own files. What could not be read is "".
func (l *Looker) Machine() (m attach.Machine) {
	word := func(file string) string {
		text, err := readSmall(l.real(file))
		if err != nil {
			return ""
		}
		return clean(strings.TrimSpace(text))
	}
	m.Name, m.Kernel = word("/proc/sys/kernel/hostname"), word("/proc/sys/kernel/osrelease")
	if id := word("/etc/machine-id"); len(id) == 32 {
		// The id itself is confidential; a program is to derive one of its own.
		h := hmac.New(sha256.New, []byte(id))
		h.Write([]byte("org.aaunit1 report"))
		m.ID = hex.EncodeToString(h.Sum(nil)[:16])
	}
	for _, file := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		text, err := readSmall(l.real(file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(text) {
			if v, ok := strings.CutPrefix(strings.TrimSpace(line), "PRETTY_NAME="); ok {
				m.OS = clean(strings.Trim(v, `"'`))
			}
		}
		break
	}
	return m
}

// clean makes one line of text of what a program chose: no line break, nothing that a
// terminal obeys, no byte that is no UTF-8, and not too long.
func clean(s string) string {
	const most = 512
	var b strings.Builder
	for i, r := range s {
		switch {
		case r == utf8.RuneError && !strings.HasPrefix(s[i:], string(utf8.RuneError)):
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case !unicode.IsPrint(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		if b.Len() >= most {
			return b.String() + "…"
		}
	}
	return b.String()
}
