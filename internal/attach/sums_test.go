package attach

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
)

// Sums do what a map would, and leave what they were made from as it was.
func TestSums(t *testing.T) {
	paths := []string{"/a", "/b", "/b/c", "/c", "/d"}
	var s Sums
	m := map[string]string{}
	for range 2000 {
		before, was := s, maps.Clone(m)
		path := paths[rand.IntN(len(paths))]
		if rand.IntN(3) == 0 {
			s = s.Without(path)
			delete(m, path)
		} else {
			sum := string(rune('a' + rand.IntN(4)))
			s = s.With(path, sum)
			m[path] = sum
		}
		for sums, is := range map[*Sums]map[string]string{&s: m, &before: was} {
			if !slices.Equal(sums.Paths(), slices.Sorted(maps.Keys(is))) {
				t.Fatalf("%v, want %v", *sums, is)
			}
			for _, p := range paths {
				if _, has := is[p]; sums.Of(p) != is[p] || sums.Has(p) != has {
					t.Fatalf("%s of %v, want %v", p, *sums, is)
				}
			}
		}
		if !maps.Equal(s.Map(), m) || !slices.Equal(SumsOf(m), s) {
			t.Fatalf("%v, want %v", s, m)
		}
	}
}
