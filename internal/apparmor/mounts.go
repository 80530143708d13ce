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
		if len(f) < 10 || slices.IndexFunc(f[6:], func(w []byte) bool { return string(w) == "-" }) < 0 {
			return nil, fmt.Errorf("mountinfo holds the line %q", clean(string(bytes.TrimRight(line, "\n"))))
		}
		out = append(out, mount{id: string(f[0]), parent: string(f[1]), device: string(f[2]), root: octal(string(f[3])), point: octal(string(f[4]))})
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

// locate says where a path really is, as "major:minor path-on-device": it goes
// down from the root as the kernel does, from each mount to the one that is
// mounted on it along the path. A mount that another one hides, as a bind of /var
// on itself hides what lies at /var/tmp, is not come to. ok is false where the
// path is on no mount, as after a chroot(2) into a directory that is no mount
// point.
func locate(mounts []mount, p string) (where string, ok bool) {
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
		return "", false
	}
	m := mounts[best]
	rest := strings.TrimPrefix(p, strings.TrimSuffix(m.point, "/"))
	return m.device + " " + path.Join("/", m.root, rest), true
}

func under(dir, p string) bool {
	return dir == "/" || p == dir || strings.HasPrefix(p, dir+"/")
}

// tmpView says which directories a process sees as /tmp and /var/tmp.
func (s *System) tmpView(pid int) attach.TmpView {
	task := s.living(pid)
	file := filepath.Join(procDir, task, "mountinfo")
	data, err := readAll(s.real(file), maxMounts)
	if err != nil {
		return attach.TmpView{Problem: fmt.Sprintf("cannot read %s: %v", file, bareErrno(err))}
	}
	mounts, err := parseMountinfo(data)
	if err != nil {
		return attach.TmpView{Problem: fmt.Sprintf("cannot read %s: %v", file, err)}
	}
	var v attach.TmpView
	for _, dir := range []struct {
		path string
		to   *string
	}{{"/tmp", &v.Tmp}, {"/var/tmp", &v.VarTmp}} {
		if where, ok := locate(mounts, s.follow(task, dir.path)); ok {
			*dir.to = where
			continue
		}
		// Its root is no mount point: look at the directory itself.
		where, err := s.inode(task, dir.path)
		if err != nil {
			v.Problem = fmt.Sprintf("cannot tell where %s of process %d is: %v", dir.path, pid, err)
			continue
		}
		*dir.to = where
	}
	return v
}

// living is the entry of /proc where it is told what a process sees. The main thread can end
// before the others; then the kernel has no root, mounts and files of it any more (do_exit
// in kernel/exit.c), and they are told where the first of the others is.
func (s *System) living(pid int) (task string) {
	dir := strconv.Itoa(pid)
	buf := make([]byte, 1<<10)
	runs := func(task string) bool {
		stat, err := readSmall(s.real(filepath.Join(procDir, task, "stat")), buf)
		st, ok := parseStat(stat)
		return err == nil && ok && st.state != 'Z' && st.state != 'X'
	}
	if runs(dir) {
		return dir
	}
	threads, _ := readNames(s.real(filepath.Join(procDir, dir, "task")))
	for _, tid := range threads {
		if task := filepath.Join(dir, "task", tid); runs(task) {
			return task
		}
	}
	return dir
}

// tmpInodes are /tmp and /var/tmp of a process, by device and inode.
type tmpInodes struct{ tmp, varTmp inode }

type inode struct{ dev, ino uint64 }

// sharedWith reports whether one of the directories is one of the other's.
func (a tmpInodes) sharedWith(b tmpInodes) bool {
	return a.tmp == b.tmp || a.tmp == b.varTmp || a.varTmp == b.tmp || a.varTmp == b.varTmp
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
	h, ok := l.s.tmpInodes(1)
	if !ok {
		return attach.TmpView{}, nil, false
	}
	views = map[int]attach.TmpView{}
	for _, t := range tasks {
		if _, seen := views[t.PID]; seen || t.Manager {
			continue
		}
		v, ok := l.s.tmpInodes(t.PID)
		if !ok || v.sharedWith(h) || l.ended(t.PID) {
			return attach.TmpView{}, nil, false
		}
		views[t.PID] = v.view()
	}
	return h.view(), views, true
}

// tmpInodes looks at the directories as a process sees them. ok is false where
// one of them is anything but a directory below directories: a link would be
// followed from our own root.
func (s *System) tmpInodes(pid int) (v tmpInodes, ok bool) {
	root := s.real(procDir) + "/" + strconv.Itoa(pid) + "/root/"
	if v.tmp, ok = dirInode(root + "tmp"); !ok {
		return v, false
	}
	if _, ok = dirInode(root + "var"); !ok {
		return v, false
	}
	v.varTmp, ok = dirInode(root + "var/tmp")
	return v, ok
}

func dirInode(path string) (inode, bool) {
	var st unix.Stat_t
	err := unix.Fstatat(unix.AT_FDCWD, path, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	return inode{st.Dev, st.Ino}, err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// follow gives the path that a link which a process sees leads to: some have
// /var/tmp as a link to /tmp. It looks at the path's last part alone.
func (s *System) follow(task, p string) string {
	for range 8 {
		to, err := os.Readlink(s.real(filepath.Join(procDir, task, "root")) + p)
		if err != nil {
			break
		}
		if !path.IsAbs(to) {
			to = path.Join(path.Dir(p), to)
		}
		p = path.Clean(to)
	}
	return p
}

// inode identifies a directory that a process sees, for one that has changed
// its root: where it is the same directory as PID 1's, it gives what PID 1's
// mountinfo says, else the device and inode.
func (s *System) inode(task, p string) (string, error) {
	mine, err := s.statIn(task, p)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return "none", nil
	}
	if err != nil {
		return "", err
	}
	if host, err := s.statIn("1", p); err == nil && task != "1" && host.Dev == mine.Dev && host.Ino == mine.Ino {
		data, err := readAll(s.real(filepath.Join(procDir, "1", "mountinfo")), maxMounts)
		if err != nil {
			return "", err
		}
		mounts, err := parseMountinfo(data)
		if err != nil {
			return "", err
		}
		if where, ok := locate(mounts, p); ok {
			return where, nil
		}
	}
	return fmt.Sprintf("%d:%d inode %d", unix.Major(mine.Dev), unix.Minor(mine.Dev), mine.Ino), nil
}

// statIn looks at a path as a process sees it; links inside stay inside.
func (s *System) statIn(task, p string) (unix.Stat_t, error) {
	var st unix.Stat_t
	root, err := unix.Open(s.real(filepath.Join(procDir, task, "root")), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return st, err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, strings.TrimPrefix(p, "/"), &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
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
