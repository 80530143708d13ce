package units

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
	"golang.org/x/sys/unix"
)

// Image is the units of a system that does not run, as the files below a directory
// say them. What only systemd makes is not there: units of generators, and
// dependencies that are not written down. Links are followed as in the running
// system, and never lead out of the tree.
type Image struct {
	root  string
	files *Systemd // for drop-ins; it is never connected
	// knowsDisconnected is findDisconnected, asked once.
	knowsDisconnected func() bool
}

// NewImage gives the units below root, which must not lead through a symbolic link.
func NewImage(root string) *Image {
	i := &Image{root: root, files: New(Options{Root: root})}
	i.knowsDisconnected = sync.OnceValue(i.findDisconnected)
	return i
}

// imageDirs are the directories of unit files that outlast a boot, the first wins
// (systemd.unit(5)). What is in /run goes with the boot.
var imageDirs = []string{
	"/etc/systemd/system.control", "/etc/systemd/system", "/etc/systemd/system.attached",
	"/usr/local/lib/systemd/system", "/usr/lib/systemd/system",
}

// maxUnitFiles bounds the entries of one directory that are looked at.
const maxUnitFiles = 20_000

// maxAliases bounds how many links of one name to another are followed.
const maxAliases = 8

// Observe reads a unit and the settings that its files give it. One that has no
// file is no error: LoadState says so.
func (i *Image) Observe(_ context.Context, unit string) (attach.Unit, error) {
	if err := fullName(unit); err != nil {
		return attach.Unit{}, fmt.Errorf("cannot read unit %s: %w", shown(unit), err)
	}
	u := attach.Unit{ID: unit, Names: []string{unit}, LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
	if attach.IsTemplate(unit) {
		f, err := i.find(unit, 0)
		if err != nil {
			return u, err
		}
		if f.path != "" {
			u.LoadState, u.FragmentPath = "stub", f.path
		}
		return u, nil
	}
	f, err := i.find(unit, 0)
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

// found is the file of a unit.
type found struct {
	name   string // by which systemd knows the unit
	path   string // "" none
	masked bool
}

// find looks for the file of a unit as systemd does (unit-file.c,
// unit_file_build_name_map): in the first directory that has the name; a link to
// another name in these directories makes an alias, one that leads elsewhere a unit
// that lies there.
func (i *Image) find(unit string, depth int) (found, error) {
	names := []string{unit}
	if t := attach.TemplateOf(unit); t != "" {
		names = append(names, t)
	}
	for _, name := range names {
		for _, dir := range imageDirs {
			f, err := i.entry(unit, path.Join(dir, name), depth)
			if err != nil || f.path != "" {
				return f, err
			}
		}
	}
	return found{name: unit}, nil
}

// entry looks at one place.
func (i *Image) entry(unit, file string, depth int) (found, error) {
	none := found{name: unit}
	target, err := i.readlink(file)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return none, nil
	case err != nil:
		return none, fmt.Errorf("cannot read unit file %s: %w", file, err)
	case target == os.DevNull: // which an image need not have
		return found{name: unit, path: file, masked: true}, nil
	}
	real := file
	if target != "" {
		real, err = safefile.Within(i.root, file)
		if errors.Is(err, fs.ErrNotExist) {
			return none, nil // systemd passes over it
		}
		if err != nil {
			return none, err
		}
		if base := path.Base(real); slices.Contains(imageDirs, path.Dir(real)) && base != path.Base(file) && base != attach.TemplateOf(unit) {
			if depth == maxAliases {
				return none, fmt.Errorf("cannot read unit file %s: more than %d links lead from name to name", file, maxAliases)
			}
			if attach.IsTemplate(base) && attach.TemplateOf(unit) != "" {
				base = strings.Replace(base, "@", "@"+instanceOf(unit), 1)
			}
			if fullName(base) != nil {
				return none, fmt.Errorf("cannot read unit file %s: it leads to %q, which is no unit", file, base)
			}
			return i.find(base, depth+1)
		}
	}
	f, err := safefile.OpenWithin(i.root, real, os.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		return none, fmt.Errorf("cannot read unit file %s: %w", file, err)
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return none, fmt.Errorf("cannot read unit file %s: %w", file, err)
	case !st.Mode().IsRegular():
		return none, fmt.Errorf("cannot read unit file %s: it is %s", file, kindOf(st.Mode()))
	}
	return found{name: unit, path: file, masked: st.Size() == 0}, nil
}

func instanceOf(unit string) string {
	_, instance, _ := strings.Cut(strings.TrimSuffix(unit, path.Ext(unit)), "@")
	return instance
}

// readlink gives what a link says, and "" for what is none.
func (i *Image) readlink(file string) (string, error) {
	dir, err := safefile.OpenWithin(i.root, path.Dir(file), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(dir.Fd()), path.Base(file), buf)
	if errors.Is(err, unix.EINVAL) {
		return "", nil
	}
	return string(buf[:max(n, 0)]), err
}

// list gives the names in a directory; none where there is none.
func (i *Image) list(dir string) ([]string, error) {
	f, err := safefile.OpenWithin(i.root, dir, os.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list %s: %w", dir, err)
	}
	defer f.Close()
	names, err := f.Readdirnames(maxUnitFiles + 1)
	switch {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("cannot list %s: %w", dir, err)
	case len(names) > maxUnitFiles:
		return nil, fmt.Errorf("cannot list %s: it holds more than %d files", dir, maxUnitFiles)
	}
	slices.Sort(names)
	return names, nil
}

// names are a unit's name and its aliases.
func (i *Image) names(f found) ([]string, error) {
	out := []string{f.name}
	for _, dir := range imageDirs {
		all, err := i.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range all {
			if name == f.name || path.Ext(name) != path.Ext(f.name) || fullName(name) != nil || attach.IsTemplate(name) || slices.Contains(out, name) {
				continue
			}
			if target, err := i.readlink(path.Join(dir, name)); err != nil || target == "" {
				continue
			}
			if other, err := i.find(name, 0); err == nil && other.name == f.name {
				out = append(out, name)
			}
		}
	}
	return out, nil
}

// Pattern is Systemd's, in the image.
func (i *Image) Pattern(name string) (u attach.Unit, err error) {
	u = attach.Unit{ID: name, Names: []string{name}, Settings: attach.Settings{KnowsDisconnected: i.knowsDisconnected()}}
	if u.DropIns, err = i.dropIns(u); err != nil {
		return u, err
	}
	return u, i.lines(u, watchedKeys, func(l attach.Assignment) error {
		u.Settings.Assignments = append(u.Settings.Assignments, l)
		return nil
	})
}

// dropIns are the drop-ins of a unit, in the order in which systemd applies them.
func (i *Image) dropIns(u attach.Unit) ([]string, error) { return dropInsOf(u, imageDirs, i.list) }

// dropInsOf finds the drop-ins of a unit in these directories of units. list gives the
// names in a directory.
func dropInsOf(u attach.Unit, dirs []string, list func(dir string) ([]string, error)) ([]string, error) {
	first := map[string]string{} // by file name, the one that is read
	for _, dir := range dirs {
		for _, unit := range u.Names {
			for _, name := range append(dropInNames(unit), strings.TrimPrefix(path.Ext(unit), ".")) {
				place := path.Join(dir, name+".d")
				files, err := list(place)
				if err != nil {
					return nil, err
				}
				for _, file := range files {
					if !strings.HasSuffix(file, ".conf") {
						continue
					}
					full := path.Join(place, file)
					if old, ok := first[file]; !ok || old != full && attach.Outranks(full, old, u.ID) {
						first[file] = full
					}
				}
			}
		}
	}
	var out []string
	for _, full := range first {
		out = append(out, full)
	}
	slices.SortFunc(out, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	return out, nil
}

// Expand lists the services of the image that match a glob, by their own names and
// without templates and masked ones.
func (i *Image) Expand(_ context.Context, glob string) ([]string, error) {
	var out []string
	for _, dir := range imageDirs {
		names, err := i.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if ok, err := attach.MatchUnit(glob, name); err != nil || !ok || !strings.HasSuffix(name, ".service") || fullName(name) != nil || attach.IsTemplate(name) {
				continue
			}
			if f, err := i.find(name, 0); err == nil && f.path != "" && !f.masked {
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
	for _, dir := range imageDirs {
		all, err := i.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range all {
			if !strings.HasSuffix(name, ".socket") || fullName(name) != nil || attach.IsTemplate(name) {
				continue
			}
			f, err := i.find(name, 0)
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
	switch f, err := i.find(unit, 0); {
	case err != nil:
		return attach.CouldNotTell
	case f.masked, f.path == "":
		return attach.No
	}
	for _, dir := range imageDirs {
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
