package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// systemBus is where the system bus is unless the environment says otherwise;
// dbus-daemon(1) and the D-Bus specification, "Well-known Message Bus Instances".
const systemBus = "unix:path=/run/dbus/system_bus_socket"

// connectTimeout bounds the connection and its handshake.
const connectTimeout = 20 * time.Second

func busAddress(given string) string {
	if given != "" {
		return given
	}
	if a := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); a != "" {
		return a
	}
	return systemBus
}

// connect opens a connection that takes no file descriptors. godbus' own
// transport asks the bus for them, and then anybody could fill the daemon's
// descriptor table: descriptors in messages are never closed.
func connect(ctx context.Context, address string, opts ...dbus.ConnOption) (*dbus.Conn, error) {
	sock, err := dialAddress(ctx, address)
	if err != nil {
		return nil, err
	}
	if err := sock.SetDeadline(time.Now().Add(connectTimeout)); err != nil {
		sock.Close()
		return nil, err
	}
	conn, err := dbus.NewConn(stream{bufio.NewReader(sock), sock}, opts...)
	if err != nil {
		sock.Close()
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if err == nil {
		err = sock.SetDeadline(time.Time{})
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// stream reads through a buffer: the decoder reads field by field.
type stream struct {
	io.Reader
	sock net.Conn
}

func (s stream) Write(p []byte) (int, error) { return s.sock.Write(p) }
func (s stream) Close() error                { return s.sock.Close() }

// dialAddress tries the addresses of a list ("unix:path=/x;unix:abstract=y")
// in turn; D-Bus specification, "Server Addresses".
func dialAddress(ctx context.Context, list string) (net.Conn, error) {
	var errs []error
	for _, address := range strings.Split(list, ";") {
		if address == "" {
			continue
		}
		name, err := socketName(address)
		if err == nil {
			d := net.Dialer{Timeout: connectTimeout}
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
