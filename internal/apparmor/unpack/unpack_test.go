package unpack

import (
	"bytes"
	"compress/zlib"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

const most = 1 << 20

func TestPolicy(t *testing.T) {
	plain := []byte("\x04\x08\x00version\x00" + strings.Repeat("policy ", 1000))
	enc, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w := zlib.NewWriter(&z)
	w.Write(plain)
	w.Close()
	for name, in := range map[string][]byte{"plain": plain, "zstd": enc.EncodeAll(plain, nil), "zlib": z.Bytes()} {
		got, err := Policy(in, most)
		if err != nil || !bytes.Equal(got, plain) {
			t.Errorf("%s: %v", name, err)
		}
		if name == "plain" {
			continue
		}
		if _, err := Policy(in[:len(in)/2], most); err == nil {
			t.Errorf("half of %s is no error", name)
		}
		if _, err := Policy(in, len(plain)-1); err == nil {
			t.Errorf("%s: more than was allowed is no error", name)
		}
	}
}

// FuzzPolicy: a bomb or garbage ends in an error or in bounded memory.
func FuzzPolicy(f *testing.F) {
	f.Add([]byte("\x28\xb5\x2f\xfd"))
	f.Add([]byte("\x78\x9c\x03\x00\x00\x00\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if out, err := Policy(b, most); err == nil && len(out) > max(most, len(b)) {
			t.Fatal(len(out))
		}
	})
}
