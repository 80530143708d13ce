package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// ErrNoQueries says that the kernel cannot be asked about policy: it has no
// query file, or it was not compiled to answer, or asking is forbidden.
var ErrNoQueries = errors.New("the kernel answers no questions about policy")

// ErrCannotAsk says that the kernel cannot be asked just this: a name that it
// would read as something else, or more than it takes.
var ErrCannotAsk = errors.New("the kernel cannot be asked that")

// Question is one that the kernel is asked about a profile.
type Question struct {
	// Class is what the rules are about: policydb.ClassFile, policydb.ClassNetV8.
	Class byte
	// Data is what is looked up: a path, or family and type of a socket as two
	// 16-bit numbers, the larger byte first.
	Data []byte
	// As is whose file it is, policydb.Owner or policydb.Other. It makes no
	// difference in other classes.
	As policydb.Who
}

// Unmediated says that an answer of the kernel's means "not mediated": the
// policy has no rule of the class, so that the kernel looks no further and lets
// everything through. It says nothing about a permission. A class that the
// kernel does not know, and capabilities always, are answered so as well (seen
// on Debian 12 and 13; profile_query_cb in security/apparmor/apparmorfs.c).
func Unmediated(r policydb.Raw) bool {
	const all = 0xffffffff
	return r.Allow == all && r.Quiet == all
}

// Ask asks the kernel about a loaded profile, and returns an answer for each
// question, in order. Nothing is retried; the first error ends it. It is
// ErrNoQueries where the kernel cannot be asked at all, and fs.ErrNotExist where
// the profile is not loaded.
func (s *System) Ask(ctx context.Context, profile string, questions []Question) ([]policydb.Raw, error) {
	out := make([]policydb.Raw, len(questions))
	err := s.asking(func(a *access) error {
		return a.askAll(ctx, "", profile, questions, out)
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// asking opens the query file and calls f on a thread of its own, which can take
// another fsuid and is thrown away with it.
func (s *System) asking(f func(*access) error) error {
	a, err := s.openAccess()
	if err != nil {
		return err
	}
	defer a.close()
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the runtime ends the thread with the goroutine, and
		// makes no new thread from one that is locked.
		runtime.LockOSThread()
		done <- func() (err error) {
			defer func() { err = errors.Join(err, a.become(a.own)) }()
			return f(a)
		}()
	}()
	return <-done
}

// access is the kernel's query file, …/apparmor/.access, kept open.
//
// Each write is a question, and a read gives its answer (multi_transaction in
// security/apparmor/apparmorfs.c). The kernel's comment speaks of one question
// for each time that it is opened, since a read moves the position and a write
// anywhere but at 0 is refused; with the position given, one opening serves for
// any number of them (seen on Debian 12 and 13).
type access struct {
	fd   int
	path string
	// as is whose files the calling thread's fsuid asks about, own what it asked
	// about at first.
	as, own policydb.Who
	out     []byte
	in      [256]byte
}

// maxQuestion is how much the kernel takes in one question: a page but for what
// it keeps about it (MULTI_TRANSACTION_LIMIT). This is less, on all of them.
const maxQuestion = 4096 - 64

func (s *System) openAccess() (*access, error) {
	path := s.real(filepath.Join(securityDir, ".access"))
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot ask the kernel: %w: %w", ErrNoQueries, &fs.PathError{Op: "open", Path: path, Err: err})
	}
	a := &access{fd: fd, path: path, own: policydb.Other}
	if os.Geteuid() == 0 && rootIsRoot() {
		a.own = policydb.Owner
	}
	a.as = a.own
	return a, nil
}

// rootIsRoot says whether our user 0 is the first user namespace's, which is the
// one that the kernel compares with.
func rootIsRoot() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(text))
	return err == nil && len(f) >= 2 && f[0] == "0" && f[1] == "0"
}

func (a *access) close() { _ = unix.Close(a.fd) }

// notRoot is some user that is not root.
const notRoot = 65534

// become makes the calling thread, which must be locked, ask about its own files
// or about those of others: the kernel compares its fsuid with root, whose every
// file of a question is (path_cond in profile_query_cb).
//
// The file-system user has no other use in this thread; the capabilities that
// concern files go and come back with it (capabilities(7)). The process is not
// dumpable any more afterwards, nor is it once the parser was started as another
// user (commit_creds in kernel/cred.c).
func (a *access) become(as policydb.Who) error {
	switch {
	case as == a.as:
		return nil
	case a.own != policydb.Owner:
		return fmt.Errorf("cannot ask the kernel about files of the owner: only root's thread can: %w", unix.EPERM)
	}
	uid := uintptr(0)
	if as == policydb.Other {
		uid = notRoot
	}
	set := func(uid uintptr) uintptr {
		was, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, uid, 0, 0)
		return was & 0xffffffff
	}
	set(uid)
	// It tells of no failure; asking for an impossible one tells what is.
	if now := set(0xffffffff); now != uid {
		return fmt.Errorf("cannot ask the kernel about files of others: the thread's fsuid stayed %d: %w", now, unix.EPERM)
	}
	a.as = as
	return nil
}

// askAll asks all questions about a profile of a namespace, "" for the host's
// own: first those about the owner, then the others. The fsuid stays as it was
// last needed.
func (a *access) askAll(ctx context.Context, ns, profile string, questions []Question, out []policydb.Raw) error {
	for _, who := range [...]policydb.Who{policydb.Owner, policydb.Other} {
		for i, q := range questions {
			if (q.As == policydb.Other) != (who == policydb.Other) {
				continue
			}
			if i%64 == 0 && ctx.Err() != nil {
				return fmt.Errorf("cannot ask the kernel about profile %s: %w", clean(profile), context.Cause(ctx))
			}
			if err := a.become(who); err != nil {
				return err
			}
			var err error
			if out[i], err = a.ask(ns, profile, q.Class, q.Data); err != nil {
				return err
			}
		}
	}
	return a.become(a.own)
}

// askable says whether the kernel would read a profile's name as just that
// (aa_label_strn_parse and aa_splitn_fqname in security/apparmor): neither as
// several profiles, nor as one of another namespace, and without a byte that
// ends it.
func askable(ns, profile string) error {
	var why string
	switch {
	case profile == "":
		why = "it is empty"
	case strings.ContainsAny(profile, "\x00\n"), strings.ContainsAny(ns, "\x00\n:/ "):
		why = "it holds a NUL or a line break"
	case strings.Contains(profile, "//&"):
		why = "the kernel would take it for several profiles"
	case strings.ContainsAny(profile[:1], ":& \t\v\f\r"):
		why = "the kernel would read its first byte as something else"
	default:
		return nil
	}
	return fmt.Errorf("%w: profile %q: %s", ErrCannotAsk, profile, why)
}

// ask asks one question, as the thread is. The position of the file stays 0.
func (a *access) ask(ns, profile string, class byte, data []byte) (policydb.Raw, error) {
	if err := askable(ns, profile); err != nil {
		return policydb.Raw{}, err
	}
	a.out = append(a.out[:0], "label\x00"...)
	if ns != "" {
		a.out = append(a.out, ':')
		a.out = append(a.out, ns...)
		a.out = append(a.out, "://"...)
	}
	a.out = append(a.out, profile...)
	a.out = append(a.out, 0, class)
	a.out = append(a.out, data...)
	if len(a.out) > maxQuestion {
		return policydb.Raw{}, fmt.Errorf("%w: a question of %d bytes; at most %d go into one", ErrCannotAsk, len(a.out), maxQuestion)
	}
	fail := func(err error) (policydb.Raw, error) {
		return policydb.Raw{}, fmt.Errorf("cannot ask the kernel about profile %s: %w", clean(profile), err)
	}
	if n, err := again(func() (int, error) { return unix.Pwrite(a.fd, a.out, 0) }); err != nil {
		return fail(err)
	} else if n != len(a.out) {
		return fail(fmt.Errorf("it took %d of %d bytes", n, len(a.out)))
	}
	n, err := again(func() (int, error) { return unix.Pread(a.fd, a.in[:], 0) })
	if err != nil {
		return fail(err)
	}
	r, err := parseAnswer(a.in[:n])
	if err != nil {
		return fail(err)
	}
	return r, nil
}

// again repeats what a signal has interrupted.
func again(f func() (int, error)) (n int, err error) {
	for {
		if n, err = f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// parseAnswer reads four lines "allow 0x…", "deny 0x…", "audit 0x…" and
// "quiet 0x…" (query_label in security/apparmor/apparmorfs.c).
func parseAnswer(in []byte) (r policydb.Raw, err error) {
	rest := in
	for _, f := range [...]struct {
		name string
		to   *uint32
	}{{"allow", &r.Allow}, {"deny", &r.Deny}, {"audit", &r.Audit}, {"quiet", &r.Quiet}} {
		var line []byte
		var ok bool
		if line, rest, ok = bytes.Cut(rest, []byte("\n")); ok {
			line, ok = bytes.CutPrefix(line, []byte(f.name+" 0x"))
		}
		if !ok || len(line) == 0 || len(line) > 8 {
			return policydb.Raw{}, fmt.Errorf("it answered %q, which is not understood", in)
		}
		for _, c := range line {
			d := strings.IndexByte("0123456789abcdef", c)
			if d < 0 {
				return policydb.Raw{}, fmt.Errorf("it answered %q, which is not understood", in)
			}
			*f.to = *f.to<<4 | uint32(d)
		}
	}
	if len(rest) > 0 {
		return policydb.Raw{}, fmt.Errorf("it answered %q, which is not understood", in)
	}
	return r, nil
}
