//go:build vm && long

package guest

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// countParsers puts a parser before the real one that keeps a list of its runs,
// where aaunitd's sandbox lets it write, and gives how many there were since the
// last call.
func countParsers(t testing.TB) (runs func() int) {
	t.Helper()
	const parser, list = "/usr/sbin/apparmor_parser", "/run/aaunit/parser-runs"
	if err := os.WriteFile(list, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(list) })
	// The parser runs as a user that nobody is.
	if err := os.Chmod(list, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(parser, parser+".real"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Rename(parser+".real", parser) })
	text := "#!/bin/sh\necho run >>" + list + " || exit 9\nexec " + parser + ".real \"$@\"\n"
	if err := os.WriteFile(parser, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	seen := 0
	return func() int {
		t.Helper()
		n := strings.Count(read(t, list)+"\n", "run\n") - seen
		seen += n
		return n
	}
}

// reloads counts the daemon-reloads of this boot. systemd 252 says "Reloading.",
// later ones "Reloading...".
func reloads(t testing.TB) int {
	t.Helper()
	log := journalctl(t, "-o", "cat", "_PID=1")
	return len(regexp.MustCompile(`(?m)^Reloading\.+$`).FindAllString(log, -1))
}

// instances are the units of a template, from its instances' names.
func instances(template string, names ...string) []string {
	var out []string
	for _, n := range names {
		out = append(out, strings.Replace(template, "@.", "@"+n+".", 1))
	}
	return out
}

// numbers are the names "1" to "n".
func numbers(n int) (out []string) {
	for i := range n {
		out = append(out, strconv.Itoa(i+1))
	}
	return out
}

// showAll is a property of many units, asked for in one go: one call each would
// take long.
func showAll(t testing.TB, property string, units []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, block := range strings.Split(run(t, "systemctl", append([]string{"show", "--property=Id," + property}, units...)...), "\n\n") {
		values := map[string]string{}
		for line := range strings.Lines(block) {
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			values[key] = value
		}
		out[values["Id"]] = values[property]
	}
	if len(out) != len(units) {
		t.Fatalf("systemctl tells of %d units, not of %d", len(out), len(units))
	}
	return out
}

// statuses gives the status of each unit, by name.
func statuses(t testing.TB) (map[string]attach.Status, result) {
	t.Helper()
	rep, r := report(t, "status")
	out := map[string]attach.Status{}
	for _, u := range rep.Units {
		out[u.Unit] = u
	}
	return out, r
}

// waitAllConfined waits until each of these units has a verdict that says
// confined and is about its present start; then /proc must say so too. It asks
// seldom, and for little: asking about so many is work for the machine as well.
func waitAllConfined(t testing.TB, profiles map[string]string) {
	t.Helper()
	units := slices.Sorted(maps.Keys(profiles))
	var seen map[string]attach.Status
	for deadline := time.Now().Add(3 * patience); ; time.Sleep(3 * time.Second) {
		var r result
		seen, r = statuses(t)
		left := slices.DeleteFunc(slices.Clone(units), func(u string) bool {
			v := seen[u].Verdict
			return !seen[u].Busy && v != nil && v.Answer == attach.Confined
		})
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("still not confined: %q\n%s", left, r.stdout)
		}
	}
	now := showAll(t, "InvocationID", units)
	groups := showAll(t, "ControlGroup", units)
	for _, u := range units {
		if seen[u].Verdict.InvocationID != now[u] {
			t.Errorf("the verdict on %s is about another start", u)
		}
		if groups[u] == "" {
			t.Errorf("%s has no control group", u)
		} else if lie := untruth(u, profiles[u], groupTasks(t, groups[u])); lie != "" {
			t.Errorf("%s: %s", u, lie)
		}
	}
}

// alone lists the units of which no other was being restarted at the same time.
func alone(t testing.TB, units []string) (out []string) {
	t.Helper()
	from, to := map[string]int64{}, map[string]int64{}
	for property, at := range map[string]map[string]int64{"ActiveExitTimestampMonotonic": from, "ActiveEnterTimestampMonotonic": to} {
		for u, text := range showAll(t, property, units) {
			n, err := strconv.ParseInt(text, 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			at[u] = n
		}
	}
	for _, u := range units {
		if !slices.ContainsFunc(units, func(v string) bool { return u != v && from[u] < to[v] && from[v] < to[u] }) {
			out = append(out, u)
		}
	}
	return out
}

// under gives units that all have one profile.
func under(profile string, units []string) map[string]string {
	out := map[string]string{}
	for _, u := range units {
		out[u] = profile
	}
	return out
}

// TestFiftyInstances attaches a template with fifty running instances: one
// drop-in, one daemon-reload, one call of the parser and restarts side by side.
// One of them cannot run under the profile, and stays down alone. One that is
// started later is confined from its first start on. Then all is taken back.
func TestFiftyInstances(t *testing.T) {
	const template, dropIn = "gmany@.service", "/etc/systemd/system/gmany@.service.d/90-aaunit.conf"
	const bad = "gmany@7.service"
	a := newAgents(t)
	all := instances(template, numbers(50)...)
	good := slices.DeleteFunc(slices.Clone(all), func(u string) bool { return u == bad })
	for _, u := range append(instances(template, "51"), all...) {
		a.Own(u)
	}
	for _, n := range numbers(51) {
		a.File("/etc/gmany/"+n, n, 0o644)
	}
	// Light, and what it reads tells the instances apart.
	a.Unit(template, "[Service]\nExecStart=/usr/local/bin/vm-agent -read /etc/gmany/%i\n")
	a.ProfileFile("gmany", profileText("gmany", "/etc/gmany/* r,", "deny /etc/gmany/7 r,"))
	a.Reload()
	run(t, "systemctl", append([]string{"start"}, all...)...)
	before := showAll(t, "InvocationID", all)
	parserRuns := countParsers(t)
	if n := reloads(t); n == 0 {
		t.Fatal("the daemon-reload of the test itself is not counted")
	}

	parserRuns()
	reloaded := reloads(t)
	file := a.attachmentFile("gmany.conf", "[Attachment]\nUnit="+template+"\nProfile=gmany\nSettleSec=1\n")
	waitAllConfined(t, under("gmany", good))
	waitIdle(t)
	// The first time, all of /etc/apparmor.d is asked for its names, in a run for
	// each processor; one more compiles the file.
	if n := parserRuns(); n == 0 || n > runtime.NumCPU()+1 {
		t.Errorf("the parser ran %d times for fifty units", n)
	}
	if n := reloads(t) - reloaded; n != 1 {
		t.Errorf("there were %d daemon-reloads for fifty units", n)
	}
	now := showAll(t, "InvocationID", good)
	for u, id := range now {
		if id == before[u] {
			t.Errorf("%s is confined and was not restarted", u)
		}
	}
	if n := alone(t, good); len(n) > len(good)/2 {
		t.Errorf("%d of %d units were restarted one after the other: %q", len(n), len(good), n)
	}
	if dirs, err := filepath.Glob("/etc/systemd/system/gmany@*.d"); err != nil || !slices.Equal(dirs, []string{filepath.Dir(dropIn)}) {
		t.Errorf("there are the drop-in directories %q, %v", dirs, err)
	}
	// It stays down, and is told.
	if got := show(t, bad, "ActiveState"); got != "failed" {
		t.Errorf("%s is %s", bad, got)
	}
	if s, r := statuses(t); s[bad].Held == nil || r.exit == 0 {
		t.Errorf("status says of %s: %+v, exit %d", bad, s[bad], r.exit)
	}

	// With a profile that suits it, it comes up; the others go on as they are.
	a.ProfileFile("gmany", profileText("gmany", "/etc/gmany/* r,"))
	waitFor(t, "the new text to be loaded, and the hold to end", func() (bool, string) {
		s, r := statuses(t)
		return s[bad].Held == nil && !s[bad].Busy, r.stdout
	})
	run(t, "systemctl", "start", bad)
	waitAllConfined(t, under("gmany", all))
	waitIdle(t)
	// For the names in the new text, and to compile it.
	if n := parserRuns(); n == 0 || n > 2 {
		t.Errorf("the parser ran %d times for a new text", n)
	}
	for u, id := range showAll(t, "InvocationID", good) {
		if id != now[u] {
			t.Errorf("%s was restarted for a new text", u)
		}
	}

	// The next one.
	late := instances(template, "51")
	run(t, "systemctl", "start", late[0])
	id := show(t, late[0], "InvocationID")
	waitAllConfined(t, under("gmany", late))
	waitIdle(t)
	if got := show(t, late[0], "InvocationID"); got != id {
		t.Errorf("%s was restarted", late[0])
	}
	if log := journalOf(t, late[0]); strings.Contains(log, late[0]+" is not-confined") || strings.Count(log, "agent: ready") > 1 {
		t.Errorf("the first start of %s:\n%s", late[0], log)
	}
	if n := parserRuns(); n != 0 {
		t.Errorf("the parser ran %d times for a start", n)
	}
	if n := reloads(t) - reloaded; n != 1 {
		t.Errorf("there were %d daemon-reloads since the attach", n)
	}

	// All of it is taken back, together as well.
	now = showAll(t, "InvocationID", append(late, all...))
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	waitNothingAttached(t)
	groups := showAll(t, "ControlGroup", append(late, all...))
	for u, id := range showAll(t, "InvocationID", append(late, all...)) {
		tasks := groupTasks(t, groups[u])
		if id == now[u] || len(tasks) == 0 || slices.ContainsFunc(tasks, func(task task) bool { return task.Label != "unconfined" }) {
			t.Errorf("after the detach %s: start %s, %+v", u, id, tasks)
		}
	}
	if n := reloads(t) - reloaded; n != 2 {
		t.Errorf("there were %d daemon-reloads for the attach and the detach", n)
	}
	if _, loaded := loadedProfiles(t)["gmany"]; loaded || exists(filepath.Dir(dropIn)) {
		t.Error("the profile is loaded, or the drop-in there, after the detach")
	}
}

// TestInstancesWithProfilesOfTheirOwn attaches running instances by a specifier:
// one drop-in, one daemon-reload, and all profiles go to the parser together, a
// call for each processor.
// Beside them a glob, which has no drop-in before there is a unit file: what was
// started before aaunit could know stays unconfined until its restart.
func TestInstancesWithProfilesOfTheirOwn(t *testing.T) {
	const template, text = "gspec@.service", "[Service]\nExecStart=/usr/local/bin/vm-agent -tmp /tmp/vm-%n\n"
	a := newAgents(t)
	profiles := map[string]string{}
	calls := 2 * runtime.NumCPU() // for the names, and to compile
	for _, n := range numbers(2 * calls) {
		u := instances(template, n)[0]
		profiles[u] = "gspec-" + n
		a.ProfileFile(profiles[u], profileText(profiles[u]))
		a.Own(u)
	}
	units := slices.Sorted(maps.Keys(profiles))
	a.ProfileFile("gweb", profileText("gweb"))
	a.Unit(template, text)
	a.Reload()
	run(t, "systemctl", append([]string{"start"}, units...)...)
	parserRuns := countParsers(t)
	reloaded := reloads(t)

	a.attachmentFile("gspec.conf", "[Attachment]\nUnit="+template+"\nProfile=gspec-%i\nSettleSec=1\n")
	waitAllConfined(t, profiles)
	waitIdle(t)
	if n := parserRuns(); n == 0 || n > calls {
		t.Errorf("the parser ran %d times for %d profiles", n, len(profiles))
	}
	if n := reloads(t) - reloaded; n != 1 {
		t.Errorf("there were %d daemon-reloads for %d instances", n, len(profiles))
	}
	if got := read(t, "/etc/systemd/system/gspec@.service.d/90-aaunit.conf") + "\n"; !strings.Contains(got, "\nAppArmorProfile=gspec-%i\n") {
		t.Errorf("the drop-in is\n%s", got)
	}

	a.attachmentFile("gweb.conf", "[Attachment]\nUnit=gweb-*.service\nProfile=gweb\nRestartUnit=no\nSettleSec=1\n")
	waitIdle(t)
	// systemd finds the file when it is asked to start the unit, and tells
	// nobody that there is a new one.
	a.Unit("gweb-early.service", text)
	run(t, "systemctl", "start", "gweb-early.service")
	early := show(t, "gweb-early.service", "InvocationID")
	waitFor(t, "the verdict on what was started too soon", func() (bool, string) {
		s, r := statuses(t)
		v := s["gweb-early.service"].Verdict
		return v != nil && v.Answer == attach.NotConfined && v.InvocationID == early, r.stdout
	})
	// This one waits for the daemon-reload that tells of its file.
	a.Unit("gweb-late.service", text)
	a.Reload()
	waitFor(t, "the drop-ins of a glob's units", func() (bool, string) {
		got := showAll(t, "AppArmorProfile", []string{"gweb-early.service", "gweb-late.service"})
		return got["gweb-early.service"] == "gweb" && got["gweb-late.service"] == "gweb", fmt.Sprint(got)
	})
	run(t, "systemctl", "start", "gweb-late.service")
	late := show(t, "gweb-late.service", "InvocationID")
	waitConfined(t, "gweb-late.service", "gweb")
	if got := show(t, "gweb-late.service", "InvocationID"); got != late {
		t.Error("gweb-late.service was restarted")
	}
	if n := unconfined(t, "gweb-early.service"); n == 0 || show(t, "gweb-early.service", "InvocationID") != early {
		t.Errorf("gweb-early.service was restarted, or has %d unconfined tasks", n)
	}
	run(t, "systemctl", "restart", "gweb-early.service")
	waitConfined(t, "gweb-early.service", "gweb")
}
