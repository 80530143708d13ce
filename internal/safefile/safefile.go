// Package safefile reads and writes small files that decide about security:
// no symbolic link is followed at any component of a path (openat2(2),
// RESOLVE_NO_SYMLINKS, Linux 5.6), only regular files are read, and a write is
// all or nothing, also across a power cut.
package safefile

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// File is a file as it was read.
type File struct {
	Data []byte
	UID  uint32
	Mode fs.FileMode // permission bits
}

// OnlyBy says who else than the user could have written the file, or nil.
func (f File) OnlyBy(uid uint32) error { return onlyBy(uid, f.UID, f.Mode) }

func onlyBy(want, uid uint32, mode fs.FileMode) error {
	switch {
	case uid != want:
		return fmt.Errorf("it belongs to user %d, not to user %d", uid, want)
	case mode&0o022 != 0:
		return fmt.Errorf("its mode is %04o: others than its owner can write it", mode.Perm())
	}
	return nil
}

// Read reads a regular file of at most limit bytes.
func Read(path string, limit int64) (File, error) {
	f, err := open(path, unix.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return File{}, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return File{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return File{}, fmt.Errorf("cannot read %s: it is not a regular file", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return File{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if int64(len(data)) > limit {
		return File{}, fmt.Errorf("cannot read %s: it is larger than %d bytes", path, limit)
	}
	return File{Data: data, UID: st.Uid, Mode: fs.FileMode(st.Mode & 0o7777)}, nil
}

// DirOnlyBy says whether others than the user could put files into a directory,
// or nil. A directory that does not exist is fs.ErrNotExist.
func DirOnlyBy(dir string, uid uint32) error {
	d, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil {
		return fmt.Errorf("cannot read %s: %w", dir, err)
	}
	return onlyBy(uid, st.Uid, fs.FileMode(st.Mode&0o7777))
}

// OpenDir opens a directory.
func OpenDir(dir string) (*os.File, error) { return open(dir, unix.O_RDONLY|unix.O_DIRECTORY) }

// tmpSuffix ends the name of a file that is being written.
const tmpSuffix = ".tmp"

// IsTemporary reports whether a file has such a name as [Write] gives to what
// is not complete yet. One that stays was left by a write that was cut off.
func IsTemporary(name string) bool {
	return strings.HasPrefix(name, ".") && strings.HasSuffix(name, tmpSuffix)
}

// WayOut is what to do about a file that could not be written, "" where the error
// tells nothing about that.
func WayOut(err error) string {
	switch {
	case errors.Is(err, unix.EROFS):
		return "findmnt shows what is mounted read-only; mount -o remount,rw makes it writable"
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return "df and df -i show what is full; ask again when there is room"
	}
	return ""
}

// Error is an error of this package's with a way out, for who does not know this
// package.
type Error struct{ error }

// WayOut is the way out.
func (e *Error) WayOut() string { return WayOut(e.error) }

func (e *Error) Unwrap() error { return e.error }

// Helped gives an error its way out, if there is one.
func Helped(err error) error {
	if WayOut(err) == "" {
		return err
	}
	return &Error{err}
}

// Write gives the file that content. It writes beside the target, syncs,
// renames and syncs the directory, and touches nothing when the file has that
// content already; changed says which. The file's directory must exist.
func Write(path string, data []byte, mode fs.FileMode) (changed bool, err error) {
	defer func() {
		if err != nil {
			err = Helped(fmt.Errorf("cannot write %s: %w", path, err))
		}
	}()
	if old, err := Read(path, int64(len(data))); err == nil && bytes.Equal(old.Data, data) && old.Mode == mode && old.UID == uint32(os.Geteuid()) {
		return false, nil
	}
	dir, err := open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false, err
	}
	defer dir.Close()
	name := filepath.Base(path)
	var st unix.Stat_t
	switch err := unix.Fstatat(int(dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG:
		return false, errors.New("something that is not a regular file has its name")
	case err != nil && !errors.Is(err, unix.ENOENT):
		return false, err
	}
	// Shorter than the longest name that a file can have (255 bytes, NAME_MAX).
	tmp := "." + name[:min(len(name), 240)] + "." + rand.Text()[:8] + tmpSuffix
	fd, err := unix.Openat(int(dir.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(mode.Perm()))
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(fd), tmp)
	defer func() {
		f.Close()
		if err != nil {
			_ = unix.Unlinkat(int(dir.Fd()), tmp, 0)
		}
	}()
	if _, err = f.Write(data); err != nil {
		return false, err
	}
	if err = f.Chmod(mode); err != nil {
		return false, err
	}
	if err = f.Sync(); err != nil {
		return false, err
	}
	if err = unix.Renameat(int(dir.Fd()), tmp, int(dir.Fd()), name); err != nil {
		return false, err
	}
	return true, SyncDir(dir)
}

// Remove removes a file that is not a directory; changed is false where there
// was none.
func Remove(path string) (changed bool, err error) {
	dir, err := open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer dir.Close()
	switch err := unix.Unlinkat(int(dir.Fd()), filepath.Base(path), 0); {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EROFS) && isGone(dir, path):
		return false, nil
	case err != nil:
		return false, Helped(fmt.Errorf("cannot remove %s: %w", path, err))
	}
	return true, SyncDir(dir)
}

// MkdirAll makes a directory and what is missing above it, each with mode.
func MkdirAll(path string, mode fs.FileMode) error {
	path = filepath.Clean(path)
	if err := open1(path); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	parent := filepath.Dir(path)
	if parent == path {
		return nil
	}
	if err := MkdirAll(parent, mode); err != nil {
		return err
	}
	dir, err := open(parent, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mkdirat(int(dir.Fd()), filepath.Base(path), uint32(mode.Perm())); err != nil && !errors.Is(err, unix.EEXIST) {
		return Helped(fmt.Errorf("cannot make directory %s: %w", path, err))
	}
	return open1(path)
}

func open1(dir string) error {
	d, err := open(dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	return d.Close()
}

// RemoveEmptyDir removes a directory when nothing is in it.
func RemoveEmptyDir(path string) error {
	dir, err := open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	defer dir.Close()
	err = unix.Unlinkat(int(dir.Fd()), filepath.Base(path), unix.AT_REMOVEDIR)
	if err == nil || errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EROFS) && isGone(dir, path) {
		return nil
	}
	return fmt.Errorf("cannot remove directory %s: %w", path, err)
}

// isGone reports whether there is nothing of that name. On a read-only file system
// unlink(2) fails before it looks.
func isGone(dir *os.File, path string) bool {
	var st unix.Stat_t
	return errors.Is(unix.Fstatat(int(dir.Fd()), filepath.Base(path), &st, unix.AT_SYMLINK_NOFOLLOW), unix.ENOENT)
}

// open opens an absolute path of which no component may be a symbolic link.
func open(path string, flags int) (*os.File, error) {
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return nil, fmt.Errorf("cannot open %q: it is not an absolute path", path)
	}
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC | unix.O_NOFOLLOW), Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(unix.AT_FDCWD, path, &how)
		switch {
		// EAGAIN is a race with a rename, or the lease of somebody who can hold on
		// to it for long.
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && try < 100:
			continue
		case errors.Is(err, unix.ELOOP):
			return nil, fmt.Errorf("cannot open %s: it is, or leads through, a symbolic link", path)
		case err != nil:
			return nil, &fs.PathError{Op: "cannot open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}
