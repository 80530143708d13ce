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
	d := &Histories{Dir: filepath.Join(t.TempDir(), "sockopts-seen")}
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
	d := &Histories{Dir: filepath.Join(t.TempDir(), "sockopts-seen")}
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
	numbered := func(format string, n int) (out []string) {
		for i := range n {
			out = append(out, fmt.Sprintf(format, i))
		}
		return out
	}
	connections := numbered("conn@%d.service", maxInstances)
	jobs := numbered("job-%d.service", maxHistories-1)
	for _, tc := range []struct {
		what   string
		kept   []string // the one written longest ago first
		living []string
		save   string
		goes   string // "" none
		fails  string
	}{
		{"there is room", []string{"down.service"}, nil, "new.service", "", ""},
		{"one more instance", append([]string{"down.service"}, connections...), []string{"down.service"}, "conn@new.service", connections[0], ""},
		{"of another template", append([]string{"down.service"}, connections...), nil, "other@new.service", "", ""},
		{"the oldest instance is living", connections, connections[:2], "conn@new.service", connections[2], ""},
		{"all instances are living", connections, connections, "conn@new.service", "", ""},
		{"more are living than are kept", append([]string{"conn@ended.service"}, connections...), connections, "conn@new.service", "conn@ended.service", ""},
		{"too many units", append([]string{"down.service"}, jobs...), []string{"down.service"}, "job-new.service", jobs[0], ""},
		{"too many units that are living", append([]string{"down.service"}, jobs...), append([]string{"down.service"}, jobs...), "job-new.service", "", "cannot keep what was seen of the socket options of job-new.service: that of 5000 attached units is kept"},
	} {
		d := &Histories{Dir: t.TempDir(), Living: func() []string { return tc.living }}
		for i, unit := range tc.kept {
			if err := os.WriteFile(d.path(unit), []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			at := time.Now().Add(time.Duration(i)*time.Second - 24*time.Hour)
			if err := os.Chtimes(d.path(unit), at, at); err != nil {
				t.Fatal(err)
			}
		}
		err := d.Save(history(tc.save))
		if tc.fails == "" && err != nil || tc.fails != "" && (err == nil || !strings.HasPrefix(err.Error(), tc.fails)) {
			t.Errorf("%s: %v", tc.what, err)
		}
		var gone []string
		for _, unit := range append([]string{tc.save}, tc.kept...) {
			if _, err := os.Stat(d.path(unit)); err != nil {
				gone = append(gone, unit)
			}
		}
		want := tc.goes
		if tc.fails != "" {
			want = tc.save
		}
		if got := strings.Join(gone, " "); got != want {
			t.Errorf("%s: what goes is %q, want %q", tc.what, got, want)
		}
	}
}

// More instances of a template run than are kept of those that have ended: what their lists
// were made for stays known, however often they are looked at.
func TestHistoriesOfManyRunningInstances(t *testing.T) {
	var units []string
	for i := range maxInstances + 50 {
		units = append(units, fmt.Sprintf("conn@%d.service", i))
	}
	d := &Histories{Dir: t.TempDir(), Living: func() []string { return units }}
	list, program := attach.SocketOptions{Mode: attach.SocketsEnforce}, attach.EvidenceProgram{Path: "/usr/bin/a", SHA256: "aa"}
	for look := range 2 {
		for _, unit := range units {
			h, err := d.Load(unit)
			if err != nil {
				t.Fatal(err)
			}
			at := time.Unix(1_700_000_000, 0)
			h = h.Merge(nil, attach.SocketRun{Program: program, Boot: "b", Invocation: "i", Started: at, At: at}).Found(list, program, at, look > 0)
			if err := d.Save(h); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, unit := range units {
		h, err := d.Load(unit)
		if stale, why := h.Stale(); stale != attach.No || err != nil {
			t.Fatalf("%s: %v %s %v", unit, stale, why, err)
		}
	}
	// Those that have ended make room again, beside the one that comes back.
	all := units
	units = units[:1]
	if err := d.Save(history("conn@new.service")); err != nil {
		t.Fatal(err)
	}
	left := 0
	for _, unit := range all {
		if _, err := os.Stat(d.path(unit)); err == nil {
			left++
		} else if unit == units[0] {
			t.Errorf("%s runs, and made room", unit)
		}
	}
	if left != maxInstances-1 {
		t.Errorf("%d are kept beside the new one", left)
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
