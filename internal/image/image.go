// Package image prepares systems that do not run: an attach to the tree below a
// directory writes the attachment file and the drop-in that aaunitd would write, so
// that the first boot starts the unit confined and aaunitd takes over what it finds.
// What can be judged by files alone is judged as on a running system, by the same
// core, and refused with the same reasons.
//
// It does nothing by itself: what it needs is declared here, and cmd/aaunitctl puts
// it together.
package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// Units is the units of the image, and aaunit's drop-ins.
type Units interface {
	Observe(ctx context.Context, unit string) (attach.Unit, error)
	Expand(ctx context.Context, glob string) ([]string, error)
	StartedAtBoot(unit string) attach.Tri
	// StartingSockets are the .socket units that start a service.
	// Pattern reads the drop-ins that reach every unit of a template or prefix, and what
	// they set, as a unit with nothing else.
	Pattern(name string) (attach.Unit, error)
	StartingSockets(ctx context.Context, u attach.Unit) ([]attach.StartingSocket, error)
	ReadDropIn(path string) (text string, exists bool, err error)
	WriteDropIn(path, text string) (changed bool, err error)
	RemoveDropIn(path string) (changed bool, err error)
}

// AppArmor is the profiles of the image, and the parser of this machine.
type AppArmor interface {
	attach.Index
	Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems map[string]attach.Reason)
}

// Attachments is the attachment files of the image, by the paths that they have in
// it.
type Attachments interface {
	Read() attach.Declared
	Write(unit string, a attach.Attachment) (file string, restore func() error, err error)
	Remove(file string) error
}

// Rules is what the image has for the start helper of socket options.
type Rules interface {
	// Helper says why the helper itself cannot run.
	Helper() error
	Kept(name string, s attach.SocketOptions) (exists, same bool, err error)
	Save(name string, s attach.SocketOptions) (changed bool, err error)
	Delete(name string) (changed bool, err error)
}

// Gate is asked about compiled policy.
type Gate interface {
	Check(ctx context.Context, d attach.Desired, u attach.Unit, compiled []attach.Compiled) []attach.Finding
}

// Image is the files of a system that does not run.
type Image struct {
	Root        string // for messages
	Units       Units
	AppArmor    AppArmor
	Attachments Attachments
	Rules       Rules
	Gate        Gate
}

// unit is one unit of a request, on its way.
type unit struct {
	name string
	d    attach.Desired
	o    attach.Observed
	out  attach.Outcome
	// write: the attachment is made at the command line, and is to be written;
	// differs, that this changes something.
	write, differs bool
}

func (u *unit) refused() bool { return len(u.out.Reasons) > 0 }

func (u *unit) refuse(reasons ...attach.Reason) {
	u.out.Reasons = append(u.out.Reasons, reasons...)
	u.out.Exit = attach.ExitFailed
	if slices.ContainsFunc(reasons, func(r attach.Reason) bool { return r.Code == attach.UnitNotFound }) {
		u.out.Exit = attach.ExitNoUnit
	}
}

func (u *unit) event(step attach.Step, state attach.State, format string, args ...any) {
	u.out.Events = append(u.out.Events, attach.Event{Unit: u.name, Step: step, State: state, Text: fmt.Sprintf(format, args...)})
}

// Attach prepares units, or with r.DryRun says what it would do. Without units they
// are those that the image's attachment files name. An outcome has no verdict: its
// Exit of 0 says that the files are in place.
func (i *Image) Attach(ctx context.Context, r attach.Request) ([]attach.Outcome, error) {
	declared := i.Attachments.Read()
	all, err := i.named(ctx, r.Units, declared)
	if err != nil {
		return nil, err
	}
	if len(r.Units) == 0 && len(declared.Problems) > 0 {
		all = append(all, &unit{name: declared.Problems[0].Where, out: attach.Outcome{Unit: declared.Problems[0].Where, Exit: attach.ExitFailed, Reasons: declared.Problems}})
	}
	out := []attach.Outcome{}
	for _, u := range all {
		if !u.refused() {
			i.prepare(ctx, u, r, declared)
		}
		if !u.refused() && !r.DryRun {
			i.write(u)
		}
		out = append(out, u.out)
	}
	return out, nil
}

// named completes names and expands globs; none are all that is declared.
func (i *Image) named(ctx context.Context, words []string, declared attach.Declared) (all []*unit, err error) {
	seen := map[string]bool{}
	add := func(name string, why ...attach.Reason) {
		if seen[name] {
			return
		}
		seen[name] = true
		u := &unit{name: name, out: attach.Outcome{Unit: name}}
		if len(why) > 0 {
			u.refuse(why...)
		}
		all = append(all, u)
	}
	if len(words) == 0 {
		for _, a := range declared.Attachments {
			names, err := i.ofAttachment(ctx, *a)
			if err != nil {
				return nil, err
			}
			for _, n := range names {
				add(n)
			}
		}
		return all, nil
	}
	for _, w := range words {
		if !attach.IsGlob(w) {
			if name, err := attach.UnitName(w); err != nil {
				add(w, attach.Because(attach.UnitNotFound, "%v", err))
			} else {
				add(name)
			}
			continue
		}
		glob := w
		if !strings.HasSuffix(glob, ".service") {
			glob += ".service"
		}
		found, err := i.Units.Expand(ctx, glob)
		if err != nil {
			return nil, err
		}
		if len(found) == 0 {
			add(w, attach.Because(attach.UnitNotFound, "no service of %s matches %s", i.Root, w))
		}
		for _, name := range found {
			add(name)
		}
	}
	return all, nil
}

// ofAttachment lists what an attachment is for: units that the image has, and the
// templates and prefixes whose drop-ins are for units to come.
func (i *Image) ofAttachment(ctx context.Context, a attach.Attachment) (out []string, err error) {
	for _, name := range a.Units {
		if !attach.IsGlob(name) {
			out = append(out, name)
			continue
		}
		found, err := i.Units.Expand(ctx, name)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

// prepare finds a unit's file, profile and attachment, and asks the core what
// speaks against it.
func (i *Image) prepare(ctx context.Context, u *unit, r attach.Request, declared attach.Declared) {
	chosen, rivals := attach.Select(declared.Attachments, u.name)
	if attach.IsPattern(u.name) {
		// Its drop-in is for units to come, and only a file can ask for it.
		if chosen == nil || chosen.Matches(u.name) < attach.MatchName {
			u.refuse(*cmp.Or(attach.UnfitUnit(attach.Unit{}, u.name), ptr(attach.Because(attach.UnitNotFound, "no attachment file of %s names %s", i.Root, u.name))))
			return
		}
		var err error
		if u.o.Unit, err = i.Units.Pattern(u.name); err != nil {
			u.o.DropInsProblem = err.Error()
		}
	} else {
		var err error
		if u.o.Unit, err = i.Units.Observe(ctx, u.name); err != nil {
			u.refuse(attach.Because(attach.UnitBad, "%v", err))
			return
		}
		if !u.o.Unit.Found() {
			u.refuse(attach.Because(attach.UnitNotFound, "no directory of unit files in %s has %s", i.Root, u.name).
				WithNext("ls " + filepath.Join(i.Root, "usr/lib/systemd/system") + " " + filepath.Join(i.Root, "etc/systemd/system")))
			return
		}
		if why := attach.UnfitUnit(u.o.Unit, u.name); why != nil {
			u.refuse(*why)
			return
		}
		if id := u.o.Unit.ID; id != u.name {
			u.out.Notes = append(u.out.Notes, attach.Because(attach.UnitAlias, "%s is an alias of %s", u.name, id))
			if chosen == nil && len(rivals) == 0 {
				chosen, rivals = attach.Select(declared.Attachments, id)
			}
			u.name, u.out.Unit = id, id
		}
	}
	if len(rivals) > 0 {
		u.refuse(attach.Because(attach.RivalAttachments, "%s is named by %s and %s", u.name, rivals[0].Source, rivals[1].Source))
		return
	}
	u.d.Unit = u.name
	if !i.choose(u, r, chosen) {
		return
	}
	i.plan(ctx, u)
	if r.DryRun {
		u.out.Findings = u.o.Policy.Asides
	}
}

func ptr[T any](v T) *T { return &v }

// choose finds the profile and the attachment, as aaunitd does for a running system.
func (i *Image) choose(u *unit, r attach.Request, declared *attach.Attachment) bool {
	if attach.IsPattern(u.name) && strings.Contains(strings.ReplaceAll(declared.Profile, "%%", ""), "%") {
		a := *declared
		u.d.Attachment = &a
		return true // which profile that is depends on the unit
	}
	w, why := attach.Want(r, u.o.Unit, declared, i.AppArmor)
	if why != nil {
		if why.Code == attach.DeclaredInFile {
			*why = why.WithNext("edit " + filepath.Join(i.Root, declared.Source))
		}
		u.refuse(*why)
		return false
	}
	u.d.Attachment, u.d.Profile, u.write = &w.Attachment, w.Profile, w.Write
	u.differs = w.Write && (declared == nil || !reflect.DeepEqual(w.Attachment, *declared))
	u.out.Profile, u.out.File = w.Profile, w.File
	if w.Corrected != nil {
		u.out.Events = append(u.out.Events, attach.Event{Unit: u.name, Step: attach.StepResolve, State: attach.Warned, Text: w.Corrected.Detail, Reason: w.Corrected})
	}
	return true
}

// plan looks at the profile, its policy and the drop-in.
func (i *Image) plan(ctx context.Context, u *unit) {
	u.o.Offline = true
	u.o.Host.BootService = i.Units.StartedAtBoot(bootService)
	u.o.Policy = i.policy(ctx, u)
	path := u.d.DropInPath()
	text, exists, err := i.Units.ReadDropIn(path)
	u.o.DropIn = attach.DropInState{Exists: exists, Content: text, Ours: exists && attach.WroteDropIn(text)}
	if err != nil {
		u.o.DropIn = attach.DropInState{Exists: true, Problem: err.Error()}
	}
	i.reach(ctx, u)
	i.sockets(ctx, u)
	plan := attach.DiffImage(u.d, u.o)
	u.out.Plan, u.out.Changed = &plan, len(plan.Refusals) == 0 && (len(plan.Actions) > 0 || u.differs)
	for _, w := range plan.Warnings {
		if w.Code == attach.BootServiceMissing {
			w = w.WithNext(i.bootServiceBy(ctx, u.o.Host.BootService))
		}
		u.out.Notes = append(u.out.Notes, w)
	}
	plan.Warnings = nil // they are among the notes
	if len(plan.Refusals) > 0 {
		u.refuse(plan.Refusals...)
	}
}

// bootService is what loads the profiles of /etc/apparmor.d at boot.
const bootService = "apparmor.service"

// bootServiceBy is the step that has it started at boot, or that looks at it where that
// could not be told.
func (i *Image) bootServiceBy(ctx context.Context, started attach.Tri) string {
	systemctl := "systemctl --root=" + i.Root
	if started == attach.CouldNotTell {
		return systemctl + " is-enabled " + bootService
	}
	u, err := i.Units.Observe(ctx, bootService)
	switch {
	case err != nil:
		return systemctl + " is-enabled " + bootService
	case !u.Found():
		return "install the package apparmor in " + i.Root
	case u.LoadState == "masked":
		return systemctl + " unmask " + bootService + ", and " + systemctl + " enable " + bootService
	}
	return systemctl + " enable " + bootService
}

// atBoot says whether the first boot loads the unit's profiles, out of what was noted,
// with the notes that say otherwise and those that are left. On a host aaunit loads what
// was accepted, and warns. An image has accepted nothing yet: a unit whose profile is not
// loaded fails its first start, and stays so, as aaunitd restarts what runs alone.
func (u *unit) atBoot(notes []attach.Reason) (ready attach.Tri, why, rest []attach.Reason) {
	ready = attach.Yes
	for _, n := range notes {
		switch {
		case n.Code == attach.BootServiceMissing && u.o.Host.BootService == attach.CouldNotTell:
			if ready == attach.Yes {
				ready = attach.CouldNotTell
			}
		case n.Code == attach.BootServiceMissing, n.Code == attach.ProfileNotAtBoot:
			ready = attach.No
		default:
			rest = append(rest, n)
			continue
		}
		why = append(why, n)
	}
	return ready, why, rest
}

// reach looks for units that start too early for the drop-in of a template or prefix,
// where it is about to be written, and for those in which the start helper of socket
// options could not work, where it is about to have the line of one that has to.
func (i *Image) reach(ctx context.Context, u *unit) {
	pattern := u.d.Attachment.Placement(u.name)
	line := u.d.Attachment.NewlyRequires(u.o.DropIn.Content)
	if !attach.IsPattern(pattern) || u.o.DropIn.Exists && !line {
		return
	}
	names, err := i.Units.Expand(ctx, attach.UnitsOf(pattern))
	var units []attach.Unit
	for _, name := range names {
		found, problem := i.Units.Observe(ctx, name)
		units, err = append(units, found), cmp.Or(err, problem)
	}
	if err != nil {
		u.o.EarlyProblem = err.Error()
	}
	if !u.o.DropIn.Exists {
		u.o.Early = attach.EarlyOf(units)
	}
	if line {
		u.o.Unheld = attach.UnheldOf(units, *u.d.Attachment)
	}
}

// sockets looks at what there is for the unit's socket options.
func (i *Image) sockets(ctx context.Context, u *unit) {
	want := u.d.Attachment.SocketsWanted()
	u.o.SocketUnits = i.socketUnits(ctx, u)
	names := []string{u.d.RulesName()}
	if want == nil {
		exists, _, _ := i.Rules.Kept(names[0], attach.SocketOptions{Mode: attach.SocketsRecord})
		u.o.Rules.Exist = exists
		return
	}
	if err := i.Rules.Helper(); err != nil {
		u.o.Rules.HelperProblem = err.Error()
	}
	u.o.Rules.Exist, u.o.Rules.Same = true, true
	for _, s := range u.o.SocketUnits {
		names = append(names, s.ID)
	}
	for _, name := range names {
		exists, same, err := i.Rules.Kept(name, *want)
		u.o.Rules.Exist, u.o.Rules.Same = u.o.Rules.Exist && exists, u.o.Rules.Same && same && err == nil
	}
}

// socketUnits finds the .socket units of a service, with what lies at the place of
// aaunit's drop-in for each. Units of a pattern that are yet to come have none that is
// known.
func (i *Image) socketUnits(ctx context.Context, u *unit) []attach.StartingSocket {
	if attach.IsPattern(u.name) {
		return nil
	}
	list, err := i.Units.StartingSockets(ctx, u.o.Unit)
	if err != nil {
		u.o.SocketsProblem = err.Error()
	}
	for k, s := range list {
		text, exists, err := i.Units.ReadDropIn(attach.DropInPath(s.ID, false))
		list[k].DropIn = attach.DropInState{Exists: exists, Content: text, Ours: exists && attach.WroteSocketDropIn(text)}
		if err != nil {
			list[k].DropIn = attach.DropInState{Exists: true, Problem: err.Error()}
		}
	}
	return list
}

// writeSockets keeps the rules, and then has the .socket units run the helper that
// reads them.
func (i *Image) writeSockets(u *unit) (changed bool, err error) {
	want := u.d.Attachment.SocketsWanted()
	names := []string{u.d.RulesName()}
	for _, s := range u.o.SocketUnits {
		names = append(names, s.ID)
	}
	for _, name := range names {
		did, err := i.Rules.Save(name, *want)
		if changed = changed || did; err != nil {
			return changed, err
		}
	}
	for _, s := range u.o.SocketUnits {
		did, err := i.Units.WriteDropIn(attach.DropInPath(s.ID, false), attach.SocketDropIn(*u.d.Attachment))
		if changed = changed || did; err != nil {
			return changed, err
		}
	}
	if changed {
		u.event(attach.StepSockets, attach.Done, "%s", want.Summary())
	}
	return changed, nil
}

// releaseSockets takes away what runs the helper, and then its rules: without them it
// would fail a start.
func (i *Image) releaseSockets(u *unit) (changed bool, err error) {
	names := []string{u.d.RulesName()}
	for _, s := range u.o.SocketUnits {
		if !s.DropIn.Ours {
			continue
		}
		if _, err := i.Units.RemoveDropIn(attach.DropInPath(s.ID, false)); err != nil {
			return changed, err
		}
		names, changed = append(names, s.ID), true
	}
	for _, name := range names {
		did, err := i.Rules.Delete(name)
		if changed = changed || did; err != nil {
			return changed, err
		}
	}
	if changed {
		u.event(attach.StepSockets, attach.Done, "released")
	}
	return changed, nil
}

// policy finds the files that define the unit's profiles, compiles them, and asks
// what they allow.
func (i *Image) policy(ctx context.Context, u *unit) attach.Policy {
	p := attach.Policy{Candidates: map[string][]attach.Profile{}}
	var files []string
	names := u.d.Attachment.AllowProfiles
	if u.d.Profile != "" {
		names = append([]string{u.d.Profile}, names...)
	}
	if f := u.d.Attachment.ProfileFile; f != "" {
		files = append(files, f)
	}
	for _, name := range names {
		found := i.AppArmor.ByName(name)
		if f := u.d.Attachment.ProfileFile; f != "" {
			in, err := i.AppArmor.InFile(f)
			if err != nil {
				p.Problems = append(p.Problems, attach.Because(attach.ProfileBroken, "%v", err).At(f))
			}
			for _, q := range in {
				if q.Name == name && !slices.ContainsFunc(found, func(o attach.Profile) bool { return o.File == f }) {
					found = append(found, q)
				}
			}
		}
		p.Candidates[name] = found
		for _, q := range found {
			if !slices.Contains(files, q.File) {
				files = append(files, q.File)
			}
		}
	}
	if u.out.File == "" && len(p.Candidates[u.d.Profile]) > 0 {
		u.out.File = p.Candidates[u.d.Profile][0].File
	}
	done, problems := i.AppArmor.Compile(ctx, files, u.d.Attachment.Mode == attach.WishComplain)
	for _, f := range files {
		if r, bad := problems[f]; bad {
			p.Problems = append(p.Problems, r)
		}
	}
	p.Compiled = done
	if len(p.Problems) > 0 || len(done) == 0 || u.d.Profile == "" {
		return p
	}
	for _, f := range i.Gate.Check(ctx, u.d, u.o.Unit, done) {
		switch f.Severity {
		case attach.Error:
			p.Problems = append(p.Problems, f.Reason)
		case attach.Warning:
			p.Findings = append(p.Findings, f.Reason)
		default:
			p.Asides = append(p.Asides, f)
		}
	}
	return p
}

// write puts the files in place: the attachment first, since the drop-in says where
// it comes from. When the drop-in cannot be written, the attachment is taken back.
func (i *Image) write(u *unit) {
	restore := func() error { return nil }
	if u.write {
		file, back, err := i.Attachments.Write(u.name, *u.d.Attachment)
		if err != nil {
			code := attach.AttachmentBad
			if other := (*attach.InTheWay)(nil); errors.As(err, &other) {
				code = attach.DeclaredInFile
			}
			u.refuse(attach.Because(code, "%v", err))
			return
		}
		u.d.Attachment.Source, restore = file, back
	}
	path := u.d.DropInPath()
	failed := func(why attach.Reason) {
		u.refuse(why)
		if err := restore(); err != nil {
			u.refuse(attach.Because(attach.AttachmentBad, "the attachment could not be withdrawn: %v", err).At(u.d.Attachment.Source))
		}
	}
	// Rules come before the line that needs them, and go after it.
	sockets, wanted := false, u.d.Attachment.SocketsWanted() != nil
	var err error
	if wanted {
		if sockets, err = i.writeSockets(u); err != nil {
			failed(attach.Because(attach.RecordBad, "%v", err))
			return
		}
	}
	changed, err := i.Units.WriteDropIn(path, u.d.DropInText(u.o.Unit))
	if err != nil {
		failed(attach.Because(attach.DropInUnreadable, "%v", err).At(path))
		return
	}
	if !wanted {
		if sockets, err = i.releaseSockets(u); err != nil {
			u.refuse(attach.Because(attach.RecordBad, "%v", err))
			return
		}
	}
	u.out.Changed = changed || sockets || u.differs
	u.event(attach.StepAttachment, attach.Done, "%s", u.d.Attachment.Source)
	u.event(attach.StepDropIn, attach.Done, "%s", path)
	u.out.Plan = nil
}

// Detach takes back what Attach did, or with r.DryRun says what it would do.
func (i *Image) Detach(ctx context.Context, r attach.Request) ([]attach.Outcome, error) {
	declared := i.Attachments.Read()
	all, err := i.named(ctx, r.Units, declared)
	if err != nil {
		return nil, err
	}
	out := []attach.Outcome{}
	for _, u := range all {
		if !u.refused() {
			i.detach(ctx, u, r.DryRun, declared)
		}
		out = append(out, u.out)
	}
	return out, nil
}

func (i *Image) detach(ctx context.Context, u *unit, dry bool, declared attach.Declared) {
	if observed, err := i.Units.Observe(ctx, u.name); err == nil {
		if u.o.Unit = observed; observed.ID != u.name {
			u.out.Notes = append(u.out.Notes, attach.Because(attach.UnitAlias, "%s is an alias of %s", u.name, observed.ID))
			u.name, u.out.Unit = observed.ID, observed.ID
		}
	}
	chosen, rivals := attach.Select(declared.Attachments, u.name)
	if chosen == nil && len(rivals) > 0 {
		chosen = &rivals[0]
	}
	if chosen != nil && !chosen.Manual {
		u.refuse(attach.Because(attach.DeclaredInFile, "%s is attached by %s", u.name, chosen.Source).At(chosen.Source).
			WithNext("remove " + filepath.Join(i.Root, chosen.Source) + ", or take the unit out of it"))
		return
	}
	// What a file that is gone by now left behind goes as well.
	path := attach.DropInPath(u.name, false)
	text, exists, err := i.Units.ReadDropIn(path)
	if err != nil {
		u.refuse(attach.Because(attach.DropInUnreadable, "%v", err).At(path))
		return
	}
	exists = exists && attach.WroteDropIn(text)
	if chosen == nil && !exists {
		u.out.Notes = append(u.out.Notes, attach.Because(attach.NotAttached, "%s is not attached", u.name))
		return
	}
	gone := attach.Because(attach.Detached, "no attachment names %s", u.name)
	if chosen != nil {
		u.out.Profile, _ = chosen.ProfileFor(u.name)
	}
	if dry {
		u.out.Plan = &attach.Plan{Unit: u.name, Profile: u.out.Profile, Actions: []attach.Action{}}
		if exists {
			u.out.Plan.Actions = append(u.out.Plan.Actions, attach.Action{Kind: attach.RemoveDropIn, Target: path, Reason: gone})
		}
		u.out.Changed = true
		return
	}
	// The drop-in first: without its attachment it would be nobody's.
	if exists {
		if _, err := i.Units.RemoveDropIn(path); err != nil {
			u.refuse(attach.Because(attach.DropInUnreadable, "%v", err).At(path))
			return
		}
		u.out.Changed = true
		u.event(attach.StepDropIn, attach.Done, "%s is removed", path)
	}
	u.d.Attachment = &attach.Attachment{Units: []string{u.name}}
	u.d.Unit = u.name
	u.o.SocketUnits = i.socketUnits(ctx, u)
	if changed, err := i.releaseSockets(u); err != nil {
		u.refuse(attach.Because(attach.RecordBad, "%v", err))
		return
	} else if changed {
		u.out.Changed = true
	}
	if chosen != nil {
		if err := i.Attachments.Remove(chosen.Source); err != nil {
			u.refuse(attach.Because(attach.AttachmentBad, "%v", err).At(chosen.Source))
			return
		}
		u.out.Changed = true
		u.event(attach.StepAttachment, attach.Done, "%s is removed", chosen.Source)
	}
}

// Status says how units are prepared, or all that the image's attachment files
// name.
func (i *Image) Status(ctx context.Context, units []string) (attach.ImageReport, error) {
	report := attach.ImageReport{Root: i.Root, Units: []attach.ImageUnit{}}
	declared := i.Attachments.Read()
	report.Problems = declared.Problems
	all, err := i.named(ctx, units, declared)
	if err != nil {
		return report, err
	}
	for _, u := range all {
		chosen, rivals := attach.Select(declared.Attachments, u.name)
		if !u.refused() {
			if chosen == nil && len(rivals) == 0 {
				if observed, err := i.Units.Observe(ctx, u.name); err == nil && observed.ID != u.name {
					chosen, rivals = attach.Select(declared.Attachments, observed.ID)
				}
			}
			if chosen == nil && len(rivals) == 0 {
				report.Missing = append(report.Missing, attach.Missing{Unit: u.name, Reason: attach.Because(attach.NotAttached, "no attachment file of %s names %s", i.Root, u.name).
					WithNext("aaunitctl --root=" + i.Root + " attach " + u.name)})
				continue
			}
			i.prepare(ctx, u, attach.Request{Units: []string{u.name}, AsDeclared: true}, declared)
		}
		s := attach.ImageUnit{Unit: u.name, Profile: u.out.Profile, ProfileFile: u.out.File, Reasons: u.out.Reasons, Notes: u.out.Notes, Prepared: attach.No}
		if a := u.d.Attachment; a != nil {
			s.Attachment, s.DropIn = a.Source, u.d.DropInPath()
			if s.Profile == "" {
				s.Profile = a.Profile // with its specifiers
			}
		}
		switch {
		case u.refused():
		case u.out.Plan != nil && len(u.out.Plan.Actions) == 0:
			s.Prepared, s.Reasons, s.Notes = u.atBoot(u.out.Notes)
		case u.out.Plan != nil:
			for _, action := range u.out.Plan.Actions {
				s.Reasons = append(s.Reasons, action.Reason)
			}
		}
		report.Units = append(report.Units, s)
	}
	slices.SortFunc(report.Units, func(a, b attach.ImageUnit) int { return strings.Compare(a.Unit, b.Unit) })
	return report, nil
}
