// Command aaunit-sockopts attaches the socket-option programs to the control group
// of the unit that it is started for, before the unit's own program. systemd runs
// it, from an ExecStartPre=+ line in the unit's drop-in; see internal/sockopt.
//
// It is a program of its own and not a mode of aaunitd: it runs as root, without
// a sandbox, on every start of a unit, so there is as little in it as there can
// be, and it starts while aaunitd may be missing or being upgraded.
package main

import (
	"os"

	"github.com/aaunit/aaunit/internal/sockopt"
)

// version is set when the package is built.
var version = "unknown"

func main() {
	os.Exit(sockopt.Helper{Version: version, Stderr: os.Stderr}.Run(os.Args[1:]))
}
