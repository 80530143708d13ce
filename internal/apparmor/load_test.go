package apparmor

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// unloads makes the made-up kernel take the profile in dir away when it is told
// to remove name: it looks whether it was whenever somebody reads the mode of
// the profile in parent, which is a pipe from now on.
func (h *host) unloads(name, dir, parent string) (stop func()) {
	h.t.Helper()
	tree := filepath.Join(h.root, securityDir, "policy/profiles")
	mode := filepath.Join(tree, parent, "mode")
	pipe := func() {
		if err := unix.Mkfifo(mode+".new", 0o600); err != nil {
			h.t.Error(err)
		}
		if err := os.Rename(mode+".new", mode); err != nil {
			h.t.Error(err)
		}
	}
	pipe()
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			f, err := os.OpenFile(mode, os.O_WRONLY, 0) // until somebody reads
			if err != nil {
				h.t.Error(err)
				return
			}
			select {
			case <-end:
				f.Close()
				return
			default:
			}
			if said, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".remove")); string(said) == name {
				if err := os.RemoveAll(filepath.Join(tree, dir)); err != nil {
					h.t.Error(err)
				}
			}
			pipe() // the next reader gets one of its own
			f.WriteString("enforce\n")
			f.Close()
		}
	}()
	return func() {
		close(end)
		if f, err := os.OpenFile(mode, os.O_RDONLY, 0); err == nil {
			<-done
			f.Close()
		}
	}
}

// Of a policy that counts in part no more than that is loaded.
func TestLoadOfAPartOfAPolicy(t *testing.T) {
	h := newHost(t)
	f := h.profile("x", "profile x {\n  profile new { }\n}\nprofile y {\n  profile z { }\n}\n")
	done, problems := h.Compile(ctx(t), []string{f}, false)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	done[0].Checksums = map[string]string{"x": "sha256:aa", "x//new": "sha256:bb", "y": "sha256:cc", "y//z": "sha256:dd"}
	h.write(securityDir+"/.replace", "")
	h.loaded("x.1", "x", "enforce", "ee")
	h.loaded("y.2", "y", "enforce", "cc")
	h.loaded("y.2/profiles/z.3", "z", "enforce", "dd")
	part := done[0].Part(func(profile string) bool { return profile == "y" })
	if failed := h.Load(ctx(t), []attach.Compiled{part}); len(failed) > 0 {
		t.Errorf("the load failed: %v", failed)
	}
	wrote, err := os.ReadFile(filepath.Join(h.root, securityDir, ".replace"))
	if err != nil {
		t.Fatal(err)
	}
	elements, err := policydb.Split(wrote)
	if err != nil || len(elements) != 2 || elements[0].Name != "y" || elements[1].Name != "y//z" {
		t.Errorf("%v %v", elements, err)
	}
}

// A new text drops a child that the kernel hands on from the old one. Where no
// task carries the child it goes; where one does it stays, and the load is good
// all the same: the new policy is live.
func TestLoadOfATextThatDropsAChild(t *testing.T) {
	for name, c := range map[string]struct {
		label   string
		remains bool
	}{
		"carried":                 {"x//old (enforce)", true},
		"carried together":        {"y//&x//old (enforce)", true},
		"a child of it is":        {"x//old//deep (enforce)", true},
		"the parent is carried":   {"x (enforce)", false},
		"carried by nobody":       {"unconfined", false},
		"one of a like name is":   {"x//older (enforce)", false},
		"one of another's policy": {"xx//old (enforce)", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t)
			f := h.profile("x", "profile x {\n  profile new { }\n}\n")
			done, problems := h.Compile(ctx(t), []string{f}, false)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			done[0].Checksums = map[string]string{"x": "sha256:aa", "x//new": "sha256:bb"}
			h.write(securityDir+"/.replace", "")
			h.write(securityDir+"/.remove", "")
			h.loaded("x.1", "x", "enforce", "aa")
			h.loaded("x.1/profiles/new.2", "new", "enforce", "bb")
			h.loaded("x.1/profiles/old.3", "old", "enforce", "cc")
			h.proc(proc{pid: 10, comm: "prog", labels: one(c.label, 10)})
			defer h.unloads("x//old", "x.1/profiles/old.3", "x.1")()

			if failed := h.Load(ctx(t), done); len(failed) > 0 {
				t.Errorf("the load failed: %v", failed)
			}
			if wrote, _ := os.ReadFile(filepath.Join(h.root, securityDir, ".replace")); !bytes.Equal(wrote, done[0].Blob) {
				t.Error("the new policy was not written")
			}
			live, err := h.Live([]string{"x"})
			if err != nil {
				t.Fatal(err)
			}
			if _, remains := live["x//old"]; remains != c.remains || len(live) < 2 {
				t.Errorf("the old child remains: %v; loaded are %+v", remains, live)
			}
			// What is wrong with the load itself is still said.
			done[0].Checksums["x//new"] = "sha256:ee"
			if failed := h.Load(ctx(t), []attach.Compiled{done[0]}); failed[f] == nil {
				t.Error("another policy than the given one is live, and the load is good")
			}
		})
	}
}
