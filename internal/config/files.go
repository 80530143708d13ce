package config

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/inotify"
	"github.com/aaunit/aaunit/internal/safefile"
)

// maxFile bounds one attachment file.
const maxFile = 64 << 10

const (
	// quiet is how long the directories must be still before a change is told,
	// so that a burst of files is one change, and a file that is being written
	// is not read while it is still empty.
	quiet = 250 * time.Millisecond
	// maxDelay bounds how long a stream of changes holds a report back: one
	// file that is written over and over must not hide the others.
	maxDelay = 2 * time.Second
	// rewatch is how long to wait before what could not be watched is tried
	// again, and looked at.
	rewatch = 10 * time.Second
)

// Dirs are the directories of attachment files, the first wins: a file masks
// those of the same name in later directories, and a link to /dev/null masks
// without putting anything in its place.
type Dirs []string

// DefaultDirs are the directories of a real host.
var DefaultDirs = Dirs{"/etc/aaunit/attachments.d", "/run/aaunit/attachments.d", "/usr/lib/aaunit/attachments.d"}

// Files is the attachment files of a host.
type Files struct {
	Dirs Dirs
	Log  *slog.Logger
	// Owner is the user that the files and their directories must belong to,
	// and who alone may write them: root, on a host.
	Owner uint32
	// AnyOwner takes files that belong to anybody: for checks of sources.
	AnyOwner bool
	// Options knows the names of socket options; without it none is known, and a file
	// that names one is bad.
	Options attach.OptionNames

	mu sync.Mutex
	// read is what good files said, by path: a file that was not touched since is
	// not read again.
	read map[string]readFile
}

// readFile is a file as it was read.
type readFile struct {
	was        identity
	attachment *attach.Attachment
}

// racy is how long a file must have been untouched for its times to prove that
// it did not change since it was read: the kernel's clock for them is coarse.
const racy = 50 * time.Millisecond

// identity tells a file from another one, and from what it was before it was touched.
type identity struct {
	dev, ino   uint64
	mode, uid  uint32
	size       int64
	mtim, ctim unix.Timespec
}

func identify(s unix.Stat_t) identity {
	return identity{s.Dev, s.Ino, s.Mode, s.Uid, s.Size, s.Mtim, s.Ctim}
}

// Read reads all attachment files. What is wrong with one never keeps the
// others from being used.
func (f *Files) Read() attach.Declared {
	f.mu.Lock()
	defer f.mu.Unlock()
	before := f.read
	f.read = map[string]readFile{}
	d := attach.Declared{Broken: map[string]bool{}}
	masked := map[string]bool{}
	unlisted := false // what an earlier directory masks is not known
	for i, dir := range f.Dirs {
		if err := safefile.DirOnlyBy(dir, f.Owner); err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				d.Problems = append(d.Problems, attach.Because(attach.AttachmentBad, "cannot use the attachment files in %s: %v", dir, err).
					At(dir).WithNext("chown root:root "+dir+"; chmod 755 "+dir))
				unlisted = f.breakAll(dir, d.Broken, masked) != nil || unlisted
			}
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			d.Problems = append(d.Problems, attach.Because(attach.AttachmentBad, "cannot list %s: %v", dir, err).At(dir))
			d.Broken[dir] = true
			unlisted = true
			continue
		}
		for _, e := range entries {
			name := e.Name()
			if !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") || masked[name] {
				continue
			}
			masked[name] = true
			path := filepath.Join(dir, name)
			if unlisted {
				d.Broken[path] = true
				continue
			}
			var now unix.Stat_t
			if err := unix.Lstat(path, &now); err == nil && now.Mode&unix.S_IFMT == unix.S_IFLNK && isMask(path) {
				continue
			}
			known, ok := before[path]
			var problems []attach.Reason
			if !ok || known.was != identify(now) {
				begun := time.Now()
				var a attach.Attachment
				a, problems = f.readFile(path)
				a.Runtime = i == 1
				known = readFile{identify(now), &a}
				ok = now.Mode&unix.S_IFMT == unix.S_IFREG && begun.Sub(time.Unix(now.Ctim.Unix())) > racy
			}
			if ok && len(problems) == 0 {
				f.read[path] = known
			}
			if len(problems) > 0 {
				d.Problems = append(d.Problems, problems...)
				d.Broken[path] = true
				continue
			}
			d.Attachments = append(d.Attachments, known.attachment)
		}
	}
	slices.SortFunc(d.Attachments, func(a, b *attach.Attachment) int { return strings.Compare(a.Source, b.Source) })
	return d
}

// Propose is what Read would give if files had these texts, or one without any were
// gone. It is for files directly in the first directory, where people and
// configuration tools put theirs; others are those that are not.
func (f *Files) Propose(files []attach.ProposedFile) (d attach.Declared, others []attach.ProposedFile) {
	d = f.Read()
	for _, p := range files {
		name := filepath.Base(p.File)
		if p.File != filepath.Join(f.Dirs[0], name) || !strings.HasSuffix(name, ".conf") || strings.HasPrefix(name, ".") {
			others = append(others, p)
			continue
		}
		f.propose(&d, p.File, p.Text)
	}
	slices.SortFunc(d.Attachments, func(a, b *attach.Attachment) int { return strings.Compare(a.Source, b.Source) })
	return d, others
}

// propose has one file say something else, or nothing.
func (f *Files) propose(d *attach.Declared, file, text string) {
	name := filepath.Base(file)
	same := func(path string) bool {
		return filepath.Base(path) == name && slices.Contains(f.Dirs, filepath.Dir(path))
	}
	about := func(r attach.Reason) bool { // FILE, or FILE:LINE
		return same(r.Where) || strings.Contains(r.Where, ":") && same(r.Where[:strings.LastIndexByte(r.Where, ':')])
	}
	d.Attachments = slices.DeleteFunc(d.Attachments, func(a *attach.Attachment) bool { return same(a.Source) })
	d.Problems = slices.DeleteFunc(d.Problems, about)
	maps.DeleteFunc(d.Broken, func(path string, _ bool) bool { return same(path) })
	var a attach.Attachment
	var bad []attach.Reason
	switch {
	case len(text) > maxFile:
		bad = []attach.Reason{attach.Because(attach.AttachmentBad, "%s is larger than %d bytes", file, maxFile).At(file)}
	case text != "":
		a, bad = Parse(file, []byte(text), f.Options)
	default:
		// What it masked until now.
		below := &Files{Dirs: f.Dirs[1:], Owner: f.Owner, Options: f.Options}
		under := below.Read()
		i := slices.IndexFunc(under.Attachments, func(a *attach.Attachment) bool { return same(a.Source) })
		if i < 0 {
			return
		}
		a = *under.Attachments[i]
		a.Runtime = filepath.Dir(a.Source) == f.Dirs[1]
	}
	if len(bad) > 0 {
		d.Problems, d.Broken[file] = append(d.Problems, bad...), true
		return
	}
	d.Attachments = append(d.Attachments, &a)
}

// breakAll marks every file of a directory that may not be trusted, so that
// what they attached before stays. They still mask those of later directories:
// what is broken must not be replaced by what it was meant to replace.
func (f *Files) breakAll(dir string, broken, masked map[string]bool) error {
	broken[dir] = true
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".conf") {
			broken[filepath.Join(dir, e.Name())], masked[e.Name()] = true, true
		}
	}
	return err
}

func isMask(path string) bool {
	target, err := os.Readlink(path)
	return err == nil && target == "/dev/null"
}

func (f *Files) readFile(path string) (attach.Attachment, []attach.Reason) {
	file, err := safefile.Read(path, maxFile)
	if err == nil && !f.AnyOwner {
		if err = file.OnlyBy(f.Owner); err != nil {
			err = fmt.Errorf("cannot use %s: %w", path, err)
		}
	}
	if err != nil {
		return attach.Attachment{}, []attach.Reason{attach.Because(attach.AttachmentBad, "%v", err).At(path)}
	}
	return Parse(path, file.Data, f.Options)
}

// One reads one attachment file, wherever it lies. is says whether it looks like
// one: by its name, and since it has a section [Attachment].
func (f *Files) One(path string) (a attach.Attachment, problems []attach.Reason, is bool) {
	if !strings.HasSuffix(path, ".conf") {
		return attach.Attachment{}, nil, false
	}
	file, err := safefile.Read(path, maxFile)
	if err != nil || !slices.ContainsFunc(strings.Split(string(file.Data), "\n"), func(l string) bool { return strings.TrimSpace(l) == "[Attachment]" }) {
		return attach.Attachment{}, nil, false
	}
	a, problems = f.readFile(path)
	return a, problems, true
}

// Holds reports whether a file lies in one of the directories.
func (f *Files) Holds(path string) bool { return slices.Contains(f.Dirs, filepath.Dir(path)) }

// Exists reports whether a file lies in one of the directories and is there, be it
// masked or of no use; where that cannot be told, too.
func (f *Files) Exists(path string) bool {
	_, err := os.Lstat(path)
	return f.Holds(path) && !errors.Is(err, fs.ErrNotExist)
}

// fileOf is the name of the file of an attachment made at the command line: after
// the unit where that fits into a file's name, else after its digest.
func fileOf(unit string) string {
	if len(unit) <= unix.NAME_MAX-len(".conf") {
		return unit + ".conf"
	}
	sum := sha256.Sum256([]byte(unit))
	return "sha256-" + hex.EncodeToString(sum[:]) + ".conf"
}

// Write stores an attachment made at the command line for one unit. One that could not be
// read again is an error, and nothing is changed. A lasting one takes the place of one for this boot, so that a detach leaves neither.
func (f *Files) Write(unit string, a attach.Attachment) (string, func() error, error) {
	dir := f.Dirs[0]
	if a.Runtime {
		dir = f.Dirs[1]
	}
	name := fileOf(unit)
	path := filepath.Join(dir, name)
	if lasting := filepath.Join(f.Dirs[0], name); a.Runtime {
		if _, err := os.Lstat(lasting); !errors.Is(err, fs.ErrNotExist) {
			return "", nil, &attach.InTheWay{Text: fmt.Sprintf("cannot write %s: %s would mask it; detach %s first", path, lasting, unit)}
		}
	}
	if err := safefile.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	old, err := safefile.Read(path, maxFile)
	existed := err == nil
	switch {
	case existed && !strings.HasPrefix(string(old.Data), manualHeader+"\n"):
		return "", nil, &attach.InTheWay{Text: fmt.Sprintf("cannot write %s: it exists and aaunitctl did not write it; edit that file instead", path)}
	case !existed && !errors.Is(err, fs.ErrNotExist):
		return "", nil, err
	}
	text := []byte(Format(a))
	if len(text) > maxFile {
		return "", nil, fmt.Errorf("cannot write %s: it would be larger than %d bytes; give fewer socket options, or shorter reasons", path, maxFile)
	}
	if _, err := safefile.Write(path, text, 0o644); err != nil {
		return "", nil, err
	}
	restore := func() error {
		if !existed {
			return f.Remove(path)
		}
		_, err := safefile.Write(path, old.Data, 0o644)
		return err
	}
	short := filepath.Join(f.Dirs[1], name)
	if was, err := safefile.Read(short, maxFile); !a.Runtime && err == nil && strings.HasPrefix(string(was.Data), manualHeader+"\n") {
		if err := f.Remove(short); err != nil {
			return "", nil, errors.Join(err, restore())
		}
		back := restore
		restore = func() error {
			_, err := safefile.Write(short, was.Data, 0o644)
			return errors.Join(err, back())
		}
	}
	return path, restore, nil
}

// Remove removes an attachment made at the command line.
func (f *Files) Remove(path string) error {
	_, err := safefile.Remove(path)
	return err
}

// Changes tells that files came, went or changed; bursts are merged into one.
// The channel is closed when ctx ends. The directories may come later, go, and
// be made anew, and so may those above them.
func (f *Files) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	w := &watch{log: f.Log, dirs: f.Dirs.andAbove(), blind: map[string]bool{}, again: rewatch, seen: f.Dirs.fingerprint()}
	w.all() // here: what happens after the return is told
	go func() {
		defer close(out)
		w.run(ctx, f.Dirs, out)
	}()
	return out
}

// andAbove lists the directories and all above them, those above first.
func (d Dirs) andAbove() []string {
	var out []string
	for _, p := range d {
		for ; !slices.Contains(out, p); p = filepath.Dir(p) {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}

// fingerprint is a digest over names and times of the attachment files, for
// finding changes without a watch.
func (d Dirs) fingerprint() string {
	h := sha256.New()
	for _, dir := range d {
		entries, _ := os.ReadDir(dir) // what went away shows
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			var st unix.Stat_t
			if strings.HasSuffix(path, ".conf") && unix.Lstat(path, &st) == nil {
				fmt.Fprintf(h, "%q %d %d %d %v %v %o\n", path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim, st.Mode)
			}
		}
	}
	return string(h.Sum(nil))
}

// watch is the watch on directories. A watch goes with its directory, whatever
// comes to lie at the path later, and only a watch on the one above tells of
// that: so all of them are watched, up to the root, and watched anew whenever
// something happened to one of them.
type watch struct {
	log   *slog.Logger
	dirs  []string // those above first: nothing can come unseen between two steps
	w     *inotify.Watcher
	blind map[string]bool // those that could not be watched; "" is all
	again time.Duration   // rewatch
	seen  string          // what the files were like when they were last looked at
	// For tests: what watches a directory.
	add func(w *inotify.Watcher, dir string) error
}

// all watches all directories, and says whether one is watched now that could
// not be before. One that does not exist is no failure: the one above tells
// when it comes.
func (w *watch) all() (found bool) {
	if w.w == nil {
		fresh, err := inotify.New()
		found = w.judge("", err)
		if err != nil {
			return false
		}
		w.w = fresh
	}
	for _, d := range w.dirs {
		add := (*inotify.Watcher).Add
		if w.add != nil {
			add = w.add
		}
		err := add(w.w, d)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			err = nil
		}
		found = w.judge(d, err) || found
	}
	return found
}

// anew watches all directories with a new watcher, which knows no names.
func (w *watch) anew() {
	w.w.Close()
	w.w = nil
	w.all()
}

// judge remembers whether a directory is watched, complains once where it is
// not, and says whether it is again.
func (w *watch) judge(dir string, err error) bool {
	was := w.blind[dir]
	switch {
	case err == nil:
		delete(w.blind, dir)
		return was
	case was:
	default:
		first := len(w.blind) == 0
		w.blind[dir] = true
		if first {
			w.log.Error("cannot watch all attachment files; until a later try succeeds they are looked at now and then", "every", w.again.String(), "dir", dir, "err", err)
		}
	}
	return false
}

func (w *watch) run(ctx context.Context, dirs Dirs, out chan<- struct{}) {
	var since time.Time // the first change that is not told yet; zero: there is none
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	changed := func() {
		if since.IsZero() {
			since = time.Now()
		}
		timer.Reset(min(quiet, time.Until(since.Add(maxDelay))))
	}
	defer func() {
		if w.w != nil {
			w.w.Close()
		}
	}()
	var again <-chan time.Time
	for {
		if again == nil && len(w.blind) > 0 {
			again = time.After(w.again)
		}
		var events <-chan fsnotify.Event
		var lost <-chan error
		if w.w != nil {
			events, lost = w.w.Events, w.w.Lost
		}
		select {
		case <-ctx.Done():
			return
		case ev := <-events:
			name := filepath.Clean(ev.Name) // fsnotify says "//etc" for what is in "/"
			switch {
			case slices.Contains(w.dirs, name):
				// fsnotify knows those in a renamed directory by their old names, and ends their
				// watch when something else has these.
				w.anew()
			case !slices.Contains(dirs, filepath.Dir(name)) || !strings.HasSuffix(name, ".conf"):
				continue
			}
			changed()
		case err := <-lost:
			// Something changed, we do not know what.
			w.log.Warn("the watch on attachment files lost events; reading all again", "err", err)
			w.anew()
			changed()
		case <-again:
			again = nil
			found, now := w.all(), dirs.fingerprint()
			if found || now != w.seen {
				changed() // what happened there meanwhile was missed
			}
			w.seen = now
		case <-timer.C:
			since = time.Time{}
			select {
			case out <- struct{}{}:
			default: // one is waiting to be read already
			}
		}
	}
}
