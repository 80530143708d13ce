package policydb

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Mode is a profile's mode. It changes what becomes of a denial; the answers of
// this package are those of the rules, in whatever mode.
type Mode uint32

const (
	Enforce    Mode = iota
	Complain        // denials are logged and let through
	Kill            // denials end the task
	Unconfined      // mediates nothing, but for user namespaces on some kernels
	Prompt          // denials are asked about
)

func (m Mode) String() string {
	if names := []string{"enforce", "complain", "kill", "unconfined", "prompt"}; int(m) < len(names) {
		return names[m]
	}
	return fmt.Sprintf("mode %d", uint32(m))
}

// Profile is one profile of a compiled policy, ready to be asked. It does not
// change, and may be asked from several goroutines.
type Profile struct {
	Name      string // "parent//child" for children and hats
	Namespace string // the policy namespace it asks for, "" none
	ABI       int    // version of the packed form
	Mode      Mode
	Audit     bool // everything is logged
	Hat       bool // can be entered by change_hat
	// Attachment is the text of the pattern of programs it attaches to, where
	// the policy has it; Attaches says whether one program matches.
	Attachment   string
	Xattrs       []string // extended attributes it needs for attaching
	Disconnected string   // what is put before disconnected paths
	PathFlags    PathFlags

	Caps      CapSets
	Rlimits   map[int]uint64 // maximum by the kernel's number (RLIMIT_NOFILE is 7)
	Secmark   int            // number of secmark rules, which are not read
	NetFamily []NetMask      // by family; only for kernels before policy had network rules (AppArmor 2's "network")
	// Names are the targets of named exec transitions.
	Names []string
	// Unread are the names of parts that are not known here. There are none in
	// policy for the kernels that this package was made for; where there is one,
	// every answer is Unknown, for it could change any.
	Unread []string

	xmatch *database
	policy *database
	file   *database
}

// PathFlags are how paths are looked up (flags=(attach_disconnected, …)).
type PathFlags uint32

const (
	AttachDisconnected PathFlags = 0x4
	ChrootRelative     PathFlags = 0x8
	ChrootAttach       PathFlags = 0x10
	MediateDeleted     PathFlags = 0x10000
)

// CapSets are sets of capabilities, by number.
type CapSets struct {
	Allow uint64
	Audit uint64 // logged although allowed
	Quiet uint64 // denied without a word
	// Extended are those that the policy's own class decides about.
	Extended uint64
}

// NetMask is a set of socket types of one family, as bits.
type NetMask struct {
	Allow, Audit, Quiet uint16
}

// database is an automaton with what it grants (struct aa_policydb).
type database struct {
	dfa   *automaton
	start uint32
	perms []Perms
	// index is, by state, where in perms the owner's permissions are, and
	// others'.
	index []permIndex
	// names is the table for named transitions.
	names []string
	// transitions is, by entry of perms, what becomes of an exec.
	transitions []Transition
	// table says that the permissions came from a table.
	table bool
}

type permIndex struct {
	owner, other uint32
}

func (d *database) at(s uint32, who Who) *Perms {
	i := d.index[s]
	if who == Owner {
		return &d.perms[i.owner]
	}
	return &d.perms[i.other]
}

// Parse reads a compiled policy: what apparmor_parser -S prints, a file of its
// cache, or the kernel's raw_data. A malformed one is an error, which names the
// profile where it is known.
func Parse(blob []byte) ([]Profile, error) {
	elements, err := Split(blob)
	if err != nil {
		return nil, err
	}
	if len(elements) == 0 {
		return nil, errors.New("it is not a compiled policy: it has no profile")
	}
	out := make([]Profile, 0, len(elements))
	for _, e := range elements {
		p, err := e.Parse()
		if err != nil {
			return nil, err
		}
		out = append(out, *p)
	}
	return out, nil
}

// Bits of the version (security/apparmor/policy_unpack.c).
const (
	abiMask       = 0x3ff
	forceComplain = 0x800

	oldestABI = 5
	newestABI = 9
)

// Parse reads the rules of one profile.
func (e Element) Parse() (*Profile, error) {
	p := &Profile{Name: e.Name, Namespace: e.Namespace, ABI: int(e.version & abiMask), PathFlags: MediateDeleted}
	err := p.unpack(e)
	if err != nil {
		return nil, fmt.Errorf("cannot read profile %s: %w", printable(e.Name), err)
	}
	return p, nil
}

// printable is a name that can go into a message.
func printable(s string) string {
	if strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) >= 0 {
		return fmt.Sprintf("%q", s)
	}
	return s
}

// unpack reads a profile's structure (unpack_profile). The kernel takes the
// parts in one order; here a part is known by its name, the ones without a name
// by what came before.
func (p *Profile) unpack(e Element) error {
	if p.ABI < oldestABI || p.ABI > newestABI {
		return fmt.Errorf("it is of version %d of the packed form; %d to %d are known", p.ABI, oldestABI, newestABI)
	}
	r := &packed{b: e.body}
	var (
		seen     = map[string]bool{}
		flags    bool
		caps     [4]uint32
		capsSeen int
		xmatch   rawDatabase
		file     rawDatabase
		policy   *rawDatabase
	)
	return r.inStructOf(func() error {
		if _, err := r.str(); err != nil { // the name
			return err
		}
		for r.off < len(r.b) && r.b[r.off] != tagStructEnd {
			at := r.off
			name, err := r.optName()
			if err != nil {
				return err
			}
			if name != "" && !databasePart(name) {
				if seen[name] {
					return r.bad(fmt.Sprintf("%q twice", name))
				}
				seen[name] = true
			}
			db := &file
			if !flags {
				db = &xmatch
			}
			switch {
			case name == "" && r.off < len(r.b) && r.b[r.off] == tagU32 && !flags && xmatch.dfa != nil && !xmatch.length:
				xmatch.length = true
				_, err = r.u32()
			case name == "" && r.off < len(r.b) && r.b[r.off] == tagU32 && flags && capsSeen < len(caps):
				caps[capsSeen], err = r.u32()
				capsSeen++
			case name == "":
				return r.bad("a value without a name")
			case databasePart(name):
				err = db.unpack(r, name)
			case name == "rename":
				_, err = r.str()
			case name == "attach":
				p.Attachment, err = r.str()
			case name == "disconnected":
				p.Disconnected, err = r.str()
			case name == "disconnected_ipc":
				_, err = r.str()
			case name == "kill" || name == "error": // the signal to end with, the error to fail with
				_, err = r.u32()
			case name == "flags":
				flags = true
				err = p.unpackFlags(r, e.version)
			case name == "path_flags":
				var v uint32
				v, err = r.u32()
				p.PathFlags = PathFlags(v)
			case name == "caps64":
				var high [4]uint32
				err = r.inStruct(func() error { return r.u32s(high[:]) })
				p.Caps.Allow |= uint64(high[0]) << 32
				p.Caps.Audit |= uint64(high[1]) << 32
				p.Caps.Quiet |= uint64(high[2]) << 32
			case name == "capsx":
				var ext [2]uint32
				err = r.inStruct(func() error { return r.u32s(ext[:]) })
				p.Caps.Extended = uint64(ext[1])<<32 | uint64(ext[0])
			case name == "identity":
				err = r.inArray(func(int) error { _, err := r.str(); return err })
			case name == "xattrs":
				err = r.inStruct(func() error {
					return r.inArray(func(int) error {
						s, err := r.str()
						p.Xattrs = append(p.Xattrs, s)
						return err
					})
				})
			case name == "rlimits":
				err = p.unpackRlimits(r)
			case name == "secmark", name == "data":
				// Neither changes an answer but those on packets, which are not
				// given here.
				if name == "secmark" {
					p.Secmark++
				}
				err = r.skip(1)
			case name == "net_allowed_af":
				err = r.inArray(func(int) error {
					var m [3]uint16
					for i := range m {
						v, err := r.u16()
						if err != nil {
							return err
						}
						m[i] = v
					}
					p.NetFamily = append(p.NetFamily, NetMask{m[0], m[1], m[2]})
					return nil
				})
			case name == "policydb":
				policy = &rawDatabase{}
				err = r.inStruct(func() error {
					for r.off < len(r.b) && r.b[r.off] != tagStructEnd {
						n, err := r.name()
						if err != nil {
							return err
						}
						if !databasePart(n) {
							p.Unread = append(p.Unread, n)
							err = r.skip(2)
						} else {
							err = policy.unpack(r, n)
						}
						if err != nil {
							return err
						}
					}
					return nil
				})
			default:
				p.Unread = append(p.Unread, name)
				err = r.skip(1)
			}
			if err != nil {
				return err
			}
			if r.off == at {
				return r.bad("nothing that can be read")
			}
		}
		switch {
		case !flags:
			return errors.New("it has no flags")
		case capsSeen != len(caps):
			return errors.New("it has no capabilities")
		case xmatch.dfa != nil && !xmatch.length:
			return errors.New("its attachment has no length")
		case policy != nil && policy.dfa == nil:
			return errors.New("its policy has no automaton")
		}
		p.Caps.Allow |= uint64(caps[0])
		p.Caps.Audit |= uint64(caps[1])
		p.Caps.Quiet |= uint64(caps[2])
		var err error
		if p.xmatch, err = xmatch.build(kindXmatch); err != nil {
			return fmt.Errorf("its attachment: %w", err)
		}
		if policy != nil {
			if p.policy, err = policy.build(kindPolicy); err != nil {
				return fmt.Errorf("its policy: %w", err)
			}
		}
		if p.file, err = file.build(kindFile); err != nil {
			return fmt.Errorf("its file rules: %w", err)
		}
		if p.file != nil {
			p.Names = p.file.names
		}
		return nil
	})
}

// inStructOf is inStruct that also demands that nothing follows.
func (r *packed) inStructOf(read func() error) error {
	if err := r.inStruct(read); err != nil {
		return err
	}
	if r.off != len(r.b) {
		return r.bad("something after the end")
	}
	return nil
}

func (r *packed) u32s(to []uint32) error {
	for i := range to {
		v, err := r.u32()
		if err != nil {
			return err
		}
		to[i] = v
	}
	return nil
}

func (p *Profile) unpackFlags(r *packed, version uint32) error {
	var f [3]uint32
	if err := r.inStruct(func() error { return r.u32s(f[:]) }); err != nil {
		return err
	}
	p.Hat = f[0]&1 != 0
	if p.Mode = Mode(f[1]); p.Mode > Prompt {
		return fmt.Errorf("it is in mode %d, which is not known", f[1])
	}
	if version&forceComplain != 0 {
		p.Mode = Complain
	}
	p.Audit = f[2] != 0
	return nil
}

func (p *Profile) unpackRlimits(r *packed) error {
	return r.inStruct(func() error {
		mask, err := r.u32()
		if err != nil {
			return err
		}
		p.Rlimits = map[int]uint64{}
		return r.inArray(func(i int) error {
			v, err := r.u64()
			// The numbers are those of asm-generic/resource.h, which is what
			// the kernel maps from (aa_map_resource).
			if i < 32 && mask&(1<<i) != 0 {
				p.Rlimits[i] = v
			}
			return err
		})
	})
}

// databasePart says whether a part belongs to an automaton (unpack_pdb).
func databasePart(name string) bool {
	switch name {
	case "perms", "permsv", "aadfa", "start", "dfa_start", "xtable", "tags":
		return true
	}
	return false
}

// rawDatabase is an automaton and its tables before they are put together.
type rawDatabase struct {
	dfa     []byte
	perms   []Perms
	table   bool // there is a table of permissions
	permsv  uint32
	start   uint32 // 0 none
	names   []string
	xtable  bool
	started bool
	length  bool // of an attachment: its length was there
}

func (d *rawDatabase) unpack(r *packed, name string) (err error) {
	twice := func(there bool) error {
		if there {
			return r.bad(fmt.Sprintf("%q twice", name))
		}
		return nil
	}
	switch name {
	case "perms":
		if err = twice(d.table); err != nil {
			return err
		}
		d.table = true
		return r.inStruct(func() error { return d.unpackPerms(r) })
	case "permsv":
		d.permsv, err = r.u32()
	case "aadfa":
		if err = twice(d.dfa != nil); err != nil {
			return err
		}
		d.dfa, err = r.blob()
		if err == nil && len(d.dfa) == 0 {
			d.dfa = nil
		}
	case "start", "dfa_start":
		if err = twice(d.started); err != nil {
			return err
		}
		d.started = true
		d.start, err = r.u32()
	case "xtable":
		if err = twice(d.xtable); err != nil {
			return err
		}
		d.xtable = true
		return r.inStruct(func() error {
			return r.inArray(func(int) error {
				s, err := r.str()
				if err == nil {
					s, err = tableName(s)
				}
				d.names = append(d.names, s)
				return err
			})
		})
	case "tags":
		// Names for what is logged.
		return r.skip(2)
	}
	return err
}

// tableName checks an entry of the table of transitions and puts the ":" back
// that separates a namespace from a name, where the parser writes a NUL
// (unpack_trans_table).
func tableName(s string) (string, error) {
	nuls := strings.Count(s, "\x00")
	switch {
	case s == "":
		// Parser 4 fills the table up with these, for kernels that check it
		// against another one's length.
		return "", nil
	case strings.ContainsRune(" \t\n\v\f\r", rune(s[0])):
		return "", errors.New("a transition to a profile without a name")
	case s[0] == ':' && (len(s) < 2 || s[1] == 0 || nuls > 1), s[0] != ':' && nuls > 0:
		return "", errors.New("a transition to a name that is not one")
	}
	return strings.Replace(s, "\x00", ":", 1), nil
}

// unpackPerms reads a table of permissions (unpack_perms_table).
func (d *rawDatabase) unpackPerms(r *packed) error {
	name, err := r.name()
	if err != nil {
		return err
	}
	version, err := r.u32()
	if err != nil {
		return err
	}
	if name != "version" || version != 1 {
		return fmt.Errorf("a table of permissions of version %d, which is not known", version)
	}
	return r.inArray(func(int) error {
		var f [14]uint32 // the first is reserved
		if err := r.u32s(f[:]); err != nil {
			return err
		}
		p := Perms{
			Allow: Perm(f[1]), Deny: Perm(f[2]), Subtree: Perm(f[3]), Cond: Perm(f[4]), Kill: Perm(f[5]), Complain: Perm(f[6]),
			Prompt: Perm(f[7]), Audit: Perm(f[8]), Quiet: Perm(f[9]), Hide: Perm(f[10]), xindex: f[11],
		}
		// verify_perm refuses these.
		if p.Allow&p.Deny != 0 || p.Subtree&^p.Allow != 0 || p.Cond&(p.Allow|p.Deny) != 0 || p.Kill&p.Allow != 0 ||
			p.Complain&(p.Allow|p.Deny) != 0 || p.Prompt&(p.Allow|p.Deny) != 0 || p.Complain&p.Prompt != 0 || p.Hide&p.Allow != 0 {
			return errors.New("a permission that is both allowed and denied")
		}
		d.perms = append(d.perms, p)
		return nil
	})
}

type databaseKind int

const (
	kindXmatch databaseKind = iota
	kindPolicy
	kindFile
)

// ownerFlag says in the second accept table that a state's permissions are
// followed by those of others (ACCEPT_FLAG_OWNER, since version 3 of the table).
const ownerFlag = 1

// build verifies an automaton and joins each state with what it grants. It
// returns nil where there is no automaton.
func (d *rawDatabase) build(kind databaseKind) (*database, error) {
	if d.dfa == nil {
		if d.table || d.xtable && kind != kindFile {
			return nil, errors.New("permissions without an automaton")
		}
		return nil, nil
	}
	table := d.table && len(d.perms) > 0
	dfa, err := parseDFA(d.dfa, !table || d.permsv > 2)
	if err != nil {
		return nil, err
	}
	if d.table && !table {
		return nil, errors.New("an empty table of permissions")
	}
	out := &database{dfa: dfa, start: stateStart, names: d.names, table: table, index: make([]permIndex, len(dfa.states))}
	if d.started {
		if out.start = d.start; out.start >= uint32(len(dfa.states)) {
			return nil, errors.New("it starts in a state that does not exist")
		}
	}
	if table {
		out.perms = d.perms
		for s, i := range dfa.accept {
			other := i
			// Tables up to version 2 have a pair for every state of a file
			// automaton; later ones where the state says so (aa_lookup_condperms
			// in security/apparmor/file.c).
			if kind == kindFile && (d.permsv <= 2 || dfa.accept2[s]&ownerFlag != 0) {
				other++
			}
			if uint64(other) >= uint64(len(d.perms)) || other < i {
				return nil, fmt.Errorf("state %d has permissions that are not in the table", s)
			}
			out.index[s] = permIndex{i, other}
		}
	} else {
		out.packed(kind)
	}
	dfa.accept, dfa.accept2 = nil, nil
	if kind == kindFile {
		out.transitions = make([]Transition, len(out.perms))
		for i := range out.perms {
			x := out.perms[i].xindex
			if x&xTypeMask == xTable && int(x&xIndexMask) >= len(d.names) || x&xTypeMask == xTypeMask {
				return nil, errors.New("a transition to a profile that is not in the table")
			}
			out.transitions[i] = transition(x, d.names)
		}
	}
	return out, nil
}

// packed takes the permissions out of the accept tables.
func (d *database) packed(kind databaseKind) {
	type key struct {
		accept, accept2 uint32
	}
	known := map[key]permIndex{}
	for s, accept := range d.dfa.accept {
		k := key{accept, d.dfa.accept2[s]}
		at, ok := known[k]
		if !ok {
			at.owner = uint32(len(d.perms))
			switch kind {
			case kindFile:
				at.other = at.owner + 1
				d.perms = append(d.perms, filePerms(k.accept, k.accept2, Owner), filePerms(k.accept, k.accept2, Other))
			case kindPolicy:
				at.other = at.owner
				// In the kernel the dead state grants nothing (compute_perms).
				d.perms = append(d.perms, policyPerms(k.accept, k.accept2))
			default:
				at.other = at.owner
				d.perms = append(d.perms, Perms{Allow: Perm(k.accept & packedLow)})
			}
			known[k] = at
		}
		d.index[s] = at
	}
}

// understood says whether the whole of the profile is.
func (p *Profile) understood() bool { return len(p.Unread) == 0 }

// Parts of a profile that are not mediated are named where a person asks.
func (p *Profile) String() string {
	return fmt.Sprintf("%s (%s)", printable(p.Name), p.Mode)
}

// States are the sizes of the automata of file rules and of the other rules, for
// reports; 0 where there is none.
func (p *Profile) States() (file, policy int) {
	if p.file != nil {
		file = len(p.file.dfa.states)
	}
	if p.policy != nil {
		policy = len(p.policy.dfa.states)
	}
	return file, policy
}

// Transitions are the exec transitions that some path can lead to, in the order
// of their text.
func (p *Profile) Transitions() []Transition {
	if p.file == nil {
		return nil
	}
	used := make([]bool, len(p.file.perms))
	for _, i := range p.file.index {
		used[i.owner], used[i.other] = true, true
	}
	var out []Transition
	for i, t := range p.file.transitions {
		// The pair of a change_profile rule has the exec bit and no transition.
		if used[i] && p.file.perms[i].Allow&Exec != 0 && t.Kind != ExecNone && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	slices.SortFunc(out, func(a, b Transition) int { return strings.Compare(a.String(), b.String()) })
	return out
}

// Attaches says whether the profile attaches to a program by its path. Extended
// attributes that it also needs make the answer Unknown.
func (p *Profile) Attaches(program string) Answer {
	if p.xmatch == nil {
		// Without an attachment the name is one (find_attach).
		if p.Name == program {
			return Yes
		}
		return No
	}
	if p.xmatch.at(p.xmatch.dfa.walk(p.xmatch.start, program), Other).Allow&Exec == 0 {
		return No
	}
	if len(p.Xattrs) > 0 {
		return Unknown
	}
	return Yes
}
