package attach

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// SocketMode is what becomes of the socket options that a unit sets.
type SocketMode string

// See [SocketOptions] in aaunit.conf(5). A section that says nothing records.
const (
	SocketsRecord  SocketMode = "record"
	SocketsEnforce SocketMode = "enforce"
	SocketsOff     SocketMode = "off"
)

// SocketCall is one of the two system calls.
type SocketCall string

// The system calls.
const (
	SetSockOpt SocketCall = "setsockopt"
	GetSockOpt SocketCall = "getsockopt"
)

// SocketOptions is a [SocketOptions] section: which socket options the unit's
// processes may set, beside what AppArmor says of their sockets.
type SocketOptions struct {
	Line int        `json:"line,omitempty"` // where the section begins
	Mode SocketMode `json:"mode"`
	// Required says whether a start fails, and the verdict is not confined, where the
	// options cannot be held to the list. CouldNotTell: as the mode has it, see
	// Requires.
	Required Tri `json:"required,omitzero"`
	// Allow are the options that may be set in mode enforce.
	Allow []AllowedOption `json:"allow,omitempty"`
	// AllowGet are those that may be read; without any, all may.
	AllowGet []AllowedOption `json:"allowGet,omitempty"`
}

// AllowedOption is one option of a list, with why it is there.
type AllowedOption struct {
	// Option is its canonical name, such as "SOL_TCP:TCP_NODELAY", or numbers ("6:99").
	Option string `json:"option"`
	Reason string `json:"reason"`
	Line   int    `json:"line,omitempty"`
}

// MaxSocketOptions is how many options both lists of a unit may have together: what
// the kernel's table holds.
const MaxSocketOptions = 4096

// OptionNames finds the canonical name of a socket option, which reads the same
// whoever wrote it and however ("6:1", "IPPROTO_TCP:TCP_NODELAY"). An error says what
// is wrong with the name.
type OptionNames func(call SocketCall, name string) (canonical string, err error)

// Requires says whether the unit is not to run without what the section asks for.
func (s SocketOptions) Requires() bool {
	if s.Required == CouldNotTell {
		return s.Mode == SocketsEnforce
	}
	return s.Required == Yes
}

// HoldsGet says whether getsockopt is held to a list too.
func (s SocketOptions) HoldsGet() bool { return len(s.AllowGet) > 0 }

// SocketsWanted is the attachment's [SocketOptions], nil where it has none or has
// them switched off.
func (a *Attachment) SocketsWanted() *SocketOptions {
	if a == nil || a.SocketOptions.Off() {
		return nil
	}
	return a.SocketOptions
}

// Begin gives a section that begins at a line; s is what the file said before, or nil.
func (s *SocketOptions) Begin(line int) *SocketOptions {
	if s != nil {
		return s
	}
	return &SocketOptions{Line: line, Mode: SocketsRecord}
}

// SetSocketOption takes one KEY=VALUE line of a [SocketOptions] section. Allow= and
// AllowGet= add up; an empty value resets to the default.
func (a *Attachment) SetSocketOption(key, value string, line int, names OptionNames) error {
	own := *a.SocketOptions.Begin(line) // attachments are copied, and share what they point to
	s := &own
	a.SocketOptions = s
	var err error
	switch key {
	case "Mode":
		s.Mode, err = oneOf(value, SocketsRecord, SocketsRecord, SocketsEnforce, SocketsOff)
	case "Required":
		s.Required = CouldNotTell
		if value != "" {
			var yes bool
			if yes, err = parseBool(value, false); err == nil {
				s.Required = TriOf(yes)
			}
		}
	case "Allow":
		s.Allow, err = allow(s.Allow, SetSockOpt, key, value, line, names)
	case "AllowGet":
		s.AllowGet, err = allow(s.AllowGet, GetSockOpt, key, value, line, names)
	default:
		return fmt.Errorf("unknown key %q", key)
	}
	if err == nil && len(s.Allow)+len(s.AllowGet) > MaxSocketOptions {
		err = fmt.Errorf("%d options are the most that a unit can have", MaxSocketOptions)
	}
	return err
}

// allow adds an option to a list. One that is there already keeps its first reason.
func allow(list []AllowedOption, call SocketCall, key, value string, line int, names OptionNames) ([]AllowedOption, error) {
	if value == "" {
		return nil, nil
	}
	name, reason := value, ""
	if i := strings.IndexAny(value, " \t"); i >= 0 {
		name, reason = value[:i], strings.TrimSpace(value[i:])
	}
	if names == nil {
		return list, errors.New("names of socket options are not known here")
	}
	canonical, err := names(call, name)
	if err != nil {
		return list, err
	}
	if reason == "" {
		return list, fmt.Errorf("a reason is missing: %s=%s WHY, in words that somebody understands in a year", key, canonical)
	}
	if slices.ContainsFunc(list, func(o AllowedOption) bool { return o.Option == canonical }) {
		return list, nil
	}
	return append(slices.Clone(list), AllowedOption{Option: canonical, Reason: printable(reason), Line: line}), nil
}

// SocketHelper is where the start helper of the socket options is installed.
const SocketHelper = "/usr/lib/aaunit/aaunit-sockopts"

// SocketStartLine is the line of a drop-in that has the helper run before each start
// of a unit. It has systemd's specifier for the unit's name, so it is the same for
// all units, templates and prefixes. The + runs it without the unit's sandbox and
// user, which it could not work in; see needed for what of the unit it does not lift.
// Without required, a start goes on when the helper fails, and by the - also where it
// cannot be executed.
func SocketStartLine(required bool) string {
	if required {
		return "ExecStartPre=+" + SocketHelper + " %n"
	}
	return "ExecStartPre=-+" + SocketHelper + " -required=no %n"
}

// formerStartLine is what SocketStartLine(false) was before it had the -.
const formerStartLine = "ExecStartPre=+" + SocketHelper + " -required=no %n"

// withPresentLine is the text of a drop-in with the present line in place of the former.
func withPresentLine(text string) string {
	return strings.ReplaceAll(text, "\n"+formerStartLine+"\n", "\n"+SocketStartLine(false)+"\n")
}

// StartingSocket is a .socket unit that starts a service: its sockets are made in its own
// control group, and are the service's.
type StartingSocket struct {
	ID           string
	Active       bool
	ControlGroup string
	NeedReload   bool
	// FilesState, Missing and ReloadedInVain are as in Unit.
	FilesState     string
	Missing        []string
	ReloadedInVain bool
	// Exec are its command lines, and RootDirectory and Mounts what they see, as in
	// Settings.
	Exec          []ExecCommand
	RootDirectory string
	Mounts        []Mount
	// DropIn is what lies at the place of aaunit's drop-in for it.
	DropIn DropInState
	// HeldFor is another attached unit that it starts, and for which it is held to other
	// rules; "" none.
	HeldFor string
}

// SocketsSeen is what the kernel has attached to the control group of a unit, for the
// rules that were asked about.
type SocketsSeen struct {
	// Unit is the service, or a .socket unit that starts it.
	Unit string `json:"unit"`
	// Attached: aaunit's own programs are attached to the control group, by the
	// kernel's id and tag. Rules: they have the declared rules. CouldNotTell where that
	// could not be found out.
	Attached Tri `json:"attached"`
	Rules    Tri `json:"rules"`
	// Why says what is missing, or why it could not be told; Next what to do about it.
	Why  string `json:"why,omitempty"`
	Next string `json:"next,omitempty"`
	// Set and Get are the programs of the two calls.
	Set SocketProgram `json:"set,omitzero"`
	Get SocketProgram `json:"get,omitzero"`
}

// SocketsMadeElsewhere is what is seen of a .socket unit that listens and has no
// control group: systemd made its sockets in its own, since nothing was to be run
// before them (socket_address_listen_in_cgroup in its src/core/socket.c).
func SocketsMadeElsewhere(unit string) SocketsSeen {
	return SocketsSeen{Unit: unit, Why: unit + " was started before, and its sockets were not made in a control group of its own", Next: "systemctl restart " + unit}
}

// SocketProgram is a program in the kernel: its id, and the kernel's checksum of it.
type SocketProgram struct {
	ID  uint32 `json:"id,omitempty"`
	Tag string `json:"tag,omitempty"`
}

// SocketRecording is what was recorded of a unit since its first start after the boot.
type SocketRecording struct {
	Unit string `json:"unit"`
	// Since is when it began, in this boot; zero where that could not be told.
	Since time.Time `json:"since,omitzero"`
	// Mode is the one in force.
	Mode SocketMode  `json:"mode"`
	Seen []SocketUse `json:"seen"` // in the order of first appearance
	// LostAllowed and LostRefused are calls that found no place in the table.
	LostAllowed uint64    `json:"lostAllowed,omitempty"`
	LostRefused uint64    `json:"lostRefused,omitempty"`
	LastLost    time.Time `json:"lastLost,omitzero"`
}

// SocketUse is one kind of call that was seen.
type SocketUse struct {
	Call SocketCall `json:"call"`
	// Option is its name on that kind of socket, which OptionNames takes back.
	Option string `json:"option"`
	// ListName is its canonical name, where that is another one.
	ListName string `json:"listName,omitempty"`
	Socket   string `json:"socket"` // such as "TCP over IPv6"
	// BySystemd: systemd's own process did it, before the unit's program. It is never
	// refused, and needs no place on a list.
	BySystemd bool `json:"bySystemd,omitempty"`
	// Allowed and Refused are how many calls were let through or refused.
	Allowed     uint64     `json:"allowed"`
	Refused     uint64     `json:"refused"`
	First       SocketUser `json:"first"`
	Last        SocketUser `json:"last"`
	LastRefused SocketUser `json:"lastRefused,omitzero"`
	// Hurts says what is felt when it is refused, as half a sentence; "" is not known.
	Hurts string `json:"hurts,omitempty"`
}

// SocketUser is who made a call, and when. Comm is the task's own name of itself,
// which any program can set.
type SocketUser struct {
	Time time.Time `json:"time"`
	PID  uint32    `json:"pid,omitempty"`
	Comm string    `json:"comm,omitempty"`
}
