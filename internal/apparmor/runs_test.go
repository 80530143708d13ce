package apparmor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
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
