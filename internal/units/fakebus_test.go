package units

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

// fakeBus is a message bus on a socket with one service on it, which stands
// for systemd. It lets a test break what a real bus breaks rarely: drop
// connections, answer late or wrongly, send signals that others forged.
type fakeBus struct {
	t    *testing.T
	ln   net.Listener
	addr string
	wg   sync.WaitGroup

	mu     sync.Mutex
	conns  map[string]*fakeConn
	last   int
	owner  string // systemd's unique name; "" it is not on the bus
	asked  map[string]int
	answer map[string]func(busCall) ([]any, error)
	// replied, set by an answer, is called when that was sent.
	replied func()
}

type fakeConn struct {
	net.Conn
	name  string
	wmu   sync.Mutex
	rules []string
}

type busCall struct {
	sender string
	path   dbus.ObjectPath
	args   []any
}

func busError(name, text string) error { return dbus.Error{Name: name, Body: []any{text}} }

// errHang is for an answer that never comes.
var errHang = fmt.Errorf("hang")

func newFakeBus(t *testing.T) *fakeBus {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "bus")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	b := &fakeBus{t: t, ln: ln, addr: "unix:path=" + sock, conns: map[string]*fakeConn{}, owner: ":1.1", last: 1,
		asked: map[string]int{}, answer: map[string]func(busCall) ([]any, error){
			"Subscribe": func(busCall) ([]any, error) { return nil, nil },
		}}
	b.wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			b.wg.Go(func() { b.serve(&fakeConn{Conn: c}) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		b.dropAll()
		b.wg.Wait()
	})
	return b
}

// client gives a Systemd on the bus that loses patience soon.
func (b *fakeBus) client(o Options) *Systemd {
	o.Address = b.addr
	s := New(o)
	s.wait = waits{call: 5 * time.Second, retry: 5 * time.Second, reload: 5 * time.Second, job: 20 * time.Second,
		poll: 50 * time.Millisecond, backoff: time.Millisecond, backoffMax: 20 * time.Millisecond, first: 5 * time.Second}
	b.t.Cleanup(func() { s.Close() })
	return s
}

func (b *fakeBus) on(member string, f func(busCall) ([]any, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.answer[member] = f
}

func (b *fakeBus) count(member string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked[member]
}

// dropAll closes all connections, as a bus that is restarted.
func (b *fakeBus) dropAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for name, c := range b.conns {
		c.Close()
		delete(b.conns, name)
	}
}

// setOwner gives systemd's name to another connection, or, with "", to none.
func (b *fakeBus) setOwner(owner string) {
	b.mu.Lock()
	old := b.owner
	b.owner = owner
	b.mu.Unlock()
	b.signal("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", systemdName, old, owner)
}

// emit sends a signal of systemd's to those who have a match for its member.
func (b *fakeBus) emit(path dbus.ObjectPath, iface, member string, body ...any) {
	b.mu.Lock()
	owner := b.owner
	b.mu.Unlock()
	b.signal(owner, path, iface, member, body...)
}

func (b *fakeBus) signal(sender string, path dbus.ObjectPath, iface, member string, body ...any) {
	for _, c := range b.all() {
		b.mu.Lock()
		wanted := strings.Contains(strings.Join(c.rules, "\n"), "member='"+member+"'")
		b.mu.Unlock()
		if wanted {
			c.send(signalMessage(sender, path, iface, member, body))
		}
	}
}

// forge sends a signal of somebody else's straight to every connection.
func (b *fakeBus) forge(path dbus.ObjectPath, iface, member string, body ...any) {
	for _, c := range b.all() {
		c.send(signalMessage(":1.666", path, iface, member, body))
	}
}

func signalMessage(sender string, path dbus.ObjectPath, iface, member string, body []any) *dbus.Message {
	m := &dbus.Message{Type: dbus.TypeSignal, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldSender:    dbus.MakeVariant(sender),
		dbus.FieldPath:      dbus.MakeVariant(path),
		dbus.FieldInterface: dbus.MakeVariant(iface),
		dbus.FieldMember:    dbus.MakeVariant(member),
	}}
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
	}
	return m
}

func (b *fakeBus) all() []*fakeConn {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []*fakeConn
	for _, c := range b.conns {
		out = append(out, c)
	}
	return out
}

func (c *fakeConn) send(m *dbus.Message) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if err := m.EncodeTo(c, binary.LittleEndian); err != nil {
		c.Close()
	}
}

func (b *fakeBus) serve(c *fakeConn) {
	defer c.Close()
	in := bufio.NewReader(c)
	if _, err := in.ReadByte(); err != nil {
		return
	}
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		var reply string
		switch word, rest, _ := strings.Cut(strings.TrimSpace(line), " "); {
		case word == "AUTH" && rest == "":
			reply = "REJECTED EXTERNAL"
		case word == "AUTH" && rest == "EXTERNAL":
			reply = "DATA"
		case word == "AUTH", word == "DATA":
			reply = "OK 0123456789abcdef0123456789abcdef"
		case word == "NEGOTIATE_UNIX_FD": // a bus agrees, and delivers them
			reply = "AGREE_UNIX_FD"
		case word == "BEGIN":
		default:
			reply = "ERROR"
		}
		if reply == "" {
			break
		}
		if _, err := fmt.Fprintf(c, "%s\r\n", reply); err != nil {
			return
		}
	}
	for {
		m, err := dbus.DecodeMessage(in)
		if err != nil {
			return
		}
		if m.Type == dbus.TypeMethodCall {
			b.route(c, m)
		}
	}
}

// route answers a call. systemd's answers come from goroutines of their own,
// so that one that hangs holds up no other.
func (b *fakeBus) route(c *fakeConn, m *dbus.Message) {
	header := func(f dbus.HeaderField) string {
		switch v := m.Headers[f].Value().(type) {
		case string:
			return v
		case dbus.ObjectPath:
			return string(v)
		}
		return ""
	}
	dest, member := header(dbus.FieldDestination), header(dbus.FieldMember)
	b.mu.Lock()
	b.asked[member]++
	owner, answer := b.owner, b.answer[member]
	b.mu.Unlock()

	if dest == "org.freedesktop.DBus" {
		switch member {
		case "Hello":
			b.mu.Lock()
			b.last++
			c.name = fmt.Sprintf(":1.%d", b.last)
			b.conns[c.name] = c
			b.mu.Unlock()
			c.reply(m, dest, []any{c.name}, nil)
		case "AddMatch":
			b.mu.Lock()
			c.rules = append(c.rules, m.Body[0].(string))
			b.mu.Unlock()
			c.reply(m, dest, nil, nil)
		case "GetNameOwner":
			if owner == "" {
				c.reply(m, dest, nil, busError("org.freedesktop.DBus.Error.NameHasNoOwner", "no such name"))
				return
			}
			c.reply(m, dest, []any{owner}, nil)
		}
		return
	}
	switch {
	case owner == "" && m.Flags&dbus.FlagNoAutoStart == 0:
		c.reply(m, "org.freedesktop.DBus", nil, busError("org.freedesktop.DBus.Error.Spawn.ChildExited", "systemd cannot be activated"))
	case owner == "":
		c.reply(m, "org.freedesktop.DBus", nil, busError("org.freedesktop.DBus.Error.NameHasNoOwner", "systemd is not there"))
	case answer == nil:
		c.reply(m, owner, nil, busError("org.freedesktop.DBus.Error.UnknownMethod", "no method "+member))
	default:
		b.wg.Go(func() {
			body, err := answer(busCall{c.name, dbus.ObjectPath(header(dbus.FieldPath)), m.Body})
			if err != errHang {
				c.reply(m, owner, body, err)
			}
			b.mu.Lock()
			replied := b.replied
			b.replied = nil
			b.mu.Unlock()
			if replied != nil {
				replied()
			}
		})
	}
}

func (c *fakeConn) reply(to *dbus.Message, sender string, body []any, err error) {
	m := &dbus.Message{Type: dbus.TypeMethodReply, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldSender:      dbus.MakeVariant(sender),
		dbus.FieldReplySerial: dbus.MakeVariant(to.Serial()),
	}}
	if de, ok := err.(dbus.Error); ok {
		m.Type, m.Body = dbus.TypeError, de.Body
		m.Headers[dbus.FieldErrorName] = dbus.MakeVariant(de.Name)
	}
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	c.send(m)
}

// vars makes properties of plain values.
func vars(m map[string]any) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	for k, v := range m {
		out[k] = dbus.MakeVariant(v)
	}
	return out
}

func (b *fakeBus) answerTo(member string) func(busCall) ([]any, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.answer[member]
}

// has makes the bus answer questions about units with these properties, as
// they are now.
func (b *fakeBus) has(now map[string]map[string]any) {
	units := map[string]map[string]any{}
	for name, u := range now {
		units[name] = maps.Clone(u)
	}
	find := func(c busCall) (map[string]any, error) {
		name, ok := unitOf(c.path)
		if !ok || units[name] == nil {
			return nil, busError("org.freedesktop.DBus.Error.UnknownObject", "Unknown object '"+string(c.path)+"'.")
		}
		return units[name], nil
	}
	b.on("GetAll", func(c busCall) ([]any, error) {
		u, err := find(c)
		shown := maps.Clone(u)
		if shown["hidden"] != nil { // to be asked for by name, as systemd does with deprecated ones
			delete(shown, shown["hidden"].(string))
			delete(shown, "hidden")
		}
		return []any{vars(shown)}, err
	})
	b.on("Get", func(c busCall) ([]any, error) {
		u, err := find(c)
		if err != nil {
			return nil, err
		}
		v, has := u[c.args[1].(string)]
		if !has {
			return nil, busError("org.freedesktop.DBus.Error.UnknownProperty", "Unknown interface or property")
		}
		return []any{dbus.MakeVariant(v)}, nil
	})
	b.on("ListUnitsByNames", func(c busCall) ([]any, error) {
		var out []listedUnit
		for _, n := range c.args[0].([]string) {
			if u := units[n]; u != nil {
				out = append(out, listedUnit{Name: n, ActiveState: u["ActiveState"].(string), SubState: u["SubState"].(string), LoadState: "loaded", Path: "/", JobPath: "/"})
			}
		}
		return []any{out}, nil
	})
}

// eventually waits for something that other goroutines do.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not happen that %s", what)
}
