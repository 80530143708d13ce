package attach

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// How long a pause lasts where nobody says, and at most: what is paused and
// forgotten comes back under its profile.
const (
	DefaultPause = time.Hour
	MaxPause     = 7 * 24 * time.Hour
)

// Pause has a unit left alone for a time, since somebody changes its profile,
// its drop-in or its loaded policy on purpose.
type Pause struct {
	Since time.Time `json:"since"`
	Until time.Time `json:"until"`
	By    string    `json:"by"` // who asked for it
}

// setBack is by how much a clock may be set back without ending a pause of MaxPause.
const setBack = time.Hour

// InForce reports whether the pause lasts at a time; no pause never does. One that would
// last longer than any was made while the clock was ahead.
func (p *Pause) InForce(at time.Time) bool {
	return p != nil && at.Before(p.Until) && p.Until.Sub(at) <= MaxPause+setBack
}

func (p Pause) String() string {
	return "until " + p.Until.Format("2006-01-02 15:04:05 MST") + ", by " + cmp.Or(p.By, "unknown")
}

// Paused gives the pause in force at a time, the unit's own or its pattern's,
// whichever lasts longer; nil where there is none.
func (d Desired) Paused(at time.Time) *Pause {
	var last *Pause
	for _, p := range []*Pause{d.Record.Pause, d.PatternPause} {
		if p.InForce(at) && (last == nil || p.Until.After(last.Until)) {
			last = p
		}
	}
	return last
}

// WhyPaused says that the unit is paused at a time, and how to end that; nil
// where it is not.
func (d Desired) WhyPaused(at time.Time) *Reason {
	pause, name := d.Paused(at), d.Unit
	if pause == nil {
		return nil
	}
	if pause == d.PatternPause {
		name = d.Pattern
	}
	return ptr(because(Paused, "%s is paused %s", name, pause).next("aaunitctl resume " + name))
}

// diffPaused plans nothing, whatever differs: also a unit whose attachment was
// withdrawn stays as it is.
func diffPaused(d Desired, why Reason) Plan {
	return Plan{Unit: d.Unit, Profile: cmp.Or(d.Profile, d.Record.Profile), Actions: []Action{}, Pending: []Reason{why}}
}

// AmissInPause says of a paused template or prefix why units to come do not start under
// its profile, as far as its status does not say so anyway: what a plan without the pause
// is refused for, and what is amiss. It has no verdict that would say it, and the plan of
// a pause is empty.
func AmissInPause(d Desired, o Observed) []Reason {
	d.Asked, d.Record.Pause, d.PatternPause = false, nil, nil
	return WithAmiss(d, o, Diff(d, o).Refusals)
}

// WithAmiss adds to what a template or prefix is refused for what differs from what was put
// in place: it has no verdict that would say it, and is left as it is.
func WithAmiss(d Desired, o Observed, out []Reason) []Reason {
	if h := d.Record.Hold; len(d.Record.DropIns) == 0 || h != nil && !h.OnlyText() || len(judgeHost(o.Host)) > 0 {
		return out
	}
	says := func(c Code) bool {
		return slices.ContainsFunc(out, func(r Reason) bool { return r.Code == c })
	}
	if why := dropInInForceAmiss(d, o); why != nil && o.DropIn.Problem == "" && !says(DropInForeign) {
		if out = append(out, *why); d.Record.Profile != d.Profile {
			return out // of what is not in place yet there is nothing to compare
		}
	}
	differs := judgePolicy(d, o.Policy)
	for _, k := range d.Kept {
		if k = o.Policy.Concerning(k); o.Policy.LiveError == "" && needsLoading(k, o.Policy) != nil {
			out, differs = append(out, trampled(k, o.Policy)), nil // in better words
		}
	}
	for _, r := range differs {
		if !says(r.Code) {
			out = append(out, r)
		}
	}
	return out
}

// dropInInForceAmiss is dropInAmiss for a drop-in that is left as it is: units start as well
// with the former line of the start helper, with other comments, such as the former name of
// the attachment's file, and with a drop-in that is still at its former place.
func dropInInForceAmiss(d Desired, o Observed) *Reason {
	have, file := o.DropIn, d.DropInPath()
	if former := d.FormerDropInPath(); !have.Exists && former != "" && o.FormerDropIn.Exists {
		have, file = o.FormerDropIn, former
		if have.Problem != "" {
			return ptr(because(DropInUnreadable, "%s", have.Problem).at(file))
		}
	}
	if have.Exists && withoutComments(withPresentLine(have.Content)) != withoutComments(d.DropInText(o.Unit)) {
		return ptr(because(DropInDiffers, "%s is not what the attachment asks for", file))
	}
	if !have.Exists {
		return ptr(because(DropInMissing, "%s does not exist", file))
	}
	return nil
}

// withoutComments is a unit file's text without the lines that systemd skips
// (systemd.syntax(7)).
func withoutComments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if s := strings.TrimLeft(line, " \t"); !strings.HasPrefix(s, "#") && !strings.HasPrefix(s, ";") {
			b.WriteString(line)
		}
	}
	return b.String()
}

// AmissBeside says of a template or prefix how the kernel's policy differs from what was
// accepted for it, where another unit's counts: nothing is put back, and it has no verdict
// that would say it.
func AmissBeside(d Desired, o Observed) []Reason { return judgePolicy(d, o.Policy) }

// Complains says of a template or prefix in place that units to come start in complain mode:
// by the policy that was accepted for it, or by what is asked for where the profile hangs on
// the unit. It has no verdict that would say it.
func Complains(d Desired) []Reason {
	if h := d.Record.Hold; d.Attachment == nil || len(d.Record.DropIns) == 0 || h != nil && !h.OnlyText() {
		return nil
	}
	complains := slices.ContainsFunc(d.Kept, func(k Compiled) bool { return k.Complain })
	if len(d.Kept) == 0 {
		complains = d.Attachment.Mode == WishComplain
	}
	if !complains {
		return nil
	}
	return []Reason{because(TaskComplain, "profile %s is in complain mode for units of %s to come", cmp.Or(d.Record.Profile, d.Attachment.Profile), d.Unit)}
}

// PlaceOf is the unit, template or prefix in whose directory a drop-in lies.
func PlaceOf(dropIn string) string {
	return strings.TrimSuffix(path.Base(path.Dir(dropIn)), ".d")
}

// CheckPause says why a pause cannot last so long.
func CheckPause(d time.Duration) error {
	if d <= 0 || d > MaxPause {
		return fmt.Errorf("cannot pause for %v: it must be more than 0 and at most 7 days", d)
	}
	return nil
}

// spanUnits are the units of systemd.time(7), from nanoseconds to weeks, with Go's.
var spanUnits = map[string]time.Duration{
	"ns": time.Nanosecond, "nsec": time.Nanosecond,
	"us": time.Microsecond, "\u00b5s": time.Microsecond, "\u03bcs": time.Microsecond, "usec": time.Microsecond,
	"ms": time.Millisecond, "msec": time.Millisecond,
	"": time.Second, "s": time.Second, "sec": time.Second, "second": time.Second, "seconds": time.Second,
	"m": time.Minute, "min": time.Minute, "minute": time.Minute, "minutes": time.Minute,
	"h": time.Hour, "hr": time.Hour, "hour": time.Hour, "hours": time.Hour,
	"d": 24 * time.Hour, "day": 24 * time.Hour, "days": 24 * time.Hour,
	"w": 7 * 24 * time.Hour, "week": 7 * 24 * time.Hour, "weeks": 7 * 24 * time.Hour,
}

// longest is what parseSpan makes of everything that is longer than anybody takes.
const longest = MaxPause + 1

// parseSpan reads a time span: numbers with systemd's units, which are added up (90s,
// 30min, "1h 30min", 1.5s); a bare number is seconds.
func parseSpan(span string) (sum time.Duration, ok bool) {
	rest := strings.TrimPrefix(strings.TrimSpace(span), "+")
	for ok = rest != ""; ok && rest != ""; {
		digits := len(rest) - len(strings.TrimLeft(rest, "0123456789."))
		word := strings.TrimLeft(rest[digits:], " ")
		letters := len(word) - len(strings.TrimLeftFunc(word, unicode.IsLetter))
		unit, known := spanUnits[word[:letters]]
		n, err := strconv.ParseFloat(rest[:digits], 64)
		ok = known && (err == nil || errors.Is(err, strconv.ErrRange)) // which is infinite
		// To the nearest nanosecond; nothing may overflow.
		sum = min(sum+time.Duration(min(n*float64(unit), float64(longest))+0.5), longest)
		rest = strings.TrimLeft(word[letters:], " ")
	}
	return sum, ok
}

// ParsePause reads how long a pause shall last.
func ParsePause(span string) (time.Duration, error) {
	d, ok := parseSpan(span)
	switch {
	case !ok:
		return 0, fmt.Errorf("cannot read time span %q: write a number with s, min, h or d, such as 90s, 30min, 2h or 1d", span)
	case CheckPause(d) != nil:
		return 0, fmt.Errorf("cannot pause for %s: it must be more than 0 and at most 7 days", span)
	}
	return d, nil
}
