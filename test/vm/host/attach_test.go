//go:build vm

package host

import (
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/test/vm/machine"
)

const (
	bootProfile = `abi <abi/3.0>,
include <tunables/global>
profile bootagent {
  include <abstractions/base>
  network inet stream,
  network inet6 stream,
  /usr/local/bin/agent mrix,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
}
`
	bootUnit = `[Service]
ExecStart=/usr/local/bin/agent -listen 127.0.0.1:7001 -tmp /tmp/agent -helper
[Install]
WantedBy=multi-user.target
`
)

// waitStatus waits until aaunitctl status ends with the exit status.
func waitStatus(t *testing.T, m *machine.Machine, want int) string {
	t.Helper()
	var last string
	for deadline := time.Now().Add(3 * time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Second) {
		r, err := m.Run(t.Context(), "aaunitctl status agent")
		if err != nil {
			t.Fatal(err)
		}
		last = r.Stdout + r.Stderr
		if r.Exit == want && !strings.Contains(last, "at work") {
			return last
		}
	}
	t.Fatalf("aaunitctl status does not come to exit status %d:\n%s", want, last)
	return ""
}

// TestAttachmentsAcrossBoots attaches a unit and boots the machine again: with
// AppArmor the unit is confined from its first start on; on a kernel without
// it, the unit does not start, and aaunitctl says why.
func TestAttachmentsAcrossBoots(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "agent.service"}, func(t *testing.T, m *machine.Machine) {
		output(t, m, "install -m 755 /root/payload/agent /usr/local/bin/agent")
		for path, text := range map[string]string{"/etc/apparmor.d/bootagent": bootProfile, "/etc/systemd/system/agent.service": bootUnit} {
			if err := m.PutBytes(t.Context(), []byte(text), path, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		output(t, m, "systemctl daemon-reload && systemctl enable --now agent && aaunitctl attach agent --profile bootagent && sync")

		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		waitStatus(t, m, 0)
		labels := output(t, m, "ps -o label= -C agent | sort -u")
		if labels != "bootagent (enforce)" {
			t.Errorf("after a reboot the agent runs as %q", labels)
		}
		if got := output(t, m, "journalctl -b -o cat -u agent --no-pager | grep -c 'agent: ready'"); got != "1" {
			t.Errorf("the agent was started %s times in this boot", got)
		}

		if err := m.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		m.SetKernelArguments("apparmor=0")
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		text := waitStatus(t, m, 3)
		if !strings.Contains(text, "AppArmor is off") && !strings.Contains(text, "AppArmor is not enabled") {
			t.Errorf("without AppArmor, aaunitctl status says\n%s", text)
		}
		if r, err := m.Run(t.Context(), "pgrep -x agent"); err != nil || r.Exit == 0 {
			t.Errorf("the agent runs without AppArmor: %s %v", r.Stdout, err)
		}
		r, err := m.Run(t.Context(), "systemctl start agent; systemctl is-active agent; aaunitctl attach agent; aaunitctl status --json >/dev/null")
		if err != nil || r.Exit != 3 || strings.Contains(r.Stdout, "\nactive") {
			t.Errorf("on a kernel without AppArmor: exit %d, %v\n%s%s", r.Exit, err, r.Stdout, r.Stderr)
		}
		// Also when nobody is there to ask.
		r, err = m.Run(t.Context(), "systemctl mask --now --runtime aaunitd; aaunitctl status")
		if err != nil || r.Exit != 3 || !strings.Contains(r.Stdout+r.Stderr, "AppArmor") {
			t.Errorf("without the daemon: exit %d, %v\n%s%s", r.Exit, err, r.Stdout, r.Stderr)
		}
	})
}
