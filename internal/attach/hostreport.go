package attach

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// Machine says which machine a report is of. What could not be read is "".
type Machine struct {
	Name string `json:"name"`
	// ID is the same as long as the system is: 32 hexadecimal digits, made of
	// machine-id(5), which itself stays at home.
	ID     string `json:"id"`
	OS     string `json:"os,omitempty"`
	Kernel string `json:"kernel,omitempty"`
}

// HostReport is all that a host can tell an auditor: which services run confined by
// what, since when and with which evidence, which do not and why, what was allowed
// and for what reason, and what nobody has confined.
type HostReport struct {
	Machine  Machine       `json:"machine"`
	Version  string        `json:"version"`
	Host     Host          `json:"host"`
	At       time.Time     `json:"at"`
	Recheck  time.Duration `json:"recheck"` // interval of the slow re-check, nanoseconds
	Problems []Reason      `json:"problems,omitempty"`
	Units    []UnitReport  `json:"units"`
	// Unattached are services that no attachment names; nil where they were not
	// looked at, and UnattachedProblem says why.
	Unattached        *ExposureReport `json:"unattached,omitempty"`
	UnattachedProblem string          `json:"unattachedProblem,omitempty"`
	// DenialsLost records were not heard, of any unit; DenialsDeaf says why none are
	// at present.
	DenialsLost int    `json:"denialsLost,omitempty"`
	DenialsDeaf string `json:"denialsDeaf,omitempty"`
}

// UnitReport is an attached unit, template or prefix.
type UnitReport struct {
	Unit    string `json:"unit"`
	Pattern bool   `json:"pattern,omitempty"` // a template or prefix: it has no verdict
	// ToCome says of one whether units to come start under its profile.
	ToCome      Answer   `json:"toCome,omitempty"`
	Profile     string   `json:"profile"`
	ProfileFile string   `json:"profileFile,omitempty"`
	Mode        Wish     `json:"mode,omitempty"` // as wished
	Attachment  string   `json:"attachment"`
	ActiveState string   `json:"activeState,omitempty"`
	Verdict     *Verdict `json:"verdict,omitempty"`
	// Since is when the first of an unbroken row of records of evidence was made that
	// give the present answer; zero where there are none.
	Since time.Time `json:"since,omitzero"`
	Held  []Reason  `json:"held,omitempty"` // why the attach, or a changed text, is held
	// OnlyText: a changed text is held, and the unit runs under the one before.
	OnlyText bool     `json:"onlyText,omitempty"`
	Paused   *Pause   `json:"paused,omitempty"`
	Refused  []Reason `json:"refused,omitempty"`
	Notes    []Reason `json:"notes,omitempty"`

	Evidence        *EvidenceSummary `json:"evidence,omitempty"`
	EvidenceProblem string           `json:"evidenceProblem,omitempty"`
	Allowed         []Allowance      `json:"allowed,omitempty"`
	Denials         DenialCount      `json:"denials"`
	// Sockets is nil where the attachment has no [SocketOptions].
	Sockets *SocketSummary `json:"sockets,omitempty"`
	// Seen are its processes and sockets, for the picture; no verdict is made of it.
	Seen *Sighting `json:"seen,omitempty"`
}

// SocketSummary is what a report says of a unit's socket options; the options of its
// list are among Allowed.
type SocketSummary struct {
	Mode     SocketMode `json:"mode"`
	Required bool       `json:"required,omitempty"`
	Options  int        `json:"options"` // on both lists
	// Stale says whether the list is of another executable than the one that runs;
	// CouldNotTell also where the list is empty.
	Stale    Tri    `json:"stale"`
	StaleWhy string `json:"staleWhy,omitempty"`
	// Refused are calls since the unit's first start after the boot; Unlisted options
	// were seen and are not on the list.
	Refused  uint64 `json:"refused,omitempty"`
	Unlisted int    `json:"unlisted,omitempty"`
	// Problem says why it could not be read what was used.
	Problem string `json:"problem,omitempty"`
}

// Enforces reports whether what is not on the list is refused.
func (s *SocketSummary) Enforces() bool { return s != nil && s.Mode == SocketsEnforce }

// Allowance is something that an attachment takes back or adds, with the reason that
// it gives for it.
type Allowance struct {
	Kind string `json:"kind"`
	What string `json:"what"` // the assertion's code, the profile or the socket option
	// Reason is "" where none is given.
	Reason string `json:"reason,omitempty"`
	Where  string `json:"where,omitempty"`
}

// The kinds of allowances.
const (
	AllowWaiver    = "waiver"
	AllowProfile   = "profile"
	AllowSetOption = "setsockopt"
	AllowGetOption = "getsockopt"
)

// Allowances are those of an attachment.
func Allowances(a Attachment) (out []Allowance) {
	for _, w := range a.Waivers {
		out = append(out, Allowance{Kind: AllowWaiver, What: string(w.Code), Reason: w.Reason, Where: fmt.Sprintf("%s:%d", a.Source, w.Line)})
	}
	for _, p := range a.AllowProfiles {
		out = append(out, Allowance{Kind: AllowProfile, What: p, Where: a.Source})
	}
	if s := a.SocketsWanted(); s != nil {
		for _, o := range s.Allow {
			out = append(out, Allowance{Kind: AllowSetOption, What: o.Option, Reason: o.Reason, Where: lineOf(a.Source, o.Line)})
		}
		for _, o := range s.AllowGet {
			out = append(out, Allowance{Kind: AllowGetOption, What: o.Option, Reason: o.Reason, Where: lineOf(a.Source, o.Line)})
		}
	}
	return out
}

// lineOf is a place in a file. What was just added to one has no line yet.
func lineOf(file string, line int) string {
	if line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d", file, line)
}

// DenialCount counts what was denied to a unit since the daemon began.
type DenialCount struct {
	Denied  int `json:"denied"`
	Allowed int `json:"allowed,omitempty"` // let pass in complain mode
	Killed  int `json:"killed,omitempty"`
}

// Add counts a record of the kernel's, or several that say the same.
func (c *DenialCount) Add(d Denial) {
	switch n := max(1, d.Count); {
	case d.Killed:
		c.Killed += n
	case d.Allowed:
		c.Allowed += n
	default:
		c.Denied += n
	}
}

// EvidenceSummary is what an auditor needs of the newest record of a unit; the record
// itself stays on the host, under its checksum.
type EvidenceSummary struct {
	Number  int       `json:"number"`
	SHA256  string    `json:"sha256"`
	Records int       `json:"records"` // that are kept of the unit
	Answer  Answer    `json:"answer"`
	At      time.Time `json:"at"` // of the look
	Kernel  string    `json:"kernel,omitempty"`
	// Policies, Live and Executable are those of the record, Live only in part.
	Policies   []PolicySummary   `json:"policies,omitempty"`
	Live       []EvidenceProfile `json:"live,omitempty"`
	Executable EvidenceProgram   `json:"executable"`
	DropIn     EvidenceFile      `json:"dropIn"`
}

// PolicySummary is an accepted policy without the files that it was made of.
type PolicySummary struct {
	File     string `json:"file"`
	Source   string `json:"source"`
	Compiled string `json:"compiled"`
	Parser   string `json:"parser,omitempty"`
	Files    int    `json:"files"` // with the included ones
}

// EvidenceHistory is what is kept of a unit.
type EvidenceHistory struct {
	Newest *Evidence // nil where there is none
	SHA256 string
	// Since is the time of the first of an unbroken row of records up to the newest
	// that give the same answer.
	Since   time.Time
	Records int
	Problem string // why something of it could not be read
}

// maxSummaryProfiles bounds the profiles of a summary.
const maxSummaryProfiles = 16

// Summary is what a report says of it; nil where there is no record.
func (h EvidenceHistory) Summary() *EvidenceSummary {
	if h.Newest == nil {
		return nil
	}
	e := h.Newest
	s := &EvidenceSummary{Number: e.Number, SHA256: h.SHA256, Records: h.Records, Answer: cmp.Or(e.Verdict.Answer, Unknown), At: e.Verdict.At, Kernel: e.Kernel,
		Live: slices.Clone(e.Live[:min(len(e.Live), maxSummaryProfiles)]), Executable: e.Executable, DropIn: e.DropIn}
	for _, p := range e.Policies {
		s.Policies = append(s.Policies, PolicySummary{File: p.File, Source: p.Source, Compiled: p.Compiled, Parser: p.Parser, Files: len(p.Files)})
	}
	return s
}
