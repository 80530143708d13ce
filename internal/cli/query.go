package cli

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

func (a *app) queryCommand() *cobra.Command {
	var all, loaded bool
	var local localFlags
	cmd := &cobra.Command{
		Use:   "query PROFILE|FILE... QUESTION",
		Short: "Ask the compiled policy of profiles whether something is allowed",
		Long: `Ask the compiled policy of profiles, the very automaton that the kernel runs,
whether something is allowed. The answer is exact, for a whole pattern: "no" was
proved of everything that matches, "yes" comes with the shortest example.

The question is one word on the shell's command line, so put it in quotes:

  [owner|other] ACCESS[,ACCESS...] PATTERN   files: read, write, append, create,
                                             delete, exec, map, lock, link, or rw
  network [FAMILY [TYPE]]
  capability [NAME]
  signal [send|receive] [PROFILE]
  ptrace [read|trace|readby|tracedby] [PROFILE]
  change-profile [NAME]
  userns

Files are asked, unless --loaded says to ask what the kernel has loaded. Where there
is no aaunitd, files are asked all the same.

The exit status is 0 where none of the profiles may, 3 where one may, and 5 where
that could not be told of one.`,
		Example: `  aaunitctl query myagent 'write /tmp/**'
  aaunitctl query /etc/apparmor.d/myagent 'network unix'
  aaunitctl query --all 'write /etc/**'
  aaunitctl query --loaded myagent 'write /etc/**'`,
		Args: func(_ *cobra.Command, args []string) error {
			switch {
			case all && len(args) != 1:
				return errors.New("--all takes one argument, the question; put it in quotes")
			case !all && len(args) < 2:
				return errors.New("name a profile and, in quotes, a question; or --all and a question")
			}
			for _, arg := range args {
				if arg == "" {
					return errors.New("an argument is empty")
				}
			}
			return nil
		},
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if loaded && local.given() {
				return usage("--loaded asks the kernel, so --offline and the options that imply it do not go with it")
			}
			question := args[len(args)-1]
			if _, err := attach.ParseAssertion(true, question); err != nil {
				return usage("cannot ask %q: %v", question, err)
			}
			if loaded {
				return a.with(cmd.Context(), func(d Daemon) error {
					out, err := d.QueryLoaded(cmd.Context(), args[:len(args)-1], question)
					if err != nil {
						return err
					}
					return a.answers(out, question, "No profile is loaded.")
				})
			}
			var names []string
			for _, arg := range args[:len(args)-1] {
				names = append(names, a.absolute(arg))
			}
			return a.answer(cmd.Context(), local, names, func(d Local) error {
				out, err := d.Query(cmd.Context(), names, question)
				if err != nil {
					return err
				}
				return a.answers(out, question, fmt.Sprintf("No profile was found under %s.", cmp.Or(local.base, "/etc/apparmor.d")))
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "ask every profile under /etc/apparmor.d or, with --loaded, every one that is loaded")
	cmd.Flags().BoolVar(&loaded, "loaded", false, "ask what the kernel has loaded, and say its checksum; for root")
	local.add(cmd)
	return cmd
}

// answersDoc is the JSON of query.
type answersDoc struct {
	Question string               `json:"question"`
	Results  []attach.QueryResult `json:"results"`
}

// answers prints answers, or that nothing was asked.
func (a *app) answers(out []attach.QueryResult, question, nothing string) error {
	a.exit = attach.ExitOfQuery(out)
	if a.json {
		return a.printJSON(answersDoc{question, out})
	}
	p := a.printer()
	if len(out) == 0 {
		p.line("%s", nothing)
	}
	counts := map[string]int{}
	for _, r := range out {
		counts[r.May]++
		if r.May == attach.MayNo && len(out) > 3 {
			continue // the others matter
		}
		m, word := markOK, "no"
		switch r.May {
		case attach.MayYes, attach.MayNotMediated:
			m, word = markBad, "yes"
		case attach.MayUnknown:
			m, word = markWarn, "unknown"
		}
		text := asked(r) + " " + r.Text
		p.rows([]row{{mark: m, label: word, text: p.firstLine(text), more: p.restLines(text)}})
	}
	if len(out) > 3 {
		p.line("%s", fmt.Sprintf("%s: %d may, %d may not, of %d it could not be told.", count(len(out), "profile", "profiles"),
			counts[attach.MayYes]+counts[attach.MayNotMediated], counts[attach.MayNo], counts[attach.MayUnknown]))
	}
	return nil
}

// asked names a profile, or a file that none could be read of; of one that is loaded,
// what the kernel says of it.
func asked(r attach.QueryResult) string {
	switch {
	case r.Profile == r.File:
		return "file " + r.File
	case r.Loaded == nil:
		return "profile " + r.Profile
	}
	sum := r.Loaded.Checksum
	if sum == "" {
		sum = "no checksum"
	}
	return fmt.Sprintf("profile %s (loaded, %s, %s)", r.Profile, r.Loaded.Mode, strings.Replace(sum, ":", " ", 1))
}
