package packaging_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/state"
)

// list gives a list of units that a script of the package has.
func list(t *testing.T, script, name string) []string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + name + `="([^"]*)"$`).FindStringSubmatch(read(t, "deb/"+script))
	if m == nil {
		t.Fatalf("%s has no list %s", script, name)
	}
	return strings.Fields(m[1])
}

// Every service that can be enabled is, and a purge forgets it. Only what runs all
// the time is restarted and stopped. What a socket starts is for the administrator to
// enable; it is stopped with its socket, which a purge forgets too.
func TestScriptsKnowTheUnits(t *testing.T) {
	files, err := filepath.Glob("systemd/*.service")
	if err != nil || len(files) == 0 {
		t.Fatalf("no units: %v", err)
	}
	sockets, err := filepath.Glob("systemd/*.socket")
	if err != nil || len(sockets) == 0 {
		t.Fatalf("no sockets: %v", err)
	}
	var units, daemons, optional, ondemand []string
	for _, file := range sockets {
		optional, ondemand = append(optional, filepath.Base(file)), append(ondemand, strings.TrimSuffix(filepath.Base(file), ".socket")+".service")
	}
	for _, file := range slices.Concat(files, sockets) {
		text := read(t, file)
		if strings.Contains(text, "\n[Install]\n") && !slices.Contains(optional, filepath.Base(file)) {
			units = append(units, filepath.Base(file))
		}
		if !strings.Contains(text, "\nType=oneshot\n") && !slices.Contains(ondemand, filepath.Base(file)) && !slices.Contains(optional, filepath.Base(file)) {
			daemons = append(daemons, filepath.Base(file))
		}
		if !strings.Contains(read(t, "nfpm.yaml"), "/usr/lib/systemd/system/"+filepath.Base(file)+"\n") {
			t.Errorf("%s is not in the package", file)
		}
	}
	for _, script := range []string{"postinst", "postrm"} {
		same(t, "unit", "packaging/systemd", units, script, list(t, script, "units"))
	}
	for _, script := range []string{"postinst", "postrm"} {
		same(t, "socket", "packaging/systemd", optional, script, list(t, script, "optional"))
	}
	same(t, "service of a socket", "packaging/systemd", ondemand, "postinst", list(t, "postinst", "ondemand"))
	same(t, "what a socket starts", "packaging/systemd", slices.Concat(optional, ondemand), "prerm", list(t, "prerm", "ondemand"))
	for _, script := range []string{"postinst", "prerm"} {
		same(t, "daemon", "packaging/systemd", daemons, script, list(t, script, "daemons"))
	}
}

// A purge needs no program of aaunit's, which are gone by then, and no systemd. It
// takes what a record calls ours, and nothing else.
func TestPurgeTakesBackWhatIsOnRecord(t *testing.T) {
	root := t.TempDir()
	put := func(path string) string {
		t.Helper()
		real := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(real, []byte("text\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	const etc, run = "/etc/systemd/system/", "/run/systemd/system/"
	records := state.Dir(filepath.Join(root, "var/lib/aaunit/units"))
	if _, problems := records.Load(); problems != nil {
		t.Fatal(problems)
	}
	record := func(unit string, paths ...string) {
		t.Helper()
		r := attach.Record{Unit: unit, Profile: "p of " + unit, Accepted: map[string]string{"p": "sha256:" + sum}}
		for _, p := range paths {
			r.DropIns = r.DropIns.With(p, sum)
		}
		if err := records.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	// Two files of one unit, one of a pattern that two units share, a name that
	// systemd has escaped, one that is gone, a unit that has none.
	record("a.service", put(etc+"a.service.d/90-aaunit.conf"), put(run+"a.service.d/90-aaunit.conf"))
	put(etc + "a.service.d/.90-aaunit.conf.ABCDEFGH.tmp")
	record("t@.service", put(etc+"t@.service.d/90-aaunit.conf"))
	record("t@1.service", etc+"t@.service.d/90-aaunit.conf")
	record(`dev-x\x2dy.service`, put(etc+`dev-x\x2dy.service.d/90-aaunit.conf`))
	record("gone.service", etc+"gone.service.d/90-aaunit.conf")
	record("held.service")
	// Names that lead elsewhere, in a record that nobody wrote like that, and a
	// directory that is a link.
	keep := []string{put("/etc/passwd"), put("/srv/90-aaunit.conf")}
	record("evil.service", "/etc/passwd", etc+"../../passwd.service.d/90-aaunit.conf", etc+"x/y.service.d/90-aaunit.conf", etc+"link.service.d/90-aaunit.conf")
	keep = append(keep, put(etc+"x/y.service.d/90-aaunit.conf"))
	if err := os.Symlink("/srv", filepath.Join(root, etc, "link.service.d")); err != nil {
		t.Fatal(err)
	}
	keep = append(keep, etc+"link.service.d")
	// What others wrote.
	keep = append(keep, put(etc+"a.service.d/override.conf"), put(etc+"foreign.service.d/90-aaunit.conf"))
	put("/etc/aaunit/attachments.d/a.service.conf")
	put("/run/aaunit/attachments.d/b.service.conf")
	put("/var/lib/aaunit/policy/p")
	put("/var/lib/aaunit/evidence/a.service/000000000001-" + sum + ".json")

	cmd := exec.Command("sh", "deb/postrm", "purge")
	cmd.Env = append(os.Environ(), "DPKG_ROOT="+root, "DPKG_MAINTSCRIPT_PACKAGE=aaunit")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var left []string
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		rest := strings.TrimPrefix(path, root)
		if err == nil && (!d.IsDir() || strings.HasSuffix(rest, ".service.d") || strings.HasSuffix(rest, "/aaunit")) {
			left = append(left, rest)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	keep = append(keep, etc+"a.service.d", etc+"foreign.service.d", etc+"x/y.service.d")
	slices.Sort(keep)
	slices.Sort(left)
	if !slices.Equal(left, keep) {
		t.Errorf("a purge leaves\n%s\nand should leave\n%s", strings.Join(left, "\n"), strings.Join(keep, "\n"))
	}
	for _, want := range []string{
		"aaunit: a.service is not attached to profile p of a.service any more: it starts as its own unit files say from its next start\n",
		`aaunit: dev-x\x2dy.service is not attached to profile `,
		"aaunit: each other unit of t@.service starts as",
		"aaunit: t@1.service is not attached",
		"/etc/systemd/system/foreign.service.d/90-aaunit.conf is not on record",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	if strings.Contains(string(out), "held.service") {
		t.Errorf("it speaks of a unit that had nothing:\n%s", out)
	}
}

// In a chroot, where no systemd runs, the programs for socket options in /sys are those of
// the system around it. Nothing is removed here: whatever the script calls only says so.
func TestPurgeInAChrootLeavesTheKernelAlone(t *testing.T) {
	text := read(t, "deb/postrm")
	for _, booted := range []bool{true, false} {
		dir := t.TempDir()
		there := filepath.Join(dir, "systemd")
		if booted {
			there = dir
		}
		bin := filepath.Join(dir, "bin")
		if err := os.Mkdir(bin, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"rm", "rmdir", "getent", "userdel", "sed", "systemctl", "deb-systemd-helper", "cat"} {
			if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\necho \"$0 $*\" >&2\n"), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		script := filepath.Join(dir, "postrm")
		if err := os.WriteFile(script, []byte(strings.ReplaceAll(text, "/run/systemd/system ]", there+" ]")), 0o755); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/bin/sh", script, "purge")
		cmd.Env = []string{"PATH=" + bin, "DPKG_MAINTSCRIPT_PACKAGE=aaunit"}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "rm -rf /var/lib/aaunit ") {
			t.Fatalf("%v\n%s", err, out)
		}
		if got := strings.Contains(string(out), "rm -rf /sys/fs/bpf/aaunit"); got != booted {
			t.Errorf("systemd runs %v: the pins are removed %v\n%s", booted, got, out)
		}
	}
}

// What an administrator has enabled is forgotten by a purge, too: deb-systemd-helper, of
// which every Debian has one, knows nothing of a unit that postinst does not name to it.
func TestPurgeLeavesNoLinkToAUnit(t *testing.T) {
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "usr/lib/systemd/system"), os.DirFS("systemd")); err != nil {
		t.Fatal(err)
	}
	run := func(args ...string) {
		t.Helper()
		cmd := exec.Command("sh", args...)
		cmd.Env = append(os.Environ(), "DPKG_ROOT="+root, "DPKG_MAINTSCRIPT_PACKAGE=aaunit")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%q: %v\n%s", args, err, out)
		}
	}
	run("deb/postinst", "configure", "")
	link := filepath.Join(root, "etc/systemd/system/sockets.target.wants/aaunit-metrics.socket")
	if _, err := os.Lstat(link); err == nil {
		t.Error("the socket of the metrics is enabled without anybody's asking")
	}
	// systemctl enable aaunit-metrics.socket
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib/systemd/system/aaunit-metrics.socket", link); err != nil {
		t.Fatal(err)
	}
	run("deb/postinst", "configure", "0.1") // an upgrade leaves it so
	if _, err := os.Lstat(link); err != nil {
		t.Error(err)
	}
	run("deb/postrm", "remove")
	run("deb/postrm", "purge")
	var left []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && !strings.HasPrefix(path, root+"/usr/") && strings.Contains(path, "aaunit") {
			left = append(left, path)
		}
		return err
	})
	if err != nil || len(left) > 0 {
		t.Errorf("%v, and a purge leaves %q", err, left)
	}
}
