package reconcile

import "testing"

// An undo brings back what went down with the unit, and nothing that was down before.
func TestAnUndoStartsWhatWentDownWithTheUnit(t *testing.T) {
	for _, c := range []struct {
		name  string
		fails func(u *unit)
		text  bool // the unit is attached, and fails under another text
		stays bool // what went down does not start any more
	}{
		{name: "its restart fails", fails: func(u *unit) { u.breaks["a"] = true }},
		{name: "it ends over and over", fails: func(u *unit) { u.crashLoop = true }},
		{name: "systemd is about to start it again", fails: func(u *unit) { u.crashLoop, u.rests = true, true }},
		{name: "under another text, systemd is about to start it again", fails: func(u *unit) { u.rests = true }, text: true},
		{name: "what went down does not start", fails: func(u *unit) { u.breaks["a"] = true }, stays: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			if c.text {
				w = attached(nil, "a")
			} else {
				w.addUnit("a.service")
			}
			u, with, idle := w.units["a.service"], w.addUnit("with.service"), w.addUnit("idle.service")
			idle.running = false
			w.run(t, func(l *Loop) {
				w.mu.Lock()
				u.drags = []string{"with.service", "idle.service"}
				c.fails(u)
				w.deadly = map[string]string{"2": "restarts"}
				w.onCall = func(call string) {
					if call == "restart a.service" {
						with.breaks[""] = c.stays
					}
				}
				w.mu.Unlock()
				if c.text {
					w.edit("2")
				} else {
					w.declareUnit(fileA, "a.service", nil)
				}
				rest()
				s := status(t, l, "a")
				if s.Held == nil || !u.running || u.between || with.running == c.stays || idle.running {
					t.Errorf("%+v: %+v %+v %+v %q", s.Held, u, with, idle, w.trace)
				}
				if told := w.log.count("with.service was stopped with a.service and does not start again") > 0; told != c.stays {
					t.Errorf("told: %v", told)
				}
			})
		})
	}
}
