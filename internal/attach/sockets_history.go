package attach

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What was seen of a unit's socket options belongs to the executable that ran: the
// kernel's table goes on over starts and ends with the boot, so that it is divided
// by the time of the start, and what is to outlive the boot is kept here.

// Bounds on what is kept of a unit.
const (
	// MaxSocketBuilds is how many executables are kept, the newest.
	MaxSocketBuilds = 8
	// MaxKeptUses is how many kinds of call are kept of one executable, the first.
	MaxKeptUses = 512
	// maxCounted bounds what is remembered of the kernel's table.
	maxCounted = 4096
)

// SocketHistory is what was seen of the socket options of one unit, by executable.
type SocketHistory struct {
	Unit string `json:"unit"`
	// Reviewed is when the list was last changed or confirmed, and under which
	// executable; nil where that is not known.
	Reviewed *SocketReview `json:"reviewed,omitempty"`
	// Builds are the executables that were seen to run, the newest last.
	Builds []SocketBuild `json:"builds,omitempty"`
	// Boot and Counted are what the kernel's table said last, so that each call
	// counts once.
	Boot    string                 `json:"boot,omitempty"`
	Counted map[string]SocketCount `json:"counted,omitempty"`
}

// SocketReview is a list as somebody left it, or as it was first found.
type SocketReview struct {
	// List is what the lists said, see SocketOptions.lists; the mode is no part of it.
	List string    `json:"list"`
	At   time.Time `json:"at"`
	By   string    `json:"by,omitempty"` // "" it was found in a file
	// Program is what ran then; without a checksum where nothing did.
	Program EvidenceProgram `json:"program"`
	// Lost: it was on record what ran then, and is no more.
	Lost bool `json:"lost,omitempty"`
}

// SocketBuild is one executable, and what it was seen to use.
type SocketBuild struct {
	Program EvidenceProgram `json:"program"`
	Kernel  string          `json:"kernel"` // release of the one that it last ran on
	// Invocation is the last start that was seen, of Starts.
	Invocation string    `json:"invocation"`
	Starts     int       `json:"starts"`
	Since      time.Time `json:"since"`
	Until      time.Time `json:"until"`
	// Uses are in the order of first appearance. Of an option that an executable
	// before it used in the same boot, the count may include calls of that one since
	// it was last looked at.
	Uses []SocketUse `json:"uses"`
	// LeftOut counts kinds of call that found no place.
	LeftOut int `json:"leftOut,omitempty"`
}

// SocketCount is how many calls were let through and refused.
type SocketCount struct {
	Allowed uint64 `json:"allowed,omitempty"`
	Refused uint64 `json:"refused,omitempty"`
}

// SocketRun is a start of a unit, and what runs in it.
type SocketRun struct {
	Program    EvidenceProgram
	Kernel     string
	Boot       string
	Invocation string
	// Started is when systemd began it, and Began when its main process was, before
	// which the start helper ran; zero where there is none.
	Started, Began time.Time
	At             time.Time
}

// key tells kinds of call apart.
func (u SocketUse) key() string {
	return fmt.Sprintf("%s %s %s %t", u.Call, u.Option, u.Socket, u.BySystemd)
}

// Same reports whether two programs are the same bytes; CouldNotTell where the
// checksum of either is missing.
func (p EvidenceProgram) Same(q EvidenceProgram) Tri {
	if p.SHA256 == "" || q.SHA256 == "" {
		return CouldNotTell
	}
	return TriOf(p.SHA256 == q.SHA256)
}

// Review puts on record that the list, as it is, is meant for the program.
func (h SocketHistory) Review(s SocketOptions, p EvidenceProgram, by string, at time.Time) SocketHistory {
	h.Reviewed = &SocketReview{List: s.lists(), At: at, By: by, Program: p}
	return h
}

// Found notes a list that somebody wrote into a file: it is taken to be meant for
// what runs when it is first seen. One of which that was on record and is no more (lost)
// is meant for nobody knows what, until somebody changes or confirms it.
func (h SocketHistory) Found(s SocketOptions, p EvidenceProgram, at time.Time, lost bool) SocketHistory {
	if h.Reviewed == nil && lost {
		h.Reviewed = &SocketReview{List: s.lists(), At: at, Lost: true}
	}
	if r := h.Reviewed; r != nil && r.List == s.lists() && (r.Lost || r.Program.SHA256 != "" || p.SHA256 == "") {
		return h
	}
	by := ""
	if r := h.Reviewed; r != nil && r.List == s.lists() {
		by = r.By // it was reviewed before anything ran
	}
	return h.Review(s, p, by, at)
}

// Merge adds what the kernel's tables say during a start: that of the unit, and those
// of the .socket units that start it. What was last used before the start is not of
// its executable.
func (h SocketHistory) Merge(tables []SocketRecording, run SocketRun) SocketHistory {
	before := h.Counted
	if h.Boot != run.Boot || run.Boot == "" {
		before = nil // the table is another one
	}
	var last *SocketBuild // that made the calls before this start
	if n := len(h.Builds); n > 0 {
		last = &h.Builds[n-1]
	}
	now := h.build(run)
	old := -1
	if last != nil {
		old = slices.IndexFunc(h.Builds, func(b SocketBuild) bool { return b.is(last.Program) })
	}
	h.Boot, h.Counted = run.Boot, map[string]SocketCount{}
	for _, r := range tables {
		for _, u := range r.Seen {
			k := r.Unit + " " + u.key()
			was := before[k]
			if len(h.Counted) < maxCounted {
				h.Counted[k] = SocketCount{u.Allowed, u.Refused}
			}
			if u.Allowed < was.Allowed || u.Refused < was.Refused {
				was = SocketCount{} // it was forgotten, and is counted anew
			}
			fresh := u
			fresh.Allowed, fresh.Refused = u.Allowed-was.Allowed, u.Refused-was.Refused
			if fresh.Allowed+fresh.Refused == 0 {
				continue
			}
			to := now
			switch {
			case !u.Last.Time.Before(run.Started):
			case before == nil || old < 0:
				continue // of nobody who is known
			default:
				to = old
			}
			if to == now && u.First.Time.Before(run.Started) {
				fresh.First = fresh.Last // the first of this start is not known
			}
			h.Builds[to].use(fresh)
		}
	}
	return h
}

// build finds the build of a start, or begins it, and puts it last.
func (h *SocketHistory) build(run SocketRun) int {
	h.Builds = slices.Clone(h.Builds) // others may hold on to what there was
	for i := range h.Builds {
		h.Builds[i].Uses = slices.Clone(h.Builds[i].Uses)
	}
	i := slices.IndexFunc(h.Builds, func(b SocketBuild) bool { return b.is(run.Program) })
	if i < 0 {
		h.Builds = append(h.Builds, SocketBuild{Program: run.Program, Since: run.Started, Uses: []SocketUse{}})
	} else {
		b := h.Builds[i]
		h.Builds = append(slices.Delete(h.Builds, i, i+1), b)
	}
	h.Builds = h.Builds[max(0, len(h.Builds)-MaxSocketBuilds):]
	last := len(h.Builds) - 1
	b := &h.Builds[last]
	b.Program, b.Kernel, b.Until = run.Program, run.Kernel, run.At
	if b.Invocation != run.Invocation {
		b.Invocation, b.Starts = run.Invocation, b.Starts+1
	}
	return last
}

// is reports whether the program is this build. What has no checksum is only ever
// itself.
func (b SocketBuild) is(p EvidenceProgram) bool {
	if p.SHA256 == "" {
		return b.Program.SHA256 == "" && b.Program.Path == p.Path
	}
	return b.Program.Same(p) == Yes
}

func (b *SocketBuild) use(u SocketUse) {
	i := slices.IndexFunc(b.Uses, func(x SocketUse) bool { return x.key() == u.key() })
	switch {
	case i >= 0:
		x := b.Uses[i]
		x.Allowed, x.Refused, x.Last, x.Hurts = x.Allowed+u.Allowed, x.Refused+u.Refused, u.Last, u.Hurts
		if u.Refused > 0 {
			x.LastRefused = u.LastRefused
		}
		b.Uses[i] = x
	case len(b.Uses) == MaxKeptUses:
		b.LeftOut++
	default:
		b.Uses = append(b.Uses, u)
	}
}

// Stale says whether the list is of another executable than the one that runs. why
// puts it into words, where it is not No.
func (h SocketHistory) Stale() (stale Tri, why string) {
	if len(h.Builds) == 0 || h.Reviewed == nil {
		return CouldNotTell, "no start of the unit was seen since it has a list"
	}
	if h.Reviewed.Lost {
		return CouldNotTell, "what the list was made for is not on record any more; look at it, and confirm it with aaunitctl sockopts enforce or record"
	}
	now, then := h.Builds[len(h.Builds)-1].Program, h.Reviewed.Program
	switch now.Same(then) {
	case Yes:
		return No, ""
	case No:
		return Yes, fmt.Sprintf("the list is of %s, and what runs now is %s", then.Build(), now.Build())
	}
	return CouldNotTell, fmt.Sprintf("the list is of %s, what runs now is %s", then.Build(), now.Build())
}

// Build names an executable by what tells it from others of its path.
func (p EvidenceProgram) Build() string {
	var what []string
	if p.Package != "" {
		what = append(what, strings.TrimSpace(p.Package+" "+p.Version))
	}
	switch {
	case p.SHA256 != "":
		what = append(what, "sha256 "+p.SHA256[:min(len(p.SHA256), 12)]+"…")
	case p.Problem != "":
		what = append(what, "which could not be read: "+p.Problem)
	}
	name := cmp.Or(p.Path, "an executable that is not known")
	if len(what) > 0 {
		name += " (" + strings.Join(what, ", ") + ")"
	}
	return name
}

// SocketDifference is what two builds use differently. Options of which a build
// made calls on sockets of several kinds are one.
type SocketDifference struct {
	Old  SocketBuild `json:"old"`
	New  SocketBuild `json:"new"`
	More []SocketUse `json:"more"` // what the new one uses and the old one was not seen to
	Less []SocketUse `json:"less"`
}

// Difference compares what runs now with the executable that the list is of, or else
// with the one that ran before. ok is false where there are no two.
func (h SocketHistory) Difference() (d SocketDifference, ok bool) {
	if len(h.Builds) == 0 {
		return d, false
	}
	d.New = h.Builds[len(h.Builds)-1]
	i := len(h.Builds) - 2
	if r := h.Reviewed; r != nil && r.Program.SHA256 != "" {
		if k := slices.IndexFunc(h.Builds[:len(h.Builds)-1], func(b SocketBuild) bool { return b.is(r.Program) }); k >= 0 {
			i = k
		}
	}
	if i < 0 {
		return d, false
	}
	d.Old = h.Builds[i]
	d.More, d.Less = without(d.New.Uses, d.Old.Uses), without(d.Old.Uses, d.New.Uses)
	return d, true
}

// without lists what of a is not in b, by call and option, once each.
func without(a, b []SocketUse) []SocketUse {
	out := []SocketUse{}
	in := func(list []SocketUse, u SocketUse) bool {
		return slices.ContainsFunc(list, func(x SocketUse) bool { return x.Call == u.Call && x.Option == u.Option && !x.BySystemd })
	}
	for _, u := range a {
		if !u.BySystemd && !in(b, u) && !in(out, u) {
			out = append(out, u)
		}
	}
	return out
}
