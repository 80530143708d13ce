package apparmor

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/inotify"
)

const (
	// quiet is how long files must be still before a change is told: an upgrade
	// of packages writes many.
	quiet = 200 * time.Millisecond
	// quietLoads is the same for loads of policy: a package, or boot, loads many
	// profiles one after the other.
	quietLoads = 25 * time.Millisecond
	// maxDelay bounds how long a stream of changes holds a report back.
	maxDelay = 2 * time.Second
	// rewatch is how long to wait before a watch that broke, or could not be had,
	// is set up again.
	rewatch = 10 * time.Second
	// maxWatched bounds the directories below /etc/apparmor.d, and the paths
	// elsewhere.
	maxWatched = 2000
)

// Changes tells, merged, that profile files changed, that somebody loaded,
// replaced or removed policy on the host (seen on Debian 12 and 13), or that the global
// mode was written, from its return on. The channel is closed when ctx ends. While it is open the index trusts the watch and looks
// at files only after a change; where a watch cannot be had, or not on every
// directory, it looks each time. When ctx ends, a look that waits for the
// parser is cut off, and the index starts no parser any more.
func (s *System) Changes(ctx context.Context) <-chan struct{} {
	s.index.watch.Lock()
	s.index.watch.life = ctx
	s.index.watch.Unlock()
	out := make(chan struct{}, 1)
	events, loads := make(chan struct{}, 1), make(chan struct{}, 1)
	tell := func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}
	loaded := func() {
		select {
		case loads <- struct{}{}:
		default:
		}
	}
	s.own()                 // before an upgrade of systemd puts others in their place
	go s.parserVersion(ctx) // an attach is not to wait for it
	// Here: what happens after the return is told. Neither waits for anybody.
	watch, revision := s.watchFiles(), s.openRevision()
	files := make(chan struct{})
	go func() {
		defer close(files)
		for seen := ""; ; {
			if watch != nil {
				if !watch.run(ctx, tell) {
					return
				}
				seen = "" // whatever happens until it watches again is missed
			} else {
				select {
				case <-ctx.Done():
					return
				case <-time.After(s.index.watch.pause()):
				}
			}
			watch = s.watchFiles()
			if now := s.fingerprint(s.real(profileDir)); now != seen {
				seen = now
				tell()
			}
		}
	}()
	policy := make(chan struct{})
	go func() {
		defer close(policy)
		for {
			if revision >= 0 {
				watchPolicy(ctx, revision, loaded)
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(s.index.watch.pause()):
			}
			if revision = s.openRevision(); revision >= 0 {
				loaded() // whatever happened meanwhile was missed
			}
		}
	}()
	go func() {
		defer close(out)
		merge(ctx, events, loads, out)
		<-files
		<-policy
	}()
	return out
}

// merge passes bursts of events on as one. What was loaded is told sooner than
// what was written: a load is whole when it is heard of.
func merge(ctx context.Context, events, loads <-chan struct{}, out chan<- struct{}) {
	for {
		wait := quiet
		select {
		case <-ctx.Done():
			return
		case <-events:
		case <-loads:
			wait = quietLoads
		}
		until := time.After(maxDelay)
		for still := false; !still; {
			select {
			case <-ctx.Done():
				return
			case <-events:
				wait = quiet
			case <-loads:
			case <-time.After(wait):
				still = true
			case <-until:
				still = true
			}
		}
		select {
		case out <- struct{}{}:
		default: // one is waiting to be read already
		}
	}
}

// watching is the watch on profile files, as the index sees it. It has a lock
// of its own: an event must not wait for the parser.
type watching struct {
	sync.Mutex
	by *inotify.Watcher // nil: nobody watches
	// clean: nothing changed since the index began its last look, as far as the
	// watch says. Never where the watch is not whole.
	clean bool
	whole bool          // every directory that matters is watched
	lost  chan struct{} // wakes the watch up when it is not whole any more
	// places are the real paths that matter outside /etc/apparmor.d.
	places map[string]place
	full   bool // and some more, for which there was no room
	// why is the last cause for which something is not watched; said: it is told.
	why  error
	said bool
	// life is Changes' context: no parser is started for the index after its
	// end.
	life context.Context

	// For tests: what watches a directory, and how long rewatch is.
	add   func(w *inotify.Watcher, dir string) error
	again time.Duration
}

// place is why a path outside /etc/apparmor.d matters.
type place uint8

const (
	depended place = 1 << iota // a profile depends on the file
	included                   // a profile includes the directory, whatever it holds
	above                      // it is a directory above one of these, and may go and come back
)

func (w *watching) pause() time.Duration {
	if w.again > 0 {
		return w.again
	}
	return rewatch
}

// begin makes by the watcher, which watches nothing yet.
func (w *watching) begin(by *inotify.Watcher, root string) (lost <-chan struct{}) {
	w.Lock()
	defer w.Unlock()
	w.by, w.whole, w.clean = by, false, false
	w.lost = make(chan struct{}, 1)
	w.note(root, 0)
	return w.lost
}

// end says that the watcher watches nothing any more.
func (w *watching) end(by *inotify.Watcher) {
	w.Lock()
	defer w.Unlock()
	if w.by == by {
		w.by, w.whole, w.clean = nil, false, false
	}
}

// dirty says that something changed.
func (w *watching) dirty() {
	w.Lock()
	defer w.Unlock()
	w.clean = false
}

// isClean reports whether nothing changed since the last look.
func (w *watching) isClean() bool {
	w.Lock()
	defer w.Unlock()
	return w.clean
}

// isWhole reports whether everything that matters is watched.
func (w *watching) isWhole() bool {
	w.Lock()
	defer w.Unlock()
	return w.whole
}

// cause is why not everything is watched.
func (w *watching) cause() error {
	w.Lock()
	defer w.Unlock()
	if w.full {
		return fmt.Errorf("profiles depend on more than %d paths outside %s", maxWatched, profileDir)
	}
	return w.why
}

// look says that the index begins to look at the files now. A change during
// the look makes the next one necessary.
func (w *watching) look() {
	w.Lock()
	defer w.Unlock()
	w.clean = w.by != nil && w.whole
}

// dir watches a directory. One that does not exist is no failure: the one above
// is watched before, and tells when it comes.
func (w *watching) dir(by *inotify.Watcher, dir string) error {
	add := (*inotify.Watcher).Add
	if w.add != nil {
		add = w.add
	}
	err := add(by, dir)
	if err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	return fmt.Errorf("cannot watch %s: %w", dir, err)
}

// wayTo lists the directories above a path, from the root.
func wayTo(p string) []string {
	var dirs []string
	for p != "/" && p != "." {
		p = filepath.Dir(p)
		dirs = append(dirs, p)
	}
	slices.Reverse(dirs)
	return dirs
}

// note remembers a path and the way to it. The lock is held.
func (w *watching) note(p string, why place) {
	if w.places == nil {
		w.places = map[string]place{}
	}
	if why != 0 {
		w.places[p] |= why
	}
	for _, d := range wayTo(p) {
		w.places[d] |= above
	}
}

// follow has a path outside /etc/apparmor.d watched, from the directories above
// it on, since it may be replaced together with them.
func (w *watching) follow(p string, why place) {
	w.Lock()
	defer w.Unlock()
	switch {
	case w.places[p]&why != 0:
		return
	case len(w.places) >= maxWatched:
		w.full = true
		w.lose()
		return
	}
	w.note(p, why)
	if w.by == nil {
		return
	}
	w.clean = false // it may have changed since it was read
	dirs := wayTo(p)
	if why == included {
		dirs = append(dirs, p)
	}
	for _, d := range dirs {
		if err := w.dir(w.by, d); err != nil {
			w.why = err
			w.lose()
			return
		}
	}
}

// lose says that something is not watched. The lock is held.
func (w *watching) lose() {
	w.whole, w.clean = false, false
	select {
	case w.lost <- struct{}{}:
	default: // nobody watches, or it is said already
	}
}

// followAll watches what matters outside /etc/apparmor.d anew; lost says why not
// all else is watched, nil where it is.
func (w *watching) followAll(by *inotify.Watcher, lost error) {
	w.Lock()
	defer w.Unlock()
	if w.by != by {
		return
	}
	for _, p := range slices.Sorted(maps.Keys(w.places)) { // those above first
		if w.places[p]&(above|included) == 0 {
			continue
		}
		if err := w.dir(by, p); err != nil {
			lost = err
		}
	}
	w.whole, w.clean, w.why = lost == nil && !w.full, false, lost
}

// concerns reports whether something that happened at a path matters, and
// whether other paths lie below it.
func (w *watching) concerns(root, p string) (matters, more bool) {
	w.Lock()
	defer w.Unlock()
	why := w.places[p]
	inside := under(root, p) || w.places[filepath.Dir(p)]&included != 0
	return why != 0 || inside && !isSkipped(p), why&(above|included) != 0
}

// fileWatch is the watch on profile files, and on files elsewhere on which they
// depend.
type fileWatch struct {
	s    *System
	w    *inotify.Watcher
	root string
	mode string // the file of the global mode
	lost <-chan struct{}
	// seen is what everything was like when not all of it could be watched, "" where
	// it is.
	seen string
}

// watchFiles begins to watch what is below /etc/apparmor.d, and files elsewhere on
// which profiles depend. Where there can be no watch at all it returns nil, and the
// caller looks for changes itself.
func (s *System) watchFiles() *fileWatch {
	w, err := inotify.New()
	if err != nil {
		s.unwatched(fmt.Errorf("cannot make a watch: %w", err))
		return nil
	}
	root := s.real(profileDir)
	f := &fileWatch{s: s, w: w, root: root, mode: s.real(filepath.Join(paramDir, "mode")), lost: s.index.watch.begin(w, root)}
	f.all()
	if !s.index.watch.isWhole() {
		f.seen = s.fingerprint(root)
	}
	return f
}

// all watches everything. Those above come before those below, so that nothing comes
// unseen between two steps.
func (f *fileWatch) all() {
	watch := &f.s.index.watch
	var lost error
	for _, d := range wayTo(f.root) {
		if err := watch.dir(f.w, d); err != nil {
			lost = err
		}
	}
	if err := f.s.watchTree(f.w, f.root); err != nil {
		lost = err
	}
	watch.followAll(f.w, lost)
	// A write to a file of sysfs is told like any other (vfs_write in Linux' fs/read_write.c).
	// No profile depends on it: where it cannot be watched, who asks next finds the change.
	_ = f.w.Add(f.mode)
}

// run tells of changes until ctx ends, or, with anew, until all is to be watched by a new
// watcher. What cannot be watched, since the kernel's limit is reached (inotify(7)) or
// there is too much, it tries again and again; until that succeeds it looks for changes
// itself, now and then.
func (f *fileWatch) run(ctx context.Context, tell func()) (anew bool) {
	s, w, watch, root := f.s, f.w, &f.s.index.watch, f.root
	defer w.Close()
	defer watch.end(w)
	var again <-chan time.Time
	for {
		switch {
		case watch.isWhole():
			again, f.seen = nil, ""
			s.watched()
		case again == nil:
			s.unwatched(watch.cause())
			again = time.After(watch.pause())
			if f.seen == "" {
				f.seen = s.fingerprint(root)
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-f.lost:
		case <-again:
			again = nil
			f.all()
			if now := s.fingerprint(root); now != f.seen || watch.isWhole() {
				f.seen = now
				tell()
			}
		case <-w.Lost:
			return true // all may have changed, names of directories too
		case ev, ok := <-w.Events:
			if !ok {
				return true
			}
			name := filepath.Clean(ev.Name) // fsnotify says "//etc" for what is in "/"
			if name == f.mode {
				tell()
				continue
			}
			matters, more := watch.concerns(root, name)
			if !matters {
				continue
			}
			if more || ev.Has(fsnotify.Create|fsnotify.Rename) && under(root, name) && isDir(name) {
				// The directory, or one in it, may have been watched under another name: the
				// kernel has one watch for it, fsnotify keeps the old name, and ends the watch
				// when it comes to the rename. A new watcher knows no names.
				return true
			}
			watch.dirty()
			tell()
		}
	}
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// unwatched says, once, that changes are looked for instead of being told.
func (s *System) unwatched(why error) {
	s.index.watch.Lock()
	said := s.index.watch.said
	s.index.watch.said = true
	s.index.watch.Unlock()
	if !said {
		s.opt.Log.Error("cannot watch all profile files; until a later try succeeds they are looked at now and then", "every", s.index.watch.pause().String(), "err", why)
	}
}

// watched says that there is a watch after all.
func (s *System) watched() {
	s.index.watch.Lock()
	said := s.index.watch.said
	s.index.watch.said = false
	s.index.watch.Unlock()
	if said {
		s.opt.Log.Info("all profile files are watched again")
	}
}

func isSkipped(path string) bool {
	name := filepath.Base(path)
	return skipped(name) || strings.HasPrefix(name, "#") || name == "4913" // vim tries whether it may write
}

// watchTree watches a directory and those below it. The error says that there
// is one that is not watched.
func (s *System) watchTree(w *inotify.Watcher, root string) (lost error) {
	n := 0
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist): // gone, or not there yet
		case err != nil:
			lost = err
		case !d.IsDir() && p == root:
			lost = unix.ENOTDIR // a symbolic link: what it leads to may change unseen
		case !d.IsDir():
		case n >= maxWatched:
			lost = fmt.Errorf("there are more than %d directories", maxWatched)
			return fs.SkipAll
		default:
			n++
			if err := s.index.watch.dir(w, p); err != nil {
				lost = err
			}
		}
		return nil
	})
	return lost
}

// fingerprint is a digest over the names and times of everything that matters,
// for finding changes without a watch.
func (s *System) fingerprint(root string) string {
	h := sha256.New()
	note := func(p string) {
		var st unix.Stat_t
		if unix.Stat(p, &st) == nil {
			fmt.Fprintf(h, "%q %+v\n", p, signatureOf(&st))
		}
	}
	_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		// A directory's own times change with what is skipped in it, too.
		if err == nil && !d.IsDir() && !isSkipped(p) {
			note(p)
		}
		return nil // what went away shows
	})
	s.index.watch.Lock()
	places := maps.Clone(s.index.watch.places)
	s.index.watch.Unlock()
	for _, p := range slices.Sorted(maps.Keys(places)) {
		if places[p]&(depended|included) != 0 {
			note(p)
		}
	}
	return string(h.Sum(nil))
}

// watchElsewhere watches what a profile depends on outside /etc/apparmor.d: the
// directory of each file, since editors replace files. Files that count below
// /etc/apparmor.d although they are called like an editor's leftovers are noted
// as well.
func (s *System) watchElsewhere(e *indexed) {
	for dep := range e.deps {
		if !under(profileDir, dep) || isSkipped(dep) {
			s.index.watch.follow(s.real(dep), depended)
		}
	}
	for dir := range e.dirs {
		if !under(profileDir, dir) {
			s.index.watch.follow(s.real(dir), included)
		}
	}
}

// openRevision opens …/apparmor/revision, which becomes readable with every change of
// policy in the host's namespace from then on. Staging happens in a namespace with a
// revision of its own. It gives -1 where there is no such file, or it cannot be read.
func (s *System) openRevision() int {
	fd, err := unix.Open(s.real(filepath.Join(securityDir, "revision")), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Size > 0 || !readRevision(fd) { // a plain file says nothing about changes
		_ = unix.Close(fd)
		return -1
	}
	return fd
}

// readRevision takes in what revision says: it is readable again with the next change.
func readRevision(fd int) bool {
	var buf [64]byte
	_, err := unix.Read(fd, buf[:])
	return err == nil || errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)
}

// watchPolicy waits on what openRevision opened until it cannot be read or ctx ends,
// and closes it.
func watchPolicy(ctx context.Context, fd int, tell func()) {
	defer unix.Close(fd)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return
	}
	defer unix.Close(wake)
	done := make(chan struct{})
	stopped := context.AfterFunc(ctx, func() {
		defer close(done)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stopped() {
			<-done
		}
	}()
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || fds[1].Revents != 0 || fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 || !readRevision(fd) {
			return
		}
		tell()
	}
}
