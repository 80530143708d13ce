package units

import (
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// Follow sends what happens to units that wants accepts, until ctx ends; then
// the channel is closed. wants must be quick and may be asked at any time.
//
// It only listens: asking systemd about a unit can load it, which makes
// systemd send signals about it (seen on Debian 12 and 13). Everything an event needs
// is in the signal.
//
//   - UnitStarted comes for each InvocationID once when the unit begins to
//     start, once when its main process is being started, and once when it is
//     up: a look that came too early is followed by one that does not.
//   - UnitEnded comes once for each InvocationID, when the unit is inactive,
//     failed, or waits for its automatic restart. A start and an end that
//     systemd told of in one signal give both.
//   - UnitsReloaded comes after a daemon-reload and when unit files were
//     enabled, disabled, masked or linked.
//   - DropInChanged comes when somebody else changes or removes a drop-in that
//     was read or written here.
//   - BusLost and BusBack also stand for systemd itself being away
//     (daemon-reexec).
//
// A slow reader makes events of one unit merge, never get lost: each kind is
// kept once, in the order of its last occurrence.
//
// Follow waits for its first connection for a few seconds, so that what is
// read of units after it returned is read while listening; BusLost is the
// first event where that failed.
func (s *Systemd) Follow(ctx context.Context, wants func(unit string) bool) <-chan attach.UnitEvent {
	f := &follower{s: s, wants: wants, units: map[string]*life{}, queue: newQueue()}
	first, cancel := context.WithTimeout(ctx, s.wait.first)
	conn, l, err := f.connect(first)
	cancel()
	if err != nil {
		s.log.Warn("cannot follow systemd yet", "err", err)
		f.queue.push(attach.UnitEvent{Kind: attach.BusLost})
	}
	watch := s.watchDropIns()
	out := make(chan attach.UnitEvent)
	go func() {
		defer close(out)
		var wg sync.WaitGroup
		wg.Go(func() { f.stay(ctx, conn, l) })
		wg.Go(func() { watch(ctx, f.queue.push) })
		f.queue.deliver(ctx, out)
		wg.Wait()
	}()
	return out
}

type follower struct {
	s     *Systemd
	wants func(string) bool
	queue *queue

	mu        sync.Mutex
	units     map[string]*life
	reloading bool
}

// connect listens for the signals that matter. systemd's UnitNew and
// UnitRemoved, of which one reload sends hundreds, are not among them.
func (f *follower) connect(ctx context.Context) (*dbus.Conn, *listener, error) {
	f.mu.Lock()
	f.reloading = false
	f.mu.Unlock()
	l := newListener(f.heard)
	// Who has the name now does not know yet that we want its signals.
	l.moves = func() { f.s.mirror.open(nil) }
	conn, err := f.s.listen(ctx, l,
		"interface='"+propsIface+"',member='PropertiesChanged',path_namespace='"+strings.TrimSuffix(unitPrefix, "/")+"',arg0='"+unitIface+"'",
		"interface='"+managerIface+"',member='Reloading',path='"+string(managerPath)+"'",
		"interface='"+managerIface+"',member='UnitFilesChanged',path='"+string(managerPath)+"'",
	)
	if err == nil {
		f.s.mirror.open(conn)
		if len(l.owners) > 0 { // moved since
			f.s.mirror.open(nil)
		}
	}
	return conn, l, err
}

// stay keeps the connection up until ctx ends. conn is nil where there is none
// yet.
func (f *follower) stay(ctx context.Context, conn *dbus.Conn, l *listener) {
	up, since := conn != nil, time.Now()
	pause := f.s.wait.backoff
	tell := func(now bool) {
		if now == up {
			return
		}
		up = now
		kind := attach.BusLost
		if up {
			kind = attach.BusBack
		}
		f.s.log.Info("systemd on the bus", "up", up)
		f.queue.push(attach.UnitEvent{Kind: kind})
	}
	drop := func() {
		f.s.mirror.open(nil)
		tell(false)
		conn.Close()
		conn = nil
		if time.Since(since) > f.s.wait.backoffMax {
			pause = f.s.wait.backoff
		}
	}
	for ctx.Err() == nil {
		if conn == nil {
			if sleep(ctx, pause) != nil {
				return
			}
			pause = min(2*pause, f.s.wait.backoffMax)
			var err error
			if conn, l, err = f.connect(ctx); err != nil {
				f.s.log.Debug("cannot follow systemd", "err", err)
				conn = nil
				continue
			}
			since = time.Now()
			tell(true)
		}
		select {
		case <-ctx.Done():
			f.s.mirror.open(nil)
			conn.Close()
			return
		case <-conn.Context().Done():
			drop()
		case owner := <-l.owners:
			// systemd left the bus or is another process now: daemon-reexec.
			// Whatever it said in between was missed.
			f.mu.Lock()
			f.reloading = false
			f.mu.Unlock()
			f.s.mirror.open(nil)
			tell(false)
			if owner == "" {
				continue
			}
			if err := f.s.subscribe(ctx, conn); err != nil {
				drop()
				continue
			}
			f.s.mirror.open(conn)
			if len(l.owners) > 0 { // moved since
				f.s.mirror.open(nil)
			}
			tell(true)
		}
	}
	if conn != nil {
		conn.Close()
	}
	f.s.mirror.open(nil)
}

// heard takes a signal of systemd's. It runs in the connection's goroutine.
func (f *follower) heard(sig *dbus.Signal) {
	switch sig.Name {
	case propsIface + ".PropertiesChanged":
		f.changed(sig)
	case managerIface + ".Reloading":
		if len(sig.Body) < 1 {
			return
		}
		begins, ok := sig.Body[0].(bool)
		if !ok {
			return
		}
		f.s.mirror.forget()
		f.mu.Lock()
		f.reloading = begins
		f.forget()
		f.mu.Unlock()
		if !begins {
			f.queue.push(attach.UnitEvent{Kind: attach.UnitsReloaded})
		}
	case managerIface + ".UnitFilesChanged":
		f.s.mirror.forget()
		f.mu.Lock()
		reloading := f.reloading
		f.mu.Unlock()
		if !reloading { // else the end of the reload says it
			f.queue.push(attach.UnitEvent{Kind: attach.UnitsReloaded})
		}
	}
}

// forget drops what is known of units that nobody wants any more.
func (f *follower) forget() {
	for name := range f.units {
		if !f.wants(name) {
			delete(f.units, name)
		}
	}
}

// changed takes PropertiesChanged of a unit: interface, changed properties
// with their values, names of others. systemd sends all changing properties of
// the interface each time.
func (f *follower) changed(sig *dbus.Signal) {
	unit, ok := unitOf(sig.Path)
	if !ok {
		return
	}
	f.s.mirror.changed(unit, sig.Sequence) // whatever it says, and before anybody hears of it
	if len(sig.Body) < 2 || !f.wants(unit) {
		return
	}
	if iface, ok := sig.Body[0].(string); !ok || iface != unitIface {
		return
	}
	m, ok := sig.Body[1].(map[string]dbus.Variant)
	if !ok {
		return
	}
	p := &props{m: m}
	st := state{active: read[string](p, "ActiveState"), sub: read[string](p, "SubState"), left: read[uint64](p, "InactiveExitTimestampMonotonic")}
	if st.active == "" {
		return // not about its state
	}
	if job := p.row("Job", uint32(0)); job != nil {
		st.job = job[0].(uint32) != 0
	}
	v, hasID := p.get("InvocationID")
	if hasID {
		var err error
		if st.invocation, err = invocationID(v); err != nil {
			p.fail("InvocationID", v)
		}
	}
	if p.err != nil {
		f.s.log.Warn("cannot read a signal of systemd", "unit", unit, "err", p.err)
		return
	}
	f.mu.Lock()
	l := f.units[unit]
	if l == nil {
		if len(f.units) >= maxKept {
			// Instances come and go: there may be any number of them.
			maps.DeleteFunc(f.units, func(_ string, l *life) bool { return l.at == ended })
		}
		l = &life{}
		f.units[unit] = l
	}
	if !hasID {
		st.invocation = l.invocation
	}
	kinds := l.step(st)
	f.mu.Unlock()
	for _, k := range kinds {
		f.queue.push(attach.UnitEvent{Kind: k, Unit: unit})
	}
}

// stage is how far a start has come.
type stage int8

const (
	unheardOf stage = iota
	beginning       // conditions, ExecStartPre=
	starting        // the main process is being started, or has been
	running         // up
	leaving         // being stopped
	ended           // inactive, failed, or waiting for its automatic restart
)

func stageOf(active, sub string) stage {
	switch active {
	case "active", "reloading", "refreshing":
		return running
	case "activating":
		switch {
		case strings.HasPrefix(sub, "auto-restart"):
			return ended
		case sub == "start" || sub == "start-post":
			return starting
		}
		return beginning
	case "deactivating":
		return leaving
	}
	return ended
}

// state is what one signal says of a unit.
type state struct {
	invocation, active, sub string
	// job: a job for the unit is queued or runs.
	job bool
	// left is when the unit last left the inactive state (monotonic, µs); 0 is
	// never since systemd loaded it, which it does again for every start of a
	// unit that nothing else refers to.
	left uint64
}

// life is what Follow remembers of a unit.
type life struct {
	invocation string
	at         stage
	left       uint64
}

// step takes the unit's next state and says what to tell.
func (l *life) step(s state) []attach.UnitEventKind {
	now := stageOf(s.active, s.sub)
	was, fresh := *l, l.invocation != s.invocation
	if fresh && now == ended && s.job && (was.at == unheardOf || s.left == was.left || s.left == 0) {
		// A unit gets the InvocationID of a start before it leaves the
		// inactive state, and systemd tells of that too (seen on 252 and 257).
		// This is not the end of that start: it is about to begin.
		return nil
	}
	l.left = s.left
	if fresh || now > was.at || was.at == ended && now < leaving {
		*l = life{s.invocation, now, s.left}
	}
	switch {
	case was.at == unheardOf:
		// First heard of: only a start is news, or the end of one.
		switch {
		case now < leaving:
			return []attach.UnitEventKind{attach.UnitStarted}
		case now == ended && s.invocation != "":
			return []attach.UnitEventKind{attach.UnitEnded}
		}
	case fresh && now == ended && s.invocation != "":
		return []attach.UnitEventKind{attach.UnitStarted, attach.UnitEnded}
	case fresh && now != ended:
		return []attach.UnitEventKind{attach.UnitStarted}
	case now == ended && was.at != ended:
		return []attach.UnitEventKind{attach.UnitEnded}
	case now < leaving && (now > was.at || was.at == ended):
		return []attach.UnitEventKind{attach.UnitStarted}
	}
	return nil
}

// queue holds events until they are read. What is kept for one unit is at most
// one event of each kind, so that it is bounded by the units that are wanted.
type queue struct {
	wake chan struct{} // one place: something may be there

	mu    sync.Mutex
	order []string // units with events, the one that has waited longest first
	kinds map[string][]attach.UnitEventKind
}

func newQueue() *queue {
	return &queue{wake: make(chan struct{}, 1), kinds: map[string][]attach.UnitEventKind{}}
}

func (q *queue) push(e attach.UnitEvent) {
	q.mu.Lock()
	kinds, waiting := q.kinds[e.Unit]
	if !waiting {
		q.order = append(q.order, e.Unit)
	}
	kinds = slices.DeleteFunc(kinds, func(k attach.UnitEventKind) bool { return k == e.Kind })
	q.kinds[e.Unit] = append(kinds, e.Kind)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) pop() (e attach.UnitEvent, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.order) == 0 {
		return attach.UnitEvent{}, false
	}
	unit := q.order[0]
	kinds := q.kinds[unit]
	e = attach.UnitEvent{Kind: kinds[0], Unit: unit}
	if len(kinds) == 1 {
		delete(q.kinds, unit)
		q.order = q.order[1:]
	} else {
		q.kinds[unit] = kinds[1:]
	}
	return e, true
}

// deliver sends events until ctx ends.
func (q *queue) deliver(ctx context.Context, out chan<- attach.UnitEvent) {
	for {
		e, ok := q.pop()
		if !ok {
			select {
			case <-q.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		select {
		case out <- e:
		case <-ctx.Done():
			return
		}
	}
}
