package cli

import (
	"os"
	"path/filepath"
	"strings"
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
	if exit := s.run("metrics", "--json"); exit != attach.ExitOK || !strings.Contains(s.out.String(), `"answer": "not-confined"`) {
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
	if err := writeFile(link, []byte("new")); err != nil {
		t.Logf("refused: %v", err)
	}
	if got, err := os.ReadFile(elsewhere); err != nil || string(got) != "keep" {
		t.Errorf("%q, %v", got, err)
	}
}
