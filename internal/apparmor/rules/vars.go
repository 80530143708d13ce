package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Bounds on what variables may make of a text.
const (
	maxExpanded = 64 << 10
	maxSteps    = 1000
)

// variables are those of one file.
type variables struct {
	sets     map[string][]string
	booleans map[string]truth
}

func newVariables() *variables {
	return &variables{sets: map[string][]string{}, booleans: map[string]truth{}}
}

func (v *variables) assign(t Token) {
	if t.Boolean {
		if _, ok := v.booleans[t.Text]; ok && t.Op == "?=" {
			return
		}
		b := unknown
		if len(t.Values) == 1 {
			switch strings.ToLower(t.Values[0]) {
			case "true":
				b = yes
			case "false":
				b = no
			}
		}
		v.booleans[t.Text] = b
		return
	}
	old, ok := v.sets[t.Text]
	switch {
	case t.Op == "+=":
		v.sets[t.Text] = append(slices.Clone(old), t.Values...)
	case t.Op == "?=" && ok:
	default:
		v.sets[t.Text] = t.Values
	}
}

// expand puts variables in, as they are after everything was read
// (expand_entry_variables in parser/parser_variable.c). Several values become an
// alternation; a slash that would be there twice is left out of each. profile is
// the value of @{profile_name}, "" where there is none.
func (v *variables) expand(text, profile string) (string, error) {
	for range maxSteps {
		at, end := variable(text)
		if at < 0 {
			return text, nil
		}
		name := text[at+2 : end]
		values, ok := v.sets[name]
		if name == "profile_name" && profile != "" {
			values, ok = []string{escapeGlob(profile)}, true
		}
		if !ok || len(values) == 0 {
			return "", fmt.Errorf("the variable @{%s} is not known", name)
		}
		before, after := text[:at], text[end+1:]
		in := values[0]
		if len(values) > 1 {
			parts := make([]string, len(values))
			for i, val := range values {
				if strings.HasSuffix(before, "/") {
					val = strings.TrimLeft(val, "/")
				}
				if strings.HasPrefix(after, "/") {
					val = strings.TrimRight(val, "/")
				}
				parts[i] = val
			}
			in = "{" + strings.Join(parts, ",") + "}"
		}
		text = before + in + after
		if len(text) > maxExpanded {
			return "", errors.New("with its variables it is too long")
		}
	}
	return "", errors.New("its variables have no end")
}

// variable finds the first "@{NAME}" that is not escaped: where it begins, and
// where its "}" is. at is -1 if there is none.
func variable(s string) (at, end int) {
	for i := 0; i+1 < len(s); i++ {
		switch {
		case s[i] == '\\':
			i++
		case s[i] == '@' && s[i+1] == '{':
			j := i + 2
			for j < len(s) && isNameByte(s[j]) {
				j++
			}
			if j > i+2 && j < len(s) && s[j] == '}' {
				return i, j
			}
		}
	}
	return -1, 0
}

// escapeGlob makes a profile's name stand for itself in a pattern.
func escapeGlob(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s):
			b.WriteByte(s[i])
			i++
		case strings.IndexByte("{}[]*?", s[i]) >= 0:
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// truth is the value of a condition.
type truth int

const (
	no truth = iota
	unknown
	yes
)

func (a truth) or(b truth) truth { return max(a, b) }

// condition says whether one holds, by the variables that were set before it:
// "$X", "defined @{X}", "defined $X", and "not" before each. Later parsers know
// more, which is unknown here.
func (v *variables) condition(words []Token) truth {
	not := false
	for len(words) > 0 && words[0].Kind == Word && words[0].Text == "not" {
		not = !not
		words = words[1:]
	}
	out := unknown
	switch {
	case len(words) == 1 && words[0].Kind == Word && strings.HasPrefix(words[0].Text, "$"):
		b, ok := v.booleans[strings.Trim(words[0].Text, "${}")]
		if ok {
			out = b
		}
	case len(words) == 2 && words[0].Kind == Word && words[0].Text == "defined" && words[1].Kind == Word:
		name := strings.Trim(words[1].Text, "@${}")
		var ok bool
		switch {
		case strings.HasPrefix(words[1].Text, "@"):
			_, ok = v.sets[name]
		case strings.HasPrefix(words[1].Text, "$"):
			_, ok = v.booleans[name]
		default:
			return unknown
		}
		if out = no; ok {
			out = yes
		}
	}
	if not {
		return yes - out
	}
	return out
}
