package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/aaunit/aaunit/internal/apparmor"
	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/cli"
	"github.com/aaunit/aaunit/internal/config"
	"github.com/aaunit/aaunit/internal/gate"
	"github.com/aaunit/aaunit/internal/image"
	"github.com/aaunit/aaunit/internal/sockopt"
	"github.com/aaunit/aaunit/internal/units"
	"golang.org/x/sys/unix"
)

// openImage puts together what prepares the system below a directory. The one who
// prepares it must be the one to whom it belongs: what is written there belongs to
// that user, and a file of anybody else's is no policy.
func openImage(dir string) (cli.Image, error) {
	root, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot use --root=%s: %w", dir, err)
	}
	var st unix.Stat_t
	switch err := unix.Stat(root, &st); {
	case err != nil:
		return nil, fmt.Errorf("cannot use --root=%s: %w", dir, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, fmt.Errorf("cannot use --root=%s: it is no directory", dir)
	case root == "/":
		return nil, errors.New("cannot use --root=/: that system runs; leave --root out")
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("cannot use --root=%s: it belongs to user %d, and what user %d writes there would not; run this as user %d", dir, st.Uid, os.Geteuid(), st.Uid)
	}
	features, _ := apparmor.FeaturesHere()
	host := apparmor.New(apparmor.Options{Root: root, Owner: os.Geteuid(), Features: features, Scratch: os.TempDir()})
	return &image.Image{
		Root: root, Units: units.NewImage(root), AppArmor: host, Attachments: config.NewImage(root, sockopt.OptionName), Rules: sockopt.Image(root),
		Gate: gate.New(func(string) (attach.Compiled, error) { return attach.Compiled{}, errors.New("no policy is kept here") }),
	}, nil
}
