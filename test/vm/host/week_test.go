//go:build vm && long

package host

import (
	"fmt"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// TestAWeek is a week in the life of a host: ten services are attached, packages
// are upgraded, people edit well and badly, the machine boots again, also with
// another set of kernel features and without the daemon, the daemon is killed,
// and in the end the package goes. After each of these the labels of all tasks
// are read from /proc, and the checksums of the profiles from the kernel.
func TestAWeek(t *testing.T) {
	const n = 10
	var names []string
	for i := range n {
		names = append(names, fmt.Sprintf("week%d", i))
	}
	all := strings.Join(names, " ")
	eachSuite(t, append([]string{"aaunitd.service", "aaunit-policy.service"}, names...), func(t *testing.T, m *machine.Machine) {
		// truth is what /proc says: "" where every task of every unit carries its
		// profile, enforced.
		truth := func() string {
			return output(t, m, "for u in "+all+"; do g=/sys/fs/cgroup$(systemctl show --value --property=ControlGroup $u); "+
				"n=0; for t in $(find $g -name cgroup.threads -exec cat {} + 2>/dev/null); do n=$((n+1)); l=$(cat /proc/$t/attr/apparmor/current 2>/dev/null) || continue; "+
				`test "$l" = "${u}profile (enforce)" || echo "$u: task $t is $l"; done; test $n -gt 0 || echo "$u has no task"; done`)
		}
		confined := func(when string) {
			t.Helper()
			var last string
			wait(t, m, "true", func(machine.Result) bool { last = truth(); return last == "" })
			if last != "" {
				t.Fatalf("%s:\n%s", when, last)
			}
		}
		// policies are the kernel's checksums of the ten profiles.
		policies := func() string {
			return output(t, m, "cd /sys/kernel/security/apparmor/policy/profiles && for u in "+all+"; do for d in ${u}profile.*; do "+
				"echo $u $(cat $d/sha256 2>/dev/null || cat $d/sha1); done; done")
		}
		starts := func() string {
			return output(t, m, "for u in "+all+"; do systemctl show --value --property=InvocationID $u; done")
		}
		verified := func(when string) {
			t.Helper()
			wait(t, m, "aaunitctl verify", func(r machine.Result) bool { return r.Exit == 0 })
			confined(when)
		}
		allows := func(what string, port int, request string) {
			t.Helper()
			wait(t, m, fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d; echo '%s' >&3; head -n 1 <&3", port, request), func(r machine.Result) bool {
				return strings.HasPrefix(r.Stdout, "ok ")
			})
			confined(what)
		}

		// Monday: ten services, of which one has its profile from a package, and one
		// names no abi: what the kernel can do decides about its policy.
		for i, name := range names {
			install(t, m, name, 7001+i)
		}
		output(t, m, "sed -i 's/^}/  include if exists <local\\/week1profile>\\n}/' /etc/apparmor.d/week1profile && sed -i '/^abi /d' /etc/apparmor.d/week5profile")
		pack := func(version, rule string) {
			t.Helper()
			output(t, m, "rm -rf /root/p && mkdir -p /root/p/DEBIAN /root/p/etc/apparmor.d && cp /etc/apparmor.d/week0profile /root/p/etc/apparmor.d/ && "+
				"printf 'Package: week0\\nVersion: "+version+"\\nArchitecture: all\\nMaintainer: x <x@example.org>\\nDescription: x\\n' >/root/p/DEBIAN/control && "+
				"printf '#!/bin/sh\\nset -e\\napparmor_parser -r -T -W /etc/apparmor.d/week0profile\\n' >/root/p/DEBIAN/postinst && chmod 755 /root/p/DEBIAN/postinst && "+
				"sed -i 's|^}|  "+rule+"\\n}|' /root/p/etc/apparmor.d/week0profile && dpkg-deb --build /root/p /root/week0.deb && dpkg -i --force-overwrite /root/week0.deb 2>&1")
		}
		pack("1", "/etc/issue r,")
		output(t, m, "systemctl daemon-reload && systemctl enable "+all+" && systemctl start "+all+" && "+
			`printf '[Attachment]\nUnit=`+strings.ReplaceAll(all, " ", ".service ")+`.service\nProfile=%%Nprofile\n' >/etc/aaunit/attachments.d/week.conf`)
		verified("attached")
		started := starts()
		unchanged := func(when string) {
			t.Helper()
			confined(when)
			if now := starts(); now != started {
				t.Errorf("%s, units were restarted", when)
				started = now
			}
		}

		// Tuesday: the package is upgraded, and brings another profile.
		pack("2", "/etc/machine-id r,")
		allows("after an upgrade of a package", 7001, "read /etc/machine-id")
		unchanged("after an upgrade of a package")

		// Wednesday: somebody edits an include, and another one breaks things: a
		// syntax error, complain mode, a profile that is gone.
		output(t, m, "mkdir -p /etc/apparmor.d/local && echo '/etc/machine-id r,' >/etc/apparmor.d/local/week1profile")
		allows("after an edit", 7002, "read /etc/machine-id")
		verified("before the bad edits")
		good := policies()
		output(t, m, "echo nonsense >>/etc/apparmor.d/week2profile && sed -i 's/^profile week3profile {/profile week3profile flags=(complain) {/' /etc/apparmor.d/week3profile && "+
			"apparmor_parser -r /etc/apparmor.d/week3profile && rm /etc/apparmor.d/week4profile && systemctl reload apparmor; true")
		wait(t, m, "aaunitctl status week2 week3 week4", func(r machine.Result) bool {
			return strings.Contains(r.Stdout, "cannot compile /etc/apparmor.d/week2profile") && strings.Contains(r.Stdout, "flags=(complain)") && strings.Contains(r.Stdout, "no file under /etc/apparmor.d defines a profile week4profile")
		})
		verified("after bad edits")
		wait(t, m, "true", func(machine.Result) bool { return policies() == good })

		// Thursday: the machine boots again, and nobody starts the daemon. What
		// apparmor.service makes of the bad edits is put right before the units start.
		output(t, m, "systemctl disable aaunitd && sync")
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		confined("after a boot without the daemon")
		if now := policies(); now != good {
			t.Errorf("after a boot the kernel has\n%s\nand had before\n%s", now, good)
		}
		if got := output(t, m, "systemctl is-active aaunitd; systemctl is-active aaunit-policy; true"); got != "inactive\nactive" {
			t.Errorf("after a boot aaunitd and aaunit-policy.service are %s", got)
		}
		if got := output(t, m, "for u in "+all+"; do systemctl show --value --property=NRestarts $u; done | sort -u"); got != "0" {
			t.Errorf("units were restarted at boot: %s", got)
		}
		output(t, m, "systemctl enable --now aaunitd")
		verified("the daemon after the boot")

		// Friday: a kernel with other features, as the parser sees it. What was
		// accepted is compiled anew.
		started = starts()
		output(t, m, `f=$(sed -n -E 's/^(policy-features|features-file) *= *//p' /etc/apparmor/parser.conf | head -n 1) && test -n "$f" && sed 's/signal {/signalx {/' "$f" >/etc/apparmor/other-features && `+
			`! cmp -s "$f" /etc/apparmor/other-features && sed -i -E 's,^(policy-features|features-file) *=.*,\1=/etc/apparmor/other-features,' /etc/apparmor/parser.conf && sync`)
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		verified("after a boot with other features")
		if log := output(t, m, "journalctl -b --no-pager -o cat -u aaunit-policy"); strings.Count(log, "compiled the accepted policy of") != n {
			t.Errorf("the accepted policies were not compiled anew:\n%s", log)
		}
		if now := policies(); now == good {
			t.Error("other features give the same policy: this test shows nothing")
		}

		// Saturday: the daemon is killed, and everything is mended.
		started = starts()
		output(t, m, "systemctl kill --signal=KILL aaunitd; sed -i 's/ flags=(complain)//' /etc/apparmor.d/week3profile; sed -i '/^nonsense$/d' /etc/apparmor.d/week2profile")
		wait(t, m, "aaunitctl status week2 week3", func(r machine.Result) bool {
			return r.Exit == 0 && !strings.Contains(r.Stdout, "cannot compile") && !strings.Contains(r.Stdout, "complain")
		})
		verified("after the daemon was killed")
		unchanged("after the daemon was killed")

		// Sunday: the package goes. What ran goes on; what needs it is let go.
		said := output(t, m, "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 purge aaunit </dev/null 2>&1")
		unchanged("after the purge")
		if !strings.Contains(said, "week4.service") {
			t.Errorf("the purge does not name what loses its profile:\n%s", said)
		}
		if got := output(t, m, "find / -xdev \\( -name '*aaunit*' -o -name 90-aaunit.conf \\) -not -path '/proc/*' -not -path '/root/*' -not -path '/var/lib/dpkg/*' -not -path '/var/lib/apt/*' -not -path '/var/log/*' -not -path '/var/cache/*' -not -path '/etc/aaunit-vm*' -not -name '*aaunit-vm*' 2>/dev/null; true"); got != "" {
			t.Errorf("there is left\n%s", got)
		}
	})
}
