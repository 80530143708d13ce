package reconcile

import (
	"context"
	"maps"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// hears gives what is published of units from now on.
func (w *world) hears(l *Loop) func() map[string]attach.Answer {
	published := map[string]attach.Answer{}
	l.Subscribe(context.Background(), func(s *attach.Status) {
		if s.Verdict != nil {
			defer w.lock()()
			published[s.Unit] = s.Verdict.Answer
		}
	})
	return func() map[string]attach.Answer {
		defer w.lock()()
		return maps.Clone(published)
	}
}

// Where nothing confines any more, whoever asks first is told so of each unit, though
// nobody has told the daemon of it, and everybody soon after.
func TestTheGlobalModeIsInEveryAnswer(t *testing.T) {
	for name, ask := range map[string]func(l *Loop) attach.Answer{
		"status": func(l *Loop) attach.Answer {
			v := l.Status([]string{"a"}).Units[0].Verdict
			if v.Answer == attach.NotConfined && v.Reasons[0].Code != attach.GlobalComplain {
				t.Errorf("the reason is %v", v.Reasons)
			}
			return v.Answer
		},
		"metrics": func(l *Loop) attach.Answer { return l.Metrics().Units[0].Answer },
		"verify": func(l *Loop) attach.Answer {
			r, err := l.Verify(context.Background(), []string{"a"})
			if err != nil {
				t.Error(err)
			}
			return r.Units[0].Verdict.Answer
		},
	} {
		w := attached(nil, "a", "b")
		w.run(t, func(l *Loop) {
			heard := w.hears(l)
			for _, complains := range []bool{false, true} {
				w.complains.Store(complains)
				want := attach.Confined
				if complains {
					want = attach.NotConfined
				}
				if got := ask(l); got != want {
					t.Errorf("%s: in complain mode: %v, it is %s", name, complains, got)
				}
			}
			time.Sleep(2 * time.Second)
			if got := heard(); got["a.service"] != attach.NotConfined || got["b.service"] != attach.NotConfined {
				t.Errorf("%s: published is %v", name, got)
			}
			w.complains.Store(false)
			ask(l)
			if rest(); answer(l, "a") != "confined" || answer(l, "b") != "confined" || w.calls["restart"] != 2 {
				t.Errorf("%s: enforced again: %s, %s, %q", name, answer(l, "a"), answer(l, "b"), w.trace)
			}
		})
	}
}

// A change of the global mode that is told is published without anybody's asking, beside
// a pass at another unit, too.
func TestAChangeOfTheGlobalModeIsToldByItself(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		heard := w.hears(l)
		for _, busy := range []bool{false, true} {
			w.tellPolicy() // from now on it is known what is loaded
			rest()
			if busy {
				w.addUnit("b.service")
				w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.Settle = time.Hour })
				time.Sleep(time.Second)
			}
			w.complains.Store(true)
			w.tellPolicy()
			time.Sleep(2 * time.Second)
			if got := heard(); got["a.service"] != attach.NotConfined {
				t.Errorf("beside a pass: %v: published is %v", busy, got)
			}
			w.complains.Store(false)
			w.tellPolicy()
			rest()
		}
	})
}

// Whoever asks during a pass at another unit has it published just as well, whether or not
// somebody tells the daemon of it afterwards.
func TestAChangeOfTheGlobalModeIsToldWhereSomebodyAsksFirst(t *testing.T) {
	for name, tell := range map[string]func(w *world){
		"nobody tells": func(*world) {},
		"told at once": (*world).tellPolicy,
		"told later":   func(w *world) { time.Sleep(time.Second); w.tellPolicy() },
	} {
		w := attached(nil, "a")
		w.run(t, func(l *Loop) {
			heard := w.hears(l)
			w.tellPolicy() // from now on it is known what is loaded
			rest()
			w.addUnit("b.service")
			w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", func(a *attach.Attachment) { a.Settle = time.Hour })
			time.Sleep(time.Second)
			w.complains.Store(true)
			l.Status([]string{"a"})
			tell(w)
			time.Sleep(2 * time.Second)
			if got := heard(); got["a.service"] != attach.NotConfined {
				t.Errorf("%s: published is %v", name, got)
			}
		})
	}
}
