package apparmor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
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
	login  string        // proc_pid_loginuid(5); "" a kernel that has none
	groups int           // supplementary ones
	age    time.Duration // 0: more than an hour
}

// start is the start time that proc_pid_stat(5) gives.
func (p proc) start() int {
	if p.age == 0 {
		return p.pid - 1_000_000
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(err)
	}
	return int((time.Duration(now.Nano()) - p.age) / (10 * time.Millisecond))
}

const someMounts = "22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw\n23 22 0:30 / /tmp rw shared:2 - tmpfs tmpfs rw\n"

func (h *host) proc(p proc) {
	h.t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.pid)
	if p.state == 0 {
		p.state = 'S'
	}
	h.write(dir+"/stat", fmt.Sprintf("%d (%s) %c %d 1 1 0 -1 0 1 0 0 0 0 0 0 0 20 0 %d 0 %d 1 1\n",
		p.pid, p.comm, p.state, p.ppid, max(1, len(p.labels)), p.start()))
	h.write(dir+"/status", fmt.Sprintf("Name:\tx\nTgid:\t%d\nPPid:\t%d\nUid:\t%d\t%d\t%d\t%d\nGroups:\t%s\nNStgid:\t%d\n", p.pid, p.ppid, p.uid, p.uid, p.uid, p.uid,
		strings.Repeat("100000 ", p.groups), p.pid))
	if p.login != "" {
		h.write(dir+"/loginuid", p.login)
	}
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
	h.proc(proc{pid: 23, comm: "x", exe: systemd, labels: one("unconfined", 23), age: time.Second})
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
	if err := os.RemoveAll(filepath.Join(h.root, cgroupDir)); err != nil {
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

// looks lets next say which processes each look at a control group finds: its
// list is a pipe with somebody at its other end.
func (h *host) looks(group string, next func(n int) []int) {
	h.t.Helper()
	h.cgroup(group)
	procs := filepath.Join(h.root, cgroupDir, group, "cgroup.procs")
	if err := os.Remove(procs); err != nil {
		h.t.Fatal(err)
	}
	if err := syscall.Mkfifo(procs, 0o600); err != nil {
		h.t.Fatal(err)
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
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
			for _, pid := range next(n) {
				fmt.Fprintln(f, pid)
			}
			for left := 1; left > 0; { // until it is read
				if left, err = unix.IoctlGetInt(int(f.Fd()), unix.TIOCINQ); err != nil {
					break
				}
			}
			f.Close()
			time.Sleep(10 * time.Millisecond) // the reader closes, too
		}
	}()
	h.t.Cleanup(func() {
		close(end)
		if f, err := os.OpenFile(procs, os.O_RDONLY, 0); err == nil {
			<-done
			f.Close()
		}
		_ = os.Remove(procs) // whoever writes to it next would wait for ever
	})
}

// Every look finds another process.
func TestScanOfTasksThatDoNotHoldStill(t *testing.T) {
	h := newHost(t)
	const n = 60
	for pid := range n {
		h.proc(proc{pid: 1000 + pid, comm: "x", labels: one("unconfined", 1000+pid)})
	}
	h.looks("/a.service", func(look int) []int { return []int{1000 + look%n} })
	begin := time.Now()
	s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/a.service"})
	if s.Stable || s.Problem != "" || time.Since(begin) > 10*time.Second {
		t.Errorf("stable %v after %v: %s", s.Stable, time.Since(begin), s.Problem)
	}
}

// A service that forks all the time: every look finds its main process and a
// child that no other look finds.
func TestScanOfAServiceThatForksAllTheTime(t *testing.T) {
	when := func(label string, at func(look int) bool) func(int) string {
		return func(look int) string {
			if at(look) {
				return label
			}
			return "a (enforce)"
		}
	}
	sometimes := func(label string) func(int) string { return when(label, func(look int) bool { return look%3 == 1 }) }
	once := func(label string) func(int) string { return when(label, func(look int) bool { return look == 1 }) }
	always := func(label string) func(int) string { return func(int) string { return label } }
	all := newHost(t)
	all.proc(proc{pid: 10, comm: "main", labels: one("a (enforce)", 10)})
	const kids = 60
	for kid := range kids {
		all.proc(proc{pid: 1000 + kid, comm: "kid", labels: one("a (enforce)", 1000+kid)})
	}
	for _, c := range []struct {
		name   string
		child  func(look int) string
		stable bool
		last   string // what the child of the last look carries, if it matters
	}{
		{"under its own profile", always("a (enforce)"), true, ""},
		{"under a child profile", always("a//kid (enforce)"), true, ""},
		{"sometimes under a child profile", sometimes("a//kid (enforce)"), true, ""},
		{"once under a child profile", once("a//kid (enforce)"), true, ""},
		{"sometimes under another profile", sometimes("b (enforce)"), true, "b (enforce)"},
		{"sometimes in complain mode", sometimes("a//kid (complain)"), true, "a//kid (complain)"},
		{"once under another profile", once("b (enforce)"), false, ""},
		{"always under a new profile", func(look int) string { return fmt.Sprintf("a//null-%d (complain)", look) }, false, ""},
		{"sometimes unconfined", sometimes("unconfined"), false, ""},
		{"once unconfined", once("unconfined"), false, ""},
		{"never readable", always("what (is this)"), false, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := *all
			h.t = t
			for kid := range kids {
				h.write(fmt.Sprintf("/proc/%[1]d/task/%[1]d/attr/apparmor/current", 1000+kid), c.child(kid)+"\n")
			}
			var looks atomic.Int32
			h.looks("/a.service", func(look int) []int { looks.Add(1); return []int{10, 1000 + look%kids} })
			begin := time.Now()
			s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/a.service", MainPID: 10})
			last := int(looks.Load()) - 1
			if s.Stable != c.stable || s.Problem != "" || time.Since(begin) > 10*time.Second {
				t.Errorf("stable %v after %v: %s", s.Stable, time.Since(begin), s.Problem)
			}
			if last < minLooks || time.Since(begin) < forkWindow {
				t.Errorf("believed after %d looks in %v", last+1, time.Since(begin))
			}
			if len(s.Tasks) != 2 || s.Tasks[0].PID != 10 || s.Tasks[1].PID != 1000+last%kids || len(s.Tmp) != 2 {
				t.Errorf("not the last look, %d: %+v", last, s)
			} else if got := s.Tasks[1].Label.String(); c.last != "" && got != c.last {
				t.Errorf("what was seen under %s is not in the result, but %s", c.last, got)
			}
		})
	}
}

func TestHistory(t *testing.T) {
	type look struct {
		tasks       string // "PID/TID label" each, joined by ", "
		at          time.Duration
		same, known bool
		believed    bool
	}
	for _, c := range []struct {
		name  string
		looks []look
	}{
		{"nothing, twice", []look{{"", 0, false, false, true}, {"", 1, true, true, true}}},
		{"all end", []look{{"1/1 a", 0, false, false, true}, {"", 1, false, false, true}, {"", 2, true, false, true}}},
		{"a child ends", []look{{"1/1 a, 2/2 a//b", 0, false, false, true}, {"1/1 a", 1, false, true, true}}},
		{"a task of another profile ends", []look{{"1/1 a, 2/2 b", 0, false, false, true}, {"1/1 a", 1, false, false, true}, {"1/1 a", 2, true, false, true}}},
		{"a label changes", []look{{"1/1 a", 0, false, false, true}, {"1/1 b", 1, false, false, true}, {"1/1 b", 2, true, false, true}}},
		{"a new thread", []look{{"1/1 a", 0, false, false, true}, {"1/1 a, 1/2 a", 1, false, true, true}, {"1/1 a, 1/2 a", 2, true, true, true}}},
		{"a new label", []look{{"1/1 a", 0, false, false, true}, {"1/1 a, 2/2 a//b", 1, false, false, true}, {"1/1 a, 3/3 a//b", 2, false, true, true}}},
		{"unconfined is never known", []look{{"1/1 a, 2/2 unconfined", 0, false, false, false}, {"1/1 a, 3/3 unconfined", 1, false, false, false}}},
		{"a stack is a label of its own", []look{{"1/1 a", 0, false, false, true}, {"1/1 a, 2/2 a&unconfined", 1, false, false, true}}},
		{"the number of another process", []look{{"1/1 a, 2/2 unconfined", 0, false, false, false}, {"1/1 a, 2'/2 a", 1, false, false, true}, {"1/1 a, 2/2 a", 2, false, false, true}}},
		{"believed after a while", []look{{"1/1 unconfined", 0, false, false, false}, {"1/1 unconfined", forkWindow / 2, true, true, false}, {"1/1 unconfined", forkWindow, true, true, true}}},
		{"each for itself", []look{{"1/1 a", 0, false, false, true}, {"1/1 a, 2/2 unconfined", 10 * forkWindow, false, false, false}, {"1/1 a, 2/2 unconfined", 11 * forkWindow, true, true, true}}},
		{"systemd's own, then a program", []look{
			{"1/1 a, 2/2 transit", 0, false, false, false}, {"1/1 a, 2/2 transit", forkWindow, true, true, true},
			{"1/1 a, 2/2 unconfined", forkWindow + 1, false, false, false}, {"1/1 a, 2/2 unconfined", 2*forkWindow + 1, true, true, true},
		}},
		{"systemd's own comes and goes", []look{{"1/1 a", 0, false, false, true}, {"1/1 a, 2/2 transit", 1, false, false, false}, {"1/1 a, 3/3 a", 2, false, true, true}}},
		{"systemd's own does not stand for an unconfined task", []look{
			{"1/1 a, 2/2 transit, 3/3 unconfined", 0, false, false, false}, {"1/1 a, 2/2 transit, 4/4 a", forkWindow, false, false, true},
		}},
		{"unreadable", []look{{"1/1 a, 2/2 !", 0, false, false, true}, {"1/1 a, 2/2 !", 1, true, true, true}, {"1/1 a, 3/3 !", 2, false, false, true}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var h history
			begin := time.Now()
			for i, l := range c.looks {
				var tasks []attach.Task
				starts := map[int]string{}
				for _, text := range strings.Split(l.tasks, ", ") {
					if text == "" {
						continue
					}
					id, label, _ := strings.Cut(text, " ")
					pid, tid, _ := strings.Cut(id, "/")
					pid, other := strings.CutSuffix(pid, "'")
					x := attach.Task{}
					x.PID, _ = strconv.Atoi(pid)
					x.TID, _ = strconv.Atoi(tid)
					starts[x.PID] = fmt.Sprint(other)
					switch label {
					case "!":
						x.Problem = "EIO"
					case "transit":
						x.Manager, x.InTransit = true, true
						label = attach.Unconfined
					}
					if x.Problem == "" {
						x.Label.Profiles, x.Label.Mode = strings.Split(label, "&"), attach.ModeEnforce
					}
					tasks = append(tasks, x)
				}
				at := begin.Add(l.at)
				same, known := h.add(tasks, starts, at)
				if believed := h.believed(tasks, starts, at); same != l.same || known != l.known || believed != l.believed {
					t.Errorf("look %d: same %v, known %v, believed %v; want %+v", i, same, known, believed, l)
				}
			}
		})
	}
}

// Which of the processes that run systemd's executable are not the service's.
func TestScanKnowsSystemdsOwn(t *testing.T) {
	const systemd, old, young = "/usr/lib/systemd/systemd", 2 * transitTime, time.Second
	u := attach.Unit{ControlGroup: "/a.service", MainPID: 10, ControlPID: 11}
	free := func(pid int, more ...int) map[int]string {
		m := one("unconfined", pid)
		for _, tid := range more {
			m[tid] = "unconfined"
		}
		return m
	}
	for _, c := range []struct {
		name string
		proc
		want string // "", "stays" or "transit"
	}{
		// Before the exec, as the unit's user.
		{"main process", proc{pid: 10, comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, age: young}, "transit"},
		{"main process, systemd 252", proc{pid: 10, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, age: young}, "transit"},
		{"main process with PrivatePIDs=, whose name lost its end", proc{pid: 10, comm: "(sd-pidns-child", exe: systemdExecutor, uid: 7, age: young}, "transit"},
		{"control process", proc{pid: 11, comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, age: young}, "transit"},
		{"slow to get there", proc{pid: 10, comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, age: transitTime / 2}, "transit"},
		{"forked after systemd was asked", proc{pid: 12, comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, age: young}, "transit"},
		{"its (sd-pam), too", proc{pid: 13, comm: "(sd-pam)", exe: systemdExecutor, uid: 7, ppid: 12, age: young}, "transit"},
		// As root.
		{"root's main process", proc{pid: 10, comm: "(agent)", exe: systemdExecutor, ppid: 1, age: transitTime / 2}, "transit"},
		{"root's, without a name yet", proc{pid: 10, comm: "systemd-executo", exe: systemdExecutor, ppid: 1, age: young}, "transit"},
		{"root's helper", proc{pid: 12, comm: "(sd-mkdcreds)", exe: systemdExecutor, ppid: 10, age: young}, "transit"},
		{"root's, with a thread of PAM's", proc{pid: 10, comm: "(agent)", exe: systemdExecutor, ppid: 1, age: young, labels: free(10, 14)}, "transit"},
		// (sd-pam).
		{"(sd-pam)", proc{pid: 12, comm: "(sd-pam)", exe: systemdExecutor, uid: 7, ppid: 10}, "stays"},
		{"new (sd-pam)", proc{pid: 12, comm: "(sd-pam)", exe: systemd, uid: 7, ppid: 11, age: young}, "stays"},
		{"root's (sd-pam)", proc{pid: 12, comm: "(sd-pam)", exe: systemdExecutor, ppid: 10}, "stays"},
		{"root's (sd-pam), left alone", proc{pid: 12, comm: "(sd-pam)", exe: systemdExecutor, ppid: 1}, "stays"},

		// A service that runs systemd's program: user@.service and others.
		{"user manager", proc{pid: 10, comm: "systemd", exe: systemd, uid: 7, ppid: 1, age: young}, ""},
		{"old user manager", proc{pid: 10, comm: "systemd", exe: systemd, uid: 7, ppid: 1}, ""},
		{"root's user manager", proc{pid: 10, comm: "systemd", exe: systemd, ppid: 1, age: briefTime + time.Second}, ""},
		{"old manager of root's", proc{pid: 10, comm: "systemd", exe: systemd, ppid: 1}, ""},
		{"a child of its", proc{pid: 12, comm: "systemd", exe: systemd, ppid: 10, age: old}, ""},
		// One that lies about its name is told after a while.
		{"liar", proc{pid: 10, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, age: old}, ""},
		{"liar of root's", proc{pid: 10, comm: "(agent)", exe: systemd, ppid: 1, age: old}, ""},
		{"liar with (sd-pam)'s name", proc{pid: 10, comm: "(sd-pam)", exe: systemd, uid: 7, ppid: 11, age: old}, ""},
		{"liar of root's with (sd-pam)'s name", proc{pid: 10, comm: "(sd-pam)", exe: systemd, ppid: 1, age: old}, ""},
		{"a child that is no main process", proc{pid: 12, comm: "(agent)", exe: systemd, uid: 7, ppid: 10, age: young}, ""},
		{"an orphan that systemd would know by now", proc{pid: 12, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, age: briefTime + time.Second}, ""},
		{"old (sd-pam) of somebody else", proc{pid: 12, comm: "(sd-pam)", exe: systemd, uid: 7, ppid: 14}, ""},
		{"threads", proc{pid: 10, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, age: young, labels: free(10, 14)}, ""},
		{"(sd-pam) with threads", proc{pid: 12, comm: "(sd-pam)", exe: systemd, uid: 7, ppid: 10, labels: free(12, 14)}, ""},
		{"another program", proc{pid: 10, comm: "(agent)", exe: "/usr/bin/agent", uid: 7, ppid: 1, age: young}, ""},
		{"another program of root's", proc{pid: 10, comm: "(agent)", exe: "/usr/bin/agent", ppid: 1, age: young}, ""},
		{"no executable", proc{pid: 10, comm: "(agent)", ppid: 1, age: young}, ""},
		{"from the future", proc{pid: 10, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, age: -time.Hour}, ""},
		// What is confined is never passed over.
		{"confined", proc{pid: 10, comm: "(agent)", exe: systemd, ppid: 1, age: young, labels: one("a (enforce)", 10)}, ""},
		{"confined (sd-pam)", proc{pid: 12, comm: "(sd-pam)", exe: systemd, uid: 7, ppid: 10, labels: one("a (enforce)", 12)}, ""},
		{"confined in part", proc{pid: 10, comm: "(agent)", exe: systemd, ppid: 1, age: young, labels: map[int]string{10: "unconfined", 14: "a (enforce)"}}, ""},
		{"unreadable", proc{pid: 10, comm: "(agent)", exe: systemd, ppid: 1, age: young, labels: one("what (is this)", 10)}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.proc(proc{pid: 1, comm: "systemd", exe: systemd, labels: one("unconfined", 1)})
			h.write(systemdExecutor, "")
			if c.labels == nil {
				c.labels = free(c.pid)
			}
			h.proc(c.proc)
			h.cgroup("/a.service", c.pid)
			tasks, err := h.newLook().tasks(u)
			if err != nil || len(tasks) != len(c.labels) {
				t.Fatalf("%+v %v", tasks, err)
			}
			for _, x := range tasks {
				got := ""
				switch {
				case x.InTransit && x.Manager:
					got = "transit"
				case x.Manager:
					got = "stays"
				case x.InTransit:
					got = "in transit to nowhere"
				}
				if got != c.want {
					t.Errorf("got %q, want %q: %+v", got, c.want, x)
				}
			}
		})
	}
}

// What counts is the file, wherever it lies, and not how it is called.
func TestSystemdsExecutableIsToldByItsFile(t *testing.T) {
	h := newHost(t)
	h.proc(proc{pid: 1, comm: "systemd", exe: "/usr/lib/systemd/systemd", labels: one("unconfined", 1)})
	h.mkdir("/container")
	for _, exe := range []string{systemdExecutor, "/usr/lib/systemd/systemd"} {
		h.write(exe, exe)
		if err := os.Link(filepath.Join(h.root, exe), filepath.Join(h.root, "/container", filepath.Base(exe))); err != nil {
			t.Fatal(err)
		}
	}
	for exe, want := range map[string]bool{
		"/usr/lib/systemd/systemd":    true,
		"/container/systemd":          true,
		"/container/systemd-executor": true,
		"/srv/systemd":                false,
		"/srv/systemd-executor":       false,
		"/usr/bin/agent":              false,
	} {
		h.proc(proc{pid: 10, comm: "x", exe: exe, labels: one("unconfined", 10)})
		if _, own, err := h.newLook().process(10, nil); own != want || err != nil {
			t.Errorf("%s is systemd's: %v, %v", exe, own, err)
		}
		var st unix.Stat_t
		file := filepath.Join(h.root, exe)
		if err := unix.Stat(file, &st); err != nil {
			t.Fatal(err)
		}
		if f, ok := statOf(filepath.Join(h.root, "/proc/10/exe")); !ok || f != (fileStat{fileID{unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino}, st.Uid, uint16(st.Mode)}) {
			t.Errorf("%s is %+v, stat says %+v", exe, f, st)
		}
	}
	if f, ok := statOf(filepath.Join(h.root, "/proc/11/exe")); ok {
		t.Errorf("what is not there is %+v", f)
	}
}

// A process that ends while it is looked at leaves no question open; what cannot
// be read of one that lives does.
func TestTmpOfWhatHasEnded(t *testing.T) {
	h := newHost(t)
	for pid := 10; pid < 20; pid++ {
		h.proc(proc{pid: pid, comm: "x", labels: one("a (enforce)", pid)})
	}
	h.proc(proc{pid: 13, comm: "x", labels: map[int]string{13: "a (enforce)", 23: "a (enforce)"}})
	h.cgroup("/a.service", 10, 11, 12, 13, 14, 15, 16)
	l := h.newLook()
	tasks, err := l.tasks(attach.Unit{ControlGroup: "/a.service"})
	if err != nil || len(tasks) != 8 {
		t.Fatalf("%+v %v", tasks, err)
	}
	tasks = append(tasks, attach.Task{PID: 17, Manager: true}, attach.Task{Problem: "of another PID namespace"})
	remove := func(file string) {
		if err := os.RemoveAll(filepath.Join(h.root, file)); err != nil {
			t.Error(err)
		}
	}
	remove("/proc/11")
	h.proc(proc{pid: 12, comm: "x", state: 'Z'}) // waits to be waited for
	remove("/proc/12/mountinfo")
	h.proc(proc{pid: 13, comm: "x", state: 'Z'}) // its other thread goes on
	remove("/proc/13/mountinfo")
	h.proc(proc{pid: 14, comm: "x", age: time.Second}) // another process
	remove("/proc/15/mountinfo")
	remove("/proc/16/mountinfo") // on its way out
	timer := time.AfterFunc(lookPause/2, func() { remove("/proc/16") })
	defer timer.Stop()

	got := l.tmpViews(ctx(t), tasks)
	seen := attach.TmpView{Tmp: "0:30 /", VarTmp: "8:1 /var/tmp"}
	ended := attach.TmpView{Ended: true}
	want := map[int]attach.TmpView{10: seen, 11: ended, 12: ended, 13: {}, 14: ended, 15: {}, 16: ended}
	for pid, v := range got {
		if v.Problem != "" && !v.Ended {
			got[pid] = attach.TmpView{}
		}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// What is on its way to a program is what it is when it gets there.
func TestScanOfAStart(t *testing.T) {
	const systemd = "/usr/lib/systemd/systemd"
	for _, c := range []struct{ name, label, exe string }{
		{"confined", "a (enforce)", "/usr/bin/agent"},
		{"unconfined", "unconfined", "/usr/bin/agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHost(t)
			h.proc(proc{pid: 1, comm: "systemd", exe: systemd, labels: one("unconfined", 1)})
			h.proc(proc{pid: 10, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, age: time.Second, labels: one("unconfined", 10)})
			h.write(c.exe, "")
			h.looks("/a.service", func(n int) []int {
				if n == 1 {
					dir := filepath.Join(h.root, "proc/10")
					if err := errors.Join(os.WriteFile(dir+"/task/10/attr/apparmor/current", []byte(c.label+"\n"), 0o644),
						os.Remove(dir+"/exe"), os.Symlink(filepath.Join(h.root, c.exe), dir+"/exe")); err != nil {
						t.Error(err)
					}
				}
				return []int{10}
			})
			s := h.Scan(ctx(t), attach.Unit{ControlGroup: "/a.service", MainPID: 10})
			if !s.Stable || len(s.Tasks) != 1 || s.Tasks[0].Label.String() != c.label || s.Tasks[0].Manager || s.Tasks[0].InTransit || len(s.Tmp) != 1 {
				t.Errorf("%+v", s)
			}
		})
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

// How large a policy may be is asked of each profile with what is below it: any number of
// them can be loaded, and none makes the others unreadable.
func TestTheBoundOnAPolicyIsForEach(t *testing.T) {
	h := newHost(t)
	// below makes three generations of children, which all parents of one share.
	below := func(children int) (profiles string) {
		for generation := range 3 {
			dir := fmt.Sprintf("of%d/%d", children, generation)
			for i := range children {
				kid := "kid" + strconv.Itoa(i)
				h.loaded(dir+"/"+kid, kid, "enforce", "bb")
				if profiles != "" {
					h.symlink(profiles, securityDir+"/policy/profiles/"+dir+"/"+kid+"/profiles")
				}
			}
			profiles = filepath.Join(h.root, securityDir, "policy/profiles", dir)
		}
		return profiles
	}
	few, most := below(13), below(17)
	const many = 1 + 13 + 13*13 + 13*13*13
	for name, kids := range map[string]string{"a": few, "b": few, "c": most} {
		h.loaded(name+".1", name, "enforce", "aa")
		h.symlink(kids, securityDir+"/policy/profiles/"+name+".1/profiles")
	}
	if got, err := h.Live([]string{"a", "b"}); err != nil || len(got) != 2*many {
		t.Errorf("%d profiles, %v", len(got), err)
	}
	if _, err := h.Live([]string{"c"}); err == nil || !strings.Contains(err.Error(), "profile c//kid") {
		t.Errorf("%v", err)
	}
}

// One policy that cannot be read back when it is staged fails alone.
func TestStagedTogetherOnePolicyFailsAlone(t *testing.T) {
	for _, c := range []struct {
		what string
		err  error
		bad  []int
		want int // how many fail
		most int // times that something is staged
	}{
		{"none", nil, nil, 0, 1},
		{"one of many cannot be read back", errStagedUnread, []int{37}, 1, 15},
		{"several", errStagedUnread, []int{0, 37, 99}, 3, 45},
		{"the kernel takes none", errors.New("cannot make a policy namespace"), []int{37}, 100, 1},
	} {
		t.Run(c.what, func(t *testing.T) {
			var all []*attach.Compiled
			for i := range 100 {
				all = append(all, &attach.Compiled{File: strconv.Itoa(i)})
			}
			times := 0
			inParts(all, func(some []*attach.Compiled) error {
				times++
				for _, p := range some {
					if i, _ := strconv.Atoi(p.File); slices.Contains(c.bad, i) {
						return fmt.Errorf("%w: too large", c.err)
					}
				}
				for _, p := range some {
					p.Checksums = map[string]string{"x": "sha256:aa"}
				}
				return nil
			})
			var failed []int
			for i, p := range all {
				if (p.Checksums == nil) != (p.NotStaged != "") {
					t.Errorf("%+v", p)
				}
				if p.NotStaged != "" {
					failed = append(failed, i)
				}
			}
			for _, i := range c.bad {
				if !slices.Contains(failed, i) {
					t.Errorf("%d does not fail", i)
				}
			}
			if len(failed) != c.want || times > c.most {
				t.Errorf("%v fail, staged %d times", failed, times)
			}
		})
	}
}

func TestUnloadRefusesWhatIsCarried(t *testing.T) {
	h := newHost(t)
	h.loaded("x.1", "x", "enforce", "aa")
	h.write(securityDir+"/.remove", "")
	h.proc(proc{pid: 10, comm: "prog", labels: map[int]string{10: "y (enforce)", 11: "y//&x//hat (enforce)"}})
	if err := h.Unload(ctx(t), []string{"x"})["x"]; !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "prog (PID 10)") {
		t.Errorf("%v", err)
	}
	h.proc(proc{pid: 10, comm: "prog", labels: map[int]string{10: "xy (enforce)", 11: "y (enforce)"}})
	h.write("/proc/10/task/11/attr/apparmor/exec", "x (enforce)\n")
	if err := h.Unload(ctx(t), []string{"x"})["x"]; !errors.Is(err, ErrInUse) {
		t.Errorf("the next exec will carry it: %v", err)
	}
	h.write("/proc/10/task/11/attr/apparmor/exec", "\n")
	if err := h.Unload(ctx(t), []string{"x"})["x"]; err == nil || errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "the kernel still has it") {
		t.Errorf("%v", err)
	}
	if wrote, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".remove")); string(wrote) != "x" {
		t.Errorf("wrote %q", wrote)
	}
	// One that is starting may be about to carry it.
	h.proc(proc{pid: 1, comm: "systemd", exe: "/usr/lib/systemd/systemd", labels: one("unconfined", 1)})
	h.proc(proc{pid: 13, comm: "(agent)", exe: systemdExecutor, ppid: 1, age: time.Second, labels: one("unconfined", 13)})
	if err := h.Unload(ctx(t), []string{"x"})["x"]; !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "is starting (agent)") {
		t.Errorf("%v", err)
	}
	h.proc(proc{pid: 13, comm: "(sd-pam)", exe: systemdExecutor, ppid: 1, age: time.Second, labels: one("unconfined", 13)})
	h.proc(proc{pid: 14, comm: "systemd", exe: "/usr/lib/systemd/systemd", uid: 7, ppid: 1, labels: one("unconfined", 14)})
	if err := h.Unload(ctx(t), []string{"x"})["x"]; err == nil || errors.Is(err, ErrInUse) {
		t.Errorf("a session, or a user manager, keeps it loaded: %v", err)
	}
	h.proc(proc{pid: 12, comm: "odd", labels: one("? (?)", 12)})
	if err := h.Unload(ctx(t), []string{"x"})["x"]; err == nil || !strings.Contains(err.Error(), "could not be told") {
		t.Errorf("%v", err)
	}
	if err := h.Unload(ctx(t), []string{"none"})["none"]; err != nil {
		t.Error(err)
	}
}

// What keeps a profile loaded is a service that PID 1 is starting, and nobody's login.
func TestStartsThatKeepAProfileLoaded(t *testing.T) {
	const (
		systemd    = "/usr/lib/systemd/systemd"
		old, young = 2 * transitTime, time.Second
		service    = "/system.slice/a.service"
		user       = "/user.slice/user-7.slice"
		manager    = user + "/user@7.service"
		session    = user + "/session-3.scope"
		unreadable = "unreadable"
	)
	for _, c := range []struct {
		what   string
		p      proc
		leader int // of session 3; 0: that is not told
		want   bool
	}{
		{"a service", proc{comm: "(agent)", exe: systemdExecutor, ppid: 1, cgroup: service}, 0, true},
		{"a service with User=", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: service}, 0, true},
		{"a service that is slow", proc{comm: "(agent)", exe: systemd, ppid: 1, cgroup: service, age: transitTime / 2}, 0, true},
		{"one without a name yet", proc{comm: "systemd-executo", exe: systemdExecutor, ppid: 1, cgroup: service}, 0, true},
		{"one without a control group yet", proc{comm: "systemd", exe: systemd, ppid: 1, cgroup: "/init.scope"}, 0, true},
		{"one that never gets there", proc{comm: "(agent)", exe: systemd, ppid: 1, cgroup: service, age: old}, 0, false},
		{"a service in a user's slice", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: user + "/a.service"}, 0, true},
		{"a service in user.slice", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: "/user.slice/a.service"}, 0, true},
		{"a service with PAMName=", proc{comm: "(agent)", exe: systemdExecutor, ppid: 1, cgroup: session}, 9, true},
		{"the same, as its user", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: session}, 10, true},
		{"the same, where the session is not told", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: session}, 0, true},
		{"a service with User=, of no login", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: service, login: noLogin}, 0, true},
		{"a service whose user has many groups", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: service, groups: 4000}, 0, true},
		{"a service in a group of its own below the unit's", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: service + "/below/it"}, 0, true},
		{"a command of a socket's", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: "/a.socket"}, 0, true},
		{"a service where PID 1 is of a login", proc{comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, cgroup: service, login: "1"}, 0, true},
		{"a service whose group cannot be read", proc{comm: "(agent)", exe: systemdExecutor, ppid: 1, cgroup: unreadable, login: noLogin}, 0, true},
		{"one of root's with a login", proc{comm: "(agent)", exe: systemdExecutor, ppid: 1, cgroup: service, login: "7"}, 0, true},
		{"a user's manager that PID 1 is starting", proc{comm: "(systemd)", exe: systemdExecutor, ppid: 1, cgroup: manager}, 0, true},
		{"the same, in its own group", proc{comm: "(systemd)", exe: systemdExecutor, ppid: 1, cgroup: manager + "/init.scope"}, 0, true},
		// Logins.
		{"a user's manager", proc{comm: "systemd", exe: systemd, uid: 7, ppid: 1, cgroup: manager + "/init.scope"}, 0, false},
		{"a user's manager that has not moved yet", proc{comm: "systemd", exe: systemd, uid: 7, ppid: 1, cgroup: manager}, 0, false},
		{"root's manager", proc{comm: "systemd", exe: systemd, ppid: 1, cgroup: "/user.slice/user-0.slice/user@0.service/init.scope"}, 0, false},
		{"what it starts", proc{comm: "(dbus-daemon)", exe: systemdExecutor, uid: 7, ppid: 12, cgroup: manager + "/app.slice/dbus.service"}, 0, false},
		{"what root's starts", proc{comm: "(dbus-daemon)", exe: systemdExecutor, ppid: 12, cgroup: "/user.slice/user-0.slice/user@0.service/app.slice/dbus.service"}, 0, false},
		{"(sd-pam)", proc{comm: "(sd-pam)", exe: systemdExecutor, ppid: 12, cgroup: manager + "/init.scope"}, 0, false},
		{"a manager elsewhere", proc{comm: "systemd", exe: systemd, uid: 7, ppid: 12, cgroup: service}, 0, false},
		{"a user who takes the name", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: session}, 9, false},
		{"a user who takes it in his manager", proc{comm: "(systemd)", exe: systemd, uid: 7, ppid: 1, cgroup: manager}, 0, false},
		{"a user who runs systemd", proc{comm: "systemd", exe: systemd, uid: 7, ppid: 12, cgroup: session}, 9, false},
		// What users run elsewhere.
		{"a job of cron", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 12, cgroup: "/system.slice/cron.service", login: "7"}, 0, false},
		{"the same, left to PID 1", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: "/system.slice/cron.service", login: "7"}, 0, false},
		{"what a service's account has left to PID 1", proc{pid: 11, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: service}, 0, false},
		{"the same, in a user's slice", proc{pid: 11, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: user + "/a.service"}, 0, false},
		{"the same, below the unit's group", proc{pid: 11, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: service + "/a.service"}, 0, false},
		{"the same, in a group that cannot be read", proc{pid: 11, comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: unreadable}, 0, false},
		{"one whose unit systemd does not know", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: "/container"}, 0, false},
		{"one of root's that systemd does not know", proc{pid: 11, comm: "(agent)", exe: systemd, ppid: 1, cgroup: "/container"}, 0, true},
		{"a child of a service", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 12, cgroup: service, login: noLogin}, 0, false},
		{"the same, in a user's slice", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 12, cgroup: user + "/a.service"}, 0, false},
		{"a group that cannot be read", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 1, cgroup: unreadable, login: "7"}, 0, false},
		{"many groups", proc{comm: "(agent)", exe: systemd, uid: 7, ppid: 12, cgroup: service, groups: 4000}, 0, false},
		{"another program", proc{comm: "(agent)", exe: "/usr/bin/agent", ppid: 1, cgroup: service}, 0, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHost(t)
			h.proc(proc{pid: 1, comm: "systemd", exe: systemd, labels: one("unconfined", 1), login: "1"})
			h.write(systemdExecutor, "")
			h.opt.Forked = func(_ context.Context, group string) ([]int, error) {
				if !slices.Contains([]string{service, "/a.socket", user + "/a.service", "/user.slice/a.service"}, group) {
					return nil, nil // of a slice
				}
				return []int{9, 10}, nil
			}
			if c.p.pid == 0 {
				c.p.pid = 10
			}
			c.p.labels = one("unconfined", c.p.pid)
			if c.p.age == 0 {
				c.p.age = young
			}
			h.proc(c.p)
			if c.p.cgroup == unreadable {
				file := fmt.Sprintf("/proc/%d/cgroup", c.p.pid)
				_ = os.Remove(filepath.Join(h.root, file))
				h.mkdir(file)
			}
			if c.leader > 0 {
				h.write(sessionDir+"/3", fmt.Sprintf("# not for people\nUID=7\nLEADER=%d\nSERVICE=login\n", c.leader))
			}
			who, starting, err := h.carriers([]string{"x"})
			if err != nil || len(who) > 0 || (starting != "") != c.want {
				t.Errorf("%v %q %v", who, starting, err)
			}
		})
	}
}

// Whether systemd is starting a process that has given up root, systemd has to say. What
// it does not say, and what happens while it is asked, takes no profile away.
func TestUnloadAsksSystemd(t *testing.T) {
	starting := proc{pid: 10, comm: "(agent)", exe: systemdExecutor, uid: 7, ppid: 1, age: time.Second, cgroup: "/system.slice/agent.service", labels: one("unconfined", 10)}
	under := func(pid int) proc {
		return proc{pid: pid, comm: "agent", exe: "/usr/bin/agent", uid: 7, ppid: 1, labels: one("x (enforce)", pid)}
	}
	failed := errors.New("it is away")
	for name, c := range map[string]struct {
		forked func(h *host, asked int) ([]int, error)
		want   string // in the error; "" the profile is removed
		waits  bool   // for what passes by itself
	}{
		"it is not":            {func(*host, int) ([]int, error) { return []int{11}, nil }, "", false},
		"it is":                {func(*host, int) ([]int, error) { return []int{10}, nil }, "is starting (agent)", true},
		"no answer":            {func(*host, int) ([]int, error) { return nil, failed }, "(agent) (PID 10) may be one that systemd is starting: it is away", true},
		"nobody asks":          {nil, "systemd is not asked", true},
		"no answer, and it is": {func(h *host, _ int) ([]int, error) { h.proc(under(10)); return nil, failed }, "agent (PID 10) carries x", false},
		// Else the labels would be as old as the question.
		"no answer in time, and it has begun by then": {func(h *host, _ int) ([]int, error) {
			p := under(10)
			p.labels = one("unconfined", 10)
			h.proc(p)
			time.Sleep(forkedTime)
			return nil, context.DeadlineExceeded
		}, "", false},
		"another came under the profile meanwhile": {func(h *host, _ int) ([]int, error) { h.proc(under(20)); return nil, nil }, "agent (PID 20) carries x", false},
		"another is being started meanwhile": {func(h *host, _ int) ([]int, error) {
			p := starting
			p.pid, p.uid, p.labels = 20, 0, one("unconfined", 20)
			h.proc(p)
			return nil, nil
		}, "is starting (agent) (PID 20)", true},
		"another is being started meanwhile, as a user": {func(h *host, _ int) ([]int, error) {
			p := starting
			p.pid, p.labels = 20, one("unconfined", 20)
			h.proc(p)
			return []int{20}, nil
		}, "is starting (agent) (PID 20)", true},
		"ever new ones": {func(h *host, asked int) ([]int, error) {
			p := starting
			p.pid, p.labels = 20+asked, one("unconfined", 20+asked)
			h.proc(p)
			return nil, nil
		}, "", false},
		"ever new ones, and slow": {func(h *host, asked int) ([]int, error) {
			p := starting
			p.pid, p.labels = 20+asked, one("unconfined", 20+asked)
			h.proc(p)
			time.Sleep(2 * lookPause)
			return nil, nil
		}, "systemd is slow to say", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			h.loaded("x.1", "x", "enforce", "aa")
			h.write(securityDir+"/.remove", "")
			h.proc(proc{pid: 1, comm: "systemd", exe: "/usr/lib/systemd/systemd", labels: one("unconfined", 1)})
			h.write(systemdExecutor, "")
			h.proc(starting)
			if c.forked != nil {
				asked := 0
				h.opt.Forked = func(_ context.Context, group string) ([]int, error) {
					if group != starting.cgroup {
						t.Errorf("asked for %s", group)
					}
					asked++
					return c.forked(h, asked)
				}
			}
			err := h.Unload(ctx(t), []string{"x"})["x"]
			var passing interface{ Passes() bool }
			if errors.Is(err, ErrInUse) != (c.want != "") || err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &passing) != c.waits {
				t.Errorf("%v", err)
			}
			if wrote, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".remove")); (len(wrote) > 0) != (c.want == "") {
				t.Errorf("%q was removed", wrote)
			}
		})
	}
}

// What an undo cannot unload it names, and whether it passes by itself.
func TestRestoreNamesWhatStays(t *testing.T) {
	for _, c := range []struct {
		what   string
		p      proc
		passes bool
	}{
		{"a task carries it", proc{comm: "prog", exe: "/usr/bin/prog", labels: one("x (enforce)", 10)}, false},
		{"a service is being started", proc{comm: "(agent)", exe: systemdExecutor, ppid: 1, age: time.Second, labels: one("unconfined", 10)}, true},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHost(t)
			h.mkdir(securityDir + "/policy/profiles")
			h.write(securityDir+"/.remove", "")
			h.proc(proc{pid: 1, comm: "systemd", exe: "/usr/lib/systemd/systemd", labels: one("unconfined", 1)})
			saved, err := h.Save([]string{"x"})
			if err != nil {
				t.Fatal(err)
			}
			h.loaded("x.1", "x", "enforce", "aa")
			c.p.pid = 10
			h.proc(c.p)
			stays, err := saved.Restore(ctx(t))
			var passing interface{ Passes() bool }
			if err != nil || len(stays) != 1 || !errors.Is(stays["x"], ErrInUse) || errors.As(stays["x"], &passing) != c.passes {
				t.Errorf("%v %v", stays, err)
			}
			if wrote, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".remove")); len(wrote) > 0 {
				t.Errorf("%q was unloaded", wrote)
			}
		})
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
		if all, _ := s.Profiles(); len(all) != 100 {
			b.Fatal(len(all))
		}
	}
}

// What a process in transit has started, a PAM module's helper for example, is
// on its way too; what others have started is not.
func TestScanOfHelpersOfAStart(t *testing.T) {
	h := newHost(t)
	h.proc(proc{pid: 1, comm: "systemd", exe: "/usr/lib/systemd/systemd", labels: one("unconfined", 1)})
	h.proc(proc{pid: 10, comm: "(agent)", exe: systemdExecutor, ppid: 1, age: time.Second, labels: one("unconfined", 10)})
	h.proc(proc{pid: 11, comm: "unix_chkpwd", exe: "/usr/sbin/unix_chkpwd", ppid: 10, labels: one("unix-chkpwd (complain)", 11)})
	h.proc(proc{pid: 9, comm: "its child", exe: "/usr/bin/x", ppid: 11, labels: one("unconfined", 9)})
	h.proc(proc{pid: 12, comm: "other", exe: "/usr/bin/x", ppid: 1, labels: one("unconfined", 12)})
	h.cgroup("/a.service", 9, 10, 11, 12)
	got := map[int]bool{}
	for _, task := range h.Scan(ctx(t), attach.Unit{ControlGroup: "/a.service", MainPID: 10}).Tasks {
		got[task.PID] = task.InTransit
	}
	if want := map[int]bool{9: true, 10: true, 11: true, 12: false}; !maps.Equal(got, want) {
		t.Errorf("in transit: %v, want %v", got, want)
	}
}
