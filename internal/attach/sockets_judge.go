package attach

import (
	"fmt"
	"slices"
	"strings"
)

// StartsSockets reports whether a command line is that of the start helper, as the
// drop-in has it: what runs there without the profile is aaunit's own.
func (c ExecCommand) StartsSockets() bool {
	return c.Property == "ExecStartPre" && c.Path == SocketHelper && len(c.Argv) > 1 && c.Argv[0] == SocketHelper
}

// startsSockets reports whether the helper is run before each start of a unit, so
// that a start fails with it where it must. systemd does not tell of the "+" of a
// .socket unit's lines.
func (s Settings) startsSockets(unit string, tellsPlus bool) bool {
	return slices.ContainsFunc(s.Exec, func(c ExecCommand) bool {
		return c.StartsSockets() && (c.Privileged || !tellsPlus) && slices.Equal(c.Argv[1:], []string{unit}) && !c.IgnoreFailure
	})
}

// helper reports whether a task is the start helper, which a line of ours runs.
func (s Settings) helper(t Task) bool {
	return t.Exe == SocketHelper && slices.ContainsFunc(s.Exec, func(c ExecCommand) bool { return c.Privileged && c.StartsSockets() })
}

// helperDue reports whether the start helper may still be to run: systemd is at the
// commands before the program, of which it is the last, or began another start while
// the unit was looked at. What the kernel has then says nothing about the start.
func (o Observed) helperDue() bool {
	switch {
	case o.Unit.SubState == "condition", o.Unit.SubState == "start-pre":
		return true
	}
	return o.Scan != nil && o.Scan.After != "" && o.Scan.After != o.Scan.Before
}

// awaited reports whether what is seen of the unit itself is yet to be made so by the
// start helper.
func (o Observed) awaited(seen SocketsSeen) bool {
	return seen.Unit == o.Unit.ID && (seen.Attached == No || seen.Rules == No) && o.helperDue()
}

// SocketsAmiss finds what is not attached as declared, or not with the declared rules,
// and a plan puts right; nil is nothing.
func (o Observed) SocketsAmiss() *SocketsSeen {
	for i, seen := range o.Sockets {
		if (seen.Attached == No || seen.Rules == No) && !o.awaited(seen) {
			return &o.Sockets[i]
		}
	}
	return nil
}

// socketDropIn is where the drop-in of a .socket unit belongs.
func (d Desired) socketDropIn(unit string) string { return DropInPath(unit, d.Attachment.Runtime) }

// RulesName is the name under which the start helper finds the unit's rules: the one
// whose drop-in directory the line is in.
func (d Desired) RulesName() string { return d.Attachment.Placement(d.Unit) }

// FoundFirst reports whether the start helper would take rules of that name before those
// of RulesName, which is for the unit itself, its template, and prefixes of it, the longer
// ones first.
func (d Desired) FoundFirst(name string) bool {
	return Attachment{Units: []string{name}}.Closer(Attachment{Units: []string{d.RulesName()}}, d.Unit)
}

// diffSocketDropIns plans the drop-ins of the .socket units that start a service, and
// lists the paths that are to stay.
func diffSocketDropIns(p *Plan, d Desired, o Observed) (wanted []string) {
	if d.Attachment.SocketsWanted() == nil {
		return nil
	}
	text := SocketDropIn(*d.Attachment)
	for _, s := range o.SocketUnits {
		file := d.socketDropIn(s.ID)
		wanted = append(wanted, file)
		switch {
		case !s.DropIn.Exists:
			p.add(WriteDropIn, file, because(DropInMissing, "%s does not exist", file))
		case s.DropIn.Content != text:
			p.add(WriteDropIn, file, because(DropInDiffers, "%s is not what the attachment asks for", file))
		}
	}
	if o.SocketsProblem != "" { // what is there stays
		for _, file := range d.Record.DropIns.Paths() {
			if file != d.DropInPath() {
				wanted = append(wanted, file)
			}
		}
	}
	return wanted
}

// diffSockets plans what makes the rules hold for what runs now. A start takes them
// by itself.
func diffSockets(p *Plan, d Desired, o Observed) {
	want := d.Attachment.SocketsWanted()
	if want == nil {
		if len(d.Record.SocketUnits) > 0 {
			p.add(ReleaseSockets, d.Unit, because(SocketsReleased, "%s asks for no rules for socket options", d.Attachment.Source))
		}
		return
	}
	if d.Record.Sockets == nil || !d.Record.Sockets.Same(*want) {
		p.add(HoldSockets, d.Unit, because(SocketsChanged, "%s says what socket options %s may set", d.Attachment.Source, d.Unit))
		return
	}
	if seen := o.SocketsAmiss(); seen != nil {
		p.add(HoldSockets, d.Unit, because(SocketsNotHeld, "%s: %s", seen.Unit, seen.Why))
		return
	}
	for _, s := range o.SocketUnits {
		if !slices.Contains(d.Record.SocketUnits, s.ID) {
			p.add(HoldSockets, d.Unit, because(SocketsChanged, "%s starts %s, and its sockets are held to the same rules", s.ID, d.Unit))
			return
		}
	}
}

// Same reports whether two sections mean the same, whatever their reasons and lines.
func (s SocketOptions) Same(t SocketOptions) bool {
	return s.Mode == t.Mode && s.Requires() == t.Requires() && s.lists() == t.lists()
}

// lists puts both lists into one text, whatever their reasons, order and places in the
// file.
func (s SocketOptions) lists() string {
	names := func(list []AllowedOption) string {
		var out []string
		for _, o := range list {
			out = append(out, o.Option)
		}
		slices.Sort(out)
		return strings.Join(out, ",")
	}
	return "allow " + names(s.Allow) + "; get " + names(s.AllowGet)
}

// socketObstacles looks at what the rules for socket options would not reach.
func socketObstacles(d Desired, o Observed) (refusals, warnings []Reason) {
	want := d.Attachment.SocketsWanted()
	if want == nil {
		return nil, nil
	}
	for _, why := range unheldAll(d, o) {
		switch {
		case !want.Requires():
			why.Detail += "; its starts go on without, and aaunitd attaches the programs once it sees one"
			warnings = append(warnings, why)
		case d.requiredBefore():
			why.Detail += "; its next start will fail"
			warnings = append(warnings, why)
		default:
			refusals = append(refusals, why)
		}
	}
	for _, s := range o.SocketUnits {
		file := d.socketDropIn(s.ID)
		switch {
		case s.DropIn.Problem != "":
			refusals = append(refusals, because(DropInUnreadable, "%s", s.DropIn.Problem).at(file))
		case s.DropIn.Exists && !s.DropIn.Ours && !wroteSocketDropIn(s.DropIn.Content, want.Requires()):
			refusals = append(refusals, because(DropInForeign, "%s exists and aaunit did not write it", file).at(file).next("remove or rename it"))
		case s.HeldFor != "":
			refusals = append(refusals, because(SocketsDisputed, "%s starts %s, too, and is held to the rules for socket options of that one, which are others", s.ID, s.HeldFor).
				at(d.Attachment.Source).next("say the same under [SocketOptions] as "+s.HeldFor+" has, or give "+d.Unit+" a .socket unit of its own"))
		}
	}
	if o.SocketsProblem != "" {
		warnings = append(warnings, because(SocketsUnknown, "the .socket units of %s could not be looked at: %s", d.Unit, o.SocketsProblem))
	}
	s := o.Unit.Settings
	if !slices.Equal(s.Architectures, []string{"native"}) {
		w := because(SocketsForeignCalls, "%s may make system calls of another architecture, whose socket options are neither recorded nor refused", d.Unit).at(o.Unit.FragmentPath)
		if s.NoNewPrivileges || s.User == "" || s.User == "root" {
			w = w.next("SystemCallArchitectures=native in the unit closes it")
		}
		warnings = append(warnings, w)
	}
	if s.PAMName != "" {
		warnings = append(warnings, because(SocketsForeignCalls, "PAMName=%s may take the program of %s to a session, where its socket options are neither recorded nor refused", s.PAMName, d.Unit).at(o.Unit.FragmentPath))
	}
	if want.Mode == SocketsEnforce && s.GainsBPF() && o.MayBPF != No {
		warnings = append(warnings, gain(d, o))
	}
	return refusals, warnings
}

// SocketBlindSpots is what no [SocketOptions] reaches, whatever the unit: for a check,
// since attaching it makes none of it worse.
func SocketBlindSpots(a Attachment) []Reason {
	if a.SocketsWanted() == nil {
		return nil
	}
	return []Reason{because(SocketsForeignCalls, "neither recorded nor refused are options that come as control messages beside data, "+
		"those of sockets that were made in another unit (passed on to this one, or by a client of its unix server), "+
		"SO_PEERPIDFD, which the kernel answers before the programs are asked, and ExecStartPre= commands of the unit's own that come before the start helper").at(a.Source)}
}

// gain is what there is to say of a unit that could gain what would open its list.
// Nearly every service could by its settings, so it is advice and no doubt.
func gain(d Desired, o Observed) Reason {
	what := "its profile allows CAP_BPF or CAP_SYS_ADMIN"
	if o.MayBPF != Yes {
		what = "whether its profile allows CAP_BPF or CAP_SYS_ADMIN could not be told"
	}
	return because(SocketsGain, "a set-uid program that %s runs could take the list of its socket options off: %s, and NoNewPrivileges= is not set", d.Unit, what).
		next("NoNewPrivileges=yes in " + d.Unit + " costs nothing where it runs no such program")
}

// The capabilities by which a program can change what holds it, see
// capabilities(7).
const (
	capSysAdmin = 1 << 21
	capBPF      = 1 << 39
	changesBPF  = capSysAdmin | capBPF

	capDACOverride = 1 << 1
	capSetUID      = 1 << 7
	opensPins      = capDACOverride | capSetUID
)

// HoldsBPF reports whether the unit's program is started with a capability that lets
// it change the kernel's BPF tables, unless its profile forbids that.
func (s Settings) HoldsBPF() bool {
	if s.root() {
		return s.Bounding&changesBPF != 0
	}
	return s.Ambient&changesBPF != 0
}

// root reports whether the unit's program is started as root.
func (s Settings) root() bool {
	return s.User == "" && !s.DynamicUser || s.User == "root" || s.User == "0"
}

// OpensPins reports whether the unit's program, as it runs, may open the programs and tables that are
// pinned for socket options, of any unit, and change them. That takes no capability:
// bpf(2) opens a pin for whom its mode lets, which is root, and whoever has a table open
// may write it, and a link detach it (bpf_obj_do_get in the kernel's kernel/bpf/inode.c;
// kernel.unprivileged_bpf_disabled only keeps from making new ones on Linux 6.1 and later).
// AppArmor is asked about none of it. A test tries it on each kernel
// (TestVMRootNeedsNoCapabilityToChangeItsList in internal/sockopt). A mount over the place
// keeps nobody from it who may look into the root directory of another process.
func OpensPins(d Desired, o Observed) bool { return !refusesBPF(d, o) && o.ActsAsRoot() }

// actsAsRoot reports whether the unit's program is started as root for the modes of files,
// or can come to be.
func (s Settings) actsAsRoot() bool { return s.root() || s.Ambient&opensPins != 0 }

// ActsAsRoot reports the same of the program that runs. The settings are those of the
// next start once somebody has changed them, so its main process is asked, too, or all of
// its processes where it has none.
func (o Observed) ActsAsRoot() bool { return o.Unit.Settings.actsAsRoot() || o.Main.Root != No }

// refusesBPF reports whether the start that runs cannot call bpf(2). Of a filter the kernel
// tells no more than that there is one, so none of this may speak against it: that an
// earlier look saw this start without, and that a file of the unit changed since.
func refusesBPF(d Desired, o Observed) bool {
	u := o.Unit
	return u.Settings.RefusesBPF && o.Main.Filtered == Yes && (u.InvocationID == "" || d.Record.Unfiltered != u.InvocationID) && !u.FilesChanged.After(u.Left)
}

// rootly says in what way the program acts as root.
func (o Observed) rootly() string {
	switch {
	case o.Unit.Settings.actsAsRoot():
		return "runs as root, or can come to"
	case o.Main.Root == Yes:
		return "was started as root, or so that it can come to be, which its settings do not say any more"
	case o.Unit.MainPID == 0:
		return "may run as root, which could not be told of its processes"
	}
	return "may run as root, which could not be told of its main process"
}

// fromNextStart is what to do about a setting: set has it that the unit has it already,
// and is to be started again.
func fromNextStart(set bool, setting, unit string) string {
	if set {
		return "systemctl restart " + unit + ", which has " + setting + " from its next start on"
	}
	return setting + " in " + unit + " and a restart of it"
}

// What is asked of the policy of a unit that acts as root: there are ways off its list by
// writing a file, for which bpf(2) is not called and no capability is looked at. AppArmor
// is asked about both. Where a link to a program is removed (unlink(2)) that is pinned
// nowhere else, the program is taken off the control group; and a task that moves to another
// control group makes its sockets there.
var (
	WritesPins   = Assertion{Class: AssertFile, Access: []string{"write"}, Object: "/sys/fs/bpf/aaunit/{,**}", Text: "write /sys/fs/bpf/aaunit"}
	WritesGroups = Assertion{Class: AssertFile, Access: []string{"write"}, Object: "/sys/fs/cgroup/{,**/}cgroup.procs", Text: "write cgroup.procs"}
)

// byFiles says how a unit that acts as root could get off its list by writing files.
func byFiles(d Desired, o Observed, say func(c Code, format string, args ...any) Reason) (out []Reason) {
	add := func(may Tri, way, next string) {
		switch may {
		case Yes:
			out = append(out, say(SocketsOpen, "%s %s, and its profile lets it %s", d.Unit, o.rootly(), way).next(next))
		case CouldNotTell:
			out = append(out, say(SocketsOpen, "%s %s, and whether its profile lets it %s could not be told", d.Unit, o.rootly(), way).next(next))
		}
	}
	add(o.MayUnpin, "remove the programs for its socket options from /sys/fs/bpf/aaunit", "take the right to write /sys/fs/bpf out of the profile")
	if set := o.Unit.Settings.ProtectControlGroups; !set || o.Main.GroupsClosed != Yes {
		add(o.MayMoveOut, "leave its control group, and with it the rules for its socket options, by another one's cgroup.procs",
			fromNextStart(set, "ProtectControlGroups=yes", d.Unit)+", or take the right to write /sys/fs/cgroup out of the profile")
	}
	return out
}

// GainsBPF reports whether what the program executes could gain such a capability,
// from a set-uid bit or file capabilities: both give nothing that is not in the
// bounding set, and nothing at all with no_new_privs (capabilities(7), "Transformation
// of capabilities during execve()"). Settings that imply NoNewPrivileges= are not
// looked at.
func (s Settings) GainsBPF() bool {
	return !s.HoldsBPF() && !s.NoNewPrivileges && s.Bounding&changesBPF != 0
}

// judgeSockets says of the socket options what the kernel said. Where they are not
// required, nobody vouches for a list: it is unknown that it holds. A recording that is
// not required claims nothing, and is told of in a note.
func judgeSockets(d Desired, o Observed) (out []Reason) {
	want := d.Attachment.SocketsWanted()
	if want == nil {
		return nil
	}
	say := func(c Code, format string, args ...any) Reason {
		switch {
		case want.Requires():
		case want.Mode == SocketsRecord:
			c = SocketsNote
		case c == TasksUnstable:
		default:
			c = SocketsUnknown
		}
		return because(c, format, args...)
	}
	if o.SocketsProblem != "" {
		out = append(out, say(SocketsUnknown, "the .socket units of %s could not be looked at: %s", d.Unit, o.SocketsProblem))
	}
	for _, s := range o.SocketUnits {
		if !(Settings{Exec: s.Exec}).startsSockets(s.ID, false) && want.Requires() {
			out = append(out, because(SocketsOverridden, "%s does not run the start helper of its socket options", s.ID).at(d.socketDropIn(s.ID)))
		}
	}
	running := o.Scan != nil && len(o.Scan.Tasks) > 0
	asked := false
	for _, seen := range o.Sockets {
		asked = asked || seen.Unit == d.Unit
		switch {
		case o.awaited(seen):
			out = append(out, say(TasksUnstable, "the start helper of the socket options of %s has not run yet", seen.Unit))
		case seen.Attached == No, seen.Rules == No:
			out = append(out, say(SocketsNotHeld, "the socket options of %s are not as declared: %s", seen.Unit, orUnsaid(seen.Why)))
		case seen.Attached != Yes, seen.Rules != Yes:
			out = append(out, say(SocketsUnknown, "whether the socket options of %s are as declared could not be told: %s", seen.Unit, orUnsaid(seen.Why)).next(seen.Next))
		}
	}
	if running && !asked {
		out = append(out, say(SocketsUnknown, "whether the socket options of %s are as declared could not be told: systemd gives it no control group", d.Unit))
	}
	switch s := o.Unit.Settings; {
	case !running:
	// Whatever RefusesBPF says: with CAP_SYS_ADMIN it can pass for systemd, too (by_systemd
	// in internal/sockopt/bpf).
	case s.HoldsBPF() && o.MayBPF != No:
		what := "its profile allows it"
		if o.MayBPF == CouldNotTell {
			what = "whether its profile allows it could not be told"
		}
		out = append(out, say(SocketsOpen, "%s runs with CAP_BPF or CAP_SYS_ADMIN, and %s: it can change the rules for its socket options", d.Unit, what).
			next(fmt.Sprintf("CapabilityBoundingSet=~CAP_BPF CAP_SYS_ADMIN in %s, or take the capability out of the profile", d.Unit)))
	case want.Mode == SocketsEnforce && OpensPins(d, o):
		out = append(out, say(SocketsOpen, "%s %s: without any capability it can change the rules for its socket options by bpf(2), which AppArmor does not mediate", d.Unit, o.rootly()).
			next(fromNextStart(s.RefusesBPF, "SystemCallFilter=~bpf", d.Unit)))
	}
	if running && want.Mode == SocketsEnforce && o.ActsAsRoot() {
		out = append(out, byFiles(d, o, say)...)
	}
	// What the profile does not allow is no gain, and what is not known is not told at
	// every look.
	if running && want.Mode == SocketsEnforce && o.Unit.Settings.GainsBPF() && o.MayBPF == Yes {
		out = append(out, gain(d, o))
	}
	return out
}
