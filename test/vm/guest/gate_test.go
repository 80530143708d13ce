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

// TestWhatPolicyMayNot asks each built-in assertion about a profile that violates
// it and about one close by that does not, and an attachment's own assertions.
func TestWhatPolicyMayNot(t *testing.T) {
	a := newAgents(t)
	type row struct {
		code        attach.Code
		refused     bool // else it is told
		bad, good   string
		unit, other string // lines of the unit with the bad and the good profile
	}
	rows := []row{
		{attach.MayWriteTmp, true, "/dev/shm/** rw,", "owner /dev/shm/** rw,", "", ""},
		{attach.MayWriteSelf, true, "/usr/local/bin/* w,", "/usr/local/share/** w,", "", ""},
		{attach.MayWritePolicy, true, "/etc/apparmor.d/** w,", "/etc/apparmor.d/** r,", "", ""},
		{attach.MayWriteKeys, true, "/home/*/.ssh/* w,", "owner /home/*/.ssh/* w,", "", ""},
		{attach.MayWriteSysctl, true, "/proc/sys/net/** w,", "/proc/sys/net/** r,", "", ""},
		{attach.MayLeave, true, "/usr/bin/id Ux,", "/usr/bin/id ix,", "", ""},
		{attach.MayEverything, true, "file,", "/srv/** rw,", "", ""},
		{attach.MayAskOthers, true, "/etc/cron.d/* w,", "/etc/cron.d/* r,", "", ""},
		{attach.MayNotNotify, false, "deny /run/systemd/notify w,", "/run/systemd/notify w,", "Type=notify", "Type=notify"},
		{attach.MayNotTransition, false, "/usr/bin/id Px,", "/usr/bin/id ix,", "NoNewPrivileges=yes", "NoNewPrivileges=yes"},
		{attach.MayNotUseOwn, false, "", "/var/lib/w-dir/** rw,", "StateDirectory=w-dir", "StateDirectory=w-dir"},
		{attach.MayOtherFamilies, false, "", "network netlink raw,", "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK", "RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK"},
	}
	var units []string
	for i, r := range rows {
		for kind, rule := range map[string]string{"bad": r.bad, "good": r.good} {
			n := fmt.Sprintf("w-%s-%d", kind, i)
			a.ProfileFile(n, profileText(n, rule))
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
		if row.refused {
			said = bad.Reasons
		}
		at := slices.IndexFunc(said, func(f attach.Reason) bool { return f.Code == row.code })
		if at < 0 {
			t.Errorf("%s: %q is not told: %+v %+v", row.code, row.bad, bad.Reasons, bad.Notes)
		} else if row.refused && row.code != attach.MayEverything && !strings.Contains(said[at].Detail, row.bad) {
			t.Errorf("%s: the rule is not named: %s", row.code, said[at])
		}
		if slices.Contains(append(codesOf(good.Reasons), codesOf(good.Notes)...), row.code) || len(good.Reasons) > 0 {
			t.Errorf("%s: %q: %+v %+v", row.code, row.good, good.Reasons, good.Notes)
		}
	}
	if r.exit != 1 {
		t.Errorf("plan exits %d", r.exit)
	}

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
	refused := func(rule string, code attach.Code, says ...string) {
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
	refused("/{dev/shm,tmp}/** rw,", attach.MayWriteTmp, "/dev/shm/")
	refused("/srv/www/** rw,", attach.AssertionFailed, "Deny=write /srv/**", "/srv/www/", "w-live.conf:7", `"/srv/www/** rw,"`)
	refused("network netlink raw,", attach.AssertionFailed, "Deny=network netlink", "netlink raw")
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
