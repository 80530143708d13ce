// Package sockopt records which socket options the processes of a unit set and
// read, and refuses those that are not on its list. AppArmor cannot do that: its
// rules know setopt and getopt as a whole, and no single option.
//
// # How it works
//
// Two BPF programs (bpf/sockopt.bpf.c) are attached to the unit's control group,
// one for setsockopt and one for getsockopt (kernel:
// Documentation/bpf/prog_cgroup_sockopt.rst). They count each kind of call by
// level, option, and family, type and protocol of the socket, with who did it
// first and last, and refuse with EPERM in mode enforce. The tables and the links
// are pinned below /sys/fs/bpf/aaunit/UNIT (with _2e for a dot, see dir), where only
// root may go, so they need no process to live. Root may, whatever else was taken from
// it, and can change what it finds there: see attach.OpensPins. Nobody is asked
// per call: there is no ptrace and no stream of events, and what a program does often
// costs what it does once.
//
// systemd's own BPFProgram= is not used: on systemd 252 a restart loses the
// program, on 257 a daemon-reload does. A link that is pinned by a start helper
// (Helper, cmd/aaunit-sockopts) on the line attach.SocketStartLine gives stays through
// restart, daemon-reload and daemon-reexec, and each start gets a new one for its
// new control group. The helper runs after the vendor's ExecStartPre= lines; what
// those do before is neither recorded nor refused.
//
// # Decided
//
//   - What systemd does before it executes the unit's program is recorded apart
//     (Seen.BySystemd) and never refused. How it is told from the program, and why
//     nobody can pass for it who could not change the list himself, stands at
//     by_systemd in bpf/sockopt.bpf.c. A list of exempt options for unix sockets
//     would have been simpler; but it would let programs set those, and would
//     miss what systemd does for PrivateNetwork=, PAM and user databases. (Seen for
//     a plain service: SO_SNDBUF and SO_SNDBUFFORCE on systemd 252, and SO_SNDTIMEO
//     on 257.)
//   - Only tasks in the unit's control group are held and recorded, although the
//     kernel calls the programs for every task that uses a socket which was made
//     there. A unix socket that a server accepts was made by the client when it
//     connected: what the journal or the bus sets on a connection from the unit
//     would else be refused to the journal or the bus, which then drops it (seen on
//     Debian 12: the journal did, and the unit's program died of SIGPIPE). A .socket
//     unit has no tasks; whoever uses its sockets is held, but for systemd.
//   - Tables are per unit, and of a fixed size without eviction: what comes when
//     they are full is counted in Recording.Lost. An entry is written under its
//     lock, so counts are exact and a comm is whole.
//   - The rules are two tables that the kernel looks at on each call. They are
//     changed in an order in which nothing is refused that both the old and the
//     new rules allow.
//   - Tables that take no rules are not mended but replaced, those of the rules only,
//     with the programs: root can have filled them or written in them what no version
//     writes, and an old and a new list can have more options together than a table
//     takes. What holds goes on to hold until the link has the new program.
//   - A value larger than a page has its length set to 0 in the context, with
//     which every kernel goes on with the caller's own buffer; else older ones
//     answer EFAULT. Smaller ones are left as they are, for programs of control
//     groups further up.
//   - getsockopt is free unless Rules.HoldGet is set. Its hook runs after the
//     kernel's work: a refused call answers EPERM, but what it asked for is in the
//     caller's memory, and what it did is done. It is no means to keep a secret.
//   - Whether the object in the kernel is ours is judged by the kernel's tag of
//     the program, which is compared with that of the committed object as this
//     same kernel loads it: tags differ between kernels, since places of fields
//     are filled in when a program is loaded.
//   - Programs are pinned under a name with the object's digest. A start finds them
//     there and has nothing to load, nor the kernel's types to read, which is what
//     takes time and memory. A new version of the package does not find its own,
//     loads them with the tables that are there, and replaces those in the link.
//   - The start helper is a program of its own, see cmd/aaunit-sockopts.
//   - Required= is on the helper's command line, see Helper.Run.
//
// # How it is meant to be wired
//
// The daemon is the only one who writes rules, the helper only reads them:
//
//  1. Attach: Store.Save(unit, template or prefix, rules), before the drop-in with
//     attach.SocketStartLine is written and loaded, and Store.Delete of a name that
//     Find would come to first and that has rules of an earlier attachment. A running
//     unit gets Attach at once, with the ControlGroup that systemd tells, and needs no
//     restart.
//  2. A change of rules: Store.Save, then SetRules for each unit that Units lists
//     and whose rules these are; ErrNothing means that it does not run, and its
//     next start takes the stored ones. Mode off, and on again, go through Attach.
//  3. The verdict: Attached(ControlGroup, unit).Holds(rules). ErrUnsupported,
//     ErrNoBPFFS, ErrNoMemory and ErrNotPermitted read as unknown. So does, for
//     socket options, a unit that holds CAP_BPF or CAP_SYS_ADMIN, which can change
//     tables by their ids, and one in mode enforce that runs as root, which can by their
//     pins, unless a filter keeps it from calling bpf(2) and its profile from writing the
//     pins and cgroup.procs of other control groups.
//  4. What was seen: Read. The tables outlive the unit's starts and end with the
//     boot, so what is to outlive that is for the daemon to keep. Seen.Last tells
//     whether an option was used since a point in time, such as the first start of
//     a new executable. Forget begins anew.
//  5. A .socket unit that triggers the service has a control group and tables of
//     its own. Its drop-in takes the same line, in [Socket], and its rules are
//     those of the service; sockets that are accepted belong to it, too.
//  6. Detach: the drop-in goes first, then Store.Delete and Remove. Removal of the
//     package: drop-ins, then RemoveAll.
//
// The daemon's sandbox needs for this: ReadWritePaths=-/sys/fs/bpf/aaunit, CAP_BPF,
// CAP_PERFMON and CAP_NET_ADMIN, and bpf in SystemCallFilter=.
//
// # What the hooks do not see
//
//   - 32-bit system calls (int 0x80, and programs for another architecture):
//     SystemCallArchitectures=native closes that.
//   - Sockets that were made in another control group: inherited, passed on, from a
//     .socket unit, or accepted from a unix socket, which counts as the client's.
//     Sockets that the unit passes on to others are free there.
//   - Programs that a PAM session takes to a control group of its own (PAMName= with
//     pam_systemd): nothing of the unit holds there.
//   - Options that come as control messages beside data (IP_TTL, IP_TOS, IPV6_TCLASS
//     and others in sendmsg), as ioctl, or that a BPF program sets.
//   - What the kernel sets by itself, such as on MPTCP's subflows.
//   - SO_PEERPIDFD of unix sockets, see Bypasses.
//
// io_uring's commands for sockets (SOCKET_URING_OP_SETSOCKOPT and GETSOCKOPT,
// Linux 6.7) come to the hooks like the system calls.
//
// # The generated parts
//
// "make generate" compiles the program, and needs clang 19.1.7, which both Debian
// 12 and 13 have; the source includes nothing, so the object is the same byte by
// byte on both ("make generate-check"). The table of names comes from the
// kernel's headers for programs, from the newest that were at hand (Debian 13's
// linux-libc-dev, Linux 6.12):
//
//	go run ./internal/sockopt/names -headers DIRECTORY > internal/sockopt/names_table.go
//
// A test compares it with the headers that are installed.
package sockopt
