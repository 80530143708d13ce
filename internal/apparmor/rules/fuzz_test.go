package rules

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// FuzzRead: whatever the text is, Read returns, every rule has a place in it,
// and every question has an answer.
func FuzzRead(f *testing.F) {
	files, err := filepath.Glob("testdata/apparmor.d/*")
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range files {
		if data, err := os.ReadFile(file); err == nil {
			f.Add(string(data))
		}
	}
	f.Add("profile a /b flags=(complain) {\n include <x>\n /bin/{a,b} rUx -> c,\n ^h { deny /x ux, }\n}\n")
	f.Add("@{X}=\"a b\" c \\\n d\n\"/q\\\" q\" { change_profile, priority=-1 /a r, }")
	f.Add("profile p { unix peer=(label=@{a},addr=@b),, }}}} {{{ mount options in (a -> = =( ( , link subset -> , file -> x, }")
	f.Add("if $x { } else { if defined ${y} { /a r, } else if not not @{x} { } } $x=true @{x}=@{x} profile @{x} { /@{x}/@{x} r, }")
	f.Add("alias / -> //,\nprofile p { /a rw, link /b -> /c, network (x) inet ip=, dbus peer=(name=(a b) =), }")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 32<<10 {
			return
		}
		got, err := Read(map[string][]byte{"/f": []byte(text), "/etc/apparmor.d/x": []byte("/x r,\ninclude <x>\n"), "/etc/apparmor.d/d/": nil,
			"/etc/apparmor.d/d/e": []byte("/e r,")}, "/f", "")
		if err != nil {
			t.Fatal(err)
		}
		lines := strings.Count(text, "\n") + 1
		for i, p := range got.Profiles {
			if i >= 8 {
				break
			}
			for _, r := range p.Rules {
				if r.File == "/f" && r.Line > lines {
					t.Fatalf("line %d of %d: %+v", r.Line, lines, r)
				}
			}
			if len(p.Rules) > 50 {
				continue
			}
			x := policydb.Transition{Kind: policydb.ExecUnconfined}
			for _, q := range []Question{
				{Class: ClassFile, Path: "/a", Perm: policydb.Read, Target: "/b"},
				{Class: ClassFile, Path: "/a/b", Perm: policydb.Exec, Exec: &x},
				{Class: ClassNetwork, Family: 1, Type: 1},
				{Class: ClassUnix}, {Class: ClassDBus, Fields: map[string]string{"bus": "system", "access": "send"}},
				{Class: ClassCapability, Capability: "kill"},
				{Class: ClassChangeProfile, Path: "a//b"},
			} {
				got.Granting(p.Name, q)
			}
		}
	})
}
