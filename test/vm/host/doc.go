// Package host has the tests that drive a guest from outside: reboot it, cut its
// power, install packages. They are built with the tag vm and run on the suites
// in AAUNIT_VM_SUITE, or all.
package host
