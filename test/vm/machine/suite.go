package machine

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// Suites lists the Debian suites that the tests run on, oldest first.
func Suites() []string { return []string{"bookworm", "trixie"} }

// SuitesFromEnv lists the suites that a test should run on: those named in
// AAUNIT_VM_SUITE, separated by commas or spaces, or all of [Suites].
func SuitesFromEnv() ([]string, error) {
	names := strings.FieldsFunc(os.Getenv("AAUNIT_VM_SUITE"), func(r rune) bool { return r == ',' || r == ' ' })
	if len(names) == 0 {
		return Suites(), nil
	}
	for _, name := range names {
		if err := checkSuite(name); err != nil {
			return nil, err
		}
	}
	return names, nil
}

func checkSuite(name string) error {
	if !slices.Contains(Suites(), name) {
		return fmt.Errorf("cannot use the suite %q: it is one of %s", name, strings.Join(Suites(), ", "))
	}
	return nil
}

// packages are the Debian packages of every image, beside the essential ones.
func packages() []string {
	return []string{
		// The machine.
		"systemd", "systemd-sysv", "dbus", "udev", "kmod", "linux-image-cloud-amd64",
		"libpam-systemd", "polkitd", "util-linux", "procps", "iproute2", "openssh-server",
		"bash-completion",

		// apparmor-utils brings Python and aa-complain, aa-disable, aa-enforce.
		"apparmor", "apparmor-utils",

		// Services with profiles that nobody here wrote: squid forks much, i2pd
		// and chrony have User=, tor has AppArmorProfile=-system_tor.
		"squid", "i2pd", "chrony", "tor",

		// Programs whose socket options are compared with what strace sees.
		"strace", "curl", "nginx-light",

		// Who takes the kernel's records of denials, and a file system that a
		// process serves.
		"auditd", "bindfs",

		// What Ansible installs packages with.
		"python3-apt",
	}
}

// services are what those packages would start at boot.
func services() []string {
	return []string{"squid", "i2pd", "chrony", "tor", "nginx", "auditd"}
}

// corpus are packages of profiles, which are unpacked into [CorpusDir] and not
// installed: what they hold is compiled and asked about, and confines nothing.
func corpus() []string {
	return []string{"apparmor-profiles", "apparmor-profiles-extra"}
}
