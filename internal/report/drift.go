package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Change is something that is not as it was in an earlier report.
type Change struct {
	Host string `json:"host"`
	Unit string `json:"unit,omitempty"`
	What string `json:"what"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
	// Worse: yes is that less is confined, or known, than before.
	Worse attach.Tri `json:"worse"`
}

// Drift compares a report with an earlier one, host by host and unit by unit.
func Drift(old, now Document) (out []Change) {
	before := map[string]attach.HostReport{}
	for _, h := range old.Hosts {
		before[hostKey(h.Machine)] = h
	}
	for _, h := range now.Hosts {
		was, known := before[hostKey(h.Machine)]
		delete(before, hostKey(h.Machine))
		if !known {
			out = append(out, Change{Host: hostName(h.Machine), What: "the host is new in the report", Worse: attach.No})
			continue
		}
		d := differ{host: hostName(h.Machine)}
		d.hosts(was, h)
		out = append(out, d.out...)
	}
	for _, h := range old.Hosts {
		if _, gone := before[hostKey(h.Machine)]; gone {
			delete(before, hostKey(h.Machine))
			out = append(out, Change{Host: hostName(h.Machine), What: "the host is not in the report any more", Worse: attach.CouldNotTell})
		}
	}
	slices.SortStableFunc(out, func(a, b Change) int {
		return cmp.Or(cmp.Compare(worseRank(a.Worse), worseRank(b.Worse)), cmp.Compare(a.Host, b.Host), cmp.Compare(a.Unit, b.Unit))
	})
	return out
}

func worseRank(t attach.Tri) int {
	switch t {
	case attach.Yes:
		return 0
	case attach.No:
		return 2
	}
	return 1
}

type differ struct {
	host string
	out  []Change
}

func (d *differ) say(unit, what, old, now string, worse attach.Tri) {
	if old != now {
		d.out = append(d.out, Change{Host: d.host, Unit: unit, What: what, Old: old, New: now, Worse: worse})
	}
}

func (d *differ) hosts(was, is attach.HostReport) {
	mode := func(h attach.HostReport) string {
		if h.Host.Enabled != attach.Yes {
			return "enabled: " + h.Host.Enabled.String()
		}
		return cmp.Or(string(h.Host.GlobalMode), "unknown")
	}
	d.say("", "AppArmor on the host", mode(was), mode(is), attach.TriOf(!(is.Host.Enabled == attach.Yes && is.Host.GlobalMode.Confines())))
	d.say("", "kernel", was.Machine.Kernel, is.Machine.Kernel, attach.CouldNotTell)

	before := map[string]attach.UnitReport{}
	for _, u := range was.Units {
		before[u.Unit] = u
	}
	for _, u := range is.Units {
		o, known := before[u.Unit]
		if delete(before, u.Unit); !known {
			d.say(u.Unit, "attached", "", u.Profile, attach.No)
			continue
		}
		d.units(o, u)
	}
	for _, u := range was.Units {
		if _, gone := before[u.Unit]; gone {
			delete(before, u.Unit)
			d.say(u.Unit, "attached", u.Profile, "not any more", attach.Yes)
		}
	}
	d.others(was.Unattached, is.Unattached)
}

var standingWords = map[standing]string{standsUnknown: "unknown", standsConfined: "confined", standsNotConfined: "not confined", standsStopped: "not running", standsPattern: "pattern"}

func (d *differ) units(was, is attach.UnitReport) {
	what, a, b := "verdict", standingOf(was), standingOf(is)
	if a == standsPattern && b == standsPattern {
		what, a, b = "units to come", toComeOf(was), toComeOf(is)
	}
	worse := attach.CouldNotTell
	switch {
	case b == standsConfined:
		worse = attach.No
	case a == standsConfined && b != standsStopped || b == standsNotConfined:
		worse = attach.Yes
	}
	d.say(is.Unit, what, standingWords[a], standingWords[b], worse)
	d.say(is.Unit, "profile", was.Profile, is.Profile, attach.CouldNotTell)
	d.say(is.Unit, "mode", string(was.Mode), string(is.Mode), attach.TriOf(is.Mode == attach.WishComplain))
	if was.Evidence != nil && is.Evidence != nil {
		d.say(is.Unit, "compiled policy", policyWords(*was.Evidence), policyWords(*is.Evidence), attach.CouldNotTell)
		d.say(is.Unit, "executable", programWords(was.Evidence.Executable), programWords(is.Evidence.Executable), attach.CouldNotTell)
	}
	d.say(is.Unit, "socket options", socketWords(was.Sockets), socketWords(is.Sockets), attach.TriOf(was.Sockets.Enforces() && !is.Sockets.Enforces()))
	// A list that holds nobody allows nothing that was not allowed before.
	lists := was.Sockets.Enforces() && is.Sockets.Enforces()
	had := map[string]bool{}
	for _, x := range was.Allowed {
		had[allowed(x)] = true
	}
	for _, x := range is.Allowed {
		if !had[allowed(x)] {
			d.say(is.Unit, "allowed", "", allowed(x), attach.TriOf(lists || !ofList(x)))
		}
		delete(had, allowed(x))
	}
	for _, x := range was.Allowed {
		if had[allowed(x)] {
			delete(had, allowed(x))
			d.say(is.Unit, "allowed", allowed(x), "not any more", attach.No)
		}
	}
}

func ofList(a attach.Allowance) bool {
	return a.Kind == attach.AllowSetOption || a.Kind == attach.AllowGetOption
}

func socketWords(s *attach.SocketSummary) string {
	switch {
	case s == nil:
		return "free"
	case s.Enforces():
		return "held to a list"
	case s.Mode == attach.SocketsRecord:
		return "recorded"
	}
	return "unknown"
}

func policyWords(e attach.EvidenceSummary) string {
	var out []string
	for _, p := range e.Policies {
		out = append(out, fmt.Sprintf("%s sha256 %s", p.File, short(p.Compiled)))
	}
	return strings.Join(out, ", ")
}

func programWords(p attach.EvidenceProgram) string {
	if p.SHA256 == "" {
		return ""
	}
	s := p.Path + " sha256 " + short(p.SHA256)
	if p.Package != "" {
		s += " (" + p.Package + " " + p.Version + ")"
	}
	return s
}

// short is the beginning of a checksum, which is enough to compare two by eye.
func short(sum string) string {
	if len(sum) > 12 {
		return sum[:12] + "…"
	}
	return cmp.Or(sum, "unknown")
}

func (d *differ) others(was, is *attach.ExposureReport) {
	if was == nil || is == nil {
		return // one of them did not look, and says so
	}
	before := map[string]attach.Exposure{}
	for _, e := range was.Services {
		before[e.Unit] = e
	}
	for _, e := range is.Services {
		o, known := before[e.Unit]
		delete(before, e.Unit)
		if !known {
			d.say(e.Unit, "without a profile", "", string(e.Class), attach.Yes)
			continue
		}
		d.say(e.Unit, "without a profile, exposed to", string(o.Class), string(e.Class), attach.TriOf(e.Class == attach.ExposedNetwork))
	}
	for _, e := range was.Services {
		if _, gone := before[e.Unit]; gone {
			delete(before, e.Unit)
			d.say(e.Unit, "without a profile", string(e.Class), "not any more", attach.No)
		}
	}
}
