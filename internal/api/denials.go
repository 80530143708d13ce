package api

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// Who follows denials asks again and again, and each time is answered when there
// is something: WaitDenials. A signal would go to everybody, or would have to be
// kept for each who once asked, for as long as they do not read; here nothing is
// kept for anybody, who asks slowly is told merged what came meanwhile, and each
// answer is to a caller who was looked at.

// longestWait bounds a wait. Nobody hears that its caller has gone, so that this is
// also how long the place of such a one is taken (service.waiting).
const longestWait = 10 * time.Second

// admName is the group whose members may read the system's logs: in Debian those
// in /var/log, and the whole journal (journalctl(1)), which has these records too.
const admName = "adm"

func callDenials(ctx context.Context, r *request) ([]any, *dbus.Error) {
	units := r.body[0].([]string)
	if failed := r.mayReadDenials(ctx, units); failed != nil {
		return nil, failed
	}
	var since time.Time
	if us := r.body[1].(uint64); us > 0 {
		if us > 1<<62 {
			return nil, invalidArgs("since is microseconds since 1970, and no time is %d", us)
		}
		since = time.UnixMicro(int64(us))
	}
	return reply(r.session.manager.Denials(units, since))
}

func callWaitDenials(ctx context.Context, r *request) ([]any, *dbus.Error) {
	units, cursor := r.body[0].([]string), r.body[1].(string)
	if failed := r.mayReadDenials(ctx, units); failed != nil {
		return nil, failed
	}
	if len(cursor) > maxLength {
		return nil, invalidArgs("the cursor is longer than %d bytes", maxLength)
	}
	release, ok := r.session.waiting.take(r.uid)
	if !ok {
		return nil, fail(ErrorTooMany, "too many calls wait for denials; try again in %v", longestWait)
	}
	defer release()
	ctx, cancel := context.WithTimeout(ctx, longestWait)
	defer cancel()
	// What ends the daemon ends the wait too.
	defer context.AfterFunc(r.session.life, cancel)()
	return reply(r.session.manager.WaitDenials(ctx, units, cursor))
}

// mayReadDenials refuses everybody but root and members of adm: records name
// files, programs and processes. polkit is not asked. An administrator's password
// would be kept for minutes for whatever else runs in that session, and who may
// read logs is said by the group everywhere else on the system.
func (r *request) mayReadDenials(ctx context.Context, units []string) *dbus.Error {
	if failed := checkUnits(units); failed != nil {
		return failed
	}
	if r.root() {
		return nil
	}
	if failed := r.mayReadLogs(ctx, "read what was denied"); failed != nil {
		return failed
	}
	return r.pay(units)
}

// mayReadLogs refuses everybody but root and members of adm; what says what they may.
func (r *request) mayReadLogs(ctx context.Context, what string) *dbus.Error {
	if r.root() {
		return nil
	}
	adm, err := r.session.adm()
	if err != nil {
		return fail(errorAccessDenied, "only root may %s: there is no group %s (%v)", what, admName, err)
	}
	groups, err := r.session.groupsOf(ctx, r.sender, r.uid)
	switch {
	case err != nil:
		return fail(errorAccessDenied, "cannot tell the groups of the caller, and only root and members of group %s may %s: %v", admName, what, err)
	case !slices.Contains(groups, adm):
		return fail(errorAccessDenied, "only root and members of group %s may %s", admName, what)
	}
	return nil
}

// busGroups asks the bus which groups a caller had when it connected. A bus that
// does not tell (dbus before 1.13) leaves the user database, by the user that it
// does tell: the groups of the process itself would be found by its number only,
// which another process may have by then.
func busGroups(conn *dbus.Conn) func(context.Context, string, uint32) ([]uint32, error) {
	return func(ctx context.Context, sender string, uid uint32) ([]uint32, error) {
		ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
		defer cancel()
		var found map[string]dbus.Variant
		err := conn.BusObject().CallWithContext(ctx, bus.Driver+".GetConnectionCredentials", 0, sender).Store(&found)
		if err != nil {
			return nil, err
		}
		if v, told := found["UnixGroupIDs"]; told {
			if ids, ok := v.Value().([]uint32); ok {
				return ids, nil
			}
			return nil, errors.New("the bus does not tell its groups in numbers")
		}
		return groupsOfUser(uid)
	}
}

// groupsOfUser reads /etc/passwd and /etc/group: the daemon is built without cgo.
func groupsOfUser(uid uint32) ([]uint32, error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return nil, err
	}
	names, err := u.GroupIds()
	if err != nil {
		return nil, err
	}
	var out []uint32
	for _, name := range names {
		id, err := strconv.ParseUint(name, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("cannot read group %q of user %s", name, u.Username)
		}
		out = append(out, uint32(id))
	}
	return out, nil
}

func admGroup() (uint32, error) {
	g, err := user.LookupGroup(admName)
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	if err != nil || id == 0 {
		return 0, fmt.Errorf("its number is %q", g.Gid)
	}
	return uint32(id), nil
}

// Denials says what was denied to attached units from since on; the zero time is
// all that is known.
func (c *Client) Denials(ctx context.Context, units []string, since time.Time) (attach.DenialReport, error) {
	var out attach.DenialReport
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "Denials", list(units), microseconds(since))
	return out, err
}

// WaitDenials waits for what is denied after the answer that had the cursor. An
// answer can be empty.
func (c *Client) WaitDenials(ctx context.Context, units []string, cursor string) (attach.DenialReport, error) {
	var out attach.DenialReport
	err := c.fetch(ctx, quickTimeout, &out, Path, ManagerInterface, "WaitDenials", list(units), cursor)
	return out, err
}
