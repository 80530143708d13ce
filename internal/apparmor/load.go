package apparmor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// Load makes compiled policies live and reads back whether the kernel has
// them: see reconcile.AppArmor.
//
// The bytes go to the kernel's .replace directly and not through
// "apparmor_parser --binary --replace": they are exactly the staged ones, no
// process is started (which costs far more than the load),
// each file is taken whole or not at all, and the kernel's answer arrives as
// it is. Files are independent of each other: what is wrong with one keeps no
// other from being loaded.
func (s *System) Load(ctx context.Context, policies []attach.Compiled) (failed map[string]error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	failed = map[string]error{}
	names := map[string][]string{} // file -> all profiles of it
	var all []string
	for _, c := range policies {
		if err := ctx.Err(); err != nil {
			failed[c.File] = fmt.Errorf("cannot load %s: %w", c.File, err)
			continue
		}
		elements, err := policydb.Split(c.Blob)
		blob := c.Blob
		if part := partOf(elements, c); len(part) < len(elements) {
			elements, blob = part, nil
			for _, e := range part {
				blob = append(blob, e.Bytes...)
			}
		}
		if err == nil && len(elements) == 0 {
			err = errors.New("it holds no profile")
		}
		for _, e := range elements {
			if e.Namespace != "" {
				err = fmt.Errorf("profile %s names policy namespace %s", clean(e.Name), clean(e.Namespace))
			}
			names[c.File] = append(names[c.File], e.Name)
		}
		if err == nil {
			err = writePolicy(s.real(filepath.Join(securityDir, ".replace")), blob)
		}
		if err != nil {
			failed[c.File] = fmt.Errorf("cannot load %s: %w", c.File, err)
			continue
		}
		all = append(all, names[c.File]...)
	}
	if len(all) == 0 {
		return failed
	}
	live, err := s.live(all)
	for _, c := range policies {
		switch {
		case failed[c.File] != nil:
		case err != nil:
			failed[c.File] = fmt.Errorf("cannot tell whether %s is loaded: %w", c.File, err)
		default:
			if err := s.settle(c, names[c.File], live); err != nil {
				failed[c.File] = fmt.Errorf("cannot load %s: %w", c.File, err)
			}
		}
	}
	return failed
}

// partOf gives the profiles of a policy that are to be loaded: where its checksums are known,
// those that have one.
func partOf(elements []policydb.Element, c attach.Compiled) []policydb.Element {
	if len(c.Checksums) == 0 {
		return elements
	}
	return slices.DeleteFunc(slices.Clone(elements), func(e policydb.Element) bool { return !c.Defines(e.Name) })
}

// settle compares what the kernel has with what it was given, and takes away
// children and hats of an earlier policy that no task carries: a replacement
// keeps those that the new policy does not define.
func (s *System) settle(c attach.Compiled, names []string, live map[string]loaded) error {
	var errs []error
	for _, name := range names {
		have, ok := live[name]
		want := c.Checksums[name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("the kernel does not have profile %s afterwards", name))
		case want != "" && have.Checksum != want:
			errs = append(errs, fmt.Errorf("the kernel has profile %s with checksum %s, and %s was given: somebody else loaded another policy of that name", name, have.Checksum, want))
		}
	}
	errs = append(errs, s.prune(names, live))
	return errors.Join(errs...)
}

// prune unloads the children of these profiles that are not among them. One
// that a task carries stays, since removing it would unconfine the task, and is
// no failure of the load: the new policy is live, and who reads the loaded
// profiles sees the child.
func (s *System) prune(names []string, live map[string]loaded) error {
	var errs []error
	extra := slices.Sorted(maps.Keys(live))
	slices.Reverse(extra) // children before their parents
	extra = slices.DeleteFunc(extra, func(name string) bool {
		return !strings.Contains(name, "//") || slices.Contains(names, name) || !wantedBy(names, name)
	})
	failed := map[string]error{}
	s.unload(extra, failed)
	for _, name := range extra {
		if err := failed[name]; err != nil && !errors.Is(err, ErrInUse) {
			errs = append(errs, fmt.Errorf("child %s of an earlier policy is still loaded: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// errStarting is ErrInUse of what passes by itself: which of the profiles a service is
// being started under is not known.
var errStarting error = startingError{}

type startingError struct{}

func (startingError) Error() string        { return "a task may carry the profile in a moment" }
func (startingError) Is(target error) bool { return target == ErrInUse }
func (startingError) Passes() bool         { return true }

// startTime is how long an unload waits for starts that are under way.
const startTime = 3 * time.Second

// Unload removes profiles and their children, and gives what went wrong by name.
// It refuses one, with ErrInUse, while a task of the host carries it or a child of
// it: removing it would unconfine the task. A profile that is not loaded is no
// error. The tasks are looked at once for all of them, and starts that are under
// way are waited for once. Where one goes on for longer, the error says that it passes
// by itself (a method Passes).
func (s *System) Unload(ctx context.Context, names []string) map[string]error {
	failed := map[string]error{}
	if err := ctx.Err(); err != nil {
		for _, name := range names {
			failed[name] = err
		}
		return failed
	}
	s.loading.Lock()
	defer s.loading.Unlock()
	s.unload(names, failed)
	return failed
}

// unload is Unload for who holds the lock; it fills failed.
func (s *System) unload(names []string, failed map[string]error) {
	var valid []string
	for _, name := range names {
		if name == "" || strings.HasPrefix(name, ":") || strings.ContainsAny(name, "\n\x00") {
			failed[name] = fmt.Errorf("cannot unload profile %q: it is no name of a profile", name)
		} else if !slices.Contains(valid, name) {
			valid = append(valid, name)
		}
	}
	all := func(names []string, format string, err error) {
		for _, name := range names {
			failed[name] = fmt.Errorf(format, name, err)
		}
	}
	live, err := s.live(valid)
	if err != nil {
		all(valid, "cannot unload profile %s: %w", err)
		return
	}
	valid = slices.DeleteFunc(valid, func(name string) bool { _, loaded := live[name]; return !loaded })
	if len(valid) == 0 {
		return
	}
	begin := time.Now()
	who, starting, err := s.carriers(valid)
	for err == nil && len(who) < len(valid) && starting != "" && time.Since(begin) < startTime {
		time.Sleep(lookPause)
		who, starting, err = s.carriers(valid)
	}
	if err != nil {
		all(valid, "cannot unload profile %s: whether a task carries it could not be told: %w", err)
		return
	}
	var gone []string
	for _, name := range valid {
		if who[name] != "" {
			failed[name] = fmt.Errorf("cannot unload profile %s: %w: %s", name, ErrInUse, who[name])
		} else if starting != "" {
			failed[name] = fmt.Errorf("cannot unload profile %s: %w: %s", name, errStarting, starting)
		} else if err := writePolicy(s.real(filepath.Join(securityDir, ".remove")), []byte(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failed[name] = fmt.Errorf("cannot unload profile %s: %w", name, err)
		} else {
			gone = append(gone, name)
		}
	}
	if live, err = s.live(gone); err != nil {
		all(gone, "cannot tell whether profile %s is unloaded: %w", err)
		return
	}
	for _, name := range gone {
		if _, ok := live[name]; ok {
			failed[name] = fmt.Errorf("cannot unload profile %s: the kernel still has it", name)
		}
	}
}

// Saved is policy as it was loaded. It is an alias, so that a consumer can
// declare the same interface and need not import this package.
type Saved = interface {
	Restore(ctx context.Context) (stays map[string]error, err error)
}

type saved struct {
	s     *System
	names []string
	was   map[string]attach.LiveProfile
	blobs map[string][]byte // top profile -> it and its children
}

// Save keeps what is loaded under these names: the kernel still has the bytes
// of every profile (raw_data). A profile that is loaded and
// whose bytes cannot be had is an error.
func (s *System) Save(names []string) (Saved, error) {
	s.loading.Lock()
	defer s.loading.Unlock()
	live, err := s.live(names)
	if err != nil {
		return nil, err
	}
	v := &saved{s: s, names: slices.Clone(names), was: map[string]attach.LiveProfile{}, blobs: map[string][]byte{}}
	// Several profiles that were loaded in one go share their bytes.
	raws := map[string][]policydb.Element{}
	for _, name := range slices.Sorted(maps.Keys(live)) { // parents before children
		p := live[name]
		v.was[name] = p.LiveProfile
		top, _, _ := strings.Cut(name, "//")
		raw, err := readAll(filepath.Join(p.dir, "raw_data"), maxPolicy)
		if err != nil {
			return nil, fmt.Errorf("cannot keep profile %s as it is loaded now: %w (the kernel gives the bytes of loaded policy with apparmor.export_binary=1)", name, err)
		}
		elements, ok := raws[string(raw)]
		if !ok {
			if elements, err = policydb.Split(raw); err != nil {
				return nil, fmt.Errorf("cannot keep profile %s as it is loaded now: %w", name, err)
			}
			raws[string(raw)] = elements
		}
		i := slices.IndexFunc(elements, func(e policydb.Element) bool { return e.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("cannot keep profile %s as it is loaded now: the bytes it came in do not hold it", name)
		}
		v.blobs[top] = append(v.blobs[top], elements[i].Bytes...)
	}
	return v, nil
}

// Restore makes the policy live again as it was, and unloads what was not
// loaded then. stays are those of them that a task carries, or may in a moment, with
// what Unload says.
func (v *saved) Restore(ctx context.Context) (stays map[string]error, err error) {
	s := v.s
	s.loading.Lock()
	defer s.loading.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	now, err := s.live(v.names)
	if err != nil {
		return nil, fmt.Errorf("cannot bring the earlier policy back: %w", err)
	}
	var errs []error
	for _, top := range slices.Sorted(maps.Keys(v.blobs)) {
		if v.same(top, now) {
			continue
		}
		if err := writePolicy(s.real(filepath.Join(securityDir, ".replace")), v.blobs[top]); err != nil {
			errs = append(errs, fmt.Errorf("cannot bring profile %s back: %w", top, err))
		}
	}
	if now, err = s.live(v.names); err != nil {
		return nil, errors.Join(append(errs, fmt.Errorf("cannot tell whether the earlier policy is back: %w", err))...)
	}
	gone := slices.Sorted(maps.Keys(now))
	slices.Reverse(gone)
	gone = slices.DeleteFunc(gone, func(name string) bool { _, before := v.was[name]; return before })
	failed := map[string]error{}
	stays = map[string]error{}
	s.unload(gone, failed)
	for _, name := range gone {
		switch err := failed[name]; {
		case errors.Is(err, ErrInUse):
			stays[name] = err
		case err != nil:
			errs = append(errs, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(v.was)) {
		was, have := v.was[name], now[name]
		if have.Name == "" || have.Checksum != was.Checksum || have.Mode != was.Mode {
			errs = append(errs, fmt.Errorf("cannot bring profile %s back: the kernel has %s (%s) now, before it was %s (%s)", name, orNothing(have.Checksum), have.Mode, orNothing(was.Checksum), was.Mode))
		}
	}
	return stays, errors.Join(errs...)
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// same reports whether a profile and its children are as they were.
func (v *saved) same(top string, now map[string]loaded) bool {
	for name, was := range v.was {
		if covers(top, name) && now[name].LiveProfile != was {
			return false
		}
	}
	return true
}
