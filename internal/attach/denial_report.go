package attach

import "time"

// DenialReport is what was denied to attached units, as far as it was heard.
type DenialReport struct {
	Host  Host          `json:"host"`
	Units []UnitDenials `json:"units"`
	// Missing are names that were asked for and that no attachment names.
	Missing []Missing `json:"missing,omitempty"`
	// Began is when the log began: with the daemon. What was denied before is in
	// the journal only.
	Began time.Time `json:"began"`
	// Lost records, at least so many, of any unit of the host: the kernel had no
	// room for them, or the daemon did not take them in time, or they had to make
	// room for newer ones. Some may not have been denials.
	Lost int `json:"lost,omitempty"`
	// Deaf says why nothing is heard at present.
	Deaf string `json:"deaf,omitempty"`
	// Cursor is where WaitDenials goes on.
	Cursor string    `json:"cursor"`
	At     time.Time `json:"at"`
}

// UnitDenials are those of one unit, in the order in which they last happened.
type UnitDenials struct {
	Unit    string       `json:"unit"`
	Profile string       `json:"profile"`
	Denials []SeenDenial `json:"denials"`
	// LeftOut counts older ones that did not fit into the answer.
	LeftOut int `json:"leftOut,omitempty"`
}

// SeenDenial is a denial with what there is to say of it. Where Unit is "", it is
// of one of Candidates. In JSON a byte of a name that is no UTF-8 is lost; it is
// in What and in the rule.
type SeenDenial struct {
	Denial
	What     string   `json:"what,omitempty"`
	Proposal Proposal `json:"proposal"`
}

// Seen puts beside a denial what there is to say of it.
func Seen(d Denial) SeenDenial {
	return SeenDenial{Denial: d, What: d.What(), Proposal: d.Rule()}
}
