package policydb

import (
	"math/rand/v2"
	"strings"
	"testing"
)

func TestSameWays(t *testing.T) {
	const rest = "profile sub {\n/etc/sub r,\n}\n^hat {\n/etc/hat r,\n}\n"
	agent := func(rules string) string { return "profile agent /usr/bin/agent {\n" + rules + "\n" + rest + "}\n" }
	const other = "profile other /usr/bin/other {\n/etc/** r,\n}\n"
	for _, c := range []struct {
		was, is string
		want    Answer
	}{
		{agent("/etc/a r,"), agent("/etc/a rw, /srv/** rwk, capability chown, network inet,"), Yes},
		{agent("/x Cx -> sub,"), agent("/x Cx -> sub, /etc/b r, deny /etc/c w, owner /home/** mr,"), Yes},
		{agent("/x Cx -> sub,"), agent("/x ix,"), No},
		{agent("/x Cx -> sub,"), agent(""), No},
		{agent("/x Cx -> sub,"), agent("/x Cx -> sub, deny /x x,"), No},
		{agent("/x ux,"), agent("/x Cx -> sub,"), No},
		{agent("/x ix,"), agent("/x Px,"), No},
		{agent("/x px,"), agent("/x pix,"), No},
		{agent("/x px -> other,"), agent("/x px -> others,"), No},
		{agent("/x px -> other, /y cx -> sub,"), agent("/y cx -> sub, /x px -> other,"), Yes},
		{agent("/{x,y} cx -> sub,"), agent("/x cx -> sub, /y cx -> sub,"), Yes},
		{agent("/{x,y} cx -> sub,"), agent("/[xz] cx -> sub,"), No},
		{agent("/x* px,"), agent("/x px,"), No},
		{agent("/x px,"), agent("owner /x px,"), No},
		{agent(""), agent("/x ix,"), Yes}, // it leads nowhere
		{agent("/x ix,"), agent("deny /x x,"), Yes},
		{agent(""), agent("change_profile -> other,"), No},
		{agent("change_profile -> other,"), agent("change_profile -> othe?,"), No},
		{agent("change_profile /x -> other,"), agent("change_profile /y -> other,"), No},
		{agent("change_profile /x -> other, /etc/a r,"), agent("/etc/b r, change_profile /x -> other,"), Yes},
		{agent("link /a -> /b,"), agent("link /a -> /c,"), Yes},
		{agent(""), "profile agent /usr/bin/agent {\nprofile sub {\n/etc/sub r,\n}\n}\n", No},
		{agent(""), agent("profile new {\n}"), No},
		{agent(""), strings.Replace(agent(""), "^hat", "profile hat", 1), No},
		{agent(""), strings.Replace(agent(""), "/usr/bin/agent", "/usr/bin/agent*", 1), No},
		{agent(""), strings.Replace(agent(""), " /usr/bin/agent", "", 1), No},
		{agent(""), strings.Replace(agent(""), "/usr/bin/agent {", "/usr/bin/agent flags=(complain) {", 1), No},
		{agent("") + other, other + agent("/etc/b r,"), Yes},
		{agent("") + other, agent(""), No},
		{"profile a {\ncapability chown,\n}\n", "profile a {\n/x r,\n}\n", Yes},
		{"profile a {\ncapability chown,\n}\n", "profile a {\n/x px,\n}\n", No},
	} {
		was, is := parsed(t, c.was), parsed(t, c.is)
		for _, way := range [][2][]Profile{{was, is}, {is, was}} {
			if got := SameWays(way[0], way[1]); got != c.want {
				t.Errorf("%s\nand\n%s: %s, want %s", c.was, c.is, got, c.want)
			}
		}
		if got := SameWays(was, was); got != Yes {
			t.Errorf("%s and itself: %s", c.was, got)
		}
	}
	unread := parsed(t, agent(""))
	unread[0].Unread = []string{"news"}
	if got := SameWays(unread, unread); got != Unknown {
		t.Errorf("what is not understood: %s", got)
	}
}

// What is said to be the same is so for each name.
func TestSameWaysIsWhatEachNameSays(t *testing.T) {
	rules := []string{"/a* px,", "/ab ix,", "/a[b-d]c cx -> sub,", "owner /b/** ux,", "deny /ac x,", "/b/*/c Pix -> other,",
		"change_profile -> o*,", "change_profile /a* -> other,", "/** r,", "/b/** w,", "link /ab -> /b/*,"}
	r := rand.New(rand.NewPCG(1, 2))
	text := func() string {
		var b strings.Builder
		b.WriteString("profile p {\n")
		for _, rule := range rules {
			if r.IntN(2) == 0 {
				b.WriteString(rule + "\n")
			}
		}
		return b.String() + "profile sub {\n/etc/sub r,\n}\n}\n"
	}
	var all []Profile
	var texts []string
	for range 40 {
		s := text()
		out, err := run(t, write(t, s))
		if err != nil {
			continue // rules that contradict each other
		}
		read, err := Parse(out)
		if err != nil {
			t.Fatal(err)
		}
		all, texts = append(all, read[0]), append(texts, s)
	}
	if len(all) < 10 {
		t.Fatalf("only %d compile", len(all))
	}
	names := []string{""}
	for i := range all {
		for _, s := range all[i].Sample(1000) {
			names = append(names, string(s))
		}
	}
	same := 0
	for i := range all {
		for j := range all {
			want := Yes
			for _, name := range names {
				for _, who := range []Who{Owner, Other} {
					if lead(&all[i], name, who) != lead(&all[j], name, who) {
						want = No
					}
				}
			}
			if want == Yes && i != j {
				same++
			}
			if got := all[i].sameWays(&all[j]); got != want {
				t.Fatalf("%s\nand\n%s: %s, want %s", texts[i], texts[j], got, want)
			}
		}
	}
	if same == 0 {
		t.Error("no two are the same")
	}
}

// lead is what SameWays compares, of one name.
func lead(p *Profile, name string, who Who) (out [3]string) {
	if x, a := p.Exec(name, who); a == Yes && x.Kind != ExecInherit {
		out[0] = x.String()
	}
	f, _ := p.File(name, who)
	out[1], out[2] = (f.Allow & ChangeProfile).String(), (f.Allow & OnExec).String()
	return out
}

func parsed(t *testing.T, text string) []Profile {
	t.Helper()
	all, err := Parse(compile(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return all
}
