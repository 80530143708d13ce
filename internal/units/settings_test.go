package units

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestParseAssignments(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string // line, key=value
	}{
		{"plain", "[Unit]\nAssertSecurity=apparmor\n\n[Service]\nAppArmorProfile=agent\nPrivateTmp=yes\n", []string{
			"2 AssertSecurity=apparmor", "5 AppArmorProfile=agent", "6 PrivateTmp=yes"}},
		{"no newline at the end", "[Service]\nAppArmorProfile=a", []string{"2 AppArmorProfile=a"}},
		{"white space", "\t[Service] \n  AppArmorProfile \t=\t my agent \t\n", []string{"2 AppArmorProfile=my agent"}},
		{"equals sign and percent in the value", "[Service]\nAppArmorProfile=a=%i%%\n", []string{"2 AppArmorProfile=a=%i%%"}},
		{"reset", "[Service]\nAppArmorProfile=\nAppArmorProfile =  \n", []string{"2 AppArmorProfile=", "3 AppArmorProfile="}},
		{"wrong section", "[Unit]\nAppArmorProfile=a\n[Service]\nAssertSecurity=apparmor\n[X-Service]\nAppArmorProfile=a\n", nil},
		{"no section", "AppArmorProfile=a\n", nil},
		{"case matters", "[service]\nAppArmorProfile=a\n[Service]\napparmorprofile=a\n", nil},
		{"comments", "[Service]\n#AppArmorProfile=a\n ;AppArmorProfile=b\nAppArmorProfile=c # d\n", []string{"4 AppArmorProfile=c # d"}},
		{"continued", "[Service]\nAppArmorProfile=my \\\n  agent\nPrivateTmp=no\n", []string{"2 AppArmorProfile=my  agent", "4 PrivateTmp=no"}},
		{"key continued", "[Service]\nAppArmorProfile\\\n=a\n", []string{"2 AppArmorProfile=a"}},
		{"comment inside a continuation", "[Service]\nAppArmorProfile=\\\n# no\\\n; no\na\n", []string{"2 AppArmorProfile=a"}},
		{"continuation hides a setting", "[Service]\nExecStart=/bin/a \\\nAppArmorProfile=b\n", nil},
		{"an empty line ends a continuation", "[Service]\nExecStart=/bin/a \\\n\nAppArmorProfile=b\n", []string{"4 AppArmorProfile=b"}},
		{"two backslashes do not continue", "[Service]\nExecStart=/bin/a \\\\\nAppArmorProfile=b\n", []string{"3 AppArmorProfile=b"}},
		{"a backslash and a blank do not continue", "[Service]\nExecStart=/bin/a \\ \nAppArmorProfile=b\n", []string{"3 AppArmorProfile=b"}},
		{"continued to the end of the file", "[Service]\nAppArmorProfile=a\\", []string{"2 AppArmorProfile=a"}},
		{"line ends of other systems", "[Service]\r\nAppArmorProfile=a\r\nPrivateTmp=yes\rPermissionsStartOnly=yes\x00", []string{
			"2 AppArmorProfile=a", "3 PrivateTmp=yes", "4 PermissionsStartOnly=yes"}},
		{"byte order mark", "\ufeff[Service]\nAppArmorProfile=a\n", []string{"2 AppArmorProfile=a"}},
		{"not UTF-8", "[Service]\nAppArmorProfile=\xff\nPrivateTmp=yes\n", []string{"3 PrivateTmp=yes"}},
		{"a broken header ends the file", "[Service]\nPrivateTmp=yes\n[Servi\nAppArmorProfile=a\n", []string{"2 PrivateTmp=yes"}},
		{"empty", "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := parseAssignments(strings.NewReader(c.text), "f")
			if err != nil {
				t.Fatal(err)
			}
			var said []string
			for _, a := range got {
				said = append(said, fmt.Sprintf("%d %s=%s", a.Line, a.Key, a.Value))
			}
			if d := cmp.Diff(c.want, said); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}

func TestParseAssignmentsBounds(t *testing.T) {
	if _, err := parseAssignments(strings.NewReader(strings.Repeat("#\n", maxUnitFile/2+1)), "f"); err == nil {
		t.Error("a file of more than a mebibyte was read")
	}
	// One line as long as the file may be.
	if _, err := parseAssignments(strings.NewReader(strings.Repeat("a", maxUnitFile)), "f"); err != nil {
		t.Error(err)
	}
}

func FuzzParseAssignments(f *testing.F) {
	for _, s := range []string{
		"[Unit]\nAssertSecurity=apparmor\n[Service]\nAppArmorProfile=agent\nPrivateTmp=yes\nPermissionsStartOnly=no\n",
		"[Service]\nAppArmorProfile=a\\\n#b\\\n;c\n d\n", "[Service]\r\nAppArmorProfile=\r\n", "[\nA=b", "[]\n=\n", "\\\n\\\n\\",
		"\ufeff[Service]\nAppArmorProfile=\xff\x00PrivateTmp=1",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseAssignments(strings.NewReader(text), "f")
		if err != nil {
			return
		}
		last := 0
		for _, a := range got {
			if a.Line <= last || a.Line > strings.Count(text, "\n")+strings.Count(text, "\r")+strings.Count(text, "\x00")+1 {
				t.Errorf("line %d after line %d", a.Line, last)
			}
			last = a.Line
			if !slices.Contains(append(watchedKeys["Unit"], watchedKeys["Service"]...), a.Key) {
				t.Errorf("key %q", a.Key)
			}
			if a.Value != strings.Trim(a.Value, whiteSpace) || !utf8.ValidString(a.Value) || strings.ContainsAny(a.Value, "\n\r\x00") {
				t.Errorf("value %q", a.Value)
			}
		}
	})
}

func TestAssignmentsOfFiles(t *testing.T) {
	root := t.TempDir()
	put := func(path, text string) {
		t.Helper()
		file := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("/u/a.service", "[Service]\nPrivateTmp=yes\n")
	put("/u/a.service.d/10.conf", "[Service]\nAppArmorProfile=a\n")
	put("/e/a.service.d/90.conf", "[Service]\nAppArmorProfile=\n")
	s := New(Options{Root: root})
	u := attach.Unit{LoadState: "loaded", FragmentPath: "/u/a.service", DropIns: []string{"/u/a.service.d/10.conf", "/e/a.service.d/gone.conf", "/e/a.service.d/90.conf"}}
	got, err := s.assignments(u)
	if err != nil {
		t.Fatal(err)
	}
	want := []attach.Assignment{
		{Key: "PrivateTmp", Value: "yes", Path: "/u/a.service", Line: 2},
		{Key: "AppArmorProfile", Value: "a", Path: "/u/a.service.d/10.conf", Line: 2},
		{Key: "AppArmorProfile", Value: "", Path: "/e/a.service.d/90.conf", Line: 2},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}

	// What is there and cannot be read is said.
	if err := unix.Mkfifo(filepath.Join(root, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	put("/big", strings.Repeat("#", maxUnitFile+1))
	for _, path := range []string{"/pipe", "/big", "/u", "relative"} {
		u.DropIns = []string{path}
		if _, err := s.assignments(u); err == nil || !strings.Contains(err.Error(), "cannot read unit file") {
			t.Errorf("%s: %v", path, err)
		}
	}
	for _, state := range []string{"masked", "not-found"} {
		u.LoadState = state
		if got, err := s.assignments(u); got != nil || err != nil {
			t.Errorf("%s: %v, %v", state, got, err)
		}
	}
}

func TestUserFile(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/user")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"a.service", "t@.service"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s := New(Options{Root: root})
	const in = "/usr/lib/systemd/user/"
	for unit, want := range map[string]string{"a.service": in + "a.service", "b.service": "", "t@x.service": in + "t@.service", "t@.service": in + "t@.service", "../user/a.service": "", "": ""} {
		if got := s.userFile(unit); got != want {
			t.Errorf("userFile(%q) is %q", unit, got)
		}
	}
}
