//go:build vm && long

package host

import (
	"strings"
	"testing"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// TestSocketOptionsAcrossBoots: after a reboot a unit is held to its list from its
// first start on, also where aaunitd does not run.
func TestSocketOptionsAcrossBoots(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "agent.service"}, func(t *testing.T, m *machine.Machine) {
		install(t, m, "agent", 7001)
		text := "[Attachment]\nUnit=agent.service\nProfile=agentprofile\nSettleSec=1\n[SocketOptions]\nMode=enforce\n" +
			"Allow=SOL_SOCKET:SO_REUSEADDR a restart binds again\nAllow=SO_BROADCAST the library sets it\nAllow=TCP_NODELAY small answers\n"
		if err := m.PutBytes(t.Context(), []byte(text), "/root/agent.conf", 0o644); err != nil {
			t.Fatal(err)
		}
		output(t, m, "systemctl daemon-reload && systemctl enable --now agent && cp /root/agent.conf /etc/aaunit/attachments.d/agent.conf")
		waitStatus(t, m, "agent", 0)
		held := func() {
			t.Helper()
			// The agent answers a line with a line.
			const ask = `exec 3<>/dev/tcp/127.0.0.1/7001; echo "setsockopt %s 1" >&3; head -n1 <&3`
			for option, want := range map[string]string{"1 9": "operation not permitted", "6 1": "ok"} {
				command := "bash -c '" + strings.Replace(ask, "%s", option, 1) + "'"
				wait(t, m, command, func(r machine.Result) bool { return r.Exit == 0 && strings.Contains(r.Stdout, want) })
			}
		}
		held()
		output(t, m, "systemctl disable aaunitd && sync")
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		held() // since its first start in this boot
		output(t, m, "systemctl enable --now aaunitd")
		waitStatus(t, m, "agent", 0)
		held()
	})
}
