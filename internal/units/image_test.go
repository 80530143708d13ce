package units

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
)

// put makes a file of an image, or with a text that begins with "->" a link.
func put(t *testing.T, root, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(root+path), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if to, ok := strings.CutPrefix(text, "->"); ok {
		err = os.Symlink(to, root+path)
	} else {
		err = os.WriteFile(root+path, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestSettingsOfAnImage(t *testing.T) {
	root := t.TempDir()
	put(t, root, "/usr/lib/systemd/system/a@.service", `[Unit]
DefaultDependencies=no
After=sysinit.target network.target
[Service]
Type=notify
ExecStartPre=!-/usr/bin/mkdir -p "/run/a b" ; +/usr/bin/true
ExecStart=@/usr/bin/%p name --instance=%i \
  --last
User=nobody
StateDirectory=a:link b
ProtectSystem=yes
RestrictAddressFamilies=AF_INET AF_INET6
RestrictAddressFamilies=AF_UNIX
RestrictAddressFamilies=~AF_INET6
RootDirectory=/srv/%i
RootDirectoryStartOnly=yes
BindPaths=/gone
TemporaryFileSystem=/var:ro,mode=0700 "/opt/a b"
MountImages=/c.raw:/c:root:ro
ProtectControlGroups=strict
`)
	put(t, root, "/etc/systemd/system/a@one.service.d/20-x.conf", "[Service]\nPrivateTmp=true\nAppArmorProfile=-a-%i\nNoNewPrivileges=yes\n")
	put(t, root, "/etc/systemd/system/a@.service.d/10-y.conf", "[Service]\nProtectSystem=no\nDynamicUser=1\nStateDirectory=\nStateDirectory=c\n"+
		"BindReadOnlyPaths=\nBindReadOnlyPaths=-/srv/%i:/data /srv/x\\:y:/y:norbind\nBindPaths=/d:/d:norbind\n")
	put(t, root, "/usr/lib/systemd/system/a@.service.d/20-x.conf", "[Service]\nUser=root\n") // masked by the file of that name in /etc
	put(t, root, "/etc/systemd/system/service.d/30-z.conf", "->/dev/null")
	u, err := NewImage(root).Observe(t.Context(), "a@one.service")
	if err != nil {
		t.Fatal(err)
	}
	want := attach.Settings{
		Profile: "a-one", IgnoreMissing: true, PrivateTmp: attach.PrivateTmpYes, KnowsDisconnected: true, NoNewPrivileges: true, User: "nobody", DynamicUser: true,
		After: []string{"sysinit.target", "network.target"},
		Exec: []attach.ExecCommand{
			{Property: "ExecStartPre", Path: "/usr/bin/mkdir", Argv: []string{"/usr/bin/mkdir", "-p", "/run/a b"}, IgnoreFailure: true},
			{Property: "ExecStartPre", Path: "/usr/bin/true", Argv: []string{"/usr/bin/true"}, Privileged: true},
			{Property: "ExecStart", Path: "/usr/bin/a", Argv: []string{"name", "--instance=one", "--last"}},
		},
		RootDirectory: "/srv/%i", RootDirectoryStartOnly: true, MountNamespace: true, ProtectControlGroups: true,
		Mounts: []attach.Mount{
			{Property: "TemporaryFileSystem", Path: "/var"}, {Property: "TemporaryFileSystem", Path: "/opt/a b"}, {Property: "MountImages", Path: "/c"},
			{Property: "BindReadOnlyPaths", Path: "/data", Source: "/srv/one", ReadOnly: true},
			{Property: "BindReadOnlyPaths", Path: "/y", Source: "/srv/x:y", ReadOnly: true, Flat: true},
			{Property: "BindPaths", Path: "/d", Source: "/d", Flat: true},
		},
		Directories:     []attach.Directory{{Property: "StateDirectory", Path: "/var/lib/c"}},
		AddressFamilies: &attach.AddressFamilies{AllowList: true, Families: []string{"AF_INET", "AF_UNIX"}},
		Assignments: []attach.Assignment{
			{Key: "ExecStartPre", Value: `!-/usr/bin/mkdir -p "/run/a b" ; +/usr/bin/true`, Path: "/usr/lib/systemd/system/a@.service", Line: 6},
			{Key: "PrivateTmp", Value: "true", Path: "/etc/systemd/system/a@one.service.d/20-x.conf", Line: 2},
			{Key: "AppArmorProfile", Value: "-a-%i", Path: "/etc/systemd/system/a@one.service.d/20-x.conf", Line: 3},
		},
	}
	if d := cmp.Diff(want, u.Settings); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if u.ID != "a@one.service" || u.Type != "notify" || u.LoadState != "loaded" || u.FragmentPath != "/usr/lib/systemd/system/a@.service" {
		t.Errorf("%+v", u)
	}
	if d := cmp.Diff([]string{"/etc/systemd/system/a@.service.d/10-y.conf", "/etc/systemd/system/a@one.service.d/20-x.conf", "/etc/systemd/system/service.d/30-z.conf"}, u.DropIns); d != "" {
		t.Errorf("drop-ins (-want +got):\n%s", d)
	}
}

func TestUnitFilesOfAnImage(t *testing.T) {
	root := t.TempDir()
	service := "[Service]\nExecStart=/usr/bin/true\n"
	put(t, root, "/usr/lib/systemd/system/a.service", service)
	put(t, root, "/etc/systemd/system/alias.service", "->/usr/lib/systemd/system/a.service")
	put(t, root, "/etc/systemd/system/second.service", "->alias.service")
	put(t, root, "/etc/systemd/system/dangling.service", "->/usr/lib/systemd/system/none.service")
	put(t, root, "/etc/systemd/system/loop.service", "->pool.service")
	put(t, root, "/etc/systemd/system/pool.service", "->loop.service")
	put(t, root, "/etc/systemd/system/masked.service", "->/dev/null")
	put(t, root, "/usr/lib/systemd/system/masked.service", service)
	put(t, root, "/usr/lib/systemd/system/t@.service", service)
	put(t, root, "/etc/systemd/system/alias@.service", "->/usr/lib/systemd/system/t@.service")
	put(t, root, "/etc/systemd/system/fixed.service", "->/usr/lib/systemd/system/t@one.service")
	put(t, root, "/usr/lib/systemd/system/broken.service", "[Service]\nExecStart=/usr/bin/x \"open\n")
	if err := os.MkdirAll(root+"/etc/systemd/system/dir.service", 0o755); err != nil {
		t.Fatal(err)
	}
	i := NewImage(root)
	for unit, want := range map[string]string{
		"a.service": "a.service loaded", "alias.service": "a.service loaded", "second.service": "a.service loaded",
		"dangling.service": "dangling.service not-found", "none.service": "none.service not-found", "masked.service": "masked.service masked",
		"t@one.service": "t@one.service loaded", "alias@one.service": "t@one.service loaded", "t@.service": "t@.service stub",
		"loop.service": "", "broken.service": "", "dir.service": "", "../a.service": "", "a": "", "bad name.service": "",
	} {
		u, err := i.Observe(t.Context(), unit)
		if got := u.ID + " " + u.LoadState; err == nil && got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, not %q: %v", unit, got, want, err)
		}
	}
	u, err := i.Observe(t.Context(), "second.service")
	if slices.Sort(u.Names); err != nil || !slices.Equal(u.Names, []string{"a.service", "alias.service", "second.service"}) {
		t.Errorf("names %q, %v", u.Names, err)
	}
	if got, err := i.Expand(t.Context(), "*.service"); err != nil || !slices.Contains(got, "a.service") || slices.Contains(got, "masked.service") || slices.Contains(got, "t@.service") || slices.Contains(got, "alias.service") {
		t.Errorf("%q %v", got, err)
	}
}

// What is for all sockets gives way to what is for one, as for services.
func TestDropInsOfASocketOfAnImage(t *testing.T) {
	root := t.TempDir()
	put(t, root, "/usr/lib/systemd/system/a.service", "[Service]\nExecStart=/usr/bin/true\n")
	put(t, root, "/usr/lib/systemd/system/a.socket", "[Socket]\nListenStream=1\n")
	put(t, root, "/etc/systemd/system/socket.d/10-x.conf", "[Socket]\nRootDirectory=/general\n")
	put(t, root, "/usr/lib/systemd/system/a.socket.d/10-x.conf", "[Socket]\nRootDirectory=/own\n")
	got, err := NewImage(root).StartingSockets(t.Context(), attach.Unit{Names: []string{"a.service"}})
	if err != nil || len(got) != 1 || got[0].RootDirectory != "/own" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestCommandLines(t *testing.T) {
	for value, want := range map[string][]string{
		`/bin/a b`:              {"/bin/a", "b"},
		`/bin/a "b c" 'd"e'`:    {"/bin/a", "b c", `d"e`},
		`/bin/a x\ y \x41 "\""`: {"/bin/a", "x y", `\x41`, `"`},
		`/bin/a "" b`:           {"/bin/a", "", "b"},
		`/bin/a \; b`:           {"/bin/a", ";", "b"},
		`/bin/a; b`:             {"/bin/a;", "b"},
	} {
		got, err := parseCommands(value)
		if err != nil || len(got) != 1 || !slices.Equal(got[0].Argv, want) {
			t.Errorf("%s: %v %v", value, got, err)
		}
	}
	for _, value := range []string{`/bin/a "b`, `/bin/a \`, `+`, `- /bin/a`, strings.Repeat("a ", maxWords+2)} {
		if got, err := parseCommands(value); err == nil {
			t.Errorf("%.40s: %v", value, got)
		}
	}
}

func FuzzCommandLines(f *testing.F) {
	for _, seed := range []string{`/bin/a b`, `+-/bin/a "b c" ; /bin/d`, `@/bin/a b 'c`, `\`, `"\`, `:!/bin/x \x41`, "/a\x00b"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		got, err := parseCommands(value)
		if err != nil {
			return
		}
		for _, c := range got {
			if c.Path == "" || strings.ContainsAny(c.Path[:1], "@-:+!|") {
				t.Errorf("%q: the program is %q", value, c.Path)
			}
			if c.Privileged && !strings.Contains(value, "+") {
				t.Errorf("%q: privileged", value)
			}
		}
	})
}

// Which values of PrivateTmp= the systemd of an image knows hangs on its version.
func TestWhetherAnImageKnowsDisconnected(t *testing.T) {
	for library, want := range map[string]attach.PrivateTmp{
		"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-252.so": attach.PrivateTmpNo,
		"/usr/lib/x86_64-linux-gnu/systemd/libsystemd-shared-257.so": attach.PrivateTmpDisconnected,
		"/usr/lib/systemd/libsystemd-shared-252.4-1.fc38.so":         attach.PrivateTmpNo,
		"/usr/lib64/systemd/libsystemd-shared-258.so":                attach.PrivateTmpDisconnected,
		"/usr/lib/systemd/libsystemd-shared-.so":                     attach.PrivateTmpDisconnected,
		"/usr/lib/systemd/systemd":                                   attach.PrivateTmpDisconnected,
	} {
		root := t.TempDir()
		put(t, root, library, "")
		put(t, root, "/usr/lib/systemd/system/a.service", "[Service]\nPrivateTmp=disconnected\n")
		u, err := NewImage(root).Observe(t.Context(), "a.service")
		if err != nil || u.Settings.PrivateTmp != want || u.Settings.KnowsDisconnected != (want == attach.PrivateTmpDisconnected) {
			t.Errorf("%s: %v, %+v", library, err, u.Settings)
		}
	}
}
