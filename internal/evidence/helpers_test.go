package evidence

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/aaunit/aaunit/internal/attach"
)

// schema is the compiled schema of the repository.
var schema = sync.OnceValues(func() (*jsonschema.Schema, error) {
	// Readers are to bear keys that they do not know; a record has none of them.
	strict := bytes.ReplaceAll(Schema, []byte(`"additionalProperties": true`), []byte(`"additionalProperties": false`))
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(strict))
	if err != nil {
		return nil, err
	}
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	if err := c.AddResource("schema.json", doc); err != nil {
		return nil, err
	}
	return c.Compile("schema.json")
})

// valid says whether a record's file is as the schema says.
func valid(data []byte) error {
	s, err := schema()
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(data))
	if err != nil {
		return err
	}
	return s.Validate(doc)
}

// journalText is what a keeper logged.
type journalText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (j *journalText) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(b)
}

func (j *journalText) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.String()
}

// bench is a keeper on a directory of its own.
type bench struct {
	*Keeper
	t    *testing.T
	root string
	log  *journalText
	stop func()
}

var policy = attach.Compiled{ID: "id-1", File: "/etc/apparmor.d/agent", Source: "source-1", Environment: "env", Parser: "AppArmor parser version 4.1.0",
	Kernel: "6.12", Blob: []byte("compiled"), Sources: map[string][]byte{
		"/etc/apparmor.d/agent": []byte("profile agent {}\n"), "/etc/apparmor.d/abstractions/base": []byte("# base\n"), "/etc/apparmor.d/local/": nil}}

// newBench begins a life of a keeper; root "" is a new directory.
func newBench(t *testing.T, root string, change func(*Options)) *bench {
	t.Helper()
	if root == "" {
		root = t.TempDir()
		// /proc is the real one, everything else is the test's.
		if err := os.Symlink("/proc", filepath.Join(root, "proc")); err != nil {
			t.Fatal(err)
		}
		for path, text := range policy.Sources {
			put(t, root, path, string(text))
		}
	}
	log := &journalText{}
	o := Options{Dir: filepath.Join(root, "evidence"), Root: root, Log: slog.New(slog.NewTextHandler(log, nil)), Policy: func(id string) (attach.Compiled, error) {
		if id != policy.ID {
			return attach.Compiled{}, errors.New("it is not kept")
		}
		return policy, nil
	}}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	b := &bench{Keeper: New(o), t: t, root: root, log: log}
	var wg sync.WaitGroup
	wg.Go(func() { b.Run(ctx) })
	b.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(b.stop)
	return b
}

func put(t *testing.T, root, path, text string) {
	t.Helper()
	real := filepath.Join(root, path)
	dir := filepath.Dir(real)
	if strings.HasSuffix(path, "/") {
		dir = real
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if strings.HasSuffix(path, "/") {
		return
	}
	if err := os.WriteFile(real, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

const unit = "agent.service"

// seen is what a look at a unit whose main process is this test's has gathered.
func seen(invocation string) attach.Evidence {
	a := attach.NewAttachment()
	a.Units, a.Profile, a.Source = []string{unit}, "agent", "/etc/aaunit/attachments.d/agent.conf"
	rec := attach.Record{Unit: unit, Profile: "agent", Policies: map[string]string{policy.File: policy.ID}, Accepted: map[string]string{"agent": "sha256:abc"}}
	kept := policy
	kept.Blob, kept.Sources = nil, nil
	d := attach.Desired{Unit: unit, Attachment: &a, Profile: "agent", Record: rec, Kept: []attach.Compiled{kept}}
	label, err := attach.ParseLabel("agent (enforce)")
	if err != nil {
		panic(err)
	}
	pid := os.Getpid()
	now := time.Now()
	o := attach.Observed{At: now, Host: attach.Host{Enabled: attach.Yes, GlobalMode: attach.ModeEnforce},
		Unit: attach.Unit{ID: unit, Names: []string{unit}, LoadState: "loaded", ActiveState: "active", InvocationID: invocation, MainPID: pid, Settings: attach.Settings{
			Profile: "agent", PrivateTmp: attach.PrivateTmpYes, AssertAppArmor: true, User: "nobody",
			Exec:        []attach.ExecCommand{{Property: "ExecStart", Path: "/usr/bin/agent", Argv: []string{"agent", "--token=secret"}}},
			Assignments: []attach.Assignment{{Key: "AppArmorProfile", Value: "agent", Path: d.DropInPath(), Line: 7}}}},
		DropIn: attach.DropInState{Exists: true, Ours: true, Content: "[Service]\n"},
		Policy: attach.Policy{Live: map[string]attach.LiveProfile{"agent": {Name: "agent", Mode: attach.ModeEnforce, Checksum: "sha256:abc"}}},
		Scan: &attach.Scan{Before: invocation, After: invocation, Stable: true, At: now, HostTmp: attach.TmpView{Tmp: "8:1 /tmp", VarTmp: "8:1 /var/tmp"},
			Tmp:   map[int]attach.TmpView{pid: {Tmp: "8:1 /p", VarTmp: "8:1 /q"}},
			Tasks: []attach.Task{{PID: pid, TID: pid, Comm: "agent\xff\x1b", Exe: "/usr/bin/agent", Label: label}}}}
	v := attach.Judge(d, o)
	e := attach.GatherEvidence(d, o, v, func(s string) string { return sumOf([]byte(s)) })
	e.Boot, e.Aaunit = "boot-1", "1.2.3"
	return e
}

func (b *bench) record(e attach.Evidence) {
	b.t.Helper()
	b.Record(e)
	b.settled(e.Unit)
}

func (b *bench) settled(unit string) {
	b.t.Helper()
	if err := b.settle(context.Background(), unit); err != nil {
		b.t.Fatal(err)
	}
}

// files are the records' files, by number; each is as the schema says.
func (b *bench) files(unit string) (files []string, records []attach.Evidence) {
	b.t.Helper()
	c := b.readAll(unit)
	for _, s := range c.records {
		data, err := os.ReadFile(s.file)
		if err != nil {
			b.t.Fatal(err)
		}
		if s.problem != "" {
			b.t.Fatalf("%s: %s", s.file, s.problem)
		}
		if err := valid(data); err != nil {
			b.t.Fatalf("%s: %v\n%.3000s", s.file, err, data)
		}
		again, err := Encode(s.record)
		if err != nil || !bytes.Equal(again, data) {
			b.t.Errorf("%s is not canonical (%v):\n%s%s", s.file, err, data, again)
		}
		files, records = append(files, s.file), append(records, s.record)
	}
	return files, records
}

// check compares with what is now; sources are as on record.
func (b *bench) check(now attach.Evidence) attach.EvidenceStatus {
	return b.Check(context.Background(), now.Unit, &now, map[string]string{policy.File: policy.Source})
}

func describe(s attach.EvidenceStatus) string {
	var w strings.Builder
	fmt.Fprintf(&w, "%s holds=%v exit=%d records=%d\n", s.Unit, s.Holds, s.Exit, s.Records)
	for _, l := range s.Links {
		if l.Holds != attach.Yes {
			fmt.Fprintf(&w, "  %s %v %s: %s (%s -> %s)\n", l.Link, l.Holds, l.What, l.Why, l.Old, l.New)
		}
	}
	return w.String()
}
