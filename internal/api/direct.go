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

const (
	maxDirect      = 64 // connections to the socket
	maxDirectCalls = 64 // calls that are being answered on one of them; a bus has such a bound, too
)

// door is the socket while it is listened at.
type door struct {
	*net.UnixListener
	path string
	file fs.FileInfo // what is at path
}

// listen makes the socket. One that another process listens at is left to it; one that was
// left behind is replaced.
func listen(path string) (*door, error) {
	switch other, err := net.Dial("unix", path); {
	case err == nil:
		other.Close()
		return nil, errors.New("another process listens there; is another aaunitd running?")
	case errors.Is(err, unix.ECONNREFUSED): // nobody listens
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("cannot tell whether another process listens there: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, err
	}
	ln.SetUnlinkOnClose(false)
	d := &door{UnixListener: ln, path: path}
	// Who connects is looked at all the same (admitted).
	if err = os.Chmod(path, 0o600); err == nil {
		d.file, err = os.Lstat(path)
	}
	if err != nil {
		ln.Close()
		return nil, err
	}
	return d, nil
}

// there reports whether the socket is still where callers look for it.
func (d *door) there() bool {
	now, err := os.Lstat(d.path)
	return err == nil && os.SameFile(now, d.file)
}

// shut ends the listening, and leaves nothing behind.
func (d *door) shut() {
	if d.there() {
		_ = os.Remove(d.path)
	}
	d.Close()
}

// serveSocket answers at the socket until ctx ends. Where it cannot be made, or is not there
// any more, that is tried again.
func (s *service) serveSocket(ctx context.Context) {
	for complained := ""; ctx.Err() == nil; {
		pause := retryMax
		if d, err := listen(s.socket); err == nil {
			complained = ""
			s.accept(ctx, d)
			pause = retryMin
		} else if text := err.Error(); text != complained {
			complained = text
			s.log.Warn("cannot answer at " + s.socket + ", only on the bus; trying again: " + text)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// accept answers at the socket until ctx ends, or the socket is not there any more.
func (s *service) accept(ctx context.Context, d *door) {
	defer d.shut()
	defer context.AfterFunc(ctx, func() { d.Close() })()
	places := make(chan struct{}, maxDirect)
	for {
		_ = d.SetDeadline(time.Now().Add(s.resync))
		sock, err := d.AcceptUnix()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				sock.Close()
			}
			return
		case errors.Is(err, os.ErrDeadlineExceeded):
			if !d.there() {
				return
			}
			continue
		case err != nil: // as where there are too many open files
			s.log.Warn("cannot take connections to " + d.path + "; trying again: " + err.Error())
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
				s.log.Debug("a connection to " + d.path + " ended: " + err.Error())
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
		},
		answering: make(chan struct{}, maxDirectCalls)}
	complete := make(chan struct{})
	rules := bus.Rules{Calls: func(h *bus.Header) *dbus.Error { return n.admit(ctx, h) }}
	begin, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, err := bus.Accept(begin, sock, int(uid), rules, dbus.WithHandler(gate{complete, handler{n}}), dbus.WithContext(ctx), dbus.WithSignalHandler(deaf{}))
	if err != nil {
		return err
	}
	defer conn.Close()
	n.conn = conn
	close(complete)
	<-conn.Context().Done()
	return nil
}

// rootPeer gives the user of who has connected, which must be root. Where the kernel tells
// the AppArmor label under which that was done, there must be no profile: D-Bus rules of one
// are for a bus. Where it does not, as Debian's, a bus knows of no label either, and has the
// service answer whoever is root.
func rootPeer(sock *net.UnixConn) (uid uint32, err error) {
	cred, err := peerOf(sock)
	if err != nil {
		return 0, err
	}
	if cred.Uid != 0 {
		return 0, fmt.Errorf("user %d is not root", cred.Uid)
	}
	label, err := labelOf(sock)
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
	case err != nil:
		return 0, fmt.Errorf("cannot tell the AppArmor label of PID %d: %w", cred.Pid, err)
	case label != "unconfined":
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

// labelOf gives the security label of who has connected, as it was then; unix(7),
// SO_PEERSEC. Without it the error is ENOPROTOOPT. What /proc tells of the process is no
// substitute: it can have executed another program by now.
func labelOf(sock *net.UnixConn) (label string, err error) {
	raw, err := sock.SyscallConn()
	if err != nil {
		return "", err
	}
	e := raw.Control(func(fd uintptr) { label, err = unix.GetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_PEERSEC) })
	return strings.TrimRight(label, "\x00\n"), errors.Join(e, err)
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
