//go:build vm

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// socketsFile is an attachment with the lines of a [SocketOptions] section; the agent
// listens, for which Go's library sets two options.
func socketsFile(unit, profile string, lines ...string) string {
	return fmt.Sprintf("[Attachment]\nUnit=%s\nProfile=%s\nSettleSec=1\n[SocketOptions]\n", unit, profile) +
		"Allow=SOL_SOCKET:SO_REUSEADDR a restart binds again\nAllow=SO_BROADCAST the library sets it\n" + strings.Join(lines, "\n") + "\n"
}

// TestSocketOptions: an agent is attached in mode record, is switched to enforce
// without a restart, keeps being held from the first start on, and is free when it is
// detached. What is taken off by hand is told and put back.
func TestSocketOptions(t *testing.T) {
	a := newAgents(t)
	const unit = "sockopts-vm.service"
	a.Profile("sockoptsvm", profileText("sockoptsvm"))
	a.Unit(unit, a.agentUnit())
	address := port(a.port)
	a.Reload()
	run(t, "systemctl", "start", unit)
	set := func(option string) string { t.Helper(); return ask(t, address, "setsockopt "+option+" 1") }

	a.attachmentFile("sockopts-vm.conf", socketsFile(unit, "sockoptsvm", "Mode=record"))
	dropIn := attach.DropInPath(unit, false)
	waitFor(t, "the attach", func() (bool, string) { lie := truth(t, unit, "sockoptsvm"); return lie == "", lie })
	if v := waitVerdict(t, unit); v.Answer != attach.Confined || len(v.Reasons) > 0 {
		t.Fatalf("in mode record: %+v", v)
	}
	if !strings.Contains(read(t, dropIn), attach.SocketStartLine(false)) {
		t.Errorf("the drop-in reads\n%s", read(t, dropIn))
	}
	for _, option := range []string{"6 1", "1 9"} {
		if got := set(option); got != "ok" && !strings.HasPrefix(got, "ok ") {
			t.Errorf("mode record: option %s: %s", option, got)
		}
	}
	invocation := show(t, unit, "InvocationID")

	a.attachmentFile("sockopts-vm.conf", socketsFile(unit, "sockoptsvm", "Mode=enforce", "Allow=IPPROTO_TCP:TCP_NODELAY small answers at once"))
	held := func(when string) {
		t.Helper()
		waitFor(t, "the list to hold "+when, func() (bool, string) {
			refused, allowed := set("1 9"), set("6 1")
			return strings.Contains(refused, "operation not permitted") && strings.HasPrefix(allowed, "ok"), refused + "; " + allowed
		})
	}
	held("after the switch")
	waitIdle(t)
	if now := show(t, unit, "InvocationID"); now != invocation {
		t.Errorf("the switch to enforce restarted the unit")
	}
	if v := waitVerdict(t, unit); v.Answer != attach.Confined || len(v.Reasons) > 0 {
		t.Errorf("in mode enforce: %+v", v)
	}
	if !strings.Contains(read(t, dropIn), attach.SocketStartLine(true)) {
		t.Errorf("the drop-in reads\n%s", read(t, dropIn))
	}

	// The next start, with nobody but the helper to see to it.
	run(t, "systemctl", "stop", "aaunitd.service")
	run(t, "systemctl", "restart", unit)
	held("at a start without aaunitd")
	run(t, "systemctl", "start", "aaunitd.service")
	waitIdle(t)
	if v := waitVerdict(t, unit); v.Answer != attach.Confined {
		t.Errorf("after a start: %+v", v)
	}

	// Taken off by hand: told, and put back.
	if _, err := os.Stat(pins(unit)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(pins(unit)); err != nil {
		t.Fatal(err)
	}
	if got := set("1 9"); !strings.HasPrefix(got, "ok") {
		t.Fatalf("without its pins it is still refused: %s", got)
	}
	rep, r := report(t, "verify", unit)
	if r.exit != 3 || len(rep.Units) != 1 || !slices.Contains(codesOf(rep.Units[0].Verdict.Reasons), attach.SocketsNotHeld) {
		t.Errorf("verify: exit %d\n%s", r.exit, r.stdout)
	}
	held("after it was put back")

	// A helper that fails: the start too, unless it is not required.
	rules := filepath.Join("/var/lib/aaunit/sockopts", unit+".json")
	kept := read(t, rules)
	run(t, "systemctl", "stop", "aaunitd.service")
	if err := os.WriteFile(rules, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "stop", unit)
	if r := try(t, "systemctl", "start", unit); r.exit == 0 {
		t.Error("a unit that requires its socket options starts without the rules")
	}
	run(t, "systemctl", "stop", unit)
	if err := os.WriteFile(rules, []byte(kept), 0o600); err != nil {
		t.Fatal(err)
	}
	try(t, "systemctl", "reset-failed", unit) // fails where it is not loaded any more
	run(t, "systemctl", "start", unit)
	run(t, "systemctl", "start", "aaunitd.service")
	a.attachmentFile("sockopts-vm.conf", socketsFile(unit, "sockoptsvm", "Mode=enforce", "Required=no"))
	waitFor(t, "the line that is not required", func() (bool, string) {
		text := read(t, dropIn)
		return strings.Contains(text, attach.SocketStartLine(false)), text
	})
	waitIdle(t)
	run(t, "systemctl", "stop", "aaunitd.service")
	if err := os.WriteFile(rules, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "restart", unit)
	if got := set("1 9"); !strings.HasPrefix(got, "ok") {
		t.Errorf("not required, and without rules: %s", got)
	}
	run(t, "systemctl", "start", "aaunitd.service")

	// The end leaves nothing.
	if err := os.Remove(filepath.Join(attachmentDir, "sockopts-vm.conf")); err != nil {
		t.Fatal(err)
	}
	a.waitDetached()
	for _, path := range []string{dropIn, rules, pins(unit)} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("a detach leaves %s (%v)", path, err)
		}
	}
}
