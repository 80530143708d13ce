package apparmor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

func TestParseAnswer(t *testing.T) {
	const good = "allow 0x00000204\ndeny 0x00000000\naudit 0xffffffff\nquiet 0x0000000a\n"
	r, err := parseAnswer([]byte(good))
	if err != nil || r != (policydb.Raw{Allow: 0x204, Audit: 0xffffffff, Quiet: 10}) {
		t.Errorf("%+v %v", r, err)
	}
	for _, bad := range []string{
		"", "allow", good[:len(good)-1], good[1:], good + "x", good + "\n",
		strings.Replace(good, "0x0000000a", "0x", 1), strings.Replace(good, "0x0000000a", "0x00000000a", 1),
		strings.Replace(good, "deny", "audit", 1), strings.Replace(good, "0x0000000a", "0x0000000A", 1), strings.Replace(good, "0x0000000a", "0x-1", 1),
		strings.Replace(good, "\n", "\r\n", 1), strings.Replace(good, "\n", "\x00", 1),
	} {
		if r, err := parseAnswer([]byte(bad)); err == nil || r != (policydb.Raw{}) {
			t.Errorf("%q: %+v", bad, r)
		}
	}
	if !Unmediated(policydb.Raw{Allow: 0xffffffff, Quiet: 0xffffffff}) || Unmediated(policydb.Raw{Allow: 0xffffffff}) || Unmediated(policydb.Raw{}) {
		t.Error("Unmediated")
	}
}

func FuzzParseAnswer(f *testing.F) {
	f.Add([]byte("allow 0x00000204\ndeny 0x00000000\naudit 0xffffffff\nquiet 0x0000000a\n"))
	f.Fuzz(func(_ *testing.T, in []byte) { _, _ = parseAnswer(in) })
}

func TestAskable(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "/usr/bin/a": true, "a//b": true, "a b": true, "ä": true, "a:b": true, "a&b": true, "a//": true,
		"": false, "a\x00b": false, "a\nb": false, ":a": false, ":ns:a": false, ":ns://a": false, "&a": false, " a": false, "\ta": false, "a//&b": false,
		"a//&:host:b": false,
	} {
		err := askable("aaunit-1-x", name)
		if (err == nil) != want || err != nil && !errors.Is(err, ErrCannotAsk) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if askable("a:b", "c") == nil || askable("a/b", "c") == nil || askable("a\x00", "c") == nil {
		t.Error("a namespace's name")
	}
}

// A kernel that cannot be asked, and one that answers nonsense.
func TestNoQueries(t *testing.T) {
	h := newHost(t)
	file := h.profile("a", "profile a { /a r, }\n")
	done, problems := h.Compile(ctx(t), []string{file}, false)
	if len(done) != 1 {
		t.Fatal(problems)
	}
	try := func(want error) {
		t.Helper()
		_, err := h.Ask(ctx(t), "a", []Question{{policydb.ClassFile, []byte("/a"), policydb.Owner}})
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("Ask: %v", err)
		}
		c := done[0]
		h.examine(ctx(t), "aaunit-1-x", []*attach.Compiled{&c})
		if c.NotAsked == "" || c.Asked != 0 || c.Disagrees != "" {
			t.Errorf("Asked = %d, NotAsked = %q, Disagrees = %q", c.Asked, c.NotAsked, c.Disagrees)
		}
		t.Log(err)
	}
	try(ErrNoQueries)
	h.symlink("/dev/null", securityDir+"/.access")
	try(ErrNoQueries)
	if err := os.Remove(h.real(securityDir + "/.access")); err != nil {
		t.Fatal(err)
	}
	h.write(securityDir+"/.access", "")
	try(nil)
	if _, err := h.Ask(ctx(t), "a", nil); err != nil {
		t.Errorf("no question: %v", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := h.Ask(over, "a", []Question{{policydb.ClassFile, []byte("/a"), policydb.Owner}}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestQuestions(t *testing.T) {
	h := newHost(t)
	h.write("/etc/apparmor.d/a", "")
	file := h.profile("a", "profile a { /a r, /srv/odd/*/x w, owner /srv/own ix, network inet stream, }\nprofile b flags=(unconfined) { }\n")
	done, problems := h.Compile(ctx(t), []string{file}, false)
	if len(done) != 1 {
		t.Fatal(problems)
	}
	profiles, err := policydb.Parse(done[0].Blob)
	if err != nil || len(profiles) != 2 {
		t.Fatal(err)
	}
	seen := map[string]int{}
	var qs []Question
	for i := (&inquiry{p: &profiles[0]}); ; {
		some := i.next()
		if len(some) == 0 {
			break
		}
		if len(some) > portion {
			t.Errorf("%d questions at once", len(some))
		}
		qs = append(qs, some...)
	}
	for _, q := range qs {
		seen[q.String()]++
		if _, known := profiles[0].Query(q.Class, q.Data, q.As); !known {
			t.Errorf("the compiled policy does not answer %s", q)
		}
	}
	for _, want := range []string{`file "/etc/shadow" of the owner`, `file "/etc/shadow" of the other`, `file "/srv/odd/a/x" of the other`, `file "/srv/own" of the owner`} {
		if seen[want] != 1 {
			t.Errorf("%s is asked %d times", want, seen[want])
		}
	}
	if len(qs) > maxAsked+askFamilies*askTypes {
		t.Errorf("%d questions", len(qs))
	}
	if len(places()) != 12 {
		t.Errorf("%d places", len(places()))
	}
}

func TestDiffer(t *testing.T) {
	h := newHost(t)
	file, socket := Question{policydb.ClassFile, []byte("/\x1b[1m"), policydb.Other}, Question{policydb.ClassNetV8, []byte{0, 2, 0, 1}, policydb.Owner}
	none := policydb.Raw{}
	all := policydb.Raw{Allow: 0xffffffff, Quiet: 0xffffffff}
	lock, read := policydb.Raw{Allow: uint32(policydb.Lock)}, policydb.Raw{Allow: uint32(policydb.Read)}
	quiet := policydb.Raw{Quiet: uint32(policydb.Read)}
	for _, c := range []struct {
		q              Question
		kernel, policy policydb.Raw
		want           string
	}{
		{file, none, none, ""}, {file, read, read, ""}, {file, all, all, ""}, {socket, all, all, ""},
		{socket, lock, none, ""}, {socket, none, lock, ""},
		{file, lock, none, "the kernel answers lock where the compiled policy says none"},
		{socket, read, lock, "the kernel answers read where the compiled policy says none"},
		{socket, all, read, "the kernel answers that it is not mediated where the compiled policy says read"},
		{socket, read, all, "the kernel answers read where the compiled policy says that it is not mediated"},
		{socket, policydb.Raw{Allow: 0xffffffff}, all, "the kernel answers exec"},
		{file, policydb.Raw{Deny: 4}, none, "the kernel answers none"},
		{file, quiet, none, ""}, // what the kernel is told to log is not known here
	} {
		if d := h.differ(c.q, c.kernel, c.policy); (d == "") != (c.want == "") || !strings.HasPrefix(d, c.want) {
			t.Errorf("%s: %+v and %+v: %q", c.q, c.kernel, c.policy, d)
		}
	}
	h.write(paramDir+"/audit", "quiet\n")
	if d := h.differ(file, quiet, none); d != "" {
		t.Error(d)
	}
	h.write(paramDir+"/audit", "normal\n")
	if d := h.differ(file, quiet, none); !strings.Contains(d, "quiet about read") {
		t.Error(d)
	}
	if s := file.String(); strings.ContainsRune(s, 0x1b) {
		t.Errorf("%q", s)
	}
}

func TestSweepStaging(t *testing.T) {
	h := newHost(t)
	dir := securityDir + "/policy/namespaces/"
	h.mkdir(procDir + "/77")
	for _, n := range []string{"aaunit-77-a", "aaunit-78-a", "aaunit-x-a", "other"} {
		h.mkdir(dir + n)
	}
	h.SweepStaging()
	for n, want := range map[string]bool{"aaunit-77-a": true, "aaunit-78-a": false, "aaunit-x-a": true, "other": true} {
		if _, err := os.Stat(h.real(dir + n)); errors.Is(err, fs.ErrNotExist) == want {
			t.Errorf("%s: %v", n, err)
		}
	}
}
