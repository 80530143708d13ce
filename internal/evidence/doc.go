// Package evidence keeps what the verdicts on units rest on, so that an auditor
// can check later what was true at a start, and that nobody has rewritten it.
//
// A record is one JSON document in a file of its own:
//
//	/var/lib/aaunit/evidence/UNIT/000000000012-SHA256.json
//
// SHA256 is that of the file, as sha256sum(1) gives it, and the next record holds
// it as "previous": so what was altered shows in its own name, what was removed
// in the record after it, and a chain that was cut off or written anew as a whole
// in the journal, which gets the checksum of each record. schema.json describes
// the document. The last of a unit are kept; anchor.json holds the number and the
// checksum of the last one that was pruned, on which the first that is left
// follows. A detach removes nothing. Where there are too many units the records of one
// go as a whole (Keeper.makeRoom), and its next is number 1 again.
//
// Records are made beside the loop (Keeper.Run): reading a program's file can
// take long, and holds up neither a verdict nor a pass.
//
// Read keeper.go first, then store.go and chain.go (the files), encode.go (their
// form), program.go, buildid.go, mounts.go, dpkg.go and rpm.go (executables), and
// check.go (the records against the system as it is).
package evidence
