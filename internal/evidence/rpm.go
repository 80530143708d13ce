package evidence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// rpmProgram is asked, since rpm's database has one of several forms, which only rpm
// itself reads. It is known by its path: nothing of the environment counts.
const rpmProgram = "/usr/bin/rpm"

// rpmDatabases are where the databases of its forms are, in order. Without one rpm was
// installed as a tool, and knows no file of the system.
var rpmDatabases = []string{
	"/usr/lib/sysimage/rpm/rpmdb.sqlite", "/var/lib/rpm/rpmdb.sqlite",
	"/usr/lib/sysimage/rpm/Packages.db", "/var/lib/rpm/Packages.db", "/var/lib/rpm/Packages",
}

// Bounds on rpm.
const (
	rpmTime   = 12 * time.Second
	rpmOutput = 4096
)

// nobody is whom rpm runs as: its database is for all to read.
const nobody = 65534

// rpmFormat puts a package into one line. An epoch is there where the package has one.
const rpmFormat = `%{NAME}\t%|EPOCH?{%{EPOCH}:}:{}|%{VERSION}-%{RELEASE}\n`

// rpmState tells whether the system has rpm's database, and whether that is still the
// same.
func (k *Keeper) rpmState() (id fileID, exists bool) {
	var st unix.Stat_t
	if unix.Stat(k.real(rpmProgram), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fileID{}, false
	}
	for _, path := range rpmDatabases {
		if unix.Stat(k.real(path), &st) == nil {
			return idOf(&st), true
		}
	}
	return fileID{}, false
}

// askRPM asks rpm which package a path belongs to, as "rpm -qf" does.
func (k *Keeper) askRPM(ctx context.Context, name string) (owned, error) {
	ctx, cancel := context.WithTimeout(ctx, rpmTime)
	defer cancel()
	stdout := &firstBytes{max: rpmOutput, full: cancel}
	run := func(cred *syscall.Credential) error {
		stdout.buf.Reset()
		cmd := exec.CommandContext(ctx, k.real(rpmProgram), "--query", "--queryformat", rpmFormat, "--file", "--", name)
		cmd.Dir = "/"
		// Macros of a user's own say where the database is.
		cmd.Env = []string{"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/nonexistent"}
		cmd.Stdout = stdout
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Credential: cred}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
		cmd.WaitDelay = time.Second
		// Pdeathsig comes when the thread ends that started it (golang.org/issue/27505).
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		return cmd.Run()
	}
	var cred *syscall.Credential
	if os.Geteuid() == 0 {
		cred = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	err := run(cred)
	if cred != nil && errors.Is(err, unix.EPERM) { // no CAP_SETUID, or a user namespace
		err = run(nil)
	}
	var exit *exec.ExitError
	line, _, whole := strings.Cut(stdout.buf.String(), "\n")
	switch {
	case stdout.cut:
		return owned{}, fmt.Errorf("%s printed more than %d bytes and was stopped", rpmProgram, rpmOutput)
	case ctx.Err() != nil:
		return owned{}, fmt.Errorf("%s did not answer within %v", rpmProgram, rpmTime)
	case errors.As(err, &exit) && exit.ExitCode() > 0 && strings.HasSuffix(line, "is not owned by any package"):
		return owned{}, nil
	case err != nil:
		return owned{}, fmt.Errorf("%s could not tell the package: %w; try rpm -qf %s", rpmProgram, err, name)
	}
	pkg, version, ok := strings.Cut(line, "\t")
	if !whole || !ok || pkg == "" || version == "" {
		return owned{}, fmt.Errorf("%s gave an answer that is not understood: %q", rpmProgram, line)
	}
	return owned{pkg, version}, nil
}

// firstBytes keeps so many bytes, and calls full when there are more.
type firstBytes struct {
	buf  bytes.Buffer
	max  int
	cut  bool
	full func()
}

func (w *firstBytes) Write(p []byte) (int, error) {
	if room := w.max - w.buf.Len(); len(p) > room {
		w.buf.Write(p[:room])
		if !w.cut {
			w.cut = true
			w.full()
		}
		return len(p), nil
	}
	return w.buf.Write(p)
}
