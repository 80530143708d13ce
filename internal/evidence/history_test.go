package evidence

import (
	"os"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// The history is the newest record, and since when an unbroken row of them gives its
// answer. What cannot be read breaks the row and is said.
func TestHistory(t *testing.T) {
	b := newBench(t, "", nil)
	if h := b.History(unit); h.Newest != nil || h.Records != 0 || h.Problem != "" || !h.Since.IsZero() || h.Summary() != nil {
		t.Errorf("of nothing: %+v", h)
	}
	for _, invocation := range []string{"1", "2", "3", "4"} {
		e := seen(invocation)
		if invocation == "2" {
			e.Verdict.Answer = attach.NotConfined
		}
		b.record(e)
	}
	files, records := b.files(unit)
	h := b.History(unit)
	if h.Records != 4 || h.Problem != "" || h.Newest.Number != 4 || !strings.Contains(files[3], h.SHA256) || !h.Since.Equal(records[2].Verdict.At) {
		t.Errorf("%d records, %q, since %v, newest %+v", h.Records, h.Problem, h.Since, h.Newest)
	}
	s := h.Summary()
	if s.Number != 4 || s.SHA256 != h.SHA256 || s.Answer != records[3].Verdict.Answer || len(s.Policies) != 1 || s.Policies[0].Files != 2 || s.Policies[0].Compiled == "" || len(s.Live) != 1 ||
		s.Live[0].Checksum != s.Live[0].Accepted || s.Executable.Path == "" || s.DropIn.SHA256 == "" {
		t.Errorf("%+v", s)
	}

	// The third is altered: what came before it says nothing about since when.
	if err := os.WriteFile(files[2], []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if h := b.History(unit); h.Newest.Number != 4 || !h.Since.Equal(records[3].Verdict.At) || !strings.Contains(h.Problem, files[2]) {
		t.Errorf("since %v, %q", h.Since, h.Problem)
	}
	if err := os.Remove(files[3]); err != nil {
		t.Fatal(err)
	}
	if h := b.History(unit); h.Newest != nil || h.Problem == "" || h.Summary() != nil {
		t.Errorf("%+v", h)
	}
}
