package safefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OpenWithin opens a path as it is in the tree below root: what a link or ".."
// leads to is looked for there as well, absolute links too, and nothing outside
// the tree is ever reached (openat2(2), RESOLVE_IN_ROOT). The flags are those of
// open(2); O_CREAT is not for it.
func OpenWithin(root, path string, flags int) (*os.File, error) {
	top, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "cannot open", Path: root, Err: err}
	}
	defer unix.Close(top)
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(top, path, &how)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && try < 100: // raced with a rename
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "cannot open", Path: path, Err: err}
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}

// Within says where a path leads in the tree below root, all links followed.
func Within(root, path string) (string, error) {
	f, err := OpenWithin(root, path, unix.O_PATH)
	if err != nil {
		return "", err
	}
	defer f.Close()
	real, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return "", fmt.Errorf("cannot tell where %s leads: %w", path, err)
	}
	top, err := filepath.EvalSymlinks(root)
	if err != nil {
		return "", fmt.Errorf("cannot tell where %s leads: %w", root, err)
	}
	inside, ok := strings.CutPrefix(real, strings.TrimSuffix(top, "/"))
	if !ok || inside != "" && inside[0] != '/' {
		return "", fmt.Errorf("cannot tell where %s leads: it was moved meanwhile", path)
	}
	return "/" + strings.TrimPrefix(inside, "/"), nil
}
