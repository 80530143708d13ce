//go:build vm

package sockopt

import (
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// The test binary plays the programs of a unit, in the unit's control group.
const (
	roleVar = "AAUNIT_TEST_ROLE"
	argsVar = "AAUNIT_TEST_ARGS"
)

// kinds are the kinds of socket that are tried.
var kinds = map[string][3]int{
	"tcp4":    {unix.AF_INET, unix.SOCK_STREAM, 0},
	"tcp6":    {unix.AF_INET6, unix.SOCK_STREAM, 0},
	"udp4":    {unix.AF_INET, unix.SOCK_DGRAM, 0},
	"udp6":    {unix.AF_INET6, unix.SOCK_DGRAM, 0},
	"raw4":    {unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP},
	"raw6":    {unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6},
	"mptcp4":  {unix.AF_INET, unix.SOCK_STREAM, 262},
	"mptcp6":  {unix.AF_INET6, unix.SOCK_STREAM, 262},
	"unix":    {unix.AF_UNIX, unix.SOCK_STREAM, 0},
	"unixgm":  {unix.AF_UNIX, unix.SOCK_DGRAM, 0},
	"netlink": {unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE},
	"packet":  {unix.AF_PACKET, unix.SOCK_DGRAM, 0},
}

// attempt is one call of a program, or many of the same.
type attempt struct {
	Kind   string
	Call   Call
	Level  int
	Option int
	Size   int // of the value; 4 if 0
	Times  int // 1 if 0
	Errno  int // of the last one
	Value  []byte
}

func (a *attempt) do(fd int) {
	size := max(a.Size, 4)
	value := make([]byte, size)
	value[0] = 1
	length := uint32(size)
	for range max(a.Times, 1) {
		var errno unix.Errno
		if a.Value != nil {
			copy(value, a.Value)
		}
		if a.Call == Set {
			_, _, errno = unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(a.Level), uintptr(a.Option), uintptr(unsafe.Pointer(&value[0])), uintptr(size), 0)
		} else {
			length = uint32(size)
			_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), uintptr(a.Level), uintptr(a.Option), uintptr(unsafe.Pointer(&value[0])), uintptr(unsafe.Pointer(&length)), 0)
		}
		a.Errno = int(errno)
	}
	if a.Call == Get {
		a.Value = value[:min(int(length), size)]
	}
}

func fail(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, os.Getenv(roleVar), err)
		os.Exit(1)
	}
}

func open(kind string) int {
	k, ok := kinds[kind]
	if !ok {
		fail(fmt.Errorf("there is no kind %q", kind))
	}
	fd, err := unix.Socket(k[0], k[1]|unix.SOCK_CLOEXEC, k[2])
	fail(err)
	return fd
}

// play is a program's side.
func play(role string) {
	args := []byte(os.Getenv(argsVar))
	if file, ok := strings.CutPrefix(string(args), "@"); ok {
		var err error
		args, err = os.ReadFile(file)
		fail(err)
	}
	answer := func(v any) { fail(json.NewEncoder(os.Stdout).Encode(v)) }
	switch role {
	case "helper": // the start helper, as it is installed
		h := Helper{Store: Store(os.Getenv("AAUNIT_TEST_STORE")), Stderr: os.Stderr}
		os.Exit(h.Run(os.Args[1:]))
	case "try": // a list of attempts, each kind on one socket
		var list []attempt
		fail(json.Unmarshal(args, &list))
		fds := map[string]int{}
		for i := range list {
			fd, ok := fds[list[i].Kind]
			if !ok {
				fd = open(list[i].Kind)
				fds[list[i].Kind] = fd
			}
			list[i].do(fd)
		}
		answer(list)
	case "sweep": // every option 0…255 of some levels, for one kind
		var what struct {
			Kind   string
			Call   Call
			Levels []int
		}
		fail(json.Unmarshal(args, &what))
		out := map[int][]int{}
		fd := open(what.Kind)
		for _, level := range what.Levels {
			for option := range 256 {
				// As large as struct tcp_zerocopy_receive: a shorter one never comes to the hook.
				a := attempt{Call: what.Call, Level: level, Option: option, Size: 4 + 60*int(what.Call)}
				a.do(fd)
				out[level] = append(out[level], a.Errno)
				// What was not refused may spoil the socket for the next.
				if what.Call == Set && a.Errno != int(unix.EPERM) {
					unix.Close(fd)
					fd = open(what.Kind)
				}
			}
		}
		answer(out)
	case "spread": // many different pairs
		var count int
		fail(json.Unmarshal(args, &count))
		fd := open("udp4")
		for i := range count {
			a := attempt{Level: 100000 + i/1000, Option: i % 1000}
			a.do(fd)
		}
		answer(count)
	case "hammer": // the same call from many threads
		var what struct{ Threads, Times int }
		fail(json.Unmarshal(args, &what))
		runtime.GOMAXPROCS(what.Threads)
		var all sync.WaitGroup
		for range what.Threads {
			all.Go(func() {
				runtime.LockOSThread()
				fd := open("tcp4")
				for range what.Times {
					a := attempt{Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}
					a.do(fd)
				}
			})
		}
		all.Wait()
		answer(what.Threads * what.Times)
	case "obey": // attempts, as they come on standard input
		decoder, encoder := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
		fds := map[string]int{}
		for {
			var a attempt
			if decoder.Decode(&a) != nil {
				return
			}
			if fds[a.Kind] == 0 {
				fds[a.Kind] = open(a.Kind)
			}
			a.do(fds[a.Kind])
			fail(encoder.Encode(a))
		}
	case "below": // in a control group below its own, which it makes
		own, err := os.ReadFile("/proc/self/cgroup")
		fail(err)
		_, rest, _ := strings.Cut(string(own), "0::")
		group, _, _ := strings.Cut(rest, "\n")
		dir := os.Getenv("AAUNIT_TEST_CGROUPS") + group + "/below"
		fail(os.Mkdir(dir, 0o755))
		fail(os.WriteFile(dir+"/cgroup.procs", []byte(fmt.Sprint(os.Getpid())), 0o644))
		play("try")
	case "groups": // a value larger than a page: the groups of a peer
		groups := make([]int, 2000)
		for i := range groups {
			groups[i] = 100000 + i
		}
		runtime.LockOSThread() // which alone gets the groups
		fail(unix.Setgroups(groups))
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		fail(err)
		a := attempt{Call: Get, Level: unix.SOL_SOCKET, Option: unix.SO_PEERGROUPS, Size: 16384}
		a.do(pair[0])
		answer(a)
	case "inherited": // a socket from elsewhere
		a := attempt{Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}
		a.do(3)
		answer(a)
	case "serve": // a unix server that sets an option on what it accepts
		l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		fail(err)
		path := strings.Trim(string(args), `"`)
		fail(unix.Bind(l, &unix.SockaddrUnix{Name: path}))
		fail(unix.Listen(l, 1))
		fd, _, err := unix.Accept(l)
		fail(err)
		a, b := attempt{Level: unix.SOL_SOCKET, Option: unix.SO_PASSCRED}, attempt{Level: unix.SOL_SOCKET, Option: unix.SO_PASSCRED}
		a.do(fd)
		b.do(l)
		answer([]attempt{a, b})
	case "connect": // to a unix server
		fd := open("unix")
		fail(unix.Connect(fd, &unix.SockaddrUnix{Name: strings.Trim(string(args), `"`)}))
		a := attempt{Level: unix.SOL_SOCKET, Option: unix.SO_PASSCRED}
		a.do(fd)
		answer(a)
		_, _ = unix.Read(fd, make([]byte, 1)) // until the server is done
	case "cmsg": // IP_TTL beside a datagram, and IP_TTL for the socket
		fd := open("udp4")
		to := &unix.SockaddrInet4{Port: 9, Addr: [4]byte{127, 0, 0, 1}}
		oob := make([]byte, unix.CmsgSpace(4))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = unix.SOL_IP, unix.IP_TTL
		h.SetLen(unix.CmsgLen(4))
		oob[unix.CmsgLen(0)] = 7
		err := unix.Sendmsg(fd, []byte("x"), oob, to, 0)
		errno, _ := err.(unix.Errno)
		a := attempt{Level: unix.SOL_IP, Option: unix.IP_TTL}
		a.do(fd)
		answer([]int{int(errno), a.Errno})
	case "shortcut": // getsockopt calls that the kernel answers before the hook
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		fail(err)
		fd := open("tcp4")
		a := attempt{Call: Get, Level: unix.SOL_SOCKET, Option: soPeerPIDFD}
		b := attempt{Call: Get, Level: unix.SOL_TCP, Option: unix.TCP_INFO, Size: 100}
		c := attempt{Call: Get, Level: unix.SOL_TCP, Option: 35, Size: 40, Value: make([]byte, 40)} // TCP_ZEROCOPY_RECEIVE
		a.do(pair[0])
		b.do(fd)
		c.do(fd)
		answer([]attempt{a, b, c})
	case "rewrite": // the rules in force, by their pin, as root without any capability
		runtime.LockOSThread()
		var none [2]unix.CapUserData
		fail(unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]))
		var dir string
		fail(json.Unmarshal(args, &dir))
		m, err := ebpf.LoadPinnedMap(dir+"/config", nil)
		fail(err)
		var settings bpfSettings
		fail(m.Lookup(uint32(0), &settings))
		settings.Mode = uint32(Record)
		fail(m.Put(uint32(0), settings))
		answer(settings.Mode)
	case "uring":
		answer(viaUring())
	case "service": // a unit's program: what it does is in its arguments
		playService(args)
	default:
		fail(fmt.Errorf("there is no such role"))
	}
}

// playService prints a line, which goes to the journal, sets two options and
// stays.
func playService(args []byte) {
	var list []attempt
	fail(json.Unmarshal(args, &list))
	fmt.Println("a line for the journal")
	for i := range list {
		fd := 3 // from the .socket unit
		if list[i].Kind != "3" {
			fd = open(list[i].Kind)
		}
		list[i].do(fd)
	}
	out, err := json.Marshal(list)
	fail(err)
	fail(os.WriteFile(os.Getenv("AAUNIT_TEST_RESULT")+".new", out, 0o644))
	fail(os.Rename(os.Getenv("AAUNIT_TEST_RESULT")+".new", os.Getenv("AAUNIT_TEST_RESULT")))
	time.Sleep(time.Hour)
}

// viaUring sets SO_KEEPALIVE and reads it through io_uring's commands for sockets
// (Linux 6.7; io_uring_cmd_sock in the kernel). The results are those of the
// completion queue: 0 or a negative errno.
func viaUring() map[string]int {
	const (
		opURingCmd    = 46 // IORING_OP_URING_CMD
		cmdGetsockopt = 2  // SOCKET_URING_OP_GETSOCKOPT
		cmdSetsockopt = 3  // SOCKET_URING_OP_SETSOCKOPT
	)
	var params [120]byte // struct io_uring_params
	ring, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params[0])), 0)
	if errno != 0 {
		return map[string]int{"setup": -int(errno)}
	}
	u32 := func(p []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&p[off])) }
	// struct io_sqring_offsets begins at 40, struct io_cqring_offsets at 80.
	sqOff := func(i int) int { return int(*u32(params[:], 40+4*i)) } // head tail mask entries flags dropped array
	cqOff := func(i int) int { return int(*u32(params[:], 80+4*i)) } // head tail mask entries overflow cqes
	sq, err := unix.Mmap(int(ring), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	fail(err)
	cq, err := unix.Mmap(int(ring), 0x8000000, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	fail(err)
	sqes, err := unix.Mmap(int(ring), 0x10000000, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	fail(err)
	value := new([16]byte)
	var pin runtime.Pinner
	pin.Pin(value)
	defer pin.Unpin()
	fd := open("tcp4")
	out := map[string]int{}
	for _, step := range []struct {
		name   string
		cmd    uint32
		option uint32
	}{{"set", cmdSetsockopt, unix.SO_KEEPALIVE}, {"set allowed", cmdSetsockopt, unix.SO_REUSEADDR}, {"get", cmdGetsockopt, unix.SO_KEEPALIVE}} {
		value[0] = 1
		for i := range 64 {
			sqes[i] = 0
		}
		sqes[0] = opURingCmd
		*u32(sqes, 4) = uint32(fd)
		*u32(sqes, 8) = step.cmd         // cmd_op
		*u32(sqes, 16) = unix.SOL_SOCKET // level
		*u32(sqes, 20) = step.option     // optname
		*u32(sqes, 44) = 4               // optlen
		*(*uint64)(unsafe.Pointer(&sqes[48])) = uint64(uintptr(unsafe.Pointer(value)))
		tail := u32(sq, sqOff(1))
		*u32(sq, sqOff(6)+4*int(*tail&*u32(sq, sqOff(2)))) = 0
		*tail++
		if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, ring, 1, 1, 1, 0, 0); errno != 0 {
			out[step.name] = -int(errno)
			continue
		}
		head := u32(cq, cqOff(0))
		cqe := cqOff(5) + 16*int(*head&*u32(cq, cqOff(2)))
		out[step.name] = int(int32(*u32(cq, cqe+8)))
		*head++
	}
	return out
}
