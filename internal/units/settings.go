package units

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
	"golang.org/x/sys/unix"
)

// maxUnitFile bounds a unit file; systemd itself refuses longer lines.
const maxUnitFile = 1 << 20

// watchedKeys are the settings of which it matters who set them, by section.
var watchedKeys = map[string][]string{
	"Unit":    {"AssertSecurity"},
	"Service": {"AppArmorProfile", "PrivateTmp", "PermissionsStartOnly", "ExecStartPre"},
}

// assignments reads who set what: the unit file first, then its drop-ins in
// the order in which systemd applies them, which is that of DropInPaths.
//
// A file that is gone is left out: systemd still has what it said in effect
// until the next reload, and NeedReload tells. One that cannot be read is an
// error, because what it sets could not be accounted for.
func (s *Systemd) assignments(u attach.Unit) ([]attach.Assignment, error) {
	if u.LoadState == "masked" || u.LoadState == "not-found" {
		return nil, nil
	}
	var out []attach.Assignment
	for _, path := range append([]string{u.FragmentPath}, u.DropIns...) {
		if path == "" || path == os.DevNull {
			continue
		}
		as, err := s.readAssignments(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, as...)
	}
	return out, nil
}

// readAssignments follows links as systemd does: unit files are often linked.
func (s *Systemd) readAssignments(path string) ([]attach.Assignment, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("cannot read unit file %q: it is not an absolute path", path)
	}
	f, err := os.OpenFile(filepath.Join(s.root, path), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read unit file %s: %w", path, errors.Unwrap(err))
	}
	defer f.Close()
	switch st, err := f.Stat(); {
	case err != nil:
		return nil, fmt.Errorf("cannot read unit file %s: %w", path, err)
	case st.Mode()&fs.ModeCharDevice != 0:
		return nil, nil // a link to /dev/null says nothing
	case !st.Mode().IsRegular():
		return nil, fmt.Errorf("cannot read unit file %s: it is not a regular file", path)
	}
	as, err := parseAssignments(f, path)
	if err != nil {
		return nil, fmt.Errorf("cannot read unit file %s: %w", path, err)
	}
	return as, nil
}

// parseAssignments finds the watched settings in a unit file or drop-in, as
// systemd reads them (systemd.syntax(7), config_parse): a backslash at the end
// continues a line with the next one, a comment line in between does not end
// it; a line that is not UTF-8 is skipped; a section header that is none ends
// the file. The line of an assignment is the one where it begins.
func parseAssignments(r io.Reader, path string) ([]attach.Assignment, error) {
	return parseUnit(r, path, watchedKeys)
}

// parseUnit is parseAssignments for these settings, by section.
func parseUnit(r io.Reader, path string, keys map[string][]string) ([]attach.Assignment, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxUnitFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxUnitFile {
		return nil, fmt.Errorf("it is larger than %d bytes", maxUnitFile)
	}
	p := unitFile{path: path, keys: keys}
	lines := bufio.NewScanner(bytes.NewReader(bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))))
	lines.Buffer(nil, maxUnitFile+1)
	lines.Split(splitLine)
	for n := 1; lines.Scan(); n++ {
		if !p.physical(strings.TrimLeft(lines.Text(), whiteSpace), n) {
			return p.found, nil
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if p.begun > 0 {
		p.logical(p.text.String(), p.begun)
	}
	return p.found, nil
}

const whiteSpace = " \t\n\r"

// splitLine splits where systemd's read_line does: at a newline, a carriage
// return, both together, or a NUL.
func splitLine(data []byte, atEOF bool) (advance int, token []byte, err error) {
	i := bytes.IndexAny(data, "\n\r\x00")
	switch {
	case i < 0 && !atEOF:
		return 0, nil, nil
	case i < 0 && len(data) == 0:
		return 0, nil, nil
	case i < 0:
		return len(data), data, nil
	case data[i] == '\r' && i+1 == len(data) && !atEOF:
		return 0, nil, nil // is a newline next?
	case data[i] == '\r' && i+1 < len(data) && data[i+1] == '\n':
		return i + 2, data[:i], nil
	}
	return i + 1, data[:i], nil
}

// unitFile is the state of the parser.
type unitFile struct {
	path    string
	keys    map[string][]string // that are looked for, by section
	section string
	begun   int // line where the continued line began; 0 none
	text    strings.Builder
	found   []attach.Assignment
}

// physical takes one line of the file; false ends it.
func (p *unitFile) physical(line string, n int) bool {
	if line != "" && (line[0] == '#' || line[0] == ';') {
		return true
	}
	body := strings.TrimRight(line, `\`)
	if backslashes := len(line) - len(body); backslashes%2 == 1 {
		if p.begun == 0 {
			p.begun = n
		}
		p.text.WriteString(line[:len(line)-1] + " ")
		return true
	}
	if p.begun == 0 {
		return p.logical(line, n)
	}
	p.text.WriteString(line)
	whole, begun := p.text.String(), p.begun
	p.text.Reset()
	p.begun = 0
	return p.logical(whole, begun)
}

// logical takes one line with its continuations; false ends the file.
func (p *unitFile) logical(line string, n int) bool {
	line = strings.Trim(line, whiteSpace)
	switch {
	case line == "" || !utf8.ValidString(line):
		return true
	case line[0] == '[':
		p.section = ""
		if len(line) < 2 || line[len(line)-1] != ']' {
			return false
		}
		p.section = line[1 : len(line)-1]
		return true
	}
	key, value, ok := strings.Cut(line, "=")
	if !ok {
		return true
	}
	key = strings.TrimRight(key, whiteSpace)
	for _, k := range p.keys[p.section] {
		if k == key {
			p.found = append(p.found, attach.Assignment{Key: key, Value: strings.Trim(value, whiteSpace), Path: p.path, Line: n})
		}
	}
	return true
}
