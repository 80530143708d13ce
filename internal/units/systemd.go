// Package units is the side of aaunit that talks to systemd: it reads units
// and their effective settings, follows their starts and ends, runs jobs, and
// writes the one drop-in a unit may get from us.
//
// It speaks D-Bus through godbus, and takes only names from go-systemd: the
// job and signal dispatcher there has no check of who sent a signal, drops or
// blocks when its reader is slow, and ends without a word with the connection.
// Any user of the machine may send signals on the system bus, to one
// connection too, so every signal here must come from the owner of
// org.freedesktop.systemd1; what others send is not even decoded.
package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aaunit/aaunit/internal/bus"
	sddbus "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const (
	systemdName = "org.freedesktop.systemd1"
	managerPath = dbus.ObjectPath("/org/freedesktop/systemd1")
	unitPrefix  = "/org/freedesktop/systemd1/unit/"

	managerIface = "org.freedesktop.systemd1.Manager"
	unitIface    = "org.freedesktop.systemd1.Unit"
	serviceIface = "org.freedesktop.systemd1.Service"
	propsIface   = "org.freedesktop.DBus.Properties"
	peerIface    = "org.freedesktop.DBus.Peer"
	busIface     = "org.freedesktop.DBus"
)

// Options are what New needs to know; the zero value is the running system.
type Options struct {
	// Root is put before every path of a unit file or drop-in; "" is "/".
	Root string
	// Address is the bus, as in dbus-daemon(1); "" is the system bus.
	Address string
	// Log gets what is worth knowing later; nil discards it.
	Log *slog.Logger
}

// Systemd talks to the system manager. Its methods may be called from several
// goroutines at once.
type Systemd struct {
	root    string
	address string
	log     *slog.Logger
	wait    waits

	// calls holds the one connection for calls, nil when there is none. It is
	// taken out to be used for dialling and put back at once, so that waiting
	// for it can be given up with the context.
	calls chan *dbus.Conn

	dropIns dropInWatch
	mirror  mirror
	jobs    jobs

	// tmp is the property that tells of a unit's PrivateTmp=, by the last unit of
	// which all was read; "" where none was.
	tmp atomic.Value
}

// waits are the durations that tests shorten.
type waits struct {
	// call bounds one try of a call. systemd answers nothing while it reads
	// its unit files again; 27 s were seen on a busy emulated machine.
	call time.Duration
	// retry is for how long a call is tried again when the bus or systemd went
	// away under it (daemon-reexec, restart of the bus).
	retry time.Duration
	// reload bounds daemon-reload; a job is bounded by job where the caller
	// gives no deadline.
	reload, job time.Duration
	// poll is how often a job that was not heard of is asked for.
	poll time.Duration
	// backoff is the first pause between two tries; it doubles up to backoffMax.
	backoff, backoffMax time.Duration
	// first is how long Follow itself waits for its first connection.
	first time.Duration
}

// New gives a Systemd. It connects when it is first asked something.
func New(o Options) *Systemd {
	s := &Systemd{root: o.Root, address: bus.Address(o.Address), log: o.Log, calls: make(chan *dbus.Conn, 1)}
	if s.root == "" {
		s.root = "/"
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.wait = waits{
		call: time.Minute, retry: 30 * time.Second,
		reload: 3 * time.Minute, job: 10 * time.Minute, poll: 3 * time.Second,
		backoff: 50 * time.Millisecond, backoffMax: 5 * time.Second,
		first: 5 * time.Second,
	}
	s.calls <- nil
	return s
}

// Close ends the connection for calls; the next call opens another one.
func (s *Systemd) Close() error {
	conn := <-s.calls
	s.calls <- nil
	if conn != nil {
		return conn.Close()
	}
	return nil
}

// hearer takes the signals of a connection.
type hearer interface {
	dbus.SignalHandler
	// hears reports whether anything that a sender says is taken. It is asked
	// in the connection's goroutine, before the signal is decoded: anybody may
	// send us anything, as large and as often as the bus lets him.
	hears(sender string) bool
}

// hears implements hearer: the owner of systemd's name, and nobody while there
// is none.
func (l *listener) hears(sender string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owner != "" && l.owner == sender
}

// dial opens a connection of its own. What happens on it is bounded by ctx
// until it is open; after that it lives until it is closed or lost. It has
// nothing to be called for: calls are not taken.
func (s *Systemd) dial(ctx context.Context, signals hearer) (*dbus.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, s.wait.call)
	defer cancel()
	rules := bus.Rules{Signals: signals.hears, Properties: wantedProperty, Lost: func(err error) {
		if errors.Is(err, bus.ErrMalformed) || errors.Is(err, bus.ErrStuck) {
			s.log.Warn("a connection to the bus is given up", "err", err)
		}
	}}
	return bus.Connect(ctx, s.address, rules, dbus.WithSignalHandler(signals))
}

// conn gives the connection for calls, a new one where the old one is lost.
func (s *Systemd) conn(ctx context.Context) (*dbus.Conn, error) {
	var conn *dbus.Conn
	select {
	case conn = <-s.calls:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	var err error
	if conn == nil || !conn.Connected() {
		conn, err = s.dial(ctx, ignoreSignals{})
	}
	s.calls <- conn
	return conn, err
}

// ignoreSignals is for a connection on which no signal was asked for: none that
// is sent to us unasked may pile up.
type ignoreSignals struct{}

func (ignoreSignals) DeliverSignal(string, string, *dbus.Signal) {}
func (ignoreSignals) hears(string) bool                          { return false }

// call makes a call that may be repeated, and repeats it for as long as
// waits.retry while the bus or systemd is away.
func (s *Systemd) call(ctx context.Context, timeout time.Duration, path dbus.ObjectPath, method string, args []any, ret ...any) error {
	var away time.Time
	pause := s.wait.backoff
	for {
		conn, err := s.conn(ctx)
		if err == nil {
			err = ask(ctx, conn, timeout, systemdName, path, method, args, ret...)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !passing(err):
			return err
		case away.IsZero():
			away = time.Now()
		case time.Since(away) > s.wait.retry:
			return err
		}
		s.log.Debug("systemd is away, asking again", "method", method, "err", err)
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, s.wait.backoffMax)
	}
}

// ask makes one call on one connection. It never has the bus start the one
// who shall answer: systemd cannot be started, and the bus's own word for that
// would hide that it is only away for a moment.
func ask(ctx context.Context, conn *dbus.Conn, timeout time.Duration, dest string, path dbus.ObjectPath, method string, args []any, ret ...any) error {
	_, err := askInOrder(ctx, conn, timeout, dest, path, method, args, ret...)
	return err
}

// askInOrder is ask, and tells the answer's place among all that came over the
// connection.
func askInOrder(ctx context.Context, conn *dbus.Conn, timeout time.Duration, dest string, path dbus.ObjectPath, method string, args []any, ret ...any) (dbus.Sequence, error) {
	call, err := askOnce(ctx, conn, timeout, dest, path, method, args)
	if err == nil {
		err = call.Store(ret...)
	}
	return call.ResponseSequence, err
}

// askOnce is ask, and gives the answer as it came.
func askOnce(ctx context.Context, conn *dbus.Conn, timeout time.Duration, dest string, path dbus.ObjectPath, method string, args []any) (*dbus.Call, error) {
	one, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	call := conn.Object(dest, path).CallWithContext(one, method, dbus.FlagNoAutoStart, args...)
	if call.Err != nil && one.Err() != nil && ctx.Err() == nil {
		return call, fmt.Errorf("%w within %v", errSilent, timeout)
	}
	return call, call.Err
}

var (
	errSilent   = errors.New("systemd did not answer")
	errNotHeard = errors.New("systemd's signals are not heard")
)

// passing reports whether an error is of the bus or of systemd being away for
// a moment, and not an answer.
func passing(err error) bool {
	if name := errorName(err); name != "" {
		switch name {
		case "org.freedesktop.DBus.Error.NoReply",
			"org.freedesktop.DBus.Error.Disconnected",
			"org.freedesktop.DBus.Error.ServiceUnknown",
			"org.freedesktop.DBus.Error.NameHasNoOwner",
			"org.freedesktop.DBus.Error.Timeout",
			"org.freedesktop.DBus.Error.TimedOut",
			"org.freedesktop.DBus.Error.NoServer":
			return true
		}
		return false
	}
	for _, away := range []error{errSilent, bus.ErrMalformed, bus.ErrStuck, dbus.ErrClosed, io.EOF, io.ErrUnexpectedEOF, net.ErrClosed,
		syscall.ECONNREFUSED, syscall.ECONNRESET, syscall.EPIPE, syscall.ENOENT, syscall.EAGAIN} {
		if errors.Is(err, away) {
			return true
		}
	}
	return false
}

// errorName is the D-Bus name of an error, "" where it has none.
func errorName(err error) string {
	var de dbus.Error
	if errors.As(err, &de) {
		return de.Name
	}
	return ""
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pathOf is the object of a unit. systemd loads the unit when it is asked
// about the object, and finds the one an alias stands for.
func pathOf(unit string) dbus.ObjectPath {
	return dbus.ObjectPath(unitPrefix + sddbus.PathBusEscape(unit))
}

// unitOf is the inverse; ok is false for what is no unit's object.
func unitOf(path dbus.ObjectPath) (unit string, ok bool) {
	s, ok := strings.CutPrefix(string(path), unitPrefix)
	if !ok || s == "" {
		return "", false
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '_' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		c, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b = append(b, byte(c))
		i += 2
	}
	return string(b), true
}
