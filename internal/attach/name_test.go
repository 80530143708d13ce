package attach

import (
	"strings"
	"testing"
)

func TestCheckProfileName(t *testing.T) {
	for _, name := range []string{
		"myagent", "my agent", `my "agent"`, "/usr/bin/my agent", "a//b", "100%", "%i", "agent (enforce)", "ünïcode", "#x", ";x", "=x", "[x]",
		"a-", "a&b", "a:b", `a\b`, "a..b", "...", "unconfined2", strings.Repeat("x", maxName),
	} {
		if err := CheckProfileName(name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	for name, why := range map[string]string{
		"":                             "empty",
		"-myagent":                     "unconfined when the profile is missing",
		"&myagent":                     "stack",
		":ns:myagent":                  "namespace",
		"a//&b":                        "stack",
		"unconfined":                   "absence",
		"my\nagent":                    "control",
		"a\rb":                         "control",
		"a\x00b":                       "control",
		"a\x1b[2Jb":                    "control",
		"a\u009b31mb":                  "control",
		"a\tb":                         "control",
		" a":                           "white space",
		"a ":                           "white space",
		"a\u00a0":                      "white space",
		`a\`:                           "backslash",
		"a/../b":                       `".."`,
		"..":                           `".."`,
		"a\xff":                        "UTF-8",
		"a\ufffe":                      "noncharacter", // systemd 252 skips the line
		"a\ufdd0b":                     "noncharacter",
		"a\U0001ffffb":                 "noncharacter",
		strings.Repeat("x", maxName+1): "longer",
	} {
		if err := CheckProfileName(name); err == nil || !strings.Contains(err.Error(), why) {
			t.Errorf("CheckProfileName(%.20q) = %v; want an error about %q", name, err, why)
		}
	}
}

func TestUnitName(t *testing.T) {
	for in, want := range map[string]string{
		"myagent": "myagent.service", "myagent.service": "myagent.service", "a.b": "a.b.service", "agent@x": "agent@x.service",
		"tick.timer": "tick.timer", `dev-x\x2dy`: `dev-x\x2dy.service`, "agent@": "agent@.service", "-": "-.service",
	} {
		if got, err := UnitName(in); err != nil || got != want {
			t.Errorf("UnitName(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", ".service", "@.service", "@x", ".hidden", "a b", "a/b", "../x", "a\nb", "a*", "a?", "[a]", "a!b", "ä", strings.Repeat("a", 300)} {
		if got, err := UnitName(in); err == nil {
			t.Errorf("UnitName(%q) = %q; want an error", in, got)
		}
	}
}

func TestTemplates(t *testing.T) {
	for name, template := range map[string]string{
		"agent@a.service": "agent@.service", "agent@a.b.service": "agent@.service", "agent@a@b.service": "agent@.service",
		"agent@.service": "", "agent.service": "",
	} {
		if got := TemplateOf(name); got != template {
			t.Errorf("TemplateOf(%q) = %q, want %q", name, got, template)
		}
	}
	for name, want := range map[string]bool{"agent@.service": true, "agent@a.service": false, "agent.service": false, "agent@@.service": false} {
		if got := IsTemplate(name); got != want {
			t.Errorf("IsTemplate(%q) = %v", name, got)
		}
	}
}

func TestExpandSpecifiers(t *testing.T) {
	const unit = `web-front@a\x2db.service`
	for in, want := range map[string]string{
		"plain": "plain", "%n": unit, "%N": `web-front@a\x2db`, "%p": "web-front", "%i": `a\x2db`, "%j": "front", "100%%": "100%", "%%i": "%i",
		"%p-%i": `web-front-a\x2db`, "": "",
	} {
		if got, err := ExpandSpecifiers(in, unit); err != nil || got != want {
			t.Errorf("%q gives %q, %v; want %q", in, got, err, want)
		}
	}
	if got, _ := ExpandSpecifiers("%p|%i|%j|%N", "web.service"); got != "web||web|web" {
		t.Errorf("a unit without instance gives %q", got)
	}
	for _, in := range []string{"%", "a%", "%%%", "%h", "%u", "% i", "%I"} {
		if got, err := ExpandSpecifiers(in, unit); err == nil {
			t.Errorf("%q gives %q; want an error, for systemd would refuse the unit or put in something else", in, got)
		}
	}
}
