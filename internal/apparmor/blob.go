package apparmor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// element is one profile of a compiled policy. Children and hats are elements
// of their own, named "parent//child".
type element struct {
	name string
	ns   string // policy namespace it asks for, "" none
	// bytes is the element with the version header in force before it, so that
	// it can be loaded by itself.
	bytes []byte
}

// The tags of the kernel's packed form (security/apparmor/include/policy_unpack.h,
// enum aa_code).
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

// splitBlob divides a compiled policy into its profiles. It walks the packed
// form (security/apparmor/policy_unpack.c) without reading rules. A dfa inside
// finds its alignment from the end of its own blob (unpack_dfa), so that an
// element may stand at any offset.
func splitBlob(b []byte) ([]element, error) {
	r := packed{b: b}
	var out []element
	var version []byte
	for r.off < len(b) {
		start := r.off
		ns := ""
		name, err := r.name()
		if err != nil {
			return nil, err
		}
		if name == "version" {
			if err := r.skip(0, tagU32); err != nil {
				return nil, err
			}
			version = b[start:r.off]
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
		if name != "profile" || version == nil {
			return nil, r.bad("no profile where one should begin")
		}
		e, err := r.profile()
		if err != nil {
			return nil, err
		}
		e.bytes = append(append(make([]byte, 0, len(version)+r.off-start), version...), b[start:r.off]...)
		if strings.HasPrefix(e.name, ":") {
			// ":ns://name": the kernel takes the namespace off the name.
			inner, rest, ok := strings.Cut(e.name[1:], ":")
			if !ok {
				return nil, r.bad("a name that is not one")
			}
			ns, e.name = inner, strings.TrimPrefix(rest, "//")
		}
		e.ns = ns
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
	t, err := r.tag()
	if err != nil {
		return "", err
	}
	if t != tagName {
		return "", r.bad("no name where one should be")
	}
	return r.text()
}

func (r *packed) str() (string, error) {
	t, err := r.tag()
	if err != nil {
		return "", err
	}
	if t != tagString {
		return "", r.bad("no string where one should be")
	}
	return r.text()
}

// profile reads a profile's structure and passes over its contents.
func (r *packed) profile() (element, error) {
	if t, err := r.tag(); err != nil || t != tagStruct {
		return element{}, r.bad("no structure where a profile should be")
	}
	name, err := r.str()
	if err != nil {
		return element{}, err
	}
	if name == "" {
		return element{}, r.bad("a profile without a name")
	}
	for {
		t, err := r.tag()
		if err != nil {
			return element{}, err
		}
		if t == tagStructEnd {
			return element{name: name}, nil
		}
		if err := r.value(t, 1); err != nil {
			return element{}, err
		}
	}
}

// skip passes over one value, which must have that tag.
func (r *packed) skip(depth int, want byte) error {
	t, err := r.tag()
	if err != nil {
		return err
	}
	if t != want {
		return r.bad("an unexpected value")
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
		var n []byte
		if n, err = r.take(4); err == nil {
			size := binary.LittleEndian.Uint32(n)
			if uint64(size) > uint64(len(r.b)) {
				return errShort
			}
			_, err = r.take(int(size))
		}
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
