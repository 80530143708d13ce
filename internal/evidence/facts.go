package evidence

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on one look at files.
const (
	maxFacts = 128
	maxLinks = 40 // MAXSYMLINKS of the kernel
	// maxHead is what the kernel reads of a program (BINPRM_BUF_SIZE in
	// include/uapi/linux/binfmts.h).
	maxHead = 256
	// maxScripts is how often an interpreter may be a script itself
	// (exec_binprm in fs/exec.c).
	maxScripts = 5
	maxPasswd  = 4 << 20
)

// Facts looks at files, as the host has them, and at the unit's main process. The
// interpreters of scripts are looked at, too. It waits for nobody: a file system
// that may not answer is not entered, and what lies there is not known.
func (k *Keeper) Facts(u attach.Unit, paths []string) attach.Facts {
	f := attach.Facts{User: -1, NoNewPrivs: k.noNewPrivs(u), Files: map[string]attach.File{}}
	if u.Settings.RootDirectory != "" {
		return f // its paths and users are others than the host's
	}
	f.User = k.userOf(u.Settings)
	w, err := k.newWalk()
	if err != nil {
		return f
	}
	defer w.root.Close()
	for _, p := range paths {
		for n := 0; p != "" && n < maxScripts && len(f.Files) < maxFacts; n++ {
			if _, known := f.Files[p]; known {
				break
			}
			file := w.look(p)
			f.Files[p] = file
			if file.Runs != "" && len(f.Files) < maxFacts {
				f.Files[file.Runs] = w.look(file.Runs)
			}
			p = file.Interpreter
		}
	}
	return f
}

// noNewPrivs reads the flag of the unit's main process.
func (k *Keeper) noNewPrivs(u attach.Unit) attach.Tri {
	p := k.hold(u.MainPID)
	if p == nil {
		return attach.CouldNotTell
	}
	defer p.close()
	group, err := p.openat("cgroup", unix.O_RDONLY)
	if err != nil {
		return attach.CouldNotTell
	}
	defer group.Close()
	if u.ControlGroup == "" || !inGroup(group, u.ControlGroup) {
		return attach.CouldNotTell // the number is another process's by now
	}
	status, err := p.openat("status", unix.O_RDONLY)
	if err != nil {
		return attach.CouldNotTell
	}
	defer status.Close()
	return parseNoNewPrivs(status)
}

// inGroup finds a control group of systemd's, or one below it, in a process's
// cgroup file (cgroups(7)).
func inGroup(r io.Reader, group string) bool {
	lines := bufio.NewScanner(io.LimitReader(r, 1<<16))
	for lines.Scan() {
		id, rest, _ := strings.Cut(lines.Text(), ":")
		controllers, at, _ := strings.Cut(rest, ":")
		if (id == "0" && controllers == "" || controllers == "name=systemd") && (at == group || strings.HasPrefix(at, group+"/")) {
			return true
		}
	}
	return false
}

// parseNoNewPrivs reads "NoNewPrivs:" of proc_pid_status(5).
func parseNoNewPrivs(r io.Reader) attach.Tri {
	lines := bufio.NewScanner(io.LimitReader(r, 1<<16))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(lines.Text(), "NoNewPrivs:"); ok {
			switch strings.TrimSpace(value) {
			case "0":
				return attach.No
			case "1":
				return attach.Yes
			}
		}
	}
	return attach.CouldNotTell
}

// userOf is the number of the user that a unit runs as.
func (k *Keeper) userOf(s attach.Settings) int64 {
	name := s.User
	if name == "" && !s.DynamicUser {
		return 0
	}
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return int64(n)
	}
	f, err := os.Open(k.real("/etc/passwd"))
	if err != nil {
		return -1
	}
	defer f.Close()
	return userNumber(f, name)
}

// userNumber finds a user in passwd(5). Those that are known elsewhere (NSS) are
// not asked for: that may take any time.
func userNumber(r io.Reader, name string) int64 {
	lines := bufio.NewScanner(io.LimitReader(r, maxPasswd))
	for lines.Scan() {
		f := strings.Split(lines.Text(), ":")
		if len(f) == 7 && f[0] == name && name != "" {
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				return int64(n)
			}
		}
	}
	return -1
}

// walk finds files on the host without asking a file system that may not answer.
// Each step opens one name in a directory that is known to be local, by O_PATH,
// which asks the file system that is mounted there nothing; whether that is local
// is known before anything else is done with it.
type walk struct {
	root   *os.File
	mounts []string // mountinfo files
	kinds  map[string]string
}

func (k *Keeper) newWalk() (*walk, error) {
	root := k.opt.Root
	if root == "" {
		root = "/proc/1/root" // the host's view of its files, not this sandbox's
	}
	f, err := os.OpenFile(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	w := &walk{root: f, mounts: []string{"/proc/1/mountinfo", "/proc/self/mountinfo"}, kinds: map[string]string{}}
	if err := w.local(f); err != nil {
		f.Close()
		return nil, err
	}
	return w, nil
}

var errNotLocal = errors.New("it is on a file system that may not answer")

// local says whether an open file is on a file system that answers.
func (w *walk) local(f *os.File) error {
	info, err := os.Open("/proc/self/fdinfo/" + strconv.Itoa(int(f.Fd())))
	if err != nil {
		return err
	}
	defer info.Close()
	id, err := mountID(info)
	if err != nil {
		return err
	}
	kind, known := w.kinds[id]
	for _, name := range w.mounts {
		if known {
			break
		}
		if m, err := os.Open(name); err == nil {
			found, err := mountOf(m, id)
			kind, known = found.kind, err == nil
			m.Close()
		}
	}
	w.kinds[id] = kind
	// The host's mounts are the administrator's, and so are ours.
	if kind != attach.Overlay && !attach.LocalType(kind) {
		return errNotLocal
	}
	return nil
}

// open finds a file by O_PATH, and where it really lies.
func (w *walk) open(name string) (file *os.File, real string, err error) {
	if !path.IsAbs(name) {
		return nil, "", fmt.Errorf("%s is no absolute path", name)
	}
	at := []*os.File{w.root}
	var names []string
	up := func(n int) {
		for _, f := range at[n:] {
			f.Close()
		}
		at, names = at[:n], names[:n-1]
	}
	defer func() {
		if err != nil {
			up(1)
			return
		}
		for _, f := range at[1 : len(at)-1] {
			f.Close()
		}
	}()
	links := 0
	for todo := strings.Split(name, "/"); len(todo) > 0; {
		part := todo[0]
		todo = todo[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			up(max(1, len(at)-1))
			continue
		}
		fd, err := unix.Openat(int(at[len(at)-1].Fd()), part, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, "", err
		}
		f := os.NewFile(uintptr(fd), part)
		target, err := w.link(f)
		switch {
		case err != nil:
			f.Close()
			return nil, "", err
		case target == "":
			at, names = append(at, f), append(names, part)
			continue
		}
		f.Close()
		if links++; links > maxLinks {
			return nil, "", unix.ELOOP
		}
		if path.IsAbs(target) {
			up(1)
		}
		todo = append(strings.Split(target, "/"), todo...)
	}
	if len(at) == 1 {
		return nil, "", unix.EISDIR // the root itself, about which nobody asks
	}
	return at[len(at)-1], "/" + strings.Join(names, "/"), nil
}

// link gives where a symbolic link leads; "" it is none.
func (w *walk) link(f *os.File) (string, error) {
	if err := w.local(f); err != nil {
		return "", err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", nil
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.Fd()), "", target)
	if err == nil && n == 0 {
		err = unix.ENOENT
	}
	return string(target[:max(0, n)]), err
}

// look says what lies at a path.
func (w *walk) look(name string) attach.File {
	unknown := attach.File{Owner: -1}
	f, real, err := w.open(name)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return attach.File{Kind: attach.FileMissing, Owner: -1}
	case err != nil:
		return unknown
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return unknown
	}
	found := attach.File{Path: real, Owner: int64(st.Uid), Kind: attach.FileOther}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		found.Path, found.Kind = real+"/", attach.FileDirectory
		return found
	case unix.S_IFREG:
	default:
		return found
	}
	head, err := readHead(f)
	if err != nil {
		found.Kind = ""
		return found
	}
	if bytes.HasPrefix(head, []byte("\x7fELF")) {
		found.Kind = attach.FileCompiled
	} else if interpreter, argument, ok := shebang(head); ok {
		found.Kind, found.Interpreter = attach.FileScript, interpreter
		if path.Base(interpreter) == "env" {
			found.Runs = w.which(envRuns(argument))
		}
	}
	return found
}

// readHead reads what the kernel reads of a program.
func readHead(f *os.File) ([]byte, error) {
	again, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer again.Close()
	return io.ReadAll(io.LimitReader(again, maxHead))
}

// shebang reads the first line of a script as the kernel does (load_script in
// fs/binfmt_script.c); head is at most maxHead bytes of the file.
func shebang(head []byte) (interpreter, argument string, ok bool) {
	line, ok := bytes.CutPrefix(head, []byte("#!"))
	if !ok {
		return "", "", false
	}
	whole := len(head) < maxHead
	if i := bytes.IndexAny(line, "\n\x00"); i >= 0 {
		line, whole = line[:i], true
	}
	text := strings.TrimLeft(string(line), " \t")
	interpreter, argument, more := strings.Cut(text, " ")
	if i := strings.IndexByte(interpreter, '\t'); i >= 0 {
		interpreter, argument, more = text[:i], text[i+1:], true
	}
	if interpreter == "" || !path.IsAbs(interpreter) || !more && !whole {
		return "", "", false // the kernel would cut its name off, and does not
	}
	return interpreter, strings.Trim(argument, " \t"), true
}

// envRuns is the program that "env ARGUMENT" starts; "" where that is not plain.
func envRuns(argument string) string {
	words := strings.Fields(argument)
	split := len(words) > 0 && words[0] == "-S"
	if split {
		words = words[1:]
	} else if len(words) > 1 {
		return "" // all of it is one word for env
	}
	for _, w := range words {
		if !strings.Contains(w, "=") {
			if strings.HasPrefix(w, "-") || strings.ContainsAny(w, `$'"\`) {
				return ""
			}
			return w
		}
	}
	return ""
}

// searchPath is systemd's for system services (DEFAULT_PATH, systemd.exec(5)),
// with /sbin and /bin where these are no links.
var searchPath = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// which finds a program as env does; "" it is not found.
func (w *walk) which(name string) string {
	if name == "" || strings.Contains(name, "/") {
		return name
	}
	for _, dir := range searchPath {
		f, _, err := w.open(dir + "/" + name)
		if err == nil {
			f.Close()
			return dir + "/" + name
		}
	}
	return ""
}
