package procs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

// machine is a made-up /proc and /sys.
type machine struct {
	t    *testing.T
	root string
}

func (m machine) file(path, text string) {
	m.t.Helper()
	path = filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) link(path, to string) {
	m.t.Helper()
	path = filepath.Join(m.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		m.t.Fatal(err)
	}
	if err := os.Symlink(to, path); err != nil {
		m.t.Fatal(err)
	}
}

func (m machine) process(pid int, name, label, uid, caps, network string, sockets ...string) {
	dir := "proc/" + strconv.Itoa(pid) + "/"
	m.file(dir+"status", "Name:\t"+name+"\nState:\tS (sleeping)\nPid:\t"+strconv.Itoa(pid)+"\nPPid:\t1\nUid:\t33\t"+uid+"\t33\t33\nThreads:\t1\nCapPrm:\t"+caps+"\n")
	m.file(dir+"task/"+strconv.Itoa(pid)+"/attr/apparmor/current", label+"\n")
	m.link(dir+"exe", "/usr/bin/"+name)
	m.link(dir+"ns/net", network)
	m.link(dir+"fd/0", "/dev/null")
	for i, s := range sockets {
		m.link(dir+"fd/"+strconv.Itoa(3+i), "socket:["+s+"]")
	}
}

const (
	tcpTitle  = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	unixTitle = "Num       RefCount Protocol Flags    Type St Inode Path\n"
)

func (m machine) network(pid int) string {
	dir := "proc/" + strconv.Itoa(pid) + "/net/"
	m.file(dir+"tcp", tcpTitle+
		"   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1 0 100 0 0 10 0\n"+
		"   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0\n"+
		"   2: 0100007F:1F90 0100007F:8000 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0 100 0 0 10 0\n")
	m.file(dir+"tcp6", tcpTitle+"   0: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0 100 0 0 10 0\n")
	m.file(dir+"udp", tcpTitle+
		"  10: 0A00020F:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 104 2 0 0\n"+
		"  11: 0A00020F:0045 08080808:0035 01 00000000:00000000 00:00000000 00000000     0        0 105 2 0 0\n")
	m.file(dir+"packet", "sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n0000000000000000 3      3    0003   2     1 0      0      106\n")
	m.file(dir+"unix", unixTitle+
		"0000000000000000: 00000002 00000000 00010000 0001 01   107 /run/my socket\x1b[31m\n"+
		"0000000000000000: 00000003 00000000 00000000 0001 03   108 /run/my socket\n"+
		"0000000000000000: 00000002 00000000 00000000 0002 01   109 @abstract\n")
	return "net:[4026531840]"
}

func TestLook(t *testing.T) {
	m := machine{t, t.TempDir()}
	host := m.network(1)
	m.link("proc/1/ns/net", host)
	m.process(10, "sshd", "unconfined", "0", "000001ffffffffff", host, "100", "102", "107", "105")
	m.process(11, "web\x1b]0;x", "web (enforce)", "33", "0000000000000400", host, "101", "103", "104", "106", "108", "109")
	m.process(12, "child", "web//&unconfined (enforce)", "33", "0", host)
	m.file("proc/12/task/13/attr/apparmor/current", "unconfined\n")
	m.process(20, "alone", "unconfined", "990", "0", "net:[5]", "200", "100")
	m.file("proc/20/net/tcp", tcpTitle+"   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 200 1 0 100 0 0 10 0\n")
	m.file("sys/fs/cgroup/system.slice/web.service/cgroup.procs", "10\n11\n99\n0\n")
	m.file("sys/fs/cgroup/system.slice/web.service/sub/cgroup.procs", "12\n")
	m.file("proc/30/status", "Name:\tdead\nState:\tZ (zombie)\nPPid:\t1\n")

	units := []attach.Unit{
		{ID: "web.service", ControlGroup: "/system.slice/web.service", MainPID: 11},
		{ID: "alone.service", MainPID: 20, ControlPID: 30},
		{ID: "gone.service", ControlGroup: "/system.slice/gone.service"},
		{ID: "bad.service", ControlGroup: "/../etc"},
	}
	got := (&Looker{Root: m.root}).Look(t.Context(), units)
	for i := range got {
		if got[i].At.IsZero() {
			t.Errorf("%s has no time", got[i].Unit)
		}
		got[i].At = time.Time{}
	}
	var all []string
	for name := range strings.FieldsSeq("chown dac_override dac_read_search fowner fsetid setgid setuid setpcap linux_immutable net_admin net_raw " +
		"sys_module sys_rawio sys_chroot sys_ptrace sys_admin sys_boot sys_resource sys_time mknod setfcap mac_override mac_admin perfmon bpf") {
		all = append(all, name)
	}
	want := []attach.Sighting{
		{Unit: "web.service",
			Processes: []attach.Process{
				{PID: 10, PPID: 1, Comm: "sshd", Exe: "/usr/bin/sshd", UID: 0, Threads: 1, Label: "unconfined", Confines: attach.No, Capabilities: all},
				{PID: 11, PPID: 1, Comm: `web\u001b]0;x`, Exe: `/usr/bin/web\u001b]0;x`, UID: 33, Threads: 1, Label: "web (enforce)", Confines: attach.Yes},
				// The thread that speaks against it is what is shown.
				{PID: 12, PPID: 1, Comm: "child", Exe: "/usr/bin/child", UID: 33, Threads: 1, Label: "unconfined", Confines: attach.No},
			},
			Listening: []attach.Listening{
				{Protocol: "packet", Reach: attach.ReachNetwork},
				{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Reach: attach.ReachNetwork},
				{Protocol: "udp", Address: "15.2.0.10", Port: 68, Reach: attach.ReachNetwork},
				{Protocol: "tcp6", Address: "::1", Port: 53, Reach: attach.ReachLoopback},
				{Protocol: "tcp", Address: "127.0.0.1", Port: 8080, Reach: attach.ReachLoopback},
				{Protocol: "unix", Address: `/run/my socket\u001b[31m`, Reach: attach.ReachUnix},
				{Protocol: "unix", Address: "@abstract", Reach: attach.ReachUnix},
			},
		},
		{Unit: "alone.service",
			Processes: []attach.Process{{PID: 20, PPID: 1, Comm: "alone", Exe: "/usr/bin/alone", UID: 990, Threads: 1, Label: "unconfined", Confines: attach.No}},
			Listening: []attach.Listening{
				// Handed over from the machine's network.
				{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Reach: attach.ReachNetwork},
				{Protocol: "tcp", Address: "0.0.0.0", Port: 80, Reach: attach.ReachNetwork, OwnNetwork: true},
			},
		},
		{Unit: "gone.service", Processes: []attach.Process{}, Listening: []attach.Listening{}},
		{Unit: "bad.service", Processes: []attach.Process{}, Listening: []attach.Listening{}, Problems: []string{`"/../etc" is no control group of a unit`}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What cannot be read is said, and is never an answer.
func TestWhatCannotBeRead(t *testing.T) {
	m := machine{t, t.TempDir()}
	host := m.network(1)
	m.link("proc/1/ns/net", host)
	m.process(10, "a", "no label", "0", "0", host)
	m.file("proc/11/status", "Name:\thalf\nPPid:\t1\n")
	m.process(12, "c", "unconfined", "0", "0", "net:[9]", "1")
	m.file("proc/12/net/tcp", tcpTitle+"   0: rubbish\n")
	m.process(13, "d", "d (enforce)", "0", "0", host)
	for i := range maxThreads + 5 {
		m.file("proc/13/task/"+strconv.Itoa(1000+i)+"/attr/apparmor/current", "d (enforce)\n")
	}
	m.file("sys/fs/cgroup/u/cgroup.procs", "10\n11\n12\n13\nrubbish\n")
	s := (&Looker{Root: m.root}).Look(t.Context(), []attach.Unit{{ID: "u.service", ControlGroup: "/u"}})[0]
	if len(s.Problems) == 0 || !strings.Contains(s.Problems[0], "rubbish") {
		t.Errorf("problems: %q", s.Problems)
	}
	m.file("sys/fs/cgroup/u/cgroup.procs", "10\n11\n12\n13\n")
	s = (&Looker{Root: m.root}).Look(t.Context(), []attach.Unit{{ID: "u.service", ControlGroup: "/u"}})[0]
	if len(s.Processes) != 4 {
		t.Fatalf("%+v", s)
	}
	for _, p := range s.Processes {
		if p.PID == 12 {
			continue
		}
		if p.Confines != attach.CouldNotTell || p.Problem == "" {
			t.Errorf("process %d: %+v", p.PID, p)
		}
	}
	if !slices.ContainsFunc(s.Problems, func(p string) bool { return strings.Contains(p, "sockets of tcp could not be read") }) {
		t.Errorf("problems: %q", s.Problems)
	}

	// Without a network of the machine's nothing is known of any socket.
	m = machine{t, t.TempDir()}
	m.process(10, "a", "unconfined", "0", "0", "net:[1]", "1")
	s = (&Looker{Root: m.root}).Look(t.Context(), []attach.Unit{{ID: "u.service", MainPID: 10}})[0]
	if len(s.Problems) == 0 {
		t.Error("nothing is wrong")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	s = (&Looker{Root: m.root}).Look(ctx, []attach.Unit{{ID: "u.service", MainPID: 10}})[0]
	if len(s.Problems) != 1 || !strings.Contains(s.Problems[0], "enough") {
		t.Errorf("problems: %q", s.Problems)
	}
}

// Many processes and sockets are counted, and what speaks against a unit is listed.
func TestLookIsBounded(t *testing.T) {
	m := machine{t, t.TempDir()}
	host := m.network(1)
	m.link("proc/1/ns/net", host)
	var pids, rows strings.Builder
	var inodes []string
	for i := range 2 * maxListed {
		inodes = append(inodes, strconv.Itoa(5000+i))
		rows.WriteString("   0: 00000000:" + strings.ToUpper(strconv.FormatInt(int64(4096+i), 16)) + " 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 " + inodes[i] + " 1\n")
	}
	m.file("proc/1/net/tcp", tcpTitle+rows.String())
	for i := range 2 * maxProcesses {
		label := "x (enforce)"
		if i == 2*maxProcesses-1 {
			label = "unconfined"
		}
		m.process(100+i, "x", label, "5", "0", host, inodes[i%len(inodes)])
		pids.WriteString(strconv.Itoa(100+i) + "\n")
	}
	m.file("sys/fs/cgroup/u/cgroup.procs", pids.String())
	s := (&Looker{Root: m.root}).Look(t.Context(), []attach.Unit{{ID: "u.service", ControlGroup: "/u"}})[0]
	if len(s.Processes) != maxProcesses || s.MoreProcesses != maxProcesses || s.Processes[maxProcesses-1].Confines != attach.No {
		t.Errorf("%d processes and %d more, the last %+v", len(s.Processes), s.MoreProcesses, s.Processes[len(s.Processes)-1])
	}
	if len(s.Listening) != maxListed || s.MoreListening != maxListed {
		t.Errorf("%d sockets and %d more", len(s.Listening), s.MoreListening)
	}
}

// The kernel's own tables say what is so: sockets of this very process are found.
func TestOwnSockets(t *testing.T) {
	tcp, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	udp, err := net.ListenPacket("udp", "[::]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	path := filepath.Join(t.TempDir(), "s")
	local, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer local.Close()
	s := (&Looker{}).Look(t.Context(), []attach.Unit{{ID: "self.service", MainPID: os.Getpid()}})[0]
	for _, want := range []attach.Listening{
		{Protocol: "tcp", Address: "127.0.0.1", Port: tcp.Addr().(*net.TCPAddr).Port, Reach: attach.ReachLoopback},
		{Protocol: "udp6", Address: "::", Port: udp.LocalAddr().(*net.UDPAddr).Port, Reach: attach.ReachNetwork},
		{Protocol: "unix", Address: path, Reach: attach.ReachUnix},
	} {
		if !slices.ContainsFunc(s.Listening, func(l attach.Listening) bool { l.OwnNetwork = false; return l == want }) {
			t.Errorf("%v is not among %+v (%q)", want, s.Listening, s.Problems)
		}
	}
}

// mainEnds has a copy of this program listen, print the port and end its main thread; the
// others go on until its input ends.
const mainEnds = "AAUNIT_TEST_MAIN_THREAD_ENDS"

func init() {
	if os.Getenv(mainEnds) == "" {
		return
	}
	runtime.LockOSThread() // an init is on the main thread
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		l.Close()
		os.Exit(0)
	}()
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
}

// A process goes on, and so do its sockets, when its main thread has ended.
func TestTheMainThreadHasEnded(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), mainEnds+"=yes")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = in.Close(), c.Wait() }()
	var port int
	if _, err := fmt.Fscan(out, &port); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid)); strings.Contains(string(text), "State:\tZ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its main thread does not end")
		}
	}
	s := (&Looker{}).Look(t.Context(), []attach.Unit{{ID: "a.service", MainPID: c.Process.Pid}})[0]
	if len(s.Processes) != 1 || s.Processes[0].Exe != exe || s.Processes[0].Threads < 2 {
		t.Errorf("%+v", s.Processes)
	}
	if len(s.Listening) != 1 || s.Listening[0].Port != port {
		t.Errorf("%+v, port %d (%q)", s.Listening, port, s.Problems)
	}
}

func TestMachine(t *testing.T) {
	m := machine{t, t.TempDir()}
	m.file("proc/sys/kernel/hostname", "box\x1b[1m\n")
	m.file("proc/sys/kernel/osrelease", "6.1.0\n")
	m.file("etc/machine-id", "0123456789abcdef0123456789abcdef\n")
	m.file("usr/lib/os-release", "ID=debian\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n")
	got := (&Looker{Root: m.root}).Machine()
	if got.Name != `box\u001b[1m` || got.Kernel != "6.1.0" || got.OS != "Debian GNU/Linux 12 (bookworm)" {
		t.Errorf("%+v", got)
	}
	if len(got.ID) != 32 || strings.Contains(got.ID, "0123456789abcdef") {
		t.Errorf("id %q", got.ID)
	}
	if empty := (&Looker{Root: t.TempDir()}).Machine(); empty != (attach.Machine{}) {
		t.Errorf("%+v", empty)
	}
}

// Whatever stands in a table of the kernel's, nothing is made up of it.
func FuzzTables(f *testing.F) {
	f.Add("tcp", tcpTitle+"   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 100 1\n")
	f.Add("udp6", tcpTitle+"   0: 00000000000000000000000001000000:0035 0:0 07 0:0 0:0 0 0 0 7\n")
	f.Add("unix", unixTitle+"0: 2 0 00010000 0001 01 107 /run/x\n0: 2 0 0 0002 01 108 @\x00\n")
	f.Add("packet", "t\n0 3 3 0003 2 1 0 0 106\n")
	f.Fuzz(func(t *testing.T, protocol, text string) {
		parse := parseInet
		switch protocol {
		case "unix":
			parse = parseUnix
		case "packet":
			parse = parsePacket
		}
		_ = readTable(strings.NewReader(text), protocol, parse, func(l attach.Listening, _ uint64) {
			if l.Reach == attach.ReachUnknown || l.Port < 0 || l.Port > 65535 {
				t.Errorf("%+v", l)
			}
			if clean(l.Address) != l.Address && l.Protocol == "unix" {
				t.Errorf("%q is not printable", l.Address)
			}
		})
	})
}

func FuzzStatus(f *testing.F) {
	f.Add("Name:\tx\nState:\tS\nPPid:\t1\nUid:\t0\t0\t0\t0\nThreads:\t1\nCapPrm:\t000001ffffffffff\n")
	f.Add("Uid:\t1\n")
	f.Fuzz(func(t *testing.T, text string) {
		p := attach.Process{UID: -1}
		if err := parseStatus(text, &p); err == nil && strings.ContainsAny(p.Comm, "\x1b\n") {
			t.Errorf("%+v", p)
		}
	})
}
