package reconcile

import (
	"context"
	"errors"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// keepEvidence has a record made of what a verdict rests on, if it is about a
// start, answer or policy that the newest record is not about. A verdict that is
// about no start, since systemd did not say which, has none.
func (l *Loop) keepEvidence(d attach.Desired, o attach.Observed, v attach.Verdict) {
	if l.evidence == nil || d.Attachment == nil || v.InvocationID == "" || attach.IsPattern(d.Unit) {
		return
	}
	// A pass may have accepted another policy since d was put together.
	d.Kept = l.keptOf(d.Record)
	if !l.evidence.Has(d.Unit, attach.EvidenceKeyOf(l.boot, v, attach.EvidencePolicies(d.Record, d.Kept))) {
		l.evidence.Record(l.gatherEvidence(d, o, v))
	}
}

// gatherEvidence puts together what a look at one unit has seen. The drop-in is
// read for it, since looks at many units at once leave it out.
func (l *Loop) gatherEvidence(d attach.Desired, o attach.Observed, v attach.Verdict) attach.Evidence {
	o.DropIn = l.readDropIn(d)
	e := attach.GatherEvidence(d, o, v, sum)
	e.Boot, e.Aaunit = l.boot, l.version
	return e
}

// Living lists the units whose evidence, and what was seen of whose socket options, is not
// to make room for that of others: what is attached, but for units that a pattern alone
// names and that have ended. Those of a glob are remembered all the same, since nobody else
// knows of their drop-ins.
func (l *Loop) Living() (units []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for unit := range l.records {
		if _, attached := l.targets[unit]; !attached { // its attachment is frozen, or about to be undone
			units = append(units, unit)
		}
	}
	for unit, a := range l.targets {
		runs := attach.Unit{ActiveState: l.statusOf(unit).ActiveState}.Active()
		m := a.Matches(unit)
		if named := m == attach.MatchName || m == attach.NoMatch; named || runs || !l.unlisted[unit] { // NoMatch: by an alias
			units = append(units, unit)
		}
	}
	return units
}

// VerifyEvidence looks again, now, at attached units, and says whether what their
// last verdicts rest on still holds.
func (l *Loop) VerifyEvidence(ctx context.Context, units []string) (attach.EvidenceReport, error) {
	if l.evidence == nil {
		return attach.EvidenceReport{}, errors.New("cannot check evidence: this aaunitd keeps none")
	}
	known := l.Status(units)
	r := attach.EvidenceReport{Version: l.version, Units: make([]attach.EvidenceStatus, len(known.Units)), At: time.Now()}
	each(len(known.Units), func(i int) { r.Units[i] = l.verifyEvidence(ctx, known.Units[i].Unit) })
	for _, m := range known.Missing {
		// A detach leaves the evidence: its records can still be looked at.
		if unit, err := attach.UnitName(m.Unit); err == nil && !attach.IsGlob(m.Unit) {
			if s := l.evidence.Check(ctx, unit, nil, nil); s.Records > 0 {
				r.Units = append(r.Units, s)
				continue
			}
		}
		r.Missing = append(r.Missing, m)
	}
	return r, ctx.Err()
}

func (l *Loop) verifyEvidence(ctx context.Context, unit string) attach.EvidenceStatus {
	v, saw := l.verify(ctx, unit)
	if v == nil {
		return l.evidence.Check(ctx, unit, nil, nil)
	}
	saw.d.Kept = l.keptOf(saw.d.Record)
	now := l.gatherEvidence(saw.d, saw.o, *v)
	// Whether a profile's file includes others by now is for the one to say who knows
	// what an include stands for. Most often nothing has to be compiled for it.
	sources := map[string]string{}
	var files []string
	for _, p := range now.Policies {
		files = append(files, p.File)
	}
	done, _ := l.apparmor.Compile(ctx, files, saw.d.Attachment.Mode == attach.WishComplain)
	for _, c := range done {
		sources[c.File] = c.Source
	}
	return l.evidence.Check(ctx, unit, &now, sources)
}
