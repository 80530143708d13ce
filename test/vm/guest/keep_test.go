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

// mark is how much was said about a unit so far, by itself, systemd and aaunitd.
func mark(t testing.TB, unit string) int {
	t.Helper()
	return len(journalOf(t, unit))
}

// saidAbout is what was said about a unit since a moment that mark gave. By a
// cursor it could not be asked: journalctl of systemd 252 leaves out the first
// line after it.
func saidAbout(t testing.TB, unit string, since int) string {
	t.Helper()
	text := journalOf(t, unit)
	if len(text) < since {
		t.Fatalf("the journal of %s had %d bytes and has %d", unit, since, len(text))
	}
	return text[since:]
}

// loadText has the kernel take a text under a profile's name without touching
// the profile's file, as a person might.
func (s *scene) loadText(text string) {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "text")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		s.t.Fatal(err)
	}
	run(s.t, "apparmor_parser", "--replace", "--skip-cache", "--base", "/etc/apparmor.d", file)
}

// waitSays waits until aaunitd has said something about a unit.
func waitSays(t testing.TB, unit string, since int, what string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%q about %s", what, unit), func() (bool, string) {
		text := saidAbout(t, unit, since)
		return strings.Contains(text, what), text
	})
}

// waitKept waits until a unit is confined again under the accepted policy.
func waitKept(t testing.TB, unit, profile, sum string) {
	t.Helper()
	waitFor(t, unit+" to be under the accepted policy", func() (bool, string) {
		if live := checksum(t, profile); live != sum {
			return false, "the kernel has " + live + ", accepted was " + sum
		}
		lie := truth(t, unit, profile)
		return lie == "", lie
	})
	waitFor(t, "the verdict on "+unit, func() (bool, string) {
		rep, r := report(t, "status", unit)
		return len(rep.Units) == 1 && rep.Units[0].Verdict != nil && rep.Units[0].Verdict.Answer == attach.Confined && !rep.Units[0].Busy &&
			rep.Units[0].Verdict.InvocationID == show(t, unit, "InvocationID"), r.stdout
	})
}

// TestWhatOthersDoToThePolicyIsPutBack does to a unit that is attached and
// confined what packages and people do to the policies of AppArmor. Each is
// named and put back, and the files in /etc/apparmor.d are left as they are.
func TestWhatOthersDoToThePolicyIsPutBack(t *testing.T) {
	a := newAgents(t)
	const unit, profile = "kept.service", "kept"
	file := a.ProfileFile(profile, profileText(profile))
	a.Unit(unit, a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", unit)
	if r := ctl(t, "attach", "kept"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	good, sum, started := profileText(profile), checksum(t, profile), show(t, unit, "InvocationID")
	archives, _ := filepath.Glob("/var/lib/aaunit/policy/kept-*.tar")
	if len(archives) != 1 {
		t.Fatalf("the accepted policy is not kept: %v", archives)
	}
	if list := run(t, "tar", "-t", "-f", archives[0]); !strings.Contains(list, "source/etc/apparmor.d/kept") || !strings.Contains(list, "source/etc/apparmor.d/abstractions/base") {
		t.Errorf("what is kept:\n%s", list)
	}
	restarted := func(what string, want bool) {
		t.Helper()
		now := show(t, unit, "InvocationID")
		if (now != started) != want {
			t.Errorf("%s: restarted %v, want %v", what, now != started, want)
		}
		started = now
	}
	notes := func(code attach.Code) {
		t.Helper()
		waitFor(t, string(code)+" in the status", func() (bool, string) {
			rep, r := report(t, "status", unit)
			return slices.Contains(codesOf(rep.Units[0].Notes), code), r.stdout
		})
	}

	since := mark(t, unit)
	a.loadText(strings.Replace(good, "/etc/hostname r,", "/etc/** rw,", 1))
	waitSays(t, unit, since, "somebody replaced profile kept by a text that is not that of "+file)
	waitKept(t, unit, profile, sum)
	waitSays(t, unit, since, "not-confined")
	restarted("another text", false)

	// aa-complain writes the flag and loads the file.
	since = mark(t, unit)
	run(t, "aa-complain", file)
	waitSays(t, unit, since, "somebody put profile kept into complain mode, as "+file+" says now")
	waitKept(t, unit, profile, sum)
	notes(attach.ProfileComplain)
	if text := read(t, file); !strings.Contains(text, "flags=(complain)") {
		t.Errorf("the file was changed:\n%s", text)
	}
	// And so does the next reload of all profiles.
	since = mark(t, unit)
	run(t, "systemctl", "reload", "apparmor")
	waitSays(t, unit, since, "put back the policy of kept.service")
	waitKept(t, unit, profile, sum)
	restarted("complain mode", false)
	a.ProfileFile(profile, good)

	// aa-disable links the file and removes the profile, which unconfines the
	// tasks for good: only a new start helps.
	since = mark(t, unit)
	link := "/etc/apparmor.d/disable/kept"
	t.Cleanup(func() { os.Remove(link) })
	run(t, "aa-disable", file)
	waitSays(t, unit, since, "somebody removed profile kept, which "+link+" disables")
	waitKept(t, unit, profile, sum)
	notes(attach.ProfileDisabled)
	restarted("removed", true)
	os.Remove(link)

	// A package is removed, and its profile with it.
	since = mark(t, unit)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	run(t, "apparmor_parser", "--replace", "--skip-cache", "--quiet", a.ProfileFile("unrelated", profileText("unrelated")))
	notes(attach.ProfileNotFound)
	waitKept(t, unit, profile, sum)
	restarted("the file is gone", false)
	a.loadText(strings.Replace(good, "/etc/hostname r,", "/etc/** rw,", 1))
	waitSays(t, unit, since, "somebody replaced profile kept")
	waitKept(t, unit, profile, sum)

	// The daemon was away, and has nothing but what it kept.
	run(t, "systemctl", "kill", "--signal=KILL", "aaunitd.service")
	a.loadText(strings.Replace(good, "/etc/hostname r,", "/etc/** rw,", 1))
	waitKept(t, unit, profile, sum)
	a.ProfileFile(profile, "profile kept {\n  this is not a rule\n}\n")
	notes(attach.ProfileBroken)
	waitKept(t, unit, profile, sum)
	restarted("while the daemon was away", false)
	a.ProfileFile(profile, good)
}

// A program that the unit starts runs under a profile of a file of its own: that is
// part of what was accepted, and is kept as well.
func TestATargetInAnotherFile(t *testing.T) {
	a := newAgents(t)
	const unit, worker = "pair.service", "pair-worker"
	text := profileText(worker, "/{usr/,}bin/sleep mr,")
	a.ProfileFile("pair", profileText("pair", "/{usr/,}bin/{da,}sh mrix,", "/{usr/,}bin/sleep Px -> "+worker+","))
	file := a.ProfileFile(worker, text)
	a.Unit(unit, "[Service]\nExecStart=/bin/sh -c 'sleep infinity & wait'\n")
	a.Reload()
	run(t, "systemctl", "start", unit)
	a.attachmentFile("pair.conf", "[Attachment]\nUnit="+unit+"\nProfile=pair\nAllowProfiles="+worker+"\nSettleSec=1\n")
	confined := func() {
		t.Helper()
		waitFor(t, "the verdict on "+unit, func() (bool, string) {
			var labels []string
			for _, task := range tasksNow(t, unit) {
				labels = append(labels, task.Label)
			}
			slices.Sort(labels)
			rep, r := report(t, "verify", "pair")
			return r.exit == 0 && !rep.Units[0].Busy && slices.Equal(labels, []string{"pair (enforce)", worker + " (enforce)"}), fmt.Sprint(labels, r.stdout)
		})
	}
	confined()
	sum, started := checksum(t, worker), show(t, unit, "InvocationID")

	since := mark(t, unit)
	a.loadText(strings.Replace(text, "/etc/hostname r,", "/etc/** rw,", 1))
	waitSays(t, unit, since, "somebody replaced profile "+worker+" by a text that is not that of "+file)
	waitFor(t, "the policy to be put back", func() (bool, string) { now := checksum(t, worker); return now == sum, now })
	confined()

	// Its text belongs to the unit's.
	a.ProfileFile(worker, text+"# another text\n"+strings.Replace(profileText(worker+"-more"), "abi <abi/3.0>,\ninclude <tunables/global>\n", "", 1))
	waitFor(t, "the new text", func() (bool, string) { return loadedProfiles(t)[worker+"-more"] != "", "" })
	confined()
	if now := show(t, unit, "InvocationID"); now != started {
		t.Error("it was restarted")
	}

	// Without its profile the program is unconfined, until the unit starts anew.
	since = mark(t, unit)
	run(t, "apparmor_parser", "--remove", "--base", "/etc/apparmor.d", file)
	waitSays(t, unit, since, "not-confined")
	waitSays(t, unit, since, "somebody removed profile "+worker)
	confined()
	if now := show(t, unit, "InvocationID"); now == started {
		t.Error("it was not restarted")
	}
}

// A pass waits as long as a unit settles; what somebody does to another unit's policy
// meanwhile is named at once, and put back when the pass has ended.
func TestPolicyThatChangesDuringAnAttach(t *testing.T) {
	a := newAgents(t)
	for _, name := range []string{"early", "slow"} {
		a.ProfileFile(name, profileText(name))
		a.Unit(name+".service", a.agentUnit())
	}
	a.Reload()
	run(t, "systemctl", "start", "early", "slow")
	if r := ctl(t, "attach", "early"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	sum := checksum(t, "early")
	a.attachmentFile("slow.conf", "[Attachment]\nUnit=slow.service\nProfile=slow\nSettleSec=60\n")
	waitFor(t, "the restart of slow.service", func() (bool, string) { lie := truth(t, "slow.service", "slow"); return lie == "", lie })

	since := mark(t, "early.service")
	a.loadText(strings.Replace(profileText("early"), "/etc/hostname r,", "/etc/** rw,", 1))
	waitSays(t, "early.service", since, "early.service is not-confined")
	rep, r := report(t, "status", "slow")
	if !rep.Units[0].Busy {
		t.Errorf("it was named when the pass had ended:\n%s", r.stdout)
	}
	if r := ctl(t, "status", "early"); r.exit != 3 {
		t.Errorf("status: exit %d\n%s", r.exit, r.stdout)
	}
	waitKept(t, "early.service", "early", sum)
	waitVerdict(t, "slow.service")
}

// TestWhatOthersDoToTheDropInIsPutBack does what people and tools do to the drop-in of
// a unit that runs. It is put back, no link is followed, and what somebody else sets in
// a file of their own is named and left.
func TestWhatOthersDoToTheDropInIsPutBack(t *testing.T) {
	a := newAgents(t)
	const unit = "trampled.service"
	a.ProfileFile("trampled", profileText("trampled"))
	a.Unit(unit, a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", unit)
	if r := ctl(t, "attach", "trampled"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	dropIn, started, hostname := attach.DropInPath(unit, false), show(t, unit, "InvocationID"), read(t, "/etc/hostname")
	good := read(t, dropIn)
	for what, trample := range map[string]func() error{
		"changed":                 func() error { return os.WriteFile(dropIn, []byte(good+"\n[Service]\nAppArmorProfile=\n"), 0o644) },
		"removed":                 func() error { return os.Remove(dropIn) },
		"emptied":                 func() error { return os.Truncate(dropIn, 0) },
		"gone with its directory": func() error { return os.RemoveAll(filepath.Dir(dropIn)) },
	} {
		since := mark(t, unit)
		if err := trample(); err != nil {
			t.Fatal(what, err)
		}
		a.Reload()
		waitSays(t, unit, since, "put back the drop-in of "+unit)
		waitFor(t, "the drop-in, "+what, func() (bool, string) {
			info, err := os.Lstat(dropIn)
			if err != nil {
				return false, err.Error()
			}
			text := read(t, dropIn)
			return info.Mode().IsRegular() && text == good && show(t, unit, "AppArmorProfile") != "", text
		})
		waitIdle(t)
		if r := ctl(t, "verify", "trampled"); r.exit != 0 {
			t.Errorf("%s: exit %d\n%s%s", what, r.exit, r.stdout, r.stderr)
		}
	}
	// A link is not followed and not removed: it is said, until somebody takes it away.
	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/hostname", dropIn); err != nil {
		t.Fatal(err)
	}
	a.Reload()
	waitFor(t, "the link to be named", func() (bool, string) {
		r := ctl(t, "status", unit)
		return r.exit == 3 && strings.Contains(strings.Join(strings.Fields(r.stdout), " "), dropIn+" is a symbolic link"), r.stdout
	})
	if read(t, "/etc/hostname") != hostname {
		t.Error("a link was followed")
	}
	if err := os.Remove(dropIn); err != nil {
		t.Fatal(err)
	}
	a.Reload()
	waitFor(t, "the drop-in in the place of a link", func() (bool, string) {
		text, _ := os.ReadFile(dropIn)
		r := ctl(t, "verify", unit)
		return strings.TrimSuffix(string(text), "\n") == good && r.exit == 0, r.stdout
	})
	if now := show(t, unit, "InvocationID"); now != started {
		t.Error("the unit was restarted")
	}

	const other = "zz-other.conf"
	a.Dropin(unit, other, "[Service]\nAppArmorProfile=\n")
	a.Reload()
	theirs := "/etc/systemd/system/" + unit + ".d/" + other
	waitFor(t, "the override to be named", func() (bool, string) {
		rep, r := report(t, "verify", unit)
		return r.exit == 3 && len(rep.Units) == 1 && slices.Contains(codesOf(rep.Units[0].Verdict.Reasons), attach.DirectiveOverridden) && strings.Contains(r.stdout, theirs), r.stdout
	})
	if _, err := os.Stat(theirs); err != nil {
		t.Errorf("somebody else's file: %v", err)
	}
	if err := os.Remove(theirs); err != nil {
		t.Fatal(err)
	}
	a.Reload()
	waitFor(t, "the end of the override", func() (bool, string) { r := ctl(t, "verify", unit); return r.exit == 0, r.stdout })
}

// TestChangedTexts edits the text of a profile and its include under units that
// run. A good change goes live without a restart; a bad one is taken back.
func TestChangedTexts(t *testing.T) {
	a := newAgents(t)
	profile := func(rules ...string) string {
		return strings.Replace(profileText("text", append(rules, "/usr/bin/{dash,sleep} mrix,", "/dev/tty rw,")...), "/etc/hostname r,", "include if exists <local/text>", 1)
	}
	needs := "/etc/aaunit-needs r,"
	a.ProfileFile("text", profile(needs))
	a.File("/etc/aaunit-needs", "x\n", 0o644)
	a.Unit("t-agent.service", a.agentUnit())
	port := port(a.port)
	// They end as soon as they may not read their file any more.
	const needy = "[Service]\nExecStart=/bin/sh -c 'while read -r x </etc/aaunit-needs; do sleep 0.3; done; exit 3'\n"
	a.Unit("t-needy.service", needy)
	a.Unit("t-always.service", needy+"Restart=always\nRestartSec=100ms\n")
	a.Unit("t-report.service", "[Service]\nExecStart=/bin/sleep infinity\n")
	a.ProfileFile("t-report", profileText("t-report", "/usr/bin/sleep mrix,"))
	a.Reload()
	units := []string{"t-agent.service", "t-needy.service", "t-always.service", "t-report.service"}
	run(t, "systemctl", append([]string{"start"}, units...)...)
	a.attachmentFile("text.conf", "[Attachment]\nUnit=t-agent.service t-needy.service t-always.service\nProfile=text\n")
	a.attachmentFile("report.conf", "[Attachment]\nUnit=t-report.service\nProfile=t-report\nOnProfileChange=report\n")
	started := map[string]string{}
	for _, u := range units {
		if v := waitVerdict(t, u); v.Answer != attach.Confined {
			t.Fatalf("%+v", v)
		}
		started[u] = show(t, u, "InvocationID")
	}
	sum := checksum(t, "text")
	if got := ask(t, port, "read /etc/hostname"); !strings.HasPrefix(got, "error ") {
		t.Fatalf("before the change: %s", got)
	}

	// An editor's file and a package's mean nothing; the include does.
	since := mark(t, "t-agent.service")
	for _, name := range []string{".text.swp", "text.dpkg-new", "text~"} {
		a.File("/etc/apparmor.d/local/"+name, "/etc/** rw,\n", 0o644)
	}
	a.File("/etc/apparmor.d/local/text", "/etc/hostname r,\n", 0o644)
	waitFor(t, "the changed include to be live", func() (bool, string) {
		got := ask(t, port, "read /etc/hostname")
		return strings.HasPrefix(got, "ok "), got
	})
	waitIdle(t)
	if got := ask(t, port, "read /etc/shadow"); !strings.HasPrefix(got, "error ") {
		t.Errorf("what an editor left behind was loaded: %s", got)
	}
	for _, u := range units {
		if now := show(t, u, "InvocationID"); now != started[u] {
			t.Errorf("%s was restarted by a change of an include", u)
		}
	}
	second := checksum(t, "text")
	if second == sum {
		t.Error("the changed policy has the same checksum")
	}
	if strings.Contains(saidAbout(t, "t-agent.service", since), "not-confined") {
		t.Errorf("a change that was accepted raised an alarm:\n%s", saidAbout(t, "t-agent.service", since))
	}

	// A change that takes away what was allowed is taken back once that is asked for. What
	// was not allowed before either speaks against no change.
	since = mark(t, "t-agent.service")
	a.File("/etc/apparmor.d/local/text", "/etc/issue r,\n", 0o644)
	waitFor(t, "the changed include to be live", func() (bool, string) {
		got := ask(t, port, "read /etc/issue")
		return strings.HasPrefix(got, "ok "), got
	})
	ask(t, port, "read /etc/gshadow")
	ask(t, port, "read /etc/hostname")
	waitSays(t, "t-agent.service", since, "was denied what it was not denied under the accepted one: open /etc/hostname (r) denied")
	waitKept(t, "t-agent.service", "text", second)
	a.File("/etc/apparmor.d/local/text", "/etc/hostname r,\n", 0o644)
	waitFor(t, "the hold to end", func() (bool, string) {
		rep, r := report(t, "status", "t-agent")
		return rep.Units[0].Held == nil && !rep.Units[0].Busy, r.stdout
	})

	// A change that two units cannot live with: taken back for all three.
	since = mark(t, "t-agent.service")
	a.ProfileFile("text", profile())
	waitFor(t, "the change to be undone", func() (bool, string) {
		rep, r := report(t, "status", units[0], units[1], units[2])
		return len(rep.Units) == 3 && !slices.ContainsFunc(rep.Units, func(u attach.Status) bool {
			return u.Held == nil || u.Busy || u.Verdict == nil || u.Verdict.Answer != attach.Confined || u.ActiveState != "active"
		}), r.stdout
	})
	waitSays(t, "t-agent.service", since, "the changed policy of t-agent.service was undone: under the changed policy t-")
	if got := checksum(t, "text"); got != second {
		t.Errorf("the kernel has %s, before the change it had %s", got, second)
	}
	for _, u := range units[:3] {
		waitFor(t, u+" to be confined", func() (bool, string) { lie := truth(t, u, "text"); return lie == "", lie })
	}
	if now := show(t, units[0], "InvocationID"); now != started[units[0]] {
		t.Error("the agent was restarted, which lived with the change")
	}
	r := ctl(t, "status", "t-agent")
	if r.exit != 0 || !strings.Contains(r.stdout, "held") {
		t.Errorf("status of a unit whose changed text is held: exit %d\n%s", r.exit, r.stdout)
	}
	// Neither a reload of all profiles nor a restart of the daemon lets it in.
	run(t, "systemctl", "reload", "apparmor")
	waitKept(t, "t-agent.service", "text", second)
	run(t, "systemctl", "restart", "aaunitd.service")
	waitIdle(t)
	waitKept(t, "t-agent.service", "text", second)
	// The reload may have cost them their lives for the moment that it held.
	run(t, "systemctl", "start", "t-needy.service", "t-always.service")
	waitKept(t, "t-needy.service", "text", second)

	// Another text ends the hold.
	a.ProfileFile("text", profile(needs, "/etc/machine-id r,"))
	waitFor(t, "the mended text to be live", func() (bool, string) {
		got := ask(t, port, "read /etc/machine-id")
		return strings.HasPrefix(got, "ok "), got
	})
	waitFor(t, "the hold to end", func() (bool, string) {
		rep, r := report(t, "status", units[0], units[1], units[2])
		return !slices.ContainsFunc(rep.Units, func(u attach.Status) bool {
			return u.Held != nil || u.Busy || u.Verdict == nil || u.Verdict.Answer != attach.Confined
		}), r.stdout
	})

	// What is only to be reported waits for a person.
	reported := checksum(t, "t-report")
	a.ProfileFile("t-report", profileText("t-report", "/usr/bin/sleep mrix,", "/etc/machine-id r,"))
	waitFor(t, "the report", func() (bool, string) {
		rep, r := report(t, "status", "t-report.service")
		return slices.Contains(codesOf(rep.Units[0].Notes), attach.PolicyChanged), r.stdout
	})
	waitKept(t, "t-report.service", "t-report", reported)
	run(t, "apparmor_parser", "--replace", "--skip-cache", "/etc/apparmor.d/t-report")
	waitKept(t, "t-report.service", "t-report", reported)
	out, r := outcomes(t, "attach", "t-report")
	if r.exit != 0 || out["t-report.service"].Restarted || checksum(t, "t-report") == reported {
		t.Errorf("attach after a report: exit %d\n%s", r.exit, r.stdout)
	}
	if now := show(t, "t-report.service", "InvocationID"); now != started["t-report.service"] {
		t.Error("a changed text has restarted the unit")
	}
}
