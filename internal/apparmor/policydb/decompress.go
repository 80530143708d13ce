package policydb

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// maxPacked bounds what a compressed policy may become.
const maxPacked = maxBlob

// Decompress returns a compiled policy as it is when it is not compressed. The
// kernel keeps raw_data compressed, since Linux 6.2 with zstd and before with
// zlib, but decompresses it for whoever reads the file (rawdata_open in
// security/apparmor/apparmorfs.c); parsers from 6.0 on can compress their cache
// with zstd. What is neither is returned as it came.
func Decompress(b []byte) ([]byte, error) {
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}): // RFC 8878
		d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxPacked))
		if err != nil {
			return nil, fmt.Errorf("cannot decompress the compiled policy: %w", err)
		}
		defer d.Close()
		r = d
	case len(b) > 2 && b[0] == 0x78 && (uint(b[0])<<8|uint(b[1]))%31 == 0: // RFC 1950
		d, err := zlib.NewReader(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("cannot decompress the compiled policy: %w", err)
		}
		defer d.Close()
		r = d
	default:
		return b, nil
	}
	out, err := io.ReadAll(io.LimitReader(r, maxPacked+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot decompress the compiled policy: %w", err)
	case len(out) > maxPacked:
		return nil, fmt.Errorf("cannot decompress the compiled policy: it is larger than %d bytes", maxPacked)
	}
	return out, nil
}
