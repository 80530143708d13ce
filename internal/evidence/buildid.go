package evidence

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// Bounds on an ELF file, which anybody may have made.
const (
	maxHeaders = 4096
	maxHeader  = 256      // bytes of one
	maxNotes   = 64 << 10 // bytes of one segment or section
	maxAreas   = 64       // segments and sections of notes
	maxBuildID = 64       // bytes; 20 as the linkers make it
	maxOffset  = 1 << 40
)

// Of elf(5): what is read here.
const (
	ptNote       = 4
	shtNote      = 7
	ntGNUBuildID = 3
)

// elfTable is the table of program headers or of section headers, and where in
// one of its entries the fields are.
type elfTable struct {
	what                 string
	at                   uint64
	size, count, least   int
	kind                 uint32
	typ, off, len, align int
}

// buildID gives the GNU build-id of an ELF file, in hexadecimal digits; "" where it
// has none, or is no ELF file. It reads the file header, the segments and, since
// Go's linker leaves it out of those, the sections of notes (elf(5)), and nothing
// that they lead to.
func buildID(r io.ReaderAt) (string, error) {
	head := make([]byte, 64)
	n, err := r.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	if n < 52 || string(head[:4]) != "\x7fELF" {
		return "", nil
	}
	var order binary.ByteOrder = binary.LittleEndian
	if head[5] == 2 {
		order = binary.BigEndian
	}
	word := func(b []byte) uint64 { return uint64(order.Uint32(b)) }
	half := func(i int) int { return int(order.Uint16(head[i:])) }
	var tables []elfTable
	switch {
	case head[4] == 1:
		tables = []elfTable{
			{"program headers", word(head[28:]), half(42), half(44), 32, ptNote, 0, 4, 16, 28},
			{"section headers", word(head[32:]), half(46), half(48), 40, shtNote, 4, 16, 20, 32},
		}
	case head[4] == 2 && n == 64:
		word = order.Uint64
		tables = []elfTable{
			{"program headers", word(head[32:]), half(54), half(56), 56, ptNote, 0, 8, 32, 48},
			{"section headers", word(head[40:]), half(58), half(60), 64, shtNote, 4, 24, 32, 48},
		}
	default:
		return "", errors.New("cannot read the ELF header: it is cut off or of no known class")
	}
	areas := 0
	for _, t := range tables {
		if t.count == 0 {
			continue
		}
		if t.size < t.least || t.size > maxHeader || t.count > maxHeaders || t.at > maxOffset {
			return "", fmt.Errorf("cannot read the ELF header: %d %s of %d bytes at %d", t.count, t.what, t.size, t.at)
		}
		all := make([]byte, t.count*t.size)
		if _, err := r.ReadAt(all, int64(t.at)); err != nil {
			return "", fmt.Errorf("cannot read the %s: %w", t.what, err)
		}
		for i := range t.count {
			h := all[i*t.size:]
			if order.Uint32(h[t.typ:]) != t.kind {
				continue
			}
			offset, length, align := word(h[t.off:]), word(h[t.len:]), word(h[t.align:])
			if length == 0 || length > maxNotes || offset > maxOffset {
				continue // no linker makes such notes of a build-id
			}
			if areas++; areas > maxAreas {
				return "", fmt.Errorf("cannot look for the build-id: there are more than %d areas of notes", maxAreas)
			}
			notes := make([]byte, length)
			if _, err := r.ReadAt(notes, int64(offset)); err != nil {
				return "", fmt.Errorf("cannot read the notes: %w", err)
			}
			if id := noteBuildID(notes, order, align); id != "" {
				return id, nil
			}
		}
	}
	return "", nil
}

// noteBuildID looks for the build-id among notes: each has the lengths of its name
// and of its contents, a type, the name and the contents, both padded to 4 bytes,
// or to 8 where the area is aligned so.
func noteBuildID(notes []byte, order binary.ByteOrder, align uint64) string {
	unit := 4
	if align == 8 {
		unit = 8
	}
	for len(notes) >= 12 {
		name, desc, kind := uint64(order.Uint32(notes)), uint64(order.Uint32(notes[4:])), order.Uint32(notes[8:])
		if name > maxNotes || desc > maxNotes {
			return ""
		}
		begin := padded(12+int(name), unit)
		end := begin + int(desc)
		if end > len(notes) {
			return ""
		}
		if kind == ntGNUBuildID && name == 4 && string(notes[12:16]) == "GNU\x00" && desc > 0 && desc <= maxBuildID {
			return hex.EncodeToString(notes[begin:end])
		}
		notes = notes[min(padded(end, unit), len(notes)):]
	}
	return ""
}

func padded(n, unit int) int { return (n + unit - 1) / unit * unit }
