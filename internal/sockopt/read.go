package sockopt

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Who made a call, and when.
type Who struct {
	Time time.Time
	PID  uint32
	// Comm is the task's own name of itself, of at most 15 bytes: a hint, which any
	// program can set.
	Comm string
}

// Seen is one kind of call that was seen.
type Seen struct {
	Call   Call
	Option Option
	// Socket is the kind of socket.
	Socket Socket
	// BySystemd: systemd's own process did it, before it executed the unit's
	// program. It is never refused, and not of the unit's doing.
	BySystemd bool
	// Allowed and Refused are how many calls were let through or refused here. The
	// kernel may still have failed one that was let through.
	Allowed, Refused uint64
	First, Last      Who
	// LastRefused is zero where none was.
	LastRefused Who
}

// Recording is what was seen of a unit since its tables were made, which is its
// first start after the boot.
type Recording struct {
	// Seen is in the order of first appearance.
	Seen []Seen
	// Lost is what found no place.
	Lost Lost
	// Rules are what holds.
	Rules Rules
	// Since is when the table was made.
	Since time.Time
}

// MaxSeen is how many kinds of call are stored. What comes later is counted in
// Lost, and pushes out nothing.
const MaxSeen = 4096

// Lost are calls of which is known only how many there were.
type Lost struct {
	Allowed, Refused uint64
	Last             time.Time
}

// Read reads what was recorded of a unit; ErrNothing where there is nothing.
func (s *System) Read(unit string) (Recording, error) {
	what := "cannot read the socket options of " + unit
	d := &unitDir{path: s.dir(unit)}
	o, err := d.openMaps(mapNames[:]...)
	if errors.Is(err, ErrNothing) {
		return Recording{}, because(what, ErrNothing, nil, "")
	}
	if err != nil {
		return Recording{}, judge(what, err)
	}
	defer o.Close()
	var r Recording
	// The BPF file system stamps what is pinned, once (bpf_get_inode).
	if pin, err := os.Lstat(d.pin("seen")); err == nil {
		r.Since = pin.ModTime()
	}
	if r.Rules, err = o.rules(); err != nil {
		return r, judge(what, err)
	}
	var lost bpfLost
	if err := o.maps["overflow"].Lookup(uint32(0), &lost); err != nil {
		return r, judge(what, err)
	}
	keys, values, err := readSeen(o.maps["seen"])
	if err != nil {
		return r, judge(what, err)
	}
	at := clock()
	r.Lost = Lost{Allowed: lost.Allowed, Refused: lost.Refused, Last: at.wall(lost.Last)}
	r.Seen = decode(keys, values, at)
	return r, nil
}

// readSeen reads the table in one call where the kernel has it (Linux 5.6).
func readSeen(m *ebpf.Map) ([]bpfSeenKey, []bpfSeenValue, error) {
	keys, values := make([]bpfSeenKey, MaxSeen), make([]bpfSeenValue, MaxSeen)
	var cursor ebpf.MapBatchCursor
	n := 0
	for n < len(keys) {
		got, err := m.BatchLookup(&cursor, keys[n:], values[n:], &ebpf.BatchOptions{ElemFlags: uint64(ebpf.LookupLock)})
		n += got
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist): // that was the last
			return keys[:n], values[:n], nil
		case errors.Is(err, unix.ENOSPC) && got > 0:
			continue
		case err != nil:
			return readEach(m)
		}
	}
	return keys[:n], values[:n], nil
}

// readEach reads the table entry by entry.
func readEach(m *ebpf.Map) (keys []bpfSeenKey, values []bpfSeenValue, err error) {
	var key bpfSeenKey
	var value bpfSeenValue
	for it := m.Iterate(); it.Next(&key, &value); {
		// Once more, under the entry's lock, which the iterator does not take.
		err := m.LookupWithFlags(key, &value, ebpf.LookupLock)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		keys, values = append(keys, key), append(values, value)
		if len(keys) >= MaxSeen {
			break
		}
	}
	return keys, values, nil
}

// Forget throws away what was recorded, and goes on recording.
func (s *System) Forget(unit string) error {
	what := "cannot throw away the recording of " + unit
	d, err := s.open(unit, false)
	if err != nil {
		return err
	}
	defer d.Close()
	o, err := d.openMaps("seen", "overflow")
	if errors.Is(err, ErrNothing) {
		return because(what, ErrNothing, nil, "")
	}
	if err != nil {
		return judge(what, err)
	}
	defer o.Close()
	keys, _, err := readSeen(o.maps["seen"])
	if err != nil {
		return judge(what, err)
	}
	for _, key := range keys {
		if err := o.maps["seen"].Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return judge(what, err)
		}
	}
	return judge(what, o.maps["overflow"].Put(uint32(0), bpfLost{}))
}

// when translates times of the kernel's, which are since the boot.
type when struct{ boot time.Time }

// clock finds out when that was.
func clock() when {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return when{} // no such kernel: it would have no BPF either
	}
	return when{time.Now().Add(-time.Duration(boot.Nano())).Round(0)}
}

func (w when) wall(ns uint64) time.Time {
	if ns == 0 || w.boot.IsZero() {
		return time.Time{}
	}
	return w.boot.Add(time.Duration(ns))
}

// decode makes readable what the kernel had.
func decode(keys []bpfSeenKey, values []bpfSeenValue, at when) []Seen {
	var seen []Seen
	for i, k := range keys {
		v := values[i]
		if v.Allowed+v.Refused == 0 {
			continue // its first call is just being counted
		}
		seen = append(seen, Seen{
			Call: Call(k.Call), Option: Option{Level: k.Level, Name: k.Optname},
			Socket:    Socket{Family: k.Family, Type: k.Type, Protocol: k.Protocol},
			BySystemd: k.BySystemd != 0, Allowed: v.Allowed, Refused: v.Refused,
			First:       Who{at.wall(v.First.Time), v.First.Pid, comm(v.First.Comm)},
			Last:        Who{at.wall(v.Last.Time), v.Last.Pid, comm(v.Last.Comm)},
			LastRefused: Who{at.wall(v.LastRefused.Time), v.LastRefused.Pid, comm(v.LastRefused.Comm)},
		})
	}
	slices.SortStableFunc(seen, func(a, b Seen) int { return a.First.Time.Compare(b.First.Time) })
	return seen
}

func comm(c [16]uint8) string {
	name, _, _ := bytes.Cut(c[:], []byte{0})
	return string(name)
}
