package units

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// mirror keeps what systemd told about units, so that a unit about which nothing
// has changed need not be read again: reading all properties of a hundred units
// costs systemd, the bus and us far more than looking at their tasks, and one that
// is not loaded has to be loaded first.
//
// What is kept may be used only while it is certain that systemd would say the
// same now. That rests on the order of messages of one connection, the one on
// which Follow hears signals:
//
//   - systemd tells of every change of a unit by PropertiesChanged, of its files
//     by Reloading and UnitFilesChanged, and does so before it takes the next
//     message (manager_loop in its src/core/manager.c: the queue of signals is
//     empty before an event is waited for; seen in 252 and 257).
//   - So when it has answered a call that was made after somebody asked here,
//     every change before that moment has been heard. An answer behind which a
//     change of its unit was heard is thrown away; one that was heard before the
//     answer came is in it.
//   - While more than a thousand messages wait to be sent, over all its connections
//     together, systemd holds such signals back (MANAGER_BUS_BUSY_THRESHOLD there).
//     One client that does not read can keep it so for as long as it lives, and our
//     own connection then tells nothing of it. So the call asks for the states of
//     the units in question, which systemd knows from memory, and what is kept of a
//     unit in another state is thrown away.
//
// A unit can be up as before, and be another start. But every start is by a job, an
// automatic restart too, and before systemd tells of a job's end it sends what it
// holds back of the unit (bus_job_send_removed_signal in its src/core/dbus-job.c). So
// of a unit that was up neither its end nor a new start is missed. What is missed
// while signals are held back is what changes without the end of a job and leaves the
// unit in the state that is kept: another main process that the service names itself,
// properties that are set while it runs, and, of a unit that was on its way up or
// down, that it is so again.
//
// That is for units that run. systemd unloads one that does not, and loads it
// anew without a word; but of one that is not loaded it knows only what is in its
// files. So of those, what was read while there was nothing else to tell is kept,
// and may be used while the unit is not loaded and its files are the same.
//
// What systemd finds out only when it is asked (NeedDaemonReload) is found out
// here from the same files and directories. Whatever does not fit, and a bus or
// systemd that went away, costs a new read and nothing else.
type mirror struct {
	mu   sync.Mutex
	conn *dbus.Conn // on which signals are heard; nil: nothing is kept
	kept map[string]*kept
	// common are the strings that units have in common.
	common common
	// reads are under way, by unit; a change of the unit behind the answer spoils
	// them.
	reads map[string][]*reading
	// now is being asked, next will be when it is answered.
	now, next *roundTrip
}

// maxKept bounds the units that are kept; the others are read each time.
const maxKept = 4096

// kept is a unit as it was read.
type kept struct {
	u     attach.Unit
	deps  []string
	files []stampedFile // unit file, drop-ins, and directories of drop-ins
	dirs  dirState      // of the round trip before
}

// reading is a read under way.
type reading struct {
	conn    *dbus.Conn
	begun   time.Time
	spoiled bool
	// changed is the place of the last word of a change of the unit among all that
	// came over conn, and answered that of the answer; without one, every change
	// counts as behind it.
	changed, answered dbus.Sequence
	dirs              dirState
}

// racy is how long a file must have been untouched for its times to prove that
// it did not change since: the kernel's clock for them is coarse.
const racy = 50 * time.Millisecond

// roundTrip is a call to systemd that several wait for.
type roundTrip struct {
	done chan struct{}
	conn *dbus.Conn
	err  error
	// states are of the units that are asked about. They are added to until the call
	// is made, and answered when it is done; of those that are not told they are empty.
	states map[string]unitState

	once  sync.Once
	state dirState
}

// unitState is what systemd tells of a unit when it is asked about many.
type unitState struct{ active, sub string }

// confirms reports whether a unit was in the state that is kept. One that does not run
// is not asked for its state, for which systemd would load it.
func (t *roundTrip) confirms(k *kept) bool {
	return !k.u.Active() || t.states[k.u.ID] == unitState{k.u.ActiveState, k.u.SubState}
}

// dirs tells the state of the unit directories at a time after the answer.
func (t *roundTrip) dirs(s *Systemd) dirState {
	t.once.Do(func() { t.state = s.unitDirs() })
	return t.state
}

// stamp tells a file or directory from what it was.
type stamp struct {
	dev, ino     uint64
	mtime, ctime unix.Timespec
}

type stampedFile struct {
	path string
	stamp
}

// dirState tells the state of all unit directories from another one.
type dirState [sha256.Size]byte

// open says on which connection signals are heard from now on; nil is none, and
// nothing is kept.
func (m *mirror) open(conn *dbus.Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.conn = conn
	m.clear()
}

// forget throws everything away: it may all have changed.
func (m *mirror) forget() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clear()
}

func (m *mirror) clear() {
	m.kept, m.common = map[string]*kept{}, common{}
	for _, rs := range m.reads {
		for _, r := range rs {
			r.spoiled = true
		}
	}
}

// changed says that a unit changed: systemd's word of it has that place among all
// that came over the connection.
func (m *mirror) changed(unit string, at dbus.Sequence) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.kept, unit)
	for _, r := range m.reads[unit] {
		r.changed = max(r.changed, at)
	}
}

// stale throws away what is kept of a unit. m.mu is held.
func (m *mirror) stale(unit string) {
	delete(m.kept, unit)
	for _, r := range m.reads[unit] {
		r.spoiled = true
	}
}

// get gives what is kept of a unit, when systemd would say the same now: about
// its files too, if files is set.
func (m *mirror) get(ctx context.Context, s *Systemd, unit string, files bool) (*kept, bool) {
	m.mu.Lock()
	k := m.kept[unit]
	m.mu.Unlock()
	if k == nil {
		return nil, false
	}
	var running []string
	if k.u.Active() {
		running = []string{unit}
	}
	t := m.ask(ctx, s, running...)
	if t.err != nil || !k.u.Active() && !s.unloaded(ctx, unit) {
		return nil, false
	}
	files = files || !k.u.Active()
	same := t.confirms(k) && (!files || k.dirs == t.dirs(s) && s.unchanged(k.files))
	m.mu.Lock()
	defer m.mu.Unlock()
	if t.conn != m.conn || m.kept[unit] != k {
		return nil, false
	}
	if !same {
		m.stale(unit)
	}
	return k, same
}

// during calls look with what is kept of those of the units that run, and gives
// those of which systemd would say the same before and after that. It is asked both
// times, the first time while look is at work.
func (m *mirror) during(ctx context.Context, s *Systemd, units []string, look func(map[string]*kept)) map[string]*kept {
	known := make(map[string]*kept, len(units))
	m.mu.Lock()
	for _, unit := range units {
		if k := m.kept[unit]; k != nil && k.u.Active() {
			known[unit] = k
		}
	}
	m.mu.Unlock()
	if len(known) == 0 {
		return nil
	}
	running := slices.Collect(maps.Keys(known))
	before := m.begun(s, running...)
	look(known)
	before = before.wait(ctx)
	after := m.ask(ctx, s, running...)
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range []*roundTrip{before, after} {
		if t.err != nil || t.conn != m.conn {
			return nil
		}
	}
	maps.DeleteFunc(known, func(unit string, k *kept) bool {
		if m.kept[unit] != k {
			return true // it changed, and is not kept any more or was read anew
		}
		// By the second answer it may be back in the state that it has left.
		same := before.confirms(k) && after.confirms(k)
		if !same {
			m.stale(unit)
		}
		return !same
	})
	return known
}

// unloaded reports whether systemd has not loaded a unit, without having it do so.
func (s *Systemd) unloaded(ctx context.Context, unit string) bool {
	var path dbus.ObjectPath
	err := s.call(ctx, s.wait.call, managerPath, managerIface+".GetUnit", []any{unit}, &path)
	return errorName(err) == "org.freedesktop.systemd1.NoSuchUnit"
}

// asUnloaded reports whether a unit that does not run is as systemd loads it: it
// has no start to tell of.
func asUnloaded(u attach.Unit) bool {
	return u.LoadState == "loaded" && u.ActiveState == "inactive" && u.SubState == "dead" && u.InvocationID == "" && u.Result == "success" &&
		u.NRestarts == 0 && u.ExecMainCode == 0 && u.Condition == attach.CouldNotTell && u.Assert == attach.CouldNotTell && !u.Transient && !u.NeedReload
}

// begin announces a read of a unit; end must follow.
func (m *mirror) begin(s *Systemd, unit string) *reading {
	r := &reading{begun: time.Now(), dirs: s.unitDirs()}
	m.mu.Lock()
	defer m.mu.Unlock()
	r.conn = m.conn
	if m.reads == nil {
		m.reads = map[string][]*reading{}
	}
	m.reads[unit] = append(m.reads[unit], r)
	return r
}

// end keeps what was read, unless something changed meanwhile. k is nil where
// there is nothing to keep.
func (m *mirror) end(unit string, r *reading, k *kept) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads[unit] = slices.DeleteFunc(m.reads[unit], func(o *reading) bool { return o == r })
	if len(m.reads[unit]) == 0 {
		delete(m.reads, unit)
	}
	if k == nil || k.changedSince(r.begun.Add(-racy)) || r.spoiled || r.changed > r.answered || m.conn == nil || r.conn != m.conn {
		return
	}
	if len(m.kept) >= maxKept {
		// Instances come and go; those that run are asked about more often.
		maps.DeleteFunc(m.kept, func(_ string, k *kept) bool { return !k.u.Active() })
		if len(m.kept) >= maxKept {
			return
		}
	}
	k.dirs = r.dirs
	k.compact(m.common)
	m.kept[k.u.ID] = k
}

// changedSince reports whether a file or directory was changed after a time, so
// that whether the read has seen it cannot be told.
func (k *kept) changedSince(t time.Time) bool {
	for _, f := range k.files {
		if st := f.stamp; st != (stamp{}) && time.Unix(st.ctime.Unix()).After(t) {
			return true
		}
	}
	return false
}

// ask makes a round trip to systemd that begins after it was called, and asks about
// those units, which run. Callers that come while one is under way share the next one.
func (m *mirror) ask(ctx context.Context, s *Systemd, units ...string) *roundTrip {
	return m.begun(s, units...).wait(ctx)
}

// begun is a round trip that ask would wait for.
func (m *mirror) begun(s *Systemd, units ...string) *roundTrip {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.next
	if t == nil {
		t = &roundTrip{done: make(chan struct{}), states: make(map[string]unitState, len(units))}
		if m.now == nil {
			m.now = t
			go m.travel(s, t)
		} else {
			m.next = t
		}
	}
	for _, unit := range units {
		if len(t.states) < maxKept { // who is not among them is read
			t.states[unit] = unitState{}
		}
	}
	return t
}

// wait gives the round trip when it is over.
func (t *roundTrip) wait(ctx context.Context) *roundTrip {
	select {
	case <-t.done:
		return t
	case <-ctx.Done():
		return &roundTrip{err: context.Cause(ctx)}
	}
}

// travel makes round trips for as long as somebody waits for one.
func (m *mirror) travel(s *Systemd, t *roundTrip) {
	for t != nil {
		m.mu.Lock()
		t.conn = m.conn
		m.mu.Unlock()
		t.err = t.call(s)
		m.mu.Lock()
		close(t.done)
		t = m.next
		m.now, m.next = t, nil
		m.mu.Unlock()
	}
}

// call makes the one call of a round trip.
func (t *roundTrip) call(s *Systemd) error {
	switch {
	case t.conn == nil:
		return errNotHeard
	case len(t.states) == 0:
		return ask(context.Background(), t.conn, s.wait.call, systemdName, managerPath, peerIface+".Ping", nil)
	}
	names := slices.Collect(maps.Keys(t.states))
	call, err := askOnce(context.Background(), t.conn, s.wait.call, systemdName, managerPath, managerIface+".ListUnitsByNames", []any{names})
	if err != nil {
		return err
	}
	// The rows of listedUnit as godbus has decoded them: Store would copy each twice.
	var rows [][]any
	if len(call.Body) == 1 {
		rows, _ = call.Body[0].([][]any)
	}
	for _, row := range rows {
		if len(row) < 5 {
			continue
		}
		name, _ := row[0].(string)
		active, _ := row[3].(string)
		sub, _ := row[4].(string)
		if _, asked := t.states[name]; asked {
			t.states[name] = unitState{active, sub}
		}
	}
	return nil
}

// unitPaths are the directories in which systemd looks for unit files and
// drop-ins; systemd.unit(5), "System Unit Search Path".
var unitPaths = []string{
	"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient",
	"/run/systemd/generator.early", "/etc/systemd/system", "/etc/systemd/system.attached",
	"/run/systemd/system", "/run/systemd/system.attached", "/run/systemd/generator",
	"/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
	"/run/systemd/generator.late",
}

// unitDirs tells the state of the unit directories: one in which a file or
// directory comes or goes reads differently.
func (s *Systemd) unitDirs() (state dirState) {
	h := sha256.New()
	for _, dir := range unitPaths {
		fmt.Fprint(h, s.stampOf(dir), " ")
	}
	h.Sum(state[:0])
	return state
}

func (s *Systemd) stampOf(path string) stamp {
	var st unix.Stat_t
	if unix.Stat(filepath.Join(s.root, path), &st) != nil {
		return stamp{}
	}
	return stamp{st.Dev, st.Ino, st.Mtim, st.Ctim}
}

func (s *Systemd) unchanged(files []stampedFile) bool {
	return !slices.ContainsFunc(files, func(f stampedFile) bool { return s.stampOf(f.path) != f.stamp })
}

// filesOf are the files that a unit was read from (source is what a generator
// made it of), and the directories in which a drop-in of it could appear. A
// directory that does not exist yet changes the one above it when it comes.
func (s *Systemd) filesOf(u attach.Unit, source string) (files []stampedFile) {
	for _, path := range append([]string{u.FragmentPath, source}, u.DropIns...) {
		if path != "" && path != os.DevNull {
			files = append(files, stampedFile{path, s.stampOf(path)})
		}
	}
	paths := slices.DeleteFunc(slices.Clone(unitPaths), func(dir string) bool { return s.stampOf(dir) == stamp{} })
	for _, unit := range append([]string{u.ID}, u.Names...) {
		if fullName(unit) != nil {
			continue
		}
		for _, name := range append(dropInNames(unit), strings.TrimPrefix(filepath.Ext(unit), ".")) {
			for _, dir := range paths {
				dir = filepath.Join(dir, name+".d")
				if st := s.stampOf(dir); st != (stamp{}) {
					files = append(files, stampedFile{dir, st})
				}
			}
		}
	}
	slices.SortFunc(files, func(a, b stampedFile) int { return strings.Compare(a.path, b.path) })
	return slices.Clip(slices.CompactFunc(files, func(a, b stampedFile) bool { return a.path == b.path }))
}

// changedLast is when one of the files themselves was last changed, or put there: their
// directories change with aaunit's drop-in, and generators write theirs at each reload. Of
// one that is not there it cannot be told, which is after any start.
func changedLast(files []stampedFile) (last time.Time) {
	for _, f := range files {
		switch {
		case strings.HasSuffix(f.path, ".d"), filepath.Base(f.path) == attach.DropInName, strings.HasPrefix(f.path, "/run/systemd/generator"):
			continue
		case f.stamp == stamp{}:
			return time.Unix(1<<40, 0)
		}
		if at := time.Unix(f.ctime.Unix()); at.After(last) {
			last = at
		}
	}
	return last
}

// stateOf tells the state of such files from any other, and which of them are not there.
// It goes by what they say and not by their times, since a daemon-reload has generators
// write their units anew. Of source, which may be any file, only the time of the last
// change is told, which is all that systemd looks at (unit_need_daemon_reload in its
// src/core/unit.c).
func (s *Systemd) stateOf(files []stampedFile, source string) (state string, missing []string) {
	h := sha256.New()
	for _, f := range files {
		real := filepath.Join(s.root, f.path)
		st, err := os.Stat(real)
		switch {
		case err != nil:
			missing = append(missing, f.path)
			fmt.Fprintf(h, "%q is not there\n", f.path)
		case st.IsDir():
			entries, err := os.ReadDir(real)
			fmt.Fprintf(h, "%q has %v", f.path, err)
			for _, e := range entries {
				if strings.HasSuffix(e.Name(), ".conf") {
					fmt.Fprintf(h, " %q", e.Name())
				}
			}
			fmt.Fprintln(h)
		case f.path == source:
			fmt.Fprintf(h, "%q is of %d\n", f.path, st.ModTime().UnixNano())
		case st.Mode().IsRegular() && st.Size() <= maxUnitFile:
			text, err := os.ReadFile(real)
			fmt.Fprintf(h, "%q says %q %v\n", f.path, text, err)
		default:
			fmt.Fprintf(h, "%q is %v of %d bytes\n", f.path, st.Mode(), st.Size())
		}
	}
	return hex.EncodeToString(h.Sum(nil)), missing
}

// compact gives the strings of what is kept a memory of their own: godbus cuts the
// strings of a message out of one buffer, all of which a single one of them would keep.
// Those that are hardly of another unit lie in one piece, and mostly in each other, as
// the names of a unit lie in the paths of its files. Of the others equal ones are the
// same.
func (k *kept) compact(known common) {
	one := func(p *string) { *p = known.one(*p) }
	all := func(list []string) {
		for i := range list {
			one(&list[i])
		}
	}
	u, set := &k.u, &k.u.Settings
	own := []*string{&u.ID, &u.FragmentPath, &u.UserFile, &u.FilesState, &u.InvocationID, &u.ControlGroup}
	for _, list := range [][]string{u.Names, u.DropIns, u.Missing, u.Sockets} {
		for i := range list {
			own = append(own, &list[i])
		}
	}
	for i := range k.files {
		own = append(own, &k.files[i].path)
	}
	for i := range set.Assignments {
		own = append(own, &set.Assignments[i].Path)
	}
	together(own)
	for _, p := range []*string{&u.LoadState, &u.LoadError, &u.ActiveState, &u.SubState, &u.Result, &u.UnitFileState,
		&u.Type, &set.Profile, &set.User, &set.PAMName, &set.RootDirectory} {
		one(p)
	}
	set.PrivateTmp = attach.PrivateTmp(known.one(string(set.PrivateTmp)))
	for _, list := range [][]string{u.RestartsWith, set.After, set.JoinsNamespaceOf, set.Architectures, k.deps} {
		all(list)
	}
	if set.AddressFamilies != nil {
		all(set.AddressFamilies.Families)
	}
	for i := range set.Directories {
		one(&set.Directories[i].Property)
		one(&set.Directories[i].Path)
	}
	for i := range set.Mounts {
		one(&set.Mounts[i].Property)
		one(&set.Mounts[i].Path)
		one(&set.Mounts[i].Source)
	}
	for i := range set.Exec {
		c := &set.Exec[i]
		one(&c.Property)
		one(&c.Path)
		all(c.Argv)
	}
	for i := range set.Assignments {
		a := &set.Assignments[i]
		one(&a.Key)
		one(&a.Value)
	}
	for i := range u.Runs {
		one(&u.Runs[i].Property)
		one(&u.Runs[i].Path)
	}
}

// common are strings, each by itself. They are held for as long as the mirror keeps
// anything: what unique.Make gives is forgotten while its strings are in use.
type common map[string]string

// Bounds on common: units say much the same.
const (
	maxCommon     = 4096
	maxCommonSize = 256 // bytes
)

// one gives a word that is the same for all who say it, or a copy.
func (c common) one(s string) string {
	known, ok := c[s]
	if ok {
		return known
	}
	s = strings.Clone(s)
	if c != nil && len(c) < maxCommon && len(s) <= maxCommonSize {
		c[s] = s
	}
	return s
}

// manyStrings are more than are looked for in each other: that takes time that grows
// with the square of them.
const manyStrings = 100

// together has strings lie in one new piece of memory, one that is part of another only
// once.
func together(own []*string) {
	if len(own) > manyStrings {
		for _, p := range own {
			*p = strings.Clone(*p)
		}
		return
	}
	slices.SortFunc(own, func(a, b *string) int { return len(*b) - len(*a) })
	var piece []byte
	for _, p := range own {
		if !bytes.Contains(piece, []byte(*p)) {
			piece = append(piece, *p...)
		}
	}
	text := string(piece)
	for _, p := range own {
		at := strings.Index(text, *p)
		*p = text[at : at+len(*p)]
	}
}
