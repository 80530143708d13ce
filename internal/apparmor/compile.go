package apparmor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// maxBuilt bounds the compiled policies that are kept in memory.
const maxBuilt = 512

// compileCache keeps compiled policies by what they were made of.
type compileCache struct {
	sync.Mutex
	made map[string]attach.Compiled
}

// Compile compiles each file in a bounded child and stages the result: see
// reconcile.AppArmor. It reads every file and what it includes anew, so that
// what is compiled is what the digest stands for, and gives the parser a copy
// of exactly that:
//
//  1. Read the file and its closure; refuse what others than root can write.
//  2. Where the same closure, parser, configuration and kernel compiled
//     before, take that.
//  3. Compile the rest together, those with an error one by one.
//  4. Refuse a policy that names a policy namespace: it would not go where it
//     is sent.
//  5. Stage, and read the kernel's checksums.
func (s *System) Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems []attach.Reason) {
	r := s.newReader()
	env := s.environment()
	flags := []string{"--skip-kernel-load", "--skip-cache", "--stdout"}
	if complain {
		flags = append(flags, "--Complain")
	}
	keys := map[string]string{}
	found := map[string]attach.Compiled{}
	var order []string
	var fresh []*source
	for _, file := range files {
		if slices.Contains(order, file) {
			continue
		}
		order = append(order, file)
		if !filepath.IsAbs(file) || filepath.Clean(file) != file {
			problems = append(problems, problem(file, fmt.Errorf("cannot compile %q: give its absolute path", file)))
			continue
		}
		src, err := r.source(file)
		if err == nil {
			err = src.untrusted
		} else if !errors.Is(err, fs.ErrNotExist) {
			err = &compileError{file: file, text: bare(err, s.real(file)), run: true}
		}
		if err == nil && src.scan.tooLarge {
			err = &compileError{file: file, text: fmt.Sprintf("with its includes in place it is larger than %d bytes", maxFlat), run: true}
		}
		if err != nil {
			problems = append(problems, problem(file, err))
			continue
		}
		keys[file] = strings.Join([]string{src.digest, env, strconv.FormatBool(complain)}, " ")
		if c, ok := s.built.get(keys[file]); ok {
			found[file] = c
			continue
		}
		fresh = append(fresh, src)
	}

	parts, errs := s.each(ctx, fresh, cutBlobs, flags...)
	for i, src := range fresh {
		c, err := attach.Compiled{}, errs[i]
		if err == nil {
			c, err = compiled(src, parts[i], complain)
		}
		if err != nil {
			problems = append(problems, problem(src.file, err))
			continue
		}
		found[src.file] = c
	}

	var unstaged []*attach.Compiled
	for _, file := range order {
		if c, ok := found[file]; ok {
			for i := range c.Profiles {
				c.Profiles[i].DisabledBy = s.link("disable", file)
				c.Profiles[i].ComplainBy = s.link("force-complain", file)
			}
			done = append(done, c)
		}
	}
	for i := range done {
		if done[i].Checksums == nil {
			unstaged = append(unstaged, &done[i])
		}
	}
	s.stage(ctx, unstaged)
	for _, c := range done {
		s.built.put(keys[c.File], c)
	}
	return done, problems
}

func (c *compileCache) get(key string) (attach.Compiled, bool) {
	c.Lock()
	defer c.Unlock()
	v, ok := c.made[key]
	v.Profiles = slices.Clone(v.Profiles)
	return v, ok
}

func (c *compileCache) put(key string, v attach.Compiled) {
	c.Lock()
	defer c.Unlock()
	if c.made == nil || len(c.made) >= maxBuilt {
		c.made = map[string]attach.Compiled{}
	}
	v.Profiles = slices.Clone(v.Profiles)
	c.made[key] = v
}

// compiled makes a result of what the parser printed for one file.
func compiled(src *source, blob []byte, complain bool) (attach.Compiled, error) {
	fail := func(format string, args ...any) (attach.Compiled, error) {
		return attach.Compiled{}, &compileError{file: src.file, text: fmt.Sprintf(format, args...)}
	}
	elements, err := splitBlob(blob)
	if err != nil {
		return fail("the parser's output makes no sense: %v", err)
	}
	if len(elements) == 0 {
		return fail("it defines no profile")
	}
	var names []string
	for _, e := range elements {
		if e.ns != "" {
			return fail("profile %s belongs to policy namespace %s; systemd starts units in the host's own namespace only", clean(e.name), clean(e.ns))
		}
		if err := checkName(e.name); err != nil {
			return fail("%v", err)
		}
		if slices.Contains(names, e.name) {
			return fail("it defines profile %s twice", e.name)
		}
		names = append(names, e.name)
	}
	c := attach.Compiled{File: src.file, Source: src.digest, Complain: complain, Blob: bytes.Clone(blob)}
	c.Profiles = profilesOf(src, names)
	return c, nil
}

// environment is what a compiled policy depends on beside its source: the
// parser, its configuration and the kernel's features.
func (s *System) environment() string {
	h := sha256.New()
	if p, err := s.parserPath(); err == nil {
		var st unix.Stat_t
		_ = unix.Stat(p, &st)
		fmt.Fprintf(h, "%s %+v\n", p, signatureOf(&st))
	}
	// The parser reads its own configuration, whatever our root is.
	if conf, err := os.ReadFile(parserConf); err == nil {
		h.Write(conf)
		for line := range strings.SplitSeq(string(conf), "\n") {
			if k, v, ok := strings.Cut(line, "="); ok && strings.HasSuffix(strings.TrimSpace(k), "-features") || ok && strings.TrimSpace(k) == "features-file" {
				var st unix.Stat_t
				_ = unix.Stat(strings.TrimSpace(v), &st)
				fmt.Fprintf(h, "%+v\n", signatureOf(&st))
			}
		}
	}
	fmt.Fprintln(h, s.kernelFeatures())
	return hex.EncodeToString(h.Sum(nil))
}

// kernelFeatures is a digest of …/apparmor/features. It cannot change while
// the kernel runs, so it is read once.
func (s *System) kernelFeatures() string {
	s.features.Lock()
	defer s.features.Unlock()
	if s.features.digest != "" {
		return s.features.digest
	}
	h := sha256.New()
	n := 0
	_ = filepath.WalkDir(s.real(filepath.Join(securityDir, "features")), func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && n < 10_000 {
			n++
			data, _ := os.ReadFile(p)
			fmt.Fprintf(h, "%s %q\n", p, data)
		}
		return nil // what cannot be read is left out, every time
	})
	if n == 0 {
		return ""
	}
	s.features.digest = hex.EncodeToString(h.Sum(nil))
	return s.features.digest
}
