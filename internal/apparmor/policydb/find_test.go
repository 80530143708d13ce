package policydb

import (
	"errors"
	"strings"
	"sync"
	"testing"
)

func TestFind(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []struct {
		pattern string
		q       Query
		want    Answer
		witness string
	}{
		{"/etc/**", Query{Any: Writes}, No, ""},
		{"/etc/**", Query{Any: Read}, Yes, "/etc/a"},
		{"/etc/shadow", Query{Any: Read}, No, ""},
		{"/etc/shado{w,v}", Query{Any: Read}, Yes, "/etc/shadov"},
		{"/etc/**", Query{Any: Read, Objects: Directories}, Yes, "/etc/a/"},
		{"/home/**", Query{Any: Write}, Yes, "/home/a/a"},
		{"/home/**", Query{Any: Write, As: Other}, No, ""},
		{"/home/**", Query{Any: Write, As: Owner}, Yes, "/home/a/a"},
		{"/home/*", Query{Any: Write}, No, ""},
		{"/**", Query{Any: Append, As: Other}, Yes, "/srv/a"},
		{"/var/log/**", Query{Any: Append}, Yes, "/var/log/.log"},
		{"/var/log/*/**", Query{Any: Append}, No, ""},
		{"/**", Query{All: Read | Write}, Yes, "/home/a/a"},
		{"/**", Query{All: Read | Write, As: Other}, No, ""},
		{"/**", Query{Where: func(_ Perms, t Transition) bool { return t.MayUnconfine() }}, Yes, "/x/pux"},
		{"/**", Query{All: Exec, Where: func(_ Perms, t Transition) bool { return t.Target == "other" }}, Yes, "/x/named"},
		{"a/b", Query{Any: GetAttr}, No, ""},
		{"/a//b", Query{Any: GetAttr}, Yes, "/a/b"},
		{"//b", Query{Any: GetAttr}, No, ""},
		{"/a/../b", Query{Any: GetAttr}, No, ""},
		{"/a/...", Query{Any: GetAttr}, Yes, "/a/..."},
		{"{/etc,}/**", Query{Any: Write}, Yes, "/srv/a"},
	} {
		c.q.Pattern = pattern(t, c.pattern)
		r := p.Find(c.q)
		if r.Answer != c.want || r.Witness != c.witness {
			t.Errorf("%s %+v: %+v, want %s %q", c.pattern, c.q, r, c.want, c.witness)
		}
	}
	if r := p.Find(Query{Pattern: pattern(t, "/**")}); r.Answer != Unknown || r.Why == nil {
		t.Errorf("%+v", r)
	}
	if r := p.Find(Query{Pattern: pattern(t, "/**"), All: Chown, Limit: 1}); r.Answer != Unknown || !errors.Is(r.Why, ErrTooLarge) {
		t.Errorf("%+v", r)
	}
	if r := p.Find(Query{Pattern: pattern(t, "/home/**"), Any: Write}); r.As != Owner || r.Perms.Allow&Write == 0 || r.States == 0 {
		t.Errorf("%+v", r)
	}
}

// Paths that profiles attach to are left out, and no others.
func TestFindExcept(t *testing.T) {
	p := parse(t, sample) // attaches to /usr/bin/sample{,-helper}
	named := &Profile{Name: "/usr/bin/tool"}
	any := Query{Where: func(Perms, Transition) bool { return true }, Objects: NotDirectories}
	for _, c := range []struct {
		pattern string
		except  Except
		want    string // the witness, "" none
	}{
		{"/usr/bin/sample", nil, "/usr/bin/sample"},
		{"/usr/bin/sample", Except{p}, ""},
		{"/usr/bin/sample{,-helper}", Except{p}, ""},
		{"/usr/bin/sample{,-helper,s}", Except{p}, "/usr/bin/samples"},
		{"/usr/bin/{sample*,tool}", Except{p}, "/usr/bin/tool"},
		{"/usr/bin/{sample,tool}", Except{p, named}, ""},
		{"/usr/bin/{sample,tool}", Except{named, p}, ""},
		{"/usr/bin/too?", Except{named}, "/usr/bin/tooa"},
		{"/usr/bin/tool", Except{named, {Name: "tool"}}, ""},
		{"/usr/bin/tool{,/*}", Except{named}, "/usr/bin/tool/a"},
		{"/usr/bin/tool", Except{{Name: "/usr/bin/tool", Xattrs: []string{"user.x"}}}, "/usr/bin/tool"},
	} {
		any.Pattern, any.Except = pattern(t, c.pattern), c.except
		want := No
		if c.want != "" {
			want = Yes
		}
		if r := p.Find(any); r.Answer != want || r.Witness != c.want {
			t.Errorf("%s: %+v, want %q", c.pattern, r, c.want)
		}
		if c.want == "" {
			continue
		}
		for _, q := range c.except {
			if len(q.Xattrs) == 0 && q.Attaches(c.want) == Yes {
				t.Errorf("%s: %s attaches to %s", c.pattern, q.Name, c.want)
			}
		}
	}
}

func TestCovers(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []struct {
		pattern string
		q       Query
		want    Answer
		witness string
	}{
		{"/etc/**", Query{All: Read}, No, "/etc/shadow"},
		{"/etc/[^s]**", Query{All: Read}, Yes, ""},
		{"/srv/**", Query{All: Write}, Yes, ""},
		{"/srv{,/**}/", Query{All: Write}, No, "/srv/"},
		{"/home/*/**", Query{All: Read | Write}, Yes, ""}, // for the owner
		{"/home/*/**", Query{All: Read | Write, As: Other}, No, "/home/a/a"},
		{"/nowhere/**", Query{All: Read}, No, "/nowhere/a"},
		{"/a/../b", Query{All: Read}, Unknown, ""},
	} {
		c.q.Pattern = pattern(t, c.pattern)
		r := p.Covers(c.q)
		if r.Answer != c.want || r.Witness != c.witness {
			t.Errorf("%s %+v: %+v, want %s %q", c.pattern, c.q, r, c.want, c.witness)
		}
	}
}

// A path that is too long cannot exist.
func TestLengths(t *testing.T) {
	long := strings.Repeat("a", 256)
	p := parse(t, "profile x { /"+long+"* w, /b/"+long[1:]+" w, /c/**/"+long+"{,/d} w, /e/"+strings.Repeat("?", 256)+"/** w, /f/**"+long+" w, }")
	deep := "/g" + strings.Repeat("/*", 2047) // 4096 at least
	q := parse(t, "profile y { /g/** w, }")
	for _, c := range []struct {
		p       *Profile
		pattern string
		want    Answer
	}{
		{p, "/*", No}, {p, "/b/*", Yes}, {p, "/c/**", No}, {p, "/e/**", No}, {p, "/f/**", No}, {p, "/**", Yes},
		{q, deep, No}, {q, deep[:len(deep)-2], Yes},
	} {
		// Shorter limits than the real ones, with which the parser takes long.
		if r := c.p.Find(Query{Pattern: pattern(t, c.pattern), Any: Write, segment: 255, path: 4095}); r.Answer != c.want {
			t.Errorf("%.20s: %s %d", c.pattern, r.Answer, len(r.Witness))
		}
	}
	// Nothing is proved by what no path matches.
	for _, glob := range []string{"/" + long, deep, "/g/../a", "a"} {
		if r := q.Covers(Query{Pattern: pattern(t, glob), All: Write, segment: 255, path: 4095}); r.Answer != Unknown || r.Why != ErrNoPath {
			t.Errorf("%.20s: %s %v", glob, r.Answer, r.Why)
		}
	}
}

func TestFindOthers(t *testing.T) {
	p := parse(t, sample)
	for pat, want := range map[string]string{"**": "friend", "f*": "friend", "g*": ""} {
		r := p.FindSignal(15, Query{Pattern: pattern(t, pat), Any: SignalSend})
		if r.Witness != want || (r.Answer == Yes) != (want != "") {
			t.Errorf("%s: %+v, want %q", pat, r, want)
		}
	}
	if r := p.FindPtrace(Query{Pattern: pattern(t, "**"), Any: PtraceRead}); r.Answer != Yes || r.Witness != "sample" {
		t.Errorf("%+v", r)
	}
	if r := p.FindPtrace(Query{Pattern: pattern(t, "**"), Any: PtraceTrace}); r.Answer != No {
		t.Errorf("%+v", r)
	}
	for pat, want := range map[string]string{"w*": "worker", "*": "job", "{a,b}*": "", "/**": ""} {
		r := p.FindChange(Query{Pattern: pattern(t, pat), All: ChangeProfile})
		if r.Witness != want || (r.Answer == Yes) != (want != "") {
			t.Errorf("%s: %+v, want %q", pat, r, want)
		}
	}
	d := parse(t, `abi <abi/3.0>,
	profile d {
		dbus send bus=system path=/org/freedesktop/systemd1 interface=org.freedesktop.systemd1.Manager member=List* peer=(name=org.freedesktop.systemd1),
		dbus bind bus=session name=a.b,
	}`, "--kernel-features=/etc/apparmor.d/abi/3.0")
	any := pattern(t, "**")
	for _, c := range []struct{ member, witness string }{{"List*", "List"}, {"Start*", ""}, {"**", "List"}} {
		r := d.FindFields(ClassDBus, Query{All: DBusSend}, pattern(t, "system"), pattern(t, "org.freedesktop.systemd1"), any, any, any, pattern(t, c.member))
		if (r.Answer == Yes) != (c.witness != "") || !strings.HasSuffix(r.Witness, c.witness) {
			t.Errorf("%s: %+v", c.member, r)
		}
	}
	if r := p.FindFields(ClassDBus, Query{All: DBusSend}, any); r.Answer != NotMediated {
		t.Errorf("%+v", r)
	}
	m := DBusMessage{"system", "org.freedesktop.systemd1", "unconfined", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager", "ListUnits"}
	if a := d.DBus(m, DBusSend); a != Yes {
		t.Error(a)
	}
	if a := d.DBus(m, DBusReceive); a != No {
		t.Error(a)
	}
	for name, want := range map[string]Answer{"a.b": Yes, "a.c": No} {
		if a := d.DBusOwn("session", name); a != want {
			t.Errorf("%s: %s", name, a)
		}
	}
	if a := d.DBusMonitor("system"); a != No {
		t.Error(a)
	}
}

// A pattern and a profile may be asked by many at once.
func TestConcurrent(t *testing.T) {
	p, pat := parse(t, sample), pattern(t, "/home/**")
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			q := Query{Pattern: pat, Any: Write, Objects: Objects(i % 3)}
			if r := p.Find(q); r.Answer != Yes {
				t.Errorf("%+v", r)
			}
			p.Covers(q)
		})
	}
	all.Wait()
}
