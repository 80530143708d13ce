package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/journal"
)

// MaxAnew is how long MakePolicyLive goes on compiling. What has not compiled by then is
// still to be loaded as it was: that is before systemd ends aaunit-policy.service
// (TimeoutStartSec=), which has no second try.
const MaxAnew = 4 * time.Minute

// MakePolicyLive loads the accepted policy of every attached unit where the
// kernel has another one or none: after a boot, when apparmor.service has loaded
// what /etc/apparmor.d said at that time. It needs no daemon and no systemd:
//
//  1. What the kernel does not have is loaded; nothing is ever removed. What a detach
//     has to take back of that is on record before.
//  2. What was compiled for another parser or kernel is compiled anew, from the
//     texts that were accepted; where that fails, or takes longer than MaxAnew, it is
//     used as it is.
//  3. All of that is staged, so that the kernel's checksums are known, and loaded.
//
// What only paused units run under is left as it was loaded, and what only attachments
// had that ended with the reboot is not loaded.
//
// It runs before the daemon, once in a boot, and writes to the same files.
//
// A policy that fails keeps no other from going live: what apparmor.service has
// loaded stays in its place, and the daemon's verdict tells.
func MakePolicyLive(ctx context.Context, o Options) error {
	begun := time.Now()
	var errs []error
	say := func(problems []attach.Reason) {
		for _, p := range problems {
			errs = append(errs, errors.New(p.String()))
		}
	}
	records, problems := o.Store.Load()
	say(problems)
	say(o.Policies.Load())

	ids := map[string]map[string]bool{} // with the profiles of which it counts
	alone := pausedIn(records, time.Now())
	attached := slices.DeleteFunc(slices.Clone(records), func(r attach.Record) bool { return alone[r.Unit] || endedWithBoot(r, o.Boot) })
	needed := neededAtBoot(o)
	var rivals []rival
	for _, r := range attached {
		if settled(r) {
			rivals = append(rivals, rival{Desired: attach.Desired{Unit: r.Unit, Record: r}})
		}
	}
	for _, r := range attached {
		if len(r.DropIns) == 0 {
			continue
		}
		// As in a pass, where units have different ones.
		own := claim{unit: r.Unit, held: heldAtAttach(r)}
		over := supersededIn(rivals, o.Policies, own, attach.Desired{Unit: r.Unit, Record: r}, needed)
		for _, k := range policiesOf(o.Policies, r.Policies) {
			if len(k.Checksums) == 0 {
				ids[k.ID] = nil // it is told that it is not kept
			}
			for name := range k.Checksums {
				if _, given := over[attach.TopOf(name)]; given {
					continue
				}
				if ids[k.ID] == nil {
					ids[k.ID] = map[string]bool{}
				}
				ids[k.ID][attach.TopOf(name)] = true
			}
		}
	}
	counts := func(c attach.Compiled) attach.Compiled {
		return c.Part(func(profile string) bool { return ids[c.ID][profile] })
	}
	env := o.AppArmor.Environment()
	var ready, anew []attach.Compiled
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		k, err := o.Policies.Get(id)
		switch {
		case err != nil:
			errs = append(errs, err)
		case k.Environment == env:
			ready = append(ready, counts(k))
		default:
			anew = append(anew, k)
		}
	}
	live, err := o.AppArmor.Live(namesOf(ready, anew))
	if err != nil {
		errs = append(errs, err) // then all of it is loaded
	}
	if seen := err == nil; seen {
		// What is compiled anew defines the same profiles, in the same mode.
		errs = append(errs, noteLoads(o, records, slices.Concat(without(ready, live), anew), live)...)
	}
	makeLive := func(all []attach.Compiled, live map[string]attach.LiveProfile) {
		if all = without(all, live); len(all) == 0 {
			return
		}
		failed := o.AppArmor.Load(ctx, all)
		for _, c := range all {
			if err := failed[c.File]; err != nil {
				errs = append(errs, err)
				continue
			}
			o.Log.Info("made the accepted policy of "+c.File+" live", journal.FieldFile, c.File)
		}
	}
	// Of two policies that name the same profile the later one counts.
	first, last := apart(ready, anew)
	makeLive(first, live)
	if len(anew) == 0 {
		return errors.Join(errs...)
	}
	compiling, done := context.WithDeadline(ctx, begun.Add(MaxAnew))
	defer done()
	made, unmade := o.AppArmor.CompileKept(compiling, anew)
	// What was accepted is better than what somebody else has loaded, or nothing.
	// Another kernel may give it other checksums.
	asItWas := map[string]bool{} // by ID
	slices.SortStableFunc(anew, func(a, b attach.Compiled) int { return strings.Compare(a.File, b.File) })
	for _, k := range anew {
		if p, failed := unmade[k.ID]; failed {
			say([]attach.Reason{p})
			k.Checksums, asItWas[k.ID] = nil, true
			made = append(made, k)
		}
	}
	o.AppArmor.Stage(ctx, made)
	for _, c := range made {
		if c.NotStaged != "" {
			errs = append(errs, fmt.Errorf("cannot check the policy of %s: %s", c.File, c.NotStaged))
			continue
		}
		if c.Disagrees != "" {
			errs = append(errs, fmt.Errorf("cannot use the policy of %s: the kernel and the compiled policy do not agree: %s", c.File, c.Disagrees))
			continue
		}
		if err := o.Policies.Keep(c); err != nil {
			errs = append(errs, err)
		}
		if !asItWas[c.ID] {
			o.Log.Info("compiled the accepted policy of "+c.File+" anew: parser or kernel changed", journal.FieldFile, c.File)
		}
		last = append(last, counts(c))
	}
	if live, err = o.AppArmor.Live(namesOf(last)); err != nil {
		errs = append(errs, err)
	}
	makeLive(last, live)
	return errors.Join(errs...)
}

// neededAtBoot is Loop.needs by the attachment files as they are, of which the daemon will
// know. Each unit is asked about once.
func neededAtBoot(o Options) func(d attach.Desired, profile string) bool {
	said := map[[2]string]bool{}
	return func(d attach.Desired, profile string) bool {
		question := [2]string{d.Unit, profile}
		is, known := said[question]
		if !known {
			if a, problems, readable := o.Attachments.One(d.Record.Attachment); readable && len(problems) == 0 {
				d.Attachment = &a
				d.Profile, _ = a.ProfileFor(d.Unit) // without a good name it runs under that of its record
			}
			is = needs(o.Gate, o.Policies, d, profile)
			said[question] = is
		}
		return is
	}
}

// namesOf are the profiles that policies define.
func namesOf(lists ...[]attach.Compiled) (names []string) {
	for _, c := range slices.Concat(lists...) {
		names = append(names, sortedNames(c)...)
	}
	return names
}

// without leaves out what the kernel has.
func without(all []attach.Compiled, live map[string]attach.LiveProfile) []attach.Compiled {
	return slices.DeleteFunc(slices.Clone(all), func(c attach.Compiled) bool {
		for name, sum := range c.Checksums {
			if live[name].Checksum != sum {
				return false
			}
		}
		return true
	})
}

// apart divides policies into those that have nothing to do with others, and those that are
// of a file or name a profile that one of the others is of, too.
func apart(all, others []attach.Compiled) (alone, beside []attach.Compiled) {
	taken := map[string]bool{}
	for _, c := range others {
		taken["file "+c.File] = true
		for name := range c.Checksums {
			taken["profile "+name] = true
		}
	}
	for _, c := range all {
		is := taken["file "+c.File]
		for name := range c.Checksums {
			is = is || taken["profile "+name]
		}
		if is {
			beside = append(beside, c)
		} else {
			alone = append(alone, c)
		}
	}
	return alone, beside
}

// endedWithBoot reports whether a record is of an attachment that ended with the boot
// before: what it wrote lay below /run.
func endedWithBoot(r attach.Record, boot string) bool {
	lasts := func(f attach.FileSum) bool { return !strings.HasPrefix(f.Path, "/run/") }
	return boot != "" && r.Boot != boot && !slices.ContainsFunc(r.DropIns, lasts)
}

// noteLoads keeps on record what is about to be loaded, over what is live, for the
// units that run under it: the daemon comes later, and could not tell it from what
// apparmor.service has loaded. A record that was kept in this boot has it already, or
// is in the hands of the daemon, for which a policy that went is put back, not new.
func noteLoads(o Options, records []attach.Record, load []attach.Compiled, live map[string]attach.LiveProfile) []error {
	var noted []attach.Record
	for _, r := range records {
		if o.Boot == "" || r.Boot == o.Boot || len(r.DropIns) == 0 || endedWithBoot(r, o.Boot) {
			continue
		}
		r.Boot, r.Loaded, r.Stays, r.Softened = o.Boot, nil, nil, nil
		r.Stopped, r.Dragged = false, nil // what is to run now is for the boot to start
		for _, c := range load {
			if r.Policies[c.File] == c.ID {
				noteLoad(&r, c, live, false)
			}
		}
		if len(r.Loaded)+len(r.Softened) > 0 {
			noted = append(noted, r)
		}
	}
	errs := make([]error, len(noted))
	each(len(noted), func(i int) {
		if err := o.Store.Save(noted[i]); err != nil {
			errs[i] = fmt.Errorf("cannot note what is loaded for %s, which a detach will not take back: %w", noted[i].Unit, err)
		}
	})
	return errs
}
