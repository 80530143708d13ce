package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/aaunit/aaunit/internal/attach"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(got)); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

func encoded(t testing.TB, d Document) []byte {
	t.Helper()
	b, err := json.MarshalIndent(d, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return append(b, '\n')
}

func html(t testing.TB, d Document, old *Document) string {
	t.Helper()
	var b bytes.Buffer
	if err := HTML(&b, d, old); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What is written down is what is shown, and other tests begin with it.
func TestGolden(t *testing.T) {
	earlier := sampleEarlier()
	golden(t, "host.json", encoded(t, sampleDocument()))
	golden(t, "earlier.json", encoded(t, earlier))
	golden(t, "hostile.json", encoded(t, hostile()))
	golden(t, "host.html", []byte(html(t, sampleDocument(), &earlier)))
	var b bytes.Buffer
	if err := CSV(&b, sampleDocument()); err != nil {
		t.Fatal(err)
	}
	golden(t, "host.csv", b.Bytes())
}

// A document that was written reads as it was, and fits its schema.
func TestParseReadsWhatIsWritten(t *testing.T) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	schema, err := jsonschema.UnmarshalJSON(bytes.NewReader(Schema))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.AddResource("schema.json", schema); err != nil {
		t.Fatal(err)
	}
	s := c.MustCompile("schema.json")
	bare := New(attach.HostReport{Machine: attach.Machine{Name: "bare"}, At: at, UnattachedProblem: "no", Units: []attach.UnitReport{{Unit: "a@.service", Pattern: true}}}, at)
	for name, d := range map[string]Document{"sample": sampleDocument(), "earlier": sampleEarlier(), "bare": bare} {
		text := encoded(t, d)
		got, err := Parse(bytes.NewReader(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if diff := cmp.Diff(d, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
		v, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Validate(v); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []string{`{"kind":"aaunit-report","format":1,"made":"x","hosts":[]}`, `{"kind":"aaunit-report","format":1,"hosts":[]}`} {
		v, err := jsonschema.UnmarshalJSON(strings.NewReader(bad))
		if err != nil {
			t.Fatal(err)
		}
		if s.Validate(v) == nil {
			t.Errorf("the schema takes %s", bad)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	with := func(change func(*attach.HostReport)) string {
		h := sampleHost()
		change(&h)
		return string(encoded(t, New(h, at)))
	}
	many := make([]attach.UnitReport, maxList+1)
	for i := range many {
		many[i].Unit = "u"
	}
	for name, text := range map[string]string{
		"nothing":          "",
		"no object":        "[]",
		"another kind":     `{"kind":"x","format":1,"hosts":[]}`,
		"a later format":   `{"kind":"aaunit-report","format":2,"hosts":[]}`,
		"cut off":          string(encoded(t, sampleDocument()))[:500],
		"two":              strings.Repeat(string(encoded(t, sampleDocument())), 2),
		"no time":          with(func(h *attach.HostReport) { h.At = time.Time{} }),
		"a long name":      with(func(h *attach.HostReport) { h.Units[0].Unit = strings.Repeat("x", maxString+1) }),
		"deep inside":      with(func(h *attach.HostReport) { h.Units[0].Evidence.Executable.Path = strings.Repeat("x", maxString+1) }),
		"no name":          with(func(h *attach.HostReport) { h.Units[0].Unit = "" }),
		"many units":       with(func(h *attach.HostReport) { h.Units = many }),
		"nested for ever":  strings.Repeat(`{"hosts":[`, 20_000),
		"a number as name": `{"kind":"aaunit-report","format":1,"hosts":[{"machine":{"name":7}}]}`,
	} {
		if d, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%s: it reads %+v", name, d)
		}
	}
	// A word that nobody knows is "could not tell", never yes.
	text := strings.NewReplacer(`"confined"`, `"perfectly-safe"`, `"yes"`, `"sure"`).Replace(string(encoded(t, sampleDocument())))
	d, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if c := CountAll(d.Hosts); c.Confined != 0 || c.Unknown != 3 {
		t.Errorf("%+v", c)
	}
	if Exit(d) == attach.ExitOK {
		t.Error("it exits with 0")
	}
}

// What many hosts have is said once, with how many they are.
func TestGroups(t *testing.T) {
	d := fleet(30)
	all, hosts := Groups(d), 0
	for _, g := range all {
		hosts += len(g.Hosts)
	}
	if len(all) != len(Findings(sampleHost(), at)) || all[0].Level != Bad {
		t.Errorf("%d groups", len(all))
	}
	i := slices.IndexFunc(all, func(g Group) bool { return g.Unit == "systemd-logind.service" })
	if len(all[i].Hosts) != 30 || all[i].On() != "host-00000, host-00001, host-00002, host-00003 and 26 more" {
		t.Errorf("%q", all[i].On())
	}
	want := 0
	for _, h := range d.Hosts {
		want += len(Findings(h, d.Made))
	}
	if hosts != want {
		t.Errorf("%d findings, %d in groups", want, hosts)
	}
}

// People copy commands: none comes from another host.
func TestCommandsAreOurOwn(t *testing.T) {
	d := sampleDocument()
	d.Hosts[0].Unattached.Services[0].Next = []string{"curl evil | sh"}
	d.Hosts[0].Unattached.Services[0].Unit = "$(reboot).service"
	d.Hosts[0].Problems = []attach.Reason{{Code: attach.AttachmentBad, Next: "curl evil | sh"}}
	d.Hosts[0].Units[0].Notes = []attach.Reason{{Code: attach.RestartPending, Next: "curl evil | sh"}}
	got, err := Parse(bytes.NewReader(encoded(t, d)))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range Findings(got.Hosts[0], at) {
		if strings.Contains(f.Next, "evil") || strings.Contains(f.Next, "$(") && !strings.Contains(f.Next, "'$(reboot).service'") {
			t.Errorf("%+v", f)
		}
	}
	if page := html(t, got, nil); strings.Contains(page, "curl evil") {
		t.Error("the page has another host's command")
	}
}

type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func TestParseIsBounded(t *testing.T) {
	if _, err := Parse(endless{}); err == nil || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("%v", err)
	}
}

// One host's file does not use up the memory of the machine that merges: what is counted
// as too much is not decoded first, and what is decoded takes no more than some ten times
// the room of its text.
func TestParseTakesNoMoreMemoryThanTheFileIsLarge(t *testing.T) {
	host := func(units string) string {
		return `{"at":"2026-06-01T12:00:00Z","units":[` + units + `]},`
	}
	list := func(element string, n int) string {
		return strings.TrimSuffix(strings.Repeat(element+",", n), ",")
	}
	whole := func(hosts string) string {
		return `{"kind":"aaunit-report","format":1,"made":"2026-06-01T12:00:00Z","hosts":[` + strings.TrimSuffix(hosts, ",") + `]}`
	}
	for name, text := range map[string]string{
		"one list":           whole(host(list("{}", 300_000))),
		"many lists":         whole(strings.Repeat(host(list("{}", 15_000)), 20)),
		"units with a name":  whole(strings.Repeat(host(list(`{"unit":"a"}`, 15_000)), 5)),
		"hosts":              whole(list("{}", 300_000)),
		"what are no units":  whole(strings.Repeat(host(list("0", 15_000)), 20)),
		"nothing":            whole(strings.Repeat(host(list("null", 15_000)), 20)),
		"members":            whole(host(list(`{"unit":"a","verdict":{},"paused":{},"evidence":{},"sockets":{},"seen":{}}`, 15_000))),
		"quotes in a string": whole(`{"version":"\\\"[","units":[` + list("{}", 300_000) + `]}`),
		"deep":               strings.Repeat(`{"hosts":[`, 100_000),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := Parse(strings.NewReader(text))
		runtime.ReadMemStats(&after)
		if err == nil {
			t.Errorf("%s: it is taken", name)
		}
		// The text is read into memory that grows.
		if took := after.TotalAlloc - before.TotalAlloc; took > 8*uint64(len(text)) {
			t.Errorf("%s: a file of %d bytes took %d bytes (%v)", name, len(text), took, err)
		}
	}
	// A report has far more text than that, written as closely as can be, too.
	for _, d := range []Document{sampleDocument(), fleetHost(1), fleet(1200)} {
		text, err := json.Marshal(d)
		if err == nil {
			_, err = Parse(bytes.NewReader(text))
		}
		if n, _ := measure(text); err != nil || len(text) < 2*textOfValue*n {
			t.Errorf("%d bytes with %d values: %v", len(text), n, err)
		}
	}
}

func TestStanding(t *testing.T) {
	verdict := func(a attach.Answer, codes ...attach.Code) *attach.Verdict {
		v := &attach.Verdict{Answer: a}
		for _, c := range codes {
			v.Reasons = append(v.Reasons, attach.Reason{Code: c})
		}
		return v
	}
	why := []attach.Reason{{Code: attach.AttachFailed}}
	for name, tc := range map[string]struct {
		u    attach.UnitReport
		want standing
	}{
		"confined":                    {attach.UnitReport{Verdict: verdict(attach.Confined)}, standsConfined},
		"no verdict":                  {attach.UnitReport{}, standsUnknown},
		"no answer":                   {attach.UnitReport{Verdict: verdict(attach.Answer(0))}, standsUnknown},
		"not confined":                {attach.UnitReport{Verdict: verdict(attach.NotConfined)}, standsNotConfined},
		"confined and held":           {attach.UnitReport{Verdict: verdict(attach.Confined), Held: why}, standsNotConfined},
		"confined, a text held":       {attach.UnitReport{Verdict: verdict(attach.Confined), Held: why, OnlyText: true}, standsConfined},
		"refused":                     {attach.UnitReport{Refused: why}, standsNotConfined},
		"stopped":                     {attach.UnitReport{ActiveState: "inactive", Verdict: verdict(attach.Unknown, attach.NotRunning)}, standsStopped},
		"said to be stopped and runs": {attach.UnitReport{ActiveState: "active", Verdict: verdict(attach.Unknown, attach.NotRunning)}, standsUnknown},
		"pattern":                     {attach.UnitReport{Pattern: true}, standsPattern},
	} {
		if got := standingOf(tc.u); got != tc.want {
			t.Errorf("%s: %s, want %s", name, standingWords[got], standingWords[tc.want])
		}
	}
}

func codesOf(list []Finding) (out []string) {
	for _, f := range list {
		out = append(out, f.Level.String()+" "+string(f.Code)+" "+f.Unit)
	}
	return out
}

func TestFindings(t *testing.T) {
	d := sampleDocument()
	want := []string{
		"bad not-confined gateway.service", "bad service-without-profile ssh.service",
		"unknown verdict-unknown indexer.service",
		"warning allowance-without-reason myagent.service", "warning program-replaced mailer.service", "warning socket-list-stale mailer.service", "warning service-without-profile systemd-logind.service", "warning service-without-profile legacy.service",
		"note denied myagent.service", "note socket-option-refused mailer.service", "note not-running night.service",
	}
	if diff := cmp.Diff(want, codesOf(Findings(d.Hosts[0], d.Made))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	for name, tc := range map[string]struct {
		change func(*attach.HostReport)
		want   string
	}{
		"AppArmor off":       {func(h *attach.HostReport) { h.Host.Enabled = attach.No }, "bad host-not-enforcing "},
		"AppArmor not known": {func(h *attach.HostReport) { h.Host.GlobalMode = "" }, "unknown host-unknown "},
		"global complain":    {func(h *attach.HostReport) { h.Host.GlobalMode = attach.ModeComplain }, "bad host-not-enforcing "},
		"boot service":       {func(h *attach.HostReport) { h.Host.BootService = attach.No }, "warning host-not-enforcing "},
		"old":                {func(h *attach.HostReport) { h.At = h.At.Add(-30 * 24 * time.Hour) }, "unknown report-old "},
		"of tomorrow":        {func(h *attach.HostReport) { h.At = h.At.Add(24 * time.Hour) }, "unknown report-old "},
		"not looked":         {func(h *attach.HostReport) { h.Unattached = nil }, "unknown not-looked-at "},
		"sockets not read":   {func(h *attach.HostReport) { h.Unattached.Unknown = []string{"x"} }, "unknown not-looked-at "},
		"stale":              {func(h *attach.HostReport) { h.Units[0].Verdict.At = at.Add(-time.Hour) }, "unknown proof-stale myagent.service"},
		"no evidence":        {func(h *attach.HostReport) { h.Units[0].Evidence = nil }, "warning no-evidence myagent.service"},
		"other evidence":     {func(h *attach.HostReport) { h.Units[0].Evidence.Answer = attach.NotConfined }, "warning no-evidence myagent.service"},
		"paused":             {func(h *attach.HostReport) { h.Units[0].Paused = &attach.Pause{Until: at} }, "warning paused myagent.service"},
		"text held": {func(h *attach.HostReport) {
			h.Units[0].Held, h.Units[0].OnlyText = []attach.Reason{{Code: attach.PolicyUndone}}, true
		}, "warning held myagent.service"},
		"restart":          {func(h *attach.HostReport) { h.Units[0].Notes = []attach.Reason{{Code: attach.RestartPending}} }, "warning restart-pending myagent.service"},
		"file":             {func(h *attach.HostReport) { h.Problems = []attach.Reason{{Code: attach.AttachmentBad}} }, "warning attachment-file-not-in-use "},
		"deaf":             {func(h *attach.HostReport) { h.DenialsDeaf = "no netlink" }, "unknown denials-not-heard "},
		"unknown exposure": {func(h *attach.HostReport) { h.Unattached.Services[0].Class = "x" }, "unknown service-without-profile ssh.service"},
		"an empty reason":  {func(h *attach.HostReport) { h.Units[0].Allowed[0].Reason = " \t" }, "warning allowance-without-reason myagent.service"},
		"a pattern, refused": {func(h *attach.HostReport) {
			h.Units[0] = attach.UnitReport{Unit: "a@.service", Pattern: true, Refused: []attach.Reason{{Code: attach.ProfileDisputed}}, ToCome: attach.NotConfined}
		}, "bad not-confined a@.service"},
		"a pattern in place, refused": {func(h *attach.HostReport) {
			h.Units[0] = attach.UnitReport{Unit: "a@.service", Pattern: true, Refused: []attach.Reason{{Code: attach.ProfileDisputed}}, ToCome: attach.Confined}
		}, "warning refused a@.service"},
		"a pattern not in place": {func(h *attach.HostReport) {
			h.Units[0] = attach.UnitReport{Unit: "a@.service", Pattern: true, ToCome: attach.NotConfined}
		}, "bad not-confined a@.service"},
		"a pattern, not known": {func(h *attach.HostReport) {
			h.Units[0] = attach.UnitReport{Unit: "a@.service", Pattern: true, ToCome: attach.Unknown}
		}, "unknown verdict-unknown a@.service"},
		"a pattern of an older aaunit": {func(h *attach.HostReport) {
			h.Units[0] = attach.UnitReport{Unit: "a@.service", Pattern: true}
		}, "unknown verdict-unknown a@.service"},
		"a list, not known":     {func(h *attach.HostReport) { h.Units[0].Sockets.Stale = attach.CouldNotTell }, "note socket-list-unknown myagent.service"},
		"a table, not read":     {func(h *attach.HostReport) { h.Units[0].Sockets.Problem = "no BPF file system" }, "note socket-list-unknown myagent.service"},
		"an option, no reason":  {func(h *attach.HostReport) { h.Units[1].Allowed = []attach.Allowance{{Kind: attach.AllowSetOption}} }, "warning allowance-without-reason gateway.service"},
		"nothing said about it": {func(h *attach.HostReport) { h.Units[0].Verdict = nil }, "unknown verdict-unknown myagent.service"},
	} {
		h := sampleHost()
		tc.change(&h)
		got := codesOf(Findings(h, at.Add(time.Minute)))
		if !slices.Contains(got, tc.want) {
			t.Errorf("%s: no %q in %q", name, tc.want, got)
		}
	}
}

func TestExit(t *testing.T) {
	good := sampleHost()
	good.Units, good.Unattached.Services = good.Units[:1], nil
	if got := Exit(New(good, at)); got != attach.ExitOK {
		t.Errorf("all is well: %d", got)
	}
	unknown := good
	unknown.Unattached = nil
	pattern := func(toCome attach.Answer) Document {
		h := good
		h.Units = append(slices.Clone(good.Units), attach.UnitReport{Unit: "a@.service", Pattern: true, ToCome: toCome})
		return New(h, at)
	}
	refused := pattern(attach.Confined)
	refused.Hosts[0].Units[len(refused.Hosts[0].Units)-1].Refused = []attach.Reason{{Code: attach.ProfileDisputed}}
	merged := New(good, at)
	merged.Left = []Left{{From: "x.json", Why: "it is no report"}}
	for name, tc := range map[string]struct {
		d    Document
		want attach.Exit
	}{
		"not confined": {sampleDocument(), attach.ExitNotConfined},
		"not looked":   {New(unknown, at), attach.ExitUnknown},
		"a bad file":   {merged, attach.ExitFailed},
		"no host":      {Document{}, attach.ExitUnknown},

		"a pattern in place":     {pattern(attach.Confined), attach.ExitOK},
		"a pattern not in place": {pattern(attach.NotConfined), attach.ExitNotConfined},
		"a pattern, not known":   {pattern(attach.Unknown), attach.ExitUnknown},
		"a pattern, refused":     {refused, attach.ExitOK},
	} {
		if got := Exit(tc.d); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// A template whose units to come are not confined is not hidden by all the services that
// are.
func TestAPatternThatIsNotInPlaceIsShown(t *testing.T) {
	for answer, want := range map[attach.Answer]struct {
		tone  string
		holds attach.Tri
	}{attach.Confined: {"ok", attach.Yes}, attach.NotConfined: {"bad", attach.No}, attach.Unknown: {"unknown", attach.CouldNotTell}} {
		h := sampleHost()
		h.Units, h.Unattached.Services = append(h.Units[:1:1], attach.UnitReport{Unit: "a@.service", Pattern: true, ToCome: answer}), nil
		one, fleet := New(h, at), New(h, at)
		fleet.Hosts = append(fleet.Hosts, h)
		for _, d := range []Document{one, fleet} {
			v := view{Counts: CountAll(d.Hosts)}
			if len(d.Hosts) == 1 {
				v.One = &d.Hosts[0]
			}
			v.summary()
			v.units(d)
			card := slices.ContainsFunc(v.Cards, func(c card) bool { return c.U.Unit == "a@.service" && c.Tone == want.tone })
			if v.Tone != want.tone || v.Hosts[0].Tone != want.tone || card != (answer != attach.Confined) {
				t.Errorf("%s, %d hosts: tone %s, of the host %s, card %v", answer, len(d.Hosts), v.Tone, v.Hosts[0].Tone, card)
			}
			if c := Controls(d); c[2].Holds != want.holds || c[3].Holds != want.holds {
				t.Errorf("%s: %+v", answer, c[2:4])
			}
		}
	}
}

// That units to come of a template are not confined any more, or are again, is a change,
// and in the table.
func TestDriftOfPatterns(t *testing.T) {
	of := func(answer attach.Answer) Document {
		h := sampleHost()
		h.Units = append(h.Units[:1:1], attach.UnitReport{Unit: "a@.service", Pattern: true, Profile: "a", ToCome: answer})
		return New(h, at)
	}
	for _, tc := range []struct {
		was, is       attach.Answer
		change, table string
	}{
		{attach.Confined, attach.NotConfined, "yes: confined > not confined", "pattern, not confined"},
		{attach.Confined, attach.Unknown, "yes: confined > unknown", "pattern, unknown"},
		{attach.Unknown, attach.NotConfined, "yes: unknown > not confined", "pattern, not confined"},
		{attach.NotConfined, 0, "unknown: not confined > unknown", "pattern, unknown"},
		{attach.NotConfined, attach.Confined, "no: not confined > confined", "pattern"},
		{attach.Confined, attach.Confined, "", "pattern"},
	} {
		got := ""
		for _, c := range Drift(of(tc.was), of(tc.is)) {
			got += fmt.Sprintf("%s: %s > %s", c.Worse, c.Old, c.New)
			if c.Unit != "a@.service" || c.What != "units to come" {
				t.Errorf("%+v", c)
			}
		}
		if got != tc.change {
			t.Errorf("%s, %s: %q", tc.was, tc.is, got)
		}
		var b bytes.Buffer
		if err := CSV(&b, of(tc.is)); err != nil {
			t.Fatal(err)
		}
		rows, err := csv.NewReader(&b).ReadAll()
		if err != nil || !slices.ContainsFunc(rows, func(r []string) bool { return r[3] == "a@.service" && r[7] == tc.table }) {
			t.Errorf("%s: %q, %v", tc.is, rows, err)
		}
	}
}

// One host's file does not hold up the page of all: a chain or ring of processes costs no
// more than as many that have one parent.
func TestThePictureOfAUnitIsMadeInTime(t *testing.T) {
	for name, parent := range map[string]func(i int) int{
		"a chain": func(i int) int { return i - 1 }, "a ring": func(i int) int { return (i + maxList - 1) % maxList }, "a star": func(int) int { return 0 },
	} {
		s := &attach.Sighting{}
		for i := range maxList {
			s.Processes = append(s.Processes, attach.Process{PID: i, PPID: parent(i)})
			s.Listening = append(s.Listening, attach.Listening{Protocol: "unix", Address: fmt.Sprintf("/run/%0100d", i), Reach: attach.ReachUnix})
		}
		s.Listening = append(s.Listening, s.Listening[0])
		c := card{U: attach.UnitReport{Seen: s}}
		begun := time.Now()
		c.fill()
		if took := time.Since(begun); took > 5*time.Second {
			t.Errorf("%s: it took %v", name, took)
		}
		if len(c.Sockets) != maxList {
			t.Errorf("%s: %d sockets", name, len(c.Sockets))
		}
		deepest, shown := 0, 0
		var walk func(all []*node, depth int)
		walk = func(all []*node, depth int) {
			for _, n := range all {
				deepest, shown = max(deepest, depth), shown+1
				walk(n.Children, depth+1)
			}
		}
		walk(c.Tree, 1)
		if deepest > maxDepth || shown != maxList {
			t.Errorf("%s: %d processes of %d are shown, %d deep", name, shown, maxList, deepest)
		}
	}
}

func TestMerge(t *testing.T) {
	var m Merger
	other := sampleDocument()
	other.Hosts[0].Machine = attach.Machine{Name: "another", ID: strings.Repeat("4", 32)}
	m.Add("new.json", sampleDocument())
	m.Add("old.json", sampleEarlier())
	m.Add("other.json", other)
	clone := sampleDocument()
	clone.Hosts[0].Machine.Name = "edge-4" // with the same id
	m.Add("clone.json", clone)
	m.Refuse("broken.json", errors.New("it is no report\xff"))
	d := m.Merged(at)
	if len(d.Hosts) != 3 || d.Hosts[0].Machine.Name != "another" || !d.Hosts[1].At.Equal(at) || d.Hosts[2].Machine.Name != "edge-4" || d.Kind != Kind || d.Format != Format {
		t.Errorf("%+v", d.Hosts)
	}
	want := []Left{{From: "old.json", Host: "edge-3", Why: "a newer report of the same host is in new.json"}, {From: "broken.json", Why: "it is no report\uFFFD"}}
	if diff := cmp.Diff(want, d.Left); diff != "" {
		t.Error(diff)
	}
	// The other way round it is the same.
	var n Merger
	n.Add("old.json", sampleEarlier())
	n.Add("new.json", sampleDocument())
	if d := n.Merged(at); len(d.Hosts) != 1 || !d.Hosts[0].At.Equal(at) || len(d.Left) != 1 || d.Left[0].From != "old.json" {
		t.Errorf("%+v", d.Left)
	}
	if d := (&Merger{}).Merged(at); d.Hosts == nil {
		t.Error("no hosts are no list")
	}
	if _, err := Parse(bytes.NewReader(encoded(t, d))); err != nil {
		t.Errorf("what was merged is not read: %v", err)
	}
}

func TestDrift(t *testing.T) {
	var got []string
	for _, c := range Drift(sampleEarlier(), sampleDocument()) {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s: %s: %s: %s > %s", c.Worse, c.Unit, c.What, c.Old, c.New)))
	}
	want := []string{
		"yes: gateway.service: verdict: confined > not confined",
		"yes: gone.service: attached: gone > not any more",
		"yes: myagent.service: allowed:  > that tasks may run under profile agent-fetch too",
		"yes: ssh.service: without a profile:  > network",
		"unknown: : kernel: 6.1.0-40-amd64 > 6.1.0-41-amd64",
		"unknown: myagent.service: compiled policy: /etc/apparmor.d/myagent sha256 111111111111… > /etc/apparmor.d/myagent sha256 bbbbbbbbbbbb…",
		"no: mailer.service: attached:  > mailer",
		"no: myagent.service: socket options: recorded > held to a list",
		"no: myagent.service: allowed:  > that socket option SOL_TCP:TCP_NODELAY may be set",
		"no: myagent.service: allowed:  > that socket option SOL_SOCKET:SO_ERROR may be read",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if same := Drift(sampleDocument(), sampleDocument()); len(same) != 0 {
		t.Errorf("%+v", same)
	}
	other := sampleDocument()
	other.Hosts[0].Machine = attach.Machine{Name: "another", ID: "4"}
	if both := Drift(sampleDocument(), other); len(both) != 2 || both[0].Worse != attach.CouldNotTell || both[1].Worse != attach.No {
		t.Errorf("%+v", both)
	}
	more := sampleDocument()
	more.Hosts[0].Units[0].Allowed = append(more.Hosts[0].Units[0].Allowed, attach.Allowance{Kind: attach.AllowSetOption, What: "SOL_TCP:TCP_CORK"})
	if list := Drift(sampleDocument(), more); len(list) != 1 || list[0].Worse != attach.Yes {
		t.Errorf("a longer list: %+v", list)
	}
	if list := Drift(more, sampleEarlier()); !slices.ContainsFunc(list, func(c Change) bool { return c.What == "socket options" && c.Worse == attach.Yes && c.New == "recorded" }) {
		t.Errorf("no list any more: %+v", list)
	}
	off := sampleDocument()
	off.Hosts[0].Host.Enabled = attach.No
	if list := Drift(sampleDocument(), off); len(list) != 1 || list[0].Worse != attach.Yes {
		t.Errorf("%+v", list)
	}
}

func TestControls(t *testing.T) {
	answers := func(d Document) (out []attach.Tri) {
		for _, c := range Controls(d) {
			if len(c.Names) == 0 || c.Asks == "" || c.Says == "" || c.Not == "" {
				t.Errorf("%+v", c)
			}
			out = append(out, c.Holds)
		}
		return out
	}
	good := sampleHost()
	good.Units, good.Unattached.Services = good.Units[:1], nil
	quiet := good
	quiet.Host.BootService = attach.CouldNotTell
	off := good
	off.Host.Enabled = attach.No
	for name, tc := range map[string]struct {
		d    Document
		want []attach.Tri
	}{
		// That only approved services listen is never answered with yes.
		"good":        {New(good, at), []attach.Tri{attach.Yes, attach.Yes, attach.Yes, attach.Yes, attach.CouldNotTell}},
		"sample":      {sampleDocument(), []attach.Tri{attach.Yes, attach.Yes, attach.No, attach.No, attach.No}},
		"not told":    {New(quiet, at), []attach.Tri{attach.Yes, attach.CouldNotTell, attach.Yes, attach.Yes, attach.CouldNotTell}},
		"off":         {New(off, at), []attach.Tri{attach.No, attach.No, attach.Yes, attach.Yes, attach.CouldNotTell}},
		"no host":     {Document{}, make([]attach.Tri, 5)},
		"one of each": {Document{Hosts: []attach.HostReport{good, off}}, []attach.Tri{attach.No, attach.No, attach.Yes, attach.Yes, attach.CouldNotTell}},
	} {
		if diff := cmp.Diff(tc.want, answers(tc.d)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// Nothing of what a hostile host says becomes markup, a formula, or turns text around.
func TestHostileReport(t *testing.T) {
	page := html(t, hostile(), nil)
	for _, bad := range []string{"<script", "alert(1)</", "\u202e", "\x1b", "</style><"} {
		if strings.Contains(page, bad) {
			t.Errorf("the page has %q", bad)
		}
	}
	if strings.Count(page, "<style>") != 1 || !strings.Contains(page, "&lt;script&gt;") {
		t.Error("the page is not as it should be")
	}
	var b bytes.Buffer
	if err := CSV(&b, hostile()); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&b).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range rows {
		if len(row) != len(columns) {
			t.Errorf("a row has %d cells", len(row))
		}
		for _, cell := range row {
			if cell != "" && strings.ContainsRune("=+-@\t\r", rune(cell[0])) || strings.ContainsAny(cell, "\x1b\n") {
				t.Errorf("a cell is %q", cell)
			}
		}
	}
}

// The page needs nothing but itself.
func TestPageIsSelfContained(t *testing.T) {
	earlier := sampleEarlier()
	for _, page := range []string{html(t, sampleDocument(), &earlier), html(t, fleet(30), nil)} {
		for _, bad := range []string{"<script", "http://", "https://", "src=", "@import", "url(", " style=", "javascript:"} {
			if strings.Contains(page, bad) {
				t.Errorf("the page has %q", bad)
			}
		}
		if !strings.Contains(page, "default-src 'none'; style-src 'sha256-") {
			t.Error("the page does not say that it needs nothing")
		}
	}
}

// fleet is a merged report of n hosts, of which each hundredth is as the sample, and
// the others are well.
func fleet(n int) Document {
	var m Merger
	for i := range n {
		m.Add("x.json", fleetHost(i))
	}
	return m.Merged(at)
}

func fleetHost(i int) Document {
	h := sampleHost()
	h.Machine.Name, h.Machine.ID = fmt.Sprintf("host-%05d", i), fmt.Sprintf("%032d", i)
	if i%100 != 3 {
		h.Units, h.Unattached.Services = []attach.UnitReport{h.Units[0], h.Units[3]}, h.Unattached.Services[1:]
	}
	return New(h, at)
}

func TestFleetPage(t *testing.T) {
	d := fleet(1200)
	page := html(t, d, nil)
	confined := `<tr><td>host-00001</td><th scope="row">myagent.service</th><td data-l="profile">myagent</td><td><span class="pill t-ok">confined</span></td>`
	for _, want := range []string{"AppArmor on 1200 hosts", "host-00003", "host-01199", "not confined", confined, "they are in the CSV and the JSON form"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
	if len(page) > 4<<20 {
		t.Errorf("the page has %d bytes", len(page))
	}
	if !strings.Contains(page, "they are in the JSON form") {
		t.Error("what was left out is not said")
	}
	// The most exposed come first, whatever their host.
	_, others, _ := strings.Cut(page, `<h2 id="others">`)
	if last, first := strings.LastIndex(others, "</span>the network</td>"), strings.Index(others, "</span>programs of the machine</td>"); last < 0 || first < last {
		t.Errorf("services on the network end at %d, others begin at %d", last, first)
	}
}

// A picture shows each process once, whatever they say of their parents.
func TestTree(t *testing.T) {
	var list []attach.Process
	for i := range 200 {
		list = append(list, attach.Process{PID: i + 1, PPID: i})
	}
	list = append(list, attach.Process{PID: 500, PPID: 501}, attach.Process{PID: 501, PPID: 500}, attach.Process{PID: 502, PPID: 502}, attach.Process{PID: 502, PPID: 1})
	seen, deepest := map[int]int{}, 0
	var walk func([]*node, int)
	walk = func(nodes []*node, depth int) {
		deepest = max(deepest, depth)
		for _, n := range nodes {
			seen[n.P.PID]++
			walk(n.Children, depth+1)
		}
	}
	walk(tree(list), 0)
	if len(seen) != 203 || deepest > maxDepth {
		t.Errorf("%d processes, %d deep", len(seen), deepest)
	}
	for pid, n := range seen {
		if n != 1 {
			t.Errorf("process %d is there %d times", pid, n)
		}
	}
}

// Whatever a file says, nothing of it breaks the page, the table or the comparison,
// and it is not more confined than it says.
func FuzzParse(f *testing.F) {
	for _, name := range []string{"host.json", "earlier.json", "hostile.json"} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"kind":"aaunit-report","format":1,"made":"2026-01-01T00:00:00Z","hosts":[{"at":"2026-01-01T00:00:00Z","units":[{"unit":"a","verdict":{"answer":"confined"}}]}]}`))
	f.Add([]byte(`{"kind":"aaunit-report","format":1,"hosts":[{"at":"9999-01-01T00:00:00Z","units":[{"unit":"\u0000","seen":{"processes":[{"pid":1,"ppid":1},{"pid":-1}]}}],"unattached":{"services":[{}]}}]}`))
	sample := sampleDocument()
	f.Fuzz(func(t *testing.T, text []byte) {
		d, err := Parse(bytes.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := HTML(&b, d, &sample); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(strings.ToLower(b.String()), "<script") {
			t.Error("the page has a script")
		}
		if err := CSV(&b, d); err != nil {
			t.Fatal(err)
		}
		if c := CountAll(d.Hosts); c.Confined > bytes.Count(text, []byte("confined")) {
			t.Errorf("%d are confined", c.Confined)
		}
		Drift(d, sample)
		Controls(d)
		var m Merger
		m.Add("a", d)
		m.Add("b", sample)
		Exit(m.Merged(at))
	})
}

// BenchmarkMerge reads, merges, judges and shows a fleet. Time and memory per host are
// to be the same whatever their number: "times-500" is the time of a host by that of one
// of 500.
func BenchmarkMerge(b *testing.B) {
	var few float64
	for _, n := range []int{500, 5000} {
		texts := make([][]byte, n)
		for i := range texts {
			texts[i] = encoded(b, fleetHost(i))
		}
		b.Run(fmt.Sprintf("hosts=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			var before, after runtime.MemStats
			var held uint64 // what a merged report takes
			runtime.GC()
			runtime.ReadMemStats(&before)
			for b.Loop() {
				var m Merger
				for _, text := range texts {
					d, err := Parse(bytes.NewReader(text))
					if err != nil {
						b.Fatal(err)
					}
					m.Add("x.json", d)
				}
				d := m.Merged(at)
				var page bytes.Buffer
				if err := HTML(&page, d, nil); err != nil {
					b.Fatal(err)
				}
				Exit(d)
				b.StopTimer()
				runtime.GC()
				runtime.ReadMemStats(&after)
				held = max(held, after.HeapAlloc-min(before.HeapAlloc, after.HeapAlloc))
				runtime.KeepAlive(&m)
				runtime.KeepAlive(d)
				b.StartTimer()
			}
			runtime.ReadMemStats(&after)
			hosts := float64(b.N) * float64(n)
			each := float64(b.Elapsed().Microseconds()) / hosts
			b.ReportMetric(each, "µs/host")
			if n == 500 {
				few = each
			}
			b.ReportMetric(each/few, "times-500")
			b.ReportMetric(float64(held)/float64(n), "heap-B/host")
			b.ReportMetric(float64(after.TotalAlloc-before.TotalAlloc)/hosts, "B/host")
		})
	}
}
