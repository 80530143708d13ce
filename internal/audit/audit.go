// Package audit listens to the kernel's audit log.
package audit

import (
	"syscall"

	libaudit "github.com/elastic/go-libaudit/v2"
)

// Log is a connection to the log that all who listen share (netlink(7), group
// AUDIT_NLGRP_READLOG), with and without auditd.
type Log struct{ client *libaudit.AuditClient }

// Open listens from now on. It takes CAP_AUDIT_READ in the first user namespace.
func Open() (*Log, error) {
	c, err := libaudit.NewMulticastAuditClient(nil)
	if err != nil {
		return nil, err
	}
	return &Log{c}, nil
}

// Receive waits for a record: its type, and its text, which is good until the
// next call.
func (l *Log) Receive() (kind uint16, text []byte, err error) {
	r, err := l.client.Receive(false)
	if err != nil {
		return 0, nil, err
	}
	return uint16(r.Type), r.Data, nil
}

// Wake has the kernel answer, so that Receive returns: closing a socket does not
// wake who waits for it (seen on Debian 12 and 13), and waking up now and then to
// look costs something all the time. The kernel refuses a request that it does not
// know, whoever makes it (audit_netlink_ok in kernel/audit.c).
func (l *Log) Wake() {
	_, _ = l.client.Netlink.SendNoWait(syscall.NetlinkMessage{Header: syscall.NlMsghdr{
		Type: syscall.NLMSG_NOOP, Flags: syscall.NLM_F_REQUEST | syscall.NLM_F_ACK,
	}})
}

// Close ends it. Nobody may be waiting in Receive.
func (l *Log) Close() error { return l.client.Close() }
