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

// Kernel is the release of the kernel (uname(2)); "" where that cannot be read.
func Kernel() string {
	release, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return strings.TrimSpace(string(release))
}

// maxRecord bounds one record.
const maxRecord = 4 << 20

// Dir is the directory of records, /var/lib/aaunit/units on a host.
type Dir string

// Load reads all records. One that cannot be read, or that others than the
// daemon's user could have written, is set aside and named: the unit is then
// observed anew, and nothing of it is taken as ours. Where the directory cannot be
// read, the problem has no place: there may be records all the same.
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
		path := filepath.Join(string(d), e.Name())
		if !strings.HasSuffix(e.Name(), ".json") || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		r, err := d.load(path)
		if err == nil {
			records = append(records, r)
			continue
		}
		problems = append(problems, setAside("record", path, err))
	}
	return records, problems
}

// Mark makes an empty file, which says by being there that something has happened.
func Mark(file string) error {
	_, err := safefile.Write(file, nil, 0o644)
	return err
}

// Sweep removes what writes that were cut off have left in a directory. Nobody else may
// be writing there.
func Sweep(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if safefile.IsTemporary(e.Name()) {
			_, _ = safefile.Remove(filepath.Join(dir, e.Name())) // in nobody's way where it stays
		}
	}
}

// maxAside bounds how many bad ones of one file are kept: the last of them is
// overwritten then.
const maxAside = 10

// setAside renames a file that cannot be used, whatever it is, to the first free
// one of its name with .bad, .bad2 and so on behind, and says so.
func setAside(what, path string, why error) attach.Reason {
	aside := path + ".bad"
	for n := 2; n <= maxAside; n++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
		aside = fmt.Sprintf("%s.bad%d", path, n)
	}
	then := "set aside as " + aside
	if err := os.Rename(path, aside); err != nil {
		then = fmt.Sprintf("it cannot be set aside either: %v", err)
	}
	return attach.Because(attach.RecordBad, "cannot read %s %s: %v; %s", what, path, why, then).At(path)
}

func (d Dir) load(path string) (attach.Record, error) {
	f, err := safefile.Read(path, maxRecord)
	if err != nil {
		return attach.Record{}, err
	}
	if err := f.OnlyBy(uint32(os.Geteuid())); err != nil {
		return attach.Record{}, err
	}
	return d.parse(path, f.Data)
}

// parse reads a record, which must be that of the unit after which its file is
// named.
func (d Dir) parse(path string, data []byte) (attach.Record, error) {
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return attach.Record{}, err
	}
	r := k.Record
	r.DropIns = attach.SumsOf(k.DropIns)
	if d.path(r.Unit) != path {
		return attach.Record{}, fmt.Errorf("it is about %q", r.Unit)
	}
	return r, nil
}

// kept is a record as it is on disk.
type kept struct {
	attach.Record
	DropIns map[string]string `json:"dropIns,omitempty"` // the record's
}

func format(r attach.Record) ([]byte, error) {
	b, err := json.MarshalIndent(kept{Record: r, DropIns: r.DropIns.Map()}, "", "  ")
	return append(b, '\n'), err
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

// Save writes a record; a crash leaves the old or the new one. Where the verdict says what
// the one on disk says, that one stays: every look gives another one, and not all of them
// are worth a write.
func (d Dir) Save(r attach.Record) error {
	path := d.path(r.Unit)
	if r.Verdict != nil {
		if old, err := d.load(path); err == nil && r.Verdict.Repeats(old.Verdict) {
			r.Verdict = old.Verdict
		}
	}
	b, err := format(r)
	if err != nil {
		return fmt.Errorf("cannot keep the record of %s: %w", r.Unit, err)
	}
	_, err = safefile.Write(path, b, 0o600)
	return err
}

// Delete removes a record; one that is not there is no error.
func (d Dir) Delete(unit string) error {
	_, err := safefile.Remove(d.path(unit))
	return err
}
