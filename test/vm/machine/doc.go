// Package machine runs Debian guests for tests: a real kernel, systemd and
// AppArmor, in QEMU, from Debian's own packages.
//
// [Boot] makes what it needs and keeps it: an image of the suite (built once by
// mmdebstrap), and the state of a guest that has just booted from it, so that
// later guests start from there instead of from power-on. Both are kept under
// AAUNIT_VM_CACHE, keyed by everything that went into them. Each guest writes
// to an overlay of its own and is gone, overlay and all, after
// [Machine.Close], or when the process that booted it dies.
//
// A guest has no network but a forwarded ssh port on the host's loopback.
package machine
