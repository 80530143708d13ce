package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestOnlyOneHasTheState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	release, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // one that was refused takes nothing with it
		_, err := Lock(dir)
		if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), fmt.Sprintf("%s, which PID %d (", dir, os.Getpid())) {
			t.Errorf("a second one: %v", err)
		}
	}
	other, err := Lock(t.TempDir())
	if err != nil {
		t.Errorf("other state: %v", err)
	} else {
		other()
	}
	release()
	// Nothing of it is in the way of what reads the state.
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left there: %v %v", left, err)
	}
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	if release, err = Lock(dir); err != nil {
		t.Fatalf("afterwards, where nothing can be written: %v", err)
	}
	release()
}

// Where there is no state to share, nobody else is said to have it.
func TestNoStateToLock(t *testing.T) {
	dir := t.TempDir()
	link, file := filepath.Join(dir, "link"), filepath.Join(dir, "file")
	if err := errors.Join(os.Symlink(dir, link), os.WriteFile(file, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, file, filepath.Join(link, "below")} {
		if _, err := Lock(path); err == nil || errors.Is(err, ErrLocked) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func TestLockers(t *testing.T) {
	got := lockers(`1: POSIX  ADVISORY  WRITE 10 fe:00:1 0 EOF
2: FLOCK  ADVISORY  WRITE 11 00:19:2 0 EOF
2: -> FLOCK  ADVISORY  WRITE 12 00:19:2 0 EOF
3: FLOCK  ADVISORY  READ  13 00:19:3 0 EOF
4: FLOCK  ADVISORY  WRITE 0 00:19:4 0 EOF
5: FLOCK  ADVISORY  WRITE 14 fe:00:5 0 EOF
6: OFDLCK ADVISORY  WRITE -1 fe:00:6 0 EOF
`)
	if want := []int{11, 14}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
