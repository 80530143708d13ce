// Demo shows what aaunit is for, on a throw-away Debian machine: it installs
// the package, attaches a sample agent and two of Debian's own services, shows
// the proof, and then breaks one attach to show the way back. Every line that
// begins with # is a command that was really typed there; it ends with status 1
// when one of them does not do what the demo says it does.
//
//	demo PACKAGE.deb AGENT [SUITE]
package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/aaunit/aaunit/test/vm/machine"
)

//go:embed files
var files embed.FS

func main() {
	if len(os.Args) < 3 || len(os.Args) > 4 {
		fmt.Fprintln(os.Stderr, "demo: cannot understand the arguments: demo PACKAGE.deb AGENT [SUITE]")
		os.Exit(2)
	}
	suite := "bookworm"
	if len(os.Args) == 4 {
		suite = os.Args[3]
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2], suite); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// demo is a guest and the terminal it is shown on.
type demo struct {
	ctx    context.Context
	m      *machine.Machine
	out    io.Writer
	colour bool
}

func run(ctx context.Context, deb, agent, suite string) (err error) {
	d := &demo{ctx: ctx, out: os.Stdout, colour: term.IsTerminal(int(os.Stdout.Fd())) && os.Getenv("NO_COLOR") == ""}
	began := time.Now()
	d.title("A throw-away Debian machine (%s)", suite)
	d.m, err = machine.Boot(ctx, machine.Options{Suite: suite, Log: os.Stderr})
	if err != nil {
		return err
	}
	defer d.m.Close()
	d.say("It is up after %.0f s.", time.Since(began).Seconds())
	if err := d.furnish(deb, agent); err != nil {
		return err
	}

	d.title("Install the package")
	if err := d.enter("apt-get install -qq -y --no-install-recommends ./"+filepath.Base(deb)+" 2>&1 | tail -n 4", 0); err != nil {
		return err
	}

	d.title("An agent that nothing confines")
	d.say("myagent talks TCP, writes to /tmp and forks a helper. Somebody wrote a profile for it:")
	for _, c := range []string{
		"grep ^profile /etc/apparmor.d/usr.local.bin.myagent",
		"ps -o pid,label,args --ppid 1 -C myagent | grep -e LABEL -e myagent",
	} {
		if err := d.enter(c, 0); err != nil {
			return err
		}
	}
	d.say("The file is called usr.local.bin.myagent and the profile is not. That is the commonest mistake:")
	if err := d.enter("aaunitctl attach myagent --profile usr.local.bin.myagent", 0); err != nil {
		return err
	}
	d.say("The kernel agrees:")
	if err := d.enter("ps -o pid,label,args -C myagent", 0); err != nil {
		return err
	}

	d.title("Two services of Debian's, with the profiles they come with")
	d.say("i2pd runs as User=i2pd; squid forks workers and helpers, and Debian disables its profile\nwith a link:")
	if err := d.enter("aaunitctl attach squid", 1); err != nil {
		return err
	}
	d.say("So enable it, and attach both in one go:")
	for _, c := range []string{
		"rm /etc/apparmor.d/disable/usr.sbin.squid",
		"aaunitctl attach squid i2pd",
	} {
		if err := d.enter(c, 0); err != nil {
			return err
		}
	}

	d.title("Somebody breaks a profile")
	d.say("The next agent's profile forgets the network. Attach it, and see the way back:")
	if err := d.enter("aaunitctl attach other", 1); err != nil {
		return err
	}
	for _, c := range []string{"systemctl is-active other", "ps -o pid,label,args -C other"} {
		if err := d.enter(c, 0); err != nil {
			return err
		}
	}

	d.title("How things stand")
	if err := d.enter("aaunitctl status", 0); err != nil {
		return err
	}
	if err := d.enter("aaunitctl explain myagent", 0); err != nil {
		return err
	}
	d.title("Done, after %.0f s", time.Since(began).Seconds())
	d.say("The machine is gone. Its image is kept for the next time.")
	return nil
}

// furnish puts the demo's files where they belong and starts the services.
func (d *demo) furnish(deb, agent string) error {
	for _, f := range []struct {
		from, to string
		mode     os.FileMode
	}{
		{deb, "/root/" + filepath.Base(deb), 0o644},
		{agent, "/usr/local/bin/myagent", 0o755},
		{agent, "/usr/local/bin/other", 0o755},
	} {
		if err := d.m.Put(d.ctx, f.from, f.to, f.mode); err != nil {
			return err
		}
	}
	for name, to := range map[string]string{
		"myagent.profile": "/etc/apparmor.d/usr.local.bin.myagent",
		"other.profile":   "/etc/apparmor.d/other",
		"myagent.service": "/etc/systemd/system/myagent.service",
		"other.service":   "/etc/systemd/system/other.service",
	} {
		text, err := files.ReadFile(path.Join("files", name))
		if err != nil {
			return err
		}
		if err := d.m.PutBytes(d.ctx, text, to, 0o644); err != nil {
			return err
		}
	}
	_, err := d.m.Output(d.ctx, "useradd --system agents && systemctl daemon-reload && systemctl start myagent other squid i2pd")
	return err
}

func (d *demo) title(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if d.colour {
		fmt.Fprintf(d.out, "\n\x1b[1m%s\x1b[0m\n", text)
		return
	}
	fmt.Fprintf(d.out, "\n%s\n%s\n", text, strings.Repeat("=", len(text)))
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, format+"\n", args...) }

// enter runs a command line in the guest, with its output as it comes, and
// fails unless it exits as expected.
func (d *demo) enter(command string, want int) error {
	prompt := "# "
	if d.colour {
		prompt = "\x1b[32m#\x1b[0m "
	}
	fmt.Fprintf(d.out, "\n%s%s\n", prompt, command)
	exit, err := d.m.Stream(d.ctx, "cd /root; export LANG=C.UTF-8; set -o pipefail; "+command, nil, d.out, d.out)
	if err != nil {
		return err
	}
	if exit != want {
		return errors.Join(fmt.Errorf("cannot go on: %q ended with status %d, not %d", command, exit, want),
			errors.New(d.m.Diagnose(d.ctx, "aaunitd.service")))
	}
	if want != 0 {
		fmt.Fprintf(d.out, "(exit status %d)\n", exit)
	}
	return nil
}
