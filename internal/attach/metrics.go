package attach

import "time"

// Metrics are the numbers of a running daemon, as of a time. They are put together
// when somebody asks.
type Metrics struct {
	Version string        `json:"version"`
	Host    Host          `json:"host"`
	Began   time.Time     `json:"began"` // when the daemon began
	At      time.Time     `json:"at"`
	Recheck time.Duration `json:"recheck"`
	// Units are all attached ones; templates and prefixes are counted in Patterns.
	Units    []UnitMetrics `json:"units"`
	Patterns int           `json:"patterns"`
	// PatternsHeld are those whose attach failed and is held, and of PatternsRefused
	// something that is declared was refused or could not be put back. Units to come of
	// those in PatternsOpen are not confined by the profile, or it is not known that they
	// are; PatternsOpenPaused are the same of which somebody has said so by a pause.
	PatternsHeld       int `json:"patternsHeld"`
	PatternsRefused    int `json:"patternsRefused"`
	PatternsOpen       int `json:"patternsOpen"`
	PatternsOpenPaused int `json:"patternsOpenPaused"`
	// Problems counts attachment files that are not in use.
	Problems int `json:"problems"`
	// OtherDenials are those of no attached unit, or of which that is not known;
	// DenialsLost records were not heard, and DenialsDeaf is that none are at present.
	OtherDenials DenialCount `json:"otherDenials"`
	DenialsLost  int         `json:"denialsLost"`
	DenialsDeaf  bool        `json:"denialsDeaf"`
	Passes       Durations   `json:"passes"`
	Looks        uint64      `json:"looks"` // verdicts since the daemon began
}

// UnitMetrics are those of one unit.
type UnitMetrics struct {
	Unit    string    `json:"unit"`
	Profile string    `json:"profile"`
	Mode    Wish      `json:"mode"`
	State   string    `json:"state"` // ActiveState
	Answer  Answer    `json:"answer"`
	Codes   []Code    `json:"codes,omitempty"` // of reasons that are no notes, each once
	At      time.Time `json:"at,omitzero"`     // when it was last looked at
	Tasks   int       `json:"tasks"`
	// Held: an attach failed and is not tried again by itself; Pending: something of
	// what is declared is not done yet, or was refused.
	Held    bool        `json:"held,omitempty"`
	Pending bool        `json:"pending,omitempty"`
	Paused  bool        `json:"paused,omitempty"`
	Denials DenialCount `json:"denials"`
	// Sockets is nil where the unit has no [SocketOptions], or was not seen to run yet.
	Sockets *SocketMetrics `json:"sockets,omitempty"`
}

// SocketMetrics are those of a unit's socket options, as of the last look.
type SocketMetrics struct {
	// Stale is CouldNotTell also where there is no list.
	Stale Tri `json:"stale"`
	// Refused are calls since the unit's first start after the boot.
	Refused uint64 `json:"refused"`
}

// durationBounds are the buckets of Durations, in seconds. A pass over one unit takes
// its SettleSec= and more.
var durationBounds = [...]float64{0.05, 0.25, 1, 2.5, 5, 10, 30, 60, 300}

// Durations counts how long something took.
type Durations struct {
	Count uint64  `json:"count"`
	Sum   float64 `json:"sum"` // seconds
	// Buckets count those that took at most as long as the bound of that index.
	Buckets [len(durationBounds)]uint64 `json:"buckets"`
}

// Bounds are those of the buckets, in seconds.
func (Durations) Bounds() []float64 { return durationBounds[:] }

// Add takes one in.
func (d *Durations) Add(t time.Duration) {
	d.Count++
	d.Sum += t.Seconds()
	for i, bound := range durationBounds {
		if t.Seconds() <= bound {
			d.Buckets[i]++
		}
	}
}
