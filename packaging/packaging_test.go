// Package packaging_test keeps what the package ships true to the code.
package packaging_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/aaunit/aaunit/internal/config"
	"github.com/aaunit/aaunit/internal/reconcile"
	"github.com/aaunit/aaunit/internal/sockopt"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func parse(t *testing.T, path string) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// literal gives the text of a string constant, "" of anything else.
func literal(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, _ := strconv.Unquote(lit.Value)
	return s
}

// items lists what stands at the beginning of list items of a page's section.
func items(t *testing.T, page, section, pattern string) []string {
	t.Helper()
	text := read(t, filepath.Join("man", page))
	_, text, ok := strings.Cut(text, "\n.Sh "+section+"\n")
	if !ok {
		t.Fatalf("%s has no section %s", page, section)
	}
	text, _, _ = strings.Cut(text, "\n.Sh ")
	var found []string
	for _, m := range regexp.MustCompile(`(?m)^\.It `+pattern).FindAllStringSubmatch(text, -1) {
		found = append(found, m[1])
	}
	return found
}

// same reports what one of two sets lacks.
func same(t *testing.T, what, aName string, a []string, bName string, b []string) {
	t.Helper()
	if len(a) == 0 || len(b) == 0 {
		t.Fatalf("%s: found %d in %s and %d in %s", what, len(a), aName, len(b), bName)
	}
	for _, x := range a {
		if !slices.Contains(b, x) {
			t.Errorf("%s %q is in %s and not in %s", what, x, aName, bName)
		}
	}
	for _, x := range b {
		if !slices.Contains(a, x) {
			t.Errorf("%s %q is in %s and not in %s", what, x, bName, aName)
		}
	}
}

// attachmentKeys are the keys that Attachment.Set takes, from its source.
func attachmentKeys(t *testing.T) []string {
	t.Helper()
	var keys []string
	for _, d := range parse(t, "../internal/attach/attachment.go").Decls {
		f, ok := d.(*ast.FuncDecl)
		if !ok || f.Name.Name != "Set" {
			continue
		}
		ast.Inspect(f, func(n ast.Node) bool {
			sw, ok := n.(*ast.SwitchStmt)
			if !ok {
				return true
			}
			if tag, ok := sw.Tag.(*ast.Ident); ok && tag.Name == "key" {
				for _, c := range sw.Body.List {
					for _, e := range c.(*ast.CaseClause).List {
						keys = append(keys, literal(e))
					}
				}
			}
			return false
		})
	}
	return keys
}

func TestManualHasEveryAttachmentKey(t *testing.T) {
	same(t, "key", "Attachment.Set", attachmentKeys(t), "aaunit.conf(5)", items(t, "aaunit.conf.5", "OPTIONS", `Ic (\w+)=`))
}

// The words that a key takes are in the message for a wrong one.
func TestManualHasEveryValueOfAnAttachmentKey(t *testing.T) {
	page := read(t, "man/aaunit.conf.5")
	enumerations := 0
	for _, key := range attachmentKeys(t) {
		a := attach.NewAttachment()
		err := a.Set(key, "?")
		if err == nil {
			continue
		}
		_, words, ok := strings.Cut(err.Error(), "use one of ")
		if !ok {
			continue
		}
		enumerations++
		_, text, _ := strings.Cut(page, "\n.It Ic "+key+"=\n")
		text, _, _ = strings.Cut(text, "\n.It Ic ")
		for _, w := range strings.Split(words, ", ") {
			if !regexp.MustCompile(`(?m)^\.(It )?Cm ` + w + `( [,.])?$`).MatchString(text) {
				t.Errorf("aaunit.conf(5) says nothing about %s=%s", key, w)
			}
		}
	}
	if enumerations < 4 {
		t.Errorf("only %d keys have a list of words", enumerations)
	}
}

func TestManualHasEverySpecifier(t *testing.T) {
	const unit = "agent-red@one.service"
	_, table, _ := strings.Cut(read(t, "man/aaunit.conf.5"), "\n.Sh SPECIFIERS\n")
	documented := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^\.It Cm \\&(%.) Ta .* Ta (.*)$`).FindAllStringSubmatch(table, -1) {
		documented[m[1]] = m[2]
	}
	known := map[string]string{}
	for c := byte(0x21); c < 0x7f; c++ {
		if s, err := attach.ExpandSpecifiers("%"+string(c), unit); err == nil {
			known["%"+string(c)] = s
		}
	}
	if !maps.Equal(documented, known) {
		t.Errorf("aaunit.conf(5) says %v, the code does %v", documented, known)
	}
}

func TestManualHasEveryExitStatus(t *testing.T) {
	var codes []string
	ast.Inspect(parse(t, "../internal/attach/status.go"), func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := spec.Type.(*ast.Ident); ok && typ.Name == "Exit" {
			codes = append(codes, spec.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	same(t, "exit status", "attach.Exit", codes, "aaunitctl(1)", items(t, "aaunitctl.1", "EXIT STATUS", `(\d+)`))
}

// The interfaces on the bus stand in tables in internal/api.
func TestManualHasEverythingOnTheBus(t *testing.T) {
	files, err := filepath.Glob("../internal/api/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("cannot find the sources of internal/api: %v", err)
	}
	var members []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		ast.Inspect(parse(t, file), func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok || len(spec.Values) != 1 {
				return true
			}
			table, ok := spec.Values[0].(*ast.CompositeLit)
			if !ok {
				return true
			}
			if typ, ok := table.Type.(*ast.Ident); !ok || typ.Name != "iface" || !ours(table) {
				return false
			}
			for _, part := range table.Elts {
				if list, ok := part.(*ast.KeyValueExpr).Value.(*ast.CompositeLit); ok {
					for _, m := range list.Elts {
						members = append(members, firstString(m))
					}
				}
			}
			return false
		})
	}
	page := read(t, "man/org.aaunit1.5")
	if len(members) < 20 {
		t.Fatalf("found only %d members in internal/api: %q", len(members), members)
	}
	for _, m := range members {
		if !regexp.MustCompile(`(?m)^\.(It )?(Fn|Va) (\w+ , Va )?` + m + `\b`).MatchString(page) {
			t.Errorf("org.aaunit1(5) does not have %s", m)
		}
	}
}

// ours reports whether a table names its interface by one of our constants;
// those of the D-Bus specification are written in lower case.
func ours(table *ast.CompositeLit) bool {
	for _, part := range table.Elts {
		kv := part.(*ast.KeyValueExpr)
		if key, ok := kv.Key.(*ast.Ident); ok && key.Name == "name" {
			name, ok := kv.Value.(*ast.Ident)
			return ok && name.IsExported()
		}
	}
	return false
}

func firstString(n ast.Node) (found string) {
	ast.Inspect(n, func(n ast.Node) bool {
		if e, ok := n.(ast.Expr); ok && found == "" {
			found = literal(e)
		}
		return found == ""
	})
	return found
}

// jsonItems are the items of org.aaunit1(5) that have the keys of documents in JSON, with
// what is described there. What is in a document and has no item of its own stands in the
// first item that it is in.
var jsonItems = []struct {
	name string
	of   []reflect.Type
}{
	{"report", []reflect.Type{reflect.TypeFor[attach.Report]()}},
	{"evidence report", []reflect.Type{reflect.TypeFor[attach.EvidenceReport]()}},
	{"verdict", []reflect.Type{reflect.TypeFor[attach.Verdict]()}},
	{"reason", []reflect.Type{reflect.TypeFor[attach.Reason]()}},
	{"outcome", []reflect.Type{reflect.TypeFor[attach.Outcome](), reflect.TypeFor[attach.Questioned]()}},
	{"event", []reflect.Type{reflect.TypeFor[attach.Event]()}},
	{"denials", []reflect.Type{reflect.TypeFor[attach.DenialReport]()}},
	{"cases", []reflect.Type{reflect.TypeFor[attach.CaseReport]()}},
	{"explanation", []reflect.Type{reflect.TypeFor[attach.Explanation]()}},
	{"code", []reflect.Type{reflect.TypeFor[attach.Entry]()}},
	{"answer of a query", []reflect.Type{reflect.TypeFor[attach.QueryResult]()}},
	{"profile", []reflect.Type{reflect.TypeFor[attach.Profile]()}},
	{"report of an image", []reflect.Type{reflect.TypeFor[attach.ImageReport]()}},
	{"services", []reflect.Type{reflect.TypeFor[attach.ExposureReport]()}},
	{"metrics", []reflect.Type{reflect.TypeFor[attach.Metrics]()}},
	{"socket options", []reflect.Type{reflect.TypeFor[attach.SocketReport]()}},
	{"history", []reflect.Type{reflect.TypeFor[attach.SocketHistory]()}},
	{"use", []reflect.Type{reflect.TypeFor[attach.SocketUse]()}},
}

func TestManualHasEveryKeyOfJSON(t *testing.T) {
	_, page, _ := strings.Cut(read(t, "man/org.aaunit1.5"), "\n.Ss JSON\n")
	described := map[reflect.Type]bool{reflect.TypeFor[time.Time](): true}
	for _, item := range jsonItems {
		for _, doc := range item.of {
			described[doc] = true
		}
	}
	for _, item := range jsonItems {
		_, text, _ := strings.Cut(page, "\n.It "+item.name+"\n")
		text, _, _ = strings.Cut(text, "\n.It ")
		text, _, _ = strings.Cut(text, "\n.El\n")
		said := map[string]bool{}
		for _, m := range regexp.MustCompile(`(?m)\bVa (.*)$`).FindAllStringSubmatch(text, -1) {
			for _, word := range strings.Fields(m[1]) {
				said[word] = true
			}
		}
		for _, doc := range item.of {
			for _, key := range jsonKeys(doc, described) {
				if !said[key] {
					t.Errorf("org.aaunit1(5) has no %s in the item %q", key, item.name)
				}
			}
		}
	}
}

// jsonKeys are the keys of a document and of what is in it, but for what is described
// elsewhere.
func jsonKeys(doc reflect.Type, described map[reflect.Type]bool) (keys []string) {
	for i := range doc.NumField() {
		f := doc.Field(i)
		key, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if key == "-" {
			continue
		}
		if key != "" { // it has none where it is embedded
			keys = append(keys, key)
		}
		in := f.Type
		for in.Kind() == reflect.Pointer || in.Kind() == reflect.Slice || in.Kind() == reflect.Map {
			in = in.Elem()
		}
		if in.Kind() == reflect.Struct && !described[in] {
			described[in] = true
			keys = append(keys, jsonKeys(in, described)...)
		}
	}
	return keys
}

func TestManualHasEveryMessageAndField(t *testing.T) {
	page := read(t, "man/aaunitd.8")
	for _, m := range regexp.MustCompile(`= "([^"]+)"`).FindAllStringSubmatch(read(t, "../internal/journal/messages.go"), -1) {
		if !strings.Contains(page, "\n.It Va "+m[1]+"\n") && !strings.Contains(page, "\n.It Li "+m[1]+" Ta ") {
			t.Errorf("aaunitd(8) does not have %s", m[1])
		}
	}
}

func TestManualHasEveryOptionOfTheDaemon(t *testing.T) {
	var options []string
	for _, m := range regexp.MustCompile(`flag\.\w+\("([a-z-]+)"`).FindAllStringSubmatch(read(t, "../cmd/aaunitd/main.go"), -1) {
		options = append(options, m[1])
	}
	same(t, "option", "cmd/aaunitd", options, "aaunitd(8)", items(t, "aaunitd.8", "DESCRIPTION", `Fl ([a-z-]+)`))
}

func TestManualHasEveryCommandAndOption(t *testing.T) {
	files, err := filepath.Glob("../internal/cli/*.go")
	if err != nil {
		t.Fatal(err)
	}
	// cobra makes these by itself.
	options := []string{"help", "version"}
	var commands []string
	for _, file := range files {
		text := read(t, file)
		for _, m := range regexp.MustCompile(`Flags\(\)\.\w+\(&[\w.]+, "([a-z-]+)"`).FindAllStringSubmatch(text, -1) {
			if !slices.Contains(options, m[1]) {
				options = append(options, m[1])
			}
		}
		for _, m := range regexp.MustCompile(`\bUse:\s+"(\w+)`).FindAllStringSubmatch(text, -1) {
			if m[1] != "aaunitctl" {
				commands = append(commands, m[1])
			}
		}
	}
	same(t, "option", "internal/cli", options, "aaunitctl(1)", items(t, "aaunitctl.1", "DESCRIPTION", `(?:Fl \w , )?Fl -([a-z-]+)`))
	same(t, "command", "internal/cli", commands, "aaunitctl(1)", items(t, "aaunitctl.1", "DESCRIPTION", `Cm (?:sockopts )?(\w+)$`))
}

func TestExampleAttachmentsAreGood(t *testing.T) {
	files, err := filepath.Glob("examples/*.conf")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range files {
		if _, problems := config.Parse(file, []byte(read(t, file)), sockopt.OptionName); len(problems) > 0 {
			t.Errorf("%s: %v", file, problems)
		}
	}
}

// The example profile must not compile before each placeholder is decided, and
// must compile then.
func TestExampleProfileForcesDecisions(t *testing.T) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		if parser, err = exec.LookPath("/sbin/apparmor_parser"); err != nil {
			t.Fatal("apparmor_parser is missing; make setup installs it")
		}
	}
	compile := func(text string) error {
		file := filepath.Join(t.TempDir(), "profile")
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command(parser, "-Q", "-K", file).CombinedOutput()
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	text := read(t, "examples/networked-agent")
	placeholders := regexp.MustCompile(`@\{DECIDE_[A-Z_]+\}`).FindAllString(text, -1)
	slices.Sort(placeholders)
	placeholders = slices.Compact(placeholders)
	if len(placeholders) < 3 {
		t.Fatalf("the profile has only the placeholders %q", placeholders)
	}
	decided := text
	for _, p := range placeholders {
		decided = strings.ReplaceAll(decided, p, "/decided/"+strings.Trim(p, "@{}"))
	}
	if err := compile(decided); err != nil {
		t.Errorf("with every placeholder decided: %v", err)
	}
	for _, p := range placeholders {
		all := strings.ReplaceAll(decided, "/decided/"+strings.Trim(p, "@{}"), p)
		if compile(all) == nil {
			t.Errorf("it compiles with %s undecided", p)
		}
	}
}

func TestXMLIsWellFormed(t *testing.T) {
	for _, file := range []string{"dbus/org.aaunit1.conf", "polkit/org.aaunit1.policy"} {
		d := xml.NewDecoder(bytes.NewReader([]byte(read(t, file))))
		for {
			if _, err := d.Token(); err != nil {
				if !errors.Is(err, io.EOF) {
					t.Errorf("%s: %v", file, err)
				}
				break
			}
		}
	}
}

// The names that the daemon, the bus, polkit and systemd have to agree on.
func TestNamesAgree(t *testing.T) {
	constant := func(file, name string) string {
		m := regexp.MustCompile(`\b` + name + `\s*=\s*"([^"]+)"`).FindStringSubmatch(read(t, file))
		if m == nil {
			t.Fatalf("%s has no constant %s", file, name)
		}
		return m[1]
	}
	const api = "../internal/api/doc.go"
	for file, want := range map[string]string{
		"dbus/org.aaunit1.conf":       `<allow own="` + constant(api, "BusName") + `"/>`,
		"dbus/org.aaunit1.service":    "Name=" + constant(api, "BusName") + "\n",
		"systemd/aaunitd.service":     "ExecStart=/usr/sbin/aaunitd\n",
		"nfpm.yaml":                   "/usr/sbin/aaunitd\n",
		"deb/postinst":                "aaunitd.service",
		"deb/prerm":                   "aaunitd.service",
		"../internal/config/files.go": `"/usr/lib/aaunit/attachments.d"`,
	} {
		if !strings.Contains(read(t, file), want) {
			t.Errorf("%s does not say %s", file, strings.TrimSpace(want))
		}
	}
	var actions []string
	for _, m := range regexp.MustCompile(`\bAction\w+\s*=\s*"([^"]+)"`).FindAllStringSubmatch(read(t, api), -1) {
		actions = append(actions, m[1])
		for _, file := range []string{"man/org.aaunit1.5", "dbus/org.aaunit1.conf"} {
			if !strings.Contains(read(t, file), m[1]) {
				t.Errorf("%s does not name the action %s", file, m[1])
			}
		}
	}
	var policy struct {
		Actions []struct {
			ID   string `xml:"id,attr"`
			Any  string `xml:"defaults>allow_any"`
			Here string `xml:"defaults>allow_active"`
			Away string `xml:"defaults>allow_inactive"`
		} `xml:"action"`
	}
	if err := xml.Unmarshal([]byte(read(t, "polkit/org.aaunit1.policy")), &policy); err != nil {
		t.Fatal(err)
	}
	var declared []string
	for _, a := range policy.Actions {
		declared = append(declared, a.ID)
		if a.Any != "auth_admin" || a.Away != "auth_admin" || a.Here != "auth_admin_keep" {
			t.Errorf("polkit's defaults of %s are %+v", a.ID, a)
		}
	}
	same(t, "action", "internal/api", actions, "the policy", declared)
}

// setting gives the value of the one line of the service's unit file that sets
// a key.
func setting(t *testing.T, key string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^`+regexp.QuoteMeta(key)+`=(.*)$`).FindAllStringSubmatch(read(t, "systemd/aaunitd.service"), -1)
	if len(found) != 1 {
		t.Fatalf("aaunitd.service sets %s %d times", key, len(found))
	}
	return found[0][1]
}

// Anybody can have the bus start something: only a daemon that is enabled.
func TestTheBusStartsOnlyWhatIsEnabled(t *testing.T) {
	alias := setting(t, "Alias")
	if !strings.Contains(read(t, "dbus/org.aaunit1.service"), "\nSystemdService="+alias+"\n") {
		t.Errorf("the bus does not start %s", alias)
	}
	if alias == "aaunitd.service" {
		t.Error("the bus starts the service by its own name, which is there when it is disabled too")
	}
	// As postinst enables it.
	root := t.TempDir()
	for _, dir := range []string{"usr/lib/systemd/system", "etc/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "usr/lib/systemd/system/aaunitd.service"), []byte(read(t, "systemd/aaunitd.service")), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("deb-systemd-helper", "enable", "aaunitd.service")
	cmd.Env = append(os.Environ(), "DPKG_ROOT="+root, "DPKG_MAINTSCRIPT_PACKAGE=aaunit")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("deb-systemd-helper (package init-system-helpers): %v\n%s", err, out)
	}
	for _, link := range []string{alias, "multi-user.target.wants/aaunitd.service"} {
		if to, err := os.Readlink(filepath.Join(root, "etc/systemd/system", link)); err != nil || to != "/usr/lib/systemd/system/aaunitd.service" {
			t.Errorf("%s leads to %q, %v", link, to, err)
		}
	}
}

// systemd starts what sysinit.target wants with every service, as long as it is not
// active: aaunit-policy.service must neither run then nor keep anybody waiting.
func TestTheBootServiceRunsOnceAndNotBesideTheDaemon(t *testing.T) {
	m := regexp.MustCompile(`\bbegun = "([^"]+)"`).FindStringSubmatch(read(t, "../cmd/aaunitd/main.go"))
	if m == nil {
		t.Fatal("aaunitd leaves no word that it has begun")
	}
	unit := read(t, "systemd/aaunit-policy.service")
	if !strings.Contains(unit, "\nConditionPathExists=!"+m[1]+"\n") {
		t.Errorf("aaunit-policy.service starts although there is %s", m[1])
	}
	// What is kept over a soft reboot goes first, and not when the package is installed.
	if !regexp.MustCompile(`(?m)^r! +`+m[1]+` `).MatchString(read(t, "tmpfiles/aaunit.conf")) ||
		!regexp.MustCompile(`(?m)^After=.*\bsystemd-tmpfiles-setup\.service\b`).MatchString(unit) {
		t.Errorf("%s is still there after a soft reboot", m[1])
	}
	if !regexp.MustCompile(`\baaunit-policy\.service\b`).MatchString(setting(t, "After")) {
		t.Error("aaunitd may start while aaunit-policy.service is at work")
	}
	for _, key := range []string{"RuntimeDirectory=aaunit", "RuntimeDirectoryPreserve=yes"} {
		if !strings.Contains(unit, "\n"+key+"\n") || !strings.Contains(read(t, "systemd/aaunitd.service"), "\n"+key) {
			t.Errorf("%s does not outlast the one that left it: %s is missing", m[1], key)
		}
	}
}

// The daemon must give memory back before the kernel kills something for it.
// At boot what could not be compiled in time is loaded as it was, before systemd ends the
// service.
func TestTheBootServiceHasTimeToLoad(t *testing.T) {
	text := read(t, "systemd/aaunit-policy.service")
	found := regexp.MustCompile(`(?m)^TimeoutStartSec=(\d+)min$`).FindStringSubmatch(text)
	if found == nil {
		t.Fatal("aaunit-policy.service has no TimeoutStartSec= in minutes")
	}
	minutes, err := strconv.Atoi(found[1])
	if most := time.Duration(minutes) * time.Minute; err != nil || reconcile.MaxAnew > most-time.Minute {
		t.Errorf("systemd ends it after %v, and it goes on compiling for %v", most, reconcile.MaxAnew)
	}
}

func TestTheCollectorKnowsTheLimit(t *testing.T) {
	bytes := func(text, unit string, factor int) int {
		n, err := strconv.Atoi(strings.TrimSuffix(text, unit))
		if err != nil {
			t.Fatalf("%q is not a number of %s", text, unit)
		}
		return n * factor
	}
	limit := bytes(setting(t, "Environment=GOMEMLIMIT"), "MiB", 1<<20)
	if room := bytes(setting(t, "MemoryMax"), "G", 1<<30); limit > room*3/4 {
		t.Errorf("GOMEMLIMIT is %d, of %d bytes", limit, room)
	}
}
