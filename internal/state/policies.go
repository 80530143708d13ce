package state

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Policies keeps accepted policies: a tar archive for each, so that what may
// run can be looked at with ordinary tools, and is written all or nothing.
//
//	policy.json  which file, checksums, parser, kernel, and a SHA-256 of the next
//	policy.bin   the compiled policy
//	source/…     the profile's file and all it includes, by their paths
type Policies struct {
	dir string

	mu   sync.Mutex
	kept map[string]attach.Compiled // by ID, without bytes
}

// NewPolicies prepares to keep policies in a directory, /var/lib/aaunit/policy
// on a host. Nothing is read before Load.
func NewPolicies(dir string) *Policies {
	return &Policies{dir: dir, kept: map[string]attach.Compiled{}}
}

const (
	maxArchive  = 96 << 20 // of one policy
	maxArchived = 5000     // files in it
	suffix      = ".tar"
	tarEnd      = 1024 // zero bytes, tar(5)
)

// described is policy.json.
type described struct {
	attach.Compiled
	Blob string `json:"blob"` // SHA-256 of policy.bin
}

// Load reads what is kept, but for the bytes. An archive that cannot be read is
// set aside as NAME.bad and named in problems: what it held must be compiled
// again from the profile's file.
func (p *Policies) Load() (problems []attach.Reason) {
	if err := safefile.MkdirAll(p.dir, 0o700); err != nil {
		return []attach.Reason{attach.Because(attach.RecordBad, "cannot keep accepted policies: %v", err)}
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return []attach.Reason{attach.Because(attach.RecordBad, "cannot list accepted policies: %v", err)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range entries {
		file := filepath.Join(p.dir, e.Name())
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		c, err := unpack(file)
		if err == nil && p.file(c) != file {
			err = fmt.Errorf("it is about %s", c.File)
		}
		if err != nil {
			problems = append(problems, setAside("accepted policy", file, err))
			continue
		}
		c.Blob, c.Sources = nil, nil
		p.kept[c.ID] = c
	}
	return problems
}

// Lookup finds what is kept under an ID, without its bytes.
func (p *Policies) Lookup(id string) (attach.Compiled, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c, ok := p.kept[id]
	c.Checksums = maps.Clone(c.Checksums)
	return c, ok
}

// Get reads what is kept under an ID, with its bytes and sources.
func (p *Policies) Get(id string) (attach.Compiled, error) {
	c, ok := p.Lookup(id)
	if !ok {
		return c, fmt.Errorf("cannot read accepted policy %s: it is not kept", short(id))
	}
	file := p.file(c)
	c, err := unpack(file)
	if err == nil && c.ID != id {
		err = fmt.Errorf("it is about %s", c.File)
	}
	if err != nil {
		p.mu.Lock()
		delete(p.kept, id) // so that it is compiled again
		p.mu.Unlock()
		return attach.Compiled{}, fmt.Errorf("cannot read accepted policy %s: %w", file, err)
	}
	return c, nil
}

// Keep stores a policy with its bytes and sources; one that is kept already, of
// the same environment, is left alone.
func (p *Policies) Keep(c attach.Compiled) error {
	if old, ok := p.Lookup(c.ID); ok && old.Environment == c.Environment && maps.Equal(old.Checksums, c.Checksums) {
		return nil
	}
	data, err := pack(c)
	if err == nil {
		err = safefile.MkdirAll(p.dir, 0o700)
	}
	if err == nil {
		_, err = safefile.Write(p.file(c), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot keep the accepted policy of %s: %w", c.File, err)
	}
	c.Blob, c.Sources = nil, nil
	c.Checksums = maps.Clone(c.Checksums)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.kept[c.ID] = c
	return nil
}

// Retain removes all but the given ones.
func (p *Policies) Retain(ids map[string]bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var errs []error
	for id, c := range p.kept {
		if ids[id] {
			continue
		}
		if _, err := safefile.Remove(p.file(c)); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(p.kept, id)
	}
	return errors.Join(errs...)
}

// file names an archive for people: after the profile's file, and by the ID.
func (p *Policies) file(c attach.Compiled) string {
	base := strings.Map(func(r rune) rune {
		if r <= ' ' || r >= 0x7f || r == '/' {
			return '_'
		}
		return r
	}, path.Base(c.File))
	return filepath.Join(p.dir, strings.TrimLeft(base[:min(len(base), 100)], ".")+"-"+short(c.ID)+suffix)
}

// short is enough of an ID to tell policies apart.
func short(id string) string { return id[:min(len(id), 32)] }

func pack(c attach.Compiled) ([]byte, error) {
	if c.Blob == nil || c.Sources == nil {
		return nil, errors.New("its bytes are not at hand")
	}
	sum := sha256.Sum256(c.Blob)
	head, err := json.MarshalIndent(described{Compiled: c, Blob: hex.EncodeToString(sum[:])}, "", "  ")
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(name string, data []byte) error {
		h := &tar.Header{Name: name, Mode: 0o600, Size: int64(len(data)), ModTime: c.At.Truncate(time.Second), Format: tar.FormatPAX}
		if strings.HasSuffix(name, "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o700
		}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	err = errors.Join(put("policy.json", append(head, '\n')), put("policy.bin", c.Blob))
	for _, name := range slices.Sorted(maps.Keys(c.Sources)) {
		err = errors.Join(err, put("source"+name, c.Sources[name]))
	}
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

func unpack(file string) (attach.Compiled, error) {
	f, err := safefile.Read(file, maxArchive)
	if err == nil {
		err = f.OnlyBy(uint32(os.Geteuid()))
	}
	if err != nil {
		return attach.Compiled{}, err
	}
	return parse(f.Data)
}

func parse(data []byte) (attach.Compiled, error) {
	var d described
	var c attach.Compiled
	sources := map[string][]byte{}
	var blob []byte
	// Without its end an archive that was cut off between two files looks whole.
	if end := bytes.TrimRight(data, "\x00"); len(data)-len(end) < tarEnd {
		return c, errors.New("its end is missing")
	}
	r := tar.NewReader(bytes.NewReader(data))
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return c, err
		}
		body, err := io.ReadAll(io.LimitReader(r, maxArchive)) // a sparse entry may claim any size
		if err != nil {
			return c, err
		}
		source, isSource := strings.CutPrefix(h.Name, "source")
		switch {
		case n >= maxArchived:
			return c, errors.New("it holds too many files")
		case h.Name == "policy.json":
			if err := json.Unmarshal(body, &d); err != nil {
				return c, err
			}
		case h.Name == "policy.bin":
			blob = body
		case isSource && strings.HasPrefix(source, "/"):
			sources[source] = body
		default:
			return c, fmt.Errorf("it holds %q, which does not belong there", h.Name)
		}
	}
	c = d.Compiled
	sum := sha256.Sum256(blob)
	switch {
	case c.ID == "" || c.File == "" || len(c.Checksums) == 0 || len(blob) == 0:
		return c, errors.New("it is not whole")
	case hex.EncodeToString(sum[:]) != d.Blob:
		return c, errors.New("the compiled policy in it is damaged")
	}
	if _, ok := sources[c.File]; !ok {
		return c, errors.New("the profile's text is missing")
	}
	c.Blob, c.Sources = blob, sources
	return c, nil
}
