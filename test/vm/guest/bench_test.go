//go:build vm

package guest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// benchUnits is how many units are attached in one go.
const benchUnits = 10

// benchScene makes units with profiles of their own, running and unconfined.
func benchScene(b *testing.B) (a *agents, names []string) {
	a = newAgents(b)
	for i := range benchUnits {
		name := fmt.Sprintf("bench%02d", i)
		names = append(names, name)
		a.ProfileFile(name, profileText(name))
		a.Unit(name+".service", a.agentUnit())
	}
	a.Reload()
	run(b, "systemctl", append([]string{"start"}, names...)...)
	return a, names
}

// byHand writes what aaunit writes; one load, reload and restart for all units,
// or one of each for every unit.
func byHand(b *testing.B, names []string, together bool) time.Duration {
	begun := time.Now()
	write := func(n string) {
		dir := "/etc/systemd/system/" + n + ".service.d"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(dir+"/90-hand.conf", []byte("[Unit]\nAssertSecurity=apparmor\n[Service]\nAppArmorProfile="+n+"\nPrivateTmp=yes\n"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	load := []string{"--replace", "--skip-read-cache"}
	if together {
		files := load
		for _, n := range names {
			write(n)
			files = append(files, "/etc/apparmor.d/"+n)
		}
		run(b, "apparmor_parser", files...)
		run(b, "systemctl", "daemon-reload")
		run(b, "systemctl", append([]string{"restart"}, names...)...)
		return time.Since(begun)
	}
	for _, n := range names {
		write(n)
		run(b, "apparmor_parser", append(load, "/etc/apparmor.d/"+n)...)
		run(b, "systemctl", "daemon-reload")
		run(b, "systemctl", "restart", n)
	}
	return time.Since(begun)
}

// undoByHand takes byHand's work back, so that the next way begins as it did.
func undoByHand(b *testing.B, names []string) {
	for _, n := range names {
		os.RemoveAll("/etc/systemd/system/" + n + ".service.d")
	}
	run(b, "systemctl", "daemon-reload")
	run(b, "systemctl", append([]string{"restart"}, names...)...)
	for _, n := range names {
		if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(n), 0); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAttach compares attaching ten units by attachment files (SettleSec=0,
// proof included) with the least that must be done for it, and with the usual
// script that does everything unit by unit.
func BenchmarkAttach(b *testing.B) {
	a, names := benchScene(b)
	var floor, script, ours time.Duration
	for range b.N {
		floor += byHand(b, names, true)
		undoByHand(b, names)
		script += byHand(b, names, false)
		undoByHand(b, names)
		begun := time.Now()
		var files []string
		for _, n := range names {
			files = append(files, a.attachmentFile(n+".conf", fmt.Sprintf("[Attachment]\nUnit=%s.service\nProfile=%s\nSettleSec=0\n", n, n)))
		}
		waitFor(b, "all confined", func() (bool, string) {
			rep, r := report(b, "status")
			n := 0
			for _, u := range rep.Units {
				if u.Verdict != nil && u.Verdict.Answer == attach.Confined && !u.Busy && strings.HasPrefix(u.Unit, "bench") {
					n++
				}
			}
			return n == len(names), r.stdout
		})
		ours += time.Since(begun)
		for _, f := range files {
			os.Remove(f)
		}
		waitFor(b, "the detach", func() (bool, string) {
			_, r := report(b, "status")
			return !strings.Contains(r.stdout, "bench"), r.stdout
		})
	}
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/attach")
	b.ReportMetric(ours.Seconds()/floor.Seconds(), "x-floor")
	b.ReportMetric(script.Seconds()/ours.Seconds(), "x-faster-than-script")
}

// BenchmarkVerify compares looking at ten attached units with aa-status, which
// lists labels of processes and proves less.
func BenchmarkVerify(b *testing.B) {
	_, names := benchScene(b)
	if r := ctl(b, append([]string{"attach"}, names...)...); r.exit != 0 {
		b.Fatalf("%s%s", r.stdout, r.stderr)
	}
	var ours, theirs time.Duration
	for range b.N {
		begun := time.Now()
		run(b, "aaunitctl", "verify", "--all")
		ours += time.Since(begun)
		begun = time.Now()
		if err := exec.Command("aa-status", "--json").Run(); err != nil {
			b.Fatal(err)
		}
		theirs += time.Since(begun)
	}
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/verify")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "x-aa-status")
}
