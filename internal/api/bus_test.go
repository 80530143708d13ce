package api

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// privateBus is a dbus-daemon of a test's own.
type privateBus struct {
	address string
	config  string
	cmd     *exec.Cmd
}

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="false"/>
    <allow receive_sender="*"/>
    <allow own="*"/>
  </policy>
  %s
</busconfig>
`

// startBus starts one; limits are more lines for its configuration.
func startBus(t *testing.T, limits ...string) *privateBus {
	t.Helper()
	// The path of a socket must be short; t.TempDir may not be.
	dir, err := os.MkdirTemp("", "aab")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	sock := filepath.Join(dir, "bus")
	b := &privateBus{address: "unix:path=" + sock, config: filepath.Join(dir, "bus.conf")}
	if err := os.WriteFile(b.config, []byte(fmt.Sprintf(busConfig, sock, strings.Join(limits, "\n"))), 0o600); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	t.Cleanup(b.stop)
	return b
}

func (b *privateBus) start(t *testing.T) {
	t.Helper()
	b.cmd = exec.Command("dbus-daemon", "--config-file="+b.config, "--nofork", "--nopidfile", "--nosyslog", "--print-address")
	var complaints bytes.Buffer
	b.cmd.Stderr = &complaints
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatalf("cannot start dbus-daemon (install the package dbus): %v", err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		t.Fatalf("dbus-daemon did not come up: %v\n%s", err, complaints.String())
	}
}

func (b *privateBus) stop() {
	if b.cmd.ProcessState == nil {
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
	}
}

// connect opens a plain connection to the bus, as any program would.
func (b *privateBus) connect(t *testing.T) *dbus.Conn {
	t.Helper()
	c, err := dbus.Connect(b.address, dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// idle is a connection from which nothing more is read once it is told so.
type idle struct {
	net.Conn
	from, ended chan struct{}
}

func (i idle) Read(p []byte) (int, error) {
	select {
	case <-i.from:
		<-i.ended
		return 0, io.EOF
	default:
		return i.Conn.Read(p)
	}
}

// idler opens a connection of a user's who calls and does not read from now on.
func (r *rig) idler(t *testing.T, uid uint32) *dbus.Conn {
	t.Helper()
	sock, err := net.Dial("unix", strings.TrimPrefix(r.address, "unix:path="))
	if err != nil {
		t.Fatal(err)
	}
	i := idle{sock, make(chan struct{}), make(chan struct{})}
	c, err := dbus.NewConn(i)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(i.ended); c.Close() })
	if err := c.Auth(nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	r.set(c, uid)
	close(i.from)
	return c
}

// users says who is behind the connections of a test; anybody unnamed is root.
type users struct {
	mu  sync.Mutex
	uid map[string]uint32
}

func (u *users) set(c *dbus.Conn, uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.uid[c.Names()[0]] = uid
}

func (u *users) of(*dbus.Conn) func(context.Context, string) (uint32, error) {
	return func(_ context.Context, sender string) (uint32, error) {
		u.mu.Lock()
		defer u.mu.Unlock()
		return u.uid[sender], nil
	}
}

// fakeAdm is the group that reads denials in tests.
const fakeAdm = 444

// groupsOf: users 4000 to 4999 are in adm.
func (u *users) groupsOf(*dbus.Conn) func(context.Context, string, uint32) ([]uint32, error) {
	return func(_ context.Context, _ string, uid uint32) ([]uint32, error) {
		if uid >= 4000 && uid < 5000 {
			return []uint32{uid, fakeAdm}, nil
		}
		return []uint32{uid}, nil
	}
}

// rig is a running service with a fake Manager on a private bus.
type rig struct {
	*privateBus
	*users
	service *service
	manager *fakeManager
	stop    func() error // ends the service and waits
}

func startRig(t *testing.T) *rig {
	t.Helper()
	b := startBus(t)
	return startService(t, b, newFakeManager())
}

func startService(t *testing.T, b *privateBus, m *fakeManager, changes ...func(*service)) *rig {
	t.Helper()
	r := &rig{privateBus: b, users: &users{uid: map[string]uint32{}}, manager: m}
	ready := make(chan struct{})
	r.service = newService(m, Options{
		Version: "1.2.3", Address: b.address, Log: slog.New(slog.DiscardHandler),
		Ready: func() { close(ready) },
	})
	r.service.credentials = r.users.of
	r.service.groups, r.service.adm = r.users.groupsOf, func() (uint32, error) { return fakeAdm, nil }
	for _, change := range changes {
		change(r.service)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.service.run(ctx); close(ended) }()
	r.stop = sync.OnceValue(func() error { cancel(); return <-ended })
	t.Cleanup(func() { _ = r.stop() })
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the service ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("the service did not come up")
	}
	return r
}

// user opens a connection that the service takes for the given user's.
func (r *rig) user(t *testing.T, uid uint32) *dbus.Conn {
	t.Helper()
	c := r.connect(t)
	r.set(c, uid)
	return c
}

// owner is the service's unique name, "" while it has no connection.
func (r *rig) owner(t *testing.T) string {
	t.Helper()
	var name string
	err := r.connect(t).BusObject().Call(bus.Driver+".GetNameOwner", 0, BusName).Store(&name)
	if got := errorName(err); got != "" && got != errorNoOwner {
		t.Fatal(err)
	}
	return name
}

func (r *rig) client(t *testing.T, uid uint32) *Client {
	t.Helper()
	c, err := Dial(context.Background(), DialOptions{Address: r.address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	r.set(c.conn, uid)
	return c
}

func manager(c *dbus.Conn) dbus.BusObject { return c.Object(BusName, Path) }

func call(c *dbus.Conn, path dbus.ObjectPath, method string, args ...any) *dbus.Call {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	return c.Object(BusName, path).CallWithContext(ctx, method, 0, args...)
}

func errorName(err error) string {
	switch e := err.(type) {
	case nil:
		return ""
	case dbus.Error:
		return e.Name
	}
	return err.Error()
}

// fakePolkit answers for org.freedesktop.PolicyKit1.
type fakePolkit struct {
	mu        sync.Mutex
	yes       bool
	challenge bool
	hang      bool
	asked     []polkitQuestion
}

type polkitQuestion struct {
	Kind, Name, Action string
	Flags              uint32
}

func (p *fakePolkit) CheckAuthorization(subject polkitSubject, action string, _ map[string]string, flags uint32, _ string) (struct {
	A, C bool
	D    map[string]string
}, *dbus.Error) {
	p.mu.Lock()
	name, _ := subject.Details["name"].Value().(string)
	p.asked = append(p.asked, polkitQuestion{subject.Kind, name, action, flags})
	hang := p.hang
	out := struct {
		A, C bool
		D    map[string]string
	}{p.yes, p.challenge, map[string]string{}}
	p.mu.Unlock()
	if hang {
		time.Sleep(3 * time.Second)
	}
	return out, nil
}

func (p *fakePolkit) questions() []polkitQuestion {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]polkitQuestion(nil), p.asked...)
}

func startPolkit(t *testing.T, b *privateBus, p *fakePolkit) {
	t.Helper()
	c := b.connect(t)
	if err := c.Export(p, polkitPath, "org.freedesktop.PolicyKit1.Authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestName(polkitName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
}

// fakeManager does what a test tells it.
type fakeManager struct {
	mu        sync.Mutex
	requests  []attach.Request
	units     []attach.Status
	publish   func(*attach.Status)
	attach    attachFunc
	plan      func(ctx context.Context, r attach.Request) ([]attach.Outcome, error)
	trusted   []bool
	subscribe chan struct{}
	hold      chan struct{} // reports about named units wait for its end
	held      int           // how many do
	since     time.Time     // that Denials was asked with
}

func newFakeManager() *fakeManager {
	return &fakeManager{subscribe: make(chan struct{})}
}

type attachFunc = func(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)

// took notes the request and gives what a test wants done with it.
func (m *fakeManager) took(r attach.Request) attachFunc {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.requests = append(m.requests, r)
	return m.attach
}

func (m *fakeManager) onAttach(f attachFunc) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.attach = f
}

func (m *fakeManager) got() []attach.Request {
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]attach.Request(nil), m.requests...)
}

func (m *fakeManager) Attach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	if f := m.took(r); f != nil {
		return f(ctx, r, progress)
	}
	var out []attach.Outcome
	for _, u := range r.Units {
		for _, step := range []attach.Step{attach.StepPolicy, attach.StepDropIn, attach.StepRestart, attach.StepVerdict} {
			progress(attach.Event{Unit: u, Step: step, State: attach.Done, Text: "done"})
		}
		out = append(out, attach.Outcome{Unit: u, Changed: true})
	}
	return out, nil
}

func (m *fakeManager) Detach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return m.Attach(ctx, r, progress)
}

func (m *fakeManager) Pause(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return m.Attach(ctx, r, progress)
}

func (m *fakeManager) Resume(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return m.Attach(ctx, r, progress)
}

func (m *fakeManager) Apply(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return m.Attach(ctx, r, progress)
}

func (m *fakeManager) Propose(_ context.Context, files []attach.ProposedFile) (out []attach.Outcome, err error) {
	for _, f := range files {
		m.took(attach.Request{Units: []string{f.File}, Profile: f.Text})
		out = append(out, attach.Outcome{Unit: f.File})
	}
	return out, nil
}

func (m *fakeManager) Plan(ctx context.Context, r attach.Request) ([]attach.Outcome, error) {
	m.took(r)
	if m.plan != nil {
		return m.plan(ctx, r)
	}
	return nil, nil
}

func (m *fakeManager) Verify(ctx context.Context, units []string) (attach.Report, error) {
	return m.Status(units), nil
}

func (m *fakeManager) VerifyEvidence(_ context.Context, units []string) (attach.EvidenceReport, error) {
	r := attach.EvidenceReport{Version: "1.2.3"}
	for _, u := range units {
		r.Units = append(r.Units, attach.ConcludeEvidence(attach.EvidenceStatus{Unit: u}))
	}
	return r, nil
}

func (m *fakeManager) Status(units []string) attach.Report {
	m.mu.Lock()
	defer m.mu.Unlock()
	if hold := m.hold; hold != nil && len(units) > 0 {
		m.held++
		m.mu.Unlock()
		<-hold
		m.mu.Lock()
		m.held--
	}
	return attach.Report{
		Version: "1.2.3",
		Host:    m.Host(),
		Units:   append([]attach.Status(nil), m.units...),
	}
}

func (m *fakeManager) Host() attach.Host {
	return attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce}
}

func (m *fakeManager) Profiles() ([]attach.Profile, map[string]attach.Reason) {
	return []attach.Profile{{Name: "agent", File: "/etc/apparmor.d/agent", Line: 3, Leaves: []attach.Leave{{Rule: "/bin/secret Ux,"}}}},
		map[string]attach.Reason{"/etc/apparmor.d/odd": attach.Because(attach.ProfileBroken, "syntax error at secret").At("/etc/apparmor.d/odd:2")}
}

func (m *fakeManager) Query(_ context.Context, profiles []string, question string, trusted bool) ([]attach.QueryResult, error) {
	return []attach.QueryResult{{Profile: strings.Join(profiles, " "), May: attach.MayNo, Text: question}}, nil
}

func (m *fakeManager) QueryLoaded(_ context.Context, profiles []string, question string) ([]attach.QueryResult, error) {
	return []attach.QueryResult{{Profile: strings.Join(profiles, " "), May: attach.MayNo, Text: question, Loaded: &attach.LiveProfile{Checksum: "sha1:1"}}}, nil
}

func (m *fakeManager) Check(_ context.Context, args []string, trusted bool) ([]attach.Outcome, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.trusted = append(m.trusted, trusted)
	return nil, nil
}

func (m *fakeManager) Explain(_ context.Context, units []string, plans bool) attach.CaseReport {
	why := attach.Because(attach.TaskUnconfined, "secret (PID 7) is unconfined")
	d := attach.Seen(attach.Denial{Count: 2, Profile: "agent", Operation: "open", Denied: "r", Name: "/etc/shadow"})
	// A start at which the kernel refused the change of profile, and recorded it.
	at := time.Unix(1_700_000_000, 0)
	start := attach.LastStartOf(attach.Unit{ActiveState: "failed", Runs: []attach.Run{{Property: "ExecStart", PID: 7, Code: 1, Status: 231, Began: at, Ended: at}}},
		[]attach.Denial{{Operation: "change_onexec", Name: "hidden-agent", Info: "label not found", PID: 7, Count: 1, First: at, Last: at}}, attach.Hearing{})
	c := attach.Case{Unit: strings.Join(units, " "), Denials: []attach.SeenDenial{d}, LeftOut: 1,
		Status: &attach.Status{Unit: "a.service", Verdict: &attach.Verdict{Answer: attach.NotConfined, Reasons: []attach.Reason{why}}},
		Start:  &start}
	if plans {
		c.Plan = &attach.Outcome{Unit: "a.service"}
	}
	return attach.CaseReport{Cases: []attach.Case{c}}
}

func (m *fakeManager) Denials(units []string, since time.Time) attach.DenialReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.since = since
	d := attach.Seen(attach.Denial{Count: 2, Profile: "agent", Operation: "open", Denied: "r", Name: "/etc/shadow"})
	return attach.DenialReport{Cursor: "7.7", Units: []attach.UnitDenials{{Unit: "a.service", Denials: []attach.SeenDenial{d}}}}
}

func (m *fakeManager) WaitDenials(ctx context.Context, units []string, cursor string) attach.DenialReport {
	if cursor == "7.7" {
		<-ctx.Done()
		return attach.DenialReport{Cursor: cursor}
	}
	return m.Denials(units, time.Time{})
}

func (m *fakeManager) Metrics() attach.Metrics {
	return attach.Metrics{Version: "7", Units: []attach.UnitMetrics{{Unit: "a.service", Answer: attach.Confined}}}
}

func (m *fakeManager) Exposed(context.Context) (attach.ExposureReport, error) {
	return attach.ExposureReport{Services: []attach.Exposure{{Unit: "bare.service", Class: attach.ExposedNetwork}}}, nil
}

func (m *fakeManager) HostReport(context.Context) (attach.HostReport, error) {
	return attach.HostReport{Machine: attach.Machine{Name: "host"}}, nil
}

func (m *fakeManager) SocketOptions(units []string) attach.SocketReport {
	return attach.SocketReport{Units: []attach.SocketStatus{{Unit: strings.Join(units, " "), Recorded: []attach.SocketRecording{}}}}
}

func (m *fakeManager) ChangeSockets(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return m.Pause(ctx, r, progress)
}

func (m *fakeManager) Subscribe(_ context.Context, f func(*attach.Status)) {
	m.mu.Lock()
	m.publish = f
	m.mu.Unlock()
	close(m.subscribe)
}

// tell publishes a status, as the loop does.
func (m *fakeManager) tell(s attach.Status) {
	<-m.subscribe
	m.mu.Lock()
	f := m.publish
	m.mu.Unlock()
	f(&s)
}

// receive waits for a signal that ok accepts.
func receive(t *testing.T, ch <-chan *dbus.Signal, what string, ok func(*dbus.Signal) bool) *dbus.Signal {
	t.Helper()
	timeout := time.After(10 * time.Second)
	for {
		select {
		case s := <-ch:
			if s == nil {
				t.Fatalf("the connection ended while waiting for %s", what)
			}
			if ok(s) {
				return s
			}
		case <-timeout:
			t.Fatalf("no %s came", what)
		}
	}
}

func named(member string) func(*dbus.Signal) bool {
	return func(s *dbus.Signal) bool { return strings.HasSuffix(s.Name, "."+member) }
}
