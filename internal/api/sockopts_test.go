package api

import (
	"errors"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// What was seen names programs, so it is for those who may read denials.
func TestSocketOptionsAreForRootAndAdm(t *testing.T) {
	r := startRig(t)
	for _, uid := range []uint32{0, 4001} {
		got, err := r.client(t, uid).SocketOptions(t.Context(), []string{"a"})
		if err != nil || len(got.Units) != 1 || got.Units[0].Unit != "a" {
			t.Errorf("user %d: %v %+v", uid, err, got)
		}
	}
	p := &fakePolkit{yes: true}
	startPolkit(t, r.privateBus, p)
	if _, err := r.client(t, 1000).SocketOptions(t.Context(), nil); !errors.Is(err, ErrDenied) {
		t.Errorf("anybody is told: %v", err)
	}
	if q := p.questions(); len(q) != 0 {
		t.Errorf("polkit was asked: %v", q)
	}
}

func TestChangeOfSocketOptionsArrives(t *testing.T) {
	r := startRig(t)
	c := r.client(t, 0)
	changes := []attach.SocketChange{
		{Call: attach.SetSockOpt, Mode: attach.SocketsEnforce},
		{Call: attach.SetSockOpt, Approve: []string{"TCP_NODELAY", "6:4"}, Reason: "small frames"},
		{Call: attach.GetSockOpt, Revoke: []string{"TCP_INFO"}},
	}
	var want []attach.Request
	for _, change := range changes {
		if _, err := c.ChangeSockets(t.Context(), attach.Request{Units: []string{"a"}, Sockets: &change}, nil); err != nil {
			t.Error(err)
		}
		want = append(want, attach.Request{Units: []string{"a"}, Sockets: &change, By: "root", Trusted: true})
	}
	if d := cmp.Diff(want, r.manager.got()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestChangeOfSocketOptionsTakesNoNonsense(t *testing.T) {
	r := startRig(t)
	c := r.user(t, 0)
	long := strings.Repeat("x", maxLength+1)
	for what, opts := range map[string]map[string]any{
		"nothing":           {},
		"no such mode":      {"mode": "on"},
		"no such call":      {"approve": []string{"x"}, "call": "bind", "reason": "r"},
		"no reason":         {"approve": []string{"x"}},
		"a line of its own": {"approve": []string{"x"}, "reason": "r\nAllow=6:1 x"},
		"a continued line":  {"approve": []string{"x"}, "reason": `r\`},
		"a long reason":     {"approve": []string{"x"}, "reason": long},
		"a long name":       {"approve": []string{long}, "reason": "r"},
		"another type":      {"approve": "x", "reason": "r"},
		"a profile":         {"mode": "record", "profile": "x"},
		"too many":          {"revoke": make([]string, attach.MaxSocketOptions+1)},
	} {
		if err := call(c, Path, ManagerInterface+".ChangeSocketOptions", []string{"a"}, variants(opts)).Err; errorName(err) != errorInvalidArgs {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got := r.manager.got(); len(got) != 0 {
		t.Errorf("the daemon was asked for %+v", got)
	}
}

func variants(in map[string]any) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	for key, v := range in {
		out[key] = dbus.MakeVariant(v)
	}
	return out
}
