package rules

import (
	"bytes"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// The proof that the right rule is found: for what the parser makes of a text,
// and for paths, sockets and names without number, the compiled policy allows
// exactly what some rule is found for.
func TestTextAgreesWithThePolicy(t *testing.T) {
	for _, file := range []string{"files", "exec", "other"} {
		t.Run(file, func(t *testing.T) {
			differ(t, "testdata/apparmor.d", "testdata/apparmor.d/"+file, 40)
		})
	}
}

// The profiles of this machine, with the abstractions that most are made of, or
// those of a directory that AAUNIT_PROFILES names, such as a larger corpus.
func TestTextAgreesWithThePolicyHere(t *testing.T) {
	base := os.Getenv("AAUNIT_PROFILES")
	if base == "" {
		base = "/etc/apparmor.d"
	}
	files := profilesIn(t, base)
	if len(files) == 0 {
		t.Fatal("no profiles here: apt-get install apparmor")
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) { differ(t, base, file, 2) })
	}
}

func profilesIn(t *testing.T, dir string) (out []string) {
	t.Helper()
	all, err := filepath.Glob(dir + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() {
			out = append(out, f)
		}
	}
	return out
}

// sourcesIn is all text below a directory, as Read takes it.
func sourcesIn(t testing.TB, base string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	err := filepath.WalkDir(base, func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			out[abs(p)+"/"] = nil
		default:
			if data, err := os.ReadFile(p); err == nil {
				out[abs(p)] = data
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func abs(p string) string { a, _ := filepath.Abs(p); return a }

// compile gives a file to the system's parser. A test that were skipped without
// one would prove nothing: "make check" installs it.
func compile(t testing.TB, base, file string) []policydb.Profile {
	t.Helper()
	parser := "/usr/sbin/apparmor_parser"
	if _, err := os.Stat(parser); err != nil {
		parser = "/sbin/apparmor_parser"
	}
	has := features(t)
	var out, problems bytes.Buffer
	cmd := exec.Command(parser, "--skip-kernel-load", "--skip-cache", "--stdout", "--base", abs(base),
		"--kernel-features="+has, "--policy-features="+has, abs(file))
	cmd.Dir = abs(base) // for includes without a path
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, problems.String())
	}
	all, err := policydb.Parse(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// features are those that the parser's package brings, and D-Bus, which its
// kernel does not mediate.
func features(t testing.TB) string {
	t.Helper()
	data, err := os.ReadFile("/usr/share/apparmor-features/features")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "features")
	if err := os.WriteFile(file, append(data, "dbus {mask {acquire send receive\n}\n}\n"...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func differ(t *testing.T, base, file string, samples int) {
	text, err := Read(sourcesIn(t, base), abs(file), abs(base))
	if err != nil {
		t.Fatal(err)
	}
	if len(text.Problems) > 0 {
		t.Errorf("problems: %q", text.Problems)
	}
	compiled := compile(t, base, file)
	var names, want []string
	for _, p := range text.Profiles {
		names = append(names, p.Name)
	}
	for _, p := range compiled {
		found := text.Profile(p.Name)
		if found == nil {
			t.Fatalf("%s is not in the text: %q", p.Name, names)
		}
		want = append(want, found.Name)
	}
	slices.Sort(names)
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Fatalf("profiles %q, and the policy has %q", names, want)
	}
	for i := range compiled {
		d := &comparison{T: t, text: text, p: &compiled[i], r: rand.New(rand.NewPCG(1, uint64(i)))}
		d.doubts()
		d.files(samples)
		d.links()
		d.sockets()
		d.capabilities()
		d.changes()
		d.signals()
		d.buses()
	}
}

type comparison struct {
	*testing.T
	text *Text
	p    *policydb.Profile
	r    *rand.Rand
	bad  int
}

func (d *comparison) differs(format string, args ...any) {
	d.Helper()
	if d.bad++; d.bad < 15 {
		d.Errorf(d.p.Name+": "+format, args...)
	}
}

// doubts: in the profiles that are compared every rule is understood.
func (d *comparison) doubts() {
	for _, r := range d.text.Profile(d.p.Name).Rules {
		if r.Doubt != "" && !strings.Contains(r.Doubt, "behind a condition") || r.Class == ClassUnknown {
			d.differs("%s:%d: %s: %s", r.File, r.Line, r.Raw, r.Doubt)
		}
		if r.File == "" || r.Line == 0 || r.Raw == "" && !r.Implicit {
			d.differs("no place: %+v", r)
		}
	}
}

// paths are such as rules are about, and their neighbours.
func (d *comparison) paths(samples int) []string {
	// The parser adds rules by itself; these are where.
	out := []string{"/", "/proc/1/attr/current", "/proc/12/attr/exec", "/proc/1/attr/apparmor/current", "/proc/x/attr/apparmor/exec",
		"/proc/x/attr/current", "/proc/1/attr/apparmor/", "/sys/module/apparmor/parameters/enabled", "/tmp/a", "/etc/shadow",
		"/alias/bin/px", "/alias/bin/ux", "/mnt/data/a", "/sub/run/txt/y"}
	// What the policy grants that the text may know nothing of.
	for _, glob := range []string{"/**", "/*", "/proc/**", "/sys/**", "/etc/**"} {
		for _, perm := range filePerms {
			pat, err := policydb.ParsePattern(glob)
			if err != nil {
				d.Fatal(err)
			}
			if res := d.p.Find(policydb.Query{Pattern: pat, Any: perm, Limit: 100_000}); res.Witness != "" {
				out = append(out, res.Witness)
			}
		}
	}
	seen := map[string]bool{}
	for _, s := range out {
		seen[s] = true
	}
	for _, r := range d.text.Profile(d.p.Name).Rules {
		if r.Class != ClassFile {
			continue
		}
		for range samples {
			patterns := []string{r.Path}
			for _, a := range r.aliases {
				patterns = append(patterns, a.pattern.text)
			}
			for _, pat := range patterns {
				s := sample(d.r, pat)
				for _, s := range []string{s, s + "/", s + "x", strings.TrimSuffix(s, "/"), mutate(d.r, s)} {
					if s = canonical(s); s != "" && !seen[s] {
						seen[s] = true
						out = append(out, s)
					}
				}
			}
		}
	}
	return out
}

// sample is a string that a pattern matches, most likely.
func sample(r *rand.Rand, pat string) string {
	var b strings.Builder
	for i := 0; i < len(pat); i++ {
		switch c := pat[i]; c {
		case '\\':
			if i++; i < len(pat) {
				b.WriteByte(pat[i])
			}
		case '*':
			deep := i+1 < len(pat) && pat[i+1] == '*'
			if deep {
				i++
			}
			for range r.IntN(4) {
				b.WriteByte("abz.x0"[r.IntN(6)])
				if deep && r.IntN(3) == 0 {
					b.WriteByte('/')
				}
			}
		case '?':
			b.WriteByte('q')
		case '[':
			end := strings.IndexByte(pat[i:], ']')
			if end < 0 {
				return b.String()
			}
			b.WriteByte(pat[i+1+r.IntN(max(1, end-1))])
			i += end
		case '{':
			depth, from := 1, i+1
			var alts []string
			j := i + 1
			for ; j < len(pat) && depth > 0; j++ {
				switch pat[j] {
				case '\\':
					j++
				case '{':
					depth++
				case '}':
					depth--
				case ',':
					if depth == 1 {
						alts = append(alts, pat[from:j])
						from = j + 1
					}
				}
			}
			if j > len(pat) || from > j-1 {
				return b.String()
			}
			alts = append(alts, pat[from:j-1])
			b.WriteString(sample(r, alts[r.IntN(len(alts))]))
			i = j - 1
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

func mutate(r *rand.Rand, s string) string {
	if s == "" {
		return s
	}
	i := r.IntN(len(s))
	return s[:i] + string("a/x."[r.IntN(4)]) + s[i+1:]
}

// canonical is a path as the kernel has it, "" where it is none.
func canonical(s string) string {
	for strings.Contains(s, "//") {
		s = strings.ReplaceAll(s, "//", "/")
	}
	if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, "\x00") {
		return ""
	}
	for _, seg := range strings.Split(s[1:], "/") {
		if seg == "." || seg == ".." {
			return ""
		}
	}
	return s
}

var filePerms = []policydb.Perm{
	policydb.Exec, policydb.Write, policydb.Read, policydb.Append, policydb.Create, policydb.Delete, policydb.Open,
	policydb.SetAttr, policydb.Chmod, policydb.Chown, policydb.Link, policydb.Lock, policydb.Mmap,
}

func certain(g []Grant) bool {
	return slices.ContainsFunc(g, func(g Grant) bool { return g.May == "" })
}

func (d *comparison) files(samples int) {
	paths := d.paths(samples)
	some := 0
	for _, path := range paths {
		for _, as := range []policydb.Who{policydb.Owner, policydb.Other} {
			got, a := d.p.File(path, as)
			if a != policydb.Yes {
				d.differs("%s: %s", path, a)
				return
			}
			for _, perm := range filePerms {
				g := d.text.Granting(d.p.Name, Question{Class: ClassFile, Path: path, Perm: perm, As: as})
				if got.Allow&perm != 0 {
					some++
				}
				if (got.Allow&perm != 0) != certain(g) {
					d.differs("%s of %q as %s: the policy has %s, the text %s", perm, path, as, got.Allow, printed(g))
				}
			}
			x, a := d.p.Exec(path, as)
			if a != policydb.Yes {
				continue
			}
			g := d.text.Granting(d.p.Name, Question{Class: ClassFile, Path: path, Perm: policydb.Exec, As: as, Exec: &x})
			if !certain(g) {
				d.differs("exec of %q as %s: the policy has %s, the text none", path, as, x)
			}
			for _, k := range []policydb.ExecKind{policydb.ExecInherit, policydb.ExecProfile, policydb.ExecUnconfined, policydb.ExecChild} {
				y := policydb.Transition{Kind: k}
				if k != x.Kind && x.Kind != policydb.ExecNamed {
					if g := d.text.Granting(d.p.Name, Question{Class: ClassFile, Path: path, Perm: policydb.Exec, As: as, Exec: &y}); len(g) > 0 && k != policydb.ExecChild {
						d.differs("exec of %q as %s: the policy has %s, the text %s by %s", path, as, x, y, printed(g))
					}
				}
			}
		}
	}
	d.Logf("%s: %d paths, %d permissions granted", d.p.Name, len(paths), some)
}

func printed(g []Grant) string {
	var out []string
	for _, g := range g {
		out = append(out, fmt.Sprintf("%s:%d: %s (%s)", filepath.Base(g.File), g.Line, g.Raw, g.May))
	}
	return "[" + strings.Join(out, " ") + "]"
}

func (d *comparison) links() {
	var from, to []string
	for _, r := range d.text.Profile(d.p.Name).Rules {
		if r.Class != ClassFile || r.bits&bitLink == 0 {
			continue
		}
		for range 5 {
			from = append(from, canonical(sample(d.r, r.Path)))
			if r.Target != "" {
				to = append(to, canonical(sample(d.r, r.Target)))
			}
		}
	}
	to = append(to, "/data/a", "/etc/passwd", "/links2/x", "/data/no")
	for range 300 {
		if len(from) == 0 {
			break
		}
		a, b := from[d.r.IntN(len(from))], to[d.r.IntN(len(to))]
		if a == "" || b == "" {
			continue
		}
		g := d.text.Granting(d.p.Name, Question{Class: ClassFile, Path: a, Target: b, Perm: policydb.Link, As: policydb.Owner})
		subset := slices.ContainsFunc(g, func(g Grant) bool { return g.Subset || g.Target == "" })
		switch got := d.p.MayLink(a, b, policydb.Owner); {
		case got == policydb.Yes && !certain(g), got != policydb.Yes && certain(g) && !subset:
			d.differs("link %s -> %s: the policy says %s, the text %s", a, b, got, printed(g))
		}
	}
}

func (d *comparison) sockets() {
	for family := range 46 {
		for kind := range 11 {
			g := d.text.Granting(d.p.Name, Question{Class: ClassNetwork, Family: family, Type: kind})
			switch a := d.p.Network(uint16(family), uint16(kind), policydb.AllNet); a {
			case policydb.Unknown:
			case policydb.NotMediated:
				return
			default:
				// Types that no name is there for are of "network," only.
				named := kind >= 1 && kind <= 5 || kind == 10
				if (a == policydb.Yes) != certain(g) && (named || a == policydb.Yes) && (family != unixFamily || (a == policydb.Yes) != (len(g) > 0)) {
					d.differs("network %d %d: the policy says %s, the text %s", family, kind, a, printed(g))
				}
			}
		}
	}
}

var capabilities = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
	net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
	sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog
	wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore`)

func (d *comparison) capabilities() {
	for n, name := range capabilities {
		g := d.text.Granting(d.p.Name, Question{Class: ClassCapability, Capability: name})
		if a := d.p.Capability(n); (a == policydb.Yes) != certain(g) {
			d.differs("capability %s: the policy says %s, the text %s", name, a, printed(g))
		}
	}
}

func (d *comparison) changes() {
	names := []string{"a", "b", "unconfined", d.p.Name, d.p.Name + "//x", "ab", "abad", "acx", "quo ted", ":n:a", "/bin/x"}
	for _, r := range d.text.Profile(d.p.Name).Rules {
		if r.Class == ClassChangeProfile {
			for range 10 {
				s := sample(d.r, r.Path)
				names = append(names, s, s+"x", s+"//y")
			}
		}
	}
	for _, name := range names {
		if name == "" {
			continue
		}
		g := d.text.Granting(d.p.Name, Question{Class: ClassChangeProfile, Path: name})
		if a := d.p.MayChangeProfile(name); (a == policydb.Yes) != certain(g) {
			d.differs("change_profile -> %q: the policy says %s, the text %s", name, a, printed(g))
		}
	}
}

func (d *comparison) signals() {
	peers := []string{"unconfined", d.p.Name, "other", "otherx", "a", "b//c", "/usr/bin/a", "x"}
	for _, r := range d.text.Profile(d.p.Name).Rules {
		if r.Class == ClassSignal || r.Class == ClassPtrace {
			for _, c := range r.Conds {
				if c.Key == "peer" {
					for range 5 {
						peers = append(peers, sample(d.r, c.Values[0]))
					}
				}
			}
		}
	}
	for _, peer := range peers {
		for _, sig := range []string{"hup", "term", "kill", "usr1"} {
			n, _ := policydb.SignalNumber(sig)
			for access, perm := range map[string]policydb.Perm{"send": policydb.SignalSend, "receive": policydb.SignalReceive} {
				a := d.p.Signal(n, peer, perm)
				g := d.text.Granting(d.p.Name, Question{Class: ClassSignal, Fields: map[string]string{"access": access, "set": sig, "peer": peer}})
				if a != policydb.NotMediated && (a == policydb.Yes) != certain(g) {
					d.differs("signal %s %s %q: the policy says %s, the text %s", access, sig, peer, a, printed(g))
				}
			}
		}
		for access, perm := range map[string]policydb.Perm{
			"read": policydb.PtraceRead, "trace": policydb.PtraceTrace, "readby": policydb.PtraceReadBy, "tracedby": policydb.PtraceTracedBy,
		} {
			a := d.p.Ptrace(peer, perm)
			g := d.text.Granting(d.p.Name, Question{Class: ClassPtrace, Fields: map[string]string{"access": access, "peer": peer}})
			if a != policydb.NotMediated && (a == policydb.Yes) != certain(g) {
				d.differs("ptrace %s %q: the policy says %s, the text %s", access, peer, a, printed(g))
			}
		}
	}
}

func (d *comparison) buses() {
	var messages []policydb.DBusMessage
	for _, r := range d.text.Profile(d.p.Name).Rules {
		if r.Class != ClassDBus {
			continue
		}
		for range 5 {
			m := policydb.DBusMessage{Bus: "system", Name: "org.x", Label: "unconfined", Path: "/a/b", Interface: "a.b", Member: "C"}
			for _, c := range r.Conds {
				to := map[string]*string{"bus": &m.Bus, "path": &m.Path, "interface": &m.Interface, "member": &m.Member,
					"name": &m.Name, "peer.name": &m.Name, "peer.label": &m.Label}[c.Key]
				if to == nil {
					d.differs("%s: condition %s", r.Raw, c.Key)
					continue
				}
				if *to = sample(d.r, c.Values[d.r.IntN(len(c.Values))]); d.r.IntN(8) == 0 {
					*to = mutate(d.r, *to)
				}
			}
			messages = append(messages, m)
		}
	}
	for _, m := range messages {
		fields := map[string]string{"bus": m.Bus, "path": m.Path, "interface": m.Interface, "member": m.Member, "peer.name": m.Name, "peer.label": m.Label}
		for access, perm := range map[string]policydb.Perm{"send": policydb.DBusSend, "receive": policydb.DBusReceive} {
			fields["access"] = access
			a := d.p.DBus(m, perm)
			g := d.text.Granting(d.p.Name, Question{Class: ClassDBus, Fields: fields})
			if a != policydb.NotMediated && (a == policydb.Yes) != certain(g) {
				d.differs("dbus %s %+v: the policy says %s, the text %s", access, m, a, printed(g))
			}
		}
		a := d.p.DBusOwn(m.Bus, m.Name)
		g := d.text.Granting(d.p.Name, Question{Class: ClassDBus, Fields: map[string]string{"access": "bind", "bus": m.Bus, "name": m.Name}})
		if a != policydb.NotMediated && (a == policydb.Yes) != certain(g) {
			d.differs("dbus bind %+v: the policy says %s, the text %s", m, a, printed(g))
		}
	}
	if len(messages) > 0 && d.p.Mediates(policydb.ClassDBus) != policydb.Yes {
		d.differs("the policy does not mediate D-Bus: nothing was compared")
	}
}
