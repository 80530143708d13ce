package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"github.com/google/go-cmp/cmp"
)

var none = map[string]dbus.Variant{}

func TestAttachTellsEveryStepInOrder(t *testing.T) {
	r := startRig(t)
	c := r.client(t, 0)
	var steps []string
	out, err := c.Attach(t.Context(), attach.Request{Units: []string{"a.service", "b.service"}, Profile: "p", NoRestart: true, Trusted: true, DryRun: false},
		func(e attach.Event) { steps = append(steps, e.Unit+" "+string(e.Step)) })
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"a.service policy", "a.service drop-in", "a.service restarted", "a.service verdict",
		"b.service policy", "b.service drop-in", "b.service restarted", "b.service verdict",
	}
	if d := cmp.Diff(want, steps); d != "" {
		t.Errorf("events (-want +got):\n%s", d)
	}
	if len(out) != 2 || out[1].Unit != "b.service" || !out[1].Changed {
		t.Errorf("outcomes: %+v", out)
	}
	wantReq := []attach.Request{{Units: []string{"a.service", "b.service"}, Profile: "p", NoRestart: true, By: "root", Trusted: true}}
	if d := cmp.Diff(wantReq, r.manager.got()); d != "" {
		t.Errorf("request (-want +got):\n%s", d)
	}
}

func TestFailureAsAWholeReachesTheCaller(t *testing.T) {
	r := startRig(t)
	r.manager.onAttach(func(context.Context, attach.Request, func(attach.Event)) ([]attach.Outcome, error) {
		return nil, errors.New("cannot read the moon")
	})
	_, err := r.client(t, 0).Attach(t.Context(), attach.Request{Units: []string{"a"}}, nil)
	if err == nil || err.Error() != "cannot read the moon" {
		t.Errorf("error: %v", err)
	}
}

// A thousand events from many goroutines, while the bus is read slowly.
func TestProgressNeverLosesAnEvent(t *testing.T) {
	r := startRig(t)
	const n = 3000
	r.manager.onAttach(func(_ context.Context, _ attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
		for i := range n {
			progress(attach.Event{Text: fmt.Sprint(i)})
		}
		return []attach.Outcome{{Unit: "a"}}, nil
	})
	got := 0
	_, err := r.client(t, 0).Attach(t.Context(), attach.Request{Units: []string{"a"}}, func(e attach.Event) {
		if e.Text != fmt.Sprint(got) {
			t.Fatalf("event %s came at place %d", e.Text, got)
		}
		got++
	})
	if err != nil || got != n {
		t.Errorf("%d of %d events, error %v", got, n, err)
	}
}

// What happens to many units at once comes in few signals, and the end at once.
func TestEventsComeTogether(t *testing.T) {
	r := startRig(t)
	const units, bursts = 100, 3
	r.manager.onAttach(func(_ context.Context, _ attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
		for range bursts {
			for range units {
				progress(attach.Event{Text: "restarting"})
			}
			time.Sleep(2 * lull)
		}
		progress(attach.Event{Text: "done"})
		return []attach.Outcome{{Unit: "a"}}, nil
	})
	c := r.user(t, 0)
	signals := make(chan *dbus.Signal, 1000)
	c.Signal(signals)
	var path dbus.ObjectPath
	if err := manager(c).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Store(&path); err != nil {
		t.Fatal(err)
	}
	n, events := 0, 0
	for sig := range signals {
		switch sig.Name {
		case OperationInterface + ".Progress":
			var some []attach.Event
			if err := json.Unmarshal([]byte(sig.Body[1].(string)), &some); err != nil || sig.Body[0] != uint64(events) || len(some) == 0 {
				t.Fatalf("signal %v after %d events, error %v", sig.Body, events, err)
			}
			n, events = n+1, events+len(some)
			continue
		case OperationInterface + ".Finished":
		default:
			continue
		}
		break
	}
	// The first of a burst may go alone.
	if events != bursts*units+1 || n > 3*bursts+1 {
		t.Errorf("%d events in %d signals", events, n)
	}
}

func TestWorkGoesOnWithoutItsCaller(t *testing.T) {
	r := startRig(t)
	begin, end := make(chan struct{}), make(chan error, 1)
	r.manager.onAttach(func(ctx context.Context, _ attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
		close(begin)
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
		end <- ctx.Err()
		return []attach.Outcome{{Unit: "a"}}, nil
	})
	c := r.client(t, 0)
	// Also when the caller leaves before the answer has come.
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begin; cancel() }()
	if _, err := c.Attach(ctx, attach.Request{Units: []string{"a"}}, nil); !errors.Is(err, context.Canceled) || !errors.Is(err, ErrUnderWay) {
		t.Fatalf("error: %v", err)
	}
	c.Close()
	if err := <-end; err != nil {
		t.Errorf("the work was cut off: %v", err)
	}
	// Root can still ask how it ended.
	d := waitDone(t, r.user(t, 0), OperationsPath+"/1")
	if len(d.Outcomes) != 1 || d.Outcomes[0].Unit != "a" {
		t.Errorf("description: %+v", d)
	}
}

func waitDone(t *testing.T, c *dbus.Conn, path dbus.ObjectPath) (d OperationDescription) {
	t.Helper()
	for range 200 {
		var text string
		if err := call(c, path, OperationInterface+".Describe").Store(&text); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(text), &d); err != nil {
			t.Fatal(err)
		}
		if d.State == StateDone {
			return d
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("the operation does not end")
	return d
}

func TestLateSubscriberReadsEverything(t *testing.T) {
	r := startRig(t)
	c := r.user(t, 0)
	var path dbus.ObjectPath
	if err := manager(c).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Store(&path); err != nil {
		t.Fatal(err)
	}
	d := waitDone(t, c, path)
	if len(d.Events) != 4 || d.Events[3].Step != attach.StepVerdict || len(d.Outcomes) != 1 {
		t.Errorf("description: %+v", d)
	}
	var state, result string
	if err := c.Object(BusName, path).StoreProperty(OperationInterface+".State", &state); err != nil || state != StateDone {
		t.Errorf("State: %q, %v", state, err)
	}
	if err := c.Object(BusName, path).StoreProperty(OperationInterface+".Result", &result); err != nil || !strings.Contains(result, `"unit":"a"`) {
		t.Errorf("Result: %q, %v", result, err)
	}
}

func TestOperationsBelongToTheirCaller(t *testing.T) {
	r := startRig(t)
	startPolkit(t, r.privateBus, &fakePolkit{yes: true})
	owner, same, other, root := r.user(t, 1000), r.user(t, 1000), r.user(t, 1001), r.user(t, 0)
	heard := make(chan *dbus.Signal, 100)
	other.Signal(heard)
	// A match rule for everything that is not a message to somebody.
	if err := other.AddMatchSignal(); err != nil {
		t.Fatal(err)
	}
	mine := make(chan *dbus.Signal, 100)
	owner.Signal(mine)
	var path dbus.ObjectPath
	if err := manager(owner).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Store(&path); err != nil {
		t.Fatal(err)
	}
	receive(t, mine, "Finished", named("Finished"))
	waitDone(t, owner, path)
	waitDone(t, root, path)
	for name, c := range map[string]*dbus.Conn{"another connection of the user": same, "another user": other} {
		for _, m := range []string{OperationInterface + ".Describe", introspectableInterface + ".Introspect"} {
			if got := errorName(call(c, path, m).Err); got != errorUnknownObject {
				t.Errorf("%s calls %s: %q", name, m, got)
			}
		}
		if got := errorName(call(c, path, propertiesInterface+".Get", OperationInterface, "Result").Err); got != errorUnknownObject {
			t.Errorf("%s reads Result: %q", name, got)
		}
		if node, err := introspect.Call(c.Object(BusName, OperationsPath)); err != nil || len(node.Children) != 0 {
			t.Errorf("%s sees operations %+v, %v", name, node, err)
		}
	}
	if node, err := introspect.Call(root.Object(BusName, OperationsPath)); err != nil || len(node.Children) != 1 {
		t.Errorf("root sees operations %+v, %v", node, err)
	}
	for {
		select {
		case s := <-heard:
			if strings.HasPrefix(s.Name, OperationInterface) {
				t.Errorf("another user heard %s", s.Name)
			}
			continue
		default:
		}
		break
	}
}

func TestAuthorization(t *testing.T) {
	// Whoever gave the password to look has not agreed to a change.
	changing := []struct {
		member, action string
		args           []any
	}{
		{"Attach", "org.aaunit1.manage", []any{[]string{"a"}, none}},
		{"Detach", "org.aaunit1.manage", []any{[]string{"a"}, none}},
		{"Pause", "org.aaunit1.manage", []any{[]string{"a"}, none}},
		{"Resume", "org.aaunit1.manage", []any{[]string{"a"}, none}},
		{"Apply", "org.aaunit1.manage", []any{[]string{"a"}, none}},
		{"ChangeSocketOptions", "org.aaunit1.manage", []any{[]string{"a"}, variants(map[string]any{"mode": "record"})}},
		{"Plan", "org.aaunit1.inspect", []any{[]string{"a"}, none}},
		{"Verify", "org.aaunit1.inspect", []any{[]string{"a"}}},
		{"VerifyEvidence", "org.aaunit1.inspect", []any{[]string{"a"}}},
		{"Check", "org.aaunit1.inspect", []any{[]string{"a"}}},
	}
	for _, tc := range []struct {
		name        string
		polkit      *fakePolkit
		interactive bool
		want        string
	}{
		{"no polkit", nil, false, ErrorNoPolkit},
		{"refused", &fakePolkit{}, false, ErrorNotAuthorized},
		{"would ask", &fakePolkit{challenge: true}, false, errorInteractive},
		{"asked in vain", &fakePolkit{challenge: true}, true, ErrorNotAuthorized},
		{"allowed", &fakePolkit{yes: true}, false, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := startRig(t)
			if tc.polkit != nil {
				startPolkit(t, r.privateBus, tc.polkit)
			}
			c := r.client(t, 1000)
			if tc.interactive {
				c.flags |= dbus.FlagAllowInteractiveAuthorization
			}
			for _, m := range changing {
				err := c.call(t.Context(), Path, ManagerInterface, m.member, m.args...).Err
				if got := errorName(err); got != tc.want {
					t.Errorf("%s: error %q (%v), want %q", m.member, got, err, tc.want)
				}
				if err != nil && tc.polkit != nil && !strings.Contains(plainError(err).Error(), m.action) {
					t.Errorf("%s: %q does not name %s", m.member, plainError(err), m.action)
				}
			}
			for _, q := range r.manager.got() {
				if tc.want != "" {
					t.Errorf("work was begun: %+v", q)
				}
				if q.Trusted {
					t.Errorf("trusted: %+v", q)
				}
			}
			if slices.Contains(r.manager.trusted, true) {
				t.Error("Check was trusted")
			}
			if tc.polkit == nil {
				return
			}
			questions := tc.polkit.questions()
			if len(questions) != len(changing) {
				t.Errorf("polkit was asked %d times", len(questions))
			}
			want := polkitQuestion{Kind: "system-bus-name", Name: c.conn.Names()[0]}
			if tc.interactive {
				want.Flags = 1
			}
			for i, q := range questions {
				if want.Action = changing[min(i, len(changing)-1)].action; q != want {
					t.Errorf("polkit was asked %+v, want %+v", q, want)
				}
			}
			// Reading asks nobody.
			if err := c.call(t.Context(), Path, ManagerInterface, "Describe", []string{}).Err; err != nil {
				t.Error(err)
			}
			if n := len(tc.polkit.questions()); n != len(questions) {
				t.Error("polkit was asked about reading")
			}
		})
	}
}

func TestRootAsksNoPolkit(t *testing.T) {
	r := startRig(t)
	p := &fakePolkit{}
	startPolkit(t, r.privateBus, p)
	c := r.client(t, 0)
	if _, err := c.Plan(t.Context(), attach.Request{Units: []string{"a"}}); err != nil {
		t.Fatal(err)
	}
	if q := p.questions(); len(q) != 0 {
		t.Errorf("polkit was asked %+v", q)
	}
	if got := r.manager.got(); len(got) != 1 || !got[0].Trusted || !got[0].DryRun {
		t.Errorf("request %+v", got)
	}
}

func TestOnlyRootProposesTexts(t *testing.T) {
	r := startRig(t)
	startPolkit(t, r.privateBus, &fakePolkit{yes: true})
	root, user := r.client(t, 0), r.client(t, 1000)
	if _, err := user.Propose(t.Context(), []attach.ProposedFile{{File: "/etc/apparmor.d/a", Text: "profile a { }"}}); !errors.Is(err, ErrDenied) {
		t.Errorf("another user: %v", err)
	}
	if n := len(r.manager.got()); n != 0 {
		t.Errorf("the daemon was asked %d times", n)
	}
	text := strings.Repeat("profile a { }\n", 10_000) // far longer than a name
	files := []attach.ProposedFile{{File: "/etc/apparmor.d/a", Text: text}, {File: "/etc/aaunit/attachments.d/gone.conf"}}
	out, err := root.Propose(t.Context(), files)
	if err != nil || len(out) != 2 || out[0].Unit != "/etc/apparmor.d/a" {
		t.Errorf("%+v %v", out, err)
	}
	if got := r.manager.got(); len(got) != 2 || got[0].Profile != text || got[1].Profile != "" {
		t.Errorf("%d requests", len(got))
	}
	if _, err := root.Propose(t.Context(), []attach.ProposedFile{files[1], files[1]}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("a file with two texts: %v", err)
	}
}

func TestPauseSaysHowLongAndWhoAsked(t *testing.T) {
	r := startRig(t)
	startPolkit(t, r.privateBus, &fakePolkit{yes: true})
	root, user := r.client(t, 0), r.client(t, 4_000_000_000) // who is in no /etc/passwd
	for _, f := range []func() error{
		func() error {
			_, err := root.Pause(t.Context(), attach.Request{Units: []string{"a"}, For: 90 * time.Second}, nil)
			return err
		},
		func() error {
			_, err := user.Pause(t.Context(), attach.Request{Units: []string{"a"}, By: "root"}, nil)
			return err
		},
		func() error {
			_, err := user.Resume(t.Context(), attach.Request{Units: []string{"a"}}, nil)
			return err
		},
	} {
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	want := []attach.Request{
		{Units: []string{"a"}, For: 90 * time.Second, By: "root", Trusted: true},
		{Units: []string{"a"}, For: attach.DefaultPause, By: "uid 4000000000"},
		{Units: []string{"a"}, By: "uid 4000000000"},
	}
	if d := cmp.Diff(want, r.manager.got()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestHangingPolkitIsARefusalAndBounded(t *testing.T) {
	r := startRig(t)
	p := &fakePolkit{hang: true, yes: true}
	startPolkit(t, r.privateBus, p)
	c := r.user(t, 1000)
	done := make(chan *dbus.Call, 10)
	for range 10 {
		manager(c).Go(ManagerInterface+".Check", 0, done, []string{"a"})
	}
	counts := map[string]int{}
	for range 10 {
		counts[errorName((<-done).Err)]++
	}
	if counts[""] != 4 || counts[ErrorTooMany] != 6 {
		t.Errorf("answers: %v", counts)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	s := &session{service: r.service, conn: r.connect(t)}
	if ok, _, err := s.askPolkit(ctx, ":1.1", ActionManage, false); ok || err == nil {
		t.Errorf("a polkit that does not answer: %v, %v", ok, err)
	}
}

func TestRealCredentials(t *testing.T) {
	b := startBus(t)
	a, c := b.connect(t), b.connect(t)
	uid, err := busCredentials(a)(t.Context(), c.Names()[0])
	if err != nil || int(uid) != os.Getuid() {
		t.Errorf("uid %d, %v", uid, err)
	}
	if _, err := busCredentials(a)(t.Context(), ":1.99999"); err == nil {
		t.Error("a caller who is gone has a user")
	}
}

func TestReadingIsLimitedPerUser(t *testing.T) {
	// The clock stands still: what is used up stays so.
	r := startService(t, startBus(t), newFakeManager(), func(s *service) { s.calls.now = func() time.Time { return time.Unix(1, 0) } })
	greedy, modest, root := r.user(t, 1000), r.user(t, 1001), r.user(t, 0)
	refused := 0
	for range 400 {
		err := call(greedy, Path, ManagerInterface+".Describe", []string{}).Err
		switch errorName(err) {
		case "":
		case ErrorTooFast:
			refused++
		default:
			t.Fatal(err)
		}
	}
	if refused == 0 {
		t.Error("400 calls in a row were all answered")
	}
	// Another connection of the same user does not help.
	if got := errorName(call(r.user(t, 1000), Path, introspectableInterface+".Introspect").Err); got != ErrorTooFast {
		t.Errorf("another connection: %q", got)
	}
	if err := call(modest, Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
		t.Errorf("another user: %v", err)
	}
	// Names are looked up, so each of them counts.
	names := make([]string, maxPublicNames)
	for i := range names {
		names[i] = "a"
	}
	for i, want := range []string{"", ErrorTooFast} {
		if got := errorName(call(modest, Path, ManagerInterface+".Describe", names).Err); got != want {
			t.Errorf("%d names, call %d: %q, want %q", len(names), i, got, want)
		}
	}
	if got := errorName(call(r.user(t, 1002), Path, ManagerInterface+".Describe", append(names, "b")).Err); got != errorInvalidArgs {
		t.Errorf("%d names: %q", len(names)+1, got)
	}
	for range 400 {
		if err := call(root, Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
			t.Fatalf("root: %v", err)
		}
	}
}

// A glob is compared with every attached unit: it costs the more, the longer it is and
// the more units there are.
func TestGlobsHaveTheirPrice(t *testing.T) {
	r := startService(t, startBus(t), newFakeManager(), func(s *service) { s.calls.now = func() time.Time { return time.Unix(1, 0) } })
	for i := range 1000 {
		s := status(fmt.Sprintf("unit-%d.service", i), attach.Confined)
		r.service.board.publish(&s)
	}
	slow := "*[" + strings.Repeat("b", 250) + "]"
	uid := uint32(1000)
	for _, c := range []struct {
		units []string
		calls int // that are answered
		then  string
	}{
		{[]string{"unit-7*"}, 66, ErrorTooFast},
		{[]string{"unit-7"}, 100, ErrorTooFast},
		{[]string{slow}, 3, ErrorTooFast},
		{[]string{slow, slow, slow}, 1, ErrorTooFast},
		{slices.Repeat([]string{slow}, 4), 0, errorInvalidArgs},
		{slices.Repeat([]string{strings.Repeat("b", 253)}, 100), 1, ErrorTooFast},
	} {
		for _, method := range []string{"Describe", "Explain"} {
			user := r.user(t, uid)
			uid++
			for n := range c.calls + 1 {
				want := ""
				if n == c.calls {
					want = c.then
				}
				if got := errorName(call(user, Path, ManagerInterface+"."+method, c.units).Err); got != want {
					t.Errorf("%s with %d of %.20s, call %d: %q, want %q", method, len(c.units), c.units[0], n+1, got, want)
				}
			}
		}
		if err := call(r.user(t, 0), Path, ManagerInterface+".Describe", c.units).Err; err != nil {
			t.Errorf("root: %v", err)
		}
	}
}

// No unit's name is longer than 255 bytes, and no glob that anybody would write.
func TestLongWordsAreRefused(t *testing.T) {
	r := startRig(t)
	long := []string{"a", "*[" + strings.Repeat("b", attach.MaxUnitName) + "]"}
	for _, uid := range []uint32{0, 4001} {
		c := r.user(t, uid)
		for _, m := range managerIface.methods {
			if len(m.in) == 0 || m.in[0].name != "units" {
				continue
			}
			args := []any{long}
			for _, p := range m.in[1:] {
				args = append(args, map[string]any{"a{sv}": none, "s": "", "t": uint64(0)}[p.typ])
			}
			err := call(c, Path, ManagerInterface+"."+m.name, args...).Err
			if got := errorName(err); got != errorInvalidArgs || !strings.Contains(err.Error(), "longer than 255 bytes") {
				t.Errorf("user %d calls %s: %v", uid, m.name, err)
			}
		}
	}
	// The path of a file may be longer.
	root := r.user(t, 0)
	path := "/etc/aaunit/" + strings.Repeat("a", 300)
	for _, q := range [][]any{{"Apply", []string{path}, none}, {"Check", []string{path}}, {"Describe", []string{strings.Repeat("a", attach.MaxUnitName)}}} {
		if err := call(root, Path, ManagerInterface+"."+q[0].(string), q[1:]...).Err; err != nil {
			t.Errorf("%s: %v", q[0], err)
		}
	}
}

func TestOperationsAreBounded(t *testing.T) {
	r := startRig(t)
	startPolkit(t, r.privateBus, &fakePolkit{yes: true})
	release := make(chan struct{})
	r.manager.onAttach(func(ctx context.Context, _ attach.Request, _ func(attach.Event)) ([]attach.Outcome, error) {
		<-release
		return nil, nil
	})
	c := r.user(t, 1000)
	for i := range maxRunning {
		if err := manager(c).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Err; err != nil {
			t.Fatalf("operation %d: %v", i, err)
		}
	}
	if got := errorName(manager(c).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Err); got != ErrorTooMany {
		t.Errorf("one more: %q", got)
	}
	if err := manager(r.user(t, 1001)).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Err; err != nil {
		t.Errorf("another user: %v", err)
	}
	close(release)
	if err := r.stop(); err != nil {
		t.Error(err)
	}
}

func TestFinishedOperationsAreForgotten(t *testing.T) {
	ops := newOperations()
	now := time.Unix(1000, 0)
	ops.now = func() time.Time { return now }
	for i := range uint64(200) {
		ops.all[i] = &operation{id: i, uid: uint32(i % 2), done: true, ended: now.Add(time.Duration(i) * time.Second)}
	}
	ops.all[200] = &operation{id: 200}
	ops.forget()
	if len(ops.all) != 2*(maxFinished-1)+1 || ops.all[0] != nil || ops.all[199] == nil || ops.all[200] == nil {
		t.Errorf("%d are left", len(ops.all))
	}
	now = now.Add(time.Hour)
	ops.forget()
	if len(ops.all) != 1 || ops.all[200] == nil {
		t.Errorf("after an hour %d are left", len(ops.all))
	}
}

func TestLongCallsDoNotHoldUpOthers(t *testing.T) {
	r := startRig(t)
	release := make(chan struct{})
	r.manager.plan = func(context.Context, attach.Request) ([]attach.Outcome, error) {
		<-release
		return nil, nil
	}
	c := r.user(t, 0)
	done := make(chan *dbus.Call, 8)
	for range 5 {
		manager(c).Go(ManagerInterface+".Plan", 0, done, []string{"a"}, none)
	}
	if err := call(c, Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
		t.Fatal(err)
	}
	first := <-done
	if errorName(first.Err) != ErrorTooMany {
		t.Errorf("the fifth at once: %v", first.Err)
	}
	close(release)
	for range 4 {
		if p := <-done; p.Err != nil {
			t.Error(p.Err)
		}
	}
}

func status(unit string, answer attach.Answer, reasons ...attach.Reason) attach.Status {
	return attach.Status{
		Unit: unit, Profile: "agent", ProfileFile: "/etc/apparmor.d/agent", Attachment: "/etc/aaunit/attachments.d/a.conf", ActiveState: "active",
		Verdict: &attach.Verdict{Unit: unit, InvocationID: "00112233445566778899aabbccddeeff", Profile: "agent", Answer: answer,
			Reasons: reasons, Tasks: 3, Processes: 2, PrivateTmp: attach.Yes, At: time.UnixMicro(1_700_000_000_123_456)},
	}
}

func TestWhatComesWithTheNameIsAnnounced(t *testing.T) {
	b, m := startBus(t), newFakeManager()
	c := b.connect(t)
	ch := make(chan *dbus.Signal, 100)
	c.Signal(ch)
	if err := c.AddMatchSignal(dbus.WithMatchInterface(objectManagerInterface)); err != nil {
		t.Fatal(err)
	}
	// Somebody who asks as soon as the name is there, and is told that there is
	// nothing, has to hear of what comes next.
	startService(t, b, m, func(s *service) {
		ready := s.ready
		s.ready = func() {
			m.tell(status("a.service", attach.Confined))
			ready()
		}
	})
	if s := receive(t, ch, "InterfacesAdded", named("InterfacesAdded")); s.Body[0] != UnitPath("a.service") {
		t.Errorf("InterfacesAdded: %+v", s)
	}
}

func TestAttachmentObjects(t *testing.T) {
	r := startRig(t)
	c := r.user(t, 1000)
	ch := make(chan *dbus.Signal, 100)
	c.Signal(ch)
	if err := c.AddMatchSignal(dbus.WithMatchSender(BusName)); err != nil {
		t.Fatal(err)
	}
	const unit = "9a-b@c.service"
	path := dbus.ObjectPath("/org/aaunit1/unit/_39a_2db_40c_2eservice")
	r.manager.tell(status(unit, attach.Confined))
	s := receive(t, ch, "InterfacesAdded", named("InterfacesAdded"))
	if s.Path != Path || s.Body[0] != path {
		t.Errorf("InterfacesAdded: %+v", s)
	}

	r.manager.tell(status(unit, attach.NotConfined, attach.Because(attach.TaskUnconfined, "/usr/bin/secret (PID 7) is unconfined")))
	s = receive(t, ch, "PropertiesChanged", named("PropertiesChanged"))
	changed := s.Body[1].(map[string]dbus.Variant)
	if s.Path != path || s.Body[0] != AttachmentInterface || len(changed) != 3 || changed["Verdict"].Value() != "not-confined" {
		t.Errorf("PropertiesChanged: %+v", s)
	}
	if got := changed["ReasonText"].Value().([]string); len(got) != 1 || got[0] != "A task is not confined" {
		t.Errorf("everybody heard %q", got)
	}

	var all map[string]dbus.Variant
	if err := call(c, path, propertiesInterface+".GetAll", AttachmentInterface).Store(&all); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"Unit": unit, "Profile": "agent", "ProfileFile": "/etc/apparmor.d/agent", "AttachmentFile": "/etc/aaunit/attachments.d/a.conf",
		"ActiveState": "active", "Verdict": "not-confined", "Reasons": []string{"task-unconfined"}, "ReasonText": []string{"A task is not confined"},
		"InvocationID": "00112233445566778899aabbccddeeff", "VerdictTimestamp": uint64(1_700_000_000_123_456), "Held": false, "PausedUntil": uint64(0),
		"Tasks": uint32(3), "Processes": uint32(2), "PrivateTmp": "yes",
	}
	got := map[string]any{}
	for k, v := range all {
		got[k] = v.Value()
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("properties (-want +got):\n%s", d)
	}
	for _, p := range attachmentIface.properties {
		if v, ok := all[p.name]; !ok || v.Signature().String() != p.typ {
			t.Errorf("property %s: %v, want type %s", p.name, v, p.typ)
		}
	}

	// A look that finds all as it was is told to nobody, and can be read.
	looked := status(unit, attach.NotConfined, attach.Because(attach.TaskUnconfined, "/usr/bin/secret (PID 7) is unconfined"))
	looked.Verdict.At = time.UnixMicro(1_700_000_009_000_000)
	r.manager.tell(looked)
	if err := call(c, path, propertiesInterface+".GetAll", AttachmentInterface).Store(&all); err != nil || all["VerdictTimestamp"].Value() != uint64(1_700_000_009_000_000) {
		t.Errorf("after a second look: %v, %v", all["VerdictTimestamp"], err)
	}
	select {
	case s := <-ch:
		t.Errorf("that a look found all as it was is told: %+v", s)
	case <-time.After(200 * time.Millisecond):
	}

	paused := looked
	paused.Paused = &attach.Pause{Until: time.UnixMicro(1_700_003_600_000_000)}
	r.manager.tell(paused)
	s = receive(t, ch, "PropertiesChanged", named("PropertiesChanged"))
	if changed := s.Body[1].(map[string]dbus.Variant); s.Path != path || len(changed) != 2 || changed["VerdictTimestamp"].Value() != uint64(1_700_000_009_000_000) || changed["PausedUntil"].Value() != uint64(1_700_003_600_000_000) {
		t.Errorf("PropertiesChanged by a pause: %+v", s)
	}

	var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	if err := call(c, Path, objectManagerInterface+".GetManagedObjects").Store(&objects); err != nil {
		t.Fatal(err)
	}
	if len(objects) != 1 || objects[path][AttachmentInterface]["Unit"].Value() != unit {
		t.Errorf("objects: %v", objects)
	}

	r.manager.tell(attach.Status{Unit: unit})
	s = receive(t, ch, "InterfacesRemoved", named("InterfacesRemoved"))
	if s.Body[0] != path || !slices.Contains(s.Body[1].([]string), AttachmentInterface) {
		t.Errorf("InterfacesRemoved: %+v", s)
	}
	if got := errorName(call(c, path, propertiesInterface+".GetAll", AttachmentInterface).Err); got != errorUnknownObject {
		t.Errorf("the object is still there: %q", got)
	}
}

func TestWhoeverWantsHearsOfEveryAnswer(t *testing.T) {
	answers := make(chan struct{}, 10)
	r := startService(t, startBus(t), newFakeManager(), func(s *service) { s.answered = func() { answers <- struct{}{} } })
	c := r.user(t, 0)
	for range 2 {
		if err := call(c, Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
			t.Fatal(err)
		}
		select {
		case <-answers:
		case <-time.After(10 * time.Second):
			t.Fatal("an answer was given and not told of")
		}
	}
}

// frugal is a manager that is asked about its units by nobody but the board.
type frugal struct {
	*fakeManager
	t *testing.T
}

func (m frugal) Status(units []string) attach.Report {
	if units != nil {
		m.t.Error("all units are looked at for a property of the host's")
	}
	return m.fakeManager.Status(units)
}

// Anybody may read the properties as often as the bus lets him, also with very many
// units.
func TestPropertiesOfTheHostCostNoLookAtUnits(t *testing.T) {
	r := startService(t, startBus(t), newFakeManager(), func(s *service) { s.manager = frugal{s.manager.(*fakeManager), t} })
	c := r.user(t, 1000)
	for property, want := range map[string]string{"Version": "1.2.3", "AppArmor": "yes", "GlobalMode": "enforce"} {
		var v dbus.Variant
		if err := call(c, Path, propertiesInterface+".Get", ManagerInterface, property).Store(&v); err != nil || v.Value() != want {
			t.Errorf("%s is %v, %v", property, v, err)
		}
	}
	for _, iface := range []string{"", ManagerInterface} {
		var all map[string]dbus.Variant
		if err := call(c, Path, propertiesInterface+".GetAll", iface).Store(&all); err != nil || len(all) != 3 {
			t.Errorf("all properties: %v, %v", all, err)
		}
	}
}

// busyManager is slow to register a subscriber, and publishes another status as soon as
// it was asked for all.
type busyManager struct{ *fakeManager }

func (m busyManager) Subscribe(ctx context.Context, f func(*attach.Status)) {
	time.Sleep(50 * time.Millisecond)
	m.fakeManager.Subscribe(ctx, f)
}

func (m busyManager) Status(units []string) attach.Report {
	r := m.fakeManager.Status(units)
	m.mu.Lock()
	f := m.publish
	m.mu.Unlock()
	if f != nil {
		now := status("a.service", attach.NotConfined)
		f(&now)
	}
	return r
}

// What is published while the service begins is not missed: nobody would make up for it
// for ten minutes.
func TestWhatIsPublishedAtTheBeginningIsHeard(t *testing.T) {
	m := busyManager{newFakeManager()}
	m.units = []attach.Status{status("a.service", attach.Confined)}
	s := newService(m, Options{Address: "unix:path=/nonexistent", Log: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.run(ctx) }()
	time.Sleep(200 * time.Millisecond)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := s.board.get("a.service"); got == nil || got.Verdict.Answer != attach.NotConfined {
		t.Errorf("shown is %+v", got)
	}
}

// Whoever has the daemon started is answered as soon as it has its name. Before it has
// read what is attached, the answer would be that nothing is.
func TestTheNameComesWithWhatIsAttached(t *testing.T) {
	r := &rig{privateBus: startBus(t)}
	m, known, ready := newFakeManager(), make(chan struct{}), make(chan struct{})
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(t.Context(), m, Options{Address: r.address, Log: slog.New(slog.DiscardHandler), Known: known, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
		t.Error("the service is ready before it is known what is attached")
	case err := <-ended:
		t.Fatalf("the service ended: %v", err)
	case <-time.After(300 * time.Millisecond):
	}
	if got := r.owner(t); got != "" {
		t.Errorf("%s has the name before it is known what is attached", got)
	}
	m.mu.Lock()
	m.units = []attach.Status{status("a.service", attach.Confined)}
	m.mu.Unlock()
	close(known)
	select {
	case <-ready:
	case err := <-ended:
		t.Fatalf("the service ended: %v", err)
	case <-time.After(10 * time.Second):
		t.Fatal("the service did not come up")
	}
	var objects map[dbus.ObjectPath]map[string]map[string]dbus.Variant
	if err := call(r.connect(t), Path, objectManagerInterface+".GetManagedObjects").Store(&objects); err != nil || objects[UnitPath("a.service")] == nil {
		t.Errorf("the first answer is %v, %v", objects, err)
	}
}

// A daemon that is told to end before it has read what is attached ends.
func TestTheServiceEndsBeforeAnythingIsKnown(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- Serve(ctx, newFakeManager(), Options{Address: "unix:path=/nonexistent", Known: make(chan struct{})})
	}()
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the service does not end")
	}
}

func TestBoardTakesTheNewerWord(t *testing.T) {
	b := newBoard()
	old, now := status("old.service", attach.Confined), status("a.service", attach.NotConfined)
	b.publish(&old)
	b.sync(func([]string) attach.Report {
		// Published while the report was made.
		b.publish(&now)
		b.publish(&attach.Status{Unit: "b.service"})
		return attach.Report{Units: []attach.Status{status("a.service", attach.Confined), status("b.service", attach.Confined), status("c.service", attach.Confined)}}
	})
	var got []string
	for _, s := range b.all() {
		got = append(got, s.Unit+" "+s.Verdict.Answer.String())
	}
	if d := cmp.Diff([]string{"a.service not-confined", "c.service confined"}, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestOthersThanRootReadNoDetails(t *testing.T) {
	r := startRig(t)
	s := status("a.service", attach.NotConfined)
	for _, e := range attach.Catalogue() {
		if !plain[e.Code] {
			s.Verdict.Reasons = append(s.Verdict.Reasons, attach.Because(e.Code, "SECRET").At("SECRET").WithNext("SECRET"))
		}
	}
	s.Refused, s.Notes = s.Verdict.Reasons, s.Verdict.Reasons
	s.Held = &attach.Hold{Inputs: "SECRET", Reasons: s.Verdict.Reasons}
	for i := range s.Verdict.Reasons {
		if s.Verdict.Reasons[i].Code == attach.AttachmentBad {
			s.Verdict.Reasons[i].Where = "/etc/aaunit/attachments.d/a.conf:3"
		}
	}
	r.manager.units = []attach.Status{s}
	r.service.board.sync(r.manager.Status)
	user, root := r.user(t, 1000), r.user(t, 0)
	for _, q := range [][]any{
		{Path, ManagerInterface + ".Describe", []string{}},
		{Path, ManagerInterface + ".ListProfiles"},
		{Path, ManagerInterface + ".ListProfileProblems"},
		{Path, objectManagerInterface + ".GetManagedObjects"},
		{UnitPath("a.service"), propertiesInterface + ".GetAll", ""},
	} {
		c := call(user, q[0].(dbus.ObjectPath), q[1].(string), q[2:]...)
		if c.Err != nil {
			t.Fatal(c.Err)
		}
		text := fmt.Sprint(c.Body...)
		if strings.Contains(strings.ToUpper(text), "SECRET") {
			t.Errorf("%v tells %s", q[1], text)
		}
		want := "task-unconfined"
		switch q[1] {
		case ManagerInterface + ".ListProfiles":
			want = "agent"
		case ManagerInterface + ".ListProfileProblems":
			want = `"code":"profile-does-not-compile"`
		}
		if !strings.Contains(text, want) {
			t.Errorf("%v leaves out %s: %s", q[1], want, text)
		}
	}
	if c := call(root, Path, ManagerInterface+".Describe", []string{}); !strings.Contains(fmt.Sprint(c.Body...), "SECRET") {
		t.Errorf("root is told %v, %v", c.Body, c.Err)
	}
	if s.Verdict.Reasons[0].Detail != "SECRET" {
		t.Error("the manager's own report was changed")
	}
}

func TestHostileArguments(t *testing.T) {
	r := startRig(t)
	c := r.user(t, 0)
	many := make([]string, maxUnits+1)
	for i := range many {
		many[i] = "a"
	}
	opts := func(key string, v any) map[string]dbus.Variant {
		return map[string]dbus.Variant{key: dbus.MakeVariant(v)}
	}
	lots := map[string]dbus.Variant{}
	for i := range maxOptions + 1 {
		lots[fmt.Sprint("k", i)] = dbus.MakeVariant(true)
	}
	m := ManagerInterface + "."
	for _, tc := range []struct {
		name, method string
		args         []any
		want         string
	}{
		{"no arguments", m + "Attach", nil, errorInvalidArgs},
		{"too few", m + "Attach", []any{[]string{"a"}}, errorInvalidArgs},
		{"too many arguments", m + "Describe", []any{[]string{"a"}, "x"}, errorInvalidArgs},
		{"another type", m + "Attach", []any{"a", none}, errorInvalidArgs},
		{"options of another type", m + "Attach", []any{[]string{"a"}, map[string]string{}}, errorInvalidArgs},
		{"no unit", m + "Attach", []any{[]string{}, none}, errorInvalidArgs},
		{"an empty unit", m + "Attach", []any{[]string{"a", ""}, none}, errorInvalidArgs},
		{"too many units", m + "Attach", []any{many, none}, errorInvalidArgs},
		{"too many to describe", m + "Describe", []any{many}, errorInvalidArgs},
		{"too many to verify", m + "Verify", []any{many}, errorInvalidArgs},
		{"too many to verify the evidence of", m + "VerifyEvidence", []any{many}, errorInvalidArgs},
		{"too many to check", m + "Check", []any{many}, errorInvalidArgs},
		{"a long unit", m + "Plan", []any{[]string{strings.Repeat("a", 5000)}, none}, errorInvalidArgs},
		{"a long profile", m + "Plan", []any{[]string{"a"}, opts("profile", strings.Repeat("a", 5000))}, errorInvalidArgs},
		{"an empty profile", m + "Plan", []any{[]string{"a"}, opts("profile", "")}, errorInvalidArgs},
		{"unknown option", m + "Attach", []any{[]string{"a"}, opts("trusted", true)}, errorInvalidArgs},
		{"option of another method", m + "Attach", []any{[]string{"a"}, opts("dry-run", true)}, errorInvalidArgs},
		{"option of another type", m + "Attach", []any{[]string{"a"}, opts("runtime", "yes")}, errorInvalidArgs},
		{"option in a variant", m + "Attach", []any{[]string{"a"}, opts("runtime", dbus.MakeVariant(true))}, errorInvalidArgs},
		{"many options", m + "Attach", []any{[]string{"a"}, lots}, errorInvalidArgs},
		{"a pause of no time", m + "Pause", []any{[]string{"a"}, opts("for", uint64(0))}, errorInvalidArgs},
		{"a pause too long", m + "Pause", []any{[]string{"a"}, opts("for", uint64(attach.MaxPause.Microseconds()+1))}, errorInvalidArgs},
		{"a pause for ever", m + "Pause", []any{[]string{"a"}, opts("for", ^uint64(0))}, errorInvalidArgs},
		{"a pause of another type", m + "Pause", []any{[]string{"a"}, opts("for", "1h")}, errorInvalidArgs},
		{"a pause by somebody else", m + "Pause", []any{[]string{"a"}, opts("by", "root")}, errorInvalidArgs},
		{"a resume with an option", m + "Resume", []any{[]string{"a"}, opts("for", uint64(1))}, errorInvalidArgs},
		{"unknown method", m + "Explode", nil, errorUnknownMethod},
		{"unknown interface", "org.aaunit1.Bomb.Explode", nil, errorUnknownInterface},
		{"interface of another object", OperationInterface + ".Describe", nil, errorUnknownInterface},
		{"set", propertiesInterface + ".Set", []any{ManagerInterface, "Version", dbus.MakeVariant("2")}, errorReadOnly},
		{"set what is not there", propertiesInterface + ".Set", []any{ManagerInterface, "Nothing", dbus.MakeVariant("2")}, errorUnknownProperty},
		{"get what is not there", propertiesInterface + ".Get", []any{ManagerInterface, "Nothing"}, errorUnknownProperty},
		{"get from nowhere", propertiesInterface + ".Get", []any{"org.example", "Nothing"}, errorUnknownInterface},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := call(c, Path, tc.method, tc.args...).Err
			if got := errorName(err); got != tc.want {
				t.Errorf("error %q (%v), want %q", got, err, tc.want)
			}
		})
	}
	for _, path := range []dbus.ObjectPath{
		"/nothing", "/org/aaunit1/unit/a_2eservice", "/org/aaunit1/unit/_", "/org/aaunit1/unit/a_2", "/org/aaunit1/unit/a/b",
		"/org/aaunit1/operation/1", "/org/aaunit1/operation/01", "/org/aaunit1/operation/x", "/org/aaunit1/operation/99999999999999999999999",
	} {
		if got := errorName(call(c, path, introspectableInterface+".Introspect").Err); got != errorUnknownObject {
			t.Errorf("%s: %q", path, got)
		}
	}
	if got := r.manager.got(); len(got) != 0 {
		t.Errorf("work was begun: %+v", got)
	}
}

// Values nested as deep as a bus lets through, and file descriptors.
func TestHostileMessages(t *testing.T) {
	r := startRig(t)
	before := r.owner(t)
	for _, depth := range []int{1, 31, 32, 33, 60, 61, 62, 63, 64, 65} {
		c := r.user(t, 1000)
		v := dbus.MakeVariant(true)
		for range depth {
			v = dbus.MakeVariantWithSignature(v, dbus.ParseSignatureMust("v"))
		}
		manager(c).Go(ManagerInterface+".Attach", dbus.FlagNoReplyExpected, nil, []string{"a"}, map[string]dbus.Variant{"runtime": v})
	}
	c := r.user(t, 1000)
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	err = manager(c).Call(ManagerInterface+".Attach", 0, []string{"a"}, map[string]dbus.Variant{"runtime": dbus.MakeVariant(dbus.UnixFD(f.Fd()))}).Err
	if err == nil {
		t.Error("a file descriptor was taken")
	}
	if err := call(r.user(t, 0), Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
		t.Error(err)
	}
	if after := r.owner(t); after != before {
		t.Errorf("the connection was lost: the service was %s and is %s", before, after)
	}
	if got := r.manager.got(); len(got) != 0 {
		t.Errorf("work was begun: %+v", got)
	}
}

// What does not fit is answered with an error, costs no memory, and leaves the
// connection as it is.
func TestCallsThatDoNotFit(t *testing.T) {
	r := startRig(t)
	before := r.owner(t)
	bytes := make([]dbus.Variant, 1<<17)
	for i := range bytes {
		bytes[i] = dbus.MakeVariant(byte(1))
	}
	option := func(v any) map[string]dbus.Variant { return map[string]dbus.Variant{"runtime": dbus.MakeVariant(v)} }
	m := ManagerInterface + "."
	for i, tc := range []struct {
		name, method string
		args         []any
		want, says   string
	}{
		{"a long unit", m + "Describe", []any{[]string{strings.Repeat("a", 1<<20)}}, "org.freedesktop.DBus.Error.LimitsExceeded", "at most 262144"},
		{"arguments where there are none", m + "ListProfiles", []any{strings.Repeat("a", 1<<20)}, errorInvalidArgs, `of the types "", not "s"`},
		{"another type", m + "Describe", []any{bytes}, errorInvalidArgs, `not "av"`},
		{"no such method", m + "Explode", []any{bytes}, errorUnknownMethod, "Explode"},
		{"no such interface", "org.example.A.B", []any{bytes}, errorUnknownInterface, "org.example.A"},
		{"a variant in it", m + "Plan", []any{[]string{"a"}, option(bytes[:1000])}, errorInvalidArgs, `cannot take the arguments: a variant holds a value of the type "av"`},
		{"a type of the caller's own", m + "Plan", []any{[]string{"a"}, option(map[byte]map[int16][]map[uint32]string{})}, errorInvalidArgs, "cannot take the arguments"},
		{"many values", m + "Plan", []any{make([]string, 10_000), none}, errorInvalidArgs, "more than 4096 values"},
		{"a ping", peerInterface + ".Ping", nil, "", ""},
		{"a ping with more in it", peerInterface + ".Ping", []any{bytes[:1000]}, errorInvalidArgs, "no arguments"},
	} {
		// Users of their own: long calls count as several.
		err := call(r.user(t, 1000+uint32(i)), Path, tc.method, tc.args...).Err
		if got := errorName(err); got != tc.want || err != nil && !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: error %q (%v), want %q with %q", tc.name, got, err, tc.want, tc.says)
		}
	}
	c := r.user(t, 2000)
	// A signal, which nobody asked for.
	if err := c.Emit(Path, "org.example.A.Told", bytes); err != nil {
		t.Fatal(err)
	}
	if err := call(c, Path, m+"Describe", []string{}).Err; err != nil {
		t.Error(err)
	}
	if after := r.owner(t); after != before {
		t.Errorf("the connection was lost: the service was %s and is %s", before, after)
	}
}

func TestLongCallsCountAsSeveral(t *testing.T) {
	r := startService(t, startBus(t), newFakeManager(), func(s *service) { s.calls.now = func() time.Time { return time.Unix(1, 0) } })
	c := r.user(t, 1000)
	for i, want := range []string{errorInvalidArgs, errorInvalidArgs, errorInvalidArgs, ErrorTooFast} {
		// The name is too long, but within what is decoded.
		if got := errorName(call(c, Path, ManagerInterface+".Describe", []string{strings.Repeat("a", 250<<10)}).Err); got != want {
			t.Errorf("call %d: %q, want %q", i, got, want)
		}
	}
	if err := call(r.user(t, 1001), Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
		t.Errorf("another user: %v", err)
	}
}

// An answer may be large, however small the question: only so many are made at
// once.
func TestReadingIsBounded(t *testing.T) {
	m := newFakeManager()
	r := startService(t, startBus(t), m)
	hold := make(chan struct{})
	m.mu.Lock()
	m.hold = hold
	m.mu.Unlock()
	done := make(chan *dbus.Call, maxReadingAll)
	var all []*dbus.Conn
	for uid := range uint32(maxReadingAll / maxReading) {
		c := r.user(t, 1000+uid)
		all = append(all, c)
		for range maxReading {
			manager(c).Go(ManagerInterface+".Describe", 0, done, []string{"a"})
		}
		for held := 0; held < maxReading*int(uid+1); time.Sleep(5 * time.Millisecond) {
			m.mu.Lock()
			held = m.held
			m.mu.Unlock()
		}
		if uid == 0 {
			for _, method := range []string{ManagerInterface + ".Describe", ManagerInterface + ".ListProfiles", objectManagerInterface + ".GetManagedObjects"} {
				var args []any
				if method == ManagerInterface+".Describe" {
					args = []any{[]string{}}
				}
				if got := errorName(call(c, Path, method, args...).Err); got != ErrorTooMany {
					t.Errorf("%s beside %d others: %q", method, maxReading, got)
				}
			}
			if got := errorName(call(c, UnitsPath, introspectableInterface+".Introspect").Err); got != ErrorTooMany {
				t.Errorf("the list of units: %q", got)
			}
			// What is small is answered.
			if err := call(c, Path, propertiesInterface+".Get", ManagerInterface, "Version").Err; err != nil {
				t.Error(err)
			}
			if err := call(r.user(t, 2000), Path, ManagerInterface+".ListProfiles").Err; err != nil {
				t.Errorf("another user: %v", err)
			}
		}
	}
	if got := errorName(call(r.user(t, 2000), Path, ManagerInterface+".ListProfiles").Err); got != ErrorTooMany {
		t.Errorf("another user beside %d calls: %q", maxReadingAll, got)
	}
	if err := call(r.user(t, 0), Path, ManagerInterface+".ListProfiles").Err; err != nil {
		t.Errorf("root: %v", err)
	}
	close(hold)
	for range maxReadingAll {
		if c := <-done; c.Err != nil {
			t.Error(c.Err)
		}
	}
	for _, c := range all {
		if err := call(c, Path, ManagerInterface+".ListProfiles").Err; err != nil {
			t.Errorf("afterwards: %v", err)
		}
	}
}

// stuck is a bus that takes nothing until it is told.
type stuck struct {
	writing chan []byte
	goOn    chan struct{}
}

func (stuck) Read([]byte) (int, error) { select {} }
func (stuck) Close() error             { return nil }
func (s stuck) Write(p []byte) (int, error) {
	s.writing <- p
	<-s.goOn
	return len(p), nil
}

// The place of a reading call is given back when its answer has left, not when
// it is made.
func TestReadingEndsWithTheAnswer(t *testing.T) {
	s := newService(newFakeManager(), Options{Log: slog.New(slog.DiscardHandler)})
	b := stuck{make(chan []byte, 1), make(chan struct{})}
	conn, err := dbus.NewConn(b)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	n := &session{service: s, conn: conn, uidOf: (&identities{known: map[string]uint32{":1.9": 1000}}).uid}
	msg := &dbus.Message{Type: dbus.TypeMethodCall}
	answered := make(chan error, 1)
	go func() {
		_, err := targetMethod{}.Call(&request{session: n, sender: ":1.9", path: Path, iface: ManagerInterface, member: "ListProfiles", msg: msg})
		answered <- err
	}()
	if text := string(<-b.writing); !strings.Contains(text, "agent") {
		t.Errorf("sent: %q", text)
	}
	s.reading.mu.Lock()
	if s.reading.users[1000] != 1 {
		t.Errorf("while the answer is being sent %d places are taken", s.reading.users[1000])
	}
	s.reading.mu.Unlock()
	close(b.goOn)
	if err := <-answered; err != nil {
		t.Error(err)
	}
	if s.reading.total != 0 {
		t.Errorf("afterwards %d places are taken", s.reading.total)
	}
	if msg.Flags&dbus.FlagNoReplyExpected == 0 {
		t.Error("godbus would send a second answer")
	}
}

// The bus takes nothing more from the service when too much of what it sent is not read.
// The service ends all the same when it is to end.
func TestAServiceThatIsStuckEnds(t *testing.T) {
	m := newFakeManager()
	for i := range 1000 {
		m.units = append(m.units, status(fmt.Sprintf("unit-%d.service", i), attach.Confined))
	}
	r := startService(t, startBus(t, `<limit name="max_incoming_bytes">1000000</limit>`), m)
	c := r.idler(t, 1000)
	for range 20 {
		manager(c).Go(ManagerInterface+".Describe", 0, nil, []string{})
	}
	root := r.user(t, 0)
	for stuck, tries := false, 0; !stuck; tries++ {
		if tries == 100 {
			t.Fatal("the bus takes all that is sent, and nobody reads it")
		}
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		err := manager(root).CallWithContext(ctx, ManagerInterface+".Describe", 0, []string{}).Err
		stuck = errors.Is(err, context.DeadlineExceeded)
		cancel()
	}
	ended := make(chan error, 1)
	go func() { ended <- r.stop() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(15 * time.Second):
		t.Fatal("the service does not end")
	}
}

// The connection that says who callers are is as needed as the other one.
func TestWithoutIdentitiesAnotherConnectionIsMade(t *testing.T) {
	var mu sync.Mutex
	var asker *dbus.Conn
	var real func(*dbus.Conn) func(context.Context, string) (uint32, error)
	r := startService(t, startBus(t), newFakeManager(), func(s *service) {
		real = s.credentials
		s.credentials = func(c *dbus.Conn) func(context.Context, string) (uint32, error) {
			mu.Lock()
			defer mu.Unlock()
			asker = c
			return real(c)
		}
	})
	before := r.owner(t)
	mu.Lock()
	asker.Close()
	mu.Unlock()
	for range 200 {
		if after := r.owner(t); after != "" && after != before {
			if err := call(r.user(t, 0), Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
				t.Error(err)
			}
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the service is still on the old connection")
}

func TestAPanicOfOursIsAnError(t *testing.T) {
	r := startRig(t)
	r.manager.plan = func(context.Context, attach.Request) ([]attach.Outcome, error) { panic("boo") }
	c := r.user(t, 0)
	if got := errorName(call(c, Path, ManagerInterface+".Plan", []string{"a"}, none).Err); got != ErrorFailed {
		t.Errorf("error %q", got)
	}
	if err := call(c, Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
		t.Error(err)
	}
	// Also in the goroutine that reads the connection.
	r = startService(t, startBus(t), newFakeManager(), func(s *service) {
		s.credentials = func(*dbus.Conn) func(context.Context, string) (uint32, error) {
			return func(context.Context, string) (uint32, error) { panic("boo") }
		}
	})
	for range 2 {
		if got := errorName(call(r.user(t, 0), Path, ManagerInterface+".Describe", []string{}).Err); got != ErrorFailed {
			t.Errorf("error %q", got)
		}
	}
}

// Whatever a method takes, it must be among what the connection lets through.
func TestEveryMethodCanBeCalled(t *testing.T) {
	for _, i := range []iface{introspectable, properties, objectManager, managerIface, attachmentIface, operationIface} {
		for _, m := range i.methods {
			for _, p := range m.in {
				if !slices.Contains([]string{"s", "as", "t", "v", "a{sv}"}, p.typ) {
					t.Errorf("%s.%s takes %s of the type %s, which internal/bus does not let in", i.name, m.name, p.name, p.typ)
				}
			}
		}
	}
}

func TestIntrospectionIsComplete(t *testing.T) {
	r := startRig(t)
	r.manager.units = []attach.Status{status("a.service", attach.Confined)}
	r.service.board.sync(r.manager.Status)
	c := r.user(t, 0)
	if err := manager(c).Call(ManagerInterface+".Attach", 0, []string{"a"}, none).Err; err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	var walk func(path dbus.ObjectPath)
	walk = func(path dbus.ObjectPath) {
		node, err := introspect.Call(c.Object(BusName, path))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		for _, i := range node.Interfaces {
			seen[i.Name] = true
			for _, m := range i.Methods {
				seen[i.Name+"."+m.Name+"()"] = true
			}
			for _, p := range i.Properties {
				var v dbus.Variant
				if err := c.Object(BusName, path).StoreProperty(i.Name+"."+p.Name, &v); err != nil || v.Signature().String() != p.Type {
					t.Errorf("%s %s.%s: %v, %v; introspection says %s", path, i.Name, p.Name, v, err, p.Type)
				}
			}
		}
		for _, child := range node.Children {
			walk(dbus.ObjectPath(strings.TrimSuffix(string(path), "/") + "/" + child.Name))
		}
	}
	walk("/")
	for _, i := range []iface{introspectable, properties, objectManager, managerIface, attachmentIface, operationIface} {
		if !seen[i.name] {
			t.Errorf("introspection does not show %s", i.name)
		}
		for _, m := range i.methods {
			if !seen[i.name+"."+m.name+"()"] {
				t.Errorf("introspection does not show %s.%s", i.name, m.name)
			}
		}
	}
}

// The bus goes and comes back: the name, the calls and the signals are there
// again, and who had a name on the old bus is nobody on the new one.
func TestBusRestart(t *testing.T) {
	r := startRig(t)
	startPolkit(t, r.privateBus, &fakePolkit{yes: true})
	release := make(chan struct{})
	r.manager.onAttach(func(context.Context, attach.Request, func(attach.Event)) ([]attach.Outcome, error) {
		<-release
		return []attach.Outcome{{Unit: "a"}}, nil
	})
	c := r.client(t, 0)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Attach(t.Context(), attach.Request{Units: []string{"a"}}, nil)
		ended <- err
	}()
	for len(r.manager.got()) == 0 {
		time.Sleep(10 * time.Millisecond)
	}
	r.privateBus.stop()
	if err := <-ended; !errors.Is(err, ErrGone) {
		t.Errorf("the waiting client: %v", err)
	}
	r.privateBus.start(t)
	close(release)
	var again *Client
	for range 100 {
		var err error
		if again, err = Dial(t.Context(), DialOptions{Address: r.address}); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if again == nil {
		t.Fatal("the service did not come back")
	}
	defer again.Close()
	r.manager.onAttach(nil)
	if _, err := again.Attach(t.Context(), attach.Request{Units: []string{"b"}}, nil); err != nil {
		t.Error(err)
	}
	// Whatever unique name it has: an operation of the old bus is not its own.
	for i := range 20 {
		u := r.user(t, 1000)
		if got := errorName(call(u, OperationsPath+"/1", OperationInterface+".Describe").Err); got != errorUnknownObject {
			t.Fatalf("connection %d (%s) reads an operation of the old bus: %q", i, u.Names()[0], got)
		}
	}
	waitDone(t, r.user(t, 0), OperationsPath+"/1")
}

func TestTwoDaemons(t *testing.T) {
	r := startRig(t)
	err := Serve(t.Context(), newFakeManager(), Options{Address: r.address})
	if !errors.Is(err, ErrNameTaken) {
		t.Errorf("error: %v", err)
	}
}

// The end of the service lets callers hear how their work ended.
func TestLastWords(t *testing.T) {
	r := startRig(t)
	r.manager.onAttach(func(ctx context.Context, _ attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
		progress(attach.Event{Unit: "a"})
		<-ctx.Done()
		return []attach.Outcome{{Unit: "a", Undone: true, Exit: attach.ExitFailed}}, nil
	})
	out, err := r.client(t, 0).Attach(t.Context(), attach.Request{Units: []string{"a"}}, func(attach.Event) { go func() { _ = r.stop() }() })
	if err != nil || len(out) != 1 || !out[0].Undone {
		t.Errorf("%+v, %v", out, err)
	}
}

func TestClientErrors(t *testing.T) {
	if _, err := Dial(t.Context(), DialOptions{Address: "unix:path=/nonexistent"}); !errors.Is(err, ErrNoBus) {
		t.Errorf("without a bus: %v", err)
	}
	if _, err := Dial(t.Context(), DialOptions{Address: "tcp:host=example.org"}); !errors.Is(err, ErrNoBus) {
		t.Errorf("with a bus elsewhere: %v", err)
	}
	b := startBus(t)
	for _, o := range []DialOptions{{Address: b.address}, {Address: b.address, NoStart: true}} {
		if _, err := Dial(t.Context(), o); !errors.Is(err, ErrNoDaemon) || errors.Is(err, ErrNotProved) {
			t.Errorf("without a daemon: %v", err)
		}
	}
	r := startService(t, b, newFakeManager())
	c := r.client(t, 1000)
	if _, err := c.Plan(t.Context(), attach.Request{Units: []string{"a"}}); !errors.Is(err, ErrDenied) || !strings.Contains(err.Error(), "run it as root") {
		t.Errorf("without polkit: %v", err)
	}
	if _, err := c.Attach(t.Context(), attach.Request{}, nil); !errors.Is(err, ErrBad) {
		t.Errorf("without units: %v", err)
	}
	if rep, err := c.Status(t.Context(), nil); err != nil || rep.Host.Enabled != attach.Yes {
		t.Errorf("status: %+v, %v", rep, err)
	}
	if p, err := c.Profiles(t.Context()); err != nil || len(p) != 1 || p[0].Name != "agent" {
		t.Errorf("profiles: %+v, %v", p, err)
	}
}

func TestFollowerFillsGaps(t *testing.T) {
	var got []string
	f := follower{progress: func(e attach.Event) { got = append(got, e.Text) }}
	event := func(i uint64) *dbus.Signal {
		return &dbus.Signal{Name: OperationInterface + ".Progress", Body: []any{i, fmt.Sprintf(`[{"text":"%d"}]`, i)}}
	}
	for range 2 {
		if !f.take(event(0)) {
			t.Error("an event, or its repetition, was not taken")
		}
	}
	if f.take(event(2)) {
		t.Error("a gap was not noticed")
	}
	f.catchUp(OperationDescription{State: StateRunning, Events: []attach.Event{{Text: "0"}, {Text: "1"}, {Text: "2"}}})
	// One that it has asked for already comes together with one that is new.
	both := &dbus.Signal{Name: OperationInterface + ".Progress", Body: []any{uint64(2), `[{"text":"2"},{"text":"3"}]`}}
	if !f.take(event(1)) || !f.take(both) {
		t.Error("not taken after the gap was filled")
	}
	if want := []string{"0", "1", "2", "3"}; !slices.Equal(got, want) {
		t.Errorf("events %q, not %q", got, want)
	}
	if f.take(&dbus.Signal{Name: OperationInterface + ".Finished", Body: []any{uint64(6), "[]", ""}}) || f.done {
		t.Error("an end with missing events was taken")
	}
	f.catchUp(OperationDescription{State: StateDone, Events: make([]attach.Event, 6)})
	if !f.done || len(got) != 6 {
		t.Errorf("done %v, events %q", f.done, got)
	}
}

// The daemon's own signals are heard whatever their length, and nobody else's.
func TestClientHearsTheDaemonAlone(t *testing.T) {
	r := startRig(t)
	many := make([]attach.Outcome, bus.MaxCall/16)
	for i := range many {
		many[i].Unit = fmt.Sprintf("agent-%d.service", i)
	}
	r.manager.onAttach(func(context.Context, attach.Request, func(attach.Event)) ([]attach.Outcome, error) { return many, nil })
	c := r.client(t, 0)
	began := time.Now()
	out, err := c.Attach(t.Context(), attach.Request{Units: []string{"a"}}, nil)
	if err != nil || len(out) != len(many) {
		t.Errorf("%d outcomes, %v", len(out), err)
	}
	if d := time.Since(began); d >= pollEvery {
		t.Errorf("it was heard after %v", d)
	}
	stranger := r.user(t, 1000)
	for _, body := range []string{"", strings.Repeat("x", 2*bus.MaxCall)} {
		stranger.Send(&dbus.Message{Type: dbus.TypeSignal, Body: []any{uint64(0), "[]", body}, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(c.conn.Names()[0]), dbus.FieldPath: dbus.MakeVariant(OperationsPath + "/2"),
			dbus.FieldInterface: dbus.MakeVariant(OperationInterface), dbus.FieldMember: dbus.MakeVariant("Finished"),
			dbus.FieldSignature: dbus.MakeVariant(dbus.ParseSignatureMust("tss")),
		}}, nil)
	}
	// The bus has passed them on, and what comes after them is heard.
	if err := call(stranger, Path, ManagerInterface+".Describe", []string{}).Err; err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	c.signals.mu.Lock()
	for _, s := range c.signals.queue {
		if s.Sender != c.owner && s.Sender != bus.Driver {
			t.Errorf("heard %s of %s", s.Name, s.Sender)
		}
	}
	c.signals.mu.Unlock()
	r.manager.onAttach(nil)
	if _, err := c.Attach(t.Context(), attach.Request{Units: []string{"a"}}, nil); err != nil {
		t.Fatal(err)
	}
}

func TestWhyTheDaemonDoesNotStart(t *testing.T) {
	for name, want := range map[string]string{
		"org.freedesktop.systemd1.NoSuchUnit":          "systemctl enable --now aaunitd.service",
		"org.freedesktop.systemd1.UnitMasked":          "it does not start: Unit",
		"org.freedesktop.DBus.Error.Spawn.ChildExited": "systemctl status aaunitd.service",
	} {
		err := notStarted(dbus.Error{Name: name, Body: []any{"Unit dbus-org.aaunit1.service …"}})
		if !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// lines takes what is logged.
type lines chan string

func (l lines) Write(p []byte) (int, error) { l <- string(p); return len(p), nil }

func TestWhyAConnectionEndedIsSaid(t *testing.T) {
	log := make(lines, 1000)
	r := startService(t, startBus(t), newFakeManager(), func(s *service) { s.log = slog.New(slog.NewTextHandler(log, nil)) })
	r.privateBus.stop()
	select {
	case line := <-log:
		if !strings.Contains(line, "the connection to the bus ended: ") {
			t.Error(line)
		}
	case <-time.After(10 * time.Second):
		t.Error("nothing was said")
	}
}

// fakeSystemd lists units.
type fakeSystemd struct{}

func (fakeSystemd) ListUnitFilesByPatterns(_, _ []string) ([]struct{ Path, State string }, *dbus.Error) {
	return []struct{ Path, State string }{
		{"/usr/lib/systemd/system/b.service", "enabled"}, {"/etc/systemd/system/agent@.service", "static"}, {"/etc/systemd/system/gone.service", "masked"},
	}, nil
}

type listedUnit struct {
	Name, Description, Load, Active, Sub, Following string
	Path                                            dbus.ObjectPath
	Job                                             uint32
	JobType                                         string
	JobPath                                         dbus.ObjectPath
}

func (fakeSystemd) ListUnitsByPatterns(_, _ []string) ([]listedUnit, *dbus.Error) {
	return []listedUnit{
		{Name: "agent@a.service", Load: "loaded", Path: "/x", JobPath: "/"}, {Name: "b.service", Load: "loaded", Path: "/y", JobPath: "/"},
		{Name: "missing.service", Load: "not-found", Path: "/z", JobPath: "/"},
	}, nil
}

func TestServices(t *testing.T) {
	b := startBus(t)
	if _, err := Services(t.Context(), DialOptions{Address: b.address}); err == nil {
		t.Error("no systemd, and no error")
	}
	c := b.connect(t)
	if err := c.Export(fakeSystemd{}, systemdPath, systemdManager); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestName(systemdName, dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	got, err := Services(t.Context(), DialOptions{Address: b.address})
	if d := cmp.Diff([]string{"agent@a.service", "b.service"}, got); err != nil || d != "" {
		t.Errorf("%v (-want +got):\n%s", err, d)
	}
}
