package reconcile

import (
	"slices"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// systemd lets go of an instance that ended, and with CollectMode=inactive-or-failed of one
// that failed as well: loaded anew it reads as if it had never been started. One that dies
// while it is to settle has failed all the same, and one that somebody stops has not.
func TestAUnitThatSystemdLetsGoOfWhileItSettles(t *testing.T) {
	for _, c := range []struct {
		name  string
		after time.Duration
		fails bool
	}{
		{"it dies at once", time.Millisecond, true},
		{"it dies later", 2 * time.Second, true},
		{"it is stopped", 2 * time.Second, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			u := w.addUnit("a.service")
			u.unloads, u.collected = true, true
			once := false
			w.onCall = func(call string) {
				if call == "restart a.service" && !once {
					once = true
					time.AfterFunc(c.after, func() {
						defer w.lock()()
						u.running, u.failed = false, c.fails
						w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
					})
				}
			}
			w.run(t, func(l *Loop) {
				out := attachUnits(t, l, attach.Request{Units: []string{"a"}})[0]
				rest()
				undone := out.Undone && len(w.disk) == 0 && u.running && u.label == "unconfined"
				left := !out.Undone && len(w.disk) == 1 && !u.running && out.Exit == attach.ExitUnknown
				if c.fails && !undone || !c.fails && !left || u.kept != 0 {
					t.Errorf("%+v, %q, %+v", out, w.disk, u)
				}
				if c.fails && !slices.ContainsFunc(out.Reasons, func(r attach.Reason) bool { return r.Detail == "a.service failed: result exit-code" }) {
					t.Errorf("%+v", out.Reasons)
				}
			})
		})
	}
}

// Where nobody waits for the unit to settle, systemd is asked to keep it only where it would
// let go of one that failed. One that dies before it is looked at has failed in any case.
func TestAUnitThatDoesNotSettleIsKeptWhereItMustBe(t *testing.T) {
	for _, collected := range []bool{true, false} {
		w := newWorld()
		u := w.addUnit("a.service")
		u.unloads, u.collected = true, collected
		kept := 0
		once := false
		w.onCall = func(call string) {
			if call == "restart a.service" && !once {
				once, kept = true, u.kept
				u.dies = true
			}
		}
		var none time.Duration
		w.run(t, func(l *Loop) {
			out := attachUnits(t, l, attach.Request{Units: []string{"a"}, Settle: &none})[0]
			if !out.Undone || len(w.disk) != 0 || !u.running || kept > 0 != collected {
				t.Errorf("collected: %v: kept for %d: %+v, %q, %+v", collected, kept, out, w.disk, u)
			}
		})
	}
}

// So it is while a changed policy is on trial.
func TestAUnitThatSystemdLetsGoOfUnderAChangedPolicy(t *testing.T) {
	for _, fails := range []bool{true, false} {
		w := attached(nil, "a")
		u := w.units["a.service"]
		u.unloads, u.collected = true, true
		w.run(t, func(l *Loop) {
			w.edit("2")
			time.AfterFunc(2*time.Second, func() {
				defer w.lock()()
				u.running, u.failed = false, fails
			})
			rest()
			if held := status(t, l, "a").Held != nil; held != fails || u.running != fails || (w.kernel["a"] == "1") != fails {
				t.Errorf("it fails: %v: held %v, %+v, %q", fails, held, u, w.kernel)
			}
		})
	}
}
