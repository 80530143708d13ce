package attach

import (
	"cmp"
	"fmt"
	"strings"
)

// accessWords are the letters of a file record's mask.
var accessWords = []struct{ letter, word string }{
	{"r", "reading"}, {"w", "writing"}, {"a", "appending"}, {"c", "creating"}, {"d", "deleting"},
	{"m", "mapping as code"}, {"x", "executing"}, {"k", "locking"}, {"l", "linking"},
}

// Words says in a sentence what was refused, to which program and how often, and
// which rule would allow it. It is safe to print.
func (d Denial) Words() string {
	who := "a program"
	if d.Comm != "" {
		who = "program " + quoted(d.Comm)
	}
	times := ""
	if d.Count > 1 {
		times = fmt.Sprintf(" %d times", d.Count)
	}
	verb := "refused"
	switch {
	case d.Killed:
		verb = "refused, and ended the program for,"
	case d.Allowed:
		verb = "let pass, since the profile only complains,"
	}
	var b strings.Builder
	if d.ChangesProfile() && d.Profile == Unconfined {
		// systemd's own process, whose name is the unit's program in brackets.
		fmt.Fprintf(&b, "the kernel %s systemd's switch to profile %s%s", verb, quoted(d.Name), times)
		if d.Info != "" {
			fmt.Fprintf(&b, ": %s", d.Info)
		}
		return shortened(b.String())
	}
	fmt.Fprintf(&b, "the kernel %s %s by %s%s", verb, d.act(), who, times)
	switch p := d.Rule(); {
	case p.Rule != "":
		fmt.Fprintf(&b, "; profile %s needs the rule `%s` if that is right", p.Profile, p.Rule)
	case p.Note != "":
		fmt.Fprintf(&b, "; no rule is proposed: %s", p.Note)
	}
	if d.ByProfile {
		b.WriteString("; " + onlyProfile)
	}
	return shortened(b.String())
}

func shortened(s string) string {
	if s = printable(s); len(s) > maxDetail {
		s = strings.ToValidUTF8(s[:maxDetail], "") + "…"
	}
	return s
}

// act names what a task wanted to do.
func (d Denial) act() string {
	mask := d.mask()
	switch d.Operation {
	case "capable":
		return "the capability " + d.Capability
	case "signal":
		return fmt.Sprintf("signal %s between tasks of profile %s and %s", d.Signal, d.Profile, quoted(d.Peer))
	case "ptrace":
		return fmt.Sprintf("ptrace (%s) between tasks of profile %s and %s", mask, d.Profile, quoted(d.Peer))
	case "mount", "umount", "pivotroot":
		return d.Operation + " of " + d.What()
	case "setrlimit":
		return "a change of the limit " + d.Rlimit
	case "userns_create":
		return "a new user namespace"
	}
	if d.ChangesProfile() || d.Operation == "change_hat" {
		return "a change to profile " + quoted(d.Name)
	}
	if d.Family != "" {
		return fmt.Sprintf("%s of a socket of %s %s", cmp.Or(d.Operation, "use"), d.Family, d.SockType)
	}
	if d.Operation == "exec" {
		return "running " + quoted(d.Name)
	}
	var how []string
	for _, a := range accessWords {
		if strings.Contains(mask, a.letter) {
			how = append(how, a.word)
		}
	}
	// A mask of other letters is no file's.
	if len(how) == 0 || d.Name == "" || strings.Trim(mask, "rwacdmxkl") != "" {
		return strings.TrimSpace(d.Operation + " " + d.What())
	}
	return fmt.Sprintf("%s for %s of %s", d.Operation, strings.Join(how, " and "), quoted(d.Name))
}
