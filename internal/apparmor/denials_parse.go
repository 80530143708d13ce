package apparmor

import (
	"bytes"
	"encoding/hex"
	"strconv"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// Bounds on one record.
const (
	maxField  = 4 << 10 // of a value, decoded; PATH_MAX
	maxFields = 64      // the kernel writes about 25
)

// parseDenial reads the text of an audit record of type AVC:
//
//	audit(1764028800.123:456): apparmor="DENIED" operation="open" profile="x" name="/etc/shadow" …
//
// ok is false for what is no denial: a profile that was loaded (STATUS), an
// access that a rule allows and audits (AUDIT), another security module's record.
// Which words there are is in security/apparmor/audit.c (aa_audit_type); each
// kind of record is put together there in audit_pre, in the file of its class,
// and in security/lsm_audit.c.
//
// A value is a number or a word, a text in double quotes, or, where the text came
// from user space and holds a quote, a space, a control character or a byte above
// 0x7e, its bytes in hexadecimal digits without quotes
// (audit_log_n_untrustedstring in kernel/audit.c). So a quote always ends a text,
// and nobody can write a field into a name. Of a key that comes twice the first
// counts.
//
// go-libaudit has a parser, auparse. It does not decode the names of these
// records, takes the last of two keys, drops texts such as "(null)" that can be
// names, and has no bounds.
func parseDenial(b []byte) (d attach.Denial, ok bool) {
	at, b, ok := parseStamp(b)
	if !ok {
		return d, false
	}
	d = attach.Denial{Time: at, First: at, Last: at, Count: 1}
	seen := map[string]bool{}
	for n := 0; len(b) > 0; n++ {
		var key string
		var v fieldValue
		if key, v, b = nextField(b); key == "" {
			break
		}
		switch {
		case n == 0: // always the first
			switch {
			case key != "apparmor" || !v.quoted:
				return d, false
			case v.is("DENIED"):
			case v.is("ALLOWED"):
				d.Allowed = true
			case v.is("KILLED"):
				d.Killed = true
			default:
				return d, false
			}
		case n == maxFields:
			d.Cut = true
			return d, d.Operation != ""
		default:
			take(&d, seen, key, v)
		}
	}
	return d, d.Operation != ""
}

// parseStamp reads "audit(SECONDS.MILLISECONDS:SERIAL): " (audit_log_start).
func parseStamp(b []byte) (at time.Time, rest []byte, ok bool) {
	stamp, ok := bytes.CutPrefix(b[:min(len(b), 64)], []byte("audit("))
	if !ok {
		return at, nil, false
	}
	stamp, _, ok = bytes.Cut(stamp, []byte("): "))
	if !ok {
		return at, nil, false
	}
	rest = b[len("audit(")+len(stamp)+len("): "):]
	when, _, _ := bytes.Cut(stamp, []byte(":"))
	whole, milli, _ := bytes.Cut(when, []byte("."))
	s, err := strconv.ParseUint(string(whole), 10, 33)
	if err != nil {
		return at, nil, false
	}
	ms, err := strconv.ParseUint(string(milli), 10, 16)
	if err != nil || ms > 999 {
		return at, nil, false
	}
	return time.Unix(int64(s), int64(ms)*int64(time.Millisecond)), rest, true
}

// fieldValue is a value as it stands in the record.
type fieldValue struct {
	raw    []byte
	quoted bool
}

func (v fieldValue) is(s string) bool { return string(v.raw) == s }

// nextField takes KEY=VALUE off the front. What has no key is passed over: the
// kernel puts words such as commas in between.
func nextField(b []byte) (key string, v fieldValue, rest []byte) {
	for {
		b = bytes.TrimLeft(b, " \t\n\x00")
		i := bytes.IndexAny(b, "= \"")
		switch {
		case i < 0:
			return "", v, nil
		case b[i] == ' ' || i == 0 || b[i] == '"':
			b = b[i+1:]
			continue
		}
		key, b = string(b[:min(i, 32)]), b[i+1:] // no key that is asked for is longer
		if len(b) > 0 && b[0] == '"' {
			v.quoted = true
			b = b[1:]
			end := bytes.IndexByte(b, '"')
			if end < 0 {
				end = len(b)
			}
			v.raw = b[:end]
			return key, v, b[min(end+1, len(b)):]
		}
		end := bytes.IndexAny(b, " \n\x00")
		if end < 0 {
			end = len(b)
		}
		v.raw = b[:end]
		return key, v, b[end:]
	}
}

// take puts a field where it belongs; seen holds the keys that were taken.
func take(d *attach.Denial, seen map[string]bool, key string, v fieldValue) {
	if seen[key] {
		return
	}
	// text is one that user space has a hand in, word one of the kernel's own.
	text := func(to *string) { *to = v.text(&d.Cut) }
	word := func(to *string) { *to = v.word(&d.Cut) }
	switch key {
	case "operation":
		word(&d.Operation)
	case "class":
		word(&d.Class)
	case "info":
		word(&d.Info)
	case "error":
		d.Error, _ = strconv.Atoi(v.word(&d.Cut))
	case "namespace":
		text(&d.Namespace)
	case "profile", "label": // one of the two (audit_pre)
		if d.Profile == "" {
			text(&d.Profile)
		}
	case "name":
		text(&d.Name)
	case "target":
		text(&d.Target)
	case "peer":
		text(&d.Peer)
	case "requested_mask":
		word(&d.Requested)
	case "denied_mask":
		word(&d.Denied)
	case "family":
		word(&d.Family)
	case "sock_type":
		word(&d.SockType)
	case "protocol":
		word(&d.Protocol)
	case "capname":
		word(&d.Capability)
	case "signal":
		word(&d.Signal)
	case "fstype":
		text(&d.FSType)
	case "srcname":
		text(&d.Source)
	case "flags":
		word(&d.Flags)
	case "rlimit":
		word(&d.Rlimit)
	case "value":
		word(&d.Value)
	case "pid":
		if pid, err := strconv.ParseInt(v.word(&d.Cut), 10, 32); err == nil && pid > 0 {
			d.PID = int(pid)
		}
	case "comm":
		text(&d.Comm)
	case "fsuid", "ouid":
		id, err := strconv.ParseUint(v.word(&d.Cut), 10, 32)
		if err != nil {
			return
		}
		if key == "fsuid" {
			d.FSUID = uint32(id)
		} else {
			d.OUID = uint32(id)
		}
		d.HasOwner = seen["fsuid"] || seen["ouid"] // the other one came before
	default:
		return
	}
	seen[key] = true
}

// word is the value as it stands.
func (v fieldValue) word(cut *bool) string {
	if len(v.raw) > maxField {
		*cut = true
		return string(v.raw[:maxField])
	}
	return string(v.raw)
}

// text is the value with hexadecimal digits decoded. Without quotes, what is not
// made of them is the kernel's own word, as "(null)" or "?".
func (v fieldValue) text(cut *bool) string {
	if v.quoted || len(v.raw) == 0 {
		return v.word(cut)
	}
	n := min(len(v.raw)/2, maxField)
	out := make([]byte, n)
	if _, err := hex.Decode(out, v.raw[:2*n]); err != nil {
		return v.word(cut)
	}
	*cut = *cut || 2*n < len(v.raw) // an odd digit: the record itself was cut
	return string(out)
}
