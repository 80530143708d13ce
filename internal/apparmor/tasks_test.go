package apparmor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// proc is a process of a made-up /proc.
type proc struct {
	pid    int
	comm   string
	exe    string // a file below the root; "" deleted
	state  byte
	uid    int
	ppid   int
	labels map[int]string // by TID
	cgroup string
}

const someMounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw\n23 22 0:30 / /tmp rw shared:2 - tmpfs tmpfs rw\n"

func (h *host) proc(p proc) {
	h.t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.pid)
	if p.state == 0 {
		p.state = 'S'
	}
	h.write(dir+"/stat", fmt.Sprintf("%d (%s) %c %d 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 %d 1 1\n", p.pid, p.comm, p.state, p.ppid, 1000+p.pid))
	h.write(dir+"/status", fmt.Sprintf("Name:\tx\nTgid:\t%d\nPPid:\t%d\nUid:\t%d\t%d\t%d\t%d\n", p.pid, p.ppid, p.uid, p.uid, p.uid, p.uid))
	h.write(dir+"/mountinfo", someMounts)
	h.write(dir+"/cgroup", "0::"+p.cgroup+"\n")
	h.mkdir(dir + "/fd")
	if p.exe != "" {
		h.write(p.exe, p.exe)
		_ = os.Remove(filepath.Join(h.root, dir, "exe"))
		h.symlink(filepath.Join(h.root, p.exe), dir+"/exe")
	}
	for tid, label := range p.labels {
		if label == "" {
			h.mkdir(fmt.Sprintf("%s/task/%d", dir, tid))
			continue
		}
		h.write(fmt.Sprintf("%s/task/%d/attr/apparmor/current", dir, tid), label+"\n")
	}
}

func (h *host) cgroup(group string, pids ...int) {
	h.t.Helper()
	h.write(cgroupDir+"/cgroup.controllers", "memory pids\n")
	text := ""
	for _, p := range pids {
		text += fmt.Sprintln(p)
	}
	h.write(cgroupDir+group+"/cgroup.procs", text)
}

func one(label string, pid int) map[int]string { return map[int]string{pid: label} }

func TestScanOfAMadeUpHost(t *testing.T) {
	h := newHost(t)
	const systemd = "/usr/lib/systemd/systemd"
	h.proc(proc{pid: 1, comm: "systemd", exe: systemd, labels: one("unconfined", 1), cgroup: "/init.scope"})
	h.proc(proc{pid: 10, comm: "a (b) c", exe: "/usr/bin/agent", labels: map[int]string{10: "my (agent) (enforce)", 12: "my (agent) (enforce)", 11: "my (agent)//&unconfined (enforce)"}, uid: 7})
	h.proc(proc{pid: 20, comm: "(sd-pam)", exe: systemd, labels: one("unconfined", 20), uid: 7, ppid: 10})
	h.proc(proc{pid: 21, comm: "(sd-pam)", exe: "/usr/bin/liar", labels: one("unconfined", 21), uid: 7, ppid: 10})
	h.proc(proc{pid: 22, comm: "(sd-pam)", exe: systemd, labels: one("unconfined", 22), uid: 7, ppid: 21})
	h.proc(proc{pid: 23, comm: "x", exe: systemd, labels: one("unconfined", 23)})
	h.proc(proc{pid: 30, comm: "dead", state: 'Z', labels: one("unconfined", 30)})
	h.proc(proc{pid: 31, comm: "bad", labels: one("what (is this)", 31)})
	h.proc(proc{pid: 32, comm: "none", labels: one("", 32)})
	h.proc(proc{pid: 40, comm: "session", exe: "/usr/bin/sh", labels: one("x (complain)", 40), cgroup: "/user.slice/user-7.slice/session-1.scope"})
	h.cgroup("/user.slice/user-7.slice/session-1.scope", 40, 41)
	h.proc(proc{pid: 41, comm: "kid", exe: "/usr/bin/sh", labels: one("x (complain)", 41)})
	h.cgroup("/system.slice/a.service", 10, 20, 21, 22, 23)
	h.cgroup("/system.slice/a.service/sub", 30, 31, 32, 999)

	s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/system.slice/a.service", MainPID: 10, ControlPID: 40})
	var got []string
	for _, x := range s.Tasks {
		got = append(got, fmt.Sprintf("%d/%d %s %s|%s|%v", x.PID, x.TID, x.Comm, x.Label, x.Problem, x.Manager))
	}
	want := []string{
		"10/10 a (b) c my (agent) (enforce)||false",
		"10/11 a (b) c my (agent)//&unconfined (enforce)||false",
		"10/12 a (b) c my (agent) (enforce)||false",
		"20/20 (sd-pam) unconfined||true",
		"21/21 (sd-pam) unconfined||false",
		"22/22 (sd-pam) unconfined||false",
		"23/23 x unconfined||true",
		`31/31 bad |cannot read label "what": unknown mode "is this"|false`,
		"32/32 none |the kernel gives no AppArmor label (attr/apparmor/current does not exist)|false",
		"40/40 session x (complain)||false",
		"41/41 kid x (complain)||false",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if !s.Stable || s.Problem != "" || s.HostTmp != (attach.TmpView{Tmp: "0:30 /", VarTmp: "8:1 /var/tmp"}) || len(s.Tmp) != 7 {
		t.Errorf("%+v", s)
	}
	if s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/system.slice/none.service"}); s.Problem != "" || len(s.Tasks) > 0 || !s.Stable {
		t.Errorf("a unit without a control group: %+v", s)
	}
	if s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/system.slice/../x"}); s.Problem == "" {
		t.Error("a hostile control group was taken")
	}
	if err := os.Remove(filepath.Join(h.root, cgroupDir, "cgroup.controllers")); err != nil {
		t.Fatal(err)
	}
	if s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/system.slice/a.service"}); !strings.Contains(s.Problem, "cgroup v2") {
		t.Errorf("without cgroup v2: %q", s.Problem)
	}
	done, cancel := context.WithCancel(context.Background())
	cancel()
	if s := h.Scan(done, attach.Unit{}); s.Problem == "" || s.Stable {
		t.Errorf("%+v", s)
	}
}

// A process between its fork and its exec is not believed to be unconfined.
func TestScanWaitsForTheExec(t *testing.T) {
	h := newHost(t)
	h.proc(proc{pid: 1, comm: "systemd", exe: "/usr/lib/systemd/systemd", labels: one("unconfined", 1)})
	h.proc(proc{pid: 10, comm: "x", exe: "/bin/x", labels: one("unconfined", 10)})
	h.cgroup("/a.service", 10)
	go func() {
		time.Sleep(40 * time.Millisecond)
		label := filepath.Join(h.root, "proc/10/task/10/attr/apparmor/current")
		_ = os.WriteFile(label+".new", []byte("x (enforce)\n"), 0o644)
		_ = os.Rename(label+".new", label)
	}()
	s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/a.service"})
	if !s.Stable || len(s.Tasks) != 1 || s.Tasks[0].Label.String() != "x (enforce)" {
		t.Errorf("%+v", s)
	}
}

// Every look finds another process: the control group is a pipe with somebody
// at its other end.
func TestScanOfTasksThatDoNotHoldStill(t *testing.T) {
	h := newHost(t)
	h.cgroup("/a.service")
	procs := filepath.Join(h.root, cgroupDir, "a.service/cgroup.procs")
	if err := os.Remove(procs); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(procs, 0o600); err != nil {
		t.Fatal(err)
	}
	const n = 60
	for pid := range n {
		h.proc(proc{pid: 1000 + pid, comm: "x", labels: one("unconfined", 1000+pid)})
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for pid := 0; ; pid++ {
			f, err := os.OpenFile(procs, os.O_WRONLY, 0)
			if err != nil {
				return
			}
			select {
			case <-end:
				f.Close()
				return
			default:
			}
			fmt.Fprintln(f, 1000+pid%n)
			for left := 1; left > 0; { // until it is read
				if left, err = unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ); err != nil {
					break
				}
			}
			f.Close()
			time.Sleep(10 * time.Millisecond) // the reader closes, too
		}
	}()
	begin := time.Now()
	s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/a.service"})
	if s.Stable || s.Problem != "" || time.Since(begin) > 10*time.Second {
		t.Errorf("stable %v after %v: %s", s.Stable, time.Since(begin), s.Problem)
	}
	close(end)
	if f, err := os.OpenFile(procs, os.O_RDONLY, 0); err == nil {
		<-done
		f.Close()
	}
}

func TestOpenInTmp(t *testing.T) {
	h := newHost(t)
	h.proc(proc{pid: 1, comm: "systemd", labels: one("unconfined", 1)})
	h.proc(proc{pid: 10, comm: "x", labels: one("unconfined", 10)})
	h.proc(proc{pid: 11, comm: "x", labels: one("unconfined", 11)})
	h.write("/proc/11/mountinfo", someMounts+"24 23 0:30 /systemd-private-x/tmp /tmp rw - tmpfs tmpfs rw\n")
	for _, pid := range []int{10, 11} {
		for i, to := range []string{"/tmp/a file", "/tmp/gone (deleted)", "/etc/passwd", "socket:[77]", "socket:[78]", "/var/tmp/b", "/tmpx/c"} {
			h.symlink(to, fmt.Sprintf("/proc/%d/fd/%d", pid, i))
		}
		h.write(fmt.Sprintf("/proc/%d/net/unix", pid), "Num RefCount Protocol Flags Type St Inode Path\n0: 2 0 10000 1 1    77 /tmp/sock et\n0: 2 0 0 1 1 79 /tmp/other\n0: 2 0 0 1 1 78\n")
	}
	h.cgroup("/a.service", 10)
	h.cgroup("/b.service", 11)
	if d := cmp.Diff([]string{"/tmp/a file", "/tmp/sock et", "/var/tmp/b"}, h.OpenInTmp(ctx(t), attach.Unit{ControlGroup: "/a.service"})); d != "" {
		t.Error(d)
	}
	// Its own /tmp, but the host's /var/tmp.
	if d := cmp.Diff([]string{"/var/tmp/b"}, h.OpenInTmp(ctx(t), attach.Unit{ControlGroup: "/b.service"})); d != "" {
		t.Error(d)
	}
}

func (h *host) loaded(dir, name, mode, sum string) {
	dir = securityDir + "/policy/profiles/" + dir
	h.write(dir+"/name", name+"\n")
	h.write(dir+"/mode", mode+"\n")
	h.write(dir+"/sha256", sum+"\n")
}

func TestLive(t *testing.T) {
	h := newHost(t)
	if _, err := h.Live([]string{"a"}); err == nil {
		t.Error("no policy tree, and no error")
	}
	h.loaded("a_b.1", "a b", "enforce", "aa")
	h.loaded("a_b.1/profiles/kid.2", "kid", "complain", "bb")
	h.loaded("a_b.1/profiles/kid.2/profiles/x.9", "x", "kill", "cc")
	h.loaded("a_b.3", "a\tb", "enforce", "dd")
	h.loaded("usr.bin.x.4", "/usr/bin/x", "unconfined", "ee")
	h.loaded("surprise", "odd", "enforce", "ff")
	got, err := h.Live([]string{"a b", "/usr/bin/x", "odd", "none"})
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]attach.LiveProfile{
		"a b":         {Name: "a b", Mode: attach.ModeEnforce, Checksum: "sha256:aa"},
		"a b//kid":    {Name: "a b//kid", Mode: attach.ModeComplain, Checksum: "sha256:bb"},
		"a b//kid//x": {Name: "a b//kid//x", Mode: attach.ModeKill, Checksum: "sha256:cc"},
		"/usr/bin/x":  {Name: "/usr/bin/x", Mode: attach.ModeUnconfined, Checksum: "sha256:ee"},
		"odd":         {Name: "odd", Mode: attach.ModeEnforce, Checksum: "sha256:ff"},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if got, err := h.Live([]string{"a b//kid"}); err != nil || len(got) != 2 {
		t.Errorf("%+v %v", got, err)
	}
	h.write(securityDir+"/policy/profiles/surprise/sha256", "not hex\n")
	if got, err := h.Live([]string{"odd"}); err == nil {
		t.Errorf("%+v", got)
	}
}

func TestUnloadRefusesWhatIsCarried(t *testing.T) {
	h := newHost(t)
	h.loaded("x.1", "x", "enforce", "aa")
	h.write(securityDir+"/.remove", "")
	h.proc(proc{pid: 10, comm: "prog", labels: map[int]string{10: "y (enforce)", 11: "y//&x//hat (enforce)"}})
	if err := h.Unload(ctx(t), "x"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "prog (PID 10)") {
		t.Errorf("%v", err)
	}
	h.proc(proc{pid: 10, comm: "prog", labels: map[int]string{10: "xy (enforce)", 11: "y (enforce)"}})
	h.write("/proc/10/task/11/attr/apparmor/exec", "x (enforce)\n")
	if err := h.Unload(ctx(t), "x"); !errors.Is(err, ErrInUse) {
		t.Errorf("the next exec will carry it: %v", err)
	}
	h.write("/proc/10/task/11/attr/apparmor/exec", "\n")
	if err := h.Unload(ctx(t), "x"); err == nil || errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "the kernel still has it") {
		t.Errorf("%v", err)
	}
	if wrote, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".remove")); string(wrote) != "x" {
		t.Errorf("wrote %q", wrote)
	}
	h.proc(proc{pid: 12, comm: "odd", labels: one("? (?)", 12)})
	if err := h.Unload(ctx(t), "x"); err == nil || !strings.Contains(err.Error(), "could not be told") {
		t.Errorf("%v", err)
	}
	if err := h.Unload(ctx(t), "none"); err != nil {
		t.Error(err)
	}
}

func TestLoadReadsBack(t *testing.T) {
	h := newHost(t)
	f := h.profile("x", "profile x { }\n")
	c, problems := h.Compile(ctx(t), []string{f}, false)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if failed := h.Load(ctx(t), c); failed[f] == nil {
		t.Error("loaded without a kernel")
	}
	h.write(securityDir+"/.replace", "")
	h.mkdir(securityDir + "/policy/profiles")
	if failed := h.Load(ctx(t), c); failed[f] == nil || !strings.Contains(failed[f].Error(), "does not have profile x afterwards") {
		t.Errorf("%v", failed)
	}
	h.loaded("x.1", "x", "enforce", "aa")
	c[0].Checksums = map[string]string{"x": "sha256:bb"}
	if failed := h.Load(ctx(t), c); failed[f] == nil || !strings.Contains(failed[f].Error(), "sha256:aa") {
		t.Errorf("%v", failed)
	}
	c[0].Checksums = map[string]string{"x": "sha256:aa"}
	if failed := h.Load(ctx(t), c); len(failed) > 0 {
		t.Errorf("%v", failed)
	}
	if wrote, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".replace")); string(wrote[:len(c[0].Blob)]) != string(c[0].Blob) {
		t.Error("other bytes than the compiled ones were written")
	}
}

func TestHost(t *testing.T) {
	h := newHost(t)
	if got := h.Host(); got.Enabled != attach.CouldNotTell || got.Problem == "" {
		t.Errorf("nothing to read: %+v", got)
	}
	h.mkdir("/sys/module")
	if got := h.Host(); got.Enabled != attach.No || got.Problem == "" {
		t.Errorf("no module: %+v", got)
	}
	for _, c := range []struct {
		enabled, mode string
		want          attach.Host
	}{
		{"Y\n", "enforce\n", attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce}},
		{"Y\n", "complain\n", attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeComplain}},
		{"N\n", "enforce\n", attach.Host{Enabled: attach.No}},
	} {
		h.write(paramDir+"/enabled", c.enabled)
		h.write(paramDir+"/mode", c.mode)
		if got := h.Host(); got != c.want {
			t.Errorf("%q %q: %+v", c.enabled, c.mode, got)
		}
	}
	h.write(paramDir+"/enabled", "maybe\n")
	if got := h.Host(); got.Enabled != attach.CouldNotTell || got.Problem == "" {
		t.Errorf("%+v", got)
	}
	h.write(paramDir+"/enabled", "Y\n")
	h.write(paramDir+"/mode", "odd\n")
	if got := h.Host(); got.GlobalMode != "" || got.Problem == "" {
		t.Errorf("%+v", got)
	}
}

func TestMangle(t *testing.T) {
	for name, want := range map[string]string{"/usr/bin/x": "usr.bin.x", "a b\tc": "a_b_c", "./x": "x", "a{b,c}*": "abc", "ünï": "n", "a-b_c.d": "a-b_c.d"} {
		if got := mangle(name); got != want {
			t.Errorf("mangle(%q) = %q, want %q", name, got, want)
		}
	}
}

func BenchmarkIndex(b *testing.B) {
	if _, err := os.Stat("/etc/apparmor.d/abstractions/base"); err != nil {
		b.Fatal(err)
	}
	dir := b.TempDir()
	root := filepath.Join(dir, "root")
	for _, sub := range []string{"abi", "abstractions", "tunables", "local"} {
		if err := os.CopyFS(filepath.Join(root, profileDir, sub), os.DirFS("/etc/apparmor.d/"+sub)); err != nil {
			b.Fatal(err)
		}
	}
	for i := range 100 {
		if err := os.WriteFile(filepath.Join(root, profileDir, fmt.Sprint(i)), fmt.Appendf(nil, "abi <abi/3.0>,\ninclude <tunables/global>\nprofile p%d /usr/bin/p%d {\n  include <abstractions/base>\n}\n", i, i), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	for b.Loop() {
		s := New(Options{Root: root, Scratch: filepath.Join(dir, "scratch"), Owner: os.Geteuid()})
		if n := len(s.Profiles()); n != 100 {
			b.Fatal(n)
		}
	}
}
