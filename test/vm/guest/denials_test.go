//go:build vm

package guest

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// denialsOf asks aaunitctl what was denied.
func denialsOf(t testing.TB, args ...string) (attach.DenialReport, result) {
	t.Helper()
	r := ctl(t, append([]string{"denials", "--json"}, args...)...)
	var doc attach.DenialReport
	if err := json.Unmarshal([]byte(r.stdout), &doc); err != nil {
		t.Fatalf("aaunitctl denials %s: %v\n%s%s", strings.Join(args, " "), err, r.stdout, r.stderr)
	}
	return doc, r
}

// waitDenial waits until a unit shows a denial of that name.
func waitDenial(t testing.TB, unit, name string) attach.SeenDenial {
	t.Helper()
	var found attach.SeenDenial
	waitFor(t, "the denial of "+name, func() (bool, string) {
		doc, r := denialsOf(t, unit)
		for _, u := range doc.Units {
			for _, d := range u.Denials {
				if u.Unit == unit && d.Name == name {
					found = d
					return true, ""
				}
			}
		}
		return false, r.stdout + r.stderr
	})
	return found
}

// TestDenials: what units are denied is shown with the rule that allows it, to
// those who may read logs; whatever a denied program calls itself and its files.
// On every suite.
func TestDenials(t *testing.T) {
	const (
		secret = "/srv/vm-denials/secret/"
		bin    = "/srv/vm-denials/bin/"
		// A name can be 15 bytes long in a record, a path longer.
		comm   = "\x1b[31m\"\n='DENIED"
		forged = "a\" \napparmor=\"DENIED\" operation=\"open\" profile=\"den-other\" name=\"\u202eetc-forged\x1b]0;owned\a*?{b}[c]@{HOME}"
	)
	a := newAgents(t)
	t.Cleanup(func() { os.RemoveAll("/srv/vm-denials") })
	for _, dir := range []string{secret, bin} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"plain", "second", "let-pass", forged} {
		if err := os.WriteFile(secret+name, []byte("x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bin+comm, cat, 0o755); err != nil {
		t.Fatal(err)
	}
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	if err := os.WriteFile(bin+"script", []byte(quote(bin+comm)+" "+quote(secret+forged)+"\nexit 0\n"), 0o755); err != nil {
		t.Fatal(err)
	}

	rules := []string{"/{usr/,}bin/{da,}sh mrix,", bin + "** mrix,"}
	a.ProfileFile("den-one", profileText("den-one", rules...))
	a.ProfileFile("den-other", profileText("den-other"))
	a.ProfileFile("den-complain", profileText("den-complain"))
	a.Unit("den-one.service", a.agentUnit("User=nobody"))
	one := port(a.port)
	a.Unit("den-other.service", a.agentUnit())
	a.Unit("den-complain.service", a.agentUnit())
	complain := port(a.port)
	a.Reload()
	run(t, "systemctl", "start", "den-one", "den-other", "den-complain")
	if r := ctl(t, "attach", "den-one", "den-other"); r.exit != 0 {
		t.Fatalf("attach: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if r := ctl(t, "attach", "den-complain", "--complain"); r.exit != 3 {
		t.Fatalf("attach --complain: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// Unit, path, rule.
	if got := ask(t, one, "read "+secret+"plain"); !strings.HasPrefix(got, "error") {
		t.Fatalf("the profile lets it read: %s", got)
	}
	d := waitDenial(t, "den-one.service", secret+"plain")
	if d.Unit != "den-one.service" || d.Allowed || d.Profile != "den-one" || d.Proposal.Rule != secret+"plain r," || d.Proposal.Profile != "den-one" {
		t.Errorf("%+v", d)
	}
	r := ctl(t, "denials", "den-o*")
	for _, word := range []string{"den-one.service", "den-other.service", secret + "plain", "vm-agent", "DENIED", secret + "plain r,"} {
		if !strings.Contains(r.stdout, word) || r.exit != 0 {
			t.Errorf("exit %d, it does not say %q:\n%s%s", r.exit, word, r.stdout, r.stderr)
		}
	}
	if got := ask(t, complain, "read "+secret+"let-pass"); !strings.HasPrefix(got, "ok") {
		t.Errorf("complain mode does not let it read: %s", got)
	}
	if d := waitDenial(t, "den-complain.service", secret+"let-pass"); !d.Allowed || d.Proposal.Rule == "" {
		t.Errorf("%+v", d)
	}
	if r := ctl(t, "denials", "den-complain"); !strings.Contains(r.stdout, "ALLOWED") {
		t.Errorf("exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if doc, _ := denialsOf(t, "den-one", "--since", "2100-01-01"); len(doc.Units) != 1 || len(doc.Units[0].Denials) != 0 {
		t.Errorf("since the future: %+v", doc.Units)
	}
	if r := ctl(t, "denials", "den-none"); r.exit != 4 {
		t.Errorf("of no unit: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}
	if got := complete(t, "aaunitctl", "denials", "den-o"); !slices.Equal(got, []string{"den-one.service", "den-other.service"}) {
		t.Errorf("bash completes den-o to %q", got)
	}

	// Who may read.
	run(t, "useradd", "--system", "--groups", "adm", "vm-den-adm")
	t.Cleanup(func() { try0("userdel", "vm-den-adm") })
	as := func(user string, args ...string) result {
		t.Helper()
		return try(t, "runuser", append([]string{"-u", user, "--"}, args...)...)
	}
	for _, args := range [][]string{
		{"aaunitctl", "denials", "den-one"},
		{"aaunitctl", "denials", "den-one", "--follow"},
		{"busctl", "call", "org.aaunit1", "/org/aaunit1", "org.aaunit1.Manager", "Denials", "ast", "0", "0"},
		{"busctl", "call", "org.aaunit1", "/org/aaunit1", "org.aaunit1.Manager", "WaitDenials", "ass", "0", ""},
	} {
		says := "group adm"
		if args[0] == "busctl" {
			says = "Access denied" // whatever the service says besides
		}
		if r := as("nobody", args...); r.exit != 1 || !strings.Contains(r.stderr, says) || strings.Contains(r.stdout+r.stderr, secret) {
			t.Errorf("%q as nobody: exit %d\n%s%s", args, r.exit, r.stdout, r.stderr)
		}
	}
	if r := as("vm-den-adm", "aaunitctl", "denials", "den-one"); r.exit != 0 || !strings.Contains(r.stdout, secret+"plain r,") {
		t.Errorf("as a member of adm: exit %d\n%s%s", r.exit, r.stdout, r.stderr)
	}

	// What comes is told to who follows.
	out, err := os.Create(filepath.Join(t.TempDir(), "followed"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	follow := exec.Command("aaunitctl", "denials", "den-one", "--follow")
	follow.Stdout, follow.Stderr = out, out
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	says := func(word string) {
		t.Helper()
		waitFor(t, word+" from who follows", func() (bool, string) {
			text := read(t, out.Name())
			return strings.Contains(text, word), text
		})
	}
	says(secret + "plain r,")
	if got := ask(t, one, "read "+secret+"second"); !strings.HasPrefix(got, "error") {
		t.Errorf("the profile lets it read: %s", got)
	}
	says(secret + "second r,")

	// Names that would be fields, lines, and what a terminal obeys.
	if got := ask(t, one, "exec /bin/sh "+bin+"script"); !strings.HasPrefix(got, "ok") {
		t.Errorf("the script: %s", got)
	}
	d = waitDenial(t, "den-one.service", secret+forged)
	if d.Unit != "den-one.service" || d.Comm != comm || d.Profile != "den-one" || d.Operation != "open" || !strings.HasSuffix(d.Proposal.Rule, `" r,`) {
		t.Errorf("%+v", d)
	}
	says(`apparmor=`)
	if err := follow.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("an interrupted --follow: %v", err)
	}
	doc, _ := denialsOf(t)
	for _, u := range doc.Units {
		for _, d := range u.Denials {
			if d.Profile == "den-other" && u.Unit == "den-one.service" || u.Unit == "den-other.service" && d.Profile == "den-other" && strings.Contains(d.Name, "forged") {
				t.Errorf("a name is taken for a record: %+v", d)
			}
		}
	}
	for what, text := range map[string]string{
		"denials": ctl(t, "denials").stdout, "denials --json": ctl(t, "denials", "--json").stdout,
		"--follow": read(t, out.Name()), "status": ctl(t, "status").stdout,
	} {
		for _, r := range text {
			if r < ' ' && r != '\n' || r == 0x7f || r == '\u202e' {
				t.Errorf("%s prints %q", what, r)
			}
		}
	}

	// The proposed rules, hostile name and all, are what allows it.
	rules = append(rules, secret+"plain r,", d.Proposal.Rule)
	a.ProfileFile("den-one", profileText("den-one", rules...))
	waitFor(t, "the profile with the proposed rules", func() (bool, string) {
		got := ask(t, one, "read "+secret+"plain")
		return strings.HasPrefix(got, "ok"), got
	})
	if got := ask(t, one, "exec /bin/sh "+bin+"script"); !strings.Contains(got, `x\n`) || strings.Contains(got, "denied") {
		t.Errorf("the script under the proposed rule: %s", got)
	}
	if got := ask(t, one, "read "+secret+"second"); !strings.HasPrefix(got, "error") {
		t.Errorf("the rules allow more than was denied: %s", got)
	}
	for _, u := range []string{"den-one", "den-other"} {
		if r := ctl(t, "verify", u); r.exit != 0 {
			t.Errorf("verify %s: exit %d\n%s%s", u, r.exit, r.stdout, r.stderr)
		}
	}
}
