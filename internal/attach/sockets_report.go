package attach

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// SocketReport is what is known of the socket options of attached units.
type SocketReport struct {
	Units []SocketStatus `json:"units"`
	// Missing are names that were asked for and that no attachment names.
	Missing []Missing `json:"missing,omitempty"`
	At      time.Time `json:"at"`
}

// SocketStatus is that of one unit.
type SocketStatus struct {
	Unit       string `json:"unit"`
	Attachment string `json:"attachment"` // the file
	// Manual: "aaunitctl attach" wrote it, and sockopts may change it.
	Manual bool `json:"manual,omitempty"`
	// Declared is nil where the attachment has no [SocketOptions].
	Declared *SocketOptions `json:"declared,omitempty"`
	// Recorded is what was seen since the unit's first start after the boot, of the
	// unit itself and of the .socket units that start it. Empty where there is nothing.
	Recorded []SocketRecording `json:"recorded"`
	// Problem says why it could not be read.
	Problem string `json:"problem,omitempty"`
	Next    string `json:"next,omitempty"`
	// LeftOut counts kinds of call that did not fit into the answer.
	LeftOut int `json:"leftOut,omitempty"`
	// History has what was seen by executable, the newest last.
	History SocketHistory `json:"history"`
	// Stale: the list is of another executable than the one that runs. StaleWhy puts
	// it into words.
	Stale    Tri    `json:"stale"`
	StaleWhy string `json:"staleWhy,omitempty"`
	// StartUnseen: the recording began after the unit was started, so what it uses when
	// it starts is not in it.
	StartUnseen bool `json:"startUnseen,omitempty"`
	// Difference is nil where there are no two executables to compare.
	Difference *SocketDifference `json:"difference,omitempty"`
}

// Allows is the entry of the list for a kind of call.
func (s SocketStatus) Allows(u SocketUse) (reason string, ok bool) {
	if s.Declared == nil {
		return "", false
	}
	list := s.Declared.Allow
	if u.Call == GetSockOpt {
		list = s.Declared.AllowGet
	}
	i := slices.IndexFunc(list, func(o AllowedOption) bool { return o.Option == u.Canonical() })
	if i < 0 {
		return "", false
	}
	return list[i].Reason, true
}

// WouldRefuse reports whether the kind of call is refused, or would be in mode
// enforce.
func (s SocketStatus) WouldRefuse(u SocketUse) bool {
	if u.BySystemd || u.Call == GetSockOpt && (s.Declared == nil || !s.Declared.HoldsGet()) {
		return false
	}
	_, ok := s.Allows(u)
	return !ok
}

// NotAllowed lists what was seen and is, or would be, refused: each call and option
// once.
func (s SocketStatus) NotAllowed() (out []SocketUse) {
	for _, r := range s.Recorded {
		for _, u := range r.Seen {
			if s.WouldRefuse(u) && !slices.ContainsFunc(out, func(x SocketUse) bool { return x.Call == u.Call && x.Canonical() == u.Canonical() }) {
				out = append(out, u)
			}
		}
	}
	return out
}

// Canonical is the name under which a list has the option: names depend on the kind
// of socket, lists do not.
func (u SocketUse) Canonical() string {
	if u.ListName != "" {
		return u.ListName
	}
	return u.Option
}

// Refusals are all calls that were refused.
func (s SocketStatus) Refusals() (n uint64) {
	for _, r := range s.Recorded {
		n += r.LostRefused
		for _, u := range r.Seen {
			n += u.Refused
		}
	}
	return n
}

// listStale is Stale of a list that has something on it: an empty one is of no build.
func (s SocketStatus) listStale() Tri {
	if s.Declared.Off() || len(s.Declared.Allow)+len(s.Declared.AllowGet) == 0 {
		return CouldNotTell
	}
	return s.Stale
}

// Metrics are the numbers of it; nil where nothing is declared.
func (s SocketStatus) Metrics() *SocketMetrics {
	if s.Declared.Off() {
		return nil
	}
	return &SocketMetrics{Stale: s.listStale(), Refused: s.Refusals()}
}

// ForReport is what a report says of it; nil where nothing is declared.
func (s SocketStatus) ForReport() *SocketSummary {
	if s.Declared.Off() {
		return nil
	}
	d := s.Declared
	return &SocketSummary{Mode: d.Mode, Required: d.Requires(), Options: len(d.Allow) + len(d.AllowGet), Stale: s.listStale(), StaleWhy: s.StaleWhy,
		Refused: s.Refusals(), Unlisted: len(s.NotAllowed()), Problem: s.Problem}
}

// WithStart fills in whether a start was recorded from its beginning. All starts of an
// executable but the first one that was seen were.
func (s SocketStatus) WithStart(run SocketRun) SocketStatus {
	if n := len(s.History.Builds); n > 0 && s.History.Builds[n-1].Starts > 1 {
		return s
	}
	for _, r := range s.Recorded {
		if r.Unit == s.Unit && !run.Began.IsZero() && run.Began.Before(r.Since) {
			s.StartUnseen = true
		}
	}
	return s
}

// WithStale fills in what follows from the history.
func (s SocketStatus) WithStale() SocketStatus {
	s.Stale, s.StaleWhy = s.History.Stale()
	if d, ok := s.History.Difference(); ok {
		s.Difference = &d
	}
	return s
}

// Bound leaves out all but so many kinds of call of each recording and executable,
// and gives how many there are then. The counts of the kernel's table, which are for
// the one who keeps them, go.
func (s *SocketStatus) Bound(most int) (kept int) {
	cut := func(list []SocketUse) []SocketUse {
		s.LeftOut += max(0, len(list)-most)
		list = list[:min(len(list), most)]
		kept += len(list)
		return list
	}
	s.Recorded = slices.Clone(s.Recorded)
	for i := range s.Recorded {
		s.Recorded[i].Seen = cut(s.Recorded[i].Seen)
	}
	s.History.Counted = nil
	s.History.Builds = slices.Clone(s.History.Builds)
	for i := range s.History.Builds {
		s.History.Builds[i].Uses = cut(s.History.Builds[i].Uses)
	}
	if d := s.Difference; d != nil {
		// The executables are in the history.
		own := SocketDifference{Old: d.Old, New: d.New, More: cut(d.More), Less: cut(d.Less)}
		own.Old.Uses, own.New.Uses = []SocketUse{}, []SocketUse{}
		s.Difference = &own
	}
	return kept
}

// Off reports whether there is no section, or one that is switched off.
func (s *SocketOptions) Off() bool { return s == nil || s.Mode == SocketsOff }

// Summary says in few words what a section says.
func (s SocketOptions) Summary() string {
	text := fmt.Sprintf("mode %s, %d to set", s.Mode, len(s.Allow))
	if s.HoldsGet() {
		return text + fmt.Sprintf(" and %d to read", len(s.AllowGet))
	}
	return text
}

// Reasons puts into words what of it somebody should know: what was refused, what is
// not known, and that the list is stale.
func (s SocketStatus) Reasons() (out []Reason) {
	if s.Declared == nil {
		return nil
	}
	type refusal struct {
		SocketUse
		times uint64
	}
	var refused []refusal
	var lost uint64
	for _, r := range s.Recorded {
		lost += r.LostRefused
		for _, u := range r.Seen {
			if u.Refused == 0 {
				continue
			}
			i := slices.IndexFunc(refused, func(x refusal) bool { return x.Call == u.Call && x.Canonical() == u.Canonical() })
			if i < 0 {
				refused = append(refused, refusal{u, u.Refused})
				continue
			}
			refused[i].times += u.Refused
			if u.LastRefused.Time.After(refused[i].LastRefused.Time) {
				refused[i].LastRefused = u.LastRefused
			}
		}
	}
	slices.SortStableFunc(refused, func(a, b refusal) int { return b.LastRefused.Time.Compare(a.LastRefused.Time) })
	for i, u := range refused {
		if i == maxToldRefusals {
			out = append(out, because(SocketRefused, "%d more options were refused", len(refused)-i).next("aaunitctl sockopts "+s.Unit))
			break
		}
		flag := ""
		if u.Call == GetSockOpt {
			flag = " --get"
		}
		_, bare, both := strings.Cut(u.Option, ":")
		if !both || bare != "" && bare[0] >= '0' && bare[0] <= '9' {
			bare = u.Option
		}
		text := fmt.Sprintf("%s was refused %s", bare, timesOf(u.times))
		if u.Hurts != "" {
			text += ": " + u.Hurts
		} else {
			text += fmt.Sprintf(" to %s on a socket of %s: the program gets EPERM", quoted(u.LastRefused.Comm), u.Socket)
		}
		r := because(SocketRefused, "%s", text)
		if _, allowed := s.Allows(u.SocketUse); allowed {
			r.Detail += printable("; it is on the list by now")
		} else {
			r = r.next(fmt.Sprintf("aaunitctl sockopts approve%s %s %s --reason WHY", flag, s.Unit, u.Canonical()))
		}
		out = append(out, r)
	}
	if lost > 0 {
		out = append(out, because(SocketRefused, "calls for options that found no place in the table were refused %s", timesOf(lost)).next("aaunitctl sockopts "+s.Unit))
	}
	if s.listStale() == Yes {
		out = append(out, because(SocketsStale, "%s", s.StaleWhy).next("aaunitctl sockopts diff "+s.Unit))
	}
	return out
}

// maxToldRefusals bounds the refused options that are put into words.
const maxToldRefusals = 12

func timesOf(n uint64) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

// SocketChange is what somebody wants changed about the socket options of units.
type SocketChange struct {
	// Mode is the new mode; "" leaves it.
	Mode SocketMode `json:"mode,omitempty"`
	// Approve and Revoke are options, by any of their names, for Call.
	Approve []string   `json:"approve,omitempty"`
	Revoke  []string   `json:"revoke,omitempty"`
	Call    SocketCall `json:"call,omitempty"`
	// Reason says why those of Approve are needed.
	Reason string `json:"reason,omitempty"`
}

// MaxSocketReason bounds the reason of an option, in bytes.
const MaxSocketReason = 400

// Check says what is wrong with a change.
func (c SocketChange) Check() error {
	switch {
	case c.Mode == "" && len(c.Approve)+len(c.Revoke) == 0:
		return fmt.Errorf("it says neither a mode nor an option")
	case c.Mode != "" && c.Mode != SocketsRecord && c.Mode != SocketsEnforce && c.Mode != SocketsOff:
		return fmt.Errorf("there is no mode %q", c.Mode)
	case c.Call != SetSockOpt && c.Call != GetSockOpt && len(c.Approve)+len(c.Revoke) > 0:
		return fmt.Errorf("there is no call %q", c.Call)
	case len(c.Approve)+len(c.Revoke) > MaxSocketOptions:
		return fmt.Errorf("%d options are the most that a unit can have", MaxSocketOptions)
	case len(c.Approve) > 0:
		return CheckSocketReason(c.Reason)
	}
	return nil
}

// CheckSocketReason says why something is no reason: it becomes part of a line of an
// attachment file, which goes on in the next one after a backslash.
func CheckSocketReason(reason string) error {
	reason = strings.TrimSpace(reason)
	switch {
	case reason == "":
		return fmt.Errorf("a reason is missing: say why the option is needed, in words that somebody understands in a year")
	case len(reason) > MaxSocketReason:
		return fmt.Errorf("the reason is longer than %d bytes", MaxSocketReason)
	case printable(reason) != reason:
		return fmt.Errorf("the reason holds control characters")
	case strings.HasSuffix(reason, `\`):
		return fmt.Errorf("the reason ends with a backslash")
	case reason == "WHY":
		return fmt.Errorf("WHY stands for a reason: say why the option is needed, in words that somebody understands in a year")
	}
	return nil
}

// Change gives what an attachment says after a change, and whether that differs.
// names knows the names of options.
func (a Attachment) Change(c SocketChange, names OptionNames) (Attachment, bool, error) {
	if err := c.Check(); err != nil {
		return a, false, err
	}
	s := SocketOptions{Mode: SocketsRecord}
	changed := a.SocketOptions == nil
	if !changed {
		s = *a.SocketOptions
	}
	if c.Mode != "" && c.Mode != s.Mode {
		s.Mode, changed = c.Mode, true
	}
	list, key := &s.Allow, "Allow"
	if c.Call == GetSockOpt {
		list, key = &s.AllowGet, "AllowGet"
	}
	for _, name := range c.Revoke {
		canonical, err := names(c.Call, name)
		if err != nil {
			return a, false, err
		}
		kept := slices.DeleteFunc(slices.Clone(*list), func(o AllowedOption) bool { return o.Option == canonical })
		if len(kept) == len(*list) {
			return a, false, fmt.Errorf("%s is not on the list", canonical)
		}
		*list, changed = kept, true
	}
	if c.Call == GetSockOpt && len(c.Revoke) > 0 && len(*list) == 0 {
		return a, false, fmt.Errorf("with the last option of AllowGet= every option could be read again; take the lines out of the attachment file to want that")
	}
	for _, name := range c.Approve {
		canonical, err := names(c.Call, name)
		if err != nil {
			return a, false, err
		}
		i := slices.IndexFunc(*list, func(o AllowedOption) bool { return o.Option == canonical })
		reason := strings.TrimSpace(c.Reason)
		switch {
		case i >= 0 && (*list)[i].Reason == reason:
		case i >= 0:
			*list = slices.Clone(*list)
			(*list)[i].Reason, changed = reason, true
		default:
			*list, changed = append(slices.Clone(*list), AllowedOption{Option: canonical, Reason: reason}), true
		}
	}
	if len(s.Allow)+len(s.AllowGet) > MaxSocketOptions {
		return a, false, fmt.Errorf("%s= would have too many options: %d are the most that a unit can have", key, MaxSocketOptions)
	}
	if changed {
		a.SocketOptions = &s
	}
	return a, changed, nil
}

// Section is the section of an attachment file that says what s says.
func (s SocketOptions) Section() string {
	var b strings.Builder
	fmt.Fprintf(&b, "[SocketOptions]\nMode=%s\n", s.Mode)
	if s.Required != CouldNotTell {
		fmt.Fprintf(&b, "Required=%s\n", yesNo(s.Required == Yes))
	}
	for _, o := range s.Allow {
		fmt.Fprintf(&b, "Allow=%s %s\n", o.Option, o.Reason)
	}
	for _, o := range s.AllowGet {
		fmt.Fprintf(&b, "AllowGet=%s %s\n", o.Option, o.Reason)
	}
	return b.String()
}
