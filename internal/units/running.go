package units

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/godbus/dbus/v5"

	"github.com/aaunit/aaunit/internal/attach"
)

// Running lists the services that have, or are about to have, processes, sorted.
func (s *Systemd) Running(ctx context.Context) ([]string, error) {
	list, err := s.listActive(ctx, "*.service")
	if err != nil {
		return nil, fmt.Errorf("cannot list the services that run: %w", err)
	}
	return list, nil
}

func (s *Systemd) listActive(ctx context.Context, glob string) (out []string, err error) {
	states := []string{"active", "reloading", "activating", "deactivating", "refreshing"}
	var found []listedUnit
	if err := s.call(ctx, s.wait.call, managerPath, managerIface+".ListUnitsByPatterns", []any{states, []string{glob}}, &found); err != nil {
		return nil, err
	}
	for _, u := range found {
		if fullName(u.Name) == nil {
			out = append(out, u.Name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Sockets lists the .socket units that listen, with the service that each starts.
// One that could not be read is in problems, by name.
func (s *Systemd) Sockets(ctx context.Context) (list []attach.SocketUnit, problems map[string]error, err error) {
	names, err := s.listActive(ctx, "*.socket")
	if err != nil {
		return nil, nil, fmt.Errorf("cannot list the sockets that systemd holds: %w", err)
	}
	problems = map[string]error{}
	for _, name := range names {
		u, err := s.socket(ctx, name)
		if err != nil {
			problems[name] = err
			continue
		}
		list = append(list, u)
	}
	return list, problems, nil
}

// Forked gives the processes that systemd has forked itself for the unit whose control
// group it is, or lies in, and follows: the main and the control process, as far as there
// are any. The main process can also be one that the service itself has named, by MAINPID= of
// sd_notify(3) or its PIDFile=. Only units that are loaded are looked for.
func (s *Systemd) Forked(ctx context.Context, group string) (pids []int, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot tell which processes of control group %q systemd has started: %w", group, err)
		}
	}()
	var path dbus.ObjectPath
	if err := s.call(ctx, s.wait.call, managerPath, managerIface+".GetUnitByControlGroup", []any{group}, &path); err != nil {
		return nil, err
	}
	unit, ok := unitOf(path)
	if !ok {
		return nil, fmt.Errorf("systemd names its unit %s", path)
	}
	iface, ok := map[string]string{
		"service": serviceIface, "socket": socketIface, "mount": "org.freedesktop.systemd1.Mount", "swap": "org.freedesktop.systemd1.Swap",
	}[unit[strings.LastIndexByte(unit, '.')+1:]]
	if !ok {
		return nil, nil // systemd starts nothing for others
	}
	p, err := s.properties(ctx, unit, iface)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"MainPID", "ControlPID"} {
		if pid := read[uint32](p, name); pid != 0 {
			pids = append(pids, int(pid))
		}
	}
	return pids, p.err
}

const socketIface = "org.freedesktop.systemd1.Socket"

func (s *Systemd) socket(ctx context.Context, name string) (u attach.SocketUnit, err error) {
	get := func(iface, property string, into any) error {
		var v dbus.Variant
		if err := s.call(ctx, s.wait.call, pathOf(name), propsIface+".Get", []any{iface, property}, &v); err != nil {
			return err
		}
		if err := dbus.Store([]any{v.Value()}, into); err != nil {
			return fmt.Errorf("property %s has the type %s", property, v.Signature())
		}
		return nil
	}
	var listen []struct{ Type, Address string }
	var accept bool
	var triggers []string
	for _, p := range []struct {
		iface, name string
		into        any
	}{{socketIface, "Listen", &listen}, {socketIface, "Accept", &accept}, {unitIface, "Triggers", &triggers}} {
		if err := get(p.iface, p.name, p.into); err != nil {
			return u, err
		}
	}
	u.Name = name
	switch {
	case accept:
		// Each connection gets an instance of the template: systemd.socket(5).
		u.Service = strings.TrimSuffix(name, ".socket") + "@.service"
		if at := strings.IndexByte(name, '@'); at >= 0 {
			u.Service = name[:at] + "@.service"
		}
	case len(triggers) > 0:
		u.Service = triggers[0]
	}
	for _, l := range listen {
		if known, ok := listening(l.Type, l.Address); ok {
			u.Listen = append(u.Listen, known)
		}
	}
	return u, nil
}

// listening reads what systemd says of one of Listen…= (socket_port_type_to_string
// and sockaddr_pretty in its sources); ok is false for what is no socket.
func listening(kind, address string) (l attach.Listening, ok bool) {
	protocol := map[string]string{"Stream": "tcp", "Datagram": "udp", "SequentialPacket": "sctp"}[kind]
	if protocol == "" {
		return l, false // FIFO, Special, Netlink, MessageQueue, USBFunction
	}
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@") {
		return attach.Listening{Protocol: "unix", Address: address, Reach: attach.ReachUnix}, true
	}
	if strings.HasPrefix(address, "vsock:") {
		return attach.Listening{Protocol: "vsock", Address: strings.TrimPrefix(address, "vsock:"), Reach: attach.ReachNetwork}, true
	}
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		// It listens, and where is not understood.
		return attach.Listening{Protocol: protocol, Address: address}, true
	}
	l = attach.Listening{Protocol: protocol, Address: ap.Addr().String(), Port: int(ap.Port()), Reach: attach.ReachNetwork}
	if ap.Addr().Is6() {
		l.Protocol += "6"
	}
	if ap.Addr().Unmap().IsLoopback() {
		l.Reach = attach.ReachLoopback
	}
	return l, true
}
