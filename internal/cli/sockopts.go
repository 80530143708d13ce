package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

// followEvery is how often the kernel's tables are read for --follow: a program that
// sets an option a million times makes one line a second.
const followEvery = time.Second

func (a *app) sockoptsCommand() *cobra.Command {
	var follow bool
	cmd := &cobra.Command{
		Use:   "sockopts [UNIT]...",
		Short: "Show which socket options units set and read, and hold them to a list",
		Long: `Show which socket options (setsockopt, getsockopt) attached units were seen to
use since their first start after the boot, which were refused, and what their
lists say. Nothing is shown, and nothing refused, of units whose attachment has
no [SocketOptions]: aaunitctl sockopts record UNIT begins. For root and members
of group adm; changes are for those whom polkit allows org.aaunit1.manage.

What somebody approves, revokes, enforces or records is written into the
attachment and takes effect at once, without a restart of the unit.`,
		Example: `  aaunitctl sockopts myagent
  aaunitctl sockopts approve myagent TCP_NODELAY --reason 'gRPC sends small frames'
  aaunitctl sockopts enforce myagent`,
		Args:              unitArgs(0),
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				if follow {
					return a.followSockets(cmd.Context(), d, args)
				}
				return a.sockets(cmd.Context(), d, args, (*printer).sockets)
			})
		},
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on, and print what is used as it happens")
	cmd.AddCommand(a.socketsApprove(), a.socketsRevoke(), a.socketsEnforce(), a.socketsRecord(), a.socketsExport(), a.socketsDiff())
	return cmd
}

// sockets asks, and prints each unit.
func (a *app) sockets(ctx context.Context, d Daemon, units []string, show func(*printer, attach.SocketStatus)) error {
	r, err := d.SocketOptions(ctx, units)
	if err != nil {
		return err
	}
	a.exit = socketsExit(r)
	if a.json {
		return a.printJSON(r)
	}
	p := a.printer()
	for i, s := range r.Units {
		if i > 0 {
			p.line("")
		}
		show(p, s)
	}
	for _, m := range r.Missing {
		p.missing(m)
	}
	if len(r.Units)+len(r.Missing) == 0 {
		p.line("No attached unit has its socket options recorded; aaunitctl sockopts record UNIT begins.")
	}
	return nil
}

// socketsExit: that something was refused is no failure of the command's; that it
// could not be read leaves open what was.
func socketsExit(r attach.SocketReport) attach.Exit {
	codes := []attach.Exit{attach.ExitOK}
	for _, s := range r.Units {
		if s.Problem != "" {
			codes = append(codes, attach.ExitUnknown)
		}
	}
	for _, m := range r.Missing {
		codes = append(codes, missingExit(m))
	}
	return exits(codes...)
}

func missingExit(m attach.Missing) attach.Exit {
	if m.Reason.Code == attach.UnitNotFound {
		return attach.ExitNoUnit
	}
	return attach.ExitNotConfined
}

// followSockets prints what there is and then, each second, what was used meanwhile,
// until it is interrupted.
func (a *app) followSockets(ctx context.Context, d Daemon, units []string) error {
	seen := map[string]attach.SocketUse{}
	for first := true; ; first = false {
		r, err := d.SocketOptions(ctx, units)
		if err == nil {
			a.exit = socketsExit(r)
			err = a.socketNews(r, seen, first)
		}
		if err == nil && len(units) > 0 && len(r.Units) == 0 {
			return nil // nothing can come
		}
		if err == nil {
			err = a.Sleep(ctx, followEvery)
		}
		if err != nil {
			if errors.Is(ctx.Err(), context.Canceled) {
				return nil // that is how it ends
			}
			return err
		}
	}
}

// socketNew is a line of --follow --json.
type socketNew struct {
	Unit string           `json:"unit"`
	Use  attach.SocketUse `json:"use"`
	// Allowed and Refused are how many calls there were since the line before.
	Allowed uint64 `json:"allowed"`
	Refused uint64 `json:"refused"`
}

// socketNews prints what is not in seen.
func (a *app) socketNews(r attach.SocketReport, seen map[string]attach.SocketUse, first bool) error {
	p := a.printer()
	if first && !a.json {
		for _, m := range r.Missing {
			p.missing(m)
		}
	}
	for _, s := range r.Units {
		if first && !a.json && s.Problem != "" {
			p.line("%s %s: %s", p.mark(markUnknown), p.text(s.Unit), p.text(s.Problem))
		}
		for _, rec := range s.Recorded {
			for _, u := range rec.Seen {
				key := fmt.Sprintf("%q %q %s %s %v", s.Unit, rec.Unit, u.Call, u.Option+u.Socket, u.BySystemd)
				was := seen[key]
				seen[key] = u
				n := socketNew{Unit: rec.Unit, Use: u, Allowed: since(u.Allowed, was.Allowed), Refused: since(u.Refused, was.Refused)}
				if n.Allowed+n.Refused == 0 {
					continue
				}
				if a.json {
					if err := a.printJSONLine(n); err != nil {
						return err
					}
					continue
				}
				who := p.text(cmp.Or(u.Last.Comm, "-"))
				if u.BySystemd {
					who = "systemd, before the program"
				}
				line := fmt.Sprintf("%s  %s  %s %s  %s  by %s  %s", p.time(u.Last.Time), p.paint(bold, p.text(rec.Unit)), callWord(u.Call), p.text(u.Option), p.text(u.Socket), who, times(n.Allowed+n.Refused))
				if n.Refused > 0 {
					line += "  " + p.paint(red, fmt.Sprintf("%d REFUSED", n.Refused))
				}
				p.line("%s", line)
			}
		}
	}
	return nil
}

// since is how much a count grew; one that fell was begun anew.
func since(now, before uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

func times(n uint64) string {
	if n == 1 {
		return "1 time"
	}
	return fmt.Sprintf("%d times", n)
}

// callWord is a call in a table.
func callWord(c attach.SocketCall) string { return strings.TrimSuffix(string(c), "sockopt") }

// sockets prints what is known of one unit.
func (p *printer) sockets(s attach.SocketStatus) {
	p.socketHead(s)
	if s.Declared == nil {
		return
	}
	var cells, own [][]string
	var lost, refused uint64
	for _, r := range s.Recorded {
		lost, refused = lost+r.LostAllowed+r.LostRefused, refused+r.LostRefused
		for _, u := range r.Seen {
			row := []string{callWord(u.Call), p.text(u.Option), p.text(u.Socket), fmt.Sprint(u.Allowed), fmt.Sprint(u.Refused), p.time(u.First.Time), p.time(u.Last.Time)}
			if u.BySystemd {
				own = append(own, slices.Delete(row, 4, 5))
				continue
			}
			program := cmp.Or(u.Last.Comm, "-")
			if r.Unit != s.Unit {
				program += " (" + r.Unit + ")"
			}
			cells = append(cells, append(row, p.text(program), p.text(onList(s, u))))
		}
	}
	if len(cells) > 0 {
		p.line("")
		p.shifted([]string{"CALL", "OPTION", "SOCKET", "ALLOWED", "REFUSED", "SINCE", "LAST", "PROGRAM", "LIST"}, cells, nil)
	} else if s.Problem == "" {
		p.line("  Nothing was seen since the boot, or since recording began.")
	}
	if len(own) > 0 {
		p.line("")
		p.line("  By systemd itself, before the program (never refused, and needs no place on the list):")
		p.shifted([]string{"CALL", "OPTION", "SOCKET", "COUNT", "SINCE", "LAST"}, own, nil)
	}
	if lost > 0 {
		p.line("  %s %s for options that found no place in the table, %d of them refused: more was used than is shown", p.mark(markWarn), calls(lost), refused)
	}
	if s.LeftOut > 0 {
		p.line("  %s %s did not fit into the answer; name fewer units", p.mark(markWarn), count(s.LeftOut, "kind of call", "kinds of call"))
	}
	for _, r := range s.Reasons() {
		if r.Code == attach.SocketRefused {
			p.reason(markWarn, r)
		}
	}
}

func calls(n uint64) string {
	if n == 1 {
		return "1 call"
	}
	return fmt.Sprintf("%d calls", n)
}

// onList says what a unit's list has to say of a kind of call.
func onList(s attach.SocketStatus, u attach.SocketUse) string {
	reason, ok := s.Allows(u)
	switch {
	case ok:
		return "allowed: " + reason
	case !s.WouldRefuse(u):
		return "free"
	case s.Declared != nil && s.Declared.Mode == attach.SocketsEnforce:
		return "REFUSED"
	}
	return "not on the list"
}

// socketHead says what holds, and which executable was seen.
func (p *printer) socketHead(s attach.SocketStatus) {
	p.head("", s.Unit, "", "")
	if s.Declared == nil {
		p.line("  Its attachment has no [SocketOptions]: nothing is recorded, and nothing refused.")
		p.line("      %s aaunitctl sockopts record %s", p.mark(markNext), p.text(s.Unit))
		return
	}
	get := ", all may be read"
	if s.Declared.HoldsGet() {
		get = fmt.Sprintf(", %d may be read", len(s.Declared.AllowGet))
	}
	what := map[attach.SocketMode]string{
		attach.SocketsEnforce: "all others are refused", attach.SocketsRecord: "nothing is refused", attach.SocketsOff: "nothing is recorded and nothing refused",
	}[s.Declared.Mode]
	rows := []row{{mark: markOK, label: "mode", text: p.text(fmt.Sprintf("%s: %s; the list has %s to set%s", s.Declared.Mode, what, count(len(s.Declared.Allow), "option", "options"), get))}}
	rows = append(rows, row{mark: markOK, label: "declared", text: p.text(s.Attachment)})
	if s.Problem != "" {
		r := row{mark: markUnknown, label: "recording", text: p.firstLine(s.Problem), more: p.restLines(s.Problem)}
		if s.Next != "" {
			r.more = append(r.more, p.mark(markNext)+" "+p.text(s.Next))
		}
		rows = append(rows, r)
	}
	if s.StartUnseen {
		rows = append(rows, row{mark: markWarn, label: "start", text: "not seen: it was started before the recording began, so what it uses when it starts is missing",
			more: []string{p.mark(markNext) + " systemctl restart " + p.text(s.Unit)}})
	}
	if n := len(s.History.Builds); n > 0 {
		rows = append(rows, p.buildRow(markOK, "executable", s.History.Builds[n-1]))
	}
	if len(s.Declared.Allow)+len(s.Declared.AllowGet) > 0 {
		switch s.Stale {
		case attach.Yes:
			rows = append(rows, row{mark: markWarn, label: "stale", text: p.text(s.StaleWhy), more: []string{p.mark(markNext) + " aaunitctl sockopts diff " + p.text(s.Unit)}})
		case attach.CouldNotTell:
			rows = append(rows, row{mark: markUnknown, label: "stale?", text: p.text(s.StaleWhy)})
		}
	}
	p.rows(rows)
}

func (p *printer) buildRow(m mark, label string, b attach.SocketBuild) row {
	r := row{mark: m, label: label, text: p.text(b.Program.Build())}
	more := fmt.Sprintf("seen from %s to %s in %s, on Linux %s", p.time(b.Since), p.time(b.Until), count(b.Starts, "start", "starts"), cmp.Or(b.Kernel, "of an unknown release"))
	if b.Program.BuildID != "" {
		more += ", build-id " + b.Program.BuildID
	}
	r.more = []string{p.text(more)}
	return r
}

// shifted is a table below a unit's head, a little to the right.
func (p *printer) shifted(titles []string, cells [][]string, colors []string) {
	var b strings.Builder
	q := *p
	q.w = &b
	q.table(titles, cells, colors)
	for l := range strings.Lines(b.String()) {
		p.line("  %s", strings.TrimSuffix(l, "\n"))
	}
}

// socketsDiffOf prints what the new executable uses that the old one did not.
func (p *printer) socketsDiffOf(s attach.SocketStatus) {
	if s.Declared == nil {
		p.socketHead(s)
		return
	}
	p.head("", s.Unit, "", "")
	d := s.Difference
	if d == nil {
		if n := len(s.History.Builds); n > 0 {
			p.rows([]row{p.buildRow(markOK, "executable", s.History.Builds[n-1])})
			p.line("  No other executable was seen, so there is nothing to compare it with.")
		} else {
			p.line("  No executable of it was seen yet while its socket options were recorded.")
		}
		return
	}
	p.rows([]row{p.buildRow(markOK, "new", d.New), p.buildRow(markSkip, "old", d.Old)})
	p.line("")
	if len(d.More) == 0 {
		p.line("  The new one was seen to use nothing that the old one did not.")
	} else {
		p.line("  Used by the new one, and not by the old one as far as it was seen:")
		var cells [][]string
		var missing []string
		for _, u := range d.More {
			cells = append(cells, []string{callWord(u.Call), p.text(u.Option), fmt.Sprint(u.Allowed), fmt.Sprint(u.Refused), p.time(u.Last.Time), p.text(cmp.Or(u.Last.Comm, "-")), p.text(onList(s, u))})
			if s.WouldRefuse(u) && u.Call == attach.SetSockOpt {
				missing = append(missing, u.Canonical())
			}
		}
		p.shifted([]string{"CALL", "OPTION", "ALLOWED", "REFUSED", "LAST", "PROGRAM", "LIST"}, cells, nil)
		if len(missing) > 0 {
			p.line("      %s aaunitctl sockopts approve %s %s --reason WHY", p.mark(markNext), p.text(s.Unit), p.text(strings.Join(missing, " ")))
		}
	}
	if len(d.Less) > 0 {
		p.line("")
		p.line("  Used by the old one, and not by the new one so far:")
		for _, u := range d.Less {
			p.line("    %s %s", callWord(u.Call), p.text(u.Option))
		}
	}
	if n := d.New.LeftOut + d.Old.LeftOut; n > 0 {
		p.line("  %s %s found no place on record and are not compared", p.mark(markWarn), count(n, "kind of call", "kinds of call"))
	}
	if s.Stale == attach.Yes {
		p.line("      %s aaunitctl sockopts %s %s confirms the list as it is", p.mark(markNext), s.Declared.Mode, p.text(s.Unit))
	}
}

func (a *app) socketsDiff() *cobra.Command {
	return &cobra.Command{
		Use:   "diff UNIT...",
		Short: "Show what a new build uses that the old one did not",
		Long: `Compare the socket options that the unit's present executable was seen to use
with those of the one that the list was made for, or else of the one before it.
What a build does rarely shows late: nothing is proof that it is never used.`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				return a.sockets(cmd.Context(), d, args, (*printer).socketsDiffOf)
			})
		},
	}
}

func (a *app) socketsExport() *cobra.Command {
	return &cobra.Command{
		Use:   "export UNIT",
		Short: "Print the [SocketOptions] section of an attachment file",
		Long: `Print the section that says what the unit's list says, for an attachment file.
What was seen and is not on the list stands there as comments: each needs a
reason before it is taken in.`,
		Args:              oneUnit,
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				s, err := a.socketsOf(cmd.Context(), d, args[0])
				if err != nil {
					return err
				}
				text := a.section(s)
				if a.json {
					return a.printJSON(map[string]string{"unit": s.Unit, "section": text})
				}
				_, err = io.WriteString(a.Stdout, text)
				return err
			})
		},
	}
}

// section is an export. It may go into a file, so nothing of it is fit for a
// terminal only.
func (a *app) section(s attach.SocketStatus) string {
	declared := attach.SocketOptions{Mode: attach.SocketsRecord}
	if s.Declared != nil {
		declared = *s.Declared
	}
	var b strings.Builder
	b.WriteString(declared.Section())
	plain := a.style(false)
	for _, u := range s.NotAllowed() {
		key := "Allow"
		if u.Call == attach.GetSockOpt {
			key = "AllowGet"
		}
		fmt.Fprintf(&b, "# Seen %s, last by %s on %s; not on the list:\n#%s=%s WHY\n", times(u.Allowed+u.Refused), plain.text(cmp.Or(u.Last.Comm, "?")), plain.text(u.Socket), key, plain.text(u.Canonical()))
	}
	return b.String()
}

func oneUnit(_ *cobra.Command, args []string) error {
	if len(args) != 1 || args[0] == "" {
		return errors.New("name one unit")
	}
	return nil
}

// socketsOf asks about one unit.
func (a *app) socketsOf(ctx context.Context, d Daemon, unit string) (attach.SocketStatus, error) {
	r, err := d.SocketOptions(ctx, []string{unit})
	switch {
	case err != nil:
		return attach.SocketStatus{}, err
	case len(r.Units) == 1 && r.Units[0].Problem != "":
		return r.Units[0], fmt.Errorf("cannot tell which socket options %s uses: %s", r.Units[0].Unit, r.Units[0].Problem)
	case len(r.Units) == 1:
		return r.Units[0], nil
	case len(r.Missing) > 0:
		return attach.SocketStatus{}, missingError{r.Missing[0]}
	}
	return attach.SocketStatus{}, usage("%s is %s; name one", unit, count(len(r.Units), "unit", "units"))
}

// missingError says that a unit is not attached, or not there.
type missingError struct{ attach.Missing }

func (e missingError) Error() string {
	s := "cannot find the socket options of " + e.Unit + ": " + e.Reason.String()
	if e.Reason.Next != "" {
		s += "; " + e.Reason.Next
	}
	return s
}

func (a *app) socketsApprove() *cobra.Command {
	var reason string
	var get, all, yes bool
	cmd := &cobra.Command{
		Use:   "approve UNIT [OPTION]...",
		Short: "Put socket options on a unit's list, each with the reason",
		Long: `Put socket options on a unit's list, with the reason for which it needs them: it
is what an auditor will ask for. An OPTION is LEVEL:OPTION by names or numbers
(SOL_TCP:TCP_NODELAY, IPPROTO_TCP:1, 6:1), or the name alone where only one level
has it.

--all-seen takes what was seen and is not on the list. Each is shown and asked
about; without --reason, each gets its own.`,
		Example: `  aaunitctl sockopts approve myagent TCP_NODELAY --reason 'gRPC sends small frames'
  aaunitctl sockopts approve myagent --all-seen`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 || args[0] == "":
				return errors.New("name one unit, and the options to approve")
			case all && len(args) > 1:
				return errors.New("--all-seen and options do not go together")
			case !all && len(args) == 1:
				return errors.New("name the options to approve, or say --all-seen")
			}
			return nil
		},
		ValidArgsFunction: a.completeSockets(func(s attach.SocketStatus) (names []string) {
			for _, u := range unlisted(s, callOf(get)) {
				names = append(names, u.Canonical())
			}
			return names
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			if reason != "" || !all {
				if err := attach.CheckSocketReason(reason); err != nil {
					return usage("%v (--reason)", err)
				}
			}
			return a.with(cmd.Context(), func(d Daemon) error {
				change := attach.SocketChange{Call: callOf(get), Approve: args[1:], Reason: reason}
				if !all {
					return a.changeSockets(cmd.Context(), d, args[0], change)
				}
				changes, err := a.chooseSeen(cmd.Context(), d, args[0], change, yes)
				if err != nil {
					return err
				}
				return a.changeSockets(cmd.Context(), d, args[0], changes...)
			})
		},
	}
	cmd.Flags().StringVar(&reason, "reason", "", "`WHY` the unit needs them")
	cmd.Flags().BoolVar(&all, "all-seen", false, "what was seen and is not on the list; each is shown and asked about")
	cmd.Flags().BoolVar(&get, "get", false, "for getsockopt, which is held to a list as soon as there is one")
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return cmd
}

func callOf(get bool) attach.SocketCall {
	if get {
		return attach.GetSockOpt
	}
	return attach.SetSockOpt
}

// unlisted lists what was seen of a call and is not on the list, once each.
func unlisted(s attach.SocketStatus, call attach.SocketCall) (out []attach.SocketUse) {
	for _, r := range s.Recorded {
		for _, u := range r.Seen {
			if _, ok := s.Allows(u); ok || u.Call != call || u.BySystemd {
				continue
			}
			i := slices.IndexFunc(out, func(x attach.SocketUse) bool { return x.Canonical() == u.Canonical() })
			if i < 0 {
				out = append(out, u)
				continue
			}
			out[i].Allowed, out[i].Refused = out[i].Allowed+u.Allowed, out[i].Refused+u.Refused
		}
	}
	return out
}

// chooseSeen shows what was seen and is not on the list, and asks about each. What
// comes to be seen meanwhile is not in the answer.
func (a *app) chooseSeen(ctx context.Context, d Daemon, unit string, c attach.SocketChange, yes bool) ([]attach.SocketChange, error) {
	switch {
	case yes && c.Reason == "":
		return nil, usage("--yes needs --reason")
	case !yes && !a.StdinTTY:
		return nil, usage("nobody can be asked here: name the options, or say --yes with --reason")
	}
	s, err := a.socketsOf(ctx, d, unit)
	if err != nil {
		return nil, err
	}
	p := a.asking()
	in := bufio.NewReader(a.Stdin)
	byReason := map[string]int{}
	var out []attach.SocketChange
	for _, u := range unlisted(s, c.Call) {
		p.line("%s %s  seen %s, last by %s on %s", p.mark(markUnit), p.paint(bold, p.text(u.Canonical())), times(u.Allowed+u.Refused), p.text(cmp.Or(u.Last.Comm, "?")), p.text(u.Socket))
		if u.Hurts != "" {
			p.para("Without it "+u.Hurts+".", 2)
		}
		why := c.Reason
		switch {
		case yes:
		case why == "":
			for {
				if why, err = a.answerTo(in, p, "  Why does the unit need it? (empty: leave it out) "); err != nil {
					return nil, err
				}
				bad := attach.CheckSocketReason(why)
				if why == "" || bad == nil {
					break
				}
				p.line("  %s %v", p.mark(markBad), bad)
			}
		default:
			answer, err := a.answerTo(in, p, "  Put it on the list? [y/N] ")
			if err != nil {
				return nil, err
			}
			if !isYes(answer) {
				why = ""
			}
		}
		if why == "" {
			continue
		}
		i, ok := byReason[why]
		if !ok {
			i = len(out)
			byReason[why] = i
			out = append(out, attach.SocketChange{Call: c.Call, Reason: why})
		}
		out[i].Approve = append(out[i].Approve, u.Canonical())
	}
	return out, nil
}

// asking is a printer for what a person is asked: what a script reads is on standard
// output.
func (a *app) asking() *printer {
	p := a.printer()
	p.style, p.w = a.style(a.StderrTTY), a.Stderr
	return p
}

// answerTo asks, and gives the line that comes.
func (a *app) answerTo(in *bufio.Reader, p *printer, question string) (string, error) {
	fmt.Fprint(p.w, question)
	text, err := in.ReadString('\n')
	if err != nil {
		return "", errors.New("nothing was changed: there was no answer")
	}
	return strings.TrimSpace(text), nil
}

func isYes(s string) bool { return slices.Contains([]string{"y", "yes"}, strings.ToLower(s)) }

// changeSockets has changes made, one after the other.
func (a *app) changeSockets(ctx context.Context, d Daemon, unit string, changes ...attach.SocketChange) error {
	if len(changes) == 0 {
		if a.json {
			return a.printJSON(outcomesDoc{[]attach.Outcome{}})
		}
		a.printer().line("Nothing is changed.")
		return nil
	}
	var last []attach.Outcome
	for i, c := range changes {
		p := a.startProgress()
		out, err := d.ChangeSockets(ctx, attach.Request{Units: []string{unit}, Sockets: &c}, p.event)
		p.stop()
		last = out
		if failed := len(out) == 1 && len(out[0].Reasons) > 0; err != nil || failed || i == len(changes)-1 {
			return a.printed(last, err, (*printer).outcome)
		}
	}
	return nil
}

func (a *app) socketsRevoke() *cobra.Command {
	var get bool
	cmd := &cobra.Command{
		Use:   "revoke UNIT OPTION...",
		Short: "Take socket options off a unit's list",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 || args[0] == "" {
				return errors.New("name one unit, and the options to revoke")
			}
			return nil
		},
		ValidArgsFunction: a.completeSockets(func(s attach.SocketStatus) (names []string) {
			if s.Declared == nil {
				return nil
			}
			list := s.Declared.Allow
			if get {
				list = s.Declared.AllowGet
			}
			for _, o := range list {
				names = append(names, o.Option)
			}
			return names
		}),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				return a.changeSockets(cmd.Context(), d, args[0], attach.SocketChange{Call: callOf(get), Revoke: args[1:]})
			})
		},
	}
	cmd.Flags().BoolVar(&get, "get", false, "off the list for getsockopt")
	return cmd
}

func (a *app) socketsEnforce() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use:   "enforce UNIT",
		Short: "Refuse socket options that are not on the unit's list",
		Long: `Refuse, from now on, every setsockopt for an option that is not on the unit's
list, with EPERM. What was seen and would be refused is shown first, and asked
about. On a unit that enforces already it confirms the list for the executable
that runs.`,
		Args:              oneUnit,
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				if !yes {
					if err := a.mayEnforce(cmd.Context(), d, args[0]); err != nil {
						return err
					}
				}
				return a.changeSockets(cmd.Context(), d, args[0], attach.SocketChange{Mode: attach.SocketsEnforce})
			})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask, whatever would be refused")
	return cmd
}

// mayEnforce asks where something would be refused that the unit was seen to use, or
// nothing was seen of it.
func (a *app) mayEnforce(ctx context.Context, d Daemon, unit string) error {
	s, err := a.socketsOf(ctx, d, unit)
	if err != nil {
		return err
	}
	uses := s.NotAllowed()
	seen := 0
	for _, r := range s.Recorded {
		seen += len(r.Seen)
	}
	if s.Declared != nil && s.Declared.Mode == attach.SocketsEnforce || len(uses) == 0 && seen > 0 && !s.StartUnseen {
		return nil
	}
	p := a.asking()
	switch {
	case seen == 0:
		p.line("%s nothing was recorded of %s yet, so it is not known what would be refused", p.mark(markWarn), p.text(s.Unit))
	case s.StartUnseen:
		p.line("%s %s was started before the recording began: what it uses when it starts is not known, and may be refused at its next start", p.mark(markWarn), p.text(s.Unit))
	}
	if s.StartUnseen {
		p.line("      %s systemctl restart %s", p.mark(markNext), p.text(s.Unit))
	}
	if len(uses) > 0 {
		p.line("%s %s was seen to use what is not on its list, and would be refused:", p.mark(markWarn), p.text(s.Unit))
	}
	for _, u := range uses {
		p.line("  %s %s  %s, last by %s", callWord(u.Call), p.paint(bold, p.text(u.Canonical())), times(u.Allowed+u.Refused), p.text(cmp.Or(u.Last.Comm, "?")))
		if u.Hurts != "" {
			p.para("Without it "+u.Hurts+".", 4)
		}
	}
	if !a.StdinTTY {
		return usage("nobody can be asked here: have %s restarted and approve what it needs, or say --yes", unit)
	}
	answer, err := a.answerTo(bufio.NewReader(a.Stdin), p, "Enforce the list all the same? [y/N] ")
	if err == nil && !isYes(answer) {
		err = errors.New("nothing was changed; aaunitctl sockopts approve " + unit + " --all-seen goes through what is missing")
	}
	return err
}

func (a *app) socketsRecord() *cobra.Command {
	return &cobra.Command{
		Use:   "record UNIT",
		Short: "Record socket options, and refuse none",
		Long: `Record which socket options the unit uses, and refuse none. It begins the
recording of a unit whose attachment has no [SocketOptions], and ends the
enforcement of a list, which stays.`,
		Args:              oneUnit,
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				return a.changeSockets(cmd.Context(), d, args[0], attach.SocketChange{Mode: attach.SocketsRecord})
			})
		},
	}
}

// completeSockets offers units first, and then what of gives of the one that is named.
func (a *app) completeSockets(of func(attach.SocketStatus) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return a.completeKnown(cmd, args, begun)
		}
		names := a.ask(cmd, func(d Daemon) []string {
			s, err := a.socketsOf(cmd.Context(), d, args[0])
			if err != nil {
				return nil
			}
			return of(s)
		})
		return offer(names, args[1:], begun), cobra.ShellCompDirectiveNoFileComp
	}
}
