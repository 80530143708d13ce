//go:build vm && long

package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

const (
	recordDir = "/var/lib/aaunit/units"
	policyDir = "/var/lib/aaunit/policy"
)

// TestTornRecords does to the record of one unit each what a power cut or a bad
// disk can do, and worse, and truncates the accepted policy of all. aaunitd starts, sets it aside, says so, and takes the
// drop-ins for its own again; nothing happens to the units.
func TestTornRecords(t *testing.T) {
	a := newAgents(t)
	t.Cleanup(func() {
		bad, _ := filepath.Glob("/var/lib/aaunit/*/*.bad")
		for _, path := range bad {
			os.RemoveAll(path)
		}
		try0("systemctl", "restart", "aaunitd.service") // it says it until then
	})
	a.ProfileFile("torn", profileText("torn"))
	write := func(text func(old string) string, mode os.FileMode) func(path string) error {
		return func(path string) error {
			old, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path, []byte(text(string(old))), mode), os.Chmod(path, mode))
		}
	}
	same := func(old string) string { return old }
	instead := func(put func(path string) error) func(path string) error {
		return func(path string) error { return errors.Join(os.Remove(path), put(path)) }
	}
	damage := map[string]func(path string) error{
		"empty":     write(func(string) string { return "" }, 0o600),
		"one":       write(func(old string) string { return old[:1] }, 0o600),
		"half":      write(func(old string) string { return old[:len(old)/2] }, 0o600),
		"most":      write(func(old string) string { return old[:len(old)-3] }, 0o600),
		"zeroes":    write(func(old string) string { return strings.Repeat("\x00", len(old)) }, 0o600),
		"tail":      write(func(old string) string { return old[:100] + strings.Repeat("\x00", len(old)-100) }, 0o600),
		"garbage":   write(func(string) string { return "\x7fELF\xff\xfe\x00" }, 0o600),
		"writable":  write(same, 0o666),
		"owner":     func(path string) error { return os.Chown(path, 65534, 65534) },
		"directory": instead(func(path string) error { return os.MkdirAll(path+"/full", 0o700) }),
		"link":      instead(func(path string) error { return os.Symlink("/etc/shadow", path) }),
	}
	names := []string{}
	for name := range damage {
		names = append(names, "torn-"+name+".service")
	}
	slices.Sort(names)
	// The drop-in of this one is not what the attachment asks for any more when
	// its record is lost.
	const edited = "torn-empty.service"
	for _, unit := range names {
		a.Unit(unit, strings.Replace(a.agentUnit(), " -helper", "", 1))
	}
	a.Reload()
	run(t, "systemctl", append([]string{"start"}, names...)...)
	if r := ctl(t, append([]string{"attach", "--profile", "torn"}, names...)...); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	starts := map[string]string{}
	for _, unit := range names {
		starts[unit] = show(t, unit, "InvocationID")
	}
	dropIn := func(unit string) string { return "/etc/systemd/system/" + unit + ".d/" + attach.DropInName }
	unharmed := func(when string) {
		t.Helper()
		for _, unit := range names {
			if lie := truth(t, unit, "torn"); lie != "" || show(t, unit, "InvocationID") != starts[unit] || !exists(dropIn(unit)) {
				t.Errorf("%s: %s, or restarted, or without a drop-in: %s", when, unit, lie)
			}
		}
	}

	run(t, "systemctl", "stop", "aaunitd.service")
	for name, do := range damage {
		if err := do(filepath.Join(recordDir, "torn-"+name+".service.json")); err != nil {
			t.Fatal(err)
		}
	}
	text := read(t, dropIn(edited)) + "\n# edited\n"
	if err := os.WriteFile(dropIn(edited), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	kept, err := filepath.Glob(policyDir + "/torn-*.tar")
	if err != nil || len(kept) != 1 {
		t.Fatalf("of the accepted policy there is %v (%v)", kept, err)
	}
	if err := os.Truncate(kept[0], 700); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "start", "aaunitd.service")
	waitIdle(t)
	unharmed("after the records were lost")
	rep, _ := report(t, "status")
	plain := ctl(t, "status").stdout
	said := journalctl(t, "-u", "aaunitd.service", "-o", "cat")
	policyBad := "cannot read accepted policy " + kept[0] + ": "
	if !strings.Contains(plain, policyBad) || !strings.Contains(said, policyBad) || !exists(kept[0]) || !exists(kept[0]+".bad") {
		t.Errorf("that %s is bad is not said, or it was not set aside and made anew", kept[0])
	}
	for _, unit := range names {
		path := filepath.Join(recordDir, unit+".json")
		want := fmt.Sprintf("cannot read record %s: ", path)
		if !slices.ContainsFunc(rep.Problems, func(p attach.Reason) bool { return p.Code == attach.RecordBad && p.Where == path }) ||
			!strings.Contains(plain, want) || !strings.Contains(said, want) {
			t.Errorf("that the record of %s is bad is not said in the status and the journal", unit)
		}
		if _, err := os.Lstat(path + ".bad"); err != nil {
			t.Error(err)
		}
		i := slices.IndexFunc(rep.Units, func(s attach.Status) bool { return s.Unit == unit })
		if i < 0 || rep.Units[i].Verdict == nil {
			t.Errorf("nothing is said about %s", unit)
			continue
		}
		if s := rep.Units[i]; unit == edited {
			if !slices.Contains(codesOf(s.Refused), attach.DropInForeign) || read(t, dropIn(unit)) != strings.TrimSuffix(text, "\n") {
				t.Errorf("a drop-in that is not on record and was edited: %+v", s)
			}
		} else if s.Verdict.Answer != attach.Confined || s.DropIn != dropIn(unit) {
			t.Errorf("%s: %+v", unit, s)
		}
	}
	if t.Failed() {
		t.Fatalf("status says\n%s\nand the journal\n%s", plain, said)
	}

	// No records can be kept at all: aaunitd goes on, and changes nothing.
	run(t, "systemctl", "stop", "aaunitd.service")
	if err := errors.Join(os.Rename(recordDir, recordDir+".away"), os.WriteFile(recordDir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(recordDir + ".away") })
	run(t, "systemctl", "start", "aaunitd.service")
	waitIdle(t)
	rep, r := report(t, "status")
	if !slices.ContainsFunc(rep.Problems, func(p attach.Reason) bool {
		return p.Code == attach.RecordBad && strings.HasPrefix(p.Detail, "cannot keep records: ")
	}) {
		t.Errorf("that no records can be kept is not said:\n%s", r.stdout)
	}
	unharmed("without a directory for records")
	run(t, "systemctl", "stop", "aaunitd.service")
	if err := errors.Join(os.Remove(recordDir), os.Rename(recordDir+".away", recordDir)); err != nil {
		t.Fatal(err)
	}
	run(t, "systemctl", "start", "aaunitd.service")
	waitIdle(t)

	// What was taken as its own again is taken back; the edited file stays where
	// it is.
	if r := ctl(t, append([]string{"detach"}, names...)...); r.exit != 0 {
		t.Errorf("detach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	for _, unit := range names {
		if unit != edited && (exists(dropIn(unit)) || unconfined(t, unit) == 0) {
			t.Errorf("%s was not detached", unit)
		}
	}
	if lie := truth(t, edited, "torn"); lie != "" || !exists(dropIn(edited)) {
		t.Errorf("%s is not on record, and was changed: %s", edited, lie)
	}
}
