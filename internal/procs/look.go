package procs

import (
	"bufio"
	"cmp"
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
	"syscall"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on a look. What a unit's owner can make many of must not fill the memory
// of the daemon, nor keep it busy.
const (
	maxProcesses = 64     // of a unit that are listed
	maxSeen      = 4096   // of a unit that are looked at
	maxListed    = 64     // sockets of a unit
	maxThreads   = 256    // of a process whose labels are read
	maxCgroups   = 1000   // below a unit's
	maxFiles     = 65536  // open files of a unit
	maxProblems  = 8      // that are named for a unit
	maxSmall     = 64_000 // bytes of a file that is read whole
)

// Looker looks. The zero value looks at the running system.
type Looker struct {
	// Root is put before /proc, /sys and /etc; "" is the host itself.
	Root string
}

func (l *Looker) real(p string) string { return l.Root + p }

// Look reads the processes of services with their labels, and the sockets on which
// they wait for others, in the order of the units. It ends early with ctx, and says
// so of the units that it did not come to.
func (l *Looker) Look(ctx context.Context, units []attach.Unit) []attach.Sighting {
	tables := newTables(l)
	out := make([]attach.Sighting, len(units))
	for i, u := range units {
		o := &one{l: l, tables: tables, s: attach.Sighting{Unit: u.ID, Processes: []attach.Process{}, Listening: []attach.Listening{}, At: time.Now()}}
		if ctx.Err() != nil {
			o.problem("it was not looked at: " + context.Cause(ctx).Error())
		} else {
			o.look(ctx, u)
		}
		out[i] = o.s
	}
	return out
}

// one is the look at one unit.
type one struct {
	l      *Looker
	tables *tables
	s      attach.Sighting
	files  int
	groups int
}

func (o *one) problem(text string) {
	if text = clean(text); len(o.s.Problems) < maxProblems && !slices.Contains(o.s.Problems, text) {
		o.s.Problems = append(o.s.Problems, text)
	}
}

func (o *one) look(ctx context.Context, u attach.Unit) {
	pids := o.pids(u)
	if len(pids) > maxSeen {
		o.problem(fmt.Sprintf("it has %d processes, of which %d were looked at", len(pids), maxSeen))
		o.s.MoreProcesses = len(pids) - maxSeen
		pids = pids[:maxSeen]
	}
	var all []attach.Process
	found := map[attach.Listening]bool{}
	for _, pid := range pids {
		if ctx.Err() != nil {
			o.problem("the look was cut off: " + context.Cause(ctx).Error())
			break
		}
		p, at, ok := o.process(pid)
		if !ok {
			continue // it has ended
		}
		all = append(all, p)
		o.sockets(pid, at, found)
	}
	// What speaks against the service is not to be what is left out.
	slices.SortStableFunc(all, func(a, b attach.Process) int { return cmp.Compare(weight(a), weight(b)) })
	if len(all) > maxProcesses {
		o.s.MoreProcesses += len(all) - maxProcesses
		all = all[:maxProcesses]
	}
	slices.SortFunc(all, func(a, b attach.Process) int { return cmp.Compare(a.PID, b.PID) })
	o.s.Processes = append(o.s.Processes, all...)
	for s := range found {
		o.s.Listening = append(o.s.Listening, s)
	}
	slices.SortFunc(o.s.Listening, func(a, b attach.Listening) int {
		return cmp.Or(cmp.Compare(b.Reach, a.Reach), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Address, b.Address))
	})
	if n := len(o.s.Listening); n > maxListed {
		o.s.MoreListening, o.s.Listening = n-maxListed, o.s.Listening[:maxListed]
	}
}

func weight(p attach.Process) int {
	switch p.Confines {
	case attach.No:
		return 0
	case attach.Yes:
		return 2
	}
	return 1
}

// pids lists the processes of the unit's control groups, and its main and control
// process wherever they are.
func (o *one) pids(u attach.Unit) (pids []int) {
	switch {
	case u.ControlGroup == "":
	case !path.IsAbs(u.ControlGroup) || path.Clean(u.ControlGroup) != u.ControlGroup || u.ControlGroup == "/":
		o.problem(fmt.Sprintf("%q is no control group of a unit", u.ControlGroup))
	default:
		pids = o.group(filepath.Join(o.l.real("/sys/fs/cgroup"), u.ControlGroup), pids)
	}
	for _, pid := range []int{u.MainPID, u.ControlPID} {
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

func (o *one) group(dir string, pids []int) []int {
	if o.groups++; o.groups > maxCgroups {
		o.problem(fmt.Sprintf("it has more than %d control groups", maxCgroups))
		return pids
	}
	found, err := readIDs(filepath.Join(dir, "cgroup.procs"))
	if errors.Is(err, syscall.EOPNOTSUPP) {
		// In a threaded group there are only threads; each of them has the entry of a
		// process in /proc (cgroup-v2.rst, "Threads").
		found, err = readIDs(filepath.Join(dir, "cgroup.threads"))
	}
	switch {
	case gone(err):
		return pids // the group ended with its processes
	case err != nil:
		o.problem("its control group could not be read: " + err.Error())
		return pids
	}
	pids = append(pids, found...)
	entries, err := os.ReadDir(dir)
	if err != nil && !gone(err) {
		o.problem("its control groups could not be listed: " + err.Error())
	}
	for _, e := range entries {
		if e.IsDir() {
			pids = o.group(filepath.Join(dir, e.Name()), pids)
		}
	}
	return pids
}

func readIDs(file string) ([]int, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []int
	for s := bufio.NewScanner(f); ; {
		if !s.Scan() {
			return out, s.Err()
		}
		n, err := strconv.Atoi(s.Text())
		if err != nil || n < 0 {
			return out, fmt.Errorf("%s holds %q, which is no process", file, s.Text())
		}
		if n > 0 { // 0 is one of another PID namespace
			out = append(out, n)
		}
	}
}

// process reads one; ok is false for one that has ended. What else there is to be read of
// it is in the directory at.
func (o *one) process(pid int) (p attach.Process, at string, ok bool) {
	dir := filepath.Join(o.l.real("/proc"), strconv.Itoa(pid))
	p = attach.Process{PID: pid}
	at, status, err := living(dir)
	if err == nil {
		err = parseStatus(status, &p)
	}
	switch {
	case gone(err):
		return p, at, false
	case err != nil:
		p.Problem = clean(err.Error())
		return p, at, true
	}
	if exe, err := os.Readlink(filepath.Join(at, "exe")); err == nil {
		p.Exe = clean(exe)
	}
	p.Label, p.Confines, err = o.label(dir)
	switch {
	case gone(err):
		return p, at, false
	case err != nil:
		p.Problem = "its label could not be read: " + clean(err.Error())
	}
	return p, at, true
}

// living gives the directory where a process is read, and its status. The main thread can
// end before the others; then the kernel has no files, namespaces and program of it any
// more (do_exit in kernel/exit.c), and the process is read where one of the others is.
// A process that has ended does not exist.
func living(dir string) (at, status string, err error) {
	status, err = readSmall(filepath.Join(dir, "status"))
	if err != nil || !ended(status) {
		return dir, status, err
	}
	threads, err := os.ReadDir(filepath.Join(dir, "task"))
	for _, t := range threads {
		at = filepath.Join(dir, "task", t.Name())
		if status, err := readSmall(filepath.Join(at, "status")); err == nil && !ended(status) {
			return at, status, nil
		}
	}
	return dir, "", cmp.Or(err, fs.ErrNotExist)
}

// ended reports whether a status of proc(5) is that of a thread which runs no more, and was
// not waited for.
func ended(status string) bool {
	_, state, _ := strings.Cut(status, "\nState:\t")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

// parseStatus reads what is needed of /proc/PID/status: proc(5).
func parseStatus(text string, p *attach.Process) error {
	told := 0
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		value = strings.TrimSpace(value)
		var err error
		switch key {
		case "Name":
			p.Comm = clean(value)
		case "PPid":
			p.PPID, err = strconv.Atoi(value)
			told++
		case "Uid": // real, effective, saved, of files
			f := strings.Fields(value)
			if len(f) < 2 {
				return fmt.Errorf("its users are %q", value)
			}
			p.UID, err = strconv.Atoi(f[1])
			told++
		case "Threads":
			p.Threads, err = strconv.Atoi(value)
			told++
		case "CapPrm":
			var set uint64
			if set, err = strconv.ParseUint(value, 16, 64); err == nil {
				p.Capabilities = attach.DangerousCapabilities(set)
			}
			told++
		}
		if err != nil {
			return fmt.Errorf("its status has %s %q", key, value)
		}
	}
	if told < 4 {
		return errors.New("its status is not complete")
	}
	return nil
}

// label reads the labels of a process's threads, and gives the one that speaks most
// against it.
func (o *one) label(dir string) (text string, confines attach.Tri, err error) {
	tids, err := os.ReadDir(filepath.Join(dir, "task"))
	if err != nil {
		return "", attach.CouldNotTell, err
	}
	if len(tids) > maxThreads {
		err = fmt.Errorf("of its %d threads %d were looked at", len(tids), maxThreads)
		tids = tids[:maxThreads]
	}
	read := 0
	for _, tid := range tids {
		data, rerr := readSmall(filepath.Join(dir, "task", tid.Name(), "attr/apparmor/current"))
		if gone(rerr) {
			continue
		}
		if rerr != nil {
			return "", attach.CouldNotTell, rerr
		}
		read++
		l, perr := attach.ParseLabel(data)
		if perr != nil {
			return "", attach.CouldNotTell, perr
		}
		if c := attach.TriOf(!l.IsUnconfined() && l.Mode.Confines()); read == 1 || c == attach.No && confines != attach.No {
			text, confines = clean(l.String()), c
		}
	}
	if read == 0 {
		if _, err := os.Stat(filepath.Join(dir, "task")); gone(err) {
			return "", attach.CouldNotTell, fs.ErrNotExist
		}
		return "", attach.CouldNotTell, errors.New("the kernel has none to tell: is AppArmor on?")
	}
	if err != nil && confines == attach.Yes {
		confines = attach.CouldNotTell // the others may say otherwise
	}
	return text, confines, err
}

// sockets finds those that a process holds and that wait for others; it is read in dir.
func (o *one) sockets(pid int, dir string, found map[attach.Listening]bool) {
	net, err := os.Readlink(filepath.Join(dir, "ns/net"))
	if gone(err) {
		return
	}
	if err != nil {
		o.problem(fmt.Sprintf("the network of process %d could not be told: %v", pid, err))
	}
	fd, err := os.Open(filepath.Join(dir, "fd"))
	if err != nil {
		if !gone(err) {
			o.problem(fmt.Sprintf("the open files of process %d could not be read: %v", pid, err))
		}
		return
	}
	defer fd.Close()
	for {
		names, err := fd.Readdirnames(256)
		for _, name := range names {
			if o.files++; o.files > maxFiles {
				o.problem(fmt.Sprintf("it has more than %d open files", maxFiles))
				return
			}
			to, err := os.Readlink(filepath.Join(dir, "fd", name))
			if err != nil {
				continue // closed meanwhile
			}
			number, is := strings.CutPrefix(to, "socket:[")
			if !is {
				continue
			}
			inode, err := strconv.ParseUint(strings.TrimSuffix(number, "]"), 10, 64)
			if err != nil {
				continue
			}
			for _, s := range o.tables.find(dir, net, inode, o.problem) {
				found[s] = true
			}
		}
		if err != nil {
			if !errors.Is(err, io.EOF) && !gone(err) {
				o.problem(fmt.Sprintf("the open files of process %d could not be listed: %v", pid, err))
			}
			return
		}
	}
}

// gone reports whether an error is that what was looked at has ended.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) || errors.Is(err, syscall.ENODEV)
}

func readSmall(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSmall))
	return string(data), err
}
