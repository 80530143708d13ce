package apparmor

import (
	"regexp"
	"strings"
)

// Bounds on what a pattern may grow to when its variables are put in.
const (
	maxPattern  = 4 << 10
	maxExpanded = 64 << 10
	maxVarDepth = 10
)

// compileGlob turns a path pattern of AppArmor's (apparmor.d(5), "Globbing")
// into a regular expression that must match in full. ok is false where the
// pattern is broken, too large or names a variable that is not known.
func compileGlob(pattern string, vars map[string][]string) (re *regexp.Regexp, ok bool) {
	if len(pattern) > maxPattern {
		return nil, false
	}
	var b strings.Builder
	b.WriteString(`(?s)\A(?:`)
	if !writeGlob(&b, pattern, vars, 0) {
		return nil, false
	}
	b.WriteString(`)\z`)
	re, err := regexp.Compile(b.String())
	return re, err == nil
}

func writeGlob(b *strings.Builder, p string, vars map[string][]string, depth int) bool {
	if depth > maxVarDepth {
		return false
	}
	open := 0
	for i := 0; i < len(p); i++ {
		if b.Len() > maxExpanded {
			return false
		}
		switch c := p[i]; c {
		case '\\':
			i++
			if i == len(p) {
				return false
			}
			b.WriteString(regexp.QuoteMeta(p[i : i+1]))
		case '*':
			if i+1 < len(p) && p[i+1] == '*' {
				i++
				b.WriteString(`.*`)
			} else {
				b.WriteString(`[^/]*`)
			}
		case '?':
			b.WriteString(`[^/]`)
		case '{':
			open++
			b.WriteString(`(?:`)
		case '}':
			if open--; open < 0 {
				return false
			}
			b.WriteString(`)`)
		case ',':
			if open > 0 {
				b.WriteString(`|`)
			} else {
				b.WriteString(`,`)
			}
		case '[':
			end := strings.IndexByte(p[i:], ']')
			if end < 2 {
				return false
			}
			b.WriteString("[" + strings.NewReplacer(`\`, `\\`, `[`, `\[`).Replace(p[i+1:i+end]) + "]")
			i += end
		case '@':
			name, n := variable(p[i:])
			if n == 0 {
				b.WriteString("@")
				continue
			}
			values := vars[name]
			if len(values) == 0 {
				return false
			}
			b.WriteString(`(?:`)
			for k, v := range values {
				if k > 0 {
					b.WriteByte('|')
				}
				if !writeGlob(b, v, vars, depth+1) {
					return false
				}
			}
			b.WriteString(`)`)
			i += n - 1
		case '/':
			// AppArmor reads several slashes as one.
			for i+1 < len(p) && p[i+1] == '/' {
				i++
			}
			b.WriteString(`/+`)
		default:
			b.WriteString(regexp.QuoteMeta(p[i : i+1]))
		}
	}
	return open == 0
}

// variable reads "@{NAME}" at the start of s, and says how long it is.
func variable(s string) (name string, n int) {
	if !strings.HasPrefix(s, "@{") {
		return "", 0
	}
	end := strings.IndexByte(s, '}')
	if end < 3 {
		return "", 0
	}
	return s[2:end], end + 1
}

// literalPrefix counts the bytes before the first pattern character: of two
// profiles that attach to a path, the kernel takes the one that names more of
// it (find_attach in security/apparmor/domain.c).
func literalPrefix(p string) int {
	if i := strings.IndexAny(p, "*?[{@"); i >= 0 {
		return i
	}
	return len(p)
}
