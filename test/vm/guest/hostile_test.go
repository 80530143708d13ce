//go:build vm && long

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"

	"github.com/aaunit/aaunit/internal/attach"
)

// parserFile is where Debian has the parser.
const parserFile = "/usr/sbin/apparmor_parser"

// parser stands in the parser's place and keeps count. What it does before it
// runs the real one is the test's.
type parser struct {
	t    testing.TB
	runs string
}

// watchParser has script run before every run of the parser, in the daemon's
// sandbox as a user that nobody is: /run/aaunit is all that both can reach.
func watchParser(t testing.TB, script string) parser {
	t.Helper()
	p := parser{t: t, runs: "/run/aaunit/test-runs"}
	if err := os.WriteFile(p.runs, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	os.Chmod(p.runs, 0o666)
	if err := os.Rename(parserFile, parserFile+".real"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.Rename(parserFile+".real", parserFile)
		os.Remove(p.runs)
	})
	text := "#!/bin/sh\ncase \"$*\" in *--stdout*) echo compile;; *) echo other;; esac >>" + p.runs + "\n" + script + "\nexec " + parserFile + ".real \"$@\"\n"
	if err := os.WriteFile(parserFile, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// count says how often the parser was run, to compile and in all.
func (p parser) count() (compiled, all int) {
	p.t.Helper()
	text := read(p.t, p.runs) + "\n"
	compiled, other := strings.Count(text, "compile\n"), strings.Count(text, "other\n")
	return compiled, compiled + other
}

// inDaemon runs a command among the daemon's mounts, which are not the host's.
func inDaemon(t testing.TB, args ...string) {
	t.Helper()
	run(t, "nsenter", append([]string{"--mount", "--target", show(t, "aaunitd.service", "MainPID"), "--"}, args...)...)
}

// daemonSaid reads the daemon's journal since it was last started.
func daemonSaid(t testing.TB) string {
	t.Helper()
	return journalctl(t, "-o", "cat", "_SYSTEMD_INVOCATION_ID="+show(t, "aaunitd.service", "InvocationID"))
}

// long is a name of n bytes, with its ending.
func long(c string, n int, ending string) string { return strings.Repeat(c, n-len(ending)) + ending }

// TestLongNames: what fits works, what does not is refused, and nothing is cut.
func TestLongNames(t *testing.T) {
	a := newAgents(t)
	unit := func(name string) {
		a.port++
		a.Unit(name, fmt.Sprintf("[Service]\nExecStart=/usr/local/bin/vm-agent -listen 127.0.0.1:%d -helper\n", a.port))
	}
	// systemd makes a directory of the unit's name for PrivateTmp=, with 56 bytes
	// more in its name.
	fits, noTmp, tooLong, short := long("n", 199, ".service"), long("m", 253, ".service"), long("t", 255, ".service"), "n-short.service"
	for _, u := range []string{fits, noTmp, tooLong, short} {
		unit(u)
	}
	profile := func(file string, n int) string {
		name := long("p", n, "")
		a.ProfileFile(file, profileText(name))
		return name
	}
	good := profile("n-good", 240)
	profile("n-kernel", 300)
	profile("n-4096", 4096)
	a.Reload()
	run(t, "systemctl", "start", fits, noTmp, tooLong, short)
	t.Cleanup(func() { try0("aaunitctl", "detach", fits, short) })

	before := map[string]string{}
	for _, u := range []string{short, tooLong} {
		before[u] = show(t, u, "InvocationID,ActiveState,AppArmorProfile")
	}

	if r := ctl(t, "attach", fits, "--profile", "n-good"); r.exit != 0 {
		t.Errorf("a unit of %d bytes: exit %d\n%s%s", len(fits), r.exit, r.stdout, r.stderr)
	}
	if lie := truth(t, fits, good); lie != "" {
		t.Error(lie)
	}
	if out, r := outcomes(t, "attach", noTmp, "--profile", "n-good"); r.exit != 1 || !out[noTmp].Undone || unconfined(t, noTmp) == 0 {
		t.Errorf("a unit for which there can be no private /tmp: exit %d\n%s", r.exit, r.stdout)
	}
	for _, c := range []struct {
		unit, profile string
		code          attach.Code
		says          string
	}{
		{tooLong, "n-good", attach.DropInUnreadable, "give the unit a name of at most 253"},
		{short, "n-kernel", attach.ProfileNotStaged, "give the profile a shorter name"},
		{short, "n-4096", attach.ProfileNameBad, "it is longer than 4000 bytes"},
		{short, "/" + long("d", 4095, ""), attach.ProfileNotFound, "cannot read profile file /d"},
		{long("u", 256, ".service"), "n-good", attach.UnitNotFound, "it is longer than 255 characters"},
	} {
		out, r := outcomes(t, "attach", c.unit, "--profile", c.profile)
		if r.exit == 0 || !slices.ContainsFunc(out[c.unit].Reasons, func(f attach.Reason) bool {
			return f.Code == c.code && strings.Contains(f.Detail, c.says)
		}) {
			t.Errorf("%.20s of %d bytes, %.20s of %d: want %s saying %q, exit %d\n%s", c.unit, len(c.unit), c.profile, len(c.profile), c.code, c.says, r.exit, r.stdout)
		}
	}
	if r := ctl(t, "attach", short, "--profile", long("q", 4097, "")); r.exit != 2 || !strings.Contains(r.stdout+r.stderr, "is longer than 4096 bytes") {
		t.Errorf("exit %d\n%.500s%.500s", r.exit, r.stdout, r.stderr)
	}
	for u, state := range before {
		if now := show(t, u, "InvocationID,ActiveState,AppArmorProfile"); now != state {
			t.Errorf("the unit of %d bytes was\n%s\nand is\n%s", len(u), state, now)
		}
	}
	// The record outlives the daemon, under whatever name.
	run(t, "systemctl", "restart", "aaunitd.service")
	if r := ctl(t, "verify", fits); r.exit != 0 {
		t.Errorf("after a restart of the daemon: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "detach", fits); r.exit != 0 || unconfined(t, fits) == 0 {
		t.Errorf("detach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, glob := range []string{attachmentDir + "/sha256-*", attachmentDir + "/.*", "/var/lib/aaunit/units/*", "/var/lib/aaunit/units/.*"} {
		if left, _ := filepath.Glob(glob); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

// TestTextsOfOthers: what anybody but root can write decides about nothing, and
// what was confined stays so when its text comes into such hands, changes under
// the parser, or goes.
func TestTextsOfOthers(t *testing.T) {
	a := newAgents(t)
	includes := func(path string) string {
		return "include <" + path + ">"
	}
	inc := func(path, text string, mode os.FileMode) string {
		path = filepath.Join("/etc/apparmor.d", path)
		a.File(path, text, mode)
		os.Chmod(path, mode)
		return path
	}
	const rule = "/etc/os-release r,\n"
	names := []string{"o-owner", "o-mode", "o-dir", "o-incowner", "o-link", "o-inclink"}
	os.Chown(a.ProfileFile("o-owner", profileText("o-owner")), 65534, 65534)
	inc("o-inc/mode", rule, 0o666)
	a.ProfileFile("o-mode", profileText("o-mode", includes("o-inc/mode")))
	inc("o-dir.d/x", rule, 0o644)
	os.Chmod("/etc/apparmor.d/o-dir.d", 0o777)
	a.ProfileFile("o-dir", profileText("o-dir", includes("o-dir.d")))
	os.Chown(inc("o-inc/owner", rule, 0o644), 65534, 65534)
	a.ProfileFile("o-incowner", profileText("o-incowner", includes("o-inc/owner")))
	a.File("/etc/apparmor-elsewhere/o-link", profileText("o-link"), 0o644)
	a.File("/tmp/o-rules", rule, 0o644)
	link := func(to, at string) {
		if err := os.Symlink(to, at); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(at) })
	}
	link("/etc/apparmor-elsewhere/o-link", "/etc/apparmor.d/o-link")
	link("/tmp/o-rules", "/etc/apparmor.d/o-inc/link")
	t.Cleanup(func() { os.RemoveAll("/etc/apparmor.d/o-inc"); os.RemoveAll("/etc/apparmor.d/o-dir.d") })
	a.ProfileFile("o-inclink", profileText("o-inclink", includes("o-inc/link")))
	shared := inc("o-inc/shared", rule, 0o644)
	a.ProfileFile("o-live", profileText("o-live", includes("o-inc/shared")))
	for _, n := range append(names, "o-live") {
		a.Unit(n+".service", a.agentUnit())
	}
	livePort := a.port
	a.Reload()
	run(t, "systemctl", append([]string{"start", "o-live"}, names...)...)

	out, r := outcomes(t, append([]string{"attach", "o-live"}, names...)...)
	for _, n := range names {
		where := "/etc/apparmor.d/o-"
		if o := out[n+".service"]; !slices.ContainsFunc(o.Reasons, func(f attach.Reason) bool {
			return f.Code == attach.ProfileUntrusted && strings.Contains(f.Detail, where) && f.Next != ""
		}) || unconfined(t, n+".service") == 0 {
			t.Errorf("%s: %+v", n, o.Reasons)
		}
	}
	if r.exit != 1 || truth(t, "o-live.service", "o-live") != "" {
		t.Fatalf("the good one among them: exit %d, %s\n%s", r.exit, truth(t, "o-live.service", "o-live"), r.stdout)
	}
	if out, r := outcomes(t, "plan", "o-owner", "--profile", "/tmp/o-rules"); r.exit != 1 || !slices.ContainsFunc(out["o-owner.service"].Reasons, func(f attach.Reason) bool {
		return strings.Contains(f.Detail, "/tmp is") || strings.Contains(f.Detail, "directory /tmp")
	}) {
		t.Errorf("a file in /tmp: exit %d\n%s", r.exit, r.stdout)
	}

	// An include of what is confined comes into other hands.
	notes := func(what string, want attach.Code, says string) {
		t.Helper()
		waitFor(t, what, func() (bool, string) {
			rep, r := report(t, "status", "o-live")
			if len(rep.Units) != 1 || rep.Units[0].Busy {
				return false, r.stdout
			}
			all := append(rep.Units[0].Notes, rep.Units[0].Refused...)
			said := slices.ContainsFunc(all, func(f attach.Reason) bool { return f.Code == want && strings.Contains(f.Detail, says) })
			bad := slices.ContainsFunc(all, func(f attach.Reason) bool {
				return f.Code == attach.ProfileUntrusted || f.Code == attach.ProfileBroken || f.Code == attach.ProfileNotCompiled
			})
			return want != "" && said || want == "" && !bad, r.stdout
		})
		if lie := truth(t, "o-live.service", "o-live"); lie != "" {
			t.Errorf("%s: %s", what, lie)
		}
	}
	os.Chmod(shared, 0o666)
	notes("an include that others can write", attach.ProfileUntrusted, shared)
	os.Chmod(shared, 0o644)
	notes("the include back in root's hands", "", "")

	// The text changes while the parser is at work on the one before.
	const hold = "/run/aaunit/test-hold"
	if err := os.WriteFile(hold, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(hold) })
	p := watchParser(t, "while [ -e "+hold+" ]; do sleep 0.2; done")
	begun := func(n int) {
		t.Helper()
		waitFor(t, "the parser to begin", func() (bool, string) {
			_, all := p.count()
			return all > n, fmt.Sprint(all)
		})
	}
	a.ProfileFile("o-live", profileText("o-live", includes("o-inc/shared"), "/etc/issue r,"))
	begun(0)
	a.ProfileFile("o-live", profileText("o-live", includes("o-inc/shared"), "/etc/issue.net r,"))
	os.Remove(hold)
	waitFor(t, "the last text to be in force", func() (bool, string) {
		last, old := ask(t, port(livePort), "read /etc/issue.net"), ask(t, port(livePort), "read /etc/issue")
		return strings.HasPrefix(last, "ok") && strings.HasPrefix(old, "error"), last + "; " + old
	})
	notes("the text that changed under the parser", "", "")
	// The include goes while the parser is at work.
	_, before := p.count()
	if err := os.WriteFile(hold, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	a.ProfileFile("o-live", profileText("o-live", includes("o-inc/shared"), "/etc/issue r,"))
	begun(before)
	os.Remove(shared)
	os.Remove(hold)
	notes("the include that is gone", attach.ProfileBroken, "o-inc/shared")
	if r := ctl(t, "verify", "o-live"); r.exit != 0 {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	os.Remove("/etc/apparmor.d/o-live")
	waitFor(t, "the profile that is gone", func() (bool, string) {
		rep, r := report(t, "status", "o-live")
		return len(rep.Units) == 1 && slices.Contains(codesOf(append(rep.Units[0].Notes, rep.Units[0].Refused...)), attach.ProfileNotFound), r.stdout
	})
	if lie := truth(t, "o-live.service", "o-live"); lie != "" {
		t.Error(lie)
	}
}

// TestAProfileThatExplodes brings the parser to its bounds. It costs its own unit
// the profile, once, and nothing else.
func TestAProfileThatExplodes(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"x-old", "x-new", "x-later"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	a.Unit("x-boom.service", a.agentUnit())
	var rules []string
	for i := range 10 {
		rules = append(rules, fmt.Sprintf("/**%d{a%d,b%d}**{c,d}*{e,f}**{g,h}*x%d rw,", i, i, i, i))
	}
	a.Reload()
	run(t, "systemctl", "start", "x-old", "x-new", "x-later", "x-boom")
	if r := ctl(t, "attach", "x-old"); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	p := watchParser(t, "")
	a.ProfileFile("x-boom", profileText("x-boom", rules...))
	a.attachmentFile("x-boom.conf", "[Attachment]\nUnit=x-boom.service\nProfile=x-boom\n")
	waitFor(t, "the parser to be at it", func() (bool, string) { n, _ := p.count(); return n > 0, "" })
	a.attachmentFile("x-new.conf", "[Attachment]\nUnit=x-new.service\nProfile=x-new\nSettleSec=1\n")
	// Meanwhile what is attached is looked at when it starts.
	run(t, "systemctl", "restart", "x-old.service")
	if v := waitVerdict(t, "x-old.service"); v.Answer != attach.Confined {
		t.Errorf("%+v", v)
	}
	rep, _ := report(t, "status", "x-boom")
	still := len(rep.Units) == 0 || len(rep.Units[0].Refused) == 0
	t.Logf("the verdict on another unit came while the parser was at it: %v", still)
	waitFor(t, "the refusal", func() (bool, string) {
		rep, r := report(t, "status", "x-boom")
		return len(rep.Units) == 1 && slices.ContainsFunc(rep.Units[0].Refused, func(f attach.Reason) bool {
			return f.Code == attach.ProfileNotCompiled && strings.HasPrefix(f.Detail, "cannot compile /etc/apparmor.d/x-boom") && f.Next != ""
		}), r.stdout
	})
	waitConfined(t, "x-new.service", "x-new")
	if unconfined(t, "x-boom.service") == 0 {
		t.Error("the unit was touched")
	}
	// What others do later costs no run on it.
	waitIdle(t)
	before, _ := p.count()
	if r := ctl(t, "attach", "x-later"); r.exit != 0 || truth(t, "x-later.service", "x-later") != "" {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	waitIdle(t)
	if after, _ := p.count(); after > before+1 {
		t.Errorf("one new profile cost %d runs of the parser", after-before)
	}
	// It can be corrected.
	a.ProfileFile("x-boom", profileText("x-boom"))
	waitConfined(t, "x-boom.service", "x-boom")
}

// TestTasksThatMakeItHard looks at units whose tasks sit in threaded control
// groups, fork as fast as they can, or have their profile stacked.
func TestTasksThatMakeItHard(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("t-threads", profileText("t-threads"))
	a.Unit("t-threads.service", a.agentUnit("Delegate=yes"))
	a.ProfileFile("t-storm", profileText("t-storm", "/usr/bin/{dash,true} mrix,", "/dev/tty rw,"))
	a.Unit("t-storm.service", "[Service]\nTasksMax=64\nKillMode=control-group\nExecStart=/bin/sh -c 'f() { while :; do /bin/true & /bin/true; done; }; f & f & f & f & f & f & f & f & wait'\n")
	a.ProfileFile("t-user", profileText("t-user"))
	a.Unit("t-user.service", a.agentUnit("User=nobody"))
	a.Reload()
	run(t, "systemctl", "start", "t-threads", "t-user")

	// With the setting of hardened fleets the unit's own profile is stacked with
	// "unconfined", since systemd has given up root before it asks for it.
	const sysctl = "/proc/sys/kernel/apparmor_restrict_unprivileged_unconfined"
	_, err := os.Stat(sysctl)
	has := err == nil
	if suite := os.Getenv("AAUNIT_VM_SUITE"); has != (suite == "trixie") {
		t.Errorf("the kernel of %s has %s: %v", suite, sysctl, has)
	}
	want := "t-user (enforce)"
	if has {
		setFile(t, sysctl, "1")
		want = "t-user//&unconfined (enforce)"
	}
	out, r := outcomes(t, "attach", "t-threads", "t-user")
	if r.exit != 0 {
		t.Fatalf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	v := out["t-user.service"].Verdict
	if stacked := slices.Contains(codesOf(v.Reasons), attach.TaskStacked); v.Answer != attach.Confined || stacked != has {
		t.Errorf("User=: %+v", v)
	}
	for _, task := range unitTasks(t, "t-user.service") {
		if task.Label != want {
			t.Errorf("User=: task %d is %q, want %q", task.TID, task.Label, want)
		}
	}

	// A thread in a threaded group: cgroup.procs cannot be read there.
	group := filepath.Join("/sys/fs/cgroup", show(t, "t-threads.service", "ControlGroup"))
	main := show(t, "t-threads.service", "MainPID")
	sub := filepath.Join(group, "threads")
	if err := os.Mkdir(sub, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sub+"/cgroup.type", []byte("threaded"), 0); err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir("/proc/" + main + "/task")
	if err != nil || len(threads) < 2 {
		t.Fatal(threads, err)
	}
	if err := os.WriteFile(sub+"/cgroup.threads", []byte(threads[len(threads)-1].Name()), 0); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(sub + "/cgroup.procs"); err == nil {
		t.Errorf("cgroup.procs of a threaded group reads %q: this shows nothing", text)
	}
	rep, r := report(t, "verify", "t-threads")
	if v := rep.Units[0].Verdict; r.exit != 0 || v.Processes != 2 || v.Tasks < len(threads) {
		t.Errorf("threaded: exit %d, %+v\n%s", r.exit, v, r.stdout)
	}

	// A storm of forks: an answer comes, and it is not a wrong one.
	run(t, "systemctl", "start", "t-storm")
	if r := ctl(t, "attach", "t-storm"); r.exit != 0 && r.exit != 5 {
		t.Errorf("the storm: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	answers := map[int]int{}
	most := 0
	for range 8 {
		rep, r := report(t, "verify", "t-storm")
		answers[r.exit]++
		if len(rep.Units) == 1 && rep.Units[0].Verdict != nil {
			most = max(most, rep.Units[0].Verdict.Tasks)
		}
		if r.exit != 0 && r.exit != 5 {
			t.Errorf("the storm: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
		}
	}
	t.Logf("exit statuses of verify in the storm: %v; at most %d tasks", answers, most)
	for _, task := range tasksNow(t, "t-storm.service") {
		if task.Label != "t-storm (enforce)" {
			t.Errorf("%+v", task)
		}
	}
	run(t, "systemctl", "kill", "--signal=KILL", "t-storm.service")
}

// TestNowhereToWrite takes away, one after the other, the places that the daemon
// writes to: read-only, and full. Nothing is half-written or lost, what runs goes
// on, and what to do is said.
func TestNowhereToWrite(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"s-old", "s-new"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	a.Reload()
	run(t, "systemctl", "start", "s-old", "s-new")
	if r := ctl(t, "attach", "s-old"); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	before, started := show(t, "s-new.service", "InvocationID"), show(t, "s-old.service", "InvocationID")

	const units, records = "/etc/systemd/system", "/var/lib/aaunit"
	// Full is a small file system over the place, with what was there but for the
	// evidence, which would take up the room of the records.
	full := func(dir string) (taken func()) {
		inDaemon(t, "sh", "-c", "mkdir -p /run/aaunit/was && cp -a "+dir+"/. /run/aaunit/was/ && rm -rf /run/aaunit/was/evidence && mount -t tmpfs -o size=64k,mode=755 full "+dir+
			" && cp -a /run/aaunit/was/. "+dir+"/ 2>/dev/null; rm -rf /run/aaunit/was; cat /dev/zero >"+dir+"/.filler 2>/dev/null; df "+dir+" | grep -q 100%")
		return func() { inDaemon(t, "umount", "--lazy", dir) }
	}
	readOnly := func(dir string) (taken func()) {
		inDaemon(t, "mount", "--bind", dir, dir)
		inDaemon(t, "mount", "-o", "remount,bind,ro", dir)
		return func() { inDaemon(t, "umount", "--lazy", dir) }
	}
	const noRoom, noWrite = "no space left on device", "read-only file system"
	for _, c := range []struct {
		name, dir string
		take      func(string) func()
		code      attach.Code
		says, way string
	}{
		{"attachments read-only", "/etc/aaunit/attachments.d", readOnly, attach.AttachmentBad, noWrite, "findmnt"},
		{"units read-only", units, readOnly, attach.DropInUnreadable, noWrite, "findmnt"},
		{"records read-only", records, readOnly, attach.PolicyNotKept, noWrite, "findmnt"},
		{"attachments full", "/etc/aaunit/attachments.d", full, attach.AttachmentBad, noRoom, "df"},
		{"units full", units, full, attach.DropInUnreadable, noRoom, "df"},
		{"records full", records, full, attach.PolicyNotKept, noRoom, "df"},
	} {
		give := c.take(c.dir)
		out, r := outcomes(t, "attach", "s-new")
		o := out["s-new.service"]
		if r.exit != 1 || !slices.ContainsFunc(o.Reasons, func(f attach.Reason) bool {
			return f.Code == c.code && strings.HasPrefix(f.Detail, "cannot ") && strings.Contains(f.Detail, c.dir) && strings.Contains(f.Detail, c.says) && strings.Contains(f.Next, c.way)
		}) {
			t.Errorf("%s: exit %d, %+v", c.name, r.exit, o.Reasons)
		}
		// What is attached goes on, and its starts are judged.
		run(t, "systemctl", "restart", "s-old.service")
		if v := waitVerdict(t, "s-old.service"); v.Answer != attach.Confined || truth(t, "s-old.service", "s-old") != "" {
			t.Errorf("%s: %+v", c.name, v)
		}
		// Whatever is there is whole.
		inDaemon(t, "sh", "-c", "! find "+c.dir+" -name '.*.tmp' | grep .")
		inDaemon(t, "sh", "-c", "! find "+c.dir+" -name '*.service.json' -size 0 | grep .")
		give()
		for _, left := range []string{units + "/s-new.service.d/90-aaunit.conf", attachmentDir + "/s-new.service.conf"} {
			if exists(left) {
				t.Errorf("%s: %s is left", c.name, left)
			}
		}
		if id := show(t, "s-new.service", "InvocationID"); id != before || unconfined(t, "s-new.service") == 0 {
			t.Errorf("%s: the unit was touched", c.name)
		}
	}
	if id := show(t, "s-old.service", "InvocationID"); id == started {
		t.Error("the attached unit was not restarted: this shows nothing")
	}

	// The copies for the parser.
	inDaemon(t, "mount", "-t", "tmpfs", "-o", "size=64k,mode=755", "full", "/run/aaunit")
	inDaemon(t, "sh", "-c", "cat /dev/zero >/run/aaunit/filler 2>/dev/null; true")
	a.ProfileFile("s-new", profileText("s-new", "/etc/issue r,"))
	out, r := outcomes(t, "attach", "s-new")
	if !slices.ContainsFunc(out["s-new.service"].Reasons, func(f attach.Reason) bool {
		return f.Code == attach.ProfileNotCompiled && strings.Contains(f.Detail, noRoom) && strings.Contains(f.Next, "df")
	}) {
		t.Errorf("no room for the parser: exit %d\n%s", r.exit, r.stdout)
	}
	inDaemon(t, "umount", "--lazy", "/run/aaunit")

	// With room again all is well, and nothing of the old is lost.
	if r := ctl(t, "attach", "s-new"); r.exit != 0 || truth(t, "s-new.service", "s-new") != "" {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	run(t, "systemctl", "restart", "aaunitd.service")
	if r := ctl(t, "verify", "s-old", "s-new"); r.exit != 0 {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
}

// TestNoWatches: without inotify the daemon looks for changes by itself.
func TestNoWatches(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"i-one", "i-two"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	onePort := a.port - 1
	a.Reload()
	run(t, "systemctl", "start", "i-one", "i-two")
	for _, limit := range []string{"max_user_instances", "max_user_watches"} {
		file := "/proc/sys/fs/inotify/" + limit
		old := read(t, file)
		setFile(t, file, "1")
		run(t, "systemctl", "restart", "aaunitd.service")
		a.attachmentFile("i-one.conf", "[Attachment]\nUnit=i-one.service\nProfile=i-one\nSettleSec=1\n")
		waitConfined(t, "i-one.service", "i-one")
		a.ProfileFile("i-one", profileText("i-one", "/etc/"+limit+" r,", "/etc/issue r,"))
		waitFor(t, "the changed profile", func() (bool, string) {
			got := ask(t, port(onePort), "read /etc/issue")
			return strings.HasPrefix(got, "ok"), got
		})
		a.ProfileFile("i-one", profileText("i-one"))
		os.Remove(attachmentDir + "/i-one.conf")
		waitFor(t, "the detach", func() (bool, string) { return unconfined(t, "i-one.service") > 0, "" })
		said := daemonSaid(t)
		for _, what := range []string{"cannot watch all profile files", "cannot watch all attachment files"} {
			if n := strings.Count(said, what); n != 1 {
				t.Errorf("%s: %q is said %d times:\n%s", limit, what, n, said)
			}
		}
		if err := os.WriteFile(file, []byte(old), 0); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the watch to be had again", func() (bool, string) {
			said := daemonSaid(t)
			return strings.Contains(said, "all profile files are watched again"), said
		})
	}
}

// TestNoConnections: another program has taken all of root's connections to the
// bus. What runs goes on, it is said, and what is asked for is done when there
// are some again.
func TestNoConnections(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"c-old", "c-new"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	a.Reload()
	run(t, "systemctl", "start", "c-old", "c-new")
	if r := ctl(t, "attach", "c-old"); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	var held []*dbus.Conn
	let := func() {
		for _, c := range held {
			c.Close()
		}
		held = nil
	}
	defer let()
	var refused error
	for len(held) < 5000 && refused == nil {
		var c *dbus.Conn
		if c, refused = dbus.ConnectSystemBus(); refused == nil {
			held = append(held, c)
		}
	}
	if refused == nil {
		t.Fatal("the bus knows no limit")
	}
	t.Logf("after %d connections: %v", len(held), refused)
	if r := ctl(t, "status", "c-old"); r.exit != 0 {
		t.Errorf("at the daemon's socket, which takes none: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	r := onBus(t, "status")
	if r.exit != 1 || !strings.Contains(r.stdout+r.stderr, "cannot ") || !strings.Contains(r.stdout+r.stderr, "maximum number") && !strings.Contains(r.stdout+r.stderr, "LimitsExceeded") {
		t.Errorf("aaunitctl without a connection: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	// A restart of a unit takes a connection of its own.
	a.attachmentFile("c-new.conf", "[Attachment]\nUnit=c-new.service\nProfile=c-new\nSettleSec=1\n")
	waitFor(t, "the daemon to say so", func() (bool, string) {
		said := daemonSaid(t)
		return strings.Contains(said, "c-new.service") && (strings.Contains(said, "maximum number") || strings.Contains(said, "LimitsExceeded")), said
	})
	for unit, profile := range map[string]string{"c-old.service": "c-old"} {
		if lie := truth(t, unit, profile); lie != "" {
			t.Error(lie)
		}
	}
	if len(tasksNow(t, "c-new.service")) == 0 {
		t.Error("the unit that could not be restarted is down")
	}
	let()
	if r := ctl(t, "attach", "c-new"); r.exit != 0 {
		t.Errorf("with connections again: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	waitConfined(t, "c-new.service", "c-new")
	run(t, "systemctl", "restart", "c-old.service")
	if v := waitVerdict(t, "c-old.service"); v.Answer != attach.Confined {
		t.Errorf("%+v", v)
	}
}
