package gate

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/unpack"
	"github.com/aaunit/aaunit/internal/attach"
)

// stop gives the unit another program.
func stop(u *attach.Unit) {
	u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/opt/stop"})
}

// stops says what lies at it, and at another path.
func stops(other string, files ...attach.File) *attach.Facts {
	f := attach.Facts{User: 1000, Files: map[string]attach.File{"/opt/stop": files[0]}}
	if other != "" {
		f.Files[other] = files[1]
	}
	return &f
}

// key is a file with its owner, and the unit's user.
func key(owner, user int64) *attach.Facts {
	return &attach.Facts{User: user, Files: map[string]attach.File{"/etc/agent.key": {Kind: attach.FileOther, Path: "/etc/agent.key", Owner: owner}}}
}

// A policy of a parser and a kernel that know user namespaces: policydb's
// testdata/others.txt.
func TestUserNamespaces(t *testing.T) {
	b, err := os.ReadFile("../apparmor/policydb/testdata/others-5.0.zst")
	if err == nil {
		b, err = unpack.Policy(b, policydb.MaxPolicy)
	}
	if err != nil {
		t.Fatal(err)
	}
	q := question(t, profile(""))
	q.Desired.Profile = "others"
	q.Compiled = []attach.Compiled{{ID: "others", File: "/etc/apparmor.d/others", Blob: b, Profiles: []attach.Profile{{Name: "others", File: "/etc/apparmor.d/others", Line: 2}}}}
	tells := func() bool {
		return slices.ContainsFunc(ask(t, q), func(f attach.Finding) bool {
			return f.Code == attach.MayUserns && f.Severity == attach.Warning && strings.Contains(f.Detail, "profile others may make user namespaces")
		})
	}
	if !tells() {
		t.Error("it is not told")
	}
	a := *q.Desired.Attachment
	a.Waivers = []attach.Waiver{{Code: attach.MayUserns, Reason: "a browser"}}
	q.Desired.Attachment = &a
	if tells() {
		t.Error("it is told though it is waived")
	}
}

// What is looked at: the programs of the command lines, and files that only their
// owner may use; of a unit that is there.
func TestWhatIsLookedAt(t *testing.T) {
	text := profile("owner /srv/key rw,\nowner /srv/many/* r,\nowner /srv/both r,\n/srv/both r,\n/srv/all r,\ndeny owner /srv/no w,\nowner @{HOMEDIRS}x r,")
	q := question(t, text)
	q.Compiled[0].Sources = map[string][]byte{q.Compiled[0].File: []byte(text)}
	q.Unit.Settings.Exec = append(q.Unit.Settings.Exec, attach.ExecCommand{Property: "ExecStartPre", Path: "/usr/bin/install", Privileged: true}, q.Unit.Settings.Exec[0])
	var looked [][]string
	g := New(nil)
	facts := attach.Facts{User: 1000}
	g.Facts = func(_ attach.Unit, paths []string) attach.Facts {
		looked = append(looked, paths)
		return facts
	}
	g.Ask(q)
	if want := []string{"/srv/key", "/usr/bin/agent", "/usr/bin/install"}; len(looked) != 1 || !slices.Equal(looked[0], want) {
		t.Fatalf("%q", looked)
	}
	// After the policy was let go of, no bytes are needed to know that nothing changed.
	g.LetGo()
	q.Compiled[0].Blob = nil
	if found := besides(g.Ask(q)); len(found) > 0 {
		t.Errorf("%v", found)
	}
	// A file that has another owner by now is another question.
	facts.Files = map[string]attach.File{"/srv/key": {Kind: attach.FileOther, Path: "/srv/key"}}
	q = question(t, text)
	q.Compiled[0].Sources = map[string][]byte{q.Compiled[0].File: []byte(text)}
	if found := besides(g.Ask(q)); !slices.Equal(codes(found), []string{"warning policy-may-not-use-files-of-others"}) {
		t.Errorf("%v", found)
	}
	looked = nil
	q.Unit.LoadState = "not-found"
	g.Ask(q)
	q.Unit = attach.Unit{}
	g.Ask(q)
	if len(looked) > 0 {
		t.Errorf("of no unit: %q", looked)
	}
}

// Walking an automaton is done once for a policy, whatever else changes, also
// after the policy was let go of.
func TestWalksAreKept(t *testing.T) {
	var m memo[int]
	walks := 0
	walk := func() int { walks++; return walks }
	for range 3 {
		if got := m.get(search{"policy", "profile", "a question"}, walk); got != 1 {
			t.Errorf("got %d", got)
		}
	}
	m.get(search{"another", "profile", "a question"}, walk)
	m.get(search{"policy", "another", "a question"}, walk)
	m.get(search{"policy", "profile", "another"}, walk)
	if walks != 4 {
		t.Errorf("walked %d times", walks)
	}
	for n := range 3 * maxFound {
		m.get(search{"policy", "profile", strings.Repeat("x", n%7) + string(rune('a'+n))}, walk)
		if len(m.known) > maxFound {
			t.Fatalf("%d answers are kept", len(m.known))
		}
	}

	q := question(t, profile("/srv/** rw,"), "Deny=write /srv/**", "Deny=write /opt/**")
	g := New(nil)
	first := g.Ask(q)
	searches, verdicts := len(g.searches.known), len(g.verdicts.known)
	g.LetGo()
	q.Desired.Unit, q.Unit.ID = "other.service", "other.service"
	second := g.Ask(q)
	if len(g.searches.known) != searches || len(g.verdicts.known) != verdicts || verdicts != 2 || searches == 0 {
		t.Errorf("%d searches and %d verdicts became %d and %d", searches, verdicts, len(g.searches.known), len(g.verdicts.known))
	}
	if !slices.Equal(codes(first), codes(second)) || len(first) == 0 {
		t.Errorf("%v became %v", first, second)
	}
}
