package bus

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	// MaxCall bounds a method call, and a signal where Rules.MaxSignal does not.
	MaxCall = 256 << 10
	// MaxReply bounds replies and errors. It is what the system bus lets
	// through; dbus-daemon(1), max_message_size.
	MaxReply = 32 << 20

	// patience is how long the bus may take for one message. It reads no more from a
	// connection of which others have too much waiting that they have not read
	// (dbus-daemon(1), max_incoming_bytes): whoever asks a service and never reads
	// the answers can bring it to that. Of a new connection nothing waits.
	patience = 30 * time.Second
)

// ErrMalformed says that what came over the connection is no message. Nothing
// that comes after it can be told apart, so it ends the connection.
var ErrMalformed = errors.New("the bus sent what is no D-Bus message")

// ErrStuck says that the bus did not take a message, which ends the connection.
var ErrStuck = errors.New("the bus did not take a message")

// stream is what godbus reads from and writes to. While it reads, messages are
// cut from the bytes of the socket, and godbus sees only those that are taken.
type stream struct {
	sock   net.Conn
	in     *bufio.Reader
	rules  Rules
	client bool // is at the other end, and no bus: its messages have no sender
	guid   string
	answer func(*dbus.Message)

	// framed: godbus's handshake is over, and messages follow. It is set before
	// godbus starts the goroutine that reads them.
	framed bool
	buf    []byte // the message, as far as it had to be looked at
	ready  []byte // what of it godbus has not read yet
	rest   int64  // what of it is still in the socket, and goes straight to godbus
	lost   bool

	sending sync.Mutex            // held while a message is on its way out
	stuck   atomic.Pointer[error] // why it was closed here
}

func (s *stream) Write(p []byte) (int, error) {
	if !s.framed {
		if err := s.rehearse(p); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	s.sending.Lock()
	defer s.sending.Unlock()
	if !s.client { // one that is stopped keeps up nobody else, and reads on when it goes on
		if err := s.sock.SetWriteDeadline(time.Now().Add(patience)); err != nil {
			return 0, err
		}
	}
	n, err := s.sock.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		// A part of it may be out, and nothing else can follow that.
		err = fmt.Errorf("%w within %v", ErrStuck, patience)
		s.stuck.Store(&err)
		s.Close()
	}
	return n, err
}

// awaitSent waits for the message that is on its way out, if there is one.
func (s *stream) awaitSent() {
	s.sending.Lock()
	defer s.sending.Unlock()
}

// Close closes the socket, once more for nothing. It does not wait for a message that
// is on its way out, as closing godbus's connection does: it ends that.
func (s *stream) Close() error {
	if err := s.sock.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

func (s *stream) Read(p []byte) (int, error) {
	if !s.framed || len(p) == 0 {
		n := copy(p, s.ready)
		s.ready = s.ready[n:]
		if n == 0 && len(p) > 0 {
			return 0, io.ErrUnexpectedEOF // godbus waits for what is not in the script
		}
		return n, nil
	}
	n, err := s.read(p)
	if why := s.stuck.Load(); err != nil && why != nil {
		err = *why
	}
	if err != nil && !s.lost {
		s.lost = true
		if s.rules.Lost != nil {
			s.rules.Lost(err)
		}
	}
	return n, err
}

func (s *stream) read(p []byte) (int, error) {
	for len(s.ready) == 0 && s.rest == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	if len(s.ready) > 0 {
		n := copy(p, s.ready)
		s.ready = s.ready[n:]
		return n, nil
	}
	n, err := s.in.Read(p[:min(int64(len(p)), s.rest)])
	s.rest -= int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, midway(err)
}

// next reads one message as far as it takes to know whether it is taken, and
// makes it ready for godbus or throws it away.
func (s *stream) next() error {
	s.buf = s.buf[:0]
	if err := s.more(fixedSize); err != nil {
		return err
	}
	f, err := parseFixed(s.buf)
	if err != nil {
		return err
	}
	limit := int64(MaxCall)
	if s.client && f.kind != dbus.TypeMethodCall {
		// A bus delivers replies only from whom we asked, and says itself who sends a
		// signal. A client could say anything, and godbus believes it.
		return s.skip(f.size() - fixedSize)
	}
	switch f.kind {
	case dbus.TypeMethodReply, dbus.TypeError:
		if f.size() > MaxReply {
			return fmt.Errorf("the bus sent a reply of %d bytes, and at most %d are taken", f.size(), MaxReply)
		}
		if f.kind == dbus.TypeMethodReply && s.rules.Properties != nil {
			return s.reply(f)
		}
		s.ready, s.rest = s.buf, f.size()-fixedSize
		return nil
	case dbus.TypeMethodCall:
		if s.rules.Calls == nil {
			return s.skip(f.size() - fixedSize)
		}
	case dbus.TypeSignal:
		if s.rules.MaxSignal > 0 {
			limit = int64(s.rules.MaxSignal)
		}
		if f.size() > limit {
			return s.skip(f.size() - fixedSize)
		}
	default: // "Unknown types must be ignored."
		return s.skip(f.size() - fixedSize)
	}
	// Nobody can be answered whose header alone is too long: the sender's name
	// is a part of it.
	if f.header() > MaxCall {
		return s.skip(f.size() - fixedSize)
	}
	if err := s.more(int(f.header() - fixedSize)); err != nil {
		return midway(err)
	}
	h, ok := f.parse(s.buf[fixedSize:][:f.fields])
	switch {
	case !ok || !h.addressed():
		return s.skip(f.body)
	case f.kind == dbus.TypeSignal:
		if h.Sender != Driver && (s.rules.Signals == nil || !s.rules.Signals(h.Sender)) {
			return s.skip(f.body)
		}
		return s.choose(f, h)
	}
	return s.call(f, h)
}

// reply takes a reply as far as its header.
func (s *stream) reply(f fixed) error {
	if err := s.more(int(f.header() - fixedSize)); err != nil {
		return midway(err)
	}
	h, ok := f.parse(s.buf[fixedSize:][:f.fields])
	if !ok {
		s.ready, s.rest = s.buf, f.body
		return nil
	}
	return s.choose(f, h)
}

// choose leaves out of a message the properties that are not wanted. Whatever
// else it is goes to godbus as it came.
func (s *stream) choose(f fixed, h *Header) error {
	if s.rules.Properties == nil || h.Signature != allProperties && (h.Signature != changedProperties || h.Member != "PropertiesChanged") {
		s.ready, s.rest = s.buf, f.body
		return nil
	}
	if err := s.more(int(f.body)); err != nil {
		return midway(err)
	}
	head := int(f.header())
	if chosen := chooseProperties(f.order, h.Signature, s.buf[head:], s.rules.Properties); chosen != nil {
		f.order.PutUint32(s.buf[4:], uint32(len(chosen)))
		s.buf = s.buf[:head+len(chosen)]
	}
	s.ready = s.buf
	return nil
}

// call asks whether a method call is taken. None is while a message is on its way out:
// where nothing gets away, the answers to more calls would only pile up.
func (s *stream) call(f fixed, h *Header) error {
	s.awaitSent()
	refused := s.rules.Calls(h)
	if refused == nil && f.size() > MaxCall {
		refused = dbus.NewError("org.freedesktop.DBus.Error.LimitsExceeded",
			[]any{fmt.Sprintf("the call is %d bytes long, and at most %d are taken; ask for less at once", f.size(), MaxCall)})
	}
	if refused != nil {
		if err := s.skip(f.body); err != nil {
			return err
		}
		s.refuse(h, refused)
		return nil
	}
	if err := s.more(int(f.body)); err != nil {
		return midway(err)
	}
	bad := checkBody(f.order, h.Signature, s.buf[f.header():])
	if bad == nil {
		s.ready = s.buf
		return nil
	}
	// The caller's mistake, not the connection's.
	s.refuse(h, dbus.NewError("org.freedesktop.DBus.Error.InvalidArgs", []any{"cannot take the arguments: " + bad.Error()}))
	return nil
}

func (s *stream) refuse(h *Header, e *dbus.Error) {
	if h.Sender == "" && !s.client || h.Flags&dbus.FlagNoReplyExpected != 0 {
		return
	}
	m := &dbus.Message{Type: dbus.TypeError, Flags: dbus.FlagNoReplyExpected, Body: e.Body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldErrorName:   dbus.MakeVariant(e.Name),
		dbus.FieldReplySerial: dbus.MakeVariant(h.Serial),
	}}
	if h.Sender != "" {
		m.Headers[dbus.FieldDestination] = dbus.MakeVariant(h.Sender)
	}
	if len(e.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(e.Body...))
	}
	s.answer(m)
}

// more reads n more bytes of a message into the buffer.
func (s *stream) more(n int) error {
	have := len(s.buf)
	if free := cap(s.buf) - have; free < n {
		s.buf = append(make([]byte, 0, have+n), s.buf...)
	}
	s.buf = s.buf[:have+n]
	_, err := io.ReadFull(s.in, s.buf[have:])
	return err
}

// skip throws the rest of a message away.
func (s *stream) skip(n int64) error {
	for n > 0 {
		k, err := s.in.Discard(int(min(n, 1<<20)))
		if n -= int64(k); err != nil {
			return midway(err)
		}
	}
	return nil
}

// midway is an error in the middle of a message, where no end was to come.
func midway(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
