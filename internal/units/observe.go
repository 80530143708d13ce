package units

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Observe reads a unit and its effective settings. A name that systemd does
// not know is no error: LoadState is "not-found". An alias gives the unit it
// stands for; of one that only user managers know UserFile says where it is.
// A template, which systemd does not load, has LoadState "stub"
// and no settings where a file of that name exists.
//
// All properties come from one answer, so that they belong to one moment. While
// Follow listens, the answer is kept for as long as it is certain to be the same
// (see mirror).
func (s *Systemd) Observe(ctx context.Context, unit string) (attach.Unit, error) {
	u, err := s.observe(ctx, unit, true)
	if err != nil {
		return attach.Unit{}, fmt.Errorf("cannot observe %s: %w", shown(unit), err)
	}
	return u, nil
}

// Glance is Observe without what only a plan needs: NeedReload may be missing,
// and RestartsWith is.
func (s *Systemd) Glance(ctx context.Context, unit string) (attach.Unit, error) {
	u, err := s.observe(ctx, unit, false)
	if err != nil {
		return attach.Unit{}, fmt.Errorf("cannot observe %s: %w", shown(unit), err)
	}
	return u, nil
}

// Confining reads, of a unit's effective settings, those alone that confine it:
// Profile, IgnoreMissing, AssertAppArmor and PrivateTmp. To be told only these costs
// systemd a small part of what a full answer does.
func (s *Systemd) Confining(ctx context.Context, unit string) (attach.Settings, error) {
	if err := fullName(unit); err != nil {
		return attach.Settings{}, fmt.Errorf("cannot observe %s: %w", shown(unit), err)
	}
	asked := []struct{ iface, name string }{{serviceIface, "AppArmorProfile"}, {unitIface, "Asserts"}}
	if tmp, _ := s.tmp.Load().(string); tmp != "" {
		asked = append(asked, struct{ iface, name string }{serviceIface, tmp})
	} else {
		asked = append(asked, struct{ iface, name string }{serviceIface, "PrivateTmp"}, struct{ iface, name string }{serviceIface, "PrivateTmpEx"})
	}
	values, errs := make([]dbus.Variant, len(asked)), make([]error, len(asked))
	var answers sync.WaitGroup
	for i, a := range asked {
		answers.Go(func() {
			errs[i] = s.call(ctx, s.wait.call, pathOf(unit), propsIface+".Get", []any{a.iface, a.name}, &values[i])
		})
	}
	answers.Wait()
	p := &props{m: map[string]dbus.Variant{}}
	for i, a := range asked {
		switch {
		case errs[i] == nil:
			p.m[a.name] = values[i]
		case a.name == "PrivateTmpEx" && errorName(errs[i]) == unknownProperty: // before 257
		default:
			return attach.Settings{}, fmt.Errorf("cannot observe %s: property %s: %w", shown(unit), a.name, errs[i])
		}
	}
	out := attach.Settings{PrivateTmp: privateTmp(p)}
	confining(p, &out)
	if p.err != nil {
		return attach.Settings{}, fmt.Errorf("cannot observe %s: %w", shown(unit), p.err)
	}
	return out, nil
}

const unknownProperty = "org.freedesktop.DBus.Error.UnknownProperty"

// GlanceTogether calls look with those of the units that run and of which systemd
// has told nothing new since they were read, each as Glance gives it. It returns the
// names of those of which systemd has told nothing new until look was done, and that
// are in the same state (see mirror): what look has seen belongs to that start of them,
// with those settings. Of the others nothing is certain. systemd is asked one question
// before look ends and one after, however many units there are.
func (s *Systemd) GlanceTogether(ctx context.Context, units []string, look func(map[string]attach.Unit)) []string {
	same := s.mirror.during(ctx, s, units, func(known map[string]*kept) {
		out := make(map[string]attach.Unit, len(known))
		for unit, k := range known {
			out[unit] = k.u.Clone()
		}
		look(out)
	})
	return slices.Collect(maps.Keys(same))
}

// StartingSockets reads .socket units. It asks systemd once for each, and keeps nothing.
func (s *Systemd) StartingSockets(ctx context.Context, names []string) ([]attach.StartingSocket, error) {
	var out []attach.StartingSocket
	for _, name := range names {
		k, err := s.read(ctx, name, nil)
		if err != nil {
			return nil, fmt.Errorf("cannot observe %s: %w", shown(name), err)
		}
		out = append(out, attach.StartingSocket{ID: k.u.ID, Active: k.u.Active(), ControlGroup: k.u.ControlGroup,
			NeedReload: k.u.NeedReload, FilesState: k.u.FilesState, Missing: k.u.Missing, Exec: k.u.Settings.Exec,
			RootDirectory: k.u.Settings.RootDirectory, Mounts: k.u.Settings.Mounts})
	}
	return out, nil
}

func (s *Systemd) observe(ctx context.Context, unit string, plan bool) (attach.Unit, error) {
	if err := fullName(unit); err != nil {
		return attach.Unit{}, err
	}
	if attach.IsTemplate(unit) {
		return s.template(ctx, unit)
	}
	k, known := s.mirror.get(ctx, s, unit, plan)
	if !known {
		r := s.mirror.begin(s, unit)
		var err error
		k, err = s.read(ctx, unit, r)
		if err != nil || k.u.ID != unit || !k.u.Active() && !asUnloaded(k.u) {
			s.mirror.end(unit, r, nil)
		} else {
			s.mirror.end(unit, r, k)
		}
		if err != nil {
			return attach.Unit{}, err
		}
	}
	u := k.u.Clone()
	if plan && u.Active() {
		var err error
		if u.RestartsWith, u.RestartsUnknown, err = s.restartsWith(ctx, u.ID, k.deps); err != nil {
			return attach.Unit{}, err
		}
	}
	return u, nil
}

// read asks systemd for all that it knows of a unit, and reads its files. With r, it
// asks where signals are heard, so that the order of both is known.
func (s *Systemd) read(ctx context.Context, unit string, r *reading) (*kept, error) {
	var p *props
	var err error
	if r != nil && r.conn != nil {
		p = &props{}
		r.answered, err = askInOrder(ctx, r.conn, s.wait.call, systemdName, pathOf(unit), propsIface+".GetAll", []any{""}, &p.m)
	}
	if p == nil || err != nil && passing(err) {
		if r != nil {
			r.answered = dbus.NoSequence
		}
		p, err = s.properties(ctx, unit, "")
	}
	if err != nil {
		return nil, err
	}
	u, deps, err := decodeUnit(p)
	if err != nil {
		return nil, err
	}
	if _, service := p.get("PrivateTmp"); service {
		tmp := "PrivateTmp"
		if _, ok := p.get("PrivateTmpEx"); ok { // 257 and later
			tmp = "PrivateTmpEx"
		}
		s.tmp.Store(tmp)
	}
	if !u.Found() {
		u.UserFile = s.userFile(unit)
	}
	if u.Settings.Assignments, err = s.assignments(u); err != nil {
		return nil, err
	}
	if _, told := p.get("PermissionsStartOnly"); !told && u.Settings.Winner("PermissionsStartOnly") != nil {
		if u.Settings.PermissionsStartOnly, err = s.permissionsStartOnly(ctx, u.ID); err != nil {
			return nil, err
		}
	}
	u.NeedReload = u.NeedReload || s.unread(u)
	source := read[string](p, "SourcePath")
	files := s.filesOf(u, source)
	u.FilesChanged = changedLast(files)
	if u.NeedReload {
		u.FilesState, u.Missing = s.stateOf(files, source)
	}
	return &kept{u: u, deps: deps, files: files}, nil
}

// permissionsStartOnly asks for the one property that must be asked for by
// name, which is done where a file sets it: systemd keeps deprecated ones out of GetAll (SD_BUS_VTABLE_HIDDEN in
// its dbus-service.c, seen on 252 and 257). A systemd that does not have the
// property any more does not have the setting either.
func (s *Systemd) permissionsStartOnly(ctx context.Context, unit string) (bool, error) {
	var v dbus.Variant
	err := s.call(ctx, s.wait.call, pathOf(unit), propsIface+".Get", []any{serviceIface, "PermissionsStartOnly"}, &v)
	if e := (dbus.Error{}); errors.As(err, &e) && e.Name == unknownProperty {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	set, ok := v.Value().(bool)
	if !ok {
		return false, fmt.Errorf("property PermissionsStartOnly has the type %s", v.Signature())
	}
	return set, nil
}

// Invocation reads the unit's InvocationID alone: 32 hexadecimal digits, or ""
// for a unit that was never started or is not known.
func (s *Systemd) Invocation(ctx context.Context, unit string) (string, error) {
	id, err := s.invocation(ctx, unit)
	if err != nil {
		return "", fmt.Errorf("cannot read the InvocationID of %s: %w", shown(unit), err)
	}
	return id, nil
}

func (s *Systemd) invocation(ctx context.Context, unit string) (string, error) {
	if err := fullName(unit); err != nil {
		return "", err
	}
	if k, known := s.mirror.get(ctx, s, unit, false); known {
		return k.u.InvocationID, nil
	}
	var v dbus.Variant
	if err := s.call(ctx, s.wait.call, pathOf(unit), propsIface+".Get", []any{unitIface, "InvocationID"}, &v); err != nil {
		return "", err
	}
	return invocationID(v)
}

// fullName says why s is not the full name of a unit, or nil. What it lets
// through can stand in an object path and in a file name.
func fullName(s string) error {
	full, err := attach.UnitName(s)
	if err != nil {
		return err
	}
	if full != s {
		return errors.New("it is not the full name of a unit")
	}
	return nil
}

// shown is a unit's name for messages; what is none is quoted.
func shown(unit string) string {
	if fullName(unit) != nil {
		return strconv.Quote(unit)
	}
	return unit
}

// template looks for the unit file of a template. systemd refuses to load one.
func (s *Systemd) template(ctx context.Context, name string) (attach.Unit, error) {
	u := attach.Unit{ID: name, Names: []string{name}, LoadState: "not-found", ActiveState: "inactive", SubState: "dead"}
	files, err := s.listFiles(ctx, name)
	if err != nil {
		return u, err
	}
	for _, f := range files {
		if f.name() == name {
			u.LoadState, u.UnitFileState, u.FragmentPath = "stub", f.State, f.Path
			if strings.HasPrefix(f.State, "masked") {
				u.LoadState = "masked"
			}
		}
	}
	return u, nil
}

// properties reads all properties of a unit on one interface, or, with "", on
// all that the object has.
func (s *Systemd) properties(ctx context.Context, unit, iface string) (*props, error) {
	var m map[string]dbus.Variant
	if err := s.call(ctx, s.wait.call, pathOf(unit), propsIface+".GetAll", []any{iface}, &m); err != nil {
		return nil, err
	}
	return &props{m: m}, nil
}

// propertyNames are what is read of a unit's properties; nothing else is decoded
// of what systemd gives when it is asked for all.
var propertyNames = func() map[string]bool {
	names := map[string]bool{}
	for name := range strings.FieldsSeq(`
		Id Names LoadState LoadError ActiveState SubState Result UnitFileState FragmentPath SourcePath DropInPaths Transient NeedDaemonReload
		RefuseManualStop RefuseManualStart Type MainPID ControlPID ControlGroup NRestarts ExecMainCode ExecMainStatus InvocationID
		ExecMainPID ExecMainStartTimestamp ExecMainExitTimestamp ExecMainHandoffTimestamp
		CollectMode ConditionResult ConditionTimestamp AssertResult AssertTimestamp
		InactiveExitTimestamp InactiveExitTimestampMonotonic ActiveExitTimestamp Job
		AppArmorProfile Asserts PrivateTmp PrivateTmpEx PermissionsStartOnly DefaultDependencies NoNewPrivileges Delegate User PAMName
		RootDirectory RootImage RootDirectoryStartOnly TemporaryFileSystem BindPaths BindReadOnlyPaths MountImages After
		DynamicUser JoinsNamespaceOf RestrictAddressFamilies
		TriggeredBy CapabilityBoundingSet AmbientCapabilities SystemCallArchitectures SystemCallFilter`) {
		names[name] = true
	}
	for _, name := range namespaced {
		names[name] = true
	}
	for _, d := range directories {
		names[d.Property] = true
	}
	for _, name := range stoppers {
		names[name] = true
	}
	for _, name := range execLines {
		names[name], names[name+"Ex"] = true, true
	}
	return names
}()

func wantedProperty(name string) bool { return propertyNames[name] }

// props decodes properties and keeps the first one of a wrong type. One that
// is missing is the zero value: an older systemd does not have it.
type props struct {
	m   map[string]dbus.Variant
	err error
}

func read[T any](p *props, name string) T {
	var zero T
	v, ok := p.get(name)
	if !ok {
		return zero
	}
	t, ok := v.Value().(T)
	if !ok {
		p.fail(name, v)
		return zero
	}
	return t
}

// get finds a property. One that nobody said would be read is not among those
// that were decoded, and must not look as if systemd did not have it.
func (p *props) get(name string) (dbus.Variant, bool) {
	if !propertyNames[name] && p.err == nil {
		p.err = fmt.Errorf("property %s is read, and propertyNames does not name it", name)
	}
	v, ok := p.m[name]
	return v, ok
}

func (p *props) fail(name string, v dbus.Variant) {
	if p.err == nil {
		p.err = fmt.Errorf("systemd gives property %s as %q, which is not its type", name, v.Signature().String())
	}
}

// rows reads an array of structures whose fields look like the given values;
// further fields are left alone. A variant's array of structures decodes to
// [][]any.
func (p *props) rows(name string, like ...any) [][]any {
	v, ok := p.get(name)
	if !ok {
		return nil
	}
	rows, ok := v.Value().([][]any)
	if !ok {
		p.fail(name, v)
		return nil
	}
	for _, r := range rows {
		if !alike(r, like) {
			p.fail(name, v)
			return nil
		}
	}
	return rows
}

func (p *props) row(name string, like ...any) []any {
	v, ok := p.get(name)
	if !ok {
		return nil
	}
	r, ok := v.Value().([]any)
	if !ok || !alike(r, like) {
		p.fail(name, v)
		return nil
	}
	return r
}

func alike(r, like []any) bool {
	if len(r) < len(like) {
		return false
	}
	for i := range like {
		if reflect.TypeOf(r[i]) != reflect.TypeOf(like[i]) {
			return false
		}
	}
	return true
}

// stoppers are the dependencies along which systemd passes a stop or restart
// on (unit-dependency-atom.c: PROPAGATE_STOP, PROPAGATE_RESTART): Requires=,
// Requisite=, BindsTo= and PartOf= of others on the unit, and its
// PropagatesStopTo=.
var stoppers = []string{"RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf", "PropagatesStopTo"}

// decodeUnit makes a unit of its properties, without what is in files. deps are
// the units that a stop of it reaches.
func decodeUnit(p *props) (u attach.Unit, deps []string, err error) {
	u = attach.Unit{
		ID:             read[string](p, "Id"),
		Names:          read[[]string](p, "Names"),
		LoadState:      read[string](p, "LoadState"),
		ActiveState:    read[string](p, "ActiveState"),
		SubState:       read[string](p, "SubState"),
		Result:         read[string](p, "Result"),
		UnitFileState:  read[string](p, "UnitFileState"),
		FragmentPath:   read[string](p, "FragmentPath"),
		DropIns:        read[[]string](p, "DropInPaths"),
		Transient:      read[bool](p, "Transient"),
		NeedReload:     read[bool](p, "NeedDaemonReload"),
		RefuseStop:     read[bool](p, "RefuseManualStop"),
		RefuseStart:    read[bool](p, "RefuseManualStart"),
		Type:           read[string](p, "Type"),
		MainPID:        int(read[uint32](p, "MainPID")),
		ControlPID:     int(read[uint32](p, "ControlPID")),
		ControlGroup:   read[string](p, "ControlGroup"),
		NRestarts:      read[uint32](p, "NRestarts"),
		FailedStays:    read[string](p, "CollectMode") == "inactive",
		ExecMainCode:   int(read[int32](p, "ExecMainCode")),
		ExecMainStatus: int(read[int32](p, "ExecMainStatus")),
	}
	for _, name := range read[[]string](p, "TriggeredBy") {
		if strings.HasSuffix(name, ".socket") && fullName(name) == nil {
			u.Sockets = append(u.Sockets, name)
		}
	}
	slices.Sort(u.Sockets)
	if r := p.row("LoadError", "", ""); r != nil {
		u.LoadError = r[1].(string)
	}
	if v, ok := p.get("InvocationID"); ok {
		if u.InvocationID, err = invocationID(v); err != nil {
			p.fail("InvocationID", v)
		}
	}
	u.Settings = decodeSettings(p)
	u.Runs = decodeRuns(p)
	u.Left, u.Ceased = at(read[uint64](p, "InactiveExitTimestamp")), at(read[uint64](p, "ActiveExitTimestamp"))
	if _, u.HandoffTold = p.get("ExecMainHandoffTimestamp"); u.HandoffTold {
		u.Handoff = at(read[uint64](p, "ExecMainHandoffTimestamp"))
	}
	u.Condition, u.Assert = held(p, "Condition"), held(p, "Assert")
	for _, name := range stoppers {
		deps = append(deps, read[[]string](p, name)...)
	}
	if p.err != nil {
		return attach.Unit{}, nil, p.err
	}
	if u.ID == "" || u.LoadState == "" || u.ActiveState == "" {
		return attach.Unit{}, nil, errors.New("systemd's answer lacks Id, LoadState or ActiveState")
	}
	return u, deps, nil
}

// directories are the settings that have systemd make directories, and where
// (systemd.exec(5), "RuntimeDirectory=").
var directories = []attach.Directory{
	{Property: "RuntimeDirectory", Path: "/run"}, {Property: "StateDirectory", Path: "/var/lib"}, {Property: "CacheDirectory", Path: "/var/cache"},
	{Property: "LogsDirectory", Path: "/var/log"}, {Property: "ConfigurationDirectory", Path: "/etc", ReadOnly: true},
}

// namespaced are settings that give a unit a mount namespace of its own, unless
// they are off (systemd.exec(5), "Sandboxing").
var namespaced = []string{"ProtectSystem", "ProtectHome", "PrivateDevices", "PrivateMounts", "ProtectKernelTunables", "ProtectControlGroups"}

// policySettings are what the policy is compared with.
func policySettings(p *props, s *attach.Settings) {
	s.DynamicUser = read[bool](p, "DynamicUser")
	s.JoinsNamespaceOf = read[[]string](p, "JoinsNamespaceOf")
	s.Bounding, s.Ambient = read[uint64](p, "CapabilityBoundingSet"), read[uint64](p, "AmbientCapabilities")
	s.Architectures = read[[]string](p, "SystemCallArchitectures")
	if r := p.row("SystemCallFilter", false, []string{}); r != nil {
		s.RefusesBPF = refusesBPF(r[0].(bool), r[1].([]string))
	}
	s.MountNamespace = s.RootDirectory != ""
	for _, name := range namespaced {
		v, ok := p.get(name)
		if !ok {
			continue
		}
		switch set := v.Value().(type) {
		case bool:
			s.MountNamespace = s.MountNamespace || set
			s.ProtectControlGroups = s.ProtectControlGroups || set && name == "ProtectControlGroups"
		case string:
			s.MountNamespace = s.MountNamespace || set != "" && set != "no"
		default:
			p.fail(name, v)
		}
	}
	for _, d := range directories {
		for _, name := range read[[]string](p, d.Property) {
			s.Directories = append(s.Directories, attach.Directory{Property: d.Property, Path: d.Path + "/" + name, ReadOnly: d.ReadOnly})
		}
	}
	if r := p.row("RestrictAddressFamilies", false, []string{}); r != nil {
		f := &attach.AddressFamilies{AllowList: r[0].(bool), Families: r[1].([]string)}
		if f.AllowList || len(f.Families) > 0 {
			s.AddressFamilies = f
		}
	}
}

// refusesBPF reads SystemCallFilter=: of a list of what is allowed, or else refused, each
// name of a system call, with what is answered behind a colon (property_get_syscall_filter
// in systemd's src/core/dbus-execute.c).
func refusesBPF(allowList bool, calls []string) bool {
	return allowList != slices.ContainsFunc(calls, func(call string) bool {
		name, _, _ := strings.Cut(call, ":")
		return name == "bpf"
	})
}

func decodeSettings(p *props) attach.Settings {
	s := attach.Settings{
		PrivateTmp:           privateTmp(p),
		Exec:                 decodeExec(p),
		PermissionsStartOnly: read[bool](p, "PermissionsStartOnly"),
		DefaultDependencies:  read[bool](p, "DefaultDependencies"),
		NoNewPrivileges:      read[bool](p, "NoNewPrivileges"),
		Delegate:             read[bool](p, "Delegate"),
		User:                 read[string](p, "User"),
		PAMName:              read[string](p, "PAMName"),
		RootDirectory:        read[string](p, "RootDirectory"),
		After:                read[[]string](p, "After"),
	}
	_, s.KnowsDisconnected = p.get("PrivateTmpEx")
	if s.RootDirectory == "" {
		s.RootDirectory = read[string](p, "RootImage")
	}
	s.RootDirectoryStartOnly = read[bool](p, "RootDirectoryStartOnly")
	s.Mounts = decodeMounts(p)
	policySettings(p, &s)
	confining(p, &s)
	return s
}

// decodeMounts reads what systemd mounts for a unit's commands, those with a "+"
// included: of what it passes to setup_namespace these do not depend on needs_sandboxing
// (apply_mount_namespace in its src/core/execute.c, 252, and exec-invoke.c, 255). MS_REC
// is the only flag that it gives of a bind mount.
func decodeMounts(p *props) (out []attach.Mount) {
	for _, r := range p.rows("TemporaryFileSystem", "", "") {
		out = append(out, attach.Mount{Property: "TemporaryFileSystem", Path: r[0].(string)})
	}
	for _, name := range []string{"BindPaths", "BindReadOnlyPaths"} {
		for _, r := range p.rows(name, "", "", false, uint64(0)) {
			out = append(out, attach.Mount{Property: name, Source: r[0].(string), Path: r[1].(string),
				ReadOnly: name == "BindReadOnlyPaths", Flat: r[3].(uint64)&unix.MS_REC == 0})
		}
	}
	for _, r := range p.rows("MountImages", "", "", false) {
		out = append(out, attach.Mount{Property: "MountImages", Path: r[1].(string)})
	}
	return out
}

// confining reads which profile a unit has, and whether it starts without AppArmor.
func confining(p *props, s *attach.Settings) {
	// (bs): "-" and the name.
	if r := p.row("AppArmorProfile", false, ""); r != nil {
		s.IgnoreMissing, s.Profile = r[0].(bool), r[1].(string)
	}
	// name, trigger ("|"), negated ("!"), parameter, state. Triggers count only
	// together: one that holds is enough for all of them.
	for _, r := range p.rows("Asserts", "", false, false, "") {
		if r[0].(string) == "AssertSecurity" && !r[1].(bool) && !r[2].(bool) && r[3].(string) == "apparmor" {
			s.AssertAppArmor = true
		}
	}
}

// privateTmp reads PrivateTmpEx, which knows "disconnected", or PrivateTmp of
// a systemd before 257.
func privateTmp(p *props) attach.PrivateTmp {
	if _, ok := p.get("PrivateTmpEx"); ok {
		switch v := read[string](p, "PrivateTmpEx"); v {
		case "", "no":
			return attach.PrivateTmpNo
		case "connected", "yes":
			return attach.PrivateTmpYes
		case "disconnected":
			return attach.PrivateTmpDisconnected
		default:
			p.fail("PrivateTmpEx", p.m["PrivateTmpEx"])
			return attach.PrivateTmpNo
		}
	}
	if read[bool](p, "PrivateTmp") {
		return attach.PrivateTmpYes
	}
	return attach.PrivateTmpNo
}

// execLines are the settings with command lines, in the order in which they run.
var execLines = []string{"ExecCondition", "ExecStartPre", "ExecStart", "ExecStartPost", "ExecReload", "ExecReloadPost", "ExecStop", "ExecStopPost"}

// decodeExec reads command lines: path, arguments, flags, four times, PID, code
// and status. Without the …Ex properties (systemd before 243) the "+" of a line
// cannot be seen.
func decodeExec(p *props) []attach.ExecCommand {
	var out []attach.ExecCommand
	for _, name := range execLines {
		var t uint64
		if _, ok := p.get(name + "Ex"); ok {
			for _, r := range p.rows(name+"Ex", "", []string(nil), []string(nil), t, t, t, t, uint32(0)) {
				flags := r[2].([]string)
				out = append(out, attach.ExecCommand{
					Property: name, Path: r[0].(string), Argv: r[1].([]string), PID: int(r[7].(uint32)),
					Privileged:    slices.Contains(flags, "privileged") || slices.Contains(flags, "fully-privileged"),
					IgnoreFailure: slices.Contains(flags, "ignore-failure"),
				})
			}
			continue
		}
		for _, r := range p.rows(name, "", []string(nil), false, t, t, t, t, uint32(0)) {
			out = append(out, attach.ExecCommand{
				Property: name, Path: r[0].(string), Argv: r[1].([]string), PID: int(r[7].(uint32)), IgnoreFailure: r[2].(bool),
			})
		}
	}
	return out
}

// decodeRuns reads how the unit's commands last ended. Of the main process there
// are properties of its own; it is one of ExecStart=.
func decodeRuns(p *props) []attach.Run {
	main := attach.Run{Property: "ExecStart", PID: int(read[uint32](p, "ExecMainPID")), Code: int(read[int32](p, "ExecMainCode")), Status: int(read[int32](p, "ExecMainStatus")),
		Began: at(read[uint64](p, "ExecMainStartTimestamp")), Ended: at(read[uint64](p, "ExecMainExitTimestamp"))}
	var out []attach.Run
	var t uint64
	for _, name := range execLines {
		ex, list := p.rows(name+"Ex", "", []string(nil), []string(nil), t, t, t, t, uint32(0), int32(0), int32(0)), true
		if len(ex) == 0 {
			ex, list = p.rows(name, "", []string(nil), false, t, t, t, t, uint32(0), int32(0), int32(0)), false
		}
		for _, r := range ex {
			run := attach.Run{Property: name, Path: r[0].(string), Began: at(r[3].(uint64)), Ended: at(r[5].(uint64)),
				PID: int(r[7].(uint32)), Code: int(r[8].(int32)), Status: int(r[9].(int32))}
			if list {
				run.IgnoreFailure = slices.Contains(r[2].([]string), "ignore-failure")
			} else {
				run.IgnoreFailure = r[2].(bool)
			}
			switch {
			case name == "ExecStart" && (main.Path == "" || run.PID == main.PID):
				main.Path, main.IgnoreFailure = run.Path, run.IgnoreFailure
			case name != "ExecStart" && run.PID != 0:
				out = append(out, run)
			}
		}
	}
	if main.PID != 0 {
		out = slices.Insert(out, 0, main)
	}
	return out
}

// at reads a time of systemd's: microseconds since 1970, 0 for never.
func at(us uint64) time.Time {
	if us == 0 || us > math.MaxInt64 {
		return time.Time{}
	}
	return time.UnixMicro(int64(us))
}

// held says whether the lines of a kind, Condition or Assert, held when they were
// last looked at, which is when the unit was to be started.
func held(p *props, kind string) attach.Tri {
	if read[uint64](p, kind+"Timestamp") == 0 {
		return attach.CouldNotTell
	}
	return attach.TriOf(read[bool](p, kind+"Result"))
}

// invocationID reads the 16 bytes of an InvocationID; none, or all zero, is "".
func invocationID(v dbus.Variant) (string, error) {
	b, ok := v.Value().([]byte)
	if !ok || (len(b) != 0 && len(b) != 16) {
		return "", fmt.Errorf("systemd gives the InvocationID as %q, which is not its type", v.Signature().String())
	}
	if !slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
		return "", nil
	}
	return hex.EncodeToString(b), nil
}

// maxReach bounds how many units are looked at for RestartsWith, those that
// turn out to be inactive among them. It is far above what machines have, since
// the one unit that must not be restarted may be the last that is reached.
const maxReach = 4096

// restartsWith follows a stop of a unit to all active units that it reaches.
// An inactive unit neither notices nor passes it on. For most units deps is
// empty, and systemd is not asked anything. unknown says that it reaches more
// than were looked at.
func (s *Systemd) restartsWith(ctx context.Context, unit string, deps []string) (out []string, unknown bool, err error) {
	seen := map[string]bool{unit: true}
	for len(deps) > 0 && !unknown {
		var todo []string
		for _, d := range deps {
			switch {
			case seen[d]:
			case len(seen) > maxReach || fullName(d) != nil:
				unknown = true
			default:
				seen[d] = true
				todo = append(todo, d)
			}
		}
		deps = nil
		if len(todo) == 0 {
			break
		}
		var states []listedUnit
		if err := s.call(ctx, s.wait.call, managerPath, managerIface+".ListUnitsByNames", []any{todo}, &states); err != nil {
			return nil, false, err
		}
		for _, st := range states {
			if st.ActiveState == "inactive" || st.ActiveState == "failed" {
				continue
			}
			out = append(out, st.Name)
			if unknown {
				continue // how far it reaches from there does not count any more
			}
			p, err := s.properties(ctx, st.Name, unitIface)
			if err != nil {
				return nil, false, err
			}
			for _, name := range stoppers {
				deps = append(deps, read[[]string](p, name)...)
			}
			if p.err != nil {
				return nil, false, p.err
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), unknown, nil
}
