package units

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
	"golang.org/x/sys/unix"
)

// maxUnitFiles bounds the entries of one directory that are looked at.
const maxUnitFiles = 20_000

// maxAliases bounds how many links of one name to another are followed.
const maxAliases = 8

// searchPath is directories of unit files below a root, the first wins (systemd.unit(5),
// "System Unit Search Path"). Links never lead out of the root.
type searchPath struct {
	root string
	dirs []string
}

// found is the file of a unit.
type found struct {
	name   string // by which systemd knows the unit
	path   string // "" none
	masked bool
}

// find looks for the file of a unit as systemd does (unit-file.c,
// unit_file_find_fragment): by its name, else by its template's. An instance of an alias
// is one of the template that it stands for. Where that one has a file of its own, which
// of the two systemd reads hangs on the name that it is asked for first (seen on 252).
func (p searchPath) find(unit string) (found, error) {
	template := attach.TemplateOf(unit)
	f, err := p.resolve(unit, 0)
	if err == nil && f.path == "" && template != "" {
		f, err = p.resolve(template, 0)
	}
	if err != nil || f.path == "" {
		return found{name: unit}, err
	}
	if template != "" && attach.IsTemplate(f.name) {
		f.name = instantiate(f.name, unit)
		own, err := p.resolve(f.name, 0)
		switch {
		case err != nil:
			return found{name: unit}, err
		case own.path != "" && own.path != f.path:
			return found{name: unit}, fmt.Errorf("cannot tell which file systemd reads for %s, %s or %s", unit, f.path, own.path)
		}
	}
	return f, nil
}

// resolve looks for a name in the first directory that has it. A link to another name in
// these directories makes an alias, also of a file that lies in another one of them; one
// that leads elsewhere makes a unit that lies there (unit-file.c,
// unit_file_build_name_map).
func (p searchPath) resolve(name string, depth int) (found, error) {
	for _, dir := range p.dirs {
		f, alias, err := p.entry(dir, name)
		switch {
		case err != nil || f.path != "":
			return f, err
		case alias == "":
			continue
		case depth == maxAliases:
			return f, fmt.Errorf("cannot read unit file %s: more than %d links lead from name to name", path.Join(dir, name), maxAliases)
		}
		return p.resolve(alias, depth+1)
	}
	if t := attach.TemplateOf(name); t != "" && depth > 0 {
		return p.resolve(t, depth)
	}
	return found{name: name}, nil
}

// entry looks at one place: what is there is a file, or the name that it is an alias of,
// or neither.
func (p searchPath) entry(dir, name string) (f found, alias string, err error) {
	none, file := found{name: name}, path.Join(dir, name)
	target, err := p.readlink(file)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return none, "", nil
	case err != nil:
		return none, "", fmt.Errorf("cannot read unit file %s: %w", file, err)
	case target != "":
		to, err := p.leads(dir, target)
		switch base := path.Base(to); {
		case err != nil:
			return none, "", fmt.Errorf("cannot read unit file %s: %w", file, err)
		case to == os.DevNull: // which an image need not have
			return found{name: name, path: file, masked: true}, "", nil
		case !slices.ContainsFunc(p.dirs, func(dir string) bool { return strings.HasPrefix(to, dir+"/") }):
		case base == name || !mayAlias(name, base):
			return none, "", nil // systemd passes over it
		default:
			return none, base, nil
		}
	}
	at, err := safefile.OpenWithin(p.root, file, os.O_RDONLY|unix.O_NONBLOCK)
	if target != "" && errors.Is(err, fs.ErrNotExist) {
		return none, "", nil
	}
	if err != nil {
		return none, "", fmt.Errorf("cannot read unit file %s: %w", file, err)
	}
	defer at.Close()
	st, err := at.Stat()
	switch {
	case err != nil:
		return none, "", fmt.Errorf("cannot read unit file %s: %w", file, err)
	case !st.Mode().IsRegular():
		return none, "", fmt.Errorf("cannot read unit file %s: it is %s", file, kindOf(st.Mode()))
	}
	return found{name: name, path: file, masked: st.Size() == 0}, "", nil
}

// mayAlias reports whether systemd takes a link of one name to another for an alias
// (unit-file.c, unit_validate_alias_symlink_or_warn): both are of one type, and both are
// templates or neither is, but for an instance that is linked to a template.
func mayAlias(link, target string) bool {
	switch {
	case fullName(target) != nil || path.Ext(link) != path.Ext(target):
		return false
	case attach.TemplateOf(link) != "":
		return attach.IsTemplate(target) || instanceOf(target) == instanceOf(link)
	}
	return attach.IsTemplate(link) == attach.IsTemplate(target) && attach.TemplateOf(target) == ""
}

func instanceOf(unit string) string {
	_, instance, _ := strings.Cut(strings.TrimSuffix(unit, path.Ext(unit)), "@")
	return instance
}

// instantiate gives the unit of a template with the instance of another unit.
func instantiate(template, unit string) string {
	return strings.Replace(template, "@", "@"+instanceOf(unit), 1)
}

// readlink gives what a link says, and "" for what is none.
func (p searchPath) readlink(file string) (string, error) {
	dir, err := safefile.OpenWithin(p.root, path.Dir(file), unix.O_PATH|unix.O_DIRECTORY)
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

// leads says where a link in a directory leads, which need not be there. What is there
// may be a link in turn.
func (p searchPath) leads(dir, target string) (string, error) {
	if !path.IsAbs(target) {
		target = dir + "/" + target
	}
	parent, base := path.Split(target)
	real, err := safefile.Within(p.root, parent)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		real, err = parent, nil
	}
	return path.Join(real, base), err
}

// list gives the names in a directory; none where there is none.
func (p searchPath) list(dir string) ([]string, error) {
	f, err := safefile.OpenWithin(p.root, dir, os.O_RDONLY|unix.O_DIRECTORY)
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

// names are a unit's name and its aliases. An instance has one of each alias of its
// template.
func (p searchPath) names(f found) ([]string, error) {
	out := []string{f.name}
	for _, dir := range p.dirs {
		all, err := p.list(dir)
		if err != nil {
			return nil, err
		}
		for _, name := range all {
			if path.Ext(name) != path.Ext(f.name) || fullName(name) != nil {
				continue
			}
			alias := name
			if attach.IsTemplate(name) && attach.TemplateOf(f.name) != "" {
				alias = instantiate(name, f.name)
			}
			if attach.IsTemplate(alias) != attach.IsTemplate(f.name) || slices.Contains(out, alias) {
				continue
			}
			if target, err := p.readlink(path.Join(dir, name)); err != nil || target == "" {
				continue
			}
			if other, err := p.find(alias); err == nil && other.name == f.name {
				out = append(out, alias)
			}
		}
	}
	return out, nil
}

// pattern gives the drop-ins that systemd applies to every unit of a template or prefix:
// those of a template's aliases, too.
func (p searchPath) pattern(name string) (u attach.Unit, err error) {
	u = attach.Unit{ID: name, Names: []string{name}}
	if err = fullName(name); err != nil {
		return u, err
	}
	if attach.IsTemplate(name) {
		f, err := p.find(name)
		if err != nil {
			return u, err
		}
		if u.Names, err = p.names(f); err != nil {
			return u, err
		}
	}
	u.DropIns, err = p.dropIns(u)
	return u, err
}

// dropIns are the drop-ins of a unit, in the order in which systemd applies them. The
// first of its names is its own.
//
// Of two with the same file name, systemd reads the one of the unit's own name, then
// one of an alias', then the one that is for all units of the type. Which alias comes
// first hangs on a hash (seen on 252), so that two of them are an error.
func (p searchPath) dropIns(u attach.Unit) ([]string, error) {
	type dropIn struct{ path, unit string }
	first := map[string]dropIn{} // by file name, the one that is read
	for _, unit := range u.Names {
		for _, name := range dropInNames(unit) {
			files, err := p.dropInsAt(name)
			if err != nil {
				return nil, err
			}
			for _, file := range files {
				old, ok := first[path.Base(file)]
				switch {
				case !ok || old.unit == unit && attach.Outranks(file, old.path, unit):
					first[path.Base(file)] = dropIn{file, unit}
				case old.unit != unit && old.unit != u.Names[0] && old.path != file:
					return nil, fmt.Errorf("cannot tell which drop-in systemd reads, %s or %s: both are of aliases of %s", old.path, file, u.Names[0])
				}
			}
		}
	}
	files, err := p.dropInsAt(strings.TrimPrefix(path.Ext(u.ID), "."))
	if err != nil {
		return nil, err
	}
	for _, file := range files {
		if _, ok := first[path.Base(file)]; !ok {
			first[path.Base(file)] = dropIn{path: file}
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(first)) {
		out = append(out, first[name].path)
	}
	return out, nil
}

// dropInsAt lists the drop-ins for a name, those of the first directory first.
func (p searchPath) dropInsAt(name string) (out []string, err error) {
	for _, dir := range p.dirs {
		place := path.Join(dir, name+".d")
		files, err := p.list(place)
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			if strings.HasSuffix(file, ".conf") {
				out = append(out, path.Join(place, file))
			}
		}
	}
	return out, nil
}
