package apparmor

import (
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// What the kernel has answered is remembered for the very bytes and checksums, and only
// where it has answered everything as they say.
func TestWhatWasExaminedIsNotAskedAgain(t *testing.T) {
	of := func(blob string, sums map[string]string) attach.Compiled {
		return attach.Compiled{Blob: []byte(blob), Checksums: sums, Asked: 7}
	}
	known := of("policy", map[string]string{"a": "sha1:1", "a//b": "sha1:2"})
	var e examined
	e.put(&known)
	for name, c := range map[string]struct {
		attach.Compiled
		want int
	}{
		"the same":          {of("policy", map[string]string{"a//b": "sha1:2", "a": "sha1:1"}), 7},
		"other bytes":       {of("policies", known.Checksums), 0},
		"another checksum":  {of("policy", map[string]string{"a": "sha1:1", "a//b": "sha1:3"}), 0},
		"one profile fewer": {of("policy", map[string]string{"a": "sha1:1"}), 0},
	} {
		if got := e.get(&c.Compiled); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	for name, spoil := range map[string]func(*attach.Compiled){
		"not all was asked": func(c *attach.Compiled) { c.NotAsked = "the time for it was over" },
		"it disagrees":      func(c *attach.Compiled) { c.Disagrees = "profile a" },
		"nothing was asked": func(c *attach.Compiled) { c.Asked = 0 },
	} {
		c := of(name, known.Checksums)
		spoil(&c)
		e.put(&c)
		if got := e.get(&c); got != 0 {
			t.Errorf("%s: %d", name, got)
		}
	}
}
