package gate

import (
	"fmt"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// maxOwned bounds the files of a policy that are looked at for their owners.
const maxOwned = 32

// look finds out what is to be known of files for a question.
func (g *Gate) look(q Question) attach.Facts {
	if g.Facts == nil || q.Unit.ID == "" || !q.Unit.Found() || attach.IsPattern(q.Desired.Unit) {
		return attach.Facts{User: -1}
	}
	var paths []string
	for _, c := range q.Unit.Settings.Exec {
		if c.Path != "" {
			paths = append(paths, c.Path)
		}
	}
	for _, c := range q.Compiled {
		paths = append(paths, g.ownersOnly(c)...)
	}
	slices.Sort(paths)
	return g.Facts(q.Unit, slices.Compact(paths))
}

// ownersOnly are the files that a policy names, without a pattern, in a rule for
// their owner, and allows nobody else all of that. Nil also where the policy cannot
// be read, which is said elsewhere.
func (g *Gate) ownersOnly(c attach.Compiled) []string {
	key := keyOf(c)
	g.mu.Lock()
	known, ok := g.owned[key]
	g.mu.Unlock()
	if ok {
		return known
	}
	read, err := g.policy(c)
	if err != nil {
		return nil
	}
	var paths []string
	for i := range read.profiles {
		for _, path := range named(&read.profiles[i], read.text) {
			if len(paths) < maxOwned && !slices.Contains(paths, path) {
				paths = append(paths, path)
			}
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.owned == nil || len(g.owned) >= maxAnswers {
		g.owned = map[string][]string{}
	}
	g.owned[key] = paths
	return paths
}

// named are such files of one profile.
func named(p *policydb.Profile, t *rules.Text) (paths []string) {
	if t == nil || t.Profile(p.Name) == nil {
		return nil
	}
	for _, r := range t.Profile(p.Name).Rules {
		if r.Class != rules.ClassFile || r.Deny || r.Who != policydb.Owner || r.Doubt != "" || !strings.HasPrefix(r.Path, "/") || strings.ContainsAny(r.Path, `*?[]{}^\"`) {
			continue
		}
		if ownerOnly(p, r.Path) != 0 {
			paths = append(paths, r.Path)
		}
	}
	return paths
}

// ownerOnly is what a profile allows to the owner of a file and to nobody else.
func ownerOnly(p *policydb.Profile, path string) policydb.Perm {
	own, a := p.File(path, policydb.Owner)
	other, b := p.File(path, policydb.Other)
	if a != policydb.Yes || b != policydb.Yes {
		return 0
	}
	const matters = policydb.Read | policydb.Write | policydb.Append | policydb.Exec | policydb.Mmap
	return own.Allow &^ own.Deny &^ (other.Allow &^ other.Deny) & matters
}

// The users that systemd gives to units with DynamicUser= (systemd.exec(5)).
const (
	dynamicFirst = 61184
	dynamicLast  = 65519
)

// owns reports whether a file belongs to the user that the unit's tasks run as.
func (a *asking) owns(f attach.File, p *policydb.Profile) attach.Tri {
	s, user := a.Unit.Settings, a.facts.User
	inOwn := slices.ContainsFunc(s.Directories, func(d attach.Directory) bool {
		return !d.ReadOnly && strings.HasPrefix(f.Path, strings.TrimSuffix(d.Path, "/")+"/")
	})
	const setuid = 7 // CAP_SETUID
	switch {
	case f.Path == "" || f.Owner < 0 || inOwn: // systemd gives its directories to the unit's user
		return attach.CouldNotTell
	case user < 0 && s.DynamicUser && (f.Owner < dynamicFirst || f.Owner > dynamicLast):
		return attach.No
	case user < 0:
		return attach.CouldNotTell
	case f.Owner == user:
		return attach.Yes
	case user == 0 && p.Capability(setuid) != policydb.No:
		return attach.CouldNotTell // it may become another user by itself
	}
	return attach.No
}

// allows asks about one path, as owner only where the unit's tasks own the file.
func (a *asking) allows(p *policydb.Profile, path string, want policydb.Perm) policydb.Answer {
	as := policydb.Either
	for _, f := range a.facts.Files {
		if f.Path == path && a.owns(f, p) == attach.No {
			as = policydb.Other
		}
	}
	return p.Allows(path, want, as)
}

// owners looks for files that a profile allows to their owner only, which is not
// the unit's user.
func (a *asking) owners(p *policydb.Profile) {
	said := map[string]bool{}
	for _, c := range a.policies {
		for _, path := range a.gate.ownersOnly(c) {
			f := a.facts.Files[path]
			lost := ownerOnly(p, f.Path)
			if f.Path == "" || said[f.Path] || lost == 0 || a.owns(f, p) != attach.No {
				continue
			}
			said[f.Path] = true
			a.find(attach.Warning, p, f.Path, files(f.Path, lost, policydb.Owner), attach.Because(attach.MayNotOwn,
				"profile %s allows %s of %s to its owner only, which is user %d, and the unit runs as %s", p.Name, lost, quoted(f.Path), f.Owner, a.runsAs()))
		}
	}
}

// runsAs is the unit's user, in words.
func (a *asking) runsAs() string {
	s := a.Unit.Settings
	switch {
	case s.DynamicUser:
		return "a user of its own (DynamicUser=)"
	case s.User == "":
		return "root"
	}
	return fmt.Sprintf("%s (User=)", s.User)
}
