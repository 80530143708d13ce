//go:build vm

package guest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/aaunit/aaunit/internal/attach"
)

// ctl runs aaunitctl.
func ctl(t testing.TB, args ...string) result {
	t.Helper()
	return try(t, "aaunitctl", args...)
}

// outcomes runs a command of aaunitctl that tells what became of units.
func outcomes(t testing.TB, args ...string) (map[string]attach.Outcome, result) {
	t.Helper()
	r := ctl(t, append(args, "--json")...)
	var doc struct{ Outcomes []attach.Outcome }
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("aaunitctl %s: %v\n%s%s", strings.Join(args, " "), err, r.stdout, r.stderr)
	}
	m := map[string]attach.Outcome{}
	for _, o := range doc.Outcomes {
		m[o.Unit] = o
	}
	return m, r
}

// report runs a command of aaunitctl that tells how units are.
func report(t testing.TB, args ...string) (attach.Report, result) {
	t.Helper()
	r := ctl(t, append(args, "--json")...)
	var doc attach.Report
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("aaunitctl %s: %v\n%s%s", strings.Join(args, " "), err, r.stdout, r.stderr)
	}
	return doc, r
}

// waitVerdict waits until the published verdict of a unit is about its present
// start, and gives it.
func waitVerdict(t testing.TB, unit string) attach.Verdict {
	t.Helper()
	var v attach.Verdict
	waitFor(t, "the verdict on "+unit, func() (bool, string) {
		rep, r := report(t, "status", unit)
		if len(rep.Units) != 1 || rep.Units[0].Verdict == nil || rep.Units[0].Busy {
			return false, r.stdout
		}
		v = *rep.Units[0].Verdict
		return v.Answer != attach.Unknown && v.InvocationID == show(t, unit, "InvocationID") && v.Tasks > 0, r.stdout
	})
	return v
}

// waitIdle waits until aaunitd works on no unit.
func waitIdle(t testing.TB) {
	t.Helper()
	all, _ := report(t, "status")
	waitAtMost(t, patience+time.Duration(len(all.Units))*time.Second, "aaunitd to be idle", func() (bool, string) {
		rep, r := report(t, "status")
		return !slices.ContainsFunc(rep.Units, func(u attach.Status) bool { return u.Busy }), r.stdout
	})
}

// codesOf lists the codes of reasons.
func codesOf(rs []attach.Reason) []attach.Code {
	var out []attach.Code
	for _, r := range rs {
		out = append(out, r.Code)
	}
	return out
}

// truth reads from /proc whether every task of a unit carries the profile in
// enforce mode and its processes have a private /tmp.
func truth(t testing.TB, unit, profile string) string {
	t.Helper()
	return untruth(unit, profile, tasksNow(t, unit))
}

// untruth says why it is not true that these tasks carry the profile, all of them,
// in enforce mode, and see a private /tmp; "" where it is.
func untruth(unit, profile string, tasks []task) string {
	if len(tasks) == 0 {
		return unit + " has no tasks"
	}
	for _, task := range tasks {
		if task.Profile != profile || task.Mode != "enforce" {
			return fmt.Sprintf("task %d (%s) is %q", task.TID, task.Comm, task.Label)
		}
		for _, dir := range []string{"/tmp", "/var/tmp"} {
			same, err := sameDir(dir, fmt.Sprintf("/proc/%d/root%s", task.PID, dir))
			if err != nil {
				return err.Error()
			}
			if same {
				return fmt.Sprintf("process %d sees the host's %s", task.PID, dir)
			}
		}
	}
	return ""
}

func sameDir(a, b string) (bool, error) {
	var sa, sb syscall.Stat_t
	if err := syscall.Stat(a, &sa); err != nil {
		return false, err
	}
	if err := syscall.Stat(b, &sb); err != nil {
		return false, err
	}
	return sa.Dev == sb.Dev && sa.Ino == sb.Ino, nil
}

// unconfined counts a unit's tasks that carry no profile.
func unconfined(t testing.TB, unit string) (n int) {
	t.Helper()
	for _, task := range tasksNow(t, unit) {
		if task.Label == "unconfined" {
			n++
		}
	}
	return n
}

// agents is a scene with the agent installed, and profiles and units for it.
type agents struct {
	*scene
	port int
}

func newAgents(t testing.TB) *agents {
	a := &agents{scene: newScene(t), port: 7100}
	a.File("/usr/local/bin/vm-agent", read(t, payload(t, "agent")), 0o755)
	t.Cleanup(func() {
		// Attachments of this scene's units go before the units do.
		for _, u := range a.units {
			os.Remove("/etc/aaunit/attachments.d/" + u + ".conf")
			os.Remove("/run/aaunit/attachments.d/" + u + ".conf")
		}
		a.waitDetached()
	})
	return a
}

// waitDetached waits until aaunitd has taken back what it did for the scene's
// units, when their attachments are gone: the units and their ports are for the
// next test then. It runs after the test's context has ended.
func (a *agents) waitDetached() {
	limit := patience + time.Duration(len(a.units))*time.Second
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(300 * time.Millisecond) {
		text, _ := exec.Command("aaunitctl", "status", "--json").Output()
		var r attach.Report
		if json.Unmarshal(text, &r) != nil {
			continue
		}
		mine := func(s attach.Status) bool { return slices.Contains(a.units, s.Unit) }
		left := slices.ContainsFunc(r.Units, mine) || slices.ContainsFunc(r.Patterns, mine)
		for _, u := range a.units {
			_, err := os.Lstat("/var/lib/aaunit/units/" + u + ".json")
			left = left || err == nil
		}
		if !left {
			return
		}
	}
	a.t.Logf("aaunitd still has units of this test attached after %v", limit)
}

// profileText is a profile under which the agent works, with further rules. It
// attaches to no path: a unit without the directive runs unconfined.
func profileText(name string, rules ...string) string {
	return fmt.Sprintf(`abi <abi/3.0>,
include <tunables/global>
profile %s {
  include <abstractions/base>
  network inet stream,
  network inet6 stream,
  /usr/local/bin/vm-agent mrix,
  /etc/hostname r,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
  signal (send, receive) peer=@{profile_name},
  %s
}
`, name, strings.Join(rules, "\n  "))
}

// agentUnit is the text of a unit that runs the agent; lines go into [Service].
func (a *agents) agentUnit(lines ...string) string {
	a.port++
	return fmt.Sprintf("[Service]\nExecStart=/usr/local/bin/vm-agent -listen 127.0.0.1:%d -tmp /tmp/vm-%%n -helper\nRestart=on-failure\nRestartSec=300ms\n%s\n",
		a.port, strings.Join(lines, "\n"))
}

const attachmentDir = "/etc/aaunit/attachments.d"

// attachmentFile drops an attachment file, as a configuration tool would.
func (s *scene) attachmentFile(name, text string) string {
	s.t.Helper()
	path := filepath.Join(attachmentDir, name)
	tmp := path + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	if err := os.Rename(tmp, path); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { os.Remove(path) })
	return path
}

// TestAttachProveDetach is the main job, from the first attach to the detach.
// On every suite.
func TestAttachProveDetach(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("usr.local.bin.vm-agent", profileText("myagent"))
	a.Unit("myagent.service", a.agentUnit("Restart=always"))
	a.ProfileFile("holder", profileText("holder", "/usr/bin/sleep mrix,"))
	a.Unit("holder.service", "[Service]\nExecStart=/bin/sh -c 'exec sleep 3600 3>/tmp/held'\n")
	a.Unit("dragged.service", "[Unit]\nRequires=holder.service\n"+a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "myagent.service", "holder.service", "dragged.service")
	waitFor(t, "the holder's file", func() (bool, string) { _, err := os.Lstat("/tmp/held"); return err == nil, "" })

	if r := ctl(t, "status", "myagent"); r.exit != 3 {
		t.Errorf("status of a unit that is not attached exits %d:\n%s%s", r.exit, r.stdout, r.stderr)
	}
	plan, r := outcomes(t, "plan", "myagent", "holder", "--profile", "usr.local.bin.vm-agent")
	if p := plan["myagent.service"].Plan; r.exit != 0 || p == nil || !p.Has(attach.Restart) {
		t.Errorf("plan: exit %d\n%s", r.exit, r.stdout)
	}
	if p := plan["holder.service"].Plan; p == nil || !slices.Contains(p.TmpFiles, "/tmp/held") || !slices.Contains(p.RestartsWith, "dragged.service") {
		t.Errorf("the plan does not say what a restart costs:\n%s", r.stdout)
	}
	if n := unconfined(t, "myagent.service"); n == 0 {
		t.Error("a plan has confined the unit")
	}

	r = ctl(t, "attach", "myagent", "--profile", "usr.local.bin.vm-agent")
	t.Logf("attach prints\n%s", r.stdout)
	if r.exit != 0 {
		t.Fatalf("attach exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, want := range []string{"usr.local.bin.vm-agent is a file name; its profile is called myagent",
		"/etc/systemd/system/myagent.service.d/90-aaunit.conf", "private /tmp", "stayed healthy for 5 s"} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("attach does not say %q:\n%s", want, r.stdout)
		}
	}
	if lie := truth(t, "myagent.service", "myagent"); lie != "" {
		t.Fatal("aaunitctl said confined, but", lie)
	}
	if got := show(t, "myagent.service", "AppArmorProfile"); got != "myagent" {
		t.Errorf("the directive is %q", got)
	}
	if r := ctl(t, "status", "myagent"); r.exit != 0 || !strings.Contains(r.stdout, "confined") {
		t.Errorf("status exits %d:\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "verify", "myagent"); r.exit != 0 {
		t.Errorf("verify exits %d:\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// A start by a person, and one by systemd after a crash.
	first := waitVerdict(t, "myagent.service")
	run(t, "systemctl", "restart", "myagent.service")
	second := waitVerdict(t, "myagent.service")
	run(t, "systemctl", "kill", "--signal=KILL", "--kill-whom=main", "myagent.service")
	waitFor(t, "the restart", func() (bool, string) {
		id := show(t, "myagent.service", "InvocationID")
		return id != "" && id != second.InvocationID && show(t, "myagent.service", "SubState") == "running", id
	})
	third := waitVerdict(t, "myagent.service")
	for _, v := range []attach.Verdict{first, second, third} {
		if v.Answer != attach.Confined {
			t.Errorf("%+v", v)
		}
	}
	if first.InvocationID == second.InvocationID || second.InvocationID == third.InvocationID {
		t.Error("two starts share a verdict")
	}

	// Attaching again changes nothing and restarts nothing.
	again, r := outcomes(t, "attach", "myagent", "--profile", "myagent")
	if o := again["myagent.service"]; r.exit != 0 || o.Changed {
		t.Errorf("attach again: exit %d\n%s", r.exit, r.stdout)
	}
	if id := show(t, "myagent.service", "InvocationID"); id != third.InvocationID {
		t.Error("attach again restarted the unit")
	}

	r = ctl(t, "detach", "myagent")
	t.Logf("detach prints\n%s", r.stdout)
	if r.exit != 0 {
		t.Fatalf("detach exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, path := range []string{"/etc/systemd/system/myagent.service.d", attachmentDir + "/myagent.service.conf"} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	if n := unconfined(t, "myagent.service"); n == 0 {
		t.Error("the unit still carries a profile")
	}
	if mode, ok := loadedProfiles(t)["myagent"]; ok {
		t.Errorf("the profile is left loaded (%s)", mode)
	}
	if left, _ := filepath.Glob("/var/lib/aaunit/units/*"); len(left) != 0 {
		t.Errorf("records are left: %v", left)
	}
}

func TestAFailedAttachIsUndone(t *testing.T) {
	a := newAgents(t)
	// The agent cannot read its own program's library of choice: it cannot even
	// listen.
	a.ProfileFile("undo", strings.Replace(profileText("undo"), "network inet stream,", "", 1))
	a.Unit("undo.service", a.agentUnit("Type=notify"))
	a.ProfileFile("good", profileText("good"))
	a.Unit("good.service", a.agentUnit())
	a.Unit("loop.service", a.agentUnit("Type=notify", "Restart=always", "RestartSec=50ms"))
	a.ProfileFile("loop", strings.Replace(profileText("loop"), "network inet stream,", "", 1))
	a.Reload()
	run(t, "systemctl", "start", "undo.service", "good.service", "loop.service")

	out, r := outcomes(t, "attach", "undo", "good", "loop")
	if r.exit != 1 {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
	for _, unit := range []string{"undo.service", "loop.service"} {
		name := strings.TrimSuffix(unit, ".service")
		if o := out[unit]; !o.Undone || len(o.Reasons) == 0 {
			t.Errorf("%s: %+v", unit, o)
		}
		if !slices.ContainsFunc(out[unit].Reasons, func(r attach.Reason) bool {
			return r.Code == attach.Denied && strings.Contains(r.Detail, "create inet stream denied")
		}) {
			t.Errorf("%s: what was denied is not shown: %+v", unit, out[unit].Reasons)
		}
		if got := show(t, unit, "ActiveState"); got != "active" {
			t.Errorf("%s is %s", unit, got)
		}
		if n := unconfined(t, unit); n == 0 {
			t.Errorf("%s is not as it was before", unit)
		}
		if _, loaded := loadedProfiles(t)[name]; loaded {
			t.Errorf("profile %s is left loaded", name)
		}
		if _, err := os.Lstat("/etc/systemd/system/" + unit + ".d"); !os.IsNotExist(err) {
			t.Errorf("the drop-in of %s is left", unit)
		}
		if _, err := os.Lstat(attachmentDir + "/" + unit + ".conf"); !os.IsNotExist(err) {
			t.Errorf("the attachment of %s was not withdrawn", unit)
		}
	}
	if lie := truth(t, "good.service", "good"); lie != "" || out["good.service"].Exit != attach.ExitOK {
		t.Errorf("the unit beside them: %s, %+v", lie, out["good.service"])
	}
	if r := ctl(t, "attach", "undo"); r.exit != 1 || !strings.Contains(r.stdout+r.stderr, "as it was before") {
		t.Errorf("what a person sees, exit %d:\n%s%s", r.exit, r.stdout, r.stderr)
	}
}

func TestAFileDroppedIsAnAttach(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"one", "two"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	a.Reload()
	run(t, "systemctl", "start", "one.service", "two.service")
	file := a.attachmentFile("fleet.conf", "[Attachment]\nUnit=one.service\nProfile=one\nSettleSec=1\n")
	a.attachmentFile("bad.conf", "[Attachment]\nUnit=one.service\nProfil=one\n")
	a.attachmentFile("two.conf", "[Attachment]\nUnit=two.service\nProfile=two\nSettleSec=1\n")
	for _, n := range []string{"one", "two"} {
		if v := waitVerdict(t, n+".service"); v.Answer != attach.Confined || truth(t, n+".service", n) != "" {
			waitFor(t, n+" confined", func() (bool, string) { lie := truth(t, n+".service", n); return lie == "", lie })
		}
	}
	rep, r := report(t, "status")
	if !slices.ContainsFunc(rep.Problems, func(p attach.Reason) bool { return p.Where == attachmentDir+"/bad.conf:3" }) {
		t.Errorf("the bad file is not named with its line:\n%s", r.stdout)
	}
	// A file that turns bad takes nothing away; one that goes does.
	a.attachmentFile("two.conf", "nonsense\n")
	os.Remove(file)
	waitFor(t, "the detach", func() (bool, string) {
		return show(t, "one.service", "AppArmorProfile") == "" && unconfined(t, "one.service") > 0, ""
	})
	if lie := truth(t, "two.service", "two"); lie != "" {
		t.Error("a file that turned bad took its attachment away:", lie)
	}
	// What is declared in a file is not detached at the command line.
	a.attachmentFile("two.conf", "[Attachment]\nUnit=two.service\nProfile=two\nSettleSec=1\n")
	waitFor(t, "the corrected file", func() (bool, string) {
		rep, r := report(t, "status", "two")
		return len(rep.Units) == 1 && !rep.Units[0].Busy && !slices.ContainsFunc(rep.Problems, func(p attach.Reason) bool { return strings.Contains(p.Where, "two.conf") }), r.stdout
	})
	if out, r := outcomes(t, "detach", "two"); r.exit != 1 || !slices.Contains(codesOf(out["two.service"].Reasons), attach.DeclaredInFile) {
		t.Errorf("detach of a declared unit: exit %d\n%s", r.exit, r.stdout)
	}
}

func TestOnViolationStop(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("stopme", profileText("stopme"))
	a.Unit("stopme.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "stopme.service")
	a.attachmentFile("stopme.conf", "[Attachment]\nUnit=stopme.service\nProfile=stopme\nOnViolation=stop\nSettleSec=1\n")
	waitFor(t, "the attach", func() (bool, string) { lie := truth(t, "stopme.service", "stopme"); return lie == "", lie })
	waitVerdict(t, "stopme.service")
	// Somebody's later drop-in takes the profile off the next start.
	a.Dropin("stopme.service", "99-override.conf", "[Service]\nAppArmorProfile=\n")
	a.Reload()
	try(t, "systemctl", "restart", "stopme.service")
	waitFor(t, "the stop", func() (bool, string) {
		s := show(t, "stopme.service", "ActiveState")
		return s == "inactive" || s == "failed", s
	})
	rep, r := report(t, "status", "stopme")
	if r.exit == 0 || len(rep.Units) != 1 || !slices.Contains(codesOf(rep.Units[0].Verdict.Reasons), attach.DirectiveOverridden) {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
	waitFor(t, "the journal of the unit to say why it was stopped", func() (bool, string) {
		text := journalctl(t, "-u", "stopme.service", "-o", "cat")
		return strings.Contains(text, "not confined"), text
	})
}

// TestSurvives checks that starts are seen after systemd, the bus or the daemon
// itself was restarted or killed.
func TestSurvives(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("survivor", profileText("survivor"))
	a.Unit("survivor.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "survivor.service")
	if r := ctl(t, "attach", "survivor"); r.exit != 0 {
		t.Fatalf("attach: %s%s", r.stdout, r.stderr)
	}
	for _, blow := range [][]string{
		{"systemctl", "daemon-reexec"},
		{"systemctl", "kill", "--signal=KILL", "aaunitd.service"},
		{"systemctl", "restart", "dbus.service"},
	} {
		run(t, blow[0], blow[1:]...)
		waitFor(t, "aaunitd after "+strings.Join(blow, " "), func() (bool, string) {
			r := ctl(t, "status", "survivor")
			return r.exit == 0, fmt.Sprintf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
		})
		before := show(t, "survivor.service", "InvocationID")
		run(t, "systemctl", "restart", "survivor.service")
		if v := waitVerdict(t, "survivor.service"); v.Answer != attach.Confined || v.InvocationID == before {
			t.Errorf("after %v: %+v", blow, v)
		}
	}
	if lie := truth(t, "survivor.service", "survivor"); lie != "" {
		t.Error(lie)
	}
}

// TestTheNameIsSomebodyElses: a root process has waited for the daemon's name, and gets it
// when the daemon starts again. That one goes on keeping units, and nobody believes the
// other.
func TestTheNameIsSomebodyElses(t *testing.T) {
	const unit, socket = "survivor.service", "/run/aaunit/metrics.sock"
	a := newAgents(t)
	a.ProfileFile("survivor", profileText("survivor"))
	a.Unit(unit, a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", unit, "aaunit-metrics.socket")
	if r := ctl(t, "attach", "survivor"); r.exit != 0 {
		t.Fatalf("attach: %s%s", r.stdout, r.stderr)
	}
	holder := fmt.Sprintf("which PID %s (/usr/sbin/aaunitd) works with", show(t, "aaunitd.service", "MainPID"))
	if r := try(t, "aaunitd"); r.exit != 1 || !strings.Contains(r.stderr, "is another aaunitd running?") || !strings.Contains(r.stderr, holder) {
		t.Errorf("a second aaunitd: exit %d\n%s", r.exit, r.stderr)
	}
	waiting, err := dbus.ConnectSystemBus()
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if _, err := waiting.RequestName("org.aaunit1", 0); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "restart", "aaunitd.service")
	pid := show(t, "aaunitd.service", "MainPID")
	// Root reaches the daemon without the bus.
	if r := ctl(t, "verify", "survivor"); r.exit != 0 {
		t.Errorf("root, at the daemon's socket: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for name, r := range map[string]result{"root": onBus(t, "status", "survivor"), "nobody": asUser(t, "nobody", "", "aaunitctl", "status", "survivor")} {
		if r.exit != 1 || !strings.Contains(r.stderr, fmt.Sprintf("belongs to PID %d, which is not aaunitd.service", os.Getpid())) {
			t.Errorf("%s: exit %d\n%s%s", name, r.exit, r.stdout, r.stderr)
		}
	}
	if text, err := scrape("unix", socket); err != nil || !strings.Contains(text, "aaunit_up 0\n") {
		t.Errorf("metrics: %v\n%.200s", err, text)
	}
	if text := journalctl(t, "-u", "aaunitd.service", "-o", "cat", "_PID="+pid); !strings.Contains(text, fmt.Sprintf("PID %d (", os.Getpid())) {
		t.Errorf("who has the name is not said:\n%s", text)
	}
	file := "/etc/systemd/system/" + unit + ".d/90-aaunit.conf"
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	a.Reload()
	waitFor(t, "the drop-in to be put back", func() (bool, string) {
		_, err := os.Stat(file)
		return err == nil, fmt.Sprint(err)
	})
	if now := show(t, "aaunitd.service", "MainPID"); now != pid {
		t.Errorf("aaunitd was PID %s, and is %s", pid, now)
	}
	waiting.Close()
	waitFor(t, "aaunitd to have its name", func() (bool, string) {
		r := onBus(t, "status", "survivor")
		return r.exit == 0, r.stdout + r.stderr
	})
	if text, err := scrape("unix", socket); err != nil || !strings.Contains(text, "aaunit_up 1\n") {
		t.Errorf("metrics: %v\n%.200s", err, text)
	}
	if now := show(t, "aaunitd.service", "MainPID"); now != pid {
		t.Errorf("aaunitd was PID %s, and is %s", pid, now)
	}
}

// onBus runs aaunitctl where it asks on the bus, and not at the daemon's socket.
func onBus(t testing.TB, args ...string) result {
	t.Helper()
	return try(t, "env", append([]string{"DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket", "aaunitctl"}, args...)...)
}

// TestTheDaemonsSocket: root is answered where there is no bus, and other users are left to
// the bus.
func TestTheDaemonsSocket(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("survivor", profileText("survivor"))
	a.Unit("survivor.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "survivor.service")
	// The bus's socket is hidden from what is run.
	without := func(args ...string) result {
		const hide = "mount --bind /dev/null /run/dbus/system_bus_socket && exec \"$@\""
		return try(t, "unshare", append([]string{"-m", "sh", "-c", hide, "sh"}, args...)...)
	}
	for _, args := range [][]string{{"attach", "survivor"}, {"verify", "survivor"}, {"status", "survivor", "--json"}} {
		if r := without(append([]string{"aaunitctl"}, args...)...); r.exit != 0 {
			t.Errorf("without a bus, aaunitctl %s exits %d\n%s%s", strings.Join(args, " "), r.exit, r.stdout, r.stderr)
		}
	}
	if lie := truth(t, "survivor.service", "survivor"); lie != "" {
		t.Error(lie)
	}
	if r := without("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "aaunitctl", "status", "survivor"); r.exit != 1 || !strings.Contains(r.stderr, "cannot reach the system bus") {
		t.Errorf("another user, without a bus: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := asUser(t, "nobody", "", "aaunitctl", "status", "survivor"); r.exit != 0 {
		t.Errorf("another user, on the bus: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	// A socket that was left behind by one that was killed is no obstacle.
	run(t, "systemctl", "kill", "--signal=KILL", "aaunitd.service")
	waitFor(t, "aaunitd to answer at its socket again", func() (bool, string) {
		r := without("aaunitctl", "verify", "survivor")
		return r.exit == 0, r.stdout + r.stderr
	})
}

// TestStartedByHand: one that somebody has started in a login session is believed while the
// service is down, which does not work beside it, and starts when it has ended.
func TestStartedByHand(t *testing.T) {
	run(t, "systemctl", "stop", "aaunitd.service")
	byHand := exec.Command("systemd-run", "--scope", "--quiet", "--unit=session-vm", "aaunitd")
	if err := byHand.Start(); err != nil {
		t.Fatal(err)
	}
	ended := sync.OnceFunc(func() {
		_ = byHand.Process.Signal(syscall.SIGTERM)
		_ = byHand.Wait()
	})
	t.Cleanup(func() {
		ended()
		try0("systemctl", "restart", "aaunitd.service")
	})
	pid := fmt.Sprint(byHand.Process.Pid)
	waitFor(t, "the one that was started by hand", func() (bool, string) {
		got := try(t, "busctl", "status", "org.aaunit1")
		return strings.Contains(got.stdout, "PID="+pid+"\n"), got.stdout + got.stderr
	})
	if r := ctl(t, "status"); r.exit == 1 {
		t.Errorf("it is not believed: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := try(t, "systemctl", "start", "aaunitd.service"); r.exit == 0 {
		t.Error("the service has started beside it")
	}
	if text := journalctl(t, "-u", "aaunitd.service", "-o", "cat"); !strings.Contains(text, "which PID "+pid+" (/usr/sbin/aaunitd) works with") {
		t.Errorf("who has the state is not said:\n%s", text)
	}
	ended()
	waitFor(t, "the service to start by itself", func() (bool, string) {
		state := try(t, "systemctl", "is-active", "aaunitd.service").stdout
		return state == "active", state
	})
	if r := ctl(t, "status"); r.exit == 1 {
		t.Errorf("the service is not believed: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
}

func TestRuntimeAndWithoutRestart(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("later", profileText("later"))
	a.Unit("later.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "later.service")
	r := ctl(t, "attach", "later", "--runtime", "--no-restart")
	if r.exit != 3 || !strings.Contains(r.stdout+r.stderr, "systemctl restart later.service") {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if _, err := os.Stat("/run/systemd/system/later.service.d/90-aaunit.conf"); err != nil {
		t.Error(err)
	}
	if n := unconfined(t, "later.service"); n == 0 {
		t.Error("the unit was restarted")
	}
	time.Sleep(3 * time.Second) // no later pass restarts it either
	if n := unconfined(t, "later.service"); n == 0 {
		t.Error("the unit was restarted later")
	}
	run(t, "systemctl", "restart", "later.service")
	if v := waitVerdict(t, "later.service"); v.Answer != attach.Confined || truth(t, "later.service", "later") != "" {
		t.Errorf("%+v", v)
	}
	if r := ctl(t, "detach", "later", "--no-restart"); r.exit != 0 {
		t.Errorf("detach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if lie := truth(t, "later.service", "later"); lie != "" {
		t.Error("detach --no-restart took the profile off running tasks:", lie)
	}
}

func TestComplainIsNeverCalledConfined(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("soft", profileText("soft"))
	a.Unit("soft.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "soft.service")
	out, r := outcomes(t, "attach", "soft", "--complain")
	if o := out["soft.service"]; r.exit != 3 || o.Undone || o.Verdict == nil || !slices.Contains(codesOf(o.Verdict.Reasons), attach.TaskComplain) {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
	for _, task := range unitTasks(t, "soft.service") {
		if task.Label != "soft (complain)" {
			t.Errorf("%+v", task)
		}
	}
}

// try0 runs a command after a test has ended, whatever comes of it.
func try0(name string, args ...string) { _ = exec.Command(name, args...).Run() }

// port is the address of an agent.
func port(n int) string { return fmt.Sprintf("127.0.0.1:%d", n) }
