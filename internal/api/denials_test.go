package api

import (
	"context"
	"errors"
	"math"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestDenialsAreForRootAndAdm(t *testing.T) {
	r := startRig(t)
	since := time.UnixMicro(1_700_000_000_123_456)
	for _, uid := range []uint32{0, 4001} {
		c := r.client(t, uid)
		got, err := c.Denials(t.Context(), []string{"a"}, since)
		if err != nil || len(got.Units) != 1 || got.Units[0].Denials[0].Proposal.Rule != "/etc/shadow r," {
			t.Errorf("user %d: %v %+v", uid, err, got)
		}
		if !r.manager.since.Equal(since) {
			t.Errorf("user %d asked from %v on, the daemon from %v on", uid, since, r.manager.since)
		}
		if got, err := c.WaitDenials(t.Context(), nil, "1.1"); err != nil || len(got.Units) != 1 {
			t.Errorf("user %d: %v %+v", uid, err, got)
		}
	}
	// Nobody asks polkit about it.
	p := &fakePolkit{}
	startPolkit(t, r.privateBus, p)
	c := r.client(t, 1000)
	for what, err := range map[string]error{
		"Denials":     func() error { _, err := c.Denials(t.Context(), nil, since); return err }(),
		"WaitDenials": func() error { _, err := c.WaitDenials(t.Context(), nil, ""); return err }(),
	} {
		if !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "members of group adm") {
			t.Errorf("%s: %v", what, err)
		}
	}
	if q := p.questions(); len(q) != 0 {
		t.Errorf("polkit was asked: %v", q)
	}
}

// Where the groups cannot be told, nobody is in one.
func TestDenialsWithoutGroups(t *testing.T) {
	b := startBus(t)
	r := startService(t, b, newFakeManager(), func(s *service) {
		s.adm = func() (uint32, error) { return 0, errors.New("no such group") }
	})
	if _, err := r.client(t, 4001).Denials(t.Context(), nil, time.Time{}); !errors.Is(err, ErrDenied) {
		t.Error(err)
	}
	if _, err := r.client(t, 0).Denials(t.Context(), nil, time.Time{}); err != nil {
		t.Error(err)
	}
}

func TestDenialsTakeNoNonsense(t *testing.T) {
	r := startRig(t)
	c := r.user(t, 4001)
	for what, args := range map[string][]any{
		"Denials":     {[]string{"a"}, uint64(math.MaxUint64)},
		"WaitDenials": {[]string{"a"}, strings.Repeat("x", maxLength+1)},
	} {
		if err := call(c, Path, ManagerInterface+"."+what, args...).Err; errorName(err) != errorInvalidArgs {
			t.Errorf("%s: %v", what, err)
		}
	}
	many := slices.Repeat([]string{"a"}, maxPublicNames+1)
	if err := call(c, Path, ManagerInterface+".Denials", many, uint64(0)).Err; errorName(err) != errorInvalidArgs {
		t.Errorf("many names: %v", err)
	}
}

// Those who wait have so many places, and each is free again after a while,
// whoever has left.
func TestWaitsAreBounded(t *testing.T) {
	b := startBus(t)
	r := startService(t, b, newFakeManager(), func(s *service) { s.waiting = newCounter(2, 3) })
	end := make(chan error, 2)
	c := r.client(t, 4001)
	for range 2 {
		go func() { _, err := c.WaitDenials(context.Background(), nil, "7.7"); end <- err }()
	}
	full := func() bool {
		_, err := c.WaitDenials(t.Context(), nil, "1.1")
		return err != nil && strings.Contains(err.Error(), "too many calls wait")
	}
	taken := func() int {
		r.service.waiting.mu.Lock()
		defer r.service.waiting.mu.Unlock()
		return r.service.waiting.users[4001]
	}
	for began := time.Now(); taken() < 2; time.Sleep(time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatal("the two do not wait")
		}
	}
	if !full() {
		t.Error("there are more places than there should be")
	}
	// Nobody else waits for that.
	if _, err := r.client(t, 4002).WaitDenials(t.Context(), nil, "1.1"); err != nil {
		t.Error(err)
	}
	if _, err := r.client(t, 4001).Denials(t.Context(), nil, time.Time{}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := <-end; err != nil {
			t.Errorf("a wait that ends without anything new: %v", err)
		}
	}
	if full() {
		t.Error("the places are not free again")
	}
}

// The bus of this machine tells the groups of this process, and so does the user
// database.
func TestRealGroups(t *testing.T) {
	b := startBus(t)
	c := b.connect(t)
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	gid, err := strconv.ParseUint(me.Gid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	uid, err := strconv.ParseUint(me.Uid, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	got, err := busGroups(c)(t.Context(), c.Names()[0], uint32(uid))
	if err != nil || !slices.Contains(got, uint32(gid)) {
		t.Errorf("%v %v, want %d", got, err, gid)
	}
	got, err = groupsOfUser(uint32(uid))
	if err != nil || !slices.Contains(got, uint32(gid)) {
		t.Errorf("%v %v, want %d", got, err, gid)
	}
	if _, err := groupsOfUser(4_000_000_000); err == nil {
		t.Error("a user that is not there has groups")
	}
}
