package attach

import (
	"slices"
	"strings"
)

// Sums are files by their paths and the SHA-256 of their texts, in order of the
// paths. A unit has one file, seldom more, and there may be very many units: as a map
// each would take ten times the room. Nothing in it is ever changed; With and Without
// give another one.
type Sums []FileSum

// FileSum is one file.
type FileSum struct{ Path, Sum string }

// SumsOf are the files of a map from paths to sums.
func SumsOf(m map[string]string) (s Sums) {
	for _, path := range sortedKeys(m) {
		s = append(s, FileSum{path, m[path]})
	}
	return s
}

func (s Sums) find(path string) (int, bool) {
	return slices.BinarySearchFunc(s, path, func(f FileSum, path string) int { return strings.Compare(f.Path, path) })
}

// Of gives the sum of a file, "" where it is not among them.
func (s Sums) Of(path string) string {
	if i, has := s.find(path); has {
		return s[i].Sum
	}
	return ""
}

// Has reports whether a file is among them.
func (s Sums) Has(path string) bool {
	_, has := s.find(path)
	return has
}

// With is s with this sum of a file.
func (s Sums) With(path, sum string) Sums {
	i, has := s.find(path)
	out := make(Sums, 0, len(s)+1)
	out = append(append(out, s[:i]...), FileSum{path, sum})
	if has {
		i++
	}
	return append(out, s[i:]...)
}

// Without is s without a file, nil where none is left.
func (s Sums) Without(path string) Sums {
	i, has := s.find(path)
	switch {
	case !has:
		return s
	case len(s) == 1:
		return nil
	}
	return slices.Concat(s[:i], s[i+1:])
}

// Paths lists the files, in order.
func (s Sums) Paths() []string {
	out := make([]string, len(s))
	for i, f := range s {
		out[i] = f.Path
	}
	return out
}

// Map gives the sums by path.
func (s Sums) Map() map[string]string {
	m := make(map[string]string, len(s))
	for _, f := range s {
		m[f.Path] = f.Sum
	}
	return m
}
