package attach

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Answer is one of three; a later constant beats an earlier one. Its zero
// value is none of them and reads as unknown.
type Answer int8

// The answers: not-confined beats unknown beats confined.
const (
	noAnswer Answer = iota
	Confined
	Unknown
	NotConfined
)

func (a Answer) String() string {
	switch a {
	case Confined:
		return "confined"
	case NotConfined:
		return "not-confined"
	}
	return "unknown"
}

// MarshalText makes an Answer readable in JSON.
func (a Answer) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText is the inverse; anything unexpected is unknown.
func (a *Answer) UnmarshalText(b []byte) error {
	switch string(b) {
	case "confined":
		*a = Confined
	case "not-confined":
		*a = NotConfined
	default:
		*a = Unknown
	}
	return nil
}

// Verdict is the answer for one start of a unit, as seen at a time.
type Verdict struct {
	Unit         string    `json:"unit"`
	InvocationID string    `json:"invocationID,omitempty"`
	Profile      string    `json:"profile"`
	Answer       Answer    `json:"answer"`
	Reasons      []Reason  `json:"reasons,omitempty"` // worst first; notes last
	Tasks        int       `json:"tasks"`
	Processes    int       `json:"processes"`
	PrivateTmp   Tri       `json:"privateTmp"` // seen at every process
	At           time.Time `json:"at"`
}

// Repeats reports whether a verdict says what an earlier one says, but for its time, and for
// how many tasks there were.
func (v *Verdict) Repeats(old *Verdict) bool {
	if v == nil || old == nil {
		return v == old
	}
	return v.Unit == old.Unit && v.InvocationID == old.InvocationID && v.Profile == old.Profile && v.Answer == old.Answer &&
		v.PrivateTmp == old.PrivateTmp && slices.Equal(v.Reasons, old.Reasons)
}

// Judge gives the verdict. It answers confined only when everything that could
// speak against it was looked at and did not:
//
//  1. AppArmor is on and its global mode is enforce or kill.
//  2. The effective systemd settings are the declared ones.
//  3. The kernel's checksum of each profile is the accepted one.
//  4. Every task carries exactly the profile, one of its children or hats, or
//     an allowed one, in enforce or kill mode, alone or stacked with
//     "unconfined".
//  5. Where a private /tmp is asked for, no process sees the host's.
//  6. Where socket options are held to a list, the kernel has aaunit's programs
//     attached to the unit's control group, with that list.
//  7. All of this belongs to one start: the InvocationID did not change.
func Judge(d Desired, o Observed) Verdict {
	v := Verdict{Unit: d.Unit, Profile: d.Profile, InvocationID: o.Unit.InvocationID, At: o.At}
	if d.Attachment == nil {
		v.Answer, v.Reasons = Detached.Bearing(), []Reason{because(Detached, "no attachment names %s", d.Unit)}
		return v
	}
	v.Reasons = append(v.Reasons, judgeHost(o.Host)...)
	v.Reasons = append(v.Reasons, Effective(d, o.Unit)...)
	v.Reasons = append(v.Reasons, judgePolicy(d, o.Policy)...)
	if o.Scan == nil {
		v.Reasons = append(v.Reasons, noTasks(o))
	} else {
		s := *o.Scan
		v.At, v.InvocationID = cmp.Or(o.At, s.At), s.Before
		v.Tasks, v.Processes = len(s.Tasks), s.processes()
		tasks, reasons := judgeScan(d, o, s)
		v.Reasons = append(v.Reasons, reasons...)
		v.PrivateTmp, reasons = judgeTmp(d.wantTmp(o.Unit), s, tasks)
		v.Reasons = append(v.Reasons, reasons...)
	}
	v.Reasons = append(v.Reasons, judgeSockets(d, o)...)
	sortReasons(v.Reasons)
	v.Answer = Confined
	for _, r := range v.Reasons {
		v.Answer = max(v.Answer, r.Code.Bearing())
	}
	return v
}

// ShowsProfile reports whether the unit's tasks were seen with all that a restart gives: the
// profile, and the private /tmp that is asked for. A verdict may be another one than confined
// all the same: for complain mode, where that is wished, or for doubts about socket options.
func (v Verdict) ShowsProfile(d Desired) bool {
	return v.Tasks > 0 && d.Attachment != nil && !slices.ContainsFunc(v.Reasons, func(r Reason) bool {
		switch r.Code {
		case TaskComplain:
			return d.Attachment.Mode != WishComplain
		case SocketsOpen, SocketsUnknown:
			return false
		}
		return r.Code.Bearing() != Confined
	})
}

// On is the verdict where AppArmor on the host was read later than the verdict was
// given: it is confined no longer than the host confines.
func (v Verdict) On(h Host) Verdict {
	reasons := judgeHost(h)
	for _, r := range reasons {
		v.Answer = max(v.Answer, r.Code.Bearing())
	}
	for _, r := range v.Reasons {
		if !slices.Contains(reasons, r) {
			reasons = append(reasons, r)
		}
	}
	sortReasons(reasons)
	v.Reasons = reasons
	return v
}

// sortReasons puts the worst first.
func sortReasons(list []Reason) {
	slices.SortStableFunc(list, func(a, b Reason) int { return cmp.Compare(b.Code.Bearing(), a.Code.Bearing()) })
}

// Confines reports whether the kernel puts profiles in force at all.
func (h Host) Confines() bool { return len(judgeHost(h)) == 0 }

func judgeHost(h Host) []Reason {
	switch {
	case h.Enabled == No:
		return []Reason{because(AppArmorOff, "AppArmor is not enabled in this kernel")}
	case h.Enabled != Yes:
		return []Reason{because(AppArmorUnknown, "whether AppArmor is enabled could not be read: %s", orUnsaid(h.Problem))}
	case h.GlobalMode == "":
		return []Reason{because(AppArmorUnknown, "AppArmor's global mode could not be read: %s", orUnsaid(h.Problem))}
	case !h.GlobalMode.Confines():
		return []Reason{because(GlobalComplain, "AppArmor's global mode is %s", h.GlobalMode).
			at("/sys/module/apparmor/parameters/mode")}
	}
	return nil
}

func orUnsaid(s string) string {
	if s == "" {
		return "no cause was given"
	}
	return s
}

// Effective compares the settings that systemd has in effect with the declared
// ones, and names the file that is to blame for a difference.
func Effective(d Desired, u Unit) []Reason {
	if !u.Found() {
		return []Reason{because(UnitNotFound, "systemd knows no unit %s", d.Unit)}
	}
	var out []Reason
	s := u.Settings
	blame := func(r Reason, key string) Reason {
		w := s.Winner(key)
		if w == nil {
			return r
		}
		if ours(w.Path) && !Outranks(w.Path, d.DropInPath(), u.ID) {
			return r.next("systemctl daemon-reload")
		}
		return r.at(fmt.Sprintf("%s:%d", w.Path, w.Line)).
			next(fmt.Sprintf("take the %s= line out of %s", key, w.Path))
	}
	switch {
	case s.Profile != d.Profile && s.Profile == "":
		out = append(out, blame(because(DirectiveOverridden, "%s has no AppArmorProfile= in effect, %s was declared", d.Unit, d.Profile), "AppArmorProfile"))
	case s.Profile != d.Profile:
		out = append(out, blame(because(DirectiveOverridden, "%s has AppArmorProfile=%s in effect, %s was declared", d.Unit, s.Profile, d.Profile), "AppArmorProfile"))
	case s.IgnoreMissing:
		out = append(out, blame(because(IgnorePrefix, "%s has AppArmorProfile=-%s in effect", d.Unit, s.Profile), "AppArmorProfile"))
	}
	if !s.AssertAppArmor {
		out = append(out, blame(because(AssertionOverridden, "%s has no AssertSecurity=apparmor in effect", d.Unit), "AssertSecurity"))
	}
	if want := d.wantTmp(u); s.PrivateTmp.rank() < want.rank() {
		why := blame(because(PrivateTmpOverridden, "%s has PrivateTmp=%s in effect, %s was declared", d.Unit, cmp.Or(s.PrivateTmp, PrivateTmpNo), want), "PrivateTmp")
		if w := s.Winner("PrivateTmp"); w != nil && ours(w.Path) && want == PrivateTmpDisconnected && !s.KnowsDisconnected {
			why = why.next("say PrivateTmp=yes: systemd knows disconnected from version 257 on")
		}
		out = append(out, why)
	}
	if want := d.Attachment.SocketsWanted(); want != nil && want.Requires() && !s.startsSockets(d.Unit, true) {
		out = append(out, blame(because(SocketsOverridden, "%s does not run the start helper of its socket options", d.Unit), "ExecStartPre"))
	}
	return out
}

// judgePolicy compares what the kernel runs with what was accepted: both must
// hold the unit's profiles, and the same children and hats of them. What else was accepted
// with them must be there, too, but for what is left to another unit.
func judgePolicy(d Desired, p Policy) []Reason {
	if p.LiveError != "" {
		return []Reason{because(PolicyUnreadable, "the loaded policy could not be read: %s", p.LiveError)}
	}
	var out []Reason
	names := d.names()
	for _, name := range names {
		if _, ok := p.Live[name]; !ok {
			out = append(out, because(ProfileNotLoaded, "profile %s is not loaded", name))
		}
		if _, ok := d.Record.Accepted[name]; !ok {
			out = append(out, because(PolicyNotAccepted, "no checksum of profile %s is on record", name))
		}
	}
	for _, name := range sortedKeys(d.Record.Accepted) {
		want := d.Record.Accepted[name]
		live, ok := p.Live[name]
		switch {
		case p.LeftTo[TopOf(name)] != "":
		case !ok && slices.Contains(names, name): // said above
		case !ok:
			out = append(out, because(ProfileNotLoaded, "profile %s is not loaded", name))
		case live.Checksum == "":
			out = append(out, because(PolicyUnreadable, "the kernel gives no checksum of profile %s", name))
		case live.Checksum != want:
			out = append(out, because(PolicyDiffers, "the kernel runs %s with checksum %s, accepted was %s", name, short(live.Checksum), short(want)))
		}
	}
	for _, name := range sortedKeys(p.Live) {
		parent := slices.IndexFunc(names, func(n string) bool { return n != name && covers(n, name) })
		if _, ok := d.Record.Accepted[name]; !ok && parent >= 0 && !slices.Contains(names, name) {
			out = append(out, because(PolicyDiffers, "the kernel has loaded %s, which was not accepted with %s", name, names[parent]))
		}
	}
	return out
}

func short(sum string) string {
	kind, hex, ok := strings.Cut(sum, ":")
	if !ok || len(hex) <= 8 {
		return sum
	}
	return kind + " " + hex[:8] + "…"
}

func noTasks(o Observed) Reason {
	u := o.Unit
	if o.JustStarted || u.SubState == "exited" {
		return because(EndedBeforeSeen, "%s started and had no task left when it was looked at", u.ID)
	}
	return because(NotRunning, "%s is %s", u.ID, cmp.Or(u.ActiveState, "not loaded"))
}

// judgeScan looks at the tasks. It gives back those that are the unit's own and
// have come to rest, for further questions.
func judgeScan(d Desired, o Observed, s Scan) (own []Task, out []Reason) {
	if s.Problem != "" {
		out = append(out, because(ScanFailed, "the tasks of %s could not be looked at: %s", d.Unit, s.Problem))
	}
	switch {
	case s.Before != s.After:
		out = append(out, because(RestartedMeanwhl, "%s was restarted during the look", d.Unit))
	case s.Before != o.Unit.InvocationID:
		out = append(out, because(RestartedMeanwhl, "%s was restarted between the look at its settings and the look at its tasks", d.Unit))
	case s.Before == "" && len(s.Tasks) > 0:
		out = append(out, because(ScanFailed, "which start of %s the tasks belong to could not be read: systemd gave no InvocationID", d.Unit))
	}
	if len(s.Tasks) == 0 && s.Problem == "" {
		return nil, append(out, noTasks(o))
	}
	if !s.Stable && s.Problem == "" {
		out = append(out, because(TasksUnstable, "the tasks of %s changed between every two looks", d.Unit))
	}
	judged := 0
	groups := map[string]*taskGroup{}
	for _, t := range s.Tasks {
		if leftBehind(o.Unit, t) {
			continue
		}
		judged++
		code, ok := judgeTask(d, o, t)
		if code != TasksUnstable {
			own = append(own, t)
		}
		if !ok {
			continue
		}
		key := string(code) + "\x00" + t.Label.String()
		if groups[key] == nil {
			groups[key] = &taskGroup{code: code, first: t}
		}
		groups[key].count++
	}
	if judged == 0 && s.Problem == "" {
		return nil, append(out, because(NotRunning, "%s has no task but systemd's own", d.Unit))
	}
	escaped := false
	keys := sortedKeys(groups)
	slices.SortStableFunc(keys, func(a, b string) int { return cmp.Compare(groups[b].code.Bearing(), groups[a].code.Bearing()) })
	for i, key := range keys {
		g := groups[key]
		escaped = escaped || g.code == TaskUnconfined || g.code == TaskOther
		switch {
		case i < maxGroups:
			out = append(out, g.reason(d, o))
		case i == maxGroups:
			out = append(out, because(g.code, "%d more labels were seen that speak against it", len(keys)-maxGroups))
		}
	}
	if escaped {
		for _, c := range o.Unit.Settings.Exec {
			if c.Privileged && !c.StartsSockets() {
				out = append(out, because(ExecPrivileged, "%s=+%s runs without the profile", c.Property, c.Path))
			}
		}
		if o.Unit.Settings.PermissionsStartOnly {
			out = append(out, because(PermissionsStartOnly, "PermissionsStartOnly=yes takes the profile off every command but ExecStart="))
		}
	}
	return own, out
}

// leftBehind reports whether a task is the (sd-pam) of PAMName=, which systemd
// leaves in the unit, unconfined, to close the session one day.
func leftBehind(u Unit, t Task) bool {
	return u.Settings.PAMName != "" && t.Manager && !t.InTransit && t.Problem == "" && t.Label.IsUnconfined() &&
		t.PID != u.MainPID && t.PID != u.ControlPID
}

// judgeTask says what is to be said about one task; ok is false where there is
// nothing.
func judgeTask(d Desired, o Observed, t Task) (c Code, ok bool) {
	u := o.Unit
	switch {
	case t.Problem != "" || len(t.Label.Profiles) == 0:
		return TaskUnreadable, true
	case t.InTransit, t.Manager && t.Label.IsUnconfined():
		// systemd's own process on its way to the program, or one of its helpers.
		return TasksUnstable, true
	case t.Label.IsUnconfined() && t.PID != u.MainPID && (freeCommand(u) || o.helperDue() && u.Settings.helper(t)):
		// It may end with the command or live on; a look after it will tell.
		return TasksUnstable, true
	case t.Label.IsUnconfined():
		return TaskUnconfined, true
	}
	fit := t.Label.Fits(d.Profile, d.allowed())
	switch {
	case fit == FitOther:
		return TaskOther, true
	case !t.Label.Mode.Confines():
		return TaskComplain, true
	case fit == FitStacked:
		return TaskStacked, true
	}
	return "", false
}

// freeCommand reports whether one of the commands around ExecStart= is at work
// that systemd runs without the profile. The start helper of the socket options is one
// while it runs itself; where systemd told of the command before it, see helperDue.
func freeCommand(u Unit) bool {
	return u.ControlPID != 0 && (u.Settings.PermissionsStartOnly ||
		slices.ContainsFunc(u.Settings.Exec, func(c ExecCommand) bool {
			return c.Privileged && c.Property != "ExecStart" && (!c.StartsSockets() || c.PID == u.ControlPID)
		}))
}

// maxGroups bounds the labels that a verdict tells of: in complain mode every
// program that a task starts makes a new one.
const maxGroups = 20

// taskGroup is the tasks that share a label and what is to be said about it.
type taskGroup struct {
	code  Code
	first Task
	count int
}

func (g taskGroup) reason(d Desired, o Observed) Reason {
	t := g.first
	who := fmt.Sprintf("%s (PID %d)", cmp.Or(t.Exe, t.Comm), t.PID)
	if g.count > 1 {
		who += fmt.Sprintf(" and %d more", g.count-1)
	}
	var r Reason
	switch g.code {
	case TaskUnreadable:
		r = because(g.code, "the label of %s could not be read: %s", who, orUnsaid(t.Problem))
	case TasksUnstable:
		r = because(g.code, "%s is systemd on its way to the program, or a command that runs without the profile and may be about to end", who)
	case TaskUnconfined:
		r = because(g.code, "%s is unconfined", who)
	default:
		r = because(g.code, "%s runs as %s", who, t.Label)
	}
	if g.code == TaskUnconfined || g.code == TaskOther {
		for _, p := range o.Policy.Candidates[d.Profile] {
			for _, l := range p.Leaves {
				if t.Exe != "" && strings.Contains(l.Rule, path.Base(t.Exe)) {
					return r.at(fmt.Sprintf("%s, rule %q", p.File, l.Rule))
				}
			}
		}
	}
	return r
}

// judgeTmp looks at what the processes of the given tasks see as /tmp and
// /var/tmp: neither may be one of the host's two, in whichever place, whatever of the
// other could be told. A process that has ended sees nothing any more; but at least
// one must have been looked at.
func judgeTmp(want PrivateTmp, s Scan, tasks []Task) (Tri, []Reason) {
	host := s.HostTmp
	ofHost := func(dir string) bool { return dir != "" && (dir == host.Tmp || dir == host.VarTmp) }
	var shared, unread, ended []int
	cause := host.Problem
	pids := map[int]bool{}
	for _, t := range tasks {
		if pids[t.PID] {
			continue
		}
		pids[t.PID] = true
		switch v := s.Tmp[t.PID]; {
		case v.Ended:
			ended = append(ended, t.PID)
		case ofHost(v.Tmp) || ofHost(v.VarTmp):
			shared = append(shared, t.PID)
		case v.Tmp == "" || v.VarTmp == "" || host.Tmp == "" || host.VarTmp == "":
			unread, cause = append(unread, t.PID), cmp.Or(cause, v.Problem)
		}
	}
	if len(ended) > 0 && len(ended) == len(pids) {
		unread, cause = ended, cmp.Or(cause, "it has ended")
	}
	seen := CouldNotTell
	switch {
	case len(shared) > 0:
		seen = No
	case len(unread) == 0 && len(pids) > 0:
		seen = Yes
	}
	if want == PrivateTmpNo {
		return seen, nil
	}
	var out []Reason
	if len(shared) > 0 {
		out = append(out, because(TmpShared, "PID %d sees the host's /tmp or /var/tmp", slices.Min(shared)))
	}
	if len(unread) > 0 {
		out = append(out, because(TmpUnreadable, "where /tmp of PID %d is could not be read: %s", slices.Min(unread), orUnsaid(cause)))
	}
	return seen, out
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
