package attach

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Index is what Resolve asks about profiles on disk.
type Index interface {
	// ByName lists the profiles with that internal name.
	ByName(name string) []Profile
	// InFile lists the profiles that a file defines; path is absolute.
	InFile(path string) ([]Profile, error)
	// ByExecutable lists the profiles that attach to the path of a program.
	ByExecutable(path string) []Profile
}

// Choice is what Resolve found.
type Choice struct {
	Profile Profile
	// Why says how it was found, and Corrected whether that is not what the
	// person wrote.
	Why       Reason
	Corrected bool
}

// Resolve finds the profile that a person means for a unit. wanted may be an
// internal name, the name of a file in /etc/apparmor.d, a path of a profile
// file, the path of a program, or empty; then it is, in this order, the one in
// the unit's present AppArmorProfile=, one that attaches to the unit's
// executable, one that is named like the unit. Where more than one could be
// meant it lists them in the error and stops.
func Resolve(wanted string, u Unit, ix Index) (Choice, *Reason) {
	if wanted == "" {
		return resolveUnit(u, ix)
	}
	if strings.ContainsAny(wanted, "\n\x00") {
		return Choice{}, ptr(because(ProfileNameBad, "%q holds a line break or a NUL", wanted))
	}
	if found := ix.ByName(wanted); len(found) > 0 {
		return one(found, because(ProfileCorrected, "%s is the profile's internal name", wanted), false)
	}
	file := wanted
	if !strings.HasPrefix(file, "/") {
		if strings.Contains(file, "/") {
			return Choice{}, ptr(because(ProfileNotFound, "%s is neither a profile's name nor an absolute path", wanted).next("give the absolute path"))
		}
		file = path.Join("/etc/apparmor.d", file)
	}
	found, err := inFile(ix, file)
	if len(found) > 0 {
		kind := "a path"
		if !strings.HasPrefix(wanted, "/") {
			kind = "a file name"
		}
		said := because(ProfileCorrected, "%s is %s; its profile is called %s", wanted, kind, found[0].Name)
		if len(found) > 1 {
			if i := pick(found, u); i >= 0 {
				said.Detail = printable(fmt.Sprintf("%s is %s; of its %d profiles, %s is the one for %s", wanted, kind, len(found), found[i].Name, u.ID))
				return one(found[i:i+1], said, true)
			}
		}
		return one(found, said, true)
	}
	if strings.HasPrefix(wanted, "/") {
		if byExe := ix.ByExecutable(wanted); len(byExe) > 0 {
			return one(byExe, because(ProfileCorrected, "%s is a program; the profile that attaches to it is called %s", wanted, byExe[0].Name), true)
		}
	}
	names := "apparmor_parser -N FILE prints the names in a file"
	switch {
	case err == nil:
		return Choice{}, ptr(because(ProfileNotFound, "%s defines no profile", file).at(file).next(names))
	case strings.HasPrefix(wanted, "/"):
		return Choice{}, ptr(because(ProfileNotFound, "cannot read profile file %s: %v", wanted, err).at(wanted).next(names))
	}
	return Choice{}, ptr(because(ProfileNotFound, "no profile is called %s, and no file %s can be read: %v", wanted, file, err).next(names))
}

// inFile lists the profiles of a file that can be named, without children and
// hats.
func inFile(ix Index, file string) ([]Profile, error) {
	all, err := ix.InFile(file)
	if err != nil {
		return nil, err
	}
	var top []Profile
	for _, p := range all {
		if !strings.Contains(p.Name, "//") {
			top = append(top, p)
		}
	}
	return top, nil
}

// pick finds the one profile of several that belongs to the unit.
func pick(found []Profile, u Unit) int {
	stem := strings.TrimSuffix(u.ID, ".service")
	var hits []int
	for i, p := range found {
		if p.Name == stem || (p.Attachment != "" && slices.ContainsFunc(u.Settings.Exec, func(c ExecCommand) bool {
			return c.Property == "ExecStart" && c.Path == p.Attachment
		})) {
			hits = append(hits, i)
		}
	}
	if len(hits) == 1 {
		return hits[0]
	}
	return -1
}

func resolveUnit(u Unit, ix Index) (Choice, *Reason) {
	if name := u.Settings.Profile; name != "" {
		if found := ix.ByName(name); len(found) > 0 {
			return one(found, because(ProfileCorrected, "%s names profile %s already", u.ID, name), false)
		}
		// The commonest mistake: the directive has the file's name, or its path.
		file, kind := name, "a path"
		if !strings.Contains(name, "/") {
			file, kind = path.Join("/etc/apparmor.d", name), "a file name"
		}
		if found, err := inFile(ix, file); err == nil && len(found) > 0 && path.IsAbs(file) {
			return one(found, because(ProfileCorrected, "%s has AppArmorProfile=%s, which is %s; its profile is called %s", u.ID, name, kind, found[0].Name), true)
		}
		return Choice{}, ptr(because(ProfileNotFound, "%s has AppArmorProfile=%s, and no file defines that profile", u.ID, name).next("say which one with --profile"))
	}
	for _, c := range u.Settings.Exec {
		if c.Property != "ExecStart" {
			continue
		}
		if found := ix.ByExecutable(c.Path); len(found) > 0 {
			return one(found, because(ProfileCorrected, "profile %s attaches to %s", found[0].Name, c.Path), false)
		}
	}
	stem := strings.TrimSuffix(u.ID, ".service")
	prefix, _, _ := strings.Cut(stem, "@")
	for _, name := range slices.Compact([]string{stem, prefix}) {
		if found := ix.ByName(name); len(found) > 0 {
			return one(found, because(ProfileCorrected, "profile %s is named like the unit", name), false)
		}
		if found, err := inFile(ix, path.Join("/etc/apparmor.d", name)); err == nil && len(found) > 0 {
			return one(found, because(ProfileCorrected, "%s is a file named like the unit; its profile is called %s", name, found[0].Name), true)
		}
	}
	return Choice{}, ptr(because(ProfileNotFound, "no profile was found for %s: none attaches to its executable and none is called %s", u.ID, stem).
		next("write one, or say which one with --profile"))
}

// one accepts a single candidate and lists several.
func one(found []Profile, why Reason, corrected bool) (Choice, *Reason) {
	if len(found) > 1 {
		var list []string
		for _, p := range found {
			list = append(list, fmt.Sprintf("%s (%s:%d)", p.Name, p.File, p.Line))
		}
		if !slices.ContainsFunc(found, func(p Profile) bool { return p.Name != found[0].Name }) {
			return Choice{}, ptr(because(ProfileDuplicate, "profile %s is defined more than once: %s", found[0].Name, strings.Join(list, ", ")).at(found[0].File))
		}
		return Choice{}, ptr(because(ProfileAmbiguous, "more than one profile could be meant: %s", strings.Join(list, ", ")).next("say which one with --profile NAME"))
	}
	return Choice{Profile: found[0], Why: why, Corrected: corrected}, nil
}
