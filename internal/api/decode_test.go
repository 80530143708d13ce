package api

import (
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

func TestEscapeLabel(t *testing.T) {
	for in, want := range map[string]string{
		"":                "_",
		"myagent.service": "myagent_2eservice",
		"a@b-c.service":   "a_40b_2dc_2eservice",
		"9lives":          "_39lives",
		"l9":              "l9",
		"_":               "_5f",
		"ü":               "_c3_bc",
	} {
		if got := escapeLabel(in); got != want {
			t.Errorf("escape %q: %q, want %q", in, got, want)
		}
		if back, ok := unescapeLabel(want); !ok || back != in {
			t.Errorf("unescape %q: %q, %v", want, back, ok)
		}
	}
	for _, bad := range []string{"", "a_", "a_2", "a_2E", "a_zz", "a_61", "9", "_39lives_", "a.b", "a/b", "__"} {
		if got, ok := unescapeLabel(bad); ok {
			t.Errorf("unescape %q: %q", bad, got)
		}
	}
}

func FuzzUnescapeLabel(f *testing.F) {
	for _, s := range []string{"_", "a_2eb", "_39", "a__", "_5f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if plain, ok := unescapeLabel(s); ok && escapeLabel(plain) != s {
			t.Errorf("%q is another path of %q", s, plain)
		}
		p := UnitPath(s)
		if !p.IsValid() {
			t.Errorf("%q gives the invalid path %q", s, p)
		}
		if back, ok := unitOf(p); !ok || back != s {
			t.Errorf("%q comes back as %q, %v", s, back, ok)
		}
	})
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add("a.service", "profile", "p", true, 0)
	f.Add("", "runtime", "", false, 1)
	f.Add("a\x00", "dry-run", "\xff", true, 2)
	f.Fuzz(func(t *testing.T, unit, key, text string, flag bool, kind int) {
		var v dbus.Variant // kind 3: a variant without a value
		switch kind % 4 {
		case 0:
			v = dbus.MakeVariant(text)
		case 1:
			v = dbus.MakeVariant(flag)
		case 2:
			v = dbus.MakeVariant([]string{text})
		}
		r, err := decodeRequest([]string{unit}, map[string]dbus.Variant{key: v}, attachOptions)
		if err != nil {
			if err.Name != errorInvalidArgs || !utf8.ValidString(err.Error()) {
				t.Errorf("error %+v", err)
			}
			return
		}
		if r.Trusted || r.DryRun {
			t.Errorf("a caller made itself %+v", r)
		}
		if unit == "" || len(r.Profile) > maxLength || strings.ContainsRune(r.Profile+unit, 0) || !utf8.ValidString(r.Profile+unit) {
			t.Errorf("taken: %+v", r)
		}
	})
}

func TestOptionsRoundTrip(t *testing.T) {
	want := attach.Request{Units: []string{"a"}, Profile: "p", Runtime: true, Complain: true, NoRestart: true}
	got, err := decodeRequest(want.Units, encodeOptions(want), attachOptions)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestLimiter(t *testing.T) {
	now := time.Unix(0, 0)
	l := newLimiter(2, 4)
	l.now = func() time.Time { return now }
	take := func(uid uint32) (n int) {
		for l.allow(uid, 1) {
			n++
		}
		return n
	}
	if n := take(1000); n != 4 {
		t.Errorf("burst of %d", n)
	}
	if n := take(1001); n != 4 {
		t.Errorf("burst of another user: %d", n)
	}
	now = now.Add(time.Second)
	if n := take(1000); n != 2 {
		t.Errorf("after a second: %d", n)
	}
	now = now.Add(time.Hour)
	if n := take(1000); n != 4 {
		t.Errorf("after an hour: %d", n)
	}
	for uid := range uint32(100_000) {
		l.allow(uid+1, 1)
	}
	if len(l.buckets) > maxBuckets+1 {
		t.Errorf("%d buckets are kept", len(l.buckets))
	}
	if !l.allow(0, 1) {
		t.Error("root was refused")
	}
}

func TestCounter(t *testing.T) {
	c := newCounter(2, 3)
	first, ok := c.take(1)
	if !ok {
		t.Fatal("no place")
	}
	for i, tc := range []struct {
		uid  uint32
		want bool
	}{{1, true}, {1, false}, {2, true}, {2, false}, {0, true}, {0, true}, {0, false}} {
		if _, ok := c.take(tc.uid); ok != tc.want {
			t.Errorf("take %d of user %d: %v", i, tc.uid, ok)
		}
	}
	first()
	first() // a second release is nobody's place
	if c.users[1] != 1 || c.total != 4 {
		t.Errorf("after a release: %+v", c.users)
	}
}

func TestClean(t *testing.T) {
	if got := clean("a\xffb\x00c"); got != "a\uFFFDb\uFFFDc" {
		t.Errorf("%q", got)
	}
}
