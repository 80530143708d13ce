package attach

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestJudgeHealthy(t *testing.T) {
	d, o := healthy()
	v := Judge(d, o)
	wantCodes(t, "reasons", v.Reasons)
	if v.Answer != Confined || v.PrivateTmp != Yes || v.Tasks != 3 || v.Processes != 2 || v.InvocationID != o.Unit.InvocationID ||
		v.Unit != unitName || v.Profile != "myagent" || !v.At.Equal(o.Scan.At) {
		t.Errorf("got %+v", v)
	}
}

// One thing at a time is broken, unread or gone; the verdict is never better
// than that allows, and says why.
func TestJudge(t *testing.T) {
	run := func(o *Observed) *Settings { return &o.Unit.Settings }
	for _, tt := range []struct {
		name   string
		break_ func(d *Desired, o *Observed)
		want   Answer
		codes  []Code
	}{
		// 1. AppArmor.
		{"AppArmor off", func(_ *Desired, o *Observed) { o.Host.Enabled = No }, NotConfined, []Code{AppArmorOff}},
		{"AppArmor unread", func(_ *Desired, o *Observed) { o.Host.Enabled = CouldNotTell }, Unknown, []Code{AppArmorUnknown}},
		{"an answer that is none", func(_ *Desired, o *Observed) { o.Host.Enabled = 7 }, Unknown, []Code{AppArmorUnknown}},
		{"host never looked at", func(_ *Desired, o *Observed) { o.Host = Host{} }, Unknown, []Code{AppArmorUnknown}},
		{"global mode unread", func(_ *Desired, o *Observed) { o.Host.GlobalMode = "" }, Unknown, []Code{AppArmorUnknown}},
		{"global complain", func(_ *Desired, o *Observed) { o.Host.GlobalMode = ModeComplain }, NotConfined, []Code{GlobalComplain}},
		{"global unconfined", func(_ *Desired, o *Observed) { o.Host.GlobalMode = ModeUnconfined }, NotConfined, []Code{GlobalComplain}},
		{"global kill", func(_ *Desired, o *Observed) { o.Host.GlobalMode = ModeKill }, Confined, nil},
		{"apparmor.service disabled", func(_ *Desired, o *Observed) { o.Host.BootService = No }, Confined, nil},

		// 2. The effective settings.
		{"unit unknown", func(_ *Desired, o *Observed) { o.Unit.LoadState = "not-found" }, Unknown, []Code{UnitNotFound}},
		{"another profile in effect", func(_ *Desired, o *Observed) { run(o).Profile = "other" }, NotConfined, []Code{DirectiveOverridden}},
		{"- in effect", func(_ *Desired, o *Observed) { run(o).IgnoreMissing = true }, NotConfined, []Code{IgnorePrefix}},
		{"no assertion in effect", func(_ *Desired, o *Observed) { run(o).AssertAppArmor = false }, NotConfined, []Code{AssertionOverridden}},
		{"no PrivateTmp in effect", func(_ *Desired, o *Observed) { run(o).PrivateTmp = PrivateTmpNo }, NotConfined, []Code{PrivateTmpOverridden}},

		// 3. The policy.
		{"policy unread", func(_ *Desired, o *Observed) { o.Policy.LiveError = "EACCES" }, Unknown, []Code{PolicyUnreadable}},
		{"not loaded", func(_ *Desired, o *Observed) { delete(o.Policy.Live, "myagent") }, NotConfined, []Code{ProfileNotLoaded}},
		{"no policy seen", func(_ *Desired, o *Observed) { o.Policy = Policy{} }, NotConfined, []Code{ProfileNotLoaded, ProfileNotLoaded}},
		{"a child gone", func(_ *Desired, o *Observed) { delete(o.Policy.Live, "myagent//helper") }, NotConfined, []Code{ProfileNotLoaded}},
		{"a child more", func(_ *Desired, o *Observed) {
			o.Policy.Live["myagent//extra"] = LiveProfile{"myagent//extra", ModeEnforce, sumMain}
		}, NotConfined, []Code{PolicyDiffers}},
		{"a namesake that is no child", func(_ *Desired, o *Observed) {
			o.Policy.Live["myagent2"] = LiveProfile{"myagent2", ModeEnforce, sumMain}
		}, Confined, nil},
		{"another checksum", func(_ *Desired, o *Observed) {
			o.Policy.Live["myagent"] = LiveProfile{"myagent", ModeEnforce, sumChild}
		}, NotConfined, []Code{PolicyDiffers}},
		{"checksum of a child differs", func(_ *Desired, o *Observed) {
			o.Policy.Live["myagent//helper"] = LiveProfile{"myagent//helper", ModeEnforce, sumMain}
		}, NotConfined, []Code{PolicyDiffers}},
		{"no checksum", func(_ *Desired, o *Observed) {
			o.Policy.Live["myagent"] = LiveProfile{"myagent", ModeEnforce, ""}
		}, Unknown, []Code{PolicyUnreadable}},
		{"no checksum on either side", func(d *Desired, o *Observed) {
			o.Policy.Live["myagent"], d.Record.Accepted["myagent"] = LiveProfile{"myagent", ModeEnforce, ""}, ""
		}, Unknown, []Code{PolicyUnreadable}},
		{"nothing accepted", func(d *Desired, o *Observed) {
			d.Record.Accepted = nil
			delete(o.Policy.Live, "myagent//helper")
		}, Unknown, []Code{PolicyNotAccepted}},
		{"only a child accepted", func(d *Desired, _ *Observed) { delete(d.Record.Accepted, "myagent") }, Unknown, []Code{PolicyNotAccepted}},
		{"only another profile accepted", func(d *Desired, o *Observed) {
			d.Record.Accepted = map[string]string{"former": sumMain}
			o.Policy.Live["former"] = LiveProfile{"former", ModeEnforce, sumMain}
			delete(o.Policy.Live, "myagent//helper")
		}, Unknown, []Code{PolicyNotAccepted}},
		{"allowed profile not accepted", func(d *Desired, o *Observed) {
			d.Attachment.AllowProfiles = []string{"px"}
			o.Policy.Live["px"] = LiveProfile{"px", ModeEnforce, sumMain}
			o.Scan.Tasks[2].Label = label("px (enforce)")
		}, Unknown, []Code{PolicyNotAccepted}},
		{"allowed profile not loaded", func(d *Desired, o *Observed) {
			d.Attachment.AllowProfiles = []string{"px"}
			d.Record.Accepted["px"] = sumMain
		}, NotConfined, []Code{ProfileNotLoaded}},
		{"child of an allowed profile not accepted", func(d *Desired, o *Observed) {
			d.Attachment.AllowProfiles = []string{"px"}
			d.Record.Accepted["px"] = sumMain
			o.Policy.Live["px"], o.Policy.Live["px//c"] = LiveProfile{"px", ModeEnforce, sumMain}, LiveProfile{"px//c", ModeEnforce, sumMain}
		}, NotConfined, []Code{PolicyDiffers}},
		{"a child is allowed by name and not accepted", func(d *Desired, o *Observed) {
			d.Attachment.AllowProfiles = []string{"myagent//helper"}
			delete(d.Record.Accepted, "myagent//helper")
		}, Unknown, []Code{PolicyNotAccepted}},
		{"allowed profile in order", func(d *Desired, o *Observed) {
			d.Attachment.AllowProfiles = []string{"px"}
			d.Record.Accepted["px"] = sumMain
			o.Policy.Live["px"] = LiveProfile{"px", ModeEnforce, sumMain}
			o.Scan.Tasks[2].Label = label("px (enforce)")
		}, Confined, nil},

		// 4. The tasks.
		{"a task unconfined", func(_ *Desired, o *Observed) { o.Scan.Tasks[1].Label = label("unconfined") }, NotConfined, []Code{TaskUnconfined}},
		{"a task in another profile", func(_ *Desired, o *Observed) { o.Scan.Tasks[2].Label = label("other (enforce)") }, NotConfined, []Code{TaskOther}},
		{"a task in complain", func(_ *Desired, o *Observed) { o.Scan.Tasks[2].Label = label("myagent (complain)") }, NotConfined, []Code{TaskComplain}},
		{"a task in a mixed stack", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[2].Label = label("myagent//&myagent//helper (mixed)")
		}, NotConfined, []Code{TaskComplain}},
		{"a task in unconfined mode", func(_ *Desired, o *Observed) { o.Scan.Tasks[2].Label = label("myagent//helper (unconfined)") }, NotConfined, []Code{TaskComplain}},
		{"in another namespace", func(_ *Desired, o *Observed) { o.Scan.Tasks[2].Label = label(":ns:myagent (enforce)") }, NotConfined, []Code{TaskOther}},
		{"unconfined in another namespace", func(_ *Desired, o *Observed) { o.Scan.Tasks[2].Label = label(":ns:unconfined") }, NotConfined, []Code{TaskUnconfined}},
		{"kill mode", func(_ *Desired, o *Observed) { o.Scan.Tasks[0].Label = label("myagent (kill)") }, Confined, nil},
		{"stacked with unconfined", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[0].Label = label("myagent//&unconfined (enforce)")
		}, Confined, []Code{TaskStacked}},
		{"stacked with another", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[0].Label = label("myagent//&other (enforce)")
		}, NotConfined, []Code{TaskOther}},
		{"label unread", func(_ *Desired, o *Observed) { o.Scan.Tasks[1].Label, o.Scan.Tasks[1].Problem = Label{}, "EPERM" }, Unknown, []Code{TaskUnreadable}},
		{"label unread though it looks well", func(_ *Desired, o *Observed) { o.Scan.Tasks[1].Problem = "EPERM" }, Unknown, []Code{TaskUnreadable}},
		{"label never read", func(_ *Desired, o *Observed) { o.Scan.Tasks[1].Label = Label{} }, Unknown, []Code{TaskUnreadable}},
		{"label without a mode", func(_ *Desired, o *Observed) { o.Scan.Tasks[1].Label.Mode = "" }, NotConfined, []Code{TaskComplain}},
		{"unread and unconfined", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[1].Problem, o.Scan.Tasks[2].Label = "EPERM", label("unconfined")
		}, NotConfined, []Code{TaskUnreadable, TaskUnconfined}},
		{"+ line left a task", func(_ *Desired, o *Observed) {
			run(o).Exec = append(run(o).Exec, ExecCommand{Property: "ExecStartPre", Path: "/bin/x", Privileged: true})
			o.Scan.Tasks[2].Label = label("unconfined")
		}, NotConfined, []Code{TaskUnconfined, ExecPrivileged}},
		{"+ line left nothing", func(_ *Desired, o *Observed) {
			run(o).Exec = append(run(o).Exec, ExecCommand{Property: "ExecStartPre", Path: "/bin/x", Privileged: true})
		}, Confined, nil},
		{"+ line is not to blame for complain mode", func(_ *Desired, o *Observed) {
			run(o).Exec = append(run(o).Exec, ExecCommand{Property: "ExecStartPre", Path: "/bin/x", Privileged: true})
			o.Scan.Tasks[2].Label = label("myagent (complain)")
		}, NotConfined, []Code{TaskComplain}},
		{"PermissionsStartOnly left a task", func(_ *Desired, o *Observed) {
			run(o).PermissionsStartOnly = true
			o.Scan.Tasks[2].Label = label("unconfined")
		}, NotConfined, []Code{TaskUnconfined, PermissionsStartOnly}},
		{"+ line still at work", func(_ *Desired, o *Observed) {
			run(o).Exec = append(run(o).Exec, ExecCommand{Property: "ExecReload", Path: "/bin/x", Privileged: true})
			o.Unit.ControlPID = 102
			o.Scan.Tasks[2].Label, o.Scan.Tmp[102] = label("unconfined"), o.Scan.HostTmp
		}, Unknown, []Code{TasksUnstable}},
		{"+ line at work is no excuse for the main process", func(_ *Desired, o *Observed) {
			run(o).Exec = append(run(o).Exec, ExecCommand{Property: "ExecReload", Path: "/bin/x", Privileged: true})
			o.Unit.ControlPID = 102
			o.Scan.Tasks[0].Label = label("unconfined")
		}, NotConfined, []Code{TaskUnconfined, ExecPrivileged}},
		{"an ordinary command at work must be confined", func(_ *Desired, o *Observed) {
			o.Unit.ControlPID = 102
			o.Scan.Tasks[2].Label = label("unconfined")
		}, NotConfined, []Code{TaskUnconfined}},
		{"systemd before the exec", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[2].Label, o.Scan.Tasks[2].Manager, o.Scan.Tmp[102] = label("unconfined"), true, o.Scan.HostTmp
		}, Unknown, []Code{TasksUnstable}},
		{"(sd-pam)", func(_ *Desired, o *Observed) {
			run(o).PAMName = "login"
			o.Scan.Tasks[2].Label, o.Scan.Tasks[2].Manager, o.Scan.Tmp[102] = label("unconfined"), true, o.Scan.HostTmp
		}, Confined, nil},
		{"(sd-pam) by name only", func(_ *Desired, o *Observed) {
			run(o).PAMName = "login"
			o.Scan.Tasks[2].Label, o.Scan.Tasks[2].Comm = label("unconfined"), "(sd-pam)"
		}, NotConfined, []Code{TaskUnconfined}},
		{"(sd-pam) alone", func(_ *Desired, o *Observed) {
			run(o).PAMName = "login"
			o.Unit.MainPID = 0
			o.Scan.Tasks = []Task{{PID: 102, TID: 102, Label: label("unconfined"), Manager: true}}
		}, Unknown, []Code{NotRunning}},
		{"(sd-pam) unread", func(_ *Desired, o *Observed) {
			run(o).PAMName = "login"
			o.Scan.Tasks[2] = Task{PID: 102, TID: 102, Manager: true, Problem: "EPERM"}
		}, Unknown, []Code{TaskUnreadable}},
		{"main process of a PAM unit before its exec", func(_ *Desired, o *Observed) {
			run(o).PAMName = "login"
			o.Scan.Tasks[0].Label, o.Scan.Tasks[0].Manager = label("unconfined"), true
		}, Unknown, []Code{TasksUnstable}},

		{"in transit, beside the program", func(_ *Desired, o *Observed) {
			o.Unit.ControlPID = 102
			o.Scan.Tasks[2].Label, o.Scan.Tasks[2].Manager, o.Scan.Tasks[2].InTransit = label("unconfined"), true, true
			delete(o.Scan.Tmp, 102)
		}, Unknown, []Code{TasksUnstable}},
		{"in transit is not left behind", func(_ *Desired, o *Observed) {
			run(o).PAMName = "login"
			o.Scan.Tasks[2].Label, o.Scan.Tasks[2].Manager, o.Scan.Tasks[2].InTransit = label("unconfined"), true, true
		}, Unknown, []Code{TasksUnstable}},
		{"systemd's program, executed, as the main process", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[0].Label, o.Scan.Tasks[0].Comm, o.Scan.Tasks[0].Exe = label("unconfined"), "systemd", "/usr/lib/systemd/systemd"
		}, NotConfined, []Code{TaskUnconfined}},
		{"in transit in a scan that did not settle", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[0].Label, o.Scan.Tasks[0].Manager, o.Scan.Tasks[0].InTransit, o.Scan.Stable = label("unconfined"), true, true, false
		}, Unknown, []Code{TasksUnstable, TasksUnstable}},

		// 5. /tmp.
		{"host's /tmp", func(_ *Desired, o *Observed) { o.Scan.Tmp[102] = o.Scan.HostTmp }, NotConfined, []Code{TmpShared}},
		{"host's /var/tmp only", func(_ *Desired, o *Observed) {
			o.Scan.Tmp[102] = TmpView{Tmp: "0:50 /", VarTmp: o.Scan.HostTmp.VarTmp}
		}, NotConfined, []Code{TmpShared}},
		{"host's /var/tmp as /tmp", func(_ *Desired, o *Observed) {
			o.Scan.Tmp[102] = TmpView{Tmp: o.Scan.HostTmp.VarTmp, VarTmp: "0:50 /"}
		}, NotConfined, []Code{TmpShared}},
		{"host's /tmp, /var/tmp unread", func(_ *Desired, o *Observed) {
			o.Scan.Tmp[102] = TmpView{Tmp: o.Scan.HostTmp.Tmp, Problem: "it may not answer"}
		}, NotConfined, []Code{TmpShared}},
		{"host's /var/tmp as /tmp, the host's /tmp unread", func(_ *Desired, o *Observed) {
			o.Scan.HostTmp.Tmp = ""
			o.Scan.Tmp[100], o.Scan.Tmp[102] = TmpView{Ended: true}, TmpView{Tmp: o.Scan.HostTmp.VarTmp, VarTmp: "0:51 /"}
		}, NotConfined, []Code{TmpShared}},
		{"/var/tmp unread, another /tmp", func(_ *Desired, o *Observed) {
			o.Scan.Tmp[102] = TmpView{Tmp: "0:50 /", Problem: "it may not answer"}
		}, Unknown, []Code{TmpUnreadable}},
		{"/tmp unread, of the host and of the process", func(_ *Desired, o *Observed) {
			o.Scan.HostTmp.Tmp = ""
			o.Scan.Tmp[100], o.Scan.Tmp[102] = TmpView{Ended: true}, TmpView{VarTmp: "0:51 /"}
		}, Unknown, []Code{TmpUnreadable}},
		{"/tmp unread", func(_ *Desired, o *Observed) { o.Scan.Tmp[102] = TmpView{Problem: "ENOENT"} }, Unknown, []Code{TmpUnreadable}},
		{"a child ended before its /tmp was read", func(_ *Desired, o *Observed) { o.Scan.Tmp[102] = TmpView{Ended: true} }, Confined, nil},
		{"all ended before their /tmp was read", func(_ *Desired, o *Observed) {
			o.Scan.Tmp[100], o.Scan.Tmp[102] = TmpView{Ended: true}, TmpView{Ended: true}
		}, Unknown, []Code{TmpUnreadable}},
		{"a child ended, another sees the host's /tmp", func(_ *Desired, o *Observed) {
			o.Scan.Tmp[100], o.Scan.Tmp[102] = TmpView{Ended: true}, o.Scan.HostTmp
		}, NotConfined, []Code{TmpShared}},
		{"one process not looked at", func(_ *Desired, o *Observed) { delete(o.Scan.Tmp, 102) }, Unknown, []Code{TmpUnreadable}},
		{"no process looked at", func(_ *Desired, o *Observed) { o.Scan.Tmp = nil }, Unknown, []Code{TmpUnreadable}},
		{"only others looked at", func(_ *Desired, o *Observed) {
			o.Scan.Tmp = map[int]TmpView{7: o.Scan.Tmp[100]}
		}, Unknown, []Code{TmpUnreadable}},
		{"host unread", func(_ *Desired, o *Observed) { o.Scan.HostTmp = TmpView{} }, Unknown, []Code{TmpUnreadable}},
		{"one unread, one shared", func(_ *Desired, o *Observed) {
			delete(o.Scan.Tmp, 100)
			o.Scan.Tmp[102] = o.Scan.HostTmp
		}, NotConfined, []Code{TmpShared, TmpUnreadable}},
		{"not asked for", func(d *Desired, o *Observed) {
			d.Attachment.PrivateTmp, o.Scan.Tmp, run(o).PrivateTmp = PrivateTmpNo, nil, PrivateTmpNo
		}, Confined, nil},
		{"not asked for, but the unit's own", func(d *Desired, o *Observed) {
			d.Attachment.PrivateTmp = PrivateTmpNo
			earlier(o, o.Unit.FragmentPath, "PrivateTmp=yes")
			o.Scan.Tmp[102] = o.Scan.HostTmp
		}, NotConfined, []Code{TmpShared}},

		// 6. One start, one set of tasks.
		{"restarted during the look", func(_ *Desired, o *Observed) { o.Scan.After = "ffff" }, Unknown, []Code{RestartedMeanwhl}},
		{"restarted before the look", func(_ *Desired, o *Observed) { o.Scan.Before, o.Scan.After = "ffff", "ffff" }, Unknown, []Code{RestartedMeanwhl}},
		{"InvocationID unread afterwards", func(_ *Desired, o *Observed) { o.Scan.After = "" }, Unknown, []Code{RestartedMeanwhl}},
		{"no InvocationID at all", func(_ *Desired, o *Observed) {
			o.Scan.Before, o.Scan.After, o.Unit.InvocationID = "", "", ""
		}, Unknown, []Code{ScanFailed}},
		{"not stable", func(_ *Desired, o *Observed) { o.Scan.Stable = false }, Unknown, []Code{TasksUnstable}},
		{"scan failed", func(_ *Desired, o *Observed) {
			*o.Scan = Scan{Problem: "EIO", Before: o.Unit.InvocationID, After: o.Unit.InvocationID}
		}, Unknown, []Code{ScanFailed}},
		{"scan failed half-way", func(_ *Desired, o *Observed) { o.Scan.Problem = "EIO" }, Unknown, []Code{ScanFailed}},
		{"empty scan", func(_ *Desired, o *Observed) { *o.Scan = Scan{} }, Unknown, []Code{RestartedMeanwhl, NotRunning}},
		{"no task", func(_ *Desired, o *Observed) { o.Scan.Tasks = nil }, Unknown, []Code{NotRunning}},
		{"not looked at", func(_ *Desired, o *Observed) { o.Scan = nil }, Unknown, []Code{NotRunning}},
		{"stopped", func(_ *Desired, o *Observed) { o.Scan, o.Unit.ActiveState = nil, "inactive" }, Unknown, []Code{NotRunning}},
		{"oneshot that is over", func(_ *Desired, o *Observed) { o.Scan, o.Unit.SubState = nil, "exited" }, Unknown, []Code{EndedBeforeSeen}},
		{"just started and over", func(_ *Desired, o *Observed) { o.Scan, o.JustStarted, o.Unit.ActiveState = nil, true, "inactive" }, Unknown, []Code{EndedBeforeSeen}},

		// Nothing at all.
		{"no attachment", func(d *Desired, _ *Observed) { d.Attachment = nil }, NotConfined, []Code{Detached}},
		{"the zero world", func(_ *Desired, o *Observed) { *o = Observed{} }, NotConfined,
			[]Code{AppArmorUnknown, UnitNotFound, ProfileNotLoaded, ProfileNotLoaded, NotRunning}},
		{"the zero wish", func(d *Desired, _ *Observed) { *d = Desired{Attachment: &Attachment{}} }, NotConfined,
			[]Code{DirectiveOverridden, ProfileNotLoaded, PolicyNotAccepted, TaskOther, TaskOther}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, o := healthy()
			tt.break_(&d, &o)
			v := Judge(d, o)
			wantCodes(t, "reasons", v.Reasons, tt.codes...)
			if v.Answer != tt.want {
				t.Errorf("got %s, want %s%s", v.Answer, tt.want, list(v.Reasons))
			}
			if !slices.IsSortedFunc(v.Reasons, func(a, b Reason) int { return int(b.Code.Bearing()) - int(a.Code.Bearing()) }) {
				t.Errorf("the worst reason must come first:%s", list(v.Reasons))
			}
			if v.PrivateTmp == Yes && slices.ContainsFunc(v.Reasons, func(r Reason) bool { return r.Code == TmpShared || r.Code == TmpUnreadable }) {
				t.Errorf("a private /tmp was called proved:%s", list(v.Reasons))
			}
		})
	}
}

// Whichever part of what was seen is taken away, the verdict does not become,
// or stay, confined.
func TestJudgeNeedsEverything(t *testing.T) {
	for i, blank := range []func(d *Desired, o *Observed){
		func(d *Desired, _ *Observed) { d.Attachment = nil },
		func(d *Desired, _ *Observed) { d.Profile = "" },
		func(d *Desired, _ *Observed) { d.Record = Record{} },
		func(d *Desired, _ *Observed) { d.Record.Accepted = nil },
		func(_ *Desired, o *Observed) { o.Host = Host{} },
		func(_ *Desired, o *Observed) { o.Unit = Unit{} },
		func(_ *Desired, o *Observed) { o.Unit.Settings = Settings{} },
		func(_ *Desired, o *Observed) { o.Unit.InvocationID = "" },
		func(_ *Desired, o *Observed) { o.Policy = Policy{} },
		func(_ *Desired, o *Observed) { o.Policy.Live = nil },
		func(_ *Desired, o *Observed) { o.Scan = nil },
		func(_ *Desired, o *Observed) { o.Scan = &Scan{} },
		func(_ *Desired, o *Observed) { o.Scan.Before = "" },
		func(_ *Desired, o *Observed) { o.Scan.After = "" },
		func(_ *Desired, o *Observed) { o.Scan.Stable = false },
		func(_ *Desired, o *Observed) { o.Scan.Tasks = nil },
		func(_ *Desired, o *Observed) { o.Scan.Tasks = make([]Task, 3) },
		func(_ *Desired, o *Observed) { o.Scan.Tmp = nil },
		func(_ *Desired, o *Observed) { o.Scan.HostTmp = TmpView{} },
	} {
		d, o := healthy()
		blank(&d, &o)
		if v := Judge(d, o); v.Answer == Confined || v.Answer == noAnswer {
			t.Errorf("case %d is %s", i, v.Answer)
		}
	}
}

// A message groups tasks of one label and names the rule that let them go.
func TestJudgeNamesTheWayOut(t *testing.T) {
	d, o := healthy()
	o.Policy.Candidates["myagent"][0].Leaves = []Leave{{Rule: "/usr/bin/curl Ux,"}}
	for i, exe := range []string{"/usr/bin/curl", "/usr/bin/curl"} {
		o.Scan.Tasks[i+1] = Task{PID: 200 + i, TID: 200 + i, Comm: "curl", Exe: exe, Label: label("unconfined")}
		o.Scan.Tmp[200+i] = o.Scan.Tmp[100]
	}
	v := Judge(d, o)
	wantCodes(t, "reasons", v.Reasons, TaskUnconfined)
	want := `/usr/bin/curl (PID 200) and 1 more is unconfined (/etc/apparmor.d/usr.local.bin.myagent, rule "/usr/bin/curl Ux,")`
	if got := v.Reasons[0].String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A helper that a PAM module runs before the program carries whatever profile
// attaches to it, and is no task that left.
func TestAHelperOfAStartIsNoEscape(t *testing.T) {
	d, o := healthy()
	o.Scan.Tasks = append(o.Scan.Tasks, Task{PID: 900, TID: 900, Exe: "/usr/sbin/unix_chkpwd", InTransit: true,
		Label: Label{Profiles: []string{"unix-chkpwd"}, Mode: ModeComplain}})
	o.Scan.Tmp[900] = o.Scan.HostTmp
	v := Judge(d, o)
	if v.Answer != Unknown {
		t.Errorf("%v", v.Answer)
	}
	wantCodes(t, "a helper", v.Reasons, TasksUnstable)
}

// A verdict that is handed out later says what the host has become since, as a new one
// would.
func TestAVerdictGoesWithTheHost(t *testing.T) {
	for _, tt := range []struct {
		name string
		host Host
		want Answer
	}{
		{"as it was", Host{Enabled: Yes, GlobalMode: ModeEnforce}, Confined},
		{"complain", Host{Enabled: Yes, GlobalMode: ModeComplain}, NotConfined},
		{"off", Host{Enabled: No}, NotConfined},
		{"unread", Host{}, Unknown},
	} {
		for what, tasks := range map[string]bool{"healthy": true, "not running": false} {
			d, o := healthy()
			if !tasks {
				o.Scan = nil
			}
			before := Judge(d, o)
			o.Host = tt.host
			got, want := before.On(tt.host), Judge(d, o)
			if got.Answer != want.Answer || tasks && got.Answer != tt.want || !slices.Equal(got.Reasons, want.Reasons) {
				t.Errorf("%s, %s: %+v, a new one is %+v", tt.name, what, got, want)
			}
			if again := got.On(tt.host); !slices.Equal(again.Reasons, got.Reasons) {
				t.Errorf("%s, %s: once more: %+v", tt.name, what, again)
			}
		}
	}
}

// What hostile tasks make of labels and paths does not make a verdict grow
// without bound.
func TestVerdictsAreBounded(t *testing.T) {
	d, o := healthy()
	for i := range 1000 {
		o.Scan.Tasks = append(o.Scan.Tasks, Task{PID: 1000 + i, TID: 1000 + i, Exe: "/" + strings.Repeat("\x1b", 5000),
			Label: Label{Profiles: []string{fmt.Sprintf("other%d", i)}, Mode: ModeEnforce}})
	}
	v := Judge(d, o)
	size := 0
	for _, r := range v.Reasons {
		size += len(r.Detail) + len(r.Where)
	}
	if v.Answer != NotConfined || len(v.Reasons) > maxGroups+5 || size > 100_000 {
		t.Errorf("%v, %d reasons of %d bytes", v.Answer, len(v.Reasons), size)
	}
}

// What a restart is for is seen of a unit also where its verdict is another one for
// complain mode, as is wished, or for doubts about its socket options.
func TestShowsProfile(t *testing.T) {
	complains := func(d *Desired, o *Observed) {
		for i := range o.Scan.Tasks {
			o.Scan.Tasks[i].Label.Mode = ModeComplain
		}
	}
	asWished := func(d *Desired, o *Observed) { complains(d, o); d.Attachment.Mode = WishComplain }
	open := func(d *Desired, o *Observed) {
		d.Attachment.SocketOptions = &SocketOptions{Mode: SocketsEnforce}
		o.Unit.Settings.Exec = append(o.Unit.Settings.Exec, ExecCommand{Property: "ExecStartPre", Path: SocketHelper, Argv: []string{SocketHelper, unitName}, Privileged: true})
		o.Sockets, o.Unit.Settings.RefusesBPF = []SocketsSeen{{Unit: unitName, Attached: Yes, Rules: Yes}}, true
		o.MayUnpin, o.MayMoveOut = No, Yes
	}
	for name, c := range map[string]struct {
		change func(d *Desired, o *Observed)
		answer Answer
		want   bool
	}{
		"confined":                    {func(*Desired, *Observed) {}, Confined, true},
		"complain mode as wished":     {asWished, NotConfined, true},
		"complain mode by somebody":   {complains, NotConfined, false},
		"complain mode, and unloaded": {func(d *Desired, o *Observed) { asWished(d, o); delete(o.Policy.Live, "myagent") }, NotConfined, false},
		"complain mode, and a task is unconfined": {func(d *Desired, o *Observed) {
			asWished(d, o)
			o.Scan.Tasks[1].Label = label("unconfined")
		}, NotConfined, false},
		"complain mode, and /tmp is the host's": {func(d *Desired, o *Observed) {
			asWished(d, o)
			o.Scan.Tmp[100] = o.Scan.HostTmp
		}, NotConfined, false},
		"its list can be taken off":                   {open, Unknown, true},
		"its list can be taken off, in complain mode": {func(d *Desired, o *Observed) { open(d, o); asWished(d, o) }, NotConfined, true},
		"its list can be taken off, and a task is unreadable": {func(d *Desired, o *Observed) {
			open(d, o)
			o.Scan.Tasks[1].Problem = "no answer"
		}, Unknown, false},
		"it has no list": {func(d *Desired, o *Observed) {
			open(d, o)
			o.Sockets[0].Rules = No
		}, NotConfined, false},
		"its list can be taken off, and it runs no more": {func(d *Desired, o *Observed) {
			open(d, o)
			o.Scan = nil
		}, Unknown, false},
		"the global mode is complain": {func(_ *Desired, o *Observed) { o.Host.GlobalMode = ModeComplain }, NotConfined, false},
	} {
		d, o := healthy()
		c.change(&d, &o)
		if v := Judge(d, o); v.Answer != c.answer || v.ShowsProfile(d) != c.want {
			t.Errorf("%s: %s, %v %+v", name, v.Answer, v.ShowsProfile(d), v.Reasons)
		}
	}
	if d, _ := healthy(); (Verdict{}).ShowsProfile(d) {
		t.Error("what nobody looked at")
	}
}
