// Package policydb reads compiled AppArmor policy, the very bytes that the
// kernel runs, and answers questions about it: what one path or socket is
// allowed, and for all paths that match a pattern at once. It touches no file
// and asks no kernel.
//
// # The packed form
//
// A compiled policy is a row of profiles. Each is a structure of tagged values,
// most of them with a name before them; numbers are little-endian
// (security/apparmor/policy_unpack.c of Linux reads them,
// parser/parser_interface.c of AppArmor writes them):
//
//	"version"      the version of this form, and what the parser was told
//	"namespace"    a policy namespace, where the profile wants one
//	"profile"      a structure:
//	    the profile's name; children are profiles of their own, "parent//child"
//	    [automaton]    the programs it attaches to
//	    "flags"        hat, mode, audit
//	    "path_flags"   attach_disconnected and the like
//	    four numbers   capabilities allowed, audited, quiet; "caps64" has their upper halves
//	    "rlimits"      …
//	    "policydb"     a structure with the [automaton] of all rules but those on files
//	    [automaton]    the file rules, and "xtable", the names that exec transitions lead to
//
// # The automaton
//
// An automaton ("aadfa") is deterministic and reads bytes. State 0 is dead,
// state 1 the start. Its tables are big-endian: base, check, next and default
// are the transitions, packed as flex packs them. A step from state s on byte c
// looks at pos = base[s] + class[c]: if check[pos] is s, then next[pos] is the
// new state, and otherwise default[s]. Where bit 31 of base[s] is set, default
// is a state that s only differs from in what it has itself, and the step is
// tried again from there. The class table makes one out of bytes that no rule
// tells apart.
//
// File rules are walked with the path. All other rules share an automaton that
// is walked with a byte for their class, and then with what the class is about:
// family and type of a socket, number of a signal and name of the other's
// profile. A class whose byte leads nowhere is not mediated: the kernel lets
// everything through.
//
// # Permissions
//
// What the last state grants lies in two tables, accept and accept2: bits for
// the owner and for others, which ones are logged, which are denied without a
// word, and what becomes of the profile on an exec. Parsers from 4.1 on write,
// for kernels that want it, a table of permissions ("perms") instead, and
// accept is the number of its entry. Both come out as Perms here.
//
// "deny" rules are gone by then: the parser takes their bits out of what other
// rules allow. That is why an answer about the automaton is an answer about the
// whole text.
//
// # Questions about patterns
//
// A pattern in AppArmor's syntax is turned into an automaton, too, and joined
// with one that takes only paths that can exist. Find walks the product of that
// and the profile's automaton. If no pair of states that can be reached both
// matches and grants what was asked for, then no path does: that is a proof,
// not a sample. Otherwise the search, breadth first and best readable byte
// first, ends at the shortest path that shows it.
//
// # What the answers do not say
//
// They are about paths as the kernel looks them up: where links and mounts lead,
// what the file's own mode says, and what a profile in complain mode lets
// through are other questions. What is not understood is Unknown, never No.
package policydb
