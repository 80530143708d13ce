package state

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestRecordsSurviveAndBadOnesAreSetAside(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "units"))
	if _, problems := d.Load(); len(problems) != 0 {
		t.Fatal(problems)
	}
	long := strings.Repeat("a", 247) + ".service"
	want := []attach.Record{
		{Unit: "a.service", Profile: "p q", DropIns: attach.Sums{{Path: "/x", Sum: "1"}}, Attaching: true},
		{Unit: long, Profile: "l"},
	}
	for _, r := range want {
		if err := d.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	// As every version has written it.
	if text, err := os.ReadFile(d.path("a.service")); err != nil || !strings.Contains(string(text), "\"dropIns\": {\n    \"/x\": \"1\"\n  }") {
		t.Errorf("%s %v", text, err)
	}
	// A record under another unit's name, and what a write that was cut off has
	// left.
	for name, text := range map[string]string{"b.service.json": `{"unit":"a.service"}`, ".a.service.json.ABCDEFGH.tmp": `{"unit":`} {
		if err := os.WriteFile(filepath.Join(string(d), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, problems := d.Load()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if len(problems) != 1 {
		t.Errorf("want one problem, got %v", problems)
	}
	// It may be one that another process is at: the daemon alone removes it.
	temporary := func() []string {
		found, _ := filepath.Glob(filepath.Join(string(d), ".*"))
		return found
	}
	if left := temporary(); len(left) != 1 {
		t.Errorf("to read records has removed what is being written: %v", left)
	}
	if Sweep(string(d)); len(temporary()) != 0 {
		t.Errorf("left behind: %v", temporary())
	}
	if _, problems := d.Load(); len(problems) != 0 {
		t.Errorf("a record that was set aside is reported again: %v", problems)
	}
	for range 2 {
		if err := d.Delete("a.service"); err != nil {
			t.Fatal(err)
		}
	}
	if got, _ := d.Load(); len(got) != 1 {
		t.Errorf("after delete: %v", got)
	}
}

// A look that sees what the one before saw costs no write, however many units there are.
func TestAVerdictThatRepeatsIsNotWritten(t *testing.T) {
	d := Dir(t.TempDir())
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	r := attach.Record{Unit: "a.service", Profile: "p", Proved: "1"}
	save := func(v attach.Verdict) (file os.FileInfo) {
		t.Helper()
		at = at.Add(time.Minute)
		v.Unit, v.InvocationID, v.At = r.Unit, "1", at
		r.Verdict = &v
		if err := d.Save(r); err != nil {
			t.Fatal(err)
		}
		got, problems := d.Load()
		if len(got) != 1 || len(problems) != 0 || !got[0].Verdict.Repeats(&v) || got[0].Profile != r.Profile {
			t.Fatalf("kept %+v %v", got, problems)
		}
		file, err := os.Stat(d.path(r.Unit))
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
	confined := attach.Verdict{Answer: attach.Confined, Tasks: 3, PrivateTmp: attach.Yes}
	first := save(confined)
	confined.Tasks = 4
	if again := save(confined); !os.SameFile(first, again) || !again.ModTime().Equal(first.ModTime()) {
		t.Error("it is written again")
	}
	if r.Verdict.At != at {
		t.Error("the caller's verdict was changed")
	}
	for what, change := range map[string]func(){
		"another answer":  func() { confined.Answer = attach.NotConfined },
		"another reason":  func() { confined.Reasons = append(confined.Reasons, attach.Because(attach.TaskUnconfined, "x")) },
		"another profile": func() { r.Profile = "q" },
	} {
		before := save(confined)
		if change(); os.SameFile(before, save(confined)) {
			t.Errorf("%s: it is not written", what)
		}
	}
	if err := d.Delete(r.Unit); err != nil {
		t.Fatal(err)
	}
	save(confined) // one that somebody took away comes back
}

func TestMark(t *testing.T) {
	file := filepath.Join(t.TempDir(), "begun")
	for range 2 {
		if err := Mark(file); err != nil {
			t.Fatal(err)
		}
	}
	if st, err := os.Lstat(file); err != nil || !st.Mode().IsRegular() {
		t.Errorf("%v %v", st, err)
	}
}

// That records cannot be listed is told from one of them that cannot be read: there may
// be any number of them then.
func TestRecordsThatCannotBeListed(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "units")
	if err := os.Symlink(dir, dir); err != nil { // ELOOP
		t.Fatal(err)
	}
	if records, problems := Dir(dir).Load(); len(records) != 0 || len(problems) != 1 || problems[0].Where != "" {
		t.Errorf("%v %+v", records, problems)
	}
	dir = t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.service.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, problems := Dir(dir).Load(); len(problems) != 1 || problems[0].Where == "" {
		t.Errorf("%+v", problems)
	}
}

// A downgrade finds records of a daemon that knew more: what it understands it
// takes, and what it does not understand it sets aside unharmed.
func TestRecordsOfANewerDaemon(t *testing.T) {
	d := Dir(t.TempDir())
	other := `{"unit": "b.service", "profile": {"name": "b"}}`
	for name, text := range map[string]string{
		"a.service.json": `{"unit": "a.service", "profile": "a", "dropIns": {"/x": "1"}, "notYet": {"many": [1, 2]}}`,
		"b.service.json": other,
	} {
		if err := os.WriteFile(filepath.Join(string(d), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, problems := d.Load()
	want := []attach.Record{{Unit: "a.service", Profile: "a", DropIns: attach.Sums{{Path: "/x", Sum: "1"}}}}
	if diff := cmp.Diff(want, got); diff != "" || len(problems) != 1 {
		t.Errorf("records (-want +got):\n%s\nproblems %v", diff, problems)
	}
	if text, err := os.ReadFile(filepath.Join(string(d), "b.service.json.bad")); err != nil || string(text) != other {
		t.Errorf("set aside is %q, %v", text, err)
	}
}

// Whatever lies in a record's place is set aside and said, more than once too,
// and the unit's next record takes the place.
func TestTornRecords(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "units"))
	d.Load()
	r := attach.Record{Unit: "a.service", Profile: "a", DropIns: attach.Sums{{Path: "/x", Sum: "1"}}, Accepted: map[string]string{"a": "sha256:1"}}
	if err := d.Save(r); err != nil {
		t.Fatal(err)
	}
	path := d.path(r.Unit)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	write := func(text []byte, mode os.FileMode) func() error {
		return func() error {
			if err := os.WriteFile(path, text, mode); err != nil {
				return err
			}
			return os.Chmod(path, mode)
		}
	}
	damage := map[string]func() error{
		"zeroes":              write(make([]byte, len(text)), 0o600),
		"zeroes at the end":   write(append(slices.Clone(text[:len(text)/2]), make([]byte, len(text)/2)...), 0o600),
		"garbage":             write([]byte("\x7fELF\xff\xfe\x00"), 0o600),
		"two records":         write(append(slices.Clone(text), text...), 0o600),
		"another shape":       write([]byte(`{"unit": 1, "dropIns": []}`), 0o600),
		"null":                write([]byte("null"), 0o600),
		"too large":           write(make([]byte, maxRecord+1), 0o600),
		"others can write it": write(text, 0o620),
		"a directory":         func() error { return os.Mkdir(path, 0o700) },
		"a full directory":    func() error { return os.MkdirAll(filepath.Join(path, "x"), 0o700) },
		"a link":              func() error { return os.Symlink("/etc/passwd", path) },
		"a pipe":              func() error { return unix.Mkfifo(path, 0o600) },
	}
	for n := 0; n < len(bytes.TrimSpace(text)); n += 17 {
		damage[fmt.Sprintf("the first %d bytes", n)] = write(text[:n], 0o600)
	}
	if os.Geteuid() == 0 {
		damage["another's"] = func() error { return errors.Join(write(text, 0o600)(), os.Chown(path, 1, 1)) }
	}
	for _, what := range slices.Sorted(maps.Keys(damage)) {
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		if err := damage[what](); err != nil {
			t.Fatal(err)
		}
		records, problems := d.Load()
		if len(records) != 0 || len(problems) != 1 || problems[0].Where != path || !strings.Contains(problems[0].Detail, "set aside as "+path+".bad") {
			t.Errorf("%s: records %v, problems %v", what, records, problems)
		}
		if err := d.Save(r); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if records, problems := d.Load(); len(records) != 1 || len(problems) != 0 {
			t.Errorf("%s: then records %v, problems %v", what, records, problems)
		}
	}
	if aside, _ := filepath.Glob(path + ".bad*"); len(aside) != maxAside {
		t.Errorf("%d bad records are kept", len(aside))
	}
}

// FuzzRecord reads whatever lies among the records: what is taken stays itself
// when it is written, and nothing is written outside the directory.
func FuzzRecord(f *testing.F) {
	f.Add("a.service", []byte(`{"unit":"a.service","profile":"p q","dropIns":{"/x":"1"},"verdict":{"answer":"confined"}}`))
	f.Add("..", []byte(`{"unit":"../../etc/passwd"}`))
	f.Add("a", []byte(`{"unit":"a","hold":{"reasons":[{}]},"accepted":null}`))
	f.Add("b", []byte(`[{"unit":1}]`))
	f.Fuzz(func(t *testing.T, unit string, text []byte) {
		d := Dir("/state")
		file := d.path(unit)
		if filepath.Dir(file) != string(d) || len(filepath.Base(file)) > 255 {
			t.Fatalf("the record of %q would lie in %s", unit, file)
		}
		r, err := d.parse(file, text)
		if err != nil {
			return
		}
		if utf8.ValidString(unit) && r.Unit != unit {
			t.Errorf("the record of %q is taken for that of %q", r.Unit, unit)
		}
		b, err := format(r)
		if err != nil {
			t.Fatal(err)
		}
		// The zero of an answer and "unknown" are written alike.
		again, err := d.parse(file, b)
		if err != nil {
			t.Fatalf("%v\n%s", err, b)
		}
		if c, err := format(again); err != nil || string(c) != string(b) {
			t.Errorf("%v: written as\n%sand then as\n%s", err, b, c)
		}
	})
}
