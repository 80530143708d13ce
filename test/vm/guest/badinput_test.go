//go:build vm

package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestUnfitUnits asks for units that cannot be attached: each gives a clear
// reason, and the good one among them is attached.
func TestUnfitUnits(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"b-good", "b-masked", "b-early", "b-failed", "b-oneshot", "b-static", "b-tpl"} {
		a.ProfileFile(n, profileText(n))
	}
	a.Unit("b-good.service", a.agentUnit()+"[Install]\nAlias=b-alias.service\nWantedBy=multi-user.target\n")
	a.Unit("b-early.service", "[Unit]\nDefaultDependencies=no\n"+a.agentUnit())
	a.Unit("b-failed.service", a.agentUnit("Restart=no")+"ExecStartPre=/bin/false\n")
	a.Unit("b-oneshot.service", "[Service]\nType=oneshot\nExecStart=/usr/local/bin/vm-agent -exit-after 1ms\n")
	a.Unit("b-tpl@.service", a.agentUnit())
	a.Unit("b-bad.service", "[Service]\nType=simple\n")
	a.Unit("b-timer.timer", "[Timer]\nOnCalendar=yearly\n")
	if err := os.Symlink("/dev/null", "/etc/systemd/system/b-masked.service"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove("/etc/systemd/system/b-masked.service") })
	a.Reload()
	try(t, "systemctl", "start", "b-failed.service")
	run(t, "systemctl", "reset-failed")
	try(t, "systemctl", "start", "b-failed.service")
	run(t, "systemctl", "enable", "--now", "b-good.service")
	t.Cleanup(func() { try0("systemctl", "disable", "b-good.service") })
	run(t, "systemd-run", "--unit=b-transient", "/bin/sleep", "600")
	a.Own("b-transient.service")
	a.ProfileFile("b-transient", profileText("b-transient"))
	transient := show(t, "b-transient.service", "InvocationID")

	out, r := outcomes(t, "attach", "b-none", "b-masked", "b-early", "b-bad", "b-tpl@", "b-timer.timer", "b-transient", "../etc/passwd", "b-alias")
	if r.exit == 0 {
		t.Error("exit 0")
	}
	for unit, want := range map[string]attach.Code{
		"b-none.service":      attach.UnitNotFound,
		"b-masked.service":    attach.UnitMasked,
		"b-early.service":     attach.UnitEarly,
		"b-bad.service":       attach.UnitBad,
		"b-tpl@.service":      attach.UnitTemplate,
		"b-timer.timer":       attach.UnitNoService,
		"b-transient.service": attach.UnitTransient,
	} {
		o := out[unit]
		if !slices.Contains(codesOf(o.Reasons), want) || o.Exit == attach.ExitOK || o.Reasons[0].Detail == "" {
			t.Errorf("%s: want %s, got %+v", unit, want, o)
		}
	}
	// What cannot be a unit's name is none, and no file.
	for _, unit := range []string{"b-none.service", "../etc/passwd"} {
		if o := out[unit]; o.Exit != attach.ExitNoUnit || !slices.Contains(codesOf(o.Reasons), attach.UnitNotFound) {
			t.Errorf("no such unit, %s: %+v", unit, o)
		}
	}
	if exists("/etc/systemd/etc") || exists("/etc/aaunit/etc") {
		t.Error("something was written outside the directories of units and attachments")
	}
	if id := show(t, "b-transient.service", "InvocationID"); id != transient || show(t, "b-transient.service", "ActiveState") != "active" {
		t.Error("the transient unit was touched")
	}
	// The alias led to the unit itself.
	if o := out["b-good.service"]; o.Exit != attach.ExitOK || !slices.Contains(codesOf(o.Notes), attach.UnitAlias) {
		t.Errorf("alias: %+v", o)
	}
	if lie := truth(t, "b-good.service", "b-good"); lie != "" {
		t.Error(lie)
	}

	// A restart that would take the session with it is left to the next boot.
	out, r = outcomes(t, "plan", "systemd-logind", "--profile", "b-good")
	if o := out["systemd-logind.service"]; o.Plan == nil || o.Plan.Has(attach.Restart) || !slices.Contains(codesOf(o.Notes), attach.UnitProtected) {
		t.Errorf("a guarded unit: %s", r.stdout)
	}

	// What does not run now is attached and not claimed to be confined.
	out, r = outcomes(t, "attach", "b-failed", "b-oneshot", "b-tpl@x")
	for _, unit := range []string{"b-failed.service", "b-oneshot.service", "b-tpl@x.service"} {
		if o := out[unit]; o.Exit != attach.ExitUnknown || o.Verdict == nil || o.Verdict.Answer != attach.Unknown {
			t.Errorf("%s: %+v", unit, o)
		}
	}
	if r.exit != 5 {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
	if s := show(t, "b-failed.service", "ActiveState"); s != "failed" {
		t.Errorf("the failed unit is %s now", s)
	}
	a.Own("b-tpl@x.service")
	run(t, "systemctl", "start", "b-oneshot.service")
	waitFor(t, "the oneshot's verdict", func() (bool, string) {
		rep, r := report(t, "status", "b-oneshot")
		return len(rep.Units) == 1 && rep.Units[0].Verdict != nil && rep.Units[0].Verdict.Answer != attach.NotConfined, r.stdout
	})
}

// TestUnfitProfiles: what cannot be a profile is named with its place, and what
// runs keeps running as it was.
func TestUnfitProfiles(t *testing.T) {
	a := newAgents(t)
	a.Unit("p-unit.service", a.agentUnit())
	a.Unit("p-good.service", a.agentUnit())
	a.ProfileFile("p-good", profileText("p-good"))
	a.Reload()
	run(t, "systemctl", "start", "p-unit.service", "p-good.service")
	if r := ctl(t, "attach", "p-good"); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	before := show(t, "p-unit.service", "InvocationID")
	shadow := read(t, "/etc/shadow")

	a.ProfileFile("p-syntax", "abi <abi/3.0>,\nprofile p-syntax {\n  /etc/hostname rx-,\n}\n")
	a.ProfileFile("p-socket", "profile p-socket {\n  socket (tcp) options=(TCP_NODELAY) level=6 optname=1,\n}\n")
	a.ProfileFile("p-empty", "")
	a.ProfileFile("p-binary", "\x7fELF\x00\x01\x02profile p-binary {}\xff\xfe")
	a.ProfileFile("p-include", "profile p-include {\n  include <no/such/file>\n}\n")
	a.ProfileFile("p-stack", "profile \"&p-stack\" {\n}\n")
	a.ProfileFile("p-minus", "profile \"-p-minus\" {\n}\n")
	a.ProfileFile("p-two", profileText("p-first")+strings.TrimPrefix(profileText("p-second"), "abi <abi/3.0>,\ninclude <tunables/global>\n"))
	a.ProfileFile("p-percent", profileText(`"p 50%"`))
	a.ProfileFile("p-quote", profileText(`"p'q"`))
	writable := a.ProfileFile("p-writable", profileText("p-writable"))
	os.Chmod(writable, 0o666)

	for _, c := range []struct {
		profile string
		code    attach.Code
		says    string
	}{
		{"p-syntax", attach.ProfileBroken, "line 3"},
		{"p-socket", attach.ProfileBroken, "socket options"},
		{"p-empty", attach.ProfileNotFound, ""},
		// No name can be read out of it.
		{"p-binary", attach.ProfileNotFound, "/etc/apparmor.d/p-binary"},
		{"p-include", attach.ProfileBroken, "no/such/file"},
		{"p-stack", attach.ProfileNameBad, ""},
		{"p-minus", attach.ProfileNameBad, ""},
		{"p-two", attach.ProfileAmbiguous, "p-second"},
		{"p-writable", attach.ProfileUntrusted, ""},
		{"no-such-profile", attach.ProfileNotFound, ""},
		{"/etc/shadow", attach.ProfileNotFound, "cannot read profile file /etc/shadow"},
		{"../../etc/shadow", attach.ProfileNotFound, ""},
		{"a\nb", attach.ProfileNameBad, ""},
	} {
		out, r := outcomes(t, "attach", "p-unit", "--profile", c.profile)
		o := out["p-unit.service"]
		text := r.stdout
		if r.exit != 1 || !slices.Contains(codesOf(o.Reasons), c.code) || !strings.Contains(text, c.says) {
			t.Errorf("--profile %q: want %s saying %q, exit %d\n%s", c.profile, c.code, c.says, r.exit, text)
		}
		if strings.Contains(text, strings.SplitN(shadow, "\n", 2)[0]) {
			t.Errorf("--profile %q prints the file:\n%s", c.profile, text)
		}
	}
	if id := show(t, "p-unit.service", "InvocationID"); id != before || unconfined(t, "p-unit.service") == 0 {
		t.Error("the unit was touched")
	}
	// Odd names that are fine.
	for file, name := range map[string]string{"p-percent": "p 50%", "p-quote": "p'q"} {
		if r := ctl(t, "attach", "p-unit", "--profile", file); r.exit != 0 {
			t.Errorf("%s: exit %d\n%s%s", file, r.exit, r.stdout, r.stderr)
		} else if lie := truth(t, "p-unit.service", name); lie != "" {
			t.Errorf("%s: %s", file, lie)
		}
	}
	// A text that turns bad leaves what runs, and its verdict, alone.
	a.ProfileFile("p-good", "profile p-good {\n  nonsense\n")
	waitFor(t, "the bad text", func() (bool, string) {
		rep, r := report(t, "status", "p-good")
		return len(rep.Units) == 1 && slices.Contains(codesOf(rep.Units[0].Notes), attach.ProfileBroken), r.stdout
	})
	if rep, r := report(t, "verify", "p-good"); r.exit != 0 || rep.Units[0].Verdict.Answer != attach.Confined || truth(t, "p-good.service", "p-good") != "" {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
}

// TestHostileAttachmentFiles: each bad file is named, none stops the good one.
func TestHostileAttachmentFiles(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("f-good", profileText("f-good"))
	a.Unit("f-good.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "f-good.service")
	bad := map[string]string{
		"key.conf":   "[Attachment]\nUnit=f-x.service\nProfile=x\nFoo=bar\n",
		"twice.conf": "[Attachment]\nUnit=f-x.service\nProfile=x\n[Attachment]\nUnit=f-y.service\n",
		"utf8.conf":  "[Attachment]\nUnit=f-x.service\nProfile=\xff\xfe\n",
		"dots.conf":  "[Attachment]\nUnit=../../f.service\nProfile=x\n",
		"minus.conf": "[Attachment]\nUnit=f-x.service\nProfile=-x\n",
		"world.conf": "[Attachment]\nUnit=f-x.service\nProfile=x\n",
		"empty.conf": "",
	}
	for name, text := range bad {
		a.attachmentFile(name, text)
	}
	os.Chmod(filepath.Join(attachmentDir, "world.conf"), 0o666)
	link := filepath.Join(attachmentDir, "link.conf")
	if err := os.Symlink("/etc/shadow", link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(link) })
	bad["link.conf"] = ""
	a.attachmentFile("good.conf", "[Attachment]\nUnit=f-good.service\nProfile=f-good\nSettleSec=0\n")
	waitFor(t, "the good one", func() (bool, string) { lie := truth(t, "f-good.service", "f-good"); return lie == "", lie })
	rep, r := report(t, "status")
	for name := range bad {
		if !slices.ContainsFunc(rep.Problems, func(p attach.Reason) bool { return strings.HasPrefix(p.Where, filepath.Join(attachmentDir, name)) }) {
			t.Errorf("%s is not named", name)
		}
	}
	if strings.Contains(r.stdout, "root:") {
		t.Error("the status quotes /etc/shadow")
	}
}

// TestForeignDropInIsNotTouched: a file that is not ours keeps its text.
func TestForeignDropInIsNotTouched(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("foreign", profileText("foreign"))
	a.Unit("foreign.service", a.agentUnit())
	const text = "# mine\n[Service]\nNice=5\n"
	a.Dropin("foreign.service", "90-aaunit.conf", text)
	a.Reload()
	run(t, "systemctl", "start", "foreign.service")
	out, r := outcomes(t, "attach", "foreign")
	if r.exit != 1 || !slices.Contains(codesOf(out["foreign.service"].Reasons), attach.DropInForeign) {
		t.Errorf("exit %d\n%s", r.exit, r.stdout)
	}
	if got := read(t, "/etc/systemd/system/foreign.service.d/90-aaunit.conf"); got != strings.TrimSuffix(text, "\n") {
		t.Errorf("the file reads %q now", got)
	}
}

// TestCallerWithoutRights: polkit decides, and root's files stay unread.
func TestCallerWithoutRights(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("caller", profileText("caller"))
	a.Unit("caller.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "caller.service", "polkit.service") // which is slow to come by itself
	as := func(args ...string) result {
		return try(t, "runuser", append([]string{"-u", "nobody", "--", "aaunitctl"}, args...)...)
	}
	for _, args := range [][]string{{"attach", "caller"}, {"attach", "caller", "--profile", "/etc/shadow"}, {"verify"}, {"plan", "caller"}, {"detach", "caller"}, {"check"}} {
		action := "org.aaunit1.inspect"
		if args[0] == "attach" || args[0] == "detach" {
			action = "org.aaunit1.manage"
		}
		r := as(args...)
		if r.exit != 1 || strings.Contains(r.stdout+r.stderr, "root:") || !strings.Contains(r.stdout+r.stderr, action) {
			t.Errorf("aaunitctl %s as nobody: exit %d\n%s%s", strings.Join(args, " "), r.exit, r.stdout, r.stderr)
		}
	}
	if r := as("status"); r.exit == 1 {
		t.Errorf("reading is for everybody: %s%s", r.stdout, r.stderr)
	}
	if n := unconfined(t, "caller.service"); n == 0 {
		t.Error("the unit was attached")
	}
}

// TestParserThatMisbehaves: missing, hanging, or printing garbage. What was
// attached stays confined.
func TestParserThatMisbehaves(t *testing.T) {
	a := newAgents(t)
	for _, n := range []string{"parser-old", "parser-new"} {
		a.ProfileFile(n, profileText(n))
		a.Unit(n+".service", a.agentUnit())
	}
	a.Reload()
	run(t, "systemctl", "start", "parser-old.service", "parser-new.service")
	if r := ctl(t, "attach", "parser-old"); r.exit != 0 {
		t.Fatalf("%s%s", r.stdout, r.stderr)
	}
	const parser = "/usr/sbin/apparmor_parser"
	if err := os.Rename(parser, parser+".real"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Rename(parser+".real", parser) })
	for i, c := range []struct {
		script, says string
		code         attach.Code
	}{
		{"", "apparmor_parser is not installed", attach.ProfileNotCompiled},
		{"#!/bin/sh\nexec sleep 3600\n", "did not end within", attach.ProfileNotCompiled},
		{"#!/bin/sh\nhead -c 2000000 /dev/urandom\nexit 0\n", "the parser's output makes no sense", attach.ProfileNotCompiled},
		{"#!/bin/sh\nexec cat /dev/zero\n", "printed more than", attach.ProfileNotCompiled},
		{"#!/bin/sh\n/usr/sbin/apparmor_parser.real \"$@\" | head -c 100\nkill -KILL $$\n", "signal: killed", attach.ProfileNotCompiled},
		{"#!/bin/sh\necho 'AppArmor parser error for x in profile x at line 1: gone' >&2\nexit 0\n", "AppArmor parser error for x in profile x at line 1: gone", attach.ProfileBroken},
	} {
		os.Remove(parser)
		if c.script != "" {
			if err := os.WriteFile(parser, []byte(c.script), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		// A text that was never compiled.
		a.ProfileFile("parser-new", profileText("parser-new", "/etc/issue"+strings.Repeat(".", i)+" r,"))
		out, r := outcomes(t, "attach", "parser-new")
		if r.exit != 1 || !slices.ContainsFunc(out["parser-new.service"].Reasons, func(f attach.Reason) bool {
			return f.Code == c.code && strings.Contains(f.Detail, "/etc/apparmor.d/parser-new") && strings.Contains(f.Detail, c.says)
		}) {
			t.Errorf("parser %d: want it to say %q, exit %d\n%s", i, c.says, r.exit, r.stdout)
		}
		if n := unconfined(t, "parser-new.service"); n == 0 {
			t.Errorf("parser %d: the unit was touched", i)
		}
		if r := ctl(t, "verify", "parser-old"); r.exit != 0 || truth(t, "parser-old.service", "parser-old") != "" {
			t.Errorf("parser %d: the attached unit: exit %d\n%s%s", i, r.exit, r.stdout, r.stderr)
		}
	}
}
