package attach

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Denial is what one AppArmor record of the kernel's says, or several that say
// the same. Lost and Deaf make it something else: word of what was not heard.
//
// Every text in it comes from a program that was denied something, from a
// profile, or from the kernel: file names can hold any byte. String is safe to
// print.
type Denial struct {
	// Time is the kernel's, of the last record where several are merged. It is
	// the time of the kernel's last tick, so it may lie a few milliseconds before
	// what happened (ktime_get_coarse_real_ts64 in kernel/audit.c,
	// audit_get_stamp).
	Time time.Time `json:"time"`
	// Count is how many records say this; First and Last are the times of the
	// first and the last of them.
	Count int       `json:"count"`
	First time.Time `json:"first"`
	Last  time.Time `json:"last"`

	// Allowed: complain mode let it pass. Killed: kill mode ended the task.
	Allowed bool `json:"allowed,omitempty"`
	Killed  bool `json:"killed,omitempty"`

	// Profile refused: "name", "name//child", and in complain mode also
	// "name//null-/usr/bin/id". Where a whole stack refused it is all of it,
	// joined by "//&". Namespace is the policy namespace as the kernel names it
	// ("root//ns"), "" for the host's.
	Profile   string `json:"profile"`
	Namespace string `json:"namespace,omitempty"`

	Operation string `json:"operation"`        // "open", "capable", "ptrace" …
	Class     string `json:"class,omitempty"`  // "file", "net" …; Debian 12 has none
	Name      string `json:"name,omitempty"`   // path, or profile
	Target    string `json:"target,omitempty"` // the other path, or the profile to change to
	Peer      string `json:"peer,omitempty"`   // the other task's label
	Requested string `json:"requested,omitempty"`
	Denied    string `json:"denied,omitempty"` // the part of Requested that no rule allows

	Family     string `json:"family,omitempty"` // of a socket: "inet" …
	SockType   string `json:"sockType,omitempty"`
	Protocol   string `json:"protocol,omitempty"`
	Capability string `json:"capability,omitempty"` // "sys_admin"
	Signal     string `json:"signal,omitempty"`     // "term"
	FSType     string `json:"fsType,omitempty"`     // of a mount
	Source     string `json:"source,omitempty"`     // of a mount
	Flags      string `json:"flags,omitempty"`      // of a mount
	Rlimit     string `json:"rlimit,omitempty"`     // "nofile"
	Value      string `json:"value,omitempty"`      // that it was to be set to

	// PID is the process that was running (task_tgid_nr of current, in
	// security/lsm_audit.c); see ByPeer.
	PID  int    `json:"pid,omitempty"`
	Comm string `json:"comm,omitempty"` // of the thread; anybody can choose it
	// HasOwner says that FSUID (who asked) and OUID (who owns the file) were told.
	HasOwner bool   `json:"hasOwner,omitempty"`
	FSUID    uint32 `json:"fsuid"`
	OUID     uint32 `json:"ouid"`
	Error    int    `json:"error,omitempty"` // a negative errno, beside Info
	Info     string `json:"info,omitempty"`  // the kernel's remark
	// Cut: a value was too long and is not whole.
	Cut bool `json:"cut,omitempty"`

	// Unit is where PID was running when the record came; "" means could not
	// tell, or, where there is a Cgroup, in none. InvocationID is the unit's start at
	// that time, Cgroup the control group.
	Unit         string `json:"unit,omitempty"`
	InvocationID string `json:"invocationID,omitempty"`
	Cgroup       string `json:"cgroup,omitempty"`
	// ByProfile: the profile alone tells Unit, or Candidates, as the process could not
	// be asked: it may have been one under that profile which is none of the unit's.
	// Anybody can start one, where the profile attaches to a program by itself or who
	// starts it is unconfined.
	ByProfile bool `json:"byProfile,omitempty"`
	// Candidates are the units it may belong to, where it is not known to which
	// (see Attribute).
	Candidates []string `json:"candidates,omitempty"`

	// Lost > 0 is no denial: at least so many records, of which some may have
	// been denials, were lost before what comes next.
	Lost int `json:"lost,omitempty"`
	// Deaf is no denial either: nothing is heard any more, and why, until
	// something else comes.
	Deaf string `json:"deaf,omitempty"`
}

// IsDenial reports whether it is word of a denial, and not of what was not heard.
func (d Denial) IsDenial() bool { return d.Lost == 0 && d.Deaf == "" }

// Told reports whether the process itself told that it is the unit's, by its control
// group.
func (d Denial) Told() bool { return d.Unit != "" && !d.ByProfile }

// ByPeer reports whether the profile that refused is not that of PID: a signal is
// received, and a task traced or read, by what another process does, and the
// kernel asks the profiles of both (aa_may_signal and aa_may_ptrace in
// security/apparmor). The record then names the receiver's profile beside the
// sender's PID and Comm.
func (d Denial) ByPeer() bool {
	switch d.Operation {
	case "signal":
		return strings.Contains(d.Denied, "receive")
	case "ptrace":
		return strings.Contains(d.Denied, "readby") || strings.Contains(d.Denied, "tracedby")
	}
	return false
}

// DenialKey says when two denials are the same: one rule would have allowed both.
// It can be compared.
type DenialKey struct {
	allowed, killed, owner, cut                     bool
	namespace, profile, operation, class            string
	name, target, peer, requested, denied           string
	family, sockType, protocol, capability          string
	signal, fsType, source, flags, rlimit, rlimitTo string
	info                                            string
}

// Key leaves out who and when: process, unit and time; a process's number in a path
// under /proc, too, which is another one at each start unless it is 1. Of the two users
// only whether they are one counts, which is what "owner" rules ask.
func (d Denial) Key() DenialKey {
	return DenialKey{
		allowed: d.Allowed, killed: d.Killed, owner: d.HasOwner && d.FSUID == d.OUID, cut: d.Cut,
		namespace: d.Namespace, profile: d.Profile, operation: d.Operation, class: d.Class,
		name: ofAnyProcess(d.Name), target: d.Target, peer: d.Peer, requested: d.Requested, denied: d.Denied,
		family: d.Family, sockType: d.SockType, protocol: d.Protocol, capability: d.Capability,
		signal: d.Signal, fsType: d.FSType, source: d.Source, flags: d.Flags, rlimit: d.Rlimit, rlimitTo: d.Value,
		info: d.Info,
	}
}

// Merge takes in another denial with the same key. Who did it stays that of the
// later one. One of them that a process of the unit told is enough: what the unit's
// own programs do is in the record then.
func (d *Denial) Merge(e Denial) {
	first, last, count := d.First, d.Last, d.Count+e.Count
	byProfile := d.ByProfile && e.ByProfile
	if e.First.Before(first) {
		first = e.First
	}
	if !e.Last.Before(last) {
		last, *d = e.Last, e
	}
	d.First, d.Last, d.Time, d.Count, d.ByProfile = first, last, last, count, byProfile
}

// String is one line for people: "open /etc/shadow (r) denied, comm cat".
func (d Denial) String() string {
	switch {
	case d.Deaf != "":
		return printable("denials are not heard: " + d.Deaf)
	case d.Lost > 0:
		return fmt.Sprintf("records were lost, at least %d", d.Lost)
	}
	var b strings.Builder
	word := func(s string) {
		if s == "" {
			return
		}
		if b.Len() > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(s)
	}
	word(d.Operation)
	word(d.Capability)
	word(d.Family)
	word(d.SockType)
	word(d.Signal)
	word(d.Rlimit)
	word(d.FSType)
	if d.Source != "" {
		word(quoted(d.Source))
		word("on")
	}
	word(quoted(d.Name))
	if d.Target != "" && d.Target != d.Name {
		word("->")
		word(quoted(d.Target))
	}
	mask := cmp.Or(d.Denied, d.Requested, d.Flags)
	if mask != "" && mask != d.Operation {
		word("(" + mask + ")")
	}
	if d.Peer != "" {
		word("peer")
		word(quoted(d.Peer))
	}
	switch {
	case d.Killed:
		word("denied and killed")
	case d.Allowed:
		word("not allowed, passed by complain mode")
	default:
		word("denied")
	}
	if d.Info != "" {
		word("(" + d.Info + ")")
	}
	if d.Comm != "" {
		b.WriteString(", comm " + quoted(d.Comm))
	}
	if d.Count > 1 {
		fmt.Fprintf(&b, ", %d times", d.Count)
	}
	if d.ByProfile {
		b.WriteString(", " + onlyProfile)
	}
	line := printable(b.String())
	if len(line) > maxDetail {
		line = strings.ToValidUTF8(line[:maxDetail], "") + "…"
	}
	return line
}

// onlyProfile is what is said of a denial that the profile alone attributes.
const onlyProfile = "which process it was is not known"

// quoted sets off a text that holds spaces, quotes or brackets. What is in it
// is made printable later, together with the rest.
func quoted(s string) string {
	if !strings.ContainsAny(s, " \t\n\r\"(),") {
		return s
	}
	return `"` + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), `"`, `\"`) + `"`
}

// Attribute finds the unit of a denial by the profile that refused, where the
// process could not be asked any more, so that nothing better is known: it is a
// guess, and to be told as one (Denial.ByProfile). units has, for each unit that is attached,
// its profile and those of AllowProfiles=; children and hats belong to their
// profile. One unit that fits is the answer; of several none is told, and they
// are listed, sorted. A profile of another policy namespace is nobody's: those of
// attachments are the host's.
func Attribute(d Denial, units map[string][]string) (unit string, candidates []string) {
	if d.Namespace != "" || d.Profile == "" {
		return "", nil
	}
	members := strings.Split(d.Profile, "//&")
	for u, profiles := range units {
		if slices.ContainsFunc(profiles, func(p string) bool {
			return slices.ContainsFunc(members, func(m string) bool { return covers(p, m) })
		}) {
			candidates = append(candidates, u)
		}
	}
	if len(candidates) == 1 {
		return candidates[0], nil
	}
	slices.Sort(candidates)
	return "", candidates
}
