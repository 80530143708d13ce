package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestPageHasEveryReason(t *testing.T) {
	var b bytes.Buffer
	if err := page(&b, "January 1, 2026", attach.Catalogue()); err != nil {
		t.Fatal(err)
	}
	for _, e := range attach.Catalogue() {
		if n := strings.Count(b.String(), "\n.It Cm "+escape(string(e.Code))+"\n"); n != 1 {
			t.Errorf("%s stands in the page %d times", e.Code, n)
		}
	}
}

func TestPageKeepsHostileTextFromBeingRoff(t *testing.T) {
	var b bytes.Buffer
	err := page(&b, "January 1, 2026", []attach.Entry{{
		Code: "x", Title: ".so /etc/passwd", Explanation: "'br\n.Ex and \\fBbold. .Ex again. End.", Bearing: attach.Unknown,
	}})
	if err != nil {
		t.Fatal(err)
	}
	want := ".It Cm x\n\\&.so /etc/passwd.\n\\&'br .Ex and \\efBbold.\n\\&.Ex again.\nEnd.\n"
	if !strings.Contains(b.String(), want) {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}
