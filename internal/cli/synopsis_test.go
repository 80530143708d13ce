package cli

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// synopsis reads from the manual which options each command takes: "-x" and "--word".
func synopsis(t *testing.T) map[string][]string {
	t.Helper()
	text, err := os.ReadFile("../../packaging/man/aaunitctl.1")
	if err != nil {
		t.Fatal(err)
	}
	_, lines, _ := strings.Cut(string(text), "\n.Sh SYNOPSIS\n")
	lines, _, _ = strings.Cut(lines, "\n.Sh ")
	takes := map[string][]string{}
	for _, form := range strings.Split(lines, ".Nm\n") {
		var names, options []string
		for line := range strings.Lines(form) {
			words := strings.Fields(line)
			switch {
			case words[0] != ".Cm":
				for i, w := range words {
					switch {
					case strings.HasPrefix(w, "-"):
						options = append(options, "-"+w)
					case i > 0 && strings.TrimPrefix(words[i-1], ".") == "Fl":
						options = append(options, "-"+w)
					}
				}
			case names == nil:
				names = []string{strings.Join(words[1:], " ")}
			case names[0] == "sockopts": // record | export
				first := names[0]
				names = nil
				for _, w := range strings.Split(strings.Join(words[1:], " "), " | ") {
					names = append(names, first+" "+w)
				}
			}
		}
		for _, name := range names {
			takes[name] = append(takes[name], options...)
		}
	}
	for name, list := range takes {
		slices.Sort(list)
		takes[name] = slices.Compact(list)
	}
	return takes
}

// The synopsis of the manual has each command with all options of its own. What all
// commands take is not in it, and what is the default, as --wait is.
func TestSynopsis(t *testing.T) {
	want := map[string][]string{}
	option := regexp.MustCompile(`(?m)^ +(?:-\w, )?--([a-z-]+)`)
	for _, cmd := range below((&app{World: newScene().World}).root()) {
		var options []string
		for _, f := range option.FindAllStringSubmatch(cmd.LocalFlags().FlagUsages(), -1) {
			switch f[1] {
			case "wait", "help":
			case "include":
				options = append(options, "-I")
			default:
				options = append(options, "--"+f[1])
			}
		}
		slices.Sort(options)
		want[strings.TrimPrefix(cmd.CommandPath(), "aaunitctl ")] = options
	}
	got := synopsis(t)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		list, ok := got[name]
		if name == "attach" {
			list = slices.DeleteFunc(list, func(o string) bool { return o == "--root" })
		}
		if !ok || !slices.Equal(want[name], list) {
			t.Errorf("aaunitctl(1) has of %s %q, and it takes %q", name, list, want[name])
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("aaunitctl(1) has %v besides", got)
	}
}
