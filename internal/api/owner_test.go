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
		{process{0, "/root/aaunitd", shell}, process{1, "/usr/sbin/aaunitd", service}, true},
		{process{0, "/root/aaunitd", shell}, process{1, "", service}, true},
		{process{0, "/root/aaunitd", shell}, process{1, "/usr/sbin/aaunitd", shell}, true},
		{process{0, "/root/aaunitd", shell}, process{1, "/usr/bin/python3", other}, false},
		{process{0, "/root/aaunitd", shell}, process{1, "", ""}, false},
		{process{0, "/usr/sbin/aaunitd", service}, process{1, "/usr/sbin/aaunitd", service}, true},
		{process{0, "/usr/sbin/aaunitd", service}, process{1, "/usr/sbin/aaunitd", other}, false},
		{process{0, "/usr/sbin/aaunitd", service}, process{1, "/tmp/aaunitd", shell}, false},
		{process{0, "/usr/sbin/aaunitd", service}, process{1, "", ""}, false},
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
		s.lookAt = func(pid uint32) process { return process{pid, "/usr/sbin/aaunitd", "/system.slice/b.service"} }
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
		keeper
		says string // "" is believed
	}{
		{"no systemd, and its control group is the service's", "/system.slice/aaunitd.service", keeper{}, ""},
		{"no systemd, and its control group is hidden", "", keeper{}, "could not be told"},
		{"its control group is hidden, and it is the main process", "", keeper{main: self}, ""},
		{"the service runs, and is another process", "/system.slice/b.service", keeper{main: 1, unit: "b.service"}, "which is not aaunitd.service"},
		{"the service runs, and it is of a session", "", keeper{main: 1, unit: "session-1.scope"}, "which is not aaunitd.service"},
		{"the service does not run, and it is of another", "/system.slice/b.service", keeper{unit: "b.service"}, "of b.service"},
		{"the service does not run, and it is of a session", "", keeper{unit: "session-1.scope"}, ""},
		{"the service does not run, and it is of a desktop", "", keeper{unit: "user@1000.service"}, ""},
		{"the service does not run, and it is of no unit", "", keeper{}, ""},
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
			return process{pid: pid, group: c.group}
		}})
		switch {
		case err == nil:
			client.Close()
			if c.says != "" {
				t.Errorf("%s: it is believed", c.name)
			}
		case c.says == "", !errors.Is(err, ErrNoDaemon), !strings.Contains(err.Error(), c.says):
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
