package reconcile

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// uses is what units of the world were seen to do with socket options, what they
// run, and the disk for what is kept of it. It is the world's evidence too, of which
// it keeps nothing.
type uses struct {
	mu      sync.Mutex
	tables  map[string][]attach.SocketUse
	failing error
	build   string // the checksum of every executable
	disk    map[string]string
	saves   int
	full    bool
	onLoad  func() // told each read of what is kept
}

func newUses() *uses {
	return &uses{tables: map[string][]attach.SocketUse{}, disk: map[string]string{}, build: "aaaa"}
}

func (u *uses) name(_ attach.SocketCall, name string) (string, error) {
	if name == "nonsense" {
		return "", errors.New("there is no such name")
	}
	return "SOL_TCP:" + strings.TrimPrefix(name, "SOL_TCP:"), nil
}

// do has a unit make a call now.
func (u *uses) do(unit, option string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := attach.SocketUser{Time: time.Now(), Comm: "agent"}
	list := u.tables[unit]
	i := slices.IndexFunc(list, func(x attach.SocketUse) bool { return x.Option == option })
	if i < 0 {
		i = len(list)
		list = append(list, attach.SocketUse{Call: attach.SetSockOpt, Option: option, Socket: "TCP over IPv4", First: now})
	}
	list[i].Allowed, list[i].Last = list[i].Allowed+1, now
	u.tables[unit] = list
}

func (u *uses) refuse(unit, option string) {
	u.do(unit, option)
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, x := range u.tables[unit] {
		if x.Option == option {
			u.tables[unit][i].Allowed, u.tables[unit][i].Refused, u.tables[unit][i].LastRefused = x.Allowed-1, x.Refused+1, x.Last
			u.tables[unit][i].Hurts = "small writes wait"
		}
	}
}

func (u *uses) read(unit string) (attach.SocketRecording, bool, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	list, found := u.tables[unit]
	return attach.SocketRecording{Unit: unit, Seen: slices.Clone(list)}, found, u.failing
}

func (u *uses) upgrade(build string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.build = build
}

func (u *uses) Program(_ context.Context, _ string, p attach.EvidenceProgram) attach.EvidenceProgram {
	u.mu.Lock()
	defer u.mu.Unlock()
	p.Path, p.SHA256 = "/usr/bin/agent", u.build
	return p
}

func (u *uses) Has(string, attach.EvidenceKey) bool { return true }
func (u *uses) Record(attach.Evidence)              {}

// History is of evidence.
func (u *uses) History(string) attach.EvidenceHistory { return attach.EvidenceHistory{} }
func (u *uses) Check(context.Context, string, *attach.Evidence, map[string]string) attach.EvidenceStatus {
	return attach.EvidenceStatus{}
}

func (u *uses) Load(unit string) (h attach.SocketHistory, err error) {
	if u.onLoad != nil {
		u.onLoad()
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	h.Unit = unit
	if text, ok := u.disk[unit]; ok {
		err = json.Unmarshal([]byte(text), &h)
	}
	return h, err
}

func (u *uses) Save(h attach.SocketHistory) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.full {
		return errors.New("no space left")
	}
	text, err := json.Marshal(h)
	u.disk[h.Unit] = string(text)
	u.saves++
	return err
}

// buildsOf says what executables of a unit were seen to use.
func buildsOf(h attach.SocketHistory) string {
	var out []string
	for _, b := range h.Builds {
		text := b.Program.SHA256 + ":"
		for _, u := range b.Uses {
			text += fmt.Sprintf(" %s=%d", u.Option, u.Allowed+u.Refused)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func change(t *testing.T, l *Loop, unit string, c attach.SocketChange) attach.Outcome {
	t.Helper()
	if c.Call == "" {
		c.Call = attach.SetSockOpt
	}
	out, err := l.ChangeSockets(context.Background(), attach.Request{Units: []string{unit}, Sockets: &c, By: "somebody"}, nil)
	if err != nil || len(out) != 1 {
		t.Fatalf("%+v: %v", out, err)
	}
	rest()
	return out[0]
}

// TestSocketOptionsOfABuild: a unit is recorded, what it used is approved and
// enforced without a restart, another build begins to use something, which shows.
func TestSocketOptionsOfABuild(t *testing.T) {
	w := newWorld()
	u := w.addUnit("myagent.service")
	w.uses = newUses()
	w.run(t, func(l *Loop) {
		if out, err := l.Attach(context.Background(), attach.Request{Units: []string{"myagent"}}, nil); err != nil || out[0].Exit != attach.ExitOK {
			t.Fatalf("%+v %v", out, err)
		}
		starts := u.start
		if r := l.SocketOptions(nil); len(r.Units) != 0 {
			t.Errorf("nothing is recorded: %+v", r.Units)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsRecord}); o.Exit != attach.ExitOK || !o.Changed {
			t.Errorf("%+v", o)
		}
		if w.attached["myagent.service"].Mode != attach.SocketsRecord {
			t.Errorf("attached is %+v", w.attached)
		}
		w.uses.do("myagent.service", "SOL_TCP:TCP_NODELAY")
		s := l.SocketOptions([]string{"my*"}).Units[0]
		if got := s.NotAllowed(); len(got) != 1 || s.Attachment == "" || !s.Manual {
			t.Errorf("not on the list: %+v of %+v", got, s)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Approve: []string{"TCP_NODELAY"}, Reason: "small frames"}); o.Exit != attach.ExitOK || !strings.Contains(fmt.Sprint(o.Events), "1 to set") {
			t.Errorf("%+v", o)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce}); o.Exit != attach.ExitOK {
			t.Errorf("%+v", o)
		}
		if got := w.rules["myagent.service"]; got.Mode != attach.SocketsEnforce || len(got.Allow) != 1 || got.Allow[0].Reason != "small frames" {
			t.Errorf("rules: %+v", got)
		}
		if u.start != starts {
			t.Error("the unit was restarted")
		}
		w.uses.upgrade("bbbb")
		unlock := w.lock()
		if err := w.begin(u); err != nil {
			t.Error(err)
		}
		w.uses.refuse("myagent.service", "SOL_TCP:TCP_CORK")
		unlock()
		rest()
		s = l.SocketOptions([]string{"myagent"}).Units[0]
		if got := buildsOf(s.History); got != "aaaa: SOL_TCP:TCP_NODELAY=1; bbbb: SOL_TCP:TCP_CORK=1" {
			t.Errorf("by executable: %s", got)
		}
		if s.Stale != attach.Yes || s.Difference == nil || len(s.Difference.More) != 1 || s.Difference.More[0].Option != "SOL_TCP:TCP_CORK" {
			t.Errorf("stale is %v, difference %+v", s.Stale, s.Difference)
		}
		stale := func(r attach.Reason) bool { return r.Code == attach.SocketsStale }
		if n := l.Status(nil).Units[0].Notes; !slices.ContainsFunc(n, stale) {
			t.Errorf("status notes %+v", n)
		}
		if m := l.Metrics().Units[0]; m.Sockets == nil || m.Sockets.Stale != attach.Yes || m.Sockets.Refused != 1 || m.Pending {
			t.Errorf("metrics say %+v %+v", m, m.Sockets)
		}
		c := l.Explain(context.Background(), nil, false).Cases[0].Sockets
		if len(c) != 2 || c[0].Code != attach.SocketRefused || !strings.Contains(c[0].Detail, "TCP_CORK was refused once: small writes wait") {
			t.Errorf("explained: %+v", c)
		}
		// Somebody looks, and confirms it.
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce}); o.Exit != attach.ExitOK || o.Changed {
			t.Errorf("%+v", o)
		}
		if s := l.SocketOptions(nil).Units[0]; s.Stale != attach.No || s.History.Reviewed.By != "somebody" {
			t.Errorf("stale is %v, %+v", s.Stale, s.History.Reviewed)
		}
		if n := l.Status(nil).Units[0].Notes; slices.ContainsFunc(n, stale) {
			t.Errorf("status notes %+v", n)
		}
		if m := l.Metrics().Units[0].Sockets; m == nil || m.Stale != attach.No || m.Refused != 1 {
			t.Errorf("metrics say %+v", m)
		}
		w.uses.do("myagent.service", "SOL_TCP:TCP_KEEPIDLE")
	})
	// What was used last is on disk when the daemon has ended.
	h, err := w.uses.Load("myagent.service")
	if err != nil || !strings.Contains(buildsOf(h), "TCP_KEEPIDLE=1") {
		t.Errorf("kept is %s, %v", buildsOf(h), err)
	}
}

// TestAListWhoseHistoryIsLost: what runs is not taken for what the list was made for, where
// that was on record and is no more.
func TestAListWhoseHistoryIsLost(t *testing.T) {
	w := newWorld()
	u := w.addUnit("myagent.service")
	w.declareUnit("myagent.conf", "myagent.service", options(attach.SocketsEnforce, nodelay...))
	w.uses = newUses()
	next := func(l *Loop, build string) attach.SocketStatus {
		w.uses.upgrade(build)
		unlock := w.lock()
		if err := w.begin(u); err != nil {
			t.Error(err)
		}
		unlock()
		rest()
		return l.SocketOptions(nil).Units[0]
	}
	lose := func() {
		w.uses.mu.Lock()
		defer w.uses.mu.Unlock()
		delete(w.uses.disk, "myagent.service")
	}
	w.run(t, func(l *Loop) {
		if s := l.SocketOptions(nil).Units[0]; s.Stale != attach.No {
			t.Errorf("of the first start: %v %s", s.Stale, s.StaleWhy)
		}
		if s := next(l, "bbbb"); s.Stale != attach.Yes {
			t.Errorf("of another build: %v %s", s.Stale, s.StaleWhy)
		}
		lose()
	})
	lose() // the daemon keeps what it has seen when it ends
	w.run(t, func(l *Loop) {
		for _, build := range []string{"cccc", "cccc", "dddd"} {
			if s := next(l, build); s.Stale != attach.CouldNotTell || !strings.Contains(s.StaleWhy, "not on record any more") {
				t.Errorf("%s: %v %s", build, s.Stale, s.StaleWhy)
			}
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce}); o.Exit != attach.ExitOK {
			t.Errorf("%+v", o)
		}
		if s := l.SocketOptions(nil).Units[0]; s.Stale != attach.No {
			t.Errorf("once confirmed: %v %s", s.Stale, s.StaleWhy)
		}
		if s := next(l, "eeee"); s.Stale != attach.Yes {
			t.Errorf("of another build than the one confirmed: %v %s", s.Stale, s.StaleWhy)
		}
	})
}

func TestChangesOfSocketsThatAreRefused(t *testing.T) {
	w := newWorld()
	w.addUnit("myagent.service")
	w.addUnit("other.service")
	w.declareUnit("myagent.conf", "myagent.service", func(a *attach.Attachment) {
		a.SocketOptions = &attach.SocketOptions{Mode: attach.SocketsRecord, Allow: []attach.AllowedOption{{Option: "SOL_TCP:X", Reason: "r"}}}
	})
	w.uses = newUses()
	w.run(t, func(l *Loop) {
		o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce})
		if o.Exit != attach.ExitFailed || o.Reasons[0].Code != attach.DeclaredInFile || !strings.Contains(o.Reasons[0].Next, "sockopts export") {
			t.Errorf("declared in a file: %+v", o)
		}
		// What the file says already can be confirmed.
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsRecord}); o.Exit != attach.ExitOK {
			t.Errorf("confirmed: %+v", o)
		}
		if o := change(t, l, "other", attach.SocketChange{Mode: attach.SocketsRecord}); o.Exit == attach.ExitOK || o.Reasons[0].Code != attach.NotAttached {
			t.Errorf("not attached: %+v", o)
		}
		if o := change(t, l, "nope", attach.SocketChange{Mode: attach.SocketsRecord}); o.Exit != attach.ExitNoUnit {
			t.Errorf("no unit: %+v", o)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Approve: []string{"nonsense"}, Reason: "r"}); o.Exit != attach.ExitFailed || !strings.Contains(o.Reasons[0].Detail, "no such name") {
			t.Errorf("nonsense: %+v", o)
		}
		if _, err := l.Pause(context.Background(), attach.Request{Units: []string{"myagent"}, For: time.Hour}, nil); err != nil {
			t.Fatal(err)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsRecord}); o.Exit == attach.ExitOK || o.Reasons[0].Code != attach.Paused {
			t.Errorf("paused: %+v", o)
		}
		for _, r := range []attach.Request{{Units: []string{"myagent"}}, {Units: []string{"myagent"}, Sockets: &attach.SocketChange{}}} {
			if _, err := l.ChangeSockets(context.Background(), r, nil); err == nil {
				t.Errorf("%+v is taken", r)
			}
		}
	})
}

// What could not be held at the unit's next start, and has to be, is not written into its
// attachment: no command takes it out again, and the attachment would be refused as a whole.
func TestAChangeOfSocketsThatCannotBeHeldIsNotWritten(t *testing.T) {
	w := newWorld()
	u := w.addUnit("myagent.service")
	w.uses = newUses()
	w.run(t, func(l *Loop) {
		if out, err := l.Attach(context.Background(), attach.Request{Units: []string{"myagent"}}, nil); err != nil || out[0].Exit != attach.ExitOK {
			t.Fatalf("%+v %v", out, err)
		}
		w.mu.Lock()
		u.root = "/srv/root"
		w.mu.Unlock()
		o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce})
		if o.Exit == attach.ExitOK || len(o.Reasons) != 1 || o.Reasons[0].Code != attach.SocketsHidden || o.Reasons[0].Next != "RootDirectoryStartOnly=yes in myagent.service" {
			t.Errorf("%+v", o)
		}
		if refused := refusedOf(l, "myagent"); len(refused) > 0 || answer(l, "myagent") != "confined" || len(w.attached) > 0 {
			t.Errorf("%+v %+v", refused, w.attached)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsRecord}); o.Exit != attach.ExitOK || w.attached["myagent.service"].Mode != attach.SocketsRecord {
			t.Errorf("%+v", o)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce}); o.Exit == attach.ExitOK || len(o.Reasons) != 1 || o.Reasons[0].Code != attach.SocketsHidden {
			t.Errorf("from a recording: %+v", o)
		}
		w.mu.Lock()
		u.root = ""
		w.mu.Unlock()
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsEnforce}); o.Exit != attach.ExitOK || w.attached["myagent.service"].Mode != attach.SocketsEnforce {
			t.Errorf("%+v", o)
		}
	})
}

// What cannot be read is told, and what cannot be kept loses nothing else.
func TestSocketOptionsThatCannotBeTold(t *testing.T) {
	w := newWorld()
	w.addUnit("myagent.service")
	w.declareUnit("myagent.conf", "myagent.service", func(a *attach.Attachment) {
		a.SocketOptions = &attach.SocketOptions{Mode: attach.SocketsRecord}
	})
	w.uses = newUses()
	w.uses.failing = noSpace{}
	w.run(t, func(l *Loop) {
		s := l.SocketOptions(nil).Units[0]
		if s.Problem == "" || s.Next != "make room" || len(s.Recorded) != 0 || s.Stale != attach.CouldNotTell {
			t.Errorf("%+v", s)
		}
		w.uses.mu.Lock()
		w.uses.failing, w.uses.full = nil, true
		w.uses.mu.Unlock()
		w.uses.do("myagent.service", "SOL_TCP:X")
		if s := l.SocketOptions(nil).Units[0]; s.Problem != "" || len(s.Recorded) != 1 {
			t.Errorf("%+v", s)
		}
		if o := change(t, l, "myagent", attach.SocketChange{Mode: attach.SocketsRecord}); len(o.Notes) != 1 || o.Notes[0].Code != attach.RecordBad {
			t.Errorf("%+v", o)
		}
		if r := l.SocketOptions([]string{"nope"}); len(r.Units) != 0 || len(r.Missing) != 1 {
			t.Errorf("%+v", r)
		}
	})
}

// When the daemon ends, the tables of all units are read once more, whatever looks that
// are still under way find out about them.
func TestWhatWasUsedLastIsKeptWhileLooksEnd(t *testing.T) {
	w := newWorld()
	w.uses = newUses()
	l := w.loop()
	l.socketWatch.runs = map[string]attach.SocketRun{}
	var units []string
	for i := range 100 {
		units = append(units, fmt.Sprintf("a%d.service", i))
		w.uses.do(units[i], "SOL_TCP:TCP_NODELAY")
		l.socketWatch.runs[units[i]] = attach.SocketRun{Program: attach.EvidenceProgram{SHA256: "aaaa"}}
	}
	var looks sync.WaitGroup
	var once sync.Once
	w.uses.onLoad = func() {
		once.Do(func() {
			looks.Go(func() {
				for _, unit := range units {
					l.noteSockets(attach.Desired{Unit: unit, Attachment: &attach.Attachment{}}, attach.Observed{}, attach.Verdict{})
				}
			})
		})
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	l.keepSockets(ctx)
	looks.Wait()
	for _, unit := range units {
		if h, _ := w.uses.Load(unit); buildsOf(h) != "aaaa: SOL_TCP:TCP_NODELAY=1" {
			t.Fatalf("%s: %q", unit, buildsOf(h))
		}
	}
}
