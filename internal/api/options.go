package api

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/godbus/dbus/v5"
)

// The keys of the options argument, an a{sv}.
const (
	optProfile   = "profile"    // s
	optRuntime   = "runtime"    // b
	optComplain  = "complain"   // b
	optNoRestart = "no-restart" // b
	optDryRun    = "dry-run"    // b; Detach only
	optFor       = "for"        // t, microseconds; Pause only
	optSettle    = "settle"     // t, microseconds

	// ChangeSocketOptions only.
	optMode    = "mode"    // s
	optApprove = "approve" // as
	optRevoke  = "revoke"  // as
	optCall    = "call"    // s
	optReason  = "reason"  // s
)

var (
	attachOptions = []string{optProfile, optRuntime, optComplain, optNoRestart, optSettle}
	detachOptions = []string{optNoRestart, optDryRun}
	pauseOptions  = []string{optFor}
	socketOptions = []string{optMode, optApprove, optRevoke, optCall, optReason}
)

// decodeRequest reads the arguments of what changes or plans something.
func decodeRequest(units []string, options map[string]dbus.Variant, allowed []string) (attach.Request, *dbus.Error) {
	if err := checkUnits(units); err != nil {
		return attach.Request{}, err
	}
	return decodeOptions(units, options, allowed)
}

// decodeOptions reads the options for what was named, the names of which are checked.
func decodeOptions(names []string, options map[string]dbus.Variant, allowed []string) (attach.Request, *dbus.Error) {
	r := attach.Request{Units: names}
	if len(names) == 0 {
		return r, invalidArgs("no unit was named")
	}
	if len(options) > maxOptions {
		return r, invalidArgs("there are %d options, at most %d are taken", len(options), maxOptions)
	}
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains(allowed, key) {
			return r, invalidArgs("unknown option %q; known are %s", shorten(key), cmp.Or(strings.Join(allowed, ", "), "none"))
		}
		var ok bool
		switch v := options[key].Value(); key {
		case optProfile:
			if r.Profile, ok = v.(string); ok {
				if err := checkNames("profile", []string{r.Profile}); err != nil {
					return r, err
				}
			}
		case optRuntime:
			r.Runtime, ok = v.(bool)
		case optComplain:
			r.Complain, ok = v.(bool)
		case optNoRestart:
			r.NoRestart, ok = v.(bool)
		case optDryRun:
			r.DryRun, ok = v.(bool)
		case optFor:
			var usec uint64
			if usec, ok = v.(uint64); ok {
				// Bounded first: it must not overflow.
				r.For = time.Duration(min(usec, uint64(attach.MaxPause.Microseconds())+1)) * time.Microsecond
				if err := attach.CheckPause(r.For); err != nil {
					return r, invalidArgs("%v", err)
				}
			}
		case optSettle:
			var us uint64
			if us, ok = v.(uint64); ok && us > uint64(attach.MaxSettle/time.Microsecond) {
				return r, invalidArgs("option %q is %d µs, at most %v are taken", key, us, attach.MaxSettle)
			}
			span := time.Duration(us) * time.Microsecond
			r.Settle = &span
		default:
			if r.Sockets == nil {
				r.Sockets = &attach.SocketChange{Call: attach.SetSockOpt}
			}
			var err *dbus.Error
			if ok, err = decodeSocketOption(r.Sockets, key, v); err != nil {
				return r, err
			}
		}
		if !ok {
			return r, invalidArgs("option %q has type %q", key, options[key].Signature().String())
		}
	}
	return r, nil
}

// encodeOptions is the inverse, for the client.
func encodeOptions(r attach.Request) map[string]dbus.Variant {
	out := map[string]dbus.Variant{}
	if r.Profile != "" {
		out[optProfile] = dbus.MakeVariant(r.Profile)
	}
	if r.For != 0 {
		out[optFor] = dbus.MakeVariant(uint64(max(0, r.For.Microseconds())))
	}
	for key, on := range map[string]bool{optRuntime: r.Runtime, optComplain: r.Complain, optNoRestart: r.NoRestart, optDryRun: r.DryRun} {
		if on {
			out[key] = dbus.MakeVariant(true)
		}
	}
	if c := r.Sockets; c != nil {
		for key, text := range map[string]string{optMode: string(c.Mode), optCall: string(c.Call), optReason: c.Reason} {
			if text != "" {
				out[key] = dbus.MakeVariant(text)
			}
		}
		for key, list := range map[string][]string{optApprove: c.Approve, optRevoke: c.Revoke} {
			if len(list) > 0 {
				out[key] = dbus.MakeVariant(list)
			}
		}
	}
	if r.Settle != nil {
		out[optSettle] = dbus.MakeVariant(uint64(*r.Settle / time.Microsecond))
	}
	return out
}

// decodeSocketOption reads one option of ChangeSocketOptions; ok is false for one of
// another type.
func decodeSocketOption(c *attach.SocketChange, key string, value any) (ok bool, failed *dbus.Error) {
	var text string
	switch key {
	case optApprove, optRevoke:
		list, ok := value.([]string)
		if key == optApprove {
			c.Approve = list
		} else {
			c.Revoke = list
		}
		if ok && len(list) > attach.MaxSocketOptions {
			return ok, invalidArgs("%d socket options were given, at most %d are taken", len(list), attach.MaxSocketOptions)
		}
		for _, name := range list {
			if err := checkNames("socket option's", []string{name}); err != nil {
				return ok, err
			}
		}
		return ok, nil
	case optMode:
		text, ok = value.(string)
		c.Mode = attach.SocketMode(text)
	case optCall:
		text, ok = value.(string)
		c.Call = attach.SocketCall(text)
	case optReason:
		c.Reason, ok = value.(string)
	}
	return ok, nil
}

// checkUnits bounds a list of names and globs of units: what is longer than any
// unit's name is neither.
func checkUnits(units []string) *dbus.Error { return checkLengths("unit", units, attach.MaxUnitName) }

// checkNames bounds a list of other names.
func checkNames(what string, names []string) *dbus.Error { return checkLengths(what, names, maxLength) }

// checkLengths bounds a list of names; what else is wrong with a single name is for
// the core to say, so that the others proceed.
func checkLengths(what string, names []string, longest int) *dbus.Error {
	if len(names) > maxUnits {
		return invalidArgs("%d names were given, at most %d are taken in one call", len(names), maxUnits)
	}
	for _, n := range names {
		switch {
		case n == "":
			return invalidArgs("an empty %s name was given", what)
		case len(n) > longest:
			return invalidArgs("the %s name %q is longer than %d bytes", what, shorten(n), longest)
		case !utf8.ValidString(n) || strings.IndexByte(n, 0) >= 0:
			return invalidArgs("the %s name %q is not valid UTF-8", what, shorten(n))
		}
	}
	return nil
}

// shorten keeps a hostile name from filling a log or an error message.
func shorten(s string) string {
	const most = 80
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
