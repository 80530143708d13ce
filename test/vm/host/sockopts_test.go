//go:build vm && long

package host

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/test/vm/machine"
)

// noBPF keeps a unit that runs as root from changing the list that holds it.
const noBPF = "SystemCallFilter=~bpf"

// TestSocketOptionsAcrossBoots is what somebody does who wants to know which socket
// options an agent needs, and to hold it to them: record, approve with reasons,
// enforce without a restart, boot again, also where aaunitd does not run, and look at
// what a new build does.
func TestSocketOptionsAcrossBoots(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "agent.service"}, func(t *testing.T, m *machine.Machine) {
		install(t, m, "agent", 7001)
		output(t, m, "sed -i '/^ExecStart=/a "+noBPF+"' /etc/systemd/system/agent.service")
		output(t, m, "systemctl daemon-reload && systemctl enable --now agent && aaunitctl attach agent --profile agentprofile --settle 1s")
		output(t, m, "aaunitctl sockopts record agent")
		// Of a start before the recording nobody knows what it would be refused.
		if r, err := m.Run(t.Context(), "aaunitctl sockopts enforce agent"); err != nil || r.Exit != 2 || !strings.Contains(r.Stderr, "systemctl restart agent.service") {
			t.Errorf("enforce before a start was seen: %v %+v", err, r)
		}
		output(t, m, "systemctl restart agent")
		const invocation = "systemctl show --value --property=InvocationID agent"
		started := output(t, m, invocation)

		// The agent answers a line with a line.
		set := func(option, want string) {
			t.Helper()
			command := `bash -c 'exec 3<>/dev/tcp/127.0.0.1/7001; echo "setsockopt ` + option + ` 1" >&3; head -n1 <&3'`
			wait(t, m, command, func(r machine.Result) bool { return r.Exit == 0 && strings.Contains(r.Stdout, want) })
		}
		const used, unused, fresh, nodelay, refused = "6 1", "1 10", "0 1", "SOL_TCP:TCP_NODELAY", "operation not permitted"
		held := func() {
			t.Helper()
			set(used, "ok")
			set(unused, refused)
		}
		decode := func(text string) (s attach.SocketStatus, ok bool) {
			var r attach.SocketReport
			if err := json.Unmarshal([]byte(text), &r); err != nil || len(r.Units) != 1 {
				return s, false
			}
			return r.Units[0], r.Units[0].Problem == ""
		}
		seen := func() attach.SocketStatus {
			t.Helper()
			text := output(t, m, "aaunitctl sockopts agent --json")
			s, ok := decode(text)
			if !ok {
				t.Fatalf("sockopts says\n%s", text)
			}
			return s
		}
		// stale waits until it is known of which executable the list is.
		stale := func(want attach.Tri) {
			t.Helper()
			wait(t, m, "aaunitctl sockopts agent --json", func(r machine.Result) bool {
				s, ok := decode(r.Stdout)
				return ok && s.Stale == want
			})
		}

		set(used, "ok")
		if s := seen(); !slices.ContainsFunc(s.NotAllowed(), func(u attach.SocketUse) bool { return u.Canonical() == nodelay }) {
			t.Fatalf("TCP_NODELAY was not recorded: %+v", s)
		} else if i := slices.IndexFunc(s.Recorded[0].Seen, func(u attach.SocketUse) bool { return u.Canonical() == nodelay }); i < 0 || s.Recorded[0].Seen[i].Last.Comm != "agent" {
			t.Errorf("who set TCP_NODELAY: %+v", s.Recorded[0].Seen)
		}
		// It is the recording of this program, kernel and start.
		wait(t, m, "aaunitctl sockopts agent --json", func(r machine.Result) bool {
			s, ok := decode(r.Stdout)
			if !ok || len(s.History.Builds) != 1 {
				return false
			}
			b := s.History.Builds[0]
			sum, _, _ := strings.Cut(output(t, m, "sha256sum /usr/local/bin/agent"), " ")
			return b.Program.Path == "/usr/local/bin/agent" && b.Program.SHA256 == sum && b.Program.BuildID != "" && b.Kernel == output(t, m, "uname -r") &&
				b.Invocation == started && !b.Since.IsZero() && !b.Until.Before(b.Since)
		})
		output(t, m, "aaunitctl sockopts approve agent TCP_NODELAY --reason 'small answers at once'")
		output(t, m, "aaunitctl sockopts approve agent --all-seen --yes --reason 'the library sets it'")
		output(t, m, "aaunitctl sockopts enforce agent")
		held()
		if now := output(t, m, invocation); now != started {
			t.Error("the switch to enforce restarted the agent")
		}
		for option, reason := range map[string]string{nodelay: "small answers at once", "SOL_SOCKET:SO_REUSEADDR": "the library sets it"} {
			if list := seen().Declared.Allow; !slices.ContainsFunc(list, func(o attach.AllowedOption) bool { return o.Option == option && o.Reason == reason }) {
				t.Errorf("the list is %+v, without %s %s", list, option, reason)
			}
		}
		waitStatus(t, m, "agent", 0)
		stale(attach.No)

		output(t, m, "systemctl disable aaunitd && sync")
		if err := m.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		held() // since its first start in this boot
		output(t, m, "systemctl enable --now aaunitd")
		waitStatus(t, m, "agent", 0)
		held()
		stale(attach.No)

		// A build that sets another option.
		output(t, m, "cp /root/payload/agent /root/new && echo new >>/root/new && install -m 755 /root/new /usr/local/bin/agent && systemctl restart agent")
		set(fresh, refused)
		stale(attach.Yes)
		if text := waitStatus(t, m, "agent", 0); !strings.Contains(text, "sockopts diff agent") {
			t.Errorf("status does not say that the list is stale:\n%s", text)
		}
		for command, want := range map[string]string{
			"aaunitctl metrics":       `aaunit_unit_socket_list_stale{unit="agent.service"} 1`,
			"aaunitctl report --json": `"stale": "yes"`,
		} {
			wait(t, m, command, func(r machine.Result) bool { return strings.Contains(r.Stdout, want) })
		}
		wait(t, m, "aaunitctl sockopts diff agent", func(r machine.Result) bool {
			_, more, _ := strings.Cut(r.Stdout, "Used by the new one")
			more, _, _ = strings.Cut(more, "Used by the old one")
			return strings.Contains(more, "IP_TOS") && !strings.Contains(more, "TCP_NODELAY")
		})
		output(t, m, "aaunitctl sockopts approve agent IP_TOS --reason 'the new build uses it'")
		set(fresh, "ok")
		output(t, m, "aaunitctl sockopts enforce agent")
		stale(attach.No)

		// The list is shortened, taken elsewhere, and watched.
		output(t, m, "aaunitctl sockopts revoke agent TCP_NODELAY")
		set(used, refused)
		set(fresh, "ok")
		text := output(t, m, "aaunitctl sockopts export agent")
		if !strings.Contains(text, ":IP_TOS the new build uses it\n") || strings.Contains(text, "\nAllow="+nodelay) || !strings.Contains(text, "\n#Allow="+nodelay+" ") {
			t.Errorf("export after TCP_NODELAY was revoked:\n%s", text)
		}
		output(t, m, "systemd-run --quiet --unit=follow --property=StandardOutput=file:/run/followed aaunitctl sockopts agent --follow")
		wait(t, m, "cat /run/followed", func(r machine.Result) bool { return strings.Contains(r.Stdout, "IP_TOS") })
		const later = "SO_RCVLOWAT" // 1 18
		if text := output(t, m, "cat /run/followed"); strings.Contains(text, later) {
			t.Fatalf("%s was used before:\n%s", later, text)
		}
		set("1 18", refused)
		wait(t, m, "cat /run/followed", func(r machine.Result) bool { return strings.Contains(r.Stdout, later) })
		output(t, m, "systemctl stop follow")
	})
}
