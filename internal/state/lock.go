package state

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/safefile"
)

// ErrLocked says that another process has locked the state.
var ErrLocked = errors.New("is another aaunitd running?")

// Lock makes the directory of all state this process's alone, until it ends or calls
// release. Two that keep units by the same records would each undo what the other does.
// It is the directory that is locked (flock(2)), which works where nothing can be written,
// too; what the process starts does not get the lock. The error is ErrLocked only where
// another process has it.
func Lock(dir string) (release func(), err error) {
	if err := safefile.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	d, err := safefile.OpenDir(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	err = unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return func() { d.Close() }, nil
	}
	defer d.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("cannot lock %s: %w", dir, err)
	}
	pid := holder(d)
	if pid == 0 {
		return nil, fmt.Errorf("cannot use %s, which another process works with; %w systemctl status aaunitd.service shows the one that systemd has started", dir, ErrLocked)
	}
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		program = "unknown"
	}
	return nil, fmt.Errorf("cannot use %s, which PID %d (%s) works with; %w systemctl status %d says what it is", dir, pid, program, ErrLocked, pid)
}

// holder finds the process that has locked a directory, 0 where that cannot be told. The
// device that the list of locks gives is not the one that stat(2) gives on every file
// system, so it is asked of the process which files it has open: by their names, which
// never has to wait for a file system that does not answer.
func holder(dir *os.File) (pid int) {
	is, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return 0
	}
	text, _ := os.ReadFile("/proc/locks")
	for _, pid := range lockers(string(text)) {
		open, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		for _, file := range open {
			if name, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", pid, file.Name())); err == nil && name == is {
				return pid
			}
		}
	}
	return 0
}

// lockers reads proc_locks(5): the processes that have an exclusive lock of flock(2).
func lockers(text string) (pids []int) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line) // number, kind, how, what for, process, file, from, to
		if len(f) < 5 || f[1] != "FLOCK" || f[3] != "WRITE" {
			continue
		}
		if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}
