package api

import (
	"context"
	"errors"
	"fmt"
	"os/user"
	"strconv"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/bus"
	"github.com/godbus/dbus/v5"
)

// The names of polkit, and what it is asked with; see the reference of
// org.freedesktop.PolicyKit1.Authority.
const (
	polkitName   = "org.freedesktop.PolicyKit1"
	polkitPath   = "/org/freedesktop/PolicyKit1/Authority"
	polkitCheck  = "org.freedesktop.PolicyKit1.Authority.CheckAuthorization"
	polkitCancel = "org.freedesktop.PolicyKit1.Authority.CancelCheckAuthorization"

	polkitAllowUserInteraction = uint32(1)
)

const (
	credentialsTimeout = 10 * time.Second
	polkitTimeout      = 30 * time.Second // polkit may have to be started first
	passwordTimeout    = 2 * time.Minute  // somebody types
)

// authorize refuses the call unless the caller is root or polkit says yes to
// the action. Everything that is not a clear yes is a no.
func (r *request) authorize(ctx context.Context, action string) *dbus.Error {
	if r.root() {
		return nil
	}
	release, ok := r.session.asking.take(r.uid)
	if !ok {
		return fail(ErrorTooMany, "too many calls of this user wait for polkit")
	}
	defer release()
	authorized, challenge, err := r.session.askPolkit(ctx, r.sender, action, r.interactive)
	switch {
	case err != nil:
		return fail(ErrorNoPolkit, "cannot ask polkit whether the caller may do this: %v", err)
	case authorized:
		return nil
	case challenge && !r.interactive:
		return fail(errorInteractive, "polkit would ask for a password for %s, and the caller did not allow that", action)
	}
	return fail(ErrorNotAuthorized, "polkit does not allow this user %s", action)
}

// polkitSubject is the caller as polkit knows it: by the name on the bus, which
// no other process can take over, unlike a process id.
type polkitSubject struct {
	Kind    string
	Details map[string]dbus.Variant
}

func (s *session) askPolkit(ctx context.Context, sender, action string, interactive bool) (authorized, challenge bool, err error) {
	flags, limit := uint32(0), polkitTimeout
	if interactive {
		flags, limit = polkitAllowUserInteraction, passwordTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticket := "aaunit-" + strconv.FormatUint(s.tickets.Add(1), 10)
	subject := polkitSubject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(sender)}}
	polkit := s.conn.Object(polkitName, polkitPath)
	call := polkit.CallWithContext(ctx, polkitCheck, 0, subject, action, map[string]string{}, flags, ticket)
	if errors.Is(call.Err, context.DeadlineExceeded) {
		// Nobody waits any more; take the question off the screen.
		polkit.Call(polkitCancel, dbus.FlagNoReplyExpected, ticket)
		return false, false, fmt.Errorf("no answer within %v", limit)
	}
	var result struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	if err := call.Store(&result); err != nil {
		return false, false, err
	}
	return result.Authorized, result.Challenge, nil
}

// userName is the name of a user for people, from /etc/passwd.
func userName(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	u, err := user.LookupId(id)
	if err != nil || u.Username == "" {
		return "uid " + id
	}
	return clean(u.Username)
}

// identities remembers the users behind unique names: those never change, and
// a name is not used twice on one connection to a bus.
type identities struct {
	// ask looks a name up.
	ask func(ctx context.Context, sender string) (uint32, error)

	mu    sync.Mutex
	known map[string]uint32
}

// maxKnown bounds the memory; a caller can connect again and again.
const maxKnown = 512

func (i *identities) uid(ctx context.Context, sender string) (uint32, error) {
	if sender == "" || sender[0] != ':' {
		return 0, fmt.Errorf("the message has no sender with a unique name")
	}
	i.mu.Lock()
	uid, ok := i.known[sender]
	i.mu.Unlock()
	if ok {
		return uid, nil
	}
	uid, err := i.ask(ctx, sender)
	if err != nil {
		return 0, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if len(i.known) >= maxKnown {
		clear(i.known)
	}
	i.known[sender] = uid
	return uid, nil
}

// busCredentials asks the bus itself who is behind a name.
func busCredentials(conn *dbus.Conn) func(context.Context, string) (uint32, error) {
	return func(ctx context.Context, sender string) (uint32, error) {
		ctx, cancel := context.WithTimeout(ctx, credentialsTimeout)
		defer cancel()
		var found map[string]dbus.Variant
		err := conn.BusObject().CallWithContext(ctx, bus.Driver+".GetConnectionCredentials", 0, sender).Store(&found)
		if err != nil {
			return 0, err
		}
		uid, ok := found["UnixUserID"].Value().(uint32)
		if !ok {
			return 0, errors.New("the bus does not tell its user")
		}
		return uid, nil
	}
}
