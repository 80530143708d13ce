//go:build vm && long

package host

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aaunit/aaunit/test/vm/machine"
)

// fleet is three guests, and Ansible on this machine.
type fleet struct {
	hosts    []string // in the order of a roll-out
	machines map[string]*machine.Machine
	dir      string // of the inventory
	deb      string
}

// The profile of the agent, with a rule to take away and one to put in.
const fleetProfile = `abi <abi/3.0>,
include <tunables/global>
profile fleetprofile {
  include <abstractions/base>
  network inet stream,
  network inet6 stream,
  /usr/local/bin/fleet mrix,
  /proc/sys/net/core/somaxconn r,
  /sys/kernel/mm/transparent_hugepage/hpage_pmd_size r,
  owner /tmp/** rw,
}
`

const fleetUnit = `[Service]
ExecStart=/usr/local/bin/fleet -listen 127.0.0.1:7001 -tmp /tmp/fleet -helper
[Install]
WantedBy=multi-user.target
`

// startFleet boots two guests of the suite under test and one of the other, each
// with an agent that runs unconfined, and without aaunit. Two are to install it from a
// file, one from a repository.
func startFleet(t *testing.T) *fleet {
	t.Helper()
	suites, err := machine.SuitesFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	other := machine.Suites()[0]
	if other == suites[0] {
		other = machine.Suites()[1]
	}
	f := &fleet{machines: map[string]*machine.Machine{}, dir: t.TempDir()}
	var rest []string
	for _, file := range machine.PayloadFromEnv() {
		switch {
		case strings.HasSuffix(file, ".deb"):
			f.deb = file
		case filepath.Base(file) == "agent":
			rest = append(rest, file)
		}
	}
	if f.deb == "" || len(rest) == 0 {
		t.Fatal("the payload lacks the package or the agent: make vm makes both")
	}
	type booted struct {
		m   *machine.Machine
		err error
	}
	which := []string{suites[0], other, suites[0]}
	all := make([]booted, len(which))
	var wg sync.WaitGroup
	for i, suite := range which {
		wg.Go(func() {
			all[i].m, all[i].err = machine.Boot(t.Context(), machine.Options{Suite: suite})
		})
	}
	wg.Wait()
	for i, b := range all {
		if b.err != nil {
			t.Error(b.err)
			continue
		}
		host := fmt.Sprintf("host%d", i+1)
		f.hosts, f.machines[host] = append(f.hosts, host), b.m
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("%s, %s:\n%s", host, b.m.Suite(), b.m.Diagnose(context.Background(), "fleet.service"))
				b.m.Keep(os.Stderr)
			}
			if err := b.m.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	if t.Failed() {
		t.FailNow()
	}
	for _, host := range f.hosts {
		m := f.machines[host]
		if err := m.PutPayload(t.Context(), rest); err != nil {
			t.Fatal(err)
		}
		if err := m.PutBytes(t.Context(), []byte(fleetUnit), "/etc/systemd/system/fleet.service", 0o644); err != nil {
			t.Fatal(err)
		}
		// As clones of one machine have it, with one machine-id(5).
		output(t, m, "echo "+host+" >/etc/hostname && hostname "+host)
		output(t, m, "install -m 755 /root/payload/agent /usr/local/bin/fleet && systemctl daemon-reload && systemctl enable --now fleet.service")
	}
	// The last host has the package from a repository; its sources are that alone.
	repository := f.machines[f.hosts[len(f.hosts)-1]]
	if err := repository.PutPayload(t.Context(), []string{f.deb}); err != nil {
		t.Fatal(err)
	}
	output(t, repository, `mkdir /srv/repository && cd /srv/repository && mv /root/payload/*.deb aaunit.deb &&
		{ dpkg-deb --field aaunit.deb; echo "Filename: ./aaunit.deb"; stat --format='Size: %s' aaunit.deb; echo "SHA256: $(sha256sum <aaunit.deb | cut -d' ' -f1)"; } >Packages &&
		rm -rf /etc/apt/sources.list.d && echo 'deb [trusted=yes] file:/srv/repository ./' >/etc/apt/sources.list && apt-get -q update`)
	// Ansible finds a collection below a directory of its name.
	collection := filepath.Join(f.dir, "ansible_collections", "aaunit", "core")
	if err := os.CopyFS(collection, os.DirFS("../../../packaging/ansible")); err != nil {
		t.Fatal(err)
	}
	f.file(t, "ansible.cfg", `[defaults]
host_key_checking = False
timeout = 300
forks = 3
retry_files_enabled = False
interpreter_python = /usr/bin/python3
collections_path = `+f.dir+`
local_tmp = `+f.dir+`/tmp
[ssh_connection]
pipelining = True
ssh_args = -o ControlMaster=auto -o ControlPersist=600 -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o ServerAliveInterval=30
control_path_dir = `+f.dir+`/ssh
`)
	return f
}

func (f *fleet) file(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// wish is what is rolled out.
type wish struct {
	profile    string
	attachment map[string]any
}

func good() wish {
	return wish{profile: fleetProfile, attachment: map[string]any{"name": "fleet", "unit": []string{"fleet.service"}, "profile": "fleetprofile"}}
}

// inventory writes it, in JSON, which is YAML as well.
func (f *fleet) inventory(t *testing.T, w wish) {
	t.Helper()
	hosts := map[string]map[string]any{}
	for i, host := range f.hosts {
		m := f.machines[host]
		// ssh -i KEY -p PORT …
		ssh := m.SSHCommand()
		port, err := strconv.Atoi(ssh[slices.Index(ssh, "-p")+1])
		if err != nil {
			t.Fatal(err)
		}
		hosts[host] = map[string]any{"ansible_host": "127.0.0.1", "ansible_port": port, "ansible_user": "root", "ansible_ssh_private_key_file": ssh[slices.Index(ssh, "-i")+1]}
		if i < len(f.hosts)-1 {
			hosts[host]["aaunit_deb"] = f.deb
		}
	}
	profile := map[string]any{"name": "fleetprofile", "content": w.profile}
	if w.profile == "" {
		profile = map[string]any{"name": "fleetprofile", "state": "absent"}
	}
	text, err := json.Marshal(map[string]any{"agents": map[string]any{"hosts": hosts, "vars": map[string]any{
		"aaunit_profiles": []any{profile}, "aaunit_attachments": []any{w.attachment}, "aaunit_hosts": "agents",
		"aaunit_serial": []any{1, "100%"},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	f.file(t, "inventory.yml", string(text))
}

// recap is a host's line at the end of a play.
type recap struct{ ok, changed, unreachable, failed int }

var recapLine = regexp.MustCompile(`(?m)^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)`)

// play runs a playbook of the collection, and gives what became of each host.
func (f *fleet) play(t *testing.T, playbook string, args ...string) (map[string]recap, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/usr/bin/ansible-playbook", append([]string{"-i", "inventory.yml", "aaunit.core." + playbook}, args...)...)
	cmd.Dir = f.dir
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin", "HOME="+f.dir, "ANSIBLE_CONFIG="+filepath.Join(f.dir, "ansible.cfg"), "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	begun := time.Now()
	err := cmd.Run()
	t.Logf("ansible-playbook aaunit.core.%s %s: %v, after %v", playbook, strings.Join(args, " "), err, time.Since(begun).Round(time.Second))
	text := out.String()
	all := map[string]recap{}
	for _, m := range recapLine.FindAllStringSubmatch(text, -1) {
		n := make([]int, 4)
		for i := range n {
			n[i], _ = strconv.Atoi(m[i+2])
		}
		all[m[1]] = recap{n[0], n[1], n[2], n[3]}
	}
	if len(all) == 0 {
		t.Fatalf("no host is in the recap:\n%s", text)
	}
	failed := false
	for host, r := range all {
		if r.unreachable > 0 {
			t.Fatalf("%s cannot be reached:\n%s", host, text)
		}
		failed = failed || r.failed > 0
	}
	if failed != (err != nil) {
		t.Fatalf("%v, and failed hosts: %v:\n%s", err, failed, text)
	}
	return all, text
}

// rolled runs the roll-out, which must succeed on every host.
func (f *fleet) rolled(t *testing.T, args ...string) (map[string]recap, string) {
	t.Helper()
	all, text := f.play(t, "rollout", args...)
	for _, host := range f.hosts {
		if r, there := all[host]; !there || r.failed > 0 {
			t.Fatalf("%s: %+v\n%s", host, r, text)
		}
	}
	return all, text
}

// TestFleet rolls a profile out over three machines of two releases with Ansible:
// check mode says what will be done, every host is confined, a second run changes
// nothing, a bad profile stops at the first host and leaves the others as they were,
// the former files bring everything back, and a host on which somebody took the
// profiles off is reported.
func TestFleet(t *testing.T) {
	f := startFleet(t)
	label := func(host string) string { return labels(t, f.machines[host], "fleet") }
	everywhere := func(want string) {
		t.Helper()
		for _, host := range f.hosts {
			if got := label(host); got != want {
				t.Errorf("%s: the agent runs as %q, not %q", host, got, want)
			}
		}
	}
	sums := func() string {
		t.Helper()
		var all []string
		for _, host := range f.hosts[1:] {
			all = append(all, output(t, f.machines[host], "sha256sum /etc/apparmor.d/fleetprofile /etc/aaunit/attachments.d/fleet.conf"))
		}
		return strings.Join(all, "\n")
	}
	everywhere("unconfined")

	// On hosts without aaunit, a check has nobody to ask and does nothing.
	f.inventory(t, good())
	f.rolled(t, "--check")
	everywhere("unconfined")

	// What the attachment forbids is not written, though nothing is attached yet.
	forbidden := good()
	forbidden.attachment["assertions"] = map[string]any{"deny": []string{"write /tmp/**"}}
	f.inventory(t, forbidden)
	all, text := f.play(t, "rollout")
	if r := all[f.hosts[0]]; r.failed != 1 || len(all) != 1 {
		t.Errorf("a profile that its attachment forbids: %+v\n%s", all, text)
	}
	if left := output(t, f.machines[f.hosts[0]], "ls /etc/apparmor.d/fleetprofile /etc/aaunit/attachments.d/fleet.conf 2>/dev/null || true"); left != "" {
		t.Errorf("a profile that its attachment forbids was written: %s", left)
	}

	f.inventory(t, good())
	all, text = f.rolled(t, "--diff")
	for host, r := range all {
		if r.changed == 0 {
			t.Errorf("%s: nothing was changed:\n%s", host, text)
		}
	}
	everywhere("fleetprofile (enforce)")
	if !strings.Contains(text, "attached units: 1, all of them confined") || !strings.Contains(text, "+Unit=fleet.service") {
		t.Errorf("the play does not show the proof and the difference:\n%s", text)
	}

	all, text = f.rolled(t)
	for host, r := range all {
		if r.changed != 0 {
			t.Errorf("%s: a second run changes %d:\n%s", host, r.changed, text)
		}
	}

	// What a check predicts is what happens.
	stricter := good()
	stricter.attachment["settle_sec"] = "3s"
	stricter.profile = strings.Replace(fleetProfile, "owner /tmp/** rw,", "owner /tmp/fleet* rw,", 1)
	f.inventory(t, stricter)
	before := sums()
	predicted, text := f.rolled(t, "--check", "--diff")
	if sums() != before {
		t.Error("a check has changed files")
	}
	if !strings.Contains(text, "+SettleSec=3s") || !strings.Contains(text, "+  owner /tmp/fleet* rw,") {
		t.Errorf("the check does not show the difference:\n%s", text)
	}
	happened, text := f.rolled(t)
	for _, host := range f.hosts {
		if predicted[host].changed == 0 || predicted[host].changed != happened[host].changed {
			t.Errorf("%s: %d changes were predicted and %d made:\n%s", host, predicted[host].changed, happened[host].changed, text)
		}
	}
	everywhere("fleetprofile (enforce)")

	// A text that does not compile, and one that keeps the agent from its work, both
	// stop at the first host.
	for name, profile := range map[string]string{
		"does not compile": strings.Replace(fleetProfile, "rw,", "rz,", 1),
		"denies":           strings.Replace(fleetProfile, "owner /tmp/** rw,", "", 1),
	} {
		bad := stricter
		bad.profile = profile
		f.inventory(t, bad)
		before := sums()
		all, text := f.play(t, "rollout")
		if r := all[f.hosts[0]]; r.failed != 1 || len(all) != 1 {
			t.Errorf("a profile that %s: %+v\n%s", name, all, text)
		}
		if sums() != before {
			t.Errorf("a profile that %s came to hosts behind the first", name)
		}
		everywhere("fleetprofile (enforce)")
	}

	// The way back is the files of before.
	f.inventory(t, stricter)
	all, text = f.rolled(t)
	if all[f.hosts[0]].changed == 0 || all[f.hosts[1]].changed != 0 || all[f.hosts[2]].changed != 0 {
		t.Errorf("back: %+v\n%s", all, text)
	}
	everywhere("fleetprofile (enforce)")

	// A profile and what is asserted and waived of it change in one go, either way.
	asserting, relaxed := good(), good()
	asserting.profile = stricter.profile
	asserting.attachment["assertions"] = map[string]any{"deny": []string{"write /srv/fleet"}}
	relaxed.profile = strings.Replace(stricter.profile, "owner /tmp/fleet* rw,", "owner /tmp/fleet* rw,\n  /srv/fleet w,\n  /usr/bin/id Ux,", 1)
	relaxed.attachment["assertions"] = map[string]any{"waive": []map[string]string{{"code": "policy-may-leave-profile", "reason": "operators ask who it is"}}}
	for _, w := range []wish{asserting, relaxed, asserting, stricter} {
		f.inventory(t, w)
		f.rolled(t, "--check")
		f.rolled(t)
		everywhere("fleetprofile (enforce)")
	}

	// Somebody takes all profiles off a host. The first time aaunitd puts them on
	// again; who does it again finds the unit reported, here and in a check.
	broken := f.hosts[1]
	m := f.machines[broken]
	tearDown := func() { output(t, m, "aa-teardown") }
	tearDown()
	wait(t, m, "aaunitctl verify fleet", func(r machine.Result) bool { return r.Exit == 0 })
	if got := label(broken); got != "fleetprofile (enforce)" {
		t.Errorf("after aa-teardown the agent runs as %q", got)
	}
	tearDown()
	wait(t, m, "aaunitctl status fleet", func(r machine.Result) bool { return r.Exit == 3 && !strings.Contains(r.Stdout, "at work") })
	all, text = f.play(t, "look")
	for _, host := range f.hosts {
		if want := map[bool]int{true: 1}[host == broken]; all[host].failed != want {
			t.Errorf("look: %s: %+v\n%s", host, all[host], text)
		}
	}
	if !strings.Contains(text, "fleet.service: not-confined: [") {
		t.Errorf("look does not say what is wrong:\n%s", text)
	}
	all, text = f.play(t, "rollout", "--check")
	if all[broken].failed == 0 || !strings.Contains(text, "fleet.service: not confined: [") {
		t.Errorf("a check does not report %s: %+v\n%s", broken, all, text)
	}
	// The metrics of the host have it, and the report of the fleet.
	if text := output(t, m, "aaunitctl metrics"); !strings.Contains(text, `aaunit_unit_verdict{unit="fleet.service",verdict="not-confined"} 1`) {
		t.Errorf("the metrics of %s do not have it:\n%s", broken, text)
	}
	for _, host := range f.hosts {
		r, err := f.machines[host].Run(t.Context(), "aaunitctl report --json")
		if err != nil || r.Exit != 3 { // the ssh server has no profile
			t.Errorf("report of %s: %v, exit %d\n%s", host, err, r.Exit, r.Stderr)
		}
		if err := m.PutBytes(t.Context(), []byte(r.Stdout), "/root/"+host+".json", 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if r, err := m.Run(t.Context(), "aaunitctl report --csv --merge /root/host*.json"); err != nil || r.Exit != 3 || strings.Count(r.Stdout, ",fleet.service,yes,fleetprofile,enforce,confined,") != 2 || strings.Count(r.Stdout, ",fleet.service,yes,fleetprofile,enforce,not confined,") != 1 {
		t.Errorf("the report of the fleet: %v, exit %d\n%s%s", err, r.Exit, r.Stdout, r.Stderr)
	}
	output(t, m, "systemctl start fleet.service; systemctl restart fleet.service")
	waitStatus(t, m, "fleet", 0)
	f.rolled(t)
	everywhere("fleetprofile (enforce)")

	gone := wish{attachment: map[string]any{"name": "fleet", "state": "absent"}}
	f.inventory(t, gone)
	predicted, text = f.rolled(t, "--check")
	everywhere("fleetprofile (enforce)")
	happened, _ = f.rolled(t)
	everywhere("unconfined")
	for _, host := range f.hosts {
		if predicted[host].changed == 0 || predicted[host].changed != happened[host].changed {
			t.Errorf("%s: of taking it away %d changes were predicted and %d made:\n%s", host, predicted[host].changed, happened[host].changed, text)
		}
	}
	for _, host := range f.hosts {
		if left := output(t, f.machines[host], "ls /etc/systemd/system/fleet.service.d /etc/apparmor.d/fleetprofile 2>/dev/null || true"); left != "" {
			t.Errorf("%s: %s is left", host, left)
		}
	}
	all, text = f.rolled(t)
	for host, r := range all {
		if r.changed != 0 {
			t.Errorf("%s: taking nothing away changes %d:\n%s", host, r.changed, text)
		}
	}

	// Where there is no daemon to ask, that is what is said.
	output(t, m, "systemctl mask --now aaunitd.service")
	f.inventory(t, good())
	all, text = f.play(t, "rollout", "--limit", broken)
	if all[broken].failed != 1 || !strings.Contains(text, "aaunitd") || strings.Contains(text, "Traceback") {
		t.Errorf("without a daemon: %+v\n%s", all, text)
	}
}
