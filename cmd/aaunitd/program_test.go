package main

import (
	"slices"
	"strings"
	"testing"
)

func TestProgramPages(t *testing.T) {
	var smaps strings.Builder
	for _, m := range []struct{ line, anonymous string }{
		{"00400000-00b2f000 r-xp 00000000 fe:00 131 /usr/sbin/aaunitd", "0 kB"},
		{"00b2f000-01400000 r--p 0072f000 fe:00 131                     /usr/sbin/aaunitd", "0 kB"},
		{"01400000-01410000 r--p 01000000 fe:00 131                     /usr/sbin/aaunitd", "64 kB"},
		{"01410000-01450000 rw-p 01010000 fe:00 131                     /usr/sbin/aaunitd", "0 kB"},
		{"01450000-01460000 ---p 01000000 fe:00 131                     /usr/sbin/aaunitd", "0 kB"},
		{"01460000-01480000 rw-p 00000000 00:00 0 ", "0 kB"},
		{"7f0000000000-7f0000001000 r--p 00000000 fe:00 132             /usr/sbin/aaunitd.old", "0 kB"},
		{"7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0               [vdso]", "0 kB"},
		{"x-y r--p 0 0 0 /usr/sbin/aaunitd", "0 kB"},
		{"01500000-01500000 r--p 0 0 0 /usr/sbin/aaunitd", "0 kB"},
		{"01600000-01700000 r--p 0 0 0 /usr/sbin/aaunitd", ""},
	} {
		smaps.WriteString(m.line + "\nSize:                  4 kB\nRss:                   4 kB\nAnonymous:       " + m.anonymous + "\nVmFlags: rd mr mw me\n")
	}
	got := programPages(strings.NewReader(smaps.String()), "/usr/sbin/aaunitd")
	if want := []pages{{0x400000, 0xb2f000}, {0xb2f000, 0x1400000}}; !slices.Equal(got, want) {
		t.Errorf("%x", got)
	}
	if got := programPages(strings.NewReader(smaps.String()), ""); len(got) != 0 {
		t.Errorf("of no program: %x", got)
	}
}

// The program goes on without its pages: they come back.
func TestLetGoOfProgram(t *testing.T) {
	for range 3 {
		if size := letGoOfProgram(); size < 1<<20 {
			t.Errorf("%d bytes of the program were given back", size)
		}
	}
}
