package main

import (
	"bufio"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// letGoOfProgram has the kernel take the pages of the program's own file out of this
// process, which are code and constants: most were needed once, at the start. Whatever
// is needed again comes back from the page cache (madvise(2), MADV_DONTNEED). Nothing
// that can be written to is touched, nor that has ever been written to, so nothing can
// be lost; where it cannot be done, more memory is used, and nothing else. It gives the
// size of what was taken, in bytes.
func letGoOfProgram() (size uintptr) {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return 0
	}
	smaps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return 0
	}
	defer smaps.Close()
	for _, m := range programPages(smaps, program) {
		if _, _, failed := unix.Syscall(unix.SYS_MADVISE, m.start, m.end-m.start, unix.MADV_DONTNEED); failed == 0 {
			size += m.end - m.start
		}
	}
	return size
}

// pages are a part of the address space.
type pages struct{ start, end uintptr }

// programPages finds what is mapped from the program's file, cannot be written to, and
// is as it is in the file: a loader writes to constants before it makes them so
// (RELRO), and a debugger to code. proc_pid_smaps(5).
func programPages(smaps io.Reader, program string) (out []pages) {
	var m pages
	for in := bufio.NewScanner(smaps); in.Scan(); {
		if key, value, ok := strings.Cut(in.Text(), ":"); ok && !strings.Contains(key, " ") {
			if key == "Anonymous" && m.start < m.end && strings.TrimSpace(value) == "0 kB" {
				out = append(out, m)
			}
			continue
		}
		// start-end perms offset device inode path
		m = pages{}
		f := strings.SplitN(in.Text(), " ", 6)
		if len(f) < 6 || len(f[1]) != 4 || f[1][0] != 'r' || f[1][1] != '-' || strings.TrimLeft(f[5], " ") != program {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		start, err1 := strconv.ParseUint(from, 16, 64)
		end, err2 := strconv.ParseUint(to, 16, 64)
		if err1 == nil && err2 == nil {
			m = pages{uintptr(start), uintptr(end)}
		}
	}
	return out
}
