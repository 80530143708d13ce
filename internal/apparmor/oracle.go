package apparmor

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
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

// inquiry is what the kernel is asked about one profile, a few questions at a
// time. They come from the profile's automaton, so that a kernel that reads it
// otherwise shows it. Few of them, for each staging asks them; that the two agree
// on all paths is tested at length.
type inquiry struct {
	c *attach.Compiled
	p *policydb.Profile

	step  int             // what is looked for next
	paths map[string]bool // asked about already
	todo  []Question
}

// portion is how many questions are asked about a profile before it is the turn
// of the next one.
const portion = 16

// next gives some more questions, none when all are asked.
func (i *inquiry) next() []Question {
	for i.step < len(places())+3 && len(i.todo) < portion {
		i.find()
		i.step++
	}
	n := min(len(i.todo), portion)
	out := i.todo[:n]
	i.todo = i.todo[n:]
	return out
}

// find looks for questions, and takes its steps in an order in which the first
// ones tell the most.
func (i *inquiry) find() {
	switch place := i.step - 1; {
	case i.step == 0:
		for _, path := range suspects {
			i.file(path)
		}
	case place < len(places()):
		for _, want := range [...]policydb.Perm{policydb.Writes, policydb.Exec, policydb.Read} {
			i.file(i.p.Find(policydb.Query{Pattern: places()[place], Any: want, Limit: searchLimit}).Witness)
		}
	case place == len(places()):
		for _, s := range i.p.Sample(maxAsked) {
			i.file(string(s))
		}
	default:
		i.todo = append(i.todo, sockets(i.p)...)
	}
}

func (i *inquiry) file(path string) {
	if i.paths == nil {
		i.paths = map[string]bool{}
	}
	if len(i.paths) >= maxAsked/2 || path == "" || i.paths[path] {
		return
	}
	i.paths[path] = true
	for _, as := range [...]policydb.Who{policydb.Owner, policydb.Other} {
		i.todo = append(i.todo, Question{Class: policydb.ClassFile, Data: []byte(path), As: as})
	}
}

// sockets are questions about all families: about all types of one, and of those
// that the profile treats alike about one type each. One question where the profile
// mediates none.
func sockets(p *policydb.Profile) (out []Question) {
	mediates := p.Mediates(policydb.ClassNetV8) == policydb.Yes
	type granted [askTypes]policydb.Raw
	asked := map[granted]bool{}
	for family := uint16(1); family <= askFamilies; family++ {
		var all []Question
		var g granted
		for typ := range uint16(askTypes) {
			data := binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, family), typ+1)
			all = append(all, Question{Class: policydb.ClassNetV8, Data: data, As: policydb.Owner})
			g[typ], _ = p.Query(policydb.ClassNetV8, data, policydb.Owner)
		}
		switch {
		case !mediates:
			return all[:1]
		case asked[g]:
			all = all[family%askTypes:][:1]
		}
		asked[g] = true
		out = append(out, all...)
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

// together is how many policies are read at the same time to be asked about, by all
// processors.
const together = 32

// examined remembers about which policies the kernel has answered all as they say: it would
// answer the same about the same bytes, for as long as it runs. Most changes of a text,
// as of a comment, leave the bytes as they are.
type examined struct {
	sync.Mutex
	asked map[[sha256.Size]byte]int // how many questions
}

// maxExamined bounds what is remembered; when it is reached it begins anew.
const maxExamined = 4096

// examinedKey is of the bytes that were given to the kernel and its own checksums of what
// it made of them.
func examinedKey(c *attach.Compiled) (key [sha256.Size]byte) {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(c.Checksums)) {
		fmt.Fprintf(h, "%q %q\n", name, c.Checksums[name])
	}
	h.Write(c.Blob)
	h.Sum(key[:0])
	return key
}

// get is how many questions were answered about a policy that is staged; 0 if it is to be
// asked about.
func (e *examined) get(c *attach.Compiled) int {
	key := examinedKey(c)
	e.Lock()
	defer e.Unlock()
	return e.asked[key]
}

func (e *examined) put(c *attach.Compiled) {
	if c.NotAsked != "" || c.Disagrees != "" || c.Asked == 0 {
		return
	}
	key := examinedKey(c)
	e.Lock()
	defer e.Unlock()
	if e.asked == nil || len(e.asked) >= maxExamined {
		e.asked = map[[sha256.Size]byte]int{}
	}
	e.asked[key] = c.Asked
}

// examine asks the kernel about policies in a staging namespace, and compares
// its answers with what the compiled policy says: see attach.Compiled. The bytes
// that are asked about are those that go live.
//
// All profiles of all policies take turns, so that each has its share of the
// time, however many there are. Of more policies than are read together each group
// has its share.
//
// Each processor asks about its part of them.
func (s *System) examine(ctx context.Context, ns string, policies []*attach.Compiled) {
	if len(policies) == 0 {
		return
	}
	end := time.Now().Add(askTime)
	var parts sync.WaitGroup
	n := min(len(policies), runtime.GOMAXPROCS(0))
	for part := range slices.Chunk(policies, (len(policies)+n-1)/n) {
		parts.Go(func() { s.examinePart(ctx, ns, part, end, max(1, together/n)) })
	}
	parts.Wait()
}

// examinePart reads no more than together policies at a time.
func (s *System) examinePart(ctx context.Context, ns string, policies []*attach.Compiled, end time.Time, together int) {
	err := s.asking(func(a *access) error {
		for rest := policies; len(rest) > 0; {
			group := rest[:min(together, len(rest))]
			share := time.Until(end) * time.Duration(len(group)) / time.Duration(len(rest))
			rest = rest[len(group):]
			ctx, cancel := context.WithTimeoutCause(ctx, share, errTimeOver)
			takeTurns(ctx, inquiries(group), func(i *inquiry, questions []Question) error { return s.compare(ctx, a, ns, i, questions) })
			cancel()
		}
		return nil
	})
	if err != nil {
		for _, c := range policies {
			c.NotAsked = err.Error()
		}
	}
}

var errTimeOver = errors.New("the time for it was over")

// inquiries are those about all profiles of policies, children and hats too.
func inquiries(policies []*attach.Compiled) (out []*inquiry) {
	for _, c := range policies {
		profiles, err := policydb.Parse(c.Blob)
		if err != nil {
			c.NotAsked = fmt.Sprintf("cannot ask the kernel about it: %v", err)
			continue
		}
		for i := range profiles {
			out = append(out, &inquiry{c: c, p: &profiles[i]})
		}
	}
	return out
}

// takeTurns asks a portion about each profile, and then the next one, until all is
// asked or the time is over.
func takeTurns(ctx context.Context, turns []*inquiry, ask func(*inquiry, []Question) error) {
	for len(turns) > 0 {
		turns = slices.DeleteFunc(turns, func(i *inquiry) (done bool) {
			if i.c.Disagrees != "" {
				return true
			}
			if ctx.Err() != nil {
				i.c.NotAsked = cmp.Or(i.c.NotAsked, fmt.Sprintf("cannot ask the kernel all about profile %s: %v", clean(i.p.Name), context.Cause(ctx)))
				return true
			}
			questions := i.next()
			if err := ask(i, questions); err != nil {
				i.c.NotAsked = cmp.Or(i.c.NotAsked, err.Error())
				return true
			}
			return len(questions) == 0
		})
	}
}

func (s *System) compare(ctx context.Context, a *access, ns string, i *inquiry, questions []Question) error {
	answers := make([]policydb.Raw, len(questions))
	if err := a.askAll(ctx, ns, i.p.Name, questions, answers); err != nil {
		return err
	}
	for j, q := range questions {
		want, known := i.p.Query(q.Class, q.Data, q.As)
		if !known {
			continue
		}
		if d := s.differ(q, answers[j], want); d != "" {
			i.c.Disagrees = fmt.Sprintf("profile %s, %s: %s", clean(i.p.Name), q, d)
			return nil
		}
		i.c.Asked++
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
