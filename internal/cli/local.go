package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/spf13/cobra"
)

// Local answers what needs no daemon: from compiled policy, which says the same
// everywhere. The daemon does so too, and has the kernel's word beside it.
type Local interface {
	Check(ctx context.Context, args []string) ([]attach.Outcome, error)
	Query(ctx context.Context, profiles []string, question string) ([]attach.QueryResult, error)
}

// LocalOptions are what a build machine has elsewhere.
type LocalOptions struct {
	// Why says why the daemon, and so the kernel, is not asked.
	Why string
	// Base stands in the place of /etc/apparmor.d, "" is that; included files are
	// looked for in Include before.
	Base    string
	Include []string
	// Features is a file with a kernel's features; "" means this kernel's, or those
	// that the distribution's package describes.
	Features string
}

// localFlags are those of commands that need no daemon.
type localFlags struct {
	offline bool
	base    string
	include []string
	feature string
}

func (f *localFlags) add(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&f.offline, "offline", false, "ask neither aaunitd nor the kernel; so it is done where there is no aaunitd")
	cmd.Flags().StringVar(&f.base, "base", "", "take this `DIR` for /etc/apparmor.d (implies --offline)")
	cmd.Flags().StringArrayVarP(&f.include, "include", "I", nil, "look for included files in this `DIR` first (implies --offline)")
	cmd.Flags().StringVar(&f.feature, "kernel-features", "", "compile for the kernel that this `FILE` describes (implies --offline)")
}

// options gives what the flags say; their paths are of this working directory.
func (f *localFlags) options() (o LocalOptions, err error) {
	abs := func(p string) string {
		out, e := filepath.Abs(p)
		err = errors.Join(err, e)
		return out
	}
	if f.base != "" {
		o.Base = abs(f.base)
	}
	for _, dir := range f.include {
		o.Include = append(o.Include, abs(dir))
	}
	if f.feature != "" {
		o.Features = abs(f.feature)
	}
	return o, err
}

// given reports whether somebody wants it done without the daemon.
func (f *localFlags) given() bool {
	return f.offline || f.base != "" || len(f.include) > 0 || f.feature != ""
}

// answer has ask answered by the daemon where there is one that answers this
// user, and here otherwise: a check of a file needs nobody's leave but the file's.
func (a *app) answer(ctx context.Context, f localFlags, names []string, ask func(Local) error) error {
	o, err := f.options()
	if err != nil {
		return err
	}
	for _, p := range append([]string{o.Base, o.Features}, o.Include...) {
		if p != "" && !a.Exists(p) {
			return usage("there is no %s", p)
		}
	}
	switch {
	case f.given():
		o.Why = "neither aaunitd nor the kernel was asked"
	case !a.Root && elsewhere(names):
		// The daemon would read for others what they may not.
		o.Why = "aaunitd reads files outside /etc/apparmor.d for root only"
	default:
		err := a.with(ctx, func(d Daemon) error { return ask(d) })
		switch {
		case errors.Is(err, api.ErrNoBus):
			o.Why = "there is no aaunitd here"
		case errors.Is(err, api.ErrNotProved):
			return fmt.Errorf("%w; --offline asks nobody", err) // whoever it is, somebody should know
		case errors.Is(err, api.ErrNoDaemon):
			o.Why = "aaunitd does not answer"
		case errors.Is(err, api.ErrDenied):
			o.Why = "aaunitd may only be asked by root, and whom polkit lets"
		default:
			return err
		}
	}
	l, done := a.Local(o)
	defer done()
	return ask(l)
}

// elsewhere reports whether a name is the path of a file that the daemon reads for
// root only.
func elsewhere(names []string) bool {
	for _, n := range names {
		if filepath.IsAbs(n) && filepath.Dir(filepath.Clean(n)) != "/etc/apparmor.d" && !strings.HasSuffix(n, ".conf") {
			return true
		}
	}
	return false
}
