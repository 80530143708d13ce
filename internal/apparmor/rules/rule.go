package rules

import (
	"slices"
	"strings"
	"sync"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
)

// Class is what a rule is about: the word that it begins with.
type Class string

const (
	ClassFile          Class = "file" // link rules too
	ClassCapability    Class = "capability"
	ClassNetwork       Class = "network"
	ClassUnix          Class = "unix"
	ClassSignal        Class = "signal"
	ClassPtrace        Class = "ptrace"
	ClassDBus          Class = "dbus"
	ClassMount         Class = "mount"
	ClassRemount       Class = "remount"
	ClassUmount        Class = "umount"
	ClassPivotRoot     Class = "pivot_root"
	ClassChangeProfile Class = "change_profile"
	ClassRlimit        Class = "rlimit"
	ClassUserns        Class = "userns"
	ClassIOUring       Class = "io_uring"
	ClassMqueue        Class = "mqueue"
	ClassAll           Class = "all"
	// ClassUnknown is a rule that is not understood.
	ClassUnknown Class = ""
)

// classes are the words that rules begin with. "unmount" is another "umount"
// (keyword_table in parser/parser_misc.c).
var classes = map[string]Class{
	"capability": ClassCapability, "network": ClassNetwork, "unix": ClassUnix, "signal": ClassSignal, "ptrace": ClassPtrace,
	"dbus": ClassDBus, "mount": ClassMount, "remount": ClassRemount, "umount": ClassUmount, "unmount": ClassUmount,
	"pivot_root": ClassPivotRoot, "change_profile": ClassChangeProfile, "userns": ClassUserns, "io_uring": ClassIOUring,
	"mqueue": ClassMqueue, "all": ClassAll,
}

// bits are the permissions of a file rule as the parser has them, which is what
// "deny" takes out one by one (parser/immunix.h).
type bits uint8

const (
	bitExec bits = 1 << iota
	bitWrite
	bitRead
	bitAppend
	bitLink
	bitLock
	bitMmap
	allBits = 1<<iota - 1
)

// widened is what each of them is to the kernel (map_old_perms in
// security/apparmor/policy_compat.c).
var widened = [...]policydb.Perm{
	policydb.Exec,
	policydb.Write | policydb.SetAttr | policydb.Create | policydb.Delete | policydb.Chmod | policydb.Chown | policydb.Open,
	policydb.Read | policydb.GetAttr | policydb.Open,
	policydb.Append,
	policydb.Link,
	policydb.Lock,
	policydb.Mmap,
}

func (b bits) perms() (p policydb.Perm) {
	for i, w := range widened {
		if b&(1<<i) != 0 {
			p |= w
		}
	}
	return p
}

// Rule is one rule of a profile.
type Rule struct {
	// File and Line are where it really stands: in the include, not in the file
	// that includes it.
	File string
	Line int
	// Raw is its text, on one line.
	Raw   string
	Class Class

	Deny, Audit bool
	// Who is whose files a file rule is about.
	Who policydb.Who
	// Priority is what "priority=" says; parsers from 4.1 on know it.
	Priority string
	// Whole says that it has no arguments and so grants its class wholesale.
	Whole bool
	// Implicit is a rule that nobody wrote: the parser adds it for change_profile,
	// whose place it has, or for hats.
	Implicit bool
	// Dropped says that the parser passes over it: nothing but file rules may
	// stand in "owner { }" and "audit { }", and it does not complain.
	Dropped bool
	// Doubt says why it is not, or not wholly, understood; "" it is.
	Doubt string

	// Path is the pattern of a file rule with its variables put in; of a
	// change_profile rule the names of profiles.
	Path string
	// Perms are the permissions of a file rule as the kernel has them.
	Perms policydb.Perm
	// Exec is the transition of a file rule that lets execute.
	Exec policydb.Transition
	// Target is what stands behind "->": the target of links, or the profile.
	Target string
	// Subset is "link subset".
	Subset bool
	// OnExec is the program of a change_profile rule, "" any.
	OnExec string

	// Names are capabilities; Sockets families and types.
	Names   []string
	Sockets []Socket
	// Access are the accesses of rules of other classes ("send"), in one
	// spelling; Conds their conditions, "peer=(label=x)" as "peer.label".
	Access []string
	Conds  []Cond
	// Words are its words without qualifiers.
	Words []string

	bits    bits
	pattern *pattern
	target  *pattern
	onExec  *pattern
	aliases []aliased
}

// aliased is what an alias makes of a file rule.
type aliased struct{ pattern, target *pattern }

// Cond is a condition of a rule.
type Cond struct {
	Key      string
	Values   []string
	patterns []*pattern
}

// Socket is a family and type by the kernel's number, -1 any.
type Socket struct{ Family, Type int }

// pattern is a pattern of a rule, or why it is none. Of most nothing is ever asked that
// their prefix does not answer, so they are parsed when they are.
type pattern struct {
	text   string
	isPath bool
	once   sync.Once
	glob   *policydb.Pattern
	err    error // set from the beginning where there is no text to parse
	// exact: the parser lets its exec transition win over others'; literal is how
	// many characters stand for themselves.
	exact   bool
	literal int
	// prefix is what every match begins with.
	prefix string
}

// parsed is the pattern as the parser reads it.
func (p *pattern) parsed() (*policydb.Pattern, error) {
	p.once.Do(func() {
		switch {
		case p.err != nil:
		case p.isPath:
			p.glob, p.err = policydb.ParsePattern(p.text)
		default:
			p.glob, p.err = policydb.ParseName(p.text)
		}
	})
	return p.glob, p.err
}

// matches says whether s is matched; unknown when that cannot be told.
func (p *pattern) matches(s string) truth {
	if p == nil {
		return unknown
	}
	if !strings.HasPrefix(s, p.prefix) {
		return no
	}
	glob, err := p.parsed()
	if err != nil {
		return unknown
	}
	match := glob.MatchString
	if p.isPath {
		match = glob.Match
	}
	ok, err := match(s)
	switch {
	case err != nil:
		return unknown
	case ok:
		return yes
	}
	return no
}

// prefix is what stands before the first character with a meaning. Of several
// slashes only the first is sure.
func prefix(text string) string {
	for i := 0; i < len(text); i++ {
		if strings.IndexByte(`*?[{\`, text[i]) >= 0 || text[i] == '/' && i > 0 && text[i-1] == '/' {
			return text[:i]
		}
	}
	return text
}

// exact says whether a pattern has nothing but characters and alternatives
// (aare_rules::add_rule_vec in parser/libapparmor_re/aare_rules.cc).
func exact(text string) bool {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '*', '?', '[':
			return false
		}
	}
	return true
}

// literal is how specific a pattern is: the characters that stand for themselves.
func literal(text string) int {
	n := 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\':
			i++
			n++
		case strings.IndexByte("*?[]{},", c) < 0:
			n++
		}
	}
	return n
}

func (r *Rule) doubt(why string) {
	if r.Doubt == "" {
		r.Doubt = why
	}
}

// parse reads a rule behind its qualifiers.
func (r *Rule) parse(t []Token, q Qualifiers) {
	for _, w := range t {
		r.Words = append(r.Words, w.Text)
	}
	if len(t) == 0 {
		r.doubt("nothing stands behind its qualifiers")
		return
	}
	word := ""
	if t[0].Kind == Word {
		word = t[0].Text
	}
	class, known := classes[word]
	switch {
	case known:
		r.Class = class
		t = t[1:]
		r.Whole = len(t) == 0
		switch class {
		case ClassCapability:
			for _, w := range t {
				r.Names = append(r.Names, strings.ToLower(w.Text))
			}
		case ClassNetwork:
			r.network(t)
		case ClassChangeProfile:
			r.changeProfile(t)
		case ClassAll:
			// "file," among others (all_rule.cc).
			r.everyFile()
			if len(t) > 0 {
				r.doubt("it has words that are not understood")
			}
		default:
			r.conditions(t)
		}
	case word == "set" && len(t) > 1 && t[1].Text == "rlimit":
		r.Class = ClassRlimit
	case word == "link":
		r.Class = ClassFile
		r.link(t[1:])
	default:
		r.file(t, q)
	}
}

// link reads "link [subset] /a -> /b".
func (r *Rule) link(t []Token) {
	r.bits = bitLink
	r.Perms = r.bits.perms()
	if t = r.subset(t); len(t) != 3 || t[1].Kind != Arrow {
		r.doubt("it is no link rule that is understood")
		return
	}
	r.Path, r.Target = t[0].Text, t[2].Text
}

func (r *Rule) subset(t []Token) []Token {
	switch {
	case len(t) > 0 && t[0].Kind == Word && t[0].Text == "subset":
		r.Subset = true
		return t[1:]
	case len(t) > 1 && t[0].Is("<") && t[1].Is("="):
		r.Subset = true
		return t[2:]
	}
	return t
}

// file reads "[file] [safe|unsafe] /path rw [-> name]", or with the permissions
// first.
func (r *Rule) file(t []Token, q Qualifiers) {
	r.Class = ClassFile
	if t[0].Kind == Word && t[0].Text == "file" {
		if t = t[1:]; len(t) == 0 {
			r.Whole = true
			r.everyFile()
			return
		}
	}
	if len(t) > 0 && t[0].Kind == Word && (t[0].Text == "safe" || t[0].Text == "unsafe") {
		q.Safe, q.Unsafe = t[0].Text == "safe", t[0].Text == "unsafe"
		t = t[1:]
	}
	isPath := func(t Token) bool { return t.Kind == Quoted || t.Kind == Word && IsPath(t.Text) }
	var letters string
	first := false // permissions
	switch {
	case len(t) >= 2 && isPath(t[0]) && t[1].Kind == Word:
		r.Path, letters, t = t[0].Text, t[1].Text, t[2:]
	case len(t) >= 2 && t[0].Kind == Word:
		first = true
		letters = t[0].Text
		if t = r.subset(t[1:]); len(t) == 0 || !isPath(t[0]) {
			r.Class = ClassUnknown
			r.doubt("it is no rule that is understood")
			return
		}
		r.Path, t = t[0].Text, t[1:]
	default:
		r.Class = ClassUnknown
		r.doubt("it is no rule that is understood")
		return
	}
	if len(t) == 2 && t[0].Kind == Arrow {
		r.Target = t[1].Text
	} else if len(t) > 0 {
		r.doubt("it has words that are not understood")
	}
	if !r.mode(letters) {
		r.Class = ClassUnknown
		r.doubt("its permissions are not understood")
		return
	}
	if q.Safe || q.Unsafe {
		r.Exec.Clean = q.Safe
	}
	if r.bits&bitExec == 0 || r.Deny {
		r.Exec = policydb.Transition{}
	}
	if r.Target != "" && r.bits&bitExec != 0 {
		// add_named_transition: the name takes the place of the kind.
		r.Exec.Kind, r.Exec.Target = policydb.ExecNamed, r.Target
	}
	if r.bits&bitLink != 0 && !first && r.bits&bitExec == 0 {
		r.Target = "" // "/a l -> /b" has no target to the parser
	}
	if r.Exec.Kind == policydb.ExecInherit || r.Exec.OrInherit {
		r.bits |= bitMmap
	}
	r.Perms = r.bits.perms()
}

// everyFile is what "file," stands for (file_rule in parser/parser_yacc.y).
func (r *Rule) everyFile() {
	r.Path, r.bits = "/{**,}", allBits
	r.Perms = r.bits.perms()
	if !r.Deny {
		r.Exec = policydb.Transition{Kind: policydb.ExecInherit}
	}
}

// files says whether a rule is one on files, among others maybe.
func (r *Rule) files() bool { return r.Class == ClassFile || r.Class == ClassAll }

// mode reads the letters of permissions (parse_sub_mode in
// parser/parser_misc.c).
func (r *Rule) mode(s string) bool {
	at := func(i int) byte {
		if i < len(s) {
			return s[i]
		}
		return 0
	}
	lower := func(c byte) byte {
		if c >= 'A' && c <= 'Z' {
			return c + 'a' - 'A'
		}
		return c
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch lower(c) {
		case 'r':
			r.bits |= bitRead
		case 'w':
			r.bits |= bitWrite | bitAppend
		case 'a':
			r.bits |= bitAppend
		case 'l':
			r.bits |= bitLink
		case 'k':
			r.bits |= bitLock
		case 'm':
			r.bits |= bitMmap
		case 'x':
			r.bits |= bitExec
			// Alone it is for "deny", and for "x -> name", which cleans the
			// environment.
			if r.Exec.Kind == policydb.ExecNone {
				r.Exec.Clean = true
			}
		case 'i', 'u', 'p', 'c':
			x := policydb.Transition{Clean: c != lower(c)}
			switch lower(c) {
			case 'i':
				x = policydb.Transition{Kind: policydb.ExecInherit}
			case 'u':
				x.Kind = policydb.ExecUnconfined
			case 'p':
				x.Kind = policydb.ExecProfile
			case 'c':
				x.Kind, x.Child = policydb.ExecChild, true
			}
			i++
			if lower(c) == 'p' || lower(c) == 'c' {
				switch lower(at(i)) {
				case 'i':
					x.OrInherit = true
					i++
				case 'u':
					x.OrUnconfined = true
					i++
				}
			}
			if lower(at(i)) != 'x' {
				return false
			}
			r.bits |= bitExec
			r.Exec = x
		default:
			return false
		}
	}
	return len(s) > 0
}

// changeProfile reads "[safe|unsafe] [program] [-> name]".
func (r *Rule) changeProfile(t []Token) {
	if len(t) > 0 && t[0].Kind == Word && (t[0].Text == "safe" || t[0].Text == "unsafe") {
		t = t[1:]
	}
	if len(t) > 0 && t[0].Kind != Arrow {
		r.OnExec, t = t[0].Text, t[1:]
	}
	r.Path = "**"
	switch {
	case len(t) == 2 && t[0].Kind == Arrow:
		r.Path = t[1].Text
	case len(t) > 0:
		r.doubt("it has words that are not understood")
	}
}

// network reads "[(access)] [family] [type|protocol] [conditions]".
func (r *Rule) network(t []Token) {
	var words []string
	for i := 0; i < len(t); i++ {
		if t[i].Kind != Word && t[i].Kind != Quoted || i+1 < len(t) && t[i+1].Is("=") {
			r.conditions(t)
			r.doubt("its accesses, addresses and ports are not understood")
			break
		}
		words = append(words, t[i].Text)
	}
	if len(words) == 0 {
		r.Sockets = []Socket{{-1, -1}}
		return
	}
	if r.Sockets = sockets(words); r.Sockets == nil {
		r.doubt("its family, type or protocol is not known")
		r.Sockets = []Socket{{-1, -1}}
	}
}

// accesses are the spellings of accesses in rules of other classes, in one
// (parse_X_mode in parser/parser_misc.c, and dbus.cc, signal.cc, ptrace.cc).
func accesses(class Class, word string) []string {
	read, write := "receive", "send"
	if class == ClassPtrace {
		read, write = "read", "trace"
	}
	if class == ClassMqueue {
		read, write = "read", "write"
	}
	switch word {
	case "r", "read":
		return []string{read}
	case "w", "write":
		return []string{write}
	case "rw", "wr":
		return []string{read, write}
	}
	return []string{word}
}

// conditions reads "[access] key=value key=(a b) peer=(key=value)" and what
// stands between.
func (r *Rule) conditions(t []Token) {
	add := func(key string, values ...string) { r.Conds = append(r.Conds, Cond{Key: key, Values: values}) }
	list := func(i int) (out []string, end int) {
		for ; i < len(t) && !t[i].Is(")"); i++ {
			if t[i].Kind == Word || t[i].Kind == Quoted {
				out = append(out, t[i].Text)
			}
		}
		return out, i
	}
	arrow := false
	for i := 0; i < len(t); i++ {
		isEq := i+1 < len(t) && t[i+1].Is("=")
		isIn := t[i].Kind == Word && i+2 < len(t) && t[i+1].Kind == Word && t[i+1].Text == "in" && t[i+2].Is("(")
		switch {
		case t[i].Is("("):
			var words []string
			words, i = list(i + 1)
			for _, w := range words {
				r.Access = append(r.Access, accesses(r.Class, w)...)
			}
		case isEq && i+2 < len(t) && t[i+2].Is("("):
			key := t[i].Text
			if key != "peer" {
				var words []string
				words, i = list(i + 3)
				add(key, words...)
				continue
			}
			for i += 3; i < len(t) && !t[i].Is(")"); i++ {
				if i+2 < len(t) && t[i+1].Is("=") {
					sub := key + "." + t[i].Text
					if i += 2; t[i].Is("(") {
						var words []string
						words, i = list(i + 1)
						add(sub, words...)
					} else {
						add(sub, t[i].Text)
					}
				}
			}
		case isEq && i+2 < len(t):
			add(t[i].Text, t[i+2].Text)
			i += 2
		case isIn:
			key := t[i].Text
			var words []string
			words, i = list(i + 3)
			add(key+" in", words...)
		case t[i].Kind == Arrow:
			arrow = true
		case t[i].Kind == Word || t[i].Kind == Quoted:
			switch {
			case r.Class == ClassMount && arrow, r.Class == ClassRemount, r.Class == ClassUmount:
				add("target", t[i].Text)
			case r.Class == ClassMount:
				add("source", t[i].Text)
			case r.Class == ClassPivotRoot && arrow:
				add("profile", t[i].Text)
			case r.Class == ClassPivotRoot:
				add("newroot", t[i].Text)
			case r.Class == ClassMqueue && (t[i].Kind == Quoted || strings.HasPrefix(t[i].Text, "/") || t[i].Text[0] >= '0' && t[i].Text[0] <= '9'):
				add("name", t[i].Text)
			default:
				r.Access = append(r.Access, accesses(r.Class, t[i].Text)...)
			}
		}
	}
	slices.Sort(r.Access)
	r.Access = slices.Compact(r.Access)
}
