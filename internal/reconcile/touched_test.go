package reconcile

import (
	"fmt"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
)

// A change of policy concerns the units of that policy, and those that are not in
// order anyway.
func TestAChangeOfPolicyConcernsItsUnits(t *testing.T) {
	w := newWorld()
	for i := range 4 {
		w.declareUnit(fmt.Sprintf("/etc/aaunit/attachments.d/%d.conf", i), w.addUnit(fmt.Sprintf("u%d.service", i)).name, nil)
	}
	w.run(t, func(l *Loop) {
		all := []string{"u0.service", "u1.service", "u2.service", "u3.service"}
		expect := func(when string, want []string) {
			t.Helper()
			if d := cmp.Diff(want, l.touched(time.Now())); d != "" {
				t.Errorf("%s: %s", when, d)
			}
		}
		expect("nothing is known of what it was", all)
		expect("nothing changed", nil)
		change := func(f func()) {
			w.mu.Lock()
			f()
			w.mu.Unlock()
		}
		change(func() { w.files["u1"] = "another text" })
		expect("a text", []string{"u1.service"})
		change(func() { w.kernel["u2"] = "somebody's" })
		expect("a loaded policy", []string{"u2.service"})
		expect("nothing changed any more", nil)
		change(func() {
			s := l.statuses["u3.service"]
			s.Refused = []attach.Reason{attach.Because(attach.ProfileBroken, "x")}
			l.statuses["u3.service"] = s
		})
		expect("a unit is refused", []string{"u3.service"})
	})
}
