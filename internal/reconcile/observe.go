package reconcile

import (
	"context"
	"fmt"
	"maps"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// parallel bounds how many units are observed or restarted at once. Both wait
// for systemd most of the time, which answers questions that come together
// together.
const parallel = 64

// parallelFiles bounds how many wait for files and /proc at once, as each takes a
// thread, and Go gives none back: its stacks alone are 48 KiB for as long as the
// daemon lives (runtime.malg in Go's runtime/proc.go). Files gain nothing from more.
const parallelFiles = 12

// onDisk waits for its turn with files. done ends it.
func (l *Loop) onDisk() (done func()) {
	l.disk <- struct{}{}
	return func() { <-l.disk }
}

// depth says how much of a unit is looked at.
type depth int

const (
	// quick is for a verdict: settings, loaded policy, tasks.
	quick depth = iota
	// full also compiles the profile's file, for a plan.
	full
)

// observe gathers everything about one unit. An error means that systemd could
// not be asked; whatever else could not be read is in the result.
//
// A template or prefix is no unit: of it there are the drop-in and the policy.
func (l *Loop) observe(ctx context.Context, d attach.Desired, how depth) (attach.Observed, error) {
	return l.observeAt(ctx, d, how, nil)
}

// observeAt takes from m what is the same for all units; nil reads it.
func (l *Loop) observeAt(ctx context.Context, d attach.Desired, how depth, m *moment) (attach.Observed, error) {
	at := time.Now()
	u := attach.Unit{ID: d.Unit}
	if !attach.IsPattern(d.Unit) {
		ask := l.systemd.Observe
		if how == quick {
			ask = l.systemd.Glance
		}
		var err error
		if u, err = ask(ctx, d.Unit); err != nil {
			return attach.Observed{}, err
		}
	}
	return l.observeRest(ctx, d, how, m, u, at), nil
}

// observeRest observes all but the unit itself, which was read after at.
func (l *Loop) observeRest(ctx context.Context, d attach.Desired, how depth, m *moment, u attach.Unit, at time.Time) attach.Observed {
	o := attach.Observed{Unit: u, At: at}
	l.observePolicy(ctx, d, how, m, &o)
	l.observeSockets(ctx, d, how, &o)
	// Last, as the InvocationID is read again behind it: all of this is to belong to one
	// start.
	if s, seen := m.scanOf(u); seen && how == full {
		o.Scan = &s
	} else if u.Active() {
		s := l.scanInTurn(ctx, u)
		o.Scan = &s
	}
	l.observeMain(ctx, d, &o)
	if how == full {
		l.spareReload(d.Unit, &o)
	}
	return o
}

// spareReload takes back what systemd says of files where it has read them again for
// that and they have not changed since: it says so of a unit for as long as one of its
// files is not there, and would be made to read them for ever.
func (l *Loop) spareReload(unit string, o *attach.Observed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	spare := func(name, state string, need, inVain *bool) {
		if !*need {
			delete(l.readAnew[unit], name)
			return
		}
		if tried, known := l.readAnew[unit][name]; known && tried == state {
			*need, *inVain = false, true
		}
	}
	spare(o.Unit.ID, o.Unit.FilesState, &o.Unit.NeedReload, &o.Unit.ReloadedInVain)
	for i := range o.SocketUnits {
		s := &o.SocketUnits[i]
		spare(s.ID, s.FilesState, &s.NeedReload, &s.ReloadedInVain)
	}
}

// noteReload notes for which state of a unit's files systemd has read them again.
func (l *Loop) noteReload(j *job) {
	tried := map[string]string{}
	if u := j.o.Unit; u.NeedReload {
		tried[u.ID] = u.FilesState
	}
	for _, s := range j.o.SocketUnits {
		if s.NeedReload {
			tried[s.ID] = s.FilesState
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, state := range tried {
		if l.readAnew[j.d.Unit] == nil {
			l.readAnew[j.d.Unit] = map[string]string{}
		}
		l.readAnew[j.d.Unit][name] = state
	}
}

// maxTurn is how long a look at tasks may keep others from files. One that takes longer
// waits for something that may not answer.
const maxTurn = 5 * time.Second

// scanInTurn looks at the tasks of a unit when it has its turn with files.
func (l *Loop) scanInTurn(ctx context.Context, u attach.Unit) attach.Scan {
	done := sync.OnceFunc(l.onDisk())
	defer done()
	defer time.AfterFunc(maxTurn, done).Stop()
	return l.scan(ctx, u)
}

// observePolicy fills in all but the unit and its tasks.
func (l *Loop) observePolicy(ctx context.Context, d attach.Desired, how depth, m *moment, o *attach.Observed) {
	if m != nil {
		o.Host = m.host
	} else {
		o.Host = l.host(ctx)
	}
	switch {
	case d.Attachment != nil:
		if m == nil || how == full { // a verdict goes by what is in effect
			o.DropIn = l.readDropIn(d)
			if former := d.FormerDropInPath(); former != "" && attach.IsPattern(d.Unit) {
				o.FormerDropIn = l.readDropInAt(d, former)
			}
		}
		if how == full {
			l.observeReach(ctx, d, m, o)
			l.observePattern(d, o)
		}
		o.Policy = l.policy(ctx, d, o.Unit, how, m)
	case how == full && len(d.Record.Softened) > 0:
		o.Policy = l.softened(ctx, d)
	}
}

// observeTogether takes a quick look at many units that run, of which systemd says
// the same before and after all their tasks were looked at. What it gives of a unit
// tells everything; nil needs a look of its own.
func (l *Loop) observeTogether(ctx context.Context, all []attach.Desired, m *moment) []*attach.Observed {
	names := make([]string, len(all))
	for i, d := range all {
		names[i] = d.Unit
	}
	var found map[string]attach.Unit
	var scans map[string]attach.Scan
	same := map[string]bool{}
	for _, unit := range l.systemd.GlanceTogether(ctx, names, func(units map[string]attach.Unit) {
		found, scans = units, l.rescan(slices.Collect(maps.Values(units)))
	}) {
		same[unit] = true
	}
	out := make([]*attach.Observed, len(all))
	spread(len(all), func(i int) {
		d := all[i]
		s, looked := scans[d.Unit]
		if !looked || !same[d.Unit] {
			return
		}
		u := found[d.Unit]
		s.Before, s.After = u.InvocationID, u.InvocationID
		o := attach.Observed{Unit: u, At: m.at, Scan: &s}
		l.observePolicy(ctx, d, quick, m, &o)
		l.observeSockets(ctx, d, quick, &o)
		out[i] = &o
	})
	return out
}

// moment is what many units have in common, read once for a look at all of them.
type moment struct {
	at    time.Time // before any of it was read
	host  attach.Host
	asked map[string]bool                          // profiles that were asked for
	live  map[string]map[string]attach.LiveProfile // by profile: it, its children and hats
	err   error
	built map[bool]built // for plans; see compileTogether
	// scans are looks at tasks by unit, for plans: to see that a task is not about to
	// leave what it carries takes longer than all else that a plan needs.
	scans map[string]sighting
	// proposed are wishes that are not declared yet, by unit, and texts the profile
	// files as they would be; nil is as they are.
	proposed map[string]attach.Desired
	texts    Texts
	reached
	others objections
}

// sighting is a look at the tasks of a unit, as it was then.
type sighting struct {
	u    attach.Unit
	scan attach.Scan
}

// sightingGoodFor bounds how old the look is by which a unit's change is planned.
// A verdict goes by a look of its own.
const sightingGoodFor = 10 * time.Second

// scanOf gives a look at the same start of a unit.
func (m *moment) scanOf(u attach.Unit) (attach.Scan, bool) {
	if m == nil {
		return attach.Scan{}, false
	}
	s, ok := m.scans[u.ID]
	// What was about to become something else has become it by now.
	ok = ok && !slices.ContainsFunc(s.scan.Tasks, func(t attach.Task) bool { return t.InTransit || t.Problem != "" })
	ok = ok && u.Active() && s.scan.Problem == "" && s.scan.Stable && s.scan.Before == u.InvocationID && s.scan.After == u.InvocationID &&
		s.u.MainPID == u.MainPID && s.u.ControlPID == u.ControlPID && s.u.ControlGroup == u.ControlGroup && time.Since(s.scan.At) < sightingGoodFor
	return s.scan, ok
}

// momentOf reads what a look at these units has in common.
func (l *Loop) momentOf(ctx context.Context, all []attach.Desired) *moment {
	m := &moment{at: time.Now(), host: l.host(ctx)}
	var names []string
	for _, d := range all {
		names = append(names, judgedBy(d)...)
	}
	m.read(l.apparmor, names)
	return m
}

// momentOfPlans reads and compiles what plans for these units have in common. A
// single unit has nothing in common with others.
func (l *Loop) momentOfPlans(ctx context.Context, all []attach.Desired, texts Texts) *moment {
	m := &moment{at: time.Now(), host: l.host(ctx), texts: texts}
	if len(all) < 2 {
		return m
	}
	m.built = compileTogether(ctx, texts, all)
	var names []string
	for _, d := range all {
		names = append(names, judgedBy(d)...)
	}
	for _, b := range m.built {
		for _, c := range b.done {
			names = append(names, sortedNames(c)...)
		}
	}
	m.read(l.apparmor, names)
	return m
}

func (m *moment) read(apparmor AppArmor, names []string) {
	m.asked, m.live = map[string]bool{}, map[string]map[string]attach.LiveProfile{}
	for _, name := range names {
		m.asked[name] = true
	}
	var live map[string]attach.LiveProfile
	if live, m.err = apparmor.Live(slices.Sorted(maps.Keys(m.asked))); m.err != nil {
		return
	}
	for name, p := range live {
		top, _, _ := strings.Cut(name, "//")
		if m.live[top] == nil {
			m.live[top] = map[string]attach.LiveProfile{}
		}
		m.live[top][name] = p
	}
}

// lasts reports whether what was read of the kernel for a look at these units is so
// after it, too.
func (l *Loop) lasts(m *moment, all []attach.Desired) bool {
	now := &moment{host: l.apparmor.Host()}
	now.host.BootService = m.host.BootService // no verdict goes by it
	var names []string
	for _, d := range all {
		names = append(names, judgedBy(d)...)
	}
	now.read(l.apparmor, names)
	return m.err == nil && now.err == nil && now.host == m.host && reflect.DeepEqual(now.live, m.live)
}

// covers reports whether all of these profiles were read.
func (m *moment) covers(names []string) bool {
	return m.err == nil && !slices.ContainsFunc(names, func(name string) bool { return !m.asked[name] })
}

// liveOf gives some of the profiles that were read, with their children and hats.
func (m *moment) liveOf(names []string) map[string]attach.LiveProfile {
	out := map[string]attach.LiveProfile{}
	for _, n := range names {
		top, _, _ := strings.Cut(n, "//")
		for name, live := range m.live[top] {
			if name == n || strings.HasPrefix(name, n+"//") {
				out[name] = live
			}
		}
	}
	return out
}

// judgedBy are the profiles that count for the verdict on a unit, in order.
func judgedBy(d attach.Desired) (names []string) {
	if d.Attachment != nil {
		names = slices.Clone(profilesOf(d))
	}
	for name := range d.Record.Accepted {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (l *Loop) host(ctx context.Context) attach.Host {
	h := l.apparmor.Host()
	h.BootService = l.bootService(ctx)
	return h
}

// serviceQuestion is a question to systemd for whose answer several wait.
type serviceQuestion struct {
	done   chan struct{}
	answer attach.Tri
}

// bootService says whether systemd will start apparmor.service at boot. Of many who
// want to know it at once, one asks.
func (l *Loop) bootService(ctx context.Context) attach.Tri {
	l.mu.Lock()
	if l.serviceRead {
		defer l.mu.Unlock()
		return l.service
	}
	q := l.asking
	if q != nil {
		l.mu.Unlock()
		select {
		case <-q.done:
			return q.answer
		case <-ctx.Done():
			return attach.CouldNotTell
		}
	}
	q = &serviceQuestion{done: make(chan struct{})}
	l.asking = q
	l.mu.Unlock()
	q.answer = bootService(ctx, l.systemd)
	close(q.done)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.asking == q { // nothing has changed meanwhile
		l.asking, l.service, l.serviceRead = nil, q.answer, q.answer != attach.CouldNotTell
	}
	return q.answer
}

// observer is the part of Systemd that reads a unit.
type observer interface {
	Observe(ctx context.Context, unit string) (attach.Unit, error)
}

// bootService says whether systemd will start apparmor.service at boot; it can
// change only together with a reload of systemd's files.
func bootService(ctx context.Context, systemd observer) attach.Tri {
	u, err := systemd.Observe(ctx, "apparmor.service")
	switch {
	case err != nil:
		return attach.CouldNotTell
	case !u.Found():
		return attach.No
	}
	return attach.TriOf(slices.Contains([]string{"enabled", "static", "linked", "generated"}, u.UnitFileState))
}

func (l *Loop) readDropIn(d attach.Desired) attach.DropInState {
	return l.readDropInAt(d, d.DropInPath())
}

func (l *Loop) readDropInAt(d attach.Desired, path string) attach.DropInState {
	done := l.onDisk()
	text, exists, err := l.systemd.ReadDropIn(path)
	done()
	if err != nil {
		return attach.DropInState{Exists: true, Problem: err.Error()}
	}
	return attach.DropInState{Exists: exists, Content: text, Ours: d.Record.DropIns.Has(path) || l.wrote(path)}
}

// wrote reports whether a record of any unit says that aaunit wrote the file;
// units of one pattern share one.
func (l *Loop) wrote(path string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.DropIns.Has(path) {
			return true
		}
	}
	return false
}

// hadText reports whether a record of any unit says that aaunit wrote this text there.
func (l *Loop) hadText(path, text string) bool {
	want := sum(text)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		if r.DropIns.Of(path) == want {
			return true
		}
	}
	return false
}

// maxScan bounds one look at a unit's tasks. It is a second or two unless a
// file system or the kernel does not answer.
const maxScan = time.Minute

// scan looks at the tasks, with the InvocationID read before and after. A look
// that does not come back holds up nothing but itself: the unit is unknown then,
// and is not looked at a second time until the first look has ended.
func (l *Loop) scan(ctx context.Context, u attach.Unit) attach.Scan {
	l.mu.Lock()
	stuck := l.stuck[u.ID]
	l.mu.Unlock()
	s := attach.Scan{Problem: "an earlier look at them has not ended yet"}
	if !stuck {
		found := make(chan attach.Scan, 1)
		go func() {
			found <- l.apparmor.Scan(ctx, u)
			l.mu.Lock()
			delete(l.stuck, u.ID)
			l.mu.Unlock()
		}()
		late := time.NewTimer(maxScan)
		defer late.Stop()
		select {
		case s = <-found:
		case <-late.C:
			s.Problem = fmt.Sprintf("the look did not end within %v", maxScan)
			l.mu.Lock()
			select {
			case s = <-found: // after all; its mark is not to outlive it
			default:
				l.stuck[u.ID] = true
			}
			l.mu.Unlock()
		}
	}
	s.Before = u.InvocationID
	after, err := l.systemd.Invocation(ctx, u.ID)
	if err != nil {
		s.Problem = fmt.Sprintf("systemd did not tell the InvocationID after the look: %v", err)
	}
	s.After = after
	return s
}

// maxRescan bounds a look at the tasks of many units, which waits for nothing.
const maxRescan = 5 * time.Second

// rescan looks at the tasks of many units. Where that does not come back, and
// until it does, each unit needs a look of its own.
func (l *Loop) rescan(units []attach.Unit) map[string]attach.Scan {
	if len(units) == 0 || !l.rescanning.TryLock() {
		return nil
	}
	found := make(chan map[string]attach.Scan, 1)
	go func() {
		defer l.rescanning.Unlock()
		found <- l.apparmor.Rescan(units)
	}()
	late := time.NewTimer(maxRescan)
	defer late.Stop()
	select {
	case scans := <-found:
		return scans
	case <-late.C:
		return nil
	}
}

// passing bounds how long a look is repeated for what passes by itself.
const passing = 30 * time.Second

// judge looks quickly and gives the verdict. What systemd does not answer is
// unknown. While all that keeps it from an answer is something that passes (a
// program that systemd has forked and not executed yet, a restart during the
// look) it looks again, for at most 30 s.
func (l *Loop) judge(ctx context.Context, d attach.Desired, justStarted bool) (attach.Verdict, attach.Observed) {
	pause := 50 * time.Millisecond
	for begun := time.Now(); ; {
		v, o := l.judgeOnce(ctx, d, justStarted)
		if !passes(l.blamed(d, o, v)) || time.Since(begun) > passing {
			return v, o
		}
		select {
		case <-ctx.Done():
			return v, o
		case <-time.After(pause):
		}
		pause = min(2*pause, time.Second)
	}
}

// judgeRead is judge of a unit that systemd has just told of, after at.
func (l *Loop) judgeRead(ctx context.Context, d attach.Desired, justStarted bool, u attach.Unit, at time.Time) (attach.Verdict, attach.Observed) {
	v, o := l.judgement(d, l.observeRest(ctx, d, quick, nil, u, at), justStarted)
	if passes(l.blamed(d, o, v)) {
		return l.judge(ctx, d, justStarted)
	}
	return v, o
}

// passes reports whether a verdict is "unknown" and everything that speaks for that passes
// by itself.
func passes(v attach.Verdict) bool {
	if v.Answer != attach.Unknown {
		return false
	}
	for _, r := range v.Reasons {
		if r.Code.Bearing() == attach.Unknown && r.Code != attach.TasksUnstable && r.Code != attach.RestartedMeanwhl {
			return false
		}
	}
	return true
}

func (l *Loop) judgeOnce(ctx context.Context, d attach.Desired, justStarted bool) (attach.Verdict, attach.Observed) {
	o, err := l.observe(ctx, d, quick)
	if err != nil {
		return unheard(d, err), attach.Observed{Unit: attach.Unit{ID: d.Unit}}
	}
	return l.judgement(d, o, justStarted)
}

// judgement gives the verdict on what was seen.
func (l *Loop) judgement(d attach.Desired, o attach.Observed, justStarted bool) (attach.Verdict, attach.Observed) {
	o.JustStarted = justStarted
	v := attach.Judge(d, o)
	if v.Answer == attach.NotConfined && d.Profile != "" {
		// For the hint at a rule.
		o.Policy.Candidates = map[string][]attach.Profile{d.Profile: l.apparmor.Known(d.Profile)}
		v = attach.Judge(d, o)
	}
	if v.At.IsZero() {
		v.At = time.Now()
	}
	return v, o
}

func unheard(d attach.Desired, err error) attach.Verdict {
	return attach.Verdict{Unit: d.Unit, Profile: d.Profile, Answer: attach.Unknown, At: time.Now(),
		Reasons: []attach.Reason{attach.Because(attach.SystemdUnheard, "systemd could not be asked about %s: %v", d.Unit, err)}}
}

// isUnheard reports whether a verdict is no more than that: nothing was seen.
func isUnheard(v attach.Verdict) bool {
	return len(v.Reasons) > 0 && v.Reasons[0].Code == attach.SystemdUnheard
}

// each calls f for every index below n, at most parallel at a time.
func each(n int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// spread calls f for every index below n on as many goroutines as there are
// processors: for what waits for nothing.
func spread(n int, f func(i int)) {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(n, runtime.GOMAXPROCS(0)) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n; i = int(next.Add(1)) - 1 {
				f(i)
			}
		})
	}
	wg.Wait()
}

// eachAlive calls f for every job that still has a way to go, at most parallel at
// a time.
func eachAlive(jobs []*job, f func(j *job)) {
	each(len(jobs), func(i int) {
		if jobs[i].alive() {
			f(jobs[i])
		}
	})
}
