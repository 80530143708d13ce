package report

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Level says how bad a finding is. Its zero value is "could not tell", and no report
// leaves such a finding out.
type Level int8

// From what must not be left unread on.
const (
	Unknown Level = iota // it could not be told
	Bad                  // a service is not confined, or open to the network without a profile
	Warn                 // somebody should look
	Note                 // worth knowing
)

func (l Level) String() string {
	switch l {
	case Bad:
		return "bad"
	case Warn:
		return "warning"
	case Note:
		return "note"
	}
	return "unknown"
}

// MarshalText makes a Level readable in JSON.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// rank orders levels: what is bad before what is not known.
func (l Level) rank() int { return slices.Index([]Level{Bad, Unknown, Warn, Note}, l) }

// Code tells findings apart; scripts match on it.
type Code string

// The codes.
const (
	HostNotEnforcing Code = "host-not-enforcing"
	HostUnknown      Code = "host-unknown"
	NotConfined      Code = "not-confined"
	VerdictUnknown   Code = "verdict-unknown"
	NotRunning       Code = "not-running"
	Held             Code = "held"
	ProofStale       Code = "proof-stale"
	ReportOld        Code = "report-old"
	ProgramReplaced  Code = "program-replaced"
	RestartPending   Code = "restart-pending"
	NoEvidence       Code = "no-evidence"
	NoReason         Code = "allowance-without-reason"
	Refused          Code = "refused"
	PausedNow        Code = "paused"
	FileNotInUse     Code = "attachment-file-not-in-use"
	Unattached       Code = "service-without-profile"
	NotLooked        Code = "not-looked-at"
	DenialsNotHeard  Code = "denials-not-heard"
	Denied           Code = "denied"
	ListStale        Code = "socket-list-stale"
	ListUnknown      Code = "socket-list-unknown"
	OptionRefused    Code = "socket-option-refused"
)

// Finding is one thing that somebody should know.
type Finding struct {
	Level Level  `json:"level"`
	Code  Code   `json:"code"`
	Host  string `json:"host"`
	Unit  string `json:"unit,omitempty"`
	Text  string `json:"text"`
	Next  string `json:"next,omitempty"`
}

// When a proof, and a report, is old. Every unit is looked at again at least at the
// interval of the re-check.
const (
	staleRechecks = 3
	oldReport     = 7 * 24 * time.Hour
)

// Counts are those of a host, or of all.
type Counts struct {
	Hosts       int `json:"hosts"`
	Confined    int `json:"confined"`
	NotConfined int `json:"notConfined"`
	Unknown     int `json:"unknown"`
	NotRunning  int `json:"notRunning"` // of which nothing can be said but that
	Patterns    int `json:"patterns"`
	// PatternsNotConfined and PatternsUnknown are those of Patterns whose units to come do
	// not start under the profile, and of which that could not be told.
	PatternsNotConfined int `json:"patternsNotConfined,omitempty"`
	PatternsUnknown     int `json:"patternsUnknown,omitempty"`
	// Network and Other are services without a profile that listen on the network,
	// and the rest of those that are listed.
	Network int `json:"network"`
	Other   int `json:"other"`
	// NotLooked are hosts on which services without a profile were not looked for.
	NotLooked int `json:"notLooked"`
}

// Units are all attached ones.
func (c Counts) Units() int { return c.Confined + c.NotConfined + c.Unknown + c.NotRunning }

func (c *Counts) add(o Counts) {
	c.Hosts += o.Hosts
	c.Confined, c.NotConfined, c.Unknown, c.NotRunning = c.Confined+o.Confined, c.NotConfined+o.NotConfined, c.Unknown+o.Unknown, c.NotRunning+o.NotRunning
	c.PatternsNotConfined, c.PatternsUnknown = c.PatternsNotConfined+o.PatternsNotConfined, c.PatternsUnknown+o.PatternsUnknown
	c.Patterns, c.Network, c.Other, c.NotLooked = c.Patterns+o.Patterns, c.Network+o.Network, c.Other+o.Other, c.NotLooked+o.NotLooked
}

// standing is how a unit stands in a report: what it is counted as.
type standing int8

const (
	standsUnknown standing = iota
	standsConfined
	standsNotConfined
	standsStopped
	standsPattern
)

// standingOf: a unit that was refused or whose attach is held is not what was asked
// for, whatever was seen of it before. Nothing is known of one without a verdict.
func standingOf(u attach.UnitReport) standing {
	if u.Pattern {
		return standsPattern
	}
	held := len(u.Held) > 0 && !u.OnlyText
	switch v := u.Verdict; {
	case v == nil:
		if held || len(u.Refused) > 0 {
			return standsNotConfined
		}
		return standsUnknown
	case v.Answer == attach.NotConfined:
		return standsNotConfined
	case v.Answer != attach.Confined:
		if len(v.Reasons) > 0 && v.Reasons[0].Code == attach.NotRunning && (u.ActiveState == "inactive" || u.ActiveState == "failed") && !held && len(u.Refused) == 0 {
			return standsStopped
		}
		if held || len(u.Refused) > 0 {
			return standsNotConfined
		}
		return standsUnknown
	case held || len(u.Refused) > 0:
		return standsNotConfined
	}
	return standsConfined
}

// toCome says of a template or prefix whether units to come start under its profile.
func toCome(u attach.UnitReport) attach.Answer { return cmp.Or(u.ToCome, attach.Unknown) }

// toComeOf is how units to come of a template or prefix stand.
func toComeOf(u attach.UnitReport) standing {
	switch toCome(u) {
	case attach.Confined:
		return standsConfined
	case attach.NotConfined:
		return standsNotConfined
	}
	return standsUnknown
}

// Standing says in words what a unit is counted as, and of a template or prefix also how
// units to come stand where they are not confined.
func Standing(u attach.UnitReport) string {
	s := standingOf(u)
	if t := toComeOf(u); s == standsPattern && t != standsConfined {
		return standingWords[s] + ", " + standingWords[t]
	}
	return standingWords[s]
}

// Count counts a host's.
func Count(h attach.HostReport) Counts {
	c := Counts{Hosts: 1}
	for _, u := range h.Units {
		switch standingOf(u) {
		case standsConfined:
			c.Confined++
		case standsNotConfined:
			c.NotConfined++
		case standsStopped:
			c.NotRunning++
		case standsPattern:
			c.Patterns++
			switch toCome(u) {
			case attach.Confined:
			case attach.NotConfined:
				c.PatternsNotConfined++
			default:
				c.PatternsUnknown++
			}
		default:
			c.Unknown++
		}
	}
	if h.Unattached == nil {
		c.NotLooked++
		return c
	}
	for _, e := range h.Unattached.Services {
		if e.Class == attach.ExposedNetwork {
			c.Network++
		} else {
			c.Other++
		}
	}
	return c
}

// CountAll counts all hosts.
func CountAll(hosts []attach.HostReport) (c Counts) {
	for _, h := range hosts {
		c.add(Count(h))
	}
	return c
}

// Findings are those of a host, the worst first. made is when the report is read.
func Findings(h attach.HostReport, made time.Time) []Finding {
	f := finder{host: hostName(h.Machine)}
	f.ofHost(h, made)
	for _, u := range h.Units {
		f.ofUnit(h, u)
	}
	f.ofOthers(h)
	slices.SortStableFunc(f.out, func(a, b Finding) int { return cmp.Compare(a.Level.rank(), b.Level.rank()) })
	return f.out
}

// Group is a finding with all the hosts that have it.
type Group struct {
	Finding
	Hosts []string
}

// On names the hosts: the first few, and how many more there are.
func (g Group) On() string {
	const most = 4
	if len(g.Hosts) <= most {
		return strings.Join(g.Hosts, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(g.Hosts[:most], ", "), len(g.Hosts)-most)
}

// Groups are the findings of all hosts, those that say the same of several as one: the
// worst first, and what most hosts have before what few have.
func Groups(d Document) []Group {
	var out []Group
	at := map[Finding]int{}
	for _, h := range d.Hosts {
		for _, f := range Findings(h, d.Made) {
			host := f.Host
			f.Host = ""
			i, known := at[f]
			if !known {
				i = len(out)
				at[f] = i
				out = append(out, Group{Finding: f})
			}
			out[i].Hosts = append(out[i].Hosts, host)
		}
	}
	slices.SortStableFunc(out, func(a, b Group) int {
		return cmp.Or(cmp.Compare(a.Level.rank(), b.Level.rank()), cmp.Compare(len(b.Hosts), len(a.Hosts)))
	})
	return out
}

func hostName(m attach.Machine) string { return cmp.Or(m.Name, m.ID, "(no name)") }

type finder struct {
	host string
	out  []Finding
}

func (f *finder) say(level Level, code Code, unit, next, format string, args ...any) {
	f.out = append(f.out, Finding{Level: level, Code: code, Host: f.host, Unit: unit, Text: fmt.Sprintf(format, args...), Next: next})
}

func (f *finder) ofHost(h attach.HostReport, made time.Time) {
	switch {
	case h.Host.Enabled == attach.No:
		f.say(Bad, HostNotEnforcing, "", "aaunitctl explain apparmor-off", "AppArmor is off: no service of this host is confined")
	case h.Host.Enabled != attach.Yes || h.Host.GlobalMode == "":
		f.say(Unknown, HostUnknown, "", "", "whether AppArmor is on could not be told")
	case !h.Host.GlobalMode.Confines():
		f.say(Bad, HostNotEnforcing, "", "aaunitctl explain global-complain", "AppArmor's global mode is %s: every profile lets everything pass", h.Host.GlobalMode)
	case h.Host.BootService == attach.No:
		f.say(Warn, HostNotEnforcing, "", "systemctl enable apparmor.service", "apparmor.service is not enabled: profiles that nobody attached are not loaded at boot")
	}
	switch age := made.Sub(h.At); {
	case age > oldReport:
		f.say(Unknown, ReportOld, "", "", "the report is of %s, %d days ago: what is so today it does not say", day(h.At), int(age.Hours()/24))
	case age < -time.Hour:
		f.say(Unknown, ReportOld, "", "", "the report is of %s, which is yet to come: a clock is wrong", day(h.At))
	}
	for _, p := range h.Problems {
		f.say(Warn, FileNotInUse, "", "", "an attachment file or record is not in use: %s", p)
	}
	if h.DenialsDeaf != "" {
		f.say(Unknown, DenialsNotHeard, "", "", "what AppArmor denies is not heard: %s", h.DenialsDeaf)
	} else if h.DenialsLost > 0 {
		f.say(Note, DenialsNotHeard, "", "", "at least %d records of denials were not heard", h.DenialsLost)
	}
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func (f *finder) ofUnit(h attach.HostReport, u attach.UnitReport) {
	explain := "aaunitctl explain " + attach.Shell(u.Unit)
	why := func(fallback string) string {
		list := slices.Concat(u.Refused, u.Held)
		if u.Verdict != nil {
			list = slices.Concat(u.Refused, u.Verdict.Reasons, u.Held)
		}
		if len(list) == 0 {
			return fallback
		}
		return list[0].String()
	}
	s := standingOf(u)
	switch s {
	case standsNotConfined:
		f.say(Bad, NotConfined, u.Unit, explain, "not confined by profile %s: %s", u.Profile, why("no reason was told"))
	case standsUnknown:
		f.say(Unknown, VerdictUnknown, u.Unit, explain, "could not be told: %s", why("it was not looked at"))
	case standsStopped:
		f.say(Note, NotRunning, u.Unit, "", "not running")
	case standsPattern:
		switch toCome(u) {
		case attach.Confined:
			if len(u.Refused) > 0 {
				f.say(Warn, Refused, u.Unit, explain, "units of this pattern to come start under profile %s, and something that is declared is refused: %s", u.Profile, u.Refused[0])
			}
		case attach.NotConfined:
			f.say(Bad, NotConfined, u.Unit, explain, "units of this pattern to come are not confined by it: %s", why("its drop-in is not in place"))
		default:
			f.say(Unknown, VerdictUnknown, u.Unit, explain, "whether units of this pattern to come are confined by it could not be told: %s", why("no reason was told"))
		}
	}
	if len(u.Held) > 0 && u.OnlyText {
		f.say(Warn, Held, u.Unit, explain, "a changed text of its profile was undone and is held: %s", u.Held[0])
	}
	if u.Paused != nil {
		f.say(Warn, PausedNow, u.Unit, "aaunitctl resume "+attach.Shell(u.Unit), "paused %s: what is changed about it is not put back", u.Paused)
	}
	for _, n := range u.Notes {
		if n.Code == attach.RestartPending {
			f.say(Warn, RestartPending, u.Unit, explain, "%s", n)
		}
	}
	if v := u.Verdict; s == standsConfined {
		if h.Recheck > 0 && h.At.Sub(v.At) > staleRechecks*h.Recheck {
			f.say(Unknown, ProofStale, u.Unit, "aaunitctl verify "+attach.Shell(u.Unit), "last looked at %s: that is longer ago than a look should be", day(v.At))
		}
		switch e := u.Evidence; {
		case e == nil:
			f.say(Warn, NoEvidence, u.Unit, "aaunitctl verify --evidence "+attach.Shell(u.Unit), "there is no record of evidence: %s", cmp.Or(u.EvidenceProblem, "none was made yet"))
		case e.Answer != v.Answer:
			f.say(Warn, NoEvidence, u.Unit, "aaunitctl verify --evidence "+attach.Shell(u.Unit), "the newest record of evidence says %s", e.Answer)
		case e.Executable.Deleted:
			f.say(Warn, ProgramReplaced, u.Unit, "systemctl restart "+attach.Shell(u.Unit), "it runs %s as it was before an upgrade: that file is not on disk any more", e.Executable.Path)
		}
	}
	f.ofSockets(u, s == standsConfined)
	for _, a := range u.Allowed {
		if strings.TrimSpace(a.Reason) == "" {
			f.say(Warn, NoReason, u.Unit, "", "%s has no reason on record (%s)", allowed(a), cmp.Or(a.Where, "place not known"))
		}
	}
	if n := u.Denials; n.Denied+n.Killed+n.Allowed > 0 {
		var parts []string
		for _, p := range []struct {
			n    int
			what string
		}{{n.Denied, "denied"}, {n.Killed, "denied by ending a task"}, {n.Allowed, "let pass in complain mode"}} {
			if p.n > 0 {
				parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
			}
		}
		f.say(Note, Denied, u.Unit, "aaunitctl denials "+attach.Shell(u.Unit), "since aaunitd began: %s", strings.Join(parts, ", "))
	}
}

// ofSockets: whether the options are held to the list is for the verdict to say.
func (f *finder) ofSockets(u attach.UnitReport, runs bool) {
	s := u.Sockets
	if s == nil {
		return
	}
	shell := attach.Shell(u.Unit)
	switch {
	case s.Stale == attach.Yes:
		f.say(Warn, ListStale, u.Unit, "aaunitctl sockopts diff "+shell, "its list of socket options is of another build: %s", cmp.Or(s.StaleWhy, "no reason was told"))
	case s.Stale != attach.No && runs && s.Options > 0:
		f.say(Note, ListUnknown, u.Unit, "aaunitctl sockopts "+shell, "whether its list of socket options is of what runs could not be told: %s", cmp.Or(s.StaleWhy, "no reason was told"))
	}
	if s.Problem != "" {
		f.say(Note, ListUnknown, u.Unit, "aaunitctl sockopts "+shell, "which socket options it uses could not be read: %s", s.Problem)
	}
	if s.Refused > 0 {
		f.say(Note, OptionRefused, u.Unit, "aaunitctl sockopts "+shell, "socket options were refused since its first start after the boot: %s", plural(int(min(s.Refused, math.MaxInt32)), "call", "calls"))
	}
}

// allowed is an allowance in words.
func allowed(a attach.Allowance) string {
	switch a.Kind {
	case attach.AllowProfile:
		return "that tasks may run under profile " + a.What + " too"
	case attach.AllowSetOption:
		return "that socket option " + a.What + " may be set"
	case attach.AllowGetOption:
		return "that socket option " + a.What + " may be read"
	}
	return "that " + a.What + " is waived"
}

func (f *finder) ofOthers(h attach.HostReport) {
	if h.Unattached == nil {
		f.say(Unknown, NotLooked, "", "", "services without a profile were not looked for: %s", cmp.Or(h.UnattachedProblem, "no reason was told"))
		return
	}
	for _, e := range h.Unattached.Services {
		level := Warn
		var what, next string
		if len(e.Next) > 0 {
			next = e.Next[0]
		}
		switch e.Class {
		case attach.ExposedNetwork:
			level, what = Bad, "listens on the network ("+sockets(e.Listening, attach.ReachNetwork)+")"
		case attach.ExposedLocal:
			what = "listens for programs of the machine"
		case attach.ExposedRoot:
			what = "runs as root"
		case attach.ExposedCaps:
			what = "has capabilities as good as root (" + strings.Join(e.Capabilities[:min(len(e.Capabilities), 4)], ", ") + ")"
		default:
			level, what = Unknown, "may be reached from the network: that could not be told"
		}
		f.say(level, Unattached, e.Unit, next, "no profile, and it %s", what)
	}
	for _, u := range h.Unattached.Unknown {
		f.say(Unknown, NotLooked, "", "", "%s", u)
	}
}

func sockets(list []attach.Listening, reach attach.Reach) string {
	var out []string
	for _, l := range list {
		if s := l.String(); l.Reach == reach && !slices.Contains(out, s) {
			if len(out) == 4 {
				return strings.Join(out, ", ") + " and more"
			}
			out = append(out, s)
		}
	}
	return strings.Join(out, ", ")
}

// Exit is the exit status of a report: 0 only where every attached service that runs
// is confined, nothing is open to the network without a profile, and all could be told.
func Exit(d Document) attach.Exit {
	exit := attach.ExitOK
	if len(d.Hosts) == 0 {
		exit = attach.ExitUnknown
	}
	for _, l := range d.Left {
		if l.Host == "" { // a file of which nothing is known
			exit = attach.WorstExit(exit, attach.ExitFailed)
		}
	}
	for _, h := range d.Hosts {
		for _, f := range Findings(h, d.Made) {
			switch f.Level {
			case Bad:
				exit = attach.WorstExit(exit, attach.ExitNotConfined)
			case Unknown:
				exit = attach.WorstExit(exit, attach.ExitUnknown)
			}
		}
	}
	return exit
}
