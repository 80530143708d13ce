package machine

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"
)

func TestQuote(t *testing.T) {
	words := []string{"plain", "", "two words", "it's", `$(x) "y" \ ;`, "line\nline", "-n", "*"}
	out, err := exec.Command("sh", "-c", "printf '%s\\0' "+Quote(words...)).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out), strings.Join(words, "\x00")+"\x00"; got != want {
		t.Errorf("the shell made %q of it, want %q", got, want)
	}
}

func TestKeyTellsPartsApart(t *testing.T) {
	lists := [][]string{{}, {""}, {"ab"}, {"a", "b"}, {"", "ab"}, {"ab", ""}, {"b", "a"}, {"1:a,1:b"}}
	seen := map[string][]string{}
	for _, parts := range lists {
		k := key(parts...)
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have the same key", parts, other)
		}
		seen[k] = parts
		if key(parts...) != k {
			t.Errorf("%q has two keys", parts)
		}
	}
}

func testCache(t *testing.T) cache {
	t.Helper()
	t.Setenv("AAUNIT_VM_CACHE", filepath.Join(t.TempDir(), "a, b"))
	c, err := openCache()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestKeysAreKeptAndGoIntoTheImage(t *testing.T) {
	c := testCache(t)
	first, err := c.keys()
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.keys()
	if err != nil {
		t.Fatal(err)
	}
	if imageKey("trixie", first) != imageKey("trixie", second) {
		t.Error("the image's key changes by itself")
	}
	if imageKey("trixie", first) == imageKey("bookworm", first) {
		t.Error("both suites have one key")
	}
	other, err := testCache(t).keys()
	if err != nil {
		t.Fatal(err)
	}
	if imageKey("trixie", first) == imageKey("trixie", other) {
		t.Error("images that authorise different keys share one")
	}
	for _, name := range []string{"user", "host"} {
		info, err := os.Stat(c.path("keys", name))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("the key %s has mode %v", name, info.Mode())
		}
	}
}

func TestPruneLeavesWhatIsUsed(t *testing.T) {
	c := testCache(t)
	old := time.Now().Add(-2 * unusedAfter)
	for _, dir := range []string{"images/old", "images/old-in-use", "images/new", "images/new-being-made"} {
		if err := os.Mkdir(c.path(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		if dir == "images/new-being-made" {
			continue
		}
		done, err := c.use(c.path(dir))
		if err != nil {
			t.Fatal(err)
		}
		if dir == "images/old-in-use" {
			defer done()
		} else {
			done()
		}
		if dir != "images/new" {
			if err := os.Chtimes(c.path(dir, "used"), old, old); err != nil {
				t.Fatal(err)
			}
		}
	}
	m, err := c.newMachine(image{suite: "trixie"}, keys{}, TCG, 1, 1)
	if err != nil {
		t.Fatal(err)
	}
	c.prune()
	for dir, want := range map[string]bool{
		c.path("images/old"):            false,
		c.path("images/old-in-use"):     true,
		c.path("images/new"):            true,
		c.path("images/new-being-made"): true,
		m.dir:                           true,
	} {
		if exists(dir) != want {
			t.Errorf("%s is there: %v, want %v", dir, !want, want)
		}
	}

	// As if its process had died.
	m.release[0]()
	c.prune()
	if exists(m.dir) {
		t.Errorf("the directory of a guest that is gone is still there")
	}
}

func TestWriteTarHasDirectoriesAndFiles(t *testing.T) {
	var b bytes.Buffer
	err := writeTar(&b, fstest.MapFS{
		"d/file": {Data: []byte("text"), Mode: 0o640},
		"link":   {Mode: fs.ModeSymlink},
	})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 0 || h.Uname != "" {
			t.Errorf("%s belongs to %d %q", h.Name, h.Uid, h.Uname)
		}
		names = append(names, h.Name)
	}
	if got := strings.Join(names, " "); got != "d/ d/file" {
		t.Errorf("the tar has %q", got)
	}
}

func TestTailBeginsWithALine(t *testing.T) {
	for _, test := range []struct {
		s    string
		n    int
		want string
	}{
		{"abc", 3, "abc"},
		{"one\ntwo\nthree\n", 9, "three\n"},
		{"oneline", 4, "line"},
	} {
		if got := tail(test.s, test.n); got != test.want {
			t.Errorf("tail(%q, %d) = %q, want %q", test.s, test.n, got, test.want)
		}
	}
}

// monitor answers each command with the next answer.
func monitor(t *testing.T, answers ...string) *qmp {
	t.Helper()
	ours, theirs := net.Pipe()
	t.Cleanup(func() { ours.Close() })
	go func() {
		defer theirs.Close()
		dec := json.NewDecoder(theirs)
		for _, answer := range answers {
			var request map[string]any
			if dec.Decode(&request) != nil {
				return
			}
			io.WriteString(theirs, answer)
		}
		// And never again.
		io.Copy(io.Discard, theirs)
	}()
	return newQMP(ours)
}

func TestMonitor(t *testing.T) {
	q := monitor(t,
		`{"QMP": {}}{"return": {}}`,
		`{"event": "STOP", "timestamp": {}}{"return": {"status": "paused"}}`,
		`{"error": {"class": "GenericError", "desc": "no such disk"}}`,
		`{"return": "Error: no snapshot\r\n"}`,
		`{"return": ""}`,
		`{"return": {"status": "active"}}`,
		`{"return": {"status": "failed", "error-desc": "disk full"}}`,
	)
	ctx := t.Context()
	if err := q.hello(ctx); err != nil {
		t.Fatal(err)
	}
	var status struct{ Status string }
	if err := q.execute(ctx, "query-status", nil, &status); err != nil || status.Status != "paused" {
		t.Errorf("got %+v, %v", status, err)
	}
	if err := q.execute(ctx, "eject", nil, nil); err == nil || !strings.Contains(err.Error(), "no such disk") {
		t.Errorf("got %v, want QEMU's error", err)
	}
	if err := q.human(ctx, "loadvm x"); err == nil || !strings.Contains(err.Error(), "no snapshot") {
		t.Errorf("got %v, want QEMU's error", err)
	}
	if err := q.human(ctx, "savevm x"); err != nil {
		t.Error(err)
	}
	if err := q.migration(ctx); err == nil || !strings.Contains(err.Error(), "disk full") {
		t.Errorf("got %v, want QEMU's error", err)
	}

	ctx, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := q.execute(ctx, "stop", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v from a monitor that is silent, want the context's error", err)
	}
}

func TestWatchEndsWhenItHasSeenWhatItWants(t *testing.T) {
	found := 0
	w := &watch{want: []byte("(initramfs)"), found: func() { found++ }}
	for _, piece := range []string{"booting\r\n(initr", "amfs) ", "more"} {
		io.WriteString(w, piece)
	}
	if !w.seen || found != 1 {
		t.Errorf("seen %v, found %d times", w.seen, found)
	}
}

func TestSuitesFromEnv(t *testing.T) {
	for value, want := range map[string]string{"": "bookworm trixie", "trixie": "trixie", "trixie, bookworm": "trixie bookworm", "sid": ""} {
		t.Setenv("AAUNIT_VM_SUITE", value)
		got, err := SuitesFromEnv()
		if strings.Join(got, " ") != want || (err != nil) != (want == "") {
			t.Errorf("of %q: %v, %v", value, got, err)
		}
	}
}
