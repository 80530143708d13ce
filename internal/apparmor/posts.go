package apparmor

import (
	"bytes"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// A post is what is held open to look at a unit again: the list of its threads,
// and each thread's label. Nothing that was read is kept, only the way to it, and of
// mounts what cannot change as long as they are there (look.local), so
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
	main    [2]int       // MainPID and ControlPID
	list    int          // cgroup.threads
	stat    int          // cgroup.stat
	threads []thread     // in the order of PID and TID
	tids    map[int]bool // of threads
	pids    []int
	local   map[onMount]bool // as in look
	used    time.Time
}

type thread struct {
	task  attach.Task // as it was when the post was made; its label is read each time
	label int         // attr/apparmor/current
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

// put gives a post back, which was used at that time.
func (ps *posts) put(unit string, p *post, now time.Time) {
	ps.Lock()
	defer ps.Unlock()
	if ps.by[unit] != nil || ps.open+p.size() > maxPosted {
		p.close()
		return
	}
	if ps.by == nil {
		ps.by = map[string]*post{}
	}
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
	p := &post{group: u.ControlGroup, main: [2]int{u.MainPID, u.ControlPID}, tids: map[int]bool{}, local: l.local}
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
		p.threads = append(p.threads, thread{t, fd})
		p.tids[t.TID] = true
		if n := len(p.pids); n == 0 || p.pids[n-1] != t.PID {
			p.pids = append(p.pids, t.PID)
		}
	}
	// The numbers were opened after the look. That they are still those of its
	// processes shows in their start times.
	if slices.ContainsFunc(p.pids, l.ended) {
		p.close()
		return nil
	}
	return p
}

// Rescan looks again at units all of whose tasks carried what they should when
// they were last looked at, and gives those of which it can tell that it is still
// so; the others are left out, and need a Scan. It starts nothing and waits for
// nothing but the kernel.
func (s *System) Rescan(units []attach.Unit) map[string]attach.Scan {
	// What is seen later is not said to have been seen later.
	at := time.Now()
	host, ok := s.tmpInodes(1, nil, nil)
	if !ok {
		return nil
	}
	found := make([]attach.Scan, len(units))
	var workers sync.WaitGroup
	var next atomic.Int64
	for range min(len(units), runtime.GOMAXPROCS(0)) {
		workers.Go(func() {
			look := s.newLook()
			defer look.done()
			for {
				i := int(next.Add(1)) - 1
				if i >= len(units) {
					return
				}
				look.expected = units[i].Settings.Profile
				found[i], _ = s.rescan(look, units[i], host, at)
			}
		})
	}
	workers.Wait()
	if again, ok := s.tmpInodes(1, nil, nil); !ok || again != host {
		return nil
	}
	out := make(map[string]attach.Scan, len(units))
	for i, sc := range found {
		if sc.Stable {
			out[units[i].ID] = sc
		}
	}
	return out
}

// rescan looks at a unit by its post, if there is one. ok is false where there is
// none, and where anything is not as it was.
func (s *System) rescan(l *look, u attach.Unit, host tmpInodes, at time.Time) (sc attach.Scan, ok bool) {
	p := s.posts.take(u)
	if p == nil {
		return attach.Scan{}, false
	}
	if sc, ok = p.scan(l, host); !ok {
		p.close()
		return attach.Scan{}, false
	}
	sc.At = at
	s.posts.put(u.ID, p, at)
	return sc, true
}

// scan looks at the unit again, twice as Scan does, with a look at /tmp in
// between. ok is false where anything is not as it was: then it says nothing.
func (p *post) scan(l *look, host tmpInodes) (sc attach.Scan, ok bool) {
	sc.Tasks = make([]attach.Task, len(p.threads))
	for i, th := range p.threads {
		sc.Tasks[i] = th.task
	}
	if !p.read(l, func(i int, label attach.Label) bool {
		sc.Tasks[i].Label = label
		return !l.unexpected(sc.Tasks[i])
	}) {
		return attach.Scan{}, false
	}
	sc.HostTmp, sc.Tmp = host.view(), make(map[int]attach.TmpView, len(p.pids))
	for _, pid := range p.pids {
		v, ok := l.s.tmpInodes(pid, &host, p.local)
		if !ok || v.sharedWith(host) {
			return attach.Scan{}, false
		}
		sc.Tmp[pid] = v.view()
	}
	if !p.read(l, func(i int, label attach.Label) bool { return label.Equal(sc.Tasks[i].Label) }) {
		return attach.Scan{}, false
	}
	sc.Stable = true
	return sc, true
}

// read is one look at the threads: that there are these and no others, and for
// each of them what label says of the label that it carries.
func (p *post) read(l *look, label func(i int, label attach.Label) bool) bool {
	n, err := unix.Pread(p.stat, l.buf, 0)
	if err != nil || !bytes.HasPrefix(l.buf[:n], noDescendants) {
		return false
	}
	// The kernel gives as much as fits: what is shorter than a page is all.
	if n, err = unix.Pread(p.list, l.buf, 0); err != nil || n <= 0 {
		return false
	}
	list := l.buf[:n]
	for n >= 2<<10 && len(list) < len(l.buf) {
		if n, err = unix.Pread(p.list, l.buf[len(list):], int64(len(list))); err != nil {
			return false
		}
		list = l.buf[:len(list)+n]
	}
	if len(list) == len(l.buf) {
		return false
	}
	seen := 0
	for w := range bytes.FieldsSeq(list) {
		tid, err := strconv.Atoi(string(w))
		if err != nil || !p.tids[tid] {
			return false
		}
		seen++
	}
	if seen != len(p.threads) {
		return false
	}
	if len(p.threads) < manyThreads {
		return p.labels(l, 0, len(p.threads), label)
	}
	// A processor each for a part of them.
	var workers sync.WaitGroup
	var failed atomic.Bool
	n = runtime.GOMAXPROCS(0)
	part := (len(p.threads) + n - 1) / n
	for from := 0; from < len(p.threads); from += part {
		workers.Go(func() {
			own := l.s.newLook()
			defer own.done()
			if !p.labels(own, from, min(from+part, len(p.threads)), label) {
				failed.Store(true)
			}
		})
	}
	workers.Wait()
	return !failed.Load()
}

// manyThreads are worth more than one processor.
const manyThreads = 64

// labels reads the labels of some of the threads. label may be called for several
// of them at once.
func (p *post) labels(l *look, from, to int, label func(i int, label attach.Label) bool) bool {
	for i := from; i < to; i++ {
		n, err := unix.Pread(p.threads[i].label, l.buf, 0)
		if err != nil || n == len(l.buf) {
			return false
		}
		found, err := l.parse(l.buf[:n])
		if err != nil || !label(i, found) {
			return false
		}
	}
	return true
}
