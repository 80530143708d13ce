package units

import (
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// aliases are links as they were given to systemd-analyze verify of systemd 252, which
// said whose drop-ins it reads for which unit, by the name under which systemd knows it.
func aliases(t *testing.T) (root string) {
	root = t.TempDir()
	const service = "[Service]\nExecStart=/usr/bin/true\n"
	for path, text := range map[string]string{
		"/etc/systemd/system/t@.service":         service,
		"/usr/lib/systemd/system/t@.service":     service,
		"/etc/systemd/system/old@.service":       "->/usr/lib/systemd/system/t@.service",
		"/etc/systemd/system/older@.service":     "->old@.service",
		"/etc/systemd/system/dang@.service":      "->/usr/local/lib/systemd/system/t@.service", // not there
		"/etc/systemd/system/gone@.service":      "->none@.service",
		"/etc/systemd/system/sub@.service":       "->sub/t@.service",
		"/etc/systemd/system/c@one.service":      "->t@.service",
		"/etc/systemd/system/d@one.service":      "->t@one.service",
		"/etc/systemd/system/o@.service":         "->t@.service",
		"/etc/systemd/system/o@one.service":      service,
		"/opt/z@.service":                        service,
		"/etc/systemd/system/z@.service":         "->/opt/z@.service", // linked, no alias
		"/etc/systemd/system/y@.service":         "->z@.service",
		"/opt/hop@.service":                      "->/etc/systemd/system/t@.service",
		"/etc/systemd/system/via@.service":       "->/opt/hop@.service",
		"/etc/systemd/system/toone@.service":     "->t@one.service",
		"/etc/systemd/system/plain.service":      "->t@one.service",
		"/etc/systemd/system/e@two.service":      "->t@one.service",
		"/etc/systemd/system/t@.socket":          "->t@.service",
		"/etc/systemd/system/loop@.service":      "->pool@.service",
		"/etc/systemd/system/pool@.service":      "->loop@.service",
		"/etc/systemd/system/loop.service":       "->loop.service",
		"/etc/systemd/system/masked@.service":    "->../../../dev/null",
		"/etc/systemd/system/own@.service":       service,
		"/etc/systemd/system/own@one.service":    service,
		"/etc/systemd/system/other@.service":     "->own@.service",
		"/etc/systemd/system/upwards@.service":   "->../../../../../../etc/systemd/system/t@.service",
		"/usr/lib/systemd/system/older@.service": service, // hidden
	} {
		put(t, root, path, text)
	}
	return root
}

// Which names systemd gives a unit hangs on where links lead, one after the other.
func TestAliases(t *testing.T) {
	p := searchPath{aliases(t), imageDirs}
	const (
		one, two = "t@one c@one d@one dang@one old@one older@one sub@one upwards@one", "t@two dang@two o@two old@two older@two sub@two upwards@two"
		template = "t@ dang@ o@ old@ older@ sub@ upwards@"
	)
	for unit, want := range map[string]string{
		"t@one": one, "old@one": one, "older@one": one, "c@one": one, "d@one": one, "dang@one": one,
		"t@two": two, "o@two": two, "sub@two": two,
		"t@": template, "older@": template,
		"o@one": "o@one", "z@one": "z@one y@one", "y@one": "z@one y@one", "via@one": "via@one",
		"own@one": "own@one", "other@two": "own@two other@two",
		"gone@one": "gone@one", "toone@one": "toone@one", "plain": "plain", "e@two": "e@two", "masked@one": "masked@one", "loop": "loop",
	} {
		f, err := p.find(unit + ".service")
		if err != nil {
			t.Errorf("%s: %v", unit, err)
			continue
		}
		names, err := p.names(f)
		slices.Sort(names[1:])
		if got := strings.ReplaceAll(strings.Join(names, " "), ".service", ""); err != nil || got != want {
			t.Errorf("%s: %s, want %s: %v", unit, got, want, err)
		}
	}
	if f, err := p.find("loop@one.service"); err == nil || !strings.Contains(err.Error(), "more than 8 links") {
		t.Errorf("a loop: %+v, %v", f, err)
	}
	if f, err := p.find("other@one.service"); err == nil || !strings.Contains(err.Error(), "own@.service or /etc/systemd/system/own@one.service") {
		t.Errorf("an alias of an instance with its own file: %+v, %v", f, err)
	}
	if f, err := p.find("masked@one.service"); err != nil || !f.masked {
		t.Errorf("%+v, %v", f, err)
	}
	if f, err := p.find("t@.socket"); err != nil || f.path != "" {
		t.Errorf("a link to another type: %+v, %v", f, err)
	}
}

// The drop-ins of a template's aliases reach its units whatever they are asked for by.
func TestDropInsOfAliases(t *testing.T) {
	root := aliases(t)
	put(t, root, "/etc/systemd/system/t@.service.d/90-aaunit.conf", "[Service]\nAppArmorProfile=p\n")
	put(t, root, "/usr/lib/systemd/system/t@.service.d/95-own.conf", "[Service]\nPrivateTmp=yes\n")
	put(t, root, "/etc/systemd/system/old@.service.d/95-own.conf", "[Service]\nPrivateTmp=no\n") // not read
	put(t, root, "/etc/systemd/system/old@.service.d/99-x.conf", "[Service]\nAppArmorProfile=\nExecStartPre=+/usr/bin/x\n")
	put(t, root, "/etc/systemd/system/service.d/99-x.conf", "[Service]\nPrivateTmp=no\n") // not read
	put(t, root, "/etc/systemd/system/via@.service.d/99-y.conf", "[Service]\nAppArmorProfile=q\n")
	const want = "90-aaunit.conf:2 95-own.conf:2 99-x.conf:2 99-x.conf:3"
	image := NewImage(root)
	got := func(u attach.Unit) string { return linesOf(u.Settings.Assignments) }
	for name, read := range map[string]func(string) (attach.Unit, error){"systemd": New(Options{Root: root}).Pattern, "an image": image.Pattern} {
		for _, pattern := range []string{"t@.service", "old@.service", "older@.service"} {
			u, err := read(pattern)
			if err != nil || u.ID != pattern || got(u) != want {
				t.Errorf("%s, %s: %s, %v", name, pattern, got(u), err)
			}
		}
		if _, err := read("loop@.service"); err == nil {
			t.Errorf("%s: a loop has drop-ins", name)
		}
	}
	for _, unit := range []string{"t@two.service", "older@two.service"} {
		u, err := image.Observe(t.Context(), unit)
		if err != nil || u.ID != "t@two.service" || u.Settings.Profile != "" || u.Settings.PrivateTmp != attach.PrivateTmpYes || got(u) != want {
			t.Errorf("%s: %+v, %v", unit, u, err)
		}
	}
	// Which of these systemd reads cannot be told, unless the unit's own name has one.
	put(t, root, "/usr/lib/systemd/system/older@.service.d/99-x.conf", "[Service]\nAppArmorProfile=p\n")
	if u, err := image.Pattern("t@.service"); err == nil || !strings.Contains(err.Error(), "old@.service.d/99-x.conf") || !strings.Contains(err.Error(), "older@.service.d/99-x.conf") {
		t.Errorf("%q, %v", u.DropIns, err)
	}
	put(t, root, "/usr/lib/systemd/system/t@.service.d/99-x.conf", "")
	if u, err := image.Pattern("t@.service"); err != nil || !slices.Contains(u.DropIns, "/usr/lib/systemd/system/t@.service.d/99-x.conf") {
		t.Errorf("%q, %v", u.DropIns, err)
	}
}

func linesOf(as []attach.Assignment) string {
	var out []string
	for _, a := range as {
		out = append(out, filepath.Base(a.Path)+":"+strconv.Itoa(a.Line))
	}
	return strings.Join(out, " ")
}
