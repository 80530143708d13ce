package attach

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"
)

// Every code of reason.go is in the catalogue, with words for it: messages, the
// manual and metrics are made from there.
func TestCatalogueIsComplete(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "reason.go", nil, 0)
	wantNil(t, "reason.go", err)
	declared := map[Code]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); !ok || typ.Name != "Code" {
			return true
		}
		for i, name := range spec.Names {
			value, err := strconv.Unquote(spec.Values[i].(*ast.BasicLit).Value)
			wantNil(t, name.Name, err)
			if other, twice := declared[Code(value)]; twice {
				t.Errorf("%s and %s are both %q", other, name.Name, value)
			}
			declared[Code(value)] = name.Name
		}
		return true
	})
	if len(declared) < 60 {
		t.Fatalf("found only %d codes in reason.go", len(declared))
	}
	seen, titles := map[Code]bool{}, map[string]Code{}
	for _, e := range Catalogue() {
		if seen[e.Code] {
			t.Errorf("%s is listed twice", e.Code)
		}
		seen[e.Code] = true
		if declared[e.Code] == "" {
			t.Errorf("%s is listed and is no constant", e.Code)
		}
		if other, twice := titles[e.Title]; twice {
			t.Errorf("%s and %s have one title", e.Code, other)
		}
		titles[e.Title] = e.Code
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(string(e.Code)) {
			t.Errorf("%q is not a code that a metric's label or a shell can hold", e.Code)
		}
		if e.Title == "" || strings.HasSuffix(e.Title, ".") || strings.Contains(e.Title, "\n") {
			t.Errorf("%s: title %q", e.Code, e.Title)
		}
		if len(e.Explanation) < 20 || e.Explanation == e.Title || strings.Contains(e.Explanation, "\n") {
			t.Errorf("%s: explanation %q", e.Code, e.Explanation)
		}
		if e.Bearing != Confined && e.Bearing != Unknown && e.Bearing != NotConfined {
			t.Errorf("%s has no bearing", e.Code)
		}
		if e.Code.Title() != e.Title || e.Code.Explanation() != e.Explanation || e.Code.Bearing() != e.Bearing {
			t.Errorf("%s: looked up, it is not what is listed", e.Code)
		}
	}
	for code, name := range declared {
		if !seen[code] {
			t.Errorf("%s (%s) is not in the catalogue", name, code)
		}
	}
	Catalogue()[0].Title = "changed"
	if Catalogue()[0].Title == "changed" {
		t.Error("a caller can change the catalogue")
	}
}

// A code from a newer daemon must not make a verdict look better.
func TestUnknownCode(t *testing.T) {
	c := Code("from-the-future")
	if c.Bearing() != Unknown || c.Title() != "from-the-future" || c.Explanation() == "" {
		t.Errorf("got %v %q %q", c.Bearing(), c.Title(), c.Explanation())
	}
}

// Whoever names a program or a file must not get at the terminal, the journal
// or the bus connection of the reader.
func TestReasonsArePrintable(t *testing.T) {
	for in, want := range map[string]string{
		"plain ünïcode 日本 “quoted”":     "plain ünïcode 日本 “quoted”",
		"\x1b[2J\x1b]0;x\x07":           `\u001b[2J\u001b]0;x\u0007`,
		"a\n● myagent.service confined": "a ● myagent.service confined",
		"a\xffb":                        `a\xffb`,
		"a\x00b\u009b":                  `a\u0000b\u009b`,
		"a\u202eb\u2028c":               `a\u202eb\u2028c`,
		"\ufffd":                        "\ufffd", // a real one is no error
		"":                              "",
	} {
		r := Because(TaskUnconfined, "%s", in).At(in).WithNext(in)
		for _, got := range []string{r.Detail, r.Where, r.Next} {
			if got != want || !utf8.ValidString(got) {
				t.Errorf("%q is printed as %q, want %q", in, got, want)
			}
		}
	}
	d, o := healthy()
	o.Scan.Tasks[1] = Task{PID: 1, TID: 1, Comm: "x", Exe: "/tmp/\x1b[31m\xff\nroot", Label: label("unconfined")}
	for _, r := range Judge(d, o).Reasons {
		if s := r.String(); !utf8.ValidString(s) || strings.ContainsAny(s, "\n\x1b") {
			t.Errorf("got %q", s)
		}
	}
}

// The column still points at the same place after what is hostile was escaped
// and what is long was cut.
func TestExcerpt(t *testing.T) {
	long := strings.Repeat("a", 1000)
	for _, c := range []struct {
		column int
		text   string
		want   string // with a | in front of the place
	}{
		{3, "  /a r", "  |/a r"},
		{7, "  /a r", "  /a r|"},
		{99, "  /a r", "  /a r|"},
		{0, "  /a r", "  /a r"},
		{2, "\t/a r", " |/a r"},
		{3, "\x1b\xff/a", `\u001b\xff|/a`},
		{3, "日本/a", "日本|/a"},
		{1, long, "|" + long[:maxExcerpt] + "…"},
		{1001, long, "…" + long[:maxExcerpt/2] + "|"},
		{501, long, "…" + long[:maxExcerpt/2] + "|" + long[:maxExcerpt/2-1] + "…"},
	} {
		e := Because(ProfileBroken, "x").WithExcerpt(7, c.column, c.text).Excerpt
		got := e.Text
		if e.Column > 0 {
			r := []rune(e.Text)
			got = string(r[:e.Column-1]) + "|" + string(r[e.Column-1:])
		}
		if got != c.want || e.Line != 7 {
			t.Errorf("column %d of %q: %+v, %q, want %q", c.column, c.text, e, got, c.want)
		}
	}
	if b, _ := json.Marshal(Because(ProfileBroken, "x")); strings.Contains(string(b), "excerpt") {
		t.Errorf("a reason without a line has one in JSON: %s", b)
	}
}

func TestReasonString(t *testing.T) {
	if got := Because(AppArmorOff, "").String(); got != AppArmorOff.Title() {
		t.Errorf("without a detail: %q", got)
	}
	if got := Because(AppArmorOff, "it is off").At("/sys/x:1").String(); got != "it is off (/sys/x:1)" {
		t.Errorf("got %q", got)
	}
}

// Three answers survive JSON, and nothing else becomes one of the good two.
func TestAnswersInJSON(t *testing.T) {
	type both struct {
		A Answer
		T Tri
	}
	for _, tt := range []struct {
		in  both
		out string
	}{
		{both{Confined, Yes}, `{"A":"confined","T":"yes"}`},
		{both{NotConfined, No}, `{"A":"not-confined","T":"no"}`},
		{both{Unknown, CouldNotTell}, `{"A":"unknown","T":"unknown"}`},
		{both{}, `{"A":"unknown","T":"unknown"}`},
		{both{99, 99}, `{"A":"unknown","T":"unknown"}`},
		{both{-1, -1}, `{"A":"unknown","T":"unknown"}`},
	} {
		b, err := json.Marshal(tt.in)
		if err != nil || string(b) != tt.out {
			t.Errorf("%v is written as %s, %v; want %s", tt.in, b, err, tt.out)
		}
		back := both{Confined, Yes}
		if err := json.Unmarshal(b, &back); err != nil || back.A.String() != tt.in.A.String() || back.T.String() != tt.in.T.String() {
			t.Errorf("%s is read back as %v, %v", b, back, err)
		}
	}
	for _, garbage := range []string{`""`, `"Confined"`, `"confined "`, `"true"`, `"YES"`, `"1"`} {
		v := both{Confined, Yes}
		if err := json.Unmarshal([]byte(`{"A":`+garbage+`,"T":`+garbage+`}`), &v); err != nil || v.A != Unknown || v.T != CouldNotTell {
			t.Errorf("%s is read as %v %v, %v", garbage, v.A, v.T, err)
		}
	}
	for _, garbage := range []string{`1`, `true`, `{}`} {
		v := both{}
		if err := json.Unmarshal([]byte(`{"A":`+garbage+`}`), &v); err == nil && v.A == Confined {
			t.Errorf("%s is read as confined", garbage)
		}
	}
	if TriOf(true) != Yes || TriOf(false) != No {
		t.Error("TriOf")
	}
}

func TestVerdictInJSON(t *testing.T) {
	d, o := healthy()
	o.Scan.Tasks[0].Label = label("myagent//&unconfined (enforce)")
	v := Judge(d, o)
	b, err := json.Marshal(v)
	wantNil(t, "marshal", err)
	var back Verdict
	wantNil(t, "unmarshal", json.Unmarshal(b, &back))
	if back.Answer != v.Answer || back.PrivateTmp != v.PrivateTmp || len(back.Reasons) != 1 || back.Reasons[0] != v.Reasons[0] || !back.At.Equal(v.At) {
		t.Errorf("got %+v, want %+v", back, v)
	}
}

func TestExits(t *testing.T) {
	for _, tt := range []struct {
		v    *Verdict
		want Exit
	}{
		{nil, ExitUnknown}, {&Verdict{}, ExitUnknown}, {&Verdict{Answer: Confined}, ExitOK},
		{&Verdict{Answer: Unknown}, ExitUnknown}, {&Verdict{Answer: NotConfined}, ExitNotConfined}, {&Verdict{Answer: 99}, ExitUnknown},
	} {
		if got := ExitOf(tt.v); got != tt.want {
			t.Errorf("ExitOf(%+v) = %d, want %d", tt.v, got, tt.want)
		}
	}
	for _, tt := range []struct {
		in   []Exit
		want Exit
	}{
		{nil, ExitOK}, {[]Exit{ExitOK, ExitOK}, ExitOK}, {[]Exit{ExitOK, ExitUnknown}, ExitUnknown},
		{[]Exit{ExitNoUnit, ExitUnknown}, ExitNoUnit}, {[]Exit{ExitNotConfined, ExitNoUnit}, ExitNotConfined},
		{[]Exit{ExitFailed, ExitNotConfined, ExitOK}, ExitFailed}, {[]Exit{ExitFailed, ExitUsage}, ExitUsage},
		{[]Exit{ExitOK, 42}, ExitFailed},
	} {
		if got := WorstExit(tt.in...); got != tt.want {
			t.Errorf("WorstExit(%v) = %d, want %d", tt.in, got, tt.want)
		}
	}
}
