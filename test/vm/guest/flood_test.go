//go:build vm && long

package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestAFloodOfDenials: a unit that is denied something as fast as it can, each time
// another file, costs the daemon bounded memory, is not hidden, and hides nobody for
// long; what was lost is said.
func TestAFloodOfDenials(t *testing.T) {
	const (
		dir     = "/srv/vm-flood/"
		seconds = 20
		bound   = 32 << 10 // KiB
	)
	a := newAgents(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A file that is not there is looked for without AppArmor; making one is not.
	script := fmt.Sprintf("end=$(($(date +%%s)+%d)); n=0; while [ $(date +%%s) -lt $end ]; do i=0; while [ $i -lt 2000 ]; do read x <>%s$1-$((n+i)); i=$((i+1)); done; n=$((n+2000)); done 2>/dev/null; echo made $n\n", seconds, dir)
	a.File(dir+"script", script, 0o644)
	a.ProfileFile("flood", profileText("flood", "/{usr/,}bin/{da,}sh mrix,", "/{usr/,}bin/date mrix,", dir+"script r,"))
	a.ProfileFile("flooded", profileText("flooded"))
	a.Unit("flood.service", a.agentUnit())
	flood := port(a.port)
	a.Unit("flooded.service", a.agentUnit())
	other := port(a.port)
	a.Reload()
	run(t, "systemctl", "start", "flood", "flooded")
	if r := ctl(t, "attach", "flood", "flooded", "--settle", "1s"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	waitIdle(t)
	pid := show(t, "aaunitd.service", "MainPID")
	memory := func(field string) (kib int) {
		t.Helper()
		for line := range strings.Lines(read(t, "/proc/"+pid+"/status")) {
			if rest, ok := strings.CutPrefix(line, field+":"); ok {
				fmt.Sscan(rest, &kib)
			}
		}
		return kib
	}
	if err := os.WriteFile("/proc/"+pid+"/clear_refs", []byte("5"), 0); err != nil {
		t.Fatal(err)
	}
	before := memory("VmRSS")

	made, failed := make(chan string, 2), make(chan error, 2)
	for _, name := range []string{"a", "b"} {
		conn := connect(t, flood)
		go func() {
			answer, err := answered(conn, "exec /bin/sh "+dir+"script "+name)
			made <- answer
			failed <- err
		}()
	}
	time.Sleep(seconds / 2 * time.Second)
	// In the midst of it.
	if v := waitVerdict(t, "flooded.service"); v.Answer != attach.Confined {
		t.Errorf("another unit, meanwhile: %+v", v)
	}
	if r := ctl(t, "verify", "flood", "flooded"); r.exit != 0 {
		t.Errorf("verify, meanwhile: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for range 2 {
		t.Logf("%s in %d seconds", <-made, seconds)
		if err := <-failed; err != nil {
			t.Fatal(err)
		}
	}

	// What comes after it is heard, as soon as the kernel has room again.
	a.File(dir+"after", "x\n", 0o644)
	tries := 0
	waitFor(t, "a denial after the flood", func() (bool, string) {
		tries++
		if got := ask(t, other, "read "+dir+"after"); !strings.HasPrefix(got, "error") {
			t.Fatalf("the profile lets it read: %s", got)
		}
		doc, r := denialsOf(t, "flooded")
		heard := len(doc.Units) == 1 && slices.ContainsFunc(doc.Units[0].Denials, func(d attach.SeenDenial) bool { return d.Name == dir+"after" })
		return heard, r.stdout
	})
	t.Logf("heard at try %d", tries)
	doc, _ := denialsOf(t, "flood")
	if len(doc.Units) != 1 || len(doc.Units[0].Denials) == 0 || doc.Lost == 0 {
		t.Errorf("%d units, %d lost", len(doc.Units), doc.Lost)
	} else {
		t.Logf("%d denials are kept, %d are left out of the answer, at least %d records were lost", len(doc.Units[0].Denials), doc.Units[0].LeftOut, doc.Lost)
	}
	r := ctl(t, "denials", "flood")
	if !strings.Contains(r.stdout+r.stderr, "At least ") {
		t.Errorf("that records were lost is not said: exit %d\n%.2000s%s", r.exit, r.stdout, r.stderr)
	}
	if now := show(t, "aaunitd.service", "MainPID"); now != pid {
		t.Fatalf("the daemon was started anew: %s, before %s", now, pid)
	}
	peak := memory("VmHWM")
	t.Logf("memory of aaunitd: %d KiB, at most %d meanwhile", before, peak)
	if peak > before+bound {
		t.Errorf("the flood cost the daemon %d KiB", peak-before)
	}
}

// TestDenialsBesideAuditd: where auditd takes the records, they are heard as well.
func TestDenialsBesideAuditd(t *testing.T) {
	const dir = "/srv/vm-auditd/"
	a := newAgents(t)
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"before", "beside", "after"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		a.File(dir+name, "x\n", 0o644)
	}
	a.ProfileFile("beside", profileText("beside"))
	a.Unit("beside.service", a.agentUnit())
	address := port(a.port)
	a.Reload()
	run(t, "systemctl", "start", "beside")
	if r := ctl(t, "attach", "beside", "--settle", "1s"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	denied := func(name string) {
		t.Helper()
		if got := ask(t, address, "read "+dir+name); !strings.HasPrefix(got, "error") {
			t.Fatalf("the profile lets it read: %s", got)
		}
		waitDenial(t, "beside.service", dir+name)
	}
	denied("before")
	run(t, "systemctl", "start", "auditd")
	t.Cleanup(func() { try0("service", "auditd", "stop") }) // systemctl may not
	denied("beside")
	waitFor(t, "auditd to have it, too", func() (bool, string) {
		log := read(t, "/var/log/audit/audit.log")
		return strings.Contains(log, dir+"beside"), log
	})
	run(t, "systemctl", "restart", "aaunitd")
	waitIdle(t)
	denied("after")
}

// TestAProgramThatNobodyServes: a program on a file system whose process has stopped
// answering is confined, and says of its evidence what is not known; nothing waits.
func TestAProgramThatNobodyServes(t *testing.T) {
	const mnt = "/srv/vm-fuse"
	a := newAgents(t)
	if err := os.MkdirAll(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	run(t, "bindfs", "--no-allow-other", "/usr/local/bin", mnt)
	servers := try(t, "pgrep", "-x", "bindfs").stdout
	if servers == "" {
		t.Fatal("bindfs does not run")
	}
	t.Cleanup(func() {
		try0("pkill", "-CONT", "-x", "bindfs")
		try0("umount", "-l", mnt)
		os.Remove(mnt)
	})
	a.ProfileFile("served", profileText("served", mnt+"/vm-agent mrix,"))
	a.ProfileFile("beside", profileText("beside"))
	a.Unit("served.service", strings.Replace(a.agentUnit("ExecStop="+mnt+"/stop"), "/usr/local/bin/vm-agent", mnt+"/vm-agent", 1))
	a.Unit("beside.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "served", "beside")
	if r := ctl(t, "attach", "served", "beside", "--settle", "1s"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	waitFor(t, "the evidence", func() (bool, string) {
		files, _ := filepath.Glob("/var/lib/aaunit/evidence/served.service/0*.json")
		return len(files) > 0, ""
	})
	_, e := recordsOf(t, "served.service")
	if x := e.Executable; x.Path != mnt+"/vm-agent" || x.SHA256 != "" || !strings.Contains(x.Problem, "fuse") {
		t.Errorf("the record says %+v", x)
	}

	run(t, "pkill", "-STOP", "-x", "bindfs")
	run(t, "systemctl", "restart", "aaunitd")
	waitIdle(t)
	for _, unit := range []string{"served", "beside"} {
		if r := ctl(t, "verify", unit); r.exit != 0 {
			t.Errorf("verify %s: exit %d\n%s%s", unit, r.exit, r.stdout, r.stderr)
		}
	}
	s, r := evidence(t, "served.service")
	if s.Holds == attach.Yes || r.exit == 0 {
		t.Errorf("its evidence holds, although its program cannot be looked at: exit %d\n%s", r.exit, r.stdout)
	}
	if s, r := evidence(t, "beside.service"); s.Holds != attach.Yes {
		t.Errorf("the evidence of another: exit %d\n%s", r.exit, r.stdout)
	}
	// The profile lets the program be read, and not what stops it, which may be a script.
	if r := ctl(t, "check", "served"); !strings.Contains(r.stdout, filepath.Join(mnt, "stop")) || r.exit != 0 && r.exit != 5 {
		t.Errorf("check: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	run(t, "pkill", "-CONT", "-x", "bindfs")
}
