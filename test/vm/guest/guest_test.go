//go:build vm

package guest

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

func TestMain(m *testing.M) {
	if os.Getenv("AAUNIT_VM") == "" {
		fmt.Fprintln(os.Stderr, "cannot run here: these tests change the system they run on, and need go test -exec vmexec (test/vm/README.md)")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestSanity checks that the guest is what the other tests take it for.
// On every suite.
func TestSanity(t *testing.T) {
	suite := os.Getenv("AAUNIT_VM_SUITE")
	want, ok := map[string]struct{ debian, systemd, appArmor string }{
		"bookworm": {"12", "systemd 252 ", "AppArmor parser version 3.0."},
		"trixie":   {"13", "systemd 257 ", "AppArmor parser version 4.1."},
	}[suite]
	if !ok {
		t.Fatalf("cannot tell what to expect of AAUNIT_VM_SUITE=%s", suite)
	}
	for file, text := range map[string]string{
		"/proc/1/comm": "systemd",
		"/sys/module/apparmor/parameters/enabled": "Y",
		"/sys/module/apparmor/parameters/mode":    "enforce",
	} {
		if got := read(t, file); got != text {
			t.Errorf("%s is %q, want %q", file, got, text)
		}
	}
	if got := read(t, "/etc/os-release"); !strings.Contains(got, "\nVERSION_ID=\""+want.debian+"\"\n") {
		t.Errorf("/etc/os-release is not that of Debian %s:\n%s", want.debian, got)
	}
	if got := run(t, "systemctl", "--version"); !strings.HasPrefix(got, want.systemd) {
		t.Errorf("systemctl is of %q, want %q", got, want.systemd)
	}
	if got := run(t, "apparmor_parser", "--version"); !strings.HasPrefix(got, want.appArmor) {
		t.Errorf("apparmor_parser is %q, want %q", got, want.appArmor)
	}
	if got := read(t, "/sys/kernel/security/apparmor/profiles"); got == "" {
		t.Error("no profile is loaded")
	}
	if got := run(t, "systemctl", "is-enabled", "apparmor.service"); got != "enabled" {
		t.Errorf("apparmor.service is %s", got)
	}
}

// TestAgentUnderProfile checks the helpers of this package on systemd's own
// AppArmorProfile=: the test/vm/agent under testdata/agent.profile.
func TestAgentUnderProfile(t *testing.T) {
	agent := payload(t, "agent")
	s := newScene(t)
	s.File("/usr/local/bin/vm-agent", read(t, agent), 0o755)
	s.Profile("vm-agent", read(t, "testdata/agent.profile"))
	s.Unit("vm-agent.service", `[Service]
Type=notify
ExecStart=/usr/local/bin/vm-agent -listen 127.0.0.1:7001 -tmp /tmp/vm-agent -helper
AppArmorProfile=vm-agent
PrivateTmp=yes
`)
	s.Reload()
	run(t, "systemctl", "start", "vm-agent.service")

	tasks := unitTasks(t, "vm-agent.service")
	pids := map[int]bool{}
	for _, task := range tasks {
		pids[task.PID] = true
		if task.Profile != "vm-agent" || task.Mode != "enforce" {
			t.Errorf("task %d of process %d is %s (%s)", task.TID, task.PID, task.Profile, task.Mode)
		}
	}
	if len(pids) != 2 {
		t.Errorf("the unit has %d processes, want the agent and its helper: %+v", len(pids), tasks)
	}

	if got := ask(t, "127.0.0.1:7001", "read /etc/hostname"); !strings.HasPrefix(got, "ok ") {
		t.Errorf("reading what the profile allows: %s", got)
	}
	if got := ask(t, "127.0.0.1:7001", "read /etc/shadow"); got != "error open /etc/shadow: permission denied" {
		t.Errorf("reading what the profile does not allow: %s", got)
	}
	waitFor(t, "the denial in the journal", func() (bool, string) {
		text := journalctl(t, "-k", "-o", "cat", "-n", "50")
		return strings.Contains(text, `profile="vm-agent" name="/etc/shadow"`), text
	})
}
