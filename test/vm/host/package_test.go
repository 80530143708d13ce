//go:build vm && long

package host

import (
	"maps"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// newer is the package once more, of a higher version. Its name has no ".deb", so
// that nobody installs it with the payload.
const newer = "/root/payload/newer-package"

// life is what must not change under a service: its start, its main process, and
// the profiles of all its processes.
func life(t *testing.T, m *machine.Machine, units []string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, u := range units {
		out[u] = output(t, m, "systemctl show --value --property=ActiveState,InvocationID,MainPID "+u+
			" && for p in $(cat /sys/fs/cgroup/$(systemctl show --value --property=ControlGroup "+u+")/cgroup.procs); do cat /proc/$p/attr/apparmor/current; done | sort -u")
	}
	return out
}

// same compares lives.
func same(t *testing.T, when string, before, after map[string]string) {
	t.Helper()
	for _, u := range slices.Sorted(maps.Keys(before)) {
		if before[u] != after[u] {
			t.Errorf("%s, %s was\n%s\nand is\n%s", when, u, before[u], after[u])
		}
	}
}

// under checks that each of these units runs under its profile.
func under(t *testing.T, when string, profiles, lives map[string]string) {
	t.Helper()
	for u, p := range profiles {
		if !strings.HasPrefix(lives[u], "active\n") && !strings.Contains(lives[u], "\nactive") || !strings.HasSuffix(lives[u], "\n"+p) {
			t.Errorf("%s, %s should be %s and is\n%s", when, u, p, lives[u])
		}
	}
}

// reloads counts the daemon-reloads of this boot; what systemd says differs in
// its dots.
func reloads(t *testing.T, m *machine.Machine) int {
	t.Helper()
	log := output(t, m, "journalctl -b --no-pager -o cat _PID=1 | grep -Ex 'Reloading\\.+' || true")
	return len(strings.Fields(log))
}

// TestPackage goes through the life of the package with three services attached:
// one whose own unit and package have a profile, one with a profile that an
// administrator wrote and with socket options that are held to a list, and one whose
// profile lies where nobody loads it at boot.
// Upgrades, a failed one and a removal touch none of them; what needs aaunit goes
// with it, what does not stays until the purge, and after that every service
// starts.
func TestPackage(t *testing.T) {
	const tor = "tor@default.service"
	units := []string{"agent.service", "stray.service", tor}
	profiles := map[string]string{"agent.service": "agentprofile (enforce)", "stray.service": "strayprofile (enforce)", tor: "system_tor (enforce)"}
	dropIn := func(u string) string { return "/etc/systemd/system/" + u + ".d/90-aaunit.conf" }
	eachSuite(t, append([]string{"aaunitd.service"}, units...), func(t *testing.T, m *machine.Machine) {
		install(t, m, "agent", 7001)
		install(t, m, "stray", 7002)
		output(t, m, "sed -i '/^ExecStart=/a "+noBPF+"' /etc/systemd/system/agent.service")
		output(t, m, "mkdir /opt/stray && mv /etc/apparmor.d/strayprofile /opt/stray/ && systemctl daemon-reload && "+
			"systemctl enable agent stray && systemctl start agent stray "+tor+" && "+
			"aaunitctl attach agent --profile agentprofile && aaunitctl attach stray --profile /opt/stray/strayprofile && aaunitctl attach "+tor+
			" && echo '[Attachment]\nUnit=later@.service\nProfile=agentprofile' >/etc/aaunit/attachments.d/later.conf")
		wait(t, m, "test -e "+dropIn("later@.service"), func(r machine.Result) bool { return r.Exit == 0 })
		output(t, m, "aaunitctl sockopts record agent && systemctl restart agent")
		wait(t, m, "aaunitctl sockopts approve agent --all-seen --yes --reason 'it listens' && aaunitctl sockopts enforce agent --yes", func(r machine.Result) bool { return r.Exit == 0 })
		wait(t, m, "grep ExecStartPre=+ "+dropIn("agent.service")+" && ls -A /sys/fs/bpf/aaunit", func(r machine.Result) bool { return r.Exit == 0 && strings.Contains(r.Stdout, "\n") })
		written := func() string {
			t.Helper()
			return output(t, m, "sha256sum /etc/systemd/system/*.d/90-aaunit.conf /etc/aaunit/attachments.d/* /var/lib/aaunit/policy/*; ls /var/lib/aaunit/units")
		}
		dpkg := func(args string) string {
			t.Helper()
			return output(t, m, "DEBIAN_FRONTEND=noninteractive dpkg "+args+" </dev/null 2>&1")
		}
		daemon := func() string {
			t.Helper()
			return output(t, m, "systemctl show --value --property=InvocationID aaunitd; systemctl is-active aaunitd; systemctl is-enabled aaunitd; true")
		}
		allConfined := func(when string) {
			t.Helper()
			wait(t, m, "aaunitctl verify "+strings.Join(units, " "), func(r machine.Result) bool { return r.Exit == 0 })
			under(t, when, profiles, life(t, m, units))
		}
		allConfined("attached")
		before, files := life(t, m, units), written()

		// A package that cannot be unpacked.
		if r, err := m.Run(t.Context(), "chattr +i /usr/share/doc/aaunit && dpkg -i "+newer+" </dev/null; rc=$?; chattr -i /usr/share/doc/aaunit; exit $rc"); err != nil || r.Exit == 0 {
			t.Fatalf("the upgrade that must fail: exit %d, %v\n%s%s", r.Exit, err, r.Stdout, r.Stderr)
		}
		if got := output(t, m, "dpkg-query -W -f '${db:Status-Status} ${Version}' aaunit; aaunitd -version; systemctl is-active aaunitd"); strings.Contains(got, "+newer") || !strings.HasPrefix(got, "installed ") || !strings.HasSuffix(got, "\nactive") {
			t.Errorf("after a failed upgrade: %s", got)
		}
		same(t, "after a failed upgrade", before, life(t, m, units))
		allConfined("after a failed upgrade")

		// One that can.
		n := reloads(t, m)
		if n == 0 {
			t.Error("daemon-reloads are not counted")
		}
		started := daemon()
		dpkg("-i " + newer)
		if got := reloads(t, m) - n; got != 1 {
			t.Errorf("the upgrade reloads systemd %d times", got)
		}
		if got := output(t, m, "aaunitd -version; readlink /proc/$(systemctl show --value --property=MainPID aaunitd)/exe"); !strings.Contains(got, "+newer\n") || !strings.HasSuffix(got, "\n/usr/sbin/aaunitd") {
			t.Errorf("after the upgrade there runs %s", got)
		}
		if now := daemon(); now == started || !strings.HasSuffix(now, "\nactive\nenabled") {
			t.Errorf("after the upgrade aaunitd is %s", now)
		}
		allConfined("after the upgrade")
		same(t, "after the upgrade", before, life(t, m, units))
		if now := written(); now != files {
			t.Errorf("the upgrade has changed\n%s\nto\n%s", files, now)
		}

		// What the administrator wants of the daemon lasts.
		output(t, m, "systemctl stop aaunitd")
		dpkg("-i " + newer)
		if now := daemon(); !strings.HasSuffix(now, "\ninactive\nenabled") {
			t.Errorf("an upgrade of a daemon that was stopped: it is %s", now)
		}
		output(t, m, "systemctl mask aaunitd")
		dpkg("-i " + newer)
		if now := daemon(); !strings.HasSuffix(now, "\ninactive\nmasked") {
			t.Errorf("an upgrade of a daemon that was masked: it is %s", now)
		}
		same(t, "after more upgrades", before, life(t, m, units))

		// A removal with no daemon there, and with a drop-in that somebody changed.
		output(t, m, "echo '# mine' >>"+dropIn(tor))
		n = reloads(t, m)
		said := dpkg("--remove aaunit")
		// Once for the start helper, which goes, and once for the rest.
		if got := reloads(t, m) - n; got != 2 {
			t.Errorf("the removal reloads systemd %d times", got)
		}
		for _, want := range []string{
			"aaunit: agent.service goes on to start under profile agentprofile, by " + dropIn("agent.service"),
			"aaunit: stray.service starts unconfined from its next start: of its profile strayprofile, no file in /etc/apparmor.d",
			"aaunit: " + tor + " starts as " + dropIn(tor) + " says, which is kept",
		} {
			if !strings.Contains(said, want) {
				t.Errorf("the removal does not say %q:\n%s", want, said)
			}
		}
		same(t, "after the removal", before, life(t, m, units))
		if got := output(t, m, "ls -d /usr/sbin/aaunitd /usr/bin/aaunitctl /sys/fs/bpf/aaunit "+path.Dir(dropIn("stray.service"))+" 2>/dev/null; pgrep -x aaunitd; true"); got != "" {
			t.Errorf("after the removal there is left\n%s", got)
		}
		if got := output(t, m, "cat "+dropIn("agent.service")); strings.Contains(got, "AssertSecurity") || strings.Contains(got, "ExecStartPre") || !strings.Contains(got, "\nAppArmorProfile=agentprofile\nPrivateTmp=yes") {
			t.Errorf("the removal leaves\n%s", got)
		}
		output(t, m, "grep -x '# mine' "+dropIn(tor)+" && systemctl restart agent")
		wait(t, m, "ps -o label= -C agent", func(r machine.Result) bool { return r.Stdout != "" && !strings.Contains(r.Stdout, "unconfined") })
		before = life(t, m, units)
		under(t, "after the removal", profiles, before)

		// What the administrator has attached takes effect again.
		output(t, m, "systemctl unmask aaunitd")
		dpkg("-i " + newer)
		if now := daemon(); !strings.HasSuffix(now, "\nactive\nenabled") {
			t.Errorf("installed again, aaunitd is %s", now)
		}
		wait(t, m, "cat "+dropIn("stray.service")+" "+dropIn("agent.service"), func(r machine.Result) bool { return strings.Count(r.Stdout, "AssertSecurity=apparmor\n") == 2 })
		allConfined("installed again")
		same(t, "installed again", before, life(t, m, units))
		if now := written(); now != files {
			t.Errorf("installed again, there is\n%s\nand not\n%s", now, files)
		}

		// All at once. The link by which an administrator has enabled something goes, too.
		output(t, m, "systemctl enable aaunit-metrics.socket && test -L /etc/systemd/system/sockets.target.wants/aaunit-metrics.socket")
		said = dpkg("--purge aaunit")
		for _, want := range []string{
			"aaunit: agent.service is not attached to profile agentprofile any more: it starts unconfined from its next start",
			"aaunit: " + tor + " is not attached to profile system_tor any more: it keeps its own AppArmorProfile=",
		} {
			if !strings.Contains(said, want) {
				t.Errorf("the purge does not say %q:\n%s", want, said)
			}
		}
		same(t, "after the purge", before, life(t, m, units))
		if got := output(t, m, "find / /run -xdev \\( -path /proc -o -path /sys -o -path /root -o -path /var/log -o -path /var/cache \\) -prune -o -name '*aaunit*' ! -name '*aaunit-vm*' -print; true"); got != "" {
			t.Errorf("after the purge there is left\n%s", got)
		}
		if got := output(t, m, "getent passwd _aaunit; true"); got != "" {
			t.Errorf("after the purge there is still the user %s", got)
		}
		if got := output(t, m, "ls -d /etc/systemd/system/*.service.d 2>/dev/null; true"); got != "" {
			t.Errorf("after the purge there is left\n%s", got)
		}
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		output(t, m, "systemctl start "+tor)
		wait(t, m, "systemctl is-active "+strings.Join(units, " ")+" && ps -o label= -C agent && ps -o label= -C stray", func(r machine.Result) bool { return r.Exit == 0 })
		under(t, "after the purge and a reboot", map[string]string{"agent.service": "unconfined", "stray.service": "unconfined", tor: "system_tor (enforce)"}, life(t, m, units))
	})
}
