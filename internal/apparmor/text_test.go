package apparmor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/apparmor/rules"
)

func scanOf(text string) textScan {
	return scanText(rules.File{Path: "/etc/apparmor.d/x", Data: text}, func(rules.Token) []rules.File { return nil })
}

func TestLeaves(t *testing.T) {
	for rule, leaves := range map[string]bool{
		"/bin/sh Ux,":                                    true,
		"/bin/sh ux,":                                    true,
		"/bin/sh rUx,":                                   true,
		"/bin/sh mrPUx,":                                 true,
		"/bin/sh pux,":                                   true,
		"/bin/sh PUx -> other,":                          true,
		"/bin/sh CUx -> child,":                          true,
		"/bin/sh cux,":                                   true,
		"/bin/{a,b,c}/** Ux,":                            true,
		`"/bin/with space" Ux,`:                          true,
		`/bin/with\ space Ux,`:                           true,
		"@{bin}/x Ux,":                                   true,
		"Ux /bin/sh,":                                    true,
		"owner /bin/sh Ux,":                              true,
		"audit allow owner file /bin/sh rUx,":            true,
		"file Ux /bin/sh,":                               true,
		"priority=5 /bin/sh Ux,":                         true,
		"unsafe /bin/sh Ux,":                             true,
		"/bin/sh # a comment, with {\n  Ux,":             true,
		"/bin/sh\n\tUx\n,":                               true,
		"change_profile,":                                true,
		"change_profile /bin/x,":                         true,
		"change_profile -> unconfined,":                  true,
		"change_profile unsafe /bin/x -> unconfined,":    true,
		"change_profile -> **,":                          true,
		"change_profile -> {unconfined,other},":          true,
		`change_profile -> "unconfined",`:                true,
		"change_profile -> :ns://unconfined,":            true,
		"owner { /bin/sh Ux, }":                          true,
		"if defined @{X} {\n /bin/sh Ux,\n}":             true,
		"if $x { /a r, } else { /bin/sh Ux, }":           true,
		"unix peer=(label=@{a}),\n /bin/sh Ux,":          true,
		"unix (send) peer=(addr=@foo),\n /bin/sh Ux,":    true,
		"mount options=(rw,bind) /a{,/} -> /b/,\n/x Ux,": true,
		"dbus send bus=system path=/a/b interface=a.b{,.c} peer=(name=org.a, label=/usr/bin/x),\n/x Ux,": true,
		"signal peer={a,b},\n/x Ux,":                         true,
		"dbus interface=a.{b,c} member={D,E}*,\n/x Ux,":      true,
		"if ${x} { /x Ux, }":                                 true,
		"network inet stream,\n/x Ux,":                       true,
		"signal (send) set=(term, kill) peer=x,\n/bin/x Ux,": true,
		"^hat { /x Ux, }":                                    true,
		"hat h2 { /x Ux, }":                                  true,
		"profile c /y { /x Ux, }":                            true,
		"#include <x>\n/x Ux,":                               true,
		"set rlimit nofile <= 10,\n/x Ux,":                   true,
		"/@{x},b Ux,":                                        true,
		"/bin/sh Px -> unconfined,":                          true,
		"/bin/sh rPix -> unconfined,":                        true,
		"px /bin/sh -> \"unconfined\",":                      true,
		"/bin/sh Px -> {a,unconfined},":                      true,
		"/bin/sh Px -> :ns:unconfined,":                      true,

		"/bin/sh Px -> other,":                 false,
		"/bin/sh Px -> unconfined//a,":         false,
		"/bin/sh Px -> &unconfined,":           false,
		"/bin/sh Px -> other//&unconfined,":    false,
		"/bin/sh Px -> @{profile_name}//a,":    false,
		"/bin/sh Cx -> unconfined,":            false,
		"/bin/sh r -> unconfined,":             false,
		"/bin/sh ix,":                          false,
		"/bin/sh Px,":                          false,
		"/bin/sh Pix,":                         false,
		"/bin/sh Cx -> Ux,":                    false,
		"/Ux r,":                               false,
		"/a/Ux,b r,":                           false,
		"# /bin/sh Ux,\n/a r,":                 false,
		"deny /bin/sh Ux,":                     false,
		"audit deny /bin/sh ux,":               false,
		"deny { /bin/sh ux, }":                 false,
		"change_profile -> other,":             false,
		"change_profile -> &unconfined,":       false,
		"change_profile -> a//&unconfined,":    false,
		"deny change_profile,":                 false,
		`"/bin/sh Ux," r,`:                     false,
		"/bin/sh r, # Ux":                      false,
		"file,":                                false,
		"capability sys_admin,":                false,
		"link /linux -> /ux,":                  false,
		"ptrace (read) peer=unconfined,":       false,
		"dbus (send) peer=(label=unconfined),": false,
	} {
		s := scanOf("profile top {\n  " + rule + "\n}\nprofile next { }\n")
		n := len(s.profiles)
		if n < 2 || s.profiles[0].name != "top" || s.profiles[n-1].name != "next" || s.profiles[n-1].child || len(s.profiles[n-1].leaves) > 0 {
			t.Errorf("%q: profiles %+v", rule, s.profiles)
			continue
		}
		if got := len(s.profiles[0].leaves) == 1; got != leaves {
			t.Errorf("%q: leaves %+v, want %v", rule, s.profiles[0].leaves, leaves)
		}
	}
	s := scanOf("profile a {\n}\nprofile top {\n  audit   /bin/{a,b}\n  rUx -> x, # c\n  change_profile -> \"uncon*\",\n}\n")
	if got := s.profiles[1].leaves; len(got) != 2 || got[0].Rule != "audit /bin/{a,b} rUx -> x," || got[1].Rule != `change_profile -> "uncon*",` || got[1].Line != 6 {
		t.Errorf("%+v", got)
	}
}

func TestScanText(t *testing.T) {
	files := map[string]string{"tunables/g": "@{B}=/usr/bin /bin\n@{B}+=\"/opt/b in\" # x\n", "r": "/bin/x Ux,\n"}
	s := scanText(rules.File{Path: "/f", Data: `abi <abi/3.0>,
include <tunables/g>
$flag = true
profile "na me" @{B}/x flags=(complain,attach_disconnected mediate_deleted) xattrs=(user.x=a) {
  #include <r>
  profile sub { ^hat { include if exists <r> } }
}
"/usr/bin/q r" { }
/usr/bin/{a,b} (kill) { }
profile plain flags=(unconfined) { }
profile a\040b { }
`}, func(t rules.Token) []rules.File {
		if text, ok := files[t.Text]; ok && t.Angle {
			return []rules.File{{Path: t.Text, Data: text}}
		}
		return nil
	})
	type prof struct {
		name, attachment, flags string
		line, leaves            int
	}
	var got []prof
	for _, p := range s.profiles {
		got = append(got, prof{p.name, p.attachment, strings.Join(p.flags, "+"), p.line, len(p.leaves)})
	}
	want := []prof{
		{"na me", "@{B}/x", "complain+attach_disconnected+mediate_deleted", 4, 2},
		{"na me//sub", "", "", 6, 0},
		{"na me//sub//hat", "", "", 6, 0},
		{"/usr/bin/q r", "/usr/bin/q r", "", 8, 0},
		{"/usr/bin/{a,b}", "/usr/bin/{a,b}", "kill", 9, 0},
		{"plain", "", "unconfined", 10, 0},
		{"a b", "", "", 11, 0},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(prof{})); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]string{"/usr/bin", "/bin", "/opt/b in"}, s.vars["B"]); d != "" {
		t.Error(d)
	}
	if s := scanText(rules.File{Path: "/f", Data: "include <f>\n"}, func(rules.Token) []rules.File {
		return []rules.File{{Path: "f", Data: strings.Repeat("include <f>\n", 3)}}
	}); !s.tooLarge {
		t.Error("endless inclusion was followed")
	}
}

// As many small files as an agent's package may bring for its plugins.
func TestADirectoryOfManyFilesCompiles(t *testing.T) {
	for _, n := range []int{101, 300, maxFiles - 10} {
		h := newHost(t)
		for i := range n {
			h.profile(fmt.Sprintf("agents.d/%04d", i), fmt.Sprintf("  /srv/%d r,\n", i))
		}
		h.profile("agents.d/9999", "  /bin/sh Ux,\n")
		done, problems := h.Compile(ctx(t), []string{h.profile("a", "profile a {\n  include <agents.d>\n}\n")}, false)
		if len(problems) > 0 || len(done) != 1 {
			t.Errorf("%d files: %v", n, problems)
		} else if p := done[0].Profiles; len(p) != 1 || len(p[0].Leaves) != 1 {
			t.Errorf("%d files: %+v", n, p)
		}
	}
}

// The names that the text scan finds are the parser's own, for every profile
// of this machine.
func TestScanAgreesWithTheParser(t *testing.T) {
	h := newHost(t)
	src, err := filepath.Glob("/etc/apparmor.d/*")
	if err != nil || len(src) == 0 {
		t.Fatal("no profiles here: apt-get install apparmor", err)
	}
	for _, dir := range []string{"abi", "abstractions", "tunables", "local"} {
		if err := os.CopyFS(filepath.Join(h.root, profileDir, dir), os.DirFS("/etc/apparmor.d/"+dir)); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for _, f := range src {
		if st, err := os.Lstat(f); err != nil || !st.Mode().IsRegular() {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		h.profile(filepath.Base(f), string(data))
	}
	h.index.Lock()
	defer h.index.Unlock()
	h.refresh()
	for f, e := range h.index.files {
		if e.err != nil {
			t.Errorf("%s: %v", f, e.err)
			continue
		}
		for _, p := range e.names {
			n++
			if p.Line == 0 {
				t.Errorf("%s: the text scan does not find profile %q", f, p.Name)
			}
		}
	}
	if n == 0 {
		t.Error("no profile was compared")
	}
}

func FuzzScanText(f *testing.F) {
	f.Add("profile a /b flags=(complain) {\n include <x>\n /bin/{a,b} rUx -> c,\n ^h { deny /x ux, }\n}\n")
	f.Add("@{X}=\"a b\" c \\\n d\n\"/q\\\" q\" { change_profile, }")
	f.Add("profile p { unix peer=(label=@{a},addr=@b),, }}}} {{{")
	f.Add("#include\ninclude if exists <\nabi\n->->,^ \\")
	f.Fuzz(func(t *testing.T, text string) {
		if len(text) > 64<<10 {
			return
		}
		s := scanText(rules.File{Path: "x", Data: text}, func(t rules.Token) []rules.File {
			return []rules.File{{Path: t.Text, Data: "/included Ux,\n"}}
		})
		for _, p := range s.profiles {
			if re, ok := compileGlob(p.attachment, s.vars); ok {
				re.MatchString("/usr/bin/x")
			}
		}
		c := &copied{dir: "/scratch"}
		before, after := strings.Count(text, "\n"), strings.Count(string(c.relocate([]byte(text))), "\n")
		if after > before {
			t.Errorf("lines moved: %d, %d", before, after)
		}
	})
}

// The value of a condition may be an alternation, which opens no block.
func TestValuesWithBraces(t *testing.T) {
	s := scanOf("profile p {\n  dbus send member={Get,Set} peer=(name=org.x),\n  /bin/sh Ux,\n}\nprofile q { }\n")
	if len(s.profiles) != 2 || s.profiles[0].name != "p" || s.profiles[1].name != "q" || len(s.profiles[0].leaves) != 1 {
		t.Errorf("%+v", s.profiles)
	}
}
