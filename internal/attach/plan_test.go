package attach

import (
	"fmt"
	"slices"
	"testing"
)

func kinds(p Plan) []string {
	var out []string
	for _, a := range p.Actions {
		out = append(out, fmt.Sprintf("%s %s", a.Kind, a.Target))
	}
	return out
}

func TestDiff(t *testing.T) {
	const (
		file = "/etc/systemd/system/myagent.service.d/90-aaunit.conf"
		text = "/etc/apparmor.d/usr.local.bin.myagent"
	)
	fresh := func(d *Desired, o *Observed) {
		d.Record = Record{}
		o.DropIn = DropInState{}
		o.Policy.Live = nil
		o.Unit.DropIns = nil
		o.Unit.Settings.Profile, o.Unit.Settings.AssertAppArmor, o.Unit.Settings.PrivateTmp, o.Unit.Settings.Assignments = "", false, PrivateTmpNo, nil
		for i := range o.Scan.Tasks {
			o.Scan.Tasks[i].Label = label("unconfined")
		}
		o.Scan.Tmp = map[int]TmpView{100: o.Scan.HostTmp, 102: o.Scan.HostTmp}
	}
	childStripped := func(d *Desired, o *Observed) {
		d.Record.Proved, d.Kept, o.At = o.Scan.Before, slices.Clone(o.Policy.Compiled), o.Scan.At
		o.Scan.Tasks[2].Label = label("unconfined")
		delete(o.Policy.Live, "myagent//helper")
	}
	for _, tt := range []struct {
		name    string
		change  func(d *Desired, o *Observed)
		want    []string
		pending []Code
	}{
		{"nothing to do", func(*Desired, *Observed) {}, nil, nil},
		{"first attach", fresh, []string{"load-policy " + text, "write-drop-in " + file, "daemon-reload " + unitName, "restart " + unitName}, nil},
		{"first attach of a stopped unit", func(d *Desired, o *Observed) {
			fresh(d, o)
			o.Scan, o.Unit.ActiveState, o.Unit.MainPID = nil, "inactive", 0
		}, []string{"load-policy " + text, "write-drop-in " + file, "daemon-reload " + unitName}, nil},
		{"first attach without a restart", func(d *Desired, o *Observed) {
			fresh(d, o)
			d.Attachment.RestartUnit = false
		}, []string{"load-policy " + text, "write-drop-in " + file, "daemon-reload " + unitName}, []Code{RestartPending}},
		{"first attach of a unit that must not be restarted", func(d *Desired, o *Observed) {
			fresh(d, o)
			o.Unit.RestartsWith = []string{"dbus.service"}
		}, []string{"load-policy " + text, "write-drop-in " + file, "daemon-reload " + unitName}, []Code{UnitProtected, RestartPending}},
		{"first attach of a oneshot at work", func(d *Desired, o *Observed) {
			fresh(d, o)
			o.Unit.Type, o.Unit.ActiveState, d.Asked = "oneshot", "activating", true
		}, []string{"load-policy " + text, "write-drop-in " + file, "daemon-reload " + unitName}, []Code{RestartPending}},
		{"first attach of a oneshot that stays", func(d *Desired, o *Observed) {
			fresh(d, o)
			o.Unit.Type = "oneshot"
		}, []string{"load-policy " + text, "write-drop-in " + file, "daemon-reload " + unitName, "restart " + unitName}, nil},
		{"held", func(d *Desired, o *Observed) {
			fresh(d, o)
			d.Record.Hold = &Hold{Reasons: []Reason{because(AttachFailed, "x")}}
		}, nil, []Code{Held, AttachFailed}},

		{"text changed and not loaded", func(_ *Desired, o *Observed) {
			o.Policy.Compiled[0].Checksums["myagent"] = "sha256:cc"
		}, []string{"load-policy " + text}, nil},
		{"text changed, to be reported", func(d *Desired, o *Observed) {
			d.Attachment.OnProfileChange = ChangeReport
			o.Policy.Compiled[0].Checksums["myagent"] = "sha256:cc"
		}, nil, []Code{PolicyChanged}},
		{"somebody loaded another text, changes are to be reported", func(d *Desired, o *Observed) {
			d.Attachment.OnProfileChange = ChangeReport
			o.Policy.Live["myagent"] = LiveProfile{"myagent", ModeEnforce, "sha256:cc"}
		}, []string{"load-policy " + text}, nil},
		{"unloaded", func(_ *Desired, o *Observed) { o.Policy.Live = nil }, []string{"load-policy " + text}, nil},
		{"a new child", func(_ *Desired, o *Observed) {
			o.Policy.Compiled[0].Checksums["myagent//new"] = "sha256:cc"
		}, []string{"load-policy " + text}, nil},
		{"a child left over from an older text", func(_ *Desired, o *Observed) {
			for _, n := range []string{"myagent//old", "myagent//old//sub", "myagent//null-/bin/x", "myagentx", "myagentx//old"} {
				o.Policy.Live[n] = LiveProfile{n, ModeEnforce, "sha256:cc"}
			}
		}, []string{"unload-child myagent//old"}, nil},
		{"a child left over, to be reported", func(d *Desired, o *Observed) {
			d.Attachment.OnProfileChange = ChangeReport
			delete(o.Policy.Compiled[0].Checksums, "myagent//helper")
		}, nil, []Code{PolicyChanged}},

		{"drop-in removed by hand", func(_ *Desired, o *Observed) { o.DropIn = DropInState{} }, []string{"write-drop-in " + file, "daemon-reload " + unitName}, nil},
		{"drop-in edited by hand", func(_ *Desired, o *Observed) { o.DropIn.Content += "\n" }, []string{"write-drop-in " + file, "daemon-reload " + unitName}, nil},
		{"drop-in of another place", func(d *Desired, _ *Observed) {
			d.Record.DropIns = d.Record.DropIns.With("/run/systemd/system/myagent.service.d/90-aaunit.conf", "x")
		}, []string{"remove-drop-in /run/systemd/system/myagent.service.d/90-aaunit.conf", "daemon-reload " + unitName}, nil},
		{"killed between the write and the reload", func(_ *Desired, o *Observed) {
			o.Unit.NeedReload = true
		}, []string{"daemon-reload " + unitName}, nil},
		{"killed there, and systemd did not notice the new directory", func(_ *Desired, o *Observed) {
			o.Unit.Settings.Profile, o.Unit.Settings.Assignments = "vendors", nil
			earlier(o, o.Unit.FragmentPath, "AppArmorProfile=vendors")
		}, []string{"daemon-reload " + unitName}, nil},

		{"started before the attach", func(_ *Desired, o *Observed) {
			for i := range o.Scan.Tasks {
				o.Scan.Tasks[i].Label = label("unconfined")
			}
		}, []string{"restart " + unitName}, nil},
		{"runs under the former profile", func(d *Desired, o *Observed) {
			d.Record.Verdict = &Verdict{Profile: "former", Answer: Confined, InvocationID: o.Scan.Before}
			for i := range o.Scan.Tasks {
				o.Scan.Tasks[i].Label = label("former (enforce)")
			}
		}, []string{"restart " + unitName}, nil},
		{"started before PrivateTmp=", func(_ *Desired, o *Observed) {
			o.Scan.Tmp = map[int]TmpView{100: o.Scan.HostTmp, 102: o.Scan.HostTmp}
		}, []string{"restart " + unitName}, nil},
		{"a confined start, before PrivateTmp=", func(d *Desired, o *Observed) {
			o.Scan.Tmp = map[int]TmpView{100: o.Scan.HostTmp, 102: o.Scan.HostTmp}
			d.Record.Proved = o.Unit.InvocationID
		}, []string{"restart " + unitName}, nil},
		{"it left its private /tmp, and would leave it again", func(d *Desired, o *Observed) {
			o.Scan.Tmp = map[int]TmpView{100: o.Scan.HostTmp, 102: o.Scan.HostTmp}
			d.Record.Proved, d.Record.ProvedTmp = o.Unit.InvocationID, true
		}, nil, []Code{RestartPending}},
		{"an earlier start left it", func(d *Desired, o *Observed) {
			o.Scan.Tmp = map[int]TmpView{100: o.Scan.HostTmp, 102: o.Scan.HostTmp}
			d.Record.Proved, d.Record.ProvedTmp = "another start", true
		}, []string{"restart " + unitName}, nil},
		{"no main process, nobody carries the profile", func(_ *Desired, o *Observed) {
			o.Unit.MainPID = 0
			for i := range o.Scan.Tasks {
				o.Scan.Tasks[i].Label = label("unconfined")
			}
		}, []string{"restart " + unitName}, nil},
		{"the profile of a child was removed", childStripped, []string{"load-policy " + text, "restart " + unitName}, nil},
		{"the same, just after a restart for such a cause", func(d *Desired, o *Observed) {
			childStripped(d, o)
			d.Record.Retaken = o.At.Add(-retake / 2)
		}, []string{"load-policy " + text}, nil},
		{"the same, after one when the clock was ahead", func(d *Desired, o *Observed) {
			childStripped(d, o)
			d.Record.Retaken = o.At.Add(10 * retake)
		}, []string{"load-policy " + text, "restart " + unitName}, nil},
		{"the same, and the restart was cut off after the policy was put back", func(d *Desired, o *Observed) {
			o.Scan.Tasks[2].Label = label("unconfined")
			d.Record.Retaken, d.Record.Retaking = o.At, o.Unit.InvocationID
		}, []string{"restart " + unitName}, nil},
		{"the same, and it was not cut off", func(d *Desired, o *Observed) {
			o.Scan.Tasks[2].Label = label("unconfined")
			d.Record.Retaken, d.Record.Retaking = o.At, "another start"
		}, nil, nil},
		{"the same, of a start that was not seen confined", func(d *Desired, o *Observed) {
			childStripped(d, o)
			d.Record.Proved = ""
		}, []string{"load-policy " + text}, nil},
		{"the same, and what is loaded cannot be read", func(d *Desired, o *Observed) {
			childStripped(d, o)
			o.Policy.Live, o.Policy.LiveError = nil, "no such device"
		}, nil, nil},
		// Violations: a restart would bring them back, again and again.
		{"a child escaped by a rule, and a profile was removed", func(d *Desired, o *Observed) {
			childStripped(d, o)
			o.Policy.Candidates["myagent"][0].Leaves = []Leave{{Rule: "/bin/x Ux,"}}
		}, []string{"load-policy " + text}, nil},
		{"a child escaped", func(_ *Desired, o *Observed) { o.Scan.Tasks[2].Label = label("unconfined") }, nil, nil},
		{"a child escaped, no main process", func(_ *Desired, o *Observed) {
			o.Unit.MainPID = 0
			o.Scan.Tasks[2].Label = label("unconfined")
		}, nil, nil},
		{"a child sees the host's /tmp", func(_ *Desired, o *Observed) { o.Scan.Tmp[102] = o.Scan.HostTmp }, nil, nil},
		{"tasks in complain mode", func(_ *Desired, o *Observed) { o.Scan.Tasks[0].Label = label("myagent (complain)") }, nil, nil},
		// What could not be read.
		{"labels unread", func(_ *Desired, o *Observed) {
			for i := range o.Scan.Tasks {
				o.Scan.Tasks[i].Problem = "EPERM"
			}
		}, nil, nil},
		{"one thread unread, the others unconfined", func(_ *Desired, o *Observed) {
			o.Scan.Tasks[0].Label, o.Scan.Tasks[1].Problem, o.Scan.Tasks[2].Label = label("unconfined"), "ESRCH", label("unconfined")
		}, []string{"restart " + unitName}, nil},
		{"systemd before the exec", func(_ *Desired, o *Observed) {
			o.Scan.Tasks = o.Scan.Tasks[:1]
			o.Scan.Tasks[0].Label, o.Scan.Tasks[0].Manager = label("unconfined"), true
		}, nil, nil},
		{"/tmp unread", func(_ *Desired, o *Observed) { o.Scan.Tmp = nil }, nil, nil},
		{"scan failed", func(_ *Desired, o *Observed) { o.Scan = &Scan{Problem: "EIO"} }, nil, nil},
		{"policy unread", func(_ *Desired, o *Observed) { o.Policy.LiveError = "EIO" }, nil, nil},

		{"detached", func(d *Desired, _ *Observed) {
			d.Attachment, d.Record.Loaded = nil, []string{"myagent"}
		}, []string{"remove-drop-in " + file, "daemon-reload " + unitName, "restart " + unitName, "unload-policy myagent"}, nil},
		{"detached, loaded by others", func(d *Desired, _ *Observed) { d.Attachment = nil }, []string{"remove-drop-in " + file, "daemon-reload " + unitName, "restart " + unitName}, nil},
		{"detached, has the same profile by itself", func(d *Desired, o *Observed) {
			d.Attachment = nil
			earlier(o, o.Unit.FragmentPath, "AppArmorProfile=%p")
		}, []string{"remove-drop-in " + file, "daemon-reload " + unitName}, nil},
		{"detached while stopped", func(d *Desired, o *Observed) {
			d.Attachment, o.Scan = nil, nil
		}, []string{"remove-drop-in " + file, "daemon-reload " + unitName}, nil},
		{"detached, no restart wanted", func(d *Desired, _ *Observed) {
			d.Attachment, d.Record.RestartUnit = nil, false
		}, []string{"remove-drop-in " + file, "daemon-reload " + unitName}, []Code{RestartPending}},
		{"detached oneshot at work", func(d *Desired, o *Observed) {
			d.Attachment, o.Unit.Type, o.Unit.ActiveState = nil, "oneshot", "activating"
		}, []string{"remove-drop-in " + file, "daemon-reload " + unitName}, []Code{RestartPending}},
		{"detached and gone", func(d *Desired, o *Observed) {
			d.Attachment, o.Unit, o.Scan = nil, Unit{LoadState: "not-found"}, nil
		}, []string{"remove-drop-in " + file, "daemon-reload " + unitName}, nil},
		{"never attached", func(d *Desired, _ *Observed) { d.Attachment, d.Record = nil, Record{} }, nil, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, o := healthy()
			tt.change(&d, &o)
			p := Diff(d, o)
			if got := kinds(p); !slices.Equal(got, tt.want) {
				t.Errorf("got  %q\nwant %q", got, tt.want)
			}
			wantCodes(t, "pending", p.Pending, tt.pending...)
			for _, a := range p.Actions {
				if a.Reason.Code == "" || a.Reason.Detail == "" {
					t.Errorf("%s has no reason", a.Kind)
				}
			}
			if p.Actions == nil {
				t.Error("a plan in JSON says [] and not null")
			}
		})
	}
}

func TestPlanSaysWhatARestartTakesAlong(t *testing.T) {
	d, o := healthy()
	o.Unit.RestartsWith = []string{"worker.service"}
	for i := range o.Scan.Tasks {
		o.Scan.Tasks[i].Label = label("unconfined")
	}
	if p := Diff(d, o); !slices.Equal(p.RestartsWith, o.Unit.RestartsWith) {
		t.Errorf("got %q", p.RestartsWith)
	}
}

// What is kept of a unit whose attach is held: the policy that nobody else has another
// one of, and the drop-in that serves it alone.
func TestDiffOfAHeldUnit(t *testing.T) {
	kinds := func(p Plan) (out []ActionKind) {
		for _, a := range p.Actions {
			out = append(out, a.Kind)
		}
		return out
	}
	for _, tt := range []struct {
		name   string
		unit   string // of the attachment
		change func(*Desired, *Observed)
		want   []ActionKind
	}{
		{"as it was", "a.service", nil, nil},
		{"no drop-in", "a.service", func(_ *Desired, o *Observed) { o.DropIn.Exists = false }, []ActionKind{WriteDropIn, Reload}},
		{"another drop-in", "a.service", func(_ *Desired, o *Observed) { o.DropIn.Content = "x" }, []ActionKind{WriteDropIn, Reload}},
		{"not read", "a.service", func(_ *Desired, o *Observed) { o.Unit.NeedReload = true }, []ActionKind{Reload}},
		{"not on record", "a.service", func(d *Desired, o *Observed) { d.Record.DropIns, o.DropIn.Exists = nil, false }, nil},
		{"that of a template", "w@.service", func(_ *Desired, o *Observed) { o.DropIn.Content = "x" }, nil},
		{"another policy", "a.service", func(_ *Desired, o *Observed) { o.Policy.Live = nil }, []ActionKind{RestorePolicy}},
		{"a policy that another unit has", "a.service", func(_ *Desired, o *Observed) {
			o.Policy.Live, o.Policy.Superseded = nil, map[string]string{"former": "b.service"}
		}, nil},
		{"a part that another unit has", "a.service", func(d *Desired, o *Observed) {
			d.Kept[0].Checksums = map[string]string{"former": "sha256:1", "other": "sha256:1"}
			o.Policy.LeftTo = map[string]string{"other": "b.service"}
		}, nil},
		{"another policy of its part", "a.service", func(d *Desired, o *Observed) {
			d.Kept[0].Checksums = map[string]string{"former": "sha256:1", "other": "sha256:1"}
			o.Policy.Live, o.Policy.LeftTo = nil, map[string]string{"other": "b.service"}
		}, []ActionKind{RestorePolicy}},
		{"a hat that nobody accepted", "a.service", func(_ *Desired, o *Observed) {
			o.Policy.Live["former//hat"] = LiveProfile{Name: "former//hat", Checksum: "sha256:2"}
		}, []ActionKind{UnloadChild}},
		{"a hat that another unit has", "a.service", func(_ *Desired, o *Observed) {
			o.Policy.Live["former//hat"] = LiveProfile{Name: "former//hat", Checksum: "sha256:2"}
			o.Policy.Superseded = map[string]string{"former": "b.service"}
		}, nil},
		{"what its undo could not unload", "a.service", func(d *Desired, _ *Observed) {
			d.Record.Loaded, d.Record.Stays = []string{"former", "new"}, []string{"new"}
		}, []ActionKind{UnloadPolicy}},
		{"no former profile", "a.service", func(d *Desired, o *Observed) { d.Record.Hold.Former, o.Policy.Live = "", nil }, nil},
	} {
		a := NewAttachment()
		a.Units, a.Profile = []string{tt.unit}, "wanted"
		d := Desired{Unit: "a.service", Attachment: &a, Profile: "wanted"}
		if tt.unit != d.Unit {
			d.Unit = "w@1.service"
		}
		file := d.DropInPath()
		sums := map[string]string{"former": "sha256:1"}
		d.Kept = []Compiled{{File: "/etc/apparmor.d/former", Checksums: sums}}
		d.Record = Record{Unit: d.Unit, Profile: "wanted", DropIns: Sums{}.With(file, "1"), Accepted: sums,
			Hold: &Hold{Former: "former", DropIns: map[string]string{file: "text"}}}
		o := Observed{Unit: Unit{ID: d.Unit, LoadState: "loaded", ActiveState: "active"}}
		o.DropIn.Exists, o.DropIn.Content = true, "text"
		o.Policy.Live = map[string]LiveProfile{"former": {Name: "former", Checksum: "sha256:1"}}
		if tt.change != nil {
			tt.change(&d, &o)
		}
		if got := kinds(Diff(d, o)); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}

// A unit that a socket with Accept=yes started serves one connection, and cannot be
// started for it again. Other instances can, by whatever socket they are started.
func TestAUnitForOneConnectionIsNotRestarted(t *testing.T) {
	for _, tt := range []struct {
		unit, socket string
		restart      bool
	}{
		{"agent@5-10.0.0.1:80-10.0.0.2:5555.service", "agent.socket", false},
		{"agent@0-1234-1000.service", "agent.socket", false},
		{"agent@7-77-[::1]:80-[::1]:5555.service", "agent@x.socket", false},
		{"agent@5-10.0.0.1:80-10.0.0.2:5555.service", "", true},
		{"agent@5-10.0.0.1:80-10.0.0.2:5555.service", "other.socket", true},
		{"agent@5.service", "agent@5.socket", true},
		{"agent@main-1.service", "agent.socket", true},
		{"agent@.service", "agent.socket", true},
		{"agent.service", "agent.socket", true},
	} {
		d, o := healthy()
		d.Attachment, d.Unit, o.Unit.ID = nil, tt.unit, tt.unit
		if tt.socket != "" {
			o.Unit.Sockets = []string{tt.socket}
		}
		attached := Plan{Profile: "myagent"}
		planRestart(&attached, o.Unit, true, because(TaskUnconfined, "x"))
		for what, p := range map[string]Plan{"attached": attached, "detached": Diff(d, o)} {
			if p.Has(Restart) != tt.restart {
				t.Errorf("%s of %q, %s: %+v", tt.unit, tt.socket, what, p)
			}
			if !tt.restart {
				wantCodes(t, tt.unit, p.Pending, RestartPending)
			}
		}
	}
}
