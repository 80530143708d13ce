package state

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
)

func history(unit string) attach.SocketHistory {
	at := time.Unix(1_700_000_000, 0).UTC()
	return attach.SocketHistory{Unit: unit, Boot: "b", Counted: map[string]attach.SocketCount{"k": {Allowed: 3}}, Builds: []attach.SocketBuild{{
		Program: attach.EvidenceProgram{Path: "/usr/bin/a", SHA256: "aa", At: time.Time{}}, Kernel: "6.1", Since: at, Until: at,
		Uses: []attach.SocketUse{{Call: attach.SetSockOpt, Option: "SOL_TCP:TCP_NODELAY", Socket: "TCP over IPv4", Allowed: 3, First: attach.SocketUser{Time: at, Comm: "a"}, Last: attach.SocketUser{Time: at}}},
	}}}
}

func TestHistoriesAreKept(t *testing.T) {
	d := Histories(filepath.Join(t.TempDir(), "sockopts-seen"))
	for _, unit := range []string{"a.service", "a@../../x.service", strings.Repeat("x", 250) + ".service"} {
		if h, err := d.Load(unit); err != nil || len(h.Builds) != 0 || h.Unit != unit {
			t.Errorf("nothing is kept of %s: %+v %v", unit, h, err)
		}
		if err := d.Save(history(unit)); err != nil {
			t.Fatal(err)
		}
		h, err := d.Load(unit)
		if diff := cmp.Diff(history(unit), h); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", unit, err, diff)
		}
	}
	info, err := os.Stat(d.path("a.service"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", info, err)
	}
}

func TestHistoriesThatCannotBeRead(t *testing.T) {
	d := Histories(filepath.Join(t.TempDir(), "sockopts-seen"))
	if err := d.Save(history("a.service")); err != nil {
		t.Fatal(err)
	}
	path := d.path("a.service")
	for what, text := range map[string]string{"no JSON": "{", "another unit's": `{"unit":"b.service"}`, "too many": `{"unit":"a.service","builds":[` + strings.Repeat("{},", attach.MaxSocketBuilds) + `{}]}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if h, err := d.Load("a.service"); err == nil || !strings.Contains(err.Error(), "set aside as") || len(h.Builds) != 0 {
			t.Errorf("%s: %+v %v", what, h, err)
		}
		if h, err := d.Load("a.service"); err != nil || h.Unit != "a.service" {
			t.Errorf("%s, the second time: %v", what, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"unit":"a.service"}`), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Load("a.service"); err == nil {
		t.Error("a file that everybody may write is read")
	}
}

func TestHistoriesAreBounded(t *testing.T) {
	d := Histories(t.TempDir())
	old := time.Now().Add(-time.Hour)
	for i := range maxHistories {
		path := d.path(fmt.Sprintf("a@%d.service", i))
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, old, old.Add(time.Duration(i)*time.Second)); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Save(history("new.service")); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(string(d))
	if err != nil || len(entries) != maxHistories {
		t.Errorf("%d files, %v", len(entries), err)
	}
	if _, err := os.Stat(d.path("a@0.service")); err == nil {
		t.Error("the oldest stays")
	}
}

func FuzzParseHistory(f *testing.F) {
	f.Add([]byte(`{"unit":"a.service"}`))
	f.Add([]byte(`{"unit":"a.service","builds":[{"program":{"path":"/a","sha256":"aa"},"uses":[{"call":"setsockopt","option":"6:1"}]}],"counted":{"k":{"allowed":1}}}`))
	f.Add([]byte(`{"unit":"a.service","reviewed":{"program":{}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := parseHistory("a.service", data)
		if err != nil {
			return
		}
		// Whatever is read can be gone on with.
		h = h.Merge([]attach.SocketRecording{{Unit: "a.service", Seen: history("").Builds[0].Uses}}, attach.SocketRun{Boot: "b", Invocation: "i"})
		if len(h.Builds) == 0 || len(h.Builds) > attach.MaxSocketBuilds {
			t.Errorf("%d builds", len(h.Builds))
		}
		attach.SocketStatus{Unit: "a.service", Declared: &attach.SocketOptions{}, History: h}.WithStale().Reasons()
	})
}
