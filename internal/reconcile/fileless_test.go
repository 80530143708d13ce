package reconcile

import (
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A deployment takes the file of a unit away and writes it again, with a daemon-reload
// after each: the unit that a glob names starts under its profile all the same. One whose
// file stays away is forgotten, but not while it runs.
func TestAGlobsUnitWhoseFileIsAwayForAMomentStaysAttached(t *testing.T) {
	file := func(w *world, u *unit, there bool) {
		w.mu.Lock()
		u.fileless = !there
		w.mu.Unlock()
		w.trigger()
		rest()
	}
	for name, tc := range map[string]struct {
		stopped bool
		away    time.Duration
	}{"it runs": {false, 2 * fileAway}, "it is stopped": {true, 2 * fileAway / 3}} {
		w := newWorld()
		u := w.addUnit("a.service")
		w.declareUnit(fileA, "a*.service", func(a *attach.Attachment) { a.Profile = "a" })
		w.run(t, func(l *Loop) {
			rest()
			start := func() {
				t.Helper()
				w.mu.Lock()
				_ = w.begin(u)
				label := u.label
				w.mu.Unlock()
				if rest(); label != "a (enforce)" || answer(l, "a") != "confined" {
					t.Errorf("%s: it starts as %s and is %s", name, label, answer(l, "a"))
				}
			}
			for range 2 { // the time that it is away counts anew
				if tc.stopped {
					w.ends("a.service")
				}
				file(w, u, false)
				if got := answer(l, "a"); w.disk[dropIn] == "" || got == "confined" {
					t.Errorf("%s: its file is away: %q, it is %s", name, w.disk, got)
				}
				time.Sleep(tc.away)
				file(w, u, true)
				start()
			}
			file(w, u, false)
			time.Sleep(2 * fileAway)
			if rest(); w.disk[dropIn] == "" {
				t.Errorf("%s: it runs without a file, and lost its drop-in", name)
			}
			w.ends("a.service")
			time.Sleep(fileAway + 2*DefaultRecheck)
			if rest(); len(w.disk)+len(w.records) > 0 || len(remembers(w, l)) > 0 {
				t.Errorf("%s: left of a unit that is gone: %q %+v", name, w.disk, w.records)
			}
		})
	}
}
