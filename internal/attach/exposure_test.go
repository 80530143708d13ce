package attach

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func active(name string) Unit {
	return Unit{ID: name, ActiveState: "active", LoadState: "loaded", Settings: Settings{Exec: []ExecCommand{{Property: "ExecStart", Path: "/usr/sbin/it"}}}}
}

func TestExposeClasses(t *testing.T) {
	bare := Process{PID: 7, UID: 990, Label: "unconfined", Confines: No}
	root := bare
	root.UID = 0
	powerful := bare
	powerful.Capabilities = []string{"sys_admin"}
	confined := Process{PID: 8, Label: "it (enforce)", Confines: Yes}
	complains := Process{PID: 8, UID: 5, Label: "it (complain)", Confines: No}
	unread := Process{PID: 9, Problem: "permission denied"}
	net := Listening{Protocol: "tcp", Address: "0.0.0.0", Port: 22, Reach: ReachNetwork}
	local := Listening{Protocol: "tcp", Address: "127.0.0.1", Port: 53, Reach: ReachLoopback}
	path := Listening{Protocol: "unix", Address: "/run/x", Reach: ReachUnix}
	odd := Listening{Protocol: "tcp", Address: "?"}
	stopped, directed := active("x.service"), active("x.service")
	stopped.ActiveState = "inactive"
	directed.ActiveState, directed.Settings.Profile = "inactive", "it"
	socket := []SocketUnit{{Name: "x.socket", Service: "x.service", Listen: []Listening{net}}}
	for name, tc := range map[string]struct {
		u       Unit
		s       Sighting
		sockets []SocketUnit
		class   ExposureClass
		found   bool
		root    Tri
	}{
		"network":                  {active("x.service"), Sighting{Processes: []Process{bare}, Listening: []Listening{path, net}}, nil, ExposedNetwork, true, No},
		"loopback":                 {active("x.service"), Sighting{Processes: []Process{root}, Listening: []Listening{local}}, nil, ExposedLocal, true, Yes},
		"unix":                     {active("x.service"), Sighting{Processes: []Process{bare}, Listening: []Listening{path}}, nil, ExposedLocal, true, No},
		"root":                     {active("x.service"), Sighting{Processes: []Process{bare, root}}, nil, ExposedRoot, true, Yes},
		"capabilities":             {active("x.service"), Sighting{Processes: []Process{powerful}}, nil, ExposedCaps, true, No},
		"nothing":                  {active("x.service"), Sighting{Processes: []Process{bare}}, nil, ExposedNot, true, No},
		"confined":                 {active("x.service"), Sighting{Processes: []Process{confined}, Listening: []Listening{net}}, nil, ExposedNetwork, false, Yes},
		"one of two":               {active("x.service"), Sighting{Processes: []Process{confined, bare}}, nil, ExposedRoot, true, Yes},
		"complain mode":            {active("x.service"), Sighting{Processes: []Process{complains}, Listening: []Listening{net}}, nil, ExposedNetwork, true, No},
		"not readable":             {active("x.service"), Sighting{Processes: []Process{unread}}, nil, ExposedUnknown, true, CouldNotTell},
		"files not readable":       {active("x.service"), Sighting{Processes: []Process{root}, Problems: []string{"fd"}}, nil, ExposedUnknown, true, Yes},
		"nothing but a problem":    {active("x.service"), Sighting{Problems: []string{"no control group"}}, nil, ExposedUnknown, true, CouldNotTell},
		"a oneshot that has ended": {active("x.service"), Sighting{}, nil, ExposedNot, false, CouldNotTell},
		"an address not known":     {active("x.service"), Sighting{Processes: []Process{bare}, Listening: []Listening{odd}}, nil, ExposedUnknown, true, No},
		"sockets left out":         {active("x.service"), Sighting{Processes: []Process{bare}, Listening: []Listening{path}, MoreListening: 3}, nil, ExposedUnknown, true, No},
		"started on demand":        {stopped, Sighting{}, socket, ExposedNetwork, true, CouldNotTell},
		"on demand, with profile":  {directed, Sighting{}, socket, ExposedNetwork, false, CouldNotTell},
	} {
		e, found := Expose(tc.u, tc.s, tc.sockets)
		if e.Class != tc.class || found != tc.found || e.Root != tc.root {
			t.Errorf("%s: %s, found %v, root %v; want %s, %v, %v", name, e.Class, found, e.Root, tc.class, tc.found, tc.root)
		}
	}
}

// A socket that systemd holds and the service has is one socket.
func TestExposeNamesASocketOnce(t *testing.T) {
	held := Listening{Protocol: "tcp6", Address: "::", Port: 22, Reach: ReachNetwork}
	e, _ := Expose(active("ssh.service"), Sighting{Processes: []Process{{UID: 0, Confines: No}}, Listening: []Listening{held}}, []SocketUnit{{Name: "ssh.socket", Listen: []Listening{
		{Protocol: "tcp", Address: "::", Port: 22, Reach: ReachNetwork}, {Protocol: "tcp", Address: "127.0.0.1", Port: 2222, Reach: ReachLoopback}}}})
	want := []Listening{held, {Protocol: "tcp", Address: "127.0.0.1", Port: 2222, Reach: ReachLoopback, By: "ssh.socket"}}
	if d := cmp.Diff(want, e.Listening); d != "" {
		t.Error(d)
	}
}

func TestExposureOrder(t *testing.T) {
	of := func(unit string, class ExposureClass, root Tri, caps ...string) Exposure {
		return Exposure{Unit: unit, Class: class, Root: root, Capabilities: caps}
	}
	list := []Exposure{
		of("caps", ExposedCaps, No, "bpf"), of("root", ExposedRoot, Yes), of("b-local", ExposedLocal, No), of("a-local", ExposedLocal, No), of("local-root", ExposedLocal, Yes),
		of("unknown", ExposedUnknown, CouldNotTell), of("net", ExposedNetwork, No), of("net-perhaps-root", ExposedNetwork, CouldNotTell), of("net-caps", ExposedNetwork, No, "setuid"), of("net-root", ExposedNetwork, Yes),
	}
	SortExposures(list)
	var got []string
	for _, e := range list {
		got = append(got, e.Unit)
	}
	if want := strings.Fields("net-root net-perhaps-root net-caps net unknown local-root a-local b-local root caps"); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDangerousCapabilities(t *testing.T) {
	if got := DangerousCapabilities(1<<21 | 1<<10 | 1<<63); !slices.Equal(got, []string{"sys_admin", "number 63"}) {
		t.Errorf("%q", got)
	}
	if len(capabilityNames) != 41 || capabilityNames[21] != "sys_admin" || capabilityNames[40] != "checkpoint_restore" {
		t.Errorf("%d names: %q", len(capabilityNames), capabilityNames)
	}
	for _, name := range dangerous {
		if !slices.Contains(capabilityNames, name) {
			t.Errorf("%s is no capability", name)
		}
	}
}

func TestShell(t *testing.T) {
	for in, want := range map[string]string{"a@b.service": "a@b.service", `a\x2db.service`: `'a\x2db.service'`, "it's": `'it'\''s'`, "": "''", "$(id)": "'$(id)'"} {
		if got := Shell(in); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}

func TestReachInJSON(t *testing.T) {
	for _, r := range []Reach{ReachUnknown, ReachUnix, ReachLoopback, ReachNetwork} {
		b, _ := r.MarshalText()
		var back Reach
		if err := back.UnmarshalText(b); err != nil || back != r {
			t.Errorf("%v reads as %v", r, back)
		}
	}
	r := ReachNetwork
	if err := r.UnmarshalText([]byte("elsewhere")); err != nil || r != ReachUnknown {
		t.Errorf("an unknown word reads as %v", r)
	}
}
