package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

var now = time.Date(2025, 6, 1, 12, 0, 0, 0, time.UTC)

// fakeDaemon answers what a test gives it.
type fakeDaemon struct {
	outcomes []attach.Outcome
	report   attach.Report
	cases    attach.CaseReport
	evidence attach.EvidenceReport
	profiles []attach.Profile
	problems []attach.Reason
	queried  []attach.QueryResult
	err      error
	request  attach.Request
	names    []string
	did      string
	wait     chan struct{} // Attach waits for it or for its context

	exposed attach.ExposureReport
	metrics attach.Metrics
	host    attach.HostReport
	// sockets are the answers to SocketOptions, one after the other; the last one stays.
	sockets []attach.SocketReport
	changes []attach.SocketChange
	sleeps  int // after which a follower is interrupted

	denials   attach.DenialReport
	news      []attach.DenialReport
	since     time.Time
	cursors   []string
	interrupt func()
}

func (d *fakeDaemon) Attach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	d.did, d.request = "attach", r
	for _, o := range d.outcomes {
		for _, e := range o.Events {
			progress(e)
		}
	}
	if d.wait != nil {
		select {
		case <-d.wait:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", api.ErrUnderWay, ctx.Err())
		}
	}
	return d.outcomes, d.err
}

func (d *fakeDaemon) Detach(_ context.Context, r attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
	d.did, d.request = "detach", r
	return d.outcomes, d.err
}

func (d *fakeDaemon) Pause(_ context.Context, r attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
	d.did, d.request = "pause", r
	return d.outcomes, d.err
}

func (d *fakeDaemon) Resume(_ context.Context, r attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
	d.did, d.request = "resume", r
	return d.outcomes, d.err
}

func (d *fakeDaemon) Apply(_ context.Context, r attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
	d.did, d.request = "apply", r
	return d.outcomes, d.err
}

func (d *fakeDaemon) Propose(_ context.Context, files []attach.ProposedFile) ([]attach.Outcome, error) {
	d.did, d.names = "propose", nil
	for _, f := range files {
		d.did, d.names = d.did+" "+f.Text, append(d.names, f.File)
	}
	return d.outcomes, d.err
}

func (d *fakeDaemon) StartAttach(_ context.Context, r attach.Request) (string, error) {
	d.did, d.request = "start attach", r
	return "/org/aaunit1/operation/7", d.err
}

func (d *fakeDaemon) StartDetach(_ context.Context, r attach.Request) (string, error) {
	d.did, d.request = "start detach", r
	return "/org/aaunit1/operation/8", d.err
}

func (d *fakeDaemon) Plan(_ context.Context, r attach.Request) ([]attach.Outcome, error) {
	d.did, d.request = "plan", r
	return d.outcomes, d.err
}

func (d *fakeDaemon) VerifyJSON(ctx context.Context, units []string) ([]byte, error) {
	return written(units)(d.Verify(ctx, units))
}

func (d *fakeDaemon) StatusJSON(ctx context.Context, units []string) ([]byte, error) {
	return written(units)(d.Status(ctx, units))
}

// written writes a report as aaunitd does.
func written(units []string) func(attach.Report, error) ([]byte, error) {
	return func(r attach.Report, err error) ([]byte, error) {
		if err != nil {
			return nil, err
		}
		if r.Units == nil {
			r.Units = []attach.Status{}
		}
		r.Exit = attach.ExitOfReport(r, len(units) > 0)
		var text bytes.Buffer
		e := json.NewEncoder(&text)
		e.SetEscapeHTML(false)
		err = e.Encode(r)
		return bytes.TrimSpace(text.Bytes()), err
	}
}

func (d *fakeDaemon) Verify(_ context.Context, units []string) (attach.Report, error) {
	d.did, d.names = "verify", units
	return d.report, d.err
}

func (d *fakeDaemon) VerifyEvidence(_ context.Context, units []string) (attach.EvidenceReport, error) {
	d.did, d.names = "verify evidence", units
	return d.evidence, d.err
}

func (d *fakeDaemon) Status(_ context.Context, units []string) (attach.Report, error) {
	d.did, d.names = "status", units
	return d.report, d.err
}

func (d *fakeDaemon) Profiles(context.Context) ([]attach.Profile, error) {
	d.did = "profiles"
	return d.profiles, d.err
}

func (d *fakeDaemon) ProfileProblems(context.Context) ([]attach.Reason, error) {
	return d.problems, d.err
}

func (d *fakeDaemon) Query(_ context.Context, profiles []string, question string) ([]attach.QueryResult, error) {
	d.did, d.names = "query "+question, profiles
	return d.queried, d.err
}

func (d *fakeDaemon) QueryLoaded(_ context.Context, profiles []string, question string) ([]attach.QueryResult, error) {
	d.did, d.names = "query loaded "+question, profiles
	return d.queried, d.err
}

func (d *fakeDaemon) Check(_ context.Context, args []string) ([]attach.Outcome, error) {
	d.did, d.names = "check", args
	return d.outcomes, d.err
}

// Explain makes cases of the report, as the daemon does, where a test gives none.
func (d *fakeDaemon) Explain(_ context.Context, units []string) (attach.CaseReport, error) {
	d.did, d.names = "explain", units
	r := d.cases
	if len(r.Cases) == 0 {
		r = attach.CaseReport{Host: d.report.Host, Since: now.Add(-time.Hour), At: now}
		for _, s := range slices.Concat(d.report.Patterns, d.report.Units) {
			r.Cases = append(r.Cases, attach.Case{Unit: s.Unit, Status: &s})
		}
		for _, m := range d.report.Missing {
			r.Cases = append(r.Cases, attach.Case{Unit: m.Unit, Missing: &m.Reason})
		}
	}
	return r, d.err
}

func (d *fakeDaemon) Denials(_ context.Context, units []string, since time.Time) (attach.DenialReport, error) {
	d.did, d.names, d.since = "denials", units, since
	return d.denials, d.err
}

// WaitDenials gives what a test has in news, and then is interrupted.
func (d *fakeDaemon) WaitDenials(_ context.Context, _ []string, cursor string) (attach.DenialReport, error) {
	d.cursors = append(d.cursors, cursor)
	if len(d.news) == 0 {
		d.interrupt()
		return attach.DenialReport{}, context.Canceled
	}
	r := d.news[0]
	d.news = d.news[1:]
	return r, nil
}

func (d *fakeDaemon) Exposed(context.Context) (attach.ExposureReport, error) {
	d.did = "exposed"
	return d.exposed, d.err
}

func (d *fakeDaemon) Metrics(context.Context) (attach.Metrics, error) {
	d.did = "metrics"
	return d.metrics, d.err
}

func (d *fakeDaemon) HostReport(context.Context) (attach.HostReport, error) {
	d.did = "report"
	return d.host, d.err
}

func (d *fakeDaemon) SocketOptions(_ context.Context, units []string) (attach.SocketReport, error) {
	d.did, d.names = "sockopts", units
	if len(d.sockets) == 0 {
		return attach.SocketReport{}, d.err
	}
	r := d.sockets[0]
	if len(d.sockets) > 1 {
		d.sockets = d.sockets[1:]
	}
	return r, d.err
}

func (d *fakeDaemon) ChangeSockets(_ context.Context, r attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
	d.did, d.request, d.changes = "change sockets", r, append(d.changes, *r.Sockets)
	return d.outcomes, d.err
}

func (d *fakeDaemon) Close() error { return nil }

// scene is a machine with a terminal.
type scene struct {
	World
	out, err bytes.Buffer
	daemon   *fakeDaemon
	env      map[string]string
	dialed   string

	local     *LocalOptions // nil: nothing was answered here
	localDone bool
	written   map[string]string
	modes     map[string]fs.FileMode // of what is written
	files     map[string]string
}

func newScene() *scene {
	s := &scene{daemon: &fakeDaemon{report: attach.Report{Host: hostOn, At: now}}, env: map[string]string{"LANG": "en_US.UTF-8"}, written: map[string]string{}, modes: map[string]fs.FileMode{}}
	s.World = World{
		Stdout: &s.out, Stderr: &s.err,
		Columns: func() int { return 80 },
		Getenv:  func(k string) string { return s.env[k] },
		Root:    true,
		Now:     func() time.Time { return now },
		Stdin:   strings.NewReader(""),
		Sleep: func(context.Context, time.Duration) error {
			if s.daemon.sleeps--; s.daemon.sleeps > 0 {
				return nil
			}
			s.daemon.interrupt()
			return context.Canceled
		},
		Dial: func(_ context.Context, interactive, start bool) (Daemon, error) {
			s.dialed = fmt.Sprintf("interactive=%v start=%v", interactive, start)
			return s.daemon, nil
		},
		Services: func(context.Context) ([]string, error) {
			return []string{"myagent.service", "other.service", "my bad\x1b.service"}, nil
		},
		Local: func(o LocalOptions) (Local, func()) {
			s.local = &o
			return s.daemon, func() { s.localDone = true }
		},
		ReadFile: func(string) ([]byte, error) { return []byte("Y\n"), nil },
		Open: func(name string) (io.ReadCloser, error) {
			text, ok := s.files[name]
			if !ok {
				return nil, fs.ErrNotExist
			}
			return io.NopCloser(strings.NewReader(text)), nil
		},
		WriteFile: func(name string, data []byte, mode fs.FileMode) error {
			s.written[name], s.modes[name] = string(data), mode
			return nil
		},
		Exists:  func(string) bool { return false },
		Version: "1.2.3",
	}
	return s
}

func (s *scene) run(args ...string) attach.Exit {
	s.out.Reset()
	s.err.Reset()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s.daemon.interrupt = cancel
	return Run(ctx, args, s.World)
}

// golden compares with testdata/NAME.golden; -update writes it.
// JSON in one line is written indented, so that it can be read.
func golden(t *testing.T, name, got string) {
	t.Helper()
	var doc bytes.Buffer
	if strings.HasPrefix(got, "{") && json.Indent(&doc, []byte(got), "", "  ") == nil {
		got = doc.String()
	}
	file := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

var hostOn = attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce, BootService: attach.Yes}

func confined(unit string) *attach.Verdict {
	return &attach.Verdict{Unit: unit, InvocationID: "00112233445566778899aabbccddeeff", Profile: "myagent", Answer: attach.Confined,
		Tasks: 3, Processes: 2, PrivateTmp: attach.Yes, At: now.Add(-12 * time.Second)}
}

func event(step attach.Step, state attach.State, text string, r ...attach.Reason) attach.Event {
	e := attach.Event{Unit: "myagent.service", Step: step, State: state, Text: text}
	if len(r) > 0 {
		e.Reason = &r[0]
	}
	return e
}

func attached() attach.Outcome {
	return attach.Outcome{
		Unit: "myagent.service", Profile: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent", Changed: true,
		Verdict: confined("myagent.service"),
		Events: []attach.Event{
			event(attach.StepResolve, attach.Done, "profile myagent attaches to /usr/local/bin/myagent"),
			event(attach.StepPolicy, attach.Running, "compiling"),
			event(attach.StepPolicy, attach.Done, "loaded, enforce; the kernel runs what was checked (sha256 9f2c41d0…)"),
			event(attach.StepDropIn, attach.Done, "/etc/systemd/system/myagent.service.d/90-aaunit.conf"),
			event(attach.StepDropIn, attach.Running, "daemon-reload"),
			event(attach.StepRestart, attach.Done, "active after 0.4 s, stayed healthy for 5 s"),
			event(attach.StepVerdict, attach.Done, "3 tasks in 2 processes, private /tmp"),
		},
	}
}

func undone() attach.Outcome {
	failed := attach.Because(attach.AttachFailed, "myagent.service failed 0.2 s after the restart: status=1/FAILURE").
		WithNext("journalctl -u myagent.service")
	task := attach.Because(attach.TaskUnconfined, "/usr/bin/sh (PID 4711) and 2 more is unconfined").
		At(`/etc/apparmor.d/usr.local.bin.myagent, rule "/bin/sh Ux"`)
	return attach.Outcome{
		Unit: "myagent.service", Profile: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent", Exit: attach.ExitFailed, Undone: true,
		Events: []attach.Event{
			event(attach.StepResolve, attach.Warned, "usr.local.bin.myagent is a file name; its profile is called myagent",
				attach.Because(attach.ProfileCorrected, "usr.local.bin.myagent is a file name; its profile is called myagent")),
			event(attach.StepPolicy, attach.Done, "loaded, enforce; the kernel runs what was checked (sha256 9f2c41d0…)"),
			event(attach.StepDropIn, attach.Done, "/etc/systemd/system/myagent.service.d/90-aaunit.conf"),
			event(attach.StepRestart, attach.Failed, "the job failed", failed),
			event(attach.StepUndo, attach.Done, "the drop-in is gone, the profile unloaded, the unit runs as before"),
		},
		Verdict: &attach.Verdict{Unit: "myagent.service", Profile: "myagent", Answer: attach.NotConfined, Tasks: 3, Processes: 3,
			Reasons: []attach.Reason{task}, At: now},
		Reasons: []attach.Reason{failed},
		Notes:   []attach.Reason{attach.Because(attach.ChildLeaves, `profile myagent has the rule "/bin/sh Ux"`).At("/etc/apparmor.d/usr.local.bin.myagent")},
	}
}

func refused() attach.Outcome {
	return attach.Outcome{
		Unit: "web.service", Exit: attach.ExitFailed,
		Reasons: []attach.Reason{
			attach.Because(attach.ExecPrivileged, "ExecStart=+/usr/bin/web starts the service without the profile").At("/usr/lib/systemd/system/web.service").WithNext("take the + off the line"),
			attach.Because(attach.ProfileBroken, "AppArmor parser error for /etc/apparmor.d/web in profile web at line 7: syntax error, unexpected TOK_END_OF_RULE\nthe line reads:\n  network inet stream\x1b[31m,").At("/etc/apparmor.d/web:7"),
		},
	}
}

// broken are files that do not compile, with the lines that are to blame.
func broken() []attach.Outcome {
	file := func(name string, r attach.Reason) attach.Outcome {
		return attach.Outcome{Unit: "/etc/apparmor.d/" + name, File: "/etc/apparmor.d/" + name, Exit: attach.ExitFailed, Reasons: []attach.Reason{r}}
	}
	because := func(name string, line, column int, text, what string) attach.Outcome {
		return file(name, attach.Because(attach.ProfileBroken, "cannot compile /etc/apparmor.d/%s:%d: %s", name, line, what).At(fmt.Sprintf("/etc/apparmor.d/%s:%d", name, line)).
			WithExcerpt(line, column, text).WithNext(fmt.Sprintf("correct line %d, then: aaunitctl check /etc/apparmor.d/%s", line, name)))
	}
	return []attach.Outcome{
		because("myagent", 12, 3, "  socket (tcp) options=(setsockopt) level=SOL_TCP optname=(TCP_NODELAY),",
			"AppArmor cannot express this: it knows no rules for single socket options. Take the rule out, keep the network rule and list the options in the attachment file, in its section [SocketOptions]: Allow=SOL_TCP:TCP_NODELAY (apparmor_parser: syntax error, unexpected TOK_OPENPAREN, expecting TOK_MODE)"),
		because("comma", 3, 16, "\t/etc/passwd  r", "the rule has no comma at its end. Every rule ends with a comma, also the last one before a closing brace: /etc/passwd r, (apparmor_parser: missing an end of line character? (entry: /etc/passwd))"),
		because("hostile", 100, 29, "  /\x1b[31m\u202e/日本/\xff/** \u009brw zz,", "there is no permission z."),
		because("long", 7, 161, "  "+strings.Repeat("/long", 30)+"/** r  oops # and "+strings.Repeat("more ", 30), "nothing is expected behind the permissions r."),
		because("whole", 1, 0, "profile x {", "apparmor_parser refuses the text."),
	}
}

func planned() attach.Outcome {
	return attach.Outcome{
		Unit: "myagent.service", Profile: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent",
		Plan: &attach.Plan{
			Unit: "myagent.service", Profile: "myagent",
			Actions: []attach.Action{
				{Kind: attach.LoadPolicy, Target: "/etc/apparmor.d/usr.local.bin.myagent", Reason: attach.Because(attach.ProfileNotLoaded, "profile myagent is not loaded")},
				{Kind: attach.WriteDropIn, Target: "/etc/systemd/system/myagent.service.d/90-aaunit.conf", Reason: attach.Because(attach.DropInMissing, "/etc/systemd/system/myagent.service.d/90-aaunit.conf does not exist")},
				{Kind: attach.Reload, Target: "myagent.service", Reason: attach.Because(attach.ReloadNeeded, "its drop-in changes")},
				{Kind: attach.Restart, Target: "myagent.service", Reason: attach.Because(attach.RestartNeeded, "/usr/local/bin/myagent (PID 12) is unconfined")},
			},
			Warnings:     []attach.Reason{attach.Because(attach.BootServiceMissing, "apparmor.service is not enabled").WithNext("systemctl enable apparmor.service")},
			RestartsWith: []string{"front.service", "proxy.service"},
			TmpFiles:     []string{"/tmp/agent.sock", "/tmp/ein\nzwei"},
		},
	}
}

func mixedReport() attach.Report {
	st := func(unit string, v *attach.Verdict) attach.Status {
		return attach.Status{Unit: unit, Profile: "myagent", ProfileFile: "/etc/apparmor.d/myagent", Attachment: "/etc/aaunit/attachments.d/agents.conf",
			DropIn: "/etc/systemd/system/" + unit + ".d/90-aaunit.conf", ActiveState: "active", Verdict: v}
	}
	bad := confined("b.service")
	bad.Answer, bad.PrivateTmp = attach.NotConfined, attach.No
	bad.Reasons = []attach.Reason{
		attach.Because(attach.TaskUnconfined, "/usr/bin/sh (PID 4711) is unconfined").At(`/etc/apparmor.d/myagent, rule "/bin/sh Ux"`),
		attach.Because(attach.TmpShared, "PID 4711 sees the host's /tmp or /var/tmp"),
		attach.Because(attach.TaskStacked, "/usr/bin/b (PID 4700) runs as myagent//&unconfined (enforce)"),
	}
	held := st("c.service", nil)
	held.ActiveState = "failed"
	held.Held = &attach.Hold{Former: "old", Since: now.Add(-3 * time.Hour), Reasons: []attach.Reason{attach.Because(attach.AttachFailed, "c.service failed after the restart").WithNext("aaunitctl attach c.service")}}
	undone := st("e.service", confined("e.service"))
	undone.Held = &attach.Hold{Since: now.Add(-time.Minute), Texts: map[string]string{"/etc/apparmor.d/myagent": "x"}, Former: "myagent",
		Reasons: []attach.Reason{attach.Because(attach.PolicyUndone, "under the changed policy e.service failed: exit status 3").At("/etc/apparmor.d/myagent"),
			attach.Because(attach.Denied, "profile myagent: open /etc/needed (r) denied, comm agent")}}
	stopped := st("d.service", &attach.Verdict{Unit: "d.service", Answer: attach.Unknown, Reasons: []attach.Reason{attach.Because(attach.NotRunning, "d.service is inactive")}, At: now.Add(-50 * time.Hour)})
	stopped.ActiveState = "inactive"
	stopped.Busy = true
	return attach.Report{
		Version: "1.2.3", Host: hostOn, At: now,
		Problems: []attach.Reason{attach.Because(attach.AttachmentBad, `unknown key "Porfile"`).At("/etc/aaunit/attachments.d/web.conf:3")},
		Units:    []attach.Status{st("a.service", confined("a.service")), st("b.service", bad), held, stopped, undone},
		Patterns: []attach.Status{
			{Unit: "agent@.service", Profile: "agent-%i", Attachment: "/etc/aaunit/attachments.d/agents.conf", DropIn: "/etc/systemd/system/agent@.service.d/90-aaunit.conf"},
			{Unit: "web-.service", Profile: "web", Attachment: "/etc/aaunit/attachments.d/web.conf", Refused: []attach.Reason{attach.Because(attach.ProfileNotFound, "no file under /etc/apparmor.d defines a profile web")}},
		},
		Missing: []attach.Missing{
			{Unit: "nope.service", Reason: attach.Because(attach.UnitNotFound, "systemd knows no unit nope.service").WithNext("systemctl list-unit-files --type=service")},
			{Unit: "ssh.service", Reason: attach.Because(attach.Detached, "no attachment names ssh.service")},
		},
	}
}

// patternsReport has patterns only: in place, not come to yet, without its drop-in, with
// a policy that cannot be put back, and paused.
func patternsReport() attach.Report {
	st := func(unit string, placed bool) attach.Status {
		s := attach.Status{Unit: unit, Profile: "agent", Attachment: "/etc/aaunit/attachments.d/agents.conf"}
		if placed {
			s.DropIn = "/etc/systemd/system/" + unit + ".d/90-aaunit.conf"
		}
		return s
	}
	fresh, trampled, paused := st("fresh-.service", false), st("trampled@.service", true), st("paused@.service", true)
	fresh.Busy, paused.Paused = true, &pause
	trampled.Refused = []attach.Reason{attach.Because(attach.PolicyTrampled, "somebody removed profile agent").WithNext("journalctl -b -u aaunitd.service"),
		attach.Because(attach.ProfileNotLoaded, "cannot load /etc/apparmor.d/agent: no memory").WithNext("journalctl -b -u aaunitd.service")}
	return attach.Report{Version: "1.2.3", Host: hostOn, At: now, Patterns: []attach.Status{st("agent@.service", true), paused, fresh, st("bare-.service", false), trampled}}
}

var pause = attach.Pause{Since: now.Add(-time.Minute), Until: now.Add(time.Hour), By: "alice"}

// pausedReport has a paused template, and two paused units of which one runs
// unconfined.
func pausedReport() attach.Report {
	r := mixedReport()
	r.Problems, r.Missing, r.Units, r.Patterns = nil, nil, r.Units[:2], r.Patterns[:1]
	r.Patterns[0].Paused, r.Units[0].Paused, r.Units[1].Paused = &pause, &pause, &pause
	r.Units[1].Verdict.Reasons = r.Units[1].Verdict.Reasons[:1]
	return r
}

// evidenceReport has a unit whose evidence holds, one of which it does not, one of
// which it could not be told, and one that never had any.
func evidenceReport() attach.EvidenceReport {
	head := func(n int, a attach.Answer) *attach.EvidenceHead {
		return &attach.EvidenceHead{Number: n, SHA256: strings.Repeat("9f2c41d0", 8), File: "/var/lib/aaunit/evidence/x/y.json", InvocationID: "00112233445566778899aabbccddeeff", Answer: a, At: now.Add(-3 * time.Minute)}
	}
	good := []attach.EvidenceLink{
		{Link: attach.LinkRecords, Holds: attach.Yes, What: "20 records"}, {Link: attach.LinkStart, Holds: attach.Yes, What: "myagent.service", Old: "x", New: "x"},
		{Link: attach.LinkSource, Holds: attach.Yes, What: "/etc/apparmor.d/usr.local.bin.myagent"}, {Link: attach.LinkVerdict, Holds: attach.Yes, Old: "confined", New: "confined"}}
	bad := []attach.EvidenceLink{good[0],
		{Link: attach.LinkDropIn, Holds: attach.No, What: "/etc/systemd/system/b.service.d/90-aaunit.conf", Old: "sha256 " + strings.Repeat("a", 64), New: "sha256 " + strings.Repeat("b", 64), Why: "it was changed"},
		{Link: attach.LinkLabel, Holds: attach.No, What: "2 tasks", Old: "b", New: "evil\x1b[31m\u202e (enforce)", Why: "it is not the profile in a mode that confines"},
		{Link: attach.LinkOnDisk, What: "/usr/bin/b", Why: "it could not be read: it is on a file system that may not answer (fuse.sshfs)"}}
	unsure := []attach.EvidenceLink{good[0], bad[3], {Link: "of-a-newer-daemon", Holds: attach.Yes}}
	return attach.EvidenceReport{Version: "1.2.3", At: now, Units: []attach.EvidenceStatus{
		attach.ConcludeEvidence(attach.EvidenceStatus{Unit: "myagent.service", Profile: "myagent", Records: 20, Newest: head(41, attach.Confined), Proof: head(41, attach.Confined), Links: good}),
		attach.ConcludeEvidence(attach.EvidenceStatus{Unit: "b.service", Profile: "b", Records: 20, Newest: head(8, attach.NotConfined), Proof: head(7, attach.Confined), Links: bad}),
		attach.ConcludeEvidence(attach.EvidenceStatus{Unit: "c.service", Profile: "c", Records: 20, Newest: head(1, attach.Confined), Proof: head(1, attach.Confined), Links: unsure}),
		attach.ConcludeEvidence(attach.EvidenceStatus{Unit: "d.service"}),
	}, Missing: []attach.Missing{{Unit: "nope.service", Reason: attach.Because(attach.UnitNotFound, "systemd knows no unit nope.service")}}}
}

// found is a check of a profile that compiles and allows too much.
func found() []attach.Outcome {
	return []attach.Outcome{{Unit: "/etc/apparmor.d/agent", File: "/etc/apparmor.d/agent", Profile: "agent", Exit: attach.ExitNotConfined, Questioned: []attach.Questioned{{File: "/etc/apparmor.d/agent", Questions: 375}}, Findings: []attach.Finding{
		{Severity: attach.Error, Profile: "agent", Witness: "/etc/cron.d/a", Reason: attach.Because(attach.MayAskOthers, "profile agent may write what cron and at run: /etc/cron.d/a, by the rule \"/etc/** rw,\"").At("/etc/apparmor.d/agent:7")},
		{Severity: attach.Warning, Profile: "agent", Witness: "/tmp/a", Reason: attach.Because(attach.MayWriteTmp, "profile agent may write /tmp, which all users share unless the unit has PrivateTmp=yes, aaunit's default: /tmp/a").At("/etc/apparmor.d/agent:8")},
		{Severity: attach.Note, Profile: "agent", Reason: attach.Because(attach.MayNoNetwork, "profile agent allows no socket of any family").At("/etc/apparmor.d/agent:3").WithNext("if the program needs the network, add: network inet stream,")},
	}}}
}

// notAsked is a policy about which the kernel was asked little, and one about which
// it was not asked at all.
func notAsked() []attach.Outcome {
	return []attach.Outcome{{Unit: "agent.service", File: "/etc/apparmor.d/agent", Profile: "agent", Questioned: []attach.Questioned{
		{File: "/etc/apparmor.d/agent", Questions: 32, NotAsked: "cannot ask the kernel all about profile agent: the time for it was over"},
		{File: "/etc/apparmor.d/helper", NotAsked: "cannot ask the kernel: the kernel answers no questions about policy"},
		{File: "/etc/apparmor.d/other", Questions: 1},
	}}}
}

func answered() []attach.QueryResult {
	return []attach.QueryResult{
		{Profile: "agent", File: "/etc/apparmor.d/agent", May: attach.MayYes, Witness: "/tmp/a", Text: "allows write of /tmp/a (owner)"},
		{Profile: "other", File: "/etc/apparmor.d/other", May: attach.MayNo, Text: "may write nothing that matches /tmp/**"},
		{Profile: "third", File: "/etc/apparmor.d/third", May: attach.MayUnknown, Text: "cannot be asked: cannot compile /etc/apparmor.d/third:2: \x1b[31m"},
		{Profile: "open", File: "/etc/apparmor.d/open", May: attach.MayNotMediated, Text: "has the mode unconfined and takes nothing from its tasks"},
	}
}

func TestOutput(t *testing.T) {
	for _, tc := range []struct {
		name string
		set  func(*scene)
		args []string
		exit attach.Exit
	}{
		{"attach", func(s *scene) { s.daemon.outcomes = []attach.Outcome{attached()} }, []string{"attach", "myagent"}, 0},
		{"attach-ascii", func(s *scene) { s.daemon.outcomes = []attach.Outcome{attached(), undone()}; s.env["LC_ALL"] = "C" }, []string{"attach", "myagent"}, 1},
		{"attach-colour", func(s *scene) { s.daemon.outcomes = []attach.Outcome{attached(), undone()}; s.StdoutTTY = true }, []string{"attach", "myagent"}, 1},
		{"attach-several", func(s *scene) { s.daemon.outcomes = []attach.Outcome{attached(), undone(), refused()} }, []string{"attach", "myagent", "web"}, 1},
		{"attach-json", func(s *scene) { s.daemon.outcomes = []attach.Outcome{refused()} }, []string{"attach", "web", "--json"}, 1},
		{"attach-nothing", func(s *scene) { s.daemon.outcomes = []attach.Outcome{{Unit: "a.service", Profile: "a"}} }, []string{"attach", "a"}, 0},
		{"attach-bare", func(s *scene) {
			s.daemon.outcomes = []attach.Outcome{{Unit: "a.service", Profile: "a", Exit: attach.ExitUnknown, Undone: true, Verdict: &attach.Verdict{Answer: attach.Unknown,
				Reasons: []attach.Reason{attach.Because(attach.EndedBeforeSeen, "a.service started and had no task left when it was looked at")}}}}
		}, []string{"attach", "a"}, 5},
		{"pause", func(s *scene) {
			s.daemon.outcomes = []attach.Outcome{
				{Unit: "myagent.service", Profile: "myagent", Changed: true, Paused: &pause, Events: []attach.Event{event(attach.StepPause, attach.Done, pause.String())},
					Notes: []attach.Reason{attach.Because(attach.PolicyKept, "b.service is also attached to myagent and not paused: its policy is kept")}},
				{Unit: "ssh.service", Exit: attach.ExitFailed, Reasons: []attach.Reason{attach.Because(attach.NotAttached, "ssh.service is not attached").WithNext("aaunitctl attach ssh.service")}},
				{Unit: "nope.service", Exit: attach.ExitNoUnit, Reasons: []attach.Reason{attach.Because(attach.UnitNotFound, "systemd knows no unit nope.service")}},
			}
		}, []string{"pause", "myagent", "ssh", "nope", "--for", "1h"}, 1},
		{"pause-json", func(s *scene) {
			s.daemon.outcomes = []attach.Outcome{{Unit: "myagent.service", Profile: "myagent", Changed: true, Paused: &pause}}
		}, []string{"pause", "myagent", "--json"}, 0},
		{"resume", func(s *scene) {
			s.daemon.outcomes = []attach.Outcome{
				{Unit: "myagent.service", Profile: "myagent", Changed: true, Events: []attach.Event{event(attach.StepResume, attach.Done, "what is not as declared is put back now")}},
				{Unit: "b.service", Profile: "b", Events: []attach.Event{event(attach.StepResume, attach.Skipped, "it was not paused")}},
			}
		}, []string{"resume", "myagent", "b"}, 0},
		{"paused-status", func(s *scene) { s.daemon.report = pausedReport() }, []string{"status"}, 3},
		{"paused-list", func(s *scene) { s.daemon.report = pausedReport() }, []string{"list"}, 3},
		{"paused-verify", func(s *scene) { s.daemon.report = pausedReport(); s.env["LC_ALL"] = "C" }, []string{"verify"}, 3},
		{"paused-explain", func(s *scene) { s.daemon.report = pausedReport() }, []string{"explain", "a", "b"}, 3},
		{"paused-json", func(s *scene) {
			s.daemon.report = pausedReport()
			s.daemon.report.Units, s.daemon.report.Patterns = s.daemon.report.Units[:1], nil
		}, []string{"explain", "a", "--json"}, 0},
		{"help-pause", func(*scene) {}, []string{"pause", "--help"}, 0},
		{"no-wait", func(*scene) {}, []string{"attach", "a", "--no-wait"}, 0},
		{"plan", func(s *scene) {
			nothing := attach.Outcome{Unit: "done.service", Profile: "done", Plan: &attach.Plan{}}
			no := attach.Outcome{Unit: "ssh.socket", Exit: attach.ExitFailed, Plan: &attach.Plan{Refusals: []attach.Reason{attach.Because(attach.UnitNoService, "ssh.socket is a socket, not a service")}}}
			s.daemon.outcomes = []attach.Outcome{planned(), nothing, no, refused()}
		}, []string{"plan", "myagent"}, 1},
		{"check", func(s *scene) {
			s.daemon.outcomes = []attach.Outcome{
				{Unit: "good.service", Profile: "good", File: "/etc/apparmor.d/good"}, refused(),
				{Unit: "/etc/apparmor.d/x", Notes: []attach.Reason{attach.Because(attach.ProfileNotAtBoot, "/etc/apparmor.d/sub/x is not directly in /etc/apparmor.d")}},
			}
		}, []string{"check", "good", "web", "/etc/apparmor.d/x"}, 1},
		{"check-broken", func(s *scene) { s.daemon.outcomes = broken() }, []string{"check", "/etc/apparmor.d/myagent"}, 1},
		{"check-broken-terminal", func(s *scene) { s.daemon.outcomes = broken(); s.StdoutTTY = true }, []string{"check", "/etc/apparmor.d/myagent"}, 1},
		{"check-broken-ascii", func(s *scene) { s.daemon.outcomes = broken(); s.StdoutTTY = true; s.env["LC_ALL"] = "C" }, []string{"check", "/etc/apparmor.d/myagent"}, 1},
		{"check-broken-json", func(s *scene) { s.daemon.outcomes = broken()[1:2] }, []string{"check", "/etc/apparmor.d/comma", "--json"}, 1},
		{"check-broken-sarif", func(s *scene) { s.daemon.outcomes = broken() }, []string{"check", "/etc/apparmor.d/myagent", "--sarif"}, 1},
		{"check-kernel", func(s *scene) {
			s.daemon.outcomes = []attach.Outcome{
				{Unit: "/srv/a", Profile: "a", File: "/srv/a", Questioned: []attach.Questioned{{File: "/srv/a", NotAsked: "there is no aaunitd here"}}},
				{Unit: "b.service", Exit: attach.ExitUnknown, Reasons: []attach.Reason{attach.Because(attach.SystemdUnheard, "nothing is known of unit b.service: systemd does not run here")}},
			}
		}, []string{"check", "/srv/a", "b.service"}, 5},
		{"check-findings-json", func(s *scene) { s.daemon.outcomes = found() }, []string{"check", "/etc/apparmor.d/agent", "--json"}, 3},
		{"check-findings", func(s *scene) { s.daemon.outcomes = found() }, []string{"check", "/etc/apparmor.d/agent"}, 3},
		{"check-noted", func(s *scene) {
			s.daemon.outcomes = found()
			s.daemon.outcomes[0].Exit, s.daemon.outcomes[0].Findings = 0, s.daemon.outcomes[0].Findings[2:]
		}, []string{"check", "/etc/apparmor.d/agent"}, 0},
		{"check-not-asked", func(s *scene) { s.daemon.outcomes = notAsked() }, []string{"check", "/etc/apparmor.d/agent"}, 0},
		{"attach-not-asked", func(s *scene) { s.daemon.outcomes = notAsked() }, []string{"attach", "agent"}, 0},
		{"check-findings-sarif", func(s *scene) { s.daemon.outcomes = found() }, []string{"check", "/etc/apparmor.d/agent", "--sarif"}, 3},
		{"check-none", func(*scene) {}, []string{"check"}, 0},
		{"check-none-json", func(*scene) {}, []string{"check", "--json"}, 0},
		{"check-none-sarif", func(*scene) {}, []string{"check", "--sarif"}, 0},
		{"query", func(s *scene) { s.daemon.queried = answered()[:2] }, []string{"query", "agent", "other", "write /tmp/**"}, 3},
		{"query-all", func(s *scene) { s.daemon.queried = answered() }, []string{"query", "--all", "write /tmp/**"}, 3},
		{"query-json", func(s *scene) { s.daemon.queried = answered()[1:2] }, []string{"query", "other", "write /tmp/**", "--json"}, 0},
		{"query-loaded", func(s *scene) {
			s.daemon.queried = answered()[:2]
			s.daemon.queried[0].Loaded = &attach.LiveProfile{Name: "agent", Mode: attach.ModeEnforce, Checksum: "sha256:21df98aa"}
			s.daemon.queried[1].Loaded = &attach.LiveProfile{Name: "other", Mode: attach.ModeEnforce}
		}, []string{"query", "--loaded", "--all", "write /tmp/**"}, 3},
		{"query-unknown", func(s *scene) { s.daemon.queried = answered()[2:3] }, []string{"query", "third", "write /tmp/**"}, 5},
		{"query-nothing", func(*scene) {}, []string{"query", "--all", "write /tmp/**"}, 5},
		{"query-nothing-base", func(s *scene) { s.Exists = func(string) bool { return true } }, []string{"query", "--all", "--base", "/etc", "write /tmp/**"}, 5},
		{"query-nothing-loaded", func(*scene) {}, []string{"query", "--all", "--loaded", "write /tmp/**"}, 5},
		{"query-unread", func(s *scene) {
			s.daemon.queried = []attach.QueryResult{{Profile: "/etc/apparmor.d/odd", File: "/etc/apparmor.d/odd", May: attach.MayUnknown, Text: "cannot be asked: cannot read it"}}
		}, []string{"query", "--all", "write /tmp/**"}, 5},
		{"explain-broken", func(s *scene) {
			s.daemon.report.Units = []attach.Status{{Unit: "web.service", Profile: "web", Attachment: "x", Refused: broken()[0].Reasons}}
		}, []string{"explain", "web"}, 3},
		{"status", func(s *scene) { s.daemon.report = mixedReport() }, []string{"status"}, 1},
		{"status-public", func(s *scene) {
			s.daemon.report = mixedReport()
			s.daemon.report.Units = s.daemon.report.Units[1:2]
			for i, r := range s.daemon.report.Units[0].Verdict.Reasons {
				s.daemon.report.Units[0].Verdict.Reasons[i] = attach.Reason{Code: r.Code, Detail: r.Code.Title()}
			}
			s.daemon.report.Missing, s.daemon.report.Problems = nil, nil
			s.Root = false
		}, []string{"status", "b"}, 3},
		{"patterns-in-place", func(s *scene) {
			s.daemon.report = patternsReport()
			s.daemon.report.Patterns = s.daemon.report.Patterns[:2]
		}, []string{"verify"}, 0},
		{"patterns-fresh", func(s *scene) {
			s.daemon.report = patternsReport()
			s.daemon.report.Patterns = s.daemon.report.Patterns[:3]
		}, []string{"status"}, 5},
		{"patterns-verify", func(s *scene) { s.daemon.report = patternsReport() }, []string{"verify"}, 3},
		{"patterns-list", func(s *scene) { s.daemon.report = patternsReport() }, []string{"list"}, 3},
		{"patterns-explain", func(s *scene) { s.daemon.report = patternsReport() }, []string{"explain", "agent@.service"}, 3},
		{"status-none", func(*scene) {}, []string{"status"}, 0},
		{"status-off", func(s *scene) { s.daemon.report.Host = attach.Host{Enabled: attach.No} }, []string{"status"}, 3},
		{"status-unreadable", func(s *scene) {
			s.daemon.report.Host = attach.Host{Problem: "open /sys/module/apparmor/parameters/enabled: permission denied"}
		}, []string{"status"}, 5},
		{"status-complain", func(s *scene) {
			s.daemon.report.Host = attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeComplain, BootService: attach.No}
		}, []string{"status"}, 3},
		{"status-json", func(s *scene) { s.daemon.report = mixedReport() }, []string{"status", "--json"}, 1},
		{"verify", func(s *scene) {
			s.daemon.report = mixedReport()
			s.daemon.report.Units, s.daemon.report.Missing, s.daemon.report.Problems = s.daemon.report.Units[:1], nil, nil
			s.daemon.report.Patterns = nil
		}, []string{"verify", "--all"}, 0},
		{"evidence", func(s *scene) { s.daemon.evidence = evidenceReport() }, []string{"verify", "--evidence"}, 3},
		{"evidence-ascii", func(s *scene) { s.daemon.evidence = evidenceReport(); s.env["LC_ALL"] = "C" }, []string{"verify", "--evidence", "--all"}, 3},
		{"evidence-holds", func(s *scene) {
			s.daemon.evidence = evidenceReport()
			s.daemon.evidence.Units, s.daemon.evidence.Missing = s.daemon.evidence.Units[:1], nil
		}, []string{"verify", "--evidence", "myagent"}, 0},
		{"evidence-json", func(s *scene) {
			s.daemon.evidence = evidenceReport()
			s.daemon.evidence.Units, s.daemon.evidence.Missing = s.daemon.evidence.Units[1:2], nil
		}, []string{"verify", "--evidence", "b", "--json"}, 3},
		{"evidence-pattern", func(*scene) {}, []string{"verify", "--evidence", "agent@.service"}, 5},
		{"evidence-none", func(*scene) {}, []string{"verify", "--evidence"}, 0},
		{"help-verify", func(*scene) {}, []string{"verify", "--help"}, 0},
		{"list", func(s *scene) {
			s.daemon.report = mixedReport()
			s.daemon.report.Problems = nil
			wide := confined("x")
			s.daemon.report.Units = append(s.daemon.report.Units,
				attach.Status{Unit: "agent@\u6771\u4eac.service", Profile: "日本語 e\u0301", Attachment: "x", ActiveState: "active", Verdict: wide},
				attach.Status{Unit: "evil\x1b]0;pwn\a\u202e.service", Profile: "two\nlines \x9b31m", Attachment: "x", ActiveState: "active", Verdict: wide})
		}, []string{"list"}, 3},
		{"list-profiles", func(s *scene) {
			s.daemon.profiles = []attach.Profile{
				{Name: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent", Line: 4, Attachment: "/usr/local/bin/myagent"},
				{Name: "My Agent", File: "/etc/apparmor.d/spaces", Line: 12, Flags: []string{"complain", "attach_disconnected"}, DisabledBy: "/etc/apparmor.d/disable/spaces"},
			}
		}, []string{"list", "--profiles"}, 0},
		{"list-profiles-unread", func(s *scene) {
			s.daemon.profiles = []attach.Profile{{Name: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent", Line: 4}}
			s.daemon.problems = []attach.Reason{attach.Because(attach.ProfileUnreadable, "cannot read profile file /etc/apparmor.d/odd: the link leads to nothing").At("/etc/apparmor.d/odd")}
		}, []string{"list", "--profiles"}, 5},
		{"list-profiles-unread-json", func(s *scene) {
			s.daemon.problems = []attach.Reason{attach.Because(attach.ProfileUnreadable, "cannot read profile file /etc/apparmor.d/odd: the link leads to nothing").At("/etc/apparmor.d/odd")}
		}, []string{"list", "--profiles", "--json"}, 5},
		{"explain-unit", func(s *scene) { s.daemon.report = mixedReport() }, []string{"explain", "a", "b", "c", "d", "nope", "ssh"}, 3},
		{"explain-refused", func(s *scene) {
			s.daemon.report.Units = []attach.Status{{Unit: "web.service", Profile: "web", Attachment: "x", Refused: refused().Reasons}}
			s.StdoutTTY = true
			s.env["NO_COLOR"] = "1"
		}, []string{"explain", "web"}, 3},
		{"explain-code", func(*scene) {}, []string{"explain", "aa-exec", "restart-drags-along"}, 0},
		{"explain-json", func(s *scene) {
			s.daemon.report = mixedReport()
			s.daemon.report.Units, s.daemon.report.Missing = s.daemon.report.Units[1:2], nil
			s.daemon.report.Patterns = s.daemon.report.Patterns[:1]
		}, []string{"explain", "b", "--json"}, 3},
		{"help", func(*scene) {}, []string{"--help"}, 0},
		{"help", func(*scene) {}, []string{"help"}, 0},
		{"help-verify", func(*scene) {}, []string{"help", "verify"}, 0},
		{"help-attach", func(*scene) {}, []string{"attach", "--help"}, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene()
			tc.set(s)
			if exit := s.run(tc.args...); exit != tc.exit {
				t.Errorf("exit status %d, want %d; stderr %q", exit, tc.exit, s.err.String())
			}
			golden(t, tc.name, s.out.String())
			if s.err.Len() > 0 {
				t.Errorf("on stderr: %q", s.err.String())
			}
			for _, r := range s.out.String() {
				if (r < 0x20 && r != '\n' && !(r == 0x1b && s.StdoutTTY)) || (r >= 0x7f && r < 0xa0) || r == '\u202e' {
					t.Errorf("the output holds %U", r)
				}
				if r > 0x7e && s.env["LC_ALL"] == "C" {
					t.Errorf("the output holds %q in a locale without it", r)
				}
			}
		})
	}
}

func TestExplainListsEveryCode(t *testing.T) {
	s := newScene()
	if exit := s.run("explain"); exit != 0 || s.dialed != "" {
		t.Errorf("exit status %d, dialed %q", exit, s.dialed)
	}
	for _, e := range attach.Catalogue() {
		if !strings.Contains(s.out.String(), "\n"+string(e.Code)+" ") || !strings.Contains(s.out.String(), e.Title+"\n") {
			t.Errorf("%s is not listed", e.Code)
		}
	}
}

func TestErrors(t *testing.T) {
	dial := func(err error) func(*scene) {
		return func(s *scene) { s.Dial = func(context.Context, bool, bool) (Daemon, error) { return nil, err } }
	}
	for _, tc := range []struct {
		name string
		set  func(*scene)
		args []string
		exit attach.Exit
		kind string
		want string // in the message
	}{
		{"no command", nil, nil, 2, "usage", "name a command"},
		{"a question that is none", nil, []string{"query", "agent", "fly /tmp"}, 2, "usage", `"fly" is no access to a file`},
		{"a question about nothing", nil, []string{"query", "write /tmp/**"}, 2, "usage", "name a profile and, in quotes, a question"},
		{"unknown command", nil, []string{"atach"}, 2, "usage", "did you mean attach or detach?"},
		{"help on an unknown command", nil, []string{"help", "atach"}, 2, "usage", "did you mean attach or detach?"},
		{"help on an unknown command below", nil, []string{"help", "sockopts", "nosuch"}, 2, "usage", `sockopts has no command "nosuch"`},
		{"unknown flag", nil, []string{"attach", "--frob"}, 2, "usage", "--frob"},
		{"unknown global flag", nil, []string{"--frob"}, 2, "usage", "--frob"},
		{"an empty profile", nil, []string{"attach", "a", "--profile="}, 2, "usage", "--profile is empty: give a PROFILE, or leave the option out"},
		{"an empty time", nil, []string{"denials", "--since", ""}, 2, "usage", "--since is empty: give a TIME"},
		{"an empty file name", nil, []string{"metrics", "--textfile", ""}, 2, "usage", "--textfile is empty: give a FILE"},
		{"an empty directory", nil, []string{"status", "--root="}, 2, "usage", "--root is empty: give a DIR"},
		{"no unit", nil, []string{"attach"}, 2, "usage", "name at least one unit"},
		{"empty unit", nil, []string{"status", ""}, 2, "usage", "empty"},
		{"wait and no-wait", nil, []string{"attach", "a", "--wait", "--no-wait"}, 2, "usage", "do not go together"},
		{"dry-run and no-wait", nil, []string{"detach", "a", "--dry-run", "--no-wait"}, 2, "usage", "do not go together"},
		{"a pause of no time", nil, []string{"pause", "a", "--for", "0"}, 2, "usage", "more than 0"},
		{"a pause without a unit of time", nil, []string{"pause", "a", "--for", "1x"}, 2, "usage", "such as 90s, 30min, 2h or 1d"},
		{"an unreadable time to settle", nil, []string{"attach", "a", "--settle", "soon"}, 2, "usage", "a number with ms, s or min"},
		{"too long a time to settle", nil, []string{"attach", "a", "--settle", "1h"}, 2, "usage", "between 0 and 10m"},
		{"a pause too long", nil, []string{"pause", "a", "--for", "8d"}, 2, "usage", "at most 7 days"},
		{"a pause of nothing", nil, []string{"pause"}, 2, "usage", "name at least one unit"},
		{"all and names", nil, []string{"verify", "a", "--all"}, 2, "usage", "--all"},
		{"unknown shell", nil, []string{"completion", "tcsh"}, 2, "usage", "tcsh"},
		{"arguments to list", nil, []string{"list", "a"}, 2, "usage", ""},
		{"no bus", dial(fmt.Errorf("%w: dial failed", api.ErrNoBus)), []string{"list"}, 1, "no-bus", "cannot reach the system bus"},
		{"no daemon", dial(fmt.Errorf("%w: it is not installed", api.ErrNoDaemon)), []string{"status"}, 1, "no-daemon", "not installed"},
		{"denied", func(s *scene) { s.daemon.err = fmt.Errorf("%w: run it as root", api.ErrDenied) }, []string{"attach", "a"}, 1, "denied", "run it as root"},
		{"bad arguments", func(s *scene) { s.daemon.err = fmt.Errorf("%w: too many", api.ErrBad) }, []string{"attach", "a"}, 2, "usage", "too many"},
		{"daemon gone", func(s *scene) { s.daemon.err = fmt.Errorf("%w: oh", api.ErrGone) }, []string{"verify"}, 1, "daemon-ended", "ended"},
		{"nothing matches", nil, []string{"attach", "x*"}, 4, "no-unit", "no unit matches"},
		{"several lines", func(s *scene) { s.daemon.err = errors.New("one\n\x1b[31mtwo") }, []string{"plan", "a"}, 1, "failed", "one\n\x1b[31mtwo"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene()
			if tc.set != nil {
				tc.set(s)
			}
			if exit := s.run(append(tc.args, "--json")...); exit != tc.exit {
				t.Errorf("exit status %d, want %d", exit, tc.exit)
			}
			if !strings.HasPrefix(s.err.String(), "aaunitctl: ") || strings.ContainsRune(s.err.String(), 0x1b) {
				t.Errorf("stderr: %q", s.err.String())
			}
			if tc.exit == 2 != strings.Contains(s.err.String(), "--help") {
				t.Errorf("stderr: %q", s.err.String())
			}
			var doc map[string]problem
			err := json.Unmarshal(s.out.Bytes(), &doc)
			switch got := doc["error"]; {
			case tc.name == "unknown flag" || tc.name == "unknown global flag":
				// --json comes after what could not be understood.
			case err != nil:
				t.Errorf("stdout: %q: %v", s.out.String(), err)
			case got.Kind != tc.kind || got.Exit != tc.exit || !strings.Contains(got.Message, tc.want):
				t.Errorf("error %+v", got)
			}
		})
	}
}

func TestStatusWithoutADaemon(t *testing.T) {
	for _, tc := range []struct {
		name string
		file []byte
		err  error
		exit attach.Exit
		want string
	}{
		{"off", []byte("N\n"), nil, 3, "AppArmor is off"},
		{"no module", nil, fs.ErrNotExist, 3, "AppArmor is off"},
		{"on", []byte("Y\n"), nil, 1, ""},
		{"unreadable", nil, fs.ErrPermission, 1, ""},
	} {
		for _, cmd := range []string{"status", "verify"} {
			t.Run(tc.name+" "+cmd, func(t *testing.T) {
				s := newScene()
				s.Dial = func(context.Context, bool, bool) (Daemon, error) { return nil, api.ErrNoDaemon }
				s.ReadFile = func(string) ([]byte, error) { return tc.file, tc.err }
				if exit := s.run(cmd); exit != tc.exit {
					t.Errorf("exit status %d, want %d", exit, tc.exit)
				}
				if !strings.Contains(s.out.String(), tc.want) {
					t.Errorf("stdout: %q", s.out.String())
				}
				if (s.err.Len() > 0) != (tc.exit == 1) {
					t.Errorf("stderr: %q", s.err.String())
				}
			})
		}
	}
}

func TestExitStatuses(t *testing.T) {
	report := func(codes ...attach.Status) attach.Report { return attach.Report{Host: hostOn, Units: codes} }
	unknown := attach.Status{Unit: "u", Verdict: &attach.Verdict{Answer: attach.Unknown}}
	none := attach.Status{Unit: "u"}
	zero := attach.Status{Unit: "u", Verdict: &attach.Verdict{}}
	good := attach.Status{Unit: "u", Verdict: confined("u")}
	held := good
	held.Held = &attach.Hold{}
	undone := good
	undone.Held = &attach.Hold{Texts: map[string]string{"/etc/apparmor.d/u": "x"}}
	for name, tc := range map[string]struct {
		r     attach.Report
		named bool
		want  attach.Exit
	}{
		"confined":               {report(good), false, 0},
		"unknown":                {report(good, unknown), false, 5},
		"no verdict":             {report(none), false, 5},
		"the zero verdict":       {report(zero), false, 5},
		"held":                   {report(held), false, 3},
		"a text held":            {report(undone), false, 0},
		"not attached":           {attach.Report{Host: hostOn, Missing: []attach.Missing{{Reason: attach.Reason{Code: attach.Detached}}}}, true, 3},
		"no such unit":           {attach.Report{Host: hostOn, Missing: []attach.Missing{{Reason: attach.Reason{Code: attach.UnitNotFound}}}}, true, 4},
		"nothing known of host":  {attach.Report{}, false, 5},
		"off":                    {attach.Report{Host: attach.Host{Enabled: attach.No}}, false, 3},
		"bad file":               {attach.Report{Host: hostOn, Problems: []attach.Reason{{}}}, false, 1},
		"bad file, another unit": {attach.Report{Host: hostOn, Problems: []attach.Reason{{}}, Units: []attach.Status{good}}, true, 0},
	} {
		if got := attach.ExitOfReport(tc.r, tc.named); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
	for _, e := range []attach.Exit{-1, 6, 99} {
		if got := exits(attach.ExitOK, e); got != attach.ExitFailed {
			t.Errorf("status %d of a newer daemon: %d", e, got)
		}
	}
}

func TestEvidenceExitStatuses(t *testing.T) {
	status := func(links ...attach.EvidenceLink) attach.EvidenceStatus {
		return attach.ConcludeEvidence(attach.EvidenceStatus{Unit: "u", Newest: &attach.EvidenceHead{Number: 1}, Links: links})
	}
	yes, no, unknown := attach.EvidenceLink{Holds: attach.Yes}, attach.EvidenceLink{Holds: attach.No}, attach.EvidenceLink{}
	unproved := status(yes)
	unproved.Newest = nil
	for name, tc := range map[string]struct {
		r    attach.EvidenceReport
		want attach.Exit
	}{
		"all holds":       {attach.EvidenceReport{Units: []attach.EvidenceStatus{status(yes, yes)}}, 0},
		"one does not":    {attach.EvidenceReport{Units: []attach.EvidenceStatus{status(yes), status(unknown, no)}}, 3},
		"one is not told": {attach.EvidenceReport{Units: []attach.EvidenceStatus{status(yes), status(yes, unknown)}}, 5},
		"no links":        {attach.EvidenceReport{Units: []attach.EvidenceStatus{status()}}, 5},
		"no record":       {attach.EvidenceReport{Units: []attach.EvidenceStatus{unproved}}, 5},
		"the zero status": {attach.EvidenceReport{Units: []attach.EvidenceStatus{{}}}, 5},
		"odd exit":        {attach.EvidenceReport{Units: []attach.EvidenceStatus{{Exit: 99}}}, 1},
		"no such unit":    {attach.EvidenceReport{Missing: []attach.Missing{{Reason: attach.Reason{Code: attach.UnitNotFound}}}}, 4},
		"not attached":    {attach.EvidenceReport{Missing: []attach.Missing{{Reason: attach.Reason{Code: attach.NotAttached}}}}, 3},
	} {
		if got := evidenceExit(tc.r); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

func span(d time.Duration) *time.Duration { return &d }

func TestRequests(t *testing.T) {
	for _, tc := range []struct {
		args []string
		did  string
		want attach.Request
	}{
		{[]string{"attach", "a", "b*", "--profile", "p", "--runtime", "--complain", "--no-restart"}, "attach",
			attach.Request{Units: []string{"a", "b*"}, Profile: "p", Runtime: true, Complain: true, NoRestart: true}},
		{[]string{"attach", "a", "-p", "a//b"}, "attach", attach.Request{Units: []string{"a"}, Profile: "a//b"}},
		{[]string{"attach", "a", "-p", "/x/y"}, "attach", attach.Request{Units: []string{"a"}, Profile: "/x/y"}},
		{[]string{"attach", "a", "--dry-run"}, "plan", attach.Request{Units: []string{"a"}, DryRun: true}},
		{[]string{"attach", "a", "--wait=true"}, "attach", attach.Request{Units: []string{"a"}}},
		{[]string{"attach", "a", "--settle", "1min"}, "attach", attach.Request{Units: []string{"a"}, Settle: span(time.Minute)}},
		{[]string{"attach", "a", "--settle", "5"}, "attach", attach.Request{Units: []string{"a"}, Settle: span(5 * time.Second)}},
		{[]string{"attach", "a", "--settle", "5m", "--dry-run"}, "plan", attach.Request{Units: []string{"a"}, Settle: span(5 * time.Minute), DryRun: true}},
		{[]string{"attach", "a", "--no-wait"}, "start attach", attach.Request{Units: []string{"a"}}},
		{[]string{"attach", "a", "--wait=false"}, "start attach", attach.Request{Units: []string{"a"}}},
		{[]string{"detach", "a", "--no-restart"}, "detach", attach.Request{Units: []string{"a"}, NoRestart: true}},
		{[]string{"detach", "a", "--dry-run"}, "detach", attach.Request{Units: []string{"a"}, DryRun: true}},
		{[]string{"detach", "a", "--no-wait"}, "start detach", attach.Request{Units: []string{"a"}}},
		{[]string{"plan", "a", "--profile", "p"}, "plan", attach.Request{Units: []string{"a"}, Profile: "p"}},
	} {
		s := newScene()
		s.daemon.outcomes = []attach.Outcome{{Unit: "a.service"}}
		if exit := s.run(tc.args...); exit != 0 {
			t.Errorf("%q: exit status %d, %s", tc.args, exit, s.err.String())
		}
		if d := cmp.Diff(tc.want, s.daemon.request); d != "" || s.daemon.did != tc.did {
			t.Errorf("%q did %s, want %s (-want +got):\n%s", tc.args, s.daemon.did, tc.did, d)
		}
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	s := newScene()
	s.Exists = func(name string) bool { return name == "sub/there" }
	s.daemon.outcomes = []attach.Outcome{{Unit: "a.service"}}
	s.run("check", "a", "./x", "../y", "sub/there", "sub/not", "/z")
	want := []string{"a", filepath.Join(wd, "x"), filepath.Join(wd, "../y"), filepath.Join(wd, "sub/there"), "sub/not", "/z"}
	if d := cmp.Diff(want, s.daemon.names); d != "" {
		t.Errorf("check (-want +got):\n%s", d)
	}
}

func TestPasswordsAreAskedOnTerminalsOnly(t *testing.T) {
	for _, tc := range []struct {
		root, tty bool
		want      string
	}{
		{false, true, "interactive=true start=true"},
		{false, false, "interactive=false start=true"},
		{true, true, "interactive=false start=true"},
	} {
		s := newScene()
		s.Root, s.StderrTTY = tc.root, tc.tty
		s.run("list")
		if s.dialed != tc.want {
			t.Errorf("%+v: %s", tc, s.dialed)
		}
	}
}

func TestInterrupt(t *testing.T) {
	s := newScene()
	s.daemon.wait = make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if exit := Run(ctx, []string{"attach", "a"}, s.World); exit != 1 {
		t.Errorf("exit status %d", exit)
	}
	if want := "aaunitctl: interrupted: aaunitd goes on with the work; aaunitctl status shows how it ends\n"; s.err.String() != want {
		t.Errorf("stderr: %q", s.err.String())
	}
}

func TestProgressLine(t *testing.T) {
	s := newScene()
	s.StderrTTY = true
	s.Columns = func() int { return 40 }
	s.env["NO_COLOR"] = "1"
	o := attached()
	o.Events[1].Text = "\x1b[2Jcompiling a profile with a rather long name"
	s.daemon.outcomes = []attach.Outcome{o}
	if exit := s.run("attach", "a"); exit != 0 {
		t.Fatal(exit)
	}
	got := s.err.String()
	if !strings.HasPrefix(got, "\r\x1b[K") || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("the line does not go away: %q", got)
	}
	for _, l := range strings.Split(got, "\r\x1b[K") {
		if width(l) > 39 || strings.ContainsAny(l, "\x1b\n") {
			t.Errorf("line %q of %d columns", l, width(l))
		}
	}
	if s.env["TERM"] = "dumb"; s.run("attach", "a") != 0 || s.err.Len() != 0 {
		t.Errorf("on a dumb terminal: %q", s.err.String())
	}
}

func TestCompletion(t *testing.T) {
	complete := func(s *scene, args ...string) []string {
		s.run(append([]string{"__complete"}, args...)...)
		lines := strings.Split(strings.TrimSpace(s.out.String()), "\n")
		var out []string
		for _, l := range lines {
			if !strings.HasPrefix(l, ":") {
				name, _, _ := strings.Cut(l, "\t")
				out = append(out, name)
			}
		}
		return out
	}
	s := newScene()
	s.daemon.report = mixedReport()
	s.daemon.report.Units[1].Paused = &pause
	s.daemon.profiles = []attach.Profile{{Name: "agent"}, {Name: "two words"}, {Name: "other"}}
	for _, tc := range []struct {
		args []string
		want []string
	}{
		{[]string{"attach", ""}, []string{"myagent.service", "other.service"}},
		{[]string{"attach", "my"}, []string{"myagent.service"}},
		{[]string{"attach", "other.service", ""}, []string{"myagent.service"}},
		{[]string{"attach", "--profile", "a"}, []string{"agent"}},
		{[]string{"detach", ""}, []string{"a.service", "b.service", "c.service", "d.service", "e.service"}},
		{[]string{"status", "b"}, []string{"b.service"}},
		{[]string{"pause", ""}, []string{"a.service", "agent@.service", "b.service", "c.service", "d.service", "e.service", "web-.service"}},
		{[]string{"resume", ""}, []string{"b.service"}},
		{[]string{"verify", "c"}, []string{"c.service"}},
		{[]string{"explain", "b"}, []string{"b.service", "boot-service-disabled"}},
		{[]string{"check", "o"}, []string{"other.service"}},
		{[]string{"completion", ""}, []string{"bash", "zsh", "fish"}},
	} {
		got := complete(s, tc.args...)
		if d := cmp.Diff(tc.want, got); d != "" {
			t.Errorf("%q (-want +got):\n%s", tc.args, d)
		}
	}
	if !strings.Contains(s.dialed, "interactive=false start=false") {
		t.Errorf("completion dialed %s", s.dialed)
	}
	s.Dial = func(context.Context, bool, bool) (Daemon, error) { return nil, api.ErrNoDaemon }
	s.Services = func(context.Context) ([]string, error) { return nil, api.ErrNoBus }
	for _, args := range [][]string{{"attach", ""}, {"detach", ""}, {"attach", "--profile", ""}} {
		if got := complete(s, args...); len(slices.DeleteFunc(got, func(s string) bool { return s == "" })) != 0 {
			t.Errorf("%q without a bus: %q", args, got)
		}
		if strings.Contains(s.err.String(), "cannot") {
			t.Errorf("%q without a bus says %q", args, s.err.String())
		}
	}
	for _, shell := range []string{"bash", "zsh", "fish"} {
		s := newScene()
		if s.run("completion", shell) != 0 || !strings.Contains(s.out.String(), "aaunitctl") {
			t.Errorf("completion %s: %s", shell, s.err.String())
		}
	}
}

func TestTextForTerminals(t *testing.T) {
	for _, tc := range []struct {
		in, fancy, ascii string
	}{
		{"plain", "plain", "plain"},
		{"a\x1b[31mb", `a\x1b[31mb`, `a\x1b[31mb`},
		{"a\u009b31mb", `a\u009b31mb`, `a\u009b31mb`},
		{"a\xffb", `a\xffb`, `a\xffb`},
		{"a\nb\tc\r", `a\nb c\x0d`, `a\nb c\x0d`},
		{"\u202eabc", `\u202eabc`, `\u202eabc`},
		{"9f2c…", "9f2c…", "9f2c..."},
		{"日本", "日本", `\u65e5\u672c`},
		{"\U0001f600", "\U0001f600", `\U0001f600`},
	} {
		if got := (style{unicode: true}).text(tc.in); got != tc.fancy {
			t.Errorf("%q: %q, want %q", tc.in, got, tc.fancy)
		}
		if got := (style{}).text(tc.in); got != tc.ascii {
			t.Errorf("%q in ASCII: %q, want %q", tc.in, got, tc.ascii)
		}
	}
	for in, want := range map[string]int{"abc": 3, "日本": 4, "e\u0301": 1, "": 0, "ｗ": 2} {
		if got := width(in); got != want {
			t.Errorf("width of %q: %d, want %d", in, got, want)
		}
	}
}

func FuzzText(f *testing.F) {
	f.Add("a\x1b[31m\u202e日本\xff")
	f.Fuzz(func(t *testing.T, in string) {
		for _, s := range []style{{}, {unicode: true}} {
			for _, r := range s.text(in) {
				if r < 0x20 || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e || !s.unicode && r > 0x7e {
					t.Errorf("%q gives %U", in, r)
				}
			}
		}
	})
}
