//go:build vm

package apparmor

import (
	"context"
	"errors"
	"fmt"
	"maps"
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

	"github.com/aaunit/aaunit/internal/attach"
)

// roleVar makes the test binary play a service's program.
const roleVar = "AAUNIT_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		play(role)
		os.Exit(0)
	}
	if os.Getenv("AAUNIT_VM") == "" {
		fmt.Fprintln(os.Stderr, "cannot run here: these tests change the system they run on, and need go test -exec vmexec (test/vm/README.md)")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// play is the service's side; it ends only when it is killed, or with an error.
func play(role string) {
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, role, err)
			os.Exit(1)
		}
	}
	ready := func() { fail(os.WriteFile(os.Getenv("AAUNIT_TEST_READY"), nil, 0o644)) }
	switch role {
	case "threads": // many threads
		for range 500 {
			go func() { runtime.LockOSThread(); select {} }()
		}
		for {
			if names, _ := os.ReadDir("/proc/self/task"); len(names) >= 500 {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	case "threaded": // a thread in a threaded control group below its own
		own, err := os.ReadFile("/proc/self/cgroup")
		fail(err)
		dir := "/sys/fs/cgroup" + strings.TrimPrefix(strings.TrimSpace(string(own)), "0::") + "/sub"
		fail(os.Mkdir(dir, 0o755))
		fail(os.WriteFile(dir+"/cgroup.type", []byte("threaded"), 0o644))
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			done <- os.WriteFile(dir+"/cgroup.threads", []byte(strconv.Itoa(syscall.Gettid())), 0o644)
			select {}
		}()
		fail(<-done)
	case "group": // a child in a control group below its own
		own, err := os.ReadFile("/proc/self/cgroup")
		fail(err)
		dir := "/sys/fs/cgroup" + strings.TrimPrefix(strings.TrimSpace(string(own)), "0::") + "/sub"
		fail(os.Mkdir(dir, 0o755))
		cmd := exec.Command("/bin/sleep", "1000")
		fail(cmd.Start())
		fail(os.WriteFile(dir+"/cgroup.procs", []byte(strconv.Itoa(cmd.Process.Pid)), 0o644))
	case "child":
		fail(exec.Command("/bin/sleep", "1000").Start())
	case "tmp": // a file and a socket in /tmp
		_, err := os.Create("/tmp/aaunit test file")
		fail(err)
		_, err = net.Listen("unix", "/tmp/aaunit-test-socket")
		fail(err)
	case "chroot":
		fail(os.MkdirAll("/srv/jail/tmp", 0o755))
		fail(os.MkdirAll("/srv/jail/var/tmp", 0o755))
		ready()
		fail(syscall.Chroot("/srv/jail"))
		time.Sleep(time.Hour)
	}
	ready()
	time.Sleep(time.Hour)
}

const anything = "file,\n  capability,\n  network,\n  signal,\n  unix,\n  mount,\n  umount,\n  ptrace,\n"

type vm struct {
	*System
	t *testing.T
}

// Compile lists the problems in the order of the files.
func (v vm) Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems []attach.Reason) {
	done, bad := v.System.Compile(ctx, files, complain)
	return done, inOrder(files, bad)
}

func newVM(t *testing.T) vm { return vm{New(Options{}), t} }

func (v vm) profile(name, text string) string {
	v.t.Helper()
	p := filepath.Join("/etc/apparmor.d", name)
	if err := os.WriteFile(p, []byte(text), 0o644); err != nil {
		v.t.Fatal(err)
	}
	v.t.Cleanup(func() { _ = os.Remove(p) })
	return p
}

func (v vm) run(name string, args ...string) string {
	v.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		v.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

func (v vm) compile(files ...string) []attach.Compiled {
	v.t.Helper()
	done, problems := v.Compile(v.t.Context(), files, false)
	if len(problems) > 0 || len(done) != len(files) {
		v.t.Fatalf("Compile: %+v", problems)
	}
	v.Stage(v.t.Context(), done)
	for _, c := range done {
		if c.Checksums == nil {
			v.t.Fatalf("%s was not staged: %s", c.File, c.NotStaged)
		}
	}
	return done
}

func (v vm) load(c ...attach.Compiled) {
	v.t.Helper()
	for file, err := range v.Load(v.t.Context(), c) {
		v.t.Errorf("Load: %s: %v", file, err)
	}
}

// is checks that the kernel has exactly these profiles below the names.
func (v vm) is(want map[string]string, names ...string) {
	v.t.Helper()
	live, err := v.Live(names)
	if err != nil {
		v.t.Fatal(err)
	}
	for name, sum := range want {
		if live[name].Checksum != sum {
			v.t.Errorf("the kernel has %s as %+v, want %s", name, live[name], sum)
		}
	}
	for name := range live {
		if _, ok := want[name]; !ok {
			v.t.Errorf("the kernel has %s, which should not be there", name)
		}
	}
}

func (v vm) gone(names ...string) {
	v.t.Helper()
	for _, n := range names {
		if err := v.Unload(context.Background(), []string{n})[n]; err != nil {
			v.t.Errorf("Unload(%s): %v", n, err)
		}
	}
	v.is(nil, names...)
}

// revision reads once: a second read waits for the next change.
func (v vm) revision() string {
	v.t.Helper()
	f, err := os.Open("/sys/kernel/security/apparmor/revision")
	if err != nil {
		v.t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 64)
	n, err := f.Read(buf)
	if err != nil {
		v.t.Fatal(err)
	}
	return strings.TrimSpace(string(buf[:n]))
}

// On every suite.
func TestVMStageLoadReadBackUnload(t *testing.T) {
	v := newVM(t)
	if h := v.Host(); h.Enabled != attach.Yes || h.GlobalMode != attach.ModeEnforce || h.Problem != "" {
		t.Errorf("Host = %+v", h)
	}
	text := map[string]string{
		"vm-plain":         "profile vm-plain /usr/bin/vm-plain {\n  /etc/hosts r,\n  network inet stream,\n}\n",
		"vm with 'quote\"": "include <tunables/global>\nprofile \"vm spaced name\" {\n  include <abstractions/base>\n  /bin/sh Cx -> sub,\n  profile sub { /bin/sh r, /x ix, }\n  profile sub2 { /y r, }\n  ^hat { /z r, }\n}\n",
		"vm.path":          "/usr/bin/vm/{a,b}* {\n  /etc/passwd r,\n}\n",
		"vm.two":           "abi <abi/3.0>,\ninclude <tunables/global>\nprofile vm-one { owner @{HOME}/** rw, }\nprofile vm-two flags=(complain) { capability, change_profile, }\nprofile vm-ünï { }\n",
		"vm.dup":           "profile vm-plain { /etc/group r, }\n",
	}
	var files []string
	for name, text := range text {
		files = append(files, v.profile(name, text))
	}
	slices.Sort(files)
	before := v.revision()
	done := v.compile(files...)
	if after := v.revision(); after != before {
		t.Errorf("staging changed the host's policy revision from %s to %s", before, after)
	}
	if left, _ := filepath.Glob("/sys/kernel/security/apparmor/policy/namespaces/aaunit-*"); len(left) > 0 {
		t.Errorf("staging left %v", left)
	}
	var all []string
	var load []attach.Compiled
	want := map[string]string{}
	for _, c := range done {
		t.Logf("%s: %v", c.File, c.Checksums)
		if filepath.Base(c.File) == "vm.dup" {
			if c.Checksums["vm-plain"] == want["vm-plain"] {
				t.Error("two texts of one name have one checksum")
			}
			continue
		}
		load = append(load, c)
		for _, p := range c.Profiles {
			all = append(all, p.Name)
		}
		for name, sum := range c.Checksums {
			want[name] = sum
		}
	}
	if len(want) != 9 {
		t.Errorf("want nine profiles with children, staged %v", want)
	}
	if got := v.ByName("vm-plain"); len(got) != 2 {
		t.Errorf("the duplicate was not found: %+v", got)
	}
	v.is(nil, all...)

	v.load(load...)
	v.is(want, all...)
	live, err := v.Live(all)
	if err != nil || live["vm-two"].Mode != attach.ModeComplain || live["vm-one"].Mode != attach.ModeEnforce {
		t.Errorf("modes: %+v %v", live, err)
	}
	if one, err := v.Live([]string{"vm spaced name//sub"}); err != nil || len(one) != 1 {
		t.Errorf("Live of a child: %+v %v", one, err)
	}
	v.load(load...) // again
	v.is(want, all...)

	// The parser's own load of the text is the same policy (seen on Debian 12 and 13),
	// in one go from all texts, and later from its cache.
	for _, flags := range [][]string{{"-r", "-T", "-W"}, {"-r"}} {
		for _, c := range load {
			v.run("apparmor_parser", append(slices.Clone(flags), c.File)...)
		}
		v.is(want, all...)
	}

	// One policy that the kernel refuses keeps no other from being loaded.
	broken := load[0]
	broken.File, broken.Blob = "/broken", slices.Clone(broken.Blob)
	broken.Blob[len(broken.Blob)-2] ^= 0xff
	failed := v.Load(t.Context(), []attach.Compiled{broken, load[1]})
	if len(failed) != 1 || failed["/broken"] == nil {
		t.Errorf("failed = %v", failed)
	}
	t.Log(failed)
	// Bytes that are well formed and nonsense to the kernel.
	odd := attach.Compiled{File: "/odd", Blob: []byte("\x04\x08\x00version\x00\x02\x05\x00\x00\x00\x04\x08\x00profile\x00\x07\x05\x02\x00a\x00\x08")}
	if failed = v.Load(t.Context(), []attach.Compiled{odd}); failed["/odd"] == nil {
		t.Error("nonsense was loaded")
	}
	t.Log(failed)
	// A policy that is not what was staged is noticed.
	other := load[1]
	other.Checksums = map[string]string{}
	for name := range load[1].Checksums {
		other.Checksums[name] = "sha256:00"
	}
	if failed = v.Load(t.Context(), []attach.Compiled{other}); failed[other.File] == nil {
		t.Error("another checksum than the staged one was accepted")
	}
	// The namespace of a file's own.
	if done, problems := v.Compile(t.Context(), []string{v.profile("vm.ns", "profile :vmns:x { }\n")}, false); len(done) > 0 || len(problems) != 1 {
		t.Errorf("a policy with a namespace: %+v %+v", done, problems)
	}

	v.gone(all...)
	if err := v.Unload(t.Context(), []string{"vm-none"})["vm-none"]; err != nil {
		t.Errorf("Unload of what is not loaded: %v", err)
	}
}

func TestVMComplainAndRemovedChildren(t *testing.T) {
	v := newVM(t)
	f := v.profile("vm.kids", "profile vm-kids {\n  /x Cx -> a,\n  profile a { /a r, }\n  profile b { /b r, }\n  ^c { /c r, }\n}\n")
	one := v.compile(f)
	v.load(one...)
	v.is(one[0].Checksums, "vm-kids")
	v.profile("vm.kids", "profile vm-kids {\n  /x Cx -> a,\n  profile a { /a rw, }\n}\n")
	two := v.compile(f)
	v.load(two...)
	v.is(two[0].Checksums, "vm-kids")
	complain, problems := v.Compile(t.Context(), []string{f}, true)
	if len(complain) != 1 {
		t.Fatal(problems)
	}
	v.Stage(t.Context(), complain)
	v.load(complain...)
	v.is(complain[0].Checksums, "vm-kids")
	if live, _ := v.Live([]string{"vm-kids"}); live["vm-kids"].Mode != attach.ModeComplain || live["vm-kids//a"].Mode != attach.ModeComplain {
		t.Errorf("%+v", live)
	}
	if complain[0].Checksums["vm-kids"] == two[0].Checksums["vm-kids"] {
		t.Error("complain mode has the same checksum as enforce")
	}
	v.gone("vm-kids")
}

func TestVMSaveAndRestore(t *testing.T) {
	v := newVM(t)
	f := v.profile("vm.save", "profile vm-s1 { /a r, profile kid { /k r, } }\nprofile vm-s2 { /b r, }\n")
	// As apparmor.service does it: from text, and from the cache, where both
	// profiles share their bytes.
	for _, flags := range [][]string{{"-r", "-T", "-W"}, {"-r"}} {
		v.run("apparmor_parser", append(slices.Clone(flags), f)...)
		was, err := v.Live([]string{"vm-s1", "vm-s2"})
		if err != nil || len(was) != 3 {
			t.Fatal(was, err)
		}
		saved, err := v.Save([]string{"vm-s1", "vm-new"})
		if err != nil {
			t.Fatal(err)
		}
		g := v.profile("vm.save2", "profile vm-s1 { /a rw, profile kid { /k rw, } profile more { } }\nprofile vm-new { }\nprofile vm-s2 { /b rw, }\n")
		v.load(v.compile(g)...)
		if stays, err := saved.Restore(t.Context()); err != nil || len(stays) > 0 {
			t.Error(stays, err)
		}
		v.is(map[string]string{"vm-s1": was["vm-s1"].Checksum, "vm-s1//kid": was["vm-s1//kid"].Checksum}, "vm-s1", "vm-new")
		if now, _ := v.Live([]string{"vm-s2"}); now["vm-s2"] == was["vm-s2"] {
			t.Error("Restore brought back a profile that was not saved")
		}
		if stays, err := saved.Restore(t.Context()); err != nil || len(stays) > 0 {
			t.Error("a second time:", stays, err)
		}
		_ = os.Remove(g)
		v.gone("vm-s1", "vm-s2")
	}
}

// Of a policy that counts in part the kernel takes no more than that, children included.
func TestVMLoadOfAPart(t *testing.T) {
	v := newVM(t)
	was := v.compile(v.profile("vm.part", "profile vm-p1 { /a r, profile kid { /k r, } }\nprofile vm-p2 { /b r, profile kid { /k r, } }\n"))
	is := v.compile(v.profile("vm.part1", "profile vm-p1 { /a rw, profile kid { /k rw, } }\nprofile vm-p2 { /b rw, }\n"))
	v.load(was...)
	v.load(is...)
	part := was[0].Part(func(profile string) bool { return profile == "vm-p2" })
	v.load(part)
	want := is[0].Part(func(profile string) bool { return profile == "vm-p1" }).Checksums
	maps.Copy(want, part.Checksums)
	v.is(want, "vm-p1", "vm-p2")
	v.gone("vm-p1", "vm-p2")
}

// service starts a transient unit and gives it as systemd shows it.
func (v vm) service(name, role string, args ...string) attach.Unit {
	v.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		v.t.Fatal(err)
	}
	bin := "/usr/local/bin/vm-test"
	if _, err := os.Stat(bin); err != nil {
		v.run("install", "-m", "755", exe, bin)
	}
	if err := os.MkdirAll("/run/vm-ready", 0o777); err != nil || os.Chmod("/run/vm-ready", 0o777) != nil {
		v.t.Fatal(err)
	}
	ready := "/run/vm-ready/" + name
	_ = os.Remove(ready)
	cmd := append([]string{"--quiet", "--collect", "--unit=" + name, "--setenv=" + roleVar + "=" + role, "--setenv=AAUNIT_TEST_READY=" + ready}, args...)
	v.run("systemd-run", append(cmd, bin)...)
	v.t.Cleanup(func() { _ = exec.Command("systemctl", "stop", name).Run() })
	for range 600 {
		if _, err := os.Stat(ready); err == nil {
			return v.unit(name)
		}
		time.Sleep(100 * time.Millisecond)
	}
	out, _ := exec.Command("journalctl", "-u", name, "-n", "30", "--no-pager").CombinedOutput()
	v.t.Fatalf("%s was not ready:\n%s", name, out)
	return attach.Unit{}
}

func (v vm) unit(name string) attach.Unit {
	v.t.Helper()
	u := attach.Unit{ID: name + ".service"}
	for _, line := range strings.Split(v.run("systemctl", "show", name, "-p", "MainPID,ControlPID,ControlGroup"), "\n") {
		k, val, _ := strings.Cut(line, "=")
		switch k {
		case "MainPID":
			u.MainPID, _ = strconv.Atoi(val)
		case "ControlPID":
			u.ControlPID, _ = strconv.Atoi(val)
		case "ControlGroup":
			u.ControlGroup = val
		}
	}
	return u
}

func show(s attach.Scan) string {
	var b strings.Builder
	fmt.Fprintf(&b, "stable %v, problem %q, host %+v\n", s.Stable, s.Problem, s.HostTmp)
	for i, t := range s.Tasks {
		if i == 12 {
			fmt.Fprintf(&b, "… %d tasks\n", len(s.Tasks))
			break
		}
		fmt.Fprintf(&b, "%d/%d %s %s %q %s manager=%v in transit=%v\n", t.PID, t.TID, t.Comm, t.Exe, t.Label, t.Problem, t.Manager, t.InTransit)
	}
	for pid, v := range s.Tmp {
		fmt.Fprintf(&b, "tmp of %d: %+v\n", pid, v)
	}
	return b.String()
}

// On every suite.
func TestVMScan(t *testing.T) {
	v := newVM(t)
	f := v.profile("vm.scan", "profile vm-scan flags=(attach_disconnected) {\n  "+anything+"}\n")
	v.load(v.compile(f)...)
	const confined = "-pAppArmorProfile=vm-scan"
	all := func(s attach.Scan, label string) {
		t.Helper()
		if !s.Stable || s.Problem != "" || len(s.Tasks) == 0 {
			t.Errorf("%s", show(s))
		}
		for _, task := range s.Tasks {
			if task.Problem != "" || task.Label.String() != label && !task.Manager {
				t.Errorf("want %s:\n%s", label, show(s))
				break
			}
		}
	}
	t.Run("private", func(t *testing.T) {
		v := vm{v.System, t}
		u := v.service("vm-private", "", confined, "-pPrivateTmp=yes", "-pUser=nobody", "--setenv="+roleVar+"=tmp")
		s := v.Scan(t.Context(), u)
		all(s, "vm-scan (enforce)")
		tmp, ok := s.Tmp[u.MainPID]
		if !ok || tmp.Tmp == "" || tmp.VarTmp == "" || tmp.Tmp == s.HostTmp.Tmp || tmp.VarTmp == s.HostTmp.VarTmp || s.HostTmp.Tmp == "" {
			t.Errorf("%s", show(s))
		}
		if open := v.OpenInTmp(t.Context(), u); len(open) > 0 {
			t.Errorf("a private /tmp has %v in the host's", open)
		}
		t.Log(show(s))

		if err := v.Unload(t.Context(), []string{"vm-scan"})["vm-scan"]; !errors.Is(err, ErrInUse) {
			t.Errorf("Unload of a profile in use: %v", err)
		} else {
			t.Log(err)
		}
	})
	t.Run("shared", func(t *testing.T) {
		v := vm{v.System, t}
		u := v.service("vm-shared", "tmp")
		s := v.Scan(t.Context(), u)
		all(s, "unconfined")
		if tmp := s.Tmp[u.MainPID]; tmp != s.HostTmp || tmp.Tmp == "" {
			t.Errorf("%s", show(s))
		}
		open := v.OpenInTmp(t.Context(), u)
		if !slices.Equal(open, []string{"/tmp/aaunit test file", "/tmp/aaunit-test-socket"}) {
			t.Errorf("OpenInTmp = %q", open)
		}
	})
	t.Run("threads", func(t *testing.T) {
		v := vm{v.System, t}
		u := v.service("vm-threads", "threads", confined)
		begin := time.Now()
		s := v.Scan(t.Context(), u)
		t.Logf("%d tasks in %v", len(s.Tasks), time.Since(begin))
		all(s, "vm-scan (enforce)")
		if len(s.Tasks) < 500 {
			t.Errorf("%d tasks", len(s.Tasks))
		}
	})
	t.Run("threaded", func(t *testing.T) {
		v := vm{v.System, t}
		u := v.service("vm-threaded", "threaded", confined, "-pDelegate=yes")
		if _, err := os.ReadFile("/sys/fs/cgroup" + u.ControlGroup + "/sub/cgroup.procs"); err == nil {
			t.Error("the group is not threaded")
		}
		all(v.Scan(t.Context(), u), "vm-scan (enforce)")
	})
	t.Run("delegated", func(t *testing.T) {
		v := vm{v.System, t}
		u := v.service("vm-group", "group", confined, "-pDelegate=yes")
		s := v.Scan(t.Context(), u)
		all(s, "vm-scan (enforce)")
		if !slices.ContainsFunc(s.Tasks, func(t attach.Task) bool { return strings.HasSuffix(t.Exe, "/sleep") }) {
			t.Errorf("the child's group was not looked at:\n%s", show(s))
		}
	})
	t.Run("chroot", func(t *testing.T) {
		v := vm{v.System, t}
		u := v.service("vm-chroot", "chroot", confined)
		for range 600 { // it is ready before it has changed its root
			if root, _ := os.Readlink(fmt.Sprintf("/proc/%d/root", u.MainPID)); root == "/srv/jail" {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		s := v.Scan(t.Context(), u)
		all(s, "vm-scan (enforce)")
		if tmp := s.Tmp[u.MainPID]; tmp.Tmp == "" || tmp.VarTmp == "" || tmp.Tmp == s.HostTmp.Tmp || tmp.VarTmp == s.HostTmp.VarTmp {
			t.Errorf("%s", show(s))
		}
		t.Log(show(s))
	})
	// With pam_systemd in the stack all goes to a session scope, without it all
	// stays; as User= and as root.
	for _, stack := range []string{"login", "other"} {
		t.Run("pam "+stack, func(t *testing.T) {
			v := vm{v.System, t}
			u := v.service("vm-pam-"+stack, "child", confined, "-pPAMName="+stack, "-pUser=nobody")
			s := v.Scan(t.Context(), u)
			t.Log(show(s))
			main, manager := false, false
			for _, task := range s.Tasks {
				main = main || task.PID == u.MainPID && task.Label.String() == "vm-scan (enforce)"
				manager = manager || task.Manager
				if task.Comm == "(sd-pam)" && (!task.Manager || task.InTransit) {
					t.Errorf("(sd-pam) was not recognised:\n%s", show(s))
				}
			}
			if !main || !manager || !slices.ContainsFunc(s.Tasks, func(t attach.Task) bool { return strings.HasSuffix(t.Exe, "/sleep") }) {
				t.Errorf("%s", show(s))
			}
			all(s, "vm-scan (enforce)")
			// What was moved to a session scope outlives a stop of the unit.
			for _, task := range s.Tasks {
				if strings.HasSuffix(task.Exe, "/sleep") {
					_ = syscall.Kill(task.PID, syscall.SIGKILL)
				}
			}
		})
	}
	// From the very first moment of a start: systemd's own process, between fork
	// and exec, is never taken for the service.
	t.Run("starting", func(t *testing.T) {
		v := vm{v.System, t}
		for i := range 3 {
			name := fmt.Sprintf("vm-start%d", i)
			v.run("systemd-run", "--quiet", "--collect", "--no-block", "--unit="+name, confined, "/bin/sleep", "100")
			t.Cleanup(func() { _ = exec.Command("systemctl", "stop", name).Run() })
			seen := false
			for deadline := time.Now().Add(time.Minute); !seen && time.Now().Before(deadline); {
				s := v.Scan(t.Context(), attach.Unit{ControlGroup: "/system.slice/" + name + ".service"})
				for _, task := range s.Tasks {
					if task.Label.IsUnconfined() && !task.Manager && s.Stable {
						t.Errorf("an unconfined task:\n%s", show(s))
					}
					seen = seen || task.Label.String() == "vm-scan (enforce)"
				}
			}
			if !seen {
				t.Error("the service did not start")
			}
		}
	})
	t.Run("none", func(t *testing.T) {
		v := vm{v.System, t}
		s := v.Scan(t.Context(), attach.Unit{ControlGroup: "/system.slice/vm-none.service"})
		if len(s.Tasks) > 0 || s.Problem != "" || !s.Stable {
			t.Errorf("%s", show(s))
		}
		for _, bad := range []string{"/", "/../x", "x", "/a//b"} {
			if s := v.Scan(t.Context(), attach.Unit{ControlGroup: bad}); s.Problem == "" {
				t.Errorf("control group %q was taken", bad)
			}
		}
	})
	for _, u := range []string{"private", "shared", "threads", "threaded", "group", "chroot", "pam-login", "pam-other", "start0", "start1", "start2"} {
		_ = exec.Command("systemctl", "stop", "vm-"+u).Run()
	}
	// The user's manager that pam_systemd has started is no start of a service.
	v.gone("vm-scan")
}

// Between giving up root and the exec, systemd makes the system call filters,
// which takes long on a machine like this. Its process is then neither root's
// nor confined, and never taken for the service's.
func TestVMScanOfHardenedStarts(t *testing.T) {
	v := newVM(t)
	f := v.profile("vm.hard", "profile vm-hard flags=(attach_disconnected) {\n  "+anything+"}\n")
	v.load(v.compile(f)...)
	// The commands around ExecStart= bring processes that the caller, who asked
	// systemd before, does not know as MainPID= or ControlPID=.
	const unit = `[Service]
ExecStartPre=/bin/true
ExecStart=/bin/sleep 1000
ExecStartPost=/bin/true
AppArmorProfile=vm-hard
User=daemon
NoNewPrivileges=yes
ProtectSystem=strict
PrivateDevices=yes
PrivateTmp=yes
ProtectHome=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
SystemCallFilter=@system-service
SystemCallArchitectures=native
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET
LockPersonality=yes
MemoryDenyWriteExecute=yes
`
	const file = "/run/systemd/system/vm-hard.service"
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "stop", "vm-hard").Run()
		_ = os.Remove(file)
		_ = exec.Command("systemctl", "daemon-reload").Run()
	})
	v.run("systemctl", "daemon-reload")

	looks, transit, asUser := 0, 0, 0
	for last, i := 0, 0; i < 4; i++ {
		v.run("systemctl", "restart", "--no-block", "vm-hard")
		up := 0
		for deadline := time.Now().Add(3 * time.Minute); up == 0; {
			if time.Now().After(deadline) {
				out, _ := exec.Command("systemctl", "status", "--no-pager", "vm-hard").CombinedOutput()
				t.Fatalf("start %d did not come up:\n%s", i, out)
			}
			u := v.unit("vm-hard")
			// Several looks at one answer of systemd's, which gets old meanwhile.
			for range 3 {
				s := v.Scan(t.Context(), u)
				looks++
				if s.Problem != "" {
					t.Errorf("%s", show(s))
				}
				for _, task := range s.Tasks {
					switch {
					case task.Problem != "":
					case task.InTransit:
						transit++
						if st, err := os.Stat(fmt.Sprintf("/proc/%d", task.PID)); err == nil && st.Sys().(*syscall.Stat_t).Uid != 0 {
							asUser++
						}
					case task.Label.IsUnconfined():
						t.Errorf("start %d: an unconfined task, which is not systemd's:\n%s", i, show(s))
					case s.Stable && task.PID == u.MainPID && task.PID != last && strings.HasSuffix(task.Exe, "/sleep"):
						up = task.PID
					}
				}
			}
		}
		last = up
	}
	t.Logf("%d scans; %d times systemd was on its way to the program, at least %d times not as root", looks, transit, asUser)

	// When it has settled nothing is in transit any more.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		u := v.unit("vm-hard")
		s := v.Scan(t.Context(), u)
		if u.ControlPID != 0 && time.Now().Before(deadline) {
			continue // ExecStartPost=
		}
		if !s.Stable || len(s.Tasks) != 1 || s.Tasks[0].Label.String() != "vm-hard (enforce)" || s.Tasks[0].Manager || s.Tmp[u.MainPID].Tmp == s.HostTmp.Tmp {
			t.Errorf("%s", show(s))
		}
		break
	}
	v.run("systemctl", "stop", "vm-hard")
	v.gone("vm-hard")
}

// A service that forks all the time has an answer, too.
func TestVMScanOfAServiceThatForksAllTheTime(t *testing.T) {
	v := newVM(t)
	// "file," lets it execute everything under the same profile (ix).
	f := v.profile("vm.forks", "profile vm-forks flags=(attach_disconnected) {\n  "+anything+"}\n")
	v.load(v.compile(f)...)
	t.Cleanup(func() { _ = exec.Command("systemctl", "stop", "vm-forks").Run() })
	v.run("systemd-run", "--quiet", "--collect", "--unit=vm-forks", "-pAppArmorProfile=vm-forks", "-pPrivateTmp=yes",
		"/bin/sh", "-c", "while :; do /bin/true; done")
	var u attach.Unit
	seen := map[int]bool{}
	for deadline := time.Now().Add(2 * time.Minute); len(seen) < 3; { // until the loop runs
		if time.Now().After(deadline) {
			t.Fatalf("it does not fork: %+v", u)
		}
		u = v.unit("vm-forks")
		for _, task := range v.Scan(t.Context(), u).Tasks {
			seen[task.PID] = true
		}
	}
	for range 10 {
		begin := time.Now()
		s := v.Scan(t.Context(), u)
		t.Logf("%d tasks in %v", len(s.Tasks), time.Since(begin))
		if !s.Stable || s.Problem != "" || len(s.Tasks) == 0 {
			t.Errorf("%s", show(s))
		}
		for _, task := range s.Tasks {
			seen[task.PID] = true
			if task.Problem != "" || task.Label.String() != "vm-forks (enforce)" {
				t.Errorf("%s", show(s))
			}
			// What ended before its /tmp was read is no open question.
			if tmp := s.Tmp[task.PID]; !tmp.Ended && (tmp.Problem != "" || tmp.Tmp == "" || tmp.Tmp == s.HostTmp.Tmp) {
				t.Errorf("%s", show(s))
			}
		}
	}
	t.Logf("%d processes were seen", len(seen))
	v.run("systemctl", "stop", "vm-forks")
	v.gone("vm-forks")
}

func TestVMChanges(t *testing.T) {
	v := newVM(t)
	c, cancel := context.WithCancel(t.Context())
	told := v.Changes(c)
	next := func(what string, want bool) {
		t.Helper()
		wait := 3 * time.Second
		if want {
			wait = time.Minute
		}
		select {
		case <-told:
			if !want {
				t.Errorf("%s was told", what)
			}
			// What takes long here may be told twice.
			for still := false; !still; {
				select {
				case <-told:
				case <-time.After(3 * time.Second):
					still = true
				}
			}
		case <-time.After(wait):
			if want {
				t.Errorf("%s was not told", what)
			}
		}
	}
	// When the watch is there shows only by its work.
	var f string
	for i, there := 0, false; !there; i++ {
		f = v.profile("vm.changes", fmt.Sprintf("profile vm-changes { }\n# %d\n", i))
		select {
		case <-told:
			there = true
		case <-time.After(5 * time.Second):
			if i == 20 {
				t.Fatal("a new file was not told")
			}
		}
	}
	v.profile("vm.changes", "profile vm-changes { }\n")
	next("a changed file", true)
	next("quiet", false)
	done := v.compile(f)
	next("staging", false)
	v.run("apparmor_parser", "-r", "-K", f)
	next("somebody's load", true)
	v.run("apparmor_parser", "-R", f)
	next("somebody's removal", true)
	v.load(done...)
	next("our own load", true)
	v.gone("vm-changes")
	next("our own removal", true)
	for _, mode := range []string{"complain", "enforce"} {
		if err := os.WriteFile(filepath.Join(paramDir, "mode"), []byte(mode), 0o644); err != nil {
			t.Fatal(err)
		}
		next("the global mode "+mode, true)
	}
	v.profile("vm.swp", "x")
	v.profile("x.dpkg-new", "x")
	if err := os.WriteFile("/etc/apparmor.d/.vm.changes.swp", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove("/etc/apparmor.d/.vm.changes.swp")
	next("an editor's file, or vm.swp", false)
	cancel()
	for range told {
	}
}

func TestVMGlobalModeAndIndexOfTheHost(t *testing.T) {
	v := newVM(t)
	const mode = "/sys/module/apparmor/parameters/mode"
	if err := os.WriteFile(mode, []byte("complain"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := v.Host()
	if err := os.WriteFile(mode, []byte("enforce"), 0o644); err != nil {
		t.Fatal(err)
	}
	if h.GlobalMode != attach.ModeComplain {
		t.Errorf("Host = %+v", h)
	}
	begin := time.Now()
	all, unread := v.Profiles()
	if len(unread) > 0 {
		t.Errorf("of the distribution's files these were not read: %v", unread)
	}
	t.Logf("%d profiles in %v", len(all), time.Since(begin))
	begin = time.Now()
	v.Profiles()
	t.Logf("again in %v", time.Since(begin))
	var names, files []string
	for _, p := range all {
		if p.Line == 0 {
			t.Errorf("%s of %s was not found in the text", p.Name, p.File)
		}
		names = append(names, p.Name)
		if !slices.Contains(files, p.File) && p.DisabledBy == "" {
			files = append(files, p.File)
		}
	}
	for f, e := range v.index.files {
		if e.err != nil {
			t.Errorf("%s: %v", f, e.err)
		}
	}
	if len(files) == 0 {
		t.Fatal("no profiles on this host")
	}
	// What we compile of the host's own profiles is what apparmor.service loaded.
	files = files[:min(len(files), 12)]
	begin = time.Now()
	done := v.compile(files...)
	t.Logf("%d files compiled and staged in %v", len(done), time.Since(begin))
	begin = time.Now()
	live, err := v.Live(names)
	t.Logf("%d live profiles of %d names in %v", len(live), len(names), time.Since(begin))
	if err != nil {
		t.Fatal(err)
	}
	same := 0
	for _, c := range done {
		for name, sum := range c.Checksums {
			if l, ok := live[name]; ok && l.Checksum != sum {
				t.Errorf("%s of %s: staged %s, live %+v", name, c.File, sum, l)
			} else if ok {
				same++
			}
		}
	}
	if same == 0 {
		t.Error("nothing was compared")
	}
}

// Only root can give a process away, so this needs a guest.
func TestVMParserRunsAsNobodyElse(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	h := newHost(t, fakeParser(t, "sleep 1; ulimit -v >&2; id -u >&2; id -G >&2; touch "+mark+" 2>/dev/null; touch top/x 2>/dev/null && echo wrote >&2; env >&2; exit 1"))
	f := h.profile("a", "profile a { }\n")
	_, problems := h.Compile(ctx(t), []string{f}, false)
	if len(problems) != 1 || !strings.Contains(problems[0].Detail, "19") || strings.Contains(problems[0].Detail, "wrote") || strings.Contains(problems[0].Detail, "unlimited") {
		t.Errorf("%+v", problems)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("the parser could write elsewhere")
	}
}
