package apparmor

import (
	"slices"
	"strconv"
	"strings"
)

// The words of the policy language, as apparmor.d(5) lists them. They are used
// to put the parser's errors into plain words, never to decide whether a text
// is right: that is the parser's to say.

// ruleWords begin a rule.
var ruleWords = []string{"network", "capability", "file", "link", "mount", "remount", "umount", "unmount", "pivot_root", "ptrace", "signal",
	"dbus", "unix", "change_profile", "set", "userns", "mqueue", "io_uring", "all", "profile", "hat", "include", "abi", "alias"}

// qualifierWords stand before a rule.
var qualifierWords = []string{"audit", "allow", "deny", "owner", "prompt", "priority", "safe", "unsafe"}

// newWords are rules and qualifiers that came after AppArmor 3.0, with the
// version that brought them (parser/parser_misc.c, keyword_table, of 3.0.8,
// 3.1.7, 4.0.1 and 4.1.0).
var newWords = map[string]version{
	"userns": {4, 0}, "mqueue": {4, 0}, "io_uring": {4, 0}, "all": {4, 0},
	"prompt": {4, 1}, "priority": {4, 1},
}

// profileFlags are the flags of a profile, and newFlags those of them that
// came after AppArmor 3.0 (parser/profile.h of the same versions).
var profileFlags = []string{"enforce", "complain", "kill", "unconfined", "audit", "attach_disconnected", "no_attach_disconnected",
	"chroot_relative", "namespace_relative", "chroot_attach", "chroot_no_attach", "mediate_deleted", "delegate_deleted", "debug",
	"default_allow", "prompt", "interruptible", "kill.signal", "error", "attach_disconnected.path"}

var newFlags = map[string]version{
	"default_allow": {4, 0}, "prompt": {4, 0}, "interruptible": {4, 0}, "kill.signal": {4, 0}, "attach_disconnected.path": {4, 0}, "error": {4, 1},
}

// capabilityNames are Linux's (capabilities(7)).
var capabilityNames = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
	net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
	sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog
	wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore`)

// The words of a network rule (apparmor.d(5), "Network Rules").
var (
	networkFamilies = strings.Fields(`unix inet ax25 ipx appletalk netrom bridge atmpvc x25 inet6 rose netbeui security key netlink packet
	ash econet atmsvc rds sna irda pppox wanpipe llc ib mpls can tipc bluetooth iucv rxrpc isdn phonet ieee802154 caif alg nfc vsock kcm
	qipcrtr smc xdp mctp`)
	networkTypes     = strings.Fields("stream dgram seqpacket rdm raw packet")
	networkProtocols = strings.Fields("tcp udp icmp")
)

// networkMeans are words that people use for a family or type.
var networkMeans = map[string]string{
	"ip": "inet", "ip4": "inet", "ipv4": "inet", "inet4": "inet", "ip6": "inet6", "ipv6": "inet6", "local": "unix", "sctp": "seqpacket",
	"http": "tcp", "https": "tcp", "http2": "tcp", "grpc": "tcp", "datagram": "dgram", "wifi": "inet", "icmpv6": "icmp", "icmp6": "icmp",
}

// conditionals are the words of other rules, by the word that begins them
// (apparmor.d(5)).
var conditionals = map[string][]string{
	"signal": strings.Fields("send receive r w rw read write set peer"),
	"ptrace": strings.Fields("trace tracedby read readby r w rw peer"),
	"dbus":   strings.Fields("send receive bind eavesdrop r w rw read write bus path interface member name peer label"),
	"unix": strings.Fields("create bind listen accept connect shutdown getattr setattr getopt setopt send receive r w rw read write " +
		"type protocol addr label peer attr opt"),
	"mount":   strings.Fields("fstype vfstype options option in"),
	"remount": strings.Fields("fstype vfstype options option in"),
	"umount":  strings.Fields("fstype vfstype options option in"),
	"mqueue":  strings.Fields("r w rw read write create open delete getattr setattr type label"),
	"network": strings.Fields("ip port peer create bind listen accept connect shutdown getattr setattr getopt setopt send receive"),
}

var mountOptions = strings.Fields(`ro rw nosuid suid nodev dev noexec exec sync async remount mand nomand dirsync noatime atime nodiratime
	diratime bind rbind move verbose silent loud acl noacl unbindable runbindable private rprivate slave rslave shared rshared relatime
	norelatime iversion noiversion strictatime nostrictatime lazytime nolazytime nouser user nosymfollow symfollow`)

var signalNames = strings.Fields(`hup int quit ill trap abrt bus fpe kill usr1 segv usr2 pipe alrm term stkflt chld cont stop stp ttin ttou
	urg xcpu xfsz vtalrm prof winch io pwr sys emt exists lost`)

var limitNames = strings.Fields("cpu fsize data stack core rss nofile ofile as nproc memlock locks sigpending msgqueue nice rtprio rttime")

// tunables are the variables that <tunables/global> brings along, as Debian 12
// and 13 ship it.
var tunables = strings.Fields("HOME HOMEDIRS PROC pid pids tid uid uids multiarch run sys etc_ro etc_rw securityfs apparmorfs " +
	"user_share_dirs system_share_dirs XDG_DESKTOP_DIR XDG_DOCUMENTS_DIR XDG_DOWNLOAD_DIR XDG_MUSIC_DIR XDG_PICTURES_DIR XDG_VIDEOS_DIR")

// permissionWords are what people write for permissions.
var permissionWords = map[string]string{
	"read": "r", "write": "w", "append": "a", "lock": "k", "link": "l", "map": "m", "mmap": "m", "exec": "ix", "execute": "ix", "run": "ix",
	"readwrite": "rw", "read-write": "rw", "all": "rw", "ro": "r", "wo": "w", "e": "ix", "x": "ix", "rx": "rix", "rwx": "rwix", "ra": "ra", "d": "w", "c": "w",
}

// version is a version of the parser; the zero value is one that is not known.
type version struct{ major, minor int }

func (v version) before(o version) bool {
	return v.major < o.major || v.major == o.major && v.minor < o.minor
}

func (v version) String() string { return strconv.Itoa(v.major) + "." + strconv.Itoa(v.minor) }

// parseVersion reads "AppArmor parser version 3.0.8".
func parseVersion(s string) version {
	_, s, ok := strings.Cut(s, "version ")
	if !ok {
		return version{}
	}
	major, rest, _ := strings.Cut(s, ".")
	end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
	if end >= 0 {
		rest = rest[:end]
	}
	a, err1 := strconv.Atoi(major)
	b, err2 := strconv.Atoi(rest)
	if err1 != nil || err2 != nil {
		return version{}
	}
	return version{a, b}
}

// maxWord bounds the words that are compared.
const maxWord = 64

// nearest gives the word of a list that somebody may have meant, "" where none
// is near: a third of the letters may be wrong, two neighbours in the wrong
// order count as one.
func nearest(word string, list []string) string {
	if len(word) > maxWord {
		return ""
	}
	low := strings.ToLower(word)
	best, found := len(low)/3+1, ""
	if len(low) < 3 {
		best = 1
	}
	for _, w := range list {
		if d := distance(low, strings.ToLower(w)); d < best && len(w) <= maxWord || d == 0 && found == "" {
			best, found = d, w
		}
	}
	if found == "" && len(low) >= 3 {
		for _, w := range list {
			if strings.HasPrefix(w, low) && (found == "" || len(w) < len(found)) {
				found = w
			}
		}
	}
	return found
}

// distance is the number of letters to insert, delete, exchange or swap with
// their neighbour (optimal string alignment).
func distance(a, b string) int {
	if d := len(a) - len(b); d > maxWord || d < -maxWord {
		return maxWord
	}
	prev2, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], prev2[j-2]+1)
			}
		}
		prev2, prev, row = prev, row, prev2
	}
	return prev[len(b)]
}

// isPlaceholder reports whether a word was left for somebody to fill in.
func isPlaceholder(word string) bool {
	up := strings.ToUpper(word)
	return slices.ContainsFunc([]string{"TODO", "FIXME", "FILL", "CHANGE_ME", "CHANGEME", "REPLACE", "PLACEHOLDER", "EDIT_ME", "EDITME", "XXX", "DECIDE", "YOUR_", "INSERT"},
		func(s string) bool { return strings.Contains(up, s) })
}
