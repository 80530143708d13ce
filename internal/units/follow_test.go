package units

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

const (
	idA = "0a000000000000000000000000000001"
	idB = "0b000000000000000000000000000001"
)

func idBytes(s string) []byte {
	if s == "" {
		return []byte{}
	}
	b := make([]byte, 16)
	fmt.Sscanf(s, "%x", &b)
	return b
}

func TestLifeSteps(t *testing.T) {
	const S, E = attach.UnitStarted, attach.UnitEnded
	type told struct {
		id, active, sub string
		want            []attach.UnitEventKind
		job             bool
		left            uint64
	}
	some := func(k ...attach.UnitEventKind) []attach.UnitEventKind { return k }
	for _, c := range []struct {
		name  string
		steps []told
	}{
		{"a start, stage by stage", []told{
			{id: "", active: "inactive", sub: "dead"},
			{id: idA, active: "activating", sub: "condition", want: some(S)}, {id: idA, active: "activating", sub: "start-pre"},
			{id: idA, active: "activating", sub: "start", want: some(S)}, {id: idA, active: "activating", sub: "start-post"},
			{id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "active", sub: "running"},
		}},
		{"a simple start", []told{{id: "", active: "inactive", sub: "dead"}, {id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "active", sub: "running"}}},
		{"a reload of the service is no start", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "reloading", sub: "reload"}, {id: idA, active: "active", sub: "running"}}},
		{"stop", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "deactivating", sub: "stop-sigterm"}, {id: idA, active: "inactive", sub: "dead", want: some(E)}, {id: idA, active: "inactive", sub: "dead"}}},
		{"restart", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "deactivating", sub: "stop-sigterm"}, {id: idB, active: "active", sub: "running", want: some(S)}}},
		{"crash and automatic restart", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "activating", sub: "auto-restart", want: some(E)}, {id: idB, active: "active", sub: "running", want: some(S)}}},
		{"crash and automatic restart, newer systemd", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: idA, active: "failed", sub: "failed-before-auto-restart", want: some(E)}, {id: idA, active: "activating", sub: "auto-restart-queued"}, {id: idB, active: "activating", sub: "start", want: some(S)}}},
		{"restart in one signal", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: idB, active: "active", sub: "running", want: some(S)}}},
		{"a start and its end in one signal", []told{{id: idA, active: "inactive", sub: "dead", want: some(E)}, {id: idB, active: "inactive", sub: "dead", want: some(S, E)}, {id: idB, active: "inactive", sub: "dead"}}},
		{"a start seen while it ends", []told{{id: idA, active: "inactive", sub: "dead", want: some(E)}, {id: idB, active: "deactivating", sub: "stop", want: some(S)}, {id: idB, active: "inactive", sub: "dead", want: some(E)}}},
		{"oneshot", []told{{id: idA, active: "activating", sub: "start", want: some(S)}, {id: idA, active: "inactive", sub: "dead", want: some(E)}}},
		{"oneshot that remains", []told{{id: idA, active: "activating", sub: "start", want: some(S)}, {id: idA, active: "active", sub: "exited", want: some(S)}}},
		{"first heard of at the stop", []told{{id: idA, active: "deactivating", sub: "stop"}, {id: idA, active: "inactive", sub: "dead", want: some(E)}}},
		{"a start and its end in one signal, and the next start queued", []told{{id: idA, active: "inactive", sub: "dead", left: 1, want: some(E)}, {id: idB, active: "inactive", sub: "dead", left: 2, job: true, want: some(S, E)}}},
		{"told of before it leaves the inactive state", []told{
			{id: idA, active: "inactive", sub: "dead", job: true}, {id: idA, active: "active", sub: "running", left: 1, want: some(S)},
			{id: idA, active: "inactive", sub: "dead", left: 1, job: true, want: some(E)},
			{id: idB, active: "inactive", sub: "dead", left: 1, job: true}, {id: idB, active: "activating", sub: "start", left: 2, want: some(S)},
		}},
		{"loaded anew for a start", []told{{id: idA, active: "inactive", sub: "dead", left: 1, want: some(E)}, {id: idB, active: "inactive", sub: "dead", job: true}, {id: idB, active: "active", sub: "running", left: 2, want: some(S)}}},
		{"told of before an automatic restart", []told{{id: idA, active: "active", sub: "running", left: 1, want: some(S)}, {id: idA, active: "failed", sub: "failed-before-auto-restart", left: 1, want: some(E)},
			{id: idA, active: "activating", sub: "auto-restart", left: 2}, {id: idB, active: "activating", sub: "auto-restart", left: 2, job: true}, {id: idB, active: "active", sub: "running", left: 2, want: some(S)}}},
		{"never started", []told{{id: "", active: "inactive", sub: "dead"}, {id: "", active: "inactive", sub: "dead"}}},
		{"forgotten by systemd", []told{{id: idA, active: "active", sub: "running", want: some(S)}, {id: "", active: "inactive", sub: "dead", want: some(E)}, {id: "", active: "inactive", sub: "dead"}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var l life
			for i, s := range c.steps {
				if got := l.step(state{s.id, s.active, s.sub, s.job, s.left}); !cmp.Equal(got, s.want) {
					t.Errorf("step %d, %s %s: %v, want %v", i+1, s.active, s.sub, got, s.want)
				}
			}
		})
	}
}

func TestQueueMerges(t *testing.T) {
	q := newQueue()
	const S, E = attach.UnitStarted, attach.UnitEnded
	push := func(unit string, kinds ...attach.UnitEventKind) {
		for _, k := range kinds {
			q.push(attach.UnitEvent{Kind: k, Unit: unit})
		}
	}
	for range 1000 {
		push("a", S, E)
	}
	push("b", S)
	push("a", S)
	push("", attach.BusLost, attach.BusBack, attach.BusLost)
	var got []attach.UnitEvent
	for e, ok := q.pop(); ok; e, ok = q.pop() {
		got = append(got, e)
	}
	want := []attach.UnitEvent{{Kind: E, Unit: "a"}, {Kind: S, Unit: "a"}, {Kind: S, Unit: "b"}, {Kind: attach.BusBack}, {Kind: attach.BusLost}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("-want +got:\n%s", d)
	}
}

// state says how a unit is now.
func (b *fakeBus) state(unit, id, active, sub string) {
	b.emit(pathOf(unit), propsIface, "PropertiesChanged", unitIface,
		map[string]dbus.Variant{"ActiveState": dbus.MakeVariant(active), "SubState": dbus.MakeVariant(sub), "InvocationID": dbus.MakeVariant(idBytes(id))}, []string{})
}

type tape struct {
	t  *testing.T
	ch <-chan attach.UnitEvent
}

func (p tape) next(kind attach.UnitEventKind, unit string) {
	p.t.Helper()
	select {
	case e, ok := <-p.ch:
		if !ok || e.Kind != kind || e.Unit != unit {
			p.t.Fatalf("got event %v %q (%v), want %v %q", e.Kind, e.Unit, ok, kind, unit)
		}
	case <-time.After(10 * time.Second):
		p.t.Fatalf("no event, want %v %q", kind, unit)
	}
}

func TestFollow(t *testing.T) {
	before := runtime.NumGoroutine()
	b := newFakeBus(t)
	s := b.client(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	p := tape{t, s.Follow(ctx, func(u string) bool { return strings.HasPrefix(u, "agent") })}

	b.state(`agent@a\x2db.service`, idA, "active", "running")
	p.next(attach.UnitStarted, `agent@a\x2db.service`)
	b.state("other.service", idA, "active", "running")
	b.state("agent.service", idA, "activating", "start")
	p.next(attach.UnitStarted, "agent.service")
	b.state("agent.service", idA, "active", "running")
	p.next(attach.UnitStarted, "agent.service")
	b.state("agent.service", idA, "active", "running")
	b.state("agent.service", idA, "failed", "failed")
	p.next(attach.UnitEnded, "agent.service")

	// What is not as it should be, or not from systemd.
	for _, body := range [][]any{nil, {"a"}, {unitIface, "b"}, {unitIface, map[string]dbus.Variant{"ActiveState": dbus.MakeVariant(uint32(1))}},
		{unitIface, map[string]dbus.Variant{"ActiveState": dbus.MakeVariant("active"), "InvocationID": dbus.MakeVariant("x")}},
		{unitIface, map[string]dbus.Variant{"ActiveState": dbus.MakeVariant("active"), "InvocationID": dbus.MakeVariant([]byte{1})}},
		{uint32(7), map[string]dbus.Variant{}}, {"org.freedesktop.systemd1.Service", map[string]dbus.Variant{"ActiveState": dbus.MakeVariant("active")}}} {
		b.emit(pathOf("agent.service"), propsIface, "PropertiesChanged", body...)
	}
	b.emit("/org/freedesktop/systemd1/unit/agent_2", propsIface, "PropertiesChanged", unitIface, map[string]dbus.Variant{}, []string{})
	b.emit("/org/freedesktop/systemd1/unit/agent_zz", propsIface, "PropertiesChanged", unitIface, map[string]dbus.Variant{}, []string{})
	b.forge(pathOf("agent.service"), propsIface, "PropertiesChanged", unitIface, map[string]dbus.Variant{"ActiveState": dbus.MakeVariant("active"), "InvocationID": dbus.MakeVariant(idBytes(idB))}, []string{})
	b.forge(managerPath, managerIface, "Reloading", false)
	b.emit(managerPath, managerIface, "Reloading", "x")
	b.emit(managerPath, managerIface, "Reloading")

	// A reload, and unit files that changed during it: one event.
	b.emit(managerPath, managerIface, "Reloading", true)
	b.emit(managerPath, managerIface, "UnitFilesChanged")
	for i := range 500 { // nobody asked for these
		b.emit(managerPath, managerIface, "UnitNew", fmt.Sprintf("agent-%d.service", i), pathOf("x"))
	}
	b.emit(managerPath, managerIface, "Reloading", false)
	p.next(attach.UnitsReloaded, "")
	b.emit(managerPath, managerIface, "UnitFilesChanged")
	p.next(attach.UnitsReloaded, "")

	// systemd is executed again.
	n := b.count("Subscribe")
	b.setOwner("")
	p.next(attach.BusLost, "")
	b.setOwner(":1.901")
	p.next(attach.BusBack, "")
	if b.count("Subscribe") != n+1 {
		t.Errorf("the new systemd was not asked to send signals")
	}
	b.state("agent.service", idB, "active", "running")
	p.next(attach.UnitStarted, "agent.service")

	// The bus is restarted.
	b.dropAll()
	p.next(attach.BusLost, "")
	p.next(attach.BusBack, "")
	b.state("agent.service", idB, "inactive", "dead")
	p.next(attach.UnitEnded, "agent.service")

	for _, m := range []string{"Get", "GetAll", "LoadUnit", "GetUnit"} {
		if n := b.count(m); n > 0 {
			t.Errorf("%d calls of %s: a follower that asks feeds itself", n, m)
		}
	}
	cancel()
	for e := range p.ch {
		t.Errorf("event after the end: %v", e)
	}
	b.ln.Close()
	b.dropAll()
	b.wg.Wait()
	eventually(t, "all goroutines end", func() bool { return runtime.NumGoroutine() <= before })
}

func TestFollowSlowReader(t *testing.T) {
	b := newFakeBus(t)
	s := b.client(Options{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := tape{t, s.Follow(ctx, func(string) bool { return true })}
	b.state("first.service", idA, "active", "running")
	time.Sleep(20 * time.Millisecond) // it waits in the channel now
	for i := range 300 {
		b.state("agent.service", fmt.Sprintf("%032x", i+1), "active", "running")
		b.state("agent.service", fmt.Sprintf("%032x", i+1), "failed", "failed")
	}
	b.state("last.service", idA, "active", "running")
	p.next(attach.UnitStarted, "first.service")
	for {
		e := <-p.ch
		if e.Unit == "last.service" {
			break
		}
		if e.Unit != "agent.service" {
			t.Fatalf("%v", e)
		}
	}
}

func TestFollowBeforeTheBus(t *testing.T) {
	b := newFakeBus(t)
	b.setOwner("")
	s := b.client(Options{})
	s.wait.first = 30 * time.Millisecond
	p := tape{t, s.Follow(t.Context(), func(string) bool { return true })}
	p.next(attach.BusLost, "")
	b.setOwner(":1.1")
	p.next(attach.BusBack, "")
	b.state("agent.service", idA, "active", "running")
	p.next(attach.UnitStarted, "agent.service")

	silent := New(Options{Address: "unix:path=" + silentSocket(t)})
	silent.wait.first = 10 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	p = tape{t, silent.Follow(ctx, func(string) bool { return true })}
	p.next(attach.BusLost, "")
	cancel()
	for range p.ch {
	}
}

func TestUnitPaths(t *testing.T) {
	for _, name := range []string{"a.service", `a\x2db@c:d_e-f.service`, "0.service", "dev-sda1.device"} {
		if got, ok := unitOf(pathOf(name)); got != name || !ok {
			t.Errorf("%q became %q by %s", name, got, pathOf(name))
		}
	}
	for _, p := range []dbus.ObjectPath{"/", "/org/freedesktop/systemd1/unit/", "/org/freedesktop/systemd1/job/1", "/org/freedesktop/systemd1/unit/a_", "/org/freedesktop/systemd1/unit/a_2", "/org/freedesktop/systemd1/unit/a_xy"} {
		if got, ok := unitOf(p); ok {
			t.Errorf("%s is %q", p, got)
		}
	}
}
