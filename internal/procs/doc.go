// Package procs looks at the processes of services as people want to see them: who
// runs which program, as whom, under which label, and where it waits for others. No
// verdict is made of it; those are made of what internal/apparmor reads, which looks
// until nothing changes any more.
//
// All of it comes from /proc and the tree of control groups. Who owns a process can
// choose much of what is read there: its name, the paths of its sockets, how many
// there are of each. Everything is bounded, and what is left out is counted or named.
//
// Read look.go first, then sockets.go (the kernel's tables) and machine.go.
package procs
