package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// The errors of the client that callers tell apart. Their texts say the next
// step to take.
var (
	// ErrNoBus: there is no system bus.
	ErrNoBus = errors.New("cannot reach the system bus")
	// ErrNoDaemon: aaunitd is not installed, or does not start.
	ErrNoDaemon = errors.New("cannot reach aaunitd")
	// ErrNotProved is an ErrNoDaemon: somebody answers who is not known to be aaunitd.
	ErrNotProved = fmt.Errorf("%w: who answers is not known to be it", ErrNoDaemon)
	// ErrDenied: the caller may not.
	ErrDenied = errors.New("access denied")
	// ErrGone: the daemon ended while it was at work.
	ErrGone = errors.New("aaunitd ended meanwhile")
	// ErrUnderWay: the caller did not wait for the end; the work goes on.
	ErrUnderWay = errors.New("aaunitd goes on with the work")
	// ErrBad: the daemon did not accept the arguments.
	ErrBad = errors.New("cannot use the arguments")
)

// Timeouts of the client; a context may end a call before.
const (
	startTimeout = 90 * time.Second // systemd's own for a start
	quickTimeout = 60 * time.Second
	// pollEvery is how often a waiting client asks, in case a signal was lost.
	pollEvery = 10 * time.Second
	// answerGrace is how long a caller who is in a hurry waits to hear whether
	// the work has begun.
	answerGrace = time.Second
)

// DialOptions are for clients with special needs; the zero value is for the
// system bus, without questions for passwords.
type DialOptions struct {
	// Address is the bus; "" means the system bus, on which only aaunitd.service is
	// believed (Client.prove).
	Address string
	// Interactive lets polkit ask for a password.
	Interactive bool
	// NoStart does not start the daemon when it is not running.
	NoStart bool
	// Socket is the daemon's own socket, which is tried before the bus; "" is none. It is
	// root's alone; see Socket.
	Socket string

	lookAt func(pid uint32) process // where a test has the daemon proved on its own bus
}

// Client speaks with one running daemon. It follows one operation at a time.
type Client struct {
	conn   *dbus.Conn
	direct bool   // at the daemon's own socket: whoever is at the other end is the daemon
	owner  string // the daemon's unique name on the bus: answers and signals come from there
	flags  dbus.Flags
	// signals gets what the daemon sends; nobody else's signals are looked at.
	signals *inbox
	// lookAt tells what a process is.
	lookAt func(pid uint32) process
}

// Dial connects to the daemon, which the bus starts if need be.
func Dial(ctx context.Context, o DialOptions) (*Client, error) {
	if o.Socket != "" {
		// Whatever is the matter there is found out, and said, on the bus.
		if c, err := dialDirect(ctx, o); err == nil {
			return c, nil
		}
	}
	// The daemon's signals may be as large as its answers; nobody else's are
	// taken, whoever runs this.
	var daemon atomic.Value
	rules := bus.Rules{Signals: func(sender string) bool { return daemon.Load() == sender }, MaxSignal: bus.MaxReply}
	signals := newInbox()
	conn, err := connect(ctx, bus.Address(o.Address), rules, dbus.WithSignalHandler(signals))
	if err != nil {
		return nil, fmt.Errorf("%w: %w; is this a machine with systemd and dbus?", ErrNoBus, err)
	}
	c := &Client{conn: conn, signals: signals}
	if o.Interactive {
		c.flags |= dbus.FlagAllowInteractiveAuthorization
	}
	if err := c.find(ctx, o); err != nil {
		conn.Close()
		return nil, err
	}
	if c.lookAt = o.lookAt; o.Address == "" {
		c.lookAt = lookAt
	}
	if c.lookAt != nil {
		if err := c.prove(ctx); err != nil {
			conn.Close()
			return nil, err
		}
	}
	daemon.Store(c.owner)
	return c, nil
}

// find learns the daemon's unique name and hears when it goes.
func (c *Client) find(ctx context.Context, o DialOptions) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	// Both at once, in this order: most often the daemon runs, and nobody waits
	// twice.
	rule := "type='signal',sender='" + bus.Driver + "',interface='" + bus.Driver + "',member='NameOwnerChanged',arg0='" + BusName + "'"
	listening := c.conn.BusObject().GoWithContext(ctx, bus.Driver+".AddMatch", 0, make(chan *dbus.Call, 1), rule)
	absent := c.ask(ctx)
	if err := (<-listening.Done).Err; err != nil {
		return fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	if absent == nil {
		return nil
	}
	if !o.NoStart {
		err := c.conn.BusObject().CallWithContext(ctx, bus.Driver+".StartServiceByName", 0, BusName, uint32(0)).Err
		var e dbus.Error
		switch {
		case err == nil:
		case errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("%w: it did not start within %v; systemctl status aaunitd.service says why", ErrNoDaemon, startTimeout)
		case errors.As(err, &e) && e.Name == errorServiceUnknown:
			// It may run all the same, without a file to start it by.
			if c.ask(ctx) != nil {
				return fmt.Errorf("%w: it is not installed, or its bus configuration is missing; install the package aaunit", ErrNoDaemon)
			}
			return nil
		default:
			return notStarted(err)
		}
	}
	if err := c.ask(ctx); err != nil {
		return fmt.Errorf("%w: it is not running: %w; systemctl status aaunitd.service says why", ErrNoDaemon, err)
	}
	return nil
}

// notStarted says why the bus could not start the daemon.
func notStarted(err error) error {
	var e dbus.Error
	if errors.As(err, &e) && e.Name == errorNoSuchUnit {
		// The bus starts it by an alias, which is there while it is enabled.
		return fmt.Errorf("%w: it is not running, and disabled; start it with: systemctl enable --now aaunitd.service", ErrNoDaemon)
	}
	return fmt.Errorf("%w: it does not start: %w; systemctl status aaunitd.service says why", ErrNoDaemon, err)
}

func (c *Client) ask(ctx context.Context) error {
	return c.conn.BusObject().CallWithContext(ctx, bus.Driver+".GetNameOwner", 0, BusName).Store(&c.owner)
}

// Close ends the connection; what was started goes on.
func (c *Client) Close() error { return c.conn.Close() }

// call calls a method of the daemon. It is not godbus' own Call, which drops
// the flag that allows questions for a password.
func (c *Client) call(ctx context.Context, path dbus.ObjectPath, iface, member string, args ...any) *dbus.Call {
	msg := &dbus.Message{
		Type:  dbus.TypeMethodCall,
		Flags: c.flags | dbus.FlagNoAutoStart,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:      dbus.MakeVariant(path),
			dbus.FieldInterface: dbus.MakeVariant(iface),
			dbus.FieldMember:    dbus.MakeVariant(member),
		},
		Body: args,
	}
	if !c.direct {
		msg.Headers[dbus.FieldDestination] = dbus.MakeVariant(c.owner)
	}
	if len(args) > 0 {
		msg.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(args...))
	}
	return <-c.conn.SendWithContext(ctx, msg, make(chan *dbus.Call, 1)).Done
}

// fetch calls a method that answers with JSON.
func (c *Client) fetch(ctx context.Context, limit time.Duration, out any, path dbus.ObjectPath, iface, member string, args ...any) error {
	text, err := c.text(ctx, limit, path, iface, member, args...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, out); err != nil {
		return fmt.Errorf("cannot read aaunitd's answer: %w; are aaunitd and aaunitctl of one version?", err)
	}
	return nil
}

// text is fetch without reading the answer.
func (c *Client) text(ctx context.Context, limit time.Duration, path dbus.ObjectPath, iface, member string, args ...any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var text string
	if err := c.call(ctx, path, iface, member, args...).Store(&text); err != nil {
		return nil, plainError(err)
	}
	return []byte(text), nil
}

// Attach attaches units and waits for the end; progress may be nil. When ctx
// ends before, the work goes on.
func (c *Client) Attach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return c.operate(ctx, "Attach", r, progress)
}

// Detach takes back what Attach did, and otherwise is like it.
func (c *Client) Detach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return c.operate(ctx, "Detach", r, progress)
}

// Pause has attached units left alone for r.For; 0 is the default.
func (c *Client) Pause(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return c.operate(ctx, "Pause", r, progress)
}

// Resume ends pauses.
func (c *Client) Resume(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return c.operate(ctx, "Resume", r, progress)
}

// StartAttach and StartDetach do not wait; they give the operation's object.
func (c *Client) StartAttach(ctx context.Context, r attach.Request) (string, error) {
	path, err := c.start(ctx, "Attach", r)
	return string(path), err
}

// StartDetach is like StartAttach.
func (c *Client) StartDetach(ctx context.Context, r attach.Request) (string, error) {
	path, err := c.start(ctx, "Detach", r)
	return string(path), err
}

// Apply acts now on the attachment files that r.Units names.
func (c *Client) Apply(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return c.operate(ctx, "Apply", r, progress)
}

// Propose says what would come of it if files had these texts.
func (c *Client) Propose(ctx context.Context, files []attach.ProposedFile) ([]attach.Outcome, error) {
	names, texts := []string{}, []string{}
	for _, f := range files {
		names, texts = append(names, f.File), append(texts, f.Text)
	}
	var out []attach.Outcome
	err := c.fetch(ctx, planTimeout, &out, Path, ManagerInterface, "Propose", names, texts)
	return out, err
}

// Plan says what Attach would do.
func (c *Client) Plan(ctx context.Context, r attach.Request) ([]attach.Outcome, error) {
	r.DryRun = false // the method says it; it is no option of Plan's
	var out []attach.Outcome
	err := c.fetch(ctx, planTimeout+passwordTimeout, &out, Path, ManagerInterface, "Plan", r.Units, encodeOptions(r))
	return out, err
}

// Verify looks again, now.
func (c *Client) Verify(ctx context.Context, units []string) (attach.Report, error) {
	var out attach.Report
	err := c.fetch(ctx, verifyTimeout+passwordTimeout, &out, Path, ManagerInterface, "Verify", list(units))
	return out, err
}

// VerifyEvidence looks again, now, and says whether what the last verdicts rest on
// still holds.
func (c *Client) VerifyEvidence(ctx context.Context, units []string) (attach.EvidenceReport, error) {
	var out attach.EvidenceReport
	err := c.fetch(ctx, verifyTimeout+passwordTimeout, &out, Path, ManagerInterface, "VerifyEvidence", list(units))
	return out, err
}

// VerifyJSON is Verify; it gives the attach.Report as aaunitd has written it.
func (c *Client) VerifyJSON(ctx context.Context, units []string) ([]byte, error) {
	return c.text(ctx, verifyTimeout+passwordTimeout, Path, ManagerInterface, "Verify", list(units))
}

// StatusJSON is to Status what VerifyJSON is to Verify.
func (c *Client) StatusJSON(ctx context.Context, units []string) ([]byte, error) {
	return c.text(ctx, quickTimeout, Path, ManagerInterface, "Describe", list(units))
}

// Status asks for what is known.
func (c *Client) Status(ctx context.Context, units []string) (attach.Report, error) {
	var out attach.Report
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "Describe", list(units))
	return out, err
}

// Profiles lists the profiles under /etc/apparmor.d.
func (c *Client) Profiles(ctx context.Context) ([]attach.Profile, error) {
	var out []attach.Profile
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "ListProfiles")
	return out, err
}

// ProfileProblems says of which files there not even a profile's name could be read.
func (c *Client) ProfileProblems(ctx context.Context) ([]attach.Reason, error) {
	var out []attach.Reason
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "ListProfileProblems")
	return out, err
}

// Check says what is in profile files and what speaks against units.
func (c *Client) Check(ctx context.Context, args []string) ([]attach.Outcome, error) {
	var out []attach.Outcome
	err := c.fetch(ctx, planTimeout+passwordTimeout, &out, Path, ManagerInterface, "Check", list(args))
	return out, err
}

// Query asks profiles whether their compiled policy allows something.
func (c *Client) Query(ctx context.Context, profiles []string, question string) ([]attach.QueryResult, error) {
	var out []attach.QueryResult
	err := c.fetch(ctx, planTimeout+passwordTimeout, &out, Path, ManagerInterface, "Query", list(profiles), question)
	return out, err
}

// QueryLoaded asks what the kernel has loaded; for root.
func (c *Client) QueryLoaded(ctx context.Context, profiles []string, question string) ([]attach.QueryResult, error) {
	var out []attach.QueryResult
	err := c.fetch(ctx, planTimeout+passwordTimeout, &out, Path, ManagerInterface, "QueryLoaded", list(profiles), question)
	return out, err
}

// list gives an empty list for none: D-Bus has no nil, and godbus must see a
// slice's type.
func list(in []string) []string {
	if in == nil {
		return []string{}
	}
	return in
}

func (c *Client) start(ctx context.Context, member string, r attach.Request) (dbus.ObjectPath, error) {
	// The call itself does not end with ctx: once it is sent the work may begin,
	// and whoever stops waiting should be told so.
	asking, cancel := context.WithTimeout(context.WithoutCancel(ctx), quickTimeout+passwordTimeout)
	defer cancel()
	answer := make(chan *dbus.Call, 1)
	go func() { answer <- c.call(asking, Path, ManagerInterface, member, list(r.Units), encodeOptions(r)) }()
	var reply *dbus.Call
	select {
	case reply = <-answer:
	case <-ctx.Done():
		select {
		case reply = <-answer:
		case <-time.After(answerGrace):
			return "", ctx.Err() // perhaps polkit waits for a password
		}
	}
	var path dbus.ObjectPath
	if err := reply.Store(&path); err != nil {
		return "", plainError(err)
	}
	return path, nil
}

// operate starts an operation and follows it to its end. The daemon sends the
// operation's signals to this connection alone, which listens since Dial: they
// may come before the answer that names the operation. A gap is filled by
// asking.
func (c *Client) operate(ctx context.Context, member string, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	path, err := c.start(ctx, member, r)
	if err != nil {
		return nil, err
	}
	f := follower{progress: progress}
	if f.progress == nil {
		f.progress = func(attach.Event) {}
	}
	poll := time.NewTicker(pollEvery)
	defer poll.Stop()
	for !f.done {
		sig, err := c.signals.next(ctx, poll.C)
		switch {
		case errors.Is(err, errEnded) && !c.direct:
			return nil, fmt.Errorf("%w: the connection to the bus ended; aaunitctl status shows how far it came", ErrGone)
		case errors.Is(err, errEnded), sig != nil && c.ended(sig):
			return nil, fmt.Errorf("%w: its next start brings the units to what is declared; aaunitctl status shows them", ErrGone)
		case err != nil:
			return nil, fmt.Errorf("%w: %w", ErrUnderWay, err)
		case sig != nil && (sig.Sender != c.owner || sig.Path != path || f.take(sig)):
			continue
		}
		// Something is missing, or was not heard for long.
		var d OperationDescription
		if err := c.fetch(ctx, quickTimeout, &d, path, OperationInterface, "Describe"); err != nil {
			return nil, err
		}
		f.catchUp(d)
	}
	if f.err != "" {
		return f.outcomes, errors.New(f.err)
	}
	return f.outcomes, nil
}

// ended reports whether a signal of the bus says that the daemon is gone.
func (c *Client) ended(sig *dbus.Signal) bool {
	if sig.Sender != bus.Driver || sig.Name != bus.Driver+".NameOwnerChanged" || len(sig.Body) != 3 {
		return false
	}
	name, _ := sig.Body[0].(string)
	before, _ := sig.Body[1].(string)
	return name == BusName && before == c.owner
}

// inbox keeps the signals of a connection in the order in which they came, until they are
// asked for. The last ones are there after the connection has ended, too: godbus's own
// handlers lose them then.
type inbox struct {
	mu    sync.Mutex
	queue []*dbus.Signal
	ended bool
	wake  chan struct{}
}

func newInbox() *inbox { return &inbox{wake: make(chan struct{}, 1)} }

// DeliverSignal implements dbus.SignalHandler.
func (b *inbox) DeliverSignal(_, _ string, sig *dbus.Signal) {
	b.mu.Lock()
	b.queue = append(b.queue, sig)
	b.mu.Unlock()
	b.nudge()
}

// Terminate implements dbus.Terminator.
func (b *inbox) Terminate() {
	b.mu.Lock()
	b.ended = true
	b.mu.Unlock()
	b.nudge()
}

func (b *inbox) nudge() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// errEnded: the connection ended, and everything that came over it was asked for.
var errEnded = errors.New("the connection ended")

// next waits for a signal; nil is that late came before one did.
func (b *inbox) next(ctx context.Context, late <-chan time.Time) (*dbus.Signal, error) {
	for {
		b.mu.Lock()
		if len(b.queue) > 0 {
			sig := b.queue[0]
			b.queue = b.queue[1:]
			b.mu.Unlock()
			return sig, nil
		}
		ended := b.ended
		b.mu.Unlock()
		if ended {
			return nil, errEnded
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-late:
			return nil, nil
		case <-b.wake:
		}
	}
}

// follower puts together what an operation tells, each event once and in order.
type follower struct {
	progress func(attach.Event)
	next     uint64 // index of the event that comes next
	outcomes []attach.Outcome
	err      string
	done     bool
}

// take takes a signal; false means that something is missing and must be asked for.
func (f *follower) take(sig *dbus.Signal) bool {
	switch sig.Name {
	case OperationInterface + ".Progress":
		var index uint64
		var text string
		if dbus.Store(sig.Body, &index, &text) != nil {
			return false
		}
		var events []attach.Event
		if json.Unmarshal([]byte(text), &events) != nil || index > f.next {
			return false
		}
		known := min(f.next-index, uint64(len(events))) // by catching up
		for _, e := range events[known:] {
			f.next++
			f.progress(e)
		}
	case OperationInterface + ".Finished":
		var events uint64
		var text, errText string
		if dbus.Store(sig.Body, &events, &text, &errText) != nil || events != f.next {
			return false
		}
		if json.Unmarshal([]byte(text), &f.outcomes) != nil {
			return false
		}
		f.err, f.done = errText, true
	}
	return true
}

func (f *follower) catchUp(d OperationDescription) {
	for ; f.next < uint64(len(d.Events)); f.next++ {
		f.progress(d.Events[f.next])
	}
	if d.State == StateDone {
		f.outcomes, f.err, f.done = d.Outcomes, d.Error, true
	}
}

// plainError puts an error of the bus or the daemon into words, with the next
// step to take.
func plainError(err error) error {
	var e dbus.Error
	if !errors.As(err, &e) {
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			return errors.New("aaunitd did not answer in time; systemctl status aaunitd.service shows what it does")
		case errors.Is(err, dbus.ErrClosed), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.As(err, new(*net.OpError)):
			return fmt.Errorf("%w: the connection ended; aaunitctl status shows how far it came", ErrGone)
		}
		return err
	}
	switch e.Name {
	case ErrorNotAuthorized, errorInteractive: // which name the action
		return fmt.Errorf("%w: %s; run it as root, or allow the user that action in polkit", ErrDenied, e.Error())
	case errorAccessDenied:
		return fmt.Errorf("%w: %s; run it as root", ErrDenied, e.Error())
	case ErrorNoPolkit:
		return fmt.Errorf("%w: %s; run it as root, who needs no polkit", ErrDenied, e.Error())
	case errorServiceUnknown, errorNoOwner:
		return fmt.Errorf("%w: %s", ErrNoDaemon, e.Error())
	case errorNoReply, errorDisconnected:
		return fmt.Errorf("%w: %s; systemctl status aaunitd.service says why", ErrGone, e.Error())
	case errorInvalidArgs:
		return fmt.Errorf("%w: %s", ErrBad, e.Error())
	case errorUnknownMethod, errorUnknownInterface:
		return fmt.Errorf("aaunitd does not know this: %s; are aaunitd and aaunitctl of one version?", e.Error())
	}
	return errors.New(e.Error())
}

// The names of systemd on the bus.
const (
	systemdName    = "org.freedesktop.systemd1"
	systemdPath    = "/org/freedesktop/systemd1"
	systemdManager = "org.freedesktop.systemd1.Manager"
)

// Services lists the services that systemd knows, loaded or with a unit file,
// for completion. Templates are left out: they cannot be attached by name.
func Services(ctx context.Context, o DialOptions) ([]string, error) {
	conn, err := connect(ctx, bus.Address(o.Address), bus.Rules{})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	defer conn.Close()
	systemd := conn.Object(systemdName, systemdPath)
	var files []struct{ Path, State string }
	err = systemd.CallWithContext(ctx, systemdManager+".ListUnitFilesByPatterns", 0, []string{}, []string{"*.service"}).Store(&files)
	if err != nil {
		return nil, err
	}
	var units []struct {
		Name, Description, Load, Active, Sub, Following string
		Path                                            dbus.ObjectPath
		Job                                             uint32
		JobType                                         string
		JobPath                                         dbus.ObjectPath
	}
	err = systemd.CallWithContext(ctx, systemdManager+".ListUnitsByPatterns", 0, []string{}, []string{"*.service"}).Store(&units)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, f := range files {
		name := f.Path[strings.LastIndexByte(f.Path, '/')+1:]
		if f.State != "masked" && !attach.IsTemplate(name) {
			out = append(out, name)
		}
	}
	for _, u := range units {
		if u.Load == "loaded" {
			out = append(out, u.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
