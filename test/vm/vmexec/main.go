// Vmexec is for go test -exec: it runs a test binary in a guest.
//
//	go test -tags vm -exec "$PWD/build/vmexec" ./test/vm/guest -v
//
// go test calls it in the package's directory with the path of the test binary
// and the binary's flags. It boots a guest of the suite in AAUNIT_VM_SUITE, puts
// the files in AAUNIT_VM_PAYLOAD (separated by colons) into /root/payload/ and
// installs the Debian packages among them, copies the binary and the package's
// testdata directory, and runs the binary there with AAUNIT_VM=1 and all other
// AAUNIT_ variables of its own environment. Output and exit status are the
// binary's. If the binary fails, what [machine.Machine.Diagnose] tells follows on
// the standard error. If it could not be run at all, or if the guest has no
// AppArmor, the exit status is 125.
//
// What the binary leaves in the file "result" of its directory is copied to the
// file that AAUNIT_VM_RESULT names, if it does.
//
// With AAUNIT_VM_KEEP=1 a guest in which the binary failed is kept until a ^C.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// notRun is the exit status when the binary was not run.
const notRun = 125

// workDir is the test's in the guest.
const workDir = "/root/test"

func main() {
	exit, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmexec:", err)
		exit = notRun
	}
	os.Exit(exit)
}

func run(args []string) (exit int, err error) {
	if len(args) == 0 {
		return 0, errors.New("cannot run nothing: vmexec BINARY FLAG…, for go test -exec")
	}
	suite := os.Getenv("AAUNIT_VM_SUITE")
	if suite == "" {
		return 0, errors.New("cannot choose a guest: set AAUNIT_VM_SUITE")
	}
	limit, err := testTimeout(args[1:])
	if err != nil {
		return 0, err
	}

	// go test sends SIGQUIT, and later SIGKILL, when the test takes too long.
	// Before the binary runs a signal ends us; then it is the binary's.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGHUP)
	defer signal.Stop(signals)
	var runs atomic.Pointer[machine.Machine]
	go func() {
		for s := range signals {
			if m := runs.Load(); m != nil {
				go forward(ctx, m, s)
				time.AfterFunc(forwardTime, func() { cancel(fmt.Errorf("the test did not end after the signal %v", s)) })
			} else {
				cancel(fmt.Errorf("got the signal %v", s))
			}
		}
	}()

	m, err := machine.Boot(ctx, machine.Options{Suite: suite, Log: os.Stderr})
	if err != nil {
		return 0, err
	}
	defer m.Close()
	if err := prepare(ctx, m, args[0]); err != nil {
		fmt.Fprintln(os.Stderr, m.Diagnose(context.Background()))
		return 0, fmt.Errorf("cannot prepare the guest: %w", err)
	}

	runs.Store(m)
	testCtx := ctx
	if limit > 0 {
		// The binary ends itself when the time is over. This is for a guest
		// that does not answer any more.
		var cancelLimit context.CancelFunc
		testCtx, cancelLimit = context.WithTimeoutCause(ctx, limit+time.Minute, errors.New("the guest does not answer"))
		defer cancelLimit()
	}
	stderr := &watch{w: os.Stderr, want: []byte("testing: warning: no tests to run")}
	exit, err = m.Stream(testCtx, commandLine(filepath.Base(args[0]), args[1:], os.Environ()), nil, os.Stdout, stderr)
	if err == nil && exit == 0 && stderr.seen {
		return 0, errors.New("no test was run: see -run")
	}
	if err != nil || exit != 0 {
		fmt.Fprintln(os.Stderr, m.Diagnose(context.Background(), unitsFromEnv()...))
		m.Keep(os.Stderr)
		return exit, err
	}
	if to := os.Getenv("AAUNIT_VM_RESULT"); to != "" {
		return 0, m.Get(ctx, path.Join(workDir, "result"), to)
	}
	return 0, nil
}

// forwardTime is how long the binary may take to end after a signal.
const forwardTime = 30 * time.Second

// forward sends the binary in the guest a signal that we got.
func forward(ctx context.Context, m *machine.Machine, s os.Signal) {
	name := "INT"
	switch s {
	case syscall.SIGTERM:
		name = "TERM"
	case syscall.SIGQUIT:
		name = "QUIT"
	}
	if _, err := m.Output(ctx, "kill -"+name+" $(cat "+workDir+"/pid)"); err != nil {
		fmt.Fprintln(os.Stderr, "vmexec:", err)
	}
}

// prepare makes the guest ready for the binary.
func prepare(ctx context.Context, m *machine.Machine, binary string) error {
	const check = `test "$(cat /sys/module/apparmor/parameters/enabled)" = Y && grep -q . /sys/kernel/security/apparmor/profiles`
	if _, err := m.Output(ctx, check); err != nil {
		return fmt.Errorf("AppArmor is not on: %w", err)
	}
	if err := m.PutPayload(ctx, machine.PayloadFromEnv()); err != nil {
		return err
	}
	if _, err := m.Output(ctx, "mkdir "+workDir); err != nil {
		return err
	}
	if info, err := os.Stat("testdata"); err == nil && info.IsDir() {
		if err := m.PutTree(ctx, "testdata", path.Join(workDir, "testdata")); err != nil {
			return err
		}
	}
	return m.Put(ctx, binary, path.Join(workDir, filepath.Base(binary)), 0o755)
}

// commandLine runs the binary in the guest, and leaves its process id in
// workDir/pid. Flags that name files of the host are left out.
func commandLine(binary string, args, environ []string) string {
	words := []string{"env", "AAUNIT_VM=1"}
	for _, v := range environ {
		if strings.HasPrefix(v, "AAUNIT_") && !strings.HasPrefix(v, "AAUNIT_VM=") {
			words = append(words, v)
		}
	}
	words = append(words, "./"+binary)
	words = append(words, slices.DeleteFunc(slices.Clone(args), onHost)...)
	return "cd " + workDir + " && echo $$ >pid && exec " + machine.Quote(words...)
}

// onHost tells the test flags whose value is a file of the host's.
func onHost(arg string) bool {
	name, _, _ := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	switch name {
	case "test.coverprofile", "test.gocoverdir", "test.outputdir", "test.testlogfile",
		"test.cpuprofile", "test.memprofile", "test.blockprofile", "test.mutexprofile", "test.trace":
		return true
	}
	return false
}

// testTimeout is the value of -test.timeout, 0 for none.
func testTimeout(args []string) (time.Duration, error) {
	flags := flag.NewFlagSet("test", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	limit := flags.Duration("test.timeout", 0, "")
	for _, a := range args {
		if name, _, _ := strings.Cut(strings.TrimLeft(a, "-"), "="); name == "test.timeout" {
			if err := flags.Parse([]string{a}); err != nil {
				return 0, fmt.Errorf("cannot understand %s: %w", a, err)
			}
		}
	}
	return *limit, nil
}

// unitsFromEnv lists the units whose journal AAUNIT_VM_DIAGNOSE asks for.
func unitsFromEnv() []string {
	return strings.Fields(os.Getenv("AAUNIT_VM_DIAGNOSE"))
}

// watch is a writer that tells whether what it wants was written through it.
type watch struct {
	w    io.Writer
	want []byte
	seen bool
	last []byte // shorter than want
}

func (w *watch) Write(p []byte) (int, error) {
	w.last = append(w.last, p...)
	w.seen = w.seen || bytes.Contains(w.last, w.want)
	if n := len(w.last) - len(w.want) + 1; n > 0 {
		w.last = w.last[n:]
	}
	return w.w.Write(p)
}
