package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/state"
)

// asProgram has this test's executable be the program.
const asProgram = "AAUNITD_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// Whatever works with state that another process has ends before it reads anything.
func TestASecondOneEnds(t *testing.T) {
	dir := t.TempDir()
	record := filepath.Join(dir, "units", "a.service.json")
	if err := errors.Join(os.Mkdir(filepath.Dir(record), 0o700), os.WriteFile(record, []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	release, err := state.Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-state", dir, "-policy")
	cmd.Env = append(os.Environ(), asProgram+"=yes")
	text, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 1 || !strings.Contains(string(text), "is another aaunitd running?") {
		t.Errorf("%v\n%s", err, text)
	}
	if _, err := os.Stat(record); err != nil {
		t.Errorf("it has set aside what it cannot read: %v", err)
	}
}
