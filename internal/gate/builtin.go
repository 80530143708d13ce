package gate

import (
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// writing are the permissions with which something comes to be at a path, or is
// changed there.
const writing = policydb.Writes

// A place is what must not be written.
type place struct {
	code    attach.Code
	pattern string
	// as is whose files: what belongs to the task's own user may be another
	// question.
	as   policydb.Who
	what string
	// needs is a capability without which the kernel refuses it all the same, 0 none.
	needs int
	// of says which units it is asked of; nil is all.
	of func(*asking) bool
	// told: it keeps no policy from going live.
	told bool
}

// Capabilities by the kernel's number.
const (
	capSysPtrace = 19
	capMacAdmin  = 33
)

// places are the same for every policy. The patterns have no variables: the paths
// are where Debian, systemd and aaunit have them.
var places = []place{
	{code: attach.MayWriteTmp, pattern: "/dev/shm/**", as: policydb.Other, what: "/dev/shm, whoever owns the file"},
	{code: attach.MayWritePolicy, pattern: "/etc/apparmor{,.d}/{,**}", as: policydb.Either, what: "AppArmor's own files"},
	{code: attach.MayWritePolicy, pattern: "/var/cache/apparmor/{,**}", as: policydb.Either, what: "AppArmor's cache, out of which compiled policy is loaded at boot"},
	// aa_may_manage_policy asks for the capability (security/apparmor/policy.c).
	{code: attach.MayWritePolicy, pattern: "/sys/kernel/security/apparmor/{.load,.replace,.remove}", as: policydb.Either, what: "the files that load policy into the kernel, and has the capability mac_admin", needs: capMacAdmin},
	{code: attach.MayWritePolicy, pattern: "/{run,usr/lib,lib,usr/local/lib}/systemd/{system,user,system.control,transient,generator,generator.early,generator.late,system-generators,user-generators,system.attached}{,.conf}/**", as: policydb.Either, what: "systemd's unit files"},
	{code: attach.MayWritePolicy, pattern: "/etc/systemd/{,**}", as: policydb.Either, what: "systemd's configuration and unit files"},
	{code: attach.MayWritePolicy, pattern: "/{etc/aaunit,usr/lib/aaunit,run/aaunit,var/lib/aaunit}/{,**}", as: policydb.Either, what: "aaunit's files"},
	{code: attach.MayWritePolicy, pattern: "/usr/{sbin/aaunitd,bin/aaunitctl,share/dbus-1/system{.d,-services}/org.aaunit1.*,share/polkit-1/actions/org.aaunit1.policy}", as: policydb.Either, what: "aaunit's programs, and who may use them"},
	{code: attach.MayWritePolicy, pattern: attach.WritesPins.Object, as: policydb.Either, what: "what holds socket options to their lists", of: (*asking).asRoot},
	{code: attach.MayLeaveGroup, pattern: attach.WritesGroups.Object, as: policydb.Either, what: "the list of a control group's processes, and so leave the unit's", told: true,
		of: func(a *asking) bool { return a.asRoot() && !a.Unit.Settings.ProtectControlGroups }},
	{code: attach.MayWriteKeys, pattern: "/{root,home/*}/.ssh/**", as: policydb.Other, what: "ssh keys of other users"},
	// Not "/proc/sys/**": change_profile rules bring "/proc/*/attr/exec w".
	{code: attach.MayWriteSysctl, pattern: "/proc/sys/{abi,crypto,debug,dev,fs,kernel,net,sunrpc,user,vm,xen}/**", as: policydb.Either, what: "kernel settings"},
	{code: attach.MayAskOthers, pattern: "/{etc/cron.{d,daily,hourly,monthly,weekly,yearly}/**,etc/crontab,etc/anacrontab,var/spool/{cron,at,anacron}/**}", as: policydb.Either, what: "what cron and at run"},
	{code: attach.MayAskOthers, pattern: "/{,var/}run/{docker.sock,containerd/**.sock,podman/podman.sock,crio/crio.sock,libvirt/libvirt-sock,lxd.socket}", as: policydb.Either, what: "the socket of a container engine"},
	{code: attach.MayAskOthers, pattern: "/{,var/}run/systemd/private", as: policydb.Either, what: "systemd's own socket"},
}

// builtIn asks what is asserted of every policy.
func (a *asking) builtIn() {
	a.whole = map[*policydb.Profile]bool{}
	for _, p := range a.asked {
		a.mode(p)
		if p.Mode == policydb.Unconfined {
			continue
		}
		// Every single path would say the same again, where it was said.
		if a.whole[p] = a.wholesale(p) && a.Desired.Attachment.Waived(attach.MayEverything) == nil; !a.whole[p] {
			for _, pl := range places {
				s := attach.Error
				if pl.told {
					s = attach.Warning
				}
				if (pl.needs == 0 || p.Capability(pl.needs) != policydb.No) && (pl.of == nil || pl.of(a)) {
					a.mustNotWrite(p, pl, s)
				}
			}
			a.sharedTmp(p)
		}
		a.leaves(p)
		a.traces(p)
		a.others(p)
		a.userns(p)
		a.system(p)
	}
	if len(a.asked) > 0 {
		a.network(a.asked[0])
	}
}

// mode is about what becomes of a denial. The compiled policy is asked, and not the
// flags in the text: whose they are does not show where a name has variables, nor in a
// profile that no list of a file's profiles has.
func (a *asking) mode(p *policydb.Profile) {
	switch p.Mode {
	case policydb.Unconfined:
		a.find(attach.Error, p, "", nil, attach.Because(attach.ProfileUnconfined, "profile %s has the mode unconfined: it takes nothing from its tasks", p.Name).
			WithNext("take unconfined, or default_allow, out of its flags"))
	case policydb.Complain:
		if a.Desired.Attachment.Mode != attach.WishComplain {
			a.find(attach.Error, p, "", nil, attach.Because(attach.ProfileComplain, "profile %s is in complain mode", p.Name).WithNext(attach.EnforceStep(a.text(p))))
		}
	case policydb.Prompt:
		if a.Desired.Attachment.Mode != attach.WishComplain {
			a.find(attach.Error, p, "", nil, attach.Because(attach.ProfileComplain, "profile %s is in prompt mode: what it does not allow happens where somebody says so", p.Name).
				WithNext("take prompt out of its flags"))
		}
	}
}

// network says of a profile that allows no sockets of the internet that it does;
// abstractions/base brings those of this machine.
func (a *asking) network(p *policydb.Profile) {
	for _, family := range []uint16{2, 10} { // AF_INET, AF_INET6
		if _, answer := p.AnyNetwork(family, policydb.NetCreate); answer != policydb.No {
			return
		}
	}
	a.find(attach.Note, p, "", nil, attach.Because(attach.MayNoNetwork, "profile %s allows no socket of inet or inet6", p.Name).
		WithNext("if the program needs the network, add: network inet stream, network inet6 stream,"))
}

func (a *asking) mustNotWrite(p *policydb.Profile, pl place, s attach.Severity) {
	r := a.search(p, "write "+pl.as.String()+" "+pl.pattern, func() policydb.Result {
		pattern, err := a.gate.pattern(pl.pattern)
		if err != nil {
			return policydb.Result{Why: err}
		}
		return p.Find(policydb.Query{Pattern: pattern, Any: writing, As: pl.as})
	})
	switch r.Answer {
	case policydb.Yes:
		a.find(s, p, r.Witness, files(r.Witness, writing, r.As), attach.Because(pl.code, "profile %s may write %s: %s", p.Name, pl.what, quoted(r.Witness)))
	case policydb.Unknown:
		a.unknown(p, pl.code, why(r))
	}
}

// unknown says that a built-in assertion could not be answered.
func (a *asking) unknown(p *policydb.Profile, c attach.Code, why string) {
	if a.Desired.Attachment.Waived(c) == nil {
		a.find(attach.Warning, p, "", nil, attach.Because(attach.AssertionUnknown, "whether profile %s passes %s could not be told: %s", p.Name, c, why))
	}
}

func why(r policydb.Result) string {
	if r.Why != nil {
		return r.Why.Error()
	}
	return "the compiled policy does not say"
}

// sharedTmp is about /tmp and /var/tmp, which everybody shares unless the unit
// has its own.
func (a *asking) sharedTmp(p *policydb.Profile) {
	s, which := attach.Error, "which all users share"
	switch joins := a.Unit.Settings.JoinsNamespaceOf; {
	case a.Unit.ID == "":
		s, which = attach.Warning, "which all users share unless the unit has PrivateTmp=yes, aaunit's default"
	case a.Desired.WantsPrivateTmp(a.Unit) && len(joins) == 0:
		return
	case a.Desired.WantsPrivateTmp(a.Unit):
		which = "which the unit shares with " + strings.Join(joins, ", ") + " (JoinsNamespaceOf=)"
	}
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		a.mustNotWrite(p, place{code: attach.MayWriteTmp, pattern: dir + "/**", as: policydb.Either, what: dir + ", " + which}, s)
	}
}

// leaves looks for ways out of every profile.
func (a *asking) leaves(p *policydb.Profile) {
	for _, way := range []struct {
		severity attach.Severity
		leads    func(policydb.Transition) bool
		text     string
	}{
		{attach.Error, func(t policydb.Transition) bool {
			return t.Kind == policydb.ExecUnconfined || t.Kind == policydb.ExecNamed && t.Target == attach.Unconfined
		}, "profile %s runs %s without any profile (%s)"},
		// PUx and the like: only where there is no such profile.
		{attach.Warning, func(t policydb.Transition) bool { return t.Kind != policydb.ExecUnconfined && t.OrUnconfined },
			"profile %s runs %s without any profile where it has none of its own (%s)"},
	} {
		r := a.execs(p, way.text, way.leads)
		switch r.Answer {
		case policydb.Yes:
			a.find(way.severity, p, r.Witness, execAs(r),
				attach.Because(attach.MayLeave, way.text, p.Name, quoted(r.Witness), r.Transition))
		case policydb.Unknown:
			a.unknown(p, attach.MayLeave, why(r))
		}
	}
	if p.MayChangeProfile(attach.Unconfined) == policydb.Yes {
		a.find(attach.Error, p, attach.Unconfined, changeTo(attach.Unconfined), attach.Because(attach.MayLeave, "profile %s may take itself off (change_profile -> unconfined)", p.Name))
	}
}

// traces is about ptrace: whoever traces a process has it do whatever that may. Where
// AppArmor does not look at it the kernel asks for the capability alone
// (profile_tracer_perm in security/apparmor). Processes of the same user can be traced
// without it, by what has their capabilities; only with it is every one within reach.
func (a *asking) traces(p *policydb.Profile) {
	has := p.Capability(capSysPtrace)
	if has == policydb.No {
		return
	}
	s := attach.Warning
	if bounds := a.Unit.Settings.Bounding; a.asRoot() && (bounds == 0 || bounds&(1<<capSysPtrace) != 0) {
		s = attach.Error
	}
	switch may := p.Ptrace(attach.Unconfined, policydb.PtraceTrace); {
	case may == policydb.Yes && has == policydb.Yes:
		a.find(s, p, attach.Unconfined, &rules.Question{Class: rules.ClassPtrace, Fields: map[string]string{"access": "trace", "peer": attach.Unconfined}},
			attach.Because(attach.MayTrace, "profile %s may trace processes that are not confined, and has the capability sys_ptrace", p.Name))
	case may == policydb.NotMediated && has == policydb.Yes:
		a.find(s, p, attach.Unconfined, &rules.Question{Class: rules.ClassCapability, Capability: "sys_ptrace"},
			attach.Because(attach.MayTrace, "profile %s has the capability sys_ptrace, and this kernel's AppArmor does not look at which process is traced with it", p.Name))
	case may != policydb.No:
		a.unknown(p, attach.MayTrace, "the rules on ptrace or on capabilities are not understood")
	}
}

// asRoot reports whether the unit's processes begin as root.
func (a *asking) asRoot() bool {
	u := a.Unit.Settings
	return a.Unit.ID != "" && a.Unit.Found() && (u.User == "" || u.User == "root" || u.User == "0") && !u.DynamicUser
}

// userns is about namespaces of users, where parser and kernel know rules on them.
func (a *asking) userns(p *policydb.Profile) {
	switch p.MayCreateUserns() {
	case policydb.Yes:
		a.find(attach.Warning, p, "", &rules.Question{Class: rules.ClassUserns}, attach.Because(attach.MayUserns, "profile %s may make user namespaces", p.Name))
	case policydb.Unknown:
		a.unknown(p, attach.MayUserns, "the rules on user namespaces are not understood")
	}
}

// execs looks for a program whose exec has such a transition.
func (a *asking) execs(p *policydb.Profile, question string, such func(policydb.Transition) bool) policydb.Result {
	return a.execsBut(p, question, nil, such)
}

// execsBut is execs, less the programs that some profiles attach to.
func (a *asking) execsBut(p *policydb.Profile, question string, but policydb.Except, such func(policydb.Transition) bool) policydb.Result {
	return a.search(p, question, func() policydb.Result {
		all, err := a.gate.pattern("/**")
		if err != nil {
			return policydb.Result{Why: err}
		}
		return p.Find(policydb.Query{Pattern: all, All: policydb.Exec, Objects: policydb.NotDirectories, Except: but,
			Where: func(_ policydb.Perms, t policydb.Transition) bool { return such(t) }})
	})
}

// allCaps are the capabilities that the kernel of the time of writing has.
const allCaps = 1<<41 - 1

// wholesale finds rules that allow all of a kind. It reports whether files are
// one.
func (a *asking) wholesale(p *policydb.Profile) (every bool) {
	say := func(what string, q *rules.Question) {
		a.find(attach.Error, p, "", q, attach.Because(attach.MayEverything, "profile %s allows %s", p.Name, what))
	}
	r := a.search(p, "covers all", func() policydb.Result {
		all, err := a.gate.pattern("/**")
		if err != nil {
			return policydb.Result{Why: err}
		}
		return p.Covers(policydb.Query{Pattern: all, All: policydb.Read | policydb.Write, As: policydb.Other})
	})
	if every = r.Answer == policydb.Yes; every {
		say("to read and write every file", files("/a", policydb.Read|policydb.Write, policydb.Other))
	}
	if p.Caps.Allow&allCaps == allCaps {
		say("every capability", &rules.Question{Class: rules.ClassCapability, Capability: "sys_admin"})
	}
	if families, a := p.NetworkGrants(); a != policydb.NotMediated {
		of := map[uint16]bool{}
		for _, g := range families {
			of[g.Family] = true
		}
		if len(of) >= 40 {
			// One that a rule of its own is hardly there for.
			const llc = 26
			say("sockets of every family", &rules.Question{Class: rules.ClassNetwork, Family: llc, Type: 1})
		}
	}
	return every
}

// startingCalls are those by which systemd runs something for who asks
// (org.freedesktop.systemd1(5)): bus, name, label, path, interface and member.
var startingCalls = [][]string{
	{"system", "org.freedesktop.systemd1", attach.Unconfined, "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager",
		"{StartTransientUnit,StartUnit,StartUnitWithFlags,StartUnitReplace,RestartUnit,TryRestartUnit,ReloadUnit,ReloadOrRestartUnit,ReloadOrTryRestartUnit,EnqueueUnitJob,LinkUnitFiles,EnableUnitFiles,EnableUnitFilesWithFlags,SetEnvironment,UnsetAndSetEnvironment,SetUnitProperties,AttachProcessesToUnit,BindMountUnit,MountImageUnit}"},
	{"system", "org.freedesktop.systemd1", attach.Unconfined, "/org/freedesktop/systemd1/unit/*", "org.freedesktop.systemd1.Unit",
		"{Start,Restart,TryRestart,Reload,ReloadOrRestart,ReloadOrTryRestart,EnqueueJob,SetProperties}"},
}

// system is about systemd, over the system's D-Bus.
func (a *asking) system(p *policydb.Profile) {
	var socket string
	for _, path := range []string{"/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"} {
		if p.Allows(path, policydb.Write, policydb.Either) == policydb.Yes {
			socket = path
		}
	}
	if socket == "" {
		return
	}
	// Only root is obeyed without a question.
	s := attach.Warning
	if a.asRoot() {
		s = attach.Error
	}
	r := a.search(p, "asks systemd", func() (r policydb.Result) {
		for _, call := range startingCalls {
			fields := make([]*policydb.Pattern, len(call))
			for i, text := range call {
				var err error
				if fields[i], err = policydb.ParseName(text); err != nil {
					return policydb.Result{Why: err}
				}
			}
			if r = p.FindFields(policydb.ClassDBus, policydb.Query{All: policydb.DBusSend}, fields...); r.Answer != policydb.No {
				return r
			}
		}
		return r
	})
	switch r.Answer {
	case policydb.Yes:
		message := strings.Split(r.Witness, "\x00")
		a.find(s, p, socket, files(socket, policydb.Write, policydb.Either), attach.Because(attach.MayAskOthers, "profile %s may ask systemd, over the system bus, to start what it does not confine (%s)", p.Name, message[len(message)-1]))
	case policydb.NotMediated:
		a.find(attach.Warning, p, socket, files(socket, policydb.Write, policydb.Either), attach.Because(attach.MayAskOthers, "profile %s may use the system bus (%s), and this kernel's AppArmor does not look at what is sent there: systemd starts what root asks for", p.Name, socket))
	case policydb.Unknown:
		a.unknown(p, attach.MayAskOthers, "the rules on D-Bus are not understood")
	}
}
