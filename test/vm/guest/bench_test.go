//go:build vm

package guest

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/godbus/dbus/v5"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/bus"
)

// How much is measured. A guest is often emulated: the baseline and the product
// take turns, and medians are compared.
const (
	attachUnits   = 20
	attachRounds  = 3
	scriptRounds  = 1
	verifyUnits   = 100
	verifyThreads = 500
	verifyRounds  = 15
	startRounds   = 50
	policyRounds  = 20
	workRounds    = 5
	fewUnits      = 10
	manyUnits     = 1000
	idleSeconds   = 60
	costRounds    = 7
)

// BenchmarkAaunit measures the product as people use it, over the bus, beside a
// baseline in the same run. It prints a table, and leaves it in JSON, with a
// description of the machine, in the file "result".
func BenchmarkAaunit(b *testing.B) {
	r := &results{Machine: describeMachine(b)}
	s := newBenchScene(b)
	b.Run("attach", func(b *testing.B) { s.attach(b, r) })
	b.Run("gate", func(b *testing.B) { s.gate(b, r) })
	b.Run("check", func(b *testing.B) { s.check(b, r) })
	b.Run("proof", func(b *testing.B) { s.proof(b, r) })
	b.Run("sockopts", func(b *testing.B) { s.sockopts(b, r) })
	var few map[string]work
	if !b.Run("many", func(b *testing.B) { few = s.few(b) }) {
		return // what is still attached would be in the way
	}
	s.attachRunning(b)
	b.Run("verify", func(b *testing.B) { s.verify(b, r) })
	b.Run("start", func(b *testing.B) { s.start(b, r) })
	b.Run("policy", func(b *testing.B) { s.policy(b, r) })
	b.Run("many", func(b *testing.B) { s.many(b, r, few) })
	r.print(b)
}

// results is what the run has found out.
type results struct {
	Machine map[string]string `json:"machine"`
	Rows    []row             `json:"rows"`
}

// row is one line of the table. Durations are in seconds.
type row struct {
	Name     string  `json:"name"`
	What     string  `json:"what"`
	Unit     string  `json:"unit"`
	Baseline float64 `json:"baseline,omitempty"`
	Product  float64 `json:"product"`
	// Ratio is the product's by the baseline's, the other way round for
	// "times faster".
	Ratio  float64 `json:"ratio,omitempty"`
	Target string  `json:"target,omitempty"`
	Met    *bool   `json:"met,omitempty"`
	// Samples are all that the medians are of.
	Samples map[string][]float64 `json:"samples,omitempty"`
}

// add takes a row, and prints it at once: the whole takes long.
func (r *results) add(x row) {
	r.Rows = append(r.Rows, x)
	fmt.Printf("%s: %s %s by %s, ratio %.2f, %s %v\n", x.What, number(x.Product), x.Unit, number(x.Baseline), x.Ratio, x.Target, x.Samples)
}

// number has four digits, or all before the point.
func number(v float64) string {
	if v >= 1000 {
		return strconv.FormatFloat(v, 'f', 0, 64)
	}
	return strconv.FormatFloat(v, 'g', 4, 64)
}

func (r *results) print(b *testing.B) {
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(r.Machine)) {
		fmt.Fprintf(&text, "%-12s %s\n", key, r.Machine[key])
	}
	fmt.Fprintln(&text)
	w := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what\tbaseline\taaunit\tratio\ttarget\tmet")
	for _, x := range r.Rows {
		met := ""
		if x.Met != nil {
			met = map[bool]string{true: "yes", false: "NO"}[*x.Met]
		}
		cell := func(v float64) string {
			if v == 0 && x.Unit == "s" {
				return ""
			}
			return number(v) + " " + x.Unit
		}
		ratio := ""
		if x.Ratio != 0 {
			ratio = fmt.Sprintf("%.2f", x.Ratio)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", x.What, cell(x.Baseline), cell(x.Product), ratio, x.Target, met)
	}
	w.Flush()
	fmt.Println(text.String())
	doc, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile("result", append(doc, '\n'), 0o644); err != nil {
		b.Fatal(err)
	}
}

// describeMachine says where this was measured.
func describeMachine(b *testing.B) map[string]string {
	value := func(file, key string) string {
		for line := range strings.Lines(read(b, file) + "\n") {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
				return strings.TrimSpace(v)
			}
		}
		return "unknown"
	}
	first := func(text string) string { line, _, _ := strings.Cut(text, "\n"); return line }
	return map[string]string{
		"suite":       os.Getenv("AAUNIT_VM_SUITE"),
		"date":        time.Now().UTC().Format(time.RFC3339),
		"version":     run(b, "aaunitctl", "version"),
		"kernel":      run(b, "uname", "-r"),
		"cpu":         value("/proc/cpuinfo", "model name"),
		"cpus":        run(b, "nproc"),
		"memory":      value("/proc/meminfo", "MemTotal"),
		"accelerator": map[bool]string{true: "kvm", false: "tcg (emulated)"}[try(b, "systemd-detect-virt").stdout == "kvm"],
		"systemd":     first(run(b, "systemctl", "--version")),
		"parser":      first(run(b, "apparmor_parser", "--version")),
	}
}

func median(s []float64) float64 {
	s = slices.Sorted(slices.Values(s))
	if len(s) == 0 {
		return 0
	}
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func atMost(x, limit float64) *bool { ok := x <= limit; return &ok }

// timed runs a command and says how long it took, in seconds.
func timed(b *testing.B, name string, args ...string) float64 {
	b.Helper()
	return stopwatch(func() { run(b, name, args...) })
}

func stopwatch(do func()) float64 {
	begun := time.Now()
	do()
	return time.Since(begun).Seconds()
}

// compare has a baseline and the product take turns.
func compare(rounds int, baseline, product func() float64) (base, ours []float64) {
	for range rounds {
		base = append(base, baseline())
		ours = append(ours, product())
	}
	return base, ours
}

// benchScene has running units, which share profiles, and others that do not run.
type benchScene struct {
	*agents
	names []string // without .service
	round int      // counts texts of the profiles: each has to be compiled anew
}

// newBenchScene starts the units, unconfined. The first ones are called like
// their profiles.
func newBenchScene(b *testing.B) *benchScene {
	s := &benchScene{agents: newAgents(b)}
	s.profiles()
	for i := range verifyUnits {
		name := fmt.Sprintf("bench%02d", i)
		s.names = append(s.names, name)
		s.Unit(name+".service", "[Service]\nExecStart=/bin/sleep infinity\n")
	}
	s.Unit("threads.service", fmt.Sprintf("[Service]\nType=notify\nExecStart=/usr/local/bin/vm-agent -threads %d\n", verifyThreads))
	for i := range manyUnits {
		s.File(fmt.Sprintf("/etc/systemd/system/idle%04d.service", i), "[Service]\nExecStart=/bin/sleep infinity\n", 0o644)
	}
	b.Cleanup(func() {
		dirs, _ := filepath.Glob("/etc/systemd/system/idle*.service.d")
		for _, dir := range dirs {
			os.RemoveAll(dir)
		}
	})
	s.Reload()
	run(b, "systemctl", append([]string{"start", "threads"}, s.names...)...)
	return s
}

// profiles writes the profiles anew, each with a text that was never seen.
func (s *benchScene) profiles() {
	s.round++
	for i := range attachUnits {
		name := fmt.Sprintf("bench%02d", i)
		s.ProfileFile(name, profileText(name, "/bin/sleep mr,", "/usr/bin/sleep mr,")+fmt.Sprintf("# round %d\n", s.round))
	}
}

// attachment declares that a unit runs under one of the shared profiles.
func (s *benchScene) attachment(unit string, i int) {
	s.File("/etc/aaunit/attachments.d/"+unit+".service.conf",
		fmt.Sprintf("[Attachment]\nUnit=%s.service\nProfile=bench%02d\nSettleSec=0\n", unit, i%attachUnits), 0o644)
}

// rest waits until nothing is done any more: no unit is worked on, and neither
// aaunitd nor what it has started reads anything for a while.
func rest(b *testing.B) {
	b.Helper()
	waitIdle(b)
	pid := show(b, "aaunitd.service", "MainPID")
	for last, still := readCalls(b, pid), 0; still < 3; time.Sleep(time.Second) {
		now := readCalls(b, pid)
		if still++; now > last+20 || len(pidsOf("apparmor_parser")) > 0 {
			still = 0
		}
		last = now
	}
}

// settledPss is a process's proportional set size, in MiB, when it has read next to nothing
// for half a minute and longer: aaunitd looks at all units every ten minutes, and gives the memory
// for that back when there is nothing more to do.
func settledPss(b *testing.B, pid string) float64 {
	b.Helper()
	for last, still, tries := readCalls(b, pid), 0, 0; still < 35; time.Sleep(time.Second) {
		if tries++; tries > 600 {
			b.Fatal("aaunitd is never at rest")
		}
		now := readCalls(b, pid)
		if still++; now > last+20 {
			still = 0
		}
		last = now
	}
	return field(b, "/proc/"+pid+"/smaps_rollup", "Pss") / 1024
}

// readCalls counts the read system calls of a process and of its children that
// have ended; proc(5).
func readCalls(b *testing.B, pid string) int { return int(field(b, "/proc/"+pid+"/io", "syscr")) }

// pidsOf are the processes of that name.
func pidsOf(comm string) (pids []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm")
	for _, name := range names {
		if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == comm {
			pids = append(pids, filepath.Base(filepath.Dir(name)))
		}
	}
	return pids
}

// waitAttached waits until so many units are attached and none is worked on.
func waitAttached(b *testing.B, n int) {
	b.Helper()
	for deadline := time.Now().Add(10 * patience); ; time.Sleep(3 * time.Second) {
		rep, r := report(b, "status")
		busy := 0
		for _, u := range rep.Units {
			if u.Busy || u.DropIn == "" {
				busy++
			}
		}
		if len(rep.Units) == n && busy == 0 {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%d units are attached, %d of them busy, want %d and none: %s", len(rep.Units), busy, n, r.stderr)
		}
	}
}

// byHand writes what aaunit writes; one load, reload and restart for all units,
// or one of each for every unit.
func byHand(b *testing.B, names []string, together bool) float64 {
	begun := time.Now()
	write := func(n string) {
		dir := "/etc/systemd/system/" + n + ".service.d"
		if err := os.MkdirAll(dir, 0o755); err != nil {
			b.Fatal(err)
		}
		if err := os.WriteFile(dir+"/90-hand.conf", []byte("[Unit]\nAssertSecurity=apparmor\n[Service]\nAppArmorProfile="+n+"\nPrivateTmp=yes\n"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	load := []string{"--replace", "--skip-cache"}
	if together {
		files := load
		for _, n := range names {
			write(n)
			files = append(files, "/etc/apparmor.d/"+n)
		}
		run(b, "apparmor_parser", files...)
		run(b, "systemctl", "daemon-reload")
		run(b, "systemctl", append([]string{"restart"}, names...)...)
		return time.Since(begun).Seconds()
	}
	for _, n := range names {
		write(n)
		run(b, "apparmor_parser", append(load, "/etc/apparmor.d/"+n)...)
		run(b, "systemctl", "daemon-reload")
		run(b, "systemctl", "restart", n)
	}
	return time.Since(begun).Seconds()
}

// undoByHand takes byHand's work back, so that the next way begins as it did.
func undoByHand(b *testing.B, names []string) {
	for _, n := range names {
		os.RemoveAll("/etc/systemd/system/" + n + ".service.d")
	}
	run(b, "systemctl", "daemon-reload")
	run(b, "systemctl", append([]string{"restart"}, names...)...)
	for _, n := range names {
		if err := os.WriteFile("/sys/kernel/security/apparmor/.remove", []byte(n), 0); err != nil {
			b.Fatal(err)
		}
	}
}

// attach compares attaching units in one call, proof included, with the least that
// must be done for it, and with the usual script that does everything unit by
// unit. Neither waits for a unit to stay healthy.
func (s *benchScene) attach(b *testing.B, r *results) {
	names := s.names[:attachUnits]
	hand := func(together bool) func() float64 {
		return func() float64 {
			s.profiles()
			rest(b)
			took := byHand(b, names, together)
			undoByHand(b, names)
			return took
		}
	}
	product := func() float64 {
		s.profiles()
		rest(b)
		took := timed(b, "aaunitctl", append([]string{"attach", "--settle", "0s"}, names...)...)
		run(b, "aaunitctl", append([]string{"detach"}, names...)...)
		return took
	}
	// What runs for the first time in an emulated machine is translated first; for the
	// parser and systemd that was at the boot.
	hand(true)()
	product()
	floor, ours := compare(attachRounds, hand(true), product)
	var script []float64
	for range scriptRounds {
		script = append(script, hand(false)())
	}
	samples := map[string][]float64{"floor": floor, "aaunit": ours, "script": script}
	ratio := median(ours) / median(floor)
	r.add(row{Name: "attach-floor", What: fmt.Sprintf("attach %d units in one call, by the least that must be done", attachUnits), Unit: "s",
		Baseline: median(floor), Product: median(ours), Ratio: ratio, Target: "at most 1.3", Met: atMost(ratio, 1.3), Samples: samples})
	faster := median(script) / median(ours)
	r.add(row{Name: "attach-script", What: "the same, times faster than unit by unit", Unit: "s",
		Baseline: median(script), Product: median(ours), Ratio: faster, Target: "at least 4", Met: atMost(-faster, -4), Samples: samples})
}

// attachRunning has all running units attached by files.
func (s *benchScene) attachRunning(b *testing.B) {
	for i, n := range s.names {
		s.attachment(n, i)
	}
	waitAttached(b, len(s.names))
}

// verify compares a look at attached units with aa-status, which lists the labels
// of processes and proves less.
func (s *benchScene) verify(b *testing.B, r *results) {
	look := func(name, what string, args ...string) row {
		rest(b)
		theirs, ours := compare(verifyRounds,
			func() float64 { return timed(b, "aa-status", "--json") },
			func() float64 { return timed(b, "aaunitctl", args...) })
		ratio := median(ours) / median(theirs)
		return row{Name: name, What: what, Unit: "s", Baseline: median(theirs), Product: median(ours), Ratio: ratio,
			Target: "at most 1", Met: atMost(ratio, 1), Samples: map[string][]float64{"aa-status": theirs, "aaunit": ours}}
	}
	r.add(look("verify-all", fmt.Sprintf("verify --all, %d running units, by aa-status --json", verifyUnits), "verify", "--all", "--json"))
	s.attachment("threads", 0)
	waitAttached(b, len(s.names)+1)
	r.add(look("verify-threads", fmt.Sprintf("verify one unit of %d threads, by aa-status --json", verifyThreads), "verify", "threads", "--json"))
	os.Remove("/etc/aaunit/attachments.d/threads.service.conf")
	waitAttached(b, len(s.names))
}

// listen opens a connection that hears signals, with the time at which they came.
func listen(b *testing.B, rules ...string) (*dbus.Conn, <-chan heard) {
	conn, err := dbus.SystemBusPrivate()
	if err == nil {
		err = conn.Auth([]dbus.Auth{dbus.AuthExternal("0")})
	}
	if err == nil {
		err = conn.Hello()
	}
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { conn.Close() })
	for _, rule := range rules {
		if err := conn.BusObject().Call(bus.Driver+".AddMatch", 0, rule).Err; err != nil {
			b.Fatal(err)
		}
	}
	signals, out := make(chan *dbus.Signal, 4096), make(chan heard, 4096)
	conn.Signal(signals)
	go func() {
		for sig := range signals {
			out <- heard{sig, time.Now()}
		}
	}()
	return conn, out
}

type heard struct {
	*dbus.Signal
	at time.Time
}

// property reads a changed property of a PropertiesChanged signal.
func property[T any](h heard, path dbus.ObjectPath, iface, name string) (value T, ok bool) {
	if h.Path != path || len(h.Body) < 2 || h.Body[0] != iface {
		return value, false
	}
	changed, _ := h.Body[1].(map[string]dbus.Variant)
	v, ok := changed[name]
	if !ok {
		return value, false
	}
	value, ok = v.Value().(T)
	return value, ok
}

const (
	systemdUnit = "org.freedesktop.systemd1.Unit"
	properties  = "type='signal',interface='org.freedesktop.DBus.Properties',member='PropertiesChanged',path='%s'"
)

// start measures the time between two signals: systemd's, that a unit is active,
// and aaunitd's, with the verdict on that start.
func (s *benchScene) start(b *testing.B, r *results) {
	unit := s.names[0] + ".service"
	theirs := dbus.ObjectPath("/org/freedesktop/systemd1/unit/" + s.names[0] + "_2eservice")
	ours := api.UnitPath(unit)
	conn, signals := listen(b, fmt.Sprintf(properties, theirs), fmt.Sprintf(properties, ours))
	if err := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").Call("org.freedesktop.systemd1.Manager.Subscribe", 0).Err; err != nil {
		b.Fatal(err)
	}
	var reads, verdicts []float64
	for range startRounds {
		rest := time.Now()
		if _, err := conn.Object("org.freedesktop.systemd1", theirs).GetProperty(systemdUnit + ".InvocationID"); err != nil {
			b.Fatal(err)
		}
		reads = append(reads, time.Since(rest).Seconds())

		run(b, "systemctl", "stop", unit)
		run(b, "systemctl", "start", "--no-block", unit)
		var up, told time.Time
		for deadline := time.After(patience); up.IsZero() || told.IsZero(); {
			select {
			case h := <-signals:
				if state, ok := property[string](h, theirs, systemdUnit, "ActiveState"); ok && state == "active" {
					up = h.at
				}
				if answer, ok := property[string](h, ours, api.AttachmentInterface, "Verdict"); ok && answer == "confined" {
					told = h.at
				} else if _, ok := property[string](h, ours, api.AttachmentInterface, "InvocationID"); ok && !up.IsZero() {
					told = h.at
				}
			case <-deadline:
				b.Fatalf("no verdict on a start of %s within %v", unit, patience)
			}
		}
		verdicts = append(verdicts, max(0, told.Sub(up).Seconds()))
		time.Sleep(300 * time.Millisecond)
	}
	samples := map[string][]float64{"read": reads, "verdict": verdicts}
	r.add(row{Name: "start-median", What: fmt.Sprintf("from \"started\" to the verdict, median of %d, beside one D-Bus property read", startRounds), Unit: "s",
		Baseline: median(reads), Product: median(verdicts), Ratio: median(verdicts) / median(reads), Samples: samples})
	r.add(row{Name: "start-worst", What: "the same, worst", Unit: "s", Baseline: slices.Max(reads), Product: slices.Max(verdicts), Ratio: slices.Max(verdicts) / slices.Max(reads)})
}

// policy measures how long another policy is loaded before it is named: a signal
// says that the unit is not confined.
func (s *benchScene) policy(b *testing.B, r *results) {
	rest(b)
	unit, profile := s.names[0]+".service", "bench00"
	other := filepath.Join(b.TempDir(), profile)
	if err := os.WriteFile(other, []byte(profileText(profile, "/** rw,")), 0o644); err != nil {
		b.Fatal(err)
	}
	_, signals := listen(b, fmt.Sprintf(properties, api.UnitPath(unit)))
	var loads, named []float64
	await := func(answer string) time.Time {
		for deadline := time.After(patience); ; {
			select {
			case h := <-signals:
				if got, ok := property[string](h, api.UnitPath(unit), api.AttachmentInterface, "Verdict"); ok && got == answer {
					return h.at
				}
			case <-deadline:
				b.Fatalf("%s was not told to be %s within %v", unit, answer, patience)
			}
		}
	}
	for range policyRounds {
		begun := time.Now()
		run(b, "apparmor_parser", "--replace", "--skip-cache", other)
		loaded := time.Now()
		loads = append(loads, loaded.Sub(begun).Seconds())
		named = append(named, max(0, await("not-confined").Sub(loaded).Seconds()))
		await("confined") // it is put back
		rest(b)
	}
	r.add(row{Name: "policy", What: fmt.Sprintf("from the end of somebody's apparmor_parser -r to the signal that names it, median of %d, beside that call", policyRounds), Unit: "s",
		Baseline: median(loads), Product: median(named), Ratio: median(named) / median(loads), Target: "at most 1 s",
		Met: atMost(median(named), 1), Samples: map[string][]float64{"load": loads, "named": named}})
}

// work is what aaunitd did.
type work struct {
	Calls   int `json:"calls"`   // on the bus, to systemd and others
	Reads   int `json:"reads"`   // read system calls, from files and sockets
	Parsers int `json:"parsers"` // runs of apparmor_parser
}

// parserRuns has a line for every run of the parser.
const parserRuns = "/run/aaunit/parser.log"

// countParser puts a program in the parser's place that counts its runs.
func countParser(b *testing.B) {
	const parser, real = "/usr/sbin/apparmor_parser", "/usr/sbin/apparmor_parser.real"
	if err := os.Rename(parser, real); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.Rename(real, parser); err != nil {
			b.Error(err)
		}
	})
	if err := os.WriteFile(parser, []byte("#!/bin/sh\necho run >> "+parserRuns+"\nexec "+real+" \"$@\"\n"), 0o755); err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(parserRuns, nil, 0o666); err != nil {
		b.Fatal(err)
	}
	if err := os.Chmod(parserRuns, 0o666); err != nil {
		b.Fatal(err)
	}
}

// measure counts what aaunitd does while do happens, until it rests.
func measure(b *testing.B, do func()) work {
	pid := show(b, "aaunitd.service", "MainPID")
	asker, _ := listen(b)
	mine := map[string]bool{}
	isOurs := func(sender string) bool {
		known, ok := mine[sender]
		if !ok {
			var owner uint32
			err := asker.BusObject().Call(bus.Driver+".GetConnectionUnixProcessID", 0, sender).Store(&owner)
			known = err == nil && strconv.Itoa(int(owner)) == pid
			mine[sender] = known
		}
		return known
	}
	var names []string
	if err := asker.BusObject().Call(bus.Driver+".ListNames", 0).Store(&names); err != nil {
		b.Fatal(err)
	}
	for _, n := range names {
		if strings.HasPrefix(n, ":") {
			isOurs(n)
		}
	}
	monitor, _ := listen(b)
	if err := monitor.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{"type='method_call'"}, uint32(0)).Err; err != nil {
		b.Fatal(err)
	}
	messages := make(chan *dbus.Message, 1<<16)
	monitor.Eavesdrop(messages)
	parsers := func() int { return strings.Count(read(b, parserRuns)+"\n", "run\n") }
	readsBefore, parsersBefore := readCalls(b, pid), parsers()
	do()
	// By what it reads, not by asking it: that would be work, too.
	for last, still := readCalls(b, pid), 0; still < 5; time.Sleep(time.Second) {
		now := readCalls(b, pid)
		if still++; now > last+20 || len(pidsOf("apparmor_parser")) > 0 {
			still = 0
		}
		last = now
	}
	w := work{Reads: readCalls(b, pid) - readsBefore, Parsers: parsers() - parsersBefore}
	monitor.Close()
	for m := range messages {
		if m == nil {
			break
		}
		if sender, _ := m.Headers[dbus.FieldSender].Value().(string); isOurs(sender) {
			w.Calls++
		}
		if len(messages) == 0 {
			break
		}
	}
	return w
}

// changes are what happens to one unit.
func (s *benchScene) changes() []change {
	const unit = "idle0000"
	return []change{
		{"its attachment file", func() {
			s.File("/etc/aaunit/attachments.d/"+unit+".service.conf",
				fmt.Sprintf("[Attachment]\nUnit=%s.service\nProfile=idle\nSettleSec=%d\n", unit, time.Now().UnixNano()%500), 0o644)
		}},
		{"its profile's text", func() {
			s.ProfileFile("idle", profileText("idle", "/bin/sleep mr,")+fmt.Sprintf("# %d\n", time.Now().UnixNano()))
		}},
		{"a start of it", func() {
			if out, err := exec.Command("systemctl", "restart", unit).CombinedOutput(); err != nil {
				s.t.Fatalf("%v %s", err, out)
			}
		}},
	}
}

type change struct {
	what string
	do   func()
}

// idle attaches the first n units that do not run; the first of them has a
// profile of its own.
func (s *benchScene) idle(from, to int) {
	if from == 0 {
		s.ProfileFile("idle", profileText("idle", "/bin/sleep mr,"))
		s.File("/etc/aaunit/attachments.d/idle0000.service.conf", "[Attachment]\nUnit=idle0000.service\nProfile=idle\nSettleSec=0\n", 0o644)
		from++
	}
	for i := from; i < to; i++ {
		s.attachment(fmt.Sprintf("idle%04d", i), i)
	}
}

// works counts what is done when one unit changes.
func (s *benchScene) works(b *testing.B) map[string]work {
	run(b, "systemctl", "start", "idle0000")
	out := map[string]work{}
	for _, c := range s.changes() {
		rest(b)
		c.do() // once before: what is kept is that of a daemon that has run for a while
		// What systemd tells of a start, and in how many pieces, differs from one to
		// the next.
		var calls, reads, parsers []float64
		for range workRounds {
			rest(b)
			w := measure(b, c.do)
			calls, reads, parsers = append(calls, float64(w.Calls)), append(reads, float64(w.Reads)), append(parsers, float64(w.Parsers))
		}
		out[c.what] = work{int(median(calls)), int(median(reads)), int(median(parsers))}
	}
	return out
}

// few counts what is done when one of a few units changes.
func (s *benchScene) few(b *testing.B) map[string]work {
	countParser(b)
	s.idle(0, fewUnits)
	waitAttached(b, fewUnits)
	out := s.works(b)
	for i := range fewUnits {
		os.Remove(fmt.Sprintf("/etc/aaunit/attachments.d/idle%04d.service.conf", i))
	}
	waitAttached(b, 0)
	return out
}

// many looks at a daemon that has many units attached, most of which do not run:
// its memory, how often it wakes up, what a scrape of its numbers and a report cost,
// and what it does when one unit changes.
func (s *benchScene) many(b *testing.B, r *results, few map[string]work) {
	s.idle(0, manyUnits/2-verifyUnits)
	waitAttached(b, manyUnits/2)
	half := costOf(b, "report", "--json")
	s.idle(manyUnits/2-verifyUnits, manyUnits-verifyUnits)
	waitAttached(b, manyUnits)
	rest(b)
	time.Sleep(idleSeconds * time.Second)

	pid := show(b, "aaunitd.service", "MainPID")
	pss := settledPss(b, pid)
	r.add(row{Name: "memory", What: fmt.Sprintf("memory at rest with %d attachments (Pss)", manyUnits), Unit: "MiB", Product: pss,
		Target: "at most 20", Met: atMost(pss, 20)})
	var woken float64
	for range 3 { // a look at all units may fall into the time
		before, reads := switches(b, pid), readCalls(b, pid)
		time.Sleep(idleSeconds * time.Second)
		if woken = float64(switches(b, pid) - before); readCalls(b, pid) <= reads+20 {
			break
		}
		settledPss(b, pid)
	}
	r.add(row{Name: "idle", What: fmt.Sprintf("voluntary context switches in %d idle seconds", idleSeconds), Unit: "", Product: woken,
		Target: "at most 10", Met: atMost(woken, 10)})
	scrapes(b, r)
	reported(b, r, half)

	countParser(b)
	works := s.works(b)
	for _, c := range s.changes() {
		was, is := few[c.what], works[c.what]
		for _, x := range []struct {
			what    string
			was, is int // medians
		}{{"calls on the bus", was.Calls, is.Calls}, {"reads", was.Reads, is.Reads}, {"runs of the parser", was.Parsers, is.Parsers}} {
			r.add(row{Name: "work " + c.what + ": " + x.what, What: fmt.Sprintf("%s, one of %d units changed (%s), by one of %d", x.what, manyUnits, c.what, fewUnits),
				Unit: "times", Baseline: float64(x.was), Product: float64(x.is), Target: "the same", Met: atMost(float64(x.is), float64(x.was)*1.1+2)})
		}
	}
}

// scrapes measures what all numbers of many units cost.
func scrapes(b *testing.B, r *results) {
	c := costOf(b, "metrics")
	units := 0.0
	for line := range strings.Lines(c.text) {
		if strings.HasPrefix(line, "aaunit_units{") {
			n, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " ")+1:]), 64)
			if err != nil {
				b.Fatalf("%q: %v", line, err)
			}
			units += n
		}
	}
	if units != manyUnits {
		b.Fatalf("the metrics are of %v units, not of %d", units, manyUnits)
	}
	r.add(row{Name: "metrics", What: fmt.Sprintf("aaunitctl metrics with %d attachments, median of %d", manyUnits, costRounds), Unit: "s",
		Product: median(c.took), Samples: map[string][]float64{"took": c.took}})
	r.add(row{Name: "metrics-size", What: "the size of the text", Unit: "KiB", Product: float64(len(c.text)+1) / 1024})
	r.add(row{Name: "metrics-memory", What: "the memory of aaunitd at most meanwhile, by that before", Unit: "MiB", Baseline: c.before, Product: c.peak})
}

// reported measures what a report costs, and compares it with one of half the units.
func reported(b *testing.B, r *results, half cost) {
	many := costOf(b, "report", "--json")
	was := median(half.took) * 2
	r.add(row{Name: "report", What: fmt.Sprintf("aaunitctl report --json with %d attachments, median of %d, by twice that with half of them", manyUnits, costRounds), Unit: "s",
		Baseline: was, Product: median(many.took), Ratio: median(many.took) / was, Target: "at most 1.1 (linear)", Met: atMost(median(many.took)/was, 1.1),
		Samples: map[string][]float64{"half": half.took, "all": many.took}})
	r.add(row{Name: "report-memory", What: "the memory of aaunitd at most meanwhile, by that before", Unit: "MiB", Baseline: many.before, Product: many.peak})
}

// cost is what a command takes: seconds, and the memory of the daemon at most
// meanwhile, in MiB, beside that before.
type cost struct {
	took         []float64
	text         string
	before, peak float64
}

func costOf(b *testing.B, args ...string) (c cost) {
	b.Helper()
	rest(b)
	pid := show(b, "aaunitd.service", "MainPID")
	c.before = peakAnew(b, pid)
	for range costRounds {
		var r result
		c.took = append(c.took, stopwatch(func() { r = try(b, "aaunitctl", args...) }))
		// Units that do not run are what most of them are about.
		if c.text = r.stdout; r.exit != 0 && r.exit != 3 && r.exit != 5 || c.text == "" {
			b.Fatalf("aaunitctl %q: exit %d\n%s", args, r.exit, r.stderr)
		}
	}
	c.peak = field(b, "/proc/"+pid+"/status", "VmHWM") / 1024
	return c
}

// peakAnew has the kernel forget how much memory a process had at most, and says how
// much it has, in MiB; proc(5).
func peakAnew(b *testing.B, pid string) float64 {
	b.Helper()
	if err := os.WriteFile("/proc/"+pid+"/clear_refs", []byte("5"), 0); err != nil {
		b.Fatal(err)
	}
	return field(b, "/proc/"+pid+"/status", "VmHWM") / 1024
}

// field is a number in a file of /proc, like "Pss: 123 kB".
func field(b *testing.B, file, key string) float64 {
	b.Helper()
	for line := range strings.Lines(read(b, file) + "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && k == key {
			n, err := strconv.ParseFloat(strings.Fields(v)[0], 64)
			if err != nil {
				b.Fatal(err)
			}
			return n
		}
	}
	b.Fatalf("%s has no %s", file, key)
	return 0
}

// switches counts the voluntary context switches of all threads of a process.
func switches(b *testing.B, pid string) (n int) {
	b.Helper()
	tasks, err := filepath.Glob("/proc/" + pid + "/task/*/status")
	if err != nil {
		b.Fatal(err)
	}
	for _, file := range tasks {
		n += int(field(b, file, "voluntary_ctxt_switches"))
	}
	return n
}
