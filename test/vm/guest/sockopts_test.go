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

// noBPF keeps a unit that runs as root from changing the list that holds it.
const noBPF = "SystemCallFilter=~bpf"

// TestSocketOptions: an agent is attached in mode record, is switched to enforce
// without a restart, keeps being held from the first start on, and is free when it is
// detached. What is taken off by hand is told and put back.
func TestSocketOptions(t *testing.T) {
	a := newAgents(t)
	const unit = "sockopts-vm.service"
	a.Profile("sockoptsvm", profileText("sockoptsvm"))
	a.Unit(unit, a.agentUnit(noBPF))
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

	// What is refused and what is allowed is told in words.
	for command, wants := range map[string][]string{
		"explain": {"SO_KEEPALIVE was refused", "aaunitctl sockopts approve " + unit + " SOL_SOCKET:SO_KEEPALIVE"},
		"check":   {"come as control messages beside data", "made in another unit", "SO_PEERPIDFD", "SystemCallArchitectures=native"},
	} {
		r := ctl(t, command, unit)
		for _, want := range wants {
			if text := strings.Join(strings.Fields(r.stdout), " "); !strings.Contains(text, want) {
				t.Errorf("%s does not say %q:\n%s%s", command, want, r.stdout, r.stderr)
			}
		}
	}
	waitFor(t, "the metrics", func() (bool, string) {
		text := ctl(t, "metrics").stdout
		return strings.Contains(text, `aaunit_unit_socket_list_stale{unit="`+unit+`"} 0`) && strings.Contains(text, `aaunit_unit_socket_options_refused_total{unit="`+unit+`"} `) &&
			!strings.Contains(text, `aaunit_unit_socket_options_refused_total{unit="`+unit+`"} 0`), text
	})
	if r := ctl(t, "report", "--json"); !strings.Contains(r.stdout, "small answers at once") {
		t.Errorf("the report has not the reason for TCP_NODELAY:\n%s", r.stdout)
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

// TestSocketOptionsOfASocketUnit: the .socket unit that starts an attached unit is held
// by aaunitd, by the start helper where aaunitd is away, and is free after the detach.
func TestSocketOptionsOfASocketUnit(t *testing.T) {
	a := newAgents(t)
	const unit, socket = "sockopts-on.service", "sockopts-on.socket"
	a.Profile("sockoptson", profileText("sockoptson"))
	a.Unit(unit, a.agentUnit(noBPF))
	a.Unit(socket, "[Socket]\nListenStream=/run/sockopts-on.sock\n")
	a.Reload()
	t.Cleanup(func() { try0("systemctl", "stop", socket) })
	run(t, "systemctl", "start", socket, unit)
	a.attachmentFile("sockopts-on.conf", socketsFile(unit, "sockoptson", "Mode=enforce"))
	dropIn := attach.DropInPath(socket, false)
	// systemd made this one's socket itself, before anything was to be run for it.
	waitFor(t, "it to be said of the .socket unit", func() (bool, string) {
		rep, r := report(t, "verify", unit)
		if len(rep.Units) != 1 || rep.Units[0].Verdict == nil {
			return false, r.stdout
		}
		v := rep.Units[0].Verdict
		return r.exit == 5 && v.Answer == attach.Unknown && len(v.Reasons) == 1 && v.Reasons[0].Code == attach.SocketsUnknown && v.Reasons[0].Next == "systemctl restart "+socket, r.stdout
	})
	waitIdle(t)
	run(t, "systemctl", "stop", unit)
	run(t, "systemctl", "restart", socket)
	run(t, "systemctl", "start", unit)
	held := func(when string) {
		t.Helper()
		waitFor(t, socket+" to be held "+when, func() (bool, string) {
			rep, r := report(t, "verify", unit)
			_, err := os.Stat(pins(socket) + "/seen")
			return r.exit == 0 && len(rep.Units) == 1 && rep.Units[0].Verdict.Answer == attach.Confined && len(rep.Units[0].Verdict.Reasons) == 0 && err == nil, r.stdout
		})
	}
	held("after the attach")
	if text := read(t, dropIn); !strings.Contains(text, "[Socket]\n"+attach.SocketStartLine(true)) {
		t.Errorf("%s reads\n%s", dropIn, text)
	}
	waitIdle(t)

	run(t, "systemctl", "stop", "aaunitd.service")
	if err := os.RemoveAll(pins(socket)); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "stop", unit)
	run(t, "systemctl", "restart", socket)
	run(t, "systemctl", "start", unit)
	if _, err := os.Stat(pins(socket) + "/seen"); err != nil {
		t.Errorf("a start without aaunitd: %v", err)
	}
	run(t, "systemctl", "start", "aaunitd.service")
	held("after a start without aaunitd")

	// Taken off by hand: verify says so.
	if err := os.RemoveAll(pins(socket)); err != nil {
		t.Fatal(err)
	}
	if rep, r := report(t, "verify", unit); r.exit != 3 || !slices.Contains(codesOf(rep.Units[0].Verdict.Reasons), attach.SocketsNotHeld) {
		t.Errorf("verify: exit %d\n%s", r.exit, r.stdout)
	}
	held("after it was put back")

	if err := os.Remove(filepath.Join(attachmentDir, "sockopts-on.conf")); err != nil {
		t.Fatal(err)
	}
	a.waitDetached()
	for _, path := range []string{dropIn, pins(socket), pins(unit)} {
		if _, err := os.Lstat(path); !os.IsNotExist(err) {
			t.Errorf("a detach leaves %s (%v)", path, err)
		}
	}
}

// TestSocketOptionsThatCannotBeHeld: without a BPF file system a unit that requires its
// socket options does not start, and one that does not require them starts and is
// unknown, or confined where it is to be recorded only. A unit that may change its own
// list is neither.
func TestSocketOptionsThatCannotBeHeld(t *testing.T) {
	a := newAgents(t)
	const unit = "sockopts-no.service"
	a.Profile("sockoptsno", profileText("sockoptsno"))
	a.Unit(unit, a.agentUnit(noBPF))
	a.Reload()
	run(t, "systemctl", "start", unit)
	a.attachmentFile("sockopts-no.conf", socketsFile(unit, "sockoptsno", "Mode=enforce"))
	verdict := func(want attach.Answer, code attach.Code) {
		t.Helper()
		waitFor(t, "the verdict", func() (bool, string) {
			rep, r := report(t, "verify", unit)
			if len(rep.Units) != 1 || rep.Units[0].Verdict == nil {
				return false, r.stdout
			}
			v := rep.Units[0].Verdict
			return v.Answer == want && (code == "" && len(v.Reasons) == 0 || slices.Contains(codesOf(v.Reasons), code)), r.stdout
		})
	}
	verdict(attach.Confined, "")
	waitIdle(t)

	run(t, "mount", "-t", "tmpfs", "tmpfs", "/sys/fs/bpf")
	mounted := true
	unmount := func() {
		if mounted {
			mounted = false
			run(t, "umount", "/sys/fs/bpf")
		}
	}
	t.Cleanup(unmount)
	verdict(attach.Unknown, attach.SocketsUnknown)
	since := mark(t, unit)
	if r := try(t, "systemctl", "restart", unit); r.exit == 0 {
		t.Error("a unit that requires its socket options starts without a BPF file system")
	}
	waitSays(t, unit, since, "there is no BPF file system")
	a.attachmentFile("sockopts-no.conf", socketsFile(unit, "sockoptsno", "Mode=enforce", "Required=no"))
	waitFor(t, "the line that is not required", func() (bool, string) {
		text := read(t, attach.DropInPath(unit, false))
		return strings.Contains(text, attach.SocketStartLine(false)), text
	})
	waitIdle(t)
	try(t, "systemctl", "reset-failed", unit)
	run(t, "systemctl", "restart", unit)
	verdict(attach.Unknown, attach.SocketsUnknown)
	a.attachmentFile("sockopts-no.conf", socketsFile(unit, "sockoptsno", "Mode=record"))
	verdict(attach.Confined, attach.SocketsNote)
	unmount()

	// One that could change its own list.
	a.attachmentFile("sockopts-no.conf", socketsFile(unit, "sockoptsno", "Mode=enforce"))
	verdict(attach.Confined, "")
	a.ProfileFile("sockoptsno", strings.Replace(profileText("sockoptsno"), "}\n", "  capability sys_admin,\n}\n", 1))
	verdict(attach.Unknown, attach.SocketsOpen)
	if r := ctl(t, "verify", unit); r.exit != 5 {
		t.Errorf("a unit that can change its own list: exit %d\n%s", r.exit, r.stdout)
	}
	a.ProfileFile("sockoptsno", profileText("sockoptsno"))
	verdict(attach.Confined, "")
	a.Dropin(unit, "bpf.conf", "[Service]\nSystemCallFilter=\n")
	a.Reload()
	verdict(attach.Unknown, attach.SocketsOpen)
}
