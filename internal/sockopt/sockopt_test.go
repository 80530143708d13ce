package sockopt

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

var rules = Rules{Mode: Enforce, Allow: []Option{{6, 1}, {1, 9}, {6, 1}}, HoldGet: true, AllowGet: []Option{{1, 3}}}

func TestStore(t *testing.T) {
	d := Store(filepath.Join(t.TempDir(), "sockopts"))
	if _, err := d.Load("a.service"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	long := strings.Repeat("x", 245) + ".service"
	for _, unit := range []string{"a.service", "a@.service", "a@b.service", `x\x2dy.service`, long, ".hidden.service"} {
		if changed, err := d.Save(unit, rules); err != nil || !changed {
			t.Errorf("%s: %v, %v", unit, changed, err)
		}
		if changed, err := d.Save(unit, rules); err != nil || changed {
			t.Errorf("%s again: %v, %v", unit, changed, err)
		}
		got, err := d.Load(unit)
		if err != nil || !got.Equal(rules) || len(got.Allow) != 2 {
			t.Errorf("%s: %+v, %v", unit, got, err)
		}
	}
	if st, err := os.Stat(d.path("a.service")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	if changed, err := d.Delete("a.service"); err != nil || !changed {
		t.Error(changed, err)
	}
	if changed, err := d.Delete("a.service"); err != nil || changed {
		t.Error(changed, err)
	}
	if _, err := d.Save("b.service", Rules{Mode: 7}); err == nil {
		t.Error("a mode that there is not was stored")
	}
	if _, err := d.Save("b.service", Rules{Allow: make([]Option, MaxAllow+1)}); err == nil {
		t.Error("too long a list was stored")
	}
}

// What others could have written, or is of another unit, is not believed.
func TestStoreDoubts(t *testing.T) {
	d := Store(t.TempDir())
	good, err := format("a.service", rules)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text string
		mode fs.FileMode
	}{
		"writable by others": {string(good), 0o666},
		"of another unit":    {strings.Replace(string(good), "a.service", "b.service", 1), 0o600},
		"no JSON":            {"{", 0o600},
		"no mode":            {`{"unit":"a.service","mode":"loud"}`, 0o600},
		"a number too large": {`{"unit":"a.service","mode":"record","allow":[{"level":4294967296,"option":1}]}`, 0o600},
		"too large":          {string(good) + strings.Repeat(" ", maxStored), 0o600},
	} {
		path := d.path("a.service")
		if err := os.WriteFile(path, []byte(c.text), c.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, c.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load("a.service"); err == nil || errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), "cannot ") {
			t.Errorf("%s: %v", name, err)
		}
		if _, _, err := d.Find("a.service"); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s, found: %v", name, err)
		}
		_ = os.Remove(path)
	}
	if err := os.Symlink("elsewhere", d.path("a.service")); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load("a.service"); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Error(err)
	}
}

func TestLookups(t *testing.T) {
	for unit, want := range map[string][]string{
		"a.service":           {"a.service"},
		"a-b-c.service":       {"a-b-c.service", "a-b-.service", "a-.service"},
		"a-b@i-j.service":     {"a-b@i-j.service", "a-b@.service", "a-.service"},
		"a@.service":          {"a@.service"},
		"a-.service":          {"a-.service"},
		"a-b-.service":        {"a-b-.service", "a-.service"},
		"-.service":           {"-.service"},
		"--a.service":         {"--a.service", "--.service"},
		"x.y-z.service":       {"x.y-z.service", "x.y-.service"},
		"nothing":             {"nothing"},
		`dev-a\x2db.service`:  {`dev-a\x2db.service`, "dev-.service"},
		"one@two@three.timer": {"one@two@three.timer", "one@.timer"},
	} {
		if got := lookups(unit); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", unit, got, want)
		}
	}
	d := Store(t.TempDir())
	if _, err := d.Save("a-.service", Rules{Mode: Record}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Save("a-b@.service", rules); err != nil {
		t.Fatal(err)
	}
	if r, from, err := d.Find("a-b@x.service"); err != nil || from != "a-b@.service" || !r.Equal(rules) {
		t.Errorf("%+v %s %v", r, from, err)
	}
	if r, from, err := d.Find("a-z.service"); err != nil || from != "a-.service" || r.Mode != Record {
		t.Errorf("%+v %s %v", r, from, err)
	}
	if _, _, err := d.Find("z.service"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzStored(f *testing.F) {
	good, err := format("a.service", rules)
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{string(good), "{}", `{"unit":"a.service","mode":"off"}`, `{"unit":"a.service","allow":null}`, `[1]`, `{"unit":"a.service","mode":"record","allow":[{}]}`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := parseStored("a.service", data)
		if err != nil {
			return
		}
		written, err := format("a.service", r)
		if err != nil {
			t.Fatal(err)
		}
		again, err := parseStored("a.service", written)
		if err != nil || !again.Equal(r) {
			t.Errorf("%+v, %v, of %q", again, err, data)
		}
	})
}

// What stands in the kernel's tables is taken for rules only where aaunit writes such.
func TestRulesOfTheTables(t *testing.T) {
	allow := func(r Rules, keys ...bpfAllowKey) (Rules, error) {
		for _, key := range keys {
			if err := r.add(key); err != nil {
				return r, err
			}
		}
		return r, nil
	}
	for name, c := range map[string]struct {
		settings bpfSettings
		keys     []bpfAllowKey
		want     Rules
		err      string
	}{
		"a list": {bpfSettings{Mode: 2, Flags: 1, Cgroup: 7}, []bpfAllowKey{{Level: 6, Optname: 1}, {Level: 1, Optname: 3, Call: 1}},
			Rules{Mode: Enforce, Allow: []Option{{6, 1}}, HoldGet: true, AllowGet: []Option{{1, 3}}}, ""},
		"nothing yet":                      {bpfSettings{}, nil, Rules{}, ""},
		"a mode of a later version":        {bpfSettings{Mode: 3}, nil, Rules{}, "the mode 3"},
		"a mode that ends like one":        {bpfSettings{Mode: 1<<8 + 2}, nil, Rules{}, "the mode 258"},
		"a flag of a later version":        {bpfSettings{Mode: 2, Flags: 3}, nil, Rules{}, "the flags 0x3"},
		"a call that there is not":         {bpfSettings{Mode: 2}, []bpfAllowKey{{Level: 6, Optname: 1, Call: 2}}, Rules{}, "the call 2"},
		"a call that ends like setsockopt": {bpfSettings{Mode: 2}, []bpfAllowKey{{Level: 6, Optname: 1, Call: 1 << 8}}, Rules{}, "the call 256"},
	} {
		got, err := c.settings.rules()
		if err == nil {
			got, err = allow(got, c.keys...)
		}
		switch {
		case c.err == "" && (err != nil || !got.Equal(c.want)):
			t.Errorf("%s: %+v, %v", name, got, err)
		case c.err != "" && (!errors.Is(err, errNoRules) || !strings.Contains(err.Error(), c.err)):
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestUnitCgroup(t *testing.T) {
	for _, c := range []struct{ data, unit, want, err string }{
		{"0::/system.slice/a.service\n", "a.service", "/system.slice/a.service", ""},
		{"0::/system.slice/a.service", "a.service", "/system.slice/a.service", ""},
		{"0::/system.slice/a.service/.control\n", "a.service", "/system.slice/a.service", ""},
		{"1:name=systemd:/x\n0::/system.slice/system-a.slice/a@b.service\n", "a@b.service", "/system.slice/system-a.slice/a@b.service", ""},
		{"0::/system.slice/_cpu.service\n", "cpu.service", "/system.slice/_cpu.service", ""},
		{"0::/system.slice/b.service\n", "a.service", "", "it is not that of a.service"},
		{"0::/user.slice/a.service/x\n", "a.service", "", "it is not that of a.service"},
		{"0::/\n", "a.service", "", "it is not that of a.service"},
		{"5:cpu:/a.service\n", "a.service", "", "control group"},
		{"", "a.service", "", "control group"},
	} {
		got, err := unitCgroup([]byte(c.data), c.unit)
		if got != c.want || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %q, %v", c.data, got, err)
		}
	}
}

func FuzzUnitCgroup(f *testing.F) {
	f.Add([]byte("0::/system.slice/a.service/.control\n"))
	f.Add([]byte("1:name=systemd:/x\n0::/\n"))
	f.Add([]byte("0::"))
	f.Fuzz(func(t *testing.T, data []byte) {
		group, err := unitCgroup(data, "a.service")
		if err == nil && filepath.Base(group) != "a.service" && filepath.Base(group) != "_a.service" {
			t.Errorf("%q: %q", data, group)
		}
	})
}

// The helper tells the journal how bad it is, and fails a start unless it is told
// not to.
func TestHelperExits(t *testing.T) {
	h := Helper{Store: Store(t.TempDir())}
	for _, c := range []struct {
		args   []string
		status int
		says   string
	}{
		{[]string{"a.service"}, helperFailed, "<3>aaunit-sockopts: cannot find the socket-option rules of a.service"},
		{[]string{"-required=yes", "a.service"}, helperFailed, "does not start"},
		{[]string{"-required=no", "a.service"}, 0, "<4>aaunit-sockopts: cannot find"},
		{[]string{"-required=perhaps", "a.service"}, helperUsage, "yes or no"},
		{[]string{"-nonsense"}, helperUsage, "ExecStartPre=+"},
		{nil, helperUsage, "one unit"},
		{[]string{"a", "b"}, helperUsage, "one unit"},
		{[]string{"-version"}, 0, "aaunit-sockopts"},
	} {
		var told bytes.Buffer
		h.Stderr = &told
		if status := h.Run(c.args); status != c.status || !strings.Contains(told.String(), c.says) || strings.Count(told.String(), "\n") != 1 {
			t.Errorf("%q: %d, %q", c.args, status, told.String())
		}
	}
	if attach.SocketStartLine(true) == attach.SocketStartLine(false) || !strings.HasPrefix(attach.SocketStartLine(true), "ExecStartPre=+"+attach.SocketHelper) {
		t.Error(attach.SocketStartLine(true), attach.SocketStartLine(false))
	}
}

func TestEscape(t *testing.T) {
	long := strings.Repeat("_", 250)
	seen := map[string]string{}
	for _, unit := range []string{"a.service", "a@b.service", "a-b.service", `a\x2db.service`, "7.service", "a_b.service", "é.service", "_2e", ".", "..", long, long + "x"} {
		name := escape(unit)
		if strings.ContainsAny(name, "./\x00") || len(name) > 255 || name == "" || seen[name] != "" {
			t.Errorf("%q is %q, as is %q", unit, name, seen[name])
		}
		seen[name] = unit
		if back, ok := unescape(name); (back != unit || !ok) && len(unit) < 200 {
			t.Errorf("%q is %q and back %q", unit, name, back)
		} else if ok && len(unit) > 200 {
			t.Errorf("%q has a way back", name)
		}
	}
	for _, bad := range []string{"_", "_2", "_zz", "a.b", "_41", "7", "a_", "", "_2E"} {
		if unit, ok := unescape(bad); ok {
			t.Errorf("%q is %q", bad, unit)
		}
	}
}

func TestModes(t *testing.T) {
	for _, m := range []Mode{Off, Record, Enforce} {
		if back, err := ParseMode(m.String()); err != nil || back != m {
			t.Errorf("%v: %v, %v", m, back, err)
		}
	}
	if _, err := ParseMode("on"); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
		t.Error(err)
	}
	if _, err := Mode(9).MarshalText(); err == nil {
		t.Error("mode 9 is written")
	}
}

func TestRules(t *testing.T) {
	if !rules.Equal(Rules{Mode: Enforce, Allow: []Option{{1, 9}, {6, 1}}, HoldGet: true, AllowGet: []Option{{1, 3}}}) {
		t.Error("order counts")
	}
	for _, other := range []Rules{{Mode: Record, Allow: rules.Allow, HoldGet: true, AllowGet: rules.AllowGet}, {Mode: Enforce, Allow: rules.Allow, AllowGet: rules.AllowGet},
		{Mode: Enforce, Allow: rules.Allow[:1], HoldGet: true, AllowGet: rules.AllowGet}, {Mode: Enforce, Allow: rules.Allow, HoldGet: true}} {
		if rules.Equal(other) {
			t.Errorf("%+v is the same", other)
		}
	}
	if !rules.Allows(Set, Option{6, 1}) || rules.Allows(Set, Option{6, 2}) || rules.Allows(Get, Option{6, 1}) || !rules.Allows(Get, Option{1, 3}) || !(Rules{}).Allows(Get, Option{9, 9}) {
		t.Error("Allows")
	}
	if len(rules.keys()) != 3 || rules.settings(bpfSettings{Mode: 1, Cgroup: 7, Level: 3}) != (bpfSettings{Mode: 2, Flags: 1, Cgroup: 7, Level: 3}) {
		t.Errorf("%v %v", rules.keys(), rules.settings(bpfSettings{}))
	}
}

func TestDecode(t *testing.T) {
	boot := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	keys := []bpfSeenKey{
		{Level: 6, Optname: 1, Protocol: 262, Family: 10, Type: 1},
		{Level: 1, Optname: 3, Family: 1, Type: 1, Call: 1, BySystemd: 1},
		{Level: 9},
	}
	values := make([]bpfSeenValue, 3)
	values[0].Allowed, values[0].Refused = 3, 2
	values[0].First.Time, values[0].Last.Time = 2e9, 9e9
	values[0].LastRefused.Time, values[0].LastRefused.Pid = 8e9, 42
	copy(values[0].LastRefused.Comm[:], "a comm of sixteen")
	values[1].Allowed = 1
	values[1].First.Time = 1e9
	copy(values[1].First.Comm[:], "x\x00rest")
	got := decode(keys, values, when{boot})
	want := []Seen{
		{Call: Get, Option: Option{1, 3}, Socket: Socket{1, 1, 0}, BySystemd: true, Allowed: 1, First: Who{boot.Add(1e9), 0, "x"}},
		{Call: Set, Option: Option{6, 1}, Socket: Socket{10, 1, 262}, Allowed: 3, Refused: 2, First: Who{Time: boot.Add(2e9)}, Last: Who{Time: boot.Add(9e9)},
			LastRefused: Who{boot.Add(8e9), 42, "a comm of sixtee"}},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if now := clock().wall(1); time.Since(now) < 0 || !(when{}).wall(5).IsZero() {
		t.Error(now)
	}
}

func TestJudge(t *testing.T) {
	for _, c := range []struct{ err, is error }{
		{unix.ENOMEM, ErrNoMemory}, {unix.EPERM, ErrNotPermitted}, {unix.ENOSYS, ErrUnsupported}, {ebpf.ErrNotSupported, ErrUnsupported},
		{&ebpf.VerifierError{Cause: unix.EACCES}, ErrUnsupported}, {unix.EIO, unix.EIO},
	} {
		err := judge("cannot do it", fmt.Errorf("why: %w", c.err))
		if !errors.Is(err, c.is) || !errors.Is(err, c.err) || !strings.HasPrefix(err.Error(), "cannot do it: ") {
			t.Errorf("%v: %v", c.err, err)
		}
	}
	if judge("cannot", nil) != nil {
		t.Error("nil")
	}
}

// The compiled object, without a kernel: it is what the Go side thinks it is.
func TestObject(t *testing.T) {
	s, err := spec()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range hooks {
		p := s.Programs[h.program]
		if p == nil || p.AttachType != h.attach || p.Type != ebpf.CGroupSockopt || p.License != "GPL" {
			t.Errorf("%s: %+v", h.program, p)
		}
	}
	if len(s.Maps) != len(mapNames) {
		t.Errorf("%d tables", len(s.Maps))
	}
	for _, name := range mapNames {
		if s.Maps[name] == nil {
			t.Errorf("there is no table %s", name)
		}
	}
	seen := s.Maps["seen"]
	if seen.Type != ebpf.Hash || seen.MaxEntries != MaxSeen || s.Maps["allow"].MaxEntries != MaxAllow || s.Maps["allow"].Type != ebpf.Hash {
		t.Errorf("%+v", seen)
	}
}

// What is mounted over a BPF file system hides its links, which go on.
func TestCovered(t *testing.T) {
	const (
		bpf   = "30 24 0:28 / /sys/fs/bpf rw,nosuid,nodev,noexec,relatime shared:8 - bpf bpf rw,mode=700\n"
		tmpfs = "99 24 0:70 / /sys/fs/bpf rw,relatime - tmpfs tmpfs rw\n"
	)
	for name, c := range map[string]struct {
		mounts string
		want   bool
	}{
		"covered":                {bpf + tmpfs, true},
		"none, and never was":    {tmpfs, false},
		"another place":          {strings.Replace(bpf, "/sys/fs/bpf", "/run/bpf", 1), false},
		"a place below":          {strings.Replace(bpf, "/sys/fs/bpf", "/sys/fs/bpf/aaunit", 1), false},
		"no field is told":       {strings.Replace(bpf, " shared:8", "", 1), true},
		"a device with the name": {"30 24 0:28 / /sys/fs/bpf rw - tmpfs bpf rw\n", false},
		"nothing":                {"", false},
		"nonsense":               {"30 24\n - bpf\n", false},
	} {
		if got := bpfMountedAt([]byte(c.mounts), "/sys/fs/bpf"); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}
