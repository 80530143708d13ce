package reconcile

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/evidence"
)

// archive is a machine's evidence: the real adapter, on a directory of the test's.
// Of the world's processes there are none, so it knows no executable.
type archive struct {
	dir  string
	busy chan struct{} // records are made when it is closed; nil at once
}

// withEvidence runs one life of the daemon that keeps evidence.
func (w *world) withEvidence(a *archive, body func(l *Loop)) {
	keeper := evidence.New(evidence.Options{Dir: a.dir, Root: filepath.Join(a.dir, "no-root"), Policy: policies{w}.Get, Log: slog.New(slog.NewTextHandler(&w.log, nil))})
	w.evidence = keeper
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	busy := a.busy
	wg.Go(func() {
		if busy != nil {
			<-busy
		}
		keeper.Run(ctx)
	})
	defer wg.Wait()
	defer cancel()
	w.boot(body)
}

// records are what is kept of a unit, in order, with the checksum of each.
func (a *archive) records(t *testing.T, unit string) (out []attach.Evidence, sums []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(a.dir, unit, "0*.json"))
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		e, err := evidence.Decode(data)
		if err != nil {
			t.Fatal(err)
		}
		out, sums = append(out, e), append(sums, sum(string(data)))
	}
	return out, sums
}

// chained says whether each record follows on the one before.
func chained(t *testing.T, records []attach.Evidence, sums []string) {
	t.Helper()
	for i, r := range records {
		want := ""
		if i > 0 {
			want = sums[i-1]
		}
		if r.Number != i+1 || r.Previous != want {
			t.Errorf("record %d has the number %d and follows on %q, want %q", i+1, r.Number, r.Previous, want)
		}
	}
}

func TestEachStartLeavesEvidence(t *testing.T) {
	a := &archive{dir: t.TempDir()}
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	synctest.Test(t, func(t *testing.T) {
		w.withEvidence(a, func(l *Loop) {
			records, _ := a.records(t, "a.service")
			if len(records) == 0 {
				t.Fatalf("the attach has left none:\n%s", w.log.String())
			}
			first := records[len(records)-1]
			if first.Verdict.Answer != attach.Confined || first.Boot != "boot 0" || len(first.Live) != 1 || first.Live[0].Checksum != "sha256:a1" || first.Live[0].Accepted != "sha256:a1" ||
				first.DropIn.SHA256 != sum(w.disk[attach.DropInPath("a.service", false)]) || first.Policies[0].Compiled != sum("1") || first.Labels[0].Label != "a (enforce)" ||
				!strings.Contains(first.Executable.Problem, "ended") {
				t.Errorf("it says %+v", first)
			}

			n := len(records)
			w.mu.Lock()
			if err := w.begin(u); err != nil {
				t.Fatal(err)
			}
			w.mu.Unlock()
			rest()
			records, sums := a.records(t, "a.service")
			if len(records) != n+1 || records[n].Verdict.InvocationID != "a.service-3" {
				t.Fatalf("%d records after another start, before %d", len(records), n)
			}
			chained(t, records, sums)
			if !strings.Contains(w.log.String(), sums[n]) {
				t.Error("the journal does not have the newest checksum")
			}

			// Looking again is no news; another answer is.
			if _, err := l.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			rest()
			if records, _ = a.records(t, "a.service"); len(records) != n+1 {
				t.Errorf("%d records after a look", len(records))
			}
			w.mu.Lock()
			u.label = "unconfined"
			w.mu.Unlock()
			if _, err := l.Verify(t.Context(), nil); err != nil {
				t.Fatal(err)
			}
			rest()
			records, sums = a.records(t, "a.service")
			if len(records) < n+2 || records[n+1].Verdict.Answer != attach.NotConfined || records[n+1].Verdict.InvocationID != "a.service-3" || records[n+1].Labels[0].Fits != attach.No {
				t.Fatalf("%d records after another answer", len(records))
			}
			chained(t, records, sums)
			if err := l.systemdStop(w, "a.service"); err != nil {
				t.Fatal(err)
			}
			rest()
			if again, _ := a.records(t, "a.service"); len(again) != len(records) {
				t.Errorf("%d records after the end of the unit, before %d", len(again), len(records))
			}
		})
	})
}

// systemdStop stops a unit as a person would.
func (l *Loop) systemdStop(w *world, unit string) error {
	err := w.Stop(context.Background(), unit)
	w.events <- attach.UnitEvent{Kind: attach.UnitEnded, Unit: unit}
	return err
}

func TestAnotherLifeGoesOnWithTheEvidence(t *testing.T) {
	a := &archive{dir: t.TempDir()}
	w := newWorld()
	u := w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	synctest.Test(t, func(t *testing.T) {
		w.withEvidence(a, func(*Loop) {})
		before, _ := a.records(t, "a.service")
		w.withEvidence(a, func(*Loop) {
			if records, _ := a.records(t, "a.service"); len(records) != len(before) {
				t.Errorf("%d records after a restart of the daemon, before %d", len(records), len(before))
			}
			w.mu.Lock()
			if err := w.begin(u); err != nil {
				t.Fatal(err)
			}
			w.mu.Unlock()
			rest()
			records, sums := a.records(t, "a.service")
			if len(records) != len(before)+1 {
				t.Errorf("%d records after a start, before %d", len(records), len(before))
			}
			chained(t, records, sums)
		})
		// A start that nobody saw has its record too, when the daemon is back; also
		// where the verdict was kept and the record was not.
		w.mu.Lock()
		if err := w.begin(u); err != nil {
			t.Fatal(err)
		}
		w.mu.Unlock()
		a.busy = make(chan struct{})
		busy := a.busy
		w.withEvidence(a, func(l *Loop) {
			if v := l.Status(nil).Units[0].Verdict; v == nil || v.Answer != attach.Confined {
				t.Errorf("a record that is not made yet holds up the verdict: %+v", v)
			}
			close(busy)
			rest()
		})
		a.busy = nil
		records, sums := a.records(t, "a.service")
		if last := records[len(records)-1]; last.Verdict.InvocationID != "a.service-4" {
			t.Errorf("the last record is about %s", last.Verdict.InvocationID)
		}
		files, err := filepath.Glob(filepath.Join(a.dir, "a.service", "*"+sums[len(sums)-1]+"*"))
		if err != nil || len(files) != 1 {
			t.Fatal(files, err)
		}
		if err := os.Remove(files[0]); err != nil { // as if the daemon had been killed before it
			t.Fatal(err)
		}
		w.withEvidence(a, func(*Loop) {})
		if again, _ := a.records(t, "a.service"); len(again) != len(records) || again[len(again)-1].Verdict.InvocationID != "a.service-4" {
			t.Errorf("what was lost is not made up for: %d records", len(again))
		}
	})
}

// A changed text that goes live without a restart is another policy under the
// same start.
func TestAnotherPolicyIsEvidenceOfItsOwn(t *testing.T) {
	a := &archive{dir: t.TempDir()}
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	synctest.Test(t, func(t *testing.T) {
		w.withEvidence(a, func(l *Loop) {
			before, _ := a.records(t, "a.service")
			w.mu.Lock()
			w.files["a"] = "2"
			w.mu.Unlock()
			l.everythingAnew()
			rest()
			records, sums := a.records(t, "a.service")
			last := records[len(records)-1]
			if len(records) <= len(before) || last.Policies[0].Compiled != sum("2") || last.Verdict.InvocationID != before[len(before)-1].Verdict.InvocationID {
				t.Errorf("%d records, before %d; the last %+v", len(records), len(before), last.Policies)
			}
			chained(t, records, sums)
		})
	})
}

func TestVerifyEvidence(t *testing.T) {
	a := &archive{dir: t.TempDir()}
	w := newWorld()
	w.addUnit("a.service")
	w.addUnit("b.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.declareUnit("/etc/aaunit/attachments.d/b.conf", "b.service", nil)
	synctest.Test(t, func(t *testing.T) {
		w.withEvidence(a, func(l *Loop) {
			r, err := l.VerifyEvidence(t.Context(), nil)
			if err != nil || len(r.Units) != 2 {
				t.Fatalf("%+v, %v", r, err)
			}
			for _, s := range r.Units {
				// The world has no files and processes: that could not be told, and all
				// else holds.
				for _, link := range s.Links {
					gone := slices.Contains([]attach.EvidenceCode{attach.LinkSource, attach.LinkProgram, attach.LinkOnDisk}, link.Link)
					if gone == (link.Holds == attach.Yes) {
						t.Errorf("%s: %+v", s.Unit, link)
					}
				}
				if s.Exit == attach.ExitOK || s.Newest == nil {
					t.Errorf("%+v", s)
				}
			}
			// Told before the pass comes to put it back.
			w.mu.Lock()
			w.kernel["a"] = "evil"
			w.mu.Unlock()
			r, err = l.VerifyEvidence(t.Context(), []string{"a"})
			if err != nil || len(r.Units) != 1 {
				t.Fatalf("%+v, %v", r, err)
			}
			if i := slices.IndexFunc(r.Units[0].Links, func(k attach.EvidenceLink) bool {
				return k.Link == attach.LinkKernel && k.Holds == attach.No && k.Old == "sha256:a1" && k.New == "sha256:aevil"
			}); i < 0 {
				t.Errorf("%+v", r.Units[0].Links)
			}
			// Detached: the records stay, and can be checked.
			w.undeclare("/etc/aaunit/attachments.d/b.conf")
			rest()
			r, err = l.VerifyEvidence(t.Context(), []string{"b.service", "never.service"})
			if err != nil || len(r.Units) != 1 || r.Units[0].First.Link != attach.LinkAttachment || r.Units[0].Exit != attach.ExitNotConfined ||
				len(r.Missing) != 1 || r.Missing[0].Reason.Code != attach.UnitNotFound {
				t.Errorf("%+v, %v", r, err)
			}
		})
	})
}

// Whose evidence may make room for that of other units: of what is attached, no more than
// what a pattern alone names and has ended.
func TestLiving(t *testing.T) {
	for pattern, own := range map[string]string{"w@.service": "w@.service", "w@*.service": ""} {
		w := instances(func(a *attach.Attachment) { a.Units = []string{pattern, "w@named.service"} }, "named", "1", "2", "3")
		w.addUnit("detached.service")
		w.declareUnit("/etc/aaunit/attachments.d/detached.conf", "detached.service", nil)
		w.run(t, func(l *Loop) {
			rest()
			w.undeclare("/etc/aaunit/attachments.d/detached.conf")
			for _, name := range []string{"named", "1", "2"} {
				w.ends("w@" + name + ".service")
			}
			time.Sleep(DefaultRecheck)
			rest()
			w.comes("w@2.service") // again
			rest()
			got := slices.DeleteFunc(l.Living(), func(unit string) bool { return unit == own })
			slices.Sort(got)
			if want := []string{"w@2.service", "w@3.service", "w@named.service"}; !slices.Equal(got, want) {
				t.Errorf("%s: %q, want %q", pattern, got, want)
			}
		})
	}
}

func TestWithoutEvidenceNothingIsProved(t *testing.T) {
	w := newWorld()
	w.addUnit("a.service")
	w.declareUnit("/etc/aaunit/attachments.d/a.conf", "a.service", nil)
	w.run(t, func(l *Loop) {
		if r, err := l.VerifyEvidence(t.Context(), nil); err == nil || !strings.HasPrefix(err.Error(), "cannot ") || len(r.Units) != 0 {
			t.Errorf("%+v, %v", r, err)
		}
	})
}
