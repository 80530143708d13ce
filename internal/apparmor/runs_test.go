package apparmor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// countingParser is the system's own parser that keeps a list of its runs.
func countingParser(t *testing.T) (parser string, runs func() int) {
	t.Helper()
	list := filepath.Join(t.TempDir(), "runs")
	if err := os.WriteFile(list, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	// It runs as a user that nobody is.
	for path, mode := range map[string]os.FileMode{filepath.Dir(list): 0o755, list: 0o666} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	parser = fakeParser(t, "echo >>'"+list+"' || exit 9\nexec '"+newHost(t).opt.Parsers[0]+"' \"$@\"")
	before := 0
	return parser, func() int {
		t.Helper()
		text, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		n := strings.Count(string(text), "\n") - before
		before += n
		return n
	}
}

// The parser is what costs most.
func TestTheParserRunsOnlyForWhatChanged(t *testing.T) {
	parser, runs := countingParser(t)
	h := newHost(t, parser)
	inc := h.write(profileDir+"/abstractions/mine", "/etc/passwd r,\n")
	deep := h.write(profileDir+"/abstractions/deep", "/etc/group r,\n")
	h.write(inc, "include <abstractions/deep>\n/etc/passwd r,\n")
	a := h.profile("a", "profile a {\n  include <abstractions/mine>\n  include if exists <local/a>\n}\n")
	b := h.profile("b", "profile b { }\n")
	compile := func(what string, want int, complain bool, files ...string) {
		t.Helper()
		done, problems := h.Compile(ctx(t), files, complain)
		if len(done) != len(files) || len(problems) > 0 {
			t.Fatalf("%s: %+v", what, problems)
		}
		if got := runs(); got != want {
			t.Errorf("%s: the parser ran %d times, want %d", what, got, want)
		}
	}
	compile("for the first time, and for its version", 2, false, a)
	compile("nothing changed", 0, false, a)
	compile("another file beside it", 1, false, a, b)
	compile("nothing changed in two", 0, false, a, b)
	h.write(deep, "/etc/group r,\n")
	compile("an include written anew with the same text", 0, false, a, b)
	h.write(deep, "/etc/shadow r,\n")
	compile("a changed include of an include", 1, false, a, b)
	compile("nothing changed since", 0, false, a, b)
	h.write(profileDir+"/local/a", "/etc/hosts r,\n")
	compile("an include that was missing", 1, false, a, b)
	h.profile("unrelated", "profile unrelated { }\n")
	compile("an unrelated file", 0, false, a, b)
	compile("complain mode", 1, true, a)
	compile("complain mode again", 0, true, a)
	compile("and back", 0, false, a)

	text, err := os.ReadFile(parser)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(parser, append(text, "\n# another one\n"...), 0o755); err != nil {
		t.Fatal(err)
	}
	compile("another parser, and for its version", 2, false, a)
	compile("the same parser since", 0, false, a)
}

// The index asks the parser for names of what it did not read before.
func TestTheIndexRunsTheParserOnlyForWhatChanged(t *testing.T) {
	parser, runs := countingParser(t)
	h := newHost(t, parser)
	h.profile("a", "profile a { }\n")
	inc := h.write(profileDir+"/tunables/x", "@{X}=1\n")
	h.profile("b", "include <tunables/x>\nprofile b { }\n")
	look := func(what string, want bool) {
		t.Helper()
		if names(h, "a") != "a@a" || names(h, "b") != "b@b" {
			t.Errorf("%s: %q %q", what, names(h, "a"), names(h, "b"))
		}
		if n := runs(); (n > 0) != want {
			t.Errorf("%s: the parser ran %d times", what, n)
		}
	}
	look("for the first time", true)
	look("nothing changed", false)
	h.write(inc, "@{X}=1\n")
	look("an include written anew with the same text", false)
	h.write(inc, "@{X}=2\n")
	look("a changed include", true)
	h.Known("a")
	if n := runs(); n > 0 {
		t.Errorf("Known ran the parser %d times", n)
	}
}

// What does not compile does not compile the next time either, and is not tried
// at every look; what failed for a cause outside of the file is, now and then.
func TestTheParserRunsOnceForWhatItRefuses(t *testing.T) {
	parser, runs := countingParser(t)
	h := newHost(t, parser)
	bad := h.profile("bad", "profile bad {\n  nonsense\n}\n")
	good := h.profile("good", "profile good { }\n")
	compile := func(what string, want int) []attach.Reason {
		t.Helper()
		done, problems := h.Compile(ctx(t), []string{good, bad}, false)
		if len(done) != 1 || len(problems) != 1 || problems[0].Where != bad+":3" && problems[0].Where != bad+":2" {
			t.Fatalf("%s: %+v %+v", what, done, problems)
		}
		if got := runs(); got != want {
			t.Errorf("%s: the parser ran %d times, want %d", what, got, want)
		}
		return problems
	}
	first := compile("for the first time", 3) // together, the bad one by itself, and for the version
	if again := compile("again", 0); again[0] != first[0] {
		t.Errorf("first %+v, then %+v", first, again)
	}
	h.profile("bad", "profile bad {\n  other nonsense\n}\n")
	compile("another text", 1)
	h.profile("bad", "profile bad { }\n")
	if done, problems := h.Compile(ctx(t), []string{good, bad}, false); len(done) != 2 {
		t.Errorf("corrected: %+v", problems)
	}
}

// The parser is killed half-way: that says nothing about the file for long.
func TestAParserThatIsKilledIsTriedAgain(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "mark")
	for path, mode := range map[string]os.FileMode{filepath.Dir(mark): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(mark, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	real := h.opt.Parsers[0]
	// It dies behind half of what it has to say, for as long as there is a mark.
	h.opt.Parsers = []string{fakeParser(t, "if [ -e '"+mark+"' ]; then '"+real+"' \"$@\" | head -c 100; kill -KILL $$; fi\nexec '"+real+"' \"$@\"")}
	f := h.profile("a", "profile a { /etc/hostname r, }\n")
	done, problems := h.Compile(ctx(t), []string{f}, false)
	if len(done) > 0 || len(problems) != 1 || problems[0].Code != attach.ProfileNotCompiled || !strings.Contains(problems[0].Detail, "signal: killed") {
		t.Fatalf("%+v %+v", done, problems)
	}
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); len(done) == 0; time.Sleep(10 * time.Millisecond) {
		if done, problems = h.Compile(ctx(t), []string{f}, false); time.Now().After(deadline) {
			t.Fatalf("it is not tried again: %+v", problems)
		}
	}
}

// explosive is a profile of a few lines for which the parser needs more than
// anybody has.
func explosive(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "profile %s {\n", name)
	for i := range 10 {
		fmt.Fprintf(&b, "  /**%d{a%d,b%d}**{c,d}*{e,f}**{g,h}*x%d rw,\n", i, i, i, i)
	}
	b.WriteString("}\n")
	return b.String()
}

func TestAProfileThatExplodes(t *testing.T) {
	parser, runs := countingParser(t)
	h := newHost(t, parser)
	h.opt.ParserTime, h.opt.ParserMemory = 2*time.Second, 256<<20
	good := h.profile("good", "profile good { }\n")
	boom := h.profile("boom", explosive("boom"))
	done, problems := h.Compile(ctx(t), []string{boom, good}, false)
	if len(done) != 1 || done[0].File != good || len(problems) != 1 || problems[0].Code != attach.ProfileNotCompiled ||
		!strings.HasPrefix(problems[0].Detail, "cannot compile "+boom) || problems[0].Next == "" {
		t.Errorf("%+v %+v", done, problems)
	}
	t.Log(problems)
	runs()
	if _, again := h.Compile(ctx(t), []string{boom, good}, false); len(again) != 1 || again[0] != problems[0] || runs() != 0 {
		t.Errorf("at the next look: %+v", again)
	}
	// Its names are known: nothing but the rules explodes.
	if got := names(h, "boom"); got != "boom@boom" {
		t.Errorf("%q", got)
	}
}

// One that takes too much memory is named for that.
func TestAProfileThatTakesTooMuchMemory(t *testing.T) {
	h := newHost(t)
	h.opt.ParserTime, h.opt.ParserMemory = 5*time.Minute, 48<<20
	boom := h.profile("boom", explosive("boom"))
	done, problems := h.Compile(ctx(t), []string{boom}, false)
	if len(done) != 0 || len(problems) != 1 || problems[0].Code != attach.ProfileNotCompiled ||
		!strings.Contains(problems[0].Detail, "cannot compile "+boom+": the parser needed more memory than 48 MiB") || !strings.Contains(problems[0].Next, "make the file simpler") {
		t.Errorf("%+v %+v", done, problems)
	}
}

// While the parser is at work its file and what it includes change, and go. What
// comes out belongs to the text that was read, and so does its digest.
func TestATextThatChangesUnderTheParser(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	h := newHost(t)
	real := h.opt.Parsers[0]
	inc := h.write(profileDir+"/abstractions/mine", "/etc/passwd r,\n")
	text := "profile a {\n  include <abstractions/mine>\n}\n"
	f := h.profile("a", text)
	before, problems := h.Compile(ctx(t), []string{f}, false)
	if len(before) != 1 {
		t.Fatal(problems)
	}
	begun, gate := filepath.Join(dir, "begun"), filepath.Join(dir, "gate")
	for _, fifo := range []string{begun, gate} {
		if err := syscall.Mkfifo(fifo, 0o666); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(fifo, 0o666); err != nil {
			t.Fatal(err)
		}
	}
	h = &host{t: t, root: h.root, System: New(h.opt)}
	h.opt.Parsers = []string{fakeParser(t, "case \"$*\" in *--stdout*) echo >'"+begun+"'; read x <'"+gate+"';; esac; exec '"+real+"' \"$@\"")}
	for what, change := range map[string]func(){
		"changed": func() { h.write(inc, "/etc/shadow r,\n"); h.profile("a", "profile a { /** rw, }\n") },
		"gone": func() {
			for _, file := range []string{f, inc} {
				if err := os.Remove(filepath.Join(h.root, file)); err != nil {
					t.Error(err)
				}
			}
		},
	} {
		h.write(inc, "/etc/passwd r,\n")
		h.profile("a", text)
		h.built.made = nil
		done := make(chan struct{})
		var got []attach.Compiled
		var problems []attach.Reason
		go func() {
			defer close(done)
			got, problems = h.Compile(ctx(t), []string{f}, false)
		}()
		if _, err := os.ReadFile(begun); err != nil {
			t.Fatal(err)
		}
		change()
		if err := os.WriteFile(gate, []byte("\n"), 0); err != nil {
			t.Fatal(err)
		}
		<-done
		if len(got) != 1 || got[0].Source != before[0].Source || string(got[0].Blob) != string(before[0].Blob) {
			t.Errorf("%s: %+v, and not what was read: %+v", what, got, problems)
		}
	}
}
