package attach

import (
	"errors"
	"strings"
	"testing"
)

// shelf is a /etc/apparmor.d in memory.
type shelf map[string][]Profile // by file

func (s shelf) find(keep func(Profile) bool) (out []Profile) {
	for _, file := range sortedKeys(s) {
		for _, p := range s[file] {
			p.File = file
			if keep(p) {
				out = append(out, p)
			}
		}
	}
	return out
}

func (s shelf) ByName(name string) []Profile {
	return s.find(func(p Profile) bool { return p.Name == name })
}

func (s shelf) ByExecutable(path string) []Profile {
	return s.find(func(p Profile) bool { return p.Attachment == path })
}

func (s shelf) InFile(path string) ([]Profile, error) {
	if _, ok := s[path]; !ok {
		return nil, errors.New("no such file")
	}
	return s.find(func(p Profile) bool { return p.File == path }), nil
}

func TestResolve(t *testing.T) {
	profiles := shelf{
		"/etc/apparmor.d/usr.local.bin.myagent": {
			{Name: "myagent", Line: 3, Attachment: "/usr/local/bin/myagent"}, {Name: "myagent//helper", Line: 9},
		},
		"/etc/apparmor.d/pair":  {{Name: "one", Line: 1}, {Name: "two", Line: 5, Attachment: "/usr/bin/two"}},
		"/etc/apparmor.d/empty": {},
		"/etc/apparmor.d/twin1": {{Name: "twin", Line: 1}},
		"/etc/apparmor.d/twin2": {{Name: "twin", Line: 2}},
		"/etc/apparmor.d/web":   {{Name: "web server", Line: 1}},
		"/etc/apparmor.d/x1":    {{Name: "x1", Line: 1, Attachment: "/usr/bin/x"}},
		"/etc/apparmor.d/x2":    {{Name: "x2", Line: 1, Attachment: "/usr/bin/x"}},
		"/srv/mine":             {{Name: "mine", Line: 1}},
		"local/x":               {{Name: "relative", Line: 1}},
	}
	unit := func(id, directive, exec string) Unit {
		return Unit{ID: id, Settings: Settings{Profile: directive, Exec: []ExecCommand{
			{Property: "ExecStartPre", Path: "/usr/bin/two"}, {Property: "ExecStart", Path: exec},
		}}}
	}
	plain := unit("plain.service", "", "/bin/plain")
	for _, tt := range []struct {
		name   string
		wanted string
		unit   Unit
		want   string // the profile; "" an error
		code   Code
		says   string
		fixed  bool
	}{
		{"internal name", "myagent", plain, "myagent", ProfileCorrected, "", false},
		{"internal name with a space", "web server", plain, "web server", ProfileCorrected, "", false},
		{"name of a child", "myagent//helper", plain, "myagent//helper", ProfileCorrected, "", false},
		{"file name", "usr.local.bin.myagent", plain, "myagent", ProfileCorrected, "usr.local.bin.myagent is a file name; its profile is called myagent", true},
		{"path", "/etc/apparmor.d/usr.local.bin.myagent", plain, "myagent", ProfileCorrected, "/etc/apparmor.d/usr.local.bin.myagent is a path; its profile is called myagent", true},
		{"path elsewhere", "/srv/mine", plain, "mine", ProfileCorrected, "is a path", true},
		{"program", "/usr/local/bin/myagent", plain, "myagent", ProfileCorrected, "/usr/local/bin/myagent is a program; the profile that attaches to it is called myagent", true},
		{"file of two, one for the unit's program", "pair", unit("t.service", "", "/usr/bin/two"), "two", ProfileCorrected, "pair is a file name; of its 2 profiles, two is the one for t.service", true},
		{"file of two, one for the unit's name", "pair", unit("one.service", "", "/bin/x"), "one", ProfileCorrected, "of its 2 profiles", true},
		{"file of two, both possible", "pair", unit("one.service", "", "/usr/bin/two"), "", ProfileAmbiguous, "one (/etc/apparmor.d/pair:1), two (/etc/apparmor.d/pair:5)", false},
		{"file of two", "pair", plain, "", ProfileAmbiguous, "two (/etc/apparmor.d/pair:5)", false},
		{"name of two", "twin", plain, "", ProfileDuplicate, "twin (/etc/apparmor.d/twin1:1), twin (/etc/apparmor.d/twin2:2)", false},
		{"program of two", "/usr/bin/x", plain, "", ProfileAmbiguous, "x1 (/etc/apparmor.d/x1:1), x2", false},
		{"file without a profile", "empty", plain, "", ProfileNotFound, "/etc/apparmor.d/empty defines no profile", false},
		{"no such name", "nope", plain, "", ProfileNotFound, "no profile is called nope", false},
		{"no such path", "/etc/apparmor.d/nope", plain, "", ProfileNotFound, "no such file", false},
		{"relative path", "local/thing", plain, "", ProfileNotFound, "absolute path", false},
		{"above", "..", plain, "", ProfileNotFound, "..", false},
		{"line break", "my\nagent", plain, "", ProfileNameBad, "line break", false},

		{"left out: the directive", "", unit("u.service", "myagent", "/usr/bin/two"), "myagent", ProfileCorrected, "names profile myagent already", false},
		{"left out: the directive has the file's name", "", unit("u.service", "usr.local.bin.myagent", "/usr/bin/two"), "myagent", ProfileCorrected, "is a file name; its profile is called myagent", true},
		{"left out: the directive has the file's path", "", unit("u.service", "/etc/apparmor.d/usr.local.bin.myagent", "/usr/bin/two"), "myagent", ProfileCorrected, "is a path; its profile is called myagent", true},
		{"left out: the directive names nothing", "", unit("u.service", "gone", "/usr/bin/two"), "", ProfileNotFound, "AppArmorProfile=gone", false},
		{"left out: the directive has a relative path", "", unit("u.service", "local/x", "/usr/bin/two"), "", ProfileNotFound, "AppArmorProfile=local/x", false},
		{"left out: the program", "", unit("u.service", "", "/usr/local/bin/myagent"), "myagent", ProfileCorrected, "attaches to /usr/local/bin/myagent", false},
		{"left out: two for the program", "", unit("u.service", "", "/usr/bin/x"), "", ProfileAmbiguous, "x2", false},
		{"left out: the unit's name", "", unit("myagent.service", "", "/bin/x"), "myagent", ProfileCorrected, "named like the unit", false},
		{"left out: the instance's prefix", "", unit("myagent@1.service", "", "/bin/x"), "myagent", ProfileCorrected, "named like the unit", false},
		{"left out: a file named like the unit", "", unit("web.service", "", "/bin/x"), "web server", ProfileCorrected, "web is a file named like the unit; its profile is called web server", true},
		{"left out: nothing", "", plain, "", ProfileNotFound, "plain.service", false},
		{"left out: a unit without commands", "", Unit{ID: "plain.service"}, "", ProfileNotFound, "plain", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, bad := Resolve(tt.wanted, tt.unit, profiles)
			why := got.Why
			if bad != nil {
				why = *bad
			}
			if (bad == nil) != (tt.want != "") || got.Profile.Name != tt.want || got.Corrected != tt.fixed || why.Code != tt.code {
				t.Errorf("got profile %q, corrected %v, %s: %s", got.Profile.Name, got.Corrected, why.Code, why)
			}
			if !strings.Contains(why.Detail, tt.says) || tt.fixed && strings.HasPrefix(tt.says, tt.wanted) && tt.wanted != "" && why.Detail != tt.says {
				t.Errorf("it says %q, want %q", why.Detail, tt.says)
			}
		})
	}
}
