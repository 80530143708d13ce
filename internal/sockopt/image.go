package sockopt

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
	"golang.org/x/sys/unix"
)

// Image is the rules of a system that does not run, below a directory that must not
// lead through a symbolic link. The start helper reads them at the first boot, before
// any daemon runs.
type Image string

func (i Image) host() Host { return Host{Store: Store(filepath.Join(string(i), string(DefaultStore)))} }

// Helper reports whether the image has the start helper: a start that is to run one
// that is not there fails, required or not.
func (i Image) Helper() error {
	f, err := safefile.OpenWithin(string(i), attach.SocketHelper, unix.O_PATH)
	if err != nil {
		return fmt.Errorf("cannot find the start helper %s: %w", attach.SocketHelper, err)
	}
	defer f.Close()
	switch st, err := f.Stat(); {
	case err != nil:
		return fmt.Errorf("cannot look at the start helper %s: %w", attach.SocketHelper, err)
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return fmt.Errorf("cannot use the start helper %s: it is no program", attach.SocketHelper)
	}
	return nil
}

// Kept reports whether there are rules of a name, and whether they are these.
func (i Image) Kept(name string, s attach.SocketOptions) (exists, same bool, err error) {
	want, err := rulesOf(s)
	if err != nil {
		return false, false, err
	}
	have, err := i.host().Store.Load(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return true, false, nil //nolint:nilerr // it is written anew
	}
	return true, have.Equal(want), nil
}

// Save keeps the rules of a unit, a template or a prefix.
func (i Image) Save(name string, s attach.SocketOptions) (changed bool, err error) {
	// Only aaunit's own directory is for root alone.
	if err := safefile.MkdirAll(filepath.Join(string(i), "/var/lib"), 0o755); err != nil {
		return false, err
	}
	return i.host().Save(name, s)
}

// Delete removes the rules of a name.
func (i Image) Delete(name string) (changed bool, err error) { return i.host().Delete(name) }
