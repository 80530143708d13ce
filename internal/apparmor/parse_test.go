package apparmor

import (
	"path"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestParseNames(t *testing.T) {
	got, err := parseNames([]byte("a\nb c//d\n/usr/bin/x\n"))
	if d := cmp.Diff([]string{"a", "b c//d", "/usr/bin/x"}, got); d != "" || err != nil {
		t.Error(d, err)
	}
	for _, bad := range []string{"a\n\nb\n", "a\x00\n", "\xff\n", "a\x1b[2J\n", strings.Repeat("x", 5000) + "\n"} {
		if got, err := parseNames([]byte(bad)); err == nil {
			t.Errorf("%q was taken as %q", bad, got)
		}
	}
}

func FuzzParseNames(f *testing.F) {
	f.Add([]byte("a\nb//c\n"), "aaunit-1")
	f.Add([]byte("x\naaunit-1\ny\naaunit-1\n"), "aaunit-1")
	f.Fuzz(func(t *testing.T, b []byte, m string) {
		names, err := parseNames(b)
		if err == nil && len(names) > 0 && strings.Join(names, "\n") != strings.TrimSuffix(string(b), "\n") {
			t.Errorf("%q became %q", b, names)
		}
		_, _ = cutNames(b, []string{m})
		_, _ = cutBlobs(b, []string{m})
	})
}

func FuzzParseMountinfo(f *testing.F) {
	f.Add([]byte("36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n"))
	f.Add([]byte("1 1 8:1 / /tmp\\040x rw - ext4 /dev/sda1 rw\n2 1 0:30 / /tmp rw shared:1 - tmpfs tmpfs rw\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMountinfo(b)
		if err != nil {
			return
		}
		if where, ok := locate(m, "/tmp"); ok && !strings.Contains(where, " /") {
			t.Errorf("%q", where)
		}
	})
}

func FuzzParseLabel(f *testing.F) {
	f.Add("a b (enforce)\n")
	f.Add("unconfined\n")
	f.Add("x//&unconfined (enforce)")
	f.Add(":ns://a//b (complain)")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := attach.ParseLabel(s)
		if err != nil {
			return
		}
		if again, err := attach.ParseLabel(l.String()); err == nil && again.String() != l.String() {
			t.Errorf("%q: %q, then %q", s, l, again)
		}
		carries(l, "a")
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("12 (a) b) S 1 12 12 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 12345 1 1"))
	f.Fuzz(func(t *testing.T, b []byte) { parseStat(b) })
}

// What is read of a process's control groups can only be a session scope, and
// what is read of a group's processes only numbers.
func FuzzParseGroups(f *testing.F) {
	f.Add([]byte("0::/user.slice/user-7.slice/session-1.scope\n"))
	f.Add([]byte("1:name=systemd:/x\n0::/system.slice/a.service/sub\n"))
	f.Add([]byte("1\n2\n0\n99999999999999999999\n"))
	f.Add([]byte("Name:\tx\nTgid:\t7\nPPid:\t1\nUid:\t0\t0\t0\t0\n"))
	f.Add([]byte("0::/user.slice/user-../..slice/session-1.scope/../../x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if group := parseSession(b); group != "" && (path.Clean(group) != group || strings.Count(group, "/") != 3) {
			t.Errorf("%q gives the session %q", b, group)
		}
		ids, err := parseIDs(b)
		if err == nil && len(ids) != len(strings.Fields(string(b))) {
			t.Errorf("%q gives %v", b, ids)
		}
		for _, id := range ids {
			if id < 0 {
				t.Errorf("%q gives %v", b, ids)
			}
		}
		for _, field := range statusField(b, "Tgid") {
			if strings.ContainsAny(field, " \n\t") {
				t.Errorf("%q gives the field %q", b, field)
			}
		}
	})
}

// A pattern becomes an expression of bounded size, whatever its variables are.
func FuzzCompileGlob(f *testing.F) {
	f.Add("/usr/{bin,sbin}/@{exec}", "a b", "/usr/bin/a")
	f.Add("@{X}@{X}@{X}", "@{X}", "")
	f.Add("/[^/]**[a-z]?\\*", "", "/x")
	f.Add("/{a,b}{c,d}{e,{f,g}}**", "{", "//ac")
	f.Fuzz(func(t *testing.T, pattern, value, program string) {
		re, ok := compileGlob(pattern, map[string][]string{"X": {value, "/y"}, "exec": strings.Fields(value)})
		if !ok {
			return
		}
		if n := len(re.String()); n > 2*maxExpanded {
			t.Errorf("a pattern of %d bytes became one of %d", len(pattern), n)
		}
		re.MatchString(program)
		if n := literalPrefix(pattern); n < 0 || n > len(pattern) {
			t.Error(n)
		}
		if !strings.ContainsAny(pattern, `*?[]{}@\`) && utf8.ValidString(pattern) && !re.MatchString(pattern) {
			t.Errorf("%q does not match itself", pattern)
		}
	})
}

// Whatever the parser prints becomes one printable line of bounded length.
func FuzzParserSays(f *testing.F) {
	f.Add("AppArmor parser error for /scratch/top/0 in profile /scratch/top/0 at line 3: syntax error, unexpected TOK_ID\n", "a\nb\nsocket (tcp) optname=1,\n")
	f.Add("AppArmor parser error for x in /etc/apparmor.d/a at line 99999999999999999999: boom", "")
	f.Add("Cache read/write disabled\n\x1b[31m\xff\x00\n", "optname=\n")
	f.Fuzz(func(t *testing.T, said, text string) {
		const file = "/etc/apparmor.d/a"
		src := &source{file: file, files: map[string]*content{file: {data: []byte(text)}}}
		c := &copied{dir: "/scratch", names: map[string]string{"/scratch/top/0": file}}
		p := problem(file, newCompileError(src, c.original(said), nil))
		if p.Code != attach.ProfileBroken || !strings.HasPrefix(p.Detail, "cannot compile "+file) || !strings.HasPrefix(p.Where, "/") {
			t.Errorf("%q gives %+v", said, p)
		}
		if len(p.Detail) > 2100 || !utf8.ValidString(p.Detail+p.Where) || strings.ContainsFunc(p.Detail+p.Where, func(r rune) bool { return r < 0x20 && r != '\t' || r == 0x7f }) {
			t.Errorf("%q gives %q at %q", said, p.Detail, p.Where)
		}
	})
}

func TestLocate(t *testing.T) {
	const shared = `22 1 8:1 / / rw shared:1 - ext4 /dev/vda rw
23 22 0:30 / /tmp rw shared:2 - tmpfs tmpfs rw
`
	const private = `222 1 8:1 / / rw master:1 - ext4 /dev/vda rw
223 222 0:30 / /tmp rw master:2 - tmpfs tmpfs rw
224 223 0:30 /systemd-private-1-x.service-a/tmp /tmp rw master:2 - tmpfs tmpfs rw
225 222 8:1 /var/tmp/systemd-private-1-x.service-b/tmp /var/tmp rw master:1 - ext4 /dev/vda rw
226 222 8:1 /od\040d /tmp\040x rw master:1 - ext4 /dev/vda rw
`
	for _, c := range []struct{ text, path, want string }{
		{shared, "/tmp", "0:30 /"},
		{shared, "/var/tmp", "8:1 /var/tmp"},
		{private, "/tmp", "0:30 /systemd-private-1-x.service-a/tmp"},
		{private, "/var/tmp", "8:1 /var/tmp/systemd-private-1-x.service-b/tmp"},
		{private, "/tmp x/y", "8:1 /od d/y"},
		// A bind of /var on itself hides the private mount below the one before.
		{private + "230 222 8:1 /var /var rw - ext4 /dev/vda rw\n", "/var/tmp", "8:1 /var/tmp"},
		{private + "230 222 8:1 /var /var rw - ext4 /dev/vda rw\n231 230 8:1 /x /var/tmp rw - ext4 /dev/vda rw\n", "/var/tmp", "8:1 /x"},
		// Mounted twice at the same place, and its own parent.
		{private + "232 224 0:31 / /tmp rw - tmpfs tmpfs rw\n", "/tmp", "0:31 /"},
		{"1 1 8:1 / / rw - ext4 x rw\n2 1 8:1 /sub /tmp rw - ext4 x rw\n", "/tmp", "8:1 /sub"},
		{"1 1 8:1 /sub /tmp rw - ext4 x rw\n", "/tmp", "8:1 /sub"},
		{"1 1 8:1 /sub /tmp rw - ext4 x rw\n", "/var/tmp", ""},
		{"1 1 8:1 /sub /tmpx rw - ext4 x rw\n", "/tmp", ""},
	} {
		m, err := parseMountinfo([]byte(c.text))
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := locate(m, c.path); got != c.want {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
	for _, bad := range []string{"x\n", "22 1 8:1 / / rw shared:1 ext4 /dev/vda rw\n"} {
		if m, err := parseMountinfo([]byte(bad)); err == nil {
			t.Errorf("%q was taken as %v", bad, m)
		}
	}
}

// Rules that the scan calls leaving are rules to the parser, too.
func TestLeaveRulesAreRules(t *testing.T) {
	h := newHost(t)
	for _, rule := range []string{"/bin/sh Ux,", "Ux /bin/sh,", "owner /bin/sh rPUx -> other,", `"/bin/with space" CUx -> child,`, "unsafe /bin/sh Ux,",
		"change_profile,", "change_profile unsafe /bin/x -> unconfined,", "owner { /bin/sh Ux, }", "/bin/{a,b}/** rUx,", "audit allow file /bin/x pux,", "/bin/x cux,"} {
		f := h.profile("p", "profile p {\n  "+rule+"\n}\n")
		done, problems := h.Compile(ctx(t), []string{f}, false)
		if len(done) != 1 || len(done[0].Profiles[0].Leaves) != 1 {
			t.Errorf("%s: %+v %+v", rule, done, problems)
		}
	}
}

func BenchmarkScanText(b *testing.B) {
	text := "profile p {\n" + strings.Repeat("  owner @{HOME}/{a,b}/** rwk, # comment\n  /usr/bin/x Px -> y,\n", 1000) + "}\n"
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		scanOf(text)
	}
}
