package attach

import (
	"strings"
	"testing"
)

func TestDropInText(t *testing.T) {
	d, o := healthy()
	const want = `# Written by aaunitd; changes are put back.
# Attachment: /etc/aaunit/attachments.d/myagent.conf
# To take it away: aaunitctl detach UNIT, or remove the attachment.
[Unit]
AssertSecurity=apparmor
After=apparmor.service aaunit-policy.service

[Service]
AppArmorProfile=myagent
PrivateTmp=yes
`
	if got := d.DropInText(o.Unit); got != want {
		t.Errorf("got:\n%s", got)
	}

	d.Profile = "100% mine"
	if got := d.DropInText(o.Unit); !strings.Contains(got, "\nAppArmorProfile=100%% mine\n") {
		t.Errorf("a percent sign of the name must not be a specifier:\n%s", got)
	}
	d.Attachment.PrivateTmp = PrivateTmpNo
	o.Unit.Settings.Assignments = nil
	if got := d.DropInText(o.Unit); strings.Contains(got, "PrivateTmp") {
		t.Errorf("PrivateTmp=no asks for nothing:\n%s", got)
	}
	for _, bad := range []PrivateTmp{"", "yes\nUser=root"} {
		d.Attachment.PrivateTmp = bad
		if got := d.DropInText(o.Unit); strings.Contains(got, "PrivateTmp") || strings.Contains(got, "User=") {
			t.Errorf("PrivateTmp %q got into the text:\n%s", bad, got)
		}
	}
}

// A .socket unit may start before anything is mounted on /var, where the start helper
// finds the rules: syslog.socket does (DefaultDependencies=no).
func TestSocketDropInText(t *testing.T) {
	d, _ := held(Yes)
	d.Attachment.Source = "/etc/aaunit/attachments.d/a.conf"
	const want = `# Written by aaunitd; changes are put back.
# It serves all attached units that this one starts.
# To take it away: aaunitctl detach UNIT for each of them, or remove their attachments.
[Unit]
RequiresMountsFor=/var/lib/aaunit

[Socket]
ExecStartPre=+/usr/lib/aaunit/aaunit-sockopts %n
`
	if got := SocketDropIn(*d.Attachment); got != want {
		t.Errorf("got:\n%s", got)
	}
	// Units that share it, and have attachments of their own, want the same text.
	d.Attachment.Source = "/etc/aaunit/attachments.d/b.conf"
	if got := SocketDropIn(*d.Attachment); got != want {
		t.Errorf("for another attachment:\n%s", got)
	}
	// Before, it named the attachment.
	_, body, _ := strings.Cut(want, "[Unit]")
	old := "# Written by aaunitd; changes are put back.\n# Attachment: /etc/x.conf\n# To take it away: aaunitctl detach UNIT, or remove the attachment.\n[Unit]" + body
	if !WroteSocketDropIn(old) || !wroteSocketDropIn(old, true) || wroteSocketDropIn(old, false) || WroteSocketDropIn(old+"ExecStartPre=+/bin/sh\n") {
		t.Errorf("what an earlier version wrote is not known for what it is")
	}
}

// In a pattern's directory, systemd expands the specifiers for each unit.
func TestDropInTextOfPattern(t *testing.T) {
	d, o := healthy()
	d.Unit, d.Profile = "agent@a.service", "agent-a"
	d.Attachment.Units, d.Attachment.Profile = []string{"agent@.service"}, "agent-%i"
	o.Unit.ID = d.Unit
	if got := d.DropInText(o.Unit); !strings.Contains(got, "\nAppArmorProfile=agent-%i\n") {
		t.Errorf("got:\n%s", got)
	}
	if got := d.DropInPath(); got != "/etc/systemd/system/agent@.service.d/90-aaunit.conf" {
		t.Errorf("got %s", got)
	}
	// A glob has no directory of its own: each unit gets its drop-in.
	d.Attachment.Units = []string{"agent@*.service"}
	if got := d.DropInText(o.Unit); !strings.Contains(got, "\nAppArmorProfile=agent-a\n") {
		t.Errorf("got:\n%s", got)
	}
}

// The name of the attachment file comes from whoever made the file.
func TestDropInSourceStaysInItsComment(t *testing.T) {
	d, o := healthy()
	want := strings.Count(d.DropInText(o.Unit), "\n")
	for _, source := range []string{"x\nUser=root", "x\\", "x\r\nUser=root", "x\x00", "\xff\n"} {
		d.Attachment.Source = source
		got := d.DropInText(o.Unit)
		if strings.Count(got, "\n") != want || strings.Contains(got, "\\\n") || strings.ContainsAny(got, "\x00\r") {
			t.Errorf("source %q:\n%q", source, got)
		}
	}
}

func TestPrivateTmpIsNeverWeakened(t *testing.T) {
	const vendor = "/usr/lib/systemd/system/myagent.service"
	for _, tt := range []struct {
		name  string
		asked PrivateTmp
		lines []string // of the unit file
		want  PrivateTmp
	}{
		{"nothing there", PrivateTmpYes, nil, PrivateTmpYes},
		{"less there", PrivateTmpYes, []string{"PrivateTmp=no"}, PrivateTmpYes},
		{"more there", PrivateTmpYes, []string{"PrivateTmp=disconnected"}, PrivateTmpDisconnected},
		{"not asked for, there", PrivateTmpNo, []string{"PrivateTmp=true"}, PrivateTmpYes},
		{"not asked for, there by its new name", PrivateTmpNo, []string{"PrivateTmp=connected"}, PrivateTmpYes},
		{"not asked for, not there", PrivateTmpNo, nil, PrivateTmpNo},
		{"the last line wins", PrivateTmpNo, []string{"PrivateTmp=yes", "PrivateTmp=no"}, PrivateTmpNo},
		{"systemd ignores an empty value", PrivateTmpYes, []string{"PrivateTmp=disconnected", "PrivateTmp="}, PrivateTmpDisconnected},
		{"and one it does not know", PrivateTmpYes, []string{"PrivateTmp=disconnected", "PrivateTmp=perhaps"}, PrivateTmpDisconnected},
	} {
		d, o := healthy()
		d.Attachment.PrivateTmp = tt.asked
		// What an earlier drop-in of ours says is not the unit's own wish.
		o.Unit.Settings.Assignments = []Assignment{{"PrivateTmp", "disconnected", "/etc/systemd/system/" + unitName + ".d/90-aaunit.conf", 3}}
		earlier(&o, vendor, tt.lines...)
		if got := d.wantTmp(o.Unit); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.name, got, tt.want)
		}
	}
}

// From systemd 257 on DynamicUser= gives a unit a /tmp that nothing else can reach, unless
// PrivateTmp= says something. Before, systemd leaves out a line that says so.
func TestPrivateTmpOfADynamicUser(t *testing.T) {
	const vendor = "/usr/lib/systemd/system/myagent.service"
	for _, tt := range []struct {
		name         string
		asked        PrivateTmp
		dynamic, old bool
		lines        []string
		want         string // in the drop-in
	}{
		{"257, nothing said", PrivateTmpYes, true, false, nil, "disconnected"},
		{"257, nothing asked for", PrivateTmpNo, true, false, nil, "disconnected"},
		{"257, no", PrivateTmpYes, true, false, []string{"PrivateTmp=no"}, "disconnected"},
		{"257, yes", PrivateTmpYes, true, false, []string{"PrivateTmp=yes"}, "yes"},
		{"257, another user", PrivateTmpYes, false, false, nil, "yes"},
		{"252, nothing said", PrivateTmpYes, true, true, nil, "yes"},
		{"252, disconnected", PrivateTmpYes, false, true, []string{"PrivateTmp=disconnected"}, "yes"},
		{"252, disconnected after yes", PrivateTmpNo, false, true, []string{"PrivateTmp=yes", "PrivateTmp=disconnected"}, "yes"},
		{"252, connected", PrivateTmpNo, false, true, []string{"PrivateTmp=connected"}, ""},
	} {
		d, o := healthy()
		d.Attachment.PrivateTmp = tt.asked
		o.Unit.Settings.DynamicUser, o.Unit.Settings.KnowsDisconnected = tt.dynamic, !tt.old
		earlier(&o, vendor, tt.lines...)
		_, got, _ := strings.Cut(d.DropInText(o.Unit), "\nPrivateTmp=")
		if got, _, _ = strings.Cut(got, "\n"); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
