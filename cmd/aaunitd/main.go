// Command aaunitd keeps systemd services under their AppArmor profiles; see
// aaunitd(8). There is no logic here: it puts the parts together, tells the
// service manager how it is, and ends on a signal.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/coreos/go-systemd/v22/util"
	slogjournal "github.com/systemd/slog-journal"
	"golang.org/x/sys/unix"

	"github.com/aaunit/aaunit/internal/api"
	"github.com/aaunit/aaunit/internal/apparmor"
	"github.com/aaunit/aaunit/internal/apparmor/unpack"
	"github.com/aaunit/aaunit/internal/audit"
	"github.com/aaunit/aaunit/internal/config"
	"github.com/aaunit/aaunit/internal/evidence"
	"github.com/aaunit/aaunit/internal/gate"
	"github.com/aaunit/aaunit/internal/procs"
	"github.com/aaunit/aaunit/internal/reconcile"
	"github.com/aaunit/aaunit/internal/sockopt"
	"github.com/aaunit/aaunit/internal/state"
	"github.com/aaunit/aaunit/internal/units"
)

// begun is there from the first time on that this program begins to work in a boot, as
// aaunit-policy.service or as the daemon. That service does not start any more then: it
// is wanted by sysinit.target, so systemd would start it with any other one for as long
// as it is not active, beside the daemon.
const begun = "/run/aaunit/begun"

// version is set when the package is built.
var version = "unknown"

func main() {
	recheck := flag.Duration("recheck", reconcile.DefaultRecheck, "interval of the slow re-check of everything")
	stateDir := flag.String("state", "/var/lib/aaunit", "directory of the records of attached units and of the accepted policies")
	policy := flag.Bool("policy", false, "make the accepted policies live and exit, for the boot; needs no daemon")
	verbose := flag.Bool("debug", false, "log what is done in detail")
	remove := flag.Bool("remove", false, "make ready for the removal of aaunit from the host, and exit")
	showVersion := flag.Bool("version", false, "print the version and exit")
	flag.Parse()
	switch {
	case *showVersion:
		fmt.Println("aaunitd", version)
		return
	case flag.NArg() > 0:
		fmt.Fprintf(os.Stderr, "aaunitd: it takes no arguments, %q was given; see aaunitd(8)\n", flag.Args())
		os.Exit(2)
	case *recheck <= 0:
		fmt.Fprintln(os.Stderr, "aaunitd: -recheck must be positive; see aaunitd(8)")
		os.Exit(2)
	}
	if *remove {
		leave(*stateDir)
		return
	}
	log := logger(*verbose)
	defer alone(*stateDir, log)() // till the process ends: whoever has the lock must not lose it to the garbage collector
	if err := state.Mark(begun); err != nil {
		log.Warn("aaunit-policy.service may run beside aaunitd: " + err.Error())
	}
	policies := state.NewPolicies(filepath.Join(*stateDir, "policy"))
	asks := gate.New(policies.Get)
	systemd := units.New(units.Options{Log: log})
	host := apparmor.New(apparmor.Options{Kept: policies.Lookup, Unpack: unpack.Policy, Audit: listen, Systemd: "/run/aaunit/systemd.json", Forked: systemd.Forked, Log: log})
	host.SweepStaging()
	footprint := newMemory()
	o := reconcile.Options{
		AppArmor:    host,
		Store:       state.Dir(filepath.Join(*stateDir, "units")),
		Policies:    policies,
		Gate:        asks,
		Attachments: &config.Files{Dirs: config.DefaultDirs, Log: log, Options: sockopt.OptionName},
		Rest: func() (resume func()) {
			asks.LetGo()
			return footprint.rest()
		},
		Sized:   footprint.sized,
		Log:     log,
		Recheck: *recheck,
		Version: version,
		Boot:    state.Boot(),
	}
	if *policy {
		if err := reconcile.MakePolicyLive(context.Background(), breakable(o)); err != nil {
			log.Error("not every accepted policy is live: " + err.Error())
			os.Exit(1)
		}
		return
	}
	state.Sweep(filepath.Join(*stateDir, "units"))
	state.Sweep(filepath.Join(*stateDir, "policy"))
	keeper := evidence.New(evidence.Options{Dir: filepath.Join(*stateDir, "evidence"), Policy: policies.Get, Log: log})
	asks.Facts = keeper.Facts
	o.Evidence, o.Processes = keeper, &procs.Looker{}
	histories := &state.Histories{Dir: filepath.Join(*stateDir, "sockopts-seen")}
	o.Histories, o.OptionNames, o.Kernel = histories, sockopt.OptionName, state.Kernel()
	if err := run(log, o, systemd, keeper, histories); err != nil {
		log.Error("cannot go on: " + err.Error())
		os.Exit(1)
	}
}

func run(log *slog.Logger, o reconcile.Options, systemd *units.Systemd, keeper *evidence.Keeper, histories *state.Histories) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	defer systemd.Close()
	o.SocketOptions = sockopt.Host{System: sockopt.New(sockopt.Options{}), Store: sockopt.DefaultStore}
	o.Systemd = systemd
	loop := reconcile.New(breakable(o))
	keeper.Living, histories.Living = loop.Living, loop.Living

	var parts sync.WaitGroup
	var ready sync.WaitGroup
	ready.Add(2)
	known := make(chan struct{})
	parts.Go(func() { cancel(loop.Run(ctx, func() { close(known); ready.Done() })) })
	parts.Go(func() { keeper.Run(ctx) })
	parts.Go(func() {
		cancel(api.Serve(ctx, loop, api.Options{Version: version, Socket: api.Socket, Log: log, Ready: sync.OnceFunc(ready.Done), Known: known, Answered: loop.Stir}))
	})
	go func() {
		ready.Wait()
		tell(log, daemon.SdNotifyReady)
		watchdog(ctx, log, loop)
	}()
	<-ctx.Done()
	tell(log, daemon.SdNotifyStopping)
	parts.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// memory keeps the daemon small. What a pass leaves behind is spread over all that
// the heap had grown to: of pages that hold one small thing each none can be given
// back. So where many units are attached the collector lets less pile up, which
// costs it more work. Where few are, the heap is small, and may double.
type memory struct {
	mu      sync.Mutex
	many    bool
	resting bool
}

// many is a number of units from which on memory counts for more than time.
const many = 200

// percent is how much the heap may grow until it is collected; see debug.SetGCPercent.
// Go's collector lets it come to 4 MiB by percent/100 in any case.
func (m *memory) percent() int {
	if m.many {
		return 20
	}
	return 100
}

// room is for what is allocated at rest, in bytes.
func (m *memory) room() int64 {
	if m.many {
		return 3 << 20
	}
	return 12 << 20
}

func newMemory() *memory {
	m := &memory{}
	debug.SetGCPercent(m.percent())
	// What is given back stays given back: the kernel would make huge pages of it, and
	// of what Go's runtime keeps for itself (prctl(2)).
	// Where the kernel cannot be told so, more memory is used, and nothing else.
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0)
	return m
}

// sized is told how many units are attached.
func (m *memory) sized(units int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if is := units > many; is != m.many {
		m.many = is
		if !m.resting {
			debug.SetGCPercent(m.percent())
		}
	}
}

// rest gives back memory, and stops the collector until resume: it would run every
// two minutes for nothing (forcegcperiod in Go's runtime/proc.go). A limit just above
// what there is takes its place.
func (m *memory) rest() (resume func()) {
	endIdleThreads(fewThreads)
	for range 4 { // each halves the stacks that have become too large
		runtime.GC()
	}
	debug.FreeOSMemory()
	letGoOfProgram()
	var now runtime.MemStats
	runtime.ReadMemStats(&now)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.resting = true
	limit := debug.SetMemoryLimit(-1)
	debug.SetMemoryLimit(min(limit, int64(now.Sys-now.HeapReleased)+m.room()))
	debug.SetGCPercent(-1)
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.resting = false
		debug.SetGCPercent(m.percent())
		debug.SetMemoryLimit(limit)
	}
}

func listen() (apparmor.AuditSource, error) {
	log, err := audit.Open()
	if err != nil {
		return nil, err // and not a source that is none
	}
	return log, nil
}

// alone locks the state, and ends this process where another one works with it. Where it
// cannot be locked the work goes on, as it does where no records can be kept.
func alone(dir string, log *slog.Logger) (release func()) {
	release, err := state.Lock(dir)
	switch {
	case errors.Is(err, state.ErrLocked):
		log.Error("cannot go on: " + err.Error())
		os.Exit(1)
	case err != nil:
		log.Warn("a second aaunitd would not be kept from starting: " + err.Error())
		return func() {}
	}
	return release
}

// leave is what the package asks for before the programs go. It waits for nobody: a
// daemon that is started meanwhile waits for it, and one that was started by hand, so
// that the package could not stop it, is told.
func leave(dir string) {
	release, err := state.Lock(dir)
	switch {
	case errors.Is(err, state.ErrLocked):
		fmt.Printf("aaunit: what runs keeps units as they are declared, and may take back what follows: %v\n", err)
	case err == nil:
		defer release()
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	systemd := units.New(units.Options{})
	defer systemd.Close()
	looking, done := context.WithTimeout(ctx, reconcile.MaxPolicy)
	defer done()
	removal := reconcile.Removal{
		Systemd: systemd, AppArmor: apparmor.New(apparmor.Options{Life: looking, Forked: systemd.Forked}), SocketOptions: sockopt.New(sockopt.Options{}),
		Store: state.Dir(filepath.Join(dir, "units")), Booted: util.IsRunningSystemd(), Boot: state.Boot(),
		Tell: func(format string, args ...any) { fmt.Printf("aaunit: "+format+"\n", args...) },
	}
	removal.Run(ctx)
}

// watchdog tells the service manager that the loop still turns, twice as often
// as it wants to hear it.
func watchdog(ctx context.Context, log *slog.Logger, loop *reconcile.Loop) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval == 0 {
		return
	}
	tick := time.NewTicker(interval / 2)
	defer tick.Stop()
	for {
		if err := loop.Ping(ctx); err != nil {
			return
		}
		tell(log, daemon.SdNotifyWatchdog)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func tell(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("cannot notify the service manager", "err", err)
	}
}

// logger writes to the journal with its fields where the journal is, and to
// standard error elsewhere.
func logger(verbose bool) *slog.Logger {
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	if os.Getenv("JOURNAL_STREAM") != "" {
		h, err := slogjournal.NewHandler(&slogjournal.Options{Level: level, ReplaceAttr: journalField})
		if err == nil {
			return slog.New(h)
		}
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
}

// journalField gives an attribute a name that the journal takes.
func journalField(_ []string, a slog.Attr) slog.Attr {
	a.Key = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_':
			return r
		}
		return '_'
	}, a.Key)
	return a
}
