package reconcile

import (
	"cmp"
	"context"
	"errors"
	"path/filepath"
	"slices"

	"github.com/aaunit/aaunit/internal/attach"
)

// Offline answers checks and questions where there is no daemon to ask: on a build
// machine, in a container, for a user who may not ask it. They are the daemon's own
// answers, from the same policy; what only the kernel could add is left out, and
// said to be.
type Offline struct {
	Texts Texts
	Gate  Gate
	// Profiles stands in the place of /etc/apparmor.d, "" is that.
	Profiles    string
	Attachments interface {
		// One is Attachments.One.
		One(path string) (a attach.Attachment, problems []attach.Reason, is bool)
		Read() attach.Declared
	}
	// Systemd is nil where it does not run.
	Systemd observer
	// Kernel says why the kernel is not asked.
	Kernel string
	// Features says why it is not known for which kernel is compiled: then nothing
	// is known of what AppArmor does not look at there. "" where it is.
	Features string
}

func (f Offline) checker() checker {
	return checker{texts: f.Texts, gate: f.Gate, kernel: f.Kernel, sources: true, dir: cmp.Or(f.Profiles, "/etc/apparmor.d")}
}

// Check is Loop.Check, for whoever runs it: of units it is looked at what systemd
// tells everybody, if it runs. Every file may be named that can be read.
func (f Offline) Check(ctx context.Context, args []string) ([]attach.Outcome, error) {
	if len(args) == 0 {
		return nil, errors.New("cannot check all attached units without aaunitd, which knows them; name profiles, files or units")
	}
	var out []attach.Outcome
	for _, arg := range args {
		o := f.check(ctx, arg)
		if f.Features != "" && len(o.Questioned) > 0 { // something was compiled
			o.Notes = append(o.Notes, attach.Because(attach.AssertionUnknown, "%s", f.Features).WithNext("aaunitctl check --kernel-features FILE …"))
			o.Exit = attach.WorstExit(o.Exit, attach.ExitUnknown)
		}
		out = append(out, o)
	}
	return out, nil
}

func (f Offline) check(ctx context.Context, arg string) attach.Outcome {
	k := f.checker()
	if filepath.IsAbs(arg) {
		file := filepath.Clean(arg)
		if a, problems, is := f.Attachments.One(file); is {
			return k.attachment(ctx, file, a, problems)
		}
		return k.file(ctx, file, file)
	}
	unit, err := attach.UnitName(arg)
	if f.Systemd != nil && err == nil {
		switch u, err := f.Systemd.Observe(ctx, unit); {
		case err != nil && unit == arg:
			return unheardOf(arg, err)
		case err == nil && u.Found():
			return f.unit(ctx, k, unit, u)
		}
	}
	if profiles := f.Texts.ByName(arg); len(profiles) > 0 {
		return k.file(ctx, arg, profiles[0].File)
	}
	if f.Systemd == nil {
		return unheardOf(arg, errors.New("systemd does not run here, and no file that was searched defines a profile of that name"))
	}
	o := attach.Outcome{Unit: arg, Exit: attach.ExitNoUnit}
	o.Reasons = []attach.Reason{attach.Because(attach.UnitNotFound, "systemd knows no unit %s, and no file that was searched defines a profile of that name", arg)}
	return o
}

// unheardOf is what there is to say of a unit that systemd could not be asked
// about.
func unheardOf(arg string, err error) attach.Outcome {
	return attach.Outcome{Unit: arg, Exit: attach.ExitUnknown,
		Reasons: []attach.Reason{attach.Because(attach.SystemdUnheard, "nothing is known of unit %s: %v", arg, err).WithNext("check the profile's file; or check the unit where it runs")}}
}

// ofTheKernel are the reasons that a plan has from the kernel, which is not asked.
var ofTheKernel = []attach.Code{attach.AppArmorOff, attach.AppArmorUnknown, attach.GlobalComplain, attach.BootServiceMissing, attach.ProfileNotStaged, attach.PolicyUnreadable}

// unit checks a unit that systemd has: its settings, and its policy.
func (f Offline) unit(ctx context.Context, k checker, name string, u attach.Unit) attach.Outcome {
	o := attach.Outcome{Unit: u.ID}
	k.sources = false // this is where it is used
	if why := attach.UnfitUnit(u, name); why != nil {
		found(&o, *why)
		return o
	}
	declared, rivals := attach.Select(f.Attachments.Read().Attachments, u.ID)
	d := attach.Desired{Unit: u.ID, Attachment: declared, Asked: true}
	switch {
	case len(rivals) > 0:
		found(&o, attach.Because(attach.RivalAttachments, "%s is named by %s and %s", u.ID, rivals[0].Source, rivals[1].Source))
		return o
	case declared != nil:
		var err error
		if d.Profile, err = declared.ProfileFor(u.ID); err != nil {
			found(&o, attach.Because(attach.ProfileNameBad, "%v", err).At(declared.Source))
			return o
		}
	default:
		choice, why := attach.Resolve("", u, f.Texts)
		if why != nil {
			found(&o, *why)
			return o
		}
		a := attach.NewAttachment()
		a.Source, a.Units, a.Profile = "aaunitctl check", []string{u.ID}, attach.EscapeSpecifiers(choice.Profile.Name)
		d.Profile, d.Attachment = choice.Profile.Name, &a
	}
	k.declared(ctx, &o, d, u)
	// The profiles were looked at; with candidates missing here they would be said
	// to be.
	refusals, warnings := attach.Obstacles(d, attach.Observed{Unit: u, Policy: attach.Policy{Candidates: f.candidates(d)}})
	mine := func(list []attach.Reason) (out []attach.Reason) {
		for _, r := range list {
			if !slices.Contains(ofTheKernel, r.Code) && !slices.Contains(o.Notes, r) {
				out = append(out, r)
			}
		}
		return out
	}
	found(&o, mine(refusals)...)
	o.Notes = append(o.Notes, mine(warnings)...)
	complains(&o, *d.Attachment)
	o.Exit = attach.WorstExit(o.Exit, attach.ExitOfFindings(o.Findings))
	return o
}

func (f Offline) candidates(d attach.Desired) map[string][]attach.Profile {
	out := map[string][]attach.Profile{}
	for _, name := range append([]string{d.Profile}, d.Attachment.AllowProfiles...) {
		out[name] = f.Texts.ByName(name)
	}
	return out
}

// Query is Loop.Query, for whoever runs it. What a kernel without known features
// does not look at is not known either.
func (f Offline) Query(ctx context.Context, names []string, question string) ([]attach.QueryResult, error) {
	out, err := f.checker().query(ctx, names, question, true)
	for i := range out {
		if f.Features != "" && out[i].May == attach.MayNotMediated {
			out[i].May, out[i].Witness, out[i].Text = attach.MayUnknown, "", "cannot be asked that: "+f.Features
		}
	}
	return out, err
}
