//go:build vm

package guest

import (
	"encoding/json"
	"net"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// complete has bash complete the last word of a command line, with Debian's
// bash-completion and the function that our package brings.
func complete(t testing.TB, words ...string) []string {
	t.Helper()
	const script = `. /usr/share/bash-completion/bash_completion
. /usr/share/bash-completion/completions/aaunitctl
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMP_LINE="$*" COMP_TYPE=9 COMP_KEY=9
COMP_POINT=${#COMP_LINE}
completion=$(complete -p "$1" | sed 's/.* -F \([^ ]*\) .*/\1/')
$completion "$1" "${@: -1}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"`
	return strings.Fields(run(t, "bash", append([]string{"-c", script, "bash"}, words...)...))
}

// TestCommands goes through what aaunitctl offers beside a plain attach, on
// three units that one glob names.
func TestCommands(t *testing.T) {
	a := newAgents(t)
	waitNothingAttached(t)
	profiles := map[string]string{"c-one.service": "c-one", "c-plus.service": "c-plus", "c-quote.service": `c "q"`}
	a.ProfileFile("c-one", profileText("c-one", "deny network unix,")) // so that nothing is to be said of it
	a.ProfileFile("c-plus", profileText("c-plus"))
	// systemd takes the value of AppArmorProfile= as it stands.
	a.ProfileFile("c-quote", profileText(`"c \"q\""`))
	a.Unit("c-one.service", a.agentUnit())
	a.Unit("c-plus.service", a.agentUnit("ExecStartPre=+/bin/true"))
	a.Unit("c-quote.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "c-one.service", "c-plus.service", "c-quote.service")
	ids := map[string]string{}
	for unit := range profiles {
		ids[unit] = show(t, unit, "InvocationID")
	}
	dropIn := func(unit string) string { return "/etc/systemd/system/" + unit + ".d/90-aaunit.conf" }
	attachment := func(unit string) string { return attachmentDir + "/" + unit + ".conf" }
	says := func(what string, r result, exit int, words ...string) {
		t.Helper()
		if r.exit != exit {
			t.Errorf("%s exits %d, want %d\n%s%s", what, r.exit, exit, r.stdout, r.stderr)
		}
		for _, w := range words {
			if !strings.Contains(r.stdout, w) {
				t.Errorf("%s does not say %q:\n%s%s", what, w, r.stdout, r.stderr)
			}
		}
	}

	if got := complete(t, "aaunitctl", "attach", "c-"); !slices.Equal(got, []string{"c-one.service", "c-plus.service", "c-quote.service"}) {
		t.Errorf("bash completes c- to %q", got)
	}

	// What would be done is said, and nothing is done.
	r := ctl(t, "attach", "c-*", "--dry-run")
	says("attach --dry-run", r, 0, "would load", "would write", "would restart", "/etc/apparmor.d/c-quote", dropIn("c-one.service"), dropIn("c-plus.service"), dropIn("c-quote.service"))
	for unit, profile := range profiles {
		if exists(attachment(unit)) || exists(dropIn(unit)) || show(t, unit, "InvocationID") != ids[unit] {
			t.Errorf("attach --dry-run has done something to %s", unit)
		}
		if _, loaded := loadedProfiles(t)[profile]; loaded {
			t.Errorf("attach --dry-run has loaded %s", profile)
		}
	}

	// --no-wait only begins. A glob attaches the others, and has nothing to do
	// for this one.
	says("attach --no-wait", ctl(t, "attach", "c-one", "--no-wait"), 0, "has begun")
	waitConfined(t, "c-one.service", "c-one")
	ids["c-one.service"] = show(t, "c-one.service", "InvocationID")
	out, r := outcomes(t, "attach", "c-*")
	if r.exit != 0 || len(out) != len(profiles) {
		t.Fatalf("attach 'c-*' exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for unit, profile := range profiles {
		if lie := truth(t, unit, profile); lie != "" {
			t.Error(lie)
		}
		if !exists(attachment(unit)) || !exists(dropIn(unit)) {
			t.Errorf("attach 'c-*' has left %s out", unit)
		}
		if o := out[unit]; o.Profile != profile || o.Verdict == nil || o.Verdict.Answer != attach.Confined {
			t.Errorf("%s: %+v", unit, o)
		}
	}
	if !slices.Contains(codesOf(out["c-plus.service"].Notes), attach.ExecPrivileged) {
		t.Errorf("the + of c-plus.service is not noted: %+v", out["c-plus.service"])
	}
	if got := show(t, "c-one.service", "InvocationID"); got != ids["c-one.service"] {
		t.Error("attach 'c-*' restarted a unit that was confined already")
	}
	for unit := range profiles {
		ids[unit] = show(t, unit, "InvocationID")
	}

	// What is said about them.
	says("list", ctl(t, "list"), 0, "c-one.service", "c-plus.service", "c-quote.service", "confined")
	says("list --profiles", ctl(t, "list", "--profiles"), 0, "/etc/apparmor.d/c-one:3", `c "q"`)
	says("check", ctl(t, "check"), 0, "c-one.service", "c-plus.service", "c-quote.service", "[exec-privileged]", "ExecStartPre=+/bin/true", "no way around the profile was found")
	says("check FILE", ctl(t, "check", "/etc/apparmor.d/c-one"), 0, "profile c-one", "[policy-may-write-shared-tmp]")
	says("query", ctl(t, "query", "c-one", "write /etc/**"), 0, "profile c-one may write nothing that matches /etc/**")
	says("query", ctl(t, "query", "/etc/apparmor.d/c-one", "write /tmp/**"), 3, "profile c-one allows", "/tmp/a")
	// Debian 13 has profiles that take nothing from anybody.
	all := ctl(t, "query", "--all", "capability block_suspend")
	if all.exit != 0 && all.exit != 3 {
		t.Errorf("query --all exits %d\n%s%s", all.exit, all.stdout, all.stderr)
	}
	says("query --all", all, all.exit, "profiles: ", " may not, of 0 it could not be told.")
	says("explain UNIT", ctl(t, "explain", "c-one"), 0, "c-one.service is confined", "profile c-one", "Next: aaunitctl ")
	says("explain UNIT with a note", ctl(t, "explain", "c-plus"), 0, "c-plus.service is confined", "[exec-privileged]", attach.ExecPrivileged.Title())
	says("explain CODE", ctl(t, "explain", "task-unconfined"), 0, "[task-unconfined]", attach.TaskUnconfined.Explanation(), "the unit is not confined")
	says("explain", ctl(t, "explain"), 0, "task-unconfined", "tmp-shared")
	installed := run(t, "dpkg-query", "--show", "--showformat=${Version}", "aaunit")
	says("version", ctl(t, "version"), 0, "aaunitctl "+strings.TrimSuffix(installed, "-1"))
	a.ProfileFile("c-broken", "profile c-broken {\n  nonsense\n}\n")
	says("check of a broken file", ctl(t, "check", "/etc/apparmor.d/c-broken"), 3, "[profile-does-not-compile]", "/etc/apparmor.d/c-broken:2", "nonsense")
	says("status of no unit", ctl(t, "status", "c-none"), 4, "[unit-not-found]")
	says("a glob that matches nothing", ctl(t, "attach", "c-none*"), 4, "[unit-not-found]")
	for _, args := range [][]string{
		{"status"}, {"list"}, {"list", "--profiles"}, {"verify"}, {"plan", "c-one"}, {"check"},
		{"explain", "c-plus"}, {"explain", "tmp-shared"}, {"version"}, {"attach"},
	} {
		r := ctl(t, append(args, "--json")...)
		if !json.Valid([]byte(r.stdout)) {
			t.Errorf("aaunitctl %s --json prints\n%s", strings.Join(args, " "), r.stdout)
		}
	}
	for _, command := range []string{"status", "list", "verify"} {
		rep, r := report(t, command)
		var units []string
		for _, u := range rep.Units {
			if u.Verdict != nil && u.Verdict.Answer == attach.Confined {
				units = append(units, u.Unit)
			}
		}
		if r.exit != 0 || !slices.Equal(units, []string{"c-one.service", "c-plus.service", "c-quote.service"}) {
			t.Errorf("%s --json: exit %d\n%s", command, r.exit, r.stdout)
		}
	}
	if got := complete(t, "aaunitctl", "detach", "c-o"); !slices.Equal(got, []string{"c-one.service"}) {
		t.Errorf("bash completes the attached c-o to %q", got)
	}

	// journalctl -x explains our messages: the package's catalogue is in use.
	waitFor(t, "the explanation of the attach", func() (bool, string) {
		text := journalctl(t, "-x", "-u", "c-one.service")
		return strings.Contains(text, "The profile c-one was loaded, systemd was told to start c-one.service"), text
	})

	// And back.
	r = ctl(t, "detach", "c-*", "--dry-run")
	says("detach --dry-run", r, 0, "would remove", "would restart", "would unload", dropIn("c-one.service"), dropIn("c-plus.service"), dropIn("c-quote.service"))
	for unit, profile := range profiles {
		if !exists(attachment(unit)) || !exists(dropIn(unit)) || show(t, unit, "InvocationID") != ids[unit] || truth(t, unit, profile) != "" {
			t.Errorf("detach --dry-run has done something to %s", unit)
		}
	}
	out, r = outcomes(t, "detach", "c-*")
	if r.exit != 0 || len(out) != len(profiles) {
		t.Errorf("detach 'c-*' exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for unit, profile := range profiles {
		waitFree(t, unit)
		if exists(attachment(unit)) || exists("/etc/systemd/system/"+unit+".d") {
			t.Errorf("detach 'c-*' has left something of %s", unit)
		}
		if mode, loaded := loadedProfiles(t)[profile]; loaded {
			t.Errorf("profile %s is left loaded (%s)", profile, mode)
		}
	}
	says("list of nothing", ctl(t, "list"), 0, "No unit is attached.")
}

// waitAgent waits until an agent answers.
func waitAgent(t testing.TB, address string) {
	t.Helper()
	waitFor(t, "the agent at "+address, func() (bool, string) {
		conn, err := net.DialTimeout("tcp", address, patience)
		if err != nil {
			return false, err.Error()
		}
		conn.Close()
		return true, ""
	})
}

// TestStartsOfEveryKind: a start is judged whoever made it and whoever was there
// to see it, by what the processes are and not by what was set for them.
func TestStartsOfEveryKind(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"s-timed", "s-bind"} {
		a.ProfileFile(n, profileText(n))
	}
	a.Unit("s-timed.service", a.agentUnit())
	a.Unit("s-timed.timer", "[Timer]\nOnActiveSec=1s\nAccuracySec=100ms\n")
	// systemd puts BindPaths= in the place of the private /tmp, although
	// PrivateTmp=yes is in effect (MountMode in its namespace.c is in the order of
	// who wins).
	a.Unit("s-bind.service", a.agentUnit("BindPaths=/tmp"))
	ports := map[string]int{}
	for _, n := range []string{"s-leave", "s-stay"} {
		a.ProfileFile(n, profileText(n, "/usr/bin/sleep Ux,"))
		a.Unit(n+".service", a.agentUnit())
		ports[n] = a.port
	}
	a.Reload()
	run(t, "systemctl", "start", "s-bind.service", "s-leave.service", "s-stay.service")

	out, r := outcomes(t, "attach", "s-timed", "s-bind")
	if o := out["s-timed.service"]; o.Exit != attach.ExitUnknown || o.Verdict == nil || !slices.Contains(codesOf(o.Verdict.Reasons), attach.NotRunning) {
		t.Errorf("a unit that is stopped: %s", r.stdout)
	}
	if o := out["s-bind.service"]; r.exit != 1 || !o.Undone || !slices.Contains(codesOf(o.Reasons), attach.TmpShared) || slices.Contains(codesOf(o.Reasons), attach.PrivateTmpOverridden) {
		t.Errorf("a /tmp that is set private and is not: exit %d\n%s", r.exit, r.stdout)
	}
	waitFree(t, "s-bind.service")
	if exists("/etc/systemd/system/s-bind.service.d") || exists(attachmentDir+"/s-bind.service.conf") {
		t.Error("the attach of s-bind.service is not undone")
	}

	// A timer's start.
	run(t, "systemctl", "start", "s-timed.timer")
	waitConfined(t, "s-timed.service", "s-timed")
	if n := starts(t, "s-timed.service"); n > 1 {
		t.Errorf("what the timer started was started %d times", n)
	}

	// Starts that nobody saw, one of which is not confined for long.
	a.attachmentFile("s-away.conf", "[Attachment]\nUnit=s-leave.service s-stay.service\nProfile=%N\nOnViolation=stop\nSettleSec=1\n[Assertions]\nWaive=policy-may-leave-profile it is what is tested\n")
	waitConfined(t, "s-leave.service", "s-leave")
	waitConfined(t, "s-stay.service", "s-stay")
	t.Cleanup(func() { try0("systemctl", "start", "aaunitd.service") })
	run(t, "systemctl", "stop", "aaunitd.service")
	run(t, "systemctl", "restart", "s-leave.service", "s-stay.service")
	waitAgent(t, port(ports["s-leave"]))
	if got := ask(t, port(ports["s-leave"]), "spawn /usr/bin/sleep 600"); !strings.HasPrefix(got, "ok") {
		t.Fatal(got)
	}
	waitFor(t, "the child to leave the profile", func() (bool, string) { return unconfined(t, "s-leave.service") > 0, "" })
	stay := show(t, "s-stay.service", "InvocationID")
	if s := show(t, "aaunitd.service", "ActiveState"); s != "inactive" {
		t.Fatalf("aaunitd is %s, so it saw the start", s)
	}
	run(t, "systemctl", "start", "aaunitd.service")
	waitFor(t, "the stop", func() (bool, string) {
		s := show(t, "s-leave.service", "ActiveState")
		return s == "inactive" || s == "failed", s
	})
	waitFor(t, "the reason in the unit's journal", func() (bool, string) {
		log := journalOf(t, "s-leave.service")
		return strings.Contains(log, "stopping s-leave.service, which is not confined: /usr/bin/sleep"), log
	})
	waitConfined(t, "s-stay.service", "s-stay")
	if id := show(t, "s-stay.service", "InvocationID"); id != stay {
		t.Error("the unit that was confined all the time was restarted")
	}
}

// TestPolkitLetsAnotherUserManage: whom polkit allows it may attach units to the
// profiles in /etc/apparmor.d, and learns nothing of files that are root's.
func TestPolkitLetsAnotherUserManage(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("k-unit", profileText("k-unit"))
	a.Unit("k-unit.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "k-unit.service")
	as := func(args ...string) result {
		return try(t, "runuser", append([]string{"-u", "nobody", "--", "aaunitctl"}, args...)...)
	}
	const rules = "/etc/polkit-1/rules.d/10-aaunit-vm.rules"
	a.File(rules, `polkit.addRule(function(action, subject) {
	if (action.id == "org.aaunit1.manage" && subject.user == "nobody") {
		return polkit.Result.YES;
	}
});
`, 0o644)
	waitFor(t, "polkit to read the rule", func() (bool, string) {
		r := as("plan", "k-unit")
		return r.exit == 0, r.stdout + r.stderr
	})

	// Root could use this profile; it is not for others to know what is in it.
	const secret = "/root/secret-profile"
	a.File(secret, "# keep-this-secret\n"+profileText("k-hidden", "/opt/keep-this-secret r,"), 0o600)
	a.File("/root/secret-broken", "# keep-this-secret\nprofile k-hidden-too {\n  keep-this-secret\n}\n", 0o600)
	if r := ctl(t, "check", secret); r.exit != 0 || !strings.Contains(r.stdout, "k-hidden") {
		t.Errorf("check as root: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	answers := map[string]string{} // by command
	for _, file := range []string{secret, "/root/secret-broken", "/root/not-there", "/etc/apparmor.d/../../root/secret-profile", "/etc/shadow"} {
		for _, args := range [][]string{{"attach", "k-unit", "--profile", file}, {"attach", "k-unit", "--dry-run", "--profile", file}, {"plan", "k-unit", "--profile", file}, {"check", file}, {"query", file, "write /etc/**"}} {
			if (args[0] == "check" || args[0] == "query") && strings.Contains(file, "..") {
				continue // answered in the user's own process, which could read it by any name
			}
			r := as(append(args, "--json")...)
			text := r.stdout + r.stderr
			switch {
			case args[0] == "check" || args[0] == "query":
				// The user's own process reads what the user may.
				if r.exit != 3 && r.exit != 5 || !strings.Contains(text, "permission denied") {
					t.Errorf("aaunitctl %s as nobody: exit %d\n%s", strings.Join(args, " "), r.exit, text)
				}
			case r.exit != 1 || !strings.Contains(text, string(attach.ProfileUntrusted)):
				t.Errorf("aaunitctl %s as nobody: exit %d\n%s", strings.Join(args, " "), r.exit, text)
			}
			for _, leak := range []string{"k-hidden", "keep-this-secret", "root:"} {
				if strings.Contains(text, leak) {
					t.Errorf("aaunitctl %s as nobody tells %q:\n%s", strings.Join(args, " "), leak, text)
				}
			}
			// Not even whether there is such a file.
			command, answer := strings.ReplaceAll(strings.Join(args, " "), file, "FILE"), strings.ReplaceAll(r.stdout, file, "FILE")
			if other, asked := answers[command]; asked && other != answer {
				t.Errorf("aaunitctl %s %s as nobody says\n%s\nof another file it says\n%s", command, file, answer, other)
			}
			answers[command] = answer
		}
	}
	if n := unconfined(t, "k-unit.service"); n == 0 || exists(attachmentDir+"/k-unit.service.conf") {
		t.Error("the unit was attached")
	}

	if r := as("attach", "k-unit", "--profile", "/etc/apparmor.d/k-unit"); r.exit != 0 {
		t.Errorf("attach as nobody: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if lie := truth(t, "k-unit.service", "k-unit"); lie != "" {
		t.Error(lie)
	}
	if r := as("detach", "k-unit"); r.exit != 0 {
		t.Errorf("detach as nobody: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// The right ends with the rule.
	if err := os.Remove(rules); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "polkit to forget the rule", func() (bool, string) {
		r := as("plan", "k-unit")
		return r.exit == 1 && strings.Contains(r.stderr, "org.aaunit1.inspect"), r.stdout + r.stderr
	})
}

// TestOneModeForOneProfile: all tasks under a profile are in one mode with it, so
// one unit's complain mode never softens another's, nor what was loaded before.
func TestOneModeForOneProfile(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("m-both", profileText("m-both"))
	a.Unit("m-a.service", a.agentUnit())
	a.Unit("m-b.service", a.agentUnit())
	a.Profile("m-hand", profileText("m-hand"))
	a.Unit("m-c.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "m-a.service", "m-b.service", "m-c.service")
	before := checksum(t, "m-hand")
	if before == "" {
		t.Fatal("m-hand is not loaded")
	}
	if r := ctl(t, "attach", "m-a", "--profile", "m-both"); r.exit != 0 {
		t.Fatalf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	out, r := outcomes(t, "attach", "m-b", "--profile", "m-both", "--complain")
	if o := out["m-b.service"]; r.exit != 1 || !slices.Contains(codesOf(o.Reasons), attach.ProfileDisputed) {
		t.Errorf("complain mode for a profile that another unit enforces: exit %d\n%s", r.exit, r.stdout)
	}
	if lie := truth(t, "m-a.service", "m-both"); lie != "" || loadedProfiles(t)["m-both"] != "enforce" {
		t.Errorf("the first unit: %s; its profile is in mode %s", lie, loadedProfiles(t)["m-both"])
	}
	if unconfined(t, "m-b.service") == 0 || exists("/etc/systemd/system/m-b.service.d") || exists(attachmentDir+"/m-b.service.conf") {
		t.Error("the second unit was touched")
	}

	if r := ctl(t, "attach", "m-c", "--profile", "m-hand", "--complain"); r.exit != 3 {
		t.Errorf("attach --complain exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if mode := loadedProfiles(t)["m-hand"]; mode != "complain" {
		t.Errorf("attach --complain: m-hand is in mode %q", mode)
	}
	if r := ctl(t, "detach", "m-c"); r.exit != 0 {
		t.Errorf("detach exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if mode, sum := loadedProfiles(t)["m-hand"], checksum(t, "m-hand"); mode != "enforce" || sum != before {
		t.Errorf("after the detach m-hand is in mode %q with checksum %s, before the attach it had %s", mode, sum, before)
	}
	waitFree(t, "m-c.service")
	if lie := truth(t, "m-a.service", "m-both"); lie != "" {
		t.Error(lie)
	}
}
