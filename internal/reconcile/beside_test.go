package reconcile

import (
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// While a unit settles, what somebody does to the policy of another one is named
// within a second, and mended when the unit has settled.
func TestPolicyThatChangesDuringAPassIsNamedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name  string
		named int
		do    func(w *world)
	}{
		{"aa-teardown", 1, func(w *world) { w.remove("a") }},
		{"aa-complain", 1, func(w *world) { w.replace("a", "1"+soft) }},
		{"replaced", 1, func(w *world) { w.replace("a", "evil") }},
		{"a new text, loaded", 0, func(w *world) { w.files["a"] = "2"; w.replace("a", "2") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnViolation = attach.ViolationStop }, "a")
			w.addUnit("slow.service")
			w.files["b"] = "1"
			w.run(t, func(l *Loop) {
				w.declareUnit("/etc/aaunit/attachments.d/slow.conf", "slow.service", func(a *attach.Attachment) { a.Profile, a.Settle = "b", time.Hour })
				l.queue.add(inputChanged, "a.service") // it is in the same pass
				time.Sleep(time.Minute)
				if !status(t, l, "slow").Busy || answer(l, "a") != "confined" {
					t.Fatalf("%+v %s", status(t, l, "slow"), answer(l, "a"))
				}
				unlock := w.lock()
				tt.do(w)
				unlock()
				w.policy <- struct{}{}
				time.Sleep(time.Second)
				if named := w.log.count("a.service is not-confined"); named != tt.named || (answer(l, "a") == "confined") != (tt.named == 0) {
					t.Errorf("named %d times, %s\n%s", named, answer(l, "a"), w.log.String())
				}
				time.Sleep(time.Hour)
				rest()
				if answer(l, "a") != "confined" || answer(l, "slow") != "confined" || w.calls["restart"] > 3 || w.calls["stop"] > 0 {
					t.Errorf("%s %s %q", answer(l, "a"), answer(l, "slow"), w.trace)
				}
			})
		})
	}
}
