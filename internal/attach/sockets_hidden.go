package attach

import (
	"fmt"
	"path"
	"strings"
)

// needed is what of the host the start helper of the socket options has to see. The +
// of its line lifts the unit's user, its seccomp filters, Protect… and the paths that are
// made read-only or inaccessible, and neither its root directory nor its mounts
// (apply_mount_namespace in systemd's src/core/execute.c, 252, and exec-invoke.c, 255).
var needed = []struct {
	path   string
	writes bool
}{
	{SocketHelper, false},
	{"/var/lib/aaunit/sockopts", false}, // the rules
	{"/proc", false},
	{"/sys/fs/cgroup", false},
	{"/sys/kernel/btf", false}, // the kernel's types, to load the programs
	{"/sys/fs/bpf", true},
}

// shown finds the mount through which the unit's commands with a "+" see a path, and
// whether it is the host's own there; m.Property is "" where no mount covers the path. Of
// mounts at one place each counts.
func (s Settings) shown(file string, writes bool) (m Mount, ok bool) {
	all := s.Mounts
	if s.RootDirectory != "" && !s.RootDirectoryStartOnly {
		all = append([]Mount{{Property: rootDirectory, Path: "/", Source: s.RootDirectory}}, all...)
	}
	ok = true
	nearest := 0
	for _, c := range all {
		dir := path.Clean(c.Path)
		below, covers := strings.CutPrefix(file, strings.TrimSuffix(dir, "/"))
		if !covers || below != "" && below[0] != '/' || len(dir) < nearest {
			continue
		}
		hosts := c.Source != "" && path.Join(c.Source, below) == file && !(writes && c.ReadOnly) && !(c.Flat && below != "")
		if len(dir) > nearest || ok {
			m, ok = c, hosts
		}
		nearest = len(dir)
	}
	return m, ok
}

const rootDirectory = "RootDirectory"

// unheld says why the start helper could not work in a unit, nil where it can. source is
// the attachment that asks for it, "" where none does yet.
func unheld(u Unit, source string) *Reason {
	for _, n := range needed {
		m, ok := u.Settings.shown(n.path, n.writes)
		if ok {
			continue
		}
		what, way := fmt.Sprintf("%s= has something else at %s", m.Property, m.Path), "BindPaths="+n.path
		switch {
		case m.Property == rootDirectory && strings.HasSuffix(u.ID, ".service"):
			what, way = "it has the root directory "+m.Source, "RootDirectoryStartOnly=yes"
		case m.Property == rootDirectory:
			what = "it has the root directory " + m.Source
		case m.Property == "TemporaryFileSystem":
			what = "TemporaryFileSystem= is over " + m.Path
		case m.ReadOnly && path.Clean(m.Path) == path.Clean(m.Source):
			what = "BindReadOnlyPaths=" + m.Path + " makes it read-only"
		}
		way += " in " + u.ID
		if source != "" {
			way += ", or take [SocketOptions] out of " + source
		}
		return ptr(because(SocketsHidden, "the start helper of the socket options of %s could not use %s: %s", u.ID, n.path, what).at(u.FragmentPath).next(way))
	}
	return nil
}

// unheldAll is unheld for a service and the .socket units that start it.
func unheldAll(d Desired, o Observed) (out []Reason) {
	units := []Unit{o.Unit}
	for _, s := range o.SocketUnits {
		units = append(units, s.unit())
	}
	for _, u := range units {
		if why := unheld(u, d.Attachment.Source); why != nil {
			out = append(out, *why)
		}
	}
	return out
}

// requiredBefore reports whether the attachment is in place with a start helper that has
// to work. What hides something from that later makes the next start fail, and is no
// reason to let go of the unit meanwhile.
func (d Desired) requiredBefore() bool {
	s := d.Record.Sockets
	return len(d.Record.DropIns) > 0 && !d.Record.Attaching && s != nil && s.Requires()
}

// failsNextStart reports whether the start helper has to work at the next start of the
// unit, and could not.
func failsNextStart(d Desired, o Observed) bool {
	want := d.Attachment.SocketsWanted()
	return want != nil && want.Requires() && len(unheldAll(d, o)) > 0
}

// NewlyRequires reports whether a drop-in that says text is yet to have the line of a
// start helper that has to work.
func (a Attachment) NewlyRequires(text string) bool {
	want := a.SocketsWanted()
	return want != nil && want.Requires() && !strings.Contains(text, SocketStartLine(true))
}

// UnheldOf finds a unit in which the start helper could not work: where that has to, its
// next start would fail.
func UnheldOf(units []Unit, a Attachment) *Reason {
	for _, u := range units {
		if why := unheld(u, a.Source); why != nil {
			return why
		}
	}
	return nil
}

// unit is what the start helper sees of a .socket unit.
func (s StartingSocket) unit() Unit {
	return Unit{ID: s.ID, Settings: Settings{RootDirectory: s.RootDirectory, Mounts: s.Mounts}}
}

// Unheld is UnheldOf for a service and the .socket units that start it, of which no
// attachment asks for socket options yet.
func Unheld(u Unit, sockets []StartingSocket) *Reason {
	units := []Unit{u}
	for _, s := range sockets {
		units = append(units, s.unit())
	}
	return UnheldOf(units, Attachment{})
}
