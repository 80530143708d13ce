package report

import (
	"encoding/csv"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
)

// columns are those of the table; they are added to and never renamed.
var columns = []string{"host", "host_id", "reported", "unit", "attached", "profile", "mode", "standing", "since", "looked", "reason", "evidence_number", "evidence_sha256",
	"policy_sha256", "executable", "executable_sha256", "package", "allowed", "allowed_without_reason", "exposed_to", "listens", "denied",
	"socket_options", "socket_list_stale", "socket_options_refused"}

// CSV writes one row for each attached unit and each service without a profile. A cell
// that a spreadsheet would take for a formula begins with an apostrophe.
func CSV(w io.Writer, d Document) error {
	c := csv.NewWriter(w)
	c.UseCRLF = true // RFC 4180
	if err := c.Write(columns); err != nil {
		return err
	}
	row := make([]string, len(columns))
	for _, h := range d.Hosts {
		for _, u := range h.Units {
			clear(row)
			copy(row, []string{h.Machine.Name, h.Machine.ID, stamp(h.At), u.Unit, "yes", u.Profile, string(u.Mode), Standing(u), stamp(u.Since)})
			if v := u.Verdict; v != nil {
				row[9] = stamp(v.At)
				if len(v.Reasons) > 0 {
					row[10] = string(v.Reasons[0].Code)
				}
			}
			if e := u.Evidence; e != nil {
				row[11], row[12] = strconv.Itoa(e.Number), e.SHA256
				if len(e.Policies) > 0 {
					row[13] = e.Policies[0].Compiled
				}
				row[14], row[15], row[16] = e.Executable.Path, e.Executable.SHA256, strings.TrimSpace(e.Executable.Package+" "+e.Executable.Version)
			}
			without := 0
			for _, a := range u.Allowed {
				if strings.TrimSpace(a.Reason) == "" {
					without++
				}
			}
			row[17], row[18] = strconv.Itoa(len(u.Allowed)), strconv.Itoa(without)
			if u.Seen != nil {
				row[20] = everySocket(u.Seen.Listening)
			}
			if s := u.Sockets; s != nil {
				row[22], row[24] = string(s.Mode), strconv.FormatUint(s.Refused, 10)
				if s.Options > 0 {
					row[23] = s.Stale.String()
				}
			}
			row[21] = strconv.Itoa(u.Denials.Denied + u.Denials.Killed)
			if err := write(c, row); err != nil {
				return err
			}
		}
		if h.Unattached == nil {
			continue
		}
		for _, e := range h.Unattached.Services {
			clear(row)
			copy(row, []string{h.Machine.Name, h.Machine.ID, stamp(h.At), e.Unit, "no", "", "", "without a profile"})
			row[14], row[19], row[20] = e.Program, string(e.Class), everySocket(e.Listening)
			if err := write(c, row); err != nil {
				return err
			}
		}
	}
	c.Flush()
	return c.Error()
}

func write(c *csv.Writer, row []string) error {
	safe := make([]string, len(row))
	for i, s := range row {
		s = oneLine(s)
		if s != "" && strings.ContainsRune("=+-@", rune(s[0])) {
			s = "'" + s
		}
		safe[i] = s
	}
	return c.Write(safe)
}

// oneLine takes out of a text what is no character that one sees.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return '\uFFFD'
		}
		return r
	}, s)
}

func everySocket(list []attach.Listening) string {
	var out []string
	for _, l := range list {
		out = append(out, l.String())
	}
	return strings.Join(out, "; ")
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
