package reconcile

import (
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// sharing is two units that one .socket unit starts, each with an attachment of its own.
func sharing(t *testing.T) *world {
	t.Helper()
	w := attached(options(attach.SocketsEnforce, nodelay...), "a", "b")
	w.triggers["a.service"], w.triggers["b.service"] = []string{"a.socket"}, []string{"a.socket"}
	return w
}

// Services that share a .socket unit find what the others wrote for it.
func TestUnitsThatShareASocketDoNotTakeTurns(t *testing.T) {
	w := sharing(t)
	w.run(t, func(l *Loop) {
		w.still(t, "two units with one socket")
		if answer(l, "a") != "confined" || answer(l, "b") != "confined" || w.read[socketDropIn] == "" {
			t.Fatalf("a is %s, b is %s, %q", answer(l, "a"), answer(l, "b"), w.read)
		}
		w.undeclare(fileA)
		w.still(t, "one of them is detached")
		if answer(l, "b") != "confined" || !strings.Contains(w.read[socketDropIn], attach.SocketStartLine(true)) || w.attached["a.socket"].Mode != attach.SocketsEnforce {
			t.Errorf("b is %s, %q, %+v", answer(l, "b"), w.read, w.attached)
		}
		w.undeclare("/etc/aaunit/attachments.d/b.conf")
		w.still(t, "both are")
		if len(w.disk)+len(w.attached)+len(w.rules)+len(w.records) > 0 {
			t.Errorf("left: %q %+v %+v %+v", w.disk, w.attached, w.rules, w.records)
		}
	})
}

// The .socket unit has one list. Who comes second and wants another one is told who has
// it, and changes nothing; it comes in when the other one goes.
func TestOtherRulesForASharedSocketAreRefused(t *testing.T) {
	w := sharing(t)
	fileB := "/etc/aaunit/attachments.d/b.conf"
	delete(w.att, fileB)
	w.run(t, func(l *Loop) {
		text := w.read[socketDropIn]
		w.declareUnit(fileB, "b.service", options(attach.SocketsRecord))
		w.still(t, "other rules")
		s := status(t, l, "b")
		if len(s.Refused) != 1 || s.Refused[0].Code != attach.SocketsDisputed || !strings.HasPrefix(s.Refused[0].Detail, "a.socket starts a.service, too") || s.Refused[0].Where != fileB {
			t.Errorf("%+v", s.Refused)
		}
		if text == "" || w.read[socketDropIn] != text || w.attached["a.socket"].Mode != attach.SocketsEnforce || answer(l, "a") != "confined" || w.units["b.service"].label != "unconfined" {
			t.Errorf("%q, %+v, a is %s, b has %s", w.read, w.attached, answer(l, "a"), w.units["b.service"].label)
		}
		w.undeclare(fileA)
		w.still(t, "the other one is detached")
		if answer(l, "b") != "confined" || w.attached["a.socket"].Mode != attach.SocketsRecord || !strings.Contains(w.read[socketDropIn], attach.SocketStartLine(false)) {
			t.Errorf("b is %s, %+v, %q", answer(l, "b"), w.attached, w.read)
		}
	})
}

// A change that both attachments make is no dispute, in whichever order it comes. Of two
// that went apart the first keeps the socket.
func TestUnitsThatShareASocketChangeTogether(t *testing.T) {
	fileB := "/etc/aaunit/attachments.d/b.conf"
	w := sharing(t)
	w.run(t, func(l *Loop) {
		change := func(file, unit string, mode attach.SocketMode) {
			w.declareUnit(file, unit, func(a *attach.Attachment) {
				a.Profile = "a"
				options(mode)(a)
			})
		}
		for _, mode := range []attach.SocketMode{attach.SocketsRecord, attach.SocketsEnforce} {
			change(fileB, "b.service", mode)
			change(fileA, "a.service", mode)
			w.still(t, "both change to "+string(mode))
			if answer(l, "a") != "confined" || answer(l, "b") != "confined" || w.attached["a.socket"].Mode != mode {
				t.Errorf("%s: a is %s, b is %s, %+v", mode, answer(l, "a"), answer(l, "b"), w.attached)
			}
		}
		change(fileA, "a.service", attach.SocketsRecord)
		w.still(t, "one changes")
		if s := status(t, l, "b"); answer(l, "a") != "confined" || w.attached["a.socket"].Mode != attach.SocketsRecord || len(s.Refused) != 1 || s.Refused[0].Code != attach.SocketsDisputed {
			t.Errorf("a is %s, %+v, b is refused for %+v", answer(l, "a"), w.attached, s.Refused)
		}
	})
}

// A failed attach leaves the socket's drop-in to the unit that it serves, and starts
// again without.
func TestAFailedAttachLeavesASharedSocketAlone(t *testing.T) {
	w := sharing(t)
	fileB := "/etc/aaunit/attachments.d/b.conf"
	at := w.att[fileB]
	delete(w.att, fileB)
	b := w.units["b.service"]
	b.breaks["a"] = true
	w.run(t, func(l *Loop) {
		text := w.read[socketDropIn]
		w.declareUnit(fileB, "b.service", func(a *attach.Attachment) { *a = at })
		w.still(t, "a failed attach")
		if s := status(t, l, "b"); s.Held == nil || !b.running || b.label != "unconfined" || s.DropIn != "" {
			t.Errorf("%+v %+v", s, b)
		}
		if text == "" || w.read[socketDropIn] != text || answer(l, "a") != "confined" || w.attached["a.socket"].Mode != attach.SocketsEnforce {
			t.Errorf("%q, a is %s, %+v", w.read, answer(l, "a"), w.attached)
		}
	})
}

// What an earlier version wrote named the attachment. It is written anew once, and is
// nobody else's.
func TestTheDropInOfASocketThatNamesAnAttachmentIsWrittenAnewOnce(t *testing.T) {
	for _, remembered := range []bool{true, false} {
		w := sharing(t)
		w.run(t, func(*Loop) {})
		now := w.disk[socketDropIn]
		i := strings.Index(now, "[Unit]")
		old := "# Written by aaunitd; changes are put back.\n# Attachment: /etc/aaunit/attachments.d/b.conf\n# To take it away: aaunitctl detach UNIT, or remove the attachment.\n" + now[i:]
		w.disk[socketDropIn], w.read[socketDropIn] = old, old
		if !remembered {
			w.records = map[string]attach.Record{}
		}
		w.trace = nil
		w.run(t, func(l *Loop) {
			w.still(t, "an earlier drop-in")
			writes := slices.DeleteFunc(slices.Clone(w.trace), func(c string) bool { return c != "write "+socketDropIn })
			if w.read[socketDropIn] != now || len(writes) != 1 || answer(l, "a") != "confined" || answer(l, "b") != "confined" {
				t.Errorf("remembered: %v: %q, a is %s, b is %s, %q", remembered, w.read, answer(l, "a"), answer(l, "b"), w.trace)
			}
		})
	}
}
