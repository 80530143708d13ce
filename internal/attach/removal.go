package attach

import (
	"path"
	"slices"
	"strings"
)

// LeftDropIn is a drop-in that a record calls aaunit's when aaunit itself is
// removed from the host, with what is known about it then.
type LeftDropIn struct {
	Path string
	// Records are those that have it; several units of a pattern share one.
	Records []Record
	Exists  bool
	Text    string
	Sum     string // SHA-256 of Text, as in the records
	Problem string // why the file could not be read
	// Missing says of each profile that systemd could not put on without
	// aaunit, now or after the next boot, why not.
	Missing map[string]string
}

// Fate is what becomes of a drop-in.
type Fate int

// What can become of it.
const (
	FateGone    Fate = iota // it is not there any more
	FateKept                // systemd and AppArmor need nobody else for it: it stays, as FateText
	FateTaken               // its units would not start: it goes
	FateChanged             // somebody has changed it: it stays as it is, without the line of the start helper
	FateUnread              // it could not be read: it stays
)

// OfSocket reports whether it is that of a .socket unit, which has nothing but the
// line of the start helper and what that needs.
func (l LeftDropIn) OfSocket() bool { return strings.HasSuffix(path.Dir(l.Path), ".socket.d") }

// Starts reports whether a text has the line of the start helper, which fails a
// start when the helper has gone.
func Starts(text string) bool { return TextWithoutStart(text) != text }

// TextWithoutStart is a drop-in without the line of the start helper. With which
// special characters it is run does not matter (systemd.service(5), "Command lines"):
// somebody may have changed them.
func TextWithoutStart(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		command, _, _ := strings.Cut(strings.TrimLeft(value, " \t@-:+!|"), " ")
		if strings.TrimSpace(key) != "ExecStartPre" || command != SocketHelper {
			b.WriteString(line)
		}
	}
	return b.String()
}

// Fate decides it, and says why. text is what the file says where it stays.
// Confinement that lasts without aaunit stays: the profile lies where
// apparmor.service finds it at boot. A file that somebody has changed is kept, as
// dpkg keeps a changed configuration file.
func (l LeftDropIn) Fate() (fate Fate, text, why string) {
	former, cutOff := l.former()
	switch {
	case l.Problem != "":
		return FateUnread, "", l.Problem
	case !l.Exists && former == nil:
		return FateGone, "", ""
	case l.Exists && !l.written(former):
		return FateChanged, TextWithoutStart(l.Text), "it is not as aaunit wrote it"
	case l.OfSocket():
		return FateTaken, "", "it runs a program of aaunit's"
	case cutOff && former == nil:
		return FateTaken, "", "the change to it was not finished"
	case l.unfinished():
		return FateTaken, "", "the attach to it was not finished"
	}
	fate, why = FateTaken, "it depends on the unit, and none is known"
	for _, r := range l.Records {
		profile := l.Profile(r)
		if profile == "" {
			continue // it depends on the unit
		}
		if cause := l.Missing[profile]; cause != "" {
			return FateTaken, "", cause
		}
		fate, why = FateKept, ""
	}
	if fate == FateKept {
		text = TextWithoutAaunit(l.stays())
	}
	return fate, text, why
}

// written reports whether the file is as aaunit wrote it, or still as it was before
// a change that was on record and not made yet.
func (l LeftDropIn) written(former *string) bool {
	return former != nil && *former == l.Text || slices.ContainsFunc(l.Records, func(r Record) bool { return r.DropIns.Of(l.Path) == l.Sum })
}

// former is the text that the file had before a change of its attachment that was
// cut off half-way, nil where there was none. The unit was confined by it, and need
// not come up under the new one. cutOff is false where no change was cut off.
func (l LeftDropIn) former() (text *string, cutOff bool) {
	for _, r := range l.Records {
		if r.Former == nil {
			continue
		}
		was, touched := r.Former.DropIns[l.Path]
		if !touched || was == nil && r.Former.Profile == r.Profile && !r.Former.hasText() {
			continue // somebody had taken it away: what confines the unit stays
		}
		cutOff = true
		if text == nil || *text == l.Text {
			text = was // of units that share it, the last ones may have read the new text
		}
	}
	return text, cutOff
}

// hasText reports whether the change was one of a drop-in that was there.
func (f Former) hasText() bool {
	for _, text := range f.DropIns {
		if text != nil {
			return true
		}
	}
	return false
}

// unfinished reports whether no unit was ever seen confined by the file. Where one
// was, what confines it stays, as an undo leaves it.
func (l LeftDropIn) unfinished() bool {
	attaching := false
	for _, r := range l.Records {
		switch {
		case IsPattern(r.Unit):
		case !r.Attaching:
			return false
		default:
			attaching = true
		}
	}
	return attaching
}

// stays is the text that the file would stay with.
func (l LeftDropIn) stays() string {
	if former, _ := l.former(); former != nil {
		return *former
	}
	return l.Text
}

// Profile is the one that the file, as it would stay, puts on the unit of a record. It
// need not be the record's: the undo of a failed attach may have brought back another
// one. It is "" for a pattern of which it depends on the unit.
func (l LeftDropIn) Profile(r Record) string {
	value := ""
	for line := range strings.Lines(l.stays()) {
		if v, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "AppArmorProfile="); ok {
			value = v
		}
	}
	if IsPattern(r.Unit) && strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
		return ""
	}
	profile, _ := ExpandSpecifiers(value, r.Unit)
	return profile
}

// Recovered gives a drop-in that no record has the record that its text makes, where
// aaunit wrote it to the letter: into an image, say, or the record was lost. ok is
// false for one of somebody else's.
func (l LeftDropIn) Recovered() (with LeftDropIn, ok bool) {
	if ok = !l.OfSocket() && WroteDropIn(l.Text) || l.OfSocket() && WroteSocketDropIn(l.Text); !ok {
		return l, false
	}
	r := Record{Unit: strings.TrimSuffix(path.Base(path.Dir(l.Path)), ".d"), DropIns: Sums{{Path: l.Path, Sum: l.Sum}}}
	r.Profile = l.Profile(r)
	for line := range strings.Lines(l.Text) {
		if file, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "# Attachment: "); ok {
			r.Attachment = file
		}
	}
	l.Records = []Record{r}
	return l, true
}

// Interrupted reports whether aaunit was on its way with the unit: an attach, a change
// or its undo, a restart, or a start after a stop.
func (r Record) Interrupted() bool {
	return r.Attaching || r.Former != nil || r.Stopped || len(r.Dragged) > 0
}

// ToStart reports whether a unit that aaunit was on its way with ran before, and is
// down now though nobody wants it so. boot is the present one: of another boot only
// a failure tells that.
func (r Record) ToStart(u Unit, boot string) bool {
	if !r.Stopped && !(r.Attaching && r.Before.Running) && !(r.Former != nil && r.Former.Running) {
		return false
	}
	switch u.ActiveState {
	case "failed":
		return true
	case "activating": // under what has gone now: it may fail in a moment
		return u.Type != "oneshot"
	case "deactivating":
		return r.Stopped
	case "inactive":
		if r.Stopped {
			return r.InBoot(boot)
		}
		// What does its work once may have done it.
		return r.Boot == boot && boot != "" && u.Type != "oneshot"
	}
	return false
}

// InBoot reports whether what aaunit has stopped may be down for that: boot, the present
// one, is not known to be another one than it was stopped in.
func (r Record) InBoot(boot string) bool { return r.Boot == "" || boot == "" || r.Boot == boot }

// Left is the record of a unit that aaunit is not on its way with any more: what it
// was about to change is as it was.
func (r Record) Left() Record {
	if r.Former != nil && r.Former.Profile != r.Profile {
		r.Profile, r.Proved = r.Former.Profile, ""
	}
	r.Attaching, r.Former, r.Stopped, r.Dragged = false, nil, false, nil
	return r
}

// TextWithoutAaunit is a drop-in of aaunit's without what speaks of aaunit, and
// without what is there to keep a unit from starting: with nobody to explain
// it, that would be a failure without a cause.
func TextWithoutAaunit(text string) string {
	var b strings.Builder
	b.WriteString("# Left by aaunit when it was removed: nobody puts this file back or looks\n")
	b.WriteString("# whether the unit is confined. To take it away, remove this file.\n")
	for line := range strings.Lines(text) {
		switch {
		case strings.HasPrefix(line, "#"), strings.HasPrefix(line, "AssertSecurity="), strings.HasPrefix(line, "ExecStartPre="):
		case strings.HasPrefix(line, "After="):
			b.WriteString("After=apparmor.service\n")
		default:
			b.WriteString(line)
		}
	}
	return b.String()
}

// OwnProfile is the AppArmorProfile= that a unit has without aaunit's drop-in,
// with its "-" where it has one; "" none.
func (s Settings) OwnProfile() string {
	own := ""
	for _, as := range s.Assignments {
		if as.Key == "AppArmorProfile" && !ours(as.Path) {
			own = as.Value
		}
	}
	return own
}

// Afterwards says how a unit starts when its drop-in has gone. known is false
// where systemd could not be asked about it.
func Afterwards(u Unit, known bool) string {
	switch own := u.Settings.OwnProfile(); {
	case !known:
		return "starts as its own unit files say from its next start"
	case own != "":
		return "keeps its own AppArmorProfile=" + own
	}
	return "starts unconfined from its next start"
}
