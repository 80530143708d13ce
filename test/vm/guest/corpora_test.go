//go:build vm

package guest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// corpusDir is where the guest has profiles of packages that are not installed
// (CorpusDir of test/vm/machine).
const corpusDir = "/usr/share/aaunit-vm/profiles"

// corpora puts all profiles that Debian ships into /etc/apparmor.d, where the
// daemon finds them, until the test ends, and gives the files.
func corpora(t testing.TB) (files []string) {
	const etc = "/etc/apparmor.d"
	saved := t.TempDir() + "/saved"
	run(t, "cp", "-a", etc, saved)
	t.Cleanup(func() {
		// As it was, without a moment in which there is nothing.
		if out, err := exec.Command("cp", "-a", saved+"/.", etc).CombinedOutput(); err != nil {
			t.Errorf("%v %s", err, out)
		}
		err := filepath.WalkDir(etc, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if _, err := os.Lstat(saved + strings.TrimPrefix(path, etc)); err == nil {
				return nil
			}
			if err := os.RemoveAll(path); err != nil || !d.IsDir() {
				return err
			}
			return filepath.SkipDir
		})
		if err != nil {
			t.Error(err)
		}
	})
	run(t, "cp", "-a", "--no-clobber", corpusDir+etc+"/.", etc)
	extra, err := filepath.Glob(corpusDir + "/usr/share/apparmor/extra-profiles/*")
	if err != nil || len(extra) == 0 {
		t.Fatal(extra, err)
	}
	for _, from := range extra {
		if to := filepath.Join(etc, filepath.Base(from)); !exists(to) {
			run(t, "cp", "-a", from, to)
		}
	}
	found, err := filepath.Glob(etc + "/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if i, err := os.Stat(f); err != nil || !i.Mode().IsRegular() || filepath.Base(f) == "README" {
			continue
		}
		files = append(files, f)
		// What the packages' scripts make.
		if local := etc + "/local/" + filepath.Base(f); !exists(local) {
			if err := os.WriteFile(local, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	run(t, "chown", "-R", "root:root", etc)
	run(t, "chmod", "-R", "go-w", etc)
	return files
}
