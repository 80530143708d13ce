//go:build vm && long

package guest

import (
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// TestPause: an administrator changes what belongs to two units that share a
// profile, on purpose. Nothing is put back and the verdict is the truth, until
// one pause is ended by hand and the other runs out.
func TestPause(t *testing.T) {
	a := newAgents(t)
	profile := a.ProfileFile("pausee", profileText("pausee"))
	units := []string{"pause-a.service", "pause-b.service"}
	for _, u := range units {
		a.Unit(u, a.agentUnit())
	}
	a.Reload()
	run(t, "systemctl", append([]string{"start"}, units...)...)
	t.Cleanup(func() { try0("aaunitctl", "resume", "pause-a", "pause-b") })
	a.attachmentFile("pause.conf", "[Attachment]\nUnit=pause-a.service pause-b.service\nProfile=pausee\nOnViolation=stop\nSettleSec=1\n")
	for _, u := range units {
		waitFor(t, "the attach of "+u, func() (bool, string) { lie := truth(t, u, "pausee"); return lie == "", lie })
		waitVerdict(t, u)
	}

	for _, c := range [][]string{{"pause", "pause-a"}, {"resume", "pause-a"}} {
		r := try(t, "runuser", append([]string{"-u", "nobody", "--", "aaunitctl"}, c...)...)
		if text := r.stdout + r.stderr; r.exit != 1 || !strings.Contains(text, "org.aaunit1.manage") {
			t.Errorf("%s by nobody: exit %d\n%s", c[0], r.exit, text)
		}
	}
	if r := ctl(t, "pause", "no-such-unit"); r.exit != 4 {
		t.Errorf("pause of no unit: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "resume", "pause-a"); r.exit != 0 || !strings.Contains(r.stdout, "not paused") {
		t.Errorf("resume of what is not paused: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// One of the two: the policy is kept for the other.
	out, r := outcomes(t, "pause", "pause-a", "--for", "2h")
	if o := out["pause-a.service"]; r.exit != 0 || o.Paused == nil || o.Paused.By != "root" ||
		!slices.ContainsFunc(o.Notes, func(n attach.Reason) bool {
			return n.Code == attach.PolicyKept && strings.Contains(n.Detail, "pause-b.service")
		}) {
		t.Errorf("pause: exit %d\n%s", r.exit, r.stdout)
	}
	run(t, "apparmor_parser", "--replace", "--skip-cache", "--Complain", profile)
	waitFor(t, "the policy to be put back for the other unit", func() (bool, string) {
		mode := loadedProfiles(t)["pausee"]
		return mode == "enforce", mode
	})

	// Both: nothing is.
	if out, r := outcomes(t, "pause", "pause-b"); r.exit != 0 || len(out["pause-b.service"].Notes) != 0 {
		t.Errorf("pause of the other: exit %d\n%s", r.exit, r.stdout)
	}
	const trampled = "[Service]\nAppArmorProfile=\n"
	dropIn := func(unit string) string { return attach.DropInPath(unit, false) }
	for _, u := range units {
		if err := os.WriteFile(dropIn(u), []byte(trampled), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	a.ProfileFile("pausee", profileText("pausee", "/etc/issue r,"))
	run(t, "apparmor_parser", "--replace", "--skip-cache", "--Complain", profile)
	a.Reload()
	run(t, "systemctl", append([]string{"restart"}, units...)...)
	leftAlone := func(when string) {
		t.Helper()
		for _, u := range units {
			if v := waitVerdict(t, u); v.Answer != attach.NotConfined || !slices.Contains(codesOf(v.Reasons), attach.TaskUnconfined) {
				t.Errorf("%s: the verdict on %s: %+v", when, u, v)
			}
			if n := unconfined(t, u); n == 0 || read(t, dropIn(u)) != strings.TrimSuffix(trampled, "\n") {
				t.Errorf("%s: %s: %d tasks unconfined, the drop-in reads %q", when, u, n, read(t, dropIn(u)))
			}
		}
		if mode := loadedProfiles(t)["pausee"]; mode != "complain" {
			t.Errorf("%s: the policy was put back (%s)", when, mode)
		}
	}
	leftAlone("in the pause")
	waitIdle(t)
	leftAlone("when aaunitd has done what it had to do")
	run(t, "systemctl", "kill", "--signal=KILL", "aaunitd.service")
	waitFor(t, "aaunitd after it was killed", func() (bool, string) {
		rep, r := report(t, "status", "pause-*")
		return r.exit == 3 && len(rep.Units) == 2, r.stdout + r.stderr
	})
	waitIdle(t)
	leftAlone("after aaunitd was killed")

	rep, r := report(t, "verify", "pause-*")
	if r.exit != 3 || len(rep.Units) != 2 {
		t.Fatalf("verify: exit %d\n%s", r.exit, r.stdout)
	}
	for _, s := range rep.Units {
		if s.Paused == nil || s.Paused.By != "root" || time.Until(s.Paused.Until) <= 0 || s.Verdict.Answer != attach.NotConfined {
			t.Errorf("verify tells %+v", s)
		}
	}
	for _, command := range []string{"status", "list", "explain"} {
		args := []string{command, "pause-a"}
		if command == "list" {
			args = args[:1]
		}
		if r := ctl(t, args...); !strings.Contains(r.stdout, "until "+rep.Units[0].Paused.Until.Local().Format("2006-01-02 15:04:05")) || !strings.Contains(r.stdout, "by root") {
			t.Errorf("%s does not tell of the pause:\n%s", command, r.stdout)
		}
	}
	if got := run(t, "busctl", "get-property", "org.aaunit1", "/org/aaunit1/unit/pause_2da_2eservice", "org.aaunit1.Attachment", "PausedUntil"); !strings.HasPrefix(got, "t 1") {
		t.Errorf("PausedUntil is %q", got)
	}
	for _, command := range []string{"attach", "detach", "plan"} {
		out, r := outcomes(t, command, "pause-a")
		if o := out["pause-a.service"]; r.exit != 1 || !slices.Contains(codesOf(o.Reasons), attach.Paused) || o.Reasons[0].Next != "aaunitctl resume pause-a.service" {
			t.Errorf("%s: exit %d\n%s", command, r.exit, r.stdout)
		}
	}

	// By hand for one, and by itself for the other.
	mended := func(unit string) func() (bool, string) {
		return func() (bool, string) {
			rep, r := report(t, "status", unit)
			lie := truth(t, unit, "pausee")
			return lie == "" && len(rep.Units) == 1 && r.exit == 0 && rep.Units[0].Paused == nil && strings.Contains(read(t, dropIn(unit)), "AppArmorProfile=pausee"), lie + "\n" + r.stdout
		}
	}
	if r := ctl(t, "resume", "pause-a"); r.exit != 0 {
		t.Errorf("resume: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	waitFor(t, "what was changed to be put back by a resume", mended("pause-a.service"))
	if n := unconfined(t, "pause-b.service"); n == 0 || read(t, dropIn("pause-b.service")) != strings.TrimSuffix(trampled, "\n") {
		t.Error("the resume of one has ended the pause of the other")
	}
	if r := ctl(t, "pause", "pause-b", "--for", "20s"); r.exit != 0 {
		t.Errorf("a second pause: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if n := unconfined(t, "pause-b.service"); n == 0 {
		t.Error("the second pause has ended the first and not begun")
	}
	waitFor(t, "what was changed to be put back when the time is over", mended("pause-b.service"))
	for unit, ids := range map[string][]journal.MessageID{"pause-a.service": {journal.MsgPaused, journal.MsgResumed}, "pause-b.service": {journal.MsgPaused, journal.MsgPauseOver}} {
		for _, id := range ids {
			waitFor(t, "the journal of "+unit, func() (bool, string) {
				text := journalctl(t, "-u", unit, "MESSAGE_ID="+string(id), "AAUNIT_BY=root", "-o", "cat")
				return strings.Contains(text, unit), string(id) + ": " + text
			})
		}
	}
}
