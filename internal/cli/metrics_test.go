package cli

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
)

func TestMetricsCommand(t *testing.T) {
	s := newScene()
	s.daemon.metrics = attach.Metrics{Version: "1.2.3", Host: hostOn, At: now, Began: now.Add(-time.Hour), Recheck: 10 * time.Minute, Units: []attach.UnitMetrics{
		{Unit: `my\x2dagent.service`, Profile: "my agent\x1b", Mode: attach.WishEnforce, State: "active", Answer: attach.NotConfined, Codes: []attach.Code{"task-unconfined"}, At: now, Denials: attach.DenialCount{Denied: 3}}}}
	if exit := s.run("metrics"); exit != attach.ExitOK {
		t.Fatalf("exit %d: %s", exit, s.err.String())
	}
	if s.dialed != "interactive=false start=false" {
		t.Errorf("a scrape may start the daemon that somebody has stopped: %s", s.dialed)
	}
	text := s.out.String()
	for _, line := range []string{"aaunit_up 1\n", `aaunit_unit_verdict{unit="my\\x2dagent.service",verdict="not-confined"} 1` + "\n", `aaunit_unit_denials_total{unit="my\\x2dagent.service",result="denied"} 3` + "\n"} {
		if !strings.Contains(text, line) {
			t.Errorf("it does not say %q:\n%s", line, text)
		}
	}
	if exit := s.run("metrics", "--textfile", "/x/aaunit.prom"); exit != attach.ExitOK || s.out.Len() > 0 || s.written["/x/aaunit.prom"] != text {
		t.Errorf("exit %d, %q", exit, s.written)
	}
	if mode := s.modes["/x/aaunit.prom"]; mode != 0o644 {
		t.Errorf("node_exporter, which is not root, reads a file of mode %o", mode)
	}
	if exit := s.run("metrics", "--json"); exit != attach.ExitOK || !strings.Contains(s.out.String(), `"answer":"not-confined"`) {
		t.Errorf("exit %d: %s", exit, s.out.String())
	}
	if exit := s.run("metrics", "--json", "--textfile", "/x"); exit != attach.ExitUsage {
		t.Errorf("exit %d", exit)
	}

	// What an earlier daemon told does not stay in the file.
	s.daemon.err = api.ErrNoDaemon
	if exit := s.run("metrics"); exit != attach.ExitFailed || s.out.Len() > 0 {
		t.Errorf("exit %d: %s", exit, s.out.String())
	}
	if exit := s.run("metrics", "--textfile", "/x/aaunit.prom"); exit != attach.ExitFailed {
		t.Errorf("exit %d", exit)
	}
	if got := s.written["/x/aaunit.prom"]; !strings.Contains(got, "aaunit_up 0\n") || strings.Contains(got, "verdict") {
		t.Errorf("without a daemon it writes %s", got)
	}
}

func TestWriteFileFollowsNoLink(t *testing.T) {
	dir := t.TempDir()
	elsewhere := filepath.Join(dir, "elsewhere")
	if err := os.WriteFile(elsewhere, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "aaunit.prom")
	if err := os.Symlink(elsewhere, link); err != nil {
		t.Fatal(err)
	}
	if err := writeFile(link, []byte("new"), 0o644); err != nil {
		t.Logf("refused: %v", err)
	}
	if got, err := os.ReadFile(elsewhere); err != nil || string(got) != "keep" {
		t.Errorf("%q, %v", got, err)
	}
}

// A report is as private as any other output of the caller's.
func TestModeOfWhatIsWritten(t *testing.T) {
	for _, c := range []struct {
		name         string
		before       fs.FileMode // of the file that is replaced; 0 there is none
		asked, umask fs.FileMode
		want         fs.FileMode
	}{
		{"new", 0, 0, 0o022, 0o644},
		{"new and private", 0, 0, 0o077, 0o600},
		{"new and of a group", 0, 0, 0o007, 0o660},
		{"in place of a private one", 0o600, 0, 0o022, 0o600},
		{"in place of an open one", 0o644, 0, 0o077, 0o644},
		{"for others, whatever the umask", 0, 0o644, 0o077, 0o644},
		{"for others, whatever was there", 0o600, 0o644, 0o077, 0o644},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "report")
			if c.before != 0 {
				if err := os.WriteFile(file, []byte("old"), c.before); err != nil {
					t.Fatal(err)
				}
				if err := os.Chmod(file, c.before); err != nil {
					t.Fatal(err)
				}
			}
			defer syscall.Umask(syscall.Umask(int(c.umask)))
			if err := writeFile(file, []byte("new"), c.asked); err != nil {
				t.Fatal(err)
			}
			if st, err := os.Stat(file); err != nil || st.Mode().Perm() != c.want {
				t.Errorf("it has mode %o, want %o: %v", st.Mode().Perm(), c.want, err)
			}
			if now := fs.FileMode(syscall.Umask(int(c.umask))); now != c.umask {
				t.Errorf("the umask has become %o", now)
			}
		})
	}
}

// Who has put a file there for root to write reads nothing of it.
func TestModeOfSomebodyElsesFileIsNotTaken(t *testing.T) {
	file := filepath.Join(t.TempDir(), "report")
	if err := os.WriteFile(file, nil, 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, 0o666); err != nil {
		t.Fatal(err)
	}
	defer syscall.Umask(syscall.Umask(0o077))
	if got := outputMode(file, os.Geteuid()); got != 0o666 {
		t.Errorf("of the user's own file: %o", got)
	}
	if got := outputMode(file, os.Geteuid()+1); got != 0o600 {
		t.Errorf("of another user's file: %o", got)
	}
}
