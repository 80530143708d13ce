// Command names makes the table of the names of socket options out of the
// kernel's headers for programs (Debian's linux-libc-dev). It writes Go to its
// standard output.
//
//	names -headers /usr/include > ../names_table.go
//
// A header tells which names it has, not which of them are socket options of which
// level: that is what the rules below say. What is in no header for programs is in
// names_more.go, beside the table.
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"go/format"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
)

// rule says which names of a header are options of a level.
type rule struct {
	header string
	level  int
	take   string // regular expressions for whole names
	leave  string
	call   string // "set" or "get" where the number means something else for the other
	before string // headers that this one needs, separated by spaces
}

// The levels are those of the kernel's include/linux/socket.h.
var rules = []rule{
	{header: "asm/socket.h", level: 1, take: `SO_.*`, leave: `SO_GET_FILTER|SO_(TIMESTAMP|TIMESTAMPNS|TIMESTAMPING|RCVTIMEO|SNDTIMEO)_OLD`},
	// Old and new names of the same option, last, so that the name of today comes first.
	{header: "asm/socket.h", level: 1, take: `SO_(TIMESTAMP|TIMESTAMPNS|TIMESTAMPING|RCVTIMEO|SNDTIMEO)_OLD`},

	{header: "asm/socket.h", level: 1, take: `SO_GET_FILTER`, call: "get"},

	{header: "linux/in.h", level: 0, take: `IP_.*|MCAST_.*`, leave: `IP_PMTUDISC_.*|IP_DEFAULT_.*|MCAST_(EXCLUDE|INCLUDE)|IP_RECVRETOPTS|IP_RECVORIGDSTADDR`},
	{header: "linux/in.h", level: 0, take: `IP_RECVRETOPTS|IP_RECVORIGDSTADDR`},
	{header: "linux/mroute.h", level: 0, take: `MRT_[A-Z_]+`, leave: `MRT_(BASE|MAX|FLUSH_.*)`},
	{header: "linux/netfilter_ipv4.h", level: 0, take: `SO_ORIGINAL_DST`},
	{header: "linux/netfilter_ipv4/ip_tables.h", level: 0, take: `IPT_SO_SET_.*`, leave: `.*_MAX`, call: "set"},
	{header: "linux/netfilter_ipv4/ip_tables.h", level: 0, take: `IPT_SO_GET_.*`, leave: `.*_MAX`, call: "get"},
	{header: "linux/netfilter_arp/arp_tables.h", level: 0, take: `ARPT_SO_SET_.*`, leave: `.*_MAX`, call: "set"},
	{header: "linux/netfilter_arp/arp_tables.h", level: 0, take: `ARPT_SO_GET_.*`, leave: `.*_MAX`, call: "get"},
	{header: "linux/netfilter_bridge/ebtables.h", level: 0, take: `EBT_SO_SET_.*`, leave: `.*_MAX`, call: "set"},
	{header: "linux/netfilter_bridge/ebtables.h", level: 0, take: `EBT_SO_GET_.*`, leave: `.*_MAX`, call: "get"},
	{header: "linux/ip_vs.h", level: 0, take: `IP_VS_SO_SET_.*`, leave: `.*_MAX`, call: "set"},
	{header: "linux/ip_vs.h", level: 0, take: `IP_VS_SO_GET_.*`, leave: `.*_MAX`, call: "get"},

	{header: "linux/in6.h", level: 41, take: `IPV6_.*`,
		leave: `IPV6_(FL_.*|FLOWINFO_(FLOWLABEL|PRIORITY)|PRIORITY_.*|TLV_.*|PMTUDISC_.*|PREFER_SRC_.*)|IPV6_RECVORIGDSTADDR`},
	{header: "linux/in6.h", level: 41, take: `IPV6_RECVORIGDSTADDR`},
	{header: "linux/in.h", level: 41, take: `MCAST_.*`, leave: `MCAST_(EXCLUDE|INCLUDE)`},
	{header: "linux/mroute6.h", level: 41, take: `MRT6_[A-Z_]+`, leave: `MRT6_(BASE|MAX|FLUSH_.*)`},
	{header: "linux/netfilter_ipv6/ip6_tables.h", level: 41, take: `IP6T_SO_SET_.*`, leave: `.*_MAX`, call: "set"},
	{header: "linux/netfilter_ipv6/ip6_tables.h", level: 41, take: `IP6T_SO_(GET_.*|ORIGINAL_DST)`, leave: `.*_MAX`, call: "get"},

	{header: "linux/tcp.h", level: 6, take: `TCP_.*`, leave: `TCP_(MSS_.*|FLAG_.*|NLA_.*|CA_.*|NO_QUEUE|RECV_QUEUE|SEND_QUEUE|QUEUES_NR|REPAIR_(ON|OFF|OFF_NO_WP)|` +
		`MD5SIG_(MAXKEYLEN|FLAG_.*)|AO_(MAXKEYLEN|KEYF_.*)|RECEIVE_ZEROCOPY_.*|FASTOPEN_CLIENT_FAIL|FASTOPEN_.*_(COOKIE|SYN.*|REJECT)|CM_INQ|RESERVED_BITS|DATA_OFFSET|HDR_.*)|TCP_TFO_.*`},
	// What the last rule leaves by its pattern for the results of fast open.
	{header: "linux/tcp.h", level: 6, take: `TCP_FASTOPEN_NO_COOKIE|TCP_CM_INQ`},
	{header: "linux/udp.h", level: 17, take: `UDP_.*`, leave: `UDP_ENCAP_.*`},
	{header: "linux/icmpv6.h", level: 58, take: `ICMPV6_FILTER`},
	{header: "linux/icmp.h", level: 255, take: `ICMP_FILTER`},
	{header: "linux/sctp.h", level: 132, before: "stdint.h sys/socket.h", take: `SCTP_(` + strings.Join([]string{
		"RTOINFO", "ASSOCINFO", "INITMSG", "NODELAY", "AUTOCLOSE", "SET_PEER_PRIMARY_ADDR", "PRIMARY_ADDR", "ADAPTATION_LAYER", "DISABLE_FRAGMENTS",
		"PEER_ADDR_PARAMS", "DEFAULT_SEND_PARAM", "EVENTS", "I_WANT_MAPPED_V4_ADDR", "MAXSEG", "STATUS", "GET_PEER_ADDR_INFO", "DELAYED_.*", "CONTEXT",
		"FRAGMENT_INTERLEAVE", "PARTIAL_DELIVERY_POINT", "MAX_BURST", "AUTH_CHUNK", "HMAC_IDENT", "AUTH_(KEY|ACTIVE_KEY|DELETE_KEY|DEACTIVATE_KEY|SUPPORTED)",
		"PEER_AUTH_CHUNKS", "LOCAL_AUTH_CHUNKS", "GET_.*", "AUTO_ASCONF", "PEER_ADDR_THLDS.*", "RECVRCVINFO", "RECVNXTINFO", "DEFAULT_SNDINFO", "REUSE_PORT",
		"SOCKOPT_.*", "PR_SUPPORTED", "DEFAULT_PRINFO", "PR_(ASSOC|STREAM)_STATUS", "RECONFIG_SUPPORTED", "ENABLE_STREAM_RESET", "RESET_STREAMS", "RESET_ASSOC",
		"ADD_STREAMS", "STREAM_SCHEDULER.*", "INTERLEAVING_SUPPORTED", "SENDMSG_CONNECT", "EVENT", "ASCONF_SUPPORTED", "ECN_SUPPORTED", "EXPOSE_.*",
		"REMOTE_UDP_ENCAPS_PORT", "PLPMTUD_PROBE_INTERVAL"}, "|") + `)`},
	{header: "linux/dccp.h", level: 269, take: `DCCP_SOCKOPT_.*`},
	{header: "linux/ax25.h", level: 257, take: `AX25_.*`, leave: `AX25_(KERNEL_H|MTU|MAX_DIGIS|KILL|SET_RT_IPMODE|NOUID_.*)`},
	{header: "linux/netrom.h", level: 259, take: `NETROM_.*`, leave: `NETROM_(MTU|KERNEL_H|KILL|NEIGH|NODE)`},
	{header: "linux/rose.h", level: 260, take: `ROSE_.*`, leave: `ROSE_(KERNEL_H|MTU|MAX_DIGIS|KILL|DTE_.*|NUMBER_.*|INVALID_.*|NETWORK_.*|OUT_.*|ACCESS_.*|NOT_.*|REMOTE_.*|LOCAL_.*|SHIP_.*)`, before: "linux/ax25.h"},
	{header: "linux/x25.h", level: 262, take: `X25_QBITINCL`},
	{header: "linux/if_packet.h", level: 263, take: `PACKET_.*`,
		leave: `PACKET_(HOST|BROADCAST|MULTICAST|OTHERHOST|OUTGOING|LOOPBACK|USER|KERNEL|FASTROUTE|FANOUT_(HASH|LB|CPU|ROLLOVER|RND|QM|CBPF|EBPF|FLAG_.*)|MR_.*)`},
	{header: "linux/atm.h", level: 264, before: "sys/socket.h linux/atmdev.h linux/atmsap.h", take: `SO_(SETCLP|CIRANGE|ATMQOS|ATMSAP|ATMPVC|MULTIPOINT)`},
	{header: "linux/llc.h", level: 268, take: `LLC_OPT_.*`, leave: `LLC_OPT_(UNKNOWN|MAX.*)`, before: "sys/socket.h linux/if.h"},
	{header: "linux/netlink.h", level: 270, take: `NETLINK_(ADD_MEMBERSHIP|DROP_MEMBERSHIP|PKTINFO|BROADCAST_ERROR|NO_ENOBUFS|RX_RING|TX_RING|LISTEN_ALL_NSID|LIST_MEMBERSHIPS|CAP_ACK|EXT_ACK|GET_STRICT_CHK)`},
	{header: "linux/tipc.h", level: 271, take: `TIPC_(IMPORTANCE|SRC_DROPPABLE|DEST_DROPPABLE|CONN_TIMEOUT|NODE_RECVQ_DEPTH|SOCK_RECVQ_DEPTH|MCAST_.*|GROUP_(JOIN|LEAVE)|SOCK_RECVQ_USED|NODELAY)`,
		leave: `TIPC_MCAST_.*_SUPPORT`},
	{header: "linux/rxrpc.h", level: 272, take: `RXRPC_(SECURITY_KEY|SECURITY_KEYRING|EXCLUSIVE_CONNECTION|MIN_SECURITY_LEVEL|UPGRADEABLE_SERVICE|SUPPORTED_CMSG)`},
	{header: "linux/if_pppol2tp.h", level: 273, take: `PPPOL2TP_SO_.*`},
	{header: "linux/phonet.h", level: 275, take: `PNPIPE_.*`, leave: `PNPIPE_ENCAP_.*`, before: "sys/socket.h"},
	{header: "linux/rds.h", level: 276, before: "sys/socket.h", take: `RDS_(CANCEL_SENT_TO|GET_MR|FREE_MR|RECVERR|CONG_MONITOR|GET_MR_FOR_DEST|INFO_[A-Z0-9_]+)|SO_RDS_.*`, leave: `RDS_INFO_(FIRST|LAST|CONNECTION_FLAG_.*|CONNECTION_STATS|MESSAGE_FLAG_.*)`},
	{header: "linux/caif/caif_socket.h", level: 278, take: `CAIFSO_.*`},
	{header: "linux/if_alg.h", level: 279, take: `ALG_SET_.*`},
	{header: "linux/nfc.h", level: 280, take: `NFC_LLCP_(RW|MIUX|REMOTE_.*)`},
	{header: "linux/kcm.h", level: 281, take: `KCM_RECV_DISABLE`},
	{header: "linux/tls.h", level: 282, take: `TLS_TX|TLS_RX|TLS_TX_ZEROCOPY_RO|TLS_RX_EXPECT_NO_PAD`},
	{header: "linux/if_xdp.h", level: 283, take: `XDP_(MMAP_OFFSETS|RX_RING|TX_RING|UMEM_REG|UMEM_FILL_RING|UMEM_COMPLETION_RING|STATISTICS|OPTIONS)`},
	{header: "linux/mptcp.h", level: 284, take: `MPTCP_(INFO|TCPINFO|SUBFLOW_ADDRS|FULL_INFO)`, before: "netinet/in.h"},
	{header: "linux/mctp.h", level: 285, take: `MCTP_OPT_.*`},
	{header: "linux/smc.h", level: 286, take: `SMC_LIMIT_HS`},
	// The socket address family is the level, too (net/vmw_vsock/af_vsock.c).
	{header: "linux/vm_sockets.h", level: 40, take: `SO_VM_SOCKETS_.*`, leave: `.*_(OLD|NEW)`, before: "sys/socket.h"},
	{header: "linux/vm_sockets.h", level: 40, take: `SO_VM_SOCKETS_.*_(OLD|NEW)`, before: "sys/socket.h"},
	{header: "linux/can/raw.h", level: 101, take: `CAN_RAW_.*`, leave: `CAN_RAW_FILTER_MAX|CAN_RAW_XL_VCID_(TX|RX)_.*`},
	{header: "linux/can/isotp.h", level: 106, take: `CAN_ISOTP_(OPTS|RECV_FC|TX_STMIN|RX_STMIN|LL_OPTS)`},
	{header: "linux/can/j1939.h", level: 107, take: `SO_J1939_.*`},
}

func main() {
	headers := flag.String("headers", "/usr/include", "directory with asm-generic and linux")
	flag.Parse()
	if err := run(*headers); err != nil {
		fmt.Fprintln(os.Stderr, "names:", err)
		os.Exit(1)
	}
}

type entry struct {
	level  int
	option int64
	name   string
	call   string
}

func run(headers string) error {
	var all []entry
	for _, r := range rules {
		got, err := r.entries(headers)
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", r.header, err)
		}
		if len(got) == 0 {
			return fmt.Errorf("cannot find any of %s in %s", r.take, r.header)
		}
		all = append(all, got...)
	}
	sort.SliceStable(all, func(i, j int) bool {
		a, b := all[i], all[j]
		if a.level != b.level {
			return a.level < b.level
		}
		return a.option < b.option
	})
	var out bytes.Buffer
	fmt.Fprintf(&out, "// Code generated by internal/sockopt/names; DO NOT EDIT.\n\npackage sockopt\n\n")
	fmt.Fprintf(&out, "// namesTable has the options that the kernel's headers name, in the order of level\n// and number; where one has several names the first is what it is called.\n")
	fmt.Fprintf(&out, "var namesTable = []named{\n")
	for _, e := range all {
		calls := "both"
		if e.call != "" {
			calls = "only" + strings.ToUpper(e.call[:1]) + e.call[1:]
		}
		fmt.Fprintf(&out, "{%d, %d, %q, %s, 0},\n", e.level, int32(uint32(e.option)), e.name, calls)
	}
	fmt.Fprintf(&out, "}\n")
	text, err := format.Source(out.Bytes())
	if err != nil {
		return err
	}
	_, err = os.Stdout.Write(text)
	return err
}

var word = regexp.MustCompile(`^(?:\s*#\s*define\s+|\s+)([A-Z][A-Za-z0-9_]*)(\s|,|=|$)(.*)`)

// entries are the names that a rule takes, with what the compiler says is their
// value.
func (r rule) entries(headers string) ([]entry, error) {
	file := r.header
	if strings.HasPrefix(file, "asm/") { // that of most architectures
		file = "asm-generic/" + strings.TrimPrefix(file, "asm/")
	}
	text, err := os.ReadFile(filepath.Join(headers, file))
	if err != nil {
		return nil, err
	}
	take, leave := regexp.MustCompile(`^(`+r.take+`)$`), regexp.MustCompile(`^(`+r.leave+`)$`)
	var names []string
	seen, macro := map[string]bool{}, map[string]bool{}
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		m := word.FindStringSubmatch(lines.Text())
		if m == nil || !take.MatchString(m[1]) || leave.MatchString(m[1]) || seen[m[1]] || strings.HasPrefix(m[3], "\\") {
			continue
		}
		seen[m[1]] = true
		macro[m[1]] = strings.HasPrefix(strings.TrimSpace(lines.Text()), "#")
		names = append(names, m[1])
	}
	values, err := evaluate(headers, file, r.before, names, macro)
	if err != nil {
		return nil, err
	}
	var out []entry
	for _, name := range names {
		if value, ok := values[name]; ok {
			out = append(out, entry{r.level, value, name, r.call})
		}
	}
	return out, nil
}

// evaluate asks the C compiler for the values of names. A macro may be one that
// this header defines only in another case, and has no value then.
func evaluate(headers, header, before string, names []string, macro map[string]bool) (map[string]int64, error) {
	var c strings.Builder
	// The compiler's own headers must not come between: some name the same things.
	for _, h := range append(strings.Fields(before), header) {
		fmt.Fprintf(&c, "#include <%s>\n", h)
	}
	fmt.Fprintf(&c, "#include <stdio.h>\nint main(void) {\n")
	for _, name := range names {
		call := fmt.Sprintf("\tprintf(\"%s %%lld\\n\", (long long)(%s));\n", name, name)
		if macro[name] {
			call = "#ifdef " + name + "\n" + call + "#endif\n"
		}
		c.WriteString(call)
	}
	fmt.Fprintf(&c, "\treturn 0;\n}\n")
	dir, err := os.MkdirTemp("", "names")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	source, program := filepath.Join(dir, "n.c"), filepath.Join(dir, "n")
	if err := os.WriteFile(source, []byte(c.String()), 0o600); err != nil {
		return nil, err
	}
	if out, err := exec.Command("gcc", "-w", "-I"+headers, "-o", program, source).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	out, err := exec.Command(program).Output()
	if err != nil {
		return nil, err
	}
	values := map[string]int64{}
	for line := range strings.Lines(string(out)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if values[name], err = strconv.ParseInt(value, 10, 64); err != nil {
			return nil, err
		}
	}
	return values, nil
}
