package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
)

// refusing is a daemon that answers nobody.
type refusing struct {
	*fakeDaemon
	err error
}

func (r refusing) Check(context.Context, []string) ([]attach.Outcome, error) { return nil, r.err }
func (r refusing) Query(context.Context, []string, string) ([]attach.QueryResult, error) {
	return nil, r.err
}

// The daemon is asked where it is there and answers; the rest is done here.
func TestWhoAnswers(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args   []string
		user   bool  // not root
		dial   error // there is no daemon
		answer error // it does not answer
		why    string
		says   string // the error
		exit   attach.Exit
	}{
		"the daemon":                {args: []string{"check", "/srv/p"}},
		"it fails":                  {args: []string{"check", "p"}, answer: errors.New("cannot"), exit: 1},
		"no bus":                    {args: []string{"check", "p"}, dial: fmt.Errorf("%w: x", api.ErrNoBus), why: "there is no aaunitd here"},
		"no daemon":                 {args: []string{"check", "p"}, dial: api.ErrNoDaemon, why: "aaunitd does not answer"},
		"somebody else":             {args: []string{"check", "p"}, dial: fmt.Errorf("%w: it is b.service", api.ErrNotProved), says: "it is b.service; --offline asks nobody", exit: 1},
		"a question, somebody else": {args: []string{"query", "p", "write /etc/**"}, dial: api.ErrNotProved, says: "--offline", exit: 1},
		"it may not be asked":       {args: []string{"check", "p"}, user: true, answer: api.ErrDenied, why: "polkit"},
		"a file of a user's":        {args: []string{"check", "/home/a/p"}, user: true, why: "for root only"},
		"an installed one":          {args: []string{"check", "/etc/apparmor.d/p"}, user: true},
		"offline":                   {args: []string{"check", "--offline", "p"}, why: "neither aaunitd nor the kernel"},
		"base":                      {args: []string{"check", "--base", "testdata", "p"}, why: "neither"},
		"include":                   {args: []string{"check", "-I", "testdata", "-I", ".", "p"}, why: "neither"},
		"features":                  {args: []string{"check", "--kernel-features", "cli.go", "p"}, why: "neither"},
		"no such directory":         {args: []string{"check", "-I", "nope", "p"}, exit: 2},
		"all, and no daemon":        {args: []string{"check"}, dial: api.ErrNoDaemon, exit: 1},
		"all, offline":              {args: []string{"check", "--offline"}, exit: 2},
		"a question":                {args: []string{"query", "p", "write /etc/**"}},
		"a question, no bus":        {args: []string{"query", "p", "write /etc/**"}, dial: api.ErrNoBus, why: "there is no aaunitd here"},
		"a question about all":      {args: []string{"query", "--all", "write /etc/**"}, dial: api.ErrNoBus, why: "there is no aaunitd here"},
		"what is loaded, no bus":    {args: []string{"query", "--loaded", "p", "write /etc/**"}, dial: api.ErrNoBus, exit: 1},
		"what is loaded, offline":   {args: []string{"query", "--loaded", "--offline", "p", "write /etc/**"}, exit: 2},
		"what is loaded":            {args: []string{"query", "--loaded", "p", "write /etc/**"}},
		"interrupted at a password": {args: []string{"check", "p"}, answer: context.Canceled, exit: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScene()
			s.daemon.outcomes, s.daemon.queried = []attach.Outcome{{Unit: "p"}}, []attach.QueryResult{{Profile: "p", May: attach.MayNo, Text: "may not"}}
			s.Root = !c.user
			s.Exists = func(p string) bool { _, err := os.Stat(p); return err == nil }
			s.Dial = func(context.Context, bool, bool) (Daemon, error) {
				s.dialed = "yes"
				if c.answer != nil {
					return refusing{s.daemon, c.answer}, c.dial
				}
				return s.daemon, c.dial
			}
			if exit := s.run(c.args...); exit != c.exit {
				t.Errorf("exit status %d, want %d; %s", exit, c.exit, s.err.String())
			}
			if got := strings.Join(strings.Fields(s.err.String()), " "); !strings.Contains(got, c.says) {
				t.Errorf("it says %q", got)
			}
			if (s.local != nil) != (c.why != "") || s.local != nil && (!strings.Contains(s.local.Why, c.why) || !s.localDone) {
				t.Errorf("answered here: %+v, ended %v", s.local, s.localDone)
			}
			switch name {
			case "base":
				if s.local.Base != filepath.Join(wd, "testdata") {
					t.Errorf("%+v", s.local)
				}
			case "include":
				if !slices.Equal(s.local.Include, []string{filepath.Join(wd, "testdata"), wd}) {
					t.Errorf("%+v", s.local)
				}
			case "features":
				if s.local.Features != filepath.Join(wd, "cli.go") {
					t.Errorf("%+v", s.local)
				}
			case "what is loaded":
				if s.daemon.did != "query loaded write /etc/**" || !slices.Equal(s.daemon.names, []string{"p"}) {
					t.Errorf("%s %q", s.daemon.did, s.daemon.names)
				}
			case "offline", "a file of a user's":
				if s.dialed != "" {
					t.Error("the daemon was asked all the same")
				}
			}
		})
	}
}
