package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

func denied(unit, name string, at time.Time) attach.Denial {
	return attach.Denial{Unit: unit, Profile: "myagent", Operation: "open", Name: name, Denied: "r", Time: at, First: at, Last: at, Count: 1}
}

func names(ds []attach.Denial) (out []string) {
	for _, d := range ds {
		out = append(out, fmt.Sprintf("%s:%d", d.Name, d.Count))
	}
	return out
}

func TestDenialsAreKeptByUnit(t *testing.T) {
	t0 := time.Unix(1e9, 0)
	at := func(s int) time.Time { return t0.Add(time.Duration(s) * time.Second) }
	var g denialLog
	g.add(denied("a.service", "/old", at(1)))
	g.add(denied("a.service", "/old", at(5)))
	g.add(denied("a.service", "/new", at(6)))
	g.add(denied("b.service", "/new", at(7)))
	shared := denied("", "/shared", at(4))
	shared.Candidates = []string{"a.service", "c.service"}
	g.add(shared)
	g.add(denied("", "/nobody", at(4)))
	for _, c := range []struct {
		what string
		got  []attach.Denial
		want string
	}{
		{"all of a", g.since("a.service", at(0)), "[/old:2 /shared:1 /new:1]"},
		{"a from 5 on", g.since("a.service", at(5)), "[/old:2 /new:1]"},
		{"new of a from 2 on", g.find("a.service", func(d logged) bool { return d.newSince(at(2)) }), "[/shared:1 /new:1]"},
		{"new of a from 7 on", g.find("a.service", func(d logged) bool { return d.newSince(at(7)) }), "[]"},
		{"b", g.since("b.service", at(0)), "[/new:1]"},
		{"c", g.since("c.service", at(0)), "[/shared:1]"},
		{"none", g.since("", at(0)), ""},
	} {
		got := fmt.Sprint(names(c.got))
		if c.what == "none" {
			if len(c.got) != 2 {
				t.Errorf("what is nobody's: %s", got)
			}
		} else if got != c.want {
			t.Errorf("%s: %s, want %s", c.what, got, c.want)
		}
	}
	if lost, deaf := g.missed(); lost != 0 || deaf != "" {
		t.Error(lost, deaf)
	}
	g.add(attach.Denial{Lost: 3})
	g.add(attach.Denial{Deaf: "no"})
	if lost, deaf := g.missed(); lost != 3 || deaf != "no" {
		t.Error(lost, deaf)
	}
	g.add(denied("b.service", "/new", at(8)))
	if _, deaf := g.missed(); deaf != "" {
		t.Error("it hears again, and does not say so")
	}
}

func TestTheLogOfDenialsIsBounded(t *testing.T) {
	t0 := time.Unix(1e9, 0)
	var g denialLog
	g.add(denied("quiet.service", "/only", t0)) // the oldest of all
	for i := range 3 * maxUnitDenials {
		g.add(denied("loud.service", fmt.Sprint("/", i), t0.Add(time.Duration(i)*time.Second)))
	}
	loud := g.since("loud.service", t0)
	if len(loud) != maxUnitDenials || loud[0].Name != fmt.Sprint("/", 2*maxUnitDenials) {
		t.Errorf("%d are kept, from %s on", len(loud), loud[0].Name)
	}
	for u := range 2 * maxDenials / maxUnitDenials {
		for i := range maxUnitDenials {
			g.add(denied(fmt.Sprintf("u%d.service", u), fmt.Sprint("/", i), t0.Add(time.Hour)))
		}
	}
	if n := len(g.since("quiet.service", t0)); n != 1 {
		t.Error("loud units pushed out what a quiet one was denied")
	}
	total := 0
	for unit, of := range g.units {
		if len(of) == 0 || len(of) > maxUnitDenials {
			t.Errorf("%d of %s", len(of), unit)
		}
		total += len(of)
	}
	if total != maxDenials || g.total != total {
		t.Errorf("%d are kept, %d are counted, want %d", total, g.total, maxDenials)
	}
}

// TestDenialsOfOthersUnderTheProfileAreNotTheUnits: the profile attributes a denial only
// where nothing better is known, and says that it did.
func TestDenialsOfOthersUnderTheProfileAreNotTheUnits(t *testing.T) {
	const session = "/user.slice/user-1000.slice/session-3.scope"
	for _, c := range []struct {
		what, group string
		lodges      string // the session of the unit's main process
		unit        string // of which the process is, as AppArmor.Denials tells
		want        string
		byProfile   bool
	}{
		{what: "gone", want: "/x:1", byProfile: true},
		{what: "in the unit", group: "/system.slice/myagent.service", unit: "myagent.service", want: "/x:1"},
		{what: "in somebody's session", group: session},
		{what: "in somebody's session, while the unit has one", group: session, lodges: "/user.slice/user-7.slice/session-2.scope"},
		{what: "in the unit's session", group: session, lodges: session, want: "/x:1"},
		{what: "in a container", group: "/machine.slice/machine-x.scope"},
		{what: "in another unit", group: "/system.slice/other.service", unit: "other.service"},
		{what: "in a user's manager", group: "/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", unit: "user@1000.service"},
	} {
		t.Run(c.what, func(t *testing.T) {
			w := newWorld()
			w.addUnit("myagent.service")
			w.declareUnit("myagent.conf", "myagent.service", nil)
			if c.lodges != "" {
				w.lodgers = map[string]string{"myagent.service": c.lodges}
			}
			w.run(t, func(l *Loop) {
				d := denied(c.unit, "/x", time.Now())
				d.Cgroup = c.group
				w.denials <- d
				rest()
				got := l.Denials([]string{"myagent"}, time.Time{}).Units[0].Denials
				var list []attach.Denial
				for _, s := range got {
					list = append(list, s.Denial)
					if s.ByProfile != c.byProfile || s.Unit != "myagent.service" || (s.Proposal.Note != "") != c.byProfile {
						t.Errorf("%+v", s)
					}
				}
				if names := strings.Join(names(list), " "); names != c.want {
					t.Errorf("it has %q, want %q", names, c.want)
				}
				if n := l.Metrics(); n.Units[0].Denials.Denied+n.OtherDenials.Denied != 1 {
					t.Errorf("it is not counted: %+v", n)
				}
			})
		})
	}
}

func TestDenialsReachTheLog(t *testing.T) {
	w := newWorld()
	w.addUnit("myagent.service")
	w.declareUnit("myagent.conf", "myagent.service", nil)
	w.run(t, func(l *Loop) {
		at := time.Now()
		gone := denied("", "/by-profile", at) // the process was gone
		w.denials <- gone
		child := denied("", "/by-child", at)
		child.Profile = "myagent//sub"
		w.denials <- child
		other := denied("", "/other", at)
		other.Profile = "other"
		w.denials <- other
		w.denials <- denied("myagent.service", "/by-pid", at)
		w.denials <- attach.Denial{Deaf: "cannot read"}
		w.denials <- attach.Denial{Lost: 2}
		rest()
		got := l.denials.since("myagent.service", at)
		if len(got) != 3 {
			t.Errorf("%v", names(got))
		}
		for _, d := range got {
			if d.Unit != "myagent.service" {
				t.Errorf("%+v", d)
			}
		}
		if lost, deaf := l.denials.missed(); lost != 2 || deaf != "" {
			t.Error(lost, deaf)
		}
		if w.log.count("cannot read") != 1 || w.log.count("heard again") != 1 {
			t.Error("the journal does not say that denials are not heard, and are again")
		}
	})
}
