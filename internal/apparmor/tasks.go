package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
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

// Bounds on how old systemd's own process may be and still be on its way to the
// program. Before the exec it opens a PAM session, mounts images and asks for
// users; pam_systemd alone gives logind two minutes to answer
// (LOGIN_SLOW_BUS_CALL_TIMEOUT_USEC), hence the first. The second is for what
// waits for nobody: until systemd's child has taken its name, and until the
// caller's idea of MainPID= and ControlPID= is renewed. It is shorter than the
// time for which a look is repeated that finds nothing worse.
const (
	transitTime = 5 * time.Minute
	briefTime   = 10 * time.Second
)

// sessionDir is where logind keeps what sd-login(3) tells of each session.
const sessionDir = "/run/systemd/sessions"

// Scan looks at all tasks of the unit: those of its control groups, its main
// and control process wherever they are, and where these were moved to a
// session scope (PAMName= with pam_systemd(8)) all that is in there, since the
// children of a moved process are there too. It looks until what it finds has
// settled (see history.add); the result is the last look, and all of it. A task
// that reads as unconfined is believed only when it still does after a while: a
// process is unconfined between its fork and its exec (seen on Debian 12 and 13). A task
// that is gone before it could be read is not in the result, and neither is one
// that has ended and was not yet waited for.
func (s *System) Scan(ctx context.Context, u attach.Unit) attach.Scan {
	sc := attach.Scan{}
	look := s.newLook()
	defer look.done()
	look.expected = u.Settings.Profile
	if host, ok := s.tmpInodes(1, nil, nil); ok {
		if sc, ok := s.rescan(look, u, host, time.Now()); ok {
			return sc
		}
	}
	begin := time.Now()
	var seen history
	for n := 0; ; n++ {
		tasks, err := look.tasks(u)
		sc.At = time.Now()
		if err == nil {
			err = ctx.Err()
		}
		sc.Tasks = tasks
		if err != nil {
			sc.Problem = err.Error()
			break
		}
		spent := sc.At.Sub(begin)
		same, known := seen.add(tasks, look.starts, sc.At)
		// A child that was just forked carries its parent's label and may be
		// about to leave it by an exec. So tasks that hold still are better
		// than new ones under known labels: those wait for the first few looks.
		sc.Stable = (same || known && n >= minLooks && spent >= forkWindow) && seen.believed(tasks, look.starts, sc.At)
		if sc.Stable || n >= minLooks && spent >= maxLook {
			break
		}
		if n > 0 || slices.ContainsFunc(tasks, mayBeForking) {
			select {
			case <-ctx.Done():
			case <-time.After(lookPause):
			}
		}
	}
	var private bool
	if sc.HostTmp, sc.Tmp, private = look.privateTmp(sc.Tasks); !private {
		sc.HostTmp = s.tmpView(1)
		sc.Tmp = look.tmpViews(ctx, sc.Tasks)
	} else if sc.Stable && look.expected != "" {
		if p := look.newPost(u, sc.Tasks); p != nil {
			s.posts.put(u.ID, p, sc.At)
		}
	}
	return sc
}

func mayBeForking(t attach.Task) bool { return t.Problem == "" && t.Label.IsUnconfined() }

// history is what the looks of one scan have found so far.
type history struct {
	last map[taskID]sight        // the look before
	seen map[string]attach.Label // the labels of all looks, by their text
}

// taskID is a task. Its numbers alone may belong to another one a moment later.
type taskID struct {
	pid, tid int
	start    string // of its process
}

// sight is how a task reads, and since when.
type sight struct {
	reading
	since time.Time
}

type reading struct {
	label, problem     string
	manager, inTransit bool
}

func idOf(t attach.Task, starts map[int]string) taskID {
	return taskID{t.PID, t.TID, starts[t.PID]}
}

// add takes in a look and compares it with those before. Two things make it
// worth believing:
//
//   - same: it found the very tasks that the look before found, and each of them
//     reads as it did.
//   - known: there were new tasks, and they have nothing new to say. Each task
//     that the look before found too reads as it did then, and each other one
//     carries a label, other than unconfined, that an earlier look has seen.
//     Besides, no label that an earlier look has seen is missing, unless it is
//     that of a child or hat of a profile that is still there.
//
// A service that forks all the time never gives the first; the second is as good
// an answer. A new task has its label from the task that forked it, which is one
// of the unit's and was looked at, or has changed it by an exec; then it is a
// label that was not seen before, or "unconfined", and the scan goes on until
// that task was seen twice, or is gone. What a task does after it was read
// stays unseen in either case, and so does a child that is forked, leaves the
// profile and ends between two looks. One that was seen is not forgotten: while
// other tasks come and go, nobody can tell whether there is always one like it,
// so that a scan which saw a task unconfined, or under a foreign profile, does
// not become known without one of those in it. systemd's own processes do not
// count there.
func (h *history) add(tasks []attach.Task, starts map[int]string, at time.Time) (same, known bool) {
	first := h.last == nil
	now := make(map[taskID]sight, len(tasks))
	labels := map[string]attach.Label{}
	kins := map[string]bool{}
	same, known = !first, !first
	for _, t := range tasks {
		x := sight{reading{t.Label.String(), t.Problem, t.Manager, t.InTransit}, at}
		if t.Problem == "" && !t.Manager && !t.InTransit {
			labels[x.label], kins[kin(t.Label)] = t.Label, true
		}
		id := idOf(t, starts)
		was, again := h.last[id]
		switch {
		case again && was.reading == x.reading:
			x.since = was.since
		case again:
			same, known = false, false
		default:
			same = false
			_, seen := h.seen[x.label]
			known = known && seen && t.Problem == "" && !t.Label.IsUnconfined()
		}
		now[id] = x
	}
	same = same && len(now) == len(h.last)
	for _, l := range h.seen {
		known = known && kins[kin(l)]
	}
	h.last = now
	if first {
		h.seen = labels
	} else {
		maps.Copy(h.seen, labels)
	}
	return same, known
}

// believed reports whether each task that reads as unconfined has done so for
// long enough.
func (h *history) believed(tasks []attach.Task, starts map[int]string, at time.Time) bool {
	return !slices.ContainsFunc(tasks, func(t attach.Task) bool {
		return mayBeForking(t) && at.Sub(h.last[idOf(t, starts)].since) < forkWindow
	})
}

// kin is a label without the names of children and hats.
func kin(l attach.Label) string {
	var tops []string
	for _, p := range l.Profiles {
		if i := strings.Index(p, "//"); i > 0 && p[0] != ':' { // in another namespace each stands for itself
			p = p[:i]
		}
		tops = append(tops, p)
	}
	slices.Sort(tops)
	return strings.Join(slices.Compact(tops), "//&") + " (" + string(l.Mode) + ")"
}

// look reads tasks; its buffers serve for many.
type look struct {
	s      *System
	buf    []byte
	labels map[string]attach.Label // by what the kernel says
	// expected is the profile that the tasks are meant to carry. About a task that
	// enforces it, or a child or hat of it, there is nothing to be said, and no more
	// is read of it than the label. "" expects nothing.
	expected string
	// starts holds the start times of the processes, as they were last read: a
	// PID that was reused is another process.
	starts  map[int]string
	manager []ownFile // systemd's own executables; nil: not looked up yet
	// local says of mounts of block devices whether their file systems answer. A mount that
	// is gone can leave its ID to another, but hardly one of the same device in the same place.
	local map[onMount]bool
}

func (s *System) newLook() *look {
	buf, _ := s.buffers.Get().(*[]byte)
	if buf == nil {
		b := make([]byte, 16<<10)
		buf = &b
	}
	return &look{s: s, buf: *buf, labels: map[string]attach.Label{}, starts: map[int]string{}, local: map[onMount]bool{}}
}

// done gives the look's buffer back.
func (l *look) done() {
	l.s.buffers.Put(&l.buf)
}

// tasks is one look, in the order of PID and TID.
func (l *look) tasks(u attach.Unit) ([]attach.Task, error) {
	pids, err := l.s.processes(u.ControlGroup)
	if err != nil {
		return nil, err
	}
	for _, pid := range []int{u.MainPID, u.ControlPID} {
		if pid <= 0 || slices.Contains(pids, pid) {
			continue
		}
		pids = append(pids, pid)
		scope, err := l.s.sessionOf(pid)
		if err != nil {
			return nil, err
		}
		if scope != "" {
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
		var own bool
		if out, own, err = l.process(pid, out); err != nil {
			return out, err
		}
		if own {
			l.markManager(out[from:], u)
		}
		if len(out) > maxTasks {
			return out, fmt.Errorf("the unit has more than %d tasks", maxTasks)
		}
	}
	l.markHelpers(out)
	return out, nil
}

// markHelpers marks the children of what is in transit: PAM modules run programs
// of their own before the service's, as pam_unix runs unix_chkpwd, which may have
// a profile of its own. They end before the program is executed.
func (l *look) markHelpers(tasks []attach.Task) {
	starting := map[int]bool{}
	for _, t := range tasks {
		if t.InTransit {
			starting[t.PID] = true
		}
	}
	for more := len(starting) > 0; more; {
		more = false
		for i, t := range tasks {
			if t.Manager || t.InTransit || t.PID <= 0 {
				continue
			}
			status, err := l.status(t.PID)
			if parent := statusField(status, "PPid"); err == nil && len(parent) == 1 {
				ppid, _ := strconv.Atoi(parent[0])
				tasks[i].InTransit = starting[ppid] || starting[t.PID]
			}
			if tasks[i].InTransit && !starting[t.PID] {
				starting[t.PID], more = true, true // and its own children
			}
		}
	}
}

// process appends the tasks of a process; one that is gone has none. own says
// that it runs systemd's own executable.
//
// Most processes carry what is expected in all their threads. Only where one does
// not the labels are read a second time, behind the executable: the other way
// round, an exec in between would make the label before it look like the
// program's.
func (l *look) process(pid int, out []attach.Task) (_ []attach.Task, own bool, err error) {
	from := len(out)
	if l.expected != "" {
		out, err = l.threads(pid, "", out)
		if err != nil || !slices.ContainsFunc(out[from:], l.unexpected) {
			return out, false, err
		}
	}
	exe, _ := os.Readlink(l.dir(pid) + "/exe")
	if l.manager == nil {
		l.manager = l.s.own()
	}
	own = l.s.isOwn(l.manager, exe, l.dir(pid)+"/exe")
	out, err = l.threads(pid, exe, out[:from])
	return out, own, err
}

// unexpected reports whether there may be something to be said about a task.
func (l *look) unexpected(t attach.Task) bool {
	return t.Problem != "" || !t.Label.Mode.Confines() || t.Label.Fits(l.expected, nil) != attach.FitExact
}

// threads appends the threads of a process.
func (l *look) threads(pid int, exe string, out []attach.Task) ([]attach.Task, error) {
	dir := l.dir(pid)
	stat, err := l.read(dir + "/stat")
	if err != nil {
		if gone(err) {
			return out, nil
		}
		return out, fmt.Errorf("cannot read %s/%d/stat: %w", procDir, pid, bareErrno(err))
	}
	st, ok := parseStat(stat)
	if !ok {
		return out, fmt.Errorf("cannot read %s/%d/stat: it does not have the form of proc(5)", procDir, pid)
	}
	l.starts[pid] = st.start
	fd, err := unix.Open(dir+"/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if gone(err) {
			return out, nil
		}
		return out, fmt.Errorf("cannot read %s/%d/task: %w", procDir, pid, err)
	}
	defer unix.Close(fd)
	// One that has a single thread is that thread.
	names := []string{strconv.Itoa(pid)}
	if st.threads != 1 {
		if names, err = readDirFD(fd); err != nil && !gone(err) {
			return out, fmt.Errorf("cannot read %s/%d/task: %w", procDir, pid, err)
		}
	}
	from := len(out)
	t := attach.Task{PID: pid, Comm: st.comm, Exe: exe}
	for _, name := range names {
		tid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if tid == pid && (st.state == 'Z' || st.state == 'X') {
			continue // has ended; runs nothing any more
		}
		t.TID, t.Problem = tid, ""
		t.Label, err = l.label(fd, name+"/attr/apparmor/current")
		if err != nil {
			if gone(err) {
				var thread unix.Stat_t
				if unix.Fstatat(fd, name, &thread, 0) != nil {
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

// readDirFD lists an open directory.
func readDirFD(fd int) (names []string, err error) {
	buf := make([]byte, 8<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n <= 0:
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}

// dir is the directory of a process.
func (l *look) dir(pid int) string { return l.s.real(procDir) + "/" + strconv.Itoa(pid) }

// markManager marks the tasks of a process that runs systemd's own executable,
// the file of PID 1 or systemd's executor, as it is or was before an upgrade (ownFile),
// and is not the service's program:
//
//   - the (sd-pam) that PAMName= leaves behind;
//   - in transit: what systemd has forked and not yet executed. With User= it has
//     given up root before it asks for the profile, and only then makes the
//     system call filters (exec_child of systemd 252, exec_invoke of 257), which
//     on a slow machine takes longer than an unconfined task is waited for.
//
// Both must be unconfined, in all their threads. The executable alone proves
// nothing: a service can run systemd's program, as user@.service does. A name
// that begins with "(", which systemd gives its own processes early on, proves
// nothing either, since anyone can take any; but what was really executed has
// the name of its file. So a program of systemd's reads as what it is after
// briefTime at the latest, and one that lies about its name after transitTime;
// until then the answer is unknown, never confined. What counts is the age of
// the process, so that a service which was confined cannot hide so later.
//
// A process that is not root's must moreover have one thread, and be the main or
// control process. A younger one than the caller's idea of these may instead be
// a child of PID 1, or a new (sd-pam), for briefTime.
//
// The (sd-pam) has given up root for User= (seen with 252 and 257, and in
// setup_pam of systemd's src/core). For another user than root it must be a
// child of the unit's main or control process, then. A confined program could
// only imitate it under a profile that lets it run systemd's program unconfined,
// which is told as a rule that leaves the profile.
//
// attr/apparmor/exec, where systemd puts the profile, is no help: kernels without
// commit 4afc61702bdc of 2026 ("apparmor: use target task's context in
// apparmor_getprocattr()") give the reader's own in place of the other task's.
func (l *look) markManager(tasks []attach.Task, u attach.Unit) {
	if len(tasks) == 0 || slices.ContainsFunc(tasks, func(t attach.Task) bool { return t.Problem != "" || !t.Label.IsUnconfined() }) {
		return
	}
	t := tasks[0]
	status, err := l.status(t.PID)
	if err != nil {
		return
	}
	root, ppid := rootOf(status), parentOf(status)
	of := func(pid int) bool { return pid > 0 && (pid == u.MainPID || pid == u.ControlPID) }
	named, pam, single := strings.HasPrefix(t.Comm, "("), t.Comm == "(sd-pam)", len(tasks) == 1

	manager, transit := false, time.Duration(0)
	switch {
	case pam && single && !of(t.PID) && (root || of(ppid)):
		manager = true
	case root && !named:
		transit = briefTime
	case root, named && single && of(t.PID):
		transit = transitTime
	case named && single && (ppid == 1 || pam):
		transit = briefTime
	}
	inTransit := !manager && youngerThan(l.starts[t.PID], transit)
	for i := range tasks {
		tasks[i].Manager, tasks[i].InTransit = manager || inTransit, inTransit
	}
}

// youngerThan compares the age of a process, by its start time of
// proc_pid_stat(5), with a bound. The start time is in ticks since boot, a
// hundred a second on all machines that Go knows (USER_HZ), and goes on while
// the machine sleeps, as CLOCK_BOOTTIME does.
func youngerThan(start string, bound time.Duration) bool {
	ticks, err := strconv.ParseInt(start, 10, 64)
	var now unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return false
	}
	age := time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/100)
	return age >= 0 && age < bound
}

// tmpViews looks at /tmp of all processes but systemd's own. One that has ended
// since the look is marked as such. While a process ends, its mounts cannot be
// read any more and it is still there, so these are tried for a while.
func (l *look) tmpViews(ctx context.Context, tasks []attach.Task) map[int]attach.TmpView {
	out := map[int]attach.TmpView{}
	var pids []int
	for _, t := range tasks {
		if !t.Manager && t.PID > 0 {
			pids = append(pids, t.PID)
		}
	}
	pids = slices.Compact(pids)          // in order, as the tasks are
	views := map[string]attach.TmpView{} // by mount namespace and root
	for begin := time.Now(); ; {
		pids = slices.DeleteFunc(pids, func(pid int) bool {
			ns, err := os.Readlink(l.dir(pid) + "/ns/mnt")
			root, rootErr := os.Readlink(l.dir(pid) + "/root")
			v, known := views[ns+" "+root]
			if !known || err != nil || rootErr != nil {
				if v = l.s.tmpView(pid); v.Problem == "" && err == nil && rootErr == nil {
					views[ns+" "+root] = v
				}
			}
			if l.ended(pid) {
				v = attach.TmpView{Ended: true}
			}
			out[pid] = v
			return v.Problem == ""
		})
		if len(pids) == 0 || time.Since(begin) >= forkWindow || ctx.Err() != nil {
			return out
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookPause):
		}
	}
}

// ended reports whether the process that was looked at is no more; its number
// may be another's by now. A main thread can end before the others do.
func (l *look) ended(pid int) bool {
	stat, err := l.read(l.dir(pid) + "/stat")
	if err != nil {
		return gone(err)
	}
	st, ok := parseStat(stat)
	switch {
	case !ok:
		return false
	case st.start != l.starts[pid]:
		return true
	case st.state != 'Z' && st.state != 'X':
		return false
	}
	threads, err := readNames(l.dir(pid) + "/task")
	return err == nil && len(threads) <= 1 || err != nil && gone(err)
}

// statusField reads a line of proc_pid_status(5).
func statusField(status []byte, key string) []string {
	_, rest, _ := bytes.Cut(status, []byte("\n"+key+":"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	return strings.Fields(string(line))
}

// sessionOf gives the control group of a process when it is a session scope of
// logind's, else "". A process that is gone has none.
func (s *System) sessionOf(pid int) (string, error) {
	file := filepath.Join(procDir, strconv.Itoa(pid), "cgroup")
	data, err := readAll(s.real(file), 64<<10)
	if err != nil {
		if gone(err) {
			return "", nil
		}
		return "", fmt.Errorf("cannot read %s: %w", file, bareErrno(err))
	}
	return parseSession(data), nil
}

// SessionOf gives the session scope of a process, "" where it is in none or that could
// not be read. pam_systemd(8) moves the main process of a unit with PAMName= to one.
func (s *System) SessionOf(pid int) string {
	scope, _ := s.sessionOf(pid)
	return scope
}

// parseSession reads proc_pid_cgroup(5): of the lines of a process the one of
// cgroup v2 begins with "0::".
func parseSession(data []byte) string {
	for line := range bytes.Lines(data) {
		if group, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), "0::"); ok {
			if ok, _ := path.Match("/user.slice/user-*.slice/session-*.scope", group); ok {
				return group
			}
		}
	}
	return ""
}

// label reads a task's label; file is below the open directory dir. The kernel
// gives it in one read (proc_pid_attr_read in fs/proc/base.c).
func (l *look) label(dir int, file string) (attach.Label, error) {
	fd, err := unix.Openat(dir, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return attach.Label{}, &fs.PathError{Op: "open", Path: file, Err: err}
	}
	defer unix.Close(fd)
	n, err := unix.Read(fd, l.buf)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Read(fd, l.buf)
	}
	if err == nil && n == len(l.buf) {
		err = errTooLong
	}
	if err != nil {
		return attach.Label{}, &fs.PathError{Op: "read", Path: file, Err: err}
	}
	return l.parse(l.buf[:n])
}

// parse reads the text of a label; those of one look are often the same.
func (l *look) parse(data []byte) (attach.Label, error) {
	if label, ok := l.labels[string(data)]; ok {
		return label, nil
	}
	label, err := attach.ParseLabel(string(data))
	if err == nil {
		l.labels[string(data)] = label
	}
	return label, err
}

// status reads proc_pid_status(5). The groups of a process may take any length; what is
// asked for here comes before them.
func (l *look) status(pid int) ([]byte, error) {
	status, err := l.read(l.dir(pid) + "/status")
	if errors.Is(err, errTooLong) {
		err = nil
	}
	return status, err
}

// read reads a small file of /proc into the look's buffer.
func (l *look) read(file string) ([]byte, error) {
	data, err := readSmall(file, l.buf)
	if err == nil && len(data) == len(l.buf) {
		err = &fs.PathError{Op: "read", Path: file, Err: errTooLong}
	}
	return data, err
}

var errTooLong = errors.New("it is too long")

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

// procStat is what is read of proc_pid_stat(5).
type procStat struct {
	comm    string
	state   byte
	threads int
	start   string // time, in ticks since boot
}

// parseStat reads proc_pid_stat(5). The name may hold anything, parentheses too:
// the last one ends it.
func parseStat(b []byte) (st procStat, ok bool) {
	from, to := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if from < 0 || to < from {
		return procStat{}, false
	}
	f := bytes.Fields(b[to+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return procStat{}, false
	}
	threads, err := strconv.Atoi(string(f[17]))
	if err != nil {
		return procStat{}, false
	}
	return procStat{comm: string(b[from+1 : to]), state: f[0][0], threads: threads, start: string(f[19])}, true
}

// processes lists the processes in a unit's control group and all below it.
func (s *System) processes(cgroup string) ([]int, error) {
	root := s.real(cgroupDir)
	if cgroup == "" {
		return nil, s.unified()
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
			return s.unified() // the group is gone, and its processes with it
		}
		if err != nil {
			return err
		}
		pids = append(pids, found...)
		if s.childless(dir) {
			return nil
		}
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

// unified says why there is no unified tree of control groups, or nil.
func (s *System) unified() error {
	if _, err := os.Stat(s.real(filepath.Join(cgroupDir, "cgroup.controllers"))); err != nil {
		return fmt.Errorf("%s is not a unified control group tree (cgroup v2): %w", cgroupDir, bareErrno(err))
	}
	return nil
}

// childless reports whether a control group says that there is none below it
// (cgroup.stat in the kernel's Documentation/admin-guide/cgroup-v2.rst): reading
// one number is far cheaper than listing the group's many files.
func (s *System) childless(dir string) bool {
	var buf [1 << 10]byte
	data, err := readSmall(filepath.Join(dir, "cgroup.stat"), buf[:])
	return err == nil && bytes.HasPrefix(data, noDescendants)
}

var noDescendants = []byte("nr_descendants 0\n")

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
	data, err := readSmall(file, make([]byte, 4<<10))
	if err == nil && len(data) == 4<<10 {
		data, err = readAll(file, 16<<20)
	}
	if err != nil {
		return nil, err
	}
	out, err := parseIDs(data)
	if err != nil {
		return nil, fmt.Errorf("%s %w", file, err)
	}
	return out, nil
}

// parseIDs reads the numbers of processes or threads, one a line.
func parseIDs(data []byte) ([]int, error) {
	var out []int
	for w := range bytes.FieldsSeq(data) {
		n, err := strconv.Atoi(string(w))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("holds %q, which is no process", clean(string(w)))
		}
		out = append(out, n)
	}
	return out, nil
}

// carriers finds, for each of the profiles, a task of the host that carries it or
// one of its children, or will with its next exec where the kernel tells that.
// starting is a process of systemd's on its way to a program:
// it may have asked for a profile already, which cannot be told (see
// markManager), and would run unconfined if the profile went before its exec.
//
// Where systemd has to be asked for one, others come under a profile meanwhile: all labels
// are read again after that. Whoever makes new ones all the time does not hold up an unload
// so, unless systemd is slow: in the end labels will do that are older by one quick answer.
func (s *System) carriers(profiles []string) (who map[string]string, starting string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), forkedTime)
	defer cancel()
	l := s.newLook()
	defer l.done()
	strangers := map[taskID]bool{}
	for n := 1; ; n++ {
		var maybe map[string][]attach.Task
		if who, starting, maybe, err = l.carriers(profiles, strangers); err != nil || starting != "" || len(maybe) == 0 {
			return who, starting, err
		}
		begin := time.Now()
		if starting = s.forked(ctx, maybe); starting != "" {
			return who, starting, nil
		}
		if n >= maxForked {
			if time.Since(begin) > lookPause {
				starting = "systemd is slow to say what it is starting, and whether under the profile cannot be told"
			}
			return who, starting, nil
		}
		for _, tasks := range maybe {
			for _, t := range tasks {
				strangers[idOf(t, l.starts)] = true
			}
		}
	}
}

// Bounds on what systemd is asked of its processes: how long, and how often in a row. The
// time leaves some of startTime: where there is no answer all is looked at once more.
const (
	forkedTime = 2 * time.Second
	maxForked  = 3
)

// carriers is one look at the tasks of the host. maybe are those that are on their way
// to a program if systemd has forked them, by the control groups of their units;
// of strangers it is known that it has not.
func (l *look) carriers(profiles []string, strangers map[taskID]bool) (who map[string]string, starting string, maybe map[string][]attach.Task, err error) {
	names, err := readNames(l.s.real(procDir))
	if err != nil {
		return nil, "", nil, err
	}
	who, maybe = map[string]string{}, map[string][]attach.Task{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		tasks, own, err := l.process(pid, nil)
		if err != nil {
			return nil, "", nil, err
		}
		for _, t := range tasks {
			if t.Problem != "" {
				return nil, "", nil, fmt.Errorf("the label of process %d: %s", t.PID, t.Problem)
			}
			next := l.next(t)
			for _, p := range profiles {
				if who[p] == "" && (carries(t.Label, p) || carries(next, p)) {
					who[p] = fmt.Sprintf("%s (PID %d) carries %s", clean(t.Comm), t.PID, t.Label)
				}
			}
			if !own || !t.Label.IsUnconfined() {
				continue
			}
			if is, group := l.starting(t); is {
				starting = startOf(t)
			} else if group != "" && !strangers[idOf(t, l.starts)] {
				maybe[group] = append(maybe[group], t)
			}
		}
	}
	return who, starting, maybe, nil
}

func startOf(t attach.Task) string {
	return fmt.Sprintf("systemd is starting %s (PID %d), and whether under the profile cannot be told", clean(t.Comm), t.PID)
}

// forked finds among tasks, by the control groups of their units, one that systemd has
// forked itself, or may have where it does not say so. It is asked after they were seen: a
// process that it still follows then was its own before, or one that the service has named
// as its main process (see starting).
func (s *System) forked(ctx context.Context, tasks map[string][]attach.Task) (starting string) {
	for group, those := range tasks {
		pids, err := []int(nil), errNotAsked
		if s.opt.Forked != nil {
			pids, err = s.opt.Forked(ctx, group)
		}
		if err != nil {
			return fmt.Sprintf("%s (PID %d) may be one that systemd is starting: %v", clean(those[0].Comm), those[0].PID, err)
		}
		for _, t := range those {
			if slices.Contains(pids, t.PID) {
				return startOf(t)
			}
		}
	}
	return ""
}

var errNotAsked = errors.New("systemd is not asked")

// groupOfUnit is the control group of the unit in which a group lies: what comes first
// after the slices. Others than systemd can make the groups below it.
func groupOfUnit(group string) string {
	end := 0
	for name := range strings.SplitSeq(strings.TrimPrefix(group, "/"), "/") {
		end += 1 + len(name)
		if !strings.HasSuffix(name, ".slice") {
			break
		}
	}
	return group[:min(end, len(group))]
}

// starting reports whether a task that runs systemd's own executable may be PID 1's on
// its way to a service's program. Until it has taken its name it is root's; one that
// is not is the manager of a user, which is there from the login on. A service's
// process with a name may be the service's user's by then; where it is a start only if
// systemd has forked it, group is the unit's control group, for forked.
//
// What users run is below /user.slice, and so are their managers, with all that these
// start: PID 1's own are the processes of services in a slice there, of user@UID.service
// itself, which are PID 1's children, and those of services with PAMName=, which
// pam_systemd(8) has made leaders of a session. Those of a user count only where the user
// could not have made them: whoever holds up an unload keeps it up for everybody. So one
// that is not root's must be PID 1's child anywhere, as systemd's executor is too, and in no
// login: cron and at run their jobs outside of /user.slice. A service whose PAMName=
// makes a login of it without a session is taken for one when it has given up root.
// And PID 1 must follow it as the main or the control process of its unit, as it does with
// all that it forks for one (service_spawn in systemd's src/core/service.c), from the fork
// on: what a service's account leaves behind is PID 1's child as well. A service can still
// name such a one as its main process, by MAINPID= of sd_notify(3) or its PIDFile=, and hold
// up an unload for transitTime, and again with the next: no property of a unit says who
// forked its main process (org.freedesktop.systemd1(5)).
func (l *look) starting(t attach.Task) (is bool, group string) {
	named := strings.HasPrefix(t.Comm, "(")
	switch {
	case t.PID == 1, t.Comm == "(sd-pam)":
		return false, ""
	case !youngerThan(l.starts[t.PID], briefTime) && !(named && youngerThan(l.starts[t.PID], transitTime)):
		return false, ""
	}
	status, err := l.status(t.PID)
	if err != nil {
		return !gone(err), ""
	}
	root, ppid := rootOf(status), parentOf(status)
	text, err := readAll(l.dir(t.PID)+"/cgroup", 64<<10)
	if err != nil && gone(err) {
		return false, ""
	}
	in := "" // where it cannot be read: a path can be longer than the kernel gives (ENAMETOOLONG)
	if err == nil {
		in = unifiedGroup(string(text))
	}
	if !root && named && ppid == 1 && !l.login(t.PID) {
		group = groupOfUnit(in)
	}
	if !strings.HasPrefix(in, "/user.slice/") {
		return root, group
	}
	unit := unitOfGroup(in)
	switch {
	case !named:
		return false, ""
	case strings.HasPrefix(unit, "user@"):
		return root && ppid == 1, ""
	case unit != "":
		return root, group
	case parseSession(text) != "":
		return root || l.s.leadsSession(t.PID, in), ""
	}
	return false, ""
}

// login reports whether a process is of a login: pam_loginuid(8) has noted whose, as it
// does for cron, at and sshd, and no user can take that away. Where PID 1 itself has been
// started from one, as in a container, all that it starts is of the same. A kernel without
// audit has no such note, and neither do many containers: then the answer is no.
func (l *look) login(pid int) bool {
	uid, err := l.read(l.dir(pid) + "/loginuid")
	if err != nil {
		return false
	}
	its, none := string(bytes.TrimSpace(uid)), noLogin
	if uid, err := l.read(l.dir(1) + "/loginuid"); err == nil {
		none = string(bytes.TrimSpace(uid))
	}
	return its != noLogin && its != none
}

// noLogin is what proc(5) gives as the login of a process that is in none: (uid_t) -1.
const noLogin = "4294967295"

// leadsSession reports whether a process is the leader of the session whose scope its control
// group is: it is the one for which pam_systemd has made the session, and only root can
// do that. It reads what sd_session_get_leader(3) does; where that says nothing the
// answer is yes.
func (s *System) leadsSession(pid int, scope string) bool {
	id := strings.TrimSuffix(strings.TrimPrefix(path.Base(scope), "session-"), ".scope")
	text, err := readAll(s.real(filepath.Join(sessionDir, id)), 64<<10)
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(text)) {
		if leader, ok := strings.CutPrefix(strings.TrimSpace(line), "LEADER="); ok {
			return leader == strconv.Itoa(pid)
		}
	}
	return true
}

// rootOf reports whether all users of a process are root, by proc_pid_status(5).
func rootOf(status []byte) bool {
	ids := statusField(status, "Uid") // real, effective, saved, file system
	return len(ids) == 4 && !slices.ContainsFunc(ids, func(id string) bool { return id != "0" })
}

// parentOf is the parent of a process, 0 where it is in another PID namespace.
func parentOf(status []byte) int {
	parent := statusField(status, "PPid")
	if len(parent) != 1 {
		return 0
	}
	ppid, _ := strconv.Atoi(parent[0])
	return ppid
}

// next is the label that a task has asked for with its next exec; of most
// kernels no answer is to be had.
func (l *look) next(t attach.Task) attach.Label {
	text, err := l.read(fmt.Sprintf("%s/task/%d/attr/apparmor/exec", l.dir(t.PID), t.TID))
	if err != nil || len(bytes.TrimRight(text, "\n\x00")) == 0 {
		return attach.Label{}
	}
	label, _ := attach.ParseLabel(string(text))
	return label
}
