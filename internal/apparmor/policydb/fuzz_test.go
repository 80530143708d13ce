package policydb

import (
	"bytes"
	"os"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/unpack"
)

// FuzzParse: whatever bytes come, Parse returns, and what it takes can be asked
// everything. The seeds in testdata/fuzz are small policies of real parsers.
func FuzzParse(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		elements, err := Split(b)
		if err == nil {
			for _, e := range elements {
				again, err := Split(e.Bytes)
				if err != nil || len(again) != 1 || again[0].Name != e.Name {
					t.Fatalf("an element by itself: %v", err)
				}
			}
		}
		all, err := Parse(b)
		if err != nil {
			return
		}
		any, err := ParsePattern("/**")
		if err != nil {
			t.Fatal(err)
		}
		SameWays(all, all)
		for i := range all {
			p := &all[i]
			p.Transitions()
			p.Attaches("/a/b")
			p.NetworkGrants()
			for c := range 64 {
				p.Mediates(byte(c))
				p.Query(byte(c), []byte("/a\x00b"), Owner)
				p.Capability(c)
			}
			p.Exec("/a/b", Owner)
			p.MayLink("/a", "/b", Other)
			p.MayChangeOnExec("/a", "b")
			p.Signal(9, "a", SignalSend)
			p.Ptrace("a", PtraceRead)
			p.PosixMqueue("/a", Read)
			p.MayMount(Mount{Target: "/a/", Flags: 0xffffffff, Options: "a"})
			q := Query{Pattern: any, Any: Write, Limit: 10_000}
			for _, r := range []Result{p.Find(q), p.Covers(q)} {
				if r.Witness == "" {
					continue
				}
				got, a := p.File(r.Witness, Either)
				if a != Yes || !canonical(r.Witness) {
					t.Fatalf("%q is no witness: %s", r.Witness, a)
				}
				if r.Answer != Unknown && (got.Allow&^got.Deny&Write != 0) != (r.Answer == Yes) {
					t.Fatalf("%+v, and %+v", r, got)
				}
			}
			p.FindFields(ClassDBus, Query{All: DBusSend, Limit: 10_000}, any, any)
		}
	})
}

// FuzzPattern: whatever text comes, a pattern is refused or made; it never
// matches what cannot exist, and what a search in it finds, it matches.
func FuzzPattern(f *testing.F) {
	for _, s := range []string{
		"/a", "/**", "/etc/{passwd,shadow}", "/home/*/.ssh/**", "/a[b-d]?[^e]", `/\x2a\052\*`, "{/a,/b{c,}}", "/tmp/{,*}", "//a", "/[", "/{a", `"/a b"`, "/[^^]",
	} {
		f.Add(s, "/etc/passwd")
	}
	f.Fuzz(func(t *testing.T, text, path string) {
		p, err := ParsePattern(text)
		if err != nil {
			return
		}
		if ok, err := p.Match(path); err == nil && ok && !canonical(path) {
			t.Fatalf("%.80q matches %.80q, which cannot exist", text, path)
		}
		d := &Profile{Mode: Enforce}
		r := d.Covers(Query{Pattern: p, All: Write, Limit: 10_000})
		if r.Answer == Yes {
			t.Fatalf("%.80q: nothing is granted, and all is: %+v", text, r)
		}
		if r.Answer == No {
			if ok, err := p.Match(r.Witness); !ok || err != nil {
				t.Fatalf("%.80q does not match its witness %.80q: %v", text, r.Witness, err)
			}
		}
	})
}

// A policy that is cut short, or of which a byte is wrong, is an error or a
// policy; it is never more.
func TestMalformed(t *testing.T) {
	blobs := [][]byte{compile(t, "profile a /a { /b* rw, owner /c px -> d, signal, set rlimit nofile <= 10, }")}
	for _, f := range []string{"testdata/others-5.0.zst", "testdata/sample-5.0-table2.zst"} {
		b, err := os.ReadFile(f)
		if err == nil {
			b, err = unpack.Policy(b, MaxPolicy)
		}
		if err != nil {
			t.Fatal(err)
		}
		blobs = append(blobs, b)
	}
	for _, blob := range blobs {
		whole, err := Split(blob)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < len(blob); i += 1 + i/97 {
			if got, err := Parse(blob[:i]); err == nil && len(got) >= len(whole) {
				t.Fatalf("cut at %d it is whole", i)
			}
		}
		for i := 0; i < len(blob); i += 1 + i/97 {
			for _, x := range []byte{0x01, 0x80, 0xff} {
				bad := bytes.Clone(blob)
				bad[i] ^= x
				all, err := Parse(bad)
				if err != nil {
					continue
				}
				for k := range all {
					all[k].Find(Query{Pattern: pattern(t, "/**"), Any: Write, Limit: 1000})
				}
			}
		}
	}
}

func TestSplit(t *testing.T) {
	blob := compile(t, "profile a /x { /etc/** rw,\n network inet,\n set rlimit nofile <= 10,\n profile b { /x ix, } }\nprofile c { }\n")
	all, err := Split(blob)
	if err != nil || len(all) != 3 {
		t.Fatal(len(all), err)
	}
	var joined []byte
	for _, e := range all {
		joined = append(joined, e.Bytes...)
	}
	if again, err := Split(joined); err != nil || len(again) != 3 {
		t.Error(len(again), err)
	}
	for i := range blob {
		if got, err := Split(blob[:i]); err == nil && len(got) == 3 {
			t.Fatalf("%d of %d bytes are taken as the whole", i, len(blob))
		}
	}
}
