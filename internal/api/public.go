package api

import (
	"slices"

	"github.com/aaunit/aaunit/internal/attach"
)

// plain holds the reasons whose details anybody can learn elsewhere: from
// systemd over D-Bus, or from a world-readable file of the kernel. The details
// of all others may speak of processes, denials, command lines or the text of
// files, and only root is told.
var plain = map[attach.Code]bool{
	attach.AppArmorOff: true, attach.AppArmorUnknown: true, attach.GlobalComplain: true, attach.BootServiceMissing: true,

	attach.UnitNotFound: true, attach.UnitMasked: true, attach.UnitBad: true, attach.UnitTransient: true,
	attach.UnitNoService: true, attach.UnitTemplate: true, attach.UnitAlias: true, attach.UnitOfUser: true,
	attach.UnitEarly: true, attach.UnitProtected: true, attach.UnitFailedBefore: true,

	attach.ProfileDisabled: true, attach.ProfileNotAtBoot: true, attach.ProfileNotLoaded: true,

	attach.IgnorePrefix: true, attach.PermissionsStartOnly: true, attach.DirectiveOverridden: true,
	attach.AssertionOverridden: true, attach.PrivateTmpOverridden: true,

	attach.DropInMissing: true, attach.DropInDiffers: true, attach.DropInForeign: true, attach.DropInStale: true,
	attach.ReloadNeeded: true, attach.ReloadInVain: true, attach.RestartPending: true, attach.RestartDrags: true, attach.Detached: true,
	attach.RivalAttachments: true, attach.NotAttached: true, attach.Paused: true,

	attach.SocketsOverridden: true, attach.SocketsForeignCalls: true, attach.SocketsHidden: true,

	attach.TmpShared: true, attach.NotRunning: true, attach.EndedBeforeSeen: true, attach.RestartedMeanwhl: true,
	attach.SystemdUnheard: true,
}

// publicReasons gives what anybody may read of reasons: the code always.
func publicReasons(in []attach.Reason) []attach.Reason {
	out := make([]attach.Reason, 0, len(in))
	for _, r := range in {
		switch {
		case plain[r.Code]:
		case r.Code == attach.AttachmentBad:
			// Which file is wrong, not what it says.
			r = attach.Reason{Code: r.Code, Detail: r.Code.Title(), Where: r.Where}
		default:
			r = attach.Reason{Code: r.Code, Detail: r.Code.Title()}
		}
		out = append(out, r)
	}
	if len(out) == 0 {
		return nil
	}
	// Ten tasks that differ only in what was left out are one reason.
	return slices.CompactFunc(out, func(a, b attach.Reason) bool { return a == b })
}

func publicStatus(s attach.Status) attach.Status {
	if s.Verdict != nil {
		v := *s.Verdict
		v.Reasons = publicReasons(v.Reasons)
		s.Verdict = &v
	}
	if s.Held != nil {
		// The digest of its inputs is nobody's business either.
		s.Held = &attach.Hold{Reasons: publicReasons(s.Held.Reasons), Since: s.Held.Since, Former: s.Held.Former, Again: s.Held.Again, Texts: s.Held.Texts}
	}
	s.Refused, s.Notes = publicReasons(s.Refused), publicReasons(s.Notes)
	s.Questioned = nil // it names profiles and files
	return s
}

func publicReport(r attach.Report) attach.Report {
	r.Problems = publicReasons(r.Problems)
	units := make([]attach.Status, len(r.Units))
	for i, s := range r.Units {
		units[i] = publicStatus(s)
	}
	r.Units = units
	r.Patterns = slices.Clone(r.Patterns)
	for i, s := range r.Patterns {
		r.Patterns[i] = publicStatus(s)
	}
	missing := make([]attach.Missing, len(r.Missing))
	for i, m := range r.Missing {
		missing[i] = m
		if public := publicReasons([]attach.Reason{m.Reason}); len(public) == 1 {
			missing[i].Reason = public[0]
		}
	}
	r.Missing = missing
	return r
}

// publicProfiles leaves out the rules.
func publicProfiles(in []attach.Profile) []attach.Profile {
	out := make([]attach.Profile, len(in))
	for i, p := range in {
		p.Leaves = nil
		out[i] = p
	}
	return out
}
