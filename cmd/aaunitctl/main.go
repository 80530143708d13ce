// Command aaunitctl attaches AppArmor profiles to systemd services, and proves it.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/util"

	"github.com/aaunit/aaunit/internal/apparmor"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/cli"
	"github.com/aaunit/aaunit/internal/config"
	"github.com/aaunit/aaunit/internal/gate"
	"github.com/aaunit/aaunit/internal/reconcile"
	"github.com/aaunit/aaunit/internal/sockopt"
	"github.com/aaunit/aaunit/internal/units"
)

// version is set when a package is built (-ldflags "-X main.version=…").
var version = "dev"

func main() { os.Exit(cli.Main(version, local, openImage)) }

// local puts together what answers without a daemon.
func local(o cli.LocalOptions) (cli.Local, func()) {
	features, known := apparmor.FeaturesHere()
	if o.Features != "" {
		features, known = o.Features, true
	}
	f := reconcile.Offline{
		Profiles: o.Base,
		Texts:    apparmor.New(apparmor.Options{Profiles: o.Base, Include: o.Include, Features: features, AnyOwner: true, Scratch: os.TempDir()}),
		Gate: gate.New(func(id string) (attach.Compiled, error) {
			return attach.Compiled{}, errors.New("no policy is kept here")
		}),
		Attachments: &config.Files{Dirs: config.DefaultDirs, AnyOwner: true, Options: sockopt.OptionName},
		Kernel:      o.Why,
	}
	switch {
	case !known:
		f.Features = "this machine has no AppArmor in its kernel, and no file says what another kernel's looks at"
	case features != "":
		f.Kernel = fmt.Sprintf("%s; compiled for the kernel that %s describes", o.Why, features)
	}
	done := func() {}
	if util.IsRunningSystemd() {
		systemd := units.New(units.Options{})
		f.Systemd, done = systemd, func() { _ = systemd.Close() }
	}
	return f, done
}
