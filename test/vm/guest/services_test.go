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

// debianService is a service of a Debian package with the profile that comes
// with it.
type debianService struct {
	unit    string
	profile string
	// notes are what must be said about it, and why that is right.
	notes map[attach.Code]string
	// own: with its profile from Debian alone it is confined too.
	own bool
	// broken: the release whose own profile does not let it run.
	broken string
}

var debianServices = []debianService{
	// The profile attaches to the program, so that the kernel puts it on
	// whoever starts it.
	{unit: "chrony.service", profile: "/usr/sbin/chronyd", own: true},
	{unit: "i2pd.service", profile: "i2pd", own: true},
	// Debian disables the profile with a link. That of Debian 13 knows nothing of
	// /usr/sbin/squid-gnutls, which squid executes.
	{unit: "squid.service", profile: "/usr/sbin/squid", broken: "trixie"},
	{unit: "tor@default.service", profile: "system_tor", own: true, notes: map[attach.Code]string{
		attach.PermissionsStartOnly: "the unit sets it",
		attach.ChildLeaves:          "abstractions/tor has obfsproxy PUx",
		attach.MayLeave:             "abstractions/tor has obfsproxy PUx",
		attach.MayNotTransition:     "abstractions/tor has obfsproxy PUx, and the unit sets NoNewPrivileges=",
	}},
}

// TestServicesOfDebian attaches services that nobody here wrote: they run as
// users of their own, fork, tell systemd that they are ready, are sandboxed by
// half of systemd.exec(5). All come up confined, and nothing is said against
// them that is not so.
func TestServicesOfDebian(t *testing.T) {
	s := newScene(t)
	var units []string
	for _, d := range debianServices {
		units = append(units, d.unit)
		s.Own(d.unit)
		t.Cleanup(func() { os.Remove(attachmentDir + "/" + d.unit + ".conf") })
	}
	const disable = "/etc/apparmor.d/disable/usr.sbin.squid"
	link, err := os.Readlink(disable)
	if err != nil {
		t.Fatal(err)
	}
	out, r := outcomes(t, "plan", "squid")
	if o := out["squid.service"]; r.exit != 1 || !slices.Contains(codesOf(o.Reasons), attach.ProfileDisabled) {
		t.Errorf("squid as Debian leaves it: exit %d\n%s", r.exit, r.stdout)
	}
	if err := os.Remove(disable); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Symlink(link, disable) })
	for _, unit := range units { // together they are slow, and systemd does not wait for ever
		run(t, "systemctl", "start", unit)
	}

	// tor's unit says AppArmorProfile=-system_tor.
	out, r = outcomes(t, "plan", "tor@default")
	tor := out["tor@default.service"]
	if r.exit != 0 || tor.Profile != "system_tor" || !slices.ContainsFunc(tor.Notes, func(n attach.Reason) bool {
		return n.Code == attach.IgnorePrefix && strings.Contains(n.Where, "/tor@default.service:") && strings.Contains(n.Detail, "-system_tor")
	}) {
		t.Errorf("the - of tor's unit is not noted: exit %d\n%s", r.exit, r.stdout)
	}

	// A profile of Debian's that does not fit its program is undone, although it
	// attaches to the program's path: it is not loaded when squid starts again.
	services := slices.DeleteFunc(slices.Clone(debianServices), func(d debianService) bool { return d.broken == os.Getenv("AAUNIT_VM_SUITE") })
	for _, d := range debianServices {
		if d.broken != os.Getenv("AAUNIT_VM_SUITE") {
			continue
		}
		units = slices.DeleteFunc(units, func(u string) bool { return u == d.unit })
		out, r := outcomes(t, "attach", d.unit)
		if o := out[d.unit]; r.exit != 1 || !o.Undone {
			t.Errorf("%s: exit %d\n%s", d.unit, r.exit, r.stdout)
		}
		waitFree(t, d.unit)
		if mode, loaded := loadedProfiles(t)[d.profile]; loaded || exists("/etc/systemd/system/"+d.unit+".d") {
			t.Errorf("%s: left loaded (%s), or a drop-in", d.profile, mode)
		}
	}

	// Which profile it is, is found.
	out, r = outcomes(t, append([]string{"attach"}, units...)...)
	if r.exit != 0 {
		t.Errorf("attach exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, d := range services {
		if o := out[d.unit]; o.Profile != d.profile || len(o.Reasons) > 0 || o.Undone {
			t.Errorf("%s: %+v", d.unit, o)
		}
		waitConfined(t, d.unit, d.profile)
	}
	// With our drop-in in its place, the - of tor's unit counts no more.
	waitFor(t, "the note on the - to go", func() (bool, string) {
		rep, r := report(t, "status", "tor@default")
		return len(rep.Units) == 1 && !rep.Units[0].Busy && !slices.Contains(codesOf(rep.Units[0].Notes), attach.IgnorePrefix), r.stdout
	})
	rep, r := report(t, append([]string{"verify"}, units...)...)
	if r.exit != 0 {
		t.Errorf("verify exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, d := range services {
		i := slices.IndexFunc(rep.Units, func(u attach.Status) bool { return u.Unit == d.unit })
		if i < 0 {
			t.Errorf("%s is not listed", d.unit)
			continue
		}
		u := rep.Units[i]
		if u.Verdict == nil || u.Verdict.Answer != attach.Confined || len(u.Verdict.Reasons) > 0 || len(u.Refused) > 0 || u.Held != nil {
			t.Errorf("%s: %+v", d.unit, u)
		}
		noted := codesOf(u.Notes)
		for _, n := range u.Notes {
			if d.notes[n.Code] == "" {
				t.Errorf("%s is found fault with: %+v", d.unit, n)
			}
		}
		for code, why := range d.notes {
			if !slices.Contains(noted, code) {
				t.Errorf("%s: %s is not noted, although %s", d.unit, code, why)
			}
		}
	}

	// A detach takes away what we gave, and not what Debian gave.
	before := show(t, "tor@default.service", "InvocationID")
	if r := ctl(t, append([]string{"detach"}, units...)...); r.exit != 0 {
		t.Errorf("detach exits %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, d := range services {
		if exists("/etc/systemd/system/" + d.unit + ".d") {
			t.Errorf("the drop-in of %s is left", d.unit)
		}
		if !d.own {
			waitFree(t, d.unit)
			if mode, loaded := loadedProfiles(t)[d.profile]; loaded {
				t.Errorf("after the detach of %s, profile %s is left loaded (%s)", d.unit, d.profile, mode)
			}
			continue
		}
		waitFor(t, d.unit+" under Debian's profile", func() (bool, string) {
			tasks := tasksNow(t, d.unit)
			other := slices.ContainsFunc(tasks, func(task task) bool { return task.Profile != d.profile || task.Mode != "enforce" })
			return len(tasks) > 0 && !other, fmt.Sprintf("%+v", tasks)
		})
		if mode := loadedProfiles(t)[d.profile]; mode != "enforce" {
			t.Errorf("after the detach of %s, profile %s is in mode %q", d.unit, d.profile, mode)
		}
	}
	if id := show(t, "tor@default.service", "InvocationID"); id != before {
		t.Error("tor was restarted, although its own unit asks for the same profile")
	}
}
