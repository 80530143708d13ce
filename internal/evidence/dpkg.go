package evidence

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// Where dpkg keeps what it knows (dpkg(1), FILES).
const (
	dpkgStatus = "/var/lib/dpkg/status"
	dpkgInfo   = "/var/lib/dpkg/info"
)

// Bounds on dpkg's files.
const (
	maxStatus   = 64 << 20
	maxList     = 16 << 20
	maxLists    = 256 << 20 // all of them
	maxPackages = 512       // that are remembered
)

// packages remembers which package a path belongs to, until the state of dpkg or rpm
// changes: to find out, all of dpkg's lists are read, or rpm is run.
type packages struct {
	mu    sync.Mutex
	state packageState
	done  map[string]owned
}

// packageState is the files by which dpkg and rpm know what is installed; the zero
// value of one is that it is not there.
type packageState struct{ dpkg, rpm fileID }

type owned struct{ name, version string }

// owner adds the package that a path belongs to: dpkg is asked first, and then rpm.
// That it belongs to one says where the file is from, not that it is as the package
// has it.
func (k *Keeper) owner(ctx context.Context, p *process, name string, e *attach.EvidenceProgram) {
	var id packageState
	var st unix.Stat_t
	var dpkg, rpm bool
	switch err := unix.Stat(k.real(dpkgStatus), &st); {
	case err == nil:
		id.dpkg, dpkg = idOf(&st), true
	case !errors.Is(err, unix.ENOENT):
		e.PackageProblem = err.Error()
		return
	}
	if id.rpm, rpm = k.rpmState(); !dpkg && !rpm {
		return // packages of another kind
	}
	if !k.sameRoot(p) {
		e.PackageProblem = "the process has a root directory of its own, of which dpkg and rpm know nothing"
		return
	}
	k.packages.mu.Lock()
	if k.packages.state != id || len(k.packages.done) >= maxPackages {
		k.packages.state, k.packages.done = id, map[string]owned{}
	}
	o, known := k.packages.done[name]
	k.packages.mu.Unlock()
	if !known {
		var err error
		if dpkg {
			o, err = k.findOwner(ctx, name)
		}
		if err == nil && o.name == "" && rpm {
			o, err = k.askRPM(ctx, name)
		}
		if err != nil {
			e.PackageProblem = text(err.Error())
			return
		}
		k.packages.mu.Lock()
		if k.packages.state == id {
			k.packages.done[name] = o
		}
		k.packages.mu.Unlock()
	}
	e.Package, e.Version = text(o.name), text(o.version)
}

// sameRoot reports whether the process has the host's root directory.
func (k *Keeper) sameRoot(p *process) bool {
	root, err := p.openat("root", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer root.Close()
	var own, of unix.Stat_t
	return unix.Fstat(int(root.Fd()), &of) == nil && unix.Stat("/", &own) == nil && own.Dev == of.Dev && own.Ino == of.Ino
}

func (k *Keeper) findOwner(ctx context.Context, name string) (owned, error) {
	entries, err := os.ReadDir(k.real(dpkgInfo))
	if errors.Is(err, fs.ErrNotExist) {
		return owned{}, nil
	}
	if err != nil {
		return owned{}, err
	}
	var wanted [][]byte
	for _, n := range listed(name) {
		wanted = append(wanted, []byte("\n"+n+"\n"))
	}
	total := 0
	for _, entry := range entries {
		pkg, ok := strings.CutSuffix(entry.Name(), ".list")
		if !ok {
			continue
		}
		if ctx.Err() != nil {
			return owned{}, fmt.Errorf("dpkg's lists could not be read within %v", programTime)
		}
		data, err := readBounded(filepath.Join(k.real(dpkgInfo), entry.Name()), maxList)
		if err != nil {
			return owned{}, err
		}
		if total += len(data); total > maxLists {
			return owned{}, fmt.Errorf("dpkg's lists have more than %d bytes", maxLists)
		}
		for _, w := range wanted {
			if !bytes.Contains(data, w) && !bytes.HasPrefix(data, w[1:]) {
				continue
			}
			pkg, arch, _ := strings.Cut(pkg, ":")
			f, err := os.OpenFile(k.real(dpkgStatus), os.O_RDONLY|unix.O_NONBLOCK, 0)
			if err != nil {
				return owned{}, err
			}
			defer f.Close()
			version, err := packageVersion(io.LimitReader(f, maxStatus), pkg, arch)
			return owned{pkg, version}, err
		}
	}
	return owned{}, nil
}

// listed are the names under which dpkg may know a path: of packages from before
// /bin and its like became links into /usr, without the /usr.
func listed(name string) []string {
	names := []string{name}
	for _, dir := range []string{"/bin/", "/sbin/", "/lib"} {
		if strings.HasPrefix(name, "/usr"+dir) {
			names = append(names, strings.TrimPrefix(name, "/usr"))
		}
	}
	return names
}

func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return data, err
}

// packageVersion finds the version of an installed package in dpkg's status file
// (deb-control(5): stanzas of "Key: value", divided by empty lines). arch is "" for
// any.
func packageVersion(r io.Reader, name, arch string) (string, error) {
	lines := bufio.NewReaderSize(r, 64<<10)
	fields := map[string]string{}
	match := func() bool {
		return fields["Package"] == name && (arch == "" || fields["Architecture"] == arch) && fields["Version"] != ""
	}
	for {
		line, err := lines.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) { // none of the keys has such a value
			_, err = lines.ReadSlice('\n')
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return "", err
		}
		s := strings.TrimRight(string(line), "\n")
		if s == "" && !long || err != nil && !long {
			if key, value, ok := strings.Cut(s, ": "); ok {
				fields[key] = value
			}
			if match() {
				return fields["Version"], nil
			}
			clear(fields)
		} else if key, value, ok := strings.Cut(s, ": "); ok && !long {
			switch key {
			case "Package", "Architecture", "Version":
				fields[key] = value
			}
		}
		if err != nil {
			return "", nil //nolint:nilerr // it is io.EOF here: there is no such package
		}
	}
}
