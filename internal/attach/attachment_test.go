package attach

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// build makes an attachment of KEY=VALUE lines.
func build(t *testing.T, lines ...string) Attachment {
	t.Helper()
	a := NewAttachment()
	for _, l := range lines {
		key, value, _ := strings.Cut(l, "=")
		wantNil(t, l, a.Set(key, value))
	}
	return a
}

func TestSet(t *testing.T) {
	a := build(t,
		"Unit=myagent.service agent@.service", "Unit=agent-.service", "Unit=myagent.service",
		"Profile=my agent", "ProfileFile=/etc/apparmor.d/x", `AllowProfiles=helper "px target"`, "AllowProfiles=helper",
		"PrivateTmp=disconnected", "Mode=complain", "RestartUnit=off", "OnFailedAttach=keep", "OnViolation=stop",
		"OnProfileChange=report", "SettleSec=1min 30s")
	if !slices.Equal(a.Units, []string{"myagent.service", "agent@.service", "agent-.service"}) {
		t.Errorf("Units: %q", a.Units)
	}
	if !slices.Equal(a.AllowProfiles, []string{"helper", "px target"}) {
		t.Errorf("AllowProfiles: %q", a.AllowProfiles)
	}
	if a.Profile != "my agent" || a.ProfileFile != "/etc/apparmor.d/x" || a.PrivateTmp != PrivateTmpDisconnected || a.Mode != WishComplain ||
		a.RestartUnit || a.OnFailedAttach != FailedKeep || a.OnViolation != ViolationStop || a.OnProfileChange != ChangeReport || a.Settle != 90*time.Second {
		t.Errorf("got %+v", a)
	}
	wantNil(t, "Check", a.Check())

	// An empty value is the default again, as in systemd.
	for _, key := range []string{"Unit", "Profile", "ProfileFile", "AllowProfiles", "PrivateTmp", "Mode", "RestartUnit", "OnFailedAttach", "OnViolation", "OnProfileChange", "SettleSec"} {
		wantNil(t, key, a.Set(key, ""))
	}
	if def := NewAttachment(); len(a.Units) != 0 || len(a.AllowProfiles) != 0 || a.Profile != "" || a.PrivateTmp != def.PrivateTmp || a.Mode != def.Mode ||
		a.RestartUnit != def.RestartUnit || a.OnFailedAttach != def.OnFailedAttach || a.Settle != def.Settle {
		t.Errorf("after a reset: %+v", a)
	}
	if err := a.Check(); err == nil || !strings.Contains(err.Error(), "Unit=") || !strings.Contains(err.Error(), "Profile=") {
		t.Errorf("Check of an empty attachment names both missing settings; got %v", err)
	}
}

func TestSetSpans(t *testing.T) {
	for in, want := range map[string]time.Duration{
		"0": 0, "5": 5 * time.Second, "5s": 5 * time.Second, "500ms": 500 * time.Millisecond, "2min": 2 * time.Minute, "1 min 5 sec": 65 * time.Second,
		" ": DefaultSettle, "10min": MaxSettle, "5m": 5 * time.Minute, "1.5s": 1500 * time.Millisecond, "20\u00b5s": 20 * time.Microsecond, "-0": 0,
		"1m1.000000001s": 61*time.Second + 1, "1 0s": time.Second, "+5s": 5 * time.Second,
	} {
		a := NewAttachment()
		if err := a.Set("SettleSec", in); err != nil || a.Settle != want {
			t.Errorf("SettleSec=%q gives %v, %v; want %v", in, a.Settle, err, want)
		}
	}
}

// A value that cannot be used is an error, and what stood there before stays.
func TestSetRefuses(t *testing.T) {
	for _, tt := range []struct{ key, value, why string }{
		{"Unit", "myagent", ".service"},
		{"Unit", "myagent.timer", ".service"},
		{"Unit", "../x.service", "not allowed"},
		{"Unit", "a!b.service", "not allowed"},
		{"Unit", "agent-[.service", "pattern"},
		{"Unit", ".service", "no name"},
		{"Profile", "-myagent", "missing"},
		{"Profile", "-%p", "missing"},
		{"Profile", "&myagent", "stack"},
		{"Profile", "unconfined", "absence"},
		{"Profile", "%h", "%i"},
		{"Profile", "100%", "%%"},
		{"Profile", "a\nUser=root", "control"},
		{"AllowProfiles", "ok -bad", "missing"},
		{"AllowProfiles", "unconfined", "absence"},
		{"AllowProfiles", `"open`, "double quote"},
		{"ProfileFile", "relative", "absolute"},
		{"ProfileFile", "/etc/apparmor.d/../shadow", "absolute"},
		{"ProfileFile", "/etc//x", "absolute"},
		{"ProfileFile", "/etc/a\nb", "control"},
		{"PrivateTmp", "maybe", "yes, disconnected, no"},
		{"Mode", "unconfined", "enforce, complain"},
		{"RestartUnit", "sometimes", "yes or no"},
		{"OnFailedAttach", "yes", "undo, stop, keep"},
		{"SettleSec", "-1", "between"},
		{"SettleSec", "11min", "between"},
		{"SettleSec", "1h", "between"},
		{"SettleSec", "+-1s", "time span"},
		{"SettleSec", "soon", "time span"},
		{"SettleSec", "9999999999999999999h", "time span"},
		{"profile", "x", "unknown key"},
		{"", "x", "unknown key"},
	} {
		a := NewAttachment()
		err := a.Set(tt.key, tt.value)
		if err == nil || !strings.Contains(err.Error(), tt.why) {
			t.Errorf("%s=%q: got %v; want an error with %q", tt.key, tt.value, err, tt.why)
		}
		if a.Profile != "" || a.ProfileFile != "" || a.PrivateTmp != PrivateTmpYes || a.Mode != WishEnforce {
			t.Errorf("%s=%q was refused and left %+v", tt.key, tt.value, a)
		}
	}
}

// What systemd reads for which unit was seen with systemd-analyze verify of 252.
func TestCloser(t *testing.T) {
	of := func(units ...string) Attachment { return Attachment{Units: units} }
	for _, tt := range []struct {
		a, b Attachment
		want bool
	}{
		{of("agent-db-.service"), of("agent-.service"), true},
		{of("agent-.service"), of("agent-db-.service"), false},
		{of("agent-.service"), of("agent-.service"), false},
		{of("agent-db-1.service"), of("agent-db-.service"), true},
		{of("agent-*.service"), of("agent-.service"), false},
		{of("*-db-1.service"), of("agent-db-*.service"), false}, // of globs none is closer
		{of("other.service", "agent-db-.service"), of("agent-.service"), true},
		{of("agent-.service"), of("other.service"), true},
	} {
		if got := tt.a.Closer(tt.b, "agent-db-1.service"); got != tt.want {
			t.Errorf("%q closer than %q: %v", tt.a.Units, tt.b.Units, got)
		}
	}
}

func TestMatches(t *testing.T) {
	for _, tt := range []struct {
		pattern, unit string
		want          Specificity
	}{
		{"myagent.service", "myagent.service", MatchName},
		{"agent@.service", "agent@a.service", MatchTemplate},
		{"agent@.service", "agent-x@a.service", NoMatch},
		{"agent@.service", "agent.service", NoMatch},
		{"agent-.service", "agent-x.service", MatchPrefix},
		{"agent-.service", "agent-x-y.service", MatchPrefix},
		{"agent-.service", "agent-x@i.service", MatchPrefix},
		{"agent-.service", "agent.service", NoMatch},
		{"agent-.service", "agent-@i.service", NoMatch},
		{"agent-.service", "agents-x.service", NoMatch},
		{"agent-.service", "my-agent-x.service", NoMatch},
		{"a-.service", "a--b.service", MatchPrefix},
		{"a-.service", "a--.service", MatchPrefix},
		{"-.service", "-x.service", NoMatch},
		{"-a-.service", "-a-b.service", MatchPrefix},
		{"foo@a-.service", "foo@a-b.service", NoMatch},
		{"agent-*.service", "agent-x.service", MatchGlob},
		{"agent-?.service", "agent-xy.service", NoMatch},
		{"*.service", "anything@x.service", MatchGlob},
		{"agent-[!x].service", "agent-y.service", MatchGlob},
		{"agent-[!x].service", "agent-x.service", NoMatch},
		{`dev-*\x2db.service`, `dev-a\x2db.service`, MatchGlob},
		{"*.service", "x.socket", NoMatch},
	} {
		a := Attachment{Units: []string{tt.pattern}}
		if got := a.Matches(tt.unit); got != tt.want {
			t.Errorf("%s matches %s: %d, want %d", tt.pattern, tt.unit, got, tt.want)
		}
	}
}

func TestPlacement(t *testing.T) {
	for _, tt := range []struct {
		units []string
		unit  string
		want  string
	}{
		{[]string{"myagent.service"}, "myagent.service", "myagent.service"},
		{[]string{"agent@.service"}, "agent@a.service", "agent@.service"},
		{[]string{"agent-.service"}, "agent-x.service", "agent-.service"},
		{[]string{"agent-*.service"}, "agent-x.service", "agent-x.service"},
		{[]string{"agent-.service", "agent-x-.service"}, "agent-x-y.service", "agent-x-.service"},
		{[]string{"agent-x-.service", "agent-.service"}, "agent-x-y.service", "agent-x-.service"},
		{[]string{"agent@.service", "agent@a.service"}, "agent@a.service", "agent@a.service"},
		{[]string{"*.service", "agent@.service"}, "agent@a.service", "agent@.service"},
		{[]string{"other.service"}, "myagent.service", "myagent.service"}, // named by an alias
	} {
		a := Attachment{Units: tt.units}
		if got := a.Placement(tt.unit); got != tt.want {
			t.Errorf("%q places the drop-in of %s in %s, want %s", tt.units, tt.unit, got, tt.want)
		}
	}
	if got := DropInPath("agent@.service", false); got != "/etc/systemd/system/agent@.service.d/90-aaunit.conf" {
		t.Errorf("DropInPath: %s", got)
	}
	if got := DropInPath("agent@.service", true); got != "/run/systemd/system/agent@.service.d/90-aaunit.conf" {
		t.Errorf("DropInPath: %s", got)
	}
}

func TestSelect(t *testing.T) {
	mk := func(source string, units ...string) *Attachment { return &Attachment{Source: source, Units: units} }
	all := []*Attachment{
		mk("glob", "agent-*.service"), mk("prefix", "agent-.service"), mk("long", "agent-x-.service"),
		mk("template", "agent-x-t@.service"), mk("name", "agent-x-n.service"),
	}
	for unit, want := range map[string]string{
		"agent-a.service": "prefix", "agent-x-a.service": "long", "agent-x-t@1.service": "template", "agent-x-n.service": "name",
	} {
		for range 2 {
			got, rivals := Select(all, unit)
			if got == nil || got.Source != want || rivals != nil {
				t.Errorf("%s: got %v and rivals %v, want %s", unit, got, rivals, want)
			}
			slices.Reverse(all)
		}
	}
	if got, rivals := Select(all, "other.service"); got != nil || rivals != nil {
		t.Errorf("a unit nobody names: %v %v", got, rivals)
	}
	two := []*Attachment{mk("a", "x.service"), mk("b", "x.service"), mk("c", "*.service")}
	if got, rivals := Select(two, "x.service"); got != nil || len(rivals) != 2 {
		t.Errorf("two that name a unit equally closely: chose %v, rivals %v", got, rivals)
	}
	// A closer one settles the quarrel of two others.
	if got, rivals := Select(append(two, mk("d", "y.service")), "y.service"); got == nil || got.Source != "d" || rivals != nil {
		t.Errorf("got %v, rivals %v", got, rivals)
	}
}

func TestProfileFor(t *testing.T) {
	a := Attachment{Profile: "agent-%i"}
	if got, err := a.ProfileFor("agent@a.service"); err != nil || got != "agent-a" {
		t.Errorf("got %q, %v", got, err)
	}
	a.Profile = "%i"
	for _, unit := range []string{"agent.service", "agent@-x.service", `agent@x\.service`, "agent@unconfined.service", "agent@:ns:x.service"} {
		if got, err := a.ProfileFor(unit); err == nil {
			t.Errorf("%s: got %q; want an error, for the instance's name makes the profile's mean something else", unit, got)
		}
	}
}

func TestIsPrefix(t *testing.T) {
	for u, want := range map[string]bool{
		"agent-.service": true, "-a-.service": true, "-.service": false, "agent.service": false, "agent-@.service": false,
		"foo@a-.service": false, "*-.service": false,
	} {
		if got := IsPrefix(u); got != want {
			t.Errorf("IsPrefix(%q) = %v", u, got)
		}
	}
}

func TestUnitActive(t *testing.T) {
	for state, want := range map[string]bool{
		"active": true, "reloading": true, "refreshing": true, "activating": true, "deactivating": true,
		"inactive": false, "failed": false, "maintenance": false, "": false,
	} {
		if got := (Unit{ActiveState: state}).Active(); got != want {
			t.Errorf("a unit that is %q: Active() = %v", state, got)
		}
	}
}

func TestASelectorSelectsTheSame(t *testing.T) {
	var all []*Attachment
	for i, units := range [][]string{
		{"a.service"}, {"b.service", "b.service"}, {"a@.service"}, {"a@x.service", "b.service"}, {"a-.service"}, {"a-b-.service", "c.service"},
		{"*.service"}, {"a*.service"}, {"c.service"}, {"a.service", "d*.service"}, {"d.service"},
	} {
		a := NewAttachment()
		a.Source, a.Units = string(rune('a'+i)), units
		all = append(all, &a)
	}
	for n := range all {
		s := NewSelector(all[:n+1])
		for _, unit := range []string{"a.service", "b.service", "c.service", "d.service", "e.service", "a@x.service", "a@y.service", "a-c.service", "a-b-c.service", "a@.service", "a-.service"} {
			want, wantRivals := Select(all[:n+1], unit)
			got, gotRivals := s.Select(unit)
			if d := cmp.Diff(want, got) + cmp.Diff(wantRivals, gotRivals); d != "" {
				t.Errorf("%s of %d: %s", unit, n+1, d)
			}
		}
	}
}
