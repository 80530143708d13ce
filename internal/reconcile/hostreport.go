package reconcile

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// HostReport puts together what there is to report of the host and of all attached
// units, from what is known and from a look at the processes of each.
func (l *Loop) HostReport(ctx context.Context) (attach.HostReport, error) {
	if l.processes == nil {
		return attach.HostReport{}, errors.New("cannot report: this aaunitd has nothing to look with")
	}
	known, _ := l.known(nil)
	r := attach.HostReport{Machine: l.processes.Machine(), Version: known.Version, Host: known.Host, At: known.At, Recheck: known.Recheck, Problems: known.Problems, Units: []attach.UnitReport{}}
	r.DenialsLost, r.DenialsDeaf = l.denials.missed()
	for _, s := range known.Patterns {
		u := l.unitReport(s)
		u.Pattern = true
		u.ToCome, _ = s.ToCome()
		r.Units = append(r.Units, u)
	}
	first := len(r.Units)
	for _, s := range known.Units {
		r.Units = append(r.Units, l.unitReport(s))
	}
	units := r.Units[first:]
	seen := make([]attach.Unit, len(units))
	each(len(units), func(i int) {
		u := &units[i]
		if l.evidence != nil {
			h := l.evidence.History(u.Unit)
			u.Evidence, u.EvidenceProblem = h.Summary(), h.Problem
			// What a record says counts only where it says what is so now.
			if u.Evidence != nil && u.Verdict != nil && u.Evidence.Answer == u.Verdict.Answer {
				u.Since = h.Since
			}
		}
		if got, err := l.systemd.Glance(ctx, u.Unit); err == nil {
			seen[i] = got
		} else {
			seen[i] = attach.Unit{ID: u.Unit}
			u.Seen = &attach.Sighting{Unit: u.Unit, Processes: []attach.Process{}, Listening: []attach.Listening{}, Problems: []string{err.Error()}, At: time.Now()}
		}
	})
	for i, s := range l.processes.Look(ctx, seen) {
		if units[i].Seen == nil {
			units[i].Seen = &s
		}
	}
	cutProcesses(units)
	if exposed, err := l.Exposed(ctx); err != nil {
		r.UnattachedProblem = err.Error()
	} else {
		r.Unattached = &exposed
	}
	return r, ctx.Err()
}

// maxReportProcesses bounds those of all units together: a report has to fit into one
// message.
const maxReportProcesses = 10_000

// cutProcesses leaves of each unit as many processes as fit. Those that speak against
// it stay.
func cutProcesses(units []attach.UnitReport) {
	most := maxReportProcesses / max(1, len(units))
	for i := range units {
		s := units[i].Seen
		if s == nil || len(s.Processes) <= most {
			continue
		}
		kept := slices.Clone(s.Processes)
		slices.SortStableFunc(kept, func(a, b attach.Process) int {
			return cmp.Compare(boolRank(a.Confines == attach.Yes), boolRank(b.Confines == attach.Yes))
		})
		kept = kept[:most]
		slices.SortFunc(kept, func(a, b attach.Process) int { return cmp.Compare(a.PID, b.PID) })
		s.MoreProcesses += len(s.Processes) - most
		s.Processes = kept
	}
}

func boolRank(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (l *Loop) unitReport(s attach.Status) attach.UnitReport {
	u := attach.UnitReport{Unit: s.Unit, Profile: s.Profile, ProfileFile: s.ProfileFile, Attachment: s.Attachment, ActiveState: s.ActiveState, Verdict: s.Verdict,
		Paused: s.Paused, Refused: s.Refused, Notes: s.Notes, OnlyText: s.Held.OnlyText(), Denials: l.denials.counted(s.Unit)}
	if s.Held != nil {
		u.Held = s.Held.Reasons
		if len(u.Held) == 0 {
			u.Held = []attach.Reason{attach.Because(attach.Held, "the attach failed")}
		}
	}
	if a := l.target(s.Unit); a != nil {
		u.Mode, u.Allowed = a.Mode, attach.Allowances(*a)
		if a.SocketsWanted() != nil {
			u.Sockets = l.socketStatus(s.Unit).ForReport()
		}
	}
	return u
}
