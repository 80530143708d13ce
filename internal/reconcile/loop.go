// Package reconcile is the loop that makes declared attachments true and keeps
// them so: triggers fill one queue of unit names; a pass observes the units,
// asks the core for a plan, carries the plans out together, looks again, and
// publishes a verdict. It does nothing by itself: every side effect goes
// through the interfaces in ports.go, and every decision is the core's
// (internal/attach).
//
// Read it in this order: loop.go (what triggers what), pass.go (one pass, step
// by step), policy.go (what is loaded), shared.go (what all say that share it),
// trial.go (a changed policy), undo.go (the way back), ended.go (what is
// forgotten), manager.go (what people ask for), evidence.go (what a verdict rests
// on), boot.go (what is done without the daemon).
package reconcile

import (
	"context"
	"hash/fnv"
	"log/slog"
	"maps"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// burst is how long the loop waits after a first trigger, so that a
// burst of files or signals costs one pass.
const burst = 50 * time.Millisecond

// aside is how long after something that a person asked for the loop works off no
// triggers: most of them are echoes of that very work, and the answer to the person
// comes first. Whoever asks for ever more gets no more than maxAside things done
// before it is their turn.
const (
	aside    = 500 * time.Millisecond
	maxAside = 5
)

// restAfter is how long there must be nothing to do before the loop rests. What is
// answered and looked at meanwhile takes memory, too: restAgain after the first of it
// the loop rests once more.
const (
	restAfter = 5 * time.Second
	restAgain = 30 * time.Second
)

// DefaultRecheck is the interval of the slow re-check: whatever no signal told
// is found by then.
const DefaultRecheck = 10 * time.Minute

// Options are the parts of a Loop.
type Options struct {
	Systemd     Systemd
	AppArmor    AppArmor
	Attachments Attachments
	Store       Store
	Policies    Policies
	// SocketOptions is asked only where an attachment wants socket options.
	SocketOptions SocketOptions
	// Gate may be nil: then what compiles may run.
	Gate Gate
	// Evidence may be nil: then none is kept.
	Evidence Evidence
	// Processes may be nil: then nobody can ask for reports.
	Processes Processes
	// Histories may be nil: then what was seen of socket options is not kept.
	// OptionNames knows their names.
	Histories   SocketHistories
	OptionNames attach.OptionNames
	// Kernel is the release of the kernel.
	Kernel string
	Log    *slog.Logger
	// Recheck is the interval of the slow re-check; DefaultRecheck if 0.
	Recheck time.Duration
	// PassUnits is how many units a pass takes on where it need not take on more;
	// DefaultPassUnits if 0.
	PassUnits int
	Version   string
	// Rest is called when there has been nothing to do for some seconds, and what
	// it gives before there is something to do again, or before the next Rest; nil is
	// nothing.
	Rest func() (resume func())
	// Sized is told how many units are attached, each time that is worked out; nil is
	// nothing. It must not wait.
	Sized func(units int)
	// Boot identifies this boot of the machine; "" where that could not be read,
	// and then nothing is taken for loaded by an earlier life of the daemon.
	Boot string
}

// Loop is the daemon's work. Make one with New, then Run it.
type Loop struct {
	systemd     Systemd
	apparmor    AppArmor
	attachments Attachments
	store       Store
	policies    Policies
	gate        Gate
	evidence    Evidence
	processes   Processes
	sockets     SocketOptions
	log         *slog.Logger
	recheck     time.Duration
	passUnits   int
	version     string
	boot        string
	rest        func() func()
	sized       func(int)

	histories   SocketHistories
	optionNames attach.OptionNames
	kernel      string

	queue       *queue
	denials     denialLog
	socketWatch socketWatch
	// asked hands operations that people ask for to the one goroutine that
	// changes things.
	asked chan func(context.Context)
	// pings are answered by Run itself.
	pings chan struct{}
	// stirred tells the goroutine that changes things that others were at work; one slot.
	stirred chan struct{}
	// noticed tells beside that policy changed, or the global mode; one slot.
	noticed chan struct{}

	// declaring keeps what was read earlier from overtaking what was read later.
	declaring sync.Mutex

	// passed are the units that were taken on since the last pass that took on all
	// that was due; see together. It belongs to the goroutine that changes things.
	passed map[string]bool

	// keeping keeps the record of a unit on disk from being older than the one in
	// memory: it is held across a change of the record and its Save. It comes
	// before mu.
	keeping unitLocks

	// disk bounds how many goroutines wait for files at once. It is held for no more
	// than that: never while another is wanted.
	disk chan struct{}

	mu       sync.Mutex
	passing  bool            // something is being changed
	handled  map[string]bool // units at which the pass is
	again    map[string]bool // units that are queued in a while: what they had loaded could not be unloaded
	anew     map[string]bool // units whose start is looked at again in a while, as they are in again
	leave    map[string]bool // units whose policy could not be put back: it is not tried again yet
	declared attach.Declared
	selector attach.Selector               // of what is declared
	targets  map[string]*attach.Attachment // by unit; what applies to it; never changed in place
	rivals   map[string][]attach.Attachment
	vanished map[string]bool   // attachment files that were there
	alias    map[string]string // name as declared -> canonical
	unlisted map[string]bool   // targets that systemd listed nowhere when they were last declared; see spent
	records  map[string]attach.Record
	alike    map[string]string // the unit of a profile whose record was kept last, by profile
	// unsaved are units of whose records the disk has an earlier state; a nil map has none.
	unsaved map[string]bool
	// recordsUnlisted: there may be records on disk that could not be read.
	recordsUnlisted bool

	// strays are children of earlier policies that could not be unloaded, and until when it
	// is waited for that to be tried again.
	strays map[string]time.Time

	// readAnew is the state of files, by unit and the name of the unit that they are of, for
	// which systemd has read them again because it said that they had changed.
	readAnew map[string]map[string]string

	statuses    map[string]*attach.Status // none is changed in place: subscribers have it, too
	seenHost    attach.Host               // as it was last read; see noteHost
	problems    []attach.Reason           // of records
	service     attach.Tri                // apparmor.service is enabled
	serviceRead bool
	asking      *serviceQuestion      // about that, under way
	may         map[string]attach.Tri // see policyMay
	stuck       map[string]bool       // units whose look does not come back
	// barred are the texts that do not go live for attached units for what is asserted of
	// them, by unit and file, as the last plan found: the ID of the policy.
	barred     map[string]map[string]string
	rescanning sync.Mutex // held during a look at the tasks of many units
	subs       map[int]func(*attach.Status)
	nextSub    int
	// untold are statuses that subscribers are yet to hear of, in the order in which they
	// were published; telling is set while somebody is at it.
	untold  []untold
	telling bool

	// prints is what the policy of units looked like at the last change that the loop
	// came to, by what it depends on; loaded is what was loaded for them, by the
	// profiles that count for their verdict; waiting are units that such a change may
	// concern and that no pass has taken on since, and since when the first is told; told
	// are those that the pass has taken on.
	prints, loaded map[string]string
	waiting, told  map[string]time.Time

	// For Metrics.
	began  time.Time
	passes attach.Durations
	looked uint64
}

// New prepares a loop; nothing is touched before Run.
func New(o Options) *Loop {
	if o.Recheck == 0 {
		o.Recheck = DefaultRecheck
	}
	if o.PassUnits == 0 {
		o.PassUnits = DefaultPassUnits
	}
	return &Loop{
		systemd: o.Systemd, apparmor: o.AppArmor, attachments: o.Attachments, store: o.Store, policies: o.Policies, gate: o.Gate, evidence: o.Evidence, sockets: o.SocketOptions, processes: o.Processes,
		histories: o.Histories, optionNames: o.OptionNames, kernel: o.Kernel,
		log: o.Log, recheck: o.Recheck, passUnits: o.PassUnits, version: o.Version, boot: o.Boot, rest: o.Rest, sized: o.Sized,
		queue: newQueue(), asked: make(chan func(context.Context)), disk: make(chan struct{}, parallelFiles), pings: make(chan struct{}), stirred: make(chan struct{}, 1), noticed: make(chan struct{}, 1),
		leave: map[string]bool{}, again: map[string]bool{}, anew: map[string]bool{}, strays: map[string]time.Time{}, waiting: map[string]time.Time{},
		targets: map[string]*attach.Attachment{}, rivals: map[string][]attach.Attachment{}, vanished: map[string]bool{}, alias: map[string]string{},
		may: map[string]attach.Tri{}, records: map[string]attach.Record{}, alike: map[string]string{}, statuses: map[string]*attach.Status{}, stuck: map[string]bool{}, barred: map[string]map[string]string{}, readAnew: map[string]map[string]string{}, subs: map[int]func(*attach.Status){},
	}
}

// Run works until ctx ends, and calls ready once what was kept and what is declared is
// read and every signal is listened to. It waits for nobody without a bound before that:
// whoever asks until then gets no answer. A step that has begun when ctx ends is finished
// or cut off; the next start converges either way.
func (l *Loop) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	records, problems := l.store.Load()
	unlisted := slices.ContainsFunc(problems, func(p attach.Reason) bool { return p.Where == "" })
	problems = append(problems, l.policies.Load()...)
	l.mu.Lock()
	for _, r := range records {
		r.Accepted = acceptedOf(l.policies, r)
		if r.Boot != l.boot || l.boot == "" {
			r.Boot, r.Loaded, r.Softened = l.boot, nil, nil
			if len(r.Stays) > 0 || l.boot != "" {
				r.Stays, r.Dragged, r.Stopped = nil, nil, false // the boot started what was to be
			}
		}
		l.put(r)
		if r.Hold != nil && !r.Hold.Again.IsZero() {
			l.tryAgain(r.Unit, r.Hold.Again)
		}
	}
	l.problems, l.began, l.recordsUnlisted = problems, time.Now(), unlisted
	l.mu.Unlock()
	for _, p := range problems {
		l.log.Warn(p.Detail)
	}

	units := l.systemd.Follow(ctx, l.wants)
	files := l.attachments.Changes(ctx)
	policy := l.apparmor.Changes(ctx)
	denials := l.apparmor.Denials(ctx)
	l.noteHost(l.apparmor.Host())
	l.declare(ctx)
	ready()

	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.change(ctx) })
	wg.Go(func() { l.hear(ctx, denials) })
	wg.Go(func() { l.beside(ctx) })
	wg.Go(func() {
		l.sweepForgotten()
		l.keepSockets(ctx)
	})
	tick := time.NewTicker(l.recheck)
	defer tick.Stop()
	slots := make(chan struct{}, parallel)
	for {
		select {
		case <-ctx.Done():
			return nil
		case ev, ok := <-units:
			if !ok {
				units = nil
				continue
			}
			l.heard(ev)
		case _, ok := <-files:
			if !ok {
				files = nil
				continue
			}
			l.queue.addDeclare()
		case _, ok := <-policy:
			if !ok {
				policy = nil
				continue
			}
			l.queue.addPolicy()
			l.notice()
		case <-l.pings:
		case <-tick.C:
			l.everythingAnew()
		case <-l.queue.looks:
			// Looks run beside a pass, so that a pass that waits for a unit to
			// settle holds up no other unit's verdict.
			for u, why := range l.queue.takeLooks(cap(slots) - len(slots)) {
				slots <- struct{}{}
				wg.Go(func() {
					l.look(ctx, u, why&started != 0)
					l.Stir()
					<-slots // before the signal that there is one
					l.queue.release([]string{u})
				})
			}
		}
	}
}

// Ping returns when the loop takes its next turn, or with ctx's error. It is
// what the service manager's watchdog should hang on.
func (l *Loop) Ping(ctx context.Context) error {
	select {
	case l.pings <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Stir tells the loop that something was done beside its passes that took memory, such
// as an answer to somebody. It does not wait.
func (l *Loop) Stir() {
	select {
	case l.stirred <- struct{}{}:
	default:
	}
}

// change is the one goroutine that changes anything: passes over what is due,
// and what people ask for, one after the other.
func (l *Loop) change(ctx context.Context) {
	alarm := time.NewTimer(0)
	defer alarm.Stop()
	var idle <-chan time.Time
	var answered time.Time // when the last operation that was asked for ended
	var before int         // so many of them since triggers were worked off
	var resume func()
	later := func() {
		if l.rest != nil {
			idle = time.After(restAfter)
		}
	}
	later()
	work := func(do func()) {
		if resume != nil {
			resume()
			resume = nil
		}
		l.setPassing(true)
		if !l.queue.policyTold().IsZero() {
			l.notice() // beside found no pass when it was told, as what is asked for overtakes it
		}
		do()
		l.setPassing(false)
		later()
	}
	for {
		alarm.Stop()
		if next := l.endPauses(); next > 0 {
			alarm.Reset(next)
		}
		select {
		case <-ctx.Done():
			return
		case <-idle:
			idle = nil
			if resume != nil {
				resume()
			}
			resume = l.rest()
			continue
		case <-l.stirred:
			if resume != nil && idle == nil {
				idle = time.After(restAgain)
			}
			continue
		case op := <-l.asked:
			work(func() { op(ctx) })
			answered, before = time.Now(), before+1
			continue
		case <-alarm.C:
			continue
		case <-l.queue.plans:
		}
		wait, asked := burst, l.asked
		if before < maxAside {
			wait = max(wait, time.Until(answered.Add(aside)))
		} else {
			asked = nil
		}
		select {
		case <-ctx.Done():
			return
		case op := <-asked:
			work(func() { op(ctx) })
			answered, before = time.Now(), before+1
			l.queue.signal() // what is due still is
			continue
		case <-time.After(wait):
		}
		before = 0
		work(func() { l.workOff(ctx) })
	}
}

// workOff does what is due.
func (l *Loop) workOff(ctx context.Context) {
	if l.queue.takeDeclare() {
		l.reviewAliases(ctx)
		l.declare(ctx)
	}
	if told := l.queue.takePolicy(); !told.IsZero() {
		l.queue.add(review, l.touched(told)...) // together finds which of them cannot wait
	}
	due, begun := l.queue.takePlans(l.together(l.queue.plansDue()))
	if len(due) == 0 {
		return
	}
	l.mu.Lock()
	l.told = map[string]time.Time{}
	for _, unit := range due {
		l.told[unit] = l.waiting[unit]
		delete(l.waiting, unit)
	}
	l.mu.Unlock()
	begun = slices.DeleteFunc(begun, func(u string) bool { return !l.settled(u) })
	out := l.pass(ctx, due, nil, nil)
	l.mu.Lock()
	l.told = nil
	l.mu.Unlock()
	l.queue.release(due)
	// A start under what was in place already gets its own look, for
	// OnViolation=; one that the pass came to as well is of that pass.
	l.queue.add(started, slices.DeleteFunc(begun, func(u string) bool { return out[u] == nil || out[u].Restarted })...)
}

// settled reports whether what the unit is attached to is in place.
func (l *Loop) settled(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return settled(l.records[unit])
}

func settled(r attach.Record) bool { return len(r.DropIns) > 0 && !r.Attaching }

// heard sorts one of systemd's signals into the queue. It asks nobody: Run
// must go on, whether systemd answers or not.
func (l *Loop) heard(ev attach.UnitEvent) {
	switch ev.Kind {
	case attach.UnitStarted, attach.UnitEnded:
		what := started
		if ev.Kind == attach.UnitEnded {
			what = ended
		}
		if l.target(ev.Unit) == nil {
			// A new unit of a pattern: it needs a plan, not only a look.
			l.queue.addDeclare()
			what |= inputChanged
		}
		l.queue.add(what, ev.Unit)
	case attach.UnitsReloaded:
		l.everythingAnew()
	case attach.DropInChanged:
		l.queue.add(inputChanged, l.ownersOf(ev.Unit)...)
	case attach.BusLost:
		l.log.Warn("lost the connection to systemd", journal.FieldMessageID, string(journal.MsgBusLost))
	case attach.BusBack:
		l.log.Info("connected to systemd again", journal.FieldMessageID, string(journal.MsgBusBack))
		l.everythingAnew()
	}
}

// ownersOf lists the units that have a drop-in in the directory of that name.
func (l *Loop) ownersOf(place string) (units []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for unit, r := range l.records {
		for _, runtime := range []bool{false, true} {
			if r.DropIns.Has(attach.DropInPath(place, runtime)) {
				units = append(units, unit)
			}
		}
	}
	return units
}

// noteHost takes in how AppArmor is on the host. Where that has changed, all units are
// looked at anew, and beside a pass.
func (l *Loop) noteHost(h attach.Host) {
	if !l.hostDiffers(h) {
		return
	}
	l.mu.Lock()
	l.seenHost = h
	l.mu.Unlock()
	l.queue.add(review, l.everything()...)
	l.notice()
}

// hostDiffers reports whether AppArmor is not as it was when that was last taken in.
func (l *Loop) hostDiffers(h attach.Host) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return h.Enabled != l.seenHost.Enabled || h.GlobalMode != l.seenHost.GlobalMode
}

func (l *Loop) everythingAnew() {
	l.forgetHost()
	l.queue.addDeclare()
	l.queue.add(review, l.everything()...)
}

// wants says which units' signals matter. It is asked for every signal, so it
// asks nobody.
func (l *Loop) wants(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.targets[unit]; ok {
		return true
	}
	if _, ok := l.records[unit]; ok {
		return true
	}
	chosen, rivals := l.selector.Select(unit)
	return chosen != nil || len(rivals) > 0
}

// maxGone bounds the attachment files that are known to have been there.
const maxGone = 1000

// noteGone keeps which attachment files are there no more. l.mu is held.
func (l *Loop) noteGone(now attach.Declared) {
	here := map[string]bool{}
	for _, a := range now.Attachments {
		here[a.Source] = true
		delete(l.vanished, a.Source)
	}
	for _, a := range l.declared.Attachments {
		if here[a.Source] {
			continue
		}
		if len(l.vanished) >= maxGone {
			clear(l.vanished)
		}
		l.vanished[a.Source] = true
	}
}

// declare reads the attachment files again and works out which attachment
// applies to which unit. The units for which that changed are queued.
func (l *Loop) declare(ctx context.Context) {
	l.declaring.Lock()
	defer l.declaring.Unlock()
	d := l.attachments.Read()
	names, whole := l.expand(ctx, d.Attachments)
	listed := map[string]bool{}
	for _, unit := range names {
		listed[unit] = true
	}
	selector := attach.NewSelector(d.Attachments)

	l.mu.Lock()
	defer l.mu.Unlock()
	for _, p := range d.Problems {
		if !slices.ContainsFunc(l.declared.Problems, func(q attach.Reason) bool { return q == p }) {
			l.log.Error(p.Detail, journal.FieldMessageID, string(journal.MsgAttachmentBad), journal.FieldFile, p.Where)
		}
	}
	// What was attached and still is named stays a target, whether systemd
	// lists it at the moment or not: an instance that was stopped is listed
	// nowhere, and systemd may not answer. A pass forgets what is over (spent).
	for unit := range l.targets {
		names = append(names, unit)
	}
	for unit := range l.records {
		names = append(names, unit)
	}
	targets, rivals := map[string]*attach.Attachment{}, map[string][]attach.Attachment{}
	for _, unit := range names {
		if c, ok := l.alias[unit]; ok {
			unit = c
		}
		chosen, many := selector.Select(unit)
		if attach.IsPattern(unit) && chosen != nil && chosen.Matches(unit) < attach.MatchName {
			continue // a glob is for units, not for a template
		}
		if chosen == nil && len(many) == 0 {
			// The attachment names an alias of the unit.
			for name, canonical := range l.alias {
				if canonical == unit && chosen == nil && len(many) == 0 {
					chosen, many = selector.Select(name)
				}
			}
		}
		if len(many) > 0 {
			rivals[unit] = many
		}
		if chosen != nil {
			targets[unit] = chosen
		}
	}
	// What a file attached stays as it is while the file is broken, and while
	// two attachments contradict each other; a pattern that names the unit too
	// does not take its place.
	for unit, old := range l.targets {
		now, has := targets[unit]
		_, contested := rivals[unit]
		if has && broken(d, old.Source) && old.Closer(*now, unit) || !has && (contested || broken(d, old.Source)) {
			targets[unit] = old
		}
	}
	for unit, r := range l.records {
		now, has := targets[unit]
		if _, known := l.targets[unit]; has && !known && now.Matches(unit) < attach.MatchName && now.Source != r.Attachment && broken(d, r.Attachment) {
			delete(targets, unit) // the pass says that it is frozen
		}
	}
	var changed []string
	for unit, a := range targets {
		if old, ok := l.targets[unit]; !ok || !sameAttachment(*old, *a) {
			changed = append(changed, unit)
		}
	}
	for unit := range l.targets {
		if _, ok := targets[unit]; !ok {
			changed = append(changed, unit)
		}
	}
	for unit := range rivals {
		changed = append(changed, unit)
	}
	for unit := range l.records {
		if _, ok := targets[unit]; !ok && !slices.Contains(changed, unit) {
			changed = append(changed, unit)
		}
	}
	l.noteGone(d)
	l.declared, l.selector, l.targets, l.rivals = d, selector, targets, rivals
	l.unlisted = map[string]bool{}
	for unit, a := range targets {
		// What a broken file has attached is listed by nobody.
		if whole && !listed[unit] && slices.Contains(d.Attachments, a) {
			l.unlisted[unit] = true
			if l.isSpent(unit) {
				changed = append(changed, unit)
			}
		}
	}
	if l.sized != nil {
		l.sized(len(targets))
	}
	l.queue.add(review, changed...)
}

func sameAttachment(a, b attach.Attachment) bool {
	a.Line, b.Line = 0, 0
	return reflect.DeepEqual(a, b)
}

// broken reports whether the file that declared an attachment, or the
// directory it lies in, cannot be used at present.
func broken(d attach.Declared, source string) bool {
	for path := range d.Broken {
		if path == source || path == filepath.Dir(source) || filepath.Base(path) == filepath.Base(source) {
			return true
		}
	}
	return false
}

// expand lists the units that the attachments name, those of patterns included,
// and the templates and prefixes themselves. whole is false where systemd did not
// list all of them.
func (l *Loop) expand(ctx context.Context, all []*attach.Attachment) (out []string, whole bool) {
	whole = true
	for _, a := range all {
		for _, u := range a.Units {
			glob := u
			switch {
			case attach.IsGlob(u):
			case attach.IsPattern(u):
				out = append(out, u) // its drop-in is for units to come, too
				glob = attach.UnitsOf(u)
			default:
				out = append(out, u)
				continue
			}
			found, err := l.systemd.Expand(ctx, glob)
			if err != nil {
				whole = false
				l.log.Warn("cannot list units", "pattern", u, "err", err)
			}
			for _, f := range found {
				if !attach.IsTemplate(f) {
					out = append(out, f)
				}
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out), whole
}

// everything lists all units that are attached or remembered, and those whose
// status is shown: of what was withdrawn it must go.
func (l *Loop) everything() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []string
	for u := range l.targets {
		out = append(out, u)
	}
	for u := range l.rivals {
		out = append(out, u)
	}
	for u := range l.records {
		out = append(out, u)
	}
	for u := range l.statuses {
		out = append(out, u)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// touched lists the units that a change of profiles or of what is loaded may
// concern: those of profiles that are not as they were, and all that are not
// quite in order. For the others nothing is asked or read, however many there
// are, unless the global mode has changed. told is since when the change is told.
func (l *Loop) touched(told time.Time) []string {
	l.noteHost(l.apparmor.Host())
	l.mu.Lock()
	units, policies := map[string][]string{}, map[string]inUse{}
	judged := map[string][]string{}
	var out []string
	for unit, a := range l.targets {
		profile, err := a.ProfileFor(unit)
		if err != nil || !l.inOrder(unit) {
			out = append(out, unit)
			continue
		}
		p := policyOf(a, profile)
		units[p.key] = append(units[p.key], unit)
		policies[p.key] = p
		names := judgedBy(attach.Desired{Unit: unit, Attachment: a, Profile: profile, Record: l.records[unit]})
		judged[strings.Join(names, "\x00")] = names
	}
	for unit := range l.records {
		if _, attached := l.targets[unit]; !attached {
			out = append(out, unit)
		}
	}
	for unit := range l.rivals {
		out = append(out, unit)
	}
	l.mu.Unlock()

	// Before the fingerprints: what is loaded between both is found by these.
	loaded := map[string]string{}
	for key, names := range judged {
		loaded[key] = l.apparmor.LoadedState(names)
	}
	// In any case: who asks for a profile next need not wait for the parser.
	l.apparmor.Fingerprint(nil, "")
	prints := map[string]string{}
	for key, p := range policies {
		prints[key] = l.apparmor.Fingerprint(p.names, p.file)
	}
	l.mu.Lock()
	for key, print := range prints {
		if print != l.prints[key] {
			out = append(out, units[key]...)
		}
	}
	l.prints, l.loaded = prints, loaded
	out = slices.DeleteFunc(out, func(unit string) bool { return l.leave[unit] })
	for _, unit := range out {
		if l.waiting[unit].IsZero() {
			l.waiting[unit] = told
		}
	}
	l.mu.Unlock()
	slices.Sort(out)
	return slices.Compact(out)
}

// load makes policies live, as AppArmor.Load does.
func (l *Loop) load(ctx context.Context, all []attach.Compiled) (failed map[string]error) {
	failed = l.apparmor.Load(ctx, all)
	var names []string
	for _, c := range all {
		if failed[c.File] == nil {
			names = append(names, sortedNames(c)...)
		}
	}
	l.forgetPrints(names)
	return failed
}

// unload removes profiles, as AppArmor.Unload does.
func (l *Loop) unload(ctx context.Context, names []string) (failed map[string]error) {
	failed = l.apparmor.Unload(ctx, names)
	l.forgetPrints(slices.DeleteFunc(slices.Clone(names), func(name string) bool { return failed[name] != nil }))
	return failed
}

// forgetPrints forgets how policy was that the loop has changed since: should somebody
// make that of it once more, it is another change.
func (l *Loop) forgetPrints(profiles []string) {
	changed := func(key, _ string) bool {
		return slices.ContainsFunc(strings.Split(key, "\x00"), func(name string) bool { return slices.Contains(profiles, name) })
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.prints, changed)
	maps.DeleteFunc(l.loaded, changed)
}

// inUse is what the policy of some units depends on: the profiles, and the file that
// the attachment names.
type inUse struct {
	key   string // all of it
	names []string
	file  string
}

func policyOf(a *attach.Attachment, profile string) inUse {
	p := inUse{names: append([]string{profile}, a.AllowProfiles...), file: a.ProfileFile}
	p.key = strings.Join(append([]string{p.file}, p.names...), "\x00")
	return p
}

// inOrder reports whether nothing is left to be done for a unit, as far as is
// known. The lock is held.
func (l *Loop) inOrder(unit string) bool {
	r, s := l.records[unit], l.statusOf(unit)
	return settled(r) && r.Hold == nil && len(s.Refused) == 0 && !unfinished(s.Notes) &&
		(s.Verdict == nil || s.Verdict.Answer != attach.NotConfined)
}

// target is the attachment that applies to a unit, or nil.
func (l *Loop) target(unit string) *attach.Attachment {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.targets[unit]
}

// desired puts together what is wished for a unit and what is remembered.
func (l *Loop) desired(unit string) (attach.Desired, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.desiredAt(unit, time.Now())
}

// desiredAt is desired at a time. The lock is held.
func (l *Loop) desiredAt(unit string, now time.Time) (attach.Desired, error) {
	d := attach.Desired{Unit: unit}
	d.Record, d.Kept = l.recall(unit)
	d.Pattern, d.PatternPause = l.patternPause(unit, now)
	a, ok := l.targets[unit]
	if !ok {
		return d, nil
	}
	d.Attachment = a
	if attach.IsPattern(unit) && byUnit(a) {
		return d, nil
	}
	if pattern, h := l.patternHold(unit); h != nil {
		d.HeldWith, d.Record.Hold = pattern, h
	}
	var err error
	d.Profile, err = l.profileFor(unit, a)
	return d, err
}

// profileFor is the profile that an attachment names for a unit. Where that is no name any
// more, it is the one under which an attached unit goes on; a plan refuses any other. The
// lock is held.
func (l *Loop) profileFor(unit string, a *attach.Attachment) (string, error) {
	name, err := a.ProfileFor(unit)
	if r := l.records[unit]; err != nil && settled(r) && !(attach.IsPattern(unit) && byUnit(a)) {
		return r.Profile, nil
	}
	return name, err
}

// recall is what is remembered of a unit. The lock is held.
func (l *Loop) recall(unit string) (r attach.Record, kept []attach.Compiled) {
	r = l.records[unit].Clone()
	return r, l.keptOf(r)
}

// keptOf are the accepted policies of a record, without their bytes.
func (l *Loop) keptOf(r attach.Record) []attach.Compiled { return keptOf(l.policies, r) }

func keptOf(policies Policies, r attach.Record) (kept []attach.Compiled) {
	for _, file := range slices.Sorted(maps.Keys(r.Policies)) {
		if k, ok := policies.Lookup(r.Policies[file]); ok {
			kept = append(kept, k)
		}
	}
	return kept
}

// unitLocks are locks of units. Units may share one.
type unitLocks [parallel]sync.Mutex

func (u *unitLocks) of(unit string) *sync.Mutex {
	h := fnv.New32a()
	h.Write([]byte(unit))
	return &u[h.Sum32()%uint32(len(u))]
}

func (l *Loop) forgetHost() {
	l.mu.Lock()
	l.serviceRead, l.asking = false, nil
	l.mu.Unlock()
}

// look gives the verdict on a unit that started, whoever started it, or brings
// up to date what is known of one that ended.
func (l *Loop) look(ctx context.Context, unit string, justStarted bool) {
	d, err := l.desired(unit)
	if err == nil && d.Attachment == nil && justStarted && l.forgotten(unit) {
		l.queue.addDeclare()
		l.queue.add(inputChanged|started, unit)
		return
	}
	if err != nil || d.Attachment == nil || attach.IsPattern(unit) {
		return
	}
	v, o := l.judge(ctx, d, justStarted)
	if ctx.Err() != nil && v.Answer == attach.Unknown {
		return // nobody was asked; the next start goes on
	}
	l.learnAlias(unit, o.Unit)
	if settled(d.Record) && o.DropIn.Problem == "" && o.DropIn.Content != d.DropInText(o.Unit) && d.Record.Hold == nil {
		l.queue.add(inputChanged, unit) // it is to be put back
	}
	if d.Record.Stopped && d.Record.Hold != nil && o.Unit.Active() {
		l.queue.add(inputChanged, unit) // it waits no more, which is for a pass to record
	}
	if o.SocketsAmiss() != nil {
		// So are these. The pass ends with a verdict and no look, so what does not help is
		// tried once.
		l.queue.add(inputChanged, unit)
	}
	l.stopViolator(ctx, d, d.Record, &o, v, false)
	l.conclude(d, o, v)
}

// unseen reports whether the unit was started under an attachment that was in
// place, and nobody heard of it: at boot, or while aaunitd or the bus was away.
func unseen(before attach.Record, v attach.Verdict) bool {
	return settled(before) && before.Verdict != nil && v.InvocationID != "" && before.Verdict.InvocationID != v.InvocationID
}

// taken reports whether the tasks themselves are not confined, and not only
// something that the next start will meet.
func taken(v attach.Verdict) bool {
	return slices.ContainsFunc(v.Reasons, func(r attach.Reason) bool {
		switch r.Code {
		case attach.TaskUnconfined, attach.TaskOther, attach.TaskComplain, attach.TmpShared, attach.AppArmorOff, attach.GlobalComplain:
			return true
		}
		return false
	})
}

// broughtBack reports whether the unit is as the undo of a failed attach left
// it: without the profile, or under the one that it had before.
func broughtBack(d attach.Desired, o attach.Observed) bool {
	h := d.Record.Hold
	if h == nil || d.Attachment.OnFailedAttach != attach.FailedUndo {
		return false
	}
	return h.Former == "" || carries(asBefore(d, h.Former, d.Record.Accepted), o)
}

// asBefore is the wish for a unit that is back under a former profile: what was accepted
// for it then is what the attachment of then allowed.
func asBefore(d attach.Desired, profile string, accepted map[string]string) attach.Desired {
	a := *d.Attachment
	a.AllowProfiles = slices.AppendSeq(slices.Clone(a.AllowProfiles), maps.Keys(accepted))
	d.Attachment, d.Profile = &a, profile
	return d
}

// stopViolator carries out OnViolation=stop: on a start that is not confined,
// and on one that was confined and is no more. A start from before the
// attachment, which waits for its restart, is not stopped, and neither is what
// an undo brought back, a unit that complains because it shall, a paused one, one that only
// gives way to another unit's policy or one of which only a child of an earlier policy is in
// the way that is unloaded in a moment. before is the record as it was before the look, or
// before the pass that the look ends; mended says that this pass has put back, or could not
// put back, what somebody had changed.
func (l *Loop) stopViolator(ctx context.Context, d attach.Desired, before attach.Record, o *attach.Observed, v attach.Verdict, mended bool) {
	if !violates(d, before, *o, v) {
		return
	}
	counts, seen := l.asCounts(d, *o)
	if v = attach.Judge(counts, seen); !violates(d, before, *o, v) {
		return
	}
	proved := provedBefore(d, *o, v)
	if l.whyPaused(d.Unit) != nil {
		return
	}
	if now, err := l.desired(d.Unit); err == nil && only(v, attach.PolicyDiffers) && !maps.Equal(now.Record.Accepted, d.Record.Accepted) {
		l.queue.add(inputChanged|started, d.Unit) // something else was accepted for it meanwhile
		return
	}
	if only(v, attach.PolicyDiffers) && !l.notKept(d.Unit) && l.wouldAccept(ctx, d) || proved && !mended && l.wouldHeal(ctx, d) {
		l.queue.add(inputChanged|started, d.Unit)
		return
	}
	if onlyStrays(counts, seen, v) && l.unloadsStrays(counts, seen) {
		// No task of the unit is in the way, and nothing that is for the unit to end.
		l.later(l.again, d.Unit, unloadLater, inputChanged) // another one may have tried it
		if o.JustStarted {
			l.later(l.anew, d.Unit, unloadLater, started)
		}
		return
	}
	l.log.Error("stopping "+d.Unit+", which is not confined: "+v.Reasons[0].String(), journal.FieldMessageID, string(journal.MsgStopped),
		journal.FieldUnit, d.Unit, journal.FieldObjectUnit, d.Unit, journal.FieldProfile, d.Profile, journal.FieldReason, string(v.Reasons[0].Code))
	if err := l.systemd.Stop(ctx, d.Unit); err != nil {
		l.log.Error("cannot stop a unit that is not confined", journal.FieldUnit, d.Unit, "err", err)
	}
	if u, err := l.systemd.Observe(ctx, d.Unit); err == nil {
		o.Unit = u
	}
}

// onlyStrays reports whether all that speaks against the verdict are children of profiles
// that were not accepted with them.
func onlyStrays(d attach.Desired, o attach.Observed, v attach.Verdict) bool {
	return hasLive(d.Record.Accepted, o.Policy.Live) && only(v, attach.PolicyDiffers)
}

// unloadsStrays reports whether all children of profiles that were not accepted with them
// are tried again to be unloaded in a moment, for whichever unit.
func (l *Loop) unloadsStrays(d attach.Desired, o attach.Observed) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name := range o.Policy.Live {
		again := func(stray string) bool {
			return (name == stray || strings.HasPrefix(name, stray+"//")) && time.Now().Before(l.strays[stray])
		}
		if _, ok := d.Record.Accepted[name]; !ok && !slices.ContainsFunc(slices.Collect(maps.Keys(l.strays)), again) {
			return false
		}
	}
	return true
}

// violates reports whether OnViolation=stop is about what was seen; see stopViolator.
func violates(d attach.Desired, before attach.Record, o attach.Observed, v attach.Verdict) bool {
	if v.Answer != attach.NotConfined || d.Attachment.OnViolation != attach.ViolationStop || !o.Unit.Active() {
		return false
	}
	if o.Unit.ActiveState == "deactivating" {
		return false // it is stopped already, which may take as long as it likes
	}
	if !o.JustStarted && !provedBefore(d, o, v) && !unseen(before, v) {
		return false
	}
	return !broughtBack(d, o) && !complainsAsWished(d, v)
}

// provedBefore reports whether the start that was looked at had before what it has not now.
// Of one whose accepted policy is in complain mode that mode is no loss.
func provedBefore(d attach.Desired, o attach.Observed, v attach.Verdict) bool {
	complains := slices.ContainsFunc(d.Kept, func(k attach.Compiled) bool { return k.Complain })
	return !o.JustStarted && d.Record.ProvedAs(v.InvocationID, d.Profile) && !(complains && only(v, attach.TaskComplain))
}

// wouldAccept reports whether the kernel runs what the profile's file says and
// only the pass that accepts it has not come yet: a person, or a package, has
// loaded a new text and restarted the unit at once.
func (l *Loop) wouldAccept(ctx context.Context, d attach.Desired) bool {
	o, err := l.observe(ctx, d, full)
	if err != nil {
		return false
	}
	p := attach.Diff(d, o)
	return len(p.Refusals)+len(p.Pending) == 0 && len(o.Policy.Problems) == 0 && !p.KeepsPolicy && !p.Has(attach.LoadPolicy) && !p.Has(attach.UnloadChild)
}

// notKept reports whether the unit's policy could not be put on disk the last time:
// what was not kept is not accepted.
func (l *Loop) notKept(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.statusOf(unit).Refused, func(r attach.Reason) bool { return r.Code == attach.PolicyNotKept })
}

// wouldHeal reports whether the next pass puts back a policy that somebody has
// replaced or removed under a unit that runs: if that does not help, the verdict
// after it stops the unit.
func (l *Loop) wouldHeal(ctx context.Context, d attach.Desired) bool {
	o, err := l.observe(ctx, d, full)
	if err != nil {
		return false
	}
	p := attach.Diff(d, o)
	return len(p.Refusals) == 0 && slices.ContainsFunc(p.Actions, healing)
}

// learnAlias remembers under which name systemd really knows a unit.
func (l *Loop) learnAlias(asked string, u attach.Unit) {
	if u.ID == "" || u.ID == asked || !slices.Contains(u.Names, asked) {
		return
	}
	l.mu.Lock()
	l.alias[asked] = u.ID
	l.mu.Unlock()
}

// reviewAliases forgets the aliases that are none any more: a name may have
// become a unit of its own, or another's.
func (l *Loop) reviewAliases(ctx context.Context) {
	l.mu.Lock()
	known := maps.Clone(l.alias)
	l.mu.Unlock()
	for name, canonical := range known {
		u, err := l.systemd.Observe(ctx, name)
		if err != nil || u.ID == canonical {
			continue
		}
		l.mu.Lock()
		delete(l.alias, name)
		l.mu.Unlock()
		l.learnAlias(name, u)
	}
}
