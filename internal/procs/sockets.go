package procs

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on the kernel's tables of sockets.
const (
	maxNetworks = 64      // network namespaces of one look
	maxRows     = 200_000 // of one table
)

// tables are the sockets that wait for others, by inode. One inode is one socket,
// in whatever network it is.
type tables struct {
	l    *Looker
	host string // the network namespace of PID 1
	// read are the network namespaces whose tables were read, with what could not be.
	read    map[string][]string
	inodes  map[uint64][]attach.Listening
	hostErr error
}

func newTables(l *Looker) *tables {
	t := &tables{l: l, read: map[string][]string{}, inodes: map[uint64][]attach.Listening{}}
	t.host, t.hostErr = os.Readlink(l.real("/proc/1/ns/net"))
	if t.hostErr == nil {
		t.fill(l.real("/proc/1"), t.host)
	}
	return t
}

// find gives what is known of a socket that a process holds, which is read in dir. It may be of the
// machine's network also where the process is in another: sockets can be handed over.
func (t *tables) find(dir, network string, inode uint64, problem func(string)) []attach.Listening {
	if t.hostErr != nil {
		problem("the network of the machine could not be told: " + t.hostErr.Error())
	}
	if network != "" && t.read[network] == nil {
		if len(t.read) >= maxNetworks {
			problem(fmt.Sprintf("there are more than %d networks", maxNetworks))
		} else {
			t.fill(dir, network)
		}
	}
	for _, text := range append(t.read[t.host], t.read[network]...) {
		problem(text)
	}
	return t.inodes[inode]
}

// fill reads the tables of a network namespace as a process in it has them, which is
// read in dir.
func (t *tables) fill(dir, network string) {
	t.read[network] = []string{}
	for _, table := range []struct {
		name  string
		parse func(protocol, line string) (attach.Listening, uint64, bool, error)
	}{
		{"tcp", parseInet}, {"tcp6", parseInet}, {"udp", parseInet}, {"udp6", parseInet}, {"udplite", parseInet}, {"udplite6", parseInet},
		{"raw", parseInet}, {"raw6", parseInet}, {"packet", parsePacket}, {"unix", parseUnix},
	} {
		f, err := os.Open(filepath.Join(dir, "net", table.name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // the kernel does not have the protocol
		}
		if err == nil {
			err = readTable(f, table.name, table.parse, func(s attach.Listening, inode uint64) {
				s.OwnNetwork = network != t.host
				t.inodes[inode] = append(t.inodes[inode], s)
			})
			f.Close()
		}
		if err != nil {
			t.read[network] = append(t.read[network], "the sockets of "+table.name+" could not be read: "+err.Error())
		}
	}
}

// readTable reads a table of /proc/net, whose first line are the titles.
func readTable(r io.Reader, protocol string, parse func(protocol, line string) (attach.Listening, uint64, bool, error), tell func(attach.Listening, uint64)) error {
	s := bufio.NewScanner(r)
	for n := 0; s.Scan(); n++ {
		if n == 0 {
			continue
		}
		if n > maxRows {
			return fmt.Errorf("there are more than %d", maxRows)
		}
		found, inode, waits, err := parse(protocol, s.Text())
		if err != nil {
			return err
		}
		if waits {
			tell(found, inode)
		}
	}
	return s.Err()
}

// The states in these tables (include/net/tcp_states.h).
const (
	stateConnected = "01" // and so of no use to others
	stateClose     = "07" // of udp and raw: bound, and connected to nobody
	stateListen    = "0A"
)

// parseInet reads a row of tcp, udp or raw, or of their siblings for IPv6
// (Documentation/networking/proc_net_tcp.rst, and net/ipv4/udp.c, raw.c).
func parseInet(protocol, line string) (s attach.Listening, inode uint64, waits bool, err error) {
	f := strings.Fields(line)
	if len(f) < 10 {
		return s, 0, false, fmt.Errorf("a row has %d fields", len(f))
	}
	want := stateClose
	if strings.HasPrefix(protocol, "tcp") {
		want = stateListen
	}
	if f[3] != want {
		return s, 0, false, nil
	}
	text, port, ok := strings.Cut(f[1], ":")
	addr, err := parseAddress(text)
	number, perr := strconv.ParseUint(port, 16, 16)
	inode, ierr := strconv.ParseUint(f[9], 10, 64)
	if !ok || err != nil || perr != nil || ierr != nil {
		return s, 0, false, fmt.Errorf("a row has the address %q", f[1])
	}
	s = attach.Listening{Protocol: protocol, Address: addr.String(), Port: int(number), Reach: attach.ReachNetwork}
	if addr.Unmap().IsLoopback() {
		s.Reach = attach.ReachLoopback
	}
	return s, inode, inode != 0, nil
}

// parseAddress reads an address as the kernel prints it: 32-bit words, each in the
// machine's own order.
func parseAddress(text string) (netip.Addr, error) {
	b, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}, err
	}
	for i := 0; i+4 <= len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	if !ok {
		return addr, fmt.Errorf("it has %d bytes", len(b))
	}
	return addr, nil
}

// parsePacket reads a row of packet: packet(7), net/packet/af_packet.c.
func parsePacket(protocol, line string) (s attach.Listening, inode uint64, waits bool, err error) {
	f := strings.Fields(line)
	if len(f) < 9 {
		return s, 0, false, fmt.Errorf("a row has %d fields", len(f))
	}
	inode, err = strconv.ParseUint(f[8], 10, 64)
	// It takes whatever comes in, on one interface or on all.
	return attach.Listening{Protocol: protocol, Reach: attach.ReachNetwork}, inode, inode != 0, err
}

// acceptsConnections is the flag of a unix socket that listens (__SO_ACCEPTCON).
const acceptsConnections = 1 << 16

// parseUnix reads a row of unix (net/unix/af_unix.c). An abstract name can hold a
// line break, by which a program can forge rows: that adds local sockets, and takes
// none away.
func parseUnix(protocol, line string) (s attach.Listening, inode uint64, waits bool, err error) {
	f := strings.SplitN(strings.Join(strings.Fields(line), " "), " ", 8)
	if len(f) < 7 {
		return s, 0, false, nil
	}
	flags, ferr := strconv.ParseUint(f[3], 16, 64)
	inode, ierr := strconv.ParseUint(f[6], 10, 64)
	if ferr != nil || ierr != nil {
		return s, 0, false, nil //nolint:nilerr // it is no line of a socket
	}
	s = attach.Listening{Protocol: "unix", Reach: attach.ReachUnix}
	if len(f) == 8 {
		s.Address = clean(f[7])
	}
	// One of datagrams waits when it has a name to be sent to.
	waits = flags&acceptsConnections != 0 || f[4] == "0002" && s.Address != ""
	return s, inode, waits, nil
}
