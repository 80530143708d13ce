package report

import (
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

var at = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func sum(c string) string { return strings.Repeat(c, 64) }

// sampleHost is a host on which there is some of everything.
func sampleHost() attach.HostReport {
	confined := func(pid, ppid int, comm, exe string, uid, threads int, label string) attach.Process {
		return attach.Process{PID: pid, PPID: ppid, Comm: comm, Exe: exe, UID: uid, Threads: threads, Label: label, Confines: attach.Yes}
	}
	evidence := func(n int, profile, exe, pkg, version string) *attach.EvidenceSummary {
		return &attach.EvidenceSummary{Number: n, SHA256: sum("9f2c"[n%4 : n%4+1]), Records: n, Answer: attach.Confined, At: at.Add(-time.Hour), Kernel: "6.1.0-41-amd64",
			Policies:   []attach.PolicySummary{{File: "/etc/apparmor.d/" + profile, Source: sum("a"), Compiled: sum("b"), Parser: "3.0.8", Files: 6}},
			Live:       []attach.EvidenceProfile{{Name: profile, Mode: attach.ModeEnforce, Checksum: "sha1:" + sum("c")[:40], Accepted: "sha1:" + sum("c")[:40]}},
			Executable: attach.EvidenceProgram{Path: exe, SHA256: sum("d"), Package: pkg, Version: version},
			DropIn:     attach.EvidenceFile{Path: "/etc/systemd/system/" + profile + ".service.d/90-aaunit.conf", SHA256: sum("e")}}
	}
	return attach.HostReport{
		Machine: attach.Machine{Name: "edge-3", ID: strings.Repeat("3", 32), OS: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-41-amd64"},
		Version: "1.0", Host: attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce, BootService: attach.Yes}, At: at, Recheck: 10 * time.Minute,
		Units: []attach.UnitReport{
			{Unit: "myagent.service", Profile: "myagent", ProfileFile: "/etc/apparmor.d/myagent", Mode: attach.WishEnforce, Attachment: "/etc/aaunit/attachments.d/agents.conf", ActiveState: "active",
				Verdict: &attach.Verdict{Unit: "myagent.service", Profile: "myagent", Answer: attach.Confined, Tasks: 19, Processes: 4, PrivateTmp: attach.Yes, At: at.Add(-time.Minute)},
				Since:   at.Add(-31 * 24 * time.Hour), Evidence: evidence(14, "myagent", "/usr/local/bin/myagent", "", ""),
				Allowed: []attach.Allowance{
					{Kind: attach.AllowWaiver, What: "policy-may-leave-profile", Reason: "operators log in through it (OPS-1182)", Where: "/etc/aaunit/attachments.d/agents.conf:14"},
					{Kind: attach.AllowProfile, What: "agent-fetch", Where: "/etc/aaunit/attachments.d/agents.conf"},
					{Kind: attach.AllowSetOption, What: "SOL_TCP:TCP_NODELAY", Reason: "small frames", Where: "/etc/aaunit/attachments.d/agents.conf:20"},
					{Kind: attach.AllowGetOption, What: "SOL_SOCKET:SO_ERROR", Reason: "connect without waiting", Where: "/etc/aaunit/attachments.d/agents.conf:21"}},
				Sockets: &attach.SocketSummary{Mode: attach.SocketsEnforce, Required: true, Options: 2, Stale: attach.No},
				Denials: attach.DenialCount{Denied: 12},
				Seen: &attach.Sighting{Unit: "myagent.service", At: at, Processes: []attach.Process{
					confined(812, 1, "myagent", "/usr/local/bin/myagent", 990, 13, "myagent (enforce)"),
					confined(840, 812, "fetch", "/usr/local/lib/myagent/fetch", 990, 4, "agent-fetch (enforce)"),
					confined(841, 812, "worker", "/usr/local/bin/myagent", 990, 1, "myagent//worker (enforce)"),
					confined(902, 841, "sh", "/usr/bin/dash", 990, 1, "myagent//worker (enforce)")},
					Listening: []attach.Listening{{Protocol: "tcp", Address: "127.0.0.1", Port: 7001, Reach: attach.ReachLoopback}, {Protocol: "unix", Address: "/run/myagent/control", Reach: attach.ReachUnix}}}},
			{Unit: "gateway.service", Profile: "gateway", ProfileFile: "/etc/apparmor.d/gateway", Mode: attach.WishEnforce, Attachment: "/etc/aaunit/attachments.d/gateway.conf", ActiveState: "active",
				Verdict: &attach.Verdict{Unit: "gateway.service", Profile: "gateway", Answer: attach.NotConfined, Tasks: 3, Processes: 3, At: at.Add(-time.Minute), Reasons: []attach.Reason{
					attach.Because(attach.TaskUnconfined, "task 1204 (convert) carries no profile: rule \"/usr/bin/convert Ux\" lets it leave").At("/etc/apparmor.d/gateway:41")}},
				Evidence: evidence(3, "gateway", "/usr/sbin/gateway", "gateway", "2.4.1-1"),
				Seen: &attach.Sighting{Unit: "gateway.service", At: at, Processes: []attach.Process{
					confined(1190, 1, "gateway", "/usr/sbin/gateway", 33, 1, "gateway (enforce)"),
					{PID: 1204, PPID: 1190, Comm: "convert", Exe: "/usr/bin/convert", UID: 33, Threads: 1, Label: "unconfined", Confines: attach.No},
					{PID: 1209, PPID: 1204, Comm: "gs", UID: 33, Threads: 1, Problem: "its label could not be read: permission denied"}},
					Listening: []attach.Listening{{Protocol: "tcp6", Address: "::", Port: 443, Reach: attach.ReachNetwork}}}},
			{Unit: "indexer.service", Profile: "indexer", Mode: attach.WishEnforce, Attachment: "/etc/aaunit/attachments.d/indexer.conf", ActiveState: "active",
				Verdict: &attach.Verdict{Unit: "indexer.service", Profile: "indexer", Answer: attach.Unknown, At: at.Add(-time.Minute), Reasons: []attach.Reason{
					attach.Because(attach.RestartedMeanwhl, "indexer.service was started again during the look")}}},
			{Unit: "mailer.service", Profile: "mailer", Mode: attach.WishEnforce, Attachment: "/usr/lib/aaunit/attachments.d/mailer.conf", ActiveState: "active",
				Verdict: &attach.Verdict{Unit: "mailer.service", Profile: "mailer", Answer: attach.Confined, Tasks: 1, Processes: 1, At: at.Add(-2 * time.Minute)},
				Since:   at.Add(-3 * time.Hour), Evidence: func() *attach.EvidenceSummary {
					e := evidence(2, "mailer", "/usr/sbin/mailer", "mailer", "1.9")
					e.Executable.Deleted = true
					return e
				}(),
				Sockets: &attach.SocketSummary{Mode: attach.SocketsRecord, Options: 1, Stale: attach.Yes, StaleWhy: "the list is of /usr/sbin/mailer (mailer 1.8), and what runs now is /usr/sbin/mailer (mailer 1.9)", Refused: 2, Unlisted: 1},
				Seen:    &attach.Sighting{Unit: "mailer.service", At: at, Processes: []attach.Process{confined(700, 1, "mailer", "/usr/sbin/mailer (deleted)", 0, 1, "mailer (enforce)")}, Listening: []attach.Listening{}}},
			{Unit: "night.service", Profile: "night", Mode: attach.WishEnforce, Attachment: "/etc/aaunit/attachments.d/night.conf", ActiveState: "inactive",
				Verdict: &attach.Verdict{Unit: "night.service", Profile: "night", Answer: attach.Unknown, At: at, Reasons: []attach.Reason{attach.Because(attach.NotRunning, "night.service is not running")}}},
		},
		Unattached: &attach.ExposureReport{Looked: 20, Quiet: 8, Confined: 9, At: at, Services: []attach.Exposure{
			{Unit: "ssh.service", Class: attach.ExposedNetwork, Running: attach.Yes, Root: attach.Yes, Labels: []string{"unconfined"}, Processes: 1, Program: "/usr/sbin/sshd",
				Listening: []attach.Listening{{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Reach: attach.ReachNetwork}, {Protocol: "tcp6", Address: "::", Port: 22, Reach: attach.ReachNetwork}},
				Next:      []string{"aa-autodep /usr/sbin/sshd", "aaunitctl attach --complain --profile /usr/sbin/sshd ssh.service", "aaunitctl denials ssh.service"}},
			{Unit: "systemd-logind.service", Class: attach.ExposedRoot, Running: attach.Yes, Root: attach.Yes, Labels: []string{"unconfined"}, Processes: 1, Listening: []attach.Listening{}, Next: []string{"aaunitctl plan systemd-logind.service"}},
			{Unit: "legacy.service", Class: attach.ExposedLocal, Running: attach.Yes, Root: attach.No, User: "legacy", Labels: []string{"legacy (complain)"}, Processes: 2,
				Listening: []attach.Listening{{Protocol: "tcp", Address: "127.0.0.1", Port: 9000, Reach: attach.ReachLoopback}}, Profile: "legacy", Next: []string{"aaunitctl plan legacy.service", "aaunitctl attach legacy.service"}},
		}},
	}
}

func sampleDocument() Document {
	return New(sampleHost(), at.Add(2*time.Minute))
}

// sampleEarlier is the same host a week before.
func sampleEarlier() Document {
	h := sampleHost()
	h.At = at.Add(-7 * 24 * time.Hour)
	for i := range h.Units {
		h.Units[i].Verdict.At = h.At
	}
	h.Units[1].Verdict.Answer, h.Units[1].Verdict.Reasons = attach.Confined, nil
	h.Units[0].Allowed, h.Units[0].Sockets = h.Units[0].Allowed[:1], &attach.SocketSummary{Mode: attach.SocketsRecord}
	h.Units[0].Evidence.Policies[0].Compiled = sum("1")
	h.Units = append(h.Units[:3:3], h.Units[4])
	h.Units = append(h.Units, attach.UnitReport{Unit: "gone.service", Profile: "gone", Attachment: "/etc/aaunit/attachments.d/gone.conf"})
	h.Unattached.Services = h.Unattached.Services[1:]
	h.Machine.Kernel = "6.1.0-40-amd64"
	return New(h, h.At)
}

// hostile is what a host that wants to harm its reader sends.
func hostile() Document {
	h := sampleHost()
	evil := "</style><script>alert(1)</script>\x1b[31m\u202egnp.exe\"'`{{.}}=cmd|'/c calc'!A1"
	h.Machine.Name, h.Machine.OS, h.Machine.ID = "=HYPERLINK(\"http://x\")"+evil, evil, "evil"
	for i := range h.Units {
		u := &h.Units[i]
		u.Unit, u.Profile, u.Attachment = evil+u.Unit, evil, "@"+evil
		for j := range u.Allowed {
			u.Allowed[j].What, u.Allowed[j].Reason = evil, "+"+evil
		}
		if u.Seen != nil {
			for j := range u.Seen.Processes {
				p := &u.Seen.Processes[j]
				p.Comm, p.Label, p.PPID = evil, evil, p.PID+1 // a chain that goes on and on
			}
			u.Seen.Processes = append(u.Seen.Processes, attach.Process{PID: 5, PPID: 6, Comm: "a"}, attach.Process{PID: 6, PPID: 5, Comm: "b"}, attach.Process{PID: 7, PPID: 7, Comm: "c"}, attach.Process{PID: 7, PPID: 5, Comm: "d"})
		}
	}
	h.Unattached.Services[0].Unit, h.Unattached.Services[0].Next = evil, []string{evil}
	return New(h, at)
}
