package rules

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// Bounds on one text.
const (
	maxProfiles = 4096
	maxRules    = 1 << 18
)

// ProfileDir is where the parser looks for includes in "<>".
const ProfileDir = "/etc/apparmor.d"

// Text is what a profile file says, includes put in place.
type Text struct {
	File string
	// Profiles are those of the file, children and hats too, in its order.
	Profiles []*Profile
	// Problems says what could not be read: includes that are not there, the end
	// of a text that is too large. With one of them a rule may be missing.
	Problems []string
}

// Profile is one profile of a text.
type Profile struct {
	Name string // "parent//child" for children and hats
	// Short is Name with no more than its last parent. Parser 3 calls children of
	// children so when it compiles them, later ones do not
	// (sd_serialize_profile in parser/parser_interface.c).
	Short     string
	Namespace string // "" none
	File      string // where its head stands
	Line      int
	// Attachment is the pattern of programs, variables put in; "" none.
	Attachment string
	Flags      []string
	Hat        bool
	Rules      []*Rule

	own    string // its name without its parents'
	parent *Profile
}

// Profile is the one of that name, as the compiled policy has it; nil if there
// is none.
func (t *Text) Profile(name string) *Profile {
	var short *Profile
	for _, p := range t.Profiles {
		switch {
		case p.Name == name:
			return p
		case p.Short == name && short == nil:
			short = p
		}
	}
	return short
}

// Read reads a profile file. sources has the texts by absolute path, and a path
// that ends with a "/" for each directory that is included. base is where
// includes in "<>" are looked for, "" ProfileDir.
//
// A text that the parser would refuse is read as far as it makes sense.
func Read(sources map[string][]byte, file, base string) (*Text, error) {
	top, ok := sources[file]
	if !ok {
		return nil, fmt.Errorf("cannot read the rules of %s: its text is not there", file)
	}
	if base == "" {
		base = ProfileDir
	}
	r := &reader{
		text: &Text{File: file}, sources: sources, base: base,
		vars: newVariables(), patterns: map[string]*pattern{}, seen: map[string]bool{},
	}
	if !Walk(File{file, string(top)}, r.include, r) {
		r.problem("%s: %s", file, TooLarge())
	}
	r.finish()
	return r.text, nil
}

// reader is the Visitor that makes a Text.
type reader struct {
	text    *Text
	sources map[string][]byte
	base    string
	vars    *variables
	aliases []alias
	blocks  []scope
	rules   int
	// seen are the files that were included into the profile that is open, or
	// before any. An "if" that does not hold counts as well.
	seen map[string]bool
	// last is what the "if" was whose "else" may follow.
	last *condition
	// patterns are shared, as abstractions are.
	patterns map[string]*pattern
}

// alias is an alias rule.
type alias struct{ from, to string }

// scope is an open brace.
type scope struct {
	profile *Profile // nil outside
	opens   bool     // the brace is the profile's own
	q       Qualifiers
	// qualified: within qualifiers the parser keeps nothing but file rules.
	qualified bool
	// off: a condition does not hold; maybe: one is not understood; within: there
	// is one at all.
	off, maybe, within bool
	cond               *condition
	seen               map[string]bool // of what is around a profile
}

// condition is an "if" with what follows.
type condition struct {
	taken truth // a branch was
}

func (r *reader) problem(format string, args ...any) {
	if len(r.text.Problems) < 100 {
		r.text.Problems = append(r.text.Problems, fmt.Sprintf(format, args...))
	}
}

// include gives the files that an include stands for (include_filename in
// parser/parser_lex.l). One that was there already in this profile is passed
// over, but for those in a directory.
func (r *reader) include(t Token) []File {
	if t.Text == "" {
		return nil
	}
	full := t.Text
	if t.Angle || !path.IsAbs(full) {
		full = path.Join(r.base, full)
	}
	full = path.Clean(full)
	if data, ok := r.sources[full]; ok {
		if r.seen[full] {
			return nil
		}
		r.seen[full] = true
		return []File{{full, string(data)}}
	}
	var names []string
	_, there := r.sources[strings.TrimSuffix(full, "/")+"/"]
	for p := range r.sources {
		if there && path.Dir(p) == full && !strings.HasSuffix(p, "/") {
			names = append(names, p)
		}
	}
	if !there && !t.IfExists {
		r.problem("%s is included and not there", full)
	}
	slices.Sort(names)
	out := make([]File, len(names))
	for i, p := range names {
		out[i] = File{p, string(r.sources[p])}
	}
	return out
}

func (r *reader) current() scope {
	if len(r.blocks) == 0 {
		return scope{}
	}
	return r.blocks[len(r.blocks)-1]
}

// Assign takes a variable.
func (r *reader) Assign(t Token) { r.vars.assign(t) }

// Close takes a "}".
func (r *reader) Close() {
	if len(r.blocks) == 0 {
		return
	}
	b := r.current()
	r.blocks = r.blocks[:len(r.blocks)-1]
	r.last = b.cond
	if b.opens {
		r.seen = b.seen
	}
}

// Open takes a "{".
func (r *reader) Open(s Statement) {
	cur := r.current()
	b := cur
	b.opens, b.cond, b.seen = false, nil, nil
	last := r.last
	r.last = nil
	rest, q := ReadQualifiers(s.Tokens)
	switch {
	case len(rest) == 0:
		// A brace without anything before it is the same to the parser.
		b.qualified, b.q = true, cur.q.and(q)
	case rest[0].Kind == Word && (rest[0].Text == "if" || rest[0].Text == "else"):
		r.condition(&b, rest, last)
	default:
		r.head(&b, rest, s, cur)
	}
	r.blocks = append(r.blocks, b)
}

// condition opens a branch.
func (r *reader) condition(b *scope, words []Token, last *condition) {
	b.within = true
	c := &condition{}
	holds := yes
	if words[0].Text == "else" {
		if last == nil {
			b.maybe = true
			b.cond = c
			return
		}
		c.taken = last.taken
		words = words[1:]
	}
	if len(words) > 0 && words[0].Text == "if" {
		holds = r.vars.condition(words[1:])
	}
	switch {
	case c.taken == yes || holds == no:
		b.off = true
	case c.taken == unknown || holds == unknown:
		b.maybe = true
	}
	c.taken = c.taken.or(holds)
	b.cond = c
}

// head opens a profile or hat.
func (r *reader) head(b *scope, words []Token, s Statement, cur scope) {
	hat := words[0].Is("^") || words[0].Kind == Word && words[0].Text == "hat"
	if hat || words[0].Kind == Word && words[0].Text == "profile" {
		words = words[1:]
	}
	if len(words) == 0 || words[0].Kind != Word && words[0].Kind != Quoted {
		return
	}
	if len(r.text.Profiles) >= maxProfiles {
		r.problem("%s: it has more than %d profiles", r.text.File, maxProfiles)
		return
	}
	p := &Profile{File: s.File.Path, Line: words[0].Line, Hat: hat, Flags: Flags(words[1:])}
	raw := words[0].Text
	if rest, ok := strings.CutPrefix(raw, ":"); ok {
		if ns, name, ok := strings.Cut(rest, ":"); ok {
			p.Namespace, raw = ns, strings.TrimPrefix(name, "//")
		}
	}
	p.Name, p.own, p.parent = raw, raw, cur.profile
	if cur.profile != nil {
		p.Name = cur.profile.Name + "//" + raw
	} else if IsPath(raw) {
		p.Attachment = raw
	}
	if len(words) > 1 && (words[1].Kind == Word || words[1].Kind == Quoted) && IsPath(words[1].Text) {
		p.Attachment = words[1].Text
	}
	*b = scope{profile: p, opens: true, seen: r.seen, off: cur.off, maybe: cur.maybe, within: cur.within}
	r.seen = map[string]bool{}
	if !b.off {
		r.text.Profiles = append(r.text.Profiles, p)
	}
}

// and joins the qualifiers of a block with those of what is in it.
func (q Qualifiers) and(in Qualifiers) Qualifiers {
	in.Deny = in.Deny || q.Deny
	in.Audit = in.Audit || q.Audit
	in.Prompt = in.Prompt || q.Prompt
	in.Owner = in.Owner || q.Owner
	in.Other = in.Other || q.Other
	return in
}

// Rule takes a rule.
func (r *reader) Rule(s Statement) {
	r.last = nil
	b := r.current()
	rest, q := ReadQualifiers(s.Tokens)
	if b.profile == nil {
		if len(rest) == 4 && rest[0].Kind == Word && rest[0].Text == "alias" && rest[2].Kind == Arrow {
			r.aliases = append(r.aliases, alias{rest[1].Text, rest[3].Text})
		}
		return
	}
	if b.off || len(s.Tokens) == 0 {
		return
	}
	if r.rules++; r.rules > maxRules {
		if r.rules == maxRules+1 {
			r.problem("%s: it has more than %d rules", r.text.File, maxRules)
		}
		return
	}
	q = b.q.and(q)
	rule := &Rule{
		File: s.File.Path, Line: s.Line(), Raw: raw(s),
		Deny: q.Deny, Audit: q.Audit, Priority: q.Priority, Who: policydb.Either,
	}
	switch {
	case q.Owner && q.Other:
		rule.Who = 0
	case q.Owner:
		rule.Who = policydb.Owner
	case q.Other:
		rule.Who = policydb.Other
	}
	rule.parse(rest, q)
	if b.maybe {
		rule.doubt("it is behind a condition that is not understood")
	}
	if q.Prompt {
		rule.doubt("somebody is asked first")
	}
	if rule.Class != ClassFile {
		switch {
		case b.qualified:
			// The parser takes the files' rules out of such a block, and throws
			// the rest away (rules: rules opt_prefix block in
			// parser/parser_yacc.y).
			rule.Dropped = true
		case b.within && rule.Class != ClassCapability && rule.Class != ClassChangeProfile:
			// merge_policy of parser 3 forgets some of them.
			rule.doubt("it is behind a condition, where some parsers pass over rules of its class")
		}
	}
	if rule.Class == ClassChangeProfile && b.qualified {
		rule.Dropped = false // a file rule to the parser
	}
	b.profile.Rules = append(b.profile.Rules, rule)
}

// raw is the text of a rule as it stands in its file, on one line.
func raw(s Statement) string {
	first, last := s.Tokens[0], s.Tokens[len(s.Tokens)-1]
	if first.Start >= 0 && first.Start < last.Stop && last.Stop < len(s.File.Data) && s.File.Data[last.Stop] == ',' {
		if t := s.File.Data[first.Start : last.Stop+1]; len(t) <= 512 && !strings.ContainsAny(t, "\n\r#") {
			return strings.ToValidUTF8(t, "?")
		}
	}
	return Print(s.Tokens)
}

// finish puts in what is known only now that everything was read.
func (r *reader) finish() {
	children := map[*Profile]bool{}
	for _, p := range r.text.Profiles {
		p.own = Unescape(r.name(p.own))
		p.Name, p.Short = p.own, p.own
		if p.parent != nil {
			// Its parent came before.
			children[p.parent] = true
			p.Name, p.Short = p.parent.Name+"//"+p.own, p.parent.own+"//"+p.own
		}
	}
	for _, p := range r.text.Profiles {
		if p.Attachment != "" {
			if a, err := r.vars.expand(p.Attachment, ""); err == nil {
				p.Attachment = a
			}
		}
		r.implicit(p, p.Hat || children[p])
		for _, rule := range p.Rules {
			r.resolve(rule, p.Name)
		}
	}
}

// name puts the variables of a profile's name in.
func (r *reader) name(s string) string {
	if !strings.Contains(s, "@{") {
		return s
	}
	if n, err := r.vars.expand(s, ""); err == nil {
		return n
	}
	return s
}

// implicit adds what the parser adds by itself: the files that change_profile
// and change_hat need (add_proc_access in parser/parser_policy.c).
func (r *reader) implicit(p *Profile, hats bool) {
	add := func(of *Rule, what string) {
		for _, f := range []struct {
			path string
			bits bits
		}{{"/proc/*/attr/apparmor/", bitRead}, {"/sys/module/apparmor/parameters/enabled", bitRead}, {what, bitWrite}} {
			rule := &Rule{Class: ClassFile, Path: f.path, bits: f.bits, Who: implicitWho, Implicit: true, File: p.File, Line: p.Line}
			if of != nil {
				rule.File, rule.Line, rule.Raw = of.File, of.Line, of.Raw
			}
			p.Rules = append(p.Rules, rule)
		}
	}
	for _, rule := range p.Rules {
		if rule.Class == ClassChangeProfile {
			add(rule, "/proc/*/attr/{apparmor/,}{current,exec}")
			break
		}
	}
	if hats {
		add(nil, "/proc/[0-9]*/attr/{apparmor/,}current")
	}
}

// implicitWho is whose files those are about: the parser sets the bits of the
// owner and forgets those of others.
const implicitWho = policydb.Owner

// resolve puts variables into a rule, and makes its patterns.
func (r *reader) resolve(rule *Rule, profile string) {
	isPath := rule.files()
	set := func(text string, isPath bool) (string, *pattern) {
		if text == "" {
			return "", nil
		}
		full, err := r.vars.expand(text, profile)
		if err != nil {
			return text, &pattern{err: err}
		}
		return full, r.pattern(full, isPath)
	}
	rule.Path, rule.pattern = set(rule.Path, isPath)
	rule.Target, rule.target = set(rule.Target, isPath && rule.bits&bitLink != 0)
	rule.OnExec, rule.onExec = set(rule.OnExec, true)
	for i := range rule.Conds {
		c := &rule.Conds[i]
		for j, v := range c.Values {
			full, p := set(v, false)
			c.Values[j] = full
			c.patterns = append(c.patterns, p)
		}
	}
	if !isPath {
		return
	}
	for _, a := range r.aliases {
		add := aliased{pattern: rule.pattern, target: rule.target}
		hit := false
		if rest, ok := strings.CutPrefix(rule.Path, a.from); ok {
			add.pattern, hit = r.pattern(a.to+rest, true), true
		}
		if rest, ok := strings.CutPrefix(rule.Target, a.from); ok && rule.bits&bitLink != 0 {
			add.target, hit = r.pattern(a.to+rest, true), true
		}
		if hit && len(rule.aliases) < 64 {
			rule.aliases = append(rule.aliases, add)
		}
	}
}

// pattern is a pattern, made once.
func (r *reader) pattern(text string, isPath bool) *pattern {
	key := "n" + text
	if isPath {
		key = "p" + text
	}
	if p, ok := r.patterns[key]; ok {
		return p
	}
	p := &pattern{text: text, isPath: isPath, exact: exact(text), literal: literal(text), prefix: prefix(text)}
	r.patterns[key] = p
	return p
}
