package api

import (
	"errors"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

func TestControlGroupOfTheDaemon(t *testing.T) {
	for text, want := range map[string]bool{
		"0::/system.slice/aaunitd.service\n":                                            true,
		"0::/aaunitd.service\n":                                                         true,
		"0::/my.slice/my-own.slice/aaunitd.service\n":                                   true,
		"12:pids:/x\n1:name=systemd:/system.slice/aaunitd.service\n0::/y\n":             true,
		"0::/system.slice/b.service\n":                                                  false,
		"0::/system.slice/b.service/aaunitd.service\n":                                  false,
		"0::/system.slice/b.service/system.slice/aaunitd.service\n":                     false,
		"0::/user.slice/user-0.slice/user@0.service/app.slice/aaunitd.service\n":        false,
		"0::/system.slice/aaunitd.service/below\n":                                      false,
		"0::/../system.slice/aaunitd.service\n":                                         false,
		"0::/system.slice/aaunitd.service\n1:name=systemd:/system.slice/cron.service\n": false,
		"5:cpu:/system.slice/aaunitd.service\n":                                         false,
		"0::/\n":                                                                        false,
		"":                                                                              false,
	} {
		p := process{group: controlGroup(text)}
		if p.daemon() != want {
			t.Errorf("%q is %q: %v, want %v", text, p.group, !want, want)
		}
	}
}

// One that is started by hand ends beside another; the service goes on whoever has the
// name, since a name for a program is had by anybody.
func TestWhoGivesWay(t *testing.T) {
	const service, shell, other = "/system.slice/aaunitd.service", "/user.slice/user-0.slice/session-1.scope", "/system.slice/b.service"
	for _, c := range []struct {
		self, owner process
		want        bool
	}{
		{process{pid: 0, program: "/root/aaunitd", group: shell}, process{pid: 1, program: "/usr/sbin/aaunitd", group: service}, true},
		{process{pid: 0, program: "/root/aaunitd", group: shell}, process{pid: 1, program: "", group: service}, true},
		{process{pid: 0, program: "/root/aaunitd", group: shell}, process{pid: 1, program: "/usr/sbin/aaunitd", group: shell}, true},
		{process{pid: 0, program: "/root/aaunitd", group: shell}, process{pid: 1, program: "/usr/bin/python3", group: other}, false},
		{process{pid: 0, program: "/root/aaunitd", group: shell}, process{pid: 1, program: "", group: ""}, false},
		{process{pid: 0, program: "/usr/sbin/aaunitd", group: service}, process{pid: 1, program: "/usr/sbin/aaunitd", group: service}, true},
		{process{pid: 0, program: "/usr/sbin/aaunitd", group: service}, process{pid: 1, program: "/usr/sbin/aaunitd", group: other}, false},
		{process{pid: 0, program: "/usr/sbin/aaunitd", group: service}, process{pid: 1, program: "/tmp/aaunitd", group: shell}, false},
		{process{pid: 0, program: "/usr/sbin/aaunitd", group: service}, process{pid: 1, program: "", group: ""}, false},
	} {
		if got := c.self.givesWay(c.owner); got != c.want {
			t.Errorf("%s beside %s gives way: %v", c.self, c.owner, got)
		}
	}
}

// Who waited in the queue for the name has it when aaunitd starts again. That ends no
// aaunitd, and holds up no start; once the name is free it is taken.
func TestTheNameIsSomebodyElses(t *testing.T) {
	b := startBus(t)
	squatter := b.connect(t)
	if _, err := squatter.RequestName(BusName, 0); err != nil {
		t.Fatal(err)
	}
	log := make(lines, 1000)
	r := startService(t, b, newFakeManager(), func(s *service) {
		s.log = slog.New(slog.NewTextHandler(log, nil))
		s.self = process{program: "/usr/sbin/aaunitd", group: "/system.slice/aaunitd.service"}
		s.lookAt = func(pid uint32) process {
			return process{pid: pid, program: "/usr/sbin/aaunitd", group: "/system.slice/b.service"}
		}
	})
	if line := <-log; !strings.Contains(line, "PID "+strconv.Itoa(os.Getpid())+" (/usr/sbin/aaunitd in control group /system.slice/b.service)") {
		t.Errorf("who has it is not said: %s", line)
	}
	if _, err := squatter.ReleaseName(BusName); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for r.owner(t) == "" {
		if time.Now().After(deadline) {
			t.Fatal("the name is free, and was not taken")
		}
		time.Sleep(20 * time.Millisecond)
	}
	if rep, err := r.client(t, 0).Status(t.Context(), nil); err != nil || rep.Host.Enabled != attach.Yes {
		t.Errorf("%+v, %v", rep, err)
	}
}

// keeper is a systemd that knows the daemon's main process, and the unit of any other.
type keeper struct {
	main uint32
	unit string // "" none
}

func (k keeper) Get(iface, property string) (dbus.Variant, *dbus.Error) {
	if iface != "org.freedesktop.systemd1.Service" || property != "MainPID" {
		return dbus.Variant{}, dbus.NewError(errorUnknownProperty, nil)
	}
	return dbus.MakeVariant(k.main), nil
}

func (k keeper) GetUnitByPID(uint32) (dbus.ObjectPath, *dbus.Error) {
	if k.unit == "" {
		return "/", dbus.NewError(errorNoUnitForPID, []any{"PID does not belong to any loaded unit."})
	}
	return dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + escapeLabel(k.unit)), nil
}

// What any root process answers under the daemon's name is not believed.
func TestOnlyTheDaemonIsBelieved(t *testing.T) {
	r := startRig(t)
	self := uint32(os.Getpid())
	systemd := r.connect(t)
	for _, c := range []struct {
		name  string
		group string // as /proc tells it
		looks attach.Tri
		keeper
		says string // "" is believed
	}{
		{"no systemd, and its control group is the service's", "/system.slice/aaunitd.service", attach.Yes, keeper{}, ""},
		{"no systemd, and its control group is hidden", "", attach.Yes, keeper{}, "could not be told"},
		{"its control group is hidden, and it is the main process", "", attach.Yes, keeper{main: self}, ""},
		{"the service runs, and is another process", "/system.slice/b.service", attach.Yes, keeper{main: 1, unit: "b.service"}, "which is not aaunitd.service"},
		{"the service runs, and it is of a session", "", attach.Yes, keeper{main: 1, unit: "session-1.scope"}, "which is not aaunitd.service"},
		{"the service does not run, and it is of another", "/system.slice/b.service", attach.Yes, keeper{unit: "b.service"}, "of b.service"},
		{"the service does not run, and it is of a session", "", attach.Yes, keeper{unit: "session-1.scope"}, ""},
		{"the service does not run, and it is of a desktop", "", attach.Yes, keeper{unit: "user@1000.service"}, ""},
		{"the service does not run, and it is of something that a user's manager has started", "/user.slice/user-0.slice/user@0.service/app.slice/aaunitd.service", attach.Yes, keeper{unit: "user@0.service"}, ""},
		{"the service does not run, and the process has ended", "", attach.CouldNotTell, keeper{}, "of no unit"},
		{"the service does not run, and it is of no unit", "/", attach.Yes, keeper{}, "of no unit"},
		{"the service does not run, and it is of a container", "/system.slice/docker-1.scope", attach.Yes, keeper{unit: "docker-1.scope"}, "of docker-1.scope"},
		{"the service does not run, and it is of a scope that is named like a session", "", attach.Yes, keeper{unit: "my-session-1.scope"}, "of my-session-1.scope"},
		{"the service does not run, and it has the number of a shell now", "", attach.No, keeper{unit: "session-1.scope"}, "not called aaunitd"},
		{"the service does not run, and /proc hides it", "", attach.CouldNotTell, keeper{unit: "session-1.scope"}, "could not be told"},
	} {
		if !strings.HasPrefix(c.name, "no systemd") {
			for object, iface := range map[dbus.ObjectPath]string{
				systemdPath: systemdManager, "/org/freedesktop/systemd1/unit/aaunitd_2eservice": "org.freedesktop.DBus.Properties",
			} {
				if err := systemd.Export(c.keeper, object, iface); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := systemd.RequestName(systemdName, dbus.NameFlagDoNotQueue); err != nil {
				t.Fatal(err)
			}
		}
		client, err := Dial(t.Context(), DialOptions{Address: r.address, lookAt: func(pid uint32) process {
			if pid != self {
				t.Errorf("%s: PID %d was looked at", c.name, pid)
			}
			return process{pid: pid, group: c.group, looks: c.looks}
		}})
		switch {
		case err == nil:
			client.Close()
			if c.says != "" {
				t.Errorf("%s: it is believed", c.name)
			}
		case c.says == "", !errors.Is(err, ErrNoDaemon), !errors.Is(err, ErrNotProved), !strings.Contains(err.Error(), c.says):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestLooksLikeTheDaemon(t *testing.T) {
	for text, want := range map[string]attach.Tri{
		"Name:\taaunitd\nUmask:\t0022\nUid:\t0\t0\t0\t0\n":        attach.Yes,
		"Name:\taaunitd\nUmask:\t0022\nUid:\t1000\t0\t0\t0\n":     attach.No,
		"Name:\taaunitctl\nUmask:\t0022\nUid:\t0\t0\t0\t0\n":      attach.No,
		"Name:\tbash\\nName:\taaunitd\nUid:\t0\t0\t0\t0\n":        attach.No,
		"Name:\taaunitd\nUid:\t1000\t1000\t1000\t1000\nGid:\t0\n": attach.No,
	} {
		if got := looks(text); got != want {
			t.Errorf("%q looks like it: %v, want %v", text, got, want)
		}
	}
	if p := lookAt(uint32(os.Getpid())); p.looks != attach.No || p.program == "" || p.group == "" {
		t.Errorf("this test is %+v", p)
	}
	if p := lookAt(1 << 30); p.looks != attach.CouldNotTell { // above the kernel's highest PID
		t.Errorf("no process is %+v", p)
	}
}
