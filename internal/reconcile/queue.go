package reconcile

import (
	"slices"
	"sync"
	"time"
)

// cause says why a unit is in the queue; causes of one unit are merged.
type cause uint8

const (
	// inputChanged: attachment, unit file, profile or loaded policy may have
	// changed; the unit needs a plan.
	inputChanged cause = 1 << iota
	// review: everything is looked at anew, something was declared, or policy may have
	// changed; the unit needs a plan, and can wait for others.
	review
	// started: the unit was started; it needs a look and a verdict.
	started
	// ended: the unit has no tasks any more; what is known of it is brought up
	// to date.
	ended
	// doubted: somebody asked, and saw it not confined; it needs another look.
	doubted

	needsPlan = inputChanged | review
)

// queue holds units that need work. Triggers merge: however often a unit is
// added before it is taken, it is taken once. A unit that is being worked on
// is not handed out a second time; what is added meanwhile waits until it is
// released.
type queue struct {
	mu   sync.Mutex
	due  map[string]cause
	busy map[string]bool
	// declare: the attachment files, or the units that they name, may have
	// changed.
	declare bool
	// policy: profiles or what is loaded may have changed; since when that is told. Zero:
	// they have not.
	policy time.Time
	// engaged: a pass is under way, and the next one may be a long time off.
	engaged bool
	// One slot each: there may be something to take.
	plans, looks chan struct{}
}

func newQueue() *queue {
	return &queue{due: map[string]cause{}, busy: map[string]bool{}, plans: make(chan struct{}, 1), looks: make(chan struct{}, 1)}
}

func (q *queue) add(c cause, units ...string) {
	if len(units) == 0 {
		return
	}
	q.mu.Lock()
	for _, u := range units {
		q.due[u] |= c
	}
	q.mu.Unlock()
	q.signal()
}

// addDeclare asks for the attachments to be read again before the next plans.
func (q *queue) addDeclare() {
	q.mu.Lock()
	q.declare = true
	q.mu.Unlock()
	q.signal()
}

func (q *queue) takeDeclare() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	due := q.declare
	q.declare = false
	return due
}

// addPolicy asks for the units that a change of policy concerns to be found
// before the next plans.
func (q *queue) addPolicy() {
	q.mu.Lock()
	if q.policy.IsZero() {
		q.policy = time.Now()
	}
	q.mu.Unlock()
	q.signal()
}

// takePolicy says since when a change of policy is told that has not been taken; zero
// where there is none.
func (q *queue) takePolicy() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	told := q.policy
	q.policy = time.Time{}
	return told
}

// policyTold is takePolicy for who does not take it.
func (q *queue) policyTold() time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.policy
}

func (q *queue) signal() {
	offer(q.plans)
	offer(q.looks)
}

// offer fills the slot of a channel that has one.
func offer(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// plansDue lists the units that need a plan and are not being worked on, sorted, and
// says which of them cannot wait.
func (q *queue) plansDue() (units []string, urgent map[string]bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	urgent = map[string]bool{}
	for u, c := range q.due {
		if q.busy[u] || c&needsPlan == 0 {
			continue
		}
		units = append(units, u)
		if c&(inputChanged|started) != 0 {
			urgent[u] = true
		}
	}
	slices.Sort(units)
	return units, urgent
}

// takePlans takes those of the units that still need a plan, in their order, and marks
// them busy. It says which of them started, too. Others that are due are signalled
// when these are released.
func (q *queue) takePlans(units []string) (taken, begun []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, u := range units {
		c := q.due[u]
		if q.busy[u] || c&needsPlan == 0 {
			continue
		}
		q.take(u)
		taken = append(taken, u)
		if c&started != 0 {
			begun = append(begun, u)
		}
	}
	return taken, begun
}

// takeLooks takes units that need no more than a look, with the causes, at most so
// many. Others are signalled when these are released. During a pass a unit whose plan
// can wait gets its look first: the plan stays due.
func (q *queue) takeLooks(most int) map[string]cause {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := map[string]cause{}
	for u, c := range q.due {
		if len(out) >= most {
			break
		}
		first := q.engaged && c&inputChanged == 0 && c != review
		if q.busy[u] || c&needsPlan != 0 && !first {
			continue
		}
		q.take(u)
		if plan := c & needsPlan; plan != 0 {
			q.due[u] = plan
		}
		out[u] = c &^ needsPlan
	}
	return out
}

// engage says whether a pass is under way at units that were taken.
func (q *queue) engage(is bool) {
	q.mu.Lock()
	q.engaged = is
	q.mu.Unlock()
	if is {
		offer(q.looks) // that waited for a plan
	}
}

// take marks a unit busy that was due. q.mu is held.
func (q *queue) take(unit string) {
	delete(q.due, unit)
	q.busy[unit] = true
}

// claim marks units busy for an operation that was asked for, which makes the
// plan that they may be due for. It reports those that are busy already.
func (q *queue) claim(units []string) (taken, others []string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, u := range units {
		if q.busy[u] {
			others = append(others, u)
			continue
		}
		q.busy[u] = true
		// A start that nobody has looked at is still to be looked at.
		if q.due[u] &^= needsPlan; q.due[u] == 0 {
			delete(q.due, u)
		}
		taken = append(taken, u)
	}
	return taken, others
}

func (q *queue) release(units []string) {
	q.mu.Lock()
	for _, u := range units {
		delete(q.busy, u)
	}
	q.mu.Unlock()
	q.signal()
}

// isBusy reports whether a unit is being worked on, or will be in a moment.
func (q *queue) isBusy(unit string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	_, due := q.due[unit]
	return due || q.busy[unit] || q.declare
}
