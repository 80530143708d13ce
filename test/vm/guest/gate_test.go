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

// TestWhatPolicyMayNot asks each built-in assertion about a profile that violates
// it and about one close by that does not, and an attachment's own assertions.
func TestWhatPolicyMayNot(t *testing.T) {
	a := newAgents(t)
	const (
		refused = iota
		told
		noted // to who asks
	)
	// What is only noted where the kernel does not look at paths of unix sockets.
	unseen := told
	if !unixPaths() {
		unseen = noted
	}
	type row struct {
		code        attach.Code
		how         int
		bad, good   string
		unit, other string // lines of the unit with the bad and the good profile
	}
	a.File("/usr/local/bin/w-script", "#!/bin/sh\nexit 0\n", 0o755)
	a.File("/usr/local/bin/w-env", "#!/usr/bin/env sh\nexit 0\n", 0o755)
	a.File("/etc/w-key", "secret\n", 0o600)
	a.File("/etc/w-own", "secret\n", 0o600)
	run(t, "chown", "nobody:", "/etc/w-own")
	const scripts, env = "ExecReload=/usr/local/bin/w-script", "ExecReload=/usr/local/bin/w-env"
	netlink := "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK"
	const unix = "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX"
	const kid = "/usr/bin/id Cx -> kid,\n  profile kid {\n    /usr/bin/id mr,\n  }"
	rows := []row{
		{attach.MayWriteTmp, refused, "/dev/shm/** rw,", "owner /dev/shm/** rw,", "", ""},
		{attach.MayWriteSelf, refused, "/usr/local/bin/* w,", "/usr/local/share/** w,", "", ""},
		{attach.MayWritePolicy, refused, "/etc/apparmor.d/** w,", "/etc/apparmor.d/** r,", "", ""},
		{attach.MayWritePolicy, refused, "/etc/systemd/system/* w,", "/etc/systemd/system/* r,", "", ""},
		{attach.MayWritePolicy, refused, "/var/lib/aaunit/** w,", "/var/lib/aaunit/** r,", "", ""},
		{attach.MayWritePolicy, refused, "/var/cache/** w,", "/var/cache/** r,", "", ""},
		{attach.MayWritePolicy, refused, "/sys/kernel/security/apparmor/.load w,\n  capability mac_admin,", "/sys/kernel/security/apparmor/.load w,", "", ""},
		{attach.MayWritePolicy, refused, "/sys/fs/bpf/** w,", "/sys/fs/bpf/** r,", "", ""},
		{attach.MayLeaveGroup, told, "/sys/fs/cgroup/** w,", "/sys/fs/cgroup/** w,", "", "ProtectControlGroups=yes"},
		{attach.MayTrace, refused, "ptrace trace,\n  capability sys_ptrace,", "ptrace read,\n  capability sys_ptrace,", "", ""},
		{attach.MayTrace, told, "ptrace trace,\n  capability sys_ptrace,", "ptrace trace,", "User=nobody", "User=nobody"},
		{attach.MayWriteKeys, refused, "/home/*/.ssh/* w,", "owner /home/*/.ssh/* w,", "", ""},
		{attach.MayWriteSysctl, refused, "/proc/sys/net/** w,", "/proc/sys/net/** r,", "", ""},
		{attach.MayLeave, refused, "/usr/bin/id Ux,", "/usr/bin/id ix,", "", ""},
		{attach.MayEverything, refused, "file,", "/srv/** rw,", "", ""},
		{attach.MayEverything, refused, "capability,", "capability net_bind_service,", "", ""},
		{attach.MayEverything, refused, "network,", "network unix,", "", ""},
		{attach.MayAskOthers, refused, "/etc/cron.d/* w,", "/etc/cron.d/* r,", "", ""},
		{attach.MayAskOthers, refused, "/var/spool/cron/** w,", "/var/spool/cron/** r,", "", ""},
		{attach.MayAskOthers, refused, "/run/docker.sock rw,", "/run/docker.pid rw,", "", ""},
		{attach.MayAskOthers, refused, "/var/spool/at/* w,", "/var/spool/at/* r,", "", ""},
		{attach.MayAskOthers, told, "/run/dbus/system_bus_socket rw,", "/run/dbus/system_bus_socket r,", "User=nobody", "User=nobody"},
		{attach.MayLeave, refused, "change_profile -> unconfined,", "change_profile -> w-other,", "", ""},
		{attach.MayWriteTmp, refused, "owner /tmp/** rw,", "owner /tmp/** rw,", "[Unit]\nJoinsNamespaceOf=w-good-0.service", ""},
		{attach.MayNotTransition, told, kid, kid, "NoNewPrivileges=yes", ""},
		{attach.MayOtherFamilies, noted, "network netlink raw,", "network unix,", unix, unix},
		{attach.MayNotNotify, unseen, "deny /run/systemd/notify w,", "/run/systemd/notify w,", "Type=notify", "Type=notify"},
		{attach.MayNotTransition, told, "/usr/bin/id Px,", "/usr/bin/id ix,", "NoNewPrivileges=yes", "NoNewPrivileges=yes"},
		{attach.MayChange, noted, "/usr/bin/id Px,", "/usr/bin/id ix,", "", ""},
		{attach.MayChange, noted, "change_profile -> w-other,", "signal send peer=w-other,", "", ""},
		{attach.MayNotUseOwn, told, "", "/var/lib/w-dir/** rw,", "StateDirectory=w-dir", "StateDirectory=w-dir"},
		{attach.MayOtherFamilies, told, "", "network netlink raw,", netlink, netlink},
		{attach.MayNotRun, told, "", "/usr/local/bin/w-script r,", scripts, scripts},
		{attach.MayNotRun, told, "/usr/local/bin/w-env r,", "/usr/local/bin/w-env r,\n  /usr/bin/dash rix,", env, env},
		{attach.MayNotRun, told, "", "", scripts, "ExecReload=/usr/bin/true"}, // compiled: no rule is needed
		{attach.MayNotOwn, told, "owner /etc/w-key r,", "owner /etc/w-own r,", "User=nobody", "User=nobody"},
		{attach.MayNotOwn, told, "owner /etc/w-key r,", "/etc/w-key r,", "DynamicUser=yes", "DynamicUser=yes"},
		{attach.MayNotDetached, noted, "", "", "ProtectSystem=strict", ""},
		{attach.MayNoNetwork, noted, "deny network inet,\n  deny network inet6,", "", "", ""},
	}
	if !unixPaths() {
		rows = append(rows, row{attach.MayConnect, noted, "", "deny network unix,", "", ""}, row{attach.MayConnect, noted, "", "deny network unix,", "User=nobody", "User=nobody"},
			row{attach.MayConnect, noted, "deny /run/** rw,", "", "", "RestrictAddressFamilies=AF_INET AF_INET6\nSystemCallArchitectures=native"})
	}
	// Rules that only newer parsers and kernels know.
	abi := map[string]string{}
	if usernsRules() {
		rows = append(rows, row{attach.MayUserns, told, "userns,", "", "", ""}, row{attach.MayEverything, refused, "all,", "/srv/** rw,", "", ""})
		abi["userns,"], abi["all,"] = "abi/4.0", "abi/4.0"
	}
	var units []string
	for i, r := range rows {
		for kind, rule := range map[string]string{"bad": r.bad, "good": r.good} {
			n := fmt.Sprintf("w-%s-%d", kind, i)
			text := profileText(n, rule)
			if newer := abi[rule]; newer != "" || kind == "good" && abi[r.bad] != "" {
				text = strings.Replace(text, "abi/3.0", abi[r.bad], 1)
			}
			a.ProfileFile(n, text)
			line := r.unit
			if kind == "good" {
				line = r.other
			}
			a.Unit(n+".service", a.agentUnit(line))
			units = append(units, n)
		}
	}
	a.Reload()
	out, r := outcomes(t, append([]string{"plan"}, units...)...)
	for i, row := range rows {
		bad, good := out[fmt.Sprintf("w-bad-%d.service", i)], out[fmt.Sprintf("w-good-%d.service", i)]
		said := bad.Notes
		switch row.how {
		case refused:
			said = bad.Reasons
		case noted:
			said = asides(bad)
		}
		at := slices.IndexFunc(said, func(f attach.Reason) bool { return f.Code == row.code })
		if at < 0 {
			t.Errorf("%s: %q with %q is not told: %+v %+v %+v", row.code, row.bad, row.unit, bad.Reasons, bad.Notes, bad.Findings)
		} else if row.how == refused && row.code != attach.MayEverything && !strings.Contains(said[at].Detail, strings.Split(row.bad, "\n")[0]) {
			t.Errorf("%s: the rule is not named: %s", row.code, said[at])
		} else {
			t.Log(said[at])
		}
		said = slices.Concat(good.Reasons, good.Notes)
		if row.how == noted {
			said = append(said, asides(good)...)
		}
		if slices.Contains(codesOf(said), row.code) || len(good.Reasons) > 0 {
			t.Errorf("%s: %q with %q: %+v %+v %+v", row.code, row.good, row.other, good.Reasons, good.Notes, good.Findings)
		}
		// All of them at once, in a bounded time: not all is asked, but of each some.
		if q := good.Questioned; len(q) != 1 || q[0].Questions == 0 {
			t.Errorf("%s: what the kernel was asked: %+v", row.code, q)
		}
	}
	if r.exit != 1 {
		t.Errorf("plan exits %d", r.exit)
	}

	a.impliedNoNewPrivileges()

	// A running unit: an edit that fails does not go live, and one that is waived does.
	const unit, profile = "w-live.service", "w-live"
	good := profileText(profile)
	a.ProfileFile(profile, good)
	a.Unit(unit, a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", unit)
	file := a.attachmentFile("w-live.conf", "[Attachment]\nUnit=w-live.service\nProfile=w-live\nPrivateTmp=yes\nSettleSec=0\n[Assertions]\nDeny=write /srv/**\nDeny=network netlink\nAllow=network inet stream\n")
	waitConfined(t, unit, profile)
	sum, started := checksum(t, profile), show(t, unit, "InvocationID")
	isRefused := func(rule string, code attach.Code, says ...string) {
		t.Helper()
		a.ProfileFile(profile, profileText(profile, rule))
		waitFor(t, string(code), func() (bool, string) {
			rep, r := report(t, "status", unit)
			ok := slices.ContainsFunc(rep.Units[0].Notes, func(n attach.Reason) bool {
				return n.Code == code && !slices.ContainsFunc(says, func(s string) bool { return !strings.Contains(n.String(), s) })
			})
			return ok, r.stdout
		})
		waitIdle(t)
		if rep, r := report(t, "verify", unit); r.exit != 0 || rep.Units[0].Verdict.Answer != attach.Confined {
			t.Errorf("%s: exit %d\n%s", rule, r.exit, r.stdout)
		}
		if now := checksum(t, profile); now != sum || show(t, unit, "InvocationID") != started {
			t.Errorf("%s: it went live, or the unit was restarted", rule)
		}
	}
	isRefused("/{dev/shm,tmp}/** rw,", attach.MayWriteTmp, "/dev/shm/")
	isRefused("/srv/www/** rw,", attach.AssertionFailed, "Deny=write /srv/**", "/srv/www/", "w-live.conf:7", `"/srv/www/** rw,"`)
	isRefused("network netlink raw,", attach.AssertionFailed, "Deny=network netlink", "netlink raw")

	// One with the /tmp of all: an edit that opens it.
	const shared = "w-shared.service"
	closed := strings.Replace(profileText("w-shared"), "  owner /tmp/** rw,\n", "", 1)
	a.ProfileFile("w-shared", closed)
	a.Unit(shared, strings.Replace(a.agentUnit(), " -tmp /tmp/vm-%n", "", 1))
	a.Reload()
	run(t, "systemctl", "start", shared)
	a.attachmentFile("w-shared.conf", "[Attachment]\nUnit=w-shared.service\nProfile=w-shared\nPrivateTmp=no\nSettleSec=0\n")
	carries := func() bool {
		return read(t, "/proc/"+show(t, shared, "MainPID")+"/attr/current") == "w-shared (enforce)"
	}
	waitFor(t, shared+" to be confined", func() (bool, string) {
		rep, r := report(t, "status", shared)
		return len(rep.Units) == 1 && rep.Units[0].Verdict != nil && rep.Units[0].Verdict.Answer == attach.Confined && carries(), r.stdout
	})
	before, was := checksum(t, "w-shared"), show(t, shared, "InvocationID")
	a.ProfileFile("w-shared", strings.Replace(closed, "}\n", "  /tmp/** rw,\n}\n", 1))
	waitFor(t, "the opened /tmp to be refused", func() (bool, string) {
		rep, r := report(t, "status", shared)
		return slices.ContainsFunc(rep.Units[0].Notes, func(n attach.Reason) bool {
			return n.Code == attach.MayWriteTmp && strings.Contains(n.String(), "/tmp/") && strings.Contains(n.String(), "which all users share")
		}), r.stdout
	})
	waitIdle(t)
	if checksum(t, "w-shared") != before || show(t, shared, "InvocationID") != was {
		t.Error("a policy that opens /tmp went live, or the unit was restarted")
	}
	if !carries() {
		t.Error("it lost its profile")
	}
	a.ProfileFile(profile, good)
	waitFor(t, "the notes to go", func() (bool, string) {
		rep, r := report(t, "status", unit)
		return len(rep.Units[0].Notes) == 0 && !rep.Units[0].Busy, r.stdout
	})
	if err := os.WriteFile(file, []byte("[Attachment]\nUnit=w-live.service\nProfile=w-live\nSettleSec=0\n[Assertions]\nWaive=policy-may-write-shared-tmp shared memory with its twin\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	waitIdle(t)
	a.ProfileFile(profile, profileText(profile, "/dev/shm/** rw,"))
	waitFor(t, "what is waived to go live", func() (bool, string) { return checksum(t, profile) != sum, "" })
}

// usernsRules reports whether parser and kernel know rules on user namespaces.
func usernsRules() bool {
	mask, err := os.ReadFile("/sys/kernel/security/apparmor/features/namespaces/mask")
	return err == nil && strings.Contains(string(mask), "userns_create") && exists("/etc/apparmor.d/abi/4.0")
}

// unixPaths reports whether the kernel says that it mediates unix sockets.
func unixPaths() bool {
	found, _ := filepath.Glob("/sys/kernel/security/apparmor/features/network*/af_unix")
	return len(found) > 0
}

// TestPathsOfUnixSockets has units connect and send to sockets on whose paths their
// profiles have deny rules, and compares what the kernel does with what is told of it.
func TestPathsOfUnixSockets(t *testing.T) {
	a := newAgents(t)
	const own = "/run/systemd/private"
	for name, rule := range map[string]string{"u-path": "deny /run/** rw,", "u-family": "deny network unix,"} {
		a.ProfileFile(name, profileText(name, rule))
		a.Unit(name+".service", a.agentUnit())
		at := port(a.port)
		a.Reload()
		run(t, "systemctl", "start", name)
		out, _ := outcomes(t, "plan", name)
		told := slices.Contains(codesOf(asides(out[name+".service"])), attach.MayConnect)
		out, _ = outcomes(t, "attach", name)
		o := out[name+".service"]
		if o.Verdict == nil || o.Verdict.Answer != attach.Confined {
			t.Fatalf("%s is not attached: %+v", name, o)
		}
		got := ask(t, at, "connect "+own)
		if strings.HasPrefix(got, "ok") != told || got != "ok" && !strings.Contains(got, "permission denied") {
			t.Errorf("%s: it connects to %s: %s, and that it may is told: %v\n%+v", name, own, got, told, o)
		}
		if asked := try(t, "aaunitctl", "query", name, "network unix"); name == "u-family" && (told || asked.exit != 0) {
			t.Errorf("what makes no unix socket connects nowhere: %+v\n%s", o, asked.stdout)
		}
	}
	// A readiness message that does not arrive is a start that fails.
	const unit, profile = "u-notify.service", "u-notify"
	a.ProfileFile(profile, profileText(profile, "deny /run/systemd/notify w,"))
	a.Unit(unit, a.agentUnit("Type=notify", "TimeoutStartSec=30s", "AppArmorProfile="+profile))
	a.Reload()
	run(t, "apparmor_parser", "-r", "/etc/apparmor.d/"+profile)
	out, _ := outcomes(t, "plan", profile)
	told := slices.Contains(codesOf(out[unit].Notes), attach.MayNotNotify)
	noted := slices.Contains(codesOf(asides(out[unit])), attach.MayNotNotify)
	if started := try(t, "systemctl", "start", unit).exit == 0; started == told || started != noted {
		t.Errorf("it started: %v; a warning: %v, a note: %v\n%+v", started, told, noted, out[unit])
	}
}

// asides are what only who asks is told.
func asides(o attach.Outcome) (out []attach.Reason) {
	for _, f := range o.Findings {
		out = append(out, f.Reason)
	}
	return out
}

// impliedNoNewPrivileges looks at a process that has no new privileges though its
// unit does not set NoNewPrivileges=, and at one that has them.
func (a *agents) impliedNoNewPrivileges() {
	t := a.t
	// Which settings imply it differs from one systemd to the next.
	for name, by := range map[string]string{"w-implied": "/usr/bin/setpriv --no-new-privs ", "w-plain": ""} {
		a.ProfileFile(name, profileText(name, "/usr/bin/id Px,"))
		a.Unit(name+".service", strings.Replace(a.agentUnit("User=nobody"), "ExecStart=", "ExecStart="+by, 1))
	}
	a.Reload()
	run(t, "systemctl", "start", "w-implied", "w-plain")
	out, _ := outcomes(t, "plan", "w-implied", "w-plain")
	for name, want := range map[string]string{"w-implied": "1", "w-plain": "0"} {
		status := read(t, "/proc/"+show(t, name+".service", "MainPID")+"/status")
		if !strings.Contains(status, "NoNewPrivs:\t"+want+"\n") || show(t, name+".service", "NoNewPrivileges") != "no" {
			t.Fatalf("%s is not as this test needs it: NoNewPrivileges=%s, %s", name, show(t, name+".service", "NoNewPrivileges"), status)
		}
		notes := out[name+".service"].Notes
		at := slices.IndexFunc(notes, func(r attach.Reason) bool { return r.Code == attach.MayNotTransition })
		if (at >= 0) != (want == "1") || at >= 0 && !strings.Contains(notes[at].Detail, "/proc/PID/status") {
			t.Errorf("%s: %+v", name, notes)
		}
	}
}

// TestWhatAProgramNeedsToRun starts programs under profiles that allow them little,
// and compares what happens with what was told before.
func TestWhatAProgramNeedsToRun(t *testing.T) {
	s := newScene(t)
	s.File("/usr/local/bin/n-script", "#!/bin/sh\nexit 0\n", 0o755)
	s.File("/usr/local/bin/n-env", "#!/usr/bin/env sh\nexit 0\n", 0o755)
	s.File("/usr/local/bin/n-chain", "#!/usr/local/bin/n-script\n", 0o755)
	var units []string
	rows := []struct {
		name, rules, program string
		starts               bool
	}{
		{"compiled", "", "/usr/bin/true", true},
		{"script", "", "/usr/local/bin/n-script", false},
		{"script-r", "/usr/local/bin/n-script r,", "/usr/local/bin/n-script", true}, // nothing about its interpreter
		{"env", "/usr/local/bin/n-env r,", "/usr/local/bin/n-env", false},
		{"env-x", "/usr/local/bin/n-env r,\n/usr/bin/dash rix,", "/usr/local/bin/n-env", true},
		{"chain", "/usr/local/bin/n-chain r,", "/usr/local/bin/n-chain", false},
		{"chain-r", "/usr/local/bin/n-script r,", "/usr/local/bin/n-chain", true}, // that ends before it is read
	}
	for _, r := range rows {
		n := "n-" + r.name
		s.Profile(n, "abi <abi/3.0>,\ninclude <tunables/global>\nprofile "+n+" {\ninclude <abstractions/base>\n"+r.rules+"\n}\n")
		s.Unit(n+".service", "[Service]\nType=oneshot\nExecStart="+r.program+"\nAppArmorProfile="+n+"\n")
		units = append(units, n)
	}
	s.Reload()
	out, _ := outcomes(t, append([]string{"plan"}, units...)...)
	for _, r := range rows {
		unit := "n-" + r.name + ".service"
		started := try(t, "systemctl", "start", unit).exit == 0
		if started != r.starts {
			t.Errorf("%s: it started: %v\n%s", r.name, started, try(t, "journalctl", "-n", "20", "-u", unit).stdout)
		}
		if told := slices.Contains(codesOf(out[unit].Notes), attach.MayNotRun); told == r.starts && r.name != "chain-r" {
			t.Errorf("%s: what was told: %+v", r.name, out[unit].Notes)
		}
	}
}
