package safefile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestNothingLeadsOutOfTheTree(t *testing.T) {
	outside := t.TempDir()
	root := filepath.Join(outside, "root")
	for _, dir := range []string{"/etc", "/usr/lib"} {
		if err := os.MkdirAll(root+dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{outside + "/secret": "outside", root + "/secret": "inside", root + "/usr/lib/file": "file"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"/etc/absolute": "/secret", "/etc/up": "../../../../../secret", "/etc/host": outside + "/secret", "/lib": "usr/lib", "/etc/self": "/proc/self/exe",
		"/etc/loop": "loop",
	} {
		if err := os.Symlink(to, root+name); err != nil {
			t.Fatal(err)
		}
	}
	for path, want := range map[string]string{
		"/etc/absolute": "/secret", "/etc/up": "/secret", "/lib/file": "/usr/lib/file", "/etc/../../secret": "/secret", "/": "/", "lib/file": "/usr/lib/file",
	} {
		if got, err := Within(root, path); err != nil || got != want {
			t.Errorf("%s leads to %s, not %s: %v", path, got, want, err)
		}
	}
	f, err := OpenWithin(root, "/etc/up", os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); string(text) != "inside" || err != nil {
		t.Errorf("read %q, %v", text, err)
	}
	for _, path := range []string{"/etc/host", "/etc/self", "/etc/none"} {
		if got, err := Within(root, path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s leads to %q, %v", path, got, err)
		}
	}
	if got, err := Within(root, "/etc/loop"); err == nil {
		t.Errorf("a loop leads to %q", got)
	}
	if _, err := OpenWithin(root+"/none", "/etc", os.O_RDONLY); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no tree: %v", err)
	}
}
