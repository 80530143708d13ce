//go:build vm && long

package guest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// TestBootPolicyKilled has aaunit-policy.service killed at every step, when the policy
// of an attached unit was taken away and when another text is loaded in its place.
// The unit then starts under the accepted policy, under what was loaded or not at all,
// never without a profile; and what was killed is made good by the next start of the
// service, or by the daemon.
func TestBootPolicyKilled(t *testing.T) {
	c := newCrashes(t)
	c.attached("crash")
	accepted := checksum(t, "crash")
	const program = "/usr/local/sbin/aaunitd-crash" // where the sandbox shows it
	c.File(program, read(t, payload(t, "aaunitd-crash")), 0o755)
	c.Dropin("aaunit-policy.service", "crash.conf", fmt.Sprintf("[Unit]\nStartLimitIntervalSec=0\n[Service]\nExecStart=\nExecStart=%s -policy\nEnvironment=AAUNITD_CRASH=%s\n",
		program, crashDir))
	t.Cleanup(func() {
		os.RemoveAll("/etc/systemd/system/aaunit-policy.service.d")
		try0("systemctl", "daemon-reload")
		try0("systemctl", "stop", "aaunitd.service") // it would have the state; newCrashes starts it
		os.Remove(begun)
		try0("systemctl", "restart", "aaunit-policy.service")
	})
	c.Reload()
	begin := map[string]func(){
		"removed":  func() { removeProfile(t, "crash") },
		"replaced": func() { c.loadText(profileText("crash", "/etc/shells r,")) },
	}
	for name, do := range begin {
		killed := 0
		for n := 1; ; n++ {
			run(t, "systemctl", "stop", crashUnit, "aaunitd.service", "aaunit-policy.service")
			do()
			// As after an upgrade of the parser: all is compiled anew.
			now := time.Now()
			if err := os.Chtimes("/usr/sbin/apparmor_parser", now, now); err != nil {
				t.Fatal(err)
			}
			os.Remove(crashLog)
			if err := os.WriteFile(crashOrder, fmt.Appendf(nil, "kill %d ", n), 0o600); err != nil {
				t.Fatal(err)
			}
			r := bootPolicy(t)
			ended := os.IsNotExist(os.Remove(crashOrder))
			steps := strings.TrimSpace(read(t, crashLog))
			if ended == (r.exit == 0) {
				t.Fatalf("%s, step %d: killed %v, and systemctl start exits %d\n%s", name, n, ended, r.exit, steps)
			}
			started := try(t, "systemctl", "start", crashUnit).exit == 0
			label, loaded := loadedProfiles(t)["crash"]
			switch {
			case started != loaded:
				t.Errorf("%s, step %d: the profile is loaded: %v; the unit started: %v\n%s", name, n, loaded, started, steps)
			case started && (label != "enforce" || truth(t, crashUnit, "crash") != ""):
				t.Errorf("%s, step %d: %s %s\n%s", name, n, label, truth(t, crashUnit, "crash"), steps)
			}
			if !ended {
				if got := checksum(t, "crash"); got != accepted || !c.reads() {
					t.Errorf("%s: not killed, and the accepted policy is not live: %s, want %s", name, got, accepted)
				}
				break
			}
			killed++
			t.Logf("%s: %s", name, steps[strings.LastIndexByte(steps, '\n')+1:])
			switch n % 2 {
			case 0:
				run(t, "systemctl", "start", "aaunitd.service")
			default:
				if r := bootPolicy(t); r.exit != 0 {
					t.Fatalf("%s, step %d: started again it exits %d: %s", name, n, r.exit, r.stderr)
				}
			}
			waitFor(t, "the accepted policy", func() (bool, string) {
				return loadedProfiles(t)["crash"] == "enforce" && checksum(t, "crash") == accepted, ""
			})
			run(t, "systemctl", "start", crashUnit)
			if wrong := truth(t, crashUnit, "crash"); wrong != "" || !c.reads() {
				t.Errorf("%s, step %d, afterwards: %s", name, n, wrong)
			}
		}
		if killed < 4 { // before and after it is kept, and loaded
			t.Errorf("%s: it was killed at %d steps", name, killed)
		}
	}
	run(t, "systemctl", "start", "aaunitd.service")
	c.waitAtRest("crash", "")
}

// TestBootWithoutAParser starts aaunit-policy.service where policy cannot be compiled:
// after an upgrade of the parser to one that refuses everything. What was accepted goes
// live as it was, and the service fails, to tell.
func TestBootWithoutAParser(t *testing.T) {
	a := newAgents(t)
	const unit, profile, parser = "boot-old.service", "boot-old", "/usr/sbin/apparmor_parser"
	a.ProfileFile(profile, profileText(profile))
	a.Unit(unit, a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", unit)
	if r := ctl(t, "attach", unit, "--profile", profile); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	accepted := checksum(t, profile)
	run(t, "systemctl", "stop", unit, "aaunitd.service", "aaunit-policy.service")
	removeProfile(t, profile)
	if err := os.Rename(parser, parser+".real"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		os.Rename(parser+".real", parser)
		try0("systemctl", "reset-failed", "aaunit-policy.service")
		try0("systemctl", "stop", "aaunitd.service") // it would have the state
		os.Remove(begun)
		try0("systemctl", "start", "aaunit-policy.service", "aaunitd.service")
	})
	if err := os.WriteFile(parser, []byte("#!/bin/sh\necho 'AppArmor parser error: no such ABI' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	r := bootPolicy(t)
	log := run(t, "journalctl", "-b", "-o", "cat", "-n", "20", "-u", "aaunit-policy.service")
	if r.exit == 0 || !strings.Contains(log, "no such ABI") || !strings.Contains(log, "/etc/apparmor.d/"+profile) {
		t.Errorf("it exits %d and says\n%s", r.exit, log)
	}
	if loadedProfiles(t)[profile] != "enforce" || checksum(t, profile) != accepted {
		t.Fatalf("what was accepted is not live: %q\n%s", loadedProfiles(t)[profile], log)
	}
	// It does not run again with whatever is started next, though sysinit.target wants it.
	ran := show(t, "aaunit-policy.service", "ExecMainStartTimestampMonotonic")
	run(t, "systemctl", "start", unit)
	if wrong := truth(t, unit, profile); wrong != "" {
		t.Error(wrong)
	}
	if again := show(t, "aaunit-policy.service", "ExecMainStartTimestampMonotonic"); again != ran {
		t.Errorf("it ran at %s and again at %s", ran, again)
	}
	// The daemon goes on from there.
	run(t, "systemctl", "start", "aaunitd.service")
	waitConfined(t, unit, profile)
}

// begun says that aaunit-policy.service has done its work in this boot, or the daemon has
// begun.
const begun = "/run/aaunit/begun"

// bootPolicy starts aaunit-policy.service as a boot does.
func bootPolicy(t *testing.T) result {
	t.Helper()
	os.Remove(begun)
	return try(t, "systemctl", "start", "aaunit-policy.service")
}

// removeProfile takes a profile out of the kernel, as apparmor_parser -R does.
func removeProfile(t *testing.T, name string) {
	t.Helper()
	if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(name), 0); err != nil {
		t.Fatal(err)
	}
}
