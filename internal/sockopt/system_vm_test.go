//go:build vm

package sockopt

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// service is a unit of systemd's with the start helper of the package.
type service struct {
	*System
	t       *testing.T
	unit    string
	program string
	dir     string // which everybody may write to
}

const testProgram = "/usr/local/bin/vm-sockopt"

// newService writes a unit file, with settings of its own, and stores rules.
func newService(t *testing.T, unit string, list []attempt, settings ...string) *service {
	t.Helper()
	s := &service{New(Options{}), t, unit, testProgram, "/run/vm-sockopt"}
	if err := os.MkdirAll(s.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(testProgram); err != nil {
		data, err := os.ReadFile("/proc/self/exe")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(testProgram, data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	args, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	s.write(s.dir+"/args", string(args))
	text := "[Service]\nEnvironment=" + roleVar + "=service " + argsVar + "=@" + s.dir + "/args AAUNIT_TEST_RESULT=" + s.dir + "/result\n" +
		"ExecStart=" + testProgram + "\nTimeoutStartSec=120\n" + strings.Join(append(settings, attach.SocketStartLine(true)), "\n") + "\n"
	s.write("/run/systemd/system/"+unit, text)
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "stop", unit).Run()
		_ = exec.Command("systemctl", "reset-failed", unit).Run()
		_ = os.Remove("/run/systemd/system/" + unit)
		_, _ = DefaultStore.Delete(unit)
		if _, err := s.Remove(unit); err != nil {
			t.Error(err)
		}
	})
	s.run("systemctl", "daemon-reload")
	return s
}

func (s *service) write(path, text string) {
	s.t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) run(name string, args ...string) string {
	s.t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		log, _ := exec.Command("journalctl", "-b", "-o", "cat", "-n", "20", "-u", s.unit).CombinedOutput()
		s.t.Fatalf("%s %v: %v: %s\n%s", name, args, err, out, log)
	}
	return strings.TrimSpace(string(out))
}

func (s *service) store(r Rules) {
	s.t.Helper()
	if _, err := DefaultStore.Save(s.unit, r); err != nil {
		s.t.Fatal(err)
	}
}

// start starts or restarts the unit and waits for what its program has to say.
func (s *service) start(how string) []attempt {
	s.t.Helper()
	_ = os.Remove(s.dir + "/result")
	s.run("systemctl", how, s.unit)
	return s.result()
}

func (s *service) result() []attempt {
	s.t.Helper()
	for range 600 {
		data, err := os.ReadFile(s.dir + "/result")
		if err == nil {
			var list []attempt
			if err := json.Unmarshal(data, &list); err != nil {
				s.t.Fatal(err)
			}
			return list
		}
		time.Sleep(100 * time.Millisecond)
	}
	log, _ := exec.Command("journalctl", "-b", "-o", "cat", "-n", "20", "-u", s.unit).CombinedOutput()
	s.t.Fatalf("%s said nothing: %s", s.unit, log)
	return nil
}

func (s *service) holds(r Rules) {
	s.t.Helper()
	a, err := s.Attached(s.run("systemctl", "show", "-P", "ControlGroup", s.unit), s.unit)
	if err != nil || !a.Holds(r) {
		s.t.Errorf("%+v, %v", a, err)
	}
}

// of are the options that a unit's program or systemd set, with their counts.
func (s *service) of(bySystemd bool) map[string][2]uint64 {
	s.t.Helper()
	r, err := s.Read(s.unit)
	if err != nil {
		s.t.Fatal(err)
	}
	out := map[string][2]uint64{}
	for _, seen := range r.Seen {
		if seen.BySystemd == bySystemd && seen.Call == Set {
			name := seen.Option.Format(Set, seen.Socket)
			n := out[name]
			out[name] = [2]uint64{n[0] + seen.Allowed, n[1] + seen.Refused}
		}
	}
	return out
}

var (
	nodelay = attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}
	cork    = attempt{Kind: "tcp4", Level: unix.SOL_TCP, Option: unix.TCP_CORK}
)

// The link holds through restart, stop and start, daemon-reload and daemon-reexec,
// the counts go on, and a change needs no restart.
// On every suite.
func TestVMServiceLife(t *testing.T) {
	s := newService(t, "vm-sockopt.service", []attempt{nodelay, cork})
	rules := Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY")}}
	s.store(rules)
	starts := uint64(0)
	for _, how := range []string{"start", "restart", "daemon-reload", "daemon-reexec", "stop", "start"} {
		switch how {
		case "start", "restart":
			starts++
			if got := s.start(how); got[0].Errno != 0 || got[1].Errno != int(unix.EPERM) {
				t.Errorf("%s: %+v", how, got)
			}
		case "stop":
			s.run("systemctl", how, s.unit)
			if units, err := s.Units(); err != nil || !slices.Contains(units, s.unit) {
				t.Errorf("after stop: %q %v", units, err)
			}
			continue
		default:
			s.run("systemctl", how)
		}
		s.holds(rules)
	}
	if got := s.of(false); len(got) != 2 || got["SOL_TCP:TCP_NODELAY"] != [2]uint64{starts, 0} || got["SOL_TCP:TCP_CORK"] != [2]uint64{0, starts} {
		t.Errorf("%v", got)
	}
	bySystemd := s.of(true)
	t.Logf("by systemd: %v", bySystemd)
	if len(bySystemd) == 0 {
		t.Error("systemd was not seen to set anything for the journal")
	}
	if _, err := s.SetAllow(s.unit, []Option{opt("TCP_NODELAY"), opt("TCP_CORK")}, nil); err != nil {
		t.Error(err)
	}
	s.holds(Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY"), opt("TCP_CORK")}})
}

// What systemd itself does in the unit's control group is never refused, in the
// settings that make it do much; and what the program does is told from it, root
// or not.
// On every suite.
func TestVMSystemdIsNotRefused(t *testing.T) {
	const pam = "/etc/pam.d/vm-sockopt"
	(&service{t: t}).write(pam, "auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n")
	t.Cleanup(func() { _ = os.Remove(pam) })
	for name, settings := range map[string][]string{
		"plain":   nil,
		"user":    {"User=nobody"},
		"dynamic": {"DynamicUser=yes", "ReadWritePaths=/run/vm-sockopt"},
		"network": {"PrivateNetwork=yes", "User=nobody"},
		"pam":     {"User=nobody", "PAMName=vm-sockopt"},
		"tight":   {"User=nobody", "NoNewPrivileges=yes", "CapabilityBoundingSet=", "PrivateUsers=yes", "SystemCallFilter=@system-service", "Type=exec"},
		"deleg":   {"Delegate=yes", "User=nobody"},
		"syslog":  {"StandardOutput=syslog", "LogNamespace="},
	} {
		t.Run(name, func(t *testing.T) {
			s := newService(t, "vm-sockopt-"+name+".service", []attempt{nodelay, cork}, settings...)
			s.store(Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY")}})
			since := time.Now().Format("2006-01-02 15:04:05")
			if got := s.start("start"); got[0].Errno != 0 || got[1].Errno != int(unix.EPERM) {
				t.Errorf("%+v", got)
			}
			if got := s.of(false); len(got) != 2 {
				t.Errorf("by the program: %v", got)
			}
			bySystemd := s.of(true)
			t.Logf("by systemd: %v", bySystemd)
			for option, n := range bySystemd {
				if n[1] != 0 {
					t.Errorf("%s was refused to systemd", option)
				}
			}
			deadline := time.Now().Add(30 * time.Second)
			for !strings.Contains(s.run("journalctl", "-b", "-o", "cat", "--since", since, "-u", s.unit), "a line for the journal") {
				if time.Now().After(deadline) {
					t.Error("the program's output did not come to the journal")
					break
				}
				time.Sleep(200 * time.Millisecond)
			}
		})
	}
}

// A PAM session takes the program to a control group of its own, where nothing of
// the unit's holds. A test that fails here means that the manual can be changed.
func TestVMSessionIsNotHeld(t *testing.T) {
	s := newService(t, "vm-sockopt-session.service", []attempt{nodelay, cork}, "User=nobody", "PAMName=login")
	s.store(Rules{Mode: Enforce, Allow: []Option{opt("TCP_NODELAY")}})
	if got := s.start("start"); got[0].Errno != 0 || got[1].Errno != 0 {
		t.Errorf("%+v", got)
	}
	own, err := os.ReadFile("/proc/" + s.run("systemctl", "show", "-P", "MainPID", s.unit) + "/cgroup")
	if err != nil || !strings.Contains(string(own), "/session-") {
		t.Errorf("%s, %v", own, err)
	}
}

// A program cannot pass itself off as systemd: not by its name, nor by a program
// that is called so, nor as an orphan.
func TestVMNobodyPassesForSystemd(t *testing.T) {
	copied := "/usr/local/bin/systemd-executor" // /run is mounted noexec
	s := newService(t, "vm-sockopt-fake.service", []attempt{nodelay}, "User=nobody",
		"ExecStart=", "ExecStart="+copied)
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(copied) })
	s.store(Rules{Mode: Enforce})
	if got := s.start("start"); got[0].Errno != int(unix.EPERM) {
		t.Errorf("%+v", got)
	}
	if got := s.of(true); len(got) > 0 && got["SOL_TCP:TCP_NODELAY"] != [2]uint64{} {
		t.Errorf("%v", got)
	}
}

// Without rules a start fails and says why; where they are not required, it goes
// on and says so.
func TestVMRequired(t *testing.T) {
	s := newService(t, "vm-sockopt-required.service", []attempt{nodelay})
	if out, err := exec.Command("systemctl", "start", s.unit).CombinedOutput(); err == nil {
		t.Errorf("it starts: %s", out)
	}
	if log := s.run("journalctl", "-b", "-o", "cat", "-u", s.unit); !strings.Contains(log, "cannot find the socket-option rules of "+s.unit) {
		t.Error(log)
	}
	file := "/run/systemd/system/" + s.unit
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s.write(file, strings.Replace(string(text), attach.SocketStartLine(true), attach.SocketStartLine(false), 1))
	s.run("systemctl", "daemon-reload")
	if got := s.start("start"); got[0].Errno != 0 {
		t.Errorf("%+v", got)
	}
	if log := s.run("journalctl", "-b", "-o", "cat", "-p", "warning", "-u", s.unit); !strings.Contains(log, "starts all the same") {
		t.Error(log)
	}
}

// The first start of an instance of a template needs no more than the template's
// rules, and has tables of its own.
func TestVMInstance(t *testing.T) {
	s := newService(t, "vm-sockopt-t@.service", []attempt{nodelay})
	s.store(Rules{Mode: Enforce})
	s.unit = "vm-sockopt-t@one.service"
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "stop", s.unit).Run()
		if _, err := s.Remove(s.unit); err != nil {
			t.Error(err)
		}
	})
	if got := s.start("start"); got[0].Errno != int(unix.EPERM) {
		t.Errorf("%+v", got)
	}
	s.holds(Rules{Mode: Enforce})
}

// The sockets of a .socket unit are made in its control group, and are held to
// what is attached there, with the same line.
func TestVMSocketUnit(t *testing.T) {
	s := newService(t, "vm-sockopt-act.service", []attempt{{Kind: "3", Level: unix.SOL_TCP, Option: unix.TCP_NODELAY}, nodelay})
	socket := "vm-sockopt-act.socket"
	s.write("/run/systemd/system/"+socket, "[Socket]\nListenStream=127.0.0.1:4711\nKeepAlive=yes\nNoDelay=yes\n"+attach.SocketStartLine(true)+"\n")
	t.Cleanup(func() {
		_ = exec.Command("systemctl", "stop", socket).Run()
		_ = os.Remove("/run/systemd/system/" + socket)
		_, _ = DefaultStore.Delete(socket)
		_, _ = s.Remove(socket)
	})
	s.run("systemctl", "daemon-reload")
	s.store(Rules{Mode: Enforce})
	if _, err := DefaultStore.Save(socket, Rules{Mode: Enforce}); err != nil {
		t.Fatal(err)
	}
	s.run("systemctl", "start", socket)
	if got := s.start("start"); got[0].Errno != int(unix.EPERM) || got[1].Errno != int(unix.EPERM) {
		t.Errorf("%+v", got)
	}
	r, err := s.Read(socket)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for _, seen := range r.Seen {
		t.Logf("%s %s by systemd %v: %d %d", seen.Call, seen.Option.Format(seen.Call, seen.Socket), seen.BySystemd, seen.Allowed, seen.Refused)
		if seen.Refused > 0 {
			if refused++; seen.BySystemd || seen.Option != opt("TCP_NODELAY") {
				t.Errorf("%+v", seen)
			}
		}
	}
	if refused != 1 {
		t.Errorf("%d kinds were refused", refused)
	}
}

// How long the helper takes, and how much memory: for the reader, with nothing
// asserted on an emulated machine.
func TestVMHelperCost(t *testing.T) {
	s := newService(t, "vm-sockopt-cost.service", nil)
	s.store(Rules{Mode: Record})
	dir := filepath.Join(s.cgroups, s.unit)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(dir)
	for _, what := range []string{"first start", "next start", "next start", "next start"} {
		cmd := exec.Command("/bin/sh", "-c", fmt.Sprintf("echo $$ > %s/cgroup.procs; exec %s %s", dir, attach.SocketHelper, s.unit))
		start := time.Now()
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		usage, _ := cmd.ProcessState.SysUsage().(*syscall.Rusage)
		t.Logf("%s: %v, of which on a CPU %v, %d KiB", what, time.Since(start).Round(time.Millisecond),
			(cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(time.Millisecond), usage.Maxrss)
	}
	nothing := exec.Command("/bin/sh", "-c", "exec "+attach.SocketHelper+" -version")
	start := time.Now()
	if out, err := nothing.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Logf("only started: %v", time.Since(start).Round(time.Millisecond))
}
