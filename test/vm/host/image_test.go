//go:build vm && long

package host

import (
	"testing"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// TestAPreparedSystemBoots prepares the machine's own files as an image, from outside,
// and boots it: the service is confined from its first start, with no aaunitd, which
// takes over later without a restart.
func TestAPreparedSystemBoots(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "agent.service"}, func(t *testing.T, m *machine.Machine) {
		install(t, m, "agent", 7001)
		output(t, m, "mount --bind / /mnt && systemctl --root=/mnt enable agent && systemctl disable --now aaunitd")
		output(t, m, "aaunitctl --root=/mnt attach agent --profile agentprofile && aaunitctl --root=/mnt status && umount /mnt && sync")
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		wait(t, m, "ps -o label= -C agent", func(r machine.Result) bool { return r.Stdout != "" })
		if got := labels(t, m, "agent"); got != "agentprofile (enforce)" {
			t.Errorf("the first start runs as %q", got)
		}
		if got := output(t, m, "systemctl is-active aaunitd || true"); got != "inactive" {
			t.Errorf("aaunitd is %s", got)
		}
		const invocation = "systemctl show --value --property=InvocationID,NRestarts agent"
		before := output(t, m, invocation)
		output(t, m, "systemctl enable --now aaunitd")
		waitStatus(t, m, "agent", 0)
		if now := output(t, m, invocation); now != before {
			t.Errorf("aaunitd restarted it: %s, before %s", now, before)
		}
	})
}
