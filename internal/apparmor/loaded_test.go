package apparmor

import (
	"bytes"
	"compress/zlib"
	"strings"
	"testing"

	"github.com/aaunit/aaunit/internal/apparmor/policydb"
	"github.com/aaunit/aaunit/internal/apparmor/unpack"
)

// What is loaded comes with its own bytes, whatever it was loaded together with,
// packed or not, and with the kernel's checksum.
func TestLoaded(t *testing.T) {
	h := newHost(t)
	h.opt.Unpack = unpack.Policy
	done, problems := h.Compile(ctx(t), []string{h.profile("p", "profile one {\n  /one r,\n  profile kid {\n    /kid r,\n  }\n}\nprofile two {\n  /two r,\n}\n")}, false)
	if len(done) != 1 {
		t.Fatal(problems)
	}
	var zipped bytes.Buffer
	z := zlib.NewWriter(&zipped)
	_, _ = z.Write(done[0].Blob)
	z.Close()
	dir := securityDir + "/policy/profiles/"
	put := func(at, name, raw string) {
		h.write(at+"/name", name+"\n")
		h.write(at+"/mode", "enforce\n")
		h.write(at+"/sha1", strings.Repeat("0", 38)+"aa\n")
		if raw != "" {
			h.write(at+"/raw_data", raw)
		}
	}
	put(dir+"one.1", "one", string(done[0].Blob))
	put(dir+"one.1/profiles/kid.2", "kid", string(done[0].Blob))
	put(dir+"two.3", "two", zipped.String())
	put(dir+"bare.4", "bare", "")
	put(dir+"odd.5", "odd", "no policy")
	put(dir+"lost.6", "lost", string(done[0].Blob))

	all, err := h.Loaded([]string{})
	if err != nil || len(all) != 6 {
		t.Fatalf("%v %+v", err, all)
	}
	reads := map[string]string{"one": "/one", "one//kid": "/kid", "two": "/two"}
	ids := map[string]bool{}
	for _, c := range all {
		name := c.Profiles[0].Name
		ids[c.ID+c.Environment] = true
		if c.Checksums[name] != "sha1:"+strings.Repeat("0", 38)+"aa" || c.Profiles[0].Flags[0] != "enforce" {
			t.Errorf("%s: %+v", name, c)
		}
		path := reads[name]
		if (c.Blob != nil) != (path != "") || (c.NotStaged == "") != (path != "") {
			t.Errorf("%s: %d bytes, %q", name, len(c.Blob), c.NotStaged)
		}
		if path == "" {
			continue
		}
		profiles, err := policydb.Parse(c.Blob)
		if err != nil || len(profiles) != 1 || profiles[0].Name != name || profiles[0].Allows(path, policydb.Read, policydb.Owner) != policydb.Yes {
			t.Errorf("%s: %v %+v", name, err, profiles)
		}
	}
	if len(ids) != len(all) {
		t.Errorf("two policies have one ID: %v", ids)
	}
	some, err := h.Loaded([]string{"one", "none"})
	if err != nil || len(some) != 2 || some[0].Profiles[0].Name != "one" || some[1].Profiles[0].Name != "one//kid" {
		t.Errorf("%v %+v", err, some)
	}
	if _, err := newHost(t).Loaded(nil); err == nil {
		t.Error("a kernel that shows no policy has none to ask")
	}
}
