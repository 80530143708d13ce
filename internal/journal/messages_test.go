package journal

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const catalogFile = "../../packaging/catalog/aaunit.catalog"

// constants reads the string constants of messages.go whose names begin with
// prefix, so that one that is added cannot be forgotten here.
func constants(t *testing.T, prefix string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "messages.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok || !strings.HasPrefix(spec.Names[0].Name, prefix) {
			return true
		}
		value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		found[spec.Names[0].Name] = value
		return true
	})
	if len(found) == 0 {
		t.Fatalf("messages.go has no constant %s…", prefix)
	}
	return found
}

// entry is one message of the catalogue.
type entry struct {
	header map[string]string
	body   string
}

func catalog(t *testing.T) map[string]entry {
	t.Helper()
	text, err := os.ReadFile(catalogFile)
	if err != nil {
		t.Fatal(err)
	}
	entries := map[string]entry{}
	for _, block := range regexp.MustCompile(`(?m)^-- `).Split(string(text), -1)[1:] {
		id, rest, _ := strings.Cut(block, "\n")
		head, body, ok := strings.Cut(rest, "\n\n")
		if !ok {
			t.Errorf("%s: no empty line between header and text", id)
		}
		if _, twice := entries[id]; twice {
			t.Errorf("%s: two entries", id)
		}
		e := entry{map[string]string{}, body}
		for _, line := range strings.Split(head, "\n") {
			key, value, _ := strings.Cut(line, ": ")
			e.header[key] = value
		}
		entries[id] = e
	}
	return entries
}

func TestEachMessageHasACatalogEntry(t *testing.T) {
	ids := constants(t, "Msg")
	entries := catalog(t)
	known := map[string]bool{}
	for name, id := range ids {
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) {
			t.Errorf("%s = %q is no 128-bit id", name, id)
		}
		if known[id] {
			t.Errorf("%s = %s is used twice", name, id)
		}
		known[id] = true
		if _, ok := entries[id]; !ok {
			t.Errorf("%s = %s has no entry in %s", name, id, catalogFile)
		}
	}
	for id := range entries {
		if !known[id] {
			t.Errorf("%s: entry %s has no constant", catalogFile, id)
		}
	}
}

func TestCatalogEntriesAreComplete(t *testing.T) {
	fields := slices.Collect(maps.Values(constants(t, "Field")))
	for id, e := range catalog(t) {
		for _, key := range []string{"Subject", "Defined-By", "Documentation"} {
			if e.header[key] == "" {
				t.Errorf("%s: no %s:", id, key)
			}
		}
		if len(strings.TrimSpace(e.body)) < 40 {
			t.Errorf("%s: no explanation", id)
		}
		for _, ref := range regexp.MustCompile(`@([^@\s]+)@`).FindAllStringSubmatch(e.header["Subject"]+e.body, -1) {
			if !slices.Contains(fields, ref[1]) {
				t.Errorf("%s: @%s@ is no field of ours", id, ref[1])
			}
		}
	}
}
