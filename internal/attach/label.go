package attach

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Mode is the mode of a profile, as the kernel prints it behind a label.
type Mode string

// The kernel's modes (security/apparmor/lib.c, aa_profile_mode_names, and
// label_modename for the two that only a label can have).
const (
	ModeEnforce    Mode = "enforce"
	ModeComplain   Mode = "complain"
	ModeKill       Mode = "kill"
	ModeUnconfined Mode = "unconfined"
	ModeUser       Mode = "user"
	ModeMixed      Mode = "mixed" // a stack whose profiles differ in mode
	ModeNone       Mode = "-"     // no profile of the label is visible from here
)

func (m Mode) known() bool {
	switch m {
	case ModeEnforce, ModeComplain, ModeKill, ModeUnconfined, ModeUser, ModeMixed, ModeNone:
		return true
	}
	return false
}

// Confines reports whether a profile in this mode refuses what it does not allow.
func (m Mode) Confines() bool { return m == ModeEnforce || m == ModeKill }

// Unconfined is the name of the state without a profile.
const Unconfined = "unconfined"

// Label is what a task carries: a set of profiles (a "stack") and one mode for
// them all. The zero Label is not a label.
type Label struct {
	// Profiles holds the members of the stack, sorted, each once. A member is
	// a name (children and hats as "parent//child") or, for a profile in
	// another policy namespace, ":ns://name". "unconfined" is a member like
	// any other.
	Profiles []string `json:"profiles"`
	Mode     Mode     `json:"mode"`
}

// ParseLabel reads what /proc/PID/attr/apparmor/current says: "name (mode)" or
// "unconfined", where the name may hold spaces and parentheses, so that only
// the last " (" divides. A stack is joined by "//&"; its order means nothing.
func ParseLabel(s string) (Label, error) {
	s = strings.TrimRight(s, "\n\x00")
	if s == "" {
		return Label{}, errors.New("cannot read label: it is empty")
	}
	if strings.ContainsAny(s, "\n\x00") {
		return Label{}, fmt.Errorf("cannot read label %q: it holds a line break or a NUL", s)
	}
	var mode Mode
	if i := strings.LastIndex(s, " ("); i >= 0 && strings.HasSuffix(s, ")") {
		mode = Mode(s[i+2 : len(s)-1])
		s = s[:i]
		if !mode.known() {
			return Label{}, fmt.Errorf("cannot read label %q: unknown mode %q", s, string(mode))
		}
	}
	l := Label{Mode: mode}
	for _, part := range strings.Split(s, "//&") {
		p, err := canonicalMember(part)
		if err != nil {
			return Label{}, fmt.Errorf("cannot read label %q: %w", s, err)
		}
		l.Profiles = append(l.Profiles, p)
	}
	slices.Sort(l.Profiles)
	l.Profiles = slices.Compact(l.Profiles)
	switch {
	case l.IsUnconfined():
		l.Mode = ModeUnconfined
	case mode == "":
		// The kernel leaves the mode out only where no profile is in force.
		return Label{}, fmt.Errorf("cannot read label %q: it has no mode", s)
	}
	return l, nil
}

// canonicalMember brings ":ns:name" and ":ns://name" into the kernel's form,
// the latter.
func canonicalMember(p string) (string, error) {
	if p == "" {
		return "", errors.New("it has an empty part")
	}
	if p[0] != ':' {
		return p, nil
	}
	ns, name := splitNamespace(p)
	// "/&…" would be printed with the "//&" of a stack in it.
	if ns == "" || name == "" || name[0] == '&' || strings.HasPrefix(name, "/&") {
		return "", fmt.Errorf("%q is not a namespace and a name", p)
	}
	return ":" + ns + "://" + name, nil
}

// splitNamespace divides ":ns:name" or ":ns://name"; a name without a
// namespace comes back with ns "".
func splitNamespace(p string) (ns, name string) {
	if !strings.HasPrefix(p, ":") {
		return "", p
	}
	ns, name, ok := strings.Cut(p[1:], ":")
	if !ok {
		return "", ""
	}
	return ns, strings.TrimPrefix(name, "//")
}

// String prints the label as the kernel does.
func (l Label) String() string {
	s := strings.Join(l.Profiles, "//&")
	if l.IsUnconfined() || l.Mode == "" {
		return s
	}
	return s + " (" + string(l.Mode) + ")"
}

// IsUnconfined reports whether no profile at all is in force.
func (l Label) IsUnconfined() bool {
	for _, p := range l.Profiles {
		if _, name := splitNamespace(p); name != Unconfined {
			return false
		}
	}
	return len(l.Profiles) > 0
}

// Fit says how a label compares with the profiles a unit may carry.
type Fit int

// From the best to the worst.
const (
	FitExact   Fit = iota // exactly one allowed profile
	FitStacked            // one allowed profile stacked with unconfined: confined by it all the same
	FitOther              // something else
)

// Equal reports whether two labels say the same.
func (l Label) Equal(m Label) bool {
	return l.Mode == m.Mode && slices.Equal(l.Profiles, m.Profiles)
}

// Fits compares the label with a profile, its children and hats, and further
// allowed profiles. Every member of a stack restricts the task, so a stack of
// one allowed profile and "unconfined" is as tight as the profile; a stack
// with a profile nobody declared is not what was asked for, however tight. A
// member in another policy namespace never fits; the kernel prints the
// namespace at the first of its members only, so that one speaks for the rest.
func (l Label) Fits(profile string, allowed []string) Fit {
	stacked, found := false, false
	for _, p := range l.Profiles {
		switch {
		case p == Unconfined:
			stacked = true
		case covers(profile, p) || slices.ContainsFunc(allowed, func(a string) bool { return covers(a, p) }):
			found = true
		default:
			return FitOther
		}
	}
	switch {
	case !found:
		return FitOther
	case stacked:
		return FitStacked
	}
	return FitExact
}

// covers reports whether p is the profile itself or one of its children or hats.
func covers(profile, p string) bool {
	return profile != "" && (p == profile || strings.HasPrefix(p, profile+"//"))
}
