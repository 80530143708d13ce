package attach

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
)

// TestPlansConverge carries plans out in a simulated world: random attachments
// over units, patterns and profiles, while administrators, packages and crashes
// change things underneath. Whatever the state,
//
//   - one pass is enough: the next plans are empty;
//   - no single action lets a unit that stays attached, and would have started
//     confined, start unconfined: a pass may be cut off after any of them;
//   - a running unit that nothing speaks against is then confined.
func TestPlansConverge(t *testing.T) {
	worlds := 400
	if testing.Short() {
		worlds = 50
	}
	for seed := range worlds {
		m := newMachine(uint64(seed))
		for round := range 6 {
			for range 1 + m.rng.IntN(3) {
				m.mutate()
			}
			cut := -1
			if m.rng.IntN(4) == 0 {
				cut = m.rng.IntN(6)
			}
			if m.pass(t, cut); cut >= 0 {
				m.pass(t, -1) // the daemon starts again
			}
			for _, unit := range m.names() {
				d, ok := m.desired(unit)
				if p := Diff(d, m.observe(d)); ok && len(p.Actions) > 0 {
					t.Errorf("after a pass, %s still has a plan: %q, the last because %s", unit, kinds(p), p.Actions[len(p.Actions)-1].Reason)
				}
			}
			m.pass(t, -1)
			for _, unit := range m.names() {
				d, ok := m.desired(unit)
				o := m.observe(d)
				u := m.units[unit]
				if !ok || d.Attachment == nil || !u.running || u.escaped {
					continue
				}
				if p := Diff(d, o); len(p.Refusals)+len(p.Pending) == 0 {
					if v := Judge(d, o); v.Answer != Confined {
						t.Errorf("%s is attached and %s:%s", unit, v.Answer, list(v.Reasons))
					}
				}
			}
			if t.Failed() {
				t.Fatalf("world %d, round %d:\n%s", seed, round, strings.Join(m.log, "\n"))
			}
		}
	}
}

// machine is a host with systemd and AppArmor.
type machine struct {
	rng     *rand.Rand
	units   map[string]*simUnit
	disk    map[string]string // unit files and drop-ins
	read    map[string]string // as of the last daemon-reload
	texts   map[string]simText
	kernel  map[string]string // profile -> checksum
	records map[string]Record
	all     []*Attachment
	// runtime attachments, or lasting ones: where both are mixed, the drop-in
	// of a lasting pattern masks a runtime one of its units, and the plan for
	// that unit must wait for another unit's plan to take the pattern's away.
	runtime bool
	log     []string
}

type simUnit struct {
	running, tmp, escaped bool
	start                 int
	label                 string
}

// simText is a profile file with one profile and perhaps a child.
type simText struct {
	version int
	child   bool
}

func newMachine(seed uint64) *machine {
	m := &machine{rng: rand.New(rand.NewPCG(seed, 1)), units: map[string]*simUnit{}, disk: map[string]string{}, read: map[string]string{},
		texts: map[string]simText{}, kernel: map[string]string{}, records: map[string]Record{}}
	m.runtime = m.rng.IntN(4) == 0
	for _, u := range []string{"agent-a.service", "agent-b-c.service", "agent-b@1.service", "web@1.service", "web@2.service", "db.service"} {
		m.units[u] = &simUnit{}
		lines := "[Service]\n"
		if m.rng.IntN(4) == 0 {
			lines += "AppArmorProfile=" + m.pick("q", "-q", "-missing") + "\n"
		}
		if m.rng.IntN(4) == 0 {
			lines += "PrivateTmp=" + m.pick("yes", "no") + "\n"
		}
		m.disk[m.fragment(u)] = lines
	}
	for _, p := range []string{"p", "q", "web", "db"} {
		m.texts[p] = simText{}
		if m.rng.IntN(2) == 0 {
			m.load(p)
		}
	}
	m.reload()
	for _, u := range m.names() {
		if m.rng.IntN(3) > 0 {
			m.boot(u)
		}
	}
	return m
}

func (m *machine) pick(words ...string) string { return words[m.rng.IntN(len(words))] }
func (m *machine) names() []string             { return sortedKeys(m.units) }
func (m *machine) say(f string, a ...any)      { m.log = append(m.log, fmt.Sprintf(f, a...)) }
func (m *machine) reload()                     { m.read = maps.Clone(m.disk) }

func (m *machine) fragment(unit string) string {
	if t := TemplateOf(unit); t != "" {
		unit = t
	}
	return "/usr/lib/systemd/system/" + unit
}

// mutate is everybody else.
func (m *machine) mutate() {
	unit, prof := m.pick(m.names()...), m.pick("p", "q", "web", "db")
	switch m.rng.IntN(9) {
	case 0, 1: // attachment files come and go
		m.all = nil
		for i := range m.rng.IntN(4) {
			a := NewAttachment()
			a.Source, a.Profile = fmt.Sprintf("/etc/aaunit/attachments.d/%d.conf", i), m.pick("p", "q", "%p", "db")
			for range 1 + m.rng.IntN(2) {
				a.Units = append(a.Units, m.pick("agent-.service", "agent-b-.service", "web@.service", "web@1.service", "agent-*.service", "db.service", unit))
			}
			a.PrivateTmp = PrivateTmp(m.pick("yes", "yes", "no"))
			a.OnProfileChange = OnProfileChange(m.pick("load", "load", "report"))
			a.Runtime, a.RestartUnit = m.runtime, m.rng.IntN(4) > 0
			if m.rng.IntN(4) == 0 {
				a.AllowProfiles = []string{m.pick("p", "q")}
			}
			m.all = append(m.all, &a)
			m.say("attachment %q: %s, tmp %s, %s, runtime %v, restart %v, allow %q", a.Units, a.Profile, a.PrivateTmp, a.OnProfileChange, a.Runtime, a.RestartUnit, a.AllowProfiles)
		}
	case 2: // a profile's text is edited
		m.texts[prof] = simText{m.texts[prof].version + 1, m.rng.IntN(2) == 0}
		m.say("%s is now %+v", prof, m.texts[prof])
	case 3: // somebody loads another text, with a child
		m.kernel[prof], m.kernel[prof+"//foreign"] = "sha256:foreign", "sha256:foreign"
		m.say("somebody loads %s", prof)
	case 4: // our drop-in is changed or removed
		for _, file := range sortedKeys(m.disk) {
			if ours(file) && m.rng.IntN(2) == 0 {
				// A broken one of a pattern that cannot be healed, because
				// attachments of another unit contradict each other, would
				// mask the new one of this unit. systemd says so afterwards.
				_, single := m.units[strings.TrimSuffix(path.Base(path.Dir(file)), ".d")]
				if m.say("somebody breaks %s", file); single && m.rng.IntN(2) == 0 {
					m.disk[file] = "[Service]\nAppArmorProfile=\n"
				} else {
					delete(m.disk, file)
				}
			}
		}
	case 5: // an administrator's or a package's drop-in
		dir := m.pick(unit, unit, "service", "agent-.service", "web@.service")
		file := path.Join(m.pick("/etc/systemd/system", "/usr/lib/systemd/system", "/etc/systemd/system.control"), dir+".d", m.pick("50-x.conf", "override.conf", "zz.conf"))
		if _, there := m.disk[file]; there {
			delete(m.disk, file)
		} else {
			m.disk[file] = "[Service]\n" + m.pick("AppArmorProfile=", "AppArmorProfile=-q", "AssertSecurity=", "PrivateTmp=no", "AppArmorProfile=%p", "Nice=1") + "\n"
		}
		m.reload()
		m.say("%s: %q", file, m.disk[file])
	case 6:
		m.boot(unit)
		m.say("%s is started: %s", unit, m.units[unit].label)
	case 7:
		m.units[unit].running = false
		m.say("%s is stopped", unit)
	case 8:
		m.units[unit].escaped = m.units[unit].running
		m.say("a child of %s escapes", unit)
	}
}

// files lists what systemd reads for a unit, in order: written down from
// systemd.unit(5) and what systemd-analyze verify shows, apart from the core's
// own idea of it.
func (m *machine) files(unit string, tree map[string]string) []string {
	dirs := []string{unit}
	stem, _, instance := strings.Cut(strings.TrimSuffix(unit, ".service"), "@")
	if instance {
		dirs = append(dirs, stem+"@.service")
	}
	for i := len(stem) - 2; i > 0; i-- {
		if stem[i] == '-' {
			dirs = append(dirs, stem[:i+1]+".service")
		}
	}
	// Of files with one name, the one in the first of these is read.
	order := map[string]int{}
	roots := []string{"/etc/systemd/system.control/", "/etc/systemd/system/", "/run/systemd/system/", "/usr/lib/systemd/system/"}
	for _, root := range roots {
		for _, dir := range dirs {
			order[root+dir+".d"] = len(order)
		}
	}
	for _, root := range roots {
		order[root+"service.d"] = len(order)
	}
	found := map[string]string{}
	for file := range tree {
		dir, name := path.Dir(file), path.Base(file)
		if rank, ok := order[dir]; ok && (found[name] == "" || rank < order[path.Dir(found[name])]) {
			found[name] = file
		}
	}
	out := []string{m.fragment(unit)}
	for _, name := range sortedKeys(found) {
		out = append(out, found[name])
	}
	return out
}

// unread reports whether a file of the unit changed since systemd read it.
func (m *machine) unread(unit string) bool {
	now, was := m.files(unit, m.disk), m.files(unit, m.read)
	return !slices.Equal(now, was) || slices.ContainsFunc(now, func(f string) bool { return m.disk[f] != m.read[f] })
}

func (m *machine) settings(unit string) Settings {
	s := Settings{DefaultDependencies: true, PrivateTmp: PrivateTmpNo, Exec: []ExecCommand{{Property: "ExecStart", Path: "/bin/x", Argv: []string{"x"}}}}
	for _, file := range m.files(unit, m.read) {
		for i, l := range strings.Split(m.read[file], "\n") {
			key, value, ok := strings.Cut(l, "=")
			if !ok || strings.HasPrefix(l, "#") {
				continue
			}
			switch key {
			case "AppArmorProfile":
				s.IgnoreMissing = strings.HasPrefix(value, "-")
				s.Profile, _ = ExpandSpecifiers(strings.TrimPrefix(value, "-"), unit)
			case "AssertSecurity":
				s.AssertAppArmor = value == "apparmor" || s.AssertAppArmor && value != ""
			case "PrivateTmp":
				s.PrivateTmp = PrivateTmp(value)
			default:
				continue
			}
			s.Assignments = append(s.Assignments, Assignment{key, value, file, i + 1})
		}
	}
	return s
}

// startsAs says what a start of the unit would give now: a label, or "" where
// the start fails.
func (m *machine) startsAs(unit string) string {
	s := m.settings(unit)
	if _, loaded := m.kernel[s.Profile]; loaded {
		return s.Profile + " (enforce)"
	}
	if s.Profile == "" || s.IgnoreMissing {
		return Unconfined
	}
	return ""
}

func (m *machine) boot(unit string) {
	u := m.units[unit]
	u.start++
	u.label, u.escaped, u.tmp = m.startsAs(unit), false, m.settings(unit).PrivateTmp.rank() > 0
	u.running = u.label != ""
}

func (m *machine) checksums(prof string) map[string]string {
	t := m.texts[prof]
	sums := map[string]string{prof: fmt.Sprintf("sha256:%s%d", prof, t.version)}
	if t.child {
		sums[prof+"//child"] = fmt.Sprintf("sha256:child%d", t.version)
	}
	return sums
}

// load replaces a profile; children that the new text lacks live on.
func (m *machine) load(prof string) { maps.Copy(m.kernel, m.checksums(prof)) }

func (m *machine) desired(unit string) (Desired, bool) {
	d := Desired{Unit: unit, Record: m.records[unit].Clone()}
	a, rivals := Select(m.all, unit)
	if len(rivals) > 0 {
		return d, false // frozen
	}
	if a != nil {
		c := *a
		d.Attachment = &c
		d.Profile, _ = a.ProfileFor(unit)
	}
	return d, true
}

func (m *machine) observe(d Desired) Observed {
	u := m.units[d.Unit]
	o := Observed{Host: Host{Enabled: Yes, GlobalMode: ModeEnforce, BootService: Yes}}
	o.Unit = Unit{ID: d.Unit, Names: []string{d.Unit}, LoadState: "loaded", ActiveState: "inactive", FragmentPath: m.fragment(d.Unit),
		DropIns: m.files(d.Unit, m.read)[1:], InvocationID: fmt.Sprint(u.start), Settings: m.settings(d.Unit)}
	o.Unit.NeedReload = m.unread(d.Unit)
	if u.running {
		o.Unit.ActiveState, o.Unit.MainPID = "active", 10
		host, mine := TmpView{Tmp: "h /tmp", VarTmp: "h /var/tmp"}, TmpView{Tmp: "p", VarTmp: "q"}
		if !u.tmp {
			mine = host
		}
		o.Scan = &Scan{Before: o.Unit.InvocationID, After: o.Unit.InvocationID, Stable: true, HostTmp: host, Tmp: map[int]TmpView{10: mine, 11: mine},
			Tasks: []Task{task(10, u.label)}}
		if u.escaped {
			o.Scan.Tasks = append(o.Scan.Tasks, task(11, Unconfined))
		}
	}
	if d.Attachment == nil {
		return o
	}
	o.Policy = Policy{Candidates: map[string][]Profile{}, Live: map[string]LiveProfile{}}
	for _, name := range d.names() {
		if _, ok := m.texts[name]; !ok {
			continue
		}
		p := Profile{Name: name, File: "/etc/apparmor.d/" + name, Line: 1}
		o.Policy.Candidates[name] = []Profile{p}
		o.Policy.Compiled = append(o.Policy.Compiled, Compiled{File: p.File, Profiles: []Profile{p}, Checksums: m.checksums(name)})
		for loaded, sum := range m.kernel {
			if covers(name, loaded) {
				o.Policy.Live[loaded] = LiveProfile{loaded, ModeEnforce, sum}
			}
		}
	}
	file := d.DropInPath()
	o.DropIn.Content, o.DropIn.Exists = m.disk[file], m.disk[file] != ""
	for _, r := range m.records {
		o.DropIn.Ours = o.DropIn.Ours || r.DropIns.Has(file)
	}
	return o
}

// pass carries out the plans of all units together, in the order of a pass. It
// is cut off after that many actions, unless cut is negative.
func (m *machine) pass(t *testing.T, cut int) {
	type job struct {
		d Desired
		o Observed
		p Plan
	}
	var jobs []*job
	stay := map[string]bool{} // must not come to start unconfined
	for _, unit := range m.names() {
		attached := len(m.records[unit].DropIns) > 0 && m.startsAs(unit) != Unconfined
		d, ok := m.desired(unit)
		if !ok { // two attachments contradict each other: it stays as it is
			stay[unit] = attached && !m.unread(unit)
			continue
		}
		o := m.observe(d)
		p := Diff(d, o)
		jobs = append(jobs, &job{d, o, p})
		// What somebody wrote and nobody read yet strikes at the next reload,
		// whoever asks for it; only a unit that may be attached is healed before.
		stay[unit] = d.Attachment != nil && attached && (len(p.Refusals) == 0 || !o.Unit.NeedReload)
	}
	done := 0
	stage := func(kind ActionKind, do func(j *job, a Action)) {
		for _, j := range jobs {
			for _, a := range j.p.Actions {
				if a.Kind != kind || cut >= 0 && done >= cut {
					continue
				}
				done++
				m.say("  %s: %s %s (%s)", j.d.Unit, a.Kind, a.Target, a.Reason)
				do(j, a)
				for unit := range stay {
					if stay[unit] && m.startsAs(unit) == Unconfined {
						t.Errorf("after %s %s, %s would start unconfined", a.Kind, a.Target, unit)
					}
				}
			}
		}
	}
	stage(LoadPolicy, func(j *job, a Action) {
		prof := path.Base(a.Target)
		if _, live := m.kernel[prof]; !live && !slices.Contains(j.d.Record.Loaded, prof) {
			j.d.Record.Loaded = append(j.d.Record.Loaded, prof)
		}
		m.load(prof)
	})
	stage(UnloadChild, func(_ *job, a Action) {
		maps.DeleteFunc(m.kernel, func(name, _ string) bool { return covers(a.Target, name) })
	})
	if cut >= 0 && done >= cut {
		return
	}
	for _, j := range jobs {
		if j.d.Attachment == nil || len(j.p.Refusals) > 0 {
			continue
		}
		r := &j.d.Record
		r.Unit, r.Profile, r.RestartUnit = j.d.Unit, j.d.Profile, j.d.Attachment.RestartUnit
		if !slices.ContainsFunc(j.p.Pending, func(r Reason) bool { return r.Code == PolicyChanged }) {
			r.Accepted = map[string]string{}
			for _, c := range j.o.Policy.Compiled {
				maps.Copy(r.Accepted, c.Checksums)
			}
		}
		if j.o.DropIn.Ours {
			r.DropIns = r.DropIns.With(j.d.DropInPath(), "…")
		}
		m.records[j.d.Unit] = r.Clone()
	}
	stage(WriteDropIn, func(j *job, a Action) {
		j.d.Record.DropIns = j.d.Record.DropIns.With(a.Target, "…")
		m.records[j.d.Unit] = j.d.Record.Clone()
		m.disk[a.Target] = j.d.DropInText(j.o.Unit)
	})
	stage(RemoveDropIn, func(j *job, a Action) {
		j.d.Record.DropIns = j.d.Record.DropIns.Without(a.Target)
		m.records[j.d.Unit] = j.d.Record.Clone()
		// A pattern's file serves others too, and some of them cannot be
		// attached otherwise at present: it goes with the last record of it.
		for _, r := range m.records {
			if r.DropIns.Has(a.Target) {
				return
			}
		}
		delete(m.disk, a.Target)
	})
	stage(Reload, func(*job, Action) { m.reload() })
	stage(Restart, func(j *job, _ Action) {
		if m.boot(j.d.Unit); j.d.Attachment != nil && m.units[j.d.Unit].label == Unconfined {
			t.Errorf("%s was restarted and is unconfined", j.d.Unit)
		}
	})
	stage(UnloadPolicy, func(j *job, a Action) {
		for _, u := range m.units {
			if u.running && label(u.label).Fits(a.Target, nil) != FitOther {
				return // the kernel would take it off the task
			}
		}
		for _, other := range jobs {
			if other.d.Attachment != nil && slices.Contains(other.d.names(), a.Target) {
				return
			}
		}
		maps.DeleteFunc(m.kernel, func(name, _ string) bool { return covers(a.Target, name) })
	})
	for _, j := range jobs {
		switch r := m.records[j.d.Unit]; {
		case j.d.Attachment == nil && (cut < 0 || done < cut):
			delete(m.records, j.d.Unit)
		case j.d.Attachment != nil && r.Unit != "":
			v := Judge(j.d, m.observe(j.d))
			r.Verdict = &v
			m.records[j.d.Unit] = r
		}
	}
}
