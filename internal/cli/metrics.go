package cli

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/metrics"
	"github.com/aaunit/aaunit/internal/safefile"
)

func (a *app) metricsCommand() *cobra.Command {
	var textfile string
	cmd := &cobra.Command{
		Use:   "metrics",
		Short: "Print the daemon's numbers as Prometheus reads them",
		Long: `Print the daemon's numbers, and those of each attached unit, as Prometheus reads
them. With --textfile they are written to a file of node_exporter's textfile
collector, all at once. When aaunitd does not answer, aaunit_up is 0 in it, and
nothing but aaunit_metrics_timestamp_seconds is beside it: old numbers would look
like proof. aaunitd is not started for it.

aaunit-metrics.socket answers the same over HTTP.`,
		Example: `  aaunitctl metrics
  aaunitctl metrics --textfile /var/lib/prometheus/node-exporter/aaunit.prom`,
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if textfile != "" && a.json {
				return usage("--textfile and --json do not go together")
			}
			m, asked := a.metrics(cmd.Context())
			if asked == nil && a.json {
				return a.printJSON(m)
			}
			var b bytes.Buffer
			var err error
			switch {
			case asked == nil:
				err = metrics.Write(&b, m)
			case textfile == "":
				return asked
			default:
				err = metrics.WriteDown(&b, a.Now())
			}
			if err != nil {
				return err
			}
			if textfile == "" {
				_, err := a.Stdout.Write(b.Bytes())
				return err
			}
			if err := a.WriteFile(textfile, b.Bytes(), 0o644); err != nil {
				return err
			}
			return asked
		},
	}
	cmd.Flags().StringVar(&textfile, "textfile", "", "write them to a `FILE`, for node_exporter's textfile collector")
	if err := cmd.MarkFlagFilename("textfile", "prom"); err != nil {
		panic(err) // the flag is not there: a mistake in this file
	}
	return cmd
}

// metrics never starts the daemon: that it does not run is to be seen.
func (a *app) metrics(ctx context.Context) (attach.Metrics, error) {
	d, err := a.Dial(ctx, false, false)
	if err != nil {
		return attach.Metrics{}, err
	}
	defer d.Close()
	return d.Metrics(ctx)
}

// writeFile writes a file, and follows no link to it.
func writeFile(name string, data []byte, mode fs.FileMode) error {
	path, err := filepath.Abs(name)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", name, err)
	}
	if mode == 0 {
		mode = outputMode(path, os.Geteuid())
	}
	_, err = safefile.Write(path, data, mode)
	return err
}

// outputMode is the mode of a file that a user has written: that of the user's file which it
// takes the place of, else what the umask leaves of 0666. The mode of somebody else's file
// is not taken: it could open to that one what is written.
func outputMode(path string, uid int) fs.FileMode {
	if st, err := os.Lstat(path); err == nil && st.Mode().IsRegular() {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) == uid {
			return st.Mode().Perm()
		}
	}
	return 0o666 &^ umask()
}

// umask reads the umask from the kernel (proc_pid_status(5)): whoever asks for it with
// umask(2) changes it. Where that cannot be read nobody else is let in.
func umask() fs.FileMode {
	text, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "Umask:"); ok {
			if mask, err := strconv.ParseUint(strings.TrimSpace(value), 8, 9); err == nil {
				return fs.FileMode(mask)
			}
		}
	}
	return 0o077
}
