package gate

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// Gate asks compiled policies. What was answered is kept while the policy, the
// attachment and what is asked of the unit are the same; what single assertions
// came to while the policy is the same, for all units that share it.
type Gate struct {
	// Facts looks at files and at the unit's main process. Where it is nil nothing is
	// known of them.
	Facts func(u attach.Unit, paths []string) attach.Facts
	bytes func(id string) (attach.Compiled, error)

	mu      sync.Mutex
	read    map[string]*policy
	answers map[digest][]attach.Finding
	// lists are those of answers, each once: units that share a policy mostly have the
	// same findings. Nothing in them is ever changed.
	lists map[digest][]attach.Finding
	owned map[string][]string // by policy: see ownersOnly

	patterns map[string]*policydb.Pattern // with the automata that were made of them

	searches memo[policydb.Result]
	verdicts memo[Verdict]
	ways     memo[policydb.Answer]
}

// Bounds on what is kept; when one is reached it begins anew.
const (
	maxRead     = 64
	maxAnswers  = 4096
	maxPatterns = 256
	maxFound    = 4096 // of each kind
)

// New makes a gate. get reads a policy that is kept without its bytes.
func New(get func(id string) (attach.Compiled, error)) *Gate {
	return &Gate{bytes: get}
}

// LetGo forgets the policies that were read and the automata of patterns, which are
// large, and keeps the answers.
func (g *Gate) LetGo() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.read, g.patterns = nil, nil
}

// pattern is policydb.ParsePattern. Profiles are asked about the same patterns, and
// to make the automaton of one can cost more than the search.
func (g *Gate) pattern(text string) (*policydb.Pattern, error) {
	g.mu.Lock()
	known := g.patterns[text]
	g.mu.Unlock()
	if known != nil {
		return known, nil
	}
	p, err := policydb.ParsePattern(text)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.patterns == nil || len(g.patterns) >= maxPatterns {
		g.patterns = map[string]*policydb.Pattern{}
	}
	if known = g.patterns[text]; known != nil {
		return known, nil
	}
	g.patterns[text] = p
	return p, nil
}

// Question is what is asked about one unit and its policy.
type Question struct {
	Desired attach.Desired
	// Unit may be without a name: then nothing is known of it, and nothing that is
	// about it is asked.
	Unit attach.Unit
	// Compiled are the policies of the files that define the unit's profiles.
	Compiled []attach.Compiled

	facts attach.Facts
}

// Check implements reconcile.Gate.
func (g *Gate) Check(_ context.Context, d attach.Desired, u attach.Unit, compiled []attach.Compiled) []attach.Finding {
	return g.Ask(Question{Desired: d, Unit: u, Compiled: compiled})
}

// Ask gives all that speaks against the policy, worst first.
func (g *Gate) Ask(q Question) []attach.Finding {
	if q.Desired.Attachment == nil || len(q.Compiled) == 0 {
		return nil
	}
	q.facts = g.look(q)
	key := q.key()
	g.mu.Lock()
	known, ok := g.answers[key]
	g.mu.Unlock()
	if ok {
		return slices.Clone(known)
	}
	a := &asking{Question: q, gate: g}
	if file, err := a.readAll(); err != nil {
		return []attach.Finding{{Severity: attach.Error, Reason: attach.Because(attach.AssertionUnknown,
			"cannot read the compiled policy of %s: %v", file, err).At(file)}}
	}
	if !a.closure() {
		return []attach.Finding{{Severity: attach.Error, Profile: q.Desired.Profile, Reason: attach.Because(attach.AssertionUnknown,
			"the compiled policy of %s has no profile %s, so nothing can be asked of it", q.Compiled[0].File, q.Desired.Profile).At(q.Compiled[0].File)}}
	}
	a.builtIn()
	a.unit()
	a.assertions()
	found := a.findings()
	list := digestOf(found)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.answers == nil || len(g.answers) >= maxAnswers {
		g.answers, g.lists = map[digest][]attach.Finding{}, map[digest][]attach.Finding{}
	}
	if same := g.lists[list]; slices.Equal(same, found) {
		found = same
	}
	g.answers[key], g.lists[list] = found, found
	return slices.Clone(found)
}

// digest tells values from each other by all that their JSON has.
type digest [sha256.Size]byte

func digestOf(values ...any) (d digest) {
	h := sha256.New()
	e := json.NewEncoder(h)
	for _, v := range values {
		_ = e.Encode(v)
	}
	h.Sum(d[:0])
	return d
}

// key tells questions apart that may have other answers.
func (q Question) key() digest {
	var of [][]string
	for _, c := range q.Compiled {
		of = append(of, []string{c.ID, c.Environment})
	}
	s := q.Unit.Settings
	s.Exec = slices.Clone(s.Exec)
	for i := range s.Exec {
		s.Exec[i].PID = 0
	}
	return digestOf(of, q.Desired.Unit, q.Desired.Profile, q.Desired.Attachment, q.Unit.ID, q.Unit.Type, q.Unit.Found(), s, q.facts)
}

// policy is one that was read.
type policy struct {
	key      string
	profiles []policydb.Profile
	// text is where the rules stand; nil where the texts are not known.
	text *rules.Text
}

// memo keeps what walking a profile's automaton came to: it costs milliseconds,
// and many units ask the same of one policy. It outlasts the policy itself, which
// is let go of when the daemon rests.
type memo[T any] struct {
	mu    sync.Mutex
	known map[search]T
}

// search is one of a profile, by the words of its question. The policy's key
// stands for its bytes: for its texts, and the parser and the kernel that they were
// compiled by and for.
type search struct{ policy, profile, question string }

func (m *memo[T]) get(s search, find func() T) T {
	m.mu.Lock()
	r, ok := m.known[s]
	m.mu.Unlock()
	if ok {
		return r
	}
	r = find()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.known == nil || len(m.known) >= maxFound {
		m.known = map[search]T{}
	}
	m.known[s] = r
	return r
}

func keyOf(c attach.Compiled) string { return c.ID + " " + c.Environment }

func (g *Gate) policy(c attach.Compiled) (*policy, error) {
	key := keyOf(c)
	g.mu.Lock()
	known, ok := g.read[key]
	g.mu.Unlock()
	if ok {
		return known, nil
	}
	if c.Blob == nil {
		kept, err := g.bytes(c.ID)
		if err != nil {
			return nil, err
		}
		c.Blob, c.Sources = kept.Blob, kept.Sources
	}
	p := &policy{key: key}
	var err error
	if p.profiles, err = policydb.Parse(c.Blob); err != nil {
		return nil, err
	}
	if len(c.Sources) > 0 {
		// Without it the answers are the same; only the line is not told.
		p.text, _ = rules.Read(c.Sources, c.File, "")
	}
	g.mu.Lock()
	if g.read == nil || len(g.read) >= maxRead {
		g.read = map[string]*policy{}
	}
	g.read[key] = p
	g.mu.Unlock()
	return p, nil
}

// asking is one question on its way.
type asking struct {
	Question
	gate     *Gate
	policies []attach.Compiled
	read     []*policy // of policies
	all      []*policydb.Profile
	// asked are the profiles under which the unit's tasks can come to run, its own
	// first.
	asked []*policydb.Profile
	whole map[*policydb.Profile]bool // that allow every file, which is said
	found []attach.Finding
}

// readAll reads the policies that are asked. file is the one that could not be read.
func (a *asking) readAll() (file string, err error) {
	for _, c := range a.Compiled {
		read, err := a.gate.policy(c)
		if err != nil {
			return c.File, err
		}
		for i := range read.profiles {
			a.all = append(a.all, &read.profiles[i])
		}
		a.policies = append(a.policies, c)
		a.read = append(a.read, read)
	}
	return "", nil
}

// search asks once for all units that share the policy.
func (a *asking) search(p *policydb.Profile, question string, find func() policydb.Result) policydb.Result {
	return a.gate.searches.get(a.about(p, question), find)
}

// verdict asks an assertion once for all units that share the policy.
func (a *asking) verdict(p *policydb.Profile, as attach.Assertion) Verdict {
	as.Line = 0
	return a.gate.verdicts.get(a.about(p, fmt.Sprintf("%+v", as)), func() Verdict { return Ask(p, as) })
}

func (a *asking) about(p *policydb.Profile, question string) search {
	s := search{profile: p.Name, question: question}
	for _, read := range a.read {
		for i := range read.profiles {
			if &read.profiles[i] == p {
				s.policy = read.key
			}
		}
	}
	return s
}

// file is where a profile stands.
func (a *asking) file(p *policydb.Profile) string {
	for _, c := range a.policies {
		for _, q := range c.Profiles {
			if q.Name == p.Name && q.Line > 0 {
				return fmt.Sprintf("%s:%d", c.File, q.Line)
			}
		}
	}
	return a.text(p)
}

// text is the file that a profile stands in.
func (a *asking) text(p *policydb.Profile) string {
	for _, c := range a.policies {
		if slices.ContainsFunc(c.Profiles, func(q attach.Profile) bool { return q.Name == p.Name }) {
			return c.File
		}
	}
	return a.policies[0].File
}

// by finds the rule of a profile that grants what q asks: "FILE:LINE" and its
// text.
func (a *asking) by(p *policydb.Profile, q *rules.Question) (where, rule string) {
	for _, read := range a.read {
		if where, rule = read.granting(p.Name, q); rule != "" {
			return where, rule
		}
	}
	return "", ""
}

// granting finds the rule of a profile that grants what q asks, "" where the text does
// not tell.
func (p *policy) granting(profile string, q *rules.Question) (where, rule string) {
	if q == nil || p.text == nil {
		return "", ""
	}
	grants := p.text.Granting(profile, *q)
	if len(grants) == 0 {
		return "", ""
	}
	return fmt.Sprintf("%s:%d", grants[0].File, grants[0].Line), grants[0].Raw
}

// find adds what speaks against the policy, unless the attachment waives it. q
// asks for the rule that grants it; nil where no single rule does.
func (a *asking) find(s attach.Severity, p *policydb.Profile, witness string, q *rules.Question, r attach.Reason) {
	if a.Desired.Attachment.Waived(r.Code) != nil {
		return
	}
	where, rule := a.by(p, q)
	switch {
	case rule != "" && r.Where != "": // an assertion, which stands elsewhere
		r = withDetail(r, "%s, by the rule %q (%s)", r.Detail, rule, where)
	case rule != "":
		r = withDetail(r, "%s, by the rule %q", r.Detail, rule).At(where)
	case r.Where == "":
		r = r.At(a.file(p))
	}
	if r.Next == "" {
		r = r.WithNext(ways[r.Code])
	}
	f := attach.Finding{Severity: s, Profile: p.Name, Witness: witness, Reason: r}
	for _, old := range a.found {
		if old.Reason == r {
			return
		}
	}
	a.found = append(a.found, f)
}

// ways out, where the finding has none of its own.
var ways = map[attach.Code]string{
	attach.MayWriteTmp:      "take the rule out, allow a directory of its own instead, or give the unit PrivateTmp=yes",
	attach.MayWriteSelf:     "take the write permission off the rule",
	attach.MayWritePolicy:   "take the rule out, or put a deny rule beside it",
	attach.MayWriteKeys:     "take the rule out, or put owner before it",
	attach.MayWriteSysctl:   "allow the single file that is needed",
	attach.MayLeave:         "use ix (stay inside), Cx (a child profile) or Px (another profile)",
	attach.MayEverything:    "name what the service needs instead",
	attach.MayAskOthers:     "take the rule out",
	attach.MayTrace:         "name a peer that is confined in the ptrace rule, allow it to read alone, or take the capability out",
	attach.MayConnect:       "run the unit as a user of its own (User=, DynamicUser=), or keep unix sockets from it: deny network unix,",
	attach.MayUserns:        "take the rule out unless the program is a browser or a container engine",
	attach.MayLeaveGroup:    "say ProtectControlGroups=yes in the unit, or take the rule out",
	attach.MayNotDetached:   "add flags=(attach_disconnected) to the profile if such denials show",
	attach.MayNotOwn:        "take owner off the rule, or give the file to the unit's user",
	attach.MayOtherFamilies: "take the rule out, or the family into RestrictAddressFamilies=",
	attach.AssertionFailed:  "correct the profile, or the assertion",
}

func withDetail(r attach.Reason, format string, args ...any) attach.Reason {
	r.Detail = attach.Because(r.Code, format, args...).Detail
	return r
}

// files asks for the rule that grants something on a path.
func files(path string, perm policydb.Perm, as policydb.Who) *rules.Question {
	return &rules.Question{Class: rules.ClassFile, Path: path, Perm: perm, As: as}
}

// execAs asks for the rule that grants an exec that was found.
func execAs(r policydb.Result) *rules.Question {
	return &rules.Question{Class: rules.ClassFile, Path: r.Witness, Perm: policydb.Exec, As: r.As, Exec: &r.Transition}
}

// changeTo asks for the rule that lets a task change to a profile by itself.
func changeTo(name string) *rules.Question {
	return &rules.Question{Class: rules.ClassChangeProfile, Path: name}
}

func (a *asking) findings() []attach.Finding {
	for _, w := range a.Desired.Attachment.Waivers {
		a.found = append(a.found, attach.Finding{Severity: attach.Note, Reason: attach.Because(attach.AssertionWaived, "%s does not count: %s", w.Code, w.Reason).
			At(fmt.Sprintf("%s:%d", a.Desired.Attachment.Source, w.Line))})
	}
	slices.SortStableFunc(a.found, func(x, y attach.Finding) int { return int(y.Severity) - int(x.Severity) })
	return a.found
}

// quoted is a path that came from anybody, for a sentence.
func quoted(path string) string {
	if strings.ContainsAny(path, " \t,;") {
		return fmt.Sprintf("%q", path)
	}
	return path
}
