package apparmor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// stagePrefix begins the name of every policy namespace of ours; the process
// that made it follows.
const stagePrefix = "aaunit-"

// stage reads the kernel's checksums of compiled policies without making them
// live (seen on Debian 12 and 13):
//
//  1. Make a policy namespace, in which no task is or can be.
//  2. Write each policy to the namespace's own .replace.
//  3. Read the checksums back.
//  4. Ask the kernel about each profile, and compare with what the compiled
//     policy says.
//  5. Remove the namespace, and all that is in it, whatever happened.
//
// Nothing outside the namespace changes. Policies that define the same name
// take turns. What cannot be staged says so in NotStaged; what the kernel reads
// otherwise has no checksums either, so that nobody takes it for checked.
func (s *System) stage(ctx context.Context, policies []*attach.Compiled) {
	s.staging.Lock()
	defer s.staging.Unlock()
	if len(policies) > 0 {
		s.sweepOnce()
	}
	for len(policies) > 0 {
		var now, later []*attach.Compiled
		taken := map[string]bool{}
		for _, c := range policies {
			clash := false
			for _, p := range c.Profiles {
				clash = clash || taken[p.Name]
			}
			if clash {
				later = append(later, c)
				continue
			}
			for _, p := range c.Profiles {
				taken[p.Name] = true
			}
			now = append(now, c)
		}
		inParts(now, func(some []*attach.Compiled) error { return s.stageTogether(ctx, some) })
		policies = later
	}
}

// errStagedUnread is that what was staged could not be read back. One of several policies
// alone may be what is the matter.
var errStagedUnread = errors.New("cannot read the staged policy")

// inParts has policies staged together, and where they cannot be read back in halves, so
// that none fails for another.
func inParts(policies []*attach.Compiled, together func([]*attach.Compiled) error) {
	err := together(policies)
	if half := len(policies) / 2; half > 0 && errors.Is(err, errStagedUnread) {
		inParts(policies[:half], together)
		inParts(policies[half:], together)
		return
	}
	if err != nil {
		for _, c := range policies {
			c.Checksums, c.NotStaged = nil, err.Error()
		}
	}
}

func (s *System) stageTogether(ctx context.Context, policies []*attach.Compiled) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, crypto/rand
	name := stagePrefix + strconv.Itoa(os.Getpid()) + "-" + hex.EncodeToString(b[:])
	ns := s.real(filepath.Join(securityDir, "policy", "namespaces", name))
	if err := os.Mkdir(ns, 0o755); err != nil {
		return fmt.Errorf("cannot make a policy namespace: %w", err)
	}
	defer func() { _ = os.Remove(ns) }()
	for _, c := range policies {
		c.Checksums, c.NotStaged, c.Asked, c.NotAsked, c.Disagrees = nil, "", 0, "", ""
		elements, err := policydb.Split(c.Blob)
		for _, e := range elements {
			if e.Namespace != "" {
				err = fmt.Errorf("profile %s names policy namespace %s", clean(e.Name), clean(e.Namespace))
			}
		}
		if err == nil {
			err = writePolicy(filepath.Join(ns, ".replace"), c.Blob)
		}
		if err != nil {
			c.NotStaged = err.Error()
		}
	}
	have, err := liveIn(filepath.Join(ns, "profiles"), nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errStagedUnread, err)
	}
	var staged, anew []*attach.Compiled
	for _, c := range policies {
		if c.NotStaged != "" {
			continue
		}
		sums, err := checksumsOf(c.Blob, have)
		if err != nil {
			c.NotStaged = err.Error()
			continue
		}
		c.Checksums = sums
		staged = append(staged, c)
		if c.Asked = s.examined.get(c); c.Asked == 0 {
			anew = append(anew, c)
		}
	}
	s.examine(ctx, name, anew)
	for _, c := range anew {
		s.examined.put(c)
	}
	for _, c := range staged {
		if c.Disagrees != "" {
			c.Checksums = nil
		}
	}
	return nil
}

// checksumsOf picks a policy's checksums from what was read.
func checksumsOf(blob []byte, have map[string]loaded) (map[string]string, error) {
	elements, err := policydb.Split(blob)
	if err != nil {
		return nil, err
	}
	sums := map[string]string{}
	for _, e := range elements {
		p, ok := have[e.Name]
		switch {
		case !ok:
			return nil, fmt.Errorf("the kernel took the policy and does not show profile %s", clean(e.Name))
		case p.Checksum == "":
			return nil, errors.New("the kernel makes no checksums of profiles: boot with apparmor.hash_policy=1")
		}
		sums[e.Name] = p.Checksum
	}
	return sums, nil
}

// writePolicy hands policy to the kernel: one write for all its bytes, as the
// interface demands (policy_update in security/apparmor/apparmorfs.c). Either
// all profiles of it are taken, or none.
func writePolicy(file string, blob []byte) error {
	fd, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("cannot open %s: %w", file, err)
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Write(fd, blob)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return &kernelError{err}
		case n != len(blob):
			return fmt.Errorf("the kernel took %d of %d bytes", n, len(blob))
		}
		return nil
	}
}

// kernelError is the kernel's refusal of a policy, with what it means
// (print_error in parser/parser_interface.c).
type kernelError struct{ err error }

func (e *kernelError) Unwrap() error { return e.err }

func (e *kernelError) Error() string {
	why := ""
	switch {
	case errors.Is(e.err, unix.EPROTO), errors.Is(e.err, unix.EINVAL):
		why = "the policy does not have the form that the kernel wants"
	case errors.Is(e.err, unix.EPROTONOSUPPORT):
		why = "the kernel does not know this version of policy; parser and kernel do not fit"
	case errors.Is(e.err, unix.EPERM), errors.Is(e.err, unix.EACCES):
		why = "changing policy needs CAP_MAC_ADMIN, in the first user namespace"
	case errors.Is(e.err, unix.ENOENT):
		why = "the profile, or the parent of a child, does not exist"
	case errors.Is(e.err, unix.ENAMETOOLONG):
		why = fmt.Sprintf("it makes a directory that is called like the profile, with a number behind it, and such a name has at most %d bytes: give the profile a shorter name", unix.NAME_MAX)
	case errors.Is(e.err, unix.ENOSPC), errors.Is(e.err, unix.ENOMEM):
		why = "the kernel has no memory for it"
	}
	if why == "" {
		return "the kernel refused it: " + e.err.Error()
	}
	return "the kernel refused it: " + e.err.Error() + " (" + why + ")"
}

// SweepStaging removes staging namespaces that a process left behind when it was
// killed, with the policy in them, and its private copies of profiles: at the start
// of the daemon, which may not stage anything for a long time. Those of processes
// that live are left alone. Copies are removed here only: the directory that they lie
// in is the daemon's own, and that of a command need not be.
func (s *System) SweepStaging() {
	s.staging.Lock()
	defer s.staging.Unlock()
	s.sweepOnce()
	s.sweepCopies()
}

// sweepOnce is called with the lock held.
func (s *System) sweepOnce() {
	if !s.swept {
		s.swept = true
		s.sweep()
	}
}

func (s *System) sweep() {
	dir := s.real(filepath.Join(securityDir, "policy", "namespaces"))
	names, err := readNames(dir)
	if err != nil {
		return
	}
	for _, n := range names {
		rest, ok := strings.CutPrefix(n, stagePrefix)
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(strings.SplitN(rest, "-", 2)[0])
		if err == nil && pid != os.Getpid() && !s.alive(pid) {
			_ = os.Remove(filepath.Join(dir, n))
		}
	}
}

func (s *System) alive(pid int) bool {
	_, err := os.Stat(s.real(filepath.Join(procDir, strconv.Itoa(pid))))
	return err == nil
}
