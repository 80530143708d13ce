package reconcile

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// rename is a package that ships a unit under a new name, with the old one as an alias.
func (w *world) rename(old, new string) {
	w.mu.Lock()
	if u := w.units[old]; w.units[new] == nil {
		u.name = new
		w.units[new] = u
	}
	delete(w.units, old)
	w.aliases[old] = new
	w.mu.Unlock()
	w.trigger()
}

// systemd applies the drop-ins of aliases, too: what a unit had under a name that has
// become an alias goes over to the unit that it stands for, so that a detach finds it.
func TestAUnitThatBecomesAnAliasTakesItsAttachmentAlong(t *testing.T) {
	const drop = "/etc/systemd/system/%s.service.d/90-aaunit.conf"
	for _, both := range []bool{false, true} {
		w := attached(nil, "old")
		file := "/etc/aaunit/attachments.d/old.conf"
		if both {
			w.addUnit("new.service")
			w.declareUnit("/etc/aaunit/attachments.d/new.conf", "new.service", func(a *attach.Attachment) { a.Profile = "a" })
		}
		w.run(t, func(l *Loop) {
			if answer(l, "old") != "confined" || w.read[strings.Replace(drop, "%s", "old", 1)] == "" {
				t.Fatalf("%s, %q", answer(l, "old"), w.read)
			}
			w.rename("old.service", "new.service")
			before := l.Metrics().Passes.Count
			w.still(t, "an alias")
			if n := l.Metrics().Passes.Count - before; n > 10 {
				t.Errorf("both: %v: %d passes", both, n)
			}
			u := w.units["new.service"]
			if answer(l, "new") != "confined" || u.label != "a (enforce)" || w.calls["restart"] != 1+len(w.att)-1 {
				t.Errorf("both: %v: %s, %+v, %q", both, answer(l, "new"), u, w.trace)
			}
			if _, left := w.records["old.service"]; left || len(w.records) != 1 || len(w.read) != 1 || w.read[strings.Replace(drop, "%s", "new", 1)] == "" {
				t.Errorf("both: %v: records %+v, drop-ins %q", both, w.records, w.read)
			}
			if r := w.records["new.service"]; len(r.DropIns) != 1 || len(r.Loaded) != 1 {
				t.Errorf("both: %v: %+v", both, r)
			}
			w.undeclare(file)
			w.undeclare("/etc/aaunit/attachments.d/new.conf")
			w.still(t, "a detach")
			if len(w.records)+len(w.disk)+len(w.read)+len(w.kernel) > 0 || u.label != "unconfined" || !u.running {
				t.Errorf("both: %v: left: %+v %q %q, %+v", both, w.records, w.read, w.kernel, u)
			}
		})
	}
}

// What was decided about the unit goes over with it, also where the record cannot be
// written at first.
func TestAPausedUnitThatBecomesAnAliasStaysPaused(t *testing.T) {
	w := attached(nil, "old")
	w.run(t, func(l *Loop) {
		if _, err := l.Pause(context.Background(), attach.Request{Units: []string{"old"}, For: time.Hour, By: "alice"}, nil); err != nil {
			t.Fatal(err)
		}
		rest()
		w.mu.Lock()
		w.diskFull = true
		w.mu.Unlock()
		w.rename("old.service", "new.service")
		w.still(t, "a full disk")
		if w.records["old.service"].Unit == "" || w.records["new.service"].Unit != "" {
			t.Errorf("%+v", w.records)
		}
		w.mu.Lock()
		w.diskFull = false
		w.mu.Unlock()
		w.trigger()
		w.still(t, "an alias")
		if s := status(t, l, "new"); s.Paused == nil || w.records["new.service"].Pause == nil || w.records["old.service"].Unit != "" || len(w.read) != 1 {
			t.Errorf("%+v, %+v, %q", s, w.records, w.read)
		}
	})
}
