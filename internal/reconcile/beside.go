package reconcile

import (
	"context"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// besideAfter is how long policy that changed during a pass is left alone: a pass
// puts on record what it has loaded, and somebody who changes many profiles changes
// them one by one.
const besideAfter = 200 * time.Millisecond

// beside names what somebody does to the policy of attached units during a pass at
// others, which takes as long as the longest SettleSec= in it. It mends nothing, and
// stops nothing: the pass that comes next sees to that.
func (l *Loop) beside(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.noticed:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(besideAfter):
		}
		l.mu.Lock()
		passing := l.passing
		l.mu.Unlock()
		if passing {
			l.lookBeside(ctx)
		}
	}
}

// notice tells beside that policy changed.
func (l *Loop) notice() {
	select {
	case l.noticed <- struct{}{}:
	default:
	}
}

func (l *Loop) setPassing(is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.passing = is
}

// handle says which units the pass is at; of the others in it, it needs no more
// than a verdict.
func (l *Loop) handle(jobs []*job, which func(*job) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handled = map[string]bool{}
	for _, j := range jobs {
		if which(j) {
			l.handled[j.d.Unit] = true
		}
	}
}

func (l *Loop) lookBeside(ctx context.Context) {
	l.mu.Lock()
	var units []string
	for unit, s := range l.statuses {
		if s.Verdict != nil && s.Verdict.Answer == attach.Confined && s.ActiveState == "active" {
			units = append(units, unit)
		}
	}
	l.mu.Unlock()
	var all []attach.Desired
	for _, unit := range units {
		if d, ok := l.leftAlone(unit); ok {
			all = append(all, d)
		}
	}
	seen := l.observeTogether(ctx, all, l.momentOf(ctx, all))
	for _, d := range all {
		if o, ok := seen[d.Unit]; ok && attach.Judge(d, o).Answer == attach.Confined {
			continue
		}
		v, o := l.judge(ctx, d, false)
		// What a unit in the pass has had loaded, or a person whose text is as good,
		// is accepted when its turn comes.
		if v.Answer != attach.NotConfined || only(v, attach.PolicyDiffers) && l.wouldAccept(ctx, d) {
			continue
		}
		if d, ok := l.leftAlone(d.Unit); ok {
			l.conclude(d, o, v)
		}
	}
}

// leftAlone is what is wished for a unit that is in place, if nothing is done to it
// at present.
func (l *Loop) leftAlone(unit string) (d attach.Desired, ok bool) {
	d, err := l.desired(unit)
	l.mu.Lock()
	defer l.mu.Unlock()
	return d, err == nil && d.Attachment != nil && settled(d.Record) && d.Record.Hold == nil && !l.handled[unit]
}
