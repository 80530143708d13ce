package policydb

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// compile gives text to the system's parser. A test that were skipped without
// one would prove nothing: "make check" installs it.
func compile(t testing.TB, text string, flags ...string) []byte {
	t.Helper()
	out, err := run(t, append(flags, write(t, text))...)
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	return out
}

func run(t testing.TB, args ...string) ([]byte, error) {
	t.Helper()
	parser := "/usr/sbin/apparmor_parser"
	if _, err := os.Stat(parser); err != nil {
		parser = "/sbin/apparmor_parser"
	}
	var out, problems bytes.Buffer
	cmd := exec.Command(parser, append([]string{"--skip-kernel-load", "--skip-cache", "--stdout",
		// Without a kernel that has AppArmor the parser would leave out all that
		// is not files.
		"--kernel-features=/usr/share/apparmor-features/features"}, args...)...)
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return nil, &parserError{err, problems.String()}
	}
	return out.Bytes(), nil
}

type parserError struct {
	error
	said string
}

func (e *parserError) Error() string { return e.error.Error() + ": " + e.said }

// parse compiles and reads the one profile in text.
func parse(t testing.TB, text string, flags ...string) *Profile {
	t.Helper()
	all, err := Parse(compile(t, text, flags...))
	if err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
	if len(all) == 0 {
		t.Fatalf("no profile:\n%s", text)
	}
	return &all[0]
}

func pattern(t testing.TB, text string) *Pattern {
	t.Helper()
	p, err := ParsePattern(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// write makes a file of text, and returns its name.
func write(t testing.TB, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}
