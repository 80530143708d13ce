package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// startAlone starts a service that root is to reach without a bus.
func startAlone(t *testing.T, m Manager, admitted func(*net.UnixConn) (uint32, error), changes ...func(*service)) (socket string, stop func() error) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "private")
	s := newService(m, Options{Version: "1.2.3", Address: "unix:path=/nonexistent", Socket: socket, Log: slog.New(slog.DiscardHandler)})
	s.admitted = admitted
	for _, change := range changes {
		change(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	t.Cleanup(cancel)
	waitSocket(t, socket)
	return socket, func() error { cancel(); return <-ended }
}

// A daemon that is started while the bus is down or full is up all the same: systemd would
// end one whose start takes too long, again and again.
func TestTheStartDoesNotWaitForTheBus(t *testing.T) {
	ready := make(chan struct{})
	_, stop := startAlone(t, newFakeManager(), anybody, func(s *service) { s.ready = sync.OnceFunc(func() { close(ready) }) })
	select {
	case <-ready:
	case <-time.After(20 * time.Second):
		t.Error("the service is not ready while the bus is not there")
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// waitSocket waits until somebody listens at the socket, for longer than until the service
// tries again.
func waitSocket(t *testing.T, socket string) {
	t.Helper()
	var err error
	for range 600 {
		var c net.Conn
		if c, err = net.Dial("unix", socket); err == nil {
			c.Close()
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatal(err)
}

func anybody(*net.UnixConn) (uint32, error) { return 0, nil }

// daemonHere has this process taken for aaunitd.service.
func daemonHere(uint32) process { return process{group: "/system.slice/aaunitd.service"} }

// dialAlone connects to a socket, where no bus is to fall back on.
func dialAlone(socket string) (*Client, error) {
	return Dial(context.Background(), DialOptions{Address: "unix:path=/nonexistent", Socket: socket, lookAt: daemonHere})
}

func TestRootIsAnsweredWithoutABus(t *testing.T) {
	m := newFakeManager()
	m.units = []attach.Status{status("a.service", attach.Confined)}
	m.attach = func(_ context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
		for _, s := range []attach.Step{attach.StepDropIn, attach.StepRestart} {
			progress(attach.Event{Unit: r.Units[0], Step: s, State: attach.Done})
		}
		return []attach.Outcome{{Unit: r.Units[0]}}, nil
	}
	socket, stop := startAlone(t, m, anybody)
	c, err := dialAlone(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if r, err := c.Status(t.Context(), nil); err != nil || len(r.Units) != 1 || r.Units[0].Unit != "a.service" {
		t.Errorf("status: %+v %v", r, err)
	}
	text, err := c.StatusJSON(t.Context(), nil)
	if err != nil || !strings.HasPrefix(string(text), `{"exit":`) {
		t.Errorf("status in JSON: %s %v", text, err)
	}
	var steps []attach.Step
	out, err := c.Attach(t.Context(), attach.Request{Units: []string{"a.service"}}, func(e attach.Event) { steps = append(steps, e.Step) })
	if err != nil || len(out) != 1 || out[0].Unit != "a.service" || len(steps) != 2 {
		t.Errorf("attach: %+v %v, steps %v", out, err, steps)
	}
	// An error comes back, too: of a call that is not even read, and of one that is.
	var e dbus.Error
	err = c.call(t.Context(), Path, ManagerInterface, "Nonsense").Err
	if !errors.As(err, &e) || e.Name != errorUnknownMethod {
		t.Errorf("an unknown method: %v", err)
	}
	if _, err := c.Status(t.Context(), []string{""}); !errors.Is(err, ErrBad) {
		t.Errorf("a bad name: %v", err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if _, err := c.Status(t.Context(), nil); !errors.Is(err, ErrGone) {
		t.Errorf("after the end: %v", err)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// The end of the daemon is the end of the connection, and no matter of a bus.
func TestTheEndOfTheDaemonIsHeardAtItsSocket(t *testing.T) {
	m := newFakeManager()
	begun := make(chan struct{})
	m.attach = func(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
		progress(attach.Event{Unit: r.Units[0], Step: attach.StepDropIn, State: attach.Done})
		<-ctx.Done()
		return nil, ctx.Err()
	}
	socket, stop := startAlone(t, m, anybody)
	c, err := dialAlone(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	told := make(chan error, 1)
	go func() {
		_, err := c.Attach(context.Background(), attach.Request{Units: []string{"a.service"}}, func(attach.Event) { close(begun) })
		told <- err
	}()
	<-begun
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := <-told; err == nil || !strings.Contains(err.Error(), "context canceled") {
		t.Errorf("whoever waits for the work is told %v", err)
	}
	// Of one that is killed nothing comes but the end.
	here, there := socketPair(t)
	go func() {
		conn, err := bus.Accept(context.Background(), there, os.Geteuid(), bus.Rules{}, dbus.WithSignalHandler(deaf{}))
		if err == nil {
			time.Sleep(50 * time.Millisecond)
			conn.Close()
		}
	}()
	conn, err := bus.Join(t.Context(), here, bus.Rules{})
	if err != nil {
		t.Fatal(err)
	}
	killed := &Client{conn: conn, direct: true}
	if _, err := killed.Status(t.Context(), nil); !errors.Is(err, ErrGone) || strings.Contains(err.Error(), "bus") {
		t.Errorf("where it is killed: %v", err)
	}
}

func socketPair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() { c, _ := ln.Accept(); accepted <- c }()
	if here, err = net.Dial("unix", ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	return here, <-accepted
}

// Whoever may not is not even let through the handshake, and asks on the bus.
func TestTheSocketIsForRoot(t *testing.T) {
	refused := errors.New("refused")
	socket, _ := startAlone(t, newFakeManager(), func(*net.UnixConn) (uint32, error) { return 0, refused })
	if _, err := dialAlone(socket); !errors.Is(err, ErrNoBus) {
		t.Errorf("who is refused is told %v", err)
	}
	r := startRig(t)
	c, err := Dial(t.Context(), DialOptions{Address: r.address, Socket: socket, lookAt: daemonHere})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.direct {
		t.Error("it is let in all the same")
	}
	if s, err := os.Stat(socket); err != nil || s.Mode().Perm() != 0o600 {
		t.Errorf("the socket has the mode %v, %v", s.Mode(), err)
	}
}

// Only aaunitd.service is believed at the socket, as on the bus.
func TestAStrangerAtTheSocketIsNotBelieved(t *testing.T) {
	socket, _ := startAlone(t, newFakeManager(), anybody)
	r := startRig(t)
	for group, want := range map[string]bool{"/system.slice/aaunitd.service": true, "/system.slice/b.service": false, "": false} {
		looked := 0
		c, err := Dial(t.Context(), DialOptions{Address: r.address, Socket: socket, lookAt: func(pid uint32) process {
			looked++
			if pid != uint32(os.Getpid()) {
				t.Errorf("PID %d is looked at", pid)
			}
			if looked > 1 { // on the bus
				return daemonHere(pid)
			}
			return process{pid: pid, group: group}
		}})
		if err != nil {
			t.Fatal(err)
		}
		c.Close()
		if c.direct != want {
			t.Errorf("in control group %q it is believed: %v", group, c.direct)
		}
	}
}

func TestASocketThatIsThereAlready(t *testing.T) {
	path := filepath.Join(t.TempDir(), "private")
	ln, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := listen(path); err == nil || !strings.Contains(err.Error(), "another process listens there") {
		t.Errorf("a socket at which another one listens: %v", err)
	}
	// One that was killed leaves it behind.
	ln.Close()
	if _, err := os.Stat(path); err != nil {
		t.Fatal(err)
	}
	again, err := listen(path)
	if err != nil {
		t.Fatalf("a socket that was left behind: %v", err)
	}
	// What took its place since is not taken away.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := listen(path)
	if err != nil {
		t.Fatal(err)
	}
	if again.shut(); !other.there() {
		t.Error("one that ended took another one's socket away")
	}
	if other.shut(); other.there() {
		t.Error("one that ended leaves its socket behind")
	}
	if _, err := listen(filepath.Join(path, "none")); err == nil {
		t.Error("a socket was made in no directory")
	}
}

// The socket comes when whoever had its place has ended, and again where it was taken away.
func TestTheSocketComesBack(t *testing.T) {
	m := newFakeManager()
	var path string
	var other *door
	socket, _ := startAlone(t, m, anybody, func(s *service) {
		path, s.resync = s.socket, 50*time.Millisecond
		var err error
		if other, err = listen(path); err != nil {
			t.Fatal(err)
		}
	})
	if _, err := os.Stat(socket); err != nil {
		t.Fatal(err)
	}
	other.shut()
	for _, gone := range []string{"whoever had it ended", "it was taken away"} {
		waitSocket(t, socket)
		c, err := dialAlone(socket)
		if err != nil {
			t.Fatalf("after %s: %v", gone, err)
		}
		c.Close()
		if err := os.Remove(socket); err != nil {
			t.Fatal(err)
		}
	}
	waitSocket(t, socket)
}

// Calls that nobody waits for are bounded, for root too.
func TestCallsOnOneConnectionAreBounded(t *testing.T) {
	m := newFakeManager()
	m.hold = make(chan struct{})
	socket, _ := startAlone(t, m, anybody)
	c, err := dialAlone(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var calls []chan error
	for range maxDirectCalls {
		done := make(chan error, 1)
		go func() { _, err := c.Status(context.Background(), []string{"a.service"}); done <- err }()
		calls = append(calls, done)
	}
	for range 500 {
		m.mu.Lock()
		held := m.held
		m.mu.Unlock()
		if held == maxDirectCalls {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if _, err := c.Status(t.Context(), []string{"a.service"}); err == nil || !strings.Contains(err.Error(), "too many calls") {
		t.Errorf("one more: %v", err)
	}
	close(m.hold)
	for _, done := range calls {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if _, err := c.Status(t.Context(), nil); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// Connections that are kept open do not pile up.
func TestConnectionsToTheSocketAreBounded(t *testing.T) {
	socket, _ := startAlone(t, newFakeManager(), anybody)
	var all []*Client
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	for range maxDirect {
		c, err := dialAlone(socket)
		if err != nil {
			t.Fatalf("connection %d: %v", len(all), err)
		}
		all = append(all, c)
	}
	if _, err := dialAlone(socket); err == nil {
		t.Errorf("connection %d is taken", maxDirect+1)
	}
	all[0].Close()
	for range 500 {
		if c, err := dialAlone(socket); err == nil {
			c.Close()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the place of one that ended is not given to another")
}

// What the kernel says of a peer is what counts.
func TestWhoIsAtTheSocket(t *testing.T) {
	here, there := socketPair(t)
	defer here.Close()
	defer there.Close()
	cred, err := peerOf(there.(*net.UnixConn))
	if err != nil || cred.Uid != uint32(os.Geteuid()) || cred.Pid != int32(os.Getpid()) {
		t.Fatalf("the peer is %+v, %v", cred, err)
	}
	uid, err := rootPeer(there.(*net.UnixConn))
	label, unread := labelOf(there.(*net.UnixConn))
	switch {
	case cred.Uid != 0 || unread == nil && label != "unconfined":
		if err == nil {
			t.Errorf("user %d with label %q (%v) is let in", cred.Uid, label, unread)
		}
	case err != nil || uid != 0:
		t.Errorf("root under no profile is not let in: %v", err)
	}
}
