package reconcile

import (
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// systemd asks for a reload for as long as it lists a file that is not there, such as a
// drop-in that is a link to nothing. It is made to read its files again when they have
// changed, and not for ever.
func TestAReloadThatChangesNothingIsNotRepeated(t *testing.T) {
	const gone = "/etc/systemd/system/a.service.d/x.conf"
	reloads := func(w *world) int {
		defer w.lock()()
		return w.calls["reload"]
	}
	for _, kind := range []string{"unit", "socket", "held"} {
		t.Run(kind, func(t *testing.T) {
			w, u := changing(t, options(attach.SocketsRecord))
			w.triggers["a.service"] = []string{"a.socket"}
			told := "a.service"
			if kind == "socket" {
				w.socketLacks, told = gone, "a.socket"
			} else {
				u.lacks = gone
			}
			w.run(t, func(l *Loop) {
				if kind == "held" {
					w.declareUnit(fileA, "a.service", toB(nil))
					rest()
					if status(t, l, "a").Held == nil {
						t.Fatal("it is not held")
					}
				}
				w.still(t, "a file that is not there")
				s := status(t, l, "a")
				if n := reloads(w); n > 6 {
					t.Errorf("%d reloads", n)
				}
				notes := slices.DeleteFunc(slices.Clone(s.Notes), func(r attach.Reason) bool { return r.Code != attach.ReloadInVain })
				if kind != "held" && (answer(l, "a") != "confined" || len(notes) != 1 || !strings.HasPrefix(notes[0].Detail, gone+", which systemd lists for "+told) || notes[0].Where != gone) {
					t.Errorf("%s, %+v", answer(l, "a"), s.Notes)
				}

				// One of the others changes.
				w.mu.Lock()
				u.files, w.socketLacks = "changed", strings.Repeat(w.socketLacks, 2)
				before := w.calls["reload"]
				w.mu.Unlock()
				w.trigger()
				w.still(t, "a file that changed")
				if n := reloads(w) - before; n != 1 {
					t.Errorf("%d reloads after a change", n)
				}

				// It comes back.
				w.mu.Lock()
				u.lacks, w.socketLacks = "", ""
				w.mu.Unlock()
				w.trigger()
				w.still(t, "a file that came back")
				if s := status(t, l, "a"); slices.ContainsFunc(s.Notes, func(r attach.Reason) bool { return r.Code == attach.ReloadInVain }) {
					t.Errorf("%+v", s.Notes)
				}
			})
		})
	}
}
