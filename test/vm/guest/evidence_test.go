//go:build vm

package guest

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// evidence is what verify --evidence says of one unit.
func evidence(t testing.TB, unit string) (attach.EvidenceStatus, result) {
	t.Helper()
	r := ctl(t, "verify", "--evidence", "--json", unit)
	var doc attach.EvidenceReport
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil || len(doc.Units) != 1 {
		t.Fatalf("verify --evidence %s: %v\n%s%s", unit, err, r.stdout, r.stderr)
	}
	return doc.Units[0], r
}

// recordsOf are the files of a unit's evidence, in order, and what the last says.
func recordsOf(t testing.TB, unit string) (files []string, last attach.Evidence) {
	t.Helper()
	files, err := filepath.Glob("/var/lib/aaunit/evidence/" + unit + "/0*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("there is no evidence of %s: %v", unit, err)
	}
	slices.Sort(files)
	if err := json.Unmarshal([]byte(read(t, files[len(files)-1])), &last); err != nil {
		t.Fatal(err)
	}
	return files, last
}

// fileSum is what sha256sum says of a file.
func fileSum(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// TestEvidence: what is on record is what the machine says, a start has a record
// that follows on the one before, whatever is changed is named, and nothing else.
// On every suite.
func TestEvidence(t *testing.T) {
	a := newAgents(t)
	const unit, profile = "evident.service", "evident"
	file := a.ProfileFile(profile, profileText(profile))
	a.Unit(unit, a.agentUnit())
	a.Unit("packaged.service", "[Service]\nExecStart=/usr/bin/sleep infinity\n")
	a.ProfileFile("packaged", "abi <abi/3.0>,\ninclude <tunables/global>\nprofile packaged {\n  include <abstractions/base>\n  /{,usr/}bin/sleep mr,\n}\n")
	a.Reload()
	run(t, "systemctl", "start", unit, "packaged.service")
	t.Cleanup(func() { try0("aaunitctl", "resume", unit) })
	if r := ctl(t, "attach", "evident", "packaged", "--settle", "1s"); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	// told waits for an answer: a machine at its limit may not come to it in time, and
	// says that it cannot tell.
	told := func(when string) (s attach.EvidenceStatus, r result) {
		t.Helper()
		waitFor(t, "whether the evidence holds, "+when, func() (bool, string) {
			s, r = evidence(t, unit)
			return s.Holds != attach.CouldNotTell, r.stdout
		})
		return s, r
	}
	holds := func(when string) attach.EvidenceStatus {
		t.Helper()
		s, r := told(when)
		if s.Holds != attach.Yes || r.exit != 0 {
			t.Fatalf("%s: exit %d\n%s", when, r.exit, r.stdout)
		}
		return s
	}
	broken := func(when string, link attach.EvidenceCode, what string) attach.EvidenceLink {
		t.Helper()
		s, r := told(when)
		if r.exit != 3 || s.First == nil || s.First.Link != link || !strings.Contains(s.First.What, what) {
			t.Errorf("%s: exit %d, want %s %s\n%s", when, r.exit, link, what, r.stdout)
			return attach.EvidenceLink{}
		}
		return *s.First
	}

	// What the record says is so.
	s := holds("after the attach")
	files, e := recordsOf(t, unit)
	if newest := files[len(files)-1]; fileSum(t, newest) != s.Newest.SHA256 || !strings.Contains(newest, s.Newest.SHA256) || s.Newest.File != newest {
		t.Errorf("the newest record is %s, told was %+v", newest, s.Newest)
	}
	dropIn := attach.DropInPath(unit, false)
	started := show(t, unit, "InvocationID")
	boot := read(t, "/proc/sys/kernel/random/boot_id")
	if e.Verdict.InvocationID != started || e.Verdict.Answer != attach.Confined || e.Boot != boot || e.Kernel != read(t, "/proc/sys/kernel/osrelease") ||
		e.DropIn.Path != dropIn || e.DropIn.SHA256 != fileSum(t, dropIn) {
		t.Errorf("the record says %+v", e)
	}
	if len(e.Live) != 1 || !strings.HasSuffix(e.Live[0].Checksum, ":"+checksum(t, profile)) || e.Live[0].Accepted != e.Live[0].Checksum {
		t.Errorf("profiles %+v, the kernel has %s", e.Live, checksum(t, profile))
	}
	if x := e.Executable; x.Path != "/usr/local/bin/vm-agent" || x.SHA256 != fileSum(t, x.Path) || x.Problem != "" || x.Package != "" {
		t.Errorf("executable %+v", x)
	}
	texts := map[string]string{}
	for _, f := range e.Policies[0].Files {
		texts[f.Path] = f.SHA256
	}
	for _, path := range []string{file, "/etc/apparmor.d/abstractions/base", "/etc/apparmor.d/tunables/global"} {
		if texts[path] != fileSum(t, path) {
			t.Errorf("of %s the record has %q", path, texts[path])
		}
	}
	// The Go runtime may have begun another thread since, and ends none.
	if tasks := len(unitTasks(t, unit)); len(e.Labels) != 1 || e.Labels[0].Label != profile+" (enforce)" || e.Labels[0].Count < 2 || e.Labels[0].Count > tasks {
		t.Errorf("labels %+v of %d tasks", e.Labels, tasks)
	}
	info, err := os.Stat(files[0])
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("a record has the mode %v, %v", info.Mode(), err)
	}
	_, pkg := recordsOf(t, "packaged.service")
	if x := pkg.Executable; x.Package != "coreutils" || x.Version != run(t, "dpkg-query", "--show", "--showformat=${Version}", "coreutils") || x.BuildID == "" {
		t.Errorf("executable of a package: %+v", x)
	}
	waitFor(t, "the checksum in the journal", func() (bool, string) {
		text := journalctl(t, "-u", unit, "MESSAGE_ID="+string(journal.MsgEvidence), "AAUNIT_EVIDENCE="+s.Newest.SHA256, "-o", "cat")
		return strings.Contains(text, s.Newest.SHA256), text
	})
	if r := try(t, "runuser", "-u", "nobody", "--", "aaunitctl", "verify", "--evidence", unit); r.exit != 1 || !strings.Contains(r.stdout+r.stderr, "org.aaunit1.inspect") {
		t.Errorf("by nobody: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "verify", "--evidence", "no-such-unit"); r.exit != 4 {
		t.Errorf("of no unit: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// A start, and one with the daemon killed in between.
	run(t, "systemctl", "restart", unit)
	waitVerdict(t, unit)
	next := holds("after a restart")
	if again, e := recordsOf(t, unit); len(again) <= len(files) || e.Previous != fileSum(t, again[len(again)-2]) || next.Newest.Number <= s.Newest.Number || e.Verdict.InvocationID != show(t, unit, "InvocationID") {
		t.Errorf("after a restart: %v\n%+v", again, next.Newest)
	}
	run(t, "systemctl", "kill", "--signal=KILL", "aaunitd.service")
	run(t, "systemctl", "restart", unit)
	waitVerdict(t, unit)
	if s := holds("after aaunitd was killed"); s.Newest.Number <= next.Newest.Number || s.Newest.InvocationID != show(t, unit, "InvocationID") {
		t.Errorf("after aaunitd was killed: %+v", s.Newest)
	}

	// What is changed is named, with old and new. Paused, so that it stays.
	if r := ctl(t, "pause", unit); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	good := read(t, file) + "\n"
	was := fileSum(t, file)
	a.ProfileFile(profile, good+"# more\n")
	if l := broken("a changed text", attach.LinkSource, file); l.Old != "sha256 "+was || l.New != "sha256 "+fileSum(t, file) {
		t.Errorf("%+v", l)
	}
	a.ProfileFile(profile, good)
	agent := read(t, "/usr/local/bin/vm-agent") + "\n"
	a.File("/usr/local/bin/vm-agent", agent+"more", 0o755)
	broken("an upgraded program", attach.LinkOnDisk, "/usr/local/bin/vm-agent")
	data, err := os.ReadFile(payload(t, "agent"))
	if err != nil {
		t.Fatal(err)
	}
	a.File("/usr/local/bin/vm-agent", string(data), 0o755)
	text := read(t, dropIn) + "\n"
	if err := os.WriteFile(dropIn, []byte(text+"# more\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	broken("a changed drop-in", attach.LinkDropIn, dropIn)
	if err := os.WriteFile(dropIn, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	a.Dropin(unit, "95-other.conf", "[Service]\nUser=nobody\n")
	a.Reload()
	broken("changed settings", attach.LinkSettings, "User=")
	if err := os.Remove("/etc/systemd/system/" + unit + ".d/95-other.conf"); err != nil {
		t.Fatal(err)
	}
	a.Reload()
	holds("when all is put back")
	a.loadText(strings.Replace(good, "/etc/hostname r,", "/etc/hostname rw,", 1))
	broken("another policy in the kernel", attach.LinkKernel, profile)
	if r := ctl(t, "resume", unit); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	waitFor(t, "the policy to be put back, and the evidence for it", func() (bool, string) {
		s, r := evidence(t, unit)
		return s.Holds == attach.Yes && r.exit == 0, r.stdout
	})

	// The records themselves.
	files, _ = recordsOf(t, unit)
	middle := files[len(files)-2]
	kept, err := os.ReadFile(middle)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(middle, []byte(strings.Replace(string(kept), `"unit"`, `"Unit"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	broken("an altered record", attach.LinkRecords, "record ")
	if err := os.Remove(middle); err != nil {
		t.Fatal(err)
	}
	broken("a record that was removed", attach.LinkRecords, "record ")
	if err := os.WriteFile(middle, kept, 0o600); err != nil {
		t.Fatal(err)
	}
	holds("when the record is back")

	// A detach leaves the evidence.
	if r := ctl(t, "detach", unit); r.exit != 0 {
		t.Fatal(r.stdout, r.stderr)
	}
	broken("after a detach", attach.LinkAttachment, unit)
	if left, _ := recordsOf(t, unit); len(left) != len(files) {
		t.Errorf("a detach has left %v", left)
	}
}
