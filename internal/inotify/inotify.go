// Package inotify watches directories with fsnotify, and keeps clear of a deadlock of it:
// fsnotify (1.10) hands over an error while it holds the lock that adding a directory and
// closing take, and whoever reads the errors is the one who does both.
package inotify

import "github.com/fsnotify/fsnotify"

// Watcher tells of changes in directories. What it has been told to watch it knows by name:
// where events were lost, or a directory has changed its name, only a new one is sure to
// watch what has the name now.
type Watcher struct {
	// Events is closed when the watcher is.
	Events <-chan fsnotify.Event
	// Lost tells why events were lost, mostly that the kernel's queue overflowed
	// (inotify(7)). One that nobody has read yet stands for all that follow.
	Lost <-chan error
	w    *fsnotify.Watcher
}

// New makes a watcher, unless the user has as many as the kernel allows.
func New() (*Watcher, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	lost := make(chan error, 1)
	go func() {
		for err := range w.Errors {
			select {
			case lost <- err:
			default:
			}
		}
	}()
	return &Watcher{Events: w.Events, Lost: lost, w: w}, nil
}

// Add has a directory or a file watched, once more for nothing. The error wraps that of
// inotify_add_watch(2).
func (w *Watcher) Add(path string) error { return w.w.Add(path) }

// Close ends it. It waits for no reader.
func (w *Watcher) Close() error { return w.w.Close() }
