// Package deptest holds the architecture as tests that fail: who may import
// whom, and that the core stays pure. ARCHITECTURE.md says why.
package deptest

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/aaunit/aaunit/"

// rule says what a package of the house may import.
type rule struct {
	// house are the packages of this module.
	house []string
	// others are the packages of other modules, by prefix; nil means any, for
	// an adapter is there to talk to something.
	others []string
	// std, where it is set, are the only packages of the standard library.
	std []string
	// notStd are packages of the standard library that are not for it.
	notStd []string
}

var (
	none = []string{}
	// doing is what only adapters do: files, processes, the network.
	doing = []string{"os", "os/exec", "os/signal", "os/user", "io/fs", "net", "net/http", "syscall", "plugin", "unsafe"}
)

// rules has every package below internal and cmd. A new one needs a line: that
// is the moment to think about where it belongs.
var rules = map[string]rule{
	// The core is pure.
	"internal/attach": {house: none, others: none, std: []string{
		"cmp", "errors", "fmt", "maps", "path", "slices", "strconv", "strings", "time", "unicode", "unicode/utf8",
	}},
	// The loop decides nothing and does nothing by itself.
	"internal/reconcile": {house: []string{"internal/attach", "internal/journal"}, others: none, notStd: doing},

	// Nor does what prepares a system that does not run.
	"internal/image": {house: []string{"internal/attach"}, others: none, notStd: doing},

	// Adapters never import each other.
	"internal/config":   adapter,
	"internal/state":    adapter,
	"internal/units":    adapter,
	"internal/apparmor": {house: append([]string{"internal/apparmor/policydb", "internal/apparmor/rules"}, adapter.house...)},
	"internal/evidence": adapter,
	"internal/procs":    {house: adapter.house, others: none},
	"internal/api":      adapter,

	// What a compiled policy says is a pure question.
	"internal/gate":              {house: []string{"internal/attach", "internal/apparmor/policydb", "internal/apparmor/rules"}, others: none, notStd: doing},
	"internal/apparmor/policydb": {house: none, others: none, notStd: doing},
	"internal/apparmor/unpack":   {house: none, others: []string{"github.com/klauspost/compress/zstd"}, notStd: doing},

	// So is what the text of a profile says.
	"internal/apparmor/rules": {house: []string{"internal/apparmor/policydb"}, others: none, notStd: doing},
	"internal/sockopt":        {house: adapter.house, others: []string{"github.com/cilium/ebpf", "golang.org/x/sys"}},

	// What makes its table of names runs on a developer's machine only.
	"internal/sockopt/names": {house: none, others: none},

	// Numbers in, text out.
	"internal/report":  {house: []string{"internal/attach"}, others: none, notStd: doing},
	"internal/metrics": {house: []string{"internal/attach"}, others: none, notStd: doing},
	// What strangers talk to knows only how to ask.
	"internal/exporter":  {house: []string{"internal/attach", "internal/metrics"}, others: none, notStd: []string{"os", "os/exec", "plugin", "unsafe"}},
	"cmd/aaunit-metrics": {house: []string{"internal/attach", "internal/api", "internal/exporter"}, others: []string{"github.com/coreos/go-systemd/v22/activation"}},

	// Helpers know nothing of the house.
	"internal/journal":  {house: none, others: none, notStd: doing},
	"internal/audit":    {house: none, others: []string{"github.com/elastic/go-libaudit/v2"}},
	"internal/safefile": {house: none, others: []string{"golang.org/x/sys"}},
	"internal/inotify":  {house: none, others: []string{"github.com/fsnotify/fsnotify"}},
	"internal/bus":      {house: none, others: []string{"github.com/godbus/dbus/v5"}},

	// The command line asks the daemon.
	"internal/cli": {house: []string{"internal/attach", "internal/api", "internal/metrics", "internal/report", "internal/safefile"},
		others: []string{"github.com/spf13/cobra", "github.com/spf13/pflag", "golang.org/x/term"}, notStd: []string{"os/exec", "net"}},
	// It puts together what answers where there is no daemon, and asks it nothing.
	"cmd/aaunitctl": {house: []string{"internal/cli", "internal/attach", "internal/reconcile", "internal/image", "internal/config", "internal/units", "internal/apparmor", "internal/gate",
		"internal/sockopt"}, // for the names of socket options in attachment files
		others: []string{"github.com/coreos/go-systemd/v22/util", "golang.org/x/sys"}},
	// It runs as root on every start of a unit: the less is in it, the better.
	"cmd/aaunit-sockopts": {house: []string{"internal/sockopt"}, others: none},
	// The one place where adapters meet.
	"cmd/aaunitd": {house: []string{"internal/attach", "internal/reconcile", "internal/config", "internal/state", "internal/units", "internal/apparmor",
		"internal/apparmor/unpack", "internal/gate", "internal/sockopt", "internal/evidence", "internal/procs", "internal/api", "internal/journal", "internal/audit"}},
}

var adapter = rule{house: []string{"internal/attach", "internal/journal", "internal/safefile", "internal/inotify", "internal/bus"}}

func TestImports(t *testing.T) {
	seen := map[string]bool{}
	for _, top := range []string{"internal", "cmd"} {
		for dir, files := range sources(t, top) {
			if dir == "internal/deptest" {
				continue
			}
			r, ok := rules[dir]
			if !ok {
				t.Errorf("%s has no rule in internal/deptest: say there what it may import", dir)
				continue
			}
			seen[dir] = true
			for name, file := range files {
				for _, spec := range file.Imports {
					imported, err := strconv.Unquote(spec.Path.Value)
					if err != nil {
						t.Fatal(err)
					}
					if why := r.breaks(imported); why != "" {
						t.Errorf("%s imports %s: %s", name, imported, why)
					}
				}
			}
		}
	}
	for _, must := range []string{"internal/attach", "internal/reconcile"} {
		if !seen[must] {
			t.Errorf("%s was not found: is this test looking at the right place?", must)
		}
	}
}

// breaks says which rule an import breaks, or "".
func (r rule) breaks(imported string) string {
	first, _, _ := strings.Cut(imported, "/")
	within := func(list []string) bool {
		return slices.ContainsFunc(list, func(p string) bool { return imported == p || strings.HasPrefix(imported, p+"/") })
	}
	switch inHouse, ok := strings.CutPrefix(imported, module); {
	case ok && !slices.Contains(r.house, inHouse):
		return fmt.Sprintf("of this module it may import %v", r.house)
	case ok:
	case imported == "C":
		return "the binaries are static, without cgo"
	case strings.Contains(first, "."):
		if r.others != nil && !within(r.others) {
			return fmt.Sprintf("of other modules it may import %v", r.others)
		}
	case r.std != nil && !slices.Contains(r.std, imported):
		return fmt.Sprintf("of the standard library it may import %v", r.std)
	case slices.Contains(r.notStd, imported):
		return "files, processes and the network are for the adapters"
	case imported == "testing":
		return "tests stay out of what is shipped"
	}
	return ""
}

// The rules must be able to fail.
func TestRulesBite(t *testing.T) {
	for dir, imports := range map[string][]string{
		"internal/apparmor/rules":    {"os", "io/fs", module + "internal/apparmor", module + "internal/attach"},
		"internal/apparmor/policydb": {"os", "os/exec", "net", module + "internal/apparmor", "golang.org/x/sys/unix"},
		"internal/attach":            {"os", "os/exec", "net", "io/fs", "path/filepath", "syscall", "log/slog", "math/rand", "github.com/godbus/dbus/v5", module + "internal/units"},
		"internal/reconcile":         {"os/exec", "os", "github.com/godbus/dbus/v5", module + "internal/units", module + "internal/api", module + "internal/safefile"},
		"internal/units":             {module + "internal/apparmor", module + "internal/reconcile", "C", "testing"},
		"internal/api":               {module + "internal/config", module + "internal/cli"},
		"internal/cli":               {module + "internal/units", module + "internal/reconcile", "github.com/godbus/dbus/v5", "os/exec"},
		"cmd/aaunitctl":              {module + "internal/api", "github.com/spf13/cobra"},
		"internal/image":             {"os", module + "internal/units", module + "internal/apparmor"},
		"cmd/aaunitd":                {module + "internal/cli"},
		"internal/sockopt":           {module + "internal/apparmor", module + "internal/state", "github.com/godbus/dbus/v5"},
		"cmd/aaunit-sockopts":        {module + "internal/units", "github.com/cilium/ebpf"},
		"internal/safefile":          {module + "internal/attach", "golang.org/x/term"},
		"internal/bus":               {module + "internal/attach", module + "internal/units", "github.com/coreos/go-systemd/v22/dbus"},
	} {
		for _, imported := range imports {
			if rules[dir].breaks(imported) == "" {
				t.Errorf("%s may import %s", dir, imported)
			}
		}
	}
	for dir, imports := range map[string][]string{
		"internal/attach":    {"fmt", "time"},
		"internal/reconcile": {"time", "log/slog", module + "internal/attach"},
		"internal/units":     {"os", "github.com/godbus/dbus/v5", "golang.org/x/sys/unix", module + "internal/attach"},
		"cmd/aaunitd":        {"os", module + "internal/units", module + "internal/apparmor"},
	} {
		for _, imported := range imports {
			if why := rules[dir].breaks(imported); why != "" {
				t.Errorf("%s may not import %s: %s", dir, imported, why)
			}
		}
	}
}

// internal/bus is the one way to the bus: godbus' own connections take file
// descriptors, with which any user can end the daemon, and go-systemd's are
// made of those.
func TestOneWayToTheBus(t *testing.T) {
	const godbus = "github.com/godbus/dbus/v5"
	opens := func(imported, name string) bool {
		switch imported {
		case godbus:
			for _, p := range []string{"Dial", "Connect", "NewConn", "SystemBus", "SessionBus"} {
				if strings.HasPrefix(name, p) {
					return true
				}
			}
		case "github.com/coreos/go-systemd/v22/dbus":
			return strings.HasPrefix(name, "New") || strings.HasPrefix(name, "Dial")
		}
		return false
	}
	found := 0
	for _, top := range []string{"internal", "cmd"} {
		for dir, files := range sources(t, top) {
			for name, file := range files {
				imports := map[string]string{}
				for _, spec := range file.Imports {
					imported, _ := strconv.Unquote(spec.Path.Value)
					as := "dbus" // both are called so
					if spec.Name != nil {
						as = spec.Name.Name
					}
					if imported == godbus || strings.HasPrefix(imported, "github.com/coreos/go-systemd/") {
						imports[as] = imported
					}
				}
				ast.Inspect(file, func(n ast.Node) bool {
					sel, ok := n.(*ast.SelectorExpr)
					if !ok {
						return true
					}
					if pkg, ok := sel.X.(*ast.Ident); ok && opens(imports[pkg.Name], sel.Sel.Name) {
						if found++; dir != "internal/bus" {
							t.Errorf("%s uses %s.%s: internal/bus opens connections", name, pkg.Name, sel.Sel.Name)
						}
					}
					return true
				})
			}
		}
	}
	if found == 0 {
		t.Error("nobody opens a connection: is this test looking at the right place?")
	}
}

// The core takes the time from whoever looked; it never asks the clock, and
// never waits.
func TestCoreHasNoClock(t *testing.T) {
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}
	for _, files := range sources(t, "internal/attach") {
		for name, file := range files {
			ast.Inspect(file, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "time" && slices.Contains(clock, sel.Sel.Name) {
					t.Errorf("%s uses time.%s", name, sel.Sel.Name)
				}
				return true
			})
			for _, spec := range file.Imports {
				if spec.Path.Value == `"time"` && spec.Name != nil {
					t.Errorf("%s imports time under another name, which this test does not see through", name)
				}
			}
		}
	}
}

// sources parses every Go file below a directory of the module but tests,
// whatever its build constraints, by package directory and file name.
func sources(t *testing.T, top string) map[string]map[string]*ast.File {
	t.Helper()
	root := filepath.Join("..", "..")
	out := map[string]map[string]*ast.File{}
	err := filepath.WalkDir(filepath.Join(root, top), func(file string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir() && e.Name() == "testdata":
			return fs.SkipDir
		case e.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go"):
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		if out[path.Dir(rel)] == nil {
			out[path.Dir(rel)] = map[string]*ast.File{}
		}
		out[path.Dir(rel)][rel] = parsed
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
