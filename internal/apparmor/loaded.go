package apparmor

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// Loaded reads policy back from the kernel: the named profiles, their children and
// hats, or all there are where no name is given. Each comes with the bytes that it
// was loaded from (raw_data, which is for root) and the kernel's checksum of it; of
// one whose bytes could not be read, NotStaged says why, and Blob is nil. A name that
// is not loaded is not in the answer.
func (s *System) Loaded(names []string) ([]attach.Compiled, error) {
	if len(names) == 0 {
		names = nil // all
	}
	live, err := s.readLive(names)
	if err != nil {
		return nil, err
	}
	// Several profiles that were loaded in one go share their bytes.
	raws := map[string][]policydb.Element{}
	var out []attach.Compiled
	for _, name := range slices.Sorted(maps.Keys(live)) {
		p := live[name]
		c := attach.Compiled{Profiles: []attach.Profile{{Name: name, Flags: []string{string(p.Mode)}}}, Checksums: map[string]string{name: p.Checksum}}
		blob, err := s.bytesOf(name, p.dir, raws)
		if err != nil {
			c.NotStaged = err.Error()
		}
		c.Blob = blob
		sum := sha256.Sum256(blob)
		c.ID, c.Environment = "loaded "+name, hex.EncodeToString(sum[:])
		out = append(out, c)
	}
	return out, nil
}

// bytesOf finds the bytes of one loaded profile.
func (s *System) bytesOf(name, dir string, raws map[string][]policydb.Element) ([]byte, error) {
	raw, err := readAll(filepath.Join(dir, "raw_data"), maxPolicy)
	if err != nil {
		return nil, fmt.Errorf("cannot read what was loaded as %s: %w (for root, and from a kernel with apparmor.export_binary=1)", name, err)
	}
	elements, known := raws[string(raw)]
	if !known {
		// The kernel unpacks it for who reads it; a copy elsewhere may be packed.
		plain := raw
		if s.opt.Unpack != nil {
			plain, err = s.opt.Unpack(raw, policydb.MaxPolicy)
		}
		if err == nil {
			elements, err = policydb.Split(plain)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read what was loaded as %s: %w", name, err)
		}
		raws[string(raw)] = elements
	}
	for _, e := range elements {
		if e.Name == name {
			return e.Bytes, nil
		}
	}
	return nil, fmt.Errorf("cannot read what was loaded as %s: the bytes that it came in do not hold it: %w", name, fs.ErrNotExist)
}
