package apparmor

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// maxPolicy bounds what is read of a loaded policy.
const maxPolicy = 64 << 20

// Host reads whether AppArmor is on and its global mode. What could not be
// read is "could not tell", with the cause in Problem. A kernel without the
// module has no parameters: that is off.
func (s *System) Host() attach.Host {
	var h attach.Host
	switch v, err := s.param("enabled"); {
	case err == nil && (v == "Y" || v == "N"):
		h.Enabled = attach.TriOf(v == "Y")
	case err == nil:
		h.Problem = fmt.Sprintf("cannot read %s/enabled: it says %q", paramDir, clean(v))
	case errors.Is(err, fs.ErrNotExist):
		if _, e := os.Stat(s.real("/sys/module")); e == nil {
			h.Enabled = attach.No
		}
		h.Problem = fmt.Sprintf("%s does not exist: the kernel has no AppArmor, or it is off", paramDir)
	default:
		h.Problem = err.Error()
	}
	if h.Enabled != attach.Yes {
		return h
	}
	switch v, err := s.param("mode"); {
	case err != nil:
		h.Problem = err.Error()
	default:
		switch m := attach.Mode(v); m {
		case attach.ModeEnforce, attach.ModeComplain, attach.ModeKill, attach.ModeUnconfined, attach.ModeUser:
			h.GlobalMode = m
		default:
			h.Problem = fmt.Sprintf("cannot read %s/mode: it says %q", paramDir, clean(v))
		}
	}
	return h
}

func (s *System) param(name string) (string, error) {
	return readLine(s.real(filepath.Join(paramDir, name)), 256)
}

// readLine reads a small file of the kernel's, without its last line break.
func readLine(path string, limit int) (string, error) {
	data, err := readSmall(path, make([]byte, limit+1))
	if err == nil && len(data) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return strings.TrimSuffix(string(data), "\n"), err
}

// readSmall reads a file into buf, as far as it fits, without the runtime's
// poller, which has no part in files of the kernel's and costs further calls.
func readSmall(path string, buf []byte) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return readFD(fd, path, buf)
}

// readFD reads an open file from where it stands to its end, or until buf is full.
func readFD(fd int, path string, buf []byte) ([]byte, error) {
	n := 0
	for n < len(buf) {
		m, err := unix.Read(fd, buf[n:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		case m == 0:
			return buf[:n], nil
		}
		n += m
	}
	return buf, nil
}

func readAll(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, err
}

// loaded is a profile in the kernel's policy tree.
type loaded struct {
	attach.LiveProfile
	dir string // its directory
}

// Live reads the named profiles, their children and hats, with the kernel's
// checksum of each (seen on Debian 12 and 13).
func (s *System) Live(names []string) (map[string]attach.LiveProfile, error) {
	all, err := s.live(names)
	if err != nil {
		return nil, err
	}
	out := make(map[string]attach.LiveProfile, len(all))
	for name, p := range all {
		out[name] = p.LiveProfile
	}
	return out, nil
}

// liveCache keeps what was read of the loaded policy, for one revision of it.
type liveCache struct {
	sync.Mutex
	revision string
	// tops holds, for each profile that was looked for, itself and its children
	// and hats; none of them where it is not loaded.
	tops map[string]map[string]loaded
}

// maxLive bounds the profiles that are kept.
const maxLive = 10_000

// revision is the kernel's counter of changes to the host's policy; "" where it
// does not tell. It is read under the lock that is held across every load,
// replacement and removal (ns_revision_read and aa_replace_profiles in
// security/apparmor): no change is half done when it is given.
func (s *System) revision() string {
	path := s.real(filepath.Join(securityDir, "revision"))
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	// One read: the next one would wait for a change.
	var buf [32]byte
	n, err := unix.Read(fd, buf[:])
	if err != nil || n <= 0 || n == len(buf) {
		return ""
	}
	return strings.TrimSuffix(string(buf[:n]), "\n")
}

// live is Live with the profiles' directories. Nothing is read a second time
// while the kernel's counter says that no policy has changed.
func (s *System) live(names []string) (map[string]loaded, error) {
	now := s.revision()
	if now == "" {
		return s.readLive(names)
	}
	c := &s.kernel
	c.Lock()
	defer c.Unlock()
	if c.revision != now || len(c.tops) > maxLive {
		c.revision, c.tops = now, map[string]map[string]loaded{}
	}
	var missing []string
	for _, n := range names {
		if _, known := c.tops[topOf(n)]; !known && !slices.Contains(missing, topOf(n)) {
			missing = append(missing, topOf(n))
		}
	}
	if len(missing) > 0 {
		found, err := s.readLive(missing)
		if err != nil {
			return nil, err
		}
		if s.revision() != now {
			// It changed meanwhile: what is kept and this are of two moments.
			c.revision = ""
			return s.readLive(names)
		}
		for _, top := range missing {
			c.tops[top] = map[string]loaded{}
		}
		for name, p := range found {
			c.tops[topOf(name)][name] = p
		}
	}
	out := map[string]loaded{}
	for _, n := range names {
		for name, p := range c.tops[topOf(n)] {
			if covers(n, name) {
				out[name] = p
			}
		}
	}
	return out, nil
}

// topOf is the profile that a child or hat belongs to.
func topOf(name string) string {
	top, _, _ := strings.Cut(name, "//")
	return top
}

// readLive reads the tree, which may change while it is read. That shows as an
// entry that is gone: then it is read again.
func (s *System) readLive(names []string) (map[string]loaded, error) {
	root := s.real(filepath.Join(securityDir, "policy", "profiles"))
	var err error
	for range 5 {
		var out map[string]loaded
		if out, err = liveIn(root, names); err == nil {
			return out, nil
		}
		if _, e := os.Stat(root); e != nil {
			return nil, fmt.Errorf("cannot read the loaded profiles: %w (is AppArmor on, and securityfs mounted?)", e)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, fmt.Errorf("cannot read the loaded profiles: %w", err)
}

// liveIn reads named profiles below a "profiles" directory; nil names means all.
func liveIn(root string, names []string) (map[string]loaded, error) {
	entries, err := readNames(root)
	if err != nil {
		return nil, err
	}
	out := map[string]loaded{}
	take := func(entry, name string) error {
		return readTree(filepath.Join(root, entry), name, out, len(out), 0)
	}
	if names == nil {
		for _, e := range entries {
			name, err := readName(filepath.Join(root, e))
			if err != nil {
				return nil, err
			}
			if err := take(e, name); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	// A child's entry is below its parent's.
	wanted := map[string]bool{}
	for _, n := range names {
		top, _, _ := strings.Cut(n, "//")
		wanted[top] = true
	}
	seen := map[string]bool{}
	look := func(e string) error {
		seen[e] = true
		name, err := readName(filepath.Join(root, e))
		if err != nil {
			return err
		}
		if wanted[name] {
			delete(wanted, name)
			return take(e, name)
		}
		return nil
	}
	// The directory's name is the profile's, mangled, with a number behind it:
	// look there first, then everywhere, since how the kernel mangles is its own
	// affair.
	mangled := map[string]bool{}
	for n := range wanted {
		mangled[mangle(n)] = true
	}
	for _, e := range entries {
		if i := strings.LastIndexByte(e, '.'); i >= 0 && mangled[e[:i]] {
			if err := look(e); err != nil {
				return nil, err
			}
		}
	}
	for _, e := range entries {
		if len(wanted) == 0 {
			break
		}
		if !seen[e] {
			if err := look(e); err != nil {
				return nil, err
			}
		}
	}
	for have := range out {
		if !wantedBy(names, have) {
			delete(out, have)
		}
	}
	return out, nil
}

func wantedBy(names []string, have string) bool {
	for _, n := range names {
		if covers(n, have) {
			return true
		}
	}
	return false
}

// mangle is mangle_name of security/apparmor/apparmorfs.c: leading slashes and
// dots go, slashes become dots, white space underscores, and what is neither
// letter, digit nor one of "._-" goes.
func mangle(name string) string {
	name = strings.TrimLeft(name, "/.")
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c == '/':
			b.WriteByte('.')
		case c == ' ' || c >= '\t' && c <= '\r':
			b.WriteByte('_')
		case c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '-':
			b.WriteByte(c)
		}
	}
	return b.String()
}

func readNames(dir string) ([]string, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

func readName(dir string) (string, error) {
	return readLine(filepath.Join(dir, "name"), 8<<10)
}

// readTree reads a profile and what is below it into out, which had before profiles when the
// tree began.
func readTree(dir, name string, out map[string]loaded, before, depth int) error {
	if depth > 8 || len(out)-before > maxProfiles {
		return fmt.Errorf("the policy tree of profile %s is too deep or too large", name)
	}
	p := loaded{dir: dir, LiveProfile: attach.LiveProfile{Name: name}}
	mode, err := readLine(filepath.Join(dir, "mode"), 64)
	if err != nil {
		return err
	}
	p.Mode = attach.Mode(mode)
	if p.Checksum, err = readChecksum(dir); err != nil {
		return err
	}
	out[name] = p
	children, err := readNames(filepath.Join(dir, "profiles"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // has none
	}
	if err != nil {
		return err
	}
	for _, c := range children {
		sub := filepath.Join(dir, "profiles", c)
		child, err := readName(sub)
		if err != nil {
			return err
		}
		// "name" of a child is the last part alone.
		if !strings.HasPrefix(child, name+"//") {
			child = name + "//" + child
		}
		if err := readTree(sub, child, out, before, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// readChecksum reads a profile's checksum: sha256 since Linux 6.8, sha1
// before; "" where the kernel was told not to make one.
func readChecksum(dir string) (string, error) {
	for _, kind := range []string{"sha256", "sha1"} {
		sum, err := readLine(filepath.Join(dir, kind), 256)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", err
		case sum == "":
			return "", nil
		case strings.Trim(sum, "0123456789abcdef") != "":
			return "", fmt.Errorf("%s/%s is no checksum", dir, kind)
		}
		return kind + ":" + sum, nil
	}
	return "", nil
}
