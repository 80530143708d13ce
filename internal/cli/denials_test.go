package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
)

// seen is a denial some minutes ago.
func seen(minutes int, d attach.Denial) attach.SeenDenial {
	d.Last = now.Add(-time.Duration(minutes) * time.Minute)
	d.First, d.Time = d.Last, d.Last
	if d.Count == 0 {
		d.Count = 1
	}
	if d.Profile == "" {
		d.Profile = "myagent"
	}
	return attach.Seen(d)
}

func deniedReport() attach.DenialReport {
	return attach.DenialReport{
		Host: hostOn, Began: now.Add(-time.Hour), At: now, Cursor: "5.9",
		Units: []attach.UnitDenials{
			{Unit: "myagent.service", Profile: "myagent", Denials: []attach.SeenDenial{
				seen(9, attach.Denial{Unit: "myagent.service", Count: 3, Operation: "open", Name: "/proc/sys/net/core/somaxconn", Requested: "r", Denied: "r", Comm: "agent"}),
				seen(8, attach.Denial{Unit: "myagent.service", Operation: "open", Name: "/var/lib/my agent/x", Requested: "wc", Denied: "wc", Comm: "agent", HasOwner: true}),
				seen(7, attach.Denial{Unit: "myagent.service", Operation: "exec", Name: "/usr/bin/id", Denied: "x", Comm: "sh", Allowed: true}),
				seen(7, attach.Denial{Unit: "myagent.service", Operation: "open", Name: "/etc/ld.so.cache", Denied: "r", Comm: "id", Allowed: true, Profile: "myagent//null-/usr/bin/id"}),
				seen(6, attach.Denial{Operation: "signal", Signal: "term", Denied: "receive", Peer: "unconfined", Comm: "kill", Candidates: []string{"a.service", "myagent.service"}, ByProfile: true}),
				seen(5, attach.Denial{Unit: "myagent.service", Operation: "capable", Capability: "net_admin", Comm: "agent", Killed: true}),
				seen(4, attach.Denial{Unit: "myagent.service", Operation: "change_profile", Name: "unconfined", Comm: "agent"}),
				seen(3, attach.Denial{Unit: "myagent.service", Operation: "open", Name: "/tmp/\x1b]0;x\a\x9b2J\n\u202eapparmor=\"DENIED\"\xff" + strings.Repeat("a", 80), Denied: "r", Comm: "x\n\x1b[31m\"e"}),
			}},
			{Unit: "web@1.service", Profile: "web", LeftOut: 2, Denials: []attach.SeenDenial{
				seen(3, attach.Denial{Unit: "web@1.service", Profile: "web", Operation: "open", Name: "/etc/shadow", Denied: "r", Comm: "cat", ByProfile: true}),
				seen(2, attach.Denial{Unit: "web@1.service", Profile: "web", Operation: "create", Class: "net", Family: "inet", SockType: "stream", Denied: "create", Comm: "web"}),
			}},
			{Unit: "z.service", Profile: "z"},
		},
	}
}

func TestDenials(t *testing.T) {
	for _, c := range []struct {
		name string
		set  func(*scene)
		args []string
		exit attach.Exit
	}{
		{"denials", func(*scene) {}, []string{"denials"}, 0},
		{"denials-terminal", func(s *scene) { s.StdoutTTY = true; s.env["LC_ALL"] = "C" }, []string{"denials", "--since", "30min"}, 0},
		{"denials-json", func(s *scene) { s.daemon.denials.Units = s.daemon.denials.Units[:1] }, []string{"denials", "--json"}, 0},
		{"denials-deaf", func(s *scene) {
			s.daemon.denials.Deaf, s.daemon.denials.Lost, s.daemon.denials.Units = "cannot read the kernel's audit log: no room", 7, s.daemon.denials.Units[2:]
		}, []string{"denials"}, 5},
		{"denials-missing", func(s *scene) {
			s.daemon.denials.Units = nil
			s.daemon.denials.Missing = []attach.Missing{{Unit: "nope", Reason: attach.Because(attach.UnitNotFound, "systemd knows no unit nope.service")}}
		}, []string{"denials", "nope"}, 4},
		{"denials-unattached", func(s *scene) {
			s.daemon.denials.Units = nil
			s.daemon.denials.Missing = []attach.Missing{{Unit: "ssh", Reason: attach.Because(attach.NotAttached, "no attachment names ssh")}}
		}, []string{"denials", "ssh"}, 3},
		{"denials-none", func(s *scene) { s.daemon.denials.Units = nil }, []string{"denials"}, 0},
		{"denials-off", func(s *scene) { s.daemon.denials.Units = nil; s.daemon.denials.Host = attach.Host{Enabled: attach.No} }, []string{"denials"}, 3},
		{"denials-follow", func(s *scene) {
			next := attach.DenialReport{Host: hostOn, Cursor: "5.12", Units: deniedReport().Units[1:2], Lost: 3}
			deaf := attach.DenialReport{Host: hostOn, Cursor: "5.13", Lost: 3, Deaf: "no room"}
			s.daemon.news = []attach.DenialReport{next, {Host: hostOn, Cursor: "5.12", Lost: 3}, deaf, {Host: hostOn, Cursor: "5.14", Lost: 4}}
		}, []string{"denials", "-f"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene()
			s.daemon.denials = deniedReport()
			c.set(s)
			if exit := s.run(c.args...); exit != c.exit || s.err.Len() > 0 {
				t.Errorf("exit %d, want %d; %s", exit, c.exit, s.err.String())
			}
			for _, r := range s.out.String() {
				if r < ' ' && r != '\n' && r != '\x1b' || r == '\u202e' || r == '\u009b' {
					t.Errorf("%q reaches the terminal", r)
				}
			}
			if !s.StdoutTTY && strings.Contains(s.out.String(), "\x1b") {
				t.Error("an escape sequence reaches the terminal")
			}
			golden(t, c.name, s.out.String())
		})
	}
}

func TestFollowDenialsAsks(t *testing.T) {
	s := newScene()
	s.daemon.denials = deniedReport()
	s.daemon.news = []attach.DenialReport{{Host: hostOn, Cursor: "5.10"}, {Host: hostOn, Cursor: "5.11", Units: deniedReport().Units[1:2]}}
	if exit := s.run("denials", "--follow", "--json"); exit != 0 {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
	if got := fmt.Sprint(s.daemon.cursors); got != "[5.9 5.10 5.11]" {
		t.Errorf("it asked from %s on", got)
	}
	lines := strings.Split(strings.TrimSuffix(s.out.String(), "\n"), "\n")
	if len(lines) != 2 {
		t.Fatalf("%d documents:\n%s", len(lines), s.out.String())
	}
	for i, l := range lines {
		var r attach.DenialReport
		if err := json.Unmarshal([]byte(l), &r); err != nil || r.Cursor != []string{"5.9", "5.11"}[i] {
			t.Errorf("%v: %s", err, l)
		}
	}
	// Of what is not there nothing can come.
	s.daemon.denials = attach.DenialReport{Host: hostOn, Missing: []attach.Missing{{Unit: "nope", Reason: attach.Because(attach.UnitNotFound, "no")}}}
	s.daemon.cursors = nil
	if exit := s.run("denials", "--follow", "nope"); exit != 4 || len(s.daemon.cursors) != 0 {
		t.Errorf("exit %d, asked %v", exit, s.daemon.cursors)
	}
}

func TestDenialsRefused(t *testing.T) {
	s := newScene()
	s.daemon.err = fmt.Errorf("%w: only root and members of group adm may read what was denied; run it as root", api.ErrDenied)
	for _, args := range [][]string{{"denials"}, {"denials", "--follow"}} {
		if exit := s.run(args...); exit != 1 || !strings.Contains(s.err.String(), "group adm") {
			t.Errorf("%v: exit %d: %s", args, exit, s.err.String())
		}
	}
}

func TestSince(t *testing.T) {
	for text, want := range map[string]string{
		"10min": "2025-06-01 11:50", "2h": "2025-06-01 10:00", "-1h": "2025-06-01 11:00", "1h 30min ago": "2025-06-01 10:30", "1.5h": "2025-06-01 10:30",
		"10:15": "2025-06-01 10:15", "2025-05-30": "2025-05-30 00:00", "2025-05-30 08:09": "2025-05-30 08:09", "2025-05-30T08:09:00Z": "2025-05-30 08:09",
		"yesterdayish": "", "8d": "", "0": "", "25:00": "", "x\x1b": "",
	} {
		s := newScene()
		s.daemon.denials.Host = hostOn
		exit := s.run("denials", "--since", text)
		if want == "" {
			if exit != attach.ExitUsage || !strings.Contains(s.err.String(), "cannot read time") || strings.Contains(s.err.String(), "\x1b") {
				t.Errorf("%s: exit %d, %s", text, exit, s.err.String())
			}
			continue
		}
		if got := s.daemon.since.UTC().Format("2006-01-02 15:04"); exit != 0 || got != want {
			t.Errorf("%s is %s, want %s (exit %d)", text, got, want, exit)
		}
	}
}
