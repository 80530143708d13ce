package attach

import (
	"slices"
	"strings"
	"testing"
	"unicode/utf8"
)

func FuzzParseLabel(f *testing.F) {
	for _, s := range []string{
		"unconfined", "myagent (enforce)\n", "my agent (v2) (complain)", "a//hat//&b//&unconfined (mixed)", ":ns:a//&b (enforce)", ":ns:&x (enforce)",
		":n:://a (kill)", "--- (-)", "a///&b (enforce)", "unconfined (enforce)", "(enforce)", " (", "//&", "\x00", "a\xff (enforce)",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		l, err := ParseLabel(s)
		if err != nil {
			return
		}
		if len(l.Profiles) == 0 || !l.Mode.known() || !slices.IsSorted(l.Profiles) {
			t.Fatalf("%q gives %+v", s, l)
		}
		back, err := ParseLabel(l.String())
		if err != nil || back.Mode != l.Mode || !slices.Equal(back.Profiles, l.Profiles) {
			t.Fatalf("%q is printed as %q, which gives %+v, %v; want %+v", s, l.String(), back, err, l)
		}
		if l.IsUnconfined() && (l.Mode != ModeUnconfined || l.Mode.Confines()) {
			t.Fatalf("%q is unconfined in mode %s", s, l.Mode)
		}
		// A label fits only what every member of it was named for.
		profile, allowed := "myagent", []string{"a", "px"}
		all := true
		for _, p := range l.Profiles {
			top, _, _ := strings.Cut(p, "//")
			if p != Unconfined && top != profile && !slices.Contains(allowed, top) {
				all = false
			}
		}
		switch fit := l.Fits(profile, allowed); {
		case fit != FitOther && (!all || l.IsUnconfined()):
			t.Fatalf("%q fits (%d)", s, fit)
		case fit == FitExact && slices.Contains(l.Profiles, Unconfined):
			t.Fatalf("%q fits exactly", s)
		}
	})
}

// FuzzProfileName writes a drop-in with whatever name passes, and reads it as
// systemd does: the unit gets that name and nothing else.
func FuzzProfileName(f *testing.F) {
	for _, s := range []string{
		"myagent", "my agent", "100%", "%i", "%%", `a\`, "a\\\nUser=root", "-a", "&a", "a//&b", "a\ufffe", "a\x85b", "\u00a0a", "a ; #", `"q"`, "=", "[Service]",
	} {
		f.Add(s, "/etc/aaunit/attachments.d/x.conf")
	}
	f.Add("myagent", "x\nUser=root")
	f.Add("myagent", "x\\")
	f.Fuzz(func(t *testing.T, name, source string) {
		if CheckProfileName(name) != nil {
			return
		}
		a := NewAttachment()
		a.Source, a.Units, a.Profile = source, []string{unitName}, EscapeSpecifiers(name)
		d := Desired{Unit: unitName, Attachment: &a, Profile: name}
		text := d.DropInText(Unit{})
		var values []string
		for _, l := range readUnitFile(t, text) {
			switch key, value, _ := strings.Cut(l, "="); key {
			case "AppArmorProfile":
				values = append(values, value)
			case "AssertSecurity", "After", "PrivateTmp":
			default:
				t.Fatalf("the drop-in sets %q:\n%s", l, text)
			}
		}
		if len(values) != 1 || strings.HasPrefix(values[0], "-") || values[0] == "" {
			t.Fatalf("AppArmorProfile= is %q in:\n%s", values, text)
		}
		if got, err := ExpandSpecifiers(values[0], unitName); err != nil || got != name {
			t.Fatalf("systemd would read %q, %v; want %q", got, err, name)
		}
		if l, err := ParseLabel(name + " (enforce)"); err != nil || l.Fits(name, nil) != FitExact {
			t.Fatalf("a task under %q carries %+v, %v, which does not fit", name, l, err)
		}
	})
}

// readUnitFile reads a unit file as config_parse of systemd does: comments,
// continued lines, lines that are no UTF-8 left out, white space stripped.
func readUnitFile(t *testing.T, text string) (assignments []string) {
	const white = " \t\n\r"
	joined := ""
	for _, l := range strings.Split(text, "\n") {
		if l = strings.TrimLeft(l, white); strings.HasPrefix(l, "#") || strings.HasPrefix(l, ";") {
			continue
		}
		if n := len(l) - len(strings.TrimRight(l, `\`)); n%2 == 1 {
			joined += l[:len(l)-1] + " "
			continue
		}
		l, joined = strings.Trim(joined+l, white), ""
		key, value, ok := strings.Cut(l, "=")
		switch {
		case l == "" || strings.HasPrefix(l, "["):
		case !ok || !utf8.ValidString(l):
			t.Fatalf("systemd would skip the line %q", l)
		default:
			assignments = append(assignments, strings.TrimRight(key, white)+"="+strings.TrimLeft(value, white))
		}
	}
	return assignments
}

func FuzzSpecifiers(f *testing.F) {
	for _, s := range []string{"", "a", "%", "%%", "100%", "%i%n", "%p-%i", "%%i", "%h"} {
		f.Add(s, "agent@a.service")
	}
	f.Add("%j|%N", "-.service")
	f.Add("%p", "@")
	f.Fuzz(func(t *testing.T, s, unit string) {
		if got, err := ExpandSpecifiers(EscapeSpecifiers(s), unit); err != nil || got != s {
			t.Fatalf("%q, escaped and expanded, is %q, %v", s, got, err)
		}
		got, err := ExpandSpecifiers(s, unit)
		if err == nil && !strings.Contains(s, "%") && got != s {
			t.Fatalf("%q became %q", s, got)
		}
	})
}

func FuzzAttachmentSet(f *testing.F) {
	for _, kv := range []string{
		"Unit=myagent.service agent@.service", "Unit=agent-[!x]*.service", "Profile=my agent", "Profile=%p", "Profile=-x", "ProfileFile=/etc/x",
		`AllowProfiles=a "b c"`, `AllowProfiles="`, "PrivateTmp=disconnected", "PrivateTmp=1", "Mode=complain", "RestartUnit=no", "OnFailedAttach=keep",
		"OnViolation=stop", "OnProfileChange=report", "SettleSec=2min", "SettleSec= ", "SettleSec=-1s", "Nonsense=x",
	} {
		key, value, _ := strings.Cut(kv, "=")
		f.Add(key, value)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		a := NewAttachment()
		if a.Set(key, value) != nil {
			return
		}
		for _, u := range a.Units {
			if err := CheckUnitPattern(u); err != nil {
				t.Fatalf("Unit=%q: %v", u, err)
			}
			if p := DropInPath(a.Placement(u), false); strings.Count(p, "/") != 5 || !strings.HasPrefix(p, "/etc/systemd/system/") {
				t.Fatalf("Unit=%q would place the drop-in in %s", u, p)
			}
		}
		for _, p := range a.AllowProfiles {
			if err := CheckProfileName(p); err != nil {
				t.Fatalf("AllowProfiles=%q: %v", p, err)
			}
		}
		if a.Profile != "" {
			if _, err := a.ProfileFor("a-b@c.service"); err != nil {
				t.Fatal(err)
			}
		}
		if a.Settle < 0 || a.Settle > MaxSettle || a.PrivateTmp.rank() == 0 && a.PrivateTmp != PrivateTmpNo {
			t.Fatalf("%s=%q gives %+v", key, value, a)
		}
		if strings.ContainsAny(a.ProfileFile, "\n\x00") {
			t.Fatalf("ProfileFile %q", a.ProfileFile)
		}
	})
}

func FuzzUnitName(f *testing.F) {
	for _, s := range []string{"myagent", "agent@a.service", "agent@@.service", "agent-*.service", "[a-", ".service", "-.service", `a\x2db`, "../x", "a!b.service", "ä"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		name, err := UnitName(s)
		if err == nil {
			if strings.ContainsAny(name, "/*?[]! \n\x00") || len(name) > 255 || !strings.Contains(name, ".") || strings.HasPrefix(name, ".") {
				t.Fatalf("%q is taken for the unit %q", s, name)
			}
			if again, err := UnitName(name); err != nil || again != name {
				t.Fatalf("%q is then %q, %v", name, again, err)
			}
			if IsTemplate(name) && TemplateOf(name) != "" {
				t.Fatalf("%q is a template and an instance", name)
			}
		}
		if CheckUnitPattern(s) != nil {
			return
		}
		a := Attachment{Units: []string{s}}
		if !IsGlob(s) && a.Matches(s) != MatchName {
			t.Fatalf("%q does not match itself", s)
		}
		a.Matches("agent-x@i.service")
	})
}
