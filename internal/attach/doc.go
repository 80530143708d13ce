// Package attach is the core of aaunit: what it means that a systemd unit runs
// under an AppArmor profile, and how to get from what is to what should be.
//
// Read it in this order:
//
//   - [Attachment] is the wish: unit U runs under profile P, with these options.
//   - [Unit], [Host], [Policy] and [Scan] are what was seen of the world,
//     gathered in an [Observed].
//   - [Resolve] finds the profile's internal name from what a person wrote.
//   - [Diff] compares a wish with the world and answers with a [Plan]: the
//     ordered actions, each with its reason, and everything that speaks
//     against them.
//   - [Judge] looks at the tasks of a started unit and answers with a
//     [Verdict]: confined, not confined, or unknown.
//   - [Reason] is the only way in which any of these says why; the closed set
//     of codes is in reason.go.
//
// The package is pure: it reads no file, asks no bus, starts no process and
// never looks at the clock. Everything it reads is taken to be hostile.
package attach
