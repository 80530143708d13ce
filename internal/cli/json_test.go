package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// What does not begin with an exit status ends with no success.
func TestAReportThatIsPassedOn(t *testing.T) {
	for text, want := range map[string]attach.Exit{
		`{"exit":0,"units":[]}`:              attach.ExitOK,
		`{"exit":3,"version":"1"}`:           attach.ExitNotConfined,
		`{"exit":5}`:                         attach.ExitUnknown,
		`{"exit":17}`:                        attach.ExitFailed,
		`{"exit":-1}`:                        attach.ExitFailed,
		`{"version":"1","exit":0}`:           -1,
		`{"exit":"0"}`:                       -1,
		`{"exit":null}`:                      -1,
		`{"exit":0.5}`:                       -1,
		`{"exit"`:                            -1,
		`[{"exit":0}]`:                       -1,
		`{}`:                                 -1,
		``:                                   -1,
		"{\"exit\":0,\"unit\":\"a\u202eb\"}": attach.ExitOK,
	} {
		var out bytes.Buffer
		a := &app{World: World{Stdout: &out}, exit: attach.ExitUsage}
		err := a.pass([]byte(text), nil)
		switch {
		case want < 0 && (err == nil || out.Len() > 0 || !strings.Contains(err.Error(), "of one version?")):
			t.Errorf("%q is passed on: %v, %q", text, err, &out)
		case want >= 0 && (err != nil || a.exit != want || out.String() != strings.ReplaceAll(text, "\u202e", `\u202e`)+"\n"):
			t.Errorf("%q: exit %d, %v, %q", text, a.exit, err, &out)
		}
	}
}

func TestJSONIsIndentedOnATerminal(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"verify"}, {"list"}, {"metrics"}, {"query", "a", "write /x"}, {"nonsense"}} {
		s := newScene()
		s.run(append(args, "--json")...)
		if got := s.out.String(); strings.Count(got, "\n") != 1 {
			t.Errorf("%s in a pipe: %q", args, got)
		}
		s.StdoutTTY = true
		s.run(append(args, "--json")...)
		if got := s.out.String(); !strings.HasPrefix(got, "{\n  \"") {
			t.Errorf("%s on a terminal: %q", args, got)
		}
	}
}
