package reconcile

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A plan goes by a look at tasks that is a few seconds old, where it was at the same
// start of the unit.
func TestAPlanGoesByALookAtTheSameStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := attach.Unit{ID: "a.service", ActiveState: "active", InvocationID: "1", MainPID: 10, ControlGroup: "/a.service"}
		good := attach.Scan{Stable: true, At: time.Now(), Before: "1", After: "1", Tasks: []attach.Task{{PID: 10, TID: 10}}}
		for name, c := range map[string]struct {
			unit func(*attach.Unit)
			scan func(*attach.Scan)
			wait time.Duration
			used bool
		}{
			"the same":         {used: true},
			"still new":        {wait: sightingGoodFor / 2, used: true},
			"another start":    {unit: func(u *attach.Unit) { u.InvocationID = "2" }},
			"another main":     {unit: func(u *attach.Unit) { u.MainPID = 11 }},
			"a control":        {unit: func(u *attach.Unit) { u.ControlPID = 11 }},
			"another group":    {unit: func(u *attach.Unit) { u.ControlGroup = "/b.service" }},
			"ended":            {unit: func(u *attach.Unit) { u.ActiveState = "failed" }},
			"another unit":     {unit: func(u *attach.Unit) { u.ID = "b.service" }},
			"restarted during": {scan: func(s *attach.Scan) { s.After = "2" }},
			"unstable":         {scan: func(s *attach.Scan) { s.Stable = false }},
			"not readable":     {scan: func(s *attach.Scan) { s.Problem = "cannot read" }},
			"old":              {wait: sightingGoodFor},
		} {
			now, s := u, good
			s.At = time.Now()
			if c.scan != nil {
				c.scan(&s)
			}
			m := &moment{scans: map[string]sighting{u.ID: {u, s}}}
			if c.unit != nil {
				c.unit(&now)
			}
			time.Sleep(c.wait)
			if got, used := m.scanOf(now); used != c.used || used && len(got.Tasks) != 1 {
				t.Errorf("%s: %v %+v", name, used, got)
			}
		}
		if _, used := (*moment)(nil).scanOf(u); used {
			t.Error("nobody looked, and something was seen")
		}
	})
}

// To attach a running unit takes one look at its tasks before the restart, and one
// for the verdict.
func TestAttachLooksTwice(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	looks := 0
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.onScan = func() { looks++ }
		w.mu.Unlock()
		none := time.Duration(0)
		if out := attachUnits(t, l, attach.Request{Units: []string{"a"}, Settle: &none}); out[0].Exit != attach.ExitOK {
			t.Fatalf("%+v", out)
		}
		if looks != 2 {
			t.Errorf("%d looks", looks)
		}
	})
}

// A unit that was started anew while its policy was compiled is looked at again.
func TestAUnitThatStartedMeanwhileIsLookedAtAgain(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		looks := 0
		w.onScan = func() {
			if looks++; looks == 1 {
				w.units["a.service"].start++
			}
		}
		w.mu.Unlock()
		none := time.Duration(0)
		out := attachUnits(t, l, attach.Request{Units: []string{"a"}, Settle: &none})
		if out[0].Exit != attach.ExitOK || looks < 3 {
			t.Errorf("%d looks: %+v", looks, out)
		}
	})
}

// What somebody does to policy while many units are looked at together counts, and what
// was told of it meanwhile is not taken back.
func TestPolicyThatChangesWhileManyAreLookedAtIsSeen(t *testing.T) {
	for name, span := range map[string]time.Duration{"together": time.Second, "one by one": 3 * maxRescan} {
		w := attached(nil, "a", "b")
		w.run(t, func(l *Loop) {
			if _, err := l.Pause(context.Background(), attach.Request{Units: []string{"a", "b"}, For: time.Hour}, nil); err != nil {
				t.Fatal(err)
			}
			told := ""
			w.mu.Lock()
			w.onScan = func() {
				w.onScan = nil
				w.kernel["a"] = "other"
				w.mu.Unlock()
				w.tellPolicy()
				time.Sleep(span)
				told = answer(l, "a")
				w.mu.Lock()
			}
			w.mu.Unlock()
			r, err := l.Verify(context.Background(), nil)
			rest()
			if err != nil || told != "not-confined" {
				t.Fatalf("%s: %v, meanwhile it was told to be %s", name, err, told)
			}
			for _, s := range r.Units {
				if got := answer(l, s.Unit); got != "not-confined" || s.Verdict.Answer != attach.NotConfined {
					t.Errorf("%s: %s is seen to be %s, and told to be %s", name, s.Unit, s.Verdict.Answer, got)
				}
			}
		})
	}
}

// A verdict that is given beside a plan goes by a look of its own, however long the
// plan took.
func TestAVerdictBesideAPlanGoesByANewLook(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		u, err := l.systemd.Observe(t.Context(), "a.service")
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now()
		for name, c := range map[string]struct {
			at    time.Time
			tasks int
		}{"of before": {now.Add(-time.Hour), 1}, "of its own": {now, 0}} {
			j := &job{o: attach.Observed{Unit: u, At: now, Scan: &attach.Scan{At: c.at}}}
			if l.lookAnew(t.Context(), j); len(j.o.Scan.Tasks) != c.tasks || j.o.Scan.At.Before(now) {
				t.Errorf("%s: %+v", name, j.o.Scan)
			}
		}
	})
}
