package cli

import (
	"context"
	"fmt"

	"github.com/aaunit/aaunit/internal/attach"
)

// verifyEvidence prints what became of the evidence for units.
func (a *app) verifyEvidence(ctx context.Context, args []string) error {
	var r attach.EvidenceReport
	if err := a.with(ctx, func(d Daemon) (err error) {
		p := a.startProgress()
		defer p.stop()
		p.say("looking")
		r, err = d.VerifyEvidence(ctx, args)
		return err
	}); err != nil {
		return err
	}
	if r.Units == nil {
		r.Units = []attach.EvidenceStatus{}
	}
	a.exit = evidenceExit(r)
	none := len(args) > 0 && len(r.Units)+len(r.Missing) == 0
	if none {
		a.exit = attach.ExitUnknown // a template or prefix has no start, so no evidence
	}
	if a.json {
		return a.printJSON(r)
	}
	p := a.printer()
	for i, s := range r.Units {
		if i > 0 {
			p.line("")
		}
		p.evidence(s)
	}
	for i, m := range r.Missing {
		if i > 0 || len(r.Units) > 0 {
			p.line("")
		}
		p.missing(m)
	}
	switch {
	case none:
		p.line("There is no evidence for templates and prefixes, only for their units.")
	case len(r.Units)+len(r.Missing) == 0:
		p.line("No unit is attached.")
	}
	return nil
}

// evidenceExit gives the exit status of a report.
func evidenceExit(r attach.EvidenceReport) attach.Exit {
	codes := []attach.Exit{attach.ExitOK}
	for _, s := range r.Units {
		codes = append(codes, statusExit(s))
	}
	for _, m := range r.Missing {
		if m.Reason.Code == attach.UnitNotFound {
			codes = append(codes, attach.ExitNoUnit)
		} else {
			codes = append(codes, attach.ExitNotConfined)
		}
	}
	return exits(codes...)
}

// statusExit is 0 only where every link is there and holds, whatever the answer's
// own exit status says.
func statusExit(s attach.EvidenceStatus) attach.Exit {
	if s.Exit == attach.ExitOK && (s.Holds != attach.Yes || s.Newest == nil) {
		return attach.ExitUnknown
	}
	return s.Exit
}

// linkNames are the links in words.
var linkNames = map[attach.EvidenceCode]string{
	attach.LinkRecords: "records", attach.LinkStart: "start", attach.LinkAttachment: "attachment", attach.LinkSource: "profile", attach.LinkInclude: "includes",
	attach.LinkPolicy: "policy", attach.LinkKernel: "kernel", attach.LinkDropIn: "drop-in", attach.LinkSettings: "settings", attach.LinkProgram: "executable",
	attach.LinkOnDisk: "on disk", attach.LinkLabel: "labels", attach.LinkTmp: "/tmp", attach.LinkVerdict: "verdict",
}

func linkMark(t attach.Tri) mark {
	switch t {
	case attach.Yes:
		return markOK
	case attach.No:
		return markBad
	}
	return markUnknown
}

// evidence prints the chain behind a unit's last verdict: first what is to be said
// of the whole, then each link.
func (p *printer) evidence(s attach.EvidenceStatus) {
	p.head(exitColor(statusExit(s)), s.Unit, s.Profile, "")
	sum := "the whole chain holds"
	switch {
	case s.Holds == attach.Yes:
	case s.First == nil:
		sum = "there is nothing to compare with"
	case s.Holds == attach.No:
		sum = "the first link that does not hold is " + p.text(string(s.First.Link))
	default:
		sum = "nothing is known not to hold; of " + p.text(string(s.First.Link)) + " it could not be told"
	}
	rows := []row{{mark: linkMark(s.Holds), label: "evidence", text: sum}}
	if n := s.Newest; n != nil {
		more := []string{"sha256 " + p.text(n.SHA256)}
		if s.Proof != nil && s.Proof.Number != n.Number {
			more = append(more, fmt.Sprintf("compared with record %d, the last of that start that says confined", s.Proof.Number))
		}
		rows = append(rows, row{label: "newest", text: fmt.Sprintf("record %d, %s, %s", n.Number, answerWord(n.Answer), ago(p.now.Sub(n.At))), more: more})
	}
	for _, l := range s.Links {
		label, known := linkNames[l.Link]
		if !known {
			label = p.text(string(l.Link))
		}
		r := row{mark: linkMark(l.Holds), label: label, text: p.text(l.What)}
		if l.Holds != attach.Yes {
			if r.text != "" && l.Why != "" {
				r.text += ": "
			}
			r.text += p.text(l.Why)
			if l.Old != "" || l.New != "" {
				r.more = []string{"on record: " + p.text(orNothing(l.Old)), "now:       " + p.text(orNothing(l.New))}
			}
		}
		rows = append(rows, r)
	}
	p.rows(rows)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}
