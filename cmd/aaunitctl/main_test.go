package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// playVar makes the test's own binary aaunitctl.
const playVar = "AAUNITCTL_TEST_PLAY"

func TestMain(m *testing.M) {
	if os.Getenv(playVar) != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

// run runs aaunitctl as on a build machine: there is no bus, whatever this one
// has.
func run(t *testing.T, args ...string) (stdout string, exit int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), os.Args[0], args...)
	cmd.Env = append(os.Environ(), playVar+"=1", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/nonexistent/bus", "LANG=C.UTF-8", "LC_ALL=")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	if exitErr := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exitErr) {
		t.Fatal(err)
	}
	if errs.Len() > 0 {
		t.Logf("stderr of %q: %s", args, errs.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

func says(t *testing.T, out string, words ...string) {
	t.Helper()
	plain := strings.Join(strings.Fields(out), " ")
	for _, w := range words {
		if !strings.Contains(plain, w) {
			t.Errorf("it does not say %q:\n%s", w, out)
		}
	}
}

// TestCheckOfTheDiscussedProfile is the profile that was passed around in a
// discussion: check says every thing that its readers found in it, although the
// parser stops at one of them, and passes it when they are corrected.
func TestCheckOfTheDiscussedProfile(t *testing.T) {
	out, exit := run(t, "check", "testdata/discussed")
	if exit != int(attach.ExitNotConfined) {
		t.Errorf("exit status %d", exit)
	}
	says(t, out,
		// The rule that somebody made up.
		"testdata/discussed:13: AppArmor cannot express this: it knows no rules for single socket options.",
		"list the options in the attachment file, in its section [SocketOptions]: Allow=SOL_TCP:TCP_NODELAY",
		"13 | socket (tcp) options=(setsockopt) level=SOL_TCP optname=(TCP_NODELAY),",
		// Nothing that follows is of the text as it stands.
		"[profile-checked-in-part] the rest was compiled without",
		// The open doors, each with an example and the rule.
		`profile myagent may write /tmp, which all users share unless the unit has PrivateTmp=yes, aaunit's default: /tmp/a, by the rule "/tmp/** rw,"`, "discussed:10)",
		`profile myagent may write /var/tmp, which all users share unless the unit has PrivateTmp=yes, aaunit's default: /var/tmp/a, by the rule "/var/tmp/** rw,"`, "discussed:11)",
		// What is missing.
		"profile myagent allows no socket of inet or inet6", "add: network inet stream, network inet6 stream,",
	)
	out, exit = run(t, "check", "testdata/corrected")
	if exit != 0 {
		t.Errorf("corrected: exit status %d", exit)
	}
	says(t, out, "no way around the profile was found besides what is noted",
		// So it is of every profile with abstractions/base on Debian.
		"[policy-may-connect-anywhere]", "unless the unit runs as a user of its own")
	if strings.Count(out, "[") != 1 {
		t.Errorf("something is found in the corrected profile:\n%s", out)
	}

	// A program is told the same.
	out, exit = run(t, "check", "--json", "testdata/discussed")
	var doc struct{ Outcomes []attach.Outcome }
	if err := json.Unmarshal([]byte(out), &doc); err != nil || exit != int(attach.ExitNotConfined) || len(doc.Outcomes) != 1 {
		t.Fatalf("exit status %d, %v\n%s", exit, err, out)
	}
	codes := map[attach.Code]int{}
	for _, r := range doc.Outcomes[0].Reasons {
		codes[r.Code]++
	}
	for _, f := range doc.Outcomes[0].Findings {
		codes[f.Code]++
	}
	for _, r := range doc.Outcomes[0].Notes {
		codes[r.Code]++
	}
	for code, n := range map[attach.Code]int{attach.ProfileBroken: 1, attach.MayWriteTmp: 2, attach.MayNoNetwork: 1, attach.MayConnect: 1, attach.ProfilePartly: 1} {
		if codes[code] != n {
			t.Errorf("%s is there %d times, want %d", code, codes[code], n)
		}
	}
	if out, exit = run(t, "check", "--sarif", "testdata/discussed"); exit != int(attach.ExitNotConfined) || strings.Count(out, `"ruleId"`) != 6 {
		t.Errorf("--sarif: exit status %d\n%s", exit, out)
	}
}

// TestREADMEShowsWhatCheckSays runs check on the profile that README shows, and on what it
// says became of it. Only how lines are folded, what the kernel was asked and the parser's
// own words differ with the machine.
func TestREADMEShowsWhatCheckSays(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var profile string
	var shown []string
	for i, block := range strings.Split(string(text), "\n```") {
		if i%2 == 0 {
			continue // what is between them
		}
		block = strings.TrimPrefix(block, "\n")
		if strings.HasPrefix(block, "include <tunables/global>") {
			profile = block + "\n"
		}
		if transcript, is := strings.CutPrefix(block, "$ aaunitctl check ./myagent\n"); is {
			shown = append(shown, transcript)
		}
	}
	corrected := strings.NewReplacer(
		"  /var/lib/myagent/** rw,\n  /tmp/** rw,\n  /var/tmp/** rw,\n", "  owner /var/lib/myagent/** rwk,\n",
		"  socket (tcp) options=(setsockopt) level=SOL_TCP optname=(TCP_NODELAY),\n", "  network inet stream,\n  network inet6 stream,\n").Replace(profile)
	if len(shown) != 2 || corrected == profile {
		t.Fatalf("README has %d transcripts, and the profile\n%s", len(shown), profile)
	}
	varies := regexp.MustCompile(`(?m)^  \? kernel .*\n| \(apparmor_parser: [^)]*\)`)
	plain := func(s string) string { return strings.Join(strings.Fields(varies.ReplaceAllString(s, "")), " ") }
	dir := t.TempDir()
	file := filepath.Join(dir, "myagent")
	for i, text := range []string{profile, corrected} {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, _ := run(t, "check", file)
		if got, want := plain(strings.ReplaceAll(out, dir, "/src")), plain(shown[i]); got != want {
			t.Errorf("README shows\n%s\nand it says\n%s", want, got)
		}
	}
}

// Nothing that a build machine lacks makes a check fail, and what cannot be known
// there is no success.
func TestCheckOnABuildMachine(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o666); err != nil {
			t.Fatal(err)
		}
		return path
	}
	// As a checkout is: not root's, not in /etc/apparmor.d, behind a link.
	profile := write("a", "include <abstractions/own>\nprofile a /usr/bin/a {\n  network inet stream,\n}\n")
	write("inc/abstractions/own", "@{OWN}=/srv\n")
	tree := filepath.Join(dir, "base")
	write("base/a", "profile a {\n  network inet stream,\n  /srv/** w,\n}\n")
	write("base/b", "profile b {\n  network inet stream,\n  /etc/** w,\n}\n")
	link := filepath.Join(dir, "link")
	if err := os.Symlink(profile, link); err != nil {
		t.Fatal(err)
	}
	asserted := func(what string) string {
		return write(strings.Trim(strings.Fields(what)[1], "/*@{}")+".conf", "[Attachment]\nUnit=a.service\nUnit=c@.service\nProfile=a\n[Assertions]\n"+what+"\n")
	}
	patterned := write("pattern.conf", "[Attachment]\nUnit=c@.service\nProfile=a-%i\n")
	broken := write("broken.conf", "[Attachment]\nUnit=a.service\nProfil=a\n")
	features := write("features", "")
	if text, err := os.ReadFile("/usr/share/apparmor-features/features"); err != nil {
		t.Fatal("Debian's package apparmor brings this:", err)
	} else if err := os.WriteFile(features, text, 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		exit attach.Exit
		says []string
	}{
		"clean":                       {[]string{"check", "-I", dir + "/inc", profile}, 0, []string{"kernel not asked: neither aaunitd nor the kernel was asked", "no way around the profile was found"}},
		"behind a link":               {[]string{"check", "-I", dir + "/inc", link}, 0, []string{"no way around"}},
		"without the include":         {[]string{"check", profile}, 3, []string{"there is no file /etc/apparmor.d/abstractions/own", "a:1"}},
		"nobody has to say offline":   {[]string{"check", tree + "/a"}, 0, []string{"not asked: there is no aaunitd here", "compiled for the kernel that"}},
		"features":                    {[]string{"check", "--kernel-features", features, tree + "/a"}, 0, []string{"the kernel that " + features + " describes"}},
		"no such features":            {[]string{"check", "--kernel-features", dir + "/none", tree + "/a"}, 2, nil},
		"a profile by name":           {[]string{"check", "--base", tree, "a"}, 0, []string{"● a ← profile a (" + tree + "/a)"}},
		"a finding":                   {[]string{"check", "--base", tree, "b"}, 3, []string{"[policy-may-write-policy]", "base/b:3"}},
		"a child that complains":      {[]string{"check", write("child", "profile agent {\n  network inet stream,\n  /bin/sh Cx -> sh,\n  profile sh flags=(complain) {\n  }\n}\n")}, 3, []string{"[profile-complain]", "agent//sh", "child:4"}},
		"one named as a child":        {[]string{"check", write("alone", "profile agent//helper {\n  network inet stream,\n  /etc/** w,\n}\n")}, 3, []string{"← profile agent//helper", "[policy-may-write-policy]", "alone:3"}},
		"a name with a variable":      {[]string{"check", write("named", "@{exec_path}=/usr/bin/agent\nprofile @{exec_path} {\n  network inet stream,\n  profile sh flags=(complain) {\n  }\n}\n")}, 3, []string{"← profile /usr/bin/agent (", "[profile-complain]", "/usr/bin/agent//sh"}},
		"one of several":              {[]string{"check", "--base", tree, "a", "b"}, 3, []string{"● a", "● b"}},
		"an assertion that holds":     {[]string{"check", "--base", tree, asserted("Deny=write /opt/**")}, 0, []string{"no way around"}},
		"one that does not":           {[]string{"check", "--base", tree, asserted("Deny=network inet")}, 3, []string{"[assertion-failed]", ".conf:6"}},
		"one about the unit":          {[]string{"check", "--base", tree, asserted("Deny=write @{exec}")}, 5, []string{"[assertion-unknown]", "no command line of the unit is known"}},
		"profiles to come":            {[]string{"check", "--base", tree, patterned}, 5, []string{"Profile=a-%i is another profile for each unit of c@.service"}},
		"a broken attachment":         {[]string{"check", "--base", tree, broken}, 3, []string{"[attachment-bad]", "broken.conf:3"}},
		"a bare file name":            {[]string{"check", "main.go"}, 5, []string{"aaunitctl check ./main.go"}},
		"a unit":                      {[]string{"check", "--base", tree, "aaunit-test-of-no-unit.service"}, 5, []string{"nothing is known of unit"}},
		"no such file":                {[]string{"check", dir + "/nope"}, 5, []string{"[profile-unreadable]", "there is no file"}},
		"a directory":                 {[]string{"check", dir}, 5, []string{"[profile-unreadable]"}},
		"all attached":                {[]string{"check", "--offline"}, 2, nil},
		"all attached, and no daemon": {[]string{"check"}, 1, nil},
		"a question":                  {[]string{"query", "--base", tree, "a", "write /srv/**"}, 3, []string{"profile a allows"}},
		"a question, no":              {[]string{"query", tree + "/a", "write /etc/**"}, 0, []string{"profile a may write nothing that matches /etc/**"}},
		"a question about all":        {[]string{"query", "--base", tree, "--all", "write /etc/**"}, 3, []string{"yes profile b"}},
		"a question about none":       {[]string{"query", "--base", tree, "none", "write /etc/**"}, 5, []string{"unknown"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, exit := run(t, c.args...)
			if (name == "a unit" || name == "a bare file name") && exit == int(attach.ExitNoUnit) {
				return // systemd runs here, and knows that there is none
			}
			if exit != int(c.exit) {
				t.Errorf("exit status %d, want %d\n%s", exit, c.exit, out)
			}
			says(t, out, c.says...)
		})
	}
}
