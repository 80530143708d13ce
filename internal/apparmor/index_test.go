package apparmor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"golang.org/x/sys/unix"
)

func TestIndexFindsNamesWhateverTheFileIsCalled(t *testing.T) {
	h := newHost(t)
	h.profile("usr.local.bin.myagent", "profile myagent /usr/local/bin/myagent {\n  /etc/hosts r,\n  profile helper { /bin/true ix, }\n  ^hat { }\n}\n")
	h.profile(`it's a "file"`, "profile \"my agent\" flags=(complain, attach_disconnected) { }\n")
	h.profile("bin.old", "\n/usr/bin/old { /etc/hosts r, }\n")
	h.profile("broken", "profile broken {\n")
	h.profile("backup~", "profile hidden { }\n")
	h.profile("x.dpkg-new", "profile hidden { }\n")
	h.profile(".x.swp", "profile hidden { }\n")
	h.profile("README", "profile hidden { }\n")
	h.write(profileDir+"/abstractions/foo", "profile hidden { }\n")
	h.profile("var", "@{X}=abc\nprofile name-@{X} { }\n")

	p := h.ByName("myagent")
	if len(p) != 1 || p[0].File != profileDir+"/usr.local.bin.myagent" || p[0].Line != 1 || p[0].Attachment != "/usr/local/bin/myagent" {
		t.Errorf("ByName(myagent) = %+v", p)
	}
	if p := h.ByName("my agent"); len(p) != 1 || !p[0].HasFlag("complain") || !p[0].HasFlag("attach_disconnected") {
		t.Errorf("ByName(my agent) = %+v", p)
	}
	if p := h.ByName("/usr/bin/old"); len(p) != 1 || p[0].Line != 2 || p[0].Attachment != "/usr/bin/old" {
		t.Errorf("ByName(/usr/bin/old) = %+v", p)
	}
	if p := h.ByName("hidden"); p != nil {
		t.Errorf("a file that the parser passes over was indexed: %+v", p)
	}
	// The parser leaves variables in names alone; what it says counts.
	if p := h.ByName("name-@{X}"); len(p) != 1 || p[0].Line != 2 {
		t.Errorf("ByName(name-@{X}) = %+v", p)
	}
	if p := h.ByName("myagent//helper"); len(p) != 1 {
		t.Errorf("ByName(myagent//helper) = %+v", p)
	}
	if p, err := h.InFile(profileDir + "/usr.local.bin.myagent"); err != nil || len(p) != 1 || p[0].Name != "myagent" {
		t.Errorf("InFile = %+v, %v", p, err)
	}
	if p, err := h.InFile(profileDir + "/broken"); err != nil || len(p) != 1 {
		t.Errorf("a file that does not compile must still be found by its text: %+v, %v", p, err)
	}
	if _, err := h.InFile(profileDir + "/nope"); err == nil {
		t.Error("a missing file gave no error")
	}
	var all []string
	found, unread := h.Profiles()
	if len(unread) > 0 {
		t.Errorf("Profiles did not read %v", unread)
	}
	for _, p := range found {
		all = append(all, p.Name)
	}
	if got := strings.Join(all, ","); got != "/usr/bin/old,broken,my agent,myagent,name-@{X}" {
		t.Errorf("Profiles = %s", got)
	}
}

// A file that not even a name could be read of may define any profile. What the
// parser passes over, or is disabled, is none.
func TestProfilesSaysWhatItCouldNotRead(t *testing.T) {
	h := newHost(t)
	h.profile("good", "profile good { }\n")
	h.profile("empty", "# nothing yet\n")
	h.profile("huge", "profile huge { }\n"+strings.Repeat("#", maxFile))
	h.profile("quote", "profile \"quote {\n")
	h.profile("latin", "profile \"\xe9\" { }\nprofile {\n")
	h.symlink("nowhere", profileDir+"/dangling")
	h.symlink("nowhere", profileDir+"/dangling.dpkg-dist")
	h.symlink("abstractions", profileDir+"/directory")
	h.mkdir(profileDir + "/abstractions")
	h.profile("backup~", "profile \"quote {\n")
	h.write(profileDir+"/abstractions/odd", "profile \"quote {\n")
	h.profile("off", "profile \"quote {\n")
	h.symlink("../off", profileDir+"/disable/off")
	if err := unix.Mkfifo(filepath.Join(h.root, profileDir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time from what is known
		all, unread := h.Profiles()
		if len(all) != 1 || all[0].Name != "good" {
			t.Errorf("Profiles = %+v", all)
		}
		for name, code := range map[string]attach.Code{"huge": attach.ProfileUnreadable, "dangling": attach.ProfileUnreadable, "fifo": attach.ProfileUnreadable,
			"quote": attach.ProfileBroken, "latin": attach.ProfileBroken} {
			if r := unread[profileDir+"/"+name]; r.Code != code || !strings.Contains(r.Detail, profileDir+"/"+name) {
				t.Errorf("of %s it is said: %+v", name, r)
			}
			delete(unread, profileDir+"/"+name)
		}
		if len(unread) > 0 {
			t.Errorf("what is no profile file was to be read: %v", unread)
		}
	}
	h.write(profileDir+"/nowhere", "profile nowhere { }\n")
	if p := names(h, "nowhere"); p != "nowhere@dangling nowhere@nowhere" {
		t.Errorf("a link that leads to a file by now: %q", p)
	}
	if err := os.RemoveAll(filepath.Join(h.root, profileDir)); err != nil {
		t.Fatal(err)
	}
	if all, unread := h.Profiles(); len(all)+len(unread) > 0 {
		t.Errorf("without the directory: %v %v", all, unread)
	}
	h.write(profileDir, "no directory")
	if _, unread := h.Profiles(); unread[profileDir].Code != attach.ProfileUnreadable {
		t.Errorf("a directory that cannot be listed: %v", unread)
	}
}

func TestIndexFollowsChanges(t *testing.T) {
	for _, watched := range []bool{false, true} {
		h := newHost(t)
		h.profile("a", "profile a { }\n")
		h.profile("b", "include <tunables/x>\n")
		h.write(profileDir+"/tunables/x", "profile b1 { }\n")
		var told <-chan struct{}
		if watched {
			told = h.Changes(ctx(t))
			time.Sleep(50 * time.Millisecond)
		}
		if names(h, "a") != "a@a" || names(h, "b1") != "b1@b" {
			t.Fatalf("%q %q", names(h, "a"), names(h, "b1"))
		}
		h.profile("c", "profile a { }\n")
		if got := names(h, "a"); got != "a@a a@c" {
			t.Errorf("watched=%v: a duplicate name was not found: %q", watched, got)
		}
		h.write(profileDir+"/tunables/x", "profile b2 { }\n")
		if watched {
			select {
			case <-told:
			case <-time.After(10 * time.Second):
				t.Fatal("the change was not told")
			}
		}
		if names(h, "b1") != "" || names(h, "b2") != "b2@b" {
			t.Errorf("watched=%v: an include changed, and the index did not: %q %q", watched, names(h, "b1"), names(h, "b2"))
		}
		if err := os.Remove(filepath.Join(h.root, profileDir, "a")); err != nil {
			t.Fatal(err)
		}
		if got := names(h, "a"); got != "a@c" {
			t.Errorf("watched=%v: a removed file is still there: %q", watched, got)
		}
	}
}

func TestLinksInDisableAndForceComplain(t *testing.T) {
	h := newHost(t)
	f := h.profile("usr.bin.x", "profile x { }\n")
	h.symlink("../usr.bin.x", profileDir+"/disable/usr.bin.x")
	h.symlink("../usr.bin.x", profileDir+"/force-complain/usr.bin.x")
	p := h.ByName("x")
	if len(p) != 1 || p[0].DisabledBy != profileDir+"/disable/usr.bin.x" || p[0].ComplainBy != profileDir+"/force-complain/usr.bin.x" {
		t.Fatalf("%+v", p)
	}
	done, problems := h.Compile(ctx(t), []string{f}, false)
	if len(done) != 1 || done[0].Profiles[0].DisabledBy == "" || len(problems) > 0 {
		t.Errorf("%+v %+v", done, problems)
	}
}

func TestByExecutable(t *testing.T) {
	h := newHost(t)
	h.profile("a", "@{bin}=/usr/bin /usr/sbin\nprofile one @{bin}/{foo,bar*} { }\nprofile two /opt/**/x? { }\n/usr/bin/barista { }\nprofile four /opt/[ab]/y { }\n")
	h.mkdir("/bin2")
	h.mkdir("/usr/bin")
	h.write("/usr/bin/foo", "")
	h.symlink("foo", "/usr/bin/link")
	for path, want := range map[string]string{
		"/usr/bin/foo": "one", "/usr/sbin/bar-x": "one", "/usr/bin/barista": "/usr/bin/barista", "/opt/a/b/x1": "two", "/opt/x1": "", "/opt/a/y": "four",
		"/opt/c/y": "", "/usr/bin/fo": "", "relative": "", "/usr/bin/link": "one", "/usr/bin/bar/x": "",
	} {
		got := ""
		for _, p := range h.ByExecutable(path) {
			got += p.Name
		}
		if got != want {
			t.Errorf("ByExecutable(%s) = %q, want %q", path, got, want)
		}
	}
}

func TestFilesElsewhereMustBeRootsAlone(t *testing.T) {
	h := newHost(t)
	f := h.write("/opt/agent/profile", "profile agent { }\n")
	if p, err := h.InFile(f); err != nil || len(p) != 1 {
		t.Fatalf("%+v %v", p, err)
	}
	refused := func(file, why string) {
		t.Helper()
		if _, err := h.InFile(file); !errors.Is(err, ErrUntrusted) {
			t.Errorf("%s: %v", why, err)
		}
		if done, problems := h.Compile(ctx(t), []string{file}, false); len(done) > 0 || len(problems) != 1 || problems[0].Code != "profile-file-untrusted" {
			t.Errorf("%s: compiled: %+v %+v", why, done, problems)
		}
	}
	h.symlink("profile", "/opt/agent/link")
	refused("/opt/agent/link", "a symbolic link")
	h.symlink("agent", "/opt/dir")
	refused("/opt/dir/profile", "a symbolic link on the way")
	if err := os.Chmod(filepath.Join(h.root, "/opt/agent"), 0o775); err != nil {
		t.Fatal(err)
	}
	refused(f, "a directory that a group can write")
	if err := os.Chmod(filepath.Join(h.root, "/opt/agent"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(h.root, f), 0o666); err != nil {
		t.Fatal(err)
	}
	refused(f, "a file that everyone can write")
	// An include counts like the file itself.
	h.write("/opt/agent/rules", "/etc/hosts r,\n")
	g := h.profile("g", "profile g {\n  include \"/opt/agent/rules\"\n}\n")
	if done, problems := h.Compile(ctx(t), []string{g}, false); len(done) != 1 {
		t.Fatalf("%+v", problems)
	}
	h.loaded("g.1", "g", "enforce", "aa")
	before := h.Fingerprint([]string{"g"}, "")
	if h.Fingerprint([]string{"g"}, "") != before {
		t.Error("nothing changed")
	}
	if err := os.Chmod(filepath.Join(h.root, "/opt/agent/rules"), 0o666); err != nil {
		t.Fatal(err)
	}
	if h.Fingerprint([]string{"g"}, "") == before {
		t.Error("that everyone can write an include, whose text is the same, was not noticed")
	}
	if done, problems := h.Compile(ctx(t), []string{g}, false); len(done) > 0 || len(problems) != 1 || problems[0].Code != "profile-file-untrusted" {
		t.Errorf("an include that everyone can write: %+v %+v", done, problems)
	}
}

func TestChangesElsewhereAreTold(t *testing.T) {
	h := newHost(t)
	told := h.Changes(ctx(t))
	time.Sleep(50 * time.Millisecond)
	f := h.write("/opt/agent/profile", "include \"/opt/rules/r\"\nprofile agent { }\n")
	h.write("/opt/rules/r", "# none\n")
	if p, err := h.InFile(f); err != nil || len(p) != 1 {
		t.Fatal(p, err)
	}
	for _, file := range []string{f, "/opt/rules/r"} {
		h.write(file, "profile other { }\n")
		select {
		case <-told:
		case <-time.After(10 * time.Second):
			t.Fatalf("a change of %s was not told", file)
		}
	}
	if p, err := h.InFile(f); err != nil || len(p) != 1 || p[0].Name != "other" {
		t.Error(p, err)
	}
	h.write("/opt/rules/unrelated", "x")
	h.profile("x.dpkg-new", "x")
	h.profile(".x.swp", "x")
	select {
	case <-told:
		t.Error("a file that nobody asked for was told")
	case <-time.After(time.Second):
	}
}

// One that is disabled, or does not compile, is no rival to one that is loaded.
func TestOnlyFilesThatAreLoadedAreRivals(t *testing.T) {
	h := newHost(t)
	h.profile("good", "profile x { }\n")
	h.profile("off", "profile x { }\n")
	h.profile("bad", "profile x { rubbish }\n")
	h.symlink("../off", profileDir+"/disable/off")
	if got := names(h, "x"); got != "x@good" {
		t.Errorf("%q", got)
	}
	_ = os.Remove(filepath.Join(h.root, profileDir, "good"))
	if got := names(h, "x"); got != "x@off" {
		t.Errorf("%q", got)
	}
	_ = os.Remove(filepath.Join(h.root, profileDir, "off"))
	if got := names(h, "x"); got != "x@bad" {
		t.Errorf("%q", got)
	}
}

// hangs makes a parser that works until stop is there, and then does not end.
func hangs(t *testing.T) (parser, stop string) {
	stop = filepath.Join(t.TempDir(), "stop")
	if err := os.Chmod(filepath.Dir(stop), 0o755); err != nil {
		t.Fatal(err)
	}
	return fakeParser(t, "[ -e '"+stop+"' ] && exec sleep 100\nexec '"+newHost(t).opt.Parsers[0]+"' \"$@\""), stop
}

// The parser hangs in a look that holds up everybody who needs an answer from
// the files. A hint must not wait for it, and neither must the end.
func TestAHangingParserHoldsUpNeitherHintsNorTheEnd(t *testing.T) {
	parser, stop := hangs(t)
	h := newHost(t, parser)
	h.opt.ParserTime = time.Minute
	h.profile("a", "profile a { }\n")
	h.profile("off", "profile a { }\n")
	h.symlink("../off", profileDir+"/disable/off")
	if got := h.Known("a"); got != nil {
		t.Errorf("nobody has looked, and Known says %+v", got)
	}
	c, cancel := context.WithCancel(ctx(t))
	defer cancel()
	h.Changes(c)
	if got := names(h, "a"); got != "a@a" {
		t.Fatalf("%q", got)
	}
	if err := os.WriteFile(stop, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h.profile("b", "profile b { }\n")
	answer := make(chan string)
	go func() { answer <- names(h, "b") }()
	for h.index.TryLock() { // until the look has begun
		h.index.Unlock()
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	if got := h.Known("a"); len(got) != 1 || got[0].File != profileDir+"/a" {
		t.Errorf("Known = %+v", got)
	}
	if got := h.Known("b"); got != nil {
		t.Errorf("Known = %+v before the look was done", got)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Known took %v", d)
	}
	select {
	case got := <-answer:
		t.Fatalf("ByName answered %q; this test proves nothing", got)
	case <-time.After(300 * time.Millisecond):
	}
	cancel()
	select {
	case got := <-answer:
		if got != "b@b" {
			t.Errorf("cut off, ByName = %q", got)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("the end waits for the parser")
	}
	if got := h.Known("b"); len(got) != 1 {
		t.Errorf("Known = %+v after the look", got)
	}
	// From now on no parser is started.
	h.profile("c", "profile c { }\n")
	begin = time.Now()
	if got := names(h, "c"); got != "c@c" || time.Since(begin) > 10*time.Second {
		t.Errorf("ByName = %q after %v", got, time.Since(begin))
	}
}

// Many files that each take the parser nearly as long as it may.
func TestALookIsBoundedInAll(t *testing.T) {
	h := newHost(t, fakeParser(t, "sleep 0.5; exit 1"))
	h.opt.ParserTime = 600 * time.Millisecond
	for i := range 60 {
		h.profile(fmt.Sprint(i), fmt.Sprintf("profile p%d { }\n", i))
	}
	begin := time.Now()
	if got := names(h, "p7"); got != "p7@7" {
		t.Errorf("%q", got)
	}
	if d, all := time.Since(begin), 60*500*time.Millisecond/parallel; d > all*3/4 {
		t.Errorf("took %v; one after the other they take %v", d, all)
	}
}

// A command that may not wait long: what it gets then are the names that the texts say.
func TestALookEndsWithItsCommand(t *testing.T) {
	h := newHost(t, fakeParser(t, "exec sleep 100"))
	h.opt.ParserTime = time.Minute
	life, cancel := context.WithTimeout(ctx(t), time.Second)
	defer cancel()
	h.opt.Life = life
	f := h.profile("a", "profile a { }\n")
	begin := time.Now()
	if got := names(h, "a"); got != "a@a" || time.Since(begin) > 20*time.Second {
		t.Errorf("ByName = %q after %v", got, time.Since(begin))
	}
	if done, problems := h.Compile(life, []string{f}, false); len(done) > 0 || len(problems) != 1 || problems[0].Code != attach.ProfileNotCompiled {
		t.Errorf("%+v %+v", done, problems)
	}
}
