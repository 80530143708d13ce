package reconcile

import (
	"context"
	"maps"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// besideAfter is how long policy that changed during a pass is left alone: a pass
// puts on record what it has loaded, and somebody who changes many profiles changes
// them one by one.
const besideAfter = 200 * time.Millisecond

// maxBeside bounds for how many units it is found out, with a run of the parser each,
// whether the next pass would accept what is loaded.
const maxBeside = 20

// beside names what somebody does to the policy of attached units, or to the global
// mode, during a pass at others, which takes as long as the longest SettleSec= in it. It
// mends nothing, and stops nothing: the pass that comes next sees to that.
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
		if l.isPassing() {
			l.lookBeside(ctx)
		}
	}
}

// notice tells beside that policy changed, or the global mode.
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

func (l *Loop) isPassing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.passing
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
		if s.Verdict != nil && s.Verdict.Answer == attach.Confined && (attach.Unit{ActiveState: s.ActiveState}).Active() {
			units = append(units, unit)
		}
	}
	l.mu.Unlock()
	var all []attach.Desired
	// That the host's state was taken in already, since somebody asked, names nothing: only
	// units that are shown as confined are looked at.
	host := l.apparmor.Host()
	states, mode := map[string]string{}, l.hostDiffers(host) || !host.Confines()
	for _, unit := range units {
		if d, ok := l.leftAlone(unit); ok && (mode || l.differs(d, states)) {
			all = append(all, d)
		}
	}
	if len(all) == 0 {
		return
	}
	seen := l.observeTogether(ctx, all, l.momentOf(ctx, all))
	asked := 0
	for i, d := range all {
		if o := seen[i]; o != nil && attach.Judge(d, *o).Answer == attach.Confined {
			continue
		}
		if ctx.Err() != nil || !l.isPassing() {
			return // the next pass comes to all of them
		}
		v, o := l.judgeOnce(ctx, d, false)
		if v.Answer != attach.NotConfined {
			continue
		}
		// What a unit in the pass has had loaded, or a person whose text is as good,
		// is accepted when its turn comes.
		if only(v, attach.PolicyDiffers) {
			if asked++; asked > maxBeside || l.wouldAccept(ctx, d) {
				continue
			}
		}
		if now, ok := l.leftAlone(d.Unit); ok && now.Profile == d.Profile && maps.Equal(now.Record.Accepted, d.Record.Accepted) {
			l.conclude(d, o, v)
			l.queue.add(inputChanged, d.Unit)
		}
	}
}

// differs reports whether what is loaded for a unit is not as it was at the last change
// that the loop has come to, or was not known then, or that the unit's turn since that
// change has not come. Of those of which it is as it was nothing else need be asked,
// however many there are. states keeps what was found for the others. No parser is
// waited for.
func (l *Loop) differs(d attach.Desired, states map[string]string) bool {
	names := judgedBy(d)
	key := strings.Join(names, "\x00")
	if _, read := states[key]; !read {
		states[key] = l.apparmor.LoadedState(names)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.waiting[d.Unit].IsZero() || states[key] != l.loaded[key]
}

// leftAlone is what is wished for a unit that is in place, if nothing is done to it
// at present.
func (l *Loop) leftAlone(unit string) (d attach.Desired, ok bool) {
	d, err := l.desired(unit)
	l.mu.Lock()
	defer l.mu.Unlock()
	return d, err == nil && d.Attachment != nil && settled(d.Record) && (d.Record.Hold == nil || d.Record.Hold.OnlyText()) && !l.handled[unit]
}
