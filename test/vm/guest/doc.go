// Package guest has the tests that run inside a guest, on its systemd and its
// AppArmor. They are built with the tag vm and run by test/vm/vmexec.
package guest
