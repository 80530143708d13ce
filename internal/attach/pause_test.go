package attach

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestAPausedUnitIsPlannedNothing(t *testing.T) {
	pause := &Pause{Since: noon, Until: noon.Add(time.Hour), By: "alice"}
	for _, c := range []struct {
		name  string
		world func(*Desired, *Observed)
	}{
		{"as declared", func(*Desired, *Observed) {}},
		{"drop-in changed", func(_ *Desired, o *Observed) { o.DropIn.Content = "other" }},
		{"another policy", func(_ *Desired, o *Observed) {
			o.Policy.Live = map[string]LiveProfile{"myagent": {"myagent", ModeEnforce, "sha256:cc"}}
		}},
		{"not confined", func(_ *Desired, o *Observed) { o.Scan.Tasks = []Task{task(100, "unconfined")} }},
		{"refused", func(_ *Desired, o *Observed) { o.Host.Enabled = No }},
		{"held", func(d *Desired, _ *Observed) { d.Record.Hold = &Hold{Reasons: []Reason{{Code: AttachFailed}}} }},
		{"withdrawn", func(d *Desired, _ *Observed) { d.Attachment, d.Profile = nil, "" }},
	} {
		d, o := healthy()
		c.world(&d, &o)
		free := Diff(d, o)
		d.Record.Pause = pause

		o.At = noon.Add(59 * time.Minute)
		p := Diff(d, o)
		if len(p.Actions)+len(p.Refusals)+len(p.Warnings) != 0 || p.Profile != "myagent" {
			t.Errorf("%s: %+v", c.name, p)
		}
		wantCodes(t, c.name, p.Pending, Paused)
		if r := p.Pending[0]; r.Next != "aaunitctl resume myagent.service" || !strings.Contains(r.Detail, "until 2026-11-24 13:00:00 UTC, by alice") {
			t.Errorf("%s: %+v", c.name, r)
		}
		v, w := Judge(d, o), d
		w.Record.Pause = nil
		if !reflect.DeepEqual(v, Judge(w, o)) {
			t.Errorf("%s: the pause changes the verdict: %+v", c.name, v)
		}

		o.At = noon.Add(time.Hour)
		if p := Diff(d, o); !reflect.DeepEqual(p, free) {
			t.Errorf("%s: when the pause is over: %+v", c.name, p)
		}
	}
}

func TestTheLongerPauseCounts(t *testing.T) {
	short, long := &Pause{Until: noon.Add(time.Minute)}, &Pause{Until: noon.Add(time.Hour)}
	for _, c := range []struct {
		own, pattern, want *Pause
		resume             string
	}{
		{nil, nil, nil, ""},
		{short, nil, short, "agent@a.service"},
		{nil, short, short, "agent@.service"},
		{short, long, long, "agent@.service"},
		{long, short, long, "agent@a.service"},
		{&Pause{Until: noon}, short, short, "agent@.service"},
	} {
		d := Desired{Unit: "agent@a.service", Record: Record{Pause: c.own}, Pattern: "agent@.service", PatternPause: c.pattern}
		if got := d.Paused(noon); got != c.want {
			t.Errorf("%+v: %+v", c, got)
		}
		why := d.WhyPaused(noon)
		if (why == nil) != (c.want == nil) || why != nil && why.Next != "aaunitctl resume "+c.resume {
			t.Errorf("%+v: %+v", c, why)
		}
	}
}

// A pause, and a hold that is to end by itself, do so in time, also where the clock was
// ahead when they were made.
func TestNothingLastsForWhatTheClockWasAhead(t *testing.T) {
	for _, c := range []struct {
		off        time.Duration
		pause, due bool
	}{
		{-time.Second, false, true},
		{0, false, true},
		{time.Minute, true, false},
		{MaxAgain, true, false},
		{MaxAgain + time.Second, true, true},
		{MaxPause, true, true},
		{MaxPause + time.Minute, true, true}, // the clock was put right by a minute
		{30 * 24 * time.Hour, false, true},
	} {
		at := noon.Add(c.off)
		if got := (&Pause{Until: at}).InForce(noon); got != c.pause {
			t.Errorf("a pause until %v: %v", c.off, got)
		}
		if got := (&Hold{Again: at}).Over(noon); got != c.due {
			t.Errorf("to be tried again in %v: %v", c.off, got)
		}
	}
}

func TestParsePause(t *testing.T) {
	for span, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "30min": 30 * time.Minute, "2h": 2 * time.Hour, "1d": 24 * time.Hour, "45": 45 * time.Second,
		"1h 30min": 90 * time.Minute, "1h30m": 90 * time.Minute, " 2 hours ": 2 * time.Hour, "7d": MaxPause, "1w": MaxPause,
		"6d 23h 59min 60s": MaxPause, "1s": time.Second, "1.5h": 90 * time.Minute, "1m30.5s": 90*time.Second + 500*time.Millisecond,
	} {
		if got, err := ParsePause(span); err != nil || got != want {
			t.Errorf("%q: %v %v", span, got, err)
		}
	}
	for _, span := range []string{"", " ", "0", "0s", "-1h", "h", "1x", "1.5.0h", ".", "1h-", "8d", "7d 1s", "2w", "1w 1w", "99999999999999999999d",
		"4294967295w", "infinity", "１h", "5d 5d"} {
		if got, err := ParsePause(span); err == nil {
			t.Errorf("%q: %v", span, got)
		}
	}
}

// The drop-in of a template that was paused before an upgrade has the line of the start
// helper that was written then, until the pause ends.
func TestAPauseOverAnUpgrade(t *testing.T) {
	d, o := healthy()
	d.Unit, o.Scan, o.Unit = "agent@.service", nil, Unit{ID: "agent@.service"}
	d.Attachment.Units, d.Attachment.SocketOptions = []string{d.Unit}, &SocketOptions{Mode: SocketsRecord}
	d.Record.DropIns = Sums{{Path: d.DropInPath(), Sum: "…"}}
	d.Record.Pause = &Pause{Since: noon, Until: noon.Add(time.Hour)}
	o.At = noon
	text := d.DropInText(o.Unit)
	former := strings.Replace(text, SocketStartLine(false), formerStartLine, 1)
	if former == text {
		t.Fatal(text)
	}
	for content, want := range map[string][]Code{text: nil, former: nil, former + "User=x\n": {DropInDiffers}} {
		o.DropIn.Content = content
		wantCodes(t, content, AmissInPause(d, o), want...)
	}
	d.Record.Pause, o.DropIn.Content = nil, former
	if p := Diff(d, o); !p.Has(WriteDropIn) {
		t.Errorf("afterwards: %+v", p)
	}
}

func TestPlaceOf(t *testing.T) {
	for _, unit := range []string{"a.service", "agent@.service", "agent-.service", "x.d.service"} {
		if got := PlaceOf(DropInPath(unit, false)); got != unit {
			t.Errorf("%s: %s", unit, got)
		}
	}
}
