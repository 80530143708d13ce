// Package bus opens connections to the message bus on which strangers can do
// no harm. Anybody on the machine can send anything to any connection of the
// system bus, and godbus does with a message what it says, before anybody has
// looked at who sent it:
//
//   - It asks the bus for file descriptors. Those in messages are never closed,
//     and an array of them makes its decoder panic. A connection of this package
//     takes none.
//   - It decodes bodies of any size, into several times as much memory. Here a
//     message is bounded, and its sender looked at, while it is still bytes.
//   - It makes a type, which reflect keeps for ever, for each signature that it
//     meets in a body. Here a call holds only types of a small, closed set.
//
// Replies and errors are taken as they are: a bus delivers them only from whom
// we asked.
//
// Anybody can also ask a service and never read the answers. The bus keeps them, and
// when it has too many it takes nothing more from the service, for whomever. A
// connection of this package takes no calls while what it sends does not get away, and
// is lost when that lasts.
package bus

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Driver is the bus itself, as a sender: nobody else can have that name.
const Driver = "org.freedesktop.DBus"

// systemBus is where the system bus is unless the environment says otherwise;
// dbus-daemon(1) and the D-Bus specification, "Well-known Message Bus Instances".
const systemBus = "unix:path=/run/dbus/system_bus_socket"

// Address gives the address of the bus, "" being the system bus.
func Address(given string) string {
	if given != "" {
		return given
	}
	if a := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return systemBus
}

// Rules say what a connection takes from strangers. The zero value is for a
// connection that only asks: it takes no calls, and no signals but the bus's
// own. Both functions are called in the order of the messages, in the one
// goroutine that reads them: they must not wait for anything that comes over
// the same connection.
type Rules struct {
	// Calls is asked about every method call when nothing but its header has
	// been read. An error is sent to the caller, and the rest of the call is
	// thrown away. Nil takes no calls; their callers get no answer.
	Calls func(*Header) *dbus.Error
	// Signals reports whether signals of a sender are taken, beside the bus's.
	Signals func(sender string) bool
	// MaxSignal bounds signals, where it is not MaxCall: for a connection that
	// takes them only from whom it trusts.
	MaxSignal int
	// Properties chooses what of a dictionary of properties, as GetAll and
	// PropertiesChanged have one, is decoded; nil decodes all. systemd tells some four hundred properties of
	// a service, and decoding one costs far more than passing over it.
	Properties func(name string) bool
	// Lost is told, once, what ended the reading of messages: also that the
	// connection was closed here.
	Lost func(error)
}

// Connect opens a connection of its own to a bus. What happens on it is bounded by ctx
// until it is open; after that it lives until it is closed or lost. A bus that takes
// no messages loses it.
func Connect(ctx context.Context, address string, rules Rules, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	sock, err := dial(ctx, address)
	if err != nil {
		return nil, err
	}
	return over(ctx, "the bus", sock, rules, hello, opts...)
}

// Join makes a connection of a socket that is connected to a server, without a bus between:
// messages have no sender and no destination. It is bounded as Connect is.
func Join(ctx context.Context, sock net.Conn, rules Rules, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	return over(ctx, "the server", sock, rules, join, opts...)
}

// Accept makes a connection of a socket on which a client of that user has connected, as
// Join does at the other end. Nothing but calls is taken from it.
func Accept(ctx context.Context, sock net.Conn, uid int, rules Rules, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	return over(ctx, "the client", sock, rules, func(s *stream, conn *dbus.Conn) error {
		s.client = true
		if err := s.welcome(uid); err != nil {
			return err
		}
		return s.start(conn)
	}, opts...)
}

// over makes a connection of a socket to the other end; open brings it so far that messages are read.
func over(ctx context.Context, other string, sock net.Conn, rules Rules, open func(*stream, *dbus.Conn) error, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	s := &stream{sock: sock, in: bufio.NewReader(sock), rules: rules}
	conn, err := dbus.NewConn(s, opts...)
	if err != nil {
		sock.Close()
		return nil, err
	}
	s.answer = func(m *dbus.Message) { conn.Send(m, nil) }
	// A connection can have a context to live in (dbus.WithContext). godbus would end
	// it when the message that is being sent has been taken.
	context.AfterFunc(conn.Context(), func() { s.Close() })
	// What waits for the other end knows no context: closing the socket ends it.
	stop := context.AfterFunc(ctx, func() { s.Close() })
	err = open(s, conn)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = fmt.Errorf("%s did not answer: %w", other, context.Cause(ctx))
		}
		return nil, err
	}
	return conn, nil
}

func join(s *stream, conn *dbus.Conn) error {
	if err := s.introduce(); err != nil {
		return err
	}
	return s.start(conn)
}

func hello(s *stream, conn *dbus.Conn) error {
	if err := join(s, conn); err != nil {
		return err
	}
	return conn.Hello()
}

// start has godbus read messages.
func (s *stream) start(conn *dbus.Conn) error {
	return conn.Auth([]dbus.Auth{dbus.AuthExternal("")})
}

// dial tries the addresses of a list ("unix:path=/x;unix:abstract=y") in turn;
// D-Bus specification, "Server Addresses".
func dial(ctx context.Context, list string) (net.Conn, error) {
	var errs []error
	for _, address := range strings.Split(list, ";") {
		if address == "" {
			continue
		}
		name, err := socketName(address)
		if err == nil {
			var d net.Dialer
			var c net.Conn
			if c, err = d.DialContext(ctx, "unix", name); err == nil {
				return c, nil
			}
		}
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		return nil, errors.New("the bus address is empty")
	}
	return nil, errors.Join(errs...)
}

func socketName(address string) (string, error) {
	rest, ok := strings.CutPrefix(address, "unix:")
	if !ok {
		return "", fmt.Errorf("cannot use bus address %q: only unix sockets are supported", address)
	}
	for _, pair := range strings.Split(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		value, err := dbus.UnescapeBusAddressValue(value)
		switch {
		case err != nil:
			return "", fmt.Errorf("cannot use bus address %q: %w", address, err)
		case key == "path" && value != "":
			return value, nil
		case key == "abstract" && value != "":
			return "@" + value, nil
		}
	}
	return "", fmt.Errorf("cannot use bus address %q: it has neither path= nor abstract=", address)
}
