package apparmor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on what the kernel is asked about staged policy.
const (
	// maxAsked are the questions about files of one profile; those on sockets
	// are not more than families times types.
	maxAsked = 150
	// askTime is how long all questions of one staging may take, with the
	// looking for what to ask.
	askTime = 3 * time.Second
	// searchLimit bounds the search for a path to ask about. Where it finds none
	// there is one question less.
	searchLimit = 20_000

	askFamilies = 45
	askTypes    = 5
)

// suspects are paths that matter, and each profile is asked about.
var suspects = []string{
	"/", "/etc/", "/etc/passwd", "/etc/shadow", "/etc/ld.so.preload", "/etc/apparmor.d/a", "/etc/systemd/system/a.service", "/etc/cron.d/a",
	"/tmp/", "/tmp/a", "/var/tmp/a", "/dev/shm/a", "/dev/null", "/dev/mem", "/dev/sda",
	"/home/", "/home/a/b", "/home/a/.ssh/authorized_keys", "/root/.ssh/id_rsa", "/srv/a", "/var/lib/a/b", "/var/log/a",
	"/proc/1/environ", "/proc/sys/kernel/core_pattern", "/sys/kernel/security/apparmor/.replace",
	"/run/dbus/system_bus_socket", "/run/systemd/notify", "/run/systemd/private", "/run/docker.sock", "/var/spool/cron/crontabs/root",
	"/bin/sh", "/usr/bin/sh", "/usr/bin/python3.11", "/usr/bin/sudo", "/usr/sbin/aaunitd", "/usr/lib/x86_64-linux-gnu/libc.so.6",
}

// places are looked through for paths that the compiled policy lets be written,
// executed or read, and what is found there is asked about.
var places = sync.OnceValue(func() (out []*policydb.Pattern) {
	for _, text := range []string{
		"/**", "/etc/**", "/tmp/**", "/home/**", "/root/**", "/proc/sys/**", "/{,usr/}{,s}bin/**", "/dev/**", "/dev/shm/**", "/run/**", "/var/**",
		"/{,usr/}lib/**",
	} {
		if p, err := policydb.ParsePattern(text); err == nil {
			out = append(out, p)
		}
	}
	return out
})

// questions are what the kernel is asked about a profile: they come from the
// profile's automaton, so that a kernel that reads it otherwise shows it. Few of
// them, for each staging asks them; that the two agree on all paths is tested at
// length.
func questions(p *policydb.Profile) (out []Question) {
	seen := map[string]bool{}
	file := func(path string) {
		if len(seen) < maxAsked/2 && len(path) > 0 && !seen[path] {
			seen[path] = true
			for _, as := range [...]policydb.Who{policydb.Owner, policydb.Other} {
				out = append(out, Question{Class: policydb.ClassFile, Data: []byte(path), As: as})
			}
		}
	}
	for _, path := range suspects {
		file(path)
	}
	for _, place := range places() {
		for _, want := range [...]policydb.Perm{policydb.Writes, policydb.Exec, policydb.Read} {
			file(p.Find(policydb.Query{Pattern: place, Any: want, Limit: searchLimit}).Witness)
		}
	}
	for _, s := range p.Sample(maxAsked) {
		file(string(s))
	}
	return append(out, sockets(p)...)
}

// sockets are the questions about all families and types; one where the profile
// mediates none.
func sockets(p *policydb.Profile) (out []Question) {
	mediates := p.Mediates(policydb.ClassNetV8) == policydb.Yes
	for family := uint16(1); family <= askFamilies; family++ {
		for typ := uint16(1); typ <= askTypes; typ++ {
			data := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, family), typ)
			out = append(out, Question{Class: policydb.ClassNetV8, Data: data, As: policydb.Owner})
			if !mediates {
				return out
			}
		}
	}
	return out
}

// artefacts are bits of the kernel's answers that no rule has put there, which
// are therefore not compared: in every class but that of files, Linux 6.4 and
// later allow AA_MAY_LOCK, so that locks on sockets do not break
// (compute_perms_entry in security/apparmor/policy_compat.c). 6.1 does not.
func artefacts(class byte) uint32 {
	if class == policydb.ClassFile {
		return 0
	}
	return uint32(policydb.Lock)
}

// without takes bits out of an answer; what means "not mediated" stays so.
func without(r policydb.Raw, bits uint32) policydb.Raw {
	if Unmediated(r) {
		return r
	}
	return policydb.Raw{Allow: r.Allow &^ bits, Deny: r.Deny &^ bits, Audit: r.Audit &^ bits, Quiet: r.Quiet &^ bits}
}

// examine asks the kernel about policies in a staging namespace, and compares
// its answers with what the compiled policy says: see attach.Compiled. The bytes
// that are asked about are those that go live.
func (s *System) examine(ctx context.Context, ns string, policies []*attach.Compiled) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTime, errors.New("the time for it was over"))
	defer cancel()
	err := s.asking(func(a *access) error {
		for _, c := range policies {
			if err := s.compare(ctx, a, ns, c); err != nil {
				c.NotAsked = err.Error()
			}
		}
		return nil
	})
	if err != nil {
		for _, c := range policies {
			c.NotAsked = err.Error()
		}
	}
}

func (s *System) compare(ctx context.Context, a *access, ns string, c *attach.Compiled) error {
	profiles, err := policydb.Parse(c.Blob)
	if err != nil {
		return fmt.Errorf("cannot ask the kernel about it: %w", err)
	}
	for i := range profiles {
		p := &profiles[i]
		if ctx.Err() != nil {
			return fmt.Errorf("cannot ask the kernel about profile %s: %w", clean(p.Name), context.Cause(ctx))
		}
		qs := questions(p)
		answers := make([]policydb.Raw, len(qs))
		if err := a.askAll(ctx, ns, p.Name, qs, answers); err != nil {
			return err
		}
		for j, q := range qs {
			want, known := p.Query(q.Class, q.Data, q.As)
			if !known {
				continue
			}
			if d := s.differ(q, answers[j], want); d != "" {
				c.Disagrees = fmt.Sprintf("profile %s, %s: %s", clean(p.Name), q, d)
				return nil
			}
			c.Asked++
		}
	}
	return nil
}

// differ says how the kernel's answer differs from the policy's, "" not at all.
func (s *System) differ(q Question, kernel, policy policydb.Raw) string {
	kernel, policy = without(kernel, artefacts(q.Class)), without(policy, artefacts(q.Class))
	switch {
	case kernel == policy:
		return ""
	case kernel.Allow == policy.Allow && kernel.Deny == policy.Deny:
		// What is logged is also a setting of the kernel's.
		if how, err := s.param("audit"); err != nil || how != "normal" {
			return ""
		}
		return fmt.Sprintf("the kernel logs %s and is quiet about %s where the compiled policy says %s and %s",
			policydb.Perm(kernel.Audit), policydb.Perm(kernel.Quiet), policydb.Perm(policy.Audit), policydb.Perm(policy.Quiet))
	}
	say := func(r policydb.Raw) string {
		if Unmediated(r) {
			return "that it is not mediated"
		}
		return policydb.Perm(r.Allow).String()
	}
	return fmt.Sprintf("the kernel answers %s where the compiled policy says %s", say(kernel), say(policy))
}

// String is what is asked, for a message.
func (q Question) String() string {
	switch {
	case q.Class == policydb.ClassFile:
		return fmt.Sprintf("file %q of the %s", q.Data, q.As)
	case q.Class == policydb.ClassNetV8 && len(q.Data) == 4:
		return fmt.Sprintf("sockets of family %d and type %d", binary.BigEndian.Uint16(q.Data), binary.BigEndian.Uint16(q.Data[2:]))
	}
	return fmt.Sprintf("class %d, %q", q.Class, q.Data)
}
