package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// maxFile bounds one attachment file.
const maxFile = 64 << 10

// quiet is how long the directories must be still before a change is told, so
// that a burst of files is one change, and a file that is being written is not
// read while it is still empty.
const quiet = 250 * time.Millisecond

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
}

// Read reads all attachment files. What is wrong with one never keeps the
// others from being used.
func (f *Files) Read() attach.Declared {
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
			if isMask(path) {
				continue
			}
			a, problems := f.readFile(path)
			if len(problems) > 0 {
				d.Problems = append(d.Problems, problems...)
				d.Broken[path] = true
				continue
			}
			a.Runtime = i == 1
			d.Attachments = append(d.Attachments, a)
		}
	}
	slices.SortFunc(d.Attachments, func(a, b attach.Attachment) int { return strings.Compare(a.Source, b.Source) })
	return d
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
	if err == nil {
		if err = file.OnlyBy(f.Owner); err != nil {
			err = fmt.Errorf("cannot use %s: %w", path, err)
		}
	}
	if err != nil {
		return attach.Attachment{}, []attach.Reason{attach.Because(attach.AttachmentBad, "%v", err).At(path)}
	}
	return Parse(path, file.Data)
}

// Write stores an attachment made at the command line for one unit. A lasting
// one takes the place of one for this boot, so that a detach leaves neither.
func (f *Files) Write(unit string, a attach.Attachment) (string, func() error, error) {
	dir := f.Dirs[0]
	if a.Runtime {
		dir = f.Dirs[1]
	}
	path := filepath.Join(dir, unit+".conf")
	if lasting := filepath.Join(f.Dirs[0], unit+".conf"); a.Runtime {
		if _, err := os.Lstat(lasting); !errors.Is(err, fs.ErrNotExist) {
			return "", nil, fmt.Errorf("cannot write %s: %s would mask it; detach %s first", path, lasting, unit)
		}
	}
	if err := safefile.MkdirAll(dir, 0o755); err != nil {
		return "", nil, err
	}
	old, err := safefile.Read(path, maxFile)
	existed := err == nil
	switch {
	case existed && !strings.HasPrefix(string(old.Data), manualHeader+"\n"):
		return "", nil, fmt.Errorf("cannot write %s: it exists and aaunitctl did not write it; edit that file instead", path)
	case !existed && !errors.Is(err, fs.ErrNotExist):
		return "", nil, err
	}
	if _, err := safefile.Write(path, []byte(Format(a)), 0o644); err != nil {
		return "", nil, err
	}
	restore := func() error {
		if !existed {
			return f.Remove(path)
		}
		_, err := safefile.Write(path, old.Data, 0o644)
		return err
	}
	short := filepath.Join(f.Dirs[1], unit+".conf")
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
// A directory that appears later is watched from then on.
func (f *Files) Changes(ctx context.Context) <-chan struct{} {
	out := make(chan struct{}, 1)
	w, err := fsnotify.NewWatcher()
	if err != nil {
		f.Log.Error("cannot watch the attachment files; changes are seen at the slow re-check only", "err", err)
		close(out)
		return out
	}
	watchAll := func() {
		for _, d := range f.Dirs {
			for _, p := range []string{filepath.Dir(d), d} {
				if err := w.Add(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
					f.Log.Error("cannot watch directory; changes there are seen at the slow re-check only", "dir", p, "err", err)
				}
			}
		}
	}
	watchAll()
	go func() {
		defer close(out)
		defer w.Close()
		timer := time.NewTimer(time.Hour)
		timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case ev, ok := <-w.Events:
				if !ok {
					return
				}
				switch {
				case slices.Contains(f.Dirs, ev.Name):
					watchAll()
				case !slices.Contains(f.Dirs, filepath.Dir(ev.Name)) || !strings.HasSuffix(ev.Name, ".conf"):
					continue
				}
				timer.Reset(quiet)
			case err, ok := <-w.Errors:
				if !ok {
					return
				}
				// The queue overflowed: something changed, we do not know what.
				f.Log.Warn("the watch on attachment files lost events; reading all again", "err", err)
				timer.Reset(quiet)
			case <-timer.C:
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out
}
