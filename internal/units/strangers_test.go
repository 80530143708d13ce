package units

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// sendFDs sends a message with file descriptors beside it.
func (c *fakeConn) sendFDs(t *testing.T, m *dbus.Message, fds ...int) {
	t.Helper()
	m.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(len(fds)))
	var b bytes.Buffer
	if err := m.EncodeTo(&b, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if _, _, err := c.Conn.(*net.UnixConn).WriteMsgUnix(b.Bytes(), unix.UnixRights(fds...), nil); err != nil {
		t.Fatal(err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// connected gives a follower and a connection for calls on the fake bus.
func connected(t *testing.T, b *fakeBus) (*Systemd, tape) {
	t.Helper()
	s := b.client(Options{})
	p := tape{t, s.Follow(t.Context(), func(string) bool { return true })}
	b.on("Reload", func(busCall) ([]any, error) { return nil, nil })
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s, p
}

// Any user may send signals to the daemon's connections, with files in them. An
// array of those makes godbus' own transport panic, and it closes none.
func TestFileDescriptorsOfStrangersNeitherKillNorLeak(t *testing.T) {
	b := newFakeBus(t)
	s, p := connected(t, b)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	conns := b.all()
	if len(conns) != 2 {
		t.Fatalf("%d connections", len(conns))
	}
	before := openFiles(t)
	for _, sender := range []string{":1.666", b.owner} {
		for _, body := range [][]any{{"text"}, {dbus.UnixFD(fd)}, {[]dbus.UnixFD{dbus.UnixFD(fd)}}, {map[string]dbus.UnixFD{"a": dbus.UnixFD(fd)}}} {
			for _, c := range conns {
				for range 20 {
					c.sendFDs(t, signalMessage(sender, pathOf("agent.service"), propsIface, "PropertiesChanged", body), fd)
				}
			}
		}
	}
	// Both connections are still the same, and heard.
	b.state("agent.service", idA, "active", "running")
	p.next(attach.UnitStarted, "agent.service")
	if err := s.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	if n := b.count("Hello"); n != 2 {
		t.Errorf("%d connections were made", n)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d were before", after, before)
	}
}

// What strangers send is not decoded, however much it is.
func TestSignalsOfStrangersCostNothing(t *testing.T) {
	b := newFakeBus(t)
	s, p := connected(t, b)
	list := make([]dbus.Variant, 1<<16)
	for i := range list {
		list[i] = dbus.MakeVariant(byte(1))
	}
	var large bytes.Buffer
	if err := signalMessage(":1.666", pathOf("agent.service"), propsIface, "PropertiesChanged", []any{unitIface, list}).EncodeTo(&large, binary.LittleEndian); err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 50 {
		for _, c := range b.all() {
			if _, err := c.Write(large.Bytes()); err != nil {
				t.Fatal(err)
			}
		}
	}
	b.state("agent.service", idA, "active", "running")
	p.next(attach.UnitStarted, "agent.service")
	if err := s.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	runtime.ReadMemStats(&after)
	if sent, n := uint64(100*large.Len()), after.TotalAlloc-before.TotalAlloc; n > sent/4 {
		t.Errorf("%d bytes of strangers took %d bytes of memory", sent, n)
	}
}

// A bus that sends nonsense is left, and tried again.
func TestNonsenseEndsAConnection(t *testing.T) {
	b := newFakeBus(t)
	s, p := connected(t, b)
	for _, c := range b.all() {
		if _, err := c.Write([]byte(strings.Repeat("nonsense", 8))); err != nil {
			t.Fatal(err)
		}
	}
	p.next(attach.BusLost, "")
	p.next(attach.BusBack, "")
	b.state("agent.service", idA, "active", "running")
	p.next(attach.UnitStarted, "agent.service")
	if err := s.Reload(t.Context()); err != nil {
		t.Error(err)
	}
	// In the middle of a call too.
	b.on("Reload", func(c busCall) ([]any, error) {
		b.on("Reload", func(busCall) ([]any, error) { return nil, nil })
		b.mu.Lock()
		defer b.mu.Unlock()
		_, err := b.conns[c.sender].Write([]byte(strings.Repeat("nonsense", 8)))
		return nil, err
	})
	if err := s.Reload(t.Context()); err != nil {
		t.Error(err)
	}
}

// What comes of a connection that is lost is tried again over another one, and what
// systemd answers is not.
func TestWhatIsTriedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		err  error
		want bool
	}{
		"the bus took nothing":  {fmt.Errorf("%w within 30s", bus.ErrStuck), true},
		"the bus sent nonsense": {fmt.Errorf("%w: it has no type", bus.ErrMalformed), true},
		"the bus is gone":       {io.EOF, true},
		"systemd is away":       {busError("org.freedesktop.DBus.Error.NameHasNoOwner", ""), true},
		"systemd says no":       {busError("org.freedesktop.systemd1.NoSuchUnit", ""), false},
		"something else":        {errors.New("something else"), false},
	} {
		if got := passing(c.err); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
