package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// world is a small machine: systemd, AppArmor, attachment files and records,
// in memory. It counts the calls that are dear. Everything is also tested for
// real in test/vm.
type world struct {
	resting   func() (resume func())
	passUnits int  // Options.PassUnits
	tells     bool // the kernel tells of what the daemon itself loads and unloads, too
	mu        sync.Mutex
	units     map[string]*unit
	aliases   map[string]string
	disk      map[string]string        // drop-ins
	read      map[string]string        // drop-ins as of the last daemon-reload
	files     map[string]string        // profile -> version of its text
	bad       map[string]bool          // profile whose text does not compile
	unread    map[string]attach.Reason // profile files of which not even names could be read
	kernel    map[string]string        // profile -> version that is loaded
	att       map[string]attach.Attachment
	broken    map[string]bool
	records   map[string]attach.Record
	kept      map[string]attach.Compiled // accepted policies on disk
	calls     map[string]int
	trace     []string

	events  chan attach.UnitEvent
	changed chan struct{}
	denials chan attach.Denial
	policy  chan struct{}
	// onCall is told each call before it takes effect.
	onCall func(call string)
	// onScan is told each look at tasks.
	glances []string // units that were looked at one by one
	rescans []string // and together with others
	onScan  func()
	opened  []string // profile and attachment files that were read by their names
	// killAt is the number of the call before which the daemon is killed; from
	// then on, nothing it calls has any effect.
	killAt int
	// onStep is told everything that is about to change anything, records and
	// attachments included; it says whether the daemon is killed there.
	onStep func(step string) (kill bool)
	daemon *Loop // that runs
	// unlisted: systemd does not list units.
	unlisted bool
	lists    int // so often it was asked to
	log      journalText
	// hang: a look at these units ends when the channel is closed.
	hang map[string]chan struct{}
	// byPath: profiles that attach to the program that all units run.
	byPath   map[string]bool
	boots    int   // of the machine
	diskFull bool  // records cannot be saved
	refuses  error // writing an attachment
	// noRecords: records alone cannot be saved, or, when the daemon starts, listed.
	noRecords bool
	complains atomic.Bool // the global mode is complain
	// noRoom says of the write of that number, from 1, whether there is no room for it.
	noRoom func(write int) bool
	writes int
	dead   bool
	// deadly: version of a policy -> what becomes of a unit that runs under it.
	deadly   map[string]string
	flags    map[string][]string // profile -> flags in its text
	notFor   map[string]string   // unit -> version of profile a that its own assertions keep out
	softened map[string]string   // profile -> link in force-complain
	gate     func(attach.Compiled) []attach.Reason
	denies   func(attach.Compiled, attach.Denial) attach.Tri // nil: no policy can tell
	sameWays func(was, is []attach.Compiled) attach.Tri      // nil: they are
	warns    bool                                            // what the gate cannot tell is a warning
	parser   string
	untold   map[string]attach.Reason // profile -> why the parser could not be asked about its text
	hangs    bool                     // the parser does not end
	full     bool                     // the kernel loads nothing
	tooNew   string                   // a file whose accepted text another parser does not take
	disputed string                   // what the kernel answers otherwise than every compiled policy says
	// also: profile -> another one that its file defines.
	also map[string]string
	// deaf: systemd does not reload. mute: it answers nothing.
	deaf     bool
	mute     bool
	evidence Evidence
	// triggers: service -> .socket units that start it. rules are kept for the start
	// helper, attached is what the kernel has; kernelless: it does not support it.
	triggers        map[string][]string
	rules, attached map[string]attach.SocketOptions
	uses            *uses // what was seen of socket options; nil is nothing
	kernelless      bool
	onAttached      func() // told each look at what is attached
	covered         bool   // what is in the kernel cannot be reached
	mayNot          bool   // no profile lets BPF be used
	writesBelow     string // of /sys/fs, where profiles let tasks write
	// overtake is what somebody does to the unit that is restarted or started next, and whose
	// job takes the place of that one's.
	overtake func(u *unit)
	// socketLacks: a file that systemd lists for .socket units is not there.
	socketLacks string
	// starting: systemd is starting something, and no profile can be unloaded.
	starting bool
	// lodgers: units with PAMName= -> the session scope of their main process.
	lodgers map[string]string
	// moved: profile -> the name of the file that defines it, where that is not its own.
	moved map[string]string
	// in: profile -> the file of another one that defines it, as also says; alike: such a
	// profile -> its version, where that is not the file's.
	in, alike map[string]string
	// leads: profile -> others under which its tasks can come to run by themselves.
	leads map[string][]string
	// leadsWith: checksum of a profile -> the same, where the policies have that.
	leadsWith map[string]map[string][]string
}

// journalText is what the daemon logged.
type journalText struct {
	sync.Mutex
	strings.Builder
}

func (j *journalText) Write(b []byte) (int, error) {
	j.Lock()
	defer j.Unlock()
	return j.Builder.Write(b)
}

func (j *journalText) count(text string) int {
	j.Lock()
	defer j.Unlock()
	return strings.Count(j.String(), text)
}

// noSpace is an error that knows its way out.
type noSpace struct{}

func (noSpace) Error() string  { return "no space left on device" }
func (noSpace) WayOut() string { return "make room" }

// overtaken is an error of a job of which another one took the place.
type overtaken struct{}

func (overtaken) Error() string  { return `the job's result is "canceled"` }
func (overtaken) Canceled() bool { return true }

var errDead = errors.New("the daemon was killed")

func (w *world) lock() (unlock func()) {
	w.mu.Lock()
	return w.mu.Unlock
}

type unit struct {
	name     string
	running  bool
	failed   bool
	oneshot  bool // at work while it runs
	stopping bool // it takes its time to stop
	dying    bool // and does so since its program has failed
	start    int  // counts starts
	since    time.Time
	ended    time.Time // of its program, where it failed
	ceased   time.Time // when it was active no more, where that was not by itself
	label    string    // of its task
	tmp      bool      // private
	own      string    // its own AppArmorProfile=
	breaks   map[string]bool
	restarts uint32
	// drags are units that a stop of it takes along, and a restart restarts, as with
	// Requires= of theirs; a start does not start them.
	drags     []string
	forked    int    // so many looks see systemd on its way to the program
	survives  bool   // whatever policy its profile gets
	crashLoop bool   // dies under any profile, and systemd starts it again
	rests     bool   // between two starts of a crash loop systemd waits for a while
	between   bool   // and does so now
	hangs     bool   // a start does not come to its end
	elsewhere bool   // its program is another one than that of all the others
	early     bool   // DefaultDependencies=no
	root      string // RootDirectory=
	mayBPF    bool   // SystemCallFilter= lets it call bpf(2)
	mainless  bool   // it forks, and systemd cannot guess its main process
	// lacks is a file that systemd lists for it and that is not there, and files stands for
	// what its files say.
	lacks, files string
	// slow: a start stops at a command of the vendor's before the start helper, where
	// the unit is before, until it goes on.
	slow, before bool
	// unloads: it has no file of its own, as an instance of a template, and systemd lets
	// go of it when it ends: it is found all the same, and listed nowhere.
	unloads bool
	// moves: profile -> another one that its program changes to by itself.
	moves map[string]string
	// collected: it does so, too, where the unit failed (CollectMode=inactive-or-failed).
	collected bool
	kept      int // for so many who asked for it
	// dies: it fails right after the next restart of it is done.
	dies bool
	// barred: a start of it fails, since that of one which it requires does.
	barred bool
	// fileless: its unit file is not there any more, and systemd has been reloaded since.
	fileless bool
}

// loaded reports whether systemd has the unit loaded.
func (u *unit) loaded() bool {
	return !u.unloads && !u.fileless || u.running || u.kept > 0 || u.failed && !u.collected
}

func newWorld() *world {
	return &world{
		units: map[string]*unit{}, aliases: map[string]string{}, disk: map[string]string{}, read: map[string]string{},
		files: map[string]string{}, bad: map[string]bool{}, kernel: map[string]string{}, att: map[string]attach.Attachment{},
		broken: map[string]bool{}, records: map[string]attach.Record{}, kept: map[string]attach.Compiled{}, calls: map[string]int{},
		events: make(chan attach.UnitEvent, 1000), changed: make(chan struct{}, 1),
		triggers: map[string][]string{}, rules: map[string]attach.SocketOptions{}, attached: map[string]attach.SocketOptions{},
	}
}

func (w *world) call(format string, args ...any) error {
	c := fmt.Sprintf(format, args...)
	if w.dead = w.dead || w.killAt > 0 && len(w.trace) == w.killAt-1; w.dead {
		return errDead
	}
	if err := w.step(c); err != nil {
		return err
	}
	w.calls[strings.Fields(c)[0]]++
	w.trace = append(w.trace, c)
	if f := w.onCall; f != nil {
		f(c)
	}
	return nil
}

// isFull counts a write, and reports whether there is no room for it.
func (w *world) isFull() bool {
	w.writes++
	return w.noRoom != nil && w.noRoom(w.writes)
}

// step is a point at which the daemon can be killed.
func (w *world) step(name string) error {
	if !w.dead && w.onStep != nil {
		w.dead = w.onStep(name)
	}
	if w.dead {
		return errDead
	}
	return nil
}

// addUnit adds a running, unconfined unit and a profile of the same name.
func (w *world) addUnit(name string) *unit {
	u := &unit{name: name, running: true, start: 1, label: "unconfined", breaks: map[string]bool{}}
	w.units[name] = u
	w.files[strings.TrimSuffix(name, ".service")] = "1"
	return u
}

func (w *world) declareUnit(file, unit string, change func(*attach.Attachment)) {
	w.mu.Lock()
	a := attach.NewAttachment()
	a.Source, a.Line = file, 1
	a.Units, a.Profile = []string{unit}, strings.TrimSuffix(unit, ".service")
	if change != nil {
		change(&a)
	}
	w.att[file] = a
	w.mu.Unlock()
	w.tellFiles()
}

func (w *world) undeclare(file string) {
	w.mu.Lock()
	delete(w.att, file)
	w.mu.Unlock()
	w.tellFiles()
}

func (w *world) tellFiles() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *world) tellPolicy() {
	select {
	case w.policy <- struct{}{}:
	default:
	}
}

// setting is the last value of a key in the drop-ins that systemd has read.
func (w *world) setting(unit, key string) (value string, at []attach.Assignment) {
	for _, p := range slices.Sorted(maps.Keys(w.read)) {
		dir := path.Base(path.Dir(p))
		place := strings.TrimSuffix(dir, ".d")
		serves := attach.IsTemplate(place) && attach.TemplateOf(unit) == place || attach.IsPrefix(place) && strings.HasPrefix(unit, strings.TrimSuffix(place, ".service"))
		if place != unit && !serves && w.aliases[place] != unit {
			continue
		}
		for i, l := range strings.Split(w.read[p], "\n") {
			if v, ok := strings.CutPrefix(l, key+"="); ok {
				value = v
				at = append(at, attach.Assignment{Key: key, Value: v, Path: p, Line: i + 1})
			}
		}
	}
	return value, at
}

func (a apparmor) Fingerprint(names []string, file string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	print := file
	for _, n := range names {
		print += fmt.Sprintln(n, a.files[n], a.bad[n], a.kernel[n], a.also[n], a.byPath[n])
	}
	return print
}

func (a apparmor) LoadedState(names []string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	state := ""
	for _, n := range names {
		state += fmt.Sprintln(n, a.kernel[n])
	}
	return state
}

func (w *world) Glance(ctx context.Context, name string) (attach.Unit, error) {
	w.mu.Lock()
	w.glances = append(w.glances, name)
	w.mu.Unlock()
	return w.Observe(ctx, name)
}

func (w *world) Confining(ctx context.Context, name string) (attach.Settings, error) {
	u, err := w.Observe(ctx, name)
	return attach.Settings{Profile: u.Settings.Profile, IgnoreMissing: u.Settings.IgnoreMissing, AssertAppArmor: u.Settings.AssertAppArmor,
		PrivateTmp: u.Settings.PrivateTmp}, err
}

func (w *world) GlanceTogether(ctx context.Context, names []string, look func(map[string]attach.Unit)) (same []string) {
	running := func() map[string]attach.Unit {
		out := map[string]attach.Unit{}
		for _, name := range names {
			if u, err := w.Observe(ctx, name); err == nil && u.Active() {
				out[name] = u
			}
		}
		return out
	}
	before := running()
	if len(before) == 0 {
		return nil
	}
	look(before)
	for name, u := range running() {
		if reflect.DeepEqual(u, before[name]) {
			same = append(same, name)
		}
	}
	return same
}

func (w *world) Observe(ctx context.Context, name string) (attach.Unit, error) {
	unlock := w.lock()
	mute := w.mute
	unlock()
	if mute {
		select {
		case <-ctx.Done():
			return attach.Unit{}, ctx.Err()
		case <-time.After(25 * time.Second):
			return attach.Unit{}, errors.New("systemd does not answer")
		}
	}
	defer w.lock()()
	if w.dead {
		return attach.Unit{}, errDead
	}
	return w.observe(name)
}

func (w *world) observe(name string) (attach.Unit, error) {
	if c, ok := w.aliases[name]; ok {
		name = c
	}
	if name == "apparmor.service" {
		return attach.Unit{ID: name, LoadState: "loaded", UnitFileState: "enabled"}, nil
	}
	f, ok := w.units[name]
	if !ok {
		return attach.Unit{ID: name, Names: []string{name}, LoadState: "not-found", ActiveState: "inactive"}, nil
	}
	u := attach.Unit{ID: name, Names: []string{name}, LoadState: "loaded", ActiveState: "inactive", SubState: "dead", Type: "simple", Result: "success",
		FragmentPath: "/etc/systemd/system/" + name, UnitFileState: "enabled", NRestarts: f.restarts, FailedStays: !f.collected}
	if f.oneshot {
		u.Type = "oneshot"
	}
	for alias, of := range w.aliases {
		if of == name {
			u.Names = append(u.Names, alias)
		}
	}
	if f.start > 0 && f.loaded() {
		u.InvocationID, u.Left = fmt.Sprintf("%s-%d", name, f.start), f.since
	}
	switch {
	case f.running:
		u.ActiveState, u.SubState, u.MainPID = "active", "running", 1000+f.start
		u.RestartsWith = w.takesAlong(f)
		switch {
		case f.stopping:
			u.ActiveState, u.SubState = "deactivating", "stop-sigterm"
			if f.dying {
				u.SubState, u.Result, u.MainPID = "stop-post", "exit-code", 0
				u.Runs = []attach.Run{{Property: "ExecStart", Began: f.since, Ended: f.ended}}
				u.Ceased = cmp.Or(f.ceased, f.ended)
			}
		case f.before:
			u.ActiveState, u.SubState, u.MainPID, u.ControlPID = "activating", "start-pre", 0, u.MainPID
		case f.oneshot:
			u.ActiveState, u.SubState = "activating", "start"
		case f.mainless:
			u.MainPID = 0
		case f.between:
			u.ActiveState, u.SubState, u.MainPID = "activating", "auto-restart", 0
		}
	case f.failed && f.loaded():
		u.ActiveState, u.SubState, u.Result = "failed", "failed", "exit-code"
		u.Runs = []attach.Run{{Property: "ExecStart", Began: f.since, Ended: f.ended}}
		u.Ceased = cmp.Or(f.ceased, f.ended)
	}
	if f.fileless {
		u.LoadState, u.FragmentPath, u.UnitFileState = "not-found", "", ""
		return u, nil
	}
	s := &u.Settings
	s.DefaultDependencies = !f.early
	s.RefusesBPF = !f.mayBPF
	s.RootDirectory = f.root
	s.PrivateTmp = attach.PrivateTmpNo
	s.Profile = f.own
	if w.lodgers[name] != "" {
		s.PAMName = "login"
	}
	if v, at := w.setting(name, "AppArmorProfile"); len(at) > 0 {
		s.Profile, _ = attach.ExpandSpecifiers(v, name)
		s.Assignments = append(s.Assignments, at...)
	}
	if v, at := w.setting(name, "PrivateTmp"); v != "" {
		s.PrivateTmp = attach.PrivateTmp(v)
		s.Assignments = append(s.Assignments, at...)
	}
	if v, at := w.setting(name, "AssertSecurity"); v == "apparmor" {
		s.AssertAppArmor = true
		s.Assignments = append(s.Assignments, at...)
	}
	mine := path.Join("/etc/systemd/system", name+".d", attach.DropInName)
	u.NeedReload, u.FilesState = w.disk[mine] != w.read[mine] || f.lacks != "", w.disk[mine]+f.lacks+f.files
	if f.lacks != "" {
		u.Missing = []string{f.lacks}
	}
	u.ControlGroup = "/system.slice/" + name
	if f.loaded() {
		u.Sockets = w.triggers[name]
	}
	s.Exec = w.helperOf(name)
	return u, nil
}

// Pattern reads the drop-ins on the disk, of which only those of all services and of the
// pattern itself reach all of its units here.
func (w *world) Pattern(name string) (attach.Unit, error) {
	defer w.lock()()
	u := attach.Unit{ID: name, Names: []string{name}}
	files := slices.Collect(maps.Keys(w.disk))
	slices.SortFunc(files, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	for _, file := range files {
		if place := strings.TrimSuffix(path.Base(path.Dir(file)), ".d"); place != name && place != "service" {
			continue
		}
		u.DropIns = append(u.DropIns, file)
		for i, line := range strings.Split(w.disk[file], "\n") {
			if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
				u.Settings.Assignments = append(u.Settings.Assignments, attach.Assignment{Key: key, Value: value, Path: file, Line: i + 1})
			}
		}
	}
	return u, nil
}

func (w *world) Invocation(ctx context.Context, name string) (string, error) {
	u, err := w.Observe(ctx, name)
	return u.InvocationID, err
}

func (w *world) Expand(_ context.Context, glob string) ([]string, error) {
	defer w.lock()()
	w.lists++
	if w.unlisted {
		return nil, errors.New("systemd does not answer")
	}
	var out []string
	for n, u := range w.units {
		if ok, _ := path.Match(glob, n); ok && u.loaded() {
			out = append(out, n)
		}
	}
	return out, nil
}

func (w *world) ReadDropIn(p string) (string, bool, error) {
	defer w.lock()()
	text, ok := w.disk[p]
	return text, ok, nil
}

func (w *world) WriteDropIn(p, text string) (bool, error) {
	defer w.lock()()
	if w.disk[p] == text {
		return false, nil
	}
	if w.isFull() {
		return false, noSpace{}
	}
	if err := w.call("write %s", p); err != nil {
		return false, err
	}
	w.disk[p] = text
	return true, nil
}

func (w *world) RemoveDropIn(p string) (bool, error) {
	defer w.lock()()
	if _, ok := w.disk[p]; !ok {
		return false, nil
	}
	if err := w.call("remove %s", p); err != nil {
		return false, err
	}
	delete(w.disk, p)
	return true, nil
}

func (w *world) Reload(ctx context.Context) error {
	defer w.lock()()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := w.call("reload"); err != nil {
		return err
	}
	if w.deaf {
		return errors.New("systemd does not answer")
	}
	w.read = maps.Clone(w.disk)
	w.events <- attach.UnitEvent{Kind: attach.UnitsReloaded}
	return nil
}

// begin starts a unit as systemd would, with the settings it has read.
func (w *world) begin(u *unit) error {
	u.start++
	u.since = time.Now()
	u.restarts = 0
	u.failed, u.running, u.between, u.ceased = false, false, false, time.Time{}
	seen, _ := w.observe(u.name)
	p := seen.Settings.Profile
	_, loaded := w.kernel[p]
	u.label = "unconfined"
	for name := range w.byPath {
		if _, there := w.kernel[name]; there && p == "" && !u.elsewhere {
			p, loaded = name, true
		}
	}
	if p != "" {
		u.label = cmp.Or(u.moves[p], p) + " (enforce)"
	}
	u.tmp = seen.Settings.PrivateTmp != attach.PrivateTmpNo
	delete(w.attached, u.name) // its control group is a new one
	if u.before = u.slow; u.before {
		u.running = true
		w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: u.name}
		return nil
	}
	switch {
	case !w.help(u.name):
		u.failed = true
	case p != "" && !loaded, u.breaks[p], u.tmp && u.breaks["PrivateTmp"]:
		u.failed = true
	case p != "" && u.crashLoop:
		u.running = true
		u.restarts++
		u.start++
		u.between = u.rests
	default:
		u.running = !u.oneshot
	}
	w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: u.name}
	if u.failed {
		w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
		return fmt.Errorf("%s failed: result exit-code", u.name)
	}
	return nil
}

// goOn has a slow start come to its start helper, which does its work or says so and
// does not, and then to the program.
func (w *world) goOn(u *unit, helped bool) {
	defer w.lock()()
	if helped {
		w.help(u.name)
	}
	u.before = false
	w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: u.name}
}

func (w *world) TryRestart(ctx context.Context, name string) error {
	defer w.lock()()
	u := w.units[name]
	if !u.running {
		return nil
	}
	if err := w.call("restart %s", name); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if f := w.overtake; f != nil {
		w.overtake = nil
		f(u)
		return overtaken{}
	}
	along := w.takeAlong(u)
	if err := w.begin(u); err != nil {
		return err // and with it fail the starts of those that went down with it
	}
	if u.dies {
		u.dies, u.running, u.failed = false, false, true
		w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
	}
	for _, other := range along {
		_ = w.begin(other)
	}
	return nil
}

// takesAlong lists the units that are up and go down with one.
func (w *world) takesAlong(u *unit) (names []string) {
	for _, name := range u.drags {
		if other := w.units[name]; other == nil || other.running {
			names = append(names, name)
		}
	}
	return names
}

// takeAlong stops what goes down with a unit.
func (w *world) takeAlong(u *unit) (along []*unit) {
	for _, name := range w.takesAlong(u) {
		if other := w.units[name]; other != nil {
			other.running = false
			along = append(along, other)
		}
	}
	return along
}

func (w *world) Start(ctx context.Context, name string) error {
	defer w.lock()()
	if err := w.call("start %s", name); err != nil {
		return err
	}
	u := w.units[name]
	if f := w.overtake; f != nil {
		w.overtake = nil
		f(u)
		return overtaken{}
	}
	if u.hangs {
		w.mu.Unlock()
		<-ctx.Done()
		w.mu.Lock()
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if u.barred {
		return errors.New("a dependency failed")
	}
	for u.stopping { // it waits for the end
		w.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
		w.mu.Lock()
	}
	if !u.running {
		return w.begin(u)
	}
	return nil
}

func (w *world) Stop(_ context.Context, name string) error {
	defer w.lock()()
	if err := w.call("stop %s", name); err != nil {
		return err
	}
	u := w.units[name]
	w.takeAlong(u)
	u.running, u.before, u.between, u.stopping, u.dying = false, false, false, false, false
	return nil
}

func (w *world) Keep(_ context.Context, name string) (release func(), err error) {
	defer w.lock()()
	u := w.units[name]
	if !u.loaded() {
		return nil, errors.New(name + " is not loaded")
	}
	u.kept++
	return func() {
		defer w.lock()()
		u.kept--
	}, nil
}

func (w *world) Follow(_ context.Context, wants func(string) bool) <-chan attach.UnitEvent {
	return w.events
}

// move has another file define profile a.
func (w *world) move() {
	defer w.lock()()
	w.moved = map[string]string{"a": "usr.bin.a"}
}

func (w *world) profile(name string) attach.Profile {
	p := attach.Profile{Name: name, File: "/etc/apparmor.d/" + cmp.Or(w.moved[name], name), Line: 1, Flags: w.flags[name], ComplainBy: w.softened[name]}
	if w.byPath[name] {
		p.Attachment = "/usr/bin/x"
	}
	return p
}

func (w *world) ByName(name string) []attach.Profile {
	if f := w.in[name]; f != "" {
		return []attach.Profile{{Name: name, File: "/etc/apparmor.d/" + f, Line: 1}}
	}
	defer w.lock()()
	if _, ok := w.files[name]; ok {
		return []attach.Profile{w.profile(name)}
	}
	return nil
}

func (w *world) Known(name string) []attach.Profile { return w.ByName(name) }

func (w *world) InFile(p string) ([]attach.Profile, error) {
	w.mu.Lock()
	w.opened = append(w.opened, p)
	w.mu.Unlock()
	if found := w.ByName(path.Base(p)); found != nil {
		return found, nil
	}
	return nil, errors.New("no such file")
}

func (w *world) ByExecutable(string) []attach.Profile { return nil }

func (w *world) Profiles() ([]attach.Profile, map[string]attach.Reason) {
	defer w.lock()()
	var all []attach.Profile
	for _, name := range slices.Sorted(maps.Keys(w.files)) {
		all = append(all, w.profile(name))
	}
	return all, w.unread
}

func (w *world) Host() attach.Host {
	h := attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce}
	if w.complains.Load() {
		h.GlobalMode = attach.ModeComplain
	}
	return h
}

func (w *world) Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems map[string]attach.Reason) {
	defer w.lock()()
	problems = map[string]attach.Reason{}
	if w.hangs {
		<-ctx.Done()
		for _, f := range files {
			problems[f] = attach.Because(attach.ProfileNotCompiled, "cannot compile %s: %v", f, ctx.Err()).At(f)
		}
		return nil, problems
	}
	for _, f := range files {
		name := path.Base(f)
		for profile, file := range w.moved {
			if file == name {
				name = profile
			}
		}
		if _, there := w.files[name]; !there {
			problems[f] = attach.Because(attach.ProfileNotFound, "%s does not exist", f).At(f)
			continue
		}
		if w.bad[name] {
			problems[f] = attach.Because(attach.ProfileBroken, "syntax error in %s", f).At(f)
			continue
		}
		if r, is := w.untold[name]; is {
			problems[f] = r.At(f)
			continue
		}
		v := w.files[name]
		if complain {
			v += soft
		}
		id, source := f+" "+v, name+w.files[name]
		if other, ok := w.also[name]; ok {
			id, source = id+" and "+other, source+" and "+other
		}
		v += w.by()
		done = append(done, attach.Compiled{ID: id, File: f, Source: source, Complain: complain, Profiles: []attach.Profile{w.profile(name)},
			Checksums: map[string]string{name: "sha256:" + name + v}, Blob: []byte(v), Sources: map[string][]byte{f: nil}, Environment: w.Environment(), At: time.Now()})
		if other, ok := w.also[name]; ok {
			done[len(done)-1].Checksums[other] = "sha256:" + other + cmp.Or(w.alike[other], v)
		}
	}
	return done, problems
}

// Loaded gives what the kernel has; the bytes of a version "unread" cannot be read.
func (w *world) Loaded(names []string) (out []attach.Compiled, err error) {
	defer w.lock()()
	for _, name := range slices.Sorted(maps.Keys(w.kernel)) {
		if len(names) > 0 && !slices.Contains(names, name) {
			continue
		}
		c := attach.Compiled{ID: "loaded " + name, Blob: []byte(w.kernel[name]), Profiles: []attach.Profile{{Name: name, Flags: []string{"enforce"}}}, Checksums: map[string]string{name: "sha1:" + w.kernel[name]}}
		if w.kernel[name] == "unread" {
			c.Blob, c.NotStaged = nil, "no bytes"
		}
		out = append(out, c)
	}
	return out, nil
}

// CompilePartly leaves the rest of a text that does not compile.
func (w *world) CompilePartly(_ context.Context, file string) (attach.Compiled, []attach.Reason, bool) {
	defer w.lock()()
	name := path.Base(file)
	if _, there := w.files[name]; !there {
		return attach.Compiled{}, nil, false
	}
	c := attach.Compiled{ID: file + "-partly", File: file, Profiles: []attach.Profile{w.profile(name)}, Blob: []byte(w.files[name]), NotStaged: "it is only a part"}
	return c, []attach.Reason{attach.Because(attach.ProfileBroken, "syntax error in %s", file).At(file)}, true
}

func (w *world) Environment() string { return cmp.Or(w.parser, "parser 1") }

// CompileText takes a version for a text; "bad" does not compile.
func (w *world) CompileText(ctx context.Context, file, text string, complain bool) (attach.Compiled, *attach.Reason) {
	name := path.Base(file)
	w.mu.Lock()
	was, had := w.files[name]
	bad := w.bad[name]
	w.files[name], w.bad[name] = text, text == "bad"
	w.mu.Unlock()
	done, problems := w.Compile(ctx, []string{file}, complain)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files[name], w.bad[name] = was, bad
	if !had {
		delete(w.files, name)
	}
	if r, ok := problems[file]; ok {
		return attach.Compiled{}, &r
	}
	return done[0], nil
}

func (w *world) CompileKept(ctx context.Context, kept []attach.Compiled) (done []attach.Compiled, problems map[string]attach.Reason) {
	problems = map[string]attach.Reason{}
	if w.hangs {
		<-ctx.Done()
	}
	defer w.lock()()
	for _, k := range kept {
		if w.hangs {
			problems[k.ID] = attach.Because(attach.ProfileNotCompiled, "cannot compile %s: %v", k.File, ctx.Err()).At(k.File)
			continue
		}
		if k.File == w.tooNew {
			problems[k.ID] = attach.Because(attach.ProfileBroken, "the parser knows no such rule").At(k.File)
			continue
		}
		k.Environment = w.Environment()
		k.Checksums = maps.Clone(k.Checksums)
		for name, sum := range k.Checksums {
			k.Checksums[name] = sum + w.by()
		}
		k.Blob = slices.Concat(k.Blob, []byte(w.by()))
		done = append(done, k)
	}
	return done, problems
}

// by marks what another parser has made.
func (w *world) by() string {
	if w.Environment() == "parser 1" {
		return ""
	}
	return " by " + w.Environment()
}

func (w *world) Stage(_ context.Context, all []attach.Compiled) {
	defer w.lock()()
	for i := range all {
		if c := &all[i]; c.Checksums == nil {
			c.Checksums = map[string]string{}
			for _, p := range c.Profiles {
				c.Checksums[p.Name] = "sha256:" + p.Name + string(c.Blob)
			}
		}
		if w.disputed != "" {
			all[i].Checksums, all[i].Disagrees = nil, w.disputed
		}
		all[i].Asked = 42
	}
}

func (w *world) Load(_ context.Context, all []attach.Compiled) map[string]error {
	defer w.lock()()
	if err := w.call("load %d", len(all)); err != nil {
		return map[string]error{all[0].File: err}
	}
	if w.full || w.tells {
		w.tellPolicy() // of what was tried, too
	}
	if w.full {
		return map[string]error{all[0].File: errors.New("the kernel has no memory")}
	}
	for _, c := range all {
		if len(c.Blob) == 0 {
			return map[string]error{c.File: errors.New("no bytes")}
		}
		for name, sum := range c.Checksums {
			version := cmp.Or(w.alike[name], string(c.Blob))
			w.replace(name, version)
			if want := strings.TrimPrefix(sum, "sha256:"+name); want != version {
				return map[string]error{c.File: fmt.Errorf("the kernel has %s of %s, and %s was given: somebody else loaded another policy of that name", version, name, want)}
			}
		}
	}
	return nil
}

// fail has the unit's program end with a failure: by itself, or since a job stops the unit.
func (u *unit) fail(stopped bool) {
	u.running, u.failed, u.ended = false, true, time.Now()
	if stopped {
		u.ceased = u.ended.Add(-time.Millisecond)
	}
}

// die has it do so, but for what the unit does at its end (ExecStopPost=), which takes two
// seconds.
func (w *world) die(u *unit, stopped bool) {
	u.fail(stopped)
	u.running, u.failed, u.stopping, u.dying = true, false, true, true
	time.AfterFunc(2*time.Second, func() {
		defer w.lock()()
		if u.dying {
			u.running, u.failed, u.stopping, u.dying = false, true, false, false
			w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
		}
	})
}

// replace is apparmor_parser --replace, by whomever. Tasks that carry the profile
// are under the new policy at once.
func (w *world) replace(name, version string) {
	w.kernel[name] = version
	for _, u := range w.units {
		if !u.running || u.survives || !strings.HasPrefix(u.label, name+" ") {
			continue
		}
		switch w.deadly[version] {
		case "dies":
			u.fail(false)
			w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: u.name}
		case "ends":
			u.since, u.between = time.Now(), true
		case "restarts":
			u.start++
			u.restarts++
			u.since = time.Now()
			u.between = u.rests
			w.events <- attach.UnitEvent{Kind: attach.UnitStarted, Unit: u.name}
		}
	}
}

// remove is apparmor_parser --remove: it unconfines the tasks.
func (w *world) remove(name string) {
	delete(w.kernel, name)
	for _, u := range w.units {
		if strings.HasPrefix(u.label, name+" ") {
			u.label = "unconfined"
		}
	}
}

// soft ends the version of a policy in complain mode.
const soft = "-complain"

func modeOf(version string) attach.Mode {
	if strings.HasSuffix(version, soft) {
		return attach.ModeComplain
	}
	return attach.ModeEnforce
}

func (w *world) Live(names []string) (map[string]attach.LiveProfile, error) {
	defer w.lock()()
	out := map[string]attach.LiveProfile{}
	for n, v := range w.kernel {
		if slices.ContainsFunc(names, func(p string) bool { return n == p || strings.HasPrefix(n, p+"//") }) {
			out[n] = attach.LiveProfile{Name: n, Mode: modeOf(v), Checksum: "sha256:" + n + v}
		}
	}
	return out, nil
}

type saved struct {
	w    *world
	was  map[string]string
	name []string
}

func (s saved) Restore(ctx context.Context) (stays map[string]error, err error) {
	stays = map[string]error{}
	for _, n := range s.name {
		v, had := s.was[n]
		s.w.mu.Lock()
		if had {
			if err := s.w.call("restore %s", n); err == nil {
				s.w.kernel[n] = v
			}
		}
		s.w.mu.Unlock()
		if !had {
			if err := s.w.Unload(ctx, []string{n})[n]; err != nil {
				stays[n] = err
			}
		}
	}
	return stays, nil
}

func (w *world) Save(names []string) (Saved, error) {
	defer w.lock()()
	return saved{w, maps.Clone(w.kernel), names}, nil
}

func (w *world) Unload(_ context.Context, names []string) map[string]error {
	defer w.lock()()
	if w.tells {
		w.tellPolicy()
	}
	failed := map[string]error{}
	for _, name := range names {
		if err := w.unload(name); err != nil {
			failed[name] = err
		}
	}
	return failed
}

// starts is why nothing is unloaded while something starts.
type starts struct{}

func (starts) Error() string { return "cannot unload it: systemd is starting something" }
func (starts) Passes() bool  { return true }

func (w *world) unload(name string) error {
	if _, loaded := w.kernel[name]; loaded && w.starting {
		return starts{}
	}
	for _, u := range w.units {
		if u.running && strings.HasPrefix(u.label, name+" ") {
			return fmt.Errorf("cannot unload %s: tasks of %s carry it", name, u.name)
		}
	}
	if err := w.call("unload %s", name); err != nil {
		return err
	}
	delete(w.kernel, name)
	return nil
}

// MainProcess is as if each of the world's programs had another filter, too.
func (w *world) MainProcess(u attach.Unit, tasks []attach.Task) attach.MainProcess {
	if u.MainPID == 0 && len(tasks) == 0 {
		return attach.MainProcess{}
	}
	return attach.MainProcess{Root: attach.Yes, Filtered: attach.Yes, GroupsClosed: attach.No}
}

func (w *world) Scan(_ context.Context, u attach.Unit) attach.Scan {
	w.mu.Lock()
	hang := w.hang[u.ID]
	w.mu.Unlock()
	if hang != nil {
		<-hang
	}
	defer w.lock()()
	if w.onScan != nil {
		w.onScan()
	}
	f := w.units[u.ID]
	s := attach.Scan{Stable: true, At: time.Now(), HostTmp: attach.TmpView{Tmp: "8:1 /tmp", VarTmp: "8:1 /var/tmp"}, Tmp: map[int]attach.TmpView{}}
	if !f.running {
		return s
	}
	text := f.label
	if name, _, profiled := strings.Cut(text, " ("); profiled {
		text = fmt.Sprintf("%s (%s)", name, modeOf(w.kernel[name]))
	}
	label, err := attach.ParseLabel(text)
	if err != nil {
		panic(err)
	}
	pid := 1000 + f.start
	s.Tasks = []attach.Task{{PID: pid, TID: pid, Comm: "x", Exe: "/usr/bin/x", Label: label}}
	if f.forked > 0 {
		f.forked--
		s.Tasks[0].Manager, s.Tasks[0].Label = true, attach.Label{Profiles: []string{"unconfined"}, Mode: attach.ModeUnconfined}
	}
	s.Tmp[pid] = s.HostTmp
	if f.tmp {
		s.Tmp[pid] = attach.TmpView{Tmp: "8:1 /tmp/private", VarTmp: "8:1 /var/tmp/private"}
	}
	return s
}

func (w *world) Rescan(units []attach.Unit) map[string]attach.Scan {
	out := map[string]attach.Scan{}
	for _, u := range units {
		unlock := w.lock()
		w.rescans = append(w.rescans, u.ID)
		unlock()
		if s := w.Scan(context.Background(), u); u.Settings.Profile != "" && s.Tasks[0].Label.Fits(u.Settings.Profile, nil) == attach.FitExact {
			out[u.ID] = s
		}
	}
	return out
}

func (w *world) SessionOf(pid int) string {
	defer w.lock()()
	for name, scope := range w.lodgers {
		if u := w.units[name]; u.running && pid == 1000+u.start {
			return scope
		}
	}
	return ""
}

func (w *world) OpenInTmp(context.Context, attach.Unit) []string { return []string{"/tmp/socket"} }

// Attachments.

type attachments struct{ *world }

// One knows the files of the world's attachments.
func (a attachments) One(path string) (attach.Attachment, []attach.Reason, bool) {
	defer a.lock()()
	a.opened = append(a.opened, path)
	found, is := a.att[path]
	found.Source = path
	return found, nil, is
}

func (a attachments) Holds(path string) bool { return strings.HasPrefix(path, "/etc/aaunit/") }

func (a attachments) Exists(path string) bool {
	defer a.lock()()
	_, there := a.att[path]
	return there
}

func (a attachments) Read() attach.Declared {
	defer a.lock()()
	d := attach.Declared{Broken: maps.Clone(a.broken)}
	for _, f := range slices.Sorted(maps.Keys(a.att)) {
		if a.broken[f] {
			d.Problems = append(d.Problems, attach.Because(attach.AttachmentBad, "line 1: nonsense").At(f))
			continue
		}
		one := a.att[f]
		d.Attachments = append(d.Attachments, &one)
	}
	return d
}

// Propose takes the text "UNIT PROFILE".
func (a attachments) Propose(files []attach.ProposedFile) (d attach.Declared, others []attach.ProposedFile) {
	d = a.Read()
	for _, f := range files {
		if path.Dir(f.File) != "/etc/aaunit/attachments.d" {
			others = append(others, f)
			continue
		}
		declareProposed(&d, f.File, f.Text)
	}
	return d, others
}

func declareProposed(d *attach.Declared, file, text string) {
	d.Attachments = slices.DeleteFunc(d.Attachments, func(a *attach.Attachment) bool { return a.Source == file })
	if unit, profile, ok := strings.Cut(text, " "); ok {
		n := attach.NewAttachment()
		var waive bool
		profile, waive = strings.CutSuffix(profile, " waive")
		var complain bool
		if profile, complain = strings.CutSuffix(profile, " complain"); complain {
			n.Mode = attach.WishComplain
		}
		n.Source, n.Units, n.Profile = file, strings.Split(unit, ","), profile
		if waive {
			n.Waivers = []attach.Waiver{{Code: attach.MayEverything}}
		}
		d.Attachments = append(d.Attachments, &n)
	} else if text != "" {
		d.Problems = append(d.Problems, attach.Because(attach.AttachmentBad, "line 1: nonsense").At(file+":1"))
	}
}

func (a attachments) Write(unit string, at attach.Attachment) (string, func() error, error) {
	defer a.lock()()
	if err := a.step("write attachment " + unit); err != nil {
		return "", nil, err
	}
	file := "/etc/aaunit/attachments.d/" + unit + ".conf"
	if a.refuses != nil {
		return "", nil, a.refuses
	}
	if a.isFull() {
		return "", nil, noSpace{}
	}
	old, had := a.att[file]
	at.Source = file
	a.att[file] = at
	return file, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if err := a.step("withdraw attachment " + unit); err != nil {
			return err
		}
		delete(a.att, file)
		if had {
			a.att[file] = old
		}
		return nil
	}, nil
}

func (a attachments) Remove(file string) error {
	defer a.lock()()
	if err := a.step("remove attachment " + file); err != nil {
		return err
	}
	delete(a.att, file)
	return nil
}

func (a attachments) Changes(context.Context) <-chan struct{} { return a.changed }

// apparmor hides the world's file events from the AppArmor side.
type apparmor struct{ *world }

func (a apparmor) Changes(context.Context) <-chan struct{} { return a.policy }

func (a apparmor) Denials(context.Context) <-chan attach.Denial { return a.denials }

// Store.

type store struct{ *world }

func (s store) Load() ([]attach.Record, []attach.Reason) {
	defer s.lock()()
	if s.noRecords {
		return nil, []attach.Reason{attach.Because(attach.RecordBad, "cannot list records: input/output error")}
	}
	var out []attach.Record
	for _, r := range s.records {
		out = append(out, r.Clone())
	}
	return out, nil
}

func (s store) Save(r attach.Record) error {
	defer s.lock()()
	if s.diskFull || s.noRecords || s.isFull() {
		return noSpace{}
	}
	if err := s.step("save record " + r.Unit); err != nil {
		return err
	}
	s.records[r.Unit] = r.Clone()
	return nil
}

func (s store) Delete(unit string) error {
	defer s.lock()()
	if err := s.step("delete record " + unit); err != nil {
		return err
	}
	delete(s.records, unit)
	return nil
}

// Policies.

type policies struct{ *world }

func (p policies) Load() []attach.Reason { return nil }

func (p policies) Lookup(id string) (attach.Compiled, bool) {
	c, err := p.Get(id)
	c.Blob, c.Sources = nil, nil
	return c, err == nil
}

func (p policies) Get(id string) (attach.Compiled, error) {
	defer p.lock()()
	c, ok := p.kept[id]
	if !ok {
		return c, errors.New("not kept")
	}
	return c, nil
}

func (p policies) Keep(c attach.Compiled) error {
	defer p.lock()()
	if old, ok := p.kept[c.ID]; ok && old.Environment == c.Environment {
		return nil
	}
	if p.diskFull || p.isFull() {
		return noSpace{}
	}
	if err := p.call("keep %s", c.ID); err != nil {
		return err
	}
	p.kept[c.ID] = c
	return nil
}

func (p policies) Retain(ids map[string]bool) error {
	defer p.lock()()
	for id := range p.kept {
		if ids[id] {
			continue
		}
		if err := p.call("drop %s", id); err != nil {
			return err
		}
		delete(p.kept, id)
	}
	return nil
}

// Query is the gate's.
func (w *world) Query(_ context.Context, profile string, c attach.Compiled, q attach.Assertion) attach.QueryResult {
	if w.mayNot || strings.HasPrefix(q.Object, "/sys/fs/") && !strings.HasPrefix(q.Object, cmp.Or(w.writesBelow, "-")) {
		return attach.QueryResult{Profile: profile, File: c.File, May: attach.MayNo}
	}
	return attach.QueryResult{Profile: profile, File: c.File, May: attach.MayYes, Text: "may " + q.Text}
}

// Denies is the gate's.
func (w *world) Denies(_ context.Context, c attach.Compiled, d attach.Denial) attach.Tri {
	if w.denies == nil {
		return attach.CouldNotTell
	}
	return w.denies(c, d)
}

// Reach is the gate's.
func (w *world) Reach(d attach.Desired, compiled []attach.Compiled) ([]string, error) {
	defer w.lock()()
	reached, sums := append([]string{d.Profile}, w.leads[d.Profile]...), map[string]string{}
	for _, c := range slices.Backward(compiled) {
		maps.Copy(sums, c.Checksums)
	}
	for _, sum := range sums {
		reached = append(reached, w.leadsWith[sum][d.Profile]...)
	}
	return reached, nil
}

// SameWays is the gate's.
func (w *world) SameWays(_ context.Context, was, is []attach.Compiled) attach.Tri {
	if w.sameWays == nil {
		return attach.Yes
	}
	return w.sameWays(was, is)
}

// Check is the gate's.
func (w *world) Check(_ context.Context, d attach.Desired, _ attach.Unit, compiled []attach.Compiled) (out []attach.Finding) {
	for _, c := range compiled {
		if v := w.notFor[d.Unit]; v != "" && d.Attachment.Waived(attach.MayEverything) == nil && slices.Contains(slices.Collect(maps.Values(c.Checksums)), "sha256:a"+v) {
			out = append(out, attach.Finding{Severity: attach.Error, Reason: attach.Because(attach.AssertionFailed, "what it may not")})
		}
		if w.gate == nil {
			continue
		}
		for _, r := range w.gate(c) {
			f := attach.Finding{Severity: attach.Error, Reason: r}
			switch r.Code {
			case attach.MayNoNetwork:
				f.Severity = attach.Note
			case attach.MayUserns:
				f.Severity = attach.Warning
			case attach.AssertionUnknown:
				if w.warns {
					f.Severity = attach.Warning
				}
			}
			out = append(out, f)
		}
	}
	return out
}

func (w *world) loop() *Loop { return New(w.options()) }

func (w *world) options() Options {
	o := Options{Systemd: w, AppArmor: apparmor{w}, Attachments: attachments{w}, Store: store{w}, Policies: policies{w}, Gate: w, Evidence: w.evidence, SocketOptions: sockets{w}, Rest: w.resting, PassUnits: w.passUnits, Log: slog.New(slog.NewTextHandler(&w.log, nil)), Boot: fmt.Sprint("boot ", w.boots)}
	if w.uses != nil {
		o.Evidence, o.Histories, o.OptionNames, o.Kernel = w.uses, w.uses, w.uses.name, "6.1"
	}
	return o
}

// run runs the daemon in a bubble of fake time until body returns.
func (w *world) run(t *testing.T, body func(l *Loop)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w.boot(body)
	})
}

// boot runs one life of the daemon.
func (w *world) boot(body func(l *Loop)) {
	// Channels belong to one bubble.
	w.events, w.changed = make(chan attach.UnitEvent, 1000), make(chan struct{}, 1)
	w.denials, w.policy = make(chan attach.Denial), make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(context.Background())
	l := w.loop()
	w.daemon = l
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := l.Run(ctx, func() {}); err != nil {
			panic(err)
		}
	})
	rest()
	defer wg.Wait()
	defer cancel()
	body(l)
}

// rest lets everything that is under way come to an end, settling included.
func rest() {
	for range 3 {
		synctest.Wait()
		time.Sleep(attach.DefaultSettle + time.Second)
	}
	synctest.Wait()
}
