package apparmor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on the compiled policies that are kept in memory.
const (
	maxBuilt     = 512
	maxBuiltSize = 16 << 20 // in bytes
)

// compileCache keeps compiled policies, by ID, that are not kept on disk (yet), of each
// file the last, and why others could not be compiled, by ID and environment: what did not
// compile does not compile the next time either, and a file that brings the
// parser to its bounds must not do so at every look.
type compileCache struct {
	sync.Mutex
	made    map[string]attach.Compiled
	size    int // of the bytes of made
	refused map[string]*compileError
}

// Compile compiles each file in a bounded child: see reconcile.AppArmor. It reads
// every file and what it includes anew, so that what is compiled is what the
// digest stands for, and gives the parser a copy of exactly that:
//
//  1. Read the file and its closure; refuse what others than root can write.
//  2. Where the same closure, parser, configuration and kernel compiled, or
//     did not compile, before, take that.
//  3. Compile the rest together, those with an error one by one.
//  4. Refuse a policy that names a policy namespace: it would not go where it
//     is sent.
func (s *System) Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems map[string]attach.Reason) {
	problems = map[string]attach.Reason{}
	r := s.newReader()
	env := s.Environment()
	found := map[string]attach.Compiled{}
	var order []string
	var fresh []*source
	for _, file := range files {
		if slices.Contains(order, file) {
			continue
		}
		order = append(order, file)
		if !filepath.IsAbs(file) || filepath.Clean(file) != file {
			problems[file] = problem(file, fmt.Errorf("cannot compile %q: give its absolute path", file))
			continue
		}
		src, err := r.source(file)
		if err == nil {
			err = src.untrusted
		} else if !errors.Is(err, fs.ErrNotExist) {
			err = &compileError{file: file, text: bare(err, s.real(file)), run: true, unread: true}
		}
		if err != nil {
			problems[file] = problem(file, err)
			continue
		}
		if c, ok := s.known(policyID(src, complain), env); ok {
			found[file] = c
			continue
		}
		fresh = append(fresh, src)
	}
	made, bad := s.compile(ctx, fresh, complain, env)
	maps.Copy(problems, bad)
	for _, c := range made {
		found[c.File] = c
	}
	for _, file := range order {
		if c, ok := found[file]; ok {
			for i := range c.Profiles {
				c.Profiles[i].DisabledBy = s.link("disable", file)
				c.Profiles[i].ComplainBy = s.link("force-complain", file)
			}
			done = append(done, c)
		}
	}
	return done, problems
}

// CompileText compiles a file as if it had that text: see reconcile.AppArmor.
func (s *System) CompileText(ctx context.Context, file, text string, complain bool) (attach.Compiled, *attach.Reason) {
	fail := func(err error) (attach.Compiled, *attach.Reason) {
		r := problem(file, err)
		return attach.Compiled{}, &r
	}
	switch {
	case !filepath.IsAbs(file) || filepath.Clean(file) != file:
		return fail(fmt.Errorf("cannot compile %q: give its absolute path", file))
	case len(text) > maxFile:
		return fail(&compileError{file: file, text: fmt.Sprintf("it is larger than %d bytes", maxFile)})
	}
	r := s.newReader()
	r.files[file] = &content{data: []byte(text)}
	src, err := r.source(file)
	if err == nil {
		err = src.untrusted
	}
	if err != nil {
		return fail(err)
	}
	env := s.Environment()
	c, known := s.known(policyID(src, complain), env)
	if !known {
		done, problems := s.compile(ctx, []*source{src}, complain, env)
		if bad, ok := problems[file]; ok {
			return attach.Compiled{}, &bad
		}
		c = done[0]
	}
	for i := range c.Profiles {
		c.Profiles[i].DisabledBy, c.Profiles[i].ComplainBy = s.link("disable", file), s.link("force-complain", file)
	}
	return c, nil
}

// CompileKept compiles policies anew from the texts that were kept with them,
// for a parser or a kernel that is another one by now. Nothing is read from
// /etc/apparmor.d. Each is made of its own texts: where two were kept with different
// ones of a file that both include, they are not compiled side by side.
func (s *System) CompileKept(ctx context.Context, kept []attach.Compiled) (done []attach.Compiled, problems map[string]attach.Reason) {
	problems = map[string]attach.Reason{}
	env := s.Environment()
	for _, complain := range []bool{false, true} {
		var srcs []*source
		for _, k := range kept {
			if k.Complain != complain {
				continue
			}
			src, err := s.keptReader(k.Sources).source(k.File)
			if err == nil && (src.digest != k.Source || policyID(src, complain) != k.ID) {
				err = errors.New("the texts that were kept are not those that it was made from")
			}
			if err != nil {
				problems[k.ID] = problem(k.File, &compileError{file: k.File, text: err.Error()})
				continue
			}
			srcs = append(srcs, src)
		}
		for len(srcs) > 0 {
			alike := &closure{}
			var now, later []*source
			for _, src := range srcs {
				if alike.takes(src) {
					now = append(now, src)
				} else {
					later = append(later, src)
				}
			}
			made, bad := s.compile(ctx, now, complain, env)
			done = append(done, made...)
			for _, src := range now {
				if p, ok := bad[src.file]; ok {
					problems[policyID(src, complain)] = p
				}
			}
			srcs = later
		}
	}
	return done, problems
}

func (s *System) compile(ctx context.Context, srcs []*source, complain bool, env string) (done []attach.Compiled, problems map[string]attach.Reason) {
	if len(srcs) == 0 {
		return nil, nil
	}
	problems = map[string]attach.Reason{}
	flags := []string{"--skip-kernel-load", "--skip-cache", "--stdout"}
	if complain {
		flags = append(flags, "--Complain")
	}
	srcs = slices.DeleteFunc(slices.Clone(srcs), func(src *source) bool {
		if src.scan.tooLarge {
			problems[src.file] = problem(src.file, &compileError{file: src.file, text: rules.TooLarge(), run: true})
		}
		e := s.built.refusal(policyID(src, complain) + env)
		if e != nil && !src.scan.tooLarge {
			problems[src.file] = problem(src.file, e)
		}
		return src.scan.tooLarge || e != nil
	})
	if len(srcs) == 0 {
		return nil, problems
	}
	var version string
	running, _ := kernel()
	var asked sync.WaitGroup
	asked.Go(func() { version = s.parserVersion(ctx) })
	parts, errs := s.each(ctx, srcs, cutBlobs, flags...)
	asked.Wait()
	for i, src := range srcs {
		c, err := attach.Compiled{}, errs[i]
		if err == nil {
			c, err = compiled(src, parts[i], complain)
		}
		if err != nil {
			s.built.refuse(policyID(src, complain)+env, err)
			problems[src.file] = problem(src.file, err)
			continue
		}
		c.ID, c.Environment, c.Parser, c.Kernel, c.At = policyID(src, complain), env, version, running, time.Now()
		s.built.put(c)
		done = append(done, c)
	}
	return done, problems
}

// policyID names what was compiled by what it was made of.
func policyID(src *source, complain bool) string {
	sum := sha256.Sum256([]byte(src.file + "\x00" + src.digest + "\x00" + strconv.FormatBool(complain)))
	return hex.EncodeToString(sum[:])
}

// known gives what was compiled before in the same environment. Of what is
// kept on disk, the bytes need not be kept in memory too.
func (s *System) known(id, env string) (attach.Compiled, bool) {
	if s.opt.Kept != nil {
		if c, ok := s.opt.Kept(id); ok && c.Environment == env {
			s.built.drop(id)
			c.Profiles = slices.Clone(c.Profiles)
			return c, true
		}
	}
	c, ok := s.built.get(id)
	return c, ok && c.Environment == env
}

// Stage loads compiled policies into a policy namespace of their own and fills
// in the kernel's checksums, of those that have none yet: see stage.
func (s *System) Stage(ctx context.Context, policies []attach.Compiled) {
	var unstaged []*attach.Compiled
	for i := range policies {
		if policies[i].Checksums == nil {
			unstaged = append(unstaged, &policies[i])
		}
	}
	s.stage(ctx, unstaged)
	for _, c := range unstaged {
		s.built.put(*c)
	}
}

// kernel is the one that runs, as uname -r and uname -v print it: a security update of
// Debian's has the release of the one before, and another build.
func kernel() (release, build string) {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return "", ""
	}
	return clean(unix.ByteSliceToString(u.Release[:])), clean(unix.ByteSliceToString(u.Version[:]))
}

func (c *compileCache) get(id string) (attach.Compiled, bool) {
	c.Lock()
	defer c.Unlock()
	v, ok := c.made[id]
	v.Profiles = slices.Clone(v.Profiles)
	return v, ok
}

func (c *compileCache) put(v attach.Compiled) {
	c.Lock()
	defer c.Unlock()
	for id, old := range c.made {
		if old.File == v.File && old.Complain == v.Complain {
			c.remove(id) // an earlier text is not compiled again
		}
	}
	if c.made == nil || len(c.made) >= maxBuilt || c.size+len(v.Blob) > maxBuiltSize {
		c.made, c.size = map[string]attach.Compiled{}, 0
	}
	v.Profiles = slices.Clone(v.Profiles)
	c.made[v.ID] = v
	c.size += len(v.Blob)
}

func (c *compileCache) drop(id string) {
	c.Lock()
	defer c.Unlock()
	c.remove(id)
}

// remove is called with the lock held.
func (c *compileCache) remove(id string) {
	if v, ok := c.made[id]; ok {
		delete(c.made, id)
		c.size -= len(v.Blob)
	}
}

// refusal is why the same did not compile before, nil where it is to be tried.
func (c *compileCache) refusal(key string) *compileError {
	c.Lock()
	defer c.Unlock()
	e := c.refused[key]
	if e == nil || !e.again.IsZero() && !time.Now().Before(e.again) {
		return nil
	}
	return e
}

func (c *compileCache) refuse(key string, err error) {
	var e *compileError
	if !errors.As(err, &e) {
		return // says nothing about the file
	}
	c.Lock()
	defer c.Unlock()
	if c.refused == nil || len(c.refused) >= maxBuilt {
		c.refused = map[string]*compileError{}
	}
	c.refused[key] = e
}

// compiled makes a result of what the parser printed for one file.
func compiled(src *source, blob []byte, complain bool) (attach.Compiled, error) {
	fail := func(format string, args ...any) (attach.Compiled, error) {
		return attach.Compiled{}, &compileError{file: src.file, text: fmt.Sprintf(format, args...)}
	}
	elements, err := policydb.Split(blob)
	if err != nil {
		return attach.Compiled{}, &compileError{file: src.file, text: fmt.Sprintf("the parser's output makes no sense: %v", err), silent: true}
	}
	if len(elements) == 0 {
		return fail("it defines no profile")
	}
	var names []string
	for _, e := range elements {
		if e.Namespace != "" {
			return fail("profile %s belongs to policy namespace %s; systemd starts units in the host's own namespace only", clean(e.Name), clean(e.Namespace))
		}
		if err := checkName(e.Name); err != nil {
			return fail("%v", err)
		}
		if slices.Contains(names, e.Name) {
			return fail("it defines profile %s twice", e.Name)
		}
		names = append(names, e.Name)
	}
	c := attach.Compiled{File: src.file, Source: src.digest, Complain: complain, Blob: bytes.Clone(blob), Sources: src.texts()}
	c.Profiles = profilesOf(src, names)
	return c, nil
}

// Environment is a digest of what a compiled policy depends on beside its
// source, and what else was found out with it: the parser, its configuration, the
// kernel's features and the very build of the kernel, which makes the checksums and has
// answered about the policy. It is kept on disk with the policy, so it is the same after
// a boot where these are.
func (s *System) Environment() string {
	sum := sha256.Sum256([]byte(s.environment()))
	return hex.EncodeToString(sum[:])
}

func (s *System) environment() string {
	var b strings.Builder
	if p, err := s.parserPath(); err == nil {
		var st unix.Stat_t
		_ = unix.Stat(p, &st)
		fmt.Fprintf(&b, "%s %+v\n", p, signatureOf(&st).lasting())
	}
	// The parser reads its own configuration, whatever our root is.
	if conf, err := os.ReadFile(parserConf); err == nil {
		b.Write(conf)
		for line := range strings.SplitSeq(string(conf), "\n") {
			if k, v, ok := strings.Cut(line, "="); ok && strings.HasSuffix(strings.TrimSpace(k), "-features") || ok && strings.TrimSpace(k) == "features-file" {
				var st unix.Stat_t
				_ = unix.Stat(strings.TrimSpace(v), &st)
				fmt.Fprintf(&b, "%+v\n", signatureOf(&st).lasting())
			}
		}
	}
	if s.opt.Features != "" {
		var st unix.Stat_t
		_ = unix.Stat(s.opt.Features, &st)
		fmt.Fprintf(&b, "%s %+v\n", s.opt.Features, signatureOf(&st).lasting())
	}
	fmt.Fprintln(&b, s.kernelFeatures())
	release, build := kernel()
	fmt.Fprintf(&b, "%s %s\n", release, build)
	return b.String()
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

// packagedFeatures are those of the kernel that the distribution's AppArmor was
// made for (Debian's package apparmor).
const packagedFeatures = "/usr/share/apparmor-features/features"

// FeaturesHere says for which kernel policy is compiled on this machine: for the
// one that runs, where it has AppArmor, which is file ""; else for the one that
// the distribution's package describes. ok is false where there is neither: the
// parser would take a kernel then that mediates next to nothing.
func FeaturesHere() (file string, ok bool) {
	if names, err := os.ReadDir(filepath.Join(securityDir, "features")); err == nil && len(names) > 0 {
		return "", true
	}
	if st, err := os.Stat(packagedFeatures); err == nil && st.Mode().IsRegular() {
		return packagedFeatures, true
	}
	return "", false
}
