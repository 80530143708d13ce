package reconcile

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

const aFile = "/etc/aaunit/attachments.d/a.conf"

func apply(t *testing.T, l *Loop, files ...string) []attach.Outcome {
	t.Helper()
	out, err := l.Apply(context.Background(), attach.Request{Units: files}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func propose(t *testing.T, l *Loop, file, text string) []attach.Outcome {
	t.Helper()
	out, err := l.Propose(context.Background(), []attach.ProposedFile{{File: file, Text: text}})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kinds(p *attach.Plan) (out []attach.ActionKind) {
	if p != nil {
		for _, a := range p.Actions {
			out = append(out, a.Kind)
		}
	}
	return out
}

func TestApplyActsOnAFileAtOnceAndWaits(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.run(t, func(l *Loop) {
		// Nobody told the daemon of the file.
		w.mu.Lock()
		a := attach.NewAttachment()
		a.Source, a.Line, a.Units, a.Profile = aFile, 1, []string{"a.service"}, "a"
		w.att[aFile] = a
		w.mu.Unlock()
		out := apply(t, l, aFile)
		if len(out) != 1 || out[0].Unit != "a.service" || out[0].Exit != attach.ExitOK || !out[0].Changed || out[0].Verdict == nil {
			t.Fatalf("%+v", out)
		}
		if u.label != "a (enforce)" {
			t.Errorf("%+v", u)
		}
		if out := apply(t, l, aFile); len(out) != 1 || out[0].Changed || out[0].Restarted || out[0].Exit != attach.ExitOK {
			t.Errorf("again: %+v", out)
		}
		w.mu.Lock()
		delete(w.att, aFile)
		w.mu.Unlock()
		if out := apply(t, l, aFile); len(out) != 1 || !out[0].Changed || out[0].Exit != attach.ExitOK || u.label != "unconfined" {
			t.Errorf("gone: %+v %+v", out, u)
		}
		if out := apply(t, l, aFile); len(out) != 1 || out[0].Changed || len(out[0].Notes) != 1 || out[0].Notes[0].Code != attach.NotAttached {
			t.Errorf("gone for long: %+v", out)
		}
	})
}

// A name that stands for nothing is a mistake, not work that is done.
func TestApplyOfAFileThatNeverWas(t *testing.T) {
	w := newWorld()
	w.files["idle"] = "1"
	w.att["/etc/aaunit/attachments.d/none.conf"] = attach.Attachment{Source: "/etc/aaunit/attachments.d/none.conf", Units: []string{"x-*.service"}, Profile: "a"}
	w.run(t, func(l *Loop) {
		rest()
		for _, c := range []struct {
			file    string
			trusted bool
			exit    attach.Exit
		}{
			{"/etc/aaunit/attachments.d/none.conf", false, attach.ExitOK}, // attaches nothing, and is there
			{"/etc/aaunit/attachments.d/typo.conf", true, attach.ExitNoUnit},
			{"/etc/apparmor.d/idle", false, attach.ExitOK},
			{"/etc/apparmor.d/typo", false, attach.ExitNoUnit},
			{"/srv/idle", true, attach.ExitOK},
			{"/srv/typo", true, attach.ExitNoUnit},
			// Others are not told what files there are.
			{"/srv/idle", false, attach.ExitNoUnit},
		} {
			out, err := l.Apply(context.Background(), attach.Request{Units: []string{c.file}, Trusted: c.trusted}, nil)
			if err != nil || len(out) != 1 || out[0].Unit != c.file || out[0].Exit != c.exit || (len(out[0].Reasons) == 0) != (c.exit == attach.ExitOK) {
				t.Errorf("%s: exit %d, want %d: %v %+v", c.file, out[0].Exit, c.exit, err, out)
			}
		}
	})
}

func TestApplyTriesAgainWhatIsHeldAndNeverSaysConfined(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	u.breaks["a"] = true
	w.declareUnit(aFile, "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		restarts := w.calls["restart"]
		out := apply(t, l, aFile)
		if len(out) != 1 || out[0].Exit == attach.ExitOK || w.calls["restart"] == restarts {
			t.Errorf("%+v %q", out, w.trace)
		}
		w.mu.Lock()
		u.breaks["a"] = false
		w.mu.Unlock()
		if out := apply(t, l, aFile); len(out) != 1 || out[0].Exit != attach.ExitOK || u.label != "a (enforce)" {
			t.Errorf("mended: %+v %+v", out, u)
		}
	})
}

func TestApplyOfABrokenFileFails(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit(aFile, "a.service", nil)
	w.broken[aFile] = true
	w.run(t, func(l *Loop) {
		out := apply(t, l, aFile)
		if len(out) != 1 || out[0].Exit != attach.ExitFailed || !slices.Contains(codes(out[0].Reasons), attach.AttachmentBad) {
			t.Errorf("%+v", out)
		}
	})
}

func TestAProposedAttachmentIsPlannedAndNotMade(t *testing.T) {
	w := newWorld()
	u := w.addUnit("a.service")
	w.addUnit("b.service")
	w.run(t, func(l *Loop) {
		out := propose(t, l, aFile, "a.service a")
		want := []attach.ActionKind{attach.LoadPolicy, attach.WriteDropIn, attach.Reload, attach.Restart}
		if len(out) != 1 || !out[0].Changed || !slices.Equal(kinds(out[0].Plan), want) || out[0].Exit != attach.ExitOK {
			t.Fatalf("%+v", out)
		}
		rest()
		if u.label != "unconfined" || w.disk[dropIn] != "" {
			t.Errorf("it was made: %+v", u)
		}
		for text, code := range map[string]attach.Code{"nonsense": attach.AttachmentBad, "a.service none": attach.ProfileNotFound, "none.service a": attach.UnitNotFound} {
			if out := propose(t, l, aFile, text); len(out) != 1 || out[0].Exit == attach.ExitOK || !slices.Contains(codes(out[0].Reasons), code) {
				t.Errorf("%s: %+v", text, out)
			}
		}
		w.declareUnit(aFile, "a.service", nil)
		rest()
		if out := propose(t, l, aFile, "a.service a"); len(out) != 1 || out[0].Changed || out[0].Verdict == nil || out[0].Exit != attach.ExitOK {
			t.Errorf("as it is: %+v", out)
		}
		if out := propose(t, l, aFile, ""); len(out) != 1 || !out[0].Changed || !slices.Contains(kinds(out[0].Plan), attach.RemoveDropIn) {
			t.Errorf("gone: %+v", out)
		}
		// Another unit in its place: one is attached, one detached.
		out = propose(t, l, aFile, "b.service b")
		if len(out) != 2 || !slices.Contains(kinds(out[0].Plan), attach.RemoveDropIn) || !slices.Contains(kinds(out[1].Plan), attach.WriteDropIn) {
			t.Errorf("another unit: %+v", out)
		}
		if out := propose(t, l, "/etc/aaunit/attachments.d/rival.conf", "a.service b"); len(out) != 1 || !slices.Contains(codes(out[0].Reasons), attach.RivalAttachments) {
			t.Errorf("a rival: %+v", out)
		}
		if u.label != "a (enforce)" {
			t.Errorf("something was done: %+v", u)
		}
		// What there is nothing to be done about is told all the same.
		w.mu.Lock()
		u.label = "unconfined"
		w.mu.Unlock()
		if out := propose(t, l, aFile, "a.service a"); len(out) != 1 || out[0].Exit == attach.ExitOK && !out[0].Changed {
			t.Errorf("a unit that lost its profile: %+v", out)
		}
	})
}

func TestAProposedProfileIsAskedForItsUnits(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit(aFile, "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		loads := w.calls["load"]
		out := propose(t, l, "/etc/apparmor.d/a", "2")
		if len(out) != 2 || out[0].Profile != "a" || out[1].Unit != "a.service" || out[0].Exit != attach.ExitOK || out[1].Exit != attach.ExitOK {
			t.Errorf("%+v", out)
		}
		if out := propose(t, l, "/etc/apparmor.d/a", "bad"); len(out) != 1 || out[0].Exit == attach.ExitOK || !slices.Contains(codes(out[0].Reasons), attach.ProfileBroken) {
			t.Errorf("a text that does not compile: %+v", out)
		}
		if out := propose(t, l, "/etc/apparmor.d/other", "1"); len(out) != 1 || out[0].Exit != attach.ExitOK {
			t.Errorf("a profile of nobody: %+v", out)
		}
		if w.calls["load"] != loads {
			t.Errorf("a proposal was loaded: %q", w.trace)
		}
		w.mu.Lock()
		w.files["a"] = "2"
		w.mu.Unlock()
		if out := apply(t, l, "/etc/apparmor.d/a"); len(out) != 1 || out[0].Unit != "a.service" || !out[0].Changed || out[0].Exit != attach.ExitOK || w.kernel["a"] != "2" {
			t.Errorf("a changed text: %+v", out)
		}
		loads = w.calls["load"]
		w.gate = func(attach.Compiled) []attach.Reason {
			return []attach.Reason{attach.Because(attach.AssertionFailed, "it may write everywhere")}
		}
		if out := propose(t, l, "/etc/apparmor.d/a", "3"); len(out) != 2 || out[1].Exit != attach.ExitNotConfined {
			t.Errorf("a policy that fails: %+v", out)
		}
		if w.calls["load"] != loads || w.files["a"] != "2" {
			t.Errorf("something was loaded: %q", w.trace)
		}
	})
}

// Whether a text would do is said by the attachments of all that use its profile, as
// they would be, and what nobody uses is asked by itself.
func TestATextIsAskedByTheAttachmentsOfThoseWhoUseIt(t *testing.T) {
	const file, another = "/etc/apparmor.d/a", "/etc/aaunit/attachments.d/another.conf"
	together := func(t *testing.T, l *Loop, files ...string) []attach.Outcome {
		t.Helper()
		var all []attach.ProposedFile
		for i := 0; i < len(files); i += 2 {
			all = append(all, attach.ProposedFile{File: files[i], Text: files[i+1]})
		}
		out, err := l.Propose(t.Context(), all)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	fresh := func() *world {
		w := newWorld()
		w.addUnit("a.service")
		delete(w.files, "a")
		w.notFor = map[string]string{file: "2", "a.service": "2", "g@.service": "2"}
		return w
	}
	w := fresh()
	w.run(t, func(l *Loop) {
		if out := together(t, l, file, "2"); len(out) != 1 || out[0].Exit != attach.ExitNotConfined {
			t.Errorf("used by nobody: %+v", out)
		}
		for _, order := range [][]string{{file, "2", aFile, "a.service a waive"}, {aFile, "a.service a waive", file, "2"}} {
			out := together(t, l, order...)
			if len(out) != 2 || out[0].Unit != file || out[0].Exit != attach.ExitOK || out[0].Profile != "a" ||
				out[1].Exit != attach.ExitOK || out[1].File != file || !slices.Contains(kinds(out[1].Plan), attach.LoadPolicy) {
				t.Errorf("with an attachment that waives it: %+v", out)
			}
		}
		if out := together(t, l, file, "2", aFile, "a.service a"); len(out) != 2 || out[1].Exit != attach.ExitFailed || !slices.Contains(codes(out[1].Reasons), attach.AssertionFailed) {
			t.Errorf("with one that does not: %+v", out)
		}
		if out := together(t, l, file, "1", aFile, "a.service a complain"); len(out) != 2 || out[1].Exit != attach.ExitOK || !slices.Contains(kinds(out[1].Plan), attach.LoadPolicy) {
			t.Errorf("in complain mode: %+v", out)
		}
		for text, exit := range map[string]attach.Exit{"g@.service b%i waive": attach.ExitNotConfined, "g@.service a%i waive": attach.ExitOK, "g@.service a%i": attach.ExitNotConfined} {
			out := together(t, l, file, "2", aFile, text)
			worst := attach.ExitOK
			for _, o := range out {
				worst = attach.WorstExit(worst, o.Exit)
			}
			if worst != exit {
				t.Errorf("for units to come of %s: %+v", text, out)
			}
		}
		for _, bad := range [][]string{{file, "bad", aFile, "a.service a"}, {file, "1", aFile, "nonsense"}} {
			if out := together(t, l, bad...); len(out) != 1 || out[0].Exit == attach.ExitOK {
				t.Errorf("%q: %+v", bad, out)
			}
		}
		if _, there := w.files["a"]; there || w.calls["load"] > 0 {
			t.Errorf("something was done: %q", w.trace)
		}
	})
	w = fresh()
	w.files["a"] = "1"
	w.declareUnit(aFile, "a.service", func(a *attach.Attachment) { a.Waivers = []attach.Waiver{{Code: attach.MayEverything}} })
	w.run(t, func(l *Loop) {
		rest()
		if out := together(t, l, file, "2"); len(out) != 2 || out[0].Exit != attach.ExitOK || out[1].Unit != "a.service" || out[1].Exit != attach.ExitOK {
			t.Errorf("for a unit whose attachment waives it: %+v", out)
		}
		if out := together(t, l, file, "2", aFile, "a.service a"); len(out) != 2 || out[1].Exit != attach.ExitFailed {
			t.Errorf("for one that is to waive nothing: %+v", out)
		}
	})
	w = fresh()
	w.files["a"] = "1"
	w.declareUnit(aFile, "a.service", nil)
	w.run(t, func(l *Loop) {
		rest()
		if out := together(t, l, file, "2"); len(out) != 2 || out[1].Exit != attach.ExitNotConfined {
			t.Errorf("for a unit whose attachment waives nothing: %+v", out)
		}
		if out := together(t, l, file, "2", aFile, "a.service a waive"); len(out) != 2 || out[1].Exit != attach.ExitOK || !out[1].Changed {
			t.Errorf("for one that is to waive it: %+v", out)
		}
		if out := together(t, l, file, "3", aFile, ""); len(out) != 2 || out[0].Exit != attach.ExitOK || !slices.Contains(kinds(out[1].Plan), attach.RemoveDropIn) {
			t.Errorf("for one that is detached: %+v", out)
		}
		// Another name for the same attachment.
		if out := together(t, l, file, "2", aFile, "", another, "a.service a waive"); len(out) != 2 || out[1].Exit != attach.ExitOK {
			t.Errorf("for one that is attached by another file: %+v", out)
		}
	})
}

// A unit's own attachment says nothing for the units to come of its template, which have
// that of the template.
func TestATextIsAskedByATemplateWhoseUnitHasAnAttachmentOfItsOwn(t *testing.T) {
	own := func(a *attach.Attachment) { a.Profile, a.Waivers = "a", []attach.Waiver{{Code: attach.MayEverything}} }
	for _, c := range []struct {
		unit, profile string
		own, asked    bool
	}{
		{"a@.service", "%p", true, true}, {"a@.service", "%p", false, false}, {"b@.service", "%p", true, false}, {"a-.service", "%p", true, false},
	} {
		w := newWorld()
		w.files["a"] = "1"
		w.addUnit("a@1.service")
		w.notFor = map[string]string{c.unit: "2"}
		w.declareUnit("/etc/aaunit/attachments.d/template.conf", c.unit, func(a *attach.Attachment) { a.Profile = c.profile })
		if c.own {
			w.declareUnit(aFile, "a@1.service", own)
		}
		w.run(t, func(l *Loop) {
			rest()
			exits := map[string]attach.Exit{}
			for _, o := range propose(t, l, "/etc/apparmor.d/a", "2") {
				exits[o.Unit] = o.Exit
			}
			exit, asked := exits[c.unit]
			if asked != c.asked || asked && exit != attach.ExitNotConfined || exits["a@1.service"] != attach.ExitOK {
				t.Errorf("%+v: %v", c, exits)
			}
		})
	}
}

func TestWhatAllUnitsToComeHaveInTheNameOfTheirProfile(t *testing.T) {
	for _, c := range []struct{ profile, pattern, want string }{
		{"%p", "a@.service", "a"}, {"%p-%i", "a-b@.service", "a-b-%i"}, {"%j.%i", "a-b@.service", "b.%i"}, {"%n", "a@.service", "a@%i.service"},
		{"%N", "a@.service", "a@%i"}, {"%%p%p", "a@.service", "%%pa"}, {"%p%j", "a-.service", "a-%p%j"}, {"%n %N %i", "a-.service", "a-%n a-%N %i"},
		{"%p", "a%b@.service", "a%%b"},
	} {
		if got := toCome(c.profile, c.pattern); got != c.want {
			t.Errorf("%s of %s: %s", c.profile, c.pattern, got)
		}
	}
}

func TestNamesThatASpecifierMayStandFor(t *testing.T) {
	for _, c := range []struct {
		profile, name string
		could         bool
	}{
		{"agent-%i", "agent-1", true}, {"agent-%i", "agent-", true}, {"agent-%i", "agent", false}, {"agent-%i", "my-agent-1", false},
		{"%p", "anything", true}, {"%p-%i", "a-b", true}, {"%p-%i", "ab", false}, {"%p.x", "a.x.x", true}, {"%p.x", "a.x.y", false},
		{"a%%%i", "a%1", true}, {"a%%%i", "a1", false}, {"a%i.b%j.c", "a.b.c", true}, {"agent", "agent", true}, {"agent", "agents", false},
		{"x%", "x", true},
	} {
		if couldBe(c.profile, c.name) != c.could {
			t.Errorf("%s, %s: not %v", c.profile, c.name, c.could)
		}
	}
}

// stagings counts how often each text is staged that has no checksums, which CompileText
// gives none either.
type stagings struct {
	AppArmor
	sync.Mutex
	of map[string]int
}

func (s *stagings) Stage(ctx context.Context, all []attach.Compiled) {
	s.Lock()
	for _, c := range all {
		if c.Checksums == nil {
			s.of[c.ID]++
		}
	}
	s.Unlock()
	s.AppArmor.Stage(ctx, all)
}

func (s *stagings) CompileText(ctx context.Context, file, text string, complain bool) (attach.Compiled, *attach.Reason) {
	c, why := s.AppArmor.CompileText(ctx, file, text, complain)
	c.Checksums = nil
	return c, why
}

// The kernel is asked about a proposed text once, however many units share it, also where
// it answers otherwise than the text says.
func TestAProposedTextIsStagedOnce(t *testing.T) {
	for _, c := range []struct {
		mode     attach.Wish
		disputed string
		exit     attach.Exit
	}{{attach.WishEnforce, "", attach.ExitOK}, {attach.WishComplain, "", attach.ExitOK}, {attach.WishEnforce, "it may write everywhere", attach.ExitNotConfined}} {
		w := newWorld()
		conf := func(unit string) string { return "/etc/aaunit/attachments.d/" + unit + ".conf" }
		units := []string{"u1.service", "u2.service", "u3.service", "u4.service"}
		files := []attach.ProposedFile{{File: "/etc/apparmor.d/a", Text: "2"}}
		for i, unit := range units {
			w.addUnit(unit)
			w.declareUnit(conf(unit), unit, func(a *attach.Attachment) { a.Profile, a.Mode = "a", c.mode })
			if c.mode == attach.WishComplain && i > 1 {
				files = append(files, attach.ProposedFile{File: conf(unit), Text: unit + " a complain"})
			}
		}
		w.files["a"] = "1"
		w.run(t, func(l *Loop) {
			rest()
			w.disputed = c.disputed
			s := &stagings{AppArmor: l.apparmor, of: map[string]int{}}
			l.apparmor = s
			out, err := l.Propose(t.Context(), files)
			if err != nil || len(out) != 1+len(units) {
				t.Fatalf("%+v, %v", out, err)
			}
			for _, o := range out[1:] {
				if o.Exit != c.exit || len(o.Questioned)+len(o.Reasons) == 0 {
					t.Errorf("%+v", o)
				}
			}
			for id, n := range s.of {
				if n != 1 {
					t.Errorf("%s %q: %s was staged %d times", c.mode, c.disputed, id, n)
				}
			}
		})
	}
}

// A changed text under which a unit is denied something new is undone, whoever asked
// for it: there is nobody who could look. A person who attaches decides.
func TestApplyUndoesWhatIsDeniedSomethingNew(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.onCall = func(call string) {
			if call == "load 1" {
				w.denials <- denial("a.service", "/etc/needed")
			}
		}
		w.mu.Lock()
		w.files["a"] = "2"
		w.mu.Unlock()
		out := apply(t, l, "/etc/apparmor.d/a")
		if len(out) != 1 || out[0].Exit != attach.ExitFailed || !strings.Contains(fmt.Sprint(out[0].Reasons), "/etc/needed") || w.kernel["a"] != "1" || answer(l, "a") != "confined" {
			t.Errorf("%+v %q", out, w.kernel)
		}
		if out := attachUnits(t, l, attach.Request{Units: []string{"a"}}); out[0].Exit != attach.ExitOK || w.kernel["a"] != "2" {
			t.Errorf("asked for by a person: %+v %q", out, w.kernel)
		}
	})
}

// The file is there before apply is asked for, and the loop may have been faster: what
// was denied under a text that it has undone already is still new to the unit.
func TestApplyOfATextThatWasUndoneBefore(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.onCall = func(call string) {
			if call == "load 1" {
				w.denials <- denial("a.service", "/etc/needed")
			}
		}
		w.edit("2")
		rest()
		if w.kernel["a"] != "1" {
			t.Fatalf("the changed text is not undone: %q", w.kernel)
		}
		for range 2 {
			out := apply(t, l, "/etc/apparmor.d/a")
			if len(out) != 1 || out[0].Exit != attach.ExitFailed || !out[0].Undone || !strings.Contains(fmt.Sprint(out[0].Reasons), "/etc/needed") || w.kernel["a"] != "1" || answer(l, "a") != "confined" {
				t.Errorf("%+v %q", out, w.kernel)
			}
		}
		// Whoever asks in person decides that it is right, and then it is nothing new.
		if out := attachUnits(t, l, attach.Request{Units: []string{"a"}}); out[0].Exit != attach.ExitOK || w.kernel["a"] != "2" {
			t.Errorf("asked for by a person: %+v %q", out, w.kernel)
		}
		w.mu.Lock()
		w.files["a"] = "3"
		w.mu.Unlock()
		if out := apply(t, l, "/etc/apparmor.d/a"); len(out) != 1 || out[0].Exit != attach.ExitOK || w.kernel["a"] != "3" {
			t.Errorf("another text, and a denial that is known: %+v %q", out, w.kernel)
		}
	})
}

// Where an attachment that is not written yet is what lets a text in, it goes live for
// none of those who share it until then, it is told whose attachment that is, and then it
// goes live for all.
func TestATextWaitsForTheAttachmentsThatLetItIn(t *testing.T) {
	const file = "/etc/apparmor.d/a"
	conf := func(name string) string { return "/etc/aaunit/attachments.d/" + name + ".conf" }
	waives := func(a *attach.Attachment) {
		a.Profile, a.Waivers = "a", []attach.Waiver{{Code: attach.MayEverything}}
	}
	for _, c := range []struct {
		name string
		then func(w *world)
	}{
		{"it waives", func(w *world) { w.declareUnit(conf("b"), "b.service", waives) }},
		{"it is for another profile", func(w *world) { w.declareUnit(conf("b"), "b.service", nil) }},
		{"it is gone", func(w *world) { w.undeclare(conf("b")) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld()
			w.notFor = map[string]string{"b.service": "2"}
			for _, unit := range []string{"a.service", "b.service"} {
				w.addUnit(unit)
				w.declareUnit(conf(strings.TrimSuffix(unit, ".service")), unit, func(a *attach.Attachment) { a.Profile = "a" })
			}
			w.run(t, func(l *Loop) {
				rest()
				w.mu.Lock()
				w.files["a"] = "2"
				w.mu.Unlock()
				out := apply(t, l, file)
				if len(out) != 2 || out[0].Exit != attach.ExitFailed || len(out[0].Reasons) != 1 || out[0].Reasons[0].Unit != "b.service" ||
					out[1].Exit != attach.ExitFailed || len(out[1].Reasons) != 1 || out[1].Reasons[0].Unit != "" {
					t.Errorf("before: %+v", out)
				}
				if w.kernel["a"] != "1" || answer(l, "a") != "confined" || answer(l, "b") != "confined" {
					t.Errorf("before: %q, a is %s, b is %s", w.kernel, answer(l, "a"), answer(l, "b"))
				}
				c.then(w)
				if out := apply(t, l, conf("b")); len(out) != 1 || out[0].Exit != attach.ExitOK {
					t.Errorf("then: %+v", out)
				}
				for _, o := range apply(t, l, file) {
					if o.Exit != attach.ExitOK || o.Verdict == nil || o.Verdict.Answer != attach.Confined {
						t.Errorf("and asked for again: %+v", o)
					}
				}
				rest()
				if w.kernel["a"] != "2" || answer(l, "a") != "confined" || len(l.Status([]string{"a"}).Units[0].Refused) > 0 {
					t.Errorf("%q, a is %s, %+v", w.kernel, answer(l, "a"), l.Status([]string{"a"}).Units[0].Refused)
				}
			})
		})
	}
}
