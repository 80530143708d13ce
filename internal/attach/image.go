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
	if s := d.Attachment.SocketsWanted(); s != nil && s.Requires() {
		// The start helper has no rules before aaunitd has run once, and a start that
		// requires them fails.
		p.Refusals = append(p.Refusals, because(SocketsUnknown, "%s requires socket options to be held, which an image cannot be prepared for", d.Unit).
			at(d.Attachment.Source).next("say Required=no under [SocketOptions], or attach it on the running system"))
	}
	if len(p.Refusals) > 0 {
		return p
	}
	switch file := d.DropInPath(); {
	case !o.DropIn.Exists:
		p.add(WriteDropIn, file, because(DropInMissing, "%s does not exist", file))
	case o.DropIn.Content != d.DropInText(o.Unit):
		p.add(WriteDropIn, file, because(DropInDiffers, "%s is not what the attachment asks for", file))
	}
	return p
}

// WroteDropIn reports whether a drop-in is one that aaunit writes, to the letter.
// In an image no record says whose it is.
func WroteDropIn(text string) bool {
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
	// Prepared: the drop-in is in place, and nothing was found that speaks against
	// the unit's coming up confined. No is that it is not, and Reasons say why.
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
