//go:build vm

package guest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// explained runs aaunitctl explain, in words and in JSON.
func explained(t testing.TB, unit string) (attach.Explanation, result) {
	t.Helper()
	r := ctl(t, "explain", unit)
	doc := struct{ Units []attach.Explanation }{}
	if j := ctl(t, "explain", "--json", unit); json.Unmarshal([]byte(j.stdout), &doc) != nil || len(doc.Units) != 1 || j.exit != r.exit {
		t.Fatalf("explain --json %s: exit %d\n%s%s", unit, j.exit, j.stdout, j.stderr)
	}
	return doc.Units[0], r
}

// TestExplain: what is wrong, why, and the next command, over the ways in which
// units are and fail. On every suite.
func TestExplain(t *testing.T) {
	a := newAgents(t)
	waitNothingAttached(t)
	// What earlier tests have had denied, and lost, is forgotten.
	run(t, "systemctl", "restart", "aaunitd.service")
	const dir = "/srv/vm-explain"
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/secret", []byte("x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	sh := "/usr/bin/{da,}sh mrix,"
	a.ProfileFile("x-good", profileText("x-good"))
	a.ProfileFile("x-own", profileText("x-own", sh))
	a.ProfileFile("x-leaves", profileText("x-leaves", "/usr/bin/sleep Px -> x-other,"))
	a.Unit("x-good.service", a.agentUnit())
	good := port(a.port)
	// A real 231/APPARMOR, in the main command and in one before it, and programs that
	// end so by themselves.
	a.Unit("x-real.service", "[Service]\nExecStart=/bin/true\nAppArmorProfile=x-not-there\n")
	a.Unit("x-pre.service", "[Service]\nExecStartPre=/bin/true\nExecStart=/bin/true\nAppArmorProfile=x-not-there\n")
	a.Unit("x-self.service", "[Service]\nExecStart=/bin/sh -c 'exit 231'\n")
	a.Unit("x-own.service", "[Service]\nExecStart=/bin/sh -c 'exit 231'\n")
	a.Unit("x-new.service", a.agentUnit())
	a.ProfileFile("x-new", profileText("x-new"))
	a.Unit("x-bare.service", a.agentUnit())
	a.File("/usr/local/lib/systemd/system/x-masked.service", "[Service]\nExecStart=/bin/true\n", 0o644) // masks lie in /etc
	a.Own("x-masked.service")
	a.Unit("x-idle.service", a.agentUnit())
	a.ProfileFile("x-idle", profileText("x-idle"))
	a.Unit("x-dies.service", a.agentUnit())
	a.ProfileFile("x-dies", strings.ReplaceAll(profileText("x-dies"), "network inet stream,", ""))
	// One that nothing names is forgotten by systemd when it is skipped.
	wants := "/etc/systemd/system/multi-user.target.wants/x-cond.service"
	t.Cleanup(func() { os.Remove(wants) })
	if err := os.Symlink("/etc/systemd/system/x-cond.service", wants); err != nil {
		t.Fatal(err)
	}
	a.Unit("x-cond.service", "[Unit]\nConditionPathExists=/srv/vm-explain/none\n[Service]\nExecStart=/bin/sleep 3600\nAppArmorProfile=x-good\n")
	a.Reload()
	run(t, "systemctl", "start", "x-good", "x-new", "x-bare", "x-dies")
	for _, unit := range []string{"x-real", "x-pre", "x-self"} {
		try(t, "systemctl", "start", unit)
		waitFor(t, unit+" to fail", func() (bool, string) {
			state := show(t, unit+".service", "ActiveState")
			return state == "failed", state
		})
	}
	says := func(unit string, exit attach.Exit, next string, words ...string) attach.Explanation {
		t.Helper()
		e, r := explained(t, unit)
		flat := strings.Join(strings.Fields(r.stdout), " ")
		for _, w := range words {
			if !strings.Contains(flat, w) {
				t.Errorf("explain %s does not say %q:\n%s%s", unit, w, r.stdout, r.stderr)
			}
		}
		lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
		if last := strings.TrimSpace(lines[len(lines)-1]); last != "Next: "+next || e.Next.Line != next || r.exit != int(exit) {
			t.Errorf("explain %s: exit %d, want %d; it ends with %q, want %q\n%s", unit, r.exit, exit, last, next, r.stdout)
		}
		return e
	}

	// Not attached: how to begin, or what is in the way.
	says("x-new", attach.ExitNotConfined, "aaunitctl attach x-new.service", "x-new.service is not attached", "profile x-new (/etc/apparmor.d/x-new)")
	says("x-bare", attach.ExitNotConfined, "aaunitctl list --profiles", "x-bare.service is not attached", "[profile-not-found]")
	says("x-none", attach.ExitNoUnit, "systemctl list-unit-files --type=service", "systemd knows no service called x-none.service.")

	// The two kinds of 231.
	for unit, property := range map[string]string{"x-real": "ExecStart=", "x-pre": "ExecStartPre="} {
		e := says(unit, attach.ExitNotConfined, "aaunitctl list --profiles", "[start-without-profile]", "systemd could not switch to profile x-not-there for "+property+" of "+unit+".service", "so it executed nothing")
		if e.LastStart == nil || e.LastStart.Reached != attach.No || e.LastStart.Failed == nil || e.LastStart.Failed.Status != 231 {
			t.Errorf("%s: %+v", unit, e.LastStart)
		}
	}
	e := says("x-self", attach.ExitNotConfined, "aaunitctl list --profiles", "[start-failed]", "ended with status 231 by itself; it is not systemd's 231/APPARMOR")
	if e.LastStart == nil || e.LastStart.Reached != attach.Yes {
		t.Errorf("%+v", e.LastStart)
	}

	// Confined, and what that rests on; then with a denial.
	if r := ctl(t, "attach", "x-good"); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	next := "aaunitctl verify x-good.service"
	if e, _ := explained(t, "x-good"); len(e.Denials) > 0 { // of the agent's start
		next = "aaunitctl denials x-good.service"
	}
	says("x-good", attach.ExitOK, next, "x-good.service is confined", "That rests on:", "It does not cover:", "which are not the host's")
	if got := ask(t, good, "read "+dir+"/secret"); !strings.HasPrefix(got, "error") {
		t.Fatalf("the profile lets it read: %s", got)
	}
	waitDenial(t, "x-good.service", dir+"/secret")
	denial := "the kernel refused open for reading of " + dir + "/secret by program vm-agent"
	says("x-good", attach.ExitOK, "aaunitctl denials x-good.service", denial, "profile x-good needs the rule `", dir+"/secret r,` if that is right")
	nobody := try(t, "runuser", "-u", "nobody", "--", "aaunitctl", "explain", "x-good", "x-new")
	flat := strings.Join(strings.Fields(nobody.stdout), " ")
	if nobody.exit != 3 || strings.Contains(flat, dir) || !strings.Contains(flat, "what was denied to it: only root and members of group adm are told") ||
		!strings.Contains(flat, "x-good.service is confined") || !strings.HasSuffix(flat, "Next: sudo aaunitctl plan x-new.service") {
		t.Errorf("explain as nobody: exit %d\n%s%s", nobody.exit, nobody.stdout, nobody.stderr)
	}

	// Paused, and changed meanwhile.
	if r := ctl(t, "pause", "x-good"); r.exit != 0 {
		t.Fatalf("pause: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	run(t, "apparmor_parser", "--replace", "--skip-cache", "--Complain", "/etc/apparmor.d/x-good")
	if r := ctl(t, "verify", "x-good"); r.exit != 3 {
		t.Errorf("verify: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	says("x-good", attach.ExitNotConfined, "aaunitctl resume x-good.service", "x-good.service is not confined", "it is paused", "by root")
	if r := ctl(t, "resume", "x-good"); r.exit != 0 {
		t.Errorf("resume: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	waitConfined(t, "x-good.service", "x-good")

	// A failed attach, by what was denied.
	if r := ctl(t, "attach", "x-dies", "--settle", "2s"); r.exit != 1 {
		t.Errorf("attach x-dies: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	// That was an attachment of the command's, and is withdrawn; one of a file is held.
	a.attachmentFile("x-dies.conf", "[Attachment]\nUnit=x-dies.service\nProfile=x-dies\nSettleSec=2\n")
	waitFor(t, "the attach of x-dies to be held", func() (bool, string) {
		rep, r := report(t, "status", "x-dies")
		return len(rep.Units) == 1 && rep.Units[0].Held != nil && !rep.Units[0].Busy, r.stdout
	})
	says("x-dies", attach.ExitNotConfined, "aaunitctl denials x-dies.service", "x-dies.service shall run under profile x-dies; the attach failed, was undone and is not tried again by itself.",
		"[held]", "the kernel refused create of a socket of inet stream by program vm-agent", "needs the rule `network inet stream,`")

	// Attached and ended with 231 under the profile; not running; masked.
	ctl(t, "attach", "x-own", "x-idle", "--settle", "0s")
	try(t, "systemctl", "start", "x-own")
	waitFor(t, "x-own to fail", func() (bool, string) {
		state := show(t, "x-own.service", "ActiveState")
		return state == "failed", state
	})
	waitFor(t, "explain to hear of it", func() (bool, string) {
		e, r := explained(t, "x-own")
		return e.LastStart != nil && e.LastStart.ActiveState == "failed", r.stdout
	})
	e = says("x-own", attach.ExitUnknown, "journalctl -b -u x-own.service", "x-own.service", "ended with status 231 by itself")
	if e.LastStart.Reached != attach.Yes {
		t.Errorf("%+v", e.LastStart)
	}
	run(t, "systemctl", "stop", "x-idle")
	waitFor(t, "x-idle to be seen down", func() (bool, string) {
		rep, r := report(t, "verify", "x-idle")
		return len(rep.Units) == 1 && rep.Units[0].Verdict != nil && rep.Units[0].Verdict.Tasks == 0, r.stdout
	})
	says("x-idle", attach.ExitUnknown, "systemctl start x-idle.service", "x-idle.service is not running", "[not-running]")
	if r := try(t, "systemctl", "start", "x-cond"); r.exit != 0 {
		t.Errorf("%+v", r)
	}
	says("x-cond", attach.ExitNotConfined, "aaunitctl attach x-cond.service", "[start-skipped]", "Its unit file names profile x-good by itself")
	run(t, "systemctl", "mask", "x-masked")
	t.Cleanup(func() { try0("systemctl", "unmask", "x-masked") })
	says("x-masked", attach.ExitNotConfined, "systemctl unmask x-masked.service", "[unit-masked]")
}

// TestCheckWithoutADaemon: an unprivileged user checks files of theirs, and units, and
// gets the answers that root gets from the daemon. Root asks what is loaded.
func TestCheckWithoutADaemon(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("y-unit", profileText("y-unit"))
	a.Unit("y-unit.service", a.agentUnit())
	a.Unit("y-plus.service", "[Service]\nExecStart=+/bin/sleep 3600\nAppArmorProfile=y-unit\n")
	a.Reload()
	run(t, "systemctl", "start", "y-unit")
	run(t, "useradd", "--system", "--create-home", "--home-dir", "/srv/vm-check", "vm-check")
	t.Cleanup(func() {
		try0("userdel", "vm-check")
		os.RemoveAll("/srv/vm-check")
	})
	files := map[string]string{
		"clean":  strings.ReplaceAll(profileText("y-clean"), "owner /tmp/** rw,", ""),
		"writes": profileText("y-writes", "/etc/cron.d/* w,"),
		"broken": profileText("y-broken", "socket (tcp) options=(setsockopt),", "/etc/cron.d/* w,"),
	}
	for name, text := range files {
		path := filepath.Join("/srv/vm-check", name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		run(t, "chown", "vm-check", path)
	}
	as := func(args ...string) result {
		t.Helper()
		return try(t, "runuser", append([]string{"-u", "vm-check", "--", "aaunitctl"}, args...)...)
	}
	for _, c := range []struct {
		args []string
		exit attach.Exit
		says []string
	}{
		{[]string{"check", "/srv/vm-check/clean"}, 0, []string{"not asked: aaunitd reads files outside /etc/apparmor.d for root only", "no way around the profile was found"}},
		{[]string{"check", "/srv/vm-check/writes"}, 3, []string{"[policy-may-ask-others]", "/etc/cron.d/* w,"}},
		{[]string{"check", "/srv/vm-check/broken"}, 3, []string{"it knows no rules for single socket options", "[profile-checked-in-part]", "[policy-may-ask-others]"}},
		{[]string{"check", "y-unit"}, 0, []string{"profile y-unit", "not asked: aaunitd may only be asked by root, and whom polkit lets"}},
		{[]string{"check", "y-plus"}, 3, []string{"[exec-privileged]"}},
		{[]string{"check", "--offline", "y-unit"}, 0, []string{"not asked: neither aaunitd nor the kernel was asked"}},
		{[]string{"query", "/srv/vm-check/writes", "write /etc/**"}, 3, []string{"/etc/cron.d/a"}},
		{[]string{"query", "y-unit", "write /etc/**"}, 0, []string{"may write nothing that matches /etc/**"}},
	} {
		r := as(c.args...)
		flat := strings.Join(strings.Fields(r.stdout), " ")
		for _, w := range c.says {
			if !strings.Contains(flat, w) {
				t.Errorf("aaunitctl %s does not say %q:\n%s%s", strings.Join(c.args, " "), w, r.stdout, r.stderr)
			}
		}
		if r.exit != int(c.exit) {
			t.Errorf("aaunitctl %s: exit %d, want %d\n%s%s", strings.Join(c.args, " "), r.exit, c.exit, r.stdout, r.stderr)
		}
	}
	// The daemon's answer on the same text has the same findings, and the kernel's word.
	mine, _ := outcomesAs(t, as, "check", "/srv/vm-check/writes")
	run(t, "chown", "-R", "root:root", "/srv/vm-check")
	theirs, r := outcomes(t, "check", "/srv/vm-check/writes")
	m, d := mine["/srv/vm-check/writes"], theirs["/srv/vm-check/writes"]
	if len(m.Findings) == 0 || len(m.Findings) != len(d.Findings) || m.Findings[0] != d.Findings[0] {
		t.Errorf("a user finds %+v, the daemon %+v\n%s", m.Findings, d.Findings, r.stdout)
	}
	if r := ctl(t, "check", "/srv/vm-check/clean"); !strings.Contains(r.stdout, "all answers agree") {
		t.Errorf("the kernel's word is not told: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// What is loaded is not what the file says any more.
	if r := ctl(t, "attach", "y-unit"); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "pause", "y-unit"); r.exit != 0 {
		t.Fatalf("pause: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	t.Cleanup(func() { try0("aaunitctl", "resume", "y-unit") }) // a paused unit stays attached
	other := filepath.Join("/srv/vm-check", "other")
	if err := os.WriteFile(other, []byte(profileText("y-unit", "/etc/cron.d/* w,")), 0o644); err != nil {
		t.Fatal(err)
	}
	run(t, "apparmor_parser", "--replace", "--skip-cache", other)
	if r := ctl(t, "query", "y-unit", "write /etc/**"); r.exit != 0 {
		t.Errorf("the file is asked: exit %d\n%s", r.exit, r.stdout)
	}
	r = ctl(t, "query", "--loaded", "y-unit", "write /etc/**")
	sum := ""
	dirs, _ := filepath.Glob("/sys/kernel/security/apparmor/policy/profiles/y-unit.*/sha*")
	for _, f := range dirs {
		if kind := filepath.Base(f); kind == "sha1" || kind == "sha256" {
			sum = kind + " " + read(t, f)
		}
	}
	if r.exit != 3 || sum == "" || !strings.Contains(r.stdout, "profile y-unit (loaded, enforce, "+sum+") allows") || !strings.Contains(r.stdout, "/etc/cron.d/a") {
		t.Errorf("what is loaded is asked: exit %d, its checksum is %q\n%s%s", r.exit, sum, r.stdout, r.stderr)
	}
	if r := ctl(t, "query", "--loaded", "--all", "capability block_suspend"); r.exit != 0 && r.exit != 3 || !strings.Contains(r.stdout, " of 0 it could not be told.") {
		t.Errorf("all that is loaded: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "query", "--loaded", "y-none", "write /etc/**"); r.exit != 5 {
		t.Errorf("what is not loaded: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := as("query", "--loaded", "y-unit", "write /etc/**"); r.exit != 1 || strings.Contains(r.stdout, "cron") {
		t.Errorf("what is loaded, as a user: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
}

// outcomesAs is outcomes for another user.
func outcomesAs(t testing.TB, as func(...string) result, args ...string) (map[string]attach.Outcome, result) {
	t.Helper()
	r := as(append(args, "--json")...)
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
