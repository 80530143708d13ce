package apparmor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// tape is an audit log that says what it was given, then waits until it is woken.
type tape struct {
	mu     sync.Mutex
	say    []heard
	woken  chan struct{}
	closed bool
	asked  int // calls of Receive
}

type heard struct {
	kind uint16
	text string
	err  error
}

func newTape(say ...heard) *tape { return &tape{say: say, woken: make(chan struct{}, 1)} }

func (s *tape) Receive() (uint16, []byte, error) {
	s.mu.Lock()
	s.asked++
	if s.closed {
		s.mu.Unlock()
		return 0, nil, syscall.EBADF
	}
	if len(s.say) > 0 {
		h := s.say[0]
		s.say = s.say[1:]
		s.mu.Unlock()
		return h.kind, []byte(h.text), h.err
	}
	s.mu.Unlock()
	<-s.woken
	return 2, nil, nil
}

func (s *tape) Wake() { s.woken <- struct{}{} }

func (s *tape) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

func record(name string) heard {
	return heard{kind: auditAVC, text: `audit(1764028800.123:456): apparmor="DENIED" operation="open" class="file" profile="p" name="` + name + `" pid=1 comm="c" requested_mask="r" denied_mask="r" fsuid=0 ouid=0`}
}

// listen runs a listener whose sources come one after the other; an error stands
// for one that cannot be had.
func listen(ctx context.Context, sources ...any) <-chan attach.Denial {
	l := listener{attribute: func(*attach.Denial) {}, wait: relisten}
	l.open = func() (AuditSource, error) {
		next := sources[0]
		if len(sources) > 1 {
			sources = sources[1:]
		}
		if err, ok := next.(error); ok {
			return nil, err
		}
		return next.(AuditSource), nil
	}
	return l.listen(ctx)
}

func brief(d attach.Denial) string {
	switch {
	case d.Deaf != "":
		return "deaf"
	case d.Lost > 0:
		return fmt.Sprint("lost ", d.Lost)
	}
	return fmt.Sprintf("%s %d", d.Name, d.Count)
}

// takeFor reads all that comes in the given time.
func takeFor(out <-chan attach.Denial, d time.Duration) (got []string) {
	end := time.After(d)
	for {
		select {
		case d := <-out:
			got = append(got, brief(d))
		case <-end:
			return got
		}
	}
}

func TestDenialsOfASlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s := newTape()
		for i := range 10_000 { // twenty things, over and over
			s.say = append(s.say, record(fmt.Sprint("/", i%20)))
		}
		for i := range 10_000 { // and ever new ones
			s.say = append(s.say, record(fmt.Sprint("/new", i)))
		}
		s.say = append(s.say, heard{kind: 1300, text: "audit(1764028800.123:456): exe=\"/x\""}, record("/0"))
		out := listen(ctx, s)
		synctest.Wait() // nobody reads, and all was taken off the kernel's hands
		if len(s.say) > 0 {
			t.Fatalf("%d records wait in the kernel", len(s.say))
		}
		time.Sleep(time.Hour)
		got := takeFor(out, time.Second)
		count := 0
		lost := 0
		for i, line := range got {
			var n int
			if _, err := fmt.Sscanf(line, "lost %d", &n); err == nil {
				lost += n
				continue
			}
			var name string
			if _, err := fmt.Sscanf(line, "%s %d", &name, &n); err != nil {
				t.Fatal(line)
			}
			count += n
			if i > maxPending+2 {
				t.Fatalf("%d elements waited", len(got))
			}
		}
		if count+lost != 20_001 || lost == 0 {
			t.Errorf("%d denials and %d lost of 20001; %q …", count, lost, got[:25])
		}
		asked := s.asked
		time.Sleep(24 * time.Hour)
		if s.asked != asked {
			t.Errorf("it asked %d times while nothing happened", s.asked-asked)
		}
		cancel()
		if _, ok := <-out; ok {
			t.Error("the channel is not closed")
		}
		if !s.closed {
			t.Error("the source is not closed")
		}
	})
}

func TestDenialsAreMergedByUnitAndStart(t *testing.T) {
	p := pending{more: make(chan struct{}, 1)}
	for _, unit := range []string{"a", "b", "a", ""} {
		for _, inv := range []string{"1", "2", "1"} {
			p.add(attach.Denial{Unit: unit, InvocationID: inv, Name: "/x", Count: 1})
		}
	}
	var got []string
	take := func() {
		for {
			d, ok := p.next()
			if !ok {
				break
			}
			got = append(got, fmt.Sprint(d.Unit, d.InvocationID, d.Cgroup, " ", d.Count))
		}
	}
	take()
	if want := "a1 4,a2 2,b1 2,b2 1,1 2,2 1"; strings.Join(got, ",") != want {
		t.Errorf("%q, want %s", got, want)
	}
	// One that is known to be in no unit is not one of which nothing is known.
	got = nil
	for _, group := range []string{"", "/session", "", "/session", "/other"} {
		p.add(attach.Denial{Cgroup: group, Name: "/x", Count: 1})
	}
	take()
	if want := " 2,/session 2,/other 1"; strings.Join(got, ",") != want {
		t.Errorf("%q, want %s", got, want)
	}
	if len(p.merged) > 0 {
		t.Error("what was taken is still there")
	}
}

func TestDenialsSurviveALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		first := newTape(
			record("/a"),
			heard{err: syscall.EINTR},
			heard{err: syscall.ENOBUFS},
			heard{err: syscall.ENOBUFS},
			heard{err: errors.New("message received was not from the kernel")},
			record("/b"),
			heard{err: syscall.ENOTCONN},
		)
		second := newTape(heard{err: syscall.ENOTCONN})
		third := newTape(record("/c"))
		out := listen(ctx, first, syscall.EPERM, second, third)
		got := takeFor(out, time.Minute)
		// Whether the overruns are counted before or after what is around them
		// depends on who is faster, the reader or the receiver.
		text := strings.Join(got, ",")
		for _, want := range []string{"/a 1", "lost ", "/b 1", "deaf", "/c 1"} {
			if !strings.Contains(text, want) {
				t.Errorf("%q is missing in %q", want, got)
			}
		}
		if got[len(got)-1] != "/c 1" || got[len(got)-2] != "lost 1" {
			t.Errorf("what follows a gap does not say so: %q", got)
		}
		if !first.closed || !second.closed || third.closed {
			t.Error("sources that broke stay open, or the last one does not")
		}
		cancel()
		for range out {
		}
	})
}

// Where nothing can be heard, that is said once, and asking does not go on at the
// same pace.
func TestDenialsThatCannotBeHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		n := 0
		l := listener{attribute: func(*attach.Denial) {}, wait: relisten, open: func() (AuditSource, error) {
			n++
			return nil, fmt.Errorf("bind failed: %w", syscall.EPERM)
		}}
		out := l.listen(ctx)
		d := <-out
		if d.IsDenial() || !strings.Contains(d.Deaf, "CAP_AUDIT_READ") {
			t.Errorf("%+v", d)
		}
		if more := takeFor(out, 24*time.Hour); len(more) > 0 {
			t.Errorf("said again: %q", more)
		}
		cancel()
		for range out {
		}
		if n > 24*60/5+20 {
			t.Errorf("%d attempts in a day", n)
		}
	})
}

func TestUnitOfGroup(t *testing.T) {
	for group, want := range map[string]string{
		"/system.slice/myagent.service":                                        "myagent.service",
		"/system.slice/myagent.service/sub/other.service":                      "myagent.service",
		"/system.slice/system-agent.slice/agent@a\\x2db.service":               `agent@a\x2db.service`,
		"/user.slice/user-1000.slice/user@1000.service/app.slice/dbus.service": "user@1000.service",
		"/user.slice/user-1000.slice/session-3.scope":                          "",
		"/user.slice/user-1000.slice/session-3.scope/x.service":                "",
		"/system.slice/_cpu.service":                                           "cpu.service",
		"/system.slice/__odd.service":                                          "_odd.service",
		"/_cgroup.slice/_cgroup.x.service":                                     "cgroup.x.service",
		"/top.service":                                                         "top.service",
		"/system.slice":                                                        "",
		"/init.scope":                                                          "",
		"/":                                                                    "",
		"":                                                                     "",
		"/../system.slice/x.service":                                           "",
		"/docker/0123/x.service":                                               "",
		"/system.slice/a b.service":                                            "",
		"/system.slice/.service":                                               "",
		"/system.slice/" + strings.Repeat("x", 300) + ".service":               "",
		"/machine.slice/machine-x.scope/payload/system.slice/ssh.service":                  "",
		"/system.slice/containerd.service/kubepods-burstable.slice:cri-containerd:0123456": "containerd.service",
	} {
		if got := unitOfGroup(group); got != want {
			t.Errorf("%s is %q, want %q", group, got, want)
		}
	}
}

// A process and its record, through the files of a host.
func TestAttribute(t *testing.T) {
	h := newHost(t, "/nonexistent")
	const id = "0123456789abcdef0123456789abcdef"
	now := time.Now()
	// This process has all that is needed, but for its control group.
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	self, ok := parseStat(own)
	if !ok {
		t.Fatal("cannot read the start time")
	}
	start := self.start
	stat := func(pid, start string) {
		h.write("/proc/"+pid+"/stat", pid+" (a) b) R 1"+strings.Repeat(" 0", 17)+" "+start+" 0 0\n")
	}
	for pid, group := range map[string]string{"10": "/system.slice/a.service", "11": "/system.slice/b.service", "12": "/user.slice/user-1.slice/session-1.scope", "13": "/system.slice/a.service", "14": "/system.slice/a.service (deleted)"} {
		h.write("/proc/"+pid+"/cgroup", "1:name=systemd:/system.slice/no.service\n0::"+group+"\n")
		stat(pid, start)
	}
	stat("13", "99999999999") // began later than now
	h.symlink(id, "/run/systemd/units/invocation:a.service")
	h.symlink("../../../etc/passwd", "/run/systemd/units/invocation:b.service")
	for _, c := range []struct {
		what string
		d    attach.Denial
		want string
	}{
		{"a unit", attach.Denial{PID: 10}, "a.service " + id + " /system.slice/a.service"},
		{"no such invocation", attach.Denial{PID: 11}, "b.service  /system.slice/b.service"},
		{"a session", attach.Denial{PID: 12}, "  /user.slice/user-1.slice/session-1.scope"},
		{"a reused PID", attach.Denial{PID: 13}, "  "},
		{"a group that is gone", attach.Denial{PID: 14}, "a.service " + id + " /system.slice/a.service"},
		{"a process that is gone", attach.Denial{PID: 15}, "  "},
		{"no PID", attach.Denial{}, "  "},
		{"the sender of a signal", attach.Denial{PID: 10, Operation: "signal", Denied: "receive"}, "  "},
		{"a tracer", attach.Denial{PID: 10, Operation: "ptrace", Denied: "tracedby"}, "  "},
		{"a record from before the start", attach.Denial{PID: 10, Time: now.Add(-240 * time.Hour)}, "  "},
		{"a record from the future", attach.Denial{PID: 10, Time: now.Add(time.Hour)}, "  "},
	} {
		if c.d.Time.IsZero() {
			c.d.Time = now
		}
		(&asker{s: h.System}).attribute(&c.d)
		if got := c.d.Unit + " " + c.d.InvocationID + " " + c.d.Cgroup; got != c.want {
			t.Errorf("%s: %q, want %q", c.what, got, c.want)
		}
	}
}

// One process that is denied much is asked about once a second at most.
func TestAttributeInABurst(t *testing.T) {
	h := newHost(t, "/nonexistent")
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range []string{"10", "11"} {
		h.write("/proc/"+pid+"/stat", string(own))
		h.write("/proc/"+pid+"/cgroup", "0::/system.slice/a"+pid+".service\n")
	}
	a := asker{s: h.System}
	unit := func(d attach.Denial) string {
		d.Time = time.Now()
		a.attribute(&d)
		return d.Unit
	}
	first := unit(attach.Denial{PID: 10})
	h.write("/proc/10/cgroup", "0::/system.slice/b.service\n")
	again, other, back := unit(attach.Denial{PID: 10}), unit(attach.Denial{PID: 11}), unit(attach.Denial{PID: 10})
	if first != "a10.service" || again != first || other != "a11.service" || back != "b.service" {
		t.Errorf("%s, %s, %s, %s", first, again, other, back)
	}
	for i := range a.answers {
		a.answers[i].at = a.answers[i].at.Add(-2 * askAgain)
	}
	h.write("/proc/10/cgroup", "0::/system.slice/c.service\n")
	if late := unit(attach.Denial{PID: 10}); late != "c.service" {
		t.Errorf("an old answer, %s, was given", late)
	}
	if by := unit(attach.Denial{PID: 10, Operation: "signal", Denied: "receive"}); by != "" {
		t.Errorf("a sender's unit, %s, was given", by)
	}
	// One that told, and is gone by its next record, with others in between.
	unit(attach.Denial{PID: 11})
	if err := os.RemoveAll(filepath.Join(h.root, "proc/10")); err != nil {
		t.Fatal(err)
	}
	if gone := unit(attach.Denial{PID: 10}); gone != "c.service" {
		t.Errorf("the unit of a process that has ended is %q", gone)
	}
	if before := unit(attach.Denial{PID: 12}); before != "" {
		t.Errorf("a process that was never asked is of %q", before)
	}
	for i := range a.answers {
		a.answers[i].at = a.answers[i].at.Add(-2 * askAgain)
	}
	if late := unit(attach.Denial{PID: 10}); late != "" {
		t.Errorf("an old answer, %s, was given for one that is gone", late)
	}
	for pid := range 2 * maxAnswers {
		unit(attach.Denial{PID: 100 + pid})
	}
	if len(a.answers) != maxAnswers {
		t.Errorf("%d answers are kept", len(a.answers))
	}
}

// In a network namespace of its own it would hear nothing, and not know it.
func TestDenialsInAnotherNetwork(t *testing.T) {
	h := newHost(t, "/nonexistent")
	h.symlink("net:[4026531840]", "/proc/1/ns/net")
	if err := h.inHostNetwork(); err != nil {
		t.Errorf("what cannot be read is no other network: %v", err)
	}
	h.symlink("net:[4026531840]", "/proc/self/ns/net")
	if err := h.inHostNetwork(); err != nil {
		t.Error(err)
	}
	h = newHost(t, "/nonexistent")
	h.symlink("net:[4026531840]", "/proc/1/ns/net")
	h.symlink("net:[4026532000]", "/proc/self/ns/net")
	c, cancel := context.WithCancel(t.Context())
	out := h.Denials(c)
	if d := <-out; !strings.Contains(d.Deaf, "PrivateNetwork") {
		t.Errorf("%+v", d)
	}
	cancel()
	for range out {
	}
}
