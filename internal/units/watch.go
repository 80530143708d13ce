package units

import (
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/inotify"
	"github.com/aaunit/aaunit/internal/safefile"
)

// lookAgain is how often drop-ins are read that cannot be watched (inotify(7),
// "/proc interfaces").
const lookAgain = 10 * time.Second

// dropInWatch tells of changes that others make to our drop-ins. systemd sends
// no signal for them, and reads a unit that was not loaded with whatever its
// directories hold at that moment. What is read or written is watched from then
// on.
type dropInWatch struct {
	mu        sync.Mutex
	following bool
	by        *inotify.Watcher // nil: there is none to be had
	texts     map[string]sum   // of what they hold, by path as it really is
	blind     bool             // something is not watched
	said      bool             // … and that was said
	// again wakes the loop when something cannot be watched.
	again chan struct{}

	// For tests: what watches a directory, and how often the others are read.
	add   func(w *inotify.Watcher, dir string) error
	pause time.Duration
}

// sum is a checksum of a text; that of no text is a file's that is not there.
type sum [sha256.Size]byte

func sumOf(text string) sum { return sha256.Sum256([]byte(text)) }

// note remembers how a drop-in was left, and watches its directory.
func (s *Systemd) note(real, text string) {
	w := &s.dropIns
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.following {
		return
	}
	w.texts[real] = sumOf(text)
	s.watchDir(filepath.Dir(real))
}

// watchDir watches a directory, each time anew: a watch goes with its directory.
// The lock is held.
func (s *Systemd) watchDir(dir string) {
	w := &s.dropIns
	err := errors.New("there are too many watches")
	if w.by != nil {
		add := (*inotify.Watcher).Add
		if w.add != nil {
			add = w.add
		}
		err = add(w.by, dir)
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return
	}
	w.blind = true
	if !w.said {
		w.said = true
		s.log.Warn("cannot watch drop-ins; until a later try succeeds they are read now and then", "dir", dir, "err", err)
	}
	select {
	case w.again <- struct{}{}:
	default:
	}
}

// watchDropIns begins to watch. The function that it returns hands changes to
// tell until ctx ends.
func (s *Systemd) watchDropIns() (run func(ctx context.Context, tell func(attach.UnitEvent))) {
	w := &s.dropIns
	w.mu.Lock()
	w.following, w.texts, w.again = true, map[string]sum{}, make(chan struct{}, 1)
	w.by, _ = inotify.New() // without one, the first directory says so
	w.mu.Unlock()
	return func(ctx context.Context, tell func(attach.UnitEvent)) {
		s.followDropIns(ctx, tell)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.following = false
		if w.by != nil {
			w.by.Close()
		}
	}
}

func (s *Systemd) followDropIns(ctx context.Context, tell func(attach.UnitEvent)) {
	w := &s.dropIns
	changed := func(dir string) {
		if w.changed(filepath.Join(dir, attach.DropInName)) {
			tell(attach.UnitEvent{Kind: attach.DropInChanged, Unit: strings.TrimSuffix(filepath.Base(dir), ".d")})
		}
	}
	pause := lookAgain
	if w.pause > 0 {
		pause = w.pause
	}
	var later <-chan time.Time
	for {
		var events <-chan fsnotify.Event
		var lost <-chan error
		w.mu.Lock()
		if w.by != nil {
			events, lost = w.by.Events, w.by.Lost
		}
		if w.blind && later == nil {
			later = time.After(pause)
		}
		w.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-w.again:
		case <-later:
			later = nil
			for _, dir := range s.watchAgain() {
				changed(dir)
			}
		case <-lost:
			// Events were lost: all may have changed.
			tell(attach.UnitEvent{Kind: attach.UnitsReloaded})
		case ev := <-events:
			dir := filepath.Clean(ev.Name)
			if filepath.Base(dir) == attach.DropInName {
				dir = filepath.Dir(dir)
			}
			changed(dir)
		}
	}
}

// watchAgain tries to watch every directory, and lists them.
func (s *Systemd) watchAgain() (dirs []string) {
	w := &s.dropIns
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		w.by, _ = inotify.New()
	}
	w.blind = false
	for _, file := range slices.Sorted(maps.Keys(w.texts)) {
		dirs = append(dirs, filepath.Dir(file))
		s.watchDir(filepath.Dir(file))
	}
	w.said = w.blind
	return dirs
}

// changed reports, once, that a drop-in is not as we left it.
func (w *dropInWatch) changed(real string) bool {
	f, err := safefile.Read(real, maxDropIn)
	now := string(f.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		now = ""
	case err != nil:
		now = "\x00" // something else has its name
	}
	is := sumOf(now)
	w.mu.Lock()
	defer w.mu.Unlock()
	was, known := w.texts[real]
	if !known || is == was {
		return false
	}
	w.texts[real] = is
	return true
}
