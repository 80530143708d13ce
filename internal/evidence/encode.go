package evidence

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/aaunit/aaunit/internal/attach"
)

// Schema is the JSON schema of a record.
//
//go:embed schema.json
var Schema []byte

// maxRecord bounds one record.
const maxRecord = 16 << 20

// Encode gives the canonical form of a record: one line, the keys in the order of
// attach.Evidence, no spaces, times in UTC, nothing escaped that JSON lets stand,
// and a line feed. Its SHA-256 is the record's.
func Encode(e attach.Evidence) ([]byte, error) {
	var b bytes.Buffer
	w := json.NewEncoder(&b)
	w.SetEscapeHTML(false)
	if err := w.Encode(e); err != nil {
		return nil, fmt.Errorf("cannot write the record of %s: %w", e.Unit, err)
	}
	if b.Len() > maxRecord {
		return nil, fmt.Errorf("cannot write the record of %s: it has %d bytes, at most %d are kept", e.Unit, b.Len(), maxRecord)
	}
	return b.Bytes(), nil
}

// Decode reads a record. What a newer version has added is passed over; another
// format is an error.
func Decode(data []byte) (attach.Evidence, error) {
	var e attach.Evidence
	if len(data) > maxRecord {
		return e, fmt.Errorf("cannot read the record: it has more than %d bytes", maxRecord)
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return attach.Evidence{}, fmt.Errorf("cannot read the record: %w", err)
	}
	switch {
	case e.Format != attach.EvidenceFormat:
		return e, fmt.Errorf("cannot read the record: its format is %d, this version reads %d", e.Format, attach.EvidenceFormat)
	case e.Unit == "" || e.Number < 1:
		return e, errors.New("cannot read the record: it is not whole")
	}
	return e, nil
}

// sumOf is the checksum of bytes, as records have it.
func sumOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// isSum reports whether a text has the form of a checksum.
func isSum(s string) bool {
	if len(s) != 2*sha256.Size {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}
