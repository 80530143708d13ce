package units

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
)

// Reload is daemon-reload; it returns when systemd has finished, which takes
// seconds on a small machine. It is asked for again when systemd or the bus
// went away meanwhile: reading unit files twice harms nothing.
func (s *Systemd) Reload(ctx context.Context) error {
	if err := s.call(ctx, s.wait.reload, managerPath, managerIface+".Reload", nil); err != nil {
		return fmt.Errorf("cannot have systemd read its unit files again: %w", err)
	}
	return nil
}

// TryRestart restarts a running unit and waits for the job; one that is not
// running stays so.
func (s *Systemd) TryRestart(ctx context.Context, unit string) error {
	return s.job(ctx, "restart", "TryRestartUnit", unit)
}

// Start clears a failed state, which would count against StartLimitBurst=,
// starts the unit and waits for the job.
func (s *Systemd) Start(ctx context.Context, unit string) error {
	if err := fullName(unit); err != nil {
		return fmt.Errorf("cannot start %s: %w", shown(unit), err)
	}
	err := s.call(ctx, s.wait.call, managerPath, managerIface+".ResetFailedUnit", []any{unit})
	// A unit that is not loaded has no failed state.
	if err != nil && errorName(err) != "org.freedesktop.systemd1.NoSuchUnit" {
		return fmt.Errorf("cannot start %s: clear its failed state: %w", unit, err)
	}
	return s.job(ctx, "start", "StartUnit", unit)
}

// Stop stops the unit and waits for the job.
func (s *Systemd) Stop(ctx context.Context, unit string) error {
	return s.job(ctx, "stop", "StopUnit", unit)
}

// Keep has systemd keep a unit that is loaded until release is called, or the connection
// is lost. systemd lets go of a unit that ended and that nobody refers to, with CollectMode=
// also of one that failed: asked about later, it loads it anew, with no word of how it
// ended (unit_may_gc in its src/core/unit.c).
func (s *Systemd) Keep(ctx context.Context, unit string) (release func(), err error) {
	if err := fullName(unit); err != nil {
		return nil, fmt.Errorf("cannot keep %s: %w", shown(unit), err)
	}
	conn, err := s.conn(ctx)
	if err == nil {
		err = ask(ctx, conn, s.wait.call, systemdName, managerPath, managerIface+".RefUnit", []any{unit})
	}
	if err != nil {
		return nil, fmt.Errorf("cannot keep %s: %w", unit, err)
	}
	return func() {
		// A connection that is lost has let go of it.
		conn.Object(systemdName, managerPath).Go(managerIface+".UnrefUnit", dbus.FlagNoReplyExpected|dbus.FlagNoAutoStart, nil, unit)
	}, nil
}

// unheard is the result of a job that ended while nobody listened.
const unheard = "unheard"

// job runs a job and waits for its end. Any result but "done" and "skipped" is
// an error that says what became of the unit.
func (s *Systemd) job(ctx context.Context, verb, method, unit string) error {
	if err := fullName(unit); err != nil {
		return fmt.Errorf("cannot %s %s: %w", verb, shown(unit), err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.wait.job)
	defer cancel()
	result, err := s.runJob(ctx, method, unit)
	switch {
	case err != nil:
		return fmt.Errorf("cannot %s %s: %w", verb, unit, err)
	case result == "done" || result == "skipped":
		return nil
	}
	end := s.endOf(ctx, unit)
	if result == unheard {
		if end.err == nil && end.up == (verb != "stop") {
			return nil
		}
		return fmt.Errorf("cannot %s %s: the bus was away when its job ended; %s", verb, unit, end)
	}
	err = fmt.Errorf("cannot %s %s: the job's result is %q%s; %s", verb, unit, result, meaning(result), end)
	if result == "canceled" {
		return canceledError{err}
	}
	return err
}

// canceledError is of a job of which another one took the place, such as a stop by hand.
type canceledError struct{ error }

func (e canceledError) Unwrap() error { return e.error }

// Canceled tells it from other errors.
func (canceledError) Canceled() bool { return true }

// meaning explains results of jobs, systemd's JobResult.
func meaning(result string) string {
	switch result {
	case "assert":
		return " (an Assert…= setting does not hold; AssertSecurity=apparmor does not where AppArmor is off)"
	case "dependency":
		return " (a unit it depends on did not start)"
	case "timeout":
		return " (it took longer than systemd waits for a job)"
	case "canceled":
		return " (another job took its place)"
	}
	return ""
}

// runJob queues a job and waits for its result.
func (s *Systemd) runJob(ctx context.Context, method, unit string) (string, error) {
	w := s.jobs.join(s)
	defer s.jobs.leave(w)
	var job dbus.ObjectPath
	err := w.persist(ctx, func(conn *dbus.Conn) error {
		// Queued a second time because the answer got lost, the job merges with
		// the first one, or repeats it.
		return ask(ctx, conn, s.wait.call, systemdName, managerPath, managerIface+"."+method, []any{unit, "replace"}, &job)
	})
	if err != nil {
		return "", err
	}
	return w.result(ctx, job)
}

// jobs shares one watch among all who wait for jobs at the same time.
type jobs struct {
	mu    sync.Mutex
	watch *jobWatch
	users int
}

func (j *jobs) join(s *Systemd) *jobWatch {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.watch == nil {
		j.watch = &jobWatch{s: s, results: map[dbus.ObjectPath]string{}, news: make(chan struct{}), dialling: make(chan struct{}, 1)}
	}
	j.users++
	return j.watch
}

// leave ends the watch with its last user.
func (j *jobs) leave(w *jobWatch) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.users--; j.users == 0 {
		j.watch = nil
		w.close()
	}
}

// jobWatch collects results of jobs. Listening begins before a job is queued,
// so that none can end unheard; results of other people's jobs are few and
// forgotten with the watch.
type jobWatch struct {
	s *Systemd
	// dialling has one place, for who opens the connection.
	dialling chan struct{}

	mu      sync.Mutex
	conn    *dbus.Conn // nil: none yet
	l       *listener
	results map[dbus.ObjectPath]string
	news    chan struct{} // closed, and replaced, with every result
}

// maxResults bounds what is remembered; a job whose result was dropped is
// found by asking for it.
const maxResults = 4096

func (w *jobWatch) heard(sig *dbus.Signal) {
	// id, job, unit, result
	if sig.Name != managerIface+".JobRemoved" || len(sig.Body) < 4 {
		return
	}
	job, ok1 := sig.Body[1].(dbus.ObjectPath)
	result, ok2 := sig.Body[3].(string)
	if !ok1 || !ok2 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.results) < maxResults {
		w.results[job] = result
	}
	close(w.news)
	w.news = make(chan struct{})
}

// get gives the result of a job, or what tells of the next result.
func (w *jobWatch) get(job dbus.ObjectPath) (result string, known bool, next <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	result, known = w.results[job]
	return result, known, w.news
}

func (w *jobWatch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		w.conn.Close()
	}
}

// persist runs do on a connection that listens, and again on a new one while
// the bus or systemd is away, for at most waits.retry.
func (w *jobWatch) persist(ctx context.Context, do func(*dbus.Conn) error) error {
	var away time.Time
	pause := w.s.wait.backoff
	for {
		conn, _, err := w.open(ctx)
		if err == nil {
			err = do(conn)
		}
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !passing(err):
			return err
		case away.IsZero():
			away = time.Now()
		case time.Since(away) > w.s.wait.retry:
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
		pause = min(2*pause, w.s.wait.backoffMax)
	}
}

// open gives the connection, a new one where the old one is lost.
func (w *jobWatch) open(ctx context.Context) (*dbus.Conn, *listener, error) {
	select {
	case w.dialling <- struct{}{}:
		defer func() { <-w.dialling }()
	case <-ctx.Done():
		return nil, nil, context.Cause(ctx)
	}
	w.mu.Lock()
	conn, l := w.conn, w.l
	w.mu.Unlock()
	if conn != nil && conn.Connected() {
		return conn, l, nil
	}
	l = newListener(w.heard)
	conn, err := w.s.listen(ctx, l, "interface='"+managerIface+"',member='JobRemoved',path='"+string(managerPath)+"'")
	if err != nil {
		return nil, nil, err
	}
	w.mu.Lock()
	w.conn, w.l = conn, l
	w.mu.Unlock()
	return conn, l, nil
}

// result waits for the end of a job. It also asks for the job from time to
// time: a signal can be lost with the connection or with daemon-reexec.
func (w *jobWatch) result(ctx context.Context, job dbus.ObjectPath) (string, error) {
	tick := time.NewTicker(w.s.wait.poll)
	defer tick.Stop()
	over := func() error {
		return fmt.Errorf("its job has not ended, and systemd goes on with it: %w", context.Cause(ctx))
	}
	for {
		r, known, next := w.get(job)
		if known {
			return r, nil
		}
		w.mu.Lock()
		conn, l := w.conn, w.l
		w.mu.Unlock()
		select {
		case <-next:
			continue
		case <-ctx.Done():
			return "", over()
		case <-conn.Context().Done():
		case owner := <-l.owners:
			if owner != "" {
				// Jobs outlive daemon-reexec. That it failed shows below.
				_ = w.s.subscribe(ctx, conn)
			}
		case <-tick.C:
		}
		gone := false
		if err := w.persist(ctx, func(conn *dbus.Conn) (err error) {
			gone, err = w.gone(ctx, conn, job)
			return err
		}); ctx.Err() != nil {
			return "", over()
		} else if err != nil {
			return "", err
		}
		// What systemd sent before its answer has been taken before it.
		if r, known, _ := w.get(job); known {
			return r, nil
		}
		if gone {
			return unheard, nil
		}
	}
}

// gone asks whether systemd has forgotten the job.
func (w *jobWatch) gone(ctx context.Context, conn *dbus.Conn, job dbus.ObjectPath) (bool, error) {
	id, err := strconv.ParseUint(path.Base(string(job)), 10, 32)
	if err != nil {
		return false, fmt.Errorf("systemd gives %q as a job", job)
	}
	var p dbus.ObjectPath
	err = ask(ctx, conn, w.s.wait.call, systemdName, managerPath, managerIface+".GetJob", []any{uint32(id)}, &p)
	switch {
	case errorName(err) == "org.freedesktop.systemd1.NoSuchJob":
		return true, nil
	case errors.Is(err, errSilent):
		return false, nil // busy, perhaps with a reload; ask again later
	}
	return false, err
}

// end is what became of a unit.
type end struct {
	unit string
	up   bool
	text string
	err  error
}

func (e end) String() string {
	if e.err != nil {
		return fmt.Sprintf("what became of %s could not be read: %v", e.unit, e.err)
	}
	return e.text
}

// endOf reads what became of a unit, also when the time for its job is over.
func (s *Systemd) endOf(ctx context.Context, unit string) end {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.wait.call)
	defer cancel()
	p, err := s.properties(ctx, unit, "")
	if err != nil {
		return end{unit: unit, err: err}
	}
	u, _, err := decodeUnit(p)
	if err != nil {
		return end{unit: unit, err: err}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s is %s", unit, u.ActiveState)
	if u.Result != "" && u.Result != "success" {
		fmt.Fprintf(&b, ", result %s", u.Result)
	}
	if u.ExecMainStatus != 0 && u.Result == "exit-code" {
		fmt.Fprintf(&b, ", status %d", u.ExecMainStatus)
		if u.ExecMainStatus == exitAppArmor {
			b.WriteString("/APPARMOR: systemd could not switch to the profile, or the program itself ended so")
		}
	}
	if u.LoadError != "" {
		fmt.Fprintf(&b, ", %s", u.LoadError)
	}
	return end{unit: unit, up: u.Active() && u.ActiveState != "deactivating", text: b.String()}
}

// exitAppArmor is EXIT_APPARMOR_PROFILE, systemd.exec(5). A program may end
// with it, too (seen on Debian 12 and 13).
const exitAppArmor = 231
