package machine

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// warm is a guest that has just booted, frozen: what its disk has beside the
// image's, and its memory.
type warm struct {
	dir string
}

func (w warm) disk() string  { return filepath.Join(w.dir, "disk.qcow2") }
func (w warm) state() string { return filepath.Join(w.dir, "state") }

// warm returns the frozen guest for this one's image, QEMU and processor, and
// makes it if it is not there.
func (c cache) warm(ctx context.Context, m *Machine, log io.Writer) (warm, error) {
	version, err := qemuVersion(ctx)
	if err != nil {
		return warm{}, err
	}
	cpu, err := hostCPU()
	if err != nil {
		return warm{}, err
	}
	m.disk, m.diskFormat, m.port = "", "qcow2", 0
	name := m.suite + "-" + key("1", m.image.key, version, cpu, strings.Join(m.arguments(""), " "))
	w := warm{dir: c.path("warm", name)}
	if exists(w.dir) {
		return w, nil
	}
	unlock, err := c.lock("warm-" + m.suite)
	if err != nil {
		return warm{}, err
	}
	defer unlock()
	if exists(w.dir) {
		return w, nil
	}
	began := time.Now()
	fmt.Fprintf(log, "booting %s, once, to start later guests from there\n", m.suite)
	if err := c.freeze(ctx, m, w); err != nil {
		return warm{}, fmt.Errorf("cannot keep a booted guest: %w", err)
	}
	fmt.Fprintf(log, "kept a booted %s guest after %v\n", m.suite, time.Since(began).Round(time.Second))
	return w, nil
}

// freeze boots a guest like m and writes its state, as a migration to a file,
// with the guest's disk beside it.
func (c cache) freeze(ctx context.Context, like *Machine, w warm) error {
	m, err := c.newMachine(like.image, like.keys, like.accel, like.memory, like.cpus)
	if err != nil {
		return err
	}
	defer m.Close()
	if err := m.coldStart(ctx); err != nil {
		return err
	}
	if _, err := m.Output(ctx, "sync"); err != nil {
		return err
	}
	m.disconnect()
	if err := m.qmp.execute(ctx, "stop", nil, nil); err != nil {
		return err
	}
	unbounded := map[string]any{"max-bandwidth": int64(1) << 40}
	if err := m.qmp.execute(ctx, "migrate-set-parameters", unbounded, nil); err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "migrate", map[string]any{"uri": "exec:cat >state"}, nil); err != nil {
		return err
	}
	if err := m.qmp.migration(ctx); err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "quit", nil, nil); err != nil {
		return err
	}
	<-m.exited

	dir, err := os.MkdirTemp(c.path("warm"), "new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	made := warm{dir: dir}
	if err := os.Rename(m.disk, made.disk()); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(m.dir, "state"), made.state()); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "used"), nil, 0o600); err != nil {
		return err
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	return os.Rename(dir, w.dir)
}

// warmStart goes on from the frozen guest, on a new overlay over its disk.
func (m *Machine) warmStart(ctx context.Context, c cache, log io.Writer) error {
	w, err := c.warm(ctx, m, log)
	if err != nil {
		return err
	}
	done, err := c.use(w.dir)
	if err != nil {
		return err
	}
	m.release = append(m.release, done)

	ctx, cancel := withBootTime(ctx)
	defer cancel()
	if err := m.overlay(ctx, w.disk(), "qcow2"); err != nil {
		return err
	}
	if err := os.Symlink(w.state(), filepath.Join(m.dir, "state")); err != nil {
		return fmt.Errorf("cannot use the booted guest: %w", err)
	}
	if err := m.start("defer"); err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "migrate-incoming", map[string]any{"uri": "exec:cat state"}, nil); err != nil {
		return err
	}
	if err := m.qmp.migration(ctx); err != nil {
		return err
	}
	if err := m.qmp.execute(ctx, "cont", nil, nil); err != nil {
		return err
	}
	if err := m.connect(ctx); err != nil {
		return err
	}
	return m.setClock(ctx)
}

// hostCPU names the host's processor: QEMU's "max" and "host" depend on it.
func hostCPU() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", fmt.Errorf("cannot tell the host's processor: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strconv.Quote(strings.TrimSpace(value)), nil
		}
	}
	return "unknown", nil
}
