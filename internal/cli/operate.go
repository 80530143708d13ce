package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

// operateFlags are those of attach and detach.
type operateFlags struct {
	profile   string
	runtime   bool
	complain  bool
	noRestart bool
	settleFor string
	dryRun    bool
	wait      bool
	noWait    bool
}

func (f *operateFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.noRestart, "no-restart", false, "do not restart the unit; the change takes effect at its next start")
	cmd.Flags().BoolVar(&f.dryRun, "dry-run", false, "only say what would be done")
	cmd.Flags().BoolVar(&f.wait, "wait", true, "wait for the end and print the verdict")
	cmd.Flags().BoolVar(&f.noWait, "no-wait", false, "return when the work has begun")
}

// settle makes one answer of --wait and --no-wait.
func (f *operateFlags) settle(cmd *cobra.Command) error {
	switch {
	case f.noWait && f.wait && cmd.Flags().Changed("wait"):
		return usage("--wait and --no-wait do not go together")
	case f.noWait && f.dryRun:
		return usage("--dry-run and --no-wait do not go together")
	}
	f.noWait = f.noWait || !f.wait
	return nil
}

// settleTime reads --settle, which is written as SettleSec= is.
func settleTime(text string) (*time.Duration, error) {
	d, err := attach.ParseSettle(text)
	if err != nil {
		return nil, usage("%v", err)
	}
	return &d, nil
}

func (a *app) request(f operateFlags, units []string) attach.Request {
	return attach.Request{
		Units: units, Profile: a.absolute(f.profile),
		Runtime: f.runtime, Complain: f.complain, NoRestart: f.noRestart, DryRun: f.dryRun,
	}
}

// absolute makes an absolute path of a relative one: the daemon does not know
// where we are. A profile's name may hold slashes too, so what is not there and
// does not begin like a path is a name.
func (a *app) absolute(s string) string {
	if !strings.Contains(s, "/") || filepath.IsAbs(s) {
		return s
	}
	if !strings.HasPrefix(s, "./") && !strings.HasPrefix(s, "../") && !a.Exists(s) {
		return s
	}
	if abs, err := filepath.Abs(s); err == nil {
		return abs
	}
	return s
}

// unitArgs takes at least one name, none of them empty.
func unitArgs(least int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least {
			return fmt.Errorf("name at least one unit")
		}
		for _, arg := range args {
			if arg == "" {
				return fmt.Errorf("a unit's name is empty")
			}
		}
		return nil
	}
}

func (a *app) attachCommand() *cobra.Command {
	var f operateFlags
	cmd := &cobra.Command{
		Use:   "attach UNIT...",
		Short: "Run units under an AppArmor profile, and prove it",
		Long: `Load the profile, write the drop-in, restart the unit if it runs, and look at
every task of it. A unit that does not come up confined and healthy goes back to
what it was before.

PROFILE may be the profile's internal name, a file name in /etc/apparmor.d, or a
path. Without it the profile is the one that the unit names already, or that
attaches to its executable, or that is called like it.`,
		Example: `  aaunitctl attach myagent
  aaunitctl attach 'agent-*.service' --profile agent --dry-run`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.settle(cmd); err != nil {
				return err
			}
			r, ctx := a.request(f, args), cmd.Context()
			if cmd.Flags().Changed("settle") {
				var err error
				if r.Settle, err = settleTime(f.settleFor); err != nil {
					return err
				}
			}
			return a.with(ctx, func(d Daemon) error {
				switch {
				case f.dryRun:
					out, err := d.Plan(ctx, r)
					return a.printed(out, err, (*printer).plan)
				case f.noWait:
					return a.started(d.StartAttach(ctx, r))
				}
				return a.operate(ctx, d.Attach, r)
			})
		},
	}
	cmd.Flags().StringVarP(&f.profile, "profile", "p", "", "the `PROFILE`: a name, a file in /etc/apparmor.d, or a path")
	cmd.Flags().BoolVar(&f.runtime, "runtime", false, "until the next boot only")
	cmd.Flags().BoolVar(&f.complain, "complain", false, "in complain mode: log, and allow")
	cmd.Flags().StringVar(&f.settleFor, "settle", attach.DefaultSettle.String(), "how long the unit must stay healthy, at most 10 minutes: a `TIME` such as 10s or 1min; 0 does not wait")
	f.add(cmd)
	a.completeFlag(cmd, "profile")
	return cmd
}

func (a *app) detachCommand() *cobra.Command {
	var f operateFlags
	cmd := &cobra.Command{
		Use:   "detach UNIT...",
		Short: "Take back what attach did",
		Long: `Remove the drop-in and restart the unit if it runs. A profile that was loaded by
the attach is unloaded, unless a task on this machine carries it.`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completeAttached,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.settle(cmd); err != nil {
				return err
			}
			r, ctx := a.request(f, args), cmd.Context()
			return a.with(ctx, func(d Daemon) error {
				switch {
				case f.dryRun:
					out, err := d.Detach(ctx, r, nil)
					return a.printed(out, err, (*printer).plan)
				case f.noWait:
					return a.started(d.StartDetach(ctx, r))
				}
				return a.operate(ctx, d.Detach, r)
			})
		},
	}
	f.add(cmd)
	return cmd
}

func (a *app) planCommand() *cobra.Command {
	var profile string
	cmd := &cobra.Command{
		Use:   "plan UNIT...",
		Short: "Say what attach would do, and what a restart takes along",
		Long: `Say what attach would do: each step with its reason, everything that speaks
against it, the units that a restart takes along, and the files that the unit
has open in /tmp and would not see in a private one. Nothing is changed.`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completeServices,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				out, err := d.Plan(cmd.Context(), attach.Request{Units: args, Profile: a.absolute(profile)})
				return a.printed(out, err, (*printer).plan)
			})
		},
	}
	cmd.Flags().StringVarP(&profile, "profile", "p", "", "the `PROFILE`: a name, a file in /etc/apparmor.d, or a path")
	a.completeFlag(cmd, "profile")
	return cmd
}

func (a *app) checkCommand() *cobra.Command {
	var sarif bool
	var local localFlags
	cmd := &cobra.Command{
		Use:   "check [FILE|PROFILE|UNIT]...",
		Short: "Look for ways around a profile, without changing anything",
		Long: `Look for every way in which a unit could run without its profile, for what is
wrong in a profile file or an attachment file, and for what the compiled policy
allows and should not. Without arguments: all attached units, templates and
prefixes. Nothing is changed, loaded or restarted.

Where there is no aaunitd, as on a build machine, or it may not be asked, the
answers come from the compiled policy alone; what only the kernel could add is
shown as not asked, and is no failure. Units are looked at where systemd runs.

--sarif prints SARIF 2.1.0, for code review tools.`,
		Example: `  aaunitctl check myagent
  aaunitctl check --offline -I ./abstractions ./myagent`,
		Args:              unitArgs(0),
		ValidArgsFunction: a.completeChecks,
		RunE: func(cmd *cobra.Command, args []string) error {
			names := make([]string, len(args))
			for i, arg := range args {
				names[i] = a.absolute(arg)
			}
			answer := a.answer
			if len(args) == 0 {
				// Which units are attached only the daemon knows.
				answer = func(ctx context.Context, f localFlags, _ []string, ask func(Local) error) error {
					if f.given() {
						return usage("name files, profiles or units: without aaunitd it is not known which units are attached")
					}
					return a.with(ctx, func(d Daemon) error { return ask(d) })
				}
			}
			return answer(cmd.Context(), local, names, func(d Local) error {
				out, err := d.Check(cmd.Context(), names)
				for i := range out {
					a.fileHere(&out[i])
				}
				// Where nothing is attached there is nothing to find, which is no failure.
				none := len(out) == 0 && len(args) == 0
				if err == nil && (sarif || a.json && (len(out) > 0 || none)) {
					codes := []attach.Exit{attach.ExitOK}
					for _, o := range out {
						codes = append(codes, o.Exit)
					}
					a.exit = exits(codes...)
					if sarif {
						return a.printJSON(a.sarif(out))
					}
					if none {
						out = []attach.Outcome{} // an empty list, and not null
					}
					return a.printJSON(checkDoc{outcomesDoc{out}, codesDoc{named(out)}})
				}
				if err == nil && none {
					a.printer().line("No unit is attached.")
					return nil
				}
				return a.printed(out, err, (*printer).check)
			})
		},
	}
	cmd.Flags().BoolVar(&sarif, "sarif", false, "print SARIF 2.1.0, for code review tools")
	local.add(cmd)
	return cmd
}

// fileHere tells who wrote the bare name of a file how files are named.
func (a *app) fileHere(o *attach.Outcome) {
	if len(o.Reasons) != 1 || strings.Contains(o.Unit, "/") || !a.Exists(o.Unit) {
		return
	}
	if r := &o.Reasons[0]; r.Code == attach.SystemdUnheard || r.Code == attach.UnitNotFound {
		*r = r.WithNext("there is a file of that name here: aaunitctl check ./" + o.Unit)
	}
}

// operate runs an operation to its end, with its progress on the terminal.
func (a *app) operate(ctx context.Context, run func(context.Context, attach.Request, func(attach.Event)) ([]attach.Outcome, error), r attach.Request) error {
	p := a.startProgress()
	out, err := run(ctx, r, p.event)
	p.stop()
	return a.printed(out, err, (*printer).outcome)
}

// printed prints outcomes, those that came with an error too.
func (a *app) printed(out []attach.Outcome, err error, show func(*printer, attach.Outcome)) error {
	if err != nil && len(out) == 0 {
		return err
	}
	if len(out) == 0 {
		// A glob that matches nothing is no success.
		if a.json {
			return fmt.Errorf("%w", errNothing)
		}
		return fmt.Errorf("%w; systemctl list-unit-files --type=service shows the ones that exist", errNothing)
	}
	var codes []attach.Exit
	p := a.printer()
	for i, o := range out {
		codes = append(codes, o.Exit)
		if a.json {
			continue
		}
		if i > 0 {
			p.line("")
		}
		show(p, o)
	}
	a.exit = exits(codes...)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(outcomesDoc{out})
	}
	return nil
}

// named are the codes of what a check found, in the order of the catalogue.
func named(out []attach.Outcome) []attach.Entry {
	said := map[attach.Code]bool{}
	add := func(reasons ...attach.Reason) {
		for _, r := range reasons {
			said[r.Code] = true
		}
	}
	for _, o := range out {
		add(o.Reasons...)
		add(o.Notes...)
		if o.Plan != nil {
			add(o.Plan.Refusals...)
			add(o.Plan.Warnings...)
			add(o.Plan.Pending...)
		}
		for _, f := range o.Findings {
			add(f.Reason)
		}
	}
	return slices.DeleteFunc(attach.Catalogue(), func(e attach.Entry) bool { return !said[e.Code] })
}

func (a *app) started(operation string, err error) error {
	switch {
	case err != nil:
		return err
	case a.json:
		return a.printJSON(operationDoc{operation})
	}
	a.printer().line("aaunitd has begun; aaunitctl status shows how it ends.")
	return nil
}
