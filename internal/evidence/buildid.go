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
	maxSegments = 512
	maxNotes    = 64 << 10 // bytes of one segment
	maxBuildID  = 64       // bytes; 20 as the linkers make it
)

// Of elf(5): what is read here.
const (
	ptNote       = 4
	ntGNUBuildID = 3
)

// buildID gives the GNU build-id of an ELF file, in hexadecimal digits; "" where it
// has none, or is no ELF file. It reads the file header, the program headers and
// the segments of notes (elf(5)), and nothing that they lead to.
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
	wide := head[4] == 2
	var at uint64
	var size, count int
	switch {
	case head[4] == 1:
		at, size, count = uint64(order.Uint32(head[28:])), int(order.Uint16(head[42:])), int(order.Uint16(head[44:]))
	case wide && n == 64:
		at, size, count = order.Uint64(head[32:]), int(order.Uint16(head[54:])), int(order.Uint16(head[56:]))
	default:
		return "", errors.New("cannot read the ELF header: it is cut off or of no known class")
	}
	if least := map[bool]int{true: 56, false: 32}[wide]; count > 0 && size < least {
		return "", fmt.Errorf("cannot read the ELF header: program headers of %d bytes", size)
	}
	if count > maxSegments || at > 1<<40 {
		return "", fmt.Errorf("cannot read the ELF header: %d program headers at %d", count, at)
	}
	for i := range count {
		ph := make([]byte, 56)
		if _, err := r.ReadAt(ph[:min(size, 56)], int64(at)+int64(i*size)); err != nil {
			return "", fmt.Errorf("cannot read the program headers: %w", err)
		}
		if order.Uint32(ph) != ptNote {
			continue
		}
		// 32 bits: type, offset, vaddr, paddr, filesz, memsz, flags, align;
		// 64 bits: type, flags, offset, vaddr, paddr, filesz, memsz, align.
		offset, length, align := uint64(order.Uint32(ph[4:])), uint64(order.Uint32(ph[16:])), uint64(order.Uint32(ph[28:]))
		if wide {
			offset, length, align = order.Uint64(ph[8:]), order.Uint64(ph[32:]), order.Uint64(ph[48:])
		}
		if length > maxNotes || offset > 1<<40 {
			continue // no linker makes such notes of a build-id
		}
		notes := make([]byte, length)
		if _, err := r.ReadAt(notes, int64(offset)); err != nil {
			return "", fmt.Errorf("cannot read the notes: %w", err)
		}
		if id := noteBuildID(notes, order, align); id != "" {
			return id, nil
		}
	}
	return "", nil
}

// noteBuildID looks for the build-id among the notes of a segment: each has the
// lengths of its name and of its contents, a type, the name and the contents, both
// padded to 4 bytes, or to 8 where the segment is aligned so.
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
