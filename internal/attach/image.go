package attach

import "strings"

// An image is the files of a system that does not run: the tree below a directory.
// There is no kernel and no systemd to ask, and nothing to load or restart. What
// an attach to it comes to is that its attachment file and its drop-in are what
// aaunitd would write, so that its first boot starts the unit confined and aaunitd
// takes over what it finds.

// DiffImage is Diff for a unit of an image: what its files say is judged as ever,
// and what only a kernel could tell is not asked.
func DiffImage(d Desired, o Observed) Plan {
	o.Offline = true
	p := Plan{Unit: d.Unit, Profile: d.Profile, Actions: []Action{}}
	if d.pattern() {
		p.Refusals, p.Warnings = patternObstacles(d, o)
	} else {
		p.Refusals, p.Warnings = Obstacles(d, o)
	}
	p.Refusals = append(p.Refusals, imageSocketObstacles(d, o)...)
	if len(p.Refusals) > 0 {
		return p
	}
	diffImageSockets(&p, d, o)
	switch file := d.DropInPath(); {
	case !o.DropIn.Exists:
		p.add(WriteDropIn, file, because(DropInMissing, "%s does not exist", file))
	case o.DropIn.Content != d.DropInText(o.Unit):
		p.add(WriteDropIn, file, because(DropInDiffers, "%s is not what the attachment asks for", file))
	}
	return p
}

// ImageRules are the rules for socket options that an image has for a unit.
type ImageRules struct {
	// Exist, and Same: they are what the attachment says, for the unit and for each of
	// SocketUnits.
	Exist, Same bool
	// HelperProblem says why the start helper cannot run; "" where it can.
	HelperProblem string
}

// imageSocketObstacles is what keeps an image from holding socket options at its first
// boot. Nobody is there then to mend it.
func imageSocketObstacles(d Desired, o Observed) (out []Reason) {
	want := d.Attachment.SocketsWanted()
	if want == nil {
		return nil
	}
	if o.Rules.HelperProblem != "" {
		// No start of the unit would be held or recorded, and one that requires it fails.
		out = append(out, because(SocketsUnknown, "%s asks for socket options, and %s", d.Unit, o.Rules.HelperProblem).
			at(d.Attachment.Source).next("install the package aaunit in the image first"))
	}
	if o.SocketsProblem != "" && want.Requires() {
		out = append(out, because(SocketsUnknown, "%s requires socket options to be held, and its .socket units could not be looked at: %s", d.Unit, o.SocketsProblem).
			at(d.Attachment.Source).next("mend that, or say Required=no under [SocketOptions]"))
	}
	return out
}

// diffImageSockets plans the rules that the start helper reads at the first boot, and
// the drop-ins of .socket units that run it. What an attachment without rules leaves
// goes: a helper without rules fails a start.
func diffImageSockets(p *Plan, d Desired, o Observed) {
	if d.Attachment.SocketsWanted() != nil {
		if !o.Rules.Same {
			p.add(HoldSockets, d.RulesName(), because(SocketsChanged, "%s says what socket options %s may set", d.Attachment.Source, d.Unit))
		}
		diffSocketDropIns(p, d, o)
		return
	}
	for _, s := range o.SocketUnits {
		if s.DropIn.Ours {
			p.add(RemoveDropIn, d.socketDropIn(s.ID), because(SocketsReleased, "%s asks for no rules for socket options", d.Attachment.Source))
		}
	}
	if o.Rules.Exist {
		p.add(ReleaseSockets, d.RulesName(), because(SocketsReleased, "%s asks for no rules for socket options", d.Attachment.Source))
	}
}

// WroteSocketDropIn is WroteDropIn for the drop-in of a .socket unit.
func WroteSocketDropIn(text string) bool {
	return wroteSocketDropIn(text, true) || wroteSocketDropIn(text, false)
}

// wroteSocketDropIn is WroteSocketDropIn for one of the two lines. An earlier version
// named the attachment in it, when units did not share it yet, or had another line.
func wroteSocketDropIn(text string, required bool) bool {
	text = withPresentLine(text)
	a := Attachment{}
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(line, "# Attachment: "); ok {
			a.Source = v
		}
	}
	return text == socketHeader+socketBody(required) || text == header(a)+socketBody(required)
}

// WroteDropIn reports whether a drop-in is one that aaunit writes, or an earlier version
// wrote, to the letter.
// In an image no record says whose it is.
func WroteDropIn(text string) bool {
	text = withPresentLine(text)
	a := Attachment{PrivateTmp: PrivateTmpNo}
	profile := ""
	for line := range strings.SplitSeq(text, "\n") {
		if v, ok := strings.CutPrefix(line, "# Attachment: "); ok {
			a.Source = v
		}
		if v, ok := strings.CutPrefix(line, "AppArmorProfile="); ok {
			profile = v
		}
		if v, ok := strings.CutPrefix(line, "PrivateTmp="); ok {
			a.PrivateTmp = PrivateTmp(v)
		}
		for _, required := range []bool{true, false} {
			if line == SocketStartLine(required) {
				a.SocketOptions = &SocketOptions{Mode: SocketsRecord, Required: TriOf(required)}
			}
		}
	}
	return profile != "" && profile[0] != '-' && text == DropIn(a, profile)
}

// ImageUnit is how a unit of an image is prepared.
type ImageUnit struct {
	Unit        string `json:"unit"`
	Profile     string `json:"profile"`
	ProfileFile string `json:"profileFile,omitempty"`
	Attachment  string `json:"attachment,omitempty"` // file
	DropIn      string `json:"dropIn,omitempty"`     // where it belongs
	// Prepared: the drop-in is in place, the first boot loads the profile, and nothing
	// was found that speaks against the unit's coming up confined. No is that it is not,
	// and Reasons say why.
	Prepared Tri      `json:"prepared"`
	Reasons  []Reason `json:"reasons,omitempty"`
	Notes    []Reason `json:"notes,omitempty"`
}

// ImageReport is how the units of an image are prepared that attachment files name.
// It holds no verdicts: nothing runs.
type ImageReport struct {
	Root     string      `json:"root"`
	Problems []Reason    `json:"problems,omitempty"` // attachment files that are not in use
	Units    []ImageUnit `json:"units"`
	// Missing are names that were asked for and that no attachment names.
	Missing []Missing `json:"missing,omitempty"`
}
