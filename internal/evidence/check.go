package evidence

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
)

// maxText bounds a profile's text, as internal/apparmor does.
const maxText = 1 << 20

// filesOf lists the texts of a policy: the profile's file first.
func filesOf(c attach.Compiled) []attach.EvidenceFile {
	out := []attach.EvidenceFile{}
	add := func(path string) {
		out = append(out, attach.EvidenceFile{Path: text(path), SHA256: sumOf(c.Sources[path])})
	}
	if _, ok := c.Sources[c.File]; ok {
		add(c.File)
	}
	for _, path := range slices.Sorted(maps.Keys(c.Sources)) {
		if path != c.File && !strings.HasSuffix(path, "/") {
			add(path)
		}
	}
	return out
}

// Check compares the newest record of a unit with how it is now, and the records
// with each other. It waits, for a bounded time, for what is on its way. Where now
// is nil the unit is not attached any more. sources are digests of the profile's
// text as it compiles now, by profile file.
func (k *Keeper) Check(ctx context.Context, unit string, now *attach.Evidence, sources map[string]string) attach.EvidenceStatus {
	s := attach.EvidenceStatus{Unit: unit, Links: []attach.EvidenceLink{}}
	late := k.settle(ctx, unit)
	k.disk.Lock()
	c := k.readAll(unit)
	k.disk.Unlock()
	k.mu.Lock()
	var last head
	next := "there is no record of any start of the unit; one is made at its next look"
	if st := k.heads[unit]; st != nil {
		last = st.last
		if st.known { // it was recorded, and evict has reset last
			next = "its records had to make room for those of other units; one is made at its next start"
		}
	}
	k.mu.Unlock()
	s.Records = len(c.records)
	s.Links = append(s.Links, checkChain(c, last)...)
	newest, proof := c.newest()
	switch {
	case late != nil:
		s.Links = append(s.Links, attach.EvidenceLink{Link: attach.LinkRecords, What: unit, Why: late.Error()})
	case newest == nil && len(s.Links) == 0:
		s.Links = append(s.Links, attach.EvidenceLink{Link: attach.LinkRecords, What: unit, Why: next})
	case len(s.Links) == 0:
		s.Links = append(s.Links, attach.EvidenceLink{Link: attach.LinkRecords, Holds: attach.Yes, What: fmt.Sprintf("%d records", len(c.records))})
	}
	if newest == nil {
		return attach.ConcludeEvidence(s)
	}
	s.Newest, s.Proof = newest.head(), proof.head()
	s.Profile = proof.record.Verdict.Profile
	is := attach.EvidenceNow{Evidence: attach.Evidence{Unit: unit}}
	if now != nil {
		is.Evidence, is.Attached = *now, true
		p := k.hold(is.Executable.PID)
		defer p.close()
		k.complete(ctx, &is.Evidence, p)
		is.OnDisk = k.onDisk(ctx, unit, p, proof.record.Executable)
		is.Texts = k.texts(proof.record, sources)
	}
	if now != nil {
		s.Links = append(s.Links, attach.CompareEvidence(newest.record, proof.record, is)...)
	} else {
		s.Links = append(s.Links, attach.EvidenceLink{Link: attach.LinkAttachment, Holds: attach.No, What: unit, Old: s.Profile, Why: "no attachment names the unit any more"})
	}
	return attach.ConcludeEvidence(s)
}

// texts reads the files of a record's policies as they are on disk.
func (k *Keeper) texts(proof attach.Evidence, sources map[string]string) map[string]attach.EvidenceText {
	out := map[string]attach.EvidenceText{}
	for _, p := range proof.Policies {
		t := attach.EvidenceText{Source: sources[p.File]}
		for _, f := range p.Files {
			t.Files = append(t.Files, k.textFile(f.Path))
		}
		out[p.File] = t
	}
	return out
}

func (k *Keeper) textFile(path string) attach.EvidenceFile {
	f := attach.EvidenceFile{Path: path}
	got, err := safefile.Read(k.real(path), maxText)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		f.Gone = true
	case err != nil:
		f.Problem = text(err.Error())
	default:
		f.SHA256 = sumOf(got.Data)
	}
	return f
}

// text makes a string that JSON can hold: names of files are any bytes, and two
// that differ are to differ in a record.
func text(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		if r == utf8.RuneError && size == 1 {
			fmt.Fprintf(&b, `\x%02x`, s[0])
		} else {
			b.WriteString(s[:size])
		}
		s = s[size:]
	}
	return b.String()
}
