package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// mount is a line of mountinfo: what of a device is seen where.
type mount struct {
	id, parent string
	device     string // "major:minor"
	root       string // path on the device
	point      string // path in the process's view
	kind       string // type of the file system
	readOnly   bool
}

// maxMounts bounds a process's mountinfo.
const maxMounts = 16 << 20

// parseMountinfo reads proc_pid_mountinfo(5): mount points are as the process
// sees them from its own root; space, tab, line break and backslash are octal.
// A line that does not have the form makes the whole unreadable, since it could
// be the one that counts.
func parseMountinfo(data []byte) ([]mount, error) {
	var out []mount
	for line := range bytes.Lines(data) {
		f := bytes.Fields(line)
		end := -1
		if len(f) >= 10 {
			end = slices.IndexFunc(f[6:], func(w []byte) bool { return string(w) == "-" })
		}
		if end < 0 {
			return nil, fmt.Errorf("mountinfo holds the line %q", clean(string(bytes.TrimRight(line, "\n"))))
		}
		m := mount{id: string(f[0]), parent: string(f[1]), device: string(f[2]), root: octal(string(f[3])), point: octal(string(f[4]))}
		m.readOnly = slices.Contains(strings.Split(string(f[5]), ","), "ro")
		if kind := 6 + end + 1; kind < len(f) {
			m.kind = string(f[kind])
		}
		out = append(out, m)
	}
	return out, nil
}

// octal decodes \ooo.
func octal(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && s[i+1] <= '3' && isOctal(s[i+1]) && isOctal(s[i+2]) && isOctal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func isOctal(c byte) bool { return c >= '0' && c <= '7' }

// locate says where a path really is, as "major:minor path-on-device". ok is false where
// the path is on no mount, as after a chroot(2) into a directory that is no mount
// point.
func locate(mounts []mount, p string) (where string, ok bool) {
	m, ok := mountAt(mounts, p)
	if !ok {
		return "", false
	}
	rest := strings.TrimPrefix(p, strings.TrimSuffix(m.point, "/"))
	return m.device + " " + path.Join("/", m.root, rest), true
}

// mountAt finds the mount on which a path is: it goes
// down from the root as the kernel does, from each mount to the one that is
// mounted on it along the path. A mount that another one hides, as a bind of /var
// on itself hides what lies at /var/tmp, is not come to.
func mountAt(mounts []mount, p string) (m mount, ok bool) {
	known := map[string]bool{}
	for _, m := range mounts {
		known[m.id] = true
	}
	best := -1
	for range mounts {
		next := -1
		for i, m := range mounts {
			on := best >= 0 && m.parent == mounts[best].id && m.id != m.parent || best < 0 && (!known[m.parent] || m.parent == m.id)
			if on && under(m.point, p) && (next < 0 || len(m.point) <= len(mounts[next].point)) {
				next = i
			}
		}
		if next < 0 {
			break
		}
		best = next
	}
	if best < 0 {
		return mount{}, false
	}
	return mounts[best], true
}

func under(dir, p string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// maxHeld bounds how many processes of a unit without a main process are asked.
const maxHeld = 256

// MainProcess looks at the main process of a unit. Where it has none, as after a fork of
// which systemd cannot guess whose it is, all its processes must do: tasks are those that
// were just seen of it. One that ended since is not asked.
func (s *System) MainProcess(u attach.Unit, tasks []attach.Task) (p attach.MainProcess) {
	if u.MainPID != 0 {
		return s.heldTo(u.MainPID, u.Settings)
	}
	var pids []int
	for _, t := range tasks {
		switch {
		case t.Manager, slices.Contains(pids, t.PID):
			continue
		case t.PID <= 0, len(pids) == maxHeld:
			return attach.MainProcess{}
		}
		pids = append(pids, t.PID)
	}
	first := true
	for _, pid := range pids {
		q := s.heldTo(pid, u.Settings)
		if _, lives := s.livesAt(pid); !lives {
			continue
		}
		if !first {
			q = p.And(q)
		}
		p, first = q, false
	}
	return p
}

// heldTo looks at what a process may do, and whether it sees /sys/fs/cgroup read-only or
// only a part of it, as ProtectControlGroups= has it.
func (s *System) heldTo(pid int, settings attach.Settings) attach.MainProcess {
	task := s.living(pid)
	status, err := readAll(s.real(filepath.Join(procDir, task, "status")), maxStatus)
	if err != nil {
		return attach.MainProcess{}
	}
	p := attach.MainProcessOf(string(status))
	if !settings.ProtectControlGroups {
		return p
	}
	if mounts, err := s.mounts(task); err == nil {
		if m, ok := mountAt(mounts, cgroupDir); ok {
			p.GroupsClosed = attach.TriOf(m.readOnly || m.root != "/")
		}
	}
	return p
}

// maxStatus bounds a process's status file, which has all its groups.
const maxStatus = 1 << 20

// tmpView says which directories a process sees as /tmp and /var/tmp.
func (s *System) tmpView(pid int) attach.TmpView {
	task := s.living(pid)
	mounts, err := s.mounts(task)
	if err != nil {
		return attach.TmpView{Problem: fmt.Sprintf("cannot read %s: %v", filepath.Join(procDir, task, "mountinfo"), bareErrno(err))}
	}
	answers := s.answering(pid, mounts)
	var v attach.TmpView
	for _, dir := range []struct {
		path string
		to   *string
	}{{"/tmp", &v.Tmp}, {"/var/tmp", &v.VarTmp}} {
		p, found, err := s.find(task, dir.path, answers)
		on, ok := mountAt(mounts, p)
		if errors.Is(err, errMayNotAnswer) && on.point != p {
			// Only of a mount is it known where it leads.
			v.Problem = fmt.Sprintf("cannot tell where %s of process %d is: %v", dir.path, pid, err)
			continue
		}
		if ok {
			*dir.to, _ = locate(mounts, p)
			continue
		}
		// Its root is no mount point: look at the directory itself.
		where, err := s.inode(pid, dir.path, found, err)
		if err != nil {
			v.Problem = fmt.Sprintf("cannot tell where %s of process %d is: %v", dir.path, pid, err)
			continue
		}
		*dir.to = where
	}
	return v
}

// errMayNotAnswer: a directory is on a file system that asks another machine or a process.
// Whoever looks up a name in it may wait for ever, and cannot be killed.
var errMayNotAnswer = errors.New("it is on a file system that may not answer")

// answering gives what tells of open directories of a process, which has these mounts,
// whether their file systems answer. Those that PID 1 has at /, /var, /tmp and /var/tmp
// have to. nil is PID 1 itself.
func (s *System) answering(pid int, mounts []mount) func(dir int) bool {
	if pid == 1 {
		return nil
	}
	host, known := s.tmpInodes(1, nil, nil)
	return func(dir int) bool {
		x, err := statBelow(dir, "")
		on := mountOf(x)
		return err == nil && (known && host.has(on.dev) || s.answers(mounts, on))
	}
}

// answers reports whether a file system answers that a process, which has these mounts,
// sees over one. An overlay is the administrator's where PID 1 has it, too. A block device
// proves nothing: ntfs-3g has one (fuseblk), and so has what several machines share (gfs2,
// ocfs2). It decides only of a mount that neither has, as one outside of the root of the
// process.
func (s *System) answers(mounts []mount, on onMount) bool {
	device := fmt.Sprintf("%d:%d", unix.Major(on.dev), unix.Minor(on.dev))
	id := strconv.FormatUint(on.id, 10)
	i := slices.IndexFunc(mounts, func(m mount) bool { return m.id == id })
	if i >= 0 {
		if m := mounts[i]; m.kind != attach.Overlay {
			return attach.LocalType(m.kind)
		}
		device = mounts[i].device
	}
	hosts, err := s.mounts("1")
	if err != nil {
		return false
	}
	hosts = slices.DeleteFunc(hosts, func(m mount) bool { return m.device != device })
	if len(hosts) == 0 {
		return i < 0 && unix.Major(on.dev) != 0
	}
	return slices.ContainsFunc(hosts, func(m mount) bool { return m.kind == attach.Overlay || attach.LocalType(m.kind) })
}

// mounts reads the mounts of a process, by its entry of /proc.
func (s *System) mounts(task string) ([]mount, error) {
	data, err := readAll(s.real(filepath.Join(procDir, task, "mountinfo")), maxMounts)
	if err != nil {
		return nil, err
	}
	return parseMountinfo(data)
}

// onMount is a mount, by its ID in mountinfo, and the device of its file system.
type onMount struct{ id, dev uint64 }

func mountOf(x unix.Statx_t) onMount { return onMount{x.Mnt_id, unix.Mkdev(x.Dev_major, x.Dev_minor)} }

// living is the entry of /proc where it is told what a process sees. The main thread can end
// before the others; then the kernel has no root, mounts and files of it any more (do_exit
// in kernel/exit.c), and they are told where the first of the others is.
func (s *System) living(pid int) (task string) {
	task, _ = s.livesAt(pid)
	return task
}

// livesAt is living; ok is false where the process has ended.
func (s *System) livesAt(pid int) (task string, ok bool) {
	dir := strconv.Itoa(pid)
	buf := make([]byte, 1<<10)
	runs := func(task string) bool {
		stat, err := readSmall(s.real(filepath.Join(procDir, task, "stat")), buf)
		st, ok := parseStat(stat)
		return err == nil && ok && st.state != 'Z' && st.state != 'X'
	}
	if runs(dir) {
		return dir, true
	}
	threads, _ := readNames(s.real(filepath.Join(procDir, dir, "task")))
	for _, tid := range threads {
		if task := filepath.Join(dir, "task", tid); runs(task) {
			return task, true
		}
	}
	return dir, false
}

// tmpInodes are /tmp and /var/tmp of a process, by device and inode, and the devices of /
// and /var.
type tmpInodes struct {
	tmp, varTmp inode
	root, above uint64
}

type inode struct{ dev, ino uint64 }

// sharedWith reports whether one of the directories is one of the other's.
func (a tmpInodes) sharedWith(b tmpInodes) bool {
	return a.tmp == b.tmp || a.tmp == b.varTmp || a.varTmp == b.tmp || a.varTmp == b.varTmp
}

// has reports whether one of the directories is on a device.
func (a tmpInodes) has(dev uint64) bool {
	return dev == a.root || dev == a.above || dev == a.tmp.dev || dev == a.varTmp.dev
}

func (a tmpInodes) view() attach.TmpView {
	text := func(i inode) string {
		return strconv.FormatUint(i.dev, 16) + " inode " + strconv.FormatUint(i.ino, 10)
	}
	return attach.TmpView{Tmp: text(a.tmp), VarTmp: text(a.varTmp)}
}

// privateTmp looks whether all processes but systemd's own see other directories
// as /tmp and /var/tmp than PID 1 does, by device and inode. That is the usual
// case, and far cheaper than the mount tables, which are read, for a full answer,
// where private is false: it is not so, or could not be told.
func (l *look) privateTmp(tasks []attach.Task) (host attach.TmpView, views map[int]attach.TmpView, private bool) {
	h, ok := l.s.tmpInodes(1, nil, nil)
	if !ok {
		return attach.TmpView{}, nil, false
	}
	views = map[int]attach.TmpView{}
	for _, t := range tasks {
		if _, seen := views[t.PID]; seen || t.Manager {
			continue
		}
		v, ok := l.s.tmpInodes(t.PID, &h, l.local)
		if !ok || v.sharedWith(h) || l.ended(t.PID) {
			return attach.TmpView{}, nil, false
		}
		views[t.PID] = v.view()
	}
	return h.view(), views, true
}

// tmpInodes looks at the directories as a process sees them. ok is false where
// one of them is anything but a directory below directories: a link would be
// followed from our own root. It is false, too, where a name would be looked up on a file
// system that may not answer: of one that has no block device and is none of the
// host's, by its directories, the mounts must be asked first. Of one that has a block
// device its mount is asked once, and local is told. A host of nil is for the host itself.
func (s *System) tmpInodes(pid int, host *tmpInodes, local map[onMount]bool) (v tmpInodes, ok bool) {
	root, err := unix.Open(s.real(procDir)+"/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return v, false
	}
	defer unix.Close(root)
	enter := func(dir int) (dev uint64, ok bool) {
		x, err := statBelow(dir, "")
		on := mountOf(x)
		return on.dev, err == nil && x.Mode&unix.S_IFMT == unix.S_IFDIR && (host == nil || host.has(on.dev) || s.enters(pid, on, local))
	}
	if v.root, ok = enter(root); !ok {
		return v, false
	}
	if v.tmp, ok = dirInode(root, "tmp"); !ok {
		return v, false
	}
	above, err := unix.Openat(root, "var", unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return v, false
	}
	defer unix.Close(above)
	if v.above, ok = enter(above); !ok {
		return v, false
	}
	v.varTmp, ok = dirInode(above, "tmp")
	return v, ok
}

// enters reports whether a file system answers that is none of the host's, by its
// directories, and that a process sees over a mount.
func (s *System) enters(pid int, on onMount, local map[onMount]bool) bool {
	if unix.Major(on.dev) == 0 {
		return false
	}
	yes, known := local[on]
	if !known {
		mounts, err := s.mounts(s.living(pid))
		yes = err == nil && s.answers(mounts, on)
		local[on] = yes
	}
	return yes
}

// dirInode looks at a directory below an open one, "" that one itself. Of what is found
// there nobody is asked anything (see statOf).
func dirInode(dir int, name string) (inode, bool) {
	x, err := statBelow(dir, name)
	return inode{unix.Mkdev(x.Dev_major, x.Dev_minor), x.Ino}, err == nil && x.Mode&unix.S_IFMT == unix.S_IFDIR
}

func statBelow(dir int, name string) (x unix.Statx_t, err error) {
	const flags = unix.AT_EMPTY_PATH | unix.AT_SYMLINK_NOFOLLOW | unix.AT_NO_AUTOMOUNT | unix.AT_STATX_DONT_SYNC
	for {
		if err = unix.Statx(dir, name, flags, unix.STATX_INO|unix.STATX_TYPE|unix.STATX_MNT_ID, &x); !errors.Is(err, unix.EINTR) {
			return x, err
		}
	}
}

// maxLinks is how many links there may be on a way (MAXSYMLINKS of the kernel).
const maxLinks = 40

// find follows a path as a process sees it: some have /var/tmp as a link to /tmp. It gives
// the path without links, as far as it came, and what is there. No name is looked up
// in a directory that does not answer; nil is for one of whose directories all have to.
func (s *System) find(task, p string, answers func(dir int) bool) (real string, at inode, err error) {
	root, err := unix.Open(s.real(filepath.Join(procDir, task, "root")), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return p, at, err
	}
	way := []int{root} // open directories, with the names of all but the first
	var names []string
	leave := func(n int) {
		for _, fd := range way[n:] {
			unix.Close(fd)
		}
		way, names = way[:n], names[:max(0, n-1)]
	}
	defer func() { leave(0) }()
	links := 0
	for todo := strings.Split(p, "/"); len(todo) > 0; {
		part := todo[0]
		ahead := path.Join("/", path.Join(names...), path.Join(todo...))
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			leave(max(1, len(way)-1))
			continue
		}
		dir := way[len(way)-1]
		if answers != nil && !answers(dir) {
			return ahead, at, errMayNotAnswer
		}
		fd, err := unix.Openat(dir, part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return ahead, at, err
		}
		way, names = append(way, fd), append(names, part)
		x, err := statBelow(fd, "")
		if err != nil {
			return ahead, at, err
		}
		if x.Mode&unix.S_IFMT != unix.S_IFLNK {
			continue
		}
		target := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", target)
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			return ahead, at, err
		}
		leave(len(way) - 1)
		to := string(target[:n])
		if path.IsAbs(to) {
			leave(1)
		}
		todo = append(strings.Split(to, "/"), todo...)
	}
	real = path.Join("/", path.Join(names...))
	at, ok := dirInode(way[len(way)-1], "")
	if !ok {
		return real, at, unix.ENOTDIR
	}
	return real, at, nil
}

// inode identifies a directory that a process sees, which find has given, for one that has
// changed its root: where it is the same directory as PID 1's, it gives what PID 1's
// mountinfo says, else the device and inode.
func (s *System) inode(pid int, p string, mine inode, err error) (string, error) {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "none", nil
	}
	if err != nil {
		return "", err
	}
	if real, host, err := s.find("1", p, nil); err == nil && pid != 1 && host == mine {
		mounts, err := s.mounts("1")
		if err != nil {
			return "", err
		}
		if where, ok := locate(mounts, real); ok {
			return where, nil
		}
	}
	return fmt.Sprintf("%d:%d inode %d", unix.Major(mine.dev), unix.Minor(mine.dev), mine.ino), nil
}

// maxOpen bounds what OpenInTmp lists.
const maxOpen = 100

// OpenInTmp lists files and sockets in the host's /tmp and /var/tmp that the
// unit's tasks have open, sorted, at most a hundred. A process that has its own
// /tmp has none there.
func (s *System) OpenInTmp(ctx context.Context, u attach.Unit) []string {
	l := s.newLook()
	tasks, _ := l.tasks(u)
	host := s.tmpView(1)
	found := map[string]bool{}
	last := 0
	for _, t := range tasks {
		if ctx.Err() != nil || len(found) >= maxOpen {
			break
		}
		if t.PID == last || t.PID <= 0 {
			continue
		}
		last = t.PID
		v := s.tmpView(t.PID)
		var dirs []string
		if v.Tmp != "" && v.Tmp == host.Tmp {
			dirs = append(dirs, "/tmp/")
		}
		if v.VarTmp != "" && v.VarTmp == host.VarTmp {
			dirs = append(dirs, "/var/tmp/")
		}
		if len(dirs) > 0 {
			s.openIn(t.PID, dirs, found)
		}
	}
	out := make([]string, 0, len(found))
	for p := range found {
		out = append(out, p)
	}
	slices.Sort(out)
	return out[:min(len(out), maxOpen)]
}

func (s *System) openIn(pid int, dirs []string, found map[string]bool) {
	dir := s.real(filepath.Join(procDir, s.living(pid)))
	fds, err := readNames(filepath.Join(dir, "fd"))
	if err != nil {
		return
	}
	inside := func(p string) bool {
		return slices.ContainsFunc(dirs, func(d string) bool { return strings.HasPrefix(p, d) })
	}
	var sockets []string
	for _, fd := range fds {
		to, err := os.Readlink(filepath.Join(dir, "fd", fd))
		switch {
		case err != nil:
		case strings.HasPrefix(to, "socket:["):
			sockets = append(sockets, strings.TrimSuffix(strings.TrimPrefix(to, "socket:["), "]"))
		case inside(to) && !strings.HasSuffix(to, " (deleted)"):
			found[clean(to)] = true
		}
	}
	if len(sockets) == 0 {
		return
	}
	// proc_net(5): Num RefCount Protocol Flags Type St Inode Path.
	data, err := readAll(filepath.Join(dir, "net", "unix"), 16<<20)
	if err != nil {
		return
	}
	for line := range bytes.Lines(data) {
		f := strings.SplitN(strings.Join(strings.Fields(string(line)), " "), " ", 8)
		if len(f) == 8 && inside(f[7]) && slices.Contains(sockets, f[6]) {
			found[clean(f[7])] = true
		}
	}
}
