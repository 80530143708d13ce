package state

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

func aPolicy(id string) attach.Compiled {
	return attach.Compiled{
		ID: id, File: "/etc/apparmor.d/my agent", Source: "ab", Environment: "parser 1", Parser: "AppArmor parser version 3.0.8", Kernel: "6.1",
		Profiles:  []attach.Profile{{Name: "a", File: "/etc/apparmor.d/my agent", Line: 1}},
		Checksums: map[string]string{"a": "sha256:aa", "a//b": "sha256:bb"},
		Blob:      bytes.Repeat([]byte{0, 1, 255}, 1000),
		Sources:   map[string][]byte{"/etc/apparmor.d/my agent": []byte("profile a {}\n"), "/etc/apparmor.d/abstractions/base": []byte("/x r,\n"), "/etc/apparmor.d/x.d/": {}},
	}
}

const idA, idB = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

func TestPoliciesAreKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policy")
	p := NewPolicies(dir)
	if problems := p.Load(); len(problems) > 0 {
		t.Fatal(problems)
	}
	want := aPolicy(idA)
	if err := p.Keep(want); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*Policies{p, NewPolicies(dir)} { // in this life, and in the next
		if problems := p.Load(); len(problems) > 0 {
			t.Fatal(problems)
		}
		got, err := p.Get(idA)
		if err != nil || !cmp.Equal(got, want) {
			t.Errorf("%v %s", err, cmp.Diff(want, got))
		}
		light := want
		light.Blob, light.Sources = nil, nil
		if got, ok := p.Lookup(idA); !ok || !cmp.Equal(got, light) {
			t.Errorf("%s", cmp.Diff(light, got))
		}
	}
	// Of the same environment it is left alone, without its bytes too; of another
	// one it is replaced.
	same := want
	same.Blob, same.Sources = nil, nil
	if err := p.Keep(same); err != nil {
		t.Error(err)
	}
	same.Environment = "parser 2"
	if err := p.Keep(same); err == nil {
		t.Error("kept without its bytes")
	}
	want.Environment, want.Checksums = "parser 2", map[string]string{"a": "sha256:cc"}
	if err := p.Keep(want); err != nil {
		t.Error(err)
	}
	if got, err := p.Get(idA); err != nil || got.Checksums["a"] != "sha256:cc" {
		t.Errorf("%v %v", err, got.Checksums)
	}
	if err := p.Keep(aPolicy(idB)); err != nil {
		t.Error(err)
	}
	if err := p.Retain(map[string]bool{idB: true}); err != nil {
		t.Error(err)
	}
	files, _ := os.ReadDir(dir)
	if _, ok := p.Lookup(idA); ok || len(files) != 1 {
		t.Errorf("%v", files)
	}
	if _, err := p.Get(idA); err == nil {
		t.Error("read what is not kept")
	}
}

// Whatever became of an archive, it is set aside and said, and the others are
// read.
func TestADamagedPolicyIsSetAside(t *testing.T) {
	file := func(dir, id string) string { return NewPolicies(dir).file(aPolicy(id)) }
	for name, spoil := range map[string]func(t *testing.T, file string, data []byte) error{
		"empty": func(_ *testing.T, f string, _ []byte) error { return os.WriteFile(f, nil, 0o600) },
		"torn": func(_ *testing.T, f string, data []byte) error {
			return os.WriteFile(f, data[:len(data)/2], 0o600)
		},
		"torn between two files": func(_ *testing.T, f string, data []byte) error {
			return os.WriteFile(f, data[:len(data)-1024], 0o600)
		},
		"zeroes": func(_ *testing.T, f string, data []byte) error {
			return os.WriteFile(f, make([]byte, len(data)), 0o600)
		},
		"one bit of the policy": func(_ *testing.T, f string, data []byte) error {
			i := bytes.Index(data, []byte{0, 1, 255, 0, 1, 255})
			data[i+5] ^= 1
			return os.WriteFile(f, data, 0o600)
		},
		"another's": func(_ *testing.T, f string, data []byte) error {
			return os.Rename(file(filepath.Dir(f), idB), f)
		},
		"a link": func(t *testing.T, f string, data []byte) error {
			other := filepath.Join(t.TempDir(), "x")
			if err := os.WriteFile(other, data, 0o600); err != nil {
				return err
			}
			if err := os.Remove(f); err != nil {
				return err
			}
			return os.Symlink(other, f)
		},
		"a directory": func(_ *testing.T, f string, _ []byte) error {
			if err := os.Remove(f); err != nil {
				return err
			}
			return os.Mkdir(f, 0o700)
		},
		"others can write it": func(_ *testing.T, f string, _ []byte) error { return os.Chmod(f, 0o622) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			p := NewPolicies(dir)
			for _, id := range []string{idA, idB} {
				if err := p.Keep(aPolicy(id)); err != nil {
					t.Fatal(err)
				}
			}
			f := file(dir, idA)
			data, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if err := spoil(t, f, data); err != nil {
				t.Fatal(err)
			}
			if _, err := p.Get(idA); err == nil {
				t.Error("it was read")
			}
			if _, ok := p.Lookup(idA); ok {
				t.Error("it still counts as kept")
			}
			q := NewPolicies(dir)
			if problems := q.Load(); len(problems) != 1 || problems[0].Where != f {
				t.Errorf("%v", problems)
			}
			if _, err := q.Get(idB); err != nil && name != "another's" {
				t.Error(err)
			}
			if _, err := os.Lstat(f + ".bad"); err != nil {
				t.Error(err)
			}
			if problems := q.Load(); len(problems) > 0 {
				t.Errorf("the second time: %v", problems)
			}
			if err := q.Keep(aPolicy(idA)); err != nil {
				t.Error(err)
			}
		})
	}
}

func FuzzPolicy(f *testing.F) {
	data, err := pack(aPolicy(idA))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(data[:1000])
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parse(data)
		if err == nil && (c.ID == "" || len(c.Blob) == 0 || len(c.Checksums) == 0) {
			t.Errorf("taken for whole: %+v", c)
		}
	})
}
