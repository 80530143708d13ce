package units

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const ourDropIn = "/etc/systemd/system/agent.service.d/90-aaunit.conf"

// dropInRoot is a root directory with systemd's directories in it.
func dropInRoot(t *testing.T) (*Systemd, string) {
	t.Helper()
	root := t.TempDir()
	for _, d := range []string{"etc", "run"} {
		if err := os.MkdirAll(filepath.Join(root, d, "systemd/system"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return New(Options{Root: root}), root
}

func TestDropInLife(t *testing.T) {
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	s, root := dropInRoot(t)
	file := filepath.Join(root, ourDropIn)

	if _, exists, err := s.ReadDropIn(ourDropIn); exists || err != nil {
		t.Fatalf("before: exists %v, %v", exists, err)
	}
	if changed, err := s.RemoveDropIn(ourDropIn); changed || err != nil {
		t.Fatalf("removing nothing: changed %v, %v", changed, err)
	}
	for i, want := range []bool{true, false} {
		if changed, err := s.WriteDropIn(ourDropIn, "[Service]\n"); changed != want || err != nil {
			t.Fatalf("write %d: changed %v, %v", i, changed, err)
		}
	}
	for path, mode := range map[string]os.FileMode{file: 0o644, filepath.Dir(file): 0o755 | os.ModeDir} {
		if st, err := os.Stat(path); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, %v; want mode %v whatever the umask", path, st.Mode(), err, mode)
		}
	}
	if text, exists, err := s.ReadDropIn(ourDropIn); text != "[Service]\n" || !exists || err != nil {
		t.Fatalf("read %q, %v, %v", text, exists, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(file), ".*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	// What a crash left goes too; what others put there keeps the directory.
	stale := filepath.Join(filepath.Dir(file), ".90-aaunit.conf.ABCDEFGH.tmp")
	other := filepath.Join(filepath.Dir(file), "override.conf")
	for _, f := range []string{stale, other} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if changed, err := s.RemoveDropIn(ourDropIn); !changed || err != nil {
		t.Fatalf("remove: changed %v, %v", changed, err)
	}
	if _, err := os.Lstat(stale); !os.IsNotExist(err) {
		t.Errorf("the temporary file is still there: %v", err)
	}
	if _, err := os.Lstat(other); err != nil {
		t.Errorf("somebody else's drop-in: %v", err)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if changed, err := s.RemoveDropIn(ourDropIn); changed || err != nil {
		t.Fatalf("remove again: changed %v, %v", changed, err)
	}
	if _, err := os.Lstat(filepath.Dir(file)); !os.IsNotExist(err) {
		t.Errorf("the empty directory is still there: %v", err)
	}
}

func TestDropInPlaces(t *testing.T) {
	s, _ := dropInRoot(t)
	for _, path := range []string{
		"/etc/systemd/system/a.service.d/90-aaunit.conf",
		"/run/systemd/system/a.service.d/90-aaunit.conf",
		"/etc/systemd/system/a@.service.d/90-aaunit.conf",
		"/etc/systemd/system/a@b.service.d/90-aaunit.conf",
		"/etc/systemd/system/a-.service.d/90-aaunit.conf",
		`/etc/systemd/system/a\x2db.service.d/90-aaunit.conf`,
	} {
		if changed, err := s.WriteDropIn(path, "x"); !changed || err != nil {
			t.Errorf("%s: changed %v, %v", path, changed, err)
		}
	}
	for _, path := range []string{
		"", "/", "90-aaunit.conf", "/etc/passwd",
		"/etc/systemd/system/a.service.d/zz.conf",
		"/etc/systemd/system/a.service/90-aaunit.conf",
		"/etc/systemd/system/a.timer.d/90-aaunit.conf",
		"/etc/systemd/system/service.d/90-aaunit.conf",
		"/etc/systemd/system/../system/a.service.d/90-aaunit.conf",
		"/etc/systemd/system//a.service.d/90-aaunit.conf",
		"/etc/systemd/system/a.service.d//90-aaunit.conf",
		"/etc/systemd/system/a.service.d/x/90-aaunit.conf",
		"/etc/systemd/system/../../../tmp/a.service.d/90-aaunit.conf",
		"/etc/systemd/system/.service.d/90-aaunit.conf",
		"/etc/systemd/system/a\nb.service.d/90-aaunit.conf",
		"/etc/systemd/system/a b.service.d/90-aaunit.conf",
		"/etc/systemd/user/a.service.d/90-aaunit.conf",
		"/usr/lib/systemd/system/a.service.d/90-aaunit.conf",
		"etc/systemd/system/a.service.d/90-aaunit.conf",
		"/etc/systemd/system/a.service.d/90-aaunit.conf/",
		"/etc/systemd/system/a.service.d/90-aaunit.conf\x00",
		"/etc/systemd/system/" + strings.Repeat("a", 256) + ".service.d/90-aaunit.conf",
	} {
		if _, err := s.WriteDropIn(path, "x"); err == nil {
			t.Errorf("WriteDropIn took %q", path)
		}
		if _, err := s.RemoveDropIn(path); err == nil {
			t.Errorf("RemoveDropIn took %q", path)
		}
		if _, _, err := s.ReadDropIn(path); err == nil {
			t.Errorf("ReadDropIn took %q", path)
		}
	}
}

// Whoever can make files where a drop-in goes must not get us to write, read
// or remove anything elsewhere.
func TestDropInFollowsNoLink(t *testing.T) {
	for _, c := range []struct {
		name, says string
		set        func(root, victim string) error
	}{
		{"the file is a link", "a symbolic link", func(root, victim string) error {
			return os.Symlink(filepath.Join(victim, "file"), filepath.Join(root, ourDropIn))
		}},
		{"the file is a dangling link", "a symbolic link", func(root, victim string) error {
			return os.Symlink(filepath.Join(victim, "none"), filepath.Join(root, ourDropIn))
		}},
		{"the file is a directory", "a directory", func(root, _ string) error { return os.Mkdir(filepath.Join(root, ourDropIn), 0o755) }},
		{"the file is a pipe", "a named pipe", func(root, _ string) error { return unix.Mkfifo(filepath.Join(root, ourDropIn), 0o600) }},
		{"its directory is a link", "a symbolic link", func(root, victim string) error {
			d := filepath.Dir(filepath.Join(root, ourDropIn))
			if err := os.Remove(d); err != nil {
				return err
			}
			return os.Symlink(victim, d)
		}},
		{"its directory is a file", "a file", func(root, _ string) error {
			d := filepath.Dir(filepath.Join(root, ourDropIn))
			if err := os.Remove(d); err != nil {
				return err
			}
			return os.WriteFile(d, nil, 0o644)
		}},
		{"a directory above is a link", "a symbolic link", func(root, victim string) error {
			d := filepath.Join(root, "etc/systemd/system")
			if err := os.Rename(d, filepath.Join(victim, "system")); err != nil {
				return err
			}
			return os.Symlink(filepath.Join(victim, "system"), d)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, root := dropInRoot(t)
			victim := t.TempDir()
			for _, f := range []string{"file", "90-aaunit.conf"} {
				if err := os.WriteFile(filepath.Join(victim, f), []byte("precious"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Mkdir(filepath.Dir(filepath.Join(root, ourDropIn)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.set(root, victim); err != nil {
				t.Fatal(err)
			}
			wrong := func(what string, err error) {
				t.Helper()
				if err == nil || !strings.HasPrefix(err.Error(), "cannot ") || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %v; want an error that says %q", what, err, c.says)
				}
			}
			_, err := s.WriteDropIn(ourDropIn, "evil")
			wrong("WriteDropIn", err)
			_, _, err = s.ReadDropIn(ourDropIn)
			wrong("ReadDropIn", err)
			_, err = s.RemoveDropIn(ourDropIn)
			wrong("RemoveDropIn", err)
			for _, f := range []string{"file", "90-aaunit.conf"} {
				if b, err := os.ReadFile(filepath.Join(victim, f)); err != nil || string(b) != "precious" {
					t.Errorf("the victim's %s is %q, %v", f, b, err)
				}
			}
			if left, _ := os.ReadDir(victim); len(left) > 3 {
				t.Errorf("files came into the victim's directory: %v", left)
			}
		})
	}
}

func TestDropInTooLarge(t *testing.T) {
	s, root := dropInRoot(t)
	big := strings.Repeat("#", maxDropIn+1)
	if _, err := s.WriteDropIn(ourDropIn, big); err == nil {
		t.Error("WriteDropIn took it")
	}
	file := filepath.Join(root, ourDropIn)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(big), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := s.ReadDropIn(ourDropIn); err == nil || !strings.Contains(err.Error(), "larger than 65536 bytes") {
		t.Errorf("ReadDropIn: %v", err)
	}
}

func TestDropInNames(t *testing.T) {
	for unit, want := range map[string]string{
		"a.service":       "a.service",
		"a-b--c.service":  "a-b--c.service a-b--.service a-b-.service a-.service",
		"a-b@.service":    "a-b@.service a-.service a-@.service",
		"a-b@c-d.service": "a-b@.service a-b@c-d.service a-.service a-@.service a-@c-d.service",
		"-.service":       "-.service",
	} {
		if got := strings.Join(dropInNames(unit), " "); got != want {
			t.Errorf("%s: %s, want %s", unit, got, want)
		}
	}
}

// What reaches every unit of a template or prefix is read from all directories, of each
// name the one that systemd reads.
func TestPattern(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{
		"/usr/lib/systemd/system/a-b@.service":                 "[Service]\nAppArmorProfile=vendors\n",
		"/etc/systemd/system/a-b@.service.d/90-aaunit.conf":    "[Unit]\nAssertSecurity=apparmor\n[Service]\nAppArmorProfile=a-%i\n",
		"/etc/systemd/system/a-b@.service.d/zz.conf":           "[Service]\nAppArmorProfile=\n",
		"/usr/lib/systemd/system/a-b@.service.d/zz.conf":       "[Service]\nPrivateTmp=no\n",
		"/usr/lib/systemd/system/service.d/99-x.conf":          "[Service]\nPrivateTmp=no\n",
		"/usr/lib/systemd/system/a-.service.d/masked.conf":     "[Service]\nPrivateTmp=no\n",
		"/etc/systemd/system/a-b@one.service.d/zzz.conf":       "[Service]\nAppArmorProfile=one\n",
		"/etc/systemd/system/a-b@.service.d/zzz.conf.dpkg-new": "[Service]\nAppArmorProfile=\n",
		"/etc/systemd/system/a-.service.d/50-a.conf":           "[Service]\nNice=1\nExecStartPre=\n",
		"/etc/systemd/system/a-.service.d/90-aaunit.conf":      "[Service]\nAppArmorProfile=a\n",
		"/etc/systemd/system/a-b@.service.d/masked.conf":       "->/dev/null",
	} {
		put(t, root, path, text)
	}
	for name, read := range map[string]func(string) (attach.Unit, error){"systemd": New(Options{Root: root}).Pattern, "an image": NewImage(root).Pattern} {
		for pattern, want := range map[string]string{
			"a-b@.service": "50-a.conf:3 ExecStartPre=, 90-aaunit.conf:2 AssertSecurity=apparmor, 90-aaunit.conf:4 AppArmorProfile=a-%i, 99-x.conf:2 PrivateTmp=no, zz.conf:2 AppArmorProfile=",
			"a-.service":   "50-a.conf:3 ExecStartPre=, 90-aaunit.conf:2 AppArmorProfile=a, 99-x.conf:2 PrivateTmp=no, masked.conf:2 PrivateTmp=no",
			"b@.service":   "99-x.conf:2 PrivateTmp=no",
		} {
			u, err := read(pattern)
			var got []string
			for _, a := range u.Settings.Assignments {
				got = append(got, fmt.Sprintf("%s:%d %s=%s", filepath.Base(a.Path), a.Line, a.Key, a.Value))
			}
			if s := strings.Join(got, ", "); err != nil || s != want || u.ID != pattern || u.FragmentPath != "" {
				t.Errorf("%s, %s: %v, %+v\n%s, want\n%s", name, pattern, err, u, s, want)
			}
		}
	}
	if err := os.Mkdir(root+"/etc/systemd/system/a-.service.d/60-dir.conf", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Options{Root: root}).Pattern("a-.service"); err == nil || !strings.Contains(err.Error(), "60-dir.conf") {
		t.Errorf("what cannot be read: %v", err)
	}
}

// A drop-in that systemd has not read, though it does not say so.
func TestUnreadDropIn(t *testing.T) {
	s, root := dropInRoot(t)
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"a-b@c.service": bare("a-b@c.service")})
	s.address = b.addr
	t.Cleanup(func() { s.Close() })
	need := func(want bool) {
		t.Helper()
		if u, err := s.Observe(t.Context(), "a-b@c.service"); err != nil || u.NeedReload != want {
			t.Errorf("NeedReload is %v, %v", u.NeedReload, err)
		}
	}
	need(false)
	for _, path := range []string{"/etc/systemd/system/a-b@c.service.d/90-aaunit.conf", "/run/systemd/system/a-@.service.d/90-aaunit.conf", "/etc/systemd/system/a-.service.d/90-aaunit.conf"} {
		if _, err := s.WriteDropIn(path, "x"); err != nil {
			t.Fatal(err)
		}
		need(true)
		b.has(map[string]map[string]any{"a-b@c.service": with(bare("a-b@c.service"), map[string]any{"DropInPaths": []string{path}})})
		need(false)
		b.has(map[string]map[string]any{"a-b@c.service": bare("a-b@c.service")})
		if _, err := s.RemoveDropIn(path); err != nil {
			t.Fatal(err)
		}
	}
	// Masked by a link: not to be read at all.
	dir := filepath.Join(root, "etc/systemd/system/a-b@c.service.d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(os.DevNull, filepath.Join(dir, "90-aaunit.conf")); err != nil {
		t.Fatal(err)
	}
	need(false)
}

// Whatever else has the name is none of ours.
func TestDropInsAreFound(t *testing.T) {
	s, root := dropInRoot(t)
	for _, f := range []string{
		ourDropIn, "/run/systemd/system/x@.service.d/90-aaunit.conf",
		"/etc/systemd/system/a.socket.d/90-aaunit.conf", "/etc/systemd/system/a.timer.d/90-aaunit.conf", "/etc/systemd/system/a.service.d/override.conf", "/etc/systemd/system/b.service/90-aaunit.conf",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, f), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := s.DropIns(); err != nil || !slices.Equal(got, []string{"/etc/systemd/system/a.socket.d/90-aaunit.conf", ourDropIn, "/run/systemd/system/x@.service.d/90-aaunit.conf"}) {
		t.Errorf("%q, %v", got, err)
	}
}

// FuzzUnitPaths takes names that come over the bus, and paths that come from a
// record: a unit's object is that unit's, and a drop-in lies where it belongs.
func FuzzUnitPaths(f *testing.F) {
	for _, name := range []string{"a.service", "a-b@c.service", "agent@.service", "_.service", "-.service", "../x.service", "a_2e.service"} {
		f.Add(name, "/org/freedesktop/systemd1/unit/a_2eservice", "/etc/systemd/system/"+name+".d/90-aaunit.conf")
	}
	f.Add("", "/org/freedesktop/systemd1/unit/_2", "/etc/systemd/system/a.service.d/../../../passwd")
	f.Fuzz(func(t *testing.T, name, object, dropIn string) {
		if got, ok := unitOf(dbus.ObjectPath(object)); ok && got == "" {
			t.Errorf("%q is the object of a unit without a name", object)
		}
		s := New(Options{Root: "/root"})
		if real, err := s.place(dropIn); err == nil {
			dir := filepath.Dir(real)
			if real != "/root"+dropIn || filepath.Base(real) != attach.DropInName || filepath.Dir(dir) != "/root/etc/systemd/system" && filepath.Dir(dir) != "/root/run/systemd/system" {
				t.Errorf("drop-in %q is placed at %s", dropIn, real)
			}
		}
		if fullName(name) != nil {
			return
		}
		if got, ok := unitOf(pathOf(name)); !ok || got != name {
			t.Errorf("%q became %q by %s", name, got, pathOf(name))
		}
		for _, n := range dropInNames(name) {
			if strings.Contains(n, "/") || filepath.Ext(n) != filepath.Ext(name) {
				t.Errorf("%q is served by %q", name, n)
			}
		}
	})
}

// A unit may have a name for which no directory of drop-ins can be.
func TestDropInOfALongName(t *testing.T) {
	s, _ := dropInRoot(t)
	for n, fits := range map[int]bool{253: true, 254: false, 255: false} {
		unit := strings.Repeat("n", n-len(".service")) + ".service"
		path := attach.DropInPath(unit, false)
		changed, err := s.WriteDropIn(path, "x\n")
		_, exists, readErr := s.ReadDropIn(path)
		if fits != (changed && err == nil && exists && readErr == nil) {
			t.Errorf("%d bytes: %v, %v", n, err, readErr)
		}
		if !fits && (!strings.Contains(err.Error(), "give the unit a name of at most 253") || readErr == nil) {
			t.Errorf("%d bytes: %v, %v", n, err, readErr)
		}
	}
}
