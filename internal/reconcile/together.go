package reconcile

import (
	"maps"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// DefaultPassUnits is how many units a pass takes on unless they belong together or cannot
// wait. What a pass knows of its units it holds until its end, and whoever asks for
// something waits that long; one parser call and one daemon-reload for so many are
// cheap enough.
const DefaultPassUnits = 200

// together chooses those of the due units, which are sorted, that the next pass takes
// on: all that cannot wait, and l.passUnits others, those first that did not have their
// turn. With each come the due units that belong to it: those that one
// attachment or one drop-in is for, or whose policy comes from the same files, as a
// change of it is checked, loaded and taken back for all of them at once.
func (l *Loop) together(due []string, urgent map[string]bool) []string {
	if len(due) <= l.passUnits {
		l.passed = nil
		return due
	}
	files := l.profileFiles(due)
	gone := l.notLive(due)
	l.mu.Lock()
	sets := newGroups()
	ties := make(map[string]string, len(due)) // one for each unit
	for _, unit := range due {
		all := l.ties(unit, files)
		sets.join(all)
		ties[unit] = all[0]
		if gone[unit] || midway(l.records[unit]) {
			urgent[unit] = true
		}
	}
	l.mu.Unlock()

	type group struct {
		units          []string
		urgent, passed bool
	}
	var groups []*group
	byName := map[string]*group{}
	for _, unit := range due {
		name := sets.of(ties[unit])
		g := byName[name]
		if g == nil {
			g = &group{}
			byName[name], groups = g, append(groups, g)
		}
		g.units = append(g.units, unit)
		g.urgent, g.passed = g.urgent || urgent[unit], g.passed || l.passed[unit]
	}
	turn := func(g *group) int {
		switch {
		case g.urgent:
			return 0
		case !g.passed:
			return 1
		}
		return 2
	}
	slices.SortStableFunc(groups, func(a, b *group) int { return turn(a) - turn(b) })
	if l.passed == nil || !slices.ContainsFunc(groups, func(g *group) bool { return turn(g) == 1 }) {
		l.passed = map[string]bool{} // everybody had a turn
	}
	var out []string
	waited := 0 // units among them that could have
	for _, g := range groups {
		if !g.urgent {
			if waited > 0 && waited+len(g.units) > l.passUnits {
				break
			}
			waited += len(g.units)
		}
		out = append(out, g.units...)
		for _, unit := range g.units {
			l.passed[unit] = true
		}
	}
	slices.Sort(out)
	return out
}

// midway reports whether something was begun for a unit that is not done.
func midway(r attach.Record) bool {
	return r.Attaching || r.Stopped || r.Trial.GoesOn() || r.Former != nil || r.Retaking != "" && r.Proved == "" && r.Hold == nil
}

// notLive are those of the units whose accepted policy the kernel does not have, and
// whose pass would put it back. A profile that it has as another unit's waits for its turn:
// most likely that is the one that counts.
func (l *Loop) notLive(units []string) map[string]bool {
	accepted := map[string]map[string]string{}
	var names []string
	now := time.Now()
	l.mu.Lock()
	for _, unit := range units {
		if r := l.records[unit]; settled(r) && !l.leave[unit] && l.pauseOf(unit, now) == nil {
			accepted[unit] = maps.Clone(r.Accepted)
			names = slices.AppendSeq(names, maps.Keys(r.Accepted))
		}
	}
	l.mu.Unlock()
	slices.Sort(names)
	out := map[string]bool{}
	live, err := l.apparmor.Live(slices.Compact(names))
	if err != nil {
		return out // their passes say it
	}
	amiss := map[string]map[string]bool{} // by profile, what of it and its children and hats
	for _, sums := range accepted {
		for name, sum := range sums {
			if top := attach.TopOf(name); live[name].Checksum != sum {
				if amiss[top] == nil {
					amiss[top] = map[string]bool{}
				}
				amiss[top][name] = true
			}
		}
	}
	if len(amiss) == 0 {
		return out
	}
	l.mu.Lock()
	for _, r := range l.records {
		if !settled(r) {
			continue
		}
		for top := range r.Accepted {
			isLive := amiss[top] != nil
			for name := range amiss[top] {
				isLive = isLive && live[name].Checksum == r.Accepted[name]
			}
			if isLive {
				delete(amiss, top)
			}
		}
	}
	l.mu.Unlock()
	for unit, sums := range accepted {
		for name, sum := range sums {
			if live[name].Checksum != sum && amiss[attach.TopOf(name)] != nil {
				out[unit] = true
			}
		}
	}
	return out
}

// profileFiles finds the files that define the profiles of the units' attachments, by
// name.
func (l *Loop) profileFiles(units []string) map[string][]string {
	out := map[string][]string{}
	l.mu.Lock()
	for _, unit := range units {
		for _, name := range l.profilesOf(unit) {
			out[name] = nil
		}
	}
	l.mu.Unlock()
	find := l.apparmor.ByName // brings what is known up to date
	for name := range out {
		for _, p := range find(name) {
			out[name] = append(out[name], p.File)
		}
		find = l.apparmor.Known
	}
	return out
}

// profilesOf are the names that a unit's attachment has. l.mu is held.
func (l *Loop) profilesOf(unit string) []string {
	a := l.targets[unit]
	if a == nil {
		return nil
	}
	names := slices.Clone(a.AllowProfiles)
	if profile, err := a.ProfileFor(unit); err == nil {
		names = append(names, profile)
	}
	return names
}

// ties are what a unit has in common with others that belong to it, and before it its own
// name. files has the files of profiles. l.mu is held.
func (l *Loop) ties(unit string, files map[string][]string) []string {
	out := []string{"unit " + unit}
	add := func(kind string, names ...string) {
		for _, n := range names {
			if n != "" {
				out = append(out, kind+n)
			}
		}
	}
	if a := l.targets[unit]; a != nil {
		add("attachment ", a.Source)
		add("file ", a.ProfileFile)
		add("drop-in ", attach.DropInPath(a.Placement(unit), a.Runtime))
		for _, name := range l.profilesOf(unit) {
			add("profile ", name)
			add("file ", files[name]...)
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
		add("drop-in ", r.DropIns.Paths()...)
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
