package units

import (
	"context"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Image is the units of a system that does not run, as the files below a directory
// say them. What only systemd makes is not there: units of generators, and
// dependencies that are not written down. Links are followed as in the running
// system, and never lead out of the tree.
type Image struct {
	searchPath
	files *Systemd // for drop-ins; it is never connected
	// knowsDisconnected is findDisconnected, asked once.
	knowsDisconnected func() bool
}

// NewImage gives the units below root, which must not lead through a symbolic link.
func NewImage(root string) *Image {
	i := &Image{searchPath: searchPath{root, imageDirs}, files: New(Options{Root: root})}
	i.knowsDisconnected = sync.OnceValue(i.findDisconnected)
	return i
}

// imageDirs are the directories of unit files that outlast a boot, the first wins
// (systemd.unit(5)). What is in /run goes with the boot.
var imageDirs = []string{
	"/etc/systemd/system.control", "/etc/systemd/system", "/etc/systemd/system.attached",
	"/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
}

// Observe reads a unit and the settings that its files give it. One that has no
// file is no error: LoadState says so.
func (i *Image) Observe(_ context.Context, unit string) (attach.Unit, error) {
	if err := fullName(unit); err != nil {
		return attach.Unit{}, fmt.Errorf("cannot read unit %s: %w", shown(unit), err)
	}
	u := attach.Unit{ID: unit, Names: []string{unit}, LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
	if attach.IsTemplate(unit) {
		f, err := i.find(unit)
		if err != nil {
			return u, err
		}
		if f.path != "" {
			u.LoadState, u.FragmentPath = "stub", f.path
		}
		return u, nil
	}
	f, err := i.find(unit)
	if err != nil {
		return u, err
	}
	switch {
	case f.masked:
		u.LoadState, u.UnitFileState, u.FragmentPath = "masked", "masked", f.path
		return u, nil
	case f.path == "":
		return u, nil
	}
	u.ID, u.LoadState, u.FragmentPath = f.name, "loaded", f.path
	if u.Names, err = i.names(f); err != nil {
		return u, err
	}
	if u.DropIns, err = i.dropIns(u); err != nil {
		return u, err
	}
	return u, i.settings(&u)
}

// Pattern is Systemd's, in the image.
func (i *Image) Pattern(name string) (u attach.Unit, err error) {
	if u, err = i.pattern(name); err != nil {
		return u, err
	}
	u.Settings.KnowsDisconnected = i.knowsDisconnected()
	return u, i.lines(u, watchedKeys, func(l attach.Assignment) error {
		u.Settings.Assignments = append(u.Settings.Assignments, l)
		return nil
	})
}

// Expand lists the services of the image that match a glob, by their own names and
// without templates and masked ones.
func (i *Image) Expand(_ context.Context, glob string) ([]string, error) {
	var out []string
	for _, dir := range i.dirs {
		names, err := i.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if ok, err := attach.MatchUnit(glob, name); err != nil || !ok || !strings.HasSuffix(name, ".service") || fullName(name) != nil || attach.IsTemplate(name) {
				continue
			}
			if f, err := i.find(name); err == nil && f.path != "" && !f.masked {
				out = append(out, f.name)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// socketKeys are the settings that are read of a .socket unit.
var socketKeys = map[string][]string{"Socket": append([]string{"Service", "RootDirectory", "RootImage"}, mountKeys...)}

// StartingSockets finds the .socket units that start a service: those that its own
// Sockets= names, those whose Service= names it, and the one of its name where that
// says nothing else (systemd.socket(5)). Masked ones start nothing.
func (i *Image) StartingSockets(_ context.Context, u attach.Unit) (out []attach.StartingSocket, err error) {
	named := map[string]bool{}
	for _, name := range u.Sockets {
		named[name] = true
	}
	for _, dir := range i.dirs {
		all, err := i.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range all {
			if !strings.HasSuffix(name, ".socket") || fullName(name) != nil || attach.IsTemplate(name) {
				continue
			}
			f, err := i.find(name)
			if err != nil {
				return nil, err
			}
			if f.path == "" || f.masked || slices.ContainsFunc(out, func(s attach.StartingSocket) bool { return s.ID == f.name }) {
				continue
			}
			socket, service, err := i.socket(f)
			if err != nil {
				return nil, err
			}
			if named[name] || named[f.name] || slices.Contains(u.Names, service) {
				out = append(out, socket)
			}
		}
	}
	slices.SortFunc(out, func(a, b attach.StartingSocket) int { return strings.Compare(a.ID, b.ID) })
	return out, nil
}

// socket reads a .socket unit, and names the service that it starts.
func (i *Image) socket(f found) (s attach.StartingSocket, service string, err error) {
	s.ID = f.name
	u := attach.Unit{ID: f.name, FragmentPath: f.path}
	if u.Names, err = i.names(f); err != nil {
		return s, "", err
	}
	if u.DropIns, err = i.dropIns(u); err != nil {
		return s, "", err
	}
	err = i.lines(u, socketKeys, func(l attach.Assignment) (err error) {
		switch l.Key {
		case "Service":
			service = l.Value
		case "RootDirectory", "RootImage":
			s.RootDirectory = l.Value
		default:
			s.Mounts, err = mounts(s.Mounts, l.Key, l.Value, u.ID)
		}
		return err
	})
	if full, e := attach.ExpandSpecifiers(service, u.ID); e == nil {
		service = full
	}
	if service == "" {
		service = strings.TrimSuffix(f.name, ".socket") + ".service"
	}
	return s, service, err
}

// StartedAtBoot reports whether the image starts a unit with the boot, as far as
// the links of its targets say. They outlast a unit that is masked or not there.
func (i *Image) StartedAtBoot(unit string) attach.Tri {
	switch f, err := i.find(unit); {
	case err != nil:
		return attach.CouldNotTell
	case f.masked, f.path == "":
		return attach.No
	}
	for _, dir := range i.dirs {
		names, err := i.list(dir)
		if err != nil {
			return attach.CouldNotTell
		}
		for _, name := range names {
			if !strings.HasSuffix(name, ".wants") && !strings.HasSuffix(name, ".requires") {
				continue
			}
			if _, err := i.readlink(path.Join(dir, name, unit)); err == nil {
				return attach.Yes
			}
		}
	}
	return attach.No
}

// ReadDropIn is Systemd's, in the image.
func (i *Image) ReadDropIn(file string) (text string, exists bool, err error) {
	return i.files.ReadDropIn(file)
}

// WriteDropIn is Systemd's, in the image, and makes the directory of units where it
// is missing.
func (i *Image) WriteDropIn(file, text string) (changed bool, err error) {
	if _, err := i.files.place(file); err != nil {
		return false, err
	}
	if err := safefile.MkdirAll(filepath.Join(i.root, path.Dir(path.Dir(file))), 0o755); err != nil {
		return false, fmt.Errorf("cannot write drop-in %s: %w", file, err)
	}
	return i.files.WriteDropIn(file, text)
}

// RemoveDropIn is Systemd's, in the image.
func (i *Image) RemoveDropIn(file string) (changed bool, err error) {
	return i.files.RemoveDropIn(file)
}
