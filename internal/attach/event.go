package attach

// UnitEvent is what systemd told about units.
type UnitEvent struct {
	Kind UnitEventKind
	Unit string // canonical name; "" where the event is about systemd as a whole
}

// UnitEventKind is the kind of a UnitEvent.
type UnitEventKind int

// The kinds.
const (
	// UnitStarted: the unit has a new InvocationID or became active.
	UnitStarted UnitEventKind = iota + 1
	// UnitEnded: the unit became inactive or failed.
	UnitEnded
	// UnitsReloaded: systemd has read its unit files again, or unit files came
	// and went; nothing known of settings and names holds any more.
	UnitsReloaded
	// DropInChanged: somebody else changed or removed a drop-in of ours. Unit is
	// what its directory is named after, a template or prefix too.
	DropInChanged
	// BusLost: the connection went; nothing is heard until BusBack.
	BusLost
	// BusBack: connected again; whatever happened meanwhile was missed.
	BusBack
)

// Declared is what all attachment files together say.
type Declared struct {
	Attachments []*Attachment // none is changed in place
	// Problems are files, or lines of them, that are wrong: code
	// attachment-bad, with file and line.
	Problems []Reason
	// Broken holds the paths of files that could not be used at all: what an
	// earlier version of them attached stays as it is.
	Broken map[string]bool
}
