//go:build vm

package guest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// waitConfined waits until the last verdict says confined and is about the
// unit's present start, and what /proc says agrees.
func waitConfined(t testing.TB, unit, profile string) {
	t.Helper()
	waitFor(t, unit+" to be confined", func() (bool, string) {
		rep, r := report(t, "status", unit)
		if len(rep.Units) != 1 || rep.Units[0].Busy || rep.Units[0].Verdict == nil {
			return false, r.stdout
		}
		v := rep.Units[0].Verdict
		lie := truth(t, unit, profile)
		return v.Answer == attach.Confined && v.InvocationID == show(t, unit, "InvocationID") && lie == "", lie + "\n" + r.stdout
	})
}

// waitFree waits until a unit runs, and none of its tasks carries a profile.
func waitFree(t testing.TB, unit string) {
	t.Helper()
	waitFor(t, unit+" to run unconfined", func() (bool, string) {
		tasks := tasksNow(t, unit)
		bound := slices.ContainsFunc(tasks, func(task task) bool { return task.Label != "unconfined" })
		return len(tasks) > 0 && !bound, fmt.Sprintf("%+v", tasks)
	})
}

// starts counts how often the agent came up in a unit since the boot. The agent
// says so each time.
func starts(t testing.TB, unit string) int {
	t.Helper()
	return strings.Count(journalOf(t, unit), "agent: ready")
}

// journalOf is what the journal has on a unit, and what aaunitd says of it.
func journalOf(t testing.TB, unit string) string {
	t.Helper()
	return journalctl(t, "-o", "cat", "-u", unit)
}

// exists reports whether something is at a path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// waitNothingAttached waits until aaunitd has taken back what earlier tests have
// left, for tests of what is said about all units.
func waitNothingAttached(t testing.TB) {
	t.Helper()
	waitFor(t, "aaunitd to have nothing attached", func() (bool, string) {
		rep, r := report(t, "status")
		return len(rep.Units)+len(rep.Patterns)+len(rep.Problems) == 0, r.stdout
	})
}

// TestPatterns attaches units that do not exist yet. Where systemd has a drop-in
// directory for them, a template's or a prefix's, their very first start is
// confined and nobody has to restart them; other patterns are applied when a
// unit appears.
func TestPatterns(t *testing.T) {
	a := newAgents(t)
	const template, prefix, glob = "/etc/systemd/system/g-tpl@.service.d", "/etc/systemd/system/g-pre-.service.d", "/etc/systemd/system/g-glob1.service.d"
	const pair = "/etc/systemd/system/g-pair@.service.d"
	t.Cleanup(func() { os.RemoveAll(prefix) }) // no unit of that name will be stopped
	units := map[string]string{"g-tpl@one.service": "g-tpl-one", "g-tpl@two.service": "g-tpl-two", "g-pre-x.service": "g-pre-x", "g-glob1.service": "g-glob1"}
	// No port: the instances of a template would share it.
	const text = "[Service]\nExecStart=/usr/local/bin/vm-agent -tmp /tmp/vm-%n -helper\n"
	load := []string{"--replace", "--skip-read-cache"}
	for unit, profile := range units {
		load = append(load, a.ProfileFile(profile, profileText(profile)))
		a.Own(unit)
	}
	// As apparmor.service does at boot: which profiles a pattern will need is
	// known only when its units start.
	run(t, "apparmor_parser", load...)
	a.Unit("g-tpl@.service", text)
	a.Reload()

	files := []string{
		a.attachmentFile("g-tpl.conf", "[Attachment]\nUnit=g-tpl@.service\nProfile=g-tpl-%i\nSettleSec=1\n"),
		a.attachmentFile("g-pre.conf", "[Attachment]\nUnit=g-pre-.service\nProfile=%N\nSettleSec=1\n"),
		a.attachmentFile("g-glob.conf", "[Attachment]\nUnit=g-glob*.service\nProfile=%N\nSettleSec=1\n"),
	}
	waitFor(t, "the drop-ins of units to come", func() (bool, string) {
		got := show(t, "g-tpl@one.service", "AppArmorProfile")
		return got == "g-tpl-one" && exists(template+"/90-aaunit.conf") && exists(prefix+"/90-aaunit.conf"), "an instance has the profile " + got
	})
	for file, line := range map[string]string{template + "/90-aaunit.conf": "\nAppArmorProfile=g-tpl-%i\n", prefix + "/90-aaunit.conf": "\nAppArmorProfile=%N\n"} {
		if got := read(t, file) + "\n"; !strings.Contains(got, line) {
			t.Errorf("%s is\n%s", file, got)
		}
	}
	waitFor(t, "the patterns in the status", func() (bool, string) {
		rep, r := report(t, "status")
		ready := 0
		for _, p := range rep.Patterns {
			if p.DropIn != "" && len(p.Refused) == 0 && p.Held == nil {
				ready++
			}
		}
		return len(rep.Patterns) == 2 && ready == 2, r.stdout
	})

	// The first start of each. Then units that are written only now.
	run(t, "systemctl", "start", "g-tpl@one.service", "g-tpl@two.service")
	first := map[string]string{}
	for _, unit := range []string{"g-tpl@one.service", "g-tpl@two.service"} {
		first[unit] = show(t, unit, "InvocationID")
		waitConfined(t, unit, units[unit])
	}
	a.Unit("g-pre-x.service", text)
	a.Unit("g-glob1.service", text)
	a.Reload()
	run(t, "systemctl", "start", "g-pre-x.service", "g-glob1.service")
	first["g-pre-x.service"] = show(t, "g-pre-x.service", "InvocationID")
	for unit, profile := range units {
		waitConfined(t, unit, profile)
	}
	waitIdle(t)
	for unit, id := range first {
		if now := show(t, unit, "InvocationID"); now != id {
			t.Errorf("%s was restarted", unit)
		}
		// Also one that came too soon to be seen above.
		if n := starts(t, unit); n > 1 {
			t.Errorf("%s was started %d times", unit, n)
		}
		if log := journalOf(t, unit); strings.Contains(log, unit+" is not-confined") {
			t.Errorf("a start of %s was not confined:\n%s", unit, log)
		}
	}
	// Where the drop-in came too late, one restart mends it.
	if n := starts(t, "g-glob1.service"); n > 2 {
		t.Errorf("g-glob1.service was started %d times", n)
	}
	if !exists(glob + "/90-aaunit.conf") {
		t.Error("the unit that a glob names has no drop-in of its own")
	}

	// The policy of an instance that has ended is kept, where nobody else has it.
	run(t, "systemctl", "stop", "g-tpl@two.service")
	a.Reload()
	waitIdle(t)
	run(t, "apparmor_parser", "--replace", "--skip-cache", "--Complain", "/etc/apparmor.d/g-tpl-two")
	waitFor(t, "the policy of an ended instance to be put back", func() (bool, string) {
		mode := loadedProfiles(t)["g-tpl-two"]
		return mode == "enforce", "it is in mode " + mode
	})

	// Where somebody has, the instance is forgotten when everything is looked at anew; the
	// drop-in of its template, which confines its next start, is not.
	a.Unit("g-pair@.service", text)
	files = append(files, a.attachmentFile("g-pair.conf", "[Attachment]\nUnit=g-pair@.service\nProfile=g-tpl-two\n"))
	waitFor(t, "the drop-in of another template", func() (bool, string) { return exists(pair + "/90-aaunit.conf"), "" })
	a.Reload()
	waitFor(t, "an ended instance to be forgotten", func() (bool, string) {
		rep, r := report(t, "status")
		listed := slices.ContainsFunc(rep.Units, func(s attach.Status) bool { return s.Unit == "g-tpl@two.service" })
		return !listed && !exists("/var/lib/aaunit/units/g-tpl@two.service.json"), r.stdout
	})
	if !exists(template + "/90-aaunit.conf") {
		t.Error("the template's drop-in went with an instance")
	}
	run(t, "systemctl", "start", "g-tpl@two.service")
	waitConfined(t, "g-tpl@two.service", units["g-tpl@two.service"])

	// All of it is taken back with the files.
	for _, file := range files {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the drop-ins to go", func() (bool, string) {
		return !exists(template) && !exists(prefix) && !exists(glob) && !exists(pair), fmt.Sprint(exists(template), exists(prefix), exists(glob), exists(pair))
	})
	for unit := range units {
		waitFree(t, unit)
		if got := show(t, unit, "AppArmorProfile"); got != "" {
			t.Errorf("%s has AppArmorProfile=%s", unit, got)
		}
	}
	waitNothingAttached(t)
	// What was loaded before, by boot, stays loaded.
	for _, profile := range units {
		if mode := loadedProfiles(t)[profile]; mode != "enforce" {
			t.Errorf("profile %s is %q after the detach", profile, mode)
		}
	}
}
