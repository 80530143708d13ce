package policydb

import (
	"fmt"
	"strings"
)

// Answer is what the compiled policy says to a question. Its zero value is
// Unknown, so that an answer that was forgotten never reads as one.
type Answer int

const (
	// Unknown means that the encoding of this part of the policy is not
	// understood, that the kernel decides with more than was asked about, or
	// that the search had to end early.
	Unknown Answer = iota
	No
	Yes
	// NotMediated means that the policy does not look at such accesses at all:
	// AppArmor lets them through.
	NotMediated
)

func (a Answer) String() string {
	switch a {
	case No:
		return "no"
	case Yes:
		return "yes"
	case NotMediated:
		return "not mediated"
	}
	return "unknown"
}

// Who says whose file it is: an "owner" rule holds when the file's owner is the
// task's fsuid.
type Who uint8

const (
	Owner Who = 1 << iota
	Other
	// Either asks about both. A single answer is then what at least one of the
	// two is allowed.
	Either = Owner | Other
)

func (w Who) String() string {
	switch w {
	case Owner:
		return "owner"
	case Other:
		return "other"
	}
	return "either"
}

// Perm is a set of permissions, in the bits of the kernel
// (security/apparmor/include/perms.h and net.h). What a bit means depends on the
// class; the names of other classes' meanings are below.
type Perm uint32

const (
	Exec   Perm = 1 << 0
	Write  Perm = 1 << 1
	Read   Perm = 1 << 2
	Append Perm = 1 << 3
	Create Perm = 1 << 4
	Delete Perm = 1 << 5
	Open   Perm = 1 << 6
	Rename Perm = 1 << 7

	SetAttr Perm = 1 << 8
	GetAttr Perm = 1 << 9
	SetCred Perm = 1 << 10
	GetCred Perm = 1 << 11

	Chmod Perm = 1 << 12
	Chown Perm = 1 << 13
	Chgrp Perm = 1 << 14
	// Lock is, on the second path of a link, the demand that the link may do no
	// more than its target (AA_LINK_SUBSET).
	Lock Perm = 1 << 15

	Mmap     Perm = 1 << 16 // map as executable
	Mprotect Perm = 1 << 17
	Link     Perm = 1 << 18
	Snapshot Perm = 1 << 19

	// contMatch says that the permissions of this state are not final: what
	// follows is matched too (AA_CONT_MATCH).
	contMatch Perm = 1 << 27

	Stack         Perm = 1 << 28
	OnExec        Perm = 1 << 29
	ChangeProfile Perm = 1 << 30
	ChangeHat     Perm = 1 << 31

	// Sockets.
	NetSend          = Write
	NetReceive       = Read
	NetCreate        = Create
	NetShutdown      = Delete
	NetConnect       = Open
	NetSetAttr       = SetAttr
	NetGetAttr       = GetAttr
	NetAccept   Perm = 1 << 20
	NetBind     Perm = 1 << 21
	NetListen   Perm = 1 << 22
	NetSetOpt   Perm = 1 << 24
	NetGetOpt   Perm = 1 << 25

	// Signals.
	SignalSend    = Write
	SignalReceive = Read

	// ptrace (parser/ptrace.h).
	PtraceRead     = Read
	PtraceTrace    = Write
	PtraceReadBy   = Create
	PtraceTracedBy = Append

	// D-Bus, which the bus daemon mediates (libapparmor, sys/apparmor.h).
	DBusSend      = Write
	DBusReceive   = Read
	DBusEavesdrop = Delete
	DBusBind      = Open

	// Mounts (security/apparmor/include/mount.h).
	MountPivotRoot = Exec
	MountMount     = Write
	MountUmount    = Read
	mountCont      = Open // AA_MNT_CONT_MATCH: the options decide

	// User namespaces, io_uring.
	UsernsCreate         = Append
	IOUringOverrideCreds = Append
	IOUringSQPoll        = Create
)

// Writes are the permissions with which the contents or the name of a file can
// be changed. Appending is one of them.
const Writes = Write | Append | Create | Delete | Rename | Link

// AllNet are the permissions of a plain "network" rule: those that a socket
// can be asked for at all.
const AllNet = NetSend | NetReceive | NetCreate | NetShutdown | NetConnect | NetSetAttr | NetGetAttr |
	NetAccept | NetBind | NetListen | NetSetOpt | NetGetOpt

// permNames are the names of files' permissions.
var permNames = [32]string{
	"exec", "write", "read", "append", "create", "delete", "open", "rename",
	"setattr", "getattr", "setcred", "getcred", "chmod", "chown", "chgrp", "lock",
	"mmap", "mprotect", "link", "snapshot", "accept", "bind", "listen", "",
	"setopt", "getopt", "", "cont-match", "stack", "onexec", "change-profile", "change-hat",
}

// String names the permissions as those of a file, separated by "|".
func (p Perm) String() string {
	if p == 0 {
		return "none"
	}
	var names []string
	for i, name := range permNames {
		switch {
		case p&(1<<i) == 0:
		case name == "":
			names = append(names, fmt.Sprintf("%#x", 1<<i))
		default:
			names = append(names, name)
		}
	}
	return strings.Join(names, "|")
}

// ParsePerm reads a permission's name as String writes it.
func ParsePerm(name string) (Perm, bool) {
	for i, n := range permNames {
		if n != "" && n == name {
			return 1 << i, true
		}
	}
	return 0, false
}

// Perms is what a state of an automaton grants (struct aa_perms).
//
// "deny" rules have taken their bits out of Allow when the policy was compiled,
// so that a permission that is denied and one that no rule grants look the
// same, but for Quiet (and Deny, which only newer parsers fill).
type Perms struct {
	Allow Perm
	Deny  Perm // denied by a rule that says so; only in a table of permissions
	Audit Perm // logged although allowed
	Quiet Perm // denied without a word: a "deny" rule without "audit"

	// The rest is only in a table of permissions.
	Kill     Perm // the task is killed
	Complain Perm // allowed with a message
	Prompt   Perm // somebody is asked
	Hide     Perm
	Subtree  Perm
	Cond     Perm // depends on a condition

	xindex uint32
}

// allows says whether all of want is allowed. It is Unknown where that is
// decided elsewhere: by whom the kernel asks, or by a condition.
func (p *Perms) allows(want Perm) Answer {
	missing := want &^ (p.Allow &^ p.Deny)
	switch {
	case missing == 0:
		return Yes
	case missing&^(p.Prompt|p.Complain|p.Cond) != 0:
		return No
	}
	return Unknown
}

// allowsAny says whether some of want is allowed.
func (p *Perms) allowsAny(want Perm) Answer {
	switch {
	case want&(p.Allow&^p.Deny) != 0:
		return Yes
	case want&(p.Prompt|p.Complain|p.Cond) != 0:
		return Unknown
	}
	return No
}
