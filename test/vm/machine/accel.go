package machine

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Accel is how QEMU runs a guest's processors.
type Accel string

const (
	KVM Accel = "kvm"
	TCG Accel = "tcg" // emulated: ten times slower, works everywhere
)

// probeTime is how long a kernel may take under KVM until it says something. It
// takes a fraction of a second where KVM works.
const probeTime = 8 * time.Second

// accel tells how to run guests on this host: as AAUNIT_VM_ACCEL says, or with
// KVM if a kernel was seen to boot with it, or else emulated. Having /dev/kvm
// proves nothing: there are hosts where it makes QEMU abort, and others where
// the guest hangs for ever. What was found is kept until the host boots again.
func (c cache) accel(ctx context.Context, img image) (Accel, error) {
	switch a := Accel(os.Getenv("AAUNIT_VM_ACCEL")); a {
	case KVM, TCG:
		return a, nil
	case "":
	default:
		return "", fmt.Errorf("cannot use AAUNIT_VM_ACCEL=%s: it is %s or %s", a, KVM, TCG)
	}
	if unix.Access("/dev/kvm", unix.R_OK|unix.W_OK) != nil {
		return TCG, nil
	}

	version, err := qemuVersion(ctx)
	if err != nil {
		return "", err
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("cannot tell this boot of the host: %w", err)
	}
	unlock, err := c.lock("accel")
	if err != nil {
		return "", err
	}
	defer unlock()
	found := c.path("accel-" + key(version, string(bootID)))
	if text, err := os.ReadFile(found); err == nil {
		return Accel(strings.TrimSpace(string(text))), nil
	}

	accel := TCG
	if kvmWorks(ctx, img) {
		accel = KVM
	}
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("cannot probe for KVM: %w", err)
	}
	if err := os.WriteFile(found, []byte(accel+"\n"), 0o644); err != nil {
		return "", fmt.Errorf("cannot keep what the probe for KVM found: %w", err)
	}
	return accel, nil
}

// kvmWorks boots the image's kernel and initrd, without a disk, until the
// initrd's shell has run.
func kvmWorks(ctx context.Context, img image) bool {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64",
		"-nodefaults", "-display", "none", "-no-reboot", "-accel", "kvm", "-cpu", "host", "-m", "512",
		"-kernel", img.kernel(), "-initrd", img.initrd(),
		// The initrd gives a shell at once (initramfs-tools(7); not with panic=).
		"-append", "console=ttyS0 quiet root=/dev/none break=top",
		"-serial", "stdio")
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out := &watch{want: []byte("(initramfs)"), found: cancel}
	cmd.Stdout = out
	cmd.Run() // It ends by its own failure or by ours; only the output counts.
	return out.seen
}

// watch is a writer that calls found when it was written what it wants.
type watch struct {
	want  []byte
	found func()
	text  []byte
	seen  bool
}

func (w *watch) Write(p []byte) (int, error) {
	w.text = append(w.text, p...)
	if !w.seen && bytes.Contains(w.text, w.want) {
		w.seen = true
		w.found()
	}
	return len(p), nil
}

// qemuVersion is the first line of qemu-system-x86_64 --version.
func qemuVersion(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "--version").Output()
	if err != nil {
		return "", fmt.Errorf("cannot ask QEMU for its version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}
