package bus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// peer is the other end of one connection. It answers the handshake and Hello;
// everything else is the test's.
type peer struct {
	net.Conn
	got chan *dbus.Message // what came from the connection
}

// open gives a connection with rules, and its other end.
func open(t *testing.T, rules Rules, opts ...dbus.ConnOption) (*dbus.Conn, *peer) {
	t.Helper()
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "bus"))
	if err != nil {
		t.Fatal(err)
	}
	p := &peer{got: make(chan *dbus.Message, 1000)}
	up := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		ln.Close()
		if err != nil {
			up <- err
			return
		}
		p.Conn = c
		p.serve(up)
	}()
	t.Cleanup(func() {
		ln.Close()
		if p.Conn != nil {
			p.Close()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := Connect(ctx, "unix:path="+ln.Addr().String(), rules, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := <-up; err != nil {
		t.Fatal(err)
	}
	return conn, p
}

func (p *peer) serve(up chan<- error) {
	in := bufio.NewReader(p)
	if _, err := in.ReadByte(); err != nil {
		up <- err
		return
	}
	for begun := false; !begun; {
		line, err := in.ReadString('\n')
		if err != nil {
			up <- err
			return
		}
		switch line = strings.TrimSpace(line); {
		case line == "AUTH EXTERNAL "+identity(os.Geteuid()):
			fmt.Fprint(p, "OK 0123456789abcdef0123456789abcdef\r\n")
		case line == "BEGIN":
			begun = true
		default:
			up <- fmt.Errorf("unexpected: %q", line)
			return
		}
	}
	for {
		m, err := dbus.DecodeMessage(in)
		if err != nil {
			close(p.got)
			return
		}
		if m.Headers[dbus.FieldMember].Value() == "Hello" {
			p.write(frame(binary.LittleEndian, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: m.Serial(), dbus.FieldSender: Driver}, ":1.7"))
			up <- nil
			continue
		}
		p.got <- m
	}
}

// write sends bytes, and does not wait for them to be taken.
func (p *peer) write(b []byte) {
	if _, err := p.Write(b); err != nil {
		p.Close()
	}
}

func (p *peer) receive(t *testing.T) *dbus.Message {
	t.Helper()
	select {
	case m := <-p.got:
		return m
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came from the connection")
		return nil
	}
}

type fields map[dbus.HeaderField]any

// frame is a message with serial 99.
func frame(order binary.ByteOrder, kind dbus.Type, f fields, body ...any) []byte {
	m := &dbus.Message{Type: kind, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{}}
	for k, v := range f {
		m.Headers[k] = dbus.MakeVariant(v)
	}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		panic(err)
	}
	order.PutUint32(b.Bytes()[8:], 99)
	return b.Bytes()
}

// raw is a message with a body that godbus would not write.
func raw(order binary.ByteOrder, kind dbus.Type, f fields, signature string, body []byte) []byte {
	f[dbus.FieldSignature] = dbus.ParseSignatureMust(signature)
	b := frame(order, kind, f)
	order.PutUint32(b[4:], uint32(len(body)))
	return append(b, body...)
}

func signal(sender string) fields {
	return fields{dbus.FieldSender: sender, dbus.FieldPath: dbus.ObjectPath("/a"), dbus.FieldInterface: "org.example.A", dbus.FieldMember: "Told"}
}

func callOf(member string) fields {
	return fields{dbus.FieldSender: ":1.9", dbus.FieldPath: dbus.ObjectPath("/a"), dbus.FieldInterface: "org.example.A", dbus.FieldMember: member}
}

// tiny is the body of an array of n variants with one byte in each, of which
// godbus makes eight times as much.
func tiny(n int) []byte {
	return append(binary.LittleEndian.AppendUint32(nil, uint32(4*n)), bytes.Repeat([]byte{1, 'y', 0, 7}, n)...)
}

// ear hears signals.
type ear chan *dbus.Signal

func (e ear) DeliverSignal(_, _ string, s *dbus.Signal) { e <- s }

func (e ear) next(t *testing.T, what string) *dbus.Signal {
	t.Helper()
	select {
	case s := <-e:
		return s
	case <-time.After(10 * time.Second):
		t.Fatalf("after %s no signal is heard", what)
		return nil
	}
}

func TestOnlySignalsOfTheTrustedAreDecoded(t *testing.T) {
	heard := make(ear, 10)
	_, p := open(t, Rules{Signals: func(sender string) bool { return sender == ":1.2" }}, dbus.WithSignalHandler(heard))
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		unknown := frame(order, dbus.TypeSignal, signal(":1.2"), "x")
		unknown[1] = 77
		// The field of the interface under another code.
		recoded := func(code byte) []byte {
			b := frame(order, dbus.TypeSignal, signal(":1.2"), "x")
			for i := fixedSize; i < len(b); i += 8 {
				if b[i] == byte(dbus.FieldInterface) && string(b[i+1:i+4]) == "\x01s\x00" {
					b[i] = code
					return b
				}
			}
			panic("it has no interface")
		}
		fds := signal(":1.2")
		fds[dbus.FieldUnixFDs] = uint32(1)
		for name, message := range map[string][]byte{
			"a signal of a stranger":                  frame(order, dbus.TypeSignal, signal(":1.9"), "x"),
			"a signal of nobody":                      frame(order, dbus.TypeSignal, fields{dbus.FieldPath: dbus.ObjectPath("/a"), dbus.FieldInterface: "a.b", dbus.FieldMember: "C"}, "x"),
			"a long signal of a stranger":             raw(order, dbus.TypeSignal, signal(":1.9"), "av", tiny(2<<20)),
			"a long signal":                           raw(order, dbus.TypeSignal, signal(":1.2"), "av", tiny(2<<20)),
			"a long header":                           frame(order, dbus.TypeSignal, fields{dbus.FieldSender: ":1.2", dbus.FieldPath: dbus.ObjectPath("/" + strings.Repeat("a", 1<<20)), dbus.FieldInterface: "a.b", dbus.FieldMember: "C"}),
			"a call":                                  frame(order, dbus.TypeMethodCall, callOf("Do"), "x"),
			"a long call":                             raw(order, dbus.TypeMethodCall, callOf("Do"), "av", tiny(2<<20)),
			"a message of a type that nobody knows":   unknown,
			"a header with a field that nobody knows": recoded(200),
			"a header with a field twice":             recoded(byte(dbus.FieldSender)),
			"a header with a field of another type":   recoded(byte(dbus.FieldPath)),
			"a signal that has file descriptors":      frame(order, dbus.TypeSignal, fds, "x"),
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p.write(message)
			p.write(frame(order, dbus.TypeSignal, signal(":1.2"), "after "+name))
			if s := heard.next(t, name); len(s.Body) != 1 || s.Body[0] != "after "+name {
				t.Fatalf("%s was heard: %.100q", name, fmt.Sprint(s.Body...))
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
				t.Errorf("%s of %d bytes took %d bytes of memory", name, len(message), n)
			}
		}
		// The bus itself is heard always.
		p.write(frame(order, dbus.TypeSignal, signal(Driver), "bus"))
		if s := heard.next(t, "the bus spoke"); s.Sender != Driver {
			t.Errorf("heard %+v", s)
		}
	}
}

func TestLongSignalsAreTakenWhereOneMayTrust(t *testing.T) {
	heard := make(ear, 10)
	_, p := open(t, Rules{Signals: func(sender string) bool { return sender == ":1.2" }, MaxSignal: MaxReply}, dbus.WithSignalHandler(heard))
	p.write(frame(binary.LittleEndian, dbus.TypeSignal, signal(":1.2"), strings.Repeat("x", 3<<20)))
	if s := heard.next(t, "a long signal"); len(s.Body[0].(string)) != 3<<20 {
		t.Error("it was cut")
	}
}

// service answers calls of org.example.A.
type service struct {
	mu    sync.Mutex
	calls []string
}

func (s *service) Do(text string) (string, *dbus.Error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls = append(s.calls, text)
	return "done", nil
}

func TestCallsAreBoundedBeforeTheyAreDecoded(t *testing.T) {
	var asked []Header
	conn, p := open(t, Rules{Calls: func(h *Header) *dbus.Error {
		asked = append(asked, *h)
		if h.Member == "Never" {
			return dbus.NewError("org.example.Never", []any{"no"})
		}
		return nil
	}})
	var s service
	if err := conn.Export(&s, "/a", "org.example.A"); err != nil {
		t.Fatal(err)
	}
	deep := dbus.MakeVariant(true)
	for range 40 {
		deep = dbus.MakeVariantWithSignature(deep, dbus.ParseSignatureMust("v"))
	}
	quiet := frame(binary.LittleEndian, dbus.TypeMethodCall, callOf("Never"))
	quiet[2] = byte(dbus.FlagNoReplyExpected)
	cut := frame(binary.LittleEndian, dbus.TypeMethodCall, callOf("Do"), "text")
	cut[len(cut)-9] = 200 // the length of the text
	many := make([]string, maxValues+1)
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for name, c := range map[string]struct {
			message []byte
			want    string // the error's name, "" an answer, "-" nothing
		}{
			"a call":                     {frame(order, dbus.TypeMethodCall, callOf("Do"), "text"), ""},
			"one that is refused":        {frame(order, dbus.TypeMethodCall, callOf("Never"), "text"), "org.example.Never"},
			"a long one that is refused": {raw(order, dbus.TypeMethodCall, callOf("Never"), "av", tiny(2<<20)), "org.example.Never"},
			"a long one":                 {raw(order, dbus.TypeMethodCall, callOf("Do"), "av", tiny(2<<20)), "org.freedesktop.DBus.Error.LimitsExceeded"},
			"a long text":                {frame(order, dbus.TypeMethodCall, callOf("Do"), strings.Repeat("x", MaxCall)), "org.freedesktop.DBus.Error.LimitsExceeded"},
			"variants in an array":       {raw(order, dbus.TypeMethodCall, callOf("Do"), "av", tiny(2)), "org.freedesktop.DBus.Error.InvalidArgs"},
			"types of a caller's own":    {frame(order, dbus.TypeMethodCall, callOf("Do"), map[byte]map[int16][][]uint32{}), "org.freedesktop.DBus.Error.InvalidArgs"},
			"the same in a variant":      {frame(order, dbus.TypeMethodCall, callOf("Do"), dbus.MakeVariant(map[byte]map[int16][][]uint32{})), "org.freedesktop.DBus.Error.InvalidArgs"},
			"many numbers":               {frame(order, dbus.TypeMethodCall, callOf("Do"), make([]byte, 200_000)), "org.freedesktop.DBus.Error.InvalidArgs"},
			"variants in variants":       {frame(order, dbus.TypeMethodCall, callOf("Do"), deep), "org.freedesktop.DBus.Error.InvalidArgs"},
			"many values":                {frame(order, dbus.TypeMethodCall, callOf("Do"), many), "org.freedesktop.DBus.Error.InvalidArgs"},
			"a file descriptor's number": {frame(order, dbus.TypeMethodCall, callOf("Do"), dbus.UnixFDIndex(0)), "org.freedesktop.DBus.Error.InvalidArgs"},
			"text that is cut off":       {cut, "org.freedesktop.DBus.Error.InvalidArgs"},
			"one that wants no answer":   {quiet, "-"},
			"nobody's":                   {frame(order, dbus.TypeMethodCall, fields{dbus.FieldPath: dbus.ObjectPath("/a"), dbus.FieldMember: "Never"}), "-"},
			"a long header":              {frame(order, dbus.TypeMethodCall, fields{dbus.FieldSender: ":1.9", dbus.FieldPath: dbus.ObjectPath("/" + strings.Repeat("a", 1<<20)), dbus.FieldMember: "Do"}), "-"},
		} {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			p.write(c.message)
			if c.want != "-" {
				m := p.receive(t)
				got, _ := m.Headers[dbus.FieldErrorName].Value().(string)
				if got != c.want || m.Headers[dbus.FieldReplySerial].Value() != uint32(99) || m.Headers[dbus.FieldDestination].Value() != ":1.9" {
					t.Errorf("%s is answered with %v, want %q", name, m, c.want)
				}
				// godbus has an error of this name too, when it has decoded them.
				if strings.HasSuffix(c.want, ".InvalidArgs") && !strings.HasPrefix(fmt.Sprint(m.Body...), "cannot take the arguments: ") {
					t.Errorf("%s was decoded: %v", name, m)
				}
			}
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > 2<<20 {
				t.Errorf("%s of %d bytes took %d bytes of memory", name, len(c.message), n)
			}
		}
	}
	p.write(frame(binary.LittleEndian, dbus.TypeMethodCall, callOf("Do"), "last"))
	if m := p.receive(t); m.Type != dbus.TypeMethodReply || len(m.Body) != 1 || m.Body[0] != "done" {
		t.Errorf("at last it answers %v", m)
	}
	if got := strings.Join(s.calls, " "); got != "text text last" {
		t.Errorf("called with %q", got)
	}
	last := asked[len(asked)-1]
	if last.Size <= 16 || last.Serial != 99 || last.Path != "/a" || last.Interface != "org.example.A" || last.Member != "Do" || last.Sender != ":1.9" || last.Signature != "s" {
		t.Errorf("asked about %+v", last)
	}
}

func TestLongRepliesAreTaken(t *testing.T) {
	conn, p := open(t, Rules{})
	call := conn.Object(":1.2", "/a").Go("org.example.A.Read", 0, nil)
	serial := p.receive(t).Serial()
	p.write(frame(binary.BigEndian, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: serial, dbus.FieldSender: ":1.2"}, strings.Repeat("x", 5<<20)))
	var text string
	if err := (<-call.Done).Store(&text); err != nil || len(text) != 5<<20 {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}

// What is no message ends the connection, and says why to whoever waits.
// manyProperties has a value of every kind that systemd gives, each once under a
// name that is wanted, and once under another.
func manyProperties() map[string]dbus.Variant {
	type line struct {
		Path string
		Argv []string
		Fail bool
		At   uint64
		PID  uint32
	}
	out := map[string]dbus.Variant{}
	for name, v := range map[string]any{
		"Byte": byte(7), "Bool": true, "Int16": int16(-3), "Uint32": uint32(9), "Int64": int64(-1), "Double": 1.5, "Text": "text", "Empty": "",
		"Path": dbus.ObjectPath("/a"), "Signature": dbus.ParseSignatureMust("a{sv}"), "Bytes": []byte{1, 2, 3}, "None": []byte{}, "Texts": []string{"a", "", "ccc"},
		"Lines": []line{{"/bin/a", []string{"a", "b"}, true, 1 << 40, 5}, {}}, "NoLines": []line{}, "Line": line{Path: "x"}, "Longs": []uint64{1},
		"Nested": []map[string]dbus.Variant{{"a": dbus.MakeVariant(uint16(1))}}, "Variant": dbus.MakeVariant(dbus.MakeVariant(byte(1))),
	} {
		out["Want"+name], out["Other"+name] = dbus.MakeVariant(v), dbus.MakeVariant(v)
	}
	return out
}

func wanted(name string) bool { return strings.HasPrefix(name, "Want") }

func TestOnlyPropertiesThatAreWantedAreDecoded(t *testing.T) {
	asked := 0
	conn, p := open(t, Rules{Properties: func(name string) bool { asked++; return wanted(name) }})
	all := manyProperties()
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for name, body := range map[string][]any{
			"properties":     {all},
			"none":           {map[string]dbus.Variant{}},
			"no wanted ones": {map[string]dbus.Variant{"a": dbus.MakeVariant(true)}},
			"something else": {"text", all},
			"one":            {all["OtherText"]},
			"nothing":        {},
		} {
			call := conn.Object(":1.2", "/a").Go("org.example.A.Read", 0, nil)
			p.write(frame(order, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: p.receive(t).Serial(), dbus.FieldSender: ":1.2"}, body...))
			got := <-call.Done
			if got.Err != nil {
				t.Fatal(name, got.Err)
			}
			want := body
			if m, ok := body[0:min(1, len(body))], len(body) == 1; ok {
				if m, ok := m[0].(map[string]dbus.Variant); ok {
					m = maps.Clone(m)
					maps.DeleteFunc(m, func(name string, _ dbus.Variant) bool { return !wanted(name) })
					want = []any{m}
				}
			}
			// What a structure is decoded to is not what it was made of.
			m, err := dbus.DecodeMessage(bytes.NewReader(frame(order, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: uint32(1)}, want...)))
			if err != nil {
				t.Fatal(err)
			}
			if a, b := fmt.Sprint(got.Body...), fmt.Sprint(m.Body...); a != b {
				t.Errorf("%s: decoded as\n%s\nwant\n%s", name, a, b)
			}
		}
	}
	if asked != 2*(len(all)+1) {
		t.Errorf("asked about %d properties", asked)
	}
}

func TestOnlyChangedPropertiesThatAreWantedAreDecoded(t *testing.T) {
	heard := make(ear, 10)
	_, p := open(t, Rules{Signals: func(string) bool { return true }, Properties: wanted}, dbus.WithSignalHandler(heard))
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, member := range []string{"PropertiesChanged", "Other"} {
			for n := range 9 { // where the names end, and what is after them begins
				all := map[string]dbus.Variant{"WantA": dbus.MakeVariant(true), "OtherB": dbus.MakeVariant("b"), "WantC": dbus.MakeVariant(strings.Repeat("c", n))}
				f := signal(":1.2")
				f[dbus.FieldMember] = member
				p.write(frame(order, dbus.TypeSignal, f, "org.example."+strings.Repeat("x", n), all, []string{"gone", strings.Repeat("g", n)}))
				s := heard.next(t, member)
				if member == "PropertiesChanged" {
					delete(all, "OtherB")
				}
				if got, want := fmt.Sprint(s.Body...), fmt.Sprint("org.example."+strings.Repeat("x", n), all, []string{"gone", strings.Repeat("g", n)}); got != want {
					t.Errorf("%s, %d: heard %s, want %s", member, n, got, want)
				}
			}
		}
	}
}

func FuzzChooseProperties(f *testing.F) {
	body := func(order binary.ByteOrder, values ...any) []byte {
		b := frame(order, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: uint32(1)}, values...)
		head, err := parseFixed(b)
		if err != nil {
			f.Fatal(err)
		}
		return b[head.header():]
	}
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, m := range []map[string]dbus.Variant{manyProperties(), {}, {"a": dbus.MakeVariant(true)}, {"Wanta": dbus.MakeVariant([]int64{})}} {
			f.Add(order == binary.BigEndian, false, body(order, m))
			f.Add(order == binary.BigEndian, true, body(order, "org.example.A", m, []string{"x", "", "yyy"}))
		}
	}
	f.Fuzz(func(t *testing.T, big, changed bool, body []byte) {
		var order binary.ByteOrder = binary.LittleEndian
		if big {
			order = binary.BigEndian
		}
		signature := allProperties
		if changed {
			signature = changedProperties
		}
		decode := func(body []byte) ([]any, error) {
			m, err := dbus.DecodeMessage(bytes.NewReader(raw(order, dbus.TypeMethodReply, fields{dbus.FieldReplySerial: uint32(1)}, signature, body)))
			if err != nil {
				return nil, err
			}
			return m.Body, nil
		}
		before := bytes.Clone(body)
		chosen := chooseProperties(order, signature, body, wanted)
		if chosen == nil {
			if !bytes.Equal(before, body) {
				t.Fatal("what it does not understand was changed")
			}
			return
		}
		want, err := decode(before)
		if err != nil {
			return // in what was left out, perhaps
		}
		for _, v := range want {
			if m, ok := v.(map[string]dbus.Variant); ok {
				maps.DeleteFunc(m, func(name string, _ dbus.Variant) bool { return !wanted(name) })
			}
		}
		if got, err := decode(chosen); err != nil || fmt.Sprint(got...) != fmt.Sprint(want...) {
			t.Fatalf("%v, %v; want %v", got, err, want)
		}
	})
}

func TestWhatIsNoMessageEndsTheConnection(t *testing.T) {
	good := func() []byte { return frame(binary.LittleEndian, dbus.TypeSignal, signal(":1.2")) }
	change := func(f func(b []byte)) []byte { b := good(); f(b); return b }
	for name, c := range map[string]struct {
		message   []byte
		malformed bool
		says      string
	}{
		"a byte order":   {change(func(b []byte) { b[0] = 'x' }), true, "byte order"},
		"no type":        {change(func(b []byte) { b[1] = 0 }), true, "type"},
		"a version":      {change(func(b []byte) { b[3] = 2 }), true, "version"},
		"long fields":    {change(func(b []byte) { binary.LittleEndian.PutUint32(b[12:], 1<<26+1) }), true, "bytes long"},
		"a long body":    {change(func(b []byte) { binary.LittleEndian.PutUint32(b[4:], 1<<27) }), true, "bytes long"},
		"beyond a word":  {change(func(b []byte) { copy(b[12:], "\xff\xff\xff\xff"); copy(b[4:], "\xff\xff\xff\xff") }), true, "bytes long"},
		"a long reply":   {change(func(b []byte) { b[1] = 2; binary.LittleEndian.PutUint32(b[4:], 32<<20) }), false, "a reply of"},
		"half a header":  {good()[:10], false, "unexpected EOF"},
		"half a message": {good()[:40], false, "unexpected EOF"},
		"the end":        {nil, false, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			lost := make(chan error, 1)
			conn, p := open(t, Rules{Lost: func(err error) { lost <- err }})
			call := conn.Object(":1.2", "/a").Go("org.example.A.Read", 0, nil)
			p.receive(t)
			p.write(c.message)
			if len(c.message) < len(good()) {
				p.Close()
			}
			for from, err := range map[string]error{"Lost": <-lost, "the call": (<-call.Done).Err} {
				if errors.Is(err, ErrMalformed) != c.malformed || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s is told %v, want %q", from, err, c.says)
				}
			}
			<-conn.Context().Done()
		})
	}
}

func TestTheHandshakeEndsWithItsContext(t *testing.T) {
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "bus"))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Connect(ctx, "unix:path="+ln.Addr().String(), Rules{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error: %v", err)
	}
}

func TestAddress(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "")
	if got := Address(""); got != systemBus {
		t.Errorf("%q", got)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/b")
	if got := Address(""); got != "unix:path=/b" {
		t.Errorf("%q", got)
	}
	if got := Address("unix:path=/c"); got != "unix:path=/c" {
		t.Errorf("%q", got)
	}
	for in, want := range map[string]string{
		"unix:path=/run/x":             "/run/x",
		"unix:path=/run/a%20b,guid=00": "/run/a b",
		"unix:abstract=/tmp/x,guid=1":  "@/tmp/x",
		"unix:guid=1,path=/run/x":      "/run/x",
		"tcp:host=localhost":           "",
		"unix:tmpdir=/tmp":             "",
		"unix:path=%zz":                "",
		"":                             "",
	} {
		if got, _ := socketName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

// What is taken of a stranger, godbus can decode: where it cannot, it ends the
// connection.
func FuzzTaken(f *testing.F) {
	for _, body := range [][]any{
		{}, {"s"}, {[]string{"a", "", "b"}}, {[]string{"a"}, map[string]dbus.Variant{"a": dbus.MakeVariant(true), "b": dbus.MakeVariant([]string{"c", ""})}},
		{"a", "b", dbus.MakeVariant(1.5)}, {[]bool{true, false}}, {byte(1), int16(2), uint64(3)}, {map[string]string{"a": "b"}}, {dbus.MakeVariant(dbus.MakeVariant(1))},
		{[]int64{}}, {map[string]dbus.Variant{}, byte(1)}, {dbus.ParseSignatureMust("s")}, {[][]byte{{1}}},
	} {
		f.Add(frame(binary.LittleEndian, dbus.TypeMethodCall, callOf("Do"), body...))
		f.Add(frame(binary.BigEndian, dbus.TypeMethodCall, callOf("Do"), body...))
	}
	f.Add(frame(binary.LittleEndian, dbus.TypeSignal, signal(":1.2"), "x"))
	f.Add(raw(binary.LittleEndian, dbus.TypeMethodCall, callOf("Do"), "av", tiny(3)))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &stream{in: bufio.NewReader(bytes.NewReader(b)), framed: true, answer: func(*dbus.Message) {},
			rules: Rules{Calls: func(*Header) *dbus.Error { return nil }}}
		for {
			if err := s.next(); err != nil {
				return
			}
			if len(s.ready) == 0 || dbus.Type(s.ready[1]) != dbus.TypeMethodCall {
				s.ready, s.rest = nil, 0
				continue
			}
			taken := bytes.Clone(s.ready)
			m, err := dbus.DecodeMessage(bytes.NewReader(taken))
			var invalid dbus.InvalidMessageError
			if err != nil && !errors.As(err, &invalid) { // those it leaves out
				t.Fatalf("taken, and not decoded: %v\n%q", err, taken)
			}
			if err == nil {
				values := m.Body
				if sig, _ := m.Headers[dbus.FieldSignature].Value().(dbus.Signature); len(values) != 0 && dbus.SignatureOf(values...) != sig {
					t.Fatalf("%q was decoded as %q", sig, dbus.SignatureOf(values...))
				}
			}
			s.ready = nil
		}
	})
}
