package reconcile

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestWordsSelectUnits(t *testing.T) {
	l := newWorld().loop()
	for _, unit := range []string{"a.service", "ab.service", `a\x2db.service`, "b@1.service", "b@.service", "c.timer", "real.service"} {
		l.statuses[unit] = &attach.Status{Unit: unit}
	}
	l.targets["new.service"] = &attach.Attachment{}
	l.alias["other.service"] = "real.service"
	for _, c := range []struct {
		words   string
		want    string
		missing string
	}{
		{"", `a.service a\x2db.service ab.service b@.service b@1.service c.timer new.service real.service`, ""},
		{"a", "a.service", ""},
		{"a.service a a*.timer", "a.service", "a*.timer"},
		{"none a none", "a.service", "none none"},
		{"new", "new.service", ""},
		{"b@ c.timer", "b@.service c.timer", ""},
		{"other", "real.service", ""},
		{"real other", "real.service", ""},
		{"a*", `a.service a\x2db.service ab.service`, ""},
		{"a?", "ab.service", ""},
		{"a?.service", "ab.service", ""},
		{`a\x2d*`, `a\x2db.service`, ""},
		{"[!a]*", "b@.service b@1.service c.timer new.service real.service", ""},
		{"[^a]*r", "c.timer", ""},
		{"?[b]", "ab.service", ""},
		{"oth*", "", "oth*"},
		{"[a a/b ..", "", "[a a/b .."},
		{"x* a* n*", `a.service a\x2db.service ab.service new.service`, "x*"},
	} {
		r, missing := l.known(strings.Fields(c.words))
		var got []string
		for _, s := range slices.Concat(r.Units, r.Patterns) {
			got = append(got, s.Unit)
		}
		slices.Sort(got)
		if got := strings.Join(got, " "); got != c.want || strings.Join(missing, " ") != c.missing {
			t.Errorf("%q selects %q and misses %q, want %q and %q", c.words, got, missing, c.want, c.missing)
		}
	}
}

// Globs that take long to match hold up nobody but who sent them.
func TestGlobsAreMatchedWhileTheLoopGoesOn(t *testing.T) {
	l := newWorld().loop()
	for i := range 40 {
		unit := fmt.Sprintf("unit-of-some-length-%d.service", i)
		l.statuses[unit] = &attach.Status{Unit: unit}
		l.targets[unit] = &attach.Attachment{Units: []string{unit}, Profile: "p"}
	}
	slow := slices.Repeat([]string{"*[" + strings.Repeat("b", 400) + "]"}, 20)
	for name, ask := range map[string]func(){
		"status":  func() { l.known(slow) },
		"denials": func() { l.denied(slow) },
		"verify":  func() { l.attachedNow(slow) },
	} {
		done := make(chan time.Duration)
		go func() {
			began := time.Now()
			ask()
			done <- time.Since(began)
		}()
		longest, took := time.Duration(0), time.Duration(0)
		for took == 0 {
			wanted := time.Now()
			l.mu.Lock()
			longest = max(longest, time.Since(wanted))
			l.mu.Unlock()
			select {
			case took = <-done:
			case <-time.After(time.Millisecond):
			}
		}
		if longest > took/2 {
			t.Errorf("%s: the loop waited for %v, and the call took %v", name, longest, took)
		}
	}
}
