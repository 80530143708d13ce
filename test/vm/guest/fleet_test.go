//go:build vm

package guest

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	reports "github.com/aaunit/aaunit/internal/report"
)

// exposures asks for the services without a profile.
func exposures(t testing.TB) (attach.ExposureReport, result) {
	t.Helper()
	r := ctl(t, "list", "--unconfined", "--json")
	var doc attach.ExposureReport
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("aaunitctl list --unconfined: %v\n%s%s", err, r.stdout, r.stderr)
	}
	return doc, r
}

// asUser runs a command as somebody else; group adds a group to it.
func asUser(t testing.TB, user, group string, args ...string) result {
	t.Helper()
	run := []string{"--reuid=" + user, "--regid=nogroup", "--clear-groups"}
	if group != "" {
		run = []string{"--reuid=" + user, "--regid=nogroup", "--groups=" + group}
	}
	return try(t, "setpriv", append(run, args...)...)
}

// TestListUnconfined: what runs without a profile is found, with what it is exposed
// to, in the order of exposure, and what is confined or attached is not among it. On
// every suite.
func TestListUnconfined(t *testing.T) {
	a := newAgents(t)
	agent := func(listen string, lines ...string) string {
		return fmt.Sprintf("[Service]\nExecStart=/usr/local/bin/vm-agent %s\n%s\n", listen, strings.Join(lines, "\n"))
	}
	quiet := "[Service]\nExecStart=/bin/sleep infinity\n"
	a.ProfileFile("unc-known", profileText("unc-known", "/etc/machine-id r,"))
	a.Profile("unc-confined", profileText("unc-confined"))
	a.Profile("unc-complains", strings.Replace(profileText("unc-complains"), "profile unc-complains {", "profile unc-complains flags=(complain) {", 1))
	a.ProfileFile("unc-attached", profileText("unc-attached"))
	for name, text := range map[string]string{
		"unc-net.service":       agent("-listen 0.0.0.0:7301 -helper"),
		"unc-nobody.service":    agent("-listen [::]:7302", "User=nobody"),
		"unc-known.service":     agent("-listen 0.0.0.0:7303", "User=nobody"),
		"unc-complains.service": agent("-listen 0.0.0.0:7304", "AppArmorProfile=unc-complains", "User=nobody"),
		"unc-confined.service":  agent("-listen 0.0.0.0:7305", "AppArmorProfile=unc-confined"),
		"unc-attached.service":  agent("-listen 0.0.0.0:7306"),
		"unc-local.service":     agent("-listen 127.0.0.1:7307", "User=nobody"),
		"unc-root.service":      quiet,
		"unc-caps.service":      quiet + "User=nobody\nAmbientCapabilities=CAP_NET_ADMIN\n",
		"unc-quiet.service":     quiet + "User=nobody\n",
		"unc-demand.service":    quiet + "User=nobody\n",
		"unc-own.service":       agent("-listen 0.0.0.0:7308", "User=nobody", "PrivateNetwork=yes"),
		"unc-each@.service":     "[Service]\nExecStart=/bin/cat\nStandardInput=socket\n",
	} {
		a.Unit(name, text)
	}
	a.File("/etc/systemd/system/unc-demand.socket", "[Socket]\nListenStream=7309\nListenStream=/run/unc-demand\n", 0o644)
	a.File("/etc/systemd/system/unc-each.socket", "[Socket]\nListenStream=127.0.0.1:7310\nAccept=yes\n", 0o644)
	a.Reload()
	t.Cleanup(func() {
		// Without the test's context, which has ended.
		_ = exec.Command("systemctl", "stop", "unc-demand.socket", "unc-each.socket").Run()
		_ = os.Remove("/run/unc-demand")
	})
	run(t, "systemctl", "start", "unc-net", "unc-nobody", "unc-known", "unc-complains", "unc-confined", "unc-attached", "unc-local", "unc-root", "unc-caps", "unc-quiet", "unc-own",
		"unc-demand.socket", "unc-each.socket")
	if r := ctl(t, "attach", "unc-attached"); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	want := map[string]attach.ExposureClass{
		"unc-net.service": attach.ExposedNetwork, "unc-nobody.service": attach.ExposedNetwork, "unc-known.service": attach.ExposedNetwork, "unc-complains.service": attach.ExposedNetwork,
		"unc-own.service": attach.ExposedNetwork, "unc-demand.service": attach.ExposedNetwork, "unc-each@.service": attach.ExposedUnknown,
		"unc-local.service": attach.ExposedLocal, "unc-root.service": attach.ExposedRoot, "unc-caps.service": attach.ExposedCaps,
	}
	var doc attach.ExposureReport
	var r result
	found := map[string]attach.Exposure{}
	waitFor(t, "the services to listen", func() (bool, string) {
		doc, r = exposures(t)
		clear(found)
		for _, e := range doc.Services {
			found[e.Unit] = e
		}
		return found["unc-net.service"].Class == attach.ExposedNetwork && found["unc-local.service"].Class == attach.ExposedLocal && found["unc-own.service"].Class == attach.ExposedNetwork, r.stdout
	})
	if r.exit != 3 || len(doc.Unknown) > 0 {
		t.Errorf("exit %d, unknown %q", r.exit, doc.Unknown)
	}
	t.Logf("%s", ctl(t, "list", "--unconfined").stdout)
	for unit, class := range want {
		if e, ok := found[unit]; !ok || e.Class != class || len(e.Next) == 0 {
			t.Errorf("%s: want %s, got %+v", unit, class, e)
		}
	}
	for _, unit := range []string{"unc-confined.service", "unc-attached.service", "unc-quiet.service"} {
		if e, ok := found[unit]; ok {
			t.Errorf("%s is listed: %+v", unit, e)
		}
	}
	at := func(unit string) int {
		return slices.IndexFunc(doc.Services, func(e attach.Exposure) bool { return e.Unit == unit })
	}
	order := []string{"unc-net.service", "unc-nobody.service", "unc-each@.service", "unc-local.service", "unc-root.service", "unc-caps.service"}
	if !slices.IsSortedFunc(order, func(x, y string) int { return at(x) - at(y) }) {
		t.Errorf("the order is not that of exposure: %s", r.stdout)
	}
	socket := func(unit, protocol, address string, port int) *attach.Listening {
		i := slices.IndexFunc(found[unit].Listening, func(l attach.Listening) bool { return l.Protocol == protocol && l.Address == address && l.Port == port })
		if i < 0 {
			t.Errorf("%s does not listen on %s %s:%d: %+v", unit, protocol, address, port, found[unit].Listening)
			return &attach.Listening{}
		}
		return &found[unit].Listening[i]
	}
	// Go asks for both families with one socket.
	if s := socket("unc-net.service", "tcp6", "::", 7301); s.By != "" || s.OwnNetwork {
		t.Errorf("%+v", s)
	}
	if s := socket("unc-own.service", "tcp6", "::", 7308); !s.OwnNetwork {
		t.Errorf("%+v", s)
	}
	if s := socket("unc-demand.service", "tcp6", "::", 7309); s.By != "unc-demand.socket" {
		t.Errorf("%+v", s)
	}
	if s := socket("unc-demand.service", "unix", "/run/unc-demand", 0); s.Reach != attach.ReachUnix {
		t.Errorf("%+v", s)
	}
	if e := found["unc-demand.service"]; e.Running != attach.No {
		t.Errorf("%+v", e)
	}
	if e := found["unc-net.service"]; e.Root != attach.Yes || e.Processes != 2 || !slices.Contains(e.Labels, "unconfined") || !slices.Contains(e.Capabilities, "sys_admin") {
		t.Errorf("%+v", e)
	}
	if e := found["unc-nobody.service"]; e.Root != attach.No || e.User != "nobody" || len(e.Capabilities) != 0 {
		t.Errorf("%+v", e)
	}
	if e := found["unc-caps.service"]; !slices.Equal(e.Capabilities, []string{"net_admin"}) {
		t.Errorf("%+v", e)
	}
	if e := found["unc-complains.service"]; !slices.Equal(e.Labels, []string{"unc-complains (complain)"}) {
		t.Errorf("%+v", e)
	}
	if e := found["unc-known.service"]; e.Profile != "unc-known" || e.Next[len(e.Next)-1] != "aaunitctl attach unc-known.service" {
		t.Errorf("%+v", e)
	}

	// The command that is proposed does it.
	if r := ctl(t, "attach", "unc-known.service"); r.exit != 0 {
		t.Errorf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	a.Own("unc-known.service")
	if doc, r := exposures(t); slices.ContainsFunc(doc.Services, func(e attach.Exposure) bool { return e.Unit == "unc-known.service" }) {
		t.Errorf("it is attached and still listed:\n%s", r.stdout)
	}

	// For who may read logs.
	if r := asUser(t, "nobody", "", "aaunitctl", "list", "--unconfined"); r.exit != 1 || !strings.Contains(r.stderr, "group adm") || strings.Contains(r.stdout, "unc-") {
		t.Errorf("nobody: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := asUser(t, "nobody", "adm", "aaunitctl", "list", "--unconfined"); r.exit != 3 || !strings.Contains(r.stdout, "unc-net.service") {
		t.Errorf("group adm: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
}

// TestReport: what a report says of a unit is so, and its forms can be read. On every
// suite.
func TestReport(t *testing.T) {
	a := newAgents(t)
	a.ProfileFile("rep-good", profileText("rep-good"))
	a.ProfileFile("rep-bad", profileText("rep-bad", "/usr/bin/sleep Ux,"))
	a.Unit("rep-good.service", a.agentUnit("User=nobody"))
	a.Unit("rep-bad.service", a.agentUnit())
	bad := port(a.port)
	a.Reload()
	run(t, "systemctl", "start", "rep-good", "rep-bad")
	a.attachmentFile("rep-bad.conf", "[Attachment]\nUnit=rep-bad.service\nProfile=rep-bad\nAllowProfiles=rep-good\nSettleSec=1\n\n[Assertions]\nWaive=policy-may-leave-profile sleep is tried without a profile\n")
	if r := ctl(t, "attach", "rep-good"); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	waitFor(t, "rep-bad to be confined", func() (bool, string) {
		r := ctl(t, "status", "rep-bad")
		return r.exit == 0, r.stdout + r.stderr
	})
	dir := t.TempDir()
	first := filepath.Join(dir, "first.json")
	get := func(file string) reports.Document {
		t.Helper()
		if r := ctl(t, "report", "--json", "--output", file); r.stderr != "" {
			t.Errorf("report: exit %d\n%s", r.exit, r.stderr)
		}
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		d, err := reports.Parse(f)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	unit := func(d reports.Document, name string) attach.UnitReport {
		t.Helper()
		i := slices.IndexFunc(d.Hosts[0].Units, func(u attach.UnitReport) bool { return u.Unit == name })
		if i < 0 {
			t.Fatalf("%s is not in the report", name)
		}
		return d.Hosts[0].Units[i]
	}
	var d reports.Document
	waitFor(t, "the evidence for rep-good", func() (bool, string) {
		d = get(first)
		return unit(d, "rep-good.service").Evidence != nil && unit(d, "rep-bad.service").Evidence != nil, ""
	})
	if m := d.Hosts[0].Machine; m.Name != read(t, "/etc/hostname") || len(m.ID) != 32 || m.ID == read(t, "/etc/machine-id") || m.Kernel != run(t, "uname", "-r") || !strings.HasPrefix(m.OS, "Debian") {
		t.Errorf("%+v", m)
	}
	good := unit(d, "rep-good.service")
	if reports.Standing(good) != "confined" || good.Since.IsZero() || good.Mode != attach.WishEnforce || good.Evidence.Executable.Path != "/usr/local/bin/vm-agent" || len(good.Evidence.Policies) != 1 ||
		len(good.Evidence.Live) == 0 || good.Evidence.Live[0].Checksum != good.Evidence.Live[0].Accepted {
		t.Errorf("%+v %+v", good, good.Evidence)
	}
	if s := good.Seen; s == nil || len(s.Processes) != 2 || s.Processes[1].PPID != s.Processes[0].PID || s.Processes[0].Confines != attach.Yes || !strings.HasPrefix(s.Processes[0].Label, "rep-good") ||
		len(s.Listening) != 1 || s.Listening[0].Reach != attach.ReachLoopback || len(s.Problems) > 0 {
		t.Errorf("%+v", s)
	}
	allowed := unit(d, "rep-bad.service").Allowed
	if len(allowed) != 2 || allowed[0].Reason != "sleep is tried without a profile" || allowed[1].What != "rep-good" || allowed[1].Reason != "" {
		t.Errorf("%+v", allowed)
	}
	has := func(d reports.Document, code reports.Code, unit string) bool {
		return slices.ContainsFunc(reports.Findings(d.Hosts[0], d.Made), func(f reports.Finding) bool { return f.Code == code && f.Unit == unit })
	}
	if !has(d, reports.NoReason, "rep-bad.service") || has(d, reports.NotConfined, "rep-bad.service") {
		t.Errorf("%+v", reports.Findings(d.Hosts[0], d.Made))
	}

	// A child leaves the profile: the report, the picture and the comparison show it.
	if got := ask(t, bad, "spawn /usr/bin/sleep infinity"); !strings.HasPrefix(got, "ok") {
		t.Fatalf("spawn: %s", got)
	}
	if r := ctl(t, "verify", "rep-bad"); r.exit != 3 {
		t.Fatalf("verify: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	second := filepath.Join(dir, "second.json")
	d = get(second)
	if !has(d, reports.NotConfined, "rep-bad.service") || !slices.ContainsFunc(unit(d, "rep-bad.service").Seen.Processes, func(p attach.Process) bool { return p.Comm == "sleep" && p.Label == "unconfined" }) {
		t.Errorf("%+v", unit(d, "rep-bad.service").Seen)
	}
	text := ctl(t, "report", "--since", first)
	t.Logf("%s", text.stdout)
	for _, words := range []string{"rep-bad.service: verdict: confined", "rep-good.service", "CIS Debian 12 1.3.1.4", "sleep is tried without a profile", "(none on record)"} {
		if text.exit != 3 || !strings.Contains(text.stdout, words) {
			t.Errorf("exit %d, no %q in\n%s%s", text.exit, words, text.stdout, text.stderr)
		}
	}
	// No daemon is needed to put reports together, and nobody special.
	run(t, "chmod", "-R", "a+rX", dir, filepath.Dir(dir))
	for _, form := range []string{"--html", "--csv"} {
		r := asUser(t, "nobody", "", "aaunitctl", "report", form, "--since", first, "--merge", second)
		if r.exit != 3 || !strings.Contains(r.stdout, "rep-bad.service") || strings.Contains(r.stdout, "<script") {
			t.Errorf("%s: exit %d\n%.500s\n%s", form, r.exit, r.stdout, r.stderr)
		}
	}
	if r := asUser(t, "nobody", "", "aaunitctl", "report"); r.exit != 1 || !strings.Contains(r.stderr, "group adm") || r.stdout != "" {
		t.Errorf("nobody: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
}

// scrape reads metrics from a socket as Prometheus would.
func scrape(network, address string) (string, error) {
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 20 * time.Second}).DialContext(ctx, network, address)
	}}
	r, err := (&http.Client{Transport: tr, Timeout: time.Minute}).Get("http://aaunit/metrics")
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %s: %s", r.Status, text)
	}
	return string(text), err
}

// TestMetrics: the numbers are what aaunitd knows, on the command line, in a file, and
// on the sockets, which answer this machine alone; and where the daemon is not there
// they say so and nothing else. On every suite.
func TestMetrics(t *testing.T) {
	const socket = "/run/aaunit/metrics.sock"
	a := newAgents(t)
	a.ProfileFile("met-one", profileText("met-one"))
	a.Unit("met-one.service", a.agentUnit())
	one := port(a.port)
	a.Own("aaunit-metrics.socket")
	a.Own("aaunit-metrics.service")
	a.Dropin("aaunit-metrics.socket", "port.conf", "[Socket]\nListenStream=9786\n")
	a.Reload()
	t.Cleanup(func() { _ = exec.Command("systemctl", "start", "aaunitd").Run() })
	run(t, "systemctl", "start", "met-one", "aaunit-metrics.socket")
	if r := ctl(t, "attach", "met-one"); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	line := func(text, prefix string) string {
		for l := range strings.Lines(text) {
			if strings.HasPrefix(l, prefix) {
				return strings.TrimSpace(l)
			}
		}
		return ""
	}
	check := func(where, text string, lines ...string) {
		t.Helper()
		for _, l := range lines {
			if !strings.Contains(text, l+"\n") {
				t.Errorf("%s does not say %s:\n%s", where, l, text)
			}
		}
	}
	good := []string{"aaunit_up 1", `aaunit_apparmor_state{state="enforcing"} 1`, `aaunit_unit_verdict{unit="met-one.service",verdict="confined"} 1`,
		`aaunit_unit_expected_info{unit="met-one.service",profile="met-one",mode="enforce"} 1`, `aaunit_unit_state{unit="met-one.service",state="active"} 1`}
	check("aaunitctl metrics", ctl(t, "metrics").stdout+"\n", good...)
	file := filepath.Join(t.TempDir(), "aaunit.prom")
	if r := ctl(t, "metrics", "--textfile", file); r.exit != 0 {
		t.Errorf("exit %d: %s", r.exit, r.stderr)
	}
	check("the file", read(t, file)+"\n", good...)
	for _, on := range [][2]string{{"unix", socket}, {"tcp", "127.0.0.1:9786"}, {"tcp", "[::1]:9786"}} {
		text, err := scrape(on[0], on[1])
		if err != nil {
			t.Errorf("%s: %v", on[1], err)
			continue
		}
		check(on[1], text, good...)
	}
	// It listens on every address, and answers this machine alone.
	if text, err := scrape("tcp", "10.0.2.15:9786"); err == nil {
		// The machine's own address is reached by way of lo, from that address.
		t.Errorf("10.0.2.15 answers:\n%.200s", text)
	}
	if mode, err := os.Stat(socket); err != nil || mode.Mode().Perm() != 0o666 {
		t.Errorf("%v, %v", mode, err)
	}
	if r := asUser(t, "nobody", "", "aaunitctl", "metrics"); r.exit != 0 {
		t.Errorf("nobody: exit %d: %s", r.exit, r.stderr)
	}
	pid := show(t, "aaunit-metrics.service", "MainPID")
	status := read(t, "/proc/"+pid+"/status")
	for _, l := range []string{"CapPrm:\t0000000000000000", "NoNewPrivs:\t1"} {
		if !strings.Contains(status, l) {
			t.Errorf("what answers does not have %q:\n%s", l, status)
		}
	}
	if strings.Contains(status, "Uid:\t0") {
		t.Error("what answers runs as root")
	}
	t.Logf("aaunit-metrics: %s", line(status, "VmRSS"))

	before := line(ctl(t, "metrics").stdout, `aaunit_unit_denials_total{unit="met-one.service"`)
	if got := ask(t, one, "read /etc/shadow"); !strings.HasPrefix(got, "error") {
		t.Fatalf("the profile lets it read: %s", got)
	}
	waitFor(t, "the denial to be counted", func() (bool, string) {
		now := line(ctl(t, "metrics").stdout, `aaunit_unit_denials_total{unit="met-one.service"`)
		return now != before && now != "", before + " " + now
	})

	// Nothing is left of what a daemon said that is not there.
	run(t, "systemctl", "stop", "aaunitd")
	waitFor(t, "the socket to say that the daemon is away", func() (bool, string) {
		text, err := scrape("unix", socket)
		return err == nil && strings.Contains(text, "aaunit_up 0\n") && !strings.Contains(text, "verdict"), fmt.Sprint(text, err)
	})
	r := ctl(t, "metrics", "--textfile", file)
	if state := try(t, "systemctl", "is-active", "aaunitd").stdout; state != "inactive" {
		t.Errorf("a scrape has started aaunitd: %s", state)
	}
	if text := read(t, file) + "\n"; r.exit != 1 || !strings.Contains(text, "aaunit_up 0\n") || strings.Contains(text, "verdict") {
		t.Errorf("exit %d: %s\n%s", r.exit, r.stderr, text)
	}
	run(t, "systemctl", "start", "aaunitd")
	waitFor(t, "the verdict to be told again", func() (bool, string) {
		text, err := scrape("unix", socket)
		return err == nil && strings.Contains(text, good[2]+"\n"), fmt.Sprint(text, err)
	})
	run(t, "systemctl", "stop", "aaunit-metrics.socket", "aaunit-metrics.service")
	if _, err := os.Lstat(socket); err == nil {
		t.Error("a stopped socket leaves its file")
	}
}
