//go:build vm

package guest

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A change of an attachment that fails, and fails again, leaves the unit under the
// profile that it had, and what confines it there is kept: the drop-in and the policy.
func TestAHeldChangeKeepsTheFormerProfile(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("former", profileText("former"))
	a.ProfileFile("wanted", strings.Replace(profileText("wanted"), "network inet stream,", "", 1))
	a.Unit("held.service", a.agentUnit("Type=notify"))
	a.Reload()
	run(t, "systemctl", "start", "held.service")
	a.attachmentFile("held.conf", "[Attachment]\nUnit=held.service\nProfile=former\nSettleSec=1\n")
	if v := waitVerdict(t, "held.service"); v.Answer != attach.Confined {
		t.Fatalf("%+v", v)
	}
	dropIn := "/etc/systemd/system/held.service.d/" + attach.DropInName
	text, sum := read(t, dropIn), checksum(t, "former")
	former := func(what string) {
		t.Helper()
		waitFor(t, what, func() (bool, string) {
			rep, r := report(t, "status", "held")
			s := rep.Units[0]
			return s.Held != nil && s.Held.Former == "former" && !s.Busy && truth(t, "held.service", "former") == "", r.stdout
		})
	}
	a.attachmentFile("held.conf", "[Attachment]\nUnit=held.service\nProfile=wanted\nSettleSec=1\n")
	former("the change to be undone")
	for _, rule := range []string{"/etc/issue r,", "/etc/issue.net r,"} {
		since := mark(t, "held.service")
		a.ProfileFile("wanted", strings.Replace(profileText("wanted", rule), "network inet stream,", "", 1))
		waitSays(t, "held.service", since, "failed and was undone")
		former("the second change to be undone")
	}

	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the drop-in to be back", func() (bool, string) {
		b, _ := os.ReadFile(dropIn)
		return strings.TrimSuffix(string(b), "\n") == text && show(t, "held.service", "NeedDaemonReload") == "no", string(b)
	})
	run(t, "aa-complain", "/etc/apparmor.d/former")
	waitFor(t, "the policy to be back", func() (bool, string) {
		now := checksum(t, "former")
		return now == sum, now
	})
	run(t, "systemctl", "restart", "held.service")
	former("the unit to be as it was after a restart")

	a.ProfileFile("wanted", profileText("wanted"))
	waitFor(t, "the mended change", func() (bool, string) {
		rep, r := report(t, "status", "held")
		return rep.Units[0].Held == nil && !rep.Units[0].Busy && truth(t, "held.service", "wanted") == "", r.stdout
	})
}

// Who changes a profile restarts the service next: that is no fault of the policy, nor
// of an attach.
func TestARestartByHandIsNoFault(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("byhand", profileText("byhand"))
	a.Unit("byhand.service", a.agentUnit("Type=notify"))
	a.Reload()
	run(t, "systemctl", "start", "byhand.service")
	healthy := func(what string) {
		t.Helper()
		waitIdle(t)
		rep, r := report(t, "status", "byhand")
		if s := rep.Units[0]; s.Held != nil || s.Verdict == nil || s.Verdict.Answer != attach.Confined || slices.Contains(codesOf(s.Notes), attach.PolicyUndone) {
			t.Errorf("%s:\n%s", what, r.stdout)
		}
		if lie := truth(t, "byhand.service", "byhand"); lie != "" {
			t.Errorf("%s: %s", what, lie)
		}
	}
	first := show(t, "byhand.service", "InvocationID")
	a.attachmentFile("byhand.conf", "[Attachment]\nUnit=byhand.service\nProfile=byhand\nSettleSec=6\n")
	waitFor(t, "the restart by aaunitd", func() (bool, string) {
		return show(t, "byhand.service", "InvocationID") != first && show(t, "byhand.service", "ActiveState") == "active", ""
	})
	time.Sleep(time.Second)
	run(t, "systemctl", "restart", "byhand.service")
	healthy("a restart during the attach")

	was := checksum(t, "byhand")
	a.ProfileFile("byhand", profileText("byhand", "/etc/issue r,"))
	waitFor(t, "the changed policy", func() (bool, string) { now := checksum(t, "byhand"); return now != was, now })
	changed := checksum(t, "byhand")
	run(t, "systemctl", "restart", "byhand.service")
	healthy("a restart during the trial of a policy")
	if now := checksum(t, "byhand"); now != changed {
		t.Error("the changed policy was undone")
	}
}
