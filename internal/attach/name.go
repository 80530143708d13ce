package attach

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxName bounds a profile's name. The kernel takes "exec NAME" in a write of
// at most one page and cuts the rest off (proc_pid_attr_write).
const maxName = 4000

// CheckProfileName says why a profile's internal name cannot be written into
// AppArmorProfile=, or nil. Spaces and quotes are fine: systemd takes the value
// as it stands (config_parse_exec_apparmor_profile does not unquote). What
// would change its meaning is refused: a leading "-" (ignore a missing
// profile), a leading "&" (stack), a stack, a line break, a trailing backslash
// (continues the line), white space at the ends (systemd strips it). So is what
// makes systemd skip the line with no more than a warning, which would leave
// the unit without a profile: bytes that utf8_is_valid of systemd refuses, the
// noncharacters of Unicode among them.
func CheckProfileName(name string) error {
	switch {
	case name == "":
		return errors.New("it is empty")
	case len(name) > maxName:
		return fmt.Errorf("it is longer than %d bytes", maxName)
	case !utf8.ValidString(name):
		return errors.New("it is not valid UTF-8, which systemd does not accept in a unit file")
	case strings.ContainsFunc(name, unicode.IsControl):
		return errors.New("it holds a control character or line break")
	case strings.ContainsFunc(name, func(r rune) bool { return r >= 0xfdd0 && r <= 0xfdef || r&0xfffe == 0xfffe }):
		return errors.New("it holds a character that is none (a Unicode noncharacter), which systemd does not accept in a unit file")
	case strings.TrimSpace(name) != name:
		return errors.New("it begins or ends with white space, which systemd would strip")
	case name[0] == '-':
		return errors.New(`it begins with "-", which systemd reads as "start unconfined when the profile is missing"`)
	case name[0] == '&':
		return errors.New(`it begins with "&", which asks for a stack and not for the profile`)
	case name[0] == ':':
		return errors.New("it names another policy namespace, where systemd cannot start a unit")
	case strings.HasSuffix(name, `\`):
		return errors.New("it ends with a backslash, which continues the line in a unit file")
	case strings.Contains(name, "//&"):
		return errors.New("it is a stack of profiles, not one profile")
	case name == Unconfined:
		return errors.New(`"unconfined" is the absence of a profile`)
	}
	for _, part := range strings.Split(name, "/") {
		if part == ".." {
			return errors.New(`it holds a ".." path component`)
		}
	}
	return nil
}

// unitSuffixes are systemd's unit types (systemd.unit(5)).
var unitSuffixes = []string{".service", ".socket", ".device", ".mount", ".automount", ".swap",
	".target", ".path", ".timer", ".slice", ".scope"}

// MaxUnitName is how many bytes systemd takes in a unit's name (UNIT_NAME_MAX in its
// unit-name.h, which counts the final zero).
const MaxUnitName = 255

// UnitName completes what a person typed ("myagent") to a unit name
// ("myagent.service"), as systemctl does, and refuses what is none.
func UnitName(s string) (string, error) {
	if s == "" {
		return "", errors.New("cannot read unit name: it is empty")
	}
	if !hasUnitSuffix(s) {
		s += ".service"
	}
	if err := checkUnitName(s, false); err != nil {
		return "", fmt.Errorf("cannot read unit name %q: %w", s, err)
	}
	return s, nil
}

func hasUnitSuffix(s string) bool {
	for _, suf := range unitSuffixes {
		if strings.HasSuffix(s, suf) {
			return true
		}
	}
	return false
}

// checkUnitName applies systemd's rules for unit names (systemd.unit(5)): at
// most 255 characters, of letters, digits and :-_.\@ only. With glob, the
// characters of shell patterns are allowed too.
func checkUnitName(s string, glob bool) error {
	if len(s) > MaxUnitName {
		return fmt.Errorf("it is longer than %d characters", MaxUnitName)
	}
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9',
			strings.ContainsRune(`:-_.\@`, r):
		case glob && strings.ContainsRune("*?[]!^", r):
		default:
			return fmt.Errorf("character %q is not allowed in a unit name", r)
		}
	}
	stem := strings.TrimSuffix(s, path.Ext(s))
	if stem == "" || strings.HasPrefix(stem, "@") || strings.HasPrefix(s, ".") {
		return errors.New("it has no name before its type")
	}
	return nil
}

// IsTemplate reports whether name is a template, such as agent@.service.
func IsTemplate(name string) bool {
	_, inst, ok := strings.Cut(strings.TrimSuffix(name, path.Ext(name)), "@")
	return ok && inst == ""
}

// TemplateOf gives the template of an instance: agent@.service of
// agent@a.service; "" where name is not an instance.
func TemplateOf(name string) string {
	stem, inst, ok := strings.Cut(name, "@")
	ext := path.Ext(name)
	if !ok || strings.TrimSuffix(inst, ext) == "" {
		return ""
	}
	return stem + "@" + ext
}

// EscapeSpecifiers makes a literal name safe as the value of a setting in
// which systemd expands specifiers: every "%" doubled.
func EscapeSpecifiers(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// ExpandSpecifiers does to a Profile= value what systemd does to
// AppArmorProfile= of the given unit, for the specifiers an attachment may use:
// %n full name, %N name without its type, %p prefix, %i instance, %j the last
// part of the prefix, %% a percent sign. systemd.unit(5), "Specifiers".
func ExpandSpecifiers(s, unit string) (string, error) {
	if !strings.Contains(s, "%") {
		return s, nil
	}
	noType := strings.TrimSuffix(unit, path.Ext(unit))
	prefix, instance, _ := strings.Cut(noType, "@")
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", errors.New(`it ends with a single "%"; write "%%" for a percent sign`)
		}
		switch s[i] {
		case '%':
			b.WriteByte('%')
		case 'n':
			b.WriteString(unit)
		case 'N':
			b.WriteString(noType)
		case 'p':
			b.WriteString(prefix)
		case 'i':
			b.WriteString(instance)
		case 'j':
			b.WriteString(prefix[strings.LastIndexByte(prefix, '-')+1:])
		default:
			return "", fmt.Errorf(`"%%%c" is not one of %%n, %%N, %%p, %%i, %%j and %%%%`, s[i])
		}
	}
	return b.String(), nil
}
