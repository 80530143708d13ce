package cli

import (
	"os"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestApplyNamesFiles(t *testing.T) {
	for arg, want := range map[string]string{
		"agents":                             "/etc/aaunit/attachments.d/agents.conf",
		"agents.conf":                        "/etc/aaunit/attachments.d/agents.conf",
		"/run/aaunit/attachments.d/web.conf": "/run/aaunit/attachments.d/web.conf",
	} {
		s := newScene()
		s.daemon.outcomes = []attach.Outcome{attached()}
		if exit := s.run("apply", arg); exit != attach.ExitOK || s.daemon.did != "apply" || s.daemon.request.Units[0] != want {
			t.Errorf("%s: exit %d, %s of %q", arg, exit, s.daemon.did, s.daemon.request.Units)
		}
	}
	s := newScene()
	s.daemon.outcomes = []attach.Outcome{attached(), {Unit: "/etc/aaunit/attachments.d/old.conf",
		Notes: []attach.Reason{attach.Because(attach.NotAttached, "no unit is attached by /etc/aaunit/attachments.d/old.conf")}}}
	s.run("apply", "agents", "old")
	golden(t, "apply", s.out.String())
	if exit := s.run("apply"); exit != attach.ExitUsage {
		t.Errorf("apply of nothing: exit %d", exit)
	}
}

func TestProposeTakesATextFromAFileOrStandardInput(t *testing.T) {
	s := newScene()
	s.daemon.outcomes = []attach.Outcome{planned()}
	s.Stdin = strings.NewReader("[Attachment]\n")
	s.ReadFile = func(name string) ([]byte, error) {
		if name != "new.conf" {
			return nil, os.ErrNotExist
		}
		return []byte("Unit=a.service\n"), nil
	}
	for _, tc := range []struct {
		args []string
		exit attach.Exit
		did  string
	}{
		{[]string{"propose", "agents"}, attach.ExitOK, "propose [Attachment]\n"},
		{[]string{"propose", "agents", "-"}, attach.ExitFailed, ""}, // which is read to its end
		{[]string{"propose", "agents", "new.conf"}, attach.ExitOK, "propose Unit=a.service\n"},
		{[]string{"propose", "agents", "missing.conf"}, attach.ExitFailed, ""},
		{[]string{"propose", "agents", "--gone"}, attach.ExitOK, "propose "},
		{[]string{"propose", "/etc/apparmor.d/a", "new.conf", "--with", "agents=new.conf", "--with", "old="}, attach.ExitOK, "propose Unit=a.service\n Unit=a.service\n "},
		{[]string{"propose", "agents", "--gone", "--with", "/etc/apparmor.d/a=new.conf"}, attach.ExitOK, "propose  Unit=a.service\n"},
		{[]string{"propose", "agents", "new.conf", "--with", "agents.conf=new.conf"}, attach.ExitUsage, ""},
		{[]string{"propose", "agents", "new.conf", "--with", "/etc/apparmor.d/a="}, attach.ExitUsage, ""},
		{[]string{"propose", "agents", "new.conf", "--with", "other"}, attach.ExitUsage, ""},
		{[]string{"propose", "agents", "new.conf", "--with", "other=-"}, attach.ExitUsage, ""},
		{[]string{"propose", "agents", "new.conf", "--with", "other=missing.conf"}, attach.ExitFailed, ""},
		{[]string{"propose", "agents", "new.conf", "--gone"}, attach.ExitUsage, ""},
		{[]string{"propose", "/etc/apparmor.d/a", "--gone"}, attach.ExitUsage, ""},
		{[]string{"propose", "a", "b", "c"}, attach.ExitUsage, ""},
		{[]string{"propose"}, attach.ExitUsage, ""},
	} {
		s.daemon.did = ""
		if exit := s.run(tc.args...); exit != tc.exit || s.daemon.did != tc.did {
			t.Errorf("%q: exit %d, did %q: %s", tc.args, exit, s.daemon.did, s.err.String())
		}
	}
	s.ReadFile = func(string) ([]byte, error) { return []byte(strings.Repeat("#", maxProposal)), nil }
	s.Stdin = strings.NewReader("#")
	if exit := s.run("propose", "agents", "--with", "other=large"); exit != attach.ExitFailed || !strings.Contains(s.err.String(), "together they are larger") {
		t.Errorf("large texts: exit %d: %s", exit, s.err.String())
	}
	s.Stdin = strings.NewReader(strings.Repeat("#", maxProposal+1))
	if exit := s.run("propose", "agents"); exit != attach.ExitFailed || !strings.Contains(s.err.String(), "larger than") {
		t.Errorf("a text without end: exit %d: %s", exit, s.err.String())
	}
}

func TestProposalsAreShown(t *testing.T) {
	s := newScene()
	s.Stdin = strings.NewReader("x")
	there := attach.Outcome{Unit: "web.service", Profile: "web", Exit: attach.ExitNotConfined, Plan: &attach.Plan{},
		Verdict: &attach.Verdict{Unit: "web.service", Answer: attach.NotConfined, Tasks: 1, Processes: 1,
			Reasons: []attach.Reason{attach.Because(attach.TaskUnconfined, "/usr/bin/web (PID 12) is unconfined")}}}
	s.daemon.outcomes = []attach.Outcome{planned(), there, {Unit: "/etc/apparmor.d/web", File: "/etc/apparmor.d/web", Profile: "web"}}
	if exit := s.run("propose", "web"); exit != attach.ExitNotConfined {
		t.Errorf("exit %d", exit)
	}
	golden(t, "propose", s.out.String())
}
