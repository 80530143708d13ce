//go:build vm && long

package guest

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// TestCorporaAreChecked puts all profiles that Debian ships into /etc/apparmor.d,
// where the daemon finds them, and has each one checked: compiled, staged, asked
// about, and asserted of. What the parser compiles is never said not to compile.
func TestCorporaAreChecked(t *testing.T) {
	files := corpora(t)
	waitIdle(t)
	begun := time.Now()
	counts := map[string]int{}
	asked, wholly, profiles, broken := 0, 0, 0, 0
	for some := range slices.Chunk(files, 10) {
		for _, o := range parseChecked(t, ctl(t, append([]string{"check", "--json"}, some...)...)).Outcomes {
			profiles += strings.Count(o.Profile, ",") + 1
			for _, q := range o.Questioned {
				asked += q.Questions
				if q.Wholly() {
					wholly++
				}
			}
			for _, f := range o.Findings {
				counts[f.Severity.String()+" "+string(f.Code)]++
			}
			for _, r := range o.Reasons {
				counts["refused "+string(r.Code)]++
				if r.Code != attach.ProfileBroken {
					continue
				}
				broken++
				if p := try(t, "apparmor_parser", "--skip-kernel-load", "--skip-cache", o.File); p.exit == 0 && !strings.Contains(p.stderr, "rror") {
					t.Errorf("%s compiles, and is said not to: %s", o.File, r)
				}
			}
			if len(o.Reasons) == 0 && len(o.Questioned) == 0 {
				t.Errorf("%s: nothing is said about the kernel: %+v", o.File, o)
			}
		}
	}
	t.Logf("%d files with %d profiles in %v, %d of them do not compile; the kernel was asked %d questions, about %d policies all of them",
		len(files), profiles, time.Since(begun).Round(time.Second), broken, asked, wholly)
	for _, code := range slices.Sorted(maps.Keys(counts)) {
		t.Logf("%6d %s", counts[code], code)
	}
	if len(files) < 100 || asked == 0 {
		t.Errorf("%d files and %d questions are no corpus", len(files), asked)
	}
	// The index has them all, and a question to all of them is answered.
	r := ctl(t, "query", "--all", "write /etc/**")
	if (r.exit != 3 && r.exit != 5) || !strings.Contains(r.stdout, "profiles: ") {
		t.Errorf("query --all: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if lines := strings.Split(strings.TrimSpace(r.stdout), "\n"); len(lines) > 0 {
		t.Log(lines[len(lines)-1])
	}
}

// checked is what check prints in JSON.
type checked struct{ Outcomes []attach.Outcome }

func parseChecked(t testing.TB, r result) (c checked) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), &c); err != nil {
		t.Fatalf("exit %d, %v\n%s%s", r.exit, err, r.stdout, r.stderr)
	}
	return c
}
