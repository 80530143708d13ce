package apparmor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

func TestCompileTextOfAFileThatIsNotThere(t *testing.T) {
	h := newHost(t)
	h.write(profileDir+"/abstractions/mine", "/etc/passwd r,\n")
	file := h.profile("p", "profile p { /old r, }\n")
	before, _ := h.Compile(ctx(t), []string{file}, false)
	text := "profile p {\n  include <abstractions/mine>\n}\n"
	c, bad := h.CompileText(ctx(t), file, text, false)
	if bad != nil || len(c.Profiles) != 1 || c.Profiles[0].Name != "p" || c.File != file || string(c.Blob) == string(before[0].Blob) {
		t.Errorf("%+v %v", c.Profiles, bad)
	}
	// What is on disk is still what it was, and is compiled so.
	if now, _ := h.Compile(ctx(t), []string{file}, false); string(now[0].Blob) != string(before[0].Blob) {
		t.Error("a proposed text took the place of the file")
	}
	h.profile("p", text)
	if now, _ := h.Compile(ctx(t), []string{file}, false); string(now[0].Blob) != string(c.Blob) {
		t.Error("once it is written, the text compiles to something else")
	}
	soft, bad := h.CompileText(ctx(t), file, text, true)
	if now, _ := h.Compile(ctx(t), []string{file}, true); bad != nil || !soft.Complain || soft.ID != now[0].ID || string(soft.Blob) == string(c.Blob) {
		t.Errorf("in complain mode: %v %+v", bad, soft)
	}
	if _, bad := h.CompileText(ctx(t), profileDir+"/new", "profile new {\n /x zz,\n}\n", false); bad == nil || bad.Code != attach.ProfileBroken || bad.Where != profileDir+"/new:2" {
		t.Errorf("a text that does not compile: %v", bad)
	}
	for file, text := range map[string]string{"relative": text, profileDir + "/../x": text, profileDir + "/large": strings.Repeat("#", maxFile+1), profileDir + "/none": "# nothing\n"} {
		if _, bad := h.CompileText(ctx(t), file, text, false); bad == nil {
			t.Errorf("%s compiled", file)
		}
	}
}

func TestCompileManyWithOneBad(t *testing.T) {
	h := newHost(t)
	h.write(profileDir+"/abstractions/mine", "/etc/passwd r,\n/bin/sh Ux,\n")
	var files []string
	for i := range 6 {
		files = append(files, h.profile(fmt.Sprintf("p %d", i), fmt.Sprintf("profile p%d {\n  include <abstractions/mine>\n  include if exists <local/none>\n  profile child { /x r, }\n}\n", i)))
	}
	bad := h.profile("bad", "profile bad {\n  include <abstractions/mine>\n  /etc/x zz,\n}\n")
	files = append(files[:3:3], append([]string{bad}, files[3:]...)...)
	done, problems := h.Compile(ctx(t), append(files, files[0]), false)
	if len(done) != 6 || len(problems) != 1 {
		t.Fatalf("%d done, problems %+v", len(done), problems)
	}
	if r := problems[0]; r.Code != attach.ProfileBroken || r.Where != bad+":3" || !strings.Contains(r.Detail, "cannot compile "+bad) || !strings.Contains(r.Detail, "syntax error") {
		t.Errorf("problem %+v", r)
	}
	h.Stage(ctx(t), done)
	for _, c := range done {
		e, err := policydb.Split(c.Blob)
		if err != nil || len(e) != 2 || len(c.Profiles) != 2 || e[1].Name != c.Profiles[1].Name || c.Profiles[1].Name != c.Profiles[0].Name+"//child" {
			t.Errorf("%s: %v %+v %v", c.File, err, c.Profiles, e)
		}
		if len(c.Profiles[0].Leaves) != 1 || c.Profiles[0].Leaves[0].Rule != "/bin/sh Ux," {
			t.Errorf("leaves %+v", c.Profiles[0].Leaves)
		}
		if c.Checksums != nil || c.NotStaged == "" {
			t.Errorf("staged without a kernel: %v %q", c.Checksums, c.NotStaged)
		}
	}
	// In one go or alone, the bytes are the same.
	alone := New(h.opt)
	one, _ := alone.Compile(ctx(t), []string{done[2].File}, false)
	if len(one) != 1 || string(one[0].Blob) != string(done[2].Blob) || one[0].Source != done[2].Source {
		t.Error("compiled alone the policy is another one")
	}
	// A changed include is another source; complain another policy.
	h.write(profileDir+"/abstractions/mine", "/etc/group r,\n")
	again, _ := h.Compile(ctx(t), []string{done[0].File}, false)
	if len(again) != 1 || again[0].Source == done[0].Source || string(again[0].Blob) == string(done[0].Blob) {
		t.Error("a changed include was not noticed")
	}
	complain, _ := h.Compile(ctx(t), []string{done[0].File}, true)
	if len(complain) != 1 || string(complain[0].Blob) == string(again[0].Blob) || !complain[0].Complain {
		t.Error("complain made no difference")
	}
}

func TestCompileRefuses(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]struct{ text, want string }{
		"empty":     {"", "it defines no profile"},
		"comment":   {"# nothing\n", "it defines no profile"},
		"binary":    {"\x7fELF\x00\x01\x02\xff", "cannot compile"},
		"namespace": {"profile :other:x { }\n", "belongs to policy namespace other"},
		"newline":   {"profile \"a\\nb\" { }\n", "control character"},
		"twice":     {"profile x { }\nprofile x { }\n", "Multiple definitions"},
		"include":   {"profile x { include <abstractions/none> }\n", "abstractions/none"},
		"sockopt":   {"profile x {\n  socket (tcp) options=(nodelay) level=tcp optname=TCP_NODELAY,\n}\n", "AppArmor cannot express this"},
	} {
		f := h.profile(name, c.text)
		done, problems := h.Compile(ctx(t), []string{f}, false)
		if len(done) > 0 || len(problems) != 1 || problems[0].Code != attach.ProfileBroken || !strings.Contains(problems[0].Detail, c.want) || !strings.HasPrefix(problems[0].Detail, "cannot compile "+f) {
			t.Errorf("%s: %+v %+v", name, done, problems)
		}
		for _, p := range problems {
			if strings.Contains(p.Detail+p.Where, h.opt.Scratch) {
				t.Errorf("%s: the message names the copy: %+v", name, p)
			}
		}
		t.Logf("%s: %s", name, problems)
	}
	if _, problems := h.Compile(ctx(t), []string{profileDir + "/none", "relative"}, false); len(problems) != 2 || problems[0].Code != attach.ProfileNotFound && problems[1].Code != attach.ProfileNotFound {
		t.Errorf("%+v", problems)
	}
}

// The parser runs as another user, who must be able to read what it is given whatever the
// umask of the one who asks is.
func TestCompileWhateverTheUmask(t *testing.T) {
	for _, mask := range []int{0o022, 0o027, 0o077} {
		h := newHost(t)
		h.opt.Scratch = filepath.Join(h.opt.Scratch, "made", "for it")
		h.opt.Features = packagedFeatures
		h.write(profileDir+"/abstractions/deep/er", "/etc/passwd r,\n")
		h.mkdir(profileDir + "/local/empty")
		f := h.profile("a", "profile a {\n include <abstractions/deep/er>\n include <local/empty>\n}\n")
		old := unix.Umask(mask)
		got := names(h, "a")
		done, problems := h.Compile(ctx(t), []string{f}, false)
		unix.Umask(old)
		if got != "a@a" || len(done) != 1 {
			t.Errorf("umask %03o: %q %+v", mask, got, problems)
		}
	}
}

func TestParserThatMisbehaves(t *testing.T) {
	for name, c := range map[string]struct {
		script, want string
		refused      bool // the text, as far as can be told
	}{
		"hangs":          {"exec sleep 100", "did not end within", false},
		"hangs forked":   {"sleep 100 & wait", "did not end within", false},
		"garbage":        {"head -c 100000 /dev/urandom", "makes no sense", false},
		"floods":         {"exec cat /dev/zero", "printed more than", false},
		"lies":           {"echo 'AppArmor parser error for x in /etc/apparmor.d/a at line 7: boom'  >&2; exit 0", ":7: apparmor_parser gave up here. (apparmor_parser: boom)", true},
		"silent failure": {"exit 3", "exit status 3", false},
		"says nothing":   {"exit 0", "it defines no profile", true},
		"dies":           {"kill -SEGV $$", "signal", false},
		"too much":       {"x=a; while :; do x=$x$x; done", "cannot compile", false},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, fakeParser(t, c.script))
			h.opt.ParserTime, h.opt.ParserOutput, h.opt.ParserMemory = 2*time.Second, 1<<20, 256<<20
			f := h.profile("a", "profile a { }\n")
			begin := time.Now()
			done, problems := h.Compile(ctx(t), []string{f}, false)
			want := attach.ProfileNotCompiled
			if c.refused {
				want = attach.ProfileBroken
			}
			if len(done) > 0 || len(problems) != 1 || problems[0].Code != want || !strings.Contains(problems[0].Detail, c.want) {
				t.Errorf("%+v %+v", done, problems)
			}
			if time.Since(begin) > 20*time.Second {
				t.Errorf("took %v", time.Since(begin))
			}
			if left, _ := os.ReadDir(h.opt.Scratch); len(left) > 0 {
				t.Errorf("left %v behind", left)
			}
			// The index has the text's names all the same.
			if got := names(h, "a"); got != "a@a" && name != "says nothing" {
				t.Errorf("ByName = %q", got)
			}
		})
	}
	t.Run("missing", func(t *testing.T) {
		h := newHost(t, "/nonexistent/apparmor_parser")
		f := h.profile("a", "profile a { }\n")
		_, problems := h.Compile(ctx(t), []string{f}, false)
		if len(problems) != 1 || !strings.Contains(problems[0].Detail, "apparmor_parser is not installed") {
			t.Errorf("%+v", problems)
		}
	})
	for name, out := range map[string]string{"control": `a\001b`, "nul": `a\000b`, "utf8": `\377\376`, "empty": `a\n\nb`} {
		t.Run("names "+name, func(t *testing.T) {
			h := newHost(t, fakeParser(t, "printf '"+out+"\\n'"))
			f := h.profile("a", "# no profile in the text\n")
			if p, err := h.InFile(f); err == nil {
				t.Errorf("garbage was taken: %q", p)
			}
		})
	}
}

func TestAHangingParserIsNotWaitedForOncePerFile(t *testing.T) {
	h := newHost(t, fakeParser(t, "exec sleep 100"))
	h.opt.ParserTime = 300 * time.Millisecond
	for i := range 40 {
		h.profile(fmt.Sprint(i), fmt.Sprintf("profile p%d { }\n", i))
	}
	begin := time.Now()
	if names(h, "p7") != "p7@7" {
		t.Error(names(h, "p7"))
	}
	if d := time.Since(begin); d >= 40*h.opt.ParserTime {
		t.Errorf("took %v, as long as waiting for each of 40 files", d)
	}
}

// A daemon that was killed leaves its private copies behind, and others may be at work
// beside the one that comes after it.
func TestCopiesOfKilledProcessesAreSwept(t *testing.T) {
	h := newHost(t)
	dead, lives := exec.Command("true"), exec.Command("sleep", "60")
	if err := errors.Join(dead.Run(), lives.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = lives.Process.Kill(), lives.Wait() }()
	own, err := h.copyTree()
	if err != nil {
		t.Fatal(err)
	}
	pid := strconv.Itoa(dead.Process.Pid)
	left := []string{"compile-" + pid + "-123", "compile-" + pid + "-4294967295", "compile-77"}
	kept := []string{
		"compile-" + strconv.Itoa(lives.Process.Pid) + "-123", "compile-" + strconv.Itoa(os.Getpid()) + "-123", "compile-1-123", filepath.Base(own.dir),
		"compile-78", // it may be at work yet
		"compile-0-123", "compile--1-123", "compile-99999999999999999999-123", "compile-" + pid, "compile-" + pid + "-", "compile-" + pid + "-x", "compile-x-123",
		"compile-" + pid + "-123.d", "compile-cache", "recompile-" + pid + "-123", "attachments.d",
	}
	for _, n := range append(left, kept...) {
		if err := os.MkdirAll(filepath.Join(h.opt.Scratch, n, "root", "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ago := time.Now().Add(-61 * time.Minute)
	elsewhere := t.TempDir()
	link, file := filepath.Join(h.opt.Scratch, "compile-"+pid+"-1"), filepath.Join(h.opt.Scratch, "compile-"+pid+"-2")
	for _, err := range []error{
		os.Chtimes(filepath.Join(h.opt.Scratch, "compile-77"), ago, ago),
		os.Chtimes(filepath.Join(h.opt.Scratch, "compile-"+strconv.Itoa(lives.Process.Pid)+"-123"), ago, ago),
		os.Mkdir(filepath.Join(elsewhere, "x"), 0o755), os.Symlink(elsewhere, link), os.WriteFile(file, nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	kept = append(kept, filepath.Base(link), filepath.Base(file))
	names := func() map[string]bool {
		entries, err := os.ReadDir(h.opt.Scratch)
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]bool{}
		for _, e := range entries {
			out[e.Name()] = true
		}
		return out
	}

	// /tmp, where a check without a daemon has its copies.
	if err := os.Chmod(h.opt.Scratch, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	h.SweepStaging()
	if now := names(); len(now) != len(left)+len(kept) {
		t.Errorf("where anybody can write it leaves %v", now)
	}
	if err := os.Chmod(h.opt.Scratch, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Stage(ctx(t), []attach.Compiled{{}})
	if now := names(); len(now) != len(left)+len(kept) {
		t.Errorf("a command leaves %v", now)
	}

	h.SweepStaging()
	now := names()
	for _, n := range left {
		if now[n] {
			t.Errorf("%s is still there", n)
		}
	}
	for _, n := range kept {
		if !now[n] {
			t.Errorf("%s is gone", n)
		}
	}
	if _, err := os.Stat(filepath.Join(elsewhere, "x")); err != nil {
		t.Error(err)
	}
	if want := "compile-" + strconv.Itoa(os.Getpid()) + "-"; !strings.HasPrefix(filepath.Base(own.dir), want) {
		t.Errorf("the copy %s does not begin with %s", own.dir, want)
	}
	own.remove()
}
