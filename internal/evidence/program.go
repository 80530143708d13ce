package evidence

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on reading an executable.
const (
	maxProgram  = 256 << 20
	programTime = 15 * time.Second
	// maxLooks bounds the looks at the same time, and maxStuck those that did not
	// come back: each has a thread of its own. Of one unit that is one: its next look
	// would not come back either, and others are not to wait for it, or not to get theirs.
	maxLooks = 4
	maxStuck = 16
	// maxPrograms bounds the checksums that are remembered.
	maxPrograms = 512
	// racy is how long a file must have been as it is before its checksum is
	// remembered: the kernel's clock for files is that coarse, with room.
	racy = 2 * time.Second
)

// process is a process that is held on to: whatever is opened below it is of this
// very one, also when its number has become another's (proc(5): a directory of a
// process that has ended gives ESRCH). nil is none.
type process struct {
	pid int
	dir *os.File
}

// hold opens a process; nil where there is none any more.
func (k *Keeper) hold(pid int) *process {
	if pid <= 0 {
		return nil
	}
	d, err := os.OpenFile(k.real("/proc/"+strconv.Itoa(pid)), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil
	}
	return &process{pid, d}
}

func (p *process) close() {
	if p != nil {
		p.dir.Close()
	}
}

func (p *process) openat(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(p.dir.Fd()), name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: fmt.Sprintf("/proc/%d/%s", p.pid, name), Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// userHZ is the unit of times in /proc/PID/stat, on every architecture that Go
// runs on (asm-generic/param.h).
const userHZ = 100

// beganAfter reports whether the process began after a moment: then it is not the
// one that was seen at that moment, and has only got its number.
func (p *process) beganAfter(t time.Time) bool {
	f, err := p.openat("stat", unix.O_RDONLY)
	if err != nil {
		return false // it has ended, which is said elsewhere
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	// proc_pid_stat(5): the name, in parentheses, may hold anything.
	i := bytes.LastIndexByte(data, ')')
	if err != nil || i < 0 {
		return false
	}
	fields := strings.Fields(string(data[i+1:]))
	var now unix.Timespec
	if len(fields) < 20 || unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) != nil {
		return false
	}
	ticks, err := strconv.ParseInt(fields[19], 10, 64) // starttime, the 22nd field
	if err != nil {
		return false
	}
	age := time.Duration(now.Nano()) - time.Duration(ticks)*(time.Second/userHZ)
	return age+2*time.Second/userHZ < time.Since(t)
}

// programs reads executables, and remembers their checksums.
type programs struct {
	looks chan struct{} // one for each look under way
	mu    sync.Mutex
	stuck map[string]int // looks that did not come back, by unit
	done  map[fileID]sums
}

// fileID tells versions of a file apart. The time of change cannot be set by the
// file's owner.
type fileID struct {
	dev, ino     uint64
	size         int64
	mtime, ctime unix.Timespec
}

type sums struct{ sha256, buildID string }

func (p *programs) init() {
	p.looks, p.done, p.stuck = make(chan struct{}, maxLooks), map[fileID]sums{}, map[string]int{}
}

// leave counts looks at a unit's executable that are left behind, or have ended after all.
func (p *programs) leave(unit string, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stuck[unit] += n; p.stuck[unit] == 0 {
		delete(p.stuck, unit)
	}
}

// mayLook reports whether there is room for a look that may not come back.
func (p *programs) mayLook(unit string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	all := 0
	for _, n := range p.stuck {
		all += n
	}
	return p.stuck[unit] == 0 && all < maxStuck
}

// errGone: the process has ended.
var errGone = errors.New("the process has ended")

// within does for a unit what may not come back: what a file system leads to that does not
// answer. Such a look is left behind, and counts until it ends. The process is closed
// when it has ended.
func (k *Keeper) within(ctx context.Context, unit string, p *process, look func(ctx context.Context) attach.EvidenceProgram) attach.EvidenceProgram {
	if !k.programs.mayLook(unit) {
		p.close()
		return attach.EvidenceProgram{Problem: "earlier looks at executables have not ended yet"}
	}
	// Each of those before it has an end, too.
	k.programs.looks <- struct{}{}
	defer func() { <-k.programs.looks }()
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	found := make(chan attach.EvidenceProgram, 1)
	go func() {
		defer p.close()
		found <- look(ctx)
	}()
	select {
	case e := <-found:
		return e
	case <-ctx.Done():
	}
	// It may be about to say so itself.
	late := time.NewTimer(programTime / 10)
	defer late.Stop()
	select {
	case e := <-found:
		return e
	case <-late.C:
		k.programs.leave(unit, 1)
		go func() {
			<-found
			k.programs.leave(unit, -1)
		}()
		return attach.EvidenceProgram{Problem: fmt.Sprintf("it could not be read within %v", programTime)}
	}
}

// Program looks at what a process of a unit runs, of which PID, At and Path are given: path,
// checksum, build-id and package. What could not be told is in its Problem.
func (k *Keeper) Program(ctx context.Context, unit string, seen attach.EvidenceProgram) attach.EvidenceProgram {
	p := k.hold(seen.PID)
	defer p.close()
	return k.running(ctx, unit, p, seen)
}

// running looks at what a process runs. seen is what is known of it already. Should it have executed another program since, it is that one: the
// record's tasks have what they ran when their labels were read.
func (k *Keeper) running(ctx context.Context, unit string, p *process, seen attach.EvidenceProgram) attach.EvidenceProgram {
	if seen.PID == 0 {
		seen.Problem = cmp.Or(seen.Problem, "the unit has no process")
	}
	if seen.Problem != "" {
		seen.Path, seen.Problem = text(seen.Path), text(seen.Problem)
		return seen
	}
	e := attach.EvidenceProgram{Problem: errGone.Error()}
	if p != nil {
		// The process is held on to from another place, which may let go of it first.
		fd, err := unix.FcntlInt(p.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return attach.EvidenceProgram{PID: seen.PID, Path: text(seen.Path), Problem: err.Error()}
		}
		own := &process{pid: p.pid, dir: os.NewFile(uintptr(fd), "process")}
		e = k.within(ctx, unit, own, func(ctx context.Context) attach.EvidenceProgram {
			if own.beganAfter(seen.At) {
				return attach.EvidenceProgram{Problem: errGone.Error()}
			}
			return k.image(ctx, own)
		})
	}
	e.PID = seen.PID
	if e.Path == "" {
		e.Path = text(seen.Path)
	}
	return e
}

// image is the file that a process runs: /proc/PID/exe.
func (k *Keeper) image(ctx context.Context, p *process) (e attach.EvidenceProgram) {
	fail := func(err error) attach.EvidenceProgram {
		if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
			err = errGone
		}
		e.Problem = text(err.Error())
		return e
	}
	link := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(p.dir.Fd()), "exe", link)
	if err != nil {
		return fail(err)
	}
	name := string(link[:n])
	file, err := p.openat("exe", unix.O_PATH)
	if err != nil {
		return fail(err)
	}
	defer file.Close()
	e = k.measure(ctx, p, file)
	if bare, cut := strings.CutSuffix(name, " (deleted)"); cut && e.Deleted {
		name = bare
	}
	e.Path = text(name)
	if e.Problem == "" {
		k.owner(ctx, p, name, &e)
	}
	return e
}

// onDisk looks at what lies at the path of a record's executable now, as the
// process sees the path, or the host where there is no process.
func (k *Keeper) onDisk(ctx context.Context, unit string, p *process, old attach.EvidenceProgram) attach.EvidenceProgram {
	if old.Path == "" || old.SHA256 == "" {
		return attach.EvidenceProgram{Path: old.Path, Problem: "where it should be is not on record"}
	}
	if p == nil {
		return attach.EvidenceProgram{Path: old.Path, Problem: "the unit has no process, which would tell where its files are"}
	}
	fd, err := unix.FcntlInt(p.dir.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return attach.EvidenceProgram{Path: old.Path, Problem: err.Error()}
	}
	own := &process{pid: p.pid, dir: os.NewFile(uintptr(fd), "process")}
	return k.within(ctx, unit, own, func(ctx context.Context) (e attach.EvidenceProgram) {
		e.Path = old.Path
		root, err := own.openat("root", unix.O_PATH|unix.O_DIRECTORY)
		if err != nil {
			e.Problem = errGone.Error()
			return e
		}
		defer root.Close()
		// The service may have made links on the way: none leads out of its root.
		how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
		fd, err := unix.Openat2(int(root.Fd()), old.Path, &how)
		switch {
		case (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR)) && !k.sameRoot(own):
			// A program may have done that itself since: the path is from before then.
			e.Problem = "the process has a root directory of its own, and there is no such file in it"
			return e
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			e.Gone = true
			return e
		case err != nil:
			e.Problem = fmt.Sprintf("cannot open %s: %v", old.Path, err)
			return e
		}
		file := os.NewFile(uintptr(fd), path.Base(old.Path))
		defer file.Close()
		e = k.measure(ctx, own, file)
		e.Path = old.Path
		return e
	})
}

// measure gives size, checksum and build-id of a file that was opened by O_PATH,
// which asks no file system anything. Whether it is one that may not answer is
// found out before: not by statfs(2), which FUSE and NFS pass on to who may not
// answer, but by the type of its mount.
func (k *Keeper) measure(ctx context.Context, p *process, file *os.File) (e attach.EvidenceProgram) {
	if err := answering(p, file); err != nil {
		e.Problem = text(err.Error())
		return e
	}
	again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(file.Fd())), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		e.Problem = text(fmt.Sprintf("it cannot be opened: %v", errors.Unwrap(err)))
		return e
	}
	defer again.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(again.Fd()), &st); err != nil {
		e.Problem = err.Error()
		return e
	}
	e.Size, e.Deleted = st.Size, st.Nlink == 0
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		e.Problem = "it is not a regular file"
		return e
	case st.Size > maxProgram:
		e.Problem = fmt.Sprintf("it has %d bytes, at most %d are read", st.Size, maxProgram)
		return e
	}
	id := idOf(&st)
	k.programs.mu.Lock()
	s, known := k.programs.done[id]
	k.programs.mu.Unlock()
	if !known {
		if s, err = digest(ctx, again); err != nil {
			e.Problem = text(err.Error())
			return e
		}
		var after unix.Stat_t
		if err := unix.Fstat(int(again.Fd()), &after); err != nil || idOf(&after) != id {
			e.Problem = "it was changed while it was read"
			return e
		}
		if time.Since(time.Unix(id.ctime.Unix())) > racy && time.Since(time.Unix(id.mtime.Unix())) > racy {
			k.programs.mu.Lock()
			if len(k.programs.done) >= maxPrograms {
				clear(k.programs.done)
			}
			k.programs.done[id] = s
			k.programs.mu.Unlock()
		}
	}
	e.SHA256, e.BuildID = s.sha256, s.buildID
	return e
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim}
}

// answering says why the file system on which an open file lies may not answer, as the
// process has it mounted; nil where it does.
func answering(p *process, file *os.File) error {
	info, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(int(file.Fd())))
	if err != nil {
		return fmt.Errorf("cannot tell on which file system it is: %w", err)
	}
	defer info.Close()
	id, err := mountID(info)
	if err != nil {
		return err
	}
	mounts, err := p.openat("mountinfo", unix.O_RDONLY)
	if err != nil {
		return errGone
	}
	defer mounts.Close()
	m, err := mountOf(mounts, id)
	host, e := os.Open("/proc/1/mountinfo")
	if e == nil {
		defer host.Close()
	}
	if err != nil && e == nil {
		// A process sees no mounts outside of its root directory, and may have changed
		// that itself since it was started. The ids are the kernel's for all.
		if m, err = mountOf(host, id); err == nil {
			_, e = host.Seek(0, io.SeekStart)
		}
	}
	switch {
	case err != nil:
		return err
	case e != nil && m.kind == attach.Overlay:
		return fmt.Errorf("whose overlay it is on cannot be told: %w", e)
	case !m.answers(host):
		return fmt.Errorf("it is on a file system that may not answer (%s)", m.kind)
	}
	return nil
}

// digest reads a file once, within its bounds.
func digest(ctx context.Context, f *os.File) (s sums, err error) {
	h := sha256.New()
	buf := make([]byte, 256<<10)
	for total := 0; ; {
		if ctx.Err() != nil {
			return s, fmt.Errorf("it could not be read within %v", programTime)
		}
		n, err := f.Read(buf)
		h.Write(buf[:n])
		if total += n; total > maxProgram {
			return s, fmt.Errorf("it has more than %d bytes", maxProgram)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return s, fmt.Errorf("it cannot be read: %w", err)
		}
	}
	s.sha256 = hex.EncodeToString(h.Sum(nil))
	// One that cannot be read is none: the checksum counts.
	s.buildID, _ = buildID(f)
	return s, nil
}
