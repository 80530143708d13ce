package evidence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
	"github.com/aaunit/aaunit/internal/safefile"
)

// Bounds on a Keeper.
const (
	// DefaultKeep is how many records of a unit are kept.
	DefaultKeep = 20
	// DefaultQueue is how many records may wait to be made.
	DefaultQueue = 1024
	// maxHeads bounds what is remembered of units; it is read from disk again.
	maxHeads = 10000
	// settling is how long a check waits for a record that is on its way.
	settling = 40 * time.Second
	// leaving is how long an end waits for the records that were not made yet.
	leaving = 10 * time.Second
)

// Options are the parts of a Keeper, and the awkward parts of the world.
type Options struct {
	// Dir has a directory for each unit, /var/lib/aaunit/evidence on a host.
	Dir string
	// Keep is how many records of a unit are kept; DefaultKeep if 0.
	Keep int
	// Queue is how many records may wait to be made; DefaultQueue if 0.
	Queue int
	// Policy gives an accepted policy with its bytes and texts.
	Policy func(id string) (attach.Compiled, error)
	// Root is put before the paths of profiles, of /proc and of dpkg's and rpm's files; "" is
	// the host itself.
	Root string
	// Log gets a message for each record, and what could not be kept; nil discards it.
	Log *slog.Logger
}

// Keeper keeps evidence. Its methods may be called at the same time, and hold up
// nobody but Check.
type Keeper struct {
	// Living gives the units whose records are not removed to make room for those of
	// another unit, or nil: none. It is set before Run.
	Living func() []string

	opt    Options
	kernel string
	queue  chan *job // of pointers: it has room for many, and is mostly empty

	programs programs
	packages packages
	policies policies

	// disk keeps a check from reading while something is written.
	disk sync.Mutex

	mu    sync.Mutex
	heads map[string]*state
	// turned is closed and made anew whenever a record was made.
	turned chan struct{}
}

// state is what is remembered of a unit's records.
type state struct {
	known   bool               // key is that of the newest, kept or on its way
	key     attach.EvidenceKey // of the newest
	last    head               // that was written; zero: none in this life
	waiting int                // records on their way
	missed  int                // that were not taken since the last one
}

// job is a record to be made.
type job struct {
	e       attach.Evidence
	process *process
}

// New prepares a keeper; nothing is touched before Run.
func New(o Options) *Keeper {
	if o.Keep <= 0 {
		o.Keep = DefaultKeep
	}
	if o.Queue <= 0 {
		o.Queue = DefaultQueue
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	k := &Keeper{opt: o, queue: make(chan *job, o.Queue), heads: map[string]*state{}, turned: make(chan struct{})}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		k.kernel = unix.ByteSliceToString(u.Release[:])
	}
	k.programs.init()
	return k
}

// real gives the path at which a path of the host really lies.
func (k *Keeper) real(path string) string {
	if k.opt.Root == "" {
		return path
	}
	return filepath.Join(k.opt.Root, path)
}

// of is the state of a unit. The lock is held.
func (k *Keeper) of(unit string) *state {
	s := k.heads[unit]
	if s == nil {
		if len(k.heads) >= maxHeads {
			for name, old := range k.heads {
				if old.waiting == 0 {
					delete(k.heads, name)
				}
			}
		}
		s = &state{}
		k.heads[unit] = s
	}
	return s
}

// Has reports whether the newest record of a unit, kept or on its way, is about
// this. It is no also where that is not known yet.
func (k *Keeper) Has(unit string, key attach.EvidenceKey) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.heads[unit]
	return s != nil && s.known && s.key == key
}

// Record has a record made of what was gathered, and returns at once. Where too
// many wait it is not taken: the journal and the next record say so, and Has goes
// on saying no.
func (k *Keeper) Record(e attach.Evidence) {
	// Its process is held on to now: a number that is looked up later may be
	// another one's.
	j := job{e: e, process: k.hold(e.Executable.PID)}
	taken, first := k.take(j)
	if !taken {
		j.process.close()
		if first {
			k.opt.Log.Warn(fmt.Sprintf("cannot record the evidence for %s: %d records wait to be made already; it is tried again at the next look", e.Unit, k.opt.Queue),
				journal.FieldUnit, e.Unit, journal.FieldObjectUnit, e.Unit, journal.FieldInvocation, e.Verdict.InvocationID)
		}
	}
}

// take queues a record; first is that there was no room, and had been before.
func (k *Keeper) take(j job) (taken, first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.of(j.e.Unit)
	if s.known && s.key == j.e.Key() {
		return false, false // of two looks at once, both had news
	}
	select {
	case k.queue <- &j:
		s.waiting++
		s.known, s.key = true, j.e.Key()
		return true, false
	default:
		s.missed++
		return false, s.missed == 1
	}
}

// Run makes records until ctx ends. Those that wait then are made too, for some
// seconds.
func (k *Keeper) Run(ctx context.Context) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case j := <-k.queue:
			k.make(ctx, *j)
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaving)
	defer cancel()
	for {
		select {
		case j := <-k.queue:
			if last.Err() != nil {
				j.process.close()
				k.opt.Log.Warn("cannot record the evidence for "+j.e.Unit+": aaunitd ends; its next start makes one", journal.FieldUnit, j.e.Unit)
				continue
			}
			k.make(last, *j)
		default:
			return
		}
	}
}

// make makes one record.
func (k *Keeper) make(ctx context.Context, j job) {
	defer j.process.close()
	unit := j.e.Unit
	err := k.keep(ctx, j)
	if err != nil {
		k.opt.Log.Error("cannot record the evidence for "+unit+": "+err.Error()+wayOut(err), journal.FieldUnit, unit, journal.FieldObjectUnit, unit)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.of(unit)
	s.waiting--
	if err != nil {
		s.known = false // the next look tries again
	}
	close(k.turned)
	k.turned = make(chan struct{})
}

func wayOut(err error) string {
	var helped interface{ WayOut() string }
	if errors.As(err, &helped) {
		return "; " + helped.WayOut()
	}
	return ""
}

func (k *Keeper) keep(ctx context.Context, j job) error {
	e := j.e
	k.disk.Lock()
	c := k.list(e.Unit)
	k.disk.Unlock()
	if c.unread != "" {
		return errors.New(c.unread)
	}
	k.mu.Lock()
	last := k.of(e.Unit).last
	k.mu.Unlock()
	if last.number == 0 {
		// In this life nothing was written: what lies there may say it already.
		k.tidy(e.Unit)
		if n := len(c.records); n > 0 {
			s := c.records[n-1]
			if k.readRecord(e.Unit, &s); s.problem == "" && s.record.Key() == e.Key() {
				k.wrote(e.Unit, head{s.number, s.sum})
				return nil
			}
		}
	}
	k.complete(ctx, &e, j.process)
	e.Number, e.Previous = 1, ""
	if c.anchor.Number > 0 {
		e.Number, e.Previous = c.anchor.Number+1, c.anchor.SHA256
	}
	if n := len(c.records); n > 0 && c.records[n-1].number >= e.Number {
		e.Number, e.Previous = c.records[n-1].number+1, c.records[n-1].sum
	}
	if last.number >= e.Number {
		// What was written is not there any more. The chain goes on from it, so that
		// the gap stays to be seen.
		e.Number, e.Previous = last.number+1, last.sum
	}
	k.mu.Lock()
	e.Missed = k.of(e.Unit).missed
	k.mu.Unlock()
	e.Kept = time.Now().UTC().Round(0)
	k.disk.Lock()
	sum, file, err := k.write(e, c)
	k.disk.Unlock()
	if err != nil {
		return err
	}
	k.mu.Lock()
	k.of(e.Unit).missed -= e.Missed
	k.mu.Unlock()
	k.wrote(e.Unit, head{e.Number, sum})
	k.opt.Log.Info(fmt.Sprintf("evidence for %s: record %d, sha256 %s", e.Unit, e.Number, sum), journal.FieldMessageID, string(journal.MsgEvidence),
		journal.FieldUnit, e.Unit, journal.FieldObjectUnit, e.Unit, journal.FieldProfile, e.Verdict.Profile, journal.FieldVerdict, e.Verdict.Answer.String(),
		journal.FieldInvocation, e.Verdict.InvocationID, journal.FieldEvidence, sum, journal.FieldFile, file)
	return nil
}

func (k *Keeper) wrote(unit string, h head) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.of(unit).last = h
}

// tidy removes what writes that were cut off have left.
func (k *Keeper) tidy(unit string) {
	files, _ := filepath.Glob(filepath.Join(globEscape(k.dirOf(unit)), ".*"))
	for _, f := range files {
		if safefile.IsTemporary(filepath.Base(f)) {
			_, _ = safefile.Remove(f) // in nobody's way where it stays
		}
	}
}

func globEscape(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

// settle waits until the records of a unit that were on their way are kept.
func (k *Keeper) settle(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, settling)
	defer cancel()
	for {
		k.mu.Lock()
		s, turned := k.heads[unit], k.turned
		done := s == nil || s.waiting == 0
		k.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.New("the record of this start is not made yet")
		case <-turned:
		}
	}
}

// complete adds what takes a look at files.
func (k *Keeper) complete(ctx context.Context, e *attach.Evidence, p *process) {
	e.Kernel = k.kernel
	for i := range e.Policies {
		k.policies.fill(&e.Policies[i], k.opt.Policy)
	}
	e.Executable = k.running(ctx, e.Unit, p, e.Executable)
}

// policies remembers the checksums of accepted policies, which never change: the
// archive of one is large.
type policies struct {
	mu   sync.Mutex
	done map[string]policySums // by ID and environment
}

type policySums struct {
	compiled string
	files    []attach.EvidenceFile
}

const maxPolicySums = 256

func (p *policies) fill(e *attach.EvidencePolicy, get func(string) (attach.Compiled, error)) {
	if e.Problem != "" {
		return
	}
	key := e.ID + "\x00" + e.Environment
	p.mu.Lock()
	sums, ok := p.done[key]
	p.mu.Unlock()
	if !ok {
		c, err := get(e.ID)
		if err == nil && c.Environment != e.Environment {
			err = errors.New("it was compiled anew for another parser or kernel meanwhile")
		}
		if err != nil {
			e.Problem = text(err.Error())
			return
		}
		sums = policySums{compiled: sumOf(c.Blob), files: filesOf(c)}
		p.mu.Lock()
		if len(p.done) >= maxPolicySums || p.done == nil {
			p.done = map[string]policySums{}
		}
		p.done[key] = sums
		p.mu.Unlock()
	}
	e.Compiled, e.Files = sums.compiled, sums.files
}
