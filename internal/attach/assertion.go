package attach

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Assertion is one line of [Assertions]: what the compiled policy must allow, or
// must not. It is about the rules, whatever else, such as a file's mode, forbids.
type Assertion struct {
	Deny bool   `json:"deny"`
	Text string `json:"text"` // as written, blanks made single
	Line int    `json:"line,omitempty"`

	Class AssertionClass `json:"class"`
	// Access are the permissions, in the words of the class; nil is any of them.
	Access []string `json:"access,omitempty"`
	// Owner restricts a question about files: "owner" to those that belong to the
	// task's user, "other" to all others; "" is either.
	Owner string `json:"owner,omitempty"`
	// Object is what it is about: a pattern of paths (@{exec} is the unit's own
	// executables), a capability, the pattern of a profile's name; "" is all.
	Object string `json:"object,omitempty"`
	// Family and Type of a socket; "" is every.
	Family string `json:"family,omitempty"`
	Type   string `json:"type,omitempty"`
}

// AssertionClass is what an assertion is about.
type AssertionClass string

// The classes, as the compiled policy has them.
const (
	AssertFile       AssertionClass = "file"
	AssertNetwork    AssertionClass = "network"
	AssertCapability AssertionClass = "capability"
	AssertSignal     AssertionClass = "signal"
	AssertPtrace     AssertionClass = "ptrace"
	AssertChange     AssertionClass = "change-profile"
	AssertUserns     AssertionClass = "userns"
)

// ExecVariable stands for the executables that the unit's own command lines name.
const ExecVariable = "@{exec}"

// fileAccess are the words for files: the verbs of people, and AppArmor's letters.
var fileAccess = []string{"read", "write", "append", "create", "delete", "exec", "map", "lock", "link"}

var fileLetters = map[rune]string{'r': "read", 'w': "write", 'a': "append", 'x': "exec", 'm': "map", 'k': "lock", 'l': "link"}

var otherAccess = map[AssertionClass][]string{
	AssertSignal: {"send", "receive"},
	AssertPtrace: {"read", "trace", "readby", "tracedby"},
}

// Waiver says why a built-in assertion does not count for an attachment.
type Waiver struct {
	Code   Code   `json:"code"`
	Reason string `json:"reason"`
	Line   int    `json:"line,omitempty"`
}

// ParseAssertion reads what stands behind Allow= or Deny=:
//
//	[owner|other] ACCESS[,ACCESS…] PATTERN   files: read, write, append, create,
//	                                         delete, exec, map, lock, link, or
//	                                         AppArmor's letters (rw)
//	network [FAMILY [TYPE]]
//	capability [NAME]
//	signal [send|receive] [PEER]
//	ptrace [read|trace|readby|tracedby] [PEER]
//	change-profile [NAME]
//	userns
//
// A pattern has AppArmor's syntax; one that holds white space stands in double
// quotes.
func ParseAssertion(deny bool, value string) (Assertion, error) {
	words, err := splitQuoted(value)
	if err != nil {
		return Assertion{}, err
	}
	a := Assertion{Deny: deny, Text: strings.Join(strings.Fields(value), " ")}
	if len(words) == 0 {
		return a, errors.New(`it says nothing: write, for example, "write /tmp/**" or "network unix"`)
	}
	for _, w := range words {
		if printable(w) != w {
			return a, errors.New("it holds a control character")
		}
	}
	switch class := AssertionClass(words[0]); class {
	case AssertNetwork:
		a.Class = class
		return a, a.take(words[1:], &a.Family, &a.Type)
	case AssertCapability:
		a.Class = class
		if err := a.take(words[1:], &a.Object); err != nil {
			return a, err
		}
		a.Object = strings.TrimPrefix(strings.ToLower(a.Object), "cap_")
		return a, nil
	case AssertChange:
		a.Class = class
		return a, a.take(words[1:], &a.Object)
	case AssertUserns:
		a.Class = class
		return a, a.take(words[1:])
	case AssertSignal, AssertPtrace:
		a.Class = class
		rest := words[1:]
		if len(rest) > 0 && slices.Contains(otherAccess[class], rest[0]) {
			a.Access, rest = rest[:1], rest[1:]
		}
		return a, a.take(rest, &a.Object)
	}
	return a.file(words)
}

func (a Assertion) file(words []string) (Assertion, error) {
	a.Class = AssertFile
	if w := words[0]; w == "owner" || w == "other" {
		a.Owner, words = w, words[1:]
	}
	if len(words) != 2 {
		return a, fmt.Errorf("cannot read %q: say what and where, as in \"write /tmp/**\"; or begin with network, capability, signal, ptrace, change-profile or userns", a.Text)
	}
	for _, w := range strings.Split(words[0], ",") {
		access, err := accessOf(w)
		if err != nil {
			return a, err
		}
		a.Access = append(a.Access, access...)
	}
	slices.SortFunc(a.Access, func(x, y string) int { return cmp.Compare(slices.Index(fileAccess, x), slices.Index(fileAccess, y)) })
	a.Access = slices.Compact(a.Access)
	a.Object = words[1]
	if !strings.HasPrefix(a.Object, "/") && a.Object != ExecVariable {
		return a, fmt.Errorf("cannot use the path %q: it begins with \"/\", or is %s, the unit's own executables", a.Object, ExecVariable)
	}
	return a, nil
}

// accessOf reads a word, or letters.
func accessOf(w string) ([]string, error) {
	if slices.Contains(fileAccess, w) {
		return []string{w}, nil
	}
	var out []string
	for _, c := range w {
		word, ok := fileLetters[c]
		if !ok {
			return nil, fmt.Errorf("%q is no access to a file: use %s, or AppArmor's letters (rw)", w, strings.Join(fileAccess, ", "))
		}
		out = append(out, word)
	}
	if len(out) == 0 {
		return nil, errors.New("an access is missing between two commas")
	}
	return out, nil
}

// take hands the words out.
func (a *Assertion) take(words []string, to ...*string) error {
	if len(words) > len(to) {
		return fmt.Errorf("cannot read %q: %q is one word too many", a.Text, words[len(to)])
	}
	for i, w := range words {
		*to[i] = w
	}
	return nil
}

// splitQuoted divides at white space; a word in double quotes may hold some.
func splitQuoted(s string) ([]string, error) {
	var out []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		if s[0] == '"' {
			end := strings.IndexByte(s[1:], '"')
			if end < 0 {
				return nil, errors.New("a double quote is not closed")
			}
			out, s = append(out, s[1:1+end]), s[2+end:]
			continue
		}
		end := strings.IndexAny(s, " \t")
		if end < 0 {
			end = len(s)
		}
		out, s = append(out, s[:end]), s[end:]
	}
	return out, nil
}

// SetAssertion takes one KEY=VALUE line of an [Assertions] section. Allow=,
// Deny= and Waive= add up; an empty value takes back those of the key before it.
func (a *Attachment) SetAssertion(key, value string, line int) error {
	switch key {
	case "Allow", "Deny":
		deny := key == "Deny"
		if value == "" {
			a.Assertions = slices.DeleteFunc(a.Assertions, func(b Assertion) bool { return b.Deny == deny })
			return nil
		}
		b, err := ParseAssertion(deny, value)
		if err != nil {
			return err
		}
		b.Line = line
		a.Assertions = append(a.Assertions, b)
	case "Waive":
		if value == "" {
			a.Waivers = nil
			return nil
		}
		code, reason, _ := strings.Cut(value, " ")
		if c := Code(code); !c.Waivable() {
			return fmt.Errorf("%q is no built-in assertion; aaunit-reasons(7) lists them", code)
		}
		if reason = strings.TrimSpace(reason); reason == "" {
			return fmt.Errorf("a reason is missing: Waive=%s WHY, in words that somebody understands in a year", code)
		}
		a.Waivers = append(a.Waivers, Waiver{Code: Code(code), Reason: printable(reason), Line: line})
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return nil
}

// Waived gives the waiver of a built-in assertion, or nil.
func (a Attachment) Waived(c Code) *Waiver {
	for i := range a.Waivers {
		if a.Waivers[i].Code == c {
			return &a.Waivers[i]
		}
	}
	return nil
}

// builtIn are the codes of built-in assertions, which all speak about policy.
const builtIn = "policy-may-"

// Waivable reports whether the code is that of a built-in assertion.
func (c Code) Waivable() bool {
	_, known := catalogue[c]
	return known && strings.HasPrefix(string(c), builtIn)
}

// OfComplainMode says of an attachment that asks for complain mode what that makes of it:
// for a check. Attaching it is what somebody wants, and its verdict says the same.
func OfComplainMode(a Attachment) []Reason {
	if a.Mode != WishComplain {
		return nil
	}
	out := []Reason{because(ProfileComplain, "Mode=complain: what profile %s does not allow is logged and let pass", a.Profile).
		at(a.Source).next("take Mode=complain out when the profile has all that the unit needs")}
	for _, as := range a.Assertions {
		if as.Deny {
			out = append(out, because(AssertionFailed, "Deny=%s does not hold in complain mode, which lets pass what the profile does not allow", as.Text).
				at(fmt.Sprintf("%s:%d", a.Source, as.Line)))
		}
	}
	return out
}
