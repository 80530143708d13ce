package evidence

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/attach"
)

// elfFile makes an ELF file with one segment of notes.
func elfFile(class, data byte, notes []byte) []byte {
	var order binary.ByteOrder = binary.LittleEndian
	if data == 2 {
		order = binary.BigEndian
	}
	head := make([]byte, 64)
	copy(head, "\x7fELF")
	head[4], head[5], head[6] = class, data, 1
	ph := make([]byte, 56)
	order.PutUint32(ph, ptNote)
	if class == 2 {
		order.PutUint64(head[32:], 64)
		order.PutUint16(head[54:], 56)
		order.PutUint16(head[56:], 1)
		order.PutUint64(ph[8:], 120)
		order.PutUint64(ph[32:], uint64(len(notes)))
		order.PutUint64(ph[48:], 4)
	} else {
		order.PutUint32(head[28:], 64)
		order.PutUint16(head[42:], 56)
		order.PutUint16(head[44:], 1)
		order.PutUint32(ph[4:], 120)
		order.PutUint32(ph[16:], uint32(len(notes)))
		order.PutUint32(ph[28:], 4)
	}
	return append(append(head, ph...), notes...)
}

func note(order binary.ByteOrder, name string, kind uint32, desc []byte) []byte {
	b := make([]byte, 12)
	order.PutUint32(b, uint32(len(name)))
	order.PutUint32(b[4:], uint32(len(desc)))
	order.PutUint32(b[8:], kind)
	b = append(b, name...)
	b = append(b, make([]byte, padded(len(b), 4)-len(b))...)
	b = append(b, desc...)
	return append(b, make([]byte, padded(len(b), 4)-len(b))...)
}

func TestBuildID(t *testing.T) {
	id := []byte{0xde, 0xad, 0xbe, 0xef, 1}
	for _, class := range []byte{1, 2} {
		for _, data := range []byte{1, 2} {
			var order binary.ByteOrder = binary.LittleEndian
			if data == 2 {
				order = binary.BigEndian
			}
			notes := append(note(order, "Go\x00", 4, []byte("x")), note(order, "GNU\x00", ntGNUBuildID, id)...)
			if got, err := buildID(bytes.NewReader(elfFile(class, data, notes))); got != "deadbeef01" || err != nil {
				t.Errorf("class %d, data %d: %q, %v", class, data, got, err)
			}
		}
	}
	for name, file := range map[string][]byte{
		"empty": nil, "script": []byte("#!/bin/sh\n" + strings.Repeat("x", 100)), "no notes": elfFile(2, 1, nil),
		"not GNU's": elfFile(2, 1, note(binary.LittleEndian, "GNX\x00", ntGNUBuildID, id)), "too long": elfFile(2, 1, note(binary.LittleEndian, "GNU\x00", ntGNUBuildID, make([]byte, maxBuildID+1))),
	} {
		if got, err := buildID(bytes.NewReader(file)); got != "" || err != nil {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	for _, class := range []byte{0, 3} {
		if _, err := buildID(bytes.NewReader(elfFile(class, 1, nil))); err == nil || !strings.HasPrefix(err.Error(), "cannot ") {
			t.Errorf("class %d: %v", class, err)
		}
	}
	cut := elfFile(2, 1, note(binary.LittleEndian, "GNU\x00", ntGNUBuildID, id))
	if got, err := buildID(bytes.NewReader(cut[:len(cut)-8])); got != "" || err == nil {
		t.Errorf("cut off: %q, %v", got, err)
	}
}

// A real one is read as the standard library reads it.
func TestBuildIDOfARealFile(t *testing.T) {
	for _, name := range []string{"/bin/sh", "/proc/self/exe"} {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		want := ""
		if lib, err := elf.NewFile(f); err == nil {
			if s := lib.Section(".note.gnu.build-id"); s != nil {
				if data, err := s.Data(); err == nil && len(data) > 16 {
					want = fmt.Sprintf("%x", data[16:])
				}
			}
		}
		if got, err := buildID(f); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", name, got, err, want)
		}
	}
}

func FuzzBuildID(f *testing.F) {
	for _, class := range []byte{1, 2} {
		for _, data := range []byte{1, 2} {
			var order binary.ByteOrder = binary.LittleEndian
			if data == 2 {
				order = binary.BigEndian
			}
			f.Add(elfFile(class, data, note(order, "GNU\x00", ntGNUBuildID, []byte("0123456789abcdefghij"))))
		}
	}
	huge := elfFile(2, 1, note(binary.LittleEndian, "GNU\x00", ntGNUBuildID, []byte("x")))
	binary.LittleEndian.PutUint32(huge[120:], 0xffffffff)
	f.Add(huge)
	f.Fuzz(func(t *testing.T, data []byte) {
		id, err := buildID(bytes.NewReader(data))
		if err == nil && len(id) > 2*maxBuildID {
			t.Errorf("%q", id)
		}
	})
}

const mounts = `22 28 0:20 / /proc rw - proc proc rw
28 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
90 28 0:40 / /srv/a\040-\040b rw,nosuid master:7 propagate_from:2 - fuse.sshfs host:/x rw
91 28 0:41 / /net rw - nfs4 server:/ rw,addr=10.0.0.1
92 28 0:42 / /broken rw
`

func TestMountType(t *testing.T) {
	for id, want := range map[string]string{"22": "proc", "28": "ext4", "90": "fuse.sshfs", "91": "nfs4", "92": "", "9": "", "": ""} {
		m, err := mountOf(strings.NewReader(mounts), id)
		if got := m.kind; got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", id, got, err)
		}
	}
	host := mounts + "93 28 0:50 / / rw - overlay overlay rw,lowerdir=/a\n"
	for m, want := range map[mounted]bool{
		{"ext4", "8:2"}: true, {"tmpfs", "0:60"}: true,
		{attach.Overlay, "0:50"}: true,
		// Anybody may have laid it over FUSE.
		{attach.Overlay, "0:51"}: false, {attach.Overlay, "0:20"}: false, {attach.Overlay, ""}: false,
	} {
		if got := m.answers(strings.NewReader(host)); got != want {
			t.Errorf("%+v: %v", m, got)
		}
	}
	for _, kind := range []string{"fuse", "fuseblk", "fuse.sshfs", "virtiofs", "nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "afs", "autofs", "proc", ""} {
		if (mounted{kind, "0:20"}).answers(strings.NewReader(host)) {
			t.Errorf("%q is taken for local", kind)
		}
	}
}

func FuzzMountType(f *testing.F) {
	f.Add(mounts, "90")
	f.Add("1  - x\n", "1")
	f.Fuzz(func(t *testing.T, text, id string) {
		m, err := mountOf(strings.NewReader(text), id)
		if err == nil && (m.kind == "" || strings.ContainsAny(m.kind+m.device, " \n")) {
			t.Errorf("%+v", m)
		}
	})
}

func TestPackageVersion(t *testing.T) {
	status := "Package: bash\nStatus: install ok installed\nArchitecture: amd64\nVersion: 5.2-1\nDescription: " + strings.Repeat("x", 100_000) +
		"\n Package: trap\n\nPackage: gone\nStatus: deinstall ok config-files\n\nPackage: libc6\nArchitecture: i386\nVersion: 1\n\nPackage: libc6\nArchitecture: amd64\nVersion: 2.36-9\n"
	for _, tc := range []struct{ name, arch, want string }{
		{"bash", "", "5.2-1"}, {"libc6", "amd64", "2.36-9"}, {"libc6", "i386", "1"}, {"gone", "", ""}, {"trap", "", ""}, {"none", "", ""},
	} {
		if got, err := packageVersion(strings.NewReader(status), tc.name, tc.arch); got != tc.want || err != nil {
			t.Errorf("%s: %q, %v", tc.name, got, err)
		}
	}
}

func FuzzPackageVersion(f *testing.F) {
	f.Add("Package: a\nVersion: 1\n\n", "a", "")
	f.Fuzz(func(_ *testing.T, text, name, arch string) {
		_, _ = packageVersion(strings.NewReader(text), name, arch)
	})
}

// program is a copy of sleep that runs, so that its file can be changed.
func program(t *testing.T) (file string, cmd *exec.Cmd) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "program")
	data, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd = exec.Command(file, "600")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return file, cmd
}

func TestTheProgramThatRunsAndTheOneOnDisk(t *testing.T) {
	b := newBench(t, "", nil)
	put(t, b.root, dpkgStatus, "Package: mysleep\nArchitecture: amd64\nVersion: 9.1-2\n\n")
	file, cmd := program(t)
	put(t, b.root, dpkgInfo+"/other.list", "/.\n/usr\n"+file+"s\n")
	put(t, b.root, dpkgInfo+"/mysleep:amd64.list", "/.\n"+file+"\n")
	e := seen("a1")
	e.Executable = attach.EvidenceProgram{PID: cmd.Process.Pid, At: time.Now()}
	b.record(e)
	_, records := b.files(unit)
	got := records[0].Executable
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got.Path != file || got.SHA256 != sumOf(data) || got.Deleted || got.Package != "mysleep" || got.Version != "9.1-2" || got.PackageProblem != "" {
		t.Errorf("%+v", got)
	}
	check := func(what string, code attach.EvidenceCode, exit attach.Exit, text string) {
		t.Helper()
		now := seen("a1")
		now.Executable = e.Executable
		s := b.check(now)
		first := attach.EvidenceLink{}
		if s.First != nil {
			first = *s.First
		}
		if s.Exit != exit || first.Link != code || !strings.Contains(first.Why+first.New, text) {
			t.Errorf("%s:\n%s", what, describe(s))
		}
	}
	check("as it was", "", attach.ExitOK, "")
	// An upgrade puts another file in its place.
	if err := os.Rename(file, file+".old"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, append(data, "more"...), 0o755); err != nil {
		t.Fatal(err)
	}
	// The process' own file is under another name now.
	check("upgraded", attach.LinkOnDisk, attach.ExitNotConfined, sumOf(append(data, "more"...)))
	if err := os.Remove(file + ".old"); err != nil {
		t.Fatal(err)
	}
	check("deleted and another in its place", attach.LinkOnDisk, attach.ExitNotConfined, "next start")
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	check("deleted", attach.LinkOnDisk, attach.ExitNotConfined, "not on disk")
	if err := unix.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a FIFO in its place", attach.LinkOnDisk, attach.ExitUnknown, "")
	os.Remove(file)
	if err := os.Symlink("/proc/self/environ", file); err != nil {
		t.Fatal(err)
	}
	check("a link to /proc", attach.LinkOnDisk, attach.ExitUnknown, "")
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	check("ended", attach.LinkProgram, attach.ExitUnknown, "")
	fresh := e
	fresh.Verdict.InvocationID = "a2"
	b.record(fresh)
	if _, records := b.files(unit); records[1].Executable.Problem != "the process has ended" || records[1].Executable.SHA256 != "" {
		t.Errorf("%+v", records[1].Executable)
	}
}

func TestWhatIsTooLargeOrMayNotAnswerIsNotRead(t *testing.T) {
	b := newBench(t, "", nil)
	p := b.hold(os.Getpid())
	defer p.close()
	measure := func(file string) attach.EvidenceProgram {
		f, err := os.OpenFile(file, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		return b.measure(t.Context(), p, f)
	}
	large := filepath.Join(t.TempDir(), "large")
	if err := os.WriteFile(large, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, maxProgram+1); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{large: "at most", "/proc/self/stat": "may not answer (proc)", t.TempDir(): "not a regular file"} {
		if e := measure(file); e.SHA256 != "" || !strings.Contains(e.Problem, want) {
			t.Errorf("%s: %+v", file, e)
		}
	}
	// Many at once wait for each other.
	var wg sync.WaitGroup
	for range 10 * maxLooks {
		wg.Go(func() {
			if e := b.within(t.Context(), unit, nil, func(context.Context) attach.EvidenceProgram {
				time.Sleep(5 * time.Millisecond)
				return attach.EvidenceProgram{SHA256: "x"}
			}); e.SHA256 != "x" {
				t.Errorf("%+v", e)
			}
		})
	}
	wg.Wait()
	// One that does not end is left behind: one of a unit, which holds up no other unit,
	// and so many of all.
	hung := make(chan struct{})
	hang := func(of string) attach.EvidenceProgram {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		return b.within(ctx, of, nil, func(context.Context) attach.EvidenceProgram { <-hung; return attach.EvidenceProgram{} })
	}
	look := func(of string) attach.EvidenceProgram {
		return b.within(t.Context(), of, nil, func(context.Context) attach.EvidenceProgram { return attach.EvidenceProgram{SHA256: "x"} })
	}
	refused := func(e attach.EvidenceProgram) bool {
		return e.SHA256 == "" && strings.Contains(e.Problem, "have not ended")
	}
	if e := hang("bad.service"); !strings.Contains(e.Problem, "within") {
		t.Errorf("%+v", e)
	}
	for range 2 * maxStuck {
		if e := hang("bad.service"); !refused(e) {
			t.Errorf("%+v", e)
		}
	}
	if e := look(unit); e.SHA256 != "x" {
		t.Errorf("another unit's look waits for it: %+v", e)
	}
	var others sync.WaitGroup
	for i := range maxStuck - 1 {
		others.Go(func() { hang(fmt.Sprintf("bad%d.service", i)) })
	}
	others.Wait()
	if e := look(unit); !refused(e) {
		t.Errorf("%+v", e)
	}
	close(hung)
	for deadline := time.Now().Add(10 * time.Second); refused(look("bad.service")); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it stays refused")
		}
	}
}

func TestADigestHasAnEnd(t *testing.T) {
	f, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := digest(ctx, f); err == nil || !strings.Contains(err.Error(), "within") {
		t.Error(err)
	}
}
