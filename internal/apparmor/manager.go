package apparmor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/safefile"
)

// systemdExecutor is the program that systemd 255 and later start to become a
// service's process (systemd-executor(8) is internal and has no page).
const systemdExecutor = "/usr/lib/systemd/systemd-executor"

// Bounds on what is known of systemd's own executables.
const (
	maxOwnFiles = 16 // an upgrade brings two
	maxOwnText  = 64 << 10
	// searchAgain is how long it is believed that PID 1 does not hold its executor.
	searchAgain = 10 * time.Second
)

// ownFile is an executable of systemd's: PID 1's, or its executor.
//
// An upgrade puts new files in the place of both. What runs the old ones goes on: the
// (sd-pam) of a unit as long as the unit does, PID 1 until it executes itself anew, and
// until then its executor, which systemd 257 opens when it starts and holds
// (manager_new in src/core/manager.c). So what was seen once counts until the next
// boot.
//
// The number of an inode is given out again, but not while a process runs the file. A
// remembered one could stand for another file after the last of these has ended. It
// counts only for a process whose file has the name that this one had, is root's and
// nobody else's to write, and was deleted as well: one that is in its place is found
// there. Who can bring about all that need not pass for systemd.
type ownFile struct {
	fileID
	name    string // the last part of its path
	present bool   // PID 1 has it, or it is the executor now
}

// keptOwn is one as it is on disk.
type keptOwn struct {
	Name  string `json:"name"`
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Inode uint64 `json:"inode"`
}

// ownFiles are those of this boot, the latest at the end.
type ownFiles struct {
	sync.Mutex
	read bool
	seen []ownFile
	// held is the descriptor at which PID 1 held its executor, "" not known; it was
	// last looked for in vain at searched, in the PID 1 that ran searchedIn.
	held       string
	searched   time.Time
	searchedIn fileID
}

// own lists systemd's own executables, and remembers those that are new.
func (s *System) own() []ownFile {
	o := &s.systemd
	o.Lock()
	defer o.Unlock()
	if !o.read {
		o.read = true
		o.seen = s.readOwn()
	}
	for i := range o.seen {
		o.seen[i].present = false
	}
	learned := false
	var unsafe []ownFile // they count as long as they are there
	found := func(name string, st fileStat, ok bool) {
		f := ownFile{st.fileID, name, true}
		same := func(g ownFile) bool { return g.name == f.name && g.fileID == f.fileID }
		i := slices.IndexFunc(o.seen, same)
		switch {
		case !ok:
		case !s.onlyRoots(st):
			unsafe = append(unsafe, f)
		case i >= 0:
			o.seen[i].present = true
		default:
			o.seen, learned = append(o.seen, f), true
		}
	}
	manager := s.real(filepath.Join(procDir, "1", "exe"))
	exe, ok := statOf(manager)
	if to, err := os.Readlink(manager); err == nil {
		name, _ := ownName(to)
		found(name, exe, ok)
	}
	held, ok := s.heldExecutor(exe)
	found(path.Base(systemdExecutor), held, ok)
	st, ok := statOf(s.real(systemdExecutor))
	found(path.Base(systemdExecutor), st, ok)
	for len(o.seen) > maxOwnFiles {
		i := slices.IndexFunc(o.seen, func(f ownFile) bool { return !f.present })
		o.seen = slices.Delete(o.seen, i, i+1)
	}
	if learned {
		s.keepOwn(o.seen)
	}
	return slices.Concat(o.seen, unsafe)
}

// ownName is the name of an executable, by what the kernel says of it, and whether it
// was deleted.
func ownName(exe string) (name string, deleted bool) {
	name, _, _ = strings.Cut(path.Base(exe), " ")
	return name, strings.HasSuffix(exe, " (deleted)")
}

// isOwn reports whether a process runs one of the files: exe is what the kernel says of
// its executable, and link the way to it.
func (s *System) isOwn(files []ownFile, exe, link string) bool {
	// By name first, which the kernel knows of every file.
	name, deleted := ownName(exe)
	named := func(f ownFile) bool { return f.name == name }
	if !slices.ContainsFunc(files, named) {
		return false
	}
	st, ok := statOf(link)
	return ok && slices.ContainsFunc(files, func(f ownFile) bool {
		return named(f) && f.fileID == st.fileID && (f.present || deleted && s.onlyRoots(st))
	})
}

// heldExecutor finds the executor that PID 1 holds open. Services can have systemd keep
// open files for them (FDSTORE= in sd_notify(3)), so it is one that root alone can
// change, where the executor lies, and on the file system of PID 1's own executable.
// s.systemd is locked.
func (s *System) heldExecutor(exe fileStat) (st fileStat, ok bool) {
	o := &s.systemd
	dir := s.real(filepath.Join(procDir, "1", "fd"))
	is := func(fd string) bool {
		to, err := os.Readlink(filepath.Join(dir, fd))
		if err != nil || strings.TrimSuffix(to, " (deleted)") != s.real(systemdExecutor) {
			return false
		}
		st, ok = statOf(filepath.Join(dir, fd))
		return ok && s.onlyRoots(st) && st.major == exe.major && st.minor == exe.minor
	}
	if o.held != "" && is(o.held) {
		return st, true
	}
	o.held = ""
	if o.searchedIn == exe.fileID && time.Since(o.searched) < searchAgain {
		return fileStat{}, false
	}
	names, err := readNames(dir)
	if i := slices.IndexFunc(names, is); err == nil && i >= 0 {
		o.held = names[i]
		return st, true
	}
	o.searched, o.searchedIn = time.Now(), exe.fileID
	return fileStat{}, false
}

// onlyRoots reports whether a file is a regular one that only root can change.
func (s *System) onlyRoots(st fileStat) bool {
	return int(st.uid) == s.opt.Owner && st.mode&unix.S_IFMT == unix.S_IFREG && st.mode&0o022 == 0
}

// readOwn reads what was remembered in this boot. What cannot be read is set aside.
func (s *System) readOwn() []ownFile {
	file := s.opt.Systemd
	if file == "" {
		return nil
	}
	f, err := safefile.Read(file, maxOwnText)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = f.OnlyBy(uint32(s.opt.Owner))
	}
	var files []ownFile
	if err == nil {
		if files, err = parseOwn(f.Data); err == nil {
			return files
		}
	}
	then := "set aside as " + file + ".bad"
	if e := os.Rename(file, file+".bad"); e != nil {
		then = fmt.Sprintf("it cannot be set aside either: %v", e)
	}
	s.opt.Log.Warn(fmt.Sprintf("cannot read which files were systemd's, %s: %v; %s", file, err, then))
	return nil
}

func parseOwn(data []byte) (files []ownFile, err error) {
	var kept []keptOwn
	if err := json.Unmarshal(data, &kept); err != nil {
		return nil, err
	}
	if len(kept) > maxOwnFiles {
		return nil, fmt.Errorf("it has %d files, at most %d are kept", len(kept), maxOwnFiles)
	}
	for _, k := range kept {
		if name, _ := ownName(k.Name); name != k.Name || k.Inode == 0 {
			return nil, fmt.Errorf("it names a file %q with inode %d", k.Name, k.Inode)
		}
		files = append(files, ownFile{fileID: fileID{k.Major, k.Minor, k.Inode}, name: k.Name})
	}
	return files, nil
}

// keepOwn writes what is to be remembered, for the next daemon.
func (s *System) keepOwn(files []ownFile) {
	if s.opt.Systemd == "" {
		return
	}
	var kept []keptOwn
	for _, f := range files {
		kept = append(kept, keptOwn{f.name, f.major, f.minor, f.ino})
	}
	text, err := json.Marshal(kept)
	if err == nil {
		_, err = safefile.Write(s.opt.Systemd, append(text, '\n'), 0o600)
	}
	if err != nil {
		s.opt.Log.Warn(fmt.Sprintf("cannot keep which files are systemd's: %v; after an upgrade of systemd and a restart of this daemon, what systemd has left in units with PAMName= may look as if it had left the profile", err))
	}
}

// fileID tells a file from all others of the machine.
type fileID struct {
	major, minor uint32
	ino          uint64
}

// fileStat is what is known of a file.
type fileStat struct {
	fileID
	uid  uint32
	mode uint16
}

// statOf says which file a path leads to. It asks no server: a program may lie on a
// file system of a network or of another program, which may never answer, and all
// that is to be known here is known to the kernel (AT_STATX_DONT_SYNC in statx(2);
// nfs_getattr in fs/nfs/inode.c, fuse_update_get_attr in fs/fuse/dir.c).
func statOf(path string) (st fileStat, ok bool) {
	const mask = unix.STATX_INO | unix.STATX_UID | unix.STATX_MODE | unix.STATX_TYPE
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, mask, &x)
	for errors.Is(err, unix.EINTR) {
		err = unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC, mask, &x)
	}
	return fileStat{fileID{x.Dev_major, x.Dev_minor, x.Ino}, x.Uid, x.Mode}, err == nil && x.Mask&unix.STATX_INO != 0
}
