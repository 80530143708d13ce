package evidence

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
	"github.com/aaunit/aaunit/internal/safefile"
)

const (
	anchorName = "anchor.json"
	suffix     = ".json"
	// removedName is where the directory of a unit goes to be removed; none of them is
	// named so.
	removedName = ".removed"
	digits      = 12 // of a number, so that names sort as numbers do
)

// Bounds on the directories of units. Who can have instances of a template
// started, by connecting to a socket for example, pushes out evidence of that
// template's units only. Who can have units of a prefix or glob started, which no name
// tells from others, pushes out evidence of units that are not living.
const (
	maxInstances = 100
	maxUnitDirs  = 5000
)

// dirOf is the directory of a unit's records: named after the unit where that fits
// into a file name, else after its digest.
func (k *Keeper) dirOf(unit string) string {
	name := unit
	// systemd's names fit (systemd.unit(5)), and so instances are known by them; an escape
	// sequence in a name is for who lists the directory to bear.
	if len(name) > 255 || name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		sum := sha256.Sum256([]byte(unit))
		name = "sha256-" + hex.EncodeToString(sum[:])
	}
	return filepath.Join(k.opt.Dir, name)
}

func fileName(number int, sum string) string {
	return fmt.Sprintf("%0*d-%s%s", digits, number, sum, suffix)
}

// parseName reads the name of a record's file.
func parseName(name string) (number int, sum string, ok bool) {
	base, isJSON := strings.CutSuffix(name, suffix)
	n, sum, cut := strings.Cut(base, "-")
	number, err := strconv.Atoi(n)
	if !isJSON || !cut || err != nil || number < 1 || !isSum(sum) || name != fileName(number, sum) {
		return 0, "", false
	}
	return number, sum, true
}

// readAll reads what is kept of a unit. Nothing that lies there is fatal.
func (k *Keeper) readAll(unit string) chain {
	c := k.list(unit)
	for i := range c.records {
		k.readRecord(unit, &c.records[i])
	}
	return c
}

// list reads the names alone, and the anchor. What writes that were cut off have
// left is passed over.
func (k *Keeper) list(unit string) (c chain) {
	dir := k.dirOf(unit)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return c
	}
	if err != nil {
		c.unread = err.Error()
		return c
	}
	for _, e := range entries {
		name, file := e.Name(), filepath.Join(dir, e.Name())
		number, sum, ok := parseName(name)
		switch {
		case safefile.IsTemporary(name):
		case name == anchorName:
			if err := c.anchor.read(file, unit); err != nil {
				c.strange = append(c.strange, fmt.Sprintf("%s: %v", file, err))
			}
		case !ok:
			c.strange = append(c.strange, file)
		default:
			c.records = append(c.records, stored{number: number, sum: sum, file: file})
		}
	}
	return c // os.ReadDir sorts by name
}

// read reads a file of this directory, which must be the daemon's own.
func read(file string, limit int64) ([]byte, error) {
	f, err := safefile.Read(file, limit)
	if err == nil {
		err = f.OnlyBy(uint32(os.Geteuid()))
	}
	return f.Data, err
}

func (a *anchor) read(file, unit string) error {
	data, err := read(file, 64<<10)
	if err != nil {
		return err
	}
	var got anchor
	if err := json.Unmarshal(data, &got); err != nil {
		return err
	}
	if got.Unit != unit || got.Number < 1 || !isSum(got.SHA256) {
		return errors.New("it is no anchor of this unit's records")
	}
	*a = got
	return nil
}

func (k *Keeper) readRecord(unit string, s *stored) {
	data, err := read(s.file, maxRecord)
	if err != nil {
		s.problem = err.Error()
		// It is there and it is not what was written: a link, another's, too large.
		s.altered = !errors.Is(err, fs.ErrNotExist) && !errors.As(err, new(*fs.PathError))
		return
	}
	if got := sumOf(data); got != s.sum {
		s.problem, s.altered = "its checksum is "+got, true
		return
	}
	e, err := Decode(data)
	switch {
	case err != nil:
		s.problem = err.Error()
	case e.Unit != unit || e.Number != s.number:
		s.problem, s.altered = fmt.Sprintf("it says that it is record %d of %q", e.Number, e.Unit), true
	default:
		s.record = e
	}
}

// write keeps a record, whose Number and Previous are set, and prunes. The order
// is one that a crash can cut off anywhere: record, anchor, removal from the
// oldest on.
func (k *Keeper) write(e attach.Evidence, c chain) (sum, file string, err error) {
	data, err := Encode(e)
	if err != nil {
		return "", "", err
	}
	dir := k.dirOf(e.Unit)
	if len(c.records) == 0 && c.anchor.Number == 0 {
		if err := k.makeRoom(e.Unit, dir); err != nil {
			return "", "", err
		}
	}
	if err := safefile.MkdirAll(dir, 0o700); err != nil {
		return "", "", fmt.Errorf("cannot keep evidence: %w", err)
	}
	sum = sumOf(data)
	file = filepath.Join(dir, fileName(e.Number, sum))
	if _, err := safefile.Write(file, data, 0o600); err != nil {
		return "", "", err
	}
	if err := k.prune(e.Unit, dir, append(c.records, stored{number: e.Number, sum: sum, file: file})); err != nil {
		k.opt.Log.Warn("cannot prune the evidence of "+e.Unit, "err", err)
	}
	return sum, file, nil
}

func (k *Keeper) prune(unit, dir string, records []stored) error {
	if len(records) <= k.opt.Keep {
		return nil
	}
	gone := records[:len(records)-k.opt.Keep]
	last := gone[len(gone)-1]
	data, err := json.Marshal(anchor{unit, last.number, last.sum})
	if err != nil {
		return err
	}
	if _, err := safefile.Write(filepath.Join(dir, anchorName), append(data, '\n'), 0o600); err != nil {
		return err
	}
	for _, s := range gone {
		if _, err := safefile.Remove(s.file); err != nil {
			return err
		}
	}
	return nil
}

// makeRoom keeps the number of directories within bounds before a new one is made. The
// one goes that was written to least recently: of too many instances of a template one
// of them, if possible of a unit that is not living; of too many units one of those only.
func (k *Keeper) makeRoom(unit, dir string) error {
	entries, err := os.ReadDir(k.opt.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot keep evidence: %w", err)
	}
	var all, instances []fs.DirEntry
	template := attach.TemplateOf(unit)
	for _, e := range entries {
		if !e.IsDir() || e.Name() == filepath.Base(dir) || e.Name() == removedName {
			continue
		}
		all = append(all, e)
		if template != "" && attach.TemplateOf(e.Name()) == template {
			instances = append(instances, e)
		}
	}
	if len(instances) >= maxInstances {
		ended, living := k.oldest(instances)
		return k.evict(cmp.Or(ended, living), fmt.Sprintf("that of the last %d units of %s is kept", maxInstances, template))
	}
	if len(all) >= maxUnitDirs {
		ended, _ := k.oldest(all)
		if ended == "" {
			return fmt.Errorf("cannot keep evidence of %s: there is that of %d attached units, and no more is kept; detach some of them", unit, len(all))
		}
		return k.evict(ended, fmt.Sprintf("that of %d units is kept, and of those that are not attached, or have ended, it was the oldest", maxUnitDirs))
	}
	return nil
}

// oldest finds the directories that were written to least recently: of a unit that has
// ended and of one that is living; "" where there is none.
func (k *Keeper) oldest(dirs []fs.DirEntry) (ended, living string) {
	lives := map[string]bool{}
	if k.Living != nil {
		for _, unit := range k.Living() {
			lives[filepath.Base(k.dirOf(unit))] = true
		}
	}
	var endedAt, livingAt time.Time
	for _, e := range dirs {
		info, err := e.Info()
		if err != nil {
			continue // it is gone
		}
		name, at := &ended, &endedAt
		if lives[e.Name()] {
			name, at = &living, &livingAt
		}
		if *name == "" || info.ModTime().Before(*at) {
			*name, *at = e.Name(), info.ModTime()
		}
	}
	return ended, living
}

// evict removes all that a directory has of a unit, and what is remembered of it: its
// chain begins anew, and nobody is to miss a record of the old one. The directory goes as
// a whole, since half of one is a chain with records missing for whoever reads it after a
// crash.
func (k *Keeper) evict(name, why string) error {
	removed := filepath.Join(k.opt.Dir, removedName)
	err := os.RemoveAll(removed) // what a crash has left
	if err == nil {
		err = os.Rename(filepath.Join(k.opt.Dir, name), removed)
	}
	if err != nil {
		return fmt.Errorf("cannot make room for evidence: %w", err)
	}
	k.mu.Lock()
	for unit, s := range k.heads {
		if filepath.Base(k.dirOf(unit)) == name {
			s.last = head{}
		}
	}
	k.mu.Unlock()
	k.opt.Log.Info("removed the evidence of "+name+": "+why, journal.FieldUnit, name, "directory", filepath.Join(k.opt.Dir, name))
	if err := os.RemoveAll(removed); err != nil {
		k.opt.Log.Warn("cannot remove evidence that had to make room; it is tried again with the next", "directory", removed, "err", err)
	}
	return nil
}
