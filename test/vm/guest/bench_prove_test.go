//go:build vm

package guest

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// How much of what policy is asked is measured.
const (
	gateRounds  = 3
	checkRounds = 7
	proofRounds = 7
	largestOf   = 12 // files with the longest texts are compiled to find it
)

// gate compares attaching units with all checks with attaching them without: by a
// daemon that has no gate, and cannot ask the kernel. Both are the build for tests.
func (s *benchScene) gate(b *testing.B, r *results) {
	names := s.names[:attachUnits]
	b.Cleanup(func() {
		os.RemoveAll("/etc/systemd/system/aaunitd.service.d")
		try0("systemctl", "daemon-reload")
		try0("systemctl", "restart", "aaunitd.service")
	})
	attach := func(how, more string) func() float64 {
		return func() float64 {
			s.Dropin("aaunitd.service", "bench.conf", fmt.Sprintf("[Service]\nExecStart=\nExecStart=%s\nEnvironment=AAUNITD_BENCH=%s\n%s", payload(b, "aaunitd-crash"), how, more))
			s.Reload()
			run(b, "systemctl", "restart", "aaunitd.service")
			s.profiles()
			rest(b)
			took := timed(b, "aaunitctl", append([]string{"attach", "--settle", "0s"}, names...)...)
			run(b, "aaunitctl", append([]string{"detach"}, names...)...)
			return took
		}
	}
	without, with := compare(gateRounds, attach("unchecked", "InaccessiblePaths=/sys/kernel/security/apparmor/.access\n"), attach("checked", ""))
	ratio := median(with) / median(without)
	r.add(row{Name: "gate", What: fmt.Sprintf("attach %d units with all checks, by the same without", attachUnits), Unit: "s",
		Baseline: median(without), Product: median(with), Ratio: ratio, Target: "at most 1.5", Met: atMost(ratio, 1.5),
		Samples: map[string][]float64{"without": without, "with": with}})
}

// check compares a check of a profile with compiling it, each time of a text that
// nobody has seen.
func (s *benchScene) check(b *testing.B, r *results) {
	n := 0
	small := func() string {
		n++
		return s.ProfileFile("checked", profileText("checked")+fmt.Sprintf("# %d\n", n))
	}
	big := largest(b, corpora(b))
	text := read(b, big)
	large := func() string {
		n++
		if err := os.WriteFile(big, []byte(text+fmt.Sprintf("\n# %d\n", n)), 0o644); err != nil {
			b.Fatal(err)
		}
		return big
	}
	for _, c := range []struct {
		name, what string
		file       func() string
	}{{"check", "check a profile", small}, {"check-largest", "check the largest of Debian's (" + big + ")", large}} {
		parser, ours := compare(checkRounds, func() float64 {
			file := c.file()
			rest(b)
			return timed(b, "apparmor_parser", "-Q", "-K", file)
		}, func() float64 {
			file := c.file()
			rest(b)
			return timedAnyway(b, "aaunitctl", "check", file)
		})
		ratio := median(ours) / median(parser)
		r.add(row{Name: c.name, What: c.what + ", by apparmor_parser -Q -K", Unit: "s", Baseline: median(parser), Product: median(ours), Ratio: ratio,
			Target: "at most 2", Met: atMost(ratio, 2), Samples: map[string][]float64{"parser": parser, "aaunit": ours}})
	}
}

// proof measures questions about a pattern that were not asked before, of policies
// that are compiled already, and the memory that they take at most.
func (s *benchScene) proof(b *testing.B, r *results) {
	files := corpora(b)
	big := largest(b, files)
	waitIdle(b)
	for _, c := range []struct {
		name, what string
		args       []string
		rounds     int
	}{
		{"proof", "a proof over a pattern of the largest of Debian's profiles (" + big + ")", []string{"query", big}, proofRounds},
		{"proof-all", fmt.Sprintf("the same of all profiles of %d files", len(files)), []string{"query", "--all"}, 3},
	} {
		first := timedAnyway(b, "aaunitctl", append(c.args, "link /srv/first/[^a]**")...)
		rest(b)
		pid := show(b, "aaunitd.service", "MainPID")
		before := peakAnew(b, pid)
		var took []float64
		for n := range c.rounds {
			took = append(took, timedAnyway(b, "aaunitctl", append(c.args, fmt.Sprintf("link /srv/%d/[^a]**", n))...))
		}
		peak := field(b, "/proc/"+pid+"/status", "VmHWM") / 1024
		r.add(row{Name: c.name, What: c.what + ", beside the first with compiling", Unit: "s", Baseline: first, Product: median(took), Samples: map[string][]float64{"took": took}})
		r.add(row{Name: c.name + "-memory", What: "the memory of aaunitd at most meanwhile, by that before", Unit: "MiB", Baseline: before, Product: peak})
	}
}

// timedAnyway is timed for a command whose exit status says what it has found.
func timedAnyway(b *testing.B, name string, args ...string) (took float64) {
	b.Helper()
	return stopwatch(func() {
		if r := try(b, name, args...); r.exit != 0 && r.exit != 3 && r.exit != 5 || r.stdout == "" {
			b.Fatalf("%s %q: exit %d\n%s%s", name, args, r.exit, r.stdout, r.stderr)
		}
	})
}

// largest finds the profile with the largest compiled policy.
func largest(b *testing.B, files []string) string {
	b.Helper()
	size := func(f string) int64 {
		if i, err := os.Stat(f); err == nil {
			return i.Size()
		}
		return 0
	}
	files = slices.SortedFunc(slices.Values(files), func(x, y string) int { return cmp.Compare(size(y), size(x)) })
	best, most := "", 0
	for _, f := range files[:min(largestOf, len(files))] {
		out, err := exec.Command("apparmor_parser", "-Q", "-K", "-S", f).Output()
		if err == nil && len(out) > most && !strings.HasSuffix(f, ".dpkg-new") {
			best, most = f, len(out)
		}
	}
	if best == "" {
		b.Fatal("none compiles")
	}
	b.Logf("%s has %d bytes when compiled", best, most)
	return best
}
