//go:build vm

package guest

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is for what is sure to happen soon, on an emulated machine on a busy
// host. No test waits that long when all is well.
const patience = 4 * time.Minute

// run runs a command and returns what it prints, without the last newline. The
// test ends if it fails.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	r := try(t, name, args...)
	if r.exit != 0 {
		t.Fatalf("%s %s: exit status %d\n%s%s", name, strings.Join(args, " "), r.exit, r.stdout, r.stderr)
	}
	return r.stdout
}

// result is what a command has left, without the last newlines.
type result struct {
	stdout, stderr string
	exit           int
}

// try runs a command that may fail. The test ends if it cannot be started.
func try(t testing.TB, name string, args ...string) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if exitErr := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exitErr) {
		t.Fatalf("cannot run %s: %v", name, err)
	}
	return result{
		stdout: strings.TrimSuffix(stdout.String(), "\n"),
		stderr: strings.TrimSuffix(stderr.String(), "\n"),
		exit:   cmd.ProcessState.ExitCode(),
	}
}

// journalctl is what the journal has since the machine was started. While journald
// begins a new file, journalctl may leave out all of the old one, and says so; it
// is asked again then (https://github.com/systemd/systemd/issues/40053).
func journalctl(t testing.TB, args ...string) string {
	t.Helper()
	var text string
	waitFor(t, "journalctl to read all of the journal", func() (bool, string) {
		r := try(t, "journalctl", append([]string{"-b", "--no-pager"}, args...)...)
		text = r.stdout
		return r.exit == 0 && !strings.Contains(r.stderr, "ignoring file"), r.stderr
	})
	return text
}

// read returns a file's text, without the last newline.
func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSuffix(string(text), "\n")
}

// payload is the path of a file that vmexec was given in AAUNIT_VM_PAYLOAD.
func payload(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join("/root/payload", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("this test needs %s in AAUNIT_VM_PAYLOAD: %v", name, err)
	}
	return path
}

// waitFor calls done until it says yes. When it never does, the test ends with
// the last thing done had to say.
func waitFor(t testing.TB, what string, done func() (bool, string)) {
	t.Helper()
	waitAtMost(t, patience, what, done)
}

func waitAtMost(t testing.TB, limit time.Duration, what string, done func() (bool, string)) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		ok, text := done()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("still waiting for %s after %v: %s", what, limit, text)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// show is a property of a unit, as systemctl prints it.
func show(t testing.TB, unit, property string) string {
	t.Helper()
	return run(t, "systemctl", "show", "--value", "--property="+property, unit)
}

// scene is what a test puts on the machine: files, units, profiles. All of it is
// taken away when the test ends, with one daemon-reload, after the journal of
// its units was printed if the test has failed.
type scene struct {
	t        testing.TB
	units    []string
	files    []string
	profiles map[string]string // that were loaded before
}

func newScene(t testing.TB) *scene {
	s := &scene{t: t, profiles: loadedProfiles(t)}
	t.Cleanup(s.clean)
	return s
}

// File writes a file. What was there before is not put back.
func (s *scene) File(path, text string, mode os.FileMode) {
	s.t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		s.t.Fatal(err)
	}
	// All at once: aaunitd may read it at any moment, and a binary that runs
	// cannot be written to.
	base := filepath.Base(path)
	tmp := filepath.Join(filepath.Dir(path), "."+base[:min(len(base), 200)]+".tmp")
	if err := os.WriteFile(tmp, []byte(text), mode); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		s.t.Fatal(err)
	}
	if !slices.Contains(s.files, path) {
		s.files = append(s.files, path)
	}
}

// Unit writes a unit file into /etc/systemd/system. Call Reload when all are
// written. The unit's drop-ins in /etc and /run are removed with it, whoever
// wrote them.
func (s *scene) Unit(name, text string) {
	s.t.Helper()
	s.File(filepath.Join("/etc/systemd/system", name), text, 0o644)
	s.Own(name)
}

// Own has a unit stopped, and its drop-ins removed, when the test ends: for
// instances of templates, and units of packages.
func (s *scene) Own(unit string) {
	if !slices.Contains(s.units, unit) {
		s.units = append(s.units, unit)
	}
}

// Dropin writes a drop-in of a unit in /etc/systemd/system.
func (s *scene) Dropin(unit, name, text string) {
	s.t.Helper()
	s.File(filepath.Join("/etc/systemd/system", unit+".d", name), text, 0o644)
}

// ProfileFile writes a file in /etc/apparmor.d, and loads nothing. Whatever
// profiles were loaded during the test are unloaded when it ends.
func (s *scene) ProfileFile(name, text string) (path string) {
	s.t.Helper()
	path = filepath.Join("/etc/apparmor.d", name)
	s.File(path, text, 0o644)
	return path
}

// Profile is ProfileFile, and loads it.
func (s *scene) Profile(name, text string) (path string) {
	s.t.Helper()
	path = s.ProfileFile(name, text)
	run(s.t, "apparmor_parser", "--replace", "--skip-read-cache", path)
	return path
}

// Reload is systemctl daemon-reload. It takes seconds: write all units first.
func (s *scene) Reload() {
	s.t.Helper()
	run(s.t, "systemctl", "daemon-reload")
}

// clean runs after the test's context has ended, so without try.
func (s *scene) clean() {
	command := func(name string, args ...string) {
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			s.t.Logf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
	}
	if s.t.Failed() {
		for _, unit := range s.units {
			out, err := exec.Command("journalctl", "-b", "--no-pager", "-n", "60", "-u", unit).CombinedOutput()
			s.t.Logf("the journal of %s (%v):\n%s", unit, err, out)
		}
	}
	if len(s.units) > 0 {
		// Templates cannot be stopped; their instances can.
		stop := slices.DeleteFunc(slices.Clone(s.units), func(u string) bool { return strings.Contains(u, "@.") })
		if len(stop) > 0 {
			command("systemctl", append([]string{"stop", "--"}, stop...)...)
			// Fails for units that are gone already.
			exec.Command("systemctl", append([]string{"reset-failed", "--"}, stop...)...).Run()
		}
	}
	// By the kernel's own file: the parser takes seconds here.
	for name := range loadedProfiles(s.t) {
		if _, before := s.profiles[name]; !before && !strings.Contains(name, "//") {
			if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(name), 0); err != nil {
				s.t.Logf("cannot unload %s: %v", name, err)
			}
		}
	}
	for _, file := range s.files {
		os.Remove(file)
	}
	for _, unit := range s.units {
		for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system"} {
			os.RemoveAll(filepath.Join(dir, unit+".d"))
		}
	}
	if len(s.units) > 0 {
		command("systemctl", "daemon-reload")
	}
}

// task is one thread of a unit.
type task struct {
	PID, TID int
	Comm     string
	Label    string // as the kernel gives it
	Profile  string // the label without its mode
	Mode     string // "" for unconfined
}

// unitTasks lists the tasks in a unit's cgroup and those below. The test ends if
// there are none.
func unitTasks(t testing.TB, unit string) []task {
	t.Helper()
	tasks := tasksNow(t, unit)
	if len(tasks) == 0 {
		t.Fatalf("%s has no tasks: it is %s", unit, show(t, unit, "ActiveState"))
	}
	return tasks
}

// tasksNow lists the tasks of a unit that may have none at the moment.
func tasksNow(t testing.TB, unit string) []task {
	t.Helper()
	group := show(t, unit, "ControlGroup")
	if group == "" {
		return nil
	}
	return groupTasks(t, group)
}

// groupTasks lists the tasks in a control group and those below.
func groupTasks(t testing.TB, group string) []task {
	t.Helper()
	var tasks []task
	err := filepath.WalkDir(filepath.Join("/sys/fs/cgroup", group), func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // stopped meanwhile
		}
		if err != nil || d.Name() != "cgroup.threads" {
			return err
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
			return nil // stopped meanwhile
		}
		if err != nil {
			return err
		}
		for _, field := range strings.Fields(string(text)) {
			if task, ok := readTask(t, field); ok {
				tasks = append(tasks, task)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return tasks
}

// readTask says no if the task is gone.
func readTask(t testing.TB, tid string) (task, bool) {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", tid, "status"))
	if err != nil {
		return task{}, false
	}
	label, err := os.ReadFile(filepath.Join("/proc", tid, "attr/apparmor/current"))
	if err != nil {
		return task{}, false
	}
	result := task{Label: strings.TrimSuffix(string(label), "\n")}
	result.Profile, result.Mode = splitLabel(result.Label)
	for line := range strings.Lines(string(status)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "Name":
			result.Comm = value
		case "Tgid":
			result.PID, _ = strconv.Atoi(value)
		case "Pid":
			result.TID, _ = strconv.Atoi(value)
		}
	}
	return result, true
}

// splitLabel splits at the last " (": profiles' names can have spaces.
func splitLabel(label string) (profile, mode string) {
	if i := strings.LastIndex(label, " ("); i >= 0 && strings.HasSuffix(label, ")") {
		return label[:i], label[i+2 : len(label)-1]
	}
	return label, ""
}

// loadedProfiles are the names of the loaded profiles with their modes.
func loadedProfiles(t testing.TB) map[string]string {
	t.Helper()
	modes := map[string]string{}
	for line := range strings.Lines(read(t, "/sys/kernel/security/apparmor/profiles") + "\n") {
		name, mode := splitLabel(strings.TrimSuffix(line, "\n"))
		modes[name] = mode
	}
	return modes
}

// ask has an agent (test/vm/agent) do something, and returns its answer: "ok …"
// or "error …". An agent that has just started may not listen yet.
func ask(t testing.TB, address, request string) string {
	t.Helper()
	answer, err := answered(connect(t, address), request)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// connect waits until the agent listens.
func connect(t testing.TB, address string) (conn net.Conn) {
	t.Helper()
	waitFor(t, "the agent at "+address, func() (bool, string) {
		var err error
		if conn, err = net.DialTimeout("tcp", address, patience); err != nil {
			return false, err.Error()
		}
		return true, ""
	})
	return conn
}

// answered sends the agent a request and gives its answer. It may be called on any
// goroutine.
func answered(conn net.Conn, request string) (string, error) {
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(conn, request); err != nil {
		return "", fmt.Errorf("cannot ask the agent: %w", err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the agent did not answer to %q: %w", request, err)
	}
	return strings.TrimSuffix(answer, "\n"), nil
}

// pins is where a unit's BPF objects are pinned. The kernel lets no name there have a
// dot.
func pins(unit string) string {
	return "/sys/fs/bpf/aaunit/" + strings.NewReplacer("-", "_2d", ".", "_2e").Replace(unit)
}
