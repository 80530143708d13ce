package attach

import (
	"slices"
	"strings"
	"testing"
)

// The start helper's + lifts neither the unit's root directory nor what is mounted for it.
// Where it would not find what it needs, an attach that looks right would end with the
// next start, or after the next boot, if that requires it. One that was in place before
// goes on, and one that does not require it.
func TestWhereTheStartHelperCannotWork(t *testing.T) {
	tmpfs := func(paths ...string) (out []Mount) {
		for _, p := range paths {
			out = append(out, Mount{Property: "TemporaryFileSystem", Path: p})
		}
		return out
	}
	bind := func(readOnly bool, paths ...string) (out []Mount) {
		for _, p := range paths {
			out = append(out, Mount{Property: "BindPaths", Path: p, Source: p, ReadOnly: readOnly})
		}
		return out
	}
	for name, c := range map[string]struct {
		set  Settings
		lost string // what it says is not there; "" it can work
		next string
	}{
		"nothing":                             {Settings{}, "", ""},
		"a root directory":                    {Settings{RootDirectory: "/srv/x"}, SocketHelper, "RootDirectoryStartOnly=yes in a.service"},
		"a root image":                        {Settings{RootDirectory: "/srv/x.raw"}, SocketHelper, "RootDirectoryStartOnly=yes"},
		"a root directory for ExecStart=":     {Settings{RootDirectory: "/srv/x", RootDirectoryStartOnly: true}, "", ""},
		"the host's root":                     {Settings{RootDirectory: "/"}, "", ""},
		"a root directory, and all it needs":  {Settings{RootDirectory: "/srv/x", Mounts: bind(false, "/usr/lib/aaunit", "/var/lib/aaunit", "/proc", "/sys")}, "", ""},
		"an empty root":                       {Settings{Mounts: append(tmpfs("/"), bind(true, "/usr", "/lib")...)}, "/var/lib/aaunit/sockopts", "BindPaths=/var/lib/aaunit/sockopts in a.service"},
		"an empty root, and /sys to read":     {Settings{Mounts: append(tmpfs("/"), bind(true, "/usr", "/var/lib/aaunit", "/proc", "/sys")...)}, "/sys/fs/bpf", "BindPaths=/sys/fs/bpf"},
		"an empty root, and all it needs":     {Settings{Mounts: slices.Concat(tmpfs("/"), bind(true, "/usr", "/var/lib/aaunit", "/proc", "/sys"), bind(false, "/sys/fs/bpf"))}, "", ""},
		"an empty root, and no control group": {Settings{Mounts: slices.Concat(tmpfs("/"), bind(true, "/usr", "/var/lib/aaunit", "/proc"), bind(false, "/sys/fs/bpf"))}, "/sys/fs/cgroup", "BindPaths=/sys/fs/cgroup"},
		"an empty /var":                       {Settings{Mounts: tmpfs("/var")}, "/var/lib/aaunit/sockopts", ""},
		"an empty /var/lib/":                  {Settings{Mounts: tmpfs("/var/lib/")}, "/var/lib/aaunit/sockopts", ""},
		"an empty /usr/lib/aaunit":            {Settings{Mounts: tmpfs("/usr/lib/aaunit")}, SocketHelper, ""},
		"an empty /sys/fs":                    {Settings{Mounts: tmpfs("/sys/fs")}, "/sys/fs/cgroup", ""},
		"another /var":                        {Settings{Mounts: []Mount{{Property: "BindPaths", Source: "/srv/var", Path: "/var"}}}, "/var/lib/aaunit/sockopts", ""},
		"the same /var":                       {Settings{Mounts: bind(false, "/var")}, "", ""},
		"the same /sys without its mounts":    {Settings{Mounts: []Mount{{Property: "BindPaths", Source: "/sys", Path: "/sys", Flat: true}}}, "/sys/fs/cgroup", ""},
		"an image on /var/lib":                {Settings{Mounts: []Mount{{Property: "MountImages", Path: "/var/lib"}}}, "/var/lib/aaunit/sockopts", ""},
		"two at one place":                    {Settings{Mounts: append(bind(false, "/var"), tmpfs("/var")...)}, "/var/lib/aaunit/sockopts", ""},
		"elsewhere": {Settings{Mounts: append(tmpfs("/tmp", "/home", "/var/lib/aaunit2", "/var/lib/agent", "/usr/lib/aaunit/x", "/sys/fs/bpf/y"),
			Mount{Property: "BindPaths", Source: "/srv/opt", Path: "/opt"})}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			check := func(what, says string, refused bool, refusals, warnings []Reason) {
				t.Helper()
				is := func(r Reason) bool {
					return r.Code == SocketsHidden && strings.Contains(r.Detail, "could not use "+c.lost+": ") && strings.HasSuffix(r.Detail, says) && strings.Contains(r.Next, c.next) && strings.Contains(r.Next, "[SocketOptions]")
				}
				warnings = slices.DeleteFunc(slices.Clone(warnings), func(r Reason) bool { return r.Code != SocketsHidden })
				told, silent := warnings, refusals
				if refused {
					told, silent = refusals, warnings
				}
				if len(silent) != 0 || len(told) != 0 && c.lost == "" || c.lost != "" && !slices.ContainsFunc(told, is) {
					t.Errorf("%s: %+v %+v", what, refusals, warnings)
				}
			}
			for _, how := range []struct {
				required Tri
				before   *SocketOptions
				refused  bool
				says     string
			}{
				{Yes, nil, true, ""},
				{Yes, &SocketOptions{Mode: SocketsEnforce, Required: No}, true, ""},
				{Yes, &SocketOptions{Mode: SocketsEnforce}, false, "; its next start will fail"},
				{No, nil, false, "once it sees one"},
				{No, &SocketOptions{Mode: SocketsRecord}, false, "once it sees one"},
			} {
				d, o := held(how.required)
				d.Record.Sockets = how.before
				if how.before != nil {
					d.Record.DropIns = d.Record.DropIns.With(d.DropInPath(), "x")
				}
				o.SocketUnits[0].DropIn.Content = SocketDropIn(*d.Attachment)
				o.Unit.Settings.RootDirectory, o.Unit.Settings.RootDirectoryStartOnly, o.Unit.Settings.Mounts = c.set.RootDirectory, c.set.RootDirectoryStartOnly, c.set.Mounts
				refusals, warnings := socketObstacles(d, o)
				check("a host", how.says, how.refused, refusals, warnings)
				o.Unit.LoadState, o.Unit.Settings.DefaultDependencies, o.Rules = "loaded", true, ImageRules{Exist: true, Same: true}
				o.Policy.Candidates = map[string][]Profile{"a": {{Name: "a", File: "/etc/apparmor.d/a", Line: 1}}}
				p := DiffImage(d, o)
				check("an image", how.says, how.refused, p.Refusals, p.Warnings)
				d.Attachment.SocketOptions = nil
				if refusals, _ := socketObstacles(d, o); len(refusals) > 0 {
					t.Errorf("nobody asks for socket options: %+v", refusals)
				}
			}
			if got := UnheldOf([]Unit{{ID: "b.service"}, {ID: "a.service", Settings: c.set}}, Attachment{}); (got != nil) != (c.lost != "") {
				t.Errorf("of a pattern's units: %+v", got)
			}
		})
	}
	// The helper of a .socket unit sees what that has.
	d, o := held(Yes)
	d.Record.Sockets = nil
	o.SocketUnits[0].RootDirectory = "/srv/x"
	if refusals, _ := socketObstacles(d, o); len(refusals) != 1 || refusals[0].Code != SocketsHidden || !strings.Contains(refusals[0].Detail, "a.socket") || strings.Contains(refusals[0].Next, "StartOnly") {
		t.Errorf("a .socket unit: %+v", refusals)
	}
	o.SocketUnits[0].RootDirectory, o.SocketUnits[0].Mounts = "", tmpfs("/var")
	if refusals, _ := socketObstacles(d, o); len(refusals) != 1 || refusals[0].Code != SocketsHidden {
		t.Errorf("a .socket unit with a /var of its own: %+v", refusals)
	}
}

// A start that goes on when the helper fails goes on, too, where it cannot be executed.
// What an earlier version wrote for it is still aaunit's own.
func TestTheLineOfAStartThatGoesOn(t *testing.T) {
	if got := SocketStartLine(false); got != "ExecStartPre=-+/usr/lib/aaunit/aaunit-sockopts -required=no %n" {
		t.Error(got)
	}
	if strings.Contains(SocketStartLine(true), "-+") {
		t.Error(SocketStartLine(true))
	}
	d, o := held(No)
	o.Unit.LoadState, o.Unit.Settings.DefaultDependencies = "loaded", true
	former := func(text string) string { return strings.Replace(text, "=-+", "=+", 1) }
	text, socket := former(DropIn(*d.Attachment, "a")), former(SocketDropIn(*d.Attachment))
	if !WroteDropIn(text) || !WroteSocketDropIn(socket) || !wroteSocketDropIn(socket, false) || wroteSocketDropIn(socket, true) {
		t.Errorf("it is taken for somebody else's:\n%s\n%s", text, socket)
	}
	if WroteDropIn(text+"ExecStartPre=+/bin/sh\n") || WroteDropIn(former(text)+formerStartLine+"\n") || Starts(TextWithoutStart(text)) {
		t.Errorf("what is not is taken for it:\n%s", text)
	}
	o.DropIn, o.SocketUnits[0].DropIn = DropInState{Exists: true, Content: text}, DropInState{Exists: true, Content: socket}
	if got := dropInObstacles(d, o); len(got) > 0 {
		t.Errorf("without a record: %+v", got)
	}
	if got, _ := socketObstacles(d, o); len(got) > 0 {
		t.Errorf("without a record: %+v", got)
	}
	o.Policy.Candidates = map[string][]Profile{"a": {{Name: "a", File: "/etc/apparmor.d/a", Line: 1}}}
	if p := DiffImage(d, o); !p.Has(WriteDropIn) {
		t.Errorf("it is not written anew: %+v", p)
	}
}

// A restart that would end with the start helper is left to somebody who knows.
func TestAUnitWhoseNextStartWouldFailIsNotRestarted(t *testing.T) {
	for name, c := range map[string]struct {
		required Tri
		root     string
		restarts bool
	}{
		"it would work":      {Yes, "", true},
		"it would fail":      {Yes, "/srv/x", false},
		"it is not required": {No, "/srv/x", true},
	} {
		t.Run(name, func(t *testing.T) {
			d, o := healthy()
			hd, ho := held(c.required)
			d.Attachment.SocketOptions, d.Record.Sockets = hd.Attachment.SocketOptions, hd.Attachment.SocketOptions
			o.Unit.Settings.Exec, o.Sockets, o.Unit.Settings.RootDirectory = append(o.Unit.Settings.Exec, ho.Unit.Settings.Exec...), ho.Sockets[:1], c.root
			o.Scan.Tasks = []Task{task(100, "unconfined")}
			p := Diff(d, o)
			pending := slices.ContainsFunc(p.Pending, func(r Reason) bool { return r.Code == RestartPending })
			if len(p.Refusals) > 0 || p.Has(Restart) != c.restarts || pending == c.restarts {
				t.Errorf("%+v", p)
			}
		})
	}
}
