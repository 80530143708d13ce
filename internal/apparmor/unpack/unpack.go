// Package unpack undoes the compression in which compiled policy may come. It is a
// package of its own, for its library takes longer to be ready than the rest of a
// command takes to answer.
package unpack

import (
	"bytes"
	"compress/zlib"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Policy returns a compiled policy as it is when it is not compressed. The
// kernel keeps raw_data compressed, since Linux 6.2 with zstd and before with
// zlib, but decompresses it for whoever reads the file (rawdata_open in
// security/apparmor/apparmorfs.c); parsers from 6.0 on can compress their cache
// with zstd. What is neither is returned as it came; what would become longer than
// most bytes is an error.
func Policy(b []byte, most int) ([]byte, error) {
	var r io.Reader
	switch {
	case bytes.HasPrefix(b, []byte{0x28, 0xb5, 0x2f, 0xfd}): // RFC 8878
		d, err := zstd.NewReader(bytes.NewReader(b), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(most)))
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
	out, err := io.ReadAll(io.LimitReader(r, int64(most)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot decompress the compiled policy: %w", err)
	case len(out) > most:
		return nil, fmt.Errorf("cannot decompress the compiled policy: it is larger than %d bytes", most)
	}
	return out, nil
}
