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
	Sum     string // SHA-256 of its text, as in the records
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

// Fate decides it, and says why. Confinement that lasts without aaunit stays:
// the profile lies where apparmor.service finds it at boot. A file that somebody
// has changed is kept, as dpkg keeps a changed configuration file.
func (l LeftDropIn) Fate() (Fate, string) {
	switch {
	case l.Problem != "":
		return FateUnread, l.Problem
	case !l.Exists:
		return FateGone, ""
	}
	if !slices.ContainsFunc(l.Records, func(r Record) bool { return r.DropIns.Of(l.Path) == l.Sum }) {
		return FateChanged, "it is not as aaunit wrote it"
	}
	fate, why := FateTaken, "it depends on the unit, and none is known"
	for _, r := range l.Records {
		if l.OfSocket() {
			return FateTaken, "it runs a program of aaunit's"
		}
		if r.Profile == "" {
			continue // a pattern's, which depends on the unit
		}
		if cause := l.Missing[r.Profile]; cause != "" {
			return FateTaken, cause
		}
		fate, why = FateKept, ""
	}
	return fate, why
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
