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
		q := withText(t, profile(rule)+others)
		reached, err := New(nil).Reach(q.Desired, q.Compiled)
		reached = slices.DeleteFunc(reached, func(name string) bool { return attach.TopOf(name) == q.Desired.Profile })
		if err != nil || !slices.Equal(reached, strings.Fields(want)) {
			t.Errorf("%s: reaches %q, %v", rule, reached, err)
		}
		found := besides(ask(t, withText(t, profile(rule)+others, "Deny=write /mnt/**", "Deny=write /srv/**")))
		if (want == "") != (len(found) == 0) || want != "" && found[0].Profile != want {
			t.Errorf("%s: %v", rule, found)
		}
	}
}

// Of policies that define the same profile the first one counts, also in what it attaches to:
// that is how it is asked what takes the place of an accepted one.
func TestWhatAnotherPolicyLeadsTo(t *testing.T) {
	const px, other, helper = "/usr/bin/helper Px,", "profile a {\n/x r,\n}\n", "profile a /usr/bin/helper {\n/x r,\n}\n"
	for what, c := range map[string]struct{ was, now string }{
		"it attaches":   {profile(px) + other, helper},
		"a rule for it": {profile("") + helper, profile(px)},
	} {
		was, now := withText(t, c.was), withText(t, c.now)
		for _, s := range []struct {
			policies []attach.Compiled
			want     []string
		}{
			{was.Compiled, []string{"agent"}},
			{slices.Concat(now.Compiled, was.Compiled), []string{"agent", "a"}},
			{slices.Concat(was.Compiled, now.Compiled), []string{"agent"}},
		} {
			if got, err := New(nil).Reach(was.Desired, s.policies); err != nil || !slices.Equal(got, s.want) {
				t.Errorf("%s: %q, want %q, %v", what, got, s.want, err)
			}
		}
	}
}

// A profile that the attachment does not allow is told, and one that it allows is
// not.
func TestAProfileThatIsNotAllowedIsTold(t *testing.T) {
	const others = "profile helper /usr/bin/help {\n/mnt/** rw,\n}\nprofile a /usr/bin/a {\n}\nprofile /usr/bin/tool {\n}\n"
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
		{rules: "/usr/bin/a Px,\n/usr/bin/help Px,", set: []string{"AllowProfiles=a"}, shows: "runs /usr/bin/help under the profile that attaches to it"},
		{rules: "/usr/bin/{a,help} Px,", set: []string{"AllowProfiles=a helper"}},
		{rules: "/usr/bin/{help,tool} Px,", set: []string{"AllowProfiles=helper /usr/bin/tool"}},
		{rules: "/usr/bin/* Px,", set: []string{"AllowProfiles=a helper"}, shows: "under the profile that attaches to it"},
		{rules: "/usr/bin/help Px,\nprofile help /usr/bin/help {\n}", shows: "runs /usr/bin/help under the profile that attaches to it"},
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

// A profile that confines nobody does not pass, whatever its name is made of; who wants
// complain mode gets it.
func TestModes(t *testing.T) {
	const variable = "@{exec_path}=/usr/bin/agent\nprofile agent /usr/bin/agent {\n  /bin/sh Cx -> sh,\n  change_profile -> @{exec_path},\n}\nprofile @{exec_path} {\n  profile sh flags=(complain) {\n  }\n}\n"
	for _, c := range []struct {
		name, text, want string
		complain         bool
		shows            string
	}{
		{name: "its own", text: "profile agent flags=(complain) {\n}\n", want: "error profile-complain", shows: "profile agent is in complain mode"},
		{name: "wanted so", text: "profile agent flags=(complain) {\n}\n", complain: true},
		{name: "a child", text: "profile agent {\n  /bin/sh Cx -> sh,\n  profile sh flags=(complain) {\n  }\n}\n", want: "error profile-complain", shows: "profile agent//sh is"},
		{name: "a hat", text: "profile agent {\n  ^hat flags=(complain) {\n  }\n}\n", want: "error profile-complain", shows: "profile agent//hat is"},
		{name: "a child of a name with a variable", text: variable, want: "error profile-complain", shows: "profile /usr/bin/agent//sh is"},
		{name: "unconfined", text: "profile agent {\n  /bin/sh Cx -> sh,\n  profile sh flags=(unconfined) {\n  }\n}\n", want: "error profile-unconfined", shows: "agent//sh"},
		{name: "unconfined all the same", text: "profile agent {\n  profile sh flags=(unconfined) {\n  }\n}\n", complain: true, want: "error profile-unconfined", shows: "agent//sh"},
		{name: "a stranger", text: "profile agent {\n}\nprofile other flags=(complain) {\n}\n"},
	} {
		q := question(t, c.text)
		q.Unit = attach.Unit{}
		if c.complain {
			q.Desired.Attachment.Mode = attach.WishComplain
		}
		found := besides(ask(t, q))
		switch {
		case c.want == "" && len(found) > 0, c.want != "" && !slices.Equal(codes(found), []string{c.want}):
			t.Errorf("%s: %v", c.name, found)
		case c.want != "" && (!strings.Contains(found[0].Detail, c.shows) || found[0].Next == ""):
			t.Errorf("%s: %v", c.name, found)
		}
	}
	// The parser of Debian 12 makes none in prompt mode.
	q := question(t, "profile agent {\n}\n")
	a := &asking{Question: q, policies: q.Compiled}
	a.mode(&policydb.Profile{Name: "agent", Mode: policydb.Prompt})
	if len(a.found) != 1 || a.found[0].Severity != attach.Error || a.found[0].Code != attach.ProfileComplain || a.found[0].Where != "/etc/apparmor.d/agent:1" {
		t.Errorf("prompt mode: %v", a.found)
	}
}
