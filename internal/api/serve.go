package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// Options are what the daemon decides about its service.
type Options struct {
	// Version is shown on the bus.
	Version string
	// Address is the bus; "" means the system bus.
	Address string
	// Socket is where root is answered without the bus; "" is nowhere. See Socket.
	Socket string
	// Log takes what goes wrong; nil means slog.Default().
	Log *slog.Logger
	// Ready is called once, when the name is owned and calls are answered, or when
	// somebody who is no aaunitd is found to have it.
	Ready func()
	// Known is closed when the manager knows what is attached; nil means that it does.
	// The name is not taken before: the answer would be that nothing is.
	Known <-chan struct{}
	// Answered is called after each call that was answered; nil is nothing. It must
	// not wait.
	Answered func()
}

// ErrNameTaken says that another process has the name: another aaunitd.
var ErrNameTaken = errors.New("the bus name " + BusName + " belongs to another process; is another aaunitd running?")

const (
	// connectTimeout bounds a connection and its handshake.
	connectTimeout = 20 * time.Second
	retryMin       = 200 * time.Millisecond
	retryMax       = 10 * time.Second
	// resync is how often what is published is compared with what is known, in
	// case a publication was missed, and whether the socket is still there.
	resync = 10 * time.Minute
	// lastWords bounds the wait for operations when the service ends: their
	// work ends with ctx, and callers are still told how.
	lastWords = 10 * time.Second
)

// Serve offers m on the bus until ctx ends, and then returns nil. A bus that is
// not there or goes away is tried again for ever; work goes on meanwhile. It
// returns ErrNameTaken when it finds at its first connection that another aaunitd has
// the name (process.givesWay). From anybody else it is waited for like a bus that is
// not there: who could end the daemon by taking its name would take the units' keeper.
// Whoever has the bus start the daemon waits for the name, and is told by the bus
// that it did not come where Known takes too long.
func Serve(ctx context.Context, m Manager, o Options) error {
	s := newService(m, o)
	return s.run(ctx)
}

// service is what outlives a connection.
type service struct {
	manager    Manager
	version    string
	address    string
	socket     string
	log        *slog.Logger
	ready      func()
	known      <-chan struct{}
	answered   func()
	board      *board
	operations *operations
	calls      *limiter
	looking    *counter // expensive calls being answered
	reading    *counter // reading calls being answered
	asking     *counter // questions to polkit
	waiting    *counter // calls that wait for denials
	tickets    atomic.Uint64
	// credentials tells the users behind unique names of a connection.
	credentials func(*dbus.Conn) func(context.Context, string) (uint32, error)
	// groups tells their groups, and adm the group whose members read logs.
	groups func(*dbus.Conn) func(context.Context, string, uint32) ([]uint32, error)
	adm    func() (uint32, error)
	// resync is how often it is looked whether all is as it should be.
	resync time.Duration
	// admitted gives the user of who has connected to the socket, if that one may.
	admitted func(*net.UnixConn) (uint32, error)
	// lookAt tells what a process is, and self is this one.
	lookAt func(pid uint32) process
	self   process
	// life is the context in which operations work.
	life context.Context
}

func newService(m Manager, o Options) *service {
	s := &service{
		manager: m, version: o.Version, address: bus.Address(o.Address), socket: o.Socket, log: o.Log,
		ready:       func() {},
		known:       o.Known,
		answered:    func() {},
		board:       newBoard(),
		operations:  newOperations(),
		calls:       newLimiter(callRate, callBurst),
		looking:     newCounter(4, 16),
		reading:     newCounter(maxReading, maxReadingAll),
		asking:      newCounter(4, 32),
		waiting:     newCounter(8, 32),
		credentials: busCredentials,
		groups:      busGroups,
		adm:         admGroup,
		resync:      resync,
		admitted:    rootPeer,
		lookAt:      lookAt,
		self:        lookAt(uint32(os.Getpid())),
	}
	if s.log == nil {
		s.log = slog.Default()
	}
	if o.Known == nil {
		known := make(chan struct{})
		close(known)
		s.known = known
	}
	if o.Ready != nil {
		s.ready = sync.OnceFunc(o.Ready)
	}
	if o.Answered != nil {
		s.answered = o.Answered
	}
	return s
}

// session is the service on one connection, to the bus or to who has connected.
type session struct {
	*service
	conn *dbus.Conn
	// uidOf tells the user behind a unique name, and groupsOf the groups.
	uidOf    func(ctx context.Context, sender string) (uint32, error)
	groupsOf func(ctx context.Context, sender string, uid uint32) ([]uint32, error)
	// answering has a place for each call that is being answered; nil bounds them not.
	answering chan struct{}
}

func (s *service) run(ctx context.Context) error {
	// Operations end when ctx ends, and tell their callers over the connection,
	// which therefore lives a little longer.
	s.life = ctx
	link, unlink := context.WithCancel(context.WithoutCancel(ctx))
	defer unlink()
	context.AfterFunc(ctx, func() {
		done := make(chan struct{})
		go func() { s.operations.close(); close(done) }()
		select {
		case <-done:
		case <-time.After(lastWords):
		}
		unlink()
	})

	s.manager.Subscribe(ctx, s.board.publish) // before: what comes meanwhile is heard
	select {
	case <-s.known:
	case <-ctx.Done():
		return nil
	}
	s.board.sync(s.manager.Status)
	go s.compare(ctx)
	if s.socket != "" {
		var socket sync.WaitGroup
		socket.Go(func() { s.serveSocket(link) })
		defer func() { unlink(); socket.Wait() }()
	}

	pause, complained := retryMin, ""
	for first := true; ; first = false {
		began := time.Now()
		err := s.serveOnce(link)
		if link.Err() != nil || ctx.Err() != nil {
			<-link.Done()
			return nil
		}
		if first && errors.Is(err, ErrNameTaken) {
			return err
		}
		// The start is over: for how long that lasts is not up to us, and root is
		// answered at the socket. Who waits for a start is ended in the end.
		s.ready()
		if time.Since(began) > retryMax {
			pause = retryMin
		}
		if text := err.Error(); text != complained {
			complained = text
			s.log.Warn("cannot serve on the bus; trying again: " + text) // journalctl shows no fields
		}
		select {
		case <-ctx.Done():
			<-link.Done()
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, retryMax)
	}
}

// serveOnce serves on one connection until it ends.
func (s *service) serveOnce(ctx context.Context) error {
	// Who a caller is has to be known before the call is decoded, in the
	// goroutine that reads it: that one cannot wait for an answer that comes over
	// the same connection.
	asker, err := connect(ctx, s.address, bus.Rules{}, dbus.WithContext(ctx), dbus.WithSignalHandler(deaf{}))
	if err != nil {
		return fmt.Errorf("cannot connect to the bus: %w", err)
	}
	defer asker.Close()
	who := &identities{known: map[string]uint32{}, ask: s.credentials(asker)}
	n := &session{service: s, uidOf: who.uid, groupsOf: s.groups(asker)}
	complete, lost := make(chan struct{}), make(chan error, 1)
	rules := bus.Rules{
		Calls: func(h *bus.Header) *dbus.Error { return n.admit(ctx, h) },
		Lost:  func(err error) { lost <- err },
	}
	conn, err := connect(ctx, s.address, rules, dbus.WithHandler(gate{complete, handler{n}}), dbus.WithContext(ctx), dbus.WithSignalHandler(deaf{}))
	if err != nil {
		return fmt.Errorf("cannot connect to the bus: %w", err)
	}
	defer conn.Close()
	// Without the one, nobody could be told from anybody on the other.
	defer context.AfterFunc(asker.Context(), func() { conn.Close() })()
	n.conn = conn
	close(complete)

	told := s.board.snapshot()
	reply, err := conn.RequestName(BusName, dbus.NameFlagDoNotQueue)
	switch {
	case err != nil:
		return fmt.Errorf("cannot take the bus name %s: %w", BusName, err)
	case reply != dbus.RequestNameReplyPrimaryOwner && reply != dbus.RequestNameReplyAlreadyOwner:
		return s.taken(ctx, conn)
	}
	s.log.Debug("serving on the bus", "name", BusName)
	s.ready()
	n.announce(told)
	// What wrote on it may have noticed first.
	conn.Close()
	return fmt.Errorf("the connection to the bus ended: %w", <-lost)
}

func connect(ctx context.Context, address string, rules bus.Rules, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return bus.Connect(ctx, address, rules, opts...)
}

// compare makes up for a publication that was missed.
func (s *service) compare(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(s.resync):
		}
		s.board.sync(s.manager.Status)
	}
}

// gate holds back calls until the session is complete: a connection answers
// from its first moment on.
type gate struct {
	open <-chan struct{}
	handler
}

func (g gate) LookupObject(path dbus.ObjectPath) (dbus.ServerObject, bool) {
	<-g.open
	return g.handler.LookupObject(path)
}

// deaf drops signals: the service follows none.
type deaf struct{}

func (deaf) DeliverSignal(string, string, *dbus.Signal) {}
