package sockopt

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/safefile"
)

// Why something could not be done, for errors.Is. Only these are a state of the
// host; anything else is a failure of its own.
var (
	// ErrUnsupported is a kernel without what this needs: BPF, its hooks for socket
	// options, links to control groups (Linux 5.7), a description of its types.
	ErrUnsupported = errors.New("the kernel does not support it")
	// ErrNoBPFFS is a host on which no BPF file system is mounted where links could
	// be pinned.
	ErrNoBPFFS = errors.New("there is no BPF file system")
	// ErrNoCgroup2 is a host without the unified hierarchy of control groups.
	ErrNoCgroup2 = errors.New("it is not a control group of version 2")
	// ErrNoMemory is that the kernel had no memory for the tables.
	ErrNoMemory = errors.New("the kernel has no memory for it")
	// ErrNotPermitted is a caller without the capabilities: CAP_BPF, CAP_PERFMON and
	// CAP_NET_ADMIN, which root has unless something took them away.
	ErrNotPermitted = errors.New("it is not permitted")
	// ErrBlocked is a program on a control group above that forbids others below.
	ErrBlocked = errors.New("a program of a control group above forbids it")
	// ErrNothing is that there is nothing of this unit in the kernel.
	ErrNothing = errors.New("nothing is attached for this unit")
)

// Error is why something could not be done, with the way out.
type Error struct {
	// Is is one of the errors of this package, or nil.
	Is error
	// text is the whole sentence.
	text string
	// wayOut is what to do about it, or "".
	wayOut string
	cause  error
}

func (e *Error) Error() string {
	if e.wayOut == "" {
		return e.text
	}
	return e.text + "; " + e.wayOut
}

// WayOut is what to do about it, or "".
func (e *Error) WayOut() string { return e.wayOut }

func (e *Error) Unwrap() []error {
	var all []error
	for _, err := range []error{e.Is, e.cause} {
		if err != nil {
			all = append(all, err)
		}
	}
	return all
}

// because makes an error of what was to be done, which begins with "cannot", and
// of what the kernel said.
func because(what string, is, cause error, wayOut string) error {
	text := what
	for _, err := range []error{is, cause} {
		if err != nil {
			text += ": " + err.Error()
		}
	}
	return &Error{Is: is, text: text, wayOut: wayOut, cause: cause}
}

const (
	noMemoryOut  = "see free and the kernel's log, and start the unit again"
	permittedOut = "run it as root, with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, on a kernel that is not locked down to confidentiality"
	sandboxOut   = "systemd-tmpfiles --create aaunit.conf && systemctl restart aaunitd.service"
	typesOut     = "boot a kernel with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_DEBUG_INFO_BTF, as Debian's are"
)

// judge finds out what an error of the kernel means.
func judge(what string, err error) error {
	var known *Error
	var verifier *ebpf.VerifierError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return err
	case errors.Is(err, unix.ENOMEM):
		return because(what, ErrNoMemory, err, noMemoryOut)
	case errors.Is(err, ebpf.ErrNotSupported), errors.Is(err, link.ErrNotSupported), errors.Is(err, btf.ErrNotSupported), errors.Is(err, btf.ErrNotFound),
		errors.Is(err, unix.ENOSYS):
		return because(what, ErrUnsupported, err, typesOut)
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES) && !errors.As(err, &verifier):
		return because(what, ErrNotPermitted, err, permittedOut)
	case errors.Is(err, unix.EROFS):
		return because(what, nil, err, sandboxOut)
	case errors.As(err, &verifier):
		// Not the caller's fault: a kernel on which the program was never tried.
		return because(what, ErrUnsupported, err, "please report this, with the kernel's version")
	}
	return because(what, nil, err, "")
}

// object is the compiled program's identity: what is pinned under it was loaded
// from these very bytes.
var object = sync.OnceValue(func() string {
	sum := sha256.Sum256(_BpfBytes)
	return hex.EncodeToString(sum[:8])
})

const (
	nameSet = "aaunit_set"
	nameGet = "aaunit_get"
)

// hook is one of the two places in the kernel.
type hook struct {
	call    Call
	program string
	attach  ebpf.AttachType
	link    string // name of the pin
}

var hooks = [...]hook{
	{Set, nameSet, ebpf.AttachCGroupSetsockopt, "link_set"},
	{Get, nameGet, ebpf.AttachCGroupGetsockopt, "link_get"},
}

// pin is the name under which a program of this object is pinned.
func (h hook) pin() string { return h.program + "_" + object() }

var mapNames = [...]string{"seen", "allow", "config", "overflow"}

// System is the kernel's side of socket options on this host. Its methods may be
// called at the same time, also by several processes: what changes something for
// a unit holds a lock on the unit's directory.
type System struct {
	bpf, cgroups string

	mu   sync.Mutex
	tags map[Call]string
}

// Options say where things are.
type Options struct {
	// BPF is where a BPF file system is mounted; /sys/fs/bpf if empty, where
	// systemd mounts it.
	BPF string
	// Cgroups is where the unified hierarchy is mounted; /sys/fs/cgroup if empty.
	Cgroups string
}

// New does nothing yet.
func New(o Options) *System {
	s := &System{bpf: o.BPF, cgroups: o.Cgroups}
	if s.bpf == "" {
		s.bpf = "/sys/fs/bpf"
	}
	if s.cgroups == "" {
		s.cgroups = "/sys/fs/cgroup"
	}
	return s
}

// root is the directory of everything that is pinned.
func (s *System) root() string { return filepath.Join(s.bpf, "aaunit") }

// dir is a unit's directory of pins. The kernel keeps names with a dot in them
// for itself (bpf_lookup in kernel/bpf/inode.c), so they are written as systemd
// writes unit names into object paths.
func (s *System) dir(unit string) string {
	return filepath.Join(s.root(), escape(unit))
}

// maxName is how long an escaped name may be, below NAME_MAX (255).
const maxName = 240

func escape(unit string) string {
	var b strings.Builder
	for i := range len(unit) {
		switch c := unit[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9' && i > 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_%02x", c)
		}
	}
	if b.Len() > maxName || b.Len() == 0 {
		sum := sha256.Sum256([]byte(unit))
		return "sha256__" + hex.EncodeToString(sum[:])
	}
	return b.String()
}

// unescape is the way back; ok is false for what escape does not make, and for
// the digest of a name that was too long.
func unescape(name string) (unit string, ok bool) {
	var b []byte
	for i := 0; i < len(name); i++ {
		if name[i] != '_' {
			b = append(b, name[i])
			continue
		}
		if i+2 >= len(name) {
			return "", false
		}
		c, err := hex.DecodeString(name[i+1 : i+3])
		if err != nil {
			return "", false
		}
		b = append(b, c[0])
		i += 2
	}
	return string(b), escape(string(b)) == name
}

// Units lists the units of which something is pinned. One whose name is too long
// for a file's is left out.
func (s *System) Units() ([]string, error) {
	entries, err := os.ReadDir(s.root())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, judge("cannot list what is attached for socket options", err)
	}
	var units []string
	for _, e := range entries {
		if unit, ok := unescape(e.Name()); ok {
			units = append(units, unit)
		}
	}
	return units, nil
}

// unitDir is a unit's directory of pins, locked.
type unitDir struct {
	path string
	lock *os.File
}

func (d *unitDir) Close() error { return d.lock.Close() }

func (d *unitDir) pin(name string) string { return filepath.Join(d.path, name) }

// replace pins something under a name that may be taken. There is no moment at
// which nothing is pinned there.
func (d *unitDir) replace(name string, it interface{ Pin(string) error }) error {
	fresh := d.pin(name + "_new")
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := it.Pin(fresh); err != nil {
		return err
	}
	return os.Rename(fresh, d.pin(name))
}

// mounted says why there can be no pins, or nil.
func (s *System) mounted(what string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.bpf, &st); err != nil && !errors.Is(err, unix.ENOENT) {
		return judge(what, fmt.Errorf("%s: %w", s.bpf, err))
	} else if err != nil || uint32(st.Type) != unix.BPF_FS_MAGIC {
		return because(what, ErrNoBPFFS, fmt.Errorf("%s is not one", s.bpf), "mount -t bpf bpf "+s.bpf)
	}
	return nil
}

// covered says why pins cannot be reached on a host without a BPF file system in its
// place, or nil: where something else is mounted over one, what is pinned there goes on.
func (s *System) covered(what string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return judge(what, err)
	}
	if !bpfMountedAt(mounts, s.bpf) {
		return nil
	}
	return because(what, ErrNoBPFFS, fmt.Errorf("something is mounted over the one at %s", s.bpf), "umount "+s.bpf)
}

// bpfMountedAt reports whether proc_pid_mountinfo(5) lists a BPF file system at a path,
// which may be under another mount.
func bpfMountedAt(mountinfo []byte, path string) bool {
	for line := range strings.Lines(string(mountinfo)) {
		mount, kind, _ := strings.Cut(line, " - ")
		if m, k := strings.Fields(mount), strings.Fields(kind); len(m) > 4 && m[4] == path && len(k) > 0 && k[0] == "bpf" {
			return true
		}
	}
	return false
}

// openIfAny opens and locks the directory of a unit of which something is to be taken
// away. It is nil where there is nothing, as on a host without a BPF file system.
func (s *System) openIfAny(unit string) (*unitDir, error) {
	d, err := s.open(unit, false)
	switch {
	case errors.Is(err, ErrNothing):
		return nil, nil
	case errors.Is(err, ErrNoBPFFS):
		return nil, s.covered("cannot open the BPF pins of " + unit)
	}
	return d, err
}

// open opens and locks a unit's directory, and makes it if it is to be made.
// Only root may go through it.
func (s *System) open(unit string, create bool) (*unitDir, error) {
	what := "cannot open the BPF pins of " + unit
	if err := s.mounted(what); err != nil {
		return nil, err
	}
	path := s.dir(unit)
	for _, dir := range []string{s.root(), path} {
		if create {
			if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return nil, judge(what, err)
			}
		}
		switch err := safefile.DirOnlyBy(dir, uint32(os.Geteuid())); {
		case errors.Is(err, fs.ErrNotExist):
			return nil, because(what, ErrNothing, nil, "")
		case err != nil:
			return nil, because(what, nil, fmt.Errorf("%s: %w", dir, err), "remove it, and start the unit again")
		}
	}
	lock, err := os.Open(path)
	if err != nil {
		return nil, judge(what, err)
	}
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		lock.Close()
		return nil, judge(what, err)
	}
	// It may have been removed while it was waited for.
	var held, now unix.Stat_t
	if err := unix.Fstat(int(lock.Fd()), &held); err == nil {
		err = unix.Lstat(path, &now)
		if err == nil && held.Ino == now.Ino {
			return &unitDir{path: path, lock: lock}, nil
		}
	}
	lock.Close()
	if !create {
		return nil, because(what, ErrNothing, nil, "")
	}
	return s.open(unit, create)
}

// cgroup is an open control group.
type cgroup struct {
	*os.File
	id uint64
}

// openCgroup opens a control group by its path as systemd tells it
// (ControlGroup=), from the root of the hierarchy.
func (s *System) openCgroup(path string) (cgroup, error) {
	what := "cannot open the control group " + path
	full := filepath.Join(s.cgroups, filepath.Clean("/"+path))
	f, err := os.OpenFile(full, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return cgroup{}, because(what, nil, err, "it exists only while the unit runs")
		}
		return cgroup{}, judge(what, err)
	}
	var stfs unix.Statfs_t
	var st unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(f.Fd()), &stfs), unix.Fstat(int(f.Fd()), &st)); err != nil {
		f.Close()
		return cgroup{}, judge(what, err)
	}
	if uint32(stfs.Type) != unix.CGROUP2_SUPER_MAGIC {
		f.Close()
		return cgroup{}, because(what, ErrNoCgroup2, nil, "boot with systemd.unified_cgroup_hierarchy=1")
	}
	// A control group's id is its directory's inode number, where that has 64 bits
	// (kernfs_ino in include/linux/kernfs.h).
	return cgroup{f, st.Ino}, nil
}

// objects are the programs and tables of one unit.
type objects struct {
	programs map[string]*ebpf.Program
	maps     map[string]*ebpf.Map
	loaded   bool            // and not found pinned
	taken    map[string]bool // the tables that were pinned, where the programs were loaded
	fresh    bool            // a table with a recording could not be taken over
}

func (o *objects) Close() {
	for _, p := range o.programs {
		p.Close()
	}
	for _, m := range o.maps {
		m.Close()
	}
}

// pinned opens what is pinned, if it is all there, of this object and of one
// piece.
func (d *unitDir) pinned() (*objects, bool) {
	o := &objects{programs: map[string]*ebpf.Program{}, maps: map[string]*ebpf.Map{}}
	ids := map[ebpf.MapID]bool{}
	for _, name := range mapNames {
		m, err := ebpf.LoadPinnedMap(d.pin(name), nil)
		if err != nil {
			o.Close()
			return nil, false
		}
		o.maps[name] = m
		if info, err := m.Info(); err == nil {
			if id, ok := info.ID(); ok {
				ids[id] = true
			}
		}
	}
	for _, h := range hooks {
		p, err := ebpf.LoadPinnedProgram(d.pin(h.pin()), nil)
		if err != nil {
			o.Close()
			return nil, false
		}
		o.programs[h.program] = p
		info, err := p.Info()
		if err != nil {
			o.Close()
			return nil, false
		}
		used, _ := info.MapIDs()
		for _, id := range used {
			if !ids[id] {
				o.Close()
				return nil, false
			}
		}
		if len(used) != len(mapNames) {
			o.Close()
			return nil, false
		}
	}
	return o, true
}

// spec reads the compiled object.
func spec() (*ebpf.CollectionSpec, error) {
	return ebpf.LoadCollectionSpecFromReader(bytes.NewReader(_BpfBytes))
}

// load loads the programs with new tables, or of the named ones with those that are
// pinned and have the same layout, so that a new program goes on with what the old one
// recorded. Nothing is pinned yet.
func (d *unitDir) load(names ...string) (*objects, error) {
	const what = "cannot load the socket-option programs"
	spec, err := spec()
	if err != nil {
		return nil, judge(what, err)
	}
	pinned := map[string]*ebpf.Map{}
	defer func() {
		for _, m := range pinned {
			m.Close()
		}
	}()
	fresh, taken := false, map[string]bool{}
	for _, name := range names {
		m, err := ebpf.LoadPinnedMap(d.pin(name), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return nil, judge(what, err)
		}
		if err := spec.Maps[name].Compatible(m); err != nil {
			m.Close()
			fresh = true
			continue
		}
		pinned[name], taken[name] = m, true
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: pinned})
	if err != nil {
		return nil, judge(what, err)
	}
	return &objects{programs: c.Programs, maps: c.Maps, loaded: true, taken: taken, fresh: fresh}, nil
}

// tag is the kernel's checksum of a program of ours. The kernel computes it from
// the instructions after the places of its own fields were filled in, so it
// differs between kernels: the committed object is loaded once to ask.
func (s *System) tag(call Call) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if tag, ok := s.tags[call]; ok {
		return tag, nil
	}
	o, err := (*unitDir)(nil).load()
	if err != nil {
		return "", err
	}
	defer o.Close()
	tags := map[Call]string{}
	for _, h := range hooks {
		info, err := o.programs[h.program].Info()
		if err != nil {
			return "", judge("cannot ask the kernel for the socket-option program's tag", err)
		}
		tags[h.call] = info.Tag
	}
	s.tags = tags
	return tags[call], nil
}
