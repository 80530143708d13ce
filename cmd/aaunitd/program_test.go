package main

import (
	"slices"
	"strings"
	"testing"
)

func TestProgramPages(t *testing.T) {
	const maps = `00400000-00b2f000 r-xp 00000000 fe:00 131 /usr/sbin/aaunitd
00b2f000-01400000 r--p 0072f000 fe:00 131                     /usr/sbin/aaunitd
01400000-01450000 rw-p 01000000 fe:00 131                     /usr/sbin/aaunitd
01450000-01460000 ---p 01000000 fe:00 131                     /usr/sbin/aaunitd
01460000-01480000 rw-p 00000000 00:00 0
7f0000000000-7f0000001000 r--p 00000000 fe:00 132             /usr/sbin/aaunitd.old
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0               [vdso]
x-y r--p 0 0 0 /usr/sbin/aaunitd
`
	got := programPages(strings.NewReader(maps), "/usr/sbin/aaunitd")
	if want := []pages{{0x400000, 0xb2f000}, {0xb2f000, 0x1400000}}; !slices.Equal(got, want) {
		t.Errorf("%x", got)
	}
	if got := programPages(strings.NewReader(maps), ""); len(got) != 0 {
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
