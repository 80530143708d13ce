package rules

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

func read(t testing.TB, text string, more ...string) *Text {
	t.Helper()
	sources := map[string][]byte{"/etc/apparmor.d/x": []byte(text)}
	for i := 0; i < len(more); i += 2 {
		sources[more[i]] = []byte(more[i+1])
	}
	out, err := Read(sources, "/etc/apparmor.d/x", "")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// places are the files and lines of rules, and what is uncertain about them.
func places(g []Grant) (out []string) {
	for _, g := range g {
		s := fmt.Sprintf("%s:%d", filepath.Base(g.File), g.Line)
		if g.May != "" {
			s += "?"
		}
		out = append(out, s)
	}
	return out
}

// A rule has the place where it really stands, and the most specific comes first.
func TestWhere(t *testing.T) {
	text := read(t, `# a profile
@{X}=/tmp /var/tmp
include <tunables/t>
profile p {
  include <abstractions/a>
  /** rw,
  #include "/opt/b"
  /tmp/{a,b}/*	w,
  deny /tmp/no w,
  owner @{X}/
    a
    wk,
  include <dir>
  include if exists <none>
}
`,
		"/etc/apparmor.d/tunables/t", "@{X}+=/dev/shm\n",
		"/etc/apparmor.d/abstractions/a", "\n\n  /tmp/** rw, # all of it\n",
		"/opt/b", "/tmp/a/b w,",
		"/etc/apparmor.d/dir/", "", "/etc/apparmor.d/dir/one", "\n/tmp/a/[b] w,\n", "/etc/apparmor.d/dir/sub/two", "/tmp/a/b rw,")
	if len(text.Problems) > 0 {
		t.Error(text.Problems)
	}
	q := Question{Class: ClassFile, Path: "/tmp/a/b", Perm: policydb.Write}
	if got := places(text.Granting("p", q)); !slices.Equal(got, []string{"b:1", "x:8", "one:2", "a:3", "x:6"}) {
		t.Error(got)
	}
	q.Path = "/tmp/no"
	if got := text.Granting("p", q); got != nil {
		t.Error(places(got))
	}
	q.Perm = policydb.Read
	if got := text.Granting("p", q); !slices.Equal(places(got), []string{"a:3", "x:6"}) || got[0].Raw != "/tmp/** rw," {
		t.Error(got)
	}
	r := text.Profile("p").Rules
	if got := r[2].Raw; got != "/tmp/{a,b}/*	w," && got != "/tmp/a/b w," {
		t.Error(got)
	}
	if got := text.Granting("nobody", q); got != nil {
		t.Error(got)
	}
}

// What is not understood is said, and not left out.
func TestDoubt(t *testing.T) {
	for rule, q := range map[string]Question{
		"/a/@{NOT} r,":                     {Class: ClassFile, Path: "/b", Perm: policydb.Read},
		"priority=5 /a r,":                 {Class: ClassFile, Path: "/a", Perm: policydb.Read},
		"if @{X} == y { /a r, }":           {Class: ClassFile, Path: "/a", Perm: policydb.Read},
		"prompt /a r,":                     {Class: ClassFile, Path: "/a", Perm: policydb.Read},
		"something new,":                   {Class: ClassCapability, Capability: "kill"},
		"/a rz,":                           {Class: ClassFile, Path: "/a", Perm: policydb.Read},
		"/[ r,":                            {Class: ClassFile, Path: "/a", Perm: policydb.Read},
		"network inet stream ip=1.2.3.4,":  {Class: ClassNetwork, Family: 2, Type: 1},
		"network (create) inet,":           {Class: ClassNetwork, Family: 2, Type: 1},
		"network inet sctp,":               {Class: ClassNetwork, Family: 2, Type: 1},
		"dbus send bus=system,":            {Class: ClassDBus, Fields: map[string]string{"bus": "system"}},
		"mount fstype=tmpfs,":              {Class: ClassMount, Fields: map[string]string{}},
		"unix (create) type=stream,":       {Class: ClassNetwork, Family: 1, Type: 1},
		"if $nothing { capability kill, }": {Class: ClassCapability, Capability: "kill"},
	} {
		text := read(t, "profile p { "+rule+" }")
		if got := text.Granting("p", q); len(got) != 1 || got[0].May == "" {
			t.Errorf("%s: %+v", rule, got)
		}
	}
	// One that may be denied by a rule that is not understood is not left out.
	text := read(t, "profile p { /a r, deny /@{NOT} r, if @{X} == y { deny /a r, } priority=1 deny /a r, }")
	if got := text.Granting("p", Question{Class: ClassFile, Path: "/a", Perm: policydb.Read}); len(got) != 1 {
		t.Error(got)
	}
}

func TestARuleForEverythingIsFound(t *testing.T) {
	all := read(t, "profile p { all, }")
	for _, q := range []Question{{Class: ClassFile, Path: "/a", Perm: policydb.Write}, {Class: ClassSignal}, {Class: ClassNetwork, Family: 2, Type: 1}} {
		if got := all.Granting("p", q); len(got) != 1 || got[0].May != "" {
			t.Errorf("%+v: %+v", q, got)
		}
	}
}

func TestProfiles(t *testing.T) {
	text := read(t, `@{N}=nn
profile "na me" /bin/{a,b} flags=(complain) {
  ^hat { /x r, }
  profile @{N} @{N}/x { profile deep { } }
}
profile :space:other { }
/usr/bin/x { hat h { } }
`)
	type prof struct {
		name, short, space, attachment, flags string
		line                                  int
		hat                                   bool
	}
	var got []prof
	for _, p := range text.Profiles {
		got = append(got, prof{p.Name, p.Short, p.Namespace, p.Attachment, strings.Join(p.Flags, "+"), p.Line, p.Hat})
	}
	want := []prof{
		{"na me", "na me", "", "/bin/{a,b}", "complain", 2, false},
		{"na me//hat", "na me//hat", "", "", "", 3, true},
		{"na me//nn", "na me//nn", "", "nn/x", "", 4, false},
		{"na me//nn//deep", "nn//deep", "", "", "", 4, false},
		{"other", "other", "space", "", "", 6, false},
		{"/usr/bin/x", "/usr/bin/x", "", "/usr/bin/x", "", 7, false},
		{"/usr/bin/x//h", "/usr/bin/x//h", "", "", "", 7, true},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestAll(t *testing.T) {
	text := read(t, "profile p { all, deny /no w, deny capability kill, }\nprofile q { all, deny all, }")
	for _, q := range []Question{{Class: ClassFile, Path: "/no", Perm: policydb.Write}, {Class: ClassCapability, Capability: "kill"}} {
		if got := text.Granting("p", q); len(got) > 0 {
			t.Errorf("%+v: %+v", q, got)
		}
	}
	for _, q := range []Question{{Class: ClassFile, Path: "/no", Perm: policydb.Read}, {Class: ClassCapability, Capability: "chown"}} {
		if got := text.Granting("p", q); len(got) != 1 {
			t.Errorf("%+v: %+v", q, got)
		}
		if got := text.Granting("q", q); len(got) > 0 {
			t.Errorf("%+v: %+v", q, got)
		}
	}
}

// What the conditions of D-Bus and mount rules leave.
func TestFields(t *testing.T) {
	text := read(t, `profile p {
  dbus (send,receive) bus=system path=/org/{a,b}{,/**} interface="org.x.*" member={Get,Set} peer=(name=org.y, label="un{confined,x}"),
  dbus bind bus=session name=org.mine,
  mount options=(rw,bind) /a{,/} -> /b/,
  unix (connect) type=stream peer=(addr="@x*"),
}`)
	ask := func(class Class, fields ...string) string {
		q := Question{Class: class, Fields: map[string]string{}}
		for _, f := range fields {
			k, v, _ := strings.Cut(f, "=")
			q.Fields[k] = v
		}
		return strings.Join(places(text.Granting("p", q)), " ")
	}
	for want, got := range map[string]string{
		"x:2":  ask(ClassDBus, "access=send", "bus=system", "path=/org/a/z", "interface=org.x.y", "member=Get", "peer.name=org.y", "peer.label=unconfined"),
		"":     ask(ClassDBus, "access=send", "bus=system", "path=/org/c", "interface=org.x.y", "member=Get", "peer.name=org.y", "peer.label=unconfined"),
		"x:3":  ask(ClassDBus, "access=bind", "bus=session", "name=org.mine"),
		"x:4?": ask(ClassMount, "source=/a/", "target=/b/"),
		"x:5":  ask(ClassUnix, "access=connect", "type=stream", "peer.addr=@xy"),
	} {
		if got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
}

// In "owner { }" and "audit { }" nothing but file rules counts, and the parser
// does not say so.
func TestDropped(t *testing.T) {
	text := read(t, "profile p { audit { network inet stream, capability kill, /a r, } }")
	for i, dropped := range []bool{true, true, false} {
		if r := text.Profile("p").Rules[i]; r.Dropped != dropped || !r.Audit {
			t.Errorf("%+v", r)
		}
	}
}

func TestProblems(t *testing.T) {
	if _, err := Read(nil, "/x", ""); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
		t.Error(err)
	}
	if got := read(t, "include <nothing>\nprofile p { }").Problems; len(got) != 1 {
		t.Error(got)
	}
	if got := read(t, "include <loop>\nprofile p { include <loop> }", "/etc/apparmor.d/loop", "include <loop>\n").Problems; len(got) != 0 {
		t.Error(got)
	}
	if got := read(t, strings.Repeat("include <big/>\n", 20)+"profile p { }", "/etc/apparmor.d/big/", "", "/etc/apparmor.d/big/a", strings.Repeat("#", MaxText/10)).Problems; len(got) != 1 {
		t.Error(len(got))
	}
	if got := read(t, "@{A}=@{A}@{A}\nprofile p { /@{A} r, }").Granting("p", Question{Class: ClassFile, Path: "/a", Perm: policydb.Read}); len(got) != 1 || got[0].May == "" {
		t.Error(got)
	}
}

// openings keeps the lines at which blocks open.
type openings struct{ lines []string }

func (*openings) Assign(Token)   {}
func (*openings) Rule(Statement) {}
func (*openings) Close()         {}
func (o *openings) Open(s Statement) {
	o.lines = append(o.lines, fmt.Sprintf("%s:%d=%d", s.File.Path, s.Line(), s.Flat))
}

// How deep files include one another is one thing, and how many there are another.
func TestBoundsOfIncludes(t *testing.T) {
	walk := func(files map[string][]string) ([]string, bool) {
		calls := 0
		var o openings
		ok := Walk(File{"top", files["top"][0]}, func(t Token) (out []File) {
			calls++
			for i, data := range files[t.Text] {
				out = append(out, File{fmt.Sprintf("%s/%d", t.Text, i), data})
			}
			return out
		}, &o)
		if calls > MaxIncluded {
			t.Errorf("%d includes were followed", calls)
		}
		return o.lines, ok
	}
	chain := func(n int) map[string][]string {
		files := map[string][]string{"top": {"include <1>\n"}, fmt.Sprint(n): {"include <x>\np { }\n"}}
		for i := 1; i < n; i++ {
			files[fmt.Sprint(i)] = []string{fmt.Sprintf("include <%d>\n", i+1)}
		}
		return files
	}
	many := func(n int, text string) []string { return slices.Repeat([]string{text}, n) }
	for name, c := range map[string]struct {
		files map[string][]string
		ok    bool
		opens int
	}{
		"a directory":                   {map[string][]string{"top": {"include <d>\nq { }\n"}, "d": many(2000, "p { }\n")}, true, 2001},
		"a directory in each of many":   {map[string][]string{"top": {"include <a>\n"}, "a": many(200, "include <d>\n"), "d": many(200, "p { }\n")}, true, 40_000},
		"as deep as may be":             {chain(MaxDepth), true, 1},
		"deeper":                        {chain(MaxDepth + 1), false, 0},
		"endless":                       {map[string][]string{"top": {"include <a>\n"}, "a": many(2, "include <a>\n")}, false, 0},
		"empty files":                   {map[string][]string{"top": {strings.Repeat("include <d>\n", 1000)}, "d": many(2000, "")}, false, 0},
		"files that include two others": {map[string][]string{"top": {"include <a>\n"}, "a": {"include <b>\ninclude <b>\n"}, "b": many(1000, "include <c>\ninclude <c>\n"), "c": many(1000, "")}, false, 0},
		"includes of nothing":           {map[string][]string{"top": {strings.Repeat("include <x>\n", MaxIncluded+1)}}, false, 0},
	} {
		if opens, ok := walk(c.files); ok != c.ok || ok && len(opens) != c.opens {
			t.Errorf("%s: read to the end: %v, with %d blocks", name, ok, len(opens))
		}
	}
	// A file that is still to come has no lines yet.
	got, _ := walk(map[string][]string{"top": {"\ninclude <d>\nq { }\n"}, "d": {"\np { }\n", "p { }\n", "\n\np { }"}})
	if want := []string{"d/0:2=4", "d/1:1=6", "d/2:3=10", "top:3=11"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
}
