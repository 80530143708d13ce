package attach

import "time"

// Case is what is known of one unit when somebody asks what is wrong with it.
type Case struct {
	Unit string `json:"unit"`
	// Status is the attachment's; nil where no attachment names the unit, and then
	// Missing says so.
	Status  *Status `json:"status,omitempty"`
	Missing *Reason `json:"missing,omitempty"`
	// Start is what systemd says; nil for a pattern, and where systemd was not
	// asked or did not answer (StartProblem).
	Start        *LastStart `json:"start,omitempty"`
	StartProblem string     `json:"startProblem,omitempty"`
	// Plan is what an attach of a unit that is not attached would come to; nil where
	// that was not looked at.
	Plan *Outcome `json:"plan,omitempty"`
	// Denials are those of the unit, in the order in which they last happened, and
	// LeftOut counts older ones. Hidden says why the caller is not told.
	Denials []SeenDenial `json:"denials,omitempty"`
	LeftOut int          `json:"leftOut,omitempty"`
	Hidden  string       `json:"hidden,omitempty"`
	// Sockets is what there is to say of its socket options. It is hidden with the
	// denials.
	Sockets []Reason `json:"sockets,omitempty"`
}

// CaseReport is what is known of units, as of a time.
type CaseReport struct {
	Host  Host   `json:"host"`
	Cases []Case `json:"cases"`
	// Since is when the log of denials began, Lost how many records it lacks at
	// least, and Deaf why nothing is heard at present.
	Since time.Time `json:"since"`
	Lost  int       `json:"lost,omitempty"`
	Deaf  string    `json:"deaf,omitempty"`
	At    time.Time `json:"at"`
}
