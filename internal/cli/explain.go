package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

func (a *app) explainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "explain [UNIT|CODE]...",
		Short: "Say in plain words what is wrong with a unit, and what to do",
		Long: `Say in plain words how it is with a unit, why, and which command to type next:
from the last verdict on it, from how systemd last started it and from what was
denied to it. It need not be attached. With a reason's code (the word in
brackets): what it means. Without arguments: list all codes.`,
		Example: `  aaunitctl explain myagent
  aaunitctl explain task-unconfined`,
		Args:              unitArgs(0),
		ValidArgsFunction: a.completeExplain,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				if a.json {
					return a.printJSON(codesDoc{attach.Catalogue()})
				}
				a.printer().codes()
				return nil
			}
			return a.explain(cmd.Context(), args)
		},
	}
}

// explainDoc is the JSON of explain. Missing names, once more, those of the units
// that no attachment names.
type explainDoc struct {
	Units   []attach.Explanation `json:"units"`
	Missing []attach.Missing     `json:"missing,omitempty"`
	Codes   []attach.Entry       `json:"codes,omitempty"`
}

func (a *app) explain(ctx context.Context, args []string) error {
	doc := explainDoc{Units: []attach.Explanation{}}
	var units []string
	for _, arg := range args {
		i := slices.IndexFunc(attach.Catalogue(), func(e attach.Entry) bool { return string(e.Code) == arg })
		if i >= 0 {
			doc.Codes = append(doc.Codes, attach.Catalogue()[i])
		} else {
			units = append(units, arg)
		}
	}
	if len(units) > 0 {
		r, err := a.cases(ctx, units)
		if err != nil {
			return err
		}
		var codes []attach.Exit
		for _, c := range r.Cases {
			e := attach.Explain(r, c)
			doc.Units = append(doc.Units, e)
			codes = append(codes, e.Exit)
			if c.Missing != nil {
				doc.Missing = append(doc.Missing, attach.Missing{Unit: c.Unit, Reason: *c.Missing})
			}
		}
		a.exit = exits(codes...)
	}
	if a.json {
		return a.printJSON(doc)
	}
	p := a.printer()
	for i, e := range doc.Codes {
		if i > 0 {
			p.line("")
		}
		p.explainCode(e.Code)
	}
	for i, e := range doc.Units {
		if i+len(doc.Codes) > 0 {
			p.line("")
		}
		p.explanation(e, a.Root)
	}
	return nil
}

// cases asks the daemon. Where there is none, and AppArmor is off, that is the
// answer.
func (a *app) cases(ctx context.Context, units []string) (r attach.CaseReport, err error) {
	err = a.with(ctx, func(d Daemon) (err error) {
		r, err = d.Explain(ctx, units)
		return err
	})
	here := a.Now().Location()
	for i := range r.Cases {
		r.Cases[i] = inZone(r.Cases[i], here)
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return r, err
	}
	h := a.hostAlone()
	if h.Enabled != attach.No {
		return r, err
	}
	r = attach.CaseReport{Host: h, At: a.Now()}
	for _, unit := range units {
		r.Cases = append(r.Cases, attach.Case{Unit: unit, StartProblem: err.Error()})
	}
	return r, nil
}

// inZone turns the times that are put into words into the reader's.
func inZone(c attach.Case, here *time.Location) attach.Case {
	if c.Status == nil {
		return c
	}
	s := *c.Status
	if s.Verdict != nil {
		v := *s.Verdict
		v.At = v.At.In(here)
		s.Verdict = &v
	}
	if s.Held != nil {
		h := *s.Held
		h.Since = h.Since.In(here)
		s.Held = &h
	}
	if s.Paused != nil {
		p := *s.Paused
		p.Since, p.Until = p.Since.In(here), p.Until.In(here)
		s.Paused = &p
	}
	c.Status = &s
	return c
}

// command is a line to type, as this user has to type it.
func command(c attach.Command, root bool) string {
	if c.Root && !root {
		return "sudo " + c.Line
	}
	return c.Line
}

// explanation prints a case for somebody who has never used AppArmor: how it is,
// why, and last the command to type.
func (p *printer) explanation(e attach.Explanation, root bool) {
	p.head(exitColor(e.Exit), e.Unit, e.Profile, e.ProfileFile)
	p.line("")
	for _, l := range wrap(e.Headline, p.width-2) {
		p.line("  %s", p.paint(bold, p.text(l)))
	}
	told := map[attach.Code]bool{}
	for _, x := range e.Reasons {
		p.line("")
		m := markWarn
		switch {
		case x.Against && x.Bearing == attach.Unknown && e.Exit != attach.ExitNotConfined:
			m = markUnknown
		case x.Against:
			m = markBad
		}
		p.explained(m, x, !told[x.Code], root)
		told[x.Code] = true
	}
	denied := make([]string, len(e.Denials))
	for i, d := range e.Denials {
		denied[i] = p.time(d.Last) + ": " + d.Words
	}
	if e.MoreDenials > 0 {
		denied = append(denied, fmt.Sprintf("%d more; aaunitctl denials shows them", e.MoreDenials))
	}
	p.sentences("What was denied, the last first:", markSkip, denied)
	p.sentences("That rests on:", markOK, e.RestsOn)
	p.sentences("It does not cover:", markSkip, e.DoesNotCover)
	p.sentences("Not seen:", markUnknown, e.Unseen)
	p.line("")
	p.line("  Next: %s", p.paint(bold, p.text(command(e.Next, root))))
}

// explained prints one reason: what, where, what it means, what to do.
func (p *printer) explained(m mark, x attach.Explained, explain, root bool) {
	p.line("  %s %s %s", p.mark(m), p.paint(bold, p.text(x.Title)), p.paint(dim, "["+p.text(string(x.Code))+"]"))
	r := x.Reason
	step := command(x.Command, root)
	if r.Next != "" && r.Next != x.Command.Line {
		step = r.Next
	}
	r.Next = ""
	for _, l := range p.about(r) {
		p.line("      %s", l)
	}
	if explain {
		p.para(x.Explanation, 6)
	}
	p.line("      %s %s", p.mark(markNext), p.text(step))
}

// sentences prints a list under a title, where there is one.
func (p *printer) sentences(title string, m mark, list []string) {
	if len(list) == 0 {
		return
	}
	p.line("")
	p.line("  %s", title)
	for _, text := range list {
		for i, l := range wrap(p.text(text), p.width-4) {
			before := p.mark(m)
			if i > 0 {
				before = " "
			}
			p.line("  %s %s", before, l)
		}
	}
}
