package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// The JSON documents. A command prints one of them, and their fields only ever
// grow:
//
//	status, list, verify   attach.Report
//	  with --root          attach.ImageReport
//	verify --evidence      attach.EvidenceReport
//	attach, detach, pause,
//	apply, propose,
//	resume, plan           {"outcomes": [attach.Outcome]}
//	check                  {"outcomes": [attach.Outcome], "codes": [attach.Entry]}
//	  with --no-wait       {"operation": "/org/aaunit1/operation/1"}
//	list --profiles        {"profiles": [attach.Profile], "problems": [attach.Reason]}
//	list --unconfined      attach.ExposureReport
//	metrics                attach.Metrics
//	report                 report.Document
//	denials                attach.DenialReport
//	  with --follow        one on each line
//	sockopts               attach.SocketReport
//	  with --follow        {"unit", "use": attach.SocketUse, "allowed", "refused"} on each line
//	sockopts export        {"unit", "section"}
//	query                  {"question", "results": [attach.QueryResult]}
//	explain UNIT           {"units": [attach.Explanation], "missing": [attach.Missing]}
//	explain CODE           {"codes": [attach.Entry]}
//	version                {"version": "1.0"}
//	an error               {"error": {"message", "kind", "exit"}}
type (
	outcomesDoc struct {
		Outcomes []attach.Outcome `json:"outcomes"`
	}
	// checkDoc explains each code that the outcomes name, once.
	checkDoc struct {
		outcomesDoc
		codesDoc
	}
	operationDoc struct {
		Operation string `json:"operation"`
	}
	profilesDoc struct {
		Profiles []attach.Profile `json:"profiles"`
		Problems []attach.Reason  `json:"problems,omitempty"` // files that no profile could be read of
	}
	codesDoc struct {
		Codes []attach.Entry `json:"codes"`
	}
)

// printJSON prints a document, on a terminal indented and else in one line, as systemd's
// tools do. What a terminal might obey is escaped, as JSON allows.
func (a *app) printJSON(v any) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if a.StdoutTTY {
		e.SetIndent("", "  ")
	}
	if err := e.Encode(v); err != nil {
		return fmt.Errorf("cannot write JSON: %w", err)
	}
	_, err := a.Stdout.Write(escape(b.Bytes()))
	return err
}

// pass prints a report as aaunitd has written it, and ends with the exit status that it
// begins with: to read a report of many units and to write it again takes as long as
// looking at them.
func (a *app) pass(text []byte, err error) error {
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	begin, _ := d.Token()
	key, _ := d.Token()
	value, _ := d.Token()
	exit, ok := value.(float64)
	if begin != json.Delim('{') || key != "exit" || !ok || exit != math.Trunc(exit) {
		return errReport
	}
	a.exit = exits(attach.Exit(exit))
	_, err = a.Stdout.Write(append(escape(text), '\n'))
	return err
}

var errReport = errors.New("cannot read aaunitd's answer: it begins with no exit status; are aaunitd and aaunitctl of one version?")

// escape escapes what is neither printable nor a line feed.
func escape(text []byte) []byte {
	plain := func(c byte) bool { return c == '\n' || c >= ' ' && c <= '~' }
	if !slices.ContainsFunc(text, func(c byte) bool { return !plain(c) }) {
		return text
	}
	out := make([]byte, 0, len(text)+len(text)/8)
	for _, r := range string(text) {
		switch {
		case r == '\n' || unicode.IsPrint(r):
			out = utf8.AppendRune(out, r)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}
