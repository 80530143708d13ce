//go:build vm

package host

import (
	"context"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// eachSuite runs the test once for each suite, with a guest that has the payload
// of AAUNIT_VM_PAYLOAD. If the test fails it prints what the guest has to tell,
// the journals of the units included.
func eachSuite(t *testing.T, units []string, test func(t *testing.T, m *machine.Machine)) {
	t.Helper()
	suites, err := machine.SuitesFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	for _, suite := range suites {
		t.Run(suite, func(t *testing.T) {
			m, err := machine.Boot(t.Context(), machine.Options{Suite: suite, Log: t.Output()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if t.Failed() {
					t.Log(m.Diagnose(context.Background(), units...))
					m.Keep(os.Stderr)
				}
				if err := m.Close(); err != nil {
					t.Error(err)
				}
			})
			if err := m.PutPayload(t.Context(), machine.PayloadFromEnv()); err != nil {
				t.Fatal(err)
			}
			test(t, m)
		})
	}
}

// output runs a command in the guest that must succeed.
func output(t *testing.T, m *machine.Machine, command string) string {
	t.Helper()
	out, err := m.Output(t.Context(), command)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestSanity checks that guests can be turned off and on: a reboot and a power
// cut give a new boot with AppArmor on, and what was flushed to the disk lasts.
func TestSanity(t *testing.T) {
	eachSuite(t, nil, func(t *testing.T, m *machine.Machine) {
		boots := map[string]bool{}
		check := func() {
			t.Helper()
			id := output(t, m, "cat /proc/sys/kernel/random/boot_id")
			if boots[id] {
				t.Errorf("boot %s is one that was before", id)
			}
			boots[id] = true
			if got := output(t, m, "cat /sys/module/apparmor/parameters/enabled"); got != "Y" {
				t.Errorf("AppArmor is on: %s", got)
			}
			if got := output(t, m, "grep -c enforce /sys/kernel/security/apparmor/profiles"); got == "0" {
				t.Error("no profile is in enforce mode")
			}
		}

		check()
		output(t, m, "echo flushed >/root/flushed && sync /root/flushed")
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		check()
		output(t, m, "echo again >>/root/flushed && sync /root/flushed")
		if err := m.PowerCut(); err != nil {
			t.Fatal(err)
		}
		if err := m.PowerOn(t.Context()); err != nil {
			t.Fatal(err)
		}
		check()
		if got := output(t, m, "cat /root/flushed"); got != "flushed\nagain" {
			t.Errorf("after a power cut, the file has %q", got)
		}
	})
}

// TestSnapshot checks that a guest goes back to what was saved, with the time of
// now.
func TestSnapshot(t *testing.T) {
	eachSuite(t, nil, func(t *testing.T, m *machine.Machine) {
		output(t, m, "echo before >/root/state; echo before >/run/state")
		if err := m.Save(t.Context(), "here"); err != nil {
			t.Fatal(err)
		}
		output(t, m, "echo after >/root/state; echo after >/run/state; sync")
		for range 2 {
			if err := m.Load(t.Context(), "here"); err != nil {
				t.Fatal(err)
			}
			if got := output(t, m, "cat /root/state /run/state"); got != "before\nbefore" {
				t.Errorf("after going back, the files have %q", got)
			}
			seconds, err := strconv.ParseInt(output(t, m, "date +%s"), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			if off := time.Since(time.Unix(seconds, 0)).Abs(); off > time.Minute {
				t.Errorf("the guest's clock is off by %v", off)
			}
			output(t, m, "echo again >/root/state; sync")
		}
	})
}
