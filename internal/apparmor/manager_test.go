package apparmor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const systemdProgram = "/usr/lib/systemd/systemd"

// replace puts another file in a file's place, as a package's upgrade does. What runs
// the old one goes on.
func (h *host) replace(file string, running ...string) {
	h.t.Helper()
	old := filepath.Join(h.root, file)
	if err := os.Rename(old, old+" (deleted)"); err != nil {
		h.t.Fatal(err)
	}
	h.write(file, "new "+file)
	for _, link := range running {
		_ = os.Remove(filepath.Join(h.root, link))
		h.symlink(old+" (deleted)", link)
	}
}

// again is the next daemon on the host.
func (h *host) again() *host {
	return &host{System: New(h.opt), t: h.t, root: h.root}
}

// What systemd has left in a unit, and what is on its way to a program, is known over
// an upgrade of systemd: before it executes itself anew, after that, and after a
// restart of the daemon.
func TestSystemdsOwnAreKnownOverAnUpgrade(t *testing.T) {
	u := attach.Unit{ControlGroup: "/a.service", MainPID: 10}
	for _, executor := range []bool{false, true} {
		t.Run(fmt.Sprintf("with an executor %v", executor), func(t *testing.T) {
			h := newHost(t)
			h.opt.Systemd = filepath.Join(t.TempDir(), "systemd.json")
			h.opt.Forked = func(context.Context, string) ([]int, error) { return []int{12}, nil }
			own := systemdProgram
			h.proc(proc{pid: 1, comm: "systemd", exe: systemdProgram, labels: one("unconfined", 1)})
			if executor {
				own = systemdExecutor
				h.write(systemdExecutor, "old")
				h.symlink("/dev/null", "/proc/1/fd/1")
				h.symlink(filepath.Join(h.root, systemdExecutor), "/proc/1/fd/42")
			}
			h.proc(proc{pid: 10, comm: "agent", exe: "/usr/bin/agent", labels: one("a (enforce)", 10), ppid: 1})
			h.proc(proc{pid: 11, comm: "(sd-pam)", exe: own, uid: 7, ppid: 10, labels: one("unconfined", 11)})
			h.cgroup("/a.service", 10, 11)
			check := func(h *host, when string) {
				t.Helper()
				tasks, err := h.newLook().tasks(u)
				if err != nil || len(tasks) < 2 {
					t.Fatalf("%s: %+v %v", when, tasks, err)
				}
				for _, x := range tasks[1:] {
					if !x.Manager || x.InTransit != (x.PID == 12) {
						t.Errorf("%s: %+v", when, x)
					}
				}
			}
			check(h, "before")

			if executor {
				h.replace(systemdProgram, "/proc/1/exe")
				h.replace(systemdExecutor, "/proc/11/exe", "/proc/1/fd/42")
			} else {
				h.replace(systemdProgram, "/proc/1/exe", "/proc/11/exe")
			}
			// What PID 1 starts now still runs the old one.
			h.proc(proc{pid: 12, comm: "(agent)", uid: 7, ppid: 1, cgroup: "/a.service", age: time.Second, labels: one("unconfined", 12)})
			h.symlink(filepath.Join(h.root, own+" (deleted)"), "/proc/12/exe")
			h.cgroup("/a.service", 10, 11, 12)
			check(h, "unpacked")
			check(h.again(), "unpacked, another daemon")
			unaware := h.again()
			unaware.opt.Systemd = ""
			check(unaware, "unpacked, a first daemon")
			if _, starting, err := h.carriers([]string{"x"}); starting == "" || err != nil {
				t.Errorf("a start with the old file is not seen: %v", err)
			}

			for _, link := range []string{"/proc/1/exe", "/proc/1/fd/42"} {
				_ = os.Remove(filepath.Join(h.root, link))
			}
			h.symlink(filepath.Join(h.root, systemdProgram), "/proc/1/exe")
			if executor {
				h.symlink(filepath.Join(h.root, systemdExecutor), "/proc/1/fd/43")
			}
			check(h, "executed anew")
			check(h.again(), "executed anew, another daemon")
			if got := len(h.own()); got != map[bool]int{false: 2, true: 4}[executor] {
				t.Errorf("%+v", h.own())
			}
		})
	}
}

// A file counts as one that was systemd's only as long as nothing speaks against it:
// the number of its inode may be another's by now.
func TestWhatIsNotSystemdsAnyMore(t *testing.T) {
	for _, c := range []struct {
		what string
		file string // that the process runs, with the inode of what was systemd's
		mode os.FileMode
		want bool
	}{
		{"it was deleted", systemdProgram + " (deleted)", 0o755, true},
		{"it was not", "/srv/systemd", 0o755, false},
		{"another name", "/srv/agent (deleted)", 0o755, false},
		{"the executor's name", "/srv/systemd-executor (deleted)", 0o755, false},
		{"others can write it", "/srv/systemd (deleted)", 0o757, false},
		{"a group can write it", "/srv/systemd (deleted)", 0o775, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHost(t)
			h.proc(proc{pid: 1, comm: "systemd", exe: systemdProgram, labels: one("unconfined", 1)})
			h.own()
			h.mkdir("/srv")
			if err := os.Chmod(filepath.Join(h.root, systemdProgram), c.mode); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(h.root, systemdProgram), filepath.Join(h.root, c.file)); err != nil {
				t.Fatal(err)
			}
			h.write(systemdProgram, "new")
			h.proc(proc{pid: 10, comm: "x", labels: one("unconfined", 10)})
			h.symlink(filepath.Join(h.root, c.file), "/proc/10/exe")
			if _, own, err := h.newLook().process(10, nil); own != c.want || err != nil {
				t.Errorf("own %v, want %v; %v", own, c.want, err)
			}
			h.opt.Owner++
			if _, own, _ := h.newLook().process(10, nil); own {
				t.Error("a file of another user counts")
			}
		})
	}
}

// What a service has given PID 1 to keep is no executor, whatever it is called.
func TestTheExecutorThatPID1Holds(t *testing.T) {
	for _, c := range []struct {
		what, file string
		mode       os.FileMode
		want       bool
	}{
		{"held", systemdExecutor + " (deleted)", 0o755, true},
		{"elsewhere", "/srv/systemd-executor (deleted)", 0o755, false},
		{"others can write it", systemdExecutor + " (deleted)", 0o777, false},
	} {
		t.Run(c.what, func(t *testing.T) {
			h := newHost(t)
			h.proc(proc{pid: 1, comm: "systemd", exe: systemdProgram, labels: one("unconfined", 1)})
			h.write(systemdExecutor, "new")
			if err := os.Chmod(filepath.Join(h.root, h.write(c.file, "held")), c.mode); err != nil {
				t.Fatal(err)
			}
			h.symlink(filepath.Join(h.root, c.file), "/proc/1/fd/9")
			h.proc(proc{pid: 10, comm: "x", labels: one("unconfined", 10)})
			h.symlink(filepath.Join(h.root, c.file), "/proc/10/exe")
			for range 2 {
				if _, own, err := h.newLook().process(10, nil); own != c.want || err != nil {
					t.Errorf("own %v, want %v; %v", own, c.want, err)
				}
			}
		})
	}
}

// What was remembered and cannot be read is set aside, and no more is known than what
// is there.
func TestWhatWasRememberedOfSystemdAndIsBad(t *testing.T) {
	for what, text := range map[string]string{
		"empty":     "",
		"torn":      `[{"name":"systemd","major":8`,
		"no name":   `[{"name":"a b","major":8,"minor":1,"inode":5}]`,
		"a path":    `[{"name":"/usr/bin/x","major":8,"minor":1,"inode":5}]`,
		"no inode":  `[{"name":"systemd","major":8,"minor":1}]`,
		"a number":  `[{"name":"systemd","major":-8,"minor":1,"inode":5}]`,
		"very many": "[" + strings.Repeat(`{"name":"systemd","major":8,"minor":1,"inode":5},`, maxOwnFiles) + `{"name":"systemd","major":8,"minor":1,"inode":5}]`,
		"large":     strings.Repeat(" ", maxOwnText+1),
	} {
		t.Run(what, func(t *testing.T) {
			h := newHost(t)
			file := filepath.Join(t.TempDir(), "systemd.json")
			h.opt.Systemd = file
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			h.proc(proc{pid: 1, comm: "systemd", exe: systemdProgram, labels: one("unconfined", 1)})
			if got := h.own(); len(got) != 1 {
				t.Errorf("%+v", got)
			}
			if aside, err := os.ReadFile(file + ".bad"); err != nil || string(aside) != text {
				t.Errorf("%q %v", aside, err)
			}
			if got := h.again().own(); len(got) != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
	// One that others could have written.
	h := newHost(t)
	h.opt.Systemd = filepath.Join(t.TempDir(), "systemd.json")
	if err := os.WriteFile(h.opt.Systemd, []byte(`[{"name":"systemd","major":8,"minor":1,"inode":5}]`), 0o666); err != nil || os.Chmod(h.opt.Systemd, 0o666) != nil {
		t.Fatal(err)
	}
	if got := h.own(); len(got) != 0 {
		t.Errorf("%+v", got)
	}
}

func TestFilesOfSystemdsAreBounded(t *testing.T) {
	h := newHost(t)
	h.opt.Systemd = filepath.Join(t.TempDir(), "systemd.json")
	h.proc(proc{pid: 1, comm: "systemd", exe: systemdProgram, labels: one("unconfined", 1)})
	h.write(systemdExecutor, "it stays")
	for n := range 2 * maxOwnFiles {
		old := filepath.Join(h.root, systemdProgram)
		if err := os.Rename(old, fmt.Sprint(old, n)); err != nil { // so that the inode is not given out again
			t.Fatal(err)
		}
		h.write(systemdProgram, "new")
		files := h.own()
		present := 0
		for _, f := range files {
			if f.present {
				present++
			}
		}
		if len(files) > maxOwnFiles || present != 2 {
			t.Fatalf("%d files, %d of them are there", len(files), present)
		}
	}
	if got := h.again().own(); len(got) != maxOwnFiles {
		t.Errorf("%+v", got)
	}
}

func FuzzParseOwn(f *testing.F) {
	for _, text := range []string{
		``, `null`, `{}`, `[]`, `[{}]`, `[{"name":"systemd","major":8,"minor":1,"inode":42}]`,
		`[{"name":"systemd (deleted)","inode":1}]`, `[{"name":"../systemd","inode":1}]`, `[{"name":"systemd","inode":0}]`,
		`[{"name":"systemd","inode":-1}]`, "[" + strings.Repeat(`{"name":"a","inode":1},`, maxOwnFiles) + `{"name":"a","inode":1}]`,
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		files, err := parseOwn(data)
		if err != nil && files != nil || len(files) > maxOwnFiles {
			t.Errorf("%d files, %v", len(files), err)
		}
		for _, own := range files {
			if name, deleted := ownName(own.name); name != own.name || deleted || own.ino == 0 || own.present {
				t.Errorf("%+v", own)
			}
		}
	})
}
