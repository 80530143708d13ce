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

// QueryResult is the answer of a profile's compiled policy to a question.
type QueryResult struct {
	Profile string `json:"profile"`
	File    string `json:"file,omitempty"`
	// Loaded is set where what the kernel has loaded was asked.
	Loaded *LiveProfile `json:"loaded,omitempty"`
	// May is the answer: "yes", "no", "not mediated" (AppArmor does not look at it)
	// or "unknown". "no" is a proof: all that match were considered.
	May string `json:"may"`
	// Witness shows a "yes": the shortest path, a socket's family and type. It is the
	// policy's, and may hold any byte but NUL.
	Witness string `json:"witness,omitempty"`
	// Text is a clause with the profile as its subject.
	Text string `json:"text"`
	// Reason is set where the profile could not be asked.
	Reason *Reason `json:"reason,omitempty"`
}

// The answers of a QueryResult.
const (
	MayYes         = "yes"
	MayNo          = "no"
	MayNotMediated = "not mediated"
	MayUnknown     = "unknown"
)

// ExitOfQuery gives the exit status of answers: 0 where none of the profiles may.
func ExitOfQuery(results []QueryResult) Exit {
	exit := ExitOK
	if len(results) == 0 {
		return ExitUnknown
	}
	for _, r := range results {
		switch r.May {
		case MayNo:
		case MayYes, MayNotMediated:
			return ExitNotConfined
		default:
			exit = ExitUnknown
		}
	}
	return exit
}

// ExitOfFindings gives the exit status of a check.
func ExitOfFindings(found []Finding) Exit {
	exit := ExitOK
	for _, f := range found {
		switch {
		case f.Code == AssertionUnknown:
			exit = WorstExit(exit, ExitUnknown)
		case f.Severity == Error:
			exit = WorstExit(exit, ExitNotConfined)
		}
	}
	return exit
}
