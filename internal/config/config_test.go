package config

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/inotify"
)

// testOptions knows two socket options.
func testOptions(_ attach.SocketCall, name string) (string, error) {
	switch name {
	case "TCP_NODELAY", "6:1", "SOL_TCP:TCP_NODELAY":
		return "SOL_TCP:TCP_NODELAY", nil
	case "SOL_SOCKET:SO_REUSEADDR":
		return name, nil
	}
	return "", fmt.Errorf("there is no option %q", name)
}

func TestParse(t *testing.T) {
	a, problems := Parse("/etc/x.conf", []byte(`# a comment
[Attachment]
Unit=a.service \
; a comment inside a continued line
     b@.service
Unit=agent-.service
Profile=my agent
X-Note=kept for others
AllowProfiles="the helper" other
PrivateTmp=true
RestartUnit=off
SettleSec=2min
[X-Other]
Anything=goes
[SocketOptions]
Mode=enforce
Allow=6:1   small answers at once
Allow=SOL_SOCKET:SO_REUSEADDR a restart binds again
Allow=SOL_TCP:TCP_NODELAY said twice
AllowGet=TCP_NODELAY it looks
Required=off
`), testOptions)
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	want := attach.NewAttachment()
	want.Source, want.Line = "/etc/x.conf", 2
	want.Units = []string{"a.service", "b@.service", "agent-.service"}
	want.Profile = "my agent"
	want.AllowProfiles = []string{"the helper", "other"}
	want.RestartUnit = false
	want.Settle = 2 * time.Minute
	want.SocketOptions = &attach.SocketOptions{
		Line: 15, Mode: attach.SocketsEnforce, Required: attach.No,
		Allow: []attach.AllowedOption{
			{Option: "SOL_TCP:TCP_NODELAY", Reason: "small answers at once", Line: 17},
			{Option: "SOL_SOCKET:SO_REUSEADDR", Reason: "a restart binds again", Line: 18},
		},
		AllowGet: []attach.AllowedOption{{Option: "SOL_TCP:TCP_NODELAY", Reason: "it looks", Line: 20}},
	}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseNamesEveryProblemWithItsLine(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"unknown key", "[Attachment]\nUnit=a.service\nProfil=x\n", `x.conf: line 3: Profil=: unknown key "Profil"`},
		{"doubled section", "[Attachment]\nUnit=a.service\nProfile=x\n\n[Attachment]\nUnit=b.service\n", "line 5: a second [Attachment] section"},
		{"unknown section", "[Attachmen]\nUnit=a.service\n", "line 1: unknown section [Attachmen]"},
		{"no section", "Unit=a.service\n", "line 1: Unit= stands before any section"},
		{"empty", "", "line 1: it has no [Attachment] section"},
		{"no unit", "\n[Attachment]\nProfile=x\n", "line 2: Unit= is missing"},
		{"bad UTF-8", "[Attachment]\nUnit=a.service\nProfile=\xff\n", "line 3: it is not valid UTF-8"},
		{"NUL", "[Attachment]\nUnit=a.service\x00\n", "it holds a NUL byte"},
		{"open header", "[Attachment\n", "has no closing bracket"},
		{"no equals sign", "[Attachment]\nUnit a.service\n", "line 2: \"Unit a.service\" is neither a section nor KEY=VALUE"},
		{"not a service", "[Attachment]\nUnit=a.timer\nProfile=x\n", "line 2: Unit=: cannot use unit \"a.timer\""},
		{"path as unit", "[Attachment]\nUnit=../a.service\nProfile=x\n", "line 2: Unit=: cannot use unit"},
		{"ignored profile", "[Attachment]\nUnit=a.service\nProfile=-x\n", `it begins with "-"`},
		{"stacked profile", "[Attachment]\nUnit=a.service\nProfile=&x\n", `it begins with "&"`},
		{"bad value", "[Attachment]\nUnit=a.service\nProfile=x\nMode=off\n", `line 4: Mode=: cannot read "off": use one of enforce, complain`},
		{"bad span", "[Attachment]\nUnit=a.service\nProfile=x\nSettleSec=1h\n", "line 4: SettleSec=: cannot use time span"},
		{"socket option", "[Attachment]\nUnit=a.service\nProfile=x\n[SocketOptions]\nAllow=SO_FLY why\n", `line 5: Allow=: there is no option "SO_FLY"`},
		{"no reason", "[Attachment]\nUnit=a.service\nProfile=x\n[SocketOptions]\nAllow=6:1\n", "line 5: Allow=: a reason is missing: Allow=SOL_TCP:TCP_NODELAY WHY"},
		{"socket mode", "[Attachment]\nUnit=a.service\nProfile=x\n[SocketOptions]\nMode=complain\n", `line 5: Mode=: cannot read "complain": use one of record, enforce, off`},
		{"socket key", "[Attachment]\nUnit=a.service\nProfile=x\n[SocketOptions]\nDeny=6:1 no\n", `line 5: Deny=: unknown key "Deny"`},
		{"relative file", "[Attachment]\nUnit=a.service\nProfile=x\nProfileFile=../x\n", "give its absolute path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, problems := Parse("/etc/x.conf", []byte(c.text), testOptions)
			if len(problems) == 0 {
				t.Fatal("no problem was found")
			}
			var all []string
			for _, p := range problems {
				if p.Code != attach.AttachmentBad || !strings.HasPrefix(p.Where, "/etc/x.conf:") {
					t.Errorf("problem without its place: %+v", p)
				}
				all = append(all, p.Detail)
			}
			if !strings.Contains(strings.Join(all, "\n"), c.want) {
				t.Errorf("got %q, want %q in it", all, c.want)
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func testFiles(t *testing.T) (*Files, string) {
	root := t.TempDir()
	return &Files{Dirs: Dirs{root + "/etc", root + "/run", root + "/usr"}, Log: slog.New(slog.DiscardHandler), Owner: uint32(os.Getuid())}, root
}

func good(unit string) string { return "[Attachment]\nUnit=" + unit + "\nProfile=p\n" }

func TestLayersMaskAndOneBadFileLeavesTheOthers(t *testing.T) {
	f, root := testFiles(t)
	write(t, root+"/usr/a.conf", good("vendor-a.service"))
	write(t, root+"/usr/b.conf", good("vendor-b.service"))
	write(t, root+"/usr/c.conf", good("vendor-c.service"))
	write(t, root+"/run/a.conf", good("run-a.service"))
	write(t, root+"/etc/a.conf", good("etc-a.service"))
	write(t, root+"/etc/bad.conf", "[Attachment]\nnonsense\n")
	write(t, root+"/etc/ignored.txt", "nonsense")
	write(t, root+"/etc/.hidden.conf", "nonsense")
	if err := os.Symlink("/dev/null", root+"/etc/b.conf"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(root+"/usr/c.conf", root+"/etc/link.conf"); err != nil {
		t.Fatal(err)
	}
	d := f.Read()
	var units []string
	for _, a := range d.Attachments {
		units = append(units, a.Units...)
	}
	if diff := cmp.Diff([]string{"etc-a.service", "vendor-c.service"}, units); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(map[string]bool{root + "/etc/bad.conf": true, root + "/etc/link.conf": true}, d.Broken); diff != "" {
		t.Errorf("broken files (-want +got):\n%s", diff)
	}
	for file, there := range map[string]bool{"/etc/a.conf": true, "/etc/b.conf": true, "/usr/b.conf": true, "/etc/bad.conf": true, "/etc/none.conf": false, "/etc": false, "/x.conf": false} {
		if f.Exists(root+file) != there {
			t.Errorf("Exists(%s) = %v", file, !there)
		}
	}
}

func TestFilesThatOthersCanWriteAreNotUsed(t *testing.T) {
	f, root := testFiles(t)
	write(t, root+"/etc/a.conf", good("a.service"))
	write(t, root+"/etc/b.conf", good("b.service"))
	write(t, root+"/etc/c.conf", good("c.service"))
	if err := os.Chmod(root+"/etc/a.conf", 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(root+"/etc/b.conf", 0o620); err != nil {
		t.Fatal(err)
	}
	d := f.Read()
	if len(d.Attachments) != 1 || len(d.Problems) != 2 || len(d.Broken) != 2 {
		t.Fatalf("%+v", d)
	}
	other := Files{Dirs: f.Dirs, Log: f.Log, Owner: f.Owner + 1}
	if d := other.Read(); len(d.Attachments) != 0 || !d.Broken[root+"/etc/c.conf"] {
		t.Fatalf("another user's files were used: %+v", d)
	}
	if err := os.Chmod(root+"/etc", 0o777); err != nil {
		t.Fatal(err)
	}
	d = f.Read()
	if len(d.Attachments) != 0 || !d.Broken[root+"/etc/c.conf"] {
		t.Fatalf("a directory that all can write was used: %+v", d)
	}
}

func TestWriteKeepsOffOtherPeoplesFiles(t *testing.T) {
	f, root := testFiles(t)
	a := attach.NewAttachment()
	a.Units, a.Profile = []string{"a.service"}, "p"
	write(t, root+"/etc/a.service.conf", good("a.service"))
	if _, _, err := f.Write("a.service", a); err == nil || !strings.Contains(err.Error(), "aaunitctl did not write it") {
		t.Fatalf("a file that a person wrote was overwritten: %v", err)
	}
	a.Units = []string{"b.service"}
	a.RestartUnit, a.AllowProfiles, a.Settle = false, []string{"x y"}, 0
	file, restore, err := f.Write("b.service", a)
	if err != nil {
		t.Fatal(err)
	}
	got, problems := Parse(file, must(os.ReadFile(file)), testOptions)
	a.Source, a.Line, a.Manual = file, 2, true
	if diff := cmp.Diff(a, got); diff != "" || len(problems) > 0 {
		t.Errorf("what was written reads back as (-want +got):\n%s%v", diff, problems)
	}
	a.Runtime = true
	if _, _, err := f.Write("b.service", a); err == nil || !strings.Contains(err.Error(), "would mask it") {
		t.Errorf("an attachment for this boot was written where it has no effect: %v", err)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); !os.IsNotExist(err) {
		t.Error("restore left the new file")
	}
}

// A lasting attachment over one for this boot is the only one left, and goes
// back to that one.
func TestWriteLastingOverRuntime(t *testing.T) {
	f, root := testFiles(t)
	a := attach.NewAttachment()
	a.Units, a.Profile, a.Runtime = []string{"a.service"}, "p", true
	if _, _, err := f.Write("a.service", a); err != nil {
		t.Fatal(err)
	}
	a.Runtime = false
	file, restore, err := f.Write("a.service", a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(root + "/run/a.service.conf"); !os.IsNotExist(err) {
		t.Errorf("a detach would uncover the one in /run: %v", err)
	}
	if err := restore(); err != nil {
		t.Fatal(err)
	}
	if d := f.Read(); len(d.Attachments) != 1 || !d.Attachments[0].Runtime || d.Attachments[0].Source == file {
		t.Errorf("%+v", d.Attachments)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestChangesMergeABurst(t *testing.T) {
	f, root := testFiles(t)
	for _, d := range f.Dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ch := f.Changes(ctx)
	for i := range 50 {
		write(t, filepath.Join(root, "etc", strings.Repeat("a", i+1)+".conf"), good("a.service"))
	}
	select {
	case <-ch:
	case <-time.After(10 * time.Second):
		t.Fatal("no change was told")
	}
	write(t, root+"/etc/.a.conf.swp", "x")
	// A directory that goes and comes back is still watched.
	if err := os.RemoveAll(root + "/etc"); err != nil {
		t.Fatal(err)
	}
	<-ch
	write(t, root+"/etc/late.conf", good("a.service"))
	for deadline := time.After(10 * time.Second); ; {
		select {
		case <-ch:
		case <-deadline:
			t.Fatal("the new directory is not watched")
		}
		if len(f.Read().Attachments) == 1 {
			break
		}
	}
	cancel()
	for range ch {
	}
}

// A directory above those of the attachment files goes, by removal or under
// another name, and another one comes in its place.
func TestChangesSeeWhatComesInPlaceOfADirectoryAbove(t *testing.T) {
	for name, away := range map[string]func(dir string) error{
		"removed": os.RemoveAll,
		"renamed": func(dir string) error { return os.Rename(dir, dir+".old") },
		"two up":  func(dir string) error { return os.RemoveAll(filepath.Dir(dir)) },
	} {
		t.Run(name, func(t *testing.T) {
			f, root := testFiles(t)
			above := root + "/etc/aaunit"
			f.Dirs[0] = above + "/attachments.d"
			write(t, f.Dirs[0]+"/first.conf", good("first.service"))
			ctx, cancel := context.WithCancel(context.Background())
			ch := f.Changes(ctx)
			// until waits for changes to be told, and for quiet, so that each step
			// has to be seen by itself.
			until := func(what string, attachments int) {
				t.Helper()
				for deadline := time.After(10 * time.Second); ; {
					select {
					case <-ch:
					case <-deadline:
						t.Fatalf("%s was not told", what)
					}
					if len(f.Read().Attachments) == attachments {
						break
					}
				}
				for still := false; !still; {
					select {
					case <-ch:
					case <-time.After(2 * quiet):
						still = true
					}
				}
			}
			if err := away(above); err != nil {
				t.Fatal(err)
			}
			until("that the directory above went", 0)
			write(t, f.Dirs[0]+"/second.conf", good("second.service"))
			until("what came in its place", 1)
			write(t, f.Dirs[0]+"/third.conf", good("third.service"))
			until("a file in the new directory", 2)
			cancel()
			for range ch {
			}
		})
	}
}

// What vendors ship is taken over as a whole, by a rename, and then shipped again: both
// directories are watched.
func TestADirectoryThatTookTheNameOfAnotherStaysWatched(t *testing.T) {
	f, root := testFiles(t)
	etc, usr := root+"/etc/aaunit", root+"/usr/aaunit"
	f.Dirs = Dirs{etc + "/attachments.d", usr + "/attachments.d"}
	write(t, f.Dirs[1]+"/a.conf", good("a.service"))
	if err := os.MkdirAll(filepath.Dir(etc), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ch := f.Changes(ctx)
	tells := func(what string) {
		t.Helper()
		select {
		case <-ch:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s was not told", what)
		}
		for still := false; !still; {
			select {
			case <-ch:
			case <-time.After(2 * quiet):
				still = true
			}
		}
	}
	if err := os.Rename(usr, etc); err != nil {
		t.Fatal(err)
	}
	tells("a directory that was renamed")
	write(t, f.Dirs[1]+"/a.conf", good("a.service"))
	tells("a directory in its place")
	write(t, f.Dirs[0]+"/b.conf", good("b.service"))
	tells("a file in what was renamed")
	write(t, f.Dirs[1]+"/b.conf", good("b.service"))
	tells("a file in what came in its place")
	cancel()
	for range ch {
	}
}

// A name can have changed among the events that were lost.
func TestADirectoryThatIsRenamedInAnOverflowStaysWatched(t *testing.T) {
	_, root := testFiles(t)
	etc, usr := root+"/etc/aaunit", root+"/usr/aaunit"
	dirs := Dirs{etc + "/attachments.d", usr + "/attachments.d"}
	write(t, dirs[1]+"/a.conf", good("a.service"))
	if err := os.MkdirAll(filepath.Dir(etc), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_queued_events")
	if err != nil {
		t.Fatal(err)
	}
	most, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	var armed atomic.Bool
	w := &watch{log: slog.New(slog.DiscardHandler), dirs: dirs.andAbove(), blind: map[string]bool{}, again: time.Hour}
	w.add = func(by *inotify.Watcher, dir string) error {
		err := by.Add(dir)
		if dir != w.dirs[len(w.dirs)-1] || !armed.CompareAndSwap(true, false) {
			return err
		}
		// It takes long, and nobody takes events meanwhile.
		for i := range most + 1000 {
			if err := os.WriteFile(filepath.Join(root, "usr", []string{"x", "y"}[i%2]), nil, 0o600); err != nil {
				t.Error(err)
			}
		}
		if err := os.Rename(usr, etc); err != nil {
			t.Error(err)
		}
		if err := os.MkdirAll(dirs[1], 0o755); err != nil {
			t.Error(err)
		}
		return err
	}
	w.all()
	ctx, cancel := context.WithCancel(context.Background())
	out, ended := make(chan struct{}, 1), make(chan struct{})
	go func() { w.run(ctx, dirs, out); close(ended) }()
	defer func() { cancel(); <-ended }()
	tells := func(what string) {
		t.Helper()
		select {
		case <-out:
		case <-time.After(20 * time.Second):
			t.Fatalf("%s was not told", what)
		}
		for {
			select {
			case <-out:
				continue
			case <-time.After(2 * quiet):
			}
			return
		}
	}
	armed.Store(true)
	if err := os.Chmod(usr, 0o750); err != nil {
		t.Fatal(err)
	}
	tells("that events were lost")
	write(t, dirs[0]+"/b.conf", good("b.service"))
	tells("a file in what was renamed")
	write(t, dirs[1]+"/b.conf", good("b.service"))
	tells("a file in what came in its place")
}

func TestAStreamOfChangesHoldsNoReportBack(t *testing.T) {
	f, root := testFiles(t)
	write(t, root+"/etc/a.conf", good("a.service"))
	ctx, cancel := context.WithCancel(context.Background())
	ch := f.Changes(ctx)
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-end:
				return
			case <-time.After(quiet / 10):
				_ = os.WriteFile(root+"/etc/a.conf", []byte(good("a.service")), 0o644)
			}
		}
	}()
	for range 2 {
		select {
		case <-ch:
		case <-time.After(3 * maxDelay):
			t.Error("nothing was told while the changes went on")
		}
	}
	close(end)
	<-done
	cancel()
	for range ch {
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(good("a.service")))
	f.Add([]byte("[Attachment]\nUnit=a.service \\\n b.service\nProfile=%p\nAllowProfiles=\"a b\" c\nSettleSec=5min\n"))
	f.Add([]byte("[Attachment]\n[Attachment]\n\\"))
	f.Add([]byte("\ufeff[Attachment]\r\nUnit=a.service\r\nProfile=x\r\n"))
	f.Add([]byte("[Attachment]\nUnit=a.service\nProfile=x\n[SocketOptions]\nMode=on\nRequired=yes\nAllow=6:1 a\\\n b\nAllowGet=TCP_NODELAY\tc\nAllow=\n"))
	f.Add([]byte("[SocketOptions]\n[Attachment]\nUnit=a.service\nProfile=x\n[SocketOptions]\nAllow=6:1 \x1b[2J\n[Assertions]\nDeny=write /a\n"))
	noLines := func(a *attach.Attachment) {
		a.Line = 0
		for i := range a.Assertions {
			a.Assertions[i].Line = 0
		}
		for i := range a.Waivers {
			a.Waivers[i].Line = 0
		}
		if s := a.SocketOptions; s != nil {
			s.Line = 0
			for _, list := range [][]attach.AllowedOption{s.Allow, s.AllowGet} {
				for i := range list {
					list[i].Line = 0
				}
			}
		}
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		a, problems := Parse("/x.conf", data, testOptions)
		if len(problems) > 0 {
			return
		}
		// Whatever is accepted reads back the same after it is written.
		a.Manual = true
		b, problems := Parse("/x.conf", []byte(Format(a)), testOptions)
		noLines(&a)
		noLines(&b)
		if diff := cmp.Diff(a, b); diff != "" || len(problems) > 0 {
			t.Errorf("(-first +again):\n%s%v", diff, problems)
		}
	})
}

// What a directory that may not be used masks or replaces stays so: the files
// below it must not come up in its place.
func TestProposedTextsAreReadAsIfTheyWereThere(t *testing.T) {
	root := t.TempDir()
	f := &Files{Dirs: Dirs{root + "/etc", root + "/run", root + "/usr"}, Owner: uint32(os.Geteuid())}
	good := func(unit string) string { return "[Attachment]\nUnit=" + unit + "\nProfile=p\n" }
	write(t, root+"/etc/a.conf", good("a.service"))
	write(t, root+"/etc/b.conf", "[Attachment]\nnonsense\nUnit=b.service\nProfile=p\n")
	write(t, root+"/usr/a.conf", good("vendor.service"))
	units := func(d attach.Declared) (out []string) {
		for _, a := range d.Attachments {
			out = append(out, a.Source[len(root):]+" "+strings.Join(a.Units, " "))
		}
		return out
	}
	for _, c := range []struct {
		file, text string
		want       []string
		problems   int
	}{
		{"/etc/a.conf", good("new.service"), []string{"/etc/a.conf new.service"}, 1},
		{"/etc/a.conf", "", []string{"/usr/a.conf vendor.service"}, 1}, // it masks no more
		{"/etc/a.conf", "[Attachment]\nUnit=x\nProfil=p\n", nil, 3},
		{"/etc/b.conf", good("b.service"), []string{"/etc/a.conf a.service", "/etc/b.conf b.service"}, 0},
		{"/etc/b.conf", "", []string{"/etc/a.conf a.service"}, 0},
		{"/etc/c.conf", good("c.service"), []string{"/etc/a.conf a.service", "/etc/c.conf c.service"}, 1},
	} {
		d, others := f.Propose([]attach.ProposedFile{{File: root + c.file, Text: c.text}})
		if diff := cmp.Diff(c.want, units(d)); len(others) > 0 || diff != "" || len(d.Problems) != c.problems {
			t.Errorf("%s %q: %v, %v, problems %v (-want +got):\n%s", c.file, c.text, others, units(d), d.Problems, diff)
		}
		if d.Broken[root+c.file] != (c.problems == 3) {
			t.Errorf("%s %q: broken %v", c.file, c.text, d.Broken)
		}
	}
	d, others := f.Propose([]attach.ProposedFile{{File: root + "/etc/c.conf", Text: good("c.service")}, {File: "/etc/apparmor.d/p", Text: "profile p { }"}, {File: root + "/etc/a.conf"}, {File: root + "/etc/b.conf", Text: good("b.service")}})
	if diff := cmp.Diff([]string{"/etc/b.conf b.service", "/etc/c.conf c.service", "/usr/a.conf vendor.service"}, units(d)); diff != "" || len(others) != 1 || others[0].File != "/etc/apparmor.d/p" {
		t.Errorf("several together: others %v (-want +got):\n%s", others, diff)
	}
	if got := units(f.Read()); !cmp.Equal(got, []string{"/etc/a.conf a.service"}) {
		t.Errorf("a proposal was kept: %v", got)
	}
	for _, file := range []string{"/run/a.conf", "/usr/a.conf", "/etc/sub/a.conf", "/etc/a", "/etc/.a.conf", "/etc/../etc/a.conf"} {
		if _, others := f.Propose([]attach.ProposedFile{{File: root + file, Text: good("a.service")}}); len(others) != 1 {
			t.Errorf("%s is taken for a place of an attachment file", file)
		}
	}
}

func TestABrokenDirectoryStillMasks(t *testing.T) {
	for _, c := range []struct {
		name  string
		spoil func(etc string) error
		want  []string
	}{
		{"others may write it", func(etc string) error { return os.Chmod(etc, 0o777) }, []string{"vendor-c.service"}},
		{"it cannot be listed", func(etc string) error { return os.Rename(etc, etc+".away") }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, root := testFiles(t)
			write(t, root+"/usr/a.conf", good("vendor-a.service"))
			write(t, root+"/usr/b.conf", good("vendor-b.service"))
			write(t, root+"/usr/c.conf", good("vendor-c.service"))
			write(t, root+"/etc/a.conf", good("etc-a.service"))
			if err := os.Symlink("/dev/null", root+"/etc/b.conf"); err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(root + "/etc"); err != nil {
				t.Fatal(err)
			}
			if c.want == nil {
				write(t, root+"/etc", "no directory")
			}
			d := f.Read()
			var got []string
			for _, a := range d.Attachments {
				got = append(got, a.Units...)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if c.want == nil && !d.Broken[root+"/usr/c.conf"] {
				t.Error("what it may mask is not known, and c.conf is withdrawn")
			}
		})
	}
}

// What cannot be watched is looked at.
func TestChangesWithoutAWatch(t *testing.T) {
	for name, full := range map[string]func(dir string) bool{
		"none":          func(string) bool { return true },
		"one directory": func(dir string) bool { return strings.HasSuffix(dir, "/etc") },
	} {
		t.Run(name, func(t *testing.T) {
			f, root := testFiles(t)
			for _, d := range f.Dirs {
				if err := os.MkdirAll(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			var log bytes.Buffer
			w := &watch{log: slog.New(slog.NewTextHandler(&log, nil)), dirs: f.Dirs.andAbove(), blind: map[string]bool{}, again: 50 * time.Millisecond, seen: f.Dirs.fingerprint(),
				add: func(w *inotify.Watcher, dir string) error {
					if full(dir) {
						return unix.ENOSPC
					}
					return w.Add(dir)
				}}
			w.all()
			ctx, cancel := context.WithCancel(context.Background())
			told, done := make(chan struct{}, 1), make(chan struct{})
			go func() { defer close(done); w.run(ctx, f.Dirs, told) }()
			file := filepath.Join(root, "etc", "a.conf")
			for _, change := range []struct {
				what string
				do   func() error
			}{
				{"a new file", func() error { return os.WriteFile(file, []byte(good("a.service")), 0o644) }},
				{"a mask", func() error { return os.Symlink("/dev/null", filepath.Join(root, "etc", "b.conf")) }},
				{"a file that changed", func() error { return os.WriteFile(file, []byte(good("b.service")), 0o644) }},
				{"a file that went", func() error { return os.Remove(file) }},
			} {
				if err := change.do(); err != nil {
					t.Fatal(err)
				}
				select {
				case <-told:
				case <-time.After(10 * time.Second):
					t.Errorf("%s was not told", change.what)
				}
			}
			select {
			case <-told:
				t.Error("a change was told where there was none")
			case <-time.After(3 * quiet):
			}
			cancel()
			<-done
			if strings.Count(log.String(), "looked at now and then") != 1 {
				t.Errorf("it says\n%s", &log)
			}
		})
	}
}

// A unit's name may be longer than what fits into a file's name with ".conf".
func TestWriteOfALongName(t *testing.T) {
	f, _ := testFiles(t)
	units := []string{strings.Repeat("a", 242) + ".service", strings.Repeat("a", 243) + ".service", strings.Repeat("b", 247) + ".service"}
	files := map[string]bool{}
	for _, unit := range units {
		a := attach.NewAttachment()
		a.Units, a.Profile = []string{unit}, "p"
		file, restore, err := f.Write(unit, a)
		if err != nil {
			t.Fatalf("%d bytes: %v", len(unit), err)
		}
		files[file] = true
		if unit == units[0] {
			continue
		}
		if err := restore(); err != nil {
			t.Fatal(err)
		}
		if _, _, err := f.Write(unit, a); err != nil {
			t.Fatal(err)
		}
	}
	d := f.Read()
	if len(files) != len(units) || len(d.Attachments) != len(units) || len(d.Problems) > 0 {
		t.Errorf("%d files: %d attachments, %v", len(files), len(d.Attachments), d.Problems)
	}
}

// A file that was not touched is not read a second time; one that was, is.
func TestATouchedFileIsReadAgain(t *testing.T) {
	f, root := testFiles(t)
	path := root + "/etc/a.conf"
	write(t, path, good("a.service"))
	time.Sleep(2 * racy) // its time proves something now
	first := f.Read()
	if len(first.Attachments) != 1 || len(f.read) != 1 {
		t.Fatalf("%+v, %d kept", first, len(f.read))
	}
	if d := cmp.Diff(first, f.Read()); d != "" {
		t.Error(d)
	}
	for what, change := range map[string]func(){
		"written in place": func() { write(t, path, good("b.service")) },
		"not root's alone": func() {
			if err := os.Chmod(path, 0o666); err != nil {
				t.Fatal(err)
			}
		},
		"gone": func() {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	} {
		write(t, path, good("a.service"))
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * racy)
		if d := f.Read(); len(d.Attachments) != 1 || d.Attachments[0].Units[0] != "a.service" {
			t.Fatalf("%+v", d)
		}
		change()
		if d := f.Read(); len(d.Attachments) == 1 && d.Attachments[0].Units[0] == "a.service" {
			t.Errorf("%s, and not seen: %+v", what, d)
		}
	}
}

// A file is neither written nor let through that could not be read afterwards.
func TestNoFileIsTooLargeToBeReadAgain(t *testing.T) {
	root := t.TempDir()
	dirs := Dirs{root + "/etc", root + "/run", root + "/usr"}
	anyName := func(_ attach.SocketCall, name string) (string, error) { return name, nil }
	f := &Files{Dirs: dirs, Owner: uint32(os.Geteuid()), Options: anyName}
	a := attach.NewAttachment()
	a.Units, a.Profile = []string{"m.service"}, "m"
	var refused error
	for i := 0; refused == nil && i < attach.MaxSocketOptions; i++ {
		var err error
		a, _, err = a.Change(attach.SocketChange{Call: attach.SetSockOpt, Approve: []string{fmt.Sprintf("6:%d", i)}, Reason: strings.Repeat("why ", 99)}, anyName)
		if err != nil {
			t.Fatal(err)
		}
		_, _, refused = f.Write("m.service", a)
		if d := f.Read(); len(d.Problems) > 0 || len(d.Attachments) != 1 {
			t.Fatalf("after %d options: %d attachments, %v", i+1, len(d.Attachments), d.Problems)
		}
	}
	if refused == nil || !strings.Contains(refused.Error(), "larger than") {
		t.Errorf("no file was too large: %v", refused)
	}
	text := "[Attachment]\nUnit=n.service\nProfile=n\n" + strings.Repeat("# "+strings.Repeat("x", 98)+"\n", 700)
	if d, _ := f.Propose([]attach.ProposedFile{{File: dirs[0] + "/n.conf", Text: text}}); len(d.Problems) != 1 || len(d.Attachments) != 1 {
		t.Errorf("a proposed file of %d bytes: %d attachments, %v", len(text), len(d.Attachments), d.Problems)
	}
}
