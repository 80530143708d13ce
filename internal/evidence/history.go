package evidence

import "github.com/aaunit/aaunit/internal/attach"

// History gives the newest record of a unit, and since when the records say the same.
// It reads what is kept and waits for nothing: a record on its way is not in it.
func (k *Keeper) History(unit string) attach.EvidenceHistory {
	k.disk.Lock()
	defer k.disk.Unlock()
	c := k.list(unit)
	h := attach.EvidenceHistory{Records: len(c.records), Problem: text(c.unread)}
	for i := len(c.records) - 1; i >= 0; i-- {
		s := &c.records[i]
		k.readRecord(unit, s)
		if s.problem != "" {
			h.Problem = text(s.file + ": " + s.problem)
			break // what came before it may have been followed by anything
		}
		switch {
		case h.Newest == nil:
			e := s.record
			h.Newest, h.SHA256, h.Since = &e, s.sum, e.Verdict.At
		case s.record.Verdict.Answer != h.Newest.Verdict.Answer || s.record.Verdict.Profile != h.Newest.Verdict.Profile:
			return h
		default:
			h.Since = s.record.Verdict.At
		}
		s.record = attach.Evidence{} // twenty of them at once are not needed
	}
	return h
}
