package units

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

func silentSocket(t *testing.T) string {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "silent")
	ln, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return sock
}

func jobPath(id uint32) dbus.ObjectPath {
	return dbus.ObjectPath(fmt.Sprintf("%s/job/%d", managerPath, id))
}

// removed says that a job ended.
func (b *fakeBus) removed(id uint32, unit, result string) {
	b.emit(managerPath, managerIface, "JobRemoved", id, jobPath(id), unit, result)
}

func noJob(busCall) ([]any, error) {
	return nil, busError("org.freedesktop.systemd1.NoSuchJob", "Job 7 does not exist.")
}

func TestJobResults(t *testing.T) {
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"a.service": with(bare("a.service"), map[string]any{"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": int32(231)})})
	s := b.client(Options{})
	s.wait.poll = time.Minute
	for _, c := range []struct{ result, says string }{
		{"done", ""}, {"skipped", ""},
		{"failed", `the job's result is "failed"; a.service is failed, result exit-code, status 231/APPARMOR`},
		{"assert", "AssertSecurity=apparmor"},
		{"dependency", "a unit it depends on"},
		{"timeout", "longer"}, {"canceled", "another job"}, {"what-systemd-may-say-one-day", "what-systemd-may-say-one-day"},
	} {
		for _, early := range []bool{true, false} {
			b.on("TryRestartUnit", func(call busCall) ([]any, error) {
				if got := fmt.Sprint(call.args); got != "[a.service replace]" {
					t.Errorf("TryRestartUnit%s", got)
				}
				b.removed(6, "other.service", "failed")
				if early { // the signal overtakes the answer
					b.removed(7, "a.service", c.result)
				} else {
					time.AfterFunc(5*time.Millisecond, func() { b.removed(7, "a.service", c.result) })
				}
				return []any{jobPath(7)}, nil
			})
			err := s.TryRestart(t.Context(), "a.service")
			switch {
			case c.says == "" && err != nil:
				t.Errorf("%s: %v", c.result, err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || !strings.HasPrefix(err.Error(), "cannot restart a.service: ")):
				t.Errorf("%s: %v", c.result, err)
			}
			// Who waits for a job is to know that somebody else's took its place.
			if other := (interface{ Canceled() bool })(nil); errors.As(err, &other) != (c.result == "canceled") {
				t.Errorf("%s: %v is an error of a job that was canceled: %v", c.result, err, other)
			}
		}
	}
	b.on("StopUnit", func(busCall) ([]any, error) {
		return nil, busError("org.freedesktop.systemd1.NoSuchUnit", "Unit a.service not loaded.")
	})
	if err := s.Stop(t.Context(), "a.service"); err == nil || err.Error() != "cannot stop a.service: Unit a.service not loaded." {
		t.Errorf("stop: %v", err)
	}
}

func TestStartClearsFailedState(t *testing.T) {
	b := newFakeBus(t)
	s := b.client(Options{})
	b.on("StartUnit", func(busCall) ([]any, error) {
		b.removed(7, "a.service", "done")
		return []any{jobPath(7)}, nil
	})
	for _, reset := range []error{nil, busError("org.freedesktop.systemd1.NoSuchUnit", "Unit a.service not loaded.")} {
		before := b.count("ResetFailedUnit")
		b.on("ResetFailedUnit", func(busCall) ([]any, error) { return nil, reset })
		if err := s.Start(t.Context(), "a.service"); err != nil || b.count("ResetFailedUnit") != before+1 {
			t.Errorf("start: %v", err)
		}
	}
	b.on("ResetFailedUnit", func(busCall) ([]any, error) {
		return nil, busError("org.freedesktop.DBus.Error.AccessDenied", "no")
	})
	if err := s.Start(t.Context(), "a.service"); err == nil {
		t.Error("a refusal was overlooked")
	}
}

// A unit is kept and let go of over the same connection: systemd counts for each.
func TestKeep(t *testing.T) {
	b := newFakeBus(t)
	s := b.client(Options{})
	calls := make(chan string, 10)
	for _, member := range []string{"RefUnit", "UnrefUnit"} {
		b.on(member, func(c busCall) ([]any, error) {
			calls <- fmt.Sprint(member, c.args, c.sender)
			return nil, nil
		})
	}
	release, err := s.Keep(t.Context(), "a@1.service")
	if err != nil {
		t.Fatal(err)
	}
	kept := <-calls
	select {
	case c := <-calls:
		t.Errorf("%s before it was to be let go of", c)
	case <-time.After(20 * time.Millisecond):
	}
	release()
	if c := <-calls; !strings.HasPrefix(kept, "RefUnit[a@1.service]") || c != "Unref"+strings.TrimPrefix(kept, "Ref") {
		t.Errorf("%s and then %s", kept, c)
	}
	b.dropAll()
	release() // there is nothing to let go of any more
	s = b.client(Options{})
	b.on("RefUnit", func(busCall) ([]any, error) {
		return nil, busError("org.freedesktop.systemd1.NoSuchUnit", "Unit a.service not loaded.")
	})
	for unit, says := range map[string]string{"a.service": "cannot keep a.service: Unit a.service not loaded.", "a": "cannot keep"} {
		if _, err := s.Keep(t.Context(), unit); err == nil || !strings.HasPrefix(err.Error(), says) {
			t.Errorf("%s: %v", unit, err)
		}
	}
}

// Any user may send JobRemoved to any connection.
func TestForgedJobRemoved(t *testing.T) {
	b := newFakeBus(t)
	b.has(map[string]map[string]any{"a.service": with(bare("a.service"), map[string]any{"ActiveState": "failed"})})
	s := b.client(Options{})
	s.wait.poll = time.Minute
	b.on("TryRestartUnit", func(busCall) ([]any, error) {
		b.forge(managerPath, managerIface, "JobRemoved", uint32(7), jobPath(7), "a.service", "done")
		b.forge(managerPath, managerIface, "JobRemoved", "what?")
		b.forge("/org/freedesktop/DBus", "org.freedesktop.DBus", "NameOwnerChanged", systemdName, ":1.1", ":1.666")
		b.forge(managerPath, managerIface, "JobRemoved", uint32(7), jobPath(7), "a.service", "done")
		time.AfterFunc(20*time.Millisecond, func() { b.removed(7, "a.service", "failed") })
		return []any{jobPath(7)}, nil
	})
	if err := s.TryRestart(t.Context(), "a.service"); err == nil || !strings.Contains(err.Error(), `"failed"`) {
		t.Errorf("a forged result was believed: %v", err)
	}
	// systemd's own, but not as it should be.
	b.on("TryRestartUnit", func(busCall) ([]any, error) {
		b.emit(managerPath, managerIface, "JobRemoved")
		b.emit(managerPath, managerIface, "JobRemoved", "a", "b", "c", "d")
		b.removed(7, "a.service", "done")
		return []any{jobPath(7)}, nil
	})
	if err := s.TryRestart(t.Context(), "a.service"); err != nil {
		t.Error(err)
	}
}

func TestJobResultNotHeard(t *testing.T) {
	for _, c := range []struct {
		name, active string
		lose         func(b *fakeBus)
		ok           bool
	}{
		{"the signal was lost", "active", func(*fakeBus) {}, true},
		{"the signal was lost and the unit is down", "failed", func(*fakeBus) {}, false},
		{"the bus was restarted", "active", func(b *fakeBus) { b.dropAll() }, true},
		{"systemd was executed again", "active", func(b *fakeBus) { b.setOwner(""); b.setOwner(":1.900") }, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newFakeBus(t)
			b.has(map[string]map[string]any{"a.service": with(bare("a.service"), map[string]any{"ActiveState": c.active})})
			var gone atomic.Bool
			b.on("GetJob", func(call busCall) ([]any, error) {
				if gone.Load() {
					return noJob(call)
				}
				return []any{jobPath(7)}, nil
			})
			b.on("StartUnit", func(busCall) ([]any, error) {
				time.AfterFunc(20*time.Millisecond, func() { c.lose(b); gone.Store(true) })
				return []any{jobPath(7)}, nil
			})
			b.on("ResetFailedUnit", func(busCall) ([]any, error) { return nil, nil })
			if err := b.client(Options{}).Start(t.Context(), "a.service"); (err == nil) != c.ok {
				t.Errorf("%v", err)
			}
		})
	}
}

// The result of a job that outlives a restart of the bus, or of systemd, is
// heard after it.
func TestJobOutlivesTheBus(t *testing.T) {
	for name, lose := range map[string]func(b *fakeBus){
		"bus":     func(b *fakeBus) { b.dropAll() },
		"systemd": func(b *fakeBus) { b.setOwner(""); b.setOwner(":1.900") },
	} {
		t.Run(name, func(t *testing.T) {
			b := newFakeBus(t)
			b.on("GetJob", func(busCall) ([]any, error) { return []any{jobPath(7)}, nil })
			b.has(map[string]map[string]any{"a.service": bare("a.service")})
			queued, once := make(chan struct{}), sync.Once{}
			b.on("TryRestartUnit", func(busCall) ([]any, error) {
				once.Do(func() { close(queued) })
				return []any{jobPath(7)}, nil
			})
			done := make(chan error)
			go func() { done <- b.client(Options{}).TryRestart(t.Context(), "a.service") }()
			<-queued
			subscribed := b.count("Subscribe")
			lose(b)
			eventually(t, "it listens again", func() bool { return b.count("Subscribe") > subscribed })
			time.AfterFunc(10*time.Millisecond, func() { b.removed(7, "a.service", "timeout") })
			if err := <-done; err == nil || !strings.Contains(err.Error(), `"timeout"`) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestJobGivesUp(t *testing.T) {
	b := newFakeBus(t)
	b.on("GetJob", func(busCall) ([]any, error) { return []any{jobPath(7)}, nil })
	b.on("TryRestartUnit", func(busCall) ([]any, error) { return []any{jobPath(7)}, nil })
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second) // time enough to get there
	defer cancel()
	err := b.client(Options{}).TryRestart(ctx, "a.service")
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "has not ended") {
		t.Errorf("%v", err)
	}
	if b.count("GetJob") == 0 {
		t.Error("the job was not asked for")
	}
}

func TestReload(t *testing.T) {
	b := newFakeBus(t)
	s := b.client(Options{})
	b.on("Reload", func(busCall) ([]any, error) {
		b.on("Reload", func(busCall) ([]any, error) { return nil, nil })
		b.dropAll()
		return nil, errHang
	})
	if err := s.Reload(t.Context()); err != nil || b.count("Reload") != 2 {
		t.Errorf("%v after %d calls", err, b.count("Reload"))
	}
	b.on("Reload", func(busCall) ([]any, error) {
		return nil, busError("org.freedesktop.systemd1.Failed", "no space left")
	})
	if err := s.Reload(t.Context()); err == nil || err.Error() != "cannot have systemd read its unit files again: no space left" {
		t.Errorf("%v", err)
	}
}
