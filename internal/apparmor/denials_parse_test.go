package apparmor

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/aaunit/aaunit/internal/attach"
)

// logged reads records of a real machine: each line is a type and a text, as the
// kernel sent them.
func logged(t testing.TB, suite string) (texts []string) {
	t.Helper()
	data, err := os.ReadFile("testdata/denials/" + suite + ".log")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		kind, text, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if kind != strconv.Itoa(auditAVC) {
			t.Fatalf("%q", line)
		}
		texts = append(texts, text)
	}
	return texts
}

// What the same program was denied on Debian 12 and 13.
var loggedLines = []string{
	`open /etc/shadow (r) denied, comm python3`,
	`open "/srv/rec/a file with spaces" (r) denied, comm python3`,
	`mknod "/srv/rec/a new file" (c) denied, comm python3`,
	`open /srv/rec/\xff\xfe\x80 (r) denied, comm python3`,
	`open /srv/rec/zürich (r) denied, comm python3`,
	`open "/srv/rec/a\"b" (r) denied, comm python3`,
	`open "/srv/rec/a b" (r) denied, comm python3`,
	`open /srv/rec/2F6574 (r) denied, comm python3`,
	`mkdir /srv/rec/dir/ (c) denied, comm python3`,
	`unlink "/srv/rec/a file with spaces" (d) denied, comm python3`,
	`rename_src /srv/rec/plain (wrd) denied, comm python3`,
	`link /srv/rec/link -> /srv/rec/readable (l) denied, comm python3`,
	`symlink /srv/rec/sym (c) denied, comm python3`,
	`chown /srv/rec/readable (w) denied, comm python3`,
	`create inet stream denied, comm python3`,
	`create inet6 dgram denied, comm python3`,
	`create netlink raw denied, comm python3`,
	`create packet raw denied, comm python3`,
	`capable sys_admin denied, comm python3`,
	`capable sys_nice denied, comm python3`,
	`signal term (send) peer unconfined denied, comm python3`,
	`signal exists (send) peer unconfined denied, comm python3`,
	`ptrace (trace) peer unconfined denied, comm python3`,
	`ptrace (read) peer unconfined denied, comm python3`,
	`mount tmpfs none on /srv/rec/mnt/ denied (failed mntpnt match), comm python3`,
	`mount /srv/rec/ on /srv/rec/mnt/ (rw, bind) denied (failed mntpnt match), comm python3`,
	`open /srv/rec/` + strings.Repeat(strings.Repeat("x", 250)+"/", 15),
	`open "/srv/rec/` + strings.Repeat(strings.Repeat("x ", 125)+"/", 15),
	`open /etc/shadow (r) not allowed, passed by complain mode, comm python3`,
	`capable net_raw not allowed, passed by complain mode, comm python3`,
	`umount /srv/rec/mnt/ not allowed, passed by complain mode, comm python3`,
	`change_profile other not allowed, passed by complain mode, comm python3`,
	`open /etc/shadow (r) denied, comm cat`,
	`signal term (receive) peer rec-peer denied, comm python3`,
	`ptrace (read) peer target denied, comm python3`,
	`ptrace (readby) peer rec-peer denied, comm python3`,
	`ptrace (trace) peer target denied, comm python3`,
	`ptrace (tracedby) peer rec-peer denied, comm python3`,
	`open /etc/shadow (r) denied, comm cat`,
	`change_onexec other denied, comm aa-exec`,
	`change_onexec nosuch denied (label not found), comm "(true)"`,
	`open /etc/shadow (r) denied and killed, comm cat`,
}

func TestParseDenialsOfRealMachines(t *testing.T) {
	var first []attach.Denial
	for _, suite := range []string{"bookworm", "trixie"} {
		var all []attach.Denial
		texts := logged(t, suite)
		if len(texts) != len(loggedLines) {
			t.Fatalf("%s has %d records, want %d", suite, len(texts), len(loggedLines))
		}
		for i, text := range texts {
			d, ok := parseDenial([]byte(text))
			if !ok || d.Cut || d.PID < 300 || d.Time.Year() != 2026 || d.First != d.Time || d.Last != d.Time || d.Count != 1 {
				t.Errorf("%s: %+v of %s", suite, d, text)
			}
			if want := loggedLines[i]; d.String() != want && (len(want) < 2000 || !strings.HasPrefix(want, strings.TrimSuffix(d.String(), "…"))) {
				t.Errorf("%s: %s, want %s", suite, d, want)
			}
			by := strings.Contains(d.Requested, "receive") || strings.HasSuffix(d.Requested, "by")
			if d.ByPeer() != by {
				t.Errorf("%s: by peer: %v, want %v", d, d.ByPeer(), by)
			}
			if (d.Class == "") != (suite == "bookworm") {
				t.Errorf("%s: class %q", suite, d.Class)
			}
			// The rest is the same on both.
			d.Time, d.First, d.Last, d.PID, d.Class = time.Time{}, time.Time{}, time.Time{}, 0, ""
			all = append(all, d)
		}
		if first == nil {
			first = all
		} else if diff := cmp.Diff(first, all); diff != "" {
			t.Errorf("the suites differ: %s", diff)
		}
	}
	own := attach.Denial{Count: 1, Profile: "rec", Comm: "python3", HasOwner: true}
	for i, change := range map[int]func(*attach.Denial){
		0: func(d *attach.Denial) { d.Operation, d.Name, d.Requested, d.Denied = "open", "/etc/shadow", "r", "r" },
		3: func(d *attach.Denial) {
			d.Operation, d.Name, d.Requested, d.Denied = "open", "/srv/rec/\xff\xfe\x80", "r", "r"
		},
		6: func(d *attach.Denial) {
			d.Operation, d.Name, d.Requested, d.Denied = "open", "/srv/rec/a\nb", "r", "r"
		},
		11: func(d *attach.Denial) {
			d.Operation, d.Name, d.Target, d.Requested, d.Denied = "link", "/srv/rec/link", "/srv/rec/readable", "l", "l"
		},
		16: func(d *attach.Denial) {
			d.HasOwner = false
			d.Operation, d.Family, d.SockType, d.Protocol, d.Requested, d.Denied = "create", "netlink", "raw", "9", "create", "create"
		},
		18: func(d *attach.Denial) { d.HasOwner, d.Operation, d.Capability = false, "capable", "sys_admin" },
		20: func(d *attach.Denial) {
			d.HasOwner = false
			d.Operation, d.Signal, d.Peer, d.Requested, d.Denied = "signal", "term", "unconfined", "send", "send"
		},
		25: func(d *attach.Denial) {
			d.HasOwner, d.Operation, d.Name, d.Source, d.Flags = false, "mount", "/srv/rec/mnt/", "/srv/rec/", "rw, bind"
			d.Info, d.Error = "failed mntpnt match", -13
		},
		27: func(d *attach.Denial) {
			d.Operation, d.Name, d.Requested, d.Denied = "open", "/srv/rec/"+strings.Repeat(strings.Repeat("x ", 125)+"/", 15), "r", "r"
		},
		32: func(d *attach.Denial) {
			d.Profile, d.Comm = "rec spaced name", "cat"
			d.Operation, d.Name, d.Requested, d.Denied = "open", "/etc/shadow", "r", "r"
		},
		38: func(d *attach.Denial) {
			d.Namespace, d.Profile, d.Comm = "root//recns", "rec-ns", "cat"
			d.Operation, d.Name, d.Requested, d.Denied = "open", "/etc/shadow", "r", "r"
		},
		41: func(d *attach.Denial) {
			d.Killed, d.Profile, d.Comm = true, "rec-kill", "cat"
			d.Operation, d.Name, d.Requested, d.Denied = "open", "/etc/shadow", "r", "r"
		},
	} {
		want := own
		change(&want)
		if diff := cmp.Diff(want, first[i]); diff != "" {
			t.Errorf("record %d: %s", i, diff)
		}
	}
}

func TestParseDenialOfHostileRecords(t *testing.T) {
	const head = `audit(1764028800.123:456): apparmor="DENIED" operation="open"`
	for text, want := range map[string]string{
		// Only AppArmor's, and only what was refused or let pass.
		"": "", "audit(": "", "audit(1.2:3): ": "",
		`audit(1764028800.123:456): avc:  denied  { read } for  pid=1 apparmor="DENIED" operation="open"`:                                     "",
		`audit(1764028800.123:456): apparmor="STATUS" operation="profile_load" profile="unconfined" name="x" pid=1 comm="apparmor_parser"`:    "",
		`audit(1764028800.123:456): apparmor="AUDIT" operation="open" profile="x" name="/y" pid=1 comm="c" requested_mask="r" fsuid=0 ouid=0`: "",
		`audit(1764028800.123:456): apparmor="HINT" operation="exec"`:                                                                         "",
		`audit(1764028800.123:456): apparmor=DENIED operation="open"`:                                                                         "",
		`audit(1764028800.123:456): operation="open" apparmor="DENIED"`:                                                                       "",
		`audit(1764028800.123:456): apparmor="DENIED" profile="x"`:                                                                            "",
		`audit(99999999999999999999.123:456): apparmor="DENIED" operation="open"`:                                                             "",
		`audit(1764028800.1234:456): apparmor="DENIED" operation="open"`:                                                                      "",
		`audit(-1.123:456): apparmor="DENIED" operation="open"`:                                                                               "",
		`apparmor="DENIED" operation="open"`:                                                                                                  "",
		head:                                                                                                                                  "open denied",
		head + ` name="(null)"`:                                                                                                               `open "(null)" denied`,
		head + ` name=(null)`:                                                                                                                 `open "(null)" denied`,
		head + ` name="a" name="b"`:                                                                                                           "open a denied",
		head + ` name="unfinished`:                                                                                                            "open unfinished denied",
		head + ` name=2F612`:                                                                                                                  "open /a denied", // cut in the middle of a byte
		head + ` name=`:                                                                                                                       "open denied",
		head + ` name`:                                                                                                                        "open denied",
		head + ` =x "y" name="/z"`:                                                                                                            "open /z denied",
		head + ` name=2F22206E616D653D22`:                                                                                                     `open "/\" name=\"" denied`,
		head + ` name=2F1B5B316D00`:                                                                                                           "open /\\u001b[1m\\u0000 denied",
		head + ` name="/a" pid=-3 comm="x"` + "\n":                                                                                            "open /a denied, comm x",
		head + ` pid=99999999999999999999 name=2f61 fsuid=1`:                                                                                  "open /a denied",
	} {
		d, ok := parseDenial([]byte(text))
		got := ""
		if ok {
			got = d.String()
		}
		if got != want {
			t.Errorf("%s gives %q, want %q", text, got, want)
		}
		if d.PID != 0 || d.HasOwner {
			t.Errorf("%s gives PID %d, owner %v", text, d.PID, d.HasOwner)
		}
	}

	long, _ := parseDenial([]byte(head + ` name="` + strings.Repeat("x", maxField+1) + `" comm="c"`))
	hex, _ := parseDenial([]byte(head + ` name=` + strings.Repeat("41", maxField+1) + ` comm="c"`))
	for _, d := range []attach.Denial{long, hex} {
		if len(d.Name) != maxField || !d.Cut || d.Comm != "c" {
			t.Errorf("%d bytes, cut %v, comm %q", len(d.Name), d.Cut, d.Comm)
		}
	}
	many, ok := parseDenial([]byte(head + strings.Repeat(" x=y", 10_000) + ` name="/late"`))
	if !ok || !many.Cut || many.Name != "" {
		t.Errorf("%v %+v", ok, many)
	}
}

func FuzzParseDenial(f *testing.F) {
	for _, suite := range []string{"bookworm", "trixie"} {
		for _, text := range logged(f, suite) {
			f.Add([]byte(text))
		}
	}
	f.Add([]byte(`audit(1764028800.123:456): apparmor="ALLOWED" operation="exec" info="x" label="a//&b" name=2F2 target=? peer="c" comm=61 =, "`))
	f.Fuzz(func(t *testing.T, b []byte) {
		was := bytes.Clone(b)
		d, ok := parseDenial(b)
		if !bytes.Equal(was, b) {
			t.Fatal("the record was changed")
		}
		if !ok {
			return
		}
		if !d.IsDenial() || d.Operation == "" || d.Count != 1 || d.PID < 0 || d.Unit != "" || d.Time.Before(time.Unix(0, 0)) || d.Allowed && d.Killed {
			t.Fatalf("%+v", d)
		}
		total := 0
		for _, s := range []string{d.Profile, d.Namespace, d.Operation, d.Class, d.Name, d.Target, d.Peer, d.Requested, d.Denied, d.Family, d.SockType,
			d.Protocol, d.Capability, d.Signal, d.FSType, d.Source, d.Flags, d.Rlimit, d.Value, d.Comm, d.Info} {
			if len(s) > maxField {
				t.Fatalf("%d bytes", len(s))
			}
			total += len(s)
		}
		if total > len(b) {
			t.Fatalf("%d bytes out of %d", total, len(b))
		}
		// What is printed is safe for a terminal.
		line := d.String()
		if !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
			t.Fatalf("%q", line)
		}
		// The same record twice is the same denial; its process does not matter.
		again, _ := parseDenial(b)
		again.PID++
		if again.Key() != d.Key() {
			t.Fatal("a denial is not the same as itself")
		}
		// The buffer is used again by the next record.
		key := d.Key()
		for i := range b {
			b[i] = '!'
		}
		if d.Key() != key {
			t.Fatal("a denial lies in the buffer of the record")
		}
	})
}
