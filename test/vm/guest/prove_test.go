//go:build vm && long

package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestNamesThatEscape: profiles whose names and paths lead out of the staging
// namespace, or out of the lines that are printed.
func TestNamesThatEscape(t *testing.T) {
	a := newAgents(t)
	namespaces := func() []string {
		found, err := filepath.Glob("/sys/kernel/security/apparmor/policy/namespaces/*")
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	before, loaded := namespaces(), loadedProfiles(t)
	a.Unit("esc.service", a.agentUnit())
	a.Reload()
	run(t, "systemctl", "start", "esc.service")
	head := "abi <abi/3.0>,\ninclude <tunables/global>\n"
	texts := map[string]string{
		"esc-namespace":    head + "profile :vm-evil:esc {\n}\n",
		"esc-root":         head + "profile \":root://esc\" {\n}\n",
		"esc-dots":         head + "profile \"../../../.replace\" {\n}\n",
		"esc-child-dots":   head + "profile esc-d {\n profile \"../../../namespaces/vm-evil\" {\n}\n}\n",
		"esc-stacked":      head + "profile \"esc-a//&unconfined\" {\n}\n",
		"esc-ns-stacked":   head + "profile \"esc-b//&:vm-evil:x\" {\n}\n",
		"esc-terminal":     head + "profile \"esc-\x1b]0;owned\a\x1b[31m\" {\n}\n",
		"esc-bidi":         head + "profile \"esc-\u202egoog\" {\n}\n",
		"esc-line":         head + "profile \"esc-\\n  \\342\\234\\223 confined\" {\n}\n",
		"esc-path":         head + "profile esc-path {\n  \"/srv/\x1b\\[2J\x1b\\]0;owned\a\u202e/**\" rw,\n  \"/etc/cron.d/\x1b\\[2J\" w,\n}\n",
		"esc-attach-path":  head + "profile esc-attach-path \"/srv/\x1b\\[2J*\" {\n  /dev/shm/** rw,\n}\n",
		"esc-\x1b[31mfile": head + "profile esc-file {\n  /dev/shm/** rw,\n}\n",
		"esc-include":      head + "profile esc-include {\n  include \"../../etc/shadow\"\n}\n",
		"esc-target":       head + "profile esc-target {\n  /usr/bin/id Px -> :vm-evil:x,\n  change_profile -> :vm-evil:y,\n}\n",
	}
	fine := func(what string, r result) {
		t.Helper()
		for _, c := range r.stdout + r.stderr {
			if unicode.IsControl(c) && c != '\n' || unicode.Is(unicode.Cf, c) {
				t.Errorf("%s prints %q\n%q", what, c, r.stdout+r.stderr)
				return
			}
		}
	}
	var files []string
	for name, text := range texts {
		files = append(files, a.ProfileFile(name, text))
	}
	slices.Sort(files)
	for _, file := range files {
		fine("check "+file, ctl(t, "check", file))
		fine("query "+file, ctl(t, "query", file, "write /**"))
		r := ctl(t, "attach", "esc", "--profile", file, "--dry-run")
		fine("attach "+file, r)
		if now := namespaces(); !slices.Equal(now, before) {
			t.Errorf("%s leaves namespaces: %q", file, now)
			before = now
		}
	}
	out, r := outcomes(t, append([]string{"check"}, files...)...)
	fine("check --json", r)
	for _, file := range files {
		o, ok := out[strings.NewReplacer("\x1b", `\u001b`).Replace(file)]
		if !ok {
			o, ok = out[file]
		}
		if !ok {
			t.Errorf("%q is not in the answer", file)
		}
		for _, f := range slices.Concat(o.Reasons, o.Notes, asides(o)) {
			t.Logf("%q: %s", file, f)
		}
	}
	if r := ctl(t, "list", "--profiles"); r.exit != 0 && r.exit != 5 { // 5: of some not even a name can be read
		t.Errorf("exit %d\n%s", r.exit, r.stderr)
	} else {
		fine("list --profiles", r)
	}
	for name := range loadedProfiles(t) {
		if _, was := loaded[name]; !was {
			t.Errorf("profile %q is loaded by now", name)
		}
	}
}

// TestAKernelThatCannotBeAsked: where there is no query file that is said, and the
// compiled policy answers by itself. The daemon's view of it is taken away. (That of
// the policy namespaces cannot be: they lie behind a link into a mount of the
// kernel's own.)
func TestAKernelThatCannotBeAsked(t *testing.T) {
	a := newAgents(t)
	file := a.ProfileFile("deaf", profileText("deaf", "/dev/shm/** rw,"))
	a.Unit("deaf.service", a.agentUnit())
	t.Cleanup(func() {
		os.RemoveAll("/etc/systemd/system/aaunitd.service.d")
		try0("systemctl", "daemon-reload")
		try0("systemctl", "restart", "aaunitd.service")
	})
	for _, c := range []struct{ hidden, says string }{
		{"", "all answers agree"},
		{"/sys/kernel/security/apparmor/.access", "not asked"},
	} {
		text := "[Service]\n"
		if c.hidden != "" {
			text += "InaccessiblePaths=" + c.hidden + "\n"
		}
		a.Dropin("aaunitd.service", "deaf.conf", text)
		a.Reload()
		run(t, "systemctl", "restart", "aaunitd.service")
		r := ctl(t, "check", file)
		if !strings.Contains(r.stdout, c.says) || !strings.Contains(r.stdout, string(attach.MayWriteTmp)) || r.exit != 3 {
			t.Errorf("without %s: exit %d\n%s%s", c.hidden, r.exit, r.stdout, r.stderr)
		}
		t.Log(r.stdout)
		out, _ := outcomes(t, "check", file)
		if q := out[file].Questioned; len(q) != 1 || q[0].Wholly() != (c.hidden == "") || (q[0].NotAsked == "") != (c.hidden == "") {
			t.Errorf("without %s: %+v", c.hidden, q)
		}
		if r := ctl(t, "query", file, "write /dev/shm/**"); r.exit != 3 {
			t.Errorf("without %s: query exits %d\n%s%s", c.hidden, r.exit, r.stdout, r.stderr)
		}
	}
}
