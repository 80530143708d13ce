package metrics

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/aaunit/aaunit/internal/attach"
)

var now = time.Date(2026, 6, 1, 12, 0, 0, 0, time.UTC)

func sample() attach.Metrics {
	m := attach.Metrics{Version: "1.0", Host: attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce}, Began: now.Add(-time.Hour), At: now, Recheck: 10 * time.Minute,
		Patterns: 6, PatternsHeld: 3, PatternsRefused: 4, PatternsOpen: 2, PatternsOpenPaused: 1, Problems: 2, OtherDenials: attach.DenialCount{Denied: 4, Killed: 1}, DenialsLost: 5, Looks: 17,
		Units: []attach.UnitMetrics{
			{Unit: "good.service", Profile: "good", Mode: attach.WishEnforce, State: "active", Answer: attach.Confined, At: now.Add(-time.Minute), Tasks: 3, Sockets: &attach.SocketMetrics{Stale: attach.No}},
			{Unit: `a\x2db@"\n.service`, Profile: "b\nc", Mode: attach.WishComplain, State: "active", Answer: attach.NotConfined, Codes: []attach.Code{"task-complain", "task-unconfined"}, At: now, Held: true, Denials: attach.DenialCount{Denied: 3, Allowed: 2}, Sockets: &attach.SocketMetrics{Stale: attach.Yes, Refused: 7}},
			{Unit: "no-list.service", Profile: "no-list", Mode: attach.WishEnforce, State: "active", Answer: attach.Confined, At: now, Sockets: &attach.SocketMetrics{Refused: 1}},
			{Unit: "never.service", Profile: "never", Mode: attach.WishEnforce, Pending: true, Paused: true},
		}}
	m.Passes.Add(100 * time.Millisecond)
	m.Passes.Add(7 * time.Second)
	m.Passes.Add(time.Hour)
	return m
}

func parse(t *testing.T, text string) map[string]*dto.MetricFamily {
	t.Helper()
	p := expfmt.NewTextParser(model.LegacyValidation)
	families, err := p.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatalf("Prometheus does not read it: %v\n%s", err, text)
	}
	return families
}

func TestWrite(t *testing.T) {
	var b bytes.Buffer
	if err := Write(&b, sample()); err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(strings.NewReader(b.String())).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	families := parse(t, b.String())
	if len(families) != len(Families()) {
		t.Errorf("%d families, %d are listed", len(families), len(Families()))
	}
	want, err := os.ReadFile("testdata/metrics.prom")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), b.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// What cannot be told is a state of its own: no alert is silent about it.
func TestHostStates(t *testing.T) {
	for want, h := range map[string]attach.Host{
		"off": {Enabled: attach.No}, "unknown": {}, "complain": {Enabled: attach.Yes, GlobalMode: attach.ModeComplain}, "enforcing": {Enabled: attach.Yes, GlobalMode: attach.ModeKill},
	} {
		var b bytes.Buffer
		if err := Write(&b, attach.Metrics{Host: h}); err != nil {
			t.Fatal(err)
		}
		for _, s := range []string{"enforcing", "complain", "off", "unknown"} {
			n := 0
			if s == want {
				n = 1
			}
			if line := fmt.Sprintf("aaunit_apparmor_state{state=%q} %d\n", s, n); !strings.Contains(b.String(), line) {
				t.Errorf("%+v: no %s", h, line)
			}
		}
	}
}

func TestWriteDown(t *testing.T) {
	var b bytes.Buffer
	if err := WriteDown(&b, now); err != nil {
		t.Fatal(err)
	}
	families := parse(t, b.String())
	if len(families) != 2 || families["aaunit_up"].Metric[0].Gauge.GetValue() != 0 {
		t.Errorf("%s", b.String())
	}
}

// Of too many units those that are not confined have series, and what is left out is
// said.
func TestUnitsAreBounded(t *testing.T) {
	m := sample()
	m.Units = nil
	for i := range 5 * maxUnits {
		u := attach.UnitMetrics{Unit: fmt.Sprintf("u%06d.service", i), Answer: attach.Confined}
		switch {
		case i >= 5*maxUnits-10:
			u.Answer = attach.NotConfined
		case i >= 5*maxUnits-20:
			u.Answer = attach.Answer(9)
		}
		m.Units = append(m.Units, u)
	}
	var b bytes.Buffer
	if err := Write(&b, m); err != nil {
		t.Fatal(err)
	}
	families := parse(t, b.String())
	if n := families["aaunit_units_without_series"].Metric[0].Gauge.GetValue(); n != 4*maxUnits {
		t.Errorf("%v without series", n)
	}
	count := map[string]int{}
	for _, s := range families["aaunit_unit_verdict"].Metric {
		i := slices.IndexFunc(s.Label, func(l *dto.LabelPair) bool { return l.GetName() == "verdict" })
		count[s.Label[i].GetValue()]++
	}
	if d := cmp.Diff(map[string]int{"confined": maxUnits - 20, "not-confined": 10, "unknown": 10}, count); d != "" {
		t.Error(d)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("full") }

func TestWriteTellsOfErrors(t *testing.T) {
	if Write(broken{}, sample()) == nil || WriteDown(broken{}, now) == nil {
		t.Error("an error was lost")
	}
}

// Whatever units and profiles are called, Prometheus reads the text, and reads the
// number of series that was written.
func FuzzWrite(f *testing.F) {
	f.Add("a.service", "b", "active", "code", 1)
	f.Add("\xff\x00\"\\\n{}# TYPE x", "\n\n", strings.Repeat("ü", 300), "", 2)
	f.Fuzz(func(t *testing.T, unit, profile, state, code string, answer int) {
		var b bytes.Buffer
		m := sample()
		m.Units = []attach.UnitMetrics{{Unit: unit, Profile: profile, State: state, Codes: []attach.Code{attach.Code(code)}, Answer: attach.Answer(answer), At: now}}
		m.Version = profile
		if err := Write(&b, m); err != nil {
			t.Fatal(err)
		}
		families := parse(t, b.String())
		if n := len(families["aaunit_unit_verdict"].Metric); n != 1 || len(families) > len(Families()) {
			t.Errorf("%d series, %d families", n, len(families))
		}
	})
}
