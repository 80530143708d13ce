package units

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
	"golang.org/x/sys/unix"
)

// maxDropIn bounds a drop-in that is read; ours are a few hundred bytes.
const maxDropIn = 64 << 10

// ReadDropIn reads a drop-in without following links. exists is false, and err
// nil, only where there is certainly nothing. Something else than a regular
// file of at most 64 KiB is an error that says what it is.
func (s *Systemd) ReadDropIn(path string) (text string, exists bool, err error) {
	real, err := s.place(path)
	if err != nil {
		return "", false, err
	}
	if err := inTheWay(real, path); err != nil {
		return "", false, fmt.Errorf("cannot read drop-in %s: %w", path, err)
	}
	f, err := safefile.Read(real, maxDropIn)
	if errors.Is(err, fs.ErrNotExist) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	s.note(real, string(f.Data))
	return string(f.Data), true, nil
}

// WriteDropIn writes one atomically, and only when it differs; it says whether
// anything changed. Its directory is made where it is missing.
func (s *Systemd) WriteDropIn(path, text string) (changed bool, err error) {
	real, err := s.place(path)
	if err != nil {
		return false, err
	}
	if len(text) > maxDropIn {
		return false, fmt.Errorf("cannot write drop-in %s: it would be larger than %d bytes", path, maxDropIn)
	}
	if err := inTheWay(real, path); err != nil {
		return false, fmt.Errorf("cannot write drop-in %s: %w", path, err)
	}
	if err := makeDir(filepath.Dir(real)); err != nil {
		return false, safefile.Helped(fmt.Errorf("cannot write drop-in %s: %w", path, err))
	}
	s.note(real, text) // before: our own change is no news
	return safefile.Write(real, []byte(text), 0o644)
}

// RemoveDropIn removes one, and its directory when that is empty then.
func (s *Systemd) RemoveDropIn(path string) (changed bool, err error) {
	real, err := s.place(path)
	if err != nil {
		return false, err
	}
	if err := inTheWay(real, path); err != nil {
		return false, fmt.Errorf("cannot remove drop-in %s: %w", path, err)
	}
	s.note(real, "")
	if changed, err = safefile.Remove(real); err != nil {
		return changed, err
	}
	dir := filepath.Dir(real)
	// A write that was cut off leaves its temporary file, which would keep the
	// directory alive.
	left, err := os.ReadDir(dir)
	for _, e := range left {
		if n := e.Name(); err == nil && strings.HasPrefix(n, "."+attach.DropInName+".") && strings.HasSuffix(n, ".tmp") {
			if _, err := safefile.Remove(filepath.Join(dir, n)); err != nil {
				return changed, err
			}
		}
	}
	return changed, safefile.RemoveEmptyDir(dir)
}

// DropIns lists the files that have the name and place of one of ours, whoever
// wrote them.
func (s *Systemd) DropIns() ([]string, error) {
	var out []string
	for _, parent := range []string{"/etc/systemd/system", "/run/systemd/system"} {
		dirs, err := os.ReadDir(filepath.Join(s.root, parent))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("cannot look for drop-ins: %w", err)
		}
		for _, d := range dirs {
			path := filepath.Join(parent, d.Name(), attach.DropInName)
			if real, err := s.place(path); err == nil {
				if _, err := os.Lstat(real); err == nil {
					out = append(out, path)
				}
			}
		}
	}
	return out, nil
}

// unread reports whether a drop-in of ours lies where systemd would read it for
// the unit, and was not read: somebody was stopped between writing it and the
// reload. NeedDaemonReload of systemd 252 overlooks a drop-in directory that is
// new (its list of directories is from the last reload; 257 looks).
func (s *Systemd) unread(u attach.Unit) bool {
	for _, path := range u.DropIns {
		if filepath.Base(path) == attach.DropInName {
			return false
		}
	}
	// Drop-ins of aliases count as well.
	for _, unit := range append([]string{u.ID}, u.Names...) {
		if fullName(unit) != nil {
			continue
		}
		for _, name := range dropInNames(unit) {
			for _, runtime := range []bool{false, true} {
				st, err := os.Lstat(filepath.Join(s.root, attach.DropInPath(name, runtime)))
				if err == nil && st.Mode().IsRegular() {
					return true
				}
			}
		}
	}
	return false
}

// Pattern reads the drop-ins that systemd applies to every unit of a template or prefix,
// as the files are now: what it has read for a unit says nothing about the next one. It
// gives them, and what they set, as a unit with nothing else.
func (s *Systemd) Pattern(name string) (attach.Unit, error) {
	u, err := searchPath{s.root, unitPaths}.pattern(name)
	tmp, _ := s.tmp.Load().(string)
	u.Settings.KnowsDisconnected = tmp == "PrivateTmpEx"
	if err == nil {
		u.Settings.Assignments, err = s.assignments(u)
	}
	if err != nil {
		return u, fmt.Errorf("cannot read the drop-ins of %s: %w", shown(name), err)
	}
	return u, nil
}

// dropInNames are the names whose drop-in directories serve a unit of that
// name: its own and its template's, and the same for what is left when it is
// cut off after each of its dashes (systemd.unit(5)). An instance a-b@c.service
// is served by a-.service.d, a-@.service.d and a-@c.service.d (seen on 252 and
// 257).
func dropInNames(unit string) []string {
	ext := filepath.Ext(unit)
	stem, instance, ofTemplate := strings.Cut(strings.TrimSuffix(unit, ext), "@")
	var names []string
	for cut := false; ; cut = true {
		if cut || !ofTemplate {
			names = append(names, stem+ext)
		}
		if ofTemplate {
			names = append(names, stem+"@"+ext)
		}
		if instance != "" {
			names = append(names, stem+"@"+instance+ext)
		}
		i := strings.LastIndexByte(strings.TrimSuffix(stem, "-"), '-')
		if i < 0 {
			return names
		}
		stem = stem[:i+1]
	}
}

// place turns the path of a drop-in into one below the root. It accepts the
// exact form of ours and nothing else: whatever a caller was talked into, this
// package touches no other file.
func (s *Systemd) place(path string) (string, error) {
	dir, name := filepath.Split(path)
	parent, last := filepath.Split(strings.TrimSuffix(dir, "/"))
	unit, ok := strings.CutSuffix(last, ".d")
	if !ok || name != attach.DropInName || (parent != "/etc/systemd/system/" && parent != "/run/systemd/system/") ||
		!strings.HasSuffix(unit, ".service") && !strings.HasSuffix(unit, ".socket") || fullName(unit) != nil {
		return "", fmt.Errorf("cannot use %q as a drop-in: aaunit's are /etc/systemd/system/UNIT.d/%s and the same below /run", path, attach.DropInName)
	}
	if len(last) > unix.NAME_MAX {
		return "", fmt.Errorf("cannot use drop-in %s: %s.d would have a name of %d bytes, and a directory's has at most %d: give the unit a name of at most %d",
			path, unit, len(last), unix.NAME_MAX, unix.NAME_MAX-len(".d"))
	}
	return filepath.Join(s.root, path), nil
}

// inTheWay says what lies at the drop-in's place, or at its directory's, when
// that is not what belongs there. It only explains: the file access below it
// follows no link whatever is there by then.
func inTheWay(real, path string) error {
	for _, c := range []struct {
		real, shown string
		dir         bool
	}{{filepath.Dir(real), filepath.Dir(path), true}, {real, path, false}} {
		st, err := os.Lstat(c.real)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.shown, errors.Unwrap(err))
		}
		if st.IsDir() == c.dir && (c.dir || st.Mode().IsRegular()) {
			continue
		}
		return fmt.Errorf("%s is %s", c.shown, kindOf(st.Mode()))
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "a symbolic link"
	case m.IsDir():
		return "a directory"
	case m&fs.ModeNamedPipe != 0:
		return "a named pipe"
	case m&fs.ModeSocket != 0:
		return "a socket"
	case m&fs.ModeDevice != 0:
		return "a device"
	case m.IsRegular():
		return "a file"
	}
	return "something unexpected"
}

// makeDir makes the directory of a drop-in, readable by all whatever the umask
// is: "systemctl cat" shows drop-ins to everybody.
func makeDir(dir string) error {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	parent, err := openat2(unix.AT_FDCWD, filepath.Dir(dir), how)
	if err != nil {
		return fmt.Errorf("cannot open directory %s: %w", filepath.Dir(dir), err)
	}
	defer parent.Close()
	name := filepath.Base(dir)
	switch err := unix.Mkdirat(int(parent.Fd()), name, 0o755); {
	case errors.Is(err, unix.EEXIST):
		return nil
	case err != nil:
		return fmt.Errorf("cannot make directory %s: %w", dir, err)
	}
	made, err := openat2(int(parent.Fd()), name, how)
	if err != nil {
		return fmt.Errorf("cannot open directory %s: %w", dir, err)
	}
	defer made.Close()
	if err := made.Chmod(0o755); err != nil {
		return err
	}
	return safefile.SyncDir(parent)
}

func openat2(at int, path string, how unix.OpenHow) (*os.File, error) {
	for try := 0; ; try++ {
		fd, err := unix.Openat2(at, path, &how)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) && try < 100: // raced with a rename
			continue
		case errors.Is(err, unix.ELOOP):
			return nil, errors.New("it is, or leads through, a symbolic link")
		case err != nil:
			return nil, err
		}
		return os.NewFile(uintptr(fd), path), nil
	}
}
