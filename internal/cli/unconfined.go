package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/aaunit/aaunit/internal/attach"
)

// listUnconfined lists the services that nobody has confined.
func (a *app) listUnconfined(ctx context.Context, d Daemon) error {
	r, err := d.Exposed(ctx)
	if err != nil {
		return err
	}
	if r.Services == nil {
		r.Services = []attach.Exposure{}
	}
	a.exit = exposedExit(r)
	if a.json {
		return a.printJSON(r)
	}
	a.printer().exposed(r)
	return nil
}

// exposedExit: a service without a profile is not confined; where something could not
// be looked at it is not known that there is no other.
func exposedExit(r attach.ExposureReport) attach.Exit {
	host, _ := attach.ExitOfHost(r.Host)
	codes := []attach.Exit{host}
	if len(r.Services) > 0 {
		codes = append(codes, attach.ExitNotConfined)
	}
	if len(r.Unknown) > 0 {
		codes = append(codes, attach.ExitUnknown)
	}
	return exits(codes...)
}

// exposedWords are the classes in words.
var exposedWords = map[attach.ExposureClass]string{
	attach.ExposedNetwork: "network", attach.ExposedUnknown: "unknown", attach.ExposedLocal: "this machine", attach.ExposedRoot: "root", attach.ExposedCaps: "capabilities",
}

// maxSockets is how many sockets of a service the table shows.
const maxSockets = 3

func (p *printer) exposed(r attach.ExposureReport) {
	if code, _ := attach.ExitOfHost(r.Host); code != attach.ExitOK {
		p.host(r.Host)
	}
	var cells [][]string
	for _, e := range r.Services {
		class, known := exposedWords[e.Class]
		if !known {
			class = string(e.Class)
		}
		label := p.names(e.Labels)
		switch {
		case e.Running == attach.No:
			label = "not running"
		case label == "":
			label = "?"
		}
		cells = append(cells, []string{p.text(e.Unit), p.text(class), p.runsAs(e), p.listens(e), label})
	}
	if len(cells) > 0 {
		p.table([]string{"UNIT", "EXPOSED TO", "RUNS AS", "LISTENS", "LABEL"}, cells, nil)
		p.line("")
	}
	var unknown [][2]string
	for _, e := range r.Services {
		for _, u := range e.Unknown {
			unknown = append(unknown, [2]string{e.Unit, u})
		}
	}
	for _, u := range r.Unknown {
		unknown = append(unknown, [2]string{"", u})
	}
	if len(unknown) > 0 {
		p.line("What could not be told:")
		for _, u := range unknown {
			p.line("  %s %s", p.mark(markUnknown), strings.TrimPrefix(p.text(u[0])+": "+p.text(u[1]), ": "))
		}
		p.line("")
	}
	if len(cells) > 0 {
		p.line("To begin with each, the most exposed first:")
		learn := false
		for _, e := range r.Services {
			p.line("  %s %s", p.mark(markNext), p.text(inOneLine(e.Next)))
			learn = learn || e.Profile == ""
		}
		if learn {
			p.para("aa-autodep (package apparmor-utils) writes a first profile, which is attached in complain mode: it allows everything, and denials shows what the service does. Put what it needs into the profile, and attach it without --complain.", 2)
		}
		p.line("")
	}
	p.line("%s that no attachment names: %d without a profile and listed, %d without a profile and neither listening nor privileged, %d under a profile.",
		count(r.Looked, "service", "services"), len(r.Services), r.Quiet, r.Confined)
}

// inOneLine joins steps for a shell: each needs the one before. An attach in complain
// mode exits with 3 when it is done, since the unit is not confined.
func inOneLine(steps []string) string {
	line := ""
	for i, s := range steps {
		switch {
		case i == 0:
		case strings.HasPrefix(steps[i-1], "aaunitctl attach --complain "):
			line += "; "
		default:
			line += " && "
		}
		line += s
	}
	return line
}

// runsAs says as whom a service runs, and with which dangerous capabilities.
func (p *printer) runsAs(e attach.Exposure) string {
	var who string
	switch {
	case e.Root == attach.Yes:
		who = "root"
	case e.User != "":
		who = p.text(e.User)
	case len(e.UIDs) > 0:
		who = fmt.Sprintf("uid %d", e.UIDs[0])
	case e.Running == attach.No && !attach.IsTemplate(e.Unit):
		who = "root" // what systemd takes where a unit says nothing
	default:
		return "?"
	}
	switch n := len(e.Capabilities); {
	case n == 0 || e.Root == attach.Yes && n > 20:
	case n <= 2:
		who += ", " + p.names(e.Capabilities)
	default:
		who += fmt.Sprintf(", %s and %d more", p.text(e.Capabilities[0]), n-1)
	}
	return who
}

func (p *printer) listens(e attach.Exposure) string {
	var out []string
	more := e.More
	for _, l := range e.Listening {
		s := p.text(l.String())
		if slices.Contains(out, s) {
			continue
		}
		if len(out) == maxSockets {
			more++
			continue
		}
		out = append(out, p.cut(s, 40))
	}
	if more > 0 {
		out = append(out, fmt.Sprintf("%d more", more))
	}
	if len(out) == 0 {
		return "-"
	}
	return strings.Join(out, ", ")
}
