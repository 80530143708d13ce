package reconcile

import (
	"context"
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

func told(r attach.DenialReport) string {
	var out []string
	for _, u := range r.Units {
		var list []string
		for _, d := range u.Denials {
			list = append(list, fmt.Sprintf("%s:%d", d.Name, d.Count))
		}
		out = append(out, u.Unit+" "+fmt.Sprint(list))
	}
	return strings.Join(out, ", ")
}

func TestDenialsAreTold(t *testing.T) {
	w := newWorld()
	w.addUnit("myagent.service")
	w.addUnit("other.service")
	w.declareUnit("myagent.conf", "myagent.service", nil)
	w.run(t, func(l *Loop) {
		began := time.Now()
		w.denials <- denied("myagent.service", "/old", began.Add(-time.Hour))
		w.denials <- denied("myagent.service", "/new", began)
		w.denials <- denied("other.service", "/not-attached", began)
		rest()
		for _, c := range []struct {
			units []string
			since time.Time
			want  string
		}{
			{nil, time.Time{}, "myagent.service [/old:1 /new:1]"},
			{[]string{"my*"}, began.Add(-time.Minute), "myagent.service [/new:1]"},
			{[]string{"myagent"}, began.Add(time.Minute), "myagent.service []"},
			{[]string{"nope"}, time.Time{}, ""},
			{[]string{"other"}, time.Time{}, ""},
			{[]string{"x*"}, time.Time{}, ""},
		} {
			r := l.Denials(c.units, c.since)
			if got := told(r); got != c.want {
				t.Errorf("%v since %v: %s, want %s", c.units, c.since, got, c.want)
			}
			if missing := c.want == ""; missing != (len(r.Missing) == 1) {
				t.Errorf("%v: missing are %+v", c.units, r.Missing)
			}
		}
		d := l.Denials(nil, time.Time{}).Units[0].Denials[1]
		if d.Proposal.Rule != "/new r," || d.Proposal.Profile != "myagent" || d.What != "/new" {
			t.Errorf("%+v", d)
		}

		// Nothing new is waited for, and something new ends the wait.
		cursor := l.Denials(nil, time.Time{}).Cursor
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		before := time.Now()
		if r := l.WaitDenials(ctx, nil, cursor); len(r.Units) != 0 || time.Since(before) != 10*time.Second {
			t.Errorf("after %v: %s", time.Since(before), told(r))
		}
		answer := make(chan attach.DenialReport)
		go func() { answer <- l.WaitDenials(context.Background(), []string{"myagent"}, cursor) }()
		time.Sleep(time.Second)
		w.denials <- denied("other.service", "/again", time.Now())
		time.Sleep(time.Second)
		select {
		case r := <-answer:
			t.Errorf("it is told of another unit: %s", told(r))
		default:
		}
		w.denials <- denied("myagent.service", "/new", time.Now())
		w.denials <- denied("myagent.service", "/newer", time.Now())
		r := <-answer
		if got := told(r); got != "myagent.service [/new:2 /newer:1]" {
			t.Errorf("new is %s", got)
		}
		go func() { answer <- l.WaitDenials(context.Background(), nil, r.Cursor) }()
		w.denials <- attach.Denial{Lost: 4}
		if r = <-answer; r.Lost != 4 || len(r.Units) != 0 {
			t.Errorf("%+v", r)
		}
		go func() { answer <- l.WaitDenials(context.Background(), nil, r.Cursor) }()
		w.denials <- attach.Denial{Deaf: "no more"}
		if r = <-answer; r.Deaf != "no more" {
			t.Errorf("%+v", r)
		}
		// A cursor of another daemon is the beginning.
		for _, c := range []string{"", "x", "1.2", "1.99999999999999999999", "-1.-1"} {
			if got := told(l.WaitDenials(context.Background(), nil, c)); got != "myagent.service [/old:1 /new:2 /newer:1]" {
				t.Errorf("from %q on: %s", c, got)
			}
		}
	})
}

// A unit that is denied ten thousand different things in a second costs what its
// share of the log costs, pushes out nobody else's, and what it pushed out itself
// is counted. The answer fits into a message whatever the names are.
func TestAFloodOfDenialsIsBounded(t *testing.T) {
	w := newWorld()
	for _, u := range []string{"loud.service", "quiet.service"} {
		w.addUnit(u)
		w.declareUnit(u+".conf", u, nil)
	}
	w.run(t, func(l *Loop) {
		began := time.Now()
		w.denials <- denied("quiet.service", "/only", began)
		const flood = 30000
		hostile := strings.Repeat("\x01", 3000)
		for range 100 {
			w.denials <- denied("loud.service", "/same", began)
		}
		var small, large runtime.MemStats
		for i := range flood {
			if i == 2*maxUnitDenials {
				runtime.GC()
				runtime.ReadMemStats(&small)
			}
			w.denials <- denied("loud.service", fmt.Sprintf("/%d%s", i, hostile), began.Add(time.Duration(i)*100*time.Microsecond))
		}
		runtime.GC()
		runtime.ReadMemStats(&large)
		if grown := int64(large.HeapAlloc) - int64(small.HeapAlloc); grown > 8<<20 {
			t.Errorf("%d denials more cost %d bytes more", flood-2*maxUnitDenials, grown)
		}
		rest()
		r := l.Denials(nil, time.Time{})
		if len(r.Units) != 2 || len(r.Units[1].Denials) != 1 {
			t.Fatalf("the loud one pushed out what the quiet one was denied: %d", len(r.Units))
		}
		loud := r.Units[0]
		if n := len(loud.Denials) + loud.LeftOut; n != maxUnitDenials {
			t.Errorf("%d are kept", n)
		}
		if want := flood + 100 - maxUnitDenials; r.Lost != want {
			t.Errorf("%d are counted as lost, want %d", r.Lost, want)
		}
		if last := loud.Denials[len(loud.Denials)-1]; !strings.HasPrefix(last.Name, fmt.Sprintf("/%d\x01", flood-1)) {
			t.Errorf("the last one is %.20q", last.Name)
		}
		text, err := json.Marshal(r)
		if err != nil || len(text) > maxTelling {
			t.Errorf("the answer is %d bytes long, %v", len(text), err)
		}
		if loud.LeftOut == 0 {
			t.Error("what did not fit was not counted")
		}
		text, err = json.Marshal(l.WaitDenials(context.Background(), nil, ""))
		if err != nil || len(text) > maxNews {
			t.Errorf("the news are %d bytes long, %v", len(text), err)
		}
	})
}

func TestUnitsOfPatterns(t *testing.T) {
	for _, c := range []struct {
		unit, pattern string
		want          bool
	}{
		{"a@x.service", "a@.service", true}, {"b@x.service", "a@.service", false}, {"a-b.service", "a-.service", true},
		{"a-.service", "a-.service", false}, {"ab.service", "a-.service", false}, {"a@.service", "a@.service", false},
	} {
		if got := isOf(c.unit, c.pattern); got != c.want {
			t.Errorf("%s of %s: %v", c.unit, c.pattern, got)
		}
	}
}
