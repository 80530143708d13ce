package attach

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// EvidenceFormat is the format of records of evidence that this version writes.
const EvidenceFormat = 1

// Evidence is the chain behind the verdict on one start of a unit: from the text
// of the profile to the labels of the tasks. One is kept for each start, and for
// each change of the answer or of the policy it rests on, and holds the checksum
// of the one before. internal/evidence/schema.json describes it.
//
// A checksum is SHA-256 in hexadecimal digits unless it says otherwise; "" is
// "could not tell", and a Problem beside it says why.
type Evidence struct {
	Format int    `json:"format"`
	Unit   string `json:"unit"`
	// Number counts the records of the unit, from 1.
	Number int `json:"number"`
	// Previous is the checksum of the record before; "" for the first.
	Previous string `json:"previous"`
	// Missed counts what should have been recorded since the one before and was
	// not, since too much was waiting.
	Missed int       `json:"missed,omitempty"`
	Kept   time.Time `json:"kept"` // when the record was written
	// Boot, Kernel and Aaunit are the boot of the machine, the release of its
	// kernel, and the version of aaunit; InvocationID, Profile, the answer with its
	// reasons and the time of the look are the verdict's.
	Boot    string  `json:"boot"`
	Kernel  string  `json:"kernel"`
	Aaunit  string  `json:"aaunit"`
	Verdict Verdict `json:"verdict"`

	Policies []EvidencePolicy `json:"policies"`
	// Live are the profiles as the kernel has them.
	Live        []EvidenceProfile `json:"live"`
	LiveProblem string            `json:"liveProblem,omitempty"`
	// LeftTo is what the policy has as such: those profiles are compared with nothing.
	LeftTo     map[string]string `json:"-"`
	DropIn     EvidenceFile      `json:"dropIn"`
	Settings   []EvidenceSetting `json:"settings"`
	Executable EvidenceProgram   `json:"executable"`
	// Labels are all that tasks carried; Tasks are the first of the tasks.
	Labels     []EvidenceLabel `json:"labels"`
	Tasks      []EvidenceTask  `json:"tasks"`
	MoreLabels int             `json:"moreLabels,omitempty"` // that were left out
	MoreTasks  int             `json:"moreTasks,omitempty"`
	// Tmp are the views of /tmp and /var/tmp that processes had, and HostTmp is PID 1's.
	Tmp     []EvidenceTmp `json:"tmp"`
	MoreTmp int           `json:"moreTmp,omitempty"`
	HostTmp TmpView       `json:"hostTmp"`
}

// EvidencePolicy is an accepted policy: a profile file, what it includes, and
// what was compiled of them.
type EvidencePolicy struct {
	File string `json:"file"`
	ID   string `json:"id"` // under which it is kept in /var/lib/aaunit/policy
	// Source is the checksum over the names and texts of all Files; Compiled that
	// of the policy as the kernel takes it.
	Source   string `json:"source"`
	Compiled string `json:"compiled"`
	Parser   string `json:"parser"` // that compiled it
	// Kernel is the release of the kernel that it was compiled for, and Environment
	// a digest of the parser, its configuration, and the kernel's features and build.
	Kernel      string `json:"kernel"`
	Environment string `json:"environment"`
	Complain    bool   `json:"complain,omitempty"`
	// Asked is how many questions about the staged policy the kernel answered just
	// as it says; NotAsked why there were none, or no more.
	Asked    int            `json:"asked,omitempty"`
	NotAsked string         `json:"notAsked,omitempty"`
	Files    []EvidenceFile `json:"files"`
	Problem  string         `json:"problem,omitempty"`
}

// EvidenceFile is a file. Gone: there is certainly none.
type EvidenceFile struct {
	Path    string `json:"path"`
	SHA256  string `json:"sha256"`
	Gone    bool   `json:"gone,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// EvidenceProfile is a profile as loaded. Checksum is the kernel's own, and
// Accepted the one that passed the checks; both as "sha256:…" or "sha1:…".
type EvidenceProfile struct {
	Name     string `json:"name"`
	Mode     Mode   `json:"mode"`
	Checksum string `json:"checksum"`
	Accepted string `json:"accepted"`
}

// EvidenceSetting is a setting of the unit that is in effect. Of a command line
// there is the program and a checksum of the arguments, in which secrets may stand.
type EvidenceSetting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	Where string `json:"where,omitempty"` // file and line that set it, where that is known
}

// EvidenceProgram is the executable of the unit's main process or, where systemd
// knows no main process, of its first one.
type EvidenceProgram struct {
	PID    int    `json:"pid,omitempty"`
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size,omitempty"`
	// Deleted: the file that runs is not on disk any more.
	Deleted bool   `json:"deleted,omitempty"`
	BuildID string `json:"buildID,omitempty"` // GNU build-id; "" it has none
	// Package and Version are dpkg's for the path, or else rpm's; "" neither knows it.
	Package        string `json:"package,omitempty"`
	Version        string `json:"version,omitempty"`
	PackageProblem string `json:"packageProblem,omitempty"`
	Gone           bool   `json:"gone,omitempty"` // there is certainly none
	Problem        string `json:"problem,omitempty"`
	// At is when the process was seen: one of its number that began later is another.
	At time.Time `json:"-"`
}

// EvidenceLabel is a label with how many tasks carried it. Fits: it is the
// profile, a child of it or one that the attachment allows, and it confines.
type EvidenceLabel struct {
	Label   string `json:"label"`
	Count   int    `json:"count"`
	Fits    Tri    `json:"fits"`
	Problem string `json:"problem,omitempty"` // why it could not be read
}

// EvidenceTask is one task.
type EvidenceTask struct {
	PID   int    `json:"pid"`
	TID   int    `json:"tid"`
	Comm  string `json:"comm"`
	Exe   string `json:"exe,omitempty"`
	Label string `json:"label"`
}

// EvidenceTmp is a view of /tmp and /var/tmp with how many processes had it.
type EvidenceTmp struct {
	TmpView
	Count int `json:"count"`
}

// EvidenceKey tells what a record is about: another start, answer, profile or
// accepted policy needs a record of its own.
type EvidenceKey struct {
	Boot, InvocationID, Profile, Policies string
	Answer                                Answer
}

// Key is the record's.
func (e Evidence) Key() EvidenceKey { return EvidenceKeyOf(e.Boot, e.Verdict, e.Policies) }

// EvidenceKeyOf is the key of the record that a verdict would have. Compiled by
// another parser, the same texts are another policy.
func EvidenceKeyOf(boot string, v Verdict, policies []EvidencePolicy) EvidenceKey {
	k := EvidenceKey{Boot: boot, InvocationID: v.InvocationID, Profile: v.Profile, Answer: v.Answer}
	for _, p := range policies {
		k.Policies += p.File + "\x00" + p.ID + "\x00" + p.Environment + "\x00"
	}
	return k
}

// EvidencePolicies are the accepted policies of a unit, without what takes a look
// at their bytes.
func EvidencePolicies(r Record, kept []Compiled) []EvidencePolicy {
	out := []EvidencePolicy{}
	for _, file := range slices.Sorted(maps.Keys(r.Policies)) {
		p := EvidencePolicy{File: file, ID: r.Policies[file], Files: []EvidenceFile{}}
		i := slices.IndexFunc(kept, func(c Compiled) bool { return c.ID == p.ID })
		if i < 0 {
			p.Problem = "the accepted policy is not kept"
		} else {
			c := kept[i]
			p.Source, p.Parser, p.Kernel, p.Environment, p.Complain = c.Source, c.Parser, c.Kernel, c.Environment, c.Complain
			q := c.Questioned()
			p.Asked, p.NotAsked = q.Questions, q.NotAsked
		}
		out = append(out, p)
	}
	return out
}

// Bounds on a record. A label, task or view that is left out is counted.
const (
	maxEvidenceLabels = 64
	maxEvidenceTasks  = 32
	maxEvidenceLive   = 1000
	maxEvidenceExec   = 200
)

// GatherEvidence puts together what was seen of a unit and what was made of it.
// sum gives the checksum of a text. What needs a look at files and processes is
// left to others: checksums of Policies, the executable, the kernel.
func GatherEvidence(d Desired, o Observed, v Verdict, sum func(string) string) Evidence {
	e := Evidence{Format: EvidenceFormat, Unit: d.Unit, Verdict: v, Live: []EvidenceProfile{}, Policies: EvidencePolicies(d.Record, d.Kept), LiveProblem: o.Policy.LiveError, LeftTo: o.Policy.LeftTo}
	e.Verdict.At = e.Verdict.At.UTC().Round(0)
	e.Verdict.Reasons = slices.Clone(v.Reasons)
	names := map[string]bool{}
	for name := range d.Record.Accepted {
		names[name] = true
	}
	for name := range o.Policy.Live {
		names[name] = names[name] || slices.ContainsFunc(d.names(), func(n string) bool { return covers(n, name) })
	}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		live, accepted := o.Policy.Live[name], d.Record.Accepted[name]
		switch {
		case !names[name]:
		case len(e.Live) == maxEvidenceLive:
			e.LiveProblem = cmp.Or(e.LiveProblem, fmt.Sprintf("only %d profiles are listed", maxEvidenceLive))
		default:
			e.Live = append(e.Live, EvidenceProfile{Name: printable(name), Mode: live.Mode, Checksum: live.Checksum, Accepted: accepted})
		}
	}
	if d.Attachment != nil {
		e.DropIn = dropInEvidence(d, o, sum)
	}
	e.Settings = settingsEvidence(o.Unit, sum)
	e.gatherTasks(d, o)
	return e
}

func dropInEvidence(d Desired, o Observed, sum func(string) string) EvidenceFile {
	f := EvidenceFile{Path: d.DropInPath(), Problem: o.DropIn.Problem, Gone: !o.DropIn.Exists && o.DropIn.Problem == ""}
	if o.DropIn.Exists && o.DropIn.Problem == "" {
		f.SHA256 = sum(o.DropIn.Content)
	}
	return f
}

func settingsEvidence(u Unit, sum func(string) string) []EvidenceSetting {
	out := []EvidenceSetting{}
	if !u.Found() {
		return out
	}
	s := u.Settings
	add := func(key, value string) {
		set := EvidenceSetting{Key: key, Value: printable(value)}
		if w := s.Winner(key); w != nil {
			set.Where = printable(fmt.Sprintf("%s:%d", w.Path, w.Line))
		}
		out = append(out, set)
	}
	flag := func(key string, on bool) { add(key, yesNo(on)) }
	profile := s.Profile
	if s.IgnoreMissing {
		profile = "-" + profile
	}
	add("AppArmorProfile", profile)
	add("AssertSecurity", map[bool]string{true: "apparmor"}[s.AssertAppArmor])
	add("PrivateTmp", string(cmp.Or(s.PrivateTmp, PrivateTmpNo)))
	flag("PermissionsStartOnly", s.PermissionsStartOnly)
	flag("NoNewPrivileges", s.NoNewPrivileges)
	flag("Delegate", s.Delegate)
	add("User", s.User)
	flag("DynamicUser", s.DynamicUser)
	if f := s.AddressFamilies; f != nil {
		add("RestrictAddressFamilies", map[bool]string{false: "~"}[f.AllowList]+strings.Join(slices.Sorted(slices.Values(f.Families)), " "))
	}
	add("PAMName", s.PAMName)
	add("RootDirectory", s.RootDirectory)
	count := map[string]int{}
	for i, c := range s.Exec {
		if i == maxEvidenceExec {
			add("Exec", fmt.Sprintf("%d more command lines", len(s.Exec)-i))
			break
		}
		prefix := ""
		if c.IgnoreFailure {
			prefix += "-"
		}
		if c.Privileged {
			prefix += "+"
		}
		add(fmt.Sprintf("%s[%d]", c.Property, count[c.Property]), prefix+c.Path+" (arguments sha256 "+sum(strings.Join(c.Argv, "\x00"))+")")
		count[c.Property]++
	}
	return out
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (e *Evidence) gatherTasks(d Desired, o Observed) {
	e.Labels, e.Tasks, e.Tmp = []EvidenceLabel{}, []EvidenceTask{}, []EvidenceTmp{}
	if o.Scan == nil {
		e.Executable.Problem = "the unit has no process"
		return
	}
	labels := map[EvidenceLabel]int{}
	exe := map[int]string{}
	first := 0
	for _, t := range o.Scan.Tasks {
		if leftBehind(o.Unit, t) {
			continue // it is no program of the unit's
		}
		text := labelText(t)
		l := EvidenceLabel{Label: text, Problem: printable(t.Problem)}
		switch code, against := judgeTask(d, o, t); {
		case !against || code.Bearing() == Confined:
			l.Fits = Yes
		case code.Bearing() == NotConfined:
			l.Fits = No
		}
		labels[l]++
		if len(e.Tasks) < maxEvidenceTasks {
			e.Tasks = append(e.Tasks, EvidenceTask{PID: t.PID, TID: t.TID, Comm: printable(t.Comm), Exe: printable(t.Exe), Label: text})
		} else {
			e.MoreTasks++
		}
		exe[t.PID] = t.Exe
		if !t.Manager && (first == 0 || t.PID < first) {
			first = t.PID
		}
	}
	for _, l := range slices.SortedFunc(maps.Keys(labels), func(a, b EvidenceLabel) int {
		// What speaks against it is not to be what is left out.
		return cmp.Or(cmp.Compare(b.Fits, a.Fits), cmp.Compare(labels[b], labels[a]), cmp.Compare(a.Label, b.Label), cmp.Compare(a.Problem, b.Problem))
	}) {
		if len(e.Labels) == maxEvidenceLabels {
			e.MoreLabels++
			continue
		}
		n := labels[l]
		l.Count = n
		e.Labels = append(e.Labels, l)
	}
	views := map[TmpView]int{}
	for _, v := range o.Scan.Tmp {
		v.Tmp, v.VarTmp, v.Problem = printable(v.Tmp), printable(v.VarTmp), printable(v.Problem)
		views[v]++
	}
	for _, v := range slices.SortedFunc(maps.Keys(views), func(a, b TmpView) int {
		return cmp.Or(cmp.Compare(views[b], views[a]), cmp.Compare(a.Tmp, b.Tmp), cmp.Compare(a.VarTmp, b.VarTmp), cmp.Compare(a.Problem, b.Problem), cmp.Compare(yesNo(a.Ended), yesNo(b.Ended)))
	}) {
		if len(e.Tmp) == maxEvidenceLabels {
			e.MoreTmp++
			continue
		}
		e.Tmp = append(e.Tmp, EvidenceTmp{TmpView: v, Count: views[v]})
	}
	e.HostTmp = o.Scan.HostTmp
	e.Executable.PID, e.Executable.At = cmp.Or(o.Unit.MainPID, first), o.Scan.At
	e.Executable.Path = exe[e.Executable.PID]
	if e.Executable.PID == 0 {
		e.Executable.Problem = "the unit has no process"
	}
}

// labelText is the label as the kernel writes it.
func labelText(t Task) string {
	if t.Problem != "" || len(t.Label.Profiles) == 0 {
		return ""
	}
	return printable(t.Label.String())
}

// EvidenceCode names a link of the chain.
type EvidenceCode string

// The links, in the order in which they are gone through. Scripts match on them.
const (
	LinkRecords    EvidenceCode = "records"            // that are kept: each follows on the one before
	LinkStart      EvidenceCode = "start"              // the record is about the present one
	LinkAttachment EvidenceCode = "attachment"         // the unit is still attached, to the same profile
	LinkSource     EvidenceCode = "profile-source"     // the profile's text on disk
	LinkInclude    EvidenceCode = "include"            // what it includes
	LinkPolicy     EvidenceCode = "policy"             // what was compiled of them and accepted
	LinkKernel     EvidenceCode = "kernel-checksum"    // what the kernel runs
	LinkDropIn     EvidenceCode = "drop-in"            // the file
	LinkSettings   EvidenceCode = "settings"           // what systemd has in effect
	LinkProgram    EvidenceCode = "executable"         // that runs
	LinkOnDisk     EvidenceCode = "executable-on-disk" // that the next start would run
	LinkLabel      EvidenceCode = "label"              // of each task
	LinkTmp        EvidenceCode = "private-tmp"        // at each process
	LinkVerdict    EvidenceCode = "verdict"            // confined then and now
)

// EvidenceLink is one link of the chain, as it was found.
type EvidenceLink struct {
	Link EvidenceCode `json:"link"`
	// Holds: no is that something else was found, unknown that it could not be told.
	Holds Tri `json:"holds"`
	// What is the file, profile or setting that it is about.
	What string `json:"what,omitempty"`
	Old  string `json:"old,omitempty"` // as on record
	New  string `json:"new,omitempty"` // as it is
	Why  string `json:"why,omitempty"` // a sentence, where it does not hold or could not be told
}

// EvidenceNow is what a record made now would say, and what it would not.
type EvidenceNow struct {
	Evidence
	// Attached: an attachment names the unit.
	Attached bool
	// Texts are the files of the record's policies as they are on disk, by profile
	// file, in the place of Policies' Files.
	Texts map[string]EvidenceText
	// OnDisk is what lies now at the path of the record's executable.
	OnDisk EvidenceProgram
}

// EvidenceText is a profile's text on disk with all that it includes.
type EvidenceText struct {
	// Source is as in EvidencePolicy; "" where the text does not compile.
	Source string
	Files  []EvidenceFile
}

// EvidenceStatus is what became of the evidence for a unit.
type EvidenceStatus struct {
	Unit    string `json:"unit"`
	Profile string `json:"profile,omitempty"`
	Holds   Tri    `json:"holds"`
	Exit    Exit   `json:"exit"`
	// First is the first link that does not hold or, where there is none, the first
	// of which it could not be told.
	First *EvidenceLink  `json:"first,omitempty"`
	Links []EvidenceLink `json:"links"`
	// Newest is the last record, and Proof the one that was compared: the last of
	// the same start that says confined, if there is one.
	Newest  *EvidenceHead `json:"newest,omitempty"`
	Proof   *EvidenceHead `json:"proof,omitempty"`
	Records int           `json:"records"` // that are kept
}

// EvidenceHead names a record.
type EvidenceHead struct {
	Number       int       `json:"number"`
	SHA256       string    `json:"sha256"`
	File         string    `json:"file"`
	InvocationID string    `json:"invocationID"`
	Answer       Answer    `json:"answer"`
	At           time.Time `json:"at"`
}

// EvidenceReport is about the evidence for units.
type EvidenceReport struct {
	Version string           `json:"version"`
	Units   []EvidenceStatus `json:"units"`
	Missing []Missing        `json:"missing,omitempty"`
	At      time.Time        `json:"at"`
}

// ConcludeEvidence works out a status from its links.
func ConcludeEvidence(s EvidenceStatus) EvidenceStatus {
	s.Holds, s.Exit, s.First = Yes, ExitOK, nil
	for i, l := range s.Links {
		switch {
		case l.Holds == No && s.Holds != No:
			s.Holds, s.Exit, s.First = No, ExitNotConfined, &s.Links[i]
		case l.Holds != Yes && s.Holds == Yes:
			s.Holds, s.Exit, s.First = CouldNotTell, ExitUnknown, &s.Links[i]
		}
	}
	if len(s.Links) == 0 {
		s.Holds, s.Exit = CouldNotTell, ExitUnknown
	}
	return s
}

// maxLinks bounds what is told of one kind of link.
const maxLinks = 20

// CompareEvidence says of each link of the chain behind a record whether it still
// holds. newest is the unit's last record, which tells of the answer; proof is the
// one to compare with, see EvidenceStatus. Only the records themselves, LinkRecords,
// are for others to check.
func CompareEvidence(newest, proof Evidence, now EvidenceNow) []EvidenceLink {
	c := &comparison{}
	c.start(newest, now)
	c.attachment(proof, now)
	c.texts(proof, now)
	c.policies(proof, now)
	c.kernel(proof, now)
	if now.Attached {
		c.file(LinkDropIn, proof.DropIn, now.DropIn)
	} else {
		c.add(EvidenceLink{Link: LinkDropIn, What: proof.DropIn.Path, Why: "an attachment would say where it belongs, and there is none"})
	}
	c.done(LinkDropIn, proof.DropIn.Path)
	c.settings(proof, now)
	c.program(LinkProgram, proof.Executable, now.Executable)
	c.program(LinkOnDisk, proof.Executable, now.OnDisk)
	c.labels(now)
	c.tmp(proof, now)
	c.verdict(newest, now)
	return c.links
}

// comparison collects links. What holds is one link for each code; what does not
// is one each.
type comparison struct {
	links []EvidenceLink
	more  int  // of the present code, that were left out
	all   bool // none is
}

func (c *comparison) add(l EvidenceLink) {
	n := 0
	for _, have := range c.links {
		if have.Link == l.Link {
			n++
		}
	}
	if n >= maxLinks && !c.all {
		c.more++
		return
	}
	c.links = append(c.links, l)
}

// done ends what there is to say about a code.
func (c *comparison) done(code EvidenceCode, what string) {
	last := len(c.links) - 1
	switch {
	case last < 0 || c.links[last].Link != code:
		c.links = append(c.links, EvidenceLink{Link: code, Holds: Yes, What: what})
	case c.more > 0:
		c.links[last].Why = strings.TrimPrefix(fmt.Sprintf("%s; and %d more", c.links[last].Why, c.more), "; ")
	}
	c.more = 0
}

func (c *comparison) start(newest Evidence, now EvidenceNow) {
	l := EvidenceLink{Link: LinkStart, What: now.Unit, Old: newest.Verdict.InvocationID, New: now.Verdict.InvocationID}
	switch {
	case l.New == "":
		l.Why = "systemd does not tell which start runs"
	case l.Old != l.New:
		l.Why = "there is no record of this start; the last one is about another"
	case newest.Boot != now.Boot:
		l.Old, l.New, l.Why = "boot "+newest.Boot, "boot "+now.Boot, "there is no record of this boot"
	default:
		l.Holds = Yes
	}
	c.add(l)
}

func (c *comparison) attachment(proof Evidence, now EvidenceNow) {
	l := EvidenceLink{Link: LinkAttachment, Holds: Yes, What: proof.Unit, Old: proof.Verdict.Profile, New: now.Verdict.Profile}
	switch {
	case !now.Attached:
		l.Holds, l.New, l.Why = No, "", "no attachment names the unit any more"
	case l.Old != l.New:
		l.Holds, l.Why = No, "the unit is attached to another profile by now"
	}
	c.add(l)
}

// texts compares the profile's text and its includes as they are on disk. The
// accepted policy may be another one than they say, on purpose; that is for who
// reads this to judge.
func (c *comparison) texts(proof Evidence, now EvidenceNow) {
	var includes []EvidenceLink
	for _, p := range proof.Policies {
		if p.Problem != "" {
			c.add(EvidenceLink{Link: LinkSource, What: p.File, Why: "the record does not have it: " + p.Problem})
			continue
		}
		text, read := now.Texts[p.File]
		if !read {
			c.add(EvidenceLink{Link: LinkSource, What: p.File, Why: "it was not read"})
			continue
		}
		files := map[string]EvidenceFile{}
		for _, f := range text.Files {
			files[f.Path] = f
		}
		sub, told := comparison{all: true}, false
		for _, f := range p.Files {
			code := LinkInclude
			if f.Path == p.File {
				code = LinkSource
			}
			sub.file(code, f, files[f.Path])
		}
		for _, l := range sub.links {
			told = true
			if l.Link == LinkSource {
				c.add(l)
			} else {
				includes = append(includes, l)
			}
		}
		if !told && text.Source != "" && text.Source != p.Source {
			includes = append(includes, EvidenceLink{Link: LinkInclude, Holds: No, What: p.File, Old: "sha256 " + p.Source, New: "sha256 " + text.Source,
				Why: "the file includes others than it did, such as one that was added to a directory"})
		} else if !told && text.Source == "" {
			includes = append(includes, EvidenceLink{Link: LinkInclude, What: p.File, Old: "sha256 " + p.Source,
				Why: "every file is as it was, and whether it includes others by now could not be told: it does not compile"})
		}
	}
	if len(proof.Policies) == 0 {
		c.add(EvidenceLink{Link: LinkSource, Why: "no policy was accepted for the unit"})
	}
	what := fileNames(proof.Policies)
	c.done(LinkSource, what)
	for _, l := range includes {
		c.add(l)
	}
	n := 0
	for _, p := range proof.Policies {
		n += max(0, len(p.Files)-1)
	}
	c.done(LinkInclude, fmt.Sprintf("%d files", n))
}

func fileNames(policies []EvidencePolicy) string {
	var names []string
	for _, p := range policies {
		names = append(names, p.File)
	}
	return strings.Join(names, ", ")
}

func sha256Text(sum string) string {
	if sum == "" {
		return ""
	}
	return "sha256 " + sum
}

// file adds what there is to say about a file that is not as it was.
func (c *comparison) file(code EvidenceCode, old, now EvidenceFile) {
	l := EvidenceLink{Link: code, What: old.Path, Old: sha256Text(old.SHA256), New: sha256Text(now.SHA256)}
	switch {
	case old.Gone && now.Gone:
		return
	case old.SHA256 == "" && !old.Gone:
		l.Why = "the record does not have it: " + orUnsaid(old.Problem)
	case now.Gone:
		l.Holds, l.Why = No, "it is gone"
	case now.SHA256 == "":
		l.Why = "it could not be read: " + orUnsaid(now.Problem)
	case old.Path != now.Path:
		l.Holds, l.Why = No, "it is "+now.Path+" by now"
	case old.SHA256 != now.SHA256:
		l.Holds, l.Why = No, "it was changed"
	default:
		return
	}
	c.add(l)
}

func (c *comparison) policies(proof Evidence, now EvidenceNow) {
	accepted := map[string]EvidencePolicy{}
	for _, p := range now.Policies {
		accepted[p.File] = p
	}
	for _, old := range proof.Policies {
		p, has := accepted[old.File]
		delete(accepted, old.File)
		l := EvidenceLink{Link: LinkPolicy, What: old.File, Old: sha256Text(old.Compiled), New: sha256Text(p.Compiled)}
		switch {
		case old.Compiled == "":
			l.Why = "the record does not have it: " + orUnsaid(old.Problem)
		case !has:
			l.Holds, l.Why = No, "no policy of that file is accepted any more"
		case p.Compiled == "":
			l.Why = "the accepted policy could not be read: " + orUnsaid(p.Problem)
		case p.Compiled != old.Compiled:
			l.Holds, l.Why = No, "another policy is accepted by now"
		default:
			continue
		}
		c.add(l)
	}
	for _, file := range slices.Sorted(maps.Keys(accepted)) {
		c.add(EvidenceLink{Link: LinkPolicy, Holds: No, What: file, New: sha256Text(accepted[file].Compiled), Why: "a policy of that file is accepted by now, and was not"})
	}
	if len(proof.Policies) == 0 {
		c.add(EvidenceLink{Link: LinkPolicy, Why: "no policy was accepted for the unit"})
	}
	c.done(LinkPolicy, fileNames(proof.Policies))
}

// kernel compares what the kernel runs with what the record says was accepted.
func (c *comparison) kernel(proof Evidence, now EvidenceNow) {
	live := map[string]EvidenceProfile{}
	for _, p := range now.Live {
		if now.LeftTo[TopOf(p.Name)] == "" {
			live[p.Name] = p
		}
	}
	var names []string
	for _, old := range proof.Live {
		if now.LeftTo[TopOf(old.Name)] != "" {
			continue
		}
		p := live[old.Name]
		delete(live, old.Name)
		want := cmp.Or(old.Accepted, old.Checksum)
		names = append(names, old.Name)
		l := EvidenceLink{Link: LinkKernel, What: old.Name, Old: want, New: p.Checksum}
		switch {
		case want == "":
			l.Why = "the record does not have it"
		case now.LiveProblem != "":
			l.Why = "the loaded policy could not be read: " + now.LiveProblem
		case p.Mode == "":
			l.Holds, l.Why = No, "the profile is not loaded"
		case p.Checksum == "":
			l.Why = "the kernel gives no checksum"
		case p.Checksum != want:
			l.Holds, l.Why = No, "the kernel runs another policy"
		case p.Mode != old.Mode:
			l.Holds, l.Old, l.New, l.Why = No, string(old.Mode), string(p.Mode), "the profile is in another mode"
		default:
			continue
		}
		c.add(l)
	}
	for _, name := range slices.Sorted(maps.Keys(live)) {
		if live[name].Mode == "" {
			continue // accepted by now, which LinkPolicy tells, and not loaded
		}
		c.add(EvidenceLink{Link: LinkKernel, Holds: No, What: name, New: live[name].Checksum, Why: "the kernel has loaded it, and had not"})
	}
	if len(proof.Live) == 0 || proof.LiveProblem != "" {
		c.add(EvidenceLink{Link: LinkKernel, Why: "the record does not have what was loaded: " + orUnsaid(proof.LiveProblem)})
	}
	c.done(LinkKernel, strings.Join(names[:min(len(names), maxLinks)], ", "))
}

func (c *comparison) settings(proof Evidence, now EvidenceNow) {
	current := map[string]EvidenceSetting{}
	for _, s := range now.Settings {
		current[s.Key] = s
	}
	if len(proof.Settings) == 0 || len(now.Settings) == 0 {
		c.add(EvidenceLink{Link: LinkSettings, Why: "systemd's settings could not be read, or are not on record"})
		c.done(LinkSettings, "")
		return
	}
	for _, old := range proof.Settings {
		s, has := current[old.Key]
		delete(current, old.Key)
		if has && s.Value == old.Value {
			continue
		}
		why := "it was changed"
		if s.Where != "" {
			why = "it was changed, by " + s.Where
		}
		c.add(EvidenceLink{Link: LinkSettings, Holds: No, What: old.Key + "=", Old: old.Value, New: s.Value, Why: why})
	}
	for _, s := range now.Settings {
		if _, left := current[s.Key]; left {
			c.add(EvidenceLink{Link: LinkSettings, Holds: No, What: s.Key + "=", New: s.Value, Why: "it was not there"})
		}
	}
	c.done(LinkSettings, fmt.Sprintf("%d settings", len(proof.Settings)))
}

func (c *comparison) program(code EvidenceCode, old, now EvidenceProgram) {
	l := EvidenceLink{Link: code, What: old.Path, Old: programText(old), New: programText(now)}
	switch {
	case old.SHA256 == "":
		l.Why = "the record does not have it: " + orUnsaid(old.Problem)
	case now.Gone && code == LinkOnDisk:
		l.Holds, l.Why = No, "there is no such file any more; what runs is not on disk"
	case now.SHA256 == "":
		l.Why = "it could not be read: " + orUnsaid(now.Problem)
	case old.SHA256 != now.SHA256 && code == LinkOnDisk:
		l.Holds, l.Why = No, "the file was changed since the start; the next start runs another program"
	case old.SHA256 != now.SHA256:
		l.Holds, l.Why = No, "the process runs another program"
	default:
		l = EvidenceLink{Link: code, Holds: Yes, What: old.Path}
	}
	c.add(l)
}

func programText(p EvidenceProgram) string {
	if p.SHA256 == "" {
		return ""
	}
	s := "sha256 " + p.SHA256
	if p.BuildID != "" {
		s += " build-id " + p.BuildID
	}
	if p.Package != "" {
		s += " " + p.Package + " " + p.Version
	}
	return s
}

func (c *comparison) labels(now EvidenceNow) {
	for _, t := range now.Labels {
		l := EvidenceLink{Link: LinkLabel, What: count(t.Count, "task", "tasks"), Old: now.Verdict.Profile, New: t.Label}
		switch t.Fits {
		case Yes:
			continue
		case No:
			l.Holds, l.Why = No, "it is not the profile in a mode that confines"
		default:
			l.Why = "the label could not be read, or the task is on its way to a program: " + orUnsaid(t.Problem)
		}
		c.add(l)
	}
	switch {
	case len(now.Labels) == 0:
		c.add(EvidenceLink{Link: LinkLabel, Old: now.Verdict.Profile, Why: "the unit has no task"})
	case now.MoreLabels > 0:
		c.add(EvidenceLink{Link: LinkLabel, Why: count(now.MoreLabels, "more label was", "more labels were") + " not looked at"})
	}
	c.done(LinkLabel, now.Verdict.Profile)
}

func count(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func (c *comparison) tmp(proof Evidence, now EvidenceNow) {
	old, is := proof.Verdict.PrivateTmp, now.Verdict.PrivateTmp
	l := EvidenceLink{Link: LinkTmp, Old: old.String(), New: is.String()}
	switch {
	case old == CouldNotTell:
		l.Why = "the record does not have it"
	case is == CouldNotTell:
		l.Why = "where /tmp of the processes is could not be told"
	case old == Yes && is == No:
		l.Holds, l.Why = No, "a process sees the host's /tmp or /var/tmp"
	default:
		l.Holds = Yes
	}
	c.add(l)
}

func (c *comparison) verdict(newest Evidence, now EvidenceNow) {
	l := EvidenceLink{Link: LinkVerdict, Holds: Yes, What: now.Unit, Old: newest.Verdict.Answer.String(), New: now.Verdict.Answer.String()}
	for i, v := range []Verdict{newest.Verdict, now.Verdict} {
		when := []string{"on record", "now"}[i]
		switch {
		case v.Answer == NotConfined:
			l.Holds = No
		case v.Answer != Confined && l.Holds == Yes:
			l.Holds = CouldNotTell
		default:
			continue
		}
		l.Why = "the verdict " + when + " is " + v.Answer.String()
		if len(v.Reasons) > 0 {
			l.Why += ": " + v.Reasons[0].String()
		}
	}
	c.add(l)
}
