package apparmor

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// errNoParser says that apparmor_parser is not installed.
var errNoParser = errors.New("apparmor_parser is not installed")

// parserPath finds the parser at its fixed places.
func (s *System) parserPath() (string, error) {
	for _, p := range s.opt.Parsers {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", fmt.Errorf("%w: looked for %s; install the package apparmor", errNoParser, strings.Join(s.opt.Parsers, " and "))
}

// parserVersion is the first line of what "apparmor_parser --version" prints,
// asked once for each parser; "" where it does not say.
func (s *System) parserVersion(ctx context.Context) string {
	s.version.Lock()
	defer s.version.Unlock()
	p, err := s.parserPath()
	var st unix.Stat_t
	if err != nil || unix.Stat(p, &st) != nil {
		return ""
	}
	if sig := signatureOf(&st); s.version.of != sig {
		c, err := s.copyTree()
		if err != nil {
			return ""
		}
		defer c.remove()
		out, err := s.parse(ctx, c, 1, "--version")
		if err != nil || out.err != nil {
			return ""
		}
		first, _, _ := strings.Cut(string(out.stdout), "\n")
		s.version.of, s.version.text = sig, clean(first[:min(len(first), 200)])
	}
	return s.version.text
}

// output is what one run of the parser printed.
type output struct {
	stdout []byte
	stderr []byte
	err    error // how it ended, nil for exit status 0
}

// limited keeps what fits and remembers that there was more.
type limited struct {
	buf  bytes.Buffer
	max  int64
	over func()
	cut  bool
}

func (l *limited) Write(p []byte) (int, error) {
	if int64(l.buf.Len()+len(p)) > l.max {
		if !l.cut {
			l.cut = true
			l.over()
		}
		return len(p), nil
	}
	return l.buf.Write(p)
}

// parse runs apparmor_parser on copies of files, as a user that nobody is,
// with bounds on time, memory and output; files says how many, for the time.
// The error is about running it at all: what the parser itself says is in
// output.
func (s *System) parse(ctx context.Context, c *copied, files int, args ...string) (output, error) {
	path, err := s.parserPath()
	if err != nil {
		return output{}, err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return output{}, ctx.Err()
	}
	limit := s.opt.ParserTime + time.Duration(max(0, files-1))*s.opt.ParserTime/8
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()

	where := []string{"--base", c.base(), "--quiet", "--jobs", "1"}
	for _, dir := range s.opt.Include {
		where = append(where, "--Include", c.of(dir))
	}
	if s.opt.Features != "" {
		where = append(where, "--kernel-features", c.features())
	}
	args = append(where, args...)
	stdout := &limited{max: s.opt.ParserOutput, over: cancel}
	stderr := &limited{max: 1 << 20, over: cancel}
	limits := s.limits(limit)
	run := func(cred *syscall.Credential) error {
		cmd := exec.CommandContext(ctx, path, args...)
		itself := cred != nil && !limitsOthers()
		if itself {
			cmd = exec.CommandContext(ctx, limiter, append(limits.flags(), append([]string{"--", path}, args...)...)...)
		}
		cmd.Dir = c.base()
		cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		cmd.Stdout, cmd.Stderr = stdout, stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: cred}
		// The parser forks for each file: the whole group goes.
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = time.Second
		// Pdeathsig is sent when the thread that started the child ends, so the
		// thread must stay with us (golang.org/issue/27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			return &startError{err}
		}
		var unbound error
		if !itself {
			if unbound = limits.set(cmd.Process.Pid); unbound != nil {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			}
		}
		err := cmd.Wait()
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what it left behind
		if unbound != nil {
			return unbound
		}
		return err
	}
	var cred *syscall.Credential
	if c.id != 0 {
		cred = &syscall.Credential{Uid: uint32(c.id), Gid: uint32(c.id)}
	}
	err = run(cred)
	var start *startError
	if cred != nil && errors.As(err, &start) && (errors.Is(start.err, unix.EPERM) || errors.Is(start.err, unix.EINVAL)) {
		// No CAP_SETUID, or a user namespace without such ids: bounded only.
		err = run(nil)
	}
	out := output{stdout: stdout.buf.Bytes(), stderr: stderr.buf.Bytes(), err: err}
	switch {
	case errors.Is(err, errUnbound): // and not run again with more rights
		return out, err
	case errors.As(err, &start):
		return out, fmt.Errorf("cannot start %s: %w", path, start.err)
	case stdout.cut || stderr.cut:
		return out, fmt.Errorf("%s printed more than %d bytes and was stopped", path, s.opt.ParserOutput)
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return out, fmt.Errorf("%s %s %v and was stopped", path, tooLong, limit)
	case ctx.Err() != nil:
		return out, ctx.Err()
	}
	return out, nil
}

// tooLong is what is said of a parser that was stopped for the time it took.
const tooLong = "did not end within"

// tooLarge is what is said of one that came to the bound on its memory. wantsMemory is
// what it prints then: the C++ library's, or its own (parser_include.c, lib.c).
const tooLarge = "needed more memory than"

var wantsMemory = pattern(`std::bad_alloc|[Mm]emory allocation error|[Oo]ut of memory|Cannot allocate memory`)

// startError is a child that could not be started.
type startError struct{ err error }

func (e *startError) Error() string { return e.err.Error() }

// limits are bounds on a child's resources, with the names that prlimit(1) has for
// them. Children it forks inherit them.
type limits []limit

type limit struct {
	what int
	name string
	max  uint64
}

func (s *System) limits(span time.Duration) limits {
	return limits{
		{unix.RLIMIT_CPU, "cpu", uint64(span/time.Second) + 1},
		{unix.RLIMIT_AS, "as", s.opt.ParserMemory},
		{unix.RLIMIT_CORE, "core", 0},
		{unix.RLIMIT_FSIZE, "fsize", uint64(s.opt.ParserOutput)},
		{unix.RLIMIT_NOFILE, "nofile", openFiles()},
	}
}

// openFiles is how many files the parser may have open: all that a profile may include,
// since of a directory it opens every file before it reads the first (seen with 3.0.8),
// and some more. Only CAP_SYS_RESOURCE goes beyond the bound that there is already.
func openFiles() uint64 {
	const most = maxFiles + 256
	var here unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &here) == nil {
		return min(most, here.Max)
	}
	return most
}

// limiter sets its own limits and becomes the program: for root without
// CAP_SYS_RESOURCE, as in a container. It is of util-linux, which is essential in
// Debian.
const limiter = "/usr/bin/prlimit"

// limitsOthers reports whether limits may be put on another user's process (prlimit(2)).
var limitsOthers = sync.OnceValue(func() bool {
	var caps [2]unix.CapUserData // version 3 has 64 bits
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
	return err == nil && caps[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
})

var errUnbound = errors.New("cannot put bounds on the parser")

// set limits a child, right after its start: the instant before is the program
// loader's.
func (l limits) set(pid int) error {
	for _, one := range l {
		err := unix.Prlimit(pid, one.what, &unix.Rlimit{Cur: one.max, Max: one.max}, nil)
		if err != nil && !errors.Is(err, unix.ESRCH) { // it has ended already
			return fmt.Errorf("%w: %w", errUnbound, err)
		}
	}
	return nil
}

// flags are those of prlimit(1).
func (l limits) flags() (out []string) {
	for _, one := range l {
		out = append(out, fmt.Sprintf("--%s=%d", one.name, one.max))
	}
	return out
}

// marker is the name of a profile of our own, empty, that stands between the
// files given to one run: what the parser prints has nothing else that says
// where one file's output ends. Nobody can know it beforehand.
func marker() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	return "aaunit-" + hex.EncodeToString(b[:])
}

func markerText(m string) string { return "profile " + m + " { }\n" }

// each runs the parser over many files in one go and gives each file's part of
// the output; with an error somewhere, or an output in which the parts do not
// show, the files concerned are run one by one. cut divides an output at the
// markers.
func (s *System) each(ctx context.Context, srcs []*source, cut func(out []byte, markers []string) ([][]byte, error), flags ...string) (parts [][]byte, errs []error) {
	parts, errs = make([][]byte, len(srcs)), make([]error, len(srcs))
	if len(srcs) == 0 {
		return parts, errs
	}
	c, err := s.copyTree()
	if err == nil {
		defer c.remove()
	}
	paths := make([]string, len(srcs))
	for i, src := range srcs {
		if err == nil {
			paths[i], errs[i] = c.add(src)
		} else {
			errs[i] = err
		}
		if errs[i] != nil {
			errs[i] = fmt.Errorf("cannot compile %s: %w", src.file, errs[i])
		}
	}
	if err != nil {
		return parts, errs
	}
	var which, rest []int
	for i := range srcs {
		if errs[i] == nil {
			which = append(which, i)
		}
	}
	if len(which) == 1 {
		rest = which
	} else if len(which) > 1 {
		var batches []batch
		size := max(2, (len(which)+cap(s.slots)-1)/cap(s.slots))
		for chunk := range slices.Chunk(which, size) {
			b := batch{which: chunk}
			for _, i := range chunk {
				m := marker()
				p, err := c.extra(markerText(m))
				if err != nil {
					errs[i] = fmt.Errorf("cannot compile %s: %w", srcs[i].file, err)
				}
				b.markers, b.args = append(b.markers, m), append(b.args, paths[i], p)
			}
			batches = append(batches, b)
		}
		left := make([][]int, len(batches))
		s.workers(len(batches), func(k int) { left[k] = s.together(ctx, c, batches[k], paths, parts, cut, flags) })
		rest = slices.Concat(left...)
	}
	// A parser that hangs on everything must not be waited for once per file.
	var stuck atomic.Int32
	s.workers(len(rest), func(k int) {
		i := rest[k]
		if errs[i] != nil {
			return
		}
		if stuck.Load() >= maxStuck {
			errs[i] = &compileError{file: srcs[i].file, text: "apparmor_parser did not answer for other files before it", run: true, again: time.Now()}
			return
		}
		parts[i], errs[i] = s.alone(ctx, c, srcs[i], paths[i], flags)
		var ce *compileError
		if errors.As(errs[i], &ce) && ce.run {
			stuck.Add(1)
		} else {
			stuck.Store(0)
		}
	})
	return parts, errs
}

// maxStuck is how many files in a row may bring the parser to its bounds before
// the others are given up.
const maxStuck = 3

// workers calls f for 0 to n-1, as many at a time as parsers may run.
func (s *System) workers(n int, f func(i int)) {
	var next atomic.Int32
	var wg sync.WaitGroup
	for range min(n, cap(s.slots)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// batch is what one run of the parser gets: files, each with a marker behind it.
type batch struct {
	which   []int
	markers []string
	args    []string
}

// together runs several files at once. It gives the ones that must be run
// alone, because something was wrong with their part, or with the whole.
func (s *System) together(ctx context.Context, c *copied, b batch, paths []string, parts [][]byte, cut func([]byte, []string) ([][]byte, error), flags []string) (rest []int) {
	out, err := s.parse(ctx, c, len(b.which), append(append([]string{}, flags...), b.args...)...)
	if err != nil {
		return b.which
	}
	got, err := cut(out.stdout, b.markers)
	if err != nil {
		return b.which
	}
	for k, i := range b.which {
		// A part may be empty because the file has no profile or because it
		// does not compile, and a message does not say surely which file it is
		// about: a run of its own does.
		if len(got[k]) == 0 || bytes.Contains(out.stderr, []byte(paths[i])) {
			rest = append(rest, i)
			continue
		}
		parts[i] = got[k]
	}
	return rest
}

func (s *System) alone(ctx context.Context, c *copied, src *source, path string, flags []string) ([]byte, error) {
	begun := time.Now()
	later := func() time.Time { return time.Now().Add(retryTimes * time.Since(begun)) }
	out, err := s.parse(ctx, c, 1, append(append([]string{}, flags...), path)...)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("cannot compile %s: %w", src.file, ctx.Err())
		}
		return nil, &compileError{file: src.file, text: err.Error(), run: true, again: later()}
	}
	said := c.original(string(out.stderr))
	// Exit 0 is not success (seen on Debian 12 and 13).
	if out.err != nil && wantsMemory().MatchString(said) {
		return nil, &compileError{file: src.file, text: fmt.Sprintf("the parser %s %d MiB", tooLarge, s.opt.ParserMemory>>20), run: true, again: later()}
	}
	if out.err != nil || strings.Contains(said, "parser error") {
		e := newCompileError(src, said, out.err, s.parserVersion(ctx))
		if exit := (*exec.ExitError)(nil); errors.As(out.err, &exit) && !exit.Exited() {
			e.again, e.silent = later(), true // somebody, or the kernel for want of memory, has killed it
		}
		return nil, e
	}
	return out.stdout, nil
}

// compileError is what the parser has against a file.
type compileError struct {
	file  string
	text  string
	where string    // file:line
	found Diagnosis // where the parser has read the file, and refused it
	run   bool      // the parser could not be run, or did not end
	// unread: the file could not be read.
	unread bool
	// silent: the parser was killed, or said nothing on the text that makes sense.
	silent bool
	// again is when it is worth another try although no input has changed; zero:
	// never.
	again time.Time
}

func (e *compileError) Error() string {
	if strings.HasPrefix(e.text, e.file+":") {
		return "cannot compile " + e.text // FILE:LINE: …
	}
	return "cannot compile " + e.file + ": " + e.text
}

func newCompileError(src *source, said string, ended error, version string) *compileError {
	in := Said{File: src.file, Text: said, Sources: map[string][]byte{}, Version: version, Dir: src.profiles, Beside: src.beside, Unread: map[string]string{}}
	for p, c := range src.files {
		switch {
		case c.err == nil:
			in.Sources[p] = c.data
		case !errors.Is(c.err, fs.ErrNotExist):
			in.Unread[p] = c.err.Error()
		}
	}
	e := &compileError{file: src.file, found: Diagnose(in)}
	switch {
	case e.found.Code != "":
		e.text = e.found.String()
	case ended != nil:
		e.text, e.silent = "apparmor_parser ended with "+ended.Error()+" and said nothing", true
	}
	return e
}

// clean makes text of the parser's fit for a message.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == utf8.RuneError || r < 0x20 && r != '\t' || r == 0x7f {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}

// parseNames reads what "apparmor_parser -N" prints: one internal name a line,
// children as "parent//child". Anything that cannot be a name is refused.
func parseNames(out []byte) ([]string, error) {
	var names []string
	for line := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte("\n")), []byte("\n")) {
		if len(out) == 0 {
			return nil, nil
		}
		if err := checkName(string(line)); err != nil {
			return nil, err
		}
		names = append(names, string(line))
		if len(names) > maxProfiles {
			return nil, fmt.Errorf("it names more than %d profiles", maxProfiles)
		}
	}
	return names, nil
}

// checkName refuses what the kernel or a file of ours could not carry as a
// profile's name.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("the parser printed an empty name")
	case len(name) > 4096:
		return errors.New("the parser printed a name of more than 4096 bytes")
	case !utf8.ValidString(name):
		return fmt.Errorf("the parser printed %q, which is not valid UTF-8", name)
	case strings.ContainsFunc(name, func(r rune) bool { return r < 0x20 || r == 0x7f }):
		return fmt.Errorf("the parser printed %q, which holds a control character", name)
	}
	return nil
}

// cutNames divides a list of names at the markers.
func cutNames(out []byte, markers []string) ([][]byte, error) {
	parts := make([][]byte, len(markers))
	for i, m := range markers {
		line := []byte(m + "\n")
		at := bytes.Index(out, line)
		if at < 0 || at > 0 && out[at-1] != '\n' {
			return nil, errors.New("the parser's output is not in the order of the files")
		}
		parts[i], out = out[:at], out[at+len(line):]
	}
	if len(out) > 0 {
		return nil, errors.New("the parser printed more than was asked")
	}
	return parts, nil
}

// cutBlobs divides compiled policy at the markers.
func cutBlobs(out []byte, markers []string) ([][]byte, error) {
	elements, err := policydb.Split(out)
	if err != nil {
		return nil, err
	}
	parts := make([][]byte, len(markers))
	i := 0
	for _, e := range elements {
		switch {
		case i == len(markers):
			return nil, errors.New("the parser printed more than was asked")
		case e.Namespace == "" && e.Name == markers[i]:
			i++
		default:
			if e.Namespace != "" {
				return nil, errors.New("a policy names a namespace") // said when it is run alone
			}
			parts[i] = append(parts[i], e.Bytes...)
		}
	}
	if i < len(markers) {
		return nil, errors.New("the parser's output is not in the order of the files")
	}
	return parts, nil
}

// problem makes a reason of what is wrong with a file.
func problem(file string, err error) attach.Reason {
	var ce *compileError
	switch {
	case errors.Is(err, ErrUntrusted):
		return attach.Because(attach.ProfileUntrusted, "cannot use %s: %v", file, err).At(file).
			WithNext("chown root:root " + file + "; chmod 644 " + file)
	case errors.Is(err, fs.ErrNotExist):
		return attach.Because(attach.ProfileNotFound, "cannot compile %s: the file does not exist", file).At(file)
	case errors.As(err, &ce) && ce.unread:
		return attach.Because(attach.ProfileUnreadable, "cannot read %s: %s", file, ce.text).At(file)
	case errors.As(err, &ce):
		where := ce.where
		if where == "" {
			where = file
		}
		code := attach.ProfileBroken
		if ce.run || ce.silent {
			code = attach.ProfileNotCompiled
		}
		r := attach.Because(code, "%v", ce).At(where)
		switch {
		case ce.found.Code != "" && !ce.silent:
			return ce.found.reason(r)
		case code == attach.ProfileBroken:
			r = r.WithNext("correct the file; apparmor_parser -Q -K " + file + " shows whether it compiles")
		case strings.Contains(ce.text, tooLong), strings.Contains(ce.text, tooLarge):
			r = r.WithNext("make the file simpler: alternations such as {a,b} multiply, the more so behind **; it is tried again when it changes, and now and then")
		}
		return r
	}
	return attach.Because(attach.ProfileNotCompiled, "%v", err).At(file).WithNext(safefile.WayOut(err))
}
