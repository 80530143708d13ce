// Package metrics writes what aaunitd can tell in Prometheus' text format. It is pure:
// numbers in, text out, nothing kept in between.
//
// The format is a few lines of code to write (Prometheus' "Exposition formats"), and
// this is all that is needed of it: a registry would keep every unit's series at rest,
// and bring a reader of protocol buffers into each program. Tests hold what is written
// against Prometheus' own parser and linter.
package metrics

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// ContentType is what a text of this form is called in HTTP.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Bounds on labels: who may start instances of a template makes units, and a
// monitoring system keeps a series for each for weeks.
const (
	maxUnits  = 2000
	maxCodes  = 8
	maxLength = 256 // bytes of a label's value
)

// Family is a metric as it is documented.
type Family struct{ Name, Type, Help string }

// The families, in the order in which they are written. aaunitctl(1) lists them.
var (
	up          = Family{"aaunit_up", "gauge", "Whether aaunitd answered."}
	timestamp   = Family{"aaunit_metrics_timestamp_seconds", "gauge", "When these numbers were put together."}
	build       = Family{"aaunit_build_info", "gauge", "The version of aaunitd."}
	start       = Family{"aaunit_start_time_seconds", "gauge", "When aaunitd began; its counters begin then."}
	recheck     = Family{"aaunit_recheck_interval_seconds", "gauge", "Interval at which aaunitd looks at every unit again, at least."}
	apparmor    = Family{"aaunit_apparmor_state", "gauge", "State of AppArmor in the kernel: 1 for the one that holds."}
	units       = Family{"aaunit_units", "gauge", "Attached units by verdict; also those without series of their own."}
	patterns    = Family{"aaunit_patterns", "gauge", "Templates and prefixes that are attached."}
	open        = Family{"aaunit_patterns_open", "gauge", "Templates and prefixes of which units to come are not known to be confined, by whether they are paused."}
	refused     = Family{"aaunit_patterns_refused", "gauge", "Templates and prefixes, not paused, of which something that is declared is refused or could not be put back."}
	held        = Family{"aaunit_held_attachments", "gauge", "Attachments that failed and are held: most are not tried again by themselves."}
	pausedUnits = Family{"aaunit_paused_units", "gauge", "Units that are left alone for a time."}
	problems    = Family{"aaunit_attachment_files_not_in_use", "gauge", "Attachment files, and records, that have an error."}
	dropped     = Family{"aaunit_units_without_series", "gauge", "Units that have no series of their own, since there are too many."}
	expected    = Family{"aaunit_unit_expected_info", "gauge", "The profile and mode that the unit is to run under."}
	state       = Family{"aaunit_unit_state", "gauge", "systemd's state of the unit, as of the last look."}
	verdict     = Family{"aaunit_unit_verdict", "gauge", "The verdict on the unit: 1 for the one that holds."}
	reason      = Family{"aaunit_unit_reason", "gauge", "Codes of the reasons against a verdict of confined; aaunit-reasons(7)."}
	looked      = Family{"aaunit_unit_verdict_timestamp_seconds", "gauge", "When the unit was last looked at: the age of the proof."}
	unitHeld    = Family{"aaunit_unit_held", "gauge", "1 where the unit's attachment is held; else absent."}
	unitPending = Family{"aaunit_unit_pending", "gauge", "1 where something that is declared is refused or not done yet; else absent."}
	unitPaused  = Family{"aaunit_unit_paused", "gauge", "1 where the unit is paused; else absent."}
	denials     = Family{"aaunit_unit_denials_total", "counter", "What AppArmor denied to the unit, let pass in complain mode, or ended it for."}
	staleList   = Family{"aaunit_unit_socket_list_stale", "gauge", "Whether the unit's list of socket options is of another executable than the one that runs; absent where there is no list, or that could not be told."}
	optRefused  = Family{"aaunit_unit_socket_options_refused_total", "counter", "Calls for socket options that were refused to the unit, as of the last look; absent where none are recorded."}
	others      = Family{"aaunit_other_denials_total", "counter", "The same of units that are not attached, or where that is not known."}
	lost        = Family{"aaunit_denial_records_lost_total", "counter", "Records of the kernel's that were not heard, at least."}
	heard       = Family{"aaunit_denials_heard", "gauge", "Whether what is denied is heard at present."}
	looks       = Family{"aaunit_looks_total", "counter", "Verdicts that were given."}
	passes      = Family{"aaunit_reconcile_pass_duration_seconds", "histogram", "How long it took to bring units to what is declared."}
)

// Families lists all of them.
func Families() []Family {
	return []Family{up, timestamp, build, start, recheck, apparmor, units, patterns, open, refused, held, pausedUnits, problems, dropped, expected, state, verdict, reason,
		looked, unitHeld, unitPending, unitPaused, denials, staleList, optRefused, others, lost, heard, looks, passes}
}

// WriteDown writes that the daemon could not be asked. That is all there is to say:
// numbers from before would look like proof.
func WriteDown(w io.Writer, at time.Time) error {
	o := &writer{w: bufio.NewWriter(w)}
	o.one(up, 0)
	o.one(timestamp, seconds(at))
	return o.w.Flush()
}

// Write writes what the daemon told. Of more units than have room, those that are not
// confined come first, and then those of which it is not known.
func Write(w io.Writer, m attach.Metrics) error {
	o := &writer{w: bufio.NewWriter(w)}
	o.one(up, 1)
	o.one(timestamp, seconds(m.At))
	o.head(build)
	o.sample(build.Name, 1, "version", m.Version)
	o.one(start, seconds(m.Began))
	o.one(recheck, m.Recheck.Seconds())
	o.head(apparmor)
	now := stateOf(m.Host)
	for _, s := range []string{"enforcing", "complain", "off", "unknown"} {
		o.sample(apparmor.Name, number(s == now), "state", s)
	}
	count := map[attach.Answer]int{}
	nHeld, nPaused := m.PatternsHeld, 0
	for _, u := range m.Units {
		count[answer(u)]++
		nHeld, nPaused = nHeld+int(number(u.Held)), nPaused+int(number(u.Paused))
	}
	o.head(units)
	for _, a := range answers {
		o.sample(units.Name, float64(count[a]), "verdict", a.String())
	}
	o.one(patterns, float64(m.Patterns))
	o.head(open)
	o.sample(open.Name, float64(m.PatternsOpen), "paused", "no")
	o.sample(open.Name, float64(m.PatternsOpenPaused), "paused", "yes")
	o.one(refused, float64(m.PatternsRefused))
	o.one(held, float64(nHeld))
	o.one(pausedUnits, float64(nPaused))
	o.one(problems, float64(m.Problems))
	shown := worstFirst(m.Units)
	o.one(dropped, float64(len(m.Units)-len(shown)))
	o.units(shown)
	o.head(others)
	o.denied(others.Name, m.OtherDenials, true)
	o.one(lost, float64(m.DenialsLost))
	o.one(heard, number(!m.DenialsDeaf))
	o.one(looks, float64(m.Looks))
	o.head(passes)
	for i, bound := range m.Passes.Bounds() {
		o.sample(passes.Name+"_bucket", float64(m.Passes.Buckets[i]), "le", format(bound))
	}
	o.sample(passes.Name+"_bucket", float64(m.Passes.Count), "le", "+Inf")
	o.sample(passes.Name+"_sum", m.Passes.Sum)
	o.sample(passes.Name+"_count", float64(m.Passes.Count))
	return o.w.Flush()
}

var answers = []attach.Answer{attach.Confined, attach.NotConfined, attach.Unknown}

// answer: what is none of the three is unknown.
func answer(u attach.UnitMetrics) attach.Answer {
	if !slices.Contains(answers, u.Answer) {
		return attach.Unknown
	}
	return u.Answer
}

func stateOf(h attach.Host) string {
	switch {
	case h.Enabled == attach.No:
		return "off"
	case h.Enabled != attach.Yes || h.GlobalMode == "":
		return "unknown"
	case h.GlobalMode.Confines():
		return "enforcing"
	}
	return "complain"
}

func worstFirst(all []attach.UnitMetrics) []attach.UnitMetrics {
	if len(all) <= maxUnits {
		return all
	}
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b attach.UnitMetrics) int { return int(answer(b)) - int(answer(a)) })
	sorted = sorted[:maxUnits]
	slices.SortFunc(sorted, func(a, b attach.UnitMetrics) int { return strings.Compare(a.Unit, b.Unit) })
	return sorted
}

// units writes the series of each unit, family by family.
func (o *writer) units(list []attach.UnitMetrics) {
	each := func(f Family, sample func(u attach.UnitMetrics, name string)) {
		o.head(f)
		for _, u := range list {
			sample(u, f.Name)
		}
	}
	flag := func(f Family, on func(attach.UnitMetrics) bool) {
		each(f, func(u attach.UnitMetrics, name string) {
			if on(u) {
				o.sample(name, 1, "unit", u.Unit)
			}
		})
	}
	each(expected, func(u attach.UnitMetrics, name string) {
		o.sample(name, 1, "unit", u.Unit, "profile", u.Profile, "mode", string(u.Mode))
	})
	each(state, func(u attach.UnitMetrics, name string) {
		s := u.State
		if s == "" {
			s = "unknown"
		}
		o.sample(name, 1, "unit", u.Unit, "state", s)
	})
	each(verdict, func(u attach.UnitMetrics, name string) {
		o.sample(name, 1, "unit", u.Unit, "verdict", answer(u).String())
	})
	each(reason, func(u attach.UnitMetrics, name string) {
		for _, c := range u.Codes[:min(len(u.Codes), maxCodes)] {
			o.sample(name, 1, "unit", u.Unit, "code", string(c))
		}
	})
	each(looked, func(u attach.UnitMetrics, name string) {
		if !u.At.IsZero() {
			o.sample(name, seconds(u.At), "unit", u.Unit)
		}
	})
	flag(unitHeld, func(u attach.UnitMetrics) bool { return u.Held })
	flag(unitPending, func(u attach.UnitMetrics) bool { return u.Pending })
	flag(unitPaused, func(u attach.UnitMetrics) bool { return u.Paused })
	each(denials, func(u attach.UnitMetrics, name string) { o.denied(name, u.Denials, false, "unit", u.Unit) })
	each(staleList, func(u attach.UnitMetrics, name string) {
		if u.Sockets != nil && u.Sockets.Stale != attach.CouldNotTell {
			o.sample(name, number(u.Sockets.Stale == attach.Yes), "unit", u.Unit)
		}
	})
	each(optRefused, func(u attach.UnitMetrics, name string) {
		if u.Sockets != nil {
			o.sample(name, float64(u.Sockets.Refused), "unit", u.Unit)
		}
	})
}

// denied writes a count of denials; the two that are rare only where there are any.
func (o *writer) denied(name string, c attach.DenialCount, always bool, labels ...string) {
	for _, r := range []struct {
		result string
		n      int
	}{{"denied", c.Denied}, {"allowed", c.Allowed}, {"killed", c.Killed}} {
		if always || r.n > 0 || r.result == "denied" {
			o.sample(name, float64(max(0, r.n)), append(slices.Clip(labels), "result", r.result)...)
		}
	}
}

type writer struct{ w *bufio.Writer }

func (o *writer) head(f Family) {
	fmt.Fprintf(o.w, "# HELP %s %s\n# TYPE %s %s\n", f.Name, f.Help, f.Name, f.Type)
}

func (o *writer) one(f Family, v float64) {
	o.head(f)
	o.sample(f.Name, v)
}

// sample writes one; labels are names and values in turn.
func (o *writer) sample(name string, v float64, labels ...string) {
	o.w.WriteString(name)
	for i := 0; i+1 < len(labels); i += 2 {
		sep := byte(',')
		if i == 0 {
			sep = '{'
		}
		o.w.WriteByte(sep)
		o.w.WriteString(labels[i])
		o.w.WriteString(`="`)
		o.w.WriteString(escape(labels[i+1]))
		o.w.WriteByte('"')
	}
	if len(labels) > 1 {
		o.w.WriteByte('}')
	}
	o.w.WriteByte(' ')
	o.w.WriteString(format(v))
	o.w.WriteByte('\n')
}

var escapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// escape makes a value that the format can hold: UTF-8, on one line, and not too long.
func escape(s string) string {
	if len(s) > maxLength {
		cut := maxLength
		for cut > maxLength-utf8.UTFMax && !utf8.RuneStart(s[cut]) {
			cut--
		}
		s = s[:cut]
	}
	return escapes.Replace(strings.ToValidUTF8(s, "\uFFFD"))
}

func format(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
