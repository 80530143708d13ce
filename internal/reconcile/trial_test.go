package reconcile

import (
	"slices"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// The undo of a trial starts again what failed. What somebody has stopped meanwhile stays
// down, and what is at work, or about to stop, is not cut off.
func TestAnUndoneTrialRespectsAStop(t *testing.T) {
	for _, tt := range []struct {
		name    string
		unit    string // to which it happens; a is the one that is denied something
		happens func(u *unit)
		runs    bool
		trace   []string // of what is done to it
	}{
		{"stopped by hand", "b", func(u *unit) { u.running = false }, false, nil},
		{"itself stopped by hand", "a", func(u *unit) { u.running = false }, false, nil},
		{"being stopped", "b", func(u *unit) { u.stopping = true }, true, nil},
		{"a oneshot at work", "a", func(u *unit) { u.oneshot = true }, true, nil},
		{"another one at work", "b", func(u *unit) { u.oneshot = true }, true, nil},
		{"failed", "b", func(u *unit) { u.running, u.failed = false, true }, true, []string{"start b.service"}},
	} {
		w := attached(func(a *attach.Attachment) { a.Settle = 10 * time.Second }, "a", "b")
		w.run(t, func(l *Loop) {
			w.edit("2")
			time.Sleep(3 * time.Second)
			unlock := w.lock()
			u, done := w.units[tt.unit+".service"], len(w.trace)
			tt.happens(u)
			unlock()
			w.denials <- denial("a.service", "/new")
			rest()
			unlock = w.lock()
			defer unlock()
			trace := slices.DeleteFunc(slices.Clone(w.trace[done:]), func(call string) bool {
				return call != "start "+u.name && call != "stop "+u.name && call != "restart "+u.name
			})
			if w.kernel["a"] != "1" || u.running != tt.runs || !slices.Equal(trace, tt.trace) {
				t.Errorf("%s: running %v, %q, kernel %q", tt.name, u.running, trace, w.kernel)
			}
		})
	}
}
