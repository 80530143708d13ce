package machine

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Diagnose tells what is of use after a failure: the end of the guest's console,
// the failed units, the loaded profiles with their modes, the denials, and the
// journal of aaunitd and of the given units. What could not be asked is told as
// such. It takes two minutes at most.
func (m *Machine) Diagnose(ctx context.Context, units ...string) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var b strings.Builder
	section := func(title, text string) {
		fmt.Fprintf(&b, "===== %s: %s\n%s\n", m.suite, title, strings.TrimRight(text, "\n"))
	}
	ask := func(title, command string) {
		r, err := m.Run(ctx, command)
		text := r.Stdout + r.Stderr
		if err != nil {
			text += err.Error()
		}
		section(title, text)
	}

	section("the end of the console", m.Console(3000))
	ask("failed units", "systemctl list-units --failed --no-legend --no-pager --plain")
	ask("loaded profiles", "sort /sys/kernel/security/apparmor/profiles | sed -n 's/ (\\([a-z]*\\))$/\\t\\1/p' | head -n 300 | expand -t 50")
	ask("the last denials", "journalctl -b --no-pager -o short-precise -g 'apparmor=.(DENIED|ALLOWED)' 2>&1 | tail -n 40")
	for _, unit := range append([]string{"aaunitd.service", "aaunit-policy.service"}, units...) {
		ask("the journal of "+unit, "journalctl -b --no-pager -o short-precise -n 80 -u "+Quote(unit))
	}
	ask("the end of the journal", "journalctl -b --no-pager -o short-precise -n 60")
	return b.String()
}
