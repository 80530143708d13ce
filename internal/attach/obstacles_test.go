package attach

import (
	"slices"
	"strings"
	"testing"
)

func TestHealthyUnitHasNoObstacles(t *testing.T) {
	d, o := healthy()
	refusals, warnings := Obstacles(d, o)
	wantCodes(t, "refusals", refusals)
	wantCodes(t, "warnings", warnings)
	wantCodes(t, "effective", Effective(d, o.Unit))
	if p := Diff(d, o); len(p.Actions)+len(p.Pending)+len(p.Refusals)+len(p.Warnings) != 0 {
		t.Errorf("plan of a healthy unit: %+v", p)
	}
}

// Every way around the profile that can be seen before a restart is named, with
// the place and the next step.
func TestObstacles(t *testing.T) {
	const (
		dropIns = "/etc/systemd/system/myagent.service.d/"
		ours    = dropIns + "90-aaunit.conf"
	)
	prof := func(o *Observed) *Profile { return &o.Policy.Candidates["myagent"][0] }
	for _, tt := range []struct {
		name     string
		break_   func(d *Desired, o *Observed)
		refusals []Code
		warnings []Code
		says     string // in the first of them
	}{
		// AppArmor on the host.
		{"AppArmor off", func(_ *Desired, o *Observed) { o.Host.Enabled = No }, []Code{AppArmorOff}, nil, "not enabled"},
		{"AppArmor unread", func(_ *Desired, o *Observed) { o.Host = Host{Problem: "EIO", BootService: Yes} }, []Code{AppArmorUnknown}, nil, "EIO"},
		{"global mode unread", func(_ *Desired, o *Observed) { o.Host.GlobalMode = "" }, []Code{AppArmorUnknown}, nil, "global mode"},
		{"global complain", func(_ *Desired, o *Observed) { o.Host.GlobalMode = ModeComplain }, []Code{GlobalComplain}, nil, "complain"},
		{"apparmor.service disabled", func(_ *Desired, o *Observed) { o.Host.BootService = No }, nil, []Code{BootServiceMissing}, "not enabled"},
		{"apparmor.service unread", func(_ *Desired, o *Observed) { o.Host.BootService = CouldNotTell }, nil, []Code{BootServiceMissing}, "could not be read"},

		// The directive.
		{"- prefix in the vendor's file, before ours", func(_ *Desired, o *Observed) {
			earlier(o, o.Unit.FragmentPath, "AppArmorProfile=-myagent")
		}, nil, nil, ""},
		{"the same, and ours is not there yet", func(_ *Desired, o *Observed) {
			o.Unit.Settings.Assignments, o.Unit.DropIns = nil, nil
			earlier(o, o.Unit.FragmentPath, "AppArmorProfile=-myagent")
			o.Unit.Settings.IgnoreMissing = true
		}, nil, []Code{IgnorePrefix}, "until the drop-in replaces it"},
		{"- prefix in a later drop-in", func(_ *Desired, o *Observed) {
			later(o, dropIns+"override.conf", "AppArmorProfile=-myagent")
		}, []Code{IgnorePrefix}, nil, "override.conf"},
		{"later drop-in of the unit resets the directive", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "AppArmorProfile=")
		}, []Code{DirectiveOverridden}, nil, "zz.conf"},
		{"of all services", func(_ *Desired, o *Observed) {
			later(o, "/etc/systemd/system/service.d/99-all.conf", "AppArmorProfile=")
		}, []Code{DirectiveOverridden}, nil, "service.d/99-all.conf"},
		{"of a prefix, from a package", func(_ *Desired, o *Observed) {
			later(o, "/usr/lib/systemd/system/my-.service.d/zz.conf", "AppArmorProfile=other")
		}, []Code{DirectiveOverridden}, nil, "other"},
		{"of system.control", func(_ *Desired, o *Observed) {
			later(o, "/etc/systemd/system.control/myagent.service.d/95-x.conf", "AppArmorProfile=")
		}, []Code{DirectiveOverridden}, nil, "system.control"},
		{"it sets the same", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "AppArmorProfile=", "AppArmorProfile=%p")
		}, nil, nil, ""},
		{"it sets the same and resets", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "AppArmorProfile=myagent", "AppArmorProfile=")
		}, []Code{DirectiveOverridden}, nil, "resets"},
		{"an earlier name in system.control", func(_ *Desired, o *Observed) {
			earlier(o, "/etc/systemd/system.control/myagent.service.d/50-x.conf", "AppArmorProfile=")
		}, nil, nil, ""},

		// The assertion.
		{"assertion reset", func(_ *Desired, o *Observed) {
			later(o, "/etc/systemd/system/service.d/zz.conf", "AssertSecurity=")
		}, []Code{AssertionOverridden}, nil, "service.d/zz.conf"},
		{"assertion reset, another follows", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "AssertSecurity=", "AssertSecurity=selinux")
		}, []Code{AssertionOverridden}, nil, "resets"},
		{"assertion reset and made again", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "AssertSecurity=", "AssertSecurity=apparmor")
		}, nil, nil, ""},
		{"one more assertion", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "AssertSecurity=uefi-secureboot")
		}, nil, nil, ""},

		// The private /tmp.
		{"private /tmp taken away", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "PrivateTmp=false")
		}, []Code{PrivateTmpOverridden}, nil, "PrivateTmp=false"},
		{"private /tmp made stronger", func(_ *Desired, o *Observed) {
			later(o, dropIns+"zz.conf", "PrivateTmp=disconnected")
			d, _ := healthy()
			o.DropIn.Content = d.DropInText(o.Unit)
		}, nil, nil, ""},
		{"a pattern's drop-in would weaken it", func(d *Desired, o *Observed) {
			d.Unit, o.Unit.ID, d.Attachment.Units, d.Attachment.Profile = "agent@a.service", "agent@a.service", []string{"agent@.service"}, "my%p"
			o.Unit.DropIns, o.Unit.Settings.Assignments = nil, nil
			earlier(o, "/usr/lib/systemd/system/agent@.service", "PrivateTmp=disconnected")
		}, []Code{PrivateTmpOverridden}, nil, "weaken"},

		{"a pattern's drop-in would weaken what DynamicUser= implies", func(d *Desired, o *Observed) {
			d.Unit, o.Unit.ID, d.Attachment.Units, d.Attachment.Profile = "agent@a.service", "agent@a.service", []string{"agent@.service"}, "my%p"
			o.Unit.Settings.DynamicUser = true
		}, []Code{PrivateTmpOverridden}, nil, "weaken"},
		{"DynamicUser= implies no more than yes before 257", func(d *Desired, o *Observed) {
			d.Unit, o.Unit.ID, d.Attachment.Units, d.Attachment.Profile = "agent@a.service", "agent@a.service", []string{"agent@.service"}, "my%p"
			o.Unit.Settings.DynamicUser, o.Unit.Settings.KnowsDisconnected = true, false
			o.DropIn.Content = d.DropInText(o.Unit)
		}, nil, nil, ""},
		{"it does not go where DynamicUser= brings it back", func(_ *Desired, o *Observed) {
			o.Unit.Settings.DynamicUser = true
			later(o, dropIns+"zz.conf", "PrivateTmp=no")
			d, _ := healthy()
			o.DropIn.Content = d.DropInText(o.Unit)
		}, nil, nil, ""},
		{"a value that systemd does not know takes nothing away", func(_ *Desired, o *Observed) {
			o.Unit.Settings.KnowsDisconnected = false
			later(o, dropIns+"zz.conf", "PrivateTmp=disconnected")
		}, nil, nil, ""},

		// Our place.
		{"same name in a directory that comes first", func(_ *Desired, o *Observed) {
			o.Unit.DropIns = []string{"/etc/systemd/system.control/myagent.service.d/90-aaunit.conf"}
		}, []Code{DirectiveOverridden}, nil, "instead"},
		{"same name in a directory that comes later", func(_ *Desired, o *Observed) {
			o.Unit.DropIns = []string{"/run/systemd/system/myagent.service.d/90-aaunit.conf"}
		}, nil, nil, ""},
		{"same name in a directory that comes first, as systemd read it a while ago", func(_ *Desired, o *Observed) {
			o.Unit.DropIns = []string{"/etc/systemd/system.control/myagent.service.d/90-aaunit.conf"}
			o.Unit.NeedReload = true
		}, nil, nil, ""},
		{"a pattern's drop-in beats one of /run", func(d *Desired, o *Observed) {
			d.Attachment.Runtime = true
			d.Unit, o.Unit.ID = "my-agent.service", "my-agent.service"
			o.DropIn = DropInState{}
			o.Unit.DropIns = []string{"/etc/systemd/system/my-.service.d/90-aaunit.conf"}
		}, []Code{DirectiveOverridden}, nil, "my-.service.d"},
		{"foreign file at our place", func(_ *Desired, o *Observed) {
			o.DropIn = DropInState{Exists: true, Content: "[Service]\n"}
		}, []Code{DropInForeign}, nil, ours},
		{"foreign file that says the same", func(_ *Desired, o *Observed) { o.DropIn.Ours = false }, nil, nil, ""},
		{"our place unreadable", func(_ *Desired, o *Observed) {
			o.DropIn = DropInState{Exists: true, Problem: "it is a symbolic link"}
		}, []Code{DropInUnreadable}, nil, "symbolic link"},

		// Command lines.
		{"ExecStart=+", func(_ *Desired, o *Observed) { o.Unit.Settings.Exec[0].Privileged = true }, []Code{ExecPrivileged}, nil, "ExecStart=+"},
		{"ExecStartPre=+", func(_ *Desired, o *Observed) {
			o.Unit.Settings.Exec = append(o.Unit.Settings.Exec, ExecCommand{Property: "ExecStartPre", Path: "/bin/mkdir", Privileged: true})
		}, nil, []Code{ExecPrivileged}, "ExecStartPre=+/bin/mkdir"},
		{"PermissionsStartOnly", func(_ *Desired, o *Observed) {
			o.Unit.Settings.PermissionsStartOnly = true
			earlier(o, o.Unit.FragmentPath, "PermissionsStartOnly=yes")
		}, nil, []Code{PermissionsStartOnly}, "PermissionsStartOnly"},
		{"aa-exec", exec("/usr/bin/aa-exec", "aa-exec", "-p", "myagent", "--", "/usr/local/bin/myagent"), []Code{AAExec}, nil, "aa-exec -p myagent"},
		{"aa-exec through a shell", exec("/bin/sh", "sh", "-c", "umask 077; exec /usr/bin/aa-exec -p myagent -- myagent"), []Code{AAExec}, nil, "sh -c"},
		{"aa-exec in a substitution", exec("/bin/sh", "sh", "-c", "echo $(aa-exec -p myagent id)"), []Code{AAExec}, nil, "sh -c"},
		{"aa-exec through env", exec("/usr/bin/env", "env", "A=b", "aa-exec", "-p", "myagent", "myagent"), []Code{AAExec}, nil, "env A=b"},
		{"aa-exec is a word to others", exec("/usr/local/bin/myagent", "myagent", "--greet", "aa-exec"), nil, nil, ""},
		{"aa-exec in a longer word", exec("/bin/sh", "sh", "-c", "my-aa-exec-tool"), nil, nil, ""},

		// The profile's text.
		{"complain", func(_ *Desired, o *Observed) { prof(o).Flags = []string{"attach_disconnected", "complain"} }, []Code{ProfileComplain}, nil, "flags=(complain)"},
		{"complain, as asked for", func(d *Desired, o *Observed) {
			d.Attachment.Mode, prof(o).Flags = WishComplain, []string{"complain"}
		}, nil, nil, ""},
		{"unconfined", func(_ *Desired, o *Observed) { prof(o).Flags = []string{"unconfined"} }, []Code{ProfileUnconfined}, nil, "flags=(unconfined)"},
		{"default_allow", func(_ *Desired, o *Observed) { prof(o).Flags = []string{"default_allow"} }, []Code{ProfileDefaultOpen}, nil, "default_allow"},
		{"a hat in complain mode", func(_ *Desired, o *Observed) {
			o.Policy.Compiled[0].Profiles[1].Flags = []string{"complain"}
		}, []Code{ProfileComplain}, nil, "myagent//helper"},
		{"complain mode, in the text and compiled", func(d *Desired, o *Observed) {
			d.Record, o.Policy.Compiled, prof(o).Flags = Record{}, nil, []string{"complain"}
			o.Policy.Problems = []Reason{because(ProfileComplain, "it is in complain mode").at(flagObstacles(*prof(o), false)[0].Where)}
		}, []Code{ProfileComplain}, nil, "flags=(complain)"},
		{"enforced by another unit", func(_ *Desired, o *Observed) { o.Policy.EnforcedBy = "b.service" }, nil, nil, ""},
		{"complain, enforced by another unit", func(d *Desired, o *Observed) {
			d.Attachment.Mode, o.Policy.EnforcedBy = WishComplain, "b.service"
		}, []Code{ProfileDisputed}, nil, "b.service"},
		{"disable link", func(_ *Desired, o *Observed) { prof(o).DisabledBy = "/etc/apparmor.d/disable/usr.local.bin.myagent" }, []Code{ProfileDisabled}, nil, "disable/"},
		{"force-complain link", func(_ *Desired, o *Observed) {
			prof(o).ComplainBy = "/etc/apparmor.d/force-complain/usr.local.bin.myagent"
		}, []Code{ProfileComplain}, nil, "force-complain/"},
		{"not under /etc/apparmor.d", func(_ *Desired, o *Observed) { prof(o).File = "/srv/profiles/myagent" }, nil, []Code{ProfileNotAtBoot}, "/srv/profiles/myagent"},
		{"in a directory below it", func(_ *Desired, o *Observed) { prof(o).File = "/etc/apparmor.d/local/myagent" }, nil, []Code{ProfileNotAtBoot}, "not directly"},
		{"duplicate name", func(_ *Desired, o *Observed) {
			o.Policy.Candidates["myagent"] = append(o.Policy.Candidates["myagent"], Profile{Name: "myagent", File: "/etc/apparmor.d/zz", Line: 1})
		}, []Code{ProfileDuplicate}, nil, "/etc/apparmor.d/zz:1"},
		{"Ux child", func(_ *Desired, o *Observed) { prof(o).Leaves = []Leave{{Rule: "/bin/sh Ux,", Line: 7}} }, nil, []Code{ChildLeaves}, "/bin/sh Ux,"},
		{"no such profile", func(_ *Desired, o *Observed) { o.Policy.Candidates = nil }, []Code{ProfileNotFound}, nil, "myagent"},
		{"no such allowed profile", func(d *Desired, o *Observed) {
			d.Attachment.AllowProfiles = []string{"helper"}
			o.Policy.Live["helper"], d.Record.Accepted["helper"] = LiveProfile{"helper", ModeEnforce, sumMain}, sumMain
		}, []Code{ProfileNotFound}, nil, "helper"},
		{"does not compile, nothing runs yet", func(d *Desired, o *Observed) {
			d.Record, o.Policy.Compiled = Record{}, nil
			o.Policy.Problems = []Reason{because(ProfileBroken, "syntax error")}
		}, []Code{ProfileBroken}, nil, "syntax error"},
		{"does not compile any more, the accepted one runs", func(_ *Desired, o *Observed) {
			o.Policy.Compiled = nil
			o.Policy.Problems = []Reason{because(ProfileBroken, "syntax error")}
		}, nil, []Code{ProfileBroken}, "syntax error"},
		{"does not compile, another policy was accepted", func(d *Desired, o *Observed) {
			d.Record.Accepted = map[string]string{"former": "sha256:cc"}
			o.Policy.Live["former"] = LiveProfile{"former", ModeEnforce, "sha256:cc"}
			o.Policy.Compiled = nil
			o.Policy.Problems = []Reason{because(ProfileBroken, "syntax error")}
		}, []Code{ProfileBroken}, nil, "syntax error"},
		{"not staged", func(_ *Desired, o *Observed) {
			o.Policy.Compiled[0].Checksums, o.Policy.Compiled[0].NotStaged = nil, "EPERM"
		}, []Code{ProfileNotStaged}, nil, "EPERM"},
		{"read otherwise by the kernel", func(_ *Desired, o *Observed) {
			o.Policy.Compiled[0].Checksums, o.Policy.Compiled[0].Disagrees = nil, `file "/tmp/a"`
		}, []Code{PolicyDisputed}, nil, `file "/tmp/a"`},
		{"the kernel was not asked", func(_ *Desired, o *Observed) { o.Policy.Compiled[0].NotAsked = "it has no query file" }, nil, nil, ""},
		{"staged without a checksum", func(_ *Desired, o *Observed) {
			o.Policy.Compiled[0].Checksums = map[string]string{"myagent": ""}
		}, []Code{ProfileNotStaged}, nil, "staged"},
		{"not compiled this time, the accepted one runs", func(_ *Desired, o *Observed) { o.Policy.Compiled = nil }, nil, nil, ""},
		{"not compiled, and nothing was accepted", func(d *Desired, o *Observed) {
			d.Record, o.Policy.Compiled = Record{}, nil
		}, []Code{ProfileNotStaged}, nil, "no policy"},
		{"compiled to something else", func(d *Desired, o *Observed) {
			d.Record.Accepted = nil
			o.Policy.Compiled[0].Checksums = map[string]string{"other": sumMain}
		}, []Code{ProfileNotStaged}, nil, "no policy for profile myagent"},
		{"loaded policy unreadable", func(_ *Desired, o *Observed) { o.Policy.LiveError = "EACCES" }, []Code{PolicyUnreadable}, nil, "EACCES"},
		{"name that cannot be written", func(d *Desired, _ *Observed) { d.Profile = "-myagent" }, []Code{ProfileNameBad}, nil, "unconfined when"},
		{"pattern that gives another name", func(d *Desired, o *Observed) {
			d.Unit, o.Unit.ID, d.Attachment.Units, d.Attachment.Profile = "agent@a.service", "agent@a.service", []string{"agent@.service"}, "%i"
			o.Unit.DropIns, o.Unit.Settings.Assignments = nil, nil
		}, []Code{ProfileNameBad}, nil, "%i"},
		{"no attachment", func(d *Desired, _ *Observed) { d.Attachment = nil }, []Code{Detached}, nil, unitName},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, o := healthy()
			tt.break_(&d, &o)
			if o.DropIn.Exists && o.DropIn.Ours && d.Attachment != nil {
				o.DropIn.Content = d.DropInText(o.Unit)
			}
			refusals, warnings := Obstacles(d, o)
			if d.Profile == "-myagent" {
				refusals = refusals[:1] // it is not found either
			}
			wantCodes(t, "refusals", refusals, tt.refusals...)
			wantCodes(t, "warnings", warnings, tt.warnings...)
			if all := append(refusals, warnings...); len(all) > 0 && !strings.Contains(all[0].String(), tt.says) {
				t.Errorf("the reason does not name %q:%s", tt.says, list(all))
			}
			if p := Diff(d, o); len(tt.refusals) > 0 && d.Attachment != nil && len(p.Actions) > 0 {
				t.Errorf("a refusal must leave everything as it is; planned %+v", p.Actions)
			}
		})
	}
}

func exec(path string, argv ...string) func(*Desired, *Observed) {
	return func(_ *Desired, o *Observed) {
		o.Unit.Settings.Exec[0].Path, o.Unit.Settings.Exec[0].Argv = path, argv
	}
}

func TestUnfitUnit(t *testing.T) {
	const asked = unitName
	for _, tt := range []struct {
		name   string
		asked  string
		change func(*Unit)
		want   Code // "" fit
	}{
		{"not found", asked, func(u *Unit) { u.LoadState = "not-found" }, UnitNotFound},
		{"never read", asked, func(u *Unit) { *u = Unit{} }, UnitNotFound},
		{"masked", asked, func(u *Unit) { u.LoadState = "masked" }, UnitMasked},
		{"masked while loaded", asked, func(u *Unit) { u.UnitFileState = "masked-runtime" }, UnitMasked},
		{"transient", asked, func(u *Unit) { u.Transient = true }, UnitTransient},
		{"transient by its path", asked, func(u *Unit) { u.FragmentPath = "/run/systemd/transient/" + asked }, UnitTransient},
		{"bad setting", asked, func(u *Unit) { u.LoadState = "bad-setting" }, UnitBad},
		{"error", asked, func(u *Unit) { u.LoadState, u.LoadError = "error", "EIO" }, UnitBad},
		{"template", "agent@.service", func(*Unit) {}, UnitTemplate},
		{"timer", "myagent.timer", func(*Unit) {}, UnitNoService},
		{"user unit", asked, func(u *Unit) { u.LoadState, u.UserFile = "not-found", "/etc/systemd/user/"+asked }, UnitOfUser},
		{"early", asked, func(u *Unit) { u.Settings.DefaultDependencies = false }, UnitEarly},
		{"early, after local-fs", asked, func(u *Unit) {
			u.Settings.DefaultDependencies, u.Settings.After = false, []string{"local-fs.target", "apparmor.service"}
		}, UnitEarly},
		{"not early", asked, func(u *Unit) {
			u.Settings.DefaultDependencies, u.Settings.After = false, []string{"sysinit.target"}
		}, ""},
		{"static", asked, func(u *Unit) { u.UnitFileState = "static" }, ""},
		{"generated", asked, func(u *Unit) { u.FragmentPath = "/run/systemd/generator.late/" + asked }, ""},
		{"alias", asked, func(u *Unit) { u.ID, u.Names = "real.service", []string{"real.service", asked} }, ""},
		{"instance", "agent@a.service", func(*Unit) {}, ""},
		{"oneshot", asked, func(u *Unit) { u.Type = "oneshot" }, ""},
		{"failed", asked, func(u *Unit) { u.ActiveState = "failed" }, ""},
		{"PAMName", asked, func(u *Unit) { u.Settings.PAMName = "login" }, ""},
		{"Delegate", asked, func(u *Unit) { u.Settings.Delegate = true }, ""},
		{"user manager itself", "user@1000.service", func(u *Unit) { u.FragmentPath = "/usr/lib/systemd/system/user@.service" }, ""},
	} {
		_, o := healthy()
		tt.change(&o.Unit)
		why := UnfitUnit(o.Unit, tt.asked)
		switch {
		case why == nil && tt.want != "":
			t.Errorf("%s: called fit; want %s", tt.name, tt.want)
		case why != nil && why.Code != tt.want:
			t.Errorf("%s: %s (%s); want %q", tt.name, why.Code, why, tt.want)
		case why != nil && !strings.Contains(why.Detail, tt.asked):
			t.Errorf("%s: %q does not name the unit", tt.name, why.Detail)
		}
	}
}

func TestProtected(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Unit)
		want   bool
	}{
		{"an ordinary service", func(*Unit) {}, false},
		{"the bus", func(u *Unit) { u.ID = "dbus.service" }, true},
		{"the bus by its alias", func(u *Unit) { u.Names = append(u.Names, "dbus.service") }, true},
		{"a display manager by its alias", func(u *Unit) { u.Names = append(u.Names, "display-manager.service") }, true},
		{"a session", func(u *Unit) { u.ID = "user@1000.service" }, true},
		{"a console", func(u *Unit) { u.ID = "serial-getty@ttyS0.service" }, true},
		{"aaunitd", func(u *Unit) { u.ID = "aaunitd.service" }, true},
		{"takes logind along", func(u *Unit) { u.RestartsWith = []string{"x.service", "systemd-logind.service"} }, true},
		{"takes others along", func(u *Unit) { u.RestartsWith = []string{"x.service"} }, false},
		{"refuses to be stopped", func(u *Unit) { u.RefuseStop = true }, true},
		{"refuses to be started", func(u *Unit) { u.RefuseStart = true }, true},
	} {
		_, o := healthy()
		tt.change(&o.Unit)
		if why := Protected(o.Unit); (why != nil) != tt.want {
			t.Errorf("%s: got %v", tt.name, why)
		}
	}
}

func TestEffective(t *testing.T) {
	const override = "/etc/systemd/system/myagent.service.d/zz.conf"
	for _, tt := range []struct {
		name   string
		change func(*Unit)
		want   []Code
		where  string
	}{
		{"as declared", func(*Unit) {}, nil, ""},
		{"not found", func(u *Unit) { u.LoadState = "not-found" }, []Code{UnitNotFound}, ""},
		{"reset", func(u *Unit) {
			u.Settings.Profile = ""
			u.Settings.Assignments = append(u.Settings.Assignments, Assignment{"AppArmorProfile", "", override, 2})
		}, []Code{DirectiveOverridden}, override + ":2"},
		{"another", func(u *Unit) {
			u.Settings.Profile = "other"
			u.Settings.Assignments = append(u.Settings.Assignments, Assignment{"AppArmorProfile", "other", override, 2})
		}, []Code{DirectiveOverridden}, override + ":2"},
		{"masked by another 90-aaunit.conf", func(u *Unit) {
			u.Settings.Profile = "other"
			u.Settings.Assignments = []Assignment{{"AssertSecurity", "apparmor", "/x", 1}, {"AppArmorProfile", "other", "/etc/systemd/system.control/myagent.service.d/90-aaunit.conf", 4}}
		}, []Code{DirectiveOverridden}, "/etc/systemd/system.control/myagent.service.d/90-aaunit.conf:4"},
		{"ignores a missing profile", func(u *Unit) { u.Settings.IgnoreMissing = true }, []Code{IgnorePrefix}, ""},
		{"no assertion", func(u *Unit) { u.Settings.AssertAppArmor = false }, []Code{AssertionOverridden}, ""},
		{"no private /tmp", func(u *Unit) { u.Settings.PrivateTmp = PrivateTmpNo }, []Code{PrivateTmpOverridden}, ""},
		{"/tmp unread", func(u *Unit) { u.Settings.PrivateTmp = "" }, []Code{PrivateTmpOverridden}, ""},
		{"more than asked for", func(u *Unit) { u.Settings.PrivateTmp = PrivateTmpDisconnected }, nil, ""},
		{"nothing at all", func(u *Unit) { u.Settings = Settings{} }, []Code{DirectiveOverridden, AssertionOverridden, PrivateTmpOverridden}, ""},
	} {
		d, o := healthy()
		tt.change(&o.Unit)
		got := Effective(d, o.Unit)
		wantCodes(t, tt.name, got, tt.want...)
		if len(got) > 0 && tt.where != "" && got[0].Where != tt.where {
			t.Errorf("%s: blames %q, want %q", tt.name, got[0].Where, tt.where)
		}
	}

	// Only a systemd from 257 on knows "disconnected".
	d, o := healthy()
	d.Attachment.PrivateTmp, o.Unit.Settings.PrivateTmp, o.Unit.Settings.KnowsDisconnected = PrivateTmpDisconnected, PrivateTmpNo, false
	if got := Effective(d, o.Unit); len(got) != 1 || !strings.Contains(got[0].Next, "257") {
		t.Errorf("got%s", list(got))
	}
}

// A template's or prefix's drop-in is not written while it would reach a unit that
// starts too early for it, neither for itself nor for a unit of it.
func TestAPatternThatReachesAnEarlyUnit(t *testing.T) {
	early := EarlyOf([]Unit{
		{ID: "agent-fine.service", LoadState: "loaded", Settings: Settings{DefaultDependencies: true}},
		{ID: "agent-disk.service", LoadState: "loaded", FragmentPath: "/usr/lib/systemd/system/agent-disk.service"},
		{ID: "agent-late.service", LoadState: "loaded", Settings: Settings{After: []string{"sysinit.target"}}},
		{ID: "agent-gone.service", LoadState: "not-found"},
	})
	if len(early) != 1 || early[0].Unit != "agent-disk.service" {
		t.Fatalf("%+v", early)
	}
	for _, tt := range []struct{ pattern, unit, next string }{
		{"agent-.service", "agent-.service", "name the services one by one in /etc/aaunit/attachments.d/myagent.conf, or a longer prefix"},
		{"agent-.service", "agent-a.service", "name the services one by one in /etc/aaunit/attachments.d/myagent.conf, or a longer prefix"},
		{"agent@.service", "agent@.service", "order agent-disk.service after sysinit.target"},
	} {
		d, o := healthy()
		d.Unit, d.Record = tt.unit, Record{}
		d.Attachment.Units = []string{tt.pattern}
		o.Unit.ID, o.Unit.Names, o.DropIn = tt.unit, []string{tt.unit}, DropInState{}
		if p := Diff(d, o); !p.Has(WriteDropIn) || len(p.Refusals) > 0 {
			t.Fatalf("%s: %+v", tt.unit, p)
		}
		o.Early = early
		p := Diff(d, o)
		if len(p.Refusals) != 1 || len(p.Actions) > 0 {
			t.Fatalf("%s: %+v", tt.unit, p)
		}
		want := Because(UnitEarly, "/etc/systemd/system/%s.d/90-aaunit.conf would reach agent-disk.service, which has DefaultDependencies=no and is not ordered after sysinit.target", tt.pattern).
			At("/usr/lib/systemd/system/agent-disk.service").WithNext(tt.next)
		if p.Refusals[0] != want {
			t.Errorf("%s: %+v", tt.unit, p.Refusals[0])
		}
		o.Early = append(early, early...)
		if r := Diff(d, o).Refusals; len(r) != 1 || !strings.HasSuffix(r[0].Detail, "sysinit.target; so with 1 more") {
			t.Errorf("%s: %+v", tt.unit, r)
		}
		o.Early, o.EarlyProblem = nil, "no answer"
		if r := Diff(d, o).Refusals; len(r) != 1 || r[0].Code != SystemdUnheard {
			t.Errorf("%s: %+v", tt.unit, r)
		}
	}
}

// What is read after the drop-in of a template or prefix takes the profile off all of its
// units to come.
func TestAPatternThatIsOverridden(t *testing.T) {
	for _, tt := range []struct {
		name, pattern, profile, file, line string
		want                               Code
	}{
		{"reset in its own directory", "agent@.service", "myagent", "/etc/systemd/system/agent@.service.d/zz.conf", "AppArmorProfile=", DirectiveOverridden},
		{"another profile, for all services", "agent-.service", "myagent", "/run/systemd/system/service.d/99-x.conf", "AppArmorProfile=other", DirectiveOverridden},
		{"another one for each", "agent@.service", "agent-%i", "/etc/systemd/system/agent@.service.d/zz.conf", "AppArmorProfile=%p", DirectiveOverridden},
		{"a missing one is ignored", "agent@.service", "myagent", "/etc/systemd/system/agent@.service.d/zz.conf", "AppArmorProfile=-myagent", IgnorePrefix},
		{"no assertion", "agent@.service", "myagent", "/etc/systemd/system/agent@.service.d/zz.conf", "AssertSecurity=", AssertionOverridden},
		{"the host's /tmp", "agent@.service", "agent-%i", "/etc/systemd/system/agent@.service.d/zz.conf", "PrivateTmp=no", PrivateTmpOverridden},
		{"the same again", "agent@.service", "agent-%i", "/etc/systemd/system/agent@.service.d/zz.conf", "AppArmorProfile=agent-%i", ""},
		{"before it", "agent@.service", "myagent", "/etc/systemd/system/agent@.service.d/10-x.conf", "AppArmorProfile=other", ""},
	} {
		d, o := healthy()
		d.Unit, d.Record = tt.pattern, Record{}
		d.Attachment.Units, d.Attachment.Profile = []string{tt.pattern}, tt.profile
		if strings.Contains(tt.profile, "%") {
			d.Profile = ""
		}
		key, value, _ := strings.Cut(tt.line, "=")
		o.Scan, o.DropIn = nil, DropInState{}
		o.Unit = Unit{ID: tt.pattern, DropIns: []string{tt.file}, Settings: Settings{Assignments: []Assignment{{Key: key, Value: value, Path: tt.file, Line: 3}}}}
		p := Diff(d, o)
		if tt.want == "" {
			wantCodes(t, tt.name, p.Refusals)
			continue
		}
		wantCodes(t, tt.name, p.Refusals, tt.want)
		if len(p.Actions) > 0 || len(p.Refusals) > 0 && p.Refusals[0].Where != tt.file+":3" {
			t.Errorf("%s: %+v", tt.name, p)
		}
		s := Status{Unit: tt.pattern, DropIn: d.DropInPath(), Refused: p.Refusals}
		if answer, words := s.ToCome(); answer != NotConfined || s.Exit() != ExitNotConfined {
			t.Errorf("%s: %s, %s, exit %d", tt.name, answer, words, s.Exit())
		}
	}
	d, o := healthy()
	d.Unit, d.Record = "agent@.service", Record{}
	d.Attachment.Units = []string{d.Unit}
	o.Unit, o.Scan, o.DropIn, o.DropInsProblem = Unit{ID: d.Unit}, nil, DropInState{}, "zz.conf is a directory"
	p := Diff(d, o)
	wantCodes(t, "not readable", p.Refusals, DropInUnreadable)
	if answer, _ := (Status{Unit: d.Unit, DropIn: d.DropInPath(), Refused: p.Refusals}).ToCome(); answer != Unknown {
		t.Errorf("not readable: %s", answer)
	}
	for code, want := range map[Code]Answer{PolicyUnreadable: Unknown, ProfileNotLoaded: NotConfined, PolicyDiffers: NotConfined} {
		s := Status{Unit: d.Unit, DropIn: d.DropInPath(), Refused: []Reason{because(code, "of the policy")}}
		if answer, _ := s.ToCome(); answer != want {
			t.Errorf("%s: %s", code, answer)
		}
	}
}

// What a template in place is refused for does not make its units to come read well, but
// where it only speaks of what is not to take the place of what was accepted.
func TestWhatARefusalMeansForUnitsToCome(t *testing.T) {
	for _, tt := range []struct {
		name   string
		break_ func(d *Desired, o *Observed)
		code   Code
		want   Answer
	}{
		{"AppArmor is off", func(_ *Desired, o *Observed) { o.Host.Enabled = No }, AppArmorOff, NotConfined},
		{"AppArmor is not known", func(_ *Desired, o *Observed) { o.Host.Enabled = CouldNotTell }, AppArmorUnknown, Unknown},
		{"global mode", func(_ *Desired, o *Observed) { o.Host.GlobalMode = ModeComplain }, GlobalComplain, NotConfined},
		{"the loaded policy, not read", func(_ *Desired, o *Observed) { o.Policy.LiveError = "EACCES" }, PolicyUnreadable, Unknown},
		{"the place of the drop-in, not read", func(_ *Desired, o *Observed) { o.DropIn.Problem = "EIO" }, DropInUnreadable, Unknown},
		{"other drop-ins, not read", func(_ *Desired, o *Observed) { o.DropInsProblem = "EIO" }, DropInUnreadable, Unknown},
		{"a foreign drop-in", func(_ *Desired, o *Observed) { o.DropIn.Ours, o.DropIn.Content = false, "[Service]\n" }, DropInForeign, Unknown},
		{"its units, not looked at", func(_ *Desired, o *Observed) { o.EarlyProblem = "no answer" }, SystemdUnheard, Unknown},
		{"its units, not looked at in an image", func(_ *Desired, o *Observed) { o.Offline, o.EarlyProblem = true, "no answer" }, UnitBad, Unknown},
		{"an early unit", func(_ *Desired, o *Observed) { o.Early = []EarlyUnit{{Unit: "agent@a.service"}} }, UnitEarly, Unknown},
		{"a unit without room for the helper", func(_ *Desired, o *Observed) { o.Unheld = ptr(because(SocketsHidden, "x")) }, SocketsHidden, Unknown},
		{"overridden", func(_ *Desired, o *Observed) {
			o.Unit.Settings.Assignments = []Assignment{{Key: "AppArmorProfile", Path: "/etc/systemd/system/agent@.service.d/zz.conf", Line: 2}}
		}, DirectiveOverridden, NotConfined},

		{"no such profile", func(_ *Desired, o *Observed) { o.Policy.Candidates = nil }, ProfileNotFound, Confined},
		{"two of that name", func(_ *Desired, o *Observed) {
			o.Policy.Candidates["myagent"] = append(o.Policy.Candidates["myagent"], Profile{File: "/etc/apparmor.d/x", Line: 1})
		}, ProfileDuplicate, Confined},
		{"disabled", func(_ *Desired, o *Observed) { o.Policy.Candidates["myagent"][0].DisabledBy = "/x" }, ProfileDisabled, Confined},
		{"complain", func(_ *Desired, o *Observed) { o.Policy.Candidates["myagent"][0].ComplainBy = "/x" }, ProfileComplain, Confined},
		{"unconfined", func(_ *Desired, o *Observed) { o.Policy.Candidates["myagent"][0].Flags = []string{"unconfined"} }, ProfileUnconfined, Confined},
		{"default_allow", func(_ *Desired, o *Observed) { o.Policy.Candidates["myagent"][0].Flags = []string{"default_allow"} }, ProfileDefaultOpen, Confined},
		{"not staged", func(_ *Desired, o *Observed) { o.Policy.Compiled[0].Checksums = nil }, ProfileNotStaged, Confined},
		{"read otherwise", func(_ *Desired, o *Observed) { o.Policy.Compiled[0].Disagrees = "x" }, PolicyDisputed, Confined},
		{"another wants it enforced", func(d *Desired, o *Observed) { d.Attachment.Mode, o.Policy.EnforcedBy = WishComplain, "b.service" }, ProfileDisputed, Confined},
	} {
		d, o := healthy()
		d.Unit, d.Asked, o.Scan, o.Unit = "agent@.service", true, nil, Unit{ID: "agent@.service"}
		d.Attachment.Units = []string{d.Unit}
		d.Record.DropIns = Sums{{Path: d.DropInPath(), Sum: "…"}}
		d.Kept = []Compiled{{File: o.Policy.Compiled[0].File, Profiles: o.Policy.Compiled[0].Profiles, Checksums: o.Policy.Compiled[0].Checksums}}
		o.DropIn.Content = d.DropInText(o.Unit)
		if p := Diff(d, o); len(p.Refusals) > 0 {
			t.Fatalf("%s: before: %+v", tt.name, p.Refusals)
		}
		tt.break_(&d, &o)
		p := Diff(d, o)
		wantCodes(t, tt.name, p.Refusals, tt.code)
		s := Status{Unit: d.Unit, DropIn: d.DropInPath(), Refused: p.Refusals}
		if answer, words := s.ToCome(); answer != tt.want || s.Exit() == ExitOK {
			t.Errorf("%s: %s, %s, exit %d", tt.name, answer, words, s.Exit())
		}
	}
	ofWhatIsNew := []Code{ProfileNotFound, ProfileDuplicate, ProfileDisabled, ProfileComplain, ProfileUnconfined, ProfileDefaultOpen, ProfileBroken, ProfileNotCompiled,
		ProfileUnreadable, ProfileUntrusted, ProfileDisputed, ProfileNotStaged, PolicyDisputed, PolicyNotKept, AssertionUnknown}
	for _, e := range append(Catalogue(), Entry{Code: "from-the-future", Bearing: Unknown}) {
		s := Status{Unit: "agent@.service", DropIn: "/etc/systemd/system/agent@.service.d/90-aaunit.conf", Refused: []Reason{{Code: e.Code}}}
		if answer, _ := s.ToCome(); (answer >= e.Bearing) == slices.Contains(ofWhatIsNew, e.Code) {
			t.Errorf("%s: %s", e.Code, answer)
		}
	}
}

// A template whose attach is held goes on under what it had before; one of which only a
// changed text is held is as it was accepted.
func TestUnitsToComeOfAHeldTemplate(t *testing.T) {
	s := Status{Unit: "agent@.service", Profile: "b", DropIn: DropInPath("agent@.service", false), Held: &Hold{Former: "a"}}
	if answer, words := s.ToCome(); answer != NotConfined {
		t.Errorf("%s, %s", answer, words)
	}
	s.Held = &Hold{Texts: map[string]string{"/etc/apparmor.d/b": "x"}}
	if answer, words := s.ToCome(); answer != Confined {
		t.Errorf("only the text: %s, %s", answer, words)
	}
}

// The order was seen with systemd-analyze verify of systemd 252: each line is
// read instead of those after it.
func TestOutranks(t *testing.T) {
	order := []string{
		"/etc/systemd/system.control/a-y@i.service.d", "/etc/systemd/system.control/a-y@.service.d", "/etc/systemd/system.control/a-.service.d",
		"/etc/systemd/system/a-y@i.service.d", "/etc/systemd/system/a-y@.service.d", "/etc/systemd/system/a-.service.d", "/etc/systemd/system/a-@.service.d",
		"/run/systemd/system/a-y@i.service.d", "/run/systemd/system/a-y@.service.d", "/run/systemd/system/a-.service.d",
		"/usr/lib/systemd/system/a-y@i.service.d", "/usr/lib/systemd/system/a-.service.d", "/usr/lib/systemd/system/a-@.service.d",
		"/etc/systemd/system.control/old@i.service.d", "/etc/systemd/system/old@i.service.d", "/etc/systemd/system/old@.service.d", // an alias
		"/etc/systemd/system/service.d", "/run/systemd/system/service.d", "/usr/lib/systemd/system/service.d",
	}
	for i, a := range order {
		for j, b := range order {
			if got := Outranks(a+"/90-aaunit.conf", b+"/90-aaunit.conf", "a-y@i.service"); got != (i < j) {
				t.Errorf("%s before %s: %v", a, b, got)
			}
		}
	}
	if !Outranks("/etc/systemd/system/a-b-.service.d/x.conf", "/etc/systemd/system/a-.service.d/x.conf", "a-b-c.service") {
		t.Error("the longer prefix comes first")
	}
	if general, own := "/etc/systemd/system/socket.d/x.conf", "/usr/lib/systemd/system/a.socket.d/x.conf"; Outranks(general, own, "a.socket") || !Outranks(own, general, "a.socket") {
		t.Error("what is for all sockets comes last")
	}
}

func TestReadAfter(t *testing.T) {
	const ours = "/etc/systemd/system/u.service.d/90-aaunit.conf"
	for file, want := range map[string]bool{
		"/etc/systemd/system/u.service.d/override.conf":           true,
		"/usr/lib/systemd/system/service.d/zz.conf":               true,
		"/etc/systemd/system/u.service.d/90-aaunit.conf":          false,
		"/run/systemd/system/u.service.d/90-aaunit.conf":          false,
		"/etc/systemd/system.control/u.service.d/50-Profile.conf": false,
		"/etc/systemd/system/u.service.d/9-early.conf":            false, // "9-" sorts before "90"
		"/usr/lib/systemd/system/zz.service":                      false,
		"":                                                        false,
	} {
		if got := readAfter(file, ours); got != want {
			t.Errorf("readAfter(%q) = %v", file, got)
		}
	}
}

// Who is told to type aa-enforce is told where it comes from: the package only suggests it.
func TestThePackageOfAaEnforceIsNamed(t *testing.T) {
	said := []string{flagObstacles(Profile{Name: "a", File: "/etc/apparmor.d/a", Flags: []string{"complain"}}, false)[0].Next}
	for _, e := range Catalogue() {
		said = append(said, e.Explanation)
	}
	for _, s := range said {
		if strings.Contains(s, "aa-enforce") && !strings.Contains(s, "package apparmor-utils") {
			t.Errorf("%q", s)
		}
	}
}
