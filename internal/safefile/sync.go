package safefile

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// SyncDir has the disk hold what was done in a directory before the call (fsync(2)).
// Of many calls for one directory at once, those that wait while it is synced are
// served together by the next sync, with its error. An error that the kernel tells once
// for each open file, of an earlier write-back, is told to the one that syncs.
func SyncDir(dir *os.File) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "stat", Path: dir.Name(), Err: err}
	}
	return dirs.do([2]uint64{st.Dev, st.Ino}, dir.Sync)
}

var dirs merger[[2]uint64]

// merger merges calls that do the same thing, for each key.
type merger[K comparable] struct {
	mu    sync.Mutex
	calls map[K]*merged
}

// merged are the calls of one key.
type merged struct {
	running chan struct{} // closed when the call that runs has ended; nil: none
	next    *shared       // has not begun
}

// shared is one call that several wait for.
type shared struct {
	done chan struct{}
	err  error
}

// do returns when a call that began after do has ended.
func (m *merger[K]) do(key K, call func() error) error {
	m.mu.Lock()
	if m.calls == nil {
		m.calls = map[K]*merged{}
	}
	c := m.calls[key]
	if c == nil {
		c = &merged{}
		m.calls[key] = c
	}
	if with := c.next; with != nil {
		m.mu.Unlock()
		<-with.done
		return with.err
	}
	mine, before := &shared{done: make(chan struct{})}, c.running
	c.next = mine
	m.mu.Unlock()
	if before != nil {
		<-before
	}
	m.mu.Lock()
	c.next, c.running = nil, mine.done // who comes now comes too late
	m.mu.Unlock()
	mine.err = call()
	m.mu.Lock()
	if c.running == mine.done {
		c.running = nil
		if c.next == nil {
			delete(m.calls, key)
		}
	}
	m.mu.Unlock()
	close(mine.done)
	return mine.err
}
