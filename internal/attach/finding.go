package attach

import "fmt"

// Severity says what a finding about policy means.
type Severity int8

// In order.
const (
	Note    Severity = iota // worth knowing
	Warning                 // the service may not work, or do more than was meant
	Error                   // the policy does not go live
)

func (s Severity) String() string {
	switch s {
	case Note:
		return "note"
	case Warning:
		return "warning"
	}
	return "error"
}

// MarshalText makes a Severity read as a word in JSON.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText is the inverse; what is not known counts as an error.
func (s *Severity) UnmarshalText(b []byte) error {
	switch string(b) {
	case "note":
		*s = Note
	case "warning":
		*s = Warning
	default:
		*s = Error
	}
	return nil
}

// Finding is something that the compiled policy says, and that somebody should
// know before it goes live.
type Finding struct {
	Severity Severity `json:"severity"`
	Profile  string   `json:"profile,omitempty"`
	// Witness is what shows it: a path, a socket's family and type. It is the
	// policy's, and may hold any byte but NUL.
	Witness string `json:"witness,omitempty"`
	Reason
}

func (f Finding) String() string { return fmt.Sprintf("%s: %s", f.Severity, f.Reason) }
