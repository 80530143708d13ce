package policydb

// How permissions lie in the accept tables where there is no table of
// permissions (security/apparmor/policy_compat.c of Linux 6.4 and later;
// file.c, lib.c and include/file.h before). What the kernel computes out of them
// is the same in all versions but for two bits: see filePerms and policyPerms.
//
// accept: 14 bits for the owner, 14 for others, then bits for all. Of the 14:
// r w x a link lock mmap in the low 7, what becomes of an exec in the others.
// accept2: audit and quiet, of 7 bits each, for the owner, then for others.
const (
	packedLow    = 0x7f
	packedOther  = 14
	packedOnExec = 1 << 30
	packedChange = 1 << 31

	packedLink = 0x10
	packedLock = 0x20
	packedMmap = 0x40

	packedCont = 1 << 28 // AA_COMPAT_CONT_MATCH of parser/perms.h
)

// What an xindex consists of in the kernel (security/apparmor/include/file.h
// since 6.4).
const (
	xIndexMask  = 0xffffff
	xTypeMask   = 0x0c000000
	xName       = 0x04000000
	xTable      = 0x08000000
	xUnsafe     = 0x10000000
	xChild      = 0x20000000
	xInherit    = 0x40000000
	xUnconfined = 0x80000000
)

// widenFile maps the seven bits of a file rule to the kernel's (map_old_perms).
// "w" stands for everything that changes a file; "r" for looking at it.
func widenFile(old uint32) Perm {
	p := Perm(old & 0xf)
	if p&Read != 0 {
		p |= GetAttr | Open
	}
	if p&Write != 0 {
		p |= SetAttr | Create | Delete | Chmod | Chown | Open
	}
	if old&packedLink != 0 {
		p |= Link
	}
	if old&packedLock != 0 {
		p |= Lock
	}
	if old&packedMmap != 0 {
		p |= Mmap
	}
	return p
}

// widenXIndex maps the exec bits of a file rule to an xindex (dfa_map_xindex).
func widenXIndex(old uint32) uint32 {
	var x uint32
	if old&0x100 != 0 {
		x |= xUnsafe
	}
	if old&0x200 != 0 {
		x |= xInherit
	}
	if old&0x80 != 0 {
		x |= xUnconfined
	}
	switch n := old >> 10 & 0xf; n {
	case 0:
	case 1:
		x |= xUnconfined
	case 2:
		x |= xName
	case 3:
		x |= xName | xChild
	default:
		x |= xTable | (n - 4)
	}
	return x
}

// filePerms is what the accept tables of a file automaton say for the owner or
// for others (compute_fperms_user, compute_fperms_other).
func filePerms(accept, accept2 uint32, who Who) Perms {
	shift := 0
	if who == Other {
		shift = packedOther
	}
	p := Perms{
		Allow:  widenFile(accept >> shift & packedLow),
		Audit:  widenFile(accept2 >> shift & packedLow),
		Quiet:  widenFile(accept2 >> (shift + 7) & packedLow),
		xindex: widenXIndex(accept >> shift & 0x3fff),
	}
	// Whoever can name a file may look at its attributes.
	p.Allow |= GetAttr
	if accept&packedChange != 0 {
		p.Allow |= ChangeProfile
	}
	if accept&packedOnExec != 0 {
		p.Allow |= OnExec
	}
	return p
}

// policyPerms is what the accept tables of the other automaton say
// (compute_perms_entry). The bits that the owner's half has no room for lie in
// the other half (map_other).
//
// Linux 6.4 and later add AA_MAY_LOCK to Allow, whatever the rules say, so that
// locks on sockets do not break; that is no permission of a rule, and is left
// out here.
func policyPerms(accept, accept2 uint32) Perms {
	p := Perms{
		Allow: Perm(accept&packedLow) | widenOther(accept>>packedOther&packedLow),
		Audit: Perm(accept2&packedLow) | widenOther(accept2>>packedOther&packedLow),
		Quiet: Perm(accept2>>7&packedLow) | widenOther(accept2>>(packedOther+7)&packedLow),
	}
	if accept&packedChange != 0 {
		p.Allow |= ChangeHat // the same bit, kept where the kernel keeps it
	}
	if accept&packedCont != 0 {
		p.Allow |= contMatch
	}
	return p
}

func widenOther(x uint32) Perm {
	return Perm(x&0x3)<<8 | // setattr, getattr
		Perm(x&0x1c)<<18 | // accept, bind, listen
		Perm(x&0x60)<<19 // setopt, getopt
}

// ExecKind is what an exec does to the profile.
type ExecKind int

const (
	// ExecNone means that there is no transition: the exec fails.
	ExecNone ExecKind = iota
	// ExecInherit ("ix") keeps the profile.
	ExecInherit
	// ExecProfile ("px") looks for the profile that attaches to the program.
	ExecProfile
	// ExecChild ("cx") looks among the profile's children.
	ExecChild
	// ExecNamed ("px -> name", "cx -> name") goes to Target.
	ExecNamed
	// ExecUnconfined ("ux") takes the profile off.
	ExecUnconfined
)

// Transition is what becomes of the profile when a program is executed
// (x_to_label and profile_transition in security/apparmor/domain.c).
type Transition struct {
	Kind ExecKind
	// Target is the profile that a named transition leads to, as the policy
	// names it: "name", ":namespace:name", "&name" for one that is stacked.
	Target string
	// Child says that Target is looked up among the profile's children.
	Child bool
	// Clean says that the environment is cleaned (AT_SECURE): the capital "P",
	// "C" and "U" of rules. The kernel does not do so for "ix".
	Clean bool
	// What happens when there is no such profile: "pix" inherits, "pux" takes
	// the profile off. Without either the exec fails.
	OrInherit, OrUnconfined bool
}

// MayUnconfine says whether the exec can end without a profile.
func (t Transition) MayUnconfine() bool { return t.Kind == ExecUnconfined || t.OrUnconfined }

// String is the transition as a rule has it: "Pix", "cx -> name".
func (t Transition) String() string {
	var s string
	switch t.Kind {
	case ExecInherit:
		return "ix"
	case ExecProfile:
		s = "p"
	case ExecChild:
		s = "c"
	case ExecNamed:
		if s = "p"; t.Child {
			s = "c"
		}
	case ExecUnconfined:
		s = "u"
	default:
		return "none"
	}
	if t.Clean {
		s = string(s[0] - 'a' + 'A')
	}
	if t.OrInherit {
		s += "i"
	} else if t.OrUnconfined {
		s += "u"
	}
	s += "x"
	if t.Kind == ExecNamed {
		s += " -> " + t.Target
	}
	return s
}

// transition reads an xindex; names is the table it may point into, and was
// verified.
func transition(x uint32, names []string) Transition {
	t := Transition{Clean: x&xUnsafe == 0, Child: x&xChild != 0}
	switch x & xTypeMask {
	case xName:
		if t.Kind = ExecProfile; t.Child {
			t.Kind = ExecChild
		}
	case xTable:
		t.Kind, t.Target = ExecNamed, names[x&xIndexMask]
	default:
		switch {
		case x&xInherit != 0:
			return Transition{Kind: ExecInherit}
		case x&xUnconfined != 0:
			return Transition{Kind: ExecUnconfined, Clean: t.Clean}
		}
		return Transition{}
	}
	// Inheriting is tried first.
	t.OrInherit = x&xInherit != 0
	t.OrUnconfined = x&xUnconfined != 0 && !t.OrInherit
	return t
}
