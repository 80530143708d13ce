package units

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// listedUnit is a row of ListUnitsByPatterns, a(ssssssouso).
type listedUnit struct {
	Name, Description, LoadState, ActiveState, SubState, Following string
	Path                                                           dbus.ObjectPath
	JobID                                                          uint32
	JobType                                                        string
	JobPath                                                        dbus.ObjectPath
}

// listedFile is a row of ListUnitFilesByPatterns, a(ss).
type listedFile struct{ Path, State string }

func (f listedFile) name() string { return path.Base(f.Path) }

// Expand lists the services that match a glob, loaded or with a unit file,
// sorted, each once. Templates are listed as such, aliases as the unit they
// stand for. What is masked, or not there at all, is listed only while it runs.
func (s *Systemd) Expand(ctx context.Context, glob string) ([]string, error) {
	out, err := s.expand(ctx, glob)
	if err != nil {
		return nil, fmt.Errorf("cannot list the units that match %q: %w", glob, err)
	}
	return out, nil
}

func (s *Systemd) expand(ctx context.Context, glob string) ([]string, error) {
	if err := attach.CheckUnitPattern(glob); err != nil {
		return nil, err
	}
	found := map[string]bool{}
	var loaded []listedUnit
	if err := s.call(ctx, s.wait.call, managerPath, managerIface+".ListUnitsByPatterns", []any{[]string{}, []string{glob}}, &loaded); err != nil {
		return nil, err
	}
	for _, u := range loaded {
		idle := u.ActiveState == "inactive" || u.ActiveState == "failed"
		found[u.Name] = !idle || (u.LoadState != "masked" && u.LoadState != "not-found")
	}
	files, err := s.listFiles(ctx, glob)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		name := f.name()
		if _, known := found[name]; known || strings.HasPrefix(f.State, "masked") {
			continue
		}
		if strings.HasPrefix(f.State, "alias") && !attach.IsTemplate(name) && fullName(name) == nil {
			var id dbus.Variant
			if err := s.call(ctx, s.wait.call, pathOf(name), propsIface+".Get", []any{unitIface, "Id"}, &id); err != nil {
				return nil, err
			}
			if canonical, ok := id.Value().(string); ok {
				name = canonical
			}
		}
		if _, known := found[name]; !known {
			found[name] = true
		}
	}
	var out []string
	for name, ok := range found {
		if ok && strings.HasSuffix(name, ".service") && fullName(name) == nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

func (s *Systemd) listFiles(ctx context.Context, glob string) ([]listedFile, error) {
	var files []listedFile
	err := s.call(ctx, s.wait.call, managerPath, managerIface+".ListUnitFilesByPatterns", []any{[]string{}, []string{glob}}, &files)
	return files, err
}

// userDirs are where unit files for user managers lie, those of single users
// left aside: systemd.unit(5).
var userDirs = []string{"/etc/systemd/user", "/run/systemd/user", "/usr/local/lib/systemd/user", "/usr/local/share/systemd/user", "/usr/lib/systemd/user", "/usr/share/systemd/user"}

// userFile finds the unit file of that name, or of its template, for user
// managers; "" none.
func (s *Systemd) userFile(unit string) string {
	for _, name := range []string{unit, attach.TemplateOf(unit)} {
		if fullName(name) != nil {
			continue
		}
		for _, dir := range userDirs {
			if _, err := os.Lstat(filepath.Join(s.root, dir, name)); err == nil {
				return filepath.Join(dir, name)
			}
		}
	}
	return ""
}
