package evidence

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// maxMounts bounds a process's mountinfo.
const maxMounts = 16 << 20

// mounted is the file system of a mount.
type mounted struct {
	kind   string // its type
	device string // "major:minor"
}

// findMount finds the first mount of proc_pid_mountinfo(5) that is wanted, by its id and
// what is mounted: the id is the first field, the device the third, and the type the one
// behind the separator, which stands after any number of optional fields. ok is false where
// there is none.
func findMount(r io.Reader, wanted func(id string, m mounted) bool) (m mounted, ok bool, err error) {
	lines := bufio.NewScanner(io.LimitReader(r, maxMounts))
	lines.Buffer(nil, 1<<20) // paths of mounts and sources are bounded by a page each
	for lines.Scan() {
		front, rest, _ := strings.Cut(lines.Text(), " - ")
		f := strings.SplitN(front, " ", 4)
		m.kind, _, _ = strings.Cut(rest, " ")
		m.device = ""
		if len(f) > 2 {
			m.device = f[2]
		}
		if wanted(f[0], m) {
			return m, true, nil
		}
	}
	if err := lines.Err(); err != nil {
		return m, false, fmt.Errorf("cannot read the mounts: %w", err)
	}
	return m, false, nil
}

// mountOf finds a mount by its id.
func mountOf(r io.Reader, id string) (mounted, error) {
	m, ok, err := findMount(r, func(is string, _ mounted) bool { return is == id })
	switch {
	case err != nil:
		return m, err
	case !ok:
		return m, fmt.Errorf("cannot tell on which file system it is: mount %s is not among the process's", id)
	case m.kind == "":
		return m, fmt.Errorf("cannot read the mounts: mount %s has no type", id)
	}
	return m, nil
}

// answers reports whether a file system always answers: one of a type that does, or an
// overlay that the host has, too, whose layers are the administrator's to choose. host is
// the mounts of PID 1.
func (m mounted) answers(host io.Reader) bool {
	if m.kind != attach.Overlay {
		return attach.LocalType(m.kind)
	}
	_, ok, err := findMount(host, func(_ string, of mounted) bool { return of == m })
	return err == nil && ok
}

// mountID reads "mnt_id:" of proc_pid_fdinfo(5).
func mountID(r io.Reader) (string, error) {
	lines := bufio.NewScanner(io.LimitReader(r, 1<<16))
	for lines.Scan() {
		if id, ok := strings.CutPrefix(lines.Text(), "mnt_id:"); ok {
			return strings.TrimSpace(id), nil
		}
	}
	if err := lines.Err(); err != nil {
		return "", fmt.Errorf("cannot tell on which file system it is: %w", err)
	}
	return "", errors.New("cannot tell on which file system it is: the kernel does not name its mount")
}
