package attach

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Explanation is a case in plain words, for somebody who has never used AppArmor.
type Explanation struct {
	Unit        string `json:"unit"`
	Profile     string `json:"profile"`
	ProfileFile string `json:"profileFile,omitempty"`
	// Pattern: a template or prefix, which is no unit and has no verdict.
	Pattern  bool   `json:"pattern,omitempty"`
	Attached bool   `json:"attached"`
	Answer   Answer `json:"answer"`
	// Headline is one sentence: how it is.
	Headline string `json:"headline"`
	// Reasons say why, the worst first; notes last.
	Reasons []Explained `json:"reasons"`
	// RestsOn is what a verdict of "confined" was seen by, and DoesNotCover what it
	// says nothing about.
	RestsOn      []string `json:"restsOn,omitempty"`
	DoesNotCover []string `json:"doesNotCover,omitempty"`
	// Unseen is what could not be looked at or is not told to the caller.
	Unseen []string `json:"unseen,omitempty"`
	// Denials are the last ones.
	Denials     []ToldDenial `json:"denials,omitempty"`
	MoreDenials int          `json:"moreDenials,omitempty"`
	LastStart   *LastStart   `json:"lastStart,omitempty"`
	Paused      *Pause       `json:"paused,omitempty"`
	// Next is the command to type now. There always is one.
	Next Command `json:"next"`
	Exit Exit    `json:"exit"`
}

// Explained is a reason, spelled out.
type Explained struct {
	Reason
	Title       string `json:"title"`
	Explanation string `json:"explanation"`
	Bearing     Answer `json:"bearing"`
	// Command is the step to take against it.
	Command Command `json:"command"`
	// Against: it keeps the unit from being attached, or speaks against the verdict.
	Against bool `json:"against,omitempty"`
}

// ToldDenial is a denial with a sentence on it.
type ToldDenial struct {
	SeenDenial
	Words string `json:"words"`
}

// Command is a line for a shell. What comes from elsewhere in it is quoted.
type Command struct {
	Line string `json:"line"`
	Root bool   `json:"root,omitempty"` // only root may
}

// maxTold bounds the denials of an Explanation.
const maxTold = 5

// Explain puts a case into words. It adds nothing to what was seen: whatever is
// not in the case is said to be unseen.
func Explain(r CaseReport, c Case) Explanation {
	e := Explanation{Unit: c.Unit, LastStart: c.Start, Reasons: []Explained{}, Answer: Unknown, Pattern: IsPattern(c.Unit)}
	e.host(r.Host)
	switch {
	case c.Status != nil:
		e.attached(*c.Status, c)
	case c.Missing != nil && c.Missing.Code == UnitNotFound:
		e.Headline = fmt.Sprintf("systemd knows no service called %s.", c.Unit)
		e.add(true, *c.Missing)
		e.Exit = ExitNoUnit
	case c.Missing == nil:
		e.Headline = fmt.Sprintf("How it is with %s could not be asked, since aaunitd does not answer.", c.Unit)
		if len(e.Reasons) > 0 {
			e.Answer = e.Reasons[0].Bearing
			e.Headline = fmt.Sprintf("%s: %s.", c.Unit, lowered(e.Reasons[0].Title))
		}
		e.Exit = WorstExit(e.Exit, ExitUnknown)
	default:
		e.notAttached(c)
	}
	if c.StartProblem != "" {
		e.unseen("how its last start ended: %s", c.StartProblem)
	}
	e.denials(r, c)
	for i := range e.Reasons {
		e.Reasons[i].Command = commandFor(e.Reasons[i].Reason, e, c)
	}
	e.Next = e.next(c)
	return e
}

// host adds what speaks against every unit of the machine.
func (e *Explanation) host(h Host) {
	for _, r := range judgeHost(h) {
		e.add(true, r)
	}
	e.Exit = ExitOK
	for _, x := range e.Reasons {
		e.Exit = WorstExit(e.Exit, exitOfBearing(x.Bearing))
	}
}

func exitOfBearing(a Answer) Exit {
	switch a {
	case NotConfined:
		return ExitNotConfined
	case Confined:
		return ExitOK
	}
	return ExitUnknown
}

// add adds a reason, once.
func (e *Explanation) add(against bool, reasons ...Reason) {
	for _, r := range reasons {
		if slices.ContainsFunc(e.Reasons, func(x Explained) bool {
			return x.Reason == r || x.Code == r.Code && (x.Detail == r.Detail || hostWide[r.Code])
		}) {
			continue
		}
		e.Reasons = append(e.Reasons, Explained{Reason: r, Title: r.Code.Title(), Explanation: r.Code.Explanation(), Bearing: r.Code.Bearing(), Against: against})
	}
}

// hostWide are reasons that are about the machine, which say the same twice.
var hostWide = map[Code]bool{AppArmorOff: true, AppArmorUnknown: true, GlobalComplain: true}

func (e *Explanation) unseen(format string, args ...any) {
	e.Unseen = append(e.Unseen, printable(fmt.Sprintf(format, args...)))
}

func (e *Explanation) attached(s Status, c Case) {
	e.Attached, e.Profile, e.ProfileFile, e.Paused = true, s.Profile, s.ProfileFile, s.Paused
	v := Verdict{Answer: Unknown}
	if s.Verdict != nil {
		v = *s.Verdict
	}
	e.Answer = v.Answer
	if e.Answer == noAnswer {
		e.Answer = Unknown
	}
	e.Exit = WorstExit(e.Exit, s.Exit())
	held := s.Held != nil && !s.Held.OnlyText()
	e.add(true, s.Refused...)
	if held {
		// What the unit is without the attach says less than why there is none.
		what := fmt.Sprintf("the attach failed at %s", s.Held.Since.Format("2006-01-02 15:04:05 MST"))
		if !s.Held.Again.IsZero() {
			what += ", and is tried again by itself at " + s.Held.Again.Format("15:04:05 MST")
		}
		e.add(true, because(Held, "%s", what).next("aaunitctl attach "+e.Unit))
		e.add(true, s.Held.Reasons...)
	}
	for _, r := range v.Reasons {
		// That a unit does not run says less than why.
		if r.Code != NotRunning {
			e.add(r.Code.Bearing() != Confined, r)
		}
	}
	known := len(e.Reasons)
	if c.Start != nil {
		if c.Start.LoadState == "masked" {
			e.add(true, because(UnitMasked, "%s is masked", e.Unit))
		}
		if why := c.Start.why(e.Unit); why != nil {
			e.add(true, *why)
		}
	}
	if idle := v.why(NotRunning); idle != nil && len(e.Reasons) == known {
		e.add(true, *idle)
	}
	if s.Held != nil && !held {
		e.add(false, s.Held.Reasons...)
	}
	if s.Paused != nil {
		e.add(false, because(Paused, "%s is paused %s", e.Unit, s.Paused).next("aaunitctl resume "+e.Unit))
	}
	e.add(false, s.Notes...)
	e.add(false, c.Sockets...)
	e.Headline = e.headline(s, v)
	if e.Answer == Confined && !e.Pattern && len(s.Refused) == 0 && !held {
		e.rests(v)
	}
	switch {
	case e.Pattern && s.Exit() == ExitUnknown:
		e.unseen("its drop-in: aaunitd has not come to it yet; ask again")
	case e.Pattern:
	case s.Verdict == nil:
		e.unseen("its tasks: nobody has looked at them yet")
	case s.Busy:
		e.unseen("how it is after what aaunitd does with it at this moment; ask again")
	}
}

func (e *Explanation) headline(s Status, v Verdict) string {
	profile := "profile " + quoted(s.Profile)
	after := ""
	if s.Paused != nil {
		after = " aaunitd leaves it alone at present: it is paused."
	}
	switch {
	case s.trampled() && s.Paused != nil:
		return fmt.Sprintf("%s is a pattern, and the kernel does not run the policy that was accepted for it: its units do not start under that.%s", e.Unit, after)
	case s.trampled():
		return fmt.Sprintf("%s is a pattern, and the policy that was accepted for it is not put back: its units do not start under that.%s", e.Unit, after)
	case s.dropInAmiss():
		return fmt.Sprintf("%s is a pattern whose units shall run under %s, and its drop-in is not as it should be: units to come are not confined by it.%s", e.Unit, profile, after)
	case s.complains():
		return fmt.Sprintf("%s is a pattern whose units run under %s in complain mode: units to come are not confined by it.%s", e.Unit, profile, after)
	case len(s.Refused) > 0:
		return fmt.Sprintf("%s shall run under %s, and aaunitd refused to attach it: %s.%s", e.Unit, profile, lowered(s.Refused[0].Code.Title()), after)
	case s.Held != nil && !s.Held.OnlyText():
		again := "is not tried again by itself"
		if !s.Held.Again.IsZero() {
			again = "is tried again by itself"
		}
		return fmt.Sprintf("%s shall run under %s; the attach failed, was undone and %s.%s", e.Unit, profile, again, after)
	case e.Pattern:
		switch answer, words := s.ToCome(); answer {
		case Confined:
			return fmt.Sprintf("%s is a pattern: systemd starts every unit of it under %s, those to come included, and each one has a verdict of its own.%s", e.Unit, profile, after)
		case Unknown:
			return fmt.Sprintf("%s is a pattern whose units shall run under %s; %s.%s", e.Unit, profile, words, after)
		}
		return fmt.Sprintf("%s is a pattern whose units shall run under %s, and its drop-in is not in place: units to come are not confined by it.%s", e.Unit, profile, after)
	case v.Answer == Confined:
		return fmt.Sprintf("%s is confined: each of its %s runs under %s, and the kernel refuses what that does not allow.%s", e.Unit, tasks(v.Tasks), profile, after)
	case v.Answer == NotConfined:
		why := "something shows that it does not run under " + profile
		if len(v.Reasons) > 0 {
			why = lowered(v.Reasons[0].Code.Title())
		}
		return fmt.Sprintf("%s is not confined: %s.%s", e.Unit, why, after)
	}
	if why := v.why(NotRunning); why != nil {
		for _, x := range e.Reasons {
			if x.Code == StartFailed || x.Code == StartNoProfile || x.Code == StartUnclear || x.Code == StartSkipped || x.Code == UnitMasked {
				return fmt.Sprintf("%s is not running, so there is nothing to look at: %s.%s", e.Unit, lowered(x.Title), after)
			}
		}
		if s.DropIn == "" {
			return fmt.Sprintf("%s is not running, so there is nothing to look at, and the drop-in for its next start is not in place.%s", e.Unit, after)
		}
		return fmt.Sprintf("%s is not running, so there is nothing to look at; it will start under %s.%s", e.Unit, profile, after)
	}
	why := "nobody has looked at it yet"
	if len(v.Reasons) > 0 {
		why = lowered(v.Reasons[0].Code.Title())
	}
	return fmt.Sprintf("Whether %s is confined is not known: %s. Take it for not confined until it is.%s", e.Unit, why, after)
}

func tasks(n int) string {
	if n == 1 {
		return "1 task"
	}
	return fmt.Sprintf("%d tasks", n)
}

// why finds a reason of a verdict.
func (v Verdict) why(c Code) *Reason {
	for _, r := range v.Reasons {
		if r.Code == c {
			return &r
		}
	}
	return nil
}

// lowered makes a title fit behind a colon: its first word loses its capital,
// unless that is part of a name.
func lowered(title string) string {
	first, size := utf8.DecodeRuneInString(title)
	word, _, _ := strings.Cut(title, " ")
	if strings.ContainsFunc(word[min(size, len(word)):], unicode.IsUpper) || strings.HasPrefix(title, "AppArmor") {
		return title
	}
	return string(unicode.ToLower(first)) + title[size:]
}

// rests says what "confined" rests on, and what it is silent about.
func (e *Explanation) rests(v Verdict) {
	e.RestsOn = []string{
		fmt.Sprintf("the label of each of %s in %d processes, read from the kernel at %s", tasks(v.Tasks), v.Processes, v.At.Format("2006-01-02 15:04:05 MST")),
		"the kernel's checksum of each profile, which is that of the policy that was checked",
		"the settings that systemd has in effect",
	}
	switch v.PrivateTmp {
	case Yes:
		e.RestsOn = append(e.RestsOn, "the /tmp and /var/tmp of each process, which are not the host's")
	case No:
		e.DoesNotCover = append(e.DoesNotCover, "/tmp and /var/tmp, which are the host's: other users' programs can leave files there")
	}
	e.DoesNotCover = append(e.DoesNotCover,
		fmt.Sprintf("what the profile allows, which can be asked: aaunitctl query %s 'write /etc/**'", shellWord(e.Profile)),
		"work that others do for the unit: systemd over D-Bus, cron, a container engine",
		"any other start than this one; each start is looked at anew")
}

func (e *Explanation) notAttached(c Case) {
	e.Exit = WorstExit(e.Exit, ExitNotConfined)
	why := because(NotAttached, "no attachment names %s", c.Unit)
	if c.Missing != nil {
		why = *c.Missing
	}
	own := ""
	if c.Start != nil && c.Start.Profile != "" {
		own = fmt.Sprintf(" Its unit file names profile %s by itself; whether its tasks carry it nobody looks at.", quoted(c.Start.Profile))
	}
	e.Headline = fmt.Sprintf("%s is not attached: aaunit neither confines nor watches it.%s", c.Unit, own)
	e.Answer = NotConfined
	e.add(true, why)
	if c.Start != nil {
		if r := c.Start.why(c.Unit); r != nil {
			e.add(true, *r)
		}
	}
	if c.Plan == nil {
		e.unseen("whether a profile for it exists, and what speaks against an attach: aaunitctl plan %s looks", c.Unit)
		return
	}
	e.Profile, e.ProfileFile = c.Plan.Profile, c.Plan.File
	e.add(true, c.Plan.Reasons...)
	for _, f := range c.Plan.Findings {
		e.add(f.Severity == Error, f.Reason)
	}
	e.add(false, c.Plan.Notes...)
}

func (e *Explanation) denials(r CaseReport, c Case) {
	if c.Hidden != "" {
		e.unseen("what was denied to it: %s", c.Hidden)
		return
	}
	if e.Pattern {
		return
	}
	if r.Deaf != "" {
		e.unseen("what is denied to it at present: %s", r.Deaf)
	}
	if r.Lost > 0 {
		e.unseen("at least %d records of the kernel's, of which some may have been denials", r.Lost)
	}
	list := c.Denials
	if n := len(list) - maxTold; n > 0 {
		list, e.MoreDenials = list[n:], n
	}
	e.MoreDenials += c.LeftOut
	for _, d := range slices.Backward(list) { // the last one first
		e.Denials = append(e.Denials, ToldDenial{d, d.Words()})
	}
}

// next chooses the one command that an answer ends with: against the worst that
// was found, and where nothing was, to look again.
func (e *Explanation) next(c Case) Command {
	unit := shellWord(e.Unit)
	if e.Paused != nil && e.Exit != ExitOK {
		return Command{"aaunitctl resume " + unit, true}
	}
	first := func(want func(Explained) bool) *Explained {
		for i := range e.Reasons {
			if want(e.Reasons[i]) {
				return &e.Reasons[i]
			}
		}
		return nil
	}
	worst := first(func(x Explained) bool { return x.Against && x.Code != NotAttached })
	if pending := first(func(x Explained) bool { return x.Code == RestartPending }); pending != nil && e.Answer == NotConfined {
		worst = pending // the rest follows from it
	}
	switch {
	case c.Status == nil && c.Missing == nil && worst == nil:
		return Command{"systemctl status aaunitd.service", false}
	case !e.Attached && e.Exit != ExitNoUnit:
		// A start that failed is no reason not to begin, and neither is a note.
		worst = first(func(x Explained) bool {
			return x.Against && x.Code != NotAttached && x.Code != StartFailed && x.Code != StartUnclear && x.Code != StartNoProfile && x.Code != StartSkipped
		})
		switch {
		case worst != nil:
			return worst.Command
		case c.Plan == nil:
			return Command{"aaunitctl plan " + unit, true}
		}
		return Command{"aaunitctl attach " + unit, true}
	case worst != nil && (worst.Code == AttachFailed || worst.Code == Held || worst.Code == StartFailed) && slices.ContainsFunc(e.Denials, func(d ToldDenial) bool { return !d.Allowed }):
		return Command{"aaunitctl denials " + unit, true}
	case worst != nil && worst.Code == Held:
		// What it failed by comes behind it.
		if failed := first(func(x Explained) bool { return x.Against && x.Code != Held }); failed != nil {
			return failed.Command
		}
		return worst.Command
	case worst != nil:
		return worst.Command
	case e.Pattern:
		return Command{"aaunitctl status", false}
	case len(e.Denials)+e.MoreDenials > 0:
		return Command{"aaunitctl denials " + unit, true}
	}
	if note := first(func(x Explained) bool { return x.Code != Paused }); note != nil && e.Answer == Confined {
		return note.Command
	}
	return Command{"aaunitctl verify " + unit, true}
}

// steps are the commands against reasons. {unit}, {profile} and {file} stand for
// what the case has of them, {where} for the file that the reason names, and
// {instances} for a template's. One whose file is not known is left for the next
// better thing, a look.
var steps = map[Code]Command{
	AppArmorOff:        {"cat /proc/cmdline", false},
	AppArmorUnknown:    {"head /sys/module/apparmor/parameters/enabled /sys/module/apparmor/parameters/mode", true},
	GlobalComplain:     {"sh -c 'echo enforce >/sys/module/apparmor/parameters/mode'", true},
	BootServiceMissing: {"systemctl enable apparmor.service", true},

	SocketRefused: {"aaunitctl sockopts {unit}", true},
	SocketsStale:  {"aaunitctl sockopts diff {unit}", true},

	SocketsDisputed: {"aaunitctl status", false},
	SocketsHidden:   {"systemctl cat {unit}", false},

	UnitNotFound:     {"systemctl list-unit-files --type=service", false},
	UnitMasked:       {"systemctl unmask {unit}", true},
	UnitBad:          {"systemd-analyze verify {unit}", false},
	UnitTransient:    {"systemctl cat {unit}", false},
	UnitNoService:    {"systemctl list-unit-files --type=service", false},
	UnitTemplate:     {"systemctl list-units {instances}", false},
	UnitAlias:        {"systemctl show --property=Id {unit}", false},
	UnitOfUser:       {"systemctl --user cat {unit}", false},
	UnitEarly:        {"systemctl cat {unit}", false},
	UnitProtected:    {"systemctl list-dependencies --reverse {unit}", false},
	UnitFailedBefore: {"systemctl restart {unit}", true},

	ProfileNotFound:    {"aaunitctl list --profiles", false},
	ProfileAmbiguous:   {"aaunitctl list --profiles", false},
	ProfileCorrected:   {"aaunitctl plan {unit}", true},
	ProfileNameBad:     {"aaunitctl list --profiles", false},
	ProfileBroken:      {"aaunitctl check {where}", true},
	ProfileNotCompiled: {"aaunitctl check {where}", true},
	ProfileUnreadable:  {"ls -l {where}", true},
	ProfileByUnit:      {"systemctl list-units {instances}", false},
	ProfileUntrusted:   {"chown root:root {where}", true},
	ProfileDuplicate:   {"aaunitctl list --profiles", false},
	ProfileDisabled:    {"aa-enforce {file}", true},
	ProfileComplain:    {"aa-enforce {file}", true},
	ProfileDisputed:    {"aaunitctl status", false},
	ProfileUnconfined:  {"aaunitctl check {file}", true},
	ProfileDefaultOpen: {"aaunitctl check {file}", true},
	ProfileNotAtBoot:   {"cp {file} /etc/apparmor.d/", true},
	ProfileNotLoaded:   {"aaunitctl attach {unit}", true},
	ProfileNotStaged:   {"journalctl -b -u aaunitd.service", true},
	PolicyDisputed:     {"apparmor_parser --version", false},
	PolicyChanged:      {"aaunitctl attach {unit}", true},
	PolicyDiffers:      {"aaunitctl attach {unit}", true},
	PolicyTrampled:     {"aaunitctl verify {unit}", true},
	PolicyUndone:       {"aaunitctl denials {unit}", true},
	PolicyNotKept:      {"df -h /var/lib/aaunit", false},
	PolicyUnreadable:   {"aaunitctl verify {unit}", true},
	PolicyNotAccepted:  {"aaunitctl attach {unit}", true},
	Denied:             {"aaunitctl denials {unit}", true},
	ChildLeaves:        {"aaunitctl check {unit}", true},

	IgnorePrefix:         {"systemctl cat {unit}", false},
	ExecPrivileged:       {"systemctl cat {unit}", false},
	PermissionsStartOnly: {"systemctl cat {unit}", false},
	AAExec:               {"systemctl cat {unit}", false},
	DirectiveOverridden:  {"systemctl cat {unit}", false},
	AssertionOverridden:  {"systemctl cat {unit}", false},
	PrivateTmpOverridden: {"systemctl cat {unit}", false},

	DropInMissing:    {"aaunitctl attach {unit}", true},
	DropInDiffers:    {"aaunitctl attach {unit}", true},
	DropInForeign:    {"mv {where} {where}.disabled", true},
	DropInUnreadable: {"ls -l {where}", true},
	DropInStale:      {"aaunitctl attach {unit}", true},
	ReloadNeeded:     {"systemctl daemon-reload", true},
	ReloadInVain:     {"systemctl cat {unit}", false},
	RestartNeeded:    {"systemctl restart {unit}", true},
	RestartPending:   {"systemctl restart {unit}", true},
	RestartDrags:     {"aaunitctl plan {unit}", true},
	Detached:         {"aaunitctl attach {unit}", true},
	AttachFailed:     {"journalctl -b -u {unit}", true},
	Held:             {"aaunitctl attach {unit}", true},
	Paused:           {"aaunitctl resume {unit}", true},
	PolicyKept:       {"aaunitctl status", false},
	RivalAttachments: {"grep -r ^Unit= /etc/aaunit/attachments.d /run/aaunit/attachments.d /usr/lib/aaunit/attachments.d", false},
	DeclaredInFile:   {"cat {where}", false},
	NotAttached:      {"aaunitctl attach {unit}", true},
	UnloadSkipped:    {"cat /sys/kernel/security/apparmor/profiles", true},
	AttachmentBad:    {"aaunitctl check {where}", true},
	RecordBad:        {"journalctl -b -u aaunitd.service", true},

	TaskUnconfined: {"aaunitctl check {unit}", true},
	TaskOther:      {"aaunitctl check {unit}", true},
	TaskComplain:   {"aaunitctl attach {unit}", true},
	TmpShared:      {"systemctl restart {unit}", true},
	NotRunning:     {"systemctl start {unit}", true},

	EndedBeforeSeen: {"journalctl -b -u {unit}", true},
	SystemdUnheard:  {"systemctl is-system-running", false},
	StartFailed:     {"journalctl -b -u {unit}", true},
	StartNoProfile:  {"aaunitctl attach {unit}", true},
	StartUnclear:    {"journalctl -b -u {unit}", true},
	StartSkipped:    {"systemctl status {unit}", false},
}

// commandFor finds the step against a reason: what the reason itself says, where
// that is a command, else the code's, else a look at what there is.
func commandFor(r Reason, e Explanation, c Case) Command {
	if r.Code == RestartPending && slices.ContainsFunc(e.Reasons, func(x Explained) bool { return x.Code == UnitProtected }) {
		// A restart by hand would take the system or the session with it as well.
		r = Reason{Code: UnitProtected}
	}
	// An attach that failed fails again, as long as nobody has looked why.
	if cmd, ok := commandIn(r.Next); ok && r.Code != AttachFailed {
		return cmd
	}
	where, _, _ := strings.Cut(r.Where, ", rule ")
	if i := strings.LastIndexByte(where, ':'); i > 0 && strings.Trim(where[i+1:], "0123456789") == "" {
		where = where[:i]
	}
	if !strings.HasPrefix(where, "/") {
		where = ""
	}
	file := e.ProfileFile
	if file == "" && strings.HasPrefix(where, "/etc/apparmor.d/") && !strings.HasSuffix(where, ".conf") {
		file = where
	}
	instances := ""
	if name, _, template := strings.Cut(e.Unit, "@."); template {
		instances = name + "@*"
	}
	if cmd, ok := steps[r.Code]; ok {
		whole := true
		for key, value := range map[string]string{"{unit}": e.Unit, "{file}": file, "{where}": where, "{instances}": instances} {
			if strings.Contains(cmd.Line, key) {
				whole = whole && value != ""
				cmd.Line = strings.ReplaceAll(cmd.Line, key, shellWord(value))
			}
		}
		if whole {
			return cmd
		}
	}
	// What the policy allows, and what was asserted of it, check says once more.
	check := strings.HasPrefix(string(r.Code), "policy-may-") || strings.HasPrefix(string(r.Code), "assertion-") || strings.HasPrefix(string(r.Code), "profile-")
	switch {
	case check && c.Missing == nil && e.Unit != "":
		return Command{"aaunitctl check " + shellWord(e.Unit), true}
	case r.Code.Bearing() == Confined:
		return Command{"aaunitctl explain " + shellWord(string(r.Code)), false}
	case !e.Attached:
		return Command{"aaunitctl plan " + shellWord(e.Unit), true}
	}
	return Command{"aaunitctl verify " + shellWord(e.Unit), true}
}

// programs are those that a reason's next step may begin with, and whether only
// root may run them.
var programs = map[string]bool{"aaunitctl": true, "systemctl": true, "systemd-analyze": false, "apparmor_parser": true, "aa-enforce": true, "journalctl": true}

// reading are subcommands that anybody may use.
var reading = []string{"cat", "status", "show", "list", "list-units", "list-unit-files", "explain", "is-enabled"}

// commandIn finds a command in a next step: all of it, or what follows "then:".
// Nothing is taken that a shell could read as more than words.
func commandIn(next string) (Command, bool) {
	if _, then, ok := strings.Cut(next, "then: "); ok {
		next = then
	}
	words := strings.Fields(next)
	if len(words) < 2 || strings.Join(words, " ") != next || slices.ContainsFunc(words, func(w string) bool { return !plainShell(w) || blanks[w] }) {
		return Command{}, false
	}
	root, known := programs[words[0]]
	if !known {
		return Command{}, false
	}
	return Command{Line: next, Root: root && !slices.Contains(reading, words[1])}, true
}

// blanks stand for what a person has to fill in.
var blanks = map[string]bool{"NAME": true, "PROFILE": true, "UNIT": true, "FILE": true, "CODE": true, "WHY": true}

func plainShell(w string) bool {
	return w != "" && !strings.ContainsFunc(w, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=:,./_-", r))
	})
}

// shellWord quotes a word for a shell.
func shellWord(w string) string {
	if plainShell(w) {
		return w
	}
	return "'" + strings.ReplaceAll(printable(w), "'", `'\''`) + "'"
}
