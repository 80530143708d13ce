package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/units"
)

// tree is an image in a directory of the test's, whose units are real files. Its
// profiles, attachments and rules are what the test says.
type tree struct {
	t        *testing.T
	root     string
	profiles []attach.Profile
	declared attach.Declared
	blind    bool // whether a unit starts at boot cannot be told
}

const (
	agentUnit = "/usr/lib/systemd/system/agent.service"
	bootUnit  = "/usr/lib/systemd/system/apparmor.service"
	wanted    = "/etc/systemd/system/sysinit.target.wants/apparmor.service"
)

// newTree is an image whose agent.service is declared, and whose AppArmor comes up.
func newTree(t *testing.T) *tree {
	t.Helper()
	f := &tree{t: t, root: t.TempDir()}
	f.write(agentUnit, "[Service]\nExecStart=/usr/bin/agent\n")
	f.write(bootUnit, "[Service]\nExecStart=/lib/apparmor/apparmor.systemd reload\n")
	f.link(wanted, bootUnit)
	f.profiles = []attach.Profile{{Name: "agent", File: "/etc/apparmor.d/agent", Line: 1}}
	f.declare("agent.service")
	return f
}

func (f *tree) declare(unit string) *attach.Attachment {
	a := attach.NewAttachment()
	a.Source, a.Units, a.Profile = "/etc/aaunit/attachments.d/"+unit+".conf", []string{unit}, "agent"
	f.declared.Attachments = append(f.declared.Attachments, &a)
	return &a
}

func (f *tree) write(path, text string) {
	f.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(f.root+path), 0o755), os.WriteFile(f.root+path, []byte(text), 0o644)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *tree) link(path, to string) {
	f.t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(f.root+path), 0o755), os.Symlink(to, f.root+path)); err != nil {
		f.t.Fatal(err)
	}
}

func (f *tree) remove(path string) {
	f.t.Helper()
	if err := os.Remove(f.root + path); err != nil {
		f.t.Fatal(err)
	}
}

func (f *tree) image() *Image {
	var u Units = units.NewImage(f.root)
	if f.blind {
		u = blind{u}
	}
	return &Image{Root: f.root, Units: u, AppArmor: policies{f}, Attachments: declared{f}, Rules: rules{}, Gate: gate{}}
}

// prepare attaches what is declared, as far as nothing is refused.
func (f *tree) prepare() []attach.Outcome {
	f.t.Helper()
	out, err := f.image().Attach(f.t.Context(), attach.Request{})
	if err != nil || len(out) == 0 {
		f.t.Fatalf("%+v %v", out, err)
	}
	return out
}

func (f *tree) status() attach.ImageUnit {
	f.t.Helper()
	r, err := f.image().Status(f.t.Context(), nil)
	if err != nil || len(r.Units) != 1 {
		f.t.Fatalf("%+v %v", r, err)
	}
	return r.Units[0]
}

type blind struct{ Units }

func (blind) StartedAtBoot(string) attach.Tri { return attach.CouldNotTell }

type policies struct{ f *tree }

func (p policies) ByName(name string) (out []attach.Profile) {
	for _, q := range p.f.profiles {
		if q.Name == name {
			out = append(out, q)
		}
	}
	return out
}

func (p policies) InFile(path string) (out []attach.Profile, err error) {
	for _, q := range p.f.profiles {
		if q.File == path {
			out = append(out, q)
		}
	}
	return out, nil
}

func (policies) ByExecutable(string) []attach.Profile { return nil }

func (p policies) Compile(_ context.Context, files []string, _ bool) (done []attach.Compiled, problems map[string]attach.Reason) {
	for _, file := range files {
		in, _ := p.InFile(file)
		done = append(done, attach.Compiled{File: file, Profiles: in})
	}
	return done, nil
}

type declared struct{ f *tree }

func (d declared) Read() attach.Declared { return d.f.declared }
func (declared) Write(string, attach.Attachment) (string, func() error, error) {
	return "", nil, errors.New("all is declared")
}
func (declared) Remove(string) error { return nil }

type rules struct{}

func (rules) Helper() error { return nil }
func (rules) Kept(string, attach.SocketOptions) (exists, same bool, err error) {
	return false, false, nil
}
func (rules) Save(string, attach.SocketOptions) (bool, error) { return true, nil }
func (rules) Delete(string) (bool, error)                     { return false, nil }

type gate struct{}

func (gate) Check(context.Context, attach.Desired, attach.Unit, []attach.Compiled) []attach.Finding {
	return nil
}

// A unit whose profile the first boot does not load is not prepared: its start fails, and
// nobody starts it again. That its files are in place does not make it so.
func TestPreparedIsWhatTheFirstBootLoads(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*tree)
		want   attach.Tri
		code   attach.Code
		next   string
	}{
		"all is there": {func(*tree) {}, attach.Yes, "", ""},
		"the package brings the link": {func(f *tree) {
			f.remove(wanted)
			f.link("/usr/lib/systemd/system/sysinit.target.wants/apparmor.service", "../apparmor.service")
		}, attach.Yes, "", ""},
		"apparmor.service is not enabled": {func(f *tree) { f.remove(wanted) },
			attach.No, attach.BootServiceMissing, " enable apparmor.service"},
		"apparmor is not installed": {func(f *tree) { f.remove(wanted); f.remove(bootUnit) },
			attach.No, attach.BootServiceMissing, "install the package apparmor"},
		"it was removed, and its link left": {func(f *tree) { f.remove(bootUnit) },
			attach.No, attach.BootServiceMissing, "install the package apparmor"},
		"it is masked, and its link left": {func(f *tree) { f.link("/etc/systemd/system/apparmor.service", "/dev/null") },
			attach.No, attach.BootServiceMissing, " unmask apparmor.service"},
		"it is masked by an empty file": {func(f *tree) { f.write("/etc/systemd/system/apparmor.service", "") },
			attach.No, attach.BootServiceMissing, " unmask apparmor.service"},
		"whether it is could not be told": {func(f *tree) { f.blind = true },
			attach.CouldNotTell, attach.BootServiceMissing, " is-enabled apparmor.service"},
		"the profile lies elsewhere": {func(f *tree) { f.elsewhere() },
			attach.No, attach.ProfileNotAtBoot, "/etc/apparmor.d/"},
		"it lies elsewhere, and the other could not be told": {func(f *tree) { f.elsewhere(); f.blind = true },
			attach.No, attach.ProfileNotAtBoot, "/etc/apparmor.d/"},
	} {
		for _, pattern := range []bool{false, true} {
			f := newTree(t)
			if pattern {
				name += ", for a template"
				f.declared = attach.Declared{}
				f.write("/usr/lib/systemd/system/agent@.service", "[Service]\nExecStart=/usr/bin/agent\n")
				f.declare("agent@.service")
			}
			c.change(f)
			// The files are written all the same: what is missing can come later.
			if out := f.prepare(); out[0].Exit != attach.ExitOK || !out[0].Changed {
				t.Errorf("%s: attach: %+v", name, out)
			}
			got := f.status()
			is := func(r attach.Reason) bool { return r.Code == c.code && strings.Contains(r.Next, c.next) }
			if got.Prepared != c.want || (c.code == "") != (len(got.Reasons) == 0) || c.code != "" && !slices.ContainsFunc(got.Reasons, is) {
				t.Errorf("%s: %+v", name, got)
			}
			if slices.ContainsFunc(got.Notes, is) {
				t.Errorf("%s: said twice: %+v", name, got)
			}
		}
	}
}

// elsewhere has the profile in a file that apparmor.service does not load.
func (f *tree) elsewhere() {
	f.profiles[0].File = "/opt/agent/profile"
	f.declared.Attachments[0].ProfileFile = "/opt/agent/profile"
}

// What is not prepared anyway says first what is to be done, and nothing of the boot is
// lost.
func TestStatusOfWhatIsNotThereYet(t *testing.T) {
	f := newTree(t)
	f.remove(wanted)
	got := f.status()
	if got.Prepared != attach.No || len(got.Reasons) != 1 || got.Reasons[0].Code != attach.DropInMissing || len(got.Notes) != 1 || got.Notes[0].Code != attach.BootServiceMissing {
		t.Errorf("%+v", got)
	}
	if out, err := f.image().Status(t.Context(), []string{"other.service"}); err != nil || len(out.Missing) != 1 || len(out.Units) != 0 {
		t.Errorf("%+v %v", out, err)
	}
}
