package sockopt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// Change says what an Attach changed. The zero value is: nothing, all was so.
type Change struct {
	// Loaded: the programs were loaded, and not found pinned.
	Loaded bool
	// Attached: the control group had not had the programs.
	Attached bool
	// Replaced: it had had other versions of them, which were replaced without a
	// gap.
	Replaced bool
	// Fresh: what was recorded before was of another layout, and is gone.
	Fresh bool
	// Rules: other rules held before.
	Rules bool
}

// Attach has the rules hold for the tasks in a control group, or below it, on all
// sockets that are made there; sockets that were made before are held to them too.
// For a .socket unit they hold for whoever uses its sockets. The unit
// names the tables: what it recorded in former starts stays in them until Forget,
// Remove or the reboot. It may be called at any time and any number of times, and
// goes on where one that was killed left off:
//
//  1. the programs are loaded with the unit's tables, unless they are pinned;
//  2. the rules are written into the tables. Where those take no rules, the programs
//     are loaded with others for the rules, and what was recorded stays;
//  3. tables and programs are pinned;
//  4. the programs are attached as links, and the links pinned in place of those
//     of the unit's former control group, which the kernel has let go of when
//     systemd removed it. A link to the same control group that has an older
//     program gets the new one, and there is no moment without a program.
//
// With mode off nothing is loaded; what is attached is detached, and what was
// recorded stays readable.
func (s *System) Attach(path, unit string, r Rules) (c Change, err error) {
	what := fmt.Sprintf("cannot attach the socket-option programs of %s to its control group %s", unit, path)
	if err := r.check(); err != nil {
		return c, because(what, nil, err, "")
	}
	if r.Mode == Off {
		return s.off(unit, r)
	}
	d, err := s.open(unit, true)
	if err != nil {
		return c, err
	}
	defer d.Close()
	// Behind the lock: the control group of that name is another one for each start, and
	// the helper of the next start may have been here before.
	cg, err := s.openCgroup(path)
	if err != nil {
		_ = os.Remove(d.path) // where nothing is in it
		return c, err
	}
	defer cg.Close()

	o, ok := d.pinned()
	if !ok {
		if o, err = d.load(mapNames[:]...); err != nil {
			return c, err
		}
	}
	if c.Rules, err = o.setRules(r, scope(path, unit, cg.id)); err != nil {
		o.Close()
		c.Rules = true
		if o, err = d.renew(r, scope(path, unit, cg.id)); err != nil {
			return c, judge("cannot write the socket-option rules of "+unit, err)
		}
	}
	defer o.Close()
	c.Loaded, c.Fresh = o.loaded, o.fresh
	if c.Loaded {
		if err := d.keep(o); err != nil {
			return c, judge(what, err)
		}
	}
	for _, h := range hooks {
		attached, replaced, err := d.attach(cg, h, o.programs[h.program])
		if err != nil {
			return c, judge(what, err)
		}
		c.Attached, c.Replaced = c.Attached || attached, c.Replaced || replaced
	}
	d.tidy()
	return c, nil
}

// renew loads the programs with tables that are made anew for the rules, and writes them.
// In those that are pinned is what aaunit never writes, or no room is left beside it: the
// old list and the new one may have more options together than the table takes, and
// whoever is root can write into it. What holds now goes on to hold until the programs
// are attached.
func (d *unitDir) renew(r Rules, also func(*bpfSettings)) (*objects, error) {
	o, err := d.load("seen", "overflow")
	if err != nil {
		return nil, err
	}
	if _, err := o.setRules(r, also); err != nil {
		o.Close()
		return nil, err
	}
	return o, nil
}

// keep pins what was loaded. Tables that are pinned keep their pins, which say since when
// they are there.
func (d *unitDir) keep(o *objects) error {
	for _, name := range mapNames {
		if o.taken[name] {
			continue
		}
		if err := d.replace(name, o.maps[name]); err != nil {
			return err
		}
	}
	for _, h := range hooks {
		if err := d.replace(h.pin(), o.programs[h.program]); err != nil {
			return err
		}
	}
	return nil
}

// attach has one program on a control group.
func (d *unitDir) attach(cg cgroup, h hook, p *ebpf.Program) (attached, replaced bool, err error) {
	id, err := programID(p)
	if err != nil {
		return false, false, err
	}
	if old, err := link.LoadPinnedLink(d.pin(h.link), nil); err == nil {
		defer old.Close()
		group, prog := linked(old)
		switch {
		case group == cg.id && prog == id:
			return false, false, nil
		case group == cg.id:
			return false, true, old.Update(p)
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, false, err
	}
	fresh, err := link.AttachRawLink(link.RawLinkOptions{Target: int(cg.Fd()), Program: p, Attach: h.attach})
	if err != nil {
		if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
			return false, false, because("cannot attach the program for "+h.call.String(), ErrBlocked, err,
				"bpftool cgroup tree shows which program that is; or this process lacks CAP_NET_ADMIN")
		}
		return false, false, err
	}
	// Closing it leaves it to its pin.
	defer fresh.Close()
	return true, false, d.replace(h.link, fresh)
}

// linked are the control group and the program of a link; the control group is 0
// when it is gone.
func linked(l link.Link) (group uint64, prog ebpf.ProgramID) {
	info, err := l.Info()
	if err != nil {
		return 0, 0
	}
	if cg := info.Cgroup(); cg != nil {
		group = cg.CgroupId
	}
	return group, info.Program
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, err
	}
	id, ok := info.ID()
	if !ok {
		return 0, errors.New("the kernel does not tell a program's id")
	}
	return id, nil
}

// tidy unpins programs of former versions, which nothing uses any more.
func (d *unitDir) tidy() {
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return
	}
	for _, e := range entries {
		for _, h := range hooks {
			if strings.HasPrefix(e.Name(), h.program+"_") && e.Name() != h.pin() {
				_ = os.Remove(d.pin(e.Name())) // in nobody's way where it stays
			}
		}
	}
}

// scope says whose calls count: those of tasks in the unit's control group. A
// .socket unit has no tasks of its own; its sockets are there for a service's.
func scope(path, unit string, id uint64) func(*bpfSettings) {
	return func(s *bpfSettings) {
		s.Cgroup, s.Level = 0, 0
		if !strings.HasSuffix(unit, ".socket") {
			s.Cgroup, s.Level = id, uint32(strings.Count(filepath.Clean("/"+path), "/"))
		}
	}
}

// setRules writes rules into the tables, and what else is to be changed with them,
// and says whether other rules were there. The order is such that what is allowed
// both before and after is never refused in between.
func (o *objects) setRules(r Rules, also func(*bpfSettings)) (changed bool, err error) {
	now, settings, err := readRules(o.maps["allow"], o.maps["config"])
	if err != nil {
		return false, err
	}
	have, want := now.keys(), r.keys()
	var zero, one uint32 = 0, 1
	for key := range want {
		if !have[key] {
			changed = true
			if err := o.maps["allow"].Put(key, one); err != nil {
				return changed, err
			}
		}
	}
	fresh := r.settings(settings)
	if also != nil {
		also(&fresh)
	}
	if fresh != settings {
		changed = changed || fresh.Mode != settings.Mode || fresh.Flags != settings.Flags
		if err := o.maps["config"].Put(zero, fresh); err != nil {
			return changed, err
		}
	}
	for key := range have {
		if !want[key] {
			changed = true
			if err := o.maps["allow"].Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
				return changed, err
			}
		}
	}
	return changed, nil
}

func (o *objects) rules() (Rules, error) {
	r, _, err := readRules(o.maps["allow"], o.maps["config"])
	return r, err
}

// readRules reads rules back from the kernel.
func readRules(allow, config *ebpf.Map) (r Rules, s bpfSettings, err error) {
	if err := config.Lookup(uint32(0), &s); err != nil {
		return r, s, err
	}
	if r, err = s.rules(); err != nil {
		return r, s, err
	}
	var key bpfAllowKey
	var value uint32
	for it := allow.Iterate(); ; {
		if !it.Next(&key, &value) {
			if err := it.Err(); err != nil {
				return r, s, err
			}
			return r.normal(), s, nil
		}
		if err := r.add(key); err != nil {
			return r, s, err
		}
	}
}

// openMaps opens a unit's tables by their pins.
func (d *unitDir) openMaps(names ...string) (*objects, error) {
	o := &objects{maps: map[string]*ebpf.Map{}}
	for _, name := range names {
		m, err := ebpf.LoadPinnedMap(d.pin(name), nil)
		if err != nil {
			o.Close()
			if errors.Is(err, fs.ErrNotExist) {
				return nil, ErrNothing
			}
			return nil, err
		}
		o.maps[name] = m
	}
	return o, nil
}

// SetRules changes the rules of a unit whose programs are loaded, at once and
// without touching what is attached; changed says whether others held before.
// ErrNothing where nothing is loaded: Attach does that. To switch off, or on
// again after off, is for Attach too, and so are tables that take no rules.
func (s *System) SetRules(unit string, r Rules) (changed bool, err error) {
	what := "cannot change the socket-option rules of " + unit
	if err := r.check(); err != nil {
		return false, because(what, nil, err, "")
	}
	d, err := s.open(unit, false)
	if err != nil {
		return false, err
	}
	defer d.Close()
	o, err := d.openMaps("allow", "config")
	if errors.Is(err, ErrNothing) {
		return false, because(what, ErrNothing, nil, "")
	}
	if err != nil {
		return false, judge(what, err)
	}
	defer o.Close()
	changed, err = o.setRules(r, nil)
	return changed, judge(what, err)
}

// SetMode changes nothing but the mode.
func (s *System) SetMode(unit string, mode Mode) (changed bool, err error) {
	return s.change(unit, func(r *Rules) { r.Mode = mode })
}

// SetAllow changes nothing but the lists. With get nil, getsockopt may read
// anything.
func (s *System) SetAllow(unit string, set, get []Option) (changed bool, err error) {
	return s.change(unit, func(r *Rules) { r.Allow, r.AllowGet, r.HoldGet = set, get, get != nil })
}

func (s *System) change(unit string, how func(*Rules)) (bool, error) {
	d, err := s.open(unit, false)
	if err != nil {
		return false, err
	}
	what := "cannot change the socket-option rules of " + unit
	o, err := d.openMaps("allow", "config")
	if errors.Is(err, ErrNothing) {
		err = because(what, ErrNothing, nil, "")
	}
	if err != nil {
		d.Close()
		return false, judge(what, err)
	}
	defer d.Close()
	defer o.Close()
	r, err := o.rules()
	if err != nil {
		return false, judge(what, err)
	}
	how(&r)
	if err := r.check(); err != nil {
		return false, because(what, nil, err, "")
	}
	changed, err := o.setRules(r, nil)
	return changed, judge(what, err)
}

// off detaches, and keeps the tables.
func (s *System) off(unit string, r Rules) (c Change, err error) {
	d, err := s.openIfAny(unit)
	if d == nil {
		return c, err
	}
	defer d.Close()
	if o, e := d.openMaps("allow", "config"); e == nil {
		c.Rules, err = o.setRules(r, nil)
		o.Close()
		if err != nil {
			c.Rules = true
			if o, err = d.renew(r, nil); err == nil {
				c.Loaded, c.Fresh = true, o.fresh
				err = d.keep(o)
				o.Close()
			}
		}
	}
	return c, judge("cannot switch off the socket-option programs of "+unit, errors.Join(err, d.detach()))
}

// detach takes the programs off, also where another process has the link open.
func (d *unitDir) detach() error {
	var errs []error
	for _, h := range hooks {
		l, err := link.LoadPinnedLink(d.pin(h.link), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			if detacher, ok := l.(interface{ Detach() error }); ok {
				_ = detacher.Detach() // it is gone with its last user at the latest
			}
			l.Close()
		}
		if err := os.Remove(d.pin(h.link)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove takes off what is attached for a unit, and throws away what was
// recorded. A unit of which there is nothing is no error.
func (s *System) Remove(unit string) (changed bool, err error) {
	d, err := s.openIfAny(unit)
	if d == nil {
		return false, err
	}
	defer d.Close()
	return true, judge("cannot remove the BPF pins of "+unit, d.remove())
}

// Sweep is Remove for a unit that has ended. Where one of its links has a control group
// that is there, nothing is touched: it was started again, or never ended. gone says that
// there is nothing of the unit any more.
func (s *System) Sweep(unit string) (gone bool, err error) {
	d, err := s.openIfAny(unit)
	if d == nil {
		return err == nil, err
	}
	defer d.Close()
	what := "cannot remove the BPF pins of " + unit
	for _, h := range hooks {
		l, err := link.LoadPinnedLink(d.pin(h.link), nil)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return false, judge(what, err)
		}
		group, _ := linked(l)
		l.Close()
		if group != 0 {
			return false, nil
		}
	}
	err = judge(what, d.remove())
	return err == nil, err
}

func (d *unitDir) remove() error {
	if err := d.detach(); err != nil {
		return err
	}
	entries, err := os.ReadDir(d.path)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Remove(d.pin(e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Remove(d.path)
}

// RemoveAll removes what is there of any unit, before the programs go from the
// host. It goes on after an error.
func (s *System) RemoveAll() error {
	const what = "cannot remove the BPF pins"
	if err := s.mounted(what); errors.Is(err, ErrNoBPFFS) {
		return s.covered(what)
	}
	entries, err := os.ReadDir(s.root())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return judge(what, err)
	}
	var errs []error
	for _, e := range entries {
		lock, err := os.Open(filepath.Join(s.root(), e.Name()))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		d := &unitDir{path: filepath.Join(s.root(), e.Name()), lock: lock}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
			errs = append(errs, err)
		} else if err := d.remove(); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		d.Close()
	}
	if err := os.Remove(s.root()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	return judge(what, errors.Join(errs...))
}

// Part is the state of one of the two hooks on a control group, as the kernel
// tells it.
type Part struct {
	// Program is the id of the one that the unit's pinned link has attached, 0 where
	// there is none, or the kernel does not run it for this control group.
	Program uint32
	// Tag is the kernel's checksum of it, and Want what it must be.
	Tag, Want string
	// Link is the id of the pinned link that holds it.
	Link uint32
	// Others are ids of programs of the same hook that are not ours: on the unit's
	// control group or one above. They run too, and can refuse and change calls.
	Others []uint32
}

// Attachment is what is attached to a control group.
type Attachment struct {
	Set, Get Part
	// Rules are what the tables say that the attached programs use, found by the
	// program's own ids of them and not by the pins.
	Rules Rules
	// Ours: both programs are attached, are those of the committed object, and use
	// the same tables, which are also the ones pinned for the unit.
	Ours bool
	// Why says what Ours lacks, for a person.
	Why string
}

// Holds says whether what is attached is ours and has these rules.
func (a Attachment) Holds(r Rules) bool { return a.Ours && a.Rules.Equal(r) }

// Attached asks the kernel what is attached to a unit's control group.
func (s *System) Attached(path, unit string) (a Attachment, err error) {
	what := fmt.Sprintf("cannot find out which programs are attached to %s", path)
	cg, err := s.openCgroup(path)
	if err != nil {
		return a, err
	}
	defer cg.Close()
	var tables []uint32
	for _, h := range hooks {
		part, maps, err := s.part(cg, h, s.dir(unit))
		if err != nil {
			return a, judge(what, err)
		}
		if h.call == Set {
			a.Set = part
		} else {
			a.Get = part
		}
		switch {
		case a.Why != "":
		case part.Program == 0:
			a.Why = "no program of aaunit is attached for " + h.call.String()
		case part.Tag == "":
			a.Why = "the program that is attached for " + h.call.String() + " is none of those that are pinned"
		case part.Tag != part.Want:
			a.Why = "the program that is attached for " + h.call.String() + " is another version than this one"
		case tables != nil && !slices.Equal(tables, maps):
			a.Why = "the two programs do not use the same tables"
		}
		tables = maps
	}
	if a.Why != "" {
		// Without the pins it cannot be told whose a program is.
		if err := s.mounted(what); err != nil && len(a.Set.Others)+len(a.Get.Others) > 0 {
			return a, err
		}
		return a, nil
	}
	// Only the pinned tables count: those are the ones that are read and changed.
	d := &unitDir{path: s.dir(unit)}
	o, err := d.openMaps(mapNames[:]...)
	if errors.Is(err, ErrNothing) {
		a.Why = "the tables of the programs are not pinned"
		return a, nil
	}
	if err != nil {
		return a, judge(what, err)
	}
	defer o.Close()
	for _, name := range mapNames {
		info, err := o.maps[name].Info()
		if err != nil {
			return a, judge(what, err)
		}
		if id, _ := info.ID(); !slices.Contains(tables, uint32(id)) {
			a.Why = "the programs do not use the tables that are pinned"
			return a, nil
		}
	}
	var settings bpfSettings
	if a.Rules, settings, err = readRules(o.maps["allow"], o.maps["config"]); err != nil {
		a.Why = err.Error()
		return a, judge(what, err)
	}
	want := settings
	if scope(path, unit, cg.id)(&want); want != settings {
		a.Why = "the programs hold the tasks of another control group to the rules"
		return a, nil
	}
	a.Ours = true
	return a, nil
}

// part looks at one hook. The program that is ours is the one of the pinned link,
// and what the link says is believed only where the kernel lists that program
// among those that run for the control group, and it has our tag.
func (s *System) part(cg cgroup, h hook, dir string) (p Part, maps []uint32, err error) {
	if p.Want, err = s.tag(h.call); err != nil {
		return p, nil, err
	}
	var mine ebpf.ProgramID
	var linkID link.ID
	if l, err := link.LoadPinnedLink(filepath.Join(dir, h.link), nil); err == nil {
		if info, err := l.Info(); err == nil && info.Cgroup() != nil && info.Cgroup().CgroupId == cg.id {
			mine, linkID = info.Program, info.ID
		}
		l.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return p, nil, err
	}
	result, err := link.QueryPrograms(link.QueryOptions{Target: int(cg.Fd()), Attach: h.attach, QueryFlags: queryEffective})
	if err != nil {
		return p, nil, err
	}
	for _, attached := range result.Programs {
		if attached.ID != mine {
			p.Others = append(p.Others, uint32(attached.ID))
			continue
		}
		p.Program, p.Link = uint32(mine), uint32(linkID)
		if p.Tag, maps, err = pinnedTag(dir, h, mine); err != nil {
			return p, nil, err
		}
	}
	return p, maps, nil
}

// queryEffective asks also for programs of control groups above
// (BPF_F_QUERY_EFFECTIVE, bpf(2)).
const queryEffective = 1

// pinnedTag finds the program with an id among those that are pinned for the unit,
// of whatever version; tag is "" where it is none of them. To open it by its id would
// take CAP_SYS_ADMIN (bpf_prog_get_fd_by_id in the kernel's kernel/bpf/syscall.c),
// which the daemon does not have.
func pinnedTag(dir string, h hook, id ebpf.ProgramID) (tag string, maps []uint32, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", nil, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), h.program+"_") {
			continue
		}
		p, err := ebpf.LoadPinnedProgram(filepath.Join(dir, e.Name()), nil)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was unpinned in the meantime
		}
		if err != nil {
			return "", nil, err
		}
		info, err := p.Info()
		p.Close()
		if err != nil {
			return "", nil, err
		}
		if found, ok := info.ID(); !ok || found != id {
			continue
		}
		ids, _ := info.MapIDs()
		for _, m := range ids {
			maps = append(maps, uint32(m))
		}
		slices.Sort(maps)
		return info.Tag, maps, nil
	}
	return "", nil, nil
}
