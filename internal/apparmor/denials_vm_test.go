//go:build vm

package apparmor

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	libaudit "github.com/elastic/go-libaudit/v2"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/audit"
)

// deniedVM collects what Denials tells.
type deniedVM struct {
	vm
	out <-chan attach.Denial
	all []attach.Denial
}

// until reads until wanted says yes, which it must.
func (v *deniedVM) until(what string, wanted func(attach.Denial) bool) attach.Denial {
	v.t.Helper()
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case d, ok := <-v.out:
			if !ok {
				v.t.Fatalf("the channel was closed before %s", what)
			}
			v.all = append(v.all, d)
			if d.Deaf != "" {
				v.t.Fatalf("%s", d)
			}
			if wanted(d) {
				return d
			}
		case <-deadline:
			for _, d := range v.all {
				v.t.Logf("%s: %s %+v", d.Unit, d, d)
			}
			v.t.Fatalf("%s did not come", what)
		}
	}
}

// try has a shell in a unit with a profile do something, and waits for its end
// where it is to be gone at once.
func (v *deniedVM) try(unit, profile, script string) {
	v.t.Helper()
	v.run("systemd-run", "--quiet", "--collect", "--unit="+unit, "-pAppArmorProfile="+profile, "/bin/sh", "-c", script)
	v.t.Cleanup(func() { _ = exec.Command("systemctl", "stop", unit).Run() })
}

// playAuditd makes this process what auditd is to the kernel until the test ends:
// audit is on, and the kernel sends its records to the process that said so
// (audit_set_pid in audit-userspace).
func playAuditd(t *testing.T) {
	t.Helper()
	c, err := libaudit.NewAuditClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetEnabled(true, libaudit.WaitForReply); err != nil {
		t.Fatal(err)
	}
	if err := c.SetPID(libaudit.WaitForReply); err != nil {
		t.Fatal(err)
	}
	quit, done := make(chan struct{}), make(chan int)
	go func() {
		records := 0
		for {
			r, err := c.Receive(false)
			select {
			case <-quit:
				done <- records
				return
			default:
			}
			if err == nil && r.Type == auditAVC {
				records++
			}
		}
	}()
	t.Cleanup(func() {
		close(quit)
		_, _ = c.Netlink.SendNoWait(syscall.NetlinkMessage{Header: syscall.NlMsghdr{
			Type: syscall.NLMSG_NOOP, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_ACK,
		}})
		if n := <-done; n == 0 {
			t.Error("the kernel did not take this process for auditd")
		}
		if err := c.SetEnabled(false, libaudit.NoWait); err != nil {
			t.Error(err)
		}
		_ = c.Close()
	})
}

func openLog() (AuditSource, error) {
	log, err := audit.Open()
	if err != nil {
		return nil, err
	}
	return log, nil
}

func TestVMDenials(t *testing.T) {
	v := &deniedVM{vm: vm{New(Options{Audit: openLog}), t}}
	const read = "  /usr/** mrix,\n  /bin/* mrix,\n  /lib/** mr,\n  /etc/ld.so.cache r,\n  /dev/null rw,\n  /srv/vm-denied/ r,\n  signal peer=vm-denied,\n  signal receive set=(term, kill, cont) peer=unconfined,\n"
	f := v.profile("vm.denied", "profile vm-denied flags=(attach_disconnected) {\n"+read+"}\n"+
		"profile vm-complains flags=(attach_disconnected, complain) {\n"+read+"}\n"+
		"profile \"vm spaced\" flags=(attach_disconnected) {\n"+read+"}\n")
	v.load(v.compile(f)...)
	if err := os.MkdirAll("/srv/vm-denied", 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a name with spaces", "\xff\xfe\x80", "plain", "after", "say \"x\" y=\"z"} {
		if err := os.WriteFile("/srv/vm-denied/"+name, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// With and without auditd, to which the kernel sends every record itself.
	for _, auditd := range []bool{false, true} {
		t.Run(fmt.Sprintf("auditd=%v", auditd), func(t *testing.T) {
			v := &deniedVM{vm: vm{v.System, t}}
			if auditd {
				playAuditd(t)
			}
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			v.out = v.Denials(ctx)
			suffix := fmt.Sprint(auditd)

			// One that stays, so that it can be asked which unit it is of.
			unit := "vm-denied-" + suffix
			v.try(unit, "vm-denied", "sleep 1; read x < '/srv/vm-denied/a name with spaces'; sleep 1000")
			d := v.until("a name with spaces", func(d attach.Denial) bool { return strings.HasSuffix(d.Name, "spaces") })
			id := v.run("systemctl", "show", "-P", "InvocationID", unit)
			if d.Name != "/srv/vm-denied/a name with spaces" || d.Profile != "vm-denied" || d.Operation != "open" || d.Denied != "r" ||
				d.Allowed || d.Comm != "sh" || !d.HasOwner || d.FSUID != 0 || d.Unit != unit+".service" || d.InvocationID != id ||
				d.Cgroup != "/system.slice/"+unit+".service" || time.Since(d.Time).Abs() > time.Hour {
				t.Errorf("%s %+v", d, d)
			}

			// A process that is gone at once: the profile still tells.
			v.try("vm-gone-"+suffix, "vm-denied", "read x < /srv/vm-denied/plain")
			d = v.until("a process that is gone", func(d attach.Denial) bool { return strings.HasSuffix(d.Name, "/plain") })
			if by, many := attach.Attribute(d, map[string][]string{"vm-gone-" + suffix + ".service": {"vm-denied"}}); by != "vm-gone-"+suffix+".service" || many != nil {
				t.Errorf("by profile it is of %q %q: %+v", by, many, d)
			}
			if d.Unit != "" && d.Unit != "vm-gone-"+suffix+".service" {
				t.Errorf("%+v", d)
			}

			// Bytes of every kind; nobody can write fields into a name.
			v.try("vm-bytes-"+suffix, "vm spaced", `sleep 1; for f in /srv/vm-denied/*; do read x < "$f"; done; sleep 1000`)
			want := map[string]bool{"/srv/vm-denied/\xff\xfe\x80": true, "/srv/vm-denied/say \"x\" y=\"z": true}
			for len(want) > 0 {
				d = v.until(fmt.Sprint(want), func(d attach.Denial) bool { return want[d.Name] })
				delete(want, d.Name)
				if d.Profile != "vm spaced" || d.Unit != "vm-bytes-"+suffix+".service" {
					t.Errorf("%s %+v", d, d)
				}
			}

			// Complain mode.
			v.try("vm-complains-"+suffix, "vm-complains", "sleep 1; read x < /srv/vm-denied/plain; sleep 1000")
			d = v.until("what complain mode lets pass", func(d attach.Denial) bool { return d.Profile == "vm-complains" && d.Name == "/srv/vm-denied/plain" })
			if !d.Allowed || d.Unit != "vm-complains-"+suffix+".service" {
				t.Errorf("%s %+v", d, d)
			}

			// A signal that the receiver's profile does not let in: the record has
			// the PID of the sender, which is of another unit.
			pid := v.run("systemctl", "show", "-P", "MainPID", unit)
			_ = exec.Command("systemd-run", "--quiet", "--wait", "--collect", "--unit=vm-sender-"+suffix, "/bin/sh", "-c", "kill -USR1 "+pid+"; sleep 1").Run()
			d = v.until("a signal", func(d attach.Denial) bool { return d.Operation == "signal" })
			if !d.ByPeer() || d.Unit != "" || d.Profile != "vm-denied" || d.Peer != "unconfined" || d.Signal != "usr1" {
				t.Errorf("%s %+v", d, d)
			}

			// A burst that nobody reads is merged or counted, never blocks, and
			// what comes after it is heard.
			v.try("vm-burst-"+suffix, "vm-denied", "sleep 1; i=0; while [ $i -lt 3000 ]; do read x < /srv/vm-denied/plain; i=$((i+1)); done; sleep 3; read x < /srv/vm-denied/after; sleep 1000")
			times, lost := 0, 0
			v.until("what came after a burst", func(d attach.Denial) bool {
				lost += d.Lost
				if d.Unit == "vm-burst-"+suffix+".service" {
					times += d.Count
				}
				return d.Name == "/srv/vm-denied/after" && d.Unit == "vm-burst-"+suffix+".service"
			})
			t.Logf("%d of 3001 were heard, and %d times the socket had no room", times, lost)
			// Some are lost, and some come twice (see Denials): there is no more to say.
			if times < 10 {
				t.Errorf("%d of a burst of 3001 were heard", times)
			}

			// An idle listener ends when it is told to.
			cancel()
			deadline := time.After(time.Minute)
			for open := true; open; {
				select {
				case _, open = <-v.out:
				case <-deadline:
					t.Fatal("it does not end")
				}
			}
			for _, name := range []string{unit, "vm-gone-" + suffix, "vm-bytes-" + suffix, "vm-complains-" + suffix, "vm-burst-" + suffix} {
				_ = exec.Command("systemctl", "stop", name).Run()
			}
		})
	}
	v.gone("vm-denied", "vm-complains", "vm spaced")
}
