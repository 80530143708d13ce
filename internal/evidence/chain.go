package evidence

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/aaunit/aaunit/internal/attach"
)

// stored is a record as it lies in its file.
type stored struct {
	number int
	sum    string // that its name has
	file   string
	// record is there where problem is "".
	record attach.Evidence
	// problem says why it cannot be used: altered where it is not what its name
	// says, or is no record; else it could not be read.
	problem string
	altered bool
}

// anchor is the last record that was pruned. The zero value is none.
type anchor struct {
	Unit   string `json:"unit"`
	Number int    `json:"number"`
	SHA256 string `json:"sha256"`
}

// chain is what lies in a unit's directory.
type chain struct {
	anchor  anchor
	records []stored // by number
	// strange are files that do not belong there, and what is wrong with the
	// directory or the anchor; unread says why they could not be read at all.
	strange []string
	unread  string
}

// head is a record that this life of the daemon has written last.
type head struct {
	number int
	sum    string
}

// checkChain says what is wrong with the records of a unit: which was altered,
// which are missing, which does not follow on the one before. last is the one that
// was written last, as far as is known. Nothing is a chain that holds.
func checkChain(c chain, last head) []attach.EvidenceLink {
	var out []attach.EvidenceLink
	say := func(holds attach.Tri, what, old, now, why string, args ...any) {
		out = append(out, attach.EvidenceLink{Link: attach.LinkRecords, Holds: holds, What: what, Old: old, New: now, Why: fmt.Sprintf(why, args...)})
	}
	if c.unread != "" {
		say(attach.CouldNotTell, "", "", "", "the records could not be read: %s", c.unread)
		return out
	}
	slices.SortStableFunc(c.records, func(a, b stored) int { return cmp.Compare(a.number, b.number) })
	for _, s := range c.strange {
		say(attach.No, s, "", "", "it does not belong beside records")
	}
	next, previous := 1, "" // what the first must be
	if c.anchor.Number > 0 {
		next, previous = c.anchor.Number+1, c.anchor.SHA256
	}
	for i, s := range c.records {
		name := fmt.Sprintf("record %d", s.number)
		switch {
		case i == 0 && s.number <= c.anchor.Number:
			// A pruning that was cut off has left it.
			next, previous = s.number, ""
			if s.problem == "" {
				previous = s.record.Previous
			}
		case i > 0 && s.number == c.records[i-1].number:
			say(attach.No, s.file, c.records[i-1].sum, s.sum, "there are two records of the number %d", s.number)
			continue
		case s.number > next:
			say(attach.No, missing(next, s.number-1), "", "", "missing")
			previous = "" // said already
		}
		switch {
		case s.altered:
			say(attach.No, name, s.sum, "", "it was altered: %s", s.problem)
		case s.problem != "":
			say(attach.CouldNotTell, name, s.sum, "", "it could not be read: %s", s.problem)
		case s.number == next && s.record.Previous != previous:
			say(attach.No, name, s.record.Previous, previous, "it does not follow on the record before it")
		}
		if s.number == c.anchor.Number && s.sum != c.anchor.SHA256 {
			say(attach.No, name, c.anchor.SHA256, s.sum, "it is not the one that anchor.json names")
		}
		next, previous = s.number+1, s.sum
	}
	switch {
	case last.number == 0:
	case next <= last.number:
		say(attach.No, missing(next, last.number), last.sum, "", "missing: aaunitd has written them")
	case next == last.number+1 && previous != last.sum:
		say(attach.No, fmt.Sprintf("record %d", last.number), last.sum, previous, "it is not the one that aaunitd has written")
	case next > last.number+1:
		say(attach.No, missing(last.number+1, next-1), "", previous, "aaunitd has not written what is there")
	}
	return out
}

func missing(from, to int) string {
	if from == to {
		return fmt.Sprintf("record %d", from)
	}
	return fmt.Sprintf("records %d to %d", from, to)
}

// newest is the last record that can be used, and proof the last of the same
// start that says confined; without one it is the same.
func (c chain) newest() (newest, proof *stored) {
	for i := len(c.records) - 1; i >= 0; i-- {
		s := &c.records[i]
		switch {
		case s.problem != "":
			continue
		case newest == nil:
			newest, proof = s, s
		case s.record.Boot != newest.record.Boot || s.record.Verdict.InvocationID != newest.record.Verdict.InvocationID:
			return newest, proof
		}
		if s.record.Verdict.Answer == attach.Confined {
			return newest, s
		}
	}
	return newest, proof
}

func (s stored) head() *attach.EvidenceHead {
	return &attach.EvidenceHead{Number: s.number, SHA256: s.sum, File: s.file, InvocationID: s.record.Verdict.InvocationID,
		Answer: s.record.Verdict.Answer, At: s.record.Verdict.At}
}
