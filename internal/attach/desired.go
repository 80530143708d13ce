package attach

import (
	"maps"
	"path"
	"slices"
	"time"
)

// Desired is the wish for one unit, with what aaunit remembers of it.
type Desired struct {
	Unit string
	// Attachment is nil where no attachment names the unit (any more).
	Attachment *Attachment
	// Profile is the internal name, specifiers expanded.
	Profile string
	Record  Record
	// Kept holds the accepted policies of the record that can be made live again,
	// without their bytes.
	Kept []Compiled
	// Asked: a person asks for it now, so that a changed text which is only to be
	// reported goes live.
	Asked bool
	// Checked: a person asks what there is to say against the profiles' texts, also
	// where the unit goes on under what was accepted before.
	Checked bool
	// PatternPause is the pause of Pattern, the template or prefix whose drop-in
	// serves the unit; nil where that is not paused.
	PatternPause *Pause
	Pattern      string
	// HeldWith is the template or prefix whose hold, which is in Record then, is the
	// unit's too: no unit came up under its drop-in. "" where that is not so.
	HeldWith string
}

// Record is what aaunit remembers of a unit between passes and restarts of the
// daemon.
type Record struct {
	Unit       string `json:"unit"`
	Attachment string `json:"attachment"` // source file
	Profile    string `json:"profile"`
	// DropIns are the files aaunit wrote for the unit.
	DropIns Sums `json:"-"` // on disk an object, dropIns
	// Boot is the boot that Loaded and Softened are about: what is loaded after
	// another one is not of aaunit's loading.
	Boot string `json:"boot,omitempty"`
	// Loaded are the profiles that were not loaded before aaunit loaded them:
	// only these may a detach unload.
	Loaded []string `json:"loaded,omitempty"`
	// Stays are those of Loaded that the undo of an attach could not unload, since a
	// task carried them: it is tried again, until the next attempt has come to its end.
	// While one that attaches to the unit's program by itself stays, the unit is down
	// (Stopped): a start would put on what it failed under.
	Stays []string `json:"stays,omitempty"`
	// Softened are the files whose profiles were loaded in enforce mode before
	// aaunit loaded them in complain mode: a detach loads them as their text says.
	Softened []string `json:"softened,omitempty"`
	// Accepted holds the kernel's checksum of each profile that passed the
	// checks, by name.
	Accepted map[string]string `json:"accepted,omitempty"`
	// Policies are the accepted policies that Accepted comes from: profile file and
	// the ID under which the policy is kept.
	Policies map[string]string `json:"policies,omitempty"`
	// Lent is set while the policy that a person asked for on behalf of another unit was
	// accepted for this one, too, and that one's attach is not over.
	Lent *Lent `json:"lent,omitempty"`
	// Trial is set while a changed policy has yet to show that the unit stays
	// healthy under it.
	Trial *Trial `json:"trial,omitempty"`
	// Retaking is the start that was to be ended for that; another one is none of it.
	Retaking string `json:"retaking,omitempty"`
	// Retaken is when the unit was last restarted because its profile had been
	// taken off its tasks.
	Retaken time.Time `json:"retaken,omitzero"`
	// Away is since when the unit, which only a pattern names, has been down and systemd
	// has known no file of it.
	Away time.Time `json:"away,omitzero"`
	// RestartUnit is the attachment's, for the day when it is withdrawn.
	RestartUnit bool `json:"restartUnit"`
	// Attaching is set from the first change until the first good verdict: an
	// attach that was cut off half-way shows by it.
	Attaching bool `json:"attaching,omitempty"`
	// Before is what the unit had before the attach.
	Before Before `json:"before"`
	// Former is set from the first change of an attachment that was in place to
	// another one until that is done or undone: what an undo goes back to, also
	// when the change was cut off half-way.
	Former *Former `json:"former,omitempty"`
	// Stopped is set while aaunit has stopped the unit to start it again: one that
	// is found down then is not down because somebody wants it so. That is over where the
	// unit is found up, and with the next boot.
	Stopped bool `json:"stopped,omitempty"`
	// Dragged are the units that go down with it, from when it begins to be stopped or
	// restarted until that is done or undone: they may be down for it.
	Dragged []string `json:"dragged,omitempty"`
	// Sockets are the socket options that were last put in force, nil none, and
	// SocketUnits the names for which there may be rules or programs of them.
	Sockets     *SocketOptions `json:"sockets,omitempty"`
	SocketUnits []string       `json:"socketUnits,omitempty"`
	// SocketsKept says that what was seen under Sockets is kept beside the record, and with
	// it what their list was made for (SocketHistory.Reviewed).
	SocketsKept bool `json:"socketsKept,omitempty"`
	// Unfiltered is the InvocationID of the start that was last seen when the unit's
	// SystemCallFilter= let it call bpf(2). That start goes on so, whatever becomes of the
	// setting.
	Unfiltered string `json:"unfiltered,omitempty"`
	// Proved is the InvocationID of the start that was last seen under Profile, which it
	// may have been without being confined (Verdict.ShowsProfile). What becomes of such a
	// start when it is under it no more is for OnViolation= to say; it is not restarted
	// over and over.
	Proved string `json:"proved,omitempty"`
	// ProvedTmp: that start was seen with a private /tmp, too.
	ProvedTmp bool  `json:"provedTmp,omitempty"`
	Hold      *Hold `json:"hold,omitempty"`
	// Pause is the unit's own. A new one takes its place; it is never changed.
	Pause *Pause `json:"pause,omitempty"`
	// Verdict is the last one.
	Verdict *Verdict `json:"verdict,omitempty"`
}

// Clone copies the record so that the copies share nothing that changes.
func (r Record) Clone() Record {
	r.Loaded = slices.Clone(r.Loaded)
	r.Stays, r.Dragged = slices.Clone(r.Stays), slices.Clone(r.Dragged)
	r.Softened = slices.Clone(r.Softened)
	r.Accepted = maps.Clone(r.Accepted)
	r.Policies = maps.Clone(r.Policies)
	r.SocketUnits = slices.Clone(r.SocketUnits)
	return r
}

// Lent is what a unit had before the policy of another one, By, was accepted for it. It is
// given back when that one's attach fails.
type Lent struct {
	By       string            `json:"by"`
	Accepted map[string]string `json:"accepted"`
	Policies map[string]string `json:"policies"`
	Hold     *Hold             `json:"hold,omitempty"`
}

// Trial is what a changed policy goes back to when the unit fails under it, is
// started again or is denied something new by it within SettleSec=.
type Trial struct {
	Accepted map[string]string `json:"accepted"`
	Policies map[string]string `json:"policies"`
	Since    time.Time         `json:"since"`
	Unit     Start             `json:"unit"` // as it was when the trial began
	// Over: the unit itself is not watched, or no longer. It goes back with the others that
	// are on trial under the policy.
	Over bool `json:"over,omitempty"`
}

// GoesOn reports whether the unit is watched.
func (t *Trial) GoesOn() bool { return t != nil && !t.Over }

// Ended is the trial when the unit is watched no longer.
func (t *Trial) Ended() *Trial {
	ended := *t
	ended.Over = true
	return &ended
}

// Start is one start of a unit, for telling whether it is still the same one.
type Start struct {
	InvocationID string `json:"invocationID"`
	MainPID      int    `json:"mainPID,omitempty"`
	NRestarts    uint32 `json:"nRestarts,omitempty"`
	Active       bool   `json:"active"`
	// Restarting: it had ended, and systemd had yet to start it again.
	Restarting bool `json:"restarting,omitempty"`
}

// Start is the unit's present one.
func (u Unit) Start() Start {
	return Start{InvocationID: u.InvocationID, MainPID: u.MainPID, NRestarts: u.NRestarts, Active: u.Active()}
}

// Former is the attachment that a failed change goes back to.
type Former struct {
	Profile string `json:"profile"`
	Running bool   `json:"running"`
	// DropIns are the texts of the files that the change touches, by path; nil
	// where there was none.
	DropIns map[string]*string `json:"dropIns"`
}

// Before is what a failed first attach goes back to.
type Before struct {
	Running  bool `json:"running"`
	Confined bool `json:"confined"` // its tasks already carried the profile
}

// Hold keeps a failed attach from being tried again and again.
type Hold struct {
	// Inputs is a digest of all that the attach depended on; the hold ends when
	// it changes.
	Inputs  string    `json:"inputs"`
	Reasons []Reason  `json:"reasons"`
	Since   time.Time `json:"since"`
	// Former is the profile that the undo brought back, or that the unit was left under;
	// "" none. It is kept under that, and DropIns are the texts of its drop-ins, by path.
	Former  string            `json:"former,omitempty"`
	DropIns map[string]string `json:"dropIns,omitempty"`
	// Again is when it is tried again by itself, where the host was in the way, and
	// none of Inputs: no room on the disk, say. Zero is never.
	Again time.Time `json:"again,omitzero"`
	// Texts: only the changed text of these files is held, by the ID of the policy
	// that it gives. The unit runs under the policy that was accepted before, and
	// all else about it goes on.
	Texts map[string]string `json:"texts,omitempty"`
}

// wantTmp is the PrivateTmp= that the drop-in asks for: the attachment's, or
// what the unit has by itself where that is more. It never weakens.
func (d Desired) wantTmp(u Unit) PrivateTmp {
	own, _ := u.Settings.readTmp("no")
	for _, as := range u.Settings.Assignments {
		if as.Key != "PrivateTmp" || ours(as.Path) {
			continue
		}
		if v, ok := u.Settings.readTmp(as.Value); ok {
			own = v
		}
	}
	if d.Attachment == nil || own.rank() > d.Attachment.PrivateTmp.rank() {
		return own
	}
	return d.Attachment.PrivateTmp
}

// WantsPrivateTmp reports whether the unit shall have a /tmp of its own.
func (d Desired) WantsPrivateTmp(u Unit) bool { return d.wantTmp(u).rank() > PrivateTmpNo.rank() }

// ours reports whether a file has the name of aaunit's drop-in. Whether a
// record has it does not matter: the units of a pattern share one.
func ours(file string) bool { return path.Base(file) == DropInName }

// readTmp reads the value of a unit file's PrivateTmp= as systemd does for a unit with
// these settings. What it does not understand, the empty string included, it ignores: ok
// is false. Where it knows "disconnected", that is what DynamicUser= makes of "no", which
// is also what nothing at all means (unit_patch_contexts in its src/core/unit.c).
func (s Settings) readTmp(value string) (v PrivateTmp, ok bool) {
	switch {
	case value == "", !s.KnowsDisconnected && (value == "connected" || value == string(PrivateTmpDisconnected)):
		return "", false
	case value == "connected": // its other name for "yes"
		return PrivateTmpYes, true
	}
	v, err := oneOf(value, PrivateTmpNo, PrivateTmpYes, PrivateTmpDisconnected, PrivateTmpNo)
	if v == PrivateTmpNo && s.DynamicUser && s.KnowsDisconnected {
		v = PrivateTmpDisconnected
	}
	return v, err == nil
}

// rank orders PrivateTmp= by how much it separates.
func (p PrivateTmp) rank() int {
	switch p {
	case PrivateTmpYes:
		return 1
	case PrivateTmpDisconnected:
		return 2
	}
	return 0
}

// DropInPath is where the unit's drop-in belongs.
func (d Desired) DropInPath() string {
	return DropInPath(d.Attachment.Placement(d.Unit), d.Attachment.Runtime)
}

// FormerDropInPath is where the drop-in is by the record when the attachment has moved between
// /etc and /run since, or "".
func (d Desired) FormerDropInPath() string {
	if file := DropInPath(d.Attachment.Placement(d.Unit), !d.Attachment.Runtime); d.Record.DropIns.Has(file) {
		return file
	}
	return ""
}

// shared reports whether the drop-in lies in a template's or prefix's
// directory, where it serves every unit of the pattern.
func (d Desired) shared() bool { return d.Attachment.Placement(d.Unit) != d.Unit }

// pattern reports whether this is not about a unit but about the drop-in of a
// template or prefix, for units to come.
func (d Desired) pattern() bool { return IsPattern(d.Unit) }

// DropInText is what it shall say. In a template's or prefix's directory the
// profile keeps its specifiers, which systemd expands for each unit.
func (d Desired) DropInText(u Unit) string {
	a := *d.Attachment
	a.PrivateTmp = d.wantTmp(u)
	profile := EscapeSpecifiers(d.Profile)
	if d.shared() || d.pattern() {
		profile = a.Profile
		a.PrivateTmp = d.Attachment.PrivateTmp // shared by all units of the pattern
	}
	return DropIn(a, profile)
}

// Keeps reports whether the unit is attached and what was accepted for it can be
// made live again, whatever the profile's text says now.
func (d Desired) Keeps() bool {
	if d.Attachment == nil || len(d.Record.DropIns) == 0 || d.Record.Attaching || d.Record.Profile != d.Profile || len(d.Kept) == 0 {
		return false
	}
	sums := map[string]string{}
	for _, k := range d.Kept {
		maps.Copy(sums, k.Checksums)
	}
	for _, name := range d.names() {
		if d.Record.Accepted[name] == "" {
			return false
		}
	}
	return maps.Equal(sums, d.Record.Accepted)
}

// heldText reports whether no more than the profile's changed text is held.
func (d Desired) heldText() bool { return d.Record.Hold.OnlyText() && d.Keeps() }

// OnlyText reports whether the unit itself is attached and goes on, and no more
// than a changed text of its profile is held.
func (h *Hold) OnlyText() bool { return h != nil && len(h.Texts) > 0 }

// MaxAgain is how far off Hold.Again is at most.
const MaxAgain = time.Hour

// Over reports whether it is to be tried again by itself. A time that is further off than
// any is from when the clock was ahead.
func (h *Hold) Over(now time.Time) bool {
	return !h.Again.IsZero() && (!now.Before(h.Again) || h.Again.Sub(now) > MaxAgain)
}

// names are the profiles whose policy belongs to the unit.
func (d Desired) names() []string {
	if d.pattern() && d.Profile == "" {
		return nil // it depends on the unit
	}
	names := []string{d.Profile}
	for _, p := range d.allowed() {
		if !slices.Contains(names, p) {
			names = append(names, p)
		}
	}
	return names
}

// allowed are the profiles that tasks of the unit may carry besides its own.
func (d Desired) allowed() []string {
	if d.Attachment == nil {
		return nil
	}
	return d.Attachment.AllowProfiles
}
