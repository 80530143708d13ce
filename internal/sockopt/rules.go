package sockopt

import (
	"errors"
	"fmt"
	"slices"
)

// Call is one of the two system calls.
type Call uint8

// The system calls; the numbers are those of bpf/sockopt.bpf.c.
const (
	Set Call = 0
	Get Call = 1
)

func (c Call) String() string {
	switch c {
	case Set:
		return "setsockopt"
	case Get:
		return "getsockopt"
	}
	return fmt.Sprintf("call %d", uint8(c))
}

// Mode is what the program does with the calls of a unit.
type Mode uint8

// The modes; the numbers are those of bpf/sockopt.bpf.c.
const (
	Off     Mode = 0
	Record  Mode = 1
	Enforce Mode = 2
)

var modeNames = [...]string{Off: "off", Record: "record", Enforce: "enforce"}

func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// ParseMode is the way back from String.
func ParseMode(s string) (Mode, error) {
	if i := slices.Index(modeNames[:], s); i >= 0 {
		return Mode(i), nil
	}
	return Off, fmt.Errorf("cannot understand the mode %q: it is off, record or enforce", s)
}

// MarshalText makes a mode readable in files.
func (m Mode) MarshalText() ([]byte, error) {
	if int(m) >= len(modeNames) {
		return nil, fmt.Errorf("cannot write %s", m)
	}
	return []byte(m.String()), nil
}

// UnmarshalText is the way back.
func (m *Mode) UnmarshalText(text []byte) (err error) {
	*m, err = ParseMode(string(text))
	return err
}

// Rules are what holds for a unit.
type Rules struct {
	Mode Mode `json:"mode"`
	// Allow are the options that may be set. In any other mode than enforce they
	// are kept in the kernel and refuse nothing.
	Allow []Option `json:"allow,omitempty"`
	// HoldGet says that getsockopt is held to AllowGet; else it may read anything.
	HoldGet  bool     `json:"hold_get,omitempty"`
	AllowGet []Option `json:"allow_get,omitempty"`
}

// MaxAllow is how many options a list may have, both calls together.
const MaxAllow = 4096

// normal sorts and removes what is there twice, so that two Rules that allow the
// same are the same.
func (r Rules) normal() Rules {
	tidy := func(list []Option) []Option {
		list = slices.Clone(list)
		slices.SortFunc(list, Option.compare)
		list = slices.Compact(list)
		if len(list) == 0 {
			return nil
		}
		return list
	}
	r.Allow, r.AllowGet = tidy(r.Allow), tidy(r.AllowGet)
	return r
}

// Equal says whether two Rules allow the same.
func (r Rules) Equal(o Rules) bool {
	r, o = r.normal(), o.normal()
	return r.Mode == o.Mode && r.HoldGet == o.HoldGet && slices.Equal(r.Allow, o.Allow) && slices.Equal(r.AllowGet, o.AllowGet)
}

// Allows says what the program says to a call, in enforce mode.
func (r Rules) Allows(call Call, o Option) bool {
	if call == Get {
		return !r.HoldGet || slices.Contains(r.AllowGet, o)
	}
	return slices.Contains(r.Allow, o)
}

func (r Rules) check() error {
	if int(r.Mode) >= len(modeNames) {
		return fmt.Errorf("cannot use %s", r.Mode)
	}
	if n := len(r.Allow) + len(r.AllowGet); n > MaxAllow {
		return fmt.Errorf("cannot use a list of %d socket options: %d is the most", n, MaxAllow)
	}
	return nil
}

// keys are the entries of the kernel's table.
func (r Rules) keys() map[bpfAllowKey]bool {
	keys := map[bpfAllowKey]bool{}
	for call, list := range map[Call][]Option{Set: r.Allow, Get: r.AllowGet} {
		for _, o := range list {
			keys[bpfAllowKey{Level: o.Level, Optname: o.Name, Call: uint32(call)}] = true
		}
	}
	return keys
}

// settings are the kernel's, with what they are now where the rules do not say.
func (r Rules) settings(now bpfSettings) bpfSettings {
	now.Mode, now.Flags = uint32(r.Mode), 0
	if r.HoldGet {
		now.Flags |= flagListGet
	}
	return now
}

// errNoRules is of tables in which there is what aaunit does not write: it is the work of
// a root process, or of a version to come.
var errNoRules = errors.New("the tables of its programs have in them what this aaunit does not write")

// rules are what the kernel's settings say, but for the lists.
func (s bpfSettings) rules() (r Rules, err error) {
	if s.Mode >= uint32(len(modeNames)) || s.Flags&^flagListGet != 0 {
		return r, fmt.Errorf("%w: the mode %d with the flags %#x", errNoRules, s.Mode, s.Flags)
	}
	return Rules{Mode: Mode(s.Mode), HoldGet: s.Flags&flagListGet != 0}, nil
}

// add takes an entry of the kernel's table into the lists.
func (r *Rules) add(key bpfAllowKey) error {
	o := Option{Level: key.Level, Name: key.Optname}
	switch key.Call {
	case uint32(Set):
		r.Allow = append(r.Allow, o)
	case uint32(Get):
		r.AllowGet = append(r.AllowGet, o)
	default:
		return fmt.Errorf("%w: an option for the call %d", errNoRules, key.Call)
	}
	return nil
}

// flagListGet is FLAG_LIST_GET of bpf/sockopt.bpf.c.
const flagListGet = 1
