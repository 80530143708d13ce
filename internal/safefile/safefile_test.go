package safefile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestWriteSaysWhetherItChanged(t *testing.T) {
	p := filepath.Join(t.TempDir(), "a.conf")
	for i, want := range []bool{true, false} {
		if got, err := Write(p, []byte("x\n"), 0o644); err != nil || got != want {
			t.Fatalf("write %d: changed %v, %v; want %v", i, got, err, want)
		}
	}
	f, err := Read(p, 10)
	if err != nil || string(f.Data) != "x\n" || f.Mode != 0o644 {
		t.Fatalf("read back %q %o %v", f.Data, f.Mode, err)
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(p), ".*")); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestNothingFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(victim, link); err != nil {
		t.Fatal(err)
	}
	through := filepath.Join(dir, "through")
	if err := os.Symlink(dir, through); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{link, filepath.Join(through, "victim")} {
		if _, err := Read(p, 100); err == nil {
			t.Errorf("Read followed %s", p)
		}
		if _, err := Write(p, []byte("evil"), 0o644); err == nil {
			t.Errorf("Write followed %s", p)
		}
	}
	if _, err := Remove(filepath.Join(through, "victim")); err == nil {
		t.Error("Remove followed a link to the directory")
	}
	if err := MkdirAll(filepath.Join(through, "sub"), 0o755); err == nil {
		t.Error("MkdirAll followed a link")
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "precious" {
		t.Fatalf("victim is %q, %v", b, err)
	}
}

func TestReadRefusesWhatIsNoSmallFile(t *testing.T) {
	dir := t.TempDir()
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, make([]byte, 101), 0o600); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{big, fifo, dir} {
		if _, err := Read(p, 100); err == nil {
			t.Errorf("Read took %s", p)
		}
	}
	if _, err := Read(filepath.Join(dir, "none"), 100); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestOnlyBy(t *testing.T) {
	for _, c := range []struct {
		f  File
		ok bool
	}{
		{File{UID: 0, Mode: 0o644}, true},
		{File{UID: 0, Mode: 0o600}, true},
		{File{UID: 0, Mode: 0o664}, false},
		{File{UID: 0, Mode: 0o646}, false},
		{File{UID: 1000, Mode: 0o644}, false},
	} {
		if err := c.f.OnlyBy(0); (err == nil) != c.ok {
			t.Errorf("uid %d mode %o: %v", c.f.UID, c.f.Mode, err)
		}
	}
}

// A name that a file can have can be written, and nothing is cut.
func TestTheLongestNames(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []int{230, 241, 255} {
		name := filepath.Join(dir, strings.Repeat("n", n))
		if changed, err := Write(name, []byte("x"), 0o644); err != nil || !changed {
			t.Errorf("a name of %d bytes: %v", n, err)
		}
		if f, err := Read(name, 1); err != nil || string(f.Data) != "x" {
			t.Errorf("a name of %d bytes: %v", n, err)
		}
	}
	if _, err := Write(filepath.Join(dir, strings.Repeat("n", 256)), []byte("x"), 0o644); !errors.Is(err, unix.ENAMETOOLONG) {
		t.Errorf("a name of 256 bytes: %v", err)
	}
	if _, err := Write("/"+strings.Repeat("d/", 2100)+"x", []byte("x"), 0o644); err == nil {
		t.Error("a path of more than 4096 bytes was written")
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 3 {
		t.Errorf("%d files, %v", len(left), err)
	}
}
