//go:build vm

package apparmor

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// corpusDir is where the guest has profiles of packages that are not installed
// (CorpusDir of test/vm/machine).
const corpusDir = "/usr/share/aaunit-vm/profiles"

// hard is what the distribution's profiles have little of.
const hard = `abi <abi/3.0>,
@{c}=/c /d/e
profile vm-hard-files flags=(attach_disconnected) {
  /a/** rw,
  deny /a/b/** w,
  audit /a/c/** r,
  audit deny /a/d/** w,
  owner /o/** rwklm,
  owner /o/*/x/** w,
  deny owner /o/y/** r,
  /{a,b{c,d},e**f}/[g-z]*[^0-9]?/** r,
  /ä/ö* rw,
  "/with space/*" r,
  /with\001byte/\377* w,
  /x/* ix,
  /x/p px,
  owner /x/c/* Cx,
  /x/u/* Ux,
  /x/n/* Px -> vm-hard-other,
  /x/s/** pix,
  /l/* l,
  link subset /l/s/* -> /t/**,
  link /l/p/* -> /t/*,
  change_profile,
  change_profile /x/cp/* -> vm-hard-other,
  profile child {
    owner @{c}/** r,
    network inet,
  }
  ^hat { /** r, }
}
profile vm-hard-all { file, capability, network, mount, signal, ptrace, }
profile vm-hard-none { }
profile vm-hard-audit flags=(audit) { /** r, deny /tmp/** r, network inet stream, deny network inet dgram, }
profile vm-hard-complain flags=(complain) { /a r, network unix, }
profile vm-hard-other {
  network inet stream, network inet6, network unix dgram, audit network netlink raw,
  deny network packet, audit deny network bluetooth,
  signal (send) set=(term, kill, rtmin+3) peer=vm-*, signal (receive) peer=unconfined, deny signal set=hup,
  ptrace (read) peer=/usr/**, ptrace (tracedby),
  mount fstype=tmpfs options=(ro, nosuid) -> /mnt/**, remount /mnt/*, umount /mnt/**, pivot_root /mnt/a/,
}
profile "vm hard 'name'" { / r, /** w, }
profile vm-hard-ünï { /* r, /*/ r, /**/ w, }
`

// corpus are the compiled policies of the profiles that there are in the guest,
// in a root of their own with what they include: of all of them with the tag
// long.
func corpus(t *testing.T) (out []attach.Compiled) {
	t.Helper()
	// Not below /tmp: others than root can write there.
	const root = "/root/vm-corpus"
	t.Cleanup(func() { _ = os.RemoveAll(root) })
	dir := filepath.Join(root, profileDir)
	sh(t, "mkdir -p "+filepath.Dir(dir)+" && cp -a /etc/apparmor.d "+dir+
		" && cp -an "+corpusDir+"/etc/apparmor.d/. "+dir+"/ && mkdir "+dir+"/extra && cp -a "+corpusDir+"/usr/share/apparmor/extra-profiles/. "+dir+"/extra/"+
		// What the packages' scripts make.
		" && cd "+dir+" && for f in *; do test ! -f $f || test -e local/$f || : >local/$f; done"+
		" && chmod -R go-w "+root)
	if err := os.WriteFile(filepath.Join(dir, "vm-hard"), []byte(hard), 0o644); err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, pattern := range []string{"/*", "/extra/*"} {
		found, _ := filepath.Glob(dir + pattern)
		for n, f := range found {
			if pattern == "/extra/*" && n%extraProfiles != 0 {
				continue
			}
			if i, err := os.Stat(f); err == nil && i.Mode().IsRegular() && !strings.HasSuffix(f, "README") {
				files = append(files, strings.TrimPrefix(f, root))
			}
		}
	}
	began := time.Now()
	s := New(Options{Root: root, ParserTime: 5 * time.Minute})
	// Where one does not compile, those that are compiled with it are compiled
	// again, one by one.
	for some := range slices.Chunk(files, 12) {
		done, problems := s.Compile(t.Context(), some, false)
		out = append(out, done...)
		for file, p := range problems {
			t.Errorf("%s: %s", file, p)
		}
	}
	t.Logf("compiled %d files of %d in %v", len(out), len(files), time.Since(began).Round(time.Millisecond))
	return out
}

func sh(t *testing.T, script string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// namespace makes a staging namespace with a policy in it.
func namespace(t *testing.T, name string, blob []byte) {
	t.Helper()
	dir := filepath.Join(securityDir, "policy/namespaces", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if blob == nil {
		return
	}
	if err := writePolicy(filepath.Join(dir, ".replace"), blob); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

func noNamespace(t *testing.T, name string) {
	if err := os.Remove(filepath.Join(securityDir, "policy/namespaces", name)); err != nil {
		t.Error(err)
	}
}

// TestVMKernelAgreesOnCorpora asks the kernel and the automaton the same about
// every profile that there is, and demands the same answers, bit by bit.
// On every suite.
func TestVMKernelAgreesOnCorpora(t *testing.T) {
	s := New(Options{})
	policies := corpus(t)

	// The way that policies go when they are attached.
	began := time.Now()
	var asked, wholly, profiles int
	s.Stage(t.Context(), policies)
	for _, c := range policies {
		if c.Checksums == nil || c.Disagrees != "" {
			t.Errorf("%s: not staged: %q, disagrees: %q", c.File, c.NotStaged, c.Disagrees)
		}
		asked += c.Asked
		profiles += len(c.Profiles)
		if c.NotAsked == "" {
			wholly++
		}
	}
	t.Logf("staged %d policies, %d profiles, in %v: %d questions; of %d policies all were asked", len(policies), profiles, time.Since(began).Round(time.Millisecond), asked, wholly)

	const seed = 20
	rng := rand.New(rand.NewPCG(seed, seed))
	t.Logf("seed %d", seed)
	perProfile := max(250, 50_000/max(1, profiles))
	total := map[byte]int{}
	wrong, unknown := 0, 0
	var kernelTime time.Duration
	began = time.Now()
	for i, c := range policies {
		parsed, err := policydb.Parse(c.Blob)
		if err != nil {
			t.Errorf("%s: %v", c.File, err)
			continue
		}
		ns := fmt.Sprintf("%s%d-vm%d", stagePrefix, os.Getpid(), i)
		namespace(t, ns, c.Blob)
		derived := ruleDerived(c.Sources)
		for j := range parsed {
			p := &parsed[j]
			var qs []Question
			for _, path := range adversarial(rng, p, derived, perProfile) {
				for _, as := range []policydb.Who{policydb.Owner, policydb.Other} {
					qs = append(qs, Question{policydb.ClassFile, path, as})
				}
			}
			for family := range uint16(48) {
				for typ := range uint16(8) {
					data := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, family), typ)
					qs = append(qs, Question{policydb.ClassNetV8, data, policydb.Who(1 + rng.IntN(2))})
				}
			}
			for _, class := range []byte{policydb.ClassNetV8, policydb.ClassMount, policydb.ClassSignal, policydb.ClassLabel, policydb.ClassPtrace, policydb.ClassUserns, policydb.ClassCap, policydb.ClassRlimit, policydb.ClassPosixMqueue} {
				w := p.Walker(class)
				for range 20 {
					data := some(rng, 1, 255, rng.IntN(12))
					if w != nil && rng.IntN(3) > 0 {
						data = w.Walk(rng, 200)
					}
					qs = append(qs, Question{class, data, policydb.Owner})
				}
			}
			answers := make([]policydb.Raw, len(qs))
			asking := time.Now()
			if err := s.asking(func(a *access) error { return a.askAll(t.Context(), ns, p.Name, qs, answers) }); err != nil {
				t.Errorf("%s: %v", c.File, err)
				continue
			}
			kernelTime += time.Since(asking)
			for k, q := range qs {
				want, known := p.Query(q.Class, q.Data, q.As)
				if !known {
					unknown++
					continue
				}
				total[q.Class]++
				if got := without(answers[k], artefacts(q.Class)); got != without(want, artefacts(q.Class)) {
					if wrong++; wrong <= 20 {
						t.Errorf("%s, profile %s, %s as %s: the kernel says %+v, the automaton %+v", c.File, p.Name, q, q.As, answers[k], want)
					}
				}
			}
		}
		noNamespace(t, ns)
	}
	n := 0
	for _, m := range total {
		n += m
	}
	t.Logf("%d questions (by class %v) in %v, %v of it the kernel's: %d differences, %d not known to the automaton",
		n, total, time.Since(began).Round(time.Millisecond), kernelTime.Round(time.Millisecond), wrong, unknown)
	if n < 100_000 || total[policydb.ClassFile] < 50_000 {
		t.Errorf("asked %d, %d about files", n, total[policydb.ClassFile])
	}
	if unknown > 0 {
		t.Errorf("%d questions are not known to the automaton", unknown)
	}
}

// pathWord finds what looks like a path in a profile's text.
var pathWord = regexp.MustCompile(`[/@][^\s,"()]+`)

// ruleDerived are the paths in a profile's text with its variables and wildcards
// filled in with something.
func ruleDerived(texts map[string][]byte) (out []string) {
	fill := strings.NewReplacer("@{HOME}", "/home/a", "@{HOMEDIRS}", "/home/", "@{PROC}", "/proc", "@{run}", "/run", "@{pid}", "1", "@{pids}", "12",
		"@{tid}", "1", "@{sys}", "/sys", "@{multiarch}", "x86_64-linux-gnu", "@{etc_ro}", "/etc", "@{lib}", "/usr/lib", "@{bin}", "/usr/bin", "@{exec_path}", "/usr/bin/a",
		"**", "x/y", "*", "z", "?", "q")
	seen := map[string]bool{}
	for _, file := range slices.Sorted(maps.Keys(texts)) {
		for _, w := range pathWord.FindAllString(string(texts[file]), -1) {
			w = fill.Replace(w)
			// {a,b} loses its end at the comma; the first alternative stays.
			w = strings.NewReplacer("{", "", "}", "", "[", "", "]", "", "//", "/").Replace(w)
			if !seen[w] && len(w) < 1000 {
				seen[w] = true
				out = append(out, w)
			}
		}
	}
	return out
}

// some are n random bytes between two values.
func some(r *rand.Rand, from, to, n int) []byte {
	out := make([]byte, n)
	for i := range out {
		out[i] = byte(from + r.IntN(to-from+1))
	}
	return out
}

// adversarial makes paths to ask about: n of them, and those that staging asks.
func adversarial(r *rand.Rand, p *policydb.Profile, derived []string, n int) (out [][]byte) {
	for _, path := range suspects {
		out = append(out, []byte(path))
	}
	out = append(out, p.Sample(200)...)
	w := p.Walker(policydb.ClassFile)
	walk := func() []byte {
		if w == nil {
			return []byte(suspects[r.IntN(len(suspects))])
		}
		return w.Walk(r, []int{10, 60, 300, 2000}[r.IntN(4)])
	}
	for range n {
		var b []byte
		switch r.IntN(12) {
		case 0, 1, 2, 3:
			b = walk()
		case 4, 5, 6:
			b = mutated(r, walk())
		case 7, 8:
			if len(derived) > 0 {
				b = []byte(derived[r.IntN(len(derived))])
			}
			if r.IntN(2) == 0 {
				b = mutated(r, b)
			}
		case 9: // deep
			b = append(walk(), bytes.Repeat([]byte("/"+string(some(r, 'a', 'c', 1+r.IntN(2)))), r.IntN(800))...)
		case 10: // long
			b = append(append(walk(), '/'), some(r, 'a', 'z', []int{254, 255, 256, 2000}[r.IntN(4)])...)
		case 11:
			b = append([]byte{'/'}, some(r, 1, 255, r.IntN(100))...)
		}
		if len(b) == 0 {
			b = []byte("/")
		}
		out = append(out, b[:min(len(b), 3800)])
	}
	return out
}

// mutated changes a path in one to three places.
func mutated(r *rand.Rand, path []byte) []byte {
	out := slices.Clone(path)
	for range 1 + r.IntN(3) {
		at := r.IntN(len(out) + 1)
		switch r.IntN(9) {
		case 0:
			out = slices.Insert(out, at, some(r, 1, 255, 1)...)
		case 1:
			if at < len(out) {
				out[at] = some(r, 1, 255, 1)[0]
			}
		case 2:
			out = out[:at]
		case 3:
			if at < len(out) {
				out = slices.Delete(out, at, at+1)
			}
		case 4:
			out = slices.Insert(out, at, []byte("//")...)
		case 5:
			out = slices.Insert(out, at, []byte("/../")...)
		case 6:
			out = slices.Insert(out, at, []byte("/./")...)
		case 7:
			out = append(out, '/')
		case 8:
			out = append(out, out[min(at, len(out)):]...)
		}
	}
	return out
}

// TestVMQuery is the query file itself.
func TestVMQuery(t *testing.T) {
	v := newVM(t)
	file := v.profile("vm-query", "profile vm-query { owner /o r, /a w, network inet stream, profile child { /c r, } }\nprofile \"vm-query//&vm-odd\" { /** rw, }\nprofile \"vm query\" { /s r, }\n")
	done := v.compile(file)
	v.load(done...)
	t.Cleanup(func() { v.gone("vm-query", "vm query") })
	inet := []byte{0, 2, 0, 1}
	ask := func(profile string, q ...Question) []policydb.Raw {
		t.Helper()
		out, err := v.Ask(t.Context(), profile, q)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	before := fds(t)
	for i := range 5 {
		got := ask("vm-query",
			Question{policydb.ClassFile, []byte("/o"), policydb.Other}, Question{policydb.ClassFile, []byte("/o"), policydb.Owner},
			Question{policydb.ClassFile, []byte("/a"), policydb.Other}, Question{policydb.ClassNetV8, inet, policydb.Owner},
			Question{policydb.ClassNetV8, []byte{0, 2, 0, 2}, policydb.Owner}, Question{policydb.ClassCap, []byte{0}, policydb.Owner})
		r, w := uint32(policydb.Read), uint32(policydb.Write)
		if got[0].Allow&r != 0 || got[1].Allow&r == 0 || got[2].Allow&(r|w) != w || got[3].Allow&uint32(policydb.NetCreate) == 0 || got[4].Allow&uint32(policydb.AllNet) != 0 || !Unmediated(got[5]) || Unmediated(got[3]) {
			t.Errorf("got %x", got)
		}
		if i == 0 {
			t.Logf("a file of a rule of others: %+v; a socket that no rule grants: %+v; one that a rule grants: %+v", got[2], got[4], got[3])
		}
		if got[4].Allow&^artefacts(policydb.ClassNetV8) != 0 {
			t.Errorf("a socket that no rule grants: %+v", got[4])
		}
	}
	if got := ask("vm-query//child", Question{policydb.ClassFile, []byte("/c"), policydb.Owner}); got[0].Allow&uint32(policydb.Read) == 0 {
		t.Errorf("a child's rule: %x", got)
	}
	if got := ask("vm query", Question{policydb.ClassFile, []byte("/s"), policydb.Owner}); got[0].Allow&uint32(policydb.Read) == 0 {
		t.Errorf("a name with a space: %x", got)
	}
	if after := fds(t); after != before {
		t.Errorf("%d open files, %d before", after, before)
	}
	for _, name := range []string{"", "a\x00b", "a\nb", ":other://vm-query", "&vm-query", " vm-query", "vm-query//&vm-odd"} {
		if _, err := v.Ask(t.Context(), name, []Question{{policydb.ClassFile, []byte("/a"), policydb.Owner}}); !errors.Is(err, ErrCannotAsk) {
			t.Errorf("profile %q: %v", name, err)
		}
	}
	if _, err := v.Ask(t.Context(), "vm-query", []Question{{policydb.ClassFile, bytes.Repeat([]byte("/a"), 3000), policydb.Owner}}); !errors.Is(err, ErrCannotAsk) {
		t.Errorf("a long path: %v", err)
	}
	if _, err := v.Ask(t.Context(), "vm-not-loaded", []Question{{policydb.ClassFile, []byte("/a"), policydb.Owner}}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a profile that is not loaded: %v", err)
	}
	// The other user is nobody's but the asking thread's.
	for range 20 {
		runtime.Gosched()
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) == 0 {
		t.Fatal(tasks, err)
	}
	for _, f := range tasks {
		text, err := os.ReadFile(f)
		if err == nil && !strings.Contains(string(text), "Uid:\t0\t0\t0\t0\n") {
			t.Errorf("%s: %s", f, text)
		}
	}
	// How long one takes.
	path := []byte("/usr/lib/x86_64-linux-gnu/libc.so.6")
	for _, as := range []policydb.Who{policydb.Owner, policydb.Other} {
		qs := slices.Repeat([]Question{{policydb.ClassFile, path, as}}, 2000)
		began := time.Now()
		ask("vm-query", qs...)
		t.Logf("one question as %s: %v", as, time.Since(began)/time.Duration(len(qs)))
	}
}

func fds(t *testing.T) int {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestVMStagingAsks is what becomes of a policy that the kernel reads otherwise
// than it was checked.
func TestVMStagingAsks(t *testing.T) {
	v := newVM(t)
	one := v.compile(v.profile("vm-asked", "profile vm-asked { /etc/passwd r, network inet stream, profile child { /tmp/** r, } }\n"))[0]
	if one.Asked < 100 || one.NotAsked != "" || one.Disagrees != "" {
		t.Errorf("Asked = %d, NotAsked = %q, Disagrees = %q", one.Asked, one.NotAsked, one.Disagrees)
	}
	t.Logf("two profiles: %d questions", one.Asked)
	for i, text := range []string{
		"profile vm-asked { /etc/passwd r, network inet stream, profile child { /tmp/** rw, } }\n",
		"profile vm-asked { /etc/passwd r, network inet, profile child { /tmp/** r, } }\n",
		"profile vm-asked { owner /etc/passwd r, network inet stream, profile child { /tmp/** r, } }\n",
		"profile vm-asked { audit /etc/passwd r, network inet stream, profile child { /tmp/** r, } }\n",
		"profile vm-asked { /etc/passwd r, profile child { /tmp/** r, } }\n",
	} {
		other := v.compile(v.profile("vm-asked", text))[0]
		ns := fmt.Sprintf("%s%d-swap%d", stagePrefix, os.Getpid(), i)
		namespace(t, ns, other.Blob)
		c := one
		c.Asked = 0
		v.examine(t.Context(), ns, []*attach.Compiled{&c})
		noNamespace(t, ns)
		if c.Disagrees == "" || c.NotAsked != "" {
			t.Errorf("%s: not found: %q", text, c.NotAsked)
		}
		t.Log(c.Disagrees)
	}
	// Whom it cannot ask about it says so, and the rest is asked.
	odd := v.compile(v.profile("vm-asked", "profile vm-asked { /a r, }\nprofile \"vm-asked//&vm-odd\" { /a r, }\n"))[0]
	if odd.NotAsked == "" || odd.Asked == 0 || odd.Disagrees != "" {
		t.Errorf("a name that cannot be asked about: %+v", odd)
	}
	t.Log(odd.NotAsked)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := one
	v.examine(ctx, "none", []*attach.Compiled{&c})
	if c.NotAsked == "" || c.Disagrees != "" {
		t.Errorf("without time: %+v", c)
	}
}

// TestVMStagingIsSwept is about namespaces of processes that were killed.
func TestVMStagingIsSwept(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	v := newVM(t)
	blob := v.compile(v.profile("vm-swept", "profile vm-swept { /a r, }\n"))[0].Blob
	left := stagePrefix + strconv.Itoa(dead.Process.Pid) + "-0123"
	kept := []string{stagePrefix + strconv.Itoa(os.Getpid()) + "-0123", stagePrefix + "1-0123", "vm-foreign"}
	namespace(t, left, blob)
	for _, n := range kept {
		namespace(t, n, nil)
		defer noNamespace(t, n)
	}
	New(Options{}).SweepStaging()
	if _, err := os.Stat(filepath.Join(securityDir, "policy/namespaces", left)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there: %v", left, err)
	}
}

// tried is an operation that a program tries under a profile.
type tried struct {
	Op     string `json:"op"`
	Path   string `json:"path,omitempty"`
	To     string `json:"to,omitempty"`
	Family int    `json:"family,omitempty"`
	Type   int    `json:"type,omitempty"`

	owner policydb.Who
}

// may says what the automaton thinks of it; what an operation needs is in
// security/apparmor/lsm.c (the hooks) and file.c (aa_map_file_to_perms,
// profile_path_link).
func (o tried) may(p *policydb.Profile) policydb.Answer {
	type need struct {
		path string
		perm policydb.Perm
		as   policydb.Who
	}
	var needs []need
	on := func(perm policydb.Perm) { needs = append(needs, need{o.Path, perm, o.owner}) }
	// What is made belongs to who makes it.
	anew := func(path string, perm policydb.Perm) { needs = append(needs, need{path, perm, policydb.Owner}) }
	switch o.Op {
	case "read", "list":
		on(policydb.Read)
	case "write":
		on(policydb.Write)
	case "readwrite":
		on(policydb.Read | policydb.Write)
	case "append":
		on(policydb.Append)
	case "truncating":
		on(policydb.Write | policydb.SetAttr)
	case "truncate":
		on(policydb.Write | policydb.SetAttr)
	case "stat":
		on(policydb.GetAttr)
	case "chmod":
		on(policydb.Chmod)
	case "chown":
		on(policydb.Chown)
	case "unlink", "rmdir":
		on(policydb.Delete)
	case "create":
		anew(o.Path, policydb.Create|policydb.Write)
	case "mkdir":
		anew(o.Path+"/", policydb.Create)
	case "symlink", "mknod":
		anew(o.Path, policydb.Create)
	case "rename":
		on(policydb.Read | policydb.GetAttr | policydb.Write | policydb.SetAttr | policydb.Delete)
		needs = append(needs, need{o.To, policydb.Write | policydb.SetAttr | policydb.Create, o.owner})
	case "lock":
		on(policydb.Read | policydb.Lock)
	case "mmap":
		on(policydb.Read | policydb.Mmap)
	case "link":
		return p.MayLink(o.To, o.Path, o.owner)
	case "exec":
		t, a := p.Exec(o.Path, o.owner)
		if a == policydb.Yes && t.Kind != policydb.ExecInherit {
			return policydb.Unknown
		}
		return a
	case "socket":
		return p.Network(uint16(o.Family), uint16(o.Type), policydb.NetCreate)
	}
	for _, n := range needs {
		if a := p.Allows(n.path, n.perm, n.as); a != policydb.Yes {
			return a
		}
	}
	return policydb.Yes
}

// TestVMTriedOperations has a program under a profile really try what the
// automaton is asked about.
func TestVMTriedOperations(t *testing.T) {
	v := newVM(t)
	const base = "/srv/vm-try"
	const agent = "/root/payload/agent"
	t.Cleanup(func() { _ = os.RemoveAll(base) })
	grants := []string{"", "r", "w", "a", "k", "m", "l", "rw", "ra", "rk", "wk", "rm", "rl", "wl", "rwl", "rwk", "rix", "rmix", "mix", "rwkl", "rwklmix"}
	ops := []string{"read", "write", "readwrite", "append", "truncating", "truncate", "stat", "chmod", "chown", "unlink", "create", "mkdir", "rmdir", "list",
		"symlink", "mknod", "rename", "lock", "mmap", "link", "exec"}
	text := "profile vm-tried {\n  " + agent + " rm,\n  /dev/null rw,\n  /proc/** r,\n  /sys/kernel/mm/** r,\n  capability,\n  signal,\n" +
		"  network inet stream, network inet6 dgram, network unix, network netlink raw, deny network unix seqpacket,\n"
	var all []tried
	for _, whose := range []string{"", "owner "} {
		for _, denied := range []string{"", "w", "r"} {
			for _, grant := range grants {
				if denied != "" && !strings.Contains(grant, denied) {
					continue
				}
				dir := filepath.Join(base, strings.TrimSpace("all"+whose)+"-"+grant+"-not-"+denied)
				if grant != "" {
					text += "  " + whose + dir + "/** " + grant + ",\n"
				}
				if denied != "" {
					text += "  deny " + dir + "/0/** " + denied + ",\n"
				}
				for uid, as := range map[int]policydb.Who{0: policydb.Owner, 1234: policydb.Other} {
					for _, op := range ops {
						if denied != "" && (op == "exec" || uid != 0) {
							continue // they take long
						}
						o := tried{Op: op, Path: filepath.Join(dir, strconv.Itoa(uid), op), owner: as}
						prepareTry(t, agent, &o, uid)
						all = append(all, o)
					}
				}
			}
		}
	}
	for family := 1; family <= 45; family++ {
		for typ := 1; typ <= 5; typ++ {
			all = append(all, tried{Op: "socket", Family: family, Type: typ, owner: policydb.Owner})
		}
	}
	done := v.compile(v.profile("vm-tried", text+"}\n"))
	v.load(done...)
	t.Cleanup(func() { v.gone("vm-tried") })
	parsed, err := policydb.Parse(done[0].Blob)
	if err != nil {
		t.Fatal(err)
	}
	p := &parsed[0]

	var in bytes.Buffer
	for _, o := range all {
		line, err := json.Marshal(o)
		if err != nil {
			t.Fatal(err)
		}
		in.Write(line)
	}
	cmd := exec.Command("aa-exec", "-p", "vm-tried", "--", agent, "-try")
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = &in, &stderr
	began := time.Now()
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	lines := strings.Fields(string(out))
	if len(lines) != len(all) {
		t.Fatalf("%d answers to %d operations", len(lines), len(all))
	}
	count := map[policydb.Answer]int{}
	for i, o := range all {
		n, err := strconv.Atoi(lines[i])
		if err != nil {
			t.Fatal(err)
		}
		want := o.may(p)
		count[want]++
		got := unix.Errno(n)
		switch {
		case want == policydb.No && got != unix.EACCES, want == policydb.Yes && got == unix.EACCES,
			want == policydb.Yes && got != 0 && o.Op != "socket", want != policydb.Yes && want != policydb.No:
			t.Errorf("%s %s of the %s (family %d, type %d): the automaton says %s, the kernel %v", o.Op, o.Path, o.owner, o.Family, o.Type, want, got)
		}
	}
	t.Logf("%d operations tried in %v: %v", len(all), time.Since(began).Round(time.Millisecond), count)
}

// prepareTry puts there what an operation works on.
func prepareTry(t *testing.T, agent string, o *tried, uid int) {
	t.Helper()
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	check(os.MkdirAll(filepath.Dir(o.Path), 0o755))
	switch o.Op {
	case "create", "mkdir", "symlink", "mknod":
		return
	case "rmdir", "list":
		check(os.Mkdir(o.Path, 0o755))
		check(os.Chown(o.Path, uid, 0))
		o.Path += "/"
		return
	case "exec":
		// One copy for each user.
		copied := filepath.Join("/srv/vm-try", "agent-"+strconv.Itoa(uid))
		if _, err := os.Stat(copied); err != nil {
			sh(t, "cp "+agent+" "+copied)
			check(os.Chown(copied, uid, 0))
			check(os.Chmod(copied, 0o755))
		}
		check(os.Link(copied, o.Path))
		return
	case "rename", "link":
		o.To = o.Path + "-to"
	}
	check(os.WriteFile(o.Path, make([]byte, 4096), 0o644))
	check(os.Chown(o.Path, uid, 0))
}
