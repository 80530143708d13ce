package reconcile

import (
	"context"

	"github.com/aaunit/aaunit/internal/attach"
)

// Systemd is what the loop needs of systemd. Implementations retry nothing but
// a lost connection, and say so through Follow.
type Systemd interface {
	// Observe reads a unit and its effective settings. A name that systemd
	// does not know is no error: LoadState says so. An alias gives the unit it
	// stands for.
	Observe(ctx context.Context, unit string) (attach.Unit, error)
	// Glance is Observe without what only a plan needs: NeedReload may be
	// missing, and RestartsWith is.
	Glance(ctx context.Context, unit string) (attach.Unit, error)
	// Confining reads, of a unit's effective settings, Profile, IgnoreMissing,
	// AssertAppArmor and PrivateTmp alone.
	Confining(ctx context.Context, unit string) (attach.Settings, error)
	// Pattern reads the drop-ins that reach every unit of a template or prefix, and what
	// they set, as a unit with nothing else.
	Pattern(name string) (attach.Unit, error)
	// Invocation reads the unit's InvocationID alone.
	Invocation(ctx context.Context, unit string) (string, error)
	// GlanceTogether calls look with those of the units that run and can be told
	// together, at the price of one, each as Glance gives it. It returns the names of
	// those that were the same start, with the same settings, from before look to
	// after it; nothing is certain of the others.
	GlanceTogether(ctx context.Context, units []string, look func(map[string]attach.Unit)) []string
	// StartingSockets reads .socket units, without DropIn.
	StartingSockets(ctx context.Context, names []string) ([]attach.StartingSocket, error)
	// Expand lists the services that match a glob, loaded or with a unit file.
	// Templates are listed as such.
	Expand(ctx context.Context, glob string) ([]string, error)
	// Running lists the services that have, or are about to have, processes.
	Running(ctx context.Context) ([]string, error)
	// Sockets lists the .socket units that listen. One that could not be read is in
	// problems, by name.
	Sockets(ctx context.Context) (list []attach.SocketUnit, problems map[string]error, err error)

	// ReadDropIn reads a drop-in without following links. exists is false, and
	// err nil, only where there is certainly nothing.
	ReadDropIn(path string) (text string, exists bool, err error)
	// WriteDropIn writes one atomically and only when it differs; it says
	// whether anything changed.
	WriteDropIn(path, text string) (changed bool, err error)
	// RemoveDropIn removes one and its directory when that is empty then.
	RemoveDropIn(path string) (changed bool, err error)

	// Reload is daemon-reload; it returns when systemd has finished.
	Reload(ctx context.Context) error
	// TryRestart restarts a running unit; one that is not running stays so. It
	// waits for the job; any result but "done" and "skipped" is an error. One with a
	// method Canceled() bool, here and below, says that another job took its place.
	TryRestart(ctx context.Context, unit string) error
	// Start clears a failed state first and waits for the job.
	Start(ctx context.Context, unit string) error
	// Stop waits for the job.
	Stop(ctx context.Context, unit string) error
	// Keep has systemd keep a loaded unit, and what it knows of its last start, also when
	// it ends, until release is called or the connection is lost.
	Keep(ctx context.Context, unit string) (release func(), err error)

	// Follow sends what happens to units that wants accepts, until ctx ends.
	// wants must be quick and may be asked at any time.
	Follow(ctx context.Context, wants func(unit string) bool) <-chan attach.UnitEvent
}

// AppArmor is what the loop needs of AppArmor.
type AppArmor interface {
	Texts
	// Known answers like ByName from what is known already, for hints in
	// messages: it waits for nothing and starts no parser.
	Known(name string) []attach.Profile
	// Fingerprint tells the state of profiles: of the files that define them
	// (file too, where it is given) with all they include, of the links that
	// stand for these, and of what is loaded. It differs when any of that
	// changed, and when it could not be told.
	Fingerprint(names []string, file string) string
	// LoadedState tells the same of what is loaded alone, with children and hats. It
	// waits for no parser.
	LoadedState(names []string) string

	// Host reads the kernel's state; BootService is left to the caller.
	Host() attach.Host
	// Environment is a digest of what a compiled policy depends on beside its
	// source: parser, its configuration, kernel.
	Environment() string
	// CompileText compiles a file as if it had that text; what it includes is on
	// disk.
	CompileText(ctx context.Context, file, text string, complain bool) (attach.Compiled, *attach.Reason)
	// CompileKept compiles policies anew from the texts that were kept with them.
	// problems are by the policies' IDs.
	CompileKept(ctx context.Context, kept []attach.Compiled) (done []attach.Compiled, problems map[string]attach.Reason)
	// Load makes compiled policies live, all of them in one go; of one whose checksums are
	// known those profiles that have one. What is wrong with one keeps no other from being
	// loaded. failed holds an error for each file whose profiles the kernel
	// does not have afterwards, as read back from the kernel.
	Load(ctx context.Context, policies []attach.Compiled) (failed map[string]error)
	// Live reads the named profiles, their children and hats.
	Live(names []string) (map[string]attach.LiveProfile, error)
	// Loaded reads the bytes of loaded profiles, their children and hats back, each
	// with the kernel's checksum, and its mode as a flag; no names are all. One whose bytes
	// cannot be read has none, and NotStaged says why.
	Loaded(names []string) ([]attach.Compiled, error)
	// Save keeps what is loaded under these names, so that Restore can bring it
	// back; a name that is not loaded is unloaded by Restore, unless a task
	// carries it.
	Save(names []string) (Saved, error)
	// Unload removes profiles and their children, and gives what went wrong by
	// name. It refuses one while a task of the host carries it or a child of it, or
	// may in a moment; then the error has a method Passes() bool that says so.
	Unload(ctx context.Context, names []string) map[string]error

	// Scan looks at all tasks of the unit: of its control groups, and its main
	// and control process. Before and After are left to the caller.
	Scan(ctx context.Context, u attach.Unit) attach.Scan
	// Rescan is Scan for those of the units whose tasks were all as expected when
	// they were last looked at and still are; the others are left out.
	Rescan(units []attach.Unit) map[string]attach.Scan
	// MainProcess looks at the unit's main process, or where it has none at all processes
	// of these tasks.
	MainProcess(u attach.Unit, tasks []attach.Task) attach.MainProcess
	// OpenInTmp lists files in the host's /tmp and /var/tmp that the unit's
	// tasks have open; at most a hundred.
	OpenInTmp(ctx context.Context, u attach.Unit) []string

	// Changes tells, merged, that profile files, what is loaded or the global mode changed.
	Changes(ctx context.Context) <-chan struct{}
	// Denials tells what the kernel denies, or lets pass in complain mode, of any
	// profile, and what of that was not heard. It waits for no reader. It is
	// closed when ctx ends. Unit is that of the process; with Cgroup and without
	// Unit it is known to be in none, and without both nothing is known.
	Denials(ctx context.Context) <-chan attach.Denial
	// SessionOf gives the control group of a process where it is a session scope of
	// logind's, else "".
	SessionOf(pid int) string
}

// Saved is a policy as it was. It is an alias, so that an adapter can return it
// without importing this package.
type Saved = interface {
	// Restore makes it live again. stays are the profiles that were not loaded then and
	// are still, as with Unload.
	Restore(ctx context.Context) (stays map[string]error, err error)
}

// Attachments is where wishes are kept.
type Attachments interface {
	// Read reads all attachment files. It never fails as a whole.
	Read() attach.Declared
	// One reads one attachment file, wherever it lies; is says whether it looks like
	// one, and problems what is wrong with it. Holds reports whether a file lies where
	// attachment files are read from.
	One(path string) (a attach.Attachment, problems []attach.Reason, is bool)
	Holds(path string) bool
	// Exists reports whether a file lies in one of the directories and is there, be it
	// masked or of no use; where that cannot be told, too.
	Exists(path string) bool
	// Propose is what Read would give if files had these texts, or one without any
	// were gone; others are those that are no place of an attachment file.
	Propose(files []attach.ProposedFile) (d attach.Declared, others []attach.ProposedFile)
	// Write stores a manual attachment and gives the file; an existing manual
	// one of the same unit is replaced. restore puts back what was there. An
	// error with a method WayOut() string says what to do about it, here and below
	// Systemd and Store.
	Write(unit string, a attach.Attachment) (file string, restore func() error, err error)
	// Remove takes a manual attachment away.
	Remove(file string) error
	// Changes tells, merged, that files came, went or changed.
	Changes(ctx context.Context) <-chan struct{}
}

// Gate is asked about compiled policy before it goes live.
type Gate interface {
	// Check gives what speaks against the unit's running under the policies of the
	// files that define its profiles, worst first. An attach.Error keeps them from
	// going live; the rest is told. It is asked again whenever a plan is made, so it
	// keeps its answers.
	Check(ctx context.Context, d attach.Desired, u attach.Unit, compiled []attach.Compiled) []attach.Finding
	// Query asks one profile of a policy whether something is allowed.
	Query(ctx context.Context, profile string, c attach.Compiled, question attach.Assertion) attach.QueryResult
	// Denies reports whether a policy, too, denies what a record says that the profile
	// of that name denied. It is "could not tell" where the record does not say enough
	// for that, or the policy has no such profile.
	Denies(ctx context.Context, c attach.Compiled, d attach.Denial) attach.Tri
	// Reach lists the profiles of policies under which tasks of the unit can come to run,
	// children and hats, too. Of two that define the same profile the first one counts.
	Reach(d attach.Desired, compiled []attach.Compiled) (profiles []string, err error)
	// SameWays reports whether the same programs come to run under the same profiles by
	// two versions of policies, and the same changes of profile are allowed. Only then
	// does what a profile of a name denied before tell what a program was denied.
	SameWays(ctx context.Context, was, is []attach.Compiled) attach.Tri
}

// Evidence keeps what verdicts rest on. It holds up nobody but Check: what takes
// a look at files and processes is done later, beside the loop.
type Evidence interface {
	// Has reports whether the newest record of a unit, kept or on its way, is about
	// this. It is no also where that is not known (yet).
	Has(unit string, key attach.EvidenceKey) bool
	// Record has a record made of what attach.GatherEvidence gives, unless the newest
	// one on disk is about the same. What is not taken or could not be kept is told by
	// the implementation, and Has goes on saying no.
	Record(e attach.Evidence)
	// Check compares the newest records of a unit with what is now, nil for a unit
	// that is not attached, and with each other. It waits, for a bounded time, for
	// what is on its way. sources are digests of profiles' texts as they compile now
	// (Compiled.Source), by file.
	Check(ctx context.Context, unit string, now *attach.Evidence, sources map[string]string) attach.EvidenceStatus
	// History gives the newest record, and since when they say the same.
	History(unit string) attach.EvidenceHistory
	// Program looks at what a process of a unit runs, of which PID, At and Path are given.
	// What could not be told is in its Problem. It waits, for a bounded time.
	Program(ctx context.Context, unit string, seen attach.EvidenceProgram) attach.EvidenceProgram
}

// Processes looks at what services are made of, for reports. No verdict comes of it.
type Processes interface {
	// Look reads the processes of units with their labels, and the sockets on which
	// they wait for others, in the order of the units. What could not be read is in
	// Problems.
	Look(ctx context.Context, units []attach.Unit) []attach.Sighting
	// Machine says which machine this is.
	Machine() attach.Machine
}

// Policies keeps accepted policies, with their bytes and the texts that they
// were made from, across restarts of the daemon and of the machine.
type Policies interface {
	// Load reads what is kept; what cannot be read is set aside and named in
	// problems.
	Load() (problems []attach.Reason)
	// Lookup finds a policy by its ID, without its bytes.
	Lookup(id string) (attach.Compiled, bool)
	// Get reads one with its bytes and texts. After an error it is not kept any
	// more.
	Get(id string) (attach.Compiled, error)
	// Keep stores one so that a crash leaves it whole or not there.
	Keep(c attach.Compiled) error
	// Retain removes all but these.
	Retain(ids map[string]bool) error
}

// Store keeps records across restarts of the daemon.
type Store interface {
	// Load reads all records; one that cannot be read is set aside and named
	// in problems. A problem without a place (Where) is that they could not be listed:
	// there may be any number of them.
	Load() (records []attach.Record, problems []attach.Reason)
	// Save writes a record so that a crash leaves the old or the new one.
	Save(attach.Record) error
	// Delete removes a record.
	Delete(unit string) error
}

// SocketOptions is what the loop needs of the programs that record socket options
// and hold units to a list of them. They are in the kernel, and need nobody to live.
// All of it may be done any number of times. A name is that of a service, or of a
// .socket unit that starts one; of the rules that are kept also of a template or
// prefix. An error with a method WayOut() string says what to do about it.
type SocketOptions interface {
	// Save keeps the rules of a name for the start helper, which reads those of the
	// unit, and else of its template or prefix. Delete forgets them.
	Save(name string, s attach.SocketOptions) (changed bool, err error)
	Delete(name string) (changed bool, err error)
	// Attach has the rules hold now, for a unit that runs in the control group;
	// changed says whether they did not before. Nothing is refused meanwhile that
	// both the old and the new rules allow.
	Attach(controlGroup, unit string, s attach.SocketOptions) (changed bool, err error)
	// Attached asks the kernel what is attached to the control group. What could not
	// be told is in the answer.
	Attached(controlGroup, unit string, s attach.SocketOptions) attach.SocketsSeen
	// Read gives what was recorded since the unit's first start after the boot; found
	// is false, and err nil, where there is nothing. Forget begins anew.
	Read(unit string) (r attach.SocketRecording, found bool, err error)
	Forget(unit string) error
	// Off detaches what is attached for a unit; what was recorded stays readable.
	Off(unit string) (changed bool, err error)
	// Remove detaches what is attached for a unit, and throws away what was recorded.
	Remove(unit string) (changed bool, err error)
	// Sweep is Remove for a unit that has ended. It touches nothing where there is a
	// start of it; gone says that there is nothing of the unit any more.
	Sweep(unit string) (gone bool, err error)
	// Units lists the units of which there is something.
	Units() ([]string, error)
}

// SocketHistories keeps what was seen of socket options, by executable, over boots.
type SocketHistories interface {
	// Load gives the zero value, and no error, where nothing is kept. What cannot be
	// read is set aside, and is an error once.
	Load(unit string) (attach.SocketHistory, error)
	// Save writes one so that a crash leaves the old or the new one. It keeps those
	// of a bounded number of units, the last that were written; of units that are attached
	// none goes for one of another template.
	Save(attach.SocketHistory) error
}
