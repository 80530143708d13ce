package apparmor

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// mainEnds has a copy of this program open a file, say so, and end its main thread; the
// others go on until its input ends.
const mainEnds = "AAUNIT_TEST_MAIN_THREAD_ENDS"

func init() {
	file := os.Getenv(mainEnds)
	if file == "" {
		return
	}
	runtime.LockOSThread() // an init is on the main thread
	if _, err := syscall.Open(file, syscall.O_RDONLY, 0); err != nil {
		panic(err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Println("open")
	_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0)
}

// What a process sees is told also when its main thread has ended.
func TestTmpWhenTheMainThreadHasEnded(t *testing.T) {
	f, err := os.CreateTemp("/tmp", "aaunit-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = f.Close(), os.Remove(f.Name()) }()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.Command(exe)
	c.Env = append(os.Environ(), mainEnds+"="+f.Name())
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = in.Close(), c.Wait() }()
	var said string
	if _, err := fmt.Fscan(out, &said); err != nil {
		t.Fatal(err)
	}
	pid := c.Process.Pid
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)); strings.Contains(string(text), "State:\tZ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("its main thread does not end")
		}
	}
	s := New(Options{})
	if got, want := s.tmpView(pid), s.tmpView(os.Getpid()); got != want || got.Tmp == "" {
		t.Errorf("%+v, want %+v", got, want)
	}
	found := map[string]bool{}
	if s.openIn(pid, []string{"/tmp/"}, found); !found[f.Name()] {
		t.Errorf("%v", found)
	}
}
