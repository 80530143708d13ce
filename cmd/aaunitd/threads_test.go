package main

import (
	"os"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Threads that have waited for something are ended; the process goes on with others.
func TestIdleThreadsEnd(t *testing.T) {
	var wait sync.WaitGroup
	var pipe [2]int
	if err := syscall.Pipe(pipe[:]); err != nil {
		t.Fatal(err)
	}
	for range 40 {
		wait.Go(func() { _, _ = syscall.Read(pipe[0], make([]byte, 1)) })
	}
	for begun := time.Now(); threads() < 40; time.Sleep(time.Millisecond) {
		if time.Since(begun) > 10*time.Second {
			t.Fatalf("only %d threads wait", threads())
		}
	}
	if _, err := syscall.Write(pipe[1], make([]byte, 40)); err != nil {
		t.Fatal(err)
	}
	wait.Wait()
	before := threads()
	begun, n := time.Now(), before
	for ; n > fewThreads+4 && time.Since(begun) < 10*time.Second; n = threads() {
		endIdleThreads(fewThreads)
		time.Sleep(10 * time.Millisecond)
	}
	if before < 40 || n > fewThreads+4 {
		t.Errorf("of %d threads %d are left", before, n)
	}
	if _, err := os.ReadFile("/proc/self/stat"); err != nil {
		t.Error(err)
	}
}
