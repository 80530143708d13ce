package apparmor

import (
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// What does not compile hides nothing of the rest, and every line stays where it
// was.
func TestCompilePartly(t *testing.T) {
	h := newHost(t)
	h.write(profileDir+"/abstractions/odd", "/srv/a r,\n/srv/b zz,\n/srv/c r,\n")
	for name, c := range map[string]struct {
		text  string
		lines []string // that are refused, in order
		reads []string // that the rest allows to be read
	}{
		"a rule": {"profile p {\n  /a r,\n  socket (tcp) options=(setsockopt),\n  /b r,\n}\n", []string{"3"}, []string{"/a", "/b"}},
		"over several lines": {"profile p {\n  /a r,\n  socket (tcp)\n    options=(setsockopt)\n    level=SOL_TCP,\n  /b r,\n}\n",
			[]string{"3"}, []string{"/a", "/b"}},
		"two rules":       {"profile p {\n  /a zz,\n  /b r,\n  /c yy,\n}\n", []string{"2", "4"}, []string{"/b"}},
		"on one line":     {"profile p {\n  /a r, /b zz, /c r,\n}\n", []string{"2"}, []string{"/a", "/c"}},
		"a missing comma": {"profile p {\n  /a r\n  /b r,\n}\n", []string{"2"}, []string{"/b"}},
		"an include":      {"profile p {\n  include <abstractions/none>\n  /b r,\n}\n", []string{"2"}, []string{"/b"}},
		"in an include":   {"profile p {\n  include <abstractions/odd>\n  /b r,\n}\n", []string{"2"}, []string{"/srv/a", "/srv/c", "/b"}},
		"a placeholder":   {"profile p {\n  @{DATA}/** r,\n  /b r,\n}\n", []string{"2"}, []string{"/b"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := h.profile("p", c.text)
			got, refused, ok := h.CompilePartly(ctx(t), file)
			if !ok || len(refused) != len(c.lines) {
				t.Fatalf("%v, refused %+v", ok, refused)
			}
			for i, r := range refused {
				if r.Code != attach.ProfileBroken || !strings.HasSuffix(r.Where, ":"+c.lines[i]) {
					t.Errorf("%+v, want line %s", r, c.lines[i])
				}
			}
			if !strings.HasSuffix(got.ID, "-partly") || got.Checksums != nil || got.NotStaged == "" {
				t.Errorf("a part of a profile looks as if it could be loaded: %+v", got)
			}
			profiles, err := policydb.Parse(got.Blob)
			if err != nil || len(profiles) != 1 {
				t.Fatal(err, profiles)
			}
			for _, path := range c.reads {
				if profiles[0].Allows(path, policydb.Read, policydb.Owner) != policydb.Yes {
					t.Errorf("%s was left out too", path)
				}
			}
		})
	}
	// What is no rule by itself leaves nothing to be checked.
	for name, text := range map[string]string{
		"a head":        "profile p flags=(nonsense) {\n  /a r,\n}\n",
		"no end":        "profile p {\n  /a r,\n",
		"nothing":       "",
		"too many":      "profile p {\n" + strings.Repeat("  /a zz,\n", maxLeftOut+2) + "}\n",
		"nothing in it": "# a comment\n",
	} {
		file := h.profile("p", text)
		if got, refused, ok := h.CompilePartly(ctx(t), file); ok {
			t.Errorf("%s: %+v, refused %+v", name, got, refused)
		}
	}
	if _, _, ok := h.CompilePartly(ctx(t), profileDir+"/none"); ok {
		t.Error("a file that is not there was compiled")
	}
	// What others can write is not read.
	h.opt.Owner++
	if _, _, ok := h.CompilePartly(ctx(t), h.profile("p", "profile p {\n}\n")); ok {
		t.Error("what others can write was compiled")
	}
}

func FuzzLeaveOut(f *testing.F) {
	f.Add("profile p {\n  /a zz,\n}\n", 2, "")
	f.Add("/a r", 1, "missing-comma")
	f.Add("include <x>\n@{A}=b\n", 2, "")
	f.Add("{{{,,,}}}", 1, "")
	f.Fuzz(func(t *testing.T, text string, line int, code string) {
		out, ok := leaveOut([]byte(text), Diagnosis{Line: line % 100, Column: line % 7, Code: code})
		if !ok {
			return
		}
		if len(out) != len(text) || strings.Count(string(out), "\n") != strings.Count(text, "\n") || string(out) == text {
			t.Errorf("%q became %q", text, out)
		}
	})
}

// Included files are found where the options say, like the parser's.
func TestIncludeDirectories(t *testing.T) {
	h := newHost(t)
	h.profile("p", "include <tunables/mine>\nprofile p {\n  include <abstractions/mine>\n  include \"own\"\n  include <d>\n}\n")
	h.write("/base/tunables/mine", "@{X}=/x\n")
	h.write("/base/abstractions/mine", "/base r,\n")
	h.write("/base/own", "/own r,\n")
	h.write("/base/d/a", "@{X} r,\n")
	h.write("/inc/abstractions/mine", "/inc r,\n")
	h.write("/late/abstractions/mine", "/late r,\n")
	o := h.opt
	o.Profiles, o.Include, o.AnyOwner, o.Owner = "/base", []string{"/inc", "/late"}, true, -1
	done, problems := New(o).Compile(ctx(t), []string{profileDir + "/p"}, false)
	if len(done) != 1 {
		t.Fatalf("%+v", problems)
	}
	profiles, err := policydb.Parse(done[0].Blob)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]policydb.Answer{"/inc": policydb.Yes, "/own": policydb.Yes, "/x": policydb.Yes, "/base": policydb.No, "/late": policydb.No} {
		if got := profiles[0].Allows(path, policydb.Read, policydb.Owner); got != want {
			t.Errorf("%s: %v, want %v", path, got, want)
		}
	}
	if _, ok := done[0].Sources["/inc/abstractions/mine"]; !ok {
		t.Errorf("sources %q", done[0].Sources)
	}
}
