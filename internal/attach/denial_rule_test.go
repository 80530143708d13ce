package attach

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// file is a denial of something to do with a path.
func fileDenial(operation, mask, name string) Denial {
	return Denial{Count: 1, Profile: "x", Operation: operation, Requested: mask, Denied: mask, Name: name}
}

func owned(d Denial) Denial {
	d.HasOwner, d.FSUID, d.OUID = true, 1000, 1000
	return d
}

// ruleCases are records and the rules for them, "" for none.
func ruleCases() []struct {
	d    Denial
	rule string
} {
	foreign := owned(fileDenial("open", "r", "/home/a"))
	foreign.OUID = 0
	link := fileDenial("link", "l", "/new")
	link.Target = "/old name"
	link.Info = "link not subset of target"
	pair := link
	pair.Info = "target restricted"
	signal := func(mask, sig, peer string) Denial {
		return Denial{Count: 1, Profile: "x", Operation: "signal", Requested: mask, Denied: mask, Signal: sig, Peer: peer}
	}
	ptrace := func(mask, peer string) Denial {
		return Denial{Count: 1, Profile: "x", Operation: "ptrace", Requested: mask, Denied: mask, Peer: peer}
	}
	net := func(op, family, typ, mask string) Denial {
		return Denial{Count: 1, Profile: "x", Operation: op, Class: "net", Family: family, SockType: typ, Requested: mask, Denied: mask}
	}
	mount := func(fstype, source, name, flags string) Denial {
		return Denial{Count: 1, Profile: "x", Operation: "mount", Class: "mount", FSType: fstype, Source: source, Name: name, Flags: flags, Info: "failed mntpnt match", Error: -13}
	}
	with := func(d Denial, f func(*Denial)) Denial { f(&d); return d }
	return []struct {
		d    Denial
		rule string
	}{
		{fileDenial("open", "r", "/proc/sys/net/core/somaxconn"), "/proc/sys/net/core/somaxconn r,"},
		{owned(fileDenial("open", "wc", "/var/lib/a/b")), "owner /var/lib/a/b w,"},
		{foreign, "/home/a r,"},
		{fileDenial("open", "ac", "/var/log/a"), "/var/log/a w,"},
		{fileDenial("open", "a", "/var/log/a"), "/var/log/a a,"},
		{fileDenial("unlink", "d", "/run/a"), "/run/a w,"},
		{fileDenial("file_lock", "k", "/run/a"), "/run/a k,"},
		{fileDenial("file_mmap", "rm", "/usr/lib/a.so.1"), "/usr/lib/a.so.1 mr,"},
		{fileDenial("mkdir", "c", "/srv/d/"), "/srv/d/ w,"},
		{fileDenial("exec", "x", "/usr/bin/id"), "/usr/bin/id ix,"},
		{fileDenial("open", "rwcxkml", "/a"), "/a mrwklix,"},
		{fileDenial("open", "r", "/a b"), `"/a b" r,`},
		{fileDenial("open", "r", `/q"\*?[x]{y,z}^`), `"/q\042\134\*\?\[x\]\{y\,z\}\^" r,`},
		{fileDenial("open", "r", "/@{HOME}/x"), `"/\100\{HOME\}/x" r,`},
		{fileDenial("open", "r", "/a\n\x1b[2J\xff\u00e9"), `"/a\012\033\[2J\377\303\251" r,`},
		{fileDenial("open", "r", "/proc/4711/task/4712/comm"), "/proc/[0-9]*/task/[0-9]*/comm r,"},
		{owned(fileDenial("open", "r", "/proc/4711/a b")), `owner "/proc/[0-9]*/a b" r,`},
		{fileDenial("open", "r", "/proc/1/environ"), "/proc/1/environ r,"},
		{fileDenial("open", "r", "/proc/1/task/4712/comm"), "/proc/1/task/[0-9]*/comm r,"},
		{fileDenial("open", "r", "/proc/sys/4711"), "/proc/sys/4711 r,"},
		{fileDenial("open", "r", "run/foo"), ""},
		{fileDenial("open", "r", "/a//b"), ""},
		{fileDenial("open", "r", "/a\x00b"), ""},
		{fileDenial("open", "rz", "/a"), ""},
		{fileDenial("open", "", "/a"), ""},
		{fileDenial("open", "r", ""), ""},
		{with(fileDenial("open", "r", "/a"), func(d *Denial) { d.Cut = true }), ""},
		{with(fileDenial("open", "r", "a"), func(d *Denial) { d.Info = "Failed name lookup - disconnected path" }), ""},
		{with(fileDenial("exec", "x", "/a"), func(d *Denial) { d.Info = "no new privs" }), ""},
		{with(fileDenial("open", "r", "/a"), func(d *Denial) { d.Class = "io_uring" }), ""},
		{link, `link /new -> "/old name",`},
		{pair, `link /new -> "/old name",`},
		{with(link, func(d *Denial) { d.Target = "" }), ""},
		{Denial{Operation: "capable", Capability: "net_admin"}, "capability net_admin,"},
		{Denial{Operation: "capable", Capability: "fly"}, ""},
		{net("create", "inet", "stream", "create"), "network inet stream,"},
		{net("sendmsg", "inet6", "dgram", "send receive"), "network inet6 dgram,"},
		{net("create", "unix", "stream", "create"), "network unix stream,"},
		{with(net("connect", "unix", "stream", "send receive connect"), func(d *Denial) { d.Class, d.Peer = "unix", "a b" }), `unix (send, receive, connect) type=stream peer=(label="a b"),`},
		{net("create", "unknown(99)", "stream", "create"), ""},
		{net("create", "inet", "dccp", "create"), ""},
		{signal("send", "term", "x"), "signal (send) set=(term) peer=x,"},
		{signal("receive", "rtmin+5", "unconfined"), "signal (receive) set=(rtmin+5) peer=unconfined,"},
		{signal("send", "term", "my agent*//hat//&b"), `signal (send) set=(term) peer="my agent\*//hat//&b",`},
		{signal("send", "term", "x//null-/bin/a"), ""},
		{signal("send", "unknown(70)", "x"), ""},
		{signal("send", "rtmin+33", "x"), ""},
		{signal("send", "term", ""), ""},
		{ptrace("read", "unconfined"), "ptrace (read) peer=unconfined,"},
		{ptrace("tracedby", "/usr/bin/gdb"), "ptrace (tracedby) peer=/usr/bin/gdb,"},
		{ptrace("wink", "unconfined"), ""},
		{mount("tmpfs", "tmpfs", "/mnt/", "rw, nosuid"), "mount fstype=tmpfs options=(rw, nosuid) tmpfs -> /mnt/,"},
		{mount("", "/a b/", "/c/", "rw, rbind"), `mount options=(rw, rbind) "/a b/" -> /c/,`},
		{mount("", "", "/", "rw, rprivate"), "mount options=(rw, rprivate) -> /,"},
		{mount("", "", "/c/", "ro, remount, bind"), "mount options=(ro, remount, bind) -> /c/,"},
		{mount("", "/a/", "/c/", "rw, move"), "mount options=(rw, move) /a/ -> /c/,"},
		{mount("", "", "/c/", "rw, bind"), ""},
		{mount("", "/a/", "/c/", "rw, private"), ""},
		{mount("", "/a/", "/c/", "rw, unknown"), ""},
		{mount("a b", "/a/", "/c/", "rw"), ""},
		{Denial{Operation: "umount", Name: "/c d/"}, `umount "/c d/",`},
		{Denial{Operation: "pivotroot", Name: "/new/", Source: "/new/old/"}, "pivot_root oldroot=/new/old/ /new/,"},
		{Denial{Operation: "setrlimit", Rlimit: "nofile", Value: "4096"}, "set rlimit nofile <= 4096,"},
		{Denial{Operation: "setrlimit", Rlimit: "memlock", Value: "18446744073709551615"}, "set rlimit memlock <= infinity,"},
		{Denial{Operation: "setrlimit", Rlimit: "nice", Value: "4"}, ""},
		{Denial{Operation: "change_profile", Name: "unconfined"}, ""},
		{Denial{Operation: "userns_create", Class: "namespace"}, ""},
		{Denial{Operation: "dbus_method_call", Name: "org.x"}, ""},
		{Denial{Lost: 3}, ""},
		{Denial{Deaf: "no"}, ""},
	}
}

func TestRule(t *testing.T) {
	for _, c := range ruleCases() {
		p := c.d.Rule()
		if p.Rule != c.rule {
			t.Errorf("%+v:\n%s\nwant\n%s", c.d, p.Rule, c.rule)
		}
		if p.Rule == "" && p.Note == "" {
			t.Errorf("%+v: neither a rule nor why there is none", c.d)
		}
		if err := checkRule(p.Rule); err != nil {
			t.Error(err)
		}
	}
	d := fileDenial("open", "r", "/etc/x")
	d.Profile = "my agent//null-/usr/bin/id//null-/bin/sh"
	if p := d.Rule(); p.Profile != "my agent" || p.Rule != "/etc/x r," || !strings.Contains(p.Note, "ix") {
		t.Errorf("%+v", p)
	}
	d.Profile = "a//&b"
	if p := d.Rule(); p.Profile != "a//&b" || !strings.Contains(p.Note, "each") {
		t.Errorf("%+v", p)
	}
}

// Nothing that leads out of a profile is proposed, and a rule is one line that a
// terminal cannot take for anything else.
var (
	ruleString = `(?:[a-zA-Z/](?:[a-zA-Z0-9/._*-]|\[0-9\])*|"(?:[^"\\@\x00-\x1f\x7f-\xff]|@[^{\\]|@"?|\\[*?\[\]{}^,]|\\[0-7]{3})+")`
	rulePathRE = `(?:/(?:[a-zA-Z0-9/._*-]|\[0-9\])*|"/(?:[^"\\\x00-\x1f\x7f-\xff]|\\[*?\[\]{}^,]|\\[0-7]{3})*")`
	ruleForms  = func() (out []*regexp.Regexp) {
		for _, form := range []string{
			`(owner )?PATH (m?r?(w|a)?k?l?(ix)?)`,
			`(owner )?link PATH -> PATH`,
			`capability [a-z_]+`,
			`network [a-z0-9]+ (stream|dgram|seqpacket|rdm|raw|packet)`,
			`unix \((send|receive|connect|accept)(, (send|receive|connect|accept))*\) type=[a-z]+ peer=\(label=STRING\)`,
			`signal \((send|receive)(, (send|receive))?\) set=\(([a-z0-9]+|rtmin\+[0-9]+)\) peer=STRING`,
			`ptrace \([a-z]+(, [a-z]+)*\) peer=STRING`,
			`mount (fstype=[a-z0-9_.]+ )?options=\([a-z]+(, [a-z]+)*\) (STRING )?-> PATH`,
			`umount PATH`,
			`pivot_root oldroot=PATH PATH`,
			`set rlimit [a-z]+ <= ([0-9]+|infinity)`,
		} {
			form = strings.ReplaceAll(strings.ReplaceAll(form, "PATH", rulePathRE), "STRING", ruleString)
			out = append(out, regexp.MustCompile("^"+form+",$"))
		}
		return out
	}()
)

// checkRule is a second, strict opinion on what a rule may look like.
func checkRule(rule string) error {
	if rule == "" {
		return nil
	}
	for i := 0; i < len(rule); i++ {
		if rule[i] < ' ' || rule[i] > '~' {
			return fmt.Errorf("%q holds what is not printable ASCII", rule)
		}
	}
	if strings.Contains(rule, "@{") {
		return fmt.Errorf("%q holds a variable", rule)
	}
	if strings.HasSuffix(rule, `" ,`) || strings.HasSuffix(rule, " ,") {
		return fmt.Errorf("%q has no permissions", rule)
	}
	for _, form := range ruleForms {
		if form.MatchString(rule) {
			return nil
		}
	}
	return fmt.Errorf("%q is none of the forms of a rule", rule)
}

// compile has the installed parser compile a profile for each of these rules.
func compile(t *testing.T, rules ...string) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile")
	var text strings.Builder
	for i, r := range rules { // what one leaves open must not be closed by the next
		fmt.Fprintf(&text, "profile x%d {\n  %s\n}\n", i, r)
	}
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	cmd := osexec.Command("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--ofile=/dev/null", file)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w\n%s", err, out.String())
	}
	return nil
}

// Each rule, and every word in the tables, is what the installed parser compiles.
func TestRulesCompile(t *testing.T) {
	var rules []string
	add := func(d Denial) {
		t.Helper()
		p := d.Rule()
		if p.Rule == "" {
			t.Errorf("no rule for %+v", d)
		}
		rules = append(rules, p.Rule)
	}
	for _, c := range ruleCases() {
		if c.rule != "" {
			rules = append(rules, c.d.Rule().Rule)
		}
	}
	for _, c := range capabilities {
		add(Denial{Operation: "capable", Capability: c})
	}
	for _, f := range families {
		for _, s := range socketTypes {
			add(Denial{Operation: "create", Family: f, SockType: s, Denied: "create"})
		}
	}
	for _, s := range signals {
		add(Denial{Operation: "signal", Signal: s, Denied: "send", Peer: "peer"})
	}
	for i := range 33 {
		add(Denial{Operation: "signal", Signal: fmt.Sprint("rtmin+", i), Denied: "receive", Peer: "in"})
	}
	for _, peer := range []string{"x", "owner", "->", "a//&b", ":ns:x", "&x", "(x)", "x (y)", "#include", "@{x}", "a=b", "-", "1", "*", "\xff", "set", "peer="} {
		add(Denial{Operation: "ptrace", Denied: "read", Peer: peer})
		add(Denial{Operation: "signal", Signal: "hup", Denied: "send receive", Peer: peer})
		add(Denial{Operation: "connect", Family: "unix", SockType: "stream", Denied: "send receive connect accept", Peer: peer})
		add(Denial{Operation: "mount", Name: "/m/", Source: peer, FSType: "tmpfs", Flags: "rw"})
	}
	for _, r := range rlimits {
		add(Denial{Operation: "setrlimit", Rlimit: r, Value: "4096"})
		add(Denial{Operation: "setrlimit", Rlimit: r, Value: "18446744073709551615"})
	}
	for _, f := range mountFlags {
		add(Denial{Operation: "mount", Name: "/m/", Source: "/d", FSType: "fuse.x", Flags: "rw, " + map[bool]string{true: "nosuid", false: f}[f == "rw"]})
		for _, k := range []string{"bind", "rbind", "move"} {
			add(Denial{Operation: "mount", Name: "/m/", Source: "/d/", Flags: map[bool]string{true: k, false: f + ", " + k}[f == "rw"]})
		}
	}
	for _, k := range mountKinds {
		if k != "bind" && k != "rbind" && k != "move" {
			add(Denial{Operation: "mount", Name: "/m/", Flags: "rw, " + k})
		}
	}
	for c := 1; c < 256; c++ {
		if c != '/' {
			add(fileDenial("open", "r", "/x"+string([]byte{byte(c)})+"{y"))
			add(fileDenial("open", "r", "/"+string([]byte{byte(c)})))
			add(Denial{Operation: "umount", Name: "/x" + string([]byte{byte(c)})})
		}
	}
	// Names of what the parser's own syntax is made of.
	pieces := []string{"a", "/", "//", "*", "**", "?", "[", "]", "[^", "{", "}", "{a,b}", ",", "^", "\"", "\\", "\\\"", " ", "\n", "\t", "#", "#include <x>", "@", "@{", "@{x}",
		"->", "=", "(", ")", "&", "!", "$", "'", "<", ">", ":", ";", "|", "%", "~", ".", "..", "-", "\x01", "\x7f", "\x80", "\xff", "é", "\u202e", "0", "7", "052", "x41", "d42", "r,", "}\nprofile y {"}
	random := rand.New(rand.NewPCG(1, 2))
	name := func() string {
		var b strings.Builder
		for range 1 + random.IntN(8) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	for range 300 {
		for _, d := range []Denial{
			owned(fileDenial("open", "rwkm", "/"+name())), fileDenial("exec", "x", "/"+name()),
			{Operation: "link", Name: "/" + name(), Target: "/" + name(), Denied: "l"},
			{Operation: "ptrace", Denied: "read", Peer: name()},
			{Operation: "mount", Name: "/" + name(), Source: name(), Flags: "rw, bind"},
			{Operation: "pivotroot", Name: "/" + name(), Source: "/" + name()},
		} {
			if r := d.Rule().Rule; r != "" {
				rules = append(rules, r)
			}
		}
	}
	for _, r := range rules {
		if err := checkRule(r); err != nil {
			t.Error(err)
		}
	}
	if err := compile(t, "/a zz,"); err == nil {
		t.Fatal("the parser compiles everything")
	}
	if err := compile(t, rules...); err == nil {
		return
	}
	for _, r := range rules { // which one?
		if err := compile(t, r); err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
}

// automaton is a compiled one of file rules, as the kernel walks it
// (security/apparmor/match.c). The tables are in the order of their ids.
type automaton struct{ accept, base, check, def, next []uint32 }

// compiled gives the automaton of the file rules among these.
func compiled(t *testing.T, rules ...string) automaton {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte("profile x {\n  "+strings.Join(rules, "\n  ")+"\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	blob, err := osexec.Command("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--stdout", file).Output()
	if err != nil {
		t.Fatal(err, compile(t, rules...))
	}
	at := bytes.LastIndex(blob, []byte{0x1b, 0x5e, 0x78, 0x3d}) // the file rules come last
	if at < 0 {
		t.Fatal("no automaton in the policy")
	}
	dfa := blob[at:]
	dfa = dfa[:binary.BigEndian.Uint32(dfa[8:])]
	var a automaton
	for off := int(binary.BigEndian.Uint32(dfa[4:])); off+12 <= len(dfa); {
		id, size, n := binary.BigEndian.Uint16(dfa[off:]), int(binary.BigEndian.Uint16(dfa[off+2:])), int(binary.BigEndian.Uint32(dfa[off+8:]))
		list := make([]uint32, n)
		for i := range list {
			switch e := dfa[off+12+i*size:]; size {
			case 1:
				list[i] = uint32(e[0])
			case 2:
				list[i] = uint32(binary.BigEndian.Uint16(e))
			default:
				list[i] = binary.BigEndian.Uint32(e)
			}
		}
		switch id {
		case 1:
			a.accept = list
		case 2:
			a.base = list
		case 3:
			a.check = list
		case 4:
			a.def = list
		case 8:
			a.next = list
		}
		off = (off + 12 + n*size + 7) &^ 7
	}
	return a
}

// allows gives the permissions of others than the owner for a path.
func (a automaton) allows(path string) uint32 {
	s := uint32(1)
	for i := 0; i < len(path); i++ {
		for {
			at := a.base[s]&0xffffff + uint32(path[i])
			if at < uint32(len(a.check)) && a.check[at] == s {
				s = a.next[at]
				break
			}
			again := a.base[s]&(1<<31) != 0
			if s = a.def[s]; !again {
				break
			}
		}
	}
	return a.accept[s] >> 14 & 0x3fff
}

// What is compiled is the path that was denied, and no other: no byte of it is
// special.
func TestRulesAllowJustThePath(t *testing.T) {
	var paths, rules []string
	for c := 1; c < 256; c++ {
		if c != '/' {
			paths = append(paths, "/a"+string([]byte{byte(c)})+"b", "/"+string([]byte{byte(c)}), "/z"+string([]byte{byte(c)}))
		}
	}
	paths = append(paths, "/v@{HOME}/x", `/v\x41`, `/v\`, "/v[a-z]*", "/v{a,b}", "/v**", "/v\\*", "/v^a", "/v!a", "/v\\052")
	for _, p := range paths {
		rules = append(rules, fileDenial("open", "r", p).Rule().Rule)
	}
	a := compiled(t, rules...)
	for _, p := range paths {
		if a.allows(p) == 0 {
			t.Errorf("%s does not allow %q", fileDenial("open", "r", p).Rule().Rule, p)
		}
	}
	for _, p := range []string{"/abb", "/azzb", "/ab", "/a", "/", "/zz z", "/v/x", "/va", "/vb", "/vxx", "/vA", "/v*a", "/v{a", "/v[a-z]", "/root/x"} {
		if a.allows(p) != 0 && !strings.Contains("\x00"+strings.Join(paths, "\x00")+"\x00", "\x00"+p+"\x00") {
			t.Errorf("%q is allowed, and nobody was denied it", p)
		}
	}
	pid := compiled(t, fileDenial("open", "r", "/proc/4711/stat").Rule().Rule)
	if pid.allows("/proc/1/stat") == 0 || pid.allows("/proc/self/stat") != 0 || pid.allows("/proc/1/task/1/stat") != 0 {
		t.Error("a number of a process is not just a number")
	}
}

// FuzzRule: whatever the record, what is proposed is a rule of a form that the
// parser compiles (TestRulesCompile), or nothing and why.
func FuzzRule(f *testing.F) {
	for _, c := range ruleCases() {
		d := c.d
		f.Add(d.Operation, d.Class, d.Name, d.Target, d.Source, d.Peer, d.Denied, d.Family, d.SockType, d.Capability, d.Signal, d.FSType, d.Flags, d.Rlimit, d.Value, d.Info, d.FSUID == d.OUID)
	}
	f.Fuzz(func(t *testing.T, operation, class, name, target, source, peer, denied, family, sockType, capability, signal, fsType, flags, rlimit, value, info string, owner bool) {
		d := Denial{Operation: operation, Class: class, Name: name, Target: target, Source: source, Peer: peer, Denied: denied, Family: family,
			SockType: sockType, Capability: capability, Signal: signal, FSType: fsType, Flags: flags, Rlimit: rlimit, Value: value, Info: info, HasOwner: owner, Profile: peer}
		p := d.Rule()
		if err := checkRule(p.Rule); err != nil {
			t.Fatalf("%v: %+v", err, d)
		}
		if (p.Rule == "") && p.Note == "" {
			t.Fatalf("neither a rule nor why: %+v", d)
		}
		if got := printable(d.What()); got != d.What() {
			t.Fatalf("%q is not fit to be shown", d.What())
		}
		for _, exit := range []string{"ux,", "Ux,", "px,", "Px,", "change_profile"} {
			if strings.HasSuffix(p.Rule, exit) || strings.HasPrefix(p.Rule, exit) {
				t.Fatalf("%s leads out of the profile: %+v", p.Rule, d)
			}
		}
	})
}
