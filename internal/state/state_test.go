package state

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestRecordsSurviveAndBadOnesAreSetAside(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "units"))
	if _, problems := d.Load(); len(problems) != 0 {
		t.Fatal(problems)
	}
	long := strings.Repeat("a", 247) + ".service"
	want := []attach.Record{
		{Unit: "a.service", Profile: "p q", DropIns: map[string]string{"/x": "1"}, Attaching: true},
		{Unit: long, Profile: "l"},
	}
	for _, r := range want {
		if err := d.Save(r); err != nil {
			t.Fatal(err)
		}
	}
	// A torn write, an empty file, and a record under another unit's name.
	for name, text := range map[string]string{"torn.service.json": `{"unit":"torn.serv`, "empty.service.json": "", "b.service.json": `{"unit":"a.service"}`} {
		if err := os.WriteFile(filepath.Join(string(d), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, problems := d.Load()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("records (-want +got):\n%s", diff)
	}
	if len(problems) != 3 {
		t.Errorf("want three problems, got %v", problems)
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
	want := []attach.Record{{Unit: "a.service", Profile: "a", DropIns: map[string]string{"/x": "1"}}}
	if diff := cmp.Diff(want, got); diff != "" || len(problems) != 1 {
		t.Errorf("records (-want +got):\n%s\nproblems %v", diff, problems)
	}
	if text, err := os.ReadFile(filepath.Join(string(d), "b.service.json.bad")); err != nil || string(text) != other {
		t.Errorf("set aside is %q, %v", text, err)
	}
}
