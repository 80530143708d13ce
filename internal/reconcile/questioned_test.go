package reconcile

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// What the kernel was asked about a policy is told by a check, with an attach and
// afterwards; and notes of the gate to who asks, and to nobody else.
func TestWhatTheKernelWasAskedIsTold(t *testing.T) {
	w := attached(nil, "a")
	w.gate = func(c attach.Compiled) []attach.Reason {
		return []attach.Reason{attach.Because(attach.MayNoNetwork, "no network").At(c.File)}
	}
	w.addUnit("b.service")
	w.run(t, func(l *Loop) {
		told := func(what string, q []attach.Questioned) {
			t.Helper()
			if len(q) != 1 || q[0].Questions != 42 || !q[0].Wholly() || q[0].File != textA {
				t.Errorf("%s: %+v", what, q)
			}
		}
		out, err := l.Check(context.Background(), []string{"a", textA}, true)
		if err != nil || len(out) != 2 {
			t.Fatalf("%+v %v", out, err)
		}
		for _, o := range out {
			told("check "+o.Unit, o.Questioned)
			if len(o.Findings) != 1 || o.Findings[0].Severity != attach.Note || o.Exit != attach.ExitOK {
				t.Errorf("check %s: %+v", o.Unit, o)
			}
		}
		out = attachUnits(t, l, attach.Request{Units: []string{"b"}, Profile: "a"})
		told("attach", out[0].Questioned)
		if len(out[0].Findings) > 0 || len(out[0].Notes) > 0 {
			t.Errorf("attach: %+v", out[0])
		}
		r := l.Status([]string{"a"})
		if len(r.Units) != 1 {
			t.Fatalf("%+v", r)
		}
		told("status", r.Units[0].Questioned)
		if len(r.Units[0].Notes) > 0 {
			t.Errorf("status: %+v", r.Units[0])
		}
	})
}

// A warning about a policy stands beside its unit for as long as both are as they are;
// it leaves nothing to be done, and is no reason to look at the unit again.
func TestAWarningAboutAPolicyLeavesNothingToBeDone(t *testing.T) {
	w := attached(nil, "a")
	w.gate = func(c attach.Compiled) []attach.Reason {
		return []attach.Reason{attach.Because(attach.MayUserns, "makes user namespaces").At(c.File)}
	}
	w.run(t, func(l *Loop) {
		change := func() {
			w.policy <- struct{}{}
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		change()
		if got := codes(status(t, l, "a").Notes); !slices.Contains(got, attach.MayUserns) || answer(l, "a") != "confined" {
			t.Fatalf("%v %s", got, answer(l, "a"))
		}
		before := l.Metrics()
		if before.Units[0].Pending {
			t.Errorf("%+v", before.Units[0])
		}
		change()
		if after := l.Metrics(); after.Passes.Count != before.Passes.Count || after.Looks != before.Looks {
			t.Errorf("%d passes, %d before; %d looks, %d before", after.Passes.Count, before.Passes.Count, after.Looks, before.Looks)
		}
	})
}

// A policy that the kernel reads otherwise is no good one.
func TestCheckSaysThatTheKernelReadsItOtherwise(t *testing.T) {
	w := attached(nil, "a")
	w.run(t, func(l *Loop) {
		w.mu.Lock()
		w.disputed = "file \"/tmp/a\""
		w.mu.Unlock()
		w.edit("2")
		out, err := l.Check(context.Background(), []string{textA}, true)
		if err != nil || len(out) != 1 || len(out[0].Reasons) != 1 || out[0].Reasons[0].Code != attach.PolicyDisputed || out[0].Exit != attach.ExitNotConfined || len(out[0].Questioned) > 0 {
			t.Errorf("%+v %v", out, err)
		}
	})
}
