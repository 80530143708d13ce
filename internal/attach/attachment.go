package attach

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
	"unicode"
)

// The values of an attachment's settings; each type's first constant is its default.
type (
	// PrivateTmp is what PrivateTmp= shall be at least.
	PrivateTmp string
	// Wish is the mode in which the profile shall run.
	Wish string
	// OnFailedAttach says what becomes of a unit that does not come up confined and healthy.
	OnFailedAttach string
	// OnViolation says what becomes of a running unit that is found not confined.
	OnViolation string
	// OnProfileChange says what becomes of a changed profile text.
	OnProfileChange string
)

// See the attachment file format in aaunit.conf(5).
const (
	PrivateTmpYes          PrivateTmp = "yes"
	PrivateTmpDisconnected PrivateTmp = "disconnected"
	PrivateTmpNo           PrivateTmp = "no"

	WishEnforce  Wish = "enforce"
	WishComplain Wish = "complain"

	FailedUndo OnFailedAttach = "undo"
	FailedStop OnFailedAttach = "stop"
	FailedKeep OnFailedAttach = "keep"

	ViolationReport OnViolation = "report"
	ViolationStop   OnViolation = "stop"

	ChangeLoad   OnProfileChange = "load"
	ChangeReport OnProfileChange = "report"
)

// DefaultSettle is SettleSec= where an attachment does not say.
const DefaultSettle = 5 * time.Second

// MaxSettle bounds SettleSec=: a pass waits that long.
const MaxSettle = 10 * time.Minute

// Attachment is the declared wish "these units run under that profile".
type Attachment struct {
	// Source is the file that declares it; Line is where its section begins. (With 32
	// bits an attachment has 256 bytes, which wastes none, and there may be thousands.)
	Source string `json:"source"`
	Line   int32  `json:"line"`
	// Runtime marks one from /run, which ends with the reboot.
	Runtime bool `json:"runtime,omitempty"`
	// Manual marks one that "aaunitctl attach" wrote.
	Manual bool `json:"manual,omitempty"`

	Units           []string        `json:"units"`   // names and patterns, see Matches
	Profile         string          `json:"profile"` // internal name; specifiers not yet expanded
	ProfileFile     string          `json:"profileFile,omitempty"`
	PrivateTmp      PrivateTmp      `json:"privateTmp"`
	Mode            Wish            `json:"mode"`
	RestartUnit     bool            `json:"restartUnit"`
	OnFailedAttach  OnFailedAttach  `json:"onFailedAttach"`
	OnViolation     OnViolation     `json:"onViolation"`
	OnProfileChange OnProfileChange `json:"onProfileChange"`
	AllowProfiles   []string        `json:"allowProfiles,omitempty"`
	Settle          time.Duration   `json:"settle"` // nanoseconds

	// Assertions are what the policy must pass beside the built-in ones; Waivers
	// take built-in ones back.
	Assertions []Assertion `json:"assertions,omitempty"`
	Waivers    []Waiver    `json:"waivers,omitempty"`

	// SocketOptions is nil where there is no such section. It is never changed in
	// place.
	SocketOptions *SocketOptions `json:"socketOptions,omitempty"`
}

// InTheWay is the error of writing an attachment where a file that declares one
// lies already.
type InTheWay struct{ Text string }

func (e *InTheWay) Error() string { return e.Text }

// NewAttachment gives an attachment with every default in place.
func NewAttachment() Attachment {
	return Attachment{
		PrivateTmp:      PrivateTmpYes,
		Mode:            WishEnforce,
		RestartUnit:     true,
		OnFailedAttach:  FailedUndo,
		OnViolation:     ViolationReport,
		OnProfileChange: ChangeLoad,
		Settle:          DefaultSettle,
	}
}

// Check says everything that is wrong with the attachment as a whole; single
// values are checked by Set.
func (a Attachment) Check() error {
	var errs []error
	if len(a.Units) == 0 {
		errs = append(errs, errors.New("Unit= is missing: name at least one unit"))
	}
	if a.Profile == "" {
		errs = append(errs, errors.New("Profile= is missing: give the internal name of a profile (apparmor_parser -N FILE prints it)"))
	}
	return errors.Join(errs...)
}

// Set takes one KEY=VALUE line of an [Attachment] section. Lists (Unit=,
// AllowProfiles=) grow; an empty value resets to the default.
func (a *Attachment) Set(key, value string) error {
	def := NewAttachment()
	var err error
	switch key {
	case "Unit":
		if value == "" {
			a.Units = nil
			return nil
		}
		for _, u := range strings.Fields(value) {
			if err := CheckUnitPattern(u); err != nil {
				return err
			}
			if !slices.Contains(a.Units, u) {
				a.Units = append(a.Units, u)
			}
		}
	case "Profile":
		if value != "" {
			sample, err := ExpandSpecifiers(value, "a-b@c.service")
			if err != nil {
				return fmt.Errorf("cannot use profile name %q: %w", value, err)
			}
			if err := CheckProfileName(sample); err != nil {
				return fmt.Errorf("cannot use profile name %q: %w", value, err)
			}
		}
		a.Profile = value
	case "ProfileFile":
		if value != "" && (!path.IsAbs(value) || path.Clean(value) != value || strings.ContainsFunc(value, unicode.IsControl)) {
			return fmt.Errorf("cannot use profile file %q: give its absolute path without \".\", \"..\", \"//\" and control characters", value)
		}
		a.ProfileFile = value
	case "AllowProfiles":
		if value == "" {
			a.AllowProfiles = nil
			return nil
		}
		for _, p := range splitNames(value) {
			if err := CheckProfileName(p); err != nil {
				return fmt.Errorf("cannot use profile name %q: %w", p, err)
			}
			if strings.Contains(p, `"`) {
				return fmt.Errorf("cannot use profile name %q: in a list it cannot hold a double quote", p)
			}
			if !slices.Contains(a.AllowProfiles, p) {
				a.AllowProfiles = append(a.AllowProfiles, p)
			}
		}
	case "PrivateTmp":
		a.PrivateTmp, err = oneOf(value, def.PrivateTmp, PrivateTmpYes, PrivateTmpDisconnected, PrivateTmpNo)
	case "Mode":
		a.Mode, err = oneOf(value, def.Mode, WishEnforce, WishComplain)
	case "RestartUnit":
		a.RestartUnit, err = parseBool(value, def.RestartUnit)
	case "OnFailedAttach":
		a.OnFailedAttach, err = oneOf(value, def.OnFailedAttach, FailedUndo, FailedStop, FailedKeep)
	case "OnViolation":
		a.OnViolation, err = oneOf(value, def.OnViolation, ViolationReport, ViolationStop)
	case "OnProfileChange":
		a.OnProfileChange, err = oneOf(value, def.OnProfileChange, ChangeLoad, ChangeReport)
	case "SettleSec":
		settle := def.Settle
		if strings.TrimSpace(value) != "" {
			if settle, err = ParseSettle(value); err != nil {
				return err
			}
		}
		a.Settle = settle
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	return err
}

// splitNames divides a list of profile names at white space; a name that holds
// spaces stands in double quotes.
func splitNames(s string) []string {
	var out []string
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimSpace(s) {
		if s[0] == '"' {
			if end := strings.IndexByte(s[1:], '"'); end >= 0 {
				out, s = append(out, s[1:1+end]), s[2+end:]
				continue
			}
		}
		end := strings.IndexAny(s, " \t")
		if end < 0 {
			end = len(s)
		}
		out, s = append(out, s[:end]), s[end:]
	}
	return out
}

func oneOf[T ~string](value string, def T, allowed ...T) (T, error) {
	if value == "" {
		return def, nil
	}
	if slices.Contains(allowed, T(value)) {
		return T(value), nil
	}
	// systemd's other ways to write a boolean.
	if b, err := parseBool(value, false); err == nil {
		for _, w := range allowed {
			if (b && w == "yes") || (!b && w == "no") {
				return w, nil
			}
		}
	}
	var words []string
	for _, w := range allowed {
		words = append(words, string(w))
	}
	return def, fmt.Errorf("cannot read %q: use one of %s", value, strings.Join(words, ", "))
}

// parseBool reads a boolean as systemd.syntax(7) has it.
func parseBool(value string, def bool) (bool, error) {
	switch strings.ToLower(value) {
	case "":
		return def, nil
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return def, fmt.Errorf("cannot read %q: use yes or no", value)
}

// ParseSettle reads SettleSec=: a time span of at most MaxSettle.
func ParseSettle(value string) (time.Duration, error) {
	span, minus := strings.CutPrefix(strings.TrimSpace(value), "-")
	d, ok := parseSpan(span)
	switch {
	case !ok:
		return 0, fmt.Errorf("cannot read time span %q: write seconds, or a number with ms, s or min", value)
	case minus && d > 0, d > MaxSettle:
		return 0, fmt.Errorf("cannot use time span %q: it must lie between 0 and %v", value, MaxSettle)
	}
	return d, nil
}

// CheckUnitPattern says why a Unit= value is no service name, template, prefix
// or glob of services.
func CheckUnitPattern(u string) error {
	if err := checkUnitName(u, IsGlob(u)); err != nil {
		return fmt.Errorf("cannot use unit %q: %w", u, err)
	}
	if !strings.HasSuffix(u, ".service") {
		return fmt.Errorf("cannot use unit %q: AppArmorProfile= is a setting of services; the name must end with .service", u)
	}
	if _, err := MatchUnit(u, ""); err != nil {
		return fmt.Errorf("cannot use unit %q: it is not a valid pattern", u)
	}
	return nil
}

// UnitGlob is a pattern of units' names, made ready to be matched with many.
type UnitGlob string

// asPath has path.Match read a pattern as systemctl does: a backslash is part of
// the name (unit names hold escapes such as \x2d), and "[!…]" negates.
var asPath = strings.NewReplacer(`\`, `\\`, "[!", "[^")

// NewUnitGlob prepares one.
func NewUnitGlob(pattern string) UnitGlob { return UnitGlob(asPath.Replace(pattern)) }

// Match matches a unit's name.
func (g UnitGlob) Match(unit string) (bool, error) { return path.Match(string(g), unit) }

// MatchUnit matches a unit's name with a pattern as systemctl does.
func MatchUnit(pattern, unit string) (bool, error) { return NewUnitGlob(pattern).Match(unit) }

// IsGlob reports whether s holds characters of a shell pattern.
func IsGlob(s string) bool { return strings.ContainsAny(s, "*?[") }

// IsPrefix reports whether u names a prefix directory of systemd
// (agent-.service is for every agent-*.service), systemd.unit(5). A dash at
// the very beginning, or in an instance's part of the name, makes none.
func IsPrefix(u string) bool {
	stem, ok := strings.CutSuffix(u, "-.service")
	return ok && stem != "" && !IsGlob(u) && !strings.Contains(u, "@")
}

// IsPattern reports whether u is a template's or prefix's name: systemd has a
// drop-in directory for the units to come of either.
func IsPattern(u string) bool { return IsTemplate(u) || IsPrefix(u) }

// UnitsOf is the glob of the units that a template or prefix is for.
func UnitsOf(pattern string) string {
	if IsTemplate(pattern) {
		return strings.Replace(pattern, "@.", "@*.", 1)
	}
	return strings.TrimSuffix(pattern, ".service") + "*.service"
}

// Specificity ranks how closely a Unit= value of an attachment names a unit.
type Specificity int

// From no match to the unit's own name.
const (
	NoMatch Specificity = iota
	MatchGlob
	MatchPrefix
	MatchTemplate
	MatchName
)

// Matches says how closely the attachment names unit (a full name).
func (a Attachment) Matches(unit string) Specificity {
	m, _ := a.closest(unit)
	return m
}

// closest finds the Unit= value that names unit most closely; of two prefixes
// that is the longer one, as in systemd.
func (a Attachment) closest(unit string) (best Specificity, value string) {
	for _, u := range a.Units {
		if m := matchOne(u, unit); m > best || m == MatchPrefix && m == best && len(u) > len(value) {
			best, value = m, u
		}
	}
	return best, value
}

// Closer reports whether a names unit more closely than b does.
func (a Attachment) Closer(b Attachment, unit string) bool {
	m, value := a.closest(unit)
	n, other := b.closest(unit)
	return m > n || m == n && m == MatchPrefix && len(value) > len(other)
}

func matchOne(pattern, unit string) Specificity {
	switch {
	case pattern == unit:
		return MatchName
	case IsTemplate(pattern) && TemplateOf(unit) == pattern:
		return MatchTemplate
	case IsPrefix(pattern) && hasPrefix(unit, strings.TrimSuffix(pattern, ".service")):
		return MatchPrefix
	case IsGlob(pattern):
		if ok, err := MatchUnit(pattern, unit); ok && err == nil {
			return MatchGlob
		}
	}
	return NoMatch
}

// hasPrefix reports whether systemd reads the drop-ins of prefix for unit: what
// stands before "@" or the type must go on after it.
func hasPrefix(unit, prefix string) bool {
	stem, _, _ := strings.Cut(strings.TrimSuffix(unit, path.Ext(unit)), "@")
	return len(stem) > len(prefix) && strings.HasPrefix(stem, prefix)
}

// Select finds the attachment of a unit: the one that names it most closely.
// Two that name it equally closely contradict each other, and which of them
// was meant cannot be told: neither applies, and both are returned.
func Select(all []*Attachment, unit string) (chosen *Attachment, rivals []Attachment) {
	best, length := NoMatch, 0
	for _, a := range all {
		m, value := a.closest(unit)
		switch longer := m == MatchPrefix && len(value) > length; {
		case m == NoMatch || m < best || m == MatchPrefix && m == best && len(value) < length:
		case m > best || longer:
			best, length, chosen, rivals = m, len(value), a, nil
		default:
			rivals = append(rivals, *a)
		}
	}
	if len(rivals) > 0 {
		return nil, append([]Attachment{*chosen}, rivals...)
	}
	return chosen, nil
}

// Selector is Select over the same attachments many times. Most of them name
// their units to the letter, and need not be looked at for any other.
type Selector struct {
	all   []*Attachment
	named map[string][]int
	wider []int // with a pattern among their units
}

// NewSelector prepares one.
func NewSelector(all []*Attachment) Selector {
	s := Selector{all: all, named: map[string][]int{}}
	for i, a := range all {
		if slices.ContainsFunc(a.Units, func(u string) bool { return IsGlob(u) || IsPattern(u) }) {
			s.wider = append(s.wider, i)
			continue
		}
		for k, u := range a.Units {
			if !slices.Contains(a.Units[:k], u) {
				s.named[u] = append(s.named[u], i)
			}
		}
	}
	return s
}

// Select is the function of that name.
func (s Selector) Select(unit string) (chosen *Attachment, rivals []Attachment) {
	which := slices.Concat(s.named[unit], s.wider)
	slices.Sort(which)
	some := make([]*Attachment, 0, len(which))
	for _, i := range which {
		some = append(some, s.all[i])
	}
	return Select(some, unit)
}

// ProfileFor gives the internal name that unit shall run under.
func (a Attachment) ProfileFor(unit string) (string, error) {
	name, err := ExpandSpecifiers(a.Profile, unit)
	if err == nil {
		err = CheckProfileName(name)
	}
	if err != nil {
		return "", fmt.Errorf("cannot use profile name %q for %s: %w", a.Profile, unit, err)
	}
	return name, nil
}
