package packaging_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/metrics"
)

// metricNames are the series that are written, those of histograms included.
func metricNames() (names []string) {
	for _, f := range metrics.Families() {
		names = append(names, f.Name)
		if f.Type == "histogram" {
			names = append(names, f.Name+"_bucket", f.Name+"_sum", f.Name+"_count")
		}
	}
	return names
}

var metricName = regexp.MustCompile(`\baaunit_[a-z_]+\b`)

// Alerts and the dashboard ask for metrics that there are; the manual lists them all.
func TestMetricsAgree(t *testing.T) {
	names := metricNames()
	for _, file := range []string{"prometheus/aaunit.rules.yml", "prometheus/aaunit.rules.test.yml", "prometheus/aaunit.dashboard.json"} {
		found := metricName.FindAllString(read(t, file), -1)
		if len(found) == 0 {
			t.Errorf("%s asks for nothing", file)
		}
		for _, name := range found {
			if !slices.Contains(names, name) {
				t.Errorf("%s asks for %s, which nothing writes", file, name)
			}
		}
	}
	manual := metricName.FindAllString(read(t, "man/aaunitctl.1"), -1)
	for _, f := range metrics.Families() {
		if !slices.Contains(manual, f.Name) {
			t.Errorf("aaunitctl(1) does not list %s", f.Name)
		}
	}
	for _, name := range manual {
		if !slices.Contains(names, name) {
			t.Errorf("aaunitctl(1) lists %s, which nothing writes", name)
		}
	}
}

// What is left in a textfile without a daemon is said, and nothing else.
func TestWhatIsLeftWithoutADaemonIsSaid(t *testing.T) {
	var b bytes.Buffer
	if err := metrics.WriteDown(&b, time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, m := range regexp.MustCompile(`(?m)^(aaunit_\w+)`).FindAllStringSubmatch(b.String(), -1) {
		left = append(left, m[1])
	}
	for _, file := range []string{"man/aaunitctl.1", "prometheus/README.md", "../internal/cli/metrics.go"} {
		_, text, _ := strings.Cut(read(t, file), "does not answer,")
		same(t, "metric", "WriteDown", left, file, metricName.FindAllString(text[:min(200, len(text))], -1))
	}
}

// Every alert is tested, and every test is of an alert.
func TestAlertsAreTested(t *testing.T) {
	all := func(file, pattern string) (out []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(read(t, file), -1) {
			out = append(out, m[1])
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	same(t, "alert", "aaunit.rules.yml", all("prometheus/aaunit.rules.yml", `(?m)^ +- alert: (\w+)$`),
		"aaunit.rules.test.yml", all("prometheus/aaunit.rules.test.yml", `alertname: (\w+)`))
	text := read(t, "prometheus/aaunit.rules.yml")
	if n := strings.Count(text, "- alert:"); strings.Count(text, "severity:") != n || strings.Count(text, "summary:") != n || strings.Count(text, "aaunitctl") < n-1 {
		t.Error("an alert lacks its severity, its summary or the next step")
	}
}

// The dashboard is what Grafana imports: panels with ids and places of their own,
// which ask the source that is chosen and the hosts that are chosen.
func TestDashboard(t *testing.T) {
	type source struct{ Type, UID string }
	var d struct {
		Title, UID    string
		SchemaVersion int
		Templating    struct {
			List []struct{ Name, Type string }
		}
		Panels []struct {
			ID         int
			Type       string
			Title      string
			Datasource source
			GridPos    struct{ X, Y, W, H int }
			Targets    []struct {
				Expr       string
				RefID      string `json:"refId"`
				Datasource source
			}
		}
	}
	if err := json.Unmarshal([]byte(read(t, "prometheus/aaunit.dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion < 30 || len(d.Panels) < 8 {
		t.Errorf("%+v", d)
	}
	var variables []string
	for _, v := range d.Templating.List {
		variables = append(variables, v.Name)
	}
	if !slices.Equal(variables, []string{"datasource", "instance"}) {
		t.Errorf("variables %q", variables)
	}
	chosen := source{"prometheus", "${datasource}"}
	taken := map[[2]int]string{}
	ids := map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] || p.ID == 0 || p.Title == "" || p.Datasource != chosen || len(p.Targets) == 0 {
			t.Errorf("panel %q: %+v", p.Title, p)
		}
		ids[p.ID] = true
		if p.GridPos.X < 0 || p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W < 1 || p.GridPos.H < 1 {
			t.Errorf("panel %q is at %+v", p.Title, p.GridPos)
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, is := taken[[2]int{x, y}]; is {
					t.Fatalf("panel %q lies on %q", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, q := range p.Targets {
			if q.Datasource != chosen || q.RefID == "" || !strings.Contains(q.Expr, `instance=~"$instance"`) || strings.Count(q.Expr, "(") != strings.Count(q.Expr, ")") {
				t.Errorf("panel %q asks %s", p.Title, q.Expr)
			}
		}
	}
}
