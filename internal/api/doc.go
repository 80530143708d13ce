// Package api is the daemon's D-Bus service and its Go client.
//
// On the bus name org.aaunit1 there are three kinds of objects:
//
//	/org/aaunit1                org.aaunit1.Manager, ObjectManager
//	/org/aaunit1/unit/NAME      org.aaunit1.Attachment, one per attached unit
//	/org/aaunit1/operation/N    org.aaunit1.Operation, for who started it and for root
//
// Read serve.go first (the connection), then handler.go (how a message finds its
// method, and the introspection text that is made from the same tables),
// manager.go (the methods), attachments.go, operation.go, and authorize.go
// (who may do what). client.go is the other end. owner.go is about who has the name,
// and direct.go about root, who needs no bus.
//
// Anybody on the machine can send anything to a name on the system bus.
// Everything that arrives is therefore bounded before it is looked at, and most
// of it while it is still bytes (internal/bus). Of a call only the header is
// read at first: who sent it, whether that user has calls left in this second
// (a long call counts as several), and whether there is such a method with
// arguments of these types (session.admit). Only then are the arguments
// decoded: at most 256 KiB and 4096 values, in which a variant holds a simple
// value or an array of strings. Whatever is too large or does not fit is thrown
// away undecoded and answered with an error, and the connection goes on; a call
// whose very header is larger than that is thrown away without an answer, and
// so are signals that the bus itself did not send. What is no message at all
// ends the connection, and another one is made.
//
// Units per call, lengths, reading calls being answered, and work under way are
// bounded as well. File descriptors are not taken at all. What a user who is
// not root is told leaves out what is about processes and the text of files
// (public.go); what was denied is for root and members of adm (denials.go).
//
// Whoever does not read the answers can bring the bus to take nothing more from the
// service. No calls are taken then, and after a while another connection is made
// (internal/bus).
package api

import "github.com/godbus/dbus/v5"

// The names on the bus.
const (
	BusName = "org.aaunit1"
	// Path is the object with the Manager interface.
	Path dbus.ObjectPath = "/org/aaunit1"

	ManagerInterface    = "org.aaunit1.Manager"
	AttachmentInterface = "org.aaunit1.Attachment"
	OperationInterface  = "org.aaunit1.Operation"

	// UnitsPath and OperationsPath are where the objects of units and
	// operations are.
	UnitsPath      dbus.ObjectPath = "/org/aaunit1/unit"
	OperationsPath dbus.ObjectPath = "/org/aaunit1/operation"

	// ActionManage is what polkit is asked about a caller who is not root and
	// wants something changed; ActionInspect, where something is to be looked at
	// that is dear to look at or shows details. They are two, because polkit
	// remembers for minutes that somebody gave the password for an action: who
	// gave it to look has not agreed to a detach.
	ActionManage  = "org.aaunit1.manage"
	ActionInspect = "org.aaunit1.inspect"
)

// The bounds on what a caller may send and have under way.
const (
	maxUnits = 1000
	// maxPublicNames is for reading by others than root.
	maxPublicNames = 100

	maxLength  = 4096 // bytes in a path, or the name of a profile or socket option
	maxOptions = 16
	maxReply   = 16 << 20 // bytes of JSON; the system bus takes 32 MiB

	// callRate is how many calls in a second each user but root has, and callBurst how
	// many at once.
	callRate  = 50
	callBurst = 200
	// bytesPerCall is up to which length a call counts as one.
	bytesPerCall = 4096
	// maxReading and maxReadingAll bound the reading calls being answered, per
	// user and together: an answer may be large, however small the question.
	maxReading    = 4
	maxReadingAll = 16
)

// Interfaces of the D-Bus specification.
const (
	introspectableInterface = "org.freedesktop.DBus.Introspectable"
	propertiesInterface     = "org.freedesktop.DBus.Properties"
	objectManagerInterface  = "org.freedesktop.DBus.ObjectManager"
	peerInterface           = "org.freedesktop.DBus.Peer"
)
