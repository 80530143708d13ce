package cli

import (
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

// attachmentDir is where people and configuration tools put attachment files.
const attachmentDir = "/etc/aaunit/attachments.d"

// maxProposal bounds the texts of proposed files: what fits into a call on the bus.
const maxProposal = 200 << 10

// attachmentFile makes a path of what names an attachment file: its name, with or
// without .conf, or its path.
func (a *app) attachmentFile(arg string) string {
	if strings.Contains(arg, "/") {
		return a.absolute(arg)
	}
	return filepath.Join(attachmentDir, strings.TrimSuffix(arg, ".conf")+".conf")
}

func (a *app) applyCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "apply FILE...",
		Short: "Act on attachment files now, and prove it",
		Long: `Have aaunitd read attachment files again, bring the units of those that are named
to what they say, and look at every task of them. aaunitd acts on a file by
itself soon after it was written; this waits for it, and a failed attach that is
held is tried again. Units of a file that is gone are detached.

FILE is the name of a file in /etc/aaunit/attachments.d, or a path. Of the path of
a profile file, the units are meant that run under it.`,
		Example: `  aaunitctl apply agents
  aaunitctl apply /etc/aaunit/attachments.d/agents.conf --json`,
		Args:              unitArgs(1),
		ValidArgsFunction: a.completeAttachments,
		RunE: func(cmd *cobra.Command, args []string) error {
			files := make([]string, len(args))
			for i, arg := range args {
				files[i] = a.attachmentFile(arg)
			}
			return a.with(cmd.Context(), func(d Daemon) error {
				return a.operate(cmd.Context(), d.Apply, attach.Request{Units: files})
			})
		},
	}
}

func (a *app) proposeCommand() *cobra.Command {
	var gone bool
	var with []string
	cmd := &cobra.Command{
		Use:   "propose FILE [TEXT]",
		Short: "Say what would come of a text for an attachment or profile file",
		Long: `Say what would come of it if FILE had the text of the file TEXT, or without TEXT
of standard input. Nothing is written, loaded or restarted. Only for root.

Of an attachment file: the plan for each of its units, and the verdict where
there is nothing to do. FILE is its name in /etc/aaunit/attachments.d, or its
path there. Of any other path, that of a profile file: what is wrong with it,
and whether it would do for all that is attached to it, by what the attachments
assert and waive. Of a profile to which nothing is attached: what its compiled
policy allows and should not.

With --with, it is said of several files together, as they would be.`,
		Example: `  aaunitctl propose agents new-agents.conf
  aaunitctl propose agents --gone
  aaunitctl propose /etc/apparmor.d/myagent myagent.new
  aaunitctl propose /etc/apparmor.d/myagent myagent.new --with agents=new-agents.conf`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0 || args[0] == "":
				return fmt.Errorf("name the file that is to have another text")
			case gone && len(args) > 1:
				return fmt.Errorf("--gone and a text do not go together")
			case len(args) > 2:
				return fmt.Errorf("name one file, and one with its text; --with is for others")
			}
			return nil
		},
		ValidArgsFunction: a.completeAttachments,
		RunE: func(cmd *cobra.Command, args []string) error {
			first, err := a.proposedFile(args[0], gone, args[1:])
			if err != nil {
				return err
			}
			files := []attach.ProposedFile{first}
			size := len(first.Text)
			for _, w := range with {
				name, text, is := strings.Cut(w, "=")
				if !is || name == "" || text == "-" {
					return usage("--with takes FILE=TEXT, or FILE= for an attachment file that is removed, not %q", w)
				}
				f, err := a.proposedFile(name, text == "", []string{text})
				if err != nil {
					return err
				}
				if slices.ContainsFunc(files, func(g attach.ProposedFile) bool { return g.File == f.File }) {
					return usage("%s is named twice", f.File)
				}
				files = append(files, f)
				if size += len(f.Text); size > maxProposal {
					return fmt.Errorf("cannot propose these texts: together they are larger than %d bytes", maxProposal)
				}
			}
			return a.with(cmd.Context(), func(d Daemon) error {
				out, err := d.Propose(cmd.Context(), files)
				return a.printed(out, err, (*printer).proposed)
			})
		},
	}
	cmd.Flags().BoolVar(&gone, "gone", false, "as if the attachment file were removed")
	cmd.Flags().StringArrayVar(&with, "with", nil, "as if `FILE=TEXT` were written, too; FILE= is an attachment file that is removed")
	return cmd
}

// proposedFile reads the text that a file is to have, or that it is to be gone.
func (a *app) proposedFile(name string, gone bool, from []string) (attach.ProposedFile, error) {
	f := attach.ProposedFile{File: a.attachmentFile(name)}
	if gone {
		if filepath.Dir(f.File) != attachmentDir {
			return f, usage("only an attachment file can be proposed as gone: %s is not in %s", f.File, attachmentDir)
		}
		return f, nil
	}
	var err error
	f.Text, err = a.proposedText(from)
	return f, err
}

// proposedText reads the text of a file, or of standard input.
func (a *app) proposedText(from []string) (string, error) {
	name := "standard input"
	var data []byte
	var err error
	if len(from) > 0 && from[0] != "-" {
		name = from[0]
		data, err = a.ReadFile(name)
	} else {
		data, err = io.ReadAll(io.LimitReader(a.Stdin, maxProposal+1))
	}
	switch {
	case err != nil:
		return "", fmt.Errorf("cannot read the text: %w", err)
	case len(data) > maxProposal:
		return "", fmt.Errorf("cannot propose the text of %s: it is larger than %d bytes", name, maxProposal)
	case len(data) == 0:
		return "", fmt.Errorf("cannot propose the text of %s: it is empty; --gone is for an attachment file that is removed", name)
	}
	return string(data), nil
}

// proposed prints what would come of a file.
func (p *printer) proposed(o attach.Outcome) {
	switch {
	case o.Plan == nil:
		p.check(o)
	case o.Verdict == nil:
		p.plan(o)
	default: // there is nothing to do, so this is what counts
		p.head(exitColor(o.Exit), o.Unit, o.Profile, o.File)
		p.rows([]row{{mark: markSkip, label: "nothing", text: "to do for aaunitd"}, p.verdictRow(*o.Verdict, "")})
		said := map[attach.Reason]bool{}
		p.reasonsOf(o.Verdict, said)
		for _, r := range o.Notes {
			if !said[r] {
				said[r] = true
				p.reason(markWarn, r)
			}
		}
	}
}

func (a *app) completeAttachments(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
	names := a.ask(cmd, func(d Daemon) (names []string) {
		r, err := d.Status(cmd.Context(), nil)
		if err != nil {
			return nil
		}
		for _, s := range slices.Concat(r.Units, r.Patterns) {
			if s.Attachment != "" {
				names = append(names, s.Attachment)
			}
		}
		return names
	})
	return offer(names, args, begun), cobra.ShellCompDirectiveDefault
}
