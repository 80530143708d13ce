package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on a look at a unit's tasks.
const (
	maxLook    = time.Second            // for all looks of one scan …
	minLooks   = 3                      // … beside the first few
	forkWindow = 150 * time.Millisecond // how long an unconfined task may be one between fork and exec
	lookPause  = 20 * time.Millisecond
	maxCgroups = 10_000
	maxTasks   = 200_000
)

// systemdExecutor is the program that systemd 255 and later start to become a
// service's process (systemd-executor(8) is internal and has no page).
const systemdExecutor = "/usr/lib/systemd/systemd-executor"

// Scan looks at all tasks of the unit: those of its control groups, its main
// and control process wherever they are, and where these were moved to a
// session scope (PAMName= with pam_systemd(8)) all that is in there, since the
// children of a moved process are there too. It looks until two looks in a row agree on which
// tasks there are and what they carry. A task that reads as unconfined is
// believed only when it still does after a while: a process is unconfined
// between its fork and its exec (platform fact 19). A task that is gone before
// it could be read is not in the result, and neither is one that has ended and
// was not yet waited for.
func (s *System) Scan(ctx context.Context, u attach.Unit) attach.Scan {
	sc := attach.Scan{Tmp: map[int]attach.TmpView{}}
	look := s.newLook()
	begin := time.Now()
	var before []attach.Task
	for n := 0; ; n++ {
		tasks, err := look.tasks(u)
		sc.At = time.Now()
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			sc.Problem = err.Error()
			sc.Tasks = tasks
			break
		}
		sc.Tasks = tasks
		spent := time.Since(begin)
		sc.Stable = n > 0 && !look.reused && sameTasks(before, tasks)
		if sc.Stable && (spent >= forkWindow || !slices.ContainsFunc(tasks, mayBeForking)) {
			break
		}
		if n >= minLooks && spent >= maxLook {
			break
		}
		before = tasks
		if n > 0 || slices.ContainsFunc(tasks, mayBeForking) {
			select {
			case <-ctx.Done():
			case <-time.After(lookPause):
			}
		}
	}
	sc.HostTmp = s.tmpView(1)
	for _, t := range sc.Tasks {
		if _, done := sc.Tmp[t.PID]; done || t.Manager || t.PID <= 0 {
			continue
		}
		if v := s.tmpView(t.PID); v.Problem == "" || s.alive(t.PID) {
			sc.Tmp[t.PID] = v
		}
	}
	return sc
}

func mayBeForking(t attach.Task) bool { return t.Problem == "" && t.Label.IsUnconfined() }

func sameTasks(a, b []attach.Task) bool {
	return slices.EqualFunc(a, b, func(x, y attach.Task) bool {
		return x.PID == y.PID && x.TID == y.TID && x.Problem == y.Problem && x.Label.Mode == y.Label.Mode &&
			slices.Equal(x.Label.Profiles, y.Label.Profiles)
	})
}

// look reads tasks; its buffers serve for many.
type look struct {
	s      *System
	buf    []byte
	labels map[string]attach.Label // by what the kernel says
	// starts holds the start times of the processes of earlier looks: a PID
	// that was reused is another process.
	starts  map[int]string
	reused  bool
	manager []os.FileInfo // systemd's own executables
}

func (s *System) newLook() *look {
	l := &look{s: s, buf: make([]byte, 16<<10), labels: map[string]attach.Label{}, starts: map[int]string{}}
	for _, p := range []string{filepath.Join(procDir, "1", "exe"), systemdExecutor} {
		if st, err := os.Stat(s.real(p)); err == nil {
			l.manager = append(l.manager, st)
		}
	}
	return l
}

// tasks is one look, in the order of PID and TID.
func (l *look) tasks(u attach.Unit) ([]attach.Task, error) {
	l.reused = false
	pids, err := l.s.processes(u.ControlGroup)
	if err != nil {
		return nil, err
	}
	for _, pid := range []int{u.MainPID, u.ControlPID} {
		if pid <= 0 || slices.Contains(pids, pid) {
			continue
		}
		pids = append(pids, pid)
		if scope := l.s.sessionOf(pid); scope != "" {
			more, err := l.s.processes(scope)
			if err != nil {
				return nil, err
			}
			pids = append(pids, more...)
		}
	}
	slices.Sort(pids)
	var out []attach.Task
	for _, pid := range slices.Compact(pids) {
		if pid <= 0 {
			out = append(out, attach.Task{Problem: "it is a process of another PID namespace"})
			continue
		}
		from := len(out)
		if out, err = l.process(pid, out); err != nil {
			return out, err
		}
		l.markManager(out[from:], u)
		if len(out) > maxTasks {
			return out, fmt.Errorf("the unit has more than %d tasks", maxTasks)
		}
	}
	return out, nil
}

// process appends the tasks of a process; one that is gone has none.
func (l *look) process(pid int, out []attach.Task) ([]attach.Task, error) {
	dir := l.s.real(procDir) + "/" + strconv.Itoa(pid)
	stat, err := l.read(dir + "/stat")
	if err != nil {
		if gone(err) {
			return out, nil
		}
		return out, fmt.Errorf("cannot read %s/%d/stat: %w", procDir, pid, bareErrno(err))
	}
	comm, state, start, ok := parseStat(stat)
	if !ok {
		return out, fmt.Errorf("cannot read %s/%d/stat: it does not have the form of proc(5)", procDir, pid)
	}
	if was, known := l.starts[pid]; known && was != start {
		l.reused = true
	}
	l.starts[pid] = start
	t := attach.Task{PID: pid, Comm: comm}
	t.Exe, _ = os.Readlink(dir + "/exe")
	d, err := os.Open(dir + "/task")
	if err != nil {
		if gone(err) {
			return out, nil
		}
		return out, fmt.Errorf("cannot read %s/%d/task: %w", procDir, pid, bareErrno(err))
	}
	names, err := d.Readdirnames(-1)
	d.Close()
	if err != nil && !gone(err) {
		return out, fmt.Errorf("cannot read %s/%d/task: %w", procDir, pid, bareErrno(err))
	}
	from := len(out)
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if tid == pid && (state == 'Z' || state == 'X') {
			continue // has ended; runs nothing any more
		}
		t.TID, t.Problem = tid, ""
		t.Label, err = l.label(dir + "/task/" + name + "/attr/apparmor/current")
		if err != nil {
			if gone(err) {
				if _, e := os.Stat(dir + "/task/" + name); e != nil {
					continue
				}
				err = errors.New("the kernel gives no AppArmor label (attr/apparmor/current does not exist)")
			}
			t.Problem = bareErrno(err).Error()
		}
		out = append(out, t)
	}
	slices.SortFunc(out[from:], func(a, b attach.Task) int { return a.TID - b.TID })
	return out, nil
}

// markManager marks the tasks of a process that is systemd's own and never the
// service's program: one that runs the same file as PID 1, or systemd's
// executor, as root. Its name proves nothing, since anyone can take any.
//
// The (sd-pam) that PAMName= leaves behind has given up root for User= (seen
// with 252 and 257, and in setup_pam of systemd's src/core). For another user
// than root more must fit, then: it is not confined, has one thread, is a child
// of the unit's main or control process and has that name. A confined program
// could only imitate it under a profile that lets it run systemd's program
// unconfined, which is told as a rule that leaves the profile.
func (l *look) markManager(tasks []attach.Task, u attach.Unit) {
	if len(tasks) == 0 {
		return
	}
	t := tasks[0]
	dir := l.s.real(procDir) + "/" + strconv.Itoa(t.PID)
	st, err := os.Stat(dir + "/exe")
	if err != nil || !slices.ContainsFunc(l.manager, func(m os.FileInfo) bool { return os.SameFile(m, st) }) {
		return
	}
	status, err := l.read(dir + "/status")
	if err != nil {
		return
	}
	ids := statusField(status, "Uid") // real, effective, saved, file system
	root := len(ids) == 4 && !slices.ContainsFunc(ids, func(id string) bool { return id != "0" })
	pam := false
	if parent := statusField(status, "PPid"); len(parent) == 1 && t.Comm == "(sd-pam)" && len(tasks) == 1 && t.Problem == "" && t.Label.IsUnconfined() {
		ppid, _ := strconv.Atoi(parent[0])
		pam = ppid > 0 && (ppid == u.MainPID || ppid == u.ControlPID)
	}
	for i := range tasks {
		tasks[i].Manager = root || pam
	}
}

// statusField reads a line of proc_pid_status(5).
func statusField(status []byte, key string) []string {
	_, rest, _ := bytes.Cut(status, []byte("\n"+key+":"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strings.Fields(string(line))
}

// sessionOf gives the control group of a process when it is a session scope of
// logind's, else "".
func (s *System) sessionOf(pid int) string {
	data, err := readAll(s.real(filepath.Join(procDir, strconv.Itoa(pid), "cgroup")), 64<<10)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		if group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			if ok, _ := path.Match("/user.slice/user-*.slice/session-*.scope", group); ok {
				return group
			}
		}
	}
	return ""
}

// label reads a task's label.
func (l *look) label(file string) (attach.Label, error) {
	data, err := l.read(file)
	if err != nil {
		return attach.Label{}, err
	}
	if label, ok := l.labels[string(data)]; ok {
		return label, nil
	}
	label, err := attach.ParseLabel(string(data))
	if err == nil {
		l.labels[string(data)] = label
	}
	return label, err
}

// read reads a small file of /proc into the look's buffer.
func (l *look) read(file string) ([]byte, error) {
	fd, err := unix.Open(file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	n := 0
	for n < len(l.buf) {
		m, err := unix.Read(fd, l.buf[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: file, Err: err}
		}
		if m == 0 {
			return l.buf[:n], nil
		}
		n += m
	}
	return nil, &fs.PathError{Op: "read", Path: file, Err: errors.New("it is too long")}
}

// gone reports whether a process or task ended before it could be read.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}

// bareErrno takes operation and path off an error.
func bareErrno(err error) error {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

// parseStat reads name, state and start time of proc_pid_stat(5). The name may
// hold anything, parentheses too: the last one ends it.
func parseStat(b []byte) (comm string, state byte, start string, ok bool) {
	from, to := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if from < 0 || to < from {
		return "", 0, "", false
	}
	f := bytes.Fields(b[to+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return "", 0, "", false
	}
	return string(b[from+1 : to]), f[0][0], string(f[19]), true
}

// processes lists the processes in a unit's control group and all below it.
func (s *System) processes(cgroup string) ([]int, error) {
	root := s.real(cgroupDir)
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err != nil {
		return nil, fmt.Errorf("%s is not a unified control group tree (cgroup v2): %w", cgroupDir, bareErrno(err))
	}
	if cgroup == "" {
		return nil, nil
	}
	if !path.IsAbs(cgroup) || path.Clean(cgroup) != cgroup || cgroup == "/" {
		return nil, fmt.Errorf("%q is no control group of a unit", cgroup)
	}
	var pids []int
	seen := 0
	var walk func(dir string) error
	walk = func(dir string) error {
		if seen++; seen > maxCgroups {
			return fmt.Errorf("control group %s has more than %d groups below it", cgroup, maxCgroups)
		}
		found, err := s.procs(dir)
		if gone(err) || errors.Is(err, unix.ENODEV) {
			return nil // the group is gone, and its processes with it
		}
		if err != nil {
			return err
		}
		pids = append(pids, found...)
		entries, err := os.ReadDir(dir)
		if err != nil && !gone(err) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		for _, e := range entries {
			if e.Type().IsDir() { // never a link
				if err := walk(filepath.Join(dir, e.Name())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := walk(filepath.Join(root, cgroup)); err != nil {
		return nil, fmt.Errorf("cannot read control group %s: %w", cgroup, err)
	}
	return pids, nil
}

// procs reads the processes of one control group. In a threaded one
// cgroup.procs cannot be read (EOPNOTSUPP) and cgroup.threads has the threads
// (kernel: Documentation/admin-guide/cgroup-v2.rst, "Threads").
func (s *System) procs(dir string) ([]int, error) {
	ids, err := readIDs(filepath.Join(dir, "cgroup.procs"))
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return ids, err
	}
	tids, err := readIDs(filepath.Join(dir, "cgroup.threads"))
	if err != nil {
		return nil, err
	}
	for _, tid := range tids {
		status, err := readAll(s.real(filepath.Join(procDir, strconv.Itoa(tid), "status")), 64<<10)
		if err != nil {
			if gone(err) {
				continue
			}
			return nil, err
		}
		if f := statusField(status, "Tgid"); len(f) == 1 {
			if pid, err := strconv.Atoi(f[0]); err == nil && !slices.Contains(ids, pid) {
				ids = append(ids, pid)
			}
		}
	}
	return ids, nil
}

func readIDs(file string) ([]int, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 16<<20))
	if err != nil {
		return nil, err
	}
	var out []int
	for w := range bytes.FieldsSeq(data) {
		n, err := strconv.Atoi(string(w))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%s holds %q, which is no process", file, clean(string(w)))
		}
		out = append(out, n)
	}
	return out, nil
}

// carrier finds a task of the host that carries a profile or one of its
// children, or will with its next exec; "" none.
func (s *System) carrier(profile string) (string, error) {
	names, err := readNames(s.real(procDir))
	if err != nil {
		return "", err
	}
	l := s.newLook()
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		tasks, err := l.process(pid, nil)
		if err != nil {
			return "", err
		}
		for _, t := range tasks {
			if t.Problem != "" {
				return "", fmt.Errorf("the label of process %d: %s", t.PID, t.Problem)
			}
			if !carries(t.Label, profile) {
				// systemd sets the label for the exec first: attr/apparmor/exec.
				next, err := l.read(fmt.Sprintf("%s/%d/task/%d/attr/apparmor/exec", s.real(procDir), t.PID, t.TID))
				if err != nil || len(bytes.TrimRight(next, "\n\x00")) == 0 {
					continue
				}
				label, err := attach.ParseLabel(string(next))
				if err != nil || !carries(label, profile) {
					continue
				}
			}
			return fmt.Sprintf("%s (PID %d) carries %s", clean(t.Comm), t.PID, t.Label), nil
		}
	}
	return "", nil
}
