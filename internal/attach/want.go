package attach

import (
	"path"
	"strings"
)

// Wanted is the attachment that a request for a unit comes to.
type Wanted struct {
	Attachment Attachment
	Profile    string // internal name
	File       string // the profile's; "" where an attachment named the profile
	// Write: it is made at the command line, and is to be written.
	Write bool
	// Corrected says how the profile was found where that is not what the person
	// wrote.
	Corrected *Reason
}

// Want finds the profile and puts the attachment together: the one that is declared
// already where it says the same, else a new one. declared is the attachment that
// names the unit now, or nil.
func Want(r Request, u Unit, declared *Attachment, ix Index) (Wanted, *Reason) {
	byFile := declared != nil && !declared.Manual
	if byFile {
		if over := declared.optionsAgainst(r); len(over) > 0 {
			return Wanted{}, ptr(because(DeclaredInFile, "%s attaches %s, and what it says counts, not %s", declared.Source, u.ID, strings.Join(over, " and ")).
				at(declared.Source).next("edit " + declared.Source))
		}
	}
	// What is attached already, by whoever, answers a request without a profile.
	if declared != nil && r.Profile == "" {
		w := Wanted{Attachment: *declared}
		if declared.Manual && !r.AsDeclared {
			w.Write = true
			w.Attachment.setOptions(r)
		}
		var err error
		if w.Profile, err = declared.ProfileFor(u.ID); err != nil {
			return Wanted{}, ptr(because(ProfileNameBad, "%v", err).at(declared.Source))
		}
		return w, nil
	}
	choice, why := Resolve(r.Profile, u, ix)
	if why != nil {
		return Wanted{}, why
	}
	w := Wanted{Profile: choice.Profile.Name, File: choice.Profile.File}
	if choice.Corrected {
		w.Corrected = &choice.Why
	}
	if byFile {
		if name, err := declared.ProfileFor(u.ID); err != nil || name != choice.Profile.Name {
			return Wanted{}, ptr(because(DeclaredInFile, "%s attaches %s to profile %s", declared.Source, u.ID, name).
				at(declared.Source).next("edit " + declared.Source))
		}
		w.Attachment = *declared
		return w, nil
	}
	a := NewAttachment()
	a.Source = "aaunitctl attach" // until it is written
	if declared != nil {
		a = *declared
	}
	a.Manual = true
	a.Units, a.Profile = []string{u.ID}, EscapeSpecifiers(choice.Profile.Name)
	a.setOptions(r)
	a.ProfileFile = ""
	if path.Dir(choice.Profile.File) != "/etc/apparmor.d" {
		a.ProfileFile = choice.Profile.File
	}
	w.Attachment, w.Write = a, true
	return w, nil
}

// setOptions puts a request's options into an attachment made at the command line.
func (a *Attachment) setOptions(r Request) {
	a.Runtime, a.RestartUnit, a.Mode = r.Runtime, !r.NoRestart, WishEnforce
	if r.Complain {
		a.Mode = WishComplain
	}
	if r.Settle != nil {
		a.Settle = *r.Settle
	}
}

// optionsAgainst names the options of a request that a declared attachment says
// otherwise.
func (a Attachment) optionsAgainst(r Request) (over []string) {
	if r.Runtime && !a.Runtime {
		over = append(over, "--runtime")
	}
	if r.Complain && a.Mode != WishComplain {
		over = append(over, "--complain")
	}
	if r.NoRestart && a.RestartUnit {
		over = append(over, "--no-restart")
	}
	if r.Settle != nil && *r.Settle != a.Settle {
		over = append(over, "--settle")
	}
	return over
}
