package reconcile

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestCheckNamesFilesProfilesAndUnits(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.files["alone"], w.files["broken"], w.files["untold"] = "1", "1", "1"
	w.bad["broken"] = true
	w.untold = map[string]attach.Reason{"untold": attach.Because(attach.ProfileNotCompiled, "no parser")}
	w.att["/etc/aaunit/attachments.d/x.conf"] = attach.Attachment{Units: []string{"x.service", "y.service"}, Profile: "alone"}
	w.att["/srv/y.conf"] = attach.Attachment{Units: []string{"y@.service"}, Profile: "p-%i"}
	w.files["a%b"] = "1"
	w.att["/srv/z.conf"] = attach.Attachment{Units: []string{"z@.service"}, Profile: "a%%b"}
	w.gate = func(c attach.Compiled) []attach.Reason {
		if strings.HasSuffix(c.ID, "-partly") {
			return []attach.Reason{attach.Because(attach.MayWriteTmp, "behind the mistake")}
		}
		return nil
	}
	l := New(w.options())
	for name, c := range map[string]struct {
		arg     string
		trusted bool
		exit    attach.Exit
		profile string
		codes   []attach.Code // among what is said
	}{
		"a unit":                      {"a.service", true, attach.ExitOK, "a", nil},
		"a profile":                   {"alone", false, attach.ExitOK, "alone", nil},
		"neither":                     {"nothing", true, attach.ExitNoUnit, "", []attach.Code{attach.UnitNotFound}},
		"a file":                      {"/etc/apparmor.d/alone", false, attach.ExitOK, "alone", nil},
		"a file elsewhere":            {"/srv/alone", true, attach.ExitOK, "alone", nil},
		"a file elsewhere, not root":  {"/srv/alone", false, attach.ExitFailed, "", []attach.Code{attach.ProfileUntrusted}},
		"a way around that":           {"/etc/apparmor.d/../../srv/alone", false, attach.ExitFailed, "", []attach.Code{attach.ProfileUntrusted}},
		"what does not compile":       {"/etc/apparmor.d/broken", true, attach.ExitNotConfined, "broken", []attach.Code{attach.ProfileBroken, attach.ProfilePartly, attach.MayWriteTmp}},
		"what could not be compiled":  {"/etc/apparmor.d/untold", true, attach.ExitUnknown, "untold", []attach.Code{attach.ProfileNotCompiled}},
		"an attachment":               {"/etc/aaunit/attachments.d/x.conf", false, attach.ExitOK, "alone", nil},
		"an attachment of a template": {"/srv/y.conf", true, attach.ExitUnknown, "", []attach.Code{attach.ProfileByUnit}},
		"of one with a percent sign":  {"/srv/z.conf", true, attach.ExitOK, "a%b", nil},
		"an attachment, not root":     {"/srv/y.conf", false, attach.ExitFailed, "", []attach.Code{attach.ProfileUntrusted}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := l.Check(t.Context(), []string{c.arg}, c.trusted)
			if err != nil || len(out) != 1 {
				t.Fatalf("%v %+v", err, out)
			}
			o := out[0]
			said := append(codesOf(o.Reasons), codesOf(o.Notes)...)
			for _, f := range o.Findings {
				said = append(said, f.Code)
			}
			for _, code := range c.codes {
				if !slices.Contains(said, code) {
					t.Errorf("%s is not said: %v", code, said)
				}
			}
			if o.Exit != c.exit || o.Profile != c.profile {
				t.Errorf("exit %d, profile %q: %+v", o.Exit, o.Profile, o)
			}
		})
	}
}

// A template or prefix is checked like the attachment that names it, whether a unit of it
// is there or not.
func TestCheckOfPatterns(t *testing.T) {
	w := newWorld()
	for file, a := range map[string]attach.Attachment{
		"good": {Units: []string{"good@.service"}, Profile: "good"},
		"bad":  {Units: []string{"bad-.service", "other.service"}, Profile: "bad"},
		"each": {Units: []string{"each@.service"}, Profile: "each-%i"},
		"none": {Units: []string{"none@.service"}, Profile: "none"},
	} {
		file = "/etc/aaunit/attachments.d/" + file + ".conf"
		a.Source = file
		w.att[file] = a
	}
	w.files["good"], w.files["bad"] = "1", "1"
	w.gate = func(c attach.Compiled) []attach.Reason {
		if c.File == "/etc/apparmor.d/bad" {
			return []attach.Reason{attach.Because(attach.AssertionFailed, "it may").At(c.File)}
		}
		return nil
	}
	l := w.loop()
	l.declare(t.Context())
	want := map[string]attach.Exit{"bad-.service": attach.ExitNotConfined, "each@.service": attach.ExitUnknown, "good@.service": attach.ExitOK, "none@.service": attach.ExitNotConfined, "other.service": attach.ExitNoUnit}
	all, err := l.Check(t.Context(), nil, true)
	if err != nil || len(all) != len(want) {
		t.Fatalf("%v %+v", err, all)
	}
	for _, o := range all {
		if exit, known := want[o.Unit]; !known || o.Exit != exit {
			t.Errorf("%s: exit %d, want %d: %+v", o.Unit, o.Exit, exit, o)
		}
		one, err := l.Check(t.Context(), []string{o.Unit}, false)
		if err != nil || len(one) != 1 || one[0].Exit != o.Exit || one[0].Profile != o.Profile {
			t.Errorf("%s by its name: %v %+v", o.Unit, err, one)
		}
	}
}

// A template whose profile depends on the instance is checked by those that there are.
func TestCheckOfInstances(t *testing.T) {
	w := instances(func(a *attach.Attachment) { a.Profile = "%p-%i" }, "1")
	w.files["w-1"] = "1"
	w.run(t, func(l *Loop) {
		rest()
		all, err := l.Check(context.Background(), nil, true)
		if err != nil || len(all) != 1 || all[0].Unit != "w@1.service" || all[0].Exit != attach.ExitOK {
			t.Errorf("%v %+v", err, all)
		}
	})
}

// A unit that goes on under what was accepted for it is checked by its text, as one that
// is not attached is, and nothing is done about it.
func TestCheckOfAnAttachedUnitIsOfItsText(t *testing.T) {
	finding := func(c attach.Code) func(*world) {
		return func(w *world) {
			w.gate = func(p attach.Compiled) []attach.Reason {
				if strings.HasSuffix(p.ID, " 2") {
					return []attach.Reason{attach.Because(c, "it says so").At(p.File)}
				}
				return nil
			}
		}
	}
	for name, c := range map[string]struct {
		now  func(*world)
		exit attach.Exit
		code attach.Code
	}{
		"nothing is wrong":    {func(*world) {}, attach.ExitOK, ""},
		"an assertion fails":  {finding(attach.AssertionFailed), attach.ExitNotConfined, attach.AssertionFailed},
		"one is not answered": {func(w *world) { finding(attach.AssertionUnknown)(w); w.warns = true }, attach.ExitUnknown, attach.AssertionUnknown},
		"it complains":        {func(w *world) { w.flags["a"] = []string{"complain"} }, attach.ExitNotConfined, attach.ProfileComplain},
		"it does not compile": {func(w *world) { w.bad["a"] = true }, attach.ExitNotConfined, attach.ProfileBroken},
		"it is not known whether it compiles": {func(w *world) {
			w.untold = map[string]attach.Reason{"a": attach.Because(attach.ProfileNotCompiled, "no parser")}
		}, attach.ExitUnknown, attach.ProfileNotCompiled},
	} {
		t.Run(name, func(t *testing.T) {
			w := attached(nil, "a")
			w.run(t, func(l *Loop) {
				unlock := w.lock()
				c.now(w)
				unlock()
				if c.code != "" {
					w.edit("2")
				}
				rest()
				for _, args := range [][]string{{"a.service"}, nil} {
					out, err := l.Check(t.Context(), args, true)
					if err != nil || len(out) != 1 {
						t.Fatalf("%v %+v", err, out)
					}
					said := slices.Concat(codesOf(out[0].Reasons), codesOf(out[0].Plan.Warnings))
					if out[0].Exit != c.exit || c.code != "" && !slices.Contains(said, c.code) {
						t.Errorf("exit %d, want %d: %v", out[0].Exit, c.exit, said)
					}
				}
				if s := status(t, l, "a"); c.exit != attach.ExitUnknown && w.kernel["a"] != "1" || answer(l, "a") != "confined" || s.Held != nil || w.calls["restart"] != 1 {
					t.Errorf("%q %s %+v", w.kernel, answer(l, "a"), s)
				}
			})
		})
	}
}

// Complain mode is no success of a check, whoever asks and however, and no Deny= holds in
// it. It is attached all the same.
func TestCheckOfComplainMode(t *testing.T) {
	const file, unit = "/etc/aaunit/attachments.d/a.service.conf", "a.service"
	for _, mode := range []attach.Wish{attach.WishEnforce, attach.WishComplain} {
		deny, err := attach.ParseAssertion(true, "write /etc/**")
		if err != nil {
			t.Fatal(err)
		}
		deny.Line = 5
		allow := deny
		allow.Deny, allow.Line = false, 6
		w := newWorld()
		w.addUnit(unit)
		w.declareUnit(file, unit, func(a *attach.Attachment) { a.Mode, a.Assertions = mode, []attach.Assertion{deny, allow} })
		ask := func(what string, out []attach.Outcome, err error) {
			t.Helper()
			if err != nil || len(out) != 1 {
				t.Fatalf("%s: %v %+v", what, err, out)
			}
			var said []string
			for _, r := range out[0].Notes {
				said = append(said, string(r.Code)+" "+r.Where)
			}
			want, exit := []string(nil), attach.ExitOK
			if mode == attach.WishComplain {
				want, exit = []string{"profile-complain " + file, "assertion-failed " + file + ":5"}, attach.ExitNotConfined
			}
			if out[0].Exit != exit || !slices.Equal(said, want) || len(out[0].Reasons) > 0 {
				t.Errorf("%s of %s: exit %d, %q, %+v", what, mode, out[0].Exit, said, out[0].Reasons)
			}
		}
		w.run(t, func(l *Loop) {
			rest()
			for _, arg := range []string{unit, file} {
				out, err := l.Check(t.Context(), []string{arg}, true)
				ask("check "+arg, out, err)
			}
			if s := status(t, l, unit); len(s.Refused) > 0 || s.Verdict == nil || w.calls["restart"] != 1 {
				t.Errorf("%s: it is not attached: %+v", mode, s)
			}
		})
		off := Offline{Texts: apparmor{w}, Gate: w, Attachments: attachments{w}, Kernel: "nobody asked"}
		out, err := off.Check(t.Context(), []string{file})
		ask("check --offline FILE", out, err)
		off.Systemd = fewUnits{u: attach.Unit{ID: unit, Names: []string{unit}, LoadState: "loaded", ActiveState: "active", FragmentPath: "/lib/a.service", Type: "simple",
			Settings: attach.Settings{Exec: []attach.ExecCommand{{Property: "ExecStart", Path: "/usr/bin/x"}}, DefaultDependencies: true}}}
		out, err = off.Check(t.Context(), []string{unit})
		ask("check --offline UNIT", out, err)
	}
}

// TestFilesOfOthersAreNotOpened: whoever is not root has no file read, not even looked at,
// that may not be named: what opens it is root.
func TestFilesOfOthersAreNotOpened(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.files["mine"] = "1"
	w.att["/srv/y.conf"] = attach.Attachment{Units: []string{"y.service"}, Profile: "mine"}
	w.att["/etc/aaunit/attachments.d/x.conf"] = attach.Attachment{Units: []string{"x.service"}, Profile: "mine"}
	for _, trusted := range []bool{false, true} {
		for _, file := range []string{"/srv/mine", "/srv/y.conf", "/etc/apparmor.d/../../srv/mine", "/etc/apparmor.d/sub/mine", "/etc/apparmor.d/mine", "/etc/aaunit/attachments.d/x.conf"} {
			inPlace := path.Dir(path.Clean(file)) == "/etc/apparmor.d"
			for name, ask := range map[string]func(l *Loop) ([]attach.Outcome, error){
				"check": func(l *Loop) ([]attach.Outcome, error) { return l.Check(context.Background(), []string{file}, trusted) },
				"plan": func(l *Loop) ([]attach.Outcome, error) {
					return l.Plan(context.Background(), attach.Request{Units: []string{"a"}, Profile: file, Trusted: trusted})
				},
				"attach": func(l *Loop) ([]attach.Outcome, error) {
					return l.Attach(context.Background(), attach.Request{Units: []string{"a"}, Profile: file, Trusted: trusted}, nil)
				},
			} {
				w.run(t, func(l *Loop) {
					unlock := w.lock()
					w.opened = nil
					unlock()
					out, err := ask(l)
					if err != nil || len(out) != 1 {
						t.Fatalf("%s %s: %v %+v", name, file, err, out)
					}
					unlock = w.lock()
					opened := w.opened
					unlock()
					may := trusted || inPlace || name == "check" && strings.HasPrefix(file, "/etc/aaunit/")
					if !may && (len(opened) > 0 || !slices.Contains(codesOf(out[0].Reasons), attach.ProfileUntrusted)) {
						t.Errorf("%s %s: opened %q, %+v", name, file, opened, out[0].Reasons)
					}
					if may && len(opened) == 0 {
						t.Errorf("%s %s, trusted %v: not opened", name, file, trusted)
					}
				})
			}
		}
	}
}

func codesOf(list []attach.Reason) (out []attach.Code) {
	for _, r := range list {
		out = append(out, r.Code)
	}
	return out
}

// fewUnits is a systemd that knows one unit, or does not answer.
type fewUnits struct {
	u   attach.Unit
	err error
}

func (f fewUnits) Observe(_ context.Context, unit string) (attach.Unit, error) {
	if f.err != nil {
		return attach.Unit{}, f.err
	}
	if unit != f.u.ID {
		return attach.Unit{ID: unit, LoadState: "not-found"}, nil
	}
	return f.u, nil
}

// Without a daemon the answers are the same, and what is not asked is said.
func TestOffline(t *testing.T) {
	w := newWorld()
	for _, name := range []string{"a", "b", "plus"} {
		w.files[name] = "1"
	}
	unit := attach.Unit{ID: "a.service", Names: []string{"a.service"}, LoadState: "loaded", ActiveState: "active", FragmentPath: "/lib/a.service", Type: "simple",
		Settings: attach.Settings{Exec: []attach.ExecCommand{{Property: "ExecStart", Path: "/usr/bin/x"}}, DefaultDependencies: true}}
	plus := unit
	plus.ID, plus.Names = "plus.service", []string{"plus.service"}
	plus.Settings.Exec = []attach.ExecCommand{{Property: "ExecStart", Path: "/usr/bin/x", Privileged: true}}
	off := func(o observer) Offline {
		return Offline{Texts: apparmor{w}, Gate: w, Attachments: attachments{w}, Systemd: o, Kernel: "nobody asked"}
	}
	for name, c := range map[string]struct {
		f    Offline
		arg  string
		exit attach.Exit
		code attach.Code // "": nothing is said
	}{
		"a profile":                  {off(nil), "b", attach.ExitOK, ""},
		"a file":                     {off(nil), "/srv/checkout/b", attach.ExitOK, ""},
		"a unit, without systemd":    {off(nil), "a.service", attach.ExitUnknown, attach.SystemdUnheard},
		"a word, without systemd":    {off(nil), "neither", attach.ExitUnknown, attach.SystemdUnheard},
		"a unit":                     {off(fewUnits{u: unit}), "a.service", attach.ExitOK, ""},
		"a unit by its short name":   {off(fewUnits{u: unit}), "a", attach.ExitOK, ""},
		"a way around":               {off(fewUnits{u: plus}), "plus", attach.ExitNotConfined, attach.ExecPrivileged},
		"no unit, but a profile":     {off(fewUnits{u: unit}), "b", attach.ExitOK, ""},
		"neither":                    {off(fewUnits{u: unit}), "neither", attach.ExitNoUnit, attach.UnitNotFound},
		"systemd does not answer":    {off(fewUnits{err: errors.New("no bus")}), "a.service", attach.ExitUnknown, attach.SystemdUnheard},
		"it does not, and a profile": {off(fewUnits{err: errors.New("no bus")}), "b", attach.ExitOK, ""},
		"no features": {func() Offline { f := off(nil); f.Features = "nothing is known of kernels"; return f }(), "b",
			attach.ExitUnknown, attach.AssertionUnknown},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := c.f.Check(t.Context(), []string{c.arg})
			if err != nil || len(out) != 1 {
				t.Fatalf("%v %+v", err, out)
			}
			o := out[0]
			said := append(codesOf(o.Reasons), codesOf(o.Notes)...)
			if o.Exit != c.exit || c.code == "" && len(said) > 0 || c.code != "" && !slices.Contains(said, c.code) {
				t.Errorf("exit %d, %v: %+v", o.Exit, said, o)
			}
			if c.exit == attach.ExitOK && (len(o.Questioned) != 1 || o.Questioned[0].NotAsked != "nobody asked") {
				t.Errorf("that the kernel was not asked is not said: %+v", o.Questioned)
			}
		})
	}
	if _, err := off(nil).Check(t.Context(), nil); err == nil {
		t.Error("all attached units were checked without anybody who knows them")
	}
	out, err := off(nil).Query(t.Context(), []string{path.Join("/etc/apparmor.d", "b")}, "write /etc/**")
	if err != nil || len(out) != 1 || out[0].Profile != "b" {
		t.Errorf("%v %+v", err, out)
	}
}

// A profile file that could not be read may allow what is asked.
func TestQueryOfWhatCouldNotBeRead(t *testing.T) {
	w := newWorld()
	w.files["a"] = "1"
	off := Offline{Texts: apparmor{w}, Gate: saysNo{w}, Attachments: attachments{w}, Profiles: "/srv/base"}
	ask := func(names ...string) []attach.QueryResult {
		t.Helper()
		out, err := off.Query(t.Context(), names, "write /etc/**")
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if out := ask(); len(out) != 1 || attach.ExitOfQuery(out) != attach.ExitOK {
		t.Errorf("%+v", out)
	}
	none := ask("b")
	if len(none) != 1 || none[0].Reason.Code != attach.ProfileNotFound || !strings.Contains(none[0].Text, "no file under /srv/base defines") {
		t.Errorf("%+v", none)
	}
	w.unread = map[string]attach.Reason{"/srv/base/b": attach.Because(attach.ProfileUnreadable, "cannot read it").At("/srv/base/b")}
	out := ask()
	if len(out) != 2 || attach.ExitOfQuery(out) != attach.ExitUnknown || out[0].File != "/srv/base/b" || out[0].Reason == nil || out[0].Reason.Code != attach.ProfileUnreadable {
		t.Errorf("%+v", out)
	}
	if out := ask("a"); len(out) != 1 || attach.ExitOfQuery(out) != attach.ExitOK {
		t.Errorf("a profile that was read: %+v", out)
	}
	none = ask("b")
	if len(none) != 1 || none[0].Reason.Code != attach.ProfileUnreadable || !strings.Contains(none[0].Text, "1 could not: cannot read it") {
		t.Errorf("%+v", none)
	}
}

func TestQueryLoaded(t *testing.T) {
	w := newWorld()
	w.kernel["a"], w.kernel["b"] = "1", "unread"
	l := New(w.options())
	out, err := l.QueryLoaded(t.Context(), []string{"a", "b", "none"}, "write /etc/**")
	if err != nil || len(out) != 3 {
		t.Fatalf("%v %+v", err, out)
	}
	if r := out[0]; r.May == attach.MayUnknown || r.Loaded == nil || r.Loaded.Checksum != "sha1:1" || r.Loaded.Mode != attach.ModeEnforce {
		t.Errorf("%+v", r)
	}
	if r := out[1]; r.May != attach.MayUnknown || r.Reason == nil || r.Reason.Code != attach.PolicyUnreadable || r.Loaded == nil {
		t.Errorf("%+v", r)
	}
	if r := out[2]; r.May != attach.MayUnknown || r.Reason == nil || r.Reason.Code != attach.ProfileNotLoaded || r.Loaded != nil {
		t.Errorf("%+v", r)
	}
	if all, err := l.QueryLoaded(t.Context(), nil, "write /etc/**"); err != nil || len(all) != 2 {
		t.Errorf("%v %+v", err, all)
	}
	// What a profile that only complains does not allow happens all the same.
	o := w.options()
	o.Gate, o.AppArmor = saysNo{w}, complaining{apparmor{w}}
	if out, err := New(o).QueryLoaded(t.Context(), []string{"a"}, "write /etc/**"); err != nil || len(out) != 1 || out[0].May != attach.MayNotMediated {
		t.Errorf("%v %+v", err, out)
	}
	if _, err := l.QueryLoaded(t.Context(), nil, "nonsense"); err == nil {
		t.Error("nonsense was asked")
	}
}

// saysNo is a gate whose policies allow nothing.
type saysNo struct{ *world }

func (saysNo) Query(_ context.Context, profile string, _ attach.Compiled, _ attach.Assertion) attach.QueryResult {
	return attach.QueryResult{Profile: profile, May: attach.MayNo, Text: "may not"}
}

// complaining has every profile loaded in complain mode.
type complaining struct{ apparmor }

func (c complaining) Loaded(names []string) ([]attach.Compiled, error) {
	out, err := c.apparmor.Loaded(names)
	for i := range out {
		out[i].Profiles[0].Flags = []string{"complain"}
	}
	return out, err
}

// A unit whose attachment cannot be read since the daemon was started is still attached: a
// detach does not say that it is done, and a check not that there is nothing to check.
func TestAUnitOfABrokenFileIsNotDetachedByAWord(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	file := "/etc/aaunit/attachments.d/a.service.conf"
	w.declareUnit(file, "a.service", func(a *attach.Attachment) { a.Manual = true })
	w.run(t, func(*Loop) { rest() })
	w.broken[file] = true
	w.run(t, func(l *Loop) {
		rest()
		out, err := l.Detach(context.Background(), attach.Request{Units: []string{"a.service"}}, nil)
		if err != nil || len(out) != 1 || out[0].Exit == attach.ExitOK || !slices.Contains(codes(out[0].Reasons), attach.AttachmentBad) {
			t.Errorf("a detach gives %+v, %v", out, err)
		}
		rest()
		out, err = l.Check(context.Background(), nil, true)
		if err != nil || len(out) != 1 || out[0].Unit != "a.service" || out[0].Exit == attach.ExitOK || !slices.Contains(codes(out[0].Reasons), attach.AttachmentBad) {
			t.Errorf("a check gives %+v, %v", out, err)
		}
		defer w.lock()()
		if w.disk[dropIn] == "" {
			t.Error("its drop-in is gone")
		}
	})
}
