package reconcile

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// What was seen of socket options is in the kernel's tables, by unit and for one
// boot. Here it is told, kept by executable, and compared; and what people decide of
// it is written into attachments.

// maxToldUses bounds the kinds of call of one unit in an answer.
const maxToldUses = 1000

// socketWatch is what is remembered of units whose socket options are recorded. The
// zero value is ready for use.
type socketWatch struct {
	mu sync.Mutex
	// due are looks whose tables are to be read, by unit.
	due  map[string]socketLook
	wake chan struct{} // made by the first that needs it
	// runs are the last starts of units that were seen.
	runs map[string]attach.SocketRun
	// notes are what status says of a unit.
	notes map[string]attach.Reason
	// numbers are what metrics say of a unit.
	numbers map[string]attach.SocketMetrics

	// disk is held from the read of a history to its write.
	disk sync.Mutex
}

// socketLook is a start that was looked at.
type socketLook struct {
	unit   string
	wanted attach.SocketOptions
	run    attach.SocketRun // Program as seen from outside
}

// noteSockets has what a unit uses put on record with the executable that runs. It
// holds up nobody.
func (l *Loop) noteSockets(d attach.Desired, o attach.Observed, v attach.Verdict) {
	wanted := d.Attachment.SocketsWanted()
	if l.sockets == nil || l.histories == nil || l.evidence == nil || attach.IsPattern(d.Unit) {
		return
	}
	w := &l.socketWatch
	if wanted == nil {
		w.forget(d.Unit)
		return
	}
	if v.InvocationID == "" || v.Tasks == 0 {
		return
	}
	look := socketLook{unit: d.Unit, wanted: *wanted, run: attach.SocketRun{
		Program: attach.GatherEvidence(d, o, v, sum).Executable, Kernel: l.kernel, Boot: l.boot,
		Invocation: v.InvocationID, Started: o.Unit.Left, At: v.At,
	}}
	for _, r := range o.Unit.Runs[:min(1, len(o.Unit.Runs))] {
		look.run.Began = r.Began
	}
	w.mu.Lock()
	if w.due == nil {
		w.due = map[string]socketLook{}
	}
	w.due[d.Unit] = look
	wake := w.waker()
	w.mu.Unlock()
	select {
	case wake <- struct{}{}:
	default: // it is awake
	}
}

// forget drops what is remembered of a unit.
func (w *socketWatch) forget(unit string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.due, unit)
	delete(w.runs, unit)
	delete(w.notes, unit)
	delete(w.numbers, unit)
}

// runOf is the last start of a unit that was seen.
func (w *socketWatch) runOf(unit string) (run attach.SocketRun, seen bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	run, seen = w.runs[unit]
	return run, seen
}

// waker is made anew by nobody. The lock is held.
func (w *socketWatch) waker() chan struct{} {
	if w.wake == nil {
		w.wake = make(chan struct{}, 1)
	}
	return w.wake
}

// keepSockets works off what is due until ctx ends, and then reads all tables once
// more: what was used since the last look would be lost with the boot.
func (l *Loop) keepSockets(ctx context.Context) {
	w := &l.socketWatch
	w.mu.Lock()
	wake := w.waker()
	w.mu.Unlock()
	for {
		select {
		case <-ctx.Done():
			w.mu.Lock()
			runs := maps.Clone(w.runs) // looks that are still under way change it
			w.mu.Unlock()
			for unit, run := range runs {
				run.At = time.Now()
				l.keepSocketsOf(unit, run, nil)
			}
			return
		case <-wake:
		}
		w.mu.Lock()
		due := w.due
		w.due = nil
		w.mu.Unlock()
		for _, look := range due {
			if ctx.Err() != nil {
				break
			}
			l.keepLook(ctx, look)
		}
	}
}

// keepLook finds out what runs, and keeps what it was seen to use.
func (l *Loop) keepLook(ctx context.Context, look socketLook) {
	w := &l.socketWatch
	look.run.Program = l.evidence.Program(ctx, look.unit, look.run.Program)
	before, _ := w.runOf(look.unit)
	switch {
	case before.Invocation == look.run.Invocation:
		if look.run.Program.SHA256 == "" && before.Program.SHA256 != "" {
			look.run.Program = before.Program // it was told before
		}
		look.run.Started = before.Started
	case before.At.After(look.run.Started):
		// A unit may start again without having been inactive (RestartMode=direct).
		look.run.Started = look.run.Began
	}
	w.mu.Lock()
	if w.runs == nil {
		w.runs = map[string]attach.SocketRun{}
	}
	w.runs[look.unit] = look.run
	w.mu.Unlock()
	l.keepSocketsOf(look.unit, look.run, &look.wanted)
}

// keepSocketsOf adds what the kernel's table says to what is kept of a unit.
func (l *Loop) keepSocketsOf(unit string, run attach.SocketRun, wanted *attach.SocketOptions) {
	w := &l.socketWatch
	w.disk.Lock()
	defer w.disk.Unlock()
	h, err := l.histories.Load(unit)
	lost := err != nil
	if err != nil {
		l.log.Warn(err.Error(), journal.FieldUnit, unit)
	}
	tables, err := l.socketTables(unit)
	if err != nil {
		l.log.Warn(err.Error(), journal.FieldUnit, unit) // the verdict says it, too
		return
	}
	h = h.Merge(tables, run)
	if wanted != nil {
		l.mu.Lock()
		lost = lost || l.records[unit].SocketsKept
		l.mu.Unlock()
		h = h.Found(*wanted, run.Program, run.At, lost)
	}
	if err := l.histories.Save(h); err != nil {
		l.log.Error(err.Error(), journal.FieldUnit, unit)
	} else if wanted != nil {
		l.noteKept(unit)
	}
	if wanted != nil {
		l.noteStatus(attach.SocketStatus{Unit: unit, Declared: wanted, History: h, Recorded: tables})
	}
}

// noteKept puts on a unit's record that there is a history of it: where that is missing one
// day, what its list was made for is not known.
func (l *Loop) noteKept(unit string) {
	keeping := l.keeping.of(unit)
	keeping.Lock()
	defer keeping.Unlock()
	l.mu.Lock()
	r, remembered := l.records[unit]
	if !remembered || r.SocketsKept || r.Sockets == nil {
		l.mu.Unlock()
		return
	}
	r.SocketsKept = true
	l.records[unit] = r
	l.mu.Unlock()
	l.write(r)
}

// socketTables reads what was recorded of a unit, and of the .socket units that start
// it. With an error there is what could be read.
func (l *Loop) socketTables(unit string) (tables []attach.SocketRecording, err error) {
	l.mu.Lock()
	others := socketNames(l.records[unit].SocketUnits)
	l.mu.Unlock()
	for _, name := range append([]string{unit}, others...) {
		r, found, e := l.sockets.Read(name)
		if found && e == nil {
			tables = append(tables, r)
		}
		err = errors.Join(err, e)
	}
	return tables, err
}

// noteStatus has status say that a list is of another executable, and metrics too.
func (l *Loop) noteStatus(s attach.SocketStatus) {
	s = s.WithStale()
	w := &l.socketWatch
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.notes == nil {
		w.notes, w.numbers = map[string]attach.Reason{}, map[string]attach.SocketMetrics{}
	}
	delete(w.notes, s.Unit)
	for _, r := range s.Reasons() {
		if r.Code == attach.SocketsStale {
			w.notes[s.Unit] = r
		}
	}
	delete(w.numbers, s.Unit)
	if m := s.Metrics(); m != nil {
		w.numbers[s.Unit] = *m
	}
}

// socketNumbers is what metrics say of a unit's socket options, as of the last look,
// or nil.
func (l *Loop) socketNumbers(unit string) *attach.SocketMetrics {
	w := &l.socketWatch
	w.mu.Lock()
	defer w.mu.Unlock()
	if m, ok := w.numbers[unit]; ok {
		return &m
	}
	return nil
}

// socketNote is what status says of a unit's socket options, or nil.
func (l *Loop) socketNote(unit string) []attach.Reason {
	w := &l.socketWatch
	w.mu.Lock()
	defer w.mu.Unlock()
	if r, ok := w.notes[unit]; ok {
		return []attach.Reason{r}
	}
	return nil
}

// SocketOptions says what is known of the socket options of attached units (names
// and globs; none: all that have a [SocketOptions] section).
func (l *Loop) SocketOptions(units []string) attach.SocketReport {
	known, missing := l.known(units)
	r := attach.SocketReport{Units: []attach.SocketStatus{}, At: time.Now()}
	for _, s := range l.withPatterns(known) {
		if st := l.socketStatus(s.Unit); st.Declared != nil || len(units) > 0 {
			r.Units = append(r.Units, st)
		}
	}
	r.Missing = l.whyMissing(missing)
	room := maxToldUses * maxToldUnits
	for i := range r.Units {
		room -= r.Units[i].Bound(min(maxToldUses, max(room, minToldUses)))
	}
	return r
}

const (
	// maxToldUnits is how many units may fill their part of an answer; minToldUses is
	// what each of the others has in any case.
	maxToldUnits = 8
	minToldUses  = 8
)

// socketStatus reads what there is of one unit.
func (l *Loop) socketStatus(unit string) attach.SocketStatus {
	s := attach.SocketStatus{Unit: unit, Recorded: []attach.SocketRecording{}, History: attach.SocketHistory{Unit: unit}}
	l.mu.Lock()
	if a, ok := l.targets[unit]; ok {
		s.Attachment, s.Manual, s.Declared = a.Source, a.Manual, a.SocketOptions
	}
	l.mu.Unlock()
	if l.sockets == nil || l.histories == nil {
		s.Problem = "this aaunitd has no part for socket options"
		return s
	}
	w := &l.socketWatch
	run, runs := w.runOf(unit)
	w.disk.Lock()
	defer w.disk.Unlock()
	var err error
	if s.History, err = l.histories.Load(unit); err != nil {
		l.log.Warn(err.Error(), journal.FieldUnit, unit)
	}
	tables, err := l.socketTables(unit)
	if err != nil {
		s.Problem, s.Next = err.Error(), wayOut(err)
	}
	s.Recorded = append(s.Recorded, tables...)
	if len(tables) > 0 && runs {
		run.At = time.Now()
		s.History = s.History.Merge(tables, run)
		s = s.WithStart(run)
	}
	return s.WithStale()
}

// ChangeSockets changes the lists and the mode of attached units, in the attachments
// that were made at the command line. It takes effect without a restart.
func (l *Loop) ChangeSockets(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	if r.Sockets == nil {
		return nil, errors.New("cannot change socket options: nothing was asked for")
	}
	if err := r.Sockets.Check(); err != nil {
		return nil, err
	}
	if l.optionNames == nil {
		return nil, errors.New("cannot change socket options: this aaunitd does not know their names")
	}
	return l.do(ctx, func(ctx context.Context) []attach.Outcome {
		op := newOperation(progress)
		all := l.pausable(ctx, r.Units)
		var units []string
		for _, p := range all {
			l.changeSockets(ctx, p, r)
			if !p.refused() && p.write {
				units = append(units, p.unit)
			}
			p.tell(op.progress)
		}
		l.declare(ctx)
		out := collect(all, l.passFor(ctx, units, op, nil))
		for i, p := range all {
			if p.refused() {
				continue
			}
			out[i].Notes = append(out[i].Notes, l.reviewSockets(p, r)...)
			if !p.write {
				out[i].Exit = attach.ExitOK
			}
		}
		return out
	})
}

// changeSockets writes what one unit's attachment is to say.
func (l *Loop) changeSockets(ctx context.Context, p *prepared, r attach.Request) {
	switch why := l.whyPaused(p.unit); {
	case p.refused():
		return
	case why != nil:
		p.refuse(*why)
		return
	case p.d.Attachment == nil:
		p.refuse(attach.Because(attach.NotAttached, "the attachment of %s is withdrawn already", p.unit))
		return
	}
	a, changed, err := p.d.Attachment.Change(*r.Sockets, l.optionNames)
	if err != nil {
		p.refuse(attach.Because(attach.AttachmentBad, "cannot change the socket options of %s: %v", p.unit, err).At(p.d.Attachment.Source))
		return
	}
	step := attach.Event{Unit: p.unit, Step: attach.StepSockets, State: attach.Skipped, Text: "the list says so already, and is confirmed for what runs now"}
	if changed {
		if !a.Manual {
			p.refuse(attach.Because(attach.DeclaredInFile, "%s is attached by %s, and what that says is changed there", p.unit, a.Source).At(a.Source).
				WithNext("aaunitctl sockopts export " + p.unit + " prints the section to put into " + a.Source))
			return
		}
		if is, was := a.SocketsWanted(), p.d.Attachment.SocketsWanted(); is != nil && is.Requires() && (was == nil || !was.Requires()) {
			if why := l.unheld(ctx, p.unit); why != nil {
				p.refuse(*why)
				return
			}
		}
		file, _, err := l.attachments.Write(p.unit, a)
		if err != nil {
			code := attach.AttachmentBad
			if other := (*attach.InTheWay)(nil); errors.As(err, &other) {
				code = attach.DeclaredInFile
			}
			p.refuse(attach.Because(code, "%v", err).WithNext(wayOut(err)))
			return
		}
		a.Source, p.write, p.out.Changed = file, true, true
		step.State, step.Text = attach.Done, a.SocketOptions.Summary()+", in "+file
	}
	p.d.Attachment = &a
	p.out.Events = append(p.out.Events, step)
}

// unheld says why the socket options of a unit cannot be held, before its attachment
// requires it: no command would take that out again. What cannot be looked at is the pass's to
// tell.
func (l *Loop) unheld(ctx context.Context, unit string) *attach.Reason {
	u, err := l.systemd.Glance(ctx, unit)
	if err != nil || !u.Found() {
		return nil
	}
	var sockets []attach.StartingSocket
	if len(u.Sockets) > 0 {
		sockets, _ = l.systemd.StartingSockets(ctx, u.Sockets)
	}
	return attach.Unheld(u, sockets)
}

// reviewSockets puts on record that somebody has looked at a unit's list.
func (l *Loop) reviewSockets(p *prepared, r attach.Request) (notes []attach.Reason) {
	if l.histories == nil || p.d.Attachment.SocketOptions == nil {
		return nil
	}
	w := &l.socketWatch
	run, _ := w.runOf(p.unit)
	w.disk.Lock()
	defer w.disk.Unlock()
	h, err := l.histories.Load(p.unit)
	if err != nil {
		l.log.Warn(err.Error(), journal.FieldUnit, p.unit)
	}
	h = h.Review(*p.d.Attachment.SocketOptions, run.Program, r.By, time.Now())
	if err := l.histories.Save(h); err != nil {
		notes = append(notes, attach.Because(attach.RecordBad, "%v", err))
		l.log.Error(err.Error(), journal.FieldUnit, p.unit)
	}
	tables, _ := l.socketTables(p.unit) // the verdict says why it could not be read
	l.noteStatus(attach.SocketStatus{Unit: p.unit, Declared: p.d.Attachment.SocketOptions, History: h, Recorded: tables})
	return notes
}

// socketReasons is what an explanation says of a unit's socket options.
func (l *Loop) socketReasons(unit string) []attach.Reason {
	if l.sockets == nil {
		return nil
	}
	s := l.socketStatus(unit)
	if s.Declared.Off() {
		return nil
	}
	return slices.Clone(s.Reasons())
}
