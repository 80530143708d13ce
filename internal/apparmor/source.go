package apparmor

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Bounds on what is read for one profile.
const (
	maxFile    = 1 << 20
	maxClosure = 16 << 20
	maxFiles   = 2000
)

// skipSuffixes are what the parser passes over in directories
// (ignored_suffixes in libraries/libapparmor/src/private.c), and ".swp".
var skipSuffixes = []string{".dpkg-new", ".dpkg-old", ".dpkg-dist", ".dpkg-bak", ".dpkg-remove",
	".pacsave", ".pacnew", ".rpmnew", ".rpmsave", ".orig", ".rej", "~", ".swp"}

// skipped reports whether the parser does not read a file of that name when it
// is given the directory: editors' and packagers' leftovers.
func skipped(name string) bool {
	return name == "" || name[0] == '.' || name == "README" ||
		slices.ContainsFunc(skipSuffixes, func(suf string) bool { return strings.HasSuffix(name, suf) })
}

// content is one file as it was read.
type content struct {
	data []byte
	err  error // it could not be read; fs.ErrNotExist: it is not there
	// untrusted says why the file must not decide about confinement.
	untrusted error
	sig       signature
	// asks are the includes in it, once they were looked for.
	asks   []rules.Token
	looked bool
}

func (c *content) includes() []rules.Token {
	if !c.looked {
		c.looked, c.asks = true, includesOf(string(c.data))
	}
	return c.asks
}

// signature tells a file's versions apart without reading it.
type signature struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
	mode         uint32
}

func signatureOf(st *unix.Stat_t) signature {
	return signature{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim, st.Mode}
}

// lasting is the signature that is compared over boots: the same disk may have another
// device number then.
func (s signature) lasting() signature {
	s.dev = 0
	return s
}

// reader reads each file once, for one pass over many profiles.
type reader struct {
	s     *System
	files map[string]*content
	lists map[string][]string // directory -> names; nil is no directory
	dirs  map[string]error    // directory -> why it is not trusted
	// kept: there are no other files and directories than those in the maps.
	kept bool
}

func (s *System) newReader() *reader {
	return &reader{s: s, files: map[string]*content{}, lists: map[string][]string{}, dirs: map[string]error{}}
}

// keptReader reads texts that were kept together with a policy: Compiled.Sources.
func (s *System) keptReader(texts map[string][]byte) *reader {
	r := s.newReader()
	r.kept = true
	for p, data := range texts {
		if dir, ok := strings.CutSuffix(p, "/"); ok {
			r.lists[dir] = append([]string{}, r.lists[dir]...)
			continue
		}
		r.files[p] = &content{data: data}
	}
	for dir := range r.lists {
		for p := range r.files {
			if path.Dir(p) == dir {
				r.lists[dir] = append(r.lists[dir], path.Base(p))
			}
		}
		sort.Strings(r.lists[dir])
	}
	return r
}

// read reads a profile text. A file behind a symbolic link is read too, since
// apparmor.service would load it, but is not trusted.
func (r *reader) read(p string) *content {
	if c, ok := r.files[p]; ok {
		return c
	}
	c := &content{}
	r.files[p] = c
	if r.kept {
		c.err = fs.ErrNotExist
		return c
	}
	real := r.s.real(p)
	var st unix.Stat_t
	if err := r.s.stat(p, &st); err == nil {
		c.sig = signatureOf(&st)
	}
	f, err := safefile.Read(real, maxFile)
	switch {
	case err == nil:
		c.data = f.Data
		c.untrusted = r.trust(p, f)
	case errors.Is(err, fs.ErrNotExist):
		c.err = err
	default:
		if !r.s.opt.AnyOwner {
			c.untrusted = fmt.Errorf("%s: %s: %w", p, bare(err, real), ErrUntrusted)
		}
		c.data, c.err = r.s.readFollowing(p)
	}
	return c
}

// bare takes the "cannot read FILE: " off an error of safefile's, since the
// file is named already.
func bare(err error, real string) string {
	for _, verb := range []string{"cannot read ", "cannot open "} {
		if rest, ok := strings.CutPrefix(err.Error(), verb+real+": "); ok {
			return rest
		}
	}
	return err.Error()
}

func (r *reader) trust(p string, f safefile.File) error {
	switch {
	case r.s.opt.AnyOwner:
		return nil
	case int(f.UID) != r.s.opt.Owner:
		return fmt.Errorf("%s belongs to user %d, not to root: %w", p, f.UID, ErrUntrusted)
	case f.Mode&0o022 != 0:
		return fmt.Errorf("the mode of %s is %04o: %w", p, f.Mode, ErrUntrusted)
	}
	return r.trustDir(path.Dir(p))
}

// trustDir says who else than root could put files into a directory or into
// one above it. The walk goes top-down: what a trusted directory holds cannot
// be exchanged by others.
func (r *reader) trustDir(dir string) error {
	if err, ok := r.dirs[dir]; ok || r.s.opt.AnyOwner {
		return err
	}
	var err error
	if dir != "/" {
		err = r.trustDir(path.Dir(dir))
	}
	if err == nil && (dir != "/" || r.s.opt.Root == "") {
		var st unix.Stat_t
		switch e := unix.Lstat(r.s.real(dir), &st); {
		case e != nil:
			err = fmt.Errorf("cannot look at %s: %w", dir, e)
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			err = fmt.Errorf("%s is a symbolic link: %w", dir, ErrUntrusted)
		case int(st.Uid) != r.s.opt.Owner:
			err = fmt.Errorf("directory %s belongs to user %d, not to root: %w", dir, st.Uid, ErrUntrusted)
		case st.Mode&0o022 != 0:
			err = fmt.Errorf("the mode of directory %s is %04o: %w", dir, st.Mode&0o7777, ErrUntrusted)
		}
	}
	r.dirs[dir] = err
	return err
}

// readFollowing reads a regular file wherever links lead.
func (s *System) readFollowing(p string) ([]byte, error) {
	return readRegular(s.open(p, os.O_RDONLY|unix.O_NONBLOCK))
}

// readRegular reads an open file and closes it.
func readRegular(f *os.File, err error) ([]byte, error) {
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("it is larger than %d bytes", maxFile)
	}
	return data, err
}

// list gives the names in an included directory as the parser takes them, nil
// where there is no directory.
func (r *reader) list(dir string) []string {
	if names, ok := r.lists[dir]; ok || r.kept {
		return names
	}
	var names []string
	var st unix.Stat_t
	if err := r.s.stat(dir, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		names = []string{}
		entries, _ := r.s.readDir(dir)
		for _, e := range entries {
			if skipped(e.Name()) || e.IsDir() {
				continue
			}
			names = append(names, e.Name())
		}
	}
	r.lists[dir] = names
	return names
}

// included gives the paths that an include stands for. The parser looks for
// <path> below its base directory; a path without brackets is taken as it is.
func (r *reader) included(angle bool, p string) (files []string, dir string) {
	if p == "" {
		return nil, ""
	}
	if !angle && path.IsAbs(p) {
		return r.at(path.Clean(p))
	}
	for _, above := range r.s.opt.Include {
		full := path.Join(above, p)
		if r.list(full) != nil || r.read(full).err == nil {
			return r.at(full)
		}
	}
	return r.at(path.Join(r.s.opt.Profiles, p))
}

// at gives the file at a path, or the files of the directory there.
func (r *reader) at(full string) (files []string, dir string) {
	if names := r.list(full); names != nil {
		for _, n := range names {
			files = append(files, path.Join(full, n))
		}
		return files, full
	}
	return []string{full}, ""
}

// source is a profile file with everything it includes.
type source struct {
	file     string
	profiles string // what stands for /etc/apparmor.d
	files    map[string]*content
	dirs     []string // included directories
	digest   string   // SHA-256 over names and contents
	// untrusted says why it must not be compiled into policy.
	untrusted error
	scan      textScan
	// beside are files near to where an included one was looked for and is not.
	beside []string
}

// maxBeside bounds the names that are looked at for one that is missing.
const maxBeside = 4096

// beside lists the files of the directories in which one that does not exist
// may have been meant: its own, those that have a similar name, and those that
// hold what profiles include.
func (r *reader) beside(p string) []string {
	dirs := []string{path.Dir(p)}
	for _, name := range []string{"abstractions", "tunables", "abi", "local"} {
		dirs = append(dirs, path.Join(r.s.opt.Profiles, name))
	}
	if up := path.Dir(path.Dir(p)); r.list(path.Dir(p)) == nil && !r.kept {
		entries, _ := r.s.readDir(up)
		var there []string
		for _, e := range entries {
			if e.IsDir() {
				there = append(there, e.Name())
			}
		}
		if n := nearest(path.Base(path.Dir(p)), there); n != "" {
			dirs = append(dirs, path.Join(up, n))
		}
	}
	var out []string
	slices.Sort(dirs[1:])
	for _, dir := range slices.Compact(dirs) {
		for _, n := range r.list(dir) {
			if len(out) < maxBeside {
				out = append(out, path.Join(dir, n))
			}
		}
	}
	return out
}

// texts is what can be kept of it, for keptReader.
func (src *source) texts() map[string][]byte {
	out := map[string][]byte{}
	for p, c := range src.files {
		if c.err == nil {
			out[p] = c.data
		}
	}
	for _, d := range src.dirs {
		out[d+"/"] = nil
	}
	return out
}

// source reads a profile file and the closure of what it includes. A missing
// include is the parser's to complain about.
func (r *reader) source(file string) (*source, error) {
	top := r.read(file)
	if top.err != nil {
		return nil, top.err
	}
	src := &source{file: file, profiles: r.s.opt.Profiles, files: map[string]*content{}}
	total := 0
	queue := []string{file}
	for len(queue) > 0 {
		p := queue[0]
		queue = queue[1:]
		if _, seen := src.files[p]; seen {
			continue
		}
		c := r.read(p)
		src.files[p] = c
		if c.untrusted != nil && src.untrusted == nil {
			src.untrusted = c.untrusted
		}
		if c.err != nil {
			continue
		}
		if total += len(c.data); total > maxClosure || len(src.files) > maxFiles {
			return nil, fmt.Errorf("with what it includes it is larger than %d files or %d bytes", maxFiles, maxClosure)
		}
		for _, inc := range c.includes() {
			files, dir := r.included(inc.Angle, inc.Text)
			if dir != "" && !slices.Contains(src.dirs, dir) {
				src.dirs = append(src.dirs, dir)
				if r.kept {
					queue = append(queue, files...)
					continue
				}
				if err := r.trustDir(dir); err != nil && src.untrusted == nil {
					src.untrusted = err
				}
			}
			if len(files) == 1 && dir == "" && !inc.IfExists && errors.Is(r.read(files[0]).err, fs.ErrNotExist) {
				src.beside = append(src.beside, r.beside(files[0])...)
			}
			queue = append(queue, files...)
		}
	}
	src.digest = digestOf(src.files)
	src.scan = scanText(rules.File{Path: file, Data: string(top.data)}, func(t rules.Token) []rules.File {
		files, _ := r.included(t.Angle, t.Text)
		var out []rules.File
		for _, f := range files {
			if c := src.files[f]; c != nil && c.err == nil {
				out = append(out, rules.File{Path: f, Data: string(c.data)})
			}
		}
		return out
	})
	return src, nil
}

// includesOf lists the files a text asks for, abi files among them.
func includesOf(text string) []rules.Token {
	var out []rules.Token
	for l := rules.NewLexer(text); ; {
		switch t := l.Next(); t.Kind {
		case rules.End:
			return out
		case rules.Include, rules.ABI:
			out = append(out, t)
		}
	}
}

func digestOf(files map[string]*content) string {
	names := make([]string, 0, len(files))
	for p := range files {
		names = append(names, p)
	}
	sort.Strings(names)
	h := sha256.New()
	for _, p := range names {
		c := files[p]
		if c.err != nil {
			fmt.Fprintf(h, "%q missing\n", p)
			continue
		}
		fmt.Fprintf(h, "%q %d\n", p, len(c.data))
		h.Write(c.data)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// closure is what sources that can lie in one tree include: none of them finds a file
// there that it was not read with, nor another text.
type closure struct {
	tops  map[string]bool     // the sources themselves
	files map[string]*content // those that are not there among them
	dirs  map[string]bool     // included directories
	above map[string]bool     // directories that hold something
}

// takes adds a source, and reports whether it could.
func (c *closure) takes(src *source) bool {
	if c.tops[src.file] {
		return false
	}
	for p, f := range src.files {
		if p == src.file {
			continue
		}
		known := c.files[p]
		switch {
		case c.dirs[p] || c.above[p]:
			return false
		case known != nil && ((known.err == nil) != (f.err == nil) || !bytes.Equal(known.data, f.data)):
			return false
		case known == nil && f.err == nil && c.dirs[path.Dir(p)]:
			return false
		}
		for d := path.Dir(p); f.err == nil && d != "/"; d = path.Dir(d) {
			if c.files[d] != nil {
				return false
			}
		}
	}
	for _, d := range src.dirs {
		if c.files[d] != nil {
			return false
		}
		for p, f := range c.files {
			if f.err == nil && path.Dir(p) == d && src.files[p] == nil {
				return false
			}
		}
	}
	if c.tops == nil {
		c.tops, c.files, c.dirs, c.above = map[string]bool{}, map[string]*content{}, map[string]bool{}, map[string]bool{}
	}
	c.tops[src.file] = true
	for p, f := range src.files {
		if p == src.file {
			continue
		}
		c.files[p] = f
		for d := path.Dir(p); f.err == nil && d != "/"; d = path.Dir(d) {
			c.above[d] = true
		}
	}
	for _, d := range src.dirs {
		c.dirs[d], c.above[d] = true, true
	}
	return true
}

// copied is a private copy of profiles and what they include, for a parser
// that may read nothing else and change nothing.
type copied struct {
	dir      string
	profiles string // what stands for /etc/apparmor.d
	id       int    // the user and group that may read it; 0 none
	names    map[string]string
	n        int
}

// unusedIDs are user ids that nobody has: systemd's list of the ranges in use
// ends below (systemd, docs/UIDS-GIDS.md, "Special ... 1879048192…2147483647
// unused"). A random one for each run keeps other processes' hands off the
// child: they would need its user id to trace or kill it.
const unusedIDs = 1_900_000_000

// copyPrefix begins the name of every directory with a private copy. The process that
// made it follows, and a random number; an earlier version had nothing but that.
const copyPrefix = "compile-"

// copyTree makes a private copy directory.
func (s *System) copyTree() (*copied, error) {
	if err := makeDirs(s.opt.Scratch); err != nil {
		return nil, fmt.Errorf("cannot make a directory for the parser: %w", err)
	}
	var b [3]byte
	if _, err := rand.Read(b[:]); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(s.opt.Scratch, copyPrefix+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return nil, fmt.Errorf("cannot make a directory for the parser: %w", err)
	}
	c := &copied{dir: dir, profiles: s.opt.Profiles, names: map[string]string{}}
	if os.Geteuid() == 0 {
		c.id = unusedIDs + int(b[0])<<16 + int(b[1])<<8 + int(b[2])
		if err := os.Chown(dir, 0, c.id); err != nil {
			c.id = 0 // no such ids in this user namespace
		}
	}
	for _, d := range []string{c.base(), filepath.Join(dir, "top")} {
		if err = makeDirs(d); err != nil {
			break
		}
	}
	if err == nil && s.opt.Features != "" {
		// The parser's user may read nothing else.
		var data []byte
		if data, err = readRegular(os.OpenFile(s.opt.Features, os.O_RDONLY|unix.O_NONBLOCK, 0)); err == nil {
			err = writeFile(c.features(), data)
		}
	}
	if err == nil {
		err = os.Chmod(dir, 0o750)
	}
	if err != nil {
		c.remove()
		return nil, fmt.Errorf("cannot make a directory for the parser: %w", err)
	}
	return c, nil
}

// makeDirs makes a directory, and those above it, that the parser's user can enter,
// whatever the umask is.
func makeDirs(dir string) error {
	if st, err := os.Stat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := makeDirs(filepath.Dir(dir)); err != nil {
		return err
	}
	switch err := os.Mkdir(dir, 0o755); {
	case err == nil:
		return os.Chmod(dir, 0o755)
	case errors.Is(err, fs.ErrExist):
		return os.MkdirAll(dir, 0o755) // another process has been faster, or it is no directory
	default:
		return err
	}
}

// writeFile writes one that the parser's user can read.
func writeFile(file string, data []byte) error {
	if err := os.WriteFile(file, data, 0o644); err != nil {
		return err
	}
	return os.Chmod(file, 0o644)
}

func (c *copied) remove() { _ = os.RemoveAll(c.dir) }

// sweepCopies removes private copies that a process left behind when it was killed.
// Those of processes that live are left alone: the boot service compiles beside the
// daemon. Where a number is another process's by now, the copy stays as long as that
// one lives. In a directory in which others can write, such as /tmp, a name proves
// nothing, and nothing is removed.
func (s *System) sweepCopies() {
	var st unix.Stat_t
	if unix.Lstat(s.opt.Scratch, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		return
	}
	entries, _ := os.ReadDir(s.opt.Scratch)
	for _, e := range entries {
		if e.IsDir() && abandoned(e) { // never a link
			_ = os.RemoveAll(filepath.Join(s.opt.Scratch, e.Name()))
		}
	}
}

// abandoned reports whether a directory is a private copy of a process that is gone.
// No parser is given as much as an hour by a name that does not tell the process.
func abandoned(e os.DirEntry) bool {
	rest, ok := strings.CutPrefix(e.Name(), copyPrefix)
	of, random, named := strings.Cut(rest, "-")
	pid, err := strconv.ParseUint(of, 10, 31)
	switch {
	case !ok || err != nil:
		return false
	case !named:
		st, err := e.Info()
		return err == nil && time.Since(st.ModTime()) > time.Hour
	}
	_, err = strconv.ParseUint(random, 10, 64)
	// Not by /proc: Options.Root may have none, or another machine's.
	return err == nil && pid > 0 && errors.Is(unix.Kill(int(pid), 0), unix.ESRCH)
}

// base is the copy's /etc/apparmor.d.
func (c *copied) base() string { return c.of(c.profiles) }

func (c *copied) features() string { return filepath.Join(c.dir, "features") }

// of is where a path lies in the copy.
func (c *copied) of(p string) string { return filepath.Join(c.dir, "root", p) }

// add copies a profile file and what it includes, and gives the path to hand
// to the parser: one of our own making, whatever the file is called.
func (c *copied) add(src *source) (string, error) {
	for p, f := range src.files {
		if p == src.file || f.err != nil {
			continue
		}
		to := filepath.Join(c.dir, "root", p)
		if _, done := c.names[to]; done {
			continue
		}
		if err := c.write(to, c.relocate(f.data)); err != nil {
			return "", err
		}
		c.names[to] = p
	}
	for _, d := range src.dirs {
		if err := makeDirs(filepath.Join(c.dir, "root", d)); err != nil {
			return "", err
		}
	}
	to := filepath.Join(c.dir, "top", strconv.Itoa(c.n))
	c.n++
	c.names[to] = src.file
	return to, c.write(to, c.relocate(src.files[src.file].data))
}

// extra adds a file of our own.
func (c *copied) extra(text string) (string, error) {
	to := filepath.Join(c.dir, "top", strconv.Itoa(c.n))
	c.n++
	return to, c.write(to, []byte(text))
}

func (c *copied) write(to string, data []byte) error {
	if err := makeDirs(filepath.Dir(to)); err != nil {
		return err
	}
	return writeFile(to, data)
}

// relocate makes includes with an absolute path point into the copy. Lines
// stay where they are.
func (c *copied) relocate(data []byte) []byte {
	text := string(data)
	var b strings.Builder
	last := 0
	for _, t := range includesOf(text) {
		if t.Angle || !path.IsAbs(t.Text) || t.To <= t.From {
			continue
		}
		b.WriteString(text[last:t.From])
		b.WriteString(`"` + filepath.Join(c.dir, "root", path.Clean(t.Text)) + `"`)
		last = t.To
	}
	if last == 0 {
		return data
	}
	b.WriteString(text[last:])
	return []byte(b.String())
}

// original puts the real names back into what the parser says.
func (c *copied) original(text string) string {
	if !strings.Contains(text, c.dir) {
		return text
	}
	names := make([]string, 0, len(c.names))
	for to := range c.names {
		names = append(names, to)
	}
	// Longer ones first: top/1 is the beginning of top/10.
	sort.Slice(names, func(i, j int) bool {
		return len(names[i]) > len(names[j]) || len(names[i]) == len(names[j]) && names[i] < names[j]
	})
	pairs := make([]string, 0, 2*len(names)+2)
	for _, to := range names {
		pairs = append(pairs, to, c.names[to])
	}
	pairs = append(pairs, filepath.Join(c.dir, "root"), "", c.dir, "")
	return strings.NewReplacer(pairs...).Replace(text)
}
