package attach

import (
	"testing"
)

func TestFateOfADropIn(t *testing.T) {
	const path, sum = "/etc/systemd/system/a.service.d/90-aaunit.conf", "1234"
	on := func(unit, profile string) Record {
		return Record{Unit: unit, Profile: profile, DropIns: Sums{{Path: path, Sum: sum}}}
	}
	missing := map[string]string{"gone": "no file has it"}
	for _, c := range []struct {
		name string
		left LeftDropIn
		want Fate
		why  string
	}{
		{"its profile lasts", LeftDropIn{Exists: true, Sum: sum, Records: []Record{on("a.service", "p")}}, FateKept, ""},
		{"its profile does not", LeftDropIn{Exists: true, Sum: sum, Records: []Record{on("a.service", "gone")}}, FateTaken, "no file has it"},
		{"that of one instance does not", LeftDropIn{Exists: true, Sum: sum, Records: []Record{on("a@.service", ""), on("a@1.service", "p"), on("a@2.service", "gone")}}, FateTaken, "no file has it"},
		{"those of all instances last", LeftDropIn{Exists: true, Sum: sum, Records: []Record{on("a@.service", ""), on("a@1.service", "p")}}, FateKept, ""},
		{"no instance is known", LeftDropIn{Exists: true, Sum: sum, Records: []Record{on("a@.service", "")}}, FateTaken, "it depends on the unit, and none is known"},
		{"changed", LeftDropIn{Exists: true, Sum: "5678", Records: []Record{on("a.service", "gone")}}, FateChanged, "it is not as aaunit wrote it"},
		{"removed by somebody", LeftDropIn{Records: []Record{on("a.service", "p")}}, FateGone, ""},
		{"unreadable", LeftDropIn{Exists: true, Sum: sum, Problem: "a link", Records: []Record{on("a.service", "p")}}, FateUnread, "a link"},
	} {
		c.left.Path, c.left.Missing = path, missing
		if got, why := c.left.Fate(); got != c.want || why != c.why {
			t.Errorf("%s: %d, %q", c.name, got, why)
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
