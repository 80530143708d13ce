package apparmor

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// What was compiled before a boot is compiled anew after it for another parser or another
// build of the kernel, which may make other checksums with the same features, and not
// because a disk has another number.
func TestEnvironmentOutlastsABoot(t *testing.T) {
	h := newHost(t, fakeParser(t, "exit 0"))
	h.opt.Features = h.opt.Parsers[0]
	var st unix.Stat_t
	if err := unix.Stat(h.opt.Parsers[0], &st); err != nil || st.Dev == 0 {
		t.Fatal(st.Dev, err)
	}
	if text := h.environment(); strings.Contains(text, fmt.Sprintf("dev:%d ", st.Dev)) || strings.Count(text, fmt.Sprintf("ino:%d ", st.Ino)) != 2 {
		t.Errorf("it is told by\n%s", text)
	}
	for _, is := range []string{"osrelease", "version"} {
		of, err := os.ReadFile("/proc/sys/kernel/" + is)
		if text := strings.TrimSpace(string(of)); err != nil || text == "" || !strings.Contains(h.environment(), text) {
			t.Errorf("the kernel's %s %q is not part of it: %v", is, text, err)
		}
	}
	before := h.Environment()
	if again := New(h.opt).Environment(); again != before {
		t.Error("it is another one without a change")
	}
	if err := os.WriteFile(h.opt.Parsers[0], []byte("#!/bin/sh\nexit 1\n# another\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if h.Environment() == before {
		t.Error("another parser is not noticed")
	}
}

// What was kept with a policy is enough to compile it again, whatever became of
// the files, and gives the same bytes.
func TestCompileKept(t *testing.T) {
	h := newHost(t)
	h.write(profileDir+"/tunables/x", "@{X}=/srv\n")
	h.write(profileDir+"/x.d/one", "/one r,\n")
	h.write(profileDir+"/x.d/two", "/two r,\n")
	h.write(profileDir+"/empty.d/.hidden", "")
	text := "include <tunables/x>\nprofile a {\n  include <x.d>\n  include <empty.d>\n  include if exists <local/a>\n  @{X}/a r,\n}\n"
	f := h.profile("a", text)
	done, problems := h.Compile(ctx(t), []string{f}, false)
	if len(done) != 1 {
		t.Fatal(problems)
	}
	h.profile("a", "profile a { /other r, }\n")
	h.write(profileDir+"/x.d/three", "/three r,\n")
	h.write(profileDir+"/local/a", "/local r,\n")
	again, bad := New(h.opt).CompileKept(ctx(t), done)
	if len(again) != 1 || string(again[0].Blob) != string(done[0].Blob) || again[0].ID != done[0].ID || again[0].Environment != done[0].Environment {
		t.Fatalf("%v", bad)
	}
	if !maps.EqualFunc(again[0].Sources, done[0].Sources, func(a, b []byte) bool { return string(a) == string(b) }) {
		t.Error("other sources")
	}

	for name, spoil := range map[string]func(map[string][]byte){
		"changed": func(s map[string][]byte) { s[f] = append([]byte("# \n"), s[f]...) },
		"missing": func(s map[string][]byte) { delete(s, profileDir+"/x.d/two") },
		"one more": func(s map[string][]byte) {
			s[profileDir+"/local/a"] = []byte("/ rw,\n")
		},
		"all gone": func(s map[string][]byte) { clear(s) },
	} {
		bad := done[0]
		bad.Sources = maps.Clone(bad.Sources)
		spoil(bad.Sources)
		if got, problems := h.CompileKept(ctx(t), []attach.Compiled{bad}); len(got) > 0 || len(problems) != 1 {
			t.Errorf("%s: %d compiled, %v", name, len(got), problems)
		}
	}
}

// Policies that were kept with different texts of what they include, or of which one
// had a file that another did not have, are each compiled of their own.
func TestCompileKeptTogether(t *testing.T) {
	h := newHost(t)
	var kept []attach.Compiled
	keep := func(name, text string) {
		t.Helper()
		f := h.profile(name, text)
		done, problems := h.Compile(ctx(t), []string{f}, false)
		if len(done) != 1 {
			t.Fatal(problems)
		}
		kept = append(kept, done[0])
	}
	uses := func(name string) string {
		return "profile " + name + " {\n  include <abstractions/x>\n  include <x.d>\n  include if exists <local/x>\n}\n"
	}
	h.write(profileDir+"/abstractions/x", "/old r,\n")
	h.write(profileDir+"/x.d/one", "/one r,\n")
	keep("a", uses("a"))
	keep("alike", uses("alike"))
	h.write(profileDir+"/abstractions/x", "/new r,\n")
	keep("b", uses("b"))
	h.write(profileDir+"/x.d/two", "/two r,\n")
	keep("c", uses("c"))
	h.write(profileDir+"/local/x", "/local r,\n")
	keep("d", uses("d"))
	if err := os.Remove(filepath.Join(h.root, profileDir, "local/x")); err != nil {
		t.Fatal(err)
	}
	h.write(profileDir+"/local/x/file", "/deep r,\n")
	keep("e", uses("e"))
	keep("a", uses("a"))
	slices.Reverse(kept)
	for range 2 {
		again, bad := New(h.opt).CompileKept(ctx(t), kept)
		if len(bad) > 0 || len(again) != len(kept) {
			t.Fatal(len(again), bad)
		}
		for _, k := range kept {
			i := slices.IndexFunc(again, func(c attach.Compiled) bool { return c.ID == k.ID })
			if i < 0 || !bytes.Equal(again[i].Blob, k.Blob) {
				t.Errorf("%s with %d files was compiled with others", k.File, len(k.Sources))
			}
		}
		slices.Reverse(kept)
	}
}

// What a parser that hangs leaves of the time is for others: each policy that did not compile
// until then is named, whatever texts it was kept with.
func TestCompileKeptEndsInTime(t *testing.T) {
	h := newHost(t)
	var kept []attach.Compiled
	for i := range 6 {
		h.write(profileDir+"/abstractions/x", fmt.Sprintf("/%d r,\n", i%3))
		f := h.profile(fmt.Sprint(i), fmt.Sprintf("profile p%d {\n  include <abstractions/x>\n}\n", i))
		done, problems := h.Compile(ctx(t), []string{f}, i == 5)
		if len(done) != 1 {
			t.Fatal(problems)
		}
		kept = append(kept, done[0])
	}
	opt := h.opt
	opt.Parsers = []string{fakeParser(t, "exec sleep 100")}
	bounded, cancel := context.WithTimeout(ctx(t), time.Second)
	defer cancel()
	begun := time.Now()
	done, problems := New(opt).CompileKept(bounded, kept)
	if took := time.Since(begun); len(done) != 0 || took > 10*time.Second {
		t.Errorf("%d compiled, in %v", len(done), took)
	}
	for _, k := range kept {
		if p, ok := problems[k.ID]; !ok || p.Code != attach.ProfileNotCompiled {
			t.Errorf("of %s: %+v", k.File, p)
		}
	}
}

// What is kept on disk is neither compiled again nor held in memory.
func TestWhatIsKeptIsNotCompiled(t *testing.T) {
	parser, runs := countingParser(t)
	h := newHost(t, parser)
	f := h.profile("a", "profile a { }\n")
	done, _ := h.Compile(ctx(t), []string{f}, false)
	if len(done) != 1 || len(done[0].Blob) == 0 {
		t.Fatal(done)
	}
	kept := done[0]
	kept.Blob, kept.Sources, kept.Checksums = nil, nil, map[string]string{"a": "sha256:aa"}
	opt := h.opt
	opt.Kept = func(id string) (attach.Compiled, bool) { return kept, id == kept.ID }
	s := New(opt)
	runs()
	again, problems := s.Compile(ctx(t), []string{f}, false)
	if len(again) != 1 || again[0].Checksums["a"] != "sha256:aa" || again[0].Blob != nil || runs() != 0 {
		t.Errorf("%+v %v", again, problems)
	}
	if other, _ := s.Compile(ctx(t), []string{f}, true); len(other) != 1 || len(other[0].Blob) == 0 {
		t.Error("complain mode is another policy")
	}
	kept.Environment = "of another kernel"
	if other, _ := s.Compile(ctx(t), []string{f}, false); len(other) != 1 || len(other[0].Blob) == 0 {
		t.Error("another kernel's policy was taken")
	}
}

// Texts that change again and again do not pile up in memory, and many files neither.
func TestCompiledPoliciesDoNotPileUp(t *testing.T) {
	h := newHost(t)
	for n := range 3 {
		f := h.profile("a", fmt.Sprintf("# %d\nprofile a { }\n", n))
		for _, complain := range []bool{false, true} {
			if done, problems := h.Compile(ctx(t), []string{f}, complain); len(done) != 1 {
				t.Fatal(problems)
			}
		}
	}
	if len(h.built.made) != 2 {
		t.Errorf("of one file %d policies are held", len(h.built.made))
	}
	for n := range 40 {
		h.built.put(attach.Compiled{ID: fmt.Sprint(n), File: fmt.Sprint(n), Blob: make([]byte, maxBuiltSize/16)})
		total := 0
		for _, c := range h.built.made {
			total += len(c.Blob)
		}
		if total > maxBuiltSize || total != h.built.size {
			t.Fatalf("%d policies of %d bytes, counted as %d", len(h.built.made), total, h.built.size)
		}
	}
	if n := len(h.built.made); n < 2 {
		t.Errorf("%d are held", n)
	}
}

// A fingerprint tells a profile that was removed and loaded again from one that
// was there all the time: in between it was taken off its tasks.
func TestFingerprintTellsALoadFromAReplacement(t *testing.T) {
	h := newHost(t)
	h.profile("a", "profile a { }\n")
	h.loaded("a.3", "a", "enforce", "aa")
	first := h.Fingerprint([]string{"a"}, "")
	if h.Fingerprint([]string{"a"}, "") != first {
		t.Error("nothing changed")
	}
	dir := filepath.Join(h.root, securityDir, "policy/profiles")
	if err := os.Rename(filepath.Join(dir, "a.3"), filepath.Join(dir, "a.7")); err != nil {
		t.Fatal(err)
	}
	if h.Fingerprint([]string{"a"}, "") == first {
		t.Error("a profile that was removed and loaded again was not noticed")
	}
}
