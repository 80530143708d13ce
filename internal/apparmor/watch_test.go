package apparmor

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/inotify"
)

// lines is what was logged.
type lines struct {
	sync.Mutex
	bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.Write(p)
}

func (l *lines) String() string {
	l.Lock()
	defer l.Unlock()
	return l.Buffer.String()
}

// tells waits for a change to be told, and then for quiet.
func (h *host) tells(told <-chan struct{}, what string) {
	h.t.Helper()
	select {
	case <-told:
	case <-time.After(time.Minute):
		h.t.Fatalf("%s was not told", what)
	}
	h.drain(told)
}

func (h *host) drain(told <-chan struct{}) {
	for {
		select {
		case <-told:
		case <-time.After(3 * quiet):
			return
		}
	}
}

// limit makes a watch on some directories impossible, as the kernel's limit on
// watches does.
func (h *host) limit(hit func(dir string) bool) {
	h.index.watch.again = 100 * time.Millisecond
	h.index.watch.add = func(w *inotify.Watcher, dir string) error {
		if hit(dir) {
			return unix.ENOSPC
		}
		return w.Add(dir)
	}
}

// What changes before Changes returns is for the first look to find; what changes
// afterwards has to be told, however slow it is to set up a watch.
func TestWhatChangesOnceChangesHasReturnedIsTold(t *testing.T) {
	// waits holds up whoever sets up a watch until something changed, or a while.
	waits := func() (wait, changed func()) {
		c := make(chan struct{})
		return sync.OnceFunc(func() {
			select {
			case <-c:
			case <-time.After(300 * time.Millisecond):
			}
		}), func() { close(c) }
	}
	t.Run("a file", func(t *testing.T) {
		h := newHost(t, "/nowhere")
		h.profile("a", "profile a { }\n")
		wait, changed := waits()
		h.index.watch.add = func(w *inotify.Watcher, dir string) error {
			wait()
			return w.Add(dir)
		}
		told := h.Changes(ctx(t))
		h.profile("a", "profile abc { }\n")
		changed()
		h.tells(told, "a change of a file")
	})
	t.Run("the global mode", func(t *testing.T) {
		h := newHost(t, "/nowhere")
		h.write(paramDir+"/mode", "enforce\n")
		told := h.Changes(ctx(t))
		f, err := os.OpenFile(filepath.Join(h.root, paramDir, "mode"), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString("complain"); err != nil {
			t.Fatal(err)
		}
		h.tells(told, "another global mode")
	})
	t.Run("a file that is not watched", func(t *testing.T) {
		h := newHost(t, "/nowhere")
		h.profile("a", "profile a { }\n")
		h.limit(func(dir string) bool { return dir == filepath.Join(h.root, profileDir) })
		wait, changed := waits()
		h.opt.Log = slog.New(slog.NewTextHandler(writer(wait), nil)) // of what it says before it begins to look
		told := h.Changes(ctx(t))
		h.profile("a", "profile abc { }\n")
		changed()
		h.tells(told, "a change of a file that is not watched")
	})
	t.Run("what is loaded", func(t *testing.T) {
		for range 20 {
			h := newHost(t, "/nowhere")
			h.mkdir(securityDir)
			revision := filepath.Join(h.root, securityDir, "revision")
			if err := unix.Mkfifo(revision, 0o600); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(revision, os.O_RDWR, 0) // never at its end
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			load := func(revision string) {
				if _, err := f.WriteString(revision); err != nil {
					t.Fatal(err)
				}
			}
			load("1\n")
			c, cancel := context.WithCancel(ctx(t))
			defer cancel()
			told := h.Changes(c)
			fds := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
			if n, err := unix.Poll(fds, 0); n != 0 || err != nil {
				t.Fatalf("the revision was not read yet: %v", err)
			}
			select {
			case <-told:
				t.Fatal("nothing had happened")
			case <-time.After(2 * quietLoads):
			}
			load("2\n")
			select {
			case <-told:
			case <-time.After(time.Minute):
				t.Fatal("a load was not told")
			}
		}
	})
}

// writer is called for each line.
type writer func()

func (w writer) Write(p []byte) (int, error) {
	w()
	return len(p), nil
}

// A directory below /etc/apparmor.d, or one elsewhere, cannot be watched: the
// index must not answer from what it knew before a change there, and the watch
// must be had when there is room again.
func TestADirectoryThatCannotBeWatched(t *testing.T) {
	for name, file := range map[string]string{
		"below":     profileDir + "/tunables/x",
		"elsewhere": "/opt/rules/x",
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			var log lines
			h.opt.Log = slog.New(slog.NewTextHandler(&log, nil))
			var full atomic.Bool
			full.Store(true)
			h.limit(func(dir string) bool { return full.Load() && dir == filepath.Dir(filepath.Join(h.root, file)) })
			h.write(file, "profile x1 { }\n")
			h.profile("a", "include \""+file+"\"\n")
			told := h.Changes(ctx(t))
			if got := names(h, "x1"); got != "x1@a" {
				t.Fatalf("%q", got)
			}
			time.Sleep(3 * racy) // times tell now, and the watch has been asked
			if got := names(h, "x1"); got != "x1@a" {
				t.Fatalf("%q", got)
			}
			h.write(file, "profile x2 { }\n")
			if got := names(h, "x1") + names(h, "x2"); got != "x2@a" {
				t.Errorf("an unwatched directory was trusted: %q", got)
			}
			h.tells(told, "a change that is not watched")

			full.Store(false)
			h.tells(told, "that there is a watch again")
			if !h.index.watch.isWhole() {
				t.Fatal("there is no watch")
			}
			if text := log.String(); strings.Count(text, "cannot watch all profile files") != 1 || !strings.Contains(text, "no space left on device") || !strings.Contains(text, "watched again") {
				t.Errorf("it says\n%s", text)
			}
			names(h, "x2")
			if !h.index.watch.isClean() {
				t.Error("with a watch on everything, it is not trusted")
			}
			h.write(file, "profile x3 { }\n")
			h.tells(told, "a change that is watched again")
			if got := names(h, "x3"); got != "x3@a" {
				t.Errorf("%q", got)
			}
		})
	}
}

// A directory that comes later may be the one for which there is no room.
func TestANewDirectoryThatCannotBeWatched(t *testing.T) {
	h := newHost(t)
	h.limit(func(dir string) bool { return strings.HasSuffix(dir, "/late") })
	h.profile("a", "include if exists <late/x>\nprofile a { }\n")
	told := h.Changes(ctx(t))
	names(h, "a")
	h.write(profileDir+"/late/x", "profile x1 { }\n")
	h.tells(told, "a new directory")
	time.Sleep(3 * racy)
	if got := names(h, "x1"); got != "x1@a" {
		t.Fatalf("%q", got)
	}
	h.write(profileDir+"/late/x", "profile x2 { }\n")
	if got := names(h, "x2"); got != "x2@a" {
		t.Errorf("an unwatched directory was trusted: %q", got)
	}
	h.tells(told, "a change that is not watched")
}

func TestMoreDirectoriesThanAreWatched(t *testing.T) {
	h := newHost(t)
	for i := range maxWatched {
		h.mkdir(fmt.Sprintf("%s/d/%04d", profileDir, i))
	}
	file := h.write(profileDir+"/z/x", "profile x1 { }\n")
	h.profile("a", "include <z/x>\n")
	h.index.watch.again = 100 * time.Millisecond
	told := h.Changes(ctx(t))
	if got := names(h, "x1"); got != "x1@a" {
		t.Fatalf("%q", got)
	}
	time.Sleep(3 * racy)
	names(h, "x1")
	h.write(file, "profile x2 { }\n")
	if got := names(h, "x2"); got != "x2@a" {
		t.Errorf("an unwatched directory was trusted: %q", got)
	}
	h.tells(told, "a change that is not watched")
}

// What lies above may go and come back, and a directory of includes may be
// empty at first.
func TestWhatComesInPlaceOfADirectoryIsWatched(t *testing.T) {
	h := newHost(t)
	h.mkdir("/opt/agent/rules.d")
	h.profile("a", "include if exists \"/opt/agent/rules.d\"\ninclude if exists \"/opt/other/x\"\nprofile a { }\n")
	told := h.Changes(ctx(t))
	names(h, "a")
	h.drain(told)
	step := func(what, profile string) {
		t.Helper()
		h.tells(told, what)
		if got := names(h, profile); got != profile+"@a" {
			t.Errorf("%s: %q", what, got)
		}
	}
	h.write("/opt/agent/rules.d/one", "profile one { }\n")
	step("a first file in an included directory", "one")
	if err := os.RemoveAll(filepath.Join(h.root, "/opt/agent")); err != nil {
		t.Fatal(err)
	}
	h.tells(told, "that a directory above went")
	h.write("/opt/agent/rules.d/two", "profile two { }\n")
	step("a file in a directory that came back", "two")
	h.write("/opt/agent/rules.d/three", "profile three { }\n")
	step("another file there", "three")
	h.write("/opt/other/x", "profile x { }\n")
	step("a file in a directory that did not exist", "x")

	dir := filepath.Join(h.root, profileDir)
	if err := os.Rename(dir, dir+".old"); err != nil {
		t.Fatal(err)
	}
	h.tells(told, "that /etc/apparmor.d went")
	h.profile("a", "profile new { }\n")
	step("what came in place of /etc/apparmor.d", "new")
	h.profile("a", "profile newer { }\n")
	step("a change there", "newer")
}

// A directory that was renamed is watched under the name that it has, and so are those in
// it.
func TestADirectoryThatIsRenamedStaysWatched(t *testing.T) {
	for _, tt := range []struct {
		name    string
		renames []string          // from, to, from, to
		changes map[string]string // the file, by the profile that it defines
	}{
		{"below", []string{profileDir + "/local.new", profileDir + "/local"}, map[string]string{
			profileDir + "/local/x":         "x",
			profileDir + "/local/sub/x":     "sub",
			profileDir + "/local/sub/new/x": "new",
		}},
		{"from a name that is skipped", []string{profileDir + "/local.orig", profileDir + "/local"}, map[string]string{
			profileDir + "/local/x": "x",
		}},
		{"in place of another", []string{profileDir + "/local", profileDir + "/aside", profileDir + "/local.new", profileDir + "/local"}, map[string]string{
			profileDir + "/local/x":     "x",
			profileDir + "/local/sub/x": "sub",
			profileDir + "/aside/x":     "aside",
			profileDir + "/aside/sub/x": "subaside",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			for i := 0; i < len(tt.renames); i += 2 {
				h.mkdir(tt.renames[i] + "/sub")
			}
			text := ""
			for file := range tt.changes {
				text += "include if exists \"" + file + "\"\n"
			}
			h.profile("a", text+"profile a { }\n")
			told := h.Changes(ctx(t))
			names(h, "a")
			h.drain(told)
			for i := 0; i < len(tt.renames); i += 2 {
				if err := os.Rename(filepath.Join(h.root, tt.renames[i]), filepath.Join(h.root, tt.renames[i+1])); err != nil {
					t.Fatal(err)
				}
			}
			h.tells(told, "a directory that was renamed")
			for file := range tt.changes {
				h.mkdir(filepath.Dir(file))
			}
			h.drain(told)
			names(h, "a") // from here on the watch is trusted
			for file, profile := range tt.changes {
				h.write(file, "profile "+profile+" { }\n")
				select {
				case <-told:
				case <-time.After(5 * time.Second):
					t.Errorf("a change of %s was not told", file)
				}
				h.drain(told)
				if got := names(h, profile); got != profile+"@a" {
					t.Errorf("after a change of %s: %q", file, got)
				}
			}
		})
	}
}

// A watch on what is loaded that begins late, or anew, has missed what happened
// before.
func TestAWatchOnLoadedPolicyThatBeginsAgainTells(t *testing.T) {
	h := newHost(t)
	h.index.watch.again = 300 * time.Millisecond
	told := h.Changes(ctx(t))
	h.mkdir(securityDir)
	select {
	case <-told:
		t.Fatal("nothing had happened")
	case <-time.After(4 * h.index.watch.again):
	}
	revision := filepath.Join(h.root, securityDir, "revision")
	if err := unix.Mkfifo(revision, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(revision, os.O_RDWR, 0) // never at its end
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h.tells(told, "that the watch on loaded policy began again")
	if _, err := f.WriteString("7\n"); err != nil {
		t.Fatal(err)
	}
	h.tells(told, "a new revision")
}

// A name can have changed among the events that were lost.
func TestADirectoryThatIsRenamedInAnOverflowStaysWatched(t *testing.T) {
	h := newHost(t)
	h.mkdir(profileDir + "/local.new")
	h.profile("a", "include if exists \"/etc/apparmor.d/local/x\"\nprofile a { }\n")
	told := h.Changes(ctx(t))
	names(h, "a")
	h.drain(told)
	h.index.watch.Lock() // nobody takes events
	overflow(t, filepath.Join(h.root, profileDir))
	p := filepath.Join(h.root, profileDir, "local")
	for _, err := range []error{os.Rename(p+".new", p), os.Mkdir(p+".new", 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	h.index.watch.Unlock()
	h.tells(told, "that events were lost")
	names(h, "a")
	h.write(profileDir+"/local/x", "profile x { }\n")
	h.tells(told, "a change in the directory")
	if names(h, "x") == "" {
		t.Error("the index does not have what came")
	}
}

// overflow has more happen in a directory, to files that do not matter, than the kernel
// keeps for one who does not look.
func overflow(t *testing.T, dir string) {
	t.Helper()
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	for i := range most + 1000 {
		// Two events that are alike and follow each other are one.
		if err := os.WriteFile(filepath.Join(dir, []string{"x~", "y~"}[i%2]), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// No change of a file says when a parser that could not be run can be.
func TestAParserThatComesBackIsAskedAgain(t *testing.T) {
	parser := fakeParser(t, `echo a`)
	if err := os.Chmod(parser, 0o644); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, parser)
	file := h.profile("a", "profile a { }\n")
	h.Changes(ctx(t))
	time.Sleep(3 * racy)
	names(h, "a")
	if err := os.Chmod(parser, 0o755); err != nil {
		t.Fatal(err)
	}
	names(h, "a")
	e := h.index.files[file]
	if e.err == nil || time.Until(e.again) < retry/2 {
		t.Fatalf("it is tried again at %v: %v", e.again, e.err)
	}
	e.again = time.Now().Add(-time.Second)
	names(h, "a")
	if e := h.index.files[file]; e.err != nil || !e.again.IsZero() {
		t.Errorf("the parser was not asked again: %v", e.err)
	}
}
