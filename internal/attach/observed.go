package attach

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Tri is an answer that may be missing. Its zero value is "could not tell".
type Tri int8

// The three answers.
const (
	CouldNotTell Tri = iota
	Yes
	No
)

// TriOf makes an answer of a boolean that was really read.
func TriOf(b bool) Tri {
	if b {
		return Yes
	}
	return No
}

func (t Tri) String() string {
	switch t {
	case Yes:
		return "yes"
	case No:
		return "no"
	}
	return "unknown"
}

// MarshalText makes a Tri read as "yes", "no" or "unknown" in JSON.
func (t Tri) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText is the inverse; anything unexpected is "could not tell".
func (t *Tri) UnmarshalText(b []byte) error {
	switch string(b) {
	case "yes":
		*t = Yes
	case "no":
		*t = No
	default:
		*t = CouldNotTell
	}
	return nil
}

// Host is the state of AppArmor on the machine.
type Host struct {
	// Enabled is what systemd looks at: /sys/module/apparmor/parameters/enabled.
	Enabled Tri `json:"enabled"`
	// GlobalMode is /sys/module/apparmor/parameters/mode ("" = could not be
	// read). "complain" there permits everything while every label still reads
	// "(enforce)".
	GlobalMode Mode `json:"globalMode"`
	// BootService says whether apparmor.service will load /etc/apparmor.d at boot.
	BootService Tri `json:"bootService"`
	// Problem says why something of the above could not be read.
	Problem string `json:"problem,omitempty"`
}

// Unit is a systemd unit as systemd sees it, with the settings in effect.
type Unit struct {
	ID            string   `json:"id"`    // canonical name
	Names         []string `json:"names"` // with aliases
	LoadState     string   `json:"loadState"`
	LoadError     string   `json:"loadError,omitempty"`
	ActiveState   string   `json:"activeState"`
	SubState      string   `json:"subState"`
	Result        string   `json:"result,omitempty"`
	UnitFileState string   `json:"unitFileState"`
	FragmentPath  string   `json:"fragmentPath,omitempty"`
	UserFile      string   `json:"userFile,omitempty"` // of a unit that only user managers know
	DropIns       []string `json:"dropIns,omitempty"`  // paths, in the order in which they are applied
	Transient     bool     `json:"transient,omitempty"`
	NeedReload    bool     `json:"needReload,omitempty"`
	RefuseStop    bool     `json:"refuseStop,omitempty"`  // RefuseManualStop=
	RefuseStart   bool     `json:"refuseStart,omitempty"` // RefuseManualStart=

	// FilesState tells, with NeedReload, the state of its files and of the directories of
	// its drop-ins from any other. Missing are the files that systemd lists and that are
	// not there: it asks for a reload for as long as one is listed.
	FilesState string   `json:"-"`
	Missing    []string `json:"-"`
	// FilesChanged is when one of the files that it was read from last changed, but for
	// aaunit's drop-in and what a generator makes of another at each reload.
	FilesChanged time.Time `json:"-"`
	// ReloadedInVain: systemd asks for a reload, and has read its files again since they
	// were last changed. NeedReload is not set then.
	ReloadedInVain bool `json:"-"`

	InvocationID string `json:"invocationID,omitempty"` // 32 hexadecimal digits; "" never started
	Type         string `json:"type"`                   // simple, notify, oneshot, …
	MainPID      int    `json:"mainPID,omitempty"`
	ControlPID   int    `json:"controlPID,omitempty"`
	ControlGroup string `json:"controlGroup,omitempty"`
	NRestarts    uint32 `json:"nRestarts"`
	// FailedStays: systemd keeps it loaded when it has failed (CollectMode=inactive, which
	// is the default).
	FailedStays bool `json:"-"`
	// Sockets are the .socket units that start it (TriggeredBy=).
	Sockets []string `json:"sockets,omitempty"`
	// ExecMainStatus is the exit status of the main process when it ended.
	ExecMainCode   int `json:"execMainCode,omitempty"` // CLD_EXITED = 1, CLD_KILLED = 2, …
	ExecMainStatus int `json:"execMainStatus,omitempty"`
	// Runs are the last runs of the unit's commands, of the main one first.
	Runs []Run `json:"runs,omitempty"`
	// Left is when the unit was last inactive: what runs in it began after that.
	Left time.Time `json:"left,omitzero"`
	// Ceased is when the unit was last active no more.
	Ceased time.Time `json:"ceased,omitzero"`
	// HandoffTold: this systemd tells when it handed over to the main program (256
	// and later), and Handoff is that time; zero where it never came to that.
	HandoffTold bool      `json:"handoffTold,omitempty"`
	Handoff     time.Time `json:"handoff,omitzero"`
	// Condition and Assert say whether the Condition…= and Assert…= lines held when
	// they were last looked at.
	Condition Tri `json:"condition"`
	Assert    Tri `json:"assert"`

	Settings Settings `json:"settings"`

	// RestartsWith lists the active units that a restart of this one stops or
	// restarts too (Requires=, BindsTo=, PartOf= of others on it), without itself.
	RestartsWith []string `json:"restartsWith,omitempty"`
	// RestartsUnknown: there may be others that are not in RestartsWith.
	RestartsUnknown bool `json:"restartsUnknown,omitempty"`
}

// Settings are the effective settings that decide about confinement.
type Settings struct {
	Profile       string     `json:"profile"`       // AppArmorProfile= without its "-"
	IgnoreMissing bool       `json:"ignoreMissing"` // its "-"
	PrivateTmp    PrivateTmp `json:"privateTmp"`    // yes, disconnected or no
	// KnowsDisconnected: this systemd knows PrivateTmp=disconnected (257 and later).
	KnowsDisconnected bool `json:"knowsDisconnected,omitempty"`
	// AssertAppArmor: AssertSecurity=apparmor is in effect, neither negated nor
	// one of several alternatives.
	AssertAppArmor       bool          `json:"assertAppArmor"`
	Exec                 []ExecCommand `json:"exec,omitempty"`
	PermissionsStartOnly bool          `json:"permissionsStartOnly,omitempty"`
	DefaultDependencies  bool          `json:"defaultDependencies"`
	NoNewPrivileges      bool          `json:"noNewPrivileges,omitempty"`
	Delegate             bool          `json:"delegate,omitempty"`
	User                 string        `json:"user,omitempty"`
	PAMName              string        `json:"pamName,omitempty"`
	RootDirectory        string        `json:"rootDirectory,omitempty"` // RootDirectory= or RootImage=
	// RootDirectoryStartOnly: only ExecStart= gets that root directory.
	RootDirectoryStartOnly bool `json:"rootDirectoryStartOnly,omitempty"`
	// Mounts are those that a command with a "+" gets, too.
	Mounts []Mount  `json:"mounts,omitempty"`
	After  []string `json:"after,omitempty"`

	// The rest is what the policy is compared with.
	DynamicUser bool `json:"dynamicUser,omitempty"`
	// JoinsNamespaceOf are units whose /tmp it shares by a setting of its own. Those that
	// join it share it as well, and systemd does not name them here.
	JoinsNamespaceOf []string `json:"joinsNamespaceOf,omitempty"`
	// MountNamespace: a setting other than PrivateTmp= gives the unit a mount
	// namespace of its own.
	MountNamespace bool `json:"mountNamespace,omitempty"`
	// Directories are those that systemd makes for the unit.
	Directories []Directory `json:"directories,omitempty"`
	// AddressFamilies is RestrictAddressFamilies=; nil where it is not set.
	AddressFamilies *AddressFamilies `json:"addressFamilies,omitempty"`
	// Bounding and Ambient are CapabilityBoundingSet= and AmbientCapabilities=, a bit
	// for each capability.
	Bounding uint64 `json:"bounding,omitempty"`
	Ambient  uint64 `json:"ambient,omitempty"`
	// RefusesBPF: SystemCallFilter= keeps the unit from calling bpf(2).
	RefusesBPF bool `json:"refusesBPF,omitempty"`
	// ProtectControlGroups: /sys/fs/cgroup is read-only to the unit, or only its own part
	// of it is there.
	ProtectControlGroups bool `json:"protectControlGroups,omitempty"`
	// Architectures is SystemCallArchitectures=; empty where it is not set.
	Architectures []string `json:"architectures,omitempty"`
	// Assignments lists who set AppArmorProfile=, PrivateTmp=, AssertSecurity=,
	// PermissionsStartOnly= and ExecStartPre=, in the order in which systemd
	// applies them: the last one of a key wins.
	Assignments []Assignment `json:"assignments,omitempty"`
}

// Directory is one of StateDirectory= and the like.
type Directory struct {
	Property string `json:"property"`
	Path     string `json:"path"`
	ReadOnly bool   `json:"readOnly,omitempty"` // ConfigurationDirectory=
}

// Mount is one of TemporaryFileSystem=, BindPaths=, BindReadOnlyPaths= and MountImages=.
type Mount struct {
	Property string `json:"property"`
	Path     string `json:"path"` // where the unit sees it
	// Source is what of the host is seen there; "" nothing of it.
	Source   string `json:"source,omitempty"`
	ReadOnly bool   `json:"readOnly,omitempty"`
	Flat     bool   `json:"flat,omitempty"` // without what is mounted below Source
}

// AddressFamilies is RestrictAddressFamilies=: only these families, or all but
// them.
type AddressFamilies struct {
	AllowList bool     `json:"allowList"`
	Families  []string `json:"families"` // AF_INET, …
}

// Assignment is one line of a unit file or drop-in.
type Assignment struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Path  string `json:"path"`
	Line  int    `json:"line"`
}

// Winner gives the assignment of key that is in effect, or nil.
func (s Settings) Winner(key string) *Assignment {
	for i := len(s.Assignments) - 1; i >= 0; i-- {
		if s.Assignments[i].Key == key {
			return &s.Assignments[i]
		}
	}
	return nil
}

// ExecCommand is one line of ExecStart= and its like.
type ExecCommand struct {
	Property      string   `json:"property"` // ExecStart, ExecStartPre, …
	Path          string   `json:"path"`
	Argv          []string `json:"argv"`
	Privileged    bool     `json:"privileged,omitempty"`    // "+": no profile at all
	IgnoreFailure bool     `json:"ignoreFailure,omitempty"` // "-"
	PID           int      `json:"pid,omitempty"`           // of its last run; 0 none
}

// Clone copies the unit, so that what a caller changes is its own.
func (u Unit) Clone() Unit {
	u.Names, u.DropIns, u.RestartsWith = slices.Clone(u.Names), slices.Clone(u.DropIns), slices.Clone(u.RestartsWith)
	u.Runs, u.Sockets, u.Missing = slices.Clone(u.Runs), slices.Clone(u.Sockets), slices.Clone(u.Missing)
	u.Settings.Architectures = slices.Clone(u.Settings.Architectures)
	u.Settings.Exec, u.Settings.After = slices.Clone(u.Settings.Exec), slices.Clone(u.Settings.After)
	u.Settings.Assignments, u.Settings.Mounts = slices.Clone(u.Settings.Assignments), slices.Clone(u.Settings.Mounts)
	u.Settings.JoinsNamespaceOf, u.Settings.Directories = slices.Clone(u.Settings.JoinsNamespaceOf), slices.Clone(u.Settings.Directories)
	return u
}

// Active reports whether the unit has, or is about to have, running tasks.
func (u Unit) Active() bool {
	switch u.ActiveState {
	case "active", "reloading", "activating", "deactivating", "refreshing":
		return true
	}
	return false
}

// forConnection reports whether a socket with Accept=yes has started the unit, for one
// connection: an instance that is named after the socket, and by a number and who is
// connected (instance_from_socket in systemd's socket.c).
func (u Unit) forConnection() bool {
	prefix, instance, ok := strings.Cut(strings.TrimSuffix(u.ID, ".service"), "@")
	number, _, more := strings.Cut(instance, "-")
	if !ok || !more || number == "" || strings.Trim(number, "0123456789") != "" {
		return false
	}
	return slices.ContainsFunc(u.Sockets, func(socket string) bool {
		name, _, _ := strings.Cut(strings.TrimSuffix(socket, ".socket"), "@")
		return name == prefix
	})
}

// Found reports whether systemd knows a unit file of that name.
func (u Unit) Found() bool { return u.LoadState != "not-found" && u.LoadState != "" }

// Profile is one profile as its text declares it.
type Profile struct {
	Name string `json:"name"` // internal name
	File string `json:"file"` // path below /etc/apparmor.d, or any other
	Line int    `json:"line"`
	// Attachment is the path (a pattern of AppArmor's) it attaches to by
	// itself, "" none.
	Attachment string   `json:"attachment,omitempty"`
	Flags      []string `json:"flags,omitempty"`
	// Leaves lists the rules that let a child leave the profile.
	Leaves []Leave `json:"leaves,omitempty"`
	// DisabledBy and ComplainBy are the links in disable/ and force-complain/
	// that stand for its file, "" none.
	DisabledBy string `json:"disabledBy,omitempty"`
	ComplainBy string `json:"complainBy,omitempty"`
}

// HasFlag reports whether the profile's text carries the flag.
func (p Profile) HasFlag(f string) bool { return slices.Contains(p.Flags, f) }

// Leave is a rule that lets a program leave the profile, such as "/bin/sh Ux,".
type Leave struct {
	Rule string `json:"rule"`
	Line int    `json:"line,omitempty"` // in the text with its includes flattened; 0 unknown
}

// Compiled is a profile file as compiled, not loaded.
type Compiled struct {
	// ID stands for File, Source and Complain: what may be kept once for all
	// units that run under it.
	ID       string    `json:"id"`
	File     string    `json:"file"`
	Source   string    `json:"source"`             // SHA-256 of the file and all it includes
	Profiles []Profile `json:"profiles"`           // children and hats too
	Complain bool      `json:"complain,omitempty"` // compiled with every profile in complain mode
	// Checksums are the kernel's own, per profile ("name", "name//child"), as
	// read from the staging namespace; nil where it has none to give.
	Checksums map[string]string `json:"checksums,omitempty"`
	// NotStaged says why Checksums is nil.
	NotStaged string `json:"notStaged,omitempty"`
	// Asked is how many questions about the staged policy the kernel answered just
	// as the compiled policy says; Disagrees is the first one that it answered
	// otherwise, and then Checksums is nil: such a policy is not what was checked.
	// NotAsked says why the kernel was not asked, or not about all; what the
	// compiled policy says stands then by itself.
	Asked     int    `json:"asked,omitempty"`
	NotAsked  string `json:"notAsked,omitempty"`
	Disagrees string `json:"disagrees,omitempty"`
	// Environment is a digest of what else decides about the bytes: the parser, its
	// configuration and the kernel's features. Parser and Kernel are the versions.
	Environment string    `json:"environment"`
	Parser      string    `json:"parser,omitempty"`
	Kernel      string    `json:"kernel,omitempty"`
	At          time.Time `json:"at"`

	// Blob is the policy as the kernel takes it. Sources are the texts that it was
	// made from, by path; a path that ends with a slash is a directory that was
	// included. Both are nil where the policy is kept on disk.
	Blob    []byte            `json:"-"`
	Sources map[string][]byte `json:"-"`
}

// Part is the part of a policy that has these profiles, with their children and hats. It can
// be loaded by itself.
func (c Compiled) Part(has func(profile string) bool) Compiled {
	c.Checksums = maps.Clone(c.Checksums)
	maps.DeleteFunc(c.Checksums, func(name, _ string) bool { return !has(TopOf(name)) })
	return c
}

// Defines reports whether it has a profile.
func (c Compiled) Defines(profile string) bool {
	_, has := c.Checksums[profile]
	return has
}

// TopOf is the profile that a child or hat is one of; of any other profile it is its own name.
func TopOf(profile string) string {
	top, _, _ := strings.Cut(profile, "//")
	return top
}

// LiveProfile is a profile as the kernel has it.
type LiveProfile struct {
	Name     string `json:"name"`
	Mode     Mode   `json:"mode"`
	Checksum string `json:"checksum,omitempty"` // "sha256:…" or "sha1:…"; "" the kernel does not tell
}

// Policy is what was found about the profiles of one unit: the one it shall
// run under and those that AllowProfiles= adds.
type Policy struct {
	// Candidates are the profiles of each name in the index; more than one is
	// a duplicate name, none is a name that no file defines.
	Candidates map[string][]Profile `json:"candidates,omitempty"`
	// Compiled holds the files that define them, each once.
	Compiled []Compiled `json:"compiled,omitempty"`
	// Texts are the files as they are now. Compiled holds another version of one
	// where a unit that shares it is not to leave the accepted one, which Standing
	// tells.
	Texts    []Compiled `json:"texts,omitempty"`
	Standing []Reason   `json:"standing,omitempty"`
	// Superseded names, by profile, another unit whose policy of the profile counts, where
	// it is another one than was accepted for this unit. LeftTo does so of profiles under
	// which no task of this unit can come to run: it has no say in them.
	Superseded map[string]string `json:"superseded,omitempty"`
	LeftTo     map[string]string `json:"leftTo,omitempty"`
	// Barred are the texts that may not go live for this unit, though they compile: by
	// file, the ID of the policy that each gives.
	Barred map[string]string `json:"barred,omitempty"`
	// Problems says which file does not compile or may not be used, and why.
	Problems []Reason `json:"problems,omitempty"`
	// Findings are what the compiled policy says and somebody should know, though it
	// may go live.
	Findings []Reason `json:"findings,omitempty"`
	// Asides are findings that only who asks is told.
	Asides []Finding `json:"asides,omitempty"`
	// Live holds the profiles, their children and hats, as loaded now; a name
	// that is missing is not loaded.
	Live map[string]LiveProfile `json:"live,omitempty"`
	// LiveError says why Live could not be read.
	LiveError string `json:"liveError,omitempty"`
	// EnforcedBy names another unit that is attached, in enforce mode, to a
	// profile of the same files; looked for where this one wants complain mode.
	EnforcedBy string `json:"enforcedBy,omitempty"`
}

// Scan is one look at all tasks of a unit.
type Scan struct {
	// Before and After are the InvocationID around the look.
	Before string `json:"before"`
	After  string `json:"after"`
	// Stable: the tasks were the same in two looks in a row, or those that were
	// new had nothing new to say.
	Stable bool   `json:"stable"`
	Tasks  []Task `json:"tasks"`
	// Tmp holds, for each process but systemd's own, where /tmp and /var/tmp
	// really are.
	Tmp map[int]TmpView `json:"tmp,omitempty"`
	// HostTmp is PID 1's.
	HostTmp TmpView `json:"hostTmp"`
	// Problem says why the scan as a whole could not be made.
	Problem string    `json:"problem,omitempty"`
	At      time.Time `json:"at"`
}

// Task is one thread.
type Task struct {
	PID   int    `json:"pid"`
	TID   int    `json:"tid"`
	Comm  string `json:"comm"`
	Exe   string `json:"exe,omitempty"`
	Label Label  `json:"label"`
	// Problem says why the label could not be read; a task that was gone
	// before it could be read is not in the list at all.
	Problem string `json:"problem,omitempty"`
	// Manager: it is a process of systemd's own, never the service's program:
	// the (sd-pam) that PAMName= leaves behind, or one in transit.
	Manager bool `json:"manager,omitempty"`
	// InTransit: it is on its way to a program, between systemd's fork and its
	// exec, and will be something else in a moment; or it was started by such a
	// process, as PAM modules do, and will be gone.
	InTransit bool `json:"inTransit,omitempty"`
}

// TmpView says which directories a process sees as /tmp and /var/tmp, as
// device and path on that device. An empty string is "could not tell".
type TmpView struct {
	Tmp     string `json:"tmp"`
	VarTmp  string `json:"varTmp"`
	Problem string `json:"problem,omitempty"`
	// Ended: the process ended after its label was read, and there was nothing
	// left to look at.
	Ended bool `json:"ended,omitempty"`
}

// MainProcess is what the kernel says of a unit's main process, which may have been started
// under other settings than the unit has by now; or of all its processes, where it has no
// main process.
type MainProcess struct {
	// Root: it is root, or has a capability by which it can come to be.
	Root Tri
	// Filtered: it has a seccomp filter, of whatever system calls.
	Filtered Tri
	// GroupsClosed: it sees /sys/fs/cgroup read-only, or only a part of it.
	GroupsClosed Tri
}

// MainProcessOf reads what proc_pid_status(5) says of it.
func MainProcessOf(status string) (p MainProcess) {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		switch {
		case len(words) == 0:
		case key == "Uid":
			if slices.Contains(words, "0") {
				p.Root = Yes
			} else if p.Root == CouldNotTell {
				p.Root = No
			}
		case key == "CapPrm":
			if caps, err := strconv.ParseUint(words[0], 16, 64); err != nil || caps&opensPins != 0 {
				p.Root = Yes
			}
		case key == "Seccomp":
			p.Filtered = TriOf(words[0] == "2")
		}
	}
	return p
}

// And is what holds of both: one that is root is enough, and so is one without a limit.
func (p MainProcess) And(q MainProcess) MainProcess {
	worse := func(a, b, worst Tri) Tri {
		switch {
		case a == worst, b == worst:
			return worst
		case a != b:
			return CouldNotTell
		}
		return a
	}
	return MainProcess{
		Root:         worse(p.Root, q.Root, Yes),
		Filtered:     worse(p.Filtered, q.Filtered, No),
		GroupsClosed: worse(p.GroupsClosed, q.GroupsClosed, No),
	}
}

// Observed is everything Diff and Judge look at.
type Observed struct {
	Host   Host
	Unit   Unit
	Policy Policy
	Scan   *Scan // nil: not looked at
	// Main is the unit's main process, or all it has where there is none, where its socket
	// options are held to a list.
	Main   MainProcess
	DropIn DropInState
	// FormerDropIn is that of a template or prefix where it was put before its attachment
	// moved between /etc and /run.
	FormerDropIn DropInState
	At           time.Time // when the look began
	// Offline: it is of an image, where there is neither a kernel nor a systemd to
	// ask. What is known is what files say.
	Offline bool
	// JustStarted: systemd said that the unit started, and this look followed.
	JustStarted bool
	// SocketUnits are the .socket units that start the service, and Sockets what is
	// attached to the control groups of those that run and of its own. Both are looked
	// at where the attachment wants socket options held or recorded.
	SocketUnits []StartingSocket
	Sockets     []SocketsSeen
	// SocketsProblem says why the .socket units could not be looked at.
	SocketsProblem string
	// Rules are what an image has for the start helper.
	Rules ImageRules
	// DropInsProblem says why the drop-ins that reach every unit of a template or prefix,
	// which are Unit's then, could not be read.
	DropInsProblem string
	// Early are the units that start too early for the drop-in of a template or prefix
	// and that it would reach all the same: systemd asks for no attachment. They are
	// looked for before it is written for the first time; EarlyProblem says why they
	// could not be.
	Early        []EarlyUnit
	EarlyProblem string
	// Unheld says which unit that drop-in would reach in which the start helper of the
	// socket options cannot work; nil none. It is looked for before a drop-in has the line
	// of one that has to.
	Unheld *Reason
	// MayBPF: a profile of the unit lets a task change the kernel's BPF tables, given
	// that the task has the capability. CouldNotTell counts as yes.
	MayBPF Tri
	// MayUnpin: a profile of the unit lets a task write what is pinned for socket options.
	// MayMoveOut: one lets it write itself into other control groups. Both are looked at
	// where the unit acts as root and is held to a list; CouldNotTell counts as yes.
	MayUnpin, MayMoveOut Tri
}

// EarlyUnit is a unit that starts too early in boot to be attached, and its file.
type EarlyUnit struct{ Unit, File string }

// EarlyOf finds those of units that start too early in boot to be attached.
func EarlyOf(units []Unit) (out []EarlyUnit) {
	for _, u := range units {
		if why := UnfitUnit(u, u.ID); why != nil && why.Code == UnitEarly {
			out = append(out, EarlyUnit{u.ID, u.FragmentPath})
		}
	}
	return out
}

// DropInState is what lies at the place where aaunit's drop-in belongs.
type DropInState struct {
	Exists bool
	// Ours: the state record says that aaunit wrote a file there.
	Ours    bool
	Content string
	Problem string // why it could not be read
}

// processes counts the processes among tasks.
func (s Scan) processes() int {
	seen := map[int]bool{}
	for _, t := range s.Tasks {
		seen[t.PID] = true
	}
	return len(seen)
}

// commBase is the name of the program a command line runs, for comparing with
// well-known tools.
func (c ExecCommand) commBase() string {
	return c.Path[strings.LastIndexByte(c.Path, '/')+1:]
}
