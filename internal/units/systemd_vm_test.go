//go:build vm

package units_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/units"
)

func TestMain(m *testing.M) {
	if os.Getenv("AAUNIT_VM") == "" {
		fmt.Fprintln(os.Stderr, "cannot run here: with the tag vm these tests change the system they run on, and need go test -exec vmexec")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// patience is for what is sure to happen soon, on an emulated machine.
const patience = 2 * time.Minute

func sh(t *testing.T, script string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func put(t *testing.T, files map[string]string) {
	t.Helper()
	for path, text := range files {
		if !strings.HasPrefix(path, "/") {
			path = "/etc/systemd/system/" + path
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path); os.Remove(filepath.Dir(path)) })
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("it did not happen that %s", what)
}

const sleeper = "[Service]\nExecStart=/bin/sleep infinity\n"

// TestVMObserve looks at one unit of every odd kind.
// On every suite.
func TestVMObserve(t *testing.T) {
	s := units.New(units.Options{})
	defer s.Close()
	put(t, map[string]string{
		"vm-main.service":                  sleeper + "[Install]\nWantedBy=multi-user.target\nAlias=vm-alias.service\n",
		"vm-dep.service":                   "[Unit]\nRequires=vm-main.service\nAfter=vm-main.service\n" + sleeper,
		"vm-dep2.service":                  "[Unit]\nPartOf=vm-dep.service\n" + sleeper,
		"vm-wants.service":                 "[Unit]\nWants=vm-main.service\n" + sleeper,
		"vm-static.service":                sleeper,
		"vm-tmpl@.service":                 sleeper,
		"vm-pre-@.service.d/50.conf":       "[Service]\nAppArmorProfile=with-at\n",
		"vm-pre-@x.service.d/50-x.conf":    "[Service]\nUser=nobody\n",
		"vm-pre-t@.service":                sleeper,
		"vm-once.service":                  "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n",
		"vm-fail.service":                  "[Service]\nExecStart=/bin/sh -c 'exit 7'\n",
		"vm-sock.socket":                   "[Socket]\nListenStream=/run/vm-sock\n",
		"vm-sock.service":                  sleeper,
		"vm-early.service":                 "[Unit]\nDefaultDependencies=no\n" + sleeper,
		"vm-odd.service":                   "[Unit]\nRefuseManualStop=yes\nAssertSecurity=|apparmor\nAssertSecurity=!selinux\n[Service]\nUser=nobody\nPAMName=login\nDelegate=yes\nNoNewPrivileges=yes\nPermissionsStartOnly=yes\nRootDirectory=/srv\nTemporaryFileSystem=/opt:ro\nBindPaths=/srv/a:/a\nBindReadOnlyPaths=-/b:/b:norbind\nAppArmorProfile=-my odd/profile\nExecCondition=/bin/true\nExecStartPre=-+/bin/pre 1\nExecStartPre=!/bin/pre 2\nExecStart=@/bin/agent agent \"a b\"\nExecReload=+/bin/reload\nExecStopPost=-/bin/post\n",
		"vm-apart.service":                 "[Service]\nPrivateTmp=disconnected\nExecStart=/bin/sleep infinity\n",
		"vm-bad.service":                   "[Service]\nType=simple\n",
		"vm-pre-a.service":                 "[Service]\nAppArmorProfile=from-fragment\nExecStart=/bin/sleep infinity\n",
		"service.d/30-type.conf":           "# for all\n[Service]\nPermissionsStartOnly=no\n",
		"vm-pre-.service.d/40-prefix.conf": "[Service]\nAppArmorProfile=from-prefix\nPrivateTmp=yes\n",
		"vm-pre-a.service.d/20-own.conf":   "[Unit]\nAssertSecurity=apparmor\n[Service]\nAppArmorProfile=from-own\n",
		"/run/systemd/system/vm-pre-a.service.d/50-run.conf":         "[Service]\nAppArmorProfile=\\\n# said aside\n  from-%p\n",
		"/etc/systemd/system.control/vm-pre-a.service.d/45-ctl.conf": "[Service]\nAppArmorProfile=from-control\n",
	})
	sh(t, `ln -sf /dev/null /etc/systemd/system/vm-masked.service
		systemctl daemon-reload
		systemctl enable -q vm-main.service
		systemctl start vm-main vm-dep vm-dep2 vm-wants vm-once vm-tmpl@x vm-sock.socket
		systemctl start vm-fail || :
		systemd-run -q --unit=vm-transient -p PrivateTmp=yes sleep infinity`)
	t.Cleanup(func() {
		exec.Command("sh", "-c", `systemctl disable -q vm-main.service; rm /etc/systemd/system/vm-masked.service
			systemctl stop 'vm-*'; systemctl reset-failed`).Run()
	})
	await(t, "vm-fail.service fails", func() bool { return sh(t, "systemctl show -P ActiveState vm-fail.service") == "failed" })

	look := func(name string) attach.Unit {
		t.Helper()
		u, err := s.Observe(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		shown := map[string]string{}
		if strings.HasSuffix(name, ".service") && !strings.HasSuffix(name, "@.service") {
			for _, line := range strings.Split(sh(t, "systemctl show -p LoadState,ActiveState,SubState,InvocationID,MainPID,ControlGroup,FragmentPath,UnitFileState -- '"+name+"'"), "\n") {
				key, value, _ := strings.Cut(line, "=")
				shown[key] = value
			}
		}
		for _, p := range [][2]string{{"LoadState", u.LoadState}, {"ActiveState", u.ActiveState}, {"SubState", u.SubState}, {"InvocationID", u.InvocationID},
			{"MainPID", fmt.Sprint(u.MainPID)}, {"ControlGroup", u.ControlGroup}, {"FragmentPath", u.FragmentPath}, {"UnitFileState", u.UnitFileState}} {
			if want, ok := shown[p[0]]; ok && want != p[1] {
				t.Errorf("%s: %s is %q, systemctl shows %q", name, p[0], p[1], want)
			}
		}
		return u
	}
	check := func(name string, ok bool, u attach.Unit) {
		t.Helper()
		if !ok {
			t.Errorf("%s: %+v", name, u)
		}
	}

	u := look("vm-main.service")
	check("running", u.ActiveState == "active" && u.Type == "simple" && len(u.InvocationID) == 32 && u.UnitFileState == "enabled" && u.Settings.DefaultDependencies && !u.NeedReload, u)
	check("the units that a restart takes along", slices.Equal(u.RestartsWith, []string{"vm-dep.service", "vm-dep2.service"}), u)
	if id, err := s.Invocation(t.Context(), "vm-main.service"); err != nil || id != u.InvocationID {
		t.Errorf("Invocation: %s, %v", id, err)
	}
	alias, err := s.Observe(t.Context(), "vm-alias.service")
	check("alias", err == nil && alias.ID == "vm-main.service" && slices.Contains(alias.Names, "vm-alias.service") && alias.InvocationID == u.InvocationID, alias)

	u = look("vm-none.service")
	check("not found", u.LoadState == "not-found" && u.ID == "vm-none.service" && !u.Found(), u)
	u = look("vm-none@x.service")
	check("instance of no template", u.LoadState == "not-found", u)
	if id, err := s.Invocation(t.Context(), "vm-none.service"); id != "" || err != nil {
		t.Errorf("Invocation of nothing: %q, %v", id, err)
	}
	u = look("vm-masked.service")
	check("masked", u.LoadState == "masked" && u.UnitFileState == "masked" && u.Settings.Assignments == nil, u)
	u = look("vm-transient.service")
	check("transient", u.Transient && u.ActiveState == "active" && u.Settings.PrivateTmp == attach.PrivateTmpYes, u)
	u = look("vm-static.service")
	check("static, never started", u.UnitFileState == "static" && u.InvocationID == "" && u.ActiveState == "inactive" && u.RestartsWith == nil, u)
	u = look("vm-tmpl@.service")
	check("template", u.LoadState == "stub" && u.UnitFileState == "static" && u.FragmentPath == "/etc/systemd/system/vm-tmpl@.service", u)
	u = look("vm-tmpl@x.service")
	check("instance", u.LoadState == "loaded" && u.MainPID > 0 && u.FragmentPath == "/etc/systemd/system/vm-tmpl@.service", u)
	u = look("vm-once.service")
	check("oneshot", u.Type == "oneshot" && u.SubState == "exited" && u.Active(), u)
	u = look("vm-fail.service")
	check("failed", u.ActiveState == "failed" && u.Result == "exit-code" && u.ExecMainCode == 1 && u.ExecMainStatus == 7, u)
	u = look("vm-sock.socket")
	check("socket", u.LoadState == "loaded" && u.ActiveState == "active", u)
	u = look("vm-early.service")
	check("early", !u.Settings.DefaultDependencies && !slices.Contains(u.Settings.After, "sysinit.target"), u)
	u = look("vm-bad.service")
	check("bad", u.LoadState == "bad-setting" && u.LoadError != "", u)
	u = look("vm-apart.service") // newer than 252, which keeps its default
	newer := os.Getenv("AAUNIT_VM_SUITE") != "bookworm"
	apart := attach.PrivateTmpNo
	if newer {
		apart = attach.PrivateTmpDisconnected
	}
	check("a /tmp apart", u.Settings.PrivateTmp == apart, u)
	u = look("user@0.service")
	check("user manager", u.ID == "user@0.service", u)

	u = look("vm-odd.service")
	want := attach.Settings{Profile: "my odd/profile", IgnoreMissing: true, PrivateTmp: "no", KnowsDisconnected: newer, DefaultDependencies: true, NoNewPrivileges: true,
		Delegate: true, User: "nobody", PAMName: "login", RootDirectory: "/srv", MountNamespace: true,
		Mounts: []attach.Mount{{Property: "TemporaryFileSystem", Path: "/opt"}, {Property: "BindPaths", Path: "/a", Source: "/srv/a"},
			{Property: "BindReadOnlyPaths", Path: "/b", Source: "/b", ReadOnly: true, Flat: true}},
		Bounding: math.MaxUint64,
		Exec: []attach.ExecCommand{
			{Property: "ExecCondition", Path: "/bin/true", Argv: []string{"/bin/true"}},
			{Property: "ExecStartPre", Path: "/bin/pre", Argv: []string{"/bin/pre", "1"}, Privileged: true, IgnoreFailure: true},
			{Property: "ExecStartPre", Path: "/bin/pre", Argv: []string{"/bin/pre", "2"}},
			{Property: "ExecStart", Path: "/bin/agent", Argv: []string{"agent", "a b"}},
			{Property: "ExecReload", Path: "/bin/reload", Argv: []string{"/bin/reload"}, Privileged: true},
			{Property: "ExecStopPost", Path: "/bin/post", Argv: []string{"/bin/post"}, IgnoreFailure: true},
		}}
	// service.d takes PermissionsStartOnly= back.
	if w := u.Settings.Winner("PermissionsStartOnly"); w == nil || w.Path != "/etc/systemd/system/service.d/30-type.conf" || w.Line != 3 || w.Value != "no" {
		t.Errorf("the last assignment is %+v", w)
	}
	got := u.Settings
	got.After, got.Assignments = nil, nil
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) || !u.RefuseStop {
		t.Errorf("odd: %+v\nwant %+v", got, want)
	}

	// Drop-ins from everywhere: what we think wins is what systemd has in effect.
	u = look("vm-pre-a.service")
	var order []string
	for _, a := range u.Settings.Assignments {
		order = append(order, fmt.Sprintf("%s:%d %s=%s", strings.TrimPrefix(a.Path, "/etc/systemd/"), a.Line, a.Key, a.Value))
	}
	t.Logf("assignments: %s", strings.Join(order, ", "))
	if w := u.Settings.Winner("AppArmorProfile"); w == nil || w.Path != "/run/systemd/system/vm-pre-a.service.d/50-run.conf" || w.Line != 2 || w.Value != "from-%p" {
		t.Errorf("the last assignment is %+v", w)
	}
	check("drop-ins", u.Settings.Profile == "from-vm-pre-a" && u.Settings.PrivateTmp == attach.PrivateTmpYes && u.Settings.AssertAppArmor && len(u.DropIns) == 5, u)
	if !slices.IsSortedFunc(u.DropIns, func(a, b string) int { return strings.Compare(filepath.Base(a), filepath.Base(b)) }) {
		t.Errorf("systemd's drop-ins are not in the order of their names: %q", u.DropIns)
	}
	// A drop-in of a running unit that came or went: a reload is due, and
	// reading the unit meanwhile is no error. That one came in a directory that
	// is new, systemd 252 does not see by itself.
	extra := attach.DropInPath("vm-main.service", false)
	if _, err := s.WriteDropIn(extra, "[Service]\nPrivateTmp=yes\n"); err != nil {
		t.Fatal(err)
	}
	u = look("vm-main.service")
	check("a drop-in came", u.NeedReload && u.Settings.PrivateTmp == attach.PrivateTmpNo && len(u.Settings.Assignments) == 1, u)
	t.Logf("systemd itself says NeedDaemonReload=%s", sh(t, "systemctl show -P NeedDaemonReload vm-main.service"))
	sh(t, "systemctl daemon-reload")
	u = look("vm-main.service")
	check("a drop-in was read", !u.NeedReload && u.Settings.PrivateTmp == attach.PrivateTmpYes && len(u.Settings.Assignments) == 2, u)
	if _, err := s.RemoveDropIn(extra); err != nil {
		t.Fatal(err)
	}
	u = look("vm-main.service")
	check("a drop-in went", u.NeedReload && u.Settings.PrivateTmp == attach.PrivateTmpYes && len(u.Settings.Assignments) == 1, u)
	// A prefix directory serves instances too, without the @ and with it.
	u = look("vm-pre-t@x.service")
	check("an instance and the prefix", u.Settings.Profile == "with-at" && u.Settings.PrivateTmp == attach.PrivateTmpYes && u.Settings.User == "nobody", u)

	// The last one of each key wins, one file after the other taken away.
	for _, c := range [][2]string{{"/run/systemd/system/vm-pre-a.service.d/50-run.conf", "from-control"}, {"/etc/systemd/system.control/vm-pre-a.service.d/45-ctl.conf", "from-prefix"}} {
		if err := os.Remove(c[0]); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := s.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		t.Logf("daemon-reload took %v", time.Since(began))
		u = look("vm-pre-a.service")
		check(c[1], u.Settings.Profile == c[1] && u.Settings.Winner("AppArmorProfile").Value == c[1] && !u.NeedReload, u)
	}

	// Our own, written, effective after a reload, and taken away again.
	for _, runtime := range []bool{false, true} {
		path := attach.DropInPath("vm-pre-a.service", runtime)
		a := attach.NewAttachment()
		if changed, err := s.WriteDropIn(path, attach.DropIn(a, "my agent")); !changed || err != nil {
			t.Fatalf("write %s: %v, %v", path, changed, err)
		}
		if err := s.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		u = look("vm-pre-a.service")
		check(path, u.Settings.Profile == "my agent" && !u.Settings.IgnoreMissing && u.Settings.AssertAppArmor && u.Settings.Winner("AppArmorProfile").Path == path &&
			slices.Contains(u.Settings.After, "apparmor.service"), u)
		if changed, err := s.RemoveDropIn(path); !changed || err != nil {
			t.Fatalf("remove %s: %v, %v", path, changed, err)
		}
	}
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	u = look("vm-pre-a.service")
	check("taken away", u.Settings.Profile == "from-prefix", u)
	if st, err := os.Stat("/run/systemd/system/vm-pre-a.service.d"); err == nil {
		t.Errorf("%s was left behind", st.Name())
	}

	list, err := s.Expand(t.Context(), "vm-*.service")
	t.Logf("vm-*.service: %q, %v", list, err)
	for _, n := range []string{"vm-main.service", "vm-tmpl@.service", "vm-tmpl@x.service", "vm-static.service"} {
		if !slices.Contains(list, n) {
			t.Errorf("the list lacks %s", n)
		}
	}
	for _, n := range []string{"vm-alias.service", "vm-masked.service", "vm-none.service", "vm-sock.socket"} {
		if slices.Contains(list, n) {
			t.Errorf("the list has %s", n)
		}
	}
	began := time.Now()
	all, err := s.Expand(t.Context(), "*.service")
	t.Logf("%d services in %v, %v", len(all), time.Since(began), err)
	began = time.Now()
	for i, n := range all {
		if i%4 != 0 { // a quarter of Debian's own is enough, and this is emulated
			continue
		}
		if _, err := s.Observe(t.Context(), n); err != nil {
			t.Error(err)
		}
	}
	t.Logf("observed a quarter of them in %v", time.Since(began))
}

// record collects what Follow sends.
type record struct {
	mu     sync.Mutex
	events []attach.UnitEvent
}

func follow(t *testing.T, s *units.Systemd) *record {
	ctx, cancel := context.WithCancel(t.Context())
	r := &record{}
	ch := s.Follow(ctx, func(u string) bool { return strings.HasPrefix(u, "vmf-") })
	var wg sync.WaitGroup
	wg.Go(func() {
		for e := range ch {
			r.mu.Lock()
			r.events = append(r.events, e)
			r.mu.Unlock()
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	return r
}

func (r *record) take() []attach.UnitEvent {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.events
	r.events = nil
	return e
}

func (r *record) has(kind attach.UnitEventKind, unit string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Contains(r.events, attach.UnitEvent{Kind: kind, Unit: unit})
}

// waiting is how many events nobody has taken.
func (r *record) waiting() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

func count(events []attach.UnitEvent, kind attach.UnitEventKind, unit string) (n int) {
	for _, e := range events {
		if e.Kind == kind && e.Unit == unit {
			n++
		}
	}
	return n
}

// TestVMFollow follows units through everything that happens to them, and
// systemd and the bus through theirs.
// On every suite.
func TestVMFollow(t *testing.T) {
	const S, E = attach.UnitStarted, attach.UnitEnded
	s := units.New(units.Options{})
	defer s.Close()
	put(t, map[string]string{
		"vmf-a.service":      sleeper + "Restart=always\nRestartSec=100ms\nStartLimitBurst=100\n",
		"vmf-pre.service":    "[Service]\nExecStartPre=/bin/sleep 0.5\nExecStart=/bin/sleep infinity\nExecStartPost=/bin/sleep 0.5\n",
		"vmf-once.service":   "[Service]\nType=oneshot\nExecStart=/bin/sleep 0.3\n",
		"vmf-quick.service":  "[Service]\nType=oneshot\nExecStart=/bin/true\n",
		"vmf-bad.service":    "[Service]\nType=exec\nExecStart=/bin/true\nAppArmorProfile=no such profile\n",
		"vmf-notify.service": "[Service]\nType=notify\nExecStart=/bin/sh -c 'sleep 0.3; systemd-notify --ready; exec sleep infinity'\nNotifyAccess=all\n",
		"other.service":      sleeper,
	})
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("sh", "-c", "systemctl stop 'vmf-*' other; systemctl reset-failed").Run() })
	r := follow(t, s)
	// quiet waits until systemd has nothing more to do and to tell.
	quiet := func() {
		t.Helper()
		for seen := -1; ; {
			time.Sleep(2 * time.Second)
			n := r.waiting()
			if n == seen && strings.Contains(sh(t, "systemctl list-jobs || :"), "No jobs") {
				return
			}
			seen = n
		}
	}
	do := func(what, unit string, started, ended int, act func()) {
		t.Helper()
		r.take()
		act()
		if started > 0 {
			await(t, what+": a start is told", func() bool { return r.has(S, unit) })
		}
		if ended > 0 {
			await(t, what+": an end is told", func() bool { return r.has(E, unit) })
		}
		quiet()
		got := r.take()
		t.Logf("%s: %v", what, got)
		// A start is told once for each of its stages: at least once, at most thrice.
		if n := count(got, S, unit); n < started || n > 3*started {
			t.Errorf("%s: %d starts told, want %d", what, n, started)
		}
		if n := count(got, E, unit); n != ended {
			t.Errorf("%s: %d ends told, want %d", what, n, ended)
		}
		for _, e := range got {
			if e.Unit != unit {
				t.Errorf("%s: told %v", what, e)
			}
		}
	}
	run := func(script string) func() { return func() { sh(t, script) } }
	do("another unit", "vmf-none.service", 0, 0, run("systemctl start other.service"))
	do("start", "vmf-a.service", 1, 0, run("systemctl start vmf-a.service"))
	do("restart", "vmf-a.service", 1, 1, run("systemctl restart vmf-a.service"))
	do("crash", "vmf-a.service", 1, 1, run("kill -9 $(systemctl show -P MainPID vmf-a.service)"))
	do("observing it", "vmf-a.service", 0, 0, func() {
		for range 20 {
			if _, err := s.Observe(t.Context(), "vmf-a.service"); err != nil {
				t.Error(err)
			}
			if _, err := s.Observe(t.Context(), "vmf-none.service"); err != nil {
				t.Error(err)
			}
		}
	})
	// Anybody may send a signal to any connection; ours believes systemd alone.
	do("forged signals", "vmf-a.service", 0, 0, run(`
		for name in $(dbus-send --system --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.ListNames | grep -o ':1\.[0-9]*'); do
			for forged in "Manager.Reloading boolean:false" Manager.UnitFilesChanged; do
				setpriv --reuid=65534 --clear-groups dbus-send --system --type=signal --dest="$name" /org/freedesktop/systemd1 org.freedesktop.systemd1.$forged
			done
		done`))
	do("stages", "vmf-pre.service", 1, 0, run("systemctl start vmf-pre.service"))
	do("notify", "vmf-notify.service", 1, 0, run("systemctl start vmf-notify.service"))
	do("oneshot", "vmf-once.service", 1, 1, run("systemctl start vmf-once.service"))
	do("quick oneshot", "vmf-quick.service", 1, 1, run("systemctl start vmf-quick.service"))
	do("quick oneshot again", "vmf-quick.service", 1, 1, run("systemctl start vmf-quick.service"))
	do("profile not loaded", "vmf-bad.service", 1, 1, run("systemctl start vmf-bad.service || :"))
	do("stop", "vmf-a.service", 0, 1, run("systemctl stop vmf-a.service"))
	sh(t, "systemctl start vmf-a.service")
	quiet()

	r.take()
	sh(t, "systemctl daemon-reload; systemctl daemon-reload; systemctl daemon-reload")
	await(t, "a reload is told", func() bool { return r.has(attach.UnitsReloaded, "") })
	quiet()
	got := r.take()
	t.Logf("three reloads: %v", got)
	if n := count(got, attach.UnitsReloaded, ""); n < 1 || n > 3 {
		t.Errorf("%d reloads told, of three", n)
	}
	if n := count(got, S, "vmf-a.service") + count(got, E, "vmf-a.service"); n > 0 {
		t.Errorf("reloads gave %d starts and ends", n)
	}

	sh(t, "systemctl mask -q --runtime other.service")
	await(t, "a change of unit files is told", func() bool { return r.has(attach.UnitsReloaded, "") })
	sh(t, "systemctl unmask -q --runtime other.service")
	quiet()

	again := func(what, script string) {
		t.Helper()
		r.take()
		began := time.Now()
		sh(t, script)
		if _, err := s.Observe(t.Context(), "vmf-a.service"); err != nil {
			t.Errorf("observe right after %s: %v", what, err)
		}
		await(t, what+": back", func() bool { return r.has(attach.BusBack, "") })
		t.Logf("%s: %v after %v", what, r.take(), time.Since(began))
		quiet()
		r.take()
		sh(t, "kill -9 $(systemctl show -P MainPID vmf-a.service)")
		await(t, what+": starts are told again", func() bool { return r.has(S, "vmf-a.service") })
		if _, err := s.Observe(t.Context(), "vmf-a.service"); err != nil {
			t.Errorf("observe after %s: %v", what, err)
		}
	}
	again("daemon-reexec", "systemctl daemon-reexec")
	again("restart of the bus", "systemctl restart dbus.service")
	again("kill of the bus", "kill -9 $(systemctl show -P MainPID dbus.service)")
}

func TestVMJobs(t *testing.T) {
	s := units.New(units.Options{})
	defer s.Close()
	put(t, map[string]string{
		"vmj-a.service":      sleeper,
		"vmj-off.service":    sleeper,
		"vmj-bad.service":    "[Service]\nType=exec\nExecStart=/bin/sleep infinity\n",
		"vmj-slow.service":   "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/sleep 8\n",
		"vmj-never.service":  "[Service]\nType=oneshot\nTimeoutStartSec=infinity\nExecStart=/bin/sleep infinity\n",
		"vmj-hard.service":   "[Unit]\nStartLimitBurst=2\nStartLimitIntervalSec=1h\n[Service]\nType=exec\nExecStart=/bin/sleep infinity\n",
		"vmj-assert.service": "[Unit]\nAssertPathExists=/nowhere\n" + sleeper,
		"vmj-cond.service":   "[Unit]\nConditionPathExists=/nowhere\n" + sleeper,
		"vmj-refuse.service": "[Unit]\nRefuseManualStart=yes\n" + sleeper,
	})
	if err := s.Reload(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("sh", "-c", "systemctl stop 'vmj-*'; systemctl reset-failed").Run() })
	ctx := t.Context()
	state := func(u string) string { return sh(t, "systemctl show -P ActiveState "+u) }
	fails := func(what string, err error, says ...string) {
		t.Helper()
		t.Logf("%s: %v", what, err)
		for _, w := range says {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v; want an error that says %q", what, err, w)
			}
		}
	}

	if err := s.Start(ctx, "vmj-a.service"); err != nil {
		t.Fatal(err)
	}
	before, _ := s.Invocation(ctx, "vmj-a.service")
	began := time.Now()
	if err := s.TryRestart(ctx, "vmj-a.service"); err != nil {
		t.Fatal(err)
	}
	t.Logf("try-restart took %v", time.Since(began))
	if after, _ := s.Invocation(ctx, "vmj-a.service"); after == before || after == "" {
		t.Errorf("it was not restarted: %q, %q", before, after)
	}
	began = time.Now()
	if err := s.TryRestart(ctx, "vmj-off.service"); err != nil || state("vmj-off.service") != "inactive" {
		t.Errorf("try-restart of what does not run: %v, %s", err, state("vmj-off.service"))
	}
	t.Logf("try-restart of what does not run took %v", time.Since(began))
	if err := s.Stop(ctx, "vmj-a.service"); err != nil || state("vmj-a.service") != "inactive" {
		t.Errorf("stop: %v", err)
	}
	if err := s.Stop(ctx, "vmj-a.service"); err != nil {
		t.Errorf("stop of what does not run: %v", err)
	}

	// Eight at once.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Start(ctx, "vmj-a.service"); err != nil {
				t.Error(err)
			}
			if err := s.TryRestart(ctx, "vmj-a.service"); err != nil && !strings.Contains(err.Error(), "canceled") {
				t.Error(err)
			}
		})
	}
	wg.Wait()

	if err := s.Start(ctx, "vmj-bad.service"); err != nil {
		t.Fatal(err)
	}
	put(t, map[string]string{"vmj-bad.service.d/x.conf": "[Service]\nAppArmorProfile=no such profile\n"})
	if err := s.Reload(ctx); err != nil {
		t.Fatal(err)
	}
	fails("profile not loaded", s.TryRestart(ctx, "vmj-bad.service"), "cannot restart vmj-bad.service", `"failed"`, "231/APPARMOR")
	if err := s.TryRestart(ctx, "vmj-bad.service"); err != nil {
		t.Errorf("try-restart of what failed: %v", err)
	}
	fails("nothing of that name", s.TryRestart(ctx, "vmj-none.service"), "vmj-none.service not found")
	fails("start of nothing", s.Start(ctx, "vmj-none.service"), "vmj-none.service not found")
	fails("assertion", s.Start(ctx, "vmj-assert.service"), `"assert"`)
	fails("refuses", s.Start(ctx, "vmj-refuse.service"), "cannot start vmj-refuse.service")
	if err := s.Start(ctx, "vmj-cond.service"); err != nil {
		t.Errorf("condition: %v", err)
	}
	for range 6 { // beyond the start limit
		if err := s.Start(ctx, "vmj-hard.service"); err != nil {
			t.Fatal(err)
		}
		if err := s.Stop(ctx, "vmj-hard.service"); err != nil {
			t.Fatal(err)
		}
	}

	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	fails("too slow", s.Start(short, "vmj-never.service"), "has not ended", "deadline")
	cancel()
	if err := s.Stop(ctx, "vmj-never.service"); err != nil {
		t.Error(err)
	}
	// The bus, or systemd itself, goes away while a job runs.
	for _, script := range []string{"systemctl daemon-reload", "systemctl daemon-reexec", "systemctl restart dbus.service"} {
		done := make(chan error, 1)
		go func() { done <- s.Start(ctx, "vmj-slow.service") }()
		await(t, "the slow unit starts", func() bool { return state("vmj-slow.service") == "activating" })
		sh(t, script)
		if err := <-done; err != nil || state("vmj-slow.service") != "active" {
			t.Errorf("%s during a start: %v, %s", script, err, state("vmj-slow.service"))
		}
		if err := s.Stop(ctx, "vmj-slow.service"); err != nil {
			t.Error(err)
		}
	}
	// A reload survives the bus, too.
	done := make(chan error, 1)
	go func() { done <- s.Reload(ctx) }()
	sh(t, "systemctl restart dbus.service")
	if err := <-done; err != nil {
		t.Errorf("reload during a restart of the bus: %v", err)
	}
}
