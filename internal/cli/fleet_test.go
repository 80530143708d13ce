package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/report"
)

// reportScene has the reports that internal/report keeps for its tests as files.
func reportScene(t *testing.T) *scene {
	t.Helper()
	s := newScene()
	s.files = map[string]string{}
	for _, name := range []string{"host.json", "earlier.json", "hostile.json"} {
		text, err := os.ReadFile(filepath.Join("..", "report", "testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		s.files[name] = string(text)
	}
	s.files["broken.json"] = `{"kind":`
	return s
}

func TestReport(t *testing.T) {
	s := reportScene(t)
	d, err := report.Parse(strings.NewReader(s.files["host.json"]))
	if err != nil {
		t.Fatal(err)
	}
	s.daemon.host = d.Hosts[0]
	s.World.Now = func() time.Time { return d.Made }
	if exit := s.run("report"); exit != attach.ExitNotConfined || s.daemon.did != "report" {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
	golden(t, "report", s.out.String())
	s.run("report", "--since", "earlier.json")
	golden(t, "report-since", s.out.String())

	// What it prints is what it reads.
	s.run("report", "--json", "--since", "earlier.json")
	back, err := report.Parse(strings.NewReader(s.out.String()))
	if err != nil || len(back.Hosts) != 1 || back.Hosts[0].Machine.Name != "edge-3" {
		t.Errorf("%v: %+v", err, back)
	}
	var doc struct {
		Findings []map[string]string
		Controls []map[string]any
		Drift    []map[string]string
	}
	if err := json.Unmarshal(s.out.Bytes(), &doc); err != nil || len(doc.Findings) != 11 || len(doc.Controls) != 5 || len(doc.Drift) != 10 || doc.Findings[0]["level"] != "bad" {
		t.Errorf("%v: %+v", err, doc)
	}
	for flag, want := range map[string]string{"--html": "<!DOCTYPE html>", "--csv": "host,host_id,"} {
		if exit := s.run("report", flag); exit != attach.ExitNotConfined || !strings.HasPrefix(s.out.String(), want) {
			t.Errorf("%s: exit %d: %.80s", flag, exit, s.out.String())
		}
		if exit := s.run("report", flag, "-o", "/x/out"); exit != attach.ExitNotConfined || s.out.Len() > 0 || !strings.HasPrefix(s.written["/x/out"], want) || s.modes["/x/out"] != 0 {
			t.Errorf("%s -o: exit %d", flag, exit)
		}
	}
	if exit := s.run("report", "--schema"); exit != attach.ExitOK || !bytes.Equal(s.out.Bytes(), report.Schema) {
		t.Errorf("--schema: exit %d", exit)
	}
}

func TestReportOfAFleet(t *testing.T) {
	s := reportScene(t)
	s.World.Dial = nil // nobody is asked
	if exit := s.run("report", "--merge", "host.json", "earlier.json", "hostile.json", "broken.json", "none.json"); exit != attach.ExitFailed {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
	if strings.ContainsAny(s.out.String(), "\x1b\u202e") {
		t.Error("a hostile report reaches the terminal")
	}
	golden(t, "report-fleet", s.out.String())
	// A comma is a part of a name, and an empty one is no name.
	if exit := s.run("report", "--merge", "host.json,earlier.json"); exit != attach.ExitFailed || !strings.Contains(s.err.String(), "host.json,earlier.json") {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
	for _, args := range [][]string{{"--merge", ""}, {"--merge="}, {"--merge", "host.json", ""}} {
		if exit := s.run(append([]string{"report"}, args...)...); exit != attach.ExitUsage {
			t.Errorf("%q: exit %d: %s", args, exit, s.err.String())
		}
	}
	if exit := s.run("report", "--merge", "host.json"); exit != attach.ExitNotConfined {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
	if exit := s.run("report", "--merge", "broken.json"); exit != attach.ExitFailed || !strings.Contains(s.err.String(), "broken.json") {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
	if exit := s.run("report", "--merge", "host.json", "--since", "broken.json"); exit != attach.ExitFailed || !strings.Contains(s.err.String(), "cannot compare with broken.json") {
		t.Errorf("exit %d: %s", exit, s.err.String())
	}
}

func TestReportUsage(t *testing.T) {
	s := reportScene(t)
	for _, args := range [][]string{{"report", "host.json"}, {"report", "--html", "--csv"}} {
		if exit := s.run(args...); exit != attach.ExitUsage {
			t.Errorf("%q: exit %d", args, exit)
		}
	}
	s.daemon.err = errors.Join(api.ErrDenied)
	if exit := s.run("report"); exit != attach.ExitFailed || s.out.Len() > 0 {
		t.Errorf("exit %d: %s", exit, s.out.String())
	}
	if exit := s.run("report", "--html", "-o", "/x/out"); exit != attach.ExitFailed || len(s.written) > 0 {
		t.Errorf("exit %d: %q", exit, s.written)
	}
}
