package apparmor

import (
	"fmt"
	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// syntax finds what the parser calls a syntax error and nothing more.
func (d *diagnoser) syntax(m message, words []string) (Diagnosis, bool) {
	unexpected, expecting := words[1], words[2]
	if unexpected == "end of file" {
		if out, ok := d.missingClose(); ok {
			return out, true
		}
	}
	if unexpected == "TOK_CLOSE" && strings.Contains(expecting, "end of file") {
		out := d.pointAt(m, "}", "extra-brace", "this closing brace closes nothing.")
		return helped(out, "Take it out, or look for a brace above it that closes the profile too early."), true
	}
	if out := d.onLine(m.file, m.line, "relative-path", "a path does not begin with a slash."); bracePath().MatchString(out.Text) {
		return helped(out, "Write the whole path, such as /{usr/,}bin/sh"), true
	}
	around := d.around(m.file, m.line)
	if strings.Contains(expecting, "TOK_EQUALS") || expecting == "TOK_VALUE" {
		for _, s := range around {
			if out, ok := d.noValue(m.file, s); ok {
				return out, true
			}
		}
	}
	for _, s := range around {
		if s.line < m.line {
			continue
		}
		for _, look := range []func(string, *statement) (Diagnosis, bool){d.placeholder, d.outside, d.variable, d.header2, d.ruleCause} {
			if out, ok := look(m.file, s); ok {
				return out, true
			}
		}
	}
	return d.spliced(m)
}

// bracePath is a line that begins with an alternation.
var bracePath = pattern(`^\s*\{[^\s{}]*,[^\s{}]*\}[^\s{}]*/`)

// openBrace is a brace that was not closed yet.
type openBrace struct {
	at, line, indent int
}

// missingClose finds the opening brace that has no closing one: the one whose
// closing brace stands further to the left than the line that opens it, or
// else the last that is open.
func (d *diagnoser) missingClose() (Diagnosis, bool) {
	for _, f := range slices.Backward(d.files()) { // an include with an open brace is to blame first
		text := string(d.Sources[f])
		indent := func(at int) int {
			from := strings.LastIndexByte(text[:at], '\n') + 1
			return len(text[from:]) - len(strings.TrimLeft(text[from:], " \t"))
		}
		var stack []openBrace
		suspect := openBrace{at: -1}
		for l := rules.NewLexer(text); ; {
			t := l.Next()
			if t.Kind == rules.End {
				break
			}
			switch {
			case t.Is("{"):
				stack = append(stack, openBrace{at: t.Start, line: t.Line, indent: indent(t.Start)})
			case t.Is("}") && len(stack) > 0:
				top := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				if top.line != t.Line && indent(t.Start) < top.indent && suspect.at < 0 {
					suspect = top
				}
			}
		}
		if len(stack) == 0 {
			continue
		}
		if suspect.at < 0 {
			suspect = stack[len(stack)-1]
		}
		out := d.at(f, suspect.at, "missing-brace", "this opening brace is never closed.")
		return helped(out, "Write a closing brace } behind the last rule of the block that begins here."), true
	}
	return Diagnosis{}, false
}

// What people leave open, or know from the shell.
var (
	markers   = pattern(`@@[^@\n]{1,64}@@|<[A-Za-z][^<>\n]{0,64}>|\b(?:TODO|FIXME|CHANGE_?ME|FILL_\w+)\b`)
	shellVars = pattern(`\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?`)
)

func (d *diagnoser) placeholder(file string, s *statement) (Diagnosis, bool) {
	for i, w := range s.words {
		if w.Kind == rules.Include || w.Kind == rules.ABI || w.Kind == rules.Assign {
			return Diagnosis{}, false
		}
		if i == 0 && isWord(w, "if", "else") {
			return Diagnosis{}, false // $x is a boolean there
		}
	}
	if len(s.words) == 0 {
		return Diagnosis{}, false
	}
	raw := d.raw(file, s)
	if s.end == '{' { // "${HOME}" ends it
		rest, _, _ := strings.Cut(string(d.Sources[file][s.words[0].Start:]), "\n")
		raw = raw + rest[min(len(raw), len(rest)):]
	}
	if first := s.words[0]; first.Kind == rules.Word {
		rest := strings.TrimLeft(raw[min(len(first.Text), len(raw)):], " \t")
		like := ""
		switch {
		case strings.HasPrefix(rest, "<abi/"):
			like = "abi"
		case strings.HasPrefix(rest, "<abstractions/"), strings.HasPrefix(rest, "<tunables/"), strings.HasPrefix(rest, "<local/"):
			like = "include"
		case strings.HasPrefix(rest, "<"):
			like = nearest(first.Text, []string{"include", "abi"})
		}
		if like != "" && like != first.Text {
			out := d.at(file, first.Start, "unknown-word", fmt.Sprintf("AppArmor knows no word %s.", first.Text))
			return helped(out, "Did you mean %s?", like), true
		}
	}
	if m := markers().FindStringIndex(raw); m != nil {
		out := d.at(file, s.words[0].Start+m[0], "placeholder", fmt.Sprintf("%s is a placeholder that nobody has filled in.", raw[m[0]:m[1]]))
		return helped(out, "Decide what belongs in its place and write that; a profile with an open placeholder is refused on purpose."), true
	}
	if m := shellVars().FindStringSubmatchIndex(raw); m != nil {
		out := d.at(file, s.words[0].Start+m[0], "shell-variable", fmt.Sprintf("%s is how the shell writes a variable; AppArmor writes it @{%s}.", raw[m[0]:m[1]], raw[m[2]:m[3]]))
		return helped(out, "Write @{%s}, which must have a value: include <tunables/global> in front of the profile brings @{HOME} and others. A unit's environment is not known to AppArmor.", raw[m[2]:m[3]]), true
	}
	return Diagnosis{}, false
}

// noValue finds a variable that is named and not set.
func (d *diagnoser) noValue(file string, s *statement) (Diagnosis, bool) {
	switch {
	case len(s.words) == 0:
	case s.words[0].Kind == rules.Assign && len(s.words[0].Values) == 0:
		out := d.at(file, s.words[0].Stop, "variable", fmt.Sprintf("the variable @{%s} is given no value.", s.words[0].Text))
		return helped(out, `Write one behind the equals sign, in the same line, or "" for nothing.`), true
	case s.depth == 0 && s.words[0].Kind == rules.Word && strings.HasPrefix(s.words[0].Text, "@{"):
		out := d.at(file, s.words[0].Stop, "variable", fmt.Sprintf("no equals sign follows the variable %s.", s.words[0].Text))
		return helped(out, "Write: %s = value", s.words[0].Text), true
	}
	return Diagnosis{}, false
}

// variable finds an assignment that is written wrongly, or in a wrong place.
func (d *diagnoser) variable(file string, s *statement) (Diagnosis, bool) {
	switch {
	case len(s.words) == 0:
	case s.words[0].Kind == rules.Assign && s.depth > 0:
		out := d.at(file, s.words[0].Start, "variable", "a variable is set inside of a profile.")
		return helped(out, "Put the line in front of the profile, outside the braces."), true
	case len(s.words) > 1 && s.words[0].Kind == rules.Word && s.words[1].Is("=") && !slices.Contains(qualifierWords, s.words[0].Text):
		out := d.at(file, s.words[0].Start, "variable", "a variable is written with @ and braces.")
		return helped(out, "Write: @{%s} = value, without a comma at the end, in front of the profile.", s.words[0].Text), true
	}
	return Diagnosis{}, false
}

// outside finds a rule that stands in no profile.
func (d *diagnoser) outside(file string, s *statement) (Diagnosis, bool) {
	if file != d.File || s.depth > 0 || s.end != ',' || !complete(s.words) || s.words[0].Kind == rules.ABI || isWord(s.words[0], "alias") {
		return Diagnosis{}, false
	}
	out := d.at(file, s.words[0].Start, "outside", "the rule stands outside of any profile.")
	return helped(out, "Rules belong between the braces: profile NAME /path/of/the/program { … }. Look for a closing brace above that comes too early."), true
}

// header2 is header for what is meant as one.
func (d *diagnoser) header2(file string, s *statement) (Diagnosis, bool) {
	switch {
	case len(s.words) == 0, isWord(s.words[0], "if", "else"):
		return Diagnosis{}, false
	case s.head() && s.end != '{' && len(s.words) > 1 && s.words[1].Text != "{":
		out := d.at(file, s.words[len(s.words)-1].Stop, "missing-brace", "the opening brace { is missing.")
		return helped(out, "A profile or hat has its rules between braces: %s { … }", strings.TrimSuffix(rules.Print(s.words), ",")), true
	case s.head(), s.end == '{' && s.depth == 0 && !isWord(s.words[0], qualifierWords...):
		return d.header(file, s)
	}
	return Diagnosis{}, false
}

// qualifierRank is the order in which qualifiers stand (apparmor.d(5),
// QUALIFIERS).
var qualifierRank = map[string]int{"priority": 1, "audit": 2, "allow": 3, "deny": 3, "prompt": 3, "owner": 4}

// ruleCause explains a rule that the parser does not understand.
func (d *diagnoser) ruleCause(file string, s *statement) (Diagnosis, bool) {
	r := s.rule()
	rank, was := 0, ""
	for _, q := range s.words[:len(s.words)-len(r)] {
		n := qualifierRank[q.Text]
		if since, ok := newWords[q.Text]; ok && d.version.before(since) {
			return d.tooNew(d.at(file, q.Start, "", ""), "the word "+q.Text, since), true
		}
		if q.Text == "quiet" {
			out := d.at(file, q.Start, "unknown-word", "AppArmor knows no word quiet.")
			return helped(out, "Take it out; deny keeps a denial out of the log by itself."), true
		}
		if n > 0 && n < rank {
			out := d.at(file, q.Start, "word-order", fmt.Sprintf("%s stands in front of %s.", q.Text, was))
			return helped(out, "The order is: audit, then allow or deny, then owner."), true
		}
		rank, was = max(rank, n), q.Text
	}
	if len(r) == 0 {
		if s.end == ',' && len(s.words) == 0 {
			out := d.at(file, s.endAt, "extra-comma", "there is no rule in front of this comma.")
			return helped(out, "Take the comma out."), true
		}
		return Diagnosis{}, false
	}
	if out, ok := d.afterComma(file, s); ok {
		return out, true
	}
	first := r[0]
	switch {
	case isFile(first):
		return d.fileRule(file, r)
	case first.Kind != rules.Word:
		return Diagnosis{}, false
	case permissionWords[first.Text] != "" && first.Text != "link" && first.Text != "all" && len(r) > 1 && isFile(r[1]):
		return d.permissionWord(file, first), true
	case first.Text == "file" && len(r) > 1:
		if permissionWords[r[1].Text] != "" {
			return d.permissionWord(file, r[1]), true
		}
		return d.fileRule(file, r[1:])
	case first.Text == "rlimit":
		out := d.at(file, first.Start, "unknown-word", "a limit is set with the word set in front.")
		return helped(out, "Write: set %s", rules.Print(r)), true
	}
	if since, ok := newWords[first.Text]; ok && d.version.before(since) {
		return d.tooNew(d.at(file, first.Start, "", ""), first.Text, since), true
	}
	switch {
	case first.Text == "capability":
		return d.capabilityList(file, r)
	case first.Text == "network":
		return d.networkList(file, r)
	case first.Text == "alias" && len(r) == 3:
		out := d.at(file, r[2].Start, "missing-arrow", "the arrow between the two paths is missing.")
		return helped(out, "Write: alias %s -> %s,", r[1].Text, r[2].Text), true
	case first.Text == "link" && len(r) == 2:
		out := d.at(file, r[1].Stop, "missing-arrow", "a link rule names the link and what it points to.")
		return helped(out, "Write: link %s -> /the/target,", r[1].Text), true
	case slices.Contains(ruleWords, first.Text):
		return d.unknownWord(file, r)
	case strings.Contains(first.Text, "/"):
		out := d.at(file, first.Start, "relative-path", fmt.Sprintf("the path %s does not begin with a slash.", first.Text))
		return helped(out, "Write the whole path: /%s", first.Text), true
	case isPermissions(first) && len(r) == 1:
		out := d.at(file, first.Start, "no-path", fmt.Sprintf("the permissions %s stand without a path.", first.Text))
		return helped(out, "Write the path in front of them: /path %s,", first.Text), true
	case isPermissions(first):
		return Diagnosis{}, false
	}
	out := d.at(file, first.Start, "unknown-word", fmt.Sprintf("AppArmor knows no word %s.", first.Text))
	list := ruleWords
	if len(r) == len(s.words) || len(r) > 1 {
		list = append(slices.Clone(qualifierWords), ruleWords...)
	}
	if like := nearest(first.Text, list); like != "" && like != first.Text {
		return helped(out, "Did you mean %s?", like), true
	}
	return helped(out, "A rule begins with a path, or with a word such as %s.", strings.Join(ruleWords[:12], ", ")), true
}

// afterComma finds a list whose comma has ended the rule.
func (d *diagnoser) afterComma(file string, s *statement) (Diagnosis, bool) {
	if len(s.words) != 1 || s.words[0].Kind != rules.Word {
		return Diagnosis{}, false
	}
	word := s.words[0]
	all := d.statements(file)
	i := slices.IndexFunc(all, func(o statement) bool { return len(o.words) == 1 && o.words[0].Start == word.Start })
	if i < 1 || all[i-1].end != ',' || all[i-1].line != word.Line {
		return Diagnosis{}, false
	}
	p := all[i-1].rule()
	switch {
	case len(p) == 0:
	case isWord(p[0], "capability"):
		out := d.at(file, all[i-1].endAt, "list", fmt.Sprintf("the comma in front of %s ends the rule.", word.Text))
		return helped(out, "Write several capabilities with spaces between them: %s %s,", strings.TrimSuffix(rules.Print(p), ","), word.Text), true
	case isWord(p[0], "network"):
		out := d.at(file, all[i-1].endAt, "list", fmt.Sprintf("the comma in front of %s ends the rule.", word.Text))
		return helped(out, "Write a rule for each: network inet stream, network inet6 stream,"), true
	case isFile(p[0]) && isPermissions(word):
		out := d.at(file, all[i-1].endAt, "list", fmt.Sprintf("the comma in front of %s ends the rule.", word.Text))
		return helped(out, "Write the permissions together: %s%s,", strings.TrimSuffix(rules.Print(p), ","), word.Text), true
	}
	return Diagnosis{}, false
}

func (d *diagnoser) permissionWord(file string, w rules.Token) Diagnosis {
	out := d.at(file, w.Start, "permissions", fmt.Sprintf("permissions are letters, not words such as %s.", w.Text))
	return helped(out, "Write %s. %s", permissionWords[strings.ToLower(w.Text)], permissionHelp)
}

const permissionHelp = "The letters are r (read), w (write), a (append), k (lock), l (link), m (map into memory) and ix, Px, Cx, Ux (run)."

// fileRule explains a rule that begins with a path.
func (d *diagnoser) fileRule(file string, r []rules.Token) (Diagnosis, bool) {
	if strings.HasPrefix(r[0].Text, "//") && r[0].Kind == rules.Word {
		out := d.at(file, r[0].Start, "comment", "// begins no comment in a profile.")
		return helped(out, "A comment begins with #"), true
	}
	if !isFile(r[0]) {
		return Diagnosis{}, false
	}
	w := r[1:]
	if i := slices.IndexFunc(w, func(t rules.Token) bool { return t.Kind == rules.Arrow }); i >= 0 {
		w = w[:i]
	}
	switch {
	case len(w) == 0 || w[0].Line > r[0].Line && isFile(w[0]):
		out := d.at(file, r[0].Stop, "no-permissions", fmt.Sprintf("the rule does not say what is allowed with %s.", r[0].Text))
		return helped(out, "Write the permissions behind the path: %s r, %s", r[0].Text, permissionHelp), true
	case w[0].Is("("):
		out := d.at(file, w[0].Start, "permissions", "the permissions stand in parentheses.")
		return helped(out, "Write the letters by themselves: %s r,", r[0].Text), true
	case len(w) > 1 && !slices.ContainsFunc(w, func(t rules.Token) bool { return !isPermissions(t) }):
		out := d.at(file, w[1].Start, "permissions", "there is a space between the permissions.")
		return helped(out, "Write them together: %s", joinWords(w, "")), true
	case len(w) > 1 && isPermissions(w[len(w)-1]) && !isPermissions(w[0]) && w[0].Kind == rules.Word:
		out := d.at(file, r[0].Start, "space-in-path", "the path has a space in it.")
		return helped(out, "Put it in double quotes: %q %s,", r[0].Text+" "+joinWords(w[:len(w)-1], " "), w[len(w)-1].Text), true
	case isPermissions(w[0]) && len(w) > 1:
		out := d.at(file, w[1].Start, "unknown-word", fmt.Sprintf("nothing is expected behind the permissions %s.", w[0].Text))
		return helped(out, "A file rule is a path, its permissions and a comma: %s %s,", r[0].Text, w[0].Text), true
	case isPermissions(w[0]) || w[0].Kind != rules.Word:
		return Diagnosis{}, false
	case permissionWords[strings.ToLower(w[0].Text)] != "":
		return d.permissionWord(file, w[0]), true
	}
	if _, cause := unbalanced(r[0].Text); cause != "" && r[0].Kind == rules.Word {
		out := d.at(file, r[0].Start, "space-in-path", "the path has a space in it.")
		return helped(out, "Put the whole path in double quotes."), true
	}
	for i, c := range w[0].Text {
		if !strings.ContainsRune("rwaklmxpcuiRWAKLMXPCUI", c) {
			out := d.at(file, w[0].Start+i, "permissions", fmt.Sprintf("there is no permission %c.", c))
			return helped(out, "%s", permissionHelp), true
		}
	}
	out := d.at(file, w[0].Start, "permissions", fmt.Sprintf("%s cannot stand as permissions: i, p, c and u have their place directly in front of x.", w[0].Text))
	return helped(out, "%s", permissionHelp), true
}

// listed are the words of a list that its rule does not take as one.
func listed(r []rules.Token) (at rules.Token, words []string) {
	for _, w := range r[1:] {
		switch {
		case w.Kind == rules.Punct && at.Text == "":
			at = w
		case w.Kind == rules.Word || w.Kind == rules.Quoted:
			words = append(words, bounded(w.Text, 40))
		}
	}
	return at, words[:min(len(words), 12)]
}

func (d *diagnoser) capabilityList(file string, r []rules.Token) (Diagnosis, bool) {
	for _, w := range r[1:] {
		if isFile(w) {
			out := d.at(file, w.Start, "unknown-capability", "a capability rule takes names of capabilities only.")
			return helped(out, "Write the names themselves: capability net_bind_service,"), true
		}
	}
	if at, words := listed(r); at.Text != "" {
		out := d.at(file, at.Start, "list", fmt.Sprintf("a capability rule takes no %s.", at.Text))
		return helped(out, "Write several capabilities with spaces between them: capability %s,", strings.Join(words, " ")), true
	}
	return Diagnosis{}, false
}

func (d *diagnoser) networkList(file string, r []rules.Token) (Diagnosis, bool) {
	for i, w := range r[1:] {
		known := slices.Contains(networkFamilies, w.Text) || slices.Contains(networkTypes, w.Text) || slices.Contains(networkProtocols, w.Text)
		switch {
		case isWord(w, "ip", "port", "peer") && i+2 < len(r) && r[i+2].Is("="):
			if since := (version{4, 0}); d.version.before(since) {
				return d.tooNew(d.at(file, w.Start, "", ""), w.Text+"= in a network rule", since), true
			}
		case isWord(w, "to", "from", "port", "ip") || w.Kind == rules.Word && !known && strings.Trim(w.Text, "0123456789.:/") == "":
			out := d.at(file, w.Start, "network-address", "a network rule names families and types, not addresses or ports.")
			return helped(out, "Keep network inet stream, and limit addresses in the unit with IPAddressAllow= and IPAddressDeny= of systemd.resource-control(5), or with a firewall."), true
		case w.Is("("), w.Is(","):
			out := d.at(file, w.Start, "list", "a network rule takes no list.")
			return helped(out, "Write a rule for each: network inet stream, network inet6 stream,"), true
		case w.Kind == rules.Word && !known:
			return d.network(message{file: file, line: w.Line}, nil)
		}
	}
	return Diagnosis{}, false
}

// badCharacter reads the lexer's message.
var badCharacter = pattern(`\(0x([0-9a-f]+)\) in state: (\w+)`)

// character explains a character that the parser does not take where it stands.
func (d *diagnoser) character(m message, _ []string) (Diagnosis, bool) {
	g := badCharacter().FindStringSubmatch(m.text)
	if g == nil {
		return Diagnosis{}, false
	}
	n, err := strconv.ParseUint(g[1], 16, 64) // a char, with its sign
	if err != nil {
		return Diagnosis{}, false
	}
	c, state := byte(n), g[2]
	text := string(d.Sources[m.file])
	switch {
	case c == 0:
		return helped(d.onLine(m.file, m.line, "not-text", "the file is not a text."), "Give the file that holds the profile; a compiled policy or a program is none."), true
	case c == '[' && regexp.MustCompile(`(?m)^\[(?:Unit|Service|Install|Attachment)\]`).MatchString(text):
		return helped(d.pointAt(m, "[", "not-a-profile", "this is a systemd unit or settings file, not a profile."), "Profiles lie in /etc/apparmor.d and begin like this: profile NAME /path/of/the/program {"), true
	case c >= 0x80:
		out := d.onLine(m.file, m.line, "character", "the line holds a character that AppArmor does not take outside of quotes.")
		for i, r := range out.Text {
			if r < 0x80 {
				continue
			}
			out.Column = 1 + utf8.RuneCountInString(out.Text[:i])
			switch r {
			case '\u00a0', '\u2007', '\u202f':
				out.Cause = "the line holds a no-break space, which looks like a space and is none."
				return helped(out, "Delete it and type a space; it often comes with text copied from a web page."), true
			case '“', '”', '„', '‘', '’', '«', '»':
				out.Cause = "the quotes are typographic ones."
				return helped(out, `Write straight double quotes: "`), true
			}
			break
		}
		return helped(out, "Put a path with such characters in double quotes."), true
	}
	around := d.around(m.file, m.line)
	for _, s := range around {
		if s.line < m.line {
			continue
		}
		for _, look := range []func(string, *statement) (Diagnosis, bool){d.placeholder, d.nameOfFile} {
			if out, ok := look(m.file, s); ok {
				return out, true
			}
		}
	}
	out := d.pointAt(m, string(rune(c)), "character", fmt.Sprintf("AppArmor does not take the character %c here.", c))
	switch {
	case c == '"':
		out.Cause = "the quote that opens here is not closed."
		return helped(out, `A path or name in quotes ends with a second " in the same line.`), true
	case c == '\'':
		out.Cause = "AppArmor knows no single quotes."
		return helped(out, `Write double quotes: "`), true
	case c == '~':
		out.Cause = "AppArmor does not know ~ for the home directory."
		return helped(out, "Write @{HOME}, with include <tunables/global> as the first line of the file, or the whole path."), true
	case c == ';':
		out.Cause = "a rule ends with a comma, not with a semicolon."
		return helped(out, "Write a comma."), true
	case c == '=' && state == "RLIMIT_MODE":
		out.Cause = "a limit is written with <= in front of its value."
		return helped(out, "Write, for example: set rlimit nofile <= 1024,"), true
	case c == '<' && (state == "INCLUDE" || state == "INCLUDE_EXISTS" || state == "ABI_MODE"):
		out.Cause = "the < is not closed with >."
		return helped(out, "Write: include <abstractions/base>"), true
	case c == '@' || c == '$':
		out.Cause = "this is not how a variable is written."
		return helped(out, "A variable is @{NAME}: the name has letters, digits and _ only, and stands in braces."), true
	case c == '*' || c == '[' || c == '?' || c == '.':
		out.Cause = "a path does not begin with a slash."
		return helped(out, "Write the whole path, such as /etc/*.conf"), true
	case c >= '0' && c <= '9':
		for _, s := range around {
			if r := s.rule(); len(r) > 1 && isFile(r[0]) && strings.Trim(r[1].Text, "0123456789") == "" && r[1].Kind == rules.Word {
				out := d.at(m.file, r[1].Start, "permissions", "permissions are letters, not the numbers of chmod.")
				return helped(out, "%s", permissionHelp), true
			}
		}
	}
	return helped(out, "apparmor.d(5) lists the rules and how they are written."), true
}

func (d *diagnoser) nameOfFile(file string, s *statement) (Diagnosis, bool) {
	if len(s.words) == 0 || s.words[0].Kind != rules.Word || !fileName().MatchString(s.words[0].Text) {
		return Diagnosis{}, false
	}
	return d.header(file, s)
}
