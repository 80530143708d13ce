package policydb

// mediatesFiles says whether the kernel asks this profile about files at all.
func (p *Profile) mediatesFiles() Answer {
	switch {
	case !p.understood():
		return Unknown
	case p.Mode == Unconfined:
		return NotMediated
	}
	return Yes
}

// fileDatabase is the automaton that files are looked up in, and where. Nil
// means that no file rule grants anything. A profile without one of its own has
// the file class of the other automaton, in which the parser puts nothing but
// the class itself (unpack_profile, process_profile_policydb); understood is
// false should there ever be more.
func (p *Profile) fileDatabase() (d *database, understood bool) {
	if p.file != nil {
		return p.file, true
	}
	if p.policy != nil {
		if s := p.policy.dfa.step(p.policy.start, ClassFile); s != stateDead && p.policy.dfa.live(s) {
			return nil, false
		}
	}
	return nil, true
}

// nothing is what a path without any rule is granted.
var nothing = Perms{}

// File is what the profile grants on one path, as the kernel has it: absolute,
// without "." or "..", a directory with a "/" at its end. Nothing is allocated.
// As Either it is what the owner or another is allowed.
func (p *Profile) File(path string, as Who) (Perms, Answer) {
	if a := p.mediatesFiles(); a != Yes {
		return Perms{}, a
	}
	d, ok := p.fileDatabase()
	switch {
	case !ok:
		return Perms{}, Unknown
	case d == nil:
		return nothing, Yes
	}
	s := d.dfa.walk(d.start, path)
	if as == Either {
		p := *d.at(s, Owner)
		o := d.at(s, Other)
		p.Allow |= o.Allow
		p.Deny &= o.Deny
		p.Audit |= o.Audit
		p.Quiet &= o.Quiet
		p.Kill |= o.Kill
		p.Complain |= o.Complain
		p.Prompt |= o.Prompt
		p.Hide &= o.Hide
		p.Subtree |= o.Subtree
		p.Cond |= o.Cond
		return p, Yes
	}
	return *d.at(s, as), Yes
}

// Allows says whether all of want is allowed on one path.
func (p *Profile) Allows(path string, want Perm, as Who) Answer {
	if a := p.mediatesFiles(); a != Yes {
		return a
	}
	d, ok := p.fileDatabase()
	switch {
	case !ok:
		return Unknown
	case d == nil:
		return nothing.allows(want)
	}
	s := d.dfa.walk(d.start, path)
	if as != Either {
		return d.at(s, as).allows(want)
	}
	return either(d.at(s, Owner).allows(want), d.at(s, Other).allows(want))
}

func either(a, b Answer) Answer {
	switch {
	case a == Yes || b == Yes:
		return Yes
	case a == Unknown || b == Unknown:
		return Unknown
	}
	return No
}

// Exec is what becomes of the profile when a program is executed; No means that
// it cannot be. The environment is cleaned, beyond what it says, whenever the
// program is setuid or the like.
func (p *Profile) Exec(path string, as Who) (Transition, Answer) {
	if a := p.mediatesFiles(); a != Yes {
		return Transition{}, a
	}
	d, ok := p.fileDatabase()
	switch {
	case !ok || as == Either:
		return Transition{}, Unknown
	case d == nil:
		return Transition{}, No
	}
	i := d.index[d.dfa.walk(d.start, path)]
	at := i.other
	if as == Owner {
		at = i.owner
	}
	a := d.perms[at].allows(Exec)
	t := d.transitions[at]
	if a == Yes && t.Kind == ExecNone {
		a = No // "profile transition not found"
	}
	if a != Yes {
		t = Transition{}
	}
	return t, a
}

// MayLink says whether a hard link may be made at link to target
// (profile_path_link). Where the rule demands that the link may do no more than
// its target, that is checked as well.
func (p *Profile) MayLink(link, target string, as Who) Answer {
	if a := p.mediatesFiles(); a != Yes {
		return a
	}
	d, ok := p.fileDatabase()
	switch {
	case !ok || as == Either:
		return Unknown
	case d == nil:
		return No
	}
	s := d.dfa.walk(d.start, link)
	at := d.at(s, as)
	if a := at.allows(Link); a != Yes {
		return a
	}
	pair := d.at(d.dfa.walk(d.dfa.step(s, 0), target), as)
	if a := pair.allows(Link); a != Yes {
		return a
	}
	if pair.Allow&Lock == 0 {
		return Yes
	}
	to := d.at(d.dfa.walk(d.start, target), as)
	if at.Allow&^Link&^to.Allow != 0 {
		return No
	}
	if at.Allow&Exec != 0 {
		l, t := at.xindex, to.xindex
		if l&^xUnsafe != t&^xUnsafe || l&xUnsafe != 0 && t&xUnsafe == 0 {
			return No
		}
	}
	return Yes
}

// MayChangeProfile says whether a task may change to the profile of that name
// by itself (change_profile_perms). Another namespace's is ":namespace:name";
// stacking has "&" before the name.
func (p *Profile) MayChangeProfile(to string) Answer {
	return p.changes(to, ChangeProfile)
}

func (p *Profile) changes(to string, want Perm) Answer {
	if a := p.mediatesFiles(); a != Yes {
		return a
	}
	d, ok := p.fileDatabase()
	switch {
	case !ok:
		return Unknown
	case d == nil:
		return No
	}
	return d.at(d.dfa.walk(d.start, to), Other).allows(want)
}

// MayChangeOnExec says whether a task may ask that the next exec, of that
// program, puts it under the profile of that name (profile_onexec).
func (p *Profile) MayChangeOnExec(program, to string) Answer {
	// Setting it asks about the name alone; the exec asks about the pair.
	if a := p.changes(to, OnExec); a != Yes {
		return a
	}
	d, _ := p.fileDatabase()
	s := d.dfa.walk(d.start, program)
	if a := d.at(s, Other).allows(OnExec); a != Yes {
		return a
	}
	return d.at(d.dfa.walk(d.dfa.step(s, 0), to), Other).allows(OnExec)
}
