package reconcile

import (
	"slices"

	"github.com/aaunit/aaunit/internal/attach"
)

// glob matches as systemctl does, which completes a pattern's type.
type glob [2]attach.UnitGlob

func newGlob(pattern string) glob {
	return glob{attach.NewUnitGlob(pattern), attach.NewUnitGlob(pattern + ".service")}
}

func (g glob) matches(unit string) bool {
	for _, p := range g {
		if ok, err := p.Match(unit); err == nil && ok {
			return true
		}
	}
	return false
}

// selection is which units the names and globs of a call ask for. Anybody may send
// many of them, and such as are slow to match: they are read and matched when it is
// made, while nobody else waits.
type selection struct {
	words []string
	used  []bool
	// by has the words that ask for a unit, by their places.
	by map[string][]int
}

// selectionOf reads the words of a call; none asks for all units. Globs are for those
// of which something is known now, and for others. l.mu is free.
func (l *Loop) selectionOf(words []string, others ...string) *selection {
	s := &selection{words: words, used: make([]bool, len(words)), by: map[string][]int{}}
	names, globs := map[int]string{}, map[int]glob{}
	for i, w := range words {
		if attach.IsGlob(w) {
			globs[i] = newGlob(w)
		} else if name, err := attach.UnitName(w); err == nil {
			names[i] = name
		}
	}
	if len(globs) > 0 {
		units := append(l.everything(), others...)
		slices.Sort(units)
		for _, unit := range slices.Compact(units) {
			for i, g := range globs {
				if g.matches(unit) {
					s.by[unit] = append(s.by[unit], i)
				}
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, name := range names {
		if c, ok := l.alias[name]; ok {
			name = c
		}
		s.by[name] = append(s.by[name], i)
	}
	return s
}

// has reports whether a unit is asked for, and marks by which words.
func (s *selection) has(unit string) bool {
	for _, i := range s.by[unit] {
		s.used[i] = true
	}
	return len(s.words) == 0 || len(s.by[unit]) > 0
}

// missing are the words by which no unit was asked for.
func (s *selection) missing() (words []string) {
	for i, w := range s.words {
		if !s.used[i] {
			words = append(words, w)
		}
	}
	return words
}
