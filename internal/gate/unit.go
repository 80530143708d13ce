package gate

import (
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// unit asks what is asserted of policy and unit together. Of a unit of which nothing is
// known, and of a template, no more is asked than what is so of nearly every one.
func (a *asking) unit() {
	if len(a.asked) == 0 || a.asked[0].Mode == policydb.Unconfined {
		return
	}
	if !a.known() {
		a.connections()
		return
	}
	p := a.asked[0]
	a.programs(p)
	a.notify(p)
	a.directories(p)
	a.families(p)
	a.connections()
	a.transitions()
	a.detached(p)
	for _, p := range a.asked {
		a.owners(p)
	}
}

// known reports whether there is a unit whose settings are known.
func (a *asking) known() bool {
	return a.Unit.ID != "" && a.Unit.Found() && !attach.IsPattern(a.Desired.Unit)
}

// programs are those of the unit's command lines. A compiled one needs no rule when
// systemd starts it: the kernel opens it before the profile is on, and what an
// unconfined task opened is not checked again (aa_file_perm in
// security/apparmor/file.c; seen on Linux 6.1 and 6.12), and so does the interpreter
// of a script. The script itself is opened once more, by its interpreter, under the
// profile.
func (a *asking) programs(p *policydb.Profile) {
	seen := map[string]bool{}
	for _, c := range a.Unit.Settings.Exec {
		// Without the profile it runs all the more with what the profile lets others
		// write into it.
		free := c.Privileged || a.Unit.Settings.PermissionsStartOnly && c.Property != "ExecStart"
		if c.Path == "" || seen[c.Path] || free && c.Path == attach.SocketHelper {
			continue
		}
		paths := a.reallyAt(c.Path)
		if !free {
			seen[c.Path] = true
			a.runs(p, c, paths)
		}
		for _, q := range a.asked {
			for _, path := range paths {
				if r, ok := a.mayWrite(q, path); ok && !a.whole[q] {
					a.find(attach.Error, q, r, files(r, writing, policydb.Either), attach.Because(attach.MayWriteSelf, "profile %s may write %s, which %s= starts", q.Name, quoted(r), c.Property))
				}
			}
		}
	}
}

// runs is about what the profile has to allow for a program to run.
func (a *asking) runs(p *policydb.Profile, c attach.ExecCommand, paths []string) {
	readable := func(path string) bool { return a.allows(p, path, policydb.Read) != policydb.No }
	file := a.facts.Files[c.Path]
	switch file.Kind {
	case attach.FileCompiled, attach.FileDirectory, attach.FileMissing:
		return // systemd says so
	case attach.FileScript:
	default:
		if !slices.ContainsFunc(paths, readable) {
			a.find(attach.Note, p, c.Path, nil, attach.Because(attach.MayNotRun, "profile %s may not read %s, which %s= starts: that is fine for a compiled program, and a script fails", p.Name, quoted(c.Path), c.Property).
				WithNext("for a script, add a rule: "+quoted(paths[len(paths)-1])+" r,"))
		}
		return
	}
	// An interpreter may be a script itself, which its own opens.
	for n := 0; file.Kind == attach.FileScript && n <= len(a.facts.Files); n++ {
		if !readable(file.Path) {
			a.find(attach.Warning, p, file.Path, nil, attach.Because(attach.MayNotRun, "profile %s may not read %s, a script that %s= starts: its interpreter %s fails to open it", p.Name, quoted(file.Path), c.Property, quoted(file.Interpreter)).
				WithNext("add a rule: "+quoted(file.Path)+" r,"))
		}
		if started := a.facts.Files[file.Runs]; started.Path != "" && a.allows(p, started.Path, policydb.Exec) == policydb.No {
			a.find(attach.Warning, p, started.Path, nil, attach.Because(attach.MayNotRun, "profile %s may not execute %s, which %s starts for the script %s (%s=)", p.Name, quoted(started.Path), quoted(file.Interpreter), quoted(file.Path), c.Property).
				WithNext("add a rule: "+quoted(started.Path)+" rix,"))
		}
		file = a.facts.Files[file.Interpreter]
	}
}

// reallyAt gives the paths under which the kernel may know a program, the likeliest
// one last.
func (a *asking) reallyAt(path string) []string {
	paths := merged(path)
	if real := a.facts.Files[path].Path; real != "" && real != paths[len(paths)-1] {
		paths = append(slices.DeleteFunc(paths, func(p string) bool { return p == real }), real)
	}
	return paths
}

// merged gives the paths under which the kernel may know a program: where /bin is
// a link to /usr/bin, as on Debian since 12, the latter. The real one comes last.
func merged(path string) []string {
	for _, dir := range []string{"/bin/", "/sbin/", "/lib/"} {
		if strings.HasPrefix(path, dir) {
			return []string{path, "/usr" + path}
		}
	}
	return []string{path}
}

// mayWrite asks about one path.
func (a *asking) mayWrite(p *policydb.Profile, path string) (witness string, may bool) {
	perms, answer := p.File(path, policydb.Either)
	return path, answer == policydb.Yes && perms.Allow&^perms.Deny&writing != 0
}

func allowed(p *policydb.Profile, path string, want policydb.Perm) policydb.Answer {
	return p.Allows(path, want, policydb.Either)
}

// notify is about the readiness message of Type=notify.
func (a *asking) notify(p *policydb.Profile) {
	if t := a.Unit.Type; t != "notify" && t != "notify-reload" {
		return
	}
	const socket = "/run/systemd/notify"
	if allowed(p, socket, policydb.Write) != policydb.No {
		return
	}
	s, then := attach.Warning, ""
	switch p.UnixPaths() {
	case policydb.No:
		s, then = attach.Note, ": AppArmor does not look at that here, and where it does the readiness message is refused"
	case policydb.Unknown, policydb.NotMediated:
		then = ": where AppArmor looks at that the readiness message is refused"
	}
	a.find(s, p, socket, nil, attach.Because(attach.MayNotNotify, "profile %s may not write to %s, and the unit is of Type=%s%s", p.Name, socket, a.Unit.Type, then).
		WithNext("add a rule: "+socket+" w,"))
}

// connections are those to sockets that have a path. Where AppArmor does not ask the
// policy about them, a rule on the path of a socket keeps nobody from it, not even one
// with deny (seen on Linux 6.1 and 6.12). It is a note: it is so of nearly every unit on
// Debian, whatever its profile, and who is warned of every healthy unit reads no warning.
func (a *asking) connections() {
	u := a.Unit.Settings
	// seccomp looks at system calls of one architecture only, where that is not said.
	if r := u.AddressFamilies; r != nil && slices.Contains(r.Families, "AF_UNIX") != r.AllowList && slices.Equal(u.Architectures, []string{"native"}) {
		return
	}
	const unixFamily, dacOverride, setuid = 1, 1, 7
	for _, p := range a.asked {
		if looks := p.UnixPaths(); looks == policydb.Yes || looks == policydb.Unknown { // the latter is said of the whole policy
			continue
		}
		if _, may := p.AnyNetwork(unixFamily, policydb.NetCreate); may == policydb.No {
			continue
		}
		who := ""
		for capability, what := range map[int]string{dacOverride: "what has CAP_DAC_OVERRIDE", setuid: "what has CAP_SETUID"} {
			if u.Ambient&(1<<capability) != 0 && p.Capability(capability) != policydb.No {
				who = max(who, what)
			}
		}
		if !u.DynamicUser && (u.User == "" || u.User == "root" || u.User == "0") {
			who = "what runs as root"
		}
		why, next := "what keeps the unit from a socket is its mode and owner, and not the profile", "if it needs no unix socket, add: deny network unix,"
		switch {
		case !a.known():
			why, next = "unless the unit runs as a user of its own, it can have other daemons, such as systemd (/run/systemd/private), work for it, whatever the profile says", ""
		case who != "":
			why, next = who+" can have other daemons, such as systemd (/run/systemd/private), work for it, whatever the profile says", ""
		}
		a.find(attach.Note, p, "", nil, attach.Because(attach.MayConnect, "profile %s may make unix sockets, and AppArmor does not look at which path they connect to here: %s", p.Name, why).WithNext(next))
		return
	}
}

// directories are those that systemd makes for the unit.
func (a *asking) directories(p *policydb.Profile) {
	for _, d := range a.Unit.Settings.Directories {
		probe := strings.TrimSuffix(d.Path, "/") + "/x"
		if d.ReadOnly || allowed(p, probe, policydb.Read) != policydb.No && allowed(p, probe, policydb.Write) != policydb.No {
			continue
		}
		// One name proves little: is there any?
		pattern, err := policydb.ParsePattern(escape(strings.TrimSuffix(d.Path, "/")) + "/**")
		if err != nil {
			continue
		}
		if r := p.Find(policydb.Query{Pattern: pattern, Any: policydb.Write | policydb.Append}); r.Answer == policydb.No {
			a.find(attach.Warning, p, d.Path, nil, attach.Because(attach.MayNotUseOwn, "profile %s may write nothing below %s, which %s= makes for the unit", p.Name, quoted(d.Path), d.Property).
				WithNext("add a rule: "+quoted(strings.TrimSuffix(d.Path, "/"))+"/** rw,"))
		}
	}
}

// families compares RestrictAddressFamilies= with the profile's network rules.
func (a *asking) families(p *policydb.Profile) {
	r := a.Unit.Settings.AddressFamilies
	if r == nil {
		return
	}
	for _, f := range families {
		listed := slices.Contains(r.Families, f.constant)
		unitMay := listed == r.AllowList
		if !listed && !slices.Contains([]string{"inet", "inet6", "unix", "netlink", "packet"}, f.name) {
			continue // of the others, only what the unit speaks of
		}
		_, may := p.AnyNetwork(f.number, policydb.NetCreate)
		switch {
		case may == policydb.Yes && !unitMay:
			a.find(attach.Note, p, f.name, nil, attach.Because(attach.MayOtherFamilies, "profile %s allows network %s, which RestrictAddressFamilies= of the unit forbids", p.Name, f.name))
		case may == policydb.No && unitMay && listed:
			a.find(attach.Warning, p, f.name, nil, attach.Because(attach.MayOtherFamilies, "RestrictAddressFamilies= of the unit allows %s, and profile %s does not", f.constant, p.Name).
				WithNext("add a rule: network "+f.name+","))
		}
	}
}

// transitions cannot happen with NoNewPrivileges=. The property has what was
// written; the flag of the process is also set by what implies it.
func (a *asking) transitions() {
	var why string
	switch {
	case a.Unit.Settings.NoNewPrivileges && a.facts.NoNewPrivs == attach.No:
		why = "the unit has NoNewPrivileges=yes, from its next start on"
	case a.Unit.Settings.NoNewPrivileges:
		why = "the unit has NoNewPrivileges=yes"
	case a.facts.NoNewPrivs == attach.Yes:
		why = "the unit's main process runs with no new privileges (NoNewPrivs in /proc/PID/status), which another of its settings implies or which it has set itself"
	default:
		return
	}
	const instead = "use ix for it, or set NoNewPrivileges=no and every setting that implies it"
	for _, p := range a.asked {
		r := a.execs(p, "another profile", func(t policydb.Transition) bool {
			return t.Kind != policydb.ExecNone && t.Kind != policydb.ExecInherit && !t.OrInherit
		})
		if r.Answer == policydb.Yes {
			a.find(attach.Warning, p, r.Witness, nil, attach.Because(attach.MayNotTransition, "profile %s runs %s under another profile (%s), and %s", p.Name, quoted(r.Witness), r.Transition, why).
				WithNext(instead))
		}
	}
}

// detached is about paths outside the unit's mount namespace.
func (a *asking) detached(p *policydb.Profile) {
	if a.Unit.Settings.MountNamespace && p.PathFlags&policydb.AttachDisconnected == 0 {
		a.find(attach.Note, p, "", nil, attach.Because(attach.MayNotDetached, "profile %s has no flag attach_disconnected, and the unit has a mount namespace of its own", p.Name))
	}
}

// escape makes a pattern that stands for one path.
func escape(path string) string {
	var b strings.Builder
	for _, c := range []byte(path) {
		if strings.IndexByte(`*?[]{}^,\"`, c) >= 0 {
			b.WriteByte('\\')
		}
		b.WriteByte(c)
	}
	return b.String()
}
