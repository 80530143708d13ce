package reconcile

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// DropIns makes the world a systemd that aaunit can be removed from.
func (w *world) DropIns() ([]string, error) {
	defer w.lock()()
	return slices.Sorted(maps.Keys(w.disk)), nil
}

func (s sockets) RemoveAll() error {
	defer s.lock()()
	clear(s.attached)
	return nil
}

// removal gives a world with attached units, and what removes aaunit from it.
func removal(units ...string) (w *world, run func(booted bool) string) {
	w = newWorld()
	for _, u := range units {
		w.addUnit(u)
		name := strings.TrimSuffix(u, ".service")
		w.kernel[name] = "1"
		a := attach.NewAttachment()
		a.Units, a.Profile = []string{u}, name
		path, text := attach.DropInPath(u, false), attach.DropIn(a, name)
		w.disk[path] = text
		w.records[u] = attach.Record{Unit: u, Profile: name, DropIns: attach.Sums{{Path: path, Sum: sum(text)}}}
	}
	w.read = maps.Clone(w.disk)
	return w, func(booted bool) string {
		var said strings.Builder
		tell := func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
		(&Removal{Systemd: w, AppArmor: w, SocketOptions: sockets{w}, Store: store{w}, Booted: booted, Tell: tell}).Run(context.Background())
		return said.String()
	}
}

func TestRemovalKeepsWhatLasts(t *testing.T) {
	w, run := removal("stays.service", "nofile.service", "broken.service", "unloaded.service", "changed.service")
	delete(w.files, "nofile")
	w.bad["broken"] = true
	delete(w.kernel, "unloaded")
	path := func(u string) string { return attach.DropInPath(u, false) }
	w.disk[path("changed.service")] += "# mine\n"
	changed := w.disk[path("changed.service")]
	w.disk[path("foreign.service")] = "[Service]\n"

	said := run(true)
	if got := slices.Sorted(maps.Keys(w.disk)); !slices.Equal(got, []string{path("changed.service"), path("foreign.service"), path("stays.service")}) {
		t.Errorf("there is left %q", got)
	}
	if got := w.disk[path("stays.service")]; strings.Contains(got, "AssertSecurity") || !strings.Contains(got, "\nAppArmorProfile=stays\n") {
		t.Errorf("the drop-in that stays is\n%s", got)
	}
	if w.disk[path("changed.service")] != changed || w.disk[path("foreign.service")] != "[Service]\n" {
		t.Error("a file that is not as aaunit wrote it was touched")
	}
	for _, want := range []string{
		"stays.service goes on to start under profile stays, by " + path("stays.service"),
		"nofile.service starts unconfined from its next start: of its profile nofile, no file in /etc/apparmor.d has it",
		"broken.service starts unconfined from its next start: of its profile broken, /etc/apparmor.d/broken does not compile",
		"unloaded.service starts unconfined from its next start: of its profile unloaded, it is not loaded",
		"changed.service starts as " + path("changed.service") + " says, which is kept",
		path("foreign.service") + " is not on record",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	// Records say what is there, so that a purge and a new installation go on.
	for u, r := range w.records {
		text, there := w.disk[path(u)]
		want, has := r.DropIns.Of(path(u)), r.DropIns.Has(path(u))
		if has != there || has && u != "changed.service" && want != sum(text) {
			t.Errorf("the record of %s has %q", u, r.DropIns)
		}
	}
	for _, call := range []string{"reload", "restart", "stop", "start", "unload"} {
		if n := w.calls[call]; n > 0 {
			t.Errorf("%d times %s", n, call)
		}
	}
	before := maps.Clone(w.disk)
	run(true)
	if !maps.Equal(before, w.disk) {
		t.Errorf("a second time changes\n%q\nto\n%q", before, w.disk)
	}
}

// Where it could not be told whether a profile compiles, apparmor.service may well load
// it: what confines its unit stays, and a start without the profile fails.
func TestRemovalKeepsWhatCouldNotBeTold(t *testing.T) {
	w, run := removal("writable.service", "full.service", "broken.service")
	w.untold = map[string]attach.Reason{
		"writable": attach.Because(attach.ProfileUntrusted, "cannot use /etc/apparmor.d/writable: its mode is 0664"),
		"full":     attach.Because(attach.ProfileNotCompiled, "cannot compile /etc/apparmor.d/full: no space left on device"),
	}
	w.bad["broken"] = true
	said := run(true)
	path := func(u string) string { return attach.DropInPath(u, false) }
	if got := slices.Sorted(maps.Keys(w.disk)); !slices.Equal(got, []string{path("full.service"), path("writable.service")}) {
		t.Errorf("there is left %q", got)
	}
	for _, want := range []string{
		"writable.service goes on to start under profile writable, by " + path("writable.service"),
		"; whether its profile is loaded at the next boot could not be told: cannot use /etc/apparmor.d/writable: its mode is 0664\n",
		"full.service goes on to start under profile full,",
		"could not be told: cannot compile /etc/apparmor.d/full: no space left on device\n",
		"of its profile broken, /etc/apparmor.d/broken does not compile",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
}

// A parser that hangs takes no confinement away, and leaves time for what only systemd
// can do.
func TestRemovalWhileTheParserHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, _ := removal("a.service")
		w.disk[dropIn] += attach.SocketStartLine(true) + "\n"
		r := w.records["a.service"]
		r.DropIns = attach.Sums{{Path: dropIn, Sum: sum(w.disk[dropIn])}}
		w.records["a.service"] = r
		w.hangs, w.events = true, make(chan attach.UnitEvent, 10)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var said strings.Builder
		tell := func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
		(&Removal{Systemd: w, AppArmor: w, SocketOptions: sockets{w}, Store: store{w}, Booted: true, Tell: tell}).Run(ctx)
		if !strings.Contains(w.disk[dropIn], "AppArmorProfile=a\n") || attach.Starts(w.disk[dropIn]) || w.calls["reload"] != 1 {
			t.Errorf("%d reloads, and there is left %q; it says\n%s", w.calls["reload"], w.disk[dropIn], said.String())
		}
	})
}

// A template whose socket has no connection open at the moment: which profile each to come
// starts under does not depend on it.
func TestRemovalKeepsATemplateWithoutInstances(t *testing.T) {
	w, run := removal("fixed@.service", "none@.service", "each@.service")
	for template, profile := range map[string]string{"fixed@.service": "foo", "none@.service": "gone", "each@.service": "%p-%i"} {
		a := attach.NewAttachment()
		a.Units, a.Profile = []string{template}, profile
		path, text := attach.DropInPath(template, false), attach.DropIn(a, profile)
		w.disk[path] = text
		w.records[template] = attach.Record{Unit: template, Profile: profile, DropIns: attach.Sums{{Path: path, Sum: sum(text)}}}
	}
	w.files["foo"], w.kernel["foo"] = "1", "1"
	said := run(true)
	path := attach.DropInPath("fixed@.service", false)
	if got := slices.Sorted(maps.Keys(w.disk)); !slices.Equal(got, []string{path}) || !strings.Contains(w.disk[path], "AppArmorProfile=foo\n") {
		t.Errorf("there is left %q", w.disk)
	}
	for _, want := range []string{
		"each other unit of fixed@.service goes on to start under profile foo, by " + path,
		"of its profile gone, no file in /etc/apparmor.d has it for the next boot",
		"it depends on the unit, and none is known",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
}

// What aaunit has kept in force, against the files, the next boot does not. The drop-in
// stays, and that is said.
func TestRemovalSaysWhatTheNextBootMakesOfAProfile(t *testing.T) {
	const text, soft = "; after the next boot it starts under the text of /etc/apparmor.d/a, which is not what aaunit had accepted", "; after the next boot it starts in complain mode "
	for _, c := range []struct {
		name   string
		change func(*world)
		want   string
	}{
		{"as it was accepted", func(*world) {}, ""},
		{"a link in force-complain", func(w *world) {
			w.softened = map[string]string{"a": "/etc/apparmor.d/force-complain/a"}
		}, soft + "(/etc/apparmor.d/force-complain/a)"},
		{"a flag in a text that was refused", func(w *world) { w.files["a"], w.flags["a"] = "2", []string{"complain"} }, soft + "(/etc/apparmor.d/a)" + text},
		{"a text that was not accepted", func(w *world) { w.files["a"] = "2" }, text},
		{"a text of the same policy", func(w *world) {
			r := w.records["a.service"]
			r.Policies = map[string]string{"/etc/apparmor.d/a": "of another comment"}
			w.records["a.service"] = r
		}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := attached(func(a *attach.Attachment) { a.OnProfileChange = attach.ChangeReport }, "a")
			w.run(t, func(*Loop) { rest() })
			c.change(w)
			said := w.removed()
			want := "a.service goes on to start under profile a, by " + dropIn + ", but nobody looks; where AppArmor is off it starts unconfined" + c.want + "\n"
			if !strings.Contains(said, want) || !strings.Contains(w.disk[dropIn], "AppArmorProfile=a\n") {
				t.Errorf("there is left %q, and it says\n%s", w.disk, said)
			}
		})
	}
}

// Of a drop-in that somebody changed goes what would keep its unit from starting:
// the line that runs the start helper.
func TestRemovalTakesTheStartHelperOutOfAChangedDropIn(t *testing.T) {
	w, run := removal("changed.service")
	path := attach.DropInPath("changed.service", false)
	w.disk[path] += attach.SocketStartLine(true) + "\n# mine\n"
	said := run(true)
	if got := w.disk[path]; attach.Starts(got) || !strings.Contains(got, "# mine\n") || !strings.Contains(got, "AssertSecurity=") {
		t.Errorf("it is\n%s", got)
	}
	if !strings.Contains(said, "which is kept: it is not as aaunit wrote it, but for the line") || w.calls["reload"] != 1 {
		t.Errorf("%d reloads, and it says\n%s", w.calls["reload"], said)
	}
}

// Whoever relied on a list is told that it is gone: of a unit that stays confined, of one
// that does not, of one that somebody changed, and of a .socket unit.
func TestRemovalSaysWhoseSocketOptionsAreFree(t *testing.T) {
	w, run := removal("stays.service", "late.service", "nofile.service", "changed.service", "never.service")
	delete(w.files, "nofile")
	a := attach.NewAttachment()
	options(attach.SocketsEnforce, nodelay...)(&a)
	path := func(u string) string { return attach.DropInPath(u, false) }
	put := func(u, file, text string) {
		w.disk[file] = text
		r := w.records[u]
		r.DropIns = r.DropIns.With(file, sum(text))
		w.records[u] = r
	}
	for _, u := range []string{"stays.service", "nofile.service", "changed.service"} {
		put(u, path(u), attach.DropIn(a, strings.TrimSuffix(u, ".service")))
	}
	put("stays.service", path("stays.socket"), attach.SocketDropIn(a))
	w.disk[path("changed.service")] += "# mine\n"
	late := w.records["late.service"] // in force, and its line is yet to be written
	late.Sockets = a.SocketOptions
	w.records["late.service"] = late

	said := run(true)
	for u, tells := range map[string]bool{"stays.service": true, "late.service": true, "nofile.service": true, "changed.service": true, "stays.socket": true, "never.service": false} {
		told := false
		for line := range strings.Lines(said) {
			told = told || strings.HasPrefix(line, u+" ") && strings.HasSuffix(line, "; its socket options are neither recorded nor held to a list any more\n")
		}
		if told != tells {
			t.Errorf("of %s it tells %v:\n%s", u, told, said)
		}
	}
}

// The programs of socket options that are in the kernel go on in a chroot, where they are
// another system's, whose /sys may be bound there.
func TestRemovalTakesOffProgramsWhereTheyAreItsOwn(t *testing.T) {
	for _, booted := range []bool{true, false} {
		w, run := removal("a.service")
		w.attached["a.service"] = attach.SocketOptions{}
		if run(booted); len(w.attached) > 0 == booted {
			t.Errorf("booted %v, and there is left %v", booted, w.attached)
		}
	}
}

// What aaunit wrote and no record has, as in an image, is known by its text. Of what
// others wrote only the line goes that would keep a unit from starting.
func TestRemovalOfDropInsThatAreNotOnRecord(t *testing.T) {
	w, run := removal("stays.service", "nofile.service", "both.service")
	delete(w.files, "nofile")
	path := func(u string) string { return attach.DropInPath(u, false) }
	a := attach.NewAttachment()
	a.Source = "/etc/aaunit/attachments.d/x.conf"
	options(attach.SocketsEnforce, nodelay...)(&a)
	for _, u := range []string{"stays.service", "nofile.service"} {
		delete(w.records, u)
		w.disk[path(u)] = attach.DropIn(a, strings.TrimSuffix(u, ".service"))
	}
	both := attach.DropInPath("both.service", true)
	w.disk[both] = attach.DropIn(a, "both")
	w.disk[path("stays.socket")] = attach.SocketDropIn(a)
	foreign := "[Service]\nAppArmorProfile=foreign\n"
	w.disk[path("foreign.service")] = foreign
	w.disk[path("mine.service")] = foreign + attach.SocketStartLine(true) + "\n# mine\n"

	said := run(true)
	want := []string{both, path("both.service"), path("foreign.service"), path("mine.service"), path("stays.service")}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(w.disk)); !slices.Equal(got, want) {
		t.Errorf("there is left %q", got)
	}
	for file, text := range w.disk {
		if attach.Starts(text) || !strings.Contains(text, "\nAppArmorProfile=") {
			t.Errorf("%s is\n%s", file, text)
		}
	}
	if w.disk[path("foreign.service")] != foreign || w.disk[path("mine.service")] != foreign+"# mine\n" {
		t.Errorf("of others there is left %q", w.disk)
	}
	for _, want := range []string{
		"stays.service goes on to start under profile stays,",
		"nofile.service starts unconfined from its next start: of its profile nofile, no file",
		"both.service goes on to start under profile both, by " + both,
		path("foreign.service") + " is not on record as written by aaunit, and stays\n",
		path("mine.service") + " is not on record as written by aaunit, and stays, but for the line that runs a program of aaunit's\n",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	// A purge and a new installation find what stays, and nothing else.
	for u, paths := range map[string][]string{"stays.service": {path("stays.service")}, "both.service": {path("both.service"), both}} {
		r := w.records[u]
		if r.Profile != strings.TrimSuffix(u, ".service") || !slices.Equal(r.DropIns.Paths(), paths) || r.DropIns.Of(paths[0]) != sum(w.disk[paths[0]]) {
			t.Errorf("the record of %s is %+v", u, r)
		}
	}
	if len(w.records) != 2 || w.records["stays.service"].Attachment != a.Source || w.calls["reload"] != 1 {
		t.Errorf("%d reloads, and records %+v", w.calls["reload"], w.records)
	}
	before := maps.Clone(w.disk)
	if run(true); !maps.Equal(before, w.disk) || w.calls["reload"] != 1 {
		t.Errorf("a second time leaves %q", w.disk)
	}
}

// In a chroot there is nobody to ask, and what the kernel has loaded is not this
// system's.
func TestRemovalInAChroot(t *testing.T) {
	w, run := removal("stays.service", "nofile.service")
	delete(w.files, "nofile")
	w.kernel = map[string]string{}
	said := run(false)
	if got := slices.Sorted(maps.Keys(w.disk)); !slices.Equal(got, []string{attach.DropInPath("stays.service", false)}) {
		t.Errorf("there is left %q", got)
	}
	if !strings.Contains(said, "nofile.service starts as its own unit files say from its next start") {
		t.Errorf("it says\n%s", said)
	}
}

// Installed again, the daemon puts back what the removal has taken, and restarts
// nothing: the services were confined all the time.
func TestRemovedAndInstalledAgain(t *testing.T) {
	w := newWorld()
	for _, u := range []string{"a.service", "b.service"} {
		w.declareUnit("/etc/aaunit/attachments.d/"+u+".conf", w.addUnit(u).name, nil)
	}
	w.run(t, func(*Loop) {})
	attached, starts := maps.Clone(w.disk), w.calls["restart"]
	if len(attached) != 2 {
		t.Fatalf("drop-ins %q", attached)
	}
	delete(w.files, "b")
	(&Removal{Systemd: w, AppArmor: w, SocketOptions: sockets{w}, Store: store{w}, Booted: true, Tell: t.Logf}).Run(t.Context())
	if len(w.disk) != 1 || maps.Equal(w.disk, attached) {
		t.Errorf("after the removal there is %q", w.disk)
	}
	w.files["b"] = "1"
	w.run(t, func(l *Loop) {
		if a, b := answer(l, "a"), answer(l, "b"); a != "confined" || b != "confined" {
			t.Errorf("installed again: %s, %s", a, b)
		}
	})
	if !maps.Equal(w.disk, attached) {
		t.Errorf("installed again, there is %q", w.disk)
	}
	if n := w.calls["restart"] - starts; n != 0 {
		t.Errorf("%d restarts", n)
	}
}

// removed takes aaunit off the world as the package does, and the package has systemd
// read its files once more.
func (w *world) removed() string {
	w.events, w.policy = make(chan attach.UnitEvent, 1000), nil // not of the daemon's bubble
	var said strings.Builder
	tell := func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
	(&Removal{Systemd: w, AppArmor: w, SocketOptions: sockets{w}, Store: store{w}, Booted: true, Boot: fmt.Sprint("boot ", w.boots), Tell: tell}).Run(context.Background())
	w.read = maps.Clone(w.disk)
	return said.String()
}

// A removal stops the daemon wherever it is. No other comes that would go on: a unit
// that ran must run, and start again, under what it had before; one that was confined
// stays so.
func TestRemovedBetweenAnyTwoSteps(t *testing.T) {
	attachTo := func(profile string) func(*Loop) {
		return func(l *Loop) {
			_, _ = l.Attach(context.Background(), attach.Request{Units: []string{"a"}, Profile: profile}, nil)
		}
	}
	for _, s := range []struct {
		name   string
		former string // the profile of the unit before; "" for none
		loops  bool   // under a profile, the unit ends and is started over and over
		ask    func(*Loop)
		may    []string // labels that a start after it may have
	}{
		{"attach", "", false, attachTo("a"), []string{"unconfined", "a (enforce)"}},
		{"undo", "", false, attachTo("bad"), []string{"unconfined"}},
		{"undo of a loop", "", true, attachTo("bad"), []string{"unconfined"}},
		{"other profile", "a", false, attachTo("b"), []string{"a (enforce)", "b (enforce)"}},
		{"undo of another profile", "a", false, attachTo("bad"), []string{"a (enforce)"}},
		{"detach", "a", false, func(l *Loop) {
			_, _ = l.Detach(context.Background(), attach.Request{Units: []string{"a"}}, nil)
		}, []string{"unconfined", "a (enforce)"}},
	} {
		t.Run(s.name, func(t *testing.T) {
			for kill := 1; ; kill++ {
				w := newWorld()
				u, with := w.addUnit("a.service"), w.addUnit("with.service")
				u.drags = []string{"with.service"}
				w.files["b"], w.files["bad"] = "1", "1"
				u.breaks["bad"], u.crashLoop = !s.loops, s.loops
				if s.former != "" {
					w.run(t, func(l *Loop) {
						attachTo(s.former)(l)
						rest()
					})
				}
				var steps []string
				w.onStep = func(step string) bool {
					steps = append(steps, step)
					return len(steps) == kill
				}
				w.run(t, func(l *Loop) {
					s.ask(l)
					rest()
				})
				killed := w.dead
				w.dead, w.onStep = false, nil
				said := w.removed()
				up := u.running && with.running
				err := w.begin(u)
				if !up || err != nil || !u.running || !slices.Contains(s.may, u.label) || strings.Contains(w.disk[dropIn], "AssertSecurity") {
					t.Fatalf("removed at %q: up %v, then %v, %s, with\n%s\nand said\n%s", steps, up, err, u.label, w.disk[dropIn], said)
				}
				if r := w.records["a.service"]; r.Interrupted() || len(r.Dragged) > 0 || r.DropIns.Has(dropIn) != (w.disk[dropIn] != "") || r.DropIns.Has(dropIn) && r.DropIns.Of(dropIn) != sum(w.disk[dropIn]) {
					t.Fatalf("removed at %q, the record is %+v", steps, r)
				}
				// Installed again, it goes on as if nothing had been.
				w.run(t, func(l *Loop) {
					rest()
					checkConverged(t, w, l, s.former)
				})
				if t.Failed() {
					t.Fatalf("removed at %q: %q", steps, said)
				}
				if !killed {
					break
				}
			}
		})
	}
}

// What went down with a unit that is up again is started, and not where that was in another
// boot: what is to run is for the boot to start.
func TestRemovalStartsWhatWentDownInThisBoot(t *testing.T) {
	for _, c := range []struct {
		name    string
		change  func(*attach.Record)
		boots   int
		started bool
	}{
		{"an attach was cut off", func(r *attach.Record) { r.Attaching, r.Before.Running = true, true }, 0, true},
		{"it was stopped to start it", func(r *attach.Record) { r.Stopped = true }, 0, true},
		{"an attach was cut off in another boot", func(r *attach.Record) { r.Attaching, r.Before.Running = true, true }, 1, false},
		{"a change was cut off in another boot", func(r *attach.Record) { r.Former = &attach.Former{Running: true} }, 1, false},
		{"it was stopped to start it in another boot", func(r *attach.Record) { r.Stopped = true }, 1, false},
	} {
		w, _ := removal("a.service")
		with := w.addUnit("with.service")
		with.running = false
		r := w.records["a.service"]
		r.Boot, r.Dragged = "boot 0", []string{"with.service"}
		c.change(&r)
		w.records["a.service"], w.boots = r, c.boots
		said := w.removed()
		if r := w.records["a.service"]; with.running != c.started || strings.Contains(said, "with.service went down with a.service, and is started again") != c.started || r.Interrupted() || len(r.Dragged) > 0 {
			t.Errorf("%s: %+v %+v, and it says\n%s", c.name, with, r, said)
		}
	}
}

// What the undo of a failed attach has brought back is what its units run under: it is
// kept where that profile lasts, whatever becomes of the one that failed.
func TestRemovalKeepsWhatAnUndoBroughtBack(t *testing.T) {
	for _, gone := range []string{"a", "b"} {
		w, _ := changing(t, nil)
		w.run(t, func(*Loop) {
			w.declareUnit(fileA, "a.service", toB(nil))
			rest()
		})
		delete(w.files, gone)
		said := w.removed()
		want := map[string]string{
			"a": "a.service starts unconfined from its next start: of its profile a, no file in /etc/apparmor.d has it",
			"b": "a.service goes on to start under profile a,",
		}[gone]
		if strings.Contains(w.disk[dropIn], "AppArmorProfile=a\n") != (gone == "b") || !strings.Contains(said, want) {
			t.Errorf("without %s there is left %q, and it says\n%s", gone, w.disk[dropIn], said)
		}
	}
}

// What was enforced before aaunit loaded it in complain mode is enforced again, unless
// somebody has made a unit's drop-in his own that may want it so.
func TestRemovalEnforcesWhatWasEnforcedBefore(t *testing.T) {
	const file = "/etc/apparmor.d/a"
	for _, c := range []struct {
		name   string
		change func(*world)
		want   string
		said   string
	}{
		{"", func(*world) {}, "1", file + ", which aaunit had loaded in complain mode, is loaded as its text says again"},
		{"changed", func(w *world) { w.disk[dropIn] += "# mine\n" }, "1-complain", file + " may be left loaded in complain mode: " + dropIn + " stays, and may want it so; next: apparmor_parser -r " + file},
		{"broken", func(w *world) { w.bad["a"] = true }, "1-complain", "next: apparmor_parser -r " + file},
		{"full", func(w *world) { w.full = true }, "1-complain", "the kernel has no memory; next: apparmor_parser -r " + file},
		{"of another boot", func(w *world) { w.boots++ }, "1-complain", ""},
		{"enforced meanwhile", func(w *world) { w.kernel["a"] = "other" }, "other", ""},
		{"unloaded meanwhile", func(w *world) { delete(w.kernel, "a") }, "", ""},
	} {
		w := attached(func(a *attach.Attachment) { a.Mode = attach.WishComplain }, "a")
		w.kernel["a"] = "1"
		w.run(t, func(*Loop) {})
		if w.kernel["a"] != "1-complain" || len(w.records["a.service"].Softened) != 1 {
			t.Fatalf("%q %+v", w.kernel, w.records)
		}
		c.change(w)
		said := w.removed()
		if w.kernel["a"] != c.want || !strings.Contains(said, c.said) || c.said == "" && strings.Contains(said, file+" ") {
			t.Errorf("%s: %q, and it says\n%s", c.name, w.kernel, said)
		}
	}
}
