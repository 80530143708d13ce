package api

import (
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

var attachmentIface = iface{
	name: AttachmentInterface,
	properties: []property{
		{"Unit", "s", "const"},
		{"Profile", "s", ""},
		{"ProfileFile", "s", ""},
		{"AttachmentFile", "s", ""},
		{"ActiveState", "s", ""},
		{"Verdict", "s", ""},
		{"Reasons", "as", ""},
		{"ReasonText", "as", ""},
		{"InvocationID", "s", ""},
		{"VerdictTimestamp", "t", "false"}, // told with a change of another one
		{"Held", "b", ""},
		{"PausedUntil", "t", ""},
		{"Tasks", "u", ""},
		{"Processes", "u", ""},
		{"PrivateTmp", "s", ""},
	},
}

// attachmentProperties are what everybody on the bus sees of a unit; the
// signals go to everybody.
func attachmentProperties(s attach.Status) map[string]dbus.Variant {
	s = publicStatus(s)
	v := attach.Verdict{Answer: attach.Unknown}
	if s.Verdict != nil {
		v = *s.Verdict
	}
	codes, texts := []string{}, []string{}
	for _, r := range slices.Concat(s.Refused, v.Reasons) {
		codes = append(codes, clean(string(r.Code)))
		texts = append(texts, clean(r.String()))
	}
	var until time.Time
	if s.Paused != nil {
		until = s.Paused.Until
	}
	return map[string]dbus.Variant{
		"Unit":             dbus.MakeVariant(clean(s.Unit)),
		"Profile":          dbus.MakeVariant(clean(s.Profile)),
		"ProfileFile":      dbus.MakeVariant(clean(s.ProfileFile)),
		"AttachmentFile":   dbus.MakeVariant(clean(s.Attachment)),
		"ActiveState":      dbus.MakeVariant(clean(s.ActiveState)),
		"Verdict":          dbus.MakeVariant(v.Answer.String()),
		"Reasons":          dbus.MakeVariant(codes),
		"ReasonText":       dbus.MakeVariant(texts),
		"InvocationID":     dbus.MakeVariant(clean(v.InvocationID)),
		"VerdictTimestamp": dbus.MakeVariant(microseconds(v.At)),
		"Held":             dbus.MakeVariant(s.Held != nil),
		"PausedUntil":      dbus.MakeVariant(microseconds(until)),
		"Tasks":            dbus.MakeVariant(uint32(max(0, v.Tasks))),
		"Processes":        dbus.MakeVariant(uint32(max(0, v.Processes))),
		"PrivateTmp":       dbus.MakeVariant(v.PrivateTmp.String()),
	}
}

// microseconds gives a time as systemd does on the bus; 0 for never.
func microseconds(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(max(0, t.UnixMicro()))
}

func interfacesOf(s attach.Status) map[string]map[string]dbus.Variant {
	return map[string]map[string]dbus.Variant{
		AttachmentInterface: attachmentProperties(s),
		// Clients expect every interface of the object here, also those
		// without properties.
		propertiesInterface:     {},
		introspectableInterface: {},
	}
}

// board holds the last status of each attached unit. What is written to it
// while nobody can be told, or faster than the bus takes it, is merged: per
// unit, the last word counts.
type board struct {
	mu    sync.Mutex
	units map[string]*attach.Status // none is changed in place
	heard map[string]bool           // units that a publication spoke of since sync began
	dirty map[string]bool
	wake  chan struct{}
}

func newBoard() *board {
	return &board{units: map[string]*attach.Status{}, heard: map[string]bool{}, dirty: map[string]bool{}, wake: make(chan struct{}, 1)}
}

// publish takes one status; one without an attachment takes the unit away. It
// never waits for the bus.
func (b *board) publish(s *attach.Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard[s.Unit] = true
	b.put(s)
}

func (b *board) put(s *attach.Status) {
	if s.Unit == "" {
		return
	}
	before, known := b.units[s.Unit]
	if s.Attachment == "" {
		delete(b.units, s.Unit)
	} else {
		b.units[s.Unit] = s
	}
	if known && sameButTime(*before, *s) {
		return
	}
	b.dirty[s.Unit] = true
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// sameButTime reports whether two statuses of a unit differ in nothing but when
// the unit was looked at: to tell everybody that a hundred units are as they were
// would cost more than to look at them.
func sameButTime(a, b attach.Status) bool {
	if a.Verdict == nil || b.Verdict == nil {
		return false
	}
	was, is := *a.Verdict, *b.Verdict
	was.At = is.At
	a.Verdict, b.Verdict = &was, &is
	return reflect.DeepEqual(a, b)
}

// sync takes what is known as a whole. Where a publication comes meanwhile, it
// is the newer one.
func (b *board) sync(status func([]string) attach.Report) {
	b.mu.Lock()
	clear(b.heard)
	b.mu.Unlock()
	units := status(nil).Units
	b.mu.Lock()
	defer b.mu.Unlock()
	gone := maps.Clone(b.units)
	for _, s := range units {
		delete(gone, s.Unit)
		s.Questioned = nil // is never published
		if known := b.units[s.Unit]; !b.heard[s.Unit] && (known == nil || !reflect.DeepEqual(*known, s)) {
			b.put(&s)
		}
	}
	for unit := range gone {
		if !b.heard[unit] {
			b.put(&attach.Status{Unit: unit})
		}
	}
}

// get gives the status of a unit, or nil.
func (b *board) get(unit string) *attach.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.units[unit]
}

// size is how many units are attached.
func (b *board) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.units)
}

func (b *board) all() []*attach.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.SortedFunc(maps.Values(b.units), func(x, y *attach.Status) int { return strings.Compare(x.Unit, y.Unit) })
}

// changed takes the names of units that changed since it was last asked.
func (b *board) changed() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := slices.Sorted(maps.Keys(b.dirty))
	clear(b.dirty)
	return out
}

// snapshot gives what is known of each unit. What comes after it counts as changed.
func (b *board) snapshot() map[string]*attach.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.dirty)
	return maps.Clone(b.units)
}

// announce sends the signals for what happens on the board until the
// connection ends. A new connection has new listeners, who ask for what is there
// as soon as it has the name: told, from before it had, is not announced.
func (s *session) announce(told map[string]*attach.Status) {
	for {
		select {
		case <-s.conn.Context().Done():
			return
		case <-s.board.wake:
		}
		for _, unit := range s.board.changed() {
			st, before := s.board.get(unit), told[unit]
			here, was := st != nil, before != nil
			switch {
			case !here && was:
				delete(told, unit)
				s.emit(Path, objectManagerInterface, "InterfacesRemoved", "", UnitPath(unit),
					slices.Sorted(maps.Keys(interfacesOf(attach.Status{Unit: unit}))))
			case here && !was:
				told[unit] = st
				s.emit(Path, objectManagerInterface, "InterfacesAdded", "", UnitPath(unit), interfacesOf(*st))
			case here:
				was, diff := attachmentProperties(*before), map[string]dbus.Variant{}
				for key, v := range attachmentProperties(*st) {
					if !reflect.DeepEqual(v.Value(), was[key].Value()) {
						diff[key] = v
					}
				}
				told[unit] = st
				if len(diff) > 0 {
					s.emit(UnitPath(unit), propertiesInterface, "PropertiesChanged", "", AttachmentInterface, diff, []string{})
				}
			}
		}
	}
}

// emit sends a signal: to everybody, or to one connection.
func (s *session) emit(path dbus.ObjectPath, iface, member, to string, body ...any) {
	msg := &dbus.Message{
		Type:  dbus.TypeSignal,
		Flags: dbus.FlagNoReplyExpected,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(path),
			dbus.FieldInterface: dbus.MakeVariant(iface),
			dbus.FieldMember:    dbus.MakeVariant(member),
			dbus.FieldSignature: dbus.MakeVariant(dbus.SignatureOf(body...)),
		},
		Body: body,
	}
	if to != "" {
		msg.Headers[dbus.FieldDestination] = dbus.MakeVariant(to)
	}
	s.conn.Send(msg, nil)
}
