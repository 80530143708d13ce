// Package report makes of what hosts tell about themselves a report that people and
// auditors can read: findings, the controls that they bear on, what has changed, and
// one page of HTML. It is pure.
//
// A report file may come from another host, and say anything: it is bounded before it
// is looked at, and nothing in it is taken for more than what that host says.
//
// Read document.go first (the file), then findings.go (what there is to say of it),
// controls.go, drift.go, and html.go with page.html.
package report

import (
	"cmp"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aaunit/aaunit/internal/attach"
)

// Format is the format of documents that this version writes; schema.json describes it.
const (
	Format = 1
	Kind   = "aaunit-report"
)

// Schema is the JSON Schema of a document.
//
//go:embed schema.json
var Schema []byte

// Document is a report of one or more hosts, as it is kept and passed on.
type Document struct {
	Kind   string              `json:"kind"`
	Format int                 `json:"format"`
	Made   time.Time           `json:"made"`
	Hosts  []attach.HostReport `json:"hosts"`
	// Left are files that could not be merged, and older reports of the same host.
	Left []Left `json:"left,omitempty"`
}

// Left is what a merge has left out.
type Left struct {
	From string `json:"from"` // the file
	Host string `json:"host,omitempty"`
	Why  string `json:"why"`
}

// New is the document of one host.
func New(h attach.HostReport, made time.Time) Document {
	return Document{Kind: Kind, Format: Format, Made: made.UTC().Round(0), Hosts: []attach.HostReport{h}}
}

// Bounds on a file.
const (
	MaxSize   = 256 << 20 // bytes
	maxHosts  = 100_000
	maxList   = 20_000 // elements of a list that is none of the document's own
	maxString = 8192   // bytes
	maxNested = 64     // of objects and lists within each other
	// An empty object is two bytes of text, and hundreds when it is decoded. On average
	// there has to be so much text for each object and each element of a list, which is a
	// fraction of what there is in any report; the first few are free.
	textOfValue = 32 // bytes
	freeValues  = 1000
)

// Parse reads a document. What is too large, or no report, is an error; a word that is
// not known, in the place of one of a few, reads as "could not tell".
func Parse(r io.Reader) (Document, error) {
	text, err := io.ReadAll(io.LimitReader(r, MaxSize+1))
	switch {
	case err != nil:
		return Document{}, fmt.Errorf("it cannot be read: %w", err)
	case len(text) > MaxSize:
		return Document{}, fmt.Errorf("it is larger than %d MiB", MaxSize>>20)
	}
	if _, err := measure(text); err != nil {
		return Document{}, err
	}
	var d Document
	if err := json.Unmarshal(text, &d); err != nil {
		return Document{}, fmt.Errorf("it is no report: %w", err)
	}
	if err := d.check(); err != nil {
		return Document{}, err
	}
	return d, nil
}

// measure counts objects and elements of lists in a JSON text, before memory is taken for
// them, and refuses too many. Of what is no JSON the count means nothing.
func measure(text []byte) (values int, err error) {
	var elements [maxNested]int // of the lists that are open; -1 is an object
	depth := -1
	inList := func() bool { return depth >= 0 && elements[depth] >= 0 }
	most := freeValues + len(text)/textOfValue
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' {
					i++
				}
			}
			continue
		case '{':
			if !inList() {
				values++ // else it was counted as an element
			}
			if depth++; depth < maxNested {
				elements[depth] = -1
			}
		case '[':
			values++
			if depth++; depth < maxNested {
				elements[depth] = 1
			}
		case ']', '}':
			depth = max(depth-1, -1)
			continue
		case ',':
			if !inList() {
				continue
			}
			values++
			// The document's own lists are of all hosts together.
			if elements[depth]++; depth > 1 && elements[depth] > maxList {
				return values, fmt.Errorf("a list has more than %d elements", maxList)
			}
		default:
			continue
		}
		if depth >= maxNested {
			return values, fmt.Errorf("it is nested more than %d deep", maxNested)
		}
		if values > most {
			return values, fmt.Errorf("it has more than %d values in %d bytes, which no report has", most, len(text))
		}
	}
	return values, nil
}

func (d Document) check() error {
	switch {
	case d.Kind != Kind:
		return fmt.Errorf("it is no report: its kind is %q, not %q", shorten(d.Kind), Kind)
	case d.Format != Format:
		return fmt.Errorf("its format is %d, and this aaunitctl reads %d", d.Format, Format)
	case len(d.Hosts) > maxHosts:
		return fmt.Errorf("it has %d hosts, at most %d are read", len(d.Hosts), maxHosts)
	}
	for i := range d.Hosts {
		h := &d.Hosts[i]
		if h.Unattached != nil {
			// People copy commands. None is taken from another host; they are made here
			// of the names, quoted.
			for j := range h.Unattached.Services {
				e := &h.Unattached.Services[j]
				e.Begin(e.Profile)
			}
		}
		if h.At.IsZero() {
			return fmt.Errorf("host %q does not say of when it is", shorten(h.Machine.Name))
		}
		if err := bounded(reflect.ValueOf(h).Elem()); err != nil {
			return fmt.Errorf("host %q: %w", shorten(h.Machine.Name), err)
		}
		for _, u := range h.Units {
			if u.Unit == "" {
				return fmt.Errorf("host %q has a unit without a name", shorten(h.Machine.Name))
			}
		}
	}
	return bounded(reflect.ValueOf(d.Left))
}

// bounded refuses a text or list that is too long, and a text that is no UTF-8.
func bounded(v reflect.Value) error {
	switch v.Kind() {
	case reflect.String:
		if s := v.String(); len(s) > maxString || !utf8.ValidString(s) {
			return fmt.Errorf("a text is longer than %d bytes, or no UTF-8: %q", maxString, shorten(s))
		}
	case reflect.Slice:
		if v.Len() > maxList {
			return fmt.Errorf("a list has %d elements, more than are read", v.Len())
		}
		for i := range v.Len() {
			if err := bounded(v.Index(i)); err != nil {
				return err
			}
		}
	case reflect.Pointer:
		if !v.IsNil() {
			return bounded(v.Elem())
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			return nil
		}
		for i := range v.NumField() {
			if err := bounded(v.Field(i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func shorten(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// hostKey tells hosts apart: by id and name. Clones of one machine often have the
// same machine-id(5), and none of them may be missing; a host that was given another
// name counts as another one.
func hostKey(m attach.Machine) string {
	return m.ID + "\x00" + m.Name
}

// Merger puts documents together, one after the other, so that no more than what is
// kept is in memory at once.
type Merger struct {
	doc  Document
	from map[string]string // host -> file
	at   map[string]int    // host -> index
}

// Add takes in a document; from is the name of its file.
func (m *Merger) Add(from string, d Document) {
	if m.at == nil {
		m.at, m.from = map[string]int{}, map[string]string{}
	}
	m.doc.Left = append(m.doc.Left, d.Left...)
	for _, h := range d.Hosts {
		key := hostKey(h.Machine)
		i, known := m.at[key]
		switch {
		case !known:
			m.at[key], m.from[key] = len(m.doc.Hosts), from
			m.doc.Hosts = append(m.doc.Hosts, h)
		case h.At.After(m.doc.Hosts[i].At):
			m.leave(m.from[key], m.doc.Hosts[i], from)
			m.doc.Hosts[i], m.from[key] = h, from
		default:
			m.leave(from, h, m.from[key])
		}
	}
}

func (m *Merger) leave(from string, h attach.HostReport, newer string) {
	m.doc.Left = append(m.doc.Left, Left{From: from, Host: h.Machine.Name, Why: "a newer report of the same host is in " + newer})
}

// Refuse notes a file that could not be read.
func (m *Merger) Refuse(from string, err error) {
	m.doc.Left = append(m.doc.Left, Left{From: from, Why: shortenTo(strings.ToValidUTF8(err.Error(), "\uFFFD"), maxString/2)})
}

func shortenTo(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

// Merged is all of it, hosts by name.
func (m *Merger) Merged(made time.Time) Document {
	d := m.doc
	d.Kind, d.Format, d.Made = Kind, Format, made.UTC().Round(0)
	if d.Hosts == nil {
		d.Hosts = []attach.HostReport{}
	}
	slices.SortStableFunc(d.Hosts, func(a, b attach.HostReport) int {
		return cmp.Or(cmp.Compare(a.Machine.Name, b.Machine.Name), cmp.Compare(a.Machine.ID, b.Machine.ID))
	})
	return d
}
