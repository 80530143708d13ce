package api

import (
	"context"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// callExplain answers from what is known; root is also told what an attach of
// units that are not attached would come to, which has to be found out. Denials are
// for those who may read them: the answer says so, and is not refused for it.
func callExplain(ctx context.Context, r *request) ([]any, *dbus.Error) {
	units := r.body[0].([]string)
	if failed := checkUnits(units); failed != nil {
		return nil, failed
	}
	if r.root() {
		ctx, cancel := context.WithTimeout(ctx, planTimeout)
		defer cancel()
		return reply(r.session.manager.Explain(ctx, units, true))
	}
	// It takes the price of the names, too.
	hidden := ""
	if failed := r.mayReadDenials(ctx, units); failed != nil {
		if failed.Name != errorAccessDenied {
			return nil, failed
		}
		if failed := r.pay(units); failed != nil {
			return nil, failed
		}
		hidden = "only root and members of group " + admName + " are told"
	}
	return reply(publicCases(r.session.manager.Explain(ctx, units, false), hidden))
}

// publicCases leaves out what is for root, and where hidden says why the denials and
// what else comes from the kernel's records.
func publicCases(r attach.CaseReport, hidden string) attach.CaseReport {
	cases := make([]attach.Case, len(r.Cases))
	for i, c := range r.Cases {
		if c.Status != nil {
			s := publicStatus(*c.Status)
			c.Status = &s
		}
		if c.Missing != nil {
			if public := publicReasons([]attach.Reason{*c.Missing}); len(public) == 1 {
				c.Missing = &public[0]
			}
		}
		c.Plan = nil
		if hidden != "" {
			c.Denials, c.LeftOut, c.Sockets, c.Hidden = nil, 0, nil, hidden
			if c.Start != nil {
				start := c.Start.WithoutRecord()
				c.Start = &start
			}
		}
		cases[i] = c
	}
	r.Cases = cases
	return r
}

// Explain asks what is known of units, for attach.Explain.
func (c *Client) Explain(ctx context.Context, units []string) (attach.CaseReport, error) {
	var out attach.CaseReport
	err := c.fetch(ctx, planTimeout, &out, Path, ManagerInterface, "Explain", list(units))
	return out, err
}
