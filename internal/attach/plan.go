package attach

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"
)

// ActionKind is a step of a plan.
type ActionKind string

// In the order in which a pass takes them.
const (
	LoadPolicy ActionKind = "load-policy"
	// RestorePolicy makes the accepted policy of a file live again where that is
	// not, or not yet, what the file says now.
	RestorePolicy ActionKind = "restore-policy"
	// UnloadChild removes a child profile or hat that the text no longer has.
	// Loading the text anew does not: the kernel hands the children of the
	// replaced profile on to the new one (__replace_profile in its policy.c),
	// where change_hat and change_profile still find them.
	UnloadChild  ActionKind = "unload-child"
	WriteDropIn  ActionKind = "write-drop-in"
	RemoveDropIn ActionKind = "remove-drop-in"
	Reload       ActionKind = "daemon-reload"
	Restart      ActionKind = "restart"
	UnloadPolicy ActionKind = "unload-policy"
	// HoldSockets has the rules of the socket options hold for what runs, without a
	// restart. ReleaseSockets takes them off.
	HoldSockets    ActionKind = "hold-socket-options"
	ReleaseSockets ActionKind = "release-socket-options"
)

// Action is one step, with why it is taken.
type Action struct {
	Kind   ActionKind `json:"kind"`
	Target string     `json:"target"` // a file, a unit or a profile
	Reason Reason     `json:"reason"`
}

// Plan leads a unit from what was observed to what was declared. A plan without
// actions, refusals and pending reasons means: nothing to do.
type Plan struct {
	Unit    string   `json:"unit"`
	Profile string   `json:"profile,omitempty"`
	Actions []Action `json:"actions"`
	// Refusals say why nothing is done at all.
	Refusals []Reason `json:"refusals,omitempty"`
	// Warnings are ways around the profile that stay open, what does not survive a
	// reboot, and what is wrong with the unit's files and keeps nothing from being done.
	Warnings []Reason `json:"warnings,omitempty"`
	// Pending says what is left to a person or to the next start.
	Pending []Reason `json:"pending,omitempty"`
	// KeepsPolicy: the unit stays under the policy that was accepted before,
	// whatever the profile's text says now.
	KeepsPolicy bool `json:"keepsPolicy,omitempty"`
	// GivesWay: of what was accepted for the unit something is not put back, since another
	// unit's policy counts.
	GivesWay bool `json:"-"`
	// RestartsWith lists the units that the restart takes along.
	RestartsWith []string `json:"restartsWith,omitempty"`
	// TmpFiles lists files in the host's /tmp and /var/tmp that the unit has
	// open and will not see in a private /tmp.
	TmpFiles []string `json:"tmpFiles,omitempty"`
}

// Has reports whether the plan holds an action of that kind.
func (p Plan) Has(k ActionKind) bool {
	return slices.ContainsFunc(p.Actions, func(a Action) bool { return a.Kind == k })
}

func (p *Plan) add(k ActionKind, target string, r Reason) {
	p.Actions = append(p.Actions, Action{Kind: k, Target: target, Reason: r})
}

// Diff compares the wish with the world. It never plans a step for a unit that
// something speaks against: a refusal leaves everything as it is.
func Diff(d Desired, o Observed) Plan {
	if why := d.WhyPaused(o.At); why != nil {
		return diffPaused(d, *why)
	}
	if d.Attachment == nil {
		return diffDetach(d, o)
	}
	p := Plan{Unit: d.Unit, Profile: d.Profile, Actions: []Action{}}
	if d.pattern() {
		p.Refusals, p.Warnings = patternObstacles(d, o)
	} else {
		p.Refusals, p.Warnings = Obstacles(d, o)
	}
	p.Warnings = append(p.Warnings, reloadedInVain(o)...)
	if h := d.Record.Hold; h != nil {
		what := fmt.Sprintf("the attach of %s failed and is held", d.Unit)
		switch {
		case d.HeldWith != "":
			what = fmt.Sprintf("no unit of %s came up attached, so %s is held with it", d.HeldWith, d.Unit)
		case d.heldText():
			what = fmt.Sprintf("a changed policy of %s was undone and is held", d.Unit)
		case !h.Again.IsZero():
			what = fmt.Sprintf("the attach of %s failed, and is tried again at %s", d.Unit, h.Again.Format("15:04:05 MST"))
		}
		p.Pending = append(p.Pending, append([]Reason{because(Held, "%s", what)}, h.Reasons...)...)
		if !d.heldText() {
			if d.Keeps() {
				diffPolicy(&p, d, o)
			} else {
				diffFormer(&p, d, o)
			}
			diffFormerDropIn(&p, d, o)
			for _, name := range d.Record.Stays {
				p.add(UnloadPolicy, name, because(UnloadSkipped, "the undo of the attach could not unload %s", name))
			}
			return p
		}
	}
	if len(p.Refusals) > 0 {
		return p
	}
	diffPolicy(&p, d, o)

	file := d.DropInPath()
	if why := dropInAmiss(d, o); why != nil {
		p.add(WriteDropIn, file, *why)
	}
	wanted := diffSocketDropIns(&p, d, o)
	for _, old := range d.Record.DropIns.Paths() {
		if old != file && !slices.Contains(wanted, old) {
			p.add(RemoveDropIn, old, because(DropInStale, "%s is from an earlier attachment", old))
		}
	}
	switch {
	case p.Has(WriteDropIn) || p.Has(RemoveDropIn):
		p.add(Reload, d.Unit, because(ReloadNeeded, "its drop-in changes"))
	case d.pattern():
	case o.Unit.NeedReload || len(Effective(d, o.Unit)) > 0 || slices.ContainsFunc(o.SocketUnits, func(s StartingSocket) bool { return s.NeedReload }):
		// Nobody overrides the drop-in: that would have been a refusal.
		p.add(Reload, d.Unit, because(ReloadNeeded, "systemd has not read the unit's files since they changed"))
	}

	diffSockets(&p, d, o)
	if why := cmp.Or(lacks(d, o), stripped(d, o)); why != nil {
		left := d.Record.ProvedAs(o.Unit.InvocationID, d.Profile) && (why.Code != TmpShared || d.Record.ProvedTmp) && !takenOff(d, o, *why)
		planRestart(&p, o.Unit, d.Attachment.RestartUnit && !left && !failsNextStart(d, o), *why)
	}
	return p
}

// dropInAmiss says why the drop-in must be written, or nil.
func dropInAmiss(d Desired, o Observed) *Reason {
	file := d.DropInPath()
	switch {
	case !o.DropIn.Exists:
		return ptr(because(DropInMissing, "%s does not exist", file))
	case o.DropIn.Content != d.DropInText(o.Unit):
		return ptr(because(DropInDiffers, "%s is not what the attachment asks for", file))
	}
	return nil
}

// reloadedInVain names the unit, and the .socket units that start it, of which systemd
// says after a daemon-reload as well that their files changed.
func reloadedInVain(o Observed) (out []Reason) {
	say := func(unit string, missing []string) {
		r := because(ReloadInVain, "systemd says after a daemon-reload, too, that the files of %s changed", unit)
		if len(missing) > 0 {
			r = because(ReloadInVain, "%s, which systemd lists for %s, is not there, so it says after a daemon-reload, too, that the unit's files changed", missing[0], unit).
				at(missing[0])
		}
		out = append(out, r.next("systemctl cat "+unit))
	}
	if o.Unit.ReloadedInVain {
		say(o.Unit.ID, o.Unit.Missing)
	}
	for _, s := range o.SocketUnits {
		if s.ReloadedInVain {
			say(s.ID, s.Missing)
		}
	}
	return out
}

// diffFormer keeps a unit whose attach is held under the policy of the profile that
// the undo brought back.
func diffFormer(p *Plan, d Desired, o Observed) {
	if d.Record.Hold.Former == "" || len(d.Record.DropIns) == 0 {
		return
	}
	for _, k := range d.Kept {
		restore(p, k, o.Policy)
	}
}

// Concerning is the part of a policy in which the unit has a say, and Own what of that nobody
// else's policy counts in place of.
func (p Policy) Concerning(c Compiled) Compiled {
	return c.Part(func(profile string) bool { return p.LeftTo[profile] == "" })
}

// Own: see Concerning.
func (p Policy) Own(c Compiled) Compiled {
	return p.Concerning(c).Part(func(profile string) bool { return p.Superseded[profile] == "" })
}

// restore plans that a policy which was accepted is live again.
func restore(p *Plan, k Compiled, have Policy) {
	k = giveWay(p, k, have)
	if needsLoading(k, have) != nil {
		p.add(RestorePolicy, k.File, trampled(k, have))
	}
	planStrays(p, k, have, false)
}

// giveWay is what of an accepted policy is put back. What has come in its place, or beside
// it, is left in the profiles of which the policy of another unit counts, and told: the
// kernel has one policy of a name.
func giveWay(p *Plan, k Compiled, have Policy) Compiled {
	for _, name := range sortedKeys(have.Superseded) {
		given := have.Concerning(k).Part(func(profile string) bool { return profile == name })
		if needsLoading(given, have) != nil || len(strays(given, have)) > 0 {
			p.GivesWay = true
			p.Pending = append(p.Pending, because(PolicyChanged, "what counts of profile %s is what was accepted for %s, since the kernel has one policy of a name", name, have.Superseded[name]).at(k.File))
		}
	}
	return have.Own(k)
}

// diffFormerDropIn keeps the drop-in that the undo brought back. One that serves other
// units, too, is theirs.
func diffFormerDropIn(p *Plan, d Desired, o Observed) {
	file := d.DropInPath()
	text, has := d.Record.Hold.DropIns[file]
	switch {
	case !has || !d.Record.DropIns.Has(file) || d.shared() || d.pattern():
	case !o.DropIn.Exists || o.DropIn.Content != text:
		p.add(WriteDropIn, file, because(DropInDiffers, "%s is not what the undo brought back", file))
		p.add(Reload, d.Unit, because(ReloadNeeded, "its drop-in changes"))
	case o.Unit.NeedReload:
		p.add(Reload, d.Unit, because(ReloadNeeded, "systemd has not read the unit's files since they changed"))
	}
}

// diffPolicy plans what is loaded. What a unit runs under is what was accepted
// for it; the profile's text becomes that only when nothing speaks against it.
func diffPolicy(p *Plan, d Desired, o Observed) {
	p.Pending = append(p.Pending, o.Policy.Standing...)
	text, _ := textObstacles(d, o)
	report := d.Attachment.OnProfileChange == ChangeReport && !d.Asked && (d.Keeps() || d.accepted(o.Policy)) && !d.otherMode(o.Policy)
	if p.KeepsPolicy = d.Keeps() && (len(text) > 0 || d.Record.Hold != nil || report); p.KeepsPolicy {
		for _, k := range d.Kept {
			restore(p, k, o.Policy)
		}
		for _, c := range o.Policy.Compiled {
			if report && !d.acceptedText(c) {
				what := "says something else"
				if slices.ContainsFunc(d.Kept, func(k Compiled) bool { return k.ID == c.ID }) {
					what = "is compiled to something else"
				}
				p.Pending = append(p.Pending, because(PolicyChanged, "%s %s than what was accepted for %s", c.File, what, d.Unit).at(c.File).
					next("aaunitctl attach "+d.Unit))
			}
		}
		return
	}
	for _, c := range o.Policy.Compiled {
		accepted := d.acceptedText(c)
		if accepted {
			c = giveWay(p, c, o.Policy)
		}
		why := needsLoading(c, o.Policy)
		switch {
		case why == nil:
		case accepted:
			p.add(LoadPolicy, c.File, trampled(c, o.Policy))
		case why.Code == PolicyChanged && report:
			p.Pending = append(p.Pending, *why)
		default:
			p.add(LoadPolicy, c.File, *why)
		}
	}
	for _, c := range o.Policy.Compiled {
		if d.acceptedText(c) {
			c = o.Policy.Own(c)
		}
		planStrays(p, c, o.Policy, report)
	}
}

func planStrays(p *Plan, c Compiled, have Policy, report bool) {
	for _, name := range strays(c, have) {
		why := because(PolicyChanged, "the kernel has %s, which %s does not define", name, c.File).at(c.File)
		if report {
			p.Pending = append(p.Pending, why)
		} else {
			p.add(UnloadChild, name, why)
		}
	}
}

// acceptedText reports whether a file says just what was accepted.
func (d Desired) acceptedText(c Compiled) bool {
	for name, sum := range c.Checksums {
		if d.Record.Accepted[name] != sum {
			return false
		}
	}
	return len(c.Checksums) > 0
}

// otherMode reports whether the attachment asks for another mode than the one
// that was accepted.
func (d Desired) otherMode(p Policy) bool {
	return slices.ContainsFunc(p.Compiled, func(c Compiled) bool {
		return slices.ContainsFunc(d.Kept, func(k Compiled) bool { return k.File == c.File && k.Complain != c.Complain })
	})
}

// trampled says what somebody else did to an accepted policy, and by which text
// where that can be told.
func trampled(k Compiled, p Policy) Reason {
	for _, name := range sortedKeys(k.Checksums) {
		live, loaded := p.Live[name]
		if live.Checksum == k.Checksums[name] {
			continue
		}
		top, _, _ := strings.Cut(name, "//")
		var text Profile
		if all := p.Candidates[top]; len(all) > 0 {
			text = all[0]
		}
		switch {
		case !loaded && text.DisabledBy != "":
			return because(PolicyTrampled, "somebody removed profile %s, which %s disables", name, text.DisabledBy).at(text.DisabledBy)
		case !loaded:
			return because(PolicyTrampled, "somebody removed profile %s", name)
		case !live.Mode.Confines() && !k.Complain && text.ComplainBy != "":
			return because(PolicyTrampled, "somebody put profile %s into %s mode, for which %s asks", name, live.Mode, text.ComplainBy).at(text.ComplainBy)
		case !live.Mode.Confines() && !k.Complain && text.HasFlag("complain"):
			return because(PolicyTrampled, "somebody put profile %s into %s mode, as %s says now", name, live.Mode, text.File).at(fmt.Sprintf("%s:%d", text.File, text.Line))
		case !live.Mode.Confines() && !k.Complain:
			return because(PolicyTrampled, "somebody put profile %s into %s mode", name, live.Mode)
		}
		for _, c := range slices.Concat(p.Texts, p.Compiled) {
			if c.Checksums[name] == live.Checksum {
				return because(PolicyTrampled, "somebody replaced profile %s by what %s says now", name, c.File).at(c.File)
			}
		}
		return because(PolicyTrampled, "somebody replaced profile %s by a text that is not that of %s", name, k.File)
	}
	return because(PolicyTrampled, "somebody changed the policy of %s", k.File)
}

// retake is how often a unit may be restarted because its profile was taken off.
const retake = 10 * time.Minute

// takenOff reports whether tasks that were seen confined can have lost the
// profile only because somebody removed it from the kernel: no rule of it lets a
// task leave. A new start puts it on again. Should that come to nothing, it is
// not tried again for ten minutes.
func takenOff(d Desired, o Observed, why Reason) bool {
	// A time to come is from when the clock was ahead.
	if age := o.At.Sub(d.Record.Retaken); why.Code != TaskUnconfined || !d.Keeps() || age >= 0 && age < retake {
		return false
	}
	leaves := func(p Profile) bool { return len(p.Leaves) > 0 }
	for _, all := range o.Policy.Candidates {
		if slices.ContainsFunc(all, leaves) {
			return false
		}
	}
	return !slices.ContainsFunc(d.Kept, func(k Compiled) bool { return slices.ContainsFunc(k.Profiles, leaves) })
}

// ProvedAs reports whether this start of the unit was seen under the profile before.
func (r Record) ProvedAs(invocation, profile string) bool {
	return invocation != "" && r.Proved == invocation && r.Profile == profile
}

// planRestart adds the restart, or says why it is left to the next start.
func planRestart(p *Plan, u Unit, wanted bool, why Reason) {
	pending := because(RestartPending, "%s takes effect at the next start of %s", cmp.Or(p.Profile, "the change"), u.ID)
	switch guard := Protected(u); {
	case guard != nil:
		p.Pending = append(p.Pending, *guard, pending)
	case u.Type == "oneshot" && u.ActiveState == "activating":
		// It is done when its program ends: a restart would kill a backup half-way, and
		// take as long as the next one.
		p.Pending = append(p.Pending, because(RestartPending, "%s is a oneshot at work, which a restart would cut off; %s takes effect at its next start", u.ID, cmp.Or(p.Profile, "the change")).
			next("systemctl status "+u.ID))
	case u.forConnection():
		// systemd closes the connection when it stops the unit, and has none to start it
		// with again.
		p.Pending = append(p.Pending, because(RestartPending, "%s is for one connection, which a restart would cut off; %s takes effect at the next one", u.ID, cmp.Or(p.Profile, "the change")).
			next("systemctl status "+u.ID))
	case !wanted:
		p.Pending = append(p.Pending, pending.next("systemctl restart "+u.ID))
	default:
		p.add(Restart, u.ID, because(RestartNeeded, "%s", why.Detail))
		p.RestartsWith = u.RestartsWith
	}
}

// accepted reports whether what the kernel runs is what was accepted before.
func (d Desired) accepted(p Policy) bool { return len(judgePolicy(d, p)) == 0 }

// needsLoading says why a compiled file must be loaded, or nil.
func needsLoading(c Compiled, p Policy) *Reason {
	for _, name := range sortedKeys(c.Checksums) {
		live, ok := p.Live[name]
		if !ok {
			return ptr(because(ProfileNotLoaded, "profile %s is not loaded", name).at(c.File))
		}
		if live.Checksum != c.Checksums[name] {
			return ptr(because(PolicyChanged, "what the kernel runs as %s is not what %s says", name, c.File).at(c.File))
		}
	}
	return nil
}

// strays lists the children and hats that the kernel has below the profiles of
// a compiled file and the file does not define, each without its own children.
// The kernel makes "null" children by itself, to learn in complain mode.
func strays(c Compiled, p Policy) []string {
	var out []string
	for _, name := range sortedKeys(p.Live) {
		_, known := c.Checksums[name]
		if known || strings.Contains(name, "//null-") || slices.ContainsFunc(out, func(s string) bool { return covers(s, name) }) {
			continue
		}
		if slices.ContainsFunc(sortedKeys(c.Checksums), func(own string) bool { return covers(own, name) }) {
			out = append(out, name)
		}
	}
	return out
}

func ptr[T any](v T) *T { return &v }

// lacks says what the running tasks do not have yet and a restart would give
// them, or nil. What could not be read gives no cause for a restart, and
// neither does a task that left a service which was started under the profile:
// it would leave again, and the service be restarted for ever. That is a
// violation, for the verdict and OnViolation=. So the main process decides; in
// a service without one, it takes that no task carries the profile.
func lacks(d Desired, o Observed) *Reason {
	if o.Scan == nil {
		return nil
	}
	tasks := o.Scan.Tasks
	if main := slices.DeleteFunc(slices.Clone(tasks), func(t Task) bool { return t.PID != o.Unit.MainPID }); len(main) > 0 {
		tasks = main
	}
	startedSo := false
	var why *Reason
	for _, t := range tasks {
		c, ok := judgeTask(d, o, t)
		switch {
		case !ok, c == TaskStacked, c == TaskComplain:
			startedSo = true
		case why == nil && (c == TaskUnconfined || c == TaskOther):
			why = ptr(taskGroup{code: c, first: t}.reason(d, o))
		}
	}
	if why != nil && !startedSo {
		return why
	}
	if seen, why := judgeTmp(d.wantTmp(o.Unit), *o.Scan, tasks); seen == No && len(why) > 0 {
		return &why[0]
	}
	return nil
}

// stripped names a task that lost its profile with a profile that somebody removed: a
// child of the main process, which had been accepted under one of its own.
func stripped(d Desired, o Observed) *Reason {
	gone := slices.ContainsFunc(sortedKeys(d.Record.Accepted), func(name string) bool {
		_, loaded := o.Policy.Live[name]
		return !loaded && o.Policy.LeftTo[TopOf(name)] == ""
	})
	seen := gone && o.Policy.LiveError == "" && d.Record.ProvedAs(o.Unit.InvocationID, d.Profile)
	goesOn := d.Record.Retaking != "" && d.Record.Retaking == o.Unit.InvocationID // the restart was cut off
	if o.Scan == nil || !seen && !goesOn {
		return nil
	}
	for _, t := range o.Scan.Tasks {
		if c, bad := judgeTask(d, o, t); bad && c == TaskUnconfined {
			why := taskGroup{code: c, first: t}.reason(d, o)
			if goesOn || takenOff(d, o, why) {
				return &why
			}
			return nil
		}
	}
	return nil
}

func diffDetach(d Desired, o Observed) Plan {
	p := Plan{Unit: d.Unit, Profile: d.Record.Profile, Actions: []Action{}}
	gone := because(Detached, "no attachment names %s", d.Unit)
	for _, file := range d.Record.DropIns.Paths() {
		p.add(RemoveDropIn, file, gone)
	}
	if p.Has(RemoveDropIn) {
		p.add(Reload, d.Unit, gone)
	}
	if len(d.Record.SocketUnits) > 0 {
		p.add(ReleaseSockets, d.Unit, gone)
	}
	// Only a task that carries the profile has something to lose by a restart;
	// one that would get the same profile from the unit's own files has not.
	var former []string
	if f := d.Record.Former; f != nil {
		former = append(former, f.Profile) // a change from it was cut off before the restart
	}
	if h := d.Record.Hold; h != nil && h.Former != "" {
		former = append(former, h.Former) // an undo went back to it
	}
	if own := ownProfile(o.Unit); o.Unit.Found() && o.Scan != nil && slices.ContainsFunc(o.Scan.Tasks, func(t Task) bool {
		return t.Label.Fits(d.Record.Profile, former) != FitOther && (own == "" || t.Label.Fits(own, nil) == FitOther)
	}) {
		planRestart(&p, o.Unit, d.Record.RestartUnit, gone)
	}
	for _, c := range o.Policy.Compiled {
		if why := needsLoading(c, o.Policy); why != nil && why.Code == PolicyChanged {
			p.add(LoadPolicy, c.File, because(Detached, "%s was loaded in complain mode for %s, and is not by itself", c.File, d.Unit).at(c.File))
		}
	}
	for _, name := range d.Record.Loaded {
		p.add(UnloadPolicy, name, gone)
	}
	return p
}

// ownProfile is the AppArmorProfile= that the unit has without our drop-ins.
func ownProfile(u Unit) string {
	own := ""
	for _, a := range u.Settings.Assignments {
		if a.Key == "AppArmorProfile" && !ours(a.Path) {
			own = profileOf(a.Value, u.ID)
		}
	}
	return own
}

// profileOf is the name that an AppArmorProfile= value stands for.
func profileOf(value, unit string) string {
	value = strings.TrimPrefix(value, "-")
	if name, err := ExpandSpecifiers(value, unit); err == nil {
		return name
	}
	return value
}

// Obstacles finds everything that speaks against attaching (refusals) and every
// way around the profile that stays open (warnings), before anything is
// touched.
func Obstacles(d Desired, o Observed) (refusals, warnings []Reason) {
	refuse := func(r ...Reason) { refusals = append(refusals, r...) }
	warn := func(r ...Reason) { warnings = append(warnings, r...) }

	if d.Attachment == nil {
		return []Reason{because(Detached, "no attachment names %s", d.Unit)}, nil
	}
	if !o.Offline {
		refuse(judgeHost(o.Host)...)
	}
	if why := UnfitUnit(o.Unit, d.Unit); why != nil {
		refuse(*why)
		return refusals, warnings // nothing more can be said about it
	}
	if err := CheckProfileName(d.Profile); err != nil {
		refuse(because(ProfileNameBad, "profile name %.200q: %v", d.Profile, err))
	}
	if name, err := d.Attachment.ProfileFor(d.Unit); err != nil {
		refuse(because(ProfileNameBad, "%v", err).at(d.Attachment.Source))
	} else if d.shared() && name != d.Profile {
		// The drop-in of a pattern holds the value with its specifiers.
		refuse(because(ProfileNameBad, "profile %s is not what %q gives for %s", d.Profile, d.Attachment.Profile, d.Unit))
	}
	r, w := policyObstacles(d, o)
	refuse(r...)
	warn(w...)

	r, w = commandObstacles(o.Unit)
	refuse(r...)
	warn(w...)

	r, w = socketObstacles(d, o)
	refuse(r...)
	warn(w...)

	refuse(dropInObstacles(d, o)...)
	over := overrides(d, o.Unit)
	refuse(over...)
	if w := o.Unit.Settings.Winner("AppArmorProfile"); o.Unit.Settings.IgnoreMissing && w != nil && !slices.ContainsFunc(over, func(r Reason) bool { return r.Code == IgnorePrefix }) {
		warn(because(IgnorePrefix, "%s sets AppArmorProfile=%s; until the drop-in replaces it %s starts unconfined where the profile is missing", w.Path, w.Value, d.Unit).
			at(fmt.Sprintf("%s:%d", w.Path, w.Line)))
	}
	if own := d.wantTmp(o.Unit); d.shared() && d.Attachment.PrivateTmp != PrivateTmpNo && own != d.Attachment.PrivateTmp {
		refuse(because(PrivateTmpOverridden, "%s has PrivateTmp=%s by itself, and the drop-in of the whole pattern would weaken it", d.Unit, own).
			at(d.DropInPath()).next("say PrivateTmp=" + string(own) + " in " + d.Attachment.Source))
	}
	return refusals, warnings
}

// patternObstacles is Obstacles for the drop-in of a template or prefix. Which
// profiles a name with specifiers stands for shows with the units to come.
func patternObstacles(d Desired, o Observed) (refusals, warnings []Reason) {
	if !o.Offline {
		refusals = judgeHost(o.Host)
	}
	if len(d.names()) > 0 {
		var r []Reason
		r, warnings = policyObstacles(d, o)
		refusals = append(refusals, r...)
	}
	refusals = append(refusals, dropInObstacles(d, o)...)
	if o.DropInsProblem != "" {
		refusals = append(refusals, because(DropInUnreadable, "the drop-ins of all units of %s could not be read: %s", d.Unit, o.DropInsProblem))
	}
	return append(refusals, overrides(d, o.Unit)...), warnings
}

// policyObstacles looks at the unit's profiles and what boot makes of them.
func policyObstacles(d Desired, o Observed) (refusals, warnings []Reason) {
	refuse := func(r ...Reason) { refusals = append(refusals, r...) }
	warn := func(r ...Reason) { warnings = append(warnings, r...) }
	text, w := textObstacles(d, o)
	warn(w...)
	if d.Keeps() && !d.Asked && !d.Checked {
		warn(text...) // a text gone bad must not shake what runs
	} else {
		refuse(text...)
	}
	if other := o.Policy.EnforcedBy; other != "" && d.Attachment.Mode == WishComplain {
		refuse(because(ProfileDisputed, "%s is attached in enforce mode to profile %s or one from the same file", other, d.Profile).
			at(d.Attachment.Source).next("attach it in enforce mode, or give the unit a profile of its own"))
	}
	if o.Policy.LiveError != "" {
		refuse(because(PolicyUnreadable, "the loaded policy could not be read: %s", o.Policy.LiveError))
	}
	switch o.Host.BootService {
	case No:
		warn(because(BootServiceMissing, "apparmor.service is not enabled").next("systemctl enable apparmor.service"))
	case CouldNotTell:
		warn(because(BootServiceMissing, "whether apparmor.service is enabled could not be read").next("systemctl is-enabled apparmor.service"))
	}
	return refusals, warnings
}

// textObstacles finds what speaks against making the profiles' texts live.
func textObstacles(d Desired, o Observed) (refusals, warnings []Reason) {
	for _, name := range d.names() {
		r, w := ProfileObstacles(d, o, name)
		refusals, warnings = append(refusals, r...), append(warnings, w...)
	}
	if o.Offline || d.Checked || d.Keeps() || !d.accepted(o.Policy) {
		for _, r := range o.Policy.Problems {
			if !SaidOf(refusals, r) {
				refusals = append(refusals, r)
			}
		}
	} else {
		warnings = append(warnings, o.Policy.Problems...)
	}
	if !o.Offline {
		refusals = append(refusals, notStaged(d, o.Policy)...)
	}
	return refusals, append(warnings, o.Policy.Findings...)
}

// dropInObstacles looks at what lies at the place of the drop-in.
func dropInObstacles(d Desired, o Observed) (refusals []Reason) {
	refuse := func(r ...Reason) { refusals = append(refusals, r...) }
	switch {
	case o.DropIn.Problem != "":
		refuse(because(DropInUnreadable, "%s", o.DropIn.Problem).at(d.DropInPath()))
	case o.DropIn.Exists && !o.DropIn.Ours && withPresentLine(o.DropIn.Content) != d.DropInText(o.Unit):
		refuse(because(DropInForeign, "%s exists and aaunit did not write it", d.DropInPath()).
			at(d.DropInPath()).next("remove or rename it"))
	case o.EarlyProblem != "":
		code := SystemdUnheard
		if o.Offline {
			code = UnitBad
		}
		refuse(because(code, "the units that %s would reach could not be looked at: %s", d.DropInPath(), o.EarlyProblem))
	case len(o.Early) > 0:
		refuse(reachesEarly(d, o.Early))
	case o.Unheld != nil && !d.requiredBefore():
		why := *o.Unheld
		refuse(because(why.Code, "%s would reach a unit that it cannot serve: %s", d.DropInPath(), why.Detail).at(why.Where).next(why.Next))
	}
	return refusals
}

// reachesEarly says that the drop-in of a template or prefix would order units after
// apparmor.service that start before it, of which systemd makes a cycle and leaves out
// whatever breaks it.
func reachesEarly(d Desired, early []EarlyUnit) Reason {
	first, more := early[0], ""
	if n := len(early) - 1; n > 0 {
		more = fmt.Sprintf("; so with %d more", n)
	}
	way := "name the services one by one in " + d.Attachment.Source + ", or a longer prefix"
	if IsTemplate(d.Attachment.Placement(d.Unit)) {
		way = "order " + first.Unit + " after sysinit.target"
	}
	return because(UnitEarly, "%s would reach %s, which has DefaultDependencies=no and is not ordered after sysinit.target%s", d.DropInPath(), first.Unit, more).
		at(first.File).next(way)
}

// notStaged finds profiles whose checksum is not known beforehand, so that
// nobody could say afterwards whether the kernel runs them, and those that the
// kernel reads otherwise than they were checked.
func notStaged(d Desired, p Policy) []Reason {
	var out []Reason
	for _, c := range p.Compiled {
		if c.Disagrees != "" {
			out = append(out, because(PolicyDisputed, "the kernel and the compiled policy of %s do not agree: %s", c.File, c.Disagrees).at(c.File))
			continue
		}
		if len(c.Checksums) == 0 || slices.Contains(slices.Collect(maps.Values(c.Checksums)), "") {
			out = append(out, because(ProfileNotStaged, "the policy of %s could not be staged: %s", c.File, orUnsaid(c.NotStaged)).at(c.File))
		}
	}
	if len(out) > 0 || len(p.Problems) > 0 || d.accepted(p) {
		return out
	}
	for _, name := range d.names() {
		if cands := p.Candidates[name]; len(cands) > 0 && !slices.ContainsFunc(p.Compiled, func(c Compiled) bool { return c.Checksums[name] != "" }) {
			out = append(out, because(ProfileNotStaged, "%s gave no policy for profile %s", cands[0].File, name).at(cands[0].File))
		}
	}
	return out
}

// overrides finds files that systemd reads after our drop-in, or instead of it,
// and that take away what it sets.
func overrides(d Desired, u Unit) []Reason {
	file := d.DropInPath()
	for _, other := range u.DropIns {
		// What systemd read a while ago may be gone; after a reload it shows.
		if !u.NeedReload && !d.Record.DropIns.Has(other) && ours(other) && other != file && Outranks(other, file, u.ID) {
			return []Reason{because(DirectiveOverridden, "%s has the name of aaunit's drop-in and comes before it, so systemd reads it instead", other).
				at(other).next("remove or rename it")}
		}
	}
	var out []Reason
	last := map[string]*Reason{} // by key: what the file read last does to ours
	for _, a := range u.Settings.Assignments {
		if !readAfter(a.Path, file) {
			continue
		}
		bad := func(c Code, format string, args ...any) *Reason {
			return ptr(because(c, format, args...).at(fmt.Sprintf("%s:%d", a.Path, a.Line)).
				next(fmt.Sprintf("take the %s= line out of %s", a.Key, a.Path)))
		}
		switch a.Key {
		case "AppArmorProfile":
			switch {
			case a.Value == "":
				last[a.Key] = bad(DirectiveOverridden, "%s resets AppArmorProfile=", a.Path)
			case a.Value[0] == '-':
				last[a.Key] = bad(IgnorePrefix, "%s sets AppArmorProfile=%s", a.Path, a.Value)
			case d.pattern() && a.Value == d.Attachment.Profile: // with its specifiers, as in the drop-in
				delete(last, a.Key)
			case d.pattern() || profileOf(a.Value, u.ID) != d.Profile:
				last[a.Key] = bad(DirectiveOverridden, "%s sets AppArmorProfile=%s", a.Path, a.Value)
			default:
				delete(last, a.Key)
			}
		case "AssertSecurity":
			// Assertions add up; only an empty one takes the others away.
			switch a.Value {
			case "":
				last[a.Key] = bad(AssertionOverridden, "%s resets AssertSecurity=", a.Path)
			case "apparmor":
				delete(last, a.Key)
			}
		case "ExecStartPre":
			if a.Value == "" && d.Attachment.SocketsWanted() != nil {
				last[a.Key] = bad(SocketsOverridden, "%s resets ExecStartPre=", a.Path)
			}
		case "PrivateTmp":
			v, ok := u.Settings.readTmp(a.Value)
			switch {
			case ok && v.rank() < d.Attachment.PrivateTmp.rank():
				last[a.Key] = bad(PrivateTmpOverridden, "%s sets PrivateTmp=%s", a.Path, a.Value)
			case ok:
				delete(last, a.Key)
			}
		}
	}
	for _, key := range sortedKeys(last) {
		out = append(out, *last[key])
	}
	return out
}

// readAfter reports whether systemd applies the drop-in file a after file b.
// Drop-ins of all directories, service.d and the prefixes' included, are
// applied in the order of their file names; unit files come before them all
// (systemd.unit(5)). Of two with the same name one is not read: Outranks.
func readAfter(a, b string) bool {
	return strings.HasSuffix(path.Dir(a), ".d") && path.Base(a) > path.Base(b)
}

// unitDirs are the directories that systemd reads units from, the first one
// first (systemd.unit(5), "System Unit Search Path").
var unitDirs = []string{
	"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient", "/run/systemd/generator.early",
	"/etc/systemd/system", "/etc/systemd/system.attached", "/run/systemd/system", "/run/systemd/system.attached",
	"/run/systemd/generator", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/run/systemd/generator.late",
}

// Outranks reports whether, of two drop-ins with the same name, systemd reads a
// and not b: those for the unit's own name come before those for its aliases, and
// those for all units of its type (service.d, socket.d) last; of each, the one from
// the earlier unit directory, and within it the one that names the unit most
// closely. Seen with systemd-analyze verify of systemd 252.
func Outranks(a, b, unit string) bool {
	rank := func(file string) []int {
		dir := path.Dir(file)
		value := strings.TrimSuffix(path.Base(dir), ".d")
		stem, _, _ := strings.Cut(strings.TrimSuffix(value, path.Ext(value)), "@")
		match, whose, root := matchOne(value, unit), 0, slices.Index(unitDirs, path.Dir(dir))
		switch {
		case value == strings.TrimPrefix(path.Ext(unit), "."):
			whose = 2
		case match == NoMatch && !(strings.HasSuffix(stem, "-") && hasPrefix(unit, stem)): // a-@.service.d is a-b@c.service's
			whose = 1
		}
		if root < 0 {
			root = len(unitDirs)
		}
		return []int{whose, root, -int(match), -len(value)}
	}
	return slices.Compare(rank(a), rank(b)) < 0
}

// earlyTargets come after apparmor.service and systemd-tmpfiles-setup.service,
// which the drop-in's ordering and PrivateTmp= need. local-fs.target comes
// before both.
var earlyTargets = []string{"sysinit.target", "basic.target"}

// UnfitUnit says why a unit cannot be attached at all, or nil. asked is the
// name that was asked for.
func UnfitUnit(u Unit, asked string) *Reason {
	switch {
	case IsTemplate(asked):
		return ptr(because(UnitTemplate, "%s is a template", asked).next("name an instance, such as " + strings.Replace(asked, "@", "@NAME", 1)))
	case !strings.HasSuffix(asked, ".service"):
		return ptr(because(UnitNoService, "%s is a %s, not a service", asked, strings.TrimPrefix(path.Ext(asked), ".")))
	case u.UserFile != "" && !u.Found():
		return ptr(because(UnitOfUser, "%s is a unit of the user manager, where AppArmorProfile= does not work", asked).at(u.UserFile))
	case u.LoadState == "masked", strings.HasPrefix(u.UnitFileState, "masked"):
		return ptr(because(UnitMasked, "%s is masked", asked).at(u.FragmentPath).next("systemctl unmask " + asked))
	case !u.Found():
		return ptr(because(UnitNotFound, "systemd knows no unit %s", asked).next("systemctl list-unit-files --type=service"))
	case u.LoadState != "loaded":
		return ptr(because(UnitBad, "systemd cannot load %s: %s", asked, cmp.Or(u.LoadError, u.LoadState)).at(u.FragmentPath).next("systemd-analyze verify " + asked))
	case u.Transient || strings.HasPrefix(u.FragmentPath, "/run/systemd/transient/"):
		return ptr(because(UnitTransient, "%s was made by systemd-run and has no file", asked))
	case !u.Settings.DefaultDependencies && !slices.ContainsFunc(earlyTargets, func(t string) bool { return slices.Contains(u.Settings.After, t) }):
		return ptr(because(UnitEarly, "%s has DefaultDependencies=no and is not ordered after sysinit.target", asked).at(u.FragmentPath))
	}
	return nil
}

// ProfileObstacles looks at one of the unit's profiles.
func ProfileObstacles(d Desired, o Observed, name string) (refusals, warnings []Reason) {
	cands := o.Policy.Candidates[name]
	switch {
	case len(cands) == 0 && len(o.Policy.Problems) == 0:
		refusals = append(refusals, because(ProfileNotFound, "no file under /etc/apparmor.d defines a profile %s", name).next("apparmor_parser -N FILE prints the names in a file"))
	case len(cands) > 1:
		var files []string
		for _, c := range cands {
			files = append(files, fmt.Sprintf("%s:%d", c.File, c.Line))
		}
		refusals = append(refusals, because(ProfileDuplicate, "profile %s is defined in %s", name, strings.Join(files, " and ")).at(files[0]))
	}
	for _, p := range cands {
		where := fmt.Sprintf("%s:%d", p.File, p.Line)
		complain := d.Attachment.Mode == WishComplain
		if p.DisabledBy != "" {
			refusals = append(refusals, because(ProfileDisabled, "%s disables %s at every boot", p.DisabledBy, p.File).at(p.DisabledBy).next("rm "+p.DisabledBy))
		}
		switch { // a link makes the flags moot
		case p.ComplainBy != "" && !complain:
			refusals = append(refusals, because(ProfileComplain, "%s puts %s into complain mode at every boot", p.ComplainBy, p.File).at(p.ComplainBy).next("rm "+p.ComplainBy))
		default:
			refusals = append(refusals, flagObstacles(p, complain)...)
		}
		if path.Dir(p.File) != "/etc/apparmor.d" {
			warnings = append(warnings, because(ProfileNotAtBoot, "%s is not directly in /etc/apparmor.d", p.File).at(where).next("install -m 644 "+p.File+" /etc/apparmor.d/"))
		}
		for _, l := range p.Leaves {
			warnings = append(warnings, because(ChildLeaves, "profile %s has the rule %q", name, l.Rule).at(p.File))
		}
	}
	for _, c := range o.Policy.Compiled {
		for _, p := range c.Profiles {
			if p.Name != name && covers(name, p.Name) {
				refusals = append(refusals, flagObstacles(p, d.Attachment.Mode == WishComplain)...)
			}
		}
	}
	return refusals, warnings
}

// SaidOf reports whether a list has the reason, or the same one about the same place in
// other words: of a profile's mode the text speaks as well as the compiled policy.
func SaidOf(list []Reason, r Reason) bool {
	mode := r.Code == ProfileComplain || r.Code == ProfileUnconfined
	return slices.ContainsFunc(list, func(q Reason) bool { return q == r || mode && q.Code == r.Code && q.Where == r.Where })
}

// EnforceStep has a profile enforced. The package only suggests the one with aa-enforce.
func EnforceStep(file string) string {
	return "install package apparmor-utils, then: aa-enforce " + file
}

// flagObstacles finds flags with which a profile, or a child of one, does not
// confine.
func flagObstacles(p Profile, complain bool) (out []Reason) {
	where := fmt.Sprintf("%s:%d", p.File, p.Line)
	if p.HasFlag("complain") && !complain {
		out = append(out, because(ProfileComplain, "profile %s has flags=(complain)", p.Name).at(where).next(EnforceStep(p.File)))
	}
	if p.HasFlag("unconfined") {
		out = append(out, because(ProfileUnconfined, "profile %s has flags=(unconfined)", p.Name).at(where))
	}
	if p.HasFlag("default_allow") {
		out = append(out, because(ProfileDefaultOpen, "profile %s has flags=(default_allow)", p.Name).at(where))
	}
	return out
}

// commandObstacles looks for command lines that go around the profile.
func commandObstacles(u Unit) (refusals, warnings []Reason) {
	for _, c := range u.Settings.Exec {
		line := c.Property + "="
		switch {
		case c.Privileged && c.Property == "ExecStart":
			refusals = append(refusals, because(ExecPrivileged, "%s+%s starts the service without the profile", line, c.Path).at(u.FragmentPath).next("take the + off the line"))
		case c.Privileged && !c.StartsSockets():
			warnings = append(warnings, because(ExecPrivileged, "%s+%s runs without the profile", line, c.Path).at(u.FragmentPath))
		}
		if aaExec(c) {
			refusals = append(refusals, because(AAExec, "%s%s", line, strings.Join(c.Argv, " ")).at(u.FragmentPath).next("take aa-exec out of the line; AppArmorProfile= does its work"))
		}
	}
	if u.Settings.PermissionsStartOnly {
		where := u.FragmentPath
		if w := u.Settings.Winner("PermissionsStartOnly"); w != nil {
			where = fmt.Sprintf("%s:%d", w.Path, w.Line)
		}
		warnings = append(warnings, because(PermissionsStartOnly, "PermissionsStartOnly=yes takes the profile off every command but ExecStart=").at(where))
	}
	return refusals, warnings
}

// wrappers run a program that their arguments name.
var wrappers = []string{
	"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "busybox", "env", "nice", "ionice", "chrt", "taskset", "numactl", "nohup",
	"timeout", "stdbuf", "setsid", "setpriv", "prlimit", "unshare", "nsenter", "chroot", "sudo", "su", "runuser", "flock", "exec",
}

// aaExec reports whether a command line runs aa-exec, by itself or through a
// shell, env or the like. To any other program it is a word like another.
func aaExec(c ExecCommand) bool {
	if c.commBase() == "aa-exec" {
		return true
	}
	return slices.Contains(wrappers, c.commBase()) && slices.ContainsFunc(c.Argv, func(arg string) bool {
		return slices.ContainsFunc(strings.FieldsFunc(arg, func(r rune) bool { return strings.ContainsRune(" \t\n;&|()`$\"'", r) }),
			func(w string) bool { return path.Base(w) == "aa-exec" })
	})
}

// guarded are units whose restart takes the system or the session with it.
var guarded = []string{
	"dbus.service", "dbus-broker.service", "systemd-logind.service", "display-manager.service",
	"gdm.service", "gdm3.service", "sddm.service", "lightdm.service", "lxdm.service", "xdm.service", "greetd.service",
	"systemd-journald.service", "systemd-udevd.service", "aaunitd.service", "polkit.service",
}

// Protected says why a unit must not be restarted by aaunit, or nil.
func Protected(u Unit) *Reason {
	isGuarded := func(name string) bool {
		return slices.Contains(guarded, name) || strings.HasPrefix(name, "user@") || strings.HasPrefix(name, "getty@") || strings.HasPrefix(name, "serial-getty@")
	}
	for _, name := range append([]string{u.ID}, u.Names...) {
		if isGuarded(name) {
			return ptr(because(UnitProtected, "restarting %s takes the system or the session with it", name))
		}
	}
	if i := slices.IndexFunc(u.RestartsWith, isGuarded); i >= 0 {
		return ptr(because(UnitProtected, "restarting %s would restart %s, and with it the system or the session", u.ID, u.RestartsWith[i]))
	}
	if u.RestartsUnknown {
		return ptr(because(UnitProtected, "what a restart of %s takes along could not be told: %d units and more", u.ID, len(u.RestartsWith)))
	}
	if u.RefuseStop || u.RefuseStart {
		return ptr(because(UnitProtected, "%s refuses to be stopped or started by hand", u.ID))
	}
	return nil
}
