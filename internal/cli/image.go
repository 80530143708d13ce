package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

// Image prepares the files of a system that does not run.
type Image interface {
	Attach(ctx context.Context, r attach.Request) ([]attach.Outcome, error)
	Detach(ctx context.Context, r attach.Request) ([]attach.Outcome, error)
	Status(ctx context.Context, units []string) (attach.ImageReport, error)
}

// ofRunning are the options of attach, detach, plan, status and list that are about
// a system that runs.
var ofRunning = []string{"runtime", "wait", "no-wait", "profiles", "unconfined"}

// ofImages gives commands what they do with --root, and has the others refuse it,
// subcommands among them.
func (a *app) ofImages(commands []*cobra.Command) {
	does := map[string]func(*cobra.Command, []string) error{
		"attach": a.imageAttach, "plan": a.imageAttach, "detach": a.imageDetach, "status": a.imageStatus, "list": a.imageStatus,
	}
	for _, cmd := range commands {
		name := strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")
		run, takes, do := cmd.RunE, cmd.Args, does[name]
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if a.imageRoot != "" && len(args) == 0 && (name == "attach" || name == "plan") {
				return nil // all that the image's attachment files name
			}
			return takes(cmd, args)
		}
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			switch {
			case !cmd.Flags().Changed("root"):
				return run(cmd, args)
			case do == nil:
				return usage("--root is for attach, detach, plan, status and list: %s is about a system that runs", name)
			}
			for _, name := range ofRunning {
				if f := cmd.Flags().Lookup(name); f != nil && f.Changed {
					return usage("--%s and --root do not go together: nothing runs there", name)
				}
			}
			return do(cmd, args)
		}
	}
}

// image opens the tree that --root names.
func (a *app) image() (Image, error) {
	dir, err := filepath.Abs(a.imageRoot)
	if err != nil {
		return nil, fmt.Errorf("cannot use --root=%s: %w", a.imageRoot, err)
	}
	return a.OpenImage(dir)
}

// imageRequest reads the options that attach, detach and plan share. A path of a
// profile is one of the image.
func imageRequest(cmd *cobra.Command, units []string) (r attach.Request, err error) {
	r = attach.Request{Units: units, DryRun: cmd.Name() == "plan", Trusted: true}
	f := cmd.Flags()
	take := func(name string, read func() error) {
		if err == nil && f.Lookup(name) != nil {
			err = read()
		}
	}
	take("profile", func() (e error) { r.Profile, e = f.GetString("profile"); return e })
	take("complain", func() (e error) { r.Complain, e = f.GetBool("complain"); return e })
	take("no-restart", func() (e error) { r.NoRestart, e = f.GetBool("no-restart"); return e })
	take("dry-run", func() (e error) { r.DryRun, e = f.GetBool("dry-run"); return e })
	if f.Changed("settle") {
		take("settle", func() error {
			text, e := f.GetString("settle")
			if e == nil {
				r.Settle, e = settleTime(text)
			}
			return e
		})
	}
	return r, err
}

func (a *app) imageAttach(cmd *cobra.Command, args []string) error {
	return a.imageOperate(cmd, args, Image.Attach)
}

func (a *app) imageDetach(cmd *cobra.Command, args []string) error {
	return a.imageOperate(cmd, args, Image.Detach)
}

// imageOperate says at the end what is not said of an image.
func (a *app) imageOperate(cmd *cobra.Command, args []string, do func(Image, context.Context, attach.Request) ([]attach.Outcome, error)) error {
	r, err := imageRequest(cmd, args)
	if err != nil {
		return err
	}
	i, err := a.image()
	if err != nil {
		return err
	}
	out, err := do(i, cmd.Context(), r)
	if err == nil && len(args) == 0 && len(out) == 0 {
		return fmt.Errorf("no attachment file in %s names a unit", a.imageRoot)
	}
	show := (*printer).outcome
	if r.DryRun {
		show = (*printer).plan
	}
	if err := a.printed(out, err, show); err != nil || a.json || r.DryRun {
		return err
	}
	if slices.ContainsFunc(out, func(o attach.Outcome) bool { return o.Exit == attach.ExitOK && o.Changed }) {
		p := a.printer()
		p.line("")
		p.line("Only files were changed: what comes of it shows when %s has booted.", p.text(a.imageRoot))
	}
	return nil
}

func (a *app) imageStatus(cmd *cobra.Command, args []string) error {
	i, err := a.image()
	if err != nil {
		return err
	}
	r, err := i.Status(cmd.Context(), args)
	if err != nil {
		return err
	}
	a.exit = imageExit(r, len(args) > 0)
	if a.json {
		return a.printJSON(r)
	}
	p := a.printer()
	blocks := 0
	gap := func() {
		if blocks++; blocks > 1 {
			p.line("")
		}
	}
	for _, bad := range r.Problems {
		gap()
		p.reason(markBad, bad)
	}
	for _, u := range r.Units {
		gap()
		p.imageUnit(u, cmd.Name() == "list")
	}
	for _, m := range r.Missing {
		gap()
		p.head(red, m.Unit, "", "")
		p.reason(markBad, m.Reason)
	}
	if blocks == 0 {
		p.line("No attachment file in %s names a unit.", p.text(a.imageRoot))
	}
	return nil
}

// imageExit gives the exit status: 0 says that all is prepared, and nothing about
// confinement.
func imageExit(r attach.ImageReport, named bool) attach.Exit {
	codes := []attach.Exit{attach.ExitOK}
	for _, u := range r.Units {
		switch {
		case u.Prepared == attach.Yes:
		case slices.ContainsFunc(u.Reasons, func(r attach.Reason) bool { return r.Code == attach.UnitNotFound }):
			codes = append(codes, attach.ExitNoUnit)
		case u.Prepared == attach.No:
			codes = append(codes, attach.ExitNotConfined)
		default:
			codes = append(codes, attach.ExitUnknown)
		}
	}
	if len(r.Missing) > 0 {
		codes = append(codes, attach.ExitNotConfined)
	}
	if len(r.Problems) > 0 && !named {
		codes = append(codes, attach.ExitFailed)
	}
	return exits(codes...)
}

// imageUnit prints how a unit is prepared; in short, only that.
func (p *printer) imageUnit(u attach.ImageUnit, short bool) {
	color, state := red, row{mark: markBad, label: "not ready", text: "its next start would not be confined as declared"}
	switch u.Prepared {
	case attach.Yes:
		color, state = green, row{mark: markOK, label: "prepared", text: "systemd will start it under the profile"}
	case attach.CouldNotTell:
		color, state = yellow, row{mark: markUnknown, label: "unknown", text: "whether it is prepared could not be told"}
	}
	p.head(color, u.Unit, u.Profile, u.ProfileFile)
	rows := []row{state}
	if u.Attachment != "" && !short {
		rows = append(rows, row{label: "attachment", text: p.text(u.Attachment)})
	}
	if u.DropIn != "" && !short {
		rows = append(rows, row{label: "drop-in", text: p.text(u.DropIn)})
	}
	p.rows(rows)
	if short {
		return
	}
	why := markBad
	if u.Prepared == attach.CouldNotTell {
		why = markUnknown
	}
	for _, r := range u.Reasons {
		p.reason(why, r)
	}
	for _, r := range u.Notes {
		p.reason(markWarn, r)
	}
}
