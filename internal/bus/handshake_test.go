package bus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godbus/dbus/v5"
)

func TestHandshakeWithAClient(t *testing.T) {
	me := identity(1000)
	for name, c := range map[string]struct {
		says string
		hear string // what it is answered, by first words
		err  string // "" it is let in
	}{
		"in one turn, as sd-bus and this package": {"\x00AUTH EXTERNAL " + me + "\r\nBEGIN\r\n", "OK", ""},
		"in four, as godbus":                      {"\x00AUTH\r\nAUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", "REJECTED DATA OK", ""},
		"as libdbus, with file descriptors":       {"\x00AUTH EXTERNAL " + me + "\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n", "OK ERROR", ""},
		"whose number comes later":                {"\x00AUTH EXTERNAL\r\nDATA " + me + "\r\nBEGIN\r\n", "DATA OK", ""},
		"another user":                            {"\x00AUTH EXTERNAL " + identity(0) + "\r\nBEGIN\r\n", "REJECTED", "before it was let in"},
		"another user, later":                     {"\x00AUTH EXTERNAL\r\nDATA " + identity(0) + "\r\nBEGIN\r\n", "DATA REJECTED", "before it was let in"},
		"no one who asks":                         {"\x00BEGIN\r\n", "", "before it was let in"},
		"data without a question":                 {"\x00DATA " + me + "\r\nBEGIN\r\n", "REJECTED", "before it was let in"},
		"who takes it back":                       {"\x00AUTH EXTERNAL " + me + "\r\nCANCEL\r\nBEGIN\r\n", "OK REJECTED", "before it was let in"},
		"another mechanism":                       {"\x00AUTH ANONYMOUS\r\nBEGIN\r\n", "REJECTED", "before it was let in"},
		"a web browser":                           {"GET / HTTP/1.1\r\n", "", "it began with 0x47"},
		"a long line":                             {"\x00AUTH " + strings.Repeat("x", 2*maxLine) + "\r\n", "", "a line of over 1024 bytes"},
		"a line without an end":                   {"\x00" + strings.Repeat("x", 1<<16), "", "a line of over 1024 bytes"},
		"many lines":                              {"\x00" + strings.Repeat("X\r\n", maxLines+1), strings.TrimSpace(strings.Repeat("ERROR ", maxLines)), "it does not begin"},
		"who goes away":                           {"\x00AUTH EXT", "", io.ErrUnexpectedEOF.Error()},
		"who says nothing":                        {"", "", io.EOF.Error()},
	} {
		here, there := net.Pipe()
		var heard bytes.Buffer
		done := make(chan struct{})
		go func() {
			defer close(done)
			go func() { io.WriteString(there, c.says); time.Sleep(20 * time.Millisecond); there.Close() }()
			io.Copy(&heard, there)
		}()
		s := &stream{sock: here, in: bufio.NewReader(here)}
		err := s.welcome(1000)
		here.Close()
		<-done
		switch {
		case c.err == "" && err != nil, c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %v, want %q", name, err, c.err)
		}
		var words []string
		for line := range strings.Lines(heard.String()) {
			words = append(words, strings.Fields(line)[0])
		}
		if got := strings.Join(words, " "); got != c.hear {
			t.Errorf("%s is answered %q, want %q", name, got, c.hear)
		}
	}
}

func TestHandshakeWithAServer(t *testing.T) {
	for name, c := range map[string]struct{ says, err string }{
		"that takes us":    {"OK 0123456789abcdef\r\n", ""},
		"that does not":    {"REJECTED EXTERNAL\r\n", "was rejected"},
		"of something":     {"HTTP/1.1 400 Bad Request\r\n", "does not speak D-Bus"},
		"that says much":   {strings.Repeat("x", 1<<16), "a line of over 1024 bytes"},
		"that goes away":   {"", io.ErrUnexpectedEOF.Error()},
		"that stops there": {"OK", io.ErrUnexpectedEOF.Error()},
	} {
		here, there := net.Pipe()
		go func() {
			bufio.NewReader(there).ReadString('\n')
			io.WriteString(there, c.says)
			if c.err == "" {
				bufio.NewReader(there).ReadString('\n')
			}
			there.Close()
		}()
		s := &stream{sock: here, in: bufio.NewReader(here)}
		if err := s.introduce(); c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("a server %s: %v, want %q", name, err, c.err)
		}
		here.Close()
	}
}

// accepting accepts a connection at one end of a socket.
func accepting(t *testing.T, there net.Conn, rules Rules) <-chan *dbus.Conn {
	accepted := make(chan *dbus.Conn, 1)
	go func() {
		conn, err := Accept(t.Context(), there, os.Geteuid(), rules)
		if err != nil {
			t.Error(err)
		}
		accepted <- conn
	}()
	return accepted
}

// pair gives the two ends of a connection without a bus: a service of org.example.A at
// the one, and who asks it at the other.
func pair(t *testing.T, rules Rules) (server, client *dbus.Conn, s *service) {
	t.Helper()
	here, there := net.Pipe()
	accepted := accepting(t, there, rules)
	client, err := Join(t.Context(), here, Rules{Signals: func(sender string) bool { return sender == "" }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	if server = <-accepted; server == nil {
		t.FailNow()
	}
	t.Cleanup(func() { server.Close() })
	s = &service{}
	if err := server.Export(s, "/a", "org.example.A"); err != nil {
		t.Fatal(err)
	}
	return server, client, s
}

func TestCallsWithoutABus(t *testing.T) {
	server, client, s := pair(t, Rules{Calls: func(h *Header) *dbus.Error {
		if h.Member == "Never" {
			return dbus.NewError("org.example.Never", []any{"no"})
		}
		return nil
	}})
	a := client.Object("", "/a")
	var out string
	if err := a.Call("org.example.A.Do", 0, "text").Store(&out); err != nil || out != "done" || len(s.calls) != 1 {
		t.Errorf("a call: %q %v", out, err)
	}
	var e dbus.Error
	for method, want := range map[string]string{"Never": "org.example.Never", "Other": "org.freedesktop.DBus.Error.UnknownMethod"} {
		if err := a.Call("org.example.A."+method, 0).Err; !errors.As(err, &e) || e.Name != want {
			t.Errorf("%s: %v, want %s", method, err, want)
		}
	}
	heard := make(chan *dbus.Signal, 1)
	client.Signal(heard)
	if err := server.Emit("/a", "org.example.A.Told", "news"); err != nil {
		t.Fatal(err)
	}
	if s := <-heard; s.Name != "org.example.A.Told" || s.Sender != "" || len(s.Body) != 1 || s.Body[0] != "news" {
		t.Errorf("heard %+v", s)
	}
}

// Whoever connects and then says nothing is waited for no longer than the context lasts.
func TestAcceptIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, there := net.Pipe()
		defer there.Close()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		began := time.Now()
		_, err := Accept(ctx, here, 0, Rules{})
		if took := time.Since(began); err == nil || !strings.Contains(err.Error(), "the client did not answer") || took != time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
	})
}

// FuzzWelcome: whatever a client says, the handshake ends, and nobody is let in who did
// not say who he is, or said that he is somebody else.
func FuzzWelcome(f *testing.F) {
	me := identity(1000)
	for _, s := range []string{"\x00AUTH EXTERNAL " + me + "\r\nBEGIN\r\n", "\x00AUTH\r\nAUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", "\x00AUTH EXTERNAL 30\r\nBEGIN\r\n",
		"\x00AUTH EXTERNAL\r\nDATA " + me + "\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n", "\x00CANCEL\r\n", "\x00BEGIN\n", "l\x01\x00\x01"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		s := &stream{sock: mute{}, in: bufio.NewReader(bytes.NewReader(said))}
		if s.welcome(1000) != nil {
			return
		}
		for _, claim := range []string{"AUTH EXTERNAL " + me, "DATA"} {
			if bytes.Contains(said, []byte(claim)) {
				return
			}
		}
		t.Errorf("%q is let in", said)
	})
}

// mute takes what is written to it, and says nothing.
type mute struct{ net.Conn }

func (mute) Write(p []byte) (int, error) { return len(p), nil }

// A bus says itself who sends a signal, and delivers replies only from whom we asked. A
// client can say what it likes, and nothing of it gets to godbus but calls.
func TestAClientOnlyCalls(t *testing.T) {
	lost := make(chan error, 1)
	here, in, conn := begun(t, Rules{Calls: func(*Header) *dbus.Error { return nil }, Lost: func(err error) { lost <- err }})
	defer conn.Close()
	if err := conn.Export(&service{}, "/a", "org.example.A"); err != nil {
		t.Fatal(err)
	}
	bad := frame(binary.LittleEndian, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: uint32(1)}, true)
	bad[len(bad)-4] = 2 // no boolean: godbus would end the connection
	for _, m := range [][]byte{
		frame(binary.LittleEndian, dbus.TypeSignal, fields{dbus.FieldPath: dbus.ObjectPath("/"), dbus.FieldInterface: Driver, dbus.FieldMember: "NameLost", dbus.FieldSender: Driver}),
		bad,
		raw(binary.LittleEndian, dbus.TypeError, fields{dbus.FieldReplySerial: uint32(7), dbus.FieldErrorName: "a.b"}, "av", tiny(2<<20)),
		frame(binary.LittleEndian, dbus.TypeMethodCall, fields{dbus.FieldPath: dbus.ObjectPath("/a"), dbus.FieldInterface: "org.example.A", dbus.FieldMember: "Do"}, "text"),
	} {
		if _, err := here.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	m, err := dbus.DecodeMessage(in)
	if err != nil || m.Type != dbus.TypeMethodReply || len(m.Body) != 1 || m.Body[0] != "done" {
		t.Errorf("the call is answered with %v, %v", m, err)
	}
	here.Close()
	if err := <-lost; !errors.Is(err, io.EOF) {
		t.Errorf("the connection ended: %v", err)
	}
}

// A client that is stopped, as with Ctrl-Z, reads on when it goes on.
func TestAStoppedClientIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		here, in, conn := begun(t, Rules{})
		defer conn.Close()
		defer here.Close()
		told := make(chan error, 3)
		go func() {
			for range cap(told) {
				told <- tell(conn)
			}
		}()
		time.Sleep(time.Hour)
		for range cap(told) {
			if m, err := dbus.DecodeMessage(in); err != nil || m.Type != dbus.TypeSignal || m.Body[0] != long {
				t.Fatal(m, err)
			}
			if err := <-told; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// begun accepts a connection, and gives its other end, from which no more was read than
// the handshake.
func begun(t *testing.T, rules Rules) (here net.Conn, in *bufio.Reader, conn *dbus.Conn) {
	t.Helper()
	here, there := net.Pipe()
	accepted := accepting(t, there, rules)
	in = bufio.NewReader(here)
	io.WriteString(here, "\x00AUTH EXTERNAL "+identity(os.Geteuid())+"\r\n")
	if line, err := in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "OK ") {
		t.Fatal(line, err)
	}
	io.WriteString(here, "BEGIN\r\n")
	if conn = <-accepted; conn == nil {
		t.FailNow()
	}
	return here, in, conn
}
