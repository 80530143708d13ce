package apparmor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

const (
	// maxPending bounds the denials that differ and wait for the reader.
	maxPending = 500
	// The first and the longest wait before listening is tried again.
	relisten    = time.Second
	maxRelisten = 5 * time.Minute
	// auditAVC is the type of AppArmor's records (include/uapi/linux/audit.h).
	auditAVC = 1400
	// maxRecord is the length at which the kernel cuts a record
	// (MAX_AUDIT_MESSAGE_LENGTH in include/uapi/linux/audit.h).
	maxRecord = 8970
)

// Denials tells what AppArmor denies on the host, or lets pass in complain mode,
// as the kernel tells all who listen to its audit log (netlink(7), group
// AUDIT_NLGRP_READLOG), with and without auditd. That takes CAP_AUDIT_READ in the
// first user namespace, and the first network namespace: the kernel sends to no
// other (kauditd_send_multicast_skb in kernel/audit.c). It listens when it
// returns, unless the first that comes is Deaf, and tries again by itself then.
// The channel is closed when ctx ends.
//
// A slow reader holds nothing up. What waits is merged where it has the same key,
// unit and start; what there is no room for is counted, and comes as Lost before
// the next denial. So does what the kernel had no room for.
//
// Count is about right: the kernel sends a record to its listeners again each
// time that it finds auditd's socket full (kauditd_send_queue in kernel/audit.c).
//
// Unit and Cgroup are told where the process was still there, and could be asked, when
// the record came. With a Cgroup and no Unit it is known to be in no service; without
// either nothing is known, and attach.Attribute can guess.
//
// Not heard is what the kernel does not write down:
//   - what a deny rule without audit refuses, and what a profile's "quiet" is for
//     (apparmor.d(5)); "audit deny" is heard;
//   - anything, with audit=0 on the kernel's command line (audit_log_start), or
//     with AppArmor's audit mode at "quiet", or at all without its header
//     (/sys/module/apparmor/parameters/audit and audit_header);
//   - what the kernel's queue had no room for (audit_backlog_limit), or its rate
//     limit (auditctl(8), -r) forbade: nobody is told. The log's "callbacks
//     suppressed" is about the kernel's own log only;
//   - denials of AppArmor by others than the kernel, as by the bus (type USER_AVC).
func (s *System) Denials(ctx context.Context) <-chan attach.Denial {
	l := listener{open: s.openAudit, attribute: (&asker{s: s}).attribute, wait: relisten}
	return l.listen(ctx)
}

// AuditSource is a connection to the kernel's audit log. Receive waits for a
// record; its text is good until the next call. Wake makes it return.
type AuditSource interface {
	Receive() (kind uint16, text []byte, err error)
	Wake()
	Close() error
}

func (s *System) openAudit() (AuditSource, error) {
	if err := s.inHostNetwork(); err != nil {
		return nil, err
	}
	if s.opt.Audit == nil {
		return nil, errors.New("nothing here listens to it")
	}
	return s.opt.Audit()
}

// listener is what Denials is made of.
type listener struct {
	open      func() (AuditSource, error)
	attribute func(*attach.Denial)
	wait      time.Duration // before the second attempt to listen

	pending pending
}

func (l *listener) listen(ctx context.Context) <-chan attach.Denial {
	l.pending.more = make(chan struct{}, 1)
	out := make(chan attach.Denial)
	src, err := l.open()
	var parts sync.WaitGroup
	parts.Go(func() { l.run(ctx, src, err) })
	parts.Go(func() { l.pending.deliver(ctx, out) })
	go func() {
		parts.Wait()
		close(out)
	}()
	return out
}

// run listens until ctx ends, again and again where it has to.
func (l *listener) run(ctx context.Context, src AuditSource, err error) {
	wait := l.wait
	for {
		if err == nil {
			var heard bool
			if heard, err = l.receive(ctx, src); heard {
				wait = l.wait
			}
		}
		if ctx.Err() != nil {
			return
		}
		l.pending.deaf(fmt.Sprintf("cannot read the kernel's audit log: %v", explain(err)))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, maxRelisten)
		if src, err = l.open(); err == nil {
			l.pending.lose(1) // whatever came meanwhile
		}
	}
}

// inHostNetwork says whether this process is where PID 1 is: in any other network
// namespace a listener is let in, and hears nothing. Where it cannot be read it is
// not known, and said to be fine.
func (s *System) inHostNetwork() error {
	own, err := os.Readlink(s.real(filepath.Join(procDir, "self/ns/net")))
	if err != nil {
		return nil //nolint:nilerr // not known is said to be fine
	}
	host, err := os.Readlink(s.real(filepath.Join(procDir, "1/ns/net")))
	if err == nil && own != host {
		return errors.New("the kernel sends it to the host's network namespace only, and this process is in another one (PrivateNetwork=?)")
	}
	return nil
}

// explain adds to an error what to do about it.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.EPERM):
		return fmt.Errorf("%w (it takes CAP_AUDIT_READ)", err)
	case errors.Is(err, syscall.EPROTONOSUPPORT):
		return fmt.Errorf("%w (is audit=0 on the kernel's command line?)", err)
	}
	return err
}

// receive takes records until the source fails or ctx ends. heard says that the
// source gave anything.
func (l *listener) receive(ctx context.Context, src AuditSource) (heard bool, err error) {
	defer src.Close()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		src.Wake()
	})
	defer func() {
		if !stop() {
			<-woken // before the source is closed
		}
	}()
	for {
		kind, text, err := src.Receive()
		var errno syscall.Errno
		switch {
		case ctx.Err() != nil:
			return heard, ctx.Err()
		case errors.Is(err, syscall.EINTR):
		case errors.Is(err, syscall.ENOBUFS):
			// The socket's buffer was full: netlink(7).
			l.pending.lose(1)
		case errors.As(err, &errno):
			return heard, err
		case err != nil:
			// A message that was taken off and is none of the kernel's.
		case kind == auditAVC:
			heard = true
			if d, ok := parseDenial(text); ok {
				d.Cut = d.Cut || len(text) >= maxRecord
				l.attribute(&d)
				l.pending.add(d)
			}
		}
	}
}

// pending is what the reader has not taken yet, in the order in which it came.
type pending struct {
	more chan struct{} // holds one where something was added

	mu     sync.Mutex
	order  []pendingKey
	merged map[pendingKey]attach.Denial
	lost   int
	said   string // why nothing is heard, as it was told last
	told   bool   // … and was taken
}

// pendingKey keeps apart what is attributed otherwise: a process that is known to be
// in no unit, and one of which nothing is known.
type pendingKey struct {
	unit, invocation string
	elsewhere        string // control group of a process that is in no unit
	key              attach.DenialKey
}

func (p *pending) add(d attach.Denial) {
	p.mu.Lock()
	defer p.mu.Unlock()
	k := pendingKey{unit: d.Unit, invocation: d.InvocationID, key: d.Key()}
	if d.Unit == "" {
		k.elsewhere = d.Cgroup
	}
	old, ok := p.merged[k]
	switch {
	case ok:
		old.Merge(d)
		p.merged[k] = old
	case len(p.order) >= maxPending:
		p.lost++
	default:
		if p.merged == nil {
			p.merged = map[pendingKey]attach.Denial{}
		}
		p.order = append(p.order, k)
		p.merged[k] = d
	}
	p.said = ""
	p.wake()
}

// lose counts records that nobody has.
func (p *pending) lose(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost += n
	p.said = ""
	p.wake()
}

// deaf says that nothing is heard; once, if it is for the same reason.
func (p *pending) deaf(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.said != why {
		p.said, p.told = why, false
		p.wake()
	}
}

func (p *pending) wake() {
	select {
	case p.more <- struct{}{}:
	default:
	}
}

// next takes what comes next, if there is anything: what was lost before what is
// there, and last that nothing more is heard.
func (p *pending) next() (attach.Denial, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.lost > 0:
		d := attach.Denial{Lost: p.lost}
		p.lost = 0
		return d, true
	case len(p.order) > 0:
		k := p.order[0]
		d := p.merged[k]
		delete(p.merged, k)
		if p.order = p.order[1:]; len(p.order) == 0 {
			p.order = nil // and what it lay in
		}
		return d, true
	case p.said != "" && !p.told:
		p.told = true
		return attach.Denial{Deaf: p.said}, true
	}
	return attach.Denial{}, false
}

func (p *pending) deliver(ctx context.Context, out chan<- attach.Denial) {
	for {
		d, ok := p.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-p.more:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return
		case out <- d:
		}
	}
}
