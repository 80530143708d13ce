//go:build vm && long

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// peak is the memory of the daemon and its children, the most there was.
func peak(t testing.TB) int {
	t.Helper()
	n, err := strconv.Atoi(read(t, filepath.Join("/sys/fs/cgroup", show(t, "aaunitd.service", "ControlGroup"), "memory.peak")))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// rounds counts the daemon's passes by what they cost: how often systemd read its
// files again.
func rounds(t testing.TB) int {
	t.Helper()
	return strings.Count(journalctl(t, "-o", "cat", "_PID=1"), "Reloading")
}

// TestAStormOfTriggers: ten thousand triggers cost a few passes.
func TestAStormOfTriggers(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"e-one", "e-two"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	onePort := a.port - 1
	a.Unit("e-short.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n")
	a.Reload()
	run(t, "systemctl", "start", "e-one", "e-two")
	if r := ctl(t, "attach", "e-one", "e-two"); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	waitIdle(t)
	p := watchParser(t, "")
	// The counter in the parser's place makes every policy a new one; that is
	// over before the storm.
	a.ProfileFile("e-one", profileText("e-one", "# before\n"))
	waitFor(t, "the parser to be known", func() (bool, string) { _, n := p.count(); return n > 0, "" })
	waitIdle(t)
	compiledBefore, before := p.count()
	first := show(t, "e-one.service", "InvocationID")

	one := profileText("e-one", "# before\n")
	attachment := "[Attachment]\nUnit=e-none.service\nProfile=e-none\n"
	for i := range 10_000 {
		switch i % 4 {
		case 0: // the same text again
			if err := os.WriteFile("/etc/apparmor.d/e-one", []byte(one), 0o644); err != nil {
				t.Fatal(err)
			}
		case 1: // a file that comes and goes
			os.WriteFile("/etc/apparmor.d/e-passing", []byte("profile e-passing { }\n"), 0o644)
			os.Remove("/etc/apparmor.d/e-passing")
		case 2:
			os.WriteFile(attachmentDir+"/e-none.conf", []byte(attachment), 0o644)
		case 3:
			os.Remove(attachmentDir + "/e-none.conf")
		}
		if i%2500 == 0 { // signals of units: asking loads one, and it is dropped again
			for k := range 100 {
				try0("busctl", "--quiet", "call", "org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "LoadUnit", "s", fmt.Sprintf("e-%d.service", k))
			}
			run(t, "systemctl", "start", "e-short.service")
			run(t, "systemctl", "daemon-reload")
		}
	}
	a.ProfileFile("e-one", profileText("e-one", "/etc/issue r,"))
	waitFor(t, "the last text", func() (bool, string) {
		got := ask(t, port(onePort), "read /etc/issue")
		return strings.HasPrefix(got, "ok"), got
	})
	waitIdle(t)
	compiled, all := p.count()
	t.Logf("%d runs of the parser, %d of them to compile; the daemon's memory was at most %d MiB", all-before, compiled-compiledBefore, peak(t)>>20)
	// One for each text, and again for its names, would do; each of the passes that
	// a storm of this length may take can meet the passing file.
	if all-before > 100 {
		t.Errorf("the parser ran %d times", all-before)
	}
	if peak(t) > 512<<20 {
		t.Errorf("the daemon took %d MiB", peak(t)>>20)
	}
	if r := ctl(t, "verify", "e-one", "e-two"); r.exit != 0 || truth(t, "e-one.service", "e-one") != "" || truth(t, "e-two.service", "e-two") != "" {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if id := show(t, "e-one.service", "InvocationID"); id != first {
		t.Error("the storm has restarted a unit")
	}
}

// TestAThousandFiles: a thousand attachments come at once, and ten are bad.
func TestAThousandFiles(t *testing.T) {
	a := newAgents(t)
	const many = 1000
	a.ProfileFile("m-all", profileText("m-all", "/usr/bin/sleep mrix,"))
	staged := t.TempDir()
	bad := map[string]string{}
	var good []string
	for i := range many {
		unit := fmt.Sprintf("m-%04d.service", i)
		a.Unit(unit, "[Service]\nExecStart=/bin/sleep 1000\n")
		text := "[Attachment]\nUnit=" + unit + "\nProfile=m-all\n"
		if i%100 == 50 {
			text = "[Attachment]\nUnit=" + unit + "\nProfil=m-all\n"
			bad[filepath.Join(attachmentDir, unit+".conf")] = unit
		} else {
			good = append(good, unit)
		}
		if err := os.WriteFile(filepath.Join(staged, unit+".conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a.Reload()
	p := watchParser(t, "")
	reloads := rounds(t)
	run(t, "sh", "-c", "cp "+staged+"/*.conf "+attachmentDir+"/")
	t.Cleanup(func() { try0("sh", "-c", "rm -f "+attachmentDir+"/m-*.conf") })

	dropIn := func(unit string) string { return "/etc/systemd/system/" + unit + ".d/90-aaunit.conf" }
	count := func() (n int) {
		for _, u := range good {
			if exists(dropIn(u)) {
				n++
			}
		}
		return n
	}
	// A guest that takes seconds to copy them sees them come in two parts, and
	// each part is a pass.
	last, begun := -1, time.Now()
	for at := time.Now(); last < len(good); time.Sleep(time.Second) {
		if n := count(); n != last {
			last, at = n, time.Now()
			t.Logf("%d drop-ins after %v", n, time.Since(begun).Round(time.Second))
		}
		if time.Since(at) > 4*patience {
			t.Fatalf("it stays at %d of %d drop-ins", last, len(good))
		}
	}
	waitFor(t, "systemd to know them all", func() (bool, string) {
		return show(t, good[0], "AppArmorProfile") == "m-all" && show(t, good[len(good)-1], "AppArmorProfile") == "m-all", ""
	})
	waitIdle(t)
	compiled, all := p.count()
	t.Logf("%d runs of the parser, %d to compile; %d daemon-reloads; at most %d MiB", all, compiled, rounds(t)-reloads, peak(t)>>20)
	if n := rounds(t) - reloads; n > 3 {
		t.Errorf("%d daemon-reloads", n)
	}
	if all > 4 {
		t.Errorf("the parser ran %d times for one profile", all)
	}
	rep, _ := report(t, "status")
	for file, unit := range bad {
		if !slices.ContainsFunc(rep.Problems, func(p attach.Reason) bool { return p.Where == file+":3" }) {
			t.Errorf("%s is not named with its line", file)
		}
		if exists(dropIn(unit)) {
			t.Errorf("%s has a drop-in", unit)
		}
	}
	run(t, "systemctl", "start", good[7])
	if v := waitVerdict(t, good[7]); v.Answer != attach.Confined {
		t.Errorf("%+v", v)
	}
	for _, task := range unitTasks(t, good[7]) {
		if task.Label != "m-all (enforce)" {
			t.Errorf("%+v", task)
		}
	}
}
