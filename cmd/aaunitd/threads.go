package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// fewThreads is how many threads are enough to begin with after a rest. Go's runtime
// makes more when they are wanted.
const fewThreads = 8

// endIdleThreads ends threads until that many are left, or one that works would have
// to be. Go's runtime keeps every thread that ever waited for a file, with 48 KiB of
// stacks; it ends that of a goroutine which ends while it is locked to it
// (runtime.LockOSThread). A thread that another goroutine is locked to, as the parser's
// is, is not taken for this.
func endIdleThreads(few int) {
	over := make(chan struct{})
	defer close(over)
	for n := threads() - few; n > 0; n-- {
		done := make(chan bool)
		end := func() {
			runtime.LockOSThread()
			if unix.Gettid() == os.Getpid() {
				// The first one cannot end alone, and would be stuck. Nothing else gets it until over.
				done <- false
				<-over
				runtime.UnlockOSThread()
				return
			}
			done <- true
		}
		go end()
		if !<-done {
			go end()
			<-done
		}
	}
}

// threads counts those of this process, 0 where that cannot be told.
func threads() int {
	names, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return 0
	}
	return len(names)
}
