//go:build vm && long

package host

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// prometheus starts Debian's Prometheus, with the alert rules, and has it scrape an
// address. It gives what asks it for series: their labels and values, as text.
func prometheus(t *testing.T, target string) (ask func(query string) string) {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf("global:\n  scrape_interval: 5s\n  evaluation_interval: 2s\nrule_files: [%q]\nscrape_configs:\n  - job_name: aaunit\n    scrape_timeout: 5s\n    static_configs:\n      - targets: [%q]\n        labels: {instance: guest}\n",
		filepath.Join(root, "packaging/prometheus/aaunit.rules.yml"), target)
	file := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), filepath.Join(root, "build/tools/prometheus/usr/bin/prometheus"), "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+address)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start Prometheus (make build/tools/prometheus): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("Prometheus: %.4000s", text)
		}
	})
	return func(query string) string {
		r, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(query))
		if err != nil {
			return ""
		}
		defer r.Body.Close()
		var answer struct {
			Error string
			Data  struct {
				Result []struct {
					Metric map[string]string
					Value  [2]any
				}
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
			return ""
		}
		if answer.Error != "" {
			t.Errorf("%s: %s", query, answer.Error)
		}
		var out []string
		for _, s := range answer.Data.Result {
			out = append(out, fmt.Sprint(s.Metric, " ", s.Value[1]))
		}
		return strings.Join(out, "\n")
	}
}

// forward gives an address here at which a port of the guest answers.
func forward(t *testing.T, m *machine.Machine, guest string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			here, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer here.Close()
				there, err := m.Dial("tcp", guest)
				if err != nil {
					return
				}
				defer there.Close()
				go func() { _, _ = io.Copy(there, here) }()
				_, _ = io.Copy(here, there)
			}()
		}
	}()
	return l.Addr().String()
}

// TestPrometheus has Debian's own Prometheus scrape a guest: what it keeps is what is
// so, and of the alerts that are shipped the one that the daemon is away comes and ends.
// That they fire in time is for promtool (packaging/prometheus/aaunit.rules.test.yml).
func TestPrometheus(t *testing.T) {
	eachSuite(t, []string{"aaunitd.service", "aaunit-metrics.service", "agent.service"}, func(t *testing.T, m *machine.Machine) {
		install(t, m, "agent", 7001)
		output(t, m, "mkdir -p /etc/systemd/system/aaunit-metrics.socket.d && printf '[Socket]\\nListenStream=127.0.0.1:9786\\n' >/etc/systemd/system/aaunit-metrics.socket.d/port.conf && "+
			"systemctl daemon-reload && systemctl enable --now agent aaunit-metrics.socket && aaunitctl attach agent --profile agentprofile")
		ask := prometheus(t, forward(t, m, "127.0.0.1:9786"))
		until := func(what, query string, done func(string) bool) {
			t.Helper()
			var got string
			for deadline := time.Now().Add(6 * time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
				if got = ask(query); done(got) {
					return
				}
			}
			t.Fatalf("%s: %s gives\n%s", what, query, got)
		}
		has := func(words string) func(string) bool {
			return func(s string) bool { return strings.Contains(s, words) }
		}
		until("it is scraped", `aaunit_up{instance="guest"}`, func(s string) bool { return strings.HasSuffix(s, " 1") })
		until("the agent is confined", `aaunit_unit_verdict{unit="agent.service"}`, has("verdict:confined"))
		if got := ask(`count({__name__=~"aaunit_.*"})`); got == "" {
			t.Error("there are no series")
		}

		// Somebody takes the profile off, and aaunitd is told to leave it alone.
		output(t, m, "aaunitctl pause agent --for 1h && apparmor_parser --remove /etc/apparmor.d/agentprofile && aaunitctl verify agent; true")
		until("it is not confined", `aaunit_unit_verdict{unit="agent.service"}`, has("verdict:not-confined"))
		until("the reason is told", `aaunit_unit_reason{unit="agent.service"}`, has("code:"))
		if got := ask(`ALERTS{alertname="UnitNotConfined"}`); got != "" {
			t.Errorf("a paused unit wakes somebody: %s", got)
		}
		// The daemon goes: what it said goes with it, and that is told.
		output(t, m, "systemctl stop aaunitd")
		until("the daemon is away", `aaunit_up{instance="guest"}`, func(s string) bool { return strings.HasSuffix(s, " 0") })
		until("no verdict is left", `aaunit_unit_verdict`, func(s string) bool { return s == "" })
		until("the alert is pending", `ALERTS{alertname="AaunitDown"}`, has("alertname:AaunitDown"))
		output(t, m, "systemctl start aaunitd && aaunitctl resume agent")
		until("it is confined again", `aaunit_unit_verdict{unit="agent.service"}`, has("verdict:confined"))
		until("the alert has ended", `ALERTS{alertname="AaunitDown"}`, func(s string) bool { return s == "" })
	})
}
