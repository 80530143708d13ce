package report

import (
	"cmp"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"slices"
	"strings"
	"sync"
	"unicode"

	"github.com/aaunit/aaunit/internal/attach"
)

//go:embed page.html
var pageText string

//go:embed page.css
var styleText string

// Bounds on the page: it has to open on a phone. What is left out is counted, and is
// in the JSON.
const (
	maxCards    = 300
	maxItems    = 400 // findings, changes, rows of a table
	maxHostRows = 10_000
	maxUnitRows = 2000
	maxDepth    = 12 // of the picture of processes
)

// view is what the page shows.
type view struct {
	Title, Lede string
	Tone        string // ok, bad, unknown
	Style       template.CSS
	StyleHash   string
	Made        string
	One         *attach.HostReport // of a report of one host
	Counts      Counts
	Bar         []segment
	Findings    []findingGroup
	Since       string
	Changes     []Change
	MoreChanges int
	Controls    []Control
	Hosts       []hostRow
	MoreHosts   int
	Cards       []card
	MoreCards   int
	Rows        []unitRow
	MoreRows    int
	Others      []other
	MoreOthers  int
	OthersUnder string
	Allowed     []allowance
	MoreAllowed int
	Left        []Left
}

type segment struct {
	Tone, Label string
	N           int
	X, Width    float64 // per cent
}

type findingGroup struct {
	Level Level
	Title string
	Items []Group
	More  int
}

type hostRow struct {
	Name, OS, At, Tone, State string
	Counts                    Counts
}

type unitRow struct {
	Host string
	U    attach.UnitReport
	Tone string
	Says string
}

type card struct {
	Host     string
	U        attach.UnitReport
	Tone     string
	Says     string
	Reasons  []attach.Reason
	Tree     []*node
	Sockets  []string
	MoreSock int
}

type node struct {
	P        attach.Process
	Tone     string
	Children []*node
}

type other struct {
	Host    string
	E       attach.Exposure
	Tone    string
	Exposed string
	Sockets string
}

type allowance struct {
	Host, Unit string
	attach.Allowance
	Words string
}

// HTML writes the page. old is an earlier report to compare with, or nil.
func HTML(w io.Writer, d Document, old *Document) error {
	sum := sha256.Sum256([]byte(styleText))
	v := view{Style: template.CSS(styleText), StyleHash: base64.StdEncoding.EncodeToString(sum[:]), Made: day(d.Made), Counts: CountAll(d.Hosts), Controls: Controls(d), Left: d.Left}
	v.Left = v.Left[:min(len(v.Left), maxItems)]
	if len(d.Hosts) == 1 {
		v.One = &d.Hosts[0]
		v.Title = "AppArmor on " + visible(hostName(d.Hosts[0].Machine))
	} else {
		v.Title = fmt.Sprintf("AppArmor on %d hosts", len(d.Hosts))
	}
	v.summary()
	v.findings(d)
	if old != nil {
		v.Since = day(old.Made)
		v.Changes = Drift(*old, d)
		v.MoreChanges = max(0, len(v.Changes)-maxItems)
		v.Changes = v.Changes[:min(len(v.Changes), maxItems)]
	}
	v.units(d)
	t, err := page()
	if err != nil {
		return fmt.Errorf("cannot make the page: %w", err)
	}
	return t.Execute(w, v)
}

// page is the template, read once.
var page = sync.OnceValues(func() (*template.Template, error) {
	return template.New("page").Funcs(template.FuncMap{
		"t": visible, "day": day, "short": short, "words": answerWords, "tone": triTone, "plural": plural, "leveltone": levelTone,
	}).Parse(pageText)
})

func (v *view) summary() {
	c := v.Counts
	all := c.Units()
	switch {
	case c.NotConfined+c.PatternsNotConfined > 0:
		v.Tone = "bad"
	case c.Unknown+c.PatternsUnknown > 0 || all == c.NotRunning || c.NotLooked > 0:
		v.Tone = "unknown"
	default:
		v.Tone = "ok"
	}
	if c.Network > 0 {
		v.Tone = "bad"
	}
	switch {
	case all == 0:
		v.Lede = "No service is attached to a profile."
	case c.Confined == all:
		v.Lede = fmt.Sprintf("All %s proved confined.", plural(all, "attached service is", "attached services are"))
	default:
		v.Lede = fmt.Sprintf("%d of %s proved confined.", c.Confined, plural(all, "attached service is", "attached services are"))
	}
	x := 0.0
	for _, s := range []segment{{Tone: "ok", Label: "confined", N: c.Confined}, {Tone: "bad", Label: "not confined", N: c.NotConfined},
		{Tone: "unknown", Label: "could not be told", N: c.Unknown}, {Tone: "quiet", Label: "not running", N: c.NotRunning}} {
		s.X = x
		if all > 0 {
			s.Width = 100 * float64(s.N) / float64(all)
		}
		x += s.Width
		v.Bar = append(v.Bar, s)
	}
}

var levelTitles = map[Level]string{Bad: "Not confined, or open without a profile", Unknown: "Could not be told", Warn: "Somebody should look", Note: "Worth knowing"}

func (v *view) findings(d Document) {
	groups := map[Level]*findingGroup{}
	for _, f := range Groups(d) {
		g := groups[f.Level]
		if g == nil {
			g = &findingGroup{Level: f.Level, Title: levelTitles[f.Level]}
			groups[f.Level] = g
		}
		if len(g.Items) == maxItems {
			g.More++
			continue
		}
		g.Items = append(g.Items, f)
	}
	for _, l := range []Level{Bad, Unknown, Warn, Note} {
		if g := groups[l]; g != nil {
			v.Findings = append(v.Findings, *g)
		}
	}
}

var tones = map[standing]string{standsConfined: "ok", standsNotConfined: "bad", standsUnknown: "unknown", standsStopped: "quiet", standsPattern: "quiet"}

// openTones are those of a pattern of which units to come are not known to be confined.
var openTones = map[attach.Answer]string{attach.NotConfined: "bad", attach.Unknown: "unknown"}

func (v *view) units(d Document) {
	type exposure struct {
		host string
		attach.Exposure
	}
	var cards []card
	var exposed []exposure
	for _, h := range d.Hosts {
		name := hostName(h.Machine)
		c := Count(h)
		row := hostRow{Name: name, OS: h.Machine.OS, At: day(h.At), Counts: c, Tone: "ok", State: "confined"}
		switch {
		case c.NotConfined+c.PatternsNotConfined > 0:
			row.Tone, row.State = "bad", "not confined"
		case c.Network > 0:
			row.Tone, row.State = "bad", "open without a profile"
		case c.Unknown+c.PatternsUnknown > 0 || c.Confined == 0 || c.NotLooked > 0 || h.Host.Enabled != attach.Yes:
			row.Tone, row.State = "unknown", "could not be told"
		}
		if h.Host.Enabled == attach.No || h.Host.Enabled == attach.Yes && h.Host.GlobalMode != "" && !h.Host.GlobalMode.Confines() {
			row.Tone, row.State = "bad", "AppArmor does not enforce"
		}
		if len(v.Hosts) < maxHostRows {
			v.Hosts = append(v.Hosts, row)
		} else {
			v.MoreHosts++
		}
		for _, u := range h.Units {
			s := standingOf(u)
			r := unitRow{Host: name, U: u, Tone: tones[s], Says: Standing(u)}
			open := u.Pattern && toCome(u) != attach.Confined
			if open {
				r.Tone = openTones[toCome(u)]
			}
			switch {
			case v.One != nil: // each has a card
			case len(v.Rows) < maxUnitRows:
				v.Rows = append(v.Rows, r)
			default:
				v.MoreRows++
			}
			for _, a := range u.Allowed {
				if len(v.Allowed) < maxItems {
					v.Allowed = append(v.Allowed, allowance{Host: name, Unit: u.Unit, Allowance: a, Words: allowed(a)})
				} else {
					v.MoreAllowed++
				}
			}
			// Of a fleet those are shown that are not as they should be.
			if v.One == nil && (s == standsConfined || s == standsStopped || s == standsPattern && !open) {
				continue
			}
			cards = append(cards, card{Host: name, U: u, Tone: r.Tone, Says: r.Says})
		}
		if h.Unattached != nil {
			for _, e := range h.Unattached.Services {
				exposed = append(exposed, exposure{name, e})
			}
		}
	}
	slices.SortStableFunc(exposed, func(a, b exposure) int { return a.Compare(b.Exposure) })
	v.MoreOthers = max(0, len(exposed)-maxItems)
	for _, e := range exposed[:min(len(exposed), maxItems)] {
		v.Others = append(v.Others, otherOf(e.host, e.Exposure))
	}
	order := []string{"bad", "unknown", "ok", "quiet"}
	slices.SortStableFunc(cards, func(a, b card) int { return cmp.Compare(slices.Index(order, a.Tone), slices.Index(order, b.Tone)) })
	v.MoreCards = max(0, len(cards)-maxCards)
	v.Cards = cards[:min(len(cards), maxCards)]
	for i := range v.Cards {
		v.Cards[i].fill()
	}
}

func (c *card) fill() {
	u := c.U
	c.Reasons = slices.Concat(u.Refused, u.Held)
	if u.Verdict != nil {
		c.Reasons = slices.Concat(u.Refused, u.Verdict.Reasons, u.Held)
	}
	if u.Seen == nil {
		return
	}
	c.Tree = tree(u.Seen.Processes)
	had := map[string]bool{}
	for _, l := range u.Seen.Listening {
		if s := visible(l.String()); !had[s] {
			had[s] = true
			c.Sockets = append(c.Sockets, s)
		}
	}
	c.MoreSock = u.Seen.MoreListening
}

func otherOf(host string, e attach.Exposure) other {
	o := other{Host: host, E: e, Tone: "warn", Sockets: sockets(e.Listening, attach.ReachNetwork)}
	if o.Sockets == "" {
		o.Sockets = cmp.Or(sockets(e.Listening, attach.ReachLoopback), sockets(e.Listening, attach.ReachUnix))
	}
	switch e.Class {
	case attach.ExposedNetwork:
		o.Tone, o.Exposed = "bad", "the network"
	case attach.ExposedLocal:
		o.Exposed = "programs of the machine"
	case attach.ExposedRoot:
		o.Exposed = "nobody, but runs as root"
	case attach.ExposedCaps:
		o.Exposed = "nobody, but has capabilities"
	default:
		o.Tone, o.Exposed = "unknown", "could not be told"
	}
	return o
}

// tree puts processes below their parents. One whose parent is not among them is a
// root, and so is one that claims to descend from itself.
func tree(list []attach.Process) []*node {
	nodes := map[int]*node{}
	for _, p := range list {
		if nodes[p.PID] == nil {
			nodes[p.PID] = &node{P: p, Tone: triTone(p.Confines)}
		}
	}
	// Going up from a process in a circle never ends, nor soon in a long chain.
	most := min(len(nodes), maxDepth)
	shown := func(pid int) bool {
		n := 0
		for at := nodes[pid]; at != nil && n <= most; at = nodes[at.P.PPID] {
			n++
		}
		return n <= most
	}
	var roots []*node
	seen := map[int]bool{}
	for _, p := range list {
		n := nodes[p.PID]
		if seen[p.PID] {
			continue
		}
		seen[p.PID] = true
		if parent := nodes[p.PPID]; parent != nil && parent != n && shown(p.PID) {
			parent.Children = append(parent.Children, n)
		} else {
			roots = append(roots, n)
		}
	}
	return roots
}

func triTone(t attach.Tri) string {
	switch t {
	case attach.Yes:
		return "ok"
	case attach.No:
		return "bad"
	}
	return "unknown"
}

func levelTone(l Level) string {
	switch l {
	case Bad:
		return "bad"
	case Warn:
		return "warn"
	case Note:
		return "quiet"
	}
	return "unknown"
}

func answerWords(t attach.Tri) string {
	switch t {
	case attach.Yes:
		return "yes"
	case attach.No:
		return "no"
	}
	return "could not tell"
}

// visible shows what a reader could not see, or what would turn the direction of the
// text around.
func visible(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}
