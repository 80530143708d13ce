// Package apparmor is aaunit's hand on AppArmor: it knows which file defines
// which profile, compiles, stages and loads policy, reads back what the kernel
// has, and looks at the labels of a unit's tasks.
//
// Everything that is read here is taken to be hostile: profile texts, the
// parser's output, directory entries, /proc of running services. What decides
// about confinement is opened without following a symbolic link and only where
// root alone can write; sizes, times and numbers are bounded.
package apparmor

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Places on a host. Options.Root is put before each of them.
const (
	profileDir  = "/etc/apparmor.d"
	parserConf  = "/etc/apparmor/parser.conf"
	securityDir = "/sys/kernel/security/apparmor"
	paramDir    = "/sys/module/apparmor/parameters"
	cgroupDir   = "/sys/fs/cgroup"
	procDir     = "/proc"
)

// parallel bounds the parsers that run at the same time: compiling can be dear.
const parallel = 2

// ErrInUse says that a profile is not unloaded because a task carries it:
// unloading would unconfine the task (seen on Debian 12 and 13).
var ErrInUse = errors.New("a task carries the profile")

// ErrUntrusted says that others than root could have written a profile, or a
// file it includes.
var ErrUntrusted = errors.New("others than root can change it")

// Options are the awkward parts of the world. The zero value is the host.
type Options struct {
	// Root is put before every path but the parser's; "" is the host itself. It must
	// not lead through a symbolic link.
	Root string
	// Parsers are the absolute paths at which apparmor_parser is looked for;
	// nil means /usr/sbin and /sbin. $PATH is never asked.
	Parsers []string
	// Profiles is the directory that stands in the place of /etc/apparmor.d, where
	// included files are looked for; "" is that. Include are directories in which
	// they are looked for before, like the parser's -I.
	Profiles string
	Include  []string
	// Features is a file with a kernel's features, for which policy is compiled;
	// "" means those of the running kernel.
	Features string
	// AnyOwner takes files that belong to anybody, behind links too: for checks in a
	// directory of sources, of which nothing is loaded.
	AnyOwner bool
	// Scratch is where private copies of profiles are put for the parser; it is
	// made when missing. "" means /run/aaunit, or the directory for temporary
	// files where the process is not root's.
	Scratch string
	// Systemd is a file below /run in which it is remembered which files have been
	// systemd's own executables since the boot, over restarts of this process and
	// upgrades of systemd; "" remembers them in memory only.
	Systemd string
	// Owner is the user that trusted files must belong to: root.
	Owner int
	// Kept finds, by its ID, a policy that is kept on disk, without its bytes; nil
	// where none is. What is kept is not compiled again.
	Kept func(id string) (attach.Compiled, bool)
	// Unpack undoes the compression of what was loaded, for Loaded: most bounds what
	// comes of it, in bytes. Nil takes what is compressed for no policy.
	Unpack func(b []byte, most int) ([]byte, error)
	// Audit listens to the kernel's audit log, for Denials. With nil no denial is heard,
	// and Denials says so.
	Audit func() (AuditSource, error)
	// Forked tells which processes systemd itself has forked for the unit that has a control
	// group, and still follows: Unload waits for no other one that is not root's. With nil,
	// as after an error, any may be one. It is asked while an unload waits, for some seconds
	// at most each time.
	Forked func(ctx context.Context, group string) (pids []int, err error)
	// Life ends the parsers that run for ByName and the like, which take no context;
	// nil bounds them by ParserTime alone. Changes sets another one.
	Life context.Context
	// ParserTime bounds one run of the parser, for one file; more files get
	// more. 0 means 30 seconds.
	ParserTime time.Duration
	// ParserMemory bounds the address space of the parser. 0 means 1 GiB.
	ParserMemory uint64
	// Log gets what is worth knowing later; nil discards it.
	Log *slog.Logger
	// ParserOutput bounds what the parser may print. 0 means 64 MiB.
	ParserOutput int64
}

// System is AppArmor on a host. Its methods may be called at the same time.
type System struct {
	opt   Options
	slots chan struct{} // one for each parser that may run

	index  indexState
	built  compileCache
	kernel liveCache
	posts  posts
	// systemd are its executables, as far as they were seen.
	systemd ownFiles
	// buffers are those of looks, for the next ones.
	buffers sync.Pool

	staging  sync.Mutex // one staging namespace at a time
	swept    bool
	examined examined
	features struct {
		sync.Mutex
		digest string
	}
	loading sync.Mutex // Load, Unload and Restore do not mix
	version struct {
		sync.Mutex
		of   signature // of the parser
		text string
	}
}

// New gives the AppArmor of a host. It touches nothing yet.
func New(o Options) *System {
	if o.Profiles == "" {
		o.Profiles = profileDir
	}
	if o.Parsers == nil {
		o.Parsers = []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"}
	}
	if o.Scratch == "" {
		o.Scratch = "/run/aaunit"
		if os.Geteuid() != 0 {
			o.Scratch = os.TempDir() // checks on a build machine
		}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.ParserTime <= 0 {
		o.ParserTime = 30 * time.Second
	}
	if o.ParserMemory == 0 {
		o.ParserMemory = 1 << 30
	}
	if o.ParserOutput <= 0 {
		o.ParserOutput = 64 << 20
	}
	return &System{opt: o, slots: make(chan struct{}, min(parallel, max(1, runtime.NumCPU())))}
}

// real gives the path at which a path of the host really lies.
func (s *System) real(path string) string {
	if s.opt.Root == "" {
		return path
	}
	return filepath.Join(s.opt.Root, path)
}

// open, stat and readDir are for profiles and what belongs to them. Links are
// followed, as the parser and the kernel do; those below Options.Root lead to
// places below it.
func (s *System) open(path string, flags int) (*os.File, error) {
	if s.opt.Root == "" {
		return os.OpenFile(path, flags, 0)
	}
	return safefile.OpenWithin(s.opt.Root, path, flags)
}

func (s *System) stat(path string, st *unix.Stat_t) error {
	if s.opt.Root == "" {
		return unix.Stat(path, st)
	}
	f, err := safefile.OpenWithin(s.opt.Root, path, unix.O_PATH)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fstat(int(f.Fd()), st)
}

func (s *System) readDir(dir string) ([]os.DirEntry, error) {
	if s.opt.Root == "" {
		return os.ReadDir(dir)
	}
	f, err := safefile.OpenWithin(s.opt.Root, dir, os.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	entries, err := f.ReadDir(-1)
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, err
}

// leads is where links lead from a path.
func (s *System) leads(path string) (string, error) {
	if s.opt.Root == "" {
		return filepath.EvalSymlinks(path)
	}
	return safefile.Within(s.opt.Root, path)
}

// covers reports whether label member p is the profile or one of its children
// or hats.
func covers(profile, p string) bool {
	return p == profile || (len(p) > len(profile)+2 && p[:len(profile)] == profile && p[len(profile):len(profile)+2] == "//")
}

// carries reports whether a member of the label is the profile or a child.
func carries(l attach.Label, profile string) bool {
	for _, p := range l.Profiles {
		if covers(profile, p) {
			return true
		}
	}
	return false
}
