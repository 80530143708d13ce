//go:build vm

package guest

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// listed is outcomes in the order of the names.
func listed(t testing.TB, args ...string) (out []attach.Outcome, r result) {
	t.Helper()
	all, r := outcomes(t, args...)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, all[name])
	}
	return out, r
}

// TestAnImageComesUpConfined prepares a tree with --root and puts its files on this
// machine, as an image is, while aaunitd is away. The first start is confined by
// systemd alone; aaunitd takes over what it finds, without a restart, and a detach
// takes all of it back. On every suite.
func TestAnImageComesUpConfined(t *testing.T) {
	a := newAgents(t)
	const unit, profile = "g-image.service", "g-image"
	const dropIn, attachment = "/etc/systemd/system/g-image.service.d/90-aaunit.conf", attachmentDir + "/g-image.service.conf"
	unitText, text := a.agentUnit(), profileText(profile)

	root := filepath.Join(t.TempDir(), "image")
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("/usr/lib/systemd/system/"+unit, unitText)
	put("/etc/apparmor.d/"+profile, text)
	put("/usr/lib/systemd/system/apparmor.service", "[Service]\nType=oneshot\nExecStart=/lib/apparmor/apparmor.systemd reload\n")
	const wants = "/etc/systemd/system/sysinit.target.wants"
	if err := os.MkdirAll(root+wants, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib/systemd/system/apparmor.service", root+wants+"/apparmor.service"); err != nil {
		t.Fatal(err)
	}
	run(t, "cp", "-r", "/etc/apparmor.d/abi", "/etc/apparmor.d/abstractions", "/etc/apparmor.d/tunables", root+"/etc/apparmor.d")
	if out, r := listed(t, "--root="+root, "attach", "g-image"); r.exit != 0 || len(out) != 1 || !out[0].Changed || out[0].Verdict != nil {
		t.Fatalf("%+v\n%s%s", out, r.stdout, r.stderr)
	}
	if r := try(t, "aaunitctl", "--root="+root, "status"); r.exit != 0 || !strings.Contains(r.stdout, "prepared") {
		t.Errorf("status of the image: %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if exists(dropIn) || exists(attachment) {
		t.Error("something was written outside the image")
	}

	run(t, "systemctl", "stop", "aaunitd.service")
	t.Cleanup(func() { os.Remove(attachment) })
	a.Unit(unit, unitText)
	a.Profile(profile, text)                         // apparmor.service does, at a boot
	a.File(dropIn, read(t, root+dropIn)+"\n", 0o644) // byte by byte: else it is somebody's own
	a.File(attachment, read(t, root+attachment)+"\n", 0o644)
	a.Reload()
	run(t, "systemctl", "start", unit)
	for _, task := range unitTasks(t, unit) {
		if task.Label != profile+" (enforce)" {
			t.Errorf("the first start: %+v", task)
		}
	}
	run(t, "systemctl", "start", "aaunitd.service")
	waitConfined(t, unit, profile)
	if n := starts(t, unit); n != 1 {
		t.Errorf("the unit was started %d times", n)
	}
	if out, r := listed(t, "detach", unit); r.exit != 0 || len(out) != 1 || !out[0].Changed {
		t.Errorf("detach: %+v", out)
	}
	if exists(dropIn) || exists(attachment) {
		t.Error("detach leaves the files of the image")
	}
	waitFree(t, unit)
}

// TestApplyAndPropose does what a configuration tool does: it asks what would come
// of a file, writes it, has it acted on, and sees the verdict; so with a profile
// that changes.
func TestApplyAndPropose(t *testing.T) {
	a := newAgents(t)
	const unit, profile, name = "g-apply.service", "g-apply", "g-apply.service"
	a.Unit(unit, a.agentUnit())
	file := a.ProfileFile(profile, profileText(profile))
	a.Reload()
	run(t, "systemctl", "start", unit)
	proposal := filepath.Join(t.TempDir(), "text")
	propose := func(of, text string) ([]attach.Outcome, result) {
		t.Helper()
		if err := os.WriteFile(proposal, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return listed(t, "propose", of, proposal)
	}
	wish := "[Attachment]\nUnit=" + unit + "\nProfile=" + profile + "\nSettleSec=1\n\n[Assertions]\nDeny=write /etc/**\n"

	if out, _ := propose(name, wish+"Nonsense=1\n"); len(out) != 1 || out[0].Exit == 0 || out[0].Reasons[0].Code != attach.AttachmentBad {
		t.Errorf("a bad file: %+v", out)
	}
	out, r := propose(name, wish)
	if r.exit != 0 || len(out) != 1 || !out[0].Changed || !out[0].Plan.Has(attach.Restart) || exists(attachmentDir+"/"+name+".conf") {
		t.Fatalf("%+v\n%s", out, r.stderr)
	}
	a.attachmentFile(name+".conf", wish)
	out, r = listed(t, "apply", name)
	if r.exit != 0 || len(out) != 1 || out[0].Verdict == nil || out[0].Verdict.Answer != attach.Confined || truth(t, unit, profile) != "" {
		t.Fatalf("%+v\n%s%s", out, r.stdout, r.stderr)
	}
	before := starts(t, unit)
	if out, r := listed(t, "apply", name); r.exit != 0 || out[0].Changed || out[0].Verdict.Answer != attach.Confined || starts(t, unit) != before {
		t.Errorf("again: %+v", out)
	}
	if out, r := propose(name, wish); r.exit != 0 || out[0].Changed || out[0].Verdict == nil {
		t.Errorf("as it is: %+v", out)
	}

	// A profile: what does not compile, what the attachment forbids, and what will do.
	for text, code := range map[string]attach.Code{
		profileText(profile, "/x zz,"): attach.ProfileBroken, profileText(profile, "/etc/motd w,"): attach.AssertionFailed,
	} {
		out, r := propose(file, text)
		found := slices.ContainsFunc(out, func(o attach.Outcome) bool {
			return slices.ContainsFunc(o.Reasons, func(r attach.Reason) bool { return r.Code == code }) ||
				slices.ContainsFunc(o.Findings, func(f attach.Finding) bool { return f.Code == code && f.Severity == attach.Error })
		})
		if r.exit == 0 || !found {
			t.Errorf("%s: exit %d, %+v", code, r.exit, out)
		}
	}
	// A profile together with an attachment that asserts less, and with one that waives what
	// the profile lets be done.
	relaxed := filepath.Join(t.TempDir(), "relaxed")
	if err := os.WriteFile(proposal, []byte(profileText(profile, "/etc/motd w,")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(relaxed, []byte(strings.Replace(wish, "Deny=write /etc/**\n", "", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, r := listed(t, "propose", file, proposal, "--with", name+"="+relaxed); r.exit != 0 || len(out) != 2 || out[1].Unit != unit || !out[1].Plan.Has(attach.LoadPolicy) {
		t.Errorf("profile and attachment together: exit %d, %+v", r.exit, out)
	}
	for text, exit := range map[string]int{wish: 1, wish + "Waive=policy-may-leave-profile operators log in\n": 0} {
		if err := os.WriteFile(proposal, []byte(profileText(profile, "/usr/bin/id Ux,")), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(relaxed, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, r := listed(t, "propose", file, proposal, "--with", name+"="+relaxed); r.exit != exit {
			t.Errorf("a profile that can be left, by\n%s: exit %d, %+v", text, r.exit, out)
		}
	}
	changed := profileText(profile, "/var/tmp/g-apply r,")
	if out, r := propose(file, changed); r.exit != 0 || len(out) != 2 || out[1].Unit != unit {
		t.Errorf("a profile that will do: exit %d, %+v", r.exit, out)
	}
	a.ProfileFile(profile, changed)
	if out, r := listed(t, "apply", file); r.exit != 0 || len(out) != 1 || out[0].Verdict == nil || starts(t, unit) != before {
		t.Errorf("a changed profile: exit %d, %+v", r.exit, out)
	}

	if out, r := listed(t, "propose", name, "--gone"); r.exit != 0 || !out[0].Plan.Has(attach.RemoveDropIn) {
		t.Errorf("gone: %+v", out)
	}
	os.Remove(attachmentDir + "/" + name + ".conf")
	// Whether this or the watch on the directory came first is not to be told.
	if out, r := listed(t, "apply", name); r.exit != 0 || len(out) != 1 {
		t.Errorf("gone: exit %d, %+v", r.exit, out)
	}
	waitFree(t, unit)
	if r := try(t, "setpriv", "--reuid=nobody", "--clear-groups", "aaunitctl", "propose", name, "--gone"); r.exit != 1 {
		t.Errorf("another user than root: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
}
