package report

import (
	"fmt"

	"github.com/aaunit/aaunit/internal/attach"
)

// Control is a recommendation that auditors know, in words of our own, with what this
// report can say about it. Benchmarks count profiles; here services are counted, and
// what was seen of them.
type Control struct {
	Names []string   `json:"names"` // as the benchmarks number it
	Asks  string     `json:"asks"`  // what it is after
	Holds attach.Tri `json:"holds"`
	// Says is what the answer rests on, and Not what was not looked at.
	Says string `json:"says"`
	Not  string `json:"not"`
}

// The numbers are those of CIS Debian Linux 12 Benchmark v1.1.0, of CIS Ubuntu Linux
// 24.04 LTS Benchmark v1.0.0, which has the same, and of DISA's STIGs for Canonical
// Ubuntu 22.04 LTS and 24.04 LTS. Other editions have the same
// recommendations under other numbers.
const (
	cis   = "CIS Debian 12 "
	cisU  = "CIS Ubuntu 24.04 "
	stig2 = "STIG UBTU-22-"
	stig4 = "STIG UBTU-24-"
)

// Controls answers each for all hosts together: one host that fails fails it.
func Controls(d Document) []Control {
	var on, off, boot, noBoot int
	for _, h := range d.Hosts {
		switch {
		case h.Host.Enabled == attach.Yes && h.Host.GlobalMode.Confines():
			on++
		case h.Host.Enabled == attach.No || h.Host.Enabled == attach.Yes && h.Host.GlobalMode != "":
			off++
		}
		switch h.Host.BootService {
		case attach.Yes:
			boot++
		case attach.No:
			noBoot++
		}
	}
	n, c := len(d.Hosts), CountAll(d.Hosts)
	patterns := ""
	if open := c.PatternsNotConfined + c.PatternsUnknown; open > 0 {
		patterns = fmt.Sprintf(" Of %s units to come do not start under the profile, or that could not be told.", plural(open, "template or prefix", "templates or prefixes"))
	}
	return []Control{
		{
			Names: []string{cis + "1.3.1.1", cisU + "1.3.1.1", stig2 + "431010", stig4 + "100500"},
			Asks:  "AppArmor is there.",
			Holds: all(on+off, off, n),
			Says:  fmt.Sprintf("The kernels of %d of %d hosts have AppArmor on and enforcing.", on, n),
			Not:   "Whether packages of utilities are installed.",
		},
		{
			Names: []string{cis + "1.3.1.2", cisU + "1.3.1.2", stig2 + "431015", stig4 + "100510"},
			Asks:  "AppArmor is on from boot.",
			Holds: both(all(on+off, off, n), all(boot+noBoot, noBoot, n)),
			Says:  fmt.Sprintf("The kernel that runs was asked: on at %d of %d hosts; apparmor.service is enabled at %d.", on, n, boot),
			Not:   "The boot loader's command line: what counts is what the kernel made of it.",
		},
		{
			Names: []string{cis + "1.3.1.3", cisU + "1.3.1.3"},
			Asks:  "No profile is disabled: services run under theirs.",
			Holds: verdicts(c),
			Says:  fmt.Sprintf("Of %d attached services %d carry their profile at every task, %d do not, of %d it could not be told, %d do not run.", c.Units(), c.Confined, c.NotConfined, c.Unknown, c.NotRunning) + patterns,
			Not:   "Profiles that no service is attached to: a profile that nothing runs under protects nothing.",
		},
		{
			Names: []string{cis + "1.3.1.4", cisU + "1.3.1.4"},
			Asks:  "Profiles enforce.",
			Holds: verdicts(c),
			Says:  fmt.Sprintf("%d services are confined: each task in a mode that enforces, by the very policy that was checked, by the kernel's own checksum.", c.Confined) + patterns,
			Not:   "Profiles in complain mode that no service is attached to.",
		},
		{
			Names: []string{cis + "2.1.22", cisU + "2.1.22"},
			Asks:  "Only services that were approved listen on the network.",
			Holds: listening(c),
			Says:  fmt.Sprintf("%d services without a profile listen on the network.", c.Network),
			Not:   "Who approved what: that is for people to say, so this is never answered with yes. Sockets of containers and of login sessions.",
		},
	}
}

// all: told of n, and none of them against it.
func all(told, against, n int) attach.Tri {
	switch {
	case against > 0:
		return attach.No
	case n == 0 || told < n:
		return attach.CouldNotTell
	}
	return attach.Yes
}

func both(a, b attach.Tri) attach.Tri {
	switch {
	case a == attach.No || b == attach.No:
		return attach.No
	case a == attach.Yes && b == attach.Yes:
		return attach.Yes
	}
	return attach.CouldNotTell
}

func verdicts(c Counts) attach.Tri {
	switch {
	case c.NotConfined+c.PatternsNotConfined > 0:
		return attach.No
	case c.Unknown+c.PatternsUnknown > 0 || c.Confined == 0:
		return attach.CouldNotTell
	}
	return attach.Yes
}

func listening(c Counts) attach.Tri {
	if c.Network > 0 {
		return attach.No
	}
	return attach.CouldNotTell
}
