package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestWhatTakesThePlaceOfWhat(t *testing.T) {
	// "f: a1 b1" is file f with profiles a and b; "f" is not kept.
	policies := func(texts ...string) (all []attach.Compiled) {
		for _, text := range texts {
			file, profiles, _ := strings.Cut(text, ": ")
			c := attach.Compiled{File: file, ID: text, Checksums: map[string]string{}}
			for _, p := range strings.Fields(profiles) {
				c.Checksums[p[:len(p)-1]] = p
			}
			all = append(all, c)
		}
		return all
	}
	ids := func(all []attach.Compiled) string {
		return strings.Join(slices.Sorted(maps.Values(idsOf(all))), ", ")
	}
	for name, tt := range map[string]struct {
		now, before []string
		want        []string // now < before
	}{
		"the same":                 {[]string{"f: a1"}, []string{"f: a1"}, nil},
		"changed":                  {[]string{"f: a2"}, []string{"f: a1"}, []string{"f: a2 < f: a1"}},
		"moved":                    {[]string{"g: a2"}, []string{"f: a1"}, []string{"g: a2 < f: a1"}},
		"moved alone":              {[]string{"g: a1"}, []string{"f: a1"}, nil},
		"one beside":               {[]string{"f: a2", "g: b1"}, []string{"f: a1", "g: b1"}, []string{"f: a2 < f: a1"}},
		"two":                      {[]string{"f: a2", "g: b2"}, []string{"f: a1", "g: b1"}, []string{"f: a2 < f: a1", "g: b2 < g: b1"}},
		"one became two":           {[]string{"f: a2", "g: b1"}, []string{"f: a1 b1"}, []string{"f: a2, g: b1 < f: a1 b1"}},
		"two became one":           {[]string{"f: a1 b2"}, []string{"f: a1", "g: b1"}, []string{"f: a1 b2 < f: a1, g: b1"}},
		"one became two alone":     {[]string{"f: a1", "g: b1"}, []string{"f: a1 b1"}, nil},
		"all moved on":             {[]string{"f: b1", "g: a2"}, []string{"f: a1", "h: b1"}, []string{"f: b1, g: a2 < f: a1, h: b1"}},
		"a hat goes":               {[]string{"f: a1"}, []string{"f: a1 a//h1"}, []string{"f: a1 < f: a1 a//h1"}},
		"a profile comes":          {[]string{"f: a1 b1"}, []string{"f: a1"}, nil},
		"a profile goes":           {[]string{"f: a1"}, []string{"f: a1 b1"}, nil},
		"another in the same file": {[]string{"f: b1"}, []string{"f: a1"}, nil},
		"none before":              {[]string{"f: a1"}, nil, nil},
		"not kept":                 {[]string{"f: a1"}, []string{"f"}, []string{"f: a1 < f"}},
	} {
		var got []string
		for _, e := range replaced(policies(tt.now...), policies(tt.before...)) {
			got = append(got, ids(e.now)+" < "+ids(e.before))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	anew := policies("f: a1")
	anew[0].Checksums["a"] = "a1 by another parser"
	if got := replaced(anew, policies("f: a1")); len(got) != 1 {
		t.Errorf("made by another parser: %v", got)
	}
}

// Who asks for texts that a package has made of one has all of them accepted for the others,
// and all are taken back where the attach fails.
func TestAFileThatBecameTwoIsAskedFor(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	for _, leftAlone := range []bool{false, true} {
		for _, fails := range []bool{false, true} {
			for range 5 { // in whatever order
				w := attached(func(a *attach.Attachment) {
					a.AllowProfiles, a.OnProfileChange, a.OnViolation = []string{"b"}, attach.ChangeReport, attach.ViolationStop
				}, "a", "c")
				w.tells, w.also, w.in = true, map[string]string{"a": "b"}, map[string]string{"b": "a"}
				w.run(t, func(l *Loop) {
					unlock := w.lock()
					w.also, w.in, w.files["b"] = nil, nil, "2"
					if fails {
						w.deadly["2"], w.units["c.service"].survives = "dies", true
					}
					unlock()
					w.edit("2")
					rest()
					if leftAlone {
						pause(t, l, time.Hour, "c")
					}
					out, err := l.Attach(context.Background(), attach.Request{Units: []string{"a"}}, nil)
					if err != nil || (out[0].Exit != attach.ExitOK) != fails {
						t.Fatalf("%v %+v", err, out)
					}
					w.still(t, "asked for")
					time.Sleep(time.Hour)
					w.still(t, "after an hour")
					want, kernel := map[string]string{textA: textA + " 2", textB: textB + " 2"}, "2"
					if fails {
						want, kernel = map[string]string{textA: textA + " 1 and b"}, "1"
					}
					for _, unit := range []string{"a", "c"} {
						if r := w.record(unit + ".service"); !maps.Equal(r.Policies, want) || r.Lent != nil || answer(l, unit) != "confined" || !w.units[unit+".service"].running {
							t.Errorf("left alone %v, fails %v: %s is %s, has %q, lent %+v", leftAlone, fails, unit, answer(l, unit), r.Policies, r.Lent)
						}
					}
					if w.kernel["a"] != kernel || w.kernel["b"] != kernel || w.called("stop") > 0 {
						t.Errorf("left alone %v, fails %v: kernel %q, %q", leftAlone, fails, w.kernel, w.trace)
					}
				})
			}
		}
	}
}

// Where a package has made one file of two, and one unit does not want that, another one
// keeps its own file.
func TestTwoFilesThatBecameOneStayTwoForBoth(t *testing.T) {
	const textB = "/etc/apparmor.d/b"
	for _, same := range []bool{false, true} {
		for _, how := range []string{"reported", "undone while the other one is paused"} {
			what := fmt.Sprintf("%s, it says the same for it %v", how, same)
			w := attached(func(a *attach.Attachment) {
				if a.Settle = 30 * time.Second; how == "reported" {
					a.OnProfileChange = attach.ChangeReport
				}
			}, "a")
			w.addUnit("c.service")
			w.tells, w.files["b"] = true, "1"
			w.run(t, func(l *Loop) {
				w.declareUnit("/etc/aaunit/attachments.d/c.conf", "c.service", func(a *attach.Attachment) { a.Profile = "b" })
				time.Sleep(2 * time.Minute)
				if how != "reported" {
					pause(t, l, time.Minute, "c")
				}
				unlock := w.lock()
				w.also, w.in = map[string]string{"a": "b"}, map[string]string{"b": "a"}
				if same {
					w.alike = map[string]string{"b": "1"}
				}
				unlock()
				w.edit("2")
				time.Sleep(5 * time.Second)
				if how != "reported" {
					w.denials <- denial("a.service", "/new")
				}
				time.Sleep(2 * time.Minute)
				w.still(t, what)
				unlock = w.lock()
				w.replace("b", "evil")
				unlock()
				w.tellPolicy()
				w.still(t, what)
				for name, has := range map[string]string{"a": textA, "c": textB} {
					if r := w.record(name + ".service"); answer(l, name) != "confined" || !maps.Equal(r.Policies, map[string]string{has: has + " 1"}) {
						t.Errorf("%s: %s is %s, has %q", what, name, answer(l, name), r.Policies)
					}
				}
				unlock = w.lock()
				if w.kernel["a"] != "1" || w.kernel["b"] != "1" {
					t.Errorf("%s: kernel %q", what, w.kernel)
				}
				unlock()
				attachUnits(t, l, attach.Request{Units: []string{"a"}})
				w.still(t, what+", asked for")
				for _, name := range []string{"a", "c"} {
					if r := w.record(name + ".service"); answer(l, name) != "confined" || !maps.Equal(r.Policies, map[string]string{textA: textA + " 2 and b"}) {
						t.Errorf("%s, asked for: %s is %s, has %q", what, name, answer(l, name), r.Policies)
					}
				}
			})
		}
	}
}

// A text that something else speaks against for one unit goes live for none, in whatever
// file it is.
func TestATextThatMovedIsBarred(t *testing.T) {
	w := attached(nil, "a", "c")
	w.tells, w.files["q"] = true, "1"
	w.run(t, func(l *Loop) {
		w.declareUnit(fileA, "a.service", func(a *attach.Attachment) { a.Profile, a.AllowProfiles = "a", []string{"q"} })
		rest()
		unlock := w.lock()
		w.bad["q"] = true
		unlock()
		w.move()
		w.edit("2")
		w.still(t, "barred")
		for _, unit := range []string{"a", "c"} {
			if r := w.record(unit + ".service"); answer(l, unit) != "confined" || r.Policies[textA] != textA+" 1" {
				t.Errorf("%s is %s, has %q", unit, answer(l, unit), r.Policies)
			}
		}
		if s := status(t, l, "c"); w.kernel["a"] != "1" || !slices.Contains(codes(s.Notes), attach.PolicyChanged) {
			t.Errorf("%q %+v", w.kernel, s)
		}
	})
}

// What failed is not left live for one that shares the profile: that has its former policy
// back with the undo, and nobody has done anything to it.
func TestATextThatMovedIsTakenBackFromTheOthers(t *testing.T) {
	for _, moves := range []bool{false, true} {
		w := attached(func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport }, "c")
		u := w.addUnit("a.service")
		w.tells = true
		w.run(t, func(l *Loop) {
			if moves {
				w.move()
			}
			w.edit("2")
			rest()
			unlock := w.lock()
			w.onCall = func(call string) {
				if call == "restart a.service" {
					time.AfterFunc(time.Second, func() { defer w.lock()(); u.running, u.failed = false, true })
				}
			}
			unlock()
			out, err := l.Attach(context.Background(), attach.Request{Units: []string{"a"}, Profile: "a"}, nil)
			if err != nil || out[0].Exit == attach.ExitOK {
				t.Fatalf("%v %+v", err, out)
			}
			w.still(t, "undone")
			if r := w.record("c.service"); answer(l, "c") != "confined" || r.Policies[textA] != textA+" 1" || w.kernel["a"] != "1" || w.log.count("put back the policy") > 0 {
				t.Errorf("moves %v: c is %s, has %q, kernel %q\n%s", moves, answer(l, "c"), r.Policies, w.kernel, w.log.String())
			}
		})
	}
}
