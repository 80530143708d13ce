package units

import (
	"context"
	"fmt"
	"sync"

	"github.com/godbus/dbus/v5"
)

// listener takes the signals of one connection, in the order in which they
// came, in the connection's own goroutine: nothing in it may wait. It lets
// through what systemd sent, and drops what anybody else did.
type listener struct {
	// heard gets systemd's signals.
	heard func(*dbus.Signal)
	// owners has, in its one place, the newest owner of systemd's name that
	// was not looked at yet; "" is none.
	owners chan string
	// moves is called when systemd's name has got another owner, after owners was
	// filled; nil is nothing.
	moves func()

	mu    sync.Mutex
	owner string
	moved bool // the bus told of an owner since we listen
}

func newListener(heard func(*dbus.Signal)) *listener {
	return &listener{heard: heard, owners: make(chan string, 1)}
}

// DeliverSignal implements dbus.SignalHandler.
func (l *listener) DeliverSignal(iface, member string, sig *dbus.Signal) {
	if iface == busIface && sig.Sender == busIface {
		if name, owner, ok := ownerChanged(member, sig.Body); ok && name == systemdName {
			l.setOwner(owner)
		}
		return
	}
	l.mu.Lock()
	ok := l.owner != "" && l.owner == sig.Sender
	l.mu.Unlock()
	if ok {
		l.heard(sig)
	}
}

func ownerChanged(member string, body []any) (name, owner string, ok bool) {
	if member != "NameOwnerChanged" || len(body) != 3 {
		return "", "", false
	}
	name, ok1 := body[0].(string)
	owner, ok2 := body[2].(string)
	return name, owner, ok1 && ok2
}

func (l *listener) setOwner(owner string) {
	l.mu.Lock()
	l.owner, l.moved = owner, true
	l.mu.Unlock()
	select {
	case <-l.owners:
	default:
	}
	l.owners <- owner // there is room: this goroutine is the only one that fills it
	if l.moves != nil {
		l.moves()
	}
}

// listen opens a connection on which l hears systemd's signals that match one
// of the rules. systemd sends signals only when somebody subscribed.
func (s *Systemd) listen(ctx context.Context, l *listener, rules ...string) (*dbus.Conn, error) {
	conn, err := s.dial(ctx, l)
	if err != nil {
		return nil, err
	}
	if err := s.setUp(ctx, conn, l, rules); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (s *Systemd) setUp(ctx context.Context, conn *dbus.Conn, l *listener, rules []string) error {
	match := func(rule string) error {
		return ask(ctx, conn, s.wait.call, busIface, "/org/freedesktop/DBus", busIface+".AddMatch", []any{rule})
	}
	err := match(fmt.Sprintf("type='signal',sender='%s',interface='%s',member='NameOwnerChanged',arg0='%s'", busIface, busIface, systemdName))
	if err != nil {
		return err
	}
	var owner string
	if err := ask(ctx, conn, s.wait.call, busIface, "/org/freedesktop/DBus", busIface+".GetNameOwner", []any{systemdName}, &owner); err != nil {
		return err
	}
	l.mu.Lock()
	if !l.moved { // what the bus told by itself is newer
		l.owner = owner
	}
	l.mu.Unlock()
	for _, r := range rules {
		if err := match("type='signal',sender='" + systemdName + "'," + r); err != nil {
			return err
		}
	}
	return s.subscribe(ctx, conn)
}

func (s *Systemd) subscribe(ctx context.Context, conn *dbus.Conn) error {
	err := ask(ctx, conn, s.wait.call, systemdName, managerPath, managerIface+".Subscribe", nil)
	if errorName(err) == "org.freedesktop.systemd1.AlreadySubscribed" {
		return nil
	}
	return err
}
