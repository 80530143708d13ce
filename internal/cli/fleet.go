package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/report"
)

func (a *app) reportCommand() *cobra.Command {
	var html, csv, schema bool
	var merge []string
	var since, output string
	cmd := &cobra.Command{
		Use:   "report [--merge FILE...]",
		Short: "Report what is confined by what, with which evidence, and what is not",
		Long: `Report which services run confined by what, since when and with which evidence,
which do not and why, what was allowed and for what reason, and which services have
no profile. It is for people at a shell; --html makes one page for a browser or for
print, --json what --merge and --since read, --csv a table. For root and members of
group adm.

With --merge the files given, each the JSON report of a host or of several, are put
together, and no daemon is asked. Of two reports of a host the newer one counts.`,
		Example: `  aaunitctl report
  aaunitctl report --json > $(hostname).json
  aaunitctl report --merge *.json --since ../last-week.json --html > fleet.html`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && len(merge) == 0 {
				return errors.New("files are for --merge")
			}
			if slices.Contains(merge, "") || slices.Contains(args, "") {
				return errors.New("the name of a file to merge is empty")
			}
			return nil
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return []string{"json"}, cobra.ShellCompDirectiveFilterFileExt
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if schema {
				_, err := a.Stdout.Write(report.Schema)
				return err
			}
			d, err := a.document(cmd.Context(), append(merge, args...))
			if err != nil {
				return err
			}
			var old *report.Document
			if since != "" {
				o, err := a.readReport(since)
				if err != nil {
					return fmt.Errorf("cannot compare with %s: %w", since, err)
				}
				old = &o
			}
			a.exit = report.Exit(d)
			out := a.Stdout
			var file bytes.Buffer
			if output != "" {
				out = &file
			}
			if err := a.writeReport(out, d, old, html, csv); err != nil {
				return err
			}
			if output != "" {
				return a.WriteFile(output, file.Bytes(), 0)
			}
			return nil
		},
	}

	cmd.Flags().BoolVar(&html, "html", false, "one page for a browser or for print")
	cmd.Flags().BoolVar(&csv, "csv", false, "a table, one row for each service")
	cmd.Flags().StringArrayVar(&merge, "merge", nil, "put together the reports in `FILE`s, without a daemon")
	cmd.Flags().StringVar(&since, "since", "", "also say what has changed since the report in a `FILE`")
	cmd.Flags().StringVarP(&output, "output", "o", "", "write to a `FILE`, all at once")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of --json")
	cmd.MarkFlagsMutuallyExclusive("html", "csv", "schema")
	return cmd
}

// document asks the daemon, or puts files together.
func (a *app) document(ctx context.Context, files []string) (report.Document, error) {
	if len(files) == 0 {
		var h attach.HostReport
		err := a.with(ctx, func(d Daemon) (err error) {
			p := a.startProgress()
			defer p.stop()
			p.say("looking")
			h, err = d.HostReport(ctx)
			return err
		})
		return report.New(h, a.Now()), err
	}
	var m report.Merger
	read := 0
	for _, file := range files {
		if err := ctx.Err(); err != nil {
			return report.Document{}, err
		}
		d, err := a.readReport(file)
		if err != nil {
			m.Refuse(filepath.Base(file), err)
			continue
		}
		read++
		m.Add(filepath.Base(file), d)
	}
	d := m.Merged(a.Now())
	if read == 0 {
		return d, fmt.Errorf("cannot merge: none of the files is a report; %s: %s", d.Left[0].From, d.Left[0].Why)
	}
	return d, nil
}

func (a *app) readReport(file string) (report.Document, error) {
	f, err := a.Open(file)
	if err != nil {
		return report.Document{}, err
	}
	defer f.Close()
	return report.Parse(f)
}

// withDrift is what --json prints: a document, and what was compared where that was
// asked for. Parse reads it as a document.
type withDrift struct {
	report.Document
	Findings []report.Finding `json:"findings"`
	Controls []report.Control `json:"controls"`
	Since    *report.Document `json:"-"`
	Drift    []report.Change  `json:"drift,omitempty"`
}

func (a *app) writeReport(w io.Writer, d report.Document, old *report.Document, html, csv bool) error {
	switch {
	case html:
		return report.HTML(w, d, old)
	case csv:
		return report.CSV(w, d)
	case a.json:
		doc := withDrift{Document: d, Controls: report.Controls(d), Findings: []report.Finding{}}
		for _, h := range d.Hosts {
			doc.Findings = append(doc.Findings, report.Findings(h, d.Made)...)
		}
		if old != nil {
			doc.Drift = report.Drift(*old, d)
		}
		b := *a
		b.Stdout = w
		return b.printJSON(doc)
	}
	p := a.printer()
	p.w = w
	p.report(d, old)
	return nil
}

var levelMarks = map[report.Level]mark{report.Bad: markBad, report.Unknown: markUnknown, report.Warn: markWarn, report.Note: markSkip}

// maxLines is how many lines of one kind a terminal gets.
const maxLines = 200

// report prints a report for somebody at a shell.
func (p *printer) report(d report.Document, old *report.Document) {
	fleet := len(d.Hosts) != 1
	c := report.CountAll(d.Hosts)
	if fleet {
		p.line("%s, put together %s", p.paint(bold, count(len(d.Hosts), "host", "hosts")), p.time(d.Made))
	} else {
		h := d.Hosts[0]
		about := []string{p.paint(bold, p.text(cmp.Or(h.Machine.Name, "this host")))}
		for _, s := range []string{h.Machine.OS, h.Machine.Kernel} {
			if s != "" {
				about = append(about, p.text(s))
			}
		}
		p.line("%s, %s", strings.Join(about, ", "), p.time(h.At))
		p.host(h.Host)
	}
	p.line("%s: %d confined, %d not confined, %d unknown, %d not running", count(c.Units(), "attached service", "attached services"), c.Confined, c.NotConfined, c.Unknown, c.NotRunning)
	if c.NotLooked < c.Hosts {
		p.line("%s, of which %d listen on the network", count(c.Network+c.Other, "service without a profile", "services without a profile"), c.Network)
	}

	if all := report.Groups(d); len(all) > 0 {
		p.title("Found")
		for i, f := range all {
			if i == maxLines {
				p.line("  %d more; --json has them all", len(all)-i)
				break
			}
			where := ""
			if f.Unit != "" {
				where = p.paint(bold, p.text(f.Unit)) + ": "
			}
			p.line("  %s %s%s", p.mark(levelMarks[f.Level]), where, p.text(f.Text))
			if fleet {
				p.line("      on %s", p.text(f.On()))
			}
			if f.Next != "" {
				p.line("      %s %s", p.mark(markNext), p.text(f.Next))
			}
		}
	}
	if old != nil {
		p.drift(report.Drift(*old, d), old, fleet)
	}
	p.reportUnits(d, fleet)
	p.reportAllowed(d, fleet)
	p.title("What auditors ask")
	for _, k := range report.Controls(d) {
		p.line("  %s %s  %s", p.mark(linkMark(k.Holds)), p.text(k.Asks), p.paint(dim, "["+strings.Join(k.Names, ", ")+"]"))
		for _, l := range wrap(k.Says, p.width-6) {
			p.line("      %s", p.text(l))
		}
	}
	if len(d.Left) > 0 {
		p.title("Left out")
		for _, l := range d.Left {
			p.line("  %s %s: %s", p.mark(markWarn), p.text(l.From), p.text(l.Why))
		}
	}
}

func (p *printer) title(s string) {
	p.line("")
	p.line("%s", p.paint(bold, s))
}

func (p *printer) drift(list []report.Change, old *report.Document, fleet bool) {
	p.title("Changed since " + p.time(old.Made))
	if len(list) == 0 {
		p.line("  Nothing that a report shows.")
	}
	for i, c := range list {
		if i == maxLines {
			p.line("  %d more; --json has them all", len(list)-i)
			break
		}
		m := markSkip
		if c.Worse == attach.Yes {
			m = markBad
		}
		where := p.text(cmp.Or(c.Unit, "the host"))
		if fleet {
			where = p.text(c.Host) + " " + where
		}
		text := p.text(c.What)
		switch {
		case c.Old != "" && c.New != "":
			text += ": " + p.text(c.Old) + " " + p.mark(markNext) + " " + p.text(c.New)
		case c.Old+c.New != "":
			text += ": " + p.text(c.Old+c.New)
		}
		p.line("  %s %s: %s", p.mark(m), p.paint(bold, where), text)
	}
}

// reportUnits prints a line for each attached service, and for a fleet one for each host.
func (p *printer) reportUnits(d report.Document, fleet bool) {
	var cells [][]string
	if fleet {
		for _, h := range d.Hosts {
			c := report.Count(h)
			cells = append(cells, []string{p.text(cmp.Or(h.Machine.Name, h.Machine.ID)), fmt.Sprint(c.Confined), fmt.Sprint(c.NotConfined), fmt.Sprint(c.Unknown), fmt.Sprint(c.Network), p.time(h.At)})
		}
		p.title("Hosts")
		p.indented([]string{"HOST", "CONFINED", "NOT CONFINED", "UNKNOWN", "ON THE NETWORK WITHOUT A PROFILE", "AS OF"}, cells)
		return
	}
	for _, u := range d.Hosts[0].Units {
		since, evidence, program := "-", "-", "-"
		if !u.Since.IsZero() {
			since = p.time(u.Since)
		}
		if e := u.Evidence; e != nil {
			evidence = fmt.Sprintf("%d %s", e.Number, p.text(e.SHA256[:min(12, len(e.SHA256))]))
			if e.Executable.Path != "" {
				program = p.text(strings.TrimSpace(e.Executable.Path + " " + e.Executable.Version))
			}
		}
		cells = append(cells, []string{p.text(u.Unit), p.text(u.Profile), report.Standing(u), since, evidence, program})
	}
	if len(cells) > 0 {
		p.title("Attached services")
		p.indented([]string{"UNIT", "PROFILE", "VERDICT", "SINCE", "EVIDENCE", "PROGRAM"}, cells)
	}
}

func (p *printer) reportAllowed(d report.Document, fleet bool) {
	var cells [][]string
	for _, h := range d.Hosts {
		for _, u := range h.Units {
			for _, a := range u.Allowed {
				unit := p.text(u.Unit)
				if fleet {
					unit = p.text(h.Machine.Name) + " " + unit
				}
				cells = append(cells, []string{unit, p.text(a.Kind), p.text(a.What), p.text(cmp.Or(a.Reason, "(none on record)"))})
			}
		}
	}
	if len(cells) > 0 {
		p.title("Allowed")
		p.indented([]string{"UNIT", "KIND", "WHAT", "REASON"}, cells)
	}
}

// indented is shifted with the first lines of a table only.
func (p *printer) indented(titles []string, cells [][]string) {
	more := max(0, len(cells)-maxLines)
	p.shifted(titles, cells[:len(cells)-more], []string{"", "", "answer"})
	if more > 0 {
		p.line("  %d more; --json has them all", more)
	}
}
