package units

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/safefile"
	"golang.org/x/sys/unix"
)

// imageKeys are the settings that are read of a unit that does not run, by section.
var imageKeys = func() map[string][]string {
	keys := map[string][]string{
		"Unit":    {"AssertSecurity", "DefaultDependencies", "After", "JoinsNamespaceOf", "RefuseManualStart", "RefuseManualStop"},
		"Service": {"AppArmorProfile", "PrivateTmp", "PermissionsStartOnly", "Type", "NoNewPrivileges", "Delegate", "User", "PAMName", "RootDirectory", "RootImage", "DynamicUser", "RestrictAddressFamilies", "SystemCallArchitectures", "Sockets", "RootDirectoryStartOnly"},
	}
	keys["Service"] = append(keys["Service"], mountKeys...)
	keys["Service"] = append(append(keys["Service"], execLines...), namespaced...)
	for _, d := range directories {
		keys["Service"] = append(keys["Service"], d.Property)
	}
	return keys
}()

// mountKeys are the settings that have systemd mount something for a unit's commands,
// those with a "+" included.
var mountKeys = []string{"TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "MountImages"}

// settings reads what the files of a unit say, one after the other.
func (i *Image) settings(u *attach.Unit) error {
	s := attach.Settings{DefaultDependencies: true, PrivateTmp: attach.PrivateTmpNo, KnowsDisconnected: i.knowsDisconnected()}
	u.Type = "simple"
	r := imageReader{unit: u, settings: &s, named: map[string]bool{}}
	if err := i.lines(*u, imageKeys, r.line); err != nil {
		return err
	}
	for _, on := range r.named {
		s.MountNamespace = s.MountNamespace || on
	}
	s.MountNamespace = s.MountNamespace || s.RootDirectory != ""
	s.ProtectControlGroups = r.named["ProtectControlGroups"]
	u.Settings = s
	return nil
}

// findDisconnected reports whether the image's systemd knows PrivateTmp=disconnected, which
// 257 was the first to do. Its version is in the name of its library. One that is not
// found there counts as new: no unit gets less than it would have by itself then.
func (i *Image) findDisconnected() bool {
	dirs := []string{"/usr/lib/systemd", "/usr/lib64/systemd"}
	archs, _ := i.list("/usr/lib") // an error leaves it not found
	for _, name := range archs {
		if strings.Contains(name, "-linux-") {
			dirs = append(dirs, "/usr/lib/"+name+"/systemd")
		}
	}
	for _, dir := range dirs {
		names, _ := i.list(dir)
		for _, name := range names {
			version, is := strings.CutPrefix(name, "libsystemd-shared-")
			version = version[:len(version)-len(strings.TrimLeft(version, "0123456789"))]
			if v, err := strconv.Atoi(version); is && err == nil {
				return v >= 257
			}
		}
	}
	return true
}

// lines reads the files of a unit for some settings, one line after the other.
func (i *Image) lines(u attach.Unit, keys map[string][]string, line func(attach.Assignment) error) error {
	for _, file := range append([]string{u.FragmentPath}, u.DropIns...) {
		if file == "" {
			continue // the drop-ins of a pattern
		}
		if target, err := i.readlink(file); err == nil && target == os.DevNull {
			continue // a drop-in that is masked
		}
		f, err := safefile.OpenWithin(i.root, file, os.O_RDONLY|unix.O_NONBLOCK)
		if err != nil {
			return fmt.Errorf("cannot read unit file %s: %w", file, err)
		}
		st, err := f.Stat()
		if err == nil && !st.Mode().IsRegular() {
			err = errors.New("it is " + kindOf(st.Mode()))
		}
		var lines []attach.Assignment
		if err == nil {
			lines, err = parseUnit(f, file, keys)
		}
		f.Close()
		if err != nil {
			return fmt.Errorf("cannot read unit file %s: %w", file, err)
		}
		for _, l := range lines {
			if err := line(l); err != nil {
				return fmt.Errorf("cannot read unit file %s: line %d: %w", file, l.Line, err)
			}
		}
	}
	return nil
}

// imageReader applies one line after the other, as systemd does.
type imageReader struct {
	unit     *attach.Unit
	settings *attach.Settings
	named    map[string]bool // settings that give it a mount namespace
}

func (r *imageReader) line(l attach.Assignment) error {
	s, value := r.settings, l.Value
	for _, keys := range watchedKeys {
		if slices.Contains(keys, l.Key) {
			s.Assignments = append(s.Assignments, l)
		}
	}
	switch l.Key {
	case "AppArmorProfile":
		name, ignore := strings.CutPrefix(value, "-")
		if full, err := attach.ExpandSpecifiers(name, r.unit.ID); err == nil {
			name = full
		}
		s.Profile, s.IgnoreMissing = name, ignore
	case "AssertSecurity":
		s.AssertAppArmor = value == "apparmor" || s.AssertAppArmor && value != ""
	case "PrivateTmp":
		switch on, ok := truth(value); {
		case value == "disconnected" && s.KnowsDisconnected:
			s.PrivateTmp = attach.PrivateTmpDisconnected
		case value == "connected" && s.KnowsDisconnected || ok && on:
			s.PrivateTmp = attach.PrivateTmpYes
		case ok:
			s.PrivateTmp = attach.PrivateTmpNo
		}
	case "PermissionsStartOnly":
		set(&s.PermissionsStartOnly, value)
	case "DefaultDependencies":
		set(&s.DefaultDependencies, value)
	case "NoNewPrivileges":
		set(&s.NoNewPrivileges, value)
	case "DynamicUser":
		set(&s.DynamicUser, value)
	case "RefuseManualStart":
		set(&r.unit.RefuseStart, value)
	case "RefuseManualStop":
		set(&r.unit.RefuseStop, value)
	case "Delegate":
		on, ok := truth(value)
		s.Delegate = on || !ok // a list of controllers
	case "User":
		s.User = value
	case "PAMName":
		s.PAMName = value
	case "RootDirectory", "RootImage":
		s.RootDirectory = value
	case "RootDirectoryStartOnly":
		set(&s.RootDirectoryStartOnly, value)
	case "Type":
		r.unit.Type = value
	case "After":
		s.After = words(s.After, value)
	case "JoinsNamespaceOf":
		s.JoinsNamespaceOf = words(s.JoinsNamespaceOf, value)
	case "SystemCallArchitectures":
		s.Architectures = words(s.Architectures, value)
	case "Sockets":
		r.unit.Sockets = words(r.unit.Sockets, value)
	case "RestrictAddressFamilies":
		s.AddressFamilies = families(s.AddressFamilies, value)
	}
	for _, d := range directories {
		if d.Property != l.Key {
			continue
		}
		if value == "" {
			s.Directories = slices.DeleteFunc(s.Directories, func(o attach.Directory) bool { return o.Property == l.Key })
		}
		for _, name := range strings.Fields(value) {
			name, _, _ = strings.Cut(name, ":") // a link to it, and flags
			if full, err := attach.ExpandSpecifiers(name, r.unit.ID); err == nil {
				s.Directories = append(s.Directories, attach.Directory{Property: d.Property, Path: d.Path + "/" + full, ReadOnly: d.ReadOnly})
			}
		}
	}
	if slices.Contains(namespaced, l.Key) {
		on, ok := truth(value)
		r.named[l.Key] = on || !ok && value != ""
	}
	if slices.Contains(mountKeys, l.Key) {
		var err error
		if s.Mounts, err = mounts(s.Mounts, l.Key, value, r.unit.ID); err != nil {
			return err
		}
	}
	if slices.Contains(execLines, l.Key) {
		if value == "" {
			s.Exec = slices.DeleteFunc(s.Exec, func(c attach.ExecCommand) bool { return c.Property == l.Key })
			return nil
		}
		commands, err := parseCommands(value)
		if err != nil {
			return err
		}
		for _, c := range commands {
			c.Property = l.Key
			for k, w := range c.Argv {
				if full, err := attach.ExpandSpecifiers(w, r.unit.ID); err == nil {
					c.Argv[k] = full
				}
			}
			if full, err := attach.ExpandSpecifiers(c.Path, r.unit.ID); err == nil {
				c.Path = full
			}
			s.Exec = append(s.Exec, c)
		}
	}
	return nil
}

// truth reads a boolean as systemd.syntax(7) has it.
func truth(value string) (on, ok bool) {
	switch strings.ToLower(value) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	}
	return false, false
}

// set takes a boolean; what is none is ignored, as systemd does.
func set(to *bool, value string) {
	if on, ok := truth(value); ok {
		*to = on
	}
}

// words adds to a list, which an empty value resets.
func words(list []string, value string) []string {
	if value == "" {
		return nil
	}
	return append(list, strings.Fields(value)...)
}

// families reads one line of RestrictAddressFamilies= (systemd.exec(5)): the first
// one says whether the list allows or forbids, later ones add to it or take away.
func families(have *attach.AddressFamilies, value string) *attach.AddressFamilies {
	switch value {
	case "":
		return nil
	case "none":
		return &attach.AddressFamilies{AllowList: true, Families: []string{}}
	}
	rest, inverted := strings.CutPrefix(value, "~")
	if have == nil {
		have = &attach.AddressFamilies{AllowList: !inverted}
	}
	for _, f := range strings.Fields(rest) {
		if have.AllowList != inverted {
			have.Families = append(have.Families, f)
		} else {
			have.Families = slices.DeleteFunc(have.Families, func(o string) bool { return o == f })
		}
	}
	return have
}

// mounts reads one line of mountKeys (systemd.exec(5)): places, divided by spaces, each
// with parts that a colon divides. BindPaths= and BindReadOnlyPaths= are one list, which
// an empty value of either resets.
func mounts(list []attach.Mount, key, value, unit string) ([]attach.Mount, error) {
	if value == "" {
		bind := strings.HasPrefix(key, "Bind")
		return slices.DeleteFunc(list, func(m attach.Mount) bool { return m.Property == key || bind && strings.HasPrefix(m.Property, "Bind") }), nil
	}
	all, err := commandWords(value)
	if err != nil {
		return nil, err
	}
	for _, w := range all {
		parts := colons(w.text)
		for i, p := range parts {
			if full, err := attach.ExpandSpecifiers(p, unit); err == nil {
				parts[i] = full
			}
		}
		m := attach.Mount{Property: key, Path: parts[0]}
		if key != "TemporaryFileSystem" {
			m.Source = strings.TrimPrefix(parts[0], "-")
			m.Path = m.Source
			if len(parts) > 1 {
				m.Path = parts[1]
			}
			m.ReadOnly, m.Flat = key == "BindReadOnlyPaths", len(parts) > 2 && parts[2] == "norbind"
		}
		if key == "MountImages" {
			m.Source, m.Flat = "", false
		}
		list = append(list, m)
	}
	return list, nil
}

// colons divides a word at its colons, but for those behind a backslash.
func colons(word string) []string {
	parts := []string{""}
	for k := 0; k < len(word); k++ {
		last := &parts[len(parts)-1]
		switch {
		case word[k] == '\\' && k+1 < len(word) && word[k+1] == ':':
			k++
			*last += ":"
		case word[k] == ':':
			parts = append(parts, "")
		default:
			*last += word[k : k+1]
		}
	}
	return parts
}

// maxWords bounds the words of one command line.
const maxWords = 10_000

// parseCommands reads the value of ExecStart= and its like (systemd.service(5),
// "COMMAND LINES"): one command or more, divided by a ";" that stands alone, with
// quotes, backslashes and, before the program, the characters that say how it is
// run.
func parseCommands(value string) ([]attach.ExecCommand, error) {
	all, err := commandWords(value)
	if err != nil {
		return nil, err
	}
	var out []attach.ExecCommand
	for len(all) > 0 {
		end := slices.IndexFunc(all, func(w word) bool { return w.text == ";" && !w.quoted })
		line := all
		if end < 0 {
			all = nil
		} else {
			line, all = all[:end], all[end+1:]
		}
		if len(line) == 0 {
			continue
		}
		c := attach.ExecCommand{Path: line[0].text}
		argv0 := false
		for c.Path != "" && strings.ContainsRune("@-:+!|", rune(c.Path[0])) {
			switch c.Path[0] {
			case '+':
				c.Privileged = true
			case '-':
				c.IgnoreFailure = true
			case '@':
				argv0 = true
			}
			c.Path = c.Path[1:]
		}
		if c.Path == "" {
			return nil, errors.New("a command line names no program")
		}
		if !argv0 {
			c.Argv = append(c.Argv, c.Path)
		}
		for _, w := range line[1:] {
			c.Argv = append(c.Argv, w.text)
		}
		out = append(out, c)
	}
	return out, nil
}

// word is one of a command line.
type word struct {
	text   string
	quoted bool
}

// commandWords divides a command line. Of backslashes only what they protect is
// read: what stands behind them as a code is for the program alone.
func commandWords(s string) ([]word, error) {
	var out []word
	var b strings.Builder
	var quote byte
	begun, quoted := false, false
	end := func() {
		if begun {
			out = append(out, word{b.String(), quoted})
		}
		b.Reset()
		begun, quoted = false, false
	}
	for k := 0; k < len(s); k++ {
		switch c := s[k]; {
		case c == '\\':
			begun = true
			if k++; k == len(s) {
				return nil, errors.New("a command line ends with a backslash")
			}
			if strings.IndexByte(` "'\;`, s[k]) < 0 {
				b.WriteByte('\\')
			}
			quoted = true
			b.WriteByte(s[k])
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			b.WriteByte(c)
		case c == '"' || c == '\'':
			quote, begun, quoted = c, true, true
		case strings.IndexByte(whiteSpace, c) >= 0:
			end()
		default:
			begun = true
			b.WriteByte(c)
		}
		if len(out) > maxWords {
			return nil, fmt.Errorf("a command line has more than %d words", maxWords)
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote of a command line is not closed")
	}
	end()
	return out, nil
}
