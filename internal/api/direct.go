package api

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Socket is where root speaks with the daemon without the bus between, as systemctl does
// with systemd at /run/systemd/private: what keeps the bus from answering, as too many
// connections of others or its own end, does not keep root from asking. It is the same
// service, but for the signals that go to everybody.
const Socket = "/run/aaunit/private"

// maxDirect bounds the connections to the socket.
const maxDirect = 64

// listen makes the socket. One that another process answers at is left to it; one that
// was left behind is replaced.
func listen(path string) (*net.UnixListener, error) {
	if other, err := net.Dial("unix", path); err == nil {
		other.Close()
		return nil, errors.New("another process listens there; is another aaunitd running?")
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	// Who connects is looked at all the same (admitted).
	if err := os.Chmod(path, 0o600); err != nil {
		ln.Close()
		return nil, err
	}
	return ln, nil
}

// accept answers at the socket until it is closed.
func (s *service) accept(ctx context.Context, ln *net.UnixListener) {
	places := make(chan struct{}, maxDirect)
	for {
		sock, err := ln.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // as where there are too many open files
			s.log.Warn("cannot take connections to " + ln.Addr().String() + "; trying again: " + err.Error())
			select {
			case <-ctx.Done():
			case <-time.After(retryMax):
			}
			continue
		}
		select {
		case places <- struct{}{}:
		default:
			sock.Close()
			continue
		}
		go func() {
			defer func() { <-places }()
			if err := s.serveDirect(ctx, sock); err != nil {
				s.log.Debug("a connection to " + ln.Addr().String() + " ended: " + err.Error())
			}
		}()
	}
}

// serveDirect serves on one connection to the socket until it ends.
func (s *service) serveDirect(ctx context.Context, sock *net.UnixConn) error {
	defer sock.Close()
	uid, err := s.admitted(sock)
	if err != nil {
		return err
	}
	n := &session{service: s,
		uidOf: func(context.Context, string) (uint32, error) { return uid, nil }, // whatever sender it names
		groupsOf: func(context.Context, string, uint32) ([]uint32, error) {
			return nil, errors.New("only the bus tells them")
		}}
	complete, lost := make(chan struct{}), make(chan error, 1)
	rules := bus.Rules{
		Calls: func(h *bus.Header) *dbus.Error { return n.admit(ctx, h) },
		Lost:  func(err error) { lost <- err },
	}
	begin, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := bus.Accept(begin, sock, int(uid), rules, dbus.WithHandler(gate{complete, handler{n}}), dbus.WithContext(ctx), dbus.WithSignalHandler(deaf{}))
	if err != nil {
		return err
	}
	defer conn.Close()
	n.conn = conn
	close(complete)
	return <-lost
}

// rootPeer gives the user of who has connected, which must be root under no profile. A
// confined program is left to the bus, where AppArmor can have a say; to connect to a
// socket is nothing that every kernel asks it about.
func rootPeer(sock *net.UnixConn) (uid uint32, err error) {
	cred, err := peerOf(sock)
	if err != nil {
		return 0, err
	}
	if cred.Uid != 0 {
		return 0, fmt.Errorf("user %d is not root", cred.Uid)
	}
	label, err := labelOf(sock, cred.Pid)
	if err != nil {
		return 0, fmt.Errorf("cannot tell the AppArmor label of PID %d: %w", cred.Pid, err)
	}
	if label != "unconfined" {
		return 0, fmt.Errorf("PID %d is confined (%s)", cred.Pid, clean(label))
	}
	return cred.Uid, nil
}

// peerOf gives who has connected, or, to who has, who listens; unix(7), SO_PEERCRED.
func peerOf(sock *net.UnixConn) (cred *unix.Ucred, err error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return nil, err
	}
	e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(e, err); err != nil {
		return nil, fmt.Errorf("cannot tell whose the connection is: %w", err)
	}
	return cred, nil
}

// labelOf gives the AppArmor label of who has connected, as it was then; where the kernel
// keeps none with sockets, as Debian's do not, that of the process.
func labelOf(sock *net.UnixConn, pid int32) (label string, err error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return "", err
	}
	e := raw.Control(func(fd uintptr) { label, err = unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_PEERSEC) })
	if errors.Join(e, err) != nil {
		var text []byte
		if text, err = os.ReadFile(fmt.Sprintf("/proc/%d/attr/apparmor/current", pid)); err != nil {
			return "", err
		}
		label = string(text)
	}
	return strings.TrimRight(label, "\x00\n"), nil
}

// dialDirect connects to the daemon's own socket. Only aaunitd.service is believed there,
// as on the bus (Client.prove).
func dialDirect(ctx context.Context, o DialOptions) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	var d net.Dialer
	sock, err := d.DialContext(ctx, "unix", o.Socket)
	if err != nil {
		return nil, err
	}
	look := lookAt
	if o.lookAt != nil {
		look = o.lookAt
	}
	cred, err := peerOf(sock.(*net.UnixConn))
	if err == nil && !look(uint32(cred.Pid)).daemon() {
		err = fmt.Errorf("%w: PID %d listens at %s", ErrNotProved, cred.Pid, o.Socket)
	}
	if err != nil {
		sock.Close()
		return nil, err
	}
	rules := bus.Rules{Signals: func(string) bool { return true }, MaxSignal: bus.MaxReply}
	signals := newInbox()
	conn, err := bus.Join(ctx, sock, rules, dbus.WithSignalHandler(signals))
	if err != nil {
		return nil, err
	}
	return &Client{conn: conn, direct: true, signals: signals}, nil
}
