package api

import (
	"context"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/aaunit/aaunit/internal/attach"
)

// What a fleet is watched by: metrics, which say no more than Describe says to
// everybody, and lists and reports, which name programs, sockets and processes.

// lookTimeout bounds a look at the processes of all services.
const lookTimeout = 2 * time.Minute

// callMetrics answers everybody: units, verdicts and codes can be learnt from
// Describe, and that something was denied is counted, not told.
func callMetrics(_ context.Context, r *request) ([]any, *dbus.Error) {
	return reply(r.session.manager.Metrics())
}

func callExposed(ctx context.Context, r *request) ([]any, *dbus.Error) {
	return r.forWhoReadsLogs(ctx, "see the processes of services", func(ctx context.Context) (any, error) { return r.session.manager.Exposed(ctx) })
}

func callHostReport(ctx context.Context, r *request) ([]any, *dbus.Error) {
	return r.forWhoReadsLogs(ctx, "read the report", func(ctx context.Context) (any, error) { return r.session.manager.HostReport(ctx) })
}

// forWhoReadsLogs answers root and members of adm, as for denials: it is about
// processes and what they do.
func (r *request) forWhoReadsLogs(ctx context.Context, what string, work func(context.Context) (any, error)) ([]any, *dbus.Error) {
	if failed := r.mayReadLogs(ctx, what); failed != nil {
		return nil, failed
	}
	release, ok := r.session.looking.take(r.uid)
	if !ok {
		return nil, fail(ErrorTooMany, "too many calls are being worked on; wait for one to end")
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	v, err := work(ctx)
	if err != nil {
		return nil, fail(ErrorFailed, "%v", err)
	}
	return reply(v)
}

// Metrics asks for the numbers of the daemon.
func (c *Client) Metrics(ctx context.Context) (attach.Metrics, error) {
	var out attach.Metrics
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "Metrics")
	return out, err
}

// Exposed lists services that no attachment names and that run without a profile.
func (c *Client) Exposed(ctx context.Context) (attach.ExposureReport, error) {
	var out attach.ExposureReport
	err := c.fetch(ctx, lookTimeout, &out, Path, ManagerInterface, "ListUnconfined")
	return out, err
}

// HostReport asks for all that there is to report of the host.
func (c *Client) HostReport(ctx context.Context) (attach.HostReport, error) {
	var out attach.HostReport
	err := c.fetch(ctx, lookTimeout, &out, Path, ManagerInterface, "Report")
	return out, err
}
