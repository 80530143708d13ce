package attach

import (
	"testing"
)

func TestFateOfADropIn(t *testing.T) {
	const path, sum = "/etc/systemd/system/a.service.d/90-aaunit.conf", "1234"
	on := func(unit string) Record {
		return Record{Unit: unit, Profile: "not in the file", DropIns: Sums{{Path: path, Sum: sum}}}
	}
	text := func(profile string) string { return "[Service]\nAppArmorProfile=" + profile + "\n" }
	lasts, gone, old := text("p"), text("gone"), text("old")
	attaching := func(r Record) Record {
		r.Attaching = true
		return r
	}
	changing := func(r Record, profile string, was map[string]*string) Record {
		r.Former = &Former{Profile: profile, DropIns: was}
		return r
	}
	unrecorded := Record{Unit: "a.service", Profile: "not in the file"}
	missing := map[string]string{"gone": "no file has it"}
	for _, c := range []struct {
		name string
		left LeftDropIn
		want Fate
		text string
		why  string
	}{
		{"its profile lasts", LeftDropIn{Exists: true, Text: lasts, Records: []Record{on("a.service")}}, FateKept, TextWithoutAaunit(lasts), ""},
		{"its profile does not", LeftDropIn{Exists: true, Text: gone, Records: []Record{on("a.service")}}, FateTaken, "", "no file has it"},
		{"that of one instance does not", LeftDropIn{Exists: true, Text: text("%i"), Records: []Record{on("a@.service"), on("a@p.service"), on("a@gone.service")}}, FateTaken, "", "no file has it"},
		{"those of all instances last", LeftDropIn{Exists: true, Text: text("%i"), Records: []Record{on("a@.service"), on("a@p.service")}}, FateKept, TextWithoutAaunit(text("%i")), ""},
		{"no instance is known", LeftDropIn{Exists: true, Text: text("%i"), Records: []Record{on("a@.service")}}, FateTaken, "", "it depends on the unit, and none is known"},
		{"no instance is known, and it is the same for all", LeftDropIn{Exists: true, Text: text("p"), Records: []Record{on("a@.service")}}, FateKept, TextWithoutAaunit(text("p")), ""},
		{"so for a prefix", LeftDropIn{Exists: true, Text: text("100%%"), Records: []Record{on("a-.service")}}, FateKept, TextWithoutAaunit(text("100%%")), ""},
		{"the same for all does not last", LeftDropIn{Exists: true, Text: gone, Records: []Record{on("a@.service")}}, FateTaken, "", "no file has it"},
		{"changed", LeftDropIn{Exists: true, Text: gone, Sum: "5678", Records: []Record{on("a.service")}}, FateChanged, gone, "it is not as aaunit wrote it"},
		{"removed by somebody", LeftDropIn{Records: []Record{on("a.service")}}, FateGone, "", ""},
		{"unreadable", LeftDropIn{Exists: true, Problem: "a link", Records: []Record{on("a.service")}}, FateUnread, "", "a link"},

		{"never seen confined", LeftDropIn{Exists: true, Text: lasts, Records: []Record{attaching(on("a.service"))}}, FateTaken, "", "the attach to it was not finished"},
		{"a new instance of a pattern that confines others", LeftDropIn{Exists: true, Text: text("%i"), Records: []Record{attaching(on("a@.service")), on("a@p.service"), attaching(on("a@q.service"))}}, FateKept, TextWithoutAaunit(text("%i")), ""},
		{"the first instances of a pattern", LeftDropIn{Exists: true, Text: text("%i"), Records: []Record{on("a@.service"), attaching(on("a@p.service")), attaching(on("a@q.service"))}}, FateTaken, "", "the attach to it was not finished"},

		{"a change from what lasts", LeftDropIn{Exists: true, Text: gone, Records: []Record{changing(on("a.service"), "old", map[string]*string{path: &old})}}, FateKept, TextWithoutAaunit(old), ""},
		{"a change from what does not", LeftDropIn{Exists: true, Text: lasts, Records: []Record{changing(on("a.service"), "gone", map[string]*string{path: &gone})}}, FateTaken, "", "no file has it"},
		{"one that is on record and not made", LeftDropIn{Exists: true, Text: old, Sum: "of the old text", Records: []Record{changing(on("a.service"), "old", map[string]*string{path: &old})}}, FateKept, TextWithoutAaunit(old), ""},
		{"one that somebody has changed since", LeftDropIn{Exists: true, Text: lasts, Sum: "5678", Records: []Record{changing(on("a.service"), "old", map[string]*string{path: &old})}}, FateChanged, lasts, "it is not as aaunit wrote it"},
		{"one that moved it here", LeftDropIn{Exists: true, Text: lasts, Records: []Record{changing(on("a.service"), "old", map[string]*string{path: nil, "elsewhere": &old})}}, FateTaken, "", "the change to it was not finished"},
		{"one that moved it away", LeftDropIn{Records: []Record{changing(unrecorded, "old", map[string]*string{path: &old})}}, FateKept, TextWithoutAaunit(old), ""},
		{"one of a file that somebody had taken away", LeftDropIn{Exists: true, Text: lasts, Records: []Record{changing(on("a.service"), "not in the file", map[string]*string{path: nil})}}, FateKept, TextWithoutAaunit(lasts), ""},
		{"of two units, one read it before the change", LeftDropIn{Exists: true, Text: lasts, Records: []Record{
			changing(on("a@p.service"), "old", map[string]*string{path: &lasts}), changing(on("a@q.service"), "old", map[string]*string{path: &old}), changing(on("a@r.service"), "old", map[string]*string{path: &lasts}),
		}}, FateKept, TextWithoutAaunit(old), ""},

		{"an undo has brought it back", LeftDropIn{Exists: true, Text: lasts, Records: []Record{{Unit: "a.service", Profile: "gone", DropIns: Sums{{Path: path, Sum: sum}}, Hold: &Hold{Former: "p", DropIns: map[string]string{path: lasts}}}}}, FateKept, TextWithoutAaunit(lasts), ""},
		{"and its profile does not last", LeftDropIn{Exists: true, Text: gone, Records: []Record{{Unit: "a.service", Profile: "p", DropIns: Sums{{Path: path, Sum: sum}}, Hold: &Hold{Former: "gone", DropIns: map[string]string{path: gone}}}}}, FateTaken, "", "no file has it"},
	} {
		c.left.Path, c.left.Missing = path, missing
		if c.left.Sum == "" {
			c.left.Sum = sum
		}
		if got, text, why := c.left.Fate(); got != c.want || why != c.why || text != c.text {
			t.Errorf("%s: %d, %q, %q", c.name, got, text, why)
		}
	}
}

func TestToStartAfterARemoval(t *testing.T) {
	attaching := Record{Boot: "b", Attaching: true, Before: Before{Running: true}}
	changing := Record{Boot: "b", Former: &Former{Running: true}}
	stopped := Record{Stopped: true}
	for _, c := range []struct {
		name  string
		r     Record
		state string
		kind  string
		want  bool
	}{
		{"failed", attaching, "failed", "simple", true},
		{"a change failed", changing, "failed", "simple", true},
		{"down", attaching, "inactive", "simple", true},
		{"it may fail yet", attaching, "activating", "notify", true},
		{"up", attaching, "active", "simple", false},
		{"its work is done", attaching, "inactive", "oneshot", false},
		{"it is at work", attaching, "activating", "oneshot", false},
		{"somebody stops it", attaching, "deactivating", "simple", false},
		{"aaunit stops it", stopped, "deactivating", "simple", true},
		{"aaunit has stopped it", stopped, "inactive", "simple", true},
		{"aaunit has stopped it in this boot", Record{Boot: "b", Stopped: true}, "inactive", "oneshot", true},
		{"aaunit had stopped it in another boot", Record{Boot: "a", Stopped: true}, "inactive", "simple", false},
		{"it did not run", Record{Boot: "b", Attaching: true}, "failed", "simple", false},
		{"the change found it down", Record{Boot: "b", Former: &Former{}}, "failed", "simple", false},
		{"nothing was under way", Record{Boot: "b", Before: Before{Running: true}}, "failed", "simple", false},
		{"it ran before another boot", Record{Boot: "a", Attaching: true, Before: Before{Running: true}}, "inactive", "simple", false},
		{"and failed in this one", Record{Boot: "a", Attaching: true, Before: Before{Running: true}}, "failed", "simple", true},
	} {
		if got := c.r.ToStart(Unit{ActiveState: c.state, Type: c.kind}, "b"); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// What stays confines as before, and needs nobody who explains a failed start.
func TestTextWithoutAaunit(t *testing.T) {
	const want = `# Left by aaunit when it was removed: nobody puts this file back or looks
# whether the unit is confined. To take it away, remove this file.
[Unit]
After=apparmor.service

[Service]
AppArmorProfile=myagent
PrivateTmp=yes
`
	d, o := healthy()
	got := TextWithoutAaunit(d.DropInText(o.Unit))
	if got != want {
		t.Errorf("got:\n%s", got)
	}
	if again := TextWithoutAaunit(got); again != got {
		t.Errorf("and of that:\n%s", again)
	}
	if got := TextWithoutAaunit("[Service]\nExecStartPre=+/usr/lib/aaunit/helper\nAppArmorProfile=x\n"); got != TextWithoutAaunit("[Service]\nAppArmorProfile=x\n") {
		t.Errorf("a helper that goes with the package stays:\n%s", got)
	}
}

func TestAfterwards(t *testing.T) {
	ours := Assignment{Key: "AppArmorProfile", Value: "ours", Path: "/etc/systemd/system/a.service.d/90-aaunit.conf"}
	own := Assignment{Key: "AppArmorProfile", Value: "-own", Path: "/lib/systemd/system/a.service"}
	reset := Assignment{Key: "AppArmorProfile", Path: "/etc/systemd/system/a.service.d/zz.conf"}
	for _, c := range []struct {
		assigned []Assignment
		known    bool
		want     string
	}{
		{[]Assignment{ours}, true, "starts unconfined from its next start"},
		{[]Assignment{own, ours}, true, "keeps its own AppArmorProfile=-own"},
		{[]Assignment{own, ours, reset}, true, "starts unconfined from its next start"},
		{nil, false, "starts as its own unit files say from its next start"},
	} {
		var u Unit
		u.Settings.Assignments = c.assigned
		if got := Afterwards(u, c.known); got != c.want {
			t.Errorf("%+v: %s", c.assigned, got)
		}
	}
}
