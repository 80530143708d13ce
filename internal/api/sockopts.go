package api

import (
	"context"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// callSocketOptions is for those who may read denials: what was seen names programs
// and processes, too.
func callSocketOptions(ctx context.Context, r *request) ([]any, *dbus.Error) {
	units := r.body[0].([]string)
	if failed := r.mayReadDenials(ctx, units); failed != nil {
		return nil, failed
	}
	return reply(r.session.manager.SocketOptions(units))
}

func callChangeSockets(ctx context.Context, r *request) ([]any, *dbus.Error) {
	req, failed := decodeRequest(r.body[0].([]string), r.body[1].(map[string]dbus.Variant), socketOptions)
	if failed != nil {
		return nil, failed
	}
	if req.Sockets == nil {
		return nil, invalidArgs("it is not said what to change")
	}
	if err := req.Sockets.Check(); err != nil {
		return nil, invalidArgs("%v", err)
	}
	return r.begin(ctx, req, r.session.manager.ChangeSockets)
}

// SocketOptions says what is known of the socket options of attached units.
func (c *Client) SocketOptions(ctx context.Context, units []string) (attach.SocketReport, error) {
	var out attach.SocketReport
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "SocketOptions", list(units))
	return out, err
}

// ChangeSockets changes lists and modes as r.Sockets says, and waits until it is so.
func (c *Client) ChangeSockets(ctx context.Context, r attach.Request, progress func(attach.Event)) ([]attach.Outcome, error) {
	return c.operate(ctx, "ChangeSocketOptions", r, progress)
}
