package bus

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godbus/dbus/v5"
)

// watched tells of each long message that is written to it.
type watched struct {
	net.Conn
	writing chan struct{}
}

// long is more than the other end takes before it is read from.
var long = strings.Repeat("x", 1<<16)

func (w watched) Write(p []byte) (int, error) {
	if len(p) >= len(long) {
		w.writing <- struct{}{}
	}
	return w.Conn.Write(p)
}

// stuck gives a connection to a bus that takes one message more than are received
// from the peer.
func stuck(t *testing.T, rules Rules, opts ...dbus.ConnOption) (*dbus.Conn, *peer, <-chan struct{}) {
	t.Helper()
	here, there := net.Pipe()
	p := &peer{Conn: there, got: make(chan *dbus.Message)}
	w := watched{here, make(chan struct{}, 100)}
	up := make(chan error, 1)
	go p.serve(up)
	conn, err := over(t.Context(), "the bus", w, rules, hello, opts...)
	if err == nil {
		err = <-up
	}
	if err != nil {
		t.Fatal(err)
	}
	return conn, p, w.writing
}

func tell(conn *dbus.Conn) error { return conn.Emit("/a", "org.example.A.Told", long) }

// A bus that does not take a message loses the connection: whoever keeps it up is told
// why, and can make another one.
func TestABusThatTakesNothingIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := make(chan error, 1)
		conn, p, _ := stuck(t, Rules{Lost: func(err error) { lost <- err }})
		call := conn.Object(":1.2", "/a").Go("org.example.A.Read", 0, nil)
		// What is taken late is no matter.
		go func() { time.Sleep(patience - time.Second); <-p.got; <-p.got }()
		if err := tell(conn); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		tell(conn) // is read, and stays where it is
		err := tell(conn)
		if took := time.Since(began); !errors.Is(err, ErrStuck) || took != patience {
			t.Errorf("after %v: %v", took, err)
		}
		<-conn.Context().Done()
		for from, err := range map[string]error{"Lost": <-lost, "a call": (<-call.Done).Err} {
			if !errors.Is(err, ErrStuck) {
				t.Errorf("%s is told: %v", from, err)
			}
		}
		for range p.got {
		}
	})
}

// What ends with its context does not wait for the bus.
func TestAContextEndsAConnectionThatIsStuck(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	conn, p, writing := stuck(t, Rules{}, dbus.WithContext(ctx))
	sent := make(chan error, 2)
	for range 2 {
		go func() { sent <- tell(conn) }()
		<-writing
	}
	cancel()
	closed := make(chan error, 1)
	go func() { closed <- conn.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Errorf("closed with %v", err)
		}
	case <-time.After(patience / 2):
		t.Fatal("Close waits for the bus")
	}
	for range 2 {
		<-sent
	}
	for range p.got {
	}
}

// Calls wait where nothing gets away: their answers would pile up.
func TestNoCallsAreTakenWhileAMessageIsStuck(t *testing.T) {
	var asked atomic.Int32
	conn, p, writing := stuck(t, Rules{Calls: func(*Header) *dbus.Error { asked.Add(1); return nil }})
	defer conn.Close()
	if err := conn.Export(&service{}, "/a", "org.example.A"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		go tell(conn)
		<-writing
	}
	const calls = 5
	go func() {
		for range calls {
			p.write(frame(binary.LittleEndian, dbus.TypeMethodCall, callOf("Do"), "text"))
		}
	}()
	time.Sleep(100 * time.Millisecond)
	if n := asked.Load(); n != 0 {
		t.Errorf("%d calls were taken", n)
	}
	for range calls + 2 {
		p.receive(t)
	}
	if n := asked.Load(); n != calls {
		t.Errorf("afterwards %d calls were taken", n)
	}
}
