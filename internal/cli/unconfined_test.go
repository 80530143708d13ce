package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

var exposed = attach.ExposureReport{Host: hostOn, At: now, Looked: 21, Quiet: 6, Confined: 11, Services: []attach.Exposure{
	{Unit: "ssh.service", Class: attach.ExposedNetwork, Running: attach.Yes, Root: attach.Yes, UIDs: []int{0}, Capabilities: []string{"sys_admin", "sys_ptrace"}, Program: "/usr/sbin/sshd",
		Labels: []string{"unconfined"}, Processes: 1, Listening: []attach.Listening{
			{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Reach: attach.ReachNetwork}, {Protocol: "tcp6", Address: "::", Port: 22, Reach: attach.ReachNetwork},
			{Protocol: "unix", Address: "/run/\x1b[31mssh", Reach: attach.ReachUnix}, {Protocol: "unix", Address: "@x", Reach: attach.ReachUnix}},
		Next: []string{"aa-autodep /usr/sbin/sshd", "aaunitctl attach --complain --profile /usr/sbin/sshd ssh.service", "aaunitctl denials ssh.service"}},
	{Unit: `agent\x2done.service`, Class: attach.ExposedNetwork, Running: attach.Yes, Root: attach.No, User: "agent", UIDs: []int{990}, Labels: []string{"agent (complain)"}, Processes: 2,
		Capabilities: []string{"net_admin", "net_raw", "sys_time"}, Listening: []attach.Listening{{Protocol: "udp", Address: "10.0.0.7", Port: 5353, Reach: attach.ReachNetwork, OwnNetwork: true}},
		Profile: "agent", Next: []string{`aaunitctl plan 'agent\x2done.service'`, `aaunitctl attach 'agent\x2done.service'`}},
	{Unit: "odd.service", Class: attach.ExposedUnknown, Running: attach.Yes, Root: attach.CouldNotTell, Labels: []string{"could not be read"}, Listening: []attach.Listening{},
		Unknown: []string{"process 7: its label could not be read: permission denied"}, Next: []string{"aaunitctl plan odd.service"}},
	{Unit: "on-demand.service", Class: attach.ExposedLocal, Running: attach.No, Root: attach.CouldNotTell, Labels: []string{}, Program: "/usr/sbin/od",
		Listening: []attach.Listening{{Protocol: "unix", Address: "/run/od", Reach: attach.ReachUnix, By: "on-demand.socket"}},
		Next:      []string{"aa-autodep /usr/sbin/od", "aaunitctl attach --complain --profile /usr/sbin/od on-demand.service", "aaunitctl denials on-demand.service"}},
}, Unknown: []string{"cannot tell where odd.socket listens: no answer"}}

func TestListUnconfined(t *testing.T) {
	s := newScene()
	s.daemon.exposed = exposed
	if exit := s.run("list", "--unconfined"); exit != attach.ExitNotConfined {
		t.Errorf("exit %d", exit)
	}
	golden(t, "unconfined", s.out.String())
	s.StdoutTTY = true
	s.run("list", "--unconfined")
	golden(t, "unconfined-terminal", s.out.String())
	s.StdoutTTY = false
	s.run("list", "--unconfined", "--json")
	golden(t, "unconfined-json", s.out.String())

	for name, tc := range map[string]struct {
		r    attach.ExposureReport
		want attach.Exit
	}{
		"none":              {attach.ExposureReport{Host: hostOn, Looked: 3, Confined: 3}, attach.ExitOK},
		"nobody could look": {attach.ExposureReport{Host: hostOn, Unknown: []string{"x"}}, attach.ExitUnknown},
		"AppArmor off":      {attach.ExposureReport{Host: attach.Host{Enabled: attach.No}}, attach.ExitNotConfined},
	} {
		s.daemon.exposed = tc.r
		if got := s.run("list", "--unconfined"); got != tc.want {
			t.Errorf("%s: exit %d, want %d", name, got, tc.want)
		}
	}
	if got := s.run("list", "--unconfined", "--profiles"); got != attach.ExitUsage {
		t.Errorf("both: exit %d", got)
	}
}

// A shell runs every step of what is shown, with the statuses that they exit with where
// all goes well.
func TestAllStepsOfALineRun(t *testing.T) {
	bin := t.TempDir()
	for name, text := range map[string]string{
		"aa-autodep": "echo", "aaunitctl": `echo; case "$1 $2" in "attach --complain") exit 3; esac`,
	} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, e := range map[string]attach.Exposure{
		"a first profile":    {Unit: `agent\x2done.service`, Program: "/usr/bin/agent"},
		"a profile there is": {Unit: "agent.service", Program: "/usr/bin/agent", Profile: "agent"},
	} {
		e.Begin(e.Profile)
		cmd := exec.Command("/bin/sh", "-c", inOneLine(e.Next))
		cmd.Env = []string{"PATH=" + bin}
		out, err := cmd.CombinedOutput()
		if ran := strings.Count(string(out), "\n"); err != nil || ran != len(e.Next) {
			t.Errorf("%s: %v, %d of %d steps run: %s\n%s", name, err, ran, len(e.Next), inOneLine(e.Next), out)
		}
	}
}
