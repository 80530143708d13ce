package gate

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// closure finds the profiles of the unit: its own, those that the attachment
// allows, their children and hats, and whatever any of these can change to, by an
// exec or by itself, as far as it is in the files that were compiled. It reports
// whether the unit's own is there.
func (a *asking) closure() bool {
	by := map[string]*policydb.Profile{}
	for _, p := range a.all {
		if by[p.Name] == nil {
			by[p.Name] = p
		}
	}
	names := slices.Sorted(maps.Keys(by))
	reach := func(name string) {
		if p := by[name]; p != nil && !slices.Contains(a.asked, p) {
			a.asked = append(a.asked, p)
		}
	}
	reach(a.Desired.Profile)
	for _, name := range a.Desired.Attachment.AllowProfiles {
		reach(name)
	}
	for i := 0; i < len(a.asked); i++ {
		p := a.asked[i]
		for _, name := range names {
			if q := by[name]; !slices.Contains(a.asked, q) && a.leadsTo(p, q) {
				reach(name)
			}
		}
	}
	return by[a.Desired.Profile] != nil
}

// Reach implements reconcile.Gate.
func (g *Gate) Reach(d attach.Desired, compiled []attach.Compiled) (profiles []string, err error) {
	a := &asking{Question: Question{Desired: d, Compiled: compiled}, gate: g}
	if file, err := a.readAll(); err != nil {
		return nil, fmt.Errorf("cannot read the compiled policy of %s: %w", file, err)
	}
	if !a.closure() {
		return nil, fmt.Errorf("the compiled policy has no profile %s", d.Profile)
	}
	for _, p := range a.asked {
		profiles = append(profiles, p.Name)
	}
	return profiles, nil
}

// leadsTo reports whether a task of p can come to run under q.
func (a *asking) leadsTo(p, q *policydb.Profile) bool {
	if strings.HasPrefix(q.Name, p.Name+"//") {
		return true
	}
	for _, target := range p.Names {
		if target = strings.TrimPrefix(target, "&"); q.Name == target || q.Name == p.Name+"//"+target {
			return true
		}
	}
	if p.MayChangeProfile(q.Name) != policydb.No {
		return p.Mode != policydb.Unconfined
	}
	attachment := a.attachesTo(q)
	if attachment == "" || !slices.ContainsFunc(p.Transitions(), byAttachment) {
		return false
	}
	return a.search(p, "attaches "+attachment, func() policydb.Result {
		pattern, err := policydb.ParsePattern(attachment)
		if err != nil {
			return policydb.Result{Why: err}
		}
		return p.Find(policydb.Query{Pattern: pattern, All: policydb.Exec, Objects: policydb.NotDirectories,
			Where: func(_ policydb.Perms, t policydb.Transition) bool { return byAttachment(t) }})
	}).Answer != policydb.No
}

// attachesTo is the pattern of programs that a profile attaches to, "" none. Older
// parsers leave its text out of what they compile.
func (a *asking) attachesTo(p *policydb.Profile) string {
	if p.Attachment != "" {
		return p.Attachment
	}
	for i, c := range a.policies {
		if t := a.read[i].text; t != nil && t.Profile(p.Name) != nil {
			return t.Profile(p.Name).Attachment
		}
		for _, q := range c.Profiles {
			if q.Name == p.Name {
				return q.Attachment
			}
		}
	}
	return ""
}

// byAttachment is a Px without a name: the kernel looks for the profile that
// attaches to the program.
func byAttachment(t policydb.Transition) bool { return t.Kind == policydb.ExecProfile }

// mayCarry reports whether the attachment lets the unit's tasks carry a profile.
func (a *asking) mayCarry(name string) bool {
	return slices.ContainsFunc(a.carried(), func(own string) bool { return name == own || strings.HasPrefix(name, own+"//") })
}

func (a *asking) carried() []string {
	return append([]string{a.Desired.Profile}, a.Desired.Attachment.AllowProfiles...)
}

// attaching are the allowed profiles among which the kernel looks for one that attaches
// to a program: for a Px without a name no children (x_to_label in
// security/apparmor/domain.c).
func (a *asking) attaching() (out policydb.Except) {
	for _, q := range a.asked {
		if a.mayCarry(q.Name) && !strings.Contains(q.Name, "//") {
			out = append(out, q)
		}
	}
	return out
}

// others says to which profiles p leads that the attachment does not allow: a unit
// whose task carries one is not confined, and what is in another file is not asked
// about.
func (a *asking) others(p *policydb.Profile) {
	const next = "if that is meant, name the profile in AllowProfiles= of the attachment; else use ix or Cx"
	for _, t := range p.Transitions() {
		target := strings.TrimPrefix(t.Target, "&")
		named := t.Kind == policydb.ExecNamed && !t.Child && target != attach.Unconfined && !a.mayCarry(target)
		if !named && !byAttachment(t) {
			continue
		}
		question, but := "runs by "+t.String(), policydb.Except(nil)
		if !named {
			// One program of an allowed profile hides none of another.
			if but = a.attaching(); len(but) > 0 {
				question += " none of"
			}
			for _, q := range but {
				question += fmt.Sprintf(" %q", a.about(q, ""))
			}
		}
		r := a.execsBut(p, question, but, func(u policydb.Transition) bool { return u == t })
		if r.Answer == policydb.Unknown {
			a.unknown(p, attach.MayChange, why(r))
		}
		if r.Answer != policydb.Yes {
			continue
		}
		if named {
			a.find(attach.Note, p, r.Witness, execAs(r), attach.Because(attach.MayChange,
				"profile %s runs %s under profile %s, which the attachment does not allow", p.Name, quoted(r.Witness), quoted(target)).WithNext(next))
		} else {
			a.find(attach.Note, p, r.Witness, execAs(r), attach.Because(attach.MayChange,
				"profile %s runs %s under the profile that attaches to it (%s), and the attachment allows none that does", p.Name, quoted(r.Witness), t).WithNext(next))
		}
	}
	// What may become unconfined is told already, by leaves.
	if p.MayChangeProfile(attach.Unconfined) == policydb.Yes {
		return
	}
	but := append(a.carried(), attach.Unconfined)
	r := a.search(p, fmt.Sprintf("changes to none of %q", but), func() policydb.Result {
		pattern, err := policydb.ParseName(otherNames(but))
		if err != nil {
			return policydb.Result{Why: err}
		}
		return p.FindChange(policydb.Query{Pattern: pattern, Any: policydb.ChangeProfile})
	})
	switch r.Answer {
	case policydb.Yes:
		a.find(attach.Note, p, r.Witness, changeTo(r.Witness), attach.Because(attach.MayChange,
			"profile %s may change to profile %s, which the attachment does not allow", p.Name, quoted(r.Witness)).WithNext(next))
	case policydb.Unknown:
		a.unknown(p, attach.MayChange, why(r))
	}
}

// otherNames is a pattern, for policydb.ParseName, of every profile's name but
// these and those of their children and hats: of all that leaves the tree of their
// letters somewhere.
func otherNames(names []string) string {
	type node struct {
		next map[byte]*node
		end  bool
	}
	root := &node{next: map[byte]*node{}}
	for _, name := range names {
		at := root
		for _, c := range []byte(name + "//") {
			if at.next[c] == nil {
				at.next[c] = &node{next: map[byte]*node{}}
			}
			if at = at.next[c]; at.end {
				break
			}
		}
		at.end, at.next = true, nil
	}
	named := func(s string) bool { return slices.Contains(names, s) }
	var out []string
	var walk func(at *node, prefix string)
	walk = func(at *node, prefix string) {
		if at.end {
			return
		}
		if prefix != "" && !named(prefix) {
			out = append(out, escape(prefix))
		}
		var set strings.Builder
		for _, c := range slices.Sorted(maps.Keys(at.next)) {
			if c < '0' || c > '9' && c < 'A' || c > 'Z' && c < 'a' || c > 'z' {
				set.WriteByte('\\')
			}
			set.WriteByte(c)
			walk(at.next[c], prefix+string([]byte{c}))
		}
		out = append(out, escape(prefix)+"[^"+set.String()+"]{,**}")
	}
	walk(root, "")
	return "{" + strings.Join(out, ",") + "}"
}
