package reconcile

import (
	"context"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// A template or prefix that an attachment names has a job of its own in a pass:
// policy, drop-in, reload. Here is what its units and it have to do with each
// other.

// holdPattern holds a template or prefix whose drop-in was taken away because
// no unit of it came up under it: units to come would not either.
func (l *Loop) holdPattern(ctx context.Context, j *job, path string) {
	l.mu.Lock()
	var held *attach.Record
	for name, r := range l.records {
		if r.DropIns.Has(path) && attach.IsPattern(name) && name != j.d.Unit {
			r = r.Clone()
			r.DropIns = r.DropIns.Without(path)
			r.Hold = &attach.Hold{Reasons: j.failed, Since: time.Now()}
			held = &r
		}
	}
	l.mu.Unlock()
	if held == nil {
		return
	}
	if d, err := l.desired(held.Unit); err == nil && d.Attachment != nil {
		if o, err := l.observe(ctx, d, full); err == nil {
			held.Hold.Inputs = inputs(&job{d: d, o: o})
		}
	}
	l.remember(*held)
	l.publish(held.Unit, func(*attach.Status) {})
}

// releasePattern ends the hold of the template or prefix whose drop-in a unit
// came up under after all.
func (l *Loop) releasePattern(d attach.Desired) {
	name := d.Attachment.Placement(d.Unit)
	l.mu.Lock()
	r := l.records[name].Clone()
	l.mu.Unlock()
	if name == d.Unit || r.Hold == nil {
		return
	}
	r.Hold = nil
	l.remember(r)
	l.queue.add(inputChanged, name)
}
