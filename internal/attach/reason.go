package attach

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Code names a reason. The set is closed: messages, metrics, reports and
// "aaunitctl explain" speak through it.
type Code string

// Reason is one "because" of a plan or a verdict.
type Reason struct {
	Code Code `json:"code"`
	// Detail is one sentence about this case: which task, which file.
	Detail string `json:"detail"`
	// Where is the file and line, where there is one.
	Where string `json:"where,omitempty"`
	// Next is the next step to take, "" where the explanation says it.
	Next string `json:"next,omitempty"`
	// Excerpt is the line of the file that Where names, where it is worth
	// showing.
	Excerpt Excerpt `json:"excerpt,omitzero"`
	// Unit is another unit whose reason it is: it would run under the policy too.
	Unit string `json:"unit,omitempty"`
}

// Excerpt is one line of a file, and the place in it that is meant. A Reason
// can be compared, so this is a value too.
type Excerpt struct {
	Line int `json:"line"`
	// Column counts the characters of Text, from 1; one behind the last is the
	// end of the line. 0: the line as a whole.
	Column int `json:"column,omitempty"`
	// Text is the line, fit for a terminal. A long one is cut around the place.
	Text string `json:"text"`
}

func (r Reason) String() string {
	s := r.Detail
	if s == "" {
		s = r.Code.Title()
	}
	if r.Where != "" {
		s += " (" + r.Where + ")"
	}
	return s
}

// Title is the reason's name for people.
func (c Code) Title() string { return c.entry().Title }

// Explanation is for someone who meets the reason for the first time.
func (c Code) Explanation() string { return c.entry().Explanation }

// Advice reports whether a reason tells of something that stays as it is until a person
// changes it: nothing of it is left to be done.
func (c Code) Advice() bool {
	switch c {
	case SocketsStale, SocketsGain, SocketsForeignCalls, ReloadInVain,
		// What of a policy is only told, and keeps none from going live.
		MayNotRun, MayNotNotify, MayNotTransition, MayNotUseOwn, MayNoNetwork, MayOtherFamilies, MayNotDetached, MayNotOwn, MayUserns, MayConnect, MayLeaveGroup:
		return true
	}
	return false
}

// Bearing says what the reason, when it is part of a verdict, makes of it.
func (c Code) Bearing() Answer { return c.entry().Bearing }

func (c Code) entry() Entry {
	if e, ok := catalogue[c]; ok {
		return e
	}
	// A code from a newer daemon: never better than "could not tell".
	return Entry{Code: c, Title: string(c), Explanation: "This reason is not known to this version.", Bearing: Unknown}
}

// Entry is what is known about a Code.
type Entry struct {
	Code        Code   `json:"code"`
	Title       string `json:"title"`
	Explanation string `json:"explanation"`
	Bearing     Answer `json:"bearing"`
}

// Catalogue lists every code, in the order of this file.
func Catalogue() []Entry {
	out := make([]Entry, len(entries))
	copy(out, entries)
	return out
}

// AppArmor on this host.
const (
	AppArmorOff        Code = "apparmor-off"
	AppArmorUnknown    Code = "apparmor-unknown"
	GlobalComplain     Code = "global-complain"
	BootServiceMissing Code = "boot-service-disabled"
)

// The unit.
const (
	UnitNotFound     Code = "unit-not-found"
	UnitMasked       Code = "unit-masked"
	UnitBad          Code = "unit-bad"
	UnitTransient    Code = "unit-transient"
	UnitNoService    Code = "unit-not-a-service"
	UnitTemplate     Code = "unit-template"
	UnitAlias        Code = "unit-alias"
	UnitOfUser       Code = "unit-of-user-manager"
	UnitEarly        Code = "unit-too-early"
	UnitProtected    Code = "unit-protected"
	UnitFailedBefore Code = "unit-failed-before"
)

// The profile.
const (
	ProfileNotFound    Code = "profile-not-found"
	ProfileAmbiguous   Code = "profile-ambiguous"
	ProfileCorrected   Code = "profile-name-corrected"
	ProfileNameBad     Code = "profile-name-bad"
	ProfileBroken      Code = "profile-does-not-compile"
	ProfileNotCompiled Code = "profile-not-compiled"
	ProfileUnreadable  Code = "profile-unreadable"
	ProfileByUnit      Code = "profile-depends-on-unit"
	ProfilePartly      Code = "profile-checked-in-part"
	ProfileUntrusted   Code = "profile-file-untrusted"
	ProfileDuplicate   Code = "profile-duplicate-name"
	ProfileDisabled    Code = "profile-disabled"
	ProfileComplain    Code = "profile-complain"
	ProfileDisputed    Code = "profile-mode-disputed"
	ProfileUnconfined  Code = "profile-unconfined"
	ProfileDefaultOpen Code = "profile-default-allow"
	ProfileNotAtBoot   Code = "profile-not-at-boot"
	ProfileNotLoaded   Code = "profile-not-loaded"
	ProfileNotStaged   Code = "profile-not-staged"
	PolicyDisputed     Code = "policy-read-differently"
	PolicyChanged      Code = "policy-changed"
	PolicyDiffers      Code = "policy-differs"
	PolicyNotKept      Code = "policy-not-kept"
	Denied             Code = "denied"
	PolicyTrampled     Code = "policy-changed-by-others"
	PolicyUndone       Code = "policy-undone"
	PolicyUnreadable   Code = "policy-unreadable"
	PolicyNotAccepted  Code = "policy-not-accepted"
	ChildLeaves        Code = "child-leaves"
)

// What the compiled policy allows. Each one is a built-in assertion; Waive= in an
// attachment takes it back.
const (
	MayWriteTmp      Code = "policy-may-write-shared-tmp"
	MayWriteSelf     Code = "policy-may-write-own-executable"
	MayWritePolicy   Code = "policy-may-write-policy"
	MayWriteKeys     Code = "policy-may-write-ssh-keys"
	MayWriteSysctl   Code = "policy-may-write-proc-sys"
	MayLeave         Code = "policy-may-leave-profile"
	MayChange        Code = "policy-may-change-profile"
	MayEverything    Code = "policy-may-everything"
	MayAskOthers     Code = "policy-may-ask-others"
	MayTrace         Code = "policy-may-trace-unconfined"
	MayNotRun        Code = "policy-may-not-run-program"
	MayNotNotify     Code = "policy-may-not-notify"
	MayNotTransition Code = "policy-may-not-change-profile"
	MayNotUseOwn     Code = "policy-may-not-use-own-directories"
	MayNoNetwork     Code = "policy-may-not-use-network"
	MayOtherFamilies Code = "policy-may-use-other-families"
	MayNotDetached   Code = "policy-may-not-reach-detached-paths"
	MayNotOwn        Code = "policy-may-not-use-files-of-others"
	MayUserns        Code = "policy-may-make-user-namespaces"
	MayConnect       Code = "policy-may-connect-anywhere"
	MayLeaveGroup    Code = "policy-may-leave-control-group"
)

// Assertions of an attachment.
const (
	AssertionFailed  Code = "assertion-failed"
	AssertionUnknown Code = "assertion-unknown"
	AssertionWaived  Code = "assertion-waived"
)

// Ways around the profile in the unit's settings.
const (
	IgnorePrefix         Code = "directive-ignores-missing"
	ExecPrivileged       Code = "exec-privileged"
	PermissionsStartOnly Code = "permissions-start-only"
	AAExec               Code = "aa-exec"
	DirectiveOverridden  Code = "directive-overridden"
	AssertionOverridden  Code = "assertion-overridden"
	PrivateTmpOverridden Code = "private-tmp-overridden"
)

// Socket options, beside the profile.
const (
	SocketsNotHeld      Code = "socket-options-not-held"
	SocketsUnknown      Code = "socket-options-unknown"
	SocketsOpen         Code = "socket-options-open"
	SocketsGain         Code = "socket-options-gain"
	SocketsOverridden   Code = "socket-options-overridden"
	SocketsForeignCalls Code = "socket-options-unseen"
	SocketsNote         Code = "socket-options-note"
	SocketsChanged      Code = "socket-options-changed"
	SocketsReleased     Code = "socket-options-released"
	SocketsDisputed     Code = "socket-options-disputed"
	SocketsHidden       Code = "socket-options-helper-hidden"
)

// Our drop-in and the steps of a plan.
const (
	DropInMissing    Code = "drop-in-missing"
	DropInDiffers    Code = "drop-in-differs"
	DropInForeign    Code = "drop-in-foreign"
	DropInUnreadable Code = "drop-in-unreadable"
	DropInStale      Code = "drop-in-stale"
	ReloadNeeded     Code = "reload-needed"
	ReloadInVain     Code = "reload-in-vain"
	RestartNeeded    Code = "restart-needed"
	RestartPending   Code = "restart-pending"
	RestartDrags     Code = "restart-drags-along"
	Detached         Code = "detached"
	AttachFailed     Code = "attach-failed"
	Held             Code = "held"
	Paused           Code = "paused"
	PolicyKept       Code = "policy-kept"
	RivalAttachments Code = "rival-attachments"
	DeclaredInFile   Code = "declared-in-file"
	NotAttached      Code = "not-attached"
	UnloadSkipped    Code = "profile-stays-loaded"
	AttachmentBad    Code = "attachment-bad"
	RecordBad        Code = "record-bad"
)

// What a look at the tasks found.
const (
	TaskUnconfined   Code = "task-unconfined"
	TaskOther        Code = "task-other-profile"
	TaskComplain     Code = "task-complain"
	TaskStacked      Code = "task-stacked"
	TaskUnreadable   Code = "task-unreadable"
	TmpShared        Code = "tmp-shared"
	TmpUnreadable    Code = "tmp-unreadable"
	NotRunning       Code = "not-running"
	EndedBeforeSeen  Code = "ended-before-seen"
	RestartedMeanwhl Code = "restarted-meanwhile"
	TasksUnstable    Code = "tasks-unstable"
	ScanFailed       Code = "scan-failed"
	SystemdUnheard   Code = "systemd-unheard"
)

// What became of the last start.
const (
	StartFailed    Code = "start-failed"
	StartNoProfile Code = "start-without-profile"
	StartUnclear   Code = "start-status-231"
	StartSkipped   Code = "start-skipped"
)

// What became of socket options.
const (
	SocketRefused Code = "socket-option-refused"
	SocketsStale  Code = "socket-list-stale"
)

var entries = []Entry{
	{AppArmorOff, "AppArmor is off",
		"The kernel runs without AppArmor, so no profile confines anything, and systemd skips AppArmorProfile= without a word. Start the kernel with apparmor=1 security=apparmor (or lsm=…,apparmor) and reboot.", NotConfined},
	{AppArmorUnknown, "AppArmor's state could not be read",
		"Whether AppArmor is on, or in which global mode, could not be read from the kernel. Nothing can be said about confinement until it can.", Unknown},
	{GlobalComplain, "AppArmor's global mode is complain",
		"/sys/module/apparmor/parameters/mode reads complain: the kernel permits everything and only logs, while every label still reads (enforce). Write enforce there, or take apparmor.mode=complain off the kernel command line.", NotConfined},
	{BootServiceMissing, "apparmor.service will not run at boot",
		"What lies in /etc/apparmor.d is loaded at boot by apparmor.service, which is not enabled here. aaunit-policy.service loads the policies that were accepted all the same. In an image (--root) none was accepted yet, and the unit does not start at the first boot; where aaunit is removed, the unit's drop-in goes as well. Run: systemctl enable apparmor.service", Confined},

	{UnitNotFound, "No such unit", "systemd knows no unit file of that name. systemctl list-unit-files shows the ones that exist.", Unknown},
	{UnitMasked, "The unit is masked", "A masked unit cannot start, and a drop-in does not change that. Run systemctl unmask first.", Unknown},
	{UnitBad, "systemd cannot load the unit", "The unit file has an error, so systemd refuses to start it. systemd-analyze verify shows the line.", Unknown},
	{UnitTransient, "The unit is transient", "A unit made by systemd-run has no file and is gone when it ends; give it -p AppArmorProfile=NAME when it is made, or write a unit file.", Unknown},
	{UnitNoService, "Not a service", "AppArmorProfile= takes effect in services. A timer, path or socket starts a service: attach to that one.", Unknown},
	{UnitTemplate, "A template", "A template never runs by itself. Name an instance (agent@a.service), or attach to all of them with an attachment file that says Unit=agent@.service.", Unknown},
	{UnitAlias, "An alias", "The name is an alias of another unit; the drop-in belongs to the unit's own name.", Confined},
	{UnitOfUser, "A unit of a user manager", "AppArmorProfile= does not work for units of systemd --user: the user manager may not change the profile. Make it a system service with User=.", NotConfined},
	{UnitEarly, "The unit starts too early in boot", "With DefaultDependencies=no the unit may start before AppArmor's profiles are loaded and /tmp is set up; ordering it after them makes a cycle. The drop-in of a template or prefix would order such a unit too, and is not written while it would reach one.", Unknown},
	{UnitProtected, "A restart would take the system or the session with it", "Restarting this unit, or what hangs on it, breaks running sessions. The attachment takes effect at the next start, usually the next boot.", Confined},
	{UnitFailedBefore, "The unit had failed before", "The unit is in state failed, so nothing was restarted; whether it works under the profile shows at its next start.", Confined},

	{ProfileNotFound, "No such profile", "No file under /etc/apparmor.d defines a profile of that name. apparmor_parser -N FILE prints the names in a file.", Unknown},
	{ProfileAmbiguous, "More than one profile could be meant", "The name fits several profiles. Say which one with --profile NAME.", Unknown},
	{ProfileCorrected, "A name was corrected", "AppArmorProfile= wants the profile's internal name, the word after \"profile\" in its text, not the name of the file that holds it.", Confined},
	{ProfileNameBad, "The profile's name cannot be used", "systemd would read the name as something else. Rename the profile: profile NAME /path { … }", Unknown},
	{ProfileBroken, "The profile does not compile", "apparmor_parser refuses the text, so it cannot be loaded. What is loaded now stays as it is.", Unknown},
	{ProfileNotCompiled, "The profile could not be compiled", "apparmor_parser could not be run, or came to no end of its own, so whether the text compiles is not known. What is loaded now stays as it is. It is tried again when the text or the parser changes, and now and then.", Unknown},
	{ProfileUnreadable, "The profile's file could not be read", "There is no such file, or whoever looks may not read it, so nothing can be said of the profile in it. ls -l FILE shows which.", Unknown},
	{ProfileByUnit, "Which profile it is depends on the unit", "The attachment is for units to come, and names their profile with a specifier, such as %i. Which profile that is shows with a unit: none was compiled, and nothing was asked of one. Name one of the units, or its profile: aaunitctl check UNIT", Unknown},
	{ProfilePartly, "Only a part of the profile was checked", "A rule that does not compile hides whatever else is wrong with a profile. For the check alone, what the parser refuses was left out and the rest was compiled, where that was possible. Nothing of it is loaded. Correct the lines that are named, and check again.", Unknown},
	{ProfileUntrusted, "Others than root can write the profile", "A profile that somebody else can change confines nobody. The file, the files it includes and their directories must belong to root and be writable by root alone.", Unknown},
	{ProfileDuplicate, "Two files define the profile", "The file that is loaded last wins, which is an accident of the boot. Rename or remove one of them.", Unknown},
	{ProfileDisabled, "The profile is disabled", "A link in /etc/apparmor.d/disable makes apparmor.service skip the file, so after a reboot the profile is missing. Run: aa-enforce FILE (package apparmor-utils), or remove the link.", Unknown},
	{ProfileComplain, "The profile is in complain mode", "In complain mode AppArmor logs what the profile does not allow, and allows it. Run: aa-enforce FILE (package apparmor-utils), or attach with --complain if that is what you want.", NotConfined},
	{ProfileDisputed, "Another unit wants the profile enforced", "All tasks that carry a profile are in one mode with it. Another attachment asks for enforce mode, which wins. Take Mode=complain out of this attachment, or give the unit a profile of its own.", Unknown},
	{ProfileUnconfined, "The profile does not confine", "flags=(unconfined) gives tasks a name but takes nothing from them.", NotConfined},
	{ProfileDefaultOpen, "The profile allows everything by default", "flags=(default_allow) allows what no rule mentions: an allow-list turned into a deny-list.", NotConfined},
	{ProfileNotAtBoot, "apparmor.service does not load the profile at boot", "It loads what lies directly in /etc/apparmor.d. A profile elsewhere is loaded at boot by aaunit-policy.service alone, as its policy was accepted. In an image (--root) none was accepted yet, and the unit does not start at the first boot; where aaunit is removed, the unit's drop-in goes as well. Move or copy it to /etc/apparmor.d.", Confined},
	{ProfileNotLoaded, "The profile is not loaded", "The kernel has no profile of that name.", NotConfined},
	{ProfileNotStaged, "The kernel could not check the policy beforehand", "The compiled policy could not be loaded into a policy namespace to read its checksum, so what runs cannot be compared with what was checked.", Unknown},
	{PolicyDisputed, "The kernel reads the policy otherwise than it was checked", "The compiled policy was loaded into a policy namespace, where no task runs, and the kernel was asked what it allows. To one question at least its answer was another than what the compiled policy says, so what was checked is not what would run, and the policy is not loaded. The parser or the kernel has a bug, or the two do not fit together: bring both up to date, and report it with the profile and the versions of both.", Unknown},
	{PolicyChanged, "The profile's text changed and is not loaded", "What the file says now and what the kernel runs differ.", Confined},
	{PolicyDiffers, "The kernel runs another policy than the accepted one", "The kernel's checksum of the loaded profile is not the one that was checked and accepted: somebody loaded another text under the same name.", NotConfined},
	{PolicyTrampled, "Somebody else changed the loaded policy", "A package, systemctl reload apparmor, aa-complain, aa-disable, aa-teardown or a person replaced or removed the policy that was accepted for the unit. aaunitd puts the accepted policy back. Removing a profile takes it off the tasks that run, which a new start puts right. Who changes it on purpose says so before, with aaunitctl pause.", NotConfined},
	{PolicyUndone, "A changed policy was undone", "The profile's text changed and was loaded, and within SettleSec= the unit failed, was started again by systemd or was denied something that the policy which was accepted before had not denied. The policy that was accepted before is live again, and the changed text is held until it, the unit or the attachment changes, or someone asks (aaunitctl attach UNIT).", Confined},
	{PolicyNotKept, "The accepted policy could not be kept", "Before a policy goes live it is written to /var/lib/aaunit/policy, so that it can be put back and is there at boot. That could not be written or read; look for a full or read-only disk.", Unknown},
	{Denied, "AppArmor denied something", "A rule that is missing, or one that denies, kept a task of the unit from something. If the unit needs it, allow it in the profile: aaunitctl denials UNIT shows the rule. Where it says that which process it was is not known, it may have been one under the same profile that is none of the unit's.", Confined},
	{PolicyUnreadable, "The loaded policy could not be read", "The kernel's list of loaded profiles, or a profile's checksum, could not be read.", Unknown},
	{PolicyNotAccepted, "No policy was accepted yet", "No compiled policy of this profile has passed the checks, so there is nothing to compare the loaded one with.", Unknown},
	{ChildLeaves, "The profile lets children leave it", "A rule with Ux, PUx, CUx, or one whose target is unconfined (Px, change_profile), starts programs without the profile. Use ix (inherit), Cx (child) or Px (another profile) instead.", Confined},

	{MayWriteTmp, "The policy may write where everybody may", "/tmp, /var/tmp and /dev/shm belong to all users of the machine, who can leave files, links and sockets there for the service to fall over, and read what it leaves. Give the unit PrivateTmp=yes (aaunit's default), take the rule out, or allow a directory of its own.", Confined},
	{MayWriteSelf, "The policy may write the unit's own executable", "Whoever takes the service over can change the program, and has it started again, by systemd, at the next start. Take the write permission off the path.", Confined},
	{MayWritePolicy, "The policy may write what confines it", "A rule allows to write under /etc/apparmor.d or /var/cache/apparmor, in systemd's unit directories, or in aaunit's own files, those in /sys/fs/bpf/aaunit where the unit runs as root; or, with the capability mac_admin, to the files in /sys/kernel/security/apparmor by which policy is loaded. What is written there is loaded or started as root. Take the rule out.", Confined},
	{MayWriteKeys, "The policy may write other users' ssh keys", "A key written into somebody's ~/.ssh/authorized_keys is a login. Take the rule out, or put owner before it.", Confined},
	{MayWriteSysctl, "The policy may write kernel settings", "Files below /proc/sys change the kernel for the whole machine; kernel.core_pattern alone runs a program as root. Allow the single file that is needed.", Confined},
	{MayLeave, "The policy lets programs run without a profile", "A rule with ux, Ux, PUx or CUx, or a change to \"unconfined\", leads out of the profile for good. Use ix (stay inside), Cx (a child profile) or Px (another profile).", Confined},
	{MayChange, "The policy leads to another profile", "A rule with Px, or change_profile, takes programs to a profile that is neither the unit's nor a child of it, and that AllowProfiles= does not name. While a task carries it the unit is not confined, and its rules are asked about only where they are in the same file. Name the profile in AllowProfiles= if that is meant: then it belongs to the unit's policy. Else use ix (stay inside) or Cx (a child profile).", Confined},
	{MayEverything, "The policy allows all of a kind", "A bare \"file,\", \"capability,\", \"network,\" or \"all,\", or flags=(default_allow), allows everything of that kind, and a profile that allows everything confines nothing. Name what the service needs. A waiver of this waives no other built-in assertion.", Confined},
	{MayAskOthers, "The policy lets others work for it", "systemd and container engines run as root what they are asked to, over their sockets or D-Bus, and cron and at run what lies in their directories. None of that is confined by this profile. Take the rule out.", Confined},
	{MayTrace, "The policy lets unconfined processes be traced", "Whoever traces a process with ptrace(2) runs in it what it likes, with all that the process may. A rule with ptrace reaches processes that no profile confines, and the capability sys_ptrace those of every user. A unit that runs as root is refused for it, of others it is told. Name a peer that is confined (ptrace trace peer=@{profile_name},), allow to read alone (ptrace read,), or take the capability out.", Confined},
	{MayNotRun, "The policy does not let the unit's program run", "A command line of the unit names a script that the profile does not let be read: its interpreter opens it under the profile, and fails when systemd comes to it, which may be weeks later (ExecReload=, ExecStop=). Where the script names env(1), the profile has to let the program be executed that env starts. A compiled program needs no rule, since the kernel opens it before the profile is on; it is a note where what the file is could not be told.", Confined},
	{MayNotNotify, "The policy forbids the readiness message", "The unit is of Type=notify, and the profile does not let it write to /run/systemd/notify. Where AppArmor looks at the path of a unix socket to which something is sent, systemd waits for the message until the start times out; elsewhere, as on Debian 12 and 13, the message arrives all the same (see policy-may-connect-anywhere). Add \"/run/systemd/notify w,\".", Confined},
	{MayNotTransition, "A change of profile cannot happen", "The unit runs with NoNewPrivileges=, which keeps the kernel from changing to a profile that allows something more; the profile has rules with Px or Cx. The program that is to be run under the other profile fails with EPERM.", Confined},
	{MayNotUseOwn, "The policy forbids the unit's own directories", "systemd makes the directories of StateDirectory=, CacheDirectory=, LogsDirectory= and RuntimeDirectory= for the unit, and the profile does not let it write there.", Confined},
	{MayNoNetwork, "The policy allows no network", "The profile has no rule for network inet or inet6, so the program gets no such socket, not even for DNS. Some need none; one that does fails with EACCES, often in words of its own.", Confined},
	{MayOtherFamilies, "Profile and unit disagree about address families", "RestrictAddressFamilies= of the unit forbids a family that the profile allows, or the other way round. Only what both allow works.", Confined},
	{MayNotDetached, "Paths may lie outside the unit's namespace", "The unit has a mount namespace of its own, and the profile has no flag attach_disconnected: what is reached through a descriptor from outside, such as a socket or a log, has no path there, and access is denied. Add flags=(attach_disconnected) to the profile if such denials show.", Confined},
	{MayNotOwn, "The policy allows a file to its owner only", "A rule with owner holds for files that belong to the user that the task runs as. The file that it names belongs to another than the unit's User= or DynamicUser=, so the unit is denied it. Take owner off the rule, or give the file to the unit's user.", Confined},
	{MayUserns, "The policy lets user namespaces be made", "Whoever makes a user namespace has all capabilities in it, and reaches parts of the kernel that only root could before: many ways to become root began there. Take the rule with userns out; browsers and container engines need it, few services do.", Confined},
	{MayConnect, "AppArmor does not look at what unix sockets connect to", "AppArmor decides here whether a task may make a unix socket, and not which path it connects or sends to. Rules on the path of a socket, deny rules too, count for that only on Ubuntu's kernels and on Linux from 6.17 on, under a policy whose ABI has it (the rule abi, or policy-features in /etc/apparmor/parser.conf); on Debian 12 and 13 they do not. So the mode and the owner of a socket are all that keeps the unit from it, and a unit that runs as root is kept from none: systemd, over /run/systemd/private, and container engines start for it what they are asked to, without the profile. Run the unit as a user of its own, or keep unix sockets from it with \"deny network unix,\" in the profile (abstractions/base allows them), or with RestrictAddressFamilies= without AF_UNIX together with SystemCallArchitectures=native.", Confined},
	{MayLeaveGroup, "The policy lets tasks leave the unit's control group", "A unit that runs as root may write cgroup.procs of any control group below /sys/fs/cgroup where its profile allows it, with no capability. A task that it moves there keeps its profile, and counts as another unit's: its limits, its firewall, its list of socket options and its stop do not reach it any more, and the other unit is seen with a task that is not its own. ProtectControlGroups=yes in the unit closes it; container engines need it.", Confined},
	{AssertionFailed, "An assertion does not hold", "The compiled policy was asked what the attachment asserts under [Assertions], and the answer is another one. The policy does not go live; what was accepted before stays. With Mode=complain no Deny= holds, which a check says and keeps nothing from going live.", Confined},
	{AssertionUnknown, "An assertion could not be answered", "The compiled policy holds something that is not understood here, or the assertion cannot be asked that way. What could not be answered does not go live.", Unknown},
	{AssertionWaived, "A built-in assertion is waived", "The attachment says with Waive= that a built-in assertion does not count for it, and why.", Confined},

	{IgnorePrefix, "The directive ignores a missing profile", "AppArmorProfile=-NAME starts the service unconfined when the profile is not loaded, and systemd logs nothing.", NotConfined},
	{ExecPrivileged, "A command line begins with +", "systemd starts a command line with + as root and without the profile. What it leaves running is not confined.", NotConfined},
	{PermissionsStartOnly, "PermissionsStartOnly= is set", "It takes the profile off every command but ExecStart=. Replace it with a ! or + on the lines that need it.", NotConfined},
	{AAExec, "aa-exec in a command line", "aa-exec changes the profile by itself; from inside the profile that AppArmorProfile= has put on already it may not, and the start fails. Use one of the two: take aa-exec out of the line.", NotConfined},
	{DirectiveOverridden, "Another file overrides the profile", "A later drop-in sets AppArmorProfile= again, or resets it. The last one wins.", NotConfined},
	{AssertionOverridden, "Another file takes the assertion away", "A later drop-in resets or changes AssertSecurity=apparmor, so the unit would start unconfined where AppArmor is off.", NotConfined},
	{PrivateTmpOverridden, "Another file takes the private /tmp away", "A later drop-in sets PrivateTmp= to less than the attachment asks for.", NotConfined},

	{SocketsNotHeld, "Socket options are not held to the list", "The kernel does not have aaunit's own programs attached to the unit's control group, or they have another list or mode than the attachment declares. aaunitd attaches them again without a restart; a start does it by the line in the unit's drop-in.", NotConfined},
	{SocketsUnknown, "Socket options could not be looked at", "Whether the unit's socket options are held to the list could not be told: the kernel does not support it, no BPF file system is mounted, there was no memory for the tables, or aaunitd may not ask; or the attachment says Required=no, and they are not held. In mode record, where Required=no is the default, that is a note.", Unknown},
	{SocketsOpen, "The unit can change its own list", "A program with CAP_BPF or CAP_SYS_ADMIN can change the kernel's tables by their ids, the list of its own socket options too. Take both out of its capabilities, or out of the profile. One that runs as root needs neither: it can open the list of any unit below /sys/fs/bpf/aaunit and change it, and AppArmor is not asked. SystemCallFilter=~bpf in the unit closes that from its next start on, and so does a filter that allows @system-service or other sets without bpf, or a user of its own in User= that no privilege makes root. Two ways are left to root that its profile can close: to remove the programs where they are pinned, by a rule that lets it write /sys/fs/bpf, and to go to another control group, by a rule that lets it write cgroup.procs below /sys/fs/cgroup. Take such rules out; ProtectControlGroups=yes closes the latter, too. Such a setting counts once the unit was started with it, and where that cannot be told it does not.", Unknown},
	{SocketsGain, "A set-uid program could take the list off", "The unit's program has no capability to change the list of its own socket options, but its bounding set and its profile leave room for one: a program with the set-uid bit or with file capabilities could gain it, and change the list for all of the unit. It does not count against the unit. NoNewPrivileges=yes closes it, and costs nothing where the unit runs no such program.", Confined},
	{SocketsOverridden, "Another file takes the start helper away", "Before each start of the unit a helper attaches the programs for its socket options, from an ExecStartPre= line in aaunit's drop-in. A later drop-in resets ExecStartPre=, or systemd has not read the line yet, so the next start would be without them.", NotConfined},
	{SocketsForeignCalls, "Some socket options go unseen", "The programs see the system calls of the machine's own architecture, of tasks in the unit's control group, on sockets that were made there. System calls of another architecture and programs that a PAM session takes elsewhere are neither recorded nor refused; nor, for any unit, are options that come as control messages beside data, sockets that were passed in from another unit, SO_PEERPIDFD, which the kernel answers before the programs are asked, and ExecStartPre= commands that come before the start helper's. SystemCallArchitectures=native closes the former; for a unit with User= it implies NoNewPrivileges=yes.", Confined},
	{SocketsNote, "Socket options are not as declared", "They are not recorded or held as the attachment says, or that could not be told. Where a list should hold, the verdict has a reason of its own; a recording that is not required (Required=no, the default in mode record) does not count against the unit.", Confined},
	{SocketsChanged, "The rules for socket options change", "The attachment declares a mode or a list that is not in force yet. It takes effect at once, without a restart of the unit.", Confined},
	{SocketsReleased, "Socket options are free again", "The attachment has no [SocketOptions] any more, or says Mode=off. What was attached in the kernel is taken off, without a restart of the unit.", Confined},
	{SocketsDisputed, "Another unit has other rules for the same .socket unit", "A .socket unit makes its sockets in a control group of its own, which has one mode and one list, whichever service it starts. Another attached service that it starts has them already, and this attachment asks for others. Say the same under [SocketOptions] in both attachments, or give each service a .socket unit of its own.", Unknown},
	{SocketsHidden, "The start helper cannot work in the unit", "Before each start of the unit a helper attaches the programs for its socket options. systemd runs it without the unit's user and sandbox, and yet with its RootDirectory=, RootImage=, TemporaryFileSystem=, BindPaths=, BindReadOnlyPaths= and MountImages=. One of these keeps from it what it needs: its program, the rules in /var/lib/aaunit, /proc, or /sys with the file systems there, of which it writes to /sys/fs/bpf. Every start that requires it would fail, so an attachment that requires it is refused; one that was in place before is kept, with a warning that the next start will fail. Where it is not required (Required=no, the default in mode record), it is a warning: starts go on without, and aaunitd attaches the programs once it sees one. RootDirectoryStartOnly=yes keeps the root directory to ExecStart=, and BindPaths= brings a path in again; else take [SocketOptions] out of the attachment.", Unknown},

	{DropInMissing, "The drop-in is not there", "aaunit tells systemd about the profile with a drop-in file.", NotConfined},
	{DropInDiffers, "The drop-in is not as it should be", "The file is one of aaunit's and its text is not what the attachment asks for.", NotConfined},
	{DropInForeign, "A file that is not aaunit's is in the way", "A file with the name of aaunit's drop-in exists and aaunit did not write it. Remove or rename it.", Unknown},
	{DropInUnreadable, "The drop-in could not be read or written", "What lies at the place of aaunit's drop-in could not be read safely, or nothing could be written there.", Unknown},
	{DropInStale, "An old drop-in is left over", "A drop-in that aaunit wrote for an earlier attachment of the unit.", Confined},
	{ReloadNeeded, "systemd must read its files again", "systemd keeps unit files in memory until systemctl daemon-reload.", Confined},
	{ReloadInVain, "systemd asks for a reload again and again", "systemd says that the unit's files changed since it read them, and says so after it has read them again. It does for as long as a file that it lists is not there: a drop-in that is a link to nothing, or what SourcePath= names. The unit runs with what the other files say, and aaunitd has systemd read them again when one of them changes. systemctl cat UNIT lists them: remove the link, or put back what it leads to.", Confined},
	{RestartNeeded, "The unit must be restarted", "A running task keeps the label it has; only a new start puts the profile on.", Confined},
	{RestartPending, "A restart is pending", "The attachment is in place, and the running tasks do not carry it yet: it takes effect at the unit's next start.", NotConfined},
	{RestartDrags, "A restart takes other units along", "Units that require this one, are bound to it or part of it are stopped or restarted with it.", Confined},
	{Detached, "The attachment was withdrawn", "No attachment names the unit any more.", NotConfined},
	{AttachFailed, "The unit did not come up confined and healthy", "After the restart the unit failed, restarted by itself or was not confined.", NotConfined},
	{Held, "Held after a failed attach", "The attach failed. It is not tried again until the unit, the profile or the attachment changes, or someone asks. Where a full disk or a systemd that does not answer was in the way, it is tried again by itself.", NotConfined},
	{Paused, "Paused", "Somebody said that the unit's profile, drop-in or loaded policy is being changed on purpose. Until the pause is over aaunitd changes nothing about the unit: it puts nothing back, loads, restarts and stops nothing. It goes on looking, so the verdict is the truth as ever. When the time is over, or with aaunitctl resume UNIT, whatever is not as declared is put back.", Confined},
	{PolicyKept, "Kept for other units", "Other units that are attached and not paused use the same policy or the same drop-in, and aaunitd goes on putting it back for them. Pause them too, to change it.", Confined},
	{RivalAttachments, "Two attachments name the unit", "They name it equally closely, so which one was meant cannot be told. Remove the unit from one of them.", Unknown},
	{DeclaredInFile, "Declared in a file", "An attachment file that a person or a configuration tool wrote names the unit. What a file declares is changed in that file.", Confined},
	{NotAttached, "Not attached", "No attachment names the unit, so aaunit neither confines nor watches it.", NotConfined},
	{UnloadSkipped, "The profile stays loaded", "Removing a profile takes it off every task that carries it, so a profile in use is never unloaded, nor one that a service which is being started may carry in a moment. aaunitd tries again when that has passed, and from time to time what a failed attach had loaded. A unit that failed under a profile which attaches to its program by itself is not started before the profile is gone.", Confined},
	{AttachmentBad, "The attachment file has an error", "The file is not used until it is corrected; what was attached by its last good version stays as it is.", Unknown},
	{RecordBad, "A record of aaunitd's could not be read or kept", "aaunitd remembers of each attached unit what it wrote and loaded. A record that cannot be read, or that others than root could have written, is set aside with .bad behind its name, and the unit is looked at anew; a drop-in that was on it is then taken for somebody else's until it says what the attachment asks for.", Unknown},

	{TaskUnconfined, "A task is not confined", "At least one task of the unit runs without any profile.", NotConfined},
	{TaskOther, "A task runs under another profile", "At least one task of the unit carries a profile that the attachment does not name: a child profile of another name (Px) or a transition of its own. If that is meant, list it in AllowProfiles=.", NotConfined},
	{TaskComplain, "A task's profile does not enforce", "The task carries the profile in a mode that permits what the profile does not allow.", NotConfined},
	{TaskStacked, "Stacked with unconfined", "The label is the profile and \"unconfined\" side by side, as happens with User= where unprivileged unconfined programs are restricted. The profile confines the task in full.", Confined},
	{TaskUnreadable, "A task's label could not be read", "The kernel did not let the label be read.", Unknown},
	{TmpShared, "/tmp is the host's", "The process sees the host's /tmp or /var/tmp, where every user can leave files and links. PrivateTmp= was asked for.", NotConfined},
	{TmpUnreadable, "/tmp could not be looked at", "The mounts of the process or of PID 1 could not be read.", Unknown},
	{NotRunning, "Not running", "The unit has no task, so there is nothing to look at.", Unknown},
	{EndedBeforeSeen, "Ended before it was seen", "The unit started and had no task left when it was looked at. A short oneshot is gone before anyone can look.", Unknown},
	{RestartedMeanwhl, "Restarted while being looked at", "The unit's InvocationID changed during the look, so what was seen belongs to no one start.", Unknown},
	{TasksUnstable, "The tasks would not hold still", "Tasks came and went so fast, or were so new (systemd on its way to the program), that no look could be relied on; or the start helper of the socket options has not run yet, which comes after all other commands before the program. It passes by itself; look again.", Unknown},
	{ScanFailed, "The tasks could not be looked at", "The unit's control group or /proc could not be read.", Unknown},
	{SystemdUnheard, "systemd did not answer", "The unit's state could not be read over D-Bus.", Unknown},

	{StartFailed, "The last start failed", "A command of the unit ended with an error, or systemd gave up on it. That can have nothing to do with AppArmor: the unit's own messages are in its journal. Where a rule is missing in the profile, a denial shows beside it.", Unknown},
	{StartNoProfile, "systemd could not put the profile on", "Before systemd executes the program it switches to the profile of AppArmorProfile=, and where that fails it executes nothing: status 231/APPARMOR. Most often no profile of that name is loaded. So the unit is down, and nothing of it runs without the profile.", Unknown},
	{StartUnclear, "Status 231 can mean two things", "systemd gives the status 231/APPARMOR to a process that could not switch to the profile, and a program may end with 231 by itself. Which of the two it was could not be told this time. If the profile is not loaded, it was the first one.", Unknown},
	{StartSkipped, "systemd skipped the start", "A unit file can name conditions for a start. Where one does not hold, systemd starts nothing, and says so in the unit's status.", Unknown},

	{SocketRefused, "A socket option was refused", "A task of the unit set, or read, a socket option that is not on the unit's list, and got EPERM. Most programs do not look whether that failed, so what shows is what the option was for. If the unit needs it: aaunitctl sockopts approve UNIT OPTION --reason WHY. It takes effect at once.", Confined},
	{SocketsStale, "The list of socket options is of another build", "The list was made, or last confirmed, while another executable ran: a package was upgraded, or the program was built anew. It goes on being enforced. aaunitctl sockopts diff UNIT shows what the new build uses that the old one did not; approve what it needs, or confirm the list as it is with aaunitctl sockopts enforce UNIT (or record UNIT).", Confined},
}

var catalogue = func() map[Code]Entry {
	m := make(map[Code]Entry, len(entries))
	for _, e := range entries {
		m[e.Code] = e
	}
	return m
}()

// maxDetail bounds one sentence: paths and names in it come from anybody.
const maxDetail = 2000

func because(c Code, format string, args ...any) Reason {
	detail := printable(fmt.Sprintf(format, args...))
	if len(detail) > maxDetail {
		detail = strings.ToValidUTF8(detail[:maxDetail], "") + "…"
	}
	return Reason{Code: c, Detail: detail}
}

func (r Reason) at(where string) Reason  { r.Where = printable(where); return r }
func (r Reason) next(step string) Reason { r.Next = printable(step); return r }

// printable makes one line of text that a terminal, the journal and D-Bus take
// as it stands. Names of programs and files come from anybody: they can hold
// escape sequences, line breaks, and bytes that are no UTF-8, for which the bus
// would close the daemon's connection.
func printable(s string) string {
	if utf8.ValidString(s) && strings.IndexFunc(s, unprintable) < 0 {
		return s
	}
	var b strings.Builder
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, s[0])
		case r == '\n', r == '\t', r == '\r':
			b.WriteByte(' ')
		case unprintable(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteRune(r)
		}
		s = s[size:]
	}
	return b.String()
}

func unprintable(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029'
}

// Because makes a reason outside this package.
func Because(c Code, format string, args ...any) Reason { return because(c, format, args...) }

// At adds the place, as "file:line".
func (r Reason) At(where string) Reason { return r.at(where) }

// maxExcerpt bounds the line in an Excerpt, in characters.
const maxExcerpt = 240

// WithExcerpt adds a line of a file, as the file has it; column counts its
// characters from 1.
func (r Reason) WithExcerpt(line, column int, text string) Reason {
	split := 0 // the byte that column means
	for n := 1; n < column && split < len(text); n++ {
		_, size := utf8.DecodeRuneInString(text[split:])
		split += size
	}
	before, behind := []rune(printable(text[:split])), []rune(printable(text[split:]))
	if len(before)+len(behind) > maxExcerpt {
		if n := len(before) - maxExcerpt/2; n > 0 {
			before = append([]rune("…"), before[n:]...)
		}
		if n := maxExcerpt - len(before); len(behind) > n {
			behind = append(behind[:n:n], '…')
		}
	}
	r.Excerpt = Excerpt{Line: line, Text: string(before) + string(behind)}
	if column > 0 {
		r.Excerpt.Column = len(before) + 1
	}
	return r
}

// WithNext adds the next step to take.
func (r Reason) WithNext(step string) Reason { return r.next(step) }
