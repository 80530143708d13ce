package state

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Histories keeps what was seen of socket options: one JSON file for each unit, named as
// its record is. They outlast an attachment, as evidence does.
type Histories struct {
	// Dir is /var/lib/aaunit/sockopts-seen on a host.
	Dir string
	// Living gives the units whose files do not make room for those of others; nil: none.
	Living func() []string
}

// maxHistory bounds one file: MaxSocketBuilds executables with MaxKeptUses kinds of call
// each, and the counts of the kernel's table.
const maxHistory = 8 << 20

// Bounds on how many units are remembered. Instances of a template push out those of them
// that have ended, and units of a prefix or glob, which no name tells from others, push out
// what is not living: with a file goes what the list of its unit was made for.
const (
	maxInstances = 100
	maxHistories = 5000
)

func (d *Histories) path(unit string) string { return Dir(d.Dir).path(unit) }

// Load reads what is kept of a unit; the zero value where there is nothing. What
// cannot be read, or that others than the daemon's user could have written, is set
// aside.
func (d *Histories) Load(unit string) (attach.SocketHistory, error) {
	none := attach.SocketHistory{Unit: unit}
	path := d.path(unit)
	f, err := safefile.Read(path, maxHistory)
	if errors.Is(err, fs.ErrNotExist) {
		return none, nil
	}
	if err == nil {
		err = f.OnlyBy(uint32(os.Geteuid()))
	}
	if err == nil {
		var h attach.SocketHistory
		if h, err = parseHistory(unit, f.Data); err == nil {
			return h, nil
		}
	}
	return none, errors.New(setAside("what was seen of socket options in", path, err).Detail)
}

// parseHistory reads a file, and holds it to the bounds of what Save is given.
func parseHistory(unit string, data []byte) (h attach.SocketHistory, err error) {
	if err = json.Unmarshal(data, &h); err != nil {
		return h, err
	}
	if h.Unit != unit {
		return h, fmt.Errorf("it is about %q", h.Unit)
	}
	if len(h.Builds) > attach.MaxSocketBuilds {
		return h, fmt.Errorf("it has %d executables, at most %d are kept", len(h.Builds), attach.MaxSocketBuilds)
	}
	for _, b := range h.Builds {
		if len(b.Uses) > attach.MaxKeptUses {
			return h, fmt.Errorf("it has %d kinds of call of one executable, at most %d are kept", len(b.Uses), attach.MaxKeptUses)
		}
	}
	return h, nil
}

// Save writes what was seen of a unit. Of too many units those go that were written
// longest ago, but none that is living.
func (d *Histories) Save(h attach.SocketHistory) error {
	what := "cannot keep what was seen of the socket options of " + h.Unit
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := safefile.MkdirAll(d.Dir, 0o700); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	path := d.path(h.Unit)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		if err := d.makeRoom(h.Unit); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	if _, err := safefile.Write(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// makeRoom leaves room for the file of a unit that has none, and removes what writes that
// were cut off have left. What goes is of units that are not living, of its template's
// instances or else of all, the ones that were written longest ago.
func (d *Histories) makeRoom(unit string) error {
	entries, err := os.ReadDir(d.Dir)
	if err != nil {
		return err
	}
	var all, instances []keptFile
	template := attach.TemplateOf(unit)
	for _, e := range entries {
		path := filepath.Join(d.Dir, e.Name())
		name, is := strings.CutSuffix(e.Name(), ".json")
		info, err := e.Info()
		switch {
		case err != nil: // it is gone
		case safefile.IsTemporary(e.Name()):
			_, _ = safefile.Remove(path) // in nobody's way where it stays
		case is:
			k := keptFile{path: path, at: info.ModTime()}
			all = append(all, k)
			if template != "" && attach.TemplateOf(name) == template {
				instances = append(instances, k)
			}
		}
	}
	if n := len(instances) - maxInstances + 1; n > 0 {
		if ended := d.ended(instances); len(ended) > 0 {
			return evict(ended[:min(n, len(ended))])
		}
	}
	if n := len(all) - maxHistories + 1; n > 0 {
		ended := d.ended(all)
		if len(ended) < n {
			return fmt.Errorf("that of %d attached units is kept, and of no more; detach some of them", len(all))
		}
		return evict(ended[:n])
	}
	return nil
}

// keptFile is a file, and when it was written.
type keptFile struct {
	path string
	at   time.Time
}

// ended gives the files of units that are not living, the oldest first.
func (d *Histories) ended(files []keptFile) (ended []keptFile) {
	lives := map[string]bool{}
	if d.Living != nil {
		for _, unit := range d.Living() {
			lives[d.path(unit)] = true
		}
	}
	slices.SortFunc(files, func(a, b keptFile) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.path, b.path)) })
	for _, k := range files {
		if !lives[k.path] {
			ended = append(ended, k)
		}
	}
	return ended
}

func evict(files []keptFile) error {
	var errs []error
	for _, k := range files {
		_, err := safefile.Remove(k.path)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
