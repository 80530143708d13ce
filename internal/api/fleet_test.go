package api

import (
	"context"
	"testing"

	"github.com/godbus/dbus/v5"
)

// Lists and reports name processes and sockets: they are for who may read logs.
// Metrics are for all.
func TestWhoMaySeeProcesses(t *testing.T) {
	const adm = 4
	groups := map[uint32][]uint32{1000: {1000, adm}, 1001: {1001}}
	r := startService(t, startBus(t), newFakeManager(), func(s *service) {
		s.adm = func() (uint32, error) { return adm, nil }
		s.groups = func(*dbus.Conn) func(context.Context, string, uint32) ([]uint32, error) {
			return func(_ context.Context, _ string, uid uint32) ([]uint32, error) { return groups[uid], nil }
		}
	})
	for uid, want := range map[uint32]string{0: "", 1000: "", 1001: errorAccessDenied} {
		c := r.client(t, uid)
		exposed, err := c.Exposed(t.Context())
		if _, got := err, errorName(call(r.user(t, uid), Path, ManagerInterface+".ListUnconfined").Err); got != want {
			t.Errorf("uid %d, ListUnconfined: %q, want %q", uid, got, want)
		}
		if want == "" && (err != nil || len(exposed.Services) != 1 || exposed.Services[0].Class != "network") {
			t.Errorf("uid %d: %+v, %v", uid, exposed, err)
		}
		report, err := c.HostReport(t.Context())
		if got := errorName(call(r.user(t, uid), Path, ManagerInterface+".Report").Err); got != want {
			t.Errorf("uid %d, Report: %q, want %q", uid, got, want)
		}
		if want == "" && (err != nil || report.Machine.Name != "host") {
			t.Errorf("uid %d: %+v, %v", uid, report, err)
		}
		if m, err := c.Metrics(t.Context()); err != nil || m.Version != "7" || len(m.Units) != 1 {
			t.Errorf("uid %d, Metrics: %+v, %v", uid, m, err)
		}
	}
}
