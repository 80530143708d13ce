package reconcile

import (
	"context"
	"errors"
	"slices"
	"sync"
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

// reach is what is known of the units that the drop-in of a template or prefix would
// reach.
type reach struct {
	early   []attach.EarlyUnit
	problem string
}

// reached keeps that for all units of a pattern, which is looked at once.
type reached struct {
	mu sync.Mutex
	by map[string]func() reach
}

// of gives what look finds the first time.
func (r *reached) of(pattern string, look func() reach) reach {
	r.mu.Lock()
	if r.by == nil {
		r.by = map[string]func() reach{}
	}
	if r.by[pattern] == nil {
		r.by[pattern] = sync.OnceValue(look)
	}
	look = r.by[pattern]
	r.mu.Unlock()
	return look()
}

// observeReach looks for units that start too early for the drop-in of a template or
// prefix, where it is about to be written. Where it is in place, or on record and taken
// away by somebody, the units that it confines count on it, and nobody is asked.
func (l *Loop) observeReach(ctx context.Context, d attach.Desired, m *moment, o *attach.Observed) {
	pattern := d.Attachment.Placement(d.Unit)
	if !attach.IsPattern(pattern) || o.DropIn.Exists || o.DropIn.Ours {
		return
	}
	look := func() reach { return l.reach(ctx, pattern) }
	var r reach
	if m != nil {
		r = m.of(pattern, look)
	} else {
		r = look()
	}
	o.Early, o.EarlyProblem = r.early, r.problem
}

func (l *Loop) reach(ctx context.Context, pattern string) reach {
	names, err := l.systemd.Expand(ctx, attach.UnitsOf(pattern))
	if err != nil {
		return reach{problem: err.Error()}
	}
	names = slices.DeleteFunc(names, attach.IsTemplate)
	units, errs := make([]attach.Unit, len(names)), make([]error, len(names))
	each(len(names), func(i int) { units[i], errs[i] = l.systemd.Glance(ctx, names[i]) })
	if err := errors.Join(errs...); err != nil {
		return reach{problem: err.Error()}
	}
	return reach{early: attach.EarlyOf(units)}
}
