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

// MakePolicyLive loads the accepted policy of every attached unit where the
// kernel has another one or none: after a boot, when apparmor.service has loaded
// what /etc/apparmor.d said at that time. It needs no daemon and no systemd:
//
//  1. What was compiled for another parser or kernel is compiled anew, from the
//     texts that were accepted; where that fails, it is used as it is.
//  2. All of it is staged, so that the kernel's checksums are known.
//  3. What the kernel does not have is loaded; nothing is ever removed.
//
// What only paused units run under is left as it was loaded.
//
// A policy that fails keeps no other from going live: what apparmor.service has
// loaded stays in its place, and the daemon's verdict tells.
func MakePolicyLive(ctx context.Context, o Options) error {
	var errs []error
	say := func(problems []attach.Reason) {
		for _, p := range problems {
			errs = append(errs, errors.New(p.String()))
		}
	}
	records, problems := o.Store.Load()
	say(problems)
	say(o.Policies.Load())

	ids := map[string]bool{}
	alone := pausedIn(records, time.Now())
	for _, r := range records {
		if len(r.DropIns) > 0 && !alone[r.Unit] {
			for _, id := range r.Policies {
				ids[id] = true
			}
		}
	}
	env := o.AppArmor.Environment()
	var ready, anew []attach.Compiled
	for _, id := range slices.Sorted(maps.Keys(ids)) {
		k, err := o.Policies.Get(id)
		switch {
		case err != nil:
			errs = append(errs, err)
		case k.Environment == env:
			ready = append(ready, k)
		default:
			anew = append(anew, k)
		}
	}
	if len(anew) > 0 {
		made, problems := o.AppArmor.CompileKept(ctx, anew)
		// What was accepted is better than what somebody else has loaded, or nothing.
		// Another kernel may give it other checksums.
		asItWas := map[string]bool{} // by ID
		slices.SortStableFunc(anew, func(a, b attach.Compiled) int { return strings.Compare(a.File, b.File) })
		for _, k := range anew {
			if p, failed := problems[k.ID]; failed {
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
			ready = append(ready, c)
		}
	}

	var names []string
	for _, c := range ready {
		names = append(names, sortedNames(c)...)
	}
	live, err := o.AppArmor.Live(names)
	if err != nil {
		errs = append(errs, err) // then all of it is loaded
	}
	ready = slices.DeleteFunc(ready, func(c attach.Compiled) bool {
		for name, sum := range c.Checksums {
			if live[name].Checksum != sum {
				return false
			}
		}
		return true
	})
	if len(ready) == 0 {
		return errors.Join(errs...)
	}
	failed := o.AppArmor.Load(ctx, ready)
	for _, c := range ready {
		if err := failed[c.File]; err != nil {
			errs = append(errs, err)
			continue
		}
		o.Log.Info("made the accepted policy of "+c.File+" live", journal.FieldFile, c.File)
	}
	return errors.Join(errs...)
}
