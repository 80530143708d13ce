package gate

import (
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// Denies implements reconcile.Gate.
func (g *Gate) Denies(_ context.Context, c attach.Compiled, d attach.Denial) attach.Tri {
	if !d.IsDenial() || !d.ByRules() || d.Namespace != "" {
		return attach.CouldNotTell
	}
	read, err := g.policy(c)
	if err != nil {
		return attach.CouldNotTell
	}
	i := slices.IndexFunc(read.profiles, func(p policydb.Profile) bool { return p.Name == d.Profile })
	if i < 0 {
		return attach.CouldNotTell
	}
	p := &read.profiles[i]
	switch allows(p, d) {
	case policydb.Yes, policydb.NotMediated:
		return attach.No
	case policydb.No:
		if p.Mode != policydb.Complain { // which lets most of it pass
			return attach.Yes
		}
	}
	return attach.CouldNotTell
}

// SameWays implements reconcile.Gate.
func (g *Gate) SameWays(_ context.Context, was, is []attach.Compiled) attach.Tri {
	profiles := func(all []attach.Compiled) (out []policydb.Profile, keys string, err error) {
		for _, c := range all {
			read, err := g.policy(c)
			if err != nil {
				return nil, "", err
			}
			out, keys = append(out, read.profiles...), keys+read.key+"\n"
		}
		return out, keys, nil
	}
	before, from, err := profiles(was)
	if err != nil {
		return attach.CouldNotTell
	}
	now, to, err := profiles(is)
	if err != nil {
		return attach.CouldNotTell
	}
	switch g.ways.get(search{policy: from, question: to}, func() policydb.Answer { return policydb.SameWays(before, now) }) {
	case policydb.Yes:
		return attach.Yes
	case policydb.No:
		return attach.No
	}
	return attach.CouldNotTell
}

// allows says whether a profile allows what a record is about. It is Unknown where the
// record does not say all that the kernel asks: of a mount it lacks options, and of a
// change of profile what the names stand for.
func allows(p *policydb.Profile, d attach.Denial) policydb.Answer {
	mask := cmp.Or(d.Denied, d.Requested)
	switch d.Operation {
	case "capable":
		return p.Capability(slices.Index(capabilities, d.Capability))
	case "signal":
		n, known := policydb.SignalNumber(d.Signal)
		if want := perms(mask, signalAccess); known && want != 0 && plainPeer(d.Peer) {
			return p.Signal(n, d.Peer, want)
		}
		return policydb.Unknown
	case "ptrace":
		if want := perms(mask, ptraceAccess); want != 0 && plainPeer(d.Peer) && p.Mediates(policydb.ClassPtrace) == policydb.Yes {
			return p.Ptrace(d.Peer, want)
		}
		return policydb.Unknown // without rules it is a capability that is asked about
	case "userns_create":
		return p.MayCreateUserns()
	case "umount":
		if !isPath(d.Name) {
			return policydb.Unknown
		}
		return p.MayUmount(d.Name)
	case "pivotroot":
		if !isPath(d.Name) || !isPath(d.Source) {
			return policydb.Unknown
		}
		return p.MayPivotRoot(d.Name, d.Source)
	case "link":
		if !isPath(d.Name) || !isPath(d.Target) {
			return policydb.Unknown
		}
		return byOwner(d, func(as policydb.Who) policydb.Answer { return p.MayLink(d.Name, d.Target, as) })
	case "mount", "setrlimit", "change_profile", "change_onexec", "change_hat", "stack", "stack_onexec":
		return policydb.Unknown
	}
	switch {
	case d.Family != "":
		return allowsSocket(p, d, mask)
	case d.Class == "" || d.Class == "file":
		return allowsFile(p, d, mask)
	}
	return policydb.Unknown
}

// isPath reports whether a name is one that rules can be about.
func isPath(name string) bool { return strings.HasPrefix(name, "/") }

// byOwner asks about the file's owner or others, as the record has it, and about both
// where it does not say.
func byOwner(d attach.Denial, ask func(policydb.Who) policydb.Answer) policydb.Answer {
	owner, other := ask(policydb.Owner), ask(policydb.Other)
	switch {
	case d.HasOwner && d.FSUID == d.OUID:
		return owner
	case d.HasOwner || owner == other:
		return other
	}
	return policydb.Unknown
}

// fileAccess are the letters of records (aa_file_perm_chrs in security/apparmor/lib.c).
var fileAccess = map[rune]policydb.Perm{
	'r': policydb.Read, 'w': policydb.Write, 'a': policydb.Append, 'c': policydb.Create, 'd': policydb.Delete,
	'x': policydb.Exec, 'm': policydb.Mmap, 'k': policydb.Lock, 'l': policydb.Link,
}

func allowsFile(p *policydb.Profile, d attach.Denial, mask string) policydb.Answer {
	var want policydb.Perm
	for _, c := range mask {
		perm, known := fileAccess[c]
		if !known {
			return policydb.Unknown
		}
		want |= perm
	}
	if want == 0 || !isPath(d.Name) {
		return policydb.Unknown
	}
	if d.Operation == "getattr" { // told as r (map_mask_to_chr_mask in security/apparmor/file.c)
		want = policydb.GetAttr
	}
	return byOwner(d, func(as policydb.Who) policydb.Answer {
		a := p.Allows(d.Name, want, as)
		if a == policydb.Yes && want&policydb.Exec != 0 {
			var t policydb.Transition
			t, a = p.Exec(d.Name, as)
			if a == policydb.Yes && t.Kind != policydb.ExecInherit && !t.OrInherit && !t.MayUnconfine() {
				a = policydb.Unknown // it is refused, too, where the other profile is not there
			}
		}
		return a
	})
}

func allowsSocket(p *policydb.Profile, d attach.Denial, mask string) policydb.Answer {
	want := perms(mask, netAccess)
	socktype, known := types[d.SockType]
	i := slices.IndexFunc(families, func(f family) bool { return f.name == d.Family })
	if want == 0 || !known || i < 0 || d.Name != "" { // a unix socket with a path is a file, too
		return policydb.Unknown
	}
	return p.Network(families[i].number, socktype, want)
}

// netAccess are the words of records (net_mask_names in security/apparmor/net.c).
var netAccess = map[string]policydb.Perm{
	"send": policydb.NetSend, "receive": policydb.NetReceive, "create": policydb.NetCreate, "shutdown": policydb.NetShutdown,
	"connect": policydb.NetConnect, "setattr": policydb.NetSetAttr, "getattr": policydb.NetGetAttr, "accept": policydb.NetAccept,
	"bind": policydb.NetBind, "listen": policydb.NetListen, "setopt": policydb.NetSetOpt, "getopt": policydb.NetGetOpt,
}

// perms reads a mask of names; 0 where one is not known.
func perms(mask string, names map[string]policydb.Perm) (all policydb.Perm) {
	for _, name := range strings.FieldsFunc(mask, func(r rune) bool { return r == ' ' || r == ',' }) {
		perm, known := names[name]
		if !known {
			return 0
		}
		all |= perm
	}
	return all
}

// plainPeer reports whether a label is one profile of the host's, or none: of others the
// kernel asks in parts.
func plainPeer(label string) bool {
	return label != "" && label[0] != ':' && !strings.Contains(label, "//&")
}
