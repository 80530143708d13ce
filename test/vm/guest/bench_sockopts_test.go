//go:build vm

package guest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/aaunit/aaunit/internal/sockopt"
)

// How much of socket options is measured.
const (
	httpRequests = 500
	httpRounds   = 15
	loopCalls    = 200_000
	straceCalls  = 2_000 // each takes that much longer
	loopRounds   = 7
	readKinds    = 1_000
	readRounds   = 25
)

// sockopts measures what the recorder of socket options costs a unit: on connections
// as programs make them, and on a call alone, beside strace; and how long its table
// is read.
//
// The unit has its profile from its own file, and its programs are attached by the
// library and not by aaunitd, which would work beside what is measured. They are the
// same programs.
func (s *benchScene) sockopts(b *testing.B, r *results) {
	const unit, straced = "sockbench.service", "sockbench-strace.service"
	address, stracedAddress := port(7061), port(7062)
	own := newScene(b)
	own.Profile("sockbench", profileText("sockbench"))
	own.Unit(unit, "[Service]\nAppArmorProfile=sockbench\nPrivateTmp=yes\nExecStart=/usr/local/bin/vm-agent -listen "+address+"\n")
	// Not confined: that is in strace's favour.
	own.Unit(straced, "[Service]\nExecStart=/usr/bin/strace -f -e trace=setsockopt,getsockopt -o /dev/null /usr/local/bin/vm-agent -listen "+stracedAddress+"\n")
	own.Reload()
	run(b, "systemctl", "start", unit, straced)
	for _, a := range []string{address, stracedAddress} {
		if got := ask(b, a, "ping"); got != "ok pong" {
			b.Fatalf("the agent at %s: %s", a, got)
		}
	}
	if lie := truth(b, unit, "sockbench"); lie != "" {
		b.Fatal(lie)
	}

	system, group := sockopt.New(sockopt.Options{}), show(b, unit, "ControlGroup")
	b.Cleanup(func() {
		if _, err := system.Remove(unit); err != nil {
			b.Error(err)
		}
	})
	record := func(mode sockopt.Mode) {
		b.Helper()
		if _, err := system.Attach(group, unit, sockopt.Rules{Mode: mode}); err != nil {
			b.Fatal(err)
		}
	}
	// counted is how many calls of the unit were seen so far.
	counted := func() (calls float64) {
		b.Helper()
		rec, err := system.Read(unit)
		if err != nil {
			b.Fatal(err)
		}
		for _, seen := range rec.Seen {
			calls += float64(seen.Allowed)
		}
		return calls
	}
	// seconds is how long an agent says that something took it.
	seconds := func(address, request string) float64 {
		b.Helper()
		answer := ask(b, address, request)
		ns, err := strconv.ParseFloat(strings.TrimPrefix(answer, "ok "), 64)
		if err != nil || ns <= 0 {
			b.Fatalf("the agent answers to %q: %s", request, answer)
		}
		return ns / 1e9
	}
	record(sockopt.Record) // from now on there are tables
	rest(b)

	var calls []float64
	load := func(mode sockopt.Mode) func() float64 {
		return func() float64 {
			record(mode)
			// An emulated machine translates anew what was changed in the kernel.
			seconds(address, "httpload 20")
			before := counted()
			took := seconds(address, fmt.Sprintf("httpload %d", httpRequests))
			seen := counted() - before
			// Go's library makes some ten calls for each.
			if mode == sockopt.Record {
				calls = append(calls, seen)
				if seen < 5*httpRequests {
					b.Fatalf("%v calls of %d connections were recorded", seen, httpRequests)
				}
			} else if seen != 0 {
				b.Fatalf("%v calls were recorded although it is off", seen)
			}
			return took
		}
	}
	off, on := compare(httpRounds, load(sockopt.Off), load(sockopt.Record))
	ratio := median(on) / median(off)
	r.add(row{Name: "sockopts-http", What: fmt.Sprintf("%d HTTP requests on connections of their own with socket options recorded, by the same without", httpRequests), Unit: "s",
		Baseline: median(off), Product: median(on), Ratio: ratio, Target: "at most 1.15", Met: atMost(ratio, 1.15),
		Samples: map[string][]float64{"off": off, "record": on, "calls recorded": calls}})

	nanoseconds := func(address string, calls int) float64 {
		b.Helper()
		return seconds(address, fmt.Sprintf("sockloop %d", calls)) * 1e9 / float64(calls)
	}
	var plain, recorded, traced []float64
	for range loopRounds {
		record(sockopt.Off)
		plain = append(plain, nanoseconds(address, loopCalls))
		record(sockopt.Record)
		recorded = append(recorded, nanoseconds(address, loopCalls))
		traced = append(traced, nanoseconds(stracedAddress, straceCalls))
	}
	samples := map[string][]float64{"plain": plain, "record": recorded, "strace": traced}
	r.add(row{Name: "sockopts-call", What: "one setsockopt call, recorded, by one that is not", Unit: "ns",
		Baseline: median(plain), Product: median(recorded), Ratio: median(recorded) / median(plain), Samples: samples})
	r.add(row{Name: "sockopts-strace", What: "the same, times faster than under strace -f", Unit: "ns",
		Baseline: median(traced), Product: median(recorded), Ratio: median(traced) / median(recorded), Samples: samples})

	// Options that there are not are recorded, too.
	for n := range readKinds {
		ask(b, address, fmt.Sprintf("setsockopt 1 %d 1", 1000+n))
	}
	table, err := ebpf.LoadPinnedMap(pins(unit)+"/seen", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer table.Close()
	kinds := 0
	reading := func(read func(*ebpf.Map) (int, error)) func() float64 {
		return func() float64 {
			var n int
			var err error
			took := stopwatch(func() { n, err = read(table) })
			if err != nil || n < readKinds || kinds != 0 && n != kinds {
				b.Fatalf("%d kinds of call were read, and %d before: %v", n, kinds, err)
			}
			kinds = n
			return took
		}
	}
	each, batch := compare(readRounds, reading(readEach), reading(readBatch))
	r.add(row{Name: "sockopts-read", What: fmt.Sprintf("read %d kinds of call of a unit in one batch, by one after the other", kinds), Unit: "s",
		Baseline: median(each), Product: median(batch), Ratio: median(batch) / median(each), Samples: map[string][]float64{"each": each, "batch": batch}})
	var whole []float64
	for range readRounds {
		whole = append(whole, stopwatch(func() { counted() }))
	}
	r.add(row{Name: "sockopts-read-all", What: "the same as aaunitd reads it, with the rules", Unit: "s", Product: median(whole), Samples: map[string][]float64{"took": whole}})
}

// The table's entries as they are in the kernel (internal/sockopt/bpf).
type (
	seenKey   [20]byte
	seenValue [120]byte
)

// readBatch reads the table as internal/sockopt does, in one call.
func readBatch(m *ebpf.Map) (int, error) {
	keys, values := make([]seenKey, sockopt.MaxSeen), make([]seenValue, sockopt.MaxSeen)
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, keys, values, &ebpf.BatchOptions{ElemFlags: uint64(ebpf.LookupLock)})
	if errors.Is(err, ebpf.ErrKeyNotExist) { // that was the last
		err = nil
	}
	return n, err
}

// readEach reads it as internal/sockopt does on a kernel that has no such call.
func readEach(m *ebpf.Map) (int, error) {
	var keys []seenKey
	var values []seenValue
	var key seenKey
	var value seenValue
	it := m.Iterate()
	for it.Next(&key, &value) {
		if err := m.LookupWithFlags(key, &value, ebpf.LookupLock); err != nil {
			return 0, err
		}
		keys, values = append(keys, key), append(values, value)
	}
	return min(len(keys), len(values)), it.Err()
}
