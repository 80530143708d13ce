//go:build vm && long

package host

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/test/vm/machine"
)

// network is what the agent does not come up without.
const network = "network inet stream, network inet6 stream,"

// cut is a place at which the power is cut.
type cut struct {
	scenario string
	at       string // words of a boundary of cmd/aaunitd/crash.go
	always   bool   // not only with AAUNIT_CRASH=all
}

var cuts = []cut{
	{"attach", "after WriteAttachment", false},
	{"attach", "after SaveRecord", false},
	{"attach", "after Load", false},
	{"attach", "after WriteDropIn", true},
	{"attach", "after Reload", false},
	{"attach", "after TryRestart", false},
	{"detach", "after RemoveAttachment", false},
	{"detach", "after RemoveDropIn", false},
	{"detach", "after TryRestart", false},
	{"detach", "after Unload", false},
	{"detach", "after DeleteRecord", false},
	{"text", "after Load", false},
	{"other", "after WriteAttachment", false},
	{"other", "after WriteDropIn", false},
	{"other", "after TryRestart", true},
	{"undo", "before RemoveDropIn", true},
	{"undo", "after RemoveDropIn", false},
	{"undo", "after Start", false},
	{"undo", "after Restore", false},
	{"undo", "after WithdrawAttachment", false},
	{"undo-other", "before TryRestart", false},
	{"undo-other", "after TryRestart", false},
}

// powerCut is a machine with a unit, agent.service, which starts at boot, and
// profiles for it: good and other, and bad under which it does not come up.
type powerCut struct{ m *machine.Machine }

// profile writes a profile for the agent, with further rules.
func (p powerCut) profile(t *testing.T, path, name, rules string) {
	t.Helper()
	text := fmt.Sprintf(`abi <abi/3.0>,
include <tunables/global>
profile %s {
  include <abstractions/base>
  /usr/local/bin/agent mrix,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
  %s
}
`, name, rules)
	if err := p.m.PutBytes(t.Context(), []byte(text), path, 0o644); err != nil {
		t.Fatal(err)
	}
}

func (p powerCut) install(t *testing.T) {
	t.Helper()
	output(t, p.m, "install -m 755 /root/payload/agent /usr/local/bin/agent")
	p.profile(t, "/etc/apparmor.d/good", "good", network)
	p.profile(t, "/root/good", "good", network+" /etc/issue r,")
	p.profile(t, "/etc/apparmor.d/other", "other", network)
	p.profile(t, "/etc/apparmor.d/bad", "bad", "")
	for path, text := range map[string]string{
		// It notes under which label each start of this boot runs.
		"/etc/systemd/system/agent.service": `[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
ExecStart=/usr/local/bin/agent -listen 127.0.0.1:7001 -tmp /tmp/agent -helper
ExecStartPost=+/bin/sh -c 'cat /proc/${MAINPID}/attr/apparmor/current >>/run/labels'
Restart=on-failure
RestartSec=300ms
[Install]
WantedBy=multi-user.target
`,
		"/etc/systemd/system/aaunitd.service.d/crash.conf": `[Service]
ExecStart=
ExecStart=/root/payload/aaunitd-crash
Environment=AAUNITD_CRASH=/run/aaunit
`,
	} {
		output(t, p.m, "mkdir -p $(dirname "+path+")")
		if err := p.m.PutBytes(t.Context(), []byte(text), path, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	output(t, p.m, "systemctl daemon-reload && systemctl enable --now agent && systemctl restart aaunitd")
}

// declared is the profile that the attachment names; "" for none.
func (p powerCut) declared(t *testing.T) string {
	t.Helper()
	return output(t, p.m, "sed -n s/^Profile=//p /etc/aaunit/attachments.d/agent.service.conf 2>/dev/null; true")
}

// look is what there is to see of the unit at one moment.
type look struct {
	before, after string // label of each process
	state         string // of the unit
	dropIn        bool
	report        attach.Report
}

func (p powerCut) look(t *testing.T) (look, bool) {
	t.Helper()
	const labels = "ps -o pid=,label= -C agent | sort; echo ---; "
	text := output(t, p.m, labels+"aaunitctl status agent --json; echo; echo ---; "+labels+
		"systemctl show --value --property=ActiveState agent; ls /etc/systemd/system/agent.service.d/"+attach.DropInName+" 2>/dev/null; true")
	part := strings.SplitN(text, "---\n", 4)
	if len(part) != 4 {
		t.Fatalf("cannot understand %q", text)
	}
	state, dropIn, _ := strings.Cut(part[3], "\n")
	l := look{before: part[0], after: part[2], state: state, dropIn: dropIn != ""}
	err := json.Unmarshal([]byte(part[1]), &l.report)
	if err == nil && l.before == l.after && strings.Contains(l.after, "unconfined") &&
		slices.ContainsFunc(l.report.Units, func(s attach.Status) bool { return s.Verdict != nil && s.Verdict.Answer == attach.Confined }) {
		t.Errorf("the agent runs as\n%s\nand aaunitctl says\n%s", l.after, part[1])
	}
	return l, err == nil
}

// waitAtRest waits until the unit is what is declared, and aaunitd has nothing
// left to do. The profile bad counts as former, which the unit had before.
func (p powerCut) waitAtRest(t *testing.T, former string) {
	t.Helper()
	var why string
	want := p.declared(t)
	held := want == "bad"
	if held {
		want = former
	}
	label := "unconfined"
	if want != "" {
		label = want + " (enforce)"
	}
	for deadline := time.Now().Add(4 * time.Minute); time.Now().Before(deadline); time.Sleep(2 * time.Second) {
		l, ok := p.look(t)
		switch {
		case !ok:
			why = "aaunitd does not answer"
		default:
			why = l.differs(want, label, held)
		}
		if why == "" {
			return
		}
	}
	t.Fatalf("%q is declared, and %s", p.declared(t), why)
}

// differs says in what a unit at rest would look otherwise.
func (l look) differs(profile, label string, held bool) string {
	switch {
	case len(l.report.Problems) > 0:
		return fmt.Sprintf("there are problems: %v", l.report.Problems)
	case l.state != "active" || l.dropIn != (profile != ""):
		return fmt.Sprintf("the unit is %s; that its drop-in is there is %v", l.state, l.dropIn)
	case strings.Count(l.after, label+"\n") != 2 || strings.Count(l.after, "\n") != 2:
		return "the agent and its helper run as\n" + l.after
	case profile == "" && !held && len(l.report.Units) > 0:
		return "the unit is shown as attached"
	case profile == "" && !held:
		return ""
	case len(l.report.Units) != 1 || l.report.Units[0].Busy || l.report.Units[0].Verdict == nil:
		return "aaunitd is at work"
	case (l.report.Units[0].Held != nil) != held || (l.report.Units[0].Verdict.Answer == attach.Confined) == held:
		return fmt.Sprintf("its status is %+v with the verdict %+v", l.report.Units[0], *l.report.Units[0].Verdict)
	}
	return ""
}

// TestPowerCutAtAnyStep cuts the machine's power between two steps of what
// aaunitd was asked for. After the next boot the unit must be what is declared,
// or what it was; one that was confined must be so from its first start on, none
// that is not may be called so, and no record may be torn.
func TestPowerCutAtAnyStep(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "agent.service"}, func(t *testing.T, m *machine.Machine) {
		p := powerCut{m}
		p.install(t)
		for _, c := range cuts {
			if !c.always && os.Getenv("AAUNIT_CRASH") != "all" {
				continue
			}
			former, ask := "", "aaunitctl attach agent --profile good"
			switch c.scenario {
			case "undo":
				ask = "aaunitctl attach agent --profile bad"
			case "detach":
				former, ask = "good", "aaunitctl detach agent"
			case "text":
				former, ask = "good", "install -m 644 /root/good /etc/apparmor.d/good"
			case "other":
				former, ask = "good", "aaunitctl attach agent --profile other"
			case "undo-other":
				former, ask = "good", "aaunitctl attach agent --profile bad"
			}
			switch now := p.declared(t); {
			case former == "" && now != "":
				output(t, m, "aaunitctl detach agent")
			case former != "" && now != former:
				output(t, m, "aaunitctl attach agent --profile "+former)
			}
			p.waitAtRest(t, former)
			output(t, m, "sync && rm -f /run/aaunit/log && echo 'hold 1 "+c.at+"' >/run/aaunit/order && sync && { setsid "+ask+" </dev/null >/dev/null 2>&1 & }")
			steps := wait(t, m, "cat /run/aaunit/log", func(r machine.Result) bool { return strings.Contains(r.Stdout, "\nhold ") })
			if err := m.PowerCut(); err != nil {
				t.Fatal(err)
			}
			if err := m.PowerOn(t.Context()); err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: the power was cut %s", c.scenario, c.at)
			p.waitAtRest(t, former)
			if got := output(t, m, "cat /run/labels"); former != "" && c.scenario != "detach" && strings.Contains(got, "unconfined") {
				t.Errorf("%s, power cut %s: the unit was confined, and after the boot it was started as\n%s", c.scenario, c.at, got)
			}
			if got := output(t, m, "ls -A /var/lib/aaunit/units | grep -v '^agent.service.json$'; true"); got != "" {
				t.Errorf("%s, power cut %s: among the records there is\n%s", c.scenario, c.at, got)
			}
			if t.Failed() {
				t.Fatalf("what was done before the power was cut:\n%s", steps)
			}
		}
	})
}
