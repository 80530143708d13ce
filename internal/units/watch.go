package units

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/fsnotify/fsnotify"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// dropInWatch tells of changes that others make to our drop-ins. systemd sends
// no signal for them, and reads a unit that was not loaded with whatever its
// directories hold at that moment. What is read or written is watched from then
// on; what cannot be watched is found at the next look.
type dropInWatch struct {
	mu    sync.Mutex
	by    *fsnotify.Watcher // nil: nobody follows
	texts map[string]string // by path as it really is; "" none
	deaf  bool
}

// note remembers how a drop-in was left, and watches its directory.
func (s *Systemd) note(real, text string) {
	w := &s.dropIns
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.by == nil {
		return
	}
	w.texts[real] = text
	// Again each time: a watch goes with its directory.
	if err := w.by.Add(filepath.Dir(real)); err != nil && !os.IsNotExist(err) && !w.deaf {
		w.deaf = true
		s.log.Warn("cannot watch drop-ins; changes are seen at the slow re-check", "err", err)
	}
}

// watchDropIns begins to watch. The function that it returns hands changes to
// tell until ctx ends.
func (s *Systemd) watchDropIns() (run func(ctx context.Context, tell func(attach.UnitEvent))) {
	by, err := fsnotify.NewWatcher()
	if err != nil {
		s.log.Warn("cannot watch drop-ins; changes are seen at the slow re-check", "err", err)
		return func(context.Context, func(attach.UnitEvent)) {}
	}
	w := &s.dropIns
	w.mu.Lock()
	w.by, w.texts, w.deaf = by, map[string]string{}, false
	w.mu.Unlock()
	return func(ctx context.Context, tell func(attach.UnitEvent)) {
		w.run(ctx, by, tell)
		w.mu.Lock()
		w.by = nil
		w.mu.Unlock()
		by.Close()
	}
}

func (w *dropInWatch) run(ctx context.Context, by *fsnotify.Watcher, tell func(attach.UnitEvent)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-by.Errors:
			// Events were lost: all may have changed.
			tell(attach.UnitEvent{Kind: attach.UnitsReloaded})
		case ev := <-by.Events:
			dir := filepath.Clean(ev.Name)
			if filepath.Base(dir) == attach.DropInName {
				dir = filepath.Dir(dir)
			}
			if w.changed(filepath.Join(dir, attach.DropInName)) {
				tell(attach.UnitEvent{Kind: attach.DropInChanged, Unit: strings.TrimSuffix(filepath.Base(dir), ".d")})
			}
		}
	}
}

// changed reports whether a drop-in is not as we left it.
func (w *dropInWatch) changed(real string) bool {
	now, err := safefile.Read(real, maxDropIn)
	w.mu.Lock()
	defer w.mu.Unlock()
	was, known := w.texts[real]
	return known && (err != nil && was != "" || err == nil && string(now.Data) != was)
}
