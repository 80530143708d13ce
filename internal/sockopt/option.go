package sockopt

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Option is a socket option by its numbers, which is how the kernel knows it
// (setsockopt(2)). They are those of the architecture that aaunit runs on.
type Option struct {
	Level int32 `json:"level"`
	Name  int32 `json:"option"`
}

func (o Option) compare(p Option) int {
	return cmp.Or(cmp.Compare(o.Level, p.Level), cmp.Compare(o.Name, p.Name))
}

// String is the option's name, as of a socket of any family and either call; see
// Format.
func (o Option) String() string { return o.Format(Set, Socket{}) }

// Format gives an option the names that it has for a call on a socket of a kind,
// such as "SOL_TCP:TCP_NODELAY". Numbers mean different things for some: 0:64 is
// IPT_SO_SET_REPLACE when it is set and IPT_SO_GET_INFO when it is read, and 6:1
// is SOL_L2CAP:L2CAP_OPTIONS on a Bluetooth socket. What has no name is a number.
// ParseOption reads all of it back.
func (o Option) Format(call Call, on Socket) string {
	n := names()
	level := strconv.Itoa(int(o.Level))
	if name, ok := n.level[levelKey{o.Level, on.Family}]; ok {
		level = name
	} else if name, ok := n.level[levelKey{o.Level, 0}]; ok {
		level = name
	}
	for _, family := range []uint16{on.Family, 0} {
		if name, ok := n.option[optionKey{o, call, family}]; ok {
			return level + ":" + name
		}
		// Of another family's level the numbers mean nothing else.
		if _, own := n.level[levelKey{o.Level, family}]; own && family != 0 {
			break
		}
	}
	return level + ":" + strconv.Itoa(int(o.Name))
}

// ParseOption reads what Format writes: LEVEL:OPTION, each by its name or as a
// number of 32 bits (decimal, or hexadecimal after 0x). The C library's names of
// levels are as good as the kernel's (IPPROTO_TCP for SOL_TCP), and older names of
// options as good as newer ones. An option's name alone will do where only one
// level has it.
func ParseOption(text string) (Option, error) {
	bad := func(format string, args ...any) (Option, error) {
		return Option{}, fmt.Errorf("cannot understand the socket option %q: "+format, append([]any{text}, args...)...)
	}
	n := names()
	levelText, optionText, both := strings.Cut(strings.TrimSpace(text), ":")
	levelText, optionText = strings.TrimSpace(levelText), strings.TrimSpace(optionText)
	if !both {
		found := n.byName[levelText]
		switch {
		case len(found) == 1:
			return found[0], nil
		case len(found) > 1:
			var ways []string
			for _, o := range found {
				ways = append(ways, levelName(o.Level)+":"+levelText)
			}
			return bad("more than one level has it; say which: %s", strings.Join(ways, ", "))
		case isNumber(levelText):
			return bad("it needs its level before it, as in SOL_TCP:%s", levelText)
		}
		return bad("there is no such name; it is written LEVEL:OPTION, as in SOL_TCP:TCP_NODELAY or 6:1")
	}
	var o Option
	var family uint16
	if l, ok := n.levelByName[levelText]; ok {
		o.Level, family = l.number, l.family
	} else if v, err := number(levelText); err == nil {
		o.Level = v
	} else {
		return bad("%s; a level is written SOL_… or IPPROTO_…, or as a number", noName("level", levelText))
	}
	if v, err := number(optionText); err == nil {
		o.Name = v
		return o, nil
	}
	for _, f := range []uint16{family, 0, afBluetooth, afIUCV} {
		if v, ok := n.optionByName[nameKey{o.Level, f, optionText}]; ok {
			o.Name = v
			return o, nil
		}
	}
	if found := n.byName[optionText]; len(found) > 0 {
		return bad("%s is an option of %s", optionText, levelName(found[0].Level))
	}
	return bad("%s; one that has no name here is written as a number", noName("option", optionText))
}

func noName(what, text string) string {
	if text == "" {
		return "the " + what + " is missing"
	}
	return fmt.Sprintf("%q is no name of %s", text, map[string]string{"level": "a level", "option": "an option of that level"}[what])
}

func levelName(number int32) string {
	if name, ok := names().level[levelKey{number, 0}]; ok {
		return name
	}
	return strconv.Itoa(int(number))
}

func isNumber(text string) bool {
	_, err := number(text)
	return err == nil
}

// number reads a number of 32 bits. One with the highest bit may be written either
// way: the kernel's type is int.
func number(text string) (int32, error) {
	digits, base := text, 10
	if hex, ok := strings.CutPrefix(text, "0x"); ok {
		digits, base = hex, 16
	}
	if strings.ContainsAny(digits, "+_") || base == 16 && strings.HasPrefix(digits, "-") {
		return 0, strconv.ErrSyntax
	}
	v, err := strconv.ParseInt(digits, base, 64)
	if err != nil {
		return 0, err
	}
	if v < math.MinInt32 || v > math.MaxUint32 {
		return 0, strconv.ErrRange
	}
	return int32(uint32(v)), nil
}

type (
	levelKey struct {
		number int32
		family uint16
	}
	optionKey struct {
		Option
		call   Call
		family uint16
	}
	nameKey struct {
		level  int32
		family uint16
		name   string
	}
)

// index finds names both ways.
type index struct {
	level        map[levelKey]string
	levelByName  map[string]level
	option       map[optionKey]string
	optionByName map[nameKey]int32
	byName       map[string][]Option
}

// names builds the index when it is first needed: the start helper never does.
var names = sync.OnceValue(func() *index {
	n := &index{
		level: map[levelKey]string{}, levelByName: map[string]level{}, option: map[optionKey]string{},
		optionByName: map[nameKey]int32{}, byName: map[string][]Option{},
	}
	for _, l := range levels {
		n.level[levelKey{l.number, l.family}] = l.names[0]
		for _, name := range l.names {
			n.levelByName[name] = l
		}
	}
	for _, table := range [][]named{architecture(runtime.GOARCH), namesTable, moreNames} {
		for _, e := range table {
			n.add(e)
		}
	}
	return n
})

// add adds a name; the first of a number stays what it is called, and the first
// number of a name what it means.
func (n *index) add(e named) {
	o := Option{e.level, e.option}
	if _, taken := n.optionByName[nameKey{e.level, e.family, e.name}]; taken {
		return
	}
	n.optionByName[nameKey{e.level, e.family, e.name}] = e.option
	for _, call := range []Call{Set, Get} {
		key := optionKey{o, call, e.family}
		if _, taken := n.option[key]; !taken && e.calls&(1<<call) != 0 {
			n.option[key] = e.name
		}
	}
	if !slices.Contains(n.byName[e.name], o) {
		n.byName[e.name] = append(n.byName[e.name], o)
	}
}

// architecture are the names whose numbers are others there than in the kernel's
// asm-generic/socket.h. Of the architectures that Debian is made for these are
// powerpc's alone (arch/powerpc/include/uapi/asm/socket.h).
func architecture(arch string) []named {
	if arch != "ppc64le" && arch != "ppc64" {
		return nil
	}
	return []named{
		{1, 16, "SO_RCVLOWAT", both, 0}, {1, 17, "SO_SNDLOWAT", both, 0},
		{1, 18, "SO_RCVTIMEO", both, 0}, {1, 18, "SO_RCVTIMEO_OLD", both, 0},
		{1, 19, "SO_SNDTIMEO", both, 0}, {1, 19, "SO_SNDTIMEO_OLD", both, 0},
		{1, 20, "SO_PASSCRED", both, 0}, {1, 21, "SO_PEERCRED", both, 0},
	}
}

// Socket is a kind of socket, as the numbers that socket(2) takes.
type Socket struct {
	Family   uint16 `json:"family"`
	Type     uint16 `json:"type"`
	Protocol uint32 `json:"protocol,omitempty"`
}

// String names a kind of socket in few words: "TCP over IPv6", "unix stream".
func (s Socket) String() string {
	typ, ok := map[uint16]string{1: "stream", 2: "datagram", 3: "raw", 4: "rdm", 5: "seqpacket", 6: "dccp", 10: "packet"}[s.Type]
	if !ok {
		typ = "type " + strconv.Itoa(int(s.Type))
	}
	if s.Family == 2 || s.Family == 10 {
		over := map[uint16]string{2: "IPv4", 10: "IPv6"}[s.Family]
		if s.Type == 3 {
			return "raw over " + over
		}
		if p, ok := map[uint32]string{1: "ICMP", 6: "TCP", 17: "UDP", 33: "DCCP", 58: "ICMPv6", 132: "SCTP", 136: "UDP-Lite", 256: "SMC", 262: "MPTCP"}[s.Protocol]; ok {
			return p + " over " + over
		}
		return fmt.Sprintf("%s, protocol %d, over %s", typ, s.Protocol, over)
	}
	family, ok := families[s.Family]
	if !ok {
		family = "family " + strconv.Itoa(int(s.Family))
	}
	return family + " " + typ
}

// families are the address families that services use (address_families(7)).
var families = map[uint16]string{
	1: "unix", 3: "ax25", 4: "ipx", 5: "appletalk", 8: "atm pvc", 9: "x25", 15: "key", 16: "netlink", 17: "packet", 20: "atm svc", 21: "rds",
	24: "pppox", 26: "llc", 27: "infiniband", 28: "mpls", 29: "can", 30: "tipc", 31: "bluetooth", 32: "iucv", 33: "rxrpc", 35: "phonet",
	36: "ieee802154", 37: "caif", 38: "alg", 39: "nfc", 40: "vsock", 41: "kcm", 42: "qipcrtr", 43: "smc", 44: "xdp", 45: "mctp",
}

// soPeerPIDFD is newer than what golang.org/x/sys knows on every architecture.
const soPeerPIDFD = 77

// Bypasses says whether the kernel answers a call itself, so that it is neither
// recorded nor refused. That is SO_PEERPIDFD of unix sockets alone, which has
// installed a file descriptor by the time the hook would run
// (unix_bpf_bypass_getsockopt, Linux 6.5).
//
// TCP_ZEROCOPY_RECEIVE goes another way in the kernel (tcp_bpf_bypass_getsockopt,
// Linux 5.12) and comes to the hook all the same, unless its length is wrong, with
// which it fails anyway.
func Bypasses(call Call, o Option, on Socket) bool {
	return call == Get && o == Option{1, soPeerPIDFD} && on.Family == 1
}
