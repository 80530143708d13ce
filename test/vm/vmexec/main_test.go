package main

import (
	"io"
	"testing"
	"time"
)

func TestCommandLine(t *testing.T) {
	got := commandLine("guest.test",
		[]string{"-test.paniconexit0", "-test.testlogfile=/tmp/b1/testlog.txt", "-test.run=It's $(x)", "-test.coverprofile=c"},
		[]string{"HOME=/root", "AAUNIT_X=a b", "AAUNIT_VM=0", "AAUNITX=1"})
	want := `cd /root/test && echo $$ >pid && exec 'env' 'AAUNIT_VM=1' 'AAUNIT_X=a b' './guest.test' '-test.paniconexit0' '-test.run=It'\''s $(x)'`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestTimeout(t *testing.T) {
	for _, test := range []struct {
		args []string
		want time.Duration
	}{
		{nil, 0},
		{[]string{"-test.v", "-test.timeout=1m30s"}, 90 * time.Second},
		{[]string{"--test.timeout=0"}, 0},
		{[]string{"-test.run=test.timeout=1s"}, 0},
	} {
		got, err := testTimeout(test.args)
		if err != nil || got != test.want {
			t.Errorf("testTimeout(%q) = %v, %v; want %v", test.args, got, err, test.want)
		}
	}
	if _, err := testTimeout([]string{"-test.timeout=soon"}); err == nil {
		t.Error("testTimeout accepts -test.timeout=soon")
	}
}

func TestWatchSeesWhatIsWrittenInPieces(t *testing.T) {
	w := &watch{w: io.Discard, want: []byte("no tests")}
	for _, piece := range []string{"testing: warning: n", "o te"} {
		io.WriteString(w, piece)
	}
	if w.seen {
		t.Error("seen too early")
	}
	io.WriteString(w, "sts to run\n")
	if !w.seen {
		t.Error("not seen")
	}
}
