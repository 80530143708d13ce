//go:build vm

package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// setFile writes a file of the kernel and puts back what was there.
func setFile(t testing.TB, path, text string) {
	t.Helper()
	old := read(t, path)
	if err := os.WriteFile(path, []byte(text), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(path, []byte(old), 0) })
}

// TestEachWayAroundTheProfileIsNamed has, for every way in which a service can
// run without the profile it seems to have, a unit that goes this way. Each is
// named with its cause before the unit is touched.
func TestEachWayAroundTheProfileIsNamed(t *testing.T) {
	a := newAgents(t)
	type route struct {
		unit   string
		code   attach.Code
		where  string // part of the place
		refuse bool   // it stops the attach; else a warning
	}
	var routes []route
	add := func(name string, code attach.Code, refuse bool, where, profile, unit string) {
		a.ProfileFile(name, profile)
		a.Unit(name+".service", unit)
		routes = append(routes, route{name + ".service", code, where, refuse})
	}
	ok := func(name string) string { return profileText(name) }
	plus := func(key, line string) string { return a.agentUnit(key + "=" + line) }

	add("r-plus", attach.ExecPrivileged, true, "r-plus.service", ok("r-plus"), "[Service]\nExecStart=+/usr/local/bin/vm-agent -listen 127.0.0.1:7090\n")
	add("r-plus-pre", attach.ExecPrivileged, false, "r-plus-pre.service", ok("r-plus-pre"), plus("ExecStartPre", "+/bin/true"))
	add("r-perms", attach.PermissionsStartOnly, false, "r-perms.service:", ok("r-perms"), plus("ExecStartPre", "/bin/true")+"PermissionsStartOnly=yes\n")
	add("r-aaexec", attach.AAExec, true, "r-aaexec.service", ok("r-aaexec"), "[Service]\nExecStart=/usr/bin/aa-exec -p r-aaexec -- /usr/local/bin/vm-agent\n")
	add("r-aaexec-sh", attach.AAExec, true, "r-aaexec-sh.service", ok("r-aaexec-sh"), "[Service]\nExecStart=/bin/sh -c 'exec aa-exec -p r-aaexec-sh -- /usr/local/bin/vm-agent'\n")
	add("r-complain", attach.ProfileComplain, true, "/etc/apparmor.d/r-complain:", strings.Replace(ok("r-complain"), "r-complain {", "r-complain flags=(complain) {", 1), a.agentUnit())
	add("r-disabled", attach.ProfileDisabled, true, "/etc/apparmor.d/disable/r-disabled", ok("r-disabled"), a.agentUnit())
	add("r-force", attach.ProfileComplain, true, "/etc/apparmor.d/force-complain/r-force", ok("r-force"), a.agentUnit())
	add("r-leaves", attach.MayLeave, true, "/etc/apparmor.d/r-leaves", profileText("r-leaves", "/usr/bin/id Ux,"), a.agentUnit())
	add("r-child", attach.ChildLeaves, false, "/etc/apparmor.d/r-child", profileText("r-child", "/usr/bin/id PUx,"), a.agentUnit())
	add("r-pxunc", attach.MayLeave, true, "/etc/apparmor.d/r-pxunc", profileText("r-pxunc", "/usr/bin/id Px -> unconfined,"), a.agentUnit())
	add("r-hat", attach.ProfileComplain, true, "/etc/apparmor.d/r-hat:", profileText("r-hat", "profile kid flags=(complain) {", "}"), a.agentUnit())
	add("r-twice", attach.ProfileDuplicate, true, "/etc/apparmor.d/r-twice", ok("r-twice"), a.agentUnit())
	add("r-reset", attach.DirectiveOverridden, true, "r-reset.service.d/99-x.conf:2", ok("r-reset"), a.agentUnit())
	add("r-minus", attach.IgnorePrefix, true, "r-minus.service.d/99-x.conf:2", ok("r-minus"), a.agentUnit())
	add("r-assert", attach.AssertionOverridden, true, "r-assert.service.d/99-x.conf:2", ok("r-assert"), a.agentUnit())
	add("r-prefix-x", attach.DirectiveOverridden, true, "r-prefix-.service.d/99-x.conf:2", ok("r-prefix-x"), a.agentUnit())
	add("r-control", attach.DirectiveOverridden, true, "/etc/systemd/system.control/r-control.service.d/99-x.conf:2", ok("r-control"), a.agentUnit())
	add("r-tmp", attach.PrivateTmpOverridden, true, "r-tmp.service.d/99-x.conf:2", ok("r-tmp"), a.agentUnit())
	if os.Getenv("AAUNIT_VM_SUITE") == "trixie" { // the flags came with AppArmor 4
		add("r-unconfined", attach.ProfileUnconfined, true, "/etc/apparmor.d/r-unconfined:", strings.Replace(ok("r-unconfined"), "r-unconfined {", "r-unconfined flags=(unconfined) {", 1), a.agentUnit())
		add("r-default", attach.ProfileDefaultOpen, true, "/etc/apparmor.d/r-default:", strings.Replace(ok("r-default"), "r-default {", "r-default flags=(default_allow) {", 1), a.agentUnit())
	}
	a.ProfileFile("r-twice-again", ok("r-twice"))
	for dir, name := range map[string]string{"disable": "r-disabled", "force-complain": "r-force"} {
		link := "/etc/apparmor.d/" + dir + "/" + name
		os.MkdirAll("/etc/apparmor.d/"+dir, 0o755)
		if err := os.Symlink("/etc/apparmor.d/"+name, link); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(link) })
	}
	const reset = "[Service]\nAppArmorProfile=\n"
	a.Dropin("r-reset.service", "99-x.conf", reset)
	a.Dropin("r-minus.service", "99-x.conf", "[Service]\nAppArmorProfile=-r-minus\n")
	a.Dropin("r-assert.service", "99-x.conf", "[Unit]\nAssertSecurity=\n")
	a.Dropin("r-prefix-.service", "99-x.conf", reset)
	a.Dropin("r-tmp.service", "99-x.conf", "[Service]\nPrivateTmp=no\n")
	a.File("/etc/systemd/system.control/r-control.service.d/99-x.conf", reset, 0o644)
	// A profile that is not under /etc/apparmor.d.
	a.File("/etc/apparmor-elsewhere/r-place", ok("r-place"), 0o644)
	a.Unit("r-place.service", a.agentUnit())
	// A unit of the user manager.
	a.File("/etc/systemd/user/r-user.service", a.agentUnit(), 0o644)
	a.Reload()
	var names []string
	for _, r := range routes {
		names = append(names, strings.TrimSuffix(r.unit, ".service"))
	}

	// In global complain mode nothing would confine. It is as short as can be: it
	// is for the whole machine.
	setFile(t, "/sys/module/apparmor/parameters/mode", "complain")
	out, r := outcomes(t, "plan", "r-plus-pre")
	setFile(t, "/sys/module/apparmor/parameters/mode", "enforce")
	if !slices.Contains(codesOf(out["r-plus-pre.service"].Reasons), attach.GlobalComplain) || r.exit != 1 {
		t.Errorf("global complain mode: exit %d\n%s", r.exit, r.stdout)
	}

	out, _ = outcomes(t, append([]string{"plan"}, names...)...)
	for _, r := range routes {
		o := out[r.unit]
		found := o.Notes
		if r.refuse {
			found = o.Reasons
		}
		if !slices.ContainsFunc(found, func(f attach.Reason) bool { return f.Code == r.code && strings.Contains(f.Where, r.where) }) {
			t.Errorf("%s: want %s at %s (stops the attach: %v), got reasons %+v, notes %+v", r.unit, r.code, r.where, r.refuse, o.Reasons, o.Notes)
		}
		if !r.refuse && len(o.Reasons) > 0 {
			t.Errorf("%s is refused: %+v", r.unit, o.Reasons)
		}
	}
	// Refused for real, too, and nothing is written.
	out, r = outcomes(t, "attach", "r-plus", "r-reset", "r-disabled")
	if r.exit != 1 {
		t.Errorf("exit %d", r.exit)
	}
	for unit := range out {
		for _, path := range []string{"/etc/systemd/system/" + unit + ".d/90-aaunit.conf", attachmentDir + "/" + unit + ".conf"} {
			if _, err := os.Lstat(path); !os.IsNotExist(err) {
				t.Errorf("%s was written although the attach is refused", path)
			}
		}
	}

	out, r = outcomes(t, "plan", "r-place", "--profile", "/etc/apparmor-elsewhere/r-place")
	if !slices.Contains(codesOf(out["r-place.service"].Notes), attach.ProfileNotAtBoot) {
		t.Errorf("not at boot: %s", r.stdout)
	}
	out, r = outcomes(t, "attach", "r-user")
	if !slices.Contains(codesOf(out["r-user.service"].Reasons), attach.UnitOfUser) || r.exit != 1 {
		t.Errorf("user unit: exit %d %s", r.exit, r.stdout)
	}
	// A file may name it; the status says why nothing comes of that.
	file := a.attachmentFile("r-user.conf", "[Attachment]\nUnit=r-user.service\nProfile=r-user\n")
	waitFor(t, "the refusal of a user unit", func() (bool, string) {
		rep, r := report(t, "status", "r-user")
		return r.exit == 3 && len(rep.Units) == 1 && slices.Contains(codesOf(rep.Units[0].Refused), attach.UnitOfUser), r.stdout
	})
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}

	// service.d comes for every service on the host: by itself, with one unit.
	a.File("/etc/systemd/system/service.d/99-x.conf", "[Service]\nAppArmorProfile=\n", 0o644)
	a.Reload()
	out, r = outcomes(t, "plan", "r-plus-pre")
	if !slices.ContainsFunc(out["r-plus-pre.service"].Reasons, func(f attach.Reason) bool {
		return f.Code == attach.DirectiveOverridden && strings.Contains(f.Where, "/etc/systemd/system/service.d/99-x.conf:2")
	}) {
		t.Errorf("service.d: %s", r.stdout)
	}
	os.RemoveAll("/etc/systemd/system/service.d")
	run(t, "systemctl", "disable", "apparmor.service")
	t.Cleanup(func() { try0("systemctl", "enable", "apparmor.service") })
	waitFor(t, "apparmor.service to be named as disabled", func() (bool, string) {
		out, r := outcomes(t, "plan", "r-plus-pre")
		return slices.Contains(codesOf(out["r-plus-pre.service"].Notes), attach.BootServiceMissing), r.stdout
	})
}

// TestWaysAroundThatOpenLater are found on a unit that was confined before.
func TestWaysAroundThatOpenLater(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("w-mode", profileText("w-mode"))
	a.Unit("w-mode.service", a.agentUnit())
	a.ProfileFile("w-leave", profileText("w-leave", "/usr/bin/sleep Ux,"))
	a.Unit("w-leave.service", a.agentUnit()+"ExecStartPost=/bin/true\n")
	leavePort := a.port
	a.ProfileFile("w-text", profileText("w-text"))
	a.Unit("w-text.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "w-mode.service", "w-leave.service", "w-text.service")
	a.attachmentFile("w-text.conf", "[Attachment]\nUnit=w-text.service\nProfile=w-text\nOnProfileChange=report\nSettleSec=1\n")
	a.attachmentFile("w-leave.conf", "[Attachment]\nUnit=w-leave.service\nProfile=w-leave\nSettleSec=1\n[Assertions]\nWaive=policy-may-leave-profile it is what is tested\n")
	if r := ctl(t, "attach", "w-mode"); r.exit != 0 {
		t.Fatalf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	waitConfined(t, "w-text.service", "w-text")
	waitConfined(t, "w-leave.service", "w-leave")

	// The label still reads (enforce), and nothing is enforced.
	setFile(t, "/sys/module/apparmor/parameters/mode", "complain")
	if rep, r := report(t, "verify", "w-mode"); r.exit != 3 || !slices.Contains(codesOf(rep.Units[0].Verdict.Reasons), attach.GlobalComplain) {
		t.Errorf("global complain mode: exit %d\n%s", r.exit, r.stdout)
	}
	if r := ctl(t, "status"); r.exit != 3 {
		t.Errorf("status in global complain mode exits %d\n%s", r.exit, r.stdout)
	}
	setFile(t, "/sys/module/apparmor/parameters/mode", "enforce")

	// A child that left the profile is named, with the rule that let it.
	if got := ask(t, port(leavePort), "spawn /usr/bin/sleep 600"); !strings.HasPrefix(got, "ok") {
		t.Fatal(got)
	}
	rep, r := report(t, "verify", "w-leave")
	if r.exit != 3 || len(rep.Units) != 1 || !slices.ContainsFunc(rep.Units[0].Verdict.Reasons, func(f attach.Reason) bool {
		return f.Code == attach.TaskUnconfined && strings.Contains(f.Detail, "/usr/bin/sleep") && strings.Contains(f.Where, "Ux")
	}) {
		t.Errorf("a child that left: exit %d\n%s", r.exit, r.stdout)
	}

	// A text that changed and is not loaded is said, and nothing is loaded.
	a.ProfileFile("w-text", profileText("w-text", "/etc/machine-id r,"))
	waitFor(t, "the changed text", func() (bool, string) {
		rep, r := report(t, "status", "w-text")
		return len(rep.Units) == 1 && slices.Contains(codesOf(rep.Units[0].Notes), attach.PolicyChanged), r.stdout
	})
	// Another text under the same name, loaded by somebody else: it is told, and
	// the accepted one is put back at once.
	elsewhere := t.TempDir() + "/p"
	load := func(text string, args ...string) {
		if err := os.WriteFile(elsewhere, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, "apparmor_parser", append(args, "--skip-cache", elsewhere)...)
	}
	waitConfined(t, "w-mode.service", "w-mode")
	accepted := checksum(t, "w-mode")
	load(profileText("w-mode", "/** rw,"), "--replace")
	waitFor(t, "the accepted policy", func() (bool, string) {
		log := journalctl(t, "-u", "w-mode.service", "-o", "cat")
		return checksum(t, "w-mode") == accepted && strings.Contains(log, "w-mode.service is not-confined: the kernel runs w-mode with checksum") &&
			strings.Contains(log, "put back the policy of w-mode.service"), log
	})
	waitFor(t, "w-mode confined", func() (bool, string) {
		rep, r := report(t, "status", "w-mode")
		return len(rep.Units) == 1 && rep.Units[0].Verdict != nil && rep.Units[0].Verdict.Answer == attach.Confined, r.stdout
	})
	a.ProfileFile("w-mode", "profile w-mode {\n  nonsense\n")
	waitFor(t, "the broken text", func() (bool, string) {
		rep, r := report(t, "status", "w-mode")
		return len(rep.Units) == 1 && slices.Contains(codesOf(rep.Units[0].Notes), attach.ProfileBroken), r.stdout
	})
	// Nothing is put back of a unit that somebody works on: it stays told.
	if r := ctl(t, "pause", "w-mode"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	t.Cleanup(func() { try0("aaunitctl", "resume", "w-mode") })
	for _, c := range []struct {
		what string
		do   func()
		code attach.Code
	}{
		{"another policy", func() { load(profileText("w-mode", "/** rw,"), "--replace") }, attach.PolicyDiffers},
		{"complain mode", func() { load(profileText("w-mode"), "--replace", "--Complain") }, attach.TaskComplain},
		{"removed", func() { load(profileText("w-mode"), "--remove") }, attach.TaskUnconfined},
	} {
		c.do()
		rep, r := report(t, "verify", "w-mode")
		if r.exit != 3 || !slices.Contains(codesOf(rep.Units[0].Verdict.Reasons), c.code) {
			t.Errorf("%s: exit %d\n%s", c.what, r.exit, r.stdout)
		}
	}
}

// checksum is the kernel's own of a loaded profile; "" where it is not loaded.
func checksum(t testing.TB, profile string) string {
	t.Helper()
	for _, kind := range []string{"sha256", "sha1"} {
		found, err := filepath.Glob("/sys/kernel/security/apparmor/policy/profiles/" + profile + ".*/" + kind)
		if err != nil {
			t.Fatal(err)
		}
		if len(found) == 1 {
			return read(t, found[0])
		}
	}
	return ""
}

// TestHealthyServicesRaiseNoAlarm attaches ten services of different make, and
// none of them gives a reason to complain.
func TestHealthyServicesRaiseNoAlarm(t *testing.T) {
	a := newAgents(t)
	var names []string
	add := func(name string, lines ...string) {
		a.ProfileFile(name, profileText(name, "owner @{PROC}/@{pid}/** r,", "/run/systemd/notify w,", "unix,"))
		a.Unit(name+".service", a.agentUnit(lines...))
		names = append(names, name)
	}
	add("h-plain")
	add("h-user", "User=daemon")
	add("h-notify", "Type=notify")
	add("h-nnp", "User=nobody", "NoNewPrivileges=yes", "ProtectSystem=strict", "ReadWritePaths=/tmp", "SystemCallFilter=@system-service")
	add("h-dynamic", "DynamicUser=yes")
	add("h-delegate", "Delegate=yes")
	add("h-pre", "ExecStartPre=+/bin/mkdir -p /run/h-pre", "ExecStartPre=/usr/local/bin/vm-agent -exit-after 1ms", "ExecReload=/bin/kill -HUP $MAINPID")
	a.ProfileFile("h space", profileText(`"h space"`))
	a.Unit("h-space.service", a.agentUnit())
	a.ProfileFile("h-inst", profileText("h-inst"))
	a.Unit("h-inst@.service", a.agentUnit())
	a.Own("h-inst@a.service")
	a.ProfileFile("h-pam", profileText("h-pam", "owner /run/user/** rw,"))
	a.Unit("h-pam.service", a.agentUnit("User=root", "PAMName=login"))
	a.Reload()
	run(t, "systemctl", append([]string{"start", "h-space", "h-inst@a", "h-pam"}, names...)...)
	for _, args := range [][]string{
		append([]string{"attach"}, names...),
		{"attach", "h-space", "--profile", "h space"},
		{"attach", "h-inst@a"},
		{"attach", "h-pam"},
	} {
		if r := ctl(t, args...); r.exit != 0 {
			t.Errorf("aaunitctl %s: exit %d\n%s%s", strings.Join(args, " "), r.exit, r.stdout, r.stderr)
		}
	}
	rep, r := report(t, "verify", "--all")
	if r.exit != 0 || len(rep.Units) < len(names)+3 {
		t.Errorf("exit %d, %d units", r.exit, len(rep.Units))
	}
	for _, u := range rep.Units {
		if u.Verdict == nil || u.Verdict.Answer != attach.Confined || len(u.Refused) > 0 {
			t.Errorf("%s: %+v %+v", u.Unit, u.Verdict, u.Refused)
		}
		for _, n := range u.Notes {
			// That one is so: its first ExecStartPre= has a +.
			if u.Unit != "h-pre.service" || n.Code != attach.ExecPrivileged {
				t.Errorf("%s is found fault with: %+v", u.Unit, n)
			}
		}
	}
	for _, n := range names {
		if lie := truth(t, n+".service", n); lie != "" {
			t.Error(lie)
		}
	}
	for unit, profile := range map[string]string{"h-space.service": "h space", "h-inst@a.service": "h-inst"} {
		if lie := truth(t, unit, profile); lie != "" {
			t.Error(lie)
		}
	}
	if lie := untruth("h-pam.service", "h-pam", pamTasks(t, "h-pam.service")); lie != "" {
		t.Error(lie)
	}
}

// pamTasks lists the tasks of a unit with PAMName=, but for systemd's own
// (sd-pam), which stays behind in the unit to close the session. Where
// pam_systemd is installed the main process, and what it forks, is in a session;
// elsewhere it is in the unit.
func pamTasks(t testing.TB, unit string) (tasks []task) {
	t.Helper()
	pid := show(t, unit, "MainPID")
	_, group, ok := strings.Cut(read(t, "/proc/"+pid+"/cgroup"), "0::")
	if !ok {
		t.Fatalf("process %s of %s has no control group", pid, unit)
	}
	all := tasksNow(t, unit)
	if group != show(t, unit, "ControlGroup") {
		all = append(all, groupTasks(t, group)...)
	}
	for _, one := range all {
		exe, err := os.Readlink("/proc/" + strconv.Itoa(one.PID) + "/exe")
		if err != nil {
			t.Fatal(err)
		}
		// Not by its name: anybody can take that.
		if filepath.Dir(exe) != "/usr/lib/systemd" {
			tasks = append(tasks, one)
		}
	}
	if processes := len(processesOf(tasks)); processes != 2 {
		t.Errorf("%s has %d processes, want the agent and its helper: %+v", unit, processes, tasks)
	}
	return tasks
}

// processesOf lists the processes that tasks belong to.
func processesOf(tasks []task) (pids []int) {
	for _, task := range tasks {
		if !slices.Contains(pids, task.PID) {
			pids = append(pids, task.PID)
		}
	}
	return pids
}
