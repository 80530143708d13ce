package attach

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Reach says from where a socket can be reached. Its zero value is "could not tell".
type Reach int8

// The reaches; a later one is farther.
const (
	ReachUnknown  Reach = iota
	ReachUnix           // a unix socket: programs of this machine
	ReachLoopback       // an address of this machine's own
	ReachNetwork        // any other address
)

func (r Reach) String() string {
	switch r {
	case ReachUnix:
		return "unix"
	case ReachLoopback:
		return "loopback"
	case ReachNetwork:
		return "network"
	}
	return "unknown"
}

// MarshalText makes a Reach readable in JSON.
func (r Reach) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText is the inverse; anything unexpected is unknown.
func (r *Reach) UnmarshalText(b []byte) error {
	*r = ReachUnknown
	for _, known := range []Reach{ReachUnix, ReachLoopback, ReachNetwork} {
		if known.String() == string(b) {
			*r = known
		}
	}
	return nil
}

// Listening is a socket that waits for others: one that listens, or one of a kind
// without connections that is bound and takes from whoever sends.
type Listening struct {
	Protocol string `json:"protocol"` // tcp, tcp6, udp, udp6, raw, raw6, packet, unix
	Address  string `json:"address"`  // an IP address, a path, "@" and an abstract name, or ""
	Port     int    `json:"port,omitempty"`
	Reach    Reach  `json:"reach"`
	// By is the .socket unit that holds it for the service, where systemd does.
	By string `json:"by,omitempty"`
	// OwnNetwork: it is in a network namespace that is not the machine's. What can
	// reach that was not looked at.
	OwnNetwork bool `json:"ownNetwork,omitempty"`
}

func (l Listening) String() string {
	s := l.Protocol + " " + l.Address
	if strings.Contains(l.Address, ":") && l.Protocol != "unix" {
		s = l.Protocol + " [" + l.Address + "]"
	}
	if l.Port != 0 {
		s += ":" + strconv.Itoa(l.Port)
	}
	if l.OwnNetwork {
		s += " (in a network of its own)"
	}
	return printable(strings.TrimSpace(s))
}

// Process is one process of a service as it was seen. What could not be read is in
// Problem, and then no field but PID and PPID says anything.
type Process struct {
	PID  int    `json:"pid"`
	PPID int    `json:"ppid"`
	Comm string `json:"comm"`
	Exe  string `json:"exe,omitempty"`
	UID  int    `json:"uid"` // effective
	// Threads counts its tasks. Label is what they carry; where they differ, one that
	// does not confine is what is shown.
	Threads      int      `json:"threads"`
	Label        string   `json:"label"`
	Confines     Tri      `json:"confines"`
	Capabilities []string `json:"capabilities,omitempty"` // dangerous ones that it may use
	Problem      string   `json:"problem,omitempty"`
}

// Sighting is one look at the processes of a service and at the sockets that they
// hold. It is for people, and no verdict is made of it.
type Sighting struct {
	Unit          string      `json:"unit"`
	Processes     []Process   `json:"processes"`
	MoreProcesses int         `json:"moreProcesses,omitempty"` // that were seen and left out
	Listening     []Listening `json:"listening"`
	MoreListening int         `json:"moreListening,omitempty"`
	// Problems say what could not be read; there may be more than is listed.
	Problems []string  `json:"problems,omitempty"`
	At       time.Time `json:"at"`
}

// SocketUnit is a .socket unit that listens for a service.
type SocketUnit struct {
	Name    string
	Service string // a template's name where each connection gets an instance
	Listen  []Listening
}

// dangerous are the capabilities with which a program can become root, read or
// change what belongs to others, or take the machine: capabilities(7).
var dangerous = []string{
	"bpf", "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "linux_immutable", "mac_admin", "mac_override", "mknod",
	"net_admin", "net_raw", "perfmon", "setfcap", "setgid", "setpcap", "setuid", "sys_admin", "sys_boot", "sys_chroot", "sys_module",
	"sys_ptrace", "sys_rawio", "sys_resource", "sys_time",
}

// capabilityNames are all, by number (include/uapi/linux/capability.h).
var capabilityNames = strings.Fields(`chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable
	net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin
	sys_boot sys_nice sys_resource sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog
	wake_alarm block_suspend audit_read perfmon bpf checkpoint_restore`)

// DangerousCapabilities names those of a set, as /proc/PID/status has it, that make
// a service worth confining. A capability that this version does not know counts.
func DangerousCapabilities(set uint64) (names []string) {
	for i := range 64 {
		switch {
		case set&(1<<i) == 0:
		case i >= len(capabilityNames):
			names = append(names, fmt.Sprintf("number %d", i))
		case slices.Contains(dangerous, capabilityNames[i]):
			names = append(names, capabilityNames[i])
		}
	}
	return names
}

// ExposureClass says what makes a service without a profile worth confining.
type ExposureClass string

// The classes, from the most exposed on: the order of the list.
const (
	ExposedNetwork ExposureClass = "network"      // it listens on an address that is not the machine's own
	ExposedUnknown ExposureClass = "unknown"      // it could not be told whether it does
	ExposedLocal   ExposureClass = "local"        // it listens for programs of the machine only
	ExposedRoot    ExposureClass = "root"         // a process of it runs as root
	ExposedCaps    ExposureClass = "capabilities" // a process has capabilities as good as root
	ExposedNot     ExposureClass = "none"         // none of these; not listed
)

var exposureOrder = []ExposureClass{ExposedNetwork, ExposedUnknown, ExposedLocal, ExposedRoot, ExposedCaps, ExposedNot}

// Exposure is a service that no attachment names and that runs without a profile
// that confines it, or would start so.
type Exposure struct {
	Unit  string        `json:"unit"`
	Class ExposureClass `json:"class"`
	// Running: no is that systemd listens for it and starts it on demand.
	Running Tri `json:"running"`
	// Root says whether a process has the effective user 0; User is what the unit
	// says, "" where that is nothing.
	Root         Tri         `json:"root"`
	User         string      `json:"user,omitempty"`
	UIDs         []int       `json:"uids,omitempty"`
	Capabilities []string    `json:"capabilities,omitempty"`
	Listening    []Listening `json:"listening"`
	More         int         `json:"more,omitempty"` // sockets that were left out
	// Labels are those of its processes that do not confine, or of which it could not
	// be told.
	Labels    []string `json:"labels"`
	Processes int      `json:"processes"` // that were seen
	Program   string   `json:"program,omitempty"`
	// Profile is one that would be attached to it, "" where none was found.
	Profile string `json:"profile,omitempty"`
	// Next are the commands that begin to confine it, in this order.
	Next []string `json:"next"`
	// Unknown says what could not be read: there may be more than is listed.
	Unknown []string `json:"unknown,omitempty"`
}

// ExposureReport lists them, the most exposed first.
type ExposureReport struct {
	Host     Host       `json:"host"`
	Services []Exposure `json:"services"`
	// Looked counts the services that run or are started on demand and that no
	// attachment names; Quiet those of them that run without a profile and have
	// nothing of what a class is made of; Confined those that carry one that confines.
	Looked   int `json:"looked"`
	Quiet    int `json:"quiet"`
	Confined int `json:"confined"`
	// Unknown says what could not be looked at at all.
	Unknown []string  `json:"unknown,omitempty"`
	At      time.Time `json:"at"`
}

// Expose makes of a look at a service what there is to say of it, and reports
// whether it is without a profile that confines it. sockets are those of the .socket
// units that listen for it.
func Expose(u Unit, s Sighting, sockets []SocketUnit) (e Exposure, found bool) {
	e = Exposure{Unit: u.ID, Running: TriOf(u.Active()), User: printable(u.Settings.User), Listening: s.Listening, More: s.MoreListening,
		Labels: []string{}, Processes: len(s.Processes) + s.MoreProcesses, Program: programOf(u), Next: []string{}, Unknown: slices.Clone(s.Problems)}
	if u.Settings.DynamicUser && e.User == "" {
		e.User = "a dynamic user"
	}
	for _, own := range sockets {
		for _, l := range own.Listen {
			l.By = own.Name
			// The service holds the same one, once it runs.
			if !slices.ContainsFunc(e.Listening, func(h Listening) bool { return sameSocket(h, l) }) {
				e.Listening = append(slices.Clip(e.Listening), l)
			}
		}
	}
	slices.SortStableFunc(e.Listening, func(a, b Listening) int {
		return cmp.Or(cmp.Compare(b.Reach, a.Reach), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Address, b.Address))
	})
	if e.Listening == nil {
		e.Listening = []Listening{}
	}
	bare := !u.Active() && u.Settings.Profile == ""
	e.Root = No
	if len(s.Processes) == 0 || s.MoreProcesses > 0 {
		e.Root = CouldNotTell
	}
	for _, p := range s.Processes {
		if p.Confines != Yes {
			bare = true
			if label := cmp.Or(p.Label, "could not be read"); !slices.Contains(e.Labels, label) {
				e.Labels = append(e.Labels, label)
			}
		}
		if p.Problem != "" {
			e.Unknown = append(e.Unknown, fmt.Sprintf("process %d: %s", p.PID, p.Problem))
			if e.Root == No {
				e.Root = CouldNotTell
			}
			continue
		}
		if p.UID == 0 {
			e.Root = Yes
		}
		if !slices.Contains(e.UIDs, p.UID) {
			e.UIDs = append(e.UIDs, p.UID)
		}
		for _, c := range p.Capabilities {
			if !slices.Contains(e.Capabilities, c) {
				e.Capabilities = append(e.Capabilities, c)
			}
		}
	}
	slices.Sort(e.UIDs)
	slices.Sort(e.Capabilities)
	// A service that runs and of which no process was seen is one of which nothing
	// is known; one that is active without any, as some oneshots are, has nothing.
	if u.Active() && len(s.Processes) == 0 && len(s.Problems) > 0 {
		bare = true
	}
	e.Class = e.class()
	return e, bare
}

func (e Exposure) class() ExposureClass {
	far := ReachUnknown
	for _, l := range e.Listening {
		far = max(far, l.Reach)
	}
	switch {
	case far == ReachNetwork:
		return ExposedNetwork
	case len(e.Unknown) > 0 || e.More > 0 || slices.ContainsFunc(e.Listening, func(l Listening) bool { return l.Reach == ReachUnknown }):
		return ExposedUnknown
	case far != ReachUnknown:
		return ExposedLocal
	case e.Root == Yes:
		return ExposedRoot
	case len(e.Capabilities) > 0:
		return ExposedCaps
	case e.Root == CouldNotTell && e.Running == Yes && e.Processes > 0:
		return ExposedUnknown
	}
	return ExposedNot
}

func sameSocket(a, b Listening) bool {
	return a.Port == b.Port && a.Address == b.Address && strings.TrimSuffix(a.Protocol, "6") == strings.TrimSuffix(b.Protocol, "6")
}

// programOf is the unit's main program, as its unit file names it.
func programOf(u Unit) string {
	for _, c := range u.Settings.Exec {
		if c.Property == "ExecStart" {
			return printable(c.Path)
		}
	}
	return ""
}

// SortExposures puts the most exposed first: by class, then what runs as root, then
// by the number of dangerous capabilities, of sockets, and by name.
func SortExposures(list []Exposure) { slices.SortStableFunc(list, Exposure.Compare) }

// Compare is below zero where e is more exposed than b.
func (e Exposure) Compare(b Exposure) int {
	return cmp.Or(
		cmp.Compare(slices.Index(exposureOrder, e.Class), slices.Index(exposureOrder, b.Class)),
		cmp.Compare(rank(e.Root), rank(b.Root)),
		cmp.Compare(len(b.Capabilities), len(e.Capabilities)),
		cmp.Compare(len(b.Listening)+b.More, len(e.Listening)+e.More),
		cmp.Compare(e.Unit, b.Unit))
}

// rank: what may be is as bad as what is not known not to be.
func rank(t Tri) int {
	switch t {
	case Yes:
		return 0
	case No:
		return 2
	}
	return 1
}

// Begin says which commands begin to confine a service: under a profile that there
// is, or by way of a first one in complain mode, which shows what it needs.
func (e *Exposure) Begin(profile string) {
	e.Profile = profile
	switch {
	case profile != "":
		e.Next = []string{"aaunitctl plan " + Shell(e.Unit), "aaunitctl attach " + Shell(e.Unit)}
	case e.Program != "":
		e.Next = []string{"aa-autodep " + Shell(e.Program), "aaunitctl attach --complain --profile " + Shell(e.Program) + " " + Shell(e.Unit), "aaunitctl denials " + Shell(e.Unit)}
	default:
		e.Next = []string{"aaunitctl plan " + Shell(e.Unit)}
	}
}

// Shell is a word as a shell reads it: a unit's name may hold a backslash.
func Shell(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789@%+=:,./_-") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}
