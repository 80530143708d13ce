package units

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/aaunit/aaunit/internal/attach"
)

// following gives a Systemd that hears signals of a bus with one running unit,
// and what changes that unit without a word.
func following(t *testing.T) (b *fakeBus, s *Systemd, root string, set func(string, any)) {
	t.Helper()
	b = newFakeBus(t)
	unit := agentProps()
	unit["Names"] = []string{"agent.service"}
	set = func(name string, value any) {
		unit[name] = value
		b.has(map[string]map[string]any{"agent.service": unit})
	}
	set("NeedDaemonReload", false)
	b.on("Ping", func(busCall) ([]any, error) { return nil, nil })
	root = t.TempDir()
	s = b.client(Options{Root: root})
	s.Follow(t.Context(), func(string) bool { return false }) // of a unit that nobody wants, too
	return b, s, root, set
}

func (b *fakeBus) tellChange(unit string) {
	b.emit(pathOf(unit), propsIface, "PropertiesChanged", unitIface, map[string]dbus.Variant{}, []string{})
}

// observed reads the unit and says how often systemd was asked for all of it.
func observed(t *testing.T, b *fakeBus, s *Systemd) (pid, reads int) {
	t.Helper()
	u, err := s.Observe(t.Context(), "agent.service")
	if err != nil {
		t.Fatal(err)
	}
	return u.MainPID, b.count("GetAll")
}

func TestWhatDidNotChangeIsReadOnce(t *testing.T) {
	b, s, _, set := following(t)
	for range 3 {
		if pid, reads := observed(t, b, s); pid != 17 || reads != 1 {
			t.Fatalf("PID %d after %d reads", pid, reads)
		}
	}
	if id, err := s.Invocation(t.Context(), "agent.service"); err != nil || id != "420000000000000000000000000000ff" || b.count("Get") != 0 {
		t.Errorf("%q %v, asked %d times", id, err, b.count("Get"))
	}
	u, err := s.Observe(t.Context(), "agent.service")
	if err != nil {
		t.Fatal(err)
	}
	u.Names[0], u.Settings.Exec[0].Path = "spoiled", "spoiled"
	if u, err := s.Glance(t.Context(), "agent.service"); err != nil || u.Names[0] != "agent.service" || u.Settings.Exec[0].Path != "/bin/pre" {
		t.Errorf("a caller changed what is kept: %+v %v", u, err)
	}

	// A signal that comes before the answer to the question that follows it.
	set("MainPID", uint32(99))
	b.tellChange("agent.service")
	if pid, reads := observed(t, b, s); pid != 99 || reads != 2 {
		t.Errorf("after a change: PID %d after %d reads", pid, reads)
	}
	set("MainPID", uint32(100))
	b.emit(managerPath, managerIface, "Reloading", false)
	if pid, reads := observed(t, b, s); pid != 100 || reads != 3 {
		t.Errorf("after a reload: PID %d after %d reads", pid, reads)
	}
	set("MainPID", uint32(101))
	b.emit(managerPath, managerIface, "UnitFilesChanged")
	if pid, reads := observed(t, b, s); pid != 101 || reads != 4 {
		t.Errorf("after a change of files: PID %d after %d reads", pid, reads)
	}
	set("MainPID", uint32(102))
	b.setOwner(":1.9") // daemon-reexec
	if pid, reads := observed(t, b, s); pid != 102 || reads != 5 {
		t.Errorf("after daemon-reexec: PID %d after %d reads", pid, reads)
	}
	set("MainPID", uint32(103))
	b.dropAll()
	if pid, _ := observed(t, b, s); pid != 103 {
		t.Errorf("after a loss of the bus: PID %d", pid)
	}
}

// Many units that run and did not change are told at the price of one question.
func TestUnitsThatDidNotChangeAreToldTogether(t *testing.T) {
	b, s, _, set := following(t)
	names := []string{"agent.service", "other.service"}
	look := func(during func()) (got map[string]attach.Unit, same []string) {
		same = s.GlanceTogether(t.Context(), names, func(units map[string]attach.Unit) {
			got = units
			if during != nil {
				during()
			}
		})
		return got, same
	}
	if got, _ := look(nil); got != nil || b.count("ListUnitsByNames") != 0 {
		t.Fatalf("nothing was read yet: %+v", got)
	}
	observed(t, b, s)
	asked := b.count("ListUnitsByNames")
	got, same := look(nil)
	if len(got) != 1 || got["agent.service"].MainPID != 17 || b.count("ListUnitsByNames") != asked+2 || b.count("Ping") != 0 || b.count("GetAll") != 1 || !slices.Equal(same, []string{"agent.service"}) {
		t.Errorf("%+v, the same are %q, after %d questions and %d reads", got, same, b.count("ListUnitsByNames")-asked, b.count("GetAll"))
	}
	got["agent.service"].Names[0] = "spoiled"
	if got, _ := look(nil); got["agent.service"].Names[0] != "agent.service" {
		t.Error("a caller changed what is kept")
	}
	// A change during the look, of which systemd tells before it answers.
	var changed atomic.Bool
	answer := b.answerTo("ListUnitsByNames")
	b.on("ListUnitsByNames", func(c busCall) ([]any, error) {
		if changed.CompareAndSwap(true, false) {
			b.tellChange("agent.service")
		}
		return answer(c)
	})
	if _, same := look(func() { changed.Store(true) }); len(same) != 0 {
		t.Errorf("a unit that changed during the look: %q", same)
	}
	observed(t, b, s)
	// A change before the look of which was not heard yet.
	changed.Store(true)
	if _, same := look(nil); len(same) != 0 {
		t.Errorf("a unit that had changed: %q", same)
	}
	observed(t, b, s)
	// systemd holds signals back, and the first answer too comes before them.
	var questions atomic.Int32
	b.on("ListUnitsByNames", func(c busCall) ([]any, error) {
		if questions.Add(1) == 2 {
			b.tellChange("agent.service")
		}
		return answer(c)
	})
	if _, same := look(nil); len(same) != 0 || questions.Load() != 2 {
		t.Errorf("a unit of which a signal was held back: %q, %d questions", same, questions.Load())
	}
	observed(t, b, s)
	for first := range 2 {
		var n atomic.Int32
		b.on("ListUnitsByNames", func(c busCall) ([]any, error) {
			if n.Add(1) > int32(first) {
				return nil, busError("org.freedesktop.DBus.Error.Failed", "no")
			}
			return answer(c)
		})
		if _, same := look(nil); len(same) != 0 {
			t.Errorf("systemd does not answer question %d: %q", first+1, same)
		}
	}
	set("ActiveState", "inactive")
	b.tellChange("agent.service")
	observed(t, b, s)
	if got, same := look(nil); got != nil || len(same) != 0 {
		t.Errorf("a unit that does not run: %v", got)
	}
}

// systemd holds signals back for as long as any of its clients does not read, and answers.
func TestAChangeOfWhichSystemdDoesNotTellIsSeen(t *testing.T) {
	for what, change := range map[string]map[string]any{
		"it is ending":      {"ActiveState": "deactivating", "SubState": "stop-sigterm"},
		"it has ended":      {"ActiveState": "inactive", "SubState": "dead"},
		"its process ended": {"SubState": "exited"},
	} {
		t.Run(what, func(t *testing.T) {
			// kept is a Systemd that keeps the unit as it was, and what changes the unit.
			kept := func() (b *fakeBus, s *Systemd, quietly func()) {
				b, s, _, set := following(t)
				observed(t, b, s)
				return b, s, func() {
					for name, value := range change {
						set(name, value)
					}
					set("MainPID", uint32(0))
					set("InvocationID", make([]byte, 16))
				}
			}
			_, s, quietly := kept()
			quietly()
			if u, err := s.Glance(t.Context(), "agent.service"); err != nil || u.MainPID != 0 {
				t.Errorf("Glance: PID %d, %s %s, %v", u.MainPID, u.ActiveState, u.SubState, err)
			}
			_, s, quietly = kept()
			quietly()
			if id, err := s.Invocation(t.Context(), "agent.service"); err != nil || id != "" {
				t.Errorf("Invocation: %q %v", id, err)
			}
			for when, between := range map[string]bool{"before": false, "during": true} {
				b, s, quietly := kept()
				if !between {
					quietly()
				}
				same := s.GlanceTogether(t.Context(), []string{"agent.service"}, func(map[string]attach.Unit) {
					if between {
						eventually(t, "the first question was asked", func() bool { return b.count("ListUnitsByNames") == 1 })
						quietly()
					}
				})
				if len(same) != 0 || s.mirror.kept["agent.service"] != nil {
					t.Errorf("a change %s a look: %q are the same", when, same)
				}
			}
		})
	}
	// It left its state and came back to it.
	b, s, _, set := following(t)
	observed(t, b, s)
	set("ActiveState", "reloading")
	meanwhile := b.answerTo("ListUnitsByNames")
	set("ActiveState", "active")
	answer := b.answerTo("ListUnitsByNames")
	b.on("ListUnitsByNames", func(c busCall) ([]any, error) {
		b.on("ListUnitsByNames", answer)
		return meanwhile(c)
	})
	if same := s.GlanceTogether(t.Context(), []string{"agent.service"}, func(map[string]attach.Unit) {}); len(same) != 0 {
		t.Errorf("a unit that was in another state at first: %q are the same", same)
	}
	// One that systemd does not name, and an answer that is none.
	for what, answer := range map[string][]any{"nothing": {[]listedUnit{}}, "another type": {[]string{"agent.service"}}, "no body": nil} {
		b, s, _, set := following(t)
		observed(t, b, s)
		set("MainPID", uint32(99))
		b.on("ListUnitsByNames", func(busCall) ([]any, error) { return answer, nil })
		if pid, _ := observed(t, b, s); pid != 99 {
			t.Errorf("systemd answers %s: PID %d", what, pid)
		}
	}
}

// Those who ask while systemd is being asked share the next question, which is about the
// units of all of them.
func TestManyWhoAskShareAQuestion(t *testing.T) {
	b, s, _, _ := following(t)
	units := map[string]map[string]any{}
	var names []string
	for i := range 20 {
		name := fmt.Sprintf("agent%d.service", i)
		names = append(names, name)
		units[name] = with(agentProps(), map[string]any{"Id": name, "Names": []string{name}, "NeedDaemonReload": false})
	}
	units["agent.service"] = with(agentProps(), map[string]any{"Names": []string{"agent.service"}, "NeedDaemonReload": false})
	b.has(units)
	for _, name := range append(names, "agent.service") {
		if _, err := s.Glance(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	units[names[0]]["SubState"], units[names[0]]["InvocationID"] = "exited", make([]byte, 16)
	b.has(units)
	answer := b.answerTo("ListUnitsByNames")
	hold := make(chan struct{})
	release := sync.OnceFunc(func() { close(hold) })
	defer release()
	about := make(chan []string, 10)
	b.on("ListUnitsByNames", func(c busCall) ([]any, error) {
		about <- c.args[0].([]string)
		<-hold
		return answer(c)
	})
	var all sync.WaitGroup
	ask := func(name, want string) {
		all.Go(func() {
			if id, err := s.Invocation(t.Context(), name); err != nil || id != want {
				t.Errorf("%s: %q %v", name, id, err)
			}
		})
	}
	const id = "420000000000000000000000000000ff"
	ask("agent.service", id)
	eventually(t, "systemd is asked", func() bool { return len(about) == 1 })
	if got := <-about; !slices.Equal(got, []string{"agent.service"}) {
		t.Errorf("the first question is about %q", got)
	}
	ask(names[0], "")
	for _, name := range names[1:] {
		ask(name, id)
	}
	all.Go(func() { s.mirror.ask(t.Context(), s) }) // about no unit
	eventually(t, "all have asked", func() bool {
		s.mirror.mu.Lock()
		defer s.mirror.mu.Unlock()
		return s.mirror.next != nil && len(s.mirror.next.states) == len(names)
	})
	release()
	all.Wait()
	got := <-about
	slices.Sort(got)
	slices.Sort(names)
	if !slices.Equal(got, names) || len(about) != 0 {
		t.Errorf("the next question is about %q, and there were %d more", got, len(about))
	}
	if n := b.count("Get"); n != 1 {
		t.Errorf("%d units were asked about by themselves", n)
	}
}

func TestAQuestionIsBounded(t *testing.T) {
	m := &mirror{now: &roundTrip{}}
	for i := range 2 * maxKept {
		m.begun(nil, fmt.Sprintf("conn@%d.service", i))
	}
	if n := len(m.next.states); n != maxKept {
		t.Errorf("it is about %d units", n)
	}
}

// A change that systemd tells of behind its answer is not in it; one that it told of
// before is.
func TestAReadIsKeptUnlessAChangeComesBehindIt(t *testing.T) {
	b, s, _, set := following(t)
	answer := b.answerTo("GetAll")
	b.on("GetAll", func(c busCall) ([]any, error) {
		b.tellChange("agent.service")
		return answer(c)
	})
	observed(t, b, s)
	if _, reads := observed(t, b, s); reads != 1 {
		t.Errorf("what was told after the change was read again: %d reads", reads)
	}
	b.tellChange("agent.service")
	told := make(chan struct{})
	b.on("GetAll", func(c busCall) ([]any, error) {
		b.mu.Lock()
		b.replied = func() { b.tellChange("agent.service"); close(told) }
		b.mu.Unlock()
		return answer(c)
	})
	if pid, _ := observed(t, b, s); pid != 17 {
		t.Fatalf("PID %d", pid)
	}
	<-told
	b.on("GetAll", answer)
	set("MainPID", uint32(99))
	if pid, _ := observed(t, b, s); pid != 99 {
		t.Errorf("what was told before the change was kept: PID %d", pid)
	}
}

// Where the answer comes over another connection than the signals, nothing is known
// of the order of both.
func TestAReadElsewhereThatAChangeOvertakesIsNotKept(t *testing.T) {
	b, s, _, set := following(t)
	answer := b.answerTo("GetAll")
	asked := 0
	b.on("GetAll", func(c busCall) ([]any, error) {
		if asked++; asked == 1 {
			return nil, busError("org.freedesktop.DBus.Error.NoReply", "for a moment")
		}
		out, err := answer(c)
		b.tellChange("agent.service")
		s.mirror.ask(t.Context(), s) // by now it was heard
		return out, err
	})
	if pid, _ := observed(t, b, s); pid != 17 || asked != 2 {
		t.Fatalf("PID %d, asked %d times", pid, asked)
	}
	set("MainPID", uint32(99))
	if pid, _ := observed(t, b, s); pid != 99 {
		t.Errorf("what is not known to be of after the change was kept: PID %d", pid)
	}
}

func TestNothingIsKeptWhileNobodyListens(t *testing.T) {
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"agent.service": agentProps()})
	s := b.client(Options{Root: t.TempDir()})
	for want := 1; want < 3; want++ {
		if _, reads := observed(t, b, s); reads != want {
			t.Errorf("%d reads, want %d", reads, want)
		}
	}
	b, s, _, set := following(t)
	observed(t, b, s)
	set("MainPID", uint32(99))
	b.on("ListUnitsByNames", func(busCall) ([]any, error) { return nil, busError("org.freedesktop.DBus.Error.Failed", "no") })
	if pid, _ := observed(t, b, s); pid != 99 {
		t.Errorf("systemd could not be asked, and what is kept was used: PID %d", pid)
	}
}

// systemd finds out that files changed when it is asked, and tells nobody.
func TestAChangedFileIsAskedFor(t *testing.T) {
	b, s, root, set := following(t)
	observed(t, b, s)
	set("NeedDaemonReload", true)
	if err := os.MkdirAll(filepath.Join(root, "etc/systemd/system/agent.service.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Glance(t.Context(), "agent.service"); err != nil || b.count("GetAll") != 1 {
		t.Errorf("a glance, which does not tell it, read %d times: %v", b.count("GetAll"), err)
	}
	u, err := s.Observe(t.Context(), "agent.service")
	if err != nil || !u.NeedReload {
		t.Errorf("%+v %v", u, err)
	}
}

// Of a unit that is not loaded systemd knows only what is in its files.
func TestAUnitThatIsNotLoadedIsReadOnce(t *testing.T) {
	b, s, root, set := following(t)
	never := map[string]any{"ActiveState": "inactive", "SubState": "dead", "Result": "success", "InvocationID": []byte{}, "NRestarts": uint32(0),
		"ExecMainCode": int32(0), "ExecMainStatus": int32(0), "MainPID": uint32(0),
		"ConditionTimestamp": uint64(0), "AssertTimestamp": uint64(0)}
	for name, value := range never {
		set(name, value)
	}
	loaded := false
	b.on("GetUnit", func(c busCall) ([]any, error) {
		if loaded {
			return []any{pathOf("agent.service")}, nil
		}
		return nil, busError("org.freedesktop.systemd1.NoSuchUnit", "Unit agent.service not loaded.")
	})
	want := 0
	check := func(what string, again bool) {
		t.Helper()
		if again {
			want++
		}
		if _, reads := observed(t, b, s); reads != want {
			t.Errorf("%s: it was read %d times, want %d", what, reads, want)
		}
	}
	check("at first", true)
	check("while nothing changes", false)
	if _, err := s.Glance(t.Context(), "agent.service"); err != nil || b.count("GetAll") != 1 {
		t.Errorf("a glance read it anew: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/systemd/system/agent.service.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	check("with another directory", true)
	time.Sleep(2 * racy)
	check("which is young", true)
	check("and older", false)
	loaded = true
	check("while it is loaded", true)
	check("again", true)
	loaded = false
	check("once it is not", false)
	for name, value := range map[string]any{
		"NeedDaemonReload": true, "Result": "exit-code", "InvocationID": agentProps()["InvocationID"], "ActiveState": "failed", "NRestarts": uint32(1),
		"ExecMainCode": int32(1), "ConditionTimestamp": uint64(1), "AssertTimestamp": uint64(1), "LoadState": "not-found",
	} {
		was, isNever := never[name]
		if !isNever {
			was = map[string]any{"NeedDaemonReload": false, "LoadState": "loaded"}[name]
		}
		b.emit(managerPath, managerIface, "Reloading", false)
		set(name, value)
		check("with another "+name, true)
		check("again with another "+name, true)
		set(name, was)
	}
}

// Instances of a template that come and go do not keep what runs from being kept, and
// leave nothing behind.
func TestInstancesThatEndedMakeRoom(t *testing.T) {
	s := New(Options{Root: t.TempDir()})
	defer s.Close()
	m := &s.mirror
	m.open(&dbus.Conn{})
	f := &follower{s: s, wants: func(string) bool { return true }, units: map[string]*life{}, queue: newQueue()}
	state := func(unit, active string) {
		f.changed(&dbus.Signal{Path: pathOf(unit), Body: []any{unitIface, map[string]dbus.Variant{
			"ActiveState": dbus.MakeVariant(active), "SubState": dbus.MakeVariant("x"), "InvocationID": dbus.MakeVariant(make([]byte, 16)),
		}, []string{}}})
	}
	keep := func(unit, active string) {
		m.end(unit, m.begin(s, unit), &kept{u: attach.Unit{ID: unit, ActiveState: active}})
	}
	state("runs.service", "active")
	keep("runs.service", "active")
	for i := range 3 * maxKept {
		unit := fmt.Sprintf("conn@%d.service", i)
		state(unit, "active")
		state(unit, "inactive")
		keep(unit, "inactive")
	}
	keep("new.service", "active")
	if m.kept["runs.service"] == nil || m.kept["new.service"] == nil || len(m.kept) > maxKept {
		t.Errorf("%d units are kept", len(m.kept))
	}
	if f.units["runs.service"] == nil || len(f.units) > maxKept {
		t.Errorf("%d units are followed", len(f.units))
	}
}

// What is newer than a start was not in force at it: a file that has an old time of its own,
// as those of a package have, and one of which nobody knows, too. aaunit's own drop-in and
// what generators write at each reload say nothing.
func TestWhenFilesLastChanged(t *testing.T) {
	root := t.TempDir()
	s := &Systemd{root: root}
	u := attach.Unit{ID: "a.service", FragmentPath: "/usr/lib/systemd/system/a.service"}
	write := func(path string) (at time.Time) {
		t.Helper()
		time.Sleep(20 * time.Millisecond) // the kernel's clock for them is coarse
		path = filepath.Join(root, path)
		old := time.Now().Add(-24 * time.Hour)
		for _, err := range []error{os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644), os.Chtimes(path, old, old)} {
			if err != nil {
				t.Fatal(err)
			}
		}
		st := s.stampOf(path[len(root):])
		return time.Unix(st.ctime.Unix())
	}
	last := write(u.FragmentPath)
	check := func(what string) {
		t.Helper()
		if got := changedLast(s.filesOf(u, "")); !got.Equal(last) || time.Since(got) > time.Hour {
			t.Errorf("%s: %v, want %v", what, got, last)
		}
	}
	check("a unit file")
	for _, path := range []string{"/etc/systemd/system/a.service.d/" + attach.DropInName, "/run/systemd/generator/a.service.d/x.conf"} {
		u.DropIns = append(u.DropIns, path)
		write(path)
		check(path)
	}
	u.DropIns = append(u.DropIns, "/etc/systemd/system/a.service.d/x.conf")
	last = write(u.DropIns[2])
	check("a drop-in")
	if err := os.Remove(filepath.Join(root, u.DropIns[2])); err != nil {
		t.Fatal(err)
	}
	if got := changedLast(s.filesOf(u, "")); !got.After(time.Now()) {
		t.Errorf("one is not there: %v", got)
	}
}
