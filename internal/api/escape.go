package api

import (
	"strings"
	"unicode/utf8"

	"github.com/godbus/dbus/v5"
)

// UnitPath is the object of an attached unit. The name is escaped as systemd
// does it (sd_bus_path_encode(3)): every byte but ASCII letters and digits, and
// a digit that comes first, as _ and two hexadecimal digits; an empty name as _.
func UnitPath(unit string) dbus.ObjectPath {
	return UnitsPath + "/" + dbus.ObjectPath(escapeLabel(unit))
}

// unitOf is the inverse; ok is false for a path that UnitPath does not make.
func unitOf(path dbus.ObjectPath) (unit string, ok bool) {
	label, ok := strings.CutPrefix(string(path), string(UnitsPath)+"/")
	if !ok {
		return "", false
	}
	return unescapeLabel(label)
}

const hexDigits = "0123456789abcdef"

func escapeLabel(s string) string {
	if s == "" {
		return "_"
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		digit := c >= '0' && c <= '9'
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || digit && i > 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('_')
		b.WriteByte(hexDigits[c>>4])
		b.WriteByte(hexDigits[c&15])
	}
	return b.String()
}

// unescapeLabel takes the one form that escapeLabel gives and no other, so that
// an object has one path.
func unescapeLabel(s string) (string, bool) {
	if s == "_" {
		return "", true
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		hi, lo := strings.IndexByte(hexDigits, s[i+1]), strings.IndexByte(hexDigits, s[i+2])
		if hi < 0 || lo < 0 {
			return "", false
		}
		b.WriteByte(byte(hi<<4 | lo))
		i += 2
	}
	out := b.String()
	return out, escapeLabel(out) == s
}

// clean makes s a string that D-Bus can carry: valid UTF-8 without NUL.
func clean(s string) string {
	if utf8.ValidString(s) && strings.IndexByte(s, 0) < 0 {
		return s
	}
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "\uFFFD")
}
