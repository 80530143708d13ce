package policydb

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// The tags of the packed form (security/apparmor/include/policy_unpack.h, enum
// aa_code).
const (
	tagU8 = iota
	tagU16
	tagU32
	tagU64
	tagName
	tagString
	tagBlob
	tagStruct
	tagStructEnd
	tagList
	tagListEnd
	tagArray
	tagArrayEnd
)

// maxNesting bounds structures within structures; real policy has three.
const maxNesting = 16

// MaxPolicy bounds a compiled policy, in bytes. The largest of Debian's is some megabytes.
const MaxPolicy = 256 << 20

// Element is one profile of a compiled policy. Children and hats are elements
// of their own, named "parent//child".
type Element struct {
	Name      string
	Namespace string // policy namespace it asks for, "" none
	// Bytes is the element with the version header in force before it, so that
	// it can be loaded by itself.
	Bytes []byte

	version uint32
	body    []byte // the profile's structure
}

// Split divides a compiled policy into its profiles, without reading rules. An
// automaton inside finds its alignment from the end of its own blob
// (unpack_dfa), so that an element may stand at any offset.
func Split(b []byte) ([]Element, error) {
	if len(b) > MaxPolicy {
		return nil, fmt.Errorf("it is not a compiled policy: it has %d bytes, and %d are the most", len(b), MaxPolicy)
	}
	r := packed{b: b}
	var out []Element
	var header []byte
	var version uint32
	for r.off < len(b) {
		start := r.off
		ns := ""
		name, err := r.name()
		if err != nil {
			return nil, err
		}
		if name == "version" {
			if version, err = r.u32(); err != nil {
				return nil, err
			}
			header = b[start:r.off]
			start = r.off
			if name, err = r.name(); err != nil {
				return nil, err
			}
		}
		if name == "namespace" {
			if ns, err = r.str(); err != nil {
				return nil, err
			}
			if ns == "" {
				return nil, r.bad("an empty namespace")
			}
			start = r.off
			if name, err = r.name(); err != nil {
				return nil, err
			}
		}
		if name != "profile" || header == nil {
			return nil, r.bad("no profile where one should begin")
		}
		body := r.off
		e, err := r.profile()
		if err != nil {
			return nil, err
		}
		e.version, e.body = version, b[body:r.off]
		e.Bytes = append(append(make([]byte, 0, len(header)+r.off-start), header...), b[start:r.off]...)
		if strings.HasPrefix(e.Name, ":") {
			// ":ns://name": the kernel takes the namespace off the name.
			inner, rest, ok := strings.Cut(e.Name[1:], ":")
			if !ok {
				return nil, r.bad("a name that is not one")
			}
			ns, e.Name = inner, strings.TrimPrefix(rest, "//")
		}
		e.Namespace = ns
		out = append(out, e)
	}
	return out, nil
}

// packed reads the packed form; off never passes the end.
type packed struct {
	b   []byte
	off int
}

func (r *packed) bad(what string) error {
	return fmt.Errorf("it is not a compiled policy: %s at byte %d", what, r.off)
}

var errShort = errors.New("it is not a compiled policy: it ends too early")

func (r *packed) take(n int) ([]byte, error) {
	if n < 0 || n > len(r.b)-r.off {
		return nil, errShort
	}
	r.off += n
	return r.b[r.off-n : r.off], nil
}

func (r *packed) tag() (byte, error) {
	t, err := r.take(1)
	if err != nil {
		return 0, err
	}
	return t[0], nil
}

func (r *packed) want(tag byte, what string) error {
	t, err := r.tag()
	if err == nil && t != tag {
		r.off--
		err = r.bad("no " + what + " where one should be")
	}
	return err
}

// text reads a 16-bit length and that many bytes, the last one NUL.
func (r *packed) text() (string, error) {
	n, err := r.take(2)
	if err != nil {
		return "", err
	}
	s, err := r.take(int(binary.LittleEndian.Uint16(n)))
	if err != nil {
		return "", err
	}
	if len(s) == 0 || s[len(s)-1] != 0 {
		return "", r.bad("a string without its end")
	}
	return string(s[:len(s)-1]), nil
}

func (r *packed) name() (string, error) {
	if err := r.want(tagName, "name"); err != nil {
		return "", err
	}
	return r.text()
}

// optName reads a name where there is one.
func (r *packed) optName() (string, error) {
	if r.off < len(r.b) && r.b[r.off] == tagName {
		return r.name()
	}
	return "", nil
}

func (r *packed) str() (string, error) {
	if err := r.want(tagString, "string"); err != nil {
		return "", err
	}
	return r.text()
}

func (r *packed) u32() (uint32, error) {
	if err := r.want(tagU32, "number"); err != nil {
		return 0, err
	}
	v, err := r.take(4)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(v), nil
}

func (r *packed) u64() (uint64, error) {
	if err := r.want(tagU64, "number"); err != nil {
		return 0, err
	}
	v, err := r.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(v), nil
}

func (r *packed) u16() (uint16, error) {
	if err := r.want(tagU16, "number"); err != nil {
		return 0, err
	}
	v, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint16(v), nil
}

func (r *packed) blob() ([]byte, error) {
	if err := r.want(tagBlob, "blob"); err != nil {
		return nil, err
	}
	return r.blobBody()
}

func (r *packed) blobBody() ([]byte, error) {
	n, err := r.take(4)
	if err != nil {
		return nil, err
	}
	size := binary.LittleEndian.Uint32(n)
	if uint64(size) > uint64(len(r.b)) {
		return nil, errShort
	}
	return r.take(int(size))
}

func (r *packed) array() (int, error) {
	if err := r.want(tagArray, "array"); err != nil {
		return 0, err
	}
	n, err := r.take(2)
	if err != nil {
		return 0, err
	}
	return int(binary.LittleEndian.Uint16(n)), nil
}

// inStruct reads a structure whose contents read reads.
func (r *packed) inStruct(read func() error) error {
	if err := r.want(tagStruct, "structure"); err != nil {
		return err
	}
	if err := read(); err != nil {
		return err
	}
	return r.want(tagStructEnd, "end of a structure")
}

// inArray reads a structure that holds one array, or (bare) an array alone, and
// calls read for each of its elements.
func (r *packed) inArray(read func(i int) error) error {
	n, err := r.array()
	if err != nil {
		return err
	}
	for i := range n {
		if err := read(i); err != nil {
			return err
		}
	}
	return r.want(tagArrayEnd, "end of an array")
}

// profile reads a profile's structure and passes over its contents.
func (r *packed) profile() (Element, error) {
	if t, err := r.tag(); err != nil || t != tagStruct {
		return Element{}, r.bad("no structure where a profile should be")
	}
	name, err := r.str()
	if err != nil {
		return Element{}, err
	}
	if name == "" {
		return Element{}, r.bad("a profile without a name")
	}
	for {
		t, err := r.tag()
		if err != nil {
			return Element{}, err
		}
		if t == tagStructEnd {
			return Element{Name: name}, nil
		}
		if err := r.value(t, 1); err != nil {
			return Element{}, err
		}
	}
}

// skip passes over one value.
func (r *packed) skip(depth int) error {
	t, err := r.tag()
	if err != nil {
		return err
	}
	return r.value(t, depth)
}

// value passes over what follows a tag.
func (r *packed) value(t byte, depth int) error {
	if depth > maxNesting {
		return r.bad("structures nested too deeply")
	}
	var err error
	switch t {
	case tagU8:
		_, err = r.take(1)
	case tagU16:
		_, err = r.take(2)
	case tagU32:
		_, err = r.take(4)
	case tagU64:
		_, err = r.take(8)
	case tagName, tagString:
		// What a name names follows as a value of its own.
		_, err = r.text()
	case tagBlob:
		_, err = r.blobBody()
	case tagStruct:
		err = r.until(tagStructEnd, depth)
	case tagList:
		err = r.until(tagListEnd, depth)
	case tagArray:
		if _, err = r.take(2); err == nil {
			err = r.until(tagArrayEnd, depth)
		}
	default:
		return r.bad("an unknown tag")
	}
	return err
}

func (r *packed) until(end byte, depth int) error {
	for {
		t, err := r.tag()
		if err != nil {
			return err
		}
		if t == end {
			return nil
		}
		if err := r.value(t, depth+1); err != nil {
			return err
		}
	}
}
