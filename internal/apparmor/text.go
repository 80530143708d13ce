package apparmor

import (
	"strings"

	"github.com/aaunit/aaunit/internal/apparmor/rules"
	"github.com/aaunit/aaunit/internal/attach"
)

// The text of profiles is read here as far as the parser does not tell: where
// a profile stands, which flags and path it has, which rules let a child
// leave it. The compiled policy always comes from the parser.

// Bounds on one profile with all it includes.
const (
	maxProfiles = 4096
	maxLeaves   = 256 // for one profile
)

// textProfile is a profile as its text declares it.
type textProfile struct {
	name       string // children as "parent//child"
	file       string
	line       int
	attachment string
	flags      []string
	leaves     []attach.Leave
	child      bool
}

// textScan is what a profile file says, its includes put in place.
type textScan struct {
	profiles []textProfile
	vars     map[string][]string
	// tooLarge: the text was not read to its end.
	tooLarge bool
}

// block is an open brace.
type block struct {
	profile int // index of the profile it belongs to, -1 none
	deny    bool
}

// scanText reads a profile file.
func scanText(top rules.File, include rules.Includer) textScan {
	p := &textParser{scan: textScan{vars: map[string][]string{}}}
	p.scan.tooLarge = !rules.Walk(top, include, p)
	return p.scan
}

type textParser struct {
	scan   textScan
	blocks []block
}

func (p *textParser) Assign(t rules.Token) {
	if t.Op == "+=" {
		p.scan.vars[t.Text] = append(p.scan.vars[t.Text], t.Values...)
	} else {
		p.scan.vars[t.Text] = t.Values
	}
}

func (p *textParser) Close() {
	if len(p.blocks) > 0 {
		p.blocks = p.blocks[:len(p.blocks)-1]
	}
}

func (p *textParser) current() block {
	if len(p.blocks) == 0 {
		return block{profile: -1}
	}
	return p.blocks[len(p.blocks)-1]
}

// Open handles what stands before a brace: a profile, a hat, a condition, or
// qualifiers for several rules.
func (p *textParser) Open(s rules.Statement) {
	cur := p.current()
	rest, q := rules.ReadQualifiers(s.Tokens)
	if len(rest) == 0 || rest[0].Kind == rules.Word && (rest[0].Text == "if" || rest[0].Text == "else") {
		p.blocks = append(p.blocks, block{profile: cur.profile, deny: cur.deny || q.Deny})
		return
	}
	if rest[0].Kind == rules.Word && (rest[0].Text == "profile" || rest[0].Text == "hat") || rest[0].Is("^") {
		rest = rest[1:]
	}
	if len(rest) == 0 || rest[0].Kind != rules.Word && rest[0].Kind != rules.Quoted || len(p.scan.profiles) >= maxProfiles {
		p.blocks = append(p.blocks, block{profile: cur.profile, deny: cur.deny})
		return
	}
	tp := textProfile{name: rules.Unescape(rest[0].Text), file: s.File.Path, line: rest[0].Line}
	if cur.profile >= 0 {
		tp.child = true
		tp.name = p.scan.profiles[cur.profile].name + "//" + tp.name
	} else if rules.IsPath(rest[0].Text) {
		tp.attachment = rest[0].Text
	}
	if len(rest) > 1 && (rest[1].Kind == rules.Quoted || rest[1].Kind == rules.Word) && rules.IsPath(rest[1].Text) {
		tp.attachment = rest[1].Text
	}
	tp.flags = rules.Flags(rest[1:])
	p.scan.profiles = append(p.scan.profiles, tp)
	p.blocks = append(p.blocks, block{profile: len(p.scan.profiles) - 1})
}

// Rule looks whether a rule lets a child leave the profile.
func (p *textParser) Rule(s rules.Statement) {
	cur := p.current()
	if cur.profile < 0 || cur.deny {
		return
	}
	rest, q := rules.ReadQualifiers(s.Tokens)
	if q.Deny || !leaves(rest, p.scan.vars) {
		return
	}
	// Rules of children and hats are told at the profile they belong to.
	top := cur.profile
	for top > 0 && p.scan.profiles[top].child {
		top--
	}
	tp := &p.scan.profiles[top]
	if len(tp.leaves) < maxLeaves {
		tp.leaves = append(tp.leaves, attach.Leave{Rule: rules.Print(s.Tokens), Line: s.Flat})
	}
}

// leaves reports whether a rule, without its qualifiers, is one that runs
// programs without any profile: an exec transition with "ux" in any spelling
// (apparmor.d(5), "Access Modes": ux, Ux, pux, PUx, cux, CUx), one to the
// profile "unconfined", which the kernel finds under that name like any other
// (x_table_lookup in security/apparmor/domain.c), or a change_profile that may
// go there. vars are the text's variables.
func leaves(r []rules.Token, vars map[string][]string) bool {
	if len(r) == 0 {
		return false
	}
	if r[0].Kind == rules.Word && r[0].Text == "change_profile" {
		for i, t := range r {
			if t.Kind == rules.Arrow && i+1 < len(r) {
				return reachesUnconfined(r[i+1].Text, vars)
			}
		}
		return true // without a target: to any profile, unconfined included
	}
	if r[0].Kind == rules.Word && r[0].Text == "file" {
		// "file deny" is not a thing; "file owner" neither.
		r = r[1:]
	}
	if len(r) < 2 {
		return false
	}
	pathFirst := r[0].Kind == rules.Quoted || rules.IsPath(r[0].Text)
	pathSecond := r[1].Kind == rules.Quoted || rules.IsPath(r[1].Text)
	var perms string
	switch {
	case pathFirst && r[1].Kind == rules.Word:
		perms = permissions(r[1].Text)
	case !pathFirst && pathSecond && r[0].Kind == rules.Word:
		perms = permissions(r[0].Text)
	}
	if strings.Contains(perms, "ux") {
		return true
	}
	// "Cx -> NAME" goes to a child of that name.
	return (strings.Contains(perms, "px") || strings.Contains(perms, "pix")) && len(r) > 3 && r[2].Kind == rules.Arrow && reachesUnconfined(r[3].Text, vars)
}

// permissions gives the letters of an access mode in lower case, "" where the
// word is none.
func permissions(word string) string {
	const letters = "rwaklmxpcui"
	for i := range len(word) {
		if strings.IndexByte(letters, word[i]|0x20) < 0 {
			return ""
		}
	}
	return strings.ToLower(word)
}

// reachesUnconfined reports whether the target of a transition may be
// "unconfined". A stack that has another member stays confined by that.
func reachesUnconfined(target string, vars map[string][]string) bool {
	for _, member := range strings.Split(strings.TrimPrefix(target, "&"), "//&") {
		if strings.HasPrefix(target, "&") {
			return false // stacks on top of what is there
		}
		if strings.HasPrefix(member, ":") {
			if _, name, ok := strings.Cut(member[1:], ":"); ok {
				member = strings.TrimPrefix(name, "//")
			}
		}
		member = strings.ReplaceAll(member, "@{profile_name}", "x") // never empty, never unconfined
		re, ok := compileGlob(member, vars)
		if ok && !re.MatchString(attach.Unconfined) {
			return false
		}
	}
	return true
}
