package rules

import (
	"cmp"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// Question is what to look for: what a witness of package policydb was granted.
type Question struct {
	Class Class

	// Path is a file, or the name of a profile for ClassChangeProfile.
	Path string
	// Perm are permissions on a file; a rule counts that grants one of them. With
	// Link, Target is what the link leads to, "" anything.
	Perm   policydb.Perm
	Target string
	// As is whose file it is; 0 is Either.
	As policydb.Who
	// Exec is, for Perm Exec, the transition that was found; nil any.
	Exec *policydb.Transition

	// Capability is the name of one, as rules have it ("sys_admin").
	Capability string
	// Family and Type are a socket's, by the kernel's number.
	Family, Type int

	// Fields are what other classes are asked about: "access" ("send"), and what
	// rules have before "=": "bus", "name", "path", "interface", "member",
	// "peer.name" and "peer.label" of D-Bus; "set" and "peer" of signals; "fstype",
	// "source" and "target" of mounts. What is not there is not compared.
	Fields map[string]string
}

// Grant is a rule that lets through what was asked about.
type Grant struct {
	*Rule
	// May says why that is not certain; "" it is.
	May string
}

// Granting gives the rules of a profile that let through what was asked about,
// and that no "deny" rule takes it from. The most specific comes first: of an
// exec, the one whose transition wins; then the pattern with the most characters
// that stand for themselves. A rule that is only taken for one comes last.
//
// It is empty for a profile that the text does not have.
func (t *Text) Granting(profile string, q Question) []Grant {
	p := t.Profile(profile)
	if p == nil {
		return nil
	}
	var out []Grant
	switch q.Class {
	case ClassFile:
		out = p.files(q)
	default:
		denied := no
		for _, r := range p.Rules {
			if r.Deny && !r.Dropped && r.concerns(q) {
				if m, why := r.matches(q); why == "" {
					denied = denied.or(m)
				}
			}
		}
		if denied == yes {
			return nil
		}
		for _, r := range p.Rules {
			if r.Deny || r.Dropped || !r.concerns(q) {
				continue
			}
			if m, why := r.matches(q); m != no {
				out = append(out, Grant{r, why})
			}
		}
	}
	for _, r := range p.Rules {
		if (r.Class == ClassAll && q.Class != ClassFile || r.Class == ClassUnknown) && !r.Deny && !r.Dropped {
			out = append(out, Grant{r, r.Doubt})
		}
	}
	slices.SortStableFunc(out, func(a, b Grant) int {
		return cmp.Or(
			cmp.Compare(len(a.May), 0)-cmp.Compare(len(b.May), 0),
			b.rank(q)-a.rank(q),
		)
	})
	return out
}

// rank is how specific a rule is.
func (r *Rule) rank(q Question) int {
	n := 0
	if r.pattern != nil {
		n = r.pattern.literal
		if r.pattern.exact && q.Class == ClassFile && q.Perm&policydb.Exec != 0 && r.bits&bitExec != 0 {
			n += 1 << 20
		}
	}
	for _, s := range r.Sockets {
		if s.Family >= 0 {
			n++
		}
		if s.Type >= 0 {
			n++
		}
	}
	return n + len(r.Conds) - len(r.Names)
}

// at says whether a file rule is about a path, and with a link also about its
// target.
func (r *Rule) at(q Question, pair bool) truth {
	one := func(p, target *pattern) truth {
		m := p.matches(q.Path)
		if m == no || !pair || r.Target == "" || r.bits&bitLink == 0 || q.Target == "" {
			return m
		}
		return min(m, target.matches(q.Target))
	}
	m := one(r.pattern, r.target)
	for _, a := range r.aliases {
		m = m.or(one(a.pattern, a.target))
	}
	return m
}

// files gives the file rules that grant what was asked about.
func (p *Profile) files(q Question) []Grant {
	as := q.As
	if as == 0 {
		as = policydb.Either
	}
	type hit struct {
		r     *Rule
		match truth
	}
	var allow []hit
	// What deny rules take, by whose file it is.
	denied := map[policydb.Who]bits{}
	for _, r := range p.Rules {
		if !r.files() || r.Dropped || r.Who&as == 0 {
			continue
		}
		if m := r.at(q, false); m == no {
			continue
		} else if !r.Deny {
			allow = append(allow, hit{r, m})
		} else if m == yes && r.Doubt == "" && r.Priority == "" {
			take := r.bits &^ bitLink
			// A link is denied for a target only (process_dfa_entry in
			// parser/parser_regex.c).
			if r.bits&bitLink != 0 && (r.Target == "" || q.Target != "" && r.at(q, true) == yes) && q.Target != "" {
				take |= bitLink
			}
			for _, who := range []policydb.Who{policydb.Owner, policydb.Other} {
				if r.Who&who != 0 {
					denied[who] |= take
				}
			}
		}
	}
	grants := func(h hit) bool {
		for _, who := range []policydb.Who{policydb.Owner, policydb.Other} {
			if h.r.Who&as&who != 0 && (h.r.bits&^denied[who]).perms()&q.Perm != 0 {
				return h.r.bits&bitLink == 0 || q.Perm&^policydb.Link != 0 || h.r.at(q, true) != no
			}
		}
		return false
	}
	var out []Grant
	exactExec := false
	for _, h := range allow {
		if !grants(h) {
			continue
		}
		if h.r.bits&bitExec != 0 && h.match == yes && h.r.exactAt(q) {
			exactExec = true
		}
		g := Grant{h.r, h.r.Doubt}
		if h.match == unknown && g.May == "" {
			g.May = "its pattern is not understood"
		}
		if h.r.Priority != "" && g.May == "" {
			g.May = "its priority decides"
		}
		out = append(out, g)
	}
	if q.Exec == nil || q.Perm != policydb.Exec {
		return out
	}
	return slices.DeleteFunc(out, func(g Grant) bool {
		return exactExec && !g.exactAt(q) || !g.leadsTo(*q.Exec)
	})
}

// exactAt says whether a rule's pattern for the path has no wildcard: the
// transition of such a rule wins over that of others.
func (r *Rule) exactAt(q Question) bool {
	if r.pattern != nil && r.pattern.exact && r.pattern.matches(q.Path) == yes {
		return true
	}
	for _, a := range r.aliases {
		if a.pattern.exact && a.pattern.matches(q.Path) == yes {
			return true
		}
	}
	return false
}

// leadsTo says whether a rule's transition is that of the compiled policy.
func (r *Rule) leadsTo(t policydb.Transition) bool {
	x := r.Exec
	if x.Kind == policydb.ExecInherit {
		return t.Kind == policydb.ExecInherit
	}
	if x.Clean != t.Clean || x.OrInherit != t.OrInherit || x.OrUnconfined != t.OrUnconfined {
		return false
	}
	if x.Kind != policydb.ExecNamed {
		return x.Kind == t.Kind
	}
	switch t.Kind {
	case policydb.ExecChild:
		// A name that is the path itself, or a child's, is looked up at run time
		// (add_named_transition in parser/parser_policy.c).
		return true
	case policydb.ExecNamed:
		// Namespaces and stacks are written in more than one way.
		return t.Target == x.Target || t.Target == r.Target || strings.ContainsAny(t.Target, ":&") ||
			x.Child && strings.HasSuffix(t.Target, "//"+r.Target) || strings.Contains(x.Target, "@{")
	}
	return false
}

// concerns says whether a rule is of the class that was asked about. A unix rule
// counts as one on sockets: where the kernel cannot tell unix sockets apart, the
// parser makes a network rule of it (downgrade_rule in parser/af_unix.cc).
func (r *Rule) concerns(q Question) bool {
	switch {
	case r.Class == q.Class, r.Class == ClassAll && r.Deny:
		return true
	case r.Class == ClassUnix:
		return q.Class == ClassNetwork && q.Family == unixFamily && !r.Deny
	case r.Class == ClassNetwork:
		return q.Class == ClassUnix
	case r.Class == ClassRemount:
		return q.Class == ClassMount
	}
	return false
}

// matches says whether a rule of any class but files is about what was asked, and
// why that is not certain.
func (r *Rule) matches(q Question) (m truth, why string) {
	switch r.Class {
	case ClassAll:
		return yes, r.Doubt
	case ClassCapability:
		if r.Whole || slices.Contains(r.Names, q.Capability) {
			return yes, r.Doubt
		}
		return no, ""
	case ClassNetwork:
		family, kind := q.Family, q.Type
		if q.Class == ClassUnix {
			family, kind = unixFamily, -1
		}
		for _, s := range r.Sockets {
			// A type without a family is of those that have a name.
			any := s.Family < 0 && (s.Type < 0 || family < len(families) && families[family] != "")
			if (any || s.Family == family) && (s.Type < 0 || kind < 0 || s.Type == kind) {
				return yes, r.Doubt
			}
		}
		return no, ""
	case ClassChangeProfile:
		switch r.pattern.matches(q.Path) {
		case no:
			return no, ""
		case unknown:
			return yes, "its name is not understood"
		}
		return yes, r.Doubt
	}
	if q.Class == ClassNetwork {
		return r.unixType(q.Type)
	}
	why = r.Doubt
	doubt := func(s string) {
		if why == "" {
			why = s
		}
	}
	if r.Class == ClassDBus && !r.dbus(q.Fields["access"]) {
		return no, ""
	}
	if access, ok := q.Fields["access"]; ok && len(r.Access) > 0 && !slices.Contains(r.Access, access) {
		return no, ""
	} else if !ok && len(r.Access) > 0 {
		doubt("it is about some accesses only")
	}
	for _, c := range r.Conds {
		value, ok := q.Fields[c.Key]
		if !ok {
			doubt("it has a condition that was not asked about: " + c.Key)
			continue
		}
		m := no
		for _, p := range c.patterns {
			m = m.or(p.matches(value))
		}
		switch m {
		case no:
			return no, ""
		case unknown:
			doubt("its condition is not understood: " + c.Key)
		}
	}
	return yes, why
}

// dbus says whether a rule's conditions let it be about an access at all: taking a
// name has none on messages, messages have none on it, and listening only one on
// the bus (dbus_rule in parser/dbus.cc).
func (r *Rule) dbus(access string) bool {
	name, message := false, false
	for _, c := range r.Conds {
		switch c.Key {
		case "name":
			name = true
		case "path", "interface", "member", "peer.name", "peer.label":
			message = true
		}
	}
	switch access {
	case "send", "receive":
		return !name
	case "bind":
		return !message
	case "eavesdrop":
		return !name && !message
	}
	return true
}

// unixType says whether a unix rule is about sockets of a type.
func (r *Rule) unixType(kind int) (truth, string) {
	why := r.Doubt
	for _, c := range r.Conds {
		if c.Key != "type" {
			why = "it has conditions on unix sockets"
			continue
		}
		if !slices.ContainsFunc(c.Values, func(v string) bool { n, ok := types[v]; return !ok || n == kind || kind < 0 }) {
			return no, ""
		}
	}
	if len(r.Access) > 0 && why == "" {
		why = "it is about some accesses only"
	}
	return yes, why
}
