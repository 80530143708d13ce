package policydb

import (
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/apparmor/unpack"
)

const sample = `
profile sample /usr/bin/sample{,-helper} flags=(attach_disconnected) {
  capability net_admin, audit capability chown, deny capability sys_admin,
  capability bpf,
  set rlimit nofile <= 1024,

  /etc/** r,
  deny /etc/shadow r,
  owner /home/*/** rw,
  /var/log/*.log a,
  audit /srv/** w,
  /lib/** mr,
  /run/lock k,
  /data/link l,
  /data/both rl,
  /data/readable r,
  /x/inherit ix,
  /x/profile px,
  /x/Profile Px,
  /x/child Cx,
  /x/unconfined ux,
  /x/Unconfined Ux,
  /x/pix Pix,
  /x/pux PUx,
  /x/named px -> other,
  /x/cnamed Cx -> kid,
  /x/spaced Px -> "with space",

  network inet stream,
  network netlink,
  deny network inet dgram,

  signal (send) set=(term, rtmin+3) peer=friend,
  signal (receive) peer=unconfined,
  ptrace (read) peer=sample,
  mount fstype=tmpfs -> /mnt/,
  mount options=(ro, bind) /a/ -> /b/,
  umount /mnt/,
  pivot_root oldroot=/old/ /new/,
  change_profile -> worker,
  change_profile /usr/bin/job -> job,

  profile kid { /kid r, }
  ^hat { /hat r, }
}
`

// samples is the sample as this machine's parser compiles it, and as newer ones
// do, in every form that permissions have: Debian 13's 4.1.0 with the features
// of Debian's policy and with abi/4.0, Debian's 5.0.2 with abi/4.0 and abi/5.0.
func samples(t *testing.T) map[string][]Profile {
	t.Helper()
	blobs := map[string][]byte{"here": compile(t, sample)}
	files, err := filepath.Glob("testdata/sample-*.zst")
	if err != nil || len(files) != 4 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if blobs[f], err = unpack.Policy(b, MaxPolicy); err != nil {
			t.Fatal(err)
		}
	}
	out := map[string][]Profile{}
	for name, b := range blobs {
		all, err := Parse(b)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if out[name] = all; all[0].file.table != strings.Contains(name, "table") {
			t.Errorf("%s: has a table of permissions: %t", name, all[0].file.table)
		}
	}
	return out
}

// eachSample runs a test on each.
func eachSample(t *testing.T, f func(t *testing.T, p *Profile, name string)) {
	for name, all := range samples(t) {
		t.Run(path.Base(name), func(t *testing.T) { f(t, &all[0], name) })
	}
}

func TestParse(t *testing.T) {
	for name, all := range samples(t) {
		t.Run(path.Base(name), func(t *testing.T) { checkSample(t, all) })
	}
	for flag, mode := range map[string]Mode{"complain": Complain, "kill": Kill, "unconfined": Unconfined, "enforce": Enforce} {
		if p := parse(t, "profile x flags=("+flag+") { /a r, }"); p.Mode != mode {
			t.Errorf("%s reads as %s", flag, p.Mode)
		}
	}
	if p := parse(t, "profile x { /a r, }", "--Complain"); p.Mode != Complain {
		t.Errorf("--Complain reads as %s", p.Mode)
	}
	if p := parse(t, "profile x flags=(audit) { /a r, }"); !p.Audit {
		t.Error("audit is not seen")
	}
	if p := parse(t, "profile :ns:x { /a r, }"); p.Namespace != "ns" || p.Name != "x" {
		t.Errorf("%q %q", p.Namespace, p.Name)
	}
}

func checkSample(t *testing.T, all []Profile) {
	var names []string
	for _, p := range all {
		names = append(names, p.Name)
	}
	slices.Sort(names)
	if want := []string{"sample", "sample//hat", "sample//kid"}; !slices.Equal(names, want) {
		t.Fatalf("%q, want %q", names, want)
	}
	p := &all[0]
	if p.Mode != Enforce || p.Hat || p.Audit || p.PathFlags&AttachDisconnected == 0 || len(p.Unread) > 0 {
		t.Errorf("%+v", p)
	}
	if !maps.Equal(p.Rlimits, map[int]uint64{7: 1024}) {
		t.Errorf("rlimits %v", p.Rlimits)
	}
	for path, want := range map[string]Answer{"/usr/bin/sample": Yes, "/usr/bin/sample-helper": Yes, "/usr/bin/sampl": No} {
		if got := p.Attaches(path); got != want {
			t.Errorf("attaches to %s: %s", path, got)
		}
	}
	if i := slices.IndexFunc(all, func(p Profile) bool { return p.Name == "sample//hat" }); !all[i].Hat {
		t.Error("the hat is none")
	}
}

func TestFile(t *testing.T) { eachSample(t, testFile) }

func testFile(t *testing.T, p *Profile, name string) {
	const write = Write | Append | Create | Delete | SetAttr | Chmod | Chown | Open | GetAttr
	for _, c := range []struct {
		path         string
		owner, other Perm
	}{
		{"/etc/passwd", Read | Open | GetAttr, Read | Open | GetAttr},
		{"/etc/", GetAttr, GetAttr},
		{"/etc/shadow", GetAttr, GetAttr},
		{"/home/a/b", Read | write, GetAttr},
		{"/home/a/", GetAttr, GetAttr},
		{"/var/log/x.log", Append | GetAttr, Append | GetAttr},
		{"/var/log/x/y.log", GetAttr, GetAttr},
		{"/srv/a/b/", write, write},
		{"/lib/a.so", Read | Open | Mmap | GetAttr, Read | Open | Mmap | GetAttr},
		{"/run/lock", Lock | GetAttr, Lock | GetAttr},
		{"/data/link", Link | GetAttr, Link | GetAttr},
		{"/x/inherit", Exec | Mmap | GetAttr, Exec | Mmap | GetAttr},
		{"/x/profile", Exec | GetAttr, Exec | GetAttr},
		{"/nothing", GetAttr, GetAttr},
		{"", GetAttr, GetAttr},
	} {
		for who, want := range map[Who]Perm{Owner: c.owner, Other: c.other, Either: c.owner | c.other} {
			got, a := p.File(c.path, who)
			// Exec rules also grant OnExec for what change_profile says.
			if got.Allow &^= OnExec | ChangeProfile; a != Yes || got.Allow != want {
				t.Errorf("%s as %s: %s %s, want %s", c.path, who, a, got.Allow, want)
			}
		}
	}
	if got, _ := p.File("/srv/a", Other); got.Audit&Write == 0 {
		t.Errorf("audit is not seen: %+v", got)
	}
	if got, _ := p.File("/etc/shadow", Other); got.Quiet&Read == 0 {
		t.Errorf("deny is not seen: %+v", got)
	}
	for want, a := range map[Perm]Answer{Read: Yes, Write: No, Read | Write: No, 0: Yes} {
		if got := p.Allows("/etc/passwd", want, Other); got != a {
			t.Errorf("%s: %s", want, got)
		}
	}
	if got := p.Allows("/home/a/b", Write, Either); got != Yes {
		t.Error(got)
	}
	// No file rule at all.
	p = parse(t, "profile x { capability chown, }")
	if got, a := p.File("/etc/passwd", Owner); a != Yes || got.Allow&^GetAttr != 0 {
		t.Errorf("%s %s", a, got.Allow)
	}
	if got := p.Allows("/etc/passwd", Read, Either); got != No {
		t.Error(got)
	}
	p = parse(t, "profile x flags=(unconfined) { /etc/** r, }")
	if got := p.Allows("/etc/passwd", Write, Either); got != NotMediated {
		t.Error(got)
	}
}

func TestExec(t *testing.T) { eachSample(t, testExec) }

func testExec(t *testing.T, p *Profile, name string) {
	for path, want := range map[string]string{
		"/x/inherit": "ix", "/x/profile": "px", "/x/Profile": "Px", "/x/child": "Cx", "/x/unconfined": "ux", "/x/Unconfined": "Ux",
		"/x/pix": "Pix", "/x/pux": "Pux", "/x/named": "px -> other", "/x/spaced": "Px -> with space", "/x/cnamed": "Px -> sample//kid",
	} {
		for _, who := range []Who{Owner, Other} {
			if got, a := p.Exec(path, who); a != Yes || got.String() != want {
				t.Errorf("%s: %s %s, want %s", path, a, got, want)
			}
		}
	}
	if got, a := p.Exec("/etc/passwd", Owner); a != No {
		t.Errorf("%s %s", got, a)
	}
	var all []string
	for _, tr := range p.Transitions() {
		all = append(all, tr.String())
	}
	want := []string{"Cx", "Pix", "Pux", "Px", "Px -> sample//kid", "Px -> with space", "Ux", "ix", "px", "px -> other", "ux"}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Error(diff)
	}
	if tr, _ := p.Exec("/x/pux", Other); !tr.MayUnconfine() {
		t.Error("PUx may not unconfine")
	}
	for to, want := range map[string]Answer{"worker": Yes, "job": Yes, "unconfined": No, "/etc/passwd": No} {
		if got := p.MayChangeProfile(to); got != want {
			t.Errorf("change to %s: %s", to, got)
		}
	}
	for pair, want := range map[[2]string]Answer{
		{"/usr/bin/job", "job"}: Yes, {"/usr/bin/else", "job"}: No, {"/usr/bin/else", "worker"}: Yes, {"/usr/bin/job", "nobody"}: No,
	} {
		if got := p.MayChangeOnExec(pair[0], pair[1]); got != want {
			t.Errorf("change to %s on %s: %s", pair[1], pair[0], got)
		}
	}
	for pair, want := range map[[2]string]Answer{
		{"/data/link", "/data/target"}:   Yes,
		{"/data/other", "/data/link"}:    No,
		{"/data/both", "/data/readable"}: Yes,
		{"/data/both", "/data/target"}:   No, // it could be read then
	} {
		if got := p.MayLink(pair[0], pair[1], Owner); got != want {
			t.Errorf("link %v: %s", pair, got)
		}
	}
	// The parser demands a subset of owners only (LINK_TO_LINK_SUBSET in
	// parser/immunix.h).
	if got := p.MayLink("/data/both", "/data/target", Other); got != Yes {
		t.Error(got)
	}
}

func TestPolicy(t *testing.T) { eachSample(t, testPolicy) }

func testPolicy(t *testing.T, p *Profile, name string) {
	const inet, netlink, unix, inet6, stream, dgram, raw = 2, 16, 1, 10, 1, 2, 3
	for _, c := range []struct {
		what string
		got  Answer
		want Answer
	}{
		{"inet stream", p.Network(inet, stream, AllNet), Yes},
		{"inet dgram", p.Network(inet, dgram, NetCreate), No},
		{"inet6 stream", p.Network(inet6, stream, NetCreate), No},
		{"unix stream", p.Network(unix, stream, NetCreate), No},
		{"netlink raw", p.Network(netlink, raw, AllNet), Yes},
		{"family 300", p.Network(300, 1, NetCreate), No},
		{"net_admin", p.Capability(12), Yes},
		{"chown", p.Capability(0), Yes},
		{"sys_admin", p.Capability(21), No},
		{"bpf", p.Capability(39), Yes},
		{"perfmon", p.Capability(38), No},
		{"capability 64", p.Capability(64), Unknown},
		{"term to friend", p.Signal(15, "friend", SignalSend), Yes},
		{"rtmin+3 to friend", p.Signal(131, "friend", SignalSend), Yes},
		{"kill to friend", p.Signal(9, "friend", SignalSend), No},
		{"term from friend", p.Signal(15, "friend", SignalReceive), No},
		{"term to stranger", p.Signal(15, "stranger", SignalSend), No},
		{"hup from unconfined", p.Signal(1, "unconfined", SignalReceive), Yes},
		{"read sample", p.Ptrace("sample", PtraceRead), Yes},
		{"trace sample", p.Ptrace("sample", PtraceTrace), No},
		{"read other", p.Ptrace("other", PtraceRead), No},
		{"tmpfs on /mnt/", p.MayMount(Mount{Target: "/mnt/", Device: "tmpfs", Type: "tmpfs"}), Yes},
		{"ext4 on /mnt/", p.MayMount(Mount{Target: "/mnt/", Device: "/dev/sda", Type: "ext4"}), No},
		{"tmpfs on /tmp/", p.MayMount(Mount{Target: "/tmp/", Device: "tmpfs", Type: "tmpfs"}), No},
		{"ro bind", p.MayMount(Mount{Target: "/b/", Device: "/a/", Flags: 1 | 1<<12}), Yes},
		{"bind elsewhere", p.MayMount(Mount{Target: "/c/", Device: "/a/", Flags: 1 | 1<<12}), No},
		// The parser of Debian 12 makes a rule without "bind" as well.
		{"ro", p.MayMount(Mount{Target: "/b/", Device: "/a/", Flags: 1}), Yes},
		{"umount /mnt/", p.MayUmount("/mnt/"), Yes},
		{"umount /tmp/", p.MayUmount("/tmp/"), No},
		{"pivot_root", p.MayPivotRoot("/new/", "/old/"), Yes},
		{"pivot_root elsewhere", p.MayPivotRoot("/new/", "/elsewhere/"), No},
		// The features of Debian's policy have none of these.
		{"dbus", p.DBus(DBusMessage{Bus: "system", Name: "a.b"}, DBusSend), NotMediated},
		{"userns", p.MayCreateUserns(), NotMediated},
		{"io_uring", p.MayPollIOUring(), NotMediated},
		{"mqueue", p.PosixMqueue("/q", Read), NotMediated},
	} {
		// What newer parsers know, and the features that they were given have.
		switch {
		case name == "here":
		case c.what == "ro":
			c.want = No
		case c.what == "inet stream" && strings.Contains(name, "table3"):
			c.want = Unknown // of some addresses, as far as a class 15 can say
		case c.what == "dbus" && p.Mediates(ClassDBus) == Yes,
			c.what == "userns" && p.Mediates(ClassUserns) == Yes,
			c.what == "io_uring" && p.Mediates(ClassIOUring) == Yes,
			c.what == "mqueue" && p.Mediates(ClassPosixMqueue) == Yes:
			c.want = No
		}
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
	if p.Caps.Quiet != 1<<21 || p.Caps.Audit != 1 {
		t.Errorf("%+v", p.Caps)
	}
	grants, a := p.NetworkGrants()
	if name == "here" && (a != Yes || len(grants) != 1+6 || grants[0] != (NetworkGrant{inet, stream, AllNet})) {
		t.Errorf("%s %v", a, grants)
	}
	for family, want := range map[uint16]Answer{inet: Yes, netlink: Yes, unix: No, inet6: No} {
		if ty, a := p.AnyNetwork(family, AllNet); a != want || a == Yes && family == inet && ty != stream {
			t.Errorf("family %d: %s, type %d", family, a, ty)
		}
	}
	for name, want := range map[string]byte{"hup": 1, "emt": 32, "exists": 35, "rtmin+0": 128, "rtmin+32": 160} {
		if got, ok := SignalNumber(name); !ok || got != want {
			t.Errorf("%s: %d", name, got)
		}
	}
	for _, name := range []string{"", "lost?", "rtmin+33", "rtmin+", "HUP"} {
		if got, ok := SignalNumber(name); ok {
			t.Errorf("%s: %d", name, got)
		}
	}
}

func TestQuery(t *testing.T) {
	p := parse(t, sample)
	for _, c := range []struct {
		class byte
		data  string
		want  Raw
	}{
		{ClassFile, "/etc/passwd", Raw{Allow: uint32(Read | Open | GetAttr | OnExec)}},
		{ClassFile, "/etc/shadow", Raw{Allow: uint32(GetAttr | OnExec), Quiet: uint32(Read | Open)}},
		{ClassNetV8, "\x00\x02\x00\x02", Raw{Quiet: uint32(AllNet)}},
		{ClassDBus, "system", Raw{Allow: 0xffffffff, Quiet: 0xffffffff}},
	} {
		got, ok := p.Query(c.class, []byte(c.data), Other)
		if !ok || got != c.want {
			t.Errorf("%d %q: %#x, want %#x", c.class, c.data, got, c.want)
		}
	}
}

// What only newer policy has: testdata/others.txt, compiled by Debian's 5.0.2
// with abi/5.0.
func TestNewClasses(t *testing.T) {
	b, err := os.ReadFile("testdata/others-5.0.zst")
	if err == nil {
		b, err = unpack.Policy(b, MaxPolicy)
	}
	if err != nil {
		t.Fatal(err)
	}
	all, err := Parse(b)
	if err != nil || len(all) != 1 {
		t.Fatal(len(all), err)
	}
	p := &all[0]
	const inet, inet6, unix, netlink, stream, dgram, raw, seqpacket = 2, 10, 1, 16, 1, 2, 3, 5
	for _, c := range []struct {
		what string
		got  Answer
		want Answer
	}{
		{"userns", p.MayCreateUserns(), Yes},
		{"sqpoll", p.MayPollIOUring(), Yes},
		{"creds of friend", p.MayOverrideIOUring("friend"), Yes},
		{"creds of foe", p.MayOverrideIOUring("foe"), No},
		{"read /queue", p.PosixMqueue("/queue", Read), Yes},
		{"write /queue", p.PosixMqueue("/queue", Write), No},
		{"write /labelled", p.PosixMqueue("/labelled", Write), Unknown}, // friend's only
		{"read /labelled", p.PosixMqueue("/labelled", Read), No},
		{"sysv", p.SysvMqueue(123, Read), NotMediated},
		{"create unix stream", p.Network(unix, stream, NetCreate), No},
		{"connect unix stream", p.Network(unix, stream, NetConnect), Unknown}, // to @peer only
		{"bind unix dgram", p.Network(unix, dgram, NetBind), Unknown},
		{"create unix seqpacket", p.Network(unix, seqpacket, NetCreate), No},
		{"create inet stream", p.Network(inet, stream, NetCreate), Yes},
		{"connect inet stream", p.Network(inet, stream, NetConnect), Unknown}, // from one address only
		{"create inet dgram", p.Network(inet, dgram, NetCreate), No},
		{"create inet6 stream", p.Network(inet6, stream, NetCreate), No},
		{"netlink raw", p.Network(netlink, raw, AllNet), Yes},
		{"kill", p.Signal(9, "x", SignalSend), Yes},
		{"trace", p.Ptrace("x", PtraceTrace), Yes},
		{"monitor", p.DBusMonitor("system"), Yes},
		{"mount", p.MayMount(Mount{Target: "/", Type: "ext4"}), Yes},
		{"change", p.MayChangeProfile("unconfined"), Yes},
		{"write as owner", p.Allows("/o/a", Write, Owner), Yes},
		{"write as other", p.Allows("/o/a", Write, Other), No},
		{"write what is denied", p.Allows("/o/secret", Write, Owner), No},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", c.what, c.got, c.want)
		}
	}
}

// What has a part that is not known here answers nothing: the part could change any
// answer.
func TestWhatIsNotKnownAnswersNothing(t *testing.T) {
	p := parse(t, "profile p {\n/etc/** r,\nnetwork inet stream,\ncapability chown,\nchange_profile -> x,\n}")
	p.Unread = []string{"a table of tomorrow"}
	all := pattern(t, "/etc/**")
	for what, got := range map[string]Answer{
		"a path":         p.Allows("/etc/a", Read, Either),
		"another path":   p.Allows("/srv/a", Read, Either),
		"a pattern":      p.Find(Query{Pattern: all, All: Read}).Answer,
		"all of it":      p.Covers(Query{Pattern: all, All: Read}).Answer,
		"a socket":       p.Network(2, 1, NetCreate),
		"a capability":   p.Capability(0),
		"another one":    p.Capability(21),
		"a change":       p.MayChangeProfile("x"),
		"what matches":   p.FindChange(Query{Pattern: all, Any: ChangeProfile}).Answer,
		"an exec":        second(p.Exec("/bin/sh", Either)),
		"a signal":       p.Signal(9, "x", SignalSend),
		"user namespace": p.MayCreateUserns(),
	} {
		if got != Unknown {
			t.Errorf("%s: %s", what, got)
		}
	}
}

func second(_ Transition, a Answer) Answer { return a }

// A file of the parser's cache is the policy, as -S prints it.
func TestAFileOfTheCache(t *testing.T) {
	const text = "profile p {\n/etc/** r,\n}\nprofile q {\n/srv/** rw,\n}\n"
	cache := t.TempDir()
	if out, err := exec.Command("/usr/sbin/apparmor_parser", "--skip-kernel-load", "--write-cache", "--cache-loc", cache,
		"--kernel-features=/usr/share/apparmor-features/features", write(t, text)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	files, _ := filepath.Glob(cache + "/*/profile")
	if len(files) != 1 {
		t.Fatalf("the cache has %q", files)
	}
	blob, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	all, err := Parse(blob)
	if err != nil || len(all) != 2 || all[0].Allows("/etc/a", Read, Either) != Yes || all[1].Allows("/srv/a", Write, Either) != Yes || all[1].Allows("/etc/a", Read, Either) != No {
		t.Errorf("%v: %+v", err, all)
	}
}
