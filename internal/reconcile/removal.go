package reconcile

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Removal takes aaunit off a host: what the package has done before its programs
// go. No unit is stopped or restarted, and no profile is unloaded, nor left in complain
// mode where it was enforced. Only a unit that
// aaunit was on its way with, and that is down for it, is started. systemd is reloaded
// for that, and where it would run the start helper, which goes; the package does it
// once more when its unit files are gone too.
type Removal struct {
	Systemd interface {
		observer
		Start(ctx context.Context, unit string) error
		ReadDropIn(path string) (text string, exists bool, err error)
		WriteDropIn(path, text string) (changed bool, err error)
		RemoveDropIn(path string) (changed bool, err error)
		Reload(ctx context.Context) error
		// DropIns lists the files that have the name and place of one of ours.
		DropIns() ([]string, error)
	}
	AppArmor interface {
		ByName(name string) []attach.Profile
		Host() attach.Host
		Compile(ctx context.Context, files []string, complain bool) (done []attach.Compiled, problems map[string]attach.Reason)
		Stage(ctx context.Context, policies []attach.Compiled)
		Load(ctx context.Context, policies []attach.Compiled) (failed map[string]error)
		Live(names []string) (map[string]attach.LiveProfile, error)
	}
	// SocketOptions takes off the programs that hold socket options, of all units: no
	// start helper takes their place any more.
	SocketOptions interface{ RemoveAll() error }
	Store         Store
	// Booted: systemd runs and can be asked. It does not in a chroot, where the
	// kernel's policy is another system's, too, and so are its programs.
	Booted bool
	// Boot is the present boot, as in the records.
	Boot string
	// Tell gets a line for each thing that people should know.
	Tell func(format string, args ...any)

	records map[string]attach.Record
	blind   bool                // there may be records that could not be listed
	stuck   map[string]bool     // units of which a drop-in could not be changed
	staying []attach.LeftDropIn // as somebody else has made them, or as they were
	doubts  map[string][]string // of profiles that are not missing: what the next boot makes of them
}

// MaxPolicy bounds how long Run looks at profiles, so that time is left for systemd.
const MaxPolicy = time.Minute

// Run decides about every drop-in that aaunit wrote (attach.LeftDropIn), does
// it, and tells of each unit what it loses. What cannot be done is told and
// keeps nothing else from being done. Records stay: a package that is installed
// again goes on from them.
func (r *Removal) Run(ctx context.Context) {
	records, problems := r.Store.Load()
	for _, p := range problems {
		r.Tell("%s", p.Detail)
		r.blind = r.blind || p.Where == ""
	}
	r.records, r.stuck = map[string]attach.Record{}, map[string]bool{}
	units := map[string][]string{} // by drop-in
	var cutOff []string
	for _, rec := range records {
		r.records[rec.Unit] = rec
		for _, path := range touched(rec) {
			units[path] = append(units[path], rec.Unit)
		}
		if rec.Interrupted() {
			cutOff = append(cutOff, rec.Unit)
		}
	}
	slices.Sort(cutOff)
	var all []attach.LeftDropIn
	profiles := map[string][]attach.Record{} // those that run under each
	for _, path := range slices.Sorted(maps.Keys(units)) {
		left := r.read(path)
		for _, u := range slices.Sorted(slices.Values(units[path])) {
			left.Records = append(left.Records, r.records[u])
			name := left.Profile(r.records[u])
			profiles[name] = append(profiles[name], r.records[u])
		}
		all = append(all, left)
	}
	lost, starts := r.notRecorded(units)
	for _, left := range lost {
		name := left.Profile(left.Records[0])
		profiles[name] = append(profiles[name], left.Records...)
	}
	all = append(all, lost...)
	delete(profiles, "") // of a pattern, where it depends on the unit
	policy, cancel := context.WithTimeout(ctx, MaxPolicy)
	defer cancel()
	missing := r.missing(policy, profiles)
	for _, left := range all {
		left.Missing = missing
		starts = r.part(ctx, left) && attach.Starts(left.Text) || starts
	}
	if (starts || len(cutOff) > 0) && r.Booted {
		if err := r.Systemd.Reload(ctx); err != nil {
			r.Tell("cannot have systemd read its files again: %v; systemctl daemon-reload, or units whose socket options were held or whose attach was not finished may not start", err)
		}
	}
	r.harden(policy)
	if r.Booted {
		if err := r.SocketOptions.RemoveAll(); err != nil {
			r.Tell("%v", err)
		}
	}
	r.comeBack(ctx, cutOff)
}

// harden loads what aaunit has loaded in complain mode, and was enforced before, as its
// text says again, as a detach does.
func (r *Removal) harden(ctx context.Context) {
	soft := map[string]bool{}
	for _, rec := range r.records {
		if rec.Boot == r.Boot && r.Boot != "" {
			for _, file := range rec.Softened {
				soft[file] = true
			}
		}
	}
	if len(soft) == 0 || !r.Booted || r.AppArmor.Host().Enabled != attach.Yes {
		return
	}
	stays := func(file, why string) {
		r.Tell("%s may be left loaded in complain mode: %s; next: apparmor_parser -r %s", file, why, file)
	}
	done, problems := r.AppArmor.Compile(ctx, slices.Sorted(maps.Keys(soft)), false)
	r.AppArmor.Stage(ctx, done)
	for _, file := range slices.Sorted(maps.Keys(problems)) {
		stays(file, problems[file].Detail)
	}
	var load []attach.Compiled
	for _, c := range done {
		live, err := r.AppArmor.Live(sortedNames(c))
		complains := func(name string) bool {
			p, loaded := live[name]
			return loaded && !p.Mode.Confines() && p.Checksum != c.Checksums[name]
		}
		switch other := r.wantedBy(c); {
		case err != nil:
			stays(c.File, err.Error())
		case !slices.ContainsFunc(sortedNames(c), complains): // somebody has been faster
		case other != "":
			stays(c.File, other+" stays, and may want it so")
		default:
			load = append(load, c)
		}
	}
	if len(load) == 0 {
		return
	}
	failed := r.AppArmor.Load(ctx, load)
	for _, c := range load {
		if err := failed[c.File]; err != nil {
			stays(c.File, err.Error())
			continue
		}
		r.Tell("%s, which aaunit had loaded in complain mode, is loaded as its text says again", c.File)
	}
}

// wantedBy finds a drop-in that stays, and not as what is enforced, whose units are
// under a profile of the file; "" none.
func (r *Removal) wantedBy(c attach.Compiled) string {
	for _, left := range r.staying {
		for _, rec := range left.Records {
			for _, name := range sortedNames(c) {
				if _, accepted := rec.Accepted[name]; accepted || name == rec.Profile || name == left.Profile(rec) {
					return left.Path
				}
			}
		}
	}
	return ""
}

// notRecorded looks at the drop-ins with the name of ours that no record has. Those that
// aaunit wrote come back with the record that they lack. All others stay, without the
// line of the start helper; starts says whether one had it.
func (r *Removal) notRecorded(recorded map[string][]string) (lost []attach.LeftDropIn, starts bool) {
	found, err := r.Systemd.DropIns()
	if err != nil {
		r.Tell("%v", err)
	}
	for _, path := range found {
		if len(recorded[path]) > 0 {
			continue
		}
		left := r.read(path)
		if with, ours := left.Recovered(); ours && left.Problem == "" {
			lost = append(lost, with)
			continue
		}
		switch rest := attach.TextWithoutStart(left.Text); {
		case left.Problem != "":
			r.Tell("%s is not on record as written by aaunit, and stays: %s; where it has a line of %s, its units may not start until that is taken out", path, left.Problem, attach.SocketHelper)
		case rest == left.Text:
			r.Tell("%s is not on record as written by aaunit, and stays", path)
		default:
			if _, err := r.Systemd.WriteDropIn(path, rest); err != nil {
				r.Tell("%v; take the line of %s out of it, or its units may not start", err, attach.SocketHelper)
				continue
			}
			starts = true
			r.Tell("%s is not on record as written by aaunit, and stays, but for the line that runs a program of aaunit's", path)
		}
	}
	return lost, starts
}

// touched lists the drop-ins that a record speaks of.
func touched(rec attach.Record) []string {
	paths := rec.DropIns.Paths()
	if rec.Former != nil {
		paths = slices.AppendSeq(paths, maps.Keys(rec.Former.DropIns))
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// read reads a drop-in.
func (r *Removal) read(path string) attach.LeftDropIn {
	text, exists, err := r.Systemd.ReadDropIn(path)
	left := attach.LeftDropIn{Path: path, Exists: exists, Text: text, Sum: sum(text)}
	if err != nil {
		left.Problem = err.Error()
	}
	return left
}

// comeBack starts those of the units that aaunit was on its way with that are down for
// it, and what went down with them: what would have done that has gone. What is to run
// after a boot was for the boot to start.
func (r *Removal) comeBack(ctx context.Context, units []string) {
	said := make([]string, len(units))
	up := make([]bool, len(units))
	each(len(units), func(i int) {
		if !attach.IsPattern(units[i]) && r.Booted {
			said[i], up[i] = r.startAgain(ctx, r.records[units[i]])
		}
	})
	for i, unit := range units {
		if said[i] != "" {
			r.Tell("%s", said[i])
		}
		if up[i] && r.records[unit].InBoot(r.Boot) {
			r.startDragged(ctx, r.records[unit])
		}
		if r.stuck[unit] {
			continue
		}
		rec := r.records[unit].Clone()
		was := rec
		rec = rec.Left()
		if was.Stopped && !up[i] {
			rec.Stopped, rec.Dragged = true, was.Dragged
		}
		r.save(rec)
	}
}

// startAgain starts a unit that ran before aaunit was on its way with it and is down
// now. It says what came of it.
func (r *Removal) startAgain(ctx context.Context, rec attach.Record) (said string, up bool) {
	u, err := r.Systemd.Observe(ctx, rec.Unit)
	if err != nil {
		return fmt.Sprintf("cannot tell whether %s is down because its attach was not finished: %v; next: systemctl status %s", rec.Unit, err, rec.Unit), false
	}
	if !u.Found() || !rec.ToStart(u, r.Boot) {
		return "", u.ActiveState == "active"
	}
	err = r.Systemd.Start(ctx, rec.Unit)
	if err != nil && u.ActiveState == "activating" {
		err = r.Systemd.Start(ctx, rec.Unit) // that was the start which was under way
	}
	if err != nil {
		return fmt.Sprintf("%s was down for an attach that was not finished, and does not start again: %v; next: journalctl -u %s", rec.Unit, err, rec.Unit), false
	}
	return rec.Unit + " was down for an attach that was not finished, and is started again", true
}

// startDragged starts what went down with a unit that is up again, and says so.
func (r *Removal) startDragged(ctx context.Context, rec attach.Record) {
	for _, other := range rec.Dragged {
		if u, err := r.Systemd.Observe(ctx, other); err == nil && u.Active() {
			continue
		}
		if err := r.Systemd.Start(ctx, other); err != nil {
			r.Tell("%s went down with %s, and does not start again: %v; next: journalctl -u %s", other, rec.Unit, err, other)
			continue
		}
		r.Tell("%s went down with %s, and is started again", other, rec.Unit)
	}
}

// missing says of each profile that systemd cannot put on without aaunit why
// that is so: now, because it is not loaded, or after the next boot, because
// apparmor.service does not load it. Where that could not be told the profile is not
// missing: at worst a start fails, which is not one without confinement.
func (r *Removal) missing(ctx context.Context, profiles map[string][]attach.Record) map[string]string {
	names := slices.Sorted(maps.Keys(profiles))
	why := map[string]string{}
	file := map[string]string{}
	r.doubts = map[string][]string{}
	doubt := func(name, format string, args ...any) {
		r.doubts[name] = append(r.doubts[name], fmt.Sprintf(format, args...))
	}
	unloaded := r.Booted && bootService(ctx, r.Systemd) == attach.No
	for _, name := range names {
		switch found := r.AppArmor.ByName(name); {
		case len(found) == 0:
			why[name] = "no file in /etc/apparmor.d has it for the next boot"
		case found[0].DisabledBy != "":
			why[name] = "it is disabled by " + found[0].DisabledBy
		case unloaded:
			why[name] = "apparmor.service, which loads it at boot, is not enabled"
		default:
			file[name] = found[0].File
			if found[0].ComplainBy != "" || found[0].HasFlag("complain") {
				doubt(name, "after the next boot it starts in complain mode (%s)", cmp.Or(found[0].ComplainBy, found[0].File))
			}
		}
	}
	// Where AppArmor is off, systemd puts on no profile and misses none.
	if !r.Booted || r.AppArmor.Host().Enabled != attach.Yes {
		return why
	}
	live, err := r.AppArmor.Live(names)
	if err != nil {
		r.Tell("cannot tell which profiles are loaded: %v", err)
	}
	for name := range file {
		switch p, loaded := live[name]; {
		case err != nil:
		case !loaded:
			why[name] = "it is not loaded"
		case !p.Mode.Confines():
			why[name] = fmt.Sprintf("it is in %s mode, and what loads it next may enforce it", p.Mode)
		}
	}
	files := slices.Compact(slices.Sorted(maps.Values(file)))
	done, problems := r.AppArmor.Compile(ctx, files, false)
	for name, f := range file {
		switch p, bad := problems[f]; {
		case !bad:
		case p.Code == attach.ProfileBroken:
			why[name] = f + " does not compile, and is not loaded at the next boot"
		case p.Code == attach.ProfileNotFound:
			why[name] = f + " is gone, and is not loaded at the next boot"
		default:
			doubt(name, "whether its profile is loaded at the next boot could not be told: %s", p.Detail)
		}
	}
	changed := r.notAccepted(ctx, done, profiles, file)
	for _, name := range names {
		if changed[name] {
			doubt(name, "after the next boot it starts under the text of %s, which is not what aaunit had accepted", file[name])
		}
	}
	return why
}

// notAccepted finds the profiles whose files have another text than the accepted one,
// which was kept in force, and do not come to the same policy. The kernel is asked about
// a policy that may be another one only: that takes its time.
func (r *Removal) notAccepted(ctx context.Context, done []attach.Compiled, profiles map[string][]attach.Record, file map[string]string) map[string]bool {
	// which says of a policy whose file is name's whether it is to be asked about.
	which := func(name string, c attach.Compiled, ask func(attach.Record) bool) bool {
		return file[name] == c.File && slices.ContainsFunc(profiles[name], func(rec attach.Record) bool {
			id := rec.Policies[c.File]
			return id != "" && id != c.ID && ask(rec)
		})
	}
	other := slices.DeleteFunc(slices.Clone(done), func(c attach.Compiled) bool {
		for name := range file {
			if which(name, c, func(attach.Record) bool { return true }) {
				return false
			}
		}
		return true
	})
	r.AppArmor.Stage(ctx, other)
	changed := map[string]bool{}
	for _, c := range other {
		for name := range file {
			if which(name, c, func(rec attach.Record) bool { return !accepted(rec, c) }) {
				changed[name] = true
			}
		}
	}
	return changed
}

// accepted reports whether the kernel's checksums of a policy are the accepted ones.
func accepted(rec attach.Record, c attach.Compiled) bool {
	for name, sum := range c.Checksums {
		if rec.Accepted[name] != sum {
			return false
		}
	}
	return len(c.Checksums) > 0
}

// part does what is decided about one drop-in, and says whether it changed.
func (r *Removal) part(ctx context.Context, left attach.LeftDropIn) (changed bool) {
	fate, text, why := left.Fate()
	switch fate {
	case attach.FateGone:
		r.keep(left, "")
	case attach.FateKept:
		if _, err := r.Systemd.WriteDropIn(left.Path, text); err != nil {
			r.Tell("%v; its units do not start where AppArmor is off", err)
			r.stay(left)
			return false
		}
		changed = true
		r.keep(left, sum(text))
		for _, rec := range left.Records {
			if profile := left.Profile(rec); profile != "" {
				said := append([]string{"where AppArmor is off it starts unconfined"}, r.doubts[profile]...)
				r.Tell("%s goes on to start under profile %s, by %s, but nobody looks; %s%s", of(rec.Unit), profile, left.Path, strings.Join(said, "; "), noList(left, rec))
			}
		}
	case attach.FateTaken:
		if _, err := r.Systemd.RemoveDropIn(left.Path); err != nil {
			r.Tell("%v; remove it, or its units may not start: profile %s: %s", err, r.profile(left, left.Records[0]), why)
			r.stay(left)
			return false
		}
		changed = true
		r.keep(left, "")
		if left.OfSocket() { // the service's own drop-in tells of the rest
			r.Tell("%s keeps its sockets%s", strings.TrimSuffix(path.Base(path.Dir(left.Path)), ".d"), noList(left, attach.Record{}))
			break
		}
		for _, rec := range left.Records {
			u, known := attach.Unit{}, false
			if r.Booted && !attach.IsPattern(rec.Unit) {
				var err error
				u, err = r.Systemd.Observe(ctx, rec.Unit)
				known = err == nil
			}
			r.Tell("%s %s: of its profile %s, %s%s", of(rec.Unit), attach.Afterwards(u, known), r.profile(left, rec), why, noList(left, rec))
		}
	case attach.FateChanged:
		r.staying = append(r.staying, left)
		if text != left.Text {
			if _, err := r.Systemd.WriteDropIn(left.Path, text); err != nil {
				r.Tell("%v; take the line of %s out of it, or its units may not start", err, attach.SocketHelper)
			} else {
				changed = true
				why += ", but for the line that runs a program of aaunit's"
			}
		}
		for _, rec := range left.Records {
			r.Tell("%s starts as %s says, which is kept: %s%s", of(rec.Unit), left.Path, why, noList(left, rec))
		}
	case attach.FateUnread:
		r.stay(left)
		r.Tell("%s stays: %s; where it has a line of %s, its units may not start until that is taken out", left.Path, why, attach.SocketHelper)
	}
	return changed
}

// noList says that a unit's socket options are not looked after any more, where they were;
// else it is "".
func noList(left attach.LeftDropIn, rec attach.Record) string {
	if !attach.Starts(left.Text) && rec.Sockets == nil {
		return ""
	}
	return "; its socket options are neither recorded nor held to a list any more"
}

// profile names the profile of a record's unit to people.
func (r *Removal) profile(left attach.LeftDropIn, rec attach.Record) string {
	return cmp.Or(left.Profile(rec), rec.Profile)
}

// stay notes that a drop-in is as it was: the records still say how it should be.
func (r *Removal) stay(left attach.LeftDropIn) {
	r.staying = append(r.staying, left)
	for _, rec := range left.Records {
		r.stuck[rec.Unit] = true
	}
}

// keep has the records say which text a drop-in has now; "" that it is gone.
func (r *Removal) keep(left attach.LeftDropIn, text string) {
	for _, rec := range left.Records {
		switch known, has := r.records[rec.Unit]; {
		case has:
			rec = known.Clone()
		case text == "" || r.blind:
			continue // nothing is left, or its record may be there all the same
		}
		rec.DropIns = rec.DropIns.Without(left.Path)
		if text != "" {
			rec.DropIns = rec.DropIns.With(left.Path, text)
		}
		r.save(rec)
	}
}

// save keeps a record.
func (r *Removal) save(rec attach.Record) {
	r.records[rec.Unit] = rec
	if err := r.Store.Save(rec); err != nil {
		r.Tell("cannot keep the record of %s: %v", rec.Unit, err)
	}
}

// sum is how a record knows the text of a drop-in again.
func sum(text string) string {
	digest := sha256.Sum256([]byte(text))
	return hex.EncodeToString(digest[:])
}

// of names a unit, or the units to come of a pattern.
func of(unit string) string {
	if attach.IsPattern(unit) {
		return "each other unit of " + unit
	}
	return unit
}
