package attach

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// sumText is a checksum that can be read.
func sumText(s string) string { return fmt.Sprintf("sum(%d)", len(s)) }

// proof is a record of a confined start, with everything in it.
func proof() Evidence {
	return Evidence{
		Format: EvidenceFormat, Unit: "a.service", Number: 3, Boot: "b1", Kernel: "6.12",
		Verdict:    Verdict{Unit: "a.service", InvocationID: "i1", Profile: "p", Answer: Confined, PrivateTmp: Yes},
		Policies:   []EvidencePolicy{{File: "/f", ID: "id", Source: "s1", Compiled: "c1", Files: []EvidenceFile{{Path: "/f", SHA256: "f1"}, {Path: "/inc", SHA256: "i1"}}}},
		Live:       []EvidenceProfile{{Name: "p", Mode: ModeEnforce, Checksum: "sha256:k1", Accepted: "sha256:k1"}, {Name: "p//hat", Mode: ModeEnforce, Checksum: "sha256:k2", Accepted: "sha256:k2"}},
		DropIn:     EvidenceFile{Path: "/d", SHA256: "d1"},
		Settings:   []EvidenceSetting{{Key: "AppArmorProfile", Value: "p"}, {Key: "User", Value: "u"}},
		Executable: EvidenceProgram{PID: 7, Path: "/bin/a", SHA256: "e1", BuildID: "ab"},
		Labels:     []EvidenceLabel{{Label: "p (enforce)", Count: 2, Fits: Yes}},
	}
}

// present is the same start as it is now, unchanged.
func present() EvidenceNow {
	return EvidenceNow{Evidence: proof(), Attached: true, OnDisk: EvidenceProgram{Path: "/bin/a", SHA256: "e1"},
		Texts: map[string]EvidenceText{"/f": {Source: "s1", Files: []EvidenceFile{{Path: "/f", SHA256: "f1"}, {Path: "/inc", SHA256: "i1"}}}}}
}

func TestCompareEvidence(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(old *Evidence, now *EvidenceNow)
		want   string // the first link, its answer and what it is about; "" all hold
		old    string
		new    string
	}{
		{name: "nothing"},
		{"restarted", func(_ *Evidence, n *EvidenceNow) { n.Verdict.InvocationID = "i2" }, "start unknown a.service", "i1", "i2"},
		{"no start", func(_ *Evidence, n *EvidenceNow) { n.Verdict.InvocationID = "" }, "start unknown a.service", "i1", ""},
		{"rebooted", func(_ *Evidence, n *EvidenceNow) { n.Boot = "b2" }, "start unknown a.service", "boot b1", "boot b2"},
		{"another profile", func(_ *Evidence, n *EvidenceNow) { n.Verdict.Profile = "q" }, "attachment no a.service", "p", "q"},
		{"detached", func(_ *Evidence, n *EvidenceNow) { n.Attached = false }, "attachment no a.service", "p", ""},
		{"source", func(_ *Evidence, n *EvidenceNow) { n.Texts["/f"].Files[0].SHA256 = "f2" }, "profile-source no /f", "sha256 f1", "sha256 f2"},
		{"source gone", func(_ *Evidence, n *EvidenceNow) { n.Texts["/f"].Files[0] = EvidenceFile{Path: "/f", Gone: true} }, "profile-source no /f", "sha256 f1", ""},
		{"source unread", func(_ *Evidence, n *EvidenceNow) { n.Texts["/f"].Files[0] = EvidenceFile{Path: "/f", Problem: "no"} }, "profile-source unknown /f", "sha256 f1", ""},
		{"source not looked at", func(_ *Evidence, n *EvidenceNow) { delete(n.Texts, "/f") }, "profile-source unknown /f", "", ""},
		{"include", func(_ *Evidence, n *EvidenceNow) { n.Texts["/f"].Files[1].SHA256 = "i2" }, "include no /inc", "sha256 i1", "sha256 i2"},
		{"another include", func(_ *Evidence, n *EvidenceNow) {
			n.Texts["/f"] = EvidenceText{Source: "s2", Files: n.Texts["/f"].Files}
		}, "include no /f", "sha256 s1", "sha256 s2"},
		{"does not compile", func(_ *Evidence, n *EvidenceNow) { n.Texts["/f"] = EvidenceText{Files: n.Texts["/f"].Files} }, "include unknown /f", "sha256 s1", ""},
		{"no policy on record", func(o *Evidence, _ *EvidenceNow) { o.Policies = nil }, "policy no /f", "", "sha256 c1"},
		{"policy not kept", func(o *Evidence, _ *EvidenceNow) {
			o.Policies = []EvidencePolicy{{File: "/f", ID: "id", Problem: "gone"}}
		}, "profile-source unknown /f", "", ""},
		{"policy", func(_ *Evidence, n *EvidenceNow) {
			n.Policies = []EvidencePolicy{{File: "/f", ID: "id2", Compiled: "c2"}}
		}, "policy no /f", "sha256 c1", "sha256 c2"},
		{"policy unread", func(_ *Evidence, n *EvidenceNow) {
			n.Policies = []EvidencePolicy{{File: "/f", ID: "id", Problem: "no"}}
		}, "policy unknown /f", "sha256 c1", ""},
		{"another file", func(_ *Evidence, n *EvidenceNow) { n.Policies = nil }, "policy no /f", "sha256 c1", ""},
		{"kernel", func(_ *Evidence, n *EvidenceNow) { n.Live[0].Checksum = "sha256:k9" }, "kernel-checksum no p", "sha256:k1", "sha256:k9"},
		{"kernel's hat", func(_ *Evidence, n *EvidenceNow) { n.Live[1].Checksum = "sha256:k9" }, "kernel-checksum no p//hat", "sha256:k2", "sha256:k9"},
		{"kernel tells nothing", func(_ *Evidence, n *EvidenceNow) { n.Live[0].Checksum = "" }, "kernel-checksum unknown p", "sha256:k1", ""},
		{"not loaded", func(_ *Evidence, n *EvidenceNow) { n.Live = n.Live[1:] }, "kernel-checksum no p", "sha256:k1", ""},
		{"one more", func(_ *Evidence, n *EvidenceNow) {
			n.Live = append(n.Live, EvidenceProfile{Name: "p//new", Mode: ModeEnforce, Checksum: "sha256:k3"})
		}, "kernel-checksum no p//new", "", "sha256:k3"},
		{"kernel unread", func(_ *Evidence, n *EvidenceNow) { n.Live, n.LiveProblem = nil, "no" }, "kernel-checksum unknown p", "sha256:k1", ""},
		{"complain", func(_ *Evidence, n *EvidenceNow) { n.Live[0].Mode = ModeComplain }, "kernel-checksum no p", "enforce", "complain"},
		{"what the kernel ran was not what was accepted", func(o *Evidence, n *EvidenceNow) {
			o.Live[0].Checksum, n.Live[0].Checksum = "sha256:k9", "sha256:k9"
		}, "kernel-checksum no p", "sha256:k1", "sha256:k9"},
		{"drop-in", func(_ *Evidence, n *EvidenceNow) { n.DropIn.SHA256 = "d2" }, "drop-in no /d", "sha256 d1", "sha256 d2"},
		{"drop-in gone", func(_ *Evidence, n *EvidenceNow) { n.DropIn = EvidenceFile{Path: "/d", Gone: true} }, "drop-in no /d", "sha256 d1", ""},
		{"drop-in elsewhere", func(_ *Evidence, n *EvidenceNow) { n.DropIn.Path = "/run/d" }, "drop-in no /d", "sha256 d1", "sha256 d1"},
		{"drop-in not on record", func(o *Evidence, _ *EvidenceNow) { o.DropIn = EvidenceFile{Path: "/d", Problem: "no"} }, "drop-in unknown /d", "", "sha256 d1"},
		{"setting", func(_ *Evidence, n *EvidenceNow) { n.Settings[1].Value = "root" }, "settings no User=", "u", "root"},
		{"setting gone", func(_ *Evidence, n *EvidenceNow) { n.Settings = n.Settings[:1] }, "settings no User=", "u", ""},
		{"setting new", func(_ *Evidence, n *EvidenceNow) {
			n.Settings = append(n.Settings, EvidenceSetting{Key: "ExecStartPre[0]", Value: "+/bin/x"})
		}, "settings no ExecStartPre[0]=", "", "+/bin/x"},
		{"settings unread", func(_ *Evidence, n *EvidenceNow) { n.Settings = nil }, "settings unknown ", "", ""},
		{"program", func(_ *Evidence, n *EvidenceNow) { n.Executable.SHA256 = "e2" }, "executable no /bin/a", "sha256 e1 build-id ab", "sha256 e2 build-id ab"},
		{"program unread", func(_ *Evidence, n *EvidenceNow) { n.Executable = EvidenceProgram{Problem: "no"} }, "executable unknown /bin/a", "sha256 e1 build-id ab", ""},
		{"program not on record", func(o *Evidence, _ *EvidenceNow) {
			o.Executable = EvidenceProgram{Path: "/bin/a", Problem: "it has ended"}
		}, "executable unknown /bin/a", "", "sha256 e1 build-id ab"},
		{"on disk", func(_ *Evidence, n *EvidenceNow) { n.OnDisk.SHA256 = "e2" }, "executable-on-disk no /bin/a", "sha256 e1 build-id ab", "sha256 e2"},
		{"not on disk", func(_ *Evidence, n *EvidenceNow) { n.OnDisk = EvidenceProgram{Gone: true} }, "executable-on-disk no /bin/a", "sha256 e1 build-id ab", ""},
		{"label", func(_ *Evidence, n *EvidenceNow) {
			n.Labels = append(n.Labels, EvidenceLabel{Label: "unconfined", Count: 1, Fits: No})
		}, "label no 1 task", "p", "unconfined"},
		{"child's label", func(_ *Evidence, n *EvidenceNow) {
			n.Labels = append(n.Labels, EvidenceLabel{Label: "p//hat (enforce)", Count: 1, Fits: Yes})
		}, "", "", ""},
		{"label unread", func(_ *Evidence, n *EvidenceNow) { n.Labels = []EvidenceLabel{{Count: 3, Problem: "no"}} }, "label unknown 3 tasks", "p", ""},
		{"no task", func(_ *Evidence, n *EvidenceNow) { n.Labels = nil }, "label unknown ", "p", ""},
		{"too many labels", func(_ *Evidence, n *EvidenceNow) { n.MoreLabels = 2 }, "label unknown ", "", ""},
		{"tmp", func(_ *Evidence, n *EvidenceNow) { n.Verdict.PrivateTmp = No }, "private-tmp no ", "yes", "no"},
		{"tmp unread", func(_ *Evidence, n *EvidenceNow) { n.Verdict.PrivateTmp = CouldNotTell }, "private-tmp unknown ", "yes", "unknown"},
		{"tmp not on record", func(o *Evidence, _ *EvidenceNow) { o.Verdict.PrivateTmp = CouldNotTell }, "private-tmp unknown ", "unknown", "yes"},
		{"no private tmp then and now", func(o *Evidence, n *EvidenceNow) { o.Verdict.PrivateTmp, n.Verdict.PrivateTmp = No, No }, "", "", ""},
		{"a profile that is left to another unit", func(o *Evidence, n *EvidenceNow) {
			o.Live = append(o.Live, EvidenceProfile{Name: "q", Mode: ModeEnforce, Checksum: "sha256:k3", Accepted: "sha256:k3"})
			n.Live = append(n.Live, EvidenceProfile{Name: "q", Mode: ModeEnforce, Checksum: "sha256:k4", Accepted: "sha256:k3"})
			n.LeftTo = map[string]string{"q": "b.service"}
		}, "", "", ""},
		{"not confined", func(_ *Evidence, n *EvidenceNow) { n.Verdict.Answer = NotConfined }, "verdict no a.service", "confined", "not-confined"},
		{"was not confined", func(o *Evidence, _ *EvidenceNow) { o.Verdict.Answer = NotConfined }, "verdict no a.service", "not-confined", "confined"},
		{"unknown", func(_ *Evidence, n *EvidenceNow) { n.Verdict.Answer = Unknown }, "verdict unknown a.service", "confined", "unknown"},
		{"unknown and not confined", func(o *Evidence, n *EvidenceNow) { o.Verdict.Answer, n.Verdict.Answer = NotConfined, Unknown }, "verdict no a.service", "not-confined", "unknown"},
		{"no answer", func(_ *Evidence, n *EvidenceNow) { n.Verdict.Answer = noAnswer }, "verdict unknown a.service", "confined", "unknown"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			old, now := proof(), present()
			if tc.change != nil {
				tc.change(&old, &now)
			}
			s := ConcludeEvidence(EvidenceStatus{Unit: "a.service", Links: CompareEvidence(old, old, now)})
			var first EvidenceLink
			if s.First != nil {
				first = *s.First
			}
			got := ""
			if s.First != nil {
				got = fmt.Sprintf("%s %v %s", first.Link, first.Holds, first.What)
			}
			if got != tc.want || tc.want != "" && (first.Old != tc.old || first.New != tc.new || first.Why == "") {
				t.Errorf("first %q %+v, want %q, %q, %q\n%+v", got, first, tc.want, tc.old, tc.new, s.Links)
			}
			exit := map[Tri]Exit{Yes: ExitOK, No: ExitNotConfined, CouldNotTell: ExitUnknown}[s.Holds]
			if s.Exit != exit || (tc.want == "") != (s.Exit == ExitOK) {
				t.Errorf("exit %d, holds %v", s.Exit, s.Holds)
			}
			// Every link is told of, in order.
			var codes []EvidenceCode
			for _, l := range s.Links {
				if !slices.Contains(codes, l.Link) {
					codes = append(codes, l.Link)
				}
			}
			want := []EvidenceCode{LinkStart, LinkAttachment, LinkSource, LinkInclude, LinkPolicy, LinkKernel, LinkDropIn, LinkSettings, LinkProgram, LinkOnDisk, LinkLabel, LinkTmp, LinkVerdict}
			if !slices.Equal(codes, want) {
				t.Errorf("links %v", codes)
			}
		})
	}
}

func TestManyDifferencesAreBounded(t *testing.T) {
	old, now := proof(), present()
	files := []EvidenceFile{{Path: "/f", SHA256: "f1"}}
	var changed []EvidenceFile
	for i := range 500 {
		files = append(files, EvidenceFile{Path: fmt.Sprintf("/inc/%d", i), SHA256: "a"})
		changed = append(changed, EvidenceFile{Path: fmt.Sprintf("/inc/%d", i), SHA256: "b"})
	}
	old.Policies[0].Files = files
	now.Texts["/f"] = EvidenceText{Source: "s2", Files: append(changed, files[0])}
	links := CompareEvidence(old, old, now)
	n := 0
	last := EvidenceLink{}
	for _, l := range links {
		if l.Link == LinkInclude {
			n++
			last = l
		}
	}
	if n != maxLinks || !strings.Contains(last.Why, "more") {
		t.Errorf("%d links, the last is %+v", n, last)
	}
}

func TestEvidenceWithoutLinksIsNoProof(t *testing.T) {
	if s := ConcludeEvidence(EvidenceStatus{}); s.Exit != ExitUnknown || s.Holds != CouldNotTell {
		t.Errorf("%+v", s)
	}
	if links := CompareEvidence(Evidence{}, Evidence{}, EvidenceNow{}); ConcludeEvidence(EvidenceStatus{Links: links}).Holds == Yes {
		t.Errorf("nothing is proof of nothing: %+v", links)
	}
}

func TestGatherEvidence(t *testing.T) {
	a := NewAttachment()
	a.Units, a.Profile = []string{"a.service"}, "p"
	d := Desired{Unit: "a.service", Attachment: &a, Profile: "p",
		Record: Record{Policies: map[string]string{"/f": "id", "/g": "lost"}, Accepted: map[string]string{"p": "sha256:1", "p//kept": "sha256:2"}},
		Kept:   []Compiled{{ID: "id", File: "/f", Source: "s", Parser: "v", Kernel: "k", Environment: "e"}}}
	o := Observed{
		Unit:   Unit{ID: "a.service", LoadState: "loaded", InvocationID: "i", MainPID: 10, Settings: Settings{Profile: "p", IgnoreMissing: true, DynamicUser: true, AddressFamilies: &AddressFamilies{Families: []string{"AF_PACKET", "AF_NETLINK"}}, Exec: []ExecCommand{{Property: "ExecStart", Path: "/a", Argv: []string{"a", "secret"}, Privileged: true, PID: 99}}}},
		DropIn: DropInState{Exists: true, Content: "text"},
		Policy: Policy{Live: map[string]LiveProfile{"p": {Name: "p", Mode: ModeEnforce, Checksum: "sha256:1"}, "p//odd": {Name: "p//odd", Mode: ModeEnforce}, "other": {Name: "other"}}},
		Scan:   &Scan{Before: "i", After: "i", Stable: true, At: time.Unix(5, 0), Tmp: map[int]TmpView{10: {Tmp: "a", VarTmp: "b"}, 11: {Tmp: "a", VarTmp: "b"}}},
	}
	label := func(s string) Label {
		l, err := ParseLabel(s)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for i := range 100 {
		o.Scan.Tasks = append(o.Scan.Tasks, Task{PID: 10, TID: 10 + i, Comm: "a\x1b\xff", Exe: "/a", Label: label("p (enforce)")})
	}
	for i := range 80 {
		o.Scan.Tasks = append(o.Scan.Tasks, Task{PID: 11, TID: 200 + i, Label: label(fmt.Sprintf("p//c%d (enforce)", i))})
	}
	o.Scan.Tasks = append(o.Scan.Tasks, Task{PID: 12, TID: 12, Label: label("unconfined")}, Task{PID: 13, TID: 13, Problem: "gone wrong"})
	e := GatherEvidence(d, o, Judge(d, o), sumText)
	if len(e.Labels) != maxEvidenceLabels || e.Labels[0].Label != "unconfined" || e.Labels[0].Fits != No || e.MoreLabels != 82+1-maxEvidenceLabels {
		t.Errorf("%d labels and %d more, the first %+v", len(e.Labels), e.MoreLabels, e.Labels[0])
	}
	if len(e.Tasks) != maxEvidenceTasks || e.MoreTasks != 182-maxEvidenceTasks || e.Tasks[0].Comm != `a\u001b\xff` {
		t.Errorf("%d tasks and %d more: %+v", len(e.Tasks), e.MoreTasks, e.Tasks[0])
	}
	if i := slices.IndexFunc(e.Labels, func(l EvidenceLabel) bool { return l.Problem != "" }); i >= 0 && e.Labels[i].Fits != CouldNotTell {
		t.Errorf("what could not be read is %+v", e.Labels[i])
	}
	var live []string
	for _, p := range e.Live {
		live = append(live, p.Name)
	}
	if !slices.Equal(live, []string{"p", "p//kept", "p//odd"}) {
		t.Errorf("profiles %v", live)
	}
	if len(e.Policies) != 2 || e.Policies[0].Source != "s" || e.Policies[1].Problem == "" {
		t.Errorf("policies %+v", e.Policies)
	}
	if e.DropIn.SHA256 != "sum(4)" || e.Executable.PID != 10 || e.Executable.Path != "/a" || !e.Executable.At.Equal(time.Unix(5, 0)) || len(e.Tmp) != 1 || e.Tmp[0].Count != 2 {
		t.Errorf("%+v", e)
	}
	text := fmt.Sprint(e.Settings)
	for _, want := range []EvidenceSetting{{Key: "DynamicUser", Value: "yes"}, {Key: "RestrictAddressFamilies", Value: "~AF_NETLINK AF_PACKET"}} {
		if !slices.Contains(e.Settings, want) {
			t.Errorf("settings %v, without %v", e.Settings, want)
		}
	}
	if !strings.Contains(text, "+/a (arguments sha256 sum(8))") || strings.Contains(text, "secret") || strings.Contains(text, "99") || !strings.Contains(text, "-p") {
		t.Errorf("settings %v", e.Settings)
	}
	// Another answer or policy is another record; another look is not.
	again := e
	again.Verdict.At, again.Number = time.Unix(9, 0), 7
	if again.Key() != e.Key() || e.Key() != EvidenceKeyOf("", e.Verdict, EvidencePolicies(d.Record, d.Kept)) {
		t.Error("the key differs")
	}
	other := slices.Clone(d.Kept)
	other[0].Environment = "another parser"
	if EvidenceKeyOf("", e.Verdict, EvidencePolicies(d.Record, other)) == e.Key() {
		t.Error("what another parser made has the same key")
	}
	again.Verdict.Answer = Unknown
	if again.Key() == e.Key() {
		t.Error("another answer has the same key")
	}
}
