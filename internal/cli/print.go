package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// printer puts the core's words on paper.
type printer struct {
	style
	w     io.Writer
	now   time.Time
	width int // of the paper, for sentences
	// fold breaks the details of reasons too; in a file they stay on one line,
	// for grep.
	fold bool

	hidden bool // a reason came without its details
}

func (p *printer) line(format string, args ...any) {
	fmt.Fprintf(p.w, format+"\n", args...)
}

// row is a line of a unit's block.
type row struct {
	mark  mark
	label string
	text  string
	more  []string // lines below
}

// head begins a unit's block.
func (p *printer) head(color, unit, profile, file string) {
	s := p.markIn(markUnit, color) + " " + p.paint(bold, p.text(unit))
	if profile != "" {
		s += " " + p.mark(markFrom) + " profile " + p.text(profile)
		if file != "" {
			s += " (" + p.text(file) + ")"
		}
	}
	p.line("%s", s)
}

// rows prints rows with their texts below each other.
func (p *printer) rows(rows []row) {
	w := 9
	for _, r := range rows {
		w = max(w, width(r.label))
	}
	for _, r := range rows {
		p.line("%s", strings.TrimRight("  "+p.mark(r.mark)+" "+pad(r.label, w)+"  "+r.text, " "))
		for _, m := range r.more {
			p.line("%s%s", strings.Repeat(" ", w+6), m)
		}
	}
}

// reason prints a reason by itself: what, where, what to do.
func (p *printer) reason(m mark, r attach.Reason) {
	p.line("  %s %s %s", p.mark(m), p.text(r.Code.Title()), p.paint(dim, "["+p.text(string(r.Code))+"]"))
	for _, l := range p.about(r) {
		p.line("      %s", l)
	}
}

// about is everything of a reason but its title.
func (p *printer) about(r attach.Reason) []string {
	var out []string
	if r.Detail != "" && r.Detail != r.Code.Title() {
		out = append(out, p.lines(r.Detail)...)
	} else {
		p.hidden = p.hidden || r.Where == ""
	}
	switch {
	case r.Where == "" || strings.Contains(r.Detail, r.Where):
	case len(out) > 0 && !strings.Contains(r.Detail, "\n"):
		out[len(out)-1] += " (" + p.text(r.Where) + ")"
	default:
		out = append(out, "in "+p.text(r.Where))
	}
	if !p.fold {
		return slices.Concat(out, p.excerpt(r.Excerpt), p.next(r))
	}
	return slices.Concat(p.folded(out), p.excerpt(r.Excerpt), p.folded(p.next(r)))
}

func (p *printer) folded(out []string) []string {
	var folded []string
	for _, l := range out {
		if width(l) <= p.width-6 {
			folded = append(folded, l) // as it is, with its spaces
		} else {
			folded = append(folded, wrap(l, p.width-6)...)
		}
	}
	return folded
}

// excerpt shows a line of a file with a caret below the place that is meant.
// Such lines are never folded; on a terminal they are cut to what fits, around
// the place.
func (p *printer) excerpt(e attach.Excerpt) []string {
	if e.Line <= 0 {
		return nil
	}
	number := fmt.Sprint(e.Line)
	gutter := func(s string) string { return "  " + p.paint(dim, pad(s, len(number))+" |") + " " }
	text := []rune(e.Text)
	at := min(max(e.Column-1, 0), len(text))
	before, behind := p.text(string(text[:at])), p.text(string(text[at:]))
	if room := max(20, p.width-6-len(number)-5); p.fold && width(before)+width(behind) > room {
		if over := width(before) - room/2; over > 0 {
			before = p.dots() + dropColumns(before, over+width(p.dots()))
		}
		behind = p.cut(behind, room-width(before))
	}
	out := []string{gutter(number) + before + behind}
	if e.Column > 0 {
		out = append(out, gutter("")+strings.Repeat(" ", width(before))+p.paint(red, "^"))
	}
	return out
}

func (p *printer) next(r attach.Reason) []string {
	if r.Next == "" {
		return nil
	}
	return []string{p.mark(markNext) + " " + p.text(r.Next)}
}

func exitColor(e attach.Exit) string {
	switch e {
	case attach.ExitOK:
		return green
	case attach.ExitUnknown:
		return yellow
	}
	return red
}

// outcome prints how an operation ended for a unit.
func (p *printer) outcome(o attach.Outcome) {
	p.head(exitColor(o.Exit), o.Unit, o.Profile, o.File)
	said := map[attach.Reason]bool{}
	var rows []row
	for _, e := range lastOfEachStep(o.Events) {
		r := row{mark: markOf(e), label: p.text(string(e.Step)), text: p.firstLine(e.Text), more: p.restLines(e.Text)}
		if e.Step == attach.StepVerdict && o.Verdict != nil {
			r.label = verdictWord(o.Verdict)
		}
		if e.Reason != nil {
			said[*e.Reason] = true
			if r.text == "" {
				r.text = p.text(e.Reason.Code.Title())
			}
			r.more = append(r.more, p.beside(e.Text, *e.Reason)...)
		}
		rows = append(rows, r)
	}
	if o.Verdict != nil && !slices.ContainsFunc(o.Events, func(e attach.Event) bool { return e.Step == attach.StepVerdict }) {
		// The verdict came before the undo that followed from it.
		i := slices.IndexFunc(rows, func(r row) bool { return r.label == string(attach.StepUndo) })
		if i < 0 {
			i = len(rows)
		}
		rows = slices.Insert(rows, i, p.verdictRow(*o.Verdict, ""))
	}
	if o.Undone && !slices.ContainsFunc(o.Events, func(e attach.Event) bool { return e.Step == attach.StepUndo }) {
		rows = append(rows, row{mark: markWarn, label: string(attach.StepUndo), text: "the unit is back to what it was before"})
	}
	if len(rows) == 0 && len(o.Reasons) == 0 && o.Exit == attach.ExitOK {
		rows = append(rows, row{mark: markOK, label: "done", text: "nothing had to be changed"})
	}
	p.rows(rows)
	p.questioned(o.Questioned, true)
	for _, r := range o.Reasons {
		if !said[r] {
			said[r] = true
			p.reason(markBad, r)
		}
	}
	if o.Verdict != nil {
		p.reasonsOf(o.Verdict, said)
	}
	for _, r := range o.Notes {
		if !said[r] {
			said[r] = true
			p.reason(markWarn, r)
		}
	}
}

// beside gives of a reason what the text in front of it does not say already.
func (p *printer) beside(text string, r attach.Reason) []string {
	var out []string
	if r.Detail != "" && !strings.Contains(text, r.Detail) && r.Detail != r.Code.Title() {
		out = append(out, p.lines(r.Detail)...)
	}
	if r.Where != "" && !strings.Contains(text+r.Detail, r.Where) {
		out = append(out, "in "+p.text(r.Where))
	}
	return slices.Concat(out, p.excerpt(r.Excerpt), p.next(r))
}

func (p *printer) firstLine(s string) string   { return p.lines(s)[0] }
func (p *printer) restLines(s string) []string { return p.lines(s)[1:] }

// lastOfEachStep gives the last word of each step, in the order in which the
// steps began. That something was under way is a last word only where nothing
// else was said. That a profile was found is no news, unless its name was not
// what somebody wrote.
func lastOfEachStep(events []attach.Event) []attach.Event {
	var out []attach.Event
	for _, e := range events {
		i := slices.IndexFunc(out, func(o attach.Event) bool { return o.Step == e.Step })
		switch {
		case i < 0:
			out = append(out, e)
		case e.State != attach.Running || out[i].State == attach.Running:
			out[i] = e
		}
	}
	return slices.DeleteFunc(out, func(e attach.Event) bool {
		return e.Step == attach.StepResolve && e.State == attach.Done && e.Reason == nil
	})
}

func markOf(e attach.Event) mark {
	switch e.State {
	case attach.Done:
		return markOK
	case attach.Failed:
		return markBad
	case attach.Skipped:
		return markSkip
	case attach.Warned:
		return markWarn
	}
	return markUnknown // cut off in the middle
}

func verdictWord(v *attach.Verdict) string {
	if v == nil {
		return "unknown"
	}
	return answerWord(v.Answer)
}

func answerWord(a attach.Answer) string {
	switch a {
	case attach.Confined:
		return "confined"
	case attach.NotConfined:
		return "not confined"
	}
	return "unknown"
}

func answerMark(a attach.Answer) mark {
	switch a {
	case attach.Confined:
		return markOK
	case attach.NotConfined:
		return markBad
	}
	return markUnknown
}

func (p *printer) verdictRow(v attach.Verdict, more string) row {
	text := ""
	if v.Tasks > 0 {
		text = fmt.Sprintf("%s in %s", count(v.Tasks, "task", "tasks"), count(v.Processes, "process", "processes"))
		switch v.PrivateTmp {
		case attach.Yes:
			text += ", private /tmp"
		case attach.No:
			text += ", the host's /tmp"
		}
	}
	if v.At.IsZero() && v.Tasks == 0 && len(v.Reasons) == 0 {
		text = "not looked at yet"
	}
	text = strings.TrimPrefix(text+more, "; ")
	return row{mark: answerMark(v.Answer), label: answerWord(v.Answer), text: text}
}

// reasonsOf prints what a verdict rests on: worst first.
func (p *printer) reasonsOf(v *attach.Verdict, said map[attach.Reason]bool) {
	for _, r := range v.Reasons {
		if !said[r] {
			said[r] = true
			p.reason(reasonMark(r), r)
		}
	}
}

func reasonMark(r attach.Reason) mark {
	switch r.Code.Bearing() {
	case attach.NotConfined:
		return markBad
	case attach.Confined:
		return markWarn // a note
	}
	return markUnknown
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// doings are what the actions of a plan would do.
var doings = map[attach.ActionKind]string{
	attach.LoadPolicy:   "would load",
	attach.WriteDropIn:  "would write",
	attach.RemoveDropIn: "would remove",
	attach.Reload:       "would reload",
	attach.Restart:      "would restart",
	attach.UnloadPolicy: "would unload",
	attach.UnloadChild:  "would unload",
}

// plan prints what an attach or detach would do.
func (p *printer) plan(o attach.Outcome) {
	p.head(exitColor(o.Exit), o.Unit, o.Profile, o.File)
	said := map[attach.Reason]bool{}
	say := func(m mark, list []attach.Reason) {
		for _, r := range list {
			if !said[r] {
				said[r] = true
				p.reason(m, r)
			}
		}
	}
	if o.Plan == nil {
		say(markBad, o.Reasons)
		say(markWarn, o.Notes)
		return
	}
	var rows []row
	for _, a := range o.Plan.Actions {
		target := p.text(a.Target)
		if a.Kind == attach.Reload {
			target = "systemd's unit files (daemon-reload)"
		}
		var why []string
		if a.Reason.Detail != "" {
			why = []string{p.paint(dim, "because "+p.firstLine(a.Reason.Detail))}
		}
		rows = append(rows, row{mark: markNext, label: cmp.Or(doings[a.Kind], p.text(string(a.Kind))), text: target, more: why})
	}
	if len(o.Plan.RestartsWith) > 0 {
		rows = append(rows, row{mark: markWarn, label: "takes along", text: p.names(o.Plan.RestartsWith)})
	}
	if len(o.Plan.TmpFiles) > 0 {
		rows = append(rows, row{mark: markWarn, label: "open in /tmp", text: "out of sight in a private /tmp:", more: p.each(o.Plan.TmpFiles)})
	}
	p.rows(rows)
	say(markBad, o.Plan.Refusals)
	say(markBad, o.Reasons)
	say(markWarn, o.Plan.Pending)
	say(markWarn, o.Plan.Warnings)
	say(markWarn, o.Notes)
	if len(rows) == 0 && len(said) == 0 {
		p.rows([]row{{mark: markOK, label: "nothing", text: "to do: the unit is as it was declared"}})
	}
}

func (p *printer) names(list []string) string { return strings.Join(p.each(list), ", ") }

func (p *printer) each(list []string) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = p.text(s)
	}
	return out
}

// check prints what speaks against a unit, or what is in a file.
func (p *printer) check(o attach.Outcome) {
	p.head(exitColor(o.Exit), o.Unit, o.Profile, o.File)
	said := map[attach.Reason]bool{}
	bad, notes := slices.Clone(o.Reasons), slices.Clone(o.Notes)
	if o.Plan != nil {
		bad, notes = append(bad, o.Plan.Refusals...), append(notes, o.Plan.Warnings...)
	}
	for _, e := range o.Events {
		p.rows([]row{{mark: markOf(e), label: p.text(string(e.Step)), text: p.firstLine(e.Text), more: p.restLines(e.Text)}})
	}
	p.questioned(o.Questioned, false)
	for _, r := range bad {
		if !said[r] {
			said[r] = true
			m := markBad
			if o.Exit == attach.ExitUnknown && r.Code.Bearing() == attach.Unknown {
				m = markUnknown
			}
			p.reason(m, r)
		}
	}
	for _, r := range notes {
		if !said[r] {
			said[r] = true
			p.reason(markWarn, r)
		}
	}
	spoken := len(said) > 0 // against it, and not only noted
	for _, f := range o.Findings {
		if said[f.Reason] {
			continue
		}
		said[f.Reason] = true
		m := markBad
		switch f.Severity {
		case attach.Note:
			m = markSkip
		case attach.Warning:
			m = markWarn
		}
		spoken = spoken || f.Severity != attach.Note
		p.reason(m, f.Reason)
	}
	if !spoken && o.Exit == attach.ExitOK {
		text := "no way around the profile was found"
		if len(said) > 0 {
			text += " besides what is noted"
		}
		p.rows([]row{{mark: markOK, label: "good", text: text}})
	}
}

// questioned says what the kernel was asked about policies; unless is set, only
// where it was not asked all.
func (p *printer) questioned(all []attach.Questioned, unless bool) {
	var rows []row
	same := !slices.ContainsFunc(all, func(q attach.Questioned) bool { return q.Questions > 0 || q.NotAsked != all[0].NotAsked })
	for i, q := range all {
		if unless && q.Wholly() || same && i > 0 {
			continue
		}
		m, text := markOK, q.String()
		if !q.Wholly() {
			m = markUnknown
		}
		if len(all) > 1 && !same {
			text += " (" + q.File + ")"
		}
		rows = append(rows, row{mark: m, label: "kernel", text: p.firstLine(text), more: p.restLines(text)})
	}
	p.rows(rows)
}

// host prints the state of AppArmor and gives the exit status it asks for.
func (p *printer) host(h attach.Host) attach.Exit {
	exit, why := attach.ExitOfHost(h)
	if exit == attach.ExitOK {
		p.line("%s AppArmor is on, in %s mode", p.mark(markOK), p.text(string(h.GlobalMode)))
	} else {
		m := markBad
		if exit == attach.ExitUnknown {
			m = markUnknown
		}
		p.line("%s %s", p.mark(m), p.paint(bold, p.text(why.Title())))
		for _, l := range wrap(why.Explanation(), p.width-4) {
			p.line("    %s", p.text(l))
		}
		if h.Problem != "" {
			p.line("    %s", p.firstLine(h.Problem))
		}
	}
	if h.BootService == attach.No && h.Enabled == attach.Yes {
		p.reason(markWarn, attach.Because(attach.BootServiceMissing, "apparmor.service is not enabled").WithNext("systemctl enable apparmor.service"))
	}
	return exit
}

// status prints what is known of a unit.
func (p *printer) status(s attach.Status) {
	v := verdictOf(s)
	p.head(statusColor(s), s.Unit, s.Profile, s.ProfileFile)
	var rows []row
	seen := ""
	if !v.At.IsZero() {
		seen = "; looked at " + ago(p.now.Sub(v.At))
	}
	if attach.IsPattern(s.Unit) {
		answer, words := s.ToCome()
		rows = append(rows, row{mark: answerMark(answer), label: "pattern", text: words})
	} else {
		rows = append(rows, p.verdictRow(v, seen))
	}
	if s.Busy {
		rows = append(rows, row{mark: markSkip, label: "at work", text: "aaunitd is working on it"})
	}
	switch {
	case s.Held.OnlyText():
		rows = append(rows, row{mark: markWarn, label: "held", text: "a change of the profile was undone " + ago(p.now.Sub(s.Held.Since)) + ", and is not tried again by itself"})
	case s.Held != nil:
		next := "is not tried again by itself"
		if at := s.Held.Again; !at.IsZero() {
			next = "is tried again at " + at.In(p.now.Location()).Format("15:04:05 MST")
		}
		if former := s.Held.Former; former != "" && former != s.Profile {
			next += "; meanwhile it is kept under profile " + p.text(former)
		}
		rows = append(rows, row{mark: markBad, label: "held", text: "the attach failed " + ago(p.now.Sub(s.Held.Since)) + ", and " + next})
	}
	if s.Paused != nil {
		rows = append(rows, row{mark: markWarn, label: "paused", text: p.pause(*s.Paused)})
	}
	if s.ActiveState != "" {
		rows = append(rows, row{label: "state", text: p.text(s.ActiveState)})
	}
	if s.Attachment != "" {
		rows = append(rows, row{label: "attachment", text: p.text(s.Attachment)})
	}
	if s.DropIn != "" {
		rows = append(rows, row{label: "drop-in", text: p.text(s.DropIn)})
	}
	p.rows(rows)
	said := map[attach.Reason]bool{}
	for _, r := range s.Refused {
		said[r] = true
		p.reason(markBad, r)
	}
	p.reasonsOf(&v, said)
	if s.Held != nil {
		m := markBad
		if s.Held.OnlyText() {
			m = markWarn
		}
		for _, r := range s.Held.Reasons {
			if !said[r] {
				said[r] = true
				p.reason(m, r)
			}
		}
	}
	for _, r := range s.Notes {
		if !said[r] {
			said[r] = true
			p.reason(markWarn, r)
		}
	}
}

func statusColor(s attach.Status) string {
	if len(s.Refused) > 0 || s.Held != nil && !s.Held.OnlyText() {
		return red
	}
	if attach.IsPattern(s.Unit) {
		answer, _ := s.ToCome()
		return marks[answerMark(answer)].color
	}
	return marks[answerMark(verdictOf(s).Answer)].color
}

// verdictOf: no verdict is an unknown one.
func verdictOf(s attach.Status) attach.Verdict {
	if s.Verdict == nil {
		return attach.Verdict{Unit: s.Unit, Profile: s.Profile, Answer: attach.Unknown}
	}
	return *s.Verdict
}

// missing prints a name that was asked for and is not attached.
func (p *printer) missing(m attach.Missing) {
	p.head(red, m.Unit, "", "")
	if m.Reason.Code == attach.UnitNotFound {
		p.reason(markBad, m.Reason)
		return
	}
	text := "no attachment names it, so aaunit does not confine it"
	p.rows([]row{{mark: markBad, label: "not attached", text: text, more: []string{p.mark(markNext) + " aaunitctl attach " + p.text(m.Unit)}}})
}

// summary counts verdicts where there are several.
func (p *printer) summary(units []attach.Status) {
	if len(units) < 2 {
		return
	}
	n := map[attach.Answer]int{}
	for _, s := range units {
		n[cmp.Or(verdictOf(s).Answer, attach.Unknown)]++
	}
	p.line("%d units: %d confined, %d not confined, %d unknown", len(units), n[attach.Confined], n[attach.NotConfined], n[attach.Unknown])
}

func ago(d time.Duration) string {
	switch {
	case d < 2*time.Second:
		return "just now"
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s ago", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min ago", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h ago", int(d.Hours()))
	}
	return fmt.Sprintf("%d days ago", int(d.Hours()/24))
}

// table prints columns below their titles; the last one is as long as it is.
func (p *printer) table(titles []string, cells [][]string, colors []string) {
	w := make([]int, len(titles))
	for _, r := range append([][]string{titles}, cells...) {
		for i, c := range r {
			w[i] = max(w[i], width(c))
		}
	}
	for n, r := range append([][]string{titles}, cells...) {
		var b strings.Builder
		for i, c := range r {
			if i == len(r)-1 {
				w[i] = 0
			}
			padded := pad(c, w[i])
			if n == 0 {
				padded = p.paint(bold, padded)
			} else if i < len(colors) && colors[i] == "answer" {
				padded = p.paint(wordColor(c), padded)
			}
			b.WriteString(padded)
			if i < len(r)-1 {
				b.WriteString("  ")
			}
		}
		p.line("%s", strings.TrimRight(b.String(), " "))
	}
}

func wordColor(word string) string {
	for _, a := range []attach.Answer{attach.Confined, attach.NotConfined, attach.Unknown} {
		if word == answerWord(a) {
			return marks[answerMark(a)].color
		}
	}
	return ""
}

// list prints one line for each unit.
func (p *printer) list(units []attach.Status) {
	var cells [][]string
	for _, s := range units {
		v := verdictOf(s)
		why := ""
		switch {
		case len(s.Refused) > 0:
			why = s.Refused[0].Code.Title()
		case s.Held != nil && !s.Held.OnlyText():
			why = attach.Held.Title()
		case s.Held != nil && len(v.Reasons) == 0:
			why = attach.PolicyUndone.Title()
		case len(v.Reasons) > 0:
			why = v.Reasons[0].Code.Title()
		}
		if answer, words := s.ToCome(); why == "" && attach.IsPattern(s.Unit) && answer != attach.Confined {
			why = words
		}
		if s.Paused != nil {
			why = strings.TrimPrefix(why+"; paused "+p.pause(*s.Paused), "; ")
		}
		tasks := "-"
		if v.Tasks > 0 {
			tasks = fmt.Sprint(v.Tasks)
		}
		answer := answerWord(v.Answer)
		if attach.IsPattern(s.Unit) {
			answer = "(pattern)"
		}
		cells = append(cells, []string{p.text(s.Unit), p.text(s.Profile), answer, tasks, p.text(cmp.Or(s.ActiveState, "-")), p.text(why)})
	}
	p.table([]string{"UNIT", "PROFILE", "VERDICT", "TASKS", "STATE", "WHY"}, cells, []string{"", "", "answer"})
}

// profiles prints one line for each profile.
func (p *printer) profiles(list []attach.Profile) {
	var cells [][]string
	for _, f := range list {
		var notes []string
		notes = append(notes, f.Flags...)
		if f.DisabledBy != "" {
			notes = append(notes, "disabled by "+f.DisabledBy)
		}
		if f.ComplainBy != "" {
			notes = append(notes, "complain by "+f.ComplainBy)
		}
		cells = append(cells, []string{p.text(f.Name), p.text(fmt.Sprintf("%s:%d", f.File, f.Line)), p.text(cmp.Or(f.Attachment, "-")), p.names(notes)})
	}
	p.table([]string{"PROFILE", "FILE", "ATTACHES TO", "FLAGS"}, cells, nil)
}

// explainCode prints what is known of a reason.
func (p *printer) explainCode(c attach.Code) {
	p.line("%s %s", p.paint(bold, c.Title()), p.paint(dim, "["+string(c)+"]"))
	p.para(c.Explanation(), 2)
	p.para("In a verdict it means: "+bearing(c)+".", 2)
}

func bearing(c attach.Code) string {
	switch c.Bearing() {
	case attach.Confined:
		return "a note that changes nothing"
	case attach.NotConfined:
		return "the unit is not confined"
	}
	return "the answer is unknown"
}

// codes lists every reason.
func (p *printer) codes() {
	var cells [][]string
	for _, e := range attach.Catalogue() {
		cells = append(cells, []string{string(e.Code), e.Title})
	}
	p.table([]string{"CODE", "MEANS"}, cells, nil)
	p.line("")
	p.line("aaunitctl explain CODE says more.")
}

// para prints a wrapped paragraph.
func (p *printer) para(text string, indent int) {
	for _, l := range wrap(text, p.width-indent) {
		p.line("%s%s", strings.Repeat(" ", indent), p.text(l))
	}
}
