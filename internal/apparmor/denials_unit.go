package apparmor

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

const (
	// invocationDir is where systemd keeps the InvocationID of each unit that
	// runs, as the target of a symbolic link (unit_export_state_files in
	// src/core/unit.c).
	invocationDir = "/run/systemd/units"
	// clockTick is the unit of times in /proc: USER_HZ, 100 a second on every
	// architecture that Go knows.
	clockTick = time.Second / 100
	// startSlack is how much later than its record a process may seem to have
	// begun and still be the one that it is about: the record has the time of the
	// kernel's last tick. No PID comes back within so short a time: the kernel
	// gives out all others first (idr_alloc_cyclic in alloc_pid, kernel/pid.c).
	startSlack = 50 * time.Millisecond
	// askAgain is how long an answer about a process serves for its next records:
	// asking takes longer than receiving, and the kernel waits for nobody.
	askAgain = time.Second
	// maxAnswers bounds the answers that are kept for as long.
	maxAnswers = 64
)

// asker attributes records as they come. One process is often denied many things
// in a row; one that is gone by its second record may have told at its first.
type asker struct {
	s       *System
	answers []answer // the last ones, the latest at the end; one for each process
}

// answer is what a process told when it was asked.
type answer struct {
	pid                      int
	record, at               time.Time // of the record for which it was asked, and when that was
	cgroup, unit, invocation string
}

func (o answer) give(d *attach.Denial) {
	d.Cgroup, d.Unit, d.InvocationID = o.cgroup, o.unit, o.invocation
}

func (a *asker) attribute(d *attach.Denial) {
	if d.PID <= 0 || d.ByPeer() {
		return
	}
	now := time.Now()
	a.answers = slices.DeleteFunc(a.answers, func(o answer) bool { return now.Sub(o.at) > askAgain })
	i := slices.IndexFunc(a.answers, func(o answer) bool { return o.pid == d.PID })
	known := i >= 0 && !d.Time.Before(a.answers[i].record)
	if known && i == len(a.answers)-1 {
		a.answers[i].give(d)
		return
	}
	a.s.attribute(d)
	if d.Cgroup == "" && known {
		a.answers[i].give(d) // it is gone by now
		return
	}
	if i >= 0 {
		a.answers = slices.Delete(a.answers, i, i+1)
	} else if len(a.answers) == maxAnswers {
		a.answers = slices.Delete(a.answers, 0, 1)
	}
	a.answers = append(a.answers, answer{d.PID, d.Time, now, d.Cgroup, d.Unit, d.InvocationID})
}

// attribute says in which control group the denial's process runs, and in which unit
// that is: none for a session, also one for which it has left a unit (pam_systemd(8)).
// It says nothing where it could not tell: the process is gone, its number is another
// one's by now, or it is not the one whose profile refused (asker.attribute).
func (s *System) attribute(d *attach.Denial) {
	dir := filepath.Join(procDir, strconv.Itoa(d.PID))
	data, err := readAll(s.real(dir+"/cgroup"), 64<<10)
	if err != nil {
		return
	}
	group := unifiedGroup(string(data))
	unit := unitOfGroup(group)
	invocation := ""
	if unit != "" {
		invocation = s.invocation(unit)
	}
	// Last: if the process is the right one now, it was so before.
	stat, err := readAll(s.real(dir+"/stat"), 16<<10)
	if err != nil {
		return
	}
	st, ok := parseStat(stat)
	if !ok || !startedBefore(st.start, time.Now(), d.Time) {
		return
	}
	d.Cgroup, d.Unit, d.InvocationID = group, unit, invocation
}

// startedBefore reports whether a process had started when a record was written:
// start is field 22 of proc_pid_stat(5), in clock ticks since boot. Both are
// turned into ages, by a clock each: the one of the record may have been set
// since the boot.
func startedBefore(start string, now, record time.Time) bool {
	ticks, err := strconv.ParseInt(start, 10, 38) // 43 years
	var up unix.Timespec
	if err != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &up) != nil {
		return false
	}
	age := now.Sub(record)
	if age < 0 {
		return false // the clock was set back just now: anything may be
	}
	return time.Duration(up.Nano())-time.Duration(ticks)*clockTick+startSlack >= age
}

// unifiedGroup finds the control group in proc_pid_cgroup(5): the line of the
// unified hierarchy. One that was removed meanwhile is marked.
func unifiedGroup(text string) string {
	for line := range strings.Lines(text) {
		if group, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::"); ok {
			return strings.TrimSuffix(group, " (deleted)")
		}
	}
	return ""
}

// unitOfGroup gives the service whose control group it is, or lies in: what comes
// first after the slices (skip_slices and cg_path_decode_unit in systemd's
// src/basic/cgroup-util.c). Services of a user's own manager are in that
// manager's, user@UID.service.
func unitOfGroup(group string) string {
	if !strings.HasPrefix(group, "/") {
		return ""
	}
	for name := range strings.SplitSeq(group[1:], "/") {
		// systemd puts "_" before a name that cgroupfs has a use for, or that
		// begins with "_" or "." (cg_escape).
		name = strings.TrimPrefix(name, "_")
		if strings.HasSuffix(name, ".slice") {
			continue
		}
		if !strings.HasSuffix(name, ".service") {
			return ""
		}
		if unit, err := attach.UnitName(name); err == nil {
			return unit
		}
		return ""
	}
	return ""
}

// invocation reads the InvocationID of a unit, "" where it cannot be told.
func (s *System) invocation(unit string) string {
	id, err := os.Readlink(s.real(filepath.Join(invocationDir, "invocation:"+unit)))
	if err != nil || len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "" {
		return ""
	}
	return id
}
