package sockopt

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
)

func TestParseOption(t *testing.T) {
	for text, want := range map[string]Option{
		"SOL_TCP:TCP_NODELAY":            {6, 1},
		"IPPROTO_TCP:TCP_NODELAY":        {6, 1},
		" SOL_TCP : TCP_NODELAY ":        {6, 1},
		"6:1":                            {6, 1},
		"6:TCP_NODELAY":                  {6, 1},
		"SOL_TCP:1":                      {6, 1},
		"0x6:0x01":                       {6, 1},
		"TCP_NODELAY":                    {6, 1},
		"SOL_SOCKET:SO_REUSEPORT":        {1, 15},
		"SOL_SOCKET:SO_RCVTIMEO_OLD":     {1, 20},
		"SOL_SOCKET:SO_GET_FILTER":       {1, 26},
		"SOL_SOCKET:SO_DETACH_BPF":       {1, 27},
		"SOL_IPV6:IPV6_V6ONLY":           {41, 26},
		"IPPROTO_IPV6:MCAST_JOIN_GROUP":  {41, 42},
		"SOL_IP:MCAST_JOIN_GROUP":        {0, 42},
		"SOL_IP:IPT_SO_SET_REPLACE":      {0, 64},
		"SOL_IP:IPT_SO_GET_INFO":         {0, 64},
		"SOL_RAW:ICMP_FILTER":            {255, 1},
		"SOL_RAW:IPV6_CHECKSUM":          {255, 7},
		"SOL_ICMPV6:ICMPV6_FILTER":       {58, 1},
		"SOL_L2CAP:L2CAP_OPTIONS":        {6, 1},
		"SOL_HCI:HCI_FILTER":             {0, 2},
		"SOL_BLUETOOTH:BT_SECURITY":      {274, 4},
		"AF_VSOCK:SO_VM_SOCKETS_TRUSTED": {40, 5},
		"SOL_UDP:UDP_SEGMENT":            {17, 103},
		"SOL_NETLINK:NETLINK_EXT_ACK":    {270, 11},
		"SOL_PACKET:PACKET_FANOUT":       {263, 18},
		"SOL_TLS:TLS_TX":                 {282, 1},
		"SOL_MPTCP:MPTCP_INFO":           {284, 1},
		"SOL_ALG:ALG_SET_KEY":            {279, 1},
		"SOL_CAN_RAW:CAN_RAW_FILTER":     {101, 1},
		"SOL_ATM:SO_ATMQOS":              {264, 1107427412},
		"SOL_IUCV:SO_MSGLIMIT":           {277, 0x1000},
		"99:4294967295":                  {99, -1},
		"99:-1":                          {99, -1},
	} {
		if got, err := ParseOption(text); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for text, says := range map[string]string{
		"":                    "there is no such name",
		"nothing":             "there is no such name",
		"1":                   "needs its level",
		"MCAST_JOIN_GROUP":    "SOL_IP:MCAST_JOIN_GROUP, SOL_IPV6:MCAST_JOIN_GROUP",
		"SOL_TCP:":            "the option is missing",
		":TCP_NODELAY":        "the level is missing",
		"SOL_TCP:SO_LINGER":   "SO_LINGER is an option of SOL_SOCKET",
		"SOL_TCP:NODELAY":     "no name of an option",
		"SOL_NOTHING:1":       "no name of a level",
		"sol_tcp:tcp_nodelay": "no name of a level",
		"6:4294967296":        "no name of an option",
		"6:-2147483649":       "no name of an option",
		"6:+1":                "no name of an option",
		"6:1:1":               "no name of an option",
		"6:0x-1":              "no name of an option",
		"6:1_0":               "no name of an option",
	} {
		_, err := ParseOption(text)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.HasPrefix(err.Error(), "cannot understand") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for _, c := range []struct {
		option Option
		call   Call
		on     Socket
		want   string
	}{
		{Option{6, 1}, Set, Socket{}, "SOL_TCP:TCP_NODELAY"},
		{Option{6, 1}, Set, Socket{2, 1, 6}, "SOL_TCP:TCP_NODELAY"},
		{Option{6, 1}, Set, Socket{afBluetooth, 5, 0}, "SOL_L2CAP:L2CAP_OPTIONS"},
		{Option{6, 77}, Set, Socket{afBluetooth, 5, 0}, "SOL_L2CAP:77"},
		{Option{6, 5}, Set, Socket{afBluetooth, 5, 0}, "SOL_L2CAP:5"},
		{Option{1, 7}, Set, Socket{afBluetooth, 5, 0}, "SOL_SOCKET:SO_SNDBUF"},
		{Option{277, 0x80}, Set, Socket{afIUCV, 1, 0}, "SOL_IUCV:SO_IPRMDATA_MSG"},
		{Option{0, 64}, Set, Socket{}, "SOL_IP:IPT_SO_SET_REPLACE"},
		{Option{0, 64}, Get, Socket{}, "SOL_IP:IPT_SO_GET_INFO"},
		{Option{1, 26}, Set, Socket{}, "SOL_SOCKET:SO_ATTACH_FILTER"},
		{Option{1, 20}, Set, Socket{}, "SOL_SOCKET:SO_RCVTIMEO"},
		{Option{1, 29}, Set, Socket{}, "SOL_SOCKET:SO_TIMESTAMP"},
		{Option{99, -1}, Set, Socket{}, "99:-1"},
		{Option{6, 250}, Set, Socket{}, "SOL_TCP:250"},
	} {
		if got := c.option.Format(c.call, c.on); got != c.want {
			t.Errorf("%v %v %v: %s, want %s", c.option, c.call, c.on, got, c.want)
		}
		if back, err := ParseOption(c.want); err != nil || back != c.option {
			t.Errorf("%s: %v, %v", c.want, back, err)
		}
	}
}

// Whatever an option is called, for whatever socket, reads back as that option;
// and every name of the tables is found.
func TestNamesReadBack(t *testing.T) {
	for _, table := range [][]named{namesTable, moreNames} {
		for _, e := range table {
			o := Option{e.level, e.option}
			for _, call := range []Call{Set, Get} {
				for _, family := range []uint16{0, 2, e.family} {
					text := o.Format(call, Socket{Family: family})
					if back, err := ParseOption(text); err != nil || back != o {
						t.Errorf("%s: %v, %v", text, back, err)
					}
				}
			}
			// By level and name, unless powerpc has another number for it.
			for _, l := range levels {
				if l.number != e.level || l.family != e.family && l.family != 0 {
					continue
				}
				for _, name := range l.names {
					if back, err := ParseOption(name + ":" + e.name); err != nil || back != o && architecture(runtime.GOARCH) == nil {
						t.Errorf("%s:%s: %v, %v", name, e.name, back, err)
					}
				}
			}
		}
	}
}

func TestArchitecture(t *testing.T) {
	if architecture("amd64") != nil || architecture("arm64") != nil || architecture("s390x") != nil || len(architecture("ppc64le")) == 0 {
		t.Error("powerpc's numbers, and only its, are others")
	}
}

// The table has what the installed headers have: a newer table than headers is
// as it should be.
func TestNamesAgreeWithTheHeaders(t *testing.T) {
	if _, err := os.Stat("/usr/include/asm-generic/socket.h"); err != nil {
		t.Fatalf("%v: linux-libc-dev is needed (make setup)", err)
	}
	cmd := exec.Command("go", "run", "./names")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	committed, err := os.ReadFile("names_table.go")
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(committed) {
		have[string(line)] = true
	}
	n := 0
	for line := range bytes.Lines(out) {
		if !bytes.HasPrefix(line, []byte("\t{")) {
			continue
		}
		n++
		if !have[string(line)] {
			t.Errorf("the headers have %s, and the table does not: see internal/sockopt/names", bytes.TrimSpace(line))
		}
	}
	if n < 400 {
		t.Errorf("the headers have only %d names", n)
	}
}

func TestWords(t *testing.T) {
	for _, name := range []string{"TCP_NODELAY", "SO_KEEPALIVE", "TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "SO_REUSEADDR", "SO_RCVBUF", "SO_SNDBUF",
		"TCP_CORK", "TCP_USER_TIMEOUT", "TCP_QUICKACK", "IPV6_V6ONLY", "SO_LINGER", "SO_REUSEPORT", "TCP_CONGESTION", "TCP_FASTOPEN", "SO_PRIORITY", "SO_MARK"} {
		o, err := ParseOption(name)
		if err != nil || Words(o) == "" || strings.HasSuffix(Words(o), ".") {
			t.Errorf("%s: %v, %q", name, err, Words(o))
		}
	}
	if Words(Option{6, 2}) != "" {
		t.Error("TCP_MAXSEG has words")
	}
}

func TestSocketString(t *testing.T) {
	for want, s := range map[string]Socket{
		"TCP over IPv4": {2, 1, 6}, "MPTCP over IPv6": {10, 1, 262}, "UDP over IPv6": {10, 2, 17}, "raw over IPv4": {2, 3, 1},
		"unix stream": {1, 1, 0}, "netlink raw": {16, 3, 0}, "packet datagram": {17, 2, 0}, "family 99 type 77": {99, 77, 0},
		"datagram, protocol 200, over IPv4": {2, 2, 200}, "ICMP over IPv4": {2, 2, 1},
	} {
		if got := s.String(); got != want {
			t.Errorf("%+v: %s, want %s", s, got, want)
		}
	}
}

func FuzzOption(f *testing.F) {
	for _, seed := range []string{"SOL_TCP:TCP_NODELAY", "6:1", "TCP_NODELAY", "MCAST_JOIN_GROUP", "SOL_HCI:HCI_FILTER", "0x6:0x1", "-1:-1", ":", "SOL_TCP", "6:", "SOL_L2CAP:5",
		"4294967295:4294967295", "SOL_SOCKET:SO_GET_FILTER", " 6 : 1 ", "6:1:1", "\xff:\x00"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseOption(text)
		if err != nil {
			if !strings.HasPrefix(err.Error(), "cannot understand the socket option ") {
				t.Error(err)
			}
			return
		}
		for _, call := range []Call{Set, Get} {
			for _, family := range []uint16{0, 2, 10, afBluetooth, afIUCV} {
				written := o.Format(call, Socket{Family: family})
				if back, err := ParseOption(written); err != nil || back != o {
					t.Errorf("%q is %v, written %q, read %v, %v", text, o, written, back, err)
				}
			}
		}
	})
}
