package apparmor

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/apparmor/rules"
)

// found is a rule for one of the parser's messages. words are the groups of
// the pattern.
type found func(d *diagnoser, m message, words []string) (Diagnosis, bool)

// causes are the parser's messages, in the words of 3.0.8 and of 4.1.0
// (parser/parser_yacc.y, parser_lex.l, parser_misc.c, parser_symtab.c,
// profile.h, profilelist.cc, network.cc, signal.cc). What holds for any message
// is asked first: see diagnoser.message. Compiled they are large, and few programs
// need them.
var causes = sync.OnceValue(func() []cause {
	return []cause{
		{regexp.MustCompile(`^Could not open '(.*)'`), (*diagnoser).include},
		{regexp.MustCompile(`Found reference to variable (\S+), but is never declared`), (*diagnoser).undefined},
		{regexp.MustCompile(`references undefined variable @\{(.*)\}`), (*diagnoser).undefined},
		{regexp.MustCompile(`^Variable @\{(.*)\} is referenced recursively`), (*diagnoser).recursive},
		{regexp.MustCompile(`^variable @?\{?(.*?)\}? was previously declared`), (*diagnoser).declaredTwice},
		{regexp.MustCompile(`^variable @?\{?(.*?)\}? was not previously declared`), (*diagnoser).addedTo},
		{regexp.MustCompile(`Variable declarations do not accept trailing commas`), (*diagnoser).trailingComma},
		{regexp.MustCompile(`^Unset boolean variable (\S+)`), (*diagnoser).unsetBoolean},
		{regexp.MustCompile(`^Multiple definitions for (?:profile|hat) (.*?) (?:in profile \S+ )?exist`), (*diagnoser).twice},
		{regexp.MustCompile(`has merged rule (?:(.*) )?with conflicting x modifiers`), (*diagnoser).conflict},
		{regexp.MustCompile(`Unable to parse input line '(.*)'`), (*diagnoser).alternation},
		{regexp.MustCompile(`^Invalid capability (.*?)\.?$`), (*diagnoser).capability},
		{regexp.MustCompile(`^Invalid network entry`), (*diagnoser).network},
		{regexp.MustCompile(`^Internal: unexpected net (?:mode|perms) character`), (*diagnoser).socketRule},
		{regexp.MustCompile(`invalid socket type '(.*)'`), (*diagnoser).socketType},
		{regexp.MustCompile(`^Invalid profile flag: (.*?)\.?$`), (*diagnoser).flag},
		{regexp.MustCompile(`^Profile flag '(.*)' conflicts with '(.*)'`), (*diagnoser).flagConflict},
		{regexp.MustCompile(`^Exec qualifier '.*' invalid, conflicting`), (*diagnoser).execTwice},
		{regexp.MustCompile(`^Invalid (?:mode|perms), in deny rules 'x'`), (*diagnoser).execDenied},
		{regexp.MustCompile(`^Invalid (?:mode|perms), 'x' must be preceded`), (*diagnoser).execBare},
		{regexp.MustCompile(`^Conflict 'a' and 'w'`), (*diagnoser).appendWrite},
		{regexp.MustCompile(`^unsafe rule missing exec permissions`), (*diagnoser).unsafe},
		{regexp.MustCompile(`^(owner) (?:prefix|conditional) not allowed`), (*diagnoser).owner},
		{regexp.MustCompile(`^Profile attachment must begin|^Profile names must begin`), (*diagnoser).attachment},
		{regexp.MustCompile(`invalid (\S+)(?: rule)? conditional "?([^"]*)"?`), (*diagnoser).conditional},
		{regexp.MustCompile(`^unknown signal "(.*)"`), (*diagnoser).signal},
		{regexp.MustCompile(`^unsupported mount option`), (*diagnoser).mountOption},
		{regexp.MustCompile(`(?i)^(?:INVALID|Unknown) RLIMIT '?([^']*)'?$`), (*diagnoser).limit},
		{regexp.MustCompile(`^RLIMIT '(.*)' (?:invalid value|<|out of range)`), (*diagnoser).limitValue},
		{regexp.MustCompile(`^missing an end of line character\?`), (*diagnoser).noEnd},
		{regexp.MustCompile(`^Lexer found unexpected character`), (*diagnoser).character},
		{syntaxError(), (*diagnoser).syntax},
	}
})

type cause struct {
	pattern *regexp.Regexp
	find    found
}

// message finds the cause of one of the parser's messages.
func (d *diagnoser) message(m message) (Diagnosis, bool) {
	if m.file != "" {
		around := d.around(m.file, m.line)
		for _, look := range []func(string, *statement) (Diagnosis, bool){d.socketOption, d.semicolon, d.missingOpen, d.missingComma} {
			for _, s := range around {
				if s.line < m.line && s.end != 0 {
					continue // ended before the parser gave up
				}
				if out, ok := look(m.file, s); ok {
					return out, true
				}
			}
		}
	}
	for _, c := range causes() {
		if words := c.pattern.FindStringSubmatch(m.text); words != nil {
			if out, ok := c.find(d, m, words); ok {
				return out, true
			}
		}
	}
	return Diagnosis{}, false
}

// socketOption finds the rule that people write when they want options of a
// socket: "socket (tcp) options=(…) level=… optname=…".
var socketOption = pattern(`(?m)(?:^\s*(?:(?:audit|deny|allow|owner)\s+)*((?:socket|setsockopt|getsockopt)\b)|\b(optname)\s*=)`)

// optionName is the C name of a socket option, and levelName of a level.
var (
	optionName = pattern(`\b(?:SO|TCP|UDP|IP|IPV6|SCTP|NETLINK|PACKET|VM_SOCKETS|TLS)_[A-Z0-9_]+\b`)
	levelName  = pattern(`\b(?:SOL|IPPROTO)_[A-Z0-9_]+\b`)
)

func (d *diagnoser) socketOption(file string, s *statement) (Diagnosis, bool) {
	raw := d.raw(file, s)
	m := socketOption().FindStringSubmatchIndex(raw)
	if m == nil {
		return Diagnosis{}, false
	}
	off := m[2]
	if off < 0 {
		off = m[4]
	}
	out := d.at(file, s.words[0].Start+off, "socket-option", "AppArmor cannot express this: it knows no rules for single socket options.")
	level := levelName().FindString(raw)
	var allow []string
	for _, name := range optionName().FindAllString(raw, 8) {
		l := level
		if l == "" {
			l = "SOL_" + name[:strings.Index(name, "_")]
			if strings.HasPrefix(name, "SO_") {
				l = "SOL_SOCKET"
			}
		}
		allow = append(allow, "Allow="+l+":"+name)
	}
	if allow == nil {
		allow = []string{"Allow=SOL_TCP:TCP_NODELAY, for example"}
	}
	network := "allow the network with: network inet stream,"
	if d.hasRule("network") {
		network = "keep the network rule"
	}
	return helped(out, "Take the rule out, %s and list the options in the attachment file, in its section [SocketOptions]: %s", network, strings.Join(allow, " ")), true
}

// semicolon finds one at the end of a line, where the comma belongs.
func (d *diagnoser) semicolon(file string, s *statement) (Diagnosis, bool) {
	for i, w := range s.words {
		if w.Kind == rules.Word && strings.HasSuffix(w.Text, ";") && (i+1 == len(s.words) || s.words[i+1].Line > w.Line) {
			out := d.at(file, w.Stop-1, "semicolon", "a rule ends with a comma, not with a semicolon.")
			return helped(out, "Write a comma."), true
		}
	}
	return Diagnosis{}, false
}

func (d *diagnoser) hasRule(word string) bool {
	for _, f := range d.files() {
		for i := range d.statements(f) {
			s := &d.stmts[f][i]
			if r, q := rules.ReadQualifiers(s.words); !q.Deny && len(r) > 0 && isWord(r[0], word) {
				return true
			}
		}
	}
	return false
}

// begins reports whether words can be the beginning of a rule.
func begins(w []rules.Token) bool {
	if len(w) == 0 {
		return false
	}
	if w[0].Kind == rules.ABI || isWord(w[0], ruleWords...) || isWord(w[0], qualifierWords...) || w[0].Is("^") {
		return true
	}
	return isFile(w[0]) && len(w) > 1 && (isPermissions(w[1]) || isWord(w[1], "flags")) || isPermissions(w[0]) && len(w) > 1 && isFile(w[1])
}

// complete reports whether words can be a whole rule, but for its comma.
func complete(w []rules.Token) bool {
	w, _ = rules.ReadQualifiers(w)
	switch {
	case len(w) == 0:
		return false
	case w[0].Kind == rules.ABI:
		return true
	case isFile(w[0]):
		return len(w) == 2 && isPermissions(w[1]) || len(w) == 4 && isPermissions(w[1]) && w[2].Kind == rules.Arrow
	case isPermissions(w[0]) && len(w) > 1 && isFile(w[1]):
		return len(w) == 2 || len(w) == 4 && w[2].Kind == rules.Arrow
	case isWord(w[0], "file"):
		return len(w) == 1 || complete(w[1:])
	case isWord(w[0], "set"):
		return len(w) >= 5
	case isWord(w[0], "profile", "hat", "if", "else"):
		return false
	}
	return isWord(w[0], ruleWords...)
}

// missingComma finds a rule that goes on where the next one begins. The parser
// names the line of the next rule.
func (d *diagnoser) missingComma(file string, s *statement) (Diagnosis, bool) {
	if s.head() {
		return Diagnosis{}, false
	}
	var k int
	for k = 1; k < len(s.words); k++ {
		if s.words[k].Line > s.words[k-1].Line && begins(s.words[k:]) && complete(s.words[:k]) {
			break
		}
	}
	if k >= len(s.words) && !((s.end == '}' || s.end == 'i') && complete(s.words)) {
		return Diagnosis{}, false
	}
	return d.noComma(file, s.words[:k]), true
}

func (d *diagnoser) noComma(file string, words []rules.Token) Diagnosis {
	if out, ok := d.semicolon(file, &statement{words: words}); ok {
		return out
	}
	last := words[len(words)-1]
	out := d.at(file, last.Stop, "missing-comma", "the rule has no comma at its end.")
	return helped(out, "Every rule ends with a comma, also the last one before a closing brace: %s", rules.Print(words))
}

// missingOpen finds the head of a profile that no brace follows.
func (d *diagnoser) missingOpen(file string, s *statement) (Diagnosis, bool) {
	if len(s.words) < 2 || !s.head() && !(s.depth == 0 && isFile(s.words[0]) && file == d.File) || s.words[1].Text == "{" || s.words[1].Is("=") {
		return Diagnosis{}, false
	}
	for k := 1; k < len(s.words); k++ {
		if s.words[k].Line > s.words[k-1].Line && (k > 1 || !s.head()) && begins(s.words[k:]) && !isWord(s.words[k], "profile") {
			out := d.at(file, s.words[k-1].Stop, "missing-brace", "the opening brace { of the profile is missing.")
			return helped(out, "Write: %s {", strings.TrimSuffix(rules.Print(s.words[:k]), ",")), true
		}
	}
	return Diagnosis{}, false
}

// spliced finds a rule without its comma in front of an include, or at the
// end of an included file: the parser gives up in another file then.
func (d *diagnoser) spliced(m message) (Diagnosis, bool) {
	for _, f := range d.files() {
		all := d.statements(f)
		for i := range all {
			s := &all[i]
			if !complete(s.words) {
				continue
			}
			atEnd := s.end == 0 && i == len(all)-1 && f != d.File
			if s.end == 'i' && (f != m.file || s.line <= m.line) || atEnd {
				return d.noComma(f, s.words), true
			}
		}
	}
	return Diagnosis{}, false
}

// noEnd is the parser's own word for a rule that ends too early, or too late.
func (d *diagnoser) noEnd(m message, _ []string) (Diagnosis, bool) {
	for _, s := range d.around(m.file, m.line) {
		if s.line < m.line {
			continue
		}
		if out, ok := d.ruleCause(m.file, s); ok {
			return out, true
		}
	}
	return d.spliced(m)
}

// include explains an include or abi file that cannot be opened.
func (d *diagnoser) include(m message, words []string) (Diagnosis, bool) {
	name := words[1]
	file := d.includePath(name)
	off, kind := -1, "include"
	for _, s := range d.around(m.file, m.line) {
		for _, w := range s.words {
			if (w.Kind == rules.Include || w.Kind == rules.ABI) && (w.Text == name || d.includePath(w.Text) == file) && w.To > w.From {
				off = w.From
				if w.Kind == rules.ABI {
					kind = "abi"
				}
			}
		}
	}
	out := d.onLine(m.file, m.line, "missing-"+kind, "")
	if off >= 0 {
		out = d.at(m.file, off, "missing-"+kind, "")
	}
	if why := d.Unread[file]; why != "" {
		out.Code = "unreadable-" + kind
		out.Cause = fmt.Sprintf("%s is there and cannot be read: %s.", file, why)
		return out, true
	}
	out.Cause = fmt.Sprintf("there is no file %s, which this line asks for.", file)
	switch like := d.similar(file); {
	case kind == "abi" && !strings.HasPrefix(like, d.Dir+"/abi/"):
		return helped(out, "Name an abi file that this system has; ls %s/abi lists them. Without an abi line the parser takes the one of its own version.", d.Dir), true
	case kind == "abi":
		return helped(out, "Did you mean abi <%s>? An abi file describes what a version of AppArmor can do; a profile from another system may name one that is not here.", strings.TrimPrefix(like, d.Dir+"/")), true
	case strings.HasPrefix(like, d.Dir+"/"):
		out = helped(out, "Did you mean include <%s>?", strings.TrimPrefix(like, d.Dir+"/"))
	case like != "":
		out = helped(out, "Did you mean include %q?", like)
	default:
		out = helped(out, "Look for a misspelt name, or install the package that brings the file.")
	}
	out.Help += fmt.Sprintf(" If the file may be missing, write: include if exists <%s>", strings.TrimPrefix(file, d.Dir+"/"))
	return out, true
}

// similar gives a file that exists and that may have been meant.
func (d *diagnoser) similar(file string) string {
	for _, b := range d.Beside { // in another directory, or with a slip in that one's name
		if path.Base(b) == path.Base(file) {
			return b
		}
	}
	if b := nearest(path.Base(file), basesIn(d.Beside, path.Dir(file))); b != "" {
		return path.Join(path.Dir(file), b)
	}
	for _, b := range d.Beside {
		if nearest(path.Base(file), []string{path.Base(b)}) != "" {
			return b
		}
	}
	return ""
}

func basesIn(files []string, dir string) []string {
	var out []string
	for _, f := range files {
		if path.Dir(f) == dir {
			out = append(out, path.Base(f))
		}
	}
	return out
}

// references finds where the texts use a variable.
func (d *diagnoser) references(name string) (file string, off int, ok bool) {
	for _, f := range d.files() {
		text := string(d.Sources[f])
		for i := range d.statements(f) {
			for _, w := range d.stmts[f][i].words {
				part := text[w.Start:max(w.Start, min(w.Stop, len(text)))]
				from := 0
				if w.Kind == rules.Assign { // its own name is no use of it
					from = max(0, strings.IndexByte(part, '='))
				}
				if n := strings.Index(part[from:], "@{"+name+"}"); n >= 0 {
					return f, w.Start + from + n, true
				}
			}
		}
	}
	return "", 0, false
}

// assigned gives the places where a variable is set, in the order of files().
func (d *diagnoser) assigned(name string) (places []Diagnosis, adds []bool) {
	for _, f := range d.files() {
		for _, s := range d.statements(f) {
			if len(s.words) == 1 && s.words[0].Kind == rules.Assign && s.words[0].Text == name {
				places = append(places, d.at(f, s.words[0].Start, "", ""))
				adds = append(adds, s.words[0].Op == "+=")
			}
		}
	}
	return places, adds
}

func (d *diagnoser) undefined(m message, words []string) (Diagnosis, bool) {
	name := strings.TrimSuffix(strings.TrimPrefix(words[1], "@{"), "}")
	out := Diagnosis{Code: "undefined-variable", Cause: fmt.Sprintf("the variable @{%s} has no value.", name)}
	if f, off, ok := d.references(name); ok {
		out = d.at(f, off, out.Code, out.Cause)
	}
	if isPlaceholder(name) {
		out.Code = "placeholder"
		out.Cause = fmt.Sprintf("@{%s} is a placeholder that nobody has filled in.", name)
		return helped(out, "Decide what belongs in its place and write that, such as the path of a directory; a profile with an open placeholder is refused on purpose."), true
	}
	var known []string
	for _, f := range d.files() {
		for _, s := range d.statements(f) {
			if len(s.words) == 1 && s.words[0].Kind == rules.Assign {
				known = append(known, s.words[0].Text)
			}
		}
	}
	switch like := nearest(name, append(known, tunables...)); {
	case slices.Contains(tunables, name):
		return helped(out, "It comes with the system's variables: write include <tunables/global> as the first line of the profile file, outside the braces."), true
	case like != "" && like != name:
		return helped(out, "Did you mean @{%s}? Otherwise give it a value in front of the profile, outside the braces: @{%s} = /some/path", like, name), true
	}
	return helped(out, "Give it a value in front of the profile, outside the braces, @{%s} = /some/path , or include the file that does.", name), true
}

func (d *diagnoser) recursive(m message, words []string) (Diagnosis, bool) {
	out := Diagnosis{Code: "recursive-variable", Cause: fmt.Sprintf("the value of @{%s} contains @{%s} itself.", words[1], words[1])}
	if p, _ := d.assigned(words[1]); len(p) > 0 {
		p[0].Code, p[0].Cause = out.Code, out.Cause
		out = p[0]
	}
	return helped(out, "To add a value to a variable that has one, write: @{%s} += value", words[1]), true
}

func (d *diagnoser) declaredTwice(m message, words []string) (Diagnosis, bool) {
	places, adds := d.assigned(words[1])
	var sets []Diagnosis
	for i, p := range places {
		if !adds[i] {
			sets = append(sets, p)
		}
	}
	if len(sets) < 2 {
		return Diagnosis{}, false
	}
	// The parser stops at the second; of two files the profile file is the one
	// to correct.
	out, other := sets[1], sets[0]
	if out.File != sets[0].File {
		out, other = sets[0], sets[1]
	}
	out.Code, out.Cause = "variable-set-twice", fmt.Sprintf("the variable @{%s} has a value already, from line %d of %s.", words[1], other.Line, other.File)
	return helped(out, "Take one of the two lines out, or write @{%s} += to add to the values it has.", words[1]), true
}

func (d *diagnoser) addedTo(m message, words []string) (Diagnosis, bool) {
	places, adds := d.assigned(words[1])
	for i, p := range places {
		if adds[i] {
			p.Code, p.Cause = "undefined-variable", fmt.Sprintf("the line adds a value to @{%s}, which has none.", words[1])
			help := "Write = in place of +=, or put the line behind the one, or the include, that gives the variable its first value."
			if slices.Contains(tunables, words[1]) {
				help = "Put the line behind include <tunables/global>, which gives the variable its first value."
			}
			return helped(p, "%s", help), true
		}
	}
	return Diagnosis{}, false
}

func (d *diagnoser) trailingComma(m message, words []string) (Diagnosis, bool) {
	out := d.onLine(m.file, m.line, "comma-after-variable", "a line that sets a variable has a comma at its end.")
	if i := strings.LastIndexByte(out.Text, ','); i >= 0 {
		out.Column = 1 + utf8.RuneCountInString(out.Text[:i])
	}
	return helped(out, "Take the comma out: rules end with one, variables do not."), true
}

func (d *diagnoser) unsetBoolean(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, words[1], "undefined-variable", fmt.Sprintf("the condition asks for %s, which has no value.", words[1]))
	return helped(out, "Give it one in front of the profile: %s = true", words[1]), true
}

// pointAt points to a word on a line, or to the line.
func (d *diagnoser) pointAt(m message, word, code, cause string) Diagnosis {
	out := d.onLine(m.file, m.line, code, cause)
	if i := strings.Index(out.Text, word); i >= 0 && word != "" {
		out.Column = 1 + utf8.RuneCountInString(out.Text[:i])
	}
	return out
}

func (d *diagnoser) twice(m message, words []string) (Diagnosis, bool) {
	var places []Diagnosis
	for _, f := range d.files() {
		for i := range d.statements(f) {
			s := &d.stmts[f][i]
			if s.end != '{' {
				continue
			}
			w := s.rule()
			if s.head() {
				w = w[1:]
			}
			if len(w) > 0 && rules.Unescape(w[0].Text) == words[1] {
				places = append(places, d.at(f, w[0].Start, "duplicate-profile", ""))
			}
		}
	}
	if len(places) < 2 {
		return Diagnosis{}, false
	}
	out := places[1]
	out.Cause = fmt.Sprintf("the name %s is taken by the profile in line %d", words[1], places[0].Line)
	if places[0].File != out.File {
		out.Cause += " of " + places[0].File
	}
	out.Cause += "."
	return helped(out, "Give one of the two another name, or put their rules into one profile."), true
}

// execRule is a rule that lets a program run.
type execRule struct {
	file string
	path rules.Token
	exec string // what becomes of the program, in lower case, with the target
}

func (d *diagnoser) execRules() []execRule {
	var out []execRule
	for _, f := range d.files() {
		for i := range d.statements(f) {
			r, q := rules.ReadQualifiers(d.stmts[f][i].words)
			if q.Deny || len(r) == 0 {
				continue
			}
			if isWord(r[0], "file") {
				r = r[1:]
			}
			if len(r) > 1 && isPermissions(r[0]) && isFile(r[1]) {
				r = append([]rules.Token{r[1], r[0]}, r[2:]...)
			}
			if len(r) < 2 || !isFile(r[0]) || !isPermissions(r[1]) || len(out) >= 4096 {
				continue
			}
			if exec := strings.Trim(r[1].Text, "rRwWaAlLkKmM"); strings.ContainsAny(exec, "xX") {
				if len(r) > 3 && r[2].Kind == rules.Arrow {
					exec += " -> " + r[3].Text
				}
				out = append(out, execRule{f, r[0], exec})
			}
		}
	}
	return out
}

func (d *diagnoser) conflict(m message, words []string) (Diagnosis, bool) {
	rules := d.execRules()
	glob := func(s string) bool { return strings.ContainsAny(s, "*?[{") }
	overlap := func(a, b string) bool {
		if a == b {
			return true
		}
		if len(rules) > 256 || glob(a) != glob(b) {
			return false // of a name and a pattern the name wins, apparmor.d(5)
		}
		re, ok := compileGlob(a, nil)
		re2, ok2 := compileGlob(b, nil)
		return ok && re.MatchString(b) || ok2 && re2.MatchString(a)
	}
	for i, a := range rules {
		for _, b := range rules[i+1:] {
			if a.exec == b.exec || words[1] != "" && a.path.Text != words[1] && b.path.Text != words[1] || !overlap(a.path.Text, b.path.Text) {
				continue
			}
			if a.file != d.File && b.file == d.File {
				a, b = b, a
			} else if b.file != d.File {
				a, b = b, a // both, or the second, in an include
			}
			out := d.at(b.file, b.path.Start, "exec-conflict", "")
			other := d.at(a.file, a.path.Start, "", "")
			out.Cause = fmt.Sprintf("two rules say different things about running %s: %s here, and %s in line %d of %s.", cmp.Or(words[1], b.path.Text), b.exec, a.exec, other.Line, other.File)
			return helped(out, "Decide for one: ix keeps the program in this profile, Px runs it under a profile of its own, Cx under a child profile, Ux without any."), true
		}
	}
	return Diagnosis{}, false
}

// alternation explains a pattern whose braces or brackets do not match.
func (d *diagnoser) alternation(m message, words []string) (Diagnosis, bool) {
	for _, exact := range []bool{true, false} {
		for _, f := range d.files() {
			for i := range d.statements(f) {
				for _, w := range d.stmts[f][i].words {
					if w.Kind != rules.Word && w.Kind != rules.Quoted || exact && rules.Unescape(w.Text) != words[1] {
						continue
					}
					off, cause := unbalanced(w.Text)
					if cause == "" {
						continue
					}
					if w.Kind == rules.Quoted {
						off++
					}
					out := d.at(f, w.Start+off, "pattern", cause)
					return helped(out, "{a,b} stands for a or b and [ab] for one of these letters. For the character itself write a backslash in front of it: \\{"), true
				}
			}
		}
	}
	return Diagnosis{}, false
}

// unbalanced finds what is wrong with the braces of a pattern.
func unbalanced(s string) (off int, cause string) {
	type open struct{ at, commas int }
	var stack []open
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '[':
			end := strings.IndexByte(s[i:], ']')
			if end < 0 {
				return i, "the bracket [ in the path is not closed with ]."
			}
			i += end
		case '@':
			if end := strings.IndexByte(s[i:], '}'); strings.HasPrefix(s[i:], "@{") && end > 0 {
				i += end
			}
		case '{':
			stack = append(stack, open{at: i})
		case ',':
			if len(stack) > 0 {
				stack[len(stack)-1].commas++
			}
		case '}':
			if len(stack) == 0 {
				return i, "the brace } in the path was never opened with {."
			}
			if stack[len(stack)-1].commas == 0 {
				return stack[len(stack)-1].at, "the braces in the path hold one thing only; an alternation needs two or more, such as {a,b}."
			}
			stack = stack[:len(stack)-1]
		}
	}
	if len(stack) > 0 {
		return stack[len(stack)-1].at, "the brace { in the path is not closed with }."
	}
	return 0, ""
}

func (d *diagnoser) capability(m message, words []string) (Diagnosis, bool) {
	name := words[1]
	out := d.pointAt(m, name, "unknown-capability", fmt.Sprintf("there is no capability %s.", name))
	plain := strings.ToLower(name)
	if i := strings.Index(out.Text, name+"-"); i >= 0 { // "net-admin" is two words to the parser
		rest := out.Text[i:]
		if end := strings.IndexFunc(rest, func(r rune) bool { return r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') }); end >= 0 {
			rest = rest[:end]
		}
		plain = strings.ToLower(strings.ReplaceAll(rest, "-", "_"))
	}
	plain = strings.TrimPrefix(plain, "cap_")
	if like := nearest(plain, capabilityNames); like != "" {
		return helped(out, "Did you mean %s? The names are those of capabilities(7), in small letters and without CAP_.", like), true
	}
	return helped(out, "The names are those of capabilities(7), in small letters and without CAP_: capability net_admin,"), true
}

func (d *diagnoser) network(m message, words []string) (Diagnosis, bool) {
	for _, s := range d.around(m.file, m.line) {
		r := s.rule()
		if len(r) < 2 || !isWord(r[0], "network") {
			continue
		}
		for _, w := range r[1:] {
			if slices.Contains(networkFamilies, w.Text) || slices.Contains(networkTypes, w.Text) || slices.Contains(networkProtocols, w.Text) || w.Kind != rules.Word {
				continue
			}
			out := d.at(m.file, w.Start, "unknown-network", fmt.Sprintf("AppArmor knows no network family or type %s.", w.Text))
			plain := strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(strings.ToLower(w.Text), "af_"), "pf_"), "sock_")
			like := networkMeans[plain]
			if like == "" {
				like = nearest(plain, slices.Concat(networkFamilies[:6], []string{"inet6", "netlink", "packet"}, networkTypes, networkProtocols, networkFamilies))
			}
			if like != "" {
				return helped(out, "Did you mean %s? %s", like, networkHelp), true
			}
			return helped(out, "%s", networkHelp), true
		}
		out := d.at(m.file, r[1].Start, "unknown-network", "these words do not go together: a network rule names one family and one type.")
		return helped(out, "%s", networkHelp), true
	}
	return Diagnosis{}, false
}

const networkHelp = "For TCP over IPv4 write: network inet stream, and over IPv6: network inet6 stream, with dgram in place of stream for UDP."

func (d *diagnoser) socketRule(m message, words []string) (Diagnosis, bool) {
	for _, s := range d.around(m.file, m.line) {
		r := s.rule()
		if len(r) == 0 || !isWord(r[0], "unix", "network") {
			continue
		}
		if r[0].Text == "network" {
			if out, ok := d.networkList(m.file, r); ok {
				return out, true
			}
		}
		if out, ok := d.unknownWord(m.file, r); ok {
			return out, true
		}
	}
	return Diagnosis{}, false
}

// unknownWord finds the first word of a rule that the rule does not know.
func (d *diagnoser) unknownWord(file string, r []rules.Token) (Diagnosis, bool) {
	known := conditionals[r[0].Text]
	if known == nil {
		return Diagnosis{}, false
	}
	value := false
	for i, w := range r[1:] {
		next := func(s string) bool { return i+2 < len(r) && r[i+2].Is(s) }
		switch {
		case w.Is("=") || w.Kind == rules.Arrow:
			value = true
			continue
		case w.Is("("), w.Is(")"), w.Is(","):
			continue
		case value && !next("="):
			value = i > 0 && r[i].Is("(") // a list goes on
			continue
		case w.Kind != rules.Word || isFile(w) || w.Text == "=" || slices.Contains(known, w.Text):
			value = false
			continue
		}
		if r[0].Text == "network" && (slices.Contains(networkFamilies, w.Text) || slices.Contains(networkTypes, w.Text) || slices.Contains(networkProtocols, w.Text)) {
			continue
		}
		out := d.at(file, w.Start, "unknown-word", fmt.Sprintf("a %s rule knows no word %s.", r[0].Text, w.Text))
		if r[0].Text == "unix" && slices.Contains(networkTypes, w.Text) {
			return helped(out, "Write: type=%s", w.Text), true
		}
		if like := nearest(w.Text, known); like != "" {
			return helped(out, "Did you mean %s?", like), true
		}
		return helped(out, "It knows: %s.", strings.Join(known, " ")), true
	}
	return Diagnosis{}, false
}

func (d *diagnoser) socketType(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, words[1], "unknown-network", fmt.Sprintf("there is no socket type %s.", words[1]))
	if like := nearest(words[1], networkTypes); like != "" {
		return helped(out, "Did you mean %s?", like), true
	}
	return helped(out, "The types are: %s.", strings.Join(networkTypes, " ")), true
}

func (d *diagnoser) flag(m message, words []string) (Diagnosis, bool) {
	name, _, _ := strings.Cut(words[1], "=")
	out := d.pointAt(m, words[1], "unknown-flag", fmt.Sprintf("there is no profile flag %s.", words[1]))
	if since, ok := newFlags[name]; ok && d.version.before(since) {
		return d.tooNew(out, "the flag "+name, since), true
	}
	if like := nearest(name, profileFlags); like != "" && like != name {
		return helped(out, "Did you mean %s?", like), true
	}
	return helped(out, "The flags are: %s.", strings.Join(profileFlags, " ")), true
}

// tooNew says that the text wants a newer AppArmor.
func (d *diagnoser) tooNew(out Diagnosis, what string, since version) Diagnosis {
	out.Code = "too-new"
	out.Cause = fmt.Sprintf("%s came with AppArmor %s, and the parser of this system is older", what, since)
	if _, v, ok := strings.Cut(d.Version, "version "); ok && d.version != (version{}) {
		out.Cause += ": " + bounded(v, 40)
	}
	out.Cause += "."
	return helped(out, "Take it out here, or use the profile on a system with a newer AppArmor, such as Debian 13 with 4.1.")
}

func (d *diagnoser) flagConflict(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, words[2], "flag-conflict", fmt.Sprintf("the flags %s and %s exclude each other.", words[1], words[2]))
	return helped(out, "A profile has one mode: leave one of the two."), true
}

// modes points to the permissions in a rule on the line.
func (d *diagnoser) modes(m message, code, cause string) (out Diagnosis, words string) {
	for _, s := range d.around(m.file, m.line) {
		for _, w := range s.rule() {
			if isPermissions(w) && strings.ContainsAny(w.Text, "xX") {
				return d.at(m.file, w.Start, code, cause), w.Text
			}
		}
	}
	return d.onLine(m.file, m.line, code, cause), ""
}

const execHelp = "ix keeps the program in this profile, Px runs it under a profile of its own, Cx under a child profile, Ux without any."

func (d *diagnoser) execTwice(m message, words []string) (Diagnosis, bool) {
	out, _ := d.modes(m, "exec-conflict", "the permissions say twice what becomes of the program.")
	return helped(out, "Write one of them: %s", execHelp), true
}

func (d *diagnoser) execDenied(m message, words []string) (Diagnosis, bool) {
	out, _ := d.modes(m, "exec-denied", "in a deny rule x stands alone.")
	return helped(out, "Write x: what must not run needs no word on how it would."), true
}

func (d *diagnoser) execBare(m message, words []string) (Diagnosis, bool) {
	out, mode := d.modes(m, "exec-bare", "x alone does not say under which profile the program runs.")
	if mode == "" {
		mode = "x"
	}
	return helped(out, "Write %s to keep it in this profile. %s", strings.NewReplacer("x", "ix", "X", "ix").Replace(mode), execHelp), true
}

func (d *diagnoser) appendWrite(m message, words []string) (Diagnosis, bool) {
	out := d.onLine(m.file, m.line, "append-write", "a (append) and w (write) exclude each other.")
	for _, s := range d.around(m.file, m.line) {
		for _, w := range s.rule() {
			if isPermissions(w) && strings.ContainsAny(w.Text, "aA") && strings.ContainsAny(w.Text, "wW") {
				out = d.at(m.file, w.Start, out.Code, out.Cause)
			}
		}
	}
	return helped(out, "w allows appending too: leave the a out, or the w where the program only appends."), true
}

func (d *diagnoser) unsafe(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, "unsafe", "unsafe", "unsafe is for rules that let a program run, and this one does not.")
	return helped(out, "Take the word out."), true
}

func (d *diagnoser) owner(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, "owner", "owner", "owner is for files only.")
	return helped(out, "Take the word out: a capability or a network rule has no owner."), true
}

// attachment explains a profile whose second word is no path. The parser says
// so at the closing brace.
func (d *diagnoser) attachment(m message, words []string) (Diagnosis, bool) {
	var last *statement
	for i := range d.statements(m.file) {
		s := &d.stmts[m.file][i]
		if s.first() > m.line {
			break
		}
		if s.end == '{' && s.depth == 0 {
			last = s
		}
	}
	if last == nil {
		return Diagnosis{}, false
	}
	return d.header(m.file, last)
}

// fileName is what people take for a profile's name: its file's.
var fileName = pattern(`^(?:usr|bin|sbin|opt|snap|etc|lib|home|srv|var)\.[A-Za-z0-9._+-]+$`)

// header explains what is wrong with the head of a profile or hat.
func (d *diagnoser) header(file string, s *statement) (Diagnosis, bool) {
	w := s.words
	if len(w) == 0 {
		return Diagnosis{}, false
	}
	first := w[0]
	if !s.head() && !isFile(first) {
		if first.Kind != rules.Word && first.Kind != rules.Quoted {
			return Diagnosis{}, false
		}
		if fileName().MatchString(first.Text) {
			out := d.at(file, first.Start, "file-name-as-name", fmt.Sprintf("%s is the name of a file, not of a profile, and the word profile is missing in front.", first.Text))
			return helped(out, "Begin with the word profile, a name of your own and the path of the program: profile NAME /%s {", strings.ReplaceAll(first.Text, ".", "/")), true
		}
		if like := nearest(first.Text, []string{"profile", "hat"}); like != "" && len(w) > 1 && like != first.Text {
			out := d.at(file, first.Start, "unknown-word", fmt.Sprintf("AppArmor knows no word %s.", first.Text))
			return helped(out, "Did you mean %s?", like), true
		}
		out := d.at(file, first.Start, "no-profile-word", "the word profile is missing in front of the name.")
		return helped(out, "Write: profile %s {", first.Text), true
	}
	kind := "profile"
	if s.head() {
		if !first.Is("^") {
			kind = first.Text
		} else {
			kind = "hat"
		}
		w = w[1:]
	}
	if len(w) == 0 || w[0].Text == "{" || w[0].Is("(") {
		out := d.at(file, first.Start, "no-name", fmt.Sprintf("the %s has no name.", kind))
		return helped(out, "Write a name behind the word: %s NAME {", kind), true
	}
	for i, t := range w {
		if i == 0 || !isWord(t, "flags") && !t.Is("(") {
			continue
		}
		if isWord(t, "flags") && !(i+2 < len(w) && w[i+1].Is("=") && w[i+2].Is("(") && i+3 < len(w) && !w[i+3].Is(")")) {
			out := d.at(file, t.Start, "flags", "the flags are not written as a list.")
			return helped(out, "Write them in parentheses, behind an equals sign: flags=(complain)"), true
		}
		w = w[:i]
		break
	}
	switch {
	case len(w) == 2 && kind == "profile" && !rules.IsPath(w[0].Text) && !rules.IsPath(w[1].Text) && strings.Contains(w[1].Text, "/"):
		out := d.at(file, w[1].Start, "relative-path", fmt.Sprintf("the path of the program, %s, does not begin with a slash.", w[1].Text))
		return helped(out, "Write the whole path: /%s", w[1].Text), true
	case len(w) > 1 && !rules.IsPath(w[0].Text) && !rules.IsPath(w[1].Text):
		out := d.at(file, w[1].Start, "space-in-name", fmt.Sprintf("the name of the %s has a space in it.", kind))
		return helped(out, "Write it without: %s %s {", kind, joinWords(w, "-")), true
	case len(w) > 1 && rules.IsPath(w[len(w)-2].Text) && !rules.IsPath(w[len(w)-1].Text):
		k := 0
		for k < len(w) && !rules.IsPath(w[k].Text) {
			k++
		}
		out := d.at(file, w[k].Start, "space-in-path", "the path has a space in it.")
		return helped(out, "Put it in double quotes: %q", joinWords(w[k:], " ")), true
	}
	return Diagnosis{}, false
}

func joinWords(w []rules.Token, by string) string {
	var out []string
	for _, t := range w {
		if t.Kind == rules.Word || t.Kind == rules.Quoted {
			out = append(out, t.Text)
		}
	}
	return bounded(strings.Join(out, by), 200)
}

func (d *diagnoser) conditional(m message, words []string) (Diagnosis, bool) {
	kind := strings.TrimSuffix(words[1], "rule")
	out := d.pointAt(m, words[2], "unknown-word", fmt.Sprintf("a %s rule knows no word %s.", kind, words[2]))
	if like := nearest(words[2], conditionals[kind]); like != "" {
		return helped(out, "Did you mean %s?", like), true
	}
	return helped(out, "apparmor.d(5) lists what it knows."), true
}

func (d *diagnoser) signal(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, words[1], "unknown-signal", fmt.Sprintf("there is no signal %s.", words[1]))
	if like := nearest(strings.TrimPrefix(strings.ToLower(words[1]), "sig"), signalNames); like != "" {
		return helped(out, "Did you mean %s? The names are those of signal(7), in small letters and without SIG.", like), true
	}
	return helped(out, "The names are those of signal(7), in small letters and without SIG."), true
}

// mountOption finds the option: 3.0 names neither line nor option.
func (d *diagnoser) mountOption(m message, words []string) (Diagnosis, bool) {
	for _, f := range d.files() {
		for i := range d.statements(f) {
			r := d.stmts[f][i].rule()
			if len(r) == 0 || !isWord(r[0], "mount", "remount", "umount", "unmount") {
				continue
			}
			inside := false
			for k, w := range r {
				switch {
				case isWord(w, "options", "option"):
					inside = true
				case inside && (w.Is("=") || w.Is("(") || w.Is(",") || isWord(w, "in")):
				case inside && w.Kind == rules.Word && !slices.Contains(mountOptions, w.Text):
					out := d.at(f, w.Start, "unknown-mount-option", fmt.Sprintf("there is no mount option %s.", w.Text))
					if like := nearest(w.Text, mountOptions); like != "" {
						return helped(out, "Did you mean %s?", like), true
					}
					return helped(out, "The options are: %s.", strings.Join(mountOptions, " ")), true
				case inside && (w.Is(")") || k > 0 && r[k-1].Is("=")):
					inside = false
				}
			}
		}
	}
	return Diagnosis{}, false
}

func (d *diagnoser) limit(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, words[1], "unknown-limit", fmt.Sprintf("there is no limit %s.", words[1]))
	if like := nearest(words[1], limitNames); like != "" {
		return helped(out, "Did you mean %s?", like), true
	}
	return helped(out, "The limits are: %s.", strings.Join(limitNames, " ")), true
}

func (d *diagnoser) limitValue(m message, words []string) (Diagnosis, bool) {
	out := d.pointAt(m, "<=", "limit-value", fmt.Sprintf("the value of the limit %s is not one that it can have.", words[1]))
	return helped(out, "Write a number, with a unit where the limit has one, or infinity: set rlimit %s <= 1024,", words[1]), true
}
