package machine

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var (
	//go:embed essential.sh
	essentialScript string
	//go:embed customize.sh
	customizeScript string
)

// diskSize is that of a guest's disk. The file is sparse.
const diskSize = "4G"

// CorpusDir is where a guest has profiles of packages that are not installed
// in it, as they lie in the packages: in etc/apparmor.d, and in
// usr/share/apparmor.
const CorpusDir = "/usr/share/aaunit-vm/profiles"

// image is a suite's disk and what boots it.
type image struct {
	suite string
	key   string // of everything that went into it
	dir   string
}

func (i image) disk() string   { return filepath.Join(i.dir, "disk.raw") }
func (i image) kernel() string { return filepath.Join(i.dir, "vmlinuz") }
func (i image) initrd() string { return filepath.Join(i.dir, "initrd.img") }

// key digests the parts, so that no two lists of parts share a key.
func key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

func imageKey(s string, k keys) string {
	return key("1", s, strings.Join(packages(), " "), strings.Join(services(), " "), strings.Join(corpus(), " "), diskSize,
		essentialScript, customizeScript, strings.Join(dpkgExcludes(), " "),
		authorized(k.user.PublicKey()), authorized(k.host))
}

// dpkgExcludes are the files of packages that the image leaves out: nothing
// reads them in a test.
func dpkgExcludes() []string {
	return []string{
		"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*",
		"/usr/share/squid-langpack/*", "/usr/share/squid/errors/*/*",
	}
}

// image returns the suite's image, and builds it when it is not there.
func (c cache) image(ctx context.Context, s string, k keys, log io.Writer) (image, error) {
	img := image{suite: s, key: imageKey(s, k)}
	img.dir = c.path("images", s+"-"+img.key)
	if exists(img.dir) {
		return img, nil
	}
	unlock, err := c.lock("image-" + s)
	if err != nil {
		return image{}, err
	}
	defer unlock()
	if exists(img.dir) {
		return img, nil
	}

	if err := checkTools(); err != nil {
		return image{}, err
	}
	began := time.Now()
	fmt.Fprintf(log, "building the %s image, once: this takes a few minutes\n", s)
	if err := c.buildImage(ctx, img, k); err != nil {
		return image{}, fmt.Errorf("cannot build the %s image: %w", s, err)
	}
	fmt.Fprintf(log, "built the %s image in %v\n", s, time.Since(began).Round(time.Second))
	return img, nil
}

// buildImage makes img.dir:
//
//  1. mmdebstrap makes a tar of the root file system,
//  2. which is unpacked and made a disk,
//  3. which is booted once, so that what the first boot does is done: AppArmor
//     compiles its profiles for this kernel,
//  4. and the directory gets its name.
func (c cache) buildImage(ctx context.Context, img image, k keys) (err error) {
	final := img.dir
	img.dir, err = os.MkdirTemp(c.path("images"), "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(img.dir)

	if err := makeRootTar(ctx, img, k); err != nil {
		return err
	}
	if err := makeDisk(ctx, img); err != nil {
		return err
	}
	if err := c.bake(ctx, img, k); err != nil {
		return fmt.Errorf("cannot boot it: %w", err)
	}
	if err := os.WriteFile(filepath.Join(img.dir, "used"), nil, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(img.dir, 0o755); err != nil {
		return err
	}
	return os.Rename(img.dir, final)
}

func makeRootTar(ctx context.Context, img image, k keys) error {
	mode := "root"
	if os.Geteuid() != 0 {
		mode = "unshare"
	}
	args := []string{
		"--mode=" + mode, "--variant=minbase", "--format=tar",
		"--include=" + strings.Join(packages(), ","),
	}
	for _, pattern := range dpkgExcludes() {
		args = append(args, "--dpkgopt=path-exclude="+pattern)
	}
	args = append(args,
		"--essential-hook="+essentialScript,
		"--customize-hook=mkdir -p \"$1/root/.ssh\"; :",
		"--customize-hook=upload "+Quote(k.userPath+".pub")+" /root/.ssh/authorized_keys",
		"--customize-hook=upload "+Quote(k.hostPath)+" /etc/ssh/ssh_host_ed25519_key",
		"--customize-hook=upload "+Quote(k.hostPath+".pub")+" /etc/ssh/ssh_host_ed25519_key.pub",
		"--customize-hook="+customizeScript,
		img.suite, filepath.Join(img.dir, "root.tar"),
	)
	cmd := exec.CommandContext(ctx, "mmdebstrap", args...)
	cmd.Env = append(environ(), "SERVICES="+strings.Join(services(), " "), "CORPUS="+strings.Join(corpus(), " "), "LC_ALL=C.UTF-8")
	return runLogged(cmd)
}

// makeDisk makes disk, kernel and initrd of root.tar, and removes it. mke2fs
// copies a directory; fakeroot remembers its owners where we are not root.
func makeDisk(ctx context.Context, img image) error {
	const script = `set -eu
mkdir root
tar --extract --file=root.tar --directory=root --xattrs --xattrs-include='*' --exclude='./dev/*'
rm root.tar
mke2fs -q -t ext4 -L aaunit-vm -d root disk.raw "$1"
cp root/boot/vmlinuz-* vmlinuz
cp root/boot/initrd.img-* initrd.img
chmod 644 vmlinuz initrd.img
rm -rf root
`
	args := []string{"sh", "-c", script, "sh", diskSize}
	if os.Geteuid() != 0 {
		args = append([]string{"fakeroot", "--"}, args...)
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = img.dir
	cmd.Env = environ()
	return runLogged(cmd)
}

// bake boots the disk itself, not an overlay, waits until the boot is complete,
// and shuts it down.
func (c cache) bake(ctx context.Context, img image, k keys) error {
	accel, err := c.accel(ctx, img)
	if err != nil {
		return err
	}
	m, err := c.newMachine(img, k, accel, defaultMemory, defaultCPUs)
	if err != nil {
		return err
	}
	defer m.Close()
	m.disk, m.diskFormat = img.disk(), "raw"
	if err := m.start(""); err != nil {
		return err
	}
	if err := m.connect(ctx); err != nil {
		return err
	}
	if err := m.waitBooted(ctx); err != nil {
		return err
	}
	const finish = `set -eu
test "$(cat /sys/module/apparmor/parameters/enabled)" = Y
journalctl --rotate --vacuum-time=1s >/dev/null 2>&1
fstrim /`
	if _, err := m.Output(ctx, finish); err != nil {
		return err
	}
	return m.Shutdown(ctx)
}

// runLogged runs cmd; its error has the end of what it printed.
func runLogged(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, tail(out.String(), 4000))
	}
	return nil
}

// environ is ours, with mke2fs in PATH: not every user has sbin there.
func environ() []string {
	return append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
}

// checkTools says which Debian packages are missing, if any.
func checkTools() error {
	tools := [][2]string{
		{"mmdebstrap", "mmdebstrap"},
		{"mke2fs", "e2fsprogs"},
		{"qemu-system-x86_64", "qemu-system-x86"},
		{"qemu-img", "qemu-utils"},
	}
	if os.Geteuid() != 0 {
		tools = append(tools, [2]string{"fakeroot", "fakeroot"}, [2]string{"newuidmap", "uidmap"})
	}
	var missing []string
	for _, t := range tools {
		_, err := exec.LookPath(t[0])
		if err != nil && !exists(filepath.Join("/usr/sbin", t[0])) {
			missing = append(missing, t[1])
		}
	}
	if missing != nil {
		return fmt.Errorf("cannot make a machine: install the Debian packages %s (make setup does it)", strings.Join(missing, " "))
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}

// tail returns the last n bytes of s, from the beginning of a line.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	s = s[len(s)-n:]
	if _, rest, ok := strings.Cut(s, "\n"); ok {
		return rest
	}
	return s
}
