package api

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// Operation states.
const (
	StateRunning = "running"
	StateDone    = "done"
)

const (
	maxRunning    = 16               // per user
	maxRunningAll = 128              // all users together; root finds a place beyond
	keepFinished  = 10 * time.Minute // how long a finished operation can be asked
	maxFinished   = 64               // and how many of them, per user
	maxEvents     = 32 << 10         // of one operation: a thousand units with thirty each

	// Events come in bursts, one of each unit. What comes within lull of a signal goes
	// out together in the next one: each costs the bus, the daemon and the caller a
	// millisecond or more on a small machine. Nobody waits for the end.
	lull        = 100 * time.Millisecond
	maxTogether = 512 // events in a signal
)

var operationIface = iface{
	name: OperationInterface,
	methods: []method{
		// Describe gives an OperationDescription in JSON: for who came late.
		{name: "Describe", out: []param{{"description", "s"}}, large: true, call: func(_ context.Context, r *request) ([]any, *dbus.Error) {
			o := r.session.operations.of(r)
			if o == nil {
				return nil, fail(errorUnknownObject, "there is no object %s", r.path)
			}
			return reply(o.describe())
		}},
	},
	properties: []property{
		{"State", "s", "false"},
		{"Result", "s", "false"},
	},
	signals: []signal{
		// Progress carries one attach.Event or more, an array in JSON; index is that of
		// the first, counted from 0, without gaps, in the order of Describe's events.
		{"Progress", []param{{"index", "t"}, {"events", "s"}}},
		// Finished comes last. events is how many the Progress signals had, error
		// is "" where the operation as a whole did not fail.
		{"Finished", []param{{"events", "t"}, {"outcomes", "s"}, {"error", "s"}}},
	},
}

// OperationDescription is what Describe of an operation answers, in JSON.
type OperationDescription struct {
	State    string           `json:"state"`
	Events   []attach.Event   `json:"events"`
	Outcomes []attach.Outcome `json:"outcomes"`
	// Error says why the operation as a whole failed.
	Error string `json:"error,omitempty"`
}

// operation is work that goes on whether or not its caller stays.
type operation struct {
	path  dbus.ObjectPath
	id    uint64
	uid   uint32
	bus   *session // the connection on which owner means something
	owner string   // the caller's unique name

	mu       sync.Mutex
	events   []attach.Event
	outcomes []attach.Outcome
	err      string
	done     bool
	ended    time.Time
	wake     chan struct{} // something new for tell
	over     chan struct{} // closed with done
}

func (o *operation) progress(e attach.Event) {
	o.mu.Lock()
	if !o.done && len(o.events) < maxEvents {
		o.events = append(o.events, e)
	}
	o.mu.Unlock()
	o.nudge()
}

func (o *operation) finish(outcomes []attach.Outcome, err error, at time.Time) {
	o.mu.Lock()
	o.outcomes, o.done, o.ended = outcomes, true, at
	if err != nil {
		o.err = err.Error()
	}
	o.mu.Unlock()
	close(o.over)
	o.nudge()
}

func (o *operation) nudge() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// tell sends the signals to the caller alone, in order, apart from the work: a
// bus that does not move must not hold up an attach.
func (o *operation) tell() {
	for next := 0; ; {
		o.mu.Lock()
		fresh, done := o.events[next:], o.done
		outcomes, errText := o.outcomes, o.err
		o.mu.Unlock()
		for some := range slices.Chunk(fresh, maxTogether) {
			if text, err := json.Marshal(some); err == nil {
				o.bus.emit(o.path, OperationInterface, "Progress", o.owner, uint64(next), string(text))
			}
			next += len(some)
		}
		if done {
			text := marshalOutcomes(outcomes)
			if len(text) > maxReply {
				return // the caller asks, and is told that it is too large
			}
			o.bus.emit(o.path, OperationInterface, "Finished", o.owner, uint64(next), text, clean(errText))
			return
		}
		if len(fresh) > 0 {
			select {
			case <-o.over:
			case <-time.After(lull):
			}
		}
		<-o.wake // finish comes always
	}
}

func marshalOutcomes(outcomes []attach.Outcome) string {
	if outcomes == nil {
		outcomes = []attach.Outcome{}
	}
	text, err := json.Marshal(outcomes)
	if err != nil {
		return "[]"
	}
	return string(text)
}

func (o *operation) describe() OperationDescription {
	o.mu.Lock()
	defer o.mu.Unlock()
	d := OperationDescription{State: StateRunning, Events: slices.Clone(o.events), Outcomes: o.outcomes, Error: o.err}
	if o.done {
		d.State = StateDone
	}
	if d.Events == nil {
		d.Events = []attach.Event{}
	}
	if d.Outcomes == nil {
		d.Outcomes = []attach.Outcome{}
	}
	return d
}

func (o *operation) properties() map[string]dbus.Variant {
	d := o.describe()
	result := ""
	if d.State == StateDone {
		result = marshalOutcomes(d.Outcomes)
	}
	return map[string]dbus.Variant{"State": dbus.MakeVariant(d.State), "Result": dbus.MakeVariant(result)}
}

func (o *operation) finished() (at time.Time, done bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ended, o.done
}

// operations keeps those under way and, for a while, those that ended.
type operations struct {
	running *counter
	now     func() time.Time
	work    sync.WaitGroup

	mu     sync.Mutex
	closed bool
	last   uint64
	all    map[uint64]*operation
}

func newOperations() *operations {
	return &operations{running: newCounter(maxRunning, maxRunningAll), now: time.Now, all: map[uint64]*operation{}}
}

// start begins the work; ctx is the service's, not the call's.
func (ops *operations) start(ctx context.Context, r *request, work func(ctx context.Context, progress func(attach.Event)) ([]attach.Outcome, error)) (*operation, *dbus.Error) {
	release, ok := ops.running.take(r.uid)
	if !ok {
		return nil, fail(ErrorTooMany, "too many operations are under way; wait for one to end")
	}
	ops.mu.Lock()
	if ops.closed {
		ops.mu.Unlock()
		release()
		return nil, fail(ErrorFailed, "the service is ending")
	}
	ops.work.Add(2)
	ops.forget()
	ops.last++
	o := &operation{
		id:   ops.last,
		path: OperationsPath + "/" + dbus.ObjectPath(strconv.FormatUint(ops.last, 10)),
		uid:  r.uid, bus: r.session, owner: r.sender, wake: make(chan struct{}, 1), over: make(chan struct{}),
	}
	ops.all[o.id] = o
	ops.mu.Unlock()
	go func() {
		defer ops.work.Done()
		defer release()
		outcomes, err := work(ctx, o.progress)
		o.finish(outcomes, err, ops.now())
	}()
	go func() {
		defer ops.work.Done()
		o.tell()
	}()
	return o, nil
}

// close takes no more operations, and waits for those there are.
func (ops *operations) close() {
	ops.mu.Lock()
	ops.closed = true
	ops.mu.Unlock()
	ops.work.Wait()
}

// forget drops finished operations that are old, and the oldest of a user who
// has many. The caller holds mu.
func (ops *operations) forget() {
	type ended struct {
		*operation
		at time.Time
	}
	users := map[uint32][]ended{}
	for id, o := range ops.all {
		at, done := o.finished()
		switch {
		case !done:
		case ops.now().Sub(at) > keepFinished:
			delete(ops.all, id)
		default:
			users[o.uid] = append(users[o.uid], ended{o, at})
		}
	}
	for _, list := range users {
		slices.SortFunc(list, func(a, b ended) int { return cmp.Or(a.at.Compare(b.at), cmp.Compare(a.id, b.id)) })
		for ; len(list) >= maxFinished; list = list[1:] {
			delete(ops.all, list[0].id)
		}
	}
}

// of finds the operation of a request's path. For anybody but its caller and
// root there is none.
func (ops *operations) of(r *request) *operation {
	label, ok := strings.CutPrefix(string(r.path), string(OperationsPath)+"/")
	if !ok {
		return nil
	}
	id, err := strconv.ParseUint(label, 10, 64)
	if err != nil {
		return nil
	}
	ops.mu.Lock()
	defer ops.mu.Unlock()
	o := ops.all[id]
	if o == nil || string(o.path) != string(r.path) || !o.mayRead(r) {
		return nil
	}
	return o
}

// mayRead: unique names are used again after a restart of the bus, so the
// owner is a name on one connection.
func (o *operation) mayRead(r *request) bool {
	return r.root() || (o.bus == r.session && o.owner == r.sender && o.uid == r.uid)
}

func (ops *operations) visible(r *request) []string {
	ops.mu.Lock()
	defer ops.mu.Unlock()
	var ids []uint64
	for id, o := range ops.all {
		if o.mayRead(r) {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	var out []string
	for _, id := range ids {
		out = append(out, strconv.FormatUint(id, 10))
	}
	return out
}
