package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"
)

// operation is one of -try's, on a line of JSON.
type operation struct {
	Op     string `json:"op"`
	Path   string `json:"path,omitempty"`
	To     string `json:"to,omitempty"`
	Family int    `json:"family,omitempty"`
	Type   int    `json:"type,omitempty"`
}

// tryAll does each operation that it reads, and says how it went: a line with
// the number of the error, 0 none.
func tryAll(in io.Reader, out io.Writer) error {
	lines := json.NewDecoder(bufio.NewReader(in))
	w := bufio.NewWriter(out)
	for {
		var o operation
		if err := lines.Decode(&o); errors.Is(err, io.EOF) {
			return w.Flush()
		} else if err != nil {
			return fmt.Errorf("cannot read an operation: %w", err)
		}
		err := try(o)
		var n syscall.Errno
		if err != nil && !errors.As(err, &n) {
			return fmt.Errorf("cannot %s: %w", o.Op, err)
		}
		fmt.Fprintln(w, int(n))
	}
}

// try does one operation, with as few system calls as it can be done.
func try(o operation) error {
	open := func(flags int) error {
		return withFile(o.Path, flags, func(int) error { return nil })
	}
	switch o.Op {
	case "read":
		return open(unix.O_RDONLY)
	case "write":
		return open(unix.O_WRONLY)
	case "readwrite":
		return open(unix.O_RDWR)
	case "append":
		return open(unix.O_WRONLY | unix.O_APPEND)
	case "truncating":
		return open(unix.O_WRONLY | unix.O_TRUNC)
	case "create":
		return open(unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL)
	case "list":
		return open(unix.O_RDONLY | unix.O_DIRECTORY)
	case "truncate":
		return unix.Truncate(o.Path, 0)
	case "stat":
		var st unix.Stat_t
		return unix.Stat(o.Path, &st)
	case "chmod":
		return unix.Chmod(o.Path, 0o755)
	case "chown":
		return unix.Chown(o.Path, -1, 0)
	case "unlink":
		return unix.Unlink(o.Path)
	case "mkdir":
		return unix.Mkdir(o.Path, 0o755)
	case "rmdir":
		return unix.Rmdir(o.Path)
	case "symlink":
		return unix.Symlink("nowhere", o.Path)
	case "mknod":
		return unix.Mknod(o.Path, unix.S_IFIFO|0o600, 0)
	case "rename":
		return unix.Rename(o.Path, o.To)
	case "link":
		return unix.Link(o.Path, o.To)
	case "lock":
		return withFile(o.Path, unix.O_RDONLY, func(fd int) error { return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) })
	case "mmap":
		return withFile(o.Path, unix.O_RDONLY, func(fd int) error {
			m, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE)
			if err == nil {
				err = unix.Munmap(m)
			}
			return err
		})
	case "exec":
		cmd := exec.Command(o.Path, "-as-helper")
		err := cmd.Run()
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			return fmt.Errorf("it ran and ended with %v", exit)
		}
		return err
	case "socket":
		return withSocket(o.Family, o.Type, func(int) error { return nil })
	}
	return errors.New("no such operation")
}

func withFile(path string, flags int, use func(fd int) error) error {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(use(fd), unix.Close(fd))
}
