package reconcile

import (
	"maps"
	"slices"
)

// passUnits is how many units a pass takes on unless they belong together. What a
// pass knows of its units it holds until its end, and whoever asks for something waits
// that long; one parser call and one daemon-reload for so many are cheap enough.
const passUnits = 200

// together chooses those of the units, which are sorted, that the next pass takes on:
// the first after the last pass's that belong together, and more until there are
// passUnits. Units belong together that one attachment names, or whose policy
// comes from the same files as far as that is known: a change of it is checked, loaded
// and taken back for all of them at once.
func (l *Loop) together(units []string) []string {
	if len(units) <= passUnits {
		return units
	}
	l.mu.Lock()
	next, found := slices.BinarySearch(units, l.passed)
	if found {
		next++
	}
	units = slices.Concat(units[next:], units[:next])
	groups := newGroups()
	for _, unit := range units {
		groups.join(l.ties(unit))
	}
	members := map[string][]string{}
	var order []string
	for _, unit := range units {
		g := groups.of(l.ties(unit)[0])
		if members[g] == nil {
			order = append(order, g)
		}
		members[g] = append(members[g], unit)
	}
	l.mu.Unlock()
	var out []string
	for i, g := range order {
		if i > 0 && len(out)+len(members[g]) > passUnits {
			break
		}
		out = append(out, members[g]...)
		l.passed = members[g][0]
	}
	slices.Sort(out)
	return out
}

// ties are what a unit has in common with others that belong to it, and its own name.
// l.mu is held.
func (l *Loop) ties(unit string) []string {
	out := []string{"unit " + unit}
	add := func(kind string, names ...string) {
		for _, n := range names {
			if n != "" {
				out = append(out, kind+n)
			}
		}
	}
	if a, ok := l.targets[unit]; ok {
		add("attachment ", a.Source)
		add("file ", a.ProfileFile)
		add("profile ", a.AllowProfiles...)
		if profile, err := a.ProfileFor(unit); err == nil {
			add("profile ", profile)
		}
	}
	for _, a := range l.rivals[unit] {
		add("attachment ", a.Source)
	}
	if r, ok := l.records[unit]; ok {
		add("attachment ", r.Attachment)
		add("profile ", r.Profile)
		add("profile ", slices.Collect(maps.Keys(r.Accepted))...)
		add("file ", slices.Collect(maps.Keys(r.Policies))...)
	}
	add("file ", l.statusOf(unit).ProfileFile)
	return out
}

// groups are names that belong together (disjoint sets).
type groups struct{ parent map[string]string }

func newGroups() groups { return groups{map[string]string{}} }

// of names the group of a name.
func (g groups) of(name string) string {
	for g.parent[name] != "" {
		if up := g.parent[g.parent[name]]; up != "" {
			g.parent[name] = up // half the way for who comes next
		}
		name = g.parent[name]
	}
	return name
}

// join makes one group of those of the names.
func (g groups) join(names []string) {
	for _, n := range names[1:] {
		if a, b := g.of(names[0]), g.of(n); a != b {
			g.parent[b] = a
		}
	}
}
