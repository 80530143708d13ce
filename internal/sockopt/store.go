package sockopt

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/aaunit/aaunit/internal/safefile"
)

// Store is the directory of the rules of units, which the start helper reads, and
// which the daemon writes: /var/lib/aaunit/sockopts on a host. One file for each
// unit, template or prefix.
type Store string

// DefaultStore is where it is on a host.
const DefaultStore Store = "/var/lib/aaunit/sockopts"

// maxStored bounds one file: MaxAllow options at less than 64 bytes each.
const maxStored = 1 << 20

// stored is a file's content. What it does not know it ignores, so that a daemon
// may keep more in it.
type stored struct {
	Unit string `json:"unit"`
	Rules
}

// path names a unit's file as internal/state names its record's.
func (d Store) path(unit string) string {
	name := unit
	if len(name) > 240 || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		sum := sha256.Sum256([]byte(unit))
		name = "sha256-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(string(d), name+".json")
}

// Save writes the rules of a unit, a template or a prefix; a crash leaves the old
// or the new ones.
func (d Store) Save(unit string, r Rules) (changed bool, err error) {
	if err := r.check(); err != nil {
		return false, err
	}
	data, err := format(unit, r)
	if err != nil {
		return false, fmt.Errorf("cannot keep the socket-option rules of %s: %w", unit, err)
	}
	if err := safefile.MkdirAll(string(d), 0o700); err != nil {
		return false, err
	}
	return safefile.Write(d.path(unit), data, 0o600)
}

func format(unit string, r Rules) ([]byte, error) {
	data, err := json.MarshalIndent(stored{unit, r.normal()}, "", "  ")
	return append(data, '\n'), err
}

// Load reads the rules of exactly this name; fs.ErrNotExist where there are none.
func (d Store) Load(unit string) (Rules, error) {
	path := d.path(unit)
	f, err := safefile.Read(path, maxStored)
	if err != nil {
		return Rules{}, err
	}
	if err := f.OnlyBy(uint32(os.Geteuid())); err != nil {
		return Rules{}, fmt.Errorf("cannot use %s: %w", path, err)
	}
	r, err := parseStored(unit, f.Data)
	if err != nil {
		return Rules{}, fmt.Errorf("cannot read %s: %w", path, err)
	}
	return r, nil
}

func parseStored(unit string, data []byte) (Rules, error) {
	var s stored
	if err := json.Unmarshal(data, &s); err != nil {
		return Rules{}, err
	}
	if s.Unit != unit {
		return Rules{}, fmt.Errorf("it is about %q", s.Unit)
	}
	if err := s.check(); err != nil {
		return Rules{}, err
	}
	return s.normal(), nil
}

// Delete removes the rules of a name.
func (d Store) Delete(unit string) (changed bool, err error) { return safefile.Remove(d.path(unit)) }

// Find reads the rules that hold for a unit: its own, or those of its template, or
// of a prefix of it, in the order in which systemd looks for drop-ins
// (systemd.unit(5)). So the first start of an instance that nobody knew of needs
// no daemon. The first file that exists counts, also when it cannot be used: the
// error is fs.ErrNotExist only where there is none.
func (d Store) Find(unit string) (r Rules, from string, err error) {
	for _, name := range lookups(unit) {
		r, err := d.Load(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		return r, name, err
	}
	return Rules{}, "", fmt.Errorf("cannot find the socket-option rules of %s in %s: %w", unit, d, fs.ErrNotExist)
}

// lookups are the names under which there may be something for a unit: itself,
// its template, and the prefixes that end at a dash, longest first.
func lookups(unit string) []string {
	dot := strings.LastIndexByte(unit, '.')
	if dot < 0 {
		return []string{unit}
	}
	name, suffix := unit[:dot], unit[dot:]
	all := []string{unit}
	prefix, instance, isInstance := strings.Cut(name, "@")
	if isInstance && instance != "" {
		all = append(all, prefix+"@"+suffix)
	}
	for end := strings.TrimSuffix(prefix, "-"); ; {
		dash := strings.LastIndexByte(end, '-')
		if dash <= 0 {
			return all
		}
		end = end[:dash]
		all = append(all, end+"-"+suffix)
	}
}
