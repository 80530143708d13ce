package cli

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status [UNIT]...",
		Short: "Show what is known of AppArmor and of attached units",
		Long: `Show what is known: the last verdict of each attached unit, from the last time it
was looked at. aaunitctl verify looks again.`,
		Args:              unitArgs(0),
		ValidArgsFunction: a.completeAttached,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.report(cmd.Context(), args, Daemon.Status, Daemon.StatusJSON)
		},
	}
}

func (a *app) verifyCommand() *cobra.Command {
	var all, evidence bool
	cmd := &cobra.Command{
		Use:   "verify [UNIT]...",
		Short: "Look at attached units now, and say whether they are confined",
		Long: `Look again, now, at every task of attached units, at the policy the kernel runs
and at the settings in effect. Without arguments: all attached units.

With --evidence, compare what is found with the evidence that was recorded when
the unit was started: the texts of the profile, the policy, the drop-in, the
settings, the executable, the labels.`,
		Example: `  aaunitctl verify
  aaunitctl verify --evidence myagent`,
		Args: func(cmd *cobra.Command, args []string) error {
			if all && len(args) > 0 {
				return errors.New("--all and names of units do not go together")
			}
			return unitArgs(0)(cmd, args)
		},
		ValidArgsFunction: a.completeAttached,
		RunE: func(cmd *cobra.Command, args []string) error {
			if evidence {
				return a.verifyEvidence(cmd.Context(), args)
			}
			looking := func() (stop func()) {
				p := a.startProgress()
				p.say("looking")
				return p.stop
			}
			return a.report(cmd.Context(), args, func(d Daemon, ctx context.Context, units []string) (attach.Report, error) {
				defer looking()()
				return d.Verify(ctx, units)
			}, func(d Daemon, ctx context.Context, units []string) ([]byte, error) {
				defer looking()()
				return d.VerifyJSON(ctx, units)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all attached units (the default)")
	cmd.Flags().BoolVar(&evidence, "evidence", false, "compare with what was recorded at the start, and check the records")
	return cmd
}

// report prints the state of the host and of units. ask is for people, and text, which is
// passed on, for programs.
func (a *app) report(ctx context.Context, args []string, ask func(Daemon, context.Context, []string) (attach.Report, error), text func(Daemon, context.Context, []string) ([]byte, error)) error {
	var r attach.Report
	alone, done := false, false
	if err := a.with(ctx, func(d Daemon) (err error) {
		if a.json && !a.StdoutTTY {
			done = true
			return a.pass(text(d, ctx, args))
		}
		r, err = ask(d, ctx, args)
		return err
	}); err != nil {
		// Where AppArmor is off that is the answer, daemon or not.
		h := a.hostAlone()
		if h.Enabled != attach.No || errors.Is(err, context.Canceled) {
			return err
		}
		r, alone = attach.Report{Host: h, At: a.Now()}, true
	} else if done {
		return nil
	}
	if r.Units == nil {
		r.Units = []attach.Status{}
	}
	r.Exit = attach.ExitOfReport(r, len(args) > 0)
	a.exit = r.Exit
	if a.json {
		return a.printJSON(r)
	}
	p := a.printer()
	p.host(r.Host)
	if alone {
		return nil
	}
	for _, bad := range r.Problems {
		p.line("")
		p.reason(markBad, bad)
	}
	for _, s := range slices.Concat(r.Patterns, r.Units) {
		p.line("")
		p.status(s)
	}
	for _, m := range r.Missing {
		p.line("")
		p.missing(m)
	}
	if len(r.Units) == 0 && len(r.Missing) == 0 && len(r.Patterns) == 0 {
		hint := ""
		if code, _ := attach.ExitOfHost(r.Host); code == attach.ExitOK {
			hint = " aaunitctl attach UNIT attaches one."
		}
		p.line("No unit is attached.%s", hint)
	}
	if len(r.Units) > 1 {
		p.line("")
		p.summary(r.Units)
	}
	a.hint(p)
	return nil
}

// hint tells a user why there are so few details.
func (a *app) hint(p *printer) {
	if p.hidden && !a.Root {
		p.line("")
		p.line("The details are for root.")
	}
}

func (a *app) listCommand() *cobra.Command {
	var profiles, unconfined bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List attached units, profiles, or services without one, one on a line",
		Long: `List attached units, one on a line. With --unconfined: the services that no
attachment names and that run without a profile, the most exposed first, with the
commands that begin to confine each. For root and members of group adm.`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if unconfined {
				return a.with(ctx, func(d Daemon) error { return a.listUnconfined(ctx, d) })
			}
			if profiles {
				return a.with(ctx, func(d Daemon) error { return a.listProfiles(ctx, d) })
			}
			return a.with(ctx, func(d Daemon) error {
				if a.json && !a.StdoutTTY {
					return a.pass(d.StatusJSON(ctx, nil))
				}
				r, err := d.Status(ctx, nil)
				if err != nil {
					return err
				}
				if r.Units == nil {
					r.Units = []attach.Status{}
				}
				r.Exit = attach.ExitOfReport(r, false)
				a.exit = r.Exit
				if a.json {
					return a.printJSON(r)
				}
				p := a.printer()
				if code, _ := attach.ExitOfHost(r.Host); code != attach.ExitOK {
					p.host(r.Host)
				}
				for _, bad := range r.Problems {
					p.reason(markBad, bad)
				}
				if len(r.Units)+len(r.Patterns) == 0 {
					p.line("No unit is attached.")
					return nil
				}
				p.list(slices.Concat(r.Patterns, r.Units))
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&profiles, "profiles", false, "list the profiles under /etc/apparmor.d instead")
	cmd.Flags().BoolVar(&unconfined, "unconfined", false, "list services without a profile instead, by exposure")
	cmd.MarkFlagsMutuallyExclusive("profiles", "unconfined")
	return cmd
}

func (a *app) listProfiles(ctx context.Context, d Daemon) error {
	list, err := d.Profiles(ctx)
	if err != nil {
		return err
	}
	problems, err := d.ProfileProblems(ctx)
	switch {
	case err != nil:
		return err
	case list == nil:
		list = []attach.Profile{}
	}
	if len(problems) > 0 {
		a.exit = attach.ExitUnknown
	}
	if a.json {
		return a.printJSON(profilesDoc{list, problems})
	}
	p := a.printer()
	for _, bad := range problems {
		p.reason(markWarn, bad)
	}
	switch {
	case len(list) > 0:
		p.profiles(list)
	case len(problems) == 0:
		p.line("No profile was found under /etc/apparmor.d.")
	}
	return nil
}

// Completion never starts the daemon, never asks for a password and says
// nothing when it fails.

type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

// offer gives the candidates that fit and were not named yet. A name that a
// shell could take for something else is left out.
func offer(candidates, named []string, begun string) []string {
	var out []string
	for _, c := range candidates {
		if strings.HasPrefix(c, begun) && !slices.Contains(named, c) && (style{unicode: true}).text(c) == c && !strings.ContainsAny(c, " \t") {
			out = append(out, c)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (a *app) ask(cmd *cobra.Command, f func(Daemon) []string) []string {
	d, err := a.Dial(cmd.Context(), false, false)
	if err != nil {
		return nil
	}
	defer d.Close()
	return f(d)
}

func (a *app) attached(cmd *cobra.Command) []string {
	return a.ask(cmd, func(d Daemon) (names []string) {
		r, err := d.Status(cmd.Context(), nil)
		if err != nil {
			return nil
		}
		for _, s := range r.Units {
			names = append(names, s.Unit)
		}
		return names
	})
}

func (a *app) completeAttached(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	return offer(a.attached(cmd), args, begun), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeExplain(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	// Units that are not attached can be explained, too.
	services, _ := a.Services(cmd.Context())
	names := append(a.attached(cmd), services...)
	for _, e := range attach.Catalogue() {
		names = append(names, string(e.Code))
	}
	return offer(names, args, begun), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeServices(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	names, err := a.Services(cmd.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return offer(names, args, begun), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completeChecks(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	names, _ := a.completeServices(cmd, args, begun)
	return names, cobra.ShellCompDirectiveDefault // and files
}

func (a *app) completeFlag(cmd *cobra.Command, flag string) {
	var f completer = func(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
		names := a.ask(cmd, func(d Daemon) (names []string) {
			list, err := d.Profiles(cmd.Context())
			if err != nil {
				return nil
			}
			for _, p := range list {
				names = append(names, p.Name)
			}
			return names
		})
		return offer(names, nil, begun), cobra.ShellCompDirectiveDefault
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
		panic(err) // the flag is not there: a mistake in this file
	}
}

// *api.Client is what Main dials.
var _ Daemon = (*api.Client)(nil)
