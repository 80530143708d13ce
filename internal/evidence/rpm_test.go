package evidence

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// withRPM puts a program into the place of rpm.
func withRPM(t *testing.T, root, script string) {
	t.Helper()
	put(t, root, rpmProgram, "#!/bin/sh\n"+script)
	// The directories of a test are for its user alone, and rpm runs as nobody.
	for dir := filepath.Dir(root + rpmProgram); len(dir) > 1; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err != nil || st.Mode().Perm()&0o005 == 0o005 {
			continue
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(root+rpmProgram, 0o755); err != nil {
		t.Fatal(err)
	}
}

// rpm is asked with the path as one word, where dpkg does not know it, once for each
// state of its database.
func TestThePackageThatRPMKnows(t *testing.T) {
	b := newBench(t, "", nil)
	file, cmd := program(t)
	calls := filepath.Join(b.root, "calls")
	put(t, b.root, "/calls", "")
	if err := os.Chmod(calls, 0o666); err != nil {
		t.Fatal(err)
	}
	withRPM(t, b.root, fmt.Sprintf("printf '%%s|' \"$@\" >>'%s'; env | grep -c ^HOME=/nonexistent >>'%s'\nprintf 'mysleep\\t1:9.1-2.fc40\\nother\\t1-1\\n'\n", calls, calls))
	look := func() attach.EvidenceProgram {
		t.Helper()
		return b.Program(t.Context(), unit, attach.EvidenceProgram{PID: cmd.Process.Pid, At: time.Now()})
	}
	asked := func() string {
		t.Helper()
		text, err := os.ReadFile(calls)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	if e := look(); e.Package+e.Version+e.PackageProblem != "" || asked() != "" {
		t.Errorf("a system without rpm's database: %+v, asked %q", e, asked())
	}
	put(t, b.root, "/var/lib/rpm/rpmdb.sqlite", "1")
	want := "--query|--queryformat|" + rpmFormat + "|--file|--|" + file + "|1\n"
	for range 2 {
		if e := look(); e.Package != "mysleep" || e.Version != "1:9.1-2.fc40" || e.PackageProblem != "" || asked() != want {
			t.Errorf("%+v, asked %q, want %q", e, asked(), want)
		}
	}
	put(t, b.root, "/var/lib/rpm/rpmdb.sqlite", "another state")
	if look(); asked() != want+want {
		t.Errorf("the database has changed, and rpm was asked %q", asked())
	}
	put(t, b.root, dpkgStatus, "Package: debs\nArchitecture: amd64\nVersion: 3\n\n")
	put(t, b.root, dpkgInfo+"/debs.list", "/.\n"+file+"\n")
	if e := look(); e.Package != "debs" || e.Version != "3" || asked() != want+want {
		t.Errorf("dpkg knows it: %+v", e)
	}
}

// What rpm does not say is not made up, and it holds up nobody.
func TestAnRPMThatDoesNotAnswer(t *testing.T) {
	file, cmd := program(t)
	for name, tc := range map[string]struct{ script, problem string }{
		"nobody's":      {"echo \"file $6 is not owned by any package\"; exit 1", ""},
		"no database":   {"echo 'error: cannot open Packages database' >&2; exit 1", "could not tell the package: exit status 1; try rpm -qf " + file},
		"other words":   {"echo mysleep-9.1-2", "not understood"},
		"no version":    {`printf 'mysleep\t\n'`, "not understood"},
		"half a line":   {`printf 'mysleep\t9'`, "not understood"},
		"too much":      {"while :; do echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; done", "more than 4096 bytes"},
		"not at all":    {"sleep 600", "did not answer within"},
		"ended by kill": {"kill -9 $$", "could not tell"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBench(t, "", nil)
			put(t, b.root, "/var/lib/rpm/Packages", "")
			withRPM(t, b.root, tc.script+"\n")
			began := time.Now()
			e := b.Program(t.Context(), unit, attach.EvidenceProgram{PID: cmd.Process.Pid, At: time.Now()})
			if e.Package+e.Version != "" || (e.PackageProblem == "") != (tc.problem == "") || !strings.Contains(e.PackageProblem, tc.problem) {
				t.Errorf("%+v", e)
			}
			if took := time.Since(began); took > 3*rpmTime {
				t.Errorf("it took %v", took)
			}
		})
	}
}
