// Package cli is aaunitctl: its commands, and what they print.
//
// cli.go has the frame: flags, exit statuses, errors. The commands are in
// operate.go (attach, detach, plan, check) and report.go (status, list, verify,
// explain). What they print is made in print.go, from the core's words alone,
// so that tests can look at it without a daemon; text.go makes what comes from
// elsewhere fit for a terminal.
package cli
