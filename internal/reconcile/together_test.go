package reconcile

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestVeryManyUnitsAreTakenOnInParts: what is known of the units of a pass is held
// until its end, and so long does everybody wait who asks for something.
func TestVeryManyUnitsAreTakenOnInParts(t *testing.T) {
	w := newWorld()
	w.passUnits, w.tells = 20, true
	const units = 45
	for i := range units {
		w.declareUnit(fmt.Sprintf("/etc/aaunit/attachments.d/%03d.conf", i), w.addUnit(fmt.Sprintf("u%03d.service", i)).name, nil)
	}
	w.addUnit("mine.service")
	asked, answered := false, make(chan []attach.Outcome, 1)
	w.onCall = func(c string) {
		if !asked && strings.HasPrefix(c, "load ") {
			asked = true
			go func() {
				out, _ := w.daemon.Attach(context.Background(), attach.Request{Units: []string{"mine"}}, nil)
				answered <- out
			}()
		}
	}
	w.run(t, func(l *Loop) {
		rest()
		for i := range units {
			if got := answer(l, fmt.Sprintf("u%03d", i)); got != "confined" {
				t.Errorf("u%03d is %s", i, got)
			}
		}
		if out := <-answered; len(out) != 1 || out[0].Exit != attach.ExitOK {
			t.Errorf("the attach that came meanwhile: %+v", out)
		}
	})
	var loads []string
	for _, c := range w.trace {
		if strings.HasPrefix(c, "load ") {
			loads = append(loads, c)
		}
	}
	// The attach, three parts, each once more, and what their reloads make due.
	if n := w.daemon.passes.Count; n > 12 {
		t.Errorf("%d passes", n)
	}
	if want := []string{"load 20", "load 1", "load 20", "load 5"}; !slices.Equal(loads, want) || w.calls["reload"] != len(want) || w.calls["restart"] != units+1 {
		t.Errorf("%q, and calls %v; want %q: the attach that came meanwhile after the first part", loads, w.calls, want)
	}
}

func TestUnitsThatBelongTogetherAreTakenOnTogether(t *testing.T) {
	l := newWorld().loop()
	var due []string
	add := func(n int, of string, a attach.Attachment) {
		for i := range n {
			unit := fmt.Sprintf("%03d-%s.service", i, of) // sorted, they lie among each other
			one := a
			if one.Source == "" {
				one.Source = "/etc/aaunit/attachments.d/" + unit + ".conf"
			}
			l.targets[unit] = &one
			due = append(due, unit)
		}
	}
	add(DefaultPassUnits+10, "template", attach.Attachment{Source: "/etc/aaunit/attachments.d/t.conf", Profile: "t-%i"})
	add(60, "profile", attach.Attachment{Profile: "p"})
	add(60, "file", attach.Attachment{Profile: "%p", ProfileFile: "/etc/apparmor.d/f"})
	add(60, "kept", attach.Attachment{Profile: "%p"})
	add(60, "place", attach.Attachment{Profile: "%p"})
	for unit := range l.targets {
		if strings.HasSuffix(unit, "-kept.service") {
			l.records[unit] = attach.Record{Unit: unit, Policies: map[string]string{"/etc/apparmor.d/k": "1"}}
		}
		if strings.HasSuffix(unit, "-place.service") {
			l.records[unit] = attach.Record{Unit: unit, DropIns: attach.Sums{{Path: "/etc/systemd/system/place@.service.d/90-aaunit.conf", Sum: "1"}}}
		}
	}
	// Two of them are in the same file, which only what was published says.
	l.statuses["000-profile.service"] = &attach.Status{ProfileFile: "/etc/apparmor.d/both"}
	l.statuses["000-kept.service"] = &attach.Status{ProfileFile: "/etc/apparmor.d/both"}
	add(60, "single", attach.Attachment{Profile: "%p"})
	slices.Sort(due)

	kind := func(unit string) string {
		_, kind, _ := strings.Cut(strings.TrimSuffix(unit, ".service"), "-")
		return kind
	}
	left := map[string]int{}
	for _, u := range due {
		left[kind(u)]++
	}
	for round := 0; len(due) > 0; round++ {
		if round > 10 {
			t.Fatalf("%d are left after %d passes", len(due), round)
		}
		now := l.together(due, map[string]bool{})
		taken := map[string]int{}
		for _, u := range now {
			taken[kind(u)]++
		}
		for _, group := range [][]string{{"template"}, {"profile", "kept"}, {"file"}, {"place"}} {
			for _, k := range group {
				if n := taken[k]; n != 0 && n != left[k] || n == 0 != (taken[group[0]] == 0) {
					t.Errorf("pass %d takes %v; %q belong together", round, taken, group)
				}
			}
		}
		if len(now) == 0 || len(now) > DefaultPassUnits && taken["template"] == 0 {
			t.Errorf("pass %d takes %d units: %v", round, len(now), taken)
		}
		due = slices.DeleteFunc(due, func(u string) bool { return slices.Contains(now, u) })
	}
}

// TestNoUnitIsPassedOver: units that are due again before others came are not
// taken before those.
func TestNoUnitIsPassedOver(t *testing.T) {
	l := newWorld().loop()
	var due []string
	for i := range 3 * DefaultPassUnits {
		unit := fmt.Sprintf("u%03d.service", i)
		due = append(due, unit)
		if i < DefaultPassUnits+20 {
			l.targets[unit] = &attach.Attachment{Source: "/etc/aaunit/attachments.d/many.conf", Profile: "%p"}
		}
	}
	for turn := range 2 {
		seen := map[string]bool{}
		for range 3 {
			for _, u := range l.together(due, map[string]bool{}) {
				seen[u] = true
			}
		}
		if len(seen) != len(due) {
			t.Errorf("turn %d: three passes took %d of %d units", turn, len(seen), len(due))
		}
	}
}

// TestWhatCannotWaitComesFirst: before units that have yet to be looked at, those
// whose policy is gone and those at which something was begun.
func TestWhatCannotWaitComesFirst(t *testing.T) {
	w := newWorld()
	l := w.loop()
	var due []string
	for i := range 4 * DefaultPassUnits {
		due = append(due, fmt.Sprintf("u%03d.service", i))
	}
	urgent := map[string]bool{"u700.service": true}
	l.targets["u701.service"] = &attach.Attachment{Source: "/etc/aaunit/attachments.d/two.conf", Profile: "%p"}
	l.targets["u702.service"] = &attach.Attachment{Source: "/etc/aaunit/attachments.d/two.conf", Profile: "%p"}
	in := attach.Sums{{Path: attach.DropInPath("x", false), Sum: "1"}}
	l.records["u701.service"] = attach.Record{Unit: "u701.service", DropIns: in, Accepted: map[string]string{"u701": "1"}}
	l.records["u703.service"] = attach.Record{Unit: "u703.service", DropIns: in, Trial: &attach.Trial{}}
	l.records["u704.service"] = attach.Record{Unit: "u704.service", Accepted: map[string]string{"u704": "1"}} // not attached yet
	in = attach.Sums{{Path: attach.DropInPath("y", false), Sum: "1"}}
	for _, live := range []string{"u705", "u706"} {
		w.kernel[live] = live
		checksums, err := l.apparmor.Live([]string{live})
		if err != nil {
			t.Fatal(err)
		}
		l.records[live+".service"] = attach.Record{Unit: live + ".service", Accepted: map[string]string{live: checksums[live].Checksum}, DropIns: attach.Sums{{Path: attach.DropInPath(live, false), Sum: "1"}}}
	}
	l.records["u703.service"] = attach.Record{Unit: "u703.service", DropIns: in, Trial: &attach.Trial{}}
	first := l.together(due, urgent)
	if want := DefaultPassUnits + 4; len(first) != want {
		t.Errorf("the first pass has %d units, want %d", len(first), want)
	}
	for unit, want := range map[string]bool{"u700": true, "u701": true, "u702": true, "u703": true, "u704": false, "u705": false, "u706": false} {
		if got := slices.Contains(first, unit+".service"); got != want {
			t.Errorf("%s in the first pass: %v, want %v", unit, got, want)
		}
	}
	for _, unit := range due {
		urgent[unit] = true
	}
	if all := l.together(due, urgent); len(all) != len(due) {
		t.Errorf("of %d units that cannot wait %d are taken on", len(due), len(all))
	}
}

// TestAllWhosePolicyIsGoneGetItBackAtOnce: however many they are, and although the
// units of the first part would be waited for.
func TestAllWhosePolicyIsGoneGetItBackAtOnce(t *testing.T) {
	w := newWorld()
	w.passUnits, w.tells = 20, true
	const units = 45
	for i := range units {
		w.declareUnit(fmt.Sprintf("/etc/aaunit/attachments.d/%03d.conf", i), w.addUnit(fmt.Sprintf("u%03d.service", i)).name, nil)
	}
	w.run(t, func(l *Loop) {
		rest()
		for round := range 2 {
			w.mu.Lock()
			clear(w.kernel)
			before := w.calls["load"]
			w.mu.Unlock()
			w.tellPolicy()
			rest()
			w.mu.Lock()
			if loads := w.calls["load"] - before; loads != 1 {
				t.Errorf("round %d: %d loads, want one", round, loads)
			}
			for i := range units {
				if _, loaded := w.kernel[fmt.Sprintf("u%03d", i)]; !loaded {
					t.Errorf("round %d: u%03d has no policy", round, i)
				}
			}
			w.mu.Unlock()
		}
		// All of them are withdrawn, in parts.
		w.mu.Lock()
		clear(w.att)
		passes := l.passes.Count
		w.mu.Unlock()
		w.tellFiles()
		rest()
		rest()
		if n := l.passes.Count - passes; n > 10 || len(w.records) != 0 || len(w.kernel) != 0 {
			t.Errorf("after %d passes there are %d records, and %d profiles are loaded", n, len(w.records), len(w.kernel))
		}
	})
}

// A thousand records do not keep one policy a thousand times, and what becomes of one
// is nothing to the others.
func TestRecordsShareTheirPolicy(t *testing.T) {
	l := newWorld().loop()
	record := func(unit, sum string) attach.Record {
		return attach.Record{Unit: unit, Profile: "agent", Accepted: map[string]string{"agent": sum}, Policies: map[string]string{"/etc/apparmor.d/agent": "id of " + sum}}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, unit := range []string{"a.service", "b.service", "c.service"} {
		l.put(record(unit, "1"))
	}
	at := func(m map[string]string) uintptr { return reflect.ValueOf(m).Pointer() }
	a, c := l.records["a.service"], l.records["c.service"]
	if at(a.Accepted) != at(c.Accepted) || at(a.Policies) != at(c.Policies) {
		t.Error("each record has its own")
	}
	l.put(record("b.service", "2"))
	l.put(record("d.service", "2"))
	for unit, sum := range map[string]string{"a.service": "1", "b.service": "2", "c.service": "1", "d.service": "2"} {
		if got := l.records[unit]; !reflect.DeepEqual(got, record(unit, sum)) {
			t.Errorf("%s: %+v", unit, got)
		}
	}
}
