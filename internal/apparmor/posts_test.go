package apparmor

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
)

// posted is a host with a unit that was looked at and is held open.
func posted(t *testing.T) (*host, attach.Unit) {
	t.Helper()
	h := newHost(t)
	for _, dir := range []string{"/proc/1/root", "/proc/10/root"} {
		h.mkdir(dir + "/tmp")
		h.mkdir(dir + "/var/tmp")
	}
	h.proc(proc{pid: 1, comm: "systemd", labels: one("unconfined", 1)})
	h.proc(proc{pid: 10, comm: "agent", labels: map[int]string{10: "a (enforce)", 11: "a (enforce)"}})
	h.cgroup("/a.service", 10)
	h.write(cgroupDir+"/a.service/cgroup.threads", "11\n10\n")
	h.write(cgroupDir+"/a.service/cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n")
	u := attach.Unit{ID: "a.service", ControlGroup: "/a.service", MainPID: 10, Settings: attach.Settings{Profile: "a"}}
	if s := h.Scan(ctx(t), u); !s.Stable || len(s.Tasks) != 2 || s.Problem != "" {
		t.Fatalf("%+v", s)
	}
	if h.posts.by["a.service"] == nil || h.posts.open != 4 {
		t.Fatalf("the unit is not held open: %d files", h.posts.open)
	}
	return h, u
}

func TestAPostSeesTheSame(t *testing.T) {
	h, u := posted(t)
	kept := h.posts.by["a.service"]
	s := h.Scan(ctx(t), u)
	if !s.Stable || len(s.Tasks) != 2 || s.Tasks[0].TID != 10 || s.Tasks[1].Label.String() != "a (enforce)" || s.Tmp[10].Tmp == "" || s.Tmp[10].Tmp == s.HostTmp.Tmp {
		t.Errorf("%+v", s)
	}
	if h.posts.by["a.service"] != kept {
		t.Error("what is held open was not used")
	}
}

// Whatever is not as it was is seen by the look that follows.
func TestAPostHidesNothing(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*host)
		unit   func(*attach.Unit)
		tasks  int
		label  string // of the last task
	}{
		"a label":         {change: func(h *host) { h.write("/proc/10/task/11/attr/apparmor/current", "unconfined\n") }, tasks: 2, label: "unconfined"},
		"a mode":          {change: func(h *host) { h.write("/proc/10/task/11/attr/apparmor/current", "a (complain)\n") }, tasks: 2, label: "a (complain)"},
		"another profile": {change: func(h *host) { h.write("/proc/10/task/11/attr/apparmor/current", "ab (enforce)\n") }, tasks: 2, label: "ab (enforce)"},
		"a new process":   {change: func(h *host) { newProcess(h); h.cgroup("/a.service", 10, 12) }, tasks: 3, label: "b (enforce)"},
		"an ended thread": {change: func(h *host) { h.write(cgroupDir+"/a.service/cgroup.threads", "10\n"); h.gone("/proc/10/task/11") }, tasks: 1, label: "a (enforce)"},
		"a group below": {change: func(h *host) {
			newProcess(h)
			h.cgroup("/a.service/sub", 12)
			h.write(cgroupDir+"/a.service/cgroup.stat", "nr_descendants 1\n")
		}, tasks: 3, label: "b (enforce)"},
		"another main":  {change: newProcess, unit: func(u *attach.Unit) { u.MainPID = 12 }, tasks: 3, label: "b (enforce)"},
		"another group": {change: func(h *host) { newProcess(h); h.cgroup("/b.service", 10, 12) }, unit: func(u *attach.Unit) { u.ControlGroup = "/b.service" }, tasks: 3, label: "b (enforce)"},
		"a shared /tmp": {change: func(h *host) {
			h.gone("/proc/10/root")
			h.symlink(filepath.Join(h.root, "proc/1/root"), "/proc/10/root")
		}, tasks: 2, label: "a (enforce)"},
		"another declared":  {change: func(*host) {}, unit: func(u *attach.Unit) { u.Settings.Profile = "b" }, tasks: 2, label: "a (enforce)"},
		"a label that ends": {change: func(h *host) { h.write("/proc/10/task/11/attr/apparmor/current", "") }, tasks: 2, label: ""},
	} {
		t.Run(name, func(t *testing.T) {
			h, u := posted(t)
			kept := h.posts.by["a.service"]
			c.change(h)
			if c.unit != nil {
				c.unit(&u)
			}
			if again := h.Rescan([]attach.Unit{u}); len(again) != 0 {
				t.Errorf("it was taken for the same: %+v", again)
			}
			s := h.Scan(ctx(t), u)
			if len(s.Tasks) != c.tasks || s.Tasks[len(s.Tasks)-1].Label.String() != c.label {
				t.Errorf("%+v", s.Tasks)
			}
			if h.posts.by["a.service"] == kept {
				t.Error("what is not so any more is still held open")
			}
		})
	}
}

func TestRescan(t *testing.T) {
	h, u := posted(t)
	other := u
	other.ID = "other.service"
	want := h.Scan(ctx(t), u)
	got := h.Rescan([]attach.Unit{u, other})
	if len(got) != 1 {
		t.Fatalf("%+v", got)
	}
	want.At = got[u.ID].At
	if d := cmp.Diff(want, got[u.ID]); d != "" {
		t.Error(d)
	}
	h.gone("/proc/1/root/tmp")
	if got := h.Rescan([]attach.Unit{u}); len(got) != 0 {
		t.Errorf("without a /tmp to compare with: %+v", got)
	}
}

// The threads of a unit that has many are read by several at once, each of them.
func TestRescanOfManyThreads(t *testing.T) {
	h := newHost(t)
	for _, dir := range []string{"/proc/1/root", "/proc/10/root"} {
		h.mkdir(dir + "/tmp")
		h.mkdir(dir + "/var/tmp")
	}
	h.proc(proc{pid: 1, comm: "systemd", labels: one("unconfined", 1)})
	const first, last = 10, 10 + 3*manyThreads
	labels, list := map[int]string{}, ""
	for tid := first; tid <= last; tid++ {
		labels[tid] = "a (enforce)"
		list += strconv.Itoa(tid) + "\n"
	}
	h.proc(proc{pid: first, comm: "agent", labels: labels})
	h.cgroup("/a.service", first)
	h.write(cgroupDir+"/a.service/cgroup.threads", list)
	h.write(cgroupDir+"/a.service/cgroup.stat", "nr_descendants 0\nnr_dying_descendants 0\n")
	u := attach.Unit{ID: "a.service", ControlGroup: "/a.service", MainPID: first, Settings: attach.Settings{Profile: "a"}}
	want := h.Scan(ctx(t), u)
	got := h.Rescan([]attach.Unit{u})
	want.At = got[u.ID].At
	if d := cmp.Diff(want, got[u.ID]); d != "" || len(want.Tasks) != last-first+1 {
		t.Fatalf("%d tasks: %s", len(want.Tasks), d)
	}
	for _, tid := range []int{first, (first + last) / 2, last} {
		file := "/proc/10/task/" + strconv.Itoa(tid) + "/attr/apparmor/current"
		h.write(file, "unconfined\n")
		if got := h.Rescan([]attach.Unit{u}); len(got) != 0 {
			t.Errorf("thread %d is unconfined, and nobody saw it", tid)
		}
		h.write(file, "a (enforce)\n")
		if s := h.Scan(ctx(t), u); !s.Stable {
			t.Fatalf("%+v", s)
		}
	}
}

func newProcess(h *host) {
	h.proc(proc{pid: 12, comm: "kid", labels: one("b (enforce)", 12)})
	h.write(cgroupDir+"/a.service/cgroup.threads", "10\n11\n12\n")
}

func (h *host) gone(path string) {
	h.t.Helper()
	if err := os.RemoveAll(filepath.Join(h.root, path)); err != nil {
		h.t.Fatal(err)
	}
}

// What is loaded is read once for each revision of the policy, and every time
// where the kernel does not tell the revision.
func TestLoadedPolicyIsReadOncePerRevision(t *testing.T) {
	h := newHost(t)
	sum := func(want string, names ...string) {
		t.Helper()
		got, err := h.Live(names)
		if err != nil || got["a"].Checksum != "sha256:"+want {
			t.Errorf("%+v %v, want %s", got, err, want)
		}
	}
	h.loaded("a.1", "a", "enforce", "aa")
	sum("aa", "a")
	h.loaded("a.1", "a", "enforce", "ab")
	sum("ab", "a") // no revision is told
	h.write(securityDir+"/revision", "7\n")
	sum("ab", "a")
	h.loaded("a.1", "a", "enforce", "ac")
	h.loaded("b.2", "b", "enforce", "bb")
	sum("ab", "a") // the kernel says that nothing changed
	if got, err := h.Live([]string{"a", "b", "none"}); err != nil || len(got) != 2 || got["b"].Checksum != "sha256:bb" {
		t.Errorf("%+v %v", got, err)
	}
	h.write(securityDir+"/revision", "8\n")
	sum("ac", "a", "b")
}
