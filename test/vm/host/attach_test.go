//go:build vm

package host

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/test/vm/machine"
)

// install puts an agent on the machine under a name: the program, a profile
// called NAMEprofile, and a unit that starts at boot. Nothing is started.
func install(t *testing.T, m *machine.Machine, name string, port int) {
	t.Helper()
	output(t, m, "install -m 755 /root/payload/agent /usr/local/bin/"+name)
	for path, text := range map[string]string{
		"/etc/apparmor.d/" + name + "profile": fmt.Sprintf(`abi <abi/3.0>,
include <tunables/global>
profile %[1]sprofile {
  include <abstractions/base>
  network inet stream,
  network inet6 stream,
  /usr/local/bin/%[1]s mrix,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
}
`, name),
		"/etc/systemd/system/" + name + ".service": fmt.Sprintf(`[Service]
ExecStart=/usr/local/bin/%[1]s -listen 127.0.0.1:%[2]d -tmp /tmp/%[1]s -helper
[Install]
WantedBy=multi-user.target
`, name, port),
	} {
		if err := m.PutBytes(t.Context(), []byte(text), path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// labels are those of all processes of an agent, each once.
func labels(t *testing.T, m *machine.Machine, name string) string {
	t.Helper()
	return output(t, m, "ps -o label= -C "+name+" | sort -u")
}

// wait runs a command until its result is the one to wait for.
func wait(t *testing.T, m *machine.Machine, command string, done func(machine.Result) bool) string {
	t.Helper()
	var r machine.Result
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Second) {
		var err error
		if r, err = m.Run(t.Context(), command); err != nil {
			t.Fatal(err)
		}
		if done(r) {
			return r.Stdout + r.Stderr
		}
	}
	t.Fatalf("%s does not come to what was waited for: exit status %d\n%s%s", command, r.Exit, r.Stdout, r.Stderr)
	return ""
}

// waitStatus waits until aaunitctl status ends with the exit status.
func waitStatus(t *testing.T, m *machine.Machine, unit string, want int) string {
	t.Helper()
	return wait(t, m, "aaunitctl status "+unit, func(r machine.Result) bool {
		return r.Exit == want && !strings.Contains(r.Stdout, "at work")
	})
}

// TestAttachmentsAcrossBoots attaches units and boots the machine again: with
// AppArmor a unit is confined from its first start on, unless it was attached
// until the reboot only; on a kernel without it, the unit does not start, and
// aaunitctl says why.
func TestAttachmentsAcrossBoots(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "agent.service", "brief.service"}, func(t *testing.T, m *machine.Machine) {
		install(t, m, "agent", 7001)
		install(t, m, "brief", 7002)
		output(t, m, "systemctl daemon-reload && systemctl enable --now agent brief && aaunitctl attach agent --profile agentprofile && "+
			"aaunitctl attach brief --profile briefprofile --runtime && test -e /run/systemd/system/brief.service.d/90-aaunit.conf && sync")
		if got := labels(t, m, "brief"); got != "briefprofile (enforce)" {
			t.Errorf("attached until the reboot, brief runs as %q", got)
		}

		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitStatus(t, m, "agent", 0)
		if got := labels(t, m, "agent"); got != "agentprofile (enforce)" {
			t.Errorf("after a reboot the agent runs as %q", got)
		}
		// It says that it is ready a moment after it has started.
		ready := wait(t, m, "journalctl -b -o cat -u agent --no-pager", func(r machine.Result) bool { return strings.Contains(r.Stdout, "agent: ready") })
		if n := strings.Count(ready, "agent: ready"); n != 1 {
			t.Errorf("the agent was started %d times in this boot", n)
		}
		// The other attachment has ended with the boot. aaunitd has loaded its
		// profile then and has not now: apparmor.service has, whose it is.
		wait(t, m, "ls /var/lib/aaunit/units", func(r machine.Result) bool { return r.Exit == 0 && !strings.Contains(r.Stdout, "brief") })
		if text := waitStatus(t, m, "brief", 3); !strings.Contains(text, "not attached") {
			t.Errorf("after a reboot aaunitctl says of what was attached until then\n%s", text)
		}
		if got := labels(t, m, "brief"); got != "unconfined" {
			t.Errorf("after a reboot brief runs as %q", got)
		}
		if got := output(t, m, "ls -d /etc/systemd/system/brief.service.d /run/systemd/system/brief.service.d /etc/aaunit/attachments.d/brief* /run/aaunit/attachments.d/brief* 2>/dev/null; true"); got != "" {
			t.Errorf("of an attachment until the reboot there is left\n%s", got)
		}
		if got := output(t, m, "grep -x 'briefprofile (enforce)' /sys/kernel/security/apparmor/profiles; true"); got == "" {
			t.Error("the profile that apparmor.service has loaded was unloaded")
		}

		if err := m.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.SetKernelArguments("apparmor=0")
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		text := waitStatus(t, m, "agent", 3)
		if !strings.Contains(text, "AppArmor is off") && !strings.Contains(text, "AppArmor is not enabled") {
			t.Errorf("without AppArmor, aaunitctl status says\n%s", text)
		}
		if r, err := m.Run(t.Context(), "pgrep -x agent"); err != nil || r.Exit == 0 {
			t.Errorf("the agent runs without AppArmor: %s %v", r.Stdout, err)
		}
		r, err := m.Run(t.Context(), "systemctl start agent; systemctl is-active agent")
		if err != nil || r.Exit == 0 {
			t.Errorf("the agent starts on a kernel without AppArmor: %v\n%s%s", err, r.Stdout, r.Stderr)
		}
		r, err = m.Run(t.Context(), "aaunitctl attach agent --json")
		var doc struct{ Outcomes []attach.Outcome }
		if err != nil || r.Exit != 1 || json.Unmarshal([]byte(r.Stdout), &doc) != nil || len(doc.Outcomes) != 1 ||
			!slices.ContainsFunc(doc.Outcomes[0].Reasons, func(f attach.Reason) bool { return f.Code == attach.AppArmorOff }) {
			t.Errorf("attach on a kernel without AppArmor: exit %d, %v\n%s%s", r.Exit, err, r.Stdout, r.Stderr)
		}
		if r, err := m.Run(t.Context(), "aaunitctl status --json >/dev/null"); err != nil || r.Exit != 3 {
			t.Errorf("status on a kernel without AppArmor: exit %d, %v\n%s", r.Exit, err, r.Stderr)
		}
		// Also when nobody is there to ask.
		r, err = m.Run(t.Context(), "systemctl mask --now --runtime aaunitd; aaunitctl status")
		if err != nil || r.Exit != 3 || !strings.Contains(r.Stdout+r.Stderr, "AppArmor") {
			t.Errorf("without the daemon: exit %d, %v\n%s%s", r.Exit, err, r.Stdout, r.Stderr)
		}
	})
}
