package attach

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseAssertion(t *testing.T) {
	for value, want := range map[string]Assertion{
		"write /tmp/**":                 {Class: AssertFile, Access: []string{"write"}, Object: "/tmp/**"},
		"rw /tmp/**":                    {Class: AssertFile, Access: []string{"read", "write"}, Object: "/tmp/**"},
		"exec,read,read /bin/*":         {Class: AssertFile, Access: []string{"read", "exec"}, Object: "/bin/*"},
		"owner wl /srv/{a,b}/[^c]*":     {Class: AssertFile, Access: []string{"write", "link"}, Owner: "owner", Object: "/srv/{a,b}/[^c]*"},
		`other  read   "/srv/a b/**"`:   {Class: AssertFile, Access: []string{"read"}, Owner: "other", Object: "/srv/a b/**"},
		"write @{exec}":                 {Class: AssertFile, Access: []string{"write"}, Object: ExecVariable},
		"network":                       {Class: AssertNetwork},
		"network unix":                  {Class: AssertNetwork, Family: "unix"},
		"network inet stream":           {Class: AssertNetwork, Family: "inet", Type: "stream"},
		"capability CAP_SYS_ADMIN":      {Class: AssertCapability, Object: "sys_admin"},
		"capability":                    {Class: AssertCapability},
		"signal send unconfined":        {Class: AssertSignal, Access: []string{"send"}, Object: "unconfined"},
		"signal sender":                 {Class: AssertSignal, Object: "sender"},
		"ptrace trace":                  {Class: AssertPtrace, Access: []string{"trace"}},
		`change-profile "my worker//*"`: {Class: AssertChange, Object: "my worker//*"},
		"userns":                        {Class: AssertUserns},
	} {
		want.Deny, want.Text = true, strings.Join(strings.Fields(value), " ")
		got, err := ParseAssertion(true, value)
		if err != nil {
			t.Errorf("%s: %v", value, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", value, d)
		}
	}
	for value, want := range map[string]string{
		"":                    "it says nothing",
		"write":               "say what and where",
		"write /a /b":         "say what and where",
		"write tmp":           "begins with",
		"fly /tmp":            `"fly" is no access`,
		"write, /tmp":         "between two commas",
		"network inet x y":    "one word too many",
		"userns please":       "one word too many",
		`write "/tmp`:         "not closed",
		"write /tmp/\x1b[31m": "control character",
		"own write /tmp/**":   "say what and where",
	} {
		if a, err := ParseAssertion(false, value); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v (%+v), want %q", value, err, a, want)
		}
	}
}

func TestSetAssertion(t *testing.T) {
	a := NewAttachment()
	set := func(key, value string) error { return a.SetAssertion(key, value, 7) }
	for _, kv := range [][2]string{{"Deny", "write /a"}, {"Allow", "read /b"}, {"Deny", "network unix"}, {"Waive", "policy-may-leave-profile  operators "}} {
		if err := set(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	if len(a.Assertions) != 3 || a.Assertions[2].Line != 7 || !a.Assertions[2].Deny || a.Assertions[1].Deny {
		t.Errorf("%+v", a.Assertions)
	}
	if w := a.Waived(MayLeave); w == nil || w.Reason != "operators" || a.Waived(MayWriteTmp) != nil {
		t.Errorf("%+v", w)
	}
	for kv, want := range map[[2]string]string{
		{"Waive", "policy-may-leave-profile"}: "a reason is missing",
		{"Waive", "task-unconfined because"}:  "no built-in assertion",
		{"Waive", "policy-may-fly because"}:   "no built-in assertion",
		{"Waive", "assertion-failed because"}: "no built-in assertion",
		{"Forbid", "write /a"}:                "unknown key",
		{"Deny", "write relative"}:            "begins with",
	} {
		if err := set(kv[0], kv[1]); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", kv, err, want)
		}
	}
	if err := set("Deny", ""); err != nil || len(a.Assertions) != 1 || a.Assertions[0].Deny {
		t.Errorf("Deny= takes back what was denied: %v %+v", err, a.Assertions)
	}
	if err := set("Waive", ""); err != nil || a.Waivers != nil {
		t.Errorf("Waive= takes back: %v %+v", err, a.Waivers)
	}
}

func FuzzParseAssertion(f *testing.F) {
	for _, s := range []string{"write /tmp/**", "owner rw,exec \"/a b\"", "network inet stream", "capability CAP_X", "signal send **", "change-profile x", "userns", "x", "\"", ",", "write /\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAssertion(true, s)
		if err != nil {
			return
		}
		if a.Class == "" || printable(a.Text) != a.Text && !strings.ContainsAny(s, "\u00a0\u0085") {
			t.Errorf("%q: %+v", s, a)
		}
		if a.Class == AssertFile && (len(a.Access) == 0 || a.Object == "") {
			t.Errorf("%q: %+v", s, a)
		}
		// What is written out means the same when it is read again.
		b, err := ParseAssertion(true, a.Text)
		if err != nil {
			return // blanks within quotes were made single
		}
		b.Text = a.Text
		if !strings.Contains(s, `"`) && cmp.Diff(a, b) != "" {
			t.Errorf("%q reads as %+v, then %+v", s, a, b)
		}
	})
}
