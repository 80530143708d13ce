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

// Histories is the directory of what was seen of socket options,
// /var/lib/aaunit/sockopts-seen on a host: one JSON file for each unit, named as its
// record is. They outlast an attachment, as evidence does.
type Histories string

const (
	// maxHistory bounds one file: MaxSocketBuilds executables with MaxKeptUses kinds
	// of call each, and the counts of the kernel's table.
	maxHistory = 8 << 20
	// maxHistories bounds how many units are remembered: instances come and go.
	maxHistories = 1000
)

func (d Histories) path(unit string) string { return Dir(d).path(unit) }

// Load reads what is kept of a unit; the zero value where there is nothing. What
// cannot be read, or that others than the daemon's user could have written, is set
// aside.
func (d Histories) Load(unit string) (attach.SocketHistory, error) {
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
// longest ago.
func (d Histories) Save(h attach.SocketHistory) error {
	what := "cannot keep what was seen of the socket options of " + h.Unit
	b, err := json.Marshal(h)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := safefile.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	path := d.path(h.Unit)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		d.makeRoom()
	}
	if _, err := safefile.Write(path, append(b, '\n'), 0o600); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// makeRoom leaves room for one more file, and removes what writes that were cut off
// have left.
func (d Histories) makeRoom() {
	entries, err := os.ReadDir(string(d))
	if err != nil {
		return // the write says so
	}
	type kept struct {
		path string
		at   time.Time
	}
	var all []kept
	for _, e := range entries {
		path := filepath.Join(string(d), e.Name())
		info, err := e.Info()
		switch {
		case err != nil:
		case safefile.IsTemporary(e.Name()):
			_, _ = safefile.Remove(path) // in nobody's way where it stays
		case strings.HasSuffix(e.Name(), ".json"):
			all = append(all, kept{path, info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b kept) int { return cmp.Or(a.at.Compare(b.at), strings.Compare(a.path, b.path)) })
	for _, k := range all[:max(0, len(all)-maxHistories+1)] {
		_, _ = safefile.Remove(k.path) // too many of them are no harm
	}
}
