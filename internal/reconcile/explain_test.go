package reconcile

import (
	"slices"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// What is gathered of a unit: its status, systemd's word, its denials; of one that is
// not attached, what an attach would come to.
func TestExplainGathersWhatIsKnown(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		for i := range maxCaseDenials + 3 {
			w.denials <- attach.Denial{Unit: "a.service", Profile: "a", Operation: "open", Name: "/x" + string(rune('a'+i)), Denied: "r", Count: 1,
				First: time.Now().Add(time.Duration(i)), Last: time.Now().Add(time.Duration(i))}
		}
		rest()
		r := l.Explain(t.Context(), []string{"a", "b", "none", "z*"}, true)
		if len(r.Cases) != 4 || r.Host.Enabled != attach.Yes || r.Since.IsZero() {
			t.Fatalf("%+v", r)
		}
		a := r.Cases[0]
		if a.Unit != "a.service" || a.Status == nil || a.Status.Verdict == nil || a.Start == nil || a.Start.ActiveState != "active" || a.Plan != nil {
			t.Errorf("%+v", a)
		}
		if len(a.Denials) != maxCaseDenials || a.LeftOut != 3 || !slices.IsSortedFunc(a.Denials, func(x, y attach.SeenDenial) int { return x.Last.Compare(y.Last) }) {
			t.Errorf("%d denials, %d left out", len(a.Denials), a.LeftOut)
		}
		b := r.Cases[1]
		if b.Unit != "b.service" || b.Status != nil || b.Missing == nil || b.Missing.Code != attach.NotAttached || b.Start == nil || b.Plan == nil || b.Plan.Profile != "b" {
			t.Errorf("%+v", b)
		}
		if c := r.Cases[2]; c.Missing == nil || c.Missing.Code != attach.UnitNotFound || c.Start != nil || c.Plan != nil {
			t.Errorf("%+v", c)
		}
		if c := r.Cases[3]; c.Missing == nil || c.Start != nil || c.Plan != nil {
			t.Errorf("%+v", c)
		}
		if r := l.Explain(t.Context(), []string{"b"}, false); len(r.Cases) != 1 || r.Cases[0].Plan != nil {
			t.Errorf("what an attach would come to was found out for somebody who may not: %+v", r)
		}
		if all := l.Explain(t.Context(), nil, false); len(all.Cases) != 1 || all.Cases[0].Unit != "a.service" {
			t.Errorf("%+v", all)
		}
	})
}

// Each refused change of profile is kept by itself, as which process it was
// decides; what was pushed out is not claimed never to have been.
func TestRefusedChangesAreKeptApart(t *testing.T) {
	var g denialLog
	began := time.Now()
	g.begin(began)
	for i := range maxRefused + 2 {
		at := began.Add(time.Duration(i+1) * time.Second)
		g.add(attach.Denial{Operation: "change_onexec", Profile: "unconfined", Name: "gone", PID: i + 1, Count: 1, First: at, Last: at})
	}
	refused, h := g.changes()
	if len(refused) != maxRefused || refused[0].PID != 3 || refused[len(refused)-1].PID != maxRefused+2 {
		t.Errorf("%d are kept, the first of PID %d", len(refused), refused[0].PID)
	}
	if !h.Since.Equal(began.Add(2 * time.Second)) {
		t.Errorf("relied on since %v, the log began at %v", h.Since, began)
	}
	if n := len(g.since("", time.Time{})); n != 1 {
		t.Errorf("in the log there are %d of them, merged", n)
	}
}
