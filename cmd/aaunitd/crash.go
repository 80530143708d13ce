//go:build crash

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/reconcile"
)

// breakable puts a boundary before and after every action that changes
// something: a point at which a test can have this process end, or stand still
// so that the machine's power can be cut there. What boundaries come and which
// one it shall be goes through two files in the directory $AAUNITD_CRASH:
//
//	log    gets a line for each boundary, such as "before WriteDropIn /etc/…",
//	       and one for an order that was carried out
//	order  is written by the test: "kill N" ends the process with SIGKILL at the
//	       Nth boundary from now on, "hold N" stops it there for ever. Words
//	       after the number choose which boundaries count: the first words of
//	       their lines. It is removed when it is carried out.
//
// $AAUNITD_BENCH has it do without that. For "unchecked" it does without the gate
// too, for a benchmark of what that costs; "checked" is its baseline.
func breakable(o reconcile.Options) reconcile.Options {
	switch os.Getenv("AAUNITD_BENCH") {
	case "unchecked":
		o.Gate = nil
		return o
	case "checked":
		return o
	}
	dir := os.Getenv("AAUNITD_CRASH")
	if dir == "" {
		fmt.Fprintln(os.Stderr, "aaunitd: this build is for tests, which set AAUNITD_CRASH")
		os.Exit(2)
	}
	c := &crash{dir: dir}
	o.Systemd = crashSystemd{o.Systemd, c}
	o.AppArmor = crashAppArmor{o.AppArmor, c}
	o.Attachments = crashAttachments{o.Attachments, c}
	o.Policies = crashPolicies{o.Policies, c}
	o.Store = crashStore{o.Store, c}
	o.SocketOptions = crashSockets{o.SocketOptions, c}
	return o
}

// crash is where a process ends.
type crash struct {
	dir string

	mu    sync.Mutex
	order string // as it was last read
	met   int    // boundaries that count since it came
}

// around calls an action, with a boundary before it and one after it.
func (c *crash) around(action, what string, do func()) {
	line := strings.TrimSpace(action + " " + what)
	c.boundary("before " + line)
	do()
	c.boundary("after " + line)
}

func (c *crash) boundary(line string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.say(line)
	path := filepath.Join(c.dir, "order")
	text, err := os.ReadFile(path)
	if err != nil {
		c.order = ""
		return
	}
	if order := string(text); order != c.order {
		c.order, c.met = order, 0
	}
	verb, rest, _ := strings.Cut(strings.TrimSpace(c.order), " ")
	number, words, _ := strings.Cut(rest, " ")
	if !strings.HasPrefix(line, words) {
		return
	}
	if c.met++; number != fmt.Sprint(c.met) {
		return
	}
	if err := os.Remove(path); err != nil {
		panic(err)
	}
	c.say(verb + " " + line)
	if verb == "kill" {
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	}
	// Under the lock: nothing else goes on beyond its next boundary either.
	select {}
}

// say writes a line to the log. It is on the disk when say returns.
func (c *crash) say(line string) {
	f, err := os.OpenFile(filepath.Join(c.dir, "log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintln(f, line); err != nil {
		panic(err)
	}
	if err := f.Sync(); err != nil {
		panic(err)
	}
}

type crashSystemd struct {
	reconcile.Systemd
	c *crash
}

func (s crashSystemd) WriteDropIn(path, text string) (changed bool, err error) {
	s.c.around("WriteDropIn", path, func() { changed, err = s.Systemd.WriteDropIn(path, text) })
	return changed, err
}

func (s crashSystemd) RemoveDropIn(path string) (changed bool, err error) {
	s.c.around("RemoveDropIn", path, func() { changed, err = s.Systemd.RemoveDropIn(path) })
	return changed, err
}

func (s crashSystemd) Reload(ctx context.Context) (err error) {
	s.c.around("Reload", "", func() { err = s.Systemd.Reload(ctx) })
	return err
}

func (s crashSystemd) TryRestart(ctx context.Context, unit string) (err error) {
	s.c.around("TryRestart", unit, func() { err = s.Systemd.TryRestart(ctx, unit) })
	return err
}

func (s crashSystemd) Start(ctx context.Context, unit string) (err error) {
	s.c.around("Start", unit, func() { err = s.Systemd.Start(ctx, unit) })
	return err
}

func (s crashSystemd) Stop(ctx context.Context, unit string) (err error) {
	s.c.around("Stop", unit, func() { err = s.Systemd.Stop(ctx, unit) })
	return err
}

type crashAppArmor struct {
	reconcile.AppArmor
	c *crash
}

func (a crashAppArmor) Load(ctx context.Context, policies []attach.Compiled) (failed map[string]error) {
	var files []string
	for _, p := range policies {
		files = append(files, p.File)
	}
	a.c.around("Load", strings.Join(files, " "), func() { failed = a.AppArmor.Load(ctx, policies) })
	return failed
}

func (a crashAppArmor) Unload(ctx context.Context, names []string) (failed map[string]error) {
	a.c.around("Unload", strings.Join(names, " "), func() { failed = a.AppArmor.Unload(ctx, names) })
	return failed
}

// Save changes nothing; what it saves is for a Restore.
func (a crashAppArmor) Save(names []string) (reconcile.Saved, error) {
	saved, err := a.AppArmor.Save(names)
	if err != nil {
		return nil, err
	}
	return crashSaved{saved, strings.Join(names, " "), a.c}, nil
}

type crashSaved struct {
	reconcile.Saved
	names string
	c     *crash
}

func (s crashSaved) Restore(ctx context.Context) (stays map[string]error, err error) {
	s.c.around("Restore", s.names, func() { stays, err = s.Saved.Restore(ctx) })
	return stays, err
}

type crashAttachments struct {
	reconcile.Attachments
	c *crash
}

func (a crashAttachments) Write(unit string, at attach.Attachment) (file string, restore func() error, err error) {
	a.c.around("WriteAttachment", unit, func() { file, restore, err = a.Attachments.Write(unit, at) })
	if err != nil {
		return file, restore, err
	}
	withdraw := restore
	return file, func() (err error) {
		a.c.around("WithdrawAttachment", unit, func() { err = withdraw() })
		return err
	}, nil
}

func (a crashAttachments) Remove(file string) (err error) {
	a.c.around("RemoveAttachment", file, func() { err = a.Attachments.Remove(file) })
	return err
}

type crashPolicies struct {
	reconcile.Policies
	c *crash
}

func (p crashPolicies) Keep(policy attach.Compiled) (err error) {
	p.c.around("KeepPolicy", policy.File, func() { err = p.Policies.Keep(policy) })
	return err
}

func (p crashPolicies) Retain(ids map[string]bool) (err error) {
	p.c.around("RetainPolicies", "", func() { err = p.Policies.Retain(ids) })
	return err
}

type crashStore struct {
	reconcile.Store
	c *crash
}

func (s crashStore) Save(r attach.Record) (err error) {
	s.c.around("SaveRecord", r.Unit, func() { err = s.Store.Save(r) })
	return err
}

func (s crashStore) Delete(unit string) (err error) {
	s.c.around("DeleteRecord", unit, func() { err = s.Store.Delete(unit) })
	return err
}

type crashSockets struct {
	reconcile.SocketOptions
	c *crash
}

func (s crashSockets) Save(name string, o attach.SocketOptions) (changed bool, err error) {
	s.c.around("SaveSockets", name, func() { changed, err = s.SocketOptions.Save(name, o) })
	return changed, err
}

func (s crashSockets) Delete(name string) (changed bool, err error) {
	s.c.around("DeleteSockets", name, func() { changed, err = s.SocketOptions.Delete(name) })
	return changed, err
}

func (s crashSockets) Attach(group, unit string, o attach.SocketOptions) (changed bool, err error) {
	s.c.around("AttachSockets", unit, func() { changed, err = s.SocketOptions.Attach(group, unit, o) })
	return changed, err
}

func (s crashSockets) Remove(unit string) (changed bool, err error) {
	s.c.around("RemoveSockets", unit, func() { changed, err = s.SocketOptions.Remove(unit) })
	return changed, err
}
