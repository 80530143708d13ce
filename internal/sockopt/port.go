package sockopt

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Host is the socket options of a host in the words of the core: the programs in its
// kernel, and the rules that are kept for the start helper.
type Host struct {
	System *System
	Store  Store
}

// OptionName is attach.OptionNames with the names of this package.
func OptionName(call attach.SocketCall, text string) (string, error) {
	o, err := ParseOption(text)
	if err != nil {
		return "", err
	}
	if call == attach.GetSockOpt {
		return o.Format(Get, Socket{}), nil
	}
	return o.Format(Set, Socket{}), nil
}

// rulesOf makes rules of what an attachment says.
func rulesOf(s attach.SocketOptions) (r Rules, err error) {
	if r.Mode, err = ParseMode(string(s.Mode)); err != nil {
		return r, err
	}
	list := func(from []attach.AllowedOption) (to []Option) {
		for _, a := range from {
			o, e := ParseOption(a.Option)
			err = errors.Join(err, e)
			to = append(to, o)
		}
		return to
	}
	r.Allow, r.AllowGet, r.HoldGet = list(s.Allow), list(s.AllowGet), s.HoldsGet()
	return r, err
}

// Save keeps the rules of a unit, a template or a prefix for the start helper.
func (h Host) Save(name string, s attach.SocketOptions) (changed bool, err error) {
	r, err := rulesOf(s)
	if err != nil {
		return false, err
	}
	return h.Store.Save(name, r)
}

// Delete removes the rules of a name.
func (h Host) Delete(name string) (changed bool, err error) { return h.Store.Delete(name) }

// Attach has the rules hold for a unit that runs in the control group.
func (h Host) Attach(group, unit string, s attach.SocketOptions) (changed bool, err error) {
	r, err := rulesOf(s)
	if err != nil {
		return false, err
	}
	c, err := h.System.Attach(group, unit, r)
	return c != Change{}, err
}

// Attached asks the kernel what is attached to the control group of a unit, and
// whether that is ours and has the rules.
func (h Host) Attached(group, unit string, s attach.SocketOptions) attach.SocketsSeen {
	r, err := rulesOf(s)
	var a Attachment
	if err == nil {
		a, err = h.System.Attached(group, unit)
	}
	if errors.Is(err, fs.ErrNotExist) && strings.HasSuffix(unit, ".socket") {
		return attach.SocketsMadeElsewhere(unit)
	}
	return a.seen(unit, r, err)
}

// seen says in the words of the core what Attached has found, or why it could not.
func (a Attachment) seen(unit string, r Rules, err error) attach.SocketsSeen {
	seen := attach.SocketsSeen{Unit: unit}
	if err != nil && !errors.Is(err, errNoRules) {
		seen.Why = err.Error()
		var known *Error
		if errors.As(err, &known) {
			seen.Why, seen.Next = known.text, known.wayOut
		}
		return seen
	}
	seen.Set, seen.Get = attach.SocketProgram{ID: a.Set.Program, Tag: a.Set.Tag}, attach.SocketProgram{ID: a.Get.Program, Tag: a.Get.Tag}
	if err != nil {
		// The programs are there, and do not do what is declared.
		seen.Attached, seen.Rules, seen.Why = attach.Yes, attach.No, a.Why
		return seen
	}
	seen.Attached, seen.Why = attach.TriOf(a.Ours), a.Why
	if !a.Ours {
		return seen
	}
	seen.Rules = attach.TriOf(a.Holds(r))
	if seen.Rules == attach.No {
		seen.Why = fmt.Sprintf("its programs are in mode %s and allow %d options, declared is mode %s with %d",
			a.Rules.Mode, len(a.Rules.normal().Allow), r.Mode, len(r.normal().Allow))
	}
	return seen
}

// Read gives what was recorded of a unit; found is false where there is nothing.
func (h Host) Read(unit string) (out attach.SocketRecording, found bool, err error) {
	out.Unit = unit
	r, err := h.System.Read(unit)
	if errors.Is(err, ErrNothing) {
		return out, false, nil
	}
	if err != nil {
		return out, false, err
	}
	out.Since = r.Since
	out.Mode = attach.SocketMode(r.Rules.Mode.String())
	out.LostAllowed, out.LostRefused, out.LastLost = r.Lost.Allowed, r.Lost.Refused, r.Lost.Last
	for _, s := range r.Seen {
		use := attach.SocketUse{
			Call: attach.SocketCall(s.Call.String()), Option: s.Option.Format(s.Call, s.Socket), Socket: s.Socket.String(), BySystemd: s.BySystemd,
			Allowed: s.Allowed, Refused: s.Refused, First: user(s.First), Last: user(s.Last), LastRefused: user(s.LastRefused),
		}
		if name := s.Option.Format(s.Call, Socket{}); name != use.Option {
			use.ListName = name
		}
		if s.Call == Set {
			use.Hurts = Words(s.Option)
		}
		out.Seen = append(out.Seen, use)
	}
	return out, true, nil
}

func user(w Who) attach.SocketUser { return attach.SocketUser{Time: w.Time, PID: w.PID, Comm: w.Comm} }

// Forget throws away what was recorded, and goes on recording.
func (h Host) Forget(unit string) error { return h.System.Forget(unit) }

// Off takes off what is attached for a unit; what was recorded stays readable.
func (h Host) Off(unit string) (changed bool, err error) {
	c, err := h.System.Attach("", unit, Rules{Mode: Off})
	return c != Change{}, err
}

// Remove takes off what is attached for a unit, and throws away what was recorded.
func (h Host) Remove(unit string) (changed bool, err error) { return h.System.Remove(unit) }

// Sweep removes what is there of a unit that has ended; gone says that nothing is left.
func (h Host) Sweep(unit string) (gone bool, err error) { return h.System.Sweep(unit) }

// Units lists the units of which there is something.
func (h Host) Units() ([]string, error) { return h.System.Units() }
