// Package gate asks compiled policy, before it goes live, whether it keeps what is
// asserted of it: the built-in assertions, and those of the attachment. It reads
// the very bytes that the kernel is going to run (package policydb), and changes
// and runs nothing.
//
// Read it in this order: gate.go (which profiles are asked), builtin.go (what is
// asserted of every policy), unit.go (what is asserted of policy and unit
// together), assertion.go (the attachment's own).
package gate
