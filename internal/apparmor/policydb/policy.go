package policydb

import (
	"encoding/binary"
	"strconv"
	"strings"
)

// The classes that rules belong to: the first byte that the automaton of all but
// file rules is walked with (security/apparmor/include/apparmor.h,
// parser/policydb.h).
const (
	ClassFile        = 2
	ClassCap         = 3
	ClassNetV7       = 4 // Ubuntu's kernels before network rules went upstream
	ClassRlimit      = 5
	ClassMount       = 7
	ClassPtrace      = 9
	ClassSignal      = 10
	ClassNetV8       = 14
	ClassNetV9       = 15
	ClassLabel       = 16
	ClassPosixMqueue = 17
	ClassSysvMqueue  = 18
	ClassModule      = 19
	ClassUserns      = 21
	ClassIOUring     = 22
	ClassNetV9Packet = 30
	ClassDBus        = 32
)

// Mediates says whether the policy looks at accesses of a class at all: a class
// that nothing in the automaton begins with is let through (RULE_MEDIATES). Its
// answers are Yes, NotMediated and Unknown.
func (p *Profile) Mediates(class byte) Answer {
	if class == ClassFile {
		return p.mediatesFiles()
	}
	_, a := p.classState(class)
	return a
}

// classState is the state after the class's byte.
func (p *Profile) classState(class byte) (uint32, Answer) {
	if !p.understood() {
		return stateDead, Unknown
	}
	// Such profiles exist for user namespaces (profile_unconfined in
	// security/apparmor/policy_ns.c and task.c): everything else is let through.
	if p.Mode == Unconfined && class != ClassUserns && class != ClassIOUring {
		return stateDead, NotMediated
	}
	if p.policy == nil {
		return stateDead, NotMediated
	}
	if s := p.policy.dfa.step(p.policy.start, class); s != stateDead {
		return s, Yes
	}
	return stateDead, NotMediated
}

// Lookup is what the policy grants after a class's byte and data, in any class
// but that of files. What the data of a class is, the kernel's and the parser's
// sources say; the other methods of Profile know it for most.
func (p *Profile) Lookup(class byte, data []byte) (Perms, Answer) {
	s, a := p.classState(class)
	if a != Yes {
		return Perms{}, a
	}
	return *p.policy.at(p.policy.dfa.walkBytes(s, data), Other), Yes
}

// grantedFrom is all that some state that s leads to, itself included, may
// grant.
func (d *database) grantedFrom(s uint32) (all Perm) {
	seen := make([]bool, len(d.index))
	seen[s] = true
	for todo := []uint32{s}; len(todo) > 0; {
		s := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		at := d.at(s, Other)
		all |= at.Allow | at.Prompt | at.Complain | at.Cond
		for _, k := range d.dfa.classes {
			if to := d.dfa.stepClass(s, uint32(k)); to != stateDead && !seen[to] {
				seen[to] = true
				todo = append(todo, to)
			}
		}
	}
	return all
}

// Network says whether all of want is allowed on sockets of that family and type
// (aa_profile_af_perm), both by the kernel's number. AllNet is what "network
// family type," grants. Rules on addresses, ports and labels, which newer
// policy has, make the answer Unknown: some sockets may.
func (p *Profile) Network(family, socktype uint16, want Perm) Answer {
	all, some, a := p.sockets(family, socktype)
	switch {
	case a != Yes:
		return a
	case want&^all == 0:
		return Yes
	case want&^(all|some) != 0:
		return No
	}
	return Unknown
}

// SomeNetwork says whether some of want is allowed on sockets of that family and type,
// both by the kernel's number. No is a proof.
func (p *Profile) SomeNetwork(family, socktype uint16, want Perm) Answer {
	all, some, a := p.sockets(family, socktype)
	switch {
	case a != Yes:
		return a
	case want&all != 0:
		return Yes
	case want&some != 0:
		return Unknown
	}
	return No
}

// sockets is what all sockets of a family and type are granted, and what some
// may be.
func (p *Profile) sockets(family, socktype uint16) (all, some Perm, a Answer) {
	if p.NetFamily != nil {
		// The table of AppArmor 2, which knows no permissions.
		switch {
		case !p.understood() || socktype >= 16:
			return 0, 0, Unknown
		case p.Mode == Unconfined:
			return 0, 0, NotMediated
		case int(family) < len(p.NetFamily) && p.NetFamily[family].Allow&(1<<socktype) != 0:
			return AllNet, 0, Yes
		}
		return 0, 0, Yes
	}
	var data [4]byte
	binary.BigEndian.PutUint16(data[:], family)
	binary.BigEndian.PutUint16(data[2:], socktype)
	if some, fine := p.unix(data[:]); fine {
		return 0, some, Yes
	}
	// A kernel that knows version 9 takes that where the policy has it.
	for _, class := range [...]byte{ClassNetV9, ClassNetV8} {
		s, a := p.classState(class)
		switch a {
		case Unknown:
			return 0, 0, Unknown
		case Yes:
			s = p.policy.dfa.walkBytes(s, data[:])
			at := p.policy.at(s, Other)
			all, some = at.Allow&^at.Deny, at.Prompt|at.Complain|at.Cond
			// Only without enough here does the kernel go on, and only where
			// the policy says that there is more (early_match).
			if at.Allow&contMatch != 0 {
				some |= p.policy.grantedFrom(s)
			}
			return all, some, Yes
		}
	}
	if p.Mediates(ClassNetV7) == Yes {
		return 0, 0, Unknown // only kernels that are not supported take this
	}
	return 0, 0, NotMediated
}

// unix is what some sockets of AF_UNIX may be granted where rules are on
// addresses and labels, and the kernel never asks about the type alone: version
// 9, and versions 7 and 8 of Ubuntu's kernels (security/apparmor/af_unix.c).
// fine is false where they are not.
func (p *Profile) unix(data []byte) (some Perm, fine bool) {
	if data[0] != 0 || data[1] != 1 { // AF_UNIX
		return 0, false
	}
	for _, class := range [...]byte{ClassNetV9, ClassNetV8, ClassNetV7} {
		s, a := p.classState(class)
		if a != Yes {
			continue
		}
		family := p.policy.dfa.walkBytes(s, data[:2])
		s = p.policy.dfa.walkBytes(family, data[2:])
		if class == ClassNetV8 && !p.policy.dfa.live(s) || family == stateDead {
			continue
		}
		fine = true
		some |= p.policy.grantedFrom(s)
	}
	return some, fine
}

// UnixPaths says whether a rule on the path of a unix socket counts when a task
// connects or sends to that socket: where the policy mediates unix sockets by their
// addresses, and the kernel for which it was compiled does (profile_peer_perm in
// security/apparmor/af_unix.c of Linux 6.17 and of Ubuntu's kernels; the parser leaves
// out what the kernel, or the policy's ABI, does not have). No is such a kernel or
// policy; NotMediated one that looks at no socket at all.
func (p *Profile) UnixPaths() Answer {
	if !p.understood() {
		return Unknown
	}
	if _, fine := p.unix([]byte{0, 1, 0, 1}); fine {
		return Yes
	}
	if _, _, a := p.sockets(1, 1); a != Yes {
		return a
	}
	return No
}

// NetworkGrant is what the policy grants to sockets of a family and type.
type NetworkGrant struct {
	Family, Type uint16
	Allow        Perm
}

// Numbers of families and types end here (AF_MAX, SOCK_MAX in the kernel).
const (
	maxFamily = 46
	maxType   = 11
)

// NetworkGrants lists the families and types of which some permission is
// granted, in order. A NetworkGrant's permissions are those of every such
// socket. Unknown comes with what is known: some sockets may be granted more.
func (p *Profile) NetworkGrants() ([]NetworkGrant, Answer) {
	var out []NetworkGrant
	answer := Yes
	for f := range uint16(maxFamily) {
		for t := range uint16(maxType) {
			all, some, a := p.sockets(f, t)
			if a != Yes {
				return nil, a
			}
			if g := (NetworkGrant{f, t, all & AllNet}); g.Allow != 0 {
				out = append(out, g)
			}
			if some&^all&AllNet != 0 {
				answer = Unknown
			}
		}
	}
	return out, answer
}

// typesOf gives the types of socket that a family can have. Of unix the kernel makes
// four (unix_create in net/unix/af_unix.c): a rule without a type grants the other
// numbers too, and "deny network unix" takes none of them back. Other families may take
// any number: some do not look at it (pppoe_create in drivers/net/ppp/pppoe.c).
func typesOf(family uint16) []uint16 {
	const unix = 1
	const stream, dgram, raw, seqpacket = 1, 2, 3, 5
	if family == unix {
		return []uint16{stream, dgram, raw, seqpacket}
	}
	return allTypes
}

var allTypes = []uint16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10} // below maxType

// AnyNetwork says whether some of want is allowed on some type of socket of a
// family, and which type that is. No is a proof.
func (p *Profile) AnyNetwork(family uint16, want Perm) (socktype uint16, a Answer) {
	a = No
	for _, t := range typesOf(family) {
		all, some, got := p.sockets(family, t)
		switch {
		case got != Yes:
			return 0, got
		case want&all != 0:
			return t, Yes
		case want&some != 0 && a == No:
			socktype, a = t, Unknown
		}
	}
	return socktype, a
}

// Capability says whether a capability, by its number, is allowed. It is never
// NotMediated: the kernel asks about every one (profile_capable). It gives none
// that the task does not have.
func (p *Profile) Capability(n int) Answer {
	switch {
	case !p.understood() || n < 0 || n > 63:
		return Unknown
	case p.Mode == Unconfined:
		return NotMediated
	}
	if s, a := p.classState(ClassCap); a == Yes {
		// 32 of them to a state (security/apparmor/capability.c since 6.17), which
		// only a table of permissions has room for.
		if !p.policy.table {
			return Unknown
		}
		return p.policy.at(p.policy.dfa.step(s, byte(n>>5)), Other).allows(1 << (n & 31))
	}
	if p.Caps.Extended&(1<<n) != 0 {
		return Unknown
	}
	if p.Caps.Allow&(1<<n) != 0 {
		return Yes
	}
	return No
}

// Signal says whether a signal may be sent to, or received from, a task under
// the profile of that name, "unconfined" for one without (profile_signal_perm).
// signal is a number of AppArmor's: see SignalNumber.
func (p *Profile) Signal(signal byte, peer string, want Perm) Answer {
	s, a := p.classState(ClassSignal)
	if a != Yes {
		return a
	}
	return p.label(p.policy.dfa.step(s, signal), peer, want)
}

// Ptrace says whether a task under the profile of that name may be traced or
// read (PtraceTrace, PtraceRead), or may do that (PtraceTracedBy,
// PtraceReadBy).
func (p *Profile) Ptrace(peer string, want Perm) Answer {
	if a := p.Mediates(ClassPtrace); a != Yes {
		// Without rules it is the capability sys_ptrace that is asked about.
		return a
	}
	s, a := p.classState(ClassLabel)
	if a != Yes {
		return No // aa_profile_match_label looks there
	}
	return p.label(p.policy.dfa.step(s, ClassPtrace), peer, want)
}

func (p *Profile) label(s uint32, peer string, want Perm) Answer {
	return p.policy.at(p.policy.dfa.walk(s, peer), Other).allows(want)
}

// SignalNumber is AppArmor's number of a signal by the name that rules use
// (parser/signal.cc, security/apparmor/include/sig_names.h): "hup", "rtmin+3",
// "exists".
func SignalNumber(name string) (byte, bool) {
	if n, ok := strings.CutPrefix(name, "rtmin+"); ok {
		v, err := strconv.ParseUint(n, 10, 8)
		if err != nil || v > 32 {
			return 0, false
		}
		return byte(128 + v), true
	}
	for i, s := range signals {
		if s == name && s != "" {
			return byte(i), true
		}
	}
	return 0, false
}

// SignalName is the name that rules have for a number of policy's, "" where there is
// none.
func SignalName(n byte) string {
	switch {
	case n >= 128 && n <= 128+32:
		return "rtmin+" + strconv.Itoa(int(n)-128)
	case int(n) < len(signals):
		return signals[n]
	}
	return ""
}

var signals = [...]string{
	1: "hup", "int", "quit", "ill", "trap", "abrt", "bus", "fpe", "kill", "usr1", "segv", "usr2", "pipe", "alrm", "term", "stkflt",
	"chld", "cont", "stop", "stp", "ttin", "ttou", "urg", "xcpu", "xfsz", "vtalrm", "prof", "winch", "io", "pwr", "sys", "emt",
	35: "exists",
}

// DBusMessage is what the bus daemon asks about a message: the bus's type
// ("system"), the well-known or unique name and the label of the other side,
// and what is called.
type DBusMessage struct {
	Bus, Name, Label, Path, Interface, Member string
}

// DBus says whether a message may be sent or received (DBusSend, DBusReceive).
// The bus asks for each of the names that the other side has (bus/apparmor.c of
// dbus).
func (p *Profile) DBus(m DBusMessage, want Perm) Answer {
	return p.fields(ClassDBus, want, m.Bus, m.Name, m.Label, m.Path, m.Interface, m.Member)
}

// DBusOwn says whether a name may be taken on a bus.
func (p *Profile) DBusOwn(bus, name string) Answer {
	return p.fields(ClassDBus, DBusBind, bus, name)
}

// DBusMonitor says whether everything on a bus may be listened to.
func (p *Profile) DBusMonitor(bus string) Answer {
	return p.fields(ClassDBus, DBusEavesdrop, bus)
}

// fields looks up strings that are separated by NULs.
func (p *Profile) fields(class byte, want Perm, fields ...string) Answer {
	s, a := p.classState(class)
	if a != Yes {
		return a
	}
	for i, f := range fields {
		if i > 0 {
			s = p.policy.dfa.step(s, 0)
		}
		s = p.policy.dfa.walk(s, f)
	}
	return p.policy.at(s, Other).allows(want)
}

// Mount is what a mount is asked about (match_mnt in security/apparmor/mount.c).
// What is not given is matched as empty, as the kernel does.
type Mount struct {
	Target  string // where, as the kernel sees it, with a "/" at its end
	Device  string // what
	Type    string // the file system
	Flags   uint32 // MS_… of mount(2)
	Options string // comma-separated; only where the type's are text
}

// Flags of mount(2) that decide what a call does.
const (
	msRemount = 1 << 5
	msBind    = 1 << 12
	msMove    = 1 << 13
	msRec     = 1 << 14
	msSilent  = 1 << 15
	msType    = 0xf << 17                     // unbindable, private, slave, shared
	msIgnored = 1<<22 | 1<<28 | 1<<29 | 1<<30 // the kernel's own
)

// MayMount says whether a mount is allowed. What it does comes from its flags,
// and leaves only some of them to be matched (apparmor_sb_mount and the
// functions that it calls): "ro" says nothing with "bind".
func (p *Profile) MayMount(m Mount) Answer {
	s, a := p.classState(ClassMount)
	if a != Yes {
		return a
	}
	m.Flags &^= msIgnored
	switch {
	case m.Flags&msRemount != 0:
		m.Device, m.Type = "", ""
	case m.Flags&msBind != 0:
		m.Flags &= msRec | msBind
		m.Type, m.Options = "", ""
	case m.Flags&msType != 0:
		m.Flags &= msRec | msSilent | msType
		m.Device, m.Type, m.Options = "", "", ""
	case m.Flags&msMove != 0:
		m.Flags = msMove
		m.Type, m.Options = "", ""
	}
	d := p.policy.dfa
	s = d.step(d.walk(s, m.Target), 0)
	s = d.step(d.walk(s, m.Device), 0)
	s = d.step(d.walk(s, m.Type), 0)
	for i := range 32 {
		if m.Flags&(1<<i) != 0 {
			s = d.step(s, byte(i+1))
		}
	}
	at := p.policy.at(s, Other)
	if a := at.allows(MountMount); a == Yes || m.Options == "" || at.Allow&mountCont == 0 {
		return a
	}
	return p.policy.at(d.walk(d.step(s, 0), m.Options), Other).allows(MountMount)
}

// MayUmount says whether the mount at target may be taken off.
func (p *Profile) MayUmount(target string) Answer {
	return p.fields(ClassMount, MountUmount, target)
}

// MayPivotRoot says whether newRoot may become the root, and the old one go to
// oldRoot.
func (p *Profile) MayPivotRoot(newRoot, oldRoot string) Answer {
	return p.fields(ClassMount, MountPivotRoot, newRoot, oldRoot)
}

// MayCreateUserns says whether user namespaces may be made
// (aa_profile_ns_perm).
func (p *Profile) MayCreateUserns() Answer {
	return p.onClass(ClassUserns, UsernsCreate)
}

// MayPollIOUring says whether an io_uring may have a polling thread of the
// kernel's (IORING_SETUP_SQPOLL).
func (p *Profile) MayPollIOUring() Answer {
	return p.onClass(ClassIOUring, IOUringSQPoll)
}

// MayOverrideIOUring says whether an io_uring may take the credentials of a task
// under the profile of that name.
func (p *Profile) MayOverrideIOUring(label string) Answer {
	return p.fields(ClassIOUring, IOUringOverrideCreds, label)
}

func (p *Profile) onClass(class byte, want Perm) Answer {
	s, a := p.classState(class)
	if a != Yes {
		return a
	}
	return p.policy.at(s, Other).allows(want)
}

// PosixMqueue says whether all of want is allowed on the POSIX message queue of
// that name, "/name", whatever its label. A rule on labels makes a permission
// that is not there Unknown.
func (p *Profile) PosixMqueue(name string, want Perm) Answer {
	s, a := p.classState(ClassPosixMqueue)
	if a != Yes {
		return a
	}
	return p.queue(p.policy.dfa.walk(s, name), want)
}

// queue answers about a message queue before its label is matched.
func (p *Profile) queue(s uint32, want Perm) Answer {
	if a := p.policy.at(s, Other).allows(want); a == Yes {
		return a
	}
	if s == stateDead || want&^p.policy.grantedFrom(s) != 0 {
		return No
	}
	return Unknown
}

// SysvMqueue is PosixMqueue for System V's, by their key.
func (p *Profile) SysvMqueue(key uint32, want Perm) Answer {
	s, a := p.classState(ClassSysvMqueue)
	if a != Yes {
		return a
	}
	var data [4]byte
	binary.BigEndian.PutUint32(data[:], key)
	return p.queue(p.policy.dfa.walkBytes(s, data[:]), want)
}

// Raw is an answer of the kernel's query file, …/apparmor/.access.
type Raw struct {
	Allow, Deny, Audit, Quiet uint32
}

// Query is what the kernel's query file answers about a class and data
// (profile_query_cb, aa_perms_accum_raw and aa_apply_modes_to_perms in
// security/apparmor), so that both can be compared. ok is false where this
// package gives no answer. Two things differ between kernels: 6.4 and later set
// bit 15 (AA_MAY_LOCK) of Allow in every class but files; and in a profile
// without file rules they leave out GetAttr.
func (p *Profile) Query(class byte, data []byte, as Who) (raw Raw, ok bool) {
	const all = 0xffffffff
	unmediated := Raw{Allow: all, Quiet: all}
	if !p.understood() || as == Either {
		return Raw{}, false
	}
	if p.Mode == Unconfined {
		return unmediated, true
	}
	var at Perms
	switch {
	case class == ClassFile && p.file != nil:
		if s := p.file.dfa.walkBytes(p.file.start, data); s != stateDead {
			at = *p.file.at(s, as)
		}
	case class == ClassFile:
		d, ok := p.fileDatabase()
		if !ok || d != nil {
			return Raw{}, false
		}
		if len(data) == 0 {
			return Raw{}, false
		}
	default:
		s, a := p.classState(class)
		if a != Yes {
			return unmediated, a == NotMediated
		}
		if s = p.policy.dfa.walkBytes(s, data); s != stateDead {
			at = *p.policy.at(s, Other)
		}
	}
	if p.Audit {
		at.Audit, at.Quiet = all, 0
	}
	return Raw{
		Allow: uint32(at.Allow &^ at.Deny),
		Deny:  uint32(at.Deny),
		Audit: uint32(at.Audit & at.Allow),
		Quiet: uint32(at.Quiet &^ at.Allow),
	}, true
}
