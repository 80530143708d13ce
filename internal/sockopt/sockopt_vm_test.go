//go:build vm

package sockopt

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		play(role)
		os.Exit(0)
	}
	if os.Getenv("AAUNIT_VM") == "" {
		fmt.Fprintln(os.Stderr, "cannot run here: these tests attach programs to control groups, and need go test -exec vmexec (test/vm/README.md)")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// bench is a control group to try things in.
type bench struct {
	*System
	t     *testing.T
	unit  string
	group string // as systemd tells it
}

// newBench makes a control group, named like a unit, and removes it afterwards.
// AAUNIT_SOCKOPT_BPF and AAUNIT_SOCKOPT_CGROUPS say where the two file systems are
// when the tests that need no systemd are run elsewhere than in a guest.
func newBench(t *testing.T) *bench {
	b := &bench{New(Options{BPF: os.Getenv("AAUNIT_SOCKOPT_BPF"), Cgroups: os.Getenv("AAUNIT_SOCKOPT_CGROUPS")}), t, strings.ToLower(t.Name()) + ".service", ""}
	b.group = "/" + b.unit
	if err := os.Mkdir(b.cgroups+b.group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := b.Remove(b.unit); err != nil {
			t.Error(err)
		}
		_ = os.Remove(b.cgroups + b.group + "/below")
		for range 100 {
			if err := os.Remove(b.cgroups + b.group); err == nil {
				return
			}
			time.Sleep(50 * time.Millisecond)
		}
		t.Errorf("the control group %s stays", b.group)
	})
	return b
}

// attach has rules hold, which must work.
func (b *bench) attach(r Rules) Change {
	b.t.Helper()
	c, err := b.Attach(b.group, b.unit, r)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

func (b *bench) read() Recording {
	b.t.Helper()
	r, err := b.Read(b.unit)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

// command is a role in the control group.
func (b *bench) command(role string, args any) *exec.Cmd {
	b.t.Helper()
	text, err := json.Marshal(args)
	if err != nil {
		b.t.Fatal(err)
	}
	dir, err := os.Open(b.cgroups + b.group)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { dir.Close() })
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVar+"="+role, argsVar+"="+string(text), "AAUNIT_TEST_CGROUPS="+b.cgroups)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	cmd.Stderr = os.Stderr
	return cmd
}

// play runs a role in the control group and reads its answer.
func (b *bench) play(role string, args, answer any) {
	b.t.Helper()
	out, err := b.command(role, args).Output()
	if err != nil {
		b.t.Fatalf("%s: %v", role, err)
	}
	if err := json.Unmarshal(out, answer); err != nil {
		b.t.Fatalf("%s: %v: %s", role, err, out)
	}
}

func (b *bench) try(list ...attempt) []attempt {
	b.t.Helper()
	var answer []attempt
	b.play("try", list, &answer)
	return answer
}

// find is what was seen of an option and a kind of socket.
func (r Recording) find(call Call, o Option, on Socket) Seen {
	for _, s := range r.Seen {
		if s.Call == call && s.Option == o && s.Socket == on {
			return s
		}
	}
	return Seen{}
}

func opt(text string) Option {
	o, err := ParseOption(text)
	if err != nil {
		panic(err) // a test's own typing error
	}
	return o
}

// What every kind of socket does is recorded, and nothing is refused.
func TestVMRecord(t *testing.T) {
	b := newBench(t)
	began := time.Now()
	if c := b.attach(Rules{Mode: Record}); c != (Change{Loaded: true, Attached: true, Rules: true}) {
		t.Errorf("%+v", c)
	}
	if c := b.attach(Rules{Mode: Record}); c != (Change{}) {
		t.Errorf("a second time: %+v", c)
	}
	before := time.Now()
	var list []attempt
	for kind := range kinds {
		list = append(list, attempt{Kind: kind, Level: unix.SOL_SOCKET, Option: unix.SO_SNDBUF, Times: 3}, attempt{Kind: kind, Call: Get, Level: unix.SOL_SOCKET, Option: unix.SO_TYPE})
	}
	list = append(list, attempt{Kind: "tcp6", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}, attempt{Kind: "netlink", Level: unix.SOL_NETLINK, Option: unix.NETLINK_EXT_ACK})
	for _, a := range b.try(list...) {
		if a.Errno != 0 {
			t.Errorf("%+v: %v", a, unix.Errno(a.Errno))
		}
	}
	r := b.read()
	for kind, k := range kinds {
		on := Socket{Family: uint16(k[0]), Type: uint16(k[1]), Protocol: uint32(k[2])}
		if k[2] == 0 && (k[0] == unix.AF_INET || k[0] == unix.AF_INET6) { // the kernel fills it in
			on.Protocol = map[int]uint32{unix.SOCK_STREAM: unix.IPPROTO_TCP, unix.SOCK_DGRAM: unix.IPPROTO_UDP}[k[1]]
		}
		s := r.find(Set, opt("SOL_SOCKET:SO_SNDBUF"), on)
		if s.Allowed != 3 || s.Refused != 0 || s.BySystemd {
			t.Errorf("%s: %+v", kind, s)
		}
		if s.First.Comm == "" || s.First.PID == 0 || s.Last.PID != s.First.PID || s.LastRefused != (Who{}) ||
			s.First.Time.Before(before.Add(-time.Second)) || s.Last.Time.Before(s.First.Time) || s.Last.Time.After(time.Now().Add(time.Second)) {
			t.Errorf("%s: %+v", kind, s)
		}
		if s := r.find(Get, opt("SOL_SOCKET:SO_TYPE"), on); s.Allowed != 1 {
			t.Errorf("%s: %+v", kind, s)
		}
	}
	if r.find(Set, opt("TCP_NODELAY"), Socket{unix.AF_INET6, unix.SOCK_STREAM, unix.IPPROTO_TCP}).Allowed != 1 {
		t.Errorf("TCP_NODELAY is missing in %+v", r.Seen)
	}
	if len(r.Seen) != 2*len(kinds)+2 || r.Lost != (Lost{}) {
		t.Errorf("%d seen, %+v lost", len(r.Seen), r.Lost)
	}
	if r.Since.Before(began.Add(-time.Second)) || r.Since.After(before) {
		t.Errorf("recorded since %v, and it began between %v and %v", r.Since, began, before)
	}
	keys, values, err := func() ([]bpfSeenKey, []bpfSeenValue, error) {
		o, err := (&unitDir{path: b.dir(b.unit)}).openMaps("seen")
		if err != nil {
			return nil, nil, err
		}
		defer o.Close()
		return readEach(o.maps["seen"])
	}()
	if err != nil || len(keys) != len(r.Seen) || len(values) != len(keys) {
		t.Errorf("one by one: %d, %v", len(keys), err)
	}
	if err := b.Forget(b.unit); err != nil {
		t.Error(err)
	}
	if r := b.read(); len(r.Seen) != 0 || r.Rules.Mode != Record {
		t.Errorf("after Forget: %+v", r)
	}
}

// Exactly the list passes: every option 0…255 of several levels, on each kind of
// socket, and every call is counted.
// On every suite.
func TestVMEnforceExactly(t *testing.T) {
	b := newBench(t)
	levels := []int{unix.SOL_IP, unix.SOL_SOCKET, unix.SOL_TCP, unix.SOL_UDP, unix.SOL_IPV6, unix.SOL_RAW, unix.SOL_PACKET, unix.SOL_NETLINK, 284, 99999}
	allow := []Option{opt("SOL_TCP:TCP_NODELAY"), opt("SOL_SOCKET:SO_KEEPALIVE"), opt("SOL_IPV6:IPV6_V6ONLY"), opt("SOL_UDP:UDP_CORK"), opt("99999:7"), opt("SOL_IP:IP_TTL")}
	get := []Option{opt("SOL_SOCKET:SO_TYPE"), opt("SOL_TCP:TCP_INFO")}
	b.attach(Rules{Mode: Enforce, Allow: allow, HoldGet: true, AllowGet: get})
	for kind := range kinds {
		for call, list := range map[Call][]Option{Set: allow, Get: get} {
			if err := b.Forget(b.unit); err != nil {
				t.Fatal(err)
			}
			var errnos map[int][]int
			b.play("sweep", map[string]any{"Kind": kind, "Call": call, "Levels": levels}, &errnos)
			r := b.read()
			// All but what the kernel answers before the hook.
			missing := map[Option]bool{}
			for _, level := range levels {
				for name := range 256 {
					missing[Option{int32(level), int32(name)}] = true
				}
			}
			for _, s := range r.Seen {
				delete(missing, s.Option)
			}
			for o := range missing {
				if !Bypasses(call, o, r.Seen[0].Socket) {
					t.Errorf("%s %s %s was not seen", kind, call, o.Format(call, r.Seen[0].Socket))
				}
			}
			if r.Lost != (Lost{}) {
				t.Errorf("%s %s: %+v lost", kind, call, r.Lost)
			}
			for _, s := range r.Seen {
				o := s.Option
				errno := unix.Errno(errnos[int(o.Level)][o.Name])
				if allowed := slices.Contains(list, o); allowed && (s.Allowed != 1 || s.Refused != 0 || errno == unix.EPERM) ||
					!allowed && (s.Allowed != 0 || s.Refused != 1 || s.LastRefused.PID == 0) {
					t.Errorf("%s %s %s: %v %+v", kind, call, o.Format(call, s.Socket), errno, s)
				} else if !allowed && errno != unix.EPERM {
					// getsockopt comes to the hook after the kernel, whose own error stays.
					if call == Set || errno == 0 {
						t.Errorf("%s %s %s was refused, and gave %v", kind, call, o.Format(call, s.Socket), errno)
					}
				}
			}
		}
	}
}

// The same of every level that has a name, as many at a time as the table has room for.
// On every suite.
func TestVMEnforceEveryLevel(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce})
	var all []int
	for _, l := range levels {
		all = append(all, int(l.number))
	}
	slices.Sort(all)
	for some := range slices.Chunk(slices.Compact(all), MaxSeen/256-1) {
		if err := b.Forget(b.unit); err != nil {
			t.Fatal(err)
		}
		var errnos map[int][]int
		b.play("sweep", map[string]any{"Kind": "tcp4", "Call": Set, "Levels": some}, &errnos)
		seen := map[Option]Seen{}
		for _, s := range b.read().Seen {
			seen[s.Option] = s
		}
		for _, level := range some {
			for name, errno := range errnos[level] {
				s := seen[Option{int32(level), int32(name)}]
				if unix.Errno(errno) != unix.EPERM || s.Refused != 1 || s.Allowed != 0 {
					t.Errorf("level %d option %d: %v %+v", level, name, unix.Errno(errno), s)
				}
			}
		}
	}

	// Those with names and larger numbers, as IPVS and the packet filters have them.
	if err := b.Forget(b.unit); err != nil {
		t.Fatal(err)
	}
	var large []attempt
	for _, n := range slices.Concat(namesTable, moreNames) {
		if n.option < 0 || n.option > 255 {
			large = append(large, attempt{Kind: "tcp4", Call: Set, Level: int(n.level), Option: int(n.option)})
		}
	}
	if len(large) < 16 {
		t.Errorf("only %d names have numbers above 255", len(large))
	}
	for _, a := range b.try(large...) {
		if a.Errno != int(unix.EPERM) {
			t.Errorf("level %d option %d: %v", a.Level, a.Option, unix.Errno(a.Errno))
		}
	}
}

// Without a list of its own getsockopt reads anything.
func TestVMGetIsFree(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce})
	a := b.try(attempt{Kind: "tcp4", Call: Get, Level: unix.SOL_SOCKET, Option: unix.SO_TYPE}, attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY})
	if a[0].Errno != 0 || a[0].Value[0] != unix.SOCK_STREAM || a[1].Errno != int(unix.EPERM) {
		t.Errorf("%+v", a)
	}
}

// Values larger than a page go both ways unharmed.
func TestVMLargeValues(t *testing.T) {
	b := newBench(t)
	for _, mode := range []Mode{Record, Enforce} {
		b.attach(Rules{Mode: mode, Allow: []Option{opt("SO_RCVBUF")}})
		value := make([]byte, 4)
		value[1] = 0x40 // 16384
		a := b.try(attempt{Kind: "udp4", Level: unix.SOL_SOCKET, Option: unix.SO_RCVBUF, Size: 20000, Value: value},
			attempt{Kind: "udp4", Call: Get, Level: unix.SOL_SOCKET, Option: unix.SO_RCVBUF, Size: 20000})
		if a[0].Errno != 0 || a[1].Errno != 0 || !bytes.Equal(a[1].Value, []byte{0, 0x80, 0, 0}) { // the kernel doubles it
			t.Errorf("%s: %+v", mode, a)
		}
		var groups attempt
		b.play("groups", nil, &groups)
		if groups.Errno != 0 || len(groups.Value) != 8000 || !bytes.Equal(groups.Value[7996:], []byte{0x6f, 0x8e, 0x01, 0x00}) { // 101999
			t.Errorf("%s: %v, %d bytes", mode, unix.Errno(groups.Errno), len(groups.Value))
		}
	}
}

func TestVMChildCgroup(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce})
	var a []attempt
	b.play("below", []attempt{{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}}, &a)
	if a[0].Errno != int(unix.EPERM) || b.read().Seen[0].Refused != 1 {
		t.Errorf("%+v %+v", a, b.read())
	}
}

// No call is lost when many threads of many processes make them.
func TestVMCountsAreExact(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Record})
	const processes, threads, times = 4, 4, 5000
	var cmds []*exec.Cmd
	for range processes {
		cmd := b.command("hammer", map[string]int{"Threads": threads, "Times": times})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	r := b.read()
	if len(r.Seen) != 1 || r.Seen[0].Allowed != processes*threads*times || r.Lost != (Lost{}) {
		t.Errorf("%+v", r)
	}
}

// A program that tries many different pairs fills the table and no more. What was
// recorded before stays.
func TestVMBounded(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY")}})
	b.try(attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY, Times: 7})
	const pairs = 1_000_000
	var count int
	b.play("spread", pairs, &count)
	b.try(attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY, Times: 2})
	r := b.read()
	if s := r.Seen[0]; s.Option != opt("TCP_NODELAY") || s.Allowed != 9 {
		t.Errorf("what came first: %+v", s)
	}
	var refused uint64
	for _, s := range r.Seen {
		refused += s.Refused
	}
	if len(r.Seen) > MaxSeen || len(r.Seen) < MaxSeen/2 || refused+r.Lost.Refused != pairs || r.Lost.Allowed != 0 || r.Lost.Last.IsZero() {
		t.Errorf("%d seen, %d refused, %+v lost", len(r.Seen), refused, r.Lost)
	}
	t.Logf("%d kinds stored, %d calls lost", len(r.Seen), r.Lost.Refused)
}

// Mode and list change under a running program.
func TestVMRulesChangeAtOnce(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Record})
	cmd := b.command("obey", nil)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); _ = cmd.Wait() }()
	decoder := json.NewDecoder(out)
	now := func(want unix.Errno) {
		t.Helper()
		if err := json.NewEncoder(in).Encode(attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}); err != nil {
			t.Fatal(err)
		}
		var a attempt
		if err := decoder.Decode(&a); err != nil {
			t.Fatal(err)
		}
		if unix.Errno(a.Errno) != want {
			t.Errorf("%v, want %v", unix.Errno(a.Errno), want)
		}
	}
	must := func(changed bool, err error) {
		t.Helper()
		if err != nil || !changed {
			t.Errorf("changed %v, %v", changed, err)
		}
	}
	now(0)
	must(b.SetMode(b.unit, Enforce))
	now(unix.EPERM)
	must(b.SetAllow(b.unit, []Option{opt("TCP_NODELAY"), opt("TCP_CORK")}, nil))
	now(0)
	must(b.SetAllow(b.unit, []Option{opt("TCP_CORK")}, nil))
	now(unix.EPERM)
	if changed, err := b.SetAllow(b.unit, []Option{opt("TCP_CORK")}, nil); changed || err != nil {
		t.Errorf("the same again: %v, %v", changed, err)
	}
	must(b.SetRules(b.unit, Rules{Mode: Record}))
	now(0)
	if _, err := b.Attach(b.group, b.unit, Rules{Mode: Off}); err != nil {
		t.Error(err)
	}
	now(0)
	r := b.read()
	if len(r.Seen) != 1 || r.Seen[0].Allowed != 3 || r.Seen[0].Refused != 2 || r.Rules.Mode != Off {
		t.Errorf("%+v", r)
	}
	// A program that runs is held to what is attached later, too.
	if c := b.attach(Rules{Mode: Enforce}); !c.Attached || c.Loaded {
		t.Errorf("%+v", c)
	}
	now(unix.EPERM)
}

// What the kernel says is attached.
func TestVMAttached(t *testing.T) {
	b := newBench(t)
	ask := func() Attachment {
		t.Helper()
		a, err := b.Attached(b.group, b.unit)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	if a := ask(); a.Ours || a.Why == "" {
		t.Errorf("%+v", a)
	}
	rules := Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY"), opt("SO_KEEPALIVE")}, HoldGet: true}
	b.attach(rules)
	a := ask()
	if !a.Holds(rules) || a.Set.Program == 0 || a.Set.Tag != a.Set.Want || a.Set.Link == 0 || a.Get.Tag == a.Set.Tag || len(a.Set.Others) != 0 {
		t.Errorf("%+v", a)
	}
	if a.Holds(Rules{Mode: Enforce, Allow: rules.Allow}) || a.Holds(Rules{Mode: Record, Allow: rules.Allow, HoldGet: true}) {
		t.Error("other rules hold, too")
	}
	// Somebody changes the list behind our back, by the table's id.
	o, err := (&unitDir{path: b.dir(b.unit)}).openMaps("allow")
	if err != nil {
		t.Fatal(err)
	}
	if err := o.maps["allow"].Put(bpfAllowKey{Level: 1, Optname: 36}, uint32(1)); err != nil {
		t.Fatal(err)
	}
	o.Close()
	if a := ask(); !a.Ours || a.Holds(rules) || !slices.Contains(a.Rules.Allow, opt("SO_MARK")) {
		t.Errorf("%+v", a)
	}
	b.attach(rules)

	// Another program beside ours is named; one in place of ours is not ours.
	other, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: "other", Type: ebpf.CGroupSockopt, AttachType: ebpf.AttachCGroupSetsockopt, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 1), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	beside, err := link.AttachCgroup(link.CgroupOptions{Path: b.cgroups + b.group, Attach: ebpf.AttachCGroupSetsockopt, Program: other})
	if err != nil {
		t.Fatal(err)
	}
	if a := ask(); !a.Holds(rules) || len(a.Set.Others) != 1 || len(a.Get.Others) != 0 {
		t.Errorf("%+v", a)
	}
	beside.Close()
	pinned, err := link.LoadPinnedLink(filepath.Join(b.dir(b.unit), "link_set"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := pinned.Update(other); err != nil {
		t.Fatal(err)
	}
	pinned.Close()
	if a := ask(); a.Ours || !strings.Contains(a.Why, "none of those that are pinned") {
		t.Errorf("%+v", a)
	}
	// An older version of ours looks just so: it is replaced, and no moment is
	// without a program.
	if c := b.attach(rules); !c.Replaced || c.Attached {
		t.Errorf("%+v", c)
	}
	if a := ask(); !a.Holds(rules) {
		t.Errorf("%+v", a)
	}
	// Without its pin it is gone.
	if err := os.Remove(filepath.Join(b.dir(b.unit), "link_get")); err != nil {
		t.Fatal(err)
	}
	if a := ask(); a.Ours || !strings.Contains(a.Why, "getsockopt") {
		t.Errorf("%+v", a)
	}
	if c := b.attach(rules); !c.Attached || c.Loaded {
		t.Errorf("%+v", c)
	}
	// Only root may go in.
	if st, err := os.Stat(b.root()); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%v %v", st, err)
	}
}

// Missing pins, from a daemon that was killed, are made anew; what was recorded
// is kept as far as the tables are there.
func TestVMTornPins(t *testing.T) {
	b := newBench(t)
	rules := Rules{Mode: Record, Allow: []Option{opt("TCP_NODELAY")}}
	b.attach(rules)
	b.try(attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY})
	entries, err := os.ReadDir(b.dir(b.unit))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(b.dir(b.unit), e.Name())); err != nil {
			t.Fatal(err)
		}
		b.attach(rules)
		if a, err := b.Attached(b.group, b.unit); err != nil || !a.Holds(rules) {
			t.Errorf("without %s: %+v, %v", e.Name(), a, err)
		}
		if r := b.read(); e.Name() != "seen" && len(r.Seen) == 0 && e.Name() < "seen" {
			t.Errorf("without %s: nothing is recorded any more", e.Name())
		}
	}
	if err := os.WriteFile(filepath.Join(b.bpf, "not_ours"), nil, 0o600); err == nil {
		t.Error("a BPF file system took a file")
	}
}

// Nothing there, nothing mounted, nothing permitted: each says so.
func TestVMErrors(t *testing.T) {
	b := newBench(t)
	if _, err := b.Read(b.unit); !errors.Is(err, ErrNothing) {
		t.Error(err)
	}
	if _, err := b.SetMode(b.unit, Enforce); !errors.Is(err, ErrNothing) {
		t.Error(err)
	}
	if changed, err := b.Remove(b.unit); changed || err != nil {
		t.Error(changed, err)
	}
	if _, err := New(Options{BPF: t.TempDir(), Cgroups: b.cgroups}).Attach(b.group, b.unit, Rules{Mode: Record}); !errors.Is(err, ErrNoBPFFS) {
		t.Error(err)
	}
	if _, err := New(Options{BPF: b.bpf, Cgroups: t.TempDir()}).Attach("/", b.unit, Rules{Mode: Record}); !errors.Is(err, ErrNoCgroup2) {
		t.Error(err)
	}
	if _, err := b.Attach("/no-such.service", b.unit, Rules{Mode: Record}); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
		t.Error(err)
	}
	if units, err := b.Units(); err != nil || slices.Contains(units, b.unit) {
		t.Errorf("left of a control group that is not there: %q %v", units, err)
	}
}

// A unit is restarted while somebody waits to attach the programs: the control group
// of that name is another one by then, and what its start has is left in place.
func TestVMAttachFindsTheControlGroupOfTheNextStart(t *testing.T) {
	b := newBench(t)
	rules := Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY")}}
	b.attach(rules)
	d, err := b.open(b.unit, false)
	if err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() {
		_, err := b.Attach(b.group, b.unit, rules)
		waited <- err
	}()
	time.Sleep(200 * time.Millisecond) // it waits for the lock
	if err := errors.Join(os.Remove(b.cgroups+b.group), os.Mkdir(b.cgroups+b.group, 0o755), d.Close()); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Error(err)
	}
	if a, err := b.Attached(b.group, b.unit); err != nil || !a.Holds(rules) {
		t.Errorf("the next start: %+v, %v", a, err)
	}
}

// What the hooks do not see. The manual lists it: a test that fails here means
// that it can be taken off the list.
// On every suite.
func TestVMWhatIsNotSeen(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce, HoldGet: true})

	// A socket that was made in another control group.
	elsewhere, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(elsewhere), "socket")
	defer file.Close()
	cmd := b.command("inherited", nil)
	cmd.ExtraFiles = []*os.File{file}
	out, err := cmd.Output()
	var a attempt
	if err != nil || json.Unmarshal(out, &a) != nil || a.Errno != 0 {
		t.Errorf("an inherited socket: %s, %v", out, err)
	}

	// What a unix server accepts was made by its client, elsewhere.
	socket := filepath.Join(t.TempDir(), "s")
	server := b.command("serve", socket)
	var served bytes.Buffer
	server.Stdout = &served
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if err = unix.Connect(client, &unix.SockaddrUnix{Name: socket}); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	var accepted []attempt
	if err := server.Wait(); err != nil || json.Unmarshal(served.Bytes(), &accepted) != nil || accepted[0].Errno != 0 || accepted[1].Errno != int(unix.EPERM) {
		t.Errorf("an accepted unix socket: %s, %v", served.String(), err)
	}
	unix.Close(client)

	// An option beside a datagram; the same for the socket is refused.
	var errnos []int
	b.play("cmsg", nil, &errnos)
	if errnos[0] != 0 || errnos[1] != int(unix.EPERM) {
		t.Errorf("control message %v, setsockopt %v", unix.Errno(errnos[0]), unix.Errno(errnos[1]))
	}

	// SO_PEERPIDFD is answered before the hook, where the kernel has it (6.5); of what
	// is refused the value is in memory already. TCP_ZEROCOPY_RECEIVE goes another
	// way, and is refused.
	var gets []attempt
	b.play("shortcut", nil, &gets)
	if errno := unix.Errno(gets[0].Errno); errno != 0 && errno != unix.ENOPROTOOPT {
		t.Errorf("SO_PEERPIDFD: %v", errno)
	}
	if gets[1].Errno != int(unix.EPERM) || len(bytes.Trim(gets[1].Value[1:], "\x00")) == 0 {
		t.Errorf("TCP_INFO: %+v", gets[1])
	}
	if gets[2].Errno != int(unix.EPERM) {
		t.Errorf("TCP_ZEROCOPY_RECEIVE: %v", unix.Errno(gets[2].Errno))
	}

	// A 32-bit system call.
	program := filepath.Join(t.TempDir(), "int80")
	if err := os.WriteFile(program, int80(), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd = b.command("", nil)
	cmd.Path, cmd.Args = program, []string{program}
	var status *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &status) {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != 0 {
		t.Errorf("int 0x80: %v", unix.Errno(got))
	}
	for _, s := range b.read().Seen {
		if s.Allowed != 0 || s.Option == opt("TCP_NODELAY") || s.Option == opt("SO_PEERPIDFD") && gets[0].Errno == 0 {
			t.Errorf("it was seen: %+v", s)
		}
	}
}

// int80 is a program for x86-64 that sets TCP_NODELAY with 32-bit system calls, and
// exits with the error's number.
func int80() []byte {
	code := []byte{
		0xb8, 0x67, 0x01, 0x00, 0x00, // mov eax, 359 (socket)
		0xbb, 0x02, 0x00, 0x00, 0x00, // mov ebx, AF_INET
		0xb9, 0x01, 0x00, 0x00, 0x00, // mov ecx, SOCK_STREAM
		0x31, 0xd2, // xor edx, edx
		0xcd, 0x80, // int 0x80
		0x89, 0xc3, // mov ebx, eax
		0xb8, 0x6e, 0x01, 0x00, 0x00, // mov eax, 366 (setsockopt)
		0xb9, 0x06, 0x00, 0x00, 0x00, // mov ecx, SOL_TCP
		0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, TCP_NODELAY
		0xbe, 0x00, 0x00, 0x40, 0x00, // mov esi, the value: the 1 at 0x400000+4
		0xbf, 0x04, 0x00, 0x00, 0x00, // mov edi, 4
		0xcd, 0x80, // int 0x80
		0xf7, 0xd8, // neg eax
		0x89, 0xc3, // mov ebx, eax
		0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1 (exit)
		0xcd, 0x80, // int 0x80
	}
	// The value may be anything; the ELF header, which is at the load address, will do.
	elf := make([]byte, 120, 120+len(code))
	copy(elf, "\x7fELF\x02\x01\x01")
	put := func(off, size int, v uint64) {
		for i := range size {
			elf[off+i] = byte(v >> (8 * i))
		}
	}
	size := uint64(120 + len(code))
	put(16, 2, 2)            // ET_EXEC
	put(18, 2, 62)           // EM_X86_64
	put(20, 4, 1)            // version
	put(24, 8, 0x400000+120) // entry
	put(32, 8, 64)           // program headers
	put(52, 2, 64)           // size of this header
	put(54, 2, 56)           // size of a program header
	put(56, 2, 1)            // one
	put(64, 4, 1)            // PT_LOAD
	put(68, 4, 7)            // rwx
	put(64+16, 8, 0x400000)  // address
	put(64+24, 8, 0x400000)  // address
	put(64+32, 8, size)      // in the file
	put(64+40, 8, size)      // in memory
	put(64+48, 8, 0x1000)    // alignment
	return append(elf, code...)
}

// What somebody else's server does with a connection from the unit is not the
// unit's doing, though the kernel counts the accepted socket as the unit's.
func TestVMServersAreNotHeld(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce, HoldGet: true})
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := b.command("connect", l.Addr().String())
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	set, get := attempt{Level: unix.SOL_SOCKET, Option: unix.SO_SNDBUF}, attempt{Call: Get, Level: unix.SOL_SOCKET, Option: unix.SO_PEERCRED, Size: 12}
	if err := raw.Control(func(fd uintptr) { set.do(int(fd)); get.do(int(fd)) }); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var own attempt
	if err := json.Unmarshal(out.Bytes(), &own); err != nil || set.Errno != 0 || get.Errno != 0 || own.Errno != int(unix.EPERM) {
		t.Errorf("the server: %+v %+v, the client: %+v, %v", set, get, own, err)
	}
	if r := b.read(); len(r.Seen) != 1 || r.Seen[0].Option != opt("SO_PASSCRED") {
		t.Errorf("%+v", r.Seen)
	}
}

// io_uring's commands for sockets, where the kernel has them (6.7): they come to
// the hooks like the system calls.
// On every suite.
func TestVMIOUring(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce, Allow: []Option{opt("SO_REUSEADDR")}, HoldGet: true})
	var got map[string]int
	b.play("uring", nil, &got)
	t.Log(got)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	r := b.read()
	if major < 6 || major == 6 && minor < 7 {
		if got["set"] != -int(unix.EOPNOTSUPP) || got["get"] != -int(unix.EOPNOTSUPP) || len(r.Seen) != 0 {
			t.Errorf("%d.%d: %v %+v", major, minor, got, r.Seen)
		}
		return
	}
	if got["set"] != -int(unix.EPERM) || got["set allowed"] != 0 || got["get"] != -int(unix.EPERM) || len(r.Seen) != 3 {
		t.Errorf("%d.%d: %v %+v", major, minor, got, r.Seen)
	}
}

// Whatever somebody has written into the tables, the declared rules come to hold again,
// and what was recorded stays.
func TestVMSpoiledTablesAreMadeAnew(t *testing.T) {
	b := newBench(t)
	nodelay, keepalive := attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}, attempt{Kind: "tcp4", Level: unix.SOL_SOCKET, Option: unix.SO_KEEPALIVE}
	host := Host{System: b.System}
	declared := attach.SocketOptions{Mode: attach.SocketsEnforce, Allow: []attach.AllowedOption{{Option: "SOL_SOCKET:SO_KEEPALIVE"}}}
	list := func(level int32) (r Rules) {
		r.Mode = Enforce
		for i := range int32(3000) {
			r.Allow = append(r.Allow, Option{level, i})
		}
		return r
	}
	fill := func(allow *ebpf.Map) (err error) {
		for i := int32(0); err == nil; i++ {
			err = allow.Put(bpfAllowKey{Level: 99, Optname: i}, uint32(1))
		}
		if !errors.Is(err, unix.E2BIG) {
			return err
		}
		return nil
	}
	mode := func(config *ebpf.Map) error {
		var s bpfSettings
		return errors.Join(config.Lookup(uint32(0), &s), func() error { s.Mode = 7; return config.Put(uint32(0), s) }())
	}
	var since time.Time
	for _, c := range []struct {
		name  string
		spoil func(allow, config *ebpf.Map) error
	}{
		{"a mode that there is not", func(_, config *ebpf.Map) error { return mode(config) }},
		{"a full list without an option", func(allow, _ *ebpf.Map) error {
			return errors.Join(allow.Delete(bpfAllowKey{Level: unix.SOL_SOCKET, Optname: unix.SO_KEEPALIVE}), fill(allow))
		}},
		{"options for a call that there is not", func(allow, _ *ebpf.Map) error {
			return allow.Put(bpfAllowKey{Level: 6, Optname: 1, Call: 256}, uint32(1))
		}},
		{"tables that cannot be written", func(allow, config *ebpf.Map) error {
			return errors.Join(allow.Delete(bpfAllowKey{Level: unix.SOL_SOCKET, Optname: unix.SO_KEEPALIVE}), allow.Freeze(), config.Freeze())
		}},
		{"a long list, and the declared one with it is too long", func(_, _ *ebpf.Map) error {
			b.attach(list(98))
			b.attach(list(99))
			return nil
		}},
	} {
		if _, err := host.Attach(b.group, b.unit, declared); err != nil {
			t.Fatalf("%s: before: %v", c.name, err)
		}
		b.try(keepalive)
		before := b.read()
		if since.IsZero() {
			since = before.Since
		}
		o, err := (&unitDir{path: b.dir(b.unit)}).openMaps("allow", "config")
		if err != nil {
			t.Fatal(err)
		}
		if err := c.spoil(o.maps["allow"], o.maps["config"]); err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		o.Close()
		if seen := host.Attached(b.group, b.unit, declared); seen.Attached != attach.Yes || seen.Rules != attach.No {
			t.Errorf("%s: a look says %+v", c.name, seen)
		}
		if changed, err := host.Attach(b.group, b.unit, declared); !changed || err != nil {
			t.Errorf("%s: attach changed %v, %v", c.name, changed, err)
		}
		if seen := host.Attached(b.group, b.unit, declared); seen.Attached != attach.Yes || seen.Rules != attach.Yes {
			t.Errorf("%s: afterwards: %+v", c.name, seen)
		}
		if a := b.try(nodelay, keepalive); a[0].Errno != int(unix.EPERM) || a[1].Errno != 0 {
			t.Errorf("%s: %+v", c.name, a)
		}
		on := Socket{unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP}
		after := b.read()
		if had, has := before.find(Set, opt("SO_KEEPALIVE"), on).Allowed, after.find(Set, opt("SO_KEEPALIVE"), on).Allowed; has != had+1 || !after.Since.Equal(since) {
			t.Errorf("%s: %d calls recorded since %v, %d before since %v", c.name, has, after.Since, had, since)
		}
		if changed, err := host.Attach(b.group, b.unit, declared); changed || err != nil {
			t.Errorf("%s: once more: %v, %v", c.name, changed, err)
		}
	}

	// What takes no rules is switched off all the same.
	o, err := (&unitDir{path: b.dir(b.unit)}).openMaps("config")
	if err != nil {
		t.Fatal(err)
	}
	if err := mode(o.maps["config"]); err != nil {
		t.Fatal(err)
	}
	o.Close()
	if changed, err := host.Off(b.unit); !changed || err != nil {
		t.Errorf("off: %v, %v", changed, err)
	}
	if a, err := b.Attached(b.group, b.unit); err != nil || a.Set.Program != 0 || a.Get.Program != 0 {
		t.Errorf("off: %+v, %v", a, err)
	}
	if r := b.read(); r.Rules.Mode != Off || len(r.Seen) == 0 {
		t.Errorf("off: %+v", r)
	}
}

// What attach.OpensPins is about: root changes its own list by the pin, and takes
// no capability for it.
func TestVMRootNeedsNoCapabilityToChangeItsList(t *testing.T) {
	b := newBench(t)
	rules := Rules{Mode: Enforce}
	b.attach(rules)
	nodelay := attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}
	if a := b.try(nodelay); a[0].Errno != int(unix.EPERM) {
		t.Fatalf("before: %+v", a)
	}
	var mode uint32
	b.play("rewrite", b.dir(b.unit), &mode)
	if a := b.try(nodelay); a[0].Errno != 0 {
		t.Errorf("it is refused: %+v", a)
	}
	if a, err := b.Attached(b.group, b.unit); err != nil || !a.Ours || a.Holds(rules) {
		t.Errorf("a look says %+v, %v", a, err)
	}
}

// A unit that has ended leaves nothing once that is asked for, and one that runs keeps
// what it has.
func TestVMSweep(t *testing.T) {
	b := newBench(t)
	rules := Rules{Mode: Enforce}
	b.attach(rules)
	if gone, err := b.Sweep(b.unit); gone || err != nil {
		t.Error(gone, err)
	}
	if a, err := b.Attached(b.group, b.unit); err != nil || !a.Holds(rules) {
		t.Errorf("while it runs: %+v, %v", a, err)
	}
	if err := os.Remove(b.cgroups + b.group); err != nil {
		t.Fatal(err)
	}
	var gone bool
	for range 100 { // the kernel lets go of the link in its own time
		var err error
		if gone, err = b.Sweep(b.unit); gone || err != nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	if units, err := b.Units(); !gone || err != nil || slices.Contains(units, b.unit) {
		t.Errorf("when it has ended: %v, %q, %v", gone, units, err)
	}
	if gone, err := b.Sweep(b.unit); !gone || err != nil {
		t.Errorf("nothing there: %v, %v", gone, err)
	}
	if err := os.Mkdir(b.cgroups+b.group, 0o755); err != nil {
		t.Fatal(err)
	}
}

// What cannot be reached is not said to be taken off. Where there never was a BPF file
// system, there is nothing.
func TestVMNothingIsTakenOffUnderAMount(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce})
	if err := unix.Mount("tmpfs", b.bpf, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	unmount := sync.OnceValue(func() error { return unix.Unmount(b.bpf, 0) })
	t.Cleanup(func() { _ = unmount() })
	removals := map[string]func(*System) error{
		"remove": func(s *System) error { _, err := s.Remove(b.unit); return err },
		"sweep":  func(s *System) error { _, err := s.Sweep(b.unit); return err },
		"off":    func(s *System) error { _, err := s.Attach(b.group, b.unit, Rules{Mode: Off}); return err },
		"all":    func(s *System) error { return s.RemoveAll() },
	}
	for name, remove := range removals {
		if err := remove(b.System); err == nil || !strings.Contains(err.Error(), "umount "+b.bpf) {
			t.Errorf("%s: %v", name, err)
		}
		if err := remove(New(Options{BPF: t.TempDir(), Cgroups: b.cgroups})); err != nil {
			t.Errorf("%s where there is none: %v", name, err)
		}
	}
	if a := b.try(attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}); a[0].Errno != int(unix.EPERM) {
		t.Errorf("meanwhile: %+v", a)
	}
	if err := unmount(); err != nil {
		t.Fatal(err)
	}
	if changed, err := b.Remove(b.unit); !changed || err != nil {
		t.Errorf("when it can be reached again: %v, %v", changed, err)
	}
}

// What is there of any unit goes.
func TestVMRemoveAll(t *testing.T) {
	b := newBench(t)
	b.attach(Rules{Mode: Enforce})
	if units, err := b.Units(); err != nil || !slices.Contains(units, b.unit) {
		t.Errorf("%q %v", units, err)
	}
	if err := b.RemoveAll(); err != nil {
		t.Error(err)
	}
	if a := b.try(attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}); a[0].Errno != 0 {
		t.Errorf("%+v", a)
	}
	if units, err := b.Units(); err != nil || len(units) != 0 {
		t.Errorf("%q %v", units, err)
	}
	if err := b.RemoveAll(); err != nil {
		t.Error(err)
	}
}
