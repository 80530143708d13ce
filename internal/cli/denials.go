package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

func (a *app) denialsCommand() *cobra.Command {
	var follow bool
	var since string
	cmd := &cobra.Command{
		Use:   "denials [UNIT]...",
		Short: "Show what AppArmor denied to attached units, and the rules that would allow it",
		Long: `Show what AppArmor denied to attached units, or let pass in complain mode, as far
as aaunitd has heard it since it runs, and for each the rule that would allow it.
Whether a unit needs it is for you to say. For root and members of group adm.`,
		Example: `  aaunitctl denials myagent --since 10min
  aaunitctl denials 'agent-*' --follow`,
		Args:              unitArgs(0),
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			from := time.Time{}
			if since != "" {
				var err error
				if from, err = parseSince(since, a.Now()); err != nil {
					return usage("%v", err)
				}
			}
			return a.with(cmd.Context(), func(d Daemon) error {
				if follow {
					return a.followDenials(cmd.Context(), d, args, from)
				}
				r, err := d.Denials(cmd.Context(), args, from)
				if err != nil {
					return err
				}
				a.exit = denialsExit(r)
				if a.json {
					return a.printJSON(r)
				}
				a.printer().denials(r, from)
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on, and print what is denied as it happens")
	cmd.Flags().StringVar(&since, "since", "", "leave out what last happened before a `TIME`: 10min ago, 14:30, or \"2025-06-01 14:30\"")
	return cmd
}

// timeForms are the times that --since reads, beside spans; without a date they
// are of today.
var timeForms = []string{time.RFC3339, "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02", "15:04:05", "15:04"}

// parseSince reads a time, in the reader's time zone, or how long ago it is.
func parseSince(text string, now time.Time) (time.Time, error) {
	for _, form := range timeForms {
		t, err := time.ParseInLocation(form, text, now.Location())
		if err != nil {
			continue
		}
		if t.Year() == 0 {
			t = time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		}
		return t, nil
	}
	ago, err := attach.ParsePause(strings.TrimPrefix(strings.TrimSuffix(text, " ago"), "-"))
	if err != nil {
		return time.Time{}, fmt.Errorf(`cannot read time %q: write how long ago, at most 7 days, such as 10min or 2h, a time of today such as 14:30, or a date such as "2025-06-01 14:30"`, text)
	}
	return now.Add(-ago), nil
}

// denialsExit: what was denied is no failure of the command's; that it could not
// be heard leaves open whether there is more.
func denialsExit(r attach.DenialReport) attach.Exit {
	host, _ := attach.ExitOfHost(r.Host)
	codes := []attach.Exit{host}
	if r.Deaf != "" {
		codes = append(codes, attach.ExitUnknown)
	}
	for _, m := range r.Missing {
		codes = append(codes, missingExit(m))
	}
	return exits(codes...)
}

// followDenials prints what there is, and then what comes, until it is
// interrupted.
func (a *app) followDenials(ctx context.Context, d Daemon, units []string, from time.Time) error {
	r, err := d.Denials(ctx, units, from)
	if err != nil {
		return err
	}
	p := a.printer()
	missing, lost, deaf := r.Missing, 0, ""
	for first := true; ; first = false {
		r.Missing = missing // of which only the first answer tells
		a.exit = denialsExit(r)
		switch {
		case a.json:
			if first || len(r.Units) > 0 || r.Lost > lost || r.Deaf != deaf {
				if err := a.printJSONLine(r); err != nil {
					return err
				}
			}
		default:
			if first {
				for _, m := range r.Missing {
					p.missing(m)
				}
			}
			p.missed(r, lost, deaf)
			p.denialLines(r)
		}
		lost, deaf = r.Lost, r.Deaf
		if len(units) > 0 && len(r.Missing) == len(units) {
			return nil // nothing can come
		}
		if r, err = d.WaitDenials(ctx, units, r.Cursor); err != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil // that is how it ends
			}
			return err
		}
	}
}

// printJSONLine prints a document on one line.
func (a *app) printJSONLine(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("cannot write JSON: %w", err)
	}
	_, err := a.Stdout.Write(escape(b.Bytes()))
	return err
}

// denials prints a report.
func (p *printer) denials(r attach.DenialReport, from time.Time) {
	if code, _ := attach.ExitOfHost(r.Host); code != attach.ExitOK {
		p.host(r.Host)
	}
	p.missed(r, 0, "")
	began := r.Began
	if from.After(began) {
		began = from
	}
	for i, u := range r.Units {
		if i > 0 {
			p.line("")
		}
		p.head("", u.Unit, u.Profile, "")
		if len(u.Denials) == 0 {
			p.line("  Nothing that was heard was denied since %s.", p.time(began))
			continue
		}
		if u.LeftOut > 0 {
			p.line("  %s %s did not fit into the answer; name fewer units, or a later --since", p.mark(markWarn), count(u.LeftOut, "older one", "older ones"))
		}
		p.denialTable(u.Denials)
		p.rules(u.Denials)
	}
	for _, m := range r.Missing {
		p.missing(m)
	}
	if len(r.Units)+len(r.Missing) == 0 {
		p.line("No unit is attached.")
	}
}

// missed says what was not heard, where that is news.
func (p *printer) missed(r attach.DenialReport, lost int, deaf string) {
	if r.Deaf != deaf {
		if r.Deaf != "" {
			p.line("%s What is denied now cannot be heard: %s", p.mark(markUnknown), p.text(r.Deaf))
			p.line("      %s %s", p.mark(markNext), "systemctl status aaunitd.service; the journal may have it: journalctl -k --grep apparmor=.DENIED")
		} else {
			p.line("%s What is denied is heard again", p.mark(markOK))
		}
	}
	if r.Lost > lost {
		p.line("%s At least %s lost, of any unit of the host: more may have been denied than is shown", p.mark(markWarn), count(r.Lost-lost, "record was", "records were"))
	}
}

func (p *printer) time(t time.Time) string {
	return t.In(p.now.Location()).Format("2006-01-02 15:04:05")
}

// maxWhat is how much of a path a terminal is shown in the table; the rule has all
// of it.
const maxWhat = 60

// cells are a denial's columns.
func (p *printer) cells(d attach.SeenDenial) []string {
	what := p.text(cmp.Or(d.What, "-"))
	if p.fold {
		what = p.cut(what, maxWhat)
	}
	program := p.text(cmp.Or(d.Comm, "-"))
	if d.ByPeer() {
		program += " (the other side)"
	}
	return []string{p.time(d.Last), fmt.Sprint(d.Count), p.text(d.Operation), p.text(cmp.Or(d.Permission(), "-")), what, program, p.text(d.Profile), p.result(d)}
}

func (p *printer) result(d attach.SeenDenial) string {
	s := "DENIED"
	switch {
	case d.Killed:
		s = "KILLED"
	case d.Allowed:
		s = "ALLOWED (complain mode)"
	}
	if d.Unit == "" && len(d.Candidates) > 1 {
		s += ", to one of " + p.names(d.Candidates)
	} else if d.ByProfile {
		s += ", process not known"
	}
	return s
}

func (p *printer) denialTable(list []attach.SeenDenial) {
	var cells [][]string
	for _, d := range list {
		cells = append(cells, p.cells(d))
	}
	p.shifted([]string{"LAST", "COUNT", "OPERATION", "PERM", "WHAT", "PROGRAM", "PROFILE", "RESULT"}, cells, nil)
}

// denialLines prints each denial by itself: what comes later is not known, so
// there is no table.
func (p *printer) denialLines(r attach.DenialReport) {
	for _, u := range r.Units {
		for _, d := range u.Denials {
			c := p.cells(d)
			p.line("%s  %s  %s %s %s  %s  profile %s  %s  %s", c[0], p.paint(bold, p.text(u.Unit)), c[2], c[3], c[4], c[5], c[6], count(d.Count, "time", "times"), c[7])
			switch {
			case d.Proposal.Rule != "":
				p.line("      %s in profile %s: %s", p.mark(markNext), p.text(d.Proposal.Profile), p.text(d.Proposal.Rule))
			case d.Proposal.Note != "":
				p.line("      %s no rule: %s", p.mark(markSkip), p.text(d.Proposal.Note))
			}
		}
		if u.LeftOut > 0 {
			p.line("%s %s of %s did not fit into the answer", p.mark(markWarn), count(u.LeftOut, "older one", "older ones"), p.text(u.Unit))
		}
	}
}

// proposed is a rule with where it was seen.
type proposed struct {
	rule  string
	notes []string
	count int
	last  time.Time
	by    []string // operation and program
}

// rules prints the rules that would have allowed it all, by profile.
func (p *printer) rules(list []attach.SeenDenial) {
	var order []string
	byProfile := map[string][]*proposed{}
	var none []string
	for _, d := range list {
		if d.Proposal.Rule == "" {
			if line := p.text(d.Operation) + " " + p.text(d.What) + ": " + p.text(d.Proposal.Note); !slices.Contains(none, line) {
				none = append(none, line)
			}
			continue
		}
		profile := d.Proposal.Profile
		i := slices.IndexFunc(byProfile[profile], func(r *proposed) bool { return r.rule == d.Proposal.Rule })
		if i < 0 {
			if byProfile[profile] == nil {
				order = append(order, profile)
			}
			i = len(byProfile[profile])
			byProfile[profile] = append(byProfile[profile], &proposed{rule: d.Proposal.Rule})
		}
		r := byProfile[profile][i]
		r.count += d.Count
		if d.Last.After(r.last) {
			r.last = d.Last
		}
		if by := p.text(d.Operation) + " by " + p.text(cmp.Or(d.Comm, "?")); !slices.Contains(r.by, by) {
			r.by = append(r.by, by)
		}
		if n := d.Proposal.Note; n != "" && !slices.Contains(r.notes, n) {
			r.notes = append(r.notes, n)
		}
	}
	for _, profile := range order {
		p.line("")
		p.line("  Rules for profile %s that would allow it, where the unit needs it:", p.text(profile))
		w := 0
		for _, r := range byProfile[profile] {
			w = max(w, min(width(r.rule), 50))
		}
		for _, r := range byProfile[profile] {
			// A comment, so that the lines can go into the profile as they are.
			p.line("    %s  # %s, %s, last %s", pad(p.text(r.rule), w), strings.Join(r.by, ", "), count(r.count, "time", "times"), p.time(r.last))
			for _, n := range r.notes {
				for _, l := range wrap(p.text(n), p.width-8) {
					p.line("      # %s", l)
				}
			}
		}
	}
	if len(none) > 0 {
		p.line("")
		p.line("  No rule is proposed for:")
		for _, l := range none {
			p.line("    %s", l)
		}
	}
}
