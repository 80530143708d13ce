package units

import (
	"slices"
	"testing"

	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

func TestListening(t *testing.T) {
	net, local, path := attach.ReachNetwork, attach.ReachLoopback, attach.ReachUnix
	for _, tc := range []struct {
		kind, address string
		want          attach.Listening
		is            bool
	}{
		{"Stream", "0.0.0.0:80", attach.Listening{Protocol: "tcp", Address: "0.0.0.0", Port: 80, Reach: net}, true},
		{"Stream", "[::]:22", attach.Listening{Protocol: "tcp6", Address: "::", Port: 22, Reach: net}, true},
		{"Stream", "127.0.0.2:631", attach.Listening{Protocol: "tcp", Address: "127.0.0.2", Port: 631, Reach: local}, true},
		{"Datagram", "[::1]:53", attach.Listening{Protocol: "udp6", Address: "::1", Port: 53, Reach: local}, true},
		{"Datagram", "[::ffff:127.0.0.1]:53", attach.Listening{Protocol: "udp6", Address: "::ffff:127.0.0.1", Port: 53, Reach: local}, true},
		{"Stream", "/run/x y", attach.Listening{Protocol: "unix", Address: "/run/x y", Reach: path}, true},
		{"SequentialPacket", "@abstract", attach.Listening{Protocol: "unix", Address: "@abstract", Reach: path}, true},
		{"Stream", "vsock::22", attach.Listening{Protocol: "vsock", Address: ":22", Reach: net}, true},
		// Where it listens is not understood: that is not nowhere.
		{"Stream", "<unset>", attach.Listening{Protocol: "tcp", Address: "<unset>"}, true},
		{"FIFO", "/run/fifo", attach.Listening{}, false},
		{"Netlink", "kobject-uevent 1", attach.Listening{}, false},
		{"Special", "/dev/input", attach.Listening{}, false},
	} {
		got, is := listening(tc.kind, tc.address)
		if got != tc.want || is != tc.is {
			t.Errorf("%s %s: %+v, %v", tc.kind, tc.address, got, is)
		}
	}
}

func TestForked(t *testing.T) {
	b := newFakeBus(t)
	b.on("GetUnitByControlGroup", func(c busCall) ([]any, error) {
		unit := map[string]string{
			"/system.slice/a.service": "a.service", "/a.socket": "a.socket", "/gone.service": "gone.service", "/init.scope": "init.scope", "/container": "-.slice",
		}[c.args[0].(string)]
		if unit == "" {
			return nil, busError("org.freedesktop.systemd1.NoSuchUnit", "no")
		}
		return []any{pathOf(unit)}, nil
	})
	b.on("GetAll", func(c busCall) ([]any, error) {
		unit, _ := unitOf(c.path)
		pids := map[string]map[string]uint32{"a.service org.freedesktop.systemd1.Service": {"MainPID": 10, "ControlPID": 0}, "a.socket org.freedesktop.systemd1.Socket": {"ControlPID": 12}}
		got := pids[unit+" "+c.args[0].(string)]
		if got == nil {
			return nil, busError("org.freedesktop.DBus.Error.UnknownInterface", "no")
		}
		props := map[string]dbus.Variant{}
		for name, pid := range got {
			props[name] = dbus.MakeVariant(pid)
		}
		return []any{props}, nil
	})
	s := b.client(Options{})
	for group, want := range map[string][]int{
		"/system.slice/a.service": {10}, "/a.socket": {12}, "/init.scope": nil, "/container": nil,
	} {
		if got, err := s.Forked(t.Context(), group); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v, want %v", group, got, err, want)
		}
	}
	for _, group := range []string{"/gone.service", "/none.service"} {
		if got, err := s.Forked(t.Context(), group); err == nil {
			t.Errorf("%s: %v", group, got)
		}
	}
}

func TestRunningAndSockets(t *testing.T) {
	b := newFakeBus(t)
	row := func(name string) listedUnit {
		return listedUnit{Name: name, LoadState: "loaded", ActiveState: "active", Path: "/", JobPath: "/"}
	}
	b.on("ListUnitsByPatterns", func(c busCall) ([]any, error) {
		if states := c.args[0].([]string); len(states) == 0 {
			t.Error("units are listed that do not run")
		}
		if c.args[1].([]string)[0] == "*.socket" {
			return []any{[]listedUnit{row("web.socket"), row("each.socket"), row("each@2.socket"), row("odd.socket")}}, nil
		}
		return []any{[]listedUnit{row("b.service"), row("a.service"), row("bad name.service")}}, nil
	})
	b.on("Get", func(c busCall) ([]any, error) {
		unit, _ := unitOf(c.path)
		type pair struct{ Type, Address string }
		value := map[string]any{"Listen": []pair{{"Stream", "[::]:80"}, {"FIFO", "/run/f"}}, "Accept": unit != "web.socket", "Triggers": []string{}}
		if unit == "web.socket" {
			value["Triggers"] = []string{"nginx.service"}
		}
		if unit == "odd.socket" {
			value["Listen"] = "nothing"
		}
		return []any{dbus.MakeVariant(value[c.args[1].(string)])}, nil
	})
	s := b.client(Options{})
	running, err := s.Running(t.Context())
	if d := cmp.Diff([]string{"a.service", "b.service"}, running); d != "" || err != nil {
		t.Errorf("%v: %s", err, d)
	}
	list, problems, err := s.Sockets(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	on := []attach.Listening{{Protocol: "tcp6", Address: "::", Port: 80, Reach: attach.ReachNetwork}}
	want := []attach.SocketUnit{
		{Name: "each.socket", Service: "each@.service", Listen: on},
		{Name: "each@2.socket", Service: "each@.service", Listen: on},
		{Name: "web.socket", Service: "nginx.service", Listen: on},
	}
	if d := cmp.Diff(want, list); d != "" {
		t.Error(d)
	}
	if len(problems) != 1 || problems["odd.socket"] == nil {
		t.Errorf("problems: %v", problems)
	}
	b.on("ListUnitsByPatterns", func(busCall) ([]any, error) {
		return nil, busError("org.freedesktop.DBus.Error.AccessDenied", "no")
	})
	if _, err := s.Running(t.Context()); err == nil {
		t.Error("a systemd that refuses runs nothing")
	}
	if _, _, err := s.Sockets(t.Context()); err == nil {
		t.Error("a systemd that refuses holds no sockets")
	}
}
