package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// PayloadDir is where [Machine.PutPayload] puts files.
const PayloadDir = "/root/payload"

// PayloadFromEnv lists the files that AAUNIT_VM_PAYLOAD names.
func PayloadFromEnv() []string {
	var files []string
	for _, f := range filepath.SplitList(os.Getenv("AAUNIT_VM_PAYLOAD")) {
		if f != "" {
			files = append(files, f)
		}
	}
	return files
}

// PutPayload copies files of the host into [PayloadDir], with their modes, and
// installs the Debian packages (*.deb) among them, all in one go.
func (m *Machine) PutPayload(ctx context.Context, files []string) error {
	if _, err := m.Output(ctx, "mkdir -p "+PayloadDir); err != nil {
		return err
	}
	var packages []string
	for _, f := range files {
		info, err := os.Stat(f)
		if err != nil {
			return fmt.Errorf("cannot copy the payload: %w", err)
		}
		guestPath := path.Join(PayloadDir, filepath.Base(f))
		if err := m.Put(ctx, f, guestPath, info.Mode()); err != nil {
			return err
		}
		if strings.HasSuffix(f, ".deb") {
			packages = append(packages, guestPath)
		}
	}
	if packages == nil {
		return nil
	}
	_, err := m.Output(ctx, "DEBIAN_FRONTEND=noninteractive apt-get -q -y -o Dpkg::Use-Pty=0 install "+Quote(packages...)+" </dev/null")
	if err != nil {
		return fmt.Errorf("cannot install the payload: %w", err)
	}
	return nil
}

// PutTree copies a directory of the host into the guest, with what is in it.
// Only directories and regular files are copied.
func (m *Machine) PutTree(ctx context.Context, localDir, guestDir string) error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(writeTar(w, os.DirFS(localDir))) }()
	defer r.Close()
	var stderr strings.Builder
	d := Quote(guestDir)
	exit, err := m.Stream(ctx, "mkdir -p -- "+d+" && tar -x -f - -C "+d, r, nil, &stderr)
	if err == nil && exit != 0 {
		err = errors.New(strings.TrimSpace(stderr.String()))
	}
	if err != nil {
		return fmt.Errorf("cannot copy %s to the guest: %w", localDir, err)
	}
	return nil
}
