// Reasons prints the manual page aaunit-reasons(7) from the catalogue of
// reasons, so that the page and the program cannot differ. The argument is the
// date of the page, as mdoc(7) has it.
package main

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: reasons DATE")
		os.Exit(2)
	}
	if err := page(os.Stdout, os.Args[1], attach.Catalogue()); err != nil {
		fmt.Fprintln(os.Stderr, "reasons: cannot write the page:", err)
		os.Exit(1)
	}
}

const head = `.\" Made by packaging/reasons from the catalogue in internal/attach/reason.go.
.Dd %s
.Dt AAUNIT-REASONS 7
.Os
.Sh NAME
.Nm aaunit-reasons
.Nd why a unit is confined, not confined, or could not be judged
.Sh DESCRIPTION
Whenever
.Xr aaunitd 8
and
.Xr aaunitctl 1
say that a unit is not confined, that it could not be judged, that an attach
was refused or that something should be looked after, they give reasons.
Each reason has a code from the list below.
The codes are the same in messages, in
.Fl Fl json
output, in the journal field
.Va AAUNIT_REASON
and on D-Bus, and none is ever given another meaning.
.Pp
A verdict is made of the reasons that were found: one that says
.Dq not confined
outweighs one that says
.Dq unknown ,
and only where there is neither is the unit confined.
A reason that is a
.Dq note
does not change the verdict.
`

// sections divides the catalogue by what a reason says in a verdict.
var sections = []struct {
	bearing attach.Answer
	title   string
}{
	{attach.NotConfined, "REASONS THAT SAY NOT CONFINED"},
	{attach.Unknown, "REASONS THAT SAY UNKNOWN, OR REFUSE"},
	{attach.Confined, "NOTES"},
}

const foot = `.Sh SEE ALSO
.Xr aaunitctl 1 ,
.Xr aaunit.conf 5 ,
.Xr aaunitd 8
`

func page(out io.Writer, date string, entries []attach.Entry) error {
	w := bufio.NewWriter(out)
	fmt.Fprintf(w, head, date)
	for _, s := range sections {
		fmt.Fprintf(w, ".Sh %s\n.Bl -tag -width Ds\n", s.title)
		for _, e := range entries {
			if e.Bearing == s.bearing {
				fmt.Fprintf(w, ".It Cm %s\n%s.\n%s", escape(string(e.Code)), escape(strings.TrimSuffix(e.Title, ".")), sentences(e.Explanation))
			}
		}
		fmt.Fprint(w, ".El\n")
	}
	fmt.Fprint(w, foot)
	return w.Flush()
}

// sentences puts each sentence on a line of its own, as mdoc wants it.
func sentences(text string) string {
	var lines []string
	for s := range strings.SplitSeq(strings.ReplaceAll(text, ". ", ".\x00"), "\x00") {
		lines = append(lines, escape(strings.TrimSpace(s)))
	}
	return strings.Join(lines, "\n") + "\n"
}

// escape keeps text from being read as a request or an escape of roff, and
// hyphens in names as typed.
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ", "…", `\[u2026]`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}
