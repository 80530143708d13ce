package rules

// families are the names that network rules have for address families, by number
// (parser/base_af_names.h; the numbers are those of linux/socket.h).
var families = []string{
	0: "unspec", 1: "unix", 2: "inet", 3: "ax25", 4: "ipx", 5: "appletalk", 6: "netrom", 7: "bridge", 8: "atmpvc", 9: "x25", 10: "inet6",
	11: "rose", 13: "netbeui", 14: "security", 15: "key", 16: "netlink", 17: "packet", 18: "ash", 19: "econet", 20: "atmsvc",
	21: "rds", 22: "sna", 23: "irda", 24: "pppox", 25: "wanpipe", 26: "llc", 27: "ib", 28: "mpls", 29: "can", 30: "tipc",
	31: "bluetooth", 32: "iucv", 33: "rxrpc", 34: "isdn", 35: "phonet", 36: "ieee802154", 37: "caif", 38: "alg", 39: "nfc",
	40: "vsock", 41: "kcm", 42: "qipcrtr", 43: "smc", 44: "xdp", 45: "mctp",
}

// types are the names of types of sockets. "seqpacket" and the like are those of
// linux/net.h.
var types = map[string]int{"stream": 1, "dgram": 2, "raw": 3, "rdm": 4, "seqpacket": 5, "packet": 10}

// protocols stand for a type of IP sockets (network_mappings in
// parser/network.c).
var protocols = map[string][]Socket{
	"tcp":  {{2, 1}, {10, 1}},
	"udp":  {{2, 2}, {10, 2}},
	"icmp": {{2, 3}},
}

const unixFamily = 1

func familyNumber(name string) int {
	for i, n := range families {
		if n != "" && n == name {
			return i
		}
	}
	if name == "route" {
		return 16
	}
	return -1
}

// sockets gives what the words of a network rule stand for, nil where they are
// not known.
func sockets(words []string) []Socket {
	family, rest := -1, words
	if f := familyNumber(words[0]); f >= 0 {
		family, rest = f, words[1:]
	}
	if len(rest) == 0 {
		return []Socket{{family, -1}}
	}
	if len(rest) > 1 {
		return nil
	}
	if t, ok := types[rest[0]]; ok {
		return []Socket{{family, t}}
	}
	var out []Socket
	for _, s := range protocols[rest[0]] {
		if family < 0 || s.Family == family {
			out = append(out, s)
		}
	}
	return out
}
