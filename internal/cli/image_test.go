package cli

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aaunit/aaunit/internal/attach"
	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
)

// fakeImage answers what a test gives it.
type fakeImage struct {
	outcomes []attach.Outcome
	report   attach.ImageReport
	did      string
	request  attach.Request
}

func (i *fakeImage) Attach(_ context.Context, r attach.Request) ([]attach.Outcome, error) {
	i.did, i.request = "attach", r
	return i.outcomes, nil
}

func (i *fakeImage) Detach(_ context.Context, r attach.Request) ([]attach.Outcome, error) {
	i.did, i.request = "detach", r
	return i.outcomes, nil
}

func (i *fakeImage) Status(_ context.Context, units []string) (attach.ImageReport, error) {
	i.did, i.request = "status", attach.Request{Units: units}
	return i.report, nil
}

func imageScene() (*scene, *fakeImage) {
	s, i := newScene(), &fakeImage{}
	s.OpenImage = func(dir string) (Image, error) {
		if dir != "/srv/image" {
			return nil, errors.New("cannot use --root=" + dir)
		}
		return i, nil
	}
	return s, i
}

func preparedOutcome() attach.Outcome {
	return attach.Outcome{Unit: "myagent.service", Profile: "myagent", File: "/etc/apparmor.d/usr.local.bin.myagent", Changed: true,
		Events: []attach.Event{
			event(attach.StepAttachment, attach.Done, "/etc/aaunit/attachments.d/myagent.service.conf"),
			event(attach.StepDropIn, attach.Done, "/etc/systemd/system/myagent.service.d/90-aaunit.conf"),
		},
		Notes: []attach.Reason{attach.Because(attach.BootServiceMissing, "apparmor.service is not enabled").WithNext("systemctl --root=/srv/image enable apparmor.service")}}
}

func TestRootIsForWhatFilesCanTell(t *testing.T) {
	s, i := imageScene()
	i.outcomes = []attach.Outcome{preparedOutcome()}
	for _, tc := range []struct {
		args []string
		exit attach.Exit
		did  string
		want attach.Request
	}{
		{[]string{"attach", "myagent", "-p", "./p", "--complain", "--no-restart"}, attach.ExitOK, "attach", attach.Request{Units: []string{"myagent"}, Profile: "./p", Complain: true, NoRestart: true, Trusted: true}},
		{[]string{"attach", "--settle", "1min", "myagent"}, attach.ExitOK, "attach", attach.Request{Units: []string{"myagent"}, Settle: span(time.Minute), Trusted: true}},
		{[]string{"attach"}, attach.ExitOK, "attach", attach.Request{Units: []string{}, Trusted: true}},
		{[]string{"attach", "--dry-run", "myagent"}, attach.ExitOK, "attach", attach.Request{Units: []string{"myagent"}, DryRun: true, Trusted: true}},
		{[]string{"plan"}, attach.ExitOK, "attach", attach.Request{Units: []string{}, DryRun: true, Trusted: true}},
		{[]string{"detach", "myagent"}, attach.ExitOK, "detach", attach.Request{Units: []string{"myagent"}, Trusted: true}},
		{[]string{"status"}, attach.ExitOK, "status", attach.Request{Units: []string{}}},
		{[]string{"list"}, attach.ExitOK, "status", attach.Request{Units: []string{}}},
		{args: []string{"detach"}, exit: attach.ExitUsage},
		{args: []string{"attach", "--runtime", "myagent"}, exit: attach.ExitUsage},
		{args: []string{"attach", "--no-wait", "myagent"}, exit: attach.ExitUsage},
		{args: []string{"attach", "--settle", "-1s", "myagent"}, exit: attach.ExitUsage},
		{args: []string{"list", "--profiles"}, exit: attach.ExitUsage},
		{args: []string{"verify"}, exit: attach.ExitUsage},
		{args: []string{"pause", "myagent"}, exit: attach.ExitUsage},
		{args: []string{"check", "myagent"}, exit: attach.ExitUsage},
		{args: []string{"apply", "myagent"}, exit: attach.ExitUsage},
		{args: []string{"version"}, exit: attach.ExitUsage},
		{args: []string{"sockopts", "approve", "myagent", "TCP_NODELAY"}, exit: attach.ExitUsage},
		{args: []string{"sockopts", "record", "myagent"}, exit: attach.ExitUsage},
	} {
		i.did, i.request = "", attach.Request{}
		if exit := s.run(append(tc.args, "--root=/srv/image")...); exit != tc.exit || i.did != tc.did {
			t.Errorf("%q: exit %d, did %q: %s", tc.args, exit, i.did, s.err.String())
		}
		if d := cmp.Diff(tc.want, i.request); d != "" {
			t.Errorf("%q (-want +got):\n%s", tc.args, d)
		}
		if s.daemon.did != "" || s.dialed != "" {
			t.Fatalf("%q: the daemon was asked", tc.args)
		}
	}
	if exit := s.run("attach", "myagent", "--root="); exit != attach.ExitUsage {
		t.Errorf("no directory: exit %d", exit)
	}
	if exit := s.run("attach", "myagent", "--root=/none"); exit != attach.ExitFailed || !strings.Contains(s.err.String(), "/none") {
		t.Errorf("another directory: exit %d: %s", exit, s.err.String())
	}
	i.outcomes = nil
	if exit := s.run("attach", "--root=/srv/image"); exit != attach.ExitFailed {
		t.Errorf("nothing declared: exit %d", exit)
	}
}

// Every command that does nothing with --root refuses it, subcommands as well: it
// would be about the running system, which nobody named.
func TestNoOtherCommandTakesRoot(t *testing.T) {
	s, i := imageScene()
	takes := []string{"attach", "detach", "plan", "status", "list"}
	var check func(cmd *cobra.Command, path []string)
	check = func(cmd *cobra.Command, path []string) {
		for _, sub := range cmd.Commands() {
			check(sub, append(slices.Clone(path), sub.Name()))
		}
		if len(path) == 0 || len(path) == 1 && slices.Contains(takes, path[0]) {
			return
		}
		for root, why := range map[string]string{"--root=/srv/image": strings.Join(path, " ") + " is about a system that runs", "--root=": "--root is empty"} {
			refused := false
			// One of these is what the command takes for its arguments.
			for _, args := range [][]string{{}, {"bash"}, {"myagent"}, {"myagent", "TCP_NODELAY"}} {
				i.did = ""
				exit := s.run(slices.Concat(path, args, []string{root})...)
				if exit != attach.ExitUsage || i.did != "" || s.daemon.did != "" || s.dialed != "" {
					t.Fatalf("%q %s: exit %d: %s%s", slices.Concat(path, args), root, exit, s.out.String(), s.err.String())
				}
				refused = refused || strings.Contains(s.err.String(), why)
			}
			if !refused {
				t.Errorf("%q does not say why it takes no %s", path, root)
			}
		}
	}
	check((&app{World: s.World}).root(), nil)
}

func TestImagesAreShown(t *testing.T) {
	s, i := imageScene()
	i.outcomes = []attach.Outcome{preparedOutcome(), refused()}
	if exit := s.run("--root=/srv/image", "attach", "myagent", "web"); exit != attach.ExitFailed {
		t.Errorf("exit %d", exit)
	}
	golden(t, "image-attach", s.out.String())

	i.report = attach.ImageReport{Root: "/srv/image", Units: []attach.ImageUnit{
		{Unit: "agent@.service", Profile: "agent-%i", Attachment: "/etc/aaunit/attachments.d/agents.conf", DropIn: "/etc/systemd/system/agent@.service.d/90-aaunit.conf", Prepared: attach.No,
			Reasons: []attach.Reason{attach.Because(attach.DropInMissing, "/etc/systemd/system/agent@.service.d/90-aaunit.conf does not exist")}},
		{Unit: "myagent.service", Profile: "myagent", ProfileFile: "/etc/apparmor.d/usr.local.bin.myagent", Attachment: "/etc/aaunit/attachments.d/myagent.service.conf",
			DropIn: "/etc/systemd/system/myagent.service.d/90-aaunit.conf", Prepared: attach.Yes},
	}, Missing: []attach.Missing{{Unit: "web.service", Reason: attach.Because(attach.NotAttached, "no attachment file of /srv/image names web.service").WithNext("aaunitctl --root=/srv/image attach web.service")}}}
	if exit := s.run("--root=/srv/image", "status"); exit != attach.ExitNotConfined {
		t.Errorf("exit %d", exit)
	}
	golden(t, "image-status", s.out.String())
	s.run("--root=/srv/image", "list")
	golden(t, "image-list", s.out.String())
	s.run("--root=/srv/image", "status", "--json")
	golden(t, "image-json", s.out.String())

	// Never a success where it could not be told.
	i.report = attach.ImageReport{Units: []attach.ImageUnit{{Unit: "a.service"}}}
	if exit := s.run("--root=/srv/image", "status"); exit != attach.ExitUnknown {
		t.Errorf("unknown: exit %d", exit)
	}
}
