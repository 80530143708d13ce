package attach

import (
	"path"
	"strings"
)

// DropInName is the name of the one file aaunit writes into a unit's drop-in
// directory.
const DropInName = "90-aaunit.conf"

// DropInPath is where the drop-in of a unit, template or prefix belongs. With
// runtime it ends with the reboot.
func DropInPath(unit string, runtime bool) string {
	root := "/etc/systemd/system"
	if runtime {
		root = "/run/systemd/system"
	}
	return path.Join(root, unit+".d", DropInName)
}

// Placement gives the unit name whose drop-in directory serves unit under this
// attachment: a template or prefix directory where the attachment names one,
// so that the first start of a unit to come is confined too, else the unit's own.
func (a Attachment) Placement(unit string) string {
	if m, value := a.closest(unit); m == MatchTemplate || m == MatchPrefix {
		return value
	}
	return unit
}

// DropIn is the text of the drop-in, for the given profile value as it shall
// stand after AppArmorProfile= (specifiers live).
//
// AssertSecurity= makes a start fail where systemd would skip the profile in
// silence because AppArmor is off. After= is order only: a requirement would
// tie the unit to every broken profile on the host.
func DropIn(a Attachment, profile string) string {
	var b strings.Builder
	b.WriteString(header(a))
	b.WriteString("[Unit]\n")
	b.WriteString("AssertSecurity=apparmor\n")
	b.WriteString("After=apparmor.service aaunit-policy.service\n")
	b.WriteString("\n[Service]\n")
	b.WriteString("AppArmorProfile=" + profile + "\n")
	if a.PrivateTmp.rank() > 0 {
		b.WriteString("PrivateTmp=" + string(a.PrivateTmp) + "\n")
	}
	if s := a.SocketsWanted(); s != nil {
		b.WriteString(SocketStartLine(s.Requires()) + "\n")
	}
	return b.String()
}

// SocketDropIn is the text of the drop-in of a .socket unit that starts an attached
// service whose socket options are held or recorded.
//
// The start helper reads the rules below /var/lib/aaunit. A service is attached only
// where it comes after local-fs.target (UnfitUnit); a .socket unit that starts it may
// be earlier all the same, as syslog.socket is, and nothing may be mounted on /var yet.
// RequiresMountsFor= orders it after the mount units on that path and no others, which
// aaunit-policy.service needs before sysinit.target as well (systemd.unit(5)).
//
// It names no attachment: several services may share a .socket unit (Sockets=), and each
// is to find what the others have written.
func SocketDropIn(a Attachment) string {
	return socketHeader + socketBody(a.SocketsWanted().Requires())
}

const socketHeader = "# Written by aaunitd; changes are put back.\n" +
	"# It serves all attached units that this one starts.\n" +
	"# To take it away: aaunitctl detach UNIT for each of them, or remove their attachments.\n"

func socketBody(required bool) string {
	return "[Unit]\nRequiresMountsFor=/var/lib/aaunit\n\n[Socket]\n" + SocketStartLine(required) + "\n"
}

func header(a Attachment) string {
	return "# Written by aaunitd; changes are put back.\n" +
		"# Attachment: " + comment(a.Source) + "\n" +
		"# To take it away: aaunitctl detach UNIT, or remove the attachment.\n"
}

// comment keeps a file name from ending the comment line it stands in.
func comment(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == '\\' {
			return '?'
		}
		return r
	}, s)
}
