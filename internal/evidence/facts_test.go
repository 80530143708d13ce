package evidence

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// tree makes files below a root: a text that begins with "-> " is a link.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		at := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if err == nil {
			if target, link := strings.CutPrefix(text, "-> "); link {
				err = os.Symlink(target, at)
			} else {
				err = os.WriteFile(at, []byte(text), 0o755)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFacts(t *testing.T) {
	root := tree(t, map[string]string{
		"/etc/passwd":         "root:x:0:0:root:/root:/bin/sh\nagent:x:1234:1234::/:/bin/false\nbad:x:y:1::/:/bin/false\n",
		"/usr/bin/python3.11": "\x7fELF\x02",
		"/usr/bin/python3":    "-> python3.11",
		"/usr/bin/env":        "\x7fELF\x02",
		"/usr/bin/dash":       "\x7fELF\x02",
		"/usr/bin/sh":         "-> dash",
		"/bin":                "-> usr/bin",
		"/opt/agent/run":      "#!/usr/bin/env python3\nprint()\n",
		"/opt/link":           "-> /opt/../opt/./agent/run",
		"/opt/script":         "#! /opt/chain  -x \n",
		"/opt/chain":          "#!/bin/sh",
		"/opt/loop":           "-> loop",
		"/opt/out":            "-> ../../../../../../../etc/passwd",
		"/opt/self":           "#!/opt/self\n",
		"/opt/data":           "x",
		"/opt/dir/file":       "",
		"/opt/\x1b[31m\xff":   "\x7fELF\x02",
		"/proc/42/status":     "Name:\tagent\nNoNewPrivs:\t1\n",
		"/proc/42/cgroup":     "0::/system.slice/agent.service\n",
		"/proc/43/status":     "NoNewPrivs:\t1\n",
		"/proc/43/cgroup":     "0::/system.slice/agent.service.d\n",
		"/proc/44/cgroup":     "1:name=systemd:/system.slice/agent.service/inner\n",
		"/proc/44/status":     "NoNewPrivs:\t0\n",
		"/proc/45/cgroup":     "0::/system.slice/agent.service\n",
		"/proc/45/status":     "NoNewPrivs:\t2\nSeccomp:\t0\n",
	})
	k := New(Options{Root: root})
	u := attach.Unit{MainPID: 42, ControlGroup: "/system.slice/agent.service", Settings: attach.Settings{User: "agent"}}
	me := int64(os.Geteuid())
	f := k.Facts(u, []string{"/opt/link", "/opt/script", "/opt/loop", "/opt/out", "/opt/self", "/opt/data", "/opt/dir/", "/opt/none", "/opt/data/x", "relative", "/", "/opt/\x1b[31m\xff"})
	if f.NoNewPrivs != attach.Yes || f.User != 1234 {
		t.Errorf("%v, user %d", f.NoNewPrivs, f.User)
	}
	want := map[string]attach.File{
		"/opt/link":         {Path: "/opt/agent/run", Kind: attach.FileScript, Owner: me, Interpreter: "/usr/bin/env", Runs: "/usr/bin/python3"},
		"/usr/bin/python3":  {Path: "/usr/bin/python3.11", Kind: attach.FileCompiled, Owner: me},
		"/usr/bin/env":      {Path: "/usr/bin/env", Kind: attach.FileCompiled, Owner: me},
		"/opt/script":       {Path: "/opt/script", Kind: attach.FileScript, Owner: me, Interpreter: "/opt/chain"},
		"/opt/chain":        {Path: "/opt/chain", Kind: attach.FileScript, Owner: me, Interpreter: "/bin/sh"},
		"/bin/sh":           {Path: "/usr/bin/dash", Kind: attach.FileCompiled, Owner: me},
		"/opt/loop":         {Owner: -1},
		"/opt/out":          {Path: "/etc/passwd", Kind: attach.FileOther, Owner: me},
		"/opt/self":         {Path: "/opt/self", Kind: attach.FileScript, Owner: me, Interpreter: "/opt/self"},
		"/opt/data":         {Path: "/opt/data", Kind: attach.FileOther, Owner: me},
		"/opt/dir/":         {Path: "/opt/dir/", Kind: attach.FileDirectory, Owner: me},
		"/opt/none":         {Kind: attach.FileMissing, Owner: -1},
		"/opt/data/x":       {Kind: attach.FileMissing, Owner: -1},
		"relative":          {Owner: -1},
		"/":                 {Owner: -1},
		"/opt/\x1b[31m\xff": {Path: "/opt/\x1b[31m\xff", Kind: attach.FileCompiled, Owner: me},
	}
	for path, w := range want {
		if f.Files[path] != w {
			t.Errorf("%q: %+v, want %+v", path, f.Files[path], w)
		}
	}
	if len(f.Files) != len(want) {
		t.Errorf("%d files, want %d", len(f.Files), len(want))
	}

	// The main process, as far as it is the unit's.
	for pid, w := range map[int]attach.Tri{0: attach.CouldNotTell, 41: attach.CouldNotTell, 43: attach.CouldNotTell, 44: attach.No, 45: attach.CouldNotTell} {
		u.MainPID = pid
		if got := k.Facts(u, nil).NoNewPrivs; got != w {
			t.Errorf("process %d: %v, want %v", pid, got, w)
		}
	}
	for _, s := range []struct {
		attach.Settings
		want int64
	}{
		{attach.Settings{}, 0}, {attach.Settings{User: "77"}, 77}, {attach.Settings{User: "root"}, 0}, {attach.Settings{User: "bad"}, -1}, {attach.Settings{User: "nobody-here"}, -1},
		{attach.Settings{DynamicUser: true}, -1}, {attach.Settings{DynamicUser: true, User: "agent"}, 1234},
	} {
		if got := k.Facts(attach.Unit{Settings: s.Settings}, nil).User; got != s.want {
			t.Errorf("%+v: user %d, want %d", s.Settings, got, s.want)
		}
	}
	// In another root the host's paths and users mean nothing.
	if f := k.Facts(attach.Unit{Settings: attach.Settings{RootDirectory: "/srv/root", User: "agent"}}, []string{"/opt/data"}); f.User != -1 || len(f.Files) > 0 {
		t.Errorf("%+v", f)
	}
	// Many files are as many as are looked at.
	var many []string
	for n := range 2 * maxFacts {
		many = append(many, fmt.Sprintf("/opt/none%d", n))
	}
	if f := k.Facts(attach.Unit{}, many); len(f.Files) != maxFacts {
		t.Errorf("%d files", len(f.Files))
	}
}

// A file system that may not answer is not entered, nor is a link followed there.
func TestFactsOnAFileSystemThatMayNotAnswer(t *testing.T) {
	root := tree(t, map[string]string{"/mnt/agent": "\x7fELF", "/opt/agent": "-> /mnt/agent"})
	w, err := New(Options{Root: root}).newWalk()
	if err != nil {
		t.Fatal(err)
	}
	defer w.root.Close()
	if f := w.look("/opt/agent"); f.Kind != attach.FileCompiled {
		t.Fatalf("%+v", f)
	}
	if len(w.kinds) != 1 {
		t.Fatalf("%v", w.kinds)
	}
	for id := range w.kinds {
		w.kinds[id] = "fuse.sshfs"
	}
	for _, path := range []string{"/opt/agent", "/mnt/agent", "/mnt/none/x"} {
		if f := w.look(path); f != (attach.File{Owner: -1}) {
			t.Errorf("%s: %+v", path, f)
		}
	}
	w.kinds = map[string]string{}
	w.mounts = []string{"/dev/null"}
	if f := w.look("/mnt/agent"); f != (attach.File{Owner: -1}) {
		t.Errorf("a mount that is not known: %+v", f)
	}
}

func TestShebang(t *testing.T) {
	pad := strings.Repeat("a", maxHead)
	for _, tt := range []struct{ head, interpreter, argument string }{
		{"#!/bin/sh\n", "/bin/sh", ""},
		{"#!/bin/sh", "/bin/sh", ""},
		{"#! \t/bin/sh\t-e  -u \nrest", "/bin/sh", "-e  -u"},
		{"#!/bin/sh\x00/x\n", "/bin/sh", ""},
		{"#!/bin/sh -e" + pad[:maxHead-12], "/bin/sh", "-e" + pad[:maxHead-12]},
		{("#!/" + pad)[:maxHead], "", ""}, // cut off: the kernel does not run it
		{"#!", "", ""}, {"#!\n/bin/sh", "", ""}, {"#! \n", "", ""}, {"#!sh\n", "", ""}, {"", "", ""}, {"#", "", ""}, {" #!/bin/sh\n", "", ""},
	} {
		i, a, ok := shebang([]byte(tt.head))
		if i != tt.interpreter || a != tt.argument || ok != (tt.interpreter != "") {
			t.Errorf("%q: %q %q %v", tt.head, i, a, ok)
		}
	}
	for argument, want := range map[string]string{
		"python3": "python3", "-S python3 -u": "python3", "-S A=1 B=2 python3": "python3", "A=1": "", "": "", "-S": "", "python3 -u": "",
		"-i python3": "", "-S -i python3": "", "-S ${X}": "", "-S 'a b'": "", "/opt/x": "/opt/x",
	} {
		if got := envRuns(argument); got != want {
			t.Errorf("env %s: %q, want %q", argument, got, want)
		}
	}
}

func FuzzShebang(f *testing.F) {
	for _, s := range []string{"#!/bin/sh\n", "#! /usr/bin/env -S a=b python3 -u\n", "#!/x\x00", "#!\t/x\ty"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		interpreter, argument, ok := shebang(head)
		if ok != (interpreter != "") || strings.ContainsAny(interpreter, " \t\n\x00") || strings.ContainsAny(argument, "\n\x00") {
			t.Errorf("%q: %q %q %v", head, interpreter, argument, ok)
		}
		if p := envRuns(argument); strings.ContainsAny(p, " \t\n\x00") {
			t.Errorf("%q starts %q", argument, p)
		}
	})
}

func FuzzProcess(f *testing.F) {
	f.Add("NoNewPrivs:\t1\n", "0::/system.slice/a.service\n", "a:x:1:1:::\n")
	f.Fuzz(func(t *testing.T, status, group, passwd string) {
		_ = parseNoNewPrivs(strings.NewReader(status))
		_ = inGroup(strings.NewReader(group), "/system.slice/a.service")
		if n := userNumber(strings.NewReader(passwd), "a"); n < -1 || n > 1<<32-1 {
			t.Errorf("%q: user %d", passwd, n)
		}
	})
}
