package apparmor

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// A post is what is held open to look at a unit again: the list of its threads,
// and each thread's label. Nothing that was read is kept, only the way to it, so
// that a look at a unit whose threads are the same takes one system call for
// each of them, and not a walk through /proc.
//
// A file of /proc/PID/task/TID stands for that very thread: when the thread has
// ended, reading fails, whoever has its number by then (proc_pid_make_inode and
// get_proc_task in fs/proc keep a reference to the struct pid). So a list that
// shows the same numbers, and labels that can be read, are of the same threads.
//
// A post exists only for a unit all of whose tasks were seen to carry what is
// expected, in one control group. Whatever is not just so again is left to the
// full look.
type post struct {
	group   string
	main    [2]int // MainPID and ControlPID
	list    int    // cgroup.threads
	stat    int    // cgroup.stat
	threads map[int]thread
	pids    []int
	used    time.Time
}

type thread struct {
	task  attach.Task
	label int // attr/apparmor/current
}

// posts are those that exist, by unit.
type posts struct {
	sync.Mutex
	by    map[string]*post
	open  int // files
	swept time.Time
}

// maxPosted bounds the files that are held open for posts; other units get the
// full look each time.
const maxPosted = 4096

// unused is how long a post is kept that nobody looks at any more: the unit has
// ended, or is attached no more.
const unused = 30 * time.Minute

// take takes a unit's post out, for one who looks; nil where there is none that
// fits.
func (ps *posts) take(u attach.Unit) *post {
	ps.Lock()
	p := ps.by[u.ID]
	delete(ps.by, u.ID)
	if p != nil {
		ps.open -= p.size()
	}
	ps.Unlock()
	if p != nil && (p.group != u.ControlGroup || p.main != [2]int{u.MainPID, u.ControlPID}) {
		p.close()
		return nil
	}
	return p
}

// put gives a post back.
func (ps *posts) put(unit string, p *post) {
	ps.Lock()
	defer ps.Unlock()
	if ps.by[unit] != nil || ps.open+p.size() > maxPosted {
		p.close()
		return
	}
	if ps.by == nil {
		ps.by = map[string]*post{}
	}
	now := time.Now()
	p.used = now
	ps.by[unit] = p
	ps.open += p.size()
	if now.Sub(ps.swept) < unused {
		return
	}
	ps.swept = now
	for unit, p := range ps.by {
		if now.Sub(p.used) > unused {
			delete(ps.by, unit)
			ps.open -= p.size()
			p.close()
		}
	}
}

func (p *post) size() int { return len(p.threads) + 2 }

func (p *post) close() {
	unix.Close(p.list)
	unix.Close(p.stat)
	for _, t := range p.threads {
		unix.Close(t.label)
	}
}

// newPost opens what it takes to look at these tasks again; nil where one of
// them is not what is expected, or is not in the control group itself.
func (l *look) newPost(u attach.Unit, tasks []attach.Task) *post {
	if u.ControlGroup == "" || len(tasks) == 0 || len(tasks) > maxPosted/4 || slices.ContainsFunc(tasks, l.unexpected) {
		return nil
	}
	dir := filepath.Join(l.s.real(cgroupDir), u.ControlGroup)
	p := &post{group: u.ControlGroup, main: [2]int{u.MainPID, u.ControlPID}, threads: map[int]thread{}}
	var err error
	if p.list, err = unix.Open(filepath.Join(dir, "cgroup.threads"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return nil
	}
	if p.stat, err = unix.Open(filepath.Join(dir, "cgroup.stat"), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		unix.Close(p.list)
		return nil
	}
	for _, t := range tasks {
		fd, err := unix.Open(l.dir(t.PID)+"/task/"+strconv.Itoa(t.TID)+"/attr/apparmor/current", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			p.close()
			return nil
		}
		p.threads[t.TID] = thread{t, fd}
	}
	for _, t := range p.threads {
		p.pids = append(p.pids, t.task.PID)
	}
	slices.Sort(p.pids)
	p.pids = slices.Compact(p.pids)
	// The numbers were opened after the look. That they are still those of its
	// processes shows in their start times.
	if slices.ContainsFunc(p.pids, l.ended) {
		p.close()
		return nil
	}
	return p
}

// scan looks at the unit again, twice as Scan does, with a look at /tmp in
// between. ok is false where anything is not as it was: then it says nothing.
func (p *post) scan(l *look) (sc attach.Scan, ok bool) {
	if sc.Tasks, ok = p.tasks(l); !ok {
		return attach.Scan{}, false
	}
	host, ok := l.s.tmpInodes(1)
	if !ok {
		return attach.Scan{}, false
	}
	sc.HostTmp, sc.Tmp = host.view(), map[int]attach.TmpView{}
	for _, pid := range p.pids {
		v, ok := l.s.tmpInodes(pid)
		if !ok || v.sharedWith(host) {
			return attach.Scan{}, false
		}
		sc.Tmp[pid] = v.view()
	}
	again, ok := p.tasks(l)
	if !ok || !slices.EqualFunc(sc.Tasks, again, func(a, b attach.Task) bool { return a.TID == b.TID && a.Label.String() == b.Label.String() }) {
		return attach.Scan{}, false
	}
	sc.At, sc.Stable = time.Now(), true
	return sc, true
}

// tasks is one look at the threads.
func (p *post) tasks(l *look) (out []attach.Task, ok bool) {
	n, err := unix.Pread(p.stat, l.buf, 0)
	if err != nil || !bytes.HasPrefix(l.buf[:n], noDescendants) {
		return nil, false
	}
	// The kernel gives as much as fits: what is shorter than a page is all.
	if n, err = unix.Pread(p.list, l.buf, 0); err != nil || n <= 0 {
		return nil, false
	}
	list := l.buf[:n]
	for n >= 2<<10 && len(list) < len(l.buf) {
		if n, err = unix.Pread(p.list, l.buf[len(list):], int64(len(list))); err != nil {
			return nil, false
		}
		list = l.buf[:len(list)+n]
	}
	if len(list) == len(l.buf) {
		return nil, false
	}
	seen := 0
	for w := range bytes.FieldsSeq(list) {
		tid, err := strconv.Atoi(string(w))
		if _, known := p.threads[tid]; err != nil || !known {
			return nil, false
		}
		seen++
	}
	if seen != len(p.threads) {
		return nil, false
	}
	for _, tid := range slices.Sorted(maps.Keys(p.threads)) {
		th := p.threads[tid]
		n, err := unix.Pread(th.label, l.buf, 0)
		if err != nil || n == len(l.buf) {
			return nil, false
		}
		t := th.task
		if t.Label, err = l.parse(l.buf[:n]); err != nil || l.unexpected(t) {
			return nil, false
		}
		out = append(out, t)
	}
	slices.SortFunc(out, func(a, b attach.Task) int {
		if a.PID != b.PID {
			return a.PID - b.PID
		}
		return a.TID - b.TID
	})
	return out, true
}
