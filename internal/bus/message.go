package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Header is what a message says about itself. The bus has put in the sender.
type Header struct {
	Type                      dbus.Type
	Flags                     dbus.Flags
	Serial                    uint32
	Size                      int64 // of the whole message, in bytes
	Path                      dbus.ObjectPath
	Interface, Member, Sender string
	Signature                 string
}

// fixedSize is the part of a header that has always the same length: byte
// order, type, flags, version, length of the body, serial, length of the array
// of fields. D-Bus specification, "Message Format".
const fixedSize = 16

// The specification's bounds, "Message Format" and "Marshaling".
const (
	maxMessage = 1 << 27
	maxArray   = 1 << 26
)

// fixed is that part.
type fixed struct {
	order  binary.ByteOrder
	kind   dbus.Type
	flags  dbus.Flags
	serial uint32
	fields int64 // bytes in the array of fields, without the padding after it
	body   int64
}

func parseFixed(b []byte) (f fixed, err error) {
	switch b[0] {
	case 'l':
		f.order = binary.LittleEndian
	case 'B':
		f.order = binary.BigEndian
	default:
		return f, fmt.Errorf("%w: its byte order is %#x", ErrMalformed, b[0])
	}
	f.kind, f.flags, f.serial = dbus.Type(b[1]), dbus.Flags(b[2]), f.order.Uint32(b[8:])
	f.body, f.fields = int64(f.order.Uint32(b[4:])), int64(f.order.Uint32(b[12:]))
	switch {
	case f.kind == 0:
		return f, fmt.Errorf("%w: it has no type", ErrMalformed)
	case b[3] != 1:
		return f, fmt.Errorf("%w: its version is %d", ErrMalformed, b[3])
	case f.fields > maxArray || f.size() > maxMessage:
		return f, fmt.Errorf("%w: it is said to be %d bytes long", ErrMalformed, f.size())
	}
	return f, nil
}

// header is how long the header is with all its fields: the body begins at a
// multiple of 8.
func (f fixed) header() int64 { return fixedSize + (f.fields+7)&^7 }

func (f fixed) size() int64 { return f.header() + f.body }

// fieldTypes are the types of the header's fields, by their codes; D-Bus
// specification, "Header Fields".
var fieldTypes = [...]string{
	dbus.FieldPath:        "o",
	dbus.FieldInterface:   "s",
	dbus.FieldMember:      "s",
	dbus.FieldErrorName:   "s",
	dbus.FieldReplySerial: "u",
	dbus.FieldDestination: "s",
	dbus.FieldSender:      "s",
	dbus.FieldSignature:   "g",
	dbus.FieldUnixFDs:     "u",
}

// parse reads the fields of a header. A message whose fields are not what the
// specification says is not for us; it does not end the connection, because
// where it ends is known.
func (f fixed) parse(fields []byte) (*Header, bool) {
	h := &Header{Type: f.kind, Flags: f.flags, Serial: f.serial, Size: f.size()}
	c := cursor{order: f.order, b: fields}
	var seen [len(fieldTypes)]bool
	for c.pos < len(c.b) {
		c.align(8)
		code, typ := c.byte(), c.signature()
		// Of a field that is not known, godbus would make whatever type it says.
		if c.bad || int(code) >= len(fieldTypes) || fieldTypes[code] == "" || typ != fieldTypes[code] || seen[code] {
			return nil, false
		}
		seen[code] = true
		var text string
		var number uint32
		switch typ {
		case "u":
			number = c.uint32()
		case "g":
			text = c.signature()
		default:
			text = c.string()
		}
		switch dbus.HeaderField(code) {
		case dbus.FieldPath:
			h.Path = dbus.ObjectPath(text)
		case dbus.FieldInterface:
			h.Interface = text
		case dbus.FieldMember:
			h.Member = text
		case dbus.FieldSender:
			h.Sender = text
		case dbus.FieldSignature:
			h.Signature = text
		case dbus.FieldUnixFDs:
			if number > 0 {
				return nil, false // they were not asked for, and are gone
			}
		}
	}
	return h, !c.bad
}

// addressed reports whether a signal or a call says what it is about.
func (h *Header) addressed() bool { return h.Path != "" && h.Member != "" }

// simple are the types of values that a call may hold: not signatures, which
// godbus' decoder may refuse, and with them the connection; no file descriptors.
const simple = "ybnqiuxtdso"

// maxValues bounds the values in a call: each is a few bytes in the message and
// up to a hundred in memory.
const maxValues = 4096

var errCut = errors.New("they do not fit into the call")

// checkBody walks through a call's values, so that decoding them costs little
// and cannot fail: godbus ends a connection where it cannot decode a message.
func checkBody(order binary.ByteOrder, signature string, body []byte) error {
	c := cursor{order: order, b: body}
	for rest := signature; rest != ""; {
		var one string
		if one, rest = single(rest); one == "" {
			return fmt.Errorf("their types are %q", signature)
		}
		if err := c.value(one); err != nil {
			return err
		}
	}
	if c.bad || c.pos != len(body) {
		return errCut
	}
	return nil
}

// single cuts one type from a signature, if it is one that a call may hold: a
// simple one, a variant, an array of strings or paths, or a dictionary with
// strings as keys and one of the former two as values.
func single(signature string) (one, rest string) {
	at := func(i int, set string) bool { return i < len(signature) && strings.Contains(set, signature[i:i+1]) }
	n := 0
	switch {
	case at(0, simple+"v"):
		n = 1
	case at(0, "a") && at(1, "so"):
		n = 2
	case strings.HasPrefix(signature, "a{s") && at(3, simple+"v") && at(4, "}"):
		n = 5
	}
	return signature[:n], signature[n:]
}

// cursor reads values of a message. Once it has met its end it gives zeros.
type cursor struct {
	order  binary.ByteOrder
	b      []byte
	pos    int
	bad    bool
	values int
}

func (c *cursor) take(n int) []byte {
	if c.bad || n < 0 || n > len(c.b)-c.pos {
		c.bad = true
		return make([]byte, min(max(n, 0), 8))
	}
	c.pos += n
	return c.b[c.pos-n : c.pos]
}

func (c *cursor) align(n int)    { c.take(-c.pos & (n - 1)) }
func (c *cursor) byte() byte     { return c.take(1)[0] }
func (c *cursor) uint32() uint32 { c.align(4); return c.order.Uint32(c.take(4)) }

// text reads n bytes and the zero after them.
func (c *cursor) text(n int) []byte {
	b := c.take(n)
	if c.byte() != 0 {
		c.bad = true
	}
	if c.bad {
		return nil
	}
	return b
}

func (c *cursor) string() string    { return string(c.text(int(c.uint32()))) }
func (c *cursor) signature() string { return string(c.text(int(c.byte()))) }

// value walks through a value of one of the types that single gives.
func (c *cursor) value(typ string) error {
	if c.values++; c.values > maxValues {
		return fmt.Errorf("they are more than %d values", maxValues)
	}
	switch typ[0] {
	case 'v':
		inner := c.signature()
		if one, rest := single(inner); c.bad || one == "" || rest != "" || one[0] == 'v' || len(one) > 2 {
			return fmt.Errorf("a variant holds a value of the type %q", inner)
		}
		return c.value(inner)
	case 'a':
		return c.array(typ[1:])
	case 's', 'o':
		c.text(int(c.uint32()))
	case 'b':
		if c.uint32() > 1 {
			c.bad = true
		}
	default:
		n := alignment(typ[0])
		c.align(n)
		c.take(n)
	}
	if c.bad {
		return errCut
	}
	return nil
}

// Types of messages that hold a dictionary of properties: the answer of GetAll,
// and the signal PropertiesChanged.
const (
	allProperties     = "a{sv}"
	changedProperties = "sa{sv}as"
)

// chooseProperties keeps the entries of a dictionary of properties whose names
// wants accepts, in place, and gives what the body is then; nil where it is not
// what its type says, and nothing is changed. An entry begins at a multiple of 8,
// so that it may be moved by multiples of 8.
func chooseProperties(order binary.ByteOrder, signature string, body []byte, wants func(string) bool) []byte {
	c := cursor{order: order, b: body}
	if signature == changedProperties {
		c.text(int(c.uint32()))
	}
	c.align(4)
	length := c.pos
	n := int(c.uint32())
	c.align(8)
	begin := c.pos
	if c.bad || n > len(body)-begin {
		return nil
	}
	var chosen [][]byte
	for c.pos < begin+n {
		c.align(8)
		from := c.pos
		name := c.text(int(c.uint32()))
		if rest := c.pass(c.signature(), 0); c.bad || rest != "" || c.pos > begin+n {
			return nil
		}
		if wants(string(name)) {
			chosen = append(chosen, body[from:c.pos])
		}
	}
	var after []byte
	if signature == changedProperties {
		c.align(4)
		after = body[c.pos:]
		c.pass("as", 0)
	}
	if c.bad || c.pos != len(body) {
		return nil
	}
	end := begin
	for _, entry := range chosen {
		end = (end + 7) &^ 7
		end += copy(body[end:], entry)
	}
	order.PutUint32(body[length:], uint32(end-begin))
	if signature == changedProperties {
		end = (end + 3) &^ 3
		end += copy(body[end:], after)
	}
	return body[:end]
}

// maxDepth is how deep types may be nested; D-Bus specification, "Valid
// Signatures": 32 arrays and 32 structures, and a variant may hold more.
const maxDepth = 64

// pass passes over a value of any type, and gives what is left of the types.
// What is in an array is not looked at.
func (c *cursor) pass(types string, depth int) (rest string) {
	if types == "" || depth > maxDepth || c.bad {
		c.bad = true
		return ""
	}
	rest = types[1:]
	switch types[0] {
	case 's', 'o':
		c.text(int(c.uint32()))
	case 'g':
		c.signature()
	case 'v':
		if c.pass(c.signature(), depth+1) != "" {
			c.bad = true
		}
	case 'a':
		n := int(c.uint32())
		element := span(rest)
		if element == 0 {
			c.bad = true
			return ""
		}
		c.align(alignment(rest[0]))
		c.take(n)
		return rest[element:]
	case '(':
		c.align(8)
		for rest != "" && rest[0] != ')' && !c.bad {
			rest = c.pass(rest, depth+1)
		}
		if rest == "" {
			c.bad = true
			return ""
		}
		return rest[1:]
	default:
		n := alignment(types[0])
		if !strings.ContainsRune("ybnqiuxtdh", rune(types[0])) {
			c.bad = true
			return ""
		}
		c.align(n)
		c.take(n)
	}
	return rest
}

// alignment is what a value of the type begins at a multiple of; D-Bus
// specification, "Summary of D-Bus marshalling".
func alignment(typ byte) int {
	switch typ {
	case 'y', 'g', 'v':
		return 1
	case 'n', 'q':
		return 2
	case 'x', 't', 'd', '(', '{':
		return 8
	}
	return 4
}

// span is how long the first type of a signature is, 0 where it has none.
func span(types string) int {
	open := 0
	for i := range len(types) {
		switch types[i] {
		case '(', '{':
			open++
		case ')', '}':
			open--
		case 'a':
			continue
		}
		switch {
		case open < 0:
			return 0
		case open == 0:
			return i + 1
		}
	}
	return 0
}

// array walks through an array of texts, or of entries like "{sv}".
func (c *cursor) array(element string) error {
	n, entry := int(c.uint32()), len(element) > 1
	if entry {
		c.align(8)
		element = element[2:3]
	}
	if c.bad || n < 0 || n > len(c.b)-c.pos {
		return errCut
	}
	for end := c.pos + n; c.pos < end; {
		if entry {
			c.align(8)
			if err := c.value("s"); err != nil {
				return err
			}
		}
		if err := c.value(element); err != nil {
			return err
		}
		if c.pos > end {
			return errCut
		}
	}
	return nil
}
