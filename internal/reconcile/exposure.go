package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// maxExposures bounds the services of a list: instances of templates can be many.
const maxExposures = 1000

// Exposed lists the services that no attachment names and that run, or would be
// started by systemd, without a profile that confines them, the most exposed first.
func (l *Loop) Exposed(ctx context.Context) (attach.ExposureReport, error) {
	if l.processes == nil {
		return attach.ExposureReport{}, errors.New("cannot look at services: this aaunitd has nothing to look with")
	}
	r := attach.ExposureReport{Host: l.host(ctx), Services: []attach.Exposure{}, At: time.Now()}
	names, err := l.systemd.Running(ctx)
	if err != nil {
		return r, err
	}
	sockets, bad, err := l.systemd.Sockets(ctx)
	if err != nil {
		r.Unknown = append(r.Unknown, err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		r.Unknown = append(r.Unknown, fmt.Sprintf("cannot tell where %s listens: %v", name, bad[name]))
	}
	by := map[string][]attach.SocketUnit{}
	for _, s := range sockets {
		if s.Service != "" {
			by[s.Service] = append(by[s.Service], s)
			names = append(names, s.Service)
		}
	}
	slices.Sort(names)
	names = slices.DeleteFunc(slices.Compact(names), func(unit string) bool { return !strings.HasSuffix(unit, ".service") || l.isAttached(unit) })
	if len(names) > maxExposures {
		r.Unknown = append(r.Unknown, fmt.Sprintf("%d services run, of which %d were looked at", len(names), maxExposures))
		names = names[:maxExposures]
	}

	units, problems := make([]attach.Unit, len(names)), make([]error, len(names))
	each(len(names), func(i int) { units[i], problems[i] = l.systemd.Glance(ctx, names[i]) })
	var running []attach.Unit
	for i, u := range units {
		switch {
		case problems[i] != nil:
			r.Unknown = append(r.Unknown, problems[i].Error())
		case u.ID != "" && u.ID != names[i] && (slices.Contains(names, u.ID) || l.isAttached(u.ID)):
			// an alias of one that is looked at, or attached
		case u.Found():
			running = append(running, u)
		}
	}
	r.Looked = len(running)
	for i, s := range l.processes.Look(ctx, running) {
		u := running[i]
		if attach.IsTemplate(u.ID) {
			s.Problems = append(s.Problems, "systemd reads no template: what an instance of it starts with is not known")
		}
		e, bare := attach.Expose(u, s, by[u.ID])
		switch {
		case !bare:
			// One without any process has nothing that a profile could be on.
			if len(s.Processes) > 0 || u.Settings.Profile != "" {
				r.Confined++
			} else {
				r.Quiet++
			}
			continue
		case e.Class == attach.ExposedNot:
			r.Quiet++
			continue
		}
		choice, _ := attach.Resolve("", u, l.apparmor)
		e.Begin(choice.Profile.Name)
		r.Services = append(r.Services, e)
	}
	attach.SortExposures(r.Services)
	return r, ctx.Err()
}

// isAttached reports whether an attachment names a unit, or its template or prefix.
func (l *Loop) isAttached(unit string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.alias[unit]; ok {
		unit = c
	}
	_, ok := l.targets[unit]
	return ok
}
