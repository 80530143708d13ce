package apparmor

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// maxIndexed bounds the files that are indexed.
const maxIndexed = 10_000

// maxRefresh bounds how long the index waits for the parser, in all, as a
// multiple of Options.ParserTime. What has no names by then has those of its
// text, for a while.
const maxRefresh = 4

// racy is how long a file must have been untouched for its times to prove that
// it did not change since it was read: the kernel's clock for them is coarse.
const racy = 50 * time.Millisecond

// indexState is what is known of profile files, by path.
type indexState struct {
	sync.Mutex // held while the parser runs

	files    map[string]*indexed // directly in /etc/apparmor.d; never changed, but replaced
	outside  map[string]*indexed // asked for by path
	dirMtime unix.Timespec
	// unlisted says why there may be files in the directory that are not in files.
	unlisted error
	// last points to what files was after the last look, for those who must not
	// wait for the lock.
	last  atomic.Pointer[map[string]*indexed]
	watch watching
}

// found puts in place what a look found.
func (ix *indexState) found(files map[string]*indexed) {
	ix.files = files
	ix.last.Store(&files)
}

// indexed is what is known of one file.
type indexed struct {
	deps   map[string]signature // the file and what it includes; zero: missing
	dirs   map[string]signature // included directories
	read   time.Time
	digest string
	// untrusted says who else can write what it was read from, "" nobody.
	untrusted string
	names     []attach.Profile // children too
	vars      map[string][]string
	// err says why the parser did not give its names; what the text says stands
	// in for them.
	err error
	// again is when to try once more, where the cause does not lie in the files:
	// no change will say so.
	again time.Time
}

// ByName lists the profiles with that internal name in /etc/apparmor.d. A file
// that is disabled counts only where no other has the name, and one that does
// not compile only where those have not either: neither is loaded at boot.
func (s *System) ByName(name string) []attach.Profile {
	s.index.Lock()
	defer s.index.Unlock()
	s.refresh()
	return s.named(s.index.files, name)
}

// Known is ByName by what was found at the last look: it looks at no profile
// file, starts no parser and waits for none, and before the first look it knows
// nothing. So it is for hints in messages, where an old answer does no harm and
// a late one does; what decides about anything asks ByName.
func (s *System) Known(name string) []attach.Profile {
	if files := s.index.last.Load(); files != nil {
		return s.named(*files, name)
	}
	return nil
}

func (s *System) named(files map[string]*indexed, name string) []attach.Profile {
	var ranks [3][]attach.Profile
	for _, e := range files {
		for _, p := range e.names {
			switch {
			case p.Name != name:
			case e.err != nil:
				ranks[2] = append(ranks[2], p)
			case s.link("disable", p.File) != "":
				ranks[1] = append(ranks[1], p)
			default:
				ranks[0] = append(ranks[0], p)
			}
		}
	}
	for _, found := range ranks {
		if len(found) > 0 {
			return s.present(found)
		}
	}
	return nil
}

// InFile lists the profiles that a file defines, without children and hats, in
// the order of the text. A file outside /etc/apparmor.d is read when it is
// asked for, and only where root alone can write it: ErrUntrusted. Where the
// parser refuses the file the names are those of its text, and Compile says
// what is wrong; where even that names none, the error does.
func (s *System) InFile(file string) ([]attach.Profile, error) {
	if !filepath.IsAbs(file) || filepath.Clean(file) != file || strings.ContainsRune(file, 0) {
		return nil, fmt.Errorf("cannot read profile file %q: give its absolute path", file)
	}
	s.index.Lock()
	defer s.index.Unlock()
	s.refresh()
	e := s.index.files[file]
	if e == nil {
		var err error
		if e, err = s.outsideFile(file); err != nil {
			return nil, err
		}
	}
	var out []attach.Profile
	for _, p := range e.names {
		if !strings.Contains(p.Name, "//") {
			out = append(out, p)
		}
	}
	if len(out) == 0 && e.err != nil {
		return nil, e.err
	}
	return s.present(out), nil
}

// ByExecutable lists the profiles whose attachment path fits a program's path,
// or the path that its links lead to. Of several, those stay that name most of
// the path, as the kernel chooses.
func (s *System) ByExecutable(program string) []attach.Profile {
	if !filepath.IsAbs(program) {
		return nil
	}
	paths := []string{filepath.Clean(program)}
	if to, err := s.leads(program); err == nil && to != paths[0] {
		paths = append(paths, to)
	}
	s.index.Lock()
	defer s.index.Unlock()
	s.refresh()
	best := -1
	var out []attach.Profile
	for _, e := range s.index.files {
		for _, p := range e.names {
			if p.Attachment == "" || strings.Contains(p.Name, "//") {
				continue
			}
			re, ok := compileGlob(p.Attachment, e.vars)
			if !ok || !slices.ContainsFunc(paths, re.MatchString) {
				continue
			}
			switch n := literalPrefix(p.Attachment); {
			case n > best:
				best, out = n, []attach.Profile{p}
			case n == best:
				out = append(out, p)
			}
		}
	}
	return s.present(out)
}

// Profiles lists every profile that a file directly in /etc/apparmor.d defines,
// without children and hats, by name and file. Why there may be more is in unread,
// by file: no name could be read of it, and it is not disabled.
func (s *System) Profiles() (out []attach.Profile, unread map[string]attach.Reason) {
	s.index.Lock()
	defer s.index.Unlock()
	s.refresh()
	unread = map[string]attach.Reason{}
	if err := s.index.unlisted; err != nil {
		unread[s.opt.Profiles] = attach.Because(attach.ProfileUnreadable, "cannot list %s: %v", s.opt.Profiles, err).At(s.opt.Profiles)
	}
	for file, e := range s.index.files {
		for _, p := range e.names {
			if !strings.Contains(p.Name, "//") {
				out = append(out, p)
			}
		}
		switch {
		case e.err == nil || len(e.names) > 0 || s.link("disable", file) != "":
		case e.digest == "":
			unread[file] = attach.Because(attach.ProfileUnreadable, "%v", e.err).At(file)
		default:
			unread[file] = problem(file, e.err)
		}
	}
	out = s.present(out)
	slices.SortStableFunc(out, func(a, b attach.Profile) int { return strings.Compare(a.Name, b.Name) })
	return out, unread
}

// Fingerprint tells the state of profiles: of the files that define them (file
// too, where it is given) with all they include, of the links that stand for
// these, and of what is loaded. It differs when any of that changed, and when it
// could not be told.
func (s *System) Fingerprint(names []string, file string) string {
	h := sha256.New()
	loaded := slices.Clone(names)
	s.index.Lock()
	s.refresh()
	note := func(path string, e *indexed) {
		fmt.Fprintf(h, "%q %q %q %v\n", path, e.digest, e.untrusted, e.err)
		for _, p := range e.names {
			loaded = append(loaded, p.Name)
		}
	}
	for _, name := range names {
		for _, p := range s.named(s.index.files, name) {
			fmt.Fprintf(h, "%#v\n", p)
			note(p.File, s.index.files[p.File])
		}
	}
	if file != "" && s.index.files[file] == nil {
		e, err := s.outsideFile(file)
		if err != nil {
			fmt.Fprintln(h, rand.Text()) // could not be told
		} else {
			note(file, e)
		}
	}
	s.index.Unlock()
	fmt.Fprintln(h, s.LoadedState(loaded))
	return string(h.Sum(nil))
}

// LoadedState tells what is loaded of these profiles, with their children and hats. It
// differs when one was loaded, replaced or removed, and when that could not be told.
// No parser is waited for.
func (s *System) LoadedState(names []string) string {
	live, err := s.live(names)
	if err != nil {
		return rand.Text()
	}
	// With the number in the directory's name: one that was removed, which takes
	// it off its tasks, and loaded again has another.
	sum := sha256.Sum256(fmt.Appendf(nil, "%v", live)) // maps are printed in order
	return string(sum[:])
}

// present sorts profiles and says which links stand for their files now.
func (s *System) present(found []attach.Profile) []attach.Profile {
	out := make([]attach.Profile, 0, len(found))
	for _, p := range found {
		p.DisabledBy = s.link("disable", p.File)
		p.ComplainBy = s.link("force-complain", p.File)
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b attach.Profile) int {
		if c := strings.Compare(a.File, b.File); c != 0 {
			return c
		}
		return a.Line - b.Line
	})
	if len(out) == 0 {
		return nil
	}
	return out
}

// link finds the entry in disable/ or force-complain/ that stands for a file:
// one of the same base name that the parser can read (test_for_dir_mode in
// parser/parser_main.c). It counts for files elsewhere, too.
func (s *System) link(kind, file string) string {
	p := path.Join(s.opt.Profiles, kind, path.Base(file))
	var st unix.Stat_t
	if err := s.stat(p, &st); err != nil {
		return ""
	}
	return p
}

// refresh brings the index up to date. Files whose times did not change, and
// whose includes did not, are not read again; what was read and is the same is
// not given to the parser again.
func (s *System) refresh() {
	ix := &s.index
	var st unix.Stat_t
	if err := s.stat(s.opt.Profiles, &st); err != nil {
		ix.found(nil)
		if ix.unlisted = err; errors.Is(err, fs.ErrNotExist) {
			ix.unlisted = nil
		}
		ix.watch.dirty()
		return
	}
	if ix.watch.isClean() && st.Mtim == ix.dirMtime {
		return
	}
	ix.watch.look()
	ix.dirMtime = st.Mtim
	entries, err := s.readDir(s.opt.Profiles)
	if ix.unlisted = err; err != nil {
		ix.watch.dirty()
		return
	}
	look := map[string]signature{}
	files := map[string]*indexed{}
	var stale []string
	for _, e := range entries {
		if skipped(e.Name()) || e.IsDir() {
			continue
		}
		if len(files)+len(stale) >= maxIndexed {
			ix.unlisted = fmt.Errorf("it holds more than %d files", maxIndexed)
			break
		}
		p := path.Join(s.opt.Profiles, e.Name())
		if e.Type()&fs.ModeSymlink != 0 {
			err := s.stat(p, &st)
			if err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
				continue // the parser passes over it, too
			}
			if errors.Is(err, fs.ErrNotExist) { // which makes the parser fail
				files[p] = &indexed{deps: map[string]signature{p: {}}, again: time.Now().Add(retry), err: fmt.Errorf("cannot read profile file %s: the link leads to nothing", p)}
				continue
			}
		}
		if old := ix.files[p]; old != nil && s.fresh(old, look) {
			files[p] = old
			continue
		}
		stale = append(stale, p)
	}
	for p, e := range s.reindex(stale, ix.files) {
		files[p] = e
	}
	for _, e := range files {
		if !e.again.IsZero() {
			ix.watch.dirty()
		}
	}
	ix.found(files)
}

// outsideFile reads a profile file that is not directly in /etc/apparmor.d.
func (s *System) outsideFile(file string) (*indexed, error) {
	e := s.index.outside[file]
	if e == nil || !s.fresh(e, map[string]signature{}) {
		src, err := s.newReader().source(file)
		if err == nil {
			err = src.untrusted
		}
		if err != nil {
			delete(s.index.outside, file)
			return nil, fmt.Errorf("cannot read profile file %s: %w", file, err)
		}
		if e = s.reindex([]string{file}, s.index.outside)[file]; e == nil {
			return nil, fmt.Errorf("cannot read profile file %s: %w", file, fs.ErrNotExist)
		}
		if s.index.outside == nil || len(s.index.outside) > 1000 {
			s.index.outside = map[string]*indexed{}
		}
		s.index.outside[file] = e
	}
	return e, nil
}

// retry is how long a file waits whose names could not be read because the
// parser could not be run or did not end: at least so long, and at least so
// many times as long as the parser was waited for.
const (
	retry      = time.Minute
	retryTimes = 10
)

// fresh reports whether neither a file nor what it includes changed since it
// was read.
func (s *System) fresh(e *indexed, look map[string]signature) bool {
	if !e.again.IsZero() && time.Now().After(e.again) {
		return false
	}
	now := func(p string) signature {
		sig, ok := look[p]
		if !ok {
			var st unix.Stat_t
			if s.stat(p, &st) == nil {
				sig = signatureOf(&st)
			}
			look[p] = sig
		}
		return sig
	}
	for _, set := range []map[string]signature{e.deps, e.dirs} {
		for p, was := range set {
			sig := now(p)
			if sig != was {
				return false
			}
			if changed := time.Unix(sig.ctime.Unix()); sig != (signature{}) && e.read.Sub(changed) < racy {
				return false
			}
		}
	}
	return true
}

// reindex reads files, and asks the parser for the names of those whose text
// is not known.
func (s *System) reindex(files []string, known map[string]*indexed) map[string]*indexed {
	out := map[string]*indexed{}
	if len(files) == 0 {
		return out
	}
	r := s.newReader()
	now := time.Now()
	var srcs []*source
	for _, p := range files {
		src, err := r.source(p)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) { // gone meanwhile
				out[p] = &indexed{deps: map[string]signature{p: r.read(p).sig}, read: now, again: now.Add(retry), err: fmt.Errorf("cannot read profile file %s: %w", p, err)}
			}
			continue
		}
		e := &indexed{digest: src.digest, read: now, vars: src.scan.vars, deps: map[string]signature{}, dirs: map[string]signature{}}
		if src.untrusted != nil {
			e.untrusted = src.untrusted.Error()
		}
		for dep, c := range src.files {
			e.deps[dep] = c.sig
		}
		for _, d := range src.dirs {
			var st unix.Stat_t
			if s.stat(d, &st) == nil {
				e.dirs[d] = signatureOf(&st)
			}
		}
		out[p] = e
		s.watchElsewhere(e)
		if old := known[p]; old != nil && old.digest == src.digest && old.err == nil {
			e.names = old.names
			continue
		}
		srcs = append(srcs, src)
	}
	ctx, cancel := s.indexing()
	defer cancel()
	asked := time.Now()
	parts, errs := s.each(ctx, srcs, cutNames, "--names")
	again := time.Now().Add(max(retry, retryTimes*time.Since(asked)))
	for i, src := range srcs {
		e := out[src.file]
		var names []string
		err := errs[i]
		if err == nil {
			names, err = s.namesOf(src, parts[i])
		}
		if err != nil {
			e.err = err
			names = src.scan.names()
			if ce := (*compileError)(nil); !errors.As(err, &ce) || ce.run {
				e.again = again
			}
		}
		e.names = profilesOf(src, names)
	}
	return out
}

// indexing is the context in which the parser runs for the index, whoever asked:
// what it finds serves the next ones too. It is bounded, since all who ask wait
// meanwhile, and ends with the one that Changes has, or Options.Life.
func (s *System) indexing() (context.Context, context.CancelFunc) {
	s.index.watch.Lock()
	life := s.index.watch.life
	s.index.watch.Unlock()
	if life == nil {
		life = s.opt.Life
	}
	if life == nil {
		life = context.Background()
	}
	return context.WithTimeout(life, maxRefresh*s.opt.ParserTime)
}

// namesOf reads the parser's names of one file and checks them against what
// the text says: a line break in a name would look like two names.
func (s *System) namesOf(src *source, out []byte) ([]string, error) {
	names, err := parseNames(out)
	if err != nil {
		return nil, &compileError{file: src.file, text: err.Error()}
	}
	for _, p := range src.scan.profiles {
		if strings.ContainsAny(p.name, "\n\x00") {
			return nil, &compileError{file: src.file, where: fmt.Sprintf("%s:%d", p.file, p.line),
				text: fmt.Sprintf("profile name %q holds a line break or a NUL", p.name)}
		}
	}
	return names, nil
}

func (t textScan) names() []string {
	var out []string
	for _, p := range t.profiles {
		if checkName(p.name) == nil {
			out = append(out, p.name)
		}
	}
	return out
}

// profilesOf joins the names that the parser found with what the text says
// about them. A name that is put together from variables is found by
// elimination, where one is left on both sides.
func profilesOf(src *source, names []string) []attach.Profile {
	byName := map[string]int{}
	var unclaimed []int
	for i, p := range src.scan.profiles {
		if slices.Contains(names, p.name) {
			if _, twice := byName[p.name]; !twice {
				byName[p.name] = i
			}
		} else if !p.child {
			unclaimed = append(unclaimed, i)
		}
	}
	var lost []int
	out := make([]attach.Profile, 0, len(names))
	for _, name := range names {
		p := attach.Profile{Name: name, File: src.file}
		if i, ok := byName[name]; ok {
			fill(&p, src.scan.profiles[i], src.file)
		} else if !strings.Contains(name, "//") {
			lost = append(lost, len(out))
		}
		out = append(out, p)
	}
	if len(lost) == 1 && len(unclaimed) == 1 {
		fill(&out[lost[0]], src.scan.profiles[unclaimed[0]], src.file)
	}
	slices.SortStableFunc(out, func(a, b attach.Profile) int { return a.Line - b.Line })
	return out
}

// fill adds what the text says. A profile in an included file counts as the
// including file's, but its line does not.
func fill(p *attach.Profile, t textProfile, file string) {
	if t.file == file {
		p.Line = t.line
	}
	p.Attachment, p.Flags, p.Leaves = t.attachment, t.flags, t.leaves
}
