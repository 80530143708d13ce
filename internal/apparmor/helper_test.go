package apparmor

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// host is a tree that looks like a host, with the system's own parser.
type host struct {
	*System
	t    *testing.T
	root string
}

// Compile lists the problems in the order of the files.
func (h *host) Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems []attach.Reason) {
	done, bad := h.System.Compile(ctx, files, complain)
	return done, inOrder(files, bad)
}

func inOrder(files []string, bad map[string]attach.Reason) (problems []attach.Reason) {
	for _, file := range files {
		if p, ok := bad[file]; ok {
			problems = append(problems, p)
			delete(bad, file)
		}
	}
	return problems
}

// newHost makes an empty one. The parser is needed: "make check" installs it,
// and a test that were skipped without it would prove nothing.
func newHost(t *testing.T, parser ...string) *host {
	t.Helper()
	if parser == nil {
		for _, p := range []string{"/usr/sbin/apparmor_parser", "/sbin/apparmor_parser"} {
			if _, err := os.Stat(p); err == nil {
				parser = append(parser, p)
			}
		}
		if parser == nil {
			t.Fatal("apparmor_parser is not installed: apt-get install apparmor")
		}
	}
	root := t.TempDir()
	h := &host{t: t, root: root, System: New(Options{Root: root, Parsers: parser, Scratch: t.TempDir(), Owner: os.Geteuid(), ParserTime: 20 * time.Second})}
	// The copy for the parser must be reachable by another user.
	for d := h.opt.Scratch; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h.mkdir(profileDir)
	return h
}

func (h *host) mkdir(dir string) {
	h.t.Helper()
	if err := os.MkdirAll(filepath.Join(h.root, dir), 0o755); err != nil {
		h.t.Fatal(err)
	}
}

func (h *host) write(file, text string) string {
	h.t.Helper()
	h.mkdir(filepath.Dir(file))
	if err := os.WriteFile(filepath.Join(h.root, file), []byte(text), 0o644); err != nil {
		h.t.Fatal(err)
	}
	return file
}

func (h *host) profile(name, text string) string {
	h.t.Helper()
	return h.write(profileDir+"/"+name, text)
}

func (h *host) symlink(to, file string) {
	h.t.Helper()
	h.mkdir(filepath.Dir(file))
	if err := os.Symlink(to, filepath.Join(h.root, file)); err != nil {
		h.t.Fatal(err)
	}
}

// fakeParser is a program in the parser's place.
func fakeParser(t *testing.T, script string) string {
	t.Helper()
	dir := t.TempDir()
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	p := filepath.Join(dir, "parser")
	if err := os.WriteFile(p, []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

func names(h *host, name string) string {
	var out []string
	for _, p := range h.ByName(name) {
		out = append(out, p.Name+"@"+filepath.Base(p.File))
	}
	return strings.Join(out, " ")
}

func ctx(t *testing.T) context.Context {
	c, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return c
}
