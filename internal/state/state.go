// Package state keeps what aaunit must remember across restarts of the daemon:
// one small JSON file for each attached unit.
//
// There is no version in it. A field that an older record lacks has its zero
// value, which always reads as "not known". One that an older daemon does not
// know, after a downgrade, is not read, and is gone when that daemon writes the
// record anew; a record that it cannot read at all is set aside and not lost.
// The package's postrm finds drop-ins in these files without a daemon: it relies
// on the lines that Save makes.
package state

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

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Boot identifies this boot of the machine (random(4), "boot_id"); "" where the
// kernel does not tell.
func Boot() string {
	id, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id))
}

// maxRecord bounds one record.
const maxRecord = 4 << 20

// Dir is the directory of records, /var/lib/aaunit/units on a host.
type Dir string

// Load reads all records. One that cannot be read is set aside as NAME.bad and
// named: the unit is then observed anew, and nothing of it is taken as ours.
func (d Dir) Load() ([]attach.Record, []attach.Reason) {
	if err := safefile.MkdirAll(string(d), 0o700); err != nil {
		return nil, []attach.Reason{attach.Because(attach.RecordBad, "cannot keep records: %v", err)}
	}
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return nil, []attach.Reason{attach.Because(attach.RecordBad, "cannot list records: %v", err)}
	}
	var records []attach.Record
	var problems []attach.Reason
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(string(d), e.Name())
		r, err := load(path)
		if err == nil && d.path(r.Unit) != path {
			err = fmt.Errorf("it is about %q", r.Unit)
		}
		if err != nil {
			aside := path + ".bad"
			problems = append(problems, attach.Because(attach.RecordBad, "cannot read record %s: %v; set aside as %s", path, err, aside).At(path))
			if err := os.Rename(path, aside); err != nil && !errors.Is(err, fs.ErrNotExist) {
				problems = append(problems, attach.Because(attach.RecordBad, "cannot set %s aside: %v", path, err))
			}
			continue
		}
		records = append(records, r)
	}
	return records, problems
}

func load(path string) (attach.Record, error) {
	f, err := safefile.Read(path, maxRecord)
	if err != nil {
		return attach.Record{}, err
	}
	var r attach.Record
	if err := json.Unmarshal(f.Data, &r); err != nil {
		return attach.Record{}, err
	}
	return r, nil
}

// path names a record's file: after the unit where that fits into a file name
// together with ".json", else after its digest.
func (d Dir) path(unit string) string {
	name := unit
	if len(name) > 240 || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		sum := sha256.Sum256([]byte(unit))
		name = "sha256-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(string(d), name+".json")
}

// Save writes a record; a crash leaves the old or the new one.
func (d Dir) Save(r attach.Record) error {
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot keep the record of %s: %w", r.Unit, err)
	}
	_, err = safefile.Write(d.path(r.Unit), append(b, '\n'), 0o600)
	return err
}

// Delete removes a record; one that is not there is no error.
func (d Dir) Delete(unit string) error {
	_, err := safefile.Remove(d.path(unit))
	return err
}
