package attach

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Proposal is the rule that would have allowed what was denied, for a person to
// judge: whether a service needs something is not in the record.
type Proposal struct {
	// Rule is as it stands in a profile, with its comma: printable ASCII on one
	// line, whatever bytes are in the record. "" means that none is proposed, and
	// Note says why.
	Rule string `json:"rule,omitempty"`
	// Profile is the one that it belongs into.
	Profile string `json:"profile,omitempty"`
	// Note is what to know of the rule before it is used.
	Note string `json:"note,omitempty"`
}

// Rule gives the rule that allows just what was denied, in the syntax of
// apparmor.d(5) that both AppArmor 3.0 and 4.1 read. It is the narrowest one that
// the record speaks of: "owner" where who asked owns the file, no globs but for
// the number of a process. What leads out of the profile (ux, px, change_profile)
// is never proposed.
//
// A rule is proposed where all of the record is understood, and none otherwise: a
// record that was cut, a word of the kernel's that is not known here, or one that
// the parsers do not know. No rule takes back a deny rule.
func (d Denial) Rule() Proposal {
	p := Proposal{Profile: d.Profile}
	// A program that complain mode let start without a rule runs under a profile
	// that the kernel made up (aa_new_learning_profile in
	// security/apparmor/policy.c). Its rules are those of the profile that
	// started it, if it gets to run with ix there.
	learning := false
	if i := strings.Index(p.Profile, "//null-"); i >= 0 && !strings.Contains(p.Profile, "//&") {
		p.Profile, learning = p.Profile[:i], true
	}
	switch {
	case !d.IsDenial() || d.Operation == "":
		p.Note = "it is no denial"
		return p
	case d.Cut:
		p.Note = "the record is not whole"
		return p
	case d.Info != "" && !rulesHelp(d):
		p.Note = "no rule is all that is missing: " + printable(d.Info)
		if strings.Contains(d.Info, "disconnected path") {
			p.Note += "; the profile's flags would have to have attach_disconnected"
		}
		return p
	}
	switch d.Operation {
	case "capable":
		d.capabilityRule(&p)
	case "signal":
		d.signalRule(&p)
	case "ptrace":
		d.ptraceRule(&p)
	case "mount":
		d.mountRule(&p)
	case "umount":
		d.umountRule(&p)
	case "pivotroot":
		d.pivotRule(&p)
	case "setrlimit":
		d.rlimitRule(&p)
	case "link":
		d.linkRule(&p)
	case "change_profile", "change_onexec", "change_hat", "stack", "stack_onexec":
		p.Note = "a rule for it would let tasks leave the profile; whether they may is for a person to say"
	case "userns_create":
		p.Note = "the rule is userns create, where apparmor_parser knows it (4.0)"
	default:
		switch {
		case d.Family != "":
			d.networkRule(&p)
		case d.Class == "" || d.Class == "file":
			d.fileRule(&p)
		}
	}
	switch {
	case p.Rule == "" && p.Note == "":
		p.Note = "the record does not say enough for a rule"
	case learning && p.Rule != "":
		p.Note = join(p.Note, "the program was started without a rule; this one is for a start with ix")
	case strings.Contains(p.Profile, "//&") && p.Rule != "":
		p.Note = join(p.Note, "each profile of the stack needs it")
	}
	if d.ByProfile && p.Rule != "" {
		p.Note = join(p.Note, onlyProfile+": it may be none of the unit's, and then the unit needs no rule")
	}
	return p
}

// maxWhat bounds What: a path can be as long as a screen.
const maxWhat = 1024

// What is the thing that a task was kept from, on one line that is safe to print:
// the path, capability, kind of socket or peer.
func (d Denial) What() string {
	var list []string
	for _, s := range []string{d.Capability, d.Family, d.SockType, d.Signal, d.Rlimit, d.Value, d.FSType} {
		if s != "" {
			list = append(list, s)
		}
	}
	if d.Source != "" {
		list = append(list, quoted(d.Source), "on")
	}
	if d.Name != "" {
		list = append(list, quoted(d.Name))
	}
	if d.Target != "" && d.Target != d.Name {
		list = append(list, "->", quoted(d.Target))
	}
	if d.Peer != "" {
		list = append(list, "peer", quoted(d.Peer))
	}
	what := printable(strings.Join(list, " "))
	if len(what) > maxWhat {
		what = strings.ToValidUTF8(what[:maxWhat], "") + "…"
	}
	return what
}

// Permission is what was asked for and no rule allows.
func (d Denial) Permission() string { return printable(cmp.Or(d.mask(), d.Flags)) }

func join(a, b string) string {
	if a == "" {
		return b
	}
	return a + "; " + b
}

// ByRules reports whether rules alone decided, as far as the record tells.
func (d Denial) ByRules() bool { return !d.Cut && (d.Info == "" || rulesHelp(d)) }

// rulesHelp reports whether the kernel's remark is about rules. What it remarks
// of mounts are the parts of a rule that did not match (security/apparmor/mount.c),
// and of a link that it may not be to this file, or that it would allow more than that
// (profile_path_link in file.c), which a rule that names both files does not ask.
func rulesHelp(d Denial) bool {
	switch d.Operation {
	case "mount", "umount", "pivotroot":
		return strings.HasPrefix(d.Info, "failed ") && strings.HasSuffix(d.Info, " match") || d.Info == "failed perms check"
	case "link":
		return d.Info == "target restricted" || d.Info == "link not subset of target"
	}
	return false
}

func (d Denial) owner() string {
	if d.HasOwner && d.FSUID == d.OUID {
		return "owner "
	}
	return ""
}

// fileRule is for paths. The letters are those of aa_file_perm_chrs in
// security/apparmor/lib.c; to create (c) and to delete (d) is to write.
func (d Denial) fileRule(p *Proposal) {
	path, note, ok := rulePath(d.Name)
	if !ok {
		return
	}
	var r, w, a, k, l, m, x bool
	for _, c := range d.mask() {
		switch c {
		case 'r':
			r = true
		case 'w', 'c', 'd':
			w = true
		case 'a':
			a = true
		case 'k':
			k = true
		case 'l':
			l = true
		case 'm':
			m = true
		case 'x':
			x = true
		default:
			return
		}
	}
	var perms strings.Builder
	for _, f := range []struct {
		is     bool
		letter string
	}{
		{m, "m"}, {r, "r"}, {w, "w"},
		{a && !w, "a"}, // the parser takes one of the two
		{k, "k"}, {l, "l"}, {x, "ix"},
	} {
		if f.is {
			perms.WriteString(f.letter)
		}
	}
	if perms.Len() == 0 {
		return
	}
	p.Rule, p.Note = d.owner()+path+" "+perms.String()+",", note
	if x {
		p.Note = join(p.Note, "with ix the program runs under this profile, and a script needs r as well; px would be right where it has a profile of its own that is loaded")
	}
}

// mask is what no rule allows; where the record does not tell it apart, all that
// was asked for.
func (d Denial) mask() string {
	if d.Denied != "" {
		return d.Denied
	}
	return d.Requested
}

func (d Denial) linkRule(p *Proposal) {
	link, _, ok := rulePath(d.Name)
	target, _, also := rulePath(d.Target)
	if ok && also {
		p.Rule = d.owner() + "link " + link + " -> " + target + ","
	}
}

func (d Denial) capabilityRule(p *Proposal) {
	if slices.Contains(capabilities, d.Capability) {
		p.Rule = "capability " + d.Capability + ","
		if d.Capability == "sys_admin" || d.Capability == "mac_admin" || d.Capability == "mac_override" || d.Capability == "sys_module" {
			p.Note = "it is as good as root; programs often ask for it and do without"
		}
	}
}

func (d Denial) networkRule(p *Proposal) {
	if d.Class != "" && d.Class != "net" && d.Class != "unix" || !slices.Contains(families, d.Family) || !slices.Contains(socketTypes, d.SockType) {
		return
	}
	// The names of permissions are net_mask_names in security/apparmor/net.c.
	// Where sockets of the family have no finer rules the kernel looks at family
	// and type alone, and so does this rule.
	if d.Family != "unix" || d.Peer == "" {
		p.Rule = "network " + d.Family + " " + d.SockType + ","
		return
	}
	perms := words(d.mask(), map[string]bool{"send": true, "receive": true, "connect": true, "accept": true})
	peer, ok := ruleLabel(d.Peer)
	if ok && len(perms) > 0 {
		p.Rule = "unix (" + strings.Join(perms, ", ") + ") type=" + d.SockType + " peer=(label=" + peer + "),"
	}
}

// words splits a mask of names; nil if there is one that is not known, or twice.
func words(mask string, known map[string]bool) []string {
	list := strings.FieldsFunc(mask, func(r rune) bool { return r == ' ' || r == ',' })
	for i, w := range list {
		if !known[w] || slices.Contains(list[:i], w) {
			return nil
		}
	}
	return list
}

func (d Denial) signalRule(p *Proposal) {
	perms := words(d.mask(), map[string]bool{"send": true, "receive": true})
	peer, ok := ruleLabel(d.Peer)
	if len(perms) == 0 || !ok || !knownSignal(d.Signal) {
		return
	}
	p.Rule = "signal (" + strings.Join(perms, ", ") + ") set=(" + d.Signal + ") peer=" + peer + ","
}

func knownSignal(s string) bool {
	if n, ok := strings.CutPrefix(s, "rtmin+"); ok {
		i, err := strconv.ParseUint(n, 10, 8)
		return err == nil && i <= 32 && n == strconv.FormatUint(i, 10)
	}
	return slices.Contains(signals, s)
}

func (d Denial) ptraceRule(p *Proposal) {
	perms := words(d.mask(), map[string]bool{"read": true, "trace": true, "readby": true, "tracedby": true})
	peer, ok := ruleLabel(d.Peer)
	if len(perms) > 0 && ok {
		p.Rule = "ptrace (" + strings.Join(perms, ", ") + ") peer=" + peer + ","
	}
}

// mountRule: options=(…) fits just these flags. How the kernel spells them is in
// audit_mnt_flags of security/apparmor/mount.c.
func (d Denial) mountRule(p *Proposal) {
	at, _, ok := rulePath(d.Name)
	if !ok {
		return
	}
	known := map[string]bool{}
	for _, f := range mountFlags {
		known[f] = true
	}
	kinds, propagates := 0, false
	for _, f := range mountKinds {
		known[f] = true
	}
	flags := words(d.Flags, known)
	for _, f := range flags {
		if slices.Contains(mountKinds, f) {
			kinds++
			propagates = propagates || f != "bind" && f != "rbind" && f != "move"
		}
	}
	remounts := slices.Contains(flags, "remount")
	source := ""
	switch {
	case len(flags) == 0 || kinds > 1 || propagates && (remounts || d.Source != "" || d.FSType != ""):
		return
	case d.Source != "":
		if source, ok = ruleText(d.Source); !ok {
			return
		}
		source += " "
	case kinds == 1 && !propagates && !remounts:
		return // of what?
	}
	rule := "mount "
	if d.FSType != "" {
		if !plainWord(d.FSType) {
			return
		}
		rule += "fstype=" + d.FSType + " "
	}
	p.Rule = rule + "options=(" + strings.Join(flags, ", ") + ") " + source + "-> " + at + ","
}

func (d Denial) umountRule(p *Proposal) {
	if at, _, ok := rulePath(d.Name); ok {
		p.Rule = "umount " + at + ","
	}
}

func (d Denial) pivotRule(p *Proposal) {
	root, _, ok := rulePath(d.Name)
	old, _, also := rulePath(d.Source)
	if ok && also {
		p.Rule = "pivot_root oldroot=" + old + " " + root + ","
	}
}

// rlimitRule: a limit is refused only where the profile has a rule for it, or
// where it is another task's.
func (d Denial) rlimitRule(p *Proposal) {
	if !slices.Contains(rlimits, d.Rlimit) {
		return
	}
	n, err := strconv.ParseUint(d.Value, 10, 64)
	if err != nil {
		return
	}
	value := strconv.FormatUint(n, 10)
	if n == 1<<64-1 { // RLIM_INFINITY
		value = "infinity"
	}
	p.Rule = "set rlimit " + d.Rlimit + " <= " + value + ","
	p.Note = "in place of the rule that the profile has for this limit"
}

// rulePath writes a path as a rule has it. The number of a process becomes a
// pattern: another process has the path at the next start. Process 1 is the same one.
func rulePath(path string) (text, note string, ok bool) {
	// The kernel gives the whole path. One that does not begin with a slash is
	// seen from no root, and no rule fits it; nor one with two slashes in a row,
	// of which the parser makes one.
	if !strings.HasPrefix(path, "/") || strings.Contains(path, "//") {
		return "", "", false
	}
	parts := strings.Split(path, "/")
	numbers := processNumbers(parts)
	if len(numbers) > 0 {
		note = anyProcess + " is for the number of any process"
	}
	var b strings.Builder
	for i, part := range parts {
		if i > 0 {
			b.WriteByte('/')
		}
		if slices.Contains(numbers, i) {
			b.WriteString(anyProcess)
			continue
		}
		if !escapeRule(&b, part) {
			return "", "", false
		}
	}
	return quoteRule(b.String()), note, true
}

// anyProcess is the pattern of a process's number.
const anyProcess = "[0-9]*"

// processNumbers says which parts of a path are numbers of processes or of their
// threads, and another number at the next start: 1 stays what it is.
func processNumbers(parts []string) (at []int) {
	if len(parts) < 3 || parts[0] != "" || parts[1] != "proc" || !isNumber(parts[2]) {
		return nil
	}
	if parts[2] != "1" {
		at = append(at, 2)
	}
	if len(parts) > 4 && parts[3] == "task" && isNumber(parts[4]) && parts[4] != "1" {
		at = append(at, 4)
	}
	return at
}

// ofAnyProcess puts the pattern in place of processes' numbers in a path.
func ofAnyProcess(path string) string {
	if !strings.HasPrefix(path, "/proc/") {
		return path
	}
	parts := strings.Split(path, "/")
	for _, i := range processNumbers(parts) {
		parts[i] = anyProcess
	}
	return strings.Join(parts, "/")
}

func isNumber(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == ""
}

// ruleLabel writes the label of a peer. One that the kernel made up is none to
// have a rule for.
func ruleLabel(label string) (string, bool) {
	if label == "" || strings.Contains(label, "//null-") {
		return "", false
	}
	return ruleText(label)
}

func ruleText(s string) (string, bool) {
	var b strings.Builder
	if s == "" || !escapeRule(&b, s) {
		return "", false
	}
	return quoteRule(b.String()), true
}

// escapeRule writes s so that it stands for itself. Bytes that could be anything
// but part of a name are written in octal, which both parsers read in quotes and
// without (strn_escseq in parser/lib.c) and take for just that byte, also where it
// is special in a pattern. A backslash is one of them: before the quote at the end,
// two would still keep the quote from ending the text, as seen with 3.0.
func escapeRule(b *strings.Builder, s string) bool {
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == 0:
			return false // in no name
		case strings.IndexByte("*?[]{}^,", c) >= 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < ' ' || c > '~' || c == '"' || c == '\\' || c == '@' && i+1 < len(s) && s[i+1] == '{':
			fmt.Fprintf(b, `\%03o`, c)
		default:
			b.WriteByte(c)
		}
	}
	return true
}

// quoteRule puts quotes around what would not be one word without.
func quoteRule(s string) string {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("/._-[]*", c) >= 0) {
			return `"` + s + `"`
		}
	}
	if !(s[0] == '/' || s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z') {
		return `"` + s + `"`
	}
	return s
}

func plainWord(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789_.") == ""
}

// What both parsers know, by the names that the kernel has for them. What one of
// them does not know would be a rule that does not compile.
var (
	// capabilities(7)
	capabilities = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap
		linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio
		sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease
		audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read perfmon
		bpf checkpoint_restore`)
	// apparmor.d(5), "Network Rules"
	families = strings.Fields(`unix inet ax25 ipx appletalk netrom bridge atmpvc x25 inet6 rose netbeui security key
		netlink packet ash econet atmsvc rds sna irda pppox wanpipe llc ib mpls can tipc bluetooth iucv rxrpc isdn
		phonet ieee802154 caif alg nfc vsock kcm qipcrtr smc xdp`)
	socketTypes = strings.Fields("stream dgram seqpacket rdm raw packet")
	// apparmor.d(5), "Signal rules"
	signals = strings.Fields(`hup int quit ill trap abrt bus fpe kill usr1 segv usr2 pipe alrm term stkflt chld cont
		stop stp ttin ttou urg xcpu xfsz vtalrm prof winch io pwr sys emt exists`)
	// apparmor.d(5), "rlimit rules". Not nice, of which the rule is written
	// otherwise than the record.
	rlimits = strings.Fields("cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue rtprio rttime")
	// apparmor.d(5), "Mount Rules"
	mountFlags = strings.Fields("ro rw nosuid nodev noexec sync remount mand dirsync noatime nodiratime relatime iversion strictatime")
	mountKinds = strings.Fields("bind rbind move private rprivate slave rslave shared rshared unbindable runbindable")
)
