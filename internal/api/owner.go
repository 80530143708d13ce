package api

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// daemonUnit is the service that aaunitd is on a host, and daemonName what its process is
// called.
const (
	daemonUnit = "aaunitd.service"
	daemonName = "aaunitd"
)

// process is what there is to know of a process that has the bus name, or wants it. That
// it runs as root, as the bus asks of whoever has the name, says little: so does many a
// service that is confined.
type process struct {
	pid uint32
	// program is what it executes, and group its control group; "" where that could not
	// be read.
	program, group string
	// looks says whether it is root's and has the daemon's name. Anything can have that, but
	// not what is by chance the next process.
	looks attach.Tri
}

// lookAt reads from /proc what a process is. Everybody may read its control group, name
// and user, but where /proc hides other users' processes; its program only who may trace it.
func lookAt(pid uint32) process {
	p := process{pid: pid}
	dir := fmt.Sprintf("/proc/%d/", pid)
	if program, err := os.Readlink(dir + "exe"); err == nil {
		p.program = strings.TrimSuffix(program, " (deleted)") // by an upgrade
	}
	if data, err := os.ReadFile(dir + "cgroup"); err == nil {
		p.group = controlGroup(string(data))
	}
	if data, err := os.ReadFile(dir + "status"); err == nil {
		p.looks = looks(string(data))
	}
	return p
}

// looks reads proc_pid_status(5).
func looks(status string) attach.Tri {
	name, user := false, false
	for line := range strings.Lines(status) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "Name":
			name = strings.TrimSpace(value) == daemonName
		case "Uid": // real, effective, saved, file system
			user = slices.Equal(strings.Fields(value), []string{"0", "0", "0", "0"})
		}
	}
	if name && user {
		return attach.Yes
	}
	return attach.No
}

// controlGroup finds in /proc/PID/cgroup (cgroups(7)) the one that systemd has given a
// process.
func controlGroup(text string) (group string) {
	for line := range strings.Lines(text) {
		_, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		switch controllers, name, _ := strings.Cut(rest, ":"); controllers {
		case "name=systemd": // where systemd has one of version 1
			return name
		case "":
			group = name
		}
	}
	return group
}

// daemon reports whether the process is one of aaunitd.service. A unit to which its
// control group is delegated can make one of that name, but below its own.
func (p process) daemon() bool {
	slices, unit := path.Split(p.group)
	for slice := range strings.SplitSeq(strings.Trim(slices, "/"), "/") {
		if slice != "" && !strings.HasSuffix(slice, ".slice") {
			return false
		}
	}
	return unit == daemonUnit && strings.HasPrefix(p.group, "/")
}

func (p process) String() string {
	return fmt.Sprintf("PID %d (%s in control group %s)", p.pid, unknown(p.program), unknown(p.group))
}

func unknown(s string) string {
	if s == "" {
		return "unknown"
	}
	return clean(s)
}

// givesWay reports whether an aaunitd ends where the owner of the bus name is there
// before: where that is another aaunitd, as one finds that is started by hand. By its name
// anything can pass for one, so aaunitd.service, which has to keep the units as they
// are, gives way to none but itself.
func (p process) givesWay(owner process) bool {
	return owner.daemon() || !p.daemon() && owner.program != "" && path.Base(owner.program) == path.Base(p.program)
}

// errTaken says that somebody has the bus name who is not known to be another aaunitd.
var errTaken = errors.New("cannot take the bus name " + BusName + ", which another process has")

// taken says whose the bus name is: ErrNameTaken where it is another aaunitd, and errTaken
// where it is not known to be one.
func (s *service) taken(ctx context.Context, conn *dbus.Conn) error {
	ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
	defer cancel()
	pid, err := processOf(ctx, conn, BusName)
	if err != nil {
		return fmt.Errorf("%w; which one could not be told: %w", errTaken, err)
	}
	owner := s.lookAt(pid)
	if s.self.givesWay(owner) {
		return fmt.Errorf("%w It is %s", ErrNameTaken, owner)
	}
	return fmt.Errorf("%w: %s. This aaunitd keeps the units, and cannot be asked until that one ends; systemctl status %d says what it is", errTaken, owner, pid)
}

// processOf asks the bus for the process behind a name.
func processOf(ctx context.Context, conn *dbus.Conn, name string) (pid uint32, err error) {
	err = conn.BusObject().CallWithContext(ctx, bus.Driver+".GetConnectionUnixProcessID", 0, name).Store(&pid)
	if err == nil && pid == 0 {
		err = errors.New("the bus does not know its process")
	}
	return pid, err
}

// prove makes sure that who has the name is aaunitd: the process of its service, or, while
// that does not run, one that somebody who has logged in has started. Any root process can
// take the name when aaunitd ends, and could then answer that all is well: of a service, of a
// container's scope, or of nothing that is there any more. The bus tells which process made
// the connection, and that one can have handed it to another and ended; its number is some
// other process's in the end.
func (c *Client) prove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quickTimeout)
	defer cancel()
	for {
		was := c.owner
		err := c.proveOwner(ctx)
		if err == nil {
			return nil
		}
		// It may have been started again meanwhile.
		if e := c.ask(ctx); e != nil {
			return fmt.Errorf("%w: it has just ended: %w; systemctl status %s says why", ErrNoDaemon, e, daemonUnit)
		}
		if c.owner == was {
			return err
		}
	}
}

func (c *Client) proveOwner(ctx context.Context) error {
	pid, err := processOf(ctx, c.conn, c.owner)
	if err != nil {
		return fmt.Errorf("%w: the bus does not tell whose the name %s is: %w", ErrNotProved, BusName, err)
	}
	if c.lookAt(pid).daemon() {
		return nil
	}
	// /proc may hide it, or be another one; systemd knows.
	doubt := func(err error) error {
		return fmt.Errorf("%w: whether the bus name %s is that of %s could not be told: %w; systemctl status %d says whose it is", ErrNotProved, BusName, daemonUnit, err, pid)
	}
	var main dbus.Variant
	unit := c.conn.Object(systemdName, dbus.ObjectPath(systemdPath+"/unit/"+escapeLabel(daemonUnit)))
	if err := unit.CallWithContext(ctx, "org.freedesktop.DBus.Properties.Get", 0, systemdName+".Service", "MainPID").Store(&main); err != nil {
		return doubt(err)
	}
	running, ok := main.Value().(uint32)
	if !ok {
		return doubt(errors.New("systemd does not tell its main process"))
	}
	if running == pid {
		return nil
	}
	in := ""
	if running == 0 {
		if in, err = c.unitByPID(ctx, pid); err != nil {
			return doubt(err)
		}
		switch p := c.lookAt(pid); { // after systemd was asked: a process that has ended says nothing
		case in == "":
			in = " of no unit"
		case !ofLogin(in):
			in = " of " + in
		case p.looks == attach.Yes:
			return nil
		case p.looks == attach.CouldNotTell:
			return doubt(errors.New("/proc does not show its process"))
		default:
			in = " of " + in + ", not called " + daemonName + " or not root's"
		}
	}
	return fmt.Errorf("%w: the bus name %s belongs to PID %d%s, which is not %s: what it answers is not to be believed; systemctl status %d says what it is",
		ErrNotProved, BusName, pid, in, daemonUnit, pid)
}

// ofLogin reports whether a unit is what somebody runs who has logged in: the scope of a
// session, or the manager of a user, which has units of its own below it.
func ofLogin(unit string) bool {
	session, scope := strings.CutPrefix(unit, "session-")
	user, service := strings.CutPrefix(unit, "user@")
	return scope && strings.HasSuffix(session, ".scope") || service && strings.HasSuffix(user, ".service")
}

// unitByPID asks systemd for the unit of a process, "" none.
func (c *Client) unitByPID(ctx context.Context, pid uint32) (string, error) {
	var path dbus.ObjectPath
	err := c.conn.Object(systemdName, systemdPath).CallWithContext(ctx, systemdManager+".GetUnitByPID", 0, pid).Store(&path)
	var e dbus.Error
	if errors.As(err, &e) && e.Name == errorNoUnitForPID {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	unit, ok := unescapeLabel(strings.TrimPrefix(string(path), systemdPath+"/unit/"))
	if !ok {
		return "", fmt.Errorf("systemd names its unit %s", path)
	}
	return unit, nil
}
