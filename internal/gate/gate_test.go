package gate

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/attach"
)

// compile gives the text to the system's parser, for a kernel that has all of
// AppArmor.
func compile(t testing.TB, text string) attach.Compiled {
	t.Helper()
	file := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var out, said bytes.Buffer
	of := features(t, !strings.Contains(text, "# no dbus"), strings.Contains(text, "# af_unix"), !strings.Contains(text, "# no network"), !strings.Contains(text, "# no ptrace"))
	cmd := exec.Command("apparmor_parser", "--skip-kernel-load", "--skip-cache", "--stdout", "--kernel-features="+of, "--policy-features="+of, file)
	cmd.Env = append(os.Environ(), "PATH=/usr/sbin:/sbin:/usr/bin:/bin")
	cmd.Path = "/usr/sbin/apparmor_parser"
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s\n%s", err, said.String(), text)
	}
	c := attach.Compiled{ID: fmt.Sprintf("%x", out.Bytes()), File: "/etc/apparmor.d/agent", Blob: out.Bytes()}
	elements, err := policydb.Split(c.Blob)
	if err != nil {
		t.Fatal(err)
	}
	for i, e := range elements {
		c.Profiles = append(c.Profiles, attach.Profile{Name: e.Name, File: c.File, Line: i + 1})
	}
	return c
}

// features describes a kernel. Debian's has no mediation of D-Bus, and of unix sockets
// by their addresses, Ubuntu's has.
func features(t testing.TB, dbus, unix, network, ptrace bool) string {
	t.Helper()
	const debian = "/usr/share/apparmor-features/features"
	if !dbus && !unix && network && ptrace {
		return debian
	}
	data, err := os.ReadFile(debian)
	if err != nil {
		t.Fatal(err)
	}
	if !network {
		data = regexp.MustCompile(`network_v8 \{af_mask \{[^}]*\}\n\}\n`).ReplaceAll(data, nil)
	}
	if !ptrace {
		data = regexp.MustCompile(`ptrace \{mask \{[^}]*\}\n\}\n`).ReplaceAll(data, nil)
	}
	more := ""
	if dbus {
		more += "dbus {mask {acquire send receive\n}\n}\n"
	}
	if unix {
		more += "network {af_unix {yes\n}\n}\n"
	}
	file := filepath.Join(t.TempDir(), "features")
	if err := os.WriteFile(file, append([]byte(more), data...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// profile is profile "agent" with these rules, and those that every program
// needs.
func profile(rules string) string {
	return "#include <tunables/global>\nprofile agent /usr/bin/agent {\n  /usr/bin/agent mr,\n  /run/systemd/notify w,\n" + rules + "\n}\n"
}

// question asks about it for a unit that runs as a user of its own.
func question(t testing.TB, text string, lines ...string) Question {
	a := attach.NewAttachment()
	a.Source, a.Units, a.Profile = "/etc/aaunit/attachments.d/agent.conf", []string{"agent.service"}, "agent"
	for i, l := range lines {
		key, value, _ := strings.Cut(l, "=")
		var err error
		if key == "PrivateTmp" || key == "AllowProfiles" {
			err = a.Set(key, value)
		} else {
			err = a.SetAssertion(key, value, i+10)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Question{
		Desired: attach.Desired{Unit: "agent.service", Profile: "agent", Attachment: &a},
		Unit: attach.Unit{ID: "agent.service", LoadState: "loaded", Type: "notify", Settings: attach.Settings{User: "agent",
			Exec: []attach.ExecCommand{{Property: "ExecStart", Path: "/usr/bin/agent"}}}},
		Compiled: []attach.Compiled{compile(t, text)},
	}
}

func ask(t testing.TB, q Question) []attach.Finding {
	t.Helper()
	return New(func(string) (attach.Compiled, error) { return attach.Compiled{}, errors.New("nothing is kept") }).Ask(q)
}

// besides leaves out that most profiles here allow no network, that some lead to
// others, and that unix sockets may connect anywhere.
func besides(found []attach.Finding) []attach.Finding {
	return slices.DeleteFunc(found, func(f attach.Finding) bool {
		return f.Code == attach.MayNoNetwork || f.Code == attach.MayChange || f.Code == attach.MayConnect
	})
}

func codes(found []attach.Finding) (out []string) {
	for _, f := range found {
		out = append(out, f.Severity.String()+" "+string(f.Code))
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func root(u *attach.Unit) { u.Settings.User = "" }

// Each built-in assertion: rules that violate it, and rules close by that do not.
func TestBuiltIn(t *testing.T) {
	const paths = "# af_unix\n" // a kernel that looks at paths of unix sockets
	for _, tt := range []struct {
		name  string
		rules string
		set   []string
		unit  func(*attach.Unit)
		facts *attach.Facts
		want  string // of the worst finding, "" none
		shows string
	}{
		{name: "nothing"},
		{name: "a private tmp", rules: "/tmp/** rw,\n/var/tmp/** rw,"},
		{name: "the shared tmp", rules: "/tmp/** rw,", set: []string{"PrivateTmp=no"}, want: "error policy-may-write-shared-tmp", shows: "/tmp/a"},
		{name: "only read there", rules: "/tmp/** r,", set: []string{"PrivateTmp=no"}},
		{name: "the unit's own private tmp", rules: "/tmp/** rw,", set: []string{"PrivateTmp=no"}, unit: func(u *attach.Unit) {
			u.Settings.PrivateTmp = attach.PrivateTmpYes
			u.Settings.Assignments = []attach.Assignment{{Key: "PrivateTmp", Value: "yes", Path: "/etc/systemd/system/agent.service"}}
		}},
		{name: "a joined tmp", rules: "/tmp/** rw,", unit: func(u *attach.Unit) { u.Settings.JoinsNamespaceOf = []string{"b.service"} },
			want: "error policy-may-write-shared-tmp", shows: "b.service"},
		{name: "shm of all", rules: "/dev/shm/** rw,", want: "error policy-may-write-shared-tmp", shows: "/dev/shm/"},
		{name: "shm of its own", rules: "owner /dev/shm/** rw,"},
		{name: "denied again", rules: "/etc/** rw,\ndeny /etc/{apparmor,systemd,aaunit,cron}** w,\ndeny /etc/{crontab,anacrontab} w,"},
		{name: "its own executable", rules: "/usr/bin/ag* rw,", want: "error policy-may-write-own-executable", shows: "/usr/bin/agent"},
		{name: "aaunit's programs", rules: "/usr/bin/aaunitctl w,", want: "error policy-may-write-policy"},
		{name: "systemd's network files", rules: "/etc/systemd/network/x w,", want: "error policy-may-write-policy"},
		{name: "the directory of profiles", rules: "/etc/apparmor.d/ w,", want: "error policy-may-write-policy"},
		{name: "an at job", rules: "/var/spool/at/x w,", want: "error policy-may-ask-others"},
		{name: "its own reload program", rules: "/opt/reload rw,", unit: func(u *attach.Unit) {
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecReload", Path: "/opt/reload"})
		}, want: "error policy-may-write-own-executable", shows: "ExecReload="},
		{name: "profiles", rules: "/etc/apparmor.d/local/agent w,", want: "error policy-may-write-policy", shows: "/etc/apparmor.d/local/agent"},
		{name: "units", rules: "/run/systemd/system/** w,", want: "error policy-may-write-policy"},
		{name: "aaunit", rules: "/var/lib/*/** w,", want: "error policy-may-write-policy", shows: "/var/lib/aaunit/"},
		{name: "compiled policy that is loaded at boot", rules: "/var/cache/** rw,", want: "error policy-may-write-policy", shows: "/var/cache/apparmor/"},
		{name: "a cache of its own", rules: "/var/cache/agent/** rw,"},
		{name: "policy, into the kernel", rules: "/sys/kernel/security/apparmor/.replace w,\ncapability mac_admin,", want: "error policy-may-write-policy", shows: "/sys/kernel/security/apparmor/.replace"},
		{name: "policy, which the kernel refuses", rules: "/sys/kernel/security/apparmor/.replace w,"},
		{name: "policy, the query file", rules: "/sys/kernel/security/apparmor/.access rw,\ncapability mac_admin,"},
		{name: "pins, by root", rules: "/sys/fs/bpf/** rw,", unit: root, want: "error policy-may-write-policy", shows: "/sys/fs/bpf/aaunit/"},
		{name: "pins, read by root", rules: "/sys/fs/bpf/** r,", unit: root},
		{name: "pins of its own, by root", rules: "/sys/fs/bpf/agent/** rw,", unit: root},
		{name: "pins, by a user", rules: "/sys/fs/bpf/** rw,"},
		{name: "pins, by nobody knows whom", rules: "/sys/fs/bpf/** rw,", unit: func(u *attach.Unit) { *u = attach.Unit{} }},
		{name: "control groups, by root", rules: "/sys/fs/cgroup/** rw,", unit: root, want: "warning policy-may-leave-control-group", shows: "cgroup.procs"},
		{name: "the root of control groups, by root", rules: "owner /sys/fs/cgroup/cgroup.procs w,", unit: root, want: "warning policy-may-leave-control-group", shows: "/sys/fs/cgroup/cgroup.procs"},
		{name: "control groups, read by root", rules: "/sys/fs/cgroup/** r,\n/sys/fs/cgroup/**/memory.high rw,", unit: root},
		{name: "control groups that are read-only", rules: "/sys/fs/cgroup/** rw,", unit: func(u *attach.Unit) { root(u); u.Settings.ProtectControlGroups = true }},
		{name: "control groups, by a user", rules: "/sys/fs/cgroup/** rw,"},
		{name: "ptrace, by root", rules: "ptrace,\ncapability sys_ptrace,", unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "error policy-may-trace-unconfined", shows: "not confined"},
		{name: "ptrace, by a user", rules: "ptrace trace,\ncapability sys_ptrace,", want: "warning policy-may-trace-unconfined"},
		{name: "ptrace, by root within bounds", rules: "ptrace trace peer=unconfined,\ncapability sys_ptrace,", unit: func(u *attach.Unit) { u.Settings.User, u.Settings.Bounding = "", 1<<10 }, want: "warning policy-may-trace-unconfined"},
		{name: "ptrace without the capability", rules: "ptrace,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "ptrace of its own", rules: "ptrace trace peer=agent,\ncapability sys_ptrace,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "ptrace that reads", rules: "ptrace read,\ncapability sys_ptrace,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "the capability without ptrace", rules: "capability sys_ptrace,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "ptrace, nobody looks", rules: "# no ptrace\ncapability sys_ptrace,", unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "error policy-may-trace-unconfined", shows: "does not look"},
		{name: "other people's keys", rules: "/home/*/.ssh/** w,", want: "error policy-may-write-ssh-keys"},
		{name: "its own keys", rules: "owner /home/*/.ssh/** rw,"},
		{name: "sysctl", rules: "@{PROC}/sys/net/core/* rw,", want: "error policy-may-write-proc-sys"},
		{name: "sysctl, read", rules: "@{PROC}/sys/net/core/* r,"},
		{name: "ux", rules: "/bin/sh Ux,", want: "error policy-may-leave-profile", shows: "/bin/sh"},
		{name: "pux", rules: "/bin/* PUx,", want: "warning policy-may-leave-profile", shows: "has none of its own"},
		{name: "px to unconfined", rules: "/bin/true px -> unconfined,", want: "error policy-may-leave-profile"},
		{name: "change_profile", rules: "change_profile -> unconfined,", want: "error policy-may-leave-profile"},
		{name: "ix", rules: "/bin/sh ix,"},
		{name: "a child leaves", rules: "/bin/sh Cx,\nprofile /bin/sh {\n/bin/sh mr,\n/bin/su Ux,\n}", want: "error policy-may-leave-profile", shows: "agent///bin/sh"},
		{name: "file", rules: "file,", want: "error policy-may-everything"},
		{name: "capability", rules: "capability,", want: "error policy-may-everything", shows: "capability"},
		{name: "one capability", rules: "capability net_bind_service,"},
		{name: "network", rules: "network,", want: "error policy-may-everything", shows: "every family"},
		{name: "one family", rules: "network inet,\nnetwork inet6,\nnetwork unix,"},
		{name: "cron", rules: "/etc/cron.d/* w,", want: "error policy-may-ask-others"},
		{name: "docker", rules: "/run/docker.sock rw,", want: "error policy-may-ask-others", shows: "docker.sock"},
		{name: "systemd, by a user", rules: "/run/dbus/system_bus_socket rw,\ndbus,", want: "warning policy-may-ask-others"},
		{name: "systemd, by root", rules: "/run/dbus/system_bus_socket rw,\ndbus,", unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "error policy-may-ask-others"},

		{name: "systemd, one call", rules: "/run/dbus/system_bus_socket rw,\ndbus send bus=system interface=org.freedesktop.systemd1.Manager member=StartUnit,", unit: func(u *attach.Unit) { u.Settings.User = "" },
			want: "error policy-may-ask-others", shows: "(StartUnit)"},
		{name: "systemd, by a unit's object", rules: "/run/dbus/system_bus_socket rw,\ndbus send bus=system path=/org/freedesktop/systemd1/unit/a_2eservice member=Restart,", unit: func(u *attach.Unit) { u.Settings.User = "" },
			want: "error policy-may-ask-others", shows: "(Restart)"},
		{name: "systemd, only asked", rules: "/run/dbus/system_bus_socket rw,\ndbus send bus=system interface=org.freedesktop.DBus.Properties,\ndbus send bus=system interface=org.freedesktop.systemd1.Manager member=GetUnit,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "systemd, nobody looks", rules: "# no dbus\n/run/dbus/system_bus_socket rw,", unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "warning policy-may-ask-others", shows: "does not look"},
		{name: "another bus name", rules: "/run/dbus/system_bus_socket rw,\ndbus send bus=system peer=(name=org.freedesktop.resolve1),", unit: func(u *attach.Unit) { u.Settings.User = "" }},

		{name: "a program that cannot run", unit: func(u *attach.Unit) {
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/usr/bin/stop"})
		}, want: "note policy-may-not-run-program", shows: "ExecStop="},
		{name: "a program with +", unit: func(u *attach.Unit) {
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/usr/bin/stop", Privileged: true})
		}},
		{name: "a program with + that it may write", rules: "/usr/bin/stop w,", unit: func(u *attach.Unit) {
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/usr/bin/stop", Privileged: true})
		}, want: "error policy-may-write-own-executable", shows: "/usr/bin/stop"},
		{name: "a program in /bin", rules: "/usr/bin/stop mr,", unit: func(u *attach.Unit) {
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/bin/stop"})
		}},
		{name: "its own executable in /bin", rules: "/usr/bin/stop rw,", unit: func(u *attach.Unit) {
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/bin/stop"})
		}, want: "error policy-may-write-own-executable", shows: "/usr/bin/stop"},
		{name: "a program that PermissionsStartOnly= lets out", unit: func(u *attach.Unit) {
			u.Settings.PermissionsStartOnly = true
			u.Settings.Exec = append(u.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/usr/bin/stop"})
		}},
		{name: "no readiness", rules: paths + "unix,\ndeny /run/systemd/notify w,", want: "warning policy-may-not-notify", shows: "Type=notify"},
		{name: "readiness all the same", rules: "network unix dgram,\ndeny /run/systemd/notify w,", want: "note policy-may-not-notify", shows: "does not look at that"},
		{name: "no readiness wanted", rules: "deny /run/systemd/notify w,", unit: func(u *attach.Unit) { u.Type = "simple" }},
		{name: "a directory of its own", unit: func(u *attach.Unit) {
			u.Settings.Directories = []attach.Directory{{Property: "StateDirectory", Path: "/var/lib/agent"}}
		}, want: "warning policy-may-not-use-own-directories", shows: "/var/lib/agent"},
		{name: "allowed", rules: "/var/lib/agent/** rw,", unit: func(u *attach.Unit) {
			u.Settings.Directories = []attach.Directory{{Property: "StateDirectory", Path: "/var/lib/agent"}}
		}},
		{name: "families", rules: "network inet stream,", unit: func(u *attach.Unit) {
			u.Settings.AddressFamilies = &attach.AddressFamilies{AllowList: true, Families: []string{"AF_INET", "AF_INET6"}}
		}, want: "warning policy-may-use-other-families", shows: "AF_INET6"},
		{name: "px and no new privileges", rules: "/bin/sh Px,", unit: func(u *attach.Unit) { u.Settings.NoNewPrivileges = true }, want: "warning policy-may-not-change-profile"},
		{name: "ix and no new privileges", rules: "/bin/sh ix,", unit: func(u *attach.Unit) { u.Settings.NoNewPrivileges = true }},
		{name: "px and no new privileges that another setting implies", rules: "/bin/sh Px,", facts: &attach.Facts{NoNewPrivs: attach.Yes}, want: "warning policy-may-not-change-profile", shows: "/proc/PID/status"},
		{name: "px and new privileges", rules: "/bin/sh Px,", facts: &attach.Facts{NoNewPrivs: attach.No}},
		{name: "no new privileges from the next start on", rules: "/bin/sh Px,", facts: &attach.Facts{NoNewPrivs: attach.No}, unit: func(u *attach.Unit) { u.Settings.NoNewPrivileges = true }, want: "warning policy-may-not-change-profile", shows: "next start"},
		{name: "a script", facts: stops("", attach.File{Kind: attach.FileScript, Path: "/opt/stop.sh", Interpreter: "/bin/sh"}), unit: stop, want: "warning policy-may-not-run-program", shows: "/opt/stop.sh, a script that ExecStop= starts: its interpreter /bin/sh"},
		{name: "a script that may be read", rules: "/opt/stop.sh r,", facts: stops("", attach.File{Kind: attach.FileScript, Path: "/opt/stop.sh", Interpreter: "/bin/sh"}), unit: stop},
		{name: "a script of the owner's", rules: "owner /opt/stop.sh r,", facts: stops("", attach.File{Kind: attach.FileScript, Path: "/opt/stop.sh", Interpreter: "/bin/sh"}), unit: stop, want: "warning policy-may-not-run-program"},
		{name: "a script of a script", rules: "/opt/stop.sh r,", facts: stops("/opt/run", attach.File{Kind: attach.FileScript, Path: "/opt/stop.sh", Interpreter: "/opt/run"}, attach.File{Kind: attach.FileScript, Path: "/opt/run", Interpreter: "/bin/sh"}),
			unit: stop, want: "warning policy-may-not-run-program", shows: "may not read /opt/run"},
		{name: "what env starts", rules: "/opt/stop.sh r,", facts: stops("/usr/bin/python3", attach.File{Kind: attach.FileScript, Path: "/opt/stop.sh", Interpreter: "/usr/bin/env", Runs: "/usr/bin/python3"}, attach.File{Kind: attach.FileCompiled, Path: "/usr/bin/python3.11"}),
			unit: stop, want: "warning policy-may-not-run-program", shows: "may not execute /usr/bin/python3.11"},
		{name: "what env may start", rules: "/opt/stop.sh r,\n/usr/bin/python3.* rix,", facts: stops("/usr/bin/python3", attach.File{Kind: attach.FileScript, Path: "/opt/stop.sh", Interpreter: "/usr/bin/env", Runs: "/usr/bin/python3"}, attach.File{Kind: attach.FileCompiled, Path: "/usr/bin/python3.11"}),
			unit: stop},
		{name: "a compiled program", facts: stops("", attach.File{Kind: attach.FileCompiled, Path: "/opt/stop.sh"}), unit: stop},
		{name: "its own executable behind a link", rules: "/opt/real rw,", facts: stops("", attach.File{Kind: attach.FileCompiled, Path: "/opt/real"}), unit: stop, want: "error policy-may-write-own-executable", shows: "/opt/real"},
		{name: "a file of root's", rules: "owner /etc/agent.key r,", facts: key(0, 1000), want: "warning policy-may-not-use-files-of-others", shows: "read of /etc/agent.key to its owner only, which is user 0, and the unit runs as agent"},
		{name: "a file of its own", rules: "owner /etc/agent.key r,", facts: key(1000, 1000)},
		{name: "a file of whoever", rules: "owner /etc/agent.key r,", facts: key(0, -1)},
		{name: "a file that others may use", rules: "owner /etc/agent.key r,\n/etc/*.key r,", facts: key(0, 1000)},
		{name: "a file that is not there", rules: "owner /etc/agent.key r,", facts: &attach.Facts{User: 1000, Files: map[string]attach.File{"/etc/agent.key": {Kind: attach.FileMissing, Owner: -1}}}},
		{name: "a file of root's, for a dynamic user", rules: "owner /etc/agent.key r,", facts: key(0, -1), unit: func(u *attach.Unit) { u.Settings.DynamicUser = true }, want: "warning policy-may-not-use-files-of-others", shows: "DynamicUser="},
		{name: "a file of a dynamic user's", rules: "owner /etc/agent.key r,", facts: key(61200, -1), unit: func(u *attach.Unit) { u.Settings.DynamicUser = true }},
		{name: "a file in its own directory", rules: "owner /etc/agent.key r,", facts: key(0, 1000), unit: func(u *attach.Unit) {
			u.Settings.Directories = []attach.Directory{{Property: "StateDirectory", Path: "/etc"}}
		}, want: "warning policy-may-not-use-own-directories"},
		{name: "a user's file, for root", rules: "owner /etc/agent.key r,", facts: key(1000, 0), unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "warning policy-may-not-use-files-of-others", shows: "runs as root"},
		{name: "for root who may become another", rules: "owner /etc/agent.key r,\ncapability setuid,", facts: key(1000, 0), unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "unix sockets of root's", rules: "network unix stream,", unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "note policy-may-connect-anywhere", shows: "/run/systemd/private"},
		{name: "unix sockets of root's, with a deny rule", rules: "network unix stream,\ndeny /run/** rw,", unit: func(u *attach.Unit) { u.Settings.User, u.Type = "0", "simple" }, want: "note policy-may-connect-anywhere", shows: "/run/systemd/private"},
		{name: "unix sockets of a user's", rules: "network unix dgram,", want: "note policy-may-connect-anywhere", shows: "mode and owner"},
		{name: "unix sockets of a dynamic user's", rules: "network unix dgram,", unit: func(u *attach.Unit) { u.Settings.User, u.Settings.DynamicUser = "", true }, want: "note policy-may-connect-anywhere"},
		{name: "unix sockets of a user's who may become root", rules: "network unix dgram,\ncapability setuid,", unit: func(u *attach.Unit) { u.Settings.Ambient = 1 << 7 }, want: "note policy-may-connect-anywhere", shows: "CAP_SETUID"},
		{name: "unix sockets of a user's whose capability the profile takes", rules: "network unix dgram,", unit: func(u *attach.Unit) { u.Settings.Ambient = 1 << 7 }, want: "note policy-may-connect-anywhere"},
		{name: "unix sockets whose paths are looked at", rules: paths + "unix,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "unix sockets, under a policy that looks at no sockets", rules: "# no network\n", unit: func(u *attach.Unit) { u.Settings.User = "" }, want: "note policy-may-connect-anywhere"},
		{name: "no unix sockets", rules: "network inet stream,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "unix sockets that are denied", rules: "unix,\nnetwork unix,\ndeny network unix,", unit: func(u *attach.Unit) { u.Settings.User = "" }},
		{name: "unix sockets that seccomp forbids", rules: "network unix stream,\nnetwork inet,\nnetwork inet6,", unit: func(u *attach.Unit) {
			u.Settings.User, u.Settings.Architectures = "", []string{"native"}
			u.Settings.AddressFamilies = &attach.AddressFamilies{AllowList: true, Families: []string{"AF_INET", "AF_INET6"}}
		}, want: "note policy-may-use-other-families"},
		{name: "unix sockets that seccomp forbids to one architecture", rules: "network unix stream,\nnetwork inet,\nnetwork inet6,", unit: func(u *attach.Unit) {
			u.Settings.User, u.Settings.AddressFamilies = "", &attach.AddressFamilies{AllowList: true, Families: []string{"AF_INET", "AF_INET6"}}
		}, want: "note policy-may-connect-anywhere"},
		{name: "unix sockets beside what seccomp forbids", rules: "network unix stream,", unit: func(u *attach.Unit) {
			u.Settings.User, u.Settings.Architectures = "", []string{"native"}
			u.Settings.AddressFamilies = &attach.AddressFamilies{Families: []string{"AF_INET"}}
		}, want: "note policy-may-connect-anywhere"},
		{name: "unix sockets of a unit that nobody knows", rules: "network unix stream,", unit: func(u *attach.Unit) { *u = attach.Unit{} }, want: "note policy-may-connect-anywhere", shows: "unless the unit runs as a user of its own"},
		{name: "no unix sockets of a unit that nobody knows", rules: "deny network unix,", unit: func(u *attach.Unit) { *u = attach.Unit{} }},
		{name: "unix sockets whose paths are looked at, of a unit that nobody knows", rules: paths + "unix,", unit: func(u *attach.Unit) { *u = attach.Unit{} }},
		{name: "detached paths", unit: func(u *attach.Unit) { u.Settings.MountNamespace = true }, want: "note policy-may-not-reach-detached-paths"},

		{name: "waived", rules: "/bin/sh Ux,", set: []string{"Waive=policy-may-leave-profile the shell is for operators"}, want: "note assertion-waived", shows: "operators"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			q := question(t, profile(tt.rules), tt.set...)
			if tt.unit != nil {
				tt.unit(&q.Unit)
			}
			g := New(nil)
			if tt.facts != nil {
				q.Compiled[0].Sources = map[string][]byte{q.Compiled[0].File: []byte(profile(tt.rules))}
				g.Facts = func(attach.Unit, []string) attach.Facts { return *tt.facts }
			}
			found := g.Ask(q)
			if strings.Contains(tt.want, string(attach.MayConnect)) {
				found = slices.DeleteFunc(found, func(f attach.Finding) bool { return f.Code == attach.MayNoNetwork || f.Code == attach.MayOtherFamilies })
			} else {
				found = besides(found)
			}
			if tt.want == "" {
				if len(found) > 0 {
					t.Errorf("%v", found)
				}
				return
			}
			if len(found) == 0 || found[0].Severity.String()+" "+string(found[0].Code) != tt.want {
				t.Fatalf("%v, want %s first", found, tt.want)
			}
			for _, f := range found {
				if f.Next == "" && f.Code != attach.AssertionWaived {
					t.Errorf("nothing is said to do about %s", f)
				}
			}
			if s := found[0].Detail; !strings.Contains(s, tt.shows) {
				t.Errorf("%q does not show %q", s, tt.shows)
			}
			for _, f := range found {
				if f.Severity == found[0].Severity && string(f.Code) != strings.Fields(tt.want)[1] {
					t.Errorf("also %v", f)
				}
			}
		})
	}
}

// Who waives that a profile allows everything of a kind waives no more than that.
func TestTheWaiverOfEverythingWaivesNothingElse(t *testing.T) {
	const rules = "file,\n/bin/sh Ux,\n/usr/bin/tool Px,\ndbus,\n"
	kept := []string{"error policy-may-leave-profile", "note policy-may-change-profile", "warning policy-may-ask-others"}
	single := []string{"error policy-may-ask-others", "error policy-may-write-own-executable", "error policy-may-write-policy", "error policy-may-write-proc-sys", "error policy-may-write-shared-tmp", "error policy-may-write-ssh-keys"}
	for _, c := range []struct {
		set  []string
		want []string
	}{
		{nil, append([]string{"error policy-may-everything"}, kept...)},
		{[]string{"Waive=policy-may-everything a rescue shell"}, slices.Concat([]string{"note assertion-waived"}, single, kept)},
		{[]string{"Waive=policy-may-everything a rescue shell", "Waive=policy-may-write-policy it edits units"}, slices.Concat([]string{"note assertion-waived"}, single, kept)},
	} {
		if len(c.set) == 2 {
			c.want = slices.DeleteFunc(c.want, func(s string) bool { return s == "error policy-may-write-policy" })
		}
		found := slices.DeleteFunc(ask(t, question(t, profile(rules), c.set...)), func(f attach.Finding) bool { return f.Code == attach.MayNoNetwork || f.Code == attach.MayConnect })
		if got := codes(found); !slices.Equal(got, slices.Sorted(slices.Values(c.want))) {
			t.Errorf("%q: %q", c.set, got)
		}
	}
}

// A rule without a type grants numbers that are no type of a unix socket, and that
// "deny network unix" does not take back; sockets of other families may have any.
func TestTypesThatNoSocketHas(t *testing.T) {
	for line, want := range map[string]string{
		"Deny=network unix":        "",
		"Deny=network unix stream": "",
		"Deny=network pppox":       "use sockets of pppox of any type",
		"Deny=network netlink":     "use sockets of netlink of any type",
	} {
		q := question(t, profile("unix,\nnetwork,\ndeny network unix,\ndeny network pppox,"), line)
		at := slices.IndexFunc(ask(t, q), func(f attach.Finding) bool { return f.Code == attach.AssertionFailed })
		if at < 0 != (want == "") || at >= 0 && !strings.Contains(ask(t, q)[at].Detail, want) {
			t.Errorf("%s: %v, want %q", line, ask(t, q), want)
		}
	}
}

func TestAssertions(t *testing.T) {
	const rules = `network inet stream,
network unix dgram,
capability net_bind_service,
owner /srv/** rw,
/srv/public/** r,
/bin/sh ix,
signal send set=(term) peer=worker,
signal send set=(rtmin+3) peer=waker,
signal send set=(kill) peer=boss//hat,
change_profile -> boss//hat,
ptrace (read) peer=worker,
change_profile -> worker,`
	for _, tt := range []struct {
		line string
		want string // a clause of the finding; "" holds
	}{
		{"Deny=write /tmp/**", ""},
		{"Deny=write /srv/**", "allows write"},
		{"Deny=other write /srv/**", ""},
		{"Deny=owner write /srv/**", "/srv/a (owner)"},
		{"Deny=rw /srv/public/**", "/srv/public/a"},
		{"Allow=read /srv/public/**", ""},
		{"Allow=read /srv/**", "may not read /srv/a (other)"},
		{"Allow=owner write,read /srv/*", ""},
		{"Deny=exec /bin/**", "/bin/sh"},
		{"Deny=exec /usr/bin/**", ""},
		{"Deny=write @{exec}", ""},
		{"Deny=map @{exec}", "/usr/bin/agent"},
		{`Deny=write "/srv/a b"`, "/srv/a b"},
		{"Deny=network netlink", ""},
		{"Deny=network unix", "use sockets of unix dgram"},
		{"Deny=network unix stream", ""},
		{"Deny=network", "may use sockets of unix dgram"},
		{"Allow=network inet stream", ""},
		{"Allow=network inet", "may not use sockets of inet"},
		{"Deny=network nosuch", "there is no address family"},
		{"Deny=capability sys_admin", ""},
		{"Deny=capability CAP_NET_BIND_SERVICE", "may use capability net_bind_service"},
		{"Deny=capability", "may use capability net_bind_service"},
		{"Allow=capability net_bind_service", ""},
		{"Deny=capability flying", "there is no capability"},
		{"Deny=signal send unconfined", ""},
		{"Deny=signal send worker", "signal 15"},
		{"Deny=signal send waker", "signal 131"},
		{"Deny=signal send boss//hat", "signal 9"},
		{"Deny=signal send boss/hat", ""},
		{"Deny=change-profile boss//hat", "change to profile boss//hat"},
		{"Deny=change-profile boss/hat", ""},
		{"Deny=ptrace trace", ""},
		{"Deny=ptrace read", "worker"},
		{"Deny=change-profile unconfined", ""},
		{"Deny=change-profile", "change to profile worker"},
		{"Allow=change-profile worker", ""},
	} {
		t.Run(tt.line, func(t *testing.T) {
			found := besides(ask(t, question(t, profile(rules), tt.line)))
			if tt.want == "" {
				if len(found) > 0 {
					t.Errorf("%v", found)
				}
				return
			}
			if len(found) != 1 || found[0].Severity != attach.Error || !strings.Contains(found[0].Detail, tt.want) {
				t.Fatalf("%v, want %q", found, tt.want)
			}
			if found[0].Where != "/etc/aaunit/attachments.d/agent.conf:10" {
				t.Errorf("at %s", found[0].Where)
			}
		})
	}
}

// The kernel checks a file where it really lies. What may be done to the links on the way
// there matters to Deny= alone.
func TestAnExecutableBehindALink(t *testing.T) {
	const link, real = "/usr/local/bin/app", "/opt/app/bin/app"
	for _, tt := range []struct {
		rules, line string
		want        string // the witness of what does not hold; "" holds
	}{
		{real + " mr,", "Deny=map @{exec}", real},
		{real + " mr,", "Allow=read @{exec}", ""},
		{link + " mr,", "Allow=read @{exec}", real},
		{real + " mr,", "Deny=write @{exec}", ""},
		{link + " w,", "Deny=write @{exec}", link}, // another could take its place
	} {
		q := question(t, profile(tt.rules), tt.line)
		q.Unit.Settings.Exec = []attach.ExecCommand{{Property: "ExecStart", Path: link}}
		g := New(nil)
		g.Facts = func(attach.Unit, []string) attach.Facts {
			return attach.Facts{User: -1, Files: map[string]attach.File{link: {Kind: attach.FileCompiled, Path: real}}}
		}
		found := slices.DeleteFunc(g.Ask(q), func(f attach.Finding) bool {
			return f.Code != attach.AssertionFailed && f.Code != attach.AssertionUnknown
		})
		if len(found) != min(len(tt.want), 1) || tt.want != "" && found[0].Witness != tt.want {
			t.Errorf("%s of a profile with %q: %v, want %q", tt.line, tt.rules, found, tt.want)
		}
	}
}

// The profiles that the unit's tasks can come to run under are asked, too.
func TestTheClosureIsAsked(t *testing.T) {
	text := profile("/bin/sh Cx -> sub,\nprofile sub {\n/bin/sh mr,\n/srv/** rw,\n}") +
		"profile helper {\n/mnt/** rw,\n}\nprofile stranger {\n/opt/** rw,\n}\n"
	for line, want := range map[string]string{
		"Deny=write /srv/**": "agent//sub",
		"Deny=write /mnt/**": "",
		"Deny=write /opt/**": "",
	} {
		found := besides(ask(t, question(t, text, line)))
		if (want == "") != (len(found) == 0) || want != "" && !strings.Contains(found[0].Detail, want) {
			t.Errorf("%s: %v", line, found)
		}
	}
	if found := besides(ask(t, question(t, text, "AllowProfiles=helper", "Deny=write /mnt/**"))); len(found) != 1 || found[0].Profile != "helper" {
		t.Errorf("an allowed profile: %v", found)
	}
}

// What cannot be answered does not pass.
func TestWhatCannotBeReadDoesNotPass(t *testing.T) {
	q := question(t, profile(""))
	q.Compiled[0].Blob = q.Compiled[0].Blob[:len(q.Compiled[0].Blob)/2]
	if found := ask(t, q); !slices.Equal(codes(found), []string{"error assertion-unknown"}) {
		t.Errorf("half a policy: %v", found)
	}
	q.Compiled[0].Blob = nil
	if found := ask(t, q); !slices.Equal(codes(found), []string{"error assertion-unknown"}) {
		t.Errorf("a policy that is kept no more: %v", found)
	}
	if found := besides(ask(t, question(t, profile(""), "Deny=write /["))); !slices.Equal(codes(found), []string{"error assertion-unknown"}) {
		t.Errorf("a pattern that is none: %v", found)
	}
}

// Nor does what cannot be asked.
func TestWhatCannotBeAskedDoesNotPass(t *testing.T) {
	q := question(t, profile(""), "Deny=write @{exec}")
	q.Unit = attach.Unit{ID: "agent.service"}
	if found := besides(ask(t, q)); !slices.Equal(codes(found), []string{"error assertion-unknown"}) {
		t.Errorf("a unit without command lines: %v", found)
	}
	q.Desired.Unit = "agent@.service"
	if found := besides(ask(t, q)); len(found) > 0 {
		t.Errorf("a template: %v", found)
	}
	q.Desired.Profile = "another"
	if found := ask(t, q); !slices.Equal(codes(found), []string{"error assertion-unknown"}) {
		t.Errorf("a profile that the policy has not: %v", found)
	}
	q = question(t, profile("/usr/bin/stop rw,"), "Deny=write @{exec}", "Waive=policy-may-write-own-executable tested here")
	q.Unit.Settings.Exec = append(q.Unit.Settings.Exec, attach.ExecCommand{Property: "ExecStop", Path: "/bin/stop"})
	if found := besides(ask(t, q)); len(found) != 2 || found[0].Code != attach.AssertionFailed || found[0].Witness != "/usr/bin/stop" {
		t.Errorf("an executable in /bin: %v", found)
	}
	g := New(func(string) (attach.Compiled, error) { return attach.Compiled{}, errors.New("it is gone") })
	question, err := attach.ParseAssertion(true, "write /tmp/**")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []attach.Compiled{{ID: "kept"}, {ID: "bad", Blob: []byte("no policy")}} {
		if r := g.Query(context.Background(), "agent", c, question); r.May != attach.MayUnknown || r.Text == "" {
			t.Errorf("%+v", r)
		}
	}
}

// An answer is kept while nothing that it depends on changed.
func TestAnswersAreKept(t *testing.T) {
	q := question(t, profile("/tmp/** rw,"), "PrivateTmp=no")
	reads := 0
	blob := q.Compiled[0].Blob
	g := New(func(string) (attach.Compiled, error) { reads++; return attach.Compiled{Blob: blob}, nil })
	q.Compiled[0].Blob = nil
	for range 3 {
		if found := besides(g.Check(context.Background(), q.Desired, q.Unit, q.Compiled)); len(found) != 1 {
			t.Fatalf("%v", found)
		}
	}
	q.Unit.Settings.Exec[0].PID = 42 // another start
	g.Ask(q)
	if reads != 1 {
		t.Errorf("read %d times", reads)
	}
	g.LetGo()
	if g.Ask(q); reads != 1 {
		t.Errorf("an answer was let go of: read %d times", reads)
	}
	a := *q.Desired.Attachment
	a.PrivateTmp = attach.PrivateTmpYes
	q.Desired.Attachment = &a
	if found := besides(g.Ask(q)); len(found) != 0 {
		t.Errorf("an answer to another question: %v", found)
	}
}

// A finding names the rule that grants it, where that stands.
// A thousand units of one policy do not keep its findings a thousand times.
func TestUnitsShareFindings(t *testing.T) {
	q := question(t, profile("/etc/** rw,"))
	g := New(nil)
	first := g.Ask(q)
	if len(first) == 0 {
		t.Fatal("nothing speaks against it")
	}
	want := slices.Clone(first)
	first[0].Witness = "changed by who asked"
	for i := range 10 {
		q.Desired.Unit = fmt.Sprintf("agent%d.service", i)
		q.Unit.ID = q.Desired.Unit
		if got := g.Ask(q); !slices.Equal(got, want) {
			t.Fatalf("%s: %v, not %v", q.Unit.ID, got, want)
		}
	}
	if len(g.answers) != 11 || len(g.lists) != 1 {
		t.Errorf("%d answers have %d lists", len(g.answers), len(g.lists))
	}
	other := question(t, profile("/etc/shadow w,"))
	other.Unit.ID, other.Desired.Unit = "other.service", "other.service"
	if got := g.Ask(other); slices.Equal(got, want) || len(g.lists) != 2 {
		t.Errorf("another policy: %v, %d lists", got, len(g.lists))
	}
}

func TestTheRuleIsNamed(t *testing.T) {
	q := question(t, profile("/dev/shm/** rw,\n/srv/** rw,\nnetwork unix dgram,"), "Deny=write /srv/**", "Deny=network unix")
	c := &q.Compiled[0]
	c.Sources = map[string][]byte{c.File: []byte("profile agent /usr/bin/agent {\n  include <local/agent>\n  /srv/** rw,\n}\n"),
		"/etc/apparmor.d/local/agent": []byte("# here\n/dev/shm/** rw,\nnetwork unix dgram,\n")}
	want := map[attach.Code]string{attach.MayWriteTmp: `by the rule "/dev/shm/** rw," (/etc/apparmor.d/local/agent:2)`}
	for _, f := range besides(ask(t, q)) {
		switch {
		case f.Code == attach.AssertionFailed && strings.Contains(f.Detail, "unix"):
			if !strings.Contains(f.Detail, `"network unix dgram," (/etc/apparmor.d/local/agent:3)`) {
				t.Error(f)
			}
		case f.Code == attach.AssertionFailed:
			if !strings.Contains(f.Detail, `"/srv/** rw," (/etc/apparmor.d/agent:3)`) {
				t.Error(f)
			}
		case want[f.Code] != "" && strings.Contains(f.Reason.String(), want[f.Code]):
			delete(want, f.Code)
		default:
			t.Error(f)
		}
	}
	if len(want) > 0 {
		t.Errorf("not said: %v", want)
	}
}

// A rule that grants all of a class is named like any other.
func TestTheRuleForEverythingIsNamed(t *testing.T) {
	text := profile("file,\ncapability,\nnetwork,")
	q := question(t, text)
	q.Compiled[0].Sources = map[string][]byte{q.Compiled[0].File: []byte(text)}
	found := fmt.Sprint(ask(t, q))
	for _, rule := range []string{"file,", "capability,", "network,"} {
		if !strings.Contains(found, fmt.Sprintf("by the rule %q", rule)) {
			t.Errorf("%s is not named in %s", rule, found)
		}
	}
}

// What the readers of a profile in a discussion found, one by one.
func TestTheProfileOfTheDiscussion(t *testing.T) {
	q := question(t, profile("/tmp/** rw,\n/var/tmp/** rw,\n/proc/sys/net/core/somaxconn rw,\n/bin/sh Ux,"), "PrivateTmp=no", "Allow=network inet stream", "Deny=network unix")
	want := []string{"error assertion-failed", "error policy-may-leave-profile", "error policy-may-write-proc-sys", "error policy-may-write-shared-tmp", "note policy-may-not-use-network"}
	if got := codes(ask(t, q)); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	q = question(t, profile("owner /tmp/** rw,\n/proc/sys/net/core/somaxconn r,\n/bin/sh ix,\nnetwork inet stream,\nnetwork inet6 stream,"), "Allow=network inet stream", "Deny=network unix")
	if found := ask(t, q); len(found) > 0 {
		t.Errorf("as corrected: %v", found)
	}
}

// BenchmarkUnits is the price for one more unit that runs under a policy that was
// asked about before.
func BenchmarkUnits(b *testing.B) {
	q := question(b, profile("include <abstractions/base>\n/srv/** rw,\nnetwork inet stream,"))
	g := New(nil)
	g.Ask(q)
	n := 0
	for b.Loop() {
		n++
		q.Desired.Unit = fmt.Sprintf("agent%d.service", n)
		g.Ask(q)
	}
}

// BenchmarkFirst is the price of asking all of a policy that is asked about for the
// first time, beside compiling it (-benchtime=1x is enough).
func BenchmarkFirst(b *testing.B) {
	for name, rules := range map[string]string{
		"small": "include <abstractions/base>\n/srv/** rw,\nnetwork inet stream,",
		"large": "include <abstractions/base>\ninclude <abstractions/nameservice>\ninclude <abstractions/openssl>\ninclude <abstractions/python>\n" +
			"include <abstractions/fonts>\ninclude <abstractions/user-tmp>\ninclude <abstractions/X>\nowner @{HOME}/** rw,\ndeny @{HOME}/.ssh/** rwx,\n/usr/bin/* ix,\n/usr/lib/** mr,",
	} {
		text := profile(rules)
		q := question(b, text)
		b.Run("compile/"+name, func(b *testing.B) {
			for b.Loop() {
				compile(b, text)
			}
		})
		b.Run("ask/"+name, func(b *testing.B) {
			for b.Loop() {
				New(nil).Ask(q)
			}
		})
	}
}
