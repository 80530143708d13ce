package policydb

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

func TestPattern(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, not []string
	}{
		{"/a", []string{"/a"}, []string{"/", "/a/", "/ab", "a", ""}},
		{"/a/", []string{"/a/"}, []string{"/a"}},
		{"/*", []string{"/a", "/a.b", "/...", "/.a"}, []string{"/", "/a/", "/a/b", "/.", "/.."}},
		{"/a*", []string{"/a", "/ab"}, []string{"/a/"}},
		{"/a/*/", []string{"/a/b/"}, []string{"/a//", "/a/", "/a/b"}},
		{"/a/**", []string{"/a/b", "/a/b/", "/a/b/c"}, []string{"/a/", "/a", "/a//b", "/a/../b", "/a/."}},
		{"/a**", []string{"/a", "/a/", "/a/b", "/ab"}, []string{"/"}},
		{"/a/{*,b}", []string{"/a/", "/a/b", "/a/c"}, []string{"/a"}}, // as the parser has it
		{"/{a,b{c,d}}", []string{"/a", "/bc", "/bd"}, []string{"/b", "/"}},
		{"/a{,/b}", []string{"/a", "/a/b"}, []string{"/b"}},
		{"/a?c", []string{"/abc"}, []string{"/a/c", "/ac"}},
		{"/[ab]", []string{"/a", "/b"}, []string{"/c"}},
		{"/[^ab]", []string{"/c", "/^"}, []string{"/a"}},
		{"/a[^b]c", []string{"/a/c", "/adc"}, []string{"/abc"}},
		{"/[a-c]", []string{"/b"}, []string{"/d", "/-"}},
		{"/[c-a]", []string{"/b"}, []string{"/d"}},
		{"/[-a]", []string{"/-", "/a"}, []string{"/b"}},
		{`/\*`, []string{"/*"}, []string{"/a"}},
		{`/\x41\102\d067`, []string{"/ABC"}, nil},
		{`/\x2a`, []string{"/*"}, []string{"/a"}},
		{`/a\,b,c`, []string{"/a,b,c"}, nil},
		{`/a.b`, []string{"/a.b"}, []string{"/axb"}},
		{`/[\]]`, []string{"/]"}, nil},
		{"//a", nil, []string{"/a", "//a"}},
		{"///a", []string{"/a"}, nil},
		{"/a///b", []string{"/a/b"}, nil},
		{`"/a b"`, []string{"/a b"}, nil},
		{"{/a,/b}**", []string{"/a", "/b/c"}, nil},
		{"/", []string{"/"}, nil},
		{"**", []string{"/", "/a", "/a/"}, []string{"a"}},
		{"/\xc3\xbc", []string{"/ü"}, nil},
	} {
		p := pattern(t, c.pattern)
		for _, s := range c.yes {
			if ok, err := p.Match(s); !ok || err != nil {
				t.Errorf("%s does not match %q: %v", c.pattern, s, err)
			}
		}
		for _, s := range c.not {
			if ok, err := p.Match(s); ok || err != nil {
				t.Errorf("%s matches %q: %v", c.pattern, s, err)
			}
		}
	}
}

// Names are no paths.
func TestName(t *testing.T) {
	for _, c := range []struct {
		pattern  string
		yes, not []string
	}{
		{"a//b", []string{"a//b"}, []string{"a/b", "a///b", ""}},
		{"a//*", []string{"a//b"}, []string{"a//", "a//b/c"}},
		{"**", []string{"a", "a//b", "", "/"}, []string{"a\x00b"}},
		{":n:a", []string{":n:a"}, nil},
	} {
		p, err := ParseName(c.pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range c.yes {
			if ok, err := p.MatchString(s); !ok || err != nil {
				t.Errorf("%s does not match %q: %v", c.pattern, s, err)
			}
		}
		for _, s := range c.not {
			if ok, err := p.MatchString(s); ok || err != nil {
				t.Errorf("%s matches %q: %v", c.pattern, s, err)
			}
		}
	}
}

// What is refused, the parser refuses as well, and the other way round.
func TestPatternRefused(t *testing.T) {
	for glob, here := range map[string]bool{
		"/{a}": true, "/{a": true, "/a}": true, "/[a": true, "/a]": true, "/[]": true, "/[^]": true, "/[]a]": true, "/{}": true,
		"/[a-]": true, "/[a-b-c]": true, "/[--]": true, "/[^^-x]": true, `/a\`: true,
		"/[^^]": false, "/[^^a]": false, "/[a^]": false, "/[{a,b}]": false, "/{,}": false, "/{a,,b}": false, "/a{b,c{d,e}f}g": false, "/[-]": false,
		`/[a\-b]`: false, `/[\^a]`: false, "/[$.+|()]": false, "/$.+|()^": false, `/\q`: false,
		"/" + strings.Repeat("{a,", 49) + "a" + strings.Repeat("}", 49): false,
		"/" + strings.Repeat("{a,", 50) + "a" + strings.Repeat("}", 50): true,
	} {
		_, err := ParsePattern(glob)
		if (err != nil) != here {
			t.Errorf("%s: %v", glob, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "cannot ") {
			t.Errorf("%s: %v", glob, err)
		}
		if strings.HasSuffix(glob, `\`) {
			continue // takes the quote behind it
		}
		if _, err := run(t, write(t, fmt.Sprintf("profile x { \"%s\" r, }", glob))); (err != nil) != here {
			t.Errorf("the parser on %s: %v", glob, err)
		}
	}
	// These the parser takes, for something else.
	for _, glob := range []string{"", "/[*]", "/[a?]", "/@{HOME}", "/\x00", "/" + strings.Repeat("a", maxPattern)} {
		if _, err := ParsePattern(glob); err == nil {
			t.Errorf("%.20q is no error", glob)
		}
	}
}

// randomGlob writes a pattern out of few characters, so that patterns meet.
func randomGlob(r *rand.Rand, pieces int, alphabet []string) string {
	var b strings.Builder
	b.WriteByte('/')
	for range 1 + r.IntN(pieces) {
		b.WriteString(alphabet[r.IntN(len(alphabet))])
	}
	return b.String()
}

var (
	plainPieces = []string{"a", "b", "/", "a", "/", "*", "**", "?", ".", "[ab]", "[^a]", "{a,b}", "{,/a}", "{a,b/}", "/*", "/**"}
	oddPieces   = []string{
		"a", "b", "/", "//", "*", "**", "***", "?", "^", ",", "-", "[ab]", "[^a]", "[^/a]", "[a-b]", "[-a]", `[\^a]`, `[a\-b]`, `[a\]]`, "[{,}]",
		"{a,b}", "{,a}", "{a,{b,/}}", "{*,a}", "{/,a}*", "{a/*,b}", `\*`, `\x2a`, `\054`, `\/`, `\x2f`, `\a`, `\-`, `\^`, `\\`, `\{`, "$", "|", "(",
	}
)

// The pattern and the parser's automaton for a rule with it are the same.
func TestPatternIsTheParsers(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var globs []string
	var text strings.Builder
	for len(globs) < 400 {
		g := randomGlob(r, 6, oddPieces)
		if _, err := ParsePattern(g); err != nil {
			t.Fatal(err)
		}
		if strings.Contains(g+`"`, `\"`) {
			continue // takes the quote behind it
		}
		fmt.Fprintf(&text, "profile p%d { \"%s\" r, }\n", len(globs), g)
		globs = append(globs, g)
	}
	all, err := Parse(compile(t, text.String()))
	if err != nil || len(all) != len(globs) {
		t.Fatal(len(all), err)
	}
	inputs := allStrings("/ab^-\\,*", 4, "/")
	byName := map[string]*Profile{}
	for i := range all {
		byName[all[i].Name] = &all[i]
	}
	for i, g := range globs {
		// Here everything counts that the automaton takes, not only what can
		// exist.
		lang, err := compileLanguage(pattern(t, g).prog, anyString)
		if err != nil {
			t.Fatal(g, err)
		}
		p := byName[fmt.Sprintf("p%d", i)]
		for _, in := range inputs {
			if want := p.Allows(in, Read, Other) == Yes; lang.accepted(in) != want {
				t.Errorf("%s and %q: the parser says %t", g, in, want)
				break
			}
		}
	}
}

// allStrings are all strings of up to n characters of an alphabet, after prefix.
func allStrings(alphabet string, n int, prefix string) []string {
	out := []string{prefix}
	for from := 0; n > 0; n-- {
		to := len(out)
		for _, s := range out[from:to] {
			for _, c := range []byte(alphabet) {
				out = append(out, s+string(c))
			}
		}
		from = to
	}
	return out
}

// Random profiles and patterns: what Find and Covers say is what trying every
// short path says.
func TestFindIsExhaustive(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	const profiles = 60
	var text strings.Builder
	for i := range profiles {
		fmt.Fprintf(&text, "profile p%d {\n", i)
		for range 2 + r.IntN(8) {
			kind := []string{"", "", "owner ", "deny ", "deny owner ", "audit "}[r.IntN(6)]
			perm := []string{"r", "w", "rw", "a", "k", "m"}[r.IntN(6)]
			fmt.Fprintf(&text, "  %s\"%s\" %s,\n", kind, randomGlob(r, 3, plainPieces), perm)
		}
		text.WriteString("}\n")
	}
	all, err := Parse(compile(t, text.String()))
	if err != nil || len(all) != profiles {
		t.Fatal(len(all), err)
	}
	var paths []string
	for _, s := range allStrings("ab./", 6, "/") {
		if canonical(s) {
			paths = append(paths, s)
		}
	}
	wants := []Perm{Read, Write, Append, Lock, Mmap, Read | Write, Writes &^ Rename}
	found := map[Answer]int{}
	for i := range all {
		p := &all[i]
		for range 20 {
			glob := randomGlob(r, 4, plainPieces)
			q := Query{Pattern: pattern(t, glob), As: Who(1 + r.IntN(3)), Objects: Objects(r.IntN(3))}
			want := wants[r.IntN(len(wants))]
			anyOf := r.IntN(2) == 0
			if anyOf {
				q.Any = want
			} else {
				q.All = want
			}
			counts := func(path string) bool {
				for _, who := range []Who{Owner, Other} {
					if q.As&who == 0 {
						continue
					}
					got, a := p.File(path, who)
					if a != Yes {
						t.Fatal(a)
					}
					if anyOf && got.Allow&want != 0 || !anyOf && got.Allow&want == want {
						return true
					}
				}
				return false
			}
			lang, err := compileLanguage(q.Pattern.prog, anyString)
			if err != nil {
				t.Fatal(err)
			}
			matches := func(path string) bool {
				dir := strings.HasSuffix(path, "/")
				return lang.accepted(path) && (q.Objects == Anything || dir == (q.Objects == Directories))
			}
			yes, no := "", "" // the shortest of each, as far as these letters go
			for _, path := range paths {
				if !matches(path) {
					continue
				}
				if counts(path) {
					if yes == "" {
						yes = path
					}
				} else if no == "" {
					no = path
				}
			}
			check := func(name string, r Result, hit Answer, brute string, right func(string) bool) {
				found[r.Answer]++
				switch {
				case r.Answer == Unknown && name == "Covers" && yes == "" && no == "" && r.Why == ErrNoPath:
				case r.Answer == Unknown:
					t.Errorf("%s %s %s %+v: %v", name, p.Name, glob, q, r.Why)
				case r.Answer != hit:
					if brute != "" {
						t.Errorf("%s %s %s %+v: %s, but %q", name, p.Name, glob, q, r.Answer, brute)
					}
				case brute != "" && len(r.Witness) > len(brute):
					t.Errorf("%s %s %s %+v: %q, and %q is shorter", name, p.Name, glob, q, r.Witness, brute)
				case !canonical(r.Witness) || !matches(r.Witness) || !right(r.Witness):
					t.Errorf("%s %s %s %+v: %q is no witness", name, p.Name, glob, q, r.Witness)
				}
			}
			check("Find", p.Find(q), Yes, yes, counts)
			check("Covers", p.Covers(q), No, no, func(s string) bool { return !counts(s) })
			if t.Failed() {
				t.FailNow()
			}
		}
	}
	if found[Yes] < 100 || found[No] < 100 {
		t.Errorf("too few of each: %v", found)
	}
}

// canonical is, in other words than pathStep's, whether a path can exist.
func canonical(s string) bool {
	if !strings.HasPrefix(s, "/") || strings.Contains(s, "//") || strings.Contains(s, "\x00") {
		return false
	}
	for _, part := range strings.Split(s, "/") {
		if part == "." || part == ".." {
			return false
		}
	}
	return true
}
