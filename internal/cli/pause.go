package cli

import (
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

func (a *app) pauseCommand() *cobra.Command {
	var span string
	cmd := &cobra.Command{
		Use:   "pause UNIT...",
		Short: "Have units left alone while something is changed on purpose",
		Long: `Change nothing about attached units for a time: put no policy and no drop-in
back, load, restart and stop nothing. aaunitd goes on looking, so the verdict is
the truth as ever. When the time is over, or with aaunitctl resume, whatever is
not as declared is put back. A second pause takes the place of the first.`,
		Example: `  aaunitctl pause myagent
  aaunitctl pause 'agent-*' --for 2h`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completeKnown,
		RunE: func(cmd *cobra.Command, args []string) error {
			d, err := attach.ParsePause(span)
			if err != nil {
				return usage("%v", err)
			}
			return a.with(cmd.Context(), func(daemon Daemon) error {
				return a.operate(cmd.Context(), daemon.Pause, attach.Request{Units: args, For: d})
			})
		},
	}
	cmd.Flags().StringVar(&span, "for", "1h", "how long, at most 7 days: a `TIME` such as 90s, 30min, 2h or 1d")
	return cmd
}

func (a *app) resumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume UNIT...",
		Short: "End a pause, and have put back what is not as declared",
		Long: `End the pause of attached units before its time. Whatever is not as declared is
put back; aaunitctl status shows how it ends.`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completePaused,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(d Daemon) error {
				return a.operate(cmd.Context(), d.Resume, attach.Request{Units: args})
			})
		},
	}
}

// pause says until when and by whom, in the reader's time zone.
func (p *printer) pause(pause attach.Pause) string {
	pause.Until = pause.Until.In(p.now.Location())
	return p.text(pause.String())
}

func (a *app) completeKnown(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	names := a.known(cmd, func(attach.Status) bool { return true })
	return offer(names, args, begun), cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completePaused(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	names := a.known(cmd, func(s attach.Status) bool { return s.Paused != nil })
	return offer(names, args, begun), cobra.ShellCompDirectiveNoFileComp
}

// known lists attached units, templates and prefixes.
func (a *app) known(cmd *cobra.Command, ok func(attach.Status) bool) []string {
	return a.ask(cmd, func(d Daemon) (names []string) {
		r, err := d.Status(cmd.Context(), nil)
		if err != nil {
			return nil
		}
		for _, s := range append(r.Patterns, r.Units...) {
			if ok(s) {
				names = append(names, s.Unit)
			}
		}
		return names
	})
}
