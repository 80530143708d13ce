// Vmsh boots a guest for a person: with the payload, and a shell in it.
//
//	vmsh SUITE                 a login shell
//	vmsh SUITE -- COMMAND…     runs the command line there, and exits as it does
//
// AAUNIT_VM_PAYLOAD names files of the host, separated by colons, which are put
// into /root/payload/; Debian packages among them are installed. The guest is
// gone when the shell ends.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/aaunit/aaunit/test/vm/machine"
)

func main() {
	exit, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmsh:", err)
		exit = 1
	}
	os.Exit(exit)
}

func run(args []string) (exit int, err error) {
	if len(args) == 0 || (len(args) > 1 && args[1] != "--") || len(args) == 2 {
		return 2, errors.New("cannot understand the arguments: vmsh SUITE [-- COMMAND…]")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()

	began := time.Now()
	m, err := machine.Boot(ctx, machine.Options{Suite: args[0], Log: os.Stderr})
	if err != nil {
		return 1, err
	}
	defer m.Close()
	fmt.Fprintf(os.Stderr, "vmsh: %s is up after %.1fs (%s)\n", args[0], time.Since(began).Seconds(), m.Accel())
	if err := m.PutPayload(ctx, machine.PayloadFromEnv()); err != nil {
		return 1, err
	}

	if len(args) > 1 {
		return m.Stream(ctx, strings.Join(args[2:], " "), os.Stdin, os.Stdout, os.Stderr)
	}
	ssh := m.SSHCommand()
	fmt.Fprintf(os.Stderr, "vmsh: from elsewhere: %s\n", strings.Join(ssh, " "))
	signal.Ignore(syscall.SIGINT) // the shell's
	cmd := exec.Command(ssh[0], ssh[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = cmd.Run()
	if exitErr := (*exec.ExitError)(nil); errors.As(err, &exitErr) {
		return exitErr.ExitCode(), nil
	}
	return 0, err
}
