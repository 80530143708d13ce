package sockopt

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Helper is what the start helper's main function needs. Its zero value is that of
// a host.
type Helper struct {
	System  *System // New(Options{}) if nil
	Store   Store   // DefaultStore if empty
	Cgroup  string  // file with the control group; /proc/self/cgroup if empty
	Version string
	Stderr  io.Writer // where what went wrong is told; nobody is told if nil
}

// The helper's exit statuses. With -required=no only the second is ever used
// beside 0.
const (
	helperFailed = 1
	helperUsage  = 2
)

// Run is the start helper: it attaches the programs to the control group in which
// it runs, with the rules that are stored for the unit named in args. It returns
// the exit status. It asks no daemon, and writes to no disk.
//
// Whether it is required stands on the command line and not with the rules, so
// that it holds also where the rules cannot be read.
func (h Helper) Run(args []string) int {
	if h.System == nil {
		h.System = New(Options{})
	}
	if h.Store == "" {
		h.Store = DefaultStore
	}
	if h.Cgroup == "" {
		h.Cgroup = "/proc/self/cgroup"
	}
	if h.Stderr == nil {
		h.Stderr = io.Discard
	}
	// The priority is read by the journal (sd-daemon(3)).
	tell := func(priority int, format string, args ...any) {
		fmt.Fprintf(h.Stderr, "<%d>aaunit-sockopts: %s\n", priority, fmt.Sprintf(format, args...))
	}
	flags := flag.NewFlagSet("aaunit-sockopts", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	required := flags.String("required", "yes", "")
	version := flags.Bool("version", false, "")
	err := flags.Parse(args)
	switch {
	case err == nil && *version:
		fmt.Fprintln(h.Stderr, "aaunit-sockopts", h.Version)
		return 0
	case err == nil && *required != "yes" && *required != "no":
		err = fmt.Errorf("-required is yes or no, and not %q", *required)
	case err == nil && flags.NArg() != 1:
		err = fmt.Errorf("it takes the name of one unit")
	}
	if err != nil {
		tell(3, "%v: it is meant for ExecStartPre=+ lines that aaunitd writes, as in: %s", err, attach.SocketStartLine(true))
		return helperUsage
	}
	unit := flags.Arg(0)
	err = h.attach(unit)
	switch {
	case err == nil:
		return 0
	case *required == "no":
		tell(4, "%v; %s starts all the same, and its socket options are neither recorded nor held to a list (Required=no)", err, unit)
		return 0
	}
	tell(3, "%v; %s does not start without its socket-option programs (Required=yes)", err, unit)
	return helperFailed
}

func (h Helper) attach(unit string) error {
	rules, _, err := h.Store.Find(unit)
	if err != nil {
		return fmt.Errorf("%w; systemctl restart aaunitd writes them anew", err)
	}
	data, err := os.ReadFile(h.Cgroup)
	if err != nil {
		return fmt.Errorf("cannot find out the control group: %w", err)
	}
	group, err := unitCgroup(data, unit)
	if err != nil {
		return err
	}
	_, err = h.System.Attach(group, unit, rules)
	return err
}

// unitCgroup finds the unit's control group in /proc/PID/cgroup (cgroups(7)) of a
// process that systemd started for it.
//
// Where the unit has Delegate=, such a process may run in a child of it, .control,
// since processes and controllers do not go together in one control group
// (exec_invoke in systemd's src/core/execute.c). The name must be the unit's:
// nothing else is to be attached to.
func unitCgroup(data []byte, unit string) (string, error) {
	for line := range strings.Lines(string(data)) {
		group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::")
		if !ok {
			continue
		}
		if path.Base(group) == ".control" {
			group = path.Dir(group)
		}
		// systemd puts a _ before names that the kernel could take for its own
		// (cg_escape in src/basic/cgroup-util.c).
		if base := path.Base(group); base != unit && base != "_"+unit {
			return "", fmt.Errorf("cannot attach to the control group %s: it is not that of %s; this is to be run by systemd, as ExecStartPre= of the unit", group, unit)
		}
		return group, nil
	}
	return "", because("cannot find the control group of "+unit, ErrNoCgroup2, errors.New("there is no line 0:: for this process"), "boot with systemd.unified_cgroup_hierarchy=1")
}
