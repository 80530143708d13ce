package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// An explanation is for everybody, as far as each may know: members of adm are told
// of denials, and only root of tasks and of what an attach would come to.
func TestExplainTellsEachWhatTheyMayKnow(t *testing.T) {
	r := startRig(t)
	for uid, want := range map[uint32]struct{ details, denials bool }{0: {true, true}, 4001: {false, true}, 1000: {false, false}} {
		got, err := r.client(t, uid).Explain(t.Context(), []string{"a.service"})
		if err != nil || len(got.Cases) != 1 {
			t.Fatalf("user %d: %v %+v", uid, err, got)
		}
		c := got.Cases[0]
		why := c.Status.Verdict.Reasons[0]
		if why.Code != attach.TaskUnconfined || strings.Contains(why.Detail, "secret") != want.details {
			t.Errorf("user %d is told %+v", uid, why)
		}
		if (c.Plan != nil) != want.details {
			t.Errorf("user %d is told of the plan: %+v", uid, c.Plan)
		}
		if (len(c.Denials) == 1) != want.denials || (c.LeftOut == 1) != want.denials || (c.Hidden == "") != want.denials {
			t.Errorf("user %d: denials %+v, %d left out, hidden %q", uid, c.Denials, c.LeftOut, c.Hidden)
		}
		if c.Start == nil || c.Start.ActiveState != "failed" || c.Start.Reached != attach.No || !strings.Contains(c.Start.By, "refused the change of profile") {
			t.Errorf("user %d is not told what systemd tells everybody, and whether the program was reached: %+v", uid, c.Start)
		} else if strings.Contains(c.Start.By, "hidden-agent") != want.denials {
			t.Errorf("user %d is told %q, which quotes a record of the kernel", uid, c.Start.By)
		}
	}
	// Names have their price for others than root.
	many := make([]string, maxPublicNames+1)
	for i := range many {
		many[i] = "a"
	}
	for uid, refused := range map[uint32]bool{0: false, 1000: true, 4001: true} {
		if _, err := r.client(t, uid).Explain(t.Context(), many); (err != nil) != refused {
			t.Errorf("user %d with %d names: %v", uid, len(many), err)
		}
	}
}

// What is loaded is for root alone, whatever polkit would say.
func TestQueryLoadedIsForRoot(t *testing.T) {
	r := startRig(t)
	got, err := r.client(t, 0).QueryLoaded(t.Context(), []string{"a"}, "write /tmp/**")
	if err != nil || len(got) != 1 || got[0].Text != "write /tmp/**" || got[0].Loaded == nil || got[0].Loaded.Checksum != "sha1:1" {
		t.Errorf("%v %+v", err, got)
	}
	p := &fakePolkit{}
	startPolkit(t, r.privateBus, p)
	for _, uid := range []uint32{1000, 4001} {
		if _, err := r.client(t, uid).QueryLoaded(t.Context(), nil, "write /tmp/**"); !errors.Is(err, ErrDenied) {
			t.Errorf("user %d: %v", uid, err)
		}
	}
	if q := p.questions(); len(q) != 0 {
		t.Errorf("polkit was asked: %v", q)
	}
	if _, err := r.client(t, 0).QueryLoaded(t.Context(), nil, "nonsense"); !errors.Is(err, ErrBad) {
		t.Errorf("nonsense: %v", err)
	}
}
