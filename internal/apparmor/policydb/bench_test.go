package policydb

import (
	"testing"
)

// large is a profile of a real size.
const large = `include <tunables/global>
profile large {
  include <abstractions/base>
  include <abstractions/nameservice>
  include <abstractions/openssl>
  include <abstractions/python>
  include <abstractions/fonts>
  include <abstractions/user-tmp>
  include <abstractions/ssl_certs>
  include <abstractions/X>
  include <abstractions/audio>
  owner @{HOME}/** rw,
  deny @{HOME}/.ssh/** rwx,
  /usr/bin/* ix,
  /usr/lib/** mr,
}`

var paths = [...]string{
	"/etc/passwd", "/usr/lib/x86_64-linux-gnu/libc.so.6", "/home/somebody/.config/app/settings.ini", "/proc/self/status",
	"/var/lib/application/data/0001/records.db", "/tmp/x", "/usr/bin/python3", "/dev/null",
}

// A single answer allocates nothing.
func TestNoAllocation(t *testing.T) {
	p := parse(t, sample)
	for name, f := range map[string]func(){
		"File":       func() { p.File("/home/a/b", Owner) },
		"Either":     func() { p.File("/home/a/b", Either) },
		"Allows":     func() { p.Allows("/etc/passwd", Read, Either) },
		"Exec":       func() { p.Exec("/x/named", Other) },
		"Network":    func() { p.Network(2, 1, AllNet) },
		"Signal":     func() { p.Signal(9, "friend", SignalSend) },
		"Capability": func() { p.Capability(12) },
		"Change":     func() { p.MayChangeProfile("worker") },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

func BenchmarkFile(b *testing.B) {
	p := parse(b, large)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		p.File(paths[i&7], Other)
		i++
	}
}

func BenchmarkNetwork(b *testing.B) {
	p := parse(b, sample)
	b.ReportAllocs()
	for b.Loop() {
		p.Network(2, 1, AllNet)
	}
}

func BenchmarkParse(b *testing.B) {
	blob := compile(b, large)
	b.SetBytes(int64(len(blob)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Parse(blob); err != nil {
			b.Fatal(err)
		}
	}
}

// A proof that needs most of the product: links are allowed elsewhere.
func BenchmarkProof(b *testing.B) {
	p := parse(b, large)
	q := Query{Pattern: pattern(b, "/[^t]**"), Any: Link, As: Other}
	b.ReportAllocs()
	states := 0
	for b.Loop() {
		r := p.Find(q)
		if r.Answer != No {
			b.Fatal(r)
		}
		states = r.States
	}
	b.ReportMetric(float64(states), "states")
}

func BenchmarkWitness(b *testing.B) {
	p := parse(b, large)
	q := Query{Pattern: pattern(b, "/home/*/**"), Any: Write}
	for b.Loop() {
		if r := p.Find(q); r.Answer != Yes {
			b.Fatal(r)
		}
	}
}
