package cli

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

func user(minutes int, comm string) attach.SocketUser {
	return attach.SocketUser{Time: now.Add(-time.Duration(minutes) * time.Minute), PID: 7, Comm: comm}
}

func socketReport() attach.SocketReport {
	nodelay := attach.SocketUse{Call: attach.SetSockOpt, Option: "SOL_TCP:TCP_NODELAY", Socket: "TCP over IPv4", Allowed: 12, First: user(90, "agent"), Last: user(2, "agent")}
	priority := attach.SocketUse{Call: attach.SetSockOpt, Option: "SOL_SOCKET:SO_PRIORITY", Socket: "TCP over IPv6", Refused: 41, First: user(80, "agent"), Last: user(1, "agent"), LastRefused: user(1, "agent"),
		Hurts: "packets carry no priority"}
	own := attach.SocketUse{Call: attach.SetSockOpt, Option: "SOL_SOCKET:SO_SNDBUF", Socket: "unix stream", BySystemd: true, Allowed: 3, First: user(91, "(agent)"), Last: user(91, "(agent)")}
	odd := attach.SocketUse{Call: attach.GetSockOpt, Option: "6:99", Socket: "TCP over IPv4", Allowed: 1, First: user(5, "x\x1b[31m\n"), Last: user(5, "x\x1b[31m\n")}
	old := attach.SocketBuild{Program: attach.EvidenceProgram{Path: "/usr/bin/agent", SHA256: strings.Repeat("a", 64), Package: "agent", Version: "1.0-1"}, Kernel: "6.1.0-40", Starts: 4,
		Since: now.Add(-48 * time.Hour), Until: now.Add(-2 * time.Hour), Uses: []attach.SocketUse{nodelay}}
	fresh := attach.SocketBuild{Program: attach.EvidenceProgram{Path: "/usr/bin/agent", SHA256: strings.Repeat("b", 64), Package: "agent", Version: "1.1-1", BuildID: "0123abcd"}, Kernel: "6.1.0-40", Starts: 1,
		Since: now.Add(-91 * time.Minute), Until: now, Uses: []attach.SocketUse{nodelay, priority, odd}}
	s := attach.SocketStatus{
		Unit: "myagent.service", Attachment: "/etc/aaunit/attachments.d/myagent.service.conf", Manual: true,
		Declared: &attach.SocketOptions{Mode: attach.SocketsEnforce, Allow: []attach.AllowedOption{{Option: "SOL_TCP:TCP_NODELAY", Reason: "gRPC sends small frames"}}},
		Recorded: []attach.SocketRecording{
			{Unit: "myagent.service", Mode: attach.SocketsEnforce, Seen: []attach.SocketUse{own, nodelay, priority, odd}, LostAllowed: 2, LostRefused: 1},
			{Unit: "myagent.socket", Mode: attach.SocketsEnforce, Seen: []attach.SocketUse{nodelay}},
		},
		History: attach.SocketHistory{Unit: "myagent.service", Builds: []attach.SocketBuild{old, fresh}, Reviewed: &attach.SocketReview{At: now.Add(-50 * time.Hour), Program: old.Program}},
	}
	return attach.SocketReport{At: now, Units: []attach.SocketStatus{s.WithStale()}}
}

// recorded is a unit that is only recorded, and has no list.
func recorded() attach.SocketReport {
	r := socketReport()
	s := &r.Units[0]
	s.Declared = &attach.SocketOptions{Mode: attach.SocketsRecord}
	s.Recorded[0].LostAllowed, s.Recorded[0].LostRefused = 0, 0
	return r
}

// late is a unit that was recorded since after it was started; all that was seen is
// on its list.
func late() attach.SocketReport {
	r := recorded()
	s := &r.Units[0]
	s.StartUnseen = true
	s.Recorded = []attach.SocketRecording{{Unit: "myagent.service", Mode: attach.SocketsRecord, Seen: s.Recorded[0].Seen[1:2]}}
	s.Declared.Allow = []attach.AllowedOption{{Option: "SOL_TCP:TCP_NODELAY", Reason: "gRPC sends small frames"}}
	return r
}

func TestSockopts(t *testing.T) {
	missing := attach.SocketReport{At: now, Missing: []attach.Missing{{Unit: "nope", Reason: attach.Because(attach.UnitNotFound, "systemd knows no unit nope.service")}}}
	none := attach.SocketReport{At: now, Units: []attach.SocketStatus{{Unit: "web.service", Attachment: "/etc/aaunit/attachments.d/web.conf"}}}
	unseen := attach.SocketReport{At: now, Units: []attach.SocketStatus{{Unit: "web.service", Declared: &attach.SocketOptions{Mode: attach.SocketsRecord}}}}
	former := socketReport() // its section is gone, and what was seen of two builds is kept
	former.Units[0].Declared, former.Units[0].Recorded = nil, nil
	former.Units[0] = former.Units[0].WithStale()
	blind := recorded()
	blind.Units[0].Problem, blind.Units[0].Next = "cannot read the socket options of myagent.service: no BPF file system", "mount -t bpf bpf /sys/fs/bpf"
	blind.Units[0].Recorded = nil
	for _, c := range []struct {
		name   string
		report attach.SocketReport
		args   []string
		exit   attach.Exit
	}{
		{"sockopts", socketReport(), []string{"sockopts", "myagent"}, 0},
		{"sockopts-late", late(), []string{"sockopts", "myagent"}, 0},
		{"sockopts-record", recorded(), []string{"sockopts"}, 0},
		{"sockopts-json", recorded(), []string{"sockopts", "--json"}, 0},
		{"sockopts-nothing", attach.SocketReport{At: now}, []string{"sockopts"}, 0},
		{"sockopts-no-section", none, []string{"sockopts", "web"}, 0},
		{"sockopts-missing", missing, []string{"sockopts", "nope"}, 4},
		{"sockopts-blind", blind, []string{"sockopts", "myagent"}, 5},
		{"sockopts-diff", socketReport(), []string{"sockopts", "diff", "myagent"}, 0},
		{"sockopts-diff-none", unseen, []string{"sockopts", "diff", "web"}, 0},
		{"sockopts-no-section", none, []string{"sockopts", "diff", "web"}, 0},
		{"sockopts-diff-former", former, []string{"sockopts", "diff", "myagent"}, 0},
		{"sockopts-export", socketReport(), []string{"sockopts", "export", "myagent"}, 0},
		{"sockopts-export-record", recorded(), []string{"sockopts", "export", "myagent"}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newScene()
			s.daemon.sockets = []attach.SocketReport{c.report}
			if exit := s.run(c.args...); exit != c.exit || s.err.Len() > 0 {
				t.Errorf("exit %d, want %d; %s", exit, c.exit, s.err.String())
			}
			if strings.ContainsAny(s.out.String(), "\x1b\r") {
				t.Error("an escape sequence reaches the terminal")
			}
			golden(t, c.name, s.out.String())
		})
	}
}

func TestFollowSockopts(t *testing.T) {
	later := socketReport()
	later.Units[0].Recorded[0].Seen[2].Refused += 5
	fewer := socketReport() // it was forgotten, and is counted anew
	fewer.Units[0].Recorded[0].Seen[1].Allowed = 1
	for _, args := range [][]string{{"sockopts", "-f", "myagent"}, {"sockopts", "-f", "--json"}} {
		s := newScene()
		s.daemon.sockets, s.daemon.sleeps = []attach.SocketReport{socketReport(), socketReport(), later, fewer}, 4
		if exit := s.run(args...); exit != 0 || s.err.Len() > 0 {
			t.Errorf("exit %d: %s", exit, s.err.String())
		}
		golden(t, "sockopts-follow"+strings.TrimPrefix(args[2], "--"), s.out.String())
	}
}

// What is asked of the daemon for each command line, and what for what a person
// answers.
func TestChangeSockopts(t *testing.T) {
	const why = "gRPC sends small frames"
	set := func(c attach.SocketChange) attach.SocketChange { c.Call = attach.SetSockOpt; return c }
	for _, c := range []struct {
		args   []string
		report attach.SocketReport
		answer string
		exit   attach.Exit
		want   []attach.SocketChange
		says   string
	}{
		{args: []string{"approve", "myagent", "TCP_NODELAY", "6:4", "--reason", why}, want: []attach.SocketChange{set(attach.SocketChange{Approve: []string{"TCP_NODELAY", "6:4"}, Reason: why})}},
		{args: []string{"approve", "myagent", "TCP_INFO", "--get", "--reason", why}, want: []attach.SocketChange{{Call: attach.GetSockOpt, Approve: []string{"TCP_INFO"}, Reason: why}}},
		{args: []string{"approve", "myagent", "TCP_NODELAY"}, exit: 2, says: "a reason is missing"},
		{args: []string{"approve", "myagent", "TCP_NODELAY", "--reason", "WHY"}, exit: 2, says: "WHY stands for a reason"},
		{args: []string{"approve", "myagent", "TCP_NODELAY", "--reason", `ends\`}, exit: 2, says: "backslash"},
		{args: []string{"approve", "myagent", "TCP_NODELAY", "--reason", "a\nAllow=6:9 x"}, exit: 2, says: "control characters"},
		{args: []string{"approve", "myagent"}, exit: 2, says: "--all-seen"},
		{args: []string{"approve", "myagent", "--all-seen", "TCP_NODELAY"}, exit: 2, says: "do not go together"},
		{args: []string{"approve"}, exit: 2, says: "name one unit"},
		{args: []string{"approve", "myagent", "--all-seen", "--yes"}, exit: 2, says: "--yes needs --reason"},
		{args: []string{"approve", "myagent", "--all-seen", "--reason", why}, exit: 2, says: "nobody can be asked"},
		{args: []string{"approve", "myagent", "--all-seen", "--yes", "--reason", why}, report: recorded(),
			want: []attach.SocketChange{set(attach.SocketChange{Approve: []string{"SOL_TCP:TCP_NODELAY", "SOL_SOCKET:SO_PRIORITY"}, Reason: why})}},
		{args: []string{"approve", "myagent", "--all-seen", "--reason", why}, report: recorded(), answer: "n\nyes\n",
			want: []attach.SocketChange{set(attach.SocketChange{Approve: []string{"SOL_SOCKET:SO_PRIORITY"}, Reason: why})}},
		{args: []string{"approve", "myagent", "--all-seen"}, report: recorded(), answer: "small frames\nWHY\nthe queue sorts by it\n",
			want: []attach.SocketChange{set(attach.SocketChange{Approve: []string{"SOL_TCP:TCP_NODELAY"}, Reason: "small frames"}), set(attach.SocketChange{Approve: []string{"SOL_SOCKET:SO_PRIORITY"}, Reason: "the queue sorts by it"})},
			says: "WHY stands for a reason"},
		{args: []string{"approve", "myagent", "--all-seen"}, report: recorded(), answer: "\n\n"},
		{args: []string{"approve", "myagent", "--all-seen"}, report: recorded(), answer: "x", exit: 1, says: "nothing was changed"},
		{args: []string{"approve", "myagent", "--all-seen"}, report: attach.SocketReport{Missing: []attach.Missing{{Unit: "myagent", Reason: attach.Because(attach.NotAttached, "no attachment names it")}}}, answer: "x\n", exit: 3, says: "no attachment names it"},
		{args: []string{"revoke", "myagent", "TCP_NODELAY"}, want: []attach.SocketChange{set(attach.SocketChange{Revoke: []string{"TCP_NODELAY"}})}},
		{args: []string{"revoke", "myagent"}, exit: 2, says: "name one unit"},
		{args: []string{"record", "myagent"}, want: []attach.SocketChange{{Mode: attach.SocketsRecord}}},
		{args: []string{"enforce", "myagent", "--yes"}, want: []attach.SocketChange{{Mode: attach.SocketsEnforce}}},
		{args: []string{"enforce", "myagent"}, report: socketReport(), want: []attach.SocketChange{{Mode: attach.SocketsEnforce}}},
		{args: []string{"enforce", "myagent"}, report: recorded(), exit: 2, says: "packets carry no priority"},
		{args: []string{"enforce", "myagent"}, report: recorded(), answer: "\n", exit: 1, says: "nothing was changed"},
		{args: []string{"enforce", "myagent"}, report: recorded(), answer: "y\n", want: []attach.SocketChange{{Mode: attach.SocketsEnforce}}, says: "SOL_TCP:TCP_NODELAY"},
		{args: []string{"enforce", "web"}, report: attach.SocketReport{Units: []attach.SocketStatus{{Unit: "web.service"}}}, exit: 2, says: "nothing was recorded"},
		{args: []string{"enforce", "myagent"}, report: late(), exit: 2, says: "systemctl restart myagent.service"},
		{args: []string{"enforce", "myagent"}, report: late(), answer: "y\n", want: []attach.SocketChange{{Mode: attach.SocketsEnforce}}},
		{args: []string{"enforce", "a", "b"}, exit: 2, says: "name one unit"},
	} {
		t.Run(strings.Join(c.args, " ")+fmt.Sprintf("%q", c.answer), func(t *testing.T) {
			s := newScene()
			s.daemon.sockets = []attach.SocketReport{c.report}
			s.daemon.outcomes = []attach.Outcome{{Unit: "myagent.service", Changed: true}}
			if c.answer != "" {
				s.Stdin, s.StdinTTY = strings.NewReader(c.answer), true
			}
			if exit := s.run(append([]string{"sockopts"}, c.args...)...); exit != c.exit {
				t.Errorf("exit %d, want %d", exit, c.exit)
			}
			equal := func(a, b attach.SocketChange) bool {
				return a.Mode == b.Mode && a.Reason == b.Reason && slices.Equal(a.Approve, b.Approve) && slices.Equal(a.Revoke, b.Revoke) &&
					(a.Call == b.Call || len(a.Approve)+len(a.Revoke) == 0)
			}
			if !slices.EqualFunc(s.daemon.changes, c.want, equal) {
				t.Errorf("asked for %+v, want %+v", s.daemon.changes, c.want)
			}
			if c.says != "" && !strings.Contains(s.err.String(), c.says) {
				t.Errorf("it says %q, without %q", s.err.String(), c.says)
			}
		})
	}
}

func TestCompleteSockopts(t *testing.T) {
	s := newScene()
	s.daemon.sockets = []attach.SocketReport{recorded()}
	if s.run("__complete", "sockopts", "approve", "myagent", "SOL_"); !strings.Contains(s.out.String(), "SOL_SOCKET:SO_PRIORITY\nSOL_TCP:TCP_NODELAY\n") {
		t.Errorf("offered: %s", s.out.String())
	}
	s = newScene()
	s.daemon.sockets = []attach.SocketReport{socketReport()}
	if s.run("__complete", "sockopts", "revoke", "myagent", ""); !strings.HasPrefix(s.out.String(), "SOL_TCP:TCP_NODELAY\n") {
		t.Errorf("offered: %s", s.out.String())
	}
}

func TestExportJSON(t *testing.T) {
	s := newScene()
	s.daemon.sockets = []attach.SocketReport{socketReport()}
	s.run("sockopts", "export", "myagent", "--json")
	var doc map[string]string
	if err := json.Unmarshal(s.out.Bytes(), &doc); err != nil || !strings.Contains(doc["section"], "Allow=SOL_TCP:TCP_NODELAY gRPC") {
		t.Errorf("%v: %s", err, s.out.String())
	}
}
