package evidence

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

func TestEachStartHasARecordOnTheOneBefore(t *testing.T) {
	b := newBench(t, "", nil)
	first := seen("a1")
	b.record(first)
	if !b.Has(unit, first.Key()) || b.Has(unit, seen("a2").Key()) {
		t.Error("Has does not know the newest record")
	}
	b.record(first) // again: nothing new
	b.record(seen("a2"))
	worse := seen("a2")
	worse.Verdict.Answer = attach.NotConfined
	b.record(worse)
	files, records := b.files(unit)
	if len(records) != 3 {
		t.Fatalf("%d records: %v", len(records), files)
	}
	previous := ""
	for i, r := range records {
		if r.Number != i+1 || r.Previous != previous {
			t.Errorf("record %d says that it is %d on %q, want %q", i+1, r.Number, r.Previous, previous)
		}
		data, err := os.ReadFile(files[i])
		if err != nil {
			t.Fatal(err)
		}
		previous = sumOf(data)
		if !strings.Contains(b.log.String(), previous) {
			t.Errorf("the journal does not have %s", previous)
		}
	}
	if n := strings.Count(b.log.String(), string(journal.MsgEvidence)); n != 3 {
		t.Errorf("%d messages in the journal:\n%s", n, b.log)
	}
	e := records[0].Executable
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if e.Problem != "" || e.Path != self || e.SHA256 != sumOf(data) || e.Size != int64(len(data)) {
		t.Errorf("executable %+v", e)
	}
	p := records[0].Policies[0]
	if p.Compiled != sumOf(policy.Blob) || len(p.Files) != 2 || p.Files[0].Path != policy.File || p.Files[0].SHA256 != sumOf(policy.Sources[policy.File]) {
		t.Errorf("policy %+v", p)
	}
	if text, _ := os.ReadFile(files[0]); strings.Contains(string(text), "secret") {
		t.Error("the arguments of the command are in the record")
	}
	info, err := os.Stat(files[0])
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

func TestAnotherLifeGoesOnWithTheChain(t *testing.T) {
	b := newBench(t, "", nil)
	b.record(seen("a1"))
	b.stop()
	// What a write that was cut off has left goes.
	torn := filepath.Join(b.dirOf(unit), ".000000000002-x.json.ABCDEFGH.tmp")
	if err := os.WriteFile(torn, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	b = newBench(t, b.root, nil)
	if b.Has(unit, seen("a1").Key()) {
		t.Error("a new life has it before it has looked")
	}
	b.record(seen("a1"))
	if _, records := b.files(unit); len(records) != 1 || !b.Has(unit, seen("a1").Key()) {
		t.Errorf("what was recorded is recorded again: %d records", len(records))
	}
	b.record(seen("a2"))
	if _, records := b.files(unit); len(records) != 2 || records[1].Number != 2 {
		t.Errorf("%d records", len(records))
	}
	if _, err := os.Lstat(torn); err == nil {
		t.Error("what was cut off stays")
	}
	if s := b.check(seen("a2")); s.Holds != attach.Yes || s.Exit != attach.ExitOK {
		t.Error(describe(s))
	}
}

func TestPruningKeepsTheChainCheckable(t *testing.T) {
	b := newBench(t, "", func(o *Options) { o.Keep = 3 })
	for i := range 8 {
		b.record(seen(fmt.Sprint("a", i)))
	}
	files, records := b.files(unit)
	if len(records) != 3 || records[0].Number != 6 {
		t.Fatalf("kept: %v", files)
	}
	if s := b.check(seen("a7")); s.Holds != attach.Yes {
		t.Error(describe(s))
	}
	// A pruning that was cut off leaves what it had not come to.
	b.stop()
	b = newBench(t, b.root, func(o *Options) { o.Keep = 2 })
	c := b.list(unit)
	anchor := filepath.Join(b.dirOf(unit), anchorName)
	before, err := os.ReadFile(anchor)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(anchor, fmt.Appendf(nil, `{"unit":%q,"number":7,"sha256":%q}`, unit, c.records[1].sum), 0o600); err != nil {
		t.Fatal(err)
	}
	if s := b.check(seen("a7")); s.Holds != attach.Yes {
		t.Error(describe(s))
	}
	if err := os.WriteFile(anchor, before, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(anchor); err != nil {
		t.Fatal(err)
	}
	if s := b.check(seen("a7")); s.Exit != attach.ExitNotConfined || s.First.Link != attach.LinkRecords || s.First.What != "records 1 to 5" {
		t.Error(describe(s))
	}
}

func TestWhatWasDoneToRecordsIsNamed(t *testing.T) {
	for _, tc := range []struct {
		name  string
		do    func(t *testing.T, files []string)
		want  string // in the description
		holds attach.Tri
	}{
		{"altered", func(t *testing.T, f []string) {
			rewrite(t, f[1], func(s string) string { return strings.Replace(s, "nobody", "root", 1) })
		}, "record 2: it was altered", attach.No},
		{"newest altered", func(t *testing.T, f []string) { rewrite(t, f[2], func(s string) string { return s[:len(s)-9] }) }, "record 3: it was altered", attach.No},
		{"altered with its name", func(t *testing.T, f []string) {
			data, _ := os.ReadFile(f[1])
			data = []byte(strings.Replace(string(data), "nobody", "root", 1))
			if err := os.Rename(f[1], filepath.Join(filepath.Dir(f[1]), fileName(2, sumOf(data)))); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(filepath.Dir(f[1]), fileName(2, sumOf(data))), data, 0o600); err != nil {
				t.Fatal(err)
			}
		}, "record 3: it does not follow", attach.No},
		{"removed", func(t *testing.T, f []string) { os.Remove(f[1]) }, "record 2: missing", attach.No},
		{"first removed", func(t *testing.T, f []string) { os.Remove(f[0]) }, "record 1: missing", attach.No},
		{"newest removed", func(t *testing.T, f []string) { os.Remove(f[2]) }, "record 3: missing: aaunitd has written", attach.No},
		{"all removed", func(t *testing.T, f []string) { os.RemoveAll(filepath.Dir(f[0])) }, "records 1 to 3: missing", attach.No},
		{"link", func(t *testing.T, f []string) {
			os.Rename(f[1], f[1]+".real")
			os.Symlink(f[1]+".real", f[1])
		}, "record 2: it was altered", attach.No},
		{"another's", func(t *testing.T, f []string) { os.Chmod(f[1], 0o666) }, "record 2: it was altered", attach.No},
		{"stranger", func(t *testing.T, f []string) {
			os.WriteFile(filepath.Join(filepath.Dir(f[0]), "notes.txt"), nil, 0o600)
		}, "notes.txt", attach.No},
		{"twice", func(t *testing.T, f []string) {
			os.WriteFile(filepath.Join(filepath.Dir(f[0]), fileName(2, strings.Repeat("f", 64))), []byte("{}"), 0o600)
		}, "two records of the number 2", attach.No},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, "", nil)
			for i := range 3 {
				b.record(seen(fmt.Sprint("a", i)))
			}
			files, _ := b.files(unit)
			tc.do(t, files)
			s := b.check(seen("a2"))
			if got := describe(s); s.Holds != tc.holds || s.Exit != attach.ExitNotConfined || !strings.Contains(got, tc.want) {
				t.Errorf("want %q:\n%s", tc.want, got)
			}
			// It is never fatal: the next start has its record.
			b.record(seen("a9"))
			if c := b.list(unit); len(c.records) == 0 || c.records[len(c.records)-1].number != 4 {
				t.Errorf("afterwards: %+v", c.records)
			}
			if s := b.check(seen("a9")); s.Holds == attach.Yes {
				t.Error("the next record has healed it:", describe(s))
			}
		})
	}
}

func rewrite(t *testing.T, file string, change func(string) string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(change(string(data))), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHostileNamesStayInTheDirectory(t *testing.T) {
	b := newBench(t, "", nil)
	names := []string{strings.Repeat("a", 247) + ".service", "..service", ".service", "a@../../x.service", `dev-x\x2dy@[*]?.service`, "sha256-x.service"}
	for _, name := range names {
		e := seen("a1")
		e.Unit = name
		b.record(e)
		_, records := b.files(name)
		if len(records) != 1 || records[0].Unit != name {
			t.Errorf("%q: %d records", name, len(records))
		}
		if rel, err := filepath.Rel(b.opt.Dir, b.dirOf(name)); err != nil || strings.ContainsRune(rel, '/') || strings.HasPrefix(rel, ".") {
			t.Errorf("%q lies in %q", name, rel)
		}
	}
	entries, err := os.ReadDir(b.opt.Dir)
	if err != nil || len(entries) != len(names) {
		t.Errorf("%d directories, %v", len(entries), err)
	}
}

func TestInstancesPushOutTheirOwnOnly(t *testing.T) {
	b := newBench(t, "", nil)
	b.record(seen("a1"))
	for i := range maxInstances + 3 {
		e := seen("a1")
		e.Unit = fmt.Sprintf("conn@%d.service", i)
		e.Executable = attach.EvidenceProgram{Problem: "none"}
		b.record(e)
		old := time.Now().Add(time.Duration(i-1000) * time.Minute)
		if err := os.Chtimes(b.dirOf(e.Unit), old, old); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(b.opt.Dir)
	if err != nil || len(entries) != maxInstances+1 {
		t.Errorf("%d directories, %v", len(entries), err)
	}
	for name, want := range map[string]bool{"conn@0.service": false, "conn@2.service": false, "conn@3.service": true, unit: true} {
		if _, err := os.Stat(b.dirOf(name)); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Of a prefix or glob come units of any name: they keep no other from being recorded, and
// push out no unit that is living.
func TestOfTooManyUnitsTheLivingKeepTheirs(t *testing.T) {
	b := newBench(t, "", nil)
	var living []string
	b.Living = func() []string { return living }
	start := func(name string) attach.EvidenceStatus {
		e := seen("a1")
		e.Unit, e.Executable = name, attach.EvidenceProgram{Problem: "none"}
		b.record(e)
		return b.Check(context.Background(), name, nil, nil)
	}
	long := strings.Repeat("l", 243) + ".service"
	for i, name := range []string{unit, "ended.service", long} {
		if s := start(name); s.Records != 1 {
			t.Fatal(describe(s))
		}
		at := time.Now().Add(time.Duration(i-1000) * time.Hour)
		if err := os.Chtimes(b.dirOf(name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	living = []string{unit, long}
	for i := range maxUnitDirs - 3 {
		living = append(living, fmt.Sprintf("job-%d.service", i))
		if err := os.Mkdir(b.dirOf(living[2+i]), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if s := start("new.service"); s.Records != 1 {
		t.Error(describe(s))
	}
	if s := b.Check(context.Background(), "ended.service", nil, nil); s.Exit != attach.ExitUnknown || s.Records != 0 {
		t.Error("it was not told apart from tampering:", describe(s))
	}
	if !strings.Contains(b.log.String(), "removed the evidence of ended.service") {
		t.Error("it was not told")
	}
	// Where all are living no more is kept, and none goes.
	living = append(living, "new.service")
	if s := start("more.service"); s.Records != 0 || !strings.Contains(b.log.String(), "cannot keep evidence of more.service") {
		t.Error(describe(s), b.log)
	}
	living = living[2:]
	if s := start("more.service"); s.Records != 1 {
		t.Error(describe(s))
	}
	for name, want := range map[string]int{unit: 0, long: 1, "new.service": 1} {
		if s := b.Check(context.Background(), name, nil, nil); s.Records != want {
			t.Errorf("of %s %d records are left, want %d", name, s.Records, want)
		}
	}
}

// An instance whose name is as long as systemd's names can be counts as one, and one that
// has ended goes before one that is living.
func TestInstancesThatHaveEndedGoFirst(t *testing.T) {
	b := newBench(t, "", nil)
	instance := func(i int) string { return fmt.Sprintf("conn@%0242d.service", i) } // 255 bytes
	b.Living = func() []string { return []string{instance(0)} }
	for i := range maxInstances + 1 {
		e := seen("a1")
		e.Unit, e.Executable = instance(i), attach.EvidenceProgram{Problem: "none"}
		b.record(e)
		old := time.Now().Add(time.Duration(i-1000) * time.Minute)
		if err := os.Chtimes(b.dirOf(e.Unit), old, old); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range map[int]int{0: 1, 1: 0, 2: 1, maxInstances: 1} {
		if _, records := b.files(instance(i)); len(records) != want {
			t.Errorf("of number %d %d records are left, want %d", i, len(records), want)
		}
	}
}

// That records had to make room is not taken for somebody having removed them, and the
// next start begins a new chain.
func TestWhatMadeRoomWasNotTamperedWith(t *testing.T) {
	instance := func(i int, invocation string) attach.Evidence {
		e := seen(invocation)
		e.Unit = fmt.Sprintf("conn@%d.service", i)
		return e
	}
	b := newBench(t, "", func(o *Options) { o.Keep = 1 })
	b.record(instance(0, "a0"))
	b.record(instance(0, "a1")) // so that there is an anchor, too
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(b.dirOf("conn@0.service"), old, old); err != nil {
		t.Fatal(err)
	}
	// A crash while another made room has left this.
	put(t, b.opt.Dir, removedName+"/anchor.json", "{}")
	for i := range maxInstances {
		b.record(instance(i+1, "a1"))
	}
	if entries, err := os.ReadDir(b.opt.Dir); err != nil || len(entries) != maxInstances {
		t.Fatalf("%d directories, %v", len(entries), err)
	}
	first := instance(0, "a1")
	if s := b.check(first); s.Exit != attach.ExitUnknown || s.Records != 0 || s.First == nil || !strings.Contains(s.First.Why, "had to make room") {
		t.Error(describe(s))
	}
	// The same start is not recorded again: of more instances than are kept, each would
	// push out another for ever.
	if !b.Has(first.Unit, first.Key()) {
		t.Error("it would be recorded again at its next look")
	}
	b.record(instance(0, "a2"))
	if s := b.check(instance(0, "a2")); s.Holds != attach.Yes || s.Newest.Number != 1 {
		t.Error(describe(s))
	}
	// Another life knows nothing of it and comes to the same.
	b.stop()
	b = newBench(t, b.root, nil)
	if s := b.check(instance(1, "a1")); s.Exit != attach.ExitUnknown || s.Records != 0 {
		t.Error(describe(s))
	}
	if s := b.check(instance(0, "a2")); s.Holds != attach.Yes {
		t.Error(describe(s))
	}
}

func TestTooMuchAtOnceIsSaid(t *testing.T) {
	const maxQueue = 25
	b := newBench(t, "", func(o *Options) { o.Queue = maxQueue })
	b.stop() // nothing takes from the queue
	for i := range maxQueue + 5 {
		e := seen(fmt.Sprint("a", i))
		e.Executable.PID = 0
		b.Record(e)
	}
	if n := strings.Count(b.log.String(), "records wait to be made"); n != 1 {
		t.Errorf("it is said %d times", n)
	}
	if b.Has(unit, seen(fmt.Sprint("a", maxQueue+4)).Key()) {
		t.Error("it has what it did not take")
	}
	// What waits is made at the end of a life.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	b.Run(ctx)
	_, records := b.files(unit)
	if len(records) != DefaultKeep {
		t.Errorf("%d records", len(records))
	}
	// The next record says what was missed.
	b.mu.Lock()
	left := b.heads[unit].missed
	b.mu.Unlock()
	if left != 0 {
		t.Errorf("%d were missed and no record says so", left)
	}
	again := newBench(t, "", nil)
	again.mu.Lock()
	again.of(unit).missed = 7
	again.mu.Unlock()
	again.record(seen("a1"))
	again.record(seen("a2"))
	if _, records := again.files(unit); records[0].Missed != 7 || records[1].Missed != 0 {
		t.Errorf("records say that %d and %d were missed", records[0].Missed, records[1].Missed)
	}
}

func TestADiskThatIsFullIsTriedAgain(t *testing.T) {
	b := newBench(t, "", nil)
	if err := os.WriteFile(b.opt.Dir, nil, 0o600); err != nil { // a file in its place
		t.Fatal(err)
	}
	b.record(seen("a1"))
	if b.Has(unit, seen("a1").Key()) || !strings.Contains(b.log.String(), "cannot record the evidence for agent.service") {
		t.Errorf("it was not told:\n%s", b.log)
	}
	if s := b.check(seen("a1")); s.Holds != attach.CouldNotTell || s.Exit != attach.ExitUnknown {
		t.Error(describe(s))
	}
	if err := os.Remove(b.opt.Dir); err != nil {
		t.Fatal(err)
	}
	b.record(seen("a1"))
	if s := b.check(seen("a1")); s.Holds != attach.Yes {
		t.Error(describe(s))
	}
}

func TestCheckAgainstTheDisk(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(b *bench, now *attach.Evidence, sources map[string]string)
		want attach.EvidenceCode
		text string
		exit attach.Exit
	}{
		{"profile", func(b *bench, _ *attach.Evidence, _ map[string]string) { put(b.t, b.root, policy.File, "changed") }, attach.LinkSource, policy.File, attach.ExitNotConfined},
		{"profile gone", func(b *bench, _ *attach.Evidence, _ map[string]string) { os.Remove(filepath.Join(b.root, policy.File)) }, attach.LinkSource, "it is gone", attach.ExitNotConfined},
		{"profile is a link", func(b *bench, _ *attach.Evidence, _ map[string]string) {
			os.Remove(filepath.Join(b.root, policy.File))
			os.Symlink("/etc/passwd", filepath.Join(b.root, policy.File))
		}, attach.LinkSource, "symbolic link", attach.ExitUnknown},
		{"include", func(b *bench, _ *attach.Evidence, _ map[string]string) {
			put(b.t, b.root, "/etc/apparmor.d/abstractions/base", "changed")
		}, attach.LinkInclude, "abstractions/base", attach.ExitNotConfined},
		{"added to a directory", func(_ *bench, _ *attach.Evidence, s map[string]string) { s[policy.File] = "source-2" }, attach.LinkInclude, "added to a directory", attach.ExitNotConfined},
		{"does not compile", func(_ *bench, _ *attach.Evidence, s map[string]string) { delete(s, policy.File) }, attach.LinkInclude, "does not compile", attach.ExitUnknown},
		{"drop-in", func(_ *bench, e *attach.Evidence, _ map[string]string) { e.DropIn.SHA256 = sumOf(nil) }, attach.LinkDropIn, "it was changed", attach.ExitNotConfined},
		{"kernel", func(_ *bench, e *attach.Evidence, _ map[string]string) { e.Live[0].Checksum = "sha256:def" }, attach.LinkKernel, "another policy", attach.ExitNotConfined},
		{"policy", func(_ *bench, e *attach.Evidence, _ map[string]string) { e.Policies[0].ID = "id-2" }, attach.LinkPolicy, "it is not kept", attach.ExitUnknown},
		{"process gone", func(_ *bench, e *attach.Evidence, _ map[string]string) { e.Executable.PID = 1 << 30 }, attach.LinkProgram, "has ended", attach.ExitUnknown},
		{"another's number", func(_ *bench, e *attach.Evidence, _ map[string]string) {
			e.Executable.At = time.Now().Add(-240 * time.Hour)
		}, attach.LinkProgram, "has ended", attach.ExitUnknown},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t, "", nil)
			b.record(seen("a1"))
			now, sources := seen("a1"), map[string]string{policy.File: policy.Source}
			tc.do(b, &now, sources)
			s := b.Check(context.Background(), unit, &now, sources)
			if got := describe(s); s.Exit != tc.exit || s.First == nil || s.First.Link != tc.want || !strings.Contains(got, tc.text) {
				t.Errorf("want %s %q:\n%s", tc.want, tc.text, got)
			}
		})
	}
}

func TestOfADetachedUnitTheRecordsAreChecked(t *testing.T) {
	b := newBench(t, "", nil)
	b.record(seen("a1"))
	s := b.Check(context.Background(), unit, nil, nil)
	if s.Exit != attach.ExitNotConfined || s.First.Link != attach.LinkAttachment || s.Records != 1 {
		t.Error(describe(s))
	}
	if s := b.Check(context.Background(), "never.service", nil, nil); s.Exit != attach.ExitUnknown || s.Records != 0 {
		t.Error(describe(s))
	}
}

// What was confined and is not any more is compared with the record that says so.
func TestTheProofIsTheLastThatSaysConfined(t *testing.T) {
	b := newBench(t, "", nil)
	b.record(seen("a1"))
	worse := seen("a1")
	worse.Live[0].Checksum, worse.Verdict.Answer = "sha256:def", attach.NotConfined
	worse.Verdict.Reasons = []attach.Reason{attach.Because(attach.PolicyDiffers, "the kernel runs another")}
	b.record(worse)
	s := b.check(worse)
	if s.First == nil || s.First.Link != attach.LinkKernel || s.Newest.Number != 2 || s.Proof.Number != 1 || s.Exit != attach.ExitNotConfined {
		t.Error(describe(s))
	}
	// Put back: what the newest record says is still not-confined.
	if s := b.check(seen("a1")); s.First == nil || s.First.Link != attach.LinkVerdict || s.Exit != attach.ExitNotConfined {
		t.Error(describe(s))
	}
}
