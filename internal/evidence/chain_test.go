package evidence

import (
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// at is a record as it lies on disk; previous and sum are made-up words.
func at(number int, previous, sum string) stored {
	return stored{number: number, sum: sum, file: sum, record: attach.Evidence{Number: number, Previous: previous}}
}

func TestCheckChain(t *testing.T) {
	bad := func(s stored, altered bool) stored { s.problem, s.altered = "torn", altered; return s }
	for _, tc := range []struct {
		name string
		c    chain
		last head
		want []string // what and why, each in one of the links
	}{
		{name: "nothing"},
		{name: "whole", c: chain{records: []stored{at(1, "", "a"), at(2, "a", "b")}}, last: head{2, "b"}},
		{name: "out of order", c: chain{records: []stored{at(2, "a", "b"), at(1, "", "a")}}},
		{name: "pruned", c: chain{anchor: anchor{Number: 4, SHA256: "d"}, records: []stored{at(5, "d", "e"), at(6, "e", "f")}}},
		{name: "pruning was cut off", c: chain{anchor: anchor{Number: 4, SHA256: "d"}, records: []stored{at(3, "b", "c"), at(4, "c", "d"), at(5, "d", "e")}}},
		{name: "the anchor is another's", c: chain{anchor: anchor{Number: 4, SHA256: "x"}, records: []stored{at(4, "c", "d"), at(5, "d", "e")}}, want: []string{"record 4: it is not the one that anchor.json names"}},
		{name: "does not follow on the anchor", c: chain{anchor: anchor{Number: 4, SHA256: "x"}, records: []stored{at(5, "d", "e")}}, want: []string{"record 5: it does not follow"}},
		{name: "no anchor", c: chain{records: []stored{at(5, "d", "e")}}, want: []string{"records 1 to 4: missing"}},
		{name: "the first has one before", c: chain{records: []stored{at(1, "z", "a")}}, want: []string{"record 1: it does not follow"}},
		{name: "gap", c: chain{records: []stored{at(1, "", "a"), at(3, "b", "c"), at(6, "e", "f")}}, want: []string{"record 2: missing", "records 4 to 5: missing"}},
		{name: "broken", c: chain{records: []stored{at(1, "", "a"), at(2, "x", "b"), at(3, "b", "c")}}, want: []string{"record 2: it does not follow"}},
		{name: "altered", c: chain{records: []stored{at(1, "", "a"), bad(at(2, "a", "b"), true), at(3, "b", "c")}}, want: []string{"record 2: it was altered"}},
		{name: "unread", c: chain{records: []stored{bad(at(1, "", "a"), false)}}, want: []string{"?record 1: it could not be read"}},
		{name: "nothing could be read", c: chain{unread: "why"}, want: []string{"?: the records could not be read: why"}},
		{name: "the end is gone", c: chain{records: []stored{at(1, "", "a")}}, last: head{3, "c"}, want: []string{"records 2 to 3: missing"}},
		{name: "the end is another", c: chain{records: []stored{at(1, "", "a"), at(2, "a", "x")}}, last: head{2, "b"}, want: []string{"record 2: it is not the one that aaunitd has written"}},
		{name: "somebody went on", c: chain{records: []stored{at(1, "", "a"), at(2, "a", "b")}}, last: head{1, "a"}, want: []string{"record 2: aaunitd has not written"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			links := checkChain(tc.c, tc.last)
			if len(links) != len(tc.want) {
				t.Errorf("%d links, want %d: %+v", len(links), len(tc.want), links)
			}
			for i, l := range links {
				got := l.What + ": " + l.Why
				want, unknown := strings.CutPrefix(tc.want[min(i, len(tc.want)-1)], "?")
				if !strings.HasPrefix(got, want) || (l.Holds == attach.CouldNotTell) != unknown || l.Holds == attach.Yes {
					t.Errorf("%v %q, want %q", l.Holds, got, want)
				}
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	e := seen("a1")
	e.Number = 1
	good, err := Encode(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"unit":"a","number":1,"labels":[{"fits":"perhaps"}]}`))
	f.Add([]byte(`{"format":2,"unit":"a","number":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := Decode(data)
		if err != nil {
			return
		}
		again, err := Encode(e)
		if err != nil {
			return // a time that JSON cannot hold
		}
		back, err := Decode(again)
		if err != nil {
			t.Fatalf("%q cannot be read again: %v", again, err)
		}
		if third, err := Encode(back); err != nil || string(third) != string(again) {
			t.Errorf("%q comes back as %q, %v", again, third, err)
		}
		_ = e.Key()
		// Whatever is on record, nothing of it reads as proof of what is not there.
		s := attach.ConcludeEvidence(attach.EvidenceStatus{Links: attach.CompareEvidence(e, e, attach.EvidenceNow{})})
		if s.Holds == attach.Yes {
			t.Errorf("%q holds where nothing was seen", data)
		}
	})
}

func FuzzParseName(f *testing.F) {
	f.Add(fileName(12, strings.Repeat("0a", 32)))
	f.Add("-000000000001-.json")
	f.Add("+00000000001-" + strings.Repeat("0", 64) + ".json")
	f.Fuzz(func(t *testing.T, name string) {
		if n, sum, ok := parseName(name); ok && fileName(n, sum) != name {
			t.Errorf("%q is read as %d, %s", name, n, sum)
		}
	})
}
