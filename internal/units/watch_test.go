package units

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// Whatever others do to a drop-in of ours is told; what we do is not, and neither
// is what lies beside it.
func TestDropInsAreWatched(t *testing.T) {
	t.Run("watched", func(t *testing.T) { testDropInsAreWatched(t, false) })
	t.Run("no room for a watch", func(t *testing.T) { testDropInsAreWatched(t, true) })
}

func testDropInsAreWatched(t *testing.T, full bool) {
	s, root := dropInRoot(t)
	real := filepath.Join(root, ourDropIn)
	if full {
		s.dropIns.pause = 30 * time.Millisecond
		s.dropIns.add = func(*fsnotify.Watcher, string) error { return unix.ENOSPC }
	}
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan attach.UnitEvent, 100)
	ended := make(chan struct{})
	run := s.watchDropIns()
	go func() {
		defer close(ended)
		run(ctx, func(e attach.UnitEvent) { events <- e })
	}()
	defer func() { cancel(); <-ended }()

	write := func(text string) {
		t.Helper()
		if _, err := s.WriteDropIn(ourDropIn, text); err != nil {
			t.Fatal(err)
		}
	}
	told := func(what string, want bool) {
		t.Helper()
		wait := 10 * time.Second
		if !want {
			wait = 200 * time.Millisecond
		}
		select {
		case e := <-events:
			if !want || e.Kind != attach.DropInChanged || e.Unit != "agent.service" {
				t.Errorf("%s: %+v", what, e)
			}
		case <-time.After(wait):
			if want {
				t.Errorf("%s was not told", what)
			}
		}
		for { // one change makes several events
			select {
			case <-events:
				continue
			case <-time.After(500 * time.Millisecond):
			}
			return
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// One after the other: of two at once, the first may be read when the second
	// is what is expected, which costs a look and nothing else.
	write("one\n")
	told("our own write", false)
	write("two\n")
	told("our own write", false)
	must(os.WriteFile(filepath.Join(filepath.Dir(real), "override.conf"), []byte("x"), 0o644))
	told("another file", false)
	must(os.WriteFile(real, []byte("three\n"), 0o644))
	told("a change", true)
	write("two\n")
	told("putting it back", false)
	must(os.Remove(real))
	told("a removal", true)
	write("two\n")
	must(os.RemoveAll(filepath.Dir(real)))
	told("the directory's removal", true)
	write("two\n")
	must(os.Rename(filepath.Dir(real), filepath.Dir(real)+".old"))
	told("the directory's new name", true)
	write("two\n")
	must(os.Remove(real))
	must(os.Symlink("/dev/null", real))
	told("a link in its place", true)
	must(os.Remove(real))
	told("the link's removal", true)
	write("two\n")
	told("putting it back once more", false)
	if _, err := s.RemoveDropIn(ourDropIn); err != nil {
		t.Fatal(err)
	}
	told("our own removal", false)
}
