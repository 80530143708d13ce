//go:build vm && long

package guest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// swapping replaces a file with each of the texts in turn, as fast as it can.
func swapping(t testing.TB, path string, texts ...string) (stop func()) {
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for n := 0; ; n++ {
			select {
			case <-end:
				return
			default:
			}
			tmp := filepath.Join(filepath.Dir(path), ".swap.tmp")
			if err := os.WriteFile(tmp, []byte(texts[n%len(texts)]), 0o644); err != nil {
				t.Error(err)
				return
			}
			if err := os.Rename(tmp, path); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return func() {
		close(end)
		<-ended
	}
}

// TestWhatWasCheckedGoesLive has a profile, and then a file that it includes,
// swapped all the time for one that the checks refuse: between reading, compiling,
// checking and loading it. What is refused never goes live.
func TestWhatWasCheckedGoesLive(t *testing.T) {
	a := newAgents(t)
	const unit, profile, local = "swapped.service", "swapped", "/etc/apparmor.d/local/swapped"
	good, bad := profileText(profile, "include <local/swapped>"), profileText(profile, "include <local/swapped>", "/** rw,")
	const goodLocal, badLocal = "/etc/hostname r,\n", "/etc/cron.d/* w,\n"
	// What the kernel says of each.
	forbidden := map[string]string{}
	a.File(local, badLocal, 0o644)
	a.Profile(profile, good)
	forbidden[checksum(t, profile)] = "the include that is refused"
	a.File(local, goodLocal, 0o644)
	a.Profile(profile, bad)
	forbidden[checksum(t, profile)] = "the profile that is refused"
	a.Profile(profile, good)
	if len(forbidden) != 2 || forbidden[checksum(t, profile)] != "" || forbidden[""] != "" {
		t.Fatalf("the checksums do not tell them apart: %v", forbidden)
	}
	a.Unit(unit, a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", unit)
	if r := ctl(t, "attach", "swapped", "--settle", "0s"); r.exit != 0 {
		t.Fatalf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// Looks all the time at what is live.
	looks, end, ended := 0, make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			case <-time.After(2 * time.Millisecond):
			}
			found, _ := filepath.Glob("/sys/kernel/security/apparmor/policy/profiles/" + profile + ".*/sha*")
			for _, file := range found {
				// It may go while it is looked at, when it is replaced.
				if sum, err := os.ReadFile(file); err == nil {
					looks++
					if what := forbidden[strings.TrimSpace(string(sum))]; what != "" {
						t.Errorf("%s was live", what)
						return
					}
				}
			}
		}
	}()
	refused, taken := 0, 0
	for _, swap := range []struct {
		path  string
		texts []string
	}{{"/etc/apparmor.d/" + profile, []string{good, bad}}, {local, []string{goodLocal, badLocal}}} {
		stop := swapping(t, swap.path, swap.texts...)
		for range 6 {
			out, r := outcomes(t, "attach", "swapped", "--settle", "0s")
			if r.exit == 0 {
				taken++
			} else if len(out[unit].Reasons) > 0 {
				refused++
			}
		}
		stop()
		a.File(swap.path, swap.texts[0], 0o644)
	}
	close(end)
	<-ended
	t.Logf("%d attaches were refused, %d were made; %d looks at what was live", refused, taken, looks)
	if looks < 100 || refused == 0 {
		t.Errorf("%d looks, %d refusals: this shows nothing", looks, refused)
	}
	waitConfined(t, unit, profile)
}
