package units

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/inotify"
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
		s.dropIns.add = func(*inotify.Watcher, string) error { return unix.ENOSPC }
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
	// quiet returns the last event until there are none for a while: one change
	// makes several.
	quiet := func(wait time.Duration) (last attach.UnitEvent, told bool) {
		for {
			select {
			case last = <-events:
				told, wait = true, 500*time.Millisecond
			case <-time.After(wait):
				return last, told
			}
		}
	}
	told := func(what string) {
		t.Helper()
		select {
		case e := <-events:
			if e.Kind != attach.DropInChanged || e.Unit != "agent.service" {
				t.Errorf("%s: %+v", what, e)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s was not told", what)
		}
		quiet(500 * time.Millisecond)
	}
	// A look just between our write and the note of it takes that for somebody's,
	// which costs a look more and nothing else. It does not happen each time.
	notTold := func(what string, do func()) {
		t.Helper()
		var last attach.UnitEvent
		for range 4 {
			do()
			var told bool
			if last, told = quiet(200 * time.Millisecond); !told {
				return
			}
		}
		t.Errorf("%s was told: %+v", what, last)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	notTold("our own write", func() { n++; write(fmt.Sprintf("%d\n", n)) })
	notTold("another file", func() {
		n++
		must(os.WriteFile(filepath.Join(filepath.Dir(real), "override.conf"), fmt.Appendf(nil, "%d", n), 0o644))
	})
	must(os.WriteFile(real, []byte("three\n"), 0o644))
	told("a change")
	notTold("putting it back", func() { n++; write(fmt.Sprintf("%d\n", n)) })
	must(os.Remove(real))
	told("a removal")
	write("two\n")
	quiet(200 * time.Millisecond)
	must(os.RemoveAll(filepath.Dir(real)))
	told("the directory's removal")
	write("two\n")
	quiet(200 * time.Millisecond)
	must(os.Rename(filepath.Dir(real), filepath.Dir(real)+".old"))
	told("the directory's new name")
	write("two\n")
	quiet(200 * time.Millisecond)
	must(os.Remove(real))
	must(os.Symlink("/dev/null", real))
	told("a link in its place")
	must(os.Remove(real))
	told("the link's removal")
	notTold("our own removal", func() {
		write("two\n")
		quiet(200 * time.Millisecond)
		if _, err := s.RemoveDropIn(ourDropIn); err != nil {
			t.Fatal(err)
		}
	})
}
