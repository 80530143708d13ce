//go:build vm && long

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
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// What the daemon of build/aaunitd-crash takes orders from and writes to; see
// cmd/aaunitd/crash.go.
const (
	crashDir   = "/run/aaunit"
	crashOrder = crashDir + "/order"
	crashLog   = crashDir + "/log"
)

const (
	crashUnit       = "crash.service"
	crashDropIn     = "/etc/systemd/system/" + crashUnit + ".d/" + attach.DropInName
	crashAttachment = attachmentDir + "/" + crashUnit + ".conf"
	crashRecord     = "/var/lib/aaunit/units/" + crashUnit + ".json"
)

// crashes is a scene in which aaunitd can be killed between any two steps, with
// one unit and three profiles for it: crash and crash-other are good, and under
// crash-bad the unit does not come up.
type crashes struct {
	*agents
	text int // of the profile crash
}

func newCrashes(t *testing.T) *crashes {
	c := &crashes{agents: newAgents(t)}
	c.ProfileFile("crash", c.profile())
	c.ProfileFile("crash-other", profileText("crash-other"))
	c.ProfileFile("crash-bad", strings.Replace(profileText("crash-bad"), "network inet stream,", "", 1))
	// systemd never gives up on it: an undo has to stop it first.
	c.Unit(crashUnit, "[Unit]\nStartLimitIntervalSec=0\n"+c.agentUnit("Type=notify"))
	t.Cleanup(func() {
		os.RemoveAll("/etc/systemd/system/aaunitd.service.d")
		try0("systemctl", "daemon-reload")
		try0("systemctl", "restart", "aaunitd.service")
		os.Remove(crashOrder)
		os.Remove(crashLog)
	})
	c.Dropin("aaunitd.service", "crash.conf", fmt.Sprintf(`[Unit]
StartLimitIntervalSec=0
[Service]
ExecStart=
ExecStart=%s
Environment=AAUNITD_CRASH=%s
RestartSec=100ms
`, payload(t, "aaunitd-crash"), crashDir))
	c.Reload()
	run(t, "systemctl", "restart", "aaunitd.service")
	run(t, "systemctl", "start", crashUnit)
	return c
}

// profile is the text of the profile crash: which of two files it lets the unit
// read shows which text the kernel runs.
func (c *crashes) profile() string {
	return profileText("crash", []string{"/etc/issue r,", "/etc/debian_version r,"}[c.text%2])
}

// reads reports whether the unit runs under the text of the profile that was
// written last.
func (c *crashes) reads() bool {
	files := []string{"/etc/issue", "/etc/debian_version"}
	may, may2 := ask(c.t, port(c.port), "read "+files[c.text%2]), ask(c.t, port(c.port), "read "+files[(c.text+1)%2])
	return strings.HasPrefix(may, "ok ") && strings.HasPrefix(may2, "error ")
}

// declared is the profile that the attachment of the unit names; "" for none.
func declared(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile(crashAttachment)
	if os.IsNotExist(err) {
		return ""
	}
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), "\nProfile=")
	name, _, _ := strings.Cut(rest, "\n")
	if !ok || name == "" {
		t.Fatalf("%s is torn: %q", crashAttachment, text)
	}
	return name
}

// detached brings the unit to run with no attachment.
func (c *crashes) detached() {
	c.t.Helper()
	if declared(c.t) != "" {
		if r := ctl(c.t, "detach", crashUnit); r.exit != 0 {
			c.t.Fatalf("detach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
		}
	}
	c.waitAtRest("", "")
}

// attached brings the unit to be confined by the profile.
func (c *crashes) attached(profile string) {
	c.t.Helper()
	if declared(c.t) != profile {
		if r := ctl(c.t, "attach", crashUnit, "--profile", profile); r.exit != 0 {
			c.t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
		}
	}
	c.waitAtRest(profile, "")
}

// waitAtRest waits until aaunitd has nothing left to do and the unit is what is
// declared. A profile under which the unit does not come up counts as former,
// which the unit had before.
func (c *crashes) waitAtRest(want, former string) {
	c.t.Helper()
	held := want == "crash-bad"
	if held {
		want = former
	}
	waitFor(c.t, fmt.Sprintf("the unit to be at rest under profile %q", want), func() (bool, string) {
		r := ctl(c.t, "status", crashUnit, "--json")
		var rep attach.Report
		if err := json.Unmarshal([]byte(r.stdout), &rep); err != nil {
			return false, r.stderr
		}
		why := c.differs(rep, want, held)
		return why == "", why + "\n" + r.stdout
	})
}

// differs says in what the unit, as systemd and the kernel have it, or what
// aaunitd tells of it, differs from what is wanted.
func (c *crashes) differs(rep attach.Report, profile string, held bool) string {
	t := c.t
	shown := profile != "" || held
	switch {
	case len(rep.Problems) > 0:
		return fmt.Sprintf("there are problems: %v", rep.Problems)
	case !shown && len(rep.Units) != 0:
		return "the status shows the unit as attached"
	case shown && (len(rep.Units) != 1 || rep.Units[0].Verdict == nil || rep.Units[0].Busy):
		return "aaunitd is at work"
	}
	unit := map[string]string{}
	for line := range strings.Lines(run(t, "systemctl", "show", crashUnit, "--property=ActiveState,AppArmorProfile,NeedDaemonReload,InvocationID")) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		unit[key] = value
	}
	switch {
	case unit["ActiveState"] != "active" || unit["AppArmorProfile"] != profile || unit["NeedDaemonReload"] != "no":
		return fmt.Sprintf("of the unit systemd says %v", unit)
	case exists(crashDropIn) != (profile != ""):
		return fmt.Sprintf("that its drop-in is there is %v", exists(crashDropIn))
	case profile == "" && exists(filepath.Dir(crashDropIn)):
		return "the directory of the drop-in is left"
	case shown && (rep.Units[0].Held != nil) != held:
		return fmt.Sprintf("that it is held is %v", !held)
	case shown && rep.Units[0].Verdict.InvocationID != unit["InvocationID"]:
		return "the verdict is on another start"
	case shown && (rep.Units[0].Verdict.Answer == attach.Confined) == held, shown && profile == "" && rep.Units[0].Verdict.Answer != attach.NotConfined:
		return "the verdict is " + rep.Units[0].Verdict.Answer.String()
	case !shown && exists(crashRecord):
		return "its record is left"
	}
	if left, _ := filepath.Glob(recordDir + "/*.bad*"); len(left) > 0 {
		return fmt.Sprintf("a record was set aside: %v", left)
	}
	switch {
	case profile == "":
		if n, all := unconfined(t, crashUnit), len(tasksNow(t, crashUnit)); n == 0 || n != all {
			return fmt.Sprintf("%d of %d tasks are unconfined", n, all)
		}
	case truth(t, crashUnit, profile) != "":
		return truth(t, crashUnit, profile)
	case profile == "crash" && !c.reads():
		return "the kernel does not run the text that was written last"
	}
	if !shown {
		for name := range loadedProfiles(t) {
			if strings.HasPrefix(name, "crash") {
				return fmt.Sprintf("profile %s is left loaded", name)
			}
		}
	}
	return ""
}

// bare lists the tasks that run the agent and are not confined by an enforced
// profile. What systemd has not executed yet is none of them.
func bare() (tids []string) {
	text, _ := os.ReadFile("/sys/fs/cgroup/system.slice/" + crashUnit + "/cgroup.threads")
	for _, tid := range strings.Fields(string(text)) {
		program, err1 := os.Readlink("/proc/" + tid + "/exe")
		label, err2 := os.ReadFile("/proc/" + tid + "/attr/apparmor/current")
		if err1 == nil && err2 == nil && program == "/usr/local/bin/vm-agent" && !strings.HasSuffix(string(label), " (enforce)\n") {
			tids = append(tids, tid)
		}
	}
	return tids
}

// lies watches the unit until stop is called, which gives what was wrong: that
// aaunitctl called it confined while a task was not, and where keeps is set
// also that one was not. The label of a task changes an instant after its
// program: one that is seen is seen more than once.
func lies(keeps bool) (stop func() []string) {
	done := make(chan struct{})
	var all []string
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, fmt.Sprintf(format, args...))
	}
	each := func(pause time.Duration, look func()) func() {
		return func() {
			for {
				select {
				case <-done:
					return
				case <-time.After(pause):
					look()
				}
			}
		}
	}
	var wg sync.WaitGroup
	if keeps {
		wg.Go(each(10*time.Millisecond, func() {
			seen := bare()
			for range 5 {
				if len(seen) == 0 {
					return
				}
				time.Sleep(50 * time.Millisecond)
				now := bare()
				seen = slices.DeleteFunc(seen, func(tid string) bool { return !slices.Contains(now, tid) })
			}
			if len(seen) > 0 {
				say("the tasks %v run without the profile", seen)
			}
		}))
	}
	wg.Go(each(time.Second, func() {
		before := bare()
		text, _ := exec.Command("aaunitctl", "status", crashUnit, "--json").Output()
		after := bare()
		var rep attach.Report
		if json.Unmarshal(text, &rep) != nil || len(rep.Units) != 1 || rep.Units[0].Verdict == nil || rep.Units[0].Verdict.Answer != attach.Confined {
			return
		}
		if slices.ContainsFunc(before, func(tid string) bool { return slices.Contains(after, tid) }) {
			say("tasks %v are not confined, and aaunitctl says\n%s", after, text)
		}
	}))
	return func() []string {
		close(done)
		wg.Wait()
		return all
	}
}

// scenario is something that aaunitd is asked to do.
type scenario struct {
	former string // the profile of the unit before; "" for none
	keeps  bool   // the unit must be confined at every instant
	ask    func(c *crashes)
}

var scenarios = map[string]scenario{
	"attach": {"", false, func(c *crashes) { ctl(c.t, "attach", crashUnit, "--profile", "crash") }},
	"detach": {"crash", false, func(c *crashes) { ctl(c.t, "detach", crashUnit) }},
	"text": {"crash", true, func(c *crashes) {
		c.text++
		c.ProfileFile("crash", c.profile())
		waitFor(c.t, "the new text", func() (bool, string) { return !exists(crashOrder) || c.reads(), "" })
	}},
	// Somebody else loads another text, and removes the drop-in.
	"heal": {"crash", true, func(c *crashes) {
		c.loadText(profileText("crash", "/etc/shells r,"))
		waitFor(c.t, "the policy to be put back", func() (bool, string) { return !exists(crashOrder) || c.reads(), "" })
	}},
	"heal-drop-in": {"crash", true, func(c *crashes) {
		if err := os.Remove(crashDropIn); err != nil {
			c.t.Fatal(err)
		}
		waitFor(c.t, "the drop-in to be put back", func() (bool, string) {
			return !exists(crashOrder) || exists(crashDropIn) && show(c.t, crashUnit, "NeedDaemonReload") == "no", ""
		})
	}},
	"other":      {"crash", true, func(c *crashes) { ctl(c.t, "attach", crashUnit, "--profile", "crash-other") }},
	"undo":       {"", false, func(c *crashes) { ctl(c.t, "attach", crashUnit, "--profile", "crash-bad") }},
	"undo-other": {"crash", true, func(c *crashes) { ctl(c.t, "attach", crashUnit, "--profile", "crash-bad") }},
}

// crash begins a scenario, has aaunitd killed on the way, and waits until the
// next one is at rest. It says whether it came so far as to be killed.
func (c *crashes) crash(name string, n int, at string) (killed bool) {
	t, s := c.t, scenarios[name]
	t.Helper()
	if s.former == "" {
		c.detached()
	} else {
		c.attached(s.former)
	}
	os.Remove(crashLog)
	if err := os.WriteFile(crashOrder, fmt.Appendf(nil, "kill %d %s", n, at), 0o600); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	stop := lies(s.keeps)
	s.ask(c)
	killed = os.IsNotExist(os.Remove(crashOrder))
	c.waitAtRest(declared(t), s.former)
	found := stop()
	steps := read(t, crashLog)
	where := "to the end"
	if _, line, ok := strings.Cut(steps, "\nkill "); killed && ok {
		line, _, _ = strings.Cut(line, "\n")
		where = "killed " + line
	}
	for _, lie := range found {
		t.Errorf("%s, %s: %s", name, where, lie)
	}
	if t.Failed() {
		t.Fatalf("what was done:\n%s", steps)
	}
	t.Logf("%s, %s: at rest after %v", name, where, time.Since(begun).Round(time.Second))
	return killed
}

// TestKilledAtAnyStep kills aaunitd between two steps of what it was asked for.
// systemd starts it again: it must bring the unit to what is declared then, or
// to where it was. A unit that was confined must be so at every instant, and
// none that is not may be called so.
//
// Here each kind of step comes once. With AAUNIT_CRASH=all (make vm-crash) it is
// every single one.
func TestKilledAtAnyStep(t *testing.T) {
	c := newCrashes(t)
	if os.Getenv("AAUNIT_CRASH") != "all" {
		// In such an order that what one ends with is what the next begins with.
		for _, k := range [][2]string{
			{"attach", "after WriteAttachment"}, {"detach", "after RemoveAttachment"},
			{"attach", "after Load"}, {"detach", "after RemoveDropIn"},
			{"attach", "after WriteDropIn"}, {"detach", "after Unload"},
			{"attach", "after Reload"}, {"detach", "after DeleteRecord"},
			{"attach", "after TryRestart"}, {"text", "after Load"},
			{"heal", "before Load"}, {"heal", "after Load"}, {"heal-drop-in", "after WriteDropIn"}, {"heal-drop-in", "before Reload"},
			{"undo-other", "before TryRestart"}, {"other", "after SaveRecord"},
			{"undo", "after Stop"}, {"undo", "after Start"}, {"undo", "after Restore"}, {"undo", "after WithdrawAttachment"},
		} {
			if !c.crash(k[0], 1, k[1]) {
				t.Errorf("%s never came to %s", k[0], k[1])
			}
		}
		return
	}
	for _, together := range [][]string{{"attach", "detach"}, {"text"}, {"heal"}, {"heal-drop-in"}, {"other"}, {"undo"}, {"undo-other"}} {
		for n := 1; len(together) > 0; n++ {
			together = slices.DeleteFunc(together, func(name string) bool {
				killed := c.crash(name, n, "")
				if !killed && n < 5 {
					t.Errorf("%s has no more than %d steps", name, n-1)
				}
				return !killed
			})
		}
	}
}
