package gate

import (
	"errors"
	"testing"

	"github.com/aaunit/aaunit/internal/attach"
)

// What a record is about, asked of another policy.
func TestDenies(t *testing.T) {
	const text = `#include <tunables/global>
profile agent /usr/bin/agent {
  /etc/read r,
  /etc/both rw,
  deny /etc/both w,
  /var/log/agent a,
  /var/lib/agent/** rw,
  owner /home/** rw,
  /usr/bin/id ix,
  /usr/bin/free ux,
  /usr/bin/own px,
  /usr/bin/ownor pix,
  /usr/bin/ownfree pux,
  /usr/bin/child cx,
  /usr/bin/gone px -> gone,
  /usr/lib/** mr,
  /srv/lock rwk,
  /srv/a rw,
  link /srv/b -> /srv/a,
  capability net_admin,
  network inet stream,
  signal (send) set=(term) peer=other,
  ptrace (read) peer=other,
  umount /mnt/,
  pivot_root oldroot=/new/old/ /new/,
  profile sub {
    /etc/sub r,
  }
  ^hat {
    /etc/hat r,
  }
}
profile softly flags=(complain) {
  /etc/read r,
}
profile free flags=(unconfined) {
}
`
	type denial = attach.Denial
	file := func(mask, name string) denial {
		return denial{Operation: "open", Class: "file", Name: name, Requested: mask, Denied: mask}
	}
	by := func(d denial, fsuid, ouid uint32) denial {
		d.HasOwner, d.FSUID, d.OUID = true, fsuid, ouid
		return d
	}
	of := func(d denial, profile string) denial {
		d.Profile = profile
		return d
	}
	with := func(d denial, change func(*denial)) denial {
		change(&d)
		return d
	}
	op := func(operation string, d denial) denial {
		d.Operation = operation
		return d
	}
	link := func(name, target string) denial {
		return by(denial{Operation: "link", Class: "file", Name: name, Target: target, Denied: "l"}, 7, 7)
	}
	net := func(family, typ, mask string) denial {
		return denial{Operation: "create", Class: "net", Family: family, SockType: typ, Denied: mask}
	}
	signal := func(mask, sig, peer string) denial {
		return denial{Operation: "signal", Denied: mask, Signal: sig, Peer: peer}
	}
	ptrace := func(mask, peer string) denial {
		return denial{Operation: "ptrace", Denied: mask, Peer: peer}
	}
	const yes, no, untold = attach.Yes, attach.No, attach.CouldNotTell
	c := compile(t, text)
	for i, tt := range []struct {
		d    denial
		want attach.Tri
	}{
		{file("r", "/etc/read"), no},
		{file("w", "/etc/read"), yes},
		{file("rw", "/etc/read"), yes},
		{with(file("", "/etc/read"), func(d *denial) { d.Requested = "r" }), no},
		{file("r", "/etc/both"), no},
		{file("w", "/etc/both"), yes}, // by a rule that says so
		{file("a", "/var/log/agent"), no},
		{file("w", "/var/log/agent"), yes},
		{op("mkdir", file("c", "/var/lib/agent/d/")), no},
		{op("unlink", file("d", "/var/lib/agent/f")), no},
		{op("mkdir", file("c", "/var/lib/other/")), yes},
		{op("getattr", file("r", "/etc/nothing")), no}, // as long as there are rules on files
		{file("k", "/srv/lock"), no},
		{file("k", "/srv/a"), yes},
		{op("file_mmap", file("m", "/usr/lib/a.so")), no},
		{op("file_mmap", file("m", "/etc/read")), yes},
		{op("exec", file("x", "/usr/bin/id")), no},
		{op("exec", file("x", "/usr/bin/other")), yes},
		{op("exec", file("x", "/usr/bin/free")), no},
		{op("exec", file("x", "/usr/bin/ownor")), no},
		{op("exec", file("x", "/usr/bin/ownfree")), no},
		{op("exec", file("x", "/usr/bin/own")), untold}, // is there such a profile?
		{op("exec", file("x", "/usr/bin/child")), untold},
		{op("exec", file("x", "/usr/bin/gone")), untold},
		{by(file("r", "/home/a/f"), 7, 7), no},
		{by(file("r", "/home/a/f"), 0, 7), yes},
		{file("r", "/home/a/f"), untold}, // of whom?
		{by(file("r", "/etc/shadow"), 7, 7), yes},
		{file("r", "/etc/shadow"), yes},
		{with(file("r", "/etc/read"), func(d *denial) { d.Class = "" }), no}, // Debian 12
		{link("/srv/b", "/srv/a"), no},
		{link("/srv/c", "/srv/a"), yes},
		{with(link("/srv/b", "/srv/a"), func(d *denial) { d.Info = "target restricted" }), no},
		{with(link("/srv/b", "/srv/c"), func(d *denial) { d.Info = "target restricted" }), yes},
		{link("/srv/b", ""), untold},
		{denial{Operation: "capable", Capability: "net_admin"}, no},
		{denial{Operation: "capable", Capability: "sys_admin"}, yes},
		{denial{Operation: "capable", Capability: "fly"}, untold},
		{net("inet", "stream", "create"), no},
		{net("inet", "stream", "send receive"), no},
		{net("inet", "dgram", "create"), yes},
		{net("inet", "stream", "wink"), untold},
		{net("inet", "dccp", "create"), untold},
		{net("unknown(99)", "stream", "create"), untold},
		{with(net("unix", "stream", "connect"), func(d *denial) { d.Name = "/run/x" }), untold},
		{signal("send", "term", "other"), no},
		{signal("send", "kill", "other"), yes},
		{signal("send", "term", "unconfined"), yes},
		{signal("receive", "term", "other"), yes},
		{signal("send", "term", "other//&b"), untold},
		{signal("send", "term", ":ns:other"), untold},
		{signal("send", "unknown(70)", "other"), untold},
		{signal("send", "term", ""), untold},
		{ptrace("read", "other"), no},
		{ptrace("trace", "other"), yes},
		{ptrace("wink", "other"), untold},
		{denial{Operation: "umount", Name: "/mnt/"}, no},
		{denial{Operation: "umount", Name: "/home/"}, yes},
		{denial{Operation: "umount"}, untold},
		{denial{Operation: "pivotroot", Name: "/new/", Source: "/new/old/"}, no},
		{denial{Operation: "pivotroot", Name: "/new/", Source: "/old/"}, yes},
		{of(file("r", "/etc/sub"), "agent//sub"), no},
		{of(file("r", "/etc/read"), "agent//sub"), yes},
		{of(file("r", "/etc/hat"), "agent//hat"), no},
		{of(file("r", "/etc/read"), "agent//gone"), untold},
		{of(file("r", "/etc/read"), "agent//null-/usr/bin/id"), untold},
		{of(file("r", "/etc/read"), "agent//&softly"), untold},
		{of(file("r", "/etc/read"), "softly"), no},
		{of(file("r", "/etc/shadow"), "softly"), untold},
		{of(file("r", "/etc/shadow"), "free"), no},
		{with(file("r", "/etc/read"), func(d *denial) { d.Namespace = "root//ns" }), untold},
		{with(file("r", "/etc/read"), func(d *denial) { d.Cut = true }), untold},
		{with(file("r", "etc/read"), func(d *denial) { d.Info = "Failed name lookup - disconnected path" }), untold},
		{with(op("exec", file("x", "/usr/bin/id")), func(d *denial) { d.Info = "no new privs" }), untold},
		{file("z", "/etc/read"), untold},
		{file("", "/etc/read"), untold},
		{file("r", "etc/read"), untold},
		{with(file("r", "/etc/read"), func(d *denial) { d.Class = "io_uring" }), untold},
		{denial{Operation: "mount", Class: "mount", Name: "/mnt/", FSType: "tmpfs", Source: "tmpfs", Flags: "rw", Info: "failed mntpnt match"}, untold},
		{denial{Operation: "change_profile", Name: "unconfined"}, untold},
		{denial{Operation: "setrlimit", Rlimit: "nofile", Value: "10"}, untold},
		{denial{Lost: 3}, untold},
		{denial{}, untold},
	} {
		if tt.d.Profile == "" {
			tt.d.Profile = "agent"
		}
		if got := New(nil).Denies(t.Context(), c, tt.d); got != tt.want {
			t.Errorf("%d: %+v: %s, want %s", i, tt.d, got, tt.want)
		}
	}
	// Where no rules are on ptrace it is a capability that decides.
	old := compile(t, "# no ptrace\n"+profile("capability sys_ptrace,"))
	if got := New(nil).Denies(t.Context(), old, of(ptrace("read", "other"), "agent")); got != untold {
		t.Error(got)
	}
	// Of kept policy the bytes are read; where they cannot be, nothing is known.
	kept := c
	kept.Blob = nil
	if got := New(func(string) (attach.Compiled, error) { return c, nil }).Denies(t.Context(), kept, of(file("w", "/etc/read"), "agent")); got != yes {
		t.Error(got)
	}
	if got := New(func(string) (attach.Compiled, error) { return c, errors.New("gone") }).Denies(t.Context(), kept, of(file("w", "/etc/read"), "agent")); got != untold {
		t.Error(got)
	}
}

// Only where programs run under the same profiles by both policies are the answers of one
// about what the other denied.
func TestSameWays(t *testing.T) {
	const sub = "profile sub {\n/etc/secret r,\n}"
	const yes, no, untold = attach.Yes, attach.No, attach.CouldNotTell
	other := "profile helper /usr/lib/agent/helper {\n/etc/secret r,\n}\n"
	type policies = []attach.Compiled
	of := func(texts ...string) (out policies) {
		for _, text := range texts {
			out = append(out, compile(t, text))
		}
		return out
	}
	child := of(profile("/usr/lib/agent/helper Cx -> sub,\n" + sub))
	for i, c := range []struct {
		was, is policies
		want    attach.Tri
	}{
		{child, of(profile("/usr/lib/agent/helper Cx -> sub, /srv/** rw,\n" + sub)), yes},
		{child, of(profile("/usr/lib/agent/helper ix,\n" + sub)), no},
		{of(profile("/usr/lib/agent/helper ux,\n" + sub)), child, no},
		{of(profile("/usr/lib/agent/helper ix,")), of(profile("/usr/lib/agent/helper Px,")), no},
		{of(profile("/usr/lib/agent/helper px,"), other), of(other, profile("/usr/lib/agent/helper px, /a r,")), yes},
		{of(profile("/usr/lib/agent/helper px,"), other), of(profile("/usr/lib/agent/helper px,")), no},
		{nil, child, no},
		{nil, nil, yes},
	} {
		g := New(nil)
		for range 2 {
			if got := g.SameWays(t.Context(), c.was, c.is); got != c.want {
				t.Errorf("%d: %s, want %s", i, got, c.want)
			}
		}
	}
	kept := policies{child[0]}
	kept[0].Blob = nil
	another := of(profile("/a r,"))
	for _, c := range [][2]policies{{kept, another}, {another, kept}} {
		gone := New(func(string) (attach.Compiled, error) { return child[0], errors.New("gone") })
		if got := gone.SameWays(t.Context(), c[0], c[1]); got != untold {
			t.Error(got)
		}
	}
}
