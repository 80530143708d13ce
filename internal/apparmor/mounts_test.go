package apparmor

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// mainEnds has a copy of this program open a file, say so, and end its main thread; the
// others go on until its input ends.
const mainEnds = "AAUNIT_TEST_MAIN_THREAD_ENDS"

func init() {
	file := os.Getenv(mainEnds)
	if file == "" {
		return
	}
	runtime.LockOSThread() // an init is on the main thread
	if _, err := syscall.Open(file, syscall.O_RDONLY, 0); err != nil {
		panic(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("open")
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
}

// What a process sees is told also when its main thread has ended.
func TestTmpWhenTheMainThreadHasEnded(t *testing.T) {
	f, err := os.CreateTemp("/tmp", "aaunit-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), mainEnds+"="+f.Name())
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
	var said string
	if _, err := fmt.Fscan(out, &said); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); strings.Contains(string(text), "State:\tZ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its main thread does not end")
		}
	}
	s := New(Options{})
	if got, want := s.tmpView(pid), s.tmpView(os.Getpid()); got != want || got.Tmp == "" {
		t.Errorf("%+v, want %+v", got, want)
	}
	found := map[string]bool{}
	if s.openIn(pid, []string{"/tmp/"}, found); !found[f.Name()] {
		t.Errorf("%v", found)
	}
}

// No name is looked up on a file system that may not answer. A directory of /proc stands
// for one: it is on no block device, and on none of the made-up host's.
func TestFileSystemsThatMayNotAnswer(t *testing.T) {
	dir, err := unix.Open("/proc", unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	x, err := statBelow(dir, "")
	if err != nil || x.Mask&unix.STATX_MNT_ID == 0 {
		t.Fatalf("%+v %v", x, err)
	}
	id := strconv.FormatUint(x.Mnt_id, 10)
	if own, err := New(Options{}).mounts("self"); err != nil || !slices.ContainsFunc(own, func(m mount) bool { return m.id == id && m.kind == "proc" }) {
		t.Fatalf("mount %s of /proc is not among %+v: %v", id, own, err)
	}
	device := fmt.Sprintf("%d:%d", x.Dev_major, x.Dev_minor)
	const ext4 = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
	for _, c := range []struct {
		what string
		own  []mount
		host string
		want bool
	}{
		{"a tmpfs of its own", []mount{{id: id, kind: "tmpfs"}}, ext4, true},
		{"FUSE", []mount{{id: id, kind: "fuse.x"}}, ext4, false},
		{"FUSE, with the number of another", []mount{{id: id, kind: "fuse", device: device}}, ext4 + "2 1 " + device + " / /x rw - tmpfs x rw\n", false},
		{"an overlay of its own", []mount{{id: id, kind: attach.Overlay, device: "0:999"}}, ext4, false},
		{"an overlay of the host's", []mount{{id: id, kind: attach.Overlay, device: "0:999"}}, ext4 + "2 1 0:999 / /srv rw - overlay o rw\n", true},
		{"one outside of its root", []mount{{id: id + "0", kind: "tmpfs"}}, ext4, false},
		{"one outside of its root that the host has", nil, ext4 + "2 1 " + device + " / /x rw - tmpfs x rw\n", true},
		{"FUSE outside of its root that the host has", nil, ext4 + "2 1 " + device + " / /x rw - fuse x rw\n", false},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHost(t)
			h.mkdir("/proc/1/root/tmp")
			h.mkdir("/proc/1/root/var/tmp")
			h.write("/proc/1/mountinfo", c.host)
			if got := h.answering(10, c.own)(dir); got != c.want {
				t.Errorf("%v", got)
			}
		})
	}

	h := newHost(t)
	h.mkdir("/proc/1/root/tmp")
	h.mkdir("/proc/1/root/var/tmp")
	h.write("/proc/1/mountinfo", ext4)
	h.write("/proc/10/mountinfo", "900 899 0:998 / / rw - fuse x rw\n901 900 8:1 /private/tmp /tmp rw - ext4 /dev/sda1 rw\n")
	h.symlink("/proc", "/proc/10/root")
	host, ok := h.tmpInodes(1, nil, nil)
	if !ok {
		t.Fatal("the host's /tmp cannot be looked at")
	}
	if v, ok := h.tmpInodes(10, &host, map[onMount]bool{}); ok {
		t.Errorf("%+v", v)
	}
	// What is mounted on it is known all the same.
	if v := h.tmpView(10); v.Tmp != "8:1 /private/tmp" || v.VarTmp != "" || !strings.Contains(v.Problem, "/var/tmp of process 10 is: it is on a file system that may not answer") {
		t.Errorf("%+v", v)
	}
}

// That a file system has a block device does not mean that it answers.
func TestFileSystemsOnBlockDevices(t *testing.T) {
	const ext4 = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
	on := onMount{901, unix.Mkdev(8, 99)}
	for _, c := range []struct {
		what, own, host string
		want            bool
	}{
		{"ext4", "901 900 8:99 / / rw - ext4 /dev/sdb rw\n", ext4, true},
		{"ntfs-3g", "901 900 8:99 / / rw - fuseblk /dev/sdb rw\n", ext4, false},
		{"one that machines share", "901 900 8:99 / / rw - gfs2 /dev/sdb rw\n", ext4, false},
		{"an overlay, which has none", "901 900 0:99 / / rw - overlay o rw\n", ext4, false},
		{"outside of its root", "902 900 8:1 / / rw - ext4 /dev/sda1 rw\n", ext4, true},
		{"outside of its root, and the host has it", "902 900 8:1 / / rw - ext4 /dev/sda1 rw\n", ext4 + "2 1 8:99 / /srv rw - xfs /dev/sdb rw\n", true},
		{"ntfs-3g outside of its root that the host has", "902 900 8:1 / / rw - ext4 /dev/sda1 rw\n", ext4 + "2 1 8:99 / /srv rw - fuseblk /dev/sdb rw\n", false},
		{"mounts that cannot be read", "nonsense\n", ext4, false},
		{"the host's mounts cannot be read", "902 900 8:1 / / rw - ext4 /dev/sda1 rw\n", "nonsense\n", false},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHost(t)
			h.write("/proc/1/mountinfo", c.host)
			h.write("/proc/10/mountinfo", c.own)
			local := map[onMount]bool{}
			if got := h.enters(10, on, local); got != c.want {
				t.Errorf("%v", got)
			}
			// The mounts are not read for the next process, nor for the next look at it.
			h.write("/proc/1/mountinfo", "nonsense\n")
			h.write("/proc/10/mountinfo", "nonsense\n")
			for _, pid := range []int{10, 11} {
				if got := h.enters(pid, on, local); got != c.want {
					t.Errorf("of process %d again: %v", pid, got)
				}
			}
			if c.want && h.enters(10, onMount{on.id, unix.Mkdev(8, 98)}, local) {
				t.Error("another device was not asked for")
			}
		})
	}

	// The temporary directory is on a block device, or its mounts must be asked in any case.
	h := newHost(t)
	h.mkdir("/proc/10/root/tmp")
	h.mkdir("/proc/10/root/var/tmp")
	dir, err := unix.Open(h.root, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	x, err := statBelow(dir, "")
	if err != nil {
		t.Fatal(err)
	}
	for kind, want := range map[string]bool{"ext4": x.Dev_major != 0, "fuseblk": false} {
		h.write("/proc/10/mountinfo", fmt.Sprintf("%d 900 %d:%d / / rw - %s /dev/sdb rw\n", x.Mnt_id, x.Dev_major, x.Dev_minor, kind))
		if v, ok := h.tmpInodes(10, &tmpInodes{}, map[onMount]bool{}); ok != want {
			t.Errorf("%s: %+v %v", kind, v, ok)
		}
	}
}

// A path is followed as the process sees it, also where links lead through others.
func TestFindFollowsLinks(t *testing.T) {
	h := newHost(t)
	root := "/proc/10/root"
	h.mkdir(root + "/tmp")
	h.mkdir(root + "/srv/var/tmp")
	h.mkdir(root + "/srv/deep/down")
	h.symlink("/srv/var", root+"/var")
	h.symlink("../../tmp", root+"/srv/deep/tmp")
	h.symlink("srv/deep/down", root+"/away")
	h.symlink("/away/../tmp", root+"/odd")
	h.symlink("../../../../../srv", root+"/up")
	h.symlink("loop", root+"/loop")
	for p, want := range map[string]string{
		"/tmp": "/tmp", "/var/tmp": "/srv/var/tmp", "/odd": "/tmp", "/up": "/srv", "/": "/",
		"/none/x": "/none/x", "/var/none": "/srv/var/none", "/loop": "/loop",
	} {
		got, at, err := h.find("10", p, nil)
		var st unix.Stat_t
		missing := unix.Stat(h.root+root+want, &st) != nil
		if got != want || (err != nil) != missing || err == nil && (at.ino != st.Ino || at.dev != st.Dev) {
			t.Errorf("%s: %s %+v %v", p, got, at, err)
		}
	}
}

// What was put into a unit's files since its start shows at its main process, or rather
// does not.
func TestMainProcess(t *testing.T) {
	h := newHost(t)
	s := h.System
	h.proc(proc{pid: 10, comm: "a", labels: one("a (enforce)", 10)})
	u := attach.Unit{MainPID: 10}
	u.Settings.ProtectControlGroups = true
	for mounts, want := range map[string]attach.Tri{
		"30 22 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n":                                               attach.No,
		"30 22 0:26 / /sys/fs/cgroup ro,nosuid - cgroup2 cgroup2 rw\n":                                               attach.Yes,
		"30 22 0:26 /system.slice/a.service /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n":                                attach.Yes,
		"30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n31 30 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n": attach.Yes,
		"30 22 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n31 30 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n": attach.No,
		"nonsense\n": attach.CouldNotTell,
	} {
		h.write("/proc/10/mountinfo", someMounts+mounts)
		if got := s.MainProcess(u, nil); got.GroupsClosed != want || got.Root != attach.Yes {
			t.Errorf("%s: %+v, want %v", mounts, got, want)
		}
	}
	for _, pid := range []int{0, 11} {
		if got := s.MainProcess(attach.Unit{MainPID: pid}, nil); got != (attach.MainProcess{}) {
			t.Errorf("of %d: %+v", pid, got)
		}
	}
}

// A unit without a main process is held to what each of its processes is held to.
func TestMainProcessOfAUnitWithoutOne(t *testing.T) {
	h := newHost(t)
	s := h.System
	const closed, open = "30 22 0:26 / /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n", "30 22 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	add := func(pid int, state byte, status, mounts string) {
		h.proc(proc{pid: pid, comm: "a", state: state, labels: one("a (enforce)", pid)})
		h.write(fmt.Sprintf("/proc/%d/status", pid), status)
		h.write(fmt.Sprintf("/proc/%d/mountinfo", pid), someMounts+mounts)
	}
	const user, root = "Uid:\t33\t33\t33\t33\nSeccomp:\t2\n", "Uid:\t0\t0\t0\t0\nSeccomp:\t2\n"
	add(10, 'S', user, closed)
	add(11, 'S', user, closed)
	add(12, 'S', root, closed)
	add(13, 'S', "Uid:\t33\t33\t33\t33\nSeccomp:\t0\n", closed)
	add(14, 'S', user, open)
	add(15, 'S', "", "nonsense\n")
	add(16, 'Z', root, "")
	limited := attach.MainProcess{Root: attach.No, Filtered: attach.Yes, GroupsClosed: attach.Yes}
	with := func(change func(p *attach.MainProcess)) attach.MainProcess {
		p := limited
		change(&p)
		return p
	}
	tasks := func(pids ...int) (out []attach.Task) {
		for _, pid := range pids {
			out = append(out, attach.Task{PID: pid, TID: pid})
		}
		return out
	}
	manager := tasks(12)
	manager[0].Manager = true
	var many []attach.Task
	for pid := range maxHeld + 1 {
		add(100+pid, 'S', user, closed)
		many = append(many, tasks(100+pid)...)
	}
	for name, c := range map[string]struct {
		tasks []attach.Task
		want  attach.MainProcess
	}{
		"none":                        {nil, attach.MainProcess{}},
		"one":                         {tasks(10), limited},
		"threads of two":              {tasks(10, 10, 11, 11), limited},
		"one is root":                 {tasks(10, 12, 11), with(func(p *attach.MainProcess) { p.Root = attach.Yes })},
		"one has no filter":           {tasks(13, 10), with(func(p *attach.MainProcess) { p.Filtered = attach.No })},
		"one sees all groups":         {tasks(10, 14), with(func(p *attach.MainProcess) { p.GroupsClosed = attach.No })},
		"one cannot be read":          {tasks(10, 15), attach.MainProcess{}},
		"one of them, and one is bad": {tasks(15, 12, 13, 14), attach.MainProcess{Root: attach.Yes, Filtered: attach.No, GroupsClosed: attach.No}},
		"one has ended":               {tasks(10, 16, 99), limited},
		"all have ended":              {tasks(16, 99), attach.MainProcess{}},
		"systemd's own":               {append(tasks(10), manager...), limited},
		"nothing but systemd's own":   {manager, attach.MainProcess{}},
		"of another PID namespace":    {tasks(10, 0), attach.MainProcess{}},
		"as many as are asked":        {many[:maxHeld], limited},
		"more than are asked":         {many, attach.MainProcess{}},
	} {
		u := attach.Unit{}
		u.Settings.ProtectControlGroups = true
		if got := s.MainProcess(u, c.tasks); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
		// The main process is enough where there is one.
		u.MainPID = 10
		if got := s.MainProcess(u, c.tasks); got != limited {
			t.Errorf("%s, and a main process: %+v", name, got)
		}
	}
}
