package api

import (
	"fmt"

	"github.com/godbus/dbus/v5"
)

// The errors that the service answers with, beside those of the D-Bus
// specification.
const (
	ErrorNotAuthorized = "org.aaunit1.Error.NotAuthorized" // polkit said no
	ErrorNoPolkit      = "org.aaunit1.Error.NoPolkit"      // polkit could not be asked
	ErrorTooFast       = "org.aaunit1.Error.TooFast"       // too many calls per second
	ErrorTooMany       = "org.aaunit1.Error.TooMany"       // too much work or reading under way
	ErrorTooLarge      = "org.aaunit1.Error.TooLarge"      // the answer does not fit in a message
	ErrorFailed        = "org.aaunit1.Error.Failed"

	errorInvalidArgs      = "org.freedesktop.DBus.Error.InvalidArgs"
	errorUnknownObject    = "org.freedesktop.DBus.Error.UnknownObject"
	errorUnknownInterface = "org.freedesktop.DBus.Error.UnknownInterface"
	errorUnknownMethod    = "org.freedesktop.DBus.Error.UnknownMethod"
	errorUnknownProperty  = "org.freedesktop.DBus.Error.UnknownProperty"
	errorReadOnly         = "org.freedesktop.DBus.Error.PropertyReadOnly"
	errorAccessDenied     = "org.freedesktop.DBus.Error.AccessDenied"
	// errorInteractive is what systemd's services answer too when polkit would
	// ask for a password and the caller did not allow that.
	errorInteractive = "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired"

	errorServiceUnknown = "org.freedesktop.DBus.Error.ServiceUnknown"
	errorNoSuchUnit     = "org.freedesktop.systemd1.NoSuchUnit"
	errorNoUnitForPID   = "org.freedesktop.systemd1.NoUnitForPID"
	errorNoOwner        = "org.freedesktop.DBus.Error.NameHasNoOwner"
	errorNoReply        = "org.freedesktop.DBus.Error.NoReply"
	errorDisconnected   = "org.freedesktop.DBus.Error.Disconnected"
)

func fail(name, format string, args ...any) *dbus.Error {
	return dbus.NewError(name, []any{clean(fmt.Sprintf(format, args...))})
}

func invalidArgs(format string, args ...any) *dbus.Error {
	return fail(errorInvalidArgs, format, args...)
}
