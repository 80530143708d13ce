package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestVeryManyUnitsAreTakenOnInParts: what is known of the units of a pass is held
// until its end, and so long does everybody wait who asks for something.
func TestVeryManyUnitsAreTakenOnInParts(t *testing.T) {
	w := newWorld()
	const units = 450
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
	if want := []string{"load 200", "load 1", "load 200", "load 50"}; !slices.Equal(loads, want) || w.calls["reload"] != len(want) || w.calls["restart"] != units+1 {
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
	add(passUnits+10, "template", attach.Attachment{Source: "/etc/aaunit/attachments.d/t.conf", Profile: "t-%i"})
	add(60, "profile", attach.Attachment{Profile: "p"})
	add(60, "file", attach.Attachment{Profile: "%p", ProfileFile: "/etc/apparmor.d/f"})
	add(60, "kept", attach.Attachment{Profile: "%p"})
	for unit := range l.targets {
		if strings.HasSuffix(unit, "-kept.service") {
			l.records[unit] = attach.Record{Unit: unit, Policies: map[string]string{"/etc/apparmor.d/k": "1"}}
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
		now := l.together(due)
		taken := map[string]int{}
		for _, u := range now {
			taken[kind(u)]++
		}
		for _, group := range [][]string{{"template"}, {"profile", "kept"}, {"file"}} {
			for _, k := range group {
				if n := taken[k]; n != 0 && n != left[k] || n == 0 != (taken[group[0]] == 0) {
					t.Errorf("pass %d takes %v; %q belong together", round, taken, group)
				}
			}
		}
		if len(now) == 0 || len(now) > passUnits && taken["template"] == 0 {
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
	for i := range 3 * passUnits {
		due = append(due, fmt.Sprintf("u%03d.service", i))
	}
	seen := map[string]bool{}
	for range 3 {
		for _, u := range l.together(due) {
			seen[u] = true
		}
	}
	if len(seen) != len(due) {
		t.Errorf("three passes took %d of %d units", len(seen), len(due))
	}
}
