package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/cli"
	"github.com/aaunit/aaunit/internal/sockopt"
	"github.com/google/go-cmp/cmp"
)

const profileText = `profile myagent /usr/local/bin/myagent {
  network inet stream,
  /usr/local/bin/myagent mr,
  /var/log/myagent.log w,
}
`

// tree is an image in a directory of the test's.
type tree struct {
	t    *testing.T
	root string
}

func newTree(t *testing.T) *tree {
	t.Helper()
	f := &tree{t, filepath.Join(t.TempDir(), "image")}
	f.write("/etc/apparmor.d/usr.local.bin.myagent", profileText)
	f.write("/usr/lib/systemd/system/myagent.service", "[Service]\nExecStart=/usr/local/bin/myagent -v\n")
	f.write("/usr/lib/systemd/system/apparmor.service", "[Service]\nExecStart=/lib/apparmor/apparmor.systemd reload\n")
	f.link("/etc/systemd/system/sysinit.target.wants/apparmor.service", "/usr/lib/systemd/system/apparmor.service")
	return f
}

func (f *tree) write(path, text string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.root+path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.WriteFile(f.root+path, []byte(text), 0o644); err != nil {
		f.t.Fatal(err)
	}
}

func (f *tree) link(path, to string) {
	f.t.Helper()
	if err := os.MkdirAll(filepath.Dir(f.root+path), 0o755); err != nil {
		f.t.Fatal(err)
	}
	if err := os.Symlink(to, f.root+path); err != nil {
		f.t.Fatal(err)
	}
}

// required has the image attach myagent.service with a start helper that has to work.
func (f *tree) required() {
	f.t.Helper()
	f.write("/etc/aaunit/attachments.d/mine.conf", "[Attachment]\nUnit=myagent.service\nProfile=myagent\n[SocketOptions]\nRequired=yes\n")
	f.write(attach.SocketHelper, "#!")
	if err := os.Chmod(f.root+attach.SocketHelper, 0o755); err != nil {
		f.t.Fatal(err)
	}
}

func (f *tree) read(path string) string {
	b, err := os.ReadFile(f.root + path)
	if err != nil {
		return ""
	}
	return string(b)
}

// files lists all that is in the tree but links, with its text.
func (f *tree) files() map[string]string {
	f.t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(f.root, func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			out[path] = f.read(strings.TrimPrefix(path, f.root))
		}
		return err
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

func (f *tree) image() cli.Image {
	f.t.Helper()
	i, err := openImage(f.root)
	if err != nil {
		f.t.Fatal(err)
	}
	return i
}

func (f *tree) attach(r attach.Request) attach.Outcome {
	f.t.Helper()
	out, err := f.image().Attach(f.t.Context(), r)
	if err != nil || len(out) != 1 {
		f.t.Fatalf("%+v %v", out, err)
	}
	return out[0]
}

func (f *tree) detach(units ...string) attach.Outcome {
	f.t.Helper()
	out, err := f.image().Detach(f.t.Context(), attach.Request{Units: units})
	if err != nil || len(out) != 1 {
		f.t.Fatalf("%+v %v", out, err)
	}
	return out[0]
}

func (f *tree) prepared(unit string) attach.ImageUnit {
	f.t.Helper()
	r, err := f.image().Status(f.t.Context(), nil)
	if err != nil {
		f.t.Fatal(err)
	}
	for _, u := range r.Units {
		if u.Unit == unit {
			return u
		}
	}
	f.t.Fatalf("%s is not in %+v", unit, r)
	return attach.ImageUnit{}
}

func codesOf(rs []attach.Reason) (out []attach.Code) {
	for _, r := range rs {
		out = append(out, r.Code)
	}
	return out
}

const (
	theDropIn     = "/etc/systemd/system/myagent.service.d/90-aaunit.conf"
	theAttachment = "/etc/aaunit/attachments.d/myagent.service.conf"
)

func TestAnImageIsPreparedAsAaunitdWould(t *testing.T) {
	f := newTree(t)
	before := f.files()
	if o := f.attach(attach.Request{Units: []string{"myagent"}, DryRun: true}); o.Exit != attach.ExitOK || !o.Changed || !o.Plan.Has(attach.WriteDropIn) {
		t.Errorf("a dry run: %+v", o)
	}
	if d := cmp.Diff(before, f.files()); d != "" {
		t.Errorf("a dry run has written (-before +after):\n%s", d)
	}
	if o := f.attach(attach.Request{Units: []string{"myagent"}}); o.Exit != attach.ExitOK || !o.Changed || o.Verdict != nil || o.Profile != "myagent" {
		t.Fatalf("%+v", o)
	}
	a := attach.NewAttachment()
	a.Source = theAttachment
	if got, want := f.read(theDropIn), attach.DropIn(a, "myagent"); got != want {
		t.Errorf("the drop-in is not what the daemon writes:\n%s", got)
	}
	if got := f.read(theAttachment); !strings.Contains(got, "Unit=myagent.service\nProfile=myagent\n") {
		t.Errorf("the attachment file:\n%s", got)
	}
	if o := f.attach(attach.Request{Units: []string{"myagent"}}); o.Exit != attach.ExitOK || o.Changed {
		t.Errorf("again: %+v", o)
	}
	if u := f.prepared("myagent.service"); u.Prepared != attach.Yes || u.Attachment != theAttachment || u.DropIn != theDropIn || len(u.Notes) != 0 {
		t.Errorf("%+v", u)
	}
	if o := f.attach(attach.Request{Units: []string{"myagent"}, Complain: true}); !o.Changed || !strings.Contains(f.read(theAttachment), "Mode=complain") {
		t.Errorf("another option: %+v", o)
	}
	if o := f.detach("myagent"); o.Exit != attach.ExitOK || !o.Changed {
		t.Errorf("detach: %+v", o)
	}
	if d := cmp.Diff(before, f.files()); d != "" {
		t.Errorf("detach leaves something (-before +after):\n%s", d)
	}
	if o := f.detach("myagent"); o.Exit != attach.ExitOK || o.Changed || !slices.Contains(codesOf(o.Notes), attach.NotAttached) {
		t.Errorf("detach again: %+v", o)
	}
}

// The start helper of the first boot finds its rules, those of .socket units too, and
// nothing of them outlasts the section or the attachment.
func TestAnImageWithSocketOptions(t *testing.T) {
	f := newTree(t)
	f.write("/usr/lib/systemd/system/myagent.socket", "[Socket]\nListenStream=7\n")
	f.write("/usr/lib/systemd/system/second.socket", "[Socket]\nListenStream=8\nService=%p.service\n")
	f.write("/etc/systemd/system/second.socket.d/x.conf", "[Socket]\nService=myagent.service\n")
	f.write("/usr/lib/systemd/system/third.socket", "[Socket]\nListenStream=9\nService=other.service\n")
	f.write("/usr/lib/systemd/system/aaunit-none.socket", "")
	before := f.files()
	declared := "[Attachment]\nUnit=myagent.service\nProfile=myagent\n"
	section := "[SocketOptions]\nMode=enforce\nAllow=TCP_NODELAY small answers\n"
	file := "/etc/aaunit/attachments.d/mine.conf"
	f.write(file, declared+section)
	if o := f.attach(attach.Request{}); o.Exit == attach.ExitOK || !slices.Contains(codesOf(o.Reasons), attach.SocketsUnknown) || !strings.Contains(o.Reasons[0].Next, "install the package") {
		t.Errorf("an image without the helper: %+v", o)
	}
	f.write(attach.SocketHelper, "#!")
	if err := os.Chmod(f.root+attach.SocketHelper, 0o755); err != nil {
		t.Fatal(err)
	}
	if o := f.attach(attach.Request{DryRun: true}); o.Exit != attach.ExitOK || !o.Plan.Has(attach.HoldSockets) || f.read("/var/lib/aaunit/sockopts/myagent.service.json") != "" {
		t.Errorf("a dry run: %+v", o)
	}
	if o := f.attach(attach.Request{}); o.Exit != attach.ExitOK || !o.Changed {
		t.Fatalf("%+v", o)
	}
	if !strings.Contains(f.read(theDropIn), attach.SocketStartLine(true)+"\n") {
		t.Errorf("the drop-in:\n%s", f.read(theDropIn))
	}
	// As the helper reads them.
	store := sockopt.Store(f.root + string(sockopt.DefaultStore))
	for _, name := range []string{"myagent.service", "myagent.socket", "second.socket"} {
		rules, from, err := store.Find(name)
		if err != nil || from != name || rules.Mode != sockopt.Enforce || len(rules.Allow) != 1 {
			t.Errorf("rules of %s: %+v %s %v", name, rules, from, err)
		}
		if strings.HasSuffix(name, ".socket") && !strings.Contains(f.read(attach.DropInPath(name, false)), "[Socket]\n"+attach.SocketStartLine(true)) {
			t.Errorf("the drop-in of %s: %q", name, f.read(attach.DropInPath(name, false)))
		}
	}
	if f.read(attach.DropInPath("third.socket", false)) != "" {
		t.Error("a .socket unit of another service has a drop-in")
	}
	for dir, mode := range map[string]fs.FileMode{"/var/lib": 0o755, "/var/lib/aaunit": 0o700, "/var/lib/aaunit/sockopts": 0o700} {
		if st, err := os.Stat(f.root + dir); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", dir, st, err)
		}
	}
	if o := f.attach(attach.Request{}); o.Exit != attach.ExitOK || o.Changed {
		t.Errorf("again: %+v", o)
	}
	if u := f.prepared("myagent.service"); u.Prepared != attach.Yes {
		t.Errorf("%+v", u)
	}
	f.write(file, declared+strings.Replace(section, "TCP_NODELAY", "TCP_CORK", 1))
	if u := f.prepared("myagent.service"); u.Prepared != attach.No || !slices.Contains(codesOf(u.Reasons), attach.SocketsChanged) {
		t.Errorf("another list: %+v", u)
	}
	// Without the section all of it goes.
	f.write(file, declared)
	if o := f.attach(attach.Request{}); o.Exit != attach.ExitOK || !o.Changed {
		t.Errorf("%+v", o)
	}
	f.write(file, declared+section)
	f.attach(attach.Request{})
	f.write(file, declared)
	f.attach(attach.Request{})
	os.Remove(f.root + file)
	if o := f.detach("myagent"); o.Exit != attach.ExitOK {
		t.Errorf("%+v", o)
	}
	os.Remove(f.root + attach.SocketHelper)
	if d := cmp.Diff(before, f.files()); d != "" {
		t.Errorf("something is left (-before +after):\n%s", d)
	}
	// A detach takes the rules along.
	f.write(attach.SocketHelper, "#!")
	os.Chmod(f.root+attach.SocketHelper, 0o755)
	f.write(file, declared+section)
	f.attach(attach.Request{})
	os.Remove(f.root + file)
	if o := f.detach("myagent"); o.Exit != attach.ExitOK || !o.Changed {
		t.Errorf("%+v", o)
	}
	os.Remove(f.root + attach.SocketHelper)
	if d := cmp.Diff(before, f.files()); d != "" {
		t.Errorf("detach leaves something (-before +after):\n%s", d)
	}
}

func TestAnImageIsRefusedForTheSameReasons(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*tree)
		unit   string
		want   attach.Code
	}{
		"no such unit": {func(*tree) {}, "other", attach.UnitNotFound},
		"no profile":   {func(f *tree) { os.Remove(f.root + "/etc/apparmor.d/usr.local.bin.myagent") }, "myagent", attach.ProfileNotFound},
		"a text that is broken": {func(f *tree) {
			f.write("/etc/apparmor.d/usr.local.bin.myagent", strings.Replace(profileText, "mr,", "mz,", 1))
		}, "myagent", attach.ProfileBroken},
		"a profile in complain": {func(f *tree) {
			f.link("/etc/apparmor.d/force-complain/usr.local.bin.myagent", "../usr.local.bin.myagent")
		}, "myagent", attach.ProfileComplain},
		"a disabled one": {func(f *tree) {
			f.link("/etc/apparmor.d/disable/usr.local.bin.myagent", "/etc/apparmor.d/usr.local.bin.myagent")
		}, "myagent", attach.ProfileDisabled},
		"two of one name": {func(f *tree) { f.write("/etc/apparmor.d/copy", profileText) }, "myagent", attach.ProfileDuplicate},
		"policy that is too wide": {func(f *tree) {
			f.write("/etc/apparmor.d/usr.local.bin.myagent", strings.Replace(profileText, "/var/log/myagent.log w,", "/** rwlk,", 1))
		}, "myagent", attach.MayEverything},
		"masked":             {func(f *tree) { f.link("/etc/systemd/system/myagent.service", "/dev/null") }, "myagent", attach.UnitMasked},
		"an empty unit file": {func(f *tree) { f.write("/etc/systemd/system/myagent.service", "") }, "myagent", attach.UnitMasked},
		"early in the boot": {func(f *tree) {
			f.write("/usr/lib/systemd/system/myagent.service", "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/myagent\n")
		}, "myagent", attach.UnitEarly},
		"a prefix that reaches a unit early in the boot": {func(f *tree) {
			f.write("/etc/aaunit/attachments.d/agent.conf", "[Attachment]\nUnit=agent-.service\nProfile=myagent\n")
			f.write("/usr/lib/systemd/system/agent-disk.service", "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/myagent\n")
		}, "agent-.service", attach.UnitEarly},
		"a unit of that prefix": {func(f *tree) {
			f.write("/etc/aaunit/attachments.d/agent.conf", "[Attachment]\nUnit=agent-.service\nProfile=myagent\n")
			f.write("/usr/lib/systemd/system/agent-disk.service", "[Unit]\nDefaultDependencies=no\n[Service]\nExecStart=/usr/local/bin/myagent\n")
			f.write("/usr/lib/systemd/system/agent-a.service", "[Service]\nExecStart=/usr/local/bin/myagent\n")
		}, "agent-a", attach.UnitEarly},
		"a + before the program": {func(f *tree) {
			f.write("/usr/lib/systemd/system/myagent.service.d/x.conf", "[Service]\nExecStart=\nExecStart=-+/usr/local/bin/myagent\n")
		}, "myagent", attach.ExecPrivileged},
		"aa-exec": {func(f *tree) {
			f.write("/usr/lib/systemd/system/myagent.service", "[Service]\nExecStart=/usr/bin/env \"aa-exec\" -p x -- /usr/local/bin/myagent\n")
		}, "myagent -p", attach.AAExec},
		"a later drop-in":         {func(f *tree) { f.write("/etc/systemd/system/service.d/zz.conf", "[Service]\nAppArmorProfile=\n") }, "myagent", attach.DirectiveOverridden},
		"somebody else's drop-in": {func(f *tree) { f.write(theDropIn, "[Service]\nNice=5\n") }, "myagent", attach.DropInForeign},
		"a template": {func(f *tree) {
			f.write("/usr/lib/systemd/system/a@.service", "[Service]\nExecStart=/usr/local/bin/myagent\n")
		}, "a@", attach.UnitTemplate},
		"a socket": {func(*tree) {}, "myagent.socket", attach.UnitNotFound},
		"socket options in a root of its own": {func(f *tree) {
			f.required()
			f.write("/etc/systemd/system/myagent.service.d/x.conf", "[Service]\nRootDirectory=/srv/x\n")
		}, "myagent", attach.SocketsHidden},
		"socket options with a /var of its own": {func(f *tree) {
			f.required()
			f.write("/etc/systemd/system/myagent.service.d/x.conf", "[Service]\nTemporaryFileSystem=/var\n")
		}, "myagent", attach.SocketsHidden},
		"socket options of a .socket unit with one": {func(f *tree) {
			f.required()
			f.write("/usr/lib/systemd/system/myagent.socket", "[Socket]\nListenStream=7\nTemporaryFileSystem=/var\n")
		}, "myagent", attach.SocketsHidden},
		"socket options of a template with one": {func(f *tree) {
			f.required()
			f.write("/etc/aaunit/attachments.d/t.conf", "[Attachment]\nUnit=t@.service\nProfile=myagent\n[SocketOptions]\nRequired=yes\n")
			f.write("/usr/lib/systemd/system/t@.service", "[Service]\nExecStart=/usr/local/bin/myagent\n")
			f.write("/etc/systemd/system/t@one.service", "[Service]\nRootDirectory=/srv/x\nExecStart=/usr/local/bin/myagent\n")
		}, "t@.service", attach.SocketsHidden},
	} {
		t.Run(name, func(t *testing.T) {
			f := newTree(t)
			c.change(f)
			before := f.files()
			unit, named, _ := strings.Cut(c.unit, " ")
			r := attach.Request{Units: []string{unit}}
			if named != "" {
				r.Profile = "myagent"
			}
			o := f.attach(r)
			if o.Exit == attach.ExitOK || !slices.Contains(codesOf(o.Reasons), c.want) {
				t.Errorf("%+v", o)
			}
			if d := cmp.Diff(before, f.files()); d != "" {
				t.Errorf("something was written all the same (-before +after):\n%s", d)
			}
		})
	}
}

func TestWhatAttachmentFilesOfAnImageDeclare(t *testing.T) {
	f := newTree(t)
	f.write("/usr/lib/systemd/system/agent@.service", "[Service]\nExecStart=/usr/local/bin/myagent\n")
	f.write("/etc/aaunit/attachments.d/agents.conf", "[Attachment]\nUnit=agent@.service myagent.service agent-.service\nProfile=myagent\nPrivateTmp=disconnected\n")
	if u := f.prepared("agent@.service"); u.Prepared != attach.No {
		t.Errorf("%+v", u)
	}
	out, err := f.image().Attach(t.Context(), attach.Request{})
	if err != nil || len(out) != 3 {
		t.Fatalf("%+v %v", out, err)
	}
	for _, unit := range []string{"agent@.service", "myagent.service", "agent-.service"} {
		text := f.read("/etc/systemd/system/" + unit + ".d/90-aaunit.conf")
		if !strings.Contains(text, "# Attachment: /etc/aaunit/attachments.d/agents.conf\n") || !strings.Contains(text, "PrivateTmp=disconnected\n") {
			t.Errorf("%s: %q", unit, text)
		}
		if u := f.prepared(unit); u.Prepared != attach.Yes {
			t.Errorf("%+v", u)
		}
	}
	// An instance is served by the template's.
	if o := f.attach(attach.Request{Units: []string{"agent@one"}}); o.Exit != attach.ExitOK || o.Changed {
		t.Errorf("an instance: %+v", o)
	}
	if o := f.attach(attach.Request{Units: []string{"myagent"}, Complain: true}); !slices.Contains(codesOf(o.Reasons), attach.DeclaredInFile) {
		t.Errorf("an option against the file: %+v", o)
	}
	if o := f.detach("myagent"); !slices.Contains(codesOf(o.Reasons), attach.DeclaredInFile) {
		t.Errorf("detach of what a file declares: %+v", o)
	}
	// A file that changes: the drop-in is known for aaunit's, and follows.
	f.write("/etc/aaunit/attachments.d/agents.conf", "[Attachment]\nUnit=myagent.service\nProfile=myagent\n")
	if o := f.attach(attach.Request{}); o.Exit != attach.ExitOK || !o.Changed || !strings.Contains(f.read(theDropIn), "PrivateTmp=yes\n") {
		t.Errorf("a changed file: %+v", o)
	}
	// One that is gone: what it left behind goes with a detach.
	os.Remove(f.root + "/etc/aaunit/attachments.d/agents.conf")
	if o := f.detach("myagent"); !o.Changed || f.read(theDropIn) != "" {
		t.Errorf("a file that is gone: %+v", o)
	}
	f.write("/etc/aaunit/attachments.d/bad.conf", "[Attachment]\nUnit=myagent.service\n")
	if o := f.attach(attach.Request{}); o.Exit != attach.ExitFailed || !slices.Contains(codesOf(o.Reasons), attach.AttachmentBad) {
		t.Errorf("a broken file: %+v", o)
	}
}

func TestAliasesLinksAndDropInsOfAnImage(t *testing.T) {
	f := newTree(t)
	f.link("/etc/systemd/system/agent.service", "/usr/lib/systemd/system/myagent.service") // absolute, as systemctl makes them
	f.write("/etc/systemd/system/agent.service.d/tmp.conf", "[Service]\nPrivateTmp=disconnected\n")
	o := f.attach(attach.Request{Units: []string{"agent"}})
	if o.Exit != attach.ExitOK || o.Unit != "myagent.service" || !slices.Contains(codesOf(o.Notes), attach.UnitAlias) {
		t.Errorf("an alias: %+v", o)
	}
	if text := f.read(theDropIn); !strings.Contains(text, "PrivateTmp=disconnected\n") {
		t.Errorf("what the unit has by a drop-in of its alias is weakened:\n%s", text)
	}
	// A unit file that lies elsewhere in the image.
	f.write("/opt/web/web.service", "[Service]\nExecStart=/usr/local/bin/myagent\n")
	f.link("/etc/systemd/system/web.service", "/opt/web/web.service")
	if o := f.attach(attach.Request{Units: []string{"web"}}); o.Exit != attach.ExitOK || o.Unit != "web.service" {
		t.Errorf("a linked unit file: %+v", o)
	}
	// A program behind a link is found by where it leads in the image.
	f.write("/usr/local/bin/myagent", "")
	f.link("/usr/bin/agent2", "/usr/local/bin/myagent")
	f.write("/usr/lib/systemd/system/two.service", "[Service]\nExecStart=/usr/bin/agent2\n")
	if o := f.attach(attach.Request{Units: []string{"two"}}); o.Exit != attach.ExitOK || o.Profile != "myagent" {
		t.Errorf("a program behind a link: %+v", o)
	}
}

// What is outside of the tree is never read or written, whatever the links in the
// tree say.
func TestNothingLeadsOutOfAnImage(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret.service")
	if err := os.WriteFile(secret, []byte("[Service]\nExecStart=/usr/local/bin/myagent\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(path, text string) {
		if err := os.WriteFile(filepath.Join(outside, path), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("profile", profileText)
	for name, change := range map[string]func(f *tree) string{
		"a unit file": func(f *tree) string { f.link("/etc/systemd/system/secret.service", secret); return "secret" },
		"up and away": func(f *tree) string {
			f.link("/etc/systemd/system/secret.service", strings.Repeat("../", 20)+secret)
			return "secret"
		},
		"a directory of units": func(f *tree) string {
			os.RemoveAll(f.root + "/usr/lib/systemd/system")
			f.link("/usr/lib/systemd/system", outside)
			return "secret"
		},
		"a profile": func(f *tree) string {
			os.Remove(f.root + "/etc/apparmor.d/usr.local.bin.myagent")
			f.link("/etc/apparmor.d/usr.local.bin.myagent", outside+"/profile")
			return "myagent"
		},
		"the directory of the drop-in": func(f *tree) string { f.link("/etc/systemd/system/myagent.service.d", outside); return "myagent" },
		"the drop-in":                  func(f *tree) string { f.link(theDropIn, outside+"/dropin"); return "myagent" },
		"the attachments":              func(f *tree) string { f.link("/etc/aaunit/attachments.d", outside); return "myagent" },
		"all of etc": func(f *tree) string {
			if err := os.Rename(f.root+"/etc", f.root+"/etc.old"); err != nil {
				f.t.Fatal(err)
			}
			f.link("/etc", outside)
			return "myagent"
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newTree(t)
			unit := change(f)
			o := f.attach(attach.Request{Units: []string{unit}, Profile: "myagent"})
			if o.Exit == attach.ExitOK {
				t.Errorf("%+v", o)
			}
			entries, err := os.ReadDir(outside)
			if err != nil || len(entries) != 2 {
				t.Errorf("something was written outside: %v %v", entries, err)
			}
		})
	}
}

func TestWhoMayPrepareAnImage(t *testing.T) {
	f := newTree(t)
	for dir, want := range map[string]string{
		"/": "that system runs", f.root + "/none": "no such file", f.root + "/usr/lib/systemd/system/myagent.service": "it is no directory",
	} {
		if _, err := openImage(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	// A profile that others can write is none, in an image either.
	if err := os.Chmod(f.root+"/etc/apparmor.d/usr.local.bin.myagent", 0o666); err != nil {
		t.Fatal(err)
	}
	if o := f.attach(attach.Request{Units: []string{"myagent"}}); !slices.Contains(codesOf(o.Reasons), attach.ProfileUntrusted) {
		t.Errorf("%+v", o)
	}
}
