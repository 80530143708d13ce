package attach

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var hostFine = Host{Enabled: Yes, GlobalMode: ModeEnforce, BootService: Yes}

// verdictOn makes a case of an attached unit with these reasons.
func verdictOn(unit string, reasons ...Reason) Case {
	v := Verdict{Unit: unit, Profile: "a", Answer: Confined, Tasks: 3, Processes: 2, PrivateTmp: Yes, At: startAt, Reasons: reasons}
	for _, r := range reasons {
		v.Answer = max(v.Answer, r.Code.Bearing())
	}
	return Case{Unit: unit, Status: &Status{Unit: unit, Profile: "a", ProfileFile: "/etc/apparmor.d/a", Attachment: "/etc/aaunit/attachments.d/a.conf",
		DropIn: "/etc/systemd/system/" + unit + ".d/90-aaunit.conf", ActiveState: "active", Verdict: &v},
		Start: &LastStart{LoadState: "loaded", ActiveState: "active", Result: "success", Profile: "a"}}
}

// shellLine is a command without anything that a shell reads as more than words,
// outside of quotes.
var shellLine = regexp.MustCompile(`^[a-z_-]+( ([A-Za-z0-9@%+=:,./_^-]|'[^']*'|\\')+)+$`)

// Every reason there is ends with a command to type, wherever it stands, and so
// does one of a code that this version does not know.
func TestEveryReasonHasANextCommand(t *testing.T) {
	codes := []Code{"from-a-newer-daemon"}
	for _, e := range Catalogue() {
		codes = append(codes, e.Code)
	}
	units := []string{"a.service", `a\x2db@1.service`, "a@.service", "a-.service", "-b.service"}
	wheres := []string{"", "/etc/apparmor.d/a:7", "/etc/systemd/system/a.service.d/x.conf:3", `/etc/apparmor.d/a, rule "/bin/sh Ux"`, "nowhere", "/tmp/;reboot '$(id)'\n\x1b:9"}
	nexts := []string{"", "take the + off the line", "correct line 12, then: aaunitctl check /etc/apparmor.d/a", "systemctl cat a; reboot", "systemctl cat $(reboot)", "systemctl `id`", "reboot now"}
	type variant struct{ unit, where, next string }
	variants := []variant{{unit: units[0]}}
	for _, unit := range units {
		variants = append(variants, variant{unit, wheres[1], ""})
	}
	for _, where := range wheres {
		variants = append(variants, variant{units[0], where, ""})
	}
	for _, next := range nexts {
		variants = append(variants, variant{units[0], wheres[1], next})
	}
	for _, code := range codes {
		for _, v := range variants {
			unit, where, next := v.unit, v.where, v.next
			r := Because(code, "detail").At(where).WithNext(next)
			cases := map[string]Case{"verdict": verdictOn(unit, r)}
			refused := verdictOn(unit)
			refused.Status.Verdict, refused.Status.Refused = nil, []Reason{r}
			cases["refused"] = refused
			held := verdictOn(unit)
			held.Status.Held = &Hold{Reasons: []Reason{r}, Since: startAt}
			cases["held"] = held
			note := verdictOn(unit)
			note.Status.Notes = []Reason{r}
			cases["note"] = note
			cases["not attached"] = Case{Unit: unit, Missing: &r, Plan: &Outcome{Reasons: []Reason{r}}}
			for name, c := range cases {
				e := Explain(CaseReport{Host: hostFine}, c)
				if !shellLine.MatchString(e.Next.Line) || strings.Contains(e.Next.Line, "{") || strings.Contains(e.Next.Line, "$") && !strings.Contains(e.Next.Line, "'") {
					t.Fatalf("%s of %s as %s (%q, %q): next %q", code, unit, name, where, next, e.Next.Line)
				}
				if first, _, _ := strings.Cut(e.Next.Line, " "); first == "reboot" || strings.Contains(e.Next.Line, "; reboot") {
					t.Fatalf("%s: %q", code, e.Next.Line)
				}
				if e.Headline == "" || strings.ContainsAny(e.Headline, "\n\x1b") || !strings.HasSuffix(e.Headline, ".") {
					t.Fatalf("%s as %s: headline %q", code, name, e.Headline)
				}
				for _, x := range e.Reasons {
					if x.Title == "" || x.Explanation == "" || !shellLine.MatchString(x.Command.Line) {
						t.Fatalf("%s as %s: %+v", code, name, x)
					}
				}
				if name == "held" && e.Exit == ExitOK && !e.Pattern || name == "refused" && e.Exit == ExitOK || name == "not attached" && e.Exit == ExitOK {
					t.Fatalf("%s as %s: exit %d", code, name, e.Exit)
				}
				if e.Exit == ExitOK && !e.Pattern && e.Answer != Confined {
					t.Fatalf("%s as %s: %v, and exit 0", code, name, e.Answer)
				}
			}
		}
	}
	// A code of the table is one of the catalogue.
	for code := range steps {
		if _, known := catalogue[code]; !known {
			t.Errorf("a step for %s, which is no code", code)
		}
	}
}

func TestExplain(t *testing.T) {
	with := func(c Case, f func(*Case)) Case { f(&c); return c }
	failed := LastStartOf(failedUnit(231, time.Time{}), nil, Hearing{})
	own := LastStartOf(failedUnit(231, startAt), nil, Hearing{})
	idle := Because(NotRunning, "a.service is failed")
	denied := Seen(Denial{Operation: "open", Name: "/etc/x", Denied: "r", Profile: "a", Comm: "y", Count: 2, Last: startAt})
	pause := Pause{Since: startAt, Until: startAt.Add(time.Hour), By: "alice"}
	for name, c := range map[string]struct {
		host Host
		c    Case
		exit Exit
		says string // in the headline
		next string
		more func(Explanation) bool
	}{
		"confined": {hostFine, verdictOn("a.service"), ExitOK, "a.service is confined: each of its 3 tasks", "aaunitctl verify a.service",
			func(e Explanation) bool { return len(e.RestsOn) == 4 && len(e.DoesNotCover) == 3 && len(e.Unseen) == 0 }},
		"confined, with the host's /tmp": {hostFine, with(verdictOn("a.service"), func(c *Case) { c.Status.Verdict.PrivateTmp = No }), ExitOK, "is confined", "aaunitctl verify a.service",
			func(e Explanation) bool { return len(e.RestsOn) == 3 && strings.Contains(e.DoesNotCover[0], "/tmp") }},
		"confined and denied something": {hostFine, with(verdictOn("a.service"), func(c *Case) { c.Denials = []SeenDenial{denied}; c.LeftOut = 3 }), ExitOK, "is confined", "aaunitctl denials a.service",
			func(e Explanation) bool {
				return len(e.Denials) == 1 && e.MoreDenials == 3 && strings.Contains(e.Denials[0].Words, "2 times")
			}},
		"not confined":  {hostFine, verdictOn("a.service", Because(TaskUnconfined, "x")), ExitNotConfined, "is not confined: a task is not confined", "aaunitctl check a.service", nil},
		"complain mode": {hostFine, verdictOn("a.service", Because(TaskComplain, "x")), ExitNotConfined, "is not confined: a task's profile does not enforce", "aaunitctl attach a.service", nil},
		"a restart is pending": {hostFine, with(verdictOn("a.service", Because(TaskUnconfined, "x")), func(c *Case) {
			c.Status.Notes = []Reason{Because(RestartPending, "a takes effect at the next start of a.service").WithNext("systemctl restart a.service")}
		}), ExitNotConfined, "is not confined: a task is not confined", "systemctl restart a.service", nil},
		"one that would take the system along": {hostFine, with(verdictOn("dbus.service", Because(TaskUnconfined, "x")), func(c *Case) {
			c.Status.Notes = []Reason{Because(UnitProtected, "x"), Because(RestartPending, "a takes effect at the next start of dbus.service")}
		}), ExitNotConfined, "is not confined", "systemctl list-dependencies --reverse dbus.service", func(e Explanation) bool {
			return !slices.ContainsFunc(e.Reasons, func(x Explained) bool { return strings.Contains(x.Command.Line, "restart") })
		}},
		"unknown": {hostFine, verdictOn("a.service", Because(ScanFailed, "x")), ExitUnknown, "Whether a.service is confined is not known", "aaunitctl verify a.service",
			func(e Explanation) bool { return e.RestsOn == nil }},
		"not started":                  {hostFine, with(verdictOn("a.service", idle), func(c *Case) { c.Start.ActiveState = "inactive" }), ExitUnknown, "is not running", "systemctl start a.service", nil},
		"failed by 231/APPARMOR":       {hostFine, with(verdictOn("a.service", idle), func(c *Case) { c.Start = &failed }), ExitUnknown, "systemd could not put the profile on", "aaunitctl attach a.service", nil},
		"ended with 231":               {hostFine, with(verdictOn("a.service", idle), func(c *Case) { c.Start = &own }), ExitUnknown, "the last start failed", "journalctl -b -u a.service", nil},
		"failed, and denied something": {hostFine, with(verdictOn("a.service", idle), func(c *Case) { c.Start = &own; c.Denials = []SeenDenial{denied} }), ExitUnknown, "the last start failed", "aaunitctl denials a.service", nil},
		"masked":                       {hostFine, with(verdictOn("a.service", idle), func(c *Case) { c.Start.LoadState, c.Start.ActiveState = "masked", "inactive" }), ExitUnknown, "the unit is masked", "systemctl unmask a.service", nil},
		"held": {hostFine, with(verdictOn("a.service"), func(c *Case) {
			c.Status.Held = &Hold{Since: startAt, Reasons: []Reason{Because(AttachFailed, "a.service failed").WithNext("aaunitctl attach a.service")}}
		}), ExitNotConfined, "the attach failed, was undone", "journalctl -b -u a.service", nil},
		"held by denials": {hostFine, with(verdictOn("a.service", Because(DirectiveOverridden, "x"), Because(TaskUnconfined, "x")), func(c *Case) {
			c.Status.Held, c.Denials = &Hold{Since: startAt, Reasons: []Reason{Because(AttachFailed, "a.service failed")}}, []SeenDenial{denied}
		}), ExitNotConfined, "the attach failed, was undone", "aaunitctl denials a.service", nil},
		"a changed text held": {hostFine, with(verdictOn("a.service"), func(c *Case) {
			c.Status.Held = &Hold{Since: startAt, Reasons: []Reason{Because(PolicyUndone, "x")}, Texts: map[string]string{"/etc/apparmor.d/a": "1"}}
		}), ExitOK, "is confined", "aaunitctl denials a.service", nil},
		"paused and confined": {hostFine, with(verdictOn("a.service"), func(c *Case) { c.Status.Paused = &pause }), ExitOK, "it is paused", "aaunitctl verify a.service", nil},
		"paused and not confined": {hostFine, with(verdictOn("a.service", Because(TaskUnconfined, "x")), func(c *Case) { c.Status.Paused = &pause }), ExitNotConfined, "it is paused",
			"aaunitctl resume a.service", nil},
		"refused": {hostFine, with(verdictOn("a.service"), func(c *Case) {
			c.Status.Verdict, c.Status.Refused = nil, []Reason{Because(ProfileNotFound, "x")}
		}), ExitNotConfined, "refused to attach it: no such profile", "aaunitctl list --profiles", nil},
		"refused, in complain mode": {hostFine, with(verdictOn("a.service"), func(c *Case) {
			c.Status.Verdict, c.Status.Refused = nil, []Reason{Because(ProfileComplain, "x").WithNext(EnforceStep("/etc/apparmor.d/b"))}
		}), ExitNotConfined, "refused to attach it: the profile is in complain mode", "aa-enforce /etc/apparmor.d/b", func(e Explanation) bool {
			return strings.Contains(e.Reasons[0].Explanation, "apparmor-utils")
		}},
		"a pattern": {hostFine, with(verdictOn("a@.service"), func(c *Case) { c.Status.Verdict = nil; c.Start = nil }), ExitOK, "is a pattern", "aaunitctl status",
			func(e Explanation) bool { return e.Pattern && len(e.Unseen) == 0 }},
		"a pattern in complain mode": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start, c.Status.Refused = nil, nil, []Reason{because(TaskComplain, "profile a is in complain mode")}
			c.Status.DropIn = DropInPath(c.Unit, false)
		}), ExitNotConfined, "in complain mode: units to come are not confined", "aaunitctl attach a@.service", nil},
		"a pattern that no pass has come to": {hostFine, with(verdictOn("a@.service"), func(c *Case) { c.Status = &Status{Unit: c.Unit, Profile: "a", Busy: true}; c.Start = nil }), ExitUnknown,
			"is not known yet", "aaunitctl status", func(e Explanation) bool { return len(e.Unseen) == 1 }},
		"a pattern without its drop-in": {hostFine, with(verdictOn("a@.service"), func(c *Case) { c.Status.Verdict, c.Status.DropIn, c.Start = nil, "", nil }), ExitNotConfined,
			"its drop-in is not in place", "aaunitctl status", nil},
		"a pattern whose policy is not put back": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start = nil, nil
			c.Status.Refused = []Reason{Because(PolicyTrampled, "somebody removed profile a"), Because(ProfileNotLoaded, "cannot load /etc/apparmor.d/a: no memory")}
		}), ExitNotConfined, "the policy that was accepted for it is not put back", "aaunitctl verify a@.service", nil},
		"a pattern that is refused, with its drop-in": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start, c.Status.Refused = nil, nil, []Reason{Because(RivalAttachments, "x")}
		}), ExitNotConfined, "aaunitd refused to attach it", "grep -r ^Unit= /etc/aaunit/attachments.d /run/aaunit/attachments.d /usr/lib/aaunit/attachments.d", nil},
		"a pattern held without its drop-in": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start, c.Status.DropIn, c.Status.Held = nil, nil, "", &Hold{Since: startAt, Reasons: []Reason{Because(AttachFailed, "a@1.service failed")}}
		}), ExitNotConfined, "the attach failed, was undone", "journalctl -b -u a@.service", nil},
		"a paused pattern": {hostFine, with(verdictOn("a@.service"), func(c *Case) { c.Status.Verdict, c.Start, c.Status.Paused = nil, nil, &pause }), ExitOK, "it is paused", "aaunitctl status", nil},
		"a paused pattern without its drop-in": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start, c.Status.DropIn, c.Status.Paused = nil, nil, "", &pause
		}), ExitNotConfined, "it is paused", "aaunitctl resume a@.service", nil},
		"a paused pattern whose drop-in somebody removed": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start, c.Status.Paused, c.Status.Refused = nil, nil, &pause, []Reason{Because(DropInMissing, "x does not exist")}
		}), ExitNotConfined, "its drop-in is not as it should be: units to come are not confined by it. aaunitd leaves it alone at present", "aaunitctl resume a@.service", nil},
		"a paused pattern whose policy somebody removed": {hostFine, with(verdictOn("a@.service"), func(c *Case) {
			c.Status.Verdict, c.Start, c.Status.Paused, c.Status.Refused = nil, nil, &pause, []Reason{Because(PolicyTrampled, "somebody removed profile a")}
		}), ExitNotConfined, "the kernel does not run the policy that was accepted for it", "aaunitctl resume a@.service", nil},
		"not started, and no drop-in": {hostFine, with(verdictOn("a@1.service", idle), func(c *Case) { c.Start.ActiveState, c.Status.DropIn = "inactive", "" }), ExitUnknown,
			"the drop-in for its next start is not in place", "systemctl start a@1.service", nil},
		"nobody has looked": {hostFine, with(verdictOn("a.service"), func(c *Case) { c.Status.Verdict = nil }), ExitUnknown, "is not known: nobody has looked at it yet", "aaunitctl verify a.service",
			func(e Explanation) bool { return len(e.Unseen) == 1 }},
		"hidden": {hostFine, with(verdictOn("a.service"), func(c *Case) { c.Hidden = "only root" }), ExitOK, "is confined", "aaunitctl verify a.service",
			func(e Explanation) bool { return len(e.Unseen) == 1 && strings.Contains(e.Unseen[0], "only root") }},
		"systemd is silent": {hostFine, with(verdictOn("a.service"), func(c *Case) { c.Start, c.StartProblem = nil, "no bus" }), ExitOK, "is confined", "aaunitctl verify a.service",
			func(e Explanation) bool { return len(e.Unseen) == 1 && strings.Contains(e.Unseen[0], "no bus") }},
		"no such unit": {hostFine, Case{Unit: "x", Missing: ptr(Because(UnitNotFound, "x"))}, ExitNoUnit, "systemd knows no service called x", "systemctl list-unit-files --type=service", nil},
		"not attached": {hostFine, Case{Unit: "b.service", Missing: ptr(Because(NotAttached, "x").WithNext("aaunitctl attach b.service")), Start: &LastStart{ActiveState: "active", Profile: "b"},
			Plan: &Outcome{Profile: "b", File: "/etc/apparmor.d/b"}}, ExitNotConfined, "is not attached: aaunit neither confines nor watches it. Its unit file names profile b", "aaunitctl attach b.service", nil},
		"not attached, and no profile": {hostFine, Case{Unit: "b.service", Missing: ptr(Because(NotAttached, "x")), Plan: &Outcome{Reasons: []Reason{Because(ProfileNotFound, "none")}}},
			ExitNotConfined, "is not attached", "aaunitctl list --profiles", nil},
		"not attached, and not root": {hostFine, Case{Unit: "b.service", Missing: ptr(Because(NotAttached, "x")), Start: &failed}, ExitNotConfined, "is not attached", "aaunitctl plan b.service",
			func(e Explanation) bool { return len(e.Unseen) == 1 }},
		"AppArmor is off": {Host{Enabled: No}, verdictOn("a.service", Because(AppArmorOff, "AppArmor is not enabled in this kernel")), ExitNotConfined, "is not confined: AppArmor is off", "cat /proc/cmdline",
			func(e Explanation) bool { return len(e.Reasons) == 1 }},
		"off, and nobody to ask": {Host{Enabled: No}, Case{Unit: "a", StartProblem: "no daemon"}, ExitNotConfined, "a: AppArmor is off.", "cat /proc/cmdline", nil},
		"nobody to ask":          {hostFine, Case{Unit: "a"}, ExitUnknown, "could not be asked", "systemctl status aaunitd.service", nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := Explain(CaseReport{Host: c.host}, c.c)
			if e.Exit != c.exit || !strings.Contains(e.Headline, c.says) || e.Next.Line != c.next || c.more != nil && !c.more(e) {
				t.Errorf("exit %d, headline %q, next %q\n%+v", e.Exit, e.Headline, e.Next.Line, e)
			}
		})
	}
}

// What was lost or cannot be heard is said, and bounds the list.
func TestExplainSaysWhatWasNotHeard(t *testing.T) {
	c := verdictOn("a.service")
	for range maxTold + 2 {
		c.Denials = append(c.Denials, Seen(Denial{Operation: "open", Name: "/x", Denied: "r", Profile: "a", Count: 1}))
	}
	c.Denials[maxTold+1].Comm = "last"
	e := Explain(CaseReport{Host: hostFine, Lost: 7, Deaf: "no room"}, c)
	if len(e.Denials) != maxTold || e.MoreDenials != 2 || e.Denials[0].Comm != "last" {
		t.Errorf("%d denials and %d more: %+v", len(e.Denials), e.MoreDenials, e.Denials)
	}
	if len(e.Unseen) != 2 || !strings.Contains(e.Unseen[0], "no room") || !strings.Contains(e.Unseen[1], "at least 7") {
		t.Errorf("%q", e.Unseen)
	}
}
