package attach

import (
	"strings"
	"testing"
	"time"
)

func TestAttribute(t *testing.T) {
	units := map[string][]string{
		"a.service":  {"a", "helper"},
		"b.service":  {"b"},
		"c1.service": {"c"},
		"c2.service": {"c", "helper"},
		"n.service":  {""},
	}
	for _, c := range []struct {
		d          Denial
		unit       string
		candidates string
	}{
		{Denial{Profile: "a"}, "a.service", ""},
		{Denial{Profile: "a//child"}, "a.service", ""},
		{Denial{Profile: "b//null-/usr/bin/id"}, "b.service", ""},
		{Denial{Profile: "helper"}, "", "a.service c2.service"},
		{Denial{Profile: "c"}, "", "c1.service c2.service"},
		{Denial{Profile: "b//&unconfined"}, "b.service", ""},
		{Denial{Profile: "a//&b"}, "", "a.service b.service"},
		{Denial{Profile: "ab"}, "", ""},
		{Denial{Profile: "unconfined"}, "", ""},
		{Denial{Profile: ""}, "", ""},
		{Denial{Profile: "a", Namespace: "root//ns"}, "", ""},
		{Denial{Profile: ":root//ns://a"}, "", ""},
	} {
		unit, candidates := Attribute(c.d, units)
		if unit != c.unit || strings.Join(candidates, " ") != c.candidates {
			t.Errorf("%+v is of %q of %q, want %q of %q", c.d, unit, candidates, c.unit, c.candidates)
		}
	}
}

func TestDenialKey(t *testing.T) {
	now := time.Unix(1e9, 0)
	d := Denial{Profile: "a", Operation: "open", Class: "file", Name: "/x", Denied: "r", HasOwner: true, FSUID: 3, OUID: 3, PID: 7, Comm: "c", Time: now, Unit: "a.service", Count: 1}
	same := d
	same.PID, same.Comm, same.Time, same.Unit, same.InvocationID, same.Cgroup, same.FSUID, same.OUID, same.Count = 8, "d", now.Add(1), "b.service", "1", "/", 4, 4, 2
	if same.Key() != d.Key() {
		t.Error("who and when make another denial")
	}
	for what, change := range map[string]func(*Denial){
		"profile": func(d *Denial) { d.Profile = "b" }, "namespace": func(d *Denial) { d.Namespace = "n" }, "operation": func(d *Denial) { d.Operation = "mkdir" },
		"class": func(d *Denial) { d.Class = "net" }, "name": func(d *Denial) { d.Name = "/y" }, "target": func(d *Denial) { d.Target = "/y" },
		"peer": func(d *Denial) { d.Peer = "p" }, "mask": func(d *Denial) { d.Denied = "w" }, "requested": func(d *Denial) { d.Requested = "w" },
		"family": func(d *Denial) { d.Family = "inet" }, "type": func(d *Denial) { d.SockType = "raw" }, "protocol": func(d *Denial) { d.Protocol = "6" },
		"capability": func(d *Denial) { d.Capability = "chown" }, "signal": func(d *Denial) { d.Signal = "term" }, "owner": func(d *Denial) { d.OUID = 0 },
		"fstype": func(d *Denial) { d.FSType = "tmpfs" }, "source": func(d *Denial) { d.Source = "s" }, "flags": func(d *Denial) { d.Flags = "ro" },
		"rlimit": func(d *Denial) { d.Rlimit = "nofile" }, "value": func(d *Denial) { d.Value = "1" }, "allowed": func(d *Denial) { d.Allowed = true },
		"killed": func(d *Denial) { d.Killed = true }, "info": func(d *Denial) { d.Info = "i" }, "cut": func(d *Denial) { d.Cut = true },
	} {
		other := d
		change(&other)
		if other.Key() == d.Key() {
			t.Errorf("another %s is the same denial", what)
		}
	}
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"/proc/12/cgroup", "/proc/4711/cgroup", true}, {"/proc/12/task/13/comm", "/proc/14/task/15/comm", true}, {"/proc/12", "/proc/13", true},
		{"/proc/12/cgroup", "/proc/12/status", false}, {"/proc/12/cgroup", "/proc/self/cgroup", false}, {"/proc/12/fd/1", "/proc/12/fd/2", false},
		{"/proc/12/stat", "/proc/1/stat", false}, {"/proc/1/task/12/stat", "/proc/1/task/13/stat", true}, {"/proc/1/task/12/stat", "/proc/1/task/1/stat", false},
		{"/proc/11/stat", "/proc/12/stat", true}, {"/srv/proc/12", "/srv/proc/13", false}, {"/tmp/12", "/tmp/13", false}, {"proc/12", "proc/13", false},
	} {
		a, b := d, d
		a.Name, b.Name = c.a, c.b
		if same := a.Key() == b.Key(); same != c.same {
			t.Errorf("%s and %s are one denial: %v", c.a, c.b, same)
		}
	}
}

func TestDenialMerge(t *testing.T) {
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	one := func(s int64, pid int) Denial {
		return Denial{Time: at(s), First: at(s), Last: at(s), Count: 1, PID: pid}
	}
	for _, order := range [][]int64{{1, 2, 3}, {3, 1, 2}, {2, 3, 1}} {
		d := one(order[0], int(order[0]))
		for _, s := range order[1:] {
			d.Merge(one(s, int(s)))
		}
		if d.Count != 3 || !d.First.Equal(at(1)) || !d.Last.Equal(at(3)) || !d.Time.Equal(at(3)) || d.PID != 3 {
			t.Errorf("%v give %+v", order, d)
		}
	}
}

// What one process of the unit told is the unit's, whoever else was denied it.
func TestWhatAProcessToldStaysTold(t *testing.T) {
	told := Denial{Unit: "a.service", Profile: "a", Operation: "open", Name: "/x", Denied: "r", Cgroup: "/system.slice/a.service", Count: 1}
	guess := told
	guess.Cgroup, guess.ByProfile = "", true
	for _, c := range []struct {
		what string
		all  []Denial
		told bool
	}{
		{"told", []Denial{told}, true},
		{"guessed", []Denial{guess, guess}, false},
		{"guessed, then told", []Denial{guess, told}, true},
		{"told, then guessed", []Denial{told, guess}, true},
		{"of one of several", []Denial{{Candidates: []string{"a.service", "b.service"}, ByProfile: true}}, false},
		{"of none", []Denial{{Cgroup: "/user.slice/user-1.slice/session-1.scope"}}, false},
	} {
		d := c.all[0]
		for _, e := range c.all[1:] {
			d.Merge(e)
		}
		if d.Told() != c.told {
			t.Errorf("%s: %v, want %v", c.what, d.Told(), c.told)
		}
		if says := strings.Contains(d.String(), onlyProfile) || strings.Contains(d.Words(), onlyProfile) || strings.Contains(d.Rule().Note, onlyProfile); d.Unit != "" && says == c.told {
			t.Errorf("%s: %s; %s; %+v", c.what, d, d.Words(), d.Rule())
		}
	}
}

func TestDenialString(t *testing.T) {
	for want, d := range map[string]Denial{
		`open /etc/shadow (r) denied, comm cat`:            {Operation: "open", Name: "/etc/shadow", Requested: "rw", Denied: "r", Comm: "cat", Count: 1},
		`open "a b" (r) denied, comm "c d", 12 times`:      {Operation: "open", Name: "a b", Denied: "r", Comm: "c d", Count: 12},
		`capable sys_admin denied`:                         {Operation: "capable", Capability: "sys_admin"},
		`setrlimit nofile denied`:                          {Operation: "setrlimit", Rlimit: "nofile", Value: "10"},
		`exec /bin/x -> "p q" (x) denied`:                  {Operation: "exec", Name: "/bin/x", Target: "p q", Denied: "x"},
		`open /\u001b[31m\xff (r) denied, comm "\u0007 x"`: {Operation: "open", Name: "/\x1b[31m\xff", Denied: "r", Comm: "\a x"},
		`records were lost, at least 3`:                    {Lost: 3},
		`denials are not heard: no\u001b`:                  {Deaf: "no\x1b"},
	} {
		if got := d.String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	long := Denial{Operation: "open", Name: strings.Repeat("ü", 4000)}.String()
	if len(long) > maxDetail+3 || !strings.HasSuffix(long, "ü…") {
		t.Errorf("%d bytes: %s", len(long), long[len(long)-10:])
	}
	for _, d := range []Denial{{Lost: 1}, {Deaf: "x"}} {
		if d.IsDenial() {
			t.Errorf("%s counts as a denial", d)
		}
	}
	if !(Denial{Operation: "open"}).IsDenial() {
		t.Error("a denial does not count as one")
	}
}
