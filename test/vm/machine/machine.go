package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

const (
	defaultMemory = 1536 // MiB
	defaultCPUs   = 2

	kernelArguments = "console=ttyS0 root=/dev/vda rw quiet mitigations=off panic=-1 net.ifnames=0 fsck.mode=skip modprobe.blacklist=kvm_amd,kvm_intel,powernow_k8"

	// bootTime bounds one boot of a guest, emulated, on a busy host.
	bootTime = 10 * time.Minute
)

// Options say what guest to boot. Only Suite is needed.
type Options struct {
	Suite  string
	Memory int // MiB; 1536 if 0
	CPUs   int // 2 if 0

	// Cold boots the guest from power-on, even if there is the state of a
	// booted one. So does AAUNIT_VM_COLD=1, and any other Memory or CPUs than
	// the usual.
	Cold bool

	// Log is told what takes long. Nothing is said if nil.
	Log io.Writer
}

// Machine is a guest. Its methods may be called from several goroutines, except
// those that turn it on and off.
type Machine struct {
	suite           string
	image           image
	keys            keys
	accel           Accel
	memory          int
	cpus            int
	dir             string // console and overlay
	disk            string
	diskFormat      string
	kernelArguments string   // further ones
	release         []func() // what Close gives back

	mu  sync.Mutex
	ssh *ssh.Client // nil while the guest is off

	// Of the QEMU that runs.
	qmp     *qmp
	port    int // of the host's loopback, forwarded to the guest's sshd
	process *os.Process
	exited  chan struct{} // closed when QEMU has ended
	exitErr error         // why it has, once exited is closed
}

// Boot starts a guest and waits until it has booted. The first time for a suite,
// it builds the image before, which needs a Debian mirror and some minutes. The
// context bounds all that, not the life of the guest: end it with
// [Machine.Close].
func Boot(ctx context.Context, o Options) (*Machine, error) {
	if o.Log == nil {
		o.Log = io.Discard
	}
	usual := (o.Memory == 0 || o.Memory == defaultMemory) && (o.CPUs == 0 || o.CPUs == defaultCPUs)
	if o.Memory == 0 {
		o.Memory = defaultMemory
	}
	if o.CPUs == 0 {
		o.CPUs = defaultCPUs
	}
	if err := checkSuite(o.Suite); err != nil {
		return nil, err
	}
	if err := checkTools(); err != nil {
		return nil, err
	}
	c, err := openCache()
	if err != nil {
		return nil, err
	}
	c.prune()
	k, err := c.keys()
	if err != nil {
		return nil, err
	}
	img, err := c.image(ctx, o.Suite, k, o.Log)
	if err != nil {
		return nil, err
	}
	done, err := c.use(img.dir)
	if err != nil {
		return nil, err
	}
	accel, err := c.accel(ctx, img)
	if err != nil {
		done()
		return nil, err
	}

	m, err := c.newMachine(img, k, accel, o.Memory, o.CPUs)
	if err != nil {
		done()
		return nil, err
	}
	m.release = append(m.release, done)
	if usual && !o.Cold && os.Getenv("AAUNIT_VM_COLD") == "" {
		err = m.warmStart(ctx, c, o.Log)
	} else {
		err = m.coldStart(ctx)
	}
	if err != nil {
		m.Close()
		return nil, fmt.Errorf("cannot boot a %s guest: %w", o.Suite, err)
	}
	return m, nil
}

// newMachine makes the guest's directory. Nothing runs yet, and there is no disk.
func (c cache) newMachine(img image, k keys, accel Accel, memory, cpus int) (*Machine, error) {
	dir, err := os.MkdirTemp(c.path("runs"), img.suite+"-")
	if err != nil {
		return nil, fmt.Errorf("cannot make the guest's directory: %w", err)
	}
	unlock, err := flock(filepath.Join(dir, "lock"), unix.LOCK_EX)
	if err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	return &Machine{
		suite: img.suite, image: img, keys: k, accel: accel, memory: memory, cpus: cpus, dir: dir,
		release: []func(){unlock},
	}, nil
}

// Suite is the guest's.
func (m *Machine) Suite() string { return m.suite }

// Accel is how QEMU runs the guest.
func (m *Machine) Accel() Accel { return m.accel }

// coldStart boots from power-on, on a new overlay.
func (m *Machine) coldStart(ctx context.Context) error {
	if err := m.overlay(ctx, m.image.disk(), "raw"); err != nil {
		return err
	}
	return m.PowerOn(ctx)
}

// overlay makes the disk of this guest, which has only what differs from base.
func (m *Machine) overlay(ctx context.Context, base, format string) error {
	m.disk, m.diskFormat = filepath.Join(m.dir, "disk.qcow2"), "qcow2"
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", base, m.disk)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("cannot make the guest's disk: %w: %s", err, out)
	}
	return nil
}

// arguments are QEMU's. Its working directory is the guest's.
func (m *Machine) arguments(incoming string) []string {
	cpu, accel, clock := "host", "kvm", ""
	if m.accel == TCG {
		// Nothing taken off: with svm=off, QEMU 7.2's guests cannot mount.
		cpu, accel = "max", "tcg,thread=multi"
		// All emulated processors read the same counter, which the kernel, having
		// measured it, does not believe. Without it each look at the clock is a
		// system call that reads a device: Go's scheduler does that all the time.
		clock = " tsc=reliable"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-machine", "q35,sata=off,smbus=off",
		"-accel", accel, "-cpu", cpu, "-smp", strconv.Itoa(m.cpus), "-m", strconv.Itoa(m.memory),
		"-kernel", m.image.kernel(), "-initrd", m.image.initrd(), "-append", strings.TrimSpace(kernelArguments + clock + " " + m.kernelArguments),
		// What the guest has flushed is in the host's page cache, which
		// outlives QEMU; the host's disk would only cost time.
		"-drive", "if=none,id=disk,cache=unsafe,discard=unmap,format=" + m.diskFormat + ",file=" + optionValue(m.disk),
		"-device", "virtio-blk-pci,drive=disk",
		"-device", "virtio-rng-pci",
		"-netdev", fmt.Sprintf("user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:%d-:22", m.port),
		"-device", "virtio-net-pci,netdev=net,romfile=",
		"-chardev", "file,id=console,path=console,append=on", "-serial", "chardev:console",
		"-chardev", "socket,id=monitor,fd=3", "-mon", "chardev=monitor,mode=control",
	}
	if incoming != "" {
		args = append(args, "-incoming", incoming)
	}
	return args
}

// SetKernelArguments sets what is added to the kernel's command line from the
// next PowerOn on.
func (m *Machine) SetKernelArguments(words string) { m.kernelArguments = words }

// optionValue escapes a value in a list of QEMU's options.
func optionValue(s string) string { return strings.ReplaceAll(s, ",", ",,") }

// start starts QEMU: from power-on, or waiting for a state if incoming says so.
func (m *Machine) start(incoming string) error {
	if m.process != nil {
		return errors.New("cannot turn on the guest: it is on")
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	m.port = port

	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot make the monitor's socket: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "monitor"), os.NewFile(uintptr(pair[1]), "monitor")
	defer theirs.Close()
	monitor, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		return fmt.Errorf("cannot make the monitor's socket: %w", err)
	}
	errFile, err := os.Create(filepath.Join(m.dir, "qemu.err"))
	if err != nil {
		monitor.Close()
		return fmt.Errorf("cannot start QEMU: %w", err)
	}

	cmd := exec.Command("qemu-system-x86_64", m.arguments(incoming)...)
	cmd.Dir = m.dir
	cmd.Stdout, cmd.Stderr = errFile, errFile
	cmd.ExtraFiles = []*os.File{theirs}
	// A group of its own: a ^C is for us, who then end the guest.
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL, Setpgid: true}
	exited := make(chan struct{})
	m.exited, m.exitErr = exited, nil
	started := make(chan error)
	go func() {
		// The death signal is sent when the thread that started the process
		// ends (prctl(2)): hold on to it.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer errFile.Close()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		text, _ := os.ReadFile(errFile.Name())
		m.exitErr = fmt.Errorf("%v: %s", err, strings.TrimSpace(string(text)))
		close(exited)
	}()
	if err := <-started; err != nil {
		monitor.Close()
		return fmt.Errorf("cannot start QEMU: %w", err)
	}
	m.process = cmd.Process
	m.qmp = newQMP(monitor)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := m.qmp.hello(ctx); err != nil {
		m.kill()
		return fmt.Errorf("cannot start QEMU: %w", m.exitErr)
	}
	return nil
}

// freePort finds one that nobody listens on just now.
func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("cannot find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// kill ends QEMU, if it runs, and waits for its end.
func (m *Machine) kill() {
	m.disconnect()
	if m.process == nil {
		return
	}
	m.process.Kill()
	<-m.exited
	m.qmp.conn.Close()
	m.process = nil
}

// PowerOn turns the guest on, after [Machine.PowerCut] or [Machine.Shutdown],
// and waits until it has booted.
func (m *Machine) PowerOn(ctx context.Context) error {
	ctx, cancel := withBootTime(ctx)
	defer cancel()
	if err := m.start(""); err != nil {
		return err
	}
	if err := m.connect(ctx); err != nil {
		return err
	}
	return m.waitBooted(ctx)
}

// PowerCut turns the guest off as a mains failure would: what it has not
// flushed to its disk is lost.
func (m *Machine) PowerCut() error {
	if m.process == nil {
		return errors.New("cannot cut the guest's power: it is off")
	}
	m.kill()
	return nil
}

// Shutdown has the guest shut itself down, and waits until it is off.
func (m *Machine) Shutdown(ctx context.Context) error {
	ctx, cancel := withBootTime(ctx)
	defer cancel()
	// The answer may get lost when sshd goes.
	m.Run(ctx, "systemctl poweroff --no-block")
	m.disconnect()
	select {
	case <-m.exited:
		m.kill()
		return nil
	case <-ctx.Done():
		return fmt.Errorf("cannot shut the guest down: %w\n%s", context.Cause(ctx), m.Console(3000))
	}
}

// Reboot has the guest reboot itself, and waits until it has booted.
func (m *Machine) Reboot(ctx context.Context) error {
	ctx, cancel := withBootTime(ctx)
	defer cancel()
	before, err := m.BootID(ctx)
	if err != nil {
		return err
	}
	m.Run(ctx, "systemctl reboot --no-block")
	for {
		// sshd may still be the old one.
		if err := m.connect(ctx); err != nil {
			return err
		}
		after, err := m.BootID(ctx)
		if err == nil && after != before {
			return m.waitBooted(ctx)
		}
		if err := sleep(ctx, time.Second); err != nil {
			return fmt.Errorf("cannot reboot the guest: %w\n%s", err, m.Console(3000))
		}
	}
}

// BootID is the random number that the guest's kernel gave this boot.
func (m *Machine) BootID(ctx context.Context) (string, error) {
	return m.Output(ctx, "cat /proc/sys/kernel/random/boot_id")
}

// waitBooted waits until systemd has nothing left to start. That some unit has
// failed is no error here: a test may have wanted that.
func (m *Machine) waitBooted(ctx context.Context) error {
	r, err := m.Run(ctx, "systemctl is-system-running --wait")
	if err != nil {
		return err
	}
	switch state := strings.TrimSpace(r.Stdout); state {
	case "running", "degraded":
		return nil
	default:
		return fmt.Errorf("cannot boot the guest: systemd is %q: %s", state, r.Stderr)
	}
}

// Save keeps the guest's disk and memory under a name, in its overlay.
func (m *Machine) Save(ctx context.Context, name string) error {
	return m.qmp.human(ctx, "savevm "+name)
}

// Load puts the guest back to what was saved under that name, except its clock.
func (m *Machine) Load(ctx context.Context, name string) error {
	m.disconnect()
	if err := m.qmp.human(ctx, "loadvm "+name); err != nil {
		return err
	}
	if err := m.connect(ctx); err != nil {
		return err
	}
	return m.setClock(ctx)
}

// setClock sets the guest's clock by the host's.
func (m *Machine) setClock(ctx context.Context) error {
	now := time.Now()
	_, err := m.Output(ctx, fmt.Sprintf("date --set=@%d.%09d >/dev/null", now.Unix(), now.Nanosecond()))
	return err
}

// Console returns the last n bytes of what the guest has printed on its console.
func (m *Machine) Console(n int) string {
	text, err := os.ReadFile(filepath.Join(m.dir, "console"))
	if err != nil {
		return err.Error()
	}
	return tail(string(text), n)
}

// Close ends the guest and removes what it has written.
func (m *Machine) Close() error {
	m.kill()
	err := os.RemoveAll(m.dir)
	for _, f := range m.release {
		f()
	}
	m.release = nil
	if err != nil {
		return fmt.Errorf("cannot remove the guest's directory: %w", err)
	}
	return nil
}

// Keep tells how to log in to the guest and waits for SIGINT or SIGTERM, if
// AAUNIT_VM_KEEP=1 asks for that: for a look at what a test has left.
func (m *Machine) Keep(log io.Writer) {
	if os.Getenv("AAUNIT_VM_KEEP") != "1" {
		return
	}
	enough := make(chan os.Signal, 1)
	signal.Notify(enough, unix.SIGINT, unix.SIGTERM)
	defer signal.Stop(enough)
	fmt.Fprintf(log, "the guest is kept until ^C: %s\n", strings.Join(m.SSHCommand(), " "))
	<-enough
}

func withBootTime(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, bootTime, fmt.Errorf("it took more than %v", bootTime))
}
