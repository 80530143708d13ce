package apparmor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"
)

const (
	// quiet is how long files must be still before a change is told: an upgrade
	// of packages writes many.
	quiet = 200 * time.Millisecond
	// maxDelay bounds how long a stream of changes holds a report back.
	maxDelay = 2 * time.Second
	// rewatch is how long to wait before a watch that broke is set up again.
	rewatch = 10 * time.Second
	// maxWatched bounds the directories below /etc/apparmor.d.
	maxWatched = 2000
)

// Changes tells, merged, that profile files changed or that somebody loaded,
// replaced or removed policy on the host (platform fact 24). The channel is
// closed when ctx ends. While it is open the index trusts the watch and looks
// at files only after a change; where a watch cannot be had, it looks each time.
func (s *System) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	events := make(chan struct{}, 1)
	tell := func() {
		select {
		case events <- struct{}{}:
		default:
		}
	}
	files := make(chan struct{})
	go func() {
		defer close(files)
		for ctx.Err() == nil {
			s.watchFiles(ctx, tell)
			select {
			case <-ctx.Done():
			case <-time.After(rewatch):
				tell() // whatever happened meanwhile was missed
			}
		}
	}()
	policy := make(chan struct{})
	go func() {
		defer close(policy)
		for ctx.Err() == nil {
			s.watchPolicy(ctx, tell)
			select {
			case <-ctx.Done():
			case <-time.After(rewatch):
			}
		}
	}()
	go func() {
		defer close(out)
		merge(ctx, events, out)
		<-files
		<-policy
	}()
	return out
}

// merge passes bursts of events on as one.
func merge(ctx context.Context, events <-chan struct{}, out chan<- struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-events:
		}
		until := time.After(maxDelay)
		for still := false; !still; {
			select {
			case <-ctx.Done():
				return
			case <-events:
			case <-time.After(quiet):
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

// watchFiles tells of changes below /etc/apparmor.d until the watch breaks or
// ctx ends.
func (s *System) watchFiles(ctx context.Context, tell func()) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return
	}
	defer w.Close()
	root := s.real(profileDir)
	if watchTree(w, root) != nil {
		// Not there yet: wait for it to come.
		if w.Add(filepath.Dir(root)) != nil {
			return
		}
	}
	s.index.Lock()
	s.index.watches++
	s.index.clean = false
	s.index.watcher = w
	for p := range s.index.elsewhere {
		_ = w.Add(filepath.Dir(p))
	}
	s.index.Unlock()
	elsewhere := func(p string) bool {
		s.index.Lock()
		defer s.index.Unlock()
		return s.index.elsewhere[p]
	}
	dirty := func() {
		s.index.Lock()
		s.index.clean = false
		s.index.Unlock()
	}
	defer func() {
		s.index.Lock()
		s.index.watches--
		s.index.clean = false
		if s.index.watcher == w {
			s.index.watcher = nil
		}
		s.index.Unlock()
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-w.Errors:
			// Events were lost (the queue overran): all may have changed.
			dirty()
			_ = watchTree(w, root)
			tell()
		case ev, ok := <-w.Events:
			if !ok {
				return
			}
			if isSkipped(ev.Name) || !under(root, ev.Name) && !elsewhere(ev.Name) {
				continue
			}
			dirty()
			if ev.Has(fsnotify.Create) {
				if st, err := os.Lstat(ev.Name); err == nil && st.IsDir() {
					_ = watchTree(w, ev.Name)
				}
			}
			tell()
			if ev.Name == root && (ev.Has(fsnotify.Remove) || ev.Has(fsnotify.Rename)) {
				return
			}
		}
	}
}

func isSkipped(path string) bool {
	name := filepath.Base(path)
	return skipped(name) || strings.HasPrefix(name, "#") || name == "4913" // vim tries whether it may write
}

// watchTree watches a directory and those below it.
func watchTree(w *fsnotify.Watcher, root string) error {
	n := 0
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if p == root && err != nil {
			return err
		}
		if n >= maxWatched {
			return fs.SkipAll
		}
		if err == nil && d.IsDir() {
			n++
			if err = w.Add(p); err != nil && p == root {
				return err
			}
		}
		return nil // it went away, or is another's to complain about
	})
}

// watchElsewhere watches the files that profiles depend on outside
// /etc/apparmor.d: the directory of each, since editors replace files. The
// index is locked.
func (s *System) watchElsewhere(e *indexed) {
	for dep := range e.deps {
		if under(profileDir, dep) || len(s.index.elsewhere) >= maxWatched {
			continue
		}
		real := s.real(dep)
		if s.index.elsewhere == nil {
			s.index.elsewhere = map[string]bool{}
		}
		s.index.elsewhere[real] = true
		if s.index.watcher != nil {
			_ = s.index.watcher.Add(filepath.Dir(real))
		}
	}
}

// watchPolicy waits on …/apparmor/revision, which becomes readable with every
// change of policy in the host's namespace, until it cannot be read or ctx
// ends. Staging happens in a namespace with a revision of its own.
func (s *System) watchPolicy(ctx context.Context, tell func()) {
	fd, err := unix.Open(s.real(filepath.Join(securityDir, "revision")), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Size > 0 {
		return // a plain file says nothing about changes
	}
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
	buf := make([]byte, 64)
	for first := true; ctx.Err() == nil; first = false {
		if _, err := unix.Read(fd, buf); err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return
		}
		if !first {
			tell()
		}
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
			_, err := unix.Poll(fds, -1)
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || fds[1].Revents != 0 || fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0 {
				return
			}
			break
		}
	}
}
