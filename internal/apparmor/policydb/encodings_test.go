package policydb

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const medium = `include <tunables/global>
profile medium {
  include <abstractions/base>
  owner @{HOME}/** rw,
  deny @{HOME}/.ssh/** rwx,
  /usr/bin/* ix,
  owner /tmp/*/[0-9]* rwkl,
}`

// However the parser packs an automaton, its answers are the same: with
// difference encoding, with classes of bytes, without minimizing.
func TestEncodings(t *testing.T) {
	b, err := os.ReadFile("/usr/share/apparmor-features/features")
	if err != nil {
		t.Fatal(err)
	}
	const policy = "policy {"
	text := strings.Replace(string(b), policy, policy+"diff_encode {yes\n}\n", 1)
	if text == string(b) {
		t.Fatal("the features have no place for policy")
	}
	features := filepath.Join(t.TempDir(), "features")
	if err := os.WriteFile(features, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := parse(t, medium)
	// Every piece of the profile's own paths, so that random ones meet rules.
	pieces := []string{"/", ".", "a", "\xff", "~", "/etc", "/usr", "/lib", "/home", "/u", ".ssh", "/proc", "/sys", "/dev", "/tmp", "/var", "/run",
		"passwd", "null", ".so", "/bin", "locale", "/share", "/cache", "[0-9]", "1", "23", "fonts", "/self", "status", "python3", "x86_64-linux-gnu", "ld-"}
	r := rand.New(rand.NewPCG(5, 6))
	var paths []string
	for range 20_000 {
		var p strings.Builder
		for range 1 + r.IntN(7) {
			p.WriteString(pieces[r.IntN(len(pieces))])
		}
		paths = append(paths, p.String())
	}
	kinds := map[string]int{}
	for name, flags := range map[string][]string{
		"difference":         {"-O", "diff-encode"},
		"classes":            {"-O", "no-diff-encode", "-O", "equiv"},
		"difference,classes": {"-O", "diff-encode", "-O", "equiv"},
		"large":              {"-O", "no-minimize", "-O", "no-diff-encode"},
	} {
		got := parse(t, medium, append(flags, "--kernel-features="+features)...)
		diff, classes := false, false
		for _, s := range got.file.dfa.states {
			diff = diff || s.base&baseDiff != 0
		}
		for c := 1; c < 256; c++ {
			classes = classes || int(got.file.dfa.class[c]) > 1 && int(got.file.dfa.class[c]) < c/2
		}
		if diff != strings.Contains(name, "difference") {
			t.Errorf("%s: difference encoding is %t", name, diff)
		}
		if len(got.file.dfa.states) > len(want.file.dfa.states) {
			kinds["large"]++
		}
		if classes {
			kinds["classes"]++
		}
		for _, path := range paths {
			for _, who := range []Who{Owner, Other} {
				a, _ := want.File(path, who)
				b, _ := got.File(path, who)
				a.xindex, b.xindex = 0, 0
				if a != b {
					t.Fatalf("%s: %q as %s: %+v, want %+v", name, path, who, b, a)
				}
			}
		}
		for _, glob := range []string{"/**", "/etc/**", "/[^t]**", "/home/*/.ssh/**"} {
			for _, perm := range []Perm{Write, Link, Exec} {
				q := Query{Pattern: pattern(t, glob), Any: perm}
				a, b := want.Find(q), got.Find(q)
				if a.Answer != b.Answer || a.Witness != b.Witness {
					t.Errorf("%s: %s %s: %+v, want %+v", name, perm, glob, b, a)
				}
			}
		}
	}
	if kinds["classes"] == 0 || kinds["large"] == 0 {
		t.Errorf("these were not tried: %v", kinds)
	}
}
