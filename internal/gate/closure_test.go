package gate

import (
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// withText is a question about a policy whose text is there, too.
func withText(t *testing.T, text string, lines ...string) Question {
	t.Helper()
	q := question(t, text, lines...)
	q.Compiled[0].Sources = map[string][]byte{q.Compiled[0].File: []byte(text)}
	return q
}

// Every name but some is a pattern.
func TestOtherNames(t *testing.T) {
	names := []string{"agent", "agent//sub", "ab", "/usr/bin/a-b[^1]*{x,y}?", "unconfined", "\xff\x01 z\"\\"}
	pattern, err := policydb.ParseName(otherNames(names))
	if err != nil {
		t.Fatal(err)
	}
	try := []string{"a", "agen", "agents", "agent/", "agent/x", "b", "aba", "ab/", "\xff", "\xff\x01 z\"\\/", "unconfine", "unconfinedly", "/usr/bin/a", "/usr/bin/a-b[^1]*{x,y}", "/", "&agent", ":ns:agent", "-", "]"}
	for _, name := range names {
		try = append(try, name, name+"//", name+"//child", name+"//a//b", name[1:], name[:len(name)-1], name+"x")
	}
	for _, s := range try {
		of := slices.ContainsFunc(names, func(n string) bool { return s == n || strings.HasPrefix(s, n+"//") })
		got, err := pattern.MatchString(s)
		if err != nil || got == of {
			t.Errorf("%q: match %v, %v", s, got, err)
		}
	}
}

// What the profile can change to, by whichever rule, is asked about, too.
func TestWhatItLeadsToIsAsked(t *testing.T) {
	const others = "profile helper /usr/bin/help* {\n/mnt/** rw,\n}\nprofile /opt/named {\n/srv/** rw,\n}\n"
	for rule, want := range map[string]string{
		"change_profile -> helper,":                   "helper",
		"change_profile -> h*,":                       "helper",
		"/usr/bin/* Px,":                              "helper",
		"/usr/bin/help px -> helper,":                 "helper",
		"/opt/* px,":                                  "/opt/named",
		"/usr/bin/env Px,":                            "",
		"/usr/bin/* ix,":                              "",
		"/bin/* Cx -> x,\nprofile x {\n/opt/* Px,\n}": "/opt/named",
	} {
		found := besides(ask(t, withText(t, profile(rule)+others, "Deny=write /mnt/**", "Deny=write /srv/**")))
		if (want == "") != (len(found) == 0) || want != "" && found[0].Profile != want {
			t.Errorf("%s: %v", rule, found)
		}
	}
}

// A profile that the attachment does not allow is told, and one that it allows is
// not.
func TestAProfileThatIsNotAllowedIsTold(t *testing.T) {
	const others = "profile helper /usr/bin/help {\n/mnt/** rw,\n}\n"
	for _, c := range []struct {
		rules string
		set   []string
		shows string // "" nothing is told
	}{
		{rules: "/usr/bin/help px,", shows: "runs /usr/bin/help under the profile that attaches to it (px)"},
		{rules: "/usr/bin/help Px -> other,", shows: "runs /usr/bin/help under profile other"},
		{rules: "/usr/bin/help Px -> helper,", set: []string{"AllowProfiles=other"}, shows: "runs /usr/bin/help under profile helper"},
		{rules: "change_profile -> worker-*,", shows: "may change to profile worker-"},
		{rules: "change_profile -> worker-*,", set: []string{"AllowProfiles=worker-1"}, shows: "may change to profile worker-"},
		{rules: "/usr/bin/help px,", set: []string{"AllowProfiles=helper"}},
		{rules: "/usr/bin/help Px -> helper,", set: []string{"AllowProfiles=helper"}},
		{rules: "change_profile -> worker,", set: []string{"AllowProfiles=worker"}},
		{rules: "change_profile -> agent//a,"},
		{rules: "change_profile -> {agent,helper},", set: []string{"AllowProfiles=helper"}},
		{rules: "/usr/bin/help Cx,\nprofile /usr/bin/help {\n}"},
		{rules: "/usr/bin/help ix,"},
		{rules: "/usr/bin/help Px,", set: []string{"Waive=policy-may-change-profile it is meant"}},
	} {
		found := slices.DeleteFunc(ask(t, withText(t, profile(c.rules)+others, c.set...)), func(f attach.Finding) bool { return f.Code != attach.MayChange })
		switch {
		case c.shows == "" && len(found) > 0:
			t.Errorf("%s %q: %v", c.rules, c.set, found)
		case c.shows != "" && (len(found) != 1 || !strings.Contains(found[0].Detail, c.shows) || !strings.Contains(found[0].Detail, "by the rule")):
			t.Errorf("%s %q: %v", c.rules, c.set, found)
		}
	}
}

// The rule that grants what an assertion denies is named, whatever its kind, to who
// attaches and to who only asks.
func TestTheRuleOfEachKindIsNamed(t *testing.T) {
	const granting = "change_profile -> worker,\nsignal send set=(hup),\nsignal receive peer=boss,\nptrace read peer=worker,\nptrace trace peer=boss,\ncapability chown,\nnetwork netlink raw,\n"
	for asked, rule := range map[string]string{
		"change-profile worker":  "change_profile -> worker,",
		"signal send worker":     "signal send set=(hup),",
		"signal receive boss":    "signal receive peer=boss,",
		"ptrace read worker":     "ptrace read peer=worker,",
		"ptrace trace":           "ptrace trace peer=boss,",
		"capability chown":       "capability chown,",
		"network netlink":        "network netlink raw,",
		"write /srv/agent/state": "/srv/agent/* rw,",
	} {
		q := withText(t, profile(granting+"/srv/agent/* rw,"), "Deny="+asked)
		want := "by the rule \"" + rule + "\" (" + q.Compiled[0].File + ":"
		found := slices.DeleteFunc(ask(t, q), func(f attach.Finding) bool { return f.Code != attach.AssertionFailed })
		if len(found) != 1 || !strings.Contains(found[0].Detail, want) {
			t.Errorf("Deny=%s: %v", asked, found)
		}
		r := New(nil).Query(t.Context(), "agent", q.Compiled[0], q.Desired.Attachment.Assertions[0])
		if r.May != attach.MayYes || !strings.Contains(r.Text, want) {
			t.Errorf("query %s: %+v", asked, r)
		}
	}
}
