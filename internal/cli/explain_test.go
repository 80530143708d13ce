package cli

import (
	"encoding/json"
	"errors"
	"io/fs"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
)

// failedStart is a unit whose program ended with a status; zero is a handoff that
// never came.
func failedStart(status int, handoff time.Time) *attach.LastStart {
	s := attach.LastStartOf(attach.Unit{ID: "myagent.service", LoadState: "loaded", ActiveState: "failed", SubState: "failed", Result: "exit-code",
		Settings: attach.Settings{Profile: "myagent"}, HandoffTold: true, Handoff: handoff,
		Runs: []attach.Run{{Property: "ExecStart", Path: "/usr/local/bin/myagent", PID: 7, Code: 1, Status: status, Began: now.Add(-time.Minute), Ended: now.Add(-time.Minute)}}}, nil, attach.Hearing{})
	return &s
}

func idle(unit string) *attach.Status {
	return &attach.Status{Unit: unit, Profile: "myagent", ProfileFile: "/etc/apparmor.d/myagent", Attachment: "/etc/aaunit/attachments.d/x.conf", ActiveState: "failed",
		Verdict: &attach.Verdict{Unit: unit, Profile: "myagent", Answer: attach.Unknown, At: now,
			Reasons: []attach.Reason{attach.Because(attach.NotRunning, "%s is failed", unit)}}}
}

func TestExplainCases(t *testing.T) {
	running := &attach.LastStart{LoadState: "loaded", ActiveState: "active", Result: "success", Profile: "myagent"}
	good := &attach.Status{Unit: "a.service", Profile: "myagent", ProfileFile: "/etc/apparmor.d/myagent", Verdict: confined("a.service")}
	notAttached := attach.Because(attach.NotAttached, "no attachment names ssh.service").WithNext("aaunitctl attach ssh.service")
	denials := deniedReport().Units[0].Denials
	for _, tc := range []struct {
		name  string
		cases []attach.Case
		set   func(*scene)
		args  []string
		exit  attach.Exit
	}{
		{"explain-231", []attach.Case{{Unit: "myagent.service", Status: idle("myagent.service"), Start: failedStart(231, time.Time{})},
			{Unit: "own.service", Status: idle("own.service"), Start: failedStart(231, now.Add(-time.Minute))}}, nil, nil, 5},
		{"explain-denied", []attach.Case{{Unit: "a.service", Status: good, Start: running, Denials: denials, LeftOut: 4}}, func(s *scene) { s.StdoutTTY = true }, nil, 0},
		{"explain-public", []attach.Case{
			{Unit: "a.service", Status: good, Start: running, Hidden: "only root and members of group adm are told"},
			{Unit: "ssh.service", Missing: &notAttached, Start: running},
		}, func(s *scene) { s.Root = false; s.env["LC_ALL"] = "C" }, nil, 3},
		{"explain-begin", []attach.Case{
			{Unit: "ssh.service", Missing: &notAttached, Start: &attach.LastStart{ActiveState: "active"}, Plan: &attach.Outcome{Unit: "ssh.service", Profile: "sshd", File: "/etc/apparmor.d/usr.sbin.sshd"}},
			{Unit: "web.service", Missing: &notAttached, Start: running, Plan: &attach.Outcome{Unit: "web.service", Exit: attach.ExitFailed,
				Reasons: []attach.Reason{attach.Because(attach.ProfileNotFound, "no profile attaches to /usr/bin/web, and none is called web").WithNext("write one, then: aaunitctl attach web --profile NAME")}}},
		}, nil, nil, 3},
		{"explain-cases-json", []attach.Case{{Unit: "myagent.service", Status: idle("myagent.service"), Start: failedStart(231, time.Time{}), Denials: denials[:1]},
			{Unit: "ssh.service", Missing: &notAttached}}, nil, []string{"--json"}, 3},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newScene()
			s.daemon.cases = attach.CaseReport{Host: hostOn, Cases: tc.cases, Since: now.Add(-time.Hour), At: now}
			if tc.set != nil {
				tc.set(s)
			}
			if exit := s.run(append([]string{"explain", "a"}, tc.args...)...); exit != tc.exit || s.err.Len() > 0 {
				t.Errorf("exit status %d, want %d; %s", exit, tc.exit, s.err.String())
			}
			out := s.out.String()
			if strings.ContainsAny(out, "\a\u202e\u009b") || !s.StdoutTTY && strings.Contains(out, "\x1b") {
				t.Errorf("what a terminal obeys was printed: %q", out)
			}
			if len(tc.args) > 0 && !json.Valid([]byte(out)) {
				t.Error("no JSON")
			}
			golden(t, tc.name, out)
		})
	}
}

// Without a daemon, and with AppArmor off, that is the answer; else there is none.
func TestExplainWithoutADaemon(t *testing.T) {
	s := newScene()
	s.daemon.err = api.ErrNoDaemon
	if exit := s.run("explain", "a"); exit != attach.ExitFailed || s.out.Len() > 0 || !strings.Contains(s.err.String(), "aaunitd") {
		t.Errorf("exit status %d, %q", exit, s.err.String())
	}
	s.ReadFile = func(string) ([]byte, error) { return nil, fs.ErrNotExist }
	if exit := s.run("explain", "a"); exit != attach.ExitNotConfined || !strings.Contains(s.out.String(), "a: AppArmor is off.") || !strings.Contains(s.out.String(), "Next: cat /proc/cmdline") {
		t.Errorf("exit status %d\n%s", exit, s.out.String())
	}
	s.ReadFile = func(string) ([]byte, error) { return nil, errors.New("no") }
	if exit := s.run("explain", "a"); exit != attach.ExitFailed {
		t.Errorf("exit status %d", exit)
	}
}
