package units

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
)

type (
	loadError struct{ Name, Message string }
	profile   struct {
		Ignore bool
		Name   string
	}
	assert struct {
		Type            string
		Trigger, Negate bool
		Param           string
		State           int32
	}
	execEx struct {
		Path           string
		Argv, Flags    []string
		T1, T2, T3, T4 uint64
		PID            uint32
		Code, Status   int32
	}
	execOld struct {
		Path           string
		Argv           []string
		Ignore         bool
		T1, T2, T3, T4 uint64
		PID            uint32
		Code, Status   int32
	}
)

// bare has what every unit has.
func bare(id string) map[string]any {
	return map[string]any{"Id": id, "Names": []string{id}, "LoadState": "loaded", "ActiveState": "inactive", "SubState": "dead"}
}

// with adds properties.
func with(m map[string]any, more map[string]any) map[string]any {
	out := maps.Clone(m)
	maps.Copy(out, more)
	return out
}

// agentProps is a running service as systemd 257 shows it.
func agentProps() map[string]any {
	return with(bare("agent.service"), map[string]any{
		"Names": []string{"agent.service", "alias.service"}, "LoadError": loadError{}, "ActiveState": "active", "SubState": "running", "Result": "success",
		"UnitFileState": "enabled", "FragmentPath": "/u/agent.service", "DropInPaths": []string{"/e/agent.service.d/90-aaunit.conf"},
		"Transient": false, "NeedDaemonReload": true, "RefuseManualStop": true, "RefuseManualStart": true,
		"InvocationID": []byte{0x42, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff}, "Type": "notify", "MainPID": uint32(17), "ControlPID": uint32(18),
		"ControlGroup": "/system.slice/agent.service", "NRestarts": uint32(3), "CollectMode": "inactive", "ExecMainCode": int32(1), "ExecMainStatus": int32(231),
		"ExecMainPID": uint32(17), "ExecMainStartTimestamp": uint64(1_700_000_000_000_001), "ExecMainExitTimestamp": uint64(1_700_000_000_000_002),
		"ExecMainHandoffTimestamp": uint64(0), "InactiveExitTimestamp": uint64(5_000_000), "ActiveExitTimestamp": uint64(4_000_000),
		"ConditionResult": true, "ConditionTimestamp": uint64(7), "AssertResult": false, "AssertTimestamp": uint64(8),
		"AppArmorProfile": profile{true, "my agent"}, "PrivateTmp": true, "PrivateTmpEx": "disconnected",
		"Asserts": []assert{{"AssertPathExists", false, false, "/x", 1}, {"AssertSecurity", false, false, "apparmor", 1}},
		"ExecStartPreEx": []execEx{
			{Path: "/bin/pre", Argv: []string{"pre"}, Flags: []string{"privileged", "ignore-failure"}, PID: 12, T1: 5_000_000, T3: 6_000_000, Code: 1, Status: 3},
			{Path: "/bin/pre2", Argv: []string{"pre2"}, Flags: []string{"no-setuid"}}},
		"ExecStartEx":          []execEx{{Path: "/bin/agent", Argv: []string{"agent", "-x"}, PID: 17}},
		"ExecStart":            []execOld{{Path: "/bin/agent", Argv: []string{"agent", "-x"}}},
		"ExecStopEx":           []execEx{},
		"PermissionsStartOnly": true, "DefaultDependencies": true, "NoNewPrivileges": true, "Delegate": true, "User": "nobody", "PAMName": "login",
		"RootDirectory": "", "RootImage": "/img", "RootDirectoryStartOnly": true,
		"TemporaryFileSystem": []tmpfs{{"/var", "ro"}}, "BindPaths": []bindPath{{"/srv/a", "/a", true, 16384}}, "BindReadOnlyPaths": []bindPath{{"/b", "/b", false, 0}},
		"MountImages": []mountImage{{"/c.raw", "/c", true, []imageOption{{"root", "ro"}}}}, "After": []string{"sysinit.target"},
		"RequiredBy": []string{}, "BoundBy": []string{},
		"DynamicUser": true, "JoinsNamespaceOf": []string{"other.service"}, "ProtectSystem": "strict", "PrivateDevices": false, "ProtectControlGroups": true,
		"StateDirectory": []string{"agent"}, "ConfigurationDirectory": []string{"agent"}, "RestrictAddressFamilies": restrict{true, []string{"AF_INET"}},
		"SystemCallFilter": restrict{false, []string{"reboot", "bpf:EPERM"}},
	})
}

// restrict is RestrictAddressFamilies or SystemCallFilter, (bas).
type restrict struct {
	AllowList bool
	Names     []string
}

type (
	tmpfs    struct{ Path, Options string }
	bindPath struct {
		Source, Path string
		Ignore       bool
		Flags        uint64
	}
	imageOption struct{ Partition, Options string }
	mountImage  struct {
		Source, Path string
		Ignore       bool
		Options      []imageOption
	}
)

func agentUnit() attach.Unit {
	return attach.Unit{
		ID: "agent.service", Names: []string{"agent.service", "alias.service"}, LoadState: "loaded", ActiveState: "active", SubState: "running", Result: "success",
		UnitFileState: "enabled", FragmentPath: "/u/agent.service", DropIns: []string{"/e/agent.service.d/90-aaunit.conf"},
		NeedReload: true, RefuseStop: true, RefuseStart: true, InvocationID: "420000000000000000000000000000ff", Type: "notify", MainPID: 17, ControlPID: 18,
		ControlGroup: "/system.slice/agent.service", NRestarts: 3, FailedStays: true, ExecMainCode: 1, ExecMainStatus: 231,
		Runs: []attach.Run{
			{Property: "ExecStart", Path: "/bin/agent", PID: 17, Code: 1, Status: 231, Began: time.UnixMicro(1_700_000_000_000_001), Ended: time.UnixMicro(1_700_000_000_000_002)},
			{Property: "ExecStartPre", Path: "/bin/pre", PID: 12, Code: 1, Status: 3, Began: time.Unix(5, 0), Ended: time.Unix(6, 0), IgnoreFailure: true},
		},
		Left: time.Unix(5, 0), Ceased: time.Unix(4, 0), HandoffTold: true, Condition: attach.Yes, Assert: attach.No,
		Settings: attach.Settings{
			Profile: "my agent", IgnoreMissing: true, PrivateTmp: attach.PrivateTmpDisconnected, KnowsDisconnected: true, AssertAppArmor: true,
			Exec: []attach.ExecCommand{
				{Property: "ExecStartPre", Path: "/bin/pre", Argv: []string{"pre"}, Privileged: true, IgnoreFailure: true, PID: 12},
				{Property: "ExecStartPre", Path: "/bin/pre2", Argv: []string{"pre2"}},
				{Property: "ExecStart", Path: "/bin/agent", Argv: []string{"agent", "-x"}, PID: 17},
			},
			PermissionsStartOnly: true, DefaultDependencies: true, NoNewPrivileges: true, Delegate: true, User: "nobody", PAMName: "login",
			RootDirectory: "/img", RootDirectoryStartOnly: true, After: []string{"sysinit.target"},
			Mounts: []attach.Mount{{Property: "TemporaryFileSystem", Path: "/var"}, {Property: "BindPaths", Path: "/a", Source: "/srv/a"},
				{Property: "BindReadOnlyPaths", Path: "/b", Source: "/b", ReadOnly: true, Flat: true}, {Property: "MountImages", Path: "/c"}},
			DynamicUser: true, JoinsNamespaceOf: []string{"other.service"}, MountNamespace: true,
			Directories: []attach.Directory{{Property: "StateDirectory", Path: "/var/lib/agent"},
				{Property: "ConfigurationDirectory", Path: "/etc/agent", ReadOnly: true}},
			AddressFamilies: &attach.AddressFamilies{AllowList: true, Families: []string{"AF_INET"}}, RefusesBPF: true, ProtectControlGroups: true,
		},
	}
}

func TestRefusesBPF(t *testing.T) {
	for name, c := range map[string]struct {
		filter restrict
		want   bool
	}{
		"no filter":                     {restrict{false, nil}, false},
		"others are refused":            {restrict{false, []string{"reboot", "bpfx"}}, false},
		"it is refused":                 {restrict{false, []string{"reboot", "bpf"}}, true},
		"it is refused with an error":   {restrict{false, []string{"bpf:EACCES"}}, true},
		"others are allowed":            {restrict{true, []string{"read", "bpfx"}}, true},
		"it is allowed":                 {restrict{true, []string{"read", "bpf"}}, false},
		"it is on the list, somehow":    {restrict{true, []string{"read", "bpf:EPERM"}}, false},
		"nothing is on a list of these": {restrict{true, nil}, true},
	} {
		if got := refusesBPF(c.filter.AllowList, c.filter.Names); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestObserve(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "e/agent.service.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "90-aaunit.conf"), []byte("[Service]\nAppArmorProfile=-my agent\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"agent.service": agentProps(), "alias.service": agentProps()})
	s := b.client(Options{Root: root})
	want := agentUnit()
	want.Missing = []string{"/u/agent.service"}
	want.Settings.Assignments = []attach.Assignment{{Key: "AppArmorProfile", Value: "-my agent", Path: "/e/agent.service.d/90-aaunit.conf", Line: 2}}
	for _, name := range []string{"agent.service", "alias.service"} {
		got, err := s.Observe(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if len(got.FilesState) != 64 {
			t.Errorf("%s: state of its files %q", name, got.FilesState)
		}
		if !got.FilesChanged.After(time.Now()) {
			t.Errorf("%s: its file is not there, and last changed %v", name, got.FilesChanged)
		}
		got.FilesState, got.FilesChanged = "", time.Time{}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: -want +got:\n%s", name, d)
		}
	}
	if id, err := s.Invocation(t.Context(), "agent.service"); id != want.InvocationID || err != nil {
		t.Errorf("Invocation: %q, %v", id, err)
	}
	if n := b.count("ListUnitsByNames"); n != 0 {
		t.Errorf("%d questions about dependencies of a unit without any", n)
	}
}

// What a .socket unit has mounted is what the start helper of its socket options sees.
func TestStartingSockets(t *testing.T) {
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"a.socket": with(bare("a.socket"), map[string]any{"ActiveState": "active", "ControlGroup": "/a.socket",
		"RootDirectory": "/srv/a", "RootImage": "", "TemporaryFileSystem": []tmpfs{{"/var", ""}}})})
	got, err := b.client(Options{Root: t.TempDir()}).StartingSockets(t.Context(), []string{"a.socket"})
	want := []attach.StartingSocket{{ID: "a.socket", Active: true, ControlGroup: "/a.socket", RootDirectory: "/srv/a",
		Mounts: []attach.Mount{{Property: "TemporaryFileSystem", Path: "/var"}}}}
	if d := cmp.Diff(want, got); d != "" || err != nil {
		t.Errorf("%v; -want +got:\n%s", err, d)
	}
}

func TestDecodeSettings(t *testing.T) {
	security := func(param string, trigger, negate bool) assert {
		return assert{"AssertSecurity", trigger, negate, param, 1}
	}
	for _, c := range []struct {
		name  string
		props map[string]any
		want  attach.Settings
	}{
		{"nothing", nil, attach.Settings{PrivateTmp: "no"}},
		{"before 257", map[string]any{"PrivateTmp": true}, attach.Settings{PrivateTmp: "yes"}},
		{"tmp connected", map[string]any{"PrivateTmp": true, "PrivateTmpEx": "connected"}, attach.Settings{PrivateTmp: "yes", KnowsDisconnected: true}},
		{"no tmp", map[string]any{"PrivateTmp": false, "PrivateTmpEx": "no"}, attach.Settings{PrivateTmp: "no", KnowsDisconnected: true}},
		{"assertion negated", map[string]any{"Asserts": []assert{security("apparmor", false, true)}}, attach.Settings{PrivateTmp: "no"}},
		{"assertion one of several", map[string]any{"Asserts": []assert{security("apparmor", true, false), security("selinux", true, false)}}, attach.Settings{PrivateTmp: "no"}},
		{"another assertion", map[string]any{"Asserts": []assert{security("selinux", false, false), {"AssertHost", false, false, "apparmor", 0}}}, attach.Settings{PrivateTmp: "no"}},
		{"profile", map[string]any{"AppArmorProfile": profile{false, "a b"}}, attach.Settings{PrivateTmp: "no", Profile: "a b"}},
		{"commands before 243", map[string]any{"ExecStart": []execOld{{Path: "/a", Argv: []string{"a"}, Ignore: true, PID: 3}}}, attach.Settings{PrivateTmp: "no",
			Exec: []attach.ExecCommand{{Property: "ExecStart", Path: "/a", Argv: []string{"a"}, IgnoreFailure: true, PID: 3}}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &props{m: vars(c.props)}
			// Through the wire, as it comes from there.
			b := newFakeBus(t)
			b.on("GetAll", func(busCall) ([]any, error) { return []any{p.m}, nil })
			got, err := b.client(Options{}).properties(t.Context(), "a.service", "")
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(c.want, decodeSettings(got)); d != "" || got.err != nil {
				t.Errorf("%v; -want +got:\n%s", got.err, d)
			}
		})
	}
}

// Every property in turn has a type that it must not have.
func TestObserveWrongTypes(t *testing.T) {
	b := newFakeBus(t)
	s := b.client(Options{Root: t.TempDir()})
	is := func(u map[string]any) { b.has(map[string]map[string]any{"agent.service": u}) }
	wrong := []any{"word", uint64(1), true, [][]string{{"a"}}, []byte{1, 2}, loadError{"a", "b"}}
	for name := range agentProps() {
		failed := 0
		for _, v := range wrong {
			is(with(agentProps(), map[string]any{name: v}))
			if _, err := s.Observe(t.Context(), "agent.service"); err != nil {
				failed++
				if !strings.HasPrefix(err.Error(), "cannot observe agent.service: ") {
					t.Errorf("%s: %v", name, err)
				}
			}
		}
		// ExecStart and PrivateTmp are not looked at beside their newer selves.
		if wanted := len(wrong) - 1; failed < wanted && name != "ExecStart" && name != "PrivateTmp" && !slices.Contains(namespaced, name) {
			t.Errorf("%s: %d of %d wrong types were noticed", name, failed, wanted)
		}
	}
	for _, name := range []string{"Id", "LoadState", "ActiveState"} {
		u := agentProps()
		delete(u, name)
		is(u)
		if _, err := s.Observe(t.Context(), "agent.service"); err == nil {
			t.Errorf("no error without %s", name)
		}
	}
	is(with(agentProps(), map[string]any{"InvocationID": make([]byte, 16)}))
	if u, err := s.Observe(t.Context(), "agent.service"); u.InvocationID != "" || err != nil {
		t.Errorf("InvocationID of zeros: %q, %v", u.InvocationID, err)
	}
	b.on("GetAll", func(busCall) ([]any, error) { return []any{"what?"}, nil })
	if _, err := s.Observe(t.Context(), "agent.service"); err == nil {
		t.Error("an answer that is no dictionary was taken")
	}
	b.on("GetAll", func(busCall) ([]any, error) { return nil, nil })
	if _, err := s.Observe(t.Context(), "agent.service"); err == nil {
		t.Error("an empty answer was taken")
	}
}

// Whether systemd has read files as they are is told by what they say: a generator writes
// the same again at each reload. A file that is listed and not there is named.
func TestStateOfFilesThatAreToBeReadAgain(t *testing.T) {
	root := t.TempDir()
	write := func(path, text string) {
		t.Helper()
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		_ = os.Remove(path)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const fragment, dir = "/run/systemd/generator.late/agent.service", "/etc/systemd/system/agent.service.d"
	write(fragment, "[Service]\nExecStart=/bin/agent\n")
	write(dir+"/a.conf", "[Service]\n")
	if err := os.Symlink("/opt/gone/x.conf", filepath.Join(root, dir, "x.conf")); err != nil {
		t.Fatal(err)
	}
	b := newFakeBus(t)
	s := b.client(Options{Root: root})
	unit := with(agentProps(), map[string]any{"FragmentPath": fragment, "SourcePath": "/etc/init.d/agent", "DropInPaths": []string{dir + "/a.conf", dir + "/x.conf"}})
	observe := func() attach.Unit {
		t.Helper()
		b.has(map[string]map[string]any{"agent.service": unit})
		u, err := s.Observe(t.Context(), "agent.service")
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	was := observe()
	if missing := []string{"/etc/init.d/agent", dir + "/x.conf"}; was.FilesState == "" || !slices.Equal(was.Missing, missing) {
		t.Fatalf("state %q, missing %q", was.FilesState, was.Missing)
	}
	for _, c := range []struct {
		name    string
		do      func()
		differs bool
	}{
		{"a generator wrote it anew", func() { write(fragment, "[Service]\nExecStart=/bin/agent\n") }, false},
		{"it wrote something else", func() { write(fragment, "[Service]\nExecStart=/bin/agent -v\n") }, true},
		{"a drop-in changed", func() { write(dir+"/a.conf", "[Service]\nUser=a\n") }, true},
		{"one came that systemd has not read", func() { write("/etc/systemd/system/service.d/z.conf", "[Service]\n") }, true},
		{"what is no drop-in", func() { write(dir+"/.a.conf.tmp", "") }, false},
		{"SourcePath= is there again", func() { write("/etc/init.d/agent", "") }, true},
		{"SourcePath= was changed", func() {
			if err := os.Chtimes(filepath.Join(root, "/etc/init.d/agent"), time.Time{}, time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
		}, true},
	} {
		c.do()
		now := observe()
		if (now.FilesState != was.FilesState) != c.differs {
			t.Errorf("%s: from state %q to %q", c.name, was.FilesState, now.FilesState)
		}
		was = now
	}
	if unit["NeedDaemonReload"] = false; observe().FilesState != "" {
		t.Error("files are read of a unit that is up to date")
	}
}

// systemd gives deprecated properties only to who asks for them by name.
func TestObserveAsksForHiddenProperties(t *testing.T) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "agent.service"), []byte("[Service]\nPermissionsStartOnly=yes\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	b := newFakeBus(t)
	s := b.client(Options{Root: root})
	for _, value := range []any{true, false, "what?"} {
		b.has(map[string]map[string]any{"agent.service": with(bare("agent.service"), map[string]any{
			"FragmentPath": "/agent.service", "PermissionsStartOnly": value, "hidden": "PermissionsStartOnly"})})
		u, err := s.Observe(t.Context(), "agent.service")
		if _, ok := value.(bool); ok != (err == nil) || u.Settings.PermissionsStartOnly != (value == true) {
			t.Errorf("%v: %v, %v", value, u.Settings.PermissionsStartOnly, err)
		}
	}
}

func TestObserveRefusesNames(t *testing.T) {
	b := newFakeBus(t)
	s := b.client(Options{})
	for _, name := range []string{"", "agent", "a b.service", "../a.service", "a\x00.service", "a/b.service", ".service", "@.service", strings.Repeat("a", 300) + ".service"} {
		if _, err := s.Observe(t.Context(), name); err == nil {
			t.Errorf("Observe took %q", name)
		}
		if _, err := s.Invocation(t.Context(), name); err == nil {
			t.Errorf("Invocation took %q", name)
		}
		if err := s.TryRestart(t.Context(), name); err == nil {
			t.Errorf("TryRestart took %q", name)
		}
		if err := s.Start(t.Context(), name); err == nil {
			t.Errorf("Start took %q", name)
		}
	}
	if n := b.count("Hello"); n != 0 {
		t.Errorf("the bus was asked")
	}
}

func TestObserveTemplate(t *testing.T) {
	b := newFakeBus(t)
	b.on("ListUnitFilesByPatterns", func(c busCall) ([]any, error) {
		switch c.args[1].([]string)[0] {
		case "agent@.service":
			return []any{[]listedFile{{"/u/agent@.service", "disabled"}}}, nil
		case "dead@.service":
			return []any{[]listedFile{{"/e/dead@.service", "masked"}}}, nil
		}
		return []any{[]listedFile{}}, nil
	})
	s := b.client(Options{})
	for name, want := range map[string]string{"agent@.service": "stub", "dead@.service": "masked", "none@.service": "not-found"} {
		if u, err := s.Observe(t.Context(), name); u.LoadState != want || u.ID != name || err != nil {
			t.Errorf("%s: %+v, %v; want LoadState %s", name, u, err, want)
		}
	}
}

func TestRestartsWith(t *testing.T) {
	active := func(id string, more map[string]any) map[string]any {
		return with(with(bare(id), map[string]any{"ActiveState": "active"}), more)
	}
	units := map[string]map[string]any{
		"agent.service": active("agent.service", map[string]any{"RequiredBy": []string{"b.service", "off.service"}, "ConsistsOf": []string{"c.service"}, "TriggeredBy": []string{"agent.socket"}}),
		"b.service":     active("b.service", map[string]any{"BoundBy": []string{"d.mount", "agent.service"}, "RequisiteOf": []string{"c.service"}}),
		"c.service":     active("c.service", map[string]any{"PropagatesStopTo": []string{"e.service"}}),
		"d.mount":       active("d.mount", nil),
		"e.service":     active("e.service", map[string]any{"RequiredBy": []string{"agent.service"}, "WantedBy": []string{"multi-user.target"}}),
		"off.service":   with(bare("off.service"), map[string]any{"RequiredBy": []string{"f.service"}}),
		"f.service":     active("f.service", nil),
		"agent.socket":  active("agent.socket", nil),
	}
	b := newFakeBus(t)
	b.has(units)
	s := b.client(Options{})
	u, err := s.Observe(t.Context(), "agent.service")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"b.service", "c.service", "d.mount", "e.service"}, u.RestartsWith); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	// A unit that does not run takes nothing along.
	units["agent.service"]["ActiveState"] = "inactive"
	b.has(units)
	if u, err = s.Observe(t.Context(), "agent.service"); u.RestartsWith != nil || err != nil {
		t.Errorf("inactive: %v, %v", u.RestartsWith, err)
	}
}

// The unit that must not be restarted may be the last that a restart reaches.
// Where not all of them were looked at, no restart may be planned.
func TestRestartsWithFarAndWide(t *testing.T) {
	active := func(id string, deps ...string) map[string]any {
		return with(bare(id), map[string]any{"ActiveState": "active", "RequiredBy": deps})
	}
	many := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprintf("u%d.service", i)
		}
		return out
	}
	for name, c := range map[string]struct {
		reached int    // directly; 600 of them run
		last    string // the last of these reaches it
		missed  bool
		unknown bool
	}{
		"none":              {},
		"a few":             {reached: 3},
		"many":              {reached: 600},
		"the bus at last":   {reached: 600, last: "dbus.service"},
		"too many":          {reached: maxReach + 1, unknown: true},
		"too many in all":   {reached: maxReach, last: "dbus.service", missed: true, unknown: true},
		"one of a bad name": {reached: 2, last: "what is/this.service", missed: true, unknown: true},
	} {
		t.Run(name, func(t *testing.T) {
			reached := many(c.reached)
			units := map[string]map[string]any{"agent.service": active("agent.service", reached...)}
			for i, id := range reached {
				if units[id] = with(bare(id), nil); i < 600 {
					units[id] = active(id, "agent.service")
				}
			}
			if c.last != "" {
				by := reached[min(c.reached, 600)-1]
				units[by] = active(by, "agent.service", c.last)
				units[c.last] = active(c.last)
			}
			b := newFakeBus(t)
			b.has(units)
			u, err := b.client(Options{}).Observe(t.Context(), "agent.service")
			if err != nil {
				t.Fatal(err)
			}
			if u.RestartsUnknown != c.unknown {
				t.Errorf("RestartsUnknown = %v, with %d units in RestartsWith", u.RestartsUnknown, len(u.RestartsWith))
			}
			if has := slices.Contains(u.RestartsWith, c.last); c.last != "" && has == c.missed {
				t.Errorf("%s is in RestartsWith: %v", c.last, has)
			}
			guard := attach.Protected(u)
			if want := c.unknown || c.last == "dbus.service"; (guard != nil) != want {
				t.Errorf("Protected = %v", guard)
			}
			if guard != nil && guard.Code != attach.UnitProtected {
				t.Errorf("Protected = %v", guard)
			}
		})
	}
}

func TestExpand(t *testing.T) {
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"sshd.service": bare("ssh.service")})
	b.on("ListUnitsByPatterns", func(busCall) ([]any, error) {
		row := func(name, load, active string) listedUnit {
			return listedUnit{Name: name, LoadState: load, ActiveState: active, Path: "/", JobPath: "/"}
		}
		return []any{[]listedUnit{
			row("b.service", "loaded", "active"), row("gone.service", "not-found", "inactive"), row("gone-but-runs.service", "not-found", "active"),
			row("a.socket", "loaded", "active"), row("t@x.service", "loaded", "inactive"), row("masked.service", "masked", "inactive"), row("bad\nname.service", "loaded", "active"),
		}}, nil
	})
	b.on("ListUnitFilesByPatterns", func(busCall) ([]any, error) {
		return []any{[]listedFile{{"/u/b.service", "enabled"}, {"/u/a.service", "static"}, {"/u/t@.service", "disabled"}, {"/u/c.socket", "enabled"},
			{"/e/masked.service", "masked"}, {"/e/masked2.service", "masked-runtime"}, {"/e/sshd.service", "alias"}, {"/e/autovt@.service", "alias"}}}, nil
	})
	got, err := b.client(Options{}).Expand(t.Context(), "*.service")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"a.service", "autovt@.service", "b.service", "gone-but-runs.service", "ssh.service", "t@.service", "t@x.service"}, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
	for _, glob := range []string{"", "*", "a b*.service", "[.service"} {
		if _, err := b.client(Options{}).Expand(t.Context(), glob); err == nil {
			t.Errorf("Expand took %q", glob)
		}
	}
}

func TestCallsOutliveTheBus(t *testing.T) {
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"a.service": bare("a.service")})
	s := b.client(Options{})
	observe := func() {
		t.Helper()
		if _, err := s.Observe(t.Context(), "a.service"); err != nil {
			t.Fatal(err)
		}
	}
	observe()
	b.dropAll() // restart of the bus
	observe()

	b.setOwner("") // daemon-reexec
	time.AfterFunc(20*time.Millisecond, func() { b.setOwner(":1.900") })
	observe()

	// It went away with the question.
	answer := b.answerTo("GetAll")
	b.on("GetAll", func(busCall) ([]any, error) {
		b.on("GetAll", answer)
		return nil, busError("org.freedesktop.DBus.Error.NoReply", "Message recipient disconnected from message bus without replying")
	})
	observe()
	b.on("GetAll", func(busCall) ([]any, error) {
		b.on("GetAll", answer)
		b.dropAll()
		return nil, errHang
	})
	observe()
}

func TestCallsGiveUp(t *testing.T) {
	b := newFakeBus(t)
	b.on("GetAll", func(busCall) ([]any, error) { return nil, errHang })
	s := b.client(Options{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := s.Observe(ctx, "a.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's time is over: %v", err)
	}
	s.wait.call, s.wait.retry = time.Second, 30*time.Millisecond
	if _, err := s.Observe(t.Context(), "a.service"); !errors.Is(err, errSilent) {
		t.Errorf("systemd is silent: %v", err)
	}
	b.setOwner("")
	if _, err := s.Observe(t.Context(), "a.service"); err == nil || !strings.Contains(err.Error(), "systemd is not there") {
		t.Errorf("systemd is not there: %v", err)
	}
	// A refusal is an answer.
	b.setOwner(":1.1")
	b.on("GetAll", func(busCall) ([]any, error) {
		return nil, busError("org.freedesktop.DBus.Error.AccessDenied", "no")
	})
	before := b.count("GetAll")
	if _, err := s.Observe(t.Context(), "a.service"); err == nil || b.count("GetAll") != before+1 {
		t.Errorf("refused: %v after %d questions", err, b.count("GetAll")-before)
	}
}

// A bus that accepts and says nothing must not hold anybody up for ever.
func TestSilentBus(t *testing.T) {
	s := New(Options{Address: "unix:path=" + silentSocket(t)})
	s.wait.call, s.wait.retry = 20*time.Millisecond, 20*time.Millisecond
	if _, err := s.Observe(t.Context(), "a.service"); err == nil || !strings.Contains(err.Error(), "the bus did not answer") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	s.wait.call = time.Hour
	if _, err := s.Observe(ctx, "a.service"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// What confines a unit can be read without all the rest.
func TestConfining(t *testing.T) {
	b := newFakeBus(t)
	older, odd := agentProps(), agentProps()
	delete(older, "PrivateTmpEx")
	odd["AppArmorProfile"] = "my agent"
	b.has(map[string]map[string]any{"agent.service": agentProps(), "older.service": older, "odd.service": odd})
	s := b.client(Options{Root: t.TempDir()})
	want := attach.Settings{Profile: "my agent", IgnoreMissing: true, AssertAppArmor: true, PrivateTmp: attach.PrivateTmpDisconnected}
	if got, err := s.Confining(t.Context(), "agent.service"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v %v", got, err)
	}
	want.PrivateTmp = attach.PrivateTmpYes
	if got, err := s.Confining(t.Context(), "older.service"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("before 257: %+v %v", got, err)
	}
	for _, bad := range []string{"odd.service", "none.service", "../x.service", "agent"} {
		if got, err := s.Confining(t.Context(), bad); err == nil {
			t.Errorf("%s: %+v", bad, got)
		}
	}
	if n := b.count("GetAll"); n != 0 {
		t.Errorf("all was asked for %d times", n)
	}
	// Once all of a unit was read it is known which systemd this is.
	for unit, tmp := range map[string]attach.PrivateTmp{"agent.service": attach.PrivateTmpDisconnected, "older.service": attach.PrivateTmpYes} {
		if _, err := s.Observe(t.Context(), unit); err != nil {
			t.Fatal(err)
		}
		before := b.count("Get")
		want.PrivateTmp = tmp
		if got, err := s.Confining(t.Context(), unit); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s, known: %+v %v", unit, got, err)
		}
		if n := b.count("Get") - before; n != 3 {
			t.Errorf("%s: %d properties were asked for", unit, n)
		}
	}
}
