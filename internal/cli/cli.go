package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"
)

// Daemon is what the commands ask of aaunitd; *api.Client is one.
type Daemon interface {
	Attach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Detach(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Pause(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Resume(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Apply(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Propose(ctx context.Context, files []attach.ProposedFile) ([]attach.Outcome, error)
	StartAttach(ctx context.Context, r attach.Request) (operation string, err error)
	StartDetach(ctx context.Context, r attach.Request) (operation string, err error)
	Plan(ctx context.Context, r attach.Request) ([]attach.Outcome, error)
	Verify(ctx context.Context, units []string) (attach.Report, error)
	VerifyEvidence(ctx context.Context, units []string) (attach.EvidenceReport, error)
	Status(ctx context.Context, units []string) (attach.Report, error)
	// VerifyJSON and StatusJSON give the report as aaunitd has written it.
	VerifyJSON(ctx context.Context, units []string) ([]byte, error)
	StatusJSON(ctx context.Context, units []string) ([]byte, error)
	Profiles(ctx context.Context) ([]attach.Profile, error)
	ProfileProblems(ctx context.Context) ([]attach.Reason, error)
	Check(ctx context.Context, args []string) ([]attach.Outcome, error)
	Query(ctx context.Context, profiles []string, question string) ([]attach.QueryResult, error)
	QueryLoaded(ctx context.Context, profiles []string, question string) ([]attach.QueryResult, error)
	Explain(ctx context.Context, units []string) (attach.CaseReport, error)
	Denials(ctx context.Context, units []string, since time.Time) (attach.DenialReport, error)
	WaitDenials(ctx context.Context, units []string, cursor string) (attach.DenialReport, error)
	Exposed(ctx context.Context) (attach.ExposureReport, error)
	Metrics(ctx context.Context) (attach.Metrics, error)
	HostReport(ctx context.Context) (attach.HostReport, error)
	SocketOptions(ctx context.Context, units []string) (attach.SocketReport, error)
	ChangeSockets(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error)
	Close() error
}

// World is what the commands see of the machine and the terminal.
type World struct {
	Stdin                io.Reader
	Stdout, Stderr       io.Writer
	StdoutTTY, StderrTTY bool
	// StdinTTY: a person can answer.
	StdinTTY bool
	// Columns is the terminal's width.
	Columns func() int
	Getenv  func(string) string
	Root    bool
	Now     func() time.Time
	// Sleep waits; an error says that ctx ended first.
	Sleep func(ctx context.Context, d time.Duration) error
	// Dial reaches the daemon. interactive lets polkit ask for a password;
	// without start, a daemon that does not run is not started.
	Dial func(ctx context.Context, interactive, start bool) (Daemon, error)
	// Services lists the services of systemd.
	Services func(ctx context.Context) ([]string, error)
	// Local gives what answers without a daemon, and what ends it.
	Local    func(LocalOptions) (Local, func())
	ReadFile func(string) ([]byte, error)
	// Open opens a file for reading.
	Open func(string) (io.ReadCloser, error)
	// WriteFile puts a file with that mode in place of what is there, all at once. 0 is
	// the mode that a file has which a shell writes.
	WriteFile func(name string, data []byte, mode fs.FileMode) error
	// Exists reports whether a file is there, as seen from the working directory.
	Exists func(string) bool
	// OpenImage gives the system below a directory, for --root.
	OpenImage func(dir string) (Image, error)
	Version   string
}

// Main is aaunitctl; it gives the exit status. local gives what answers without a
// daemon, and what ends it; image gives the system below a directory.
func Main(version string, local func(LocalOptions) (Local, func()), image func(dir string) (Image, error)) int {
	debug.SetGCPercent(800) // it ends before there is much to collect
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The second Ctrl-C ends the program in any case.
	context.AfterFunc(ctx, stop)
	w := World{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		StdoutTTY: term.IsTerminal(int(os.Stdout.Fd())), StderrTTY: term.IsTerminal(int(os.Stderr.Fd())),
		StdinTTY: term.IsTerminal(int(os.Stdin.Fd())),
		Columns: func() int {
			for _, f := range []*os.File{os.Stdout, os.Stderr} {
				if n, _, err := term.GetSize(int(f.Fd())); err == nil && n > 0 {
					return n
				}
			}
			return 80
		},
		Getenv: os.Getenv,
		Root:   os.Geteuid() == 0,
		Now:    time.Now,
		Sleep: func(ctx context.Context, d time.Duration) error {
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(d):
				return nil
			}
		},
		Dial: func(ctx context.Context, interactive, start bool) (Daemon, error) {
			// A nil *api.Client must not become a Daemon that is not nil.
			c, err := api.Dial(ctx, api.DialOptions{Socket: socket(), Interactive: interactive, NoStart: !start})
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		Services:  func(ctx context.Context) ([]string, error) { return api.Services(ctx, api.DialOptions{}) },
		Local:     local,
		ReadFile:  os.ReadFile,
		Open:      func(name string) (io.ReadCloser, error) { return os.Open(name) },
		WriteFile: writeFile,
		Exists:    func(name string) bool { _, err := os.Stat(name); return err == nil },
		OpenImage: image,
		Version:   version,
	}
	return int(Run(ctx, os.Args[1:], w))
}

// socket is aaunitd's own socket; "" where somebody says that it is to be asked on another bus.
func socket() string {
	if os.Getenv("DBUS_SYSTEM_BUS_ADDRESS") != "" {
		return ""
	}
	return api.Socket
}

// Run runs one command line.
func Run(ctx context.Context, args []string, w World) attach.Exit {
	a := &app{World: w}
	root := a.root()
	root.InitDefaultHelpCmd()
	for _, cmd := range root.Commands() {
		if cmd.Name() == "help" {
			cmd.Args = helpArgs
		}
	}
	root.SetArgs(args)
	root.SetOut(w.Stdout)
	root.SetErr(w.Stderr)
	err := root.ExecuteContext(ctx)
	if err != nil {
		a.complain(err)
	}
	return a.exit
}

// app is one run of the program.
type app struct {
	World
	json    bool
	noColor bool
	// imageRoot is --root.
	imageRoot string

	began bool // the command line was understood, and a command runs
	exit  attach.Exit
}

// exits combines the exit statuses of units. One that this version does not
// know is a failure, never a success.
func exits(list ...attach.Exit) attach.Exit {
	for i, e := range list {
		if e < attach.ExitOK || e > attach.ExitUnknown {
			list[i] = attach.ExitFailed
		}
	}
	return attach.WorstExit(list...)
}

const about = `aaunitctl attaches AppArmor profiles to systemd services, and proves it.

The work is done by aaunitd, which is started on demand. Commands that change
something or cost something are for root, and for users whom polkit allows
org.aaunit1.manage, or org.aaunit1.inspect where nothing is changed.`

const exitHelp = `
Exit status:
  0  done; every unit that was asked about is confined
  1  failed
  2  the command line is wrong
  3  not confined
  4  no such unit
  5  unknown whether it is confined
`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "aaunitctl",
		Short:         "Attach AppArmor profiles to systemd services, and prove it",
		Long:          about,
		Version:       a.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("name a command")
			}
			if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
				return fmt.Errorf("unknown command %q; did you mean %s?", args[0], strings.Join(near, " or "))
			}
			return fmt.Errorf("unknown command %q", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.SetVersionTemplate("aaunitctl {{.Version}}\n")
	// The bare name is no command line of its own.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(), "{{if .Runnable}}", "{{if and .Runnable .HasParent}}", 1) + exitHelp)
	root.SuggestionsMinimumDistance = 2
	root.PersistentFlags().BoolVar(&a.json, "json", false, "print one JSON document")
	root.PersistentFlags().BoolVar(&a.noColor, "no-color", false, "no colours (also: NO_COLOR in the environment)")
	root.PersistentFlags().StringVar(&a.imageRoot, "root", "", "prepare the system below `DIR`, which does not run (attach, detach, plan, status, list)")
	root.AddCommand(
		a.attachCommand(), a.detachCommand(), a.pauseCommand(), a.resumeCommand(), a.applyCommand(), a.proposeCommand(), a.statusCommand(), a.listCommand(), a.verifyCommand(),
		a.planCommand(), a.explainCommand(), a.denialsCommand(), a.sockoptsCommand(), a.metricsCommand(), a.reportCommand(), a.checkCommand(), a.queryCommand(), a.completionCommand(), a.versionCommand(),
	)
	if err := root.MarkPersistentFlagDirname("root"); err != nil {
		panic(err) // the flag is not there: a mistake in this file
	}
	all := below(root)
	a.ofImages(all)
	for _, cmd := range all {
		// Whatever fails before this is a mistake in the command line.
		run := cmd.RunE
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if err := noneEmpty(cmd); err != nil {
				return err
			}
			a.began = true
			return run(cmd, args)
		}
	}
	return root
}

// noneEmpty refuses an option with an empty text, as a variable of a script has that was
// never set: it is not the same as no option.
func noneEmpty(cmd *cobra.Command) (err error) {
	cmd.Flags().Visit(func(f *pflag.Flag) {
		if err == nil && f.Value.Type() == "string" && f.Value.String() == "" {
			what, _ := pflag.UnquoteUsage(f)
			err = fmt.Errorf("--%s is empty: give a %s, or leave the option out", f.Name, what)
		}
	})
	return err
}

// helpArgs refuses what there is no help on; cobra's own help shows that of the program.
func helpArgs(cmd *cobra.Command, args []string) error {
	found, rest, err := cmd.Root().Find(args)
	switch {
	case err != nil:
		return err
	case len(rest) > 0 && found == cmd.Root():
		return found.Args(found, rest)
	case len(rest) > 0:
		return fmt.Errorf("%s has no command %q", found.CommandPath(), rest[0])
	}
	return nil
}

// below lists the commands of a command, with theirs.
func below(cmd *cobra.Command) (all []*cobra.Command) {
	for _, sub := range cmd.Commands() {
		all = append(append(all, sub), below(sub)...)
	}
	return all
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json {
				return a.printJSON(map[string]string{"version": a.Version})
			}
			_, err := fmt.Fprintf(a.Stdout, "aaunitctl %s\n", a.Version)
			return err
		},
	}
}

func (a *app) completionCommand() *cobra.Command {
	return &cobra.Command{
		Use:       "completion bash|zsh|fish",
		Short:     "Print the completion script for a shell",
		ValidArgs: []string{"bash", "zsh", "fish"},
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch root := cmd.Root(); args[0] {
			case "bash":
				return root.GenBashCompletionV2(a.Stdout, true)
			case "zsh":
				return root.GenZshCompletion(a.Stdout)
			default:
				return root.GenFishCompletion(a.Stdout, true)
			}
		},
	}
}

// printer is for standard output.
func (a *app) printer() *printer {
	return &printer{style: a.style(a.StdoutTTY), w: a.Stdout, now: a.Now(), width: a.paper(), fold: a.StdoutTTY}
}

func (a *app) style(tty bool) style {
	return style{
		color:   tty && !a.noColor && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb",
		unicode: utf8Locale(a.Getenv),
	}
}

// paper is the width for sentences: long lines are hard to read, however wide
// the terminal is.
func (a *app) paper() int {
	if !a.StdoutTTY {
		return 80
	}
	return max(40, min(a.Columns(), 100))
}

// utf8Locale follows locale(7): the first of these that is set counts.
func utf8Locale(getenv func(string) string) bool {
	for _, name := range []string{"LC_ALL", "LC_CTYPE", "LANG"} {
		if v := getenv(name); v != "" {
			v = strings.ToLower(v)
			return strings.Contains(v, "utf-8") || strings.Contains(v, "utf8")
		}
	}
	return false
}

// dial reaches the daemon for a command that a person gave.
func (a *app) dial(ctx context.Context) (Daemon, error) {
	return a.Dial(ctx, !a.Root && a.StderrTTY, true)
}

// with runs f with a daemon.
func (a *app) with(ctx context.Context, f func(Daemon) error) error {
	d, err := a.dial(ctx)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(d)
}

// hostAlone looks at AppArmor without the daemon; it is for the sentence that
// matters most where there is none. systemd looks at the same file.
func (a *app) hostAlone() (h attach.Host) {
	b, err := a.ReadFile("/sys/module/apparmor/parameters/enabled")
	switch {
	case errors.Is(err, os.ErrNotExist):
		h.Enabled = attach.No // no module at all
	case err != nil:
		h.Problem = err.Error()
	case strings.TrimSpace(string(b)) == "Y":
		h.Enabled = attach.Yes
	default:
		h.Enabled = attach.No
	}
	return h
}

// problem is an error with its kind, for scripts.
type problem struct {
	Message string      `json:"message"`
	Kind    string      `json:"kind"`
	Exit    attach.Exit `json:"exit"`
}

// errNothing is for globs that match nothing.
var errNothing = errors.New("no unit matches")

func (a *app) complain(err error) {
	p := problem{Message: err.Error(), Kind: "failed", Exit: attach.ExitFailed}
	var missing missingError
	switch {
	case !a.began:
		p.Kind, p.Exit = "usage", attach.ExitUsage
	case errors.Is(err, errUsage) || errors.Is(err, api.ErrBad):
		p.Kind, p.Exit = "usage", attach.ExitUsage
	case errors.Is(err, errNothing):
		p.Kind, p.Exit = "no-unit", attach.ExitNoUnit
	case errors.As(err, &missing):
		p.Kind, p.Exit = string(missing.Reason.Code), missingExit(missing.Missing)
	case errors.Is(err, api.ErrNoBus):
		p.Kind = "no-bus"
	case errors.Is(err, api.ErrNoDaemon):
		p.Kind = "no-daemon"
	case errors.Is(err, api.ErrDenied):
		p.Kind = "denied"
	case errors.Is(err, api.ErrUnderWay):
		p.Kind = "interrupted"
		p.Message = "interrupted: aaunitd goes on with the work; aaunitctl status shows how it ends"
	case errors.Is(err, context.Canceled):
		p.Kind = "interrupted"
		p.Message = "interrupted; aaunitctl status shows whether anything was begun"
	case errors.Is(err, api.ErrGone):
		p.Kind = "daemon-ended"
	}
	a.exit = p.Exit
	st := a.style(a.StderrTTY)
	fmt.Fprintf(a.Stderr, "%s %s\n", st.paint(red, "aaunitctl:"), strings.Join(st.lines(p.Message), "\n  "))
	if p.Kind == "usage" {
		fmt.Fprintln(a.Stderr, "See aaunitctl --help, and aaunitctl COMMAND --help.")
	}
	if a.json {
		_ = a.printJSON(map[string]problem{"error": p})
	}
}

var errUsage = errors.New("wrong arguments")

func usage(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

type usageError struct{ error }

func (usageError) Is(target error) bool { return target == errUsage }
